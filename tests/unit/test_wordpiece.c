/* WordPiece against the real package (tests/parity/tokenizer.py), refusals, and failing allocations. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "core/base/mem.h"
#include "core/data/wordpiece_impl.h"
#include "core/io/file_map.h"
#include "core/io/json.h"

#define FOLDER "tests/parity/fixtures/tokenizer"

static json_t *expected;
static char *vocab;
static size_t vocab_bytes;

static int setup(void **state) {
  (void)state;
  assert_int_equal(sl_json_load(FOLDER "/expected.json", 1 << 24, &expected), SL_OK);
  assert_int_equal(sl_file_read(FOLDER "/vocab.txt", 1 << 24, &vocab, &vocab_bytes), SL_OK);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  json_decref(expected);
  sl_mem_free(vocab);
  return 0;
}

static json_t *variant(size_t i) { return json_array_get(json_object_get(expected, "variants"), i); }
static size_t variant_count(void) { return json_array_size(json_object_get(expected, "variants")); }

/* tokenizer.json of a variant, with the vocabulary put in; sl_mem_free it. */
static char *variant_json(size_t index) {
  json_t *root = json_deep_copy(json_object_get(variant(index), "tokenizer"));
  json_t *pieces = json_object_get(json_object_get(root, "model"), "vocab");
  int id = 0;
  for (char *at = vocab, *end; (end = strchr(at, '\n')) != NULL; at = end + 1) {
    json_object_setn_new(pieces, at, (size_t)(end - at), json_integer(id++));
  }
  char *text = json_dumps(root, 0);
  assert_non_null(text);
  json_decref(root);
  return text;
}

static sl_wordpiece *load_variant(size_t index) {
  sl_wordpiece *tok;
  char *text = variant_json(index);
  if (sl_wordpiece_from_json(text, strlen(text), NULL, 0, "variant", &tok) != SL_OK)
    fail_msg("%s", sl_last_error());
  sl_mem_free(text);
  return tok;
}

/* The bytes of a case's text. */
static size_t case_text(const json_t *c, char *out, size_t room) {
  const char *hex = json_string_value(json_object_get(c, "hex"));
  if (!hex) {
    const json_t *text = json_object_get(c, "text");
    size_t bytes = json_string_length(text);
    assert_true(bytes < room);
    memcpy(out, json_string_value(text), bytes);
    return bytes;
  }
  size_t bytes = strlen(hex) / 2;
  assert_true(bytes < room);
  for (size_t i = 0; i < bytes; i++) {
    unsigned value;
    assert_int_equal(sscanf(hex + 2 * i, "%2x", &value), 1);
    out[i] = (char)value;
  }
  return bytes;
}

static void check_case(const sl_wordpiece *tok, const char *name, const json_t *c) {
  char text[4096];
  size_t bytes = case_text(c, text, sizeof text);
  sl_token_list list = { 0 };
  assert_int_equal(sl_wordpiece_encode(tok, text, bytes, SL_ENCODE_OFFSETS, &list), SL_OK);
  const json_t *ids = json_object_get(c, "ids"), *offsets = json_object_get(c, "offsets");
  if (list.count != json_array_size(ids))
    fail_msg("%s: \"%.*s\": %zu tokens", name, (int)bytes, text, list.count);
  for (size_t i = 0; i < list.count; i++) {
    int64_t id = json_integer_value(json_array_get(ids, i));
    int64_t start = json_integer_value(json_array_get(offsets, 2 * i));
    int64_t end = json_integer_value(json_array_get(offsets, 2 * i + 1));
    if (list.ids[i] != id || list.starts[i] != start || list.ends[i] != end) {
      fail_msg("%s: \"%.*s\": token %zu is %d [%u, %u), expected %lld [%lld, %lld)", name, (int)bytes, text,
               i, list.ids[i], list.starts[i], list.ends[i], (long long)id, (long long)start, (long long)end);
    }
  }
  char *decoded;
  size_t decoded_bytes;
  assert_int_equal(sl_wordpiece_decode(tok, list.ids, list.count, 0, &decoded, &decoded_bytes), SL_OK);
  assert_string_equal(decoded, json_string_value(json_object_get(c, "decoded")));
  sl_mem_free(decoded);
  sl_token_list_free(&list);
}

