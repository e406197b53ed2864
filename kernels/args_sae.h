/* Argument structs of the SAE kernels; see list.h.
 *
 * Notation: n tokens (rows), d inputs, m latents; u = x - shift; p = relu(W_enc u + b_enc); a code is the
 * selected part of p; e = target - b_dec - sum a W_dec[i]. Matrices are row-major, row i of W_enc and W_dec
 * belongs to latent i. Pointers are device pointers unless called host; only enabled parts may be NULL.
 *
 * Numbers that a kernel finds (sums, counts) stay on the device, where later kernels read them: a training
 * step never waits for the device to tell the host something.
 *
 * Queries: a kernel whose `need` (host) is set writes the bytes that it wants there and does nothing else.
 * Panels and slabs are private layouts of the device: ask for their size, hand them on, look at them never.
 */
#ifndef SL_ARGS_SAE_H
#define SL_ARGS_SAE_H

/* Sparse rows: row r holds entries offsets[r] .. offsets[r + 1] - 1 of ids and values, latents ascending, values
 * > 0. The rows may be some of a larger batch: then offsets[0] > 0, and ids and values are still the batch's.
 * A kernel that writes rows appends them: offsets[0] is given, ids and values are filled from there. */
typedef struct {
  int64_t rows, n_latents;
  int64_t *offsets;              /* [rows + 1] */
  int32_t *ids;                  /* [capacity] */
  float *values;                 /* [capacity] */
} sl_codes_view;

/* The same entries by latent, tokens ascending. The latents may be a run of a larger dictionary's: then offsets[0] > 0,
 * and tokens and values (and what runs beside them: code_gradients) are still the whole dictionary's. */
typedef struct {
  int64_t *offsets;              /* [n_latents + 1] */
  int32_t *tokens;               /* [entries] */
  float *values;                 /* [entries] */
} sl_codes_index;

/* Lays x - shift out for the encoder (panels) and for the sweeps (slabs). */
typedef struct {
  int64_t n, d;
  const float *x;                /* [n, d] */
  const float *shift;            /* [d] or NULL */
  sl_dtype dtype;                /* of the encoder product: f32 or bf16 */
  bool screen;                   /* f32: panels for sae_encode_topk with w_screen */
  void *panels;                  /* or NULL */
  float *slabs;                  /* or NULL */
  size_t *need_panels, *need_slabs; /* host; a query when either is set */
} sl_sae_pack_args;

/* The k largest positive pre-activations of each token, ties to the lowest latent; fewer where fewer are
 * positive. With `dead`, the k_dead largest among the latents so marked too, from the same products. */
typedef struct {
  int64_t n, d, m, k;
  const void *panels;            /* of sae_pack with the same dtype, and `screen` where w_screen is given */
  const void *w;                 /* [m, d], dtype */
  sl_dtype dtype;                /* f32, or bf16 (float32 sums) */
  /* f32 only. Where given, a product with w_screen finds the latents that can be among the k largest, and only
   * their pre-activations are computed from w: same latents, same values, same nonfinite as without; on the CPU to
   * the bit, on CUDA up to the order of float32 sums (cuBLASLt's is its own), so that only near-ties within that
   * rounding may fall otherwise. w_screen may be any bf16 matrix; the closer to w, the faster. */
  const uint16_t *w_screen;      /* [m, d] or NULL */
  const float *slabs;            /* of sae_pack; with w_screen */
  bool *wants_screen;            /* host; a query: whether w_screen would make this encode faster */
  const float *bias;             /* [m] or NULL */
  sl_codes_view codes;           /* room for n * k entries behind offsets[0] */
  const uint8_t *dead;           /* [m] or NULL */
  int64_t k_dead;
  sl_codes_view dead_codes;      /* room for n * k_dead */
  int64_t *nonfinite;            /* added to: tokens with a NaN or infinite pre-activation; their rows hold valid
                                    ids but mean nothing */
  void *workspace; size_t workspace_bytes; size_t *need;
} sl_sae_encode_topk_args;

/* The k largest entries of each row, ties to the lowest latent. */
typedef struct {
  sl_codes_view codes, out;      /* out: room for k * rows behind offsets[0] */
  int64_t k;
  void *workspace; size_t workspace_bytes; size_t *need;
} sl_sae_codes_prefix_args;

/* y[r, id] = value, zero elsewhere. */
typedef struct { sl_codes_view codes; float *y; /* [rows, n_latents] */ } sl_sae_codes_dense_args;

/* Stable counting sort by latent; `most` bounds the entries (the room of the index). */
typedef struct {
  sl_codes_view codes;
  int64_t most;
  sl_codes_index index;
  void *workspace; size_t workspace_bytes; size_t *need;
} sl_sae_index_codes_args;

/* y = sum a W_dec[i] + b_dec, row by row. */
typedef struct {
  sl_codes_view codes;
  int64_t d;
  const float *w_dec, *b_dec;    /* [m, d]; [d] or NULL */
  float *y;                      /* [n, d] */
} sl_sae_decode_args;

