/* UTF-8 and Unicode classes as the `tokenizers` package sees them; see wordpiece_impl.h. */
#include <string.h>
#include <utf8proc.h>

#include "core/base/mem.h"
#include "wordpiece_impl.h"
#include "wordpiece_tables.h"

#define COUNT(table) (sizeof(table) / sizeof(table)[0])

static int in_ranges(const sl_code_range *ranges, size_t count, uint32_t code) {
  size_t low = 0, high = count;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (code > ranges[middle].last) low = middle + 1;
    else high = middle;
  }
  return low < count && code >= ranges[low].first;
}

size_t wp_decode(const uint8_t *text, size_t bytes, uint32_t *code) {
  uint8_t lead = text[0];
  if (lead < 0x80) return *code = lead, 1;
  *code = 0xfffd;
  size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4) return 1;
  /* The second byte's bounds keep out overlong forms, surrogates and codes above U+10FFFF (Unicode table
   * 3-7). */
  uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  uint32_t value = lead & (0x7fu >> length);
  for (size_t i = 1; i < length; i++) {
    if (i >= bytes || text[i] < low || text[i] > high) return i;
    value = value << 6 | (text[i] & 0x3fu);
    low = 0x80;
    high = 0xbf;
  }
  *code = value;
  return length;
}

size_t wp_encode(uint32_t code, uint8_t out[4]) {
  if (code < 0x80) return out[0] = (uint8_t)code, 1;
  size_t length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  for (size_t i = length - 1; i > 0; i--, code >>= 6) out[i] = (uint8_t)(0x80u | (code & 0x3fu));
  out[0] = (uint8_t)((0xf00u >> length) | code);
  return length;
}

int wp_is_utf8(const uint8_t *text, size_t bytes) {
  for (size_t i = 0; i < bytes;) {
    uint32_t code;
    size_t length = wp_decode(text + i, bytes - i, &code);
    if (code == 0xfffd && !(length == 3 && memcmp(text + i, "\xef\xbf\xbd", 3) == 0)) return 0;
    i += length;
  }
  return 1;
}

int wp_is_space(uint32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
  return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
         c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

int wp_is_punctuation(uint32_t c) {
  if (c < 0x80)
    return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) || (c >= 123 && c <= 126);
  return in_ranges(punctuation_ranges, COUNT(punctuation_ranges), c);
}

/* Alphabetic (letters, letter numbers, the circled ones), marks, decimal digits, connectors, the two joiners.
 */
int wp_is_word(uint32_t c) {
  switch (utf8proc_category((utf8proc_int32_t)c)) {
  case UTF8PROC_CATEGORY_LU: case UTF8PROC_CATEGORY_LL: case UTF8PROC_CATEGORY_LT: case UTF8PROC_CATEGORY_LM:
  case UTF8PROC_CATEGORY_LO: case UTF8PROC_CATEGORY_NL: case UTF8PROC_CATEGORY_MN: case UTF8PROC_CATEGORY_MC:
  case UTF8PROC_CATEGORY_ME: case UTF8PROC_CATEGORY_ND: case UTF8PROC_CATEGORY_PC:
    return 1;
  default:
    return c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) ||
           (c >= 0x1f150 && c <= 0x1f169) || (c >= 0x1f170 && c <= 0x1f189) ||
           in_ranges(new_word_ranges, COUNT(new_word_ranges), c);
  }
}

size_t wp_space_before(const uint8_t *text, size_t bytes) {
  for (;;) {
    size_t step = 1;
    uint32_t code = 0;
    while (step < 3 && step < bytes && (text[bytes - step] & 0xc0) == 0x80) step++;
    if (bytes == 0 || wp_decode(text + bytes - step, step, &code) != step || !wp_is_space(code)) return bytes;
    bytes -= step;
  }
}

size_t wp_space_after(const uint8_t *text, size_t from, size_t bytes) {
  while (from < bytes) {
    uint32_t code;
    size_t length = wp_decode(text + from, bytes - from, &code);
    if (!wp_is_space(code)) break;
    from += length;
  }
  return from;
}

static int is_dropped(uint32_t c) {
  if (c < 0x80) return (c < 32 && c != '\t' && c != '\n' && c != '\r') || c == 127;
  return in_ranges(dropped_ranges, COUNT(dropped_ranges), c);
}

static int is_chinese(uint32_t c) {
  return (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) || (c >= 0x20000 && c <= 0x2a6df) ||
         (c >= 0x2a700 && c <= 0x2b73f) || (c >= 0x2b740 && c <= 0x2b81f) || (c >= 0x2b920 && c <= 0x2ceaf) ||
         (c >= 0xf900 && c <= 0xfaff) || (c >= 0x2f800 && c <= 0x2fa1f);
}

