/* Codes; see codes.h. */
#include "codes.h"

#include "core/base/mem.h"
#include "sae_private.h"

sl_status sl_codes_create(sl_device *device, int64_t rows, int64_t n_latents, int64_t capacity,
                          sl_codes **out) {
  if (rows < 0 || n_latents < 1 || n_latents > INT32_MAX || capacity < 0 || rows >= INT32_MAX)
    return sl_fail(SL_EINVAL, "codes: %lld rows of %lld latents: at most 2^31 - 1 of each", (long long)rows,
                   (long long)n_latents);
  sl_codes *codes;
  SL_TRY(sl_mem_alloc(sizeof *codes, "codes", (void **)&codes));
  *codes = (sl_codes){ .references = 1, .rows = rows, .n_latents = n_latents };
  int64_t ends = rows + 1;
  sl_status status = sl_tensor_zeros(device, SL_I64, 1, &ends, &codes->offsets);
  if (status == SL_OK) status = sl_tensor_create(device, SL_I32, 1, &capacity, &codes->ids);
  if (status == SL_OK) status = sl_tensor_create(device, SL_F32, 1, &capacity, &codes->values);
  if (status != SL_OK) {
    sl_codes_release(codes);
    return status;
  }
  *out = codes;
  return SL_OK;
}

sl_codes *sl_codes_retain(sl_codes *codes) {
  codes->references++;
  return codes;
}

void sl_codes_release(sl_codes *codes) {
  if (!codes || --codes->references > 0) return;
  sl_tensor_release(codes->offsets);
  sl_tensor_release(codes->ids);
  sl_tensor_release(codes->values);
  sl_mem_free(codes);
}

sl_status sl_codes_settle(sl_codes *codes) {
  sl_tensor *last;
  SL_TRY(sl_tensor_slice(codes->offsets, 0, codes->rows, 1, &last));
  sl_status status = sl_tensor_read(last, &codes->entries, sizeof codes->entries);
  sl_tensor_release(last);
  return status;
}

sl_codes_view sl_codes_rows(const sl_codes *codes, int64_t first, int64_t rows) {
  return (sl_codes_view){ .rows = rows, .n_latents = codes->n_latents,
                          .offsets = (int64_t *)sl_tensor_data(codes->offsets) + first,
                          .ids = sl_tensor_data(codes->ids), .values = sl_tensor_data(codes->values) };
}

/* Everything that a kernel would trust. */
static sl_status check_parts(const int64_t *offsets, const int32_t *ids, int64_t rows, int64_t entries,
                             int64_t n_latents) {
  if (offsets[0] != 0 || offsets[rows] != entries)
    return sl_fail(SL_EINVAL,
                   "codes: offsets run from %lld to %lld, expected 0 to %lld (the number of entries)",
                   (long long)offsets[0], (long long)offsets[rows], (long long)entries);
  for (int64_t r = 0; r < rows; r++) {
    if (offsets[r + 1] < offsets[r] || offsets[r + 1] > entries)
      return sl_fail(SL_EINVAL, "codes: offsets must ascend; row %lld ends at %lld", (long long)r,
                     (long long)offsets[r + 1]);
    for (int64_t p = offsets[r]; p < offsets[r + 1]; p++) {
      if (ids[p] < 0 || ids[p] >= n_latents || (p > offsets[r] && ids[p] <= ids[p - 1]))
        return sl_fail(SL_EINVAL, "codes: row %lld holds latent %d: ids must ascend within 0 .. %lld",
                       (long long)r, (int)ids[p], (long long)n_latents - 1);
    }
  }
  return SL_OK;
}

static sl_status read_and_check(const sl_codes *codes) {
  int64_t *offsets = NULL;
  int32_t *ids = NULL;
  size_t offset_bytes = (size_t)(codes->rows + 1) * sizeof *offsets,
         id_bytes = (size_t)codes->entries * sizeof *ids;
  sl_status status = sl_mem_alloc(offset_bytes, "code offsets", (void **)&offsets);
  if (status == SL_OK) status = sl_mem_alloc(id_bytes, "code ids", (void **)&ids);
  if (status == SL_OK) status = sl_tensor_read(codes->offsets, offsets, offset_bytes);
  if (status == SL_OK) status = sl_tensor_read(codes->ids, ids, id_bytes);
  if (status == SL_OK) status = check_parts(offsets, ids, codes->rows, codes->entries, codes->n_latents);
  sl_mem_free(offsets);
  sl_mem_free(ids);
  return status;
}

