/* Rows by id (embedding, gather_rows), row-wise selection and the open sparse
 * decoder; see sparse.h and nn.h. */
#include "sparse.h"

#include "nn.h"
#include "op.h"

/* -- Rows by id -- */

/* saved: ids. */
static sl_status rows_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *table = node->inputs[0], *ids = node->saved[0];
  SL_TRY(sl_tensor_zeros(sl_tensor_device(grad), SL_F32, 2, table->shape, &grads[0]));
  sl_embedding_backward_args args = { .dy = sl_tensor_f32(grad),
                                      .ids = sl_tensor_data(ids),
                                      .dtable = sl_tensor_f32(grads[0]),
                                      .rows = sl_tensor_count(ids),
                                      .n = table->shape[1],
                                      .table_rows = table->shape[0] };
  sl_status status;
  SL_RUN_WORKING(status, sl_tensor_device(grad), embedding_backward, &args);
  return status;
}

static sl_status take_rows(sl_op *op, const sl_tensor *table, const sl_tensor *ids, int ids_rank, bool known) {
  char text[SL_SHAPE_TEXT];
  sl_tensor *dense, *dense_ids, *inputs[] = { sl__mutable(table) };
  SL_TRY(sl__inputs(op, 1, inputs));
  if (table->dtype != SL_F32 && table->dtype != SL_BF16 && table->dtype != SL_F16) {
    return sl_fail(SL_EDTYPE, "%s: the table is %s, expected f32, bf16 or f16", op->name,
                   sl_dtype_name(table->dtype));
  }
  SL_TRY(sl__dense(op, table, "the table", table->dtype, 2, &dense));
  if (known) SL_TRY(sl__dense(op, ids, "ids", SL_I32, ids_rank, &dense_ids));
  else SL_TRY(sl__ids(op, ids, "ids", ids_rank, (int64_t[]){ 0, table->shape[0] }, NULL, &dense_ids));
  if (ids->rank == SL_MAX_RANK) {
    return sl_fail(SL_ESHAPE, "%s: ids %s leave no dimension for the rows", op->name,
                   sl_tensor_shape_text(ids, text));
  }
  int64_t shape[SL_MAX_RANK];
  for (int i = 0; i < ids->rank; i++) shape[i] = ids->shape[i];
  shape[ids->rank] = table->shape[1];
  SL_TRY(sl__output(op, SL_F32, ids->rank + 1, shape));
  sl_embedding_args args = { .table = sl_tensor_data(dense),
                             .dtype = table->dtype,
                             .ids = sl_tensor_data(dense_ids),
                             .y = sl_tensor_f32(*op->out),
                             .rows = sl_tensor_count(ids),
                             .n = table->shape[1] };
  SL_TRY(SL_RUN(op->device, embedding, &args));
  sl_node node = {
    .backward = rows_backward, .n_inputs = 1, .inputs = { inputs[0] }, .n_saved = 1, .saved = { dense_ids }
  };
  return sl__record(op, &node);
}

sl_status sl_embedding(const sl_tensor *table, const sl_tensor *ids, sl_tensor **out) {
  sl_op op = { .name = "embedding", .out = out };
  return sl__close(&op, take_rows(&op, table, ids, -1, false));
}

sl_status sl_embedding_known(const sl_tensor *table, const sl_tensor *ids, sl_tensor **out) {
  sl_op op = { .name = "embedding", .out = out };
  return sl__close(&op, take_rows(&op, table, ids, -1, true));
}

sl_status sl_gather_rows(const sl_tensor *x, const sl_tensor *ids, sl_tensor **out) {
  sl_op op = { .name = "gather_rows", .out = out };
  return sl__close(&op, take_rows(&op, x, ids, 1, false));
}

/* -- Selection -- */

/* saved: indices. */
static sl_status topk_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *x = node->inputs[0];
  SL_TRY(sl_tensor_zeros(sl_tensor_device(grad), SL_F32, 2, x->shape, &grads[0]));
  sl_scatter_axis_args args = { .dy = sl_tensor_f32(grad),
                                .index = sl_tensor_data(node->saved[0]),
                                .dx = sl_tensor_f32(grads[0]),
                                .outer = x->shape[0],
                                .n = x->shape[1],
                                .k = grad->shape[1],
                                .inner = 1 };
  return SL_RUN(sl_tensor_device(grad), scatter_axis, &args);
}

static sl_status topk(sl_op *op, const sl_tensor *x, int64_t k, bool absolute, sl_tensor **indices) {
  char text[SL_SHAPE_TEXT];
  sl_tensor *dense, *inputs[] = { sl__mutable(x) };
  SL_TRY(sl__inputs(op, 1, inputs));
  SL_TRY(sl__dense(op, x, "x", SL_F32, 2, &dense));
  if (k < 1 || k > x->shape[1] || x->shape[1] > INT32_MAX) {
    return sl_fail(SL_EINVAL, "%s: k = %lld for rows of %s, expected 1 .. %lld", op->name, (long long)k,
                   sl_tensor_shape_text(x, text), (long long)x->shape[1]);
  }
  int64_t shape[2] = { x->shape[0], k };
  SL_TRY(sl__output(op, SL_F32, 2, shape));
  SL_TRY(sl_tensor_output(op->device, SL_I32, 2, shape, indices));
  sl_topk_rows_args args = { .x = sl_tensor_f32(dense),
                             .rows = shape[0],
                             .n = x->shape[1],
                             .k = k,
                             .absolute = absolute,
                             .values = sl_tensor_f32(*op->out),
                             .indices = sl_tensor_data(*indices) };
  SL_TRY(SL_RUN(op->device, topk_rows, &args));
  sl_node node = {
    .backward = topk_backward, .n_inputs = 1, .inputs = { inputs[0] }, .n_saved = 1, .saved = { *indices }
  };
  return sl__record(op, &node);
}

