/* Differentiable arithmetic on tensors: element-wise, reductions, products, shape changes.
 *
 * Conventions of every operation in core/ops: inputs float32 unless stated, on one device; *out NULL
 * allocates, else the result is written into *out (refused while the tape records the operation);
 * shapes broadcast as in NumPy; the tape records when it is active and an input is tracked; the
 * interrupt flag is checked on entry. Dimensions are 0-based; negative ones count from the end. */
#ifndef SL_OPS_MATH_H
#define SL_OPS_MATH_H

#include "core/tensor/tape.h"

/* f(a, b) element by element. eq and gt give 0 or 1 and are never recorded; where a and b tie, maximum and minimum
 * send half of the gradient to each. */
sl_status sl_binary(sl_binary_op op, const sl_tensor *a, const sl_tensor *b, sl_tensor **out);
static inline sl_status sl_add(const sl_tensor *a, const sl_tensor *b, sl_tensor **out) {
  return sl_binary(SL_BINARY_ADD, a, b, out);
}
static inline sl_status sl_sub(const sl_tensor *a, const sl_tensor *b, sl_tensor **out) {
  return sl_binary(SL_BINARY_SUB, a, b, out);
}
static inline sl_status sl_mul(const sl_tensor *a, const sl_tensor *b, sl_tensor **out) {
  return sl_binary(SL_BINARY_MUL, a, b, out);
}
static inline sl_status sl_div(const sl_tensor *a, const sl_tensor *b, sl_tensor **out) {
  return sl_binary(SL_BINARY_DIV, a, b, out);
}

/* y = f(x; p); p is ignored by operations without a scalar. */
sl_status sl_unary(sl_unary_op op, const sl_tensor *x, float p, sl_tensor **out);

/* Over one dimension, or over all with dim = SL_ALL_DIMS. float64 sums, rounded once. */
#define SL_ALL_DIMS (-100)
sl_status sl_reduce(sl_reduce_op op, const sl_tensor *x, int dim, bool keep_dim, sl_tensor **out);
/* Positions (int32) of the largest entries along a dimension, lowest on ties; never recorded. */
sl_status sl_argmax(const sl_tensor *x, int dim, sl_tensor **out);

/* [m, k] x [k, n], or batched [b, m, k] x [b, k, n] (b may be 1 on either side). Transposed views cost no copy.
 * f32, or both bf16 (f32 result; SL_EDTYPE while the tape wants its gradient). */
sl_status sl_matmul(const sl_tensor *a, const sl_tensor *b, sl_tensor **out);

/* x [..., d_in], W [d_out, d_in], b [d_out] or NULL -> act(x W' + b), [..., d_out]. W may be bf16 with f32 x: x is
 * then rounded to bf16 for the product (SL_EDTYPE while the tape wants its gradient). */
sl_status sl_linear(const sl_tensor *x, const sl_tensor *W, const sl_tensor *b, sl_activation act, sl_tensor **out);

/* Views that the tape follows. reshape copies only when x is not contiguous; one size may be -1: what is left. */
sl_status sl_reshape(const sl_tensor *x, int rank, const int64_t *shape, sl_tensor **out);
sl_status sl_transpose(const sl_tensor *x, int a, int b, sl_tensor **out);
sl_status sl_slice(const sl_tensor *x, int dim, int64_t start, int64_t length, sl_tensor **out);
/* Position `index` of a dimension, which goes away. */
sl_status sl_select(const sl_tensor *x, int dim, int64_t index, sl_tensor **out);
sl_status sl_expand(const sl_tensor *x, int rank, const int64_t *shape, sl_tensor **out);
sl_status sl_contiguous(const sl_tensor *x, sl_tensor **out);
sl_status sl_concat(int n, sl_tensor *const *xs, int dim, sl_tensor **out);
/* Up to 64 tensors of one shape along a new dimension. */
sl_status sl_stack(int n, sl_tensor *const *xs, int dim, sl_tensor **out);

/* Another dtype; f32 <-> bf16/f16 is recorded (the gradient passes through unrounded). */
sl_status sl_cast(const sl_tensor *x, sl_dtype dtype, sl_tensor **out);

/* A copy that stops gradients: a new identity over the same storage. */
sl_status sl_detach(const sl_tensor *x, sl_tensor **out);

#endif
