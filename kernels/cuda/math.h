/* The functions of SL_UNARY_LIST (kernels/args_dense.h) in CUDA arithmetic: full-precision library functions, no fast
 * ones. They differ from the CPU's polynomials (kernels/cpu/vmath.h) in the last digits only; limits and NaN agree. */
#ifndef SLK_CUDA_MATH_H
#define SLK_CUDA_MATH_H

#include "cuda.h"

static __device__ __forceinline__ float slk_exp(float x) { return expf(x); }
static __device__ __forceinline__ float slk_tanh(float x) { return tanhf(x); }
static __device__ __forceinline__ float slk_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* Phi(x), the standard normal distribution function. erfc, not 1 + erf: the lower tail keeps its digits. */
static __device__ __forceinline__ float slk_normal_cdf(float x) { return 0.5f * erfcf(-0.7071067812f * x); }

/* x Phi(x), the erf form of GELU. Infinity gives infinity; -infinity gives 0 as the limit does (not 0 * inf). */
static __device__ __forceinline__ float slk_gelu(float x) { return x < -14.5f ? 0.0f : x * slk_normal_cdf(x); }

/* d/dx x Phi(x) = Phi(x) + x phi(x). */
static __device__ __forceinline__ float slk_gelu_slope(float x) {
  return slk_normal_cdf(x) + (fabsf(x) > 14.5f ? 0.0f : x * expf(-0.5f * x * x) * 0.3989422804f);
}

/* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x sigmoid(2 ...). */
static __device__ __forceinline__ float slk_gelu_tanh(float x) {
  float u = 1.5957691216f * (x + 0.044715f * x * x * x);
  return x < -14.5f ? 0.0f : x * slk_sigmoid(u);
}

static __device__ __forceinline__ float slk_gelu_tanh_slope(float x) {
  float u = 1.5957691216f * (x + 0.044715f * x * x * x);
  float s = slk_sigmoid(u), du = 1.5957691216f * (1.0f + 0.134145f * x * x);
  return s + (fabsf(x) > 14.5f ? 0.0f : x * s * (1.0f - s) * du);
}

/* x / (1 + e^-x), also called swish. -infinity gives 0 as the limit does. */
static __device__ __forceinline__ float slk_silu(float x) { return x < -104.0f ? 0.0f : x * slk_sigmoid(x); }

static __device__ __forceinline__ float slk_silu_slope(float x) {
  float s = slk_sigmoid(x);
  return s + (fabsf(x) > 104.0f ? 0.0f : x * s * (1.0f - s));
}

#endif
