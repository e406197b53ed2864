/* Rows of a table by id, and the gradient that goes back to them. */
#include <string.h>

#include "cpu.h"

enum { slab = 64 };

SLK_HOT static void take_row(const sl_embedding_args *a, const void *table, float *y) {
  const int64_t n = a->n;
  if (a->dtype == SL_F32) {
    const float *x = table;
    if (a->accumulate) {
      SLK_SIMD for (int64_t i = 0; i < n; i++) y[i] += x[i];
    } else {
      memcpy(y, x, (size_t)n * sizeof *y);
    }
  } else if (a->dtype == SL_BF16) {
    const uint16_t *x = table;
    for (int64_t i = 0; i < n; i++) y[i] = sl_bf16_to_f32(x[i]) + (a->accumulate ? y[i] : 0.0f);
  } else {
    const uint16_t *x = table;
    for (int64_t i = 0; i < n; i++) y[i] = sl_f16_to_f32(x[i]) + (a->accumulate ? y[i] : 0.0f);
  }
}

sl_status slk_cpu_embedding(sl_device *device, const sl_embedding_args *args) {
  (void)device;
  int64_t row_bytes = args->n * (int64_t)sl_dtype_size(args->dtype);
#pragma omp parallel for schedule(static) if (args->rows * args->n >= SLK_PARALLEL_MIN)
  for (int64_t row = 0; row < args->rows; row++) {
    take_row(args, (const char *)args->table + args->ids[row] * row_bytes, args->y + row * args->n);
  }
  return SL_OK;
}

/* Columns [from, from + width) of all rows in order: one owner per column, so
 * ids may repeat without races. */
SLK_HOT static void add_slab(const sl_embedding_backward_args *a, int64_t from, int64_t width) {
  for (int64_t row = 0; row < a->rows; row++) {
    const float *dy = a->dy + row * a->n + from;
    float *to = a->dtable + (int64_t)a->ids[row] * a->n + from;
    SLK_SIMD for (int64_t j = 0; j < width; j++) to[j] += dy[j];
  }
}

sl_status slk_cpu_embedding_backward(sl_device *device, const sl_embedding_backward_args *args) {
  (void)device;
  if (args->need != NULL) return slk_needs_nothing(args->need);
#pragma omp parallel for schedule(static) if (args->rows * args->n >= SLK_PARALLEL_MIN)
  for (int64_t from = 0; from < args->n; from += slab) add_slab(args, from, slk_min(slab, args->n - from));
  return SL_OK;
}
