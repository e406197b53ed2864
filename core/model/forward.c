/* The forward pass: embeddings, post-norm blocks, MLM head; see model.h.
 *
 * Each stage keeps its values in an array indexed by hook point and drops a value as soon as nobody needs it.
 * visit() does nothing at a site without interest; at the last wanted one it returns SL_RUN_STOPPED, which
 * unwinds like an error and becomes SL_OK at the top. BERT's maths: Devlin et al. 2018, as in transformers. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "core/base/mem.h"
#include "core/ops/nn.h"
#include "core/ops/sparse.h"
#include "model_private.h"

/* -- Helpers -------------------------------------------------------------------------------- */

static void drop(sl_tensor **tensor) {
  sl_tensor_release(*tensor);
  *tensor = NULL;
}

static void drop_all(int n, sl_tensor **tensors) {
  for (int i = 0; i < n; i++) drop(&tensors[i]);
}

static bool wants(const sl_run *run, int layer, int point, int bits) {
  return sl_run_wants_any(run, sl_model_site(run->model, point, layer), bits);
}

enum { WANT_ANY = 255, WANT_CHANGE = SL_WANT_FORWARD | SL_WANT_BACKWARD };

static sl_status visit(sl_run *run, int layer, int point, sl_tensor **value) {
  int site = sl_model_site(run->model, point, layer);
  return run->interest[site] ? sl__visit(run, site, value) : SL_OK;
}

static const sl_tensor *weight(const sl_run *run, int slot, int layer) {
  return sl_model_get(run->model, slot, layer);
}

static sl_status linear(const sl_run *run, int layer, int slot_w, const sl_tensor *x, sl_activation act,
                        sl_tensor **out) {
  return sl_linear(x, weight(run, slot_w, layer), weight(run, slot_w + 1, layer), act, out); /* x.b follows x.w */
}

static sl_status norm(const sl_run *run, int layer, int slot_w, const sl_tensor *x, const sl_tensor *residual,
                      sl_tensor **out) {
  return sl_layer_norm(x, residual, weight(run, slot_w, layer), weight(run, slot_w + 1, layer),
                       run->model->spec.norm_eps, NULL, out);
}

static sl_status activate(sl_activation act, const sl_tensor *x, sl_tensor **out) {
  switch (act) {
  case SL_ACT_RELU: return sl_unary(SL_UNARY_RELU, x, 0.0f, out);
  case SL_ACT_GELU_ERF: return sl_unary(SL_UNARY_GELU, x, 0.0f, out);
  case SL_ACT_GELU_TANH: return sl_unary(SL_UNARY_GELU_TANH, x, 0.0f, out);
  case SL_ACT_TANH: return sl_unary(SL_UNARY_TANH, x, 0.0f, out);
  default: return sl_fail(SL_EINVAL, "model: activation %d is unknown", (int)act);
  }
}

/* out = act(x W' + b), in one product unless somebody looks at the value before the activation. */
static sl_status linear_activated(sl_run *run, int layer, int slot_w, int pre_point, const sl_tensor *x,
                                  sl_tensor **out) {
  sl_activation act = run->model->spec.activation;
  if (!wants(run, layer, pre_point, WANT_ANY)) return linear(run, layer, slot_w, x, act, out);
  sl_tensor *pre = NULL;
  sl_status status = linear(run, layer, slot_w, x, SL_ACT_NONE, &pre);
  if (status == SL_OK) status = visit(run, layer, pre_point, &pre);
  if (status == SL_OK) status = activate(act, pre, out);
  drop(&pre);
  return status;
}

/* out = norm(branch + residual); the sum is written out only when somebody looks at it. */
static sl_status add_and_norm(sl_run *run, int layer, int sum_point, int norm_slot, sl_tensor *const parts[2],
                              sl_tensor **out) {
  if (!wants(run, layer, sum_point, WANT_ANY)) return norm(run, layer, norm_slot, parts[0], parts[1], out);
  sl_tensor *sum = NULL;
  sl_status status = sl_add(parts[1], parts[0], &sum);
  if (status == SL_OK) status = visit(run, layer, sum_point, &sum);
  if (status == SL_OK) status = norm(run, layer, norm_slot, sum, NULL, out);
  drop(&sum);
  return status;
}

