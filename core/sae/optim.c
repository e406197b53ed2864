/* The optimiser of a dictionary; see optim.h. The pass itself is the kernel sae_update. */
#include "optim.h"

#include <math.h>

#include "kernels/dynamic_map.h"
#include "sae_private.h"

sl_sae_optim_config sl_sae_optim_defaults(void) {
  return (sl_sae_optim_config){ .rule = SL_SAE_ADAM, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8 };
}

static sl_status check_config(const sl_sae_optim_config *config) {
  if (config->rule != SL_SAE_ADAM && config->rule != SL_SAE_ADAM8 && config->rule != SL_SAE_SGD)
    return sl_fail(SL_EINVAL, "optim: unknown rule %d; there are adam, adam8bit and sgd", (int)config->rule);
  if (!(config->beta1 >= 0 && config->beta1 < 1 && config->beta2 >= 0 && config->beta2 < 1))
    return sl_fail(SL_EINVAL, "optim: betas %g and %g must lie in [0, 1)", config->beta1, config->beta2);
  if (!(config->eps >= 0) || !(config->weight_decay >= 0) || !(config->clip_norm >= 0))
    return sl_fail(SL_EINVAL, "optim: eps %g, weight_decay %g and clip_norm %g may not be negative",
                   config->eps, config->weight_decay, config->clip_norm);
  return SL_OK;
}

static bool is_matrix(int id) { return id == SL_SAE_W_ENC || id == SL_SAE_W_DEC; }

/* A matrix' moment in 8 bits; an absmax of zero makes every code zero. */
static sl_status make_coded(sl_sae_optim *optim, int which, int id) {
  const sl_tensor *like = optim->sae->parameters[id];
  int64_t blocks[2] = { like->shape[0], (like->shape[1] + SL_SAE_BLOCK8 - 1) / SL_SAE_BLOCK8 };
  SL_TRY(sl_tensor_zeros(optim->sae->device, SL_U8, 2, like->shape, &optim->moments[which][id]));
  return sl_tensor_zeros(optim->sae->device, SL_F32, 2, blocks, &optim->absmax[which][id]);
}

static sl_status make_maps(sl_sae_optim *optim) {
  float maps[2][SL_MAP_SIZE];
  int64_t shape[2] = { 2, SL_MAP_SIZE };
  sl_dynamic_map(true, maps[0]);
  sl_dynamic_map(false, maps[1]);
  SL_TRY(sl_tensor_create(optim->sae->device, SL_F32, 2, shape, &optim->maps));
  return sl_tensor_write(optim->maps, maps, sizeof maps);
}

static sl_status make_zeros(sl_sae_optim *optim) {
  bool coded = optim->config.rule == SL_SAE_ADAM8;
  for (int which = 0; which < 2; which++) {
    for (int i = 0; i < SL_SAE_PARAMETERS; i++) {
      const sl_tensor *like = optim->sae->parameters[i];
      if (coded && is_matrix(i)) SL_TRY(make_coded(optim, which, i));
      else SL_TRY(sl_tensor_zeros(optim->sae->device, SL_F32, like->rank, like->shape, &optim->moments[which][i]));
    }
  }
  return coded ? make_maps(optim) : SL_OK;
}

static sl_status make_moments(sl_sae_optim *optim) {
  if (optim->config.rule == SL_SAE_SGD) return SL_OK;
  sl_memory_label before = sl_memory_set_label(SL_MEMORY_MOMENTS);
  sl_status status = make_zeros(optim);
  sl_memory_set_label(before);
  return status;
}

sl_status sl_sae_optim_create(sl_sae *sae, const sl_sae_optim_config *config, sl_sae_optim **out) {
  sl_sae_optim_config chosen = config ? *config : sl_sae_optim_defaults();
  SL_TRY(check_config(&chosen));
  sl_sae_optim *optim;
  SL_TRY(sl_mem_alloc(sizeof *optim, "an SAE optimiser", (void **)&optim));
  *optim = (sl_sae_optim){ .references = 1, .sae = sl_sae_retain(sae), .config = chosen };
  sl_status status = make_moments(optim);
  if (status == SL_OK) status = sl__sae_zeros(sae->device, sizeof(double), &optim->sum_squares);
  if (status != SL_OK) {
    sl_sae_optim_release(optim);
    return status;
  }
  *out = optim;
  return SL_OK;
}

