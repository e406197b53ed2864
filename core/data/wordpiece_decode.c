/* Ids to text, by the rules of the `tokenizers` package's WordPiece decoder; see wordpiece.h. */
#include <string.h>

#include "core/base/mem.h"
#include "wordpiece_impl.h"

typedef struct {
  char *data;
  size_t count, capacity;
} buffer;

static sl_status append(buffer *b, const char *data, size_t bytes) {
  if (b->count + bytes + 1 > b->capacity) {
    size_t capacity = (b->count + bytes + 1) * 2;
    SL_TRY(sl_mem_resize((void **)&b->data, capacity, "decoded text"));
    b->capacity = capacity;
  }
  if (bytes > 0) memcpy(b->data + b->count, data, bytes);
  b->count += bytes;
  b->data[b->count] = '\0';
  return SL_OK;
}

/* Replaces each `from` in data[begin..) by the shorter `to`. */
static void replace(buffer *b, size_t begin, const char *from, const char *to) {
  size_t from_bytes = strlen(from), to_bytes = strlen(to), out = begin;
  for (size_t at = begin; at < b->count;) {
    if (b->count - at >= from_bytes && memcmp(b->data + at, from, from_bytes) == 0) {
      memcpy(b->data + out, to, to_bytes);
      out += to_bytes;
      at += from_bytes;
    } else {
      b->data[out++] = b->data[at++];
    }
  }
  b->count = out;
}

/* The package cleans token by token, in this order. */
static void clean_up(buffer *b, size_t begin) {
  static const char *const rules[][2] = {
    { " .", "." },   { " ?", "?" },     { " !", "!" },     { " ,", "," },
    { " ' ", "'" },  { " n't", "n't" }, { " 'm", "'m" },   { " do not", " don't" },
    { " 's", "'s" }, { " 've", "'ve" }, { " 're", "'re" },
  };
  for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) replace(b, begin, rules[i][0], rules[i][1]);
}

/* An id's string; an added token that is sought in normalised text gives its normalised form, as in the
 * package. */
static const char *string_of(const sl_wordpiece *tok, int32_t id, size_t *bytes) {
  for (size_t i = 0; i < tok->normalized.count; i++) {
    const wp_added *added = &tok->normalized.tokens[i];
    if (added->id == id) return *bytes = added->bytes, added->content;
  }
  *bytes = tok->tokens[id].bytes;
  return tok->text + tok->tokens[id].at;
}

static sl_status append_token(const sl_wordpiece *tok, int32_t id, int first, buffer *out) {
  size_t bytes;
  const char *text = string_of(tok, id, &bytes);
  size_t begin = out->count, prefix = strlen(tok->decode_prefix);
  if (!first) {
    if (tok->has_decoder && bytes >= prefix && memcmp(text, tok->decode_prefix, prefix) == 0) {
      text += prefix;
      bytes -= prefix;
    } else {
      SL_TRY(append(out, " ", 1));
    }
  }
  SL_TRY(append(out, text, bytes));
  if (tok->has_decoder && tok->cleanup) clean_up(out, begin);
  return SL_OK;
}

sl_status sl_wordpiece_decode(const sl_wordpiece *tok, const int32_t *ids, size_t count, int skip_special,
                              char **text, size_t *bytes) {
  *text = NULL;
  *bytes = 0;
  buffer out = { 0 };
  sl_status status = append(&out, "", 0);
  int first = 1;
  for (size_t i = 0; status == SL_OK && i < count; i++) {
    if (ids[i] < 0 || ids[i] >= tok->size || (skip_special && sl_wordpiece_is_special(tok, ids[i]))) continue;
    status = append_token(tok, ids[i], first, &out);
    first = 0;
  }
  if (status != SL_OK) {
    sl_mem_free(out.data);
    return status;
  }
  out.data[out.count] = '\0';
  *text = out.data;
  *bytes = out.count;
  return SL_OK;
}
