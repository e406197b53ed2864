/* The training loss and its backward; see loss.h. A batch is a list of pieces (one, unless micro_acc_steps
 * says more); a loss is a list of terms, each a set of codes with a residual and a weight. Forward: encode a
 * piece, then residual and sums of each term. Backward: the gradient kernel once for each piece and term;
 * pieces whose residuals were not kept are rebuilt from their codes. To add a term: a slot in the enum, its
 * codes in encode_piece, its target in term_residual, its weight in term_weight. */
#include "loss.h"

#include <math.h>

#include "sae_private.h"

/* One term on one piece. */
typedef struct {
  sl_tensor *residual, *column_sums;                    /* slabs; f64 [d_in] as bytes */
  sl_tensor *index_offsets, *index_tokens, *index_values;
  sl_tensor *code_gradients, *work; /* backward only */
} term_buffers;

typedef struct {
  sl_tensor *u;                    /* slabs of the encoder's input */
  term_buffers terms[SL_SAE_TERMS];
} piece_buffers;

typedef struct sl_sae_loss_state {
  sl_sae *sae;
  sl_tensor *x;                    /* contiguous */
  sl_sae_loss_opts opts;
  int64_t piece_rows, pieces;
  sl_codes *codes[SL_SAE_TERMS];          /* NULL: the term is off */
  int64_t most[SL_SAE_TERMS];             /* entries a row can have; main codes of batchtopk: on average */
  sl_codes *candidates;            /* batchtopk, until the batch's largest are chosen */
  sl_tensor *dead_mask;            /* u8 [d_sae], with AuxK */
  int64_t aux_wanted;              /* d_in / 2, with AuxK */
  sl_tensor *numbers;              /* sl_sae_numbers */
  piece_buffers buffers;
  bool kept;                       /* buffers hold the one piece */
  bool spent;                      /* backward has run */
} loss_state;

sl_sae_loss_opts sl_sae_loss_defaults(void) {
  return (sl_sae_loss_opts){ .kind = SL_SAE_FVU, .dead_feature_threshold = 10000000, .dtype = SL_F32 };
}

/* -- Buffers -- */

static void release_buffers(piece_buffers *buffers) {
  sl__drop(&buffers->u);
  for (int i = 0; i < SL_SAE_TERMS; i++) {
    term_buffers *term = &buffers->terms[i];
    sl__drop(&term->residual);
    sl__drop(&term->column_sums);
    sl__drop(&term->index_offsets);
    sl__drop(&term->index_tokens);
    sl__drop(&term->index_values);
    sl__drop(&term->code_gradients);
    sl__drop(&term->work);
  }
}

static bool selects_batch(const loss_state *state) {
  return state->sae->config.activation == SL_SAE_BATCHTOPK;
}

/* Entries that a term can have on `rows` rows of the batch. */
static int64_t entries_of(const loss_state *state, int i, int64_t rows) {
  if (i != SL_SAE_MAIN || !selects_batch(state)) return rows * state->most[i];
  int64_t kept = state->x->shape[0] * state->most[i], all = rows * state->sae->config.d_sae;
  return kept < all ? kept : all;
}

static sl_status make_buffers(loss_state *state) {
  const sl_sae_config *config = &state->sae->config;
  sl_device *device = state->sae->device;
  size_t slab_bytes;
  SL_TRY(sl__sae_slab_bytes(state->sae, state->piece_rows, &slab_bytes));
  SL_TRY(sl__sae_bytes(device, slab_bytes, &state->buffers.u));
  for (int i = 0; i < SL_SAE_TERMS; i++) {
    if (!state->codes[i]) continue;
    term_buffers *term = &state->buffers.terms[i];
    int64_t ends = config->d_sae + 1, entries = entries_of(state, i, state->piece_rows);
    SL_TRY(sl__sae_bytes(device, slab_bytes, &term->residual));
    SL_TRY(sl__sae_bytes(device, (size_t)config->d_in * sizeof(double), &term->column_sums));
    SL_TRY(sl_tensor_create(device, SL_I64, 1, &ends, &term->index_offsets));
    SL_TRY(sl_tensor_create(device, SL_I32, 1, &entries, &term->index_tokens));
    SL_TRY(sl_tensor_create(device, SL_F32, 1, &entries, &term->index_values));
  }
  return SL_OK;
}

