/* Counted memory and its injected faults; the interrupt flag. */
#include "tests/support/numbers.h"

#include "core/base/interrupt.h"
#include "core/base/mem.h"

static void test_alloc(void **state) {
  (void)state;
  sl_mem_stats before = sl_mem_get_stats();
  unsigned char *block, *none = NULL;
  char *copy;
  CHECK(sl_mem_alloc(1000, "a test", (void **)&block));
  assert_int_equal((uintptr_t)block % 16, 0);
  for (int i = 0; i < 1000; i++) assert_int_equal(block[i], 0);
  CHECK(sl_mem_alloc(0, "nothing", (void **)&none));
  assert_non_null(none);
  CHECK(sl_mem_strdup("", &copy));
  assert_string_equal(copy, "");
  assert_int_equal(sl_mem_get_stats().blocks - before.blocks, 3);
  assert_int_equal(sl_mem_get_stats().bytes - before.bytes, 1001);
  assert_true(sl_mem_get_stats().peak_bytes >= before.bytes + 1001);
  sl_mem_free(block), sl_mem_free(none), sl_mem_free(copy), sl_mem_free(NULL);
  assert_int_equal(sl_mem_get_stats().blocks, before.blocks);
  assert_int_equal(sl_mem_get_stats().bytes, before.bytes);
}

static void test_resize(void **state) {
  (void)state;
  sl_mem_stats before = sl_mem_get_stats();
  char *block = NULL;
  CHECK(sl_mem_resize((void **)&block, 10, "a test"));
  memcpy(block, "012345678", 10);
  CHECK(sl_mem_resize((void **)&block, 100000, "a test"));
  assert_string_equal(block, "012345678");
  assert_int_equal(sl_mem_get_stats().bytes - before.bytes, 100000);
  CHECK(sl_mem_resize((void **)&block, 4, "a test"));
  assert_memory_equal(block, "0123", 4);
  assert_int_equal(sl_mem_get_stats().bytes - before.bytes, 4);
  char *same = block;
  assert_int_equal(sl_mem_resize((void **)&block, SIZE_MAX - 4, "too much"), SL_ENOMEM);
  assert_non_null(strstr(sl_last_error(), "too much"));
  assert_ptr_equal(block, same);
  sl_mem_fail_at(1);
  assert_int_equal(sl_mem_resize((void **)&block, 50, "a test"), SL_ENOMEM);
  assert_ptr_equal(block, same);
  assert_memory_equal(block, "0123", 4);
  sl_mem_free(block);
  assert_int_equal(sl_mem_get_stats().bytes, before.bytes);
}

static void test_faults(void **state) {
  (void)state;
  void *block;
  sl_mem_fail_at(3);
  for (int i = 1; i <= 5; i++) { /* the third one fails, once */
    sl_status status = sl_mem_alloc(8, "a test", &block);
    assert_int_equal(status, i == 3 ? SL_ENOMEM : SL_OK);
    if (status == SL_OK) sl_mem_free(block);
    else assert_null(block);
  }
  sl_mem_fail_at(1); /* device blocks count as well */
  assert_int_equal(sl_mem_count(64, "a device block"), SL_ENOMEM);
  sl_mem_stats before = sl_mem_get_stats();
  CHECK(sl_mem_count(64, "a device block"));
  assert_int_equal(sl_mem_get_stats().bytes - before.bytes, 64);
  sl_mem_uncount(64);
  assert_int_equal(sl_mem_get_stats().blocks, before.blocks);
}

/* The counts are atomic. */
static void test_threads(void **state) {
  (void)state;
  sl_mem_stats before = sl_mem_get_stats();
#pragma omp parallel for num_threads(4)
  for (int i = 0; i < 10000; i++) {
    void *block = NULL;
    if (sl_mem_alloc((size_t)(i % 100), "a test", &block) == SL_OK) sl_mem_free(block);
  }
  assert_int_equal(sl_mem_get_stats().blocks, before.blocks);
  assert_int_equal(sl_mem_get_stats().bytes, before.bytes);
}

static void test_interrupt(void **state) {
  (void)state;
  CHECK(sl_interrupt_check());
  sl_interrupt_raise();
  sl_interrupt_raise();
  assert_int_equal(sl_interrupt_check(), SL_EINTERRUPT);
  assert_int_equal(sl_interrupt_check(), SL_EINTERRUPT); /* looking does not clear it */
  assert_int_equal(sl_interrupt_clear(), 1);
  assert_int_equal(sl_interrupt_clear(), 0);
  CHECK(sl_interrupt_check());
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_alloc), cmocka_unit_test(test_resize), cmocka_unit_test(test_faults),
    cmocka_unit_test(test_threads), cmocka_unit_test(test_interrupt),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
