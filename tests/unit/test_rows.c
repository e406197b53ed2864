/* Permutations, kept positions, picked rows. */
#include "tests/support/numbers.h"

#include "core/base/mem.h"
#include "core/data/rows.h"

#define SHAPE(...) ((const int64_t[]){ __VA_ARGS__ })

static const int32_t *order_of(const sl_tensor *x) { return sl_tensor_data(x); }

static sl_tensor *permutation(int64_t n, uint64_t seed, uint32_t stream, uint64_t step) {
  sl_tensor *p = NULL;
  CHECK(sl_random_permutation(n, seed, stream, step, &p));
  return p;
}

static void test_is_a_permutation(void **state) {
  (void)state;
  static const int64_t sizes[] = { 0, 1, 2, 3, 17, 4096, 100003 };
  for (size_t s = 0; s < LENGTH(sizes); s++) {
    int64_t n = sizes[s];
    sl_tensor *p = permutation(n, 42, 11, 3);
    unsigned char *seen = calloc((size_t)n + 1, 1);
    assert_non_null(seen);
    assert_int_equal(sl_tensor_count(p), n);
    for (int64_t i = 0; i < n; i++) {
      int32_t v = order_of(p)[i];
      assert_true(v >= 0 && v < n && !seen[v]);
      seen[v] = 1;
    }
    free(seen);
    sl_tensor_release(p);
  }
}

static void test_depends_on_its_numbers_alone(void **state) {
  (void)state;
  enum { N = 257 };
  sl_tensor *a = permutation(N, 1, 2, 3), *b = permutation(N, 1, 2, 3);
  assert_memory_equal(sl_tensor_data(a), sl_tensor_data(b), N * sizeof(int32_t));
  sl_tensor *others[] = { permutation(N, 2, 2, 3), permutation(N, 1, 3, 3), permutation(N, 1, 2, 4),
                          permutation(N, 1, 2, 2) };
  for (size_t i = 0; i < LENGTH(others); i++) {
    int equal = 0;
    for (int j = 0; j < N; j++) equal += order_of(a)[j] == order_of(others[i])[j];
    assert_true(equal < 12); /* one is expected */
    sl_tensor_release(others[i]);
  }
  sl_tensor_release(a), sl_tensor_release(b);
}

/* Every value is equally likely at every place, and every order of four: chi-square against its 99.99 % points. */
static void test_is_uniform(void **state) {
  (void)state;
  enum { N = 8, DRAWS = 20000 };
  int counts[N][N] = { { 0 } }, orders[256] = { 0 };
  for (uint64_t step = 0; step < DRAWS; step++) {
    sl_tensor *p = permutation(N, 9, 1, step), *q = permutation(4, 9, 2, step);
    for (int i = 0; i < N; i++) counts[i][order_of(p)[i]]++;
    const int32_t *o = order_of(q);
    orders[o[0] * 64 + o[1] * 16 + o[2] * 4 + o[3]]++;
    sl_tensor_release(p), sl_tensor_release(q);
  }
  double places = 0, expected = (double)DRAWS / N;
  for (int i = 0; i < N * N; i++) places += pow(counts[i / N][i % N] - expected, 2) / expected;
  assert_true(places < 96); /* 49 degrees of freedom: 94.3 */
  double all = 0, share = (double)DRAWS / 24;
  int kinds = 0;
  for (int i = 0; i < 256; i++) {
    if (orders[i] == 0) continue;
    kinds++;
    all += pow(orders[i] - share, 2) / share;
  }
  assert_int_equal(kinds, 24);
  assert_true(all < 57); /* 23 degrees of freedom: 55.5 */
}

static sl_tensor *ids_of(int64_t n, const int32_t *values) {
  sl_tensor *x;
  CHECK(sl_tensor_create(sl_cpu_device(), SL_I32, 1, &n, &x));
  CHECK(sl_tensor_write(x, values, (size_t)n * sizeof *values));
  return x;
}

