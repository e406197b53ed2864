/* Tensor headers: creation and its limits, views, copies, host exchange, allocation failures. */
#include "tests/support/numbers.h"

#include "core/base/mem.h"

#define SHAPE(...) ((const int64_t[]){ __VA_ARGS__ })

static void check_refused(sl_status status, sl_status code, const char *words) {
  if (status != code) fail_msg("expected %s, got %s", sl_status_name(code), sl_status_name(status));
  if (!strstr(sl_last_error(), words)) fail_msg("message \"%s\" lacks \"%s\"", sl_last_error(), words);
}

/* 0, 1, 2, ... */
static sl_tensor *counting(int rank, const int64_t *shape) {
  sl_tensor *x = make_tensor(rank, shape, 1, 1);
  for (int64_t i = 0; i < sl_tensor_count(x); i++) sl_tensor_f32(x)[i] = (float)i;
  return x;
}

/* The elements of any view of f32, by its strides alone. */
static void check_elements(const sl_tensor *x, const float *want) {
  int64_t count = sl_tensor_count(x);
  for (int64_t i = 0; i < count; i++) {
    int64_t rest = i, at = x->offset;
    for (int d = x->rank - 1; d >= 0; d--) {
      at += rest % x->shape[d] * x->strides[d];
      rest /= x->shape[d];
    }
    float got = ((const float *)x->storage->data)[at];
    if (got != want[i]) fail_msg("element %lld: %g, expected %g", (long long)i, (double)got, (double)want[i]);
  }
}

static void test_create(void **state) {
  (void)state;
  sl_device *cpu = sl_cpu_device();
  sl_tensor *x = NULL;
  CHECK(sl_tensor_zeros(cpu, SL_BF16, 3, SHAPE(2, 3, 4), &x));
  assert_int_equal(sl_tensor_count(x), 24);
  assert_int_equal(x->strides[0], 12);
  assert_int_equal(x->strides[2], 1);
  assert_true(sl_tensor_is_contiguous(x));
  assert_int_equal((uintptr_t)sl_tensor_data(x) % 64, 0);
  sl_tensor_release(x);
  CHECK(sl_tensor_create(cpu, SL_F32, 0, NULL, &x)); /* a scalar */
  assert_int_equal(sl_tensor_count(x), 1);
  sl_tensor_release(x);
  CHECK(sl_tensor_create(cpu, SL_F32, 2, SHAPE(0, 5), &x)); /* nothing at all */
  assert_int_equal(sl_tensor_count(x), 0);
  assert_true(sl_tensor_is_contiguous(x));
  CHECK(sl_tensor_fill_zero(x));
  sl_tensor_release(x);
}

static void test_create_refusals(void **state) {
  (void)state;
  sl_device *cpu = sl_cpu_device();
  sl_tensor *x = NULL;
  const int64_t huge = INT64_C(1) << 62;
  check_refused(sl_tensor_create(cpu, SL_F32, 1, SHAPE(-1), &x), SL_ESHAPE, "[-1]");
  check_refused(sl_tensor_create(cpu, SL_F32, SL_MAX_RANK + 1, SHAPE(1, 1, 1, 1, 1, 1, 1, 1, 1), &x), SL_ESHAPE,
                "dimensions");
  check_refused(sl_tensor_create(cpu, SL_F32, 1, SHAPE(huge), &x), SL_ESHAPE, "too large");
  check_refused(sl_tensor_create(cpu, SL_F32, 2, SHAPE(huge, 4), &x), SL_ESHAPE, "too large");
  /* a zero must not hide the overflow: strides are products too */
  check_refused(sl_tensor_create(cpu, SL_F32, 3, SHAPE(0, huge, huge), &x), SL_ESHAPE, "too large");
  check_refused(sl_tensor_create(cpu, SL_F32, 3, SHAPE(huge, huge, 0), &x), SL_ESHAPE, "too large");
  assert_null(x);
}