/* -- Embeddings ----------------------------------------------------------------------------- */

/* i32 [1, n]: 0, step, 2 step, ...; on the CPU, as ids are (sl__ids). */
static sl_status make_ids(int64_t n, int32_t step, sl_tensor **out) {
  int64_t shape[2] = { 1, n };
  SL_TRY(sl_tensor_create(sl_cpu_device(), SL_I32, 2, shape, out));
  int32_t *ids = sl_tensor_data(*out);
  for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)i * step;
  return SL_OK;
}

/* Rows of a table; a broadcast [1, T or 1, D] is spelt out as [B, T, D] only for those who look at it. */
static sl_status look_up(sl_run *run, int slot, int point, const sl_tensor *ids, sl_tensor **out) {
  sl_status status = run->known_ids ? sl_embedding_known(weight(run, slot, 0), ids, out)
                                    : sl_embedding(weight(run, slot, 0), ids, out);
  if (status != SL_OK) return sl_fail_context(status, "model forward, %s", sl_point_name(point));
  if (!wants(run, -1, point, WANT_ANY)) return SL_OK;
  int64_t shape[3] = { run->batch, run->tokens, run->model->spec.d_model };
  sl_tensor *wide = NULL, *flat = NULL;
  status = sl_expand(*out, 3, shape, &wide);
  if (status == SL_OK) status = sl_contiguous(wide, &flat);
  drop(&wide);
  if (status != SL_OK) return status;
  sl_tensor_release(*out);
  *out = flat;
  return visit(run, -1, point, out);
}

static sl_status take_ids(const sl_run *run, sl_tensor *ids[SL_KNOWN_COUNT]) {
  const sl_forward_options *options = run->options;
  if (run->known_ids) {
    for (int i = 0; i < SL_KNOWN_COUNT; i++) ids[i] = sl_tensor_retain(run->known_ids[i]);
    return SL_OK;
  }
  ids[SL_KNOWN_IDS] = sl_tensor_retain((sl_tensor *)options->ids);
  if (options->type_ids) ids[SL_KNOWN_TYPES] = sl_tensor_retain((sl_tensor *)options->type_ids);
  else SL_TRY(make_ids(1, 0, &ids[SL_KNOWN_TYPES]));
  return make_ids(run->tokens, 1, &ids[SL_KNOWN_POSITIONS]);
}

static sl_status embed_body(sl_run *run, sl_tensor **v, sl_tensor **ids) {
  SL_TRY(take_ids(run, ids));
  SL_TRY(look_up(run, SL_SLOT_WORD_EMBED, SL_POINT_EMBED_TOKENS, ids[SL_KNOWN_IDS], &v[SL_POINT_EMBED_TOKENS]));
  SL_TRY(look_up(run, SL_SLOT_TYPE_EMBED, SL_POINT_EMBED_TYPES, ids[SL_KNOWN_TYPES], &v[SL_POINT_EMBED_TYPES]));
  SL_TRY(look_up(run, SL_SLOT_POS_EMBED, SL_POINT_EMBED_POSITIONS, ids[SL_KNOWN_POSITIONS],
                 &v[SL_POINT_EMBED_POSITIONS]));

  sl_tensor *typed = NULL;
  SL_TRY(sl_add(v[SL_POINT_EMBED_TOKENS], v[SL_POINT_EMBED_TYPES], &typed));
  sl_status status = sl_add(typed, v[SL_POINT_EMBED_POSITIONS], &v[SL_POINT_EMBED_PRELN]);
  drop(&typed);
  SL_TRY(status);
  SL_TRY(visit(run, -1, SL_POINT_EMBED_PRELN, &v[SL_POINT_EMBED_PRELN]));
  SL_TRY(norm(run, 0, SL_SLOT_EMBED_NORM_W, v[SL_POINT_EMBED_PRELN], NULL, &v[SL_POINT_EMBED]));
  return visit(run, -1, SL_POINT_EMBED, &v[SL_POINT_EMBED]);
}

