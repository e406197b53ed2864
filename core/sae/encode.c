/* Encoding for inference, and the choice of the encoder kernel; see sae.h. Training encodes pieces of a batch
 * (loss.c); here an input of any length becomes codes, in runs of rows, so that it needs little work memory. */
#include <math.h>

#include "sae_private.h"

/* -- The kernel of a rule -- */

static sl_status run_topk(sl_sae *sae, const sl_sae_encode_request *request, const void *panels, const void *encoder,
                          sl_tensor **workspace) {
  sl_sae_encode_topk_args args = { .n = request->rows,
                                   .d = sae->config.d_in,
                                   .m = sae->config.d_sae,
                                   .k = request->k,
                                   .panels = panels,
                                   .w = encoder,
                                   .dtype = request->dtype,
                                   .w_screen = request->screen,
                                   .slabs = request->u,
                                   .bias = sl_tensor_f32(sae->parameters[SL_SAE_B_ENC]),
                                   .codes = sl_codes_rows(request->codes, request->first, request->rows),
                                   .nonfinite = request->nonfinite };
  if (request->dead) {
    args.dead = sl_tensor_data(request->dead);
    args.k_dead = request->k_dead;
    args.dead_codes = sl_codes_rows(request->dead_codes, request->first, request->rows);
  }
  SAE_WORKSPACE(sae->device, sae_encode_topk, &args, workspace);
  return SAE_RUN(sae->device, sae_encode_topk, &args);
}

static sl_status run_groupmax(sl_sae *sae, const sl_sae_encode_request *request, const void *panels,
                              const void *encoder, sl_tensor **workspace) {
  sl_sae_encode_groupmax_args args = { .n = request->rows,
                                       .d = sae->config.d_in,
                                       .m = sae->config.d_sae,
                                       .k = request->k,
                                       .panels = panels,
                                       .w = encoder,
                                       .dtype = request->dtype,
                                       .bias = sl_tensor_f32(sae->parameters[SL_SAE_B_ENC]),
                                       .codes = sl_codes_rows(request->codes, request->first, request->rows),
                                       .nonfinite = request->nonfinite };
  if (request->dead) {
    args.dead = sl_tensor_data(request->dead);
    args.k_dead = request->k_dead;
    args.dead_codes = sl_codes_rows(request->dead_codes, request->first, request->rows);
  }
  SAE_WORKSPACE(sae->device, sae_encode_groupmax, &args, workspace);
  return SAE_RUN(sae->device, sae_encode_groupmax, &args);
}

static sl_status run_jumprelu(sl_sae *sae, const sl_sae_encode_request *request, const void *panels,
                              const void *encoder, sl_tensor **workspace) {
  sl_sae_encode_jumprelu_args args = { .n = request->rows,
                                       .d = sae->config.d_in,
                                       .m = sae->config.d_sae,
                                       .room = request->k,
                                       .panels = panels,
                                       .w = encoder,
                                       .dtype = request->dtype,
                                       .bias = sl_tensor_f32(sae->parameters[SL_SAE_B_ENC]),
                                       .threshold = request->threshold,
                                       .codes = sl_codes_rows(request->codes, request->first, request->rows),
                                       .overflow = request->overflow,
                                       .nonfinite = request->nonfinite };
  SAE_WORKSPACE(sae->device, sae_encode_jumprelu, &args, workspace);
  return SAE_RUN(sae->device, sae_encode_jumprelu, &args);
}

sl_status sl__sae_run_encoder(sl_sae *sae, const sl_sae_encode_request *request, const void *panels,
                              const void *encoder, sl_tensor **workspace) {
  switch (request->select) {
  case SL_SAE_TOPK: return run_topk(sae, request, panels, encoder, workspace);
  case SL_SAE_GROUPMAX: return run_groupmax(sae, request, panels, encoder, workspace);
  case SL_SAE_JUMPRELU: return run_jumprelu(sae, request, panels, encoder, workspace);
  default: return sl_fail(SL_EINVAL, "sae: no encoder kernel selects by rule %d", (int)request->select);
  }
}

/* -- A whole input -- */

/* What is found while encoding; on the device. */
typedef struct { int64_t nonfinite, overflow, crowded; double smallest; } findings;

