/* Cross-entropy of rows of logits against class ids, and its backward. */
#include "rowwise.h"

enum { BLOCK = 256 };

/* best + log sum exp(x - best); the two parts stay apart so that huge logits keep their differences. */
static __device__ __forceinline__ void keep_loss(const sl_cross_entropy_args &a, int64_t row, const slk_exp_sum &acc) {
  int32_t target = a.targets[row];
  float rest = logf(acc.total());
  if (a.lse != nullptr) a.lse[row] = acc.best + rest;
  a.loss[row] = target < 0 ? 0.0f : rest - (a.logits[row * a.n + target] - acc.best);
}

static __global__ void cross_entropy_warp(sl_cross_entropy_args a) {
  int lane = static_cast<int>(threadIdx.x);
  for (int64_t row = slk_first_row(); row < a.rows; row += slk_row_step()) {
    slk_exp_sum acc;
    acc.clear();
    for (int64_t from = 0; from < a.n; from += 4 * SLK_WARP) {
      float v[4];
#pragma unroll
      for (int c = 0; c < 4; c++) {
        int64_t i = from + lane + c * SLK_WARP;
        v[c] = i < a.n ? a.logits[row * a.n + i] : -INFINITY;
      }
      slk_exp_sum_take(&acc, v);
    }
    acc = slk_warp_exp_sum(acc);
    if (lane == 0) keep_loss(a, row, acc);
  }
}

static __global__ void __launch_bounds__(SLK_ROW_THREADS) cross_entropy_block(sl_cross_entropy_args a, bool fours) {
  __shared__ slk_exp_sum scratch[32];
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    slk_exp_sum acc = slk_block_exp_sum(a.logits + row * a.n, a.n, fours, scratch);
    if (threadIdx.x == 0) keep_loss(a, row, acc);
  }
}

extern "C" sl_status slk_cuda_cross_entropy(sl_device *device, const sl_cross_entropy_args *args) {
  slk_cuda_enter(device);
  cudaStream_t stream = slk_cuda_stream(device);
  if (args->rows == 0) return SL_OK;
  if (args->n <= SLK_WARP_ROW) {
    LAUNCH(cross_entropy_warp, slk_grid(device, args->rows, SLK_WARP_ROWS), dim3(SLK_WARP, SLK_WARP_ROWS), 0, stream,
           *args);
  } else {
    LAUNCH(cross_entropy_block, slk_grid(device, args->rows, 1), slk_row_block(args->n), 0, stream, *args,
           slk_rows_aligned(args->n, args->logits));
  }
  return slk_cuda_launched(device, "cross_entropy");
}

/* dlogits = dloss (softmax - onehot); zero on ignored rows, whatever their logits. */
static __device__ __forceinline__ float logit_slope(float x, float lse, float g, bool chosen, float before) {
  float change = before + g * expf(x - lse);
  return chosen ? change - g : change;
}

/* blockIdx.x: row and piece of BLOCK * 4 columns. */
static __global__ void cross_entropy_slopes(sl_cross_entropy_backward_args a, int64_t pieces, bool fours) {
  for (int64_t b = blockIdx.x; b < a.rows * pieces; b += gridDim.x) {
    int64_t row = b / pieces, from = b % pieces * (4 * BLOCK), to = from + 4 * BLOCK < a.n ? from + 4 * BLOCK : a.n;
    const int32_t target = a.targets[row];
    const float *x = a.logits + row * a.n, lse = a.lse[row], g = target < 0 ? 0.0f : a.dloss[row];
    float *out = a.dlogits + row * a.n;
    if (g == 0 && a.accumulate) continue;
    if (fours) {
      int64_t i = from / 4 + threadIdx.x;
      if (4 * i >= to) continue;
      slk_float4 v = slk_load4(x, i), before = {};
      if (a.accumulate) before = slk_load4(out, i);
#pragma unroll
      for (int j = 0; j < 4; j++)
        v.at[j] = g == 0 ? 0.0f : logit_slope(v.at[j], lse, g, 4 * i + j == target, before.at[j]);
      slk_store4(out, i, v);
    } else {
      for (int64_t i = from + threadIdx.x; i < to; i += BLOCK)
        out[i] = g == 0 ? 0.0f : logit_slope(x[i], lse, g, i == target, a.accumulate ? out[i] : 0.0f);
    }
  }
}

extern "C" sl_status slk_cuda_cross_entropy_backward(sl_device *device, const sl_cross_entropy_backward_args *args) {
  slk_cuda_enter(device);
  int64_t pieces = slk_ceil_div<int64_t>(args->n, 4 * BLOCK);
  if (args->rows * pieces == 0) return SL_OK;
  LAUNCH(cross_entropy_slopes, slk_grid(device, args->rows * pieces, 1), BLOCK, 0, slk_cuda_stream(device), *args,
         pieces, slk_rows_aligned(args->n, args->logits, args->dlogits));
  return slk_cuda_launched(device, "cross_entropy_backward");
}
