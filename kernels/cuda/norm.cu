/* Softmax, log-softmax and layer normalisation over rows, and their backward: the formulas of kernels/cpu/softmax.c and
 * norm.c. A warp for a short row, a block for a long one (rowwise.h). */
#include "rowwise.h"

enum { COLUMNS = 32, DOWN = 8, ROWS_OF_PART = 64, MOST_PARTS = 256 };

/* -- Softmax -- */

template <int COUNT> static __global__ void softmax_warp(sl_softmax_args a) {
  int lane = static_cast<int>(threadIdx.x);
  for (int64_t row = slk_first_row(); row < a.rows; row += slk_row_step()) {
    const float *x = a.x + row * a.n;
    float *y = a.y + row * a.n, v[COUNT];
    slk_exp_sum acc;
    acc.clear();
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
      int64_t i = lane + c * SLK_WARP;
      v[c] = i < a.n ? x[i] : -INFINITY;
    }
    slk_exp_sum_take(&acc, v);
    acc = slk_warp_exp_sum(acc);
    const float best = acc.best, inverse = 1.0f / acc.total(), log_sum = logf(acc.total());
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
      int64_t i = lane + c * SLK_WARP;
      if (i >= a.n) continue;
      /* Two subtractions: best + log(sum) would round away what huge logits have in common. */
      y[i] = a.log ? (v[c] - best) - log_sum : expf(v[c] - best) * inverse;
    }
  }
}

static __global__ void __launch_bounds__(SLK_ROW_THREADS) softmax_block(sl_softmax_args a, bool fours) {
  __shared__ slk_exp_sum scratch[32];
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const float *x = a.x + row * a.n;
    float *y = a.y + row * a.n;
    slk_exp_sum acc = slk_block_exp_sum(x, a.n, fours, scratch);
    const float best = acc.best, inverse = 1.0f / acc.total(), log_sum = logf(acc.total());
    int64_t packs = fours ? a.n / 4 : 0;
    for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
      slk_float4 v = slk_load4(x, i);
#pragma unroll
      for (int j = 0; j < 4; j++) v.at[j] = a.log ? (v.at[j] - best) - log_sum : expf(v.at[j] - best) * inverse;
      slk_store4(y, i, v);
    }
    for (int64_t i = packs * 4 + threadIdx.x; i < a.n; i += blockDim.x)
      y[i] = a.log ? (x[i] - best) - log_sum : expf(x[i] - best) * inverse;
  }
}

extern "C" sl_status slk_cuda_softmax(sl_device *device, const sl_softmax_args *args) {
  slk_cuda_enter(device);
  cudaStream_t stream = slk_cuda_stream(device);
  if (args->rows * args->n == 0) return SL_OK;
  if (args->n <= SLK_WARP_ROW) {
    unsigned grid = slk_grid(device, args->rows, SLK_WARP_ROWS);
#define WITH(count) LAUNCH((softmax_warp<count>), grid, dim3(SLK_WARP, SLK_WARP_ROWS), 0, stream, *args)
    SLK_BY_ROW(args->n, WITH);
#undef WITH
  } else {
    LAUNCH(softmax_block, slk_grid(device, args->rows, 1), slk_row_block(args->n), 0, stream, *args,
           slk_rows_aligned(args->n, args->x, args->y));
  }
  return slk_cuda_launched(device, "softmax");
}

/* softmax: dx = y (dy - sum(y dy)); log-softmax: dx = dy - exp(y) sum(dy). */
static __device__ __forceinline__ float softmax_slope(bool log, float y, float dy, float total) {
  return log ? dy - expf(y) * total : y * (dy - total);
}
static __device__ __forceinline__ double softmax_term(bool log, float y, float dy) {
  return static_cast<double>(log ? dy : y * dy);
}

template <int COUNT> static __global__ void softmax_backward_warp(sl_softmax_backward_args a) {
  int lane = static_cast<int>(threadIdx.x);
  for (int64_t row = slk_first_row(); row < a.rows; row += slk_row_step()) {
    float y[COUNT], dy[COUNT], *dx = a.dx + row * a.n;
    double sum = 0;
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
      int64_t i = lane + c * SLK_WARP;
      y[c] = dy[c] = 0;
      if (i >= a.n) continue;
      y[c] = a.y[row * a.n + i];
      dy[c] = a.dy[row * a.n + i];
      sum += softmax_term(a.log, y[c], dy[c]);
    }
    const float total = static_cast<float>(slk_warp_sum(sum));
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
      int64_t i = lane + c * SLK_WARP;
      if (i >= a.n) continue;
      float slope = softmax_slope(a.log, y[c], dy[c], total);
      dx[i] = a.accumulate ? dx[i] + slope : slope;
    }
  }
}

static __global__ void __launch_bounds__(SLK_ROW_THREADS) softmax_backward_block(sl_softmax_backward_args a) {
  __shared__ double scratch[32];
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const float *y = a.y + row * a.n, *dy = a.dy + row * a.n;
    float *dx = a.dx + row * a.n;
    double sum = 0;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x) sum += softmax_term(a.log, y[i], dy[i]);
    const float total = static_cast<float>(slk_block_sum(sum, scratch));
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x) {
      float slope = softmax_slope(a.log, y[i], dy[i], total);
      dx[i] = a.accumulate ? dx[i] + slope : slope;
    }
  }
}

