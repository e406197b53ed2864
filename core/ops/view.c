/* Shape changes that the tape follows: reshape, transpose, slice, select,
 * expand, contiguous, concat, stack. */
#include "math.h"
#include "op.h"

/* -- Backward: the gradient takes the way back -- */

static sl_status reshape_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  return sl_tensor_view(grad, node->inputs[0]->rank, node->inputs[0]->shape, &grads[0]);
}

static sl_status transpose_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  sl_tensor *view;
  SL_TRY(sl_tensor_transpose(grad, (int)node->dims[0], (int)node->dims[1], &view));
  sl_status status = sl_tensor_contiguous(view, &grads[0]);
  sl_tensor_release(view);
  return status;
}

/* dims: dimension, start, length; length -1 = a selected position, whose
 * dimension is gone. */
static sl_status slice_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *x = node->inputs[0];
  sl_tensor *view;
  SL_TRY(sl_tensor_zeros(sl_tensor_device(grad), SL_F32, x->rank, x->shape, &grads[0]));
  int dim = (int)node->dims[0];
  if (node->dims[2] < 0)
    SL_TRY(sl_tensor_select(grads[0], dim, node->dims[1], &view));
  else
    SL_TRY(sl_tensor_slice(grads[0], dim, node->dims[1], node->dims[2], &view));
  sl_status status = sl_tensor_copy_(view, grad);
  sl_tensor_release(view);
  return status;
}

static sl_status expand_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  return sl__reduce_to(grad, node->inputs[0]->rank, node->inputs[0]->shape, &grads[0]);
}

static sl_status copy_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  (void)node;
  grads[0] = sl_tensor_retain(grad);
  return SL_OK;
}

/* -- Views -- */

/* Hands out `view` as the op's result and records it when x is a float32 on the
 * tape. */
static sl_status finish(sl_op *op, const sl_tensor *x, sl_tensor *view, sl_node *node) {
  SL_TRY(sl__output_view(op, view));
  node->n_inputs = 1;
  node->inputs[0] = sl__mutable(x);
  return sl__record(op, node);
}

static sl_status open_view(sl_op *op, const sl_tensor *x) {
  sl_tensor *inputs[] = { sl__mutable(x) };
  return sl__inputs(op, 1, inputs);
}

/* Replaces one -1 by what is left. */
static sl_status infer_shape(const sl_tensor *x, int rank, const int64_t *shape, int64_t *out) {
  int64_t known = 1, unknown = -1;
  char from[SL_SHAPE_TEXT], to[SL_SHAPE_TEXT];
  if (rank < 0 || rank > SL_MAX_RANK)
    return sl_fail(SL_ESHAPE, "reshape: %d dimensions; 0 to %d can be", rank, SL_MAX_RANK);
  for (int i = 0; i < rank; i++) {
    out[i] = shape[i];
    if (shape[i] == -1 && unknown < 0)
      unknown = i;
    else if (__builtin_mul_overflow(known, shape[i], &known))
      return sl_fail(SL_ESHAPE, "reshape: %s is too large to address", sl_shape_text(rank, shape, to));
  }
  if (unknown < 0) return SL_OK;
  if (known <= 0 || sl_tensor_count(x) % known != 0) {
    return sl_fail(SL_ESHAPE, "reshape: %s does not divide into %s", sl_tensor_shape_text(x, from),
                   sl_shape_text(rank, shape, to));
  }
  out[unknown] = sl_tensor_count(x) / known;
  return SL_OK;
}

static sl_status reshape(sl_op *op, const sl_tensor *x, int rank, const int64_t *shape) {
  sl_tensor *dense, *view;
  int64_t full[SL_MAX_RANK];
  SL_TRY(open_view(op, x));
  SL_TRY(infer_shape(x, rank, shape, full));
  SL_TRY(sl__dense(op, x, "x", x->dtype, -1, &dense));
  SL_TRY(sl_tensor_view(dense, rank, full, &view));
  return finish(op, x, view, &(sl_node){ .backward = reshape_backward });
}

sl_status sl_reshape(const sl_tensor *x, int rank, const int64_t *shape, sl_tensor **out) {
  sl_op op = { .name = "reshape", .out = out };
  return sl__close(&op, reshape(&op, x, rank, shape));
}