static void test_equals_the_package(void **state) {
  (void)state;
  assert_true(variant_count() >= 7);
  for (size_t v = 0; v < variant_count(); v++) {
    sl_wordpiece *tok = load_variant(v);
    json_t *cases = json_object_get(variant(v), "cases"), *c;
    size_t i;
    assert_true(json_array_size(cases) > 50);
    json_array_foreach(cases, i, c)
        check_case(tok, json_string_value(json_object_get(variant(v), "name")), c);
    sl_wordpiece_free(tok);
  }
}

static uint64_t mix(uint64_t hash, const uint8_t *bytes, size_t count) {
  for (size_t i = 0; i < count; i++) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  return hash;
}

/* The normal form of a<c>b and the words it is cut into, for every code point there is. */
static void test_every_code_point(void **state) {
  (void)state;
  for (size_t v = 0; v < variant_count(); v++) {
    sl_wordpiece *tok = load_variant(v);
    wp_chars a = { 0 }, b = { 0 };
    uint64_t hash = 0xcbf29ce484222325u;
    for (uint32_t code = 1; code < 0x110000; code++) {
      if (code >= 0xd800 && code < 0xe000) continue;
      uint8_t text[6] = "a", out[4];
      size_t bytes = 1 + wp_encode(code, text + 1);
      text[bytes++] = 'b';
      assert_int_equal(wp_normalize(tok, text, 0, bytes, &a, &b), SL_OK);
      for (size_t i = 0; i < a.count; i++) hash = mix(hash, out, wp_encode(a.chars[i].code, out));
      uint8_t words = wp_is_space(code) ? 2 : wp_is_punctuation(code) ? 3 : 1;
      hash = mix(hash, &words, 1);
    }
    char text[17];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)hash);
    assert_string_equal(text, json_string_value(json_object_get(variant(v), "unicode")));
    sl_mem_free(a.chars);
    sl_mem_free(b.chars);
    sl_wordpiece_free(tok);
  }
}

static void test_older_layout_and_lookups(void **state) {
  (void)state;
  sl_wordpiece *tok;
  assert_int_equal(sl_wordpiece_load(FOLDER, &tok), SL_OK);
  json_t *cases = json_object_get(variant(0), "cases"), *c;
  size_t i, bytes;
  json_array_foreach(cases, i, c) check_case(tok, "vocab.txt", c);
  for (int32_t id = 0; id < sl_wordpiece_size(tok); id++) {
    const char *token = sl_wordpiece_token(tok, id, &bytes);
    assert_int_equal(sl_wordpiece_id(tok, token, bytes), id);
  }
  assert_null(sl_wordpiece_token(tok, -1, NULL));
  assert_null(sl_wordpiece_token(tok, sl_wordpiece_size(tok), NULL));
  assert_int_equal(sl_wordpiece_id(tok, "nonesuch", 8), -1);
  sl_special_ids special = sl_wordpiece_special(tok);
  assert_int_equal(special.pad, 0);
  assert_int_equal(special.mask, 4);
  assert_true(sl_wordpiece_is_special(tok, special.cls));
  assert_false(sl_wordpiece_is_special(tok, 5));
  sl_wordpiece_free(tok);
}

static void test_wrapping_and_decoding(void **state) {
  (void)state;
  sl_wordpiece *tok;
  assert_int_equal(sl_wordpiece_load(FOLDER, &tok), SL_OK);
  sl_special_ids special = sl_wordpiece_special(tok);
  sl_token_list list = { 0 };
  unsigned flags = SL_ENCODE_SPECIAL | SL_ENCODE_OFFSETS;
  assert_int_equal(sl_wordpiece_encode(tok, "The letter [MASK] end!", 22, flags, &list), SL_OK);
  assert_int_equal(list.ids[0], special.cls);
  assert_int_equal(list.ids[list.count - 1], special.sep);
  assert_int_equal(list.ends[0], 0);
  char *text;
  size_t bytes;
  assert_int_equal(sl_wordpiece_decode(tok, list.ids, list.count, 1, &text, &bytes), SL_OK);
  assert_string_equal(text, "the letter end!");
  assert_int_equal(bytes, 15);
  sl_mem_free(text);
  int32_t outside[] = { -5, INT32_MAX };
  assert_int_equal(sl_wordpiece_decode(tok, outside, 2, 0, &text, &bytes), SL_OK);
  assert_string_equal(text, "");
  sl_mem_free(text);
  sl_token_list_free(&list);
  sl_wordpiece_free(tok);
}

