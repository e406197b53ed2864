/* Softmax, layer normalisation, losses, dropout. */
#include "nn.h"
#include "op.h"

/* -- Softmax -- */

static sl_status softmax_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *y = node->output_like;
  SL_TRY(sl_tensor_create_like(grad, SL_F32, &grads[0]));
  sl_softmax_backward_args args = { .y = sl_tensor_f32(y),
                                    .dy = sl_tensor_f32(grad),
                                    .dx = sl_tensor_f32(grads[0]),
                                    .rows = sl__count_rows(y),
                                    .n = y->shape[y->rank - 1],
                                    .log = node->dims[0] != 0 };
  return SL_RUN(sl_tensor_device(grad), softmax_backward, &args);
}

static sl_status softmax(sl_op *op, const sl_tensor *x, bool log) {
  sl_tensor *dense, *inputs[] = { sl__mutable(x) };
  SL_TRY(sl__inputs(op, 1, inputs));
  SL_TRY(sl__dense(op, x, "x", SL_F32, -1, &dense));
  SL_TRY(sl__expect_rows(op, x));
  SL_TRY(sl__output(op, SL_F32, x->rank, x->shape));
  sl_softmax_args args = { .x = sl_tensor_f32(dense),
                           .y = sl_tensor_f32(*op->out),
                           .rows = sl__count_rows(x),
                           .n = x->shape[x->rank - 1],
                           .log = log };
  SL_TRY(SL_RUN(op->device, softmax, &args));
  sl_node node = { .backward = softmax_backward, .n_inputs = 1, .inputs = { inputs[0] }, .dims = { log } };
  return sl__record(op, &node);
}

sl_status sl_softmax(const sl_tensor *x, bool log, sl_tensor **out) {
  sl_op op = { .name = log ? "log_softmax" : "softmax", .out = out };
  return sl__close(&op, softmax(&op, x, log));
}

/* -- Layer norm -- */

/* inputs: x, residual, weight, bias; saved: s = x + residual, weight, mean, 1 /
 * deviation. */
static sl_status layer_norm_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *s = node->saved[0], *weight = node->saved[1];
  sl_device *device = sl_tensor_device(grad);
  bool wants_s = node->wants[0] || node->wants[1];
  sl_layernorm_backward_args args = { .s = sl_tensor_f32(s),
                                      .weight = sl_tensor_f32(weight),
                                      .mean = sl_tensor_f32(node->saved[2]),
                                      .rstd = sl_tensor_f32(node->saved[3]),
                                      .dy = sl_tensor_f32(grad),
                                      .rows = sl__count_rows(s),
                                      .n = weight->shape[0] };
  if (node->wants[2]) SL_TRY(sl_tensor_create_like(weight, SL_F32, &grads[2]));
  if (node->wants[3]) SL_TRY(sl_tensor_create_like(weight, SL_F32, &grads[3]));
  args.dweight = grads[2] != NULL ? sl_tensor_f32(grads[2]) : NULL;
  args.dbias = grads[3] != NULL ? sl_tensor_f32(grads[3]) : NULL;
  sl_tensor *ds = NULL;
  if (wants_s) SL_TRY(sl_tensor_create_like(grad, SL_F32, &ds));
  args.ds = ds != NULL ? sl_tensor_f32(ds) : NULL;
  if (node->wants[0]) grads[0] = sl_tensor_retain(ds);
  if (node->wants[1]) grads[1] = sl_tensor_retain(ds);
  sl_tensor_release(ds);
  sl_status status;
  SL_RUN_WORKING(status, device, layernorm_backward, &args);
  return status;
}

