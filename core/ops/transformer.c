/* Root-mean-square norm, rotary positions, gated activations. */
#include "transformer.h"

#include <math.h>

#include "op.h"

/* -- Root-mean-square norm -- */

/* inputs: x, residual, weight; saved: s = x + residual, weight, 1 / rms; numbers: offset. */
static sl_status rms_norm_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *s = node->saved[0], *weight = node->saved[1];
  sl_device *device = sl_tensor_device(grad);
  sl_rms_norm_backward_args args = { .s = sl_tensor_f32(s),
                                     .weight = sl_tensor_f32(weight),
                                     .rrms = sl_tensor_f32(node->saved[2]),
                                     .dy = sl_tensor_f32(grad),
                                     .rows = sl__count_rows(s),
                                     .n = weight->shape[0],
                                     .offset = (float)node->numbers[0] };
  sl_tensor *ds = NULL;
  if (node->wants[2]) SL_TRY(sl_tensor_create_like(weight, SL_F32, &grads[2]));
  if (node->wants[0] || node->wants[1]) SL_TRY(sl_tensor_create_like(grad, SL_F32, &ds));
  args.dweight = grads[2] != NULL ? sl_tensor_f32(grads[2]) : NULL;
  args.ds = ds != NULL ? sl_tensor_f32(ds) : NULL;
  if (node->wants[0]) grads[0] = sl_tensor_retain(ds);
  if (node->wants[1]) grads[1] = sl_tensor_retain(ds);
  sl_tensor_release(ds);
  sl_status status;
  SL_RUN_WORKING(status, device, rms_norm_backward, &args);
  return status;
}

static sl_status check_rms_norm(const sl_op *op, const sl_tensor *x, const sl_tensor *residual,
                                const sl_tensor *weight) {
  char text[SL_SHAPE_TEXT], other[SL_SHAPE_TEXT];
  SL_TRY(sl__expect_rows(op, x));
  if (residual != NULL && !sl_tensor_same_shape(x, residual)) {
    return sl_fail(SL_ESHAPE, "%s: x %s and residual %s differ", op->name, sl_tensor_shape_text(x, text),
                   sl_tensor_shape_text(residual, other));
  }
  if (weight->rank == 1 && weight->shape[0] == x->shape[x->rank - 1]) return SL_OK;
  return sl_fail(SL_ESHAPE, "%s: x %s needs a weight of shape [%lld], not %s", op->name,
                 sl_tensor_shape_text(x, text), (long long)x->shape[x->rank - 1],
                 sl_tensor_shape_text(weight, other));
}

static sl_status rms_norm(sl_op *op, sl_tensor *const *inputs, const sl_rms_norm_options *options) {
  const sl_tensor *x = inputs[0];
  sl_tensor *dense, *residual = NULL, *weight, *s, *rrms = NULL;
  SL_TRY(sl__inputs(op, 3, inputs));
  SL_TRY(check_rms_norm(op, x, inputs[1], inputs[2]));
  SL_TRY(sl__dense(op, x, "x", SL_F32, -1, &dense));
  if (inputs[1] != NULL) SL_TRY(sl__dense(op, inputs[1], "residual", SL_F32, -1, &residual));
  SL_TRY(sl__dense(op, inputs[2], "weight", SL_F32, 1, &weight));
  SL_TRY(sl__output(op, SL_F32, x->rank, x->shape));
  SL_TRY(sl__place(op, x, op->records && residual != NULL, options->sum, &s));
  int64_t rows = sl__count_rows(x);
  if (op->records) SL_TRY(sl__scratch(op, SL_F32, 1, &rows, &rrms));
  sl_rms_norm_args args = { .x = sl_tensor_f32(dense),
                            .residual = residual != NULL ? sl_tensor_f32(residual) : NULL,
                            .weight = sl_tensor_f32(weight),
                            .y = sl_tensor_f32(*op->out),
                            .sum = s != NULL ? sl_tensor_f32(s) : NULL,
                            .rrms = rrms != NULL ? sl_tensor_f32(rrms) : NULL,
                            .rows = rows,
                            .n = weight->shape[0],
                            .eps = options->eps,
                            .offset = options->offset };
  SL_TRY(SL_RUN(op->device, rms_norm, &args));
  sl_node node = { .backward = rms_norm_backward,
                   .n_inputs = 3,
                   .inputs = { inputs[0], inputs[1], inputs[2] },
                   .n_saved = 3,
                   .saved = { residual != NULL ? s : dense, weight, rrms },
                   .numbers = { (double)options->offset } };
  return sl__record(op, &node);
}

