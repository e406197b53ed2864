/* The trie of pieces and the search for added tokens; see wordpiece_impl.h. */
#include <string.h>

#include "core/base/mem.h"
#include "wordpiece_impl.h"

static size_t slot_of(const wp_trie *trie, uint32_t node, uint8_t byte) {
  uint64_t hash = ((uint64_t)node << 8 | byte) * 0x9e3779b97f4a7c15u;
  return (size_t)(hash >> 32) & (trie->slots - 1);
}

static uint32_t child_of(const wp_trie *trie, uint32_t node, uint8_t byte) {
  for (size_t at = slot_of(trie, node, byte);; at = (at + 1) & (trie->slots - 1)) {
    const wp_edge *edge = &trie->edges[at];
    if (edge->child == 0 || (edge->node == node && edge->byte == byte)) return edge->child;
  }
}

static void put_edge(wp_trie *trie, wp_edge edge) {
  size_t at = slot_of(trie, edge.node, edge.byte);
  while (trie->edges[at].child != 0) at = (at + 1) & (trie->slots - 1);
  trie->edges[at] = edge;
  trie->used++;
}

sl_status wp_trie_reserve(wp_trie *trie, size_t nodes) {
  if (nodes > UINT32_MAX / 4 - trie->nodes) return sl_fail(SL_EFORMAT, "the vocabulary is too large");
  size_t needed = trie->nodes + nodes + 2, slots = 256;
  while (slots < needed * 2) slots *= 2;
  SL_TRY(sl_mem_resize((void **)&trie->ids, needed * sizeof *trie->ids, "a vocabulary"));
  trie->node_capacity = (uint32_t)needed;
  if (trie->nodes == 0) {
    trie->ids[WP_START] = trie->ids[WP_CONTINUE] = -1;
    trie->nodes = 2;
  }
  wp_trie old = *trie;
  if (slots <= old.slots) return SL_OK;
  void *edges;
  SL_TRY(sl_mem_alloc(slots * sizeof *trie->edges, "a vocabulary", &edges));
  trie->edges = edges;
  trie->slots = slots;
  trie->used = 0;
  for (size_t i = 0; i < old.slots; i++) {
    if (old.edges[i].child != 0) put_edge(trie, old.edges[i]);
  }
  sl_mem_free(old.edges);
  return SL_OK;
}

int32_t wp_trie_add(wp_trie *trie, int root, const uint8_t *piece, size_t bytes, int32_t id) {
  uint32_t node = (uint32_t)root;
  for (size_t i = 0; i < bytes; i++) {
    uint32_t child = child_of(trie, node, piece[i]);
    if (child == 0) {
      child = trie->nodes++;
      trie->ids[child] = -1;
      put_edge(trie, (wp_edge){ .node = node, .child = child, .byte = piece[i] });
      if (node < 2) trie->first[node][piece[i]] = child;
    }
    node = child;
  }
  int32_t before = trie->ids[node];
  if (before < 0) trie->ids[node] = id;
  return before;
}

int32_t wp_trie_longest(const wp_trie *trie, int root, const uint8_t *text, size_t bytes,
                        const uint8_t map[256], size_t *length) {
  int32_t best = -1;
  uint32_t node = bytes > 0 ? trie->first[root][map[text[0]]] : 0;
  for (size_t i = 1; node != 0; i++) {
    if (trie->ids[node] >= 0) {
      best = trie->ids[node];
      *length = i;
    }
    if (i == bytes) break;
    node = child_of(trie, node, map[text[i]]);
  }
  return best;
}

void wp_trie_free(wp_trie *trie) {
  sl_mem_free(trie->edges);
  sl_mem_free(trie->ids);
}

/* The character that ends at `bytes`, 0 at the start of the text. */
static uint32_t char_before(const uint8_t *text, size_t bytes) {
  size_t step = 1;
  uint32_t code = 0;
  if (bytes == 0) return 0;
  while (step < 4 && step < bytes && (text[bytes - step] & 0xc0) == 0x80) step++;
  return wp_decode(text + bytes - step, step, &code) == step ? code : 0xfffd;
}

static int stands_alone(const uint8_t *text, size_t bytes, size_t start, size_t stop) {
  uint32_t next = 0;
  if (stop < bytes) wp_decode(text + stop, bytes - stop, &next);
  return !(start > 0 && wp_is_word(char_before(text, start))) && !(stop < bytes && wp_is_word(next));
}

static const wp_added *token_at(const wp_added_set *set, const uint8_t *text, size_t bytes) {
  for (size_t i = 0; i < set->count; i++) { /* longest first */
    const wp_added *token = &set->tokens[i];
    if (token->bytes <= bytes && memcmp(token->content, text, token->bytes) == 0) return token;
  }
  return NULL;
}

static size_t next_start(const wp_added_set *set, const uint8_t *text, size_t from, size_t bytes) {
  if (set->only_start >= 0) {
    const uint8_t *found = from < bytes ? memchr(text + from, set->only_start, bytes - from) : NULL;
    return found ? (size_t)(found - text) : bytes;
  }
  while (from < bytes && !set->starts[text[from]]) from++;
  return from;
}

int wp_added_next(const wp_added_set *set, const uint8_t *text, size_t bytes, size_t from, size_t used,
                  wp_match *match) {
  if (set->count == 0) return 0;
  for (size_t at = from; (at = next_start(set, text, at, bytes)) < bytes; at++) {
    const wp_added *token = token_at(set, text + at, bytes - at);
    if (!token) continue;
    size_t start = at, stop = at + token->bytes;
    at = stop - 1; /* matches do not overlap, also those refused below */
    if (token->single_word && !stands_alone(text, bytes, start, stop)) continue;
    *match = (wp_match){ .start = start, .stop = stop, .resume = stop, .token = token };
    if (token->lstrip) match->start = wp_space_before(text, start);
    if (match->start < used) match->start = used;
    if (token->rstrip) match->stop = wp_space_after(text, stop, bytes);
    if (match->stop < match->start) match->stop = match->start;
    return 1;
  }
  return 0;
}
