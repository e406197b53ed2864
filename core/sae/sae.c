/* The sparse autoencoder: creation, parameters, start values, encode and decode; see sae.h. */
#include "sae.h"

#include <math.h>
#include <string.h>

#include "sae_private.h"

/* -- Names -- */

static const char *const activation_names[] = {
#define X(id, name) name,
  SL_SAE_ACTIVATIONS(X)
#undef X
};

const char *sl_sae_activation_name(sl_sae_activation activation) { return activation_names[activation]; }

sl_status sl_sae_activation_find(const char *name, sl_sae_activation *out) {
  for (int i = 0; i < SL_SAE_ACTIVATION_COUNT; i++) {
    if (strcmp(name, activation_names[i]) != 0) continue;
    *out = (sl_sae_activation)i;
    return SL_OK;
  }
#define X(id, name) " " name
  return sl_fail(SL_EUNSUPPORTED, "sae: no activation is called \"%s\"; there are:" SL_SAE_ACTIVATIONS(X),
                 name);
#undef X
}

static const char *const parameter_names[SL_SAE_PARAMETERS] = { "W_enc", "b_enc", "W_dec", "b_dec" };

const char *sl_sae_parameter_name(int id) {
  return id >= 0 && id < SL_SAE_PARAMETERS ? parameter_names[id] : NULL;
}

/* -- Private helpers -- */

sl_status sl__sae_no_kernel(const sl_device *device, const char *kernel) {
  return sl_fail(SL_EUNSUPPORTED, "device %s has no kernel %s", device->name, kernel);
}

sl_status sl__sae_bytes(sl_device *device, size_t bytes, sl_tensor **out) {
  int64_t shape = bytes > 0 ? (int64_t)bytes : 1;
  return sl_tensor_create(device, SL_U8, 1, &shape, out);
}

sl_status sl__sae_workspace(sl_device *device, size_t bytes, sl_tensor **out) {
  sl_memory_label before = sl_memory_set_label(SL_MEMORY_WORKSPACE);
  sl_status status = sl__sae_bytes(device, bytes, out);
  sl_memory_set_label(before);
  return status;
}

sl_status sl__sae_zeros(sl_device *device, size_t bytes, sl_tensor **out) {
  int64_t shape = (int64_t)bytes;
  return sl_tensor_zeros(device, SL_U8, 1, &shape, out);
}

sl_sae_parameters sl__sae_parameters(sl_tensor *const tensors[SL_SAE_PARAMETERS]) {
  return (sl_sae_parameters){ .w_enc = sl_tensor_f32(tensors[SL_SAE_W_ENC]),
                              .b_enc = sl_tensor_f32(tensors[SL_SAE_B_ENC]),
                              .w_dec = sl_tensor_f32(tensors[SL_SAE_W_DEC]),
                              .b_dec = sl_tensor_f32(tensors[SL_SAE_B_DEC]) };
}

/* -- Creation -- */

sl_sae_config sl_sae_config_topk(int64_t d_in, int64_t d_sae, int64_t k) {
  return (sl_sae_config){ .d_in = d_in,
                          .d_sae = d_sae,
                          .activation = SL_SAE_TOPK,
                          .k = k,
                          .apply_b_dec_to_input = true,
                          .normalize_decoder = true,
                          .threshold_rate = 0.01 };
}

/* sl__sae_choose_k says the same of a k that is asked for later. */
static sl_status check_config(const sl_sae_config *config) {
  if (config->d_in < 1 || config->d_sae < 1 || config->d_sae > INT32_MAX)
    return sl_fail(SL_EINVAL, "sae: d_in %lld, d_sae %lld: both must be at least 1", (long long)config->d_in,
                   (long long)config->d_sae);
  if (config->activation == SL_SAE_JUMPRELU) {
    if (config->k == 0) return SL_OK;
    return sl_fail(SL_EINVAL, "sae: a jumprelu dictionary has thresholds in place of k");
  }
  if (config->k < 1 || config->k > config->d_sae)
    return sl_fail(SL_EINVAL, "sae: k = %lld does not lie in 1 .. %lld, the number of latents",
                   (long long)config->k, (long long)config->d_sae);
  if (config->activation == SL_SAE_GROUPMAX && config->d_sae % config->k != 0)
    return sl_fail(SL_EINVAL,
                   "sae: groupmax splits the latents into k groups of equal size: k = %lld does not divide %lld",
                   (long long)config->k, (long long)config->d_sae);
  if (config->activation == SL_SAE_BATCHTOPK && !(config->threshold_rate > 0 && config->threshold_rate <= 1))
    return sl_fail(SL_EINVAL, "sae: topk_threshold_lr = %g does not lie in (0, 1]", config->threshold_rate);
  return SL_OK;
}

