/* Argument structs of the SAE kernels around a step: the optimiser pass, unit rows, firing counts, the centre of a
 * batch. Part of args_sae.h, whose notation holds here. */
#ifndef SL_ARGS_SAE_UPDATE_H
#define SL_ARGS_SAE_UPDATE_H

typedef enum { SL_SAE_ADAM, SL_SAE_SGD, SL_SAE_ADAM8 } sl_sae_rule;
typedef struct { float *w_enc, *b_enc, *w_dec, *b_dec; } sl_sae_parameters;

/* One moment of both matrices in 8 bits: element j of row i is map[codes[i * d + j]] * absmax[i * blocks + j / 256], with
 * blocks = ceil(d / 256): blocks of 256 within a row, the last one shorter where 256 does not divide d. */
enum { SL_SAE_BLOCK8 = 256 };
typedef struct { uint8_t *w_enc, *w_dec; float *absmax_enc, *absmax_dec; } sl_sae_moment8;

/* One pass per latent: clip, projection, rule, unit decoder rows (w / (|w| + 1.19e-7)), bf16 copy; takes the
 * gradients and leaves them zero. Adam: m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w -= lr (mhat /
 * (sqrt(vhat) + eps)); SGD: w -= lr g. Weight decay is decoupled (w -= lr weight_decay w first) and leaves
 * the biases alone. The clip scales gradients by min(1, clip_norm / sqrt(sum_squares)); a sum of squares that is
 * not finite leaves everything as it was.
 * ADAM8 is Adam with the matrices' moments in 8 bits. The step uses the new moments before they are rounded; then each
 * block's absmax is its largest size, each code the nearest of the map to value / absmax, but a second moment above
 * zero never gets the code of zero (the denominator must not vanish). A row without a gradient keeps its codes: its
 * absmax decays. The maps (dynamic_map.h) ascend: map1 signed, map2 unsigned; the biases' moments are float32. */
typedef struct {
  int64_t m, d_in, d_out;
  sl_sae_rule rule;
  sl_sae_parameters parameters, moment1, moment2; /* moments: adam; adam8: b_enc and b_dec only */
  sl_sae_moment8 moment1_8, moment2_8;            /* adam8 */
  const float *map1, *map2;      /* [256]; adam8 */
  sl_sae_gradients gradients;
  const float *total_b_dec;      /* [d_out]; NULL leaves b_dec as it is (a block of latents before the last) */
  const double *sum_squares;     /* one number, of sae_finish_gradients */
  double clip_norm;              /* 0 = off */
  bool project, unit_rows;
  float lr, beta1, beta2, eps, weight_decay;
  int64_t step;                  /* counts from 1 */
  uint16_t *w_enc_bf16;          /* [m, d_in] or NULL */
} sl_sae_update_args;

/* y_i = x_i / (|x_i| + 1.19e-7); y may be x. */
typedef struct { const float *x; float *y; int64_t m, d; } sl_sae_unit_rows_args;

/* since[i] = 0 where latent i has an entry, else since[i] + tokens; counts[i] += its entries. */
typedef struct {
  int64_t m, tokens;
  const int64_t *offsets;        /* [m + 1], of the index */
  int64_t *since, *counts;       /* [m] */
} sl_sae_note_fired_args;

/* mask[i] = value[i] > bound (or < bound, with `below`); how many. */
typedef struct {
  int64_t m, bound;
  bool below;
  const int64_t *value;          /* [m] */
  uint8_t *mask;                 /* [m] or NULL */
  int64_t *count;                /* written; or NULL */
} sl_sae_mask_args;

/* center = mean, or geometric median (Weiszfeld from the mean, float64); total_variance = sum |x_t - mean|^2.
 */
typedef struct {
  int64_t n, d;
  const float *x;                /* [n, d] */
  bool median;
  double tolerance;
  int max_iterations; /* stops when the centre moves less than tolerance * its norm */
  float *center;                 /* [d] or NULL */
  double *total_variance;        /* written; or NULL */
  int32_t *iterations;           /* written; or NULL */
  void *workspace; size_t workspace_bytes; size_t *need;
} sl_sae_center_args;

#endif
