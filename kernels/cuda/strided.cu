/* Strided views to contiguous memory and back, and sums into views with repeated elements.
 *
 * Runs that are contiguous on both sides move in units of up to 16 bytes, transposes through tiles of shared memory, so
 * that both sides are read and written in whole lines. */
#include "axes.h"
#include "pack.h"

enum { BLOCK = 256, TILE = 32, TILE_ROWS = 8 };

struct alignas(16) sixteen_bytes {
  uint64_t half[2];
};

/* -- Copies -- */

/* strides[0] of the axes: the strided side. The packed side is the position itself. */
template <typename T, bool WIDE, bool GATHER>
static __global__ void copy_units(slk_axes axes, T *strided, T *packed, int64_t n) {
  SLK_LOOP(i, n) {
    int64_t at, unused;
    slk_axes_offsets<WIDE>(axes, i, &at, &unused);
    if (GATHER) packed[i] = strided[at];
    else strided[at] = packed[i];
  }
}

/* Axis `down` is the tight one of the strided side, axis `across` (the last) of the packed side. */
struct tile_job {
  slk_axes others;          /* the remaining axes, both sides' strides */
  int64_t rows, columns;    /* shape of down and across */
  int64_t tiles_down, tiles_across, tiles;
  int64_t by_across;        /* stride of the strided side along across */
  int64_t by_down;          /* stride of the packed side along down */
};

template <typename T, bool GATHER> static __global__ void copy_tiles(tile_job job, T *strided, T *packed) {
  __shared__ T tile[TILE][TILE + 1];
  int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  for (int64_t t = blockIdx.x; t < job.tiles; t += gridDim.x) {
    int64_t at_strided, at_packed, column = t % job.tiles_across * TILE;
    int64_t row = t / job.tiles_across % job.tiles_down * TILE;
    slk_axes_offsets<true>(job.others, t / job.tiles_across / job.tiles_down, &at_strided, &at_packed);
    T *from = strided + at_strided + row + column * job.by_across;
    T *to = packed + at_packed + row * job.by_down + column;
    int rows = static_cast<int>(job.rows - row < TILE ? job.rows - row : TILE);
    int columns = static_cast<int>(job.columns - column < TILE ? job.columns - column : TILE);
    if (GATHER) {
      for (int c = y; c < columns; c += TILE_ROWS)
        if (x < rows) tile[x][c] = from[x + c * job.by_across];
    } else {
      for (int r = y; r < rows; r += TILE_ROWS)
        if (x < columns) tile[r][x] = to[x + r * job.by_down];
    }
    __syncthreads();
    if (GATHER) {
      for (int r = y; r < rows; r += TILE_ROWS)
        if (x < columns) to[x + r * job.by_down] = tile[r][x];
    } else {
      for (int c = y; c < columns; c += TILE_ROWS)
        if (x < rows) from[x + c * job.by_across] = tile[x][c];
    }
    __syncthreads();
  }
}

struct copy_job {
  slk_view view; /* [0] strided, [1] packed */
  void *strided, *packed;
  size_t size;
  bool gather;
};

template <typename T> static void launch_units(const sl_device *device, const copy_job *job) {
  int64_t n = slk_view_size(&job->view);
  slk_axes axes = slk_axes_of(&job->view, 0, job->view.rank);
  unsigned grid = slk_grid(device, n, BLOCK);
  cudaStream_t stream = slk_cuda_stream(device);
  T *strided = static_cast<T *>(job->strided), *packed = static_cast<T *>(job->packed);
  if (axes.wide && job->gather) LAUNCH((copy_units<T, true, true>), grid, BLOCK, 0, stream, axes, strided, packed, n);
  else if (axes.wide) LAUNCH((copy_units<T, true, false>), grid, BLOCK, 0, stream, axes, strided, packed, n);
  else if (job->gather) LAUNCH((copy_units<T, false, true>), grid, BLOCK, 0, stream, axes, strided, packed, n);
  else LAUNCH((copy_units<T, false, false>), grid, BLOCK, 0, stream, axes, strided, packed, n);
}

