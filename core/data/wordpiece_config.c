/* Special and added tokens, flags and tables of a tokenizer being loaded; see wordpiece_load.h. */
#include <stdlib.h>
#include <string.h>

#include "core/base/mem.h"
#include "core/io/json.h"
#include "wordpiece_load.h"

/* Classes of transformers that read a plain BERT vocabulary with BERT's rules. */
static int is_bert_class(const char *name) {
  static const char *const families[] = { "Bert",        "DistilBert", "Electra",   "MobileBert", "ConvBert",
                                          "SqueezeBert", "LayoutLM",   "RetriBert", "Lxmert",     "Funnel" };
  for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
    size_t length = strlen(families[i]);
    if (strncmp(name, families[i], length) != 0) continue;
    if (strcmp(name + length, "Tokenizer") == 0 || strcmp(name + length, "TokenizerFast") == 0) return 1;
  }
  return 0;
}

sl_status wp_config_flags(sl_wordpiece *tok, const json_t *config, int always) {
  const char *class = NULL, *file = "tokenizer_config.json";
  SL_TRY(sl_json_opt_string(config, "tokenizer_class", file, &class));
  int bert = class && is_bert_class(class);
  if (always && class && !bert && strcmp(class, "PreTrainedTokenizerFast") != 0) {
    return sl_fail(SL_EUNSUPPORTED,
                   "%s: tokenizer_class %s beside a vocab.txt is not supported, expected BertTokenizer; "
                   "save it with transformers' save_pretrained, which writes tokenizer.json",
                   tok->where, class);
  }
  if (always || bert) {
    SL_TRY(sl_json_opt_bool(config, "do_lower_case", file, &tok->lowercase));
    SL_TRY(sl_json_opt_bool(config, "strip_accents", file, &tok->strip_accents));
    SL_TRY(sl_json_opt_bool(config, "tokenize_chinese_chars", file, &tok->chinese));
  }
  if (tok->strip_accents < 0) tok->strip_accents = tok->lowercase;
  return SL_OK;
}

/* The string an added token is searched for: as written, or normalised like the text. */
static sl_status search_form(const sl_wordpiece *tok, wp_added *token) {
  const struct wp_token *text = &tok->tokens[token->id];
  const char *raw = tok->text + text->at;
  if (!token->normalized) {
    token->bytes = text->bytes;
    return sl_mem_strdup(raw, &token->content);
  }
  wp_chars chars = { 0 }, scratch = { 0 };
  sl_status status = wp_normalize(tok, (const uint8_t *)raw, 0, text->bytes, &chars, &scratch);
  if (status == SL_OK) status = sl_mem_alloc(chars.count * 4 + 1, "an added token", (void **)&token->content);
  for (size_t i = 0; status == SL_OK && i < chars.count; i++) {
    token->bytes += wp_encode(chars.chars[i].code, (uint8_t *)token->content + token->bytes);
  }
  sl_mem_free(chars.chars);
  sl_mem_free(scratch.chars);
  return status;
}

sl_status wp_add_token(sl_wordpiece *tok, wp_added *token) {
  wp_added_set *set = token->normalized ? &tok->normalized : &tok->raw;
  SL_TRY(sl_mem_resize((void **)&set->tokens, (set->count + 1) * sizeof *set->tokens, "added tokens"));
  token->content = NULL;
  token->bytes = 0;
  sl_status status = search_form(tok, token);
  if (status == SL_OK && token->bytes == 0) {
    status = sl_fail(SL_EFORMAT, "%s: nothing is left of the added token %d after normalisation", tok->where,
                     token->id);
  }
  if (status != SL_OK) {
    sl_mem_free(token->content);
    return status;
  }
  set->tokens[set->count++] = *token;
  return SL_OK;
}

static int longest_first(const void *left, const void *right) {
  const wp_added *a = left, *b = right;
  if (a->bytes != b->bytes) return a->bytes > b->bytes ? -1 : 1;
  return a->id < b->id ? -1 : a->id > b->id;
}

