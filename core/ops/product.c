/* Matrix products: matmul (plain and batched, transposed views without copies)
 * and the fused linear layer. */
#include "math.h"
#include "op.h"

/* A matrix (or a batch of them) as gemm wants it. */
typedef struct {
  const void *data;
  int64_t batch, rows, columns, ld, stride;
  bool transposed;
} matrix;

/* Reads the strides: row-major with any row stride, or the transpose of that;
 * anything else is copied. */
static sl_status as_matrix(sl_op *op, const sl_tensor *x, const char *argument, matrix *m) {
  int r = x->rank - 2, c = x->rank - 1;
  *m = (matrix){ .batch = x->rank == 3 ? x->shape[0] : 1, .rows = x->shape[r], .columns = x->shape[c] };
  bool plain = (m->columns == 1 || x->strides[c] == 1) && (m->rows == 1 || x->strides[r] >= m->columns);
  bool flipped = (m->rows == 1 || x->strides[r] == 1) && (m->columns == 1 || x->strides[c] >= m->rows);
  sl_tensor *dense = sl__mutable(x);
  if (!plain && !flipped) SL_TRY(sl__dense(op, x, argument, x->dtype, -1, &dense));
  m->transposed = flipped && !plain;
  m->data = sl_tensor_data(dense);
  m->stride = m->batch > 1 ? dense->strides[0] : 0;
  int64_t least = m->transposed ? m->rows : m->columns, ld = dense->strides[m->transposed ? c : r];
  m->ld = (m->transposed ? m->columns : m->rows) > 1 ? ld : least;
  if (m->ld < 1) m->ld = 1;
  return SL_OK;
}

static sl_status check_matmul(const sl_op *op, const sl_tensor *a, const sl_tensor *b) {
  char text_a[SL_SHAPE_TEXT], text_b[SL_SHAPE_TEXT];
  sl_tensor_shape_text(a, text_a), sl_tensor_shape_text(b, text_b);
  if ((a->dtype != SL_F32 && a->dtype != SL_BF16) || b->dtype != a->dtype) {
    return sl_fail(SL_EDTYPE, "%s: a is %s %s, b %s %s; expected both f32 or both bf16", op->name,
                   sl_dtype_name(a->dtype), text_a, sl_dtype_name(b->dtype), text_b);
  }
  if (a->rank < 2 || a->rank > 3 || b->rank < 2 || b->rank > 3) {
    return sl_fail(SL_ESHAPE, "%s: a %s, b %s: expected 2 or 3 dimensions each", op->name, text_a, text_b);
  }
  int64_t inner_a = a->shape[a->rank - 1], inner_b = b->shape[b->rank - 2];
  if (inner_a != inner_b) {
    return sl_fail(SL_ESHAPE, "%s: a %s, b %s: inner sizes %lld and %lld differ", op->name, text_a, text_b,
                   (long long)inner_a, (long long)inner_b);
  }
  if (a->rank == 3 && b->rank == 3 && a->shape[0] != b->shape[0] && a->shape[0] != 1 && b->shape[0] != 1) {
    return sl_fail(SL_ESHAPE, "%s: a %s, b %s: batch sizes %lld and %lld differ", op->name, text_a, text_b,
                   (long long)a->shape[0], (long long)b->shape[0]);
  }
  return SL_OK;
}

/* dA = dC B', dB = A' dC; summed over the batch where one matrix was shared. */
static sl_status transposed_product(const sl_tensor *a, bool flip_a, const sl_tensor *b, bool flip_b,
                                    const sl_tensor *like, sl_tensor **out) {
  sl_tensor *left = NULL, *right = NULL, *full = NULL;
  sl_status status = flip_a ? sl_tensor_transpose(a, a->rank - 2, a->rank - 1, &left) : SL_OK;
  if (status == SL_OK && flip_b) status = sl_tensor_transpose(b, b->rank - 2, b->rank - 1, &right);
  if (status == SL_OK) status = sl_matmul(left != NULL ? left : a, right != NULL ? right : b, &full);
  if (status == SL_OK) status = sl__reduce_to(full, like->rank, like->shape, out);
  sl_tensor_release(left);
  sl_tensor_release(right);
  sl_tensor_release(full);
  return status;
}

static sl_status matmul_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *a = node->inputs[0], *b = node->inputs[1];
  if (node->wants[0]) SL_TRY(transposed_product(grad, false, b, true, a, &grads[0]));
  if (node->wants[1]) SL_TRY(transposed_product(a, true, grad, false, b, &grads[1]));
  return SL_OK;
}

static sl_status refuse_bf16_gradient(const sl_op *op) {
  return sl_fail(SL_EDTYPE,
                 "%s: a bf16 product has no gradient, and the tape wants one; "
                 "convert to f32 with :to(\"f32\"), "
                 "or compute it outside the tape",
                 op->name);
}

