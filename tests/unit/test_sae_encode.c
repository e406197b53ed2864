/* sae_pack, sae_encode_topk, sae_codes_prefix, sae_index_codes, sae_decode against naive float64 references,
 * for every instruction set that this processor has. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <omp.h>

#include "support/sae_reference.h"

typedef struct { double value; int32_t id; } ranked;

static int by_rank(const void *a, const void *b) {
  const ranked *x = a, *y = b;
  if (x->value != y->value) return x->value > y->value ? -1 : 1;
  return x->id < y->id ? -1 : 1;
}
static int by_id(const void *a, const void *b) { return ((const ranked *)a)->id - ((const ranked *)b)->id; }

/* The k best positive pre-activations of a token, by id; returns how many. */
static int64_t reference_topk(const sae_rig *r, int64_t token, int64_t k, const uint8_t *mask, ranked *out) {
  int64_t n = 0;
  for (int64_t i = 0; i < r->c.m; i++) {
    double p = reference_pre(r, token, i);
    if (p > 0 && (!mask || mask[i])) out[n++] = (ranked){ p, (int32_t)i };
  }
  qsort(out, (size_t)n, sizeof *out, by_rank);
  if (n > k) n = k;
  qsort(out, (size_t)n, sizeof *out, by_id);
  return n;
}

static void compare_row(const sae_rig *r, const sl_codes_view *codes, int64_t t, int64_t k,
                        const uint8_t *mask) {
  ranked *expected = malloc((size_t)(r->c.m + 1) * sizeof *expected);
  int64_t n = reference_topk(r, t, k, mask, expected), begin = codes->offsets[t];
  assert_int_equal(codes->offsets[t + 1] - begin, n);
  double lowest = 1e30;
  for (int64_t i = 0; i < n; i++) lowest = expected[i].value < lowest ? expected[i].value : lowest;
  for (int64_t i = 0; i < n; i++) {
    int32_t id = codes->ids[begin + i];
    double value = (double)codes->values[begin + i];
    if (i > 0) assert_true(id > codes->ids[begin + i - 1]);
    if (r->c.exact) {
      assert_int_equal(id, expected[i].id);
      assert_true(value == expected[i].value);
    } else { /* rounding may swap the last places, never more */
      double own = reference_pre(r, t, id), tolerance = 2e-5 * (1 + fabs(own));
      assert_true(fabs(value - own) < tolerance);
      assert_true(own > lowest - tolerance);
      assert_true(!mask || mask[id]);
    }
  }
  free(expected);
}

static const sae_case cases[] = {
  /*  n    d    m    k  k_dead exact bf16 */
  {   1,   1,   1,   1,   0, true,  false }, {   5,   3,   7,   2,   2, true,  false },
  {  33,  17,  13,  13,   4, true,  false }, {  70,  96,  40,   8,   5, true,  true  },
  { 129, 100, 101,  32,   0, false, false }, { 300,  17, 500,   1,   3, true,  true  },
  {  40,  20, 1500, 700,  40, true,  false }, {  64,  33, 260, 260, 260, true,  true  },
  {  37,  51, 999,  64,  12, false, true  }, { 545,   9,  25,   3,   1, true,  false },
};

static void test_selection(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    for (int isa = SAE_ISA_BASE; isa <= SAE_ISA_BEST; isa++) {
      sae_cpu_limit_isa(isa);
      sae_rig r = rig_create(cases[i], i + 7);
      rig_encode(&r);
      assert_int_equal(r.nonfinite, 0);
      assert_int_equal(r.entries, r.codes.offsets[r.c.n]);
      for (int64_t t = 0; t < r.c.n; t++) {
        compare_row(&r, &r.codes, t, r.c.k, NULL);
        if (r.c.k_dead) compare_row(&r, &r.dead_codes, t, r.c.k_dead, r.dead);
      }
      rig_free(&r);
    }
  }
  sae_cpu_limit_isa(SAE_ISA_BEST);
}

static void test_large_k(void **state) {
  (void)state;
  sae_rig r = rig_create((sae_case){ .n = 3, .d = 8, .m = 9000, .k = 4097, .exact = true }, 3);
  rig_encode(&r);
  for (int64_t t = 0; t < 3; t++) compare_row(&r, &r.codes, t, 4097, NULL);
  rig_free(&r);
}

static void test_no_tokens_and_no_positives(void **state) {
  (void)state;
  sae_rig empty = rig_create((sae_case){ .n = 0, .d = 5, .m = 9, .k = 2 }, 1);
  rig_encode(&empty);
  rig_decode(&empty);
  assert_int_equal(empty.entries, 0);
  assert_true(empty.sum_squares == 0);
  rig_free(&empty);
  sae_rig r = rig_create((sae_case){ .n = 50, .d = 5, .m = 30, .k = 4, .exact = true }, 2);
  for (int64_t i = 0; i < r.c.m; i++) r.weights.b_enc[i] = i == 11 ? 0 : -100;
  for (int64_t j = 0; j < r.c.d; j++)
    r.weights.w_enc[11 * r.c.d + j] = 0; /* pre-activation exactly 0: not kept */
  rig_encode(&r);
  assert_int_equal(r.entries, 0);
  for (int64_t t = 0; t <= r.c.n; t++) assert_int_equal(r.codes.offsets[t], 0);
  rig_free(&r);
}

