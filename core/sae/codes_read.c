/* Looking at codes; see codes_read.h. The codes come to the CPU: these results are small and read by people. */
#include "codes_read.h"

#include "core/base/mem.h"

/* The codes' three arrays on the CPU. */
typedef struct {
  sl_tensor *tensors[3];
  const int64_t *offsets;
  const int32_t *ids;
  const float *values;
} host_codes;

static void release_host(host_codes *host) {
  for (int i = 0; i < 3; i++) sl_tensor_release(host->tensors[i]);
}

static sl_status read_host(const sl_codes *codes, host_codes *host) {
  *host = (host_codes){ 0 };
  sl_tensor *views[3] = { NULL };
  sl_status status = sl_codes_tensors(codes, &views[0], &views[1], &views[2]);
  for (int i = 0; i < 3; i++) {
    if (status == SL_OK) status = sl_tensor_to_device(views[i], sl_cpu_device(), &host->tensors[i]);
    sl_tensor_release(views[i]);
  }
  if (status != SL_OK) {
    release_host(host);
    return status;
  }
  host->offsets = sl_tensor_data(host->tensors[0]);
  host->ids = sl_tensor_data(host->tensors[1]);
  host->values = sl_tensor_data(host->tensors[2]);
  return SL_OK;
}

sl_status sl_codes_counts(const sl_codes *codes, sl_tensor **out) {
  host_codes host;
  SL_TRY(read_host(codes, &host));
  sl_status status = sl_tensor_zeros(sl_cpu_device(), SL_F32, 1, &codes->n_latents, out);
  float *counts = status == SL_OK ? sl_tensor_f32(*out) : NULL;
  for (int64_t e = 0; e < codes->entries && counts; e++) counts[host.ids[e]] += 1.0f;
  release_host(&host);
  return status;
}

/* which[latent] = its column (the first, when it is asked for twice), or -1. */
static sl_status make_lookup(const sl_codes *codes, const int32_t *ids, int64_t n, int32_t **which) {
  SL_TRY(sl_mem_alloc((size_t)codes->n_latents * sizeof **which, "latent columns", (void **)which));
  for (int64_t i = 0; i < codes->n_latents; i++) (*which)[i] = -1;
  for (int64_t j = 0; j < n; j++) {
    if (ids[j] < 0 || ids[j] >= codes->n_latents) {
      sl_mem_free(*which);
      return sl_fail(SL_EINVAL, "latent %d: this dictionary has latents 0 to %lld", ids[j],
                     (long long)codes->n_latents - 1);
    }
    if ((*which)[ids[j]] < 0) (*which)[ids[j]] = (int32_t)j;
  }
  return SL_OK;
}

/* Columns asked for twice are copies of the first. */
static void copy_repeated(const int32_t *which, const int32_t *ids, int64_t n, float *rows, int64_t count) {
  for (int64_t j = 0; j < n; j++) {
    int64_t first = which[ids[j]];
    for (int64_t t = 0; first != j && t < count; t++) rows[t * n + j] = rows[t * n + first];
  }
}

sl_status sl_codes_columns(const sl_codes *codes, const int32_t *ids, int64_t n, sl_tensor **out) {
  int32_t *which;
  SL_TRY(make_lookup(codes, ids, n, &which));
  host_codes host = { 0 };
  *out = NULL;
  sl_status status = sl_tensor_zeros(sl_cpu_device(), SL_F32, 2, (int64_t[]){ codes->rows, n }, out);
  if (status == SL_OK) status = read_host(codes, &host);
  for (int64_t t = 0; t < codes->rows && status == SL_OK; t++)
    for (int64_t e = host.offsets[t]; e < host.offsets[t + 1]; e++)
      if (which[host.ids[e]] >= 0) sl_tensor_f32(*out)[t * n + which[host.ids[e]]] = host.values[e];
  if (status == SL_OK) copy_repeated(which, ids, n, sl_tensor_f32(*out), codes->rows);
  release_host(&host);
  sl_mem_free(which);
  if (status != SL_OK && *out) {
    sl_tensor_release(*out);
    *out = NULL;
  }
  return status;
}

