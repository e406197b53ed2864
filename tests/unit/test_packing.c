/* The packer: its rule against a direct construction, streaming, sources, the tail, failing allocations. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/mem.h"
#include "core/data/packing.h"

static sl_wordpiece *tok;
static sl_special_ids special;

static int setup(void **state) {
  (void)state;
  assert_int_equal(sl_wordpiece_load("tests/parity/fixtures/tokenizer", &tok), SL_OK);
  special = sl_wordpiece_special(tok);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  sl_wordpiece_free(tok);
  return 0;
}

static const char *const documents[] = {
  "The captain sold the red boat.", "", "Latin small letter a with acute; caf\xc3\xa9 [MASK] end", " \n\t ",
  "Greek capital letter omega and a long tail of words, words, words.", "x", "\xe4\xb8\xad\xe4\xb8\x80 end",
};
enum { DOCUMENTS = sizeof documents / sizeof documents[0], CTX = 10 };

static sl_packer *packer(int32_t ctx_len, int sources) {
  sl_packer *p;
  sl_packer_options options = { .ctx_len = ctx_len, .sources = sources };
  assert_int_equal(sl_packer_create(tok, &options, &p), SL_OK);
  return p;
}

/* The stream by the letter of the rule. */
static sl_token_list joined(void) {
  sl_token_list all = { 0 };
  for (int d = 0; d < DOCUMENTS; d++) {
    sl_token_list one = { 0 };
    assert_int_equal(sl_wordpiece_encode(tok, documents[d], strlen(documents[d]), 0, &one), SL_OK);
    if (one.count > 0 && all.count > 0)
      assert_int_equal(sl_wordpiece_encode(tok, "[SEP]", 5, 0, &all), SL_OK);
    if (one.count > 0)
      assert_int_equal(sl_wordpiece_encode(tok, documents[d], strlen(documents[d]), 0, &all), SL_OK);
    sl_token_list_free(&one);
  }
  return all;
}

static void test_rule(void **state) {
  (void)state;
  sl_token_list all = joined();
  assert_true(all.count > 40);
  sl_packer *p = packer(CTX, 0);
  for (int d = 0; d < DOCUMENTS; d++)
    assert_int_equal(sl_packer_push(p, documents[d], strlen(documents[d]), 1), SL_OK);
  assert_int_equal(sl_packer_finish(p), SL_OK);
  int32_t ids[CTX], tokens;
  size_t at = 0;
  for (;;) {
    assert_int_equal(sl_packer_next(p, ids, NULL, &tokens), SL_OK);
    if (tokens == 0) break;
    assert_int_equal(ids[0], special.cls);
    assert_memory_equal(ids + 1, all.ids + at, (size_t)(tokens - 2) * sizeof *ids);
    assert_int_equal(ids[tokens - 1], special.sep);
    for (int i = tokens; i < CTX; i++) assert_int_equal(ids[i], special.pad);
    at += (size_t)tokens - 2;
  }
  sl_packer_stats stats = sl_packer_get_stats(p);
  assert_int_equal(at + (size_t)stats.dropped, all.count);
  assert_int_equal(stats.documents, DOCUMENTS);
  assert_true(stats.dropped < 8);
  assert_int_equal(sl_packer_push(p, "x", 1, 1), SL_ESTATE);
  sl_packer_free(p);
  sl_token_list_free(&all);
}

static void test_tail(void **state) {
  (void)state;
  static const char text[] = "a b c d e f g h i j k"; /* 11 tokens: one context of 8, a tail of 3 */
  for (int min_tail = 2; min_tail <= 4; min_tail++) {
    sl_packer *p;
    sl_packer_options options = { .ctx_len = 10, .min_tail = min_tail };
    assert_int_equal(sl_packer_create(tok, &options, &p), SL_OK);
    assert_int_equal(sl_packer_push(p, text, strlen(text), 1), SL_OK);
    int32_t ids[10], tokens;
    assert_int_equal(sl_packer_next(p, ids, NULL, &tokens), SL_OK);
    assert_int_equal(tokens, 10);
    assert_int_equal(sl_packer_next(p, ids, NULL, &tokens), SL_OK);
    assert_int_equal(tokens, 0); /* more may come */
    assert_int_equal(sl_packer_finish(p), SL_OK);
    assert_int_equal(sl_packer_next(p, ids, NULL, &tokens), SL_OK);
    assert_int_equal(tokens, min_tail <= 3 ? 5 : 0);
    assert_int_equal(sl_packer_get_stats(p).dropped, min_tail <= 3 ? 0 : 3);
    if (tokens > 0) assert_int_equal(ids[5], special.pad);
    assert_int_equal(sl_packer_next(p, ids, NULL, &tokens), SL_OK);
    assert_int_equal(tokens, 0);
    sl_packer_free(p);
  }
}

/* Each token's source holds exactly what encodes to it. */
static void test_sources(void **state) {
  (void)state;
  sl_packer *p = packer(CTX, 1);
  int32_t ids[CTX], tokens;
  sl_token_source sources[CTX];
  int seen = 0;
  for (int d = 0; d < DOCUMENTS; d++)
    assert_int_equal(sl_packer_push(p, documents[d], strlen(documents[d]), 1), SL_OK);
  assert_int_equal(sl_packer_finish(p), SL_OK);
  for (;;) {
    assert_int_equal(sl_packer_next(p, ids, sources, &tokens), SL_OK);
    if (tokens == 0) break;
    assert_int_equal(sources[0].document, -1);
    assert_int_equal(sources[tokens - 1].document, -1);
    for (int i = 1; i < tokens - 1; i++) {
      if (sources[i].document < 0) {
        assert_int_equal(ids[i], special.sep);
        continue;
      }
      const char *text = documents[sources[i].document];
      assert_true(sources[i].start < sources[i].end && sources[i].end <= (int64_t)strlen(text));
      const char *token = sl_wordpiece_token(tok, ids[i], NULL);
      if (token[0] >= 'a' && token[0] <= 'z' &&
          strlen(token) == (size_t)(sources[i].end - sources[i].start)) {
        assert_true((text[sources[i].start] | 32) == token[0]);
        seen++;
      }
    }
  }
  assert_true(seen > 15);
  sl_packer_free(p);
}