/* *x = the embeddings, [B, T, D]. */
static sl_status embed(sl_run *run, sl_tensor **x) {
  sl_tensor *v[SL_N_EMBED_POINTS] = { NULL }, *ids[SL_KNOWN_COUNT] = { NULL };
  sl_status status = embed_body(run, v, ids);
  if (status == SL_OK) *x = sl_tensor_retain(v[SL_POINT_EMBED]);
  drop_all(SL_N_EMBED_POINTS, v);
  drop_all(SL_KNOWN_COUNT, ids);
  return status;
}

/* -- Attention ------------------------------------------------------------------------------ */

/* [B, T, H * h] -> [B * H, T, h] */
static sl_status split_heads(const sl_run *run, const sl_tensor *x, sl_tensor **out) {
  const sl_model_spec *spec = &run->model->spec;
  int64_t apart[4] = { run->batch, run->tokens, spec->n_heads, spec->d_head };
  int64_t flat[3] = { run->batch * spec->n_heads, run->tokens, spec->d_head };
  sl_tensor *heads = NULL, *swapped = NULL;
  sl_status status = sl_reshape(x, 4, apart, &heads);
  if (status == SL_OK) status = sl_transpose(heads, 1, 2, &swapped);
  if (status == SL_OK) status = sl_reshape(swapped, 3, flat, out);
  drop(&heads);
  drop(&swapped);
  return status;
}

/* [B * H, T, h] -> [B, T, H * h] */
static sl_status join_heads(const sl_run *run, const sl_tensor *x, sl_tensor **out) {
  const sl_model_spec *spec = &run->model->spec;
  int64_t apart[4] = { run->batch, spec->n_heads, run->tokens, spec->d_head };
  int64_t flat[3] = { run->batch, run->tokens, spec->n_heads * spec->d_head };
  sl_tensor *heads = NULL, *swapped = NULL;
  sl_status status = sl_reshape(x, 4, apart, &heads);
  if (status == SL_OK) status = sl_transpose(heads, 1, 2, &swapped);
  if (status == SL_OK) status = sl_reshape(swapped, 3, flat, out);
  drop(&heads);
  drop(&swapped);
  return status;
}

/* f32 [B, 1, 1, T]: 0 for keys, the lowest float for padding (as transformers has it). */
static sl_status mask_bias(const sl_run *run, sl_tensor **out) {
  int64_t n = run->batch * run->tokens, shape[4] = { run->batch, 1, 1, run->tokens };
  uint8_t *bytes;
  float *bias;
  SL_TRY(sl_mem_alloc((size_t)n, "the attention mask", (void **)&bytes));
  sl_status status = sl_mem_alloc((size_t)n * sizeof *bias, "the attention mask", (void **)&bias);
  if (status == SL_OK) status = sl_tensor_read(run->options->mask, bytes, (size_t)n);
  if (status == SL_OK) {
    for (int64_t i = 0; i < n; i++) bias[i] = bytes[i] ? 0.0f : -FLT_MAX;
    status = sl_tensor_create(run->model->device, SL_F32, 4, shape, out);
  }
  if (status == SL_OK) status = sl_tensor_write(*out, bias, (size_t)n * sizeof *bias);
  sl_mem_free(bias);
  sl_mem_free(bytes);
  return status;
}

/* *out = scaled, masked scores [B, H, T, T]. t: scratch. */
static sl_status make_scores(sl_run *run, const sl_tensor *q, const sl_tensor *k, sl_tensor *t[6], sl_tensor **out) {
  const sl_model_spec *spec = &run->model->spec;
  int64_t shape[4] = { run->batch, spec->n_heads, run->tokens, run->tokens };
  SL_TRY(split_heads(run, q, &t[0]));
  SL_TRY(split_heads(run, k, &t[1]));
  SL_TRY(sl_transpose(t[1], 1, 2, &t[2]));
  SL_TRY(sl_matmul(t[0], t[2], &t[3]));
  SL_TRY(sl_unary(SL_UNARY_MUL_SCALAR, t[3], 1.0f / sqrtf((float)spec->d_head), &t[4]));
  if (!run->options->mask) return sl_reshape(t[4], 4, shape, out);
  drop(&t[3]);
  SL_TRY(sl_reshape(t[4], 4, shape, &t[3]));
  SL_TRY(mask_bias(run, &t[5]));
  return sl_add(t[3], t[5], out);
}