extern "C" sl_status slk_cuda_softmax_backward(sl_device *device, const sl_softmax_backward_args *args) {
  slk_cuda_enter(device);
  cudaStream_t stream = slk_cuda_stream(device);
  if (args->rows * args->n == 0) return SL_OK;
  if (args->n <= SLK_WARP_ROW) {
    unsigned grid = slk_grid(device, args->rows, SLK_WARP_ROWS);
#define WITH(count) LAUNCH((softmax_backward_warp<count>), grid, dim3(SLK_WARP, SLK_WARP_ROWS), 0, stream, *args)
    SLK_BY_ROW(args->n, WITH);
#undef WITH
  } else {
    LAUNCH(softmax_backward_block, slk_grid(device, args->rows, 1), slk_row_block(args->n), 0, stream, *args);
  }
  return slk_cuda_launched(device, "softmax_backward");
}

/* -- Layer norm -- */

struct row_stats {
  float guess, shift, rstd;
};

/* From the centred sums around `guess`: what is left of the sum corrects it, as on the CPU. */
static __device__ __forceinline__ row_stats finish_stats(float guess, float squares, float rest, int64_t n, float eps) {
  float count = static_cast<float>(n), shift = rest / count, variance = squares / count - shift * shift;
  return { guess, shift, 1.0f / sqrtf((variance > 0 ? variance : 0.0f) + eps) };
}
static __device__ __forceinline__ void keep_stats(const sl_layernorm_args &a, int64_t row, const row_stats &s) {
  if (a.mean != nullptr) a.mean[row] = s.guess + s.shift;
  if (a.rstd != nullptr) a.rstd[row] = s.rstd;
}

template <int COUNT> static __global__ void layernorm_warp(sl_layernorm_args a) {
  int lane = static_cast<int>(threadIdx.x);
  for (int64_t row = slk_first_row(); row < a.rows; row += slk_row_step()) {
    float v[COUNT], total = 0, squares = 0, rest = 0;
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
      int64_t i = lane + c * SLK_WARP, at = row * a.n + i;
      v[c] = 0;
      if (i >= a.n) continue;
      v[c] = a.residual != nullptr ? a.x[at] + a.residual[at] : a.x[at];
      if (a.sum != nullptr) a.sum[at] = v[c];
      total += v[c];
    }
    const float guess = slk_warp_sum(total) / static_cast<float>(a.n);
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
      float d = v[c] - guess;
      if (lane + c * SLK_WARP < a.n) squares += d * d, rest += d;
    }
    squares = slk_warp_sum(squares);
    rest = slk_warp_sum(rest);
    row_stats s = finish_stats(guess, squares, rest, a.n, a.eps);
    if (lane == 0) keep_stats(a, row, s);
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
      int64_t i = lane + c * SLK_WARP;
      if (i < a.n) a.y[row * a.n + i] = ((v[c] - guess) - s.shift) * s.rstd * a.weight[i] + a.bias[i];
    }
  }
}

/* The sum is parked in y: each thread reads back what it wrote itself. */
static __global__ void __launch_bounds__(SLK_ROW_THREADS) layernorm_block(sl_layernorm_args a) {
  __shared__ float scratch[32];
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    float *y = a.y + row * a.n, total = 0, squares = 0, rest = 0;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x) {
      int64_t at = row * a.n + i;
      float v = a.residual != nullptr ? a.x[at] + a.residual[at] : a.x[at];
      if (a.sum != nullptr) a.sum[at] = v;
      y[i] = v;
      total += v;
    }
    const float guess = slk_block_sum(total, scratch) / static_cast<float>(a.n);
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x) {
      float d = y[i] - guess;
      squares += d * d;
      rest += d;
    }
    squares = slk_block_sum(squares, scratch);
    rest = slk_block_sum(rest, scratch);
    row_stats s = finish_stats(guess, squares, rest, a.n, a.eps);
    if (threadIdx.x == 0) keep_stats(a, row, s);
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x)
      y[i] = ((y[i] - guess) - s.shift) * s.rstd * a.weight[i] + a.bias[i];
  }
}

extern "C" sl_status slk_cuda_layernorm(sl_device *device, const sl_layernorm_args *args) {
  slk_cuda_enter(device);
  cudaStream_t stream = slk_cuda_stream(device);
  if (args->rows == 0) return SL_OK;
  if (args->n <= SLK_WARP_ROW) {
    unsigned grid = slk_grid(device, args->rows, SLK_WARP_ROWS);
#define WITH(count) LAUNCH((layernorm_warp<count>), grid, dim3(SLK_WARP, SLK_WARP_ROWS), 0, stream, *args)
    SLK_BY_ROW(args->n, WITH);
#undef WITH
  } else {
    LAUNCH(layernorm_block, slk_grid(device, args->rows, 1), slk_row_block(args->n), 0, stream, *args);
  }
  return slk_cuda_launched(device, "layernorm");
}

