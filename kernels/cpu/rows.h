/* Row primitives shared by softmax, attention and cross-entropy. */
#ifndef SLK_ROWS_H
#define SLK_ROWS_H

#include "cpu.h"
#include "vmath.h"

/* Largest entry; -infinity for an empty row; NaN is not looked for. */
SLK_INLINE float slk_row_max(const float *x, int64_t n) {
  float best = -INFINITY;
#pragma omp simd reduction(max : best)
  for (int64_t i = 0; i < n; i++) best = x[i] > best ? x[i] : best;
  return best;
}

/* y = exp(x * scale - shift), y may be x; returns the sum. Float32 lanes within
 * 256 entries, float64 above, so that a vocabulary-wide row keeps seven digits.
 * y == NULL only sums. */
SLK_INLINE float slk_row_exp_sum(const float *x, float *y, int64_t n, float scale, float shift) {
  double total = 0;
  for (int64_t from = 0; from < n; from += 256) {
    const float *in = x + from;
    float sum = 0, *out = y != NULL ? y + from : NULL;
    const int64_t width = slk_min(256, n - from);
    if (out != NULL) {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < width; i++) sum += out[i] = slk_exp(in[i] * scale - shift);
    } else {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < width; i++) sum += slk_exp(in[i] * scale - shift);
    }
    total += (double)sum;
  }
  return (float)total;
}

#endif