static sl_status make_tensors(sl_sae *sae) {
  int64_t matrix[2] = { sae->config.d_sae, sae->config.d_in };
  SL_TRY(sl_tensor_create(sae->device, SL_F32, 2, matrix, &sae->parameters[SL_SAE_W_ENC]));
  SL_TRY(sl_tensor_zeros(sae->device, SL_F32, 1, &matrix[0], &sae->parameters[SL_SAE_B_ENC]));
  SL_TRY(sl_tensor_create(sae->device, SL_F32, 2, matrix, &sae->parameters[SL_SAE_W_DEC]));
  SL_TRY(sl_tensor_zeros(sae->device, SL_F32, 1, &matrix[1], &sae->parameters[SL_SAE_B_DEC]));
  if (sae->config.activation == SL_SAE_JUMPRELU)
    SL_TRY(sl_tensor_zeros(sae->device, SL_F32, 1, &matrix[0], &sae->threshold));
  if (sae->config.activation == SL_SAE_BATCHTOPK)
    SL_TRY(sl_tensor_zeros(sae->device, SL_F32, 1, &(int64_t){ 2 }, &sae->threshold));
  SL_TRY(sl_tensor_zeros(sae->device, SL_I64, 1, &matrix[0], &sae->tokens_since_fired));
  return sl_tensor_zeros(sae->device, SL_I64, 1, &matrix[0], &sae->fire_counts);
}

static sl_status start_values(sl_sae *sae, uint64_t seed) {
  float bound = (float)(1 / sqrt((double)sae->config.d_in));
  sl_tensor *w_enc = sae->parameters[SL_SAE_W_ENC], *w_dec = sae->parameters[SL_SAE_W_DEC];
  sl_random_args args = { .kind = SL_RANDOM_UNIFORM,
                          .seed = seed,
                          .low = -bound,
                          .high = bound,
                          .y = sl_tensor_data(w_enc),
                          .n = sl_tensor_count(w_enc) };
  SL_TRY(SAE_RUN(sae->device, random, &args));
  SL_TRY(sl_tensor_copy_(w_dec, w_enc));
  return sl_sae_parameters_changed(sae);
}

sl_status sl_sae_create(sl_device *device, const sl_sae_config *config, uint64_t seed, sl_sae **out) {
  SL_TRY(check_config(config));
  sl_sae *sae;
  SL_TRY(sl_mem_alloc(sizeof *sae, "an SAE", (void **)&sae));
  *sae = (sl_sae){ .references = 1, .device = device, .config = *config };
  sl_memory_label before = sl_memory_set_label(SL_MEMORY_PARAMETERS);
  sl_status status = make_tensors(sae);
  sl_memory_set_label(before);
  if (status == SL_OK) status = start_values(sae, seed);
  if (status != SL_OK) {
    sl_sae_release(sae);
    return status;
  }
  *out = sae;
  return SL_OK;
}

sl_sae *sl_sae_retain(sl_sae *sae) {
  sae->references++;
  return sae;
}

void sl_sae_release(sl_sae *sae) {
  if (!sae || --sae->references > 0) return;
  for (int i = 0; i < SL_SAE_PARAMETERS; i++) sl_tensor_release(sae->parameters[i]);
  sl_tensor_release(sae->w_enc_bf16);
  sl_tensor_release(sae->threshold);
  sl_tensor_release(sae->tokens_since_fired);
  sl_tensor_release(sae->fire_counts);
  sl__sae_store_release(sae->gradients);
  sl_mem_free(sae);
}

/* -- Parameters -- */

static sl_status find_parameter(sl_sae *sae, const char *name, sl_tensor **out) {
  for (int i = 0; i < SL_SAE_PARAMETERS; i++) {
    if (strcmp(name, parameter_names[i]) != 0) continue;
    *out = sae->parameters[i];
    return SL_OK;
  }
  if (sae->threshold && strcmp(name, "threshold") == 0) {
    *out = sae->threshold;
    return SL_OK;
  }
  return sl_fail(SL_ENOTFOUND, "sae: no parameter is called \"%s\"; there are W_enc, b_enc, W_dec, b_dec%s", name,
                 sae->threshold ? ", threshold" : "");
}

sl_status sl_sae_parameter(sl_sae *sae, const char *name, sl_tensor **out) {
  sl_tensor *found = NULL;
  SL_TRY(find_parameter(sae, name, &found));
  *out = sl_tensor_retain(found);
  return SL_OK;
}

