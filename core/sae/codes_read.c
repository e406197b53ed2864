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

/* which[latent] = its column, or -1. */
static sl_status make_lookup(const sl_codes *codes, const int32_t *ids, int64_t n, int32_t **which) {
  SL_TRY(sl_mem_alloc((size_t)codes->n_latents * sizeof **which, "latent columns", (void **)which));
  for (int64_t i = 0; i < codes->n_latents; i++) (*which)[i] = -1;
  for (int64_t j = 0; j < n; j++) {
    if (ids[j] < 0 || ids[j] >= codes->n_latents) {
      sl_mem_free(*which);
      return sl_fail(SL_EINVAL, "latent %d: this dictionary has latents 0 to %lld", ids[j],
                     (long long)codes->n_latents - 1);
    }
    (*which)[ids[j]] = (int32_t)j;
  }
  return SL_OK;
}

sl_status sl_codes_columns(const sl_codes *codes, const int32_t *ids, int64_t n, sl_tensor **out) {
  int32_t *which;
  SL_TRY(make_lookup(codes, ids, n, &which));
  host_codes host = { 0 };
  sl_status status = sl_tensor_zeros(sl_cpu_device(), SL_F32, 2, (int64_t[]){ codes->rows, n }, out);
  if (status == SL_OK) status = read_host(codes, &host);
  for (int64_t t = 0; t < codes->rows && status == SL_OK; t++)
    for (int64_t e = host.offsets[t]; e < host.offsets[t + 1]; e++)
      if (which[host.ids[e]] >= 0) sl_tensor_f32(*out)[t * n + which[host.ids[e]]] = host.values[e];
  release_host(&host);
  sl_mem_free(which);
  if (status != SL_OK && *out) {
    sl_tensor_release(*out);
    *out = NULL;
  }
  return status;
}
