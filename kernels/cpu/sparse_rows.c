/* Fixed-width sparse codes times matrix rows, its gradients, positions along an
 * axis, unit rows. */
#include <math.h>
#include <string.h>

#include "cpu.h"

enum { slab = 64 };

SLK_HOT static void decode_row(const sl_sparse_rows_args *a, int64_t row) {
  const int64_t n = a->n;
  float *y = a->y + row * n;
  if (!a->accumulate) {
    if (a->bias != NULL)
      memcpy(y, a->bias, (size_t)n * sizeof *y);
    else
      memset(y, 0, (size_t)n * sizeof *y);
  } else if (a->bias != NULL) {
    SLK_SIMD for (int64_t i = 0; i < n; i++) y[i] += a->bias[i];
  }
  for (int64_t j = 0; j < a->k; j++) {
    const float value = a->values[row * a->k + j],
                *weight = a->weight + (int64_t)a->indices[row * a->k + j] * n;
    if (value == 0) continue; /* padding of short codes */
    SLK_SIMD for (int64_t i = 0; i < n; i++) y[i] += value * weight[i];
  }
}

sl_status slk_cpu_sparse_rows(sl_device *device, const sl_sparse_rows_args *args) {
  (void)device;
#pragma omp parallel for schedule(static) if (args->rows * args->k * args->n >= SLK_PARALLEL_MIN)
  for (int64_t row = 0; row < args->rows; row++) decode_row(args, row);
  return SL_OK;
}

SLK_HOT static void dots_row(const sl_sparse_rows_backward_args *a, int64_t row) {
  const float *dy = a->dy + row * a->n;
  for (int64_t j = 0; j < a->k; j++) {
    const float *weight = a->weight + (int64_t)a->indices[row * a->k + j] * a->n;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < a->n; i++) sum += dy[i] * weight[i];
    a->dvalues[row * a->k + j] = sum;
  }
}

/* Columns [from, from + width) of every touched row of dW: one owner a column,
 * rows in order; repeats are no race. */
SLK_HOT static void outer_slab(const sl_sparse_rows_backward_args *a, int64_t from, int64_t width) {
  for (int64_t row = 0; row < a->rows; row++) {
    const float *dy = a->dy + row * a->n + from;
    for (int64_t j = 0; j < a->k; j++) {
      const float value = a->values[row * a->k + j];
      float *to = a->dweight + (int64_t)a->indices[row * a->k + j] * a->n + from;
      if (value == 0) continue;
      SLK_SIMD for (int64_t i = 0; i < width; i++) to[i] += value * dy[i];
    }
  }
}

sl_status slk_cpu_sparse_rows_backward(sl_device *device, const sl_sparse_rows_backward_args *args) {
  (void)device;
  if (args->need != NULL) return slk_needs_nothing(args->need);
  bool wide = args->rows * args->k * args->n >= SLK_PARALLEL_MIN;
  if (args->dvalues != NULL) {
#pragma omp parallel for schedule(static) if (wide)
    for (int64_t row = 0; row < args->rows; row++) dots_row(args, row);
  }
  if (args->dweight != NULL) {
#pragma omp parallel for schedule(static) if (wide)
    for (int64_t from = 0; from < args->n; from += slab)
      outer_slab(args, from, slk_min(slab, args->n - from));
  }
  return SL_OK;
}

sl_status slk_cpu_scatter_axis(sl_device *device, const sl_scatter_axis_args *args) {
  (void)device;
#pragma omp parallel for schedule(static) if (args->outer * args->k * args->inner >= SLK_PARALLEL_MIN)
  for (int64_t outer = 0; outer < args->outer; outer++) {
    for (int64_t j = 0; j < args->k; j++) {
      const int64_t from = (outer * args->k + j) * args->inner;
      for (int64_t i = 0; i < args->inner; i++) {
        args->dx[(outer * args->n + args->index[from + i]) * args->inner + i] += args->dy[from + i];
      }
    }
  }
  return SL_OK;
}

SLK_HOT static void normalize_row(float *x, int64_t n, float eps) {
  double squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; i++) squares += (double)x[i] * (double)x[i];
  const float factor = 1.0f / ((float)sqrt(squares) + eps);
  SLK_SIMD for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

sl_status slk_cpu_normalize_rows(sl_device *device, const sl_normalize_rows_args *args) {
  (void)device;
#pragma omp parallel for schedule(static) if (args->rows * args->n >= SLK_PARALLEL_MIN)
  for (int64_t row = 0; row < args->rows; row++) normalize_row(args->x + row * args->n, args->n, args->eps);
  return SL_OK;
}