static void test_over(void **state) {
  (void)state;
  sl_tensor *x = counting(1, SHAPE(16)), *part = NULL;
  CHECK(sl_tensor_over(x->storage, SL_F32, 2, SHAPE(2, 3), 4, &part));
  check_elements(part, (const float[]){ 4, 5, 6, 7, 8, 9 });
  sl_tensor_release(part);
  part = NULL;
  check_refused(sl_tensor_over(x->storage, SL_F32, 1, SHAPE(17), 0, &part), SL_ESHAPE, "does not fit");
  check_refused(sl_tensor_over(x->storage, SL_F32, 1, SHAPE(1), 16, &part), SL_ESHAPE, "does not fit");
  check_refused(sl_tensor_over(x->storage, SL_F32, 1, SHAPE(1), -1, &part), SL_ESHAPE, "does not fit");
  /* 2^62 elements are 2^64 bytes, which is 0 in a size_t */
  check_refused(sl_tensor_over(x->storage, SL_F32, 1, SHAPE(1), INT64_C(1) << 62, &part), SL_ESHAPE, "does not fit");
  sl_tensor_release(x);
}

static void test_views(void **state) {
  (void)state;
  sl_tensor *x = counting(2, SHAPE(3, 4)), *t, *s, *v = NULL;
  CHECK(sl_tensor_transpose(x, 0, 1, &t));
  assert_false(sl_tensor_is_contiguous(t));
  check_elements(t, (const float[]){ 0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11 });
  check_refused(sl_tensor_view(t, 1, SHAPE(12), &v), SL_ESHAPE, "not contiguous");
  CHECK(sl_tensor_slice(t, 0, 1, 2, &s)); /* columns 1 and 2 */
  check_elements(s, (const float[]){ 1, 5, 9, 2, 6, 10 });
  sl_tensor_release(s);
  CHECK(sl_tensor_select(t, 1, 2, &s)); /* the last row */
  assert_int_equal(s->rank, 1);
  check_elements(s, (const float[]){ 8, 9, 10, 11 });
  assert_true(sl_tensor_is_contiguous(s));
  sl_tensor_release(s);
  CHECK(sl_tensor_slice(x, 1, 4, 0, &s)); /* empty, at the end */
  assert_int_equal(sl_tensor_count(s), 0);
  sl_tensor_release(s);
  check_refused(sl_tensor_slice(x, 1, 3, 2, &v), SL_ESHAPE, "positions 4 to 5");
  check_refused(sl_tensor_slice(x, 1, INT64_MAX, 1, &v), SL_ESHAPE, "slice");
  check_refused(sl_tensor_slice(x, 1, 0, INT64_MAX, &v), SL_ESHAPE, "slice");
  check_refused(sl_tensor_slice(x, 2, 0, 1, &v), SL_ESHAPE, "no dimension 3");
  check_refused(sl_tensor_select(x, 0, 3, &v), SL_ESHAPE, "slice");
  check_refused(sl_tensor_transpose(x, 0, 2, &v), SL_ESHAPE, "no dimension 3");
  CHECK(sl_tensor_view(x, 3, SHAPE(2, 1, 6), &v));
  check_elements(v, (const float[]){ 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 });
  sl_tensor_release(v), v = NULL;
  check_refused(sl_tensor_view(x, 2, SHAPE(5, 3), &v), SL_ESHAPE, "12 elements");
  sl_tensor_release(x); /* the views hold the storage */
  check_elements(t, (const float[]){ 0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11 });
  sl_tensor_release(t);
}

static void test_expand(void **state) {
  (void)state;
  sl_tensor *x = counting(2, SHAPE(1, 3)), *e = NULL, *c;
  CHECK(sl_tensor_expand(x, 3, SHAPE(2, 2, 3), &e));
  check_elements(e, (const float[]){ 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2 });
  assert_false(sl_tensor_is_contiguous(e));
  CHECK(sl_tensor_clone(e, &c));
  check_elements(c, (const float[]){ 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2 });
  check_refused(sl_tensor_copy_(e, c), SL_ESHAPE, "expanded");
  sl_tensor_release(c), sl_tensor_release(e), e = NULL;
  CHECK(sl_tensor_expand(x, 2, SHAPE(0, 3), &e)); /* 1 broadcasts to 0 */
  assert_int_equal(sl_tensor_count(e), 0);
  sl_tensor_release(e), e = NULL;
  check_refused(sl_tensor_expand(x, 2, SHAPE(-4, 3), &e), SL_ESHAPE, "negative");
  check_refused(sl_tensor_expand(x, 1, SHAPE(3), &e), SL_ESHAPE, "broadcast");
  check_refused(sl_tensor_expand(x, 2, SHAPE(2, 4), &e), SL_ESHAPE, "broadcast");
  check_refused(sl_tensor_expand(x, 3, SHAPE(INT64_C(1) << 40, INT64_C(1) << 40, 3), &e), SL_ESHAPE, "too large");
  check_refused(sl_tensor_expand(x, SL_MAX_RANK + 1, SHAPE(1, 1, 1, 1, 1, 1, 1, 1, 3), &e), SL_ESHAPE, "dimensions");
  sl_tensor_release(x);
}

