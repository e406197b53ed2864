/* Exact top-k of rows of pre-activations: one block a row, one pass over the row, candidates in shared memory.
 *
 * A running threshold starts from a bound on the k-th value that the first 4096 values give (the k-th of the maxima of
 * small groups), values above it are appended to a buffer in the order of their latents, and a full buffer is shrunk by
 * bisection on the value. Because candidates come in ascending order and only if strictly above the threshold, ties go
 * to the lowest latent and what is kept stays sorted; so the result depends on the row alone, not on where rows or
 * columns were cut. A row may come in pieces of columns: the state is then kept between launches.
 *
 * Expected work for a row of m values is one read of it, plus k ln(m / 4096) candidates and one or two bisections, whose
 * counts are hardware votes of the block. (Histograms would need shared atomics on a handful of exponents.) */
#ifndef SLK_SAE_SELECT_H
#define SLK_SAE_SELECT_H

#include "sae_screen.h"

enum {
  SELECT_THREADS = 512,
  SELECT_WARPS = SELECT_THREADS / SLK_WARP,
  SELECT_VALUES = 8,             /* a thread and turn: two packs of four */
  SELECT_SEGMENT = SELECT_VALUES * SELECT_THREADS
};

/* One selection: all latents, or those of a mask. */
struct select_list {
  int k;
  int keep;                      /* candidates that may stay between segments and pieces, >= k */
  int capacity;                  /* keep + SELECT_SEGMENT */
  const uint8_t *mask;           /* [m] or NULL */
  float *state_values;           /* [rows, keep]; the state is used only where a row comes in pieces */
  int32_t *state_ids, *state_count;
  float *state_threshold;
  float *buffer_values;          /* [rows, capacity], or NULL: in shared memory */
  int32_t *buffer_ids;
  float *out_values;             /* [rows, k] */
  int32_t *out_ids;
  int64_t *lengths;              /* [rows] */
};

/* One piece of columns of some rows. */
struct select_job {
  const float *pre;              /* [rows, ld], ld a multiple of 4, on 16 bytes */
  int64_t ld;
  int width, first;              /* columns of the piece, and the latent of the first */
  const float *bias;             /* [m], or NULL: it is in `pre` already */
  bool begins, ends;             /* the first, the last piece */
  select_list lists[2];
  int32_t *bad;                  /* [rows]: not finite so far; between pieces */
  int64_t *nonfinite;            /* NULL: somebody else counts */
  const float *floor;            /* [m], JumpReLU: list 0 is what lies above max(floor, 0) */
  int32_t *above_floor;          /* [rows]: how many so far; between pieces */
  int64_t *overflow;             /* rows with more than k of them */
  int64_t group;                 /* GroupMax: latents to a group */
  /* Screening and what is computed again (sae_screen.h); of this piece's rows: */
  const float *u, *w, *w_bias;   /* [rows, d]; [m, d]; [m] or NULL, whatever is in `pre` */
  int64_t d;
  bool packed;
  float rounding;
  const screen_row *screen_rows;
  const screen_block *screen_blocks;
  int32_t *refused;              /* [rows] */
};

/* PLAIN: `pre` is what is selected. FLOOR: with a threshold for each latent. SCREEN: `pre` holds screens; a candidate's
 * value is the least that it may be. EXACT: refused rows, computed here. */
enum select_mode { SELECT_PLAIN, SELECT_FLOOR, SELECT_SCREEN, SELECT_EXACT };

/* Candidates of one list while its row is scanned; all threads hold the same numbers. */
struct select_state {
  float *values;
  int32_t *ids;
  int count;
  float threshold;
};

struct select_shared {
  unsigned totals[2][SELECT_WARPS];
  float tops[SELECT_WARPS];
};

/* Exclusive prefix of v over the block, and the total. One barrier: `turn` alternates between two halves. */
static __device__ __forceinline__ unsigned select_scan(unsigned v, select_shared *shared, int *turn, unsigned *total) {
  int lane = static_cast<int>(threadIdx.x) % SLK_WARP, warp = static_cast<int>(threadIdx.x) / SLK_WARP;
  unsigned upto = __any_sync(0xffffffffu, v != 0) ? slk_warp_scan(v) : 0, before = 0, all = 0;
  if (lane == SLK_WARP - 1) shared->totals[*turn][warp] = upto;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < SELECT_WARPS; w++) {
    unsigned one = shared->totals[*turn][w];
    before += w < warp ? one : 0;
    all += one;
  }
  *turn ^= 1;
  *total = all;
  return before + upto - v;
}

