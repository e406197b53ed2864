/* The stand-in for cmocka (tests/support/small_cmocka) counts what fails, skips what asks for it, and goes on. */
#include "cmocka.h"

static int ran, ended;

static void passes(void **state) {
  (void)state;
  ran++;
  assert_true(1);
  assert_int_equal(-1, -1);
  assert_int_not_equal(1, 2);
  assert_string_equal("a", "a");
  assert_memory_equal("abc", "abd", 2);
  assert_in_range(3, 1, 3);
  assert_float_equal(1.0, 1.05, 0.1);
}
static void skips(void **state) {
  (void)state;
  ran++;
  skip();
}
static int end(void **state) {
  (void)state;
  ended++;
  return 0;
}

/* One test for each way to fail. */
#define FAILS(name, ...)                                                                                     \
  static void name(void **state) {                                                                           \
    (void)state;                                                                                             \
    ran++;                                                                                                   \
    __VA_ARGS__;                                                                                             \
    ran += 1000; /* an assertion that failed does not come back */                                           \
  }
FAILS(fails_true, assert_true(0))
FAILS(fails_false, assert_false(1))
FAILS(fails_null, assert_non_null(NULL))
FAILS(fails_int, assert_int_equal(1, 2))
FAILS(fails_not_int, assert_int_not_equal(2, 2))
FAILS(fails_text, assert_string_equal("a", "b"))
FAILS(fails_memory, assert_memory_equal("abc", "abd", 3))
FAILS(fails_range, assert_in_range(4, 1, 3))
FAILS(fails_nan, assert_float_equal(NAN, NAN, 1))
FAILS(fails_message, fail_msg("with %d words", 2))

int main(void) {
  const struct CMUnitTest good[] = { cmocka_unit_test(passes), cmocka_unit_test_setup_teardown(skips, NULL, end) };
  const struct CMUnitTest bad[] = {
    cmocka_unit_test(fails_true),  cmocka_unit_test(fails_false),  cmocka_unit_test(fails_null),
    cmocka_unit_test(fails_int),   cmocka_unit_test(fails_not_int), cmocka_unit_test(fails_text),
    cmocka_unit_test(fails_memory), cmocka_unit_test(fails_range), cmocka_unit_test(fails_nan),
    cmocka_unit_test_setup_teardown(fails_message, NULL, end), cmocka_unit_test(passes),
  };
  int good_failed = cmocka_run_group_tests(good, NULL, NULL), bad_failed = cmocka_run_group_tests(bad, NULL, NULL);
  if (good_failed == 0 && bad_failed == 10 && ran == 13 && ended == 2) return 0;
  fprintf(stderr, "%d and %d failed, expected 0 and 10; %d ran, expected 13; %d teardowns\n", good_failed, bad_failed,
          ran, ended);
  return 1;
}
