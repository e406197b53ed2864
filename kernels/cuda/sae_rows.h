/* Sparse rows are written with their lengths known on the device only: lengths to offsets, staged rows to their places.
 * Used by the encoder and by sae_codes_prefix. */
#ifndef SLK_SAE_ROWS_H
#define SLK_SAE_ROWS_H

#include "sae_cuda.h"

enum { SAE_OFFSETS_THREADS = 1024 };

/* A run of rows in the making. */
struct sae_rows_out {
  const int64_t *lengths;        /* [rows] */
  const float *staged_values;    /* [rows, k] */
  const int32_t *staged_ids;
  int64_t k;
  int64_t *offsets;              /* offsets[0] is given, offsets[1 .. rows] are written */
  float *values;                 /* the codes' */
  int32_t *ids;
};

/* lengths[r] = min(length of row r, k). */
static __global__ void sae_lengths_kernel(const int64_t *offsets, int64_t rows, int64_t k, int64_t *lengths) {
  SLK_LOOP(r, rows) {
    int64_t length = offsets[r + 1] - offsets[r];
    lengths[r] = length < k ? length : k;
  }
}

/* offsets[r + 1] = offsets[r] + lengths[r]. One block does a whole batch (block 1 the second list): thousands of rows,
 * eight at a time for each thread, cost less than the launches of a device-wide scan. */
static __global__ void __launch_bounds__(SAE_OFFSETS_THREADS) sae_offsets_kernel(sae_rows_out first, sae_rows_out second,
                                                                                 int64_t rows) {
  enum { EACH = 8, WARPS = SAE_OFFSETS_THREADS / SLK_WARP };
  __shared__ int64_t totals[2][WARPS];
  const sae_rows_out out = blockIdx.x == 0 ? first : second;
  int lane = static_cast<int>(threadIdx.x) % SLK_WARP, warp = static_cast<int>(threadIdx.x) / SLK_WARP, turn = 0;
  int64_t at = out.offsets[0];
  for (int64_t start = 0; start < rows; start += SAE_OFFSETS_THREADS * EACH, turn ^= 1) {
    int64_t mine = start + static_cast<int64_t>(threadIdx.x) * EACH, sum = 0, length[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      length[i] = mine + i < rows ? out.lengths[mine + i] : 0;
      sum += length[i];
    }
    int64_t upto = slk_warp_scan(sum), before = 0, all = 0;
    if (lane == SLK_WARP - 1) totals[turn][warp] = upto;
    __syncthreads(); /* one a turn is enough: the next turn writes the other half of totals */
    for (int w = 0; w < WARPS; w++) {
      before += w < warp ? totals[turn][w] : 0;
      all += totals[turn][w];
    }
    int64_t place = at + before + upto - sum;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      place += length[i];
      if (mine + i < rows) out.offsets[mine + i + 1] = place;
    }
    at += all;
  }
}

/* Staged rows to their places, a warp each; blockIdx.y chooses the list. */
static __global__ void sae_place_kernel(sae_rows_out first, sae_rows_out second, int64_t rows) {
  const sae_rows_out out = blockIdx.y == 0 ? first : second;
  int64_t row = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / SLK_WARP;
  if (row >= rows) return;
  int64_t begin = out.offsets[row], n = out.offsets[row + 1] - begin;
  for (int64_t i = threadIdx.x % SLK_WARP; i < n; i += SLK_WARP) {
    out.values[begin + i] = out.staged_values[row * out.k + i];
    out.ids[begin + i] = out.staged_ids[row * out.k + i];
  }
}

#endif
