/* Matrix products in plain C, in place of gemm.c where a build has no oneDNN (SAELUA_BARE).
 *
 * Correct, not fast: float64 sums over tiles of 64 columns, so that it may serve as the reference for other devices.
 * Never part of a normal build. */
#include "cpu.h"
#include "vmath.h"

enum { TILE = 64 };

static float at(const void *x, sl_dtype dtype, int64_t index) {
  return dtype == SL_F32 ? ((const float *)x)[index] : sl_bf16_to_f32(((const uint16_t *)x)[index]);
}

static float activate(sl_activation activation, float x) {
  switch (activation) {
  case SL_ACT_NONE: return x;
  case SL_ACT_RELU: return x <= 0 ? 0.0f : x;
  case SL_ACT_GELU_ERF: return slk_gelu(x);
  case SL_ACT_GELU_TANH: return slk_gelu_tanh(x);
  case SL_ACT_TANH: return slk_tanh(x);
  }
  return x;
}

/* sums[j] = row `row` of op(A) times column from + j of op(B), j < count. */
static void sum_tile(const sl_gemm_args *args, int64_t b, int64_t row, int64_t from, int64_t count, double *sums) {
  int64_t a0 = b * args->stride_a, b0 = b * args->stride_b;
  for (int64_t j = 0; j < count; j++) sums[j] = 0;
  for (int64_t i = 0; i < args->k; i++) {
    double x = (double)at(args->a, args->dtype_ab, a0 + (args->transpose_a ? i * args->lda + row : row * args->lda + i));
    for (int64_t j = 0; j < count; j++) {
      int64_t column = from + j;
      int64_t index = b0 + (args->transpose_b ? column * args->ldb + i : i * args->ldb + column);
      sums[j] += x * (double)at(args->b, args->dtype_ab, index);
    }
  }
}

static void finish_tile(const sl_gemm_args *args, int64_t b, int64_t row, int64_t from, int64_t count, const double *sums) {
  for (int64_t j = 0; j < count; j++) {
    int64_t column = from + j, index = b * args->stride_c + row * args->ldc + column;
    float x = (float)sums[j] + (args->bias != NULL ? args->bias[column] : 0.0f);
    if (args->pre_activation != NULL) args->pre_activation[(b * args->m + row) * args->n + column] = x;
    x = activate(args->activation, x);
    if (args->accumulate) x += at(args->c, args->dtype_c, index);
    if (args->dtype_c == SL_F32) ((float *)args->c)[index] = x;
    else ((uint16_t *)args->c)[index] = sl_f32_to_bf16(x);
  }
}

sl_status slk_cpu_gemm(sl_device *device, const sl_gemm_args *args) {
  if (args->accumulate && (args->activation != SL_ACT_NONE || args->pre_activation != NULL)) {
    return sl_fail(SL_EINVAL, "gemm on %s: accumulate and an activation exclude each other", device->name);
  }
  int64_t rows = args->batch * args->m;
#pragma omp parallel for schedule(static) if (rows * args->n * args->k >= SLK_PARALLEL_MIN)
  for (int64_t r = 0; r < rows; r++) {
    double sums[TILE];
    for (int64_t from = 0; from < args->n; from += TILE) {
      int64_t count = slk_min(TILE, args->n - from);
      sum_tile(args, r / args->m, r % args->m, from, count, sums);
      finish_tile(args, r / args->m, r % args->m, from, count, sums);
    }
  }
  return SL_OK;
}
