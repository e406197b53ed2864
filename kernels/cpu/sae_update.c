/* SAE kernels: the optimiser pass, unit rows, the centre of a batch. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "sae_cpu.h"
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

/* Second moments of rarely used latents decay through the denormal range, which some processors handle at a
 * hundredth of the speed. They are flushed to zero here; the caller's mode is given back. */
static unsigned flush_denormals(void) {
#if defined(__SSE__)
  unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | 0x8040u);
  return mode;
#else
  return 0;
#endif
}

static void restore_denormals(unsigned mode) {
#if defined(__SSE__)
  _mm_setcsr(mode);
#else
  (void)mode;
#endif
}

sl_status slk_cpu_sae_update(sl_device *device, const sl_sae_update_args *args) {
  (void)device;
  const sae_cpu_ops *ops = sae_cpu_get_ops();
  const sl_sae_parameters *w = &args->parameters, *m1 = &args->moment1, *m2 = &args->moment2;
  double norm = sqrt(*args->sum_squares);
  if (!isfinite(norm)) return SL_OK;
  double correct1 = 1 - pow((double)args->beta1, (double)args->step),
         correct2 = 1 - pow((double)args->beta2, (double)args->step);
  update_job job = { .args = args,
                     .clip = args->clip_norm > 0 && norm > args->clip_norm ? (float)(args->clip_norm / norm) : 1,
                     .step_size = (float)((double)args->lr / correct1),
                     .inverse_root2 = (float)(1 / sqrt(correct2)),
                     .vector_rule = args->rule == SL_SAE_SGD ? SL_SAE_SGD : SL_SAE_ADAM };
#pragma omp parallel
  {
    enum { STRETCH = 64 };       /* latents taken at a time */
    unsigned mode = flush_denormals();
#pragma omp for schedule(static) /* a run of rows for each thread, as cpu_fill gave them out */
    for (int64_t first = 0; first < args->m; first += STRETCH)
      ops->update_range(&job, first, first + STRETCH < args->m ? first + STRETCH : args->m);
#pragma omp single
    {
      ops->update_vector(&job, w->b_enc, m1->b_enc, m2->b_enc, args->gradients.b_enc, args->m);
      if (args->total_b_dec)
        ops->update_vector(&job, w->b_dec, m1->b_dec, m2->b_dec, args->total_b_dec, args->d_out);
    }
    restore_denormals(mode);
  }
  memset(args->gradients.b_enc, 0, (size_t)args->m * sizeof(float));
  if (args->total_b_dec) memset(args->gradients.b_dec, 0, (size_t)args->d_out * sizeof(float));
  return SL_OK;
}

sl_status slk_cpu_sae_unit_rows(sl_device *device, const sl_sae_unit_rows_args *args) {
  (void)device;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < args->m; i++) {
    const float *x = args->x + i * args->d;
    double squares = 0;
    for (int64_t j = 0; j < args->d; j++) squares += (double)x[j] * (double)x[j];
    float factor = 1 / ((float)sqrt(squares) + 1.19209290e-7f);
    for (int64_t j = 0; j < args->d; j++) args->y[i * args->d + j] = x[j] * factor;
  }
  return SL_OK;
}

/* -- Centre -- */

enum { PIECES = 16 }; /* of the rows; fixed, so that the bits do not depend on the number of threads */

/* sums = sum_t weight_t x_t, in float64; weight 1 without `center`, else 1 / |x_t - center|. Returns the sum
 * of weights. */
static double weighted_sum(const sl_sae_center_args *args, const float *center, double *parts, double *sums) {
  const sae_cpu_ops *ops = sae_cpu_get_ops();
  int64_t n = args->n, d = args->d;
  double weights[PIECES];
  memset(parts, 0, (size_t)(PIECES * d) * sizeof *parts);
#pragma omp parallel for schedule(static)
  for (int64_t piece = 0; piece < PIECES; piece++) {
    double *part = parts + piece * d;
    weights[piece] = 0;
    for (int64_t t = n * piece / PIECES; t < n * (piece + 1) / PIECES; t++) {
      const float *x = args->x + t * d;
      double distance = center ? sqrt((double)ops->sum_squares(x, center, d)) : 1;
      double weight = 1 / (distance > 1e-12 ? distance : 1e-12);
      for (int64_t j = 0; j < d; j++) part[j] += weight * (double)x[j];
      weights[piece] += weight;
    }
  }
  double total = 0;
  memset(sums, 0, (size_t)d * sizeof *sums);
  for (int64_t piece = 0; piece < PIECES; piece++) {
    total += weights[piece];
    for (int64_t j = 0; j < d; j++) sums[j] += parts[piece * d + j];
  }
  return total;
}

static double variance_around(const sl_sae_center_args *args, const float *center) {
  const sae_cpu_ops *ops = sae_cpu_get_ops();
  double sums[PIECES], total = 0;
#pragma omp parallel for schedule(static)
  for (int64_t piece = 0; piece < PIECES; piece++) {
    sums[piece] = 0;
    for (int64_t t = args->n * piece / PIECES; t < args->n * (piece + 1) / PIECES; t++)
      sums[piece] += (double)ops->sum_squares(args->x + t * args->d, center, args->d);
  }
  for (int64_t piece = 0; piece < PIECES; piece++) total += sums[piece];
  return total;
}

/* Weiszfeld's iteration; `center` holds the mean on entry. */
static int find_median(const sl_sae_center_args *args, float *center, double *parts, double *sums) {
  int iteration = 0;
  while (iteration < args->max_iterations) {
    double total = weighted_sum(args, center, parts, sums), moved = 0, norm = 0;
    for (int64_t j = 0; j < args->d; j++) {
      double value = sums[j] / total, step = value - (double)center[j];
      moved += step * step;
      norm += value * value;
      center[j] = (float)value;
    }
    iteration++;
    if (sqrt(moved) <= args->tolerance * sqrt(norm)) break;
  }
  return iteration;
}

sl_status slk_cpu_sae_center(sl_device *device, const sl_sae_center_args *args) {
  (void)device;
  size_t want = (size_t)args->d * ((PIECES + 1) * sizeof(double) + sizeof(float));
  if (args->need) {
    *args->need = want;
    return SL_OK;
  }
  if (args->workspace_bytes < want)
    return sl_fail(SL_EINVAL, "sae_center: a workspace of %zu bytes, %zu are needed", args->workspace_bytes,
                   want);
  double *parts = args->workspace, *sums = parts + PIECES * args->d;
  float *mean = (float *)(sums + args->d);
  weighted_sum(args, NULL, parts, sums);
  for (int64_t j = 0; j < args->d; j++) mean[j] = args->n > 0 ? (float)(sums[j] / (double)args->n) : 0;
  if (args->total_variance) *args->total_variance = variance_around(args, mean);
  int iterations = args->median && args->n > 0 ? find_median(args, mean, parts, sums) : 0;
  if (args->iterations) *args->iterations = iterations;
  if (args->center) memcpy(args->center, mean, (size_t)args->d * sizeof *mean);
  return SL_OK;
}
