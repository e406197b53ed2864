/* The k largest entries of each row, by value or by size: a block for each row.
 *
 * Radix select: three passes over the row count how often each group of 11 (11, 10) key bits occurs, from the top, and
 * keep the group in which the k-th largest lies. One more pass, in order of the row, collects what is above the
 * threshold and as many of the equal entries as still fit: the first ones, since ties go by lowest index. Then the k
 * entries are sorted (bitonic). Short rows are sorted whole. Order: rank, ties by lowest index; NaN ranks with
 * -infinity and -0 with 0, as on the CPU. */
#include <math.h>

#include "pack.h"

enum { BINS = 2048, SHORT_ROW = 256, SHARED_SORT = 2048, ITEMS = 4, LAST_SHIFT = 10, MOST_THREADS = 1024 };

/* Larger keys rank first. */
static __device__ __forceinline__ uint32_t key_of(float x, bool absolute) {
  float rank = x != x ? -INFINITY : absolute ? fabsf(x) : x;
  uint32_t bits = __float_as_uint(rank == 0 ? 0.0f : rank);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/* Key and index as one number: of two entries the larger one stands first. */
static __device__ __forceinline__ uint64_t entry_of(uint32_t key, int64_t index) {
  return static_cast<uint64_t>(key) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}
static __device__ __forceinline__ int32_t index_of(uint64_t entry) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(entry));
}

/* What was chosen: entries with (key & mask) > prefix, and the first `equal` ones with (key & mask) == prefix. */
struct threshold {
  uint32_t prefix, mask;
  int64_t equal;
};

struct select_memory {
  uint32_t bins[BINS];
  uint32_t totals[32];
  uint32_t bin, bin_count, above;
};

/* Sum over the threads before this one; one axis of up to 1024. `totals` is free again after the next barrier. */
static __device__ __forceinline__ uint32_t sum_before(uint32_t v, uint32_t *totals, uint32_t *all) {
  int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) / SLK_WARP;
  int warps = static_cast<int>(blockDim.x) / SLK_WARP;
  uint32_t upto = slk_warp_scan(v);
  if (lane == 31) totals[warp] = upto;
  __syncthreads();
  uint32_t total = lane < warps ? totals[lane] : 0, scan = slk_warp_scan(total);
  *all = __shfl_sync(0xffffffffu, scan, 31);
  return upto - v + __shfl_sync(0xffffffffu, scan - total, warp);
}

/* The bin, from the top, in which the wanted entry lies; what lies above it. */
static __device__ __forceinline__ void find_bin(select_memory *memory, int64_t wanted) {
  int each = BINS / static_cast<int>(blockDim.x), top = BINS - 1 - static_cast<int>(threadIdx.x) * each;
  uint32_t mine = 0, all;
  for (int i = 0; i < each; i++) mine += memory->bins[top - i];
  uint32_t above = sum_before(mine, memory->totals, &all);
  for (int i = 0; i < each; i++) {
    uint32_t count = memory->bins[top - i];
    if (above < wanted && wanted <= static_cast<int64_t>(above) + count) {
      memory->bin = static_cast<uint32_t>(top - i);
      memory->bin_count = count;
      memory->above = above;
    }
    above += count;
  }
  __syncthreads();
}

static __device__ __forceinline__ void count_key(const threshold &t, uint32_t key, int shift, uint32_t low_bits,
                                                 select_memory *memory) {
  if ((key & t.mask) == t.prefix) atomicAdd(&memory->bins[key >> shift & low_bits], 1u);
}

/* fours: x can be read 16 bytes at a time. */
static __device__ __forceinline__ threshold select(const float *x, const sl_topk_rows_args &a, bool fours,
                                                   select_memory *memory) {
  const int64_t packs = fours ? a.n / 4 : 0;
  threshold t = { 0, 0, a.k };
  for (int shift = 21; shift >= 0; shift = shift > LAST_SHIFT ? LAST_SHIFT : shift - LAST_SHIFT) {
    const uint32_t low_bits = shift > 0 ? BINS - 1 : (1u << LAST_SHIFT) - 1;
    for (int i = static_cast<int>(threadIdx.x); i < BINS; i += static_cast<int>(blockDim.x)) memory->bins[i] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
      slk_float4 v = slk_load4(x, i);
#pragma unroll
      for (int j = 0; j < 4; j++) count_key(t, key_of(v.at[j], a.absolute), shift, low_bits, memory);
    }
    for (int64_t i = packs * 4 + threadIdx.x; i < a.n; i += blockDim.x)
      count_key(t, key_of(x[i], a.absolute), shift, low_bits, memory);
    __syncthreads();
    find_bin(memory, t.equal);
    t.prefix |= memory->bin << shift;
    t.mask |= low_bits << shift;
    t.equal -= memory->above;
    bool whole = memory->bin_count == t.equal; /* everything in the bin is taken: lower bits do not matter */
    __syncthreads();
    if (whole) break;
  }
  return t;
}

/* Keys of the ITEMS entries from `first` on; beyond the row, a key that no entry has and that counts as neither above
 * nor equal. */
static __device__ __forceinline__ void load_keys(const float *x, const sl_topk_rows_args &a, bool fours, int64_t first,
                                                 float v[ITEMS], uint32_t keys[ITEMS]) {
  slk_float4 four = {};
  if (fours && first < a.n) four = slk_load4(x, first / 4);
#pragma unroll
  for (int j = 0; j < ITEMS; j++) {
    v[j] = fours ? four.at[j] : first + j < a.n ? x[first + j] : 0.0f;
    keys[j] = first + j < a.n ? key_of(v[j], a.absolute) : 0u;
  }
}

