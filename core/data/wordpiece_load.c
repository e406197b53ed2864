/* Loading a tokenizer: tokenizer.json, or vocab.txt, with tokenizer_config.json; see wordpiece.h.
 *
 * "truncation" and "padding" of tokenizer.json are settings of a call in the package; here whoever packs
 * contexts decides on both, so they are not read. */
#include <stdlib.h>
#include <string.h>

#include "core/base/mem.h"
#include "core/io/file_map.h"
#include "core/io/json.h"
#include "wordpiece_impl.h"
#include "wordpiece_load.h"

enum { MAX_FILE_BYTES = 256 << 20 };
static const uint32_t UNSET = UINT32_MAX;

/* Room for `size` tokens of `bytes` bytes in all. */
static sl_status reserve(sl_wordpiece *tok, size_t size, size_t bytes) {
  if (size == 0) return sl_fail(SL_EFORMAT, "%s: the vocabulary is empty", tok->where);
  if (size > INT32_MAX || bytes > INT32_MAX - size)
    return sl_fail(SL_EFORMAT, "%s: the vocabulary is too large", tok->where);
  SL_TRY(sl_mem_alloc(size * sizeof *tok->tokens, "a vocabulary", (void **)&tok->tokens));
  SL_TRY(sl_mem_alloc(bytes + size, "a vocabulary", (void **)&tok->text));
  tok->size = (int32_t)size;
  for (size_t i = 0; i < size; i++) tok->tokens[i].at = UNSET;
  return wp_trie_reserve(&tok->trie, bytes * 2);
}

/* For %.*s: a token in a message, cut to 40 bytes. */
#define SHOWN(text, bytes) (int)((bytes) < 40 ? (bytes) : 40), (text)

/* Sets a token; a model piece also enters the trie. */
static sl_status set_token(sl_wordpiece *tok, int64_t id, const char *text, size_t bytes, int is_piece) {
  if (id < 0 || id >= tok->size) {
    return sl_fail(SL_EFORMAT, "%s: token \"%.*s\" has id %lld, but %d tokens must have the ids 0 to %d",
                   tok->where, SHOWN(text, bytes), (long long)id, tok->size, tok->size - 1);
  }
  if (bytes == 0) return sl_fail(SL_EFORMAT, "%s: token %lld is empty", tok->where, (long long)id);
  struct wp_token *token = &tok->tokens[id];
  if (token->at != UNSET) {
    return sl_fail(SL_EFORMAT, "%s: the id %lld is both \"%.40s\" and \"%.*s\"", tok->where, (long long)id,
                   tok->text + token->at, SHOWN(text, bytes));
  }
  if (is_piece) {
    const uint8_t *piece = (const uint8_t *)text;
    int32_t before = wp_trie_add(&tok->trie, WP_START, piece, bytes, (int32_t)id);
    if (before >= 0) {
      return sl_fail(SL_EFORMAT, "%s: the piece \"%.*s\" is there twice, as %d and %lld (counted from 0)",
                     tok->where, SHOWN(text, bytes), before, (long long)id);
    }
    size_t prefix = strlen(tok->prefix);
    if (bytes > prefix && memcmp(piece, tok->prefix, prefix) == 0) {
      wp_trie_add(&tok->trie, WP_CONTINUE, piece + prefix, bytes - prefix, (int32_t)id);
    }
  }
  token->at = tok->text_used;
  token->bytes = (uint32_t)bytes;
  memcpy(tok->text + token->at, text, bytes);
  tok->text_used += (uint32_t)bytes + 1;
  return SL_OK;
}

/* Finds the end of a line and of its text (without a carriage return). */
static const char *line_end(const char *at, const char *end, const char **text_end) {
  const char *newline = memchr(at, '\n', (size_t)(end - at));
  if (!newline) newline = end;
  *text_end = newline > at && newline[-1] == '\r' ? newline - 1 : newline;
  return newline;
}

static sl_status read_vocab(sl_wordpiece *tok, const char *vocab, size_t bytes) {
  const char *end = vocab + bytes, *text_end;
  size_t lines = 0;
  for (const char *at = vocab; at < end; at = line_end(at, end, &text_end) + 1) lines++;
  SL_TRY(reserve(tok, lines, bytes));
  int64_t id = 0;
  for (const char *at = vocab; at < end; id++) {
    const char *next = line_end(at, end, &text_end);
    size_t length = (size_t)(text_end - at);
    if (!wp_is_utf8((const uint8_t *)at, length) || memchr(at, '\0', length) || memchr(at, '\r', length)) {
      return sl_fail(SL_EFORMAT, "%s: line %lld is not valid UTF-8 text", tok->where, (long long)id + 1);
    }
    SL_TRY(set_token(tok, id, at, length, 1));
    at = next + 1;
  }
  return SL_OK;
}

