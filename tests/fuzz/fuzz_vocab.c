/* Any bytes as a tokenizer's files: refused cleanly, or it encodes and decodes and its ids are consistent.
 * A zero byte parts the input: what is to be loaded, tokenizer_config.json, a text. JSON is told by its
 * brace. */
#include "fuzz.h"

#include <string.h>

#include "core/data/wordpiece.h"

/* The part up to the next zero byte; moves on behind it. */
static const char *part(const uint8_t **at, const uint8_t *end, size_t *bytes) {
  const uint8_t *start = *at, *zero = start < end ? memchr(start, 0, (size_t)(end - start)) : NULL;
  *bytes = (size_t)((zero ? zero : end) - start);
  *at = zero ? zero + 1 : end;
  return (const char *)start;
}

static void use(const sl_wordpiece *tok, const char *text, size_t bytes) {
  int32_t size = sl_wordpiece_size(tok);
  for (int32_t id = 0; id < size; id++) {
    size_t length;
    const char *token = sl_wordpiece_token(tok, id, &length);
    FUZZ_DEMAND(sl_wordpiece_id(tok, token, length) == id);
  }
  sl_token_list list = { 0 };
  FUZZ_DEMAND(sl_wordpiece_encode(tok, text, bytes, SL_ENCODE_OFFSETS, &list) == SL_OK);
  for (size_t i = 0; i < list.count; i++) {
    FUZZ_DEMAND(list.ids[i] >= 0 && list.ids[i] < size && list.ends[i] <= bytes);
  }
  char *decoded;
  size_t decoded_bytes;
  FUZZ_DEMAND(sl_wordpiece_decode(tok, list.ids, list.count, 1, &decoded, &decoded_bytes) == SL_OK);
  sl_mem_free(decoded);
  sl_token_list_free(&list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
  const uint8_t *at = data, *end = data + bytes;
  size_t main_bytes, config_bytes;
  const char *file = part(&at, end, &main_bytes), *config = part(&at, end, &config_bytes);
  if (config_bytes == 0) config = NULL;
  sl_wordpiece *tok;
  sl_status status = main_bytes > 0 && file[0] == '{'
                       ? sl_wordpiece_from_json(file, main_bytes, config, config_bytes, "fuzz", &tok)
                       : sl_wordpiece_from_vocab(file, main_bytes, config, config_bytes, "fuzz", &tok);
  FUZZ_DEMAND((status == SL_OK) == (tok != NULL));
  if (tok) use(tok, (const char *)at, (size_t)(end - at));
  sl_wordpiece_free(tok);
  FUZZ_NO_LEAK();
  return 0;
}