typedef struct {
  sl_sae *sae;
  const sl_tensor *x;              /* contiguous */
  int64_t k;                       /* 0: thresholds */
  sl_dtype dtype;
  bool plain;
  sl_tensor *found;                /* findings */
  int64_t nonfinite;               /* tokens so far */
} encode_call;

static findings *found_at(const encode_call *call) { return sl_tensor_data(call->found); }

static sl_sae_encode_request request_of(const encode_call *call, sl_codes *codes, int64_t first, int64_t most) {
  int64_t rest = codes->rows - first;
  return (sl_sae_encode_request){ .x = sl_tensor_f32(call->x) + first * call->sae->config.d_in,
                                  .first = first,
                                  .rows = rest < most ? rest : most,
                                  .k = call->k,
                                  .select = call->sae->config.activation,
                                  .dtype = call->dtype,
                                  .plain = call->plain,
                                  .codes = codes,
                                  .nonfinite = &found_at(call)->nonfinite,
                                  .overflow = &found_at(call)->overflow };
}

/* One run; *found is what the device found in it. */
static sl_status encode_run(encode_call *call, sl_sae_encode_request *request, findings *found) {
  SL_TRY(sl_interrupt_check());
  SL_TRY(sl_tensor_fill_zero(call->found));
  SL_TRY(sl__sae_encode_rows(call->sae, request));
  return sl_tensor_read(call->found, found, sizeof *found);
}

/* Rows of at most k entries, in runs of rows. */
static sl_status encode_fixed(encode_call *call, sl_codes *codes) {
  enum { RUN = 8192 };
  for (int64_t first = 0; first < codes->rows; first += RUN) {
    sl_sae_encode_request request = request_of(call, codes, first, RUN);
    findings found;
    SL_TRY(encode_run(call, &request, &found));
    call->nonfinite += found.nonfinite;
  }
  return SL_OK;
}

/* The thresholds as [d_sae]. */
static sl_status thresholds(const sl_sae *sae, sl_tensor **out) {
  if (sae->config.activation == SL_SAE_JUMPRELU) {
    *out = sl_tensor_retain(sae->threshold);
    return SL_OK;
  }
  int64_t latents = sae->config.d_sae;
  float running[2], *all = NULL; /* 0 until it was trained: all that are positive */
  SL_TRY(sl_tensor_read(sae->threshold, running, sizeof running));
  SL_TRY(sl_mem_alloc((size_t)latents * sizeof *all, "thresholds", (void **)&all));
  for (int64_t i = 0; i < latents; i++) all[i] = running[0];
  sl_status status = sl_tensor_create(sae->device, SL_F32, 1, &latents, out);
  if (status == SL_OK) {
    status = sl_tensor_write(*out, all, (size_t)latents * sizeof *all);
    if (status != SL_OK) sl__drop(out);
  }
  sl_mem_free(all);
  return status;
}

static sl_status entries_before(const sl_codes *codes, int64_t row, int64_t *out) {
  sl_tensor *end;
  SL_TRY(sl_tensor_slice(codes->offsets, 0, row, 1, &end));
  sl_status status = sl_tensor_read(end, out, sizeof *out);
  sl_tensor_release(end);
  return status;
}

/* Rows of any length. A run whose rows need more room than there is is encoded again with four times as much; the
 * runs shrink as the room grows. */
static sl_status encode_above(encode_call *call, sl_codes *codes, const float *threshold) {
  enum { ROOM = 256, RUN_ENTRIES = 4 << 20 };
  int64_t latents = call->sae->config.d_sae, room = latents < ROOM ? latents : ROOM, used = 0;
  for (int64_t first = 0; first < codes->rows;) {
    int64_t run = RUN_ENTRIES / room;
    sl_sae_encode_request request = request_of(call, codes, first, run > 64 ? run : 64);
    request.k = room, request.select = SL_SAE_JUMPRELU, request.threshold = threshold;
    int64_t needed = used + request.rows * room, have = codes->values->shape[0];
    if (needed > have) SL_TRY(sl__codes_reserve(codes, used, needed > have + have / 2 ? needed : have + have / 2));
    findings found;
    SL_TRY(encode_run(call, &request, &found));
    if (found.overflow > 0) {
      room = room < latents / 4 ? 4 * room : latents;
      continue;
    }
    first += request.rows;
    call->nonfinite += found.nonfinite;
    SL_TRY(entries_before(codes, first, &used));
  }
  return sl__codes_reserve(codes, used, used); /* codes are kept: no more memory than they need */
}

