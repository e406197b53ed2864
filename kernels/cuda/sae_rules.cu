/* SAE kernels: BatchTopK's choice among the candidates of all tokens, and the running threshold that follows it.
 *
 * The bound is found by three digits of a radix selection (11 bits each; histograms of integers, so their order does not
 * matter); then rows are measured, ties going to the first rows, and copied in order. */
#include <cuda_bf16.h>

#include "sae_cuda.h"
#include "kernels/sae_numbers.h"

enum { BINS = 2048, DIGIT_BITS = 11, DIGITS = 3, THREADS = 256, SCAN_THREADS = 1024, SCAN_WARPS = SCAN_THREADS / SLK_WARP };

struct batch_state {
  uint32_t bound;                /* the digits found so far, then the bits of the least value kept */
  int64_t rank;                  /* of the value searched for among those that share these digits; in the end: ties kept */
};

struct batch_job {
  sl_sae_batch_select_args a;
  batch_state *state;
  unsigned *bins;                /* [DIGITS, BINS] */
  int32_t *above, *ties;         /* [rows]: entries above the bound; equal to it, then those of them that are kept */
};

static __device__ __forceinline__ int64_t batch_entries(const sl_codes_view &codes) {
  return codes.offsets[codes.rows] - codes.offsets[0];
}

static __global__ void begin_kernel(batch_job job) {
  int64_t entries = batch_entries(job.a.codes);
  *job.state = batch_state{ 0, entries < job.a.keep ? entries : job.a.keep };
}

/* Values are positive, so their bits are in order and 33 bits of digits hold them: the first digit has two bits to
 * spare at its top. */
static __global__ void __launch_bounds__(THREADS) count_kernel(batch_job job, int digit) {
  __shared__ unsigned bins[BINS];
  const sl_codes_view &codes = job.a.codes;
  for (int b = static_cast<int>(threadIdx.x); b < BINS; b += THREADS) bins[b] = 0;
  __syncthreads();
  int shift = (DIGITS - 1 - digit) * DIGIT_BITS;
  uint64_t found = job.state->bound;
  const float *values = codes.values + codes.offsets[0];
  SLK_LOOP(i, batch_entries(codes)) {
    uint64_t bits = __float_as_uint(values[i]);
    if (bits >> (shift + DIGIT_BITS) == found) atomicAdd(&bins[bits >> shift & (BINS - 1)], 1u);
  }
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < BINS; b += THREADS) {
    if (bins[b] > 0) atomicAdd(&job.bins[digit * BINS + b], bins[b]);
  }
}

/* Inclusive prefix sum over the block and the total; one barrier, `totals` by turns. */
static __device__ __forceinline__ int64_t batch_scan(int64_t v, int64_t (*totals)[SCAN_WARPS], int *turn, int64_t *total) {
  int lane = static_cast<int>(threadIdx.x) % SLK_WARP, warp = static_cast<int>(threadIdx.x) / SLK_WARP;
  int64_t upto = slk_warp_scan(v), before = 0, all = 0;
  if (lane == SLK_WARP - 1) totals[*turn][warp] = upto;
  __syncthreads();
  for (int w = 0; w < SCAN_WARPS; w++) {
    before += w < warp ? totals[*turn][w] : 0;
    all += totals[*turn][w];
  }
  *turn ^= 1;
  *total = all;
  return before + upto;
}

/* The bin that holds the rank-th value, counted from the top: two bins a thread. */
static __global__ void __launch_bounds__(SCAN_THREADS) pick_kernel(batch_job job, int digit) {
  __shared__ int64_t totals[2][SCAN_WARPS];
  int turn = 0, high = BINS - 1 - 2 * static_cast<int>(threadIdx.x);
  const unsigned *bins = job.bins + digit * BINS;
  int64_t first = bins[high], second = bins[high - 1], total, rank = job.state->rank;
  int64_t upto = batch_scan(first + second, totals, &turn, &total), before = upto - first - second;
  if (before >= rank || upto < rank) return; /* rank 0 finds nobody */
  bool second_bin = before + first < rank;
  job.state->bound = job.state->bound << DIGIT_BITS | static_cast<uint32_t>(second_bin ? high - 1 : high);
  job.state->rank = rank - before - (second_bin ? first : 0);
}

static __device__ __forceinline__ int64_t warp_row() {
  return (static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) / SLK_WARP;
}

/* A warp a row. */
static __global__ void __launch_bounds__(THREADS) measure_kernel(batch_job job) {
  const sl_codes_view &codes = job.a.codes;
  int64_t row = warp_row();
  if (row >= codes.rows) return;
  uint32_t bound = job.state->bound;
  int above = 0, equal = 0;
  for (int64_t p = codes.offsets[row] + threadIdx.x % SLK_WARP; p < codes.offsets[row + 1]; p += SLK_WARP) {
    uint32_t bits = __float_as_uint(codes.values[p]);
    above += bits > bound;
    equal += bits == bound;
  }
  above = slk_warp_sum(above);
  equal = slk_warp_sum(equal);
  if (threadIdx.x % SLK_WARP == 0) job.above[row] = above, job.ties[row] = equal;
}