/* Attention step by step, for those who look at or change scores and pattern. v[] holds q, k and v. */
static sl_status attend_openly(sl_run *run, int layer, sl_tensor **v, sl_tensor *t[6]) {
  const sl_model_spec *spec = &run->model->spec;
  int64_t flat[3] = { run->batch * spec->n_heads, run->tokens, run->tokens };
  SL_TRY(make_scores(run, v[SL_POINT_ATTN_Q], v[SL_POINT_ATTN_K], t, &v[SL_POINT_ATTN_SCORES]));
  SL_TRY(visit(run, layer, SL_POINT_ATTN_SCORES, &v[SL_POINT_ATTN_SCORES]));
  SL_TRY(sl_softmax(v[SL_POINT_ATTN_SCORES], false, &v[SL_POINT_ATTN_PATTERN]));
  SL_TRY(visit(run, layer, SL_POINT_ATTN_PATTERN, &v[SL_POINT_ATTN_PATTERN]));
  drop_all(6, t);
  SL_TRY(split_heads(run, v[SL_POINT_ATTN_V], &t[0]));
  SL_TRY(sl_reshape(v[SL_POINT_ATTN_PATTERN], 3, flat, &t[1]));
  SL_TRY(sl_matmul(t[1], t[0], &t[2]));
  return join_heads(run, t[2], &v[SL_POINT_ATTN_Z]);
}

/* The fused kernel; it can also hand out the pattern for looking at. */
static sl_status attend(sl_run *run, int layer, sl_tensor **v) {
  sl_tensor **pattern = wants(run, layer, SL_POINT_ATTN_PATTERN, WANT_ANY) ? &v[SL_POINT_ATTN_PATTERN] : NULL;
  sl_attention_options options = { .heads = run->model->spec.n_heads, .pattern = pattern };
  SL_TRY(sl_attention(v[SL_POINT_ATTN_Q], v[SL_POINT_ATTN_K], v[SL_POINT_ATTN_V], run->mask, &options,
                      &v[SL_POINT_ATTN_Z]));
  return pattern ? visit(run, layer, SL_POINT_ATTN_PATTERN, pattern) : SL_OK;
}

/* The fused kernel neither changes nor records scores and pattern. */
static bool needs_open_attention(const sl_run *run, int layer, sl_tensor *const *v) {
  if (wants(run, layer, SL_POINT_ATTN_SCORES, WANT_ANY)) return true;
  if (wants(run, layer, SL_POINT_ATTN_PATTERN, WANT_CHANGE)) return true;
  return wants(run, layer, SL_POINT_ATTN_PATTERN, WANT_ANY) && sl_tape_wants(3, &v[SL_POINT_ATTN_Q]);
}

/* v[ATTN_OUT] = attention of v[RESID_PRE]. */
static sl_status attention(sl_run *run, int layer, sl_tensor **v) {
  static const int slots[3] = { SL_SLOT_Q_W, SL_SLOT_K_W, SL_SLOT_V_W };
  v[SL_POINT_ATTN_IN] = sl_tensor_retain(v[SL_POINT_RESID_PRE]);
  SL_TRY(visit(run, layer, SL_POINT_ATTN_IN, &v[SL_POINT_ATTN_IN]));
  for (int i = 0; i < 3; i++) {
    SL_TRY(linear(run, layer, slots[i], v[SL_POINT_ATTN_IN], SL_ACT_NONE, &v[SL_POINT_ATTN_Q + i]));
    SL_TRY(visit(run, layer, SL_POINT_ATTN_Q + i, &v[SL_POINT_ATTN_Q + i]));
  }
  if (needs_open_attention(run, layer, v)) {
    sl_tensor *t[6] = { NULL };
    sl_status status = attend_openly(run, layer, v, t);
    drop_all(6, t);
    SL_TRY(status);
  } else {
    SL_TRY(attend(run, layer, v));
  }
  drop_all(SL_POINT_ATTN_Z - SL_POINT_ATTN_IN, &v[SL_POINT_ATTN_IN]);
  SL_TRY(visit(run, layer, SL_POINT_ATTN_Z, &v[SL_POINT_ATTN_Z]));
  SL_TRY(linear(run, layer, SL_SLOT_O_W, v[SL_POINT_ATTN_Z], SL_ACT_NONE, &v[SL_POINT_ATTN_OUT]));
  drop(&v[SL_POINT_ATTN_Z]);
  return visit(run, layer, SL_POINT_ATTN_OUT, &v[SL_POINT_ATTN_OUT]);
}

