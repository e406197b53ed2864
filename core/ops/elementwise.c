/* Element-wise operations: binary with broadcasting, unary, casts, detach. */
#include "math.h"
#include "op.h"

/* -- Binary -- */

static const char *const binary_names[SL_BINARY_COUNT] = { "add",     "sub",     "mul", "div",
                                                           "maximum", "minimum", "eq",  "gt" };

/* The NumPy rule: align from the end, equal or 1. */
static sl_status broadcast_shape(const sl_op *op, const sl_tensor *a, const sl_tensor *b, int *rank,
                                 int64_t *shape) {
  *rank = a->rank > b->rank ? a->rank : b->rank;
  for (int i = 0; i < *rank; i++) {
    int at_a = i - (*rank - a->rank), at_b = i - (*rank - b->rank);
    int64_t size_a = at_a >= 0 ? a->shape[at_a] : 1, size_b = at_b >= 0 ? b->shape[at_b] : 1;
    if (size_a != size_b && size_a != 1 && size_b != 1) {
      char text_a[SL_SHAPE_TEXT], text_b[SL_SHAPE_TEXT];
      return sl_fail(SL_ESHAPE, "%s: a %s and b %s do not broadcast: sizes %lld and %lld", op->name,
                     sl_tensor_shape_text(a, text_a), sl_tensor_shape_text(b, text_b), (long long)size_a,
                     (long long)size_b);
    }
    shape[i] = size_a == 1 ? size_b : size_a;
  }
  return SL_OK;
}

static void broadcast_strides(const sl_tensor *x, int rank, int64_t *strides) {
  for (int i = 0; i < rank; i++) {
    int at = i - (rank - x->rank);
    strides[i] = at < 0 || x->shape[at] == 1 ? 0 : x->strides[at];
  }
}

/* out = reduced(f(grad, other)), the two-line step that most binary gradients
 * are. */
static sl_status product_gradient(sl_binary_op f, sl_tensor *grad, const sl_tensor *other,
                                  const sl_tensor *target, sl_tensor **out) {
  sl_tensor *full = NULL;
  SL_TRY(sl_binary(f, grad, other, &full));
  sl_status status = sl__reduce_to(full, target->rank, target->shape, out);
  sl_tensor_release(full);
  return status;
}

static sl_status negated(sl_tensor *x, sl_tensor **out) {
  sl_status status = sl_unary(SL_UNARY_NEG, x, 0, out);
  sl_tensor_release(x);
  return status;
}

static sl_status add_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  for (int i = 0; i < 2; i++) {
    if (node->wants[i]) SL_TRY(sl__reduce_to(grad, node->inputs[i]->rank, node->inputs[i]->shape, &grads[i]));
  }
  return SL_OK;
}

static sl_status sub_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *a = node->inputs[0], *b = node->inputs[1];
  if (node->wants[0]) SL_TRY(sl__reduce_to(grad, a->rank, a->shape, &grads[0]));
  if (!node->wants[1]) return SL_OK;
  sl_tensor *sum;
  SL_TRY(sl__reduce_to(grad, b->rank, b->shape, &sum));
  return negated(sum, &grads[1]);
}

static sl_status mul_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *a = node->inputs[0], *b = node->inputs[1];
  if (node->wants[0]) SL_TRY(product_gradient(SL_BINARY_MUL, grad, b, a, &grads[0]));
  if (node->wants[1]) SL_TRY(product_gradient(SL_BINARY_MUL, grad, a, b, &grads[1]));
  return SL_OK;
}

/* d(a/b): 1/b and -(a/b)/b = -y/b. */
static sl_status div_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *a = node->inputs[0], *b = node->inputs[1];
  sl_tensor *over = NULL, *sum = NULL;
  SL_TRY(sl_binary(SL_BINARY_DIV, grad, b, &over));
  sl_status status = SL_OK;
  if (node->wants[0]) status = sl__reduce_to(over, a->rank, a->shape, &grads[0]);
  if (status == SL_OK && node->wants[1]) {
    status = product_gradient(SL_BINARY_MUL, over, node->output_like, b, &sum);
    if (status == SL_OK) status = negated(sum, &grads[1]);
  }
  sl_tensor_release(over);
  return status;
}