static sl_status transpose(sl_op *op, const sl_tensor *x, int a, int b) {
  sl_tensor *view;
  SL_TRY(open_view(op, x));
  SL_TRY(sl__dim(op->name, x, a, &a));
  SL_TRY(sl__dim(op->name, x, b, &b));
  SL_TRY(sl_tensor_transpose(x, a, b, &view));
  return finish(op, x, view, &(sl_node){ .backward = transpose_backward, .dims = { a, b } });
}

sl_status sl_transpose(const sl_tensor *x, int a, int b, sl_tensor **out) {
  sl_op op = { .name = "transpose", .out = out };
  return sl__close(&op, transpose(&op, x, a, b));
}

static sl_status slice(sl_op *op, const sl_tensor *x, int dim, int64_t start, int64_t length) {
  sl_tensor *view;
  SL_TRY(open_view(op, x));
  SL_TRY(sl__dim(op->name, x, dim, &dim));
  SL_TRY(sl_tensor_slice(x, dim, start, length, &view));
  return finish(op, x, view, &(sl_node){ .backward = slice_backward, .dims = { dim, start, length } });
}

sl_status sl_slice(const sl_tensor *x, int dim, int64_t start, int64_t length, sl_tensor **out) {
  sl_op op = { .name = "slice", .out = out };
  return sl__close(&op, slice(&op, x, dim, start, length));
}

static sl_status pick(sl_op *op, const sl_tensor *x, int dim, int64_t index) {
  sl_tensor *view;
  SL_TRY(open_view(op, x));
  SL_TRY(sl__dim(op->name, x, dim, &dim));
  SL_TRY(sl_tensor_select(x, dim, index, &view));
  return finish(op, x, view, &(sl_node){ .backward = slice_backward, .dims = { dim, index, -1 } });
}

sl_status sl_select(const sl_tensor *x, int dim, int64_t index, sl_tensor **out) {
  sl_op op = { .name = "select", .out = out };
  return sl__close(&op, pick(&op, x, dim, index));
}

static sl_status expand(sl_op *op, const sl_tensor *x, int rank, const int64_t *shape) {
  sl_tensor *view;
  SL_TRY(open_view(op, x));
  SL_TRY(sl_tensor_expand(x, rank, shape, &view));
  return finish(op, x, view, &(sl_node){ .backward = expand_backward });
}

sl_status sl_expand(const sl_tensor *x, int rank, const int64_t *shape, sl_tensor **out) {
  sl_op op = { .name = "expand", .out = out };
  return sl__close(&op, expand(&op, x, rank, shape));
}

static sl_status contiguous(sl_op *op, const sl_tensor *x) {
  sl_tensor *copy;
  SL_TRY(open_view(op, x));
  SL_TRY(sl_tensor_contiguous(x, &copy));
  return finish(op, x, copy, &(sl_node){ .backward = copy_backward });
}

sl_status sl_contiguous(const sl_tensor *x, sl_tensor **out) {
  if (*out == NULL && sl_tensor_is_contiguous(x)) { /* the same tensor: nothing to record */
    *out = sl_tensor_retain(sl__mutable(x));
    return SL_OK;
  }
  sl_op op = { .name = "contiguous", .out = out };
  return sl__close(&op, contiguous(&op, x));
}

/* -- Concat -- */

/* dims: dimension, where each part starts. */
static sl_status concat_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  int dim = (int)node->dims[0];
  for (int i = 0; i < node->n_inputs; i++) {
    sl_tensor *view;
    if (!node->wants[i]) continue;
    SL_TRY(sl_tensor_slice(grad, dim, node->dims[1 + i], node->inputs[i]->shape[dim], &view));
    sl_status status = sl_tensor_contiguous(view, &grads[i]);
    sl_tensor_release(view);
    SL_TRY(status);
  }
  return SL_OK;
}

static sl_status check_concat(const sl_op *op, int n, sl_tensor *const *xs, int dim, int64_t *total) {
  char first[SL_SHAPE_TEXT], other[SL_SHAPE_TEXT];
  *total = 0;
  for (int i = 0; i < n; i++) {
    bool fits = xs[i]->rank == xs[0]->rank && xs[i]->dtype == xs[0]->dtype;
    for (int j = 0; fits && j < xs[0]->rank; j++) fits = j == dim || xs[i]->shape[j] == xs[0]->shape[j];
    if (!fits) {
      return sl_fail(SL_ESHAPE,
                     "%s: part 1 is %s %s, part %d %s %s; they may differ in "
                     "dimension %d only",
                     op->name, sl_dtype_name(xs[0]->dtype), sl_tensor_shape_text(xs[0], first), i + 1,
                     sl_dtype_name(xs[i]->dtype), sl_tensor_shape_text(xs[i], other), dim + 1);
    }
    *total += xs[i]->shape[dim];
  }
  return SL_OK;
}

