/* Encoding and decoding; see wordpiece.h. Loading is in wordpiece_load.c. */
#include "wordpiece.h"

#include <string.h>

#include "core/base/mem.h"
#include "wordpiece_impl.h"

int32_t sl_wordpiece_size(const sl_wordpiece *tok) { return tok->size; }
sl_special_ids sl_wordpiece_special(const sl_wordpiece *tok) { return tok->special; }

const char *sl_wordpiece_token(const sl_wordpiece *tok, int32_t id, size_t *bytes) {
  if (id < 0 || id >= tok->size) return NULL;
  if (bytes) *bytes = tok->tokens[id].bytes;
  return tok->text + tok->tokens[id].at;
}

/* The i-th added token of both stages, NULL beyond the last. */
static const wp_added *added_at(const sl_wordpiece *tok, size_t i) {
  if (i < tok->raw.count) return &tok->raw.tokens[i];
  i -= tok->raw.count;
  return i < tok->normalized.count ? &tok->normalized.tokens[i] : NULL;
}

static const wp_added *added_of(const sl_wordpiece *tok, int32_t id) {
  const wp_added *added;
  for (size_t i = 0; (added = added_at(tok, i)) != NULL; i++) {
    if (added->id == id) return added;
  }
  return NULL;
}

int32_t sl_wordpiece_id(const sl_wordpiece *tok, const char *token, size_t bytes) {
  size_t length;
  int32_t id = wp_trie_longest(&tok->trie, WP_START, (const uint8_t *)token, bytes, tok->identity, &length);
  if (id >= 0 && length == bytes) return id;
  const wp_added *added;
  for (size_t i = 0; (added = added_at(tok, i)) != NULL; i++) {
    const struct wp_token *t = &tok->tokens[added->id];
    if (t->bytes == bytes && memcmp(tok->text + t->at, token, bytes) == 0) return added->id;
  }
  return -1;
}

int sl_wordpiece_is_special(const sl_wordpiece *tok, int32_t id) {
  const sl_special_ids *s = &tok->special;
  if (id < 0) return 0;
  if (id == s->pad || id == s->unk || id == s->cls || id == s->sep || id == s->mask) return 1;
  const wp_added *added = added_of(tok, id);
  return added && added->special;
}

void sl_token_list_free(sl_token_list *list) {
  sl_mem_free(list->ids);
  sl_mem_free(list->starts);
  sl_mem_free(list->ends);
  *list = (sl_token_list){ 0 };
}

/* One call of encode: where it is and its scratch. */
typedef struct {
  const sl_wordpiece *tok;
  const uint8_t *text;
  size_t bytes;
  int offsets;
  sl_token_list *list;
  wp_chars chars, scratch;
  uint8_t *folded;      /* UTF-8 of chars */
  uint32_t *char_of;    /* index in chars of each byte of folded */
  size_t folded_capacity;
} encoder;

static sl_status grow(sl_token_list *list, int offsets) {
  size_t capacity = list->capacity ? list->capacity * 2 : 256;
  if (list->count == list->capacity) {
    SL_TRY(sl_mem_resize((void **)&list->ids, capacity * sizeof *list->ids, "token ids"));
    list->capacity = capacity;
  }
  if (offsets && list->offset_capacity < list->capacity) {
    SL_TRY(sl_mem_resize((void **)&list->starts, list->capacity * sizeof *list->starts, "token offsets"));
    SL_TRY(sl_mem_resize((void **)&list->ends, list->capacity * sizeof *list->ends, "token offsets"));
    list->offset_capacity = list->capacity;
  }
  return SL_OK;
}

static sl_status push(encoder *e, int32_t id, size_t start, size_t end) {
  sl_token_list *list = e->list;
  if (list->count == list->capacity || (e->offsets && list->count >= list->offset_capacity)) {
    SL_TRY(grow(list, e->offsets));
  }
  list->ids[list->count] = id;
  if (e->offsets) {
    list->starts[list->count] = (uint32_t)start;
    list->ends[list->count] = (uint32_t)end;
  }
  list->count++;
  return SL_OK;
}

