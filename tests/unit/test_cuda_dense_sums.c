/* The CUDA reductions and the selection of the largest against the CPU's. Sums are float64 on both sides; choices are
 * exact, ties and NaN included. */
#include "tests/support/device_pair.h"

/* -- Reductions -- */

static const int64_t cubes[][3] = { { 1, 1, 1 },   { 1, 0, 3 },     { 5, 1, 1 },   { 3, 7, 1 },    { 40, 33, 1 },
                                    { 2, 1024, 1 }, { 2, 1025, 1 }, { 1, 5000, 1 }, { 1, 30011, 1 }, { 1, 300, 5 },
                                    { 1, 3000, 33 }, { 4, 513, 40 }, { 3, 9, 131 }, { 70, 2, 3 },    { 0, 4, 4 } };

/* Few distinct numbers, so that the best ones repeat. */
static float *tied_numbers(int64_t n, uint64_t seed) {
  float *x = make_numbers(n, 1, seed);
  for (int64_t i = 0; i < n; i++) x[i] = roundf(x[i] * 20) / 20;
  return x;
}

static void check_reduce(sl_reduce_op op, const int64_t *cube, const float *numbers, bool with_index) {
  int64_t outer = cube[0], n = cube[1], inner = cube[2];
  bool sums = op == SL_REDUCE_SUM || op == SL_REDUCE_MEAN;
  if (n == 0 && !sums) return; /* nothing to choose from: refused above */
  pair p = pair_open();
  block *x = pair_of(&p, numbers, (size_t)(outer * n * inner) * 4), *y = pair_block(&p, (size_t)(outer * inner) * 4);
  block *index = pair_block(&p, (size_t)(outer * inner) * 4);
  for (int side = 0; side < 2; side++) {
    sl_reduce_args args = { .op = op, .outer = outer, .n = n, .inner = inner, .x = AT(x, side), .y = AT(y, side),
                            .index = with_index ? AT(index, side) : NULL };
    PAIR_RUN_WORKING(&p, side, reduce, &args);
  }
  pair_check_close(&p, "reduce", y, sums ? 1e-7 : 0);
  if (with_index && !sums) pair_check_same(&p, "reduce's index", index);
  pair_close(&p);
}

static void test_reduce(void **state) {
  (void)state;
  for (size_t c = 0; c < LENGTH(cubes); c++) {
    float *x = tied_numbers(cubes[c][0] * cubes[c][1] * cubes[c][2], c);
    for (int op = SL_REDUCE_SUM; op <= SL_REDUCE_MIN; op++) check_reduce((sl_reduce_op)op, cubes[c], x, c % 3 != 0);
    free(x);
  }
}

/* The first NaN wins; infinities count; the first entry is the largest of -infinities, and of 0 and -0. */
static void test_reduce_specials(void **state) {
  (void)state;
  for (size_t c = 2; c + 1 < LENGTH(cubes); c++) {
    int64_t n = cubes[c][0] * cubes[c][1] * cubes[c][2];
    for (int kind = 0; kind < 4; kind++) {
      float *x = tied_numbers(n, c);
      for (int64_t i = 0; i < n; i++) {
        if (kind == 0 && i % 37 == 5) x[i] = NAN;
        if (kind == 1 && i % 11 == 3) x[i] = i % 2 ? INFINITY : -INFINITY;
        if (kind == 2) x[i] = -INFINITY;
        if (kind == 3) x[i] = i % 3 ? 0.0f : -0.0f;
      }
      for (int op = SL_REDUCE_SUM; op <= SL_REDUCE_MIN; op++) check_reduce((sl_reduce_op)op, cubes[c], x, true);
      free(x);
    }
  }
}