static sl_status matmul(sl_op *op, const sl_tensor *a, const sl_tensor *b) {
  sl_tensor *inputs[] = { sl__mutable(a), sl__mutable(b) };
  SL_TRY(sl__inputs(op, 2, inputs));
  SL_TRY(check_matmul(op, a, b));
  if (op->records && a->dtype != SL_F32) return refuse_bf16_gradient(op);
  matrix ma, mb;
  SL_TRY(as_matrix(op, a, "a", &ma));
  SL_TRY(as_matrix(op, b, "b", &mb));
  /* A batch of one on one side is shared; an empty batch on either side gives
   * an empty result. */
  int64_t batch = ma.batch == 1 ? mb.batch : ma.batch;
  bool batched = a->rank == 3 || b->rank == 3;
  int64_t shape[3] = { batch, ma.rows, mb.columns };
  SL_TRY(sl__output(op, SL_F32, batched ? 3 : 2, batched ? shape : shape + 1));
  sl_gemm_args args = { .m = ma.rows,
                        .n = mb.columns,
                        .k = ma.columns,
                        .batch = batch,
                        .transpose_a = ma.transposed,
                        .transpose_b = mb.transposed,
                        .a = ma.data,
                        .b = mb.data,
                        .c = sl_tensor_data(*op->out),
                        .lda = ma.ld,
                        .ldb = mb.ld,
                        .ldc = mb.columns,
                        .stride_a = ma.stride,
                        .stride_b = mb.stride,
                        .stride_c = ma.rows * mb.columns,
                        .dtype_ab = a->dtype,
                        .dtype_c = SL_F32 };
  SL_TRY(SL_RUN(op->device, gemm, &args));
  sl_node node = { .backward = matmul_backward, .n_inputs = 2, .inputs = { inputs[0], inputs[1] } };
  return sl__record(op, &node);
}

sl_status sl_matmul(const sl_tensor *a, const sl_tensor *b, sl_tensor **out) {
  sl_op op = { .name = "matmul", .out = out };
  return sl__close(&op, matmul(&op, a, b));
}

/* -- Linear -- */

static const sl_unary_op slopes[] = { [SL_ACT_RELU] = SL_UNARY_RELU,
                                      [SL_ACT_GELU_ERF] = SL_UNARY_GELU,
                                      [SL_ACT_GELU_TANH] = SL_UNARY_GELU_TANH,
                                      [SL_ACT_TANH] = SL_UNARY_TANH };

/* relu and tanh have their slope from y; the gelus need the pre-activation. */
static bool needs_pre(sl_activation act) { return act == SL_ACT_GELU_ERF || act == SL_ACT_GELU_TANH; }

static sl_status through_activation(const sl_node *node, sl_tensor *grad, sl_tensor **out) {
  sl_activation act = (sl_activation)node->dims[0];
  if (act == SL_ACT_NONE) {
    *out = sl_tensor_retain(grad);
    return SL_OK;
  }
  SL_TRY(sl_tensor_create_like(grad, SL_F32, out));
  const sl_tensor *y = node->output_like, *x = needs_pre(act) ? node->saved[1] : y;
  sl_unary_backward_args args = { .op = slopes[act],
                                  .x = sl_tensor_f32(x),
                                  .y = sl_tensor_f32(y),
                                  .dy = sl_tensor_f32(grad),
                                  .dx = sl_tensor_f32(*out),
                                  .n = sl_tensor_count(y) };
  return SL_RUN(sl_tensor_device(grad), unary_backward, &args);
}

/* The gradients from d(pre-activation) seen as [rows, d_out]; saved[0] = x as
 * [rows, d_in]. */
static sl_status linear_gradients(const sl_node *node, sl_tensor *dpre, sl_tensor **grads) {
  const sl_tensor *x = node->inputs[0], *W = node->inputs[1], *rows = node->saved[0];
  if (node->wants[0]) {
    sl_tensor *flat = NULL;
    SL_TRY(sl_matmul(dpre, W, &flat));
    sl_status status = sl_tensor_view(flat, x->rank, x->shape, &grads[0]);
    sl_tensor_release(flat);
    SL_TRY(status);
  }
  if (node->wants[1]) SL_TRY(transposed_product(dpre, true, rows, false, W, &grads[1]));
  if (node->wants[2]) SL_TRY(sl__reduce_to(dpre, 1, dpre->shape + 1, &grads[2]));
  return SL_OK;
}

static sl_status linear_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  sl_tensor *dpre = NULL, *flat = NULL;
  int64_t shape[2] = { node->saved[0]->shape[0], node->inputs[1]->shape[0] };
  sl_status status = through_activation(node, grad, &dpre);
  if (status == SL_OK) status = sl_tensor_view(dpre, 2, shape, &flat);
  if (status == SL_OK) status = linear_gradients(node, flat, grads);
  sl_tensor_release(dpre);
  sl_tensor_release(flat);
  return status;
}

