/* Differentiable operations on fixed-width sparse codes: what a researcher's own SAE is made of.
 *
 * The built-in dictionaries use core/sae, which is faster still; these are open parts: any
 * selection rule, any loss, in Lua, without ever writing the [tokens, latents] matrix twice. */
#ifndef SL_OPS_SPARSE_H
#define SL_OPS_SPARSE_H

#include "math.h"

/* Each row's k largest entries, by value or by absolute value (signs kept): x [N, M] -> values [N, k] (recorded),
 * indices i32 [N, k], ordered by rank, ties by lowest index. */
sl_status sl_topk(const sl_tensor *x, int64_t k, bool absolute, sl_tensor **values, sl_tensor **indices);

/* x_hat[t] = sum_j values[t, j] W_dec[indices[t, j]] + b_dec: values [N, k], W_dec [M, D], b_dec [D] or NULL.
 * Gradients to values, W_dec and b_dec; only the selected rows of W_dec are read. Deterministic. */
sl_status sl_sparse_decode(const sl_tensor *values, const sl_tensor *indices, const sl_tensor *W_dec,
                           const sl_tensor *b_dec, sl_tensor **out);

/* Rows of x by id: x [M, D], ids i32 [N] -> [N, D]; recorded. */
sl_status sl_gather_rows(const sl_tensor *x, const sl_tensor *ids, sl_tensor **out);

/* W's rows divided by (their norm + eps), in place; never recorded. */
sl_status sl_normalize_rows_(sl_tensor *W, float eps);

#endif
