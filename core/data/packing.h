/* Packing: a stream of documents becomes contexts of equal length for BERT.
 *
 * The rule: documents are tokenized without special tokens and joined with one [SEP] between two (documents
 * without tokens leave no trace). The stream is cut into pieces of ctx_len - 2 tokens, each becomes
 * [CLS] piece [SEP]. The last, shorter piece is filled with [PAD] behind its [SEP] (attention mask 0 there),
 * or dropped when it has fewer than min_tail tokens; a piece never ends or starts on purpose at a document.
 *
 * Streaming: what is held is one pushed part, its tokens and the unfinished context, so a corpus of any
 * length passes in bounded memory. */
#ifndef SL_PACKING_H
#define SL_PACKING_H

#include <stddef.h>
#include <stdint.h>

#include "wordpiece.h"

enum { SL_PACK_MIN_TAIL = 8 };

typedef struct {
  int32_t ctx_len;  /* >= 3, special tokens included */
  int32_t min_tail; /* 0: SL_PACK_MIN_TAIL, or ctx_len - 2 if that is less */
  int sources;      /* also where each token comes from */
} sl_packer_options;

/* Where a token comes from: the document's number (from 0, in order of pushing, empty ones counted) and the
 * byte range in it. Special tokens that the packer put there have document -1. */
typedef struct {
  int64_t document, start, end;
} sl_token_source;

typedef struct sl_packer sl_packer;

/* The tokenizer must have [CLS], [SEP] and [PAD], and must outlive the packer. */
sl_status sl_packer_create(const sl_wordpiece *tokenizer, const sl_packer_options *options, sl_packer **out);
void sl_packer_free(sl_packer *packer);

/* Appends text to the current document; `last` ends it. A long document may come in parts cut anywhere:
 * the packer tokenizes up to the last safe cut (sl_wordpiece_safe_cut) and keeps the rest. Text without any
 * safe cut for 1 MiB is cut there, at a character. After an error the packer can only be freed. */
sl_status sl_packer_push(sl_packer *packer, const char *text, size_t bytes, int last);

/* No more text: ends the document and releases the last, short piece. Pushing afterwards is SL_ESTATE. */
sl_status sl_packer_finish(sl_packer *packer);

/* Takes the next complete context: ids [ctx_len], sources [ctx_len] (NULL allowed; SL_EINVAL without
 * options.sources). *tokens is ctx_len, or fewer for the padded last one (the rest of ids is [PAD]), or 0
 * when more text is needed. */
sl_status sl_packer_next(sl_packer *packer, int32_t *ids, sl_token_source *sources, int32_t *tokens);

/* So far: documents ended, text tokens packed or waiting, tokens dropped with a short tail. */
typedef struct {
  int64_t documents, tokens, dropped;
} sl_packer_stats;
sl_packer_stats sl_packer_get_stats(const sl_packer *packer);

#endif
