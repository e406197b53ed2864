/* Reductions over one axis and the float64 sum of squares. Partial sums have
 * fixed borders, so that any number of threads gives the same bits. */
#include "cpu.h"

enum {
  slab = 64,    /* columns that one task owns when the reduced axis is not the last */
  partials = 64 /* parts of one long row */
};

SLK_HOT static double sum_row(const float *x, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += (double)x[i];
  return sum;
}

SLK_HOT static double sum_squares_row(const float *x, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
  return sum;
}

/* One long row with all threads; `row` is one of the two sums above. */
static double sum_long(double (*row)(const float *, int64_t), const float *x, int64_t n) {
  if (n < SLK_PARALLEL_MIN) return row(x, n);
  double part[partials] = { 0 }, sum = 0;
  int64_t width = slk_ceil_div(n, partials);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < partials; i++) {
    int64_t from = i * width;
    if (from < n) part[i] = row(x + from, slk_min(width, n - from));
  }
  for (int i = 0; i < partials; i++) sum += part[i];
  return sum;
}

sl_status slk_cpu_sum_squares(sl_device *device, const sl_sum_squares_args *args) {
  (void)device;
  if (args->need != NULL) return slk_needs_nothing(args->need);
  *args->result = sum_long(sum_squares_row, args->x, args->n);
  return SL_OK;
}

/* The largest entry of sign * x and its first position; a NaN wins and stays.
 */
SLK_HOT static int64_t find_best(const float *x, int64_t n, float sign) {
  float best = sign * x[0];
  int nans = 0;
#pragma omp simd reduction(max : best) reduction(+ : nans)
  for (int64_t i = 0; i < n; i++) {
    float value = sign * x[i];
    best = value > best ? value : best;
    nans += value != value;
  }
  for (int64_t i = 0; i < n; i++) {
    if (nans != 0 ? x[i] != x[i] : sign * x[i] == best) return i;
  }
  return 0; /* not reached: best is one of the entries */
}

static void reduce_row(const sl_reduce_args *args, int64_t row) {
  const float *x = args->x + row * args->n;
  if (args->op == SL_REDUCE_SUM || args->op == SL_REDUCE_MEAN) {
    double sum = args->outer == 1 ? sum_long(sum_row, x, args->n) : sum_row(x, args->n);
    args->y[row] = (float)(args->op == SL_REDUCE_MEAN ? sum / (double)args->n : sum);
    return;
  }
  int64_t at = find_best(x, args->n, args->op == SL_REDUCE_MAX ? 1.0f : -1.0f);
  args->y[row] = x[at];
  if (args->index != NULL) args->index[row] = (int32_t)at;
}

SLK_HOT static void sum_slab(const float *x, int64_t n, int64_t stride, int64_t width, double *sum) {
  for (int64_t j = 0; j < width; j++) sum[j] = 0;
  for (int64_t i = 0; i < n; i++) {
    const float *row = x + i * stride;
    SLK_SIMD for (int64_t j = 0; j < width; j++) sum[j] += (double)row[j];
  }
}

SLK_HOT static void best_slab(const float *x, int64_t n, int64_t stride, int64_t width, float sign,
                              float *best, int32_t *at) {
  for (int64_t j = 0; j < width; j++) best[j] = sign * x[j], at[j] = 0;
  for (int64_t i = 1; i < n; i++) {
    const float *row = x + i * stride;
    SLK_SIMD for (int64_t j = 0; j < width; j++) {
      float value = sign * row[j];
      int better = (value > best[j]) | ((value != value) & (best[j] == best[j]));
      best[j] = better ? value : best[j];
      at[j] = better ? (int32_t)i : at[j];
    }
  }
}

/* Columns [from, from + width) of one outer block. */
static void reduce_slab(const sl_reduce_args *args, int64_t outer, int64_t from, int64_t width) {
  const float *x = args->x + outer * args->n * args->inner + from;
  float *y = args->y + outer * args->inner + from;
  if (args->op == SL_REDUCE_SUM || args->op == SL_REDUCE_MEAN) {
    double sum[slab], n = args->op == SL_REDUCE_MEAN ? (double)args->n : 1.0;
    sum_slab(x, args->n, args->inner, width, sum);
    for (int64_t j = 0; j < width; j++) y[j] = (float)(sum[j] / n);
    return;
  }
  float best[slab], sign = args->op == SL_REDUCE_MAX ? 1.0f : -1.0f;
  int32_t at[slab];
  best_slab(x, args->n, args->inner, width, sign, best, at);
  for (int64_t j = 0; j < width; j++) {
    y[j] = sign * best[j];
    if (args->index != NULL) args->index[outer * args->inner + from + j] = at[j];
  }
}

sl_status slk_cpu_reduce(sl_device *device, const sl_reduce_args *args) {
  (void)device;
  if (args->need != NULL) return slk_needs_nothing(args->need);
  bool wide = args->outer * args->n * args->inner >= SLK_PARALLEL_MIN;
  if (args->inner == 1 && args->outer == 1) {
    reduce_row(args, 0);
  } else if (args->inner == 1) {
#pragma omp parallel for schedule(static) if (wide)
    for (int64_t row = 0; row < args->outer; row++) reduce_row(args, row);
  } else {
    int64_t slabs = slk_ceil_div(args->inner, slab);
#pragma omp parallel for schedule(static) if (wide)
    for (int64_t job = 0; job < args->outer * slabs; job++) {
      int64_t from = job % slabs * slab;
      reduce_slab(args, job / slabs, from, slk_min(slab, args->inner - from));
    }
  }
  return SL_OK;
}
