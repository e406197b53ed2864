/* Moving several elements at once: up to 16 bytes a thread and access, and the loops around it.
 *
 *   int64_t packs = slk_packs(n, x, y);                            on the host: 0 where a pointer is unaligned
 *   SLK_LOOP(i, packs) { slk_float4 v = slk_load4(x, i); ...; slk_store4(y, i, v); }
 *   SLK_LOOP(i, n - 4 * packs) ...                                 the tail, or everything */
#ifndef SLK_CUDA_PACK_H
#define SLK_CUDA_PACK_H

#include "cuda.h"

template <typename T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) slk_pack {
  T at[N];
};
typedef slk_pack<float, 4> slk_float4;

static __device__ __forceinline__ slk_float4 slk_load4(const float *x, int64_t i) {
  return reinterpret_cast<const slk_float4 *>(x)[i];
}
static __device__ __forceinline__ void slk_store4(float *x, int64_t i, const slk_float4 &v) {
  reinterpret_cast<slk_float4 *>(x)[i] = v;
}

/* Every i in [0, n), shared out over the grid. */
#define SLK_LOOP(i, n)                                                                                       \
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, i##_step_ =                  \
                   static_cast<int64_t>(gridDim.x) * blockDim.x;                                             \
       i < (n); i += i##_step_)

/* -- On the host -- */

static inline bool slk_aligned(const void *p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }
static inline int64_t slk_least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Packs of four floats that n elements at these addresses hold. */
static inline int64_t slk_packs(int64_t n, const void *a, const void *b = nullptr, const void *c = nullptr,
                                const void *d = nullptr) {
  return slk_aligned(a, 16) && slk_aligned(b, 16) && slk_aligned(c, 16) && slk_aligned(d, 16) ? n / 4 : 0;
}

/* Blocks for `items` in a SLK_LOOP: enough to fill the device several times over, never none. */
static inline unsigned slk_grid(const sl_device *device, int64_t items, int block) {
  int64_t most = 32 * static_cast<int64_t>(slk_cuda_get(device)->multiprocessors);
  int64_t blocks = slk_ceil_div(items, static_cast<int64_t>(block));
  return static_cast<unsigned>(blocks < 1 ? 1 : slk_least(blocks, most));
}

#endif
