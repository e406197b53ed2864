/* Adam, AdamW and SGD on whole tensors, one pass each. Sources: Kingma and Ba,
 * arXiv 1412.6980; Loshchilov and Hutter, arXiv 1711.05101. The bias
 * corrections follow PyTorch: sqrt(v / (1 - b2^t)) + eps. */
#include <math.h>

#include "cpu.h"

enum { piece = 16384 };

SLK_HOT static void adam_range(const sl_adam_dense_args *a, float rate, float root, int64_t from,
                               int64_t to) {
  float *w = a->w, *m = a->m, *v = a->v;
  const float *g = a->g;
  const float b1 = a->beta1, b2 = a->beta2, eps = a->eps, scale = a->grad_scale, l2 = a->l2;
  const float keep = 1.0f - a->lr * a->weight_decay;
  SLK_SIMD for (int64_t i = from; i < to; i++) {
    float slope = g[i] * scale + l2 * w[i];
    float mean = b1 * m[i] + (1.0f - b1) * slope;
    float square = b2 * v[i] + (1.0f - b2) * slope * slope;
    m[i] = mean;
    v[i] = square;
    w[i] = w[i] * keep - rate * mean / (sqrtf(square) * root + eps);
  }
}

sl_status slk_cpu_adam_dense(sl_device *device, const sl_adam_dense_args *args) {
  (void)device;
  double t = (double)args->step;
  float rate = (float)((double)args->lr / (1.0 - pow((double)args->beta1, t)));
  float root = (float)(1.0 / sqrt(1.0 - pow((double)args->beta2, t)));
#pragma omp parallel for schedule(static) if (args->n >= SLK_PARALLEL_MIN)
  for (int64_t from = 0; from < args->n; from += piece)
    adam_range(args, rate, root, from, slk_min(from + piece, args->n));
  return SL_OK;
}

SLK_HOT static void sgd_range(const sl_sgd_dense_args *a, int64_t from, int64_t to) {
  float *w = a->w, *v = a->v;
  const float *g = a->g;
  const float lr = a->lr, momentum = a->momentum, decay = a->weight_decay, scale = a->grad_scale;
  if (v == NULL) {
    SLK_SIMD for (int64_t i = from; i < to; i++) w[i] -= lr * (g[i] * scale + decay * w[i]);
  } else {
    SLK_SIMD for (int64_t i = from; i < to; i++) {
      v[i] = momentum * v[i] + (g[i] * scale + decay * w[i]);
      w[i] -= lr * v[i];
    }
  }
}

sl_status slk_cpu_sgd_dense(sl_device *device, const sl_sgd_dense_args *args) {
  (void)device;
#pragma omp parallel for schedule(static) if (args->n >= SLK_PARALLEL_MIN)
  for (int64_t from = 0; from < args->n; from += piece) sgd_range(args, from, slk_min(from + piece, args->n));
  return SL_OK;
}
