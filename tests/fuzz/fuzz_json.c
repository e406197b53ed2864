/* Any bytes as JSON: what is accepted reads back equal after it was written, and the typed getters
 * never disagree with the value. */
#include "fuzz.h"

#include <string.h>

#include "core/io/json.h"

static void check_members(json_t *object) {
  const char *key;
  json_t *value;
  json_object_foreach(object, key, value) {
    const char *text = NULL;
    int64_t number = 0;
    int truth = 0;
    json_t *inner;
    FUZZ_DEMAND((sl_json_string(object, key, "fuzz", &text) == SL_OK) == json_is_string(value));
    FUZZ_DEMAND((sl_json_int(object, key, "fuzz", &number) == SL_OK) == json_is_integer(value));
    FUZZ_DEMAND((sl_json_object(object, key, "fuzz", &inner) == SL_OK) == json_is_object(value));
    FUZZ_DEMAND((sl_json_opt_bool(object, key, "fuzz", &truth) == SL_OK) ==
                (json_is_boolean(value) || json_is_null(value)));
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
  json_t *first, *second;
  if (sl_json_parse((const char *)data, bytes, "fuzz", &first) == SL_OK) {
    if (json_is_object(first)) check_members(first);
    char *text = json_dumps(first, JSON_COMPACT);
    FUZZ_DEMAND(text && sl_json_parse(text, strlen(text), "again", &second) == SL_OK);
    FUZZ_DEMAND(json_equal(first, second));
    sl_mem_free(text);
    json_decref(second);
  }
  json_decref(first);
  FUZZ_NO_LEAK();
  return 0;
}
