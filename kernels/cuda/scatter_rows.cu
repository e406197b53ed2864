/* Rows and entries added by id, in a fixed order without atomics: gradients of embeddings and of sparse codes'
 * matrices, positions along an axis.
 *
 * Ids are sorted (stably, so equal ids keep their order) and the sorted entries cut into chunks of 32. A block adds up
 * the runs of equal ids that begin in its chunk; the front of a chunk that belongs to an older run goes to a partial
 * row of its own. A second launch adds the partial rows of each run to where it began. So the work is even however
 * often an id repeats, and the sums are the same in every run. */
#include "lib.h"
#include "pack.h"

enum { BLOCK = 256, CHUNK = 32, COLUMN_THREADS = 128, FEW = 8 };

/* target[ids[e]] += weight[e] * rows[e / per_row], entries e in order. */
struct add_job {
  const int32_t *ids;
  const float *rows, *weights; /* weights NULL: 1 */
  float *target;
  int64_t entries, per_row, n;
  int bits; /* of the largest id */
};

/* The workspace, in pieces at 256-byte borders. */
struct add_work {
  uint32_t *order, *sorted_ids, *sorted_entries;
  float *partials; /* [chunks, n] */
  void *sort;
  size_t sort_bytes, bytes;
};

static size_t cut(size_t *at, size_t bytes) {
  size_t from = *at;
  *at += (bytes + 255) / 256 * 256;
  return from;
}

static sl_status plan_work(sl_device *device, const add_job *job, void *base, add_work *work) {
  size_t at = 0, entries = static_cast<size_t>(job->entries), sort = 0;
  size_t chunks = (entries + CHUNK - 1) / CHUNK;
  char *start = static_cast<char *>(base);
  SL_TRY(slk_lib_sort_pairs(device, NULL, &sort, { NULL, NULL, NULL, NULL, job->entries, job->bits }));
  size_t order = cut(&at, entries * sizeof(uint32_t)), ids = cut(&at, entries * sizeof(uint32_t));
  size_t sorted = cut(&at, entries * sizeof(uint32_t));
  size_t partials = cut(&at, chunks * static_cast<size_t>(job->n) * sizeof(float)), scratch = cut(&at, sort);
  work->sort_bytes = sort, work->bytes = at;
  if (base == NULL) return SL_OK;
  work->order = reinterpret_cast<uint32_t *>(start + order);
  work->sorted_ids = reinterpret_cast<uint32_t *>(start + ids);
  work->sorted_entries = reinterpret_cast<uint32_t *>(start + sorted);
  work->partials = reinterpret_cast<float *>(start + partials);
  work->sort = start + scratch;
  return SL_OK;
}

static __global__ void count_up(uint32_t *order, int64_t n) { SLK_LOOP(i, n) order[i] = static_cast<uint32_t>(i); }

/* The columns' sums over one chunk. blockIdx.x: chunk and tile of columns. */
static __global__ void add_chunks(add_job job, add_work work, int64_t tiles) {
  __shared__ uint32_t ids[CHUNK + 1]; /* ids[0]: the one before the chunk */
  __shared__ int64_t rows[CHUNK];
  __shared__ float weights[CHUNK];
  int t = static_cast<int>(threadIdx.x);
  int64_t chunk = blockIdx.x / tiles, from = chunk * CHUNK, column = blockIdx.x % tiles * COLUMN_THREADS + t;
  int count = static_cast<int>(job.entries - from < CHUNK ? job.entries - from : CHUNK);
  if (t < count) {
    uint32_t entry = work.sorted_entries[from + t];
    ids[t + 1] = work.sorted_ids[from + t];
    rows[t] = entry / job.per_row;
    weights[t] = job.weights != nullptr ? job.weights[entry] : 1.0f;
  }
  if (t == 0) ids[0] = from > 0 ? work.sorted_ids[from - 1] : 0xffffffffu; /* no id is that large */
  __syncthreads();
  if (column >= job.n) return;
  bool older = ids[0] == ids[1]; /* the run at the front began in an earlier chunk */
  float *to = older ? work.partials + chunk * job.n + column : nullptr, sum = 0;
#pragma unroll 4
  for (int i = 0; i < count; i++) {
    float value = weights[i] == 0 ? 0.0f : job.rows[rows[i] * job.n + column];
    if (ids[i + 1] != ids[i]) { /* a run begins */
      if (to != nullptr) *to = sum;
      to = job.target + ids[i + 1] * job.n + column;
      sum = *to;
    }
    if (weights[i] != 0) sum += weights[i] * value;
  }
  *to = sum;
}