/* The largest v of the block; begins and ends with a barrier. */
static __device__ float select_top(float v, select_shared *shared) {
  __syncthreads();
  v = slk_warp_max(v);
  if (threadIdx.x % SLK_WARP == 0) shared->tops[threadIdx.x / SLK_WARP] = v;
  __syncthreads();
  float top = shared->tops[0];
#pragma unroll
  for (int w = 1; w < SELECT_WARPS; w++) top = fmaxf(top, shared->tops[w]);
  return top;
}

/* A lower bound on the k-th value of the first segment, of which this thread holds the maxima of two groups of four:
 * where k groups reach above it, so do k values. 0 where that would not help. */
static __device__ float select_first_bound(float g0, float g1, int k, select_shared *shared) {
  enum { COARSE = SELECT_THREADS / 4, FINE = 3 * SELECT_THREADS / 2, ROUNDS = 12 };
  if (k > FINE) return 0;
  float high = select_top(fmaxf(g0, g1), shared), low = 0;
  if (k <= COARSE) g0 = fmaxf(g0, g1), g1 = 0; /* groups of eight will do, at one vote a round */
  for (int round = 0; round < ROUNDS; round++) {
    float middle = 0.5f * (low + high);
    if (!(middle > low && middle < high)) break;
    int groups = __syncthreads_count(g0 > middle);
    if (k > COARSE) groups += __syncthreads_count(g1 > middle);
    if (groups >= k) low = middle;
    else high = middle;
    if (groups >= k && groups <= k + k / 8) break;
  }
  return low;
}

static __device__ int select_count(const select_state &s, float bound) {
  int count = 0;
  for (int start = 0; start < s.count; start += SELECT_THREADS) {
    int i = start + static_cast<int>(threadIdx.x);
    count += __syncthreads_count(i < s.count && s.values[i] > bound);
  }
  return count;
}

static __device__ __forceinline__ float select_error(const select_job &job, int64_t row, int32_t latent) {
  return screen_error(job.screen_rows[row], job.screen_blocks[latent / SCREEN_BLOCK], job.rounding);
}

/* Copies the entries above `bound`, and the first `ties` equal to it, to the front of values and ids, which may be the
 * buffer itself; returns how many. With `screen`, entries count as the most that they may be. */
static __device__ int select_compact(const select_state &s, float bound, int ties, float *values, int32_t *ids,
                                     select_shared *shared, int *turn, const select_job *screen = nullptr) {
  int kept = 0;
  for (int start = 0; start < s.count; start += SELECT_THREADS) {
    int i = start + static_cast<int>(threadIdx.x);
    float value = i < s.count ? s.values[i] : 0, most = value;
    int32_t id = i < s.count ? s.ids[i] : 0;
    if (screen != nullptr && i < s.count) most += 2 * select_error(*screen, blockIdx.x, id);
    bool over = i < s.count && most > bound, tie = ties > 0 && i < s.count && value == bound;
    unsigned total, before = select_scan((over ? 1u : 0u) | (tie ? 1u << 16 : 0u), shared, turn, &total);
    int rank = static_cast<int>(before >> 16), equal = static_cast<int>(total >> 16);
    if (over || (tie && rank < ties)) { /* never behind what others still read: theirs is in registers by now */
      int to = kept + static_cast<int>(before & 0xffffu) + (rank < ties ? rank : ties);
      values[to] = value;
      ids[to] = id;
    }
    int taken = equal < ties ? equal : ties;
    kept += static_cast<int>(total & 0xffffu) + taken;
    ties -= taken;
  }
  return kept;
}

/* What a bisection has found, as bits of values >= 0: `above` > low, fewer than k > high. */
struct select_bounds { int low, high, above; };

