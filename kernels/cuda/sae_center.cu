/* SAE kernel: mean or geometric median of rows, and their variance.
 *
 * Sums are float64, over pieces of the rows that the shape alone determines. Mean and variance come from one pass over
 * x, shifted by its first row: equal rows give a variance of exactly zero, and a large common offset costs no digits.
 * The median's iterations are all launched at once; when the centre has come to rest the rest of them find that out in
 * their first instruction and leave, so that nobody waits for the device to say when to stop. */
#include <cuda_bf16.h>

#include "sae_cuda.h"

enum { ROWS = 8, COLUMNS = 32, THREADS = ROWS * COLUMNS, SUM_THREADS = 1024, MOST_PIECES = 256, PIECE_ROWS = 32 };

struct center_state {
  double weight;                 /* sum of the rows' weights */
  int32_t done, iterations;
};

struct center_job {
  sl_sae_center_args a;
  int64_t pieces, column_blocks;
  double *sums, *squares;        /* [pieces, d]: of x - x[0] and its squares; in the median, of weight * x */
  double *variances;             /* [d] */
  double *weights;               /* [n]: 1 / distance from the centre */
  double *moved;                 /* [column_blocks, 2]: squares of the step, of the new centre */
  float *center;                 /* [d] */
  center_state *state;
};

/* -- Mean and variance -- */

/* A piece of the rows (blockIdx.y), 32 columns; rows of the block in turn, added up in order. */
static __global__ void __launch_bounds__(THREADS) moments_kernel(center_job job) {
  __shared__ double sums[2][ROWS][COLUMNS];
  const sl_sae_center_args &a = job.a;
  int c = static_cast<int>(threadIdx.x) % COLUMNS, r = static_cast<int>(threadIdx.x) / COLUMNS;
  int64_t column = static_cast<int64_t>(blockIdx.x) * COLUMNS + c, piece = blockIdx.y;
  int64_t first = a.n * piece / job.pieces, last = a.n * (piece + 1) / job.pieces;
  double sum = 0, square = 0;
  if (column < a.d) {
    double shift = static_cast<double>(a.x[column]);
#pragma unroll 4
    for (int64_t t = first + r; t < last; t += ROWS) {
      double v = static_cast<double>(a.x[t * a.d + column]) - shift;
      sum += v;
      square += v * v;
    }
  }
  sums[0][r][c] = sum, sums[1][r][c] = square;
  __syncthreads();
  if (r != 0 || column >= a.d) return;
  for (int other = 1; other < ROWS; other++) sum += sums[0][other][c], square += sums[1][other][c];
  job.sums[piece * a.d + column] = sum;
  job.squares[piece * a.d + column] = square;
}

static __global__ void __launch_bounds__(SUM_THREADS) mean_kernel(center_job job) {
  const sl_sae_center_args &a = job.a;
  int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  double sum = sae_column_sum(job.sums, job.pieces, a.d, blockIdx.x);
  double square = sae_column_sum(job.squares, job.pieces, a.d, blockIdx.x);
  if (threadIdx.x >= 32 || column >= a.d) return;
  double n = static_cast<double>(a.n), mean = a.n > 0 ? sum / n : 0, variance = a.n > 0 ? square - sum * mean : 0;
  job.center[column] = a.n > 0 ? static_cast<float>(mean + static_cast<double>(a.x[column])) : 0;
  job.variances[column] = variance < 0 ? 0 : variance; /* NaN stays */
}

static __global__ void __launch_bounds__(SUM_THREADS) finish_kernel(center_job job) {
  __shared__ double scratch[32];
  const sl_sae_center_args &a = job.a;
  double sum = 0;
  for (int64_t j = threadIdx.x; j < a.d; j += SUM_THREADS) {
    sum += job.variances[j];
    if (a.center != nullptr) a.center[j] = job.center[j];
  }
  sum = slk_block_sum(sum, scratch);
  if (threadIdx.x != 0) return;
  if (a.total_variance != nullptr) *a.total_variance = sum;
  if (a.iterations != nullptr) *a.iterations = a.median ? job.state->iterations : 0;
}

/* -- Geometric median -- */

static __global__ void begin_kernel(center_job job) { *job.state = center_state{}; }

/* weights[t] = 1 / |x_t - centre|, a block a row. */
static __global__ void __launch_bounds__(THREADS) weights_kernel(center_job job) {
  __shared__ double scratch[32];
  const sl_sae_center_args &a = job.a;
  if (job.state->done) return;
  int64_t t = blockIdx.x;
  double squares = 0;
  for (int64_t j = threadIdx.x; j < a.d; j += THREADS) {
    double v = static_cast<double>(a.x[t * a.d + j] - job.center[j]);
    squares += v * v;
  }
  squares = slk_block_sum(squares, scratch);
  double distance = sqrt(squares);
  if (threadIdx.x == 0) job.weights[t] = 1 / (distance > 1e-12 ? distance : 1e-12);
}