/* Documents in parts of any size give the same contexts, and memory does not grow with the stream. */
static void test_streaming(void **state) {
  (void)state;
  static const char sentence[] = "The captain sold the red boat, caf\xc3\xa9 \xe4\xb8\xad[MASK] end. ";
  size_t unit = strlen(sentence), bytes = unit * 4000;
  char *text = malloc(bytes);
  for (size_t i = 0; i < bytes; i += unit) memcpy(text + i, sentence, unit);
  uint64_t hashes[4];
  static const size_t parts[] = { SIZE_MAX, 7, 4096, 100001 };
  int64_t largest = 0;
  for (int k = 0; k < 4; k++) {
    sl_packer *p = packer(64, 1);
    int32_t ids[64], tokens;
    sl_token_source sources[64];
    uint64_t hash = 14695981039346656037u;
    int64_t start = sl_mem_get_stats().bytes;
    for (size_t at = 0; at < bytes;) {
      size_t now = parts[k] < bytes - at ? parts[k] : bytes - at;
      assert_int_equal(sl_packer_push(p, text + at, now, at + now == bytes), SL_OK);
      at += now;
      for (;;) {
        assert_int_equal(sl_packer_next(p, ids, sources, &tokens), SL_OK);
        if (tokens == 0) break;
        for (int i = 0; i < 64; i++) {
          hash = (hash ^ (uint32_t)ids[i]) * 1099511628211u;
          hash = (hash ^ (uint64_t)sources[i].start) * 1099511628211u;
        }
      }
      int64_t held = sl_mem_get_stats().bytes - start;
      if (k == 1 && held > largest) largest = held;
    }
    hashes[k] = hash;
    sl_packer_free(p);
  }
  free(text);
  for (int k = 1; k < 4; k++) assert_true(hashes[k] == hashes[0]);
  assert_true(largest > 0 && largest < 4 << 20);
}

/* A document without white space is cut at characters, and every character arrives. */
static void test_uncut_text(void **state) {
  (void)state;
  size_t characters = 1 << 20;
  char *text = malloc(characters * 3);
  for (size_t i = 0; i < characters; i++) memcpy(text + 3 * i, "\xe4\xb8\x80", 3);
  sl_packer *p = packer(512, 0);
  assert_int_equal(sl_packer_push(p, text, characters * 3, 1), SL_OK);
  assert_int_equal(sl_packer_finish(p), SL_OK);
  free(text);
  assert_int_equal(sl_packer_get_stats(p).tokens, characters);
  int32_t ids[512], tokens, wanted = sl_wordpiece_id(tok, "\xe4\xb8\x80", 3);
  assert_true(wanted > 0);
  int64_t total = 0;
  for (;;) {
    assert_int_equal(sl_packer_next(p, ids, NULL, &tokens), SL_OK);
    if (tokens == 0) break;
    for (int i = 1; i < tokens - 1; i++) assert_int_equal(ids[i], wanted);
    total += tokens - 2;
  }
  assert_int_equal(total + sl_packer_get_stats(p).dropped, characters);
  sl_packer_free(p);
}

static void test_refusals(void **state) {
  (void)state;
  sl_packer *p;
  sl_packer_options options = { .ctx_len = 2 };
  assert_int_equal(sl_packer_create(tok, &options, &p), SL_EINVAL);
  sl_wordpiece *poor;
  assert_int_equal(sl_wordpiece_from_vocab("[UNK]\na\n", 8, NULL, 0, "vocab.txt", &poor), SL_OK);
  options.ctx_len = 8;
  assert_int_equal(sl_packer_create(poor, &options, &p), SL_EINVAL);
  assert_non_null(strstr(sl_last_error(), "[CLS]"));
  sl_wordpiece_free(poor);
  p = packer(8, 0);
  int32_t ids[8], tokens;
  sl_token_source sources[8];
  assert_int_equal(sl_packer_next(p, ids, sources, &tokens), SL_EINVAL);
  sl_packer_free(p);
}

static void test_failing_allocations(void **state) {
  (void)state;
  int64_t before = sl_mem_get_stats().blocks;
  for (int64_t n = 1;; n++) {
    sl_packer *p = NULL;
    sl_packer_options options = { .ctx_len = 8, .sources = 1 };
    sl_mem_fail_at(n);
    sl_status status = sl_packer_create(tok, &options, &p);
    for (int d = 0; status == SL_OK && d < DOCUMENTS; d++)
      status = sl_packer_push(p, documents[d], strlen(documents[d]), 1);
    sl_mem_fail_at(0);
    sl_packer_free(p);
    assert_int_equal(sl_mem_get_stats().blocks, before);
    if (status == SL_OK) {
      assert_true(n > 6);
      break;
    }
    assert_int_equal(status, SL_ENOMEM);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_rule), cmocka_unit_test(test_tail), cmocka_unit_test(test_sources),
    cmocka_unit_test(test_streaming), cmocka_unit_test(test_uncut_text), cmocka_unit_test(test_refusals),
    cmocka_unit_test(test_failing_allocations),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