sl_status sl_rms_norm(const sl_tensor *x, const sl_tensor *weight, const sl_rms_norm_options *options,
                      sl_tensor **out) {
  sl_op op = { .name = "rms_norm", .out = out };
  sl_tensor *inputs[] = { sl__mutable(x), sl__mutable(options->residual), sl__mutable(weight) };
  bool made_sum = options->sum != NULL && *options->sum == NULL;
  sl_status status = rms_norm(&op, inputs, options);
  if (status != SL_OK && made_sum) {
    sl_tensor_release(*options->sum);
    *options->sum = NULL;
  }
  return sl__close(&op, status);
}

/* -- Rotary positions -- */

/* All but data and row strides, from the node's dims (heads, width, adjacent) and numbers (base). */
static sl_rotary_args describe_rotary(const sl_tensor *x, sl_tensor *const *tables, const int64_t *dims,
                                      double base) {
  const sl_tensor *frequencies = tables[0], *positions = tables[1];
  return (sl_rotary_args){ .batch = x->shape[0],
                           .tokens = x->shape[1],
                           .heads = dims[0],
                           .head_dim = x->shape[2] / dims[0],
                           .width = dims[1],
                           .adjacent = dims[2] != 0,
                           .base = base,
                           .frequencies = frequencies != NULL ? sl_tensor_f32(frequencies) : NULL,
                           .positions = positions != NULL ? sl_tensor_data(positions) : NULL,
                           .positions_stride = positions != NULL && positions->rank == 2 ? x->shape[1] : 0 };
}

/* saved: frequencies, positions. */
static sl_status rotary_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  SL_TRY(sl_tensor_create_like(grad, SL_F32, &grads[0]));
  sl_rotary_args args = describe_rotary(grad, node->saved, node->dims, node->numbers[0]);
  args.x = sl_tensor_f32(grad), args.y = sl_tensor_f32(grads[0]);
  args.ld_x = args.ld_y = grad->shape[2];
  args.inverse = true;
  return SL_RUN(sl_tensor_device(grad), rotary, &args);
}

static sl_status check_width(const sl_op *op, const sl_tensor *x, const sl_rotary_options *options, int64_t *out) {
  SL_TRY(sl_tensor_expect(x, op->name, "x", SL_F32, 3));
  if (options->heads < 1 || x->shape[2] % options->heads != 0) {
    return sl_fail(SL_ESHAPE, "%s: width %lld does not divide into %lld heads", op->name,
                   (long long)x->shape[2], (long long)options->heads);
  }
  const int64_t head_dim = x->shape[2] / options->heads;
  *out = options->width != 0 ? options->width : head_dim;
  if (*out >= 0 && *out <= head_dim && *out % 2 == 0) return SL_OK;
  return sl_fail(SL_ESHAPE, "%s: %lld columns of a head of %lld are to turn; expected an even number up to it",
                 op->name, (long long)*out, (long long)head_dim);
}

