/* A sparse autoencoder: x_hat = sum over selected latents of p_i W_dec[i] + b_dec, p = relu(W_enc u + b_enc).
 *
 * A dictionary is put together from parts, each an enum or a flag of sl_sae_config: which activation selects
 * the code, whether b_dec is taken from the input, whether decoder rows have length one. A new paper adds a
 * value to a list and a case where that part is used (sae.c: encode; loss.c: loss terms; optim.c:
 * constraints), not a new type. Weights are float32 in sparsify's layout: row i of W_enc and W_dec is latent
 * i (SAELens stores W_enc transposed). Gradients and counts live here too, because one step of training reads
 * and writes all of them together. Refcounted; one thread drives it. */
#ifndef SL_SAE_H
#define SL_SAE_H

#include "codes.h"

/* Which of the pre-activations p make the code; those above 0 at most, ties to the lowest latent. id, name:
 * topk      the k largest of each token (Gao et al. 2024)
 * batchtopk training: the rows * k largest of a batch, so that tokens have different numbers of latents. Elsewhere:
 *           those above one threshold, the running mean of the least value kept (Bussmann et al. 2024; SAELens 6)
 * groupmax  the largest of each of k groups of d_sae / k neighbouring latents (sparsify)
 * jumprelu  those above a threshold of each latent (Rajamanoharan et al. 2024); not trained yet */
#define SL_SAE_ACTIVATIONS(X)       \
  X(SL_SAE_TOPK, "topk")            \
  X(SL_SAE_BATCHTOPK, "batchtopk")  \
  X(SL_SAE_GROUPMAX, "groupmax")    \
  X(SL_SAE_JUMPRELU, "jumprelu")

typedef enum {
#define X(id, name) id,
  SL_SAE_ACTIVATIONS(X)
#undef X
  SL_SAE_ACTIVATION_COUNT
} sl_sae_activation;

/* The name in the list above; a literal. */
const char *sl_sae_activation_name(sl_sae_activation activation);
/* SL_EUNSUPPORTED naming the ones there are. */
sl_status sl_sae_activation_find(const char *name, sl_sae_activation *out);

typedef struct {
  int64_t d_in, d_sae;
  sl_sae_activation activation;
  int64_t k;                       /* the target k; a loss may ask for another (k decay). groupmax: divides d_sae;
                                      batchtopk: the mean over a batch; jumprelu: 0 */
  bool apply_b_dec_to_input;       /* u = x - b_dec, else u = x */
  bool normalize_decoder;          /* rows of W_dec have length one, and gradients no component along them */
  double threshold_rate;           /* batchtopk: weight of a batch in the running mean (SAELens' topk_threshold_lr) */
} sl_sae_config;

/* topk, b_dec applied, unit decoder rows, threshold_rate 0.01; d_sae and k as given. */
sl_sae_config sl_sae_config_topk(int64_t d_in, int64_t d_sae, int64_t k);

typedef enum {
  SL_SAE_W_ENC,
  SL_SAE_B_ENC,
  SL_SAE_W_DEC,
  SL_SAE_B_DEC,
  SL_SAE_PARAMETERS
} sl_sae_parameter_id;

typedef struct sl_sae {
  int references;
  sl_device *device;
  sl_sae_config config;
  sl_tensor *parameters[SL_SAE_PARAMETERS]; /* W_enc [d_sae, d_in], b_enc [d_sae], W_dec [d_sae, d_in], b_dec
                                               [d_in] */
  sl_tensor *w_enc_bf16; /* [d_sae, d_in], once a bf16 product was asked for, or is made first (screening); kept current by
                            the optimiser */
  sl_tensor *threshold;            /* f32; jumprelu: [d_sae]; batchtopk: [2], the threshold and the
                                      weight of its running mean (see sl_sae_follow_threshold_args); else NULL */
  sl_tensor *tokens_since_fired;   /* i64 [d_sae] */
  sl_tensor *fire_counts;          /* i64 [d_sae]: tokens that used the latent in the present window */
  int64_t window_tokens;           /* tokens of that window */
  struct sl_sae_gradient_store *gradients; /* made by the first backward; private */
} sl_sae;

/* W_enc uniform in (-1/sqrt(d_in), 1/sqrt(d_in)) from (seed, stream 0), W_dec its rows (of length one where
 * configured), biases zero: sparsify's start (Philox in place of torch's generator). Sizes and k are checked.
 */
sl_status sl_sae_create(sl_device *device, const sl_sae_config *config, uint64_t seed, sl_sae **out);
sl_sae *sl_sae_retain(sl_sae *sae);
void sl_sae_release(sl_sae *sae); /* NULL is allowed */

/* "W_enc", "b_enc", "W_dec", "b_dec"; NULL beyond the last. */
const char *sl_sae_parameter_name(int id);
/* A new reference to the live tensor; "threshold" too, where there is one. Whoever writes into it calls sl_sae_parameters_changed after.
 * SL_ENOTFOUND. */
sl_status sl_sae_parameter(sl_sae *sae, const char *name, sl_tensor **out);
/* Copies float32 values of the parameter's shape in; then as sl_sae_parameters_changed. */
sl_status sl_sae_set_parameter(sl_sae *sae, const char *name, const sl_tensor *value);
/* Restores what is derived: unit decoder rows (w / (|w| + 1.19e-7), where configured), the bf16 copy. */
sl_status sl_sae_parameters_changed(sl_sae *sae);

typedef enum { SL_SAE_CENTER_ZEROS, SL_SAE_CENTER_MEAN, SL_SAE_CENTER_MEDIAN } sl_sae_center;
/* b_dec = 0, the mean, or the geometric median of x [tokens, d_in] (Weiszfeld from the mean until it moves by
 * less than 1e-5 of its length, at most 100 rounds, float64). x may be NULL for zeros. No tokens, or values
 * that are not finite: SL_EINVAL, b_dec untouched. */
sl_status sl_sae_init_b_dec(sl_sae *sae, const sl_tensor *x, sl_sae_center center);

typedef struct {
  int64_t k;                       /* 0 = the configured k, or the thresholds. batchtopk: > 0 selects rows * k over all of
                                      x, as a loss does. jumprelu: 0 */
  sl_dtype dtype;                  /* of the product: SL_F32 or SL_BF16 (inputs rounded, float32 sums) */
  bool plain;                      /* f32 without a bf16 product first: same result, slower; for measuring */
} sl_sae_encode_opts;

/* x f32 [tokens, d_in] -> codes. opts NULL: defaults. SL_EINVAL where pre-activations are not finite, with
 * their number. */
sl_status sl_sae_encode(sl_sae *sae, const sl_tensor *x, const sl_sae_encode_opts *opts, sl_codes **out);
/* codes -> f32 [tokens, d_in]. */
sl_status sl_sae_decode(sl_sae *sae, const sl_codes *codes, sl_tensor **out);

/* -- What fired (counted by sl_sae_backward: training batches only) -- */

/* Share of latents silent for more than `tokens` tokens. */
sl_status sl_sae_dead_fraction(sl_sae *sae, int64_t tokens, double *out);
/* Share of latents used by less than `rate` of the window's tokens; NaN for an empty window. */
sl_status sl_sae_rare_fraction(sl_sae *sae, double rate, double *out);
/* Starts a new window of fire_counts. */
sl_status sl_sae_reset_window(sl_sae *sae);

/* sparsify's learning rate for Adam: 2e-4 / sqrt(d_sae / 2^14). */
double sl_sae_auto_lr(int64_t d_sae);

#endif
