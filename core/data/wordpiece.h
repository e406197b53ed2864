/* WordPiece: text to token ids and back, equal to the `tokenizers` package behind BertTokenizerFast.
 *
 * Text is UTF-8. Bytes that are not are read as U+FFFD, one for each maximal ill-formed part, which is
 * what Python's bytes.decode("utf-8", "replace") hands to the package (clean_text then drops them).
 * Steps: added tokens are cut out of the raw text; the rest is cleaned, CJK characters set apart,
 * accents stripped, lower-cased (each as the files say), cut at white space and punctuation; words
 * become the longest pieces from the left, or [UNK].
 *
 * A loaded tokenizer never changes: any number of threads may use it at once. */
#ifndef SL_WORDPIECE_H
#define SL_WORDPIECE_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

typedef struct sl_wordpiece sl_wordpiece;

/* Loads tokenizer.json of a folder, or else vocab.txt; tokenizer_config.json adds the special tokens'
 * names and (for the Bert classes, as transformers does) do_lower_case, strip_accents and
 * tokenize_chinese_chars. Anything that is not a BERT tokenizer is refused by the name of what was
 * found. The vocabulary must be free of duplicates and its ids must be 0 .. n-1. */
sl_status sl_wordpiece_load(const char *folder, sl_wordpiece **out);
/* The same from memory; `config` may be NULL (no tokenizer_config.json). `where` starts the messages. */
sl_status sl_wordpiece_from_json(const char *json, size_t bytes, const char *config, size_t config_bytes,
                                 const char *where, sl_wordpiece **out);
sl_status sl_wordpiece_from_vocab(const char *vocab, size_t bytes, const char *config, size_t config_bytes,
                                  const char *where, sl_wordpiece **out);
void sl_wordpiece_free(sl_wordpiece *tokenizer);

/* Pieces and added tokens together. */
int32_t sl_wordpiece_size(const sl_wordpiece *tokenizer);
/* The exact string of an id, NUL-terminated, and its length if `bytes` is not NULL; NULL for an id out of
 * range. */
const char *sl_wordpiece_token(const sl_wordpiece *tokenizer, int32_t id, size_t *bytes);
/* The id of an exact string; -1 when there is none. */
int32_t sl_wordpiece_id(const sl_wordpiece *tokenizer, const char *token, size_t bytes);

/* -1 for a special token that the vocabulary lacks (unk is always there). */
typedef struct {
  int32_t pad, unk, cls, sep, mask;
} sl_special_ids;
sl_special_ids sl_wordpiece_special(const sl_wordpiece *tokenizer);
/* Whether an id is one of these five or an added token marked special. */
int sl_wordpiece_is_special(const sl_wordpiece *tokenizer, int32_t id);

/* A growing list of tokens. Zero it before the first use; encode appends. */
typedef struct {
  int32_t *ids;
  uint32_t *starts, *ends; /* byte range of each token in the text; NULL unless asked for */
  size_t count, capacity, offset_capacity;
} sl_token_list;
void sl_token_list_free(sl_token_list *list);

enum {
  SL_ENCODE_OFFSETS = 1, /* also byte ranges; [CLS] and [SEP] get 0, 0 */
  SL_ENCODE_SPECIAL = 2  /* [CLS] in front and [SEP] behind */
};
/* Appends the tokens of `text` to `list`. SL_EINVAL above 2 GiB (cut the text), SL_ENOMEM. A list is used
 * either always or never with SL_ENCODE_OFFSETS. */
sl_status sl_wordpiece_encode(const sl_wordpiece *tokenizer, const char *text, size_t bytes, unsigned flags,
                              sl_token_list *list);

/* The largest cut <= bytes such that encoding text[0, cut) and text[cut, bytes) apart gives what encoding
 * both together gives; 0 when there is none. For streams. */
size_t sl_wordpiece_safe_cut(const sl_wordpiece *tokenizer, const char *text, size_t bytes);

/* The text of ids by the rules of the package's WordPiece decoder, NUL-terminated; sl_mem_free(*text). Ids
 * out of range are skipped, special ones too if skip_special. */
sl_status sl_wordpiece_decode(const sl_wordpiece *tokenizer, const int32_t *ids, size_t count,
                              int skip_special, char **text, size_t *bytes);

#endif
