/* Argument structs of the SAE kernels that select otherwise than by the k largest of a token; see list.h and
 * args_sae.h, whose notation and rules hold here too. */
#ifndef SL_ARGS_SAE_RULES_H
#define SL_ARGS_SAE_RULES_H

#include "args_sae.h"

/* GroupMax (sparsify 1.3): of each of k runs of m / k neighbouring latents the largest pre-activation, where it is
 * positive, ties to the lowest latent. Everything else as for sae_encode_topk, the dead latents included: of those the
 * k_dead largest, wherever they lie. */
typedef struct {
  int64_t n, d, m, k;            /* k divides m */
  const void *panels;            /* of sae_pack with the same dtype */
  const void *w;                 /* [m, d], dtype */
  sl_dtype dtype;                /* f32, or bf16 (float32 sums) */
  const float *bias;             /* [m] or NULL */
  sl_codes_view codes;           /* room for n * k entries behind offsets[0] */
  const uint8_t *dead;           /* [m] or NULL */
  int64_t k_dead;
  sl_codes_view dead_codes;      /* room for n * k_dead */
  int64_t *nonfinite;            /* added to, as for sae_encode_topk */
  void *workspace; size_t workspace_bytes; size_t *need;
} sl_sae_encode_groupmax_args;

/* JumpReLU: the pre-activations above max(threshold[i], 0). Rows have any number of entries; of a token with more than
 * `room` the `room` largest are kept, and it is counted, so that the caller may come back with more room. */
typedef struct {
  int64_t n, d, m, room;
  const void *panels, *w;        /* as above */
  sl_dtype dtype;
  const float *bias;             /* [m] or NULL */
  const float *threshold;        /* [m] */
  sl_codes_view codes;           /* room for n * room entries behind offsets[0] */
  int64_t *overflow;             /* added to: tokens with more than `room` */
  int64_t *nonfinite;            /* added to */
  void *workspace; size_t workspace_bytes; size_t *need;
} sl_sae_encode_jumprelu_args;

/* BatchTopK from candidates: of all entries of `codes` the `keep` largest, ties to the lowest (row, latent); all, where
 * there are no more. The candidates are each token's `room` best; where all of them are kept, that token may have had
 * more that belong among the kept: it is counted as crowded. Without such tokens the selection is that among all
 * pre-activations. */
typedef struct {
  sl_codes_view codes;
  int64_t most;                  /* bounds its entries */
  sl_codes_view out;             /* room for min(keep, most) behind offsets[0] */
  int64_t keep, room;            /* room 0: the candidates are complete */
  double *smallest;              /* written: the least value kept; 0 where none is */
  int64_t *crowded;              /* written */
  void *workspace; size_t workspace_bytes; size_t *need;
} sl_sae_batch_select_args;

/* The running mean of the least value kept: SAELens' T = (1 - rate) T + rate numbers->smallest, which starts at 0 and
 * needs some multiples of 1 / rate batches to leave it, divided by the weight that it has gathered: with w' = (1 - rate)
 * w + rate, threshold' = ((1 - rate) w threshold + rate smallest) / w'. Nothing where smallest is not above 0 or the
 * loss is not finite. */
typedef struct {
  const sl_sae_numbers *numbers;
  float *threshold;              /* [2]: threshold, w; both 0 before the first batch */
  double rate;
} sl_sae_follow_threshold_args;

#endif
