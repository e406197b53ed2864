/* Open sets: one file or a folder of shards, found by name; see safetensors.h. */
#define _GNU_SOURCE /* qsort_r */
#include "safetensors_set.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/mem.h"
#include "json.h"

static const size_t MAX_INDEX_BYTES = 64u << 20;

static int compare_names(const void *left, const void *right, void *context) {
  const sl_safetensor *entries = context;
  return strcmp(entries[*(const uint32_t *)left].name, entries[*(const uint32_t *)right].name);
}

sl_status st_index_names(sl_safetensors *set) {
  SL_TRY(sl_mem_alloc(set->count * sizeof *set->by_name, "tensor names", (void **)&set->by_name));
  for (size_t i = 0; i < set->count; i++) set->by_name[i] = (uint32_t)i;
  if (set->count > 1) qsort_r(set->by_name, set->count, sizeof *set->by_name, compare_names, set->entries);
  for (size_t i = 1; i < set->count; i++) {
    const sl_safetensor *a = &set->entries[set->by_name[i - 1]], *b = &set->entries[set->by_name[i]];
    if (strcmp(a->name, b->name) == 0) {
      return sl_fail(SL_EFORMAT, "tensor \"%s\" is both in %s and in %s", a->name, a->path, b->path);
    }
  }
  return SL_OK;
}

static sl_status new_set(const char *path, sl_safetensors **out) {
  SL_TRY(sl_mem_alloc(sizeof **out, "safetensors", (void **)out));
  sl_status status = sl_mem_strdup(path, &(*out)->path);
  if (status == SL_OK) return SL_OK;
  sl_mem_free(*out);
  *out = NULL;
  return status;
}

static sl_status finish(sl_safetensors *set, sl_status status, sl_safetensors **out) {
  if (status == SL_OK) status = st_index_names(set);
  if (status == SL_OK) *out = set;
  else sl_safetensors_close(set);
  return status;
}

sl_status sl_safetensors_open(const char *path, sl_safetensors **out) {
  *out = NULL;
  sl_safetensors *set;
  SL_TRY(new_set(path, &set));
  return finish(set, st_add_file(set, path), out);
}

void sl_safetensors_close(sl_safetensors *set) {
  if (!set) return;
  for (size_t i = 0; i < set->n_shards; i++) {
    sl_file_map_close(&set->shards[i].map);
    sl_mem_free(set->shards[i].names);
    sl_mem_free(set->shards[i].path);
  }
  sl_mem_free(set->shards);
  sl_mem_free(set->entries);
  sl_mem_free(set->by_name);
  sl_mem_free(set->pairs);
  sl_mem_free(set->path);
  sl_mem_free(set);
}

void sl_safetensors_forget(const sl_safetensor *entry) { sl_file_map_forget(entry->data, entry->bytes); }

static int has_shard(const sl_safetensors *set, const char *path) {
  for (size_t i = 0; i < set->n_shards; i++) {
    if (strcmp(set->shards[i].path, path) == 0) return 1;
  }
  return 0;
}

/* A shard name comes from a downloaded file: it must stay inside the folder. */
static sl_status check_shard_name(const char *index, const char *name) {
  if (name[0] != '\0' && name[0] != '.' && !strchr(name, '/') && !strchr(name, '\\')) return SL_OK;
  return sl_fail(SL_EFORMAT, "%s: shard \"%s\" is not a plain file name", index, name);
}

static sl_status add_shards(sl_safetensors *set, const char *index, json_t *weight_map) {
  const char *name;
  json_t *file;
  json_object_foreach(weight_map, name, file) {
    if (!json_is_string(file)) {
      return sl_fail(SL_EFORMAT, "%s: the file of tensor \"%s\" is %s, expected a string", index, name,
                     sl_json_type_name(file));
    }
    const char *shard = json_string_value(file);
    SL_TRY(check_shard_name(index, shard));
    char *path;
    SL_TRY(sl_path_join(set->path, shard, &path));
    sl_status status = has_shard(set, path) ? SL_OK : st_add_file(set, path);
    sl_mem_free(path);
    if (status != SL_OK) return sl_fail_context(status, "%s", index);
  }
  return SL_OK;
}

/* Every name of the index must be in the shard that the index says. */
static sl_status check_index(const sl_safetensors *set, const char *index, json_t *weight_map) {
  const char *name;
  json_t *file;
  json_object_foreach(weight_map, name, file) {
    const sl_safetensor *entry = sl_safetensors_find(set, name);
    const char *slash = entry ? strrchr(entry->path, '/') : NULL;
    if (!slash || strcmp(slash + 1, json_string_value(file)) != 0) {
      return sl_fail(SL_EFORMAT, "%s: tensor \"%s\" should be in %s but is %s%s", index, name,
                     json_string_value(file), entry ? "in " : "missing", entry ? slash + 1 : "");
    }
  }
  return SL_OK;
}