static sl_status concat_parts(sl_op *op, int n, sl_tensor *const *xs, int dim) {
  int64_t total, shape[SL_MAX_RANK];
  SL_TRY(sl__inputs(op, n, xs));
  SL_TRY(sl__dim(op->name, xs[0], dim, &dim));
  SL_TRY(check_concat(op, n, xs, dim, &total));
  for (int i = 0; i < xs[0]->rank; i++) shape[i] = i == dim ? total : xs[0]->shape[i];
  SL_TRY(sl__output(op, xs[0]->dtype, xs[0]->rank, shape));
  if (op->records && n > SL_NODE_INPUTS) {
    return sl_fail(SL_EUNSUPPORTED, "%s: %d parts; the tape follows at most %d at a time", op->name, n,
                   SL_NODE_INPUTS);
  }
  sl_node node = { .backward = concat_backward, .n_inputs = op->records ? n : 0, .dims = { dim } };
  int64_t start = 0;
  for (int i = 0; i < n; i++) {
    sl_tensor *view;
    SL_TRY(sl_tensor_slice(*op->out, dim, start, xs[i]->shape[dim], &view));
    sl_status status = sl_tensor_copy_(view, xs[i]);
    sl_tensor_release(view);
    SL_TRY(status);
    if (op->records) node.inputs[i] = xs[i], node.dims[1 + i] = start;
    start += xs[i]->shape[dim];
  }
  return sl__record(op, &node);
}

/* More parts than a node holds: groups first, then the groups. */
static sl_status concat_groups(int n, sl_tensor *const *xs, int dim, sl_tensor **out) {
  int size = (n + SL_NODE_INPUTS - 1) / SL_NODE_INPUTS, count = 0;
  sl_tensor *groups[SL_NODE_INPUTS] = { NULL };
  sl_status status = SL_OK;
  for (int from = 0; from < n && status == SL_OK; from += size) {
    status = sl_concat(from + size < n ? size : n - from, xs + from, dim, &groups[count++]);
  }
  if (status == SL_OK) status = sl_concat(count, groups, dim, out);
  for (int i = 0; i < count; i++) sl_tensor_release(groups[i]);
  return status;
}

sl_status sl_concat(int n, sl_tensor *const *xs, int dim, sl_tensor **out) {
  if (n < 1) return sl_fail(SL_EINVAL, "concat: no parts");
  if (n > SL_NODE_INPUTS && sl_tape_wants(n, xs)) return concat_groups(n, xs, dim, out);
  sl_op op = { .name = "concat", .out = out };
  return sl__close(&op, concat_parts(&op, n, xs, dim));
}

/* x with a dimension of size 1 at `dim`, recorded. */
static sl_status with_new_dim(sl_tensor *x, int dim, sl_tensor **out) {
  int64_t shape[SL_MAX_RANK];
  for (int i = 0; i <= x->rank; i++) shape[i] = i < dim ? x->shape[i] : i == dim ? 1 : x->shape[i - 1];
  return sl_reshape(x, x->rank + 1, shape, out);
}

sl_status sl_stack(int n, sl_tensor *const *xs, int dim, sl_tensor **out) {
  enum { most = 64 };
  sl_tensor *parts[most] = { NULL };
  char text[SL_SHAPE_TEXT];
  if (n < 1 || n > most) return sl_fail(SL_EINVAL, "stack: %d parts; 1 to %d can be", n, most);
  int rank = xs[0]->rank, at = dim < 0 ? dim + rank + 1 : dim;
  if (at < 0 || at > rank || rank == SL_MAX_RANK) {
    return sl_fail(SL_ESHAPE, "stack: no new dimension %d beside %s", dim < 0 ? dim : dim + 1,
                   sl_tensor_shape_text(xs[0], text));
  }
  sl_status status = SL_OK;
  for (int i = 0; i < n && status == SL_OK; i++) {
    status = xs[i]->rank == rank ? with_new_dim(xs[i], at, &parts[i])
                                 : sl_fail(SL_ESHAPE, "stack: part %d has %d dimensions, part 1 %d", i + 1,
                                           xs[i]->rank, rank);
  }
  if (status == SL_OK) status = sl_concat(n, parts, at, out);
  for (int i = 0; i < n; i++) sl_tensor_release(parts[i]);
  return status;
}