/* Equal rows everywhere: the lowest latents win. */
static void test_ties(void **state) {
  (void)state;
  for (int isa = SAE_ISA_BASE; isa <= SAE_ISA_BEST; isa++) {
    sae_cpu_limit_isa(isa);
    sae_rig r = rig_create((sae_case){ .n = 35, .d = 4, .m = 2000, .k = 5, .exact = true }, 5);
    for (int64_t i = 0; i < r.c.m; i++) {
      memcpy(r.weights.w_enc + i * r.c.d, r.weights.w_enc, (size_t)r.c.d * 4);
      r.weights.b_enc[i] = i < 1000 ? 10 : 10.5f;
    }
    rig_encode(&r);
    for (int64_t t = 0; t < r.c.n; t++) {
      assert_int_equal(r.codes.offsets[t + 1] - r.codes.offsets[t], 5);
      for (int j = 0; j < 5; j++) assert_int_equal(r.codes.ids[r.codes.offsets[t] + j], 1000 + j);
    }
    rig_free(&r);
  }
  sae_cpu_limit_isa(SAE_ISA_BEST);
}

/* Ties that survived one shrink are still there for the next: the k-th value stays what it was while a few larger
 * ones arrive. */
static void test_ties_outlive_shrinking(void **state) {
  (void)state;
  for (int isa = SAE_ISA_BASE; isa <= SAE_ISA_BEST; isa++) {
    sae_cpu_limit_isa(isa);
    sae_rig r = rig_create((sae_case){ .n = 35, .d = 2, .m = 2000, .k = 10, .exact = true }, 5);
    memset(r.weights.w_enc, 0, (size_t)(r.c.m * r.c.d) * 4);
    for (int64_t i = 0; i < r.c.m; i++) r.weights.b_enc[i] = i % 500 == 499 ? 2 : 1;
    rig_encode(&r);
    for (int64_t t = 0; t < r.c.n; t++) compare_row(&r, &r.codes, t, 10, NULL);
    rig_free(&r);
  }
  sae_cpu_limit_isa(SAE_ISA_BEST);
}

static void test_nonfinite_is_counted(void **state) {
  (void)state;
  for (int isa = SAE_ISA_BASE; isa <= SAE_ISA_BEST; isa++) {
    for (int bf16 = 0; bf16 < 2; bf16++) {
      sae_cpu_limit_isa(isa);
      sae_rig r = rig_create((sae_case){ .n = 70, .d = 6, .m = 40, .k = 4, .exact = true, .bf16 = bf16 }, 5);
      r.x[3 * 6 + 2] = NAN;
      r.x[64 * 6] = INFINITY;
      r.x[65 * 6 + 1] = -INFINITY;
      rig_encode(&r);
      assert_int_equal(r.nonfinite, 3);
      compare_row(&r, &r.codes, 2, 4, NULL);
      compare_row(&r, &r.codes, 66, 4, NULL);
      rig_decode(&r); /* garbage in the marked rows may not do harm */
      r.x[3 * 6 + 2] = r.x[64 * 6] = r.x[65 * 6 + 1] = 0;
      r.weights.b_enc[39] = NAN;
      rig_encode(&r);
      assert_int_equal(r.nonfinite, 70);
      rig_free(&r);
    }
  }
  sae_cpu_limit_isa(SAE_ISA_BEST);
}

/* The same bits from every number of threads and for a token alone. */
static void test_threads_and_neighbours(void **state) {
  (void)state;
  int threads = omp_get_max_threads();
  sae_case c = { .n = 517, .d = 70, .m = 333, .k = 20, .k_dead = 6 };
  omp_set_num_threads(1);
  sae_rig one = rig_create(c, 9);
  rig_encode(&one);
  rig_decode(&one);
  omp_set_num_threads(3);
  sae_rig three = rig_create(c, 9);
  rig_encode(&three);
  rig_decode(&three);
  assert_int_equal(one.entries, three.entries);
  assert_memory_equal(one.codes.ids, three.codes.ids, (size_t)one.entries * 4);
  assert_memory_equal(one.codes.values, three.codes.values, (size_t)one.entries * 4);
  assert_memory_equal(one.dead_codes.ids, three.dead_codes.ids, (size_t)one.dead_entries * 4);
  assert_memory_equal(one.index.tokens, three.index.tokens, (size_t)one.entries * 4);
  assert_memory_equal(one.index.values, three.index.values, (size_t)one.entries * 4);
  assert_true(one.sum_squares == three.sum_squares && one.cosine == three.cosine);
  sae_case single = c;
  single.n = 1;
  sae_rig alone = rig_create(single, 9);
  memcpy(alone.x, one.x + 516 * c.d, (size_t)c.d * 4);
  memcpy(alone.weights.w_enc, one.weights.w_enc, (size_t)(c.m * c.d) * 4);
  memcpy(alone.weights.b_enc, one.weights.b_enc, (size_t)c.m * 4);
  memcpy(alone.weights.b_dec, one.weights.b_dec, (size_t)c.d * 4);
  rig_encode(&alone);
  int64_t begin = one.codes.offsets[516];
  assert_int_equal(alone.entries, one.entries - begin);
  assert_memory_equal(alone.codes.values, one.codes.values + begin, (size_t)alone.entries * 4);
  rig_free(&one), rig_free(&three), rig_free(&alone);
  omp_set_num_threads(threads);
}