static sl_status check_tables(const sl_op *op, const sl_tensor *x, const sl_rotary_options *options, int64_t width) {
  char text[SL_SHAPE_TEXT];
  const sl_tensor *frequencies = options->frequencies, *positions = options->positions;
  if (!(options->base >= 0) || isinf(options->base))
    return sl_fail(SL_EINVAL, "%s: base = %g, expected a positive number", op->name, options->base);
  if (frequencies != NULL && options->base != 0)
    return sl_fail(SL_EINVAL, "%s: base and frequencies exclude each other; give one", op->name);
  if (frequencies != NULL && (frequencies->rank != 1 || frequencies->shape[0] != width / 2)) {
    return sl_fail(SL_ESHAPE, "%s: frequencies are %s, expected [%lld], one a pair", op->name,
                   sl_tensor_shape_text(frequencies, text), (long long)width / 2);
  }
  if (positions == NULL) return SL_OK;
  const int last = positions->rank - 1;
  if ((last == 0 && positions->shape[0] == x->shape[1]) ||
      (last == 1 && positions->shape[0] == x->shape[0] && positions->shape[1] == x->shape[1])) {
    return SL_OK;
  }
  return sl_fail(SL_ESHAPE, "%s: positions are %s, expected [%lld] or [%lld x %lld]", op->name,
                 sl_tensor_shape_text(positions, text), (long long)x->shape[1], (long long)x->shape[0],
                 (long long)x->shape[1]);
}

static sl_status rotary(sl_op *op, const sl_tensor *x, const sl_rotary_options *options) {
  sl_tensor *rows, *tables[2] = { NULL };
  sl_tensor *inputs[] = { sl__mutable(x), sl__mutable(options->frequencies), sl__mutable(options->positions) };
  int64_t width = 0;
  SL_TRY(sl__inputs(op, 3, inputs));
  op->records = sl_tape_wants(1, inputs); /* tables are data */
  SL_TRY(check_width(op, x, options, &width));
  SL_TRY(check_tables(op, x, options, width));
  SL_TRY(sl__rows(op, x, "x", &rows));
  if (inputs[1] != NULL) SL_TRY(sl__dense(op, inputs[1], "frequencies", SL_F32, 1, &tables[0]));
  if (inputs[2] != NULL) SL_TRY(sl__dense(op, inputs[2], "positions", SL_I32, -1, &tables[1]));
  SL_TRY(sl__output(op, SL_F32, 3, x->shape));
  const int64_t dims[] = { options->heads, width, options->adjacent };
  const double base = options->base != 0 ? options->base : 10000;
  sl_rotary_args args = describe_rotary(x, tables, dims, base);
  args.x = sl_tensor_f32(rows), args.y = sl_tensor_f32(*op->out);
  args.ld_x = rows->strides[1], args.ld_y = x->shape[2];
  SL_TRY(SL_RUN(op->device, rotary, &args));
  sl_node node = { .backward = rotary_backward,
                   .n_inputs = 1,
                   .inputs = { inputs[0] },
                   .n_saved = 2,
                   .saved = { tables[0], tables[1] },
                   .dims = { dims[0], dims[1], dims[2] },
                   .numbers = { base } };
  return sl__record(op, &node);
}

sl_status sl_rotary(const sl_tensor *x, const sl_rotary_options *options, sl_tensor **out) {
  sl_op op = { .name = "rotary", .out = out };
  return sl__close(&op, rotary(&op, x, options));
}

/* -- Gated activations -- */

/* saved: gate, up (NULL: halves of gate); dims: act, row strides. */
static sl_status gated_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  const sl_tensor *gate = node->saved[0], *up = node->saved[1];
  const int64_t n = grad->shape[grad->rank - 1], ld = up != NULL ? n : 2 * n;
  sl_gated_backward_args args = { .act = (sl_gate)node->dims[0],
                                  .gate = sl_tensor_f32(gate),
                                  .up = up != NULL ? sl_tensor_f32(up) : sl_tensor_f32(gate) + n,
                                  .dy = sl_tensor_f32(grad),
                                  .ld_gate = node->dims[1],
                                  .ld_up = node->dims[2],
                                  .ld_dy = n,
                                  .ld_dgate = ld,
                                  .ld_dup = ld,
                                  .rows = sl__count_rows(grad),
                                  .n = n };
  if (node->wants[0]) SL_TRY(sl_tensor_create(sl_tensor_device(grad), SL_F32, gate->rank, gate->shape, &grads[0]));
  if (up != NULL && node->wants[1]) SL_TRY(sl_tensor_create_like(grad, SL_F32, &grads[1]));
  args.dgate = grads[0] != NULL ? sl_tensor_f32(grads[0]) : NULL;
  if (up == NULL) args.dup = args.dgate != NULL ? args.dgate + n : NULL;
  else args.dup = grads[1] != NULL ? sl_tensor_f32(grads[1]) : NULL;
  return SL_RUN(sl_tensor_device(grad), gated_backward, &args);
}