static sl_status open_index(sl_safetensors *set, const char *index) {
  json_t *json, *weight_map;
  SL_TRY(sl_json_load(index, MAX_INDEX_BYTES, &json));
  sl_status status = sl_json_object(json, "weight_map", index, &weight_map);
  if (status == SL_OK && json_object_size(weight_map) == 0) {
    status = sl_fail(SL_EFORMAT, "%s: \"weight_map\" is empty", index);
  }
  if (status == SL_OK) status = add_shards(set, index, weight_map);
  if (status == SL_OK) status = st_index_names(set);
  if (status == SL_OK) status = check_index(set, index, weight_map);
  json_decref(json);
  return status;
}

static sl_status no_weights(const char *folder) {
  char *pickle;
  SL_TRY(sl_path_join(folder, "pytorch_model.bin", &pickle));
  int found = sl_file_exists(pickle);
  sl_mem_free(pickle);
  if (!sl_dir_exists(folder)) return sl_fail(SL_ENOTFOUND, "%s: no such folder", folder);
  if (!found) {
    return sl_fail(SL_ENOTFOUND,
                   "%s: no model.safetensors and no model.safetensors.index.json in this folder", folder);
  }
  return sl_fail(SL_EUNSUPPORTED,
                 "%s: only pytorch_model.bin (a Python pickle) is here; convert it once: python -c "
                 "\"from transformers import AutoModelForMaskedLM as M; "
                 "M.from_pretrained('.').save_pretrained('.', safe_serialization=True)\" run in that folder",
                 folder);
}

sl_status sl_safetensors_open_dir(const char *folder, sl_safetensors **out) {
  *out = NULL;
  char *single = NULL, *index = NULL;
  sl_safetensors *set = NULL;
  sl_status status = sl_path_join(folder, "model.safetensors", &single);
  if (status == SL_OK) status = sl_path_join(folder, "model.safetensors.index.json", &index);
  if (status != SL_OK) goto done;
  if (sl_file_exists(single)) {
    status = sl_safetensors_open(single, out);
  } else if (sl_file_exists(index)) {
    status = new_set(folder, &set);
    if (status == SL_OK) status = open_index(set, index);
    if (status == SL_OK) *out = set;
    else sl_safetensors_close(set);
  } else {
    status = no_weights(folder);
  }
done:
  sl_mem_free(single);
  sl_mem_free(index);
  return status;
}

size_t sl_safetensors_count(const sl_safetensors *set) { return set->count; }

const sl_safetensor *sl_safetensors_at(const sl_safetensors *set, size_t index) {
  return index < set->count ? &set->entries[index] : NULL;
}

const sl_safetensor *sl_safetensors_find(const sl_safetensors *set, const char *name) {
  size_t low = 0, high = set->count;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    const sl_safetensor *entry = &set->entries[set->by_name[middle]];
    int order = strcmp(name, entry->name);
    if (order == 0) return entry;
    if (order < 0) high = middle;
    else low = middle + 1;
  }
  return NULL;
}

/* Length of the longest common ending: prefixes such as "bert." are what differs most often. */
static size_t common_ending(const char *a, const char *b) {
  size_t i = strlen(a), j = strlen(b), same = 0;
  while (i > 0 && j > 0 && a[i - 1] == b[j - 1]) i--, j--, same++;
  return same;
}

sl_status sl_safetensors_get(const sl_safetensors *set, const char *name, const sl_safetensor **out) {
  *out = sl_safetensors_find(set, name);
  if (*out) return SL_OK;
  const char *nearest = NULL;
  size_t best = 0;
  for (size_t i = 0; i < set->count; i++) {
    size_t same = common_ending(name, set->entries[i].name);
    if (same > best) best = same, nearest = set->entries[i].name;
  }
  return sl_fail(SL_ENOTFOUND, "%s: no tensor \"%s\" among its %zu%s%s%s", set->path, name, set->count,
                 nearest ? "; the most similar name is \"" : "", nearest ? nearest : "", nearest ? "\"" : "");
}

int sl_safetensors_metadata_at(const sl_safetensors *set, size_t index, const char **key,
                               const char **value) {
  if (!set->pairs) return 0;
  const char *at = set->pairs, *end = at + set->pairs_bytes;
  for (size_t i = 0; at < end; i++) {
    const char *second = at + strlen(at) + 1;
    if (i == index) {
      *key = at;
      *value = second;
      return 1;
    }
    at = second + strlen(second) + 1;
  }
  return 0;
}

const char *sl_safetensors_metadata(const sl_safetensors *set, const char *key) {
  const char *name, *value;
  for (size_t i = 0; sl_safetensors_metadata_at(set, i, &name, &value); i++) {
    if (strcmp(name, key) == 0) return value;
  }
  return NULL;
}

sl_status sl_safetensors_expect(const sl_safetensor *entry, int rank, const int64_t *shape) {
  int equal = entry->rank == rank;
  for (int i = 0; equal && i < rank; i++) equal = entry->shape[i] == shape[i];
  if (equal) return SL_OK;
  char wanted[ST_SHAPE_TEXT], found[ST_SHAPE_TEXT];
  return sl_fail(SL_ESHAPE,
                 "%s: tensor \"%s\" is %s, expected %s; the weights do not belong to this configuration",
                 entry->path, entry->name, st_shape_text(entry->rank, entry->shape, found),
                 st_shape_text(rank, shape, wanted));
}
