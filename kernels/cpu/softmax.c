/* Softmax and log-softmax over rows, and their backward. A row of nothing but
 * -infinity yields NaN, as 0/0 should. */
#include <math.h>

#include "cpu.h"
#include "rows.h"

SLK_HOT static void softmax_row(const float *x, float *y, int64_t n, bool log) {
  const float best = slk_row_max(x, n);
  if (log) {
    /* Two subtractions: best + log(sum) would round away what huge logits have
     * in common. */
    const float log_sum = logf(slk_row_exp_sum(x, NULL, n, 1.0f, best));
    SLK_SIMD for (int64_t i = 0; i < n; i++) y[i] = (x[i] - best) - log_sum;
  } else {
    const float inverse = 1.0f / slk_row_exp_sum(x, y, n, 1.0f, best);
    SLK_SIMD for (int64_t i = 0; i < n; i++) y[i] *= inverse;
  }
}

sl_status slk_cpu_softmax(sl_device *device, const sl_softmax_args *args) {
  (void)device;
#pragma omp parallel for schedule(static) if (args->rows * args->n >= SLK_PARALLEL_MIN)
  for (int64_t row = 0; row < args->rows; row++) {
    softmax_row(args->x + row * args->n, args->y + row * args->n, args->n, args->log);
  }
  return SL_OK;
}

/* softmax: dx = y (dy - sum(y dy)); log-softmax: dx = dy - exp(y) sum(dy). */
SLK_HOT static void backward_row(const sl_softmax_backward_args *a, int64_t row) {
  const float *y = a->y + row * a->n, *dy = a->dy + row * a->n;
  float *dx = a->dx + row * a->n;
  double sum = 0;
  if (a->log) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < a->n; i++) sum += (double)dy[i];
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < a->n; i++) sum += (double)(y[i] * dy[i]);
  }
  const float total = (float)sum;
  const bool add = a->accumulate;
  if (a->log) {
    SLK_SIMD for (int64_t i = 0; i < a->n; i++) {
      float slope = dy[i] - slk_exp(y[i]) * total;
      dx[i] = add ? dx[i] + slope : slope;
    }
  } else {
    SLK_SIMD for (int64_t i = 0; i < a->n; i++) {
      float slope = y[i] * (dy[i] - total);
      dx[i] = add ? dx[i] + slope : slope;
    }
  }
}

sl_status slk_cpu_softmax_backward(sl_device *device, const sl_softmax_backward_args *args) {
  (void)device;
#pragma omp parallel for schedule(static) if (args->rows * args->n >= SLK_PARALLEL_MIN)
  for (int64_t row = 0; row < args->rows; row++) backward_row(args, row);
  return SL_OK;
}
