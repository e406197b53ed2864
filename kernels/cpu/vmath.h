/* exp, tanh, sigmoid and the normal distribution as branch-free float32
 * polynomials, so that loops over them vectorise. Coefficients are our own
 * near-minimax fits (Lawson-weighted least squares on Chebyshev nodes). Bounds
 * below are the largest seen over the whole range, proved again by
 * tests/unit/test_kernels_vmath.c. */
#ifndef SLK_VMATH_H
#define SLK_VMATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define SLK_INLINE static inline __attribute__((always_inline))

SLK_INLINE float slk_bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* e^x. At most 1.5 ulp where the result is normal; overflows to infinity,
 * underflows through subnormals to 0; NaN stays. */
SLK_INLINE float slk_exp(float x) {
  x = x > 89.0f ? 89.0f : x; /* written so that NaN passes */
  x = x < -104.0f ? -104.0f : x;
  const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer
                                      kept in the low bits */
  float shifted = x * 1.44269504f + magic;
  float n = shifted - magic;
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  float r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two parts; the first product is exact */
  float p = 1.390130575e-3f;
  p = p * r + 8.363200052e-3f;
  p = p * r + 4.166685414e-2f;
  p = p * r + 1.666657696e-1f;
  p = p * r + 0.5f;
  p = p * (r * r) + r;
  /* 2^n as a product of two powers, so that each is a normal number for n in
   * [-151, 129]. */
  uint32_t whole = bits - 0x4b400000u + 1024u, half = whole >> 1;
  float scale_a = slk_bits_float((half - 512u + 127u) << 23),
        scale_b = slk_bits_float((whole - half - 512u + 127u) << 23);
  return (p * scale_a + scale_a) * scale_b;
}

/* 1 / (1 + e^-x), at most 3 ulp where normal. */
SLK_INLINE float slk_sigmoid(float x) { return 1.0f / (1.0f + slk_exp(-x)); }

/* tanh x, at most 3 ulp. */
SLK_INLINE float slk_tanh(float x) {
  float size = fabsf(x), s = x * x;
  float p = -6.096937060e-3f;
  p = p * s + 2.099735401e-2f;
  p = p * s - 5.385095261e-2f;
  p = p * s + 1.333277008e-1f;
  p = p * s - 3.333332895e-1f;
  float small = p * s * x + x;
  float large = copysignf(1.0f - 2.0f / (slk_exp(2.0f * size) + 1.0f), x);
  return size < 0.625f ? small : large;
}

/* Phi(x), the standard normal distribution function, with e^(-x*x/2) in *gauss.
 * Phi(-|x|) = gauss u Q(u), u = 1 / (1 + 0.35 |x|), Q fitted on |x| <= 14.5 to
 * a relative 3.2e-8. Absolute error of Phi at most 2e-7; unlike (1 + erf) / 2
 * the lower tail keeps relative accuracy (1e-6 down to x = -5). */
SLK_INLINE float slk_normal_cdf(float x, float *gauss) {
  float size = fabsf(x);
  float g = slk_exp(-0.5f * x * x), u = 1.0f / (1.0f + 0.35f * size);
  float q = -2.915803023e-2f;
  q = q * u + 1.440316107e-1f;
  q = q * u - 2.558404027e-1f;
  q = q * u + 1.593212537e-1f;
  q = q * u - 2.321339428e-2f;
  q = q * u + 1.055529271e-1f;
  q = q * u + 1.198211846e-1f;
  q = q * u + 1.398635290e-1f;
  q = q * u + 1.396213061e-1f;
  float tail = g * u * q;
  *gauss = g;
  return x > 0 ? 1.0f - tail : tail;
}

/* x Phi(x), the erf form of GELU. Infinity gives infinity; -infinity gives 0 as
 * the limit does (not 0 * inf). */
SLK_INLINE float slk_gelu(float x) {
  float gauss, cdf = slk_normal_cdf(x, &gauss);
  return x < -14.5f ? 0.0f * cdf : x * cdf;
}

/* d/dx x Phi(x) = Phi(x) + x phi(x). */
SLK_INLINE float slk_gelu_slope(float x) {
  float gauss, cdf = slk_normal_cdf(x, &gauss), size = fabsf(x);
  return cdf + (size > 14.5f ? 0.0f : x * gauss * 0.3989422804f);
}

/* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x sigmoid(2 ...). */
SLK_INLINE float slk_gelu_tanh(float x) {
  float u = 1.5957691216f * (x + 0.044715f * x * x * x);
  return x < -14.5f ? 0.0f : x * slk_sigmoid(u);
}

SLK_INLINE float slk_gelu_tanh_slope(float x) {
  float u = 1.5957691216f * (x + 0.044715f * x * x * x);
  float s = slk_sigmoid(u), du = 1.5957691216f * (1.0f + 0.134145f * x * x);
  return s + (fabsf(x) > 14.5f ? 0.0f : x * s * (1.0f - s) * du);
}

/* x / (1 + e^-x), also called swish: at most 4 ulp where |x| <= 80. -infinity gives 0 as the limit does. */
SLK_INLINE float slk_silu(float x) { return x < -104.0f ? 0.0f : x * slk_sigmoid(x); }

SLK_INLINE float slk_silu_slope(float x) {
  float s = slk_sigmoid(x);
  return s + (fabsf(x) > 104.0f ? 0.0f : x * s * (1.0f - s));
}

#endif
