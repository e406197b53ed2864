/* Multi-head attention on tensors: reads strides, sizes the workspace, keeps
 * what the backward needs. */
#include <math.h>

#include "nn.h"
#include "op.h"

/* Threads that the workspace is made for; untouched pages cost nothing. */
enum { most_workers = 64 };

static int64_t count_key_heads(const sl_attention_options *options) {
  return options->kv_heads != 0 ? options->kv_heads : options->heads;
}

static sl_status check_heads(const sl_op *op, const sl_tensor *q, const sl_attention_options *options) {
  const int64_t heads = options->heads, shared = count_key_heads(options);
  if (heads < 1 || q->shape[2] % heads != 0) {
    return sl_fail(SL_ESHAPE, "%s: width %lld does not divide into %lld heads", op->name,
                   (long long)q->shape[2], (long long)heads);
  }
  if (shared < 1 || heads % shared != 0) {
    return sl_fail(SL_ESHAPE, "%s: %lld heads cannot share kv_heads = %lld; expected a divisor", op->name,
                   (long long)heads, (long long)shared);
  }
  if (!(options->soft_cap >= 0) || isinf(options->soft_cap)) {
    return sl_fail(SL_EINVAL, "%s: soft_cap = %g, expected a positive number, or 0 for none", op->name,
                   (double)options->soft_cap);
  }
  if (options->window < 0) {
    return sl_fail(SL_EINVAL, "%s: window = %lld, expected a number of keys, or 0 for all", op->name,
                   (long long)options->window);
  }
  return SL_OK;
}

static sl_status check_attention(const sl_op *op, sl_tensor *const *inputs,
                                 const sl_attention_options *options) {
  char text[SL_SHAPE_TEXT], other[SL_SHAPE_TEXT];
  const sl_tensor *q = inputs[0], *mask = inputs[3];
  SL_TRY(check_heads(op, q, options));
  const int64_t width = count_key_heads(options) * (q->shape[2] / options->heads);
  for (int i = 1; i < 3; i++) {
    const sl_tensor *x = inputs[i];
    if (x->shape[0] == q->shape[0] && x->shape[1] == q->shape[1] && x->shape[2] == width) continue;
    return sl_fail(SL_ESHAPE, "%s: q %s and %s %s differ; expected [%lld x %lld x %lld]", op->name,
                   sl_tensor_shape_text(q, text), i == 1 ? "k" : "v", sl_tensor_shape_text(x, other),
                   (long long)q->shape[0], (long long)q->shape[1], (long long)width);
  }
  if (mask == NULL) return SL_OK;
  SL_TRY(sl_tensor_expect(mask, op->name, "mask", SL_U8, 2));
  if (mask->shape[0] == q->shape[0] && mask->shape[1] == q->shape[1]) return SL_OK;
  return sl_fail(SL_ESHAPE, "%s: q %s needs a mask [%lld x %lld], not %s", op->name,
                 sl_tensor_shape_text(q, text), (long long)q->shape[0], (long long)q->shape[1],
                 sl_tensor_shape_text(mask, other));
}

static int64_t workspace_size(const sl_attention_args *args, bool backward) {
  int64_t blocks = backward ? 1 : args->tokens / sl_attention_block(args->tokens) + 1;
  int64_t jobs = args->batch * args->heads * blocks;
  int64_t workers = jobs < 1 ? 1 : jobs < most_workers ? jobs : most_workers;
  return sl_attention_workspace(args->tokens, workers, backward);
}

/* From prepared tensors and the node's dims (heads, causal, key heads, window) and numbers (scale, soft cap); shared by
 * both directions. */
static sl_attention_args describe(sl_tensor *const *qkvm, const int64_t *dims, const double *numbers) {
  const sl_tensor *q = qkvm[0], *k = qkvm[1], *v = qkvm[2], *mask = qkvm[3];
  return (sl_attention_args){ .q = sl_tensor_f32(q),
                              .k = sl_tensor_f32(k),
                              .v = sl_tensor_f32(v),
                              .ld_q = q->strides[1],
                              .ld_k = k->strides[1],
                              .ld_v = v->strides[1],
                              .ld_out = q->shape[2],
                              .mask = mask != NULL ? sl_tensor_data(mask) : NULL,
                              .batch = q->shape[0],
                              .tokens = q->shape[1],
                              .heads = dims[0],
                              .head_dim = q->shape[2] / dims[0],
                              .kv_heads = dims[2],
                              .scale = (float)numbers[0],
                              .causal = dims[1] != 0,
                              .soft_cap = (float)numbers[1],
                              .window = dims[3] };
}

