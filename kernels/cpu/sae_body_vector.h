/* Vector types of the SAE kernel bodies: SAE_LANES floats, as GNU C vectors. Include once per sae_<isa>.c. */
#include <math.h>
#include <string.h>

#include "sae_cpu.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(SAE_LANES * 4)));
typedef float vf_memory __attribute__((vector_size(SAE_LANES * 4), aligned(4), may_alias));

enum { LANES = SAE_LANES, ROWS = SAE_ROWS, PANEL = 2 * SAE_LANES, CHUNK = 16 };

INLINE vf load(const float *p) { return *(const vf_memory *)p; }
INLINE void store(float *p, vf v) { *(vf_memory *)p = v; }
INLINE vf splat(float x) { return (vf){0} + x; }

/* Bit l: v[l] > bound[l]. */
INLINE unsigned lanes_above(vf v, vf bound) {
#if SAE_LANES == 16 && defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)v, (__m512)bound, _CMP_GT_OQ);
#elif SAE_LANES == 8 && defined(__AVX2__)
  return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps((__m256)v, (__m256)bound, _CMP_GT_OQ));
#elif SAE_LANES == 4 && defined(__SSE2__)
  return (unsigned)_mm_movemask_ps(_mm_cmpgt_ps((__m128)v, (__m128)bound));
#else
  unsigned mask = 0;
  for (int l = 0; l < LANES; l++) mask |= (unsigned)(v[l] > bound[l]) << l;
  return mask;
#endif
}

INLINE float sum_lanes(vf v) {
#if SAE_LANES == 16 && defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float sum = 0;
  for (int l = 0; l < LANES / 2; l++) sum += v[l] + v[l + LANES / 2];
  return sum;
#endif
}

/* A row piece of `width` floats of which only `valid` exist: direct where whole, else a zero-padded copy. */
INLINE const float *row_piece(const float *row, int64_t valid, int64_t width, float *copy) {
  if (valid >= width) return row;
  for (int64_t j = 0; j < width; j++) copy[j] = j < valid ? row[j] : 0;
  return copy;
}
