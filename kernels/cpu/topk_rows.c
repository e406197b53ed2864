/* The k largest entries of each row, by value or by size.
 *
 * A min-heap of k entries lives in the output row itself; the scan looks at 64
 * entries at a time and skips them when none beats the heap's root, which after
 * the first few thousand entries is nearly always: about one pass over the row
 * plus k ln(n / k) heap insertions. Order: rank, ties by lowest index; NaN
 * ranks below everything. */
#include <math.h>

#include "cpu.h"
#include "rows.h"

enum { block = 64 };

typedef struct {
  float *values;
  int32_t *indices;
  int64_t k;
  bool absolute;
} heap;

static inline float rank_of(float value, bool absolute) {
  if (value != value) return -INFINITY;
  return absolute ? fabsf(value) : value;
}

/* Whether entry a stands before entry b in the result. */
static inline bool before(const heap *h, int64_t a, int64_t b) {
  float rank_a = rank_of(h->values[a], h->absolute), rank_b = rank_of(h->values[b], h->absolute);
  return rank_a > rank_b || (rank_a == rank_b && h->indices[a] < h->indices[b]);
}

static inline void swap(heap *h, int64_t a, int64_t b) {
  float value = h->values[a];
  int32_t index = h->indices[a];
  h->values[a] = h->values[b], h->indices[a] = h->indices[b];
  h->values[b] = value, h->indices[b] = index;
}

/* Restores the heap of `size` entries below `at`; the last in rank sits at the
 * root. */
static void sift_down(heap *h, int64_t at, int64_t size) {
  for (;;) {
    int64_t last = at, left = 2 * at + 1;
    if (left < size && before(h, last, left)) last = left;
    if (left + 1 < size && before(h, last, left + 1)) last = left + 1;
    if (last == at) return;
    swap(h, at, last);
    at = last;
  }
}

SLK_HOT static float block_best(const float *x, int64_t n, bool absolute) {
  float best = -INFINITY;
  if (absolute) {
#pragma omp simd reduction(max : best)
    for (int64_t i = 0; i < n; i++) best = fabsf(x[i]) > best ? fabsf(x[i]) : best;
  } else {
#pragma omp simd reduction(max : best)
    for (int64_t i = 0; i < n; i++) best = x[i] > best ? x[i] : best;
  }
  return best;
}

static void topk_row(const float *x, int64_t n, heap *h) {
  for (int64_t i = 0; i < h->k; i++) h->values[i] = x[i], h->indices[i] = (int32_t)i;
  for (int64_t i = h->k / 2 - 1; i >= 0; i--) sift_down(h, i, h->k);
  for (int64_t from = h->k; from < n; from += block) {
    int64_t to = slk_min(from + block, n);
    float floor = rank_of(h->values[0], h->absolute);
    if (!(block_best(x + from, to - from, h->absolute) > floor)) continue;
    for (int64_t i = from; i < to; i++) { /* ascending i and strict >: the lowest index keeps a tie */
      if (!(rank_of(x[i], h->absolute) > floor)) continue;
      h->values[0] = x[i], h->indices[0] = (int32_t)i;
      sift_down(h, 0, h->k);
      floor = rank_of(h->values[0], h->absolute);
    }
  }
  for (int64_t size = h->k - 1; size > 0; size--) { /* heap sort: last in rank to the end */
    swap(h, 0, size);
    sift_down(h, 0, size);
  }
}

sl_status slk_cpu_topk_rows(sl_device *device, const sl_topk_rows_args *args) {
  (void)device;
  if (args->k == 0) return SL_OK;
#pragma omp parallel for schedule(static) if (args->rows * args->n >= SLK_PARALLEL_MIN)
  for (int64_t row = 0; row < args->rows; row++) {
    heap h = { args->values + row * args->k, args->indices + row * args->k, args->k, args->absolute };
    topk_row(args->x + row * args->n, args->n, &h);
  }
  return SL_OK;
}
