/* Looking at codes (how often latents fire, single latents' activations), and codes from fixed-width selections. For
 * evaluation and exploring. */
#ifndef SL_CODES_READ_H
#define SL_CODES_READ_H

#include "codes.h"

/* Rows in which each latent has an entry: f32 [n_latents] (exact to 2^24 rows). */
sl_status sl_codes_counts(const sl_codes *codes, sl_tensor **out);

/* Activations of a few latents: ids (0-based, n of them) -> f32 [rows, n], 0 where a latent has no entry. */
sl_status sl_codes_columns(const sl_codes *codes, const int32_t *ids, int64_t n, sl_tensor **out);

/* Codes from the k entries of each row that sl_topk gives: values f32 [rows, k], ids i32 [rows, k] -> ids ascending, exact
 * zeros dropped. An id outside [0, n_latents) or twice in a row is SL_EINVAL. Values may be negative. */
sl_status sl_codes_from_topk(const sl_tensor *values, const sl_tensor *ids, int64_t n_latents, sl_codes **out);

#endif