static void test_sum_squares(void **state) {
  (void)state;
  static const int64_t sizes[] = { 0, 1, 3, 1023, 1024, 1025, 4100, 70001 };
  for (size_t s = 0; s < LENGTH(sizes); s++) {
    for (int shift = 0; shift < 2; shift++) {
      pair p = pair_open();
      double got[2] = { -1, -1 };
      block *x = pair_floats_shifted(&p, sizes[s], 1e18f, 9, shift); /* squares beyond float32 */
      for (int side = 0; side < 2; side++) {
        sl_sum_squares_args args = { .x = AT(x, side), .n = sizes[s], .result = &got[side] };
        PAIR_RUN_WORKING(&p, side, sum_squares, &args);
      }
      assert_true(fabs(got[PAIR_CUDA] - got[PAIR_CPU]) <= 1e-12 * got[PAIR_CPU]);
      pair_close(&p);
    }
  }
}

/* -- Top-k -- */

static void check_topk(const float *numbers, int64_t rows, int64_t n, int64_t k, int shift) {
  for (int absolute = 0; absolute < 2; absolute++) {
    pair p = pair_open();
    block *x = pair_block_shifted(&p, (size_t)(rows * n) * 4, (size_t)shift * 4);
    block *values = pair_block(&p, (size_t)(rows * k) * 4), *indices = pair_block(&p, (size_t)(rows * k) * 4);
    pair_put(&p, x, numbers);
    for (int side = 0; side < 2; side++) {
      sl_topk_rows_args args = { .x = AT(x, side), .rows = rows, .n = n, .k = k, .absolute = absolute != 0,
                                 .values = AT(values, side), .indices = AT(indices, side) };
      PAIR_RUN(&p, side, topk_rows, &args);
    }
    pair_check_same(&p, "topk's indices", indices);
    pair_check_close(&p, "topk's values", values, 0);
    pair_close(&p);
  }
}

static const int64_t selections[][3] = {
  { 0, 5, 2 },      { 1, 1, 1 },     { 3, 17, 0 },    { 3, 17, 5 },       { 2, 17, 17 },
  { 5, 256, 32 },   { 5, 257, 32 },  { 2, 300, 300 }, { 4, 1000, 1 },     { 2, 3001, 192 },
  { 2, 4097, 64 },  { 2, 4100, 33 }, { 1, 3000, 2048 }, { 1, 3000, 2049 }, { 1, 2500, 2500 },
};

static void test_topk(void **state) {
  (void)state;
  for (size_t s = 0; s < LENGTH(selections); s++) {
    int64_t rows = selections[s][0], n = selections[s][1], k = selections[s][2];
    float *x = make_numbers(rows * n, 1, s), *tied = tied_numbers(rows * n, s);
    check_topk(x, rows, n, k, (int)(s % 2));
    check_topk(tied, rows, n, k, 0);
    free(x), free(tied);
  }
}

/* Rows of one value, of NaN and infinities, of both zeros, of numbers that differ in the last bits, of denormals. */
static void test_topk_specials(void **state) {
  (void)state;
  for (size_t s = 3; s < LENGTH(selections); s++) {
    int64_t rows = selections[s][0], n = selections[s][1], k = selections[s][2];
    for (int kind = 0; kind < 5; kind++) {
      float *x = make_numbers(rows * n, 1, s);
      for (int64_t i = 0; i < rows * n; i++) {
        if (kind == 0) x[i] = -2.5f;
        if (kind == 1) x[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? -INFINITY : i % 7 == 0 ? INFINITY : x[i];
        if (kind == 2) x[i] = i % 2 ? 0.0f : -0.0f;
        if (kind == 3) x[i] = 1.0f + (float)(i * 7919 % 1009) * 1.1920929e-7f;
        if (kind == 4) x[i] *= 1e-39f;
      }
      check_topk(x, rows, n, k, 0);
      free(x);
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_reduce),      cmocka_unit_test(test_reduce_specials), cmocka_unit_test(test_sum_squares),
    cmocka_unit_test(test_topk),        cmocka_unit_test(test_topk_specials),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