/* Narrows from [low, largest value] until at most `limit` >= k values are above `low`, or there is nothing between. */
static __device__ select_bounds select_bisect(const select_state &s, float from, int k, int limit, select_shared *shared) {
  float top = 0;
  __syncthreads(); /* the entries are there */
  for (int i = static_cast<int>(threadIdx.x); i < s.count; i += SELECT_THREADS) top = fmaxf(top, s.values[i]);
  top = select_top(top, shared);
  select_bounds b = { from > 0 ? __float_as_int(from) - 1 : 0, __float_as_int(top), s.count };
  for (int round = 0; b.above > limit && b.high - b.low > 1; round++) {
    int middle = b.low + (b.high - b.low) / 2;
    if (round < 8) { /* near-linear at first: halving bits from zero would walk through the exponents */
      int guess = __float_as_int(0.5f * (__int_as_float(b.low) + __int_as_float(b.high)));
      if (guess > b.low && guess < b.high) middle = guess;
    }
    int found = select_count(s, __int_as_float(middle));
    if (found >= k) b.low = middle, b.above = found;
    else b.high = middle;
  }
  return b;
}

/* Leaves the k best among between k and `limit` entries, in the buffer or elsewhere, and raises the threshold to match.
 * Needs count > limit >= k. The search starts below the threshold: ties kept by an earlier call equal it. */
static __device__ void select_shrink(select_state *s, int k, int limit, float *values, int32_t *ids,
                                     select_shared *shared, int *turn) {
  select_bounds b = select_bisect(*s, s->threshold, k, limit, shared);
  int ties = 0;
  float bound = __int_as_float(b.low);
  if (b.above > limit) { /* the k-th value itself, more than once */
    bound = __int_as_float(b.high);
    ties = k - select_count(*s, bound);
  }
  s->count = select_compact(*s, bound, ties, values, ids, shared, turn);
  s->threshold = bound;
}

/* The same for candidates of a screen, whose values are lower limits: what may reach the k-th largest of them stays.
 * False where that is too much. */
static __device__ bool select_shrink_screened(const select_job &job, select_state *s, int k, int keep,
                                              select_shared *shared, int *turn) {
  select_bounds b = select_bisect(*s, s->threshold, k, k, shared);
  float bound = __int_as_float(b.low);
  if (bound > s->threshold) s->threshold = bound;
  s->count = select_compact(*s, s->threshold, 0, s->values, s->ids, shared, turn, &job);
  if (s->count <= keep) return true;
  s->count = 0, s->threshold = INFINITY;
  return false;
}

/* Eight values of the segment at `column`: columns column + 4 thread .. + 3, and as many half a segment on. */
static __device__ __forceinline__ void select_load(const select_job &job, const float *row, int column, float *v) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int at = column + half * (SELECT_SEGMENT / 2) + static_cast<int>(threadIdx.x) * 4;
    slk_float4 x = {};
    if (at < job.width) x = sae_load<4>(row, at);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float value = at + i < job.width ? x.at[i] : 0; /* the rest of a row's last pack is no data */
      if (job.bias != nullptr && at + i < job.width) value += job.bias[job.first + at + i];
      v[half * 4 + i] = value;
    }
  }
}

/* A bit for each value whose latent the mask names. */
static __device__ __forceinline__ unsigned select_masked(const select_job &job, const uint8_t *mask, int column) {
  unsigned bits = 0;
#pragma unroll
  for (int q = 0; q < SELECT_VALUES; q++) {
    int at = column + q / 4 * (SELECT_SEGMENT / 2) + static_cast<int>(threadIdx.x) * 4 + q % 4;
    if (at < job.width && mask[job.first + at] != 0) bits |= 1u << q;
  }
  return bits;
}

/* Appends v where `reach` beats the threshold, in the order of the latents. */
static __device__ __forceinline__ void select_append(select_state *s, const float *v, const float *reach,
                                                     unsigned allowed, int latent, select_shared *shared, int *turn) {
  unsigned hits = 0, total;
#pragma unroll
  for (int q = 0; q < SELECT_VALUES; q++) hits |= reach[q] > s->threshold ? 1u << q : 0u;
  hits &= allowed;
  unsigned mine = static_cast<unsigned>(__popc(hits & 15u)) | static_cast<unsigned>(__popc(hits >> 4)) << 16;
  unsigned before = select_scan(mine, shared, turn, &total);
  int at[2] = { s->count + static_cast<int>(before & 0xffffu),
                s->count + static_cast<int>(total & 0xffffu) + static_cast<int>(before >> 16) };
  if (hits != 0) {
#pragma unroll
    for (int q = 0; q < SELECT_VALUES; q++) {
      if ((hits >> q & 1u) == 0) continue;
      s->values[at[q / 4]] = v[q];
      s->ids[at[q / 4]++] = latent + q / 4 * (SELECT_SEGMENT / 2) + static_cast<int>(threadIdx.x) * 4 + q % 4;
    }
  }
  s->count += static_cast<int>(total & 0xffffu) + static_cast<int>(total >> 16);
}