/* Accepts a tensor whose rows lie a constant distance apart; copies any other. */
static sl_status as_rows(sl_op *op, const sl_tensor *x, const char *argument, sl_tensor **out, int64_t *ld) {
  SL_TRY(sl_tensor_expect(x, op->name, argument, SL_F32, -1));
  const int last = x->rank - 1;
  bool rows = last >= 1 && x->strides[last] == 1 && x->strides[last - 1] >= x->shape[last];
  for (int i = 0; i < last - 1; i++) rows = rows && x->strides[i] == x->shape[i + 1] * x->strides[i + 1];
  *ld = rows ? x->strides[last - 1] : x->shape[last];
  if (!rows) return sl__dense(op, x, argument, SL_F32, -1, out);
  *out = sl__mutable(x);
  return SL_OK;
}

static sl_status check_gated(const sl_op *op, const sl_tensor *gate, const sl_tensor *up) {
  char text[SL_SHAPE_TEXT], other[SL_SHAPE_TEXT];
  SL_TRY(sl__expect_rows(op, gate));
  if (up == NULL && gate->shape[gate->rank - 1] % 2 != 0) {
    return sl_fail(SL_ESHAPE, "%s: x %s has rows of odd length; expected two halves, or a second tensor", op->name,
                   sl_tensor_shape_text(gate, text));
  }
  if (up == NULL || sl_tensor_same_shape(gate, up)) return SL_OK;
  return sl_fail(SL_ESHAPE, "%s: gate %s and up %s differ", op->name, sl_tensor_shape_text(gate, text),
                 sl_tensor_shape_text(up, other));
}

static sl_status gated(sl_op *op, sl_tensor *const *inputs, sl_gate act) {
  sl_tensor *gate, *up = NULL;
  int64_t shape[SL_MAX_RANK], ld_gate, ld_up;
  SL_TRY(sl__inputs(op, 2, inputs));
  SL_TRY(check_gated(op, inputs[0], inputs[1]));
  SL_TRY(as_rows(op, inputs[0], "gate", &gate, &ld_gate));
  ld_up = ld_gate;
  if (inputs[1] != NULL) SL_TRY(as_rows(op, inputs[1], "up", &up, &ld_up));
  for (int i = 0; i < gate->rank; i++) shape[i] = gate->shape[i];
  if (up == NULL) shape[gate->rank - 1] /= 2;
  SL_TRY(sl__output(op, SL_F32, gate->rank, shape));
  const int64_t n = shape[gate->rank - 1];
  sl_gated_args args = { .act = act,
                         .gate = sl_tensor_f32(gate),
                         .up = up != NULL ? sl_tensor_f32(up) : sl_tensor_f32(gate) + n,
                         .y = sl_tensor_f32(*op->out),
                         .ld_gate = ld_gate,
                         .ld_up = ld_up,
                         .ld_y = n,
                         .rows = sl__count_rows(*op->out),
                         .n = n };
  SL_TRY(SL_RUN(op->device, gated, &args));
  sl_node node = { .backward = gated_backward,
                   .n_inputs = 2,
                   .inputs = { inputs[0], inputs[1] },
                   .n_saved = 2,
                   .saved = { gate, up },
                   .dims = { (int64_t)act, ld_gate, ld_up } };
  return sl__record(op, &node);
}

sl_status sl_gated(const sl_tensor *gate, const sl_tensor *up, sl_gate act, sl_tensor **out) {
  sl_op op = { .name = "gated", .out = out };
  return sl__close(&op, gated(&op, (sl_tensor *[]){ sl__mutable(gate), sl__mutable(up) }, act));
}
