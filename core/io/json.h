/* JSON through jansson, strictly: duplicate keys, bad UTF-8 and trailing bytes are refused, and
 * every message names the file and the key. jansson's memory is counted like all other memory. */
#ifndef SL_JSON_H
#define SL_JSON_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

/* Routes jansson's memory through sl_mem; called by everything here, needed before using jansson directly. */
void sl_json_init(void);
/* After a jansson call returned NULL or -1: whether memory ran out since sl_json_init on this thread. */
int sl_json_out_of_memory(void);

/* An object or an array; json_decref it. `where` (a file name) starts the messages.
 * SL_EFORMAT names line and column. */
sl_status sl_json_parse(const char *text, size_t bytes, const char *where, json_t **out);
sl_status sl_json_load(const char *path, size_t max_bytes, json_t **out);

/* Writes atomically (see atomic_file.h), two-space indent, keys in insertion order, newline at the end. */
sl_status sl_json_save(const char *path, const json_t *json);

/* Members of an object. The first three demand the key; the `opt` ones leave *out alone when
 * it is absent or null. SL_EFORMAT names where, key, the type found and the type wanted. */
sl_status sl_json_string(const json_t *object, const char *key, const char *where, const char **out);
sl_status sl_json_int(const json_t *object, const char *key, const char *where, int64_t *out);
sl_status sl_json_object(const json_t *object, const char *key, const char *where, json_t **out);
sl_status sl_json_opt_string(const json_t *object, const char *key, const char *where, const char **out);
sl_status sl_json_opt_int(const json_t *object, const char *key, const char *where, int64_t *out);
sl_status sl_json_opt_bool(const json_t *object, const char *key, const char *where, int *out);

/* "an object", "a string", ... for messages; NULL is "nothing". */
const char *sl_json_type_name(const json_t *json);

#endif