/* A bit for each value above max(floor, 0) of its latent. */
static __device__ __forceinline__ unsigned select_above_floor(const select_job &job, const float *v, int column) {
  unsigned bits = 0;
#pragma unroll
  for (int q = 0; q < SELECT_VALUES; q++) {
    int at = column + q / 4 * (SELECT_SEGMENT / 2) + static_cast<int>(threadIdx.x) * 4 + q % 4;
    if (at < job.width && v[q] > fmaxf(job.floor[job.first + at], 0.0f)) bits |= 1u << q;
  }
  return bits;
}

/* The same eight values of a refused row, from u and w. */
static __device__ void select_compute(const select_job &job, int64_t row, int column, float *tile, float *v) {
  const float *u = job.u + row * job.d;
  __syncthreads(); /* the last segment has been read */
  for (int i = static_cast<int>(threadIdx.x) / SLK_WARP; i < SELECT_SEGMENT && column + i < job.width; i += SELECT_WARPS) {
    float dot = screen_dot(u, job.w + (column + i) * job.d, job.d, job.packed);
    if (threadIdx.x % SLK_WARP == 0) tile[i] = dot + (job.w_bias != nullptr ? job.w_bias[column + i] : 0);
  }
  __syncthreads();
#pragma unroll
  for (int q = 0; q < SELECT_VALUES; q++) {
    int i = q / 4 * (SELECT_SEGMENT / 2) + static_cast<int>(threadIdx.x) * 4 + q % 4;
    v[q] = column + i < job.width ? tile[i] : 0;
  }
}

/* v becomes the least, reach the most that the eight pre-activations may be; poison NaN where that is not finite. */
static __device__ __forceinline__ void select_screen(const select_job &job, int64_t row, int column, float *v,
                                                     float *reach, float *poison) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int at = column + half * (SELECT_SEGMENT / 2) + static_cast<int>(threadIdx.x) * 4;
    float error = at < job.width ? select_error(job, row, job.first + at) : 0;
    *poison += error * 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float value = v[half * 4 + i];
      bool real = at + i < job.width;
      v[half * 4 + i] = real ? value - error : 0;
      reach[half * 4 + i] = real ? value + error : 0;
    }
  }
}

/* The candidates of a screen get their float32 values; those that are not positive leave. */
static __device__ void select_rescore(const select_job &job, int64_t row, select_state *s, select_shared *shared,
                                      int *turn) {
  const float *u = job.u + row * job.d;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x) / SLK_WARP; i < s->count; i += SELECT_WARPS) {
    int64_t latent = s->ids[i];
    float dot = screen_dot(u, job.w + latent * job.d, job.d, job.packed);
    if (threadIdx.x % SLK_WARP == 0) s->values[i] = dot + (job.w_bias != nullptr ? job.w_bias[latent] : 0);
  }
  __syncthreads();
  s->count = select_compact(*s, 0, 0, s->values, s->ids, shared, turn);
  s->threshold = 0;
}

static __device__ void select_resume(const select_list &list, int64_t row, select_state *s) {
  s->count = list.state_count[row];
  s->threshold = list.state_threshold[row];
  for (int i = static_cast<int>(threadIdx.x); i < s->count; i += SELECT_THREADS) {
    s->values[i] = list.state_values[row * list.keep + i];
    s->ids[i] = list.state_ids[row * list.keep + i];
  }
}

/* count <= keep */
static __device__ void select_suspend(const select_list &list, int64_t row, const select_state &s) {
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < s.count; i += SELECT_THREADS) {
    list.state_values[row * list.keep + i] = s.values[i];
    list.state_ids[row * list.keep + i] = s.ids[i];
  }
  if (threadIdx.x == 0) list.state_count[row] = s.count, list.state_threshold[row] = s.threshold;
}

