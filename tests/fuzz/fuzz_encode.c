/* Any bytes as text, for tokenizers of every kind of normalisation: ids and offsets stay in range, a safe
 * cut changes nothing, and packing in parts equals packing at once. The first byte chooses. */
#include "fuzz.h"

#include <string.h>

#include "core/data/packing.h"

static const char vocab[] =
    "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\nthe\n##e\n##s\n##a\n##b\nab\nabc\n.\n,\n[\n]\n1\n##"
    "1\n\xc3\xa9\n##\xc3\xa9\n"
    "\xe4\xb8\xad\n\xe3\x82\xab\n##\xe3\x82\xab\ne\ns\ni\n##i\n\xcc\x81\n##\xcc\x81\n";

static sl_wordpiece *create(int kind) {
  static const char json[] = "{\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"},\"normalizer\":{\"type\":"
                             "\"BertNormalizer\"},\"decoder\":{\"type\":\"WordPiece\"},"
                             "\"added_tokens\":[{\"id\":1,\"content\":\"ab\",\"normalized\":true,\"lstrip\":"
                             "true},{\"id\":2,\"content\":\"a b\",\"normalized\":true,\"single_word\":true},"
                             "{\"id\":3,\"content\":\"[M]\",\"rstrip\":true},{\"id\":4,\"content\":\" x "
                             "\",\"lstrip\":true,\"rstrip\":true}],"
                             "\"model\":{\"type\":\"WordPiece\",\"vocab\":{\"[UNK]\":0,\"ab\":1}}}";
  static const char *const configs[] = {
    "{}",
    "{\"do_lower_case\":false}",
    "{\"strip_accents\":false}",
    "{\"do_lower_case\":false,\"tokenize_chinese_chars\":false}",
  };
  sl_wordpiece *tok;
  sl_status status = kind == 4 ? sl_wordpiece_from_json(json, strlen(json), NULL, 0, "fuzz", &tok)
                               : sl_wordpiece_from_vocab(vocab, strlen(vocab), configs[kind],
                                                         strlen(configs[kind]), "fuzz", &tok);
  if (status != SL_OK) fprintf(stderr, "%s\n", sl_last_error());
  FUZZ_DEMAND(status == SL_OK);
  return tok;
}

static void check_cut(const sl_wordpiece *tok, const char *text, size_t bytes, const sl_token_list *whole) {
  size_t cut = sl_wordpiece_safe_cut(tok, text, bytes);
  FUZZ_DEMAND(cut <= bytes);
  sl_token_list parts = { 0 };
  FUZZ_DEMAND(sl_wordpiece_encode(tok, text, cut, 0, &parts) == SL_OK);
  FUZZ_DEMAND(sl_wordpiece_encode(tok, text + cut, bytes - cut, 0, &parts) == SL_OK);
  FUZZ_DEMAND(parts.count == whole->count);
  FUZZ_DEMAND(parts.count == 0 || memcmp(parts.ids, whole->ids, parts.count * sizeof *parts.ids) == 0);
  sl_token_list_free(&parts);
}

/* A hash of the contexts made from pushing `part` bytes at a time. */
static uint64_t pack(const sl_wordpiece *tok, const char *text, size_t bytes, size_t part) {
  sl_packer *packer;
  sl_packer_options options = { .ctx_len = 8, .sources = 1 };
  int32_t ids[8], tokens = 1;
  sl_token_source sources[8];
  uint64_t hash = 14695981039346656037u;
  FUZZ_DEMAND(sl_packer_create(tok, &options, &packer) == SL_OK);
  for (size_t at = 0; at < bytes; at += part) {
    FUZZ_DEMAND(sl_packer_push(packer, text + at, part < bytes - at ? part : bytes - at, 0) == SL_OK);
  }
  FUZZ_DEMAND(sl_packer_push(packer, "", 0, 1) == SL_OK && sl_packer_finish(packer) == SL_OK);
  while (tokens > 0) {
    FUZZ_DEMAND(sl_packer_next(packer, ids, sources, &tokens) == SL_OK);
    for (int i = 0; tokens > 0 && i < 8; i++) {
      FUZZ_DEMAND(sources[i].end >= 0 && sources[i].end <= (int64_t)bytes);
      hash = (hash ^ (uint32_t)ids[i] ^ (uint64_t)sources[i].start << 32) * 1099511628211u;
    }
  }
  sl_packer_free(packer);
  return hash;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
  if (bytes == 0) return 0;
  int kind = data[0] % 5;
  const char *text = (const char *)data + 1;
  bytes--;
  sl_wordpiece *tok = create(kind);
  sl_token_list list = { 0 };
  FUZZ_DEMAND(sl_wordpiece_encode(tok, text, bytes, SL_ENCODE_OFFSETS, &list) == SL_OK);
  for (size_t i = 0; i < list.count; i++) {
    FUZZ_DEMAND(list.ids[i] >= 0 && list.ids[i] < sl_wordpiece_size(tok) && list.ends[i] <= bytes);
  }
  check_cut(tok, text, bytes, &list);
  if (kind != 4) FUZZ_DEMAND(pack(tok, text, bytes, bytes + 1) == pack(tok, text, bytes, 5));
  sl_token_list_free(&list);
  sl_wordpiece_free(tok);
  FUZZ_NO_LEAK();
  return 0;
}
