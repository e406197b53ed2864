/* Reductions over one axis and the float64 sum of squares.
 *
 * Short rows (inner 1, n up to 1024): one warp a row. Everything else: blocks of [reduced positions] x [columns], and
 * where there are few outputs, the axis is cut into parts that a second launch puts together. How it is cut follows
 * from the shape alone, so that every device and every run adds in the same order. */
#include "pack.h"

enum { BLOCK = 256, WARP_ROWS = 8, SHORT_ROW = 1024, MOST_PARTS = 512, SHORTEST_PART = 256, SUM_PARTS = 512 };
/* Outputs times parts that keep a large GPU busy. */
enum { ENOUGH_BLOCKS = 1024 };

/* -- What is carried along: a sum, or the best entry and its place -- */

struct sum_cell {
  double sum;
  __device__ __forceinline__ void clear() { sum = 0; }
  __device__ __forceinline__ void take(float x, int64_t at, float sign) {
    (void)at, (void)sign;
    sum += static_cast<double>(x);
  }
  __device__ __forceinline__ void join(const sum_cell &other) { sum += other.sum; }
  __device__ __forceinline__ sum_cell from_lane(int step) const { return { __shfl_xor_sync(0xffffffffu, sum, step) }; }
};

/* A NaN beats every number, the first NaN every other; equal entries go by lowest index. */
struct best_cell {
  float value; /* times sign: the largest wins */
  int32_t at;
  __device__ __forceinline__ void clear() {
    value = -INFINITY;
    at = INT32_MAX;
  }
  __device__ __forceinline__ void join(const best_cell &other) {
    bool nan = value != value, other_nan = other.value != other.value;
    bool equal = nan ? other_nan : value == other.value;
    if (equal ? other.at < at : !nan && (other_nan || other.value > value)) *this = other;
  }
  __device__ __forceinline__ void take(float x, int64_t i, float sign) { join({ sign * x, static_cast<int32_t>(i) }); }
  __device__ __forceinline__ best_cell from_lane(int step) const {
    return { __shfl_xor_sync(0xffffffffu, value, step), __shfl_xor_sync(0xffffffffu, at, step) };
  }
};

template <typename CELL> static __device__ __forceinline__ CELL warp_join(CELL cell) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) cell.join(cell.from_lane(step));
  return cell;
}

struct reduce_job {
  const float *x;
  float *y;
  int32_t *index;
  void *parts; /* cells [outer, parts, inner], or NULL: one part, straight to y */
  int64_t outer, n, inner;
  int64_t part, n_parts; /* positions of one part */
  float sign;
  double divisor;
};

static __device__ __forceinline__ void finish(const reduce_job &job, int64_t at, const sum_cell &cell) {
  job.y[at] = static_cast<float>(cell.sum / job.divisor);
}
static __device__ __forceinline__ void finish(const reduce_job &job, int64_t at, const best_cell &cell) {
  job.y[at] = job.sign * cell.value;
  if (job.index != nullptr) job.index[at] = cell.at;
}

/* -- Short rows: a warp each -- */

template <typename CELL> static __global__ void reduce_rows(reduce_job job) {
  int lane = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * WARP_ROWS + warp; row < job.outer;
       row += static_cast<int64_t>(gridDim.x) * WARP_ROWS) {
    const float *x = job.x + row * job.n;
    CELL cell;
    cell.clear();
    for (int64_t i = lane; i < job.n; i += SLK_WARP) cell.take(x[i], i, job.sign);
    cell = warp_join(cell);
    if (lane == 0) finish(job, row, cell);
  }
}

/* -- Everything else: a block for some columns of one part. blockDim = (columns, positions), 256 threads. -- */

template <typename CELL> static __global__ void reduce_parts(reduce_job job) {
  __shared__ CELL cells[BLOCK];
  int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y), across = static_cast<int>(blockDim.x);
  int down = static_cast<int>(blockDim.y);
  int64_t tiles = (job.inner + across - 1) / across;
  for (int64_t b = blockIdx.x; b < job.outer * job.n_parts * tiles; b += gridDim.x) {
    int64_t column = b % tiles * across + x, part = b / tiles % job.n_parts, outer = b / tiles / job.n_parts;
    int64_t from = part * job.part, to = from + job.part < job.n ? from + job.part : job.n;
    CELL cell;
    cell.clear();
    if (column < job.inner) {
      const float *in = job.x + outer * job.n * job.inner + column;
#pragma unroll 4
      for (int64_t i = from + y; i < to; i += down) cell.take(in[i * job.inner], i, job.sign);
    }
    cells[y * across + x] = cell;
    __syncthreads();
    for (int half = down / 2; half > 0; half /= 2) {
      if (y < half) cells[y * across + x].join(cells[(y + half) * across + x]);
      __syncthreads();
    }
    if (y == 0 && column < job.inner) {
      int64_t at = (outer * job.n_parts + part) * job.inner + column;
      if (job.parts != nullptr) static_cast<CELL *>(job.parts)[at] = cells[x];
      else finish(job, at, cells[x]);
    }
    __syncthreads();
  }
}

template <typename CELL> static __global__ void join_parts(reduce_job job) {
  SLK_LOOP(i, job.outer * job.inner) {
    int64_t outer = i / job.inner, column = i % job.inner;
    const CELL *parts = static_cast<const CELL *>(job.parts) + outer * job.n_parts * job.inner + column;
    CELL cell = parts[0];
    SLK_UNROLL_BY(16) /* few threads, a long chain: what counts is how many loads are under way */
    for (int64_t p = 1; p < job.n_parts; p++) cell.join(parts[p * job.inner]);
    finish(job, i, cell);
  }
}

