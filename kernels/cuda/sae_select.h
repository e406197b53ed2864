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

/* A thread's view of them: which half of totals the next scan takes. */
struct select_turns {
  select_shared *shared;
  int turn;
};

/* Exclusive prefix of v over the block, and the total. One barrier: `turn` alternates between two halves. */
static __device__ __forceinline__ unsigned select_scan(unsigned v, select_turns *at, unsigned *total) {
  int lane = static_cast<int>(threadIdx.x) % SLK_WARP, warp = static_cast<int>(threadIdx.x) / SLK_WARP;
  unsigned upto = __any_sync(0xffffffffu, v != 0) ? slk_warp_scan(v) : 0, before = 0, all = 0;
  if (lane == SLK_WARP - 1) at->shared->totals[at->turn][warp] = upto;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < SELECT_WARPS; w++) {
    unsigned one = at->shared->totals[at->turn][w];
    before += w < warp ? one : 0;
    all += one;
  }
  at->turn ^= 1;
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

#endif
