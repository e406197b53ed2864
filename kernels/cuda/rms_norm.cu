/* Root-mean-square normalisation over rows and its backward: the formulas of kernels/cpu/rms_norm.c. A warp for a short
 * row, a block for a long one (rowwise.h). */
#include "rowwise.h"

enum { COLUMNS = 32, DOWN = 8, ROWS_OF_PART = 64, MOST_PARTS = 256 };

static __device__ __forceinline__ float inverse_rms(float squares, const sl_rms_norm_args &a) {
  return 1.0f / sqrtf(squares / static_cast<float>(a.n) + a.eps);
}

template <int COUNT> static __global__ void rms_norm_warp(sl_rms_norm_args a) {
  int lane = static_cast<int>(threadIdx.x);
  for (int64_t row = slk_first_row(); row < a.rows; row += slk_row_step()) {
    float v[COUNT], squares = 0;
    SLK_UNROLL
    for (int c = 0; c < COUNT; c++) {
      int64_t i = lane + c * SLK_WARP, at = row * a.n + i;
      v[c] = 0;
      if (i >= a.n) continue;
      v[c] = a.residual != nullptr ? a.x[at] + a.residual[at] : a.x[at];
      if (a.sum != nullptr) a.sum[at] = v[c];
      squares += v[c] * v[c];
    }
    const float rrms = inverse_rms(slk_warp_sum(squares), a);
    if (lane == 0 && a.rrms != nullptr) a.rrms[row] = rrms;
    SLK_UNROLL
    for (int c = 0; c < COUNT; c++) {
      int64_t i = lane + c * SLK_WARP;
      if (i < a.n) a.y[row * a.n + i] = v[c] * rrms * (a.weight[i] + a.offset);
    }
  }
}

/* Four neighbours at once where every row and the weight start on 16 bytes. The sum is parked in y: each thread reads
 * back what it wrote itself. */
template <int WIDTH> static __global__ void __launch_bounds__(SLK_ROW_THREADS) rms_norm_block(sl_rms_norm_args a) {
  typedef slk_pack<float, WIDTH> pack;
  __shared__ float scratch[32];
  const pack *weight = reinterpret_cast<const pack *>(a.weight);
  const int64_t packs = a.n / WIDTH;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const pack *x = reinterpret_cast<const pack *>(a.x + row * a.n);
    const pack *residual = a.residual != nullptr ? reinterpret_cast<const pack *>(a.residual + row * a.n) : nullptr;
    pack *y = reinterpret_cast<pack *>(a.y + row * a.n);
    pack *sum = a.sum != nullptr ? reinterpret_cast<pack *>(a.sum + row * a.n) : nullptr;
    float squares = 0;
    for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
      pack v = x[i];
      if (residual != nullptr) {
        const pack r = residual[i];
        SLK_UNROLL
        for (int j = 0; j < WIDTH; j++) v.at[j] += r.at[j];
      }
      SLK_UNROLL
      for (int j = 0; j < WIDTH; j++) squares += v.at[j] * v.at[j];
      if (sum != nullptr) sum[i] = v;
      y[i] = v;
    }
    const float rrms = inverse_rms(slk_block_sum(squares, scratch), a);
    if (threadIdx.x == 0 && a.rrms != nullptr) a.rrms[row] = rrms;
    for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
      pack v = y[i];
      const pack w = weight[i];
      SLK_UNROLL
      for (int j = 0; j < WIDTH; j++) v.at[j] = v.at[j] * rrms * (w.at[j] + a.offset);
      y[i] = v;
    }
  }
}

extern "C" sl_status slk_cuda_rms_norm(sl_device *device, const sl_rms_norm_args *args) {
  slk_cuda_enter(device);
  cudaStream_t stream = slk_cuda_stream(device);
  if (args->rows * args->n == 0) return SL_OK;
  if (args->n <= SLK_WARP_ROW) {
    unsigned grid = slk_grid(device, args->rows, SLK_WARP_ROWS);
#define WITH(count) LAUNCH((rms_norm_warp<count>), grid, dim3(SLK_WARP, SLK_WARP_ROWS), 0, stream, *args)
    SLK_BY_ROW(args->n, WITH);
#undef WITH
  } else {
    unsigned grid = slk_grid(device, args->rows, 1);
    bool fours = slk_rows_aligned(args->n, args->x, args->residual, args->y, args->sum) && slk_aligned(args->weight, 16);
    if (fours) LAUNCH((rms_norm_block<4>), grid, slk_row_block(args->n) / 2, 0, stream, *args);
    else LAUNCH((rms_norm_block<1>), grid, slk_row_block(args->n), 0, stream, *args);
  }
  return slk_cuda_launched(device, "rms_norm");
}

