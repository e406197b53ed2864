/* Layer normalisation over rows, with the residual addition fused in, and its
 * backward. Source: Ba, Kiros, Hinton, "Layer Normalization", arXiv 1607.06450;
 * population variance as every library has it. */
#include <math.h>

#include "cpu.h"

enum { slab = 64, row_piece = 16 };

typedef struct {
  float mean, rstd;
} row_stats;

/* One row; the sum is parked in y, which is in cache for the second and third
 * sweep. */
SLK_HOT static row_stats normalise_row(const sl_layernorm_args *a, int64_t row) {
  const int64_t n = a->n;
  const float *x = a->x + row * n, *residual = a->residual != NULL ? a->residual + row * n : NULL;
  const float *weight = a->weight, *bias = a->bias;
  float *y = a->y + row * n, *kept = a->sum != NULL ? a->sum + row * n : NULL;
  float total = 0, squares = 0;
  if (residual != NULL) {
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; i++) total += y[i] = x[i] + residual[i];
  } else {
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; i++) total += y[i] = x[i];
  }
  if (kept != NULL) {
    SLK_SIMD for (int64_t i = 0; i < n; i++) kept[i] = y[i];
  }
  const float guess = total / (float)n;
  /* Centred sums in a sweep of their own: E[x^2] - mean^2 cancels when the mean is large. What is left of the sum
   * corrects the guess, whose rounding would shift every entry. */
  float rest = 0;
#pragma omp simd reduction(+ : squares, rest)
  for (int64_t i = 0; i < n; i++) {
    squares += (y[i] - guess) * (y[i] - guess);
    rest += y[i] - guess;
  }
  const float shift = rest / (float)n, variance = squares / (float)n - shift * shift;
  const float mean = guess + shift, rstd = 1.0f / sqrtf((variance > 0 ? variance : 0.0f) + a->eps);
  SLK_SIMD for (int64_t i = 0; i < n; i++) y[i] = ((y[i] - guess) - shift) * rstd * weight[i] + bias[i];
  return (row_stats){ mean, rstd };
}

sl_status slk_cpu_layernorm(sl_device *device, const sl_layernorm_args *args) {
  (void)device;
#pragma omp parallel for schedule(static) if (args->rows * args->n >= SLK_PARALLEL_MIN)
  for (int64_t from = 0; from < args->rows; from += row_piece) {
    for (int64_t row = from; row < slk_min(from + row_piece, args->rows); row++) {
      row_stats stats = normalise_row(args, row);
      if (args->mean != NULL) args->mean[row] = stats.mean;
      if (args->rstd != NULL) args->rstd[row] = stats.rstd;
    }
  }
  return SL_OK;
}

/* ds = rstd (g - mean(g) - h mean(g h)), g = dy weight, h = (s - mean) rstd. */
SLK_HOT static void backward_row(const sl_layernorm_backward_args *a, int64_t row) {
  const int64_t n = a->n;
  const float *s = a->s + row * n, *dy = a->dy + row * n, *weight = a->weight;
  const float mean = a->mean[row], rstd = a->rstd[row];
  float *ds = a->ds + row * n, sum_g = 0, sum_gh = 0;
#pragma omp simd reduction(+ : sum_g, sum_gh)
  for (int64_t i = 0; i < n; i++) {
    float g = dy[i] * weight[i];
    sum_g += g;
    sum_gh += g * ((s[i] - mean) * rstd);
  }
  const float mean_g = sum_g / (float)n, mean_gh = sum_gh / (float)n, keep = a->accumulate ? 1.0f : 0.0f;
  if (keep != 0) {
    SLK_SIMD for (int64_t i = 0; i < n; i++) ds[i] +=
        rstd * (dy[i] * weight[i] - mean_g - (s[i] - mean) * rstd * mean_gh);
  } else {
    SLK_SIMD for (int64_t i = 0; i < n; i++) ds[i] =
        rstd * (dy[i] * weight[i] - mean_g - (s[i] - mean) * rstd * mean_gh);
  }
}

/* The parameter gradients of columns [from, from + width): one owner per
 * column, rows in order, float64 sums. */
SLK_HOT static void backward_slab(const sl_layernorm_backward_args *a, int64_t from, int64_t width) {
  double dweight[slab] = { 0 }, dbias[slab] = { 0 };
  for (int64_t row = 0; row < a->rows; row++) {
    const float *s = a->s + row * a->n + from, *dy = a->dy + row * a->n + from;
    const float mean = a->mean[row], rstd = a->rstd[row];
    SLK_SIMD for (int64_t j = 0; j < width; j++) {
      dweight[j] += (double)(dy[j] * ((s[j] - mean) * rstd));
      dbias[j] += (double)dy[j];
    }
  }
  for (int64_t j = 0; j < width; j++) {
    if (a->dweight != NULL)
      a->dweight[from + j] = (float)dweight[j] + (a->accumulate ? a->dweight[from + j] : 0.0f);
    if (a->dbias != NULL) a->dbias[from + j] = (float)dbias[j] + (a->accumulate ? a->dbias[from + j] : 0.0f);
  }
}

sl_status slk_cpu_layernorm_backward(sl_device *device, const sl_layernorm_backward_args *args) {
  (void)device;
  if (args->need != NULL) return slk_needs_nothing(args->need);
  bool wide = args->rows * args->n >= SLK_PARALLEL_MIN;
  if (args->dweight != NULL || args->dbias != NULL) {
#pragma omp parallel for schedule(static) if (wide)
    for (int64_t from = 0; from < args->n; from += slab)
      backward_slab(args, from, slk_min(slab, args->n - from));
  }
  if (args->ds == NULL) return SL_OK;
#pragma omp parallel for schedule(static) if (wide)
  for (int64_t row = 0; row < args->rows; row++) backward_row(args, row);
  return SL_OK;
}