/* A word in normalised bytes, and how its bytes map to the raw text. */
typedef struct {
  const uint8_t *bytes;
  size_t length, chars;
  const uint8_t *map;      /* applied to each byte: ASCII lower case or identity */
  const uint32_t *char_of; /* of each byte; NULL: byte i is raw byte base + i */
  size_t base;
} word;

static sl_status push_range(encoder *e, const word *w, int32_t id, size_t from, size_t to) {
  if (!w->char_of) return push(e, id, w->base + from, w->base + to);
  return push(e, id, e->chars.chars[w->char_of[from]].start, e->chars.chars[w->char_of[to - 1]].end);
}

/* Longest pieces from the left; the whole word is unk when one step finds none. */
static sl_status encode_word(encoder *e, const word *w) {
  const sl_wordpiece *tok = e->tok;
  size_t before = e->list->count, at = 0;
  if ((uint64_t)w->chars <= (uint64_t)tok->max_chars) {
    while (at < w->length) {
      size_t length = 0;
      int32_t id = wp_trie_longest(&tok->trie, at == 0 ? WP_START : WP_CONTINUE, w->bytes + at,
                                   w->length - at, w->map, &length);
      if (id < 0) break;
      SL_TRY(push_range(e, w, id, at, at + length));
      at += length;
    }
    if (at == w->length) return SL_OK;
  }
  e->list->count = before;
  return push_range(e, w, tok->special.unk, 0, w->length);
}

/* Raw text without white space, all ASCII and no control characters: normalising is lower-casing. */
static sl_status encode_ascii(encoder *e, size_t from, size_t to) {
  const sl_wordpiece *tok = e->tok;
  while (from < to) {
    size_t end = from;
    while (end < to && tok->classes[e->text[end]] == WP_WORD) end++;
    if (end == from) end++; /* punctuation is a word of one character */
    word w = {
      .bytes = e->text + from, .length = end - from, .chars = end - from, .map = tok->fold, .base = from
    };
    SL_TRY(encode_word(e, &w));
    from = end;
  }
  return SL_OK;
}

/* Writes e->chars as UTF-8. */
static sl_status render(encoder *e, size_t *length) {
  size_t needed = e->chars.count * 4;
  if (needed > e->folded_capacity) {
    SL_TRY(sl_mem_resize((void **)&e->folded, needed, "normalised text"));
    SL_TRY(sl_mem_resize((void **)&e->char_of, needed * sizeof *e->char_of, "normalised text"));
    e->folded_capacity = needed;
  }
  size_t at = 0;
  for (size_t i = 0; i < e->chars.count; i++) {
    size_t bytes = wp_encode(e->chars.chars[i].code, e->folded + at);
    for (size_t k = 0; k < bytes; k++) e->char_of[at + k] = (uint32_t)i;
    at += bytes;
  }
  *length = at;
  return SL_OK;
}

static uint32_t folded_at(const encoder *e, size_t at) { return e->chars.chars[e->char_of[at]].code; }

static size_t folded_bytes(uint32_t code) {
  return code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
}

/* Cuts folded[from, to) at white space and around punctuation. */
static sl_status encode_folded(encoder *e, size_t from, size_t to) {
  while (from < to) {
    uint32_t code = folded_at(e, from);
    size_t end = from + folded_bytes(code), chars = 1;
    if (wp_is_space(code)) {
      from = end;
      continue;
    }
    if (!wp_is_punctuation(code)) {
      while (end < to && !wp_is_space(code = folded_at(e, end)) && !wp_is_punctuation(code)) {
        end += folded_bytes(code);
        chars++;
      }
    }
    word w = { .bytes = e->folded + from, .length = end - from, .chars = chars, .map = e->tok->identity,
               .char_of = e->char_of + from };
    SL_TRY(encode_word(e, &w));
    from = end;
  }
  return SL_OK;
}

/* Any raw text [from, to): normalise, cut out the added tokens that are sought in normalised text, encode the
 * rest. */
