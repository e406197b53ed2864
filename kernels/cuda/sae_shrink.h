/* Candidates of sae_select.h shrunk: the exact bisection, compaction in order, and both for a screen's candidates. */
#ifndef SLK_SAE_SHRINK_H
#define SLK_SAE_SHRINK_H

#include "sae_select.h"

static __device__ __forceinline__ float select_error(const select_job &job, int64_t row, int32_t latent) {
  return screen_error(job.screen_rows[row], job.screen_blocks[latent / SCREEN_BLOCK], job.rounding);
}

/* Copies the entries above `bound`, and the first `ties` equal to it, to the front of values and ids, which may be the
 * buffer itself; returns how many. With `screen`, entries count as the most that they may be. */
static __device__ int select_compact(const select_state &s, float bound, int ties, float *values, int32_t *ids,
                                     select_turns *at, const select_job *screen = nullptr) {
  int kept = 0;
  for (int start = 0; start < s.count; start += SELECT_THREADS) {
    int i = start + static_cast<int>(threadIdx.x);
    float value = i < s.count ? s.values[i] : 0, most = value;
    int32_t id = i < s.count ? s.ids[i] : 0;
    if (screen != nullptr && i < s.count) most += 2 * select_error(*screen, blockIdx.x, id);
    bool over = i < s.count && most > bound, tie = ties > 0 && i < s.count && value == bound;
    unsigned total, before = select_scan((over ? 1u : 0u) | (tie ? 1u << 16 : 0u), at, &total);
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
                                     select_turns *at) {
  select_bounds b = select_bisect(*s, s->threshold, k, limit, at->shared);
  int ties = 0;
  float bound = __int_as_float(b.low);
  if (b.above > limit) { /* the k-th value itself, more than once */
    bound = __int_as_float(b.high);
    ties = k - select_count(*s, bound);
  }
  s->count = select_compact(*s, bound, ties, values, ids, at);
  s->threshold = bound;
}

/* The same for candidates of a screen, whose values are lower limits: what may reach the k-th largest of them stays.
 * False where that is too much. */
static __device__ bool select_shrink_screened(const select_job &job, select_state *s, int k, int keep,
                                              select_turns *at) {
  select_bounds b = select_bisect(*s, s->threshold, k, k, at->shared);
  float bound = __int_as_float(b.low);
  if (bound > s->threshold) s->threshold = bound;
  s->count = select_compact(*s, s->threshold, 0, s->values, s->ids, at, &job);
  if (s->count <= keep) return true;
  s->count = 0, s->threshold = INFINITY;
  return false;
}

#endif
