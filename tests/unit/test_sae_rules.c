/* sae_encode_groupmax, sae_encode_jumprelu, sae_batch_select and sae_follow_threshold against naive references, for
 * every instruction set that this processor has. The cases are exact (multiples of 1/8): ties are frequent, and every
 * value must agree to the bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "support/sae_reference.h"

static void make_panels(sae_rig *r) {
  rig_workspace(r);
  rig_check(rig_kernels()->sae_pack(sl_cpu_device(), &(sl_sae_pack_args){
    .n = r->c.n, .d = r->c.d, .x = r->x, .shift = r->weights.b_dec, .dtype = r->c.bf16 ? SL_BF16 : SL_F32,
    .panels = r->panels, .slabs = r->u }));
}

/* Queries the workspace, makes it, runs. */
#define RUN(kernel, args)                                                                   \
  do {                                                                                      \
    size_t need_;                                                                           \
    (args)->need = &need_;                                                                  \
    rig_check(rig_kernels()->kernel(sl_cpu_device(), args));                                \
    (args)->need = NULL, (args)->workspace = rig_memory((int64_t)need_, 1);                 \
    (args)->workspace_bytes = need_;                                                        \
    rig_check(rig_kernels()->kernel(sl_cpu_device(), args));                                \
    free((args)->workspace);                                                                \
  } while (0)

static const void *encoder_of(const sae_rig *r) { return r->c.bf16 ? (void *)r->w_bf16 : (void *)r->weights.w_enc; }

/* The next entry of a row must be this one. */
static void expect(const sl_codes_view *codes, int64_t row, int64_t *at, int64_t id, double value) {
  assert_true(*at < codes->offsets[row + 1]);
  assert_int_equal(codes->ids[*at], id);
  assert_true((double)codes->values[*at] == value);
  ++*at;
}

/* -- GroupMax -- */

static void compare_groups(const sae_rig *r, int64_t t) {
  int64_t at = r->codes.offsets[t], group = r->c.m / r->c.k;
  for (int64_t g = 0; g < r->c.k; g++) {
    double best = 0;
    int64_t id = -1;
    for (int64_t i = g * group; i < (g + 1) * group; i++) {
      double p = reference_pre(r, t, i);
      if (p > best) best = p, id = i;
    }
    if (id >= 0) expect(&r->codes, t, &at, id, best);
  }
  assert_int_equal(at, r->codes.offsets[t + 1]);
}

static void test_groupmax(void **state) {
  (void)state;
  static const sae_case cases[] = {
    /*  n    d    m    k  k_dead exact bf16; groups of one, of all, shorter and longer than a block of latents */
    {   1,   1,   1,   1,   0, true,  false }, {  33,  17,  13,  13,   4, true,  false },
    {  70,  96,  40,   1,   5, true,  true  }, { 129,  20, 101, 101,   0, true,  false },
    { 300,  17, 500,  20,   3, true,  true  }, {  40,  20, 1500, 30,  40, true,  false },
    {  64,  33, 260,  65, 260, true,  true  }, { 545,   9,  24,   3,   1, true,  false },
    {  35,   8, 1230, 10,   7, true,  false }, { 300,   9, 600, 300,   0, true,  false },
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    for (int isa = SAE_ISA_BASE; isa <= SAE_ISA_BEST; isa++) {
      sae_cpu_limit_isa(isa);
      sae_rig r = rig_create(cases[i], i + 7), plain = rig_create(cases[i], i + 7);
      make_panels(&r);
      sl_sae_encode_groupmax_args args = {
        .n = r.c.n, .d = r.c.d, .m = r.c.m, .k = r.c.k, .panels = r.panels, .w = encoder_of(&r),
        .dtype = r.c.bf16 ? SL_BF16 : SL_F32, .bias = r.weights.b_enc, .codes = r.codes,
        .dead = r.c.k_dead ? r.dead : NULL, .k_dead = r.c.k_dead, .dead_codes = r.dead_codes,
        .nonfinite = &r.nonfinite };
      RUN(sae_encode_groupmax, &args);
      assert_int_equal(r.nonfinite, 0);
      for (int64_t t = 0; t < r.c.n; t++) compare_groups(&r, t);
      rig_encode(&plain); /* the dead ones do not care how the living are chosen */
      for (int64_t t = 0; r.c.k_dead && t <= r.c.n; t++)
        assert_int_equal(r.dead_codes.offsets[t], plain.dead_codes.offsets[t]);
      if (r.c.k_dead)
        assert_memory_equal(r.dead_codes.ids, plain.dead_codes.ids, (size_t)plain.dead_entries * 4);
      rig_free(&r), rig_free(&plain);
    }
  }
  sae_cpu_limit_isa(SAE_ISA_BEST);
}