/* Fused multiply-adds in the same order: the wide builds agree to the bit, the base build to rounding. */
static void test_instruction_sets_agree(void **state) {
  (void)state;
  sae_case c = { .n = 100, .d = 133, .m = 300, .k = 20 };
  sae_rig rigs[2];
  for (int i = 0; i < 2; i++) {
    sae_cpu_limit_isa(i == 0 ? SAE_ISA_AVX2 : SAE_ISA_BEST);
    rigs[i] = rig_create(c, 12);
    rig_encode(&rigs[i]);
  }
  bool fused = sae_cpu_get_ops()->panel_tokens >= 16;
  assert_int_equal(rigs[0].entries, rigs[1].entries);
  if (fused) {
    assert_memory_equal(rigs[0].codes.ids, rigs[1].codes.ids, (size_t)rigs[0].entries * 4);
    assert_memory_equal(rigs[0].codes.values, rigs[1].codes.values, (size_t)rigs[0].entries * 4);
  }
  rig_free(&rigs[0]), rig_free(&rigs[1]);
}

static void test_prefix_is_the_smaller_selection(void **state) {
  (void)state;
  sae_case wide = { .n = 90, .d = 7, .m = 120, .k = 32, .exact = true }, narrow = wide;
  narrow.k = 8;
  sae_rig a = rig_create(wide, 4), b = rig_create(narrow, 4);
  rig_encode(&a);
  rig_encode(&b);
  sl_codes_view prefix = rig_codes(&narrow, narrow.k);
  rig_check(rig_kernels()->sae_codes_prefix(sl_cpu_device(), &(sl_sae_codes_prefix_args){
    .codes = a.codes, .out = prefix, .k = 8 }));
  int64_t entries = prefix.offsets[wide.n];
  assert_int_equal(entries, b.entries);
  assert_memory_equal(prefix.offsets, b.codes.offsets, (size_t)(wide.n + 1) * 8);
  assert_memory_equal(prefix.ids, b.codes.ids, (size_t)entries * 4);
  assert_memory_equal(prefix.values, b.codes.values, (size_t)entries * 4);
  free(prefix.offsets), free(prefix.ids), free(prefix.values);
  rig_free(&a), rig_free(&b);
}

static void test_index_and_decode(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    sae_rig r = rig_create(cases[i], i);
    rig_encode(&r);
    rig_decode(&r);
    for (int64_t l = 0; l < r.c.m; l++) {
      for (int64_t p = r.index.offsets[l]; p < r.index.offsets[l + 1]; p++) {
        int64_t t = r.index.tokens[p];
        if (p > r.index.offsets[l]) assert_true(t > r.index.tokens[p - 1]);
        int64_t q = r.codes.offsets[t];
        while (q < r.codes.offsets[t + 1] && r.codes.ids[q] != l) q++;
        assert_true(q < r.codes.offsets[t + 1] && r.codes.values[q] == r.index.values[p]);
      }
    }
    assert_int_equal(r.index.offsets[r.c.m], r.entries);
    float *y = rig_memory(r.c.n * r.c.d, 4);
    rig_check(rig_kernels()->sae_decode(sl_cpu_device(), &(sl_sae_decode_args){
      .codes = r.codes, .d = r.c.d, .w_dec = r.weights.w_dec, .b_dec = r.weights.b_dec, .y = y }));
    double squares = 0;
    for (int64_t t = 0; t < r.c.n; t++) {
      for (int64_t j = 0; j < r.c.d; j++) {
        double expected = (double)r.weights.b_dec[j];
        for (int64_t q = r.codes.offsets[t]; q < r.codes.offsets[t + 1]; q++)
          expected += (double)r.codes.values[q] * (double)r.weights.w_dec[r.codes.ids[q] * r.c.d + j];
        assert_true(fabs(expected - (double)y[t * r.c.d + j]) < 1e-5 * (1 + 10 * fabs(expected)));
        double e = (double)r.x[t * r.c.d + j] - expected;
        squares += e * e;
      }
    }
    assert_true(fabs(squares - r.sum_squares) <= 1e-5 * squares + 1e-12);
    free(y);
    rig_free(&r);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_selection),
    cmocka_unit_test(test_large_k),
    cmocka_unit_test(test_no_tokens_and_no_positives),
    cmocka_unit_test(test_ties),
    cmocka_unit_test(test_ties_outlive_shrinking),
    cmocka_unit_test(test_nonfinite_is_counted),
    cmocka_unit_test(test_threads_and_neighbours),
    cmocka_unit_test(test_instruction_sets_agree),
    cmocka_unit_test(test_prefix_is_the_smaller_selection),
    cmocka_unit_test(test_index_and_decode),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
