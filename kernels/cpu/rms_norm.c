/* Root-mean-square normalisation over rows, with the residual addition fused in, and its backward. Source: Zhang &
 * Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467. */
#include <math.h>

#include "cpu.h"

enum { slab = 64, row_piece = 16 };

/* One row; the sum is parked in y, which is in cache for the second sweep. */
SLK_HOT static float normalise_row(const sl_rms_norm_args *a, int64_t row) {
  const int64_t n = a->n;
  const float *x = a->x + row * n, *residual = a->residual != NULL ? a->residual + row * n : NULL;
  const float *weight = a->weight, offset = a->offset;
  float *y = a->y + row * n, *kept = a->sum != NULL ? a->sum + row * n : NULL, squares = 0;
  if (residual != NULL) {
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < n; i++) {
      y[i] = x[i] + residual[i];
      squares += y[i] * y[i];
    }
  } else {
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < n; i++) {
      y[i] = x[i];
      squares += y[i] * y[i];
    }
  }
  if (kept != NULL) {
    SLK_SIMD for (int64_t i = 0; i < n; i++) kept[i] = y[i];
  }
  const float rrms = 1.0f / sqrtf(squares / (float)n + a->eps);
  SLK_SIMD for (int64_t i = 0; i < n; i++) y[i] = y[i] * rrms * (weight[i] + offset);
  return rrms;
}

sl_status slk_cpu_rms_norm(sl_device *device, const sl_rms_norm_args *args) {
  (void)device;
#pragma omp parallel for schedule(static) if (args->rows * args->n >= SLK_PARALLEL_MIN)
  for (int64_t from = 0; from < args->rows; from += row_piece) {
    for (int64_t row = from; row < slk_min(from + row_piece, args->rows); row++) {
      float rrms = normalise_row(args, row);
      if (args->rrms != NULL) args->rrms[row] = rrms;
    }
  }
  return SL_OK;
}

/* ds = r (g - h mean(g h)), g = dy (weight + offset), r = rrms, h = s r. */
SLK_HOT static void backward_row(const sl_rms_norm_backward_args *a, int64_t row) {
  const int64_t n = a->n;
  const float *s = a->s + row * n, *dy = a->dy + row * n, *weight = a->weight;
  const float rrms = a->rrms[row], offset = a->offset;
  float *ds = a->ds + row * n, sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += dy[i] * (weight[i] + offset) * (s[i] * rrms);
  const float mean = sum / (float)n;
  if (a->accumulate) {
    SLK_SIMD for (int64_t i = 0; i < n; i++) ds[i] += rrms * (dy[i] * (weight[i] + offset) - s[i] * rrms * mean);
  } else {
    SLK_SIMD for (int64_t i = 0; i < n; i++) ds[i] = rrms * (dy[i] * (weight[i] + offset) - s[i] * rrms * mean);
  }
}

/* The weight's gradient in columns [from, from + width): one owner per column, rows in order, float64 sums. */
SLK_HOT static void backward_slab(const sl_rms_norm_backward_args *a, int64_t from, int64_t width) {
  double dweight[slab] = { 0 };
  for (int64_t row = 0; row < a->rows; row++) {
    const float *s = a->s + row * a->n + from, *dy = a->dy + row * a->n + from, rrms = a->rrms[row];
    SLK_SIMD for (int64_t j = 0; j < width; j++) dweight[j] += (double)(dy[j] * (s[j] * rrms));
  }
  float *to = a->dweight + from;
  for (int64_t j = 0; j < width; j++) to[j] = (float)dweight[j] + (a->accumulate ? to[j] : 0.0f);
}

sl_status slk_cpu_rms_norm_backward(sl_device *device, const sl_rms_norm_backward_args *args) {
  (void)device;
  if (args->need != NULL) return slk_needs_nothing(args->need);
  bool wide = args->rows * args->n >= SLK_PARALLEL_MIN;
  if (args->dweight != NULL) {
#pragma omp parallel for schedule(static) if (wide)
    for (int64_t from = 0; from < args->n; from += slab)
      backward_slab(args, from, slk_min(slab, args->n - from));
  }
  if (args->ds == NULL) return SL_OK;
#pragma omp parallel for schedule(static) if (wide)
  for (int64_t row = 0; row < args->rows; row++) backward_row(args, row);
  return SL_OK;
}