/* saved: q, k, v as rows, mask, lse; the output itself is output_like. */
static sl_status attention_backward(const sl_node *node, sl_tensor *grad, sl_tensor **grads) {
  sl_device *device = sl_tensor_device(grad);
  sl_attention_args forward = describe(node->saved, node->dims, node->numbers);
  forward.out = sl_tensor_f32(node->output_like);
  forward.lse = sl_tensor_f32(node->saved[4]);
  forward.workspace_size = workspace_size(&forward, true);
  for (int i = 0; i < 3; i++) /* the kernel makes all three */
    SL_TRY(sl_tensor_create(device, SL_F32, 3, node->saved[i]->shape, &grads[i]));
  sl_tensor *workspace;
  SL_TRY(sl_tensor_create(device, SL_F32, 1, &forward.workspace_size, &workspace));
  forward.workspace = sl_tensor_f32(workspace);
  sl_attention_backward_args args = { .forward = forward,
                                      .dout = sl_tensor_f32(grad),
                                      .dq = sl_tensor_f32(grads[0]),
                                      .dk = sl_tensor_f32(grads[1]),
                                      .dv = sl_tensor_f32(grads[2]),
                                      .ld_dq = grad->shape[2],
                                      .ld_dk = grads[1]->shape[2],
                                      .ld_dv = grads[2]->shape[2] };
  sl_status status = SL_RUN(device, attention_backward, &args);
  sl_tensor_release(workspace);
  return status;
}

static sl_status attention(sl_op *op, sl_tensor *const *inputs, const sl_attention_options *options) {
  sl_tensor *rows[4] = { NULL }, *lse = NULL, *workspace;
  SL_TRY(sl__inputs(op, 4, inputs));
  static const char *const names[] = { "q", "k", "v" };
  for (int i = 0; i < 3; i++) SL_TRY(sl__rows(op, inputs[i], names[i], &rows[i]));
  SL_TRY(check_attention(op, inputs, options));
  if (inputs[3] != NULL) SL_TRY(sl__dense(op, inputs[3], "mask", SL_U8, 2, &rows[3]));
  const sl_tensor *q = rows[0];
  float scale = options->scale != 0 ? options->scale : 1.0f / sqrtf((float)(q->shape[2] / options->heads));
  /* A window of all tokens hides nothing; its width may be any number. */
  const int64_t window = options->window >= q->shape[1] ? 0 : options->window;
  int64_t dims[] = { options->heads, options->causal, count_key_heads(options), window };
  double numbers[] = { (double)scale, (double)options->soft_cap };
  SL_TRY(sl__output(op, SL_F32, 3, q->shape));
  sl_attention_args args = describe(rows, dims, numbers);
  args.out = sl_tensor_f32(*op->out);
  if (op->records) {
    SL_TRY(sl__scratch(op, SL_F32, 3, (int64_t[]){ args.batch, args.heads, args.tokens }, &lse));
    args.lse = sl_tensor_f32(lse);
  }
  if (options->pattern != NULL) {
    int64_t shape[] = { args.batch, args.heads, args.tokens, args.tokens };
    SL_TRY(sl_tensor_output(op->device, SL_F32, 4, shape, options->pattern));
    args.pattern = sl_tensor_f32(*options->pattern);
  }
  args.workspace_size = workspace_size(&args, false);
  SL_TRY(sl__scratch(op, SL_F32, 1, &args.workspace_size, &workspace));
  args.workspace = sl_tensor_f32(workspace);
  SL_TRY(SL_RUN(op->device, attention, &args));
  sl_node node = { .backward = attention_backward,
                   .n_inputs = 3,
                   .inputs = { inputs[0], inputs[1], inputs[2] },
                   .n_saved = 5,
                   .saved = { rows[0], rows[1], rows[2], rows[3], lse },
                   .dims = { dims[0], dims[1], dims[2], dims[3] },
                   .numbers = { numbers[0], numbers[1] } };
  return sl__record(op, &node);
}

sl_status sl_attention(const sl_tensor *q, const sl_tensor *k, const sl_tensor *v, const sl_tensor *mask,
                       const sl_attention_options *options, sl_tensor **out) {
  sl_op op = { .name = "attention", .out = out };
  sl_tensor *inputs[] = { sl__mutable(q), sl__mutable(k), sl__mutable(v), sl__mutable(mask) };
  bool made_pattern = options->pattern != NULL && *options->pattern == NULL;
  sl_status status = attention(&op, inputs, options);
  if (status != SL_OK && made_pattern) {
    sl_tensor_release(*options->pattern);
    *options->pattern = NULL;
  }
  return sl__close(&op, status);
}
