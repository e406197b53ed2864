/* See weights.h. */
#include "weights.h"

#include <string.h>

#include "core/base/mem.h"
#include "file_map.h"

/* One entry, while tensors lie over it. */
typedef struct {
  sl_weights *weights;
  const sl_safetensor *entry;
  int tensors;
} lent_entry;

struct sl_weights {
  int references;
  sl_safetensors *set;
  lent_entry *lent; /* one for each entry of the set, in its order */
};

static sl_status make_lent(sl_weights *weights) {
  size_t count = sl_safetensors_count(weights->set);
  SL_TRY(sl_mem_alloc(count * sizeof *weights->lent, "a weight file", (void **)&weights->lent));
  for (size_t i = 0; i < count; i++)
    weights->lent[i] = (lent_entry){ .weights = weights, .entry = sl_safetensors_at(weights->set, i) };
  return SL_OK;
}

sl_status sl_weights_open(const char *path, sl_weights **out) {
  sl_weights *weights;
  SL_TRY(sl_mem_alloc(sizeof *weights, "a weight file", (void **)&weights));
  sl_status status = sl_dir_exists(path) ? sl_safetensors_open_dir(path, &weights->set)
                                         : sl_safetensors_open(path, &weights->set);
  if (status == SL_OK) status = make_lent(weights);
  if (status != SL_OK) {
    sl_safetensors_close(weights->set);
    sl_mem_free(weights);
    return status;
  }
  weights->references = 1;
  *out = weights;
  return SL_OK;
}

sl_weights *sl_weights_retain(sl_weights *weights) {
  weights->references++;
  return weights;
}

void sl_weights_release(sl_weights *weights) {
  if (!weights || --weights->references > 0) return;
  sl_safetensors_close(weights->set);
  sl_mem_free(weights->lent);
  sl_mem_free(weights);
}

const sl_safetensors *sl_weights_set(const sl_weights *weights) { return weights->set; }

static void take_back(void *context) {
  lent_entry *lent = context;
  if (--lent->tensors == 0) sl_safetensors_forget(lent->entry);
  sl_weights_release(lent->weights);
}

/* File dtypes that an engine dtype holds bit for bit. */
static bool is_native(const sl_safetensor *entry, sl_dtype dtype) {
  return sl_file_dtype_of(dtype) == entry->dtype && (uintptr_t)entry->data % sl_dtype_size(dtype) == 0;
}

static sl_status borrow(sl_weights *weights, const sl_safetensor *entry, sl_dtype dtype, sl_tensor **out) {
  sl_storage *storage;
  void *data = (void *)(uintptr_t)entry->data;
  lent_entry *lent = &weights->lent[entry - sl_safetensors_at(weights->set, 0)];
  SL_TRY(sl_storage_borrow(data, entry->bytes, take_back, lent, &storage));
  sl_weights_retain(weights);
  lent->tensors++;
  sl_status status = sl_tensor_over(storage, dtype, entry->rank, entry->shape, 0, out);
  sl_storage_release(storage);
  return status;
}

sl_status sl_weights_tensor(sl_weights *weights, const sl_safetensor *entry, sl_tensor **out) {
  if (entry->rank > SL_MAX_RANK)
    return sl_fail(SL_EFORMAT, "%s: tensor '%s' has %d dimensions, at most %d are handled", entry->path, entry->name,
                   entry->rank, SL_MAX_RANK);
  sl_dtype dtype = sl_file_dtype_engine(entry->dtype);
  if (entry->bytes > 0 && is_native(entry, dtype)) return borrow(weights, entry, dtype, out);
  SL_TRY(sl_tensor_create(sl_cpu_device(), dtype, entry->rank, entry->shape, out));
  sl_status status = sl_safetensors_copy(entry, dtype, sl_tensor_data(*out));
  sl_safetensors_forget(entry);
  if (status != SL_OK) {
    sl_tensor_release(*out);
    *out = NULL;
  }
  return status;
}

bool sl_weights_same(const sl_safetensor *a, const sl_safetensor *b) {
  if (a->dtype != b->dtype || a->rank != b->rank || a->bytes != b->bytes) return false;
  for (int i = 0; i < a->rank; i++)
    if (a->shape[i] != b->shape[i]) return false;
  return memcmp(a->data, b->data, a->bytes) == 0;
}