static sl_codes_index index_of(const term_buffers *term) {
  return (sl_codes_index){ .offsets = sl_tensor_data(term->index_offsets),
                           .tokens = sl_tensor_data(term->index_tokens),
                           .values = sl_tensor_data(term->index_values) };
}

/* Addresses within the numbers; the host may not look behind them. */
static sl_sae_numbers *numbers_of(const loss_state *state) { return sl_tensor_data(state->numbers); }

/* -- A piece forward -- */

typedef struct { int64_t first, rows; } piece_span;

static piece_span span_of(const loss_state *state, int64_t piece) {
  int64_t first = piece * state->piece_rows, rest = state->x->shape[0] - first;
  return (piece_span){ first, rest < state->piece_rows ? rest : state->piece_rows };
}

static const float *rows_of(const loss_state *state, piece_span span) {
  return sl_tensor_f32(state->x) + span.first * state->sae->config.d_in;
}

/* The k best of the 4k best, appended to the main codes. */
static sl_status take_prefix(loss_state *state, piece_span span) {
  sl_tensor *workspace = NULL;
  sl_sae_codes_prefix_args args = { .codes = sl_codes_rows(state->codes[SL_SAE_MULTI], span.first, span.rows),
                                    .out = sl_codes_rows(state->codes[SL_SAE_MAIN], span.first, span.rows),
                                    .k = state->most[SL_SAE_MAIN] };
  SAE_WORKSPACE(state->sae->device, sae_codes_prefix, &args, &workspace);
  sl_status status = SAE_RUN(state->sae->device, sae_codes_prefix, &args);
  sl_tensor_release(workspace);
  return status;
}

/* GroupMax: one latent of each group is no part of the 4k largest, which take a product of their own. */
static sl_status encode_multi(loss_state *state, piece_span span) {
  sl_tensor *counted = NULL; /* tokens that are not finite: counted with the main codes */
  SL_TRY(sl__sae_zeros(state->sae->device, sizeof(int64_t), &counted));
  sl_sae_encode_request request = { .x = rows_of(state, span),
                                    .first = span.first,
                                    .rows = span.rows,
                                    .k = state->most[SL_SAE_MULTI],
                                    .select = SL_SAE_TOPK,
                                    .dtype = state->opts.dtype,
                                    .plain = state->opts.plain,
                                    .codes = state->codes[SL_SAE_MULTI],
                                    .nonfinite = sl_tensor_data(counted) };
  sl_status status = sl__sae_encode_rows(state->sae, &request);
  sl_tensor_release(counted);
  return status;
}

static sl_status encode_piece(loss_state *state, piece_span span) {
  bool groups = state->sae->config.activation == SL_SAE_GROUPMAX;
  int widest = state->codes[SL_SAE_MULTI] && !groups ? SL_SAE_MULTI : SL_SAE_MAIN;
  sl_sae_encode_request request = { .x = rows_of(state, span),
                                    .first = span.first,
                                    .rows = span.rows,
                                    .k = state->most[widest],
                                    .select = groups ? SL_SAE_GROUPMAX : SL_SAE_TOPK,
                                    .dtype = state->opts.dtype,
                                    .plain = state->opts.plain,
                                    .codes = state->codes[widest],
                                    .u = sl_tensor_data(state->buffers.u),
                                    .nonfinite = &numbers_of(state)->nonfinite };
  if (state->codes[SL_SAE_AUXK]) {
    request.dead = state->dead_mask;
    request.k_dead = state->most[SL_SAE_AUXK];
    request.dead_codes = state->codes[SL_SAE_AUXK];
  }
  if (selects_batch(state)) {
    request.codes = state->candidates;
    request.k = sl__sae_batch_room(state->sae, state->opts.k);
  }
  SL_TRY(sl__sae_encode_rows(state->sae, &request));
  if (groups && state->codes[SL_SAE_MULTI]) return encode_multi(state, span);
  return widest == SL_SAE_MULTI ? take_prefix(state, span) : SL_OK;
}

