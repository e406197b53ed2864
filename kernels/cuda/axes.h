/* Strided views on the device: from a position counted row-major to the offsets of two operands.
 *
 * Below 2^31 positions, division by a shape is a multiplication (Granlund and Montgomery, "Division by invariant
 * integers using multiplication", PLDI 1994): floor(n / d) = (mulhi(n, m) + n) >> s with s = ceil(log2 d) and
 * m = floor(2^32 (2^s - d) / d) + 1. */
#ifndef SLK_CUDA_AXES_H
#define SLK_CUDA_AXES_H

#include "cuda.h"
#include "kernels/view.h"

struct slk_axes {
  int rank;
  int64_t shape[SL_MAX_RANK], strides[2][SL_MAX_RANK];
  uint32_t multiplier[SL_MAX_RANK], shift[SL_MAX_RANK];
  bool wide; /* 2^31 positions or more */
};

/* The view's axes `first` .. `first + rank - 1`. */
static inline slk_axes slk_axes_of(const slk_view *view, int first, int rank) {
  slk_axes axes = {};
  int64_t total = 1;
  axes.rank = rank;
  for (int i = 0; i < rank; i++) {
    int64_t d = axes.shape[i] = view->shape[first + i];
    axes.strides[0][i] = view->strides[0][first + i];
    axes.strides[1][i] = view->strides[1][first + i];
    total *= d;
    if (d < 1 || d > INT32_MAX) continue;
    while ((static_cast<uint64_t>(1) << axes.shift[i]) < static_cast<uint64_t>(d)) axes.shift[i]++;
    uint64_t over = (static_cast<uint64_t>(1) << axes.shift[i]) - static_cast<uint64_t>(d);
    axes.multiplier[i] = static_cast<uint32_t>((over << 32) / static_cast<uint64_t>(d) + 1);
  }
  axes.wide = total > INT32_MAX;
  return axes;
}

template <bool WIDE>
static __device__ __forceinline__ void slk_axes_offsets(const slk_axes &axes, int64_t index, int64_t *a, int64_t *b) {
  int64_t at_a = 0, at_b = 0;
#pragma unroll
  for (int i = SL_MAX_RANK - 1; i >= 0; i--) { /* bounds known to the compiler: the arrays stay out of local memory */
    if (i >= axes.rank) continue;
    int64_t above = 0, at = index;
    if (i > 0 && WIDE) {
      above = index / axes.shape[i];
      at = index - above * axes.shape[i];
    } else if (i > 0) {
      uint32_t n = static_cast<uint32_t>(index);
      uint32_t high = static_cast<uint32_t>((static_cast<uint64_t>(n) * axes.multiplier[i]) >> 32);
      above = (high + n) >> axes.shift[i];
      at = n - static_cast<uint32_t>(above) * static_cast<uint32_t>(axes.shape[i]);
    }
    at_a += at * axes.strides[0][i];
    at_b += at * axes.strides[1][i];
    index = above;
  }
  *a = at_a;
  *b = at_b;
}

#endif