static sl_status check_layer_norm(const sl_op *op, sl_tensor *const *inputs) {
  char text[SL_SHAPE_TEXT], other[SL_SHAPE_TEXT];
  const sl_tensor *x = inputs[0], *residual = inputs[1];
  SL_TRY(sl__expect_rows(op, x));
  if (residual != NULL && !sl_tensor_same_shape(x, residual)) {
    return sl_fail(SL_ESHAPE, "%s: x %s and residual %s differ", op->name, sl_tensor_shape_text(x, text),
                   sl_tensor_shape_text(residual, other));
  }
  for (int i = 2; i < 4; i++) {
    if (inputs[i]->rank == 1 && inputs[i]->shape[0] == x->shape[x->rank - 1]) continue;
    return sl_fail(SL_ESHAPE, "%s: x %s needs %s of shape [%lld], not %s", op->name,
                   sl_tensor_shape_text(x, text), i == 2 ? "a weight" : "a bias",
                   (long long)x->shape[x->rank - 1], sl_tensor_shape_text(inputs[i], other));
  }
  return SL_OK;
}

static sl_status layer_norm(sl_op *op, sl_tensor *const *inputs, float eps, sl_tensor **sum) {
  const sl_tensor *x = inputs[0];
  sl_tensor *dense, *residual = NULL, *weight, *bias, *s, *mean = NULL, *rstd = NULL;
  SL_TRY(sl__inputs(op, 4, inputs));
  SL_TRY(check_layer_norm(op, inputs));
  SL_TRY(sl__dense(op, x, "x", SL_F32, -1, &dense));
  if (inputs[1] != NULL) SL_TRY(sl__dense(op, inputs[1], "residual", SL_F32, -1, &residual));
  SL_TRY(sl__dense(op, inputs[2], "weight", SL_F32, 1, &weight));
  SL_TRY(sl__dense(op, inputs[3], "bias", SL_F32, 1, &bias));
  SL_TRY(sl__output(op, SL_F32, x->rank, x->shape));
  SL_TRY(sl__place(op, x, op->records && residual != NULL, sum, &s));
  int64_t rows = sl__count_rows(x);
  if (op->records) {
    SL_TRY(sl__scratch(op, SL_F32, 1, &rows, &mean));
    SL_TRY(sl__scratch(op, SL_F32, 1, &rows, &rstd));
  }
  sl_layernorm_args args = { .x = sl_tensor_f32(dense),
                             .residual = residual != NULL ? sl_tensor_f32(residual) : NULL,
                             .weight = sl_tensor_f32(weight),
                             .bias = sl_tensor_f32(bias),
                             .y = sl_tensor_f32(*op->out),
                             .sum = s != NULL ? sl_tensor_f32(s) : NULL,
                             .mean = mean != NULL ? sl_tensor_f32(mean) : NULL,
                             .rstd = rstd != NULL ? sl_tensor_f32(rstd) : NULL,
                             .rows = rows,
                             .n = weight->shape[0],
                             .eps = eps };
  SL_TRY(SL_RUN(op->device, layernorm, &args));
  sl_node node = { .backward = layer_norm_backward,
                   .n_inputs = 4,
                   .inputs = { inputs[0], inputs[1], inputs[2], inputs[3] },
                   .n_saved = 4,
                   .saved = { residual != NULL ? s : dense, weight, mean, rstd } };
  return sl__record(op, &node);
}

sl_status sl_layer_norm(const sl_tensor *x, const sl_tensor *residual, const sl_tensor *weight,
                        const sl_tensor *bias, float eps, sl_tensor **sum, sl_tensor **out) {
  sl_op op = { .name = "layer_norm", .out = out };
  sl_tensor *inputs[] = { sl__mutable(x), sl__mutable(residual), sl__mutable(weight), sl__mutable(bias) };
  bool made_sum = sum != NULL && *sum == NULL;
  sl_status status = layer_norm(&op, inputs, eps, sum);
  if (status != SL_OK && made_sum) {
    sl_tensor_release(*sum);
    *sum = NULL;
  }
  return sl__close(&op, status);
}

/* -- Losses -- */

