/* Masked-language-model examples: which tokens are hidden, and what is to be predicted.
 *
 * Source: Devlin et al. 2018, section 3.1. Of the candidate tokens (not excluded, not padding) each is chosen with
 * probability `rate`; a chosen one becomes [MASK], or a random ordinary token, or stays, in the shares given. */
#ifndef SL_MASKING_H
#define SL_MASKING_H

#include "core/tensor/tensor.h"

typedef struct {
  double rate;                /* 0 .. 1, share of candidates chosen (0.15 in BERT) */
  double random_share;        /* of the chosen: replaced by a random id (0.1 in BERT's training, 0 for evaluation) */
  double keep_share;          /* of the chosen: left as they are (0.1 / 0) */
  int32_t mask_id, vocab_size;
  const int32_t *excluded;    /* ids never chosen and never used as replacement */
  int64_t n_excluded;
  uint64_t seed, step;        /* the choice depends on these and the position alone */
} sl_mask_options;

/* ids i32 [B, T], mask u8 [B, T] or NULL (0 = padding), both contiguous on the CPU -> hidden ids i32 [B, T], the flat
 * positions chosen i32 [n] and the true ids there i32 [n]. Each context gets at least one choice if it has a
 * candidate. */
sl_status sl_mask_tokens(const sl_tensor *ids, const sl_tensor *mask, const sl_mask_options *options,
                         sl_tensor **hidden, sl_tensor **positions, sl_tensor **targets);

#endif
