/* SAE kernels on codes: prefix by rank, inverse index, plain decoding, bookkeeping of what fired. */
#include <omp.h>
#include <string.h>

#include "sae_cpu.h"

/* -- Prefix -- */

static int32_t bits_of(float value) {
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static int64_t count_from(const float *values, int64_t n, int32_t bound) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i++) count += bits_of(values[i]) >= bound;
  return count;
}

/* The k-th largest of n > k positive values, by bisection on its bits. */
static int32_t rank_bits(const float *values, int64_t n, int64_t k) {
  int32_t low = 0, high = INT32_MAX; /* count_from(low) >= k, count_from(high) < k */
  while (high - low > 1) {
    int32_t middle = low + (high - low) / 2;
    if (count_from(values, n, middle) >= k) low = middle;
    else high = middle;
  }
  return low;
}

sl_status slk_cpu_sae_codes_prefix(sl_device *device, const sl_sae_codes_prefix_args *args) {
  (void)device;
  const sl_codes_view *in = &args->codes, *out = &args->out;
  if (args->need) {
    *args->need = 0;
    return SL_OK;
  }
  for (int64_t r = 0; r < in->rows; r++) {
    int64_t length = in->offsets[r + 1] - in->offsets[r];
    out->offsets[r + 1] = out->offsets[r] + (length < args->k ? length : args->k);
  }
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < in->rows; r++) {
    const float *values = in->values + in->offsets[r];
    const int32_t *ids = in->ids + in->offsets[r];
    int64_t length = in->offsets[r + 1] - in->offsets[r], at = out->offsets[r];
    int32_t bound = length > args->k ? rank_bits(values, length, args->k) : 0;
    int64_t ties = length > args->k ? args->k - count_from(values, length, bound + 1) : 0;
    for (int64_t i = 0; i < length; i++) {
      int32_t bits = bits_of(values[i]);
      if (bits < bound || (bits == bound && ties-- <= 0)) continue;
      out->values[at] = values[i];
      out->ids[at++] = ids[i];
    }
  }
  return SL_OK;
}

sl_status slk_cpu_sae_codes_dense(sl_device *device, const sl_sae_codes_dense_args *args) {
  (void)device;
  const sl_codes_view *codes = &args->codes;
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < codes->rows; r++) {
    float *row = args->y + r * codes->n_latents;
    memset(row, 0, (size_t)codes->n_latents * sizeof *row);
    for (int64_t p = codes->offsets[r]; p < codes->offsets[r + 1]; p++) row[codes->ids[p]] = codes->values[p];
  }
  return SL_OK;
}

/* -- Inverse index -- */

/* Counting sort: pieces of the rows count their latents, a prefix over (latent, piece) gives each piece its
 * places. Stable whatever the number of pieces, so the result does not depend on threads. */
sl_status slk_cpu_sae_index_codes(sl_device *device, const sl_sae_index_codes_args *args) {
  (void)device;
  int64_t m = args->codes.n_latents, rows = args->codes.rows;
  int64_t pieces = omp_get_max_threads() < 16 ? omp_get_max_threads() : 16;
  if (args->need) {
    *args->need = (size_t)(pieces * m) * sizeof(int32_t);
    return SL_OK;
  }
  if (args->workspace_bytes < (size_t)(pieces * m) * sizeof(int32_t))
    pieces = (int64_t)(args->workspace_bytes / ((size_t)m * 4));
  if (pieces < 1)
    return sl_fail(SL_EINVAL, "sae_index_codes: a workspace of %zu bytes is too small",
                   args->workspace_bytes);
  int32_t *places = args->workspace;
  const int64_t *offsets = args->codes.offsets;
  memset(places, 0, (size_t)(pieces * m) * sizeof *places);
#pragma omp parallel for schedule(static) num_threads((int)pieces)
  for (int64_t piece = 0; piece < pieces; piece++) {
    int32_t *mine = places + piece * m;
    for (int64_t p = offsets[rows * piece / pieces]; p < offsets[rows * (piece + 1) / pieces]; p++)
      mine[args->codes.ids[p]]++;
  }
  int64_t at = 0;
  for (int64_t i = 0; i < m; i++) {
    args->index.offsets[i] = at;
    int32_t within = 0;
    for (int64_t piece = 0; piece < pieces; piece++) {
      int32_t count = places[piece * m + i];
      places[piece * m + i] = within;
      within += count;
    }
    at += within;
  }
  args->index.offsets[m] = at;
#pragma omp parallel for schedule(static) num_threads((int)pieces)
  for (int64_t piece = 0; piece < pieces; piece++) {
    int32_t *mine = places + piece * m;
    for (int64_t r = rows * piece / pieces; r < rows * (piece + 1) / pieces; r++) {
      for (int64_t p = offsets[r]; p < offsets[r + 1]; p++) {
        int32_t id = args->codes.ids[p];
        int64_t to = args->index.offsets[id] + mine[id]++;
        args->index.tokens[to] = (int32_t)r;
        args->index.values[to] = args->codes.values[p];
      }
    }
  }
  return SL_OK;
}

/* -- Decoding -- */

sl_status slk_cpu_sae_decode(sl_device *device, const sl_sae_decode_args *args) {
  (void)device;
  const sae_cpu_ops *ops = sae_cpu_get_ops();
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < args->codes.rows; r++) ops->decode_row(args, r);
  return SL_OK;
}

/* -- Bookkeeping -- */

sl_status slk_cpu_sae_note_fired(sl_device *device, const sl_sae_note_fired_args *args) {
  (void)device;
  for (int64_t i = 0; i < args->m; i++) {
    int64_t entries = args->offsets[i + 1] - args->offsets[i];
    args->since[i] = entries > 0 ? 0 : args->since[i] + args->tokens;
    args->counts[i] += entries;
  }
  return SL_OK;
}

sl_status slk_cpu_sae_mask(sl_device *device, const sl_sae_mask_args *args) {
  (void)device;
  int64_t count = 0;
  for (int64_t i = 0; i < args->m; i++) {
    bool beyond = args->below ? args->value[i] < args->bound : args->value[i] > args->bound;
    if (args->mask) args->mask[i] = beyond;
    count += beyond;
  }
  if (args->count) *args->count = count;
  return SL_OK;
}
