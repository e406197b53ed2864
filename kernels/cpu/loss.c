/* Cross-entropy of rows of logits against class ids, and its backward. */
#include <math.h>

#include "cpu.h"
#include "rows.h"

/* log sum exp(x - *best); the two parts stay apart so that huge logits keep
 * their differences. */
SLK_HOT static float log_sum(const float *x, int64_t n, float *best) {
  *best = slk_row_max(x, n);
  return logf(slk_row_exp_sum(x, NULL, n, 1.0f, *best));
}

sl_status slk_cpu_cross_entropy(sl_device *device, const sl_cross_entropy_args *args) {
  (void)device;
#pragma omp parallel for schedule(static) if (args->rows * args->n >= SLK_PARALLEL_MIN)
  for (int64_t row = 0; row < args->rows; row++) {
    const float *logits = args->logits + row * args->n;
    int32_t target = args->targets[row];
    float best = 0, rest = 0;
    if (target >= 0 || args->lse != NULL) rest = log_sum(logits, args->n, &best);
    if (args->lse != NULL) args->lse[row] = best + rest;
    args->loss[row] = target < 0 ? 0.0f : rest - (logits[target] - best);
  }
  return SL_OK;
}

/* dlogits = dloss (softmax - onehot); zero on ignored rows. */
SLK_HOT static void backward_row(const sl_cross_entropy_backward_args *a, int64_t row) {
  const float *logits = a->logits + row * a->n, lse = a->lse[row];
  const int32_t target = a->targets[row];
  const float g = target < 0 ? 0.0f : a->dloss[row];
  float *out = a->dlogits + row * a->n;
  if (g == 0) {
    for (int64_t i = 0; i < a->n && !a->accumulate; i++) out[i] = 0;
    return;
  }
  if (a->accumulate) {
    SLK_SIMD for (int64_t i = 0; i < a->n; i++) out[i] += g * slk_exp(logits[i] - lse);
  } else {
    SLK_SIMD for (int64_t i = 0; i < a->n; i++) out[i] = g * slk_exp(logits[i] - lse);
  }
  out[target] -= g;
}

sl_status slk_cpu_cross_entropy_backward(sl_device *device, const sl_cross_entropy_backward_args *args) {
  (void)device;
#pragma omp parallel for schedule(static) if (args->rows * args->n >= SLK_PARALLEL_MIN)
  for (int64_t row = 0; row < args->rows; row++) backward_row(args, row);
  return SL_OK;
}