static void test_copies(void **state) {
  (void)state;
  sl_tensor *x = counting(2, SHAPE(3, 3)), *y = make_tensor(2, SHAPE(3, 3), 1, 2), *t, *u, *z = NULL;
  CHECK(sl_tensor_transpose(x, 0, 1, &t));
  CHECK(sl_tensor_transpose(y, 0, 1, &u));
  static const float turned[] = { 0, 3, 6, 1, 4, 7, 2, 5, 8 };
  CHECK(sl_tensor_copy_(y, t)); /* strided -> dense */
  check_elements(y, turned);
  CHECK(sl_tensor_copy_(u, t)); /* strided -> strided */
  check_elements(u, turned);
  CHECK(sl_tensor_copy_(u, x)); /* dense -> strided */
  check_elements(y, turned);
  CHECK(sl_tensor_copy_(x, t)); /* onto its own memory, turned */
  check_elements(x, turned);
  CHECK(sl_tensor_copy_(t, x)); /* and back through the other view */
  check_elements(x, (const float[]){ 0, 1, 2, 3, 4, 5, 6, 7, 8 });
  CHECK(sl_tensor_contiguous(x, &z));
  assert_ptr_equal(z, x);
  sl_tensor_release(z);
  CHECK(sl_tensor_contiguous(t, &z));
  assert_true(z->storage != x->storage);
  check_elements(z, turned);
  sl_tensor_release(z), z = NULL;
  CHECK(sl_tensor_slice(x, 0, 0, 2, &z));
  check_refused(sl_tensor_copy_(x, z), SL_ESHAPE, "[2 x 3]");
  check_refused(sl_tensor_fill_zero(t), SL_ESHAPE, "not contiguous");
  sl_tensor_release(z), sl_tensor_release(t), sl_tensor_release(u), sl_tensor_release(x), sl_tensor_release(y);
}

/* Rows shifted by one within one storage: memmove, not memcpy. */
static void test_overlapping_rows(void **state) {
  (void)state;
  sl_tensor *x = counting(2, SHAPE(4, 5)), *low, *high;
  CHECK(sl_tensor_slice(x, 0, 0, 3, &low));
  CHECK(sl_tensor_slice(x, 0, 1, 3, &high));
  CHECK(sl_tensor_copy_(high, low));
  check_elements(x, (const float[]){ 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14 });
  sl_tensor_release(low), sl_tensor_release(high), sl_tensor_release(x);
}

static void test_host_exchange(void **state) {
  (void)state;
  sl_tensor *x = make_tensor(2, SHAPE(2, 2), 1, 1), *t;
  float host[4] = { 1, 2, 3, 4 }, back[4] = { 0 };
  CHECK(sl_tensor_write(x, host, sizeof host));
  CHECK(sl_tensor_read(x, back, sizeof back));
  assert_memory_equal(host, back, sizeof host);
  check_refused(sl_tensor_read(x, back, 8), SL_ESHAPE, "16 bytes");
  CHECK(sl_tensor_transpose(x, 0, 1, &t));
  check_refused(sl_tensor_write(t, host, sizeof host), SL_ESHAPE, "not contiguous");
  sl_tensor_release(t), sl_tensor_release(x);
}