/* The model's pieces and those added tokens that are not among them. */
static sl_status read_vocab_json(sl_wordpiece *tok, json_t *vocab, json_t *added) {
  const char *key;
  json_t *value;
  size_t size = json_object_size(vocab), bytes = 0, i;
  json_object_foreach(vocab, key, value) bytes += strlen(key);
  json_array_foreach(added, i, value) {
    const char *content = json_string_value(json_object_get(value, "content"));
    if (content && !json_object_get(vocab, content)) size++, bytes += strlen(content);
  }
  SL_TRY(reserve(tok, size, bytes));
  json_object_foreach(vocab, key, value) {
    if (!json_is_integer(value)) {
      return sl_fail(SL_EFORMAT, "%s: the id of piece \"%.40s\" is %s, expected an integer", tok->where, key,
                     sl_json_type_name(value));
    }
    SL_TRY(set_token(tok, json_integer_value(value), key, strlen(key), 1));
  }
  return SL_OK;
}

static sl_status read_model(sl_wordpiece *tok, json_t *root, json_t *added, const char **unk) {
  json_t *model, *vocab;
  const char *type = NULL, *prefix = "##";
  SL_TRY(sl_json_object(root, "model", tok->where, &model));
  SL_TRY(sl_json_opt_string(model, "type", tok->where, &type));
  if (type ? strcmp(type, "WordPiece") != 0 : !json_object_get(model, "max_input_chars_per_word")) {
    return sl_fail(SL_EUNSUPPORTED, "%s: the model is %s, only WordPiece (BERT) is supported", tok->where,
                   type ? type : "of no named type");
  }
  SL_TRY(sl_json_opt_string(model, "continuing_subword_prefix", tok->where, &prefix));
  SL_TRY(sl_json_opt_int(model, "max_input_chars_per_word", tok->where, &tok->max_chars));
  SL_TRY(sl_json_opt_string(model, "unk_token", tok->where, unk));
  SL_TRY(sl_json_object(model, "vocab", tok->where, &vocab));
  if (tok->max_chars < 0) return sl_fail(SL_EFORMAT, "%s: max_input_chars_per_word is negative", tok->where);
  SL_TRY(sl_mem_strdup(prefix, &tok->prefix));
  return read_vocab_json(tok, vocab, added);
}

/* A member that must be null or an object of the named type; *out NULL when null. */
static sl_status typed_member(const sl_wordpiece *tok, json_t *root, const char *key, const char *type,
                              json_t **out) {
  *out = json_object_get(root, key);
  if (json_is_null(*out)) *out = NULL;
  const char *found = json_string_value(json_object_get(*out, "type"));
  if (!*out || (found && strcmp(found, type) == 0)) return SL_OK;
  return sl_fail(SL_EUNSUPPORTED, "%s: the %s is %s, expected %s", tok->where, key,
                 found ? found : "of no named type", type);
}

static sl_status read_pipeline(sl_wordpiece *tok, json_t *root) {
  json_t *part;
  const char *prefix = "##";
  SL_TRY(typed_member(tok, root, "pre_tokenizer", "BertPreTokenizer", &part));
  if (!part) return sl_fail(SL_EUNSUPPORTED, "%s: no pre_tokenizer, expected BertPreTokenizer", tok->where);
  SL_TRY(typed_member(tok, root, "decoder", "WordPiece", &part));
  tok->has_decoder = part != NULL;
  SL_TRY(sl_json_opt_string(part, "prefix", tok->where, &prefix));
  SL_TRY(sl_json_opt_bool(part, "cleanup", tok->where, &tok->cleanup));
  SL_TRY(sl_mem_strdup(prefix, &tok->decode_prefix));
  SL_TRY(typed_member(tok, root, "normalizer", "BertNormalizer", &part));
  if (!part) { /* null: text is taken as it is */
    tok->clean_text = tok->chinese = tok->strip_accents = tok->lowercase = 0;
    return SL_OK;
  }
  SL_TRY(sl_json_opt_bool(part, "clean_text", tok->where, &tok->clean_text));
  SL_TRY(sl_json_opt_bool(part, "handle_chinese_chars", tok->where, &tok->chinese));
  SL_TRY(sl_json_opt_bool(part, "lowercase", tok->where, &tok->lowercase));
  return sl_json_opt_bool(part, "strip_accents", tok->where, &tok->strip_accents);
}