sl_status sl_sae_set_parameter(sl_sae *sae, const char *name, const sl_tensor *value) {
  sl_tensor *found = NULL;
  SL_TRY(find_parameter(sae, name, &found));
  if (!sl_tensor_same_shape(found, value)) {
    char have[SL_SHAPE_TEXT], want[SL_SHAPE_TEXT];
    return sl_fail(SL_ESHAPE, "sae: %s is %s, the values given are %s", name,
                   sl_tensor_shape_text(found, want), sl_tensor_shape_text(value, have));
  }
  SL_TRY(sl_tensor_copy_(found, value));
  return sl_sae_parameters_changed(sae);
}

static sl_status round_encoder(sl_sae *sae) {
  sl_tensor *w_enc = sae->parameters[SL_SAE_W_ENC];
  sl_cast_args args = { .x = sl_tensor_data(w_enc), .dtype_x = SL_F32, .y = sl_tensor_data(sae->w_enc_bf16),
                        .dtype_y = SL_BF16, .n = sl_tensor_count(w_enc) };
  return SAE_RUN(sae->device, cast, &args);
}

sl_status sl_sae_parameters_changed(sl_sae *sae) {
  if (sae->config.normalize_decoder) {
    float *w_dec = sl_tensor_f32(sae->parameters[SL_SAE_W_DEC]);
    sl_sae_unit_rows_args args = { .x = w_dec, .y = w_dec, .m = sae->config.d_sae, .d = sae->config.d_in };
    SL_TRY(SAE_RUN(sae->device, sae_unit_rows, &args));
  }
  return sae->w_enc_bf16 ? round_encoder(sae) : SL_OK;
}

static sl_status need_bf16_encoder(sl_sae *sae) {
  if (sae->w_enc_bf16) return SL_OK;
  sl_memory_label before = sl_memory_set_label(SL_MEMORY_PARAMETERS);
  sl_status status = sl_tensor_create_like(sae->parameters[SL_SAE_W_ENC], SL_BF16, &sae->w_enc_bf16);
  sl_memory_set_label(before);
  SL_TRY(status);
  return round_encoder(sae);
}

sl_status sl__sae_encoder(sl_sae *sae, sl_dtype dtype, const void **out) {
  if (dtype != SL_F32 && dtype != SL_BF16)
    return sl_fail(SL_EDTYPE, "sae: the encoder product runs in f32 or bf16, not in %s",
                   sl_dtype_name(dtype));
  if (dtype == SL_BF16) SL_TRY(need_bf16_encoder(sae));
  *out = sl_tensor_data(dtype == SL_BF16 ? sae->w_enc_bf16 : sae->parameters[SL_SAE_W_ENC]);
  return SL_OK;
}

/* -- Start of b_dec -- */

sl_status sl__sae_center(sl_device *device, sl_sae_center_args *args) {
  sl_tensor *workspace = NULL;
  SAE_WORKSPACE(device, sae_center, args, &workspace);
  sl_status status = SAE_RUN(device, sae_center, args);
  sl_tensor_release(workspace);
  return status;
}

static sl_status center_of(sl_sae *sae, const sl_tensor *x, bool median, sl_tensor *out) {
  double variance = NAN;
  sl_tensor *number;
  SL_TRY(sl__sae_zeros(sae->device, sizeof variance, &number));
  sl_sae_center_args args = { .n = x->shape[0],
                              .d = x->shape[1],
                              .x = sl_tensor_f32(x),
                              .median = median,
                              .tolerance = 1e-5,
                              .max_iterations = 100,
                              .center = sl_tensor_f32(out),
                              .total_variance = sl_tensor_data(number) };
  sl_status status = sl__sae_center(sae->device, &args);
  if (status == SL_OK) status = sl_tensor_read(number, &variance, sizeof variance);
  sl_tensor_release(number);
  SL_TRY(status);
  if (!isfinite(variance))
    return sl_fail(SL_EINVAL, "sae: b_dec cannot start at the centre of values that are not finite");
  return SL_OK;
}

sl_status sl_sae_init_b_dec(sl_sae *sae, const sl_tensor *x, sl_sae_center center) {
  sl_tensor *b_dec = sae->parameters[SL_SAE_B_DEC], *input = NULL, *start = NULL;
  if (center == SL_SAE_CENTER_ZEROS) return sl_tensor_fill_zero(b_dec);
  if (!x || x->shape[0] < 1) return sl_fail(SL_EINVAL, "sae: b_dec cannot start at the centre of no tokens");
  SL_TRY(sl__sae_input(sae, x, "init_b_dec", &input));
  sl_status status = sl_tensor_create_like(b_dec, SL_F32, &start);
  if (status == SL_OK) status = center_of(sae, input, center == SL_SAE_CENTER_MEDIAN, start);
  if (status == SL_OK) status = sl_tensor_copy_(b_dec, start);
  sl_tensor_release(input);
  sl_tensor_release(start);
  return status;
}