/* Columns of a block: a power of two, whole warps along the contiguous axis where there are that many. */
static int columns_of(int64_t inner) {
  int columns = 1;
  while (columns < SLK_WARP && columns < inner) columns *= 2;
  return columns;
}

static bool by_warps(const sl_reduce_args *args) { return args->inner == 1 && args->n <= SHORT_ROW; }

/* Parts of the axis: as many as keep the device busy, none too short. */
static int64_t count_parts(const sl_reduce_args *args) {
  if (by_warps(args)) return 1;
  int64_t blocks = args->outer * slk_ceil_div(args->inner, static_cast<int64_t>(columns_of(args->inner)));
  int64_t parts = slk_least(slk_ceil_div<int64_t>(ENOUGH_BLOCKS, blocks > 0 ? blocks : 1),
                            slk_ceil_div<int64_t>(args->n, SHORTEST_PART));
  return parts < 1 ? 1 : slk_least(parts, MOST_PARTS);
}

template <typename CELL> static void reduce_with(const sl_device *device, const reduce_job &job, bool warps) {
  cudaStream_t stream = slk_cuda_stream(device);
  if (warps) {
    unsigned grid = slk_grid(device, job.outer, WARP_ROWS);
    LAUNCH((reduce_rows<CELL>), grid, dim3(SLK_WARP, WARP_ROWS), 0, stream, job);
    return;
  }
  unsigned columns = static_cast<unsigned>(columns_of(job.inner));
  int64_t tiles = slk_ceil_div(job.inner, static_cast<int64_t>(columns));
  unsigned grid = slk_grid(device, job.outer * job.n_parts * tiles, 1);
  LAUNCH((reduce_parts<CELL>), grid, dim3(columns, BLOCK / columns), 0, stream, job);
  if (job.parts == nullptr) return;
  LAUNCH((join_parts<CELL>), slk_grid(device, job.outer * job.inner, BLOCK), BLOCK, 0, stream, job);
}

extern "C" sl_status slk_cuda_reduce(sl_device *device, const sl_reduce_args *args) {
  bool sums = args->op == SL_REDUCE_SUM || args->op == SL_REDUCE_MEAN;
  int64_t n_parts = count_parts(args);
  size_t cell = sums ? sizeof(sum_cell) : sizeof(best_cell);
  size_t need = n_parts > 1 ? static_cast<size_t>(args->outer * n_parts * args->inner) * cell : 0;
  if (args->need != NULL) {
    *args->need = need;
    return SL_OK;
  }
  slk_cuda_enter(device);
  if (args->outer * args->inner == 0) return SL_OK;
  reduce_job job = {};
  job.x = args->x, job.y = args->y, job.index = args->index;
  job.outer = args->outer, job.n = args->n, job.inner = args->inner;
  job.parts = need > 0 ? args->workspace : nullptr;
  job.n_parts = n_parts, job.part = slk_ceil_div(args->n, n_parts);
  job.sign = args->op == SL_REDUCE_MIN ? -1.0f : 1.0f;
  job.divisor = args->op == SL_REDUCE_MEAN ? static_cast<double>(args->n) : 1.0;
  if (sums) reduce_with<sum_cell>(device, job, by_warps(args));
  else reduce_with<best_cell>(device, job, by_warps(args));
  return slk_cuda_launched(device, "reduce");
}

/* -- Sum of squares -- */

/* Block b takes packs b, b + SUM_PARTS, ... of BLOCK threads: fixed by n, whatever the device. */
static __global__ void sum_squares_parts(const float *x, int64_t packs, int64_t n, double *parts) {
  __shared__ double scratch[32];
  double sum = 0;
  SLK_LOOP(i, packs) {
    slk_float4 v = slk_load4(x, i);
#pragma unroll
    for (int j = 0; j < 4; j++) sum += static_cast<double>(v.at[j]) * static_cast<double>(v.at[j]);
  }
  SLK_LOOP(i, n - packs * 4) sum += static_cast<double>(x[packs * 4 + i]) * static_cast<double>(x[packs * 4 + i]);
  sum = slk_block_sum(sum, scratch);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

extern "C" sl_status slk_cuda_sum_squares(sl_device *device, const sl_sum_squares_args *args) {
  int64_t blocks = slk_least(SUM_PARTS, slk_ceil_div<int64_t>(args->n, 4 * BLOCK));
  if (args->need != NULL) {
    *args->need = static_cast<size_t>(blocks) * sizeof(double);
    return SL_OK;
  }
  slk_cuda_enter(device);
  *args->result = 0;
  if (args->n == 0) return SL_OK;
  double *parts = static_cast<double *>(args->workspace), host[SUM_PARTS], sum = 0;
  LAUNCH(sum_squares_parts, static_cast<unsigned>(blocks), BLOCK, 0, slk_cuda_stream(device), args->x,
         slk_packs(args->n, args->x), args->n, parts);
  SL_TRY(slk_cuda_launched(device, "sum_squares"));
  SL_TRY(slk_cuda_read_host(device, host, parts, static_cast<size_t>(blocks) * sizeof(double)));
  for (int64_t i = 0; i < blocks; i++) sum += host[i];
  *args->result = sum;
  return SL_OK;
}
