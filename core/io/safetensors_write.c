/* Writing safetensors; see safetensors.h. */
#include <stdlib.h>
#include <string.h>

#include "atomic_file.h"
#include "core/base/mem.h"
#include "json.h"
#include "safetensors.h"

enum { CHUNK_BYTES = 1 << 20 };

/* Where one item's bytes go. */
typedef struct {
  const sl_safetensors_item *item;
  size_t bytes, offset;
} placement;

static sl_status measure(const char *path, const sl_safetensors_item *item, size_t *bytes) {
  if (item->rank < 0 || item->rank > SL_SAFETENSORS_MAX_RANK) {
    return sl_fail(SL_ESHAPE, "%s: tensor \"%s\": rank %d, expected 0 to %d", path, item->name, item->rank,
                   SL_SAFETENSORS_MAX_RANK);
  }
  if (strcmp(item->name, "__metadata__") == 0) {
    return sl_fail(SL_EINVAL, "%s: a tensor cannot be called __metadata__; the format uses that name", path);
  }
  size_t all = sl_file_dtype_size(item->dtype);
  for (int i = 0; i < item->rank; i++) {
    if (item->shape[i] < 0 || __builtin_mul_overflow(all, (size_t)item->shape[i], &all)) {
      return sl_fail(SL_ESHAPE, "%s: tensor \"%s\": size %lld of its shape is negative or too large", path,
                     item->name, (long long)item->shape[i]);
    }
  }
  if (all > 0 && !item->data && !item->fill) {
    return sl_fail(SL_EINVAL, "%s: tensor \"%s\" has neither data nor a function that gives them", path,
                   item->name);
  }
  *bytes = all;
  return SL_OK;
}

/* Larger elements first, otherwise the given order: everything is aligned and there is no hole. */
static int by_element_size(const void *left, const void *right) {
  const sl_safetensors_item *a = ((const placement *)left)->item, *b = ((const placement *)right)->item;
  size_t size_a = sl_file_dtype_size(a->dtype), size_b = sl_file_dtype_size(b->dtype);
  if (size_a != size_b) return size_a > size_b ? -1 : 1;
  return a < b ? -1 : a > b;
}

static int by_given_order(const void *left, const void *right) {
  const sl_safetensors_item *a = ((const placement *)left)->item, *b = ((const placement *)right)->item;
  return a < b ? -1 : a > b;
}

static sl_status place(const char *path, const sl_safetensors_item *items, size_t count, placement *places) {
  for (size_t i = 0; i < count; i++) {
    places[i].item = &items[i];
    SL_TRY(measure(path, &items[i], &places[i].bytes));
  }
  if (count > 1) qsort(places, count, sizeof *places, by_element_size);
  size_t offset = 0;
  for (size_t i = 0; i < count; i++) {
    places[i].offset = offset;
    if (__builtin_add_overflow(offset, places[i].bytes, &offset) || offset > INT64_MAX) {
      return sl_fail(SL_EINVAL, "%s: more than 2^63 bytes", path);
    }
  }
  return SL_OK;
}

/* json_object_set_new that tells a repeated key and a failed allocation apart; owns `value`. */
static sl_status set_new(const char *path, json_t *object, const char *key, json_t *value) {
  if (json_object_get(object, key)) {
    json_decref(value);
    return sl_fail(SL_EINVAL, "%s: the name \"%s\" is given twice", path, key);
  }
  if (value && json_object_set_new(object, key, value) == 0) return SL_OK;
  if (sl_json_out_of_memory()) return sl_fail_context(SL_ENOMEM, "%s", path);
  return sl_fail(SL_EINVAL, "%s: the name or value of \"%.60s\" is not valid UTF-8", path, key);
}

static sl_status add_metadata(const char *path, json_t *root, const sl_safetensors_pair *pairs,
                              size_t count) {
  if (count == 0) return SL_OK;
  json_t *map = json_object();
  SL_TRY(set_new(path, root, "__metadata__", map));
  for (size_t i = 0; i < count; i++) SL_TRY(set_new(path, map, pairs[i].key, json_string(pairs[i].value)));
  return SL_OK;
}

