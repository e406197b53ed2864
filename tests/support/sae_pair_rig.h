/* For the tests of the CUDA SAE kernels: a case on both devices.
 *
 * Panels, slabs and residuals are private layouts of a device, so they are never compared: their effects are. Where
 * `exact` is asked for, encoder weights and inputs are multiples of 1/8 of small size: products are then exact in any
 * order, ties are frequent, and codes must agree to the bit. */
#ifndef SAE_PAIR_RIG_H
#define SAE_PAIR_RIG_H

#include "device_pair.h"

/* Schedules of the layer in tests/support/cuda_host; absent on a GPU. */
enum { SCHEDULES = 8 };
extern void cuda_host_use_schedule(int i) __attribute__((weak));
static inline bool use_schedule(int i) {
  if (cuda_host_use_schedule == NULL) return i == 0;
  cuda_host_use_schedule(i);
  return true;
}

typedef struct {
  int64_t n, d, m, k, k_dead;
  bool exact, bf16;
  int64_t base; /* entries of the batch before these rows */
  int shift;    /* floats by which x and the weights lie off alignment */
} sae_shape;

typedef struct {
  sae_shape s;
  pair *p;
  block *x, *w_enc, *b_enc, *w_dec, *b_dec, *w_bf16, *dead;
  block *panels[2], *u[2], *residual[2];
  block *offsets, *ids, *values, *dead_offsets, *dead_ids, *dead_values;
  block *index_offsets, *index_tokens, *index_values;
  block *column_sums, *numbers;
  block *g_enc, *g_dec, *gb_enc, *gb_dec, *touched, *dot, *squares_enc, *squares_dec, *code_gradients;
  block *total_b_dec, *norm;
  block *m_enc, *m_dec, *mb_enc, *mb_dec, *v_enc, *v_dec, *vb_enc, *vb_dec;
} sae_pair;

static inline block *pair_zeros(pair *p, size_t bytes) {
  void *zeros = calloc(1, bytes > 0 ? bytes : 1);
  assert_non_null(zeros);
  block *b = pair_of(p, zeros, bytes);
  free(zeros);
  return b;
}

/* Multiples of 1/8 in [-1/2, 1/2]. */
static inline block *pair_eighths(pair *p, int64_t n, uint64_t seed, int shift) {
  float *x = make_numbers(n, 4.5f, seed);
  for (int64_t i = 0; i < n; i++) x[i] = (float)(int)x[i] / 8;
  block *b = pair_block_shifted(p, (size_t)n * sizeof *x, (size_t)shift * sizeof *x);
  pair_put(p, b, x);
  free(x);
  return b;
}

static inline block *sae_numbers(pair *p, const sae_shape *s, int64_t n, uint64_t seed) {
  return s->exact ? pair_eighths(p, n, seed, s->shift) : pair_floats_shifted(p, n, 1, seed, s->shift);
}

static inline block *sae_bf16_of(pair *p, const block *w) {
  size_t n = w->bytes / 4;
  uint16_t *half = calloc(n + 1, 2);
  assert_non_null(half);
  for (size_t i = 0; i < n; i++) half[i] = sl_f32_to_bf16(((const float *)w->at[PAIR_CPU])[i]);
  block *b = pair_of(p, half, n * 2);
  free(half);
  return b;
}

static inline void sae_pair_codes(sae_pair *r) {
  const sae_shape *s = &r->s;
  size_t ends = (size_t)(s->n + 1) * 8, entries = (size_t)(s->base + s->n * s->k) * 4;
  int64_t *first = calloc((size_t)s->n + 1, 8);
  assert_non_null(first);
  first[0] = s->base;
  r->offsets = pair_of(r->p, first, ends), r->dead_offsets = pair_of(r->p, first, ends);
  free(first);
  r->ids = pair_zeros(r->p, entries), r->values = pair_zeros(r->p, entries);
  entries = (size_t)(s->base + s->n * s->k_dead) * 4;
  r->dead_ids = pair_zeros(r->p, entries), r->dead_values = pair_zeros(r->p, entries);
  entries = (size_t)(s->n * s->k) * 4;
  r->index_offsets = pair_block(r->p, (size_t)(s->m + 1) * 8);
  r->index_tokens = pair_zeros(r->p, entries), r->index_values = pair_zeros(r->p, entries);
  r->code_gradients = pair_zeros(r->p, entries);
}