/* Encoding both sides of a safe cut gives the tokens of the whole. */
static void test_safe_cut(void **state) {
  (void)state;
  sl_wordpiece *tok;
  assert_int_equal(sl_wordpiece_load(FOLDER, &tok), SL_OK);
  static const char text[] = "The  captain \xc3\xa9 sold[MASK] the\n\nred boat\xff tail";
  sl_token_list whole = { 0 };
  assert_int_equal(sl_wordpiece_encode(tok, text, strlen(text), 0, &whole), SL_OK);
  int cuts = 0;
  for (size_t end = 0; end <= strlen(text); end++) {
    size_t cut = sl_wordpiece_safe_cut(tok, text, end);
    assert_true(cut <= end);
    sl_token_list parts = { 0 };
    assert_int_equal(sl_wordpiece_encode(tok, text, cut, 0, &parts), SL_OK);
    assert_int_equal(sl_wordpiece_encode(tok, text + cut, strlen(text) - cut, 0, &parts), SL_OK);
    assert_int_equal(parts.count, whole.count);
    assert_memory_equal(parts.ids, whole.ids, whole.count * sizeof *whole.ids);
    cuts += cut > 0;
    sl_token_list_free(&parts);
  }
  assert_true(cuts > 10);
  sl_token_list_free(&whole);
  sl_wordpiece_free(tok);
}

#define MODEL(vocab_text)                                                                                    \
  "{\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"},\"normalizer\":{\"type\":\"BertNormalizer\"},"         \
  "\"model\":{\"type\":\"WordPiece\",\"vocab\":" vocab_text "}"

static void test_refusals(void **state) {
  (void)state;
  static const struct {
    const char *json, *message;
  } bad[] = {
    { "{", "not valid JSON" },
    { "[]", "\"model\" is nothing" },
    { "{\"model\":{\"type\":\"BPE\"}}", "the model is BPE, only WordPiece" },
    { "{\"model\":{\"type\":\"WordPiece\",\"vocab\":[]}}", "\"vocab\" is an array" },
    { MODEL("{}") "}", "the vocabulary is empty" },
    { MODEL("{\"[UNK]\":0,\"a\":0}") "}", "the id 0 is both" },
    { MODEL("{\"[UNK]\":0,\"a\":2}") "}", "ids 0 to 1" },
    { MODEL("{\"[UNK]\":0,\"a\":1,\"a\":2}") "}", "duplicate" },
    { MODEL("{\"[UNK]\":0,\"\":1}") "}", "is empty" },
    { MODEL("{\"[UNK]\":0,\"a\":\"x\"}") "}", "is a string, expected an integer" },
    { MODEL("{\"a\":0}") "}", "unk_token \"[UNK]\" is not in the vocabulary" },
    { MODEL("{\"[UNK]\":0}") ",\"added_tokens\":[{\"id\":5,\"content\":\"x\"}]}", "ids 0 to 1" },
    { MODEL("{\"[UNK]\":0,\"x\":1}") ",\"added_tokens\":[{\"id\":0,\"content\":\"x\"}]}",
      "has id 0, but the vocabulary has it as 1" },
    { MODEL("{\"[UNK]\":0}") ",\"added_tokens\":{}}", "added_tokens is an object" },
    { MODEL("{\"[UNK]\":0}") ",\"post_processor\":{\"type\":\"RobertaProcessing\"}}",
      "post_processor is RobertaProcessing" },
    { MODEL("{\"[UNK]\":0}") ",\"decoder\":{\"type\":\"ByteLevel\"}}", "decoder is ByteLevel" },
    { "{\"pre_tokenizer\":{\"type\":\"Whitespace\"},\"model\":{\"type\":\"WordPiece\",\"vocab\":{\"[UNK]\":0}"
      "}}",
      "pre_tokenizer is Whitespace" },
    { "{\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"},\"normalizer\":{\"type\":\"NFKC\"},\"model\":{"
      "\"type\":\"WordPiece\",\"vocab\":{\"[UNK]\":0}}}",
      "normalizer is NFKC" },
  };
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    sl_wordpiece *tok;
    sl_status status =
        sl_wordpiece_from_json(bad[i].json, strlen(bad[i].json), NULL, 0, "tokenizer.json", &tok);
    assert_true(status == SL_EFORMAT || status == SL_EUNSUPPORTED);
    assert_null(tok);
    if (!strstr(sl_last_error(), bad[i].message))
      fail_msg("\"%s\" instead of \"%s\"", sl_last_error(), bad[i].message);
  }
}

