/* Strict JSON; see json.h. */
#include "json.h"

#include <pthread.h>
#include <string.h>

#include "atomic_file.h"
#include "core/base/mem.h"
#include "file_map.h"

/* jansson reports a failed allocation in no reliable way, so the allocator remembers it. */
static _Thread_local int allocation_failed;

static void *counted_malloc(size_t bytes) {
  void *block = NULL;
  if (sl_mem_resize(&block, bytes, "JSON") != SL_OK) allocation_failed = 1;
  return block;
}

static void set_allocator(void) { json_set_alloc_funcs(counted_malloc, sl_mem_free); }

void sl_json_init(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, set_allocator);
  allocation_failed = 0;
}

int sl_json_out_of_memory(void) { return allocation_failed; }

sl_status sl_json_parse(const char *text, size_t bytes, const char *where, json_t **out) {
  sl_json_init();
  json_error_t error;
  *out = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
  if (allocation_failed) { /* also with a result: jansson 2.14 drops characters when a buffer cannot grow */
    json_decref(*out);
    *out = NULL;
    return sl_fail_context(SL_ENOMEM, "%s", where);
  }
  if (*out) return SL_OK;
  return sl_fail(SL_EFORMAT, "%s: not valid JSON: line %d, column %d: %s", where, error.line, error.column,
                 error.text);
}

sl_status sl_json_load(const char *path, size_t max_bytes, json_t **out) {
  *out = NULL;
  char *text;
  size_t bytes;
  SL_TRY(sl_file_read(path, max_bytes, &text, &bytes));
  sl_status status = sl_json_parse(text, bytes, path, out);
  sl_mem_free(text);
  return status;
}

sl_status sl_json_save(const char *path, const json_t *json) {
  sl_json_init();
  char *text = json_dumps(json, JSON_INDENT(2));
  if (!text || allocation_failed) {
    sl_mem_free(text);
    if (allocation_failed) return sl_fail_context(SL_ENOMEM, "%s", path);
    return sl_fail(SL_EINVAL, "%s: the value cannot be written as JSON (not an object or array)", path);
  }
  sl_atomic_file *file;
  size_t bytes = strlen(text);
  sl_status status = sl_atomic_file_open(path, bytes + 1, &file);
  if (status == SL_OK) {
    status = sl_atomic_file_write(file, text, bytes);
    if (status == SL_OK) status = sl_atomic_file_write(file, "\n", 1);
    if (status == SL_OK) status = sl_atomic_file_commit(file);
    else sl_atomic_file_abort(file);
  }
  sl_mem_free(text);
  return status;
}

const char *sl_json_type_name(const json_t *json) {
  if (!json) return "nothing";
  switch (json_typeof(json)) {
  case JSON_OBJECT: return "an object";
  case JSON_ARRAY: return "an array";
  case JSON_STRING: return "a string";
  case JSON_INTEGER: return "an integer";
  case JSON_REAL: return "a real number";
  case JSON_TRUE: return "true";
  case JSON_FALSE: return "false";
  case JSON_NULL: return "null";
  }
  return "an unknown value";
}

static sl_status wrong_type(const json_t *value, const char *key, const char *where, const char *wanted) {
  return sl_fail(SL_EFORMAT, "%s: \"%s\" is %s, expected %s", where, key, sl_json_type_name(value), wanted);
}

static int absent(const json_t *value) { return !value || json_is_null(value); }

sl_status sl_json_opt_string(const json_t *object, const char *key, const char *where, const char **out) {
  const json_t *value = json_object_get(object, key);
  if (absent(value)) return SL_OK;
  if (!json_is_string(value)) return wrong_type(value, key, where, "a string");
  *out = json_string_value(value);
  return SL_OK;
}

sl_status sl_json_opt_int(const json_t *object, const char *key, const char *where, int64_t *out) {
  const json_t *value = json_object_get(object, key);
  if (absent(value)) return SL_OK;
  if (!json_is_integer(value)) return wrong_type(value, key, where, "an integer");
  *out = json_integer_value(value);
  return SL_OK;
}

sl_status sl_json_opt_bool(const json_t *object, const char *key, const char *where, int *out) {
  const json_t *value = json_object_get(object, key);
  if (absent(value)) return SL_OK;
  if (!json_is_boolean(value)) return wrong_type(value, key, where, "true or false");
  *out = json_is_true(value);
  return SL_OK;
}

sl_status sl_json_string(const json_t *object, const char *key, const char *where, const char **out) {
  const json_t *value = json_object_get(object, key);
  if (absent(value)) return wrong_type(value, key, where, "a string");
  return sl_json_opt_string(object, key, where, out);
}

sl_status sl_json_int(const json_t *object, const char *key, const char *where, int64_t *out) {
  const json_t *value = json_object_get(object, key);
  if (absent(value)) return wrong_type(value, key, where, "an integer");
  return sl_json_opt_int(object, key, where, out);
}

sl_status sl_json_object(const json_t *object, const char *key, const char *where, json_t **out) {
  json_t *value = json_object_get(object, key);
  if (!json_is_object(value)) return wrong_type(value, key, where, "an object");
  *out = value;
  return SL_OK;
}