/* Sums of weight * x over a piece of the rows; the last block in x adds up the weights. */
static __global__ void __launch_bounds__(THREADS) weighted_kernel(center_job job) {
  __shared__ double sums[ROWS][COLUMNS], scratch[32];
  const sl_sae_center_args &a = job.a;
  if (job.state->done) return;
  if (blockIdx.x == job.column_blocks) {
    if (blockIdx.y != 0) return;
    double weight = 0;
    for (int64_t t = threadIdx.x; t < a.n; t += THREADS) weight += job.weights[t];
    weight = slk_block_sum(weight, scratch);
    if (threadIdx.x == 0) job.state->weight = weight;
    return;
  }
  int c = static_cast<int>(threadIdx.x) % COLUMNS, r = static_cast<int>(threadIdx.x) / COLUMNS;
  int64_t column = static_cast<int64_t>(blockIdx.x) * COLUMNS + c, piece = blockIdx.y;
  int64_t first = a.n * piece / job.pieces, last = a.n * (piece + 1) / job.pieces;
  double sum = 0;
  if (column < a.d) {
#pragma unroll 4
    for (int64_t t = first + r; t < last; t += ROWS)
      sum += job.weights[t] * static_cast<double>(a.x[t * a.d + column]);
  }
  sums[r][c] = sum;
  __syncthreads();
  if (r != 0 || column >= a.d) return;
  for (int other = 1; other < ROWS; other++) sum += sums[other][c];
  job.sums[piece * a.d + column] = sum;
}

static __global__ void __launch_bounds__(SUM_THREADS) step_kernel(center_job job) {
  const sl_sae_center_args &a = job.a;
  if (job.state->done) return;
  int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  double sum = sae_column_sum(job.sums, job.pieces, a.d, blockIdx.x), moved = 0, value = 0;
  if (threadIdx.x >= 32) return;
  if (column < a.d) {
    value = sum / job.state->weight;
    moved = value - static_cast<double>(job.center[column]);
    job.center[column] = static_cast<float>(value);
  }
  moved = slk_warp_sum(moved * moved);
  value = slk_warp_sum(value * value);
  if (threadIdx.x == 0) job.moved[blockIdx.x * 2] = moved, job.moved[blockIdx.x * 2 + 1] = value;
}

static __global__ void __launch_bounds__(THREADS) judge_kernel(center_job job) {
  __shared__ double scratch[32];
  if (job.state->done) return;
  double moved = 0, norm = 0;
  for (int64_t i = threadIdx.x; i < job.column_blocks; i += THREADS) {
    moved += job.moved[i * 2];
    norm += job.moved[i * 2 + 1];
  }
  moved = slk_block_sum(moved, scratch);
  norm = slk_block_sum(norm, scratch); /* its barriers also keep the flag from changing under a slower thread */
  if (threadIdx.x != 0) return;
  job.state->iterations++;
  if (sqrt(moved) <= job.a.tolerance * sqrt(norm)) job.state->done = 1;
}

static void find_median(const center_job &job, cudaStream_t stream) {
  unsigned columns = static_cast<unsigned>(job.column_blocks), pieces = static_cast<unsigned>(job.pieces);
  for (int i = 0; i < job.a.max_iterations; i++) {
    LAUNCH((weights_kernel), static_cast<unsigned>(job.a.n), THREADS, 0, stream, job);
    LAUNCH((weighted_kernel), dim3(columns + 1, pieces), THREADS, 0, stream, job);
    LAUNCH((step_kernel), columns, SUM_THREADS, 0, stream, job);
    LAUNCH((judge_kernel), 1, THREADS, 0, stream, job);
  }
}

sl_status slk_cuda_sae_center(sl_device *device, const sl_sae_center_args *args) {
  slk_cuda_enter(device);
  center_job job = {};
  job.a = *args;
  int64_t pieces = slk_ceil_div<int64_t>(args->n, PIECE_ROWS), d = args->d;
  job.pieces = pieces < 1 ? 1 : slk_least(pieces, MOST_PIECES);
  job.column_blocks = slk_ceil_div<int64_t>(d, COLUMNS);
  sae_cutter cutter = { static_cast<char *>(args->workspace), 0 };
  job.sums = cutter.cut<double>(job.pieces * d);
  job.squares = cutter.cut<double>(job.pieces * d);
  job.variances = cutter.cut<double>(d);
  job.moved = cutter.cut<double>(2 * job.column_blocks);
  job.center = cutter.cut<float>(d);
  job.state = cutter.cut<center_state>(1);
  if (args->median) job.weights = cutter.cut<double>(args->n);
  if (args->need != nullptr) {
    *args->need = cutter.used;
    return SL_OK;
  }
  if (args->workspace_bytes < cutter.used)
    return sae_short_workspace("sae_center", args->workspace_bytes, cutter.used);
  cudaStream_t stream = slk_cuda_stream(device);
  unsigned columns = static_cast<unsigned>(job.column_blocks);
  if (args->n > 0)
    LAUNCH((moments_kernel), dim3(columns, static_cast<unsigned>(job.pieces)), THREADS, 0, stream, job);
  else SL_TRY(slk_cuda_check(device, cudaMemsetAsync(job.sums, 0, cutter.used, stream), "sae_center"));
  LAUNCH((mean_kernel), columns, SUM_THREADS, 0, stream, job);
  LAUNCH((begin_kernel), 1, 1, 0, stream, job);
  if (args->median && args->n > 0) find_median(job, stream);
  LAUNCH((finish_kernel), 1, SUM_THREADS, 0, stream, job);
  return slk_cuda_launched(device, "sae_center");
}
