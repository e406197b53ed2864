/* Strided views to contiguous memory and back. Transposes go by square tiles,
 * so that both sides stay in cache. */
#include <string.h>

#include "cpu.h"

enum { tile = 32, run_piece = 16384 };

/* Copies n elements between two strides; the four element sizes there are. */
static void copy_run(char *y, int64_t by_y, const char *x, int64_t by_x, int64_t n, size_t size) {
  if (by_x == 1 && by_y == 1) {
    memcpy(y, x, (size_t)n * size);
    return;
  }
  for (int64_t i = 0; i < n; i++) {
    const char *from = x + i * by_x * (int64_t)size;
    char *to = y + i * by_y * (int64_t)size;
    switch (size) { /* constant sizes become single moves */
    case 1:
      memcpy(to, from, 1);
      break;
    case 2:
      memcpy(to, from, 2);
      break;
    case 4:
      memcpy(to, from, 4);
      break;
    default:
      memcpy(to, from, 8);
      break;
    }
  }
}

/* One operand of the view is strided ([0]) and one contiguous ([1]); `gather`
 * copies [0] to [1], else back. */
typedef struct {
  slk_view view;
  char *strided, *packed;
  size_t size;
  bool gather;
} strided_copy;

static void copy_part(const strided_copy *job, int64_t at_strided, int64_t by_strided, int64_t at_packed,
                      int64_t by_packed, int64_t n) {
  char *strided = job->strided + at_strided * (int64_t)job->size,
       *packed = job->packed + at_packed * (int64_t)job->size;
  if (job->gather)
    copy_run(packed, by_packed, strided, by_strided, n, job->size);
  else
    copy_run(strided, by_strided, packed, by_packed, n, job->size);
}

/* The last two axes as tiles: the run goes along the axis on which the strided
 * side is the tighter one. */
static void copy_tile(const strided_copy *job, int64_t run, int64_t row, int64_t column) {
  const slk_view *view = &job->view;
  int r = view->rank - 2, c = view->rank - 1;
  int64_t offsets[2], rows = slk_min(tile, view->shape[r] - row),
                      columns = slk_min(tile, view->shape[c] - column);
  slk_view_offsets(view, r, run, offsets);
  const int64_t *s = view->strides[0], *p = view->strides[1];
  int64_t at_strided = offsets[0] + row * s[r] + column * s[c],
          at_packed = offsets[1] + row * p[r] + column * p[c];
  for (int64_t j = 0; j < columns; j++)
    copy_part(job, at_strided + j * s[c], s[r], at_packed + j * p[c], p[r], rows);
}

static void copy_strided(const strided_copy *job) {
  const slk_view *view = &job->view;
  int64_t total = slk_view_size(view), inner = view->shape[view->rank - 1];
  if (total == 0) return;
  if (view->rank >= 2 && view->strides[0][view->rank - 1] != 1 && view->strides[0][view->rank - 2] == 1) {
    int64_t rows = view->shape[view->rank - 2];
    int64_t down = slk_ceil_div(rows, tile), across = slk_ceil_div(inner, tile),
            runs = total / (rows * inner);
#pragma omp parallel for schedule(static) if (total >= SLK_PARALLEL_MIN)
    for (int64_t k = 0; k < runs * down * across; k++) {
      copy_tile(job, k / (down * across), k / across % down * tile, k % across * tile);
    }
    return;
  }
  int64_t pieces = slk_ceil_div(inner, run_piece), runs = total / inner;
  int64_t by_strided = view->strides[0][view->rank - 1], by_packed = view->strides[1][view->rank - 1];
#pragma omp parallel for schedule(static) if (total >= SLK_PARALLEL_MIN)
  for (int64_t k = 0; k < runs * pieces; k++) {
    int64_t offsets[2], from = k % pieces * run_piece;
    slk_view_offsets(view, view->rank - 1, k / pieces, offsets);
    copy_part(job, offsets[0] + from * by_strided, by_strided, offsets[1] + from * by_packed, by_packed,
              slk_min(run_piece, inner - from));
  }
}

static void packed_strides(int rank, const int64_t *shape, int64_t *strides) {
  int64_t step = 1;
  for (int i = rank - 1; i >= 0; i--) {
    strides[i] = step;
    step *= shape[i];
  }
}

sl_status slk_cpu_gather_strided(sl_device *device, const sl_gather_strided_args *args) {
  (void)device;
  int64_t packed[SL_MAX_RANK];
  packed_strides(args->rank, args->shape, packed);
  strided_copy job = {
    .strided = (char *)(uintptr_t)args->x, .packed = args->y, .size = args->element_size, .gather = true
  };
  slk_view_join(&job.view, args->rank, args->shape, args->strides, packed);
  copy_strided(&job);
  return SL_OK;
}

/* y[strided] += x. A stride of 0 folds many elements into one: one thread then
 * owns that element for its whole sum, taken in index order, because work is
 * cut only along axes whose stride is not 0. */
SLK_HOT static void add_row(float *y, int64_t by, const float *x, int64_t n) {
  if (by == 1) {
    SLK_SIMD for (int64_t i = 0; i < n; i++) y[i] += x[i];
  } else if (by == 0) {
    double sum = 0; /* a long row would lose digits one float at a time */
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += (double)x[i];
    y[0] = (float)((double)y[0] + sum);
  } else {
    for (int64_t i = 0; i < n; i++) y[i * by] += x[i];
  }
}

/* Adds all elements whose position along `axis` lies in [from, to). */
static void add_slab(const slk_view *view, const sl_scatter_strided_args *args, int axis, int64_t from,
                     int64_t to) {
  slk_view slab = *view;
  slab.shape[axis] = to - from;
  int last = slab.rank - 1;
  int64_t inner = slab.shape[last], runs = slk_view_size(&slab) / inner;
  int64_t base_y = from * view->strides[0][axis], base_x = from * view->strides[1][axis];
  for (int64_t run = 0; run < runs; run++) {
    int64_t offsets[2];
    slk_view_offsets(&slab, last, run, offsets);
    add_row((float *)args->y + base_y + offsets[0], slab.strides[0][last],
            (const float *)args->x + base_x + offsets[1], inner);
  }
}

sl_status slk_cpu_scatter_strided(sl_device *device, const sl_scatter_strided_args *args) {
  (void)device;
  int64_t packed[SL_MAX_RANK];
  packed_strides(args->rank, args->shape, packed);
  slk_view view;
  slk_view_join(&view, args->rank, args->shape, args->strides, packed);
  int64_t total = slk_view_size(&view);
  if (total == 0) return SL_OK;
  if (!args->accumulate) {
    strided_copy job = { .view = view,
                         .strided = args->y,
                         .packed = (char *)(uintptr_t)args->x,
                         .size = sl_dtype_size(args->dtype),
                         .gather = false };
    copy_strided(&job);
    return SL_OK;
  }
  int axis = -1; /* the longest axis that owns its elements */
  for (int i = 0; i < view.rank; i++) {
    if (view.strides[0][i] != 0 && (axis < 0 || view.shape[i] > view.shape[axis])) axis = i;
  }
  if (axis < 0) { /* everything into one element */
    add_slab(&view, args, 0, 0, view.shape[0]);
    return SL_OK;
  }
  int64_t length = view.shape[axis], width = slk_max(16, slk_ceil_div(length, 64));
#pragma omp parallel for schedule(static) if (total >= SLK_PARALLEL_MIN)
  for (int64_t from = 0; from < length; from += width)
    add_slab(&view, args, axis, from, slk_min(from + width, length));
  return SL_OK;
}