/* The gradient goes to the side that won; ties give half to each, as in
 * PyTorch. */
static sl_status winner_gradient(const sl_tensor *winner, const sl_tensor *loser, sl_tensor *grad,
                                 const sl_tensor *target, sl_tensor **out) {
  sl_tensor *above = NULL, *equal = NULL, *half = NULL, *share = NULL;
  sl_status status = sl_binary(SL_BINARY_GT, winner, loser, &above);
  if (status == SL_OK) status = sl_binary(SL_BINARY_EQ, winner, loser, &equal);
  if (status == SL_OK) status = sl_unary(SL_UNARY_MUL_SCALAR, equal, 0.5f, &half);
  if (status == SL_OK) status = sl_add(above, half, &share);
  if (status == SL_OK) status = product_gradient(SL_BINARY_MUL, grad, share, target, out);
  sl_tensor_release(above);
  sl_tensor_release(equal);
  sl_tensor_release(half);
  sl_tensor_release(share);
  return status;
}

static sl_status max_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *a = node->inputs[0], *b = node->inputs[1];
  if (node->wants[0]) SL_TRY(winner_gradient(a, b, grad, a, &grads[0]));
  if (node->wants[1]) SL_TRY(winner_gradient(b, a, grad, b, &grads[1]));
  return SL_OK;
}

static sl_status min_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *a = node->inputs[0], *b = node->inputs[1];
  if (node->wants[0]) SL_TRY(winner_gradient(b, a, grad, a, &grads[0]));
  if (node->wants[1]) SL_TRY(winner_gradient(a, b, grad, b, &grads[1]));
  return SL_OK;
}

static const sl_backward_fn binary_backward[SL_BINARY_COUNT] = {
  [SL_BINARY_ADD] = add_backward, [SL_BINARY_SUB] = sub_backward, [SL_BINARY_MUL] = mul_backward,
  [SL_BINARY_DIV] = div_backward, [SL_BINARY_MAX] = max_backward, [SL_BINARY_MIN] = min_backward,
};

static sl_status binary(sl_op *op, sl_binary_op f, const sl_tensor *a, const sl_tensor *b) {
  sl_tensor *inputs[] = { sl__mutable(a), sl__mutable(b) };
  SL_TRY(sl__inputs(op, 2, inputs));
  if (binary_backward[f] == NULL) op->records = false; /* comparisons have no slope */
  SL_TRY(sl_tensor_expect(a, op->name, "a", SL_F32, -1));
  SL_TRY(sl_tensor_expect(b, op->name, "b", SL_F32, -1));
  sl_binary_args args = { .op = f };
  SL_TRY(broadcast_shape(op, a, b, &args.rank, args.shape));
  SL_TRY(sl__output(op, SL_F32, args.rank, args.shape));
  broadcast_strides(a, args.rank, args.strides_a);
  broadcast_strides(b, args.rank, args.strides_b);
  args.a = sl_tensor_f32(a), args.b = sl_tensor_f32(b), args.y = sl_tensor_f32(*op->out);
  SL_TRY(SL_RUN(op->device, binary, &args));
  sl_node node = { .backward = binary_backward[f], .n_inputs = 2, .inputs = { inputs[0], inputs[1] } };
  return sl__record(op, &node);
}

sl_status sl_binary(sl_binary_op f, const sl_tensor *a, const sl_tensor *b, sl_tensor **out) {
  sl_op op = { .name = binary_names[f], .out = out };
  return sl__close(&op, binary(&op, f, a, b));
}

/* -- Unary -- */

static const char *const unary_names[SL_UNARY_COUNT] = {
#define X(id, name, f, df) name,
  SL_UNARY_LIST(X)
#undef X
};