/* BatchTopK, once all pieces have offered their candidates. */
static sl_status select_batch(loss_state *state) {
  sl_sae_numbers *numbers = numbers_of(state);
  sl_sae_batch_request request = { .x = sl_tensor_f32(state->x),
                                   .dtype = state->opts.dtype,
                                   .plain = state->opts.plain,
                                   .keep = state->x->shape[0] * state->opts.k,
                                   .room = sl__sae_batch_room(state->sae, state->opts.k),
                                   .candidates = &state->candidates,
                                   .out = state->codes[SL_SAE_MAIN],
                                   .smallest = &numbers->smallest,
                                   .crowded = &numbers->crowded };
  SL_TRY(sl__sae_batch_select(state->sae, &request));
  sl_codes_release(state->candidates);
  state->candidates = NULL;
  return SL_OK;
}

static sl_status index_term(loss_state *state, int i, piece_span span) {
  sl_tensor *workspace = NULL;
  sl_sae_index_codes_args args = { .codes = sl_codes_rows(state->codes[i], span.first, span.rows),
                                   .most = entries_of(state, i, span.rows),
                                   .index = index_of(&state->buffers.terms[i]) };
  SAE_WORKSPACE(state->sae->device, sae_index_codes, &args, &workspace);
  sl_status status = SAE_RUN(state->sae->device, sae_index_codes, &args);
  sl_tensor_release(workspace);
  return status;
}

/* Residual of a term; its sums are added to the numbers when `count` says so. */
static sl_status term_residual(loss_state *state, int i, piece_span span, bool count) {
  sl_sae *sae = state->sae;
  term_buffers *term = &state->buffers.terms[i];
  sl_sae_numbers *numbers = numbers_of(state);
  sl_tensor *workspace = NULL;
  sl_sae_decode_residual_args args = {
    .n = span.rows, .m = sae->config.d_sae, .d = sae->config.d_in, .index = index_of(term),
    .codes = sl_codes_rows(state->codes[i], span.first, span.rows),
    .w_dec = sl_tensor_f32(sae->parameters[SL_SAE_W_DEC]), .residual = sl_tensor_data(term->residual),
    .column_sums = sl_tensor_data(term->column_sums), .sum_squares = count ? &numbers->sum_squares[i] : NULL,
    .cosine = count && i == SL_SAE_MAIN ? &numbers->cosine : NULL };
  if (i == SL_SAE_AUXK) {
    args.target_slabs = sl_tensor_data(state->buffers.terms[SL_SAE_MAIN].residual);
  } else {
    args.target = rows_of(state, span);
    args.b_dec = sl_tensor_f32(sae->parameters[SL_SAE_B_DEC]);
  }
  SAE_WORKSPACE(sae->device, sae_decode_residual, &args, &workspace);
  sl_status status = SAE_RUN(sae->device, sae_decode_residual, &args);
  sl_tensor_release(workspace);
  return status;
}

/* Index and residual of every term. */
static sl_status residuals(loss_state *state, piece_span span, bool count) {
  for (int i = 0; i < SL_SAE_TERMS; i++) {
    if (!state->codes[i]) continue;
    SL_TRY(index_term(state, i, span));
    SL_TRY(term_residual(state, i, span, count));
  }
  return SL_OK;
}

/* -- Set-up -- */