static void test_groupmax_counts_nonfinite(void **state) {
  (void)state;
  sae_rig r = rig_create((sae_case){ .n = 70, .d = 6, .m = 40, .k = 4, .exact = true }, 5);
  r.x[3 * 6 + 2] = NAN;
  r.x[64 * 6] = INFINITY;
  make_panels(&r);
  sl_sae_encode_groupmax_args args = { .n = 70, .d = 6, .m = 40, .k = 4, .panels = r.panels, .w = r.weights.w_enc,
                                       .dtype = SL_F32, .bias = r.weights.b_enc, .codes = r.codes,
                                       .nonfinite = &r.nonfinite };
  RUN(sae_encode_groupmax, &args);
  assert_int_equal(r.nonfinite, 2);
  for (int64_t p = 0; p < r.codes.offsets[70]; p++) assert_true(r.codes.ids[p] >= 0 && r.codes.ids[p] < 40);
  compare_groups(&r, 2);
  compare_groups(&r, 65);
  rig_free(&r);
}

/* -- JumpReLU -- */

static void compare_above(const sae_rig *r, const float *threshold, int64_t t, int64_t *count) {
  int64_t at = r->codes.offsets[t];
  *count = 0;
  for (int64_t i = 0; i < r->c.m; i++) {
    double p = reference_pre(r, t, i);
    if (!(p > 0 && p > (double)threshold[i])) continue;
    ++*count;
    if (r->c.k == r->c.m) expect(&r->codes, t, &at, i, p);
  }
  if (r->c.k == r->c.m) assert_int_equal(at, r->codes.offsets[t + 1]);
}

/* With room for all, all that lie above; with less, the largest and a count. */
static void test_jumprelu(void **state) {
  (void)state;
  static const sae_case cases[] = {
    { 1, 1, 1, 1, 0, true, false }, { 70, 20, 40, 40, 0, true, true }, { 129, 24, 301, 301, 0, true, false },
    { 300, 17, 500, 6, 0, true, false }, { 64, 33, 260, 30, 0, true, true },
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    for (int isa = SAE_ISA_BASE; isa <= SAE_ISA_BEST; isa++) {
      sae_cpu_limit_isa(isa);
      sae_rig r = rig_create(cases[i], i + 3);
      float *threshold = rig_memory(r.c.m, 4);
      for (int64_t l = 0; l < r.c.m; l++) threshold[l] = (float)(l % 5 - 1) / 8; /* -1/8: as 0 */
      make_panels(&r);
      int64_t overflow = 0, over = 0, count;
      sl_sae_encode_jumprelu_args args = {
        .n = r.c.n, .d = r.c.d, .m = r.c.m, .room = r.c.k, .panels = r.panels, .w = encoder_of(&r),
        .dtype = r.c.bf16 ? SL_BF16 : SL_F32, .bias = r.weights.b_enc, .threshold = threshold, .codes = r.codes,
        .overflow = &overflow, .nonfinite = &r.nonfinite };
      RUN(sae_encode_jumprelu, &args);
      for (int64_t t = 0; t < r.c.n; t++) {
        compare_above(&r, threshold, t, &count);
        over += count > r.c.k;
        assert_int_equal(r.codes.offsets[t + 1] - r.codes.offsets[t], count < r.c.k ? count : r.c.k);
        for (int64_t p = r.codes.offsets[t]; p < r.codes.offsets[t + 1]; p++)
          assert_true(r.codes.values[p] > threshold[r.codes.ids[p]]);
      }
      assert_int_equal(overflow, over);
      assert_true(r.c.k == r.c.m || over > 0);
      free(threshold), rig_free(&r);
    }
  }
  sae_cpu_limit_isa(SAE_ISA_BEST);
}

/* -- BatchTopK -- */

typedef struct { float value; int64_t place; } ranked;

static int by_rank(const void *a, const void *b) {
  const ranked *x = a, *y = b;
  if (x->value != y->value) return x->value > y->value ? -1 : 1;
  return x->place < y->place ? -1 : x->place > y->place;
}