/* The last chunk from `low` on whose first id is `id`; low - 1 where even its own is not. */
static __device__ __forceinline__ int64_t last_chunk_of(const uint32_t *ids, uint32_t id, int64_t low, int64_t chunks) {
  int64_t last = low - 1, high = chunks;
  while (last + 1 < high) {
    int64_t middle = last + (high - last) / 2;
    if (ids[middle * CHUNK] == id) last = middle;
    else high = middle;
  }
  return last;
}

/* Where the last run of a chunk began in it and goes on: the partial rows of the chunks after it. */
static __global__ void add_partials(add_job job, add_work work, int64_t chunks) {
  for (int64_t chunk = blockIdx.x; chunk + 1 < chunks; chunk += gridDim.x) {
    int64_t from = chunk * CHUNK;
    uint32_t id = work.sorted_ids[from + CHUNK - 1];
    bool began_here = from == 0 || work.sorted_ids[from - 1] != id;
    if (!began_here || work.sorted_ids[from + CHUNK] != id) continue;
    int64_t last = last_chunk_of(work.sorted_ids, id, chunk + 1, chunks);
    for (int64_t column = threadIdx.x; column < job.n; column += blockDim.x) {
      float *to = job.target + id * job.n + column, sum = *to;
#pragma unroll 4
      for (int64_t c = chunk + 1; c <= last; c++) sum += work.partials[c * job.n + column];
      *to = sum;
    }
  }
}

static int bits_of(int64_t ids) {
  int bits = 1;
  while (bits < 32 && (static_cast<int64_t>(1) << bits) < ids) bits++;
  return bits;
}

static sl_status add_rows(sl_device *device, const add_job *job, void *workspace) {
  add_work work;
  cudaStream_t stream = slk_cuda_stream(device);
  if (job->entries == 0 || job->n == 0) return SL_OK;
  SL_TRY(plan_work(device, job, workspace, &work));
  LAUNCH(count_up, slk_grid(device, job->entries, BLOCK), BLOCK, 0, stream, work.order, job->entries);
  SL_TRY(slk_cuda_launched(device, "count_up"));
  SL_TRY(slk_lib_sort_pairs(device, work.sort, &work.sort_bytes,
                            { reinterpret_cast<const uint32_t *>(job->ids), work.sorted_ids, work.order,
                              work.sorted_entries, job->entries, job->bits }));
  int64_t chunks = slk_ceil_div<int64_t>(job->entries, CHUNK), tiles = slk_ceil_div<int64_t>(job->n, COLUMN_THREADS);
  LAUNCH(add_chunks, static_cast<unsigned>(chunks * tiles), COLUMN_THREADS, 0, stream, *job, work, tiles);
  LAUNCH(add_partials, slk_grid(device, chunks, 1), BLOCK, 0, stream, *job, work, chunks);
  return SL_OK;
}

extern "C" sl_status slk_cuda_embedding_backward(sl_device *device, const sl_embedding_backward_args *args) {
  add_job job = { args->ids, args->dy, nullptr, args->dtable, args->rows, 1, args->n, bits_of(args->table_rows) };
  add_work work = {};
  slk_cuda_enter(device);
  if (args->need != NULL) {
    SL_TRY(plan_work(device, &job, NULL, &work));
    *args->need = work.bytes;
    return SL_OK;
  }
  SL_TRY(add_rows(device, &job, args->workspace));
  return slk_cuda_launched(device, "embedding_backward");
}

/* -- Sparse codes -- */