static sl_status check_opts(const sl_sae *sae, sl_sae_loss_opts *opts, const sl_tensor *x) {
  if (sae->config.activation == SL_SAE_JUMPRELU)
    return sl_fail(SL_EUNSUPPORTED,
                   "loss: jumprelu dictionaries encode and decode but are not trained here yet; train a batchtopk one, "
                   "which is saved as jumprelu");
  if (sae->config.activation == SL_SAE_BATCHTOPK && opts->multi_alpha > 0)
    return sl_fail(SL_EINVAL,
                   "loss: multi-TopK is defined by the 4k largest of each token; batchtopk has no such number "
                   "(multi_alpha 0)");
  SL_TRY(sl__sae_choose_k(sae, "loss", &opts->k));
  if (opts->kind != SL_SAE_MSE && opts->kind != SL_SAE_FVU)
    return sl_fail(SL_EINVAL, "loss: unknown kind %d", (int)opts->kind);
  if (x->shape[0] < 1) return sl_fail(SL_ESHAPE, "loss: x has no tokens");
  if (opts->micro_acc_steps < 0 || !(opts->auxk_alpha >= 0) || !(opts->multi_alpha >= 0) ||
      !(opts->total_variance >= 0))
    return sl_fail(SL_EINVAL,
                   "loss: micro_acc_steps, auxk_alpha, multi_alpha and total_variance may not be negative");
  return SL_OK;
}

static sl_status make_codes(loss_state *state, int i, int64_t most) {
  state->most[i] = most;
  return sl_codes_create(state->sae->device, state->x->shape[0], state->sae->config.d_sae,
                         state->x->shape[0] * most, &state->codes[i]);
}

/* Which latents are dead, and the AuxK term. A latent that is not dead is never chosen, so the term needs no count
 * of the dead ones; but where looking at the count costs nothing, a term without dead latents is left out. */
static sl_status find_dead(loss_state *state) {
  sl_sae *sae = state->sae;
  int64_t latents = sae->config.d_sae, wanted = sae->config.d_in / 2 > 0 ? sae->config.d_in / 2 : 1;
  SL_TRY(sl_tensor_create(sae->device, SL_U8, 1, &latents, &state->dead_mask));
  sl_sae_mask_args args = { .m = latents,
                            .bound = state->opts.dead_feature_threshold,
                            .value = sl_tensor_data(sae->tokens_since_fired),
                            .mask = sl_tensor_data(state->dead_mask),
                            .count = &numbers_of(state)->dead };
  SL_TRY(SAE_RUN(sae->device, sae_mask, &args));
  state->aux_wanted = wanted;
  int64_t most = wanted < latents ? wanted : latents;
  if (sae->device->host_memory && numbers_of(state)->dead < most) most = numbers_of(state)->dead;
  return most > 0 ? make_codes(state, SL_SAE_AUXK, most) : SL_OK;
}

static sl_status total_variance(loss_state *state) {
  sl_sae_center_args args = { .n = state->x->shape[0], .d = state->x->shape[1], .x = sl_tensor_f32(state->x),
                              .total_variance = &numbers_of(state)->total_variance };
  return sl__sae_center(state->sae->device, &args);
}

static sl_status prepare(loss_state *state) {
  const sl_sae_loss_opts *opts = &state->opts;
  int64_t tokens = state->x->shape[0], steps = opts->micro_acc_steps > 1 ? opts->micro_acc_steps : 1;
  state->piece_rows = (tokens + steps - 1) / steps;
  state->pieces = (tokens + state->piece_rows - 1) / state->piece_rows;
  SL_TRY(sl__sae_zeros(state->sae->device, sizeof(sl_sae_numbers), &state->numbers));
  if (opts->total_variance == 0) SL_TRY(total_variance(state));
  SL_TRY(make_codes(state, SL_SAE_MAIN, opts->k));
  if (selects_batch(state))
    SL_TRY(sl_codes_create(state->sae->device, tokens, state->sae->config.d_sae,
                           tokens * sl__sae_batch_room(state->sae, opts->k), &state->candidates));
  if (opts->auxk_alpha > 0) SL_TRY(find_dead(state));
  int64_t latents = state->sae->config.d_sae;
  if (opts->multi_alpha > 0)
    SL_TRY(make_codes(state, SL_SAE_MULTI, opts->k < latents / 4 ? 4 * opts->k : latents));
  return make_buffers(state);
}

/* -- Forward -- */

