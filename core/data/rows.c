/* Permutations and kept positions; see rows.h. */
#include "rows.h"

#include <string.h>

sl_status sl_random_permutation(int64_t n, uint64_t seed, uint32_t stream, uint64_t step, sl_tensor **out) {
  if (n < 0 || n > INT32_MAX) return sl_fail(SL_EINVAL, "permutation: %lld rows, at most 2147483647", (long long)n);
  sl_device *cpu = sl_cpu_device();
  sl_tensor *draws;
  SL_TRY(sl_tensor_create(cpu, SL_F32, 1, &n, &draws));
  sl_status status = sl_tensor_create(cpu, SL_I32, 1, &n, out);
  /* 24 random bits for each of two draws give 48: the modulo bias is below 2^-17 for any n. */
  uint32_t *high = sl_tensor_data(draws);
  int32_t *order = status == SL_OK ? sl_tensor_data(*out) : NULL;
  for (int half = 0; half < 2 && status == SL_OK; half++) {
    sl_random_args args = { .kind = SL_RANDOM_INT, .seed = seed, .stream = stream, .step = 2 * step + (uint64_t)half,
                            .bound = 1 << 24, .y = half ? (void *)order : (void *)high, .n = n };
    status = cpu->kernels->random(cpu, &args);
  }
  if (status == SL_OK) {
    /* `order` holds the low bits; turn it into targets, then into the permutation (inside-out shuffle). */
    for (int64_t i = 0; i < n; i++) {
      uint64_t draw = (uint64_t)high[i] << 24 | (uint32_t)order[i];
      int64_t j = (int64_t)(draw % (uint64_t)(i + 1));
      order[i] = order[j];
      order[j] = (int32_t)i;
    }
  } else if (order) {
    sl_tensor_release(*out);
    *out = NULL;
  }
  sl_tensor_release(draws);
  return status;
}

static bool is_excluded(int32_t id, const int32_t *excluded, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (id == excluded[i]) return true;
  return false;
}

static sl_status check_ids(const sl_tensor *ids, const sl_tensor *mask) {
  char a[SL_SHAPE_TEXT], b[SL_SHAPE_TEXT];
  SL_TRY(sl_tensor_expect(ids, "kept positions", "ids", SL_I32, -1));
  if (mask) SL_TRY(sl_tensor_expect(mask, "kept positions", "mask", SL_U8, -1));
  if (mask && !sl_tensor_same_shape(ids, mask))
    return sl_fail(SL_ESHAPE, "kept positions: ids %s, mask %s", sl_tensor_shape_text(ids, a),
                   sl_tensor_shape_text(mask, b));
  if (!sl_tensor_device(ids)->host_memory || !sl_tensor_is_contiguous(ids) ||
      (mask && (!sl_tensor_device(mask)->host_memory || !sl_tensor_is_contiguous(mask))))
    return sl_fail(SL_EDEVICE, "kept positions: ids and mask must be contiguous on the CPU");
  return SL_OK;
}

sl_status sl_kept_mask(const sl_tensor *ids, const sl_tensor *mask, const int32_t *excluded, int64_t n_excluded,
                       sl_tensor **out) {
  SL_TRY(check_ids(ids, mask));
  SL_TRY(sl_tensor_create_like(ids, SL_U8, out));
  const int32_t *id = sl_tensor_data(ids);
  const uint8_t *on = mask ? sl_tensor_data(mask) : NULL;
  uint8_t *kept = sl_tensor_data(*out);
  int64_t n = sl_tensor_count(ids);
  for (int64_t i = 0; i < n; i++) kept[i] = (!on || on[i]) && !is_excluded(id[i], excluded, n_excluded);
  return SL_OK;
}

sl_status sl_kept_positions(const sl_tensor *ids, const sl_tensor *mask, const int32_t *excluded, int64_t n_excluded,
                            sl_tensor **out) {
  sl_tensor *keep = NULL;
  SL_TRY(sl_kept_mask(ids, mask, excluded, n_excluded, &keep));
  const uint8_t *kept = sl_tensor_data(keep);
  int64_t n = sl_tensor_count(ids), count = 0;
  for (int64_t i = 0; i < n; i++) count += kept[i];
  sl_status status = sl_tensor_create(sl_cpu_device(), SL_I32, 1, &count, out);
  int32_t *position = status == SL_OK ? sl_tensor_data(*out) : NULL;
  for (int64_t i = 0; i < n && position; i++)
    if (kept[i]) *position++ = (int32_t)i;
  sl_tensor_release(keep);
  return status;
}

static sl_status check_row_numbers(const int32_t *row, int64_t count, int64_t n) {
  for (int64_t i = 0; i < count; i++)
    if (row[i] < 0 || row[i] >= n)
      return sl_fail(SL_EINVAL, "pick rows: row %d of a matrix of %lld rows", row[i], (long long)n);
  return SL_OK;
}

sl_status sl_pick_rows(const sl_tensor *matrix, const sl_tensor *rows, sl_tensor **out) {
  SL_TRY(sl_tensor_expect(matrix, "pick rows", "the matrix", matrix->dtype, 2));
  SL_TRY(sl_tensor_expect(rows, "pick rows", "rows", SL_I32, 1));
  if (!sl_tensor_device(matrix)->host_memory || !sl_tensor_is_contiguous(matrix) ||
      !sl_tensor_device(rows)->host_memory || !sl_tensor_is_contiguous(rows))
    return sl_fail(SL_EDEVICE, "pick rows: matrix and row numbers must be contiguous on the CPU");
  const int32_t *row = sl_tensor_data(rows);
  int64_t count = rows->shape[0];
  SL_TRY(check_row_numbers(row, count, matrix->shape[0]));
  SL_TRY(sl_tensor_create(sl_cpu_device(), matrix->dtype, 2, (int64_t[]){ count, matrix->shape[1] }, out));
  size_t bytes = (size_t)matrix->shape[1] * sl_dtype_size(matrix->dtype);
  const char *from = sl_tensor_data(matrix);
  char *to = sl_tensor_data(*out);
  for (int64_t i = 0; i < count; i++) memcpy(to + (size_t)i * bytes, from + (size_t)row[i] * bytes, bytes);
  return SL_OK;
}