/* dvalues[t, j] = dy[t] . W[indices[t, j]]: a warp for each entry, the warps of a block share a row of dy. */
static __global__ void sparse_dots(sl_sparse_rows_backward_args a, bool fours) {
  int lane = static_cast<int>(threadIdx.x);
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const float *dy = a.dy + row * a.n;
    for (int64_t j = threadIdx.y; j < a.k; j += blockDim.y) {
      const float *w = a.weight + static_cast<int64_t>(a.indices[row * a.k + j]) * a.n;
      int64_t packs = fours ? a.n / 4 : 0;
      float sum = 0;
#pragma unroll 2
      for (int64_t i = lane; i < packs; i += SLK_WARP) {
        slk_float4 x = slk_load4(dy, i), y = slk_load4(w, i);
        sum += (x.at[0] * y.at[0] + x.at[1] * y.at[1]) + (x.at[2] * y.at[2] + x.at[3] * y.at[3]);
      }
      for (int64_t i = packs * 4 + lane; i < a.n; i += SLK_WARP) sum += dy[i] * w[i];
      sum = slk_warp_sum(sum);
      if (lane == 0) a.dvalues[row * a.k + j] = sum;
    }
  }
}

extern "C" sl_status slk_cuda_sparse_rows_backward(sl_device *device, const sl_sparse_rows_backward_args *args) {
  add_job job = { args->indices, args->dy, args->values, args->dweight, args->rows * args->k, args->k, args->n,
                  bits_of(args->latents) };
  add_work work = {};
  slk_cuda_enter(device);
  if (args->need != NULL) {
    if (args->dweight != NULL) SL_TRY(plan_work(device, &job, NULL, &work));
    *args->need = work.bytes;
    return SL_OK;
  }
  if (args->dvalues != NULL && args->rows * args->k > 0) {
    bool fours = args->n % 4 == 0 && slk_packs(4, args->dy, args->weight) == 1;
    LAUNCH(sparse_dots, slk_grid(device, args->rows, 1), dim3(SLK_WARP, FEW), 0, slk_cuda_stream(device), *args, fours);
  }
  if (args->dweight != NULL) SL_TRY(add_rows(device, &job, args->workspace));
  return slk_cuda_launched(device, "sparse_rows_backward");
}

/* -- Positions along an axis -- */

/* One thread for each (outer, inner): positions may repeat, it takes them in order. */
static __global__ void scatter_by_threads(sl_scatter_axis_args a) {
  SLK_LOOP(at, a.outer * a.inner) {
    int64_t outer = at / a.inner, i = at % a.inner;
    for (int64_t j = 0; j < a.k; j++) {
      int64_t from = (outer * a.k + j) * a.inner + i;
      a.dx[(outer * a.n + a.index[from]) * a.inner + i] += a.dy[from];
    }
  }
}

/* inner 1: a warp for each row, 32 entries at a time. Lanes with the same position all take the sum of their group in
 * the order of the entries; the lowest of them writes it. */
static __global__ void scatter_by_warps(sl_scatter_axis_args a) {
  int lane = static_cast<int>(threadIdx.x);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * FEW + threadIdx.y; row < a.outer;
       row += static_cast<int64_t>(gridDim.x) * FEW) {
    float *dx = a.dx + row * a.n;
    for (int64_t from = 0; from < a.k; from += SLK_WARP) {
      bool mine = from + lane < a.k;
      int32_t index = mine ? a.index[row * a.k + from + lane] : -1;
      float value = mine ? a.dy[row * a.k + from + lane] : 0.0f, sum = mine ? dx[index] : 0.0f;
      bool first = mine;
      for (int other = 0; other < SLK_WARP; other++) {
        int32_t other_index = __shfl_sync(0xffffffffu, index, other);
        float other_value = __shfl_sync(0xffffffffu, value, other);
        if (other_index != index) continue;
        sum += other_value;
        first = first && other >= lane;
      }
      __syncwarp(); /* everybody has read */
      if (first) dx[index] = sum;
      __syncwarp();
    }
  }
}

extern "C" sl_status slk_cuda_scatter_axis(sl_device *device, const sl_scatter_axis_args *args) {
  slk_cuda_enter(device);
  if (args->outer * args->k * args->inner == 0) return SL_OK;
  cudaStream_t stream = slk_cuda_stream(device);
  if (args->inner == 1 && args->k >= FEW) {
    LAUNCH(scatter_by_warps, slk_grid(device, args->outer, FEW), dim3(SLK_WARP, FEW), 0, stream, *args);
  } else {
    LAUNCH(scatter_by_threads, slk_grid(device, args->outer * args->inner, BLOCK), BLOCK, 0, stream, *args);
  }
  return slk_cuda_launched(device, "scatter_axis");
}