static sl_status compute_numbers(loss_state *state) {
  const sl_sae_loss_opts *opts = &state->opts;
  sl_sae_loss_numbers_args args = { .numbers = numbers_of(state),
                                    .offsets = sl_tensor_data(state->codes[SL_SAE_MAIN]->offsets),
                                    .tokens = state->x->shape[0],
                                    .d = state->sae->config.d_in,
                                    .aux_wanted = state->aux_wanted,
                                    .fvu = opts->kind == SL_SAE_FVU,
                                    .total_variance = opts->total_variance,
                                    .auxk_alpha = opts->auxk_alpha,
                                    .multi_alpha = opts->multi_alpha };
  return SAE_RUN(state->sae->device, sae_loss_numbers, &args);
}

static sl_status forward(loss_state *state) {
  SL_TRY(prepare(state));
  for (int64_t piece = 0; piece < state->pieces; piece++) {
    SL_TRY(sl_interrupt_check());
    SL_TRY(encode_piece(state, span_of(state, piece)));
    if (!selects_batch(state)) SL_TRY(residuals(state, span_of(state, piece), true));
  }
  if (selects_batch(state)) {
    SL_TRY(select_batch(state));
    for (int64_t piece = 0; piece < state->pieces; piece++) SL_TRY(residuals(state, span_of(state, piece), true));
  }
  SL_TRY(compute_numbers(state));
  state->kept = state->pieces == 1;
  if (!state->kept) release_buffers(&state->buffers);
  return SL_OK;
}

sl_status sl_sae_loss_read(sl_sae_loss *loss) {
  if (loss->read) return SL_OK;
  sl_sae_numbers n;
  SL_TRY(sl_tensor_read(loss->state->numbers, &n, sizeof n));
  loss->read = true;
  loss->loss = n.loss;
  loss->mse = n.mse;
  loss->fvu = n.fvu;
  loss->explained_variance = 1 - n.fvu;
  loss->l0 = (double)n.entries / (double)loss->tokens;
  loss->cosine = n.mean_cosine;
  loss->auxk = n.auxk;
  loss->multi_topk = n.multi_topk;
  loss->total_variance = n.total_variance;
  loss->nonfinite = n.nonfinite;
  loss->dead = n.dead;
  loss->crowded = n.crowded;
  if (loss->state->opts.kind == SL_SAE_FVU && n.total_variance == 0)
    return sl_fail(SL_EINVAL,
                   "loss: the %lld tokens of the batch are all equal, so the fraction of variance "
                   "unexplained is undefined",
                   (long long)loss->tokens);
  return SL_OK;
}

sl_status sl_sae_loss_create(sl_sae *sae, const sl_tensor *x, const sl_sae_loss_opts *opts,
                             sl_sae_loss **out) {
  sl_sae_loss_opts chosen = opts ? *opts : sl_sae_loss_defaults();
  sl_tensor *input;
  SL_TRY(sl__sae_input(sae, x, "loss", &input));
  sl_sae_loss *loss = NULL;
  loss_state *state = NULL;
  sl_status status = check_opts(sae, &chosen, input);
  if (status == SL_OK) status = sl_mem_alloc(sizeof *loss, "an SAE loss", (void **)&loss);
  if (status == SL_OK) status = sl_mem_alloc(sizeof *state, "an SAE loss", (void **)&state);
  if (status != SL_OK) {
    sl_mem_free(loss);
    sl_tensor_release(input);
    return status;
  }
  *state = (loss_state){ .sae = sl_sae_retain(sae), .x = input, .opts = chosen };
  *loss = (sl_sae_loss){ .references = 1, .state = state, .tokens = input->shape[0] };
  sl_memory_label before = sl_memory_set_label(SL_MEMORY_BATCH);
  status = forward(state);
  sl_memory_set_label(before);
  if (status == SL_OK && sae->device->host_memory) status = sl_sae_loss_read(loss);
  if (status != SL_OK) {
    sl_sae_loss_release(loss);
    return status;
  }
  *out = loss;
  return SL_OK;
}