/* -- Blocks --------------------------------------------------------------------------------- */

static sl_status mlp(sl_run *run, int layer, sl_tensor **v) {
  v[SL_POINT_MLP_IN] = sl_tensor_retain(v[SL_POINT_RESID_MID]);
  SL_TRY(visit(run, layer, SL_POINT_MLP_IN, &v[SL_POINT_MLP_IN]));
  SL_TRY(linear_activated(run, layer, SL_SLOT_UP_W, SL_POINT_MLP_PRE, v[SL_POINT_MLP_IN], &v[SL_POINT_MLP_POST]));
  SL_TRY(visit(run, layer, SL_POINT_MLP_POST, &v[SL_POINT_MLP_POST]));
  SL_TRY(linear(run, layer, SL_SLOT_DOWN_W, v[SL_POINT_MLP_POST], SL_ACT_NONE, &v[SL_POINT_MLP_OUT]));
  drop(&v[SL_POINT_MLP_POST]);
  drop(&v[SL_POINT_MLP_IN]);
  return visit(run, layer, SL_POINT_MLP_OUT, &v[SL_POINT_MLP_OUT]);
}

static sl_status block_body(sl_run *run, int layer, sl_tensor **v) {
  SL_TRY(visit(run, layer, SL_POINT_RESID_PRE, &v[SL_POINT_RESID_PRE]));
  SL_TRY(attention(run, layer, v));
  sl_tensor *first[2] = { v[SL_POINT_ATTN_OUT], v[SL_POINT_RESID_PRE] };
  SL_TRY(add_and_norm(run, layer, SL_POINT_RESID_MID_PRELN, SL_SLOT_NORM1_W, first, &v[SL_POINT_RESID_MID]));
  drop(&v[SL_POINT_ATTN_OUT]);
  drop(&v[SL_POINT_RESID_PRE]);
  SL_TRY(visit(run, layer, SL_POINT_RESID_MID, &v[SL_POINT_RESID_MID]));
  SL_TRY(mlp(run, layer, v));
  sl_tensor *second[2] = { v[SL_POINT_MLP_OUT], v[SL_POINT_RESID_MID] };
  SL_TRY(add_and_norm(run, layer, SL_POINT_RESID_POST_PRELN, SL_SLOT_NORM2_W, second, &v[SL_POINT_RESID_POST]));
  return visit(run, layer, SL_POINT_RESID_POST, &v[SL_POINT_RESID_POST]);
}

/* *x: input of the block -> its output. The input is let go as early as possible. */
static sl_status block(sl_run *run, int layer, sl_tensor **x) {
  sl_tensor *v[SL_POINT_COUNT] = { NULL };
  v[SL_POINT_RESID_PRE] = *x;
  *x = NULL;
  sl_status status = block_body(run, layer, v);
  if (status == SL_OK) *x = sl_tensor_retain(v[SL_POINT_RESID_POST]);
  drop_all(SL_POINT_COUNT, v);
  return status;
}

/* -- Head ----------------------------------------------------------------------------------- */

/* The rows of x [B, T, D] that logits are wanted at: [N, D]. */
static sl_status gather(const sl_run *run, const sl_tensor *x, sl_tensor **out) {
  int64_t flat[2] = { run->batch * run->tokens, run->model->spec.d_model };
  sl_tensor *rows = NULL;
  SL_TRY(sl_reshape(x, 2, flat, &rows));
  sl_status status = sl_gather_rows(rows, run->options->logit_rows, out);
  drop(&rows);
  return status == SL_OK ? SL_OK : sl_fail_context(status, "model forward, logit_rows");
}

