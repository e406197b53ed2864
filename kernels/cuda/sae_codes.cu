/* SAE kernels on codes: prefix by rank, matrix, inverse index, plain decoding, bookkeeping of what fired. */
#include <cuda_bf16.h>

#include "lib.h"
#include "sae_cuda.h"
#include "sae_rows.h"

enum { ROW_WARPS = 8, THREADS = 256 };

static __device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % SLK_WARP; }

/* The row of this warp in a grid of blocks with ROW_WARPS warps. */
static __device__ __forceinline__ int64_t warp_row() {
  return static_cast<int64_t>(blockIdx.x) * ROW_WARPS + threadIdx.x / SLK_WARP;
}
static inline unsigned warp_blocks(int64_t rows) {
  return static_cast<unsigned>(slk_ceil_div<int64_t>(rows, ROW_WARPS));
}

/* -- Prefix -- */

/* Entries of a row whose bits are >= bound, counted by a warp. Values are positive: their bits are ordered. */
static __device__ int64_t count_from(const float *values, int64_t n, int bound) {
  int count = 0;
  for (int64_t i = lane_id(); i < n; i += SLK_WARP) count += __float_as_int(values[i]) >= bound;
  return slk_warp_sum(count);
}

/* One warp a row: bisects for the bits of the k-th value, then copies in order. */
static __global__ void __launch_bounds__(ROW_WARPS * SLK_WARP) prefix_kernel(sl_codes_view in, sl_codes_view out,
                                                                             int64_t k) {
  int64_t row = warp_row();
  if (row >= in.rows) return;
  int64_t begin = in.offsets[row], n = in.offsets[row + 1] - begin, at = out.offsets[row];
  const float *values = in.values + begin;
  int bound = 0;
  int64_t ties = 0;
  if (n > k) {
    int low = 0, high = INT32_MAX; /* count_from(low) >= k, count_from(high) < k */
    while (high - low > 1) {
      int middle = low + (high - low) / 2;
      if (count_from(values, n, middle) >= k) low = middle;
      else high = middle;
    }
    bound = low;
    ties = k - count_from(values, n, high);
  }
  unsigned before = (1u << lane_id()) - 1;
  for (int64_t start = 0; start < n; start += SLK_WARP) {
    int64_t i = start + lane_id();
    int bits = i < n ? __float_as_int(values[i]) : -1;
    bool over = i < n && bits >= bound + (n > k), tie = n > k && bits == bound;
    unsigned overs = __ballot_sync(0xffffffffu, over), equals = __ballot_sync(0xffffffffu, tie);
    int64_t rank = __popc(equals & before), room = __popc(equals) < ties ? __popc(equals) : ties;
    if (over || (tie && rank < ties)) {
      int64_t to = at + __popc(overs & before) + (rank < ties ? rank : ties);
      out.values[to] = values[i];
      out.ids[to] = in.ids[begin + i];
    }
    at += __popc(overs) + room;
    ties -= room;
  }
}

sl_status slk_cuda_sae_codes_prefix(sl_device *device, const sl_sae_codes_prefix_args *args) {
  slk_cuda_enter(device);
  int64_t rows = args->codes.rows;
  sae_cutter cutter = { static_cast<char *>(args->workspace), 0 };
  int64_t *lengths = cutter.cut<int64_t>(rows);
  if (args->need != nullptr) {
    *args->need = cutter.used;
    return SL_OK;
  }
  if (args->workspace_bytes < cutter.used)
    return sae_short_workspace("sae_codes_prefix", args->workspace_bytes, cutter.used);
  if (rows == 0) return SL_OK;
  cudaStream_t stream = slk_cuda_stream(device);
  LAUNCH((sae_lengths_kernel), slk_grid(device, rows, THREADS), THREADS, 0, stream, args->codes.offsets, rows, args->k,
         lengths);
  sae_rows_out rows_out = {};
  rows_out.lengths = lengths;
  rows_out.offsets = args->out.offsets;
  LAUNCH((sae_offsets_kernel), 1, SAE_OFFSETS_THREADS, 0, stream, rows_out, sae_rows_out(), rows);
  LAUNCH((prefix_kernel), warp_blocks(rows), ROW_WARPS * SLK_WARP, 0, stream, args->codes, args->out, args->k);
  return slk_cuda_launched(device, "sae_codes_prefix");
}

/* -- Matrix -- */