sl_sae_loss *sl_sae_loss_retain(sl_sae_loss *loss) {
  loss->references++;
  return loss;
}

/* Everything but the numbers. */
static void release_batch(loss_state *state) {
  release_buffers(&state->buffers);
  for (int i = 0; i < SL_SAE_TERMS; i++) {
    sl_codes_release(state->codes[i]);
    state->codes[i] = NULL;
  }
  sl_codes_release(state->candidates);
  state->candidates = NULL;
  sl__drop(&state->dead_mask);
  sl__drop(&state->x);
}

void sl_sae_loss_release(sl_sae_loss *loss) {
  if (!loss || --loss->references > 0) return;
  loss_state *state = loss->state;
  release_batch(state);
  sl_tensor_release(state->numbers);
  sl_sae_release(state->sae);
  sl_mem_free(state);
  sl_mem_free(loss);
}

sl_status sl_sae_loss_codes(const sl_sae_loss *loss, sl_codes **out) {
  sl_codes *codes = loss->state->codes[SL_SAE_MAIN];
  if (!codes) return sl_fail(SL_ESTATE, "codes: this loss has been through backward: ask before");
  SL_TRY(sl_codes_settle(codes));
  *out = sl_codes_retain(codes);
  return SL_OK;
}

/* -- Backward -- */

/* The gradient kernel's arguments for one term on `rows` tokens; the workspace is left out. */
static sl_sae_backward_args backward_args(const loss_state *state, int i, int64_t rows, const sl_sae_block *block,
                                          double grad_scale) {
  const sl_sae *sae = state->sae;
  const term_buffers *term = &state->buffers.terms[i];
  int64_t d = sae->config.d_in;
  sl_sae_backward_args args = { .n = rows,
                                .m = block->rows,
                                .d_in = d,
                                .d_out = d,
                                .index = index_of(term),
                                .residual = sl_tensor_data(term->residual),
                                .scale = grad_scale,
                                .factor = &numbers_of(state)->factor[i],
                                .u = sl_tensor_data(state->buffers.u),
                                .w_dec = sl_tensor_f32(sae->parameters[SL_SAE_W_DEC]) + block->first * d,
                                .gradients = block->gradients,
                                .code_gradients = sl_tensor_f32(term->code_gradients),
                                .most = entries_of(state, i, rows) };
  args.index.offsets += block->first;
  /* Once, not for each block; and AuxK reconstructs without b_dec. */
  if (i != SL_SAE_AUXK && block->first == 0) args.column_sums = sl_tensor_data(term->column_sums);
  return args;
}

static sl_status backward_term(loss_state *state, int i, int64_t rows, const sl_sae_block *block, double grad_scale) {
  sl_sae_backward_args args = backward_args(state, i, rows, block, grad_scale);
  args.workspace = sl_tensor_data(state->buffers.terms[i].work);
  args.workspace_bytes = (size_t)state->buffers.terms[i].work->shape[0]; /* u8 */
  return SAE_RUN(state->sae->device, sae_backward, &args);
}

static sl_status make_backward_buffers(loss_state *state, const sl_sae_block *block) {
  sl_device *device = state->sae->device;
  if (!state->kept) {
    release_buffers(&state->buffers);
    SL_TRY(make_buffers(state));
  }
  for (int i = 0; i < SL_SAE_TERMS; i++) {
    term_buffers *term = &state->buffers.terms[i];
    if (!state->codes[i] || term->work) continue;
    int64_t entries = entries_of(state, i, state->piece_rows);
    if (!term->code_gradients) SL_TRY(sl_tensor_create(device, SL_F32, 1, &entries, &term->code_gradients));
    size_t need;
    sl_sae_backward_args args = backward_args(state, i, state->piece_rows, block, 1);
    args.need = &need;
    SL_TRY(SAE_RUN(device, sae_backward, &args));
    SL_TRY(sl__sae_bytes(device, need, &term->work));
  }
  return SL_OK;
}

