/* Codes: what an encoder returns, sparse rows of latent activations. The [tokens, latents] matrix does not
 * exist.
 *
 * Row t holds entries offsets[t] .. offsets[t + 1] - 1: latent ids ascending, values > 0; a row may hold
 * fewer than k (only positive pre-activations are kept). Refcounted; contents do not change once the codes
 * are handed out. */
#ifndef SL_CODES_H
#define SL_CODES_H

#include "core/tensor/tensor.h"

typedef struct sl_codes {
  int references;
  int64_t rows, n_latents;
  int64_t entries;                 /* -1 while only the device knows; see sl_codes_settle */
  sl_tensor *offsets;              /* i64 [rows + 1] */
  sl_tensor *ids;                  /* i32 [capacity >= entries] */
  sl_tensor *values;               /* f32 [capacity] */
} sl_codes;

/* Empty rows with room for `capacity` entries. */
sl_status sl_codes_create(sl_device *device, int64_t rows, int64_t n_latents, int64_t capacity,
                          sl_codes **out);
sl_codes *sl_codes_retain(sl_codes *codes);
void sl_codes_release(sl_codes *codes); /* NULL is allowed */

/* From tensors i64 [rows + 1], i32 [entries], f32 [entries], which are copied. SL_EINVAL unless offsets
 * ascend from 0 to the number of entries and the ids of each row ascend within [0, n_latents). Values may be
 * anything finite. */
sl_status sl_codes_from_tensors(const sl_tensor *offsets, const sl_tensor *ids, const sl_tensor *values,
                                int64_t n_latents, sl_codes **out);

/* Views: i64 [rows + 1], i32 [entries], f32 [entries]. Not to be written. */
sl_status sl_codes_tensors(const sl_codes *codes, sl_tensor **offsets, sl_tensor **ids, sl_tensor **values);

/* f32 [rows, n_latents], zero where there is no entry. */
sl_status sl_codes_to_dense(const sl_codes *codes, sl_tensor **out);

/* Reads the number of entries, after kernels have written rows; waits for the device. Codes that are handed out
 * are settled. */
sl_status sl_codes_settle(sl_codes *codes);

/* The kernels' view of rows first .. first + rows - 1. */
sl_codes_view sl_codes_rows(const sl_codes *codes, int64_t first, int64_t rows);

#endif
