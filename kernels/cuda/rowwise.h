/* Rows handled by one warp or by one block, shared by norm.cu and loss.cu.
 *
 * A row of up to 1,024 entries lives in the registers of one warp (entry lane + 32 c in v[c]): memory is read once. A
 * longer row belongs to a block, which reads it again; it then comes from a cache. */
#ifndef SLK_CUDA_ROWWISE_H
#define SLK_CUDA_ROWWISE_H

#include <math.h>

#include "pack.h"

enum { SLK_WARP_ROW = 1024, SLK_WARP_ROWS = 4 }; /* longest row of a warp; rows of a block of warps */
enum { SLK_ROW_THREADS = 1024 }; /* the largest block that has a row to itself: the launch bound of such kernels */

/* The row of this warp and the next one's distance; blockDim = (32, SLK_WARP_ROWS). */
static __device__ __forceinline__ int64_t slk_first_row() {
  return static_cast<int64_t>(blockIdx.x) * SLK_WARP_ROWS + threadIdx.y;
}
static __device__ __forceinline__ int64_t slk_row_step() { return static_cast<int64_t>(gridDim.x) * SLK_WARP_ROWS; }

/* sum of exp(x - best) with the best so far: what softmax and log-sum-exp carry. Entries of -infinity add nothing; a
 * row of nothing else ends as NaN, as 0 / 0 should. NaN entries are not looked for and end in the sum. */
struct slk_exp_sum {
  float best;
  double sum;
  __device__ __forceinline__ void clear() {
    best = -INFINITY;
    sum = 0;
  }
  __device__ __forceinline__ void raise(float to) { /* to >= best */
    if (to > best) {
      sum = sum == 0 ? sum : sum * static_cast<double>(expf(best - to));
      best = to;
    }
  }
  __device__ __forceinline__ void join(const slk_exp_sum &other) {
    slk_exp_sum mine = *this, theirs = other;
    mine.raise(theirs.best);
    theirs.raise(mine.best);
    best = mine.best;
    sum = mine.sum + theirs.sum;
  }
  /* After the last entry. */
  __device__ __forceinline__ float total() const { return best == -INFINITY ? NAN : static_cast<float>(sum); }
};

/* Four neighbours at once: one rescaling for all. */
template <int N> static __device__ __forceinline__ void slk_exp_sum_take(slk_exp_sum *acc, const float (&x)[N]) {
  float best = acc->best, part = 0;
#pragma unroll
  for (int j = 0; j < N; j++) best = x[j] > best ? x[j] : best;
  acc->raise(best);
#pragma unroll
  for (int j = 0; j < N; j++) part += x[j] == -INFINITY ? 0.0f : expf(x[j] - best);
  acc->sum += static_cast<double>(part);
}

static __device__ __forceinline__ slk_exp_sum slk_warp_exp_sum(slk_exp_sum acc) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    slk_exp_sum other = { __shfl_xor_sync(0xffffffffu, acc.best, step), __shfl_xor_sync(0xffffffffu, acc.sum, step) };
    acc.join(other);
  }
  return acc;
}

/* Of a whole row by a whole block (one axis of threads); every thread gets it. */
static __device__ __forceinline__ slk_exp_sum slk_block_exp_sum(const float *x, int64_t n, bool fours,
                                                                slk_exp_sum *scratch) {
  slk_exp_sum acc;
  acc.clear();
  int64_t packs = fours ? n / 4 : 0;
  for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
    slk_float4 v = slk_load4(x, i);
    slk_exp_sum_take(&acc, v.at);
  }
  for (int64_t i = packs * 4 + threadIdx.x; i < n; i += blockDim.x) {
    float v[1] = { x[i] };
    slk_exp_sum_take(&acc, v);
  }
  acc = slk_warp_exp_sum(acc);
  int lane = static_cast<int>(threadIdx.x) & 31, warps = static_cast<int>(blockDim.x) / SLK_WARP;
  if (lane == 0) scratch[threadIdx.x / SLK_WARP] = acc;
  __syncthreads();
  acc.clear();
  if (lane < warps) acc = scratch[lane];
  acc = slk_warp_exp_sum(acc);
  __syncthreads();
  return acc;
}

/* Registers a lane needs for a row of n: 4, 8, 16 or 32. Calls `launch<count>` by macro, so that each is a kernel. */
#define SLK_BY_ROW(n, LAUNCH_COUNT)                   \
  do {                                                \
    if ((n) <= 4 * SLK_WARP) LAUNCH_COUNT(4);         \
    else if ((n) <= 8 * SLK_WARP) LAUNCH_COUNT(8);    \
    else if ((n) <= 16 * SLK_WARP) LAUNCH_COUNT(16);  \
    else LAUNCH_COUNT(32);                            \
  } while (0)

/* Threads of a block that has a row of n to itself. */
static inline int slk_row_block(int64_t n) { return n >= 8192 ? int(SLK_ROW_THREADS) : n >= 4096 ? 512 : 256; }

/* Every row of a matrix whose rows are n apart starts on a 16-byte border. */
static inline bool slk_rows_aligned(int64_t n, const void *a, const void *b = nullptr, const void *c = nullptr,
                                    const void *d = nullptr) {
  return n % 4 == 0 && slk_packs(4, a, b, c, d) == 1;
}

#endif