/* Rows of 0 to `room` entries behind an offset of 3; few distinct values, so that the bound is mostly tied. */
static sl_codes_view some_rows(int64_t rows, int64_t room, int levels, uint64_t seed) {
  uint64_t state = seed * 2654435761u + 1;
  sl_codes_view codes = { .rows = rows, .n_latents = 2 * room, .offsets = rig_memory(rows + 1, 8),
                          .ids = rig_memory(rows * room + 4, 4), .values = rig_memory(rows * room + 4, 4) };
  codes.offsets[0] = 3;
  for (int64_t r = 0; r < rows; r++) {
    int64_t n = rig_next(&state) % 3 == 0 ? room : (int64_t)(rig_next(&state) % (uint64_t)(room + 1));
    for (int64_t i = 0; i < n; i++) {
      int level = (int)(rig_next(&state) % (uint64_t)levels);
      codes.ids[codes.offsets[r] + i] = (int32_t)(2 * i);
      codes.values[codes.offsets[r] + i] = ldexpf(1 + (float)level / (float)levels, level % 7 * 20 - 60);
    }
    codes.offsets[r + 1] = codes.offsets[r] + n;
  }
  return codes;
}

static void check_batch(int64_t rows, int64_t room, int levels, int64_t keep, uint64_t seed) {
  sl_codes_view codes = some_rows(rows, room, levels, seed), out = some_rows(rows, room, 1, 1);
  double smallest = -1;
  int64_t crowded = -1, entries = codes.offsets[rows] - 3;
  sl_sae_batch_select_args args = { .codes = codes, .most = rows * room, .out = out, .keep = keep, .room = room,
                                    .smallest = &smallest, .crowded = &crowded };
  RUN(sae_batch_select, &args);
  ranked *all = malloc((size_t)(entries + 1) * sizeof *all);
  bool *kept = calloc((size_t)entries + 1, sizeof *kept);
  for (int64_t p = 0; p < entries; p++) all[p] = (ranked){ codes.values[p + 3], p };
  qsort(all, (size_t)entries, sizeof *all, by_rank);
  int64_t rank = keep < entries ? keep : entries, at = 3, full = 0;
  for (int64_t p = 0; p < rank; p++) kept[all[p].place] = true;
  assert_true(smallest == (rank > 0 ? (double)all[rank - 1].value : 0));
  for (int64_t r = 0; r < rows; r++) {
    assert_int_equal(out.offsets[r], at);
    int64_t n = 0;
    for (int64_t p = codes.offsets[r]; p < codes.offsets[r + 1]; p++) {
      if (!kept[p - 3]) continue;
      assert_int_equal(out.ids[at], codes.ids[p]);
      assert_true(out.values[at++] == codes.values[p]);
      n++;
    }
    full += n == room;
  }
  assert_int_equal(out.offsets[rows], at);
  assert_int_equal(crowded, full);
  free(all), free(kept), free(codes.offsets), free(codes.ids), free(codes.values);
  free(out.offsets), free(out.ids), free(out.values);
}

static void test_batch_select(void **state) {
  (void)state;
  for (uint64_t seed = 1; seed < 6; seed++) {
    check_batch(50, 8, 1, 90, seed);      /* all equal */
    check_batch(50, 8, 3, 101, seed);
    check_batch(200, 12, 1000, 700, seed);
    check_batch(200, 12, 1000, 1, seed);
    check_batch(40, 6, 50, 100000, seed); /* all of them */
    check_batch(1, 4, 2, 2, seed);
  }
  check_batch(0, 4, 2, 2, 1);
}

static void test_follow_threshold(void **state) {
  (void)state;
  float threshold[2] = { 0, 0 };
  sl_sae_numbers numbers = { .smallest = 1.2, .loss = 3 };
  sl_sae_follow_threshold_args args = { .numbers = &numbers, .threshold = threshold, .rate = 0.01 };
  double mean = 0;
  for (int i = 0; i < 40; i++) {
    mean = 0.99 * mean + 0.01 * numbers.smallest; /* SAELens 6.54.12; 0 -> 0.012 */
    rig_check(rig_kernels()->sae_follow_threshold(sl_cpu_device(), &args));
    assert_true(fabs((double)threshold[0] * (double)threshold[1] - mean) < 1e-6);
    assert_true(fabs((double)threshold[1] - (1 - pow(0.99, i + 1))) < 1e-6);
    if (i == 0) assert_float_equal(threshold[0], 1.2f, 1e-6f);
    numbers.smallest += 0.03;
  }
  float before[2] = { threshold[0], threshold[1] };
  for (int i = 0; i < 3; i++) {
    numbers.smallest = i == 0 ? 0 : i == 1 ? (double)INFINITY : 1;
    numbers.loss = i == 2 ? (double)NAN : 1;
    rig_check(rig_kernels()->sae_follow_threshold(sl_cpu_device(), &args));
    assert_memory_equal(threshold, before, sizeof before);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_groupmax),      cmocka_unit_test(test_groupmax_counts_nonfinite),
    cmocka_unit_test(test_jumprelu),      cmocka_unit_test(test_batch_select),
    cmocka_unit_test(test_follow_threshold),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
