/* Reading one safetensors file, checked byte by byte; see safetensors.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/mem.h"
#include "json.h"
#include "safetensors_set.h"

static const size_t MAX_HEADER_BYTES = 100000000; /* as the reference implementation */

static const struct {
  const char *name;
  size_t bytes;
  sl_dtype engine;
} file_dtypes[] = {
#define X(id, name, bytes, dtype) { name, bytes, dtype },
  SL_FILE_DTYPE_LIST(X)
#undef X
};

size_t sl_file_dtype_size(sl_file_dtype dtype) { return file_dtypes[dtype].bytes; }
const char *sl_file_dtype_name(sl_file_dtype dtype) { return file_dtypes[dtype].name; }
sl_dtype sl_file_dtype_engine(sl_file_dtype dtype) { return file_dtypes[dtype].engine; }

sl_file_dtype sl_file_dtype_of(sl_dtype dtype) {
  static const sl_file_dtype kinds[] = {
    [SL_F32] = SL_FILE_F32, [SL_BF16] = SL_FILE_BF16, [SL_F16] = SL_FILE_F16,
    [SL_I64] = SL_FILE_I64, [SL_I32] = SL_FILE_I32,   [SL_U8] = SL_FILE_U8
  };
  return kinds[dtype];
}

const char *st_shape_text(int rank, const int64_t *shape, char *text) {
  size_t at = 0;
  text[at++] = '[';
  for (int i = 0; i < rank && at < ST_SHAPE_TEXT - 26; i++) {
    at += (size_t)snprintf(text + at, ST_SHAPE_TEXT - at, "%s%" PRId64, i > 0 ? " x " : "", shape[i]);
  }
  snprintf(text + at, ST_SHAPE_TEXT - at, "]");
  return text;
}

/* The header of one file while it is read. */
typedef struct {
  const char *path;
  const uint8_t *data; /* first byte behind the header */
  size_t bytes;        /* of data */
  json_t *json;
} header;

static sl_status read_dtype(const header *h, const char *name, const json_t *value, sl_file_dtype *out) {
  const char *text;
  sl_status status = sl_json_string(value, "dtype", name, &text);
  if (status != SL_OK) return sl_fail_context(status, "%s: tensor", h->path);
  for (int i = 0; i < SL_FILE_DTYPE_COUNT; i++) {
    if (strcmp(text, file_dtypes[i].name) == 0) {
      *out = (sl_file_dtype)i;
      return SL_OK;
    }
  }
  return sl_fail(SL_EFORMAT,
                 "%s: tensor \"%s\": dtype %.40s is not supported; supported are F64 F32 F16 BF16 I64 I32 "
                 "I16 I8 U8 BOOL: convert the file with torch first",
                 h->path, name, text);
}

static sl_status read_shape(const header *h, const json_t *value, sl_safetensor *entry) {
  const json_t *sizes = json_object_get(value, "shape");
  if (!json_is_array(sizes) || json_array_size(sizes) > SL_SAFETENSORS_MAX_RANK) {
    return sl_fail(SL_EFORMAT, "%s: tensor \"%s\": \"shape\" is %s, expected a list of at most %d sizes",
                   h->path, entry->name, json_is_array(sizes) ? "longer" : sl_json_type_name(sizes),
                   SL_SAFETENSORS_MAX_RANK);
  }
  entry->rank = (int)json_array_size(sizes);
  entry->count = 1;
  int64_t all =
      (int64_t)sl_file_dtype_size(entry->dtype); /* bytes, zero sizes left out: [0, huge] must not pass */
  for (int i = 0; i < entry->rank; i++) {
    const json_t *size = json_array_get(sizes, (size_t)i);
    int64_t n = json_integer_value(size);
    if (!json_is_integer(size) || n < 0) {
      return sl_fail(SL_EFORMAT,
                     "%s: tensor \"%s\": size %d of its shape is %s, expected a whole number >= 0", h->path,
                     entry->name, i + 1, json_is_integer(size) ? "negative" : sl_json_type_name(size));
    }
    if (__builtin_mul_overflow(all, n > 0 ? n : 1, &all)) {
      return sl_fail(SL_EFORMAT, "%s: tensor \"%s\": its shape has more than 2^63 bytes", h->path,
                     entry->name);
    }
    entry->shape[i] = n;
    entry->count *= n;
  }
  entry->bytes = (size_t)entry->count * sl_file_dtype_size(entry->dtype);
  return SL_OK;
}