/* -- Layer norm, backward -- */

/* ds = rstd (g - mean(g) - h mean(g h)), g = dy weight, h = (s - mean) rstd. One block, of a warp or more, a row. */
static __global__ void __launch_bounds__(SLK_ROW_THREADS) layernorm_backward_rows(sl_layernorm_backward_args a) {
  __shared__ float scratch[32];
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const float *s = a.s + row * a.n, *dy = a.dy + row * a.n, mean = a.mean[row], rstd = a.rstd[row];
    float *ds = a.ds + row * a.n, sum_g = 0, sum_gh = 0;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x) {
      float g = dy[i] * a.weight[i];
      sum_g += g;
      sum_gh += g * ((s[i] - mean) * rstd);
    }
    const float mean_g = slk_block_sum(sum_g, scratch) / static_cast<float>(a.n);
    const float mean_gh = slk_block_sum(sum_gh, scratch) / static_cast<float>(a.n);
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x) {
      float slope = rstd * (dy[i] * a.weight[i] - mean_g - (s[i] - mean) * rstd * mean_gh);
      ds[i] = a.accumulate ? ds[i] + slope : slope;
    }
  }
}

/* Sums of the parameter gradients over the rows of one part, in float64: parts [n_parts, 2, n]. */
static __global__ void layernorm_backward_parts(sl_layernorm_backward_args a, int64_t part, int64_t n_parts,
                                                double *parts) {
  __shared__ double sums[2][DOWN][COLUMNS];
  int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  int64_t tiles = (a.n + COLUMNS - 1) / COLUMNS;
  for (int64_t b = blockIdx.x; b < tiles * n_parts; b += gridDim.x) {
    int64_t column = b % tiles * COLUMNS + x, p = b / tiles;
    int64_t to = (p + 1) * part < a.rows ? (p + 1) * part : a.rows;
    double dweight = 0, dbias = 0;
    if (column < a.n) {
#pragma unroll 4
      for (int64_t row = p * part + y; row < to; row += DOWN) {
        float dy = a.dy[row * a.n + column];
        dweight += static_cast<double>(dy * ((a.s[row * a.n + column] - a.mean[row]) * a.rstd[row]));
        dbias += static_cast<double>(dy);
      }
    }
    sums[0][y][x] = dweight;
    sums[1][y][x] = dbias;
    __syncthreads();
    if (y < 2 && column < a.n) { /* one row of threads for each sum */
      double sum = 0;
      for (int i = 0; i < DOWN; i++) sum += sums[y][i][x];
      parts[(p * 2 + y) * a.n + column] = sum;
    }
    __syncthreads();
  }
}

static __global__ void layernorm_backward_join(sl_layernorm_backward_args a, int64_t n_parts, const double *parts) {
  SLK_LOOP(i, 2 * a.n) {
    float *to = i < a.n ? a.dweight : a.dbias;
    int64_t column = i < a.n ? i : i - a.n;
    double sum = 0;
    if (to == nullptr) continue;
    SLK_UNROLL_BY(16) /* few threads, a long chain: what counts is how many loads are under way */
    for (int64_t p = 0; p < n_parts; p++) sum += parts[p * 2 * a.n + i];
    to[column] = static_cast<float>(sum) + (a.accumulate ? to[column] : 0.0f);
  }
}

extern "C" sl_status slk_cuda_layernorm_backward(sl_device *device, const sl_layernorm_backward_args *args) {
  bool parameters = args->dweight != NULL || args->dbias != NULL;
  int64_t n_parts = slk_least(MOST_PARTS, slk_ceil_div<int64_t>(args->rows, ROWS_OF_PART));
  if (args->need != NULL) {
    *args->need = parameters ? static_cast<size_t>(n_parts * 2 * args->n) * sizeof(double) : 0;
    return SL_OK;
  }
  slk_cuda_enter(device);
  cudaStream_t stream = slk_cuda_stream(device);
  if (parameters && args->n > 0) {
    double *parts = static_cast<double *>(args->workspace);
    int64_t part = n_parts > 0 ? slk_ceil_div(args->rows, n_parts) : 0;
    if (n_parts > 0) {
      unsigned grid = slk_grid(device, slk_ceil_div<int64_t>(args->n, COLUMNS) * n_parts, 1);
      LAUNCH(layernorm_backward_parts, grid, dim3(COLUMNS, DOWN), 0, stream, *args, part, n_parts, parts);
    }
    LAUNCH(layernorm_backward_join, slk_grid(device, 2 * args->n, 128), 128, 0, stream, *args, n_parts, parts);
  }
  if (args->ds != NULL && args->rows * args->n > 0) {
    int block = args->n <= 128 ? 32 : args->n <= 512 ? 64 : args->n <= 1024 ? 128 : slk_row_block(args->n);
    LAUNCH(layernorm_backward_rows, slk_grid(device, args->rows, 1), block, 0, stream, *args);
  }
  return slk_cuda_launched(device, "layernorm_backward");
}