static uint32_t lower(uint32_t c) {
  if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + 32 : c;
  if (c >= lower_ranges[0].first) {
    for (size_t i = 0; i < COUNT(lower_ranges); i++) {
      if (c >= lower_ranges[i].first && c <= lower_ranges[i].last)
        return c + (uint32_t)lower_ranges[i].distance;
    }
  }
  return (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
}

static sl_status push(wp_chars *list, uint32_t code, uint32_t start, uint32_t end) {
  if (list->count == list->capacity) {
    size_t capacity = list->capacity ? list->capacity * 2 : 64;
    SL_TRY(sl_mem_resize((void **)&list->chars, capacity * sizeof *list->chars, "normalised text"));
    list->capacity = capacity;
  }
  list->chars[list->count++] = (wp_char){ .code = code, .start = start, .end = end };
  return SL_OK;
}

/* Decodes, cleans and sets CJK characters apart. */
static sl_status clean(const sl_wordpiece *tok, const uint8_t *text, size_t from, size_t to, wp_chars *out) {
  out->count = 0;
  for (size_t at = from; at < to;) {
    uint32_t code, start = (uint32_t)at;
    at += wp_decode(text + at, to - at, &code);
    uint32_t end = (uint32_t)at;
    if (tok->clean_text) {
      if (is_dropped(code)) continue;
      if (wp_is_space(code)) code = ' ';
    }
    int apart = tok->chinese && is_chinese(code);
    if (apart) SL_TRY(push(out, ' ', start, end));
    SL_TRY(push(out, code, start, end));
    if (apart) SL_TRY(push(out, ' ', start, end));
  }
  return SL_OK;
}

/* Stable, by combining class; counting sort, because a text may be one long run of marks. */
static void sort_marks(wp_char *chars, size_t count, wp_char *scratch) {
  if (count < 2) return;
  size_t begin[257] = { 0 };
  for (size_t i = 0; i < count; i++) begin[chars[i].combining + 1]++;
  for (int k = 1; k < 257; k++) begin[k] += begin[k - 1];
  for (size_t i = 0; i < count; i++) scratch[begin[chars[i].combining]++] = chars[i];
  memcpy(chars, scratch, count * sizeof *chars);
}

static sl_status decompose(const wp_chars *in, wp_chars *out) {
  out->count = 0;
  for (size_t i = 0; i < in->count; i++) {
    wp_char c = in->chars[i];
    utf8proc_int32_t parts[8] = { (utf8proc_int32_t)c.code };
    utf8proc_ssize_t n = 1;
    if (c.code >= 0xc0 && !in_ranges(undecomposed_ranges, COUNT(undecomposed_ranges), c.code)) {
      int boundary = 0;
      n = utf8proc_decompose_char(parts[0], parts, 8, UTF8PROC_DECOMPOSE, &boundary);
    }
    for (utf8proc_ssize_t k = 0; k < n && k < 8; k++) {
      SL_TRY(push(out, (uint32_t)parts[k], c.start, c.end));
      wp_char *last = &out->chars[out->count - 1];
      last->inserted = k > 0;
      if (last->code >= 0x300 && in_ranges(nonstarter_ranges, COUNT(nonstarter_ranges), last->code)) {
        last->combining = (uint8_t)utf8proc_get_property(parts[k])->combining_class;
      }
    }
  }
  return SL_OK;
}

/* Orders marks, then gives each character its place in the raw text the way the package does: in output order
 * each first part takes the next source character, each further part shares the one before it. */
static sl_status order_and_align(const wp_chars *in, wp_chars *out) {
  sl_status status = SL_OK;
  wp_char *scratch = NULL;
  size_t room = 0;
  for (size_t i = 0; status == SL_OK && i < out->count; i++) {
    size_t end = i;
    while (end < out->count && out->chars[end].combining != 0) end++;
    if (end - i < 2) continue;
    if (end - i > room) {
      room = end - i;
      status = sl_mem_resize((void **)&scratch, room * sizeof *scratch, "normalised text");
    }
    if (status == SL_OK) sort_marks(out->chars + i, end - i, scratch);
    i = end - 1;
  }
  sl_mem_free(scratch);
  size_t source = 0;
  for (size_t i = 0; i < out->count; i++) {
    const wp_char *from =
        out->chars[i].inserted && source > 0 ? &in->chars[source - 1] : &in->chars[source++];
    out->chars[i].start = from->start;
    out->chars[i].end = from->end;
  }
  return status;
}

static void drop_marks(wp_chars *text) {
  size_t kept = 0;
  for (size_t i = 0; i < text->count; i++) {
    uint32_t code = text->chars[i].code;
    if (code < 0x300 || !in_ranges(mark_ranges, COUNT(mark_ranges), code))
      text->chars[kept++] = text->chars[i];
  }
  text->count = kept;
}

static sl_status lowercase(const wp_chars *in, wp_chars *out) {
  out->count = 0;
  for (size_t i = 0; i < in->count; i++) {
    const wp_char *c = &in->chars[i];
    SL_TRY(push(out, c->code == 0x130 ? 'i' : lower(c->code), c->start, c->end));
    if (c->code == 0x130)
      SL_TRY(push(out, 0x307, c->start, c->end)); /* the one letter whose small form has two parts */
  }
  return SL_OK;
}

static void swap(wp_chars *a, wp_chars *b) {
  wp_chars held = *a;
  *a = *b;
  *b = held;
}

sl_status wp_normalize(const sl_wordpiece *tok, const uint8_t *text, size_t from, size_t to, wp_chars *a,
                       wp_chars *b) {
  SL_TRY(clean(tok, text, from, to, a));
  if (tok->strip_accents) {
    SL_TRY(decompose(a, b));
    SL_TRY(order_and_align(a, b));
    drop_marks(b);
    swap(a, b);
  }
  if (tok->lowercase) {
    SL_TRY(lowercase(a, b));
    swap(a, b);
  }
  return SL_OK;
}