sl_status sl_codes_from_tensors(const sl_tensor *offsets, const sl_tensor *ids, const sl_tensor *values,
                                int64_t n_latents, sl_codes **out) {
  SL_TRY(sl_tensor_expect(offsets, "codes", "offsets", SL_I64, 1));
  SL_TRY(sl_tensor_expect(ids, "codes", "ids", SL_I32, 1));
  SL_TRY(sl_tensor_expect(values, "codes", "values", SL_F32, 1));
  int64_t entries = ids->shape[0];
  if (values->shape[0] != entries || offsets->shape[0] < 1)
    return sl_fail(
        SL_ESHAPE,
        "codes: %lld ids, %lld values, %lld offsets: ids and values must be equally many, offsets rows + 1",
        (long long)entries, (long long)values->shape[0], (long long)offsets->shape[0]);
  sl_codes *codes;
  SL_TRY(sl_codes_create(sl_tensor_device(ids), offsets->shape[0] - 1, n_latents, entries, &codes));
  codes->entries = entries;
  sl_status status = sl_tensor_copy_(codes->offsets, offsets);
  if (status == SL_OK) status = sl_tensor_copy_(codes->ids, ids);
  if (status == SL_OK) status = sl_tensor_copy_(codes->values, values);
  if (status == SL_OK) status = read_and_check(codes);
  if (status != SL_OK) {
    sl_codes_release(codes);
    return status;
  }
  *out = codes;
  return SL_OK;
}

sl_status sl_codes_tensors(const sl_codes *codes, sl_tensor **offsets, sl_tensor **ids, sl_tensor **values) {
  *ids = NULL;
  SL_TRY(sl_tensor_slice(codes->ids, 0, 0, codes->entries, ids));
  sl_status status = sl_tensor_slice(codes->values, 0, 0, codes->entries, values);
  if (status != SL_OK) {
    sl__drop(ids);
    return status;
  }
  *offsets = sl_tensor_retain(codes->offsets);
  return SL_OK;
}

sl_status sl_codes_to_dense(const sl_codes *codes, sl_tensor **out) {
  sl_device *device = sl_tensor_device(codes->values);
  int64_t shape[2] = { codes->rows, codes->n_latents };
  sl_tensor *dense;
  SL_TRY(sl_tensor_create(device, SL_F32, 2, shape, &dense));
  sl_sae_codes_dense_args args = { .codes = sl_codes_rows(codes, 0, codes->rows), .y = sl_tensor_f32(dense) };
  sl_status status = SAE_RUN(device, sae_codes_dense, &args);
  if (status != SL_OK) {
    sl_tensor_release(dense);
    return status;
  }
  *out = dense;
  return SL_OK;
}

sl_status sl__codes_reserve(sl_codes *codes, int64_t entries, int64_t capacity) {
  sl_tensor **arrays[2] = { &codes->ids, &codes->values };
  for (int i = 0; i < 2; i++) {
    sl_tensor *old = *arrays[i], *grown, *from = NULL, *to = NULL;
    SL_TRY(sl_tensor_create(sl_tensor_device(old), old->dtype, 1, &capacity, &grown));
    sl_status status = sl_tensor_slice(old, 0, 0, entries, &from);
    if (status == SL_OK) status = sl_tensor_slice(grown, 0, 0, entries, &to);
    if (status == SL_OK) status = sl_tensor_copy_(to, from);
    sl_tensor_release(from);
    sl_tensor_release(to);
    if (status != SL_OK) {
      sl_tensor_release(grown);
      return status;
    }
    *arrays[i] = grown;
    sl_tensor_release(old);
  }
  return SL_OK;
}