static __global__ void __launch_bounds__(ROW_WARPS * SLK_WARP) dense_kernel(sl_codes_view codes, float *y) {
  int64_t row = warp_row();
  if (row >= codes.rows) return;
  for (int64_t p = codes.offsets[row] + lane_id(); p < codes.offsets[row + 1]; p += SLK_WARP)
    y[row * codes.n_latents + codes.ids[p]] = codes.values[p];
}

sl_status slk_cuda_sae_codes_dense(sl_device *device, const sl_sae_codes_dense_args *args) {
  slk_cuda_enter(device);
  const sl_codes_view *codes = &args->codes;
  if (codes->rows == 0) return SL_OK;
  cudaStream_t stream = slk_cuda_stream(device);
  size_t bytes = static_cast<size_t>(codes->rows * codes->n_latents) * sizeof(float);
  SL_TRY(slk_cuda_check(device, cudaMemsetAsync(args->y, 0, bytes, stream), "sae_codes_dense"));
  LAUNCH((dense_kernel), warp_blocks(codes->rows), ROW_WARPS * SLK_WARP, 0, stream, *codes, args->y);
  return slk_cuda_launched(device, "sae_codes_dense");
}

/* -- Inverse index --
 *
 * A stable sort of the entries by latent. How many entries there are is known on the device only, so `most` are
 * sorted: those that are not there have the key n_latents and end up behind the others. */

/* keys[p] = latent, rows[p] = row, places[p] = p; from the end of the entries on, padding. */
static __global__ void __launch_bounds__(ROW_WARPS * SLK_WARP)
    expand_kernel(sl_codes_view codes, int64_t most, uint32_t *keys, uint32_t *places, int32_t *rows) {
  int64_t base = codes.offsets[0], row = warp_row(), entries = codes.offsets[codes.rows] - base;
  if (row < codes.rows) {
    for (int64_t p = codes.offsets[row] + lane_id(); p < codes.offsets[row + 1]; p += SLK_WARP) {
      keys[p - base] = static_cast<uint32_t>(codes.ids[p]);
      rows[p - base] = static_cast<int32_t>(row);
      places[p - base] = static_cast<uint32_t>(p - base);
    }
  }
  int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t p = entries + static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; p < most; p += step) {
    keys[p] = static_cast<uint32_t>(codes.n_latents);
    places[p] = 0;
  }
}

/* Tokens and values in the new order; where each latent starts, found by bisection: a latent that owns nothing, or
 * everything, costs no more than another. */
static __global__ void __launch_bounds__(THREADS)
    gather_kernel(sl_codes_view codes, sl_codes_index index, const uint32_t *keys, const uint32_t *places,
                  const int32_t *rows) {
  int64_t base = codes.offsets[0], entries = codes.offsets[codes.rows] - base, m = codes.n_latents;
  SLK_LOOP(p, entries > m + 1 ? entries : m + 1) {
    if (p < entries) {
      uint32_t place = places[p];
      index.tokens[p] = rows[place];
      index.values[p] = codes.values[base + place];
    }
    if (p > m) continue;
    int64_t low = 0, high = entries;
    while (low < high) {
      int64_t middle = (low + high) / 2;
      if (static_cast<int64_t>(keys[middle]) < p) low = middle + 1;
      else high = middle;
    }
    index.offsets[p] = low;
  }
}

sl_status slk_cuda_sae_index_codes(sl_device *device, const sl_sae_index_codes_args *args) {
  slk_cuda_enter(device);
  int64_t most = args->most, m = args->codes.n_latents, rows = args->codes.rows;
  int bits = 1;
  while (m >> bits > 0) bits++;
  sae_cutter cutter = { static_cast<char *>(args->workspace), 0 };
  uint32_t *keys = cutter.cut<uint32_t>(most), *sorted_keys = cutter.cut<uint32_t>(most);
  uint32_t *places = cutter.cut<uint32_t>(most), *sorted_places = cutter.cut<uint32_t>(most);
  int32_t *row_of = cutter.cut<int32_t>(most);
  size_t sort_bytes = 0;
  if (most > 0)
    SL_TRY(slk_lib_sort_pairs(device, nullptr, &sort_bytes, { nullptr, nullptr, nullptr, nullptr, most, bits }));
  char *sort_work = cutter.cut<char>(static_cast<int64_t>(sort_bytes));
  if (args->need != nullptr) {
    *args->need = cutter.used;
    return SL_OK;
  }
  if (args->workspace_bytes < cutter.used)
    return sae_short_workspace("sae_index_codes", args->workspace_bytes, cutter.used);
  cudaStream_t stream = slk_cuda_stream(device);
  if (most > 0) {
    LAUNCH((expand_kernel), warp_blocks(rows > 0 ? rows : 1), ROW_WARPS * SLK_WARP, 0, stream, args->codes, most, keys,
           places, row_of);
    SL_TRY(slk_lib_sort_pairs(device, sort_work, &sort_bytes,
                              { keys, sorted_keys, places, sorted_places, most, bits }));
  }
  LAUNCH((gather_kernel), slk_grid(device, most > m ? most : m + 1, THREADS), THREADS, 0, stream, args->codes,
         args->index, sorted_keys, sorted_places, row_of);
  return slk_cuda_launched(device, "sae_index_codes");
}

