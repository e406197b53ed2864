/* Tensors from and to safetensors; see safetensors_tensor.h. */
#include "safetensors_tensor.h"

#include <string.h>

#include "core/base/mem.h"

/* One copy on its way: the elements may need converting, and the file's data may be unaligned. */
static sl_status load_through_host(const sl_safetensor *entry, sl_dtype dtype, sl_tensor *tensor) {
  size_t bytes = (size_t)entry->count * sl_dtype_size(dtype);
  void *host = NULL;
  sl_status status = sl_mem_resize(&host, bytes, "a tensor being loaded");
  if (status == SL_OK) status = sl_safetensors_copy(entry, dtype, host);
  if (status == SL_OK) status = sl_tensor_write(tensor, host, bytes);
  sl_mem_free(host);
  return status;
}

sl_status sl_safetensors_load_tensor_as(const sl_safetensor *entry, sl_device *device, sl_dtype dtype,
                                        sl_tensor **out) {
  *out = NULL;
  if (entry->rank > SL_MAX_RANK) {
    return sl_fail(SL_ESHAPE, "%s: tensor \"%s\" has %d dimensions, a tensor has at most %d", entry->path,
                   entry->name, entry->rank, SL_MAX_RANK);
  }
  sl_tensor *tensor;
  SL_TRY(sl_tensor_create(device, dtype, entry->rank, entry->shape, &tensor));
  sl_status status = device->host_memory ? sl_safetensors_copy(entry, dtype, sl_tensor_data(tensor))
                                         : load_through_host(entry, dtype, tensor);
  sl_safetensors_forget(entry); /* so that file and tensors are never in memory whole at the same time */
  if (status == SL_OK) *out = tensor;
  else sl_tensor_release(tensor);
  return status;
}

sl_status sl_safetensors_load_tensor(const sl_safetensor *entry, sl_device *device, sl_tensor **out) {
  return sl_safetensors_load_tensor_as(entry, device, sl_file_dtype_engine(entry->dtype), out);
}

/* Hands a tensor's bytes to the writer; the host copy exists only while this tensor is written. */
typedef struct {
  sl_tensor *tensor;
  void *host;
  size_t bytes;
} source;

static sl_status fetch(source *s) {
  sl_tensor *contiguous;
  s->bytes = (size_t)sl_tensor_count(s->tensor) * sl_dtype_size(s->tensor->dtype);
  SL_TRY(sl_tensor_contiguous(s->tensor, &contiguous));
  sl_status status = sl_mem_resize(&s->host, s->bytes, "a tensor being saved");
  if (status == SL_OK) status = sl_tensor_read(contiguous, s->host, s->bytes);
  sl_tensor_release(contiguous);
  return status;
}

static sl_status fill(void *context, size_t offset, void *out, size_t bytes) {
  source *s = context;
  if (!s->host) SL_TRY(fetch(s));
  memcpy(out, (const char *)s->host + offset, bytes);
  if (offset + bytes == s->bytes) {
    sl_mem_free(s->host);
    s->host = NULL;
  }
  return SL_OK;
}

static void describe(sl_safetensors_item *item, const char *name, source *s) {
  *item = (sl_safetensors_item){ .name = name,
                                 .dtype = sl_file_dtype_of(s->tensor->dtype),
                                 .rank = s->tensor->rank,
                                 .fill = fill,
                                 .context = s };
  memcpy(item->shape, s->tensor->shape, (size_t)s->tensor->rank * sizeof *item->shape);
}

sl_status sl_safetensors_save_tensors(const char *path, const char *const *names, sl_tensor *const *tensors,
                                      size_t count, const sl_safetensors_pair *metadata,
                                      size_t metadata_count) {
  sl_safetensors_item *items = NULL;
  source *sources = NULL;
  sl_status status = sl_mem_alloc(count * sizeof *items, "a list of tensors", (void **)&items);
  if (status == SL_OK) status = sl_mem_alloc(count * sizeof *sources, "a list of tensors", (void **)&sources);
  if (status == SL_OK) {
    for (size_t i = 0; i < count; i++) {
      sources[i].tensor = tensors[i];
      describe(&items[i], names[i], &sources[i]);
    }
    status = sl_safetensors_write(path, items, count, metadata, metadata_count);
    for (size_t i = 0; i < count; i++) sl_mem_free(sources[i].host);
  }
  sl_mem_free(items);
  sl_mem_free(sources);
  return status;
}
