/* What loading shares between its two C files; not for others. */
#ifndef SL_WORDPIECE_LOAD_H
#define SL_WORDPIECE_LOAD_H

#include <jansson.h>

#include "wordpiece_impl.h"

/* The strings of the special tokens; they live in the configuration or are literals. */
typedef struct {
  const char *pad, *unk, *cls, *sep, *mask;
} wp_names;

/* Takes do_lower_case, strip_accents and tokenize_chinese_chars from tokenizer_config.json: always for a
 * vocab.txt, for a tokenizer.json only if the class is one of the BERT family, as transformers does. */
sl_status wp_config_flags(sl_wordpiece *tokenizer, const json_t *config, int always);

/* Puts a token (id and flags set) into the set of its stage; its string is that of its id. */
sl_status wp_add_token(sl_wordpiece *tokenizer, wp_added *token);
/* Adds the five special tokens as transformers does when nothing else is said. */
sl_status wp_add_special(sl_wordpiece *tokenizer);

/* Checks that every id is set, finds the special ids, sorts the added tokens and fills the byte tables. */
sl_status wp_finish(sl_wordpiece *tokenizer, const json_t *config, const char *unk, wp_names *names);

#endif