/* Whether [CLS] text [SEP] is what the post-processor makes. */
static sl_status check_wrapping(const sl_wordpiece *tok, json_t *root, const wp_names *names) {
  json_t *post = json_object_get(root, "post_processor");
  if (!post || json_is_null(post)) return SL_OK;
  const char *type = json_string_value(json_object_get(post, "type")), *cls = NULL, *sep = NULL;
  if (type && strcmp(type, "BertProcessing") == 0) {
    cls = json_string_value(json_array_get(json_object_get(post, "cls"), 0));
    sep = json_string_value(json_array_get(json_object_get(post, "sep"), 0));
  } else if (type && strcmp(type, "TemplateProcessing") == 0) {
    const json_t *single = json_object_get(post, "single");
    cls =
        json_string_value(json_object_get(json_object_get(json_array_get(single, 0), "SpecialToken"), "id"));
    sep =
        json_string_value(json_object_get(json_object_get(json_array_get(single, 2), "SpecialToken"), "id"));
    if (json_array_size(single) != 3 || !json_object_get(json_array_get(single, 1), "Sequence")) cls = NULL;
  } else {
    return sl_fail(SL_EUNSUPPORTED,
                   "%s: the post_processor is %s, expected TemplateProcessing or BertProcessing", tok->where,
                   type ? type : "of no named type");
  }
  if (cls && sep && strcmp(cls, names->cls) == 0 && strcmp(sep, names->sep) == 0) return SL_OK;
  return sl_fail(SL_EUNSUPPORTED, "%s: the post_processor does not make \"%s text %s\"", tok->where,
                 names->cls, names->sep);
}

static sl_status read_added(sl_wordpiece *tok, const json_t *value, int64_t id, wp_added *out) {
  const char *content;
  *out = (wp_added){ 0 };
  SL_TRY(sl_json_string(value, "content", tok->where, &content));
  SL_TRY(sl_json_opt_bool(value, "single_word", tok->where, &out->single_word));
  SL_TRY(sl_json_opt_bool(value, "lstrip", tok->where, &out->lstrip));
  SL_TRY(sl_json_opt_bool(value, "rstrip", tok->where, &out->rstrip));
  SL_TRY(sl_json_opt_bool(value, "normalized", tok->where, &out->normalized));
  SL_TRY(sl_json_opt_bool(value, "special", tok->where, &out->special));
  size_t length;
  int32_t piece = wp_trie_longest(&tok->trie, WP_START, (const uint8_t *)content, strlen(content),
                                  tok->identity, &length);
  if (piece < 0 || length != strlen(content)) {
    SL_TRY(set_token(tok, id, content, strlen(content), 0));
  } else if (piece != id) {
    return sl_fail(SL_EFORMAT, "%s: the added token \"%.40s\" has id %lld, but the vocabulary has it as %d",
                   tok->where, content, (long long)id, piece);
  }
  out->id = (int32_t)id;
  return wp_add_token(tok, out);
}

static sl_status read_added_list(sl_wordpiece *tok, json_t *list) {
  json_t *value;
  size_t i;
  if (list && !json_is_array(list)) {
    return sl_fail(SL_EFORMAT, "%s: added_tokens is %s, expected a list", tok->where,
                   sl_json_type_name(list));
  }
  json_array_foreach(list, i, value) {
    int64_t id;
    wp_added added;
    SL_TRY(sl_json_int(value, "id", tok->where, &id));
    SL_TRY(read_added(tok, value, id, &added));
  }
  return SL_OK;
}

static sl_status read_json(sl_wordpiece *tok, json_t *root, json_t *config) {
  json_t *added = json_object_get(root, "added_tokens");
  wp_names names;
  const char *unk = "[UNK]";
  if (json_is_null(added)) added = NULL;
  SL_TRY(read_model(tok, root, added, &unk));
  SL_TRY(read_pipeline(tok, root));
  SL_TRY(wp_config_flags(tok, config, 0));
  SL_TRY(read_added_list(tok, added));
  SL_TRY(wp_finish(tok, config, unk, &names));
  return check_wrapping(tok, root, &names);
}

/* The added tokens of a vocab.txt: those the configuration lists, or else the five special ones. */
static sl_status read_config_added(sl_wordpiece *tok, json_t *config, int *found) {
  json_t *list = json_object_get(config, "added_tokens_decoder"), *value;
  const char *key;
  *found = json_object_size(list) > 0;
  json_object_foreach(list, key, value) {
    char *rest;
    long long id = strtoll(key, &rest, 10);
    if (*key == '\0' || *rest != '\0' || id < 0 || id >= tok->size) {
      return sl_fail(
          SL_EFORMAT,
          "%s: added_tokens_decoder: \"%.40s\" is not an id of the vocabulary's %d; save the tokenizer "
          "with transformers' save_pretrained, which writes tokenizer.json",
          tok->where, key, tok->size);
    }
    wp_added added;
    SL_TRY(read_added(tok, value, id, &added));
  }
  return SL_OK;
}