static inline void sae_pair_gradients(sae_pair *r) {
  size_t m = (size_t)r->s.m, d = (size_t)r->s.d;
  r->g_enc = pair_zeros(r->p, m * d * 4), r->g_dec = pair_zeros(r->p, m * d * 4);
  r->gb_enc = pair_zeros(r->p, m * 4), r->gb_dec = pair_zeros(r->p, d * 4);
  r->touched = pair_zeros(r->p, m), r->dot = pair_zeros(r->p, m * 4);
  r->squares_enc = pair_zeros(r->p, m * 4), r->squares_dec = pair_zeros(r->p, m * 4);
  r->total_b_dec = pair_zeros(r->p, d * 4), r->norm = pair_zeros(r->p, 8);
  r->m_enc = pair_zeros(r->p, m * d * 4), r->m_dec = pair_zeros(r->p, m * d * 4);
  r->v_enc = pair_zeros(r->p, m * d * 4), r->v_dec = pair_zeros(r->p, m * d * 4);
  r->mb_enc = pair_zeros(r->p, m * 4), r->mb_dec = pair_zeros(r->p, d * 4);
  r->vb_enc = pair_zeros(r->p, m * 4), r->vb_dec = pair_zeros(r->p, d * 4);
}

static inline sae_pair sae_pair_open(pair *p, sae_shape s, uint64_t seed) {
  sae_pair r = { .s = s, .p = p };
  r.x = sae_numbers(p, &s, s.n * s.d, seed);
  r.w_enc = sae_numbers(p, &s, s.m * s.d, seed + 1);
  r.b_enc = sae_numbers(p, &s, s.m, seed + 2);
  r.w_dec = pair_floats_shifted(p, s.m * s.d, 1, seed + 3, s.shift);
  r.b_dec = sae_numbers(p, &s, s.d, seed + 4);
  for (int side = 0; side < 2; side++) {
    size_t panels, slabs;
    sl_sae_pack_args ask = { .n = s.n, .d = s.d, .dtype = s.bf16 ? SL_BF16 : SL_F32, .need_panels = &panels,
                             .need_slabs = &slabs };
    PAIR_RUN(p, side, sae_pack, &ask);
    r.panels[side] = pair_block(p, panels), r.u[side] = pair_block(p, slabs), r.residual[side] = pair_block(p, slabs);
  }
  r.w_bf16 = sae_bf16_of(p, r.w_enc);
  uint8_t *dead = calloc((size_t)s.m, 1);
  uint64_t state = seed;
  for (int64_t i = 0; i < s.m; i++) dead[i] = next_number(&state) > 0.3f;
  r.dead = pair_of(p, dead, (size_t)s.m);
  free(dead);
  r.column_sums = pair_block(p, (size_t)s.d * 8);
  r.numbers = pair_zeros(p, sizeof(sl_sae_numbers));
  sae_pair_codes(&r);
  sae_pair_gradients(&r);
  return r;
}

/* -- Views -- */

static inline sl_codes_view sae_codes_at(const sae_pair *r, int side) {
  return (sl_codes_view){ .rows = r->s.n, .n_latents = r->s.m, .offsets = AT(r->offsets, side),
                          .ids = AT(r->ids, side), .values = AT(r->values, side) };
}
static inline sl_codes_view sae_dead_at(const sae_pair *r, int side) {
  return (sl_codes_view){ .rows = r->s.n, .n_latents = r->s.m, .offsets = AT(r->dead_offsets, side),
                          .ids = AT(r->dead_ids, side), .values = AT(r->dead_values, side) };
}
static inline sl_codes_index sae_index_at(const sae_pair *r, int side) {
  return (sl_codes_index){ .offsets = AT(r->index_offsets, side), .tokens = AT(r->index_tokens, side),
                           .values = AT(r->index_values, side) };
}
static inline sl_sae_gradients sae_gradients_at(const sae_pair *r, int side) {
  return (sl_sae_gradients){ .w_enc = AT(r->g_enc, side), .w_dec = AT(r->g_dec, side), .b_enc = AT(r->gb_enc, side),
                             .b_dec = AT(r->gb_dec, side), .touched = AT(r->touched, side), .dot_dec = AT(r->dot, side),
                             .squares_enc = AT(r->squares_enc, side), .squares_dec = AT(r->squares_dec, side) };
}
static inline sl_sae_numbers *sae_numbers_at(const sae_pair *r, int side) { return AT(r->numbers, side); }

#endif