template <typename T> static void launch_tiles(const sl_device *device, const copy_job *job, int down) {
  const slk_view *view = &job->view;
  int last = view->rank - 1;
  slk_view others = {};
  for (int i = 0; i < last; i++) {
    if (i == down) continue;
    others.shape[others.rank] = view->shape[i];
    others.strides[0][others.rank] = view->strides[0][i];
    others.strides[1][others.rank++] = view->strides[1][i];
  }
  tile_job tiles = {};
  tiles.others = slk_axes_of(&others, 0, others.rank);
  tiles.rows = view->shape[down], tiles.columns = view->shape[last];
  tiles.tiles_down = slk_ceil_div<int64_t>(tiles.rows, TILE);
  tiles.tiles_across = slk_ceil_div<int64_t>(tiles.columns, TILE);
  tiles.tiles = slk_view_size(&others) * tiles.tiles_down * tiles.tiles_across;
  tiles.by_across = view->strides[0][last], tiles.by_down = view->strides[1][down];
  unsigned grid = slk_grid(device, tiles.tiles, 1);
  dim3 block(TILE, TILE_ROWS);
  T *strided = static_cast<T *>(job->strided), *packed = static_cast<T *>(job->packed);
  if (job->gather) LAUNCH((copy_tiles<T, true>), grid, block, 0, slk_cuda_stream(device), tiles, strided, packed);
  else LAUNCH((copy_tiles<T, false>), grid, block, 0, slk_cuda_stream(device), tiles, strided, packed);
}

/* The axis that is tight on the strided side where the last one is not, both long enough for tiles; or -1. */
static int transposed_axis(const slk_view *view) {
  int last = view->rank - 1;
  if (view->strides[0][last] == 1 || view->shape[last] < TILE_ROWS) return -1;
  for (int i = last - 1; i >= 0; i--)
    if (view->strides[0][i] == 1 && view->shape[i] >= TILE_ROWS) return i;
  return -1;
}

/* Takes two units as one while runs, strides and addresses allow. */
static void widen(copy_job *job) {
  slk_view *view = &job->view;
  int last = view->rank - 1;
  while (job->size < 16 && view->strides[0][last] == 1 && view->shape[last] % 2 == 0) {
    if (!slk_aligned(job->strided, 2 * job->size) || !slk_aligned(job->packed, 2 * job->size)) return;
    for (int i = 0; i < last; i++)
      if (view->strides[0][i] % 2 != 0) return;
    for (int i = 0; i < last; i++) view->strides[0][i] /= 2;
    view->shape[last] /= 2;
    job->size *= 2;
  }
}

static sl_status copy_strided(sl_device *device, copy_job *job, const char *name) {
  slk_view *view = &job->view;
  int64_t n = slk_view_size(view);
  if (n == 0) return SL_OK;
  if (view->rank == 1 && view->strides[0][0] == 1) {
    void *to = job->gather ? job->packed : job->strided;
    const void *from = job->gather ? job->strided : job->packed;
    return slk_cuda_check(device, cudaMemcpyAsync(to, from, static_cast<size_t>(n) * job->size,
                                                  cudaMemcpyDeviceToDevice, slk_cuda_stream(device)), name);
  }
  int down = transposed_axis(view);
  if (down < 0) widen(job);
  switch (job->size) {
#define X(bytes, T)                                        \
  case bytes:                                              \
    if (down >= 0) launch_tiles<T>(device, job, down);     \
    else launch_units<T>(device, job);                     \
    break;
    X(1, uint8_t)
    X(2, uint16_t)
    X(4, uint32_t)
    X(8, uint64_t)
#undef X
  default:
    launch_units<sixteen_bytes>(device, job);
    break;
  }
  return slk_cuda_launched(device, name);
}

static void packed_strides(int rank, const int64_t *shape, int64_t *strides) {
  int64_t step = 1;
  for (int i = rank - 1; i >= 0; i--) {
    strides[i] = step;
    step *= shape[i];
  }
}

extern "C" sl_status slk_cuda_gather_strided(sl_device *device, const sl_gather_strided_args *args) {
  slk_cuda_enter(device);
  int64_t packed[SL_MAX_RANK];
  packed_strides(args->rank, args->shape, packed);
  copy_job job = {};
  job.strided = const_cast<void *>(args->x), job.packed = args->y;
  job.size = args->element_size, job.gather = true;
  slk_view_join(&job.view, args->rank, args->shape, args->strides, packed);
  return copy_strided(device, &job, "gather_strided");
}