static sl_status read_text(sl_wordpiece *tok, const char *vocab, size_t bytes, json_t *config) {
  wp_names names;
  int found;
  SL_TRY(sl_mem_strdup("##", &tok->prefix));
  SL_TRY(sl_mem_strdup("##", &tok->decode_prefix));
  tok->has_decoder = 1;
  SL_TRY(read_vocab(tok, vocab, bytes));
  SL_TRY(wp_config_flags(tok, config, 1));
  SL_TRY(read_config_added(tok, config, &found));
  SL_TRY(wp_finish(tok, config, "[UNK]", &names));
  return found ? SL_OK : wp_add_special(tok);
}

static sl_status create(const char *where, const char *config, size_t config_bytes, sl_wordpiece **out,
                        json_t **json) {
  *json = NULL;
  SL_TRY(sl_mem_alloc(sizeof **out, "a tokenizer", (void **)out));
  sl_wordpiece *tok = *out;
  tok->clean_text = tok->chinese = tok->lowercase = tok->cleanup = 1;
  tok->strip_accents = -1; /* not said: as lowercase */
  tok->max_chars = 100;
  tok->raw.only_start = tok->normalized.only_start = -1;
  for (int i = 0; i < 256; i++) tok->identity[i] = (uint8_t)i;
  SL_TRY(sl_mem_strdup(where, &tok->where));
  return config ? sl_json_parse(config, config_bytes, "tokenizer_config.json", json) : SL_OK;
}

static sl_status deliver(sl_wordpiece *tok, sl_status status, json_t *config, sl_wordpiece **out) {
  json_decref(config);
  if (status == SL_OK) *out = tok;
  else sl_wordpiece_free(tok);
  return status;
}

sl_status sl_wordpiece_from_json(const char *text, size_t bytes, const char *config, size_t config_bytes,
                                 const char *where, sl_wordpiece **out) {
  sl_wordpiece *tok = NULL;
  json_t *settings, *root = NULL;
  *out = NULL;
  sl_status status = create(where, config, config_bytes, &tok, &settings);
  if (status == SL_OK) status = sl_json_parse(text, bytes, where, &root);
  if (status == SL_OK) status = read_json(tok, root, settings);
  json_decref(root);
  return deliver(tok, status, settings, out);
}

sl_status sl_wordpiece_from_vocab(const char *vocab, size_t bytes, const char *config, size_t config_bytes,
                                  const char *where, sl_wordpiece **out) {
  sl_wordpiece *tok = NULL;
  json_t *settings;
  *out = NULL;
  sl_status status = create(where, config, config_bytes, &tok, &settings);
  if (status == SL_OK) status = read_text(tok, vocab, bytes, settings);
  return deliver(tok, status, settings, out);
}

/* Reads folder/name; *text NULL when there is no such file. */
static sl_status read_member(const char *folder, const char *name, char **path, char **text, size_t *bytes) {
  *text = NULL;
  *bytes = 0;
  SL_TRY(sl_path_join(folder, name, path));
  return sl_file_exists(*path) ? sl_file_read(*path, MAX_FILE_BYTES, text, bytes) : SL_OK;
}

sl_status sl_wordpiece_load(const char *folder, sl_wordpiece **out) {
  enum { JSON, VOCAB, CONFIG, EXTRA, FILES };
  static const char *const names[FILES] = { "tokenizer.json", "vocab.txt", "tokenizer_config.json",
                                            "added_tokens.json" };
  char *paths[FILES] = { NULL }, *texts[FILES] = { NULL };
  size_t bytes[FILES] = { 0 };
  sl_status status = SL_OK;
  *out = NULL;
  for (int i = 0; i < FILES && status == SL_OK; i++) {
    if ((i == VOCAB || i == EXTRA) && texts[JSON]) continue; /* tokenizer.json holds everything */
    status = read_member(folder, names[i], &paths[i], &texts[i], &bytes[i]);
  }
  if (status != SL_OK) {
  } else if (texts[JSON]) {
    status = sl_wordpiece_from_json(texts[JSON], bytes[JSON], texts[CONFIG], bytes[CONFIG], paths[JSON], out);
  } else if (!texts[VOCAB]) {
    status = sl_fail(SL_ENOTFOUND, "%s: neither tokenizer.json nor vocab.txt in this folder", folder);
  } else if (texts[EXTRA]) {
    status = sl_fail(SL_EUNSUPPORTED,
                     "%s: added_tokens.json beside vocab.txt is not read; save the tokenizer with "
                     "transformers' save_pretrained, which writes tokenizer.json",
                     folder);
  } else {
    status =
        sl_wordpiece_from_vocab(texts[VOCAB], bytes[VOCAB], texts[CONFIG], bytes[CONFIG], paths[VOCAB], out);
  }
  for (int i = 0; i < FILES; i++) {
    sl_mem_free(paths[i]);
    sl_mem_free(texts[i]);
  }
  return status;
}