static void finish_set(wp_added_set *set) {
  if (set->count > 1) qsort(set->tokens, set->count, sizeof *set->tokens, longest_first);
  int starts = 0;
  memset(set->starts, 0, sizeof set->starts);
  for (size_t i = 0; i < set->count; i++) {
    uint8_t byte = (uint8_t)set->tokens[i].content[0];
    starts += !set->starts[byte];
    set->starts[byte] = 1;
    set->only_start = byte;
  }
  if (starts != 1) set->only_start = -1;
}

sl_status wp_add_special(sl_wordpiece *tok) {
  const sl_special_ids *s = &tok->special;
  const int32_t ids[] = { s->unk, s->sep, s->pad, s->cls, s->mask };
  for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
    wp_added token = { .id = ids[i], .special = 1 };
    if (ids[i] >= 0) SL_TRY(wp_add_token(tok, &token));
  }
  finish_set(&tok->raw);
  return SL_OK;
}

/* A special token's string: text, or an object with "content"; *name keeps its default when absent. */
static sl_status read_name(const json_t *config, const char *key, const char **name, int *said) {
  const json_t *value = json_object_get(config, key);
  *said = value && !json_is_null(value);
  if (json_is_object(value)) return sl_json_string(value, "content", "tokenizer_config.json", name);
  return sl_json_opt_string(config, key, "tokenizer_config.json", name);
}

static sl_status find_special(const sl_wordpiece *tok, const json_t *config, const char *key,
                              const char **name, int32_t *id) {
  int said;
  SL_TRY(read_name(config, key, name, &said));
  *id = sl_wordpiece_id(tok, *name, strlen(*name));
  if (*id < 0 && (said || strcmp(key, "unk_token") == 0)) {
    return sl_fail(SL_EFORMAT, "%s: the %s \"%.40s\" is not in the vocabulary", tok->where, key, *name);
  }
  return SL_OK;
}

static void fill_tables(sl_wordpiece *tok) {
  for (int c = 0; c < 256; c++) {
    tok->fold[c] = (uint8_t)(tok->lowercase && c >= 'A' && c <= 'Z' ? c + 32 : c);
    int space = c == ' ' || c == '\t' || c == '\n' || c == '\r';
    int slow = c < 32 || c >= 127;
    tok->classes[c] = space                            ? WP_SPACE
                      : slow                           ? WP_SLOW
                      : wp_is_punctuation((uint32_t)c) ? WP_PUNCTUATION
                                                       : WP_WORD;
  }
}

sl_status wp_finish(sl_wordpiece *tok, const json_t *config, const char *unk, wp_names *names) {
  for (int32_t i = 0; i < tok->size; i++) {
    if (tok->tokens[i].at == UINT32_MAX) {
      return sl_fail(SL_EFORMAT, "%s: no token has the id %d; the ids of %d tokens must be 0 to %d",
                     tok->where, i, tok->size, tok->size - 1);
    }
  }
  *names = (wp_names){ "[PAD]", unk, "[CLS]", "[SEP]", "[MASK]" };
  SL_TRY(find_special(tok, config, "pad_token", &names->pad, &tok->special.pad));
  SL_TRY(find_special(tok, config, "unk_token", &names->unk, &tok->special.unk));
  SL_TRY(find_special(tok, config, "cls_token", &names->cls, &tok->special.cls));
  SL_TRY(find_special(tok, config, "sep_token", &names->sep, &tok->special.sep));
  SL_TRY(find_special(tok, config, "mask_token", &names->mask, &tok->special.mask));
  finish_set(&tok->raw);
  finish_set(&tok->normalized);
  fill_tables(tok);
  return SL_OK;
}

static void free_set(wp_added_set *set) {
  for (size_t i = 0; i < set->count; i++) sl_mem_free(set->tokens[i].content);
  sl_mem_free(set->tokens);
}

void sl_wordpiece_free(sl_wordpiece *tok) {
  if (!tok) return;
  sl_mem_free(tok->where);
  sl_mem_free(tok->text);
  sl_mem_free(tok->tokens);
  sl_mem_free(tok->prefix);
  sl_mem_free(tok->decode_prefix);
  wp_trie_free(&tok->trie);
  free_set(&tok->raw);
  free_set(&tok->normalized);
  sl_mem_free(tok);
}