static sl_status check_linear(const sl_op *op, const sl_tensor *x, const sl_tensor *W, const sl_tensor *b) {
  char text_x[SL_SHAPE_TEXT], text_w[SL_SHAPE_TEXT], text_b[SL_SHAPE_TEXT];
  sl_tensor_shape_text(x, text_x), sl_tensor_shape_text(W, text_w);
  if (x->dtype != SL_F32 || (W->dtype != SL_F32 && W->dtype != SL_BF16)) {
    return sl_fail(SL_EDTYPE, "%s: x is %s %s, W %s %s; expected f32 and f32 or bf16", op->name,
                   sl_dtype_name(x->dtype), text_x, sl_dtype_name(W->dtype), text_w);
  }
  if (x->rank < 1 || W->rank != 2 || x->shape[x->rank - 1] != W->shape[1]) {
    return sl_fail(SL_ESHAPE, "%s: x %s, W %s: expected [..., d_in] and [d_out, d_in]", op->name, text_x,
                   text_w);
  }
  if (b == NULL) return SL_OK;
  SL_TRY(sl_tensor_expect(b, op->name, "b", SL_F32, 1));
  if (b->shape[0] == W->shape[0]) return SL_OK;
  return sl_fail(SL_ESHAPE, "%s: W %s, b %s: expected b [%lld]", op->name, text_w,
                 sl_tensor_shape_text(b, text_b), (long long)W->shape[0]);
}

/* x rounded to bf16, to match a bf16 W. */
static sl_status round_rows(sl_op *op, sl_tensor *x, sl_tensor **out) {
  SL_TRY(sl__scratch(op, SL_BF16, x->rank, x->shape, out));
  sl_cast_args args = { .x = sl_tensor_data(x),
                        .dtype_x = SL_F32,
                        .y = sl_tensor_data(*out),
                        .dtype_y = SL_BF16,
                        .n = sl_tensor_count(x) };
  return SL_RUN(op->device, cast, &args);
}

/* x as a contiguous [rows, d_in] that the op owns. */
static sl_status flatten(sl_op *op, const sl_tensor *x, sl_tensor **out) {
  sl_tensor *dense;
  SL_TRY(sl__dense(op, x, "x", SL_F32, -1, &dense));
  int64_t d_in = x->shape[x->rank - 1], rows = 1;
  for (int i = 0; i < x->rank - 1; i++) rows *= x->shape[i];
  SL_TRY(sl_tensor_view(dense, 2, (int64_t[]){ rows, d_in }, out));
  op->temporaries[op->n_temporaries++] = *out;
  return SL_OK;
}

static sl_status linear(sl_op *op, const sl_tensor *x, const sl_tensor *W, const sl_tensor *b,
                        sl_activation act) {
  sl_tensor *rows, *bias = NULL, *pre = NULL, *inputs[] = { sl__mutable(x), sl__mutable(W), sl__mutable(b) };
  SL_TRY(sl__inputs(op, 3, inputs));
  SL_TRY(check_linear(op, x, W, b));
  if (op->records && W->dtype != SL_F32) return refuse_bf16_gradient(op);
  SL_TRY(flatten(op, x, &rows));
  if (b != NULL) SL_TRY(sl__dense(op, b, "b", SL_F32, 1, &bias));
  matrix w;
  SL_TRY(as_matrix(op, W, "W", &w));
  int64_t shape[SL_MAX_RANK], d_out = W->shape[0];
  for (int i = 0; i < x->rank; i++) shape[i] = i == x->rank - 1 ? d_out : x->shape[i];
  SL_TRY(sl__output(op, SL_F32, x->rank, shape));
  if (op->records && needs_pre(act)) SL_TRY(sl__scratch(op, SL_F32, x->rank, shape, &pre));
  sl_tensor *product = rows;
  if (W->dtype == SL_BF16) SL_TRY(round_rows(op, rows, &product));
  sl_gemm_args args = { .m = rows->shape[0],
                        .n = d_out,
                        .k = rows->shape[1],
                        .batch = 1,
                        .transpose_b = !w.transposed,
                        .a = sl_tensor_data(product),
                        .b = w.data,
                        .c = sl_tensor_data(*op->out),
                        .lda = rows->shape[1] > 0 ? rows->shape[1] : 1,
                        .ldb = w.ld,
                        .ldc = d_out,
                        .dtype_ab = W->dtype,
                        .dtype_c = SL_F32,
                        .bias = bias != NULL ? sl_tensor_f32(bias) : NULL,
                        .activation = act,
                        .pre_activation = pre != NULL ? sl_tensor_f32(pre) : NULL };
  SL_TRY(SL_RUN(op->device, gemm, &args));
  sl_node node = { .backward = linear_backward,
                   .n_inputs = 3,
                   .inputs = { inputs[0], inputs[1], inputs[2] },
                   .n_saved = 2,
                   .saved = { rows, pre },
                   .dims = { (int64_t)act } };
  return sl__record(op, &node);
}

sl_status sl_linear(const sl_tensor *x, const sl_tensor *W, const sl_tensor *b, sl_activation act,
                    sl_tensor **out) {
  sl_op op = { .name = "linear", .out = out };
  return sl__close(&op, linear(&op, x, W, b, act));
}
