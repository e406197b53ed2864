/* SAE kernels: the residual with its sums, and the numbers of a loss.
 *
 * Token-major: a block takes RESIDUAL_TOKENS tokens and up to a thousand columns, gathers the decoder rows of each
 * token's codes and writes the residual once. Sums leave as partial sums per block and are added in order by a second
 * kernel: no atomics, the same bits in every run. */
#include <cuda_bf16.h>

#include "sae_cuda.h"
#include "kernels/sae_numbers.h"

enum { RESIDUAL_TOKENS = 8, RESIDUAL_THREADS = 256, RESIDUAL_WARPS = RESIDUAL_THREADS / SLK_WARP, SUM_THREADS = 1024 };

struct residual_job {
  sl_sae_decode_residual_args a;
  int64_t groups, tiles;
  float *columns;                /* [groups, d]: sums over a group's tokens */
  float *squares, *products, *targets; /* [tiles, n]: e.e, x.e, x.x over a tile's columns; the last two may be NULL */
};

template <int WIDTH> static __global__ void __launch_bounds__(RESIDUAL_THREADS) residual_kernel(residual_job job) {
  __shared__ float sums[3][RESIDUAL_TOKENS][RESIDUAL_WARPS];
  const sl_sae_decode_residual_args &a = job.a;
  int64_t d = a.d, group = blockIdx.x, tile = blockIdx.y;
  int64_t column = (tile * blockDim.x + threadIdx.x) * WIDTH;
  int lane = static_cast<int>(threadIdx.x) % SLK_WARP, warp = static_cast<int>(threadIdx.x) / SLK_WARP;
  int warps = static_cast<int>(blockDim.x) / SLK_WARP;
  bool inside = column < d;
  slk_pack<float, WIDTH> bias = {}, total = {};
  if (inside && a.target != nullptr && a.b_dec != nullptr) bias = sae_load<WIDTH>(a.b_dec, column);
  const float *target = a.target != nullptr ? a.target : a.target_slabs;
  for (int k = 0; k < RESIDUAL_TOKENS; k++) {
    int64_t t = group * RESIDUAL_TOKENS + k;
    if (t >= a.n) break;
    float ee = 0, xe = 0, xx = 0;
    if (inside) {
      slk_pack<float, WIDTH> x = sae_load<WIDTH>(target, t * d + column), e;
#pragma unroll
      for (int i = 0; i < WIDTH; i++) e.at[i] = x.at[i] - bias.at[i];
      int64_t end = a.codes.offsets[t + 1];
#pragma unroll 8
      for (int64_t p = a.codes.offsets[t]; p < end; p++) {
        float value = a.codes.values[p];
        slk_pack<float, WIDTH> w = sae_load<WIDTH>(a.w_dec, a.codes.ids[p] * d + column);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) e.at[i] -= value * w.at[i];
      }
      sae_store<WIDTH>(a.residual, t * d + column, e);
#pragma unroll
      for (int i = 0; i < WIDTH; i++) {
        total.at[i] += e.at[i];
        ee += e.at[i] * e.at[i];
        xe += x.at[i] * e.at[i];
        xx += x.at[i] * x.at[i];
      }
    }
    ee = slk_warp_sum(ee);
    if (lane == 0) sums[0][k][warp] = ee;
    if (job.products == nullptr) continue;
    xe = slk_warp_sum(xe);
    xx = slk_warp_sum(xx);
    if (lane == 0) sums[1][k][warp] = xe, sums[2][k][warp] = xx;
  }
  if (inside) sae_store<WIDTH>(job.columns, group * d + column, total);
  __syncthreads();
  int k = static_cast<int>(threadIdx.x) % RESIDUAL_TOKENS, which = static_cast<int>(threadIdx.x) / RESIDUAL_TOKENS;
  int64_t t = group * RESIDUAL_TOKENS + k;
  if (t >= a.n || which >= (job.products != nullptr ? 3 : 1)) return;
  float sum = 0;
  for (int w = 0; w < warps; w++) sum += sums[which][k][w];
  float *to = which == 0 ? job.squares : which == 1 ? job.products : job.targets;
  to[tile * a.n + t] = sum;
}

