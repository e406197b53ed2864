/* Looking at codes: how often latents fire, and single latents' activations. For evaluation and exploring. */
#ifndef SL_CODES_READ_H
#define SL_CODES_READ_H

#include "codes.h"

/* Rows in which each latent has an entry: f32 [n_latents] (exact to 2^24 rows). */
sl_status sl_codes_counts(const sl_codes *codes, sl_tensor **out);

/* Activations of a few latents: ids (0-based, n of them) -> f32 [rows, n], 0 where a latent has no entry. */
sl_status sl_codes_columns(const sl_codes *codes, const int32_t *ids, int64_t n, sl_tensor **out);

#endif