/* All that is large, before the first gradient is added: a lack of memory then leaves a loss that may be
 * tried again. */
sl_status sl__sae_loss_begin(sl_sae_loss *loss, const sl_sae_block *block) {
  loss_state *state = loss->state;
  if (state->spent) return sl_fail(SL_ESTATE, "backward: this loss has been through backward already");
  if (loss->read && !isfinite(loss->loss))
    return sl_fail(SL_EINVAL,
                   "backward: the loss is not finite (%lld of %lld tokens have pre-activations that are not)",
                   (long long)loss->nonfinite, (long long)loss->tokens);
  SL_TRY(sl_interrupt_check());
  sl_memory_label before = sl_memory_set_label(SL_MEMORY_BATCH);
  sl_status status = make_backward_buffers(state, block);
  sl_memory_set_label(before);
  state->spent = status == SL_OK;
  return status;
}

/* The batch counts once: all its tokens at the first piece, none at the others. */
static sl_status note_fired(loss_state *state, int64_t tokens) {
  sl_sae *sae = state->sae;
  sl_sae_note_fired_args args = { .m = sae->config.d_sae,
                                  .tokens = tokens,
                                  .offsets = sl_tensor_data(state->buffers.terms[SL_SAE_MAIN].index_offsets),
                                  .since = sl_tensor_data(sae->tokens_since_fired),
                                  .counts = sl_tensor_data(sae->fire_counts) };
  return SAE_RUN(sae->device, sae_note_fired, &args);
}

static sl_status follow_threshold(loss_state *state) {
  sl_sae *sae = state->sae;
  sl_sae_follow_threshold_args args = { .numbers = numbers_of(state),
                                        .threshold = sl_tensor_f32(sae->threshold),
                                        .rate = sae->config.threshold_rate };
  return SAE_RUN(sae->device, sae_follow_threshold, &args);
}

static sl_status backward_piece(loss_state *state, int64_t piece, const sl_sae_block *all, double grad_scale) {
  piece_span span = span_of(state, piece);
  if (!state->kept) {
    SL_TRY(sl__sae_pack_slabs(state->sae, rows_of(state, span), span.rows, sl_tensor_data(state->buffers.u)));
    SL_TRY(residuals(state, span, false));
  }
  for (int i = 0; i < SL_SAE_TERMS; i++)
    if (state->codes[i]) SL_TRY(backward_term(state, i, span.rows, all, grad_scale));
  return note_fired(state, piece == 0 ? state->x->shape[0] : 0);
}

static sl_status finish_batch(sl_sae_loss *loss) {
  loss_state *state = loss->state;
  if (selects_batch(state)) SL_TRY(follow_threshold(state));
  state->sae->window_tokens += loss->tokens;
  release_batch(state);
  return SL_OK;
}

sl_status sl_sae_backward(sl_sae_loss *loss, double grad_scale) {
  loss_state *state = loss->state;
  sl_sae_block all;
  SL_TRY(sl__sae_gradients(state->sae, &all));
  SL_TRY(sl__sae_loss_begin(loss, &all));
  state->sae->gradients->pending = true;
  for (int64_t piece = 0; piece < state->pieces; piece++) SL_TRY(backward_piece(state, piece, &all, grad_scale));
  return finish_batch(loss);
}

sl_status sl__sae_loss_block(sl_sae_loss *loss, const sl_sae_block *block, double grad_scale) {
  loss_state *state = loss->state;
  for (int i = 0; i < SL_SAE_TERMS; i++)
    if (state->codes[i]) SL_TRY(backward_term(state, i, state->x->shape[0], block, grad_scale));
  return SL_OK;
}

sl_sae *sl__sae_loss_dictionary(const sl_sae_loss *loss) { return loss->state->sae; }
int64_t sl__sae_loss_pieces(const sl_sae_loss *loss) { return loss->state->pieces; }

sl_status sl__sae_loss_end(sl_sae_loss *loss) {
  loss_state *state = loss->state;
  SL_TRY(note_fired(state, state->x->shape[0]));
  return finish_batch(loss);
}