/* Offsets of the kept rows; ties go to the first rows. One block. */
static __global__ void __launch_bounds__(SCAN_THREADS) offsets_kernel(batch_job job) {
  __shared__ int64_t totals[2][SCAN_WARPS];
  const sl_sae_batch_select_args &a = job.a;
  int turn = 0;
  int64_t at = a.out.offsets[0], left = job.state->rank, crowded = 0, rows = a.codes.rows;
  for (int64_t start = 0; start < rows; start += SCAN_THREADS) {
    int64_t r = start + threadIdx.x, equal = r < rows ? job.ties[r] : 0, above = r < rows ? job.above[r] : 0, total;
    int64_t before = batch_scan(equal, totals, &turn, &total) - equal, ties = left > before ? left - before : 0;
    if (ties > equal) ties = equal;
    left = left > total ? left - total : 0;
    int64_t upto = batch_scan(above + ties, totals, &turn, &total);
    if (r < rows) {
      job.ties[r] = static_cast<int32_t>(ties);
      a.out.offsets[r + 1] = at + upto;
      int64_t kept = above + ties;
      crowded += a.room > 0 && kept == a.room && kept == a.codes.offsets[r + 1] - a.codes.offsets[r];
    }
    at += total;
  }
  int64_t all;
  (void)batch_scan(crowded, totals, &turn, &all);
  if (threadIdx.x != 0) return;
  *a.crowded = all;
  *a.smallest = static_cast<double>(__uint_as_float(job.state->bound));
}

/* A warp a row, in order. */
static __global__ void __launch_bounds__(THREADS) keep_kernel(batch_job job) {
  const sl_codes_view &in = job.a.codes, &out = job.a.out;
  int64_t row = warp_row();
  if (row >= in.rows) return;
  int lane = static_cast<int>(threadIdx.x) % SLK_WARP;
  unsigned lower = (1u << lane) - 1;
  uint32_t bound = job.state->bound;
  int64_t end = in.offsets[row + 1], at = out.offsets[row], left = job.ties[row];
  for (int64_t start = in.offsets[row]; start < end; start += SLK_WARP) {
    int64_t p = start + lane;
    uint32_t bits = p < end ? __float_as_uint(in.values[p]) : 0;
    bool over = p < end && bits > bound, tie = p < end && bits == bound;
    unsigned overs = __ballot_sync(0xffffffffu, over), equals = __ballot_sync(0xffffffffu, tie);
    int64_t rank = __popc(equals & lower), taken = __popc(equals) < left ? __popc(equals) : left;
    if (over || (tie && rank < left)) {
      int64_t to = at + __popc(overs & lower) + (rank < left ? rank : left);
      out.values[to] = in.values[p];
      out.ids[to] = in.ids[p];
    }
    at += __popc(overs) + taken;
    left -= taken;
  }
}

sl_status slk_cuda_sae_batch_select(sl_device *device, const sl_sae_batch_select_args *args) {
  slk_cuda_enter(device);
  batch_job job = {};
  job.a = *args;
  int64_t rows = args->codes.rows;
  sae_cutter cutter = { static_cast<char *>(args->workspace), 0 };
  job.state = cutter.cut<batch_state>(1);
  job.bins = cutter.cut<unsigned>(DIGITS * BINS);
  job.above = cutter.cut<int32_t>(rows);
  job.ties = cutter.cut<int32_t>(rows);
  if (args->need != nullptr) {
    *args->need = cutter.used;
    return SL_OK;
  }
  if (args->workspace_bytes < cutter.used)
    return sae_short_workspace("sae_batch_select", args->workspace_bytes, cutter.used);
  cudaStream_t stream = slk_cuda_stream(device);
  SL_TRY(slk_cuda_check(device, cudaMemsetAsync(job.bins, 0, DIGITS * BINS * sizeof *job.bins, stream),
                        "sae_batch_select"));
  LAUNCH((begin_kernel), 1, 1, 0, stream, job);
  for (int digit = 0; digit < DIGITS; digit++) {
    LAUNCH((count_kernel), slk_grid(device, args->most, 8 * THREADS), THREADS, 0, stream, job, digit);
    LAUNCH((pick_kernel), 1, SCAN_THREADS, 0, stream, job, digit);
  }
  unsigned blocks = static_cast<unsigned>(slk_ceil_div<int64_t>(rows * SLK_WARP, THREADS));
  if (rows > 0) LAUNCH((measure_kernel), blocks, THREADS, 0, stream, job);
  LAUNCH((offsets_kernel), 1, SCAN_THREADS, 0, stream, job);
  if (rows > 0) LAUNCH((keep_kernel), blocks, THREADS, 0, stream, job);
  return slk_cuda_launched(device, "sae_batch_select");
}

static __global__ void follow_kernel(sl_sae_follow_threshold_args a) {
  slk_sae_follow_threshold(&a);
}

sl_status slk_cuda_sae_follow_threshold(sl_device *device, const sl_sae_follow_threshold_args *args) {
  slk_cuda_enter(device);
  LAUNCH((follow_kernel), 1, 1, 0, slk_cuda_stream(device), *args);
  return slk_cuda_launched(device, "sae_follow_threshold");
}