static void check_vocab_refusal(const char *text, size_t bytes, const char *config, const char *message) {
  sl_wordpiece *tok;
  size_t config_bytes = config ? strlen(config) : 0;
  assert_int_not_equal(sl_wordpiece_from_vocab(text, bytes, config, config_bytes, "vocab.txt", &tok), SL_OK);
  assert_null(tok);
  if (!strstr(sl_last_error(), message)) fail_msg("\"%s\" instead of \"%s\"", sl_last_error(), message);
}

static void test_vocab_refusals(void **state) {
  (void)state;
  check_vocab_refusal("", 0, NULL, "vocabulary is empty");
  check_vocab_refusal("[UNK]\na\na\n", 10, NULL, "\"a\" is there twice, as 1 and 2");
  check_vocab_refusal("[UNK]\n\nb", 8, NULL, "token 1 is empty");
  check_vocab_refusal("[UNK]\n\xff", 7, NULL, "line 2 is not valid UTF-8");
  check_vocab_refusal("a\nb", 3, NULL, "unk_token");
  check_vocab_refusal("[UNK]\n", 6, "{\"tokenizer_class\":\"BertJapaneseTokenizer\"}",
                      "BertJapaneseTokenizer");
  check_vocab_refusal("[UNK]\n", 6, "{\"mask_token\":\"<mask>\"}",
                      "mask_token \"<mask>\" is not in the vocabulary");
  check_vocab_refusal("[UNK]\n", 6, "{\"do_lower_case\":1}", "expected true or false");
  check_vocab_refusal("[UNK]\n", 6, "{\"added_tokens_decoder\":{\"9\":{\"content\":\"x\"}}}", "not an id");
  sl_wordpiece *tok;
  assert_int_equal(sl_wordpiece_load("tests/unit", &tok), SL_ENOTFOUND);
  assert_int_equal(sl_wordpiece_from_vocab("[UNK]\r\na\r\n", 10, NULL, 0, "vocab.txt", &tok), SL_OK);
  assert_int_equal(sl_wordpiece_id(tok, "a", 1), 1);
  sl_wordpiece_free(tok);
}

/* Every allocation of loading and encoding fails once: a clean status, nothing leaked. */
static void test_failing_allocations(void **state) {
  (void)state;
  static const char json[] =
      MODEL("{\"[UNK]\":0,\"a\":1,\"##b\":2,\"\xc3\xa9\":3}") ",\"decoder\":{\"type\":\"WordPiece\"},\"added_"
                                                              "tokens\":[{\"id\":4,\"content\":\"Zz\","
                                                              "\"normalized\":true},{\"id\":5,\"content\":\"["
                                                              "M]\"}]}";
  static const char text[] = "ab \xc3\x80\xcc\x81\xcc\x96 \xe4\xb8\xad [M] zz ab";
  int64_t before = sl_mem_get_stats().blocks;
  int failures = 0;
  for (int64_t n = 1;; n++) {
    sl_wordpiece *tok = NULL;
    sl_token_list list = { 0 };
    char *decoded = NULL;
    size_t bytes;
    sl_mem_fail_at(n);
    sl_status status = sl_wordpiece_from_json(json, strlen(json), "{}", 2, "tokenizer.json", &tok);
    if (status == SL_OK) status = sl_wordpiece_encode(tok, text, strlen(text), SL_ENCODE_OFFSETS, &list);
    if (status == SL_OK) status = sl_wordpiece_decode(tok, list.ids, list.count, 0, &decoded, &bytes);
    sl_mem_fail_at(0);
    if (status != SL_OK && status != SL_ENOMEM) fail_msg("%lld: %s", (long long)n, sl_last_error());
    if (status == SL_OK) assert_string_equal(decoded, "ab a [UNK] [M] zz ab");
    sl_mem_free(decoded);
    sl_token_list_free(&list);
    sl_wordpiece_free(tok);
    assert_int_equal(sl_mem_get_stats().blocks, before);
    if (status == SL_OK) break;
    assert_int_equal(status, SL_ENOMEM);
    failures++;
  }
  assert_true(failures > 20);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_equals_the_package), cmocka_unit_test(test_every_code_point),
    cmocka_unit_test(test_older_layout_and_lookups), cmocka_unit_test(test_wrapping_and_decoding),
    cmocka_unit_test(test_safe_cut), cmocka_unit_test(test_refusals), cmocka_unit_test(test_vocab_refusals),
    cmocka_unit_test(test_failing_allocations),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