static sl_status add_tensor(const char *path, json_t *root, const placement *where) {
  const sl_safetensors_item *item = where->item;
  json_t *shape = json_array();
  for (int i = 0; shape && i < item->rank; i++) {
    if (json_array_append_new(shape, json_integer(item->shape[i])) != 0) {
      json_decref(shape);
      shape = NULL;
    }
  }
  if (!shape) return sl_fail(SL_ENOMEM, "%s: out of memory for the header", path);
  json_t *value =
      json_pack("{s:s, s:o, s:[I,I]}", "dtype", sl_file_dtype_name(item->dtype), "shape", shape,
                "data_offsets", (json_int_t)where->offset, (json_int_t)(where->offset + where->bytes));
  return set_new(path, root, item->name, value);
}

static sl_status build_header(const char *path, const placement *places, size_t count, json_t *root,
                              char **text) {
  for (size_t i = 0; i < count; i++) SL_TRY(add_tensor(path, root, &places[i]));
  *text = json_dumps(root, JSON_COMPACT);
  if (!*text || sl_json_out_of_memory()) return sl_fail(SL_ENOMEM, "%s: out of memory for the header", path);
  return SL_OK;
}

static sl_status write_filled(sl_atomic_file *file, const sl_safetensors_item *item, size_t bytes) {
  void *chunk = NULL;
  SL_TRY(sl_mem_resize(&chunk, bytes < CHUNK_BYTES ? bytes : CHUNK_BYTES, "a chunk of a tensor"));
  sl_status status = SL_OK;
  for (size_t done = 0; status == SL_OK && done < bytes;) {
    size_t now = bytes - done < CHUNK_BYTES ? bytes - done : CHUNK_BYTES;
    status = item->fill(item->context, done, chunk, now);
    if (status == SL_OK) status = sl_atomic_file_write(file, chunk, now);
    done += now;
  }
  sl_mem_free(chunk);
  return status;
}

static sl_status write_body(sl_atomic_file *file, const char *text, const placement *places, size_t count) {
  size_t length = strlen(text), padding = (8 - length % 8) % 8;
  uint64_t total = length + padding;
  uint8_t prefix[8];
  for (int i = 0; i < 8; i++) prefix[i] = (uint8_t)(total >> (8 * i));
  SL_TRY(sl_atomic_file_write(file, prefix, 8));
  SL_TRY(sl_atomic_file_write(file, text, length));
  SL_TRY(sl_atomic_file_write(file, "        ", padding));
  for (size_t i = 0; i < count; i++) {
    const sl_safetensors_item *item = places[i].item;
    if (item->data) SL_TRY(sl_atomic_file_write(file, item->data, places[i].bytes));
    else if (places[i].bytes > 0) SL_TRY(write_filled(file, item, places[i].bytes));
  }
  return SL_OK;
}

static sl_status write_file(const char *path, const char *text, const placement *places, size_t count) {
  size_t data = count > 0 ? places[count - 1].offset + places[count - 1].bytes : 0;
  sl_atomic_file *file;
  SL_TRY(sl_atomic_file_open(path, data + strlen(text) + 16, &file));
  sl_status status = write_body(file, text, places, count);
  if (status == SL_OK) return sl_atomic_file_commit(file);
  sl_atomic_file_abort(file);
  return status;
}

sl_status sl_safetensors_write(const char *path, const sl_safetensors_item *items, size_t count,
                               const sl_safetensors_pair *metadata, size_t metadata_count) {
  placement *places;
  sl_json_init();
  SL_TRY(sl_mem_alloc(count * sizeof *places, "a safetensors header", (void **)&places));
  sl_status status = place(path, items, count, places);
  json_t *root = status == SL_OK ? json_object() : NULL;
  char *text = NULL;
  if (status == SL_OK && !root) status = sl_fail(SL_ENOMEM, "%s: out of memory for the header", path);
  if (status == SL_OK) status = add_metadata(path, root, metadata, metadata_count);
  if (status == SL_OK && count > 1) qsort(places, count, sizeof *places, by_given_order);
  if (status == SL_OK) status = build_header(path, places, count, root, &text);
  if (status == SL_OK && count > 1) qsort(places, count, sizeof *places, by_element_size);
  if (status == SL_OK) status = write_file(path, text, places, count);
  json_decref(root);
  sl_mem_free(text);
  sl_mem_free(places);
  return status;
}