/* -- Encode and decode -- */

sl_status sl__sae_input(const sl_sae *sae, const sl_tensor *x, const char *op, sl_tensor **out) {
  SL_TRY(sl_interrupt_check());
  SL_TRY(sl_tensor_expect(x, op, "x", SL_F32, 2));
  if (x->shape[1] != sae->config.d_in)
    return sl_fail(SL_ESHAPE, "%s: x is [%lld x %lld], the dictionary reads %lld inputs", op,
                   (long long)x->shape[0], (long long)x->shape[1], (long long)sae->config.d_in);
  if (sl_tensor_device(x) != sae->device)
    return sl_fail(SL_EDEVICE, "%s: x is on %s, the dictionary on %s", op, sl_tensor_device(x)->name,
                   sae->device->name);
  return sl_tensor_contiguous(x, out);
}

sl_status sl__sae_choose_k(const sl_sae *sae, const char *op, int64_t *k) {
  const sl_sae_config *config = &sae->config;
  if (config->activation == SL_SAE_JUMPRELU) {
    if (*k == 0) return SL_OK;
    return sl_fail(SL_EINVAL, "%s: k = %lld: the thresholds of a jumprelu dictionary say how many latents are active", op,
                   (long long)*k);
  }
  if (*k == 0) *k = config->k;
  if (*k < 1 || *k > config->d_sae)
    return sl_fail(SL_EINVAL, "%s: k = %lld does not lie in 1 .. %lld, the number of latents", op,
                   (long long)*k, (long long)config->d_sae);
  if (config->activation == SL_SAE_GROUPMAX && config->d_sae % *k != 0)
    return sl_fail(SL_EINVAL, "%s: groupmax splits the latents into k groups: k = %lld does not divide %lld", op,
                   (long long)*k, (long long)config->d_sae);
  return SL_OK;
}

sl_status sl__sae_slab_bytes(const sl_sae *sae, int64_t rows, size_t *out) {
  sl_sae_pack_args args = { .n = rows, .d = sae->config.d_in, .dtype = SL_F32, .need_slabs = out };
  return SAE_RUN(sae->device, sae_pack, &args);
}

static sl_sae_pack_args pack_args(const sl_sae *sae, const float *x, int64_t rows) {
  const float *b_dec = sl_tensor_f32(sae->parameters[SL_SAE_B_DEC]);
  return (sl_sae_pack_args){ .n = rows,
                             .d = sae->config.d_in,
                             .x = x,
                             .dtype = SL_F32,
                             .shift = sae->config.apply_b_dec_to_input ? b_dec : NULL };
}

sl_status sl__sae_pack_slabs(const sl_sae *sae, const float *x, int64_t rows, float *slabs) {
  sl_sae_pack_args args = pack_args(sae, x, rows);
  args.slabs = slabs;
  return SAE_RUN(sae->device, sae_pack, &args);
}

/* Screening, where it is allowed and the device says that it pays: the bf16 encoder, and slabs, to *holder if the caller
 * wanted none. */
static sl_status prepare_screen(sl_sae *sae, sl_sae_encode_request *request, sl_tensor **holder) {
  bool wanted = false;
  sl_sae_encode_topk_args query = { .n = request->rows, .d = sae->config.d_in, .m = sae->config.d_sae,
                                    .k = request->k, .dtype = request->dtype, .k_dead = request->k_dead,
                                    .wants_screen = &wanted };
  if (request->plain || request->dtype != SL_F32 || request->select != SL_SAE_TOPK) return SL_OK;
  if (request->dead) query.dead = sl_tensor_data(request->dead);
  SL_TRY(SAE_RUN(sae->device, sae_encode_topk, &query));
  if (!wanted) return SL_OK;
  SL_TRY(need_bf16_encoder(sae));
  request->screen = sl_tensor_data(sae->w_enc_bf16);
  if (request->u) return SL_OK;
  size_t slab_bytes;
  SL_TRY(sl__sae_slab_bytes(sae, request->rows, &slab_bytes));
  SL_TRY(sl__sae_workspace(sae->device, slab_bytes, holder));
  request->u = sl_tensor_data(*holder);
  return SL_OK;
}

