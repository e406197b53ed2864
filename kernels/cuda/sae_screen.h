/* Screening: the float32 encode by way of a bf16 product (measured on a CPU, docs/decisions).
 *
 * With b(x) for x rounded to bf16 and V for the bf16 matrix, a pre-activation u . W_j differs from its screen
 * b(u) . V_j by at most |u - b(u)| |W_j| + |b(u)| |W_j - V_j| (Cauchy-Schwarz), plus what summing in float32 loses. Norms
 * are taken in float64, per token and for 128 latents at a time, so that one large row widens the bound of its own block
 * only. A latent can be among the k largest only if its screen plus the error reaches the k-th largest screen less its
 * error; the few that do are computed again in float32, and the choice among those is the exact one. Tokens whose
 * candidates do not fit, or whose screen is not finite, are refused and computed in float32 from end to end. */
#ifndef SLK_SAE_SCREEN_H
#define SLK_SAE_SCREEN_H

#include "sae_cuda.h"

enum { SCREEN_BLOCK = 128, SCREEN_THREADS = 256, SCREEN_WARPS = SCREEN_THREADS / SLK_WARP };

struct screen_row { float size, rest; };            /* |b(u)|, |u - b(u)| */
struct screen_block { float size, rest, offset; };  /* largest |W_j|, |W_j - V_j|; what the bias and underflow add */

struct screen_job {
  int64_t n, m, d;
  const float *u, *w, *bias;     /* [n, d], [m, d], [m] or NULL */
  const unsigned short *rounded, *screen; /* b(u), V */
  screen_row *rows;              /* [n] */
  screen_block *blocks;          /* [ceil(m / SCREEN_BLOCK)] */
};

static __device__ __forceinline__ float screen_widen(unsigned short bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}
/* Up, whatever the conversion did. */
static __device__ __forceinline__ float screen_norm(double squares) {
  return static_cast<float>(sqrt(squares) * (1 + 1e-6)) + 1e-37f;
}

/* Sums of squares of exact - rounded, and of one of the two, by a warp. */
static __device__ __forceinline__ void screen_squares(const float *exact, const unsigned short *rounded, int64_t d,
                                                      bool of_exact, double *size, double *rest) {
  double sizes = 0, rests = 0;
  for (int64_t j = threadIdx.x % SLK_WARP; j < d; j += SLK_WARP) {
    double x = static_cast<double>(exact[j]), y = static_cast<double>(screen_widen(rounded[j]));
    double z = of_exact ? x : y;
    sizes += z * z;
    rests += (x - y) * (x - y);
  }
  *size = slk_warp_sum(sizes);
  *rest = slk_warp_sum(rests);
}

/* A warp a token. */
static __global__ void __launch_bounds__(SCREEN_THREADS) screen_rows_kernel(screen_job job) {
  int64_t t = static_cast<int64_t>(blockIdx.x) * SCREEN_WARPS + threadIdx.x / SLK_WARP;
  if (t >= job.n) return;
  double size, rest;
  screen_squares(job.u + t * job.d, job.rounded + t * job.d, job.d, false, &size, &rest);
  if (threadIdx.x % SLK_WARP == 0) job.rows[t] = screen_row{ screen_norm(size), screen_norm(rest) };
}

/* A block SCREEN_BLOCK latents. A NaN stays one: fmax would lose it. */
static __device__ __forceinline__ float screen_larger(float a, float b) { return a > b || a != a ? a : b; }
static __global__ void __launch_bounds__(SCREEN_THREADS) screen_blocks_kernel(screen_job job) {
  __shared__ screen_block parts[SCREEN_WARPS];
  int warp = static_cast<int>(threadIdx.x) / SLK_WARP;
  int64_t first = static_cast<int64_t>(blockIdx.x) * SCREEN_BLOCK;
  screen_block most = { 0, 0, 0 };
  for (int i = warp; i < SCREEN_BLOCK && first + i < job.m; i += SCREEN_WARPS) {
    int64_t row = first + i;
    double size, rest;
    screen_squares(job.w + row * job.d, job.screen + row * job.d, job.d, true, &size, &rest);
    most.size = screen_larger(screen_norm(size), most.size);
    most.rest = screen_larger(screen_norm(rest), most.rest);
    if (job.bias != nullptr) most.offset = screen_larger(fabsf(job.bias[row]), most.offset);
  }
  if (threadIdx.x % SLK_WARP == 0) parts[warp] = most;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < SCREEN_WARPS; w++) {
    most.size = screen_larger(parts[w].size, most.size);
    most.rest = screen_larger(parts[w].rest, most.rest);
    most.offset = screen_larger(parts[w].offset, most.offset);
  }
  most.offset = most.offset * 0x1p-21f + 1e-35f; /* two roundings of the sum; products below the smallest float */
  job.blocks[blockIdx.x] = most;
}

/* The error of a screen; rounding: relative loss of a sum of d products, on the tensor cores and in float32. */
static __device__ __forceinline__ float screen_error(const screen_row &row, const screen_block &block, float rounding) {
  float exact = row.rest * block.size + row.size * block.rest;
  return (exact + rounding * (row.size + row.rest) * (block.size + block.rest) + block.offset) * 1.00001f;
}

/* u . w by a warp, the same sum wherever it is taken; packed: both on 16 bytes, d a multiple of 4. */
static __device__ __forceinline__ float screen_dot(const float *u, const float *w, int64_t d, bool packed) {
  float sum = 0;
  int lane = static_cast<int>(threadIdx.x) % SLK_WARP;
  if (packed) {
#pragma unroll 4
    for (int64_t j = lane * 4; j < d; j += 4 * SLK_WARP) {
      slk_float4 a = sae_load<4>(u, j), b = sae_load<4>(w, j);
#pragma unroll
      for (int i = 0; i < 4; i++) sum += a.at[i] * b.at[i];
    }
  } else {
    for (int64_t j = lane; j < d; j += SLK_WARP) sum += u[j] * w[j];
  }
  return slk_warp_sum(sum);
}

#endif
