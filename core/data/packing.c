/* The streaming packer; see packing.h. */
#include "packing.h"

#include <string.h>

#include "core/base/mem.h"
#include "wordpiece_impl.h"

enum { MAX_UNCUT_BYTES = 1 << 20, PART_BYTES = 1 << 16 };

struct sl_packer {
  const sl_wordpiece *tokenizer;
  sl_packer_options options;
  sl_special_ids special;

  char *text; /* of the current document, not tokenized yet */
  size_t text_bytes, text_capacity;
  size_t try_at; /* look for a cut when `text` has this many bytes; doubles on failure, so that looking stays
                    cheap */
  int64_t text_at; /* byte of the document where `text` starts */
  int64_t document;
  int document_started; /* it has a token already */

  sl_token_list tokens;     /* of one part */
  int32_t *stream;          /* joined tokens; the first `taken` are in contexts already */
  sl_token_source *sources; /* [count], only with options.sources */
  size_t count, capacity, source_capacity, taken;

  int any; /* the stream had a token: the next document needs a separator */
  int finished;
  sl_packer_stats stats;
};

sl_status sl_packer_create(const sl_wordpiece *tokenizer, const sl_packer_options *options, sl_packer **out) {
  *out = NULL;
  sl_special_ids special = sl_wordpiece_special(tokenizer);
  if (options->ctx_len < 3 || options->min_tail < 0) {
    return sl_fail(SL_EINVAL, "packing: ctx_len %d, min_tail %d; expected at least 3 and 0", options->ctx_len,
                   options->min_tail);
  }
  if (special.cls < 0 || special.sep < 0 || special.pad < 0) {
    return sl_fail(SL_EINVAL, "packing: the vocabulary lacks [CLS], [SEP] or [PAD]");
  }
  sl_packer *packer;
  SL_TRY(sl_mem_alloc(sizeof *packer, "a packer", (void **)&packer));
  packer->tokenizer = tokenizer;
  packer->options = *options;
  packer->special = special;
  packer->try_at = PART_BYTES;
  if (packer->options.min_tail == 0) {
    packer->options.min_tail =
        options->ctx_len - 2 < SL_PACK_MIN_TAIL ? options->ctx_len - 2 : SL_PACK_MIN_TAIL;
  }
  *out = packer;
  return SL_OK;
}

void sl_packer_free(sl_packer *packer) {
  if (!packer) return;
  sl_token_list_free(&packer->tokens);
  sl_mem_free(packer->text);
  sl_mem_free(packer->stream);
  sl_mem_free(packer->sources);
  sl_mem_free(packer);
}

static sl_status reserve(void **block, size_t *capacity, size_t count, size_t size, const char *what) {
  if (count <= *capacity) return SL_OK;
  size_t wanted = count + count / 2 + 256;
  SL_TRY(sl_mem_resize(block, wanted * size, what));
  *capacity = wanted;
  return SL_OK;
}

/* Drops what is in contexts already, then makes room for `extra` tokens. */
static sl_status make_room(sl_packer *p, size_t extra) {
  if (p->taken > 0) {
    size_t left = p->count - p->taken;
    if (left > 0) memmove(p->stream, p->stream + p->taken, left * sizeof *p->stream);
    if (left > 0 && p->options.sources) memmove(p->sources, p->sources + p->taken, left * sizeof *p->sources);
    p->count = left;
    p->taken = 0;
  }
  size_t needed = p->count + extra;
  SL_TRY(reserve((void **)&p->stream, &p->capacity, needed, sizeof *p->stream, "packed tokens"));
  if (!p->options.sources) return SL_OK;
  return reserve((void **)&p->sources, &p->source_capacity, needed, sizeof *p->sources, "token sources");
}

static void append(sl_packer *p, int32_t id, sl_token_source source) {
  if (p->options.sources) p->sources[p->count] = source;
  p->stream[p->count++] = id;
}