/* saved: logits, log-sum-exp, targets; numbers: 1 / counted rows. */
static sl_status cross_entropy_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *logits = node->saved[0];
  sl_device *device = sl_tensor_device(grad);
  int64_t rows = logits->shape[0];
  sl_tensor *scaled = NULL, *view = NULL, *dloss = NULL;
  sl_status status = sl_unary(SL_UNARY_MUL_SCALAR, grad, (float)node->numbers[0], &scaled);
  if (status == SL_OK) status = sl_tensor_expand(scaled, 1, &rows, &view);
  if (status == SL_OK) status = sl_tensor_contiguous(view, &dloss);
  if (status == SL_OK) status = sl_tensor_create_like(logits, SL_F32, &grads[0]);
  if (status == SL_OK) {
    sl_cross_entropy_backward_args args = { .logits = sl_tensor_f32(logits),
                                            .lse = sl_tensor_f32(node->saved[1]),
                                            .targets = sl_tensor_data(node->saved[2]),
                                            .dloss = sl_tensor_f32(dloss),
                                            .dlogits = sl_tensor_f32(grads[0]),
                                            .rows = rows,
                                            .n = logits->shape[1] };
    status = SL_RUN(device, cross_entropy_backward, &args);
  }
  sl_tensor_release(scaled);
  sl_tensor_release(view);
  sl_tensor_release(dloss);
  return status;
}

/* The mean of the row losses over the counted rows into *op->out. */
static sl_status mean_of_counted(sl_op *op, const sl_tensor *losses, int64_t counted) {
  sl_reduce_args sum = { .op = SL_REDUCE_SUM,
                         .outer = 1,
                         .n = losses->shape[0],
                         .inner = 1,
                         .x = sl_tensor_f32(losses),
                         .y = sl_tensor_f32(*op->out) };
  sl_status status;
  SL_RUN_WORKING(status, op->device, reduce, &sum);
  SL_TRY(status);
  sl_unary_args scale = {
    .op = SL_UNARY_MUL_SCALAR, .p = (float)(1.0 / (double)counted), .x = sum.y, .y = sum.y, .n = 1
  };
  return SL_RUN(op->device, unary, &scale);
}

static sl_status cross_entropy(sl_op *op, const sl_tensor *logits, const sl_tensor *targets,
                               sl_tensor **per_row) {
  sl_tensor *dense, *ids, *losses, *lse, *inputs[] = { sl__mutable(logits) };
  char text[SL_SHAPE_TEXT], other[SL_SHAPE_TEXT];
  int64_t counted, rows = logits->shape[0];
  SL_TRY(sl__inputs(op, 1, inputs));
  SL_TRY(sl__dense(op, logits, "logits", SL_F32, 2, &dense));
  SL_TRY(sl__ids(op, targets, "targets", 1, (int64_t[]){ INT32_MIN, logits->shape[1] }, &counted, &ids));
  if (targets->shape[0] != logits->shape[0]) {
    return sl_fail(SL_ESHAPE, "%s: logits %s need as many targets as rows, not %s", op->name,
                   sl_tensor_shape_text(logits, text), sl_tensor_shape_text(targets, other));
  }
  if (counted == 0)
    return sl_fail(SL_EINVAL, "%s: no target is >= 0, so there is no row to average over", op->name);
  SL_TRY(sl__output(op, SL_F32, 0, NULL));
  SL_TRY(sl__place(op, ids, true, per_row, &losses));
  SL_TRY(sl__scratch(op, SL_F32, 1, &rows, &lse));
  sl_cross_entropy_args args = { .logits = sl_tensor_f32(dense),
                                 .targets = sl_tensor_data(ids),
                                 .loss = sl_tensor_f32(losses),
                                 .lse = op->records ? sl_tensor_f32(lse) : NULL,
                                 .rows = rows,
                                 .n = logits->shape[1] };
  SL_TRY(SL_RUN(op->device, cross_entropy, &args));
  SL_TRY(mean_of_counted(op, losses, counted));
  sl_node node = { .backward = cross_entropy_backward,
                   .n_inputs = 1,
                   .inputs = { inputs[0] },
                   .n_saved = 3,
                   .saved = { dense, lse, ids },
                   .numbers = { 1.0 / (double)counted } };
  return sl__record(op, &node);
}

sl_status sl_cross_entropy(const sl_tensor *logits, const sl_tensor *targets, sl_tensor **per_row,
                           sl_tensor **out) {
  sl_op op = { .name = "cross_entropy", .out = out };
  bool made_rows = per_row != NULL && *per_row == NULL;
  sl_status status = cross_entropy(&op, logits, targets, per_row);
  if (status != SL_OK && made_rows) {
    sl_tensor_release(*per_row);
    *per_row = NULL;
  }
  return sl__close(&op, status);
}