static void test_item(void **state) {
  (void)state;
  sl_device *cpu = sl_cpu_device();
  double value;
#define ITEM(dtype, type, given, want)                                                  \
  do {                                                                                  \
    sl_tensor *x;                                                                       \
    type raw = (given);                                                                 \
    CHECK(sl_tensor_create(cpu, dtype, 0, NULL, &x));                                   \
    CHECK(sl_tensor_write(x, &raw, sizeof raw));                                        \
    CHECK(sl_tensor_item(x, &value));                                                   \
    assert_true(value == (want));                                                       \
    sl_tensor_release(x);                                                               \
  } while (0)
  ITEM(SL_F32, float, -1.5f, -1.5);
  ITEM(SL_BF16, uint16_t, sl_f32_to_bf16(2.5f), 2.5);
  ITEM(SL_F16, uint16_t, sl_f32_to_f16(-0.25f), -0.25);
  ITEM(SL_I64, int64_t, INT64_C(-9007199254740992), -9007199254740992.0);
  ITEM(SL_I32, int32_t, INT32_MIN, -2147483648.0);
  ITEM(SL_U8, uint8_t, 255, 255.0);
  sl_tensor *two = make_tensor(1, SHAPE(2), 1, 1), *none = make_tensor(1, SHAPE(0), 1, 1);
  check_refused(sl_tensor_item(two, &value), SL_ESHAPE, "exactly one");
  check_refused(sl_tensor_item(none, &value), SL_ESHAPE, "exactly one");
  sl_tensor_release(two), sl_tensor_release(none);
}

static void test_output_and_expect(void **state) {
  (void)state;
  sl_device *cpu = sl_cpu_device();
  sl_tensor *x = make_tensor(2, SHAPE(2, 3), 1, 1), *given = x, *fresh = NULL;
  CHECK(sl_tensor_output(cpu, SL_F32, 2, SHAPE(2, 3), &given));
  assert_ptr_equal(given, x);
  check_refused(sl_tensor_output(cpu, SL_F32, 2, SHAPE(3, 2), &given), SL_ESHAPE, "[2 x 3]");
  check_refused(sl_tensor_output(cpu, SL_BF16, 2, SHAPE(2, 3), &given), SL_ESHAPE, "bf16");
  CHECK(sl_tensor_output(cpu, SL_I32, 1, SHAPE(7), &fresh));
  assert_int_equal(sl_tensor_count(fresh), 7);
  check_refused(sl_tensor_expect(x, "op", "x", SL_I32, 2), SL_EDTYPE, "op: x is f32 [2 x 3], expected i32");
  check_refused(sl_tensor_expect(x, "op", "x", SL_F32, 1), SL_ESHAPE, "expected 1 dimension");
  sl_tensor_release(fresh), sl_tensor_release(x);
}

/* The whole life of a tensor with the n-th allocation failing. */
static sl_status lifetime(void) {
  sl_tensor *x = NULL, *t = NULL, *c = NULL, *s = NULL, *e = NULL;
  sl_status status = sl_tensor_zeros(sl_cpu_device(), SL_F32, 2, SHAPE(3, 5), &x);
  if (status == SL_OK) status = sl_tensor_transpose(x, 0, 1, &t);
  if (status == SL_OK) status = sl_tensor_clone(t, &c);
  if (status == SL_OK) status = sl_tensor_copy_(t, c);
  if (status == SL_OK) status = sl_tensor_slice(t, 1, 1, 1, &s);
  if (status == SL_OK) status = sl_tensor_expand(s, 2, SHAPE(5, 9), &e);
  if (status == SL_OK) status = sl_tensor_clone(e, &x->grad);
  sl_tensor *all[] = { x, t, c, s, e };
  for (int i = 0; i < 5; i++) sl_tensor_release(all[i]);
  return status;
}

static void test_torture(void **state) {
  (void)state;
  sl_pool_trim();
  CHECK(lifetime());
  sl_mem_stats before = sl_mem_get_stats();
  int n = 1;
  for (;; n++) {
    sl_mem_fail_at(n);
    sl_status status = lifetime();
    sl_mem_fail_at(0);
    sl_mem_stats after = sl_mem_get_stats();
    assert_int_equal(after.blocks, before.blocks);
    assert_int_equal(after.bytes, before.bytes);
    if (status == SL_OK) break;
    assert_int_equal(status, SL_ENOMEM);
    assert_true(n < 100);
  }
  assert_true(n > 8);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_create), cmocka_unit_test(test_create_refusals), cmocka_unit_test(test_over),
    cmocka_unit_test(test_views), cmocka_unit_test(test_expand), cmocka_unit_test(test_copies),
    cmocka_unit_test(test_overlapping_rows), cmocka_unit_test(test_host_exchange), cmocka_unit_test(test_item),
    cmocka_unit_test(test_output_and_expect), cmocka_unit_test(test_torture),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