/* saved: x as it was computed on (contiguous), y. */
static sl_status unary_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *x = node->saved[0], *y = node->saved[1];
  SL_TRY(sl_tensor_create_like(grad, SL_F32, &grads[0]));
  sl_unary_backward_args args = { .op = (sl_unary_op)node->dims[0],
                                  .p = (float)node->numbers[0],
                                  .x = sl_tensor_f32(x),
                                  .y = sl_tensor_f32(y),
                                  .dy = sl_tensor_f32(grad),
                                  .dx = sl_tensor_f32(grads[0]),
                                  .n = sl_tensor_count(x) };
  return SL_RUN(sl_tensor_device(grad), unary_backward, &args);
}

static sl_status unary(sl_op *op, sl_unary_op f, const sl_tensor *x, float p) {
  sl_tensor *dense, *inputs[] = { sl__mutable(x) };
  SL_TRY(sl__inputs(op, 1, inputs));
  if (f == SL_UNARY_GT_SCALAR || f == SL_UNARY_SIGN) op->records = false;
  SL_TRY(sl__dense(op, x, "x", SL_F32, -1, &dense));
  SL_TRY(sl__output(op, SL_F32, x->rank, x->shape));
  sl_unary_args args = {
    .op = f, .p = p, .x = sl_tensor_f32(dense), .y = sl_tensor_f32(*op->out), .n = sl_tensor_count(x)
  };
  SL_TRY(SL_RUN(op->device, unary, &args));
  sl_node node = { .backward = unary_backward,
                   .n_inputs = 1,
                   .inputs = { inputs[0] },
                   .n_saved = 2,
                   .saved = { dense, *op->out },
                   .numbers = { (double)p },
                   .dims = { (int64_t)f } };
  return sl__record(op, &node);
}

sl_status sl_unary(sl_unary_op f, const sl_tensor *x, float p, sl_tensor **out) {
  sl_op op = { .name = unary_names[f], .out = out };
  return sl__close(&op, unary(&op, f, x, p));
}

/* -- Casts and detach -- */

static bool is_float(sl_dtype dtype) { return dtype == SL_F32 || dtype == SL_BF16 || dtype == SL_F16; }

/* Gradients are float32 whatever the value was stored in. */
static sl_status pass_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  (void)node;
  grads[0] = sl_tensor_retain(grad);
  return SL_OK;
}

static sl_status cast(sl_op *op, const sl_tensor *x, sl_dtype dtype) {
  sl_tensor *dense, *inputs[] = { sl__mutable(x) };
  SL_TRY(sl__inputs(op, 1, inputs));
  op->records = op->records && is_float(x->dtype) && is_float(dtype);
  SL_TRY(sl__dense(op, x, "x", x->dtype, -1, &dense));
  SL_TRY(sl__output(op, dtype, x->rank, x->shape));
  sl_cast_args args = { .x = sl_tensor_data(dense),
                        .dtype_x = x->dtype,
                        .y = sl_tensor_data(*op->out),
                        .dtype_y = dtype,
                        .n = sl_tensor_count(x) };
  SL_TRY(SL_RUN(op->device, cast, &args));
  sl_node node = { .backward = pass_backward, .n_inputs = 1, .inputs = { inputs[0] } };
  return sl__record(op, &node);
}

sl_status sl_cast(const sl_tensor *x, sl_dtype dtype, sl_tensor **out) {
  if (x->dtype == dtype && *out == NULL) {
    *out = sl_tensor_retain(sl__mutable(x));
    return SL_OK;
  }
  sl_op op = { .name = "cast", .out = out };
  return sl__close(&op, cast(&op, x, dtype));
}

sl_status sl_detach(const sl_tensor *x, sl_tensor **out) {
  if (*out != NULL) return sl_tensor_copy_(*out, x);
  return sl_tensor_expand(x, x->rank, x->shape, out); /* to its own shape: a second header over the storage */
}