static sl_status read_offsets(const header *h, const json_t *value, sl_safetensor *entry) {
  const json_t *pair = json_object_get(value, "data_offsets");
  const json_t *first = json_array_get(pair, 0), *last = json_array_get(pair, 1);
  if (json_array_size(pair) != 2 || !json_is_integer(first) || !json_is_integer(last)) {
    return sl_fail(SL_EFORMAT, "%s: tensor \"%s\": \"data_offsets\" must be two whole numbers", h->path,
                   entry->name);
  }
  int64_t begin = json_integer_value(first), end = json_integer_value(last);
  if (begin < 0 || end < begin || (uint64_t)end > h->bytes) {
    return sl_fail(SL_EFORMAT,
                   "%s: tensor \"%s\": data_offsets [%" PRId64 ", %" PRId64 "] do not lie in the file's %zu "
                   "bytes of data; the file is damaged or was not downloaded completely",
                   h->path, entry->name, begin, end, h->bytes);
  }
  if ((uint64_t)(end - begin) != entry->bytes) {
    char shape[ST_SHAPE_TEXT];
    return sl_fail(SL_EFORMAT, "%s: tensor \"%s\": %s of %s needs %zu bytes, data_offsets give %" PRId64,
                   h->path, entry->name, st_shape_text(entry->rank, entry->shape, shape),
                   sl_file_dtype_name(entry->dtype), entry->bytes, end - begin);
  }
  entry->data = h->data + begin;
  return SL_OK;
}

static sl_status read_entry(const header *h, const json_t *value, sl_safetensor *entry) {
  if (!json_is_object(value)) {
    return sl_fail(SL_EFORMAT, "%s: tensor \"%s\" is %s, expected an object", h->path, entry->name,
                   sl_json_type_name(value));
  }
  sl_status status = read_dtype(h, entry->name, value, &entry->dtype);
  if (status == SL_OK) status = read_shape(h, value, entry);
  if (status == SL_OK) status = read_offsets(h, value, entry);
  return status;
}

static int by_place(const void *left, const void *right) {
  const sl_safetensor *a = *(const sl_safetensor *const *)left, *b = *(const sl_safetensor *const *)right;
  uintptr_t at_a = (uintptr_t)a->data, at_b = (uintptr_t)b->data;
  if (at_a != at_b) return at_a < at_b ? -1 : 1;
  if (a->bytes != b->bytes) return a->bytes < b->bytes ? -1 : 1; /* empty tensors share a place */
  return 0;
}

/* The tensors must tile the data: no overlap, no hole, nothing behind the last. */
static sl_status check_tiling(const header *h, const sl_safetensor *entries, size_t count) {
  const sl_safetensor **order;
  SL_TRY(sl_mem_alloc(count * sizeof *order, "a safetensors header", (void **)&order));
  for (size_t i = 0; i < count; i++) order[i] = &entries[i];
  if (count > 0) qsort(order, count, sizeof *order, by_place);
  sl_status status = SL_OK;
  size_t end = 0;
  for (size_t i = 0; status == SL_OK && i < count; i++) {
    size_t begin = (size_t)((const uint8_t *)order[i]->data - h->data);
    if (begin < end) {
      status = sl_fail(SL_EFORMAT, "%s: tensors \"%s\" and \"%s\" overlap", h->path, order[i - 1]->name,
                       order[i]->name);
    } else if (begin > end) {
      status = sl_fail(SL_EFORMAT, "%s: a hole of %zu bytes before tensor \"%s\"", h->path, begin - end,
                       order[i]->name);
    }
    end = begin + order[i]->bytes;
  }
  if (status == SL_OK && end != h->bytes) {
    status =
        sl_fail(SL_EFORMAT, "%s: %zu bytes behind the last tensor belong to nobody", h->path, h->bytes - end);
  }
  sl_mem_free(order);
  return status;
}