/* Work memory of an encode. */
typedef struct { sl_tensor *panels, *slabs, *workspace; } encode_memory;

static sl_status encode_rows(sl_sae *sae, sl_sae_encode_request *request, encode_memory *memory) {
  const void *encoder;
  SL_TRY(sl__sae_encoder(sae, request->dtype, &encoder));
  SL_TRY(prepare_screen(sae, request, &memory->slabs));
  size_t panel_bytes;
  sl_sae_pack_args args = pack_args(sae, request->x, request->rows);
  args.dtype = request->dtype;
  args.screen = request->screen != NULL;
  args.need_panels = &panel_bytes;
  SL_TRY(SAE_RUN(sae->device, sae_pack, &args));
  args.need_panels = NULL;
  SL_TRY(sl__sae_workspace(sae->device, panel_bytes, &memory->panels));
  args.panels = sl_tensor_data(memory->panels);
  args.slabs = request->u;
  SL_TRY(SAE_RUN(sae->device, sae_pack, &args));
  return sl__sae_run_encoder(sae, request, args.panels, encoder, &memory->workspace);
}

sl_status sl__sae_encode_rows(sl_sae *sae, sl_sae_encode_request *request) {
  encode_memory memory = { 0 };
  sl_sae_encode_request own = *request; /* slabs of ours are not the caller's */
  sl_status status = encode_rows(sae, &own, &memory);
  sl_tensor_release(memory.panels);
  sl_tensor_release(memory.slabs);
  sl_tensor_release(memory.workspace);
  return status;
}

sl_status sl_sae_decode(sl_sae *sae, const sl_codes *codes, sl_tensor **out) {
  SL_TRY(sl_interrupt_check());
  if (codes->n_latents != sae->config.d_sae)
    return sl_fail(SL_ESHAPE, "decode: codes of %lld latents, the dictionary has %lld",
                   (long long)codes->n_latents, (long long)sae->config.d_sae);
  if (sl_tensor_device(codes->values) != sae->device)
    return sl_fail(SL_EDEVICE, "decode: the codes are on %s, the dictionary on %s",
                   sl_tensor_device(codes->values)->name, sae->device->name);
  int64_t shape[2] = { codes->rows, sae->config.d_in };
  sl_tensor *made = NULL;
  SL_TRY(sl_tensor_create(sae->device, SL_F32, 2, shape, &made));
  sl_sae_decode_args args = { .codes = sl_codes_rows(codes, 0, codes->rows),
                              .d = sae->config.d_in,
                              .w_dec = sl_tensor_f32(sae->parameters[SL_SAE_W_DEC]),
                              .b_dec = sl_tensor_f32(sae->parameters[SL_SAE_B_DEC]),
                              .y = sl_tensor_f32(made) };
  sl_status status = SAE_RUN(sae->device, sae_decode, &args);
  if (status != SL_OK) {
    sl_tensor_release(made);
    return status;
  }
  *out = made;
  return SL_OK;
}

/* -- What fired -- */

static sl_status share_beyond(sl_sae *sae, const sl_tensor *values, int64_t bound, bool below, double *out) {
  int64_t count = 0;
  sl_tensor *number;
  SL_TRY(sl__sae_zeros(sae->device, sizeof count, &number));
  sl_sae_mask_args args = { .m = sae->config.d_sae, .bound = bound, .below = below,
                            .value = sl_tensor_data(values), .count = sl_tensor_data(number) };
  sl_status status = SAE_RUN(sae->device, sae_mask, &args);
  if (status == SL_OK) status = sl_tensor_read(number, &count, sizeof count);
  sl_tensor_release(number);
  *out = (double)count / (double)sae->config.d_sae;
  return status;
}

sl_status sl_sae_dead_fraction(sl_sae *sae, int64_t tokens, double *out) {
  return share_beyond(sae, sae->tokens_since_fired, tokens, false, out);
}

sl_status sl_sae_rare_fraction(sl_sae *sae, double rate, double *out) {
  *out = NAN;
  if (sae->window_tokens == 0) return SL_OK;
  return share_beyond(sae, sae->fire_counts, (int64_t)ceil(rate * (double)sae->window_tokens * (1 - 1e-12)),
                      true, out);
}

sl_status sl_sae_reset_window(sl_sae *sae) {
  sae->window_tokens = 0;
  return sl_tensor_fill_zero(sae->fire_counts);
}

double sl_sae_auto_lr(int64_t d_sae) { return 2e-4 / sqrt((double)d_sae / 16384.0); }
