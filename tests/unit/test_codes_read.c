/* Codes from fixed-width selections, and looking at them. */
#include "tests/support/numbers.h"

#include "core/base/mem.h"
#include "core/sae/codes_read.h"

enum { ROWS = 3, K = 3, LATENTS = 6 };
static const float values[ROWS * K] = { 0.5f, -2, 1, 0, 3, 0, 4, 5, 6 };
static const int32_t ids[ROWS * K] = { 5, 0, 2, 1, 3, 4, 2, 1, 0 };
static const double dense[ROWS][LATENTS] = { { -2, 0, 1, 0, 0, 0.5 }, { 0, 0, 0, 3, 0, 0 }, { 6, 5, 4, 0, 0, 0 } };

static sl_status make_codes(const float *v, const int32_t *i, int64_t latents, sl_codes **out) {
  int64_t shape[2] = { ROWS, K };
  sl_tensor *tv, *ti;
  CHECK(sl_tensor_create(sl_cpu_device(), SL_F32, 2, shape, &tv));
  CHECK(sl_tensor_create(sl_cpu_device(), SL_I32, 2, shape, &ti));
  memcpy(sl_tensor_data(tv), v, sizeof values);
  memcpy(sl_tensor_data(ti), i, sizeof ids);
  sl_status status = sl_codes_from_topk(tv, ti, latents, out);
  sl_tensor_release(tv), sl_tensor_release(ti);
  return status;
}

static void test_from_topk(void **state) {
  (void)state;
  sl_codes *codes = NULL;
  sl_tensor *all = NULL, *o, *i, *v;
  CHECK(make_codes(values, ids, LATENTS, &codes));
  assert_int_equal(codes->entries, 7); /* exact zeros are gone */
  CHECK(sl_codes_to_dense(codes, &all));
  for (int r = 0; r < ROWS; r++) check_all_close("row", sl_tensor_f32(all) + r * LATENTS, dense[r], LATENTS, 0);
  CHECK(sl_codes_tensors(codes, &o, &i, &v));
  static const int64_t offsets[] = { 0, 3, 4, 7 };
  static const int32_t ascending[] = { 0, 2, 5, 3, 0, 1, 2 };
  assert_memory_equal(sl_tensor_data(o), offsets, sizeof offsets);
  assert_memory_equal(sl_tensor_data(i), ascending, sizeof ascending);
  sl_codes_release(codes);
  assert_memory_equal(sl_tensor_data(i), ascending, sizeof ascending); /* they live on */
  sl_tensor_release(all), sl_tensor_release(o), sl_tensor_release(i), sl_tensor_release(v);
}

static void test_refusals(void **state) {
  (void)state;
  sl_codes *codes = NULL;
  static const int32_t bad[][2] = { { 0, -1 }, { 1, LATENTS }, { 4, LATENTS }, { 8, 1 } }; /* place, id */
  for (size_t c = 0; c < LENGTH(bad); c++) {
    int32_t changed[ROWS * K];
    memcpy(changed, ids, sizeof ids);
    changed[bad[c][0]] = bad[c][1];
    assert_int_equal(make_codes(values, changed, LATENTS, &codes), SL_EINVAL);
  }
  assert_non_null(strstr(sl_last_error(), "row 2"));
  int32_t double_zero[ROWS * K];
  memcpy(double_zero, ids, sizeof ids);
  double_zero[5] = 3; /* twice, but one of them is zero: no entry */
  CHECK(make_codes(values, double_zero, LATENTS, &codes));
  sl_codes_release(codes);
}

static void test_counts_and_columns(void **state) {
  (void)state;
  sl_codes *codes = NULL;
  sl_tensor *counts = NULL, *columns = NULL;
  CHECK(make_codes(values, ids, LATENTS, &codes));
  CHECK(sl_codes_counts(codes, &counts));
  check_all_close("counts", sl_tensor_f32(counts), (const double[]){ 2, 1, 2, 1, 0, 1 }, LATENTS, 0);
  static const int32_t wanted[] = { 3, 0, 4, 3 }; /* one of them twice */
  CHECK(sl_codes_columns(codes, wanted, 4, &columns));
  check_all_close("columns", sl_tensor_f32(columns), (const double[]){ 0, -2, 0, 0, 3, 0, 0, 3, 0, 6, 0, 0 }, 12, 0);
  sl_tensor_release(columns), columns = NULL;
  assert_int_equal(sl_codes_columns(codes, (const int32_t[]){ LATENTS }, 1, &columns), SL_EINVAL);
  assert_non_null(strstr(sl_last_error(), "latents 0 to 5"));
  assert_int_equal(sl_codes_columns(codes, (const int32_t[]){ -1 }, 1, &columns), SL_EINVAL);
  assert_null(columns);
  sl_tensor_release(counts), sl_codes_release(codes);
}

static void test_torture(void **state) {
  (void)state;
  sl_mem_stats before = sl_mem_get_stats();
  for (int n = 1;; n++) {
    sl_codes *codes = NULL;
    sl_tensor *counts = NULL, *columns = NULL;
    CHECK(make_codes(values, ids, LATENTS, &codes));
    sl_mem_fail_at(n);
    sl_status one = sl_codes_counts(codes, &counts);
    sl_mem_fail_at(n);
    sl_status two = sl_codes_columns(codes, ids, 2, &columns);
    sl_mem_fail_at(0);
    assert_true((one == SL_OK) == (counts != NULL));
    assert_true((two == SL_OK) == (columns != NULL));
    sl_tensor_release(counts), sl_tensor_release(columns), sl_codes_release(codes);
    assert_int_equal(sl_mem_get_stats().blocks, before.blocks);
    if (one == SL_OK && two == SL_OK) break;
    assert_true(n < 60);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_from_topk), cmocka_unit_test(test_refusals), cmocka_unit_test(test_counts_and_columns),
    cmocka_unit_test(test_torture),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