static sl_status head_body(sl_run *run, sl_tensor **v, sl_tensor **t, sl_tensor **logits) {
  const sl_model_spec *spec = &run->model->spec;
  if (run->options->logit_rows) SL_TRY(gather(run, v[0], &t[0]));
  else t[0] = sl_tensor_retain(v[0]);
  SL_TRY(linear_activated(run, -1, SL_SLOT_HEAD_W, SL_POINT_HEAD_PRE, t[0], &t[1]));
  SL_TRY(norm(run, 0, SL_SLOT_HEAD_NORM_W, t[1], NULL, &t[2]));
  SL_TRY(visit(run, -1, SL_POINT_HEAD_OUT, &t[2]));
  const sl_tensor *decoder = weight(run, spec->tied_head ? SL_SLOT_WORD_EMBED : SL_SLOT_DECODER_W, 0);
  SL_TRY(sl_linear(t[2], decoder, weight(run, SL_SLOT_DECODER_B, 0), SL_ACT_NONE, &t[3]));
  sl_status status = visit(run, -1, SL_POINT_LOGITS, &t[3]);
  if ((status == SL_OK || status == SL_RUN_STOPPED) && logits) *logits = sl_tensor_retain(t[3]);
  return status;
}

static sl_status head(sl_run *run, sl_tensor *x, sl_tensor **logits) {
  sl_tensor *t[4] = { NULL };
  sl_status status = head_body(run, &x, t, logits);
  drop_all(4, t);
  return status;
}

/* -- The pass ------------------------------------------------------------------------------- */

static sl_status check_input(const sl_model *model, const sl_tensor *tensor, const char *name, sl_dtype dtype,
                             const sl_tensor *like) {
  char want[SL_SHAPE_TEXT], got[SL_SHAPE_TEXT];
  if (!tensor) return SL_OK;
  SL_TRY(sl_tensor_expect(tensor, "model forward", name, dtype, like ? 2 : -1));
  if (like && !sl_tensor_same_shape(tensor, like))
    return sl_fail(SL_ESHAPE, "model forward: %s is %s, the ids are %s", name, sl_tensor_shape_text(tensor, got),
                   sl_tensor_shape_text(like, want));
  if (!sl_tensor_is_contiguous(tensor))
    return sl_fail(SL_ESHAPE, "model forward: %s is a strided view; call :contiguous() on it", name);
  if (sl_tensor_device(tensor) != model->device && !sl_tensor_device(tensor)->host_memory)
    return sl_fail(SL_EINVAL, "model forward: %s is on %s, the model on %s; expected the CPU or the model's device",
                   name, sl_tensor_device(tensor)->name, model->device->name);
  return SL_OK;
}

static sl_status check_inputs(const sl_model *model, const sl_forward_options *o) {
  char got[SL_SHAPE_TEXT];
  if (!o->ids) return sl_fail(SL_EINVAL, "model forward: no token ids");
  SL_TRY(check_input(model, o->ids, "ids", SL_I32, o->ids));
  SL_TRY(check_input(model, o->mask, "mask", SL_U8, o->ids));
  SL_TRY(check_input(model, o->type_ids, "type_ids", SL_I32, o->ids));
  SL_TRY(check_input(model, o->splice_mask, "splice_mask", SL_U8, o->ids));
  SL_TRY(check_input(model, o->logit_rows, "logit_rows", SL_I32, NULL));
  if (o->logit_rows && o->logit_rows->rank != 1)
    return sl_fail(SL_ESHAPE, "model forward: logit_rows is %s, expected a list of positions",
                   sl_tensor_shape_text(o->logit_rows, got));
  if (o->ids->shape[0] < 1 || o->ids->shape[1] < 1)
    return sl_fail(SL_ESHAPE, "model forward: ids are %s, expected [batch x tokens]",
                   sl_tensor_shape_text(o->ids, got));
  if (o->ids->shape[1] > model->spec.max_positions)
    return sl_fail(SL_ESHAPE, "model forward: sequences of %lld tokens, the model takes at most %lld",
                   (long long)o->ids->shape[1], (long long)model->spec.max_positions);
  if (o->logits && model->spec.head == SL_HEAD_NONE)
    return sl_fail(SL_EINVAL, "model forward: this checkpoint has no MLM head, so it gives no logits");
  return SL_OK;
}

