/* Strided views as kernels see them: unit axes dropped, axes joined where all operands allow it. Host code of both
 * backends. */
#ifndef SLK_VIEW_H
#define SLK_VIEW_H

#include "kernels.h"

/* A strided view with unit axes dropped and neighbouring axes joined where all
 * operands allow it. */
typedef struct {
  int rank;
  int64_t shape[SL_MAX_RANK];
  int64_t strides[2][SL_MAX_RANK];
} slk_view;

/* Joins the axes of one or two operands (`b` may be NULL). Rank is at least 1
 * afterwards. */
static inline void slk_view_join(slk_view *view, int rank, const int64_t *shape, const int64_t *a,
                                 const int64_t *b) {
  view->rank = 0;
  for (int i = 0; i < rank; i++) {
    if (shape[i] == 1) continue;
    int64_t stride_a = a[i], stride_b = b != NULL ? b[i] : 0;
    int last = view->rank - 1;
    if (last >= 0 && view->strides[0][last] == stride_a * shape[i] &&
        view->strides[1][last] == stride_b * shape[i]) {
      view->shape[last] *= shape[i];
    } else {
      last = view->rank++;
      view->shape[last] = shape[i];
    }
    view->strides[0][last] = stride_a;
    view->strides[1][last] = stride_b;
  }
  if (view->rank == 0) {
    view->rank = 1;
    view->shape[0] = 1;
    view->strides[0][0] = view->strides[1][0] = 0;
  }
}

static inline int64_t slk_view_size(const slk_view *view) {
  int64_t n = 1;
  for (int i = 0; i < view->rank; i++) n *= view->shape[i];
  return n;
}

/* Offsets of both operands at position `index` of the first `rank` axes,
 * counted row-major. */
static inline void slk_view_offsets(const slk_view *view, int rank, int64_t index, int64_t offsets[2]) {
  offsets[0] = offsets[1] = 0;
  for (int i = rank - 1; i >= 0; i--) {
    int64_t at = index % view->shape[i];
    index /= view->shape[i];
    offsets[0] += at * view->strides[0][i];
    offsets[1] += at * view->strides[1][i];
  }
}

#endif