static sl_status read_metadata(sl_safetensors *set, const header *h) {
  json_t *map = json_object_get(h->json, "__metadata__");
  if (!map || json_is_null(map)) return SL_OK;
  if (!json_is_object(map)) {
    return sl_fail(SL_EFORMAT, "%s: __metadata__ is %s, expected an object", h->path, sl_json_type_name(map));
  }
  const char *key;
  json_t *value;
  size_t bytes = 0;
  json_object_foreach(map, key, value) {
    if (!json_is_string(value)) {
      return sl_fail(SL_EFORMAT, "%s: __metadata__ \"%s\" is %s, expected a string", h->path, key,
                     sl_json_type_name(value));
    }
    bytes += strlen(key) + json_string_length(value) + 2;
  }
  if (set->pairs || bytes == 0) return SL_OK; /* the first shard's stay */
  SL_TRY(sl_mem_alloc(bytes, "safetensors metadata", (void **)&set->pairs));
  set->pairs_bytes = bytes;
  char *at = set->pairs;
  json_object_foreach(map, key, value) {
    at = stpcpy(at, key) + 1;
    at = stpcpy(at, json_string_value(value)) + 1;
  }
  return SL_OK;
}

static sl_status read_entries(sl_safetensors *set, st_shard *shard, const header *h) {
  const char *key;
  json_t *value;
  size_t bytes = 0, extra = 0;
  json_object_foreach(h->json, key, value) {
    if (strcmp(key, "__metadata__") == 0) continue;
    bytes += strlen(key) + 1;
    extra++;
  }
  if (set->count + extra > UINT32_MAX) return sl_fail(SL_EFORMAT, "%s: too many tensors", h->path);
  SL_TRY(sl_mem_alloc(bytes, "tensor names", (void **)&shard->names));
  SL_TRY(sl_mem_resize((void **)&set->entries, (set->count + extra) * sizeof *set->entries,
                       "a safetensors header"));
  sl_safetensor *first = set->entries + set->count, *entry = first;
  char *at = shard->names;
  json_object_foreach(h->json, key, value) {
    if (strcmp(key, "__metadata__") == 0) continue;
    *entry = (sl_safetensor){ .name = at, .path = shard->path };
    at = stpcpy(at, key) + 1;
    SL_TRY(read_entry(h, value, entry));
    entry++;
  }
  SL_TRY(check_tiling(h, first, extra));
  set->count += extra;
  return read_metadata(set, h);
}

/* Checks the length field and parses the JSON behind it; json_decref(h->json) is the caller's. */
static sl_status parse_header(const sl_file_map *map, header *h) {
  if (map->bytes < 8) {
    return sl_fail(SL_EFORMAT,
                   "%s: %zu bytes; a safetensors file starts with 8 bytes of header length. The file is "
                   "empty or was not downloaded completely",
                   h->path, map->bytes);
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; i--) length = length << 8 | map->data[i];
  if (length > MAX_HEADER_BYTES) {
    return sl_fail(SL_EFORMAT,
                   "%s: a header of %" PRIu64 " bytes is announced, at most %zu are allowed; this is not a "
                   "safetensors file, or it is damaged",
                   h->path, length, MAX_HEADER_BYTES);
  }
  if (length > map->bytes - 8) {
    return sl_fail(SL_EFORMAT,
                   "%s: a header of %" PRIu64 " bytes is announced, the file has only %zu behind the length; "
                   "it was not downloaded completely",
                   h->path, length, map->bytes - 8);
  }
  h->data = map->data + 8 + length;
  h->bytes = map->bytes - 8 - (size_t)length;
  SL_TRY(sl_json_parse((const char *)map->data + 8, (size_t)length, h->path, &h->json));
  if (json_is_object(h->json)) return SL_OK;
  return sl_fail(SL_EFORMAT, "%s: the header is %s, expected an object", h->path, sl_json_type_name(h->json));
}

sl_status st_add_file(sl_safetensors *set, const char *path) {
  SL_TRY(
      sl_mem_resize((void **)&set->shards, (set->n_shards + 1) * sizeof *set->shards, "safetensors shards"));
  st_shard *shard = &set->shards[set->n_shards++];
  *shard = (st_shard){ 0 };
  SL_TRY(sl_mem_strdup(path, &shard->path));
  SL_TRY(sl_file_map_open(path, &shard->map));
  header h = { .path = shard->path };
  sl_status status = parse_header(&shard->map, &h);
  if (status == SL_OK) status = read_entries(set, shard, &h);
  json_decref(h.json);
  return status;
}