/* Tokenizes the first `bytes` of the waiting text. */
static sl_status tokenize(sl_packer *p, size_t bytes) {
  sl_token_list *list = &p->tokens;
  list->count = 0;
  SL_TRY(sl_wordpiece_encode(p->tokenizer, p->text, bytes, p->options.sources ? SL_ENCODE_OFFSETS : 0, list));
  SL_TRY(make_room(p, list->count + 1));
  if (list->count > 0 && !p->document_started) {
    if (p->any) append(p, p->special.sep, (sl_token_source){ .document = -1 });
    p->any = p->document_started = 1;
  }
  for (size_t i = 0; i < list->count; i++) {
    sl_token_source source = { .document = p->document };
    if (p->options.sources) {
      source.start = p->text_at + list->starts[i];
      source.end = p->text_at + list->ends[i];
    }
    append(p, list->ids[i], source);
  }
  p->stats.tokens += (int64_t)list->count;
  p->text_at += (int64_t)bytes;
  p->text_bytes -= bytes;
  if (p->text_bytes > 0) memmove(p->text, p->text + bytes, p->text_bytes);
  return SL_OK;
}

/* The last start of a character in the text's last bytes, so that no character is cut in two. */
static size_t character_cut(const char *text, size_t bytes) {
  size_t cut = bytes;
  while (cut > 0 && bytes - cut < 4 && ((uint8_t)text[cut - 1] & 0xc0) == 0x80) cut--;
  return cut > 1 ? cut - 1 : bytes;
}

static void end_document(sl_packer *p) {
  p->document++;
  p->stats.documents++;
  p->document_started = 0;
  p->text_at = 0;
  p->try_at = PART_BYTES;
}

/* Takes one part of at most 1 MiB. */
static sl_status push_part(sl_packer *p, const char *text, size_t bytes) {
  SL_TRY(reserve((void **)&p->text, &p->text_capacity, p->text_bytes + bytes, 1, "a document"));
  if (bytes > 0) memcpy(p->text + p->text_bytes, text, bytes);
  p->text_bytes += bytes;
  if (p->text_bytes < p->try_at) return SL_OK;
  size_t cut = sl_wordpiece_safe_cut(p->tokenizer, p->text, p->text_bytes);
  if (cut == 0 && p->text_bytes >= MAX_UNCUT_BYTES) cut = character_cut(p->text, p->text_bytes);
  p->try_at = cut > 0 ? PART_BYTES : p->text_bytes * 2;
  return cut > 0 ? tokenize(p, cut) : SL_OK;
}

sl_status sl_packer_push(sl_packer *packer, const char *text, size_t bytes, int last) {
  if (packer->finished) return sl_fail(SL_ESTATE, "packing: text after the end of the stream");
  while (bytes > 0) {
    size_t now = bytes < MAX_UNCUT_BYTES ? bytes : MAX_UNCUT_BYTES;
    SL_TRY(push_part(packer, text, now));
    text += now;
    bytes -= now;
  }
  if (!last) return SL_OK;
  if (packer->text_bytes > 0) SL_TRY(tokenize(packer, packer->text_bytes));
  end_document(packer);
  return SL_OK;
}

sl_status sl_packer_finish(sl_packer *packer) {
  if (packer->finished) return SL_OK;
  if (packer->text_bytes > 0 || packer->text_at > 0) SL_TRY(sl_packer_push(packer, "", 0, 1));
  packer->finished = 1;
  return SL_OK;
}

sl_status sl_packer_next(sl_packer *p, int32_t *ids, sl_token_source *sources, int32_t *tokens) {
  *tokens = 0;
  if (sources && !p->options.sources) {
    return sl_fail(SL_EINVAL, "packing: sources are wanted, but the packer was created without them");
  }
  size_t ctx_len = (size_t)p->options.ctx_len, waiting = p->count - p->taken, size = ctx_len - 2;
  if (waiting < size) {
    if (!p->finished || waiting == 0) return SL_OK;
    if (waiting < (size_t)p->options.min_tail) {
      p->stats.dropped += (int64_t)waiting;
      p->taken = p->count;
      return SL_OK;
    }
    size = waiting;
  }
  ids[0] = p->special.cls;
  memcpy(ids + 1, p->stream + p->taken, size * sizeof *ids);
  ids[size + 1] = p->special.sep;
  for (size_t i = size + 2; i < ctx_len; i++) ids[i] = p->special.pad;
  if (sources) {
    for (size_t i = 0; i < ctx_len; i++) sources[i] = (sl_token_source){ .document = -1 };
    memcpy(sources + 1, p->sources + p->taken, size * sizeof *sources);
  }
  p->taken += size;
  *tokens = (int32_t)size + 2;
  return SL_OK;
}

sl_packer_stats sl_packer_get_stats(const sl_packer *packer) { return packer->stats; }