/* Columns: 32 a block; the last block adds up the rows. */
static __global__ void __launch_bounds__(SUM_THREADS) residual_sums_kernel(residual_job job) {
  __shared__ double scratch[32];
  const sl_sae_decode_residual_args &a = job.a;
  if (blockIdx.x + 1 < gridDim.x) {
    int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
    double sum = sae_column_sum(job.columns, job.groups, a.d, blockIdx.x);
    if (threadIdx.x < 32 && column < a.d) a.column_sums[column] = sum;
    return;
  }
  double squares = 0, cosine = 0;
  for (int64_t t = threadIdx.x; t < a.n; t += SUM_THREADS) {
    double ee = 0, xe = 0, xx = 0;
    for (int64_t s = 0; s < job.tiles; s++) {
      ee += static_cast<double>(job.squares[s * a.n + t]);
      if (job.products == nullptr) continue;
      xe += static_cast<double>(job.products[s * a.n + t]);
      xx += static_cast<double>(job.targets[s * a.n + t]);
    }
    squares += ee;
    double yy = xx - 2 * xe + ee; /* |target - residual|^2 */
    if (xx > 0 && yy > 0) cosine += (xx - xe) / sqrt(xx * yy);
  }
  squares = slk_block_sum(squares, scratch);
  cosine = slk_block_sum(cosine, scratch);
  if (threadIdx.x != 0) return;
  if (a.sum_squares != nullptr) *a.sum_squares += squares;
  if (a.cosine != nullptr) *a.cosine += cosine;
}

sl_status slk_cuda_sae_decode_residual(sl_device *device, const sl_sae_decode_residual_args *args) {
  slk_cuda_enter(device);
  int width = sae_width(args->d, args->w_dec, args->b_dec, args->target != nullptr ? args->target : args->target_slabs,
                        args->residual);
  int64_t packs = args->d / width;
  int threads = sae_threads(packs, RESIDUAL_THREADS);
  residual_job job = {};
  job.a = *args;
  job.groups = slk_ceil_div<int64_t>(args->n, RESIDUAL_TOKENS);
  job.tiles = slk_ceil_div<int64_t>(packs, threads);
  /* Asked for its needs, the kernel may not know the addresses yet, and so not the width: the narrowest counts. */
  int64_t most_tiles = slk_ceil_div<int64_t>(args->d, RESIDUAL_THREADS);
  sae_cutter cutter = { static_cast<char *>(args->workspace), 0 };
  job.columns = cutter.cut<float>(job.groups * args->d);
  job.squares = cutter.cut<float>(most_tiles * args->n);
  if (args->cosine != nullptr) {
    job.products = cutter.cut<float>(most_tiles * args->n);
    job.targets = cutter.cut<float>(most_tiles * args->n);
  }
  if (args->need != nullptr) {
    *args->need = cutter.used;
    return SL_OK;
  }
  if (args->workspace_bytes < cutter.used)
    return sae_short_workspace("sae_decode_residual", args->workspace_bytes, cutter.used);
  cudaStream_t stream = slk_cuda_stream(device);
  dim3 grid(static_cast<unsigned>(job.groups), static_cast<unsigned>(job.tiles));
  if (job.groups > 0 && width == 4) LAUNCH((residual_kernel<4>), grid, threads, 0, stream, job);
  if (job.groups > 0 && width == 1) LAUNCH((residual_kernel<1>), grid, threads, 0, stream, job);
  unsigned blocks = static_cast<unsigned>(slk_ceil_div<int64_t>(args->d, 32)) + 1;
  LAUNCH((residual_sums_kernel), blocks, SUM_THREADS, 0, stream, job);
  return slk_cuda_launched(device, "sae_decode_residual");
}

static __global__ void loss_numbers_kernel(sl_sae_loss_numbers_args args) { slk_sae_loss_numbers(&args); }

sl_status slk_cuda_sae_loss_numbers(sl_device *device, const sl_sae_loss_numbers_args *args) {
  slk_cuda_enter(device);
  LAUNCH((loss_numbers_kernel), 1, 1, 0, slk_cuda_stream(device), *args);
  return slk_cuda_launched(device, "sae_loss_numbers");
}
