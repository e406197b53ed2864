/* The training loss of a dictionary on one batch, and its gradients.
 *
 *   main  = sum |e|^2 / D,  e = x - x_hat;  D = tokens * d_in (mse) or V = sum |x_t - mean|^2 in float64
 * (fvu) auxk  = s sum |e_aux - e|^2 / D: e (held fixed) reconstructed, without b_dec, by the k_aux largest of
 * the dead latents, k_aux = min(d_in / 2, dead), s = min(dead / (d_in / 2), 1); 0 without dead latents multi
 * = sum |x - x_hat with min(4k, d_sae) latents|^2 / D loss  = main + auxk_alpha auxk + multi_alpha multi
 *
 * Gradients are exact for these formulas, the ReLU included: unlike sparsify's, the AuxK and multi-TopK terms
 * reach the encoder. With micro_acc_steps n the batch is taken in pieces of ceil(tokens / n): only the codes
 * of the whole batch are kept, the rest of the memory is that of a piece; loss and gradients are the batch's
 * own (up to rounding). */
#ifndef SL_SAE_LOSS_H
#define SL_SAE_LOSS_H

#include "sae.h"

typedef enum { SL_SAE_MSE, SL_SAE_FVU } sl_sae_loss_kind;

typedef struct {
  sl_sae_loss_kind kind;
  int64_t k;                       /* 0 = the configured k */
  double total_variance;           /* V; 0 = of this batch */
  double auxk_alpha;               /* 0 = no AuxK */
  int64_t dead_feature_threshold;  /* dead = silent for more tokens than this */
  double multi_alpha;              /* 0 = no multi-TopK; sparsify: 1/8 */
  int64_t micro_acc_steps;         /* 0 or 1 = the batch at once */
  sl_dtype dtype;                  /* of the encoder product */
  bool plain;                      /* see sl_sae_encode_opts */
} sl_sae_loss_opts;

/* fvu, no extras, float32. */
sl_sae_loss_opts sl_sae_loss_defaults(void);

typedef struct sl_sae_loss {
  int references;
  bool read;                       /* the numbers below are there, but for tokens, which always is */
  double loss, mse, fvu, explained_variance; /* explained_variance = 1 - fvu */
  double l0;                       /* mean entries per token */
  double cosine;                   /* mean over tokens of cos(x, x_hat) */
  double auxk, multi_topk;         /* before their coefficients */
  double total_variance;           /* V */
  int64_t tokens, dead;            /* dead: latents offered to AuxK */
  int64_t crowded;                 /* batchtopk: tokens that may have had more of the batch's largest than the device
                                      looked at; 0 on the CPU, which looks again */
  int64_t nonfinite; /* tokens whose pre-activations are not finite: then loss is NaN and backward refuses */
  struct sl_sae_loss_state *state; /* private */
} sl_sae_loss;

/* x f32 [tokens >= 1, d_in]; opts NULL: defaults. Holds x until released. */
sl_status sl_sae_loss_create(sl_sae *sae, const sl_tensor *x, const sl_sae_loss_opts *opts,
                             sl_sae_loss **out);
sl_sae_loss *sl_sae_loss_retain(sl_sae_loss *loss);
void sl_sae_loss_release(sl_sae_loss *loss); /* NULL is allowed */

/* Fetches the numbers, once; waits for the device. Where the host can look without waiting (the CPU) they are there
 * from the start. SL_EINVAL for fvu of tokens that are all equal. */
sl_status sl_sae_loss_read(sl_sae_loss *loss);

/* The codes of the batch (k, not 4k), settled: a new reference. */
sl_status sl_sae_loss_codes(const sl_sae_loss *loss, sl_codes **out);

/* Adds grad_scale * d loss to the dictionary's gradients (1 / grad_acc_steps for an average) and counts what
 * fired; then only the numbers are left. Once for each loss (SL_ESTATE otherwise), and before the parameters change.
 * A loss that is known not to be finite is refused (SL_EINVAL); one that nobody has looked at makes gradients that
 * the optimiser refuses. */
sl_status sl_sae_backward(sl_sae_loss *loss, double grad_scale);

/* A copy of the gradient gathered so far, dense, before projection and clipping; zeros if there is none. */
sl_status sl_sae_grad(sl_sae *sae, const char *name, sl_tensor **out);
sl_status sl_sae_zero_grad(sl_sae *sae);

#endif