/* After the last piece: the k best, or all where there are fewer. */
static __device__ void select_finish(const select_list &list, int64_t row, select_state *s, select_shared *shared,
                                     int *turn) {
  float *values = list.out_values + row * list.k;
  int32_t *ids = list.out_ids + row * list.k;
  if (s->count > list.k) {
    select_shrink(s, list.k, list.k, values, ids, shared, turn);
  } else {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < s->count; i += SELECT_THREADS)
      values[i] = s->values[i], ids[i] = s->ids[i];
  }
  if (threadIdx.x == 0) list.lengths[row] = s->count;
}

/* The row's last words: counted once a token, at its last piece. */
static __device__ void select_report(const select_job &job, int64_t row, bool bad) {
  if (threadIdx.x != 0) return;
  if (!job.ends) job.bad[row] = bad;
  else if (bad && job.nonfinite != nullptr) atomicAdd(reinterpret_cast<unsigned long long *>(job.nonfinite), 1ull);
}

template <int LISTS, select_mode MODE>
static __global__ void __launch_bounds__(SELECT_THREADS, LISTS == 1 && MODE <= SELECT_FLOOR ? 3 : 2)
    select_kernel(select_job job) {
  DYN_SHARED(float, buffers);
  __shared__ select_shared shared;
  int64_t row = blockIdx.x;
  if (MODE == SELECT_EXACT && job.refused[row] == 0) return;
  const float *pre = job.pre + row * job.ld;
  select_state states[LISTS];
  float *next = buffers, *tile = buffers, poison = 0;
  if (MODE == SELECT_EXACT) next += SELECT_SEGMENT;
  int turn = 0;
  unsigned above = 0;
  bool fits = MODE != SELECT_SCREEN || job.begins || job.refused[row] == 0;
#pragma unroll
  for (int l = 0; l < LISTS; l++) {
    const select_list &list = job.lists[l];
    bool in_shared = list.buffer_values == nullptr;
    states[l].values = in_shared ? next : list.buffer_values + row * list.capacity;
    states[l].ids = in_shared ? reinterpret_cast<int32_t *>(next + list.capacity) : list.buffer_ids + row * list.capacity;
    if (in_shared) next += 2 * list.capacity;
    states[l].count = 0, states[l].threshold = 0;
    if (!job.begins) select_resume(list, row, &states[l]);
  }
  for (int column = 0; column < job.width; column += SELECT_SEGMENT) {
    float v[SELECT_VALUES], most[SELECT_VALUES];
    if (MODE == SELECT_EXACT) select_compute(job, row, column, tile, v);
    else select_load(job, pre, column, v);
#pragma unroll
    for (int q = 0; q < SELECT_VALUES; q++) poison += v[q] * 0.0f; /* NaN once anything is not finite */
    if (MODE == SELECT_SCREEN) select_screen(job, row, column, v, most, &poison);
    const float *reach = MODE == SELECT_SCREEN ? most : v;
#pragma unroll
    for (int l = 0; l < LISTS; l++) {
      const select_list &list = job.lists[l];
      select_state *s = &states[l];
      unsigned allowed = list.mask != nullptr ? select_masked(job, list.mask, column) : 255u;
      if (MODE == SELECT_FLOOR) {
        allowed = select_above_floor(job, v, column);
        above += static_cast<unsigned>(__popc(allowed));
      }
      if (job.begins && column == 0) {
        float g[2] = { 0, 0 };
#pragma unroll
        for (int q = 0; q < SELECT_VALUES; q++)
          g[q / 4] = (allowed >> q & 1u) != 0 ? fmaxf(g[q / 4], v[q]) : g[q / 4];
        s->threshold = select_first_bound(g[0], g[1], list.k, &shared);
      }
      select_append(s, v, reach, allowed, job.first + column, &shared, &turn);
      if (s->count <= list.keep) continue;
      if (MODE == SELECT_SCREEN) fits &= select_shrink_screened(job, s, list.k, list.keep, &shared, &turn);
      else select_shrink(s, list.k, list.keep, s->values, s->ids, &shared, &turn);
    }
  }
  bool bad = __syncthreads_or(!(poison == 0.0f)) != 0;
  if (MODE == SELECT_SCREEN) {
    if (threadIdx.x == 0) job.refused[row] = !fits || bad; /* all have read it before the barrier */
    if (!fits || bad) {
      if (job.ends) return;
#pragma unroll
      for (int l = 0; l < LISTS; l++) states[l].count = 0, states[l].threshold = INFINITY;
    }
  } else {
    bad |= !job.begins && job.bad[row] != 0;
    __syncthreads(); /* all have read it */
  }
#pragma unroll
  for (int l = 0; l < LISTS; l++) {
    if (MODE == SELECT_SCREEN && job.ends) {
      const select_list &list = job.lists[l]; /* every candidate less is a row of W less to read */
      if (states[l].count > list.k) (void)select_shrink_screened(job, &states[l], list.k, list.keep, &shared, &turn);
      select_rescore(job, row, &states[l], &shared, &turn);
    }
    if (job.ends) select_finish(job.lists[l], row, &states[l], &shared, &turn);
    else select_suspend(job.lists[l], row, states[l]);
  }
  if (MODE == SELECT_FLOOR) {
    unsigned total;
    (void)select_scan(above, &shared, &turn, &total);
    int all = static_cast<int>(total) + (job.begins ? 0 : job.above_floor[row]);
    __syncthreads(); /* all have read it */
    if (threadIdx.x == 0 && !job.ends) job.above_floor[row] = all;
    if (threadIdx.x == 0 && job.ends && all > job.lists[0].k)
      atomicAdd(reinterpret_cast<unsigned long long *>(job.overflow), 1ull);
  }
  if (MODE != SELECT_SCREEN) select_report(job, row, bad);
}

