/* The optimiser of one dictionary: projection, global clip, Adam (float32 or 8-bit moments) or SGD, unit decoder rows,
 * in one pass per latent.
 *
 * Order: decoder gradients lose their component along the decoder rows (normalize_decoder), the whole
 * gradient is scaled to norm <= clip_norm, weights decay (decoupled, matrices only), the rule is applied,
 * decoder rows get length one. A step takes the gradients: they are zero after it. Moments decay densely,
 * also for latents that did not fire. */
#ifndef SL_SAE_OPTIM_H
#define SL_SAE_OPTIM_H

#include "loss.h"

typedef struct {
  sl_sae_rule rule;                /* SL_SAE_ADAM, SL_SAE_ADAM8 (see args_sae_update.h) or SL_SAE_SGD */
  double beta1, beta2, eps;        /* adam, adam8 */
  double weight_decay;
  double clip_norm;                /* 0 = off */
} sl_sae_optim_config;

/* adam, betas 0.9 0.999, eps 1e-8, no decay, no clip. */
sl_sae_optim_config sl_sae_optim_defaults(void);

typedef struct sl_sae_optim {
  int references;
  sl_sae *sae;                     /* retained */
  sl_sae_optim_config config;
  int64_t step;                    /* steps taken; set it when a checkpoint is loaded */
  bool stepped;                    /* sum_squares holds something */
  sl_tensor *sum_squares;          /* of the last gradient, on the device; private: see sl_sae_optim_grad_norm */
  sl_tensor *moments[2][SL_SAE_PARAMETERS]; /* m and v of each parameter's shape, for adam8 the matrices' as u8 codes;
                                               NULL for sgd */
  sl_tensor *absmax[2][SL_SAE_PARAMETERS];  /* adam8: f32 [d_sae, ceil(d_in / 256)] of the matrices, else NULL */
  sl_tensor *maps;                 /* adam8: f32 [2, 256], signed and unsigned */
} sl_sae_optim;

/* Holds the dictionary; moments start at zero. config NULL: defaults. SL_EINVAL for betas outside [0, 1) or
 * negative numbers. */
sl_status sl_sae_optim_create(sl_sae *sae, const sl_sae_optim_config *config, sl_sae_optim **out);
sl_sae_optim *sl_sae_optim_retain(sl_sae_optim *optim);
void sl_sae_optim_release(sl_sae_optim *optim); /* NULL is allowed */

/* A gradient that is not finite leaves weights and moments untouched. Where the host can see that without waiting
 * (the CPU) the step fails with SL_EINVAL; elsewhere every later step does nothing too, and the norm is NaN. */
sl_status sl_sae_optim_step(sl_sae_optim *optim, double lr);

/* Backward and step in one, for little memory: the gradient is made, used and forgotten in blocks of latents, so that a
 * sixteenth of it exists at a time. The same numbers as sl_sae_backward(loss, 1) and sl_sae_optim_step, bit for bit but
 * for b_dec (one sum in another order) and, with a clip, for its factor's rounding. A clip costs a second pass over the
 * gradients. The loss must be one piece (micro_acc_steps 1) and no gradient may be pending (SL_ESTATE): batches cannot be
 * accumulated. Without a clip, a gradient that is not finite is found late: latents before it have stepped. */
sl_status sl_sae_step(sl_sae_loss *loss, sl_sae_optim *optim, double lr);

/* The gradient's norm at the last step, after projection and before the clip; NaN if it was not finite or there was
 * no step. Waits for the device. */
sl_status sl_sae_optim_grad_norm(const sl_sae_optim *optim, double *out);

/* State to save, by number from 0 (SL_ENOTFOUND beyond the last): name ("W_enc.m", "b_dec.v", "W_dec.m.absmax",
 * "tokens_since_fired", "fire_counts") and a new reference to the live tensor. `step` and sae->window_tokens
 * belong beside them. */
sl_status sl_sae_optim_state(sl_sae_optim *optim, int index, const char **name, sl_tensor **out);

#endif