static sl_status encode_thresholds(encode_call *call, sl_codes *codes) {
  sl_tensor *threshold;
  SL_TRY(thresholds(call->sae, &threshold));
  sl_status status = encode_above(call, codes, sl_tensor_f32(threshold));
  sl_tensor_release(threshold);
  return status;
}

/* All candidates with `room` a token, then the selection; found->crowded > 0 asks for more room. */
static sl_status batch_with_room(encode_call *call, sl_codes *codes, int64_t room, findings *found) {
  sl_codes *candidates;
  SL_TRY(sl_codes_create(call->sae->device, codes->rows, codes->n_latents, codes->rows * room, &candidates));
  sl_sae_encode_request request = request_of(call, candidates, 0, codes->rows);
  request.k = room, request.select = SL_SAE_TOPK;
  sl_sae_batch_request select = { .x = request.x, .dtype = call->dtype, .plain = call->plain, .keep = codes->rows * call->k,
                                  .room = room, .candidates = &candidates, .out = codes, .smallest = &found_at(call)->smallest,
                                  .crowded = &found_at(call)->crowded };
  sl_status status = encode_run(call, &request, found);
  if (status == SL_OK) status = sl__sae_batch_select(call->sae, &select);
  int64_t nonfinite = found->nonfinite;
  if (status == SL_OK) status = sl_tensor_read(call->found, found, sizeof *found);
  found->nonfinite = nonfinite;
  sl_codes_release(candidates);
  return status;
}

static sl_status encode_batch(encode_call *call, sl_codes *codes) {
  int64_t room = sl__sae_batch_room(call->sae, call->k);
  findings found = { 0 };
  SL_TRY(batch_with_room(call, codes, room, &found));
  while (found.crowded > 0) {
    room = sl__sae_batch_room(call->sae, room);
    SL_TRY(batch_with_room(call, codes, room, &found));
  }
  call->nonfinite = found.nonfinite;
  return SL_OK;
}

static sl_status encode_all(encode_call *call, sl_codes *codes) {
  sl_status status;
  if (call->k == 0) status = encode_thresholds(call, codes);
  else if (call->sae->config.activation == SL_SAE_BATCHTOPK) status = encode_batch(call, codes);
  else status = encode_fixed(call, codes);
  SL_TRY(status);
  if (call->nonfinite > 0)
    return sl_fail(SL_EINVAL,
                   "encode: %lld of %lld tokens have pre-activations that are NaN or infinite; look at the "
                   "input and the weights",
                   (long long)call->nonfinite, (long long)codes->rows);
  return sl_codes_settle(codes);
}

sl_status sl_sae_encode(sl_sae *sae, const sl_tensor *x, const sl_sae_encode_opts *opts, sl_codes **out) {
  encode_call call = { .sae = sae, .k = opts ? opts->k : 0, .dtype = opts ? opts->dtype : SL_F32 };
  call.plain = opts && opts->plain;
  if (call.k != 0 || sae->config.activation != SL_SAE_BATCHTOPK) SL_TRY(sl__sae_choose_k(sae, "encode", &call.k));
  sl_tensor *input;
  SL_TRY(sl__sae_input(sae, x, "encode", &input));
  call.x = input;
  sl_codes *codes = NULL;
  sl_status status = sl__sae_zeros(sae->device, sizeof(findings), &call.found);
  if (status == SL_OK)
    status = sl_codes_create(sae->device, x->shape[0], sae->config.d_sae, x->shape[0] * call.k, &codes);
  if (status == SL_OK) status = encode_all(&call, codes);
  sl_tensor_release(call.found);
  sl_tensor_release(input);
  if (status != SL_OK) {
    sl_codes_release(codes);
    return status;
  }
  *out = codes;
  return SL_OK;
}
