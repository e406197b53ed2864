/* What forward and backward attention share beside their tiles: where heads lie, which keys a query sees, and what a
 * product becomes before the softmax. */
#ifndef SLK_CUDA_ATTENTION_KEYS_H
#define SLK_CUDA_ATTENTION_KEYS_H

#include "attention_tile.h"

/* Where head h of batch entry b starts in [batch, tokens, heads * head_dim] with row stride ld. */
static __device__ __forceinline__ int64_t slk_head_offset(const sl_attention_args &a, int64_t b, int64_t h, int64_t ld) {
  return b * a.tokens * ld + h * a.head_dim;
}
static __host__ __device__ __forceinline__ int64_t slk_key_heads(const sl_attention_args &a) {
  return a.kv_heads > 0 ? a.kv_heads : a.heads;
}

/* Keys that matter: up to the last one that is not padding. By the whole block; ends with a barrier. */
static __device__ __forceinline__ int64_t slk_count_keys(const sl_attention_args &a, int64_t b, int *scratch) {
  if (a.mask == NULL) return a.tokens;
  int last = 0;
  for (int i = static_cast<int>(threadIdx.x); i < a.tokens; i += static_cast<int>(blockDim.x))
    if (a.mask[b * a.tokens + i] != 0) last = i + 1;
  last = slk_warp_max(last);
  if (slk_lane() == 0) scratch[slk_warp()] = last;
  __syncthreads();
  for (int w = 0; w < static_cast<int>(blockDim.x) / 32; w++) last = scratch[w] > last ? scratch[w] : last;
  __syncthreads();
  return last;
}

/* The score that enters the softmax. tanh x = 1 - 2 / (e^2x + 1): its absolute error, 1e-7 of the cap, is what counts. */
static __device__ __forceinline__ float slk_score(const sl_attention_args &a, float product) {
  const float s = product * a.scale;
  if (a.soft_cap <= 0.0f) return s;
  return a.soft_cap * (1.0f - 2.0f / (exp2f(2.0f * SLK_LOG2_E / a.soft_cap * s) + 1.0f));
}

/* Whether query i sees key j, the mask apart. */
static __device__ __forceinline__ bool slk_sees(const sl_attention_args &a, int64_t i, int64_t j) {
  return (!a.causal || j <= i) && (a.window == 0 || i - j < a.window);
}
/* The first key that any query from `from` on sees, rounded down to a tile of `cols`. */
static __device__ __forceinline__ int64_t slk_first_key(const sl_attention_args &a, int64_t from, int cols) {
  return a.window > 0 && from >= a.window ? (from - a.window + 1) / cols * cols : 0;
}

/* Which keys of the tile that starts at `from` may be seen at all. By the whole block, before a barrier. */
static __device__ __forceinline__ void slk_load_shown(unsigned char *shown, const sl_attention_args &a, int64_t b,
                                                      int64_t from, int64_t keys, int cols) {
  for (int i = static_cast<int>(threadIdx.x); i < cols; i += static_cast<int>(blockDim.x))
    shown[i] = from + i < keys && (a.mask == NULL || a.mask[b * a.tokens + from + i] != 0);
}

#endif