/* -- Sums into views -- */

/* y[kept] += sum over the axes of stride 0, taken in a fixed order in float64. kept: strides of y and of x; folded:
 * strides[1] of x. */
struct fold_job {
  slk_axes kept, folded;
  int64_t n_kept, n_folded;
  const float *x;
  float *y;
};

/* One thread for each element of y. */
static __global__ void fold_by_threads(fold_job job) {
  SLK_LOOP(i, job.n_kept) {
    int64_t at_y, at_x, unused, at;
    double sum = 0;
    slk_axes_offsets<true>(job.kept, i, &at_y, &at_x);
    for (int64_t s = 0; s < job.n_folded; s++) {
      slk_axes_offsets<true>(job.folded, s, &unused, &at);
      sum += static_cast<double>(job.x[at_x + at]);
    }
    job.y[at_y] = static_cast<float>(static_cast<double>(job.y[at_y]) + sum);
  }
}

/* One block for each element of y: few elements, or x runs along a folded axis. */
static __global__ void fold_by_blocks(fold_job job) {
  __shared__ double scratch[32];
  for (int64_t i = blockIdx.x; i < job.n_kept; i += gridDim.x) {
    int64_t at_y, at_x, unused, at;
    double sum = 0;
    slk_axes_offsets<true>(job.kept, i, &at_y, &at_x);
    for (int64_t s = threadIdx.x; s < job.n_folded; s += blockDim.x) {
      slk_axes_offsets<true>(job.folded, s, &unused, &at);
      sum += static_cast<double>(job.x[at_x + at]);
    }
    sum = slk_block_sum(sum, scratch);
    if (threadIdx.x == 0) job.y[at_y] = static_cast<float>(static_cast<double>(job.y[at_y]) + sum);
  }
}

static sl_status fold(sl_device *device, const slk_view *view, const sl_scatter_strided_args *args) {
  slk_view parts[2] = {}; /* kept, folded */
  for (int i = 0; i < view->rank; i++) {
    slk_view *part = &parts[view->strides[0][i] == 0];
    part->shape[part->rank] = view->shape[i];
    part->strides[0][part->rank] = view->strides[0][i];
    part->strides[1][part->rank++] = view->strides[1][i];
  }
  fold_job job = {};
  job.kept = slk_axes_of(&parts[0], 0, parts[0].rank);
  job.folded = slk_axes_of(&parts[1], 0, parts[1].rank);
  job.n_kept = slk_view_size(&parts[0]), job.n_folded = slk_view_size(&parts[1]);
  job.x = static_cast<const float *>(args->x), job.y = static_cast<float *>(args->y);
  bool along_last = view->strides[0][view->rank - 1] == 0;
  if (job.n_folded >= SLK_WARP && (along_last || job.n_kept < 1024)) {
    int block = job.n_folded >= BLOCK ? int(BLOCK) : int(SLK_WARP);
    LAUNCH(fold_by_blocks, slk_grid(device, job.n_kept, 1), block, 0, slk_cuda_stream(device), job);
  } else {
    LAUNCH(fold_by_threads, slk_grid(device, job.n_kept, BLOCK), BLOCK, 0, slk_cuda_stream(device), job);
  }
  return slk_cuda_launched(device, "scatter_strided");
}

extern "C" sl_status slk_cuda_scatter_strided(sl_device *device, const sl_scatter_strided_args *args) {
  slk_cuda_enter(device);
  int64_t packed[SL_MAX_RANK];
  packed_strides(args->rank, args->shape, packed);
  copy_job job = {};
  job.strided = args->y, job.packed = const_cast<void *>(args->x);
  job.size = sl_dtype_size(args->dtype);
  slk_view_join(&job.view, args->rank, args->shape, args->strides, packed);
  if (slk_view_size(&job.view) == 0) return SL_OK;
  if (args->accumulate) return fold(device, &job.view, args);
  return copy_strided(device, &job, "scatter_strided");
}