sl_sae_optim *sl_sae_optim_retain(sl_sae_optim *optim) {
  optim->references++;
  return optim;
}

void sl_sae_optim_release(sl_sae_optim *optim) {
  if (!optim || --optim->references > 0) return;
  for (int which = 0; which < 2; which++)
    for (int i = 0; i < SL_SAE_PARAMETERS; i++) {
      sl_tensor_release(optim->moments[which][i]);
      sl_tensor_release(optim->absmax[which][i]);
    }
  sl_tensor_release(optim->maps);
  sl_tensor_release(optim->sum_squares);
  sl_sae_release(optim->sae);
  sl_mem_free(optim);
}

sl_status sl_sae_optim_grad_norm(const sl_sae_optim *optim, double *out) {
  double squares;
  SL_TRY(sl_tensor_read(optim->sum_squares, &squares, sizeof squares));
  *out = optim->stepped && isfinite(squares) ? sqrt(squares) : NAN;
  return SL_OK;
}

/* Only where looking costs nothing. */
static sl_status refuse_nonfinite(const sl_sae_optim *optim) {
  if (!optim->sae->device->host_memory || isfinite(*(const double *)sl_tensor_data(optim->sum_squares)))
    return SL_OK;
  return sl_fail(SL_EINVAL, "optim: the gradient is not finite; weights and moments were left alone");
}

/* The biases of a moment; float32 under every rule. */
static sl_sae_parameters biases(sl_tensor *const tensors[SL_SAE_PARAMETERS]) {
  return (sl_sae_parameters){ .b_enc = sl_tensor_f32(tensors[SL_SAE_B_ENC]), .b_dec = sl_tensor_f32(tensors[SL_SAE_B_DEC]) };
}

static sl_sae_moment8 coded(const sl_sae_optim *optim, int which) {
  sl_tensor *const *codes = optim->moments[which], *const *absmax = optim->absmax[which];
  return (sl_sae_moment8){ .w_enc = sl_tensor_data(codes[SL_SAE_W_ENC]),
                           .w_dec = sl_tensor_data(codes[SL_SAE_W_DEC]),
                           .absmax_enc = sl_tensor_f32(absmax[SL_SAE_W_ENC]),
                           .absmax_dec = sl_tensor_f32(absmax[SL_SAE_W_DEC]) };
}

static void add_moments(const sl_sae_optim *optim, sl_sae_update_args *args) {
  if (optim->config.rule == SL_SAE_SGD) return;
  if (optim->config.rule == SL_SAE_ADAM) {
    args->moment1 = sl__sae_parameters(optim->moments[0]);
    args->moment2 = sl__sae_parameters(optim->moments[1]);
    return;
  }
  args->moment1 = biases(optim->moments[0]);
  args->moment2 = biases(optim->moments[1]);
  args->moment1_8 = coded(optim, 0);
  args->moment2_8 = coded(optim, 1);
  args->map1 = sl_tensor_f32(optim->maps);
  args->map2 = args->map1 + SL_MAP_SIZE;
}

static float *from_row(float *matrix, int64_t row, int64_t columns) { return matrix ? matrix + row * columns : NULL; }

/* The parameters (or float32 moments) from latent `first` on. */
static sl_sae_parameters from_latent(sl_sae_parameters p, int64_t first, int64_t d) {
  return (sl_sae_parameters){ .w_enc = from_row(p.w_enc, first, d),
                              .b_enc = from_row(p.b_enc, first, 1),
                              .w_dec = from_row(p.w_dec, first, d),
                              .b_dec = p.b_dec };
}