/* -- Backward -- */

/* ds = r (g - h mean(g h)), g = dy (weight + offset), r = rrms, h = s r. One block, of a warp or more, a row. */
static __global__ void __launch_bounds__(SLK_ROW_THREADS) rms_norm_backward_rows(sl_rms_norm_backward_args a) {
  __shared__ float scratch[32];
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const float *s = a.s + row * a.n, *dy = a.dy + row * a.n, rrms = a.rrms[row];
    float *ds = a.ds + row * a.n, sum = 0;
    SLK_UNROLL_BY(4)
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x) sum += dy[i] * (a.weight[i] + a.offset) * (s[i] * rrms);
    const float mean = slk_block_sum(sum, scratch) / static_cast<float>(a.n);
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x) {
      float slope = rrms * (dy[i] * (a.weight[i] + a.offset) - s[i] * rrms * mean);
      ds[i] = a.accumulate ? ds[i] + slope : slope;
    }
  }
}

/* Sums of the weight's gradient over the rows of one part, in float64: parts [n_parts, n]. */
static __global__ void rms_norm_backward_parts(sl_rms_norm_backward_args a, int64_t part, int64_t n_parts,
                                               double *parts) {
  __shared__ double sums[DOWN][COLUMNS];
  int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  int64_t tiles = slk_ceil_div<int64_t>(a.n, COLUMNS);
  for (int64_t b = blockIdx.x; b < tiles * n_parts; b += gridDim.x) {
    int64_t column = b % tiles * COLUMNS + x, p = b / tiles;
    int64_t to = (p + 1) * part < a.rows ? (p + 1) * part : a.rows;
    double sum = 0;
    if (column < a.n) {
      SLK_UNROLL_BY(4)
      for (int64_t row = p * part + y; row < to; row += DOWN)
        sum += static_cast<double>(a.dy[row * a.n + column] * (a.s[row * a.n + column] * a.rrms[row]));
    }
    sums[y][x] = sum;
    __syncthreads();
    if (y == 0 && column < a.n) {
      for (int i = 1; i < DOWN; i++) sum += sums[i][x];
      parts[p * a.n + column] = sum;
    }
    __syncthreads();
  }
}

static __global__ void rms_norm_backward_join(sl_rms_norm_backward_args a, int64_t n_parts, const double *parts) {
  SLK_LOOP(column, a.n) {
    double sum = 0;
    SLK_UNROLL_BY(16) /* few threads, a long chain: what counts is how many loads are under way */
    for (int64_t p = 0; p < n_parts; p++) sum += parts[p * a.n + column];
    a.dweight[column] = static_cast<float>(sum) + (a.accumulate ? a.dweight[column] : 0.0f);
  }
}

extern "C" sl_status slk_cuda_rms_norm_backward(sl_device *device, const sl_rms_norm_backward_args *args) {
  int64_t n_parts = slk_least(MOST_PARTS, slk_ceil_div<int64_t>(args->rows, ROWS_OF_PART));
  if (args->need != NULL) {
    *args->need = args->dweight != NULL ? static_cast<size_t>(n_parts * args->n) * sizeof(double) : 0;
    return SL_OK;
  }
  slk_cuda_enter(device);
  cudaStream_t stream = slk_cuda_stream(device);
  if (args->dweight != NULL && args->n > 0) {
    double *parts = static_cast<double *>(args->workspace);
    int64_t part = n_parts > 0 ? slk_ceil_div(args->rows, n_parts) : 0;
    if (n_parts > 0) {
      unsigned grid = slk_grid(device, slk_ceil_div<int64_t>(args->n, COLUMNS) * n_parts, 1);
      LAUNCH(rms_norm_backward_parts, grid, dim3(COLUMNS, DOWN), 0, stream, *args, part, n_parts, parts);
    }
    LAUNCH(rms_norm_backward_join, slk_grid(device, args->n, 128), 128, 0, stream, *args, n_parts, parts);
  }
  if (args->ds != NULL && args->rows * args->n > 0) {
    int block = args->n <= 128 ? 32 : args->n <= 512 ? 64 : args->n <= 1024 ? 128 : slk_row_block(args->n);
    LAUNCH(rms_norm_backward_rows, slk_grid(device, args->rows, 1), block, 0, stream, *args);
  }
  return slk_cuda_launched(device, "rms_norm_backward");
}
