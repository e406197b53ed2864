/* GroupMax, JumpReLU and BatchTopK of the CUDA backend against the CPU's, to the bit. */
#include "tests/support/sae_pair.h"

/* Runs with the workspace asked for, or a part of it, which cuts rows and columns into pieces. */
#define RUN_CUT(p, side, kernel, args, cut)                                            \
  do {                                                                                 \
    size_t wanted_ = 0;                                                                \
    (args)->need = &wanted_;                                                           \
    PAIR_RUN(p, side, kernel, args);                                                   \
    block *room_ = pair_block(p, (side) == PAIR_CUDA ? wanted_ / (cut) : wanted_);     \
    (args)->need = NULL;                                                               \
    (args)->workspace = AT(room_, side);                                               \
    (args)->workspace_bytes = room_->bytes;                                            \
    PAIR_RUN(p, side, kernel, args);                                                   \
    pair_check_guards(p, #kernel "'s workspace", room_);                               \
  } while (0)

typedef struct { sae_shape s; size_t cut; } group_case;

static void test_groupmax(void **state) {
  (void)state;
  static const group_case cases[] = {
    { { .n = 1, .d = 1, .m = 1, .k = 1 }, 1 },
    { { .n = 7, .d = 5, .m = 12, .k = 12, .k_dead = 3, .base = 4 }, 1 }, /* groups of one */
    { { .n = 9, .d = 4, .m = 60, .k = 4, .k_dead = 6, .bf16 = true }, 1 },
    { { .n = 5, .d = 3, .m = 300, .k = 3 }, 1 },                         /* a warp a group */
    { { .n = 8, .d = 3, .m = 9000, .k = 20, .k_dead = 30 }, 4 },         /* groups across pieces */
    { { .n = 4, .d = 3, .m = 6000, .k = 600 }, 1 },
    { { .n = 0, .d = 3, .m = 6, .k = 3, .base = 1 }, 1 },
  };
  for (size_t i = 0; i < LENGTH(cases); i++) {
    pair p = pair_open();
    sae_shape s = cases[i].s;
    s.exact = true;
    sae_pair r = sae_pair_open(&p, s, 7 + i);
    if (i == 3) ((float *)AT(r.x, PAIR_CPU))[4] = NAN;
    if (i == 3) pair_put(&p, r.x, AT(r.x, PAIR_CPU));
    for (int side = 0; side < 2; side++) {
      sae_run_pack(&r, side);
      sl_sae_encode_topk_args t = sae_encode_args(&r, side);
      sl_sae_encode_groupmax_args args = { .n = t.n, .d = t.d, .m = t.m, .k = t.k, .panels = t.panels, .w = t.w,
                                           .dtype = t.dtype, .bias = t.bias, .codes = t.codes, .dead = t.dead,
                                           .k_dead = t.k_dead, .dead_codes = t.dead_codes, .nonfinite = t.nonfinite };
      RUN_CUT(&p, side, sae_encode_groupmax, &args, cases[i].cut);
    }
    assert_int_equal(sae_fetch_numbers(&r)->nonfinite, i == 3);
    if (i != 3) sae_check_codes(&r);
    pair_close(&p);
  }
}

typedef struct { sae_shape s; float floor; size_t cut; } jump_case;

static void test_jumprelu(void **state) {
  (void)state;
  static const jump_case cases[] = {
    { { .n = 1, .d = 1, .m = 1, .k = 1 }, 0, 1 },
    { { .n = 20, .d = 5, .m = 60, .k = 8, .base = 3 }, 0, 1 },          /* some rows overflow */
    { { .n = 20, .d = 5, .m = 60, .k = 60 }, -1, 1 },                   /* thresholds below zero count as zero */
    { { .n = 9, .d = 3, .m = 9000, .k = 300, .bf16 = true }, 0.75f, 4 }, /* in pieces */
    { { .n = 3, .d = 3, .m = 5000, .k = 5000 }, 0.25f, 1 },
    { { .n = 4, .d = 3, .m = 30, .k = 3 }, 100, 1 },                    /* nothing */
  };
  for (size_t i = 0; i < LENGTH(cases); i++) {
    pair p = pair_open();
    sae_shape s = cases[i].s;
    s.exact = true;
    sae_pair r = sae_pair_open(&p, s, 7 + i);
    float *floors = make_numbers(s.m, 0.5f, 3);
    for (int64_t j = 0; j < s.m; j++) floors[j] = cases[i].floor + (float)(int)(floors[j] * 8) / 8;
    block *floor = pair_of(&p, floors, (size_t)s.m * 4), *overflow = pair_zeros(&p, 8);
    free(floors);
    for (int side = 0; side < 2; side++) {
      sae_run_pack(&r, side);
      sl_sae_encode_topk_args t = sae_encode_args(&r, side);
      sl_sae_encode_jumprelu_args args = { .n = t.n, .d = t.d, .m = t.m, .room = t.k, .panels = t.panels, .w = t.w,
                                           .dtype = t.dtype, .bias = t.bias, .threshold = AT(floor, side),
                                           .codes = t.codes, .overflow = AT(overflow, side), .nonfinite = t.nonfinite };
      RUN_CUT(&p, side, sae_encode_jumprelu, &args, cases[i].cut);
    }
    sae_check_codes(&r);
    pair_check_same(&p, "overflow", overflow);
    if (i == 1) assert_true(*(const int64_t *)pair_fetch(&p, overflow) > 0);
    pair_close(&p);
  }
}

static void check_batch(sae_shape s, int64_t keep, int64_t room, bool tied) {
  pair p = pair_open();
  s.exact = true;
  sae_pair r = sae_pair_open(&p, s, 9);
  if (tied) {
    float *zeros = calloc((size_t)(s.m * s.d), 4), *ones = make_numbers(s.m, 0, 1);
    for (int64_t i = 0; i < s.m; i++) ones[i] = 1;
    pair_put(&p, r.w_enc, zeros), pair_put(&p, r.b_enc, ones);
    free(zeros), free(ones);
  }
  int64_t *first = calloc((size_t)s.n + 1, 8);
  assert_non_null(first);
  first[0] = 2;
  block *offsets = pair_of(&p, first, (size_t)(s.n + 1) * 8), *smallest = pair_block(&p, 8), *crowded = pair_block(&p, 8);
  free(first);
  size_t entries = (size_t)(2 + (keep < s.n * s.k ? keep : s.n * s.k)) * 4;
  block *ids = pair_zeros(&p, entries), *values = pair_zeros(&p, entries);
  for (int side = 0; side < 2; side++) {
    sae_run_encode(&r, side);
    sl_sae_batch_select_args args = { .codes = sae_codes_at(&r, side), .most = s.n * s.k,
                                      .out = { .rows = s.n, .n_latents = s.m, .offsets = AT(offsets, side),
                                               .ids = AT(ids, side), .values = AT(values, side) },
                                      .keep = keep, .room = room, .smallest = AT(smallest, side),
                                      .crowded = AT(crowded, side) };
    PAIR_RUN_WORKING(&p, side, sae_batch_select, &args);
  }
  sae_check_rows(&r, "kept", offsets, ids, values);
  pair_check_same(&p, "smallest", smallest);
  pair_check_same(&p, "crowded", crowded);
  pair_close(&p);
}

static void test_batch_select(void **state) {
  (void)state;
  check_batch((sae_shape){ .n = 1, .d = 2, .m = 5, .k = 3 }, 1, 0, false);
  check_batch((sae_shape){ .n = 30, .d = 4, .m = 50, .k = 12, .base = 5 }, 100, 12, false);
  check_batch((sae_shape){ .n = 30, .d = 4, .m = 50, .k = 5 }, 120, 5, false); /* crowded */
  check_batch((sae_shape){ .n = 30, .d = 4, .m = 50, .k = 12 }, 5000, 12, false);
  check_batch((sae_shape){ .n = 40, .d = 2, .m = 20, .k = 20 }, 333, 20, true); /* all equal: the first rows win */
  check_batch((sae_shape){ .n = 1500, .d = 1, .m = 3, .k = 2 }, 700, 2, false); /* two turns of the scan */
  check_batch((sae_shape){ .n = 0, .d = 2, .m = 5, .k = 3 }, 4, 3, false);
}

static void test_follow_threshold(void **state) {
  (void)state;
  static const double smallest[] = { 0.5, 0, NAN };
  for (size_t i = 0; i < 2 * LENGTH(smallest); i++) {
    pair p = pair_open();
    sl_sae_numbers numbers = { .smallest = smallest[i / 2], .loss = i % 2 ? NAN : 1 };
    float start[2] = { 2, 0.5f };
    block *b = pair_of(&p, &numbers, sizeof numbers), *threshold = pair_of(&p, start, sizeof start);
    for (int side = 0; side < 2; side++) {
      sl_sae_follow_threshold_args args = { .numbers = AT(b, side), .threshold = AT(threshold, side), .rate = 0.25 };
      PAIR_RUN(&p, side, sae_follow_threshold, &args);
    }
    pair_check_same(&p, "threshold", threshold);
    const float *got = pair_fetch(&p, threshold);
    assert_true((got[0] != start[0] && got[1] != start[1]) == (i == 0));
    pair_close(&p);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = { cmocka_unit_test(test_groupmax), cmocka_unit_test(test_jumprelu),
                                      cmocka_unit_test(test_batch_select), cmocka_unit_test(test_follow_threshold) };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
