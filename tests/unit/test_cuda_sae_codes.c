/* Kernels on codes of the CUDA backend against the CPU's: prefix, matrix, inverse index, decoding, what fired. */
#include "tests/support/sae_pair.h"

static const sae_shape shapes[] = {
  { .n = 1, .d = 1, .m = 1, .k = 1 },
  { .n = 9, .d = 5, .m = 13, .k = 13, .base = 3 },
  { .n = 40, .d = 12, .m = 75, .k = 8, .base = 100 },
  { .n = 33, .d = 7, .m = 300, .k = 70, .shift = 1 },
  { .n = 0, .d = 5, .m = 9, .k = 2, .base = 4 },
};

/* Rows of any length up to k, some empty, values with ties. */
static void make_codes(sae_pair *r, uint64_t seed) {
  const sae_shape *s = &r->s;
  uint64_t state = seed;
  int64_t *offsets = calloc((size_t)s->n + 1, 8);
  int32_t *ids = calloc(r->ids->bytes + 4, 1);
  float *values = calloc(r->values->bytes + 4, 1);
  assert_true(offsets && ids && values);
  offsets[0] = s->base;
  for (int64_t t = 0; t < s->n; t++) {
    int64_t at = offsets[t], most = t % 5 == 3 ? 0 : t % 3 == 0 ? s->k : s->k / 2;
    for (int64_t i = 0; i < s->m && at < offsets[t] + most; i++) {
      if (i != 2 && s->m - i > most - (at - offsets[t]) && next_number(&state) > 0.2f) continue;
      ids[at] = (int32_t)i; /* latent 2 belongs to nearly every token, the last few to none */
      values[at++] = (float)(1 + (int)(8 * fabsf(next_number(&state)))) / 8;
    }
    offsets[t + 1] = at;
  }
  pair_put(r->p, r->offsets, offsets), pair_put(r->p, r->ids, ids), pair_put(r->p, r->values, values);
  free(offsets), free(ids), free(values);
}

static void check_prefix(sae_pair *r, int64_t k) {
  const sae_shape *s = &r->s;
  size_t entries = (size_t)(s->base + s->n * k) * 4;
  block *offsets = pair_zeros(r->p, (size_t)(s->n + 1) * 8), *ids = pair_zeros(r->p, entries),
        *values = pair_zeros(r->p, entries);
  int64_t *first = calloc((size_t)s->n + 1, 8);
  assert_non_null(first);
  first[0] = s->base;
  pair_put(r->p, offsets, first);
  free(first);
  for (int side = 0; side < 2; side++) {
    sl_sae_codes_prefix_args args = { .codes = sae_codes_at(r, side),
                                      .out = { .rows = s->n, .n_latents = s->m, .offsets = AT(offsets, side),
                                               .ids = AT(ids, side), .values = AT(values, side) },
                                      .k = k };
    PAIR_RUN_WORKING(r->p, side, sae_codes_prefix, &args);
  }
  sae_check_rows(r, "prefix", offsets, ids, values);
}

static void check_index(sae_pair *r) {
  for (int side = 0; side < 2; side++) sae_run_index(r, side);
  int64_t entries = ((const int64_t *)r->index_offsets->at[PAIR_CPU])[r->s.m];
  pair_check_same(r->p, "index offsets", r->index_offsets);
  sae_check_start(r->p, "index tokens", r->index_tokens, entries * 4);
  sae_check_start(r->p, "index values", r->index_values, entries * 4);
}

static void check_dense_and_decode(sae_pair *r) {
  const sae_shape *s = &r->s;
  block *dense = pair_block(r->p, (size_t)(s->n * s->m) * 4), *y = pair_block(r->p, (size_t)(s->n * s->d) * 4),
        *unbiased = pair_block(r->p, (size_t)(s->n * s->d) * 4);
  for (int side = 0; side < 2; side++) {
    sl_sae_codes_dense_args to_dense = { .codes = sae_codes_at(r, side), .y = AT(dense, side) };
    PAIR_RUN(r->p, side, sae_codes_dense, &to_dense);
    sl_sae_decode_args decode = { .codes = sae_codes_at(r, side), .d = s->d, .w_dec = AT(r->w_dec, side),
                                  .b_dec = AT(r->b_dec, side), .y = AT(y, side) };
    PAIR_RUN(r->p, side, sae_decode, &decode);
    decode.b_dec = NULL, decode.y = AT(unbiased, side);
    PAIR_RUN(r->p, side, sae_decode, &decode);
  }
  pair_check_same(r->p, "dense", dense);
  pair_check_close(r->p, "decoded", y, 1e-5);
  pair_check_close(r->p, "decoded without bias", unbiased, 1e-5);
}

static void check_fired(sae_pair *r) {
  size_t bytes = (size_t)r->s.m * 8;
  block *since = pair_zeros(r->p, bytes), *counts = pair_zeros(r->p, bytes), *mask = pair_block(r->p, (size_t)r->s.m),
        *count = pair_block(r->p, 8);
  for (int round = 0; round < 3; round++) {
    for (int side = 0; side < 2; side++) {
      sl_sae_note_fired_args fired = { .m = r->s.m, .tokens = round * 3, .offsets = AT(r->index_offsets, side),
                                       .since = AT(since, side), .counts = AT(counts, side) };
      PAIR_RUN(r->p, side, sae_note_fired, &fired);
      sl_sae_mask_args masked = { .m = r->s.m, .bound = 3, .below = round == 1, .value = AT(since, side),
                                  .mask = AT(mask, side), .count = AT(count, side) };
      PAIR_RUN(r->p, side, sae_mask, &masked);
    }
    pair_check_same(r->p, "since", since);
    pair_check_same(r->p, "counts", counts);
    pair_check_same(r->p, "mask", mask);
    pair_check_same(r->p, "count", count);
  }
}

static void check_shape(const sae_shape *s, uint64_t seed) {
  pair p = pair_open();
  sae_pair r = sae_pair_open(&p, *s, seed);
  make_codes(&r, seed);
  check_prefix(&r, 1);
  check_prefix(&r, s->k / 3 > 0 ? s->k / 3 : 1);
  check_prefix(&r, s->k);
  check_index(&r);
  check_dense_and_decode(&r);
  check_fired(&r);
  pair_close(&p);
}

static void test_shapes(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(shapes); i++) check_shape(&shapes[i], 3 + i);
}

static void test_schedules(void **state) {
  (void)state;
  for (int i = 0; i < SCHEDULES && use_schedule(i); i++) check_shape(&shapes[1], 5);
  (void)use_schedule(0);
}

/* Many rows: the offsets of one batch take more than one turn of their block. */
static void test_many_rows(void **state) {
  (void)state;
  pair p = pair_open();
  sae_pair r = sae_pair_open(&p, (sae_shape){ .n = 8300, .d = 1, .m = 3, .k = 2 }, 5);
  make_codes(&r, 9);
  check_prefix(&r, 1);
  check_index(&r);
  pair_close(&p);
}

int main(void) {
  const struct CMUnitTest tests[] = { cmocka_unit_test(test_shapes), cmocka_unit_test(test_schedules),
                                      cmocka_unit_test(test_many_rows) };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