/* -- GroupMax -- */

/* The best of columns begin .. end - 1, lowest latent first, by the `lanes` threads that share it (all of a warp, or
 * one); `value` and `id` hold what earlier pieces found, and the result in the first of the threads. */
static __device__ void select_group_best(const select_job &job, const float *pre, int64_t begin, int64_t end, int lanes,
                                         float *value, int32_t *id, float *poison) {
  float best = 0;
  int32_t where = INT32_MAX;
  for (int64_t at = begin + (lanes > 1 ? threadIdx.x % SLK_WARP : 0); at < end; at += lanes) {
    float v = pre[at] + (job.bias != nullptr ? job.bias[job.first + at] : 0);
    *poison += v * 0.0f;
    if (v > best) best = v, where = job.first + static_cast<int32_t>(at);
  }
  for (int step = SLK_WARP / 2; lanes > 1 && step > 0; step /= 2) {
    float other = __shfl_xor_sync(0xffffffffu, best, step);
    int32_t there = __shfl_xor_sync(0xffffffffu, where, step);
    if (other > best || (other == best && there < where)) best = other, where = there;
  }
  if (best > *value) *value = best, *id = where; /* earlier pieces hold lower latents */
}

/* A block a row. Staging row [k]: first the best of each group (0: none yet), at the end the positive ones closed up. */
static __global__ void __launch_bounds__(SELECT_THREADS) group_kernel(select_job job) {
  __shared__ select_shared shared;
  const select_list &list = job.lists[0];
  int64_t row = blockIdx.x, k = list.k, size = job.group;
  const float *pre = job.pre + row * job.ld;
  float *values = list.out_values + row * k, poison = 0;
  int32_t *ids = list.out_ids + row * k;
  int lanes = size >= SLK_WARP ? SLK_WARP : 1, turn = 0, thread = static_cast<int>(threadIdx.x);
  if (job.begins) {
    for (int64_t g = thread; g < k; g += SELECT_THREADS) values[g] = 0, ids[g] = 0;
    __syncthreads();
  }
  int64_t last = (job.first + job.width - 1) / size;
  for (int64_t g = job.first / size + thread / lanes; g <= last; g += SELECT_THREADS / lanes) {
    int64_t begin = g * size - job.first, end = begin + size;
    float value = values[g];
    int32_t id = ids[g];
    select_group_best(job, pre, begin > 0 ? begin : 0, end < job.width ? end : job.width, lanes, &value, &id, &poison);
    if (lanes > 1) __syncwarp(); /* all have read */
    if (lanes == 1 || thread % SLK_WARP == 0) values[g] = value, ids[g] = id;
  }
  bool bad = __syncthreads_or(!(poison == 0.0f)) != 0 || (!job.begins && job.bad[row] != 0);
  __syncthreads(); /* all have read it */
  if (job.ends) {
    select_state s = { values, ids, list.k, 0 };
    int kept = select_compact(s, 0, 0, values, ids, &shared, &turn);
    if (thread == 0) list.lengths[row] = kept;
  }
  select_report(job, row, bad);
}

#endif