static sl_sae_moment8 coded_from_latent(sl_sae_moment8 p, int64_t first, int64_t d) {
  if (!p.w_enc) return p;
  int64_t blocks = (d + SL_SAE_BLOCK8 - 1) / SL_SAE_BLOCK8;
  return (sl_sae_moment8){ .w_enc = p.w_enc + first * d,
                           .w_dec = p.w_dec + first * d,
                           .absmax_enc = p.absmax_enc + first * blocks,
                           .absmax_dec = p.absmax_dec + first * blocks };
}

sl_status sl__sae_optim_update(sl_sae_optim *optim, const sl_sae_block *block, double lr, bool last) {
  sl_sae *sae = optim->sae;
  const sl_sae_optim_config *config = &optim->config;
  int64_t first = block->first, d = sae->config.d_in;
  sl_sae_update_args args = { .m = block->rows,
                              .d_in = d,
                              .d_out = d,
                              .rule = config->rule,
                              .parameters = from_latent(sl__sae_parameters(sae->parameters), first, d),
                              .gradients = block->gradients,
                              .total_b_dec = last ? block->total_b_dec : NULL,
                              .sum_squares = sl_tensor_data(optim->sum_squares),
                              .clip_norm = config->clip_norm,
                              .project = sae->config.normalize_decoder,
                              .unit_rows = sae->config.normalize_decoder,
                              .lr = (float)lr,
                              .beta1 = (float)config->beta1,
                              .beta2 = (float)config->beta2,
                              .eps = (float)config->eps,
                              .weight_decay = (float)config->weight_decay,
                              .step = optim->step + 1 };
  if (sae->w_enc_bf16) args.w_enc_bf16 = (uint16_t *)sl_tensor_data(sae->w_enc_bf16) + first * d;
  add_moments(optim, &args);
  args.moment1 = from_latent(args.moment1, first, d);
  args.moment2 = from_latent(args.moment2, first, d);
  args.moment1_8 = coded_from_latent(args.moment1_8, first, d);
  args.moment2_8 = coded_from_latent(args.moment2_8, first, d);
  return SAE_RUN(sae->device, sae_update, &args);
}

sl_status sl_sae_optim_step(sl_sae_optim *optim, double lr) {
  sl_sae *sae = optim->sae;
  sl_sae_block all;
  SL_TRY(sl_interrupt_check());
  if (!isfinite(lr)) return sl_fail(SL_EINVAL, "optim: the learning rate is not finite");
  SL_TRY(sl__sae_gradients(sae, &all));
  SL_TRY(sl__sae_finish_gradients(sae, &all, false, false, sl_tensor_data(optim->sum_squares)));
  optim->stepped = true;
  SL_TRY(refuse_nonfinite(optim));
  SL_TRY(sl__sae_optim_update(optim, &all, lr, true));
  sae->gradients->pending = false;
  optim->step++;
  return SL_OK;
}

static const char *const state_names[] = { "W_enc.m", "b_enc.m", "W_dec.m", "b_dec.m", "W_enc.v", "b_enc.v", "W_dec.v",
                                           "b_dec.v", "W_enc.m.absmax", "W_dec.m.absmax", "W_enc.v.absmax",
                                           "W_dec.v.absmax", "tokens_since_fired", "fire_counts" };

sl_status sl_sae_optim_state(sl_sae_optim *optim, int index, const char **name, sl_tensor **out) {
  sl_tensor *const *m = optim->moments[0], *const *v = optim->moments[1];
  sl_tensor *const *scale_m = optim->absmax[0], *const *scale_v = optim->absmax[1];
  sl_tensor *all[] = { m[0], m[1], m[2], m[3], v[0], v[1], v[2], v[3], scale_m[SL_SAE_W_ENC], scale_m[SL_SAE_W_DEC],
                       scale_v[SL_SAE_W_ENC], scale_v[SL_SAE_W_DEC], optim->sae->tokens_since_fired,
                       optim->sae->fire_counts };
  for (size_t i = 0; index >= 0 && i < sizeof all / sizeof all[0]; i++) {
    if (!all[i] || index-- > 0) continue; /* the rule has no such state; or a later one is meant */
    *name = state_names[i];
    *out = sl_tensor_retain(all[i]);
    return SL_OK;
  }
  return sl_fail(SL_ENOTFOUND, "optim: no such state tensor");
}