/* -- Decoding -- */

/* One block a row and stretch of columns; entries in order, as on the CPU. */
template <int WIDTH> static __global__ void __launch_bounds__(THREADS) decode_kernel(sl_sae_decode_args a) {
  int64_t row = blockIdx.x, d = a.d;
  int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * WIDTH;
  if (column >= d) return;
  slk_pack<float, WIDTH> y = {};
  if (a.b_dec != nullptr) y = sae_load<WIDTH>(a.b_dec, column);
  int64_t end = a.codes.offsets[row + 1];
#pragma unroll 4
  for (int64_t p = a.codes.offsets[row]; p < end; p++) {
    float value = a.codes.values[p];
    slk_pack<float, WIDTH> w = sae_load<WIDTH>(a.w_dec, a.codes.ids[p] * d + column);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) y.at[i] += value * w.at[i];
  }
  sae_store<WIDTH>(a.y, row * d + column, y);
}

sl_status slk_cuda_sae_decode(sl_device *device, const sl_sae_decode_args *args) {
  slk_cuda_enter(device);
  if (args->codes.rows == 0 || args->d == 0) return SL_OK;
  int width = sae_width(args->d, args->w_dec, args->b_dec, args->y);
  int64_t packs = args->d / width;
  int threads = sae_threads(packs, THREADS);
  dim3 grid(static_cast<unsigned>(args->codes.rows), static_cast<unsigned>(slk_ceil_div<int64_t>(packs, threads)));
  if (width == 4) LAUNCH((decode_kernel<4>), grid, threads, 0, slk_cuda_stream(device), *args);
  else LAUNCH((decode_kernel<1>), grid, threads, 0, slk_cuda_stream(device), *args);
  return slk_cuda_launched(device, "sae_decode");
}

/* -- Bookkeeping -- */

static __global__ void __launch_bounds__(THREADS) fired_kernel(sl_sae_note_fired_args a) {
  SLK_LOOP(i, a.m) {
    int64_t entries = a.offsets[i + 1] - a.offsets[i];
    a.since[i] = entries > 0 ? 0 : a.since[i] + a.tokens;
    a.counts[i] += entries;
  }
}

sl_status slk_cuda_sae_note_fired(sl_device *device, const sl_sae_note_fired_args *args) {
  slk_cuda_enter(device);
  LAUNCH((fired_kernel), slk_grid(device, args->m, THREADS), THREADS, 0, slk_cuda_stream(device), *args);
  return slk_cuda_launched(device, "sae_note_fired");
}

static __global__ void __launch_bounds__(THREADS) mask_kernel(sl_sae_mask_args a) {
  int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int count = 0;
  for (int64_t start = first; start < a.m; start += step) { /* the same for all threads: they count together */
    int64_t i = start + threadIdx.x;
    bool beyond = i < a.m && (a.below ? a.value[i] < a.bound : a.value[i] > a.bound);
    if (i < a.m && a.mask != nullptr) a.mask[i] = beyond;
    count += __syncthreads_count(beyond);
  }
  if (threadIdx.x == 0 && a.count != nullptr && count > 0)
    atomicAdd(reinterpret_cast<unsigned long long *>(a.count), static_cast<unsigned long long>(count));
}

sl_status slk_cuda_sae_mask(sl_device *device, const sl_sae_mask_args *args) {
  slk_cuda_enter(device);
  cudaStream_t stream = slk_cuda_stream(device);
  if (args->count != nullptr)
    SL_TRY(slk_cuda_check(device, cudaMemsetAsync(args->count, 0, sizeof *args->count, stream), "sae_mask"));
  if (args->m == 0) return SL_OK;
  LAUNCH((mask_kernel), slk_grid(device, args->m, THREADS), THREADS, 0, stream, *args);
  return slk_cuda_launched(device, "sae_mask");
}
