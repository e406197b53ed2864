/* Reductions over one dimension or all, and argmax. */

#include "math.h"
#include "op.h"

static const char *const names[] = {
  [SL_REDUCE_SUM] = "sum", [SL_REDUCE_MEAN] = "mean", [SL_REDUCE_MAX] = "max", [SL_REDUCE_MIN] = "min"
};

/* x seen as [outer, n, inner] and the shape that is left. */
typedef struct {
  int64_t outer, n, inner;
  int rank;
  int64_t shape[SL_MAX_RANK];
} reduction;

static sl_status plan(const char *op, const sl_tensor *x, int dim, bool keep_dim, reduction *r) {
  *r = (reduction){ .outer = 1, .n = 1, .inner = 1 };
  bool all = dim == SL_ALL_DIMS;
  if (!all) SL_TRY(sl__dim(op, x, dim, &dim));
  for (int i = 0; i < x->rank; i++) {
    bool reduced = all || i == dim;
    if (reduced)
      r->n *= x->shape[i];
    else if (i < dim)
      r->outer *= x->shape[i];
    else
      r->inner *= x->shape[i];
    if (!reduced || keep_dim) r->shape[r->rank++] = reduced ? 1 : x->shape[i];
  }
  return SL_OK;
}

static sl_status check_not_empty(const char *op, const sl_tensor *x, const reduction *r) {
  char text[SL_SHAPE_TEXT];
  if (r->n > 0 && r->n <= INT32_MAX) return SL_OK;
  return sl_fail(SL_ESHAPE, "%s: x %s has %lld entries to choose from; 1 to %d can be", op,
                 sl_tensor_shape_text(x, text), (long long)r->n, INT32_MAX);
}

/* dims: [outer, n, inner]; the gradient repeats along n. */
static sl_status spread_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *x = node->inputs[0];
  sl_device *device = sl_tensor_device(grad);
  SL_TRY(sl_tensor_create(device, SL_F32, x->rank, x->shape, &grads[0]));
  /* y = factor * grad with stride 0 along n: a product with a one-element
   * tensor. */
  sl_tensor *factor;
  SL_TRY(sl_tensor_create(device, SL_F32, 0, NULL, &factor));
  float value = (float)node->numbers[0];
  sl_status status = sl_tensor_write(factor, &value, sizeof value);
  int64_t n = node->dims[1], inner = node->dims[2];
  sl_binary_args args = { .op = SL_BINARY_MUL,
                          .rank = 3,
                          .shape = { node->dims[0], n, inner },
                          .strides_a = { inner, 0, 1 },
                          .strides_b = { 0, 0, 0 },
                          .a = sl_tensor_f32(grad),
                          .b = sl_tensor_f32(factor),
                          .y = sl_tensor_f32(grads[0]) };
  if (status == SL_OK) status = SL_RUN(device, binary, &args);
  sl_tensor_release(factor);
  return status;
}

/* saved: the positions; the gradient goes there. */
static sl_status chosen_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *x = node->inputs[0];
  SL_TRY(sl_tensor_zeros(sl_tensor_device(grad), SL_F32, x->rank, x->shape, &grads[0]));
  sl_scatter_axis_args args = { .dy = sl_tensor_f32(grad),
                                .index = sl_tensor_data(node->saved[0]),
                                .dx = sl_tensor_f32(grads[0]),
                                .outer = node->dims[0],
                                .n = node->dims[1],
                                .k = 1,
                                .inner = node->dims[2] };
  return SL_RUN(sl_tensor_device(grad), scatter_axis, &args);
}

static sl_status reduce(sl_op *op, sl_reduce_op f, const sl_tensor *x, int dim, bool keep_dim) {
  sl_tensor *dense, *index = NULL, *inputs[] = { sl__mutable(x) };
  reduction r;
  SL_TRY(sl__inputs(op, 1, inputs));
  SL_TRY(sl__dense(op, x, "x", SL_F32, -1, &dense));
  SL_TRY(plan(op->name, x, dim, keep_dim, &r));
  bool chooses = f == SL_REDUCE_MAX || f == SL_REDUCE_MIN;
  if (chooses) SL_TRY(check_not_empty(op->name, x, &r));
  SL_TRY(sl__output(op, SL_F32, r.rank, r.shape));
  if (chooses && op->records) SL_TRY(sl__scratch(op, SL_I32, r.rank, r.shape, &index));
  sl_reduce_args args = { .op = f,
                          .outer = r.outer,
                          .n = r.n,
                          .inner = r.inner,
                          .x = sl_tensor_f32(dense),
                          .y = sl_tensor_f32(*op->out),
                          .index = index != NULL ? sl_tensor_data(index) : NULL };
  sl_status status;
  SL_RUN_WORKING(status, op->device, reduce, &args);
  SL_TRY(status);
  sl_node node = { .backward = chooses ? chosen_backward : spread_backward,
                   .n_inputs = 1,
                   .inputs = { inputs[0] },
                   .dims = { r.outer, r.n, r.inner },
                   .n_saved = index != NULL,
                   .saved = { index },
                   .numbers = { f == SL_REDUCE_MEAN ? 1.0 / (double)r.n : 1.0 } };
  return sl__record(op, &node);
}

sl_status sl_reduce(sl_reduce_op f, const sl_tensor *x, int dim, bool keep_dim, sl_tensor **out) {
  sl_op op = { .name = names[f], .out = out };
  return sl__close(&op, reduce(&op, f, x, dim, keep_dim));
}

static sl_status argmax(sl_op *op, const sl_tensor *x, int dim) {
  sl_tensor *dense, *values, *inputs[] = { sl__mutable(x) };
  reduction r;
  SL_TRY(sl__inputs(op, 1, inputs));
  op->records = false;
  SL_TRY(sl__dense(op, x, "x", SL_F32, -1, &dense));
  SL_TRY(plan(op->name, x, dim, false, &r));
  SL_TRY(check_not_empty(op->name, x, &r));
  SL_TRY(sl__output(op, SL_I32, r.rank, r.shape));
  SL_TRY(sl__scratch(op, SL_F32, r.rank, r.shape, &values));
  sl_reduce_args args = { .op = SL_REDUCE_MAX,
                          .outer = r.outer,
                          .n = r.n,
                          .inner = r.inner,
                          .x = sl_tensor_f32(dense),
                          .y = sl_tensor_f32(values),
                          .index = sl_tensor_data(*op->out) };
  sl_status status;
  SL_RUN_WORKING(status, op->device, reduce, &args);
  return status;
}

sl_status sl_argmax(const sl_tensor *x, int dim, sl_tensor **out) {
  sl_op op = { .name = "argmax", .out = out };
  return sl__close(&op, argmax(&op, x, dim));
}