/* Fills interest and last_site. */
static sl_status plan(sl_run *run) {
  const sl_forward_options *o = run->options;
  char name[SL_SITE_NAME], stop_name[SL_SITE_NAME];
  int n_sites = sl_model_n_sites(run->model), deepest = -1;
  sl__hooks_begin(run);
  for (int i = 0; i < o->n_capture; i++) {
    if (o->capture[i] < 0 || o->capture[i] >= n_sites)
      return sl_fail(SL_EINVAL, "model forward: capture %d: no site has number %d", i + 1, o->capture[i]);
    run->interest[o->capture[i]] |= SL_WANT_CAPTURE;
  }
  for (int site = 0; site < n_sites; site++)
    if (run->interest[site]) deepest = site;
  if (o->logits) deepest = n_sites - 1;
  if (deepest < 0) deepest = sl_model_site(run->model, SL_POINT_RESID_POST, (int)run->model->spec.n_layers - 1);
  run->last_site = o->stop_at >= 0 ? o->stop_at : deepest;
  if (run->last_site >= n_sites) return sl_fail(SL_EINVAL, "model forward: stop_at: no site has number %d", o->stop_at);
  run->interest[run->last_site] |= SL_WANT_STOP;
  sl_model_site_name(run->model, run->last_site, stop_name);
  for (int i = 0; i < o->n_capture; i++)
    if (o->capture[i] > run->last_site)
      return sl_fail(SL_EINVAL, "model forward: capture of %s, but the pass stops at %s",
                     sl_model_site_name(run->model, o->capture[i], name), stop_name);
  if (o->logits && run->last_site < n_sites - 1)
    return sl_fail(SL_EINVAL, "model forward: logits are wanted, but the pass stops at %s", stop_name);
  return SL_OK;
}

/* bf16 products are not recorded: gradients would be lost without a word. */
static sl_status check_gradients(const sl_run *run) {
  if (run->model->spec.dtype == SL_F32 || !sl_tape_active()) return SL_OK;
  for (int site = 0; site <= run->last_site; site++)
    if (run->interest[site] & WANT_CHANGE)
      return sl_fail(SL_EDTYPE, "model forward: hooks under a recording tape need a model in f32; this one is %s",
                     sl_dtype_name(run->model->spec.dtype));
  return SL_OK;
}

sl_status sl__run_pass(sl_run *run, sl_tensor **logits) {
  sl_tensor *x = NULL;
  sl_status status = SL_OK;
  if (run->options->mask && !run->mask)
    status = sl_tensor_to_device(run->options->mask, run->model->device, &run->mask);
  if (status == SL_OK) status = embed(run, &x);
  for (int i = 0; i < run->model->spec.n_layers && status == SL_OK; i++) status = block(run, i, &x);
  if (status == SL_OK) status = head(run, x, logits);
  drop(&x);
  return status == SL_RUN_STOPPED ? SL_OK : status;
}

static sl_status run_all(sl_run *run, sl_tensor **logits) {
  SL_TRY(plan(run));
  SL_TRY(check_gradients(run));
  return sl__run_or_replay(run, logits);
}

sl_status sl_model_forward(sl_model *model, const sl_forward_options *options, sl_tensor **captured,
                           sl_tensor **logits) {
  SL_TRY(sl_model_ready(model));
  SL_TRY(check_inputs(model, options));
  sl_run run = { .model = sl_model_retain(model), .options = options, .batch = options->ids->shape[0],
                 .tokens = options->ids->shape[1], .captured = captured };
  sl_tensor *scores = NULL;
  sl_status status = sl_mem_alloc((size_t)sl_model_n_sites(model), "a forward pass", (void **)&run.interest);
  model->running++;
  if (status == SL_OK) status = run_all(&run, options->logits ? &scores : NULL);
  model->running--;
  sl__hooks_sweep(model);
  if (status == SL_OK && options->logits) *logits = scores;
  else sl_tensor_release(scores);
  if (status != SL_OK) drop_all(options->n_capture, captured);
  sl_tensor_release(run.splice_keep);
  sl_tensor_release(run.mask);
  sl_mem_free(run.interest);
  sl_model_release(model);
  return status;
}
