/* What the CUDA SAE kernels share: layouts, how a row is cut over threads, sums in a fixed order.
 *
 * -- Layouts --
 * panels: x - shift as [n, d] of the product's dtype, the left factor of the encoder product.
 * slabs:  x - shift as [n, d] of float32. A kernel that gathers rows reads each in one coalesced sweep, so rows stay
 *         whole here; the CPU's column slabs would only cut the accesses short.
 *
 * Every kernel that walks rows exists twice: WIDTH 4 (16 bytes a thread and access; d a multiple of 4 and all matrices
 * on 16 bytes) and WIDTH 1. */
#ifndef SLK_SAE_CUDA_H
#define SLK_SAE_CUDA_H

#include "pack.h"

/* -- On the host -- */

/* 4 where rows of d floats at these addresses can be read four at a time, else 1. */
static inline int sae_width(int64_t d, const void *a, const void *b = nullptr, const void *c = nullptr,
                            const void *e = nullptr) {
  return d % 4 == 0 && slk_packs(4, a, b, c, e) > 0 ? 4 : 1;
}

/* Threads for a row of `packs` accesses: whole warps, at most `most`. */
static inline int sae_threads(int64_t packs, int most) {
  int64_t threads = slk_ceil_div<int64_t>(packs, SLK_WARP) * SLK_WARP;
  return static_cast<int>(threads < 1 ? int64_t(SLK_WARP) : slk_least(threads, most));
}

/* Cuts pieces off a workspace, each on 256 bytes; with base NULL it only counts. */
struct sae_cutter {
  char *base;
  size_t used;
  template <typename T> T *cut(int64_t n) {
    T *piece = base != nullptr ? reinterpret_cast<T *>(base + used) : nullptr;
    used += (static_cast<size_t>(n) * sizeof(T) + 255) / 256 * 256;
    return piece;
  }
};

static inline sl_status sae_short_workspace(const char *kernel, size_t have, size_t want) {
  return sl_fail(SL_EINVAL, "%s: a workspace of %zu bytes, %zu are needed", kernel, have, want);
}

/* -- On the device -- */

/* WIDTH floats at element `at` of p. */
template <int WIDTH> static __device__ __forceinline__ slk_pack<float, WIDTH> sae_load(const float *p, int64_t at) {
  return *reinterpret_cast<const slk_pack<float, WIDTH> *>(p + at);
}
template <int WIDTH>
static __device__ __forceinline__ void sae_store(float *p, int64_t at, const slk_pack<float, WIDTH> &v) {
  *reinterpret_cast<slk_pack<float, WIDTH> *>(p + at) = v;
}

static __device__ __forceinline__ unsigned short sae_to_bf16(float v) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(v));
}

/* The first position in ascending values[0 .. n - 1] with values[position] > x. */
static __device__ __forceinline__ int64_t sae_upper_bound(const int64_t *values, int64_t n, int64_t x) {
  int64_t low = 0, high = n;
  while (low < high) {
    int64_t middle = (low + high) / 2;
    if (values[middle] > x) high = middle;
    else low = middle + 1;
  }
  return low;
}

/* Sums over the rows of parts [rows, columns], for 32 columns a block of 1024 threads: warp y of the block takes rows
 * y, y + 32, ...; then the warps' sums are added in order. The sum comes back in the threads of the first warp, lane c
 * for column 32 * group + c. Ends with a barrier. */
template <typename T>
static __device__ __forceinline__ double sae_column_sum(const T *parts, int64_t rows, int64_t columns, int64_t group) {
  __shared__ double sums[32][33];
  int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int64_t column = group * 32 + lane;
  double sum = 0;
  if (column < columns) {
#pragma unroll 4
    for (int64_t r = warp; r < rows; r += 32) sum += static_cast<double>(parts[r * columns + column]);
  }
  sums[warp][lane] = sum;
  __syncthreads();
  sum = 0;
  if (warp == 0) {
    for (int w = 0; w < 32; w++) sum += sums[w][lane];
  }
  __syncthreads();
  return sum;
}

#endif