sl_status sl_mse_loss(const sl_tensor *a, const sl_tensor *b, sl_tensor **out) {
  char text_a[SL_SHAPE_TEXT], text_b[SL_SHAPE_TEXT];
  if (!sl_tensor_same_shape(a, b)) { /* broadcasting here is nearly always a mistake */
    return sl_fail(SL_ESHAPE, "mse_loss: a %s and b %s differ", sl_tensor_shape_text(a, text_a),
                   sl_tensor_shape_text(b, text_b));
  }
  sl_tensor *difference = NULL, *square = NULL;
  sl_status status = sl_sub(a, b, &difference);
  if (status == SL_OK) status = sl_unary(SL_UNARY_SQUARE, difference, 0, &square);
  if (status == SL_OK) status = sl_reduce(SL_REDUCE_MEAN, square, SL_ALL_DIMS, false, out);
  sl_tensor_release(difference);
  sl_tensor_release(square);
  return status;
}

/* -- Dropout -- */

enum { dropout_stream = 0x0d }; /* its own stream, so that no initialisation shares its numbers */

/* saved: the mask with its factor. */
static sl_status dropout_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  return sl_mul(grad, node->saved[0], &grads[0]);
}

/* mask = [w > p] / (1 - p) with w in (0, 1]: kept with probability 1 - p
 * exactly, also for p = 0. */
static sl_status draw_mask(sl_op *op, float p, const uint64_t key[2], sl_tensor *mask) {
  float *w = sl_tensor_f32(mask);
  int64_t n = sl_tensor_count(mask);
  sl_random_args draw = { .kind = SL_RANDOM_UNIFORM,
                          .seed = key[0],
                          .stream = dropout_stream,
                          .step = key[1],
                          .low = 1,
                          .high = 0,
                          .y = w,
                          .n = n };
  SL_TRY(SL_RUN(op->device, random, &draw));
  sl_unary_args keep = { .op = SL_UNARY_GT_SCALAR, .p = p, .x = w, .y = w, .n = n };
  SL_TRY(SL_RUN(op->device, unary, &keep));
  sl_unary_args scale = { .op = SL_UNARY_MUL_SCALAR, .p = 1.0f / (1.0f - p), .x = w, .y = w, .n = n };
  return SL_RUN(op->device, unary, &scale);
}

static sl_status dropout(sl_op *op, const sl_tensor *x, float p, const uint64_t key[2]) {
  sl_tensor *dense, *mask, *inputs[] = { sl__mutable(x) };
  SL_TRY(sl__inputs(op, 1, inputs));
  if (!(p >= 0 && p < 1)) return sl_fail(SL_EINVAL, "%s: p = %g, expected 0 <= p < 1", op->name, (double)p);
  SL_TRY(sl__dense(op, x, "x", SL_F32, -1, &dense));
  SL_TRY(sl__output(op, SL_F32, x->rank, x->shape));
  SL_TRY(sl__scratch(op, SL_F32, x->rank, x->shape, &mask));
  SL_TRY(draw_mask(op, p, key, mask));
  sl_binary_args args = { .op = SL_BINARY_MUL,
                          .rank = 1,
                          .shape = { sl_tensor_count(x) },
                          .strides_a = { 1 },
                          .strides_b = { 1 },
                          .a = sl_tensor_f32(dense),
                          .b = sl_tensor_f32(mask),
                          .y = sl_tensor_f32(*op->out) };
  SL_TRY(SL_RUN(op->device, binary, &args));
  sl_node node = {
    .backward = dropout_backward, .n_inputs = 1, .inputs = { inputs[0] }, .n_saved = 1, .saved = { mask }
  };
  return sl__record(op, &node);
}

sl_status sl_dropout(const sl_tensor *x, float p, uint64_t seed, uint64_t step, sl_tensor **out) {
  sl_op op = { .name = "dropout", .out = out };
  return sl__close(&op, dropout(&op, x, p, (const uint64_t[]){ seed, step }));
}
