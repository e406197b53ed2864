/* Philox4x32-10 and how its words become numbers: the same bits on every device, but for the last digit of the
 * logarithm, sine and cosine behind normals. How elements map to counters is told in cpu/random.c. */
#ifndef SLK_PHILOX_H
#define SLK_PHILOX_H

#include <math.h>
#include <stdint.h>

#include "dtype.h"

/* One rounding each: no compiler may fuse them, or devices would differ. Host builds never fuse: they are made for
 * the oldest processor, which cannot. */
#ifdef __CUDA_ARCH__
#define SLK_TIMES(a, b) __fmul_rn(a, b)
#define SLK_PLUS(a, b) __fadd_rn(a, b)
#else
#define SLK_TIMES(a, b) ((a) * (b))
#define SLK_PLUS(a, b) ((a) + (b))
#endif

static inline SL_BOTH void slk_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; round++) {
    uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
    c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)b;
    c3 = (uint32_t)a;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* In [low, high). */
static inline SL_BOTH float slk_philox_uniform(uint32_t word, float low, float high) {
  float value = SLK_PLUS(low, SLK_TIMES((float)(word >> 8) * 5.9604644775390625e-8f, high - low));
  return value >= high && high > low ? nextafterf(high, low)
                                     : value; /* rounding must not reach the open end */
}

/* In [0, bound). */
static inline SL_BOTH int32_t slk_philox_int(uint32_t word, int32_t bound) {
  return (int32_t)(((uint64_t)word * (uint64_t)(uint32_t)bound) >> 32);
}

/* Two normals from two words (Box-Muller). */
static inline SL_BOTH void slk_philox_normal(const uint32_t words[2], float mean, float deviation, float out[2]) {
  /* In float64: a float32 argument would put the tail at 5.6 standard
   * deviations and lose digits near 0. 2.3e-10: 2^-32. */
  double radius = sqrt(-2.0 * log(((double)words[0] + 0.5) * 2.3283064365386963e-10));
  double angle = 6.283185307179586 * ((double)words[1] * 2.3283064365386963e-10);
  out[0] = SLK_PLUS(mean, SLK_TIMES(deviation, (float)(radius * cos(angle))));
  out[1] = SLK_PLUS(mean, SLK_TIMES(deviation, (float)(radius * sin(angle))));
}

#endif