sl_status sl_topk(const sl_tensor *x, int64_t k, bool absolute, sl_tensor **values, sl_tensor **indices) {
  sl_op op = { .name = "topk", .out = values };
  bool made_indices = *indices == NULL;
  sl_status status = topk(&op, x, k, absolute, indices);
  if (status != SL_OK && made_indices) {
    sl_tensor_release(*indices);
    *indices = NULL;
  }
  return sl__close(&op, status);
}

/* -- Decoder -- */

/* inputs: values, W_dec, b_dec; saved: values, indices, W_dec, contiguous. */
static sl_status decode_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *values = node->saved[0], *W = node->saved[2];
  sl_device *device = sl_tensor_device(grad);
  if (node->wants[0]) SL_TRY(sl_tensor_create_like(values, SL_F32, &grads[0]));
  if (node->wants[1]) SL_TRY(sl_tensor_zeros(device, SL_F32, 2, W->shape, &grads[1]));
  if (node->wants[2]) SL_TRY(sl__reduce_to(grad, 1, grad->shape + 1, &grads[2]));
  sl_sparse_rows_backward_args args = { .values = sl_tensor_f32(values),
                                        .indices = sl_tensor_data(node->saved[1]),
                                        .weight = sl_tensor_f32(W),
                                        .dy = sl_tensor_f32(grad),
                                        .dvalues = grads[0] != NULL ? sl_tensor_f32(grads[0]) : NULL,
                                        .dweight = grads[1] != NULL ? sl_tensor_f32(grads[1]) : NULL,
                                        .rows = values->shape[0],
                                        .k = values->shape[1],
                                        .n = W->shape[1],
                                        .latents = W->shape[0] };
  sl_status status;
  SL_RUN_WORKING(status, device, sparse_rows_backward, &args);
  return status;
}

static sl_status check_decode(const sl_op *op, const sl_tensor *values, const sl_tensor *indices,
                              const sl_tensor *W, const sl_tensor *b) {
  char text[SL_SHAPE_TEXT], other[SL_SHAPE_TEXT];
  if (!sl_tensor_same_shape(values, indices)) {
    return sl_fail(SL_ESHAPE, "%s: values %s and indices %s differ", op->name,
                   sl_tensor_shape_text(values, text), sl_tensor_shape_text(indices, other));
  }
  if (b == NULL || (b->rank == 1 && b->shape[0] == W->shape[1])) return SL_OK;
  return sl_fail(SL_ESHAPE, "%s: W_dec %s needs b_dec [%lld], not %s", op->name,
                 sl_tensor_shape_text(W, text), (long long)W->shape[1], sl_tensor_shape_text(b, other));
}

static sl_status decode(sl_op *op, sl_tensor *const *inputs, const sl_tensor *indices) {
  sl_tensor *values, *ids, *W, *bias = NULL;
  SL_TRY(sl__inputs(op, 3, inputs));
  SL_TRY(sl__dense(op, inputs[0], "values", SL_F32, 2, &values));
  SL_TRY(sl__dense(op, inputs[1], "W_dec", SL_F32, 2, &W));
  SL_TRY(sl__ids(op, indices, "indices", 2, (int64_t[]){ 0, W->shape[0] }, NULL, &ids));
  if (inputs[2] != NULL) SL_TRY(sl__dense(op, inputs[2], "b_dec", SL_F32, 1, &bias));
  SL_TRY(check_decode(op, values, ids, W, bias));
  SL_TRY(sl__output(op, SL_F32, 2, (int64_t[]){ values->shape[0], W->shape[1] }));
  sl_sparse_rows_args args = { .values = sl_tensor_f32(values),
                               .indices = sl_tensor_data(ids),
                               .weight = sl_tensor_f32(W),
                               .bias = bias != NULL ? sl_tensor_f32(bias) : NULL,
                               .y = sl_tensor_f32(*op->out),
                               .rows = values->shape[0],
                               .k = values->shape[1],
                               .n = W->shape[1] };
  SL_TRY(SL_RUN(op->device, sparse_rows, &args));
  sl_node node = { .backward = decode_backward,
                   .n_inputs = 3,
                   .inputs = { inputs[0], inputs[1], inputs[2] },
                   .n_saved = 3,
                   .saved = { values, ids, W } };
  return sl__record(op, &node);
}

sl_status sl_sparse_decode(const sl_tensor *values, const sl_tensor *indices, const sl_tensor *W_dec,
                           const sl_tensor *b_dec, sl_tensor **out) {
  sl_op op = { .name = "sparse_decode", .out = out };
  sl_tensor *inputs[] = { sl__mutable(values), sl__mutable(W_dec), sl__mutable(b_dec) };
  return sl__close(&op, decode(&op, inputs, indices));
}

sl_status sl_normalize_rows_(sl_tensor *W, float eps) {
  sl_op op = { .name = "normalize_rows" };
  sl_tensor *inputs[] = { W };
  char text[SL_SHAPE_TEXT];
  SL_TRY(sl__inputs(&op, 1, inputs));
  SL_TRY(sl_tensor_expect(W, op.name, "W", SL_F32, 2));
  if (!sl_tensor_is_contiguous(W)) {
    return sl_fail(SL_ESHAPE,
                   "%s: %s is a strided view, and it is changed in place; pass "
                   "the whole matrix",
                   op.name, sl_tensor_shape_text(W, text));
  }
  sl_normalize_rows_args args = { .x = sl_tensor_f32(W), .rows = W->shape[0], .n = W->shape[1], .eps = eps };
  return SL_RUN(op.device, normalize_rows, &args);
}