/* Sorts one row by id, drops zeros; returns how many are left, or -1 for an id that is out of range or double. */
static int64_t compact_row(const float *values, const int32_t *ids, int64_t k, int64_t n_latents, int32_t *out_ids,
                           float *out_values) {
  int64_t n = 0;
  for (int64_t j = 0; j < k; j++) {
    if (ids[j] < 0 || ids[j] >= n_latents) return -1;
    if (values[j] == 0) continue;
    int64_t at = n++;
    for (; at > 0 && out_ids[at - 1] > ids[j]; at--) {
      out_ids[at] = out_ids[at - 1];
      out_values[at] = out_values[at - 1];
    }
    if (at > 0 && out_ids[at - 1] == ids[j]) return -1;
    out_ids[at] = ids[j];
    out_values[at] = values[j];
  }
  return n;
}

/* values and ids [rows, k] on the CPU -> offsets, ids, values of the entries, there. */
static sl_status compact(const sl_tensor *values, const sl_tensor *ids, int64_t n_latents, sl_tensor *parts[3]) {
  int64_t rows = values->shape[0], k = values->shape[1], count = rows * k, used = 0;
  sl_device *cpu = sl_cpu_device();
  SL_TRY(sl_tensor_zeros(cpu, SL_I64, 1, &(int64_t){ rows + 1 }, &parts[0]));
  SL_TRY(sl_tensor_create(cpu, SL_I32, 1, &count, &parts[1]));
  SL_TRY(sl_tensor_create(cpu, SL_F32, 1, &count, &parts[2]));
  for (int64_t t = 0; t < rows; t++) {
    int64_t n = compact_row(sl_tensor_f32(values) + t * k, (const int32_t *)sl_tensor_data(ids) + t * k, k, n_latents,
                            (int32_t *)sl_tensor_data(parts[1]) + used, sl_tensor_f32(parts[2]) + used);
    if (n < 0)
      return sl_fail(SL_EINVAL, "codes: row %lld has an id twice or outside 0 to %lld", (long long)t,
                     (long long)n_latents - 1);
    used += n;
    ((int64_t *)sl_tensor_data(parts[0]))[t + 1] = used;
  }
  for (int i = 1; i < 3; i++) {
    sl_tensor *whole = parts[i];
    sl_tensor *used_part;
    SL_TRY(sl_tensor_slice(whole, 0, 0, used, &used_part));
    parts[i] = used_part;
    sl_tensor_release(whole);
  }
  return SL_OK;
}

sl_status sl_codes_from_topk(const sl_tensor *values, const sl_tensor *ids, int64_t n_latents, sl_codes **out) {
  char a[SL_SHAPE_TEXT], b[SL_SHAPE_TEXT];
  SL_TRY(sl_tensor_expect(values, "codes", "values", SL_F32, 2));
  SL_TRY(sl_tensor_expect(ids, "codes", "ids", SL_I32, 2));
  if (!sl_tensor_same_shape(values, ids) || !sl_tensor_is_contiguous(values) || !sl_tensor_is_contiguous(ids))
    return sl_fail(SL_ESHAPE, "codes: values %s and ids %s must be contiguous and of one shape",
                   sl_tensor_shape_text(values, a), sl_tensor_shape_text(ids, b));
  sl_device *cpu = sl_cpu_device(), *device = sl_tensor_device(values);
  sl_tensor *near[2] = { NULL }, *parts[3] = { NULL }, *placed[3] = { NULL };
  sl_status status = sl_tensor_to_device(values, cpu, &near[0]);
  if (status == SL_OK) status = sl_tensor_to_device(ids, cpu, &near[1]);
  if (status == SL_OK) status = compact(near[0], near[1], n_latents, parts);
  for (int i = 0; i < 3 && status == SL_OK; i++) status = sl_tensor_to_device(parts[i], device, &placed[i]);
  if (status == SL_OK) status = sl_codes_from_tensors(placed[0], placed[1], placed[2], n_latents, out);
  for (int i = 0; i < 2; i++) sl_tensor_release(near[i]);
  for (int i = 0; i < 3; i++) {
    sl_tensor_release(parts[i]);
    sl_tensor_release(placed[i]);
  }
  return status;
}