static sl_status encode_slow(encoder *e, size_t from, size_t to) {
  size_t length;
  SL_TRY(wp_normalize(e->tok, e->text, from, to, &e->chars, &e->scratch));
  SL_TRY(render(e, &length));
  size_t used = 0, next = 0;
  wp_match match;
  while (wp_added_next(&e->tok->normalized, e->folded, length, next, used, &match)) {
    SL_TRY(encode_folded(e, used, match.start));
    if (match.stop > match.start) {
      SL_TRY(push(e, match.token->id, e->chars.chars[e->char_of[match.start]].start,
                  e->chars.chars[e->char_of[match.stop - 1]].end));
    }
    used = match.stop;
    next = match.resume;
  }
  return encode_folded(e, used, length);
}

/* Text between added tokens. ASCII white space always separates, so runs between it can be treated apart,
 * unless an added token is sought in the normalised text (it may contain spaces). */
static sl_status encode_piece(encoder *e, size_t from, size_t to) {
  if (e->tok->normalized.count > 0) return from < to ? encode_slow(e, from, to) : SL_OK;
  const uint8_t *classes = e->tok->classes;
  while (from < to) {
    if (classes[e->text[from]] == WP_SPACE) {
      from++;
      continue;
    }
    size_t end = from;
    int slow = 0;
    for (; end < to && classes[e->text[end]] != WP_SPACE; end++) slow |= classes[e->text[end]] == WP_SLOW;
    SL_TRY(slow ? encode_slow(e, from, end) : encode_ascii(e, from, end));
    from = end;
  }
  return SL_OK;
}

static sl_status encode_text(encoder *e) {
  size_t used = 0, next = 0;
  wp_match match;
  while (wp_added_next(&e->tok->raw, e->text, e->bytes, next, used, &match)) {
    SL_TRY(encode_piece(e, used, match.start));
    SL_TRY(push(e, match.token->id, match.start, match.stop));
    used = match.stop;
    next = match.resume;
  }
  return encode_piece(e, used, e->bytes);
}

static sl_status encode_wrapped(encoder *e, unsigned flags) {
  const sl_special_ids *special = &e->tok->special;
  int wrap = (flags & SL_ENCODE_SPECIAL) != 0;
  if (wrap && (special->cls < 0 || special->sep < 0)) {
    return sl_fail(SL_EINVAL, "%s: the vocabulary has no [CLS] or no [SEP]", e->tok->where);
  }
  if (wrap) SL_TRY(push(e, special->cls, 0, 0));
  SL_TRY(encode_text(e));
  return wrap ? push(e, special->sep, 0, 0) : SL_OK;
}

sl_status sl_wordpiece_encode(const sl_wordpiece *tok, const char *text, size_t bytes, unsigned flags,
                              sl_token_list *list) {
  if (bytes > INT32_MAX) {
    return sl_fail(SL_EINVAL,
                   "cannot encode %zu bytes at once, at most 2^31 - 1; cut the text into documents", bytes);
  }
  encoder e = { .tok = tok, .text = (const uint8_t *)text, .bytes = bytes, .list = list,
                .offsets = (flags & SL_ENCODE_OFFSETS) != 0 };
  size_t before = list->count;
  sl_status status = encode_wrapped(&e, flags);
  if (status != SL_OK) list->count = before;
  sl_mem_free(e.chars.chars);
  sl_mem_free(e.scratch.chars);
  sl_mem_free(e.folded);
  sl_mem_free(e.char_of);
  return status;
}

static int blocks_cuts(const wp_added_set *set) {
  for (size_t i = 0; i < set->count; i++) {
    const wp_added *token = &set->tokens[i];
    if (token->rstrip) return 1;
    for (size_t at = 0; at < token->bytes; at++) {
      if (wp_space_after((const uint8_t *)token->content, at, token->bytes) > at) return 1;
    }
  }
  return 0;
}

size_t sl_wordpiece_safe_cut(const sl_wordpiece *tok, const char *text, size_t bytes) {
  if (blocks_cuts(&tok->raw) || blocks_cuts(&tok->normalized)) return 0;
  const uint8_t *at = (const uint8_t *)text;
  while (bytes > 0 && tok->classes[at[bytes - 1]] != WP_SPACE) bytes--;
  return wp_space_before(at, bytes); /* in front of the white space: a token may strip what is left of it */
}