/* residual = target - b_dec - sum a W_dec[i], in slabs, with its sums. */
typedef struct {
  int64_t n, m, d;
  sl_codes_index index;
  sl_codes_view codes;           /* the same entries by token: a device reads whichever order suits it */
  const float *w_dec, *b_dec;    /* [m, d]; [d] or NULL */
  const float *target;           /* [n, d], or NULL: */
  const float *target_slabs;     /* the target as slabs */
  float *residual;               /* slabs */
  double *column_sums;           /* [d]: sum over tokens of the residual */
  double *sum_squares;           /* added to: of the residual; NULL = skip */
  double *cosine;                /* added to: sum over tokens of cos(target, target - residual); NULL = skip */
  void *workspace; size_t workspace_bytes; size_t *need;
} sl_sae_decode_residual_args;

/* The terms of a loss, and its numbers; they live on the device. Kernels add to the first part, sae_loss_numbers
 * fills the second from it. */
enum { SL_SAE_MAIN, SL_SAE_AUXK, SL_SAE_MULTI, SL_SAE_TERMS };
typedef struct {
  double sum_squares[SL_SAE_TERMS]; /* of each term's residual */
  double cosine, total_variance;    /* sums over the batch */
  int64_t nonfinite, dead;
  double smallest;                  /* of the codes that a batch selection kept */
  int64_t crowded;                  /* see sae_batch_select */
  int64_t entries;                  /* of the main codes */
  double loss, mse, fvu, mean_cosine, auxk, multi_topk;
  double factor[SL_SAE_TERMS];      /* d loss / d residual = factor * residual */
} sl_sae_numbers;

/* The numbers of a batch, with D = total_variance (fvu) or tokens * d (mse) and s = min(dead / aux_wanted, 1):
 * main = sum_squares[MAIN] / D, auxk = s sum_squares[AUXK] / D, multi_topk = sum_squares[MULTI] / D,
 * loss = main + auxk_alpha auxk + multi_alpha multi_topk; factor[i] = -2 (weight of the term's sum in the loss).
 * Where anything is not finite, or D is 0, the loss and every factor are NaN: gradients then are NaN too, and
 * sae_update refuses them. */
typedef struct {
  sl_sae_numbers *numbers;
  const int64_t *offsets;        /* [tokens + 1] of the main codes */
  int64_t tokens, d, aux_wanted; /* aux_wanted 0: no AuxK */
  bool fvu;
  double total_variance;         /* > 0: in place of the numbers' own */
  double auxk_alpha, multi_alpha;
} sl_sae_loss_numbers_args;

/* What a dictionary's gradient is made of. A row of w_enc, w_dec means something only where touched. */
typedef struct {
  float *w_enc, *w_dec;          /* [m, d_in], [m, d_out] */
  float *b_enc, *b_dec;          /* [m]; [d_out]: the part of b_dec that does not go through u */
  uint8_t *touched;              /* [m] */
  float *dot_dec;                /* [m]: gradient of row i of W_dec . W_dec[i] */
  float *squares_enc, *squares_dec; /* [m]: sums of squares of the gradient rows */
} sl_sae_gradients;

/* With G = scale * factor * residual (the gradient at the reconstruction), for the entries (t, i, a):
 * da = G_t . W_dec[i]; W_dec[i] += a G_t; W_enc[i] += da u_t; b_enc[i] += da; b_dec += scale factor column_sums.
 */
typedef struct {
  int64_t n, m, d_in, d_out;
  sl_codes_index index;
  const float *residual;         /* slabs [n, d_out] */
  const double *column_sums;     /* [d_out], or NULL where b_dec takes no part */
  double scale;
  const double *factor;          /* one number, of sl_sae_numbers */
  const float *u;                /* slabs [n, d_in] */
  const float *w_dec;            /* [m, d_out] */
  sl_sae_gradients gradients;    /* added to */
  float *code_gradients;         /* [entries]: da, in the order of the index */
  int64_t most;                  /* bounds the entries (the room of the index) */
  void *workspace; size_t workspace_bytes; size_t *need;
} sl_sae_backward_args;

/* total_b_dec = b_dec - sum_i b_enc[i] W_enc[i] (the second term with through_u only), and the sum of squares
 * of the whole gradient; with `project`, of the gradient without its components along the (unit) decoder
 * rows.
 * Latents in blocks, one call for each: `add` on all but the first (total_b_dec goes on from where it is, b_dec not being
 * read again, and sum_squares is added to), `more` on all but the last (total_b_dec is not complete, so its squares are
 * left out). */
typedef struct {
  int64_t m, d_in, d_out;
  sl_sae_gradients gradients;
  const float *w_enc;            /* [m, d_in] */
  bool through_u, project;       /* through_u: d_in = d_out */
  bool add, more;
  float *total_b_dec;            /* [d_out] */
  double *sum_squares;           /* written */
  void *workspace; size_t workspace_bytes; size_t *need;
} sl_sae_finish_gradients_args;

/* Untouched gradient rows become zeros, so that somebody may look at the matrices. */
typedef struct { int64_t m, d_in, d_out; sl_sae_gradients gradients; } sl_sae_fill_gradients_args;

#include "args_sae_update.h"

#endif
