/* Inside of the WordPiece tokenizer; for core/data/wordpiece*.c and its tests only. */
#ifndef SL_WORDPIECE_IMPL_H
#define SL_WORDPIECE_IMPL_H

#include "wordpiece.h"

/* A byte trie with two roots: pieces that start a word, and pieces that continue one (without "##").
 * Edges live in one open-addressing table; the edges of the roots also in a direct one. */
typedef struct {
  uint32_t node, child; /* child 0: an empty slot (no edge leads to a root) */
  uint8_t byte;
} wp_edge;

enum { WP_START = 0, WP_CONTINUE = 1 };

typedef struct {
  wp_edge *edges;
  size_t slots, used; /* slots: a power of two */
  int32_t *ids;       /* [nodes] the piece that ends here, -1 = none */
  uint32_t nodes, node_capacity;
  uint32_t first[2][256]; /* children of the two roots */
} wp_trie;

/* Reserves room for `nodes` more nodes (an upper bound is the pieces' bytes). */
sl_status wp_trie_reserve(wp_trie *trie, size_t nodes);
/* Adds a piece (room must be reserved); returns the id that was there before, -1 if new. */
int32_t wp_trie_add(wp_trie *trie, int root, const uint8_t *piece, size_t bytes, int32_t id);
/* Longest piece that starts text[0..bytes), each byte taken through `map`; -1 when none, *length in bytes. */
int32_t wp_trie_longest(const wp_trie *trie, int root, const uint8_t *text, size_t bytes,
                        const uint8_t map[256], size_t *length);
void wp_trie_free(wp_trie *trie);

/* A token recognised whole, before words are made. */
typedef struct {
  char *content; /* in the form it is searched for: raw, or normalised if `normalized` */
  size_t bytes;
  int32_t id;
  int single_word, lstrip, rstrip, normalized, special;
} wp_added;

/* The added tokens of one stage (raw text or normalised text), longest first. */
typedef struct {
  wp_added *tokens;
  size_t count;
  uint8_t starts[256]; /* bytes that begin one */
  int only_start;      /* the one such byte, -1 when there are several */
} wp_added_set;

typedef struct {
  size_t start, stop, resume; /* bytes; search goes on at `resume` */
  const wp_added *token;
} wp_match;

/* The next match in text[from, bytes); `used`: what earlier matches took. 0 when there is none. */
int wp_added_next(const wp_added_set *set, const uint8_t *text, size_t bytes, size_t from, size_t used,
                  wp_match *match);

enum { WP_WORD, WP_SPACE, WP_PUNCTUATION, WP_SLOW }; /* WP_SLOW: not ASCII, or a control character */

struct sl_wordpiece {
  char *where;          /* for messages */
  char *text;           /* all tokens, each with a NUL */
  struct wp_token {
    uint32_t at, bytes; /* at UINT32_MAX: not set yet */
  } *tokens;            /* [size] */
  int32_t size;
  uint32_t text_used;
  wp_trie trie;
  wp_added_set raw, normalized;
  sl_special_ids special;
  int clean_text, chinese, strip_accents, lowercase;
  int64_t max_chars; /* of a word; longer ones are unk */
  char *prefix;      /* "##" */
  char *decode_prefix;
  int has_decoder, cleanup;
  uint8_t classes[256];   /* WP_* */
  uint8_t fold[256];      /* ASCII lower case, or identity */
  uint8_t identity[256];
};

/* One character of normalised text and the bytes of the raw text it stands for. */
typedef struct {
  uint32_t code, start, end;
  uint8_t combining, inserted;
} wp_char;

typedef struct {
  wp_char *chars;
  size_t count, capacity;
} wp_chars;

/* Replaces a->chars by the normalised form of text[from, to) (raw bytes); b is scratch. */
sl_status wp_normalize(const sl_wordpiece *tokenizer, const uint8_t *text, size_t from, size_t to,
                       wp_chars *a, wp_chars *b);

/* Decodes one character (U+FFFD for an ill-formed part) of a non-empty text; returns its bytes. */
size_t wp_decode(const uint8_t *text, size_t bytes, uint32_t *code);
size_t wp_encode(uint32_t code, uint8_t out[4]);
int wp_is_utf8(const uint8_t *text, size_t bytes);

int wp_is_space(uint32_t code);       /* Unicode White_Space */
int wp_is_punctuation(uint32_t code); /* ASCII punctuation and the P categories */
int wp_is_word(uint32_t code);        /* \w of Rust's regex */
/* Where the white space that ends at `bytes` begins, and where the one that starts at `from` ends. */
size_t wp_space_before(const uint8_t *text, size_t bytes);
size_t wp_space_after(const uint8_t *text, size_t from, size_t bytes);

#endif
