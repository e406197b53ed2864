/* Adam, AdamW and SGD on whole tensors, one pass each: the formulas of kernels/cpu/optim.c. */
#include <math.h>

#include "pack.h"

enum { BLOCK = 256 };

struct adam_job {
  float *w, *m, *v;
  const float *g;
  float b1, b2, rate, root, eps, keep, l2, scale;
  int64_t packs, n;
};

static __device__ __forceinline__ void adam_one(const adam_job &a, float g, float *w, float *m, float *v) {
  float slope = g * a.scale + a.l2 * *w;
  float mean = a.b1 * *m + (1.0f - a.b1) * slope;
  float square = a.b2 * *v + (1.0f - a.b2) * slope * slope;
  *m = mean;
  *v = square;
  *w = *w * a.keep - a.rate * mean / (sqrtf(square) * a.root + a.eps);
}

static __global__ void adam_kernel(adam_job a) {
  SLK_LOOP(i, a.packs) {
    slk_float4 w = slk_load4(a.w, i), m = slk_load4(a.m, i), v = slk_load4(a.v, i), g = slk_load4(a.g, i);
#pragma unroll
    for (int j = 0; j < 4; j++) adam_one(a, g.at[j], &w.at[j], &m.at[j], &v.at[j]);
    slk_store4(a.w, i, w);
    slk_store4(a.m, i, m);
    slk_store4(a.v, i, v);
  }
  SLK_LOOP(k, a.n - a.packs * 4) {
    int64_t i = a.packs * 4 + k;
    adam_one(a, a.g[i], &a.w[i], &a.m[i], &a.v[i]);
  }
}

extern "C" sl_status slk_cuda_adam_dense(sl_device *device, const sl_adam_dense_args *args) {
  slk_cuda_enter(device);
  if (args->n == 0) return SL_OK;
  double t = static_cast<double>(args->step);
  adam_job a = {};
  a.w = args->w, a.m = args->m, a.v = args->v, a.g = args->g;
  a.b1 = args->beta1, a.b2 = args->beta2, a.eps = args->eps, a.l2 = args->l2, a.scale = args->grad_scale;
  a.rate = static_cast<float>(static_cast<double>(args->lr) / (1.0 - pow(static_cast<double>(args->beta1), t)));
  a.root = static_cast<float>(1.0 / sqrt(1.0 - pow(static_cast<double>(args->beta2), t)));
  a.keep = 1.0f - args->lr * args->weight_decay;
  a.packs = slk_packs(args->n, args->w, args->m, args->v, args->g), a.n = args->n;
  LAUNCH(adam_kernel, slk_grid(device, a.packs > 0 ? a.packs : a.n, BLOCK), BLOCK, 0, slk_cuda_stream(device), a);
  return slk_cuda_launched(device, "adam_dense");
}

struct sgd_job {
  float *w, *v;
  const float *g;
  float lr, momentum, decay, scale;
  int64_t packs, n;
};

static __device__ __forceinline__ void sgd_one(const sgd_job &a, float g, float *w, float *v) {
  float step = g * a.scale + a.decay * *w;
  if (v != nullptr) step = *v = a.momentum * *v + step;
  *w -= a.lr * step;
}

static __global__ void sgd_kernel(sgd_job a) {
  SLK_LOOP(i, a.packs) {
    slk_float4 w = slk_load4(a.w, i), g = slk_load4(a.g, i), v = {};
    if (a.v != nullptr) v = slk_load4(a.v, i);
#pragma unroll
    for (int j = 0; j < 4; j++) sgd_one(a, g.at[j], &w.at[j], a.v != nullptr ? &v.at[j] : nullptr);
    if (a.v != nullptr) slk_store4(a.v, i, v);
    slk_store4(a.w, i, w);
  }
  SLK_LOOP(k, a.n - a.packs * 4) {
    int64_t i = a.packs * 4 + k;
    sgd_one(a, a.g[i], &a.w[i], a.v != nullptr ? &a.v[i] : nullptr);
  }
}

extern "C" sl_status slk_cuda_sgd_dense(sl_device *device, const sl_sgd_dense_args *args) {
  slk_cuda_enter(device);
  if (args->n == 0) return SL_OK;
  sgd_job a = { args->w, args->v, args->g, args->lr, args->momentum, args->weight_decay, args->grad_scale,
                slk_packs(args->n, args->w, args->v, args->g), args->n };
  LAUNCH(sgd_kernel, slk_grid(device, a.packs > 0 ? a.packs : a.n, BLOCK), BLOCK, 0, slk_cuda_stream(device), a);
  return slk_cuda_launched(device, "sgd_dense");
}
