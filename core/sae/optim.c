/* The optimiser of a dictionary; see optim.h. The pass itself is the kernel sae_update. */
#include "optim.h"

#include <math.h>

#include "sae_private.h"

sl_sae_optim_config sl_sae_optim_defaults(void) {
  return (sl_sae_optim_config){ .rule = SL_SAE_ADAM, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8 };
}

static sl_status check_config(const sl_sae_optim_config *config) {
  if (config->rule != SL_SAE_ADAM && config->rule != SL_SAE_SGD)
    return sl_fail(SL_EINVAL, "optim: unknown rule %d; there are adam and sgd", (int)config->rule);
  if (!(config->beta1 >= 0 && config->beta1 < 1 && config->beta2 >= 0 && config->beta2 < 1))
    return sl_fail(SL_EINVAL, "optim: betas %g and %g must lie in [0, 1)", config->beta1, config->beta2);
  if (!(config->eps >= 0) || !(config->weight_decay >= 0) || !(config->clip_norm >= 0))
    return sl_fail(SL_EINVAL, "optim: eps %g, weight_decay %g and clip_norm %g may not be negative",
                   config->eps, config->weight_decay, config->clip_norm);
  return SL_OK;
}

static sl_status make_zeros(sl_sae_optim *optim) {
  for (int which = 0; which < 2; which++) {
    for (int i = 0; i < SL_SAE_PARAMETERS; i++) {
      const sl_tensor *like = optim->sae->parameters[i];
      SL_TRY(sl_tensor_zeros(optim->sae->device, SL_F32, like->rank, like->shape, &optim->moments[which][i]));
    }
  }
  return SL_OK;
}

static sl_status make_moments(sl_sae_optim *optim) {
  if (optim->config.rule != SL_SAE_ADAM) return SL_OK;
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
    for (int i = 0; i < SL_SAE_PARAMETERS; i++) sl_tensor_release(optim->moments[which][i]);
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

sl_status sl_sae_optim_step(sl_sae_optim *optim, double lr) {
  sl_sae *sae = optim->sae;
  const sl_sae_optim_config *config = &optim->config;
  SL_TRY(sl_interrupt_check());
  if (!isfinite(lr)) return sl_fail(SL_EINVAL, "optim: the learning rate is not finite");
  SL_TRY(sl__sae_finish_gradients(sae, sl_tensor_data(optim->sum_squares)));
  optim->stepped = true;
  SL_TRY(refuse_nonfinite(optim));
  sl_sae_update_args args = { .m = sae->config.d_sae,
                              .d_in = sae->config.d_in,
                              .d_out = sae->config.d_in,
                              .rule = config->rule,
                              .parameters = sl__sae_parameters(sae->parameters),
                              .total_b_dec = sl_tensor_f32(sae->gradients->total_b_dec),
                              .sum_squares = sl_tensor_data(optim->sum_squares),
                              .clip_norm = config->clip_norm,
                              .project = sae->config.normalize_decoder,
                              .unit_rows = sae->config.normalize_decoder,
                              .lr = (float)lr,
                              .beta1 = (float)config->beta1,
                              .beta2 = (float)config->beta2,
                              .eps = (float)config->eps,
                              .weight_decay = (float)config->weight_decay,
                              .step = optim->step + 1,
                              .w_enc_bf16 = sae->w_enc_bf16 ? sl_tensor_data(sae->w_enc_bf16) : NULL };
  SL_TRY(sl__sae_gradients(sae, &args.gradients));
  if (config->rule == SL_SAE_ADAM) {
    args.moment1 = sl__sae_parameters(optim->moments[0]);
    args.moment2 = sl__sae_parameters(optim->moments[1]);
  }
  SL_TRY(SAE_RUN(sae->device, sae_update, &args));
  optim->step++;
  return SL_OK;
}

static const char *const state_names[] = { "W_enc.m", "b_enc.m", "W_dec.m", "b_dec.m", "W_enc.v", "b_enc.v",
                                           "W_dec.v", "b_dec.v", "tokens_since_fired", "fire_counts" };

sl_status sl_sae_optim_state(sl_sae_optim *optim, int index, const char **name, sl_tensor **out) {
  enum { MOMENTS = 2 * SL_SAE_PARAMETERS };
  if (index >= 0 && optim->config.rule != SL_SAE_ADAM) index += MOMENTS; /* sgd has none */
  if (index < 0 || index >= MOMENTS + 2) return sl_fail(SL_ENOTFOUND, "optim: no such state tensor");
  sl_tensor *tensor = index == MOMENTS ? optim->sae->tokens_since_fired : optim->sae->fire_counts;
  if (index < MOMENTS) tensor = optim->moments[index / SL_SAE_PARAMETERS][index % SL_SAE_PARAMETERS];
  *name = state_names[index];
  *out = sl_tensor_retain(tensor);
  return SL_OK;
}