static void test_kept(void **state) {
  (void)state;
  static const int32_t values[] = { 101, 7, 8, 102, 0, 0, 101, 9, 102, 7 }, excluded[] = { 101, 102, 0 };
  static const uint8_t on[] = { 1, 1, 1, 1, 0, 0, 1, 1, 1, 0 };
  sl_tensor *flat = ids_of(10, values), *ids, *mask, *kept = NULL, *mask_out = NULL;
  CHECK(sl_tensor_view(flat, 2, SHAPE(2, 5), &ids));
  CHECK(sl_tensor_create(sl_cpu_device(), SL_U8, 2, SHAPE(2, 5), &mask));
  CHECK(sl_tensor_write(mask, on, sizeof on));
  CHECK(sl_kept_positions(ids, mask, excluded, 3, &kept));
  static const int32_t want[] = { 1, 2, 7 };
  assert_int_equal(sl_tensor_count(kept), 3);
  assert_memory_equal(sl_tensor_data(kept), want, sizeof want);
  CHECK(sl_kept_mask(ids, mask, excluded, 3, &mask_out));
  static const uint8_t want_mask[] = { 0, 1, 1, 0, 0, 0, 0, 1, 0, 0 };
  assert_true(sl_tensor_same_shape(mask_out, ids));
  assert_memory_equal(sl_tensor_data(mask_out), want_mask, sizeof want_mask);
  sl_tensor_release(kept), kept = NULL;
  CHECK(sl_kept_positions(ids, NULL, NULL, 0, &kept)); /* nothing excluded, no mask: all */
  assert_int_equal(sl_tensor_count(kept), 10);
  sl_tensor_release(kept), kept = NULL;
  static const int32_t everything[] = { 101, 7, 8, 102, 0, 9 };
  CHECK(sl_kept_positions(ids, NULL, everything, 6, &kept));
  assert_int_equal(sl_tensor_count(kept), 0);
  sl_tensor_release(kept), kept = NULL;
  assert_int_equal(sl_kept_positions(mask, NULL, NULL, 0, &kept), SL_EDTYPE);
  assert_int_equal(sl_kept_positions(flat, mask, NULL, 0, &kept), SL_ESHAPE);
  assert_null(kept);
  sl_tensor_release(flat), sl_tensor_release(ids), sl_tensor_release(mask), sl_tensor_release(mask_out);
}

static void test_pick(void **state) {
  (void)state;
  sl_tensor *flat = ids_of(6, (const int32_t[]){ 0, 1, 10, 11, 20, 21 }), *matrix, *picked = NULL, *turned;
  CHECK(sl_tensor_view(flat, 2, SHAPE(3, 2), &matrix));
  sl_tensor *rows = ids_of(4, (const int32_t[]){ 2, 0, 2, 1 }), *none = ids_of(0, NULL);
  CHECK(sl_pick_rows(matrix, rows, &picked));
  static const int32_t want[] = { 20, 21, 0, 1, 20, 21, 10, 11 };
  assert_memory_equal(sl_tensor_data(picked), want, sizeof want);
  sl_tensor_release(picked), picked = NULL;
  CHECK(sl_pick_rows(matrix, none, &picked));
  assert_int_equal(picked->shape[0], 0);
  assert_int_equal(picked->shape[1], 2);
  sl_tensor_release(picked), picked = NULL;
  static const int32_t outside[] = { 3, -1, INT32_MIN };
  for (int i = 0; i < 3; i++) {
    sl_tensor *bad = ids_of(1, &outside[i]);
    assert_int_equal(sl_pick_rows(matrix, bad, &picked), SL_EINVAL);
    sl_tensor_release(bad);
  }
  CHECK(sl_tensor_transpose(matrix, 0, 1, &turned));
  assert_int_equal(sl_pick_rows(turned, none, &picked), SL_EDEVICE);
  assert_int_equal(sl_pick_rows(flat, none, &picked), SL_ESHAPE);
  assert_null(picked);
  sl_tensor_release(flat), sl_tensor_release(matrix), sl_tensor_release(rows), sl_tensor_release(none);
  sl_tensor_release(turned);
}

static void test_torture(void **state) {
  (void)state;
  sl_tensor *ids = ids_of(4, (const int32_t[]){ 1, 2, 3, 4 });
  sl_mem_stats before = sl_mem_get_stats();
  for (int n = 1; n < 20; n++) {
    sl_tensor *p = NULL, *kept = NULL;
    sl_mem_fail_at(n);
    sl_status one = sl_random_permutation(50, 1, 1, 1, &p);
    sl_mem_fail_at(n);
    sl_status two = sl_kept_positions(ids, NULL, NULL, 0, &kept);
    sl_mem_fail_at(0);
    assert_true((one == SL_OK) == (p != NULL));
    assert_true((two == SL_OK) == (kept != NULL));
    sl_tensor_release(p), sl_tensor_release(kept);
    assert_int_equal(sl_mem_get_stats().blocks, before.blocks);
  }
  sl_tensor_release(ids);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_is_a_permutation), cmocka_unit_test(test_depends_on_its_numbers_alone),
    cmocka_unit_test(test_is_uniform), cmocka_unit_test(test_kept), cmocka_unit_test(test_pick),
    cmocka_unit_test(test_torture),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