/* The entries chosen, in no order that matters: those above first. */
static __device__ __forceinline__ void collect(const float *x, const sl_topk_rows_args &a, const threshold &t,
                                               bool fours, uint32_t *totals, uint64_t *shared, float *values,
                                               int32_t *indices) {
  int64_t n_above = 0, n_equal = 0, most_above = a.k - t.equal;
  for (int64_t from = 0; from < a.n && (n_above < most_above || n_equal < t.equal);
       from += static_cast<int64_t>(ITEMS) * blockDim.x) {
    int64_t first = from + static_cast<int64_t>(ITEMS) * threadIdx.x;
    float v[ITEMS];
    uint32_t keys[ITEMS], count = 0, all; /* count: above in the low half, equal in the high half */
    load_keys(x, a, fours, first, v, keys);
#pragma unroll
    for (int j = 0; j < ITEMS; j++)
      count += (keys[j] & t.mask) > t.prefix ? 1u : (keys[j] & t.mask) == t.prefix ? 0x10000u : 0u;
    uint32_t before = sum_before(count, totals, &all);
    int64_t at_above = n_above + (before & 0xffffu), at_equal = n_equal + (before >> 16);
#pragma unroll
    for (int j = 0; j < ITEMS; j++) {
      uint32_t key = keys[j] & t.mask;
      bool above = key > t.prefix, equal = key == t.prefix && at_equal < t.equal;
      int64_t at = above ? at_above : most_above + at_equal;
      if (above || equal) {
        if (shared != nullptr) shared[at] = entry_of(keys[j], first + j);
        else values[at] = v[j], indices[at] = static_cast<int32_t>(first + j);
      }
      at_above += above;
      at_equal += key == t.prefix;
    }
    n_above += all & 0xffffu;
    n_equal += all >> 16;
    __syncthreads();
  }
}

/* Two places of what is sorted: either entries in shared memory or values and indices in global memory. */
static __device__ __forceinline__ void order_two(uint64_t *shared, float *values, int32_t *indices, bool absolute,
                                                 int64_t a, int64_t b) {
  if (shared != nullptr) {
    uint64_t one = shared[a], two = shared[b];
    if (two > one) shared[a] = two, shared[b] = one;
    return;
  }
  float value_a = values[a], value_b = values[b];
  int32_t index_a = indices[a], index_b = indices[b];
  if (entry_of(key_of(value_b, absolute), index_b) > entry_of(key_of(value_a, absolute), index_a)) {
    values[a] = value_b, values[b] = value_a;
    indices[a] = index_b, indices[b] = index_a;
  }
}

/* Bitonic sort of any number of entries, largest first, by the whole block. The first step of a stage mirrors, so that
 * all comparisons point the same way and places from n on act as entries that stand last already. */
static __device__ __forceinline__ void sort_entries(uint64_t *shared, float *values, int32_t *indices, bool absolute,
                                                    int64_t n) {
  int64_t pairs = 1;
  while (2 * pairs < n) pairs *= 2;
  for (int64_t size = 2; size / 2 < n; size *= 2) {
    for (int64_t half = size / 2; half > 0; half /= 2) {
      for (int64_t i = threadIdx.x; i < pairs; i += blockDim.x) {
        int64_t base = i / half * 2 * half, at = i % half;
        int64_t a = base + at, b = half == size / 2 ? base + size - 1 - at : a + half;
        if (b < n) order_two(shared, values, indices, absolute, a, b);
      }
      __syncthreads();
    }
  }
}

static __global__ void __launch_bounds__(MOST_THREADS) topk_kernel(sl_topk_rows_args a, bool fours) {
  __shared__ select_memory memory;
  DYN_SHARED(uint64_t, entries);
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const float *x = a.x + row * a.n;
    float *values = a.values + row * a.k;
    int32_t *indices = a.indices + row * a.k;
    bool whole = a.n <= SHORT_ROW;
    uint64_t *shared = whole || a.k <= SHARED_SORT ? entries : nullptr;
    if (whole) {
      for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x) entries[i] = entry_of(key_of(x[i], a.absolute), i);
    } else {
      threshold t = select(x, a, fours, &memory);
      collect(x, a, t, fours, memory.totals, shared, values, indices);
    }
    __syncthreads();
    sort_entries(shared, values, indices, a.absolute, whole ? a.n : a.k);
    for (int64_t i = threadIdx.x; i < a.k && shared != nullptr; i += blockDim.x) {
      int32_t index = index_of(shared[i]);
      values[i] = x[index];
      indices[i] = index;
    }
    __syncthreads();
  }
}

extern "C" sl_status slk_cuda_topk_rows(sl_device *device, const sl_topk_rows_args *args) {
  slk_cuda_enter(device);
  if (args->rows * args->k == 0) return SL_OK;
  int block = args->n <= SHORT_ROW ? 128 : args->n <= 4096 ? 256 : args->n < 65536 ? 512 : int(MOST_THREADS);
  int64_t entries = args->n <= SHORT_ROW ? args->n : args->k <= SHARED_SORT ? args->k : 0;
  LAUNCH(topk_kernel, slk_grid(device, args->rows, 1), block, static_cast<size_t>(entries) * sizeof(uint64_t),
         slk_cuda_stream(device), *args, args->n % 4 == 0 && slk_packs(4, args->x) == 1);
  return slk_cuda_launched(device, "topk_rows");
}
