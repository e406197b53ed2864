/* The part of cmocka's interface that the tests of devices use, for machines without cmocka (./dev gpu-check).
 *
 * Not a replacement: no mocks, no allocation checks, no output formats. A failed assertion leaves its test by longjmp,
 * as cmocka's does. CMOCKA_TEST_FILTER=pattern (with * and ?) picks tests by name. One file a program. */
#ifndef SL_SMALL_CMOCKA_H
#define SL_SMALL_CMOCKA_H

#include <fnmatch.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int (*CMFixtureFunction)(void **state);
struct CMUnitTest {
  const char *name;
  void (*test_func)(void **state);
  CMFixtureFunction setup_func, teardown_func;
  void *initial_state;
};

enum { SMALL_CMOCKA_PASSED = 0, SMALL_CMOCKA_FAILED = 1, SMALL_CMOCKA_SKIPPED = 2 };
static jmp_buf small_cmocka_leave;

/* Prints where and why, and ends the running test. */
__attribute__((noreturn, format(printf, 3, 4))) static inline void
small_cmocka_fail(const char *file, int line, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fprintf(stderr, "\n%s:%d: error: failure!\n", file, line);
  longjmp(small_cmocka_leave, SMALL_CMOCKA_FAILED);
}

__attribute__((noreturn)) static inline void small_cmocka_skip(void) {
  longjmp(small_cmocka_leave, SMALL_CMOCKA_SKIPPED);
}

static inline void small_cmocka_hold(int holds, const char *text, const char *file, int line) {
  if (!holds) small_cmocka_fail(file, line, "%s", text);
}
static inline void small_cmocka_equal(long long a, long long b, int want, const char *file, int line) {
  if ((a == b) != want) small_cmocka_fail(file, line, "%lld %s %lld", a, want ? "!=" : "==", b);
}
static inline void small_cmocka_near(double a, double b, double epsilon, const char *file, int line) {
  if (!(fabs(a - b) <= epsilon)) small_cmocka_fail(file, line, "%.9g is not within %g of %.9g", a, epsilon, b);
}
static inline void small_cmocka_same(const void *a, const void *b, size_t size, int want, const char *file, int line) {
  if ((memcmp(a, b, size) == 0) != want) small_cmocka_fail(file, line, "%zu bytes %s", size, want ? "differ" : "are the same");
}
static inline void small_cmocka_text(const char *a, const char *b, const char *file, int line) {
  if (strcmp(a, b) != 0) small_cmocka_fail(file, line, "\"%s\" != \"%s\"", a, b);
}

#define fail_msg(...) small_cmocka_fail(__FILE__, __LINE__, __VA_ARGS__)
#define fail() small_cmocka_fail(__FILE__, __LINE__, "fail()")
#define skip() small_cmocka_skip()
#define print_message(...) printf(__VA_ARGS__)
#define assert_true(c) small_cmocka_hold(!!(c), #c, __FILE__, __LINE__)
#define assert_false(c) small_cmocka_hold(!(c), "!(" #c ")", __FILE__, __LINE__)
#define assert_non_null(p) small_cmocka_hold((p) != NULL, #p " != NULL", __FILE__, __LINE__)
#define assert_null(p) small_cmocka_hold((p) == NULL, #p " == NULL", __FILE__, __LINE__)
#define assert_ptr_equal(a, b) small_cmocka_hold((a) == (b), #a " == " #b, __FILE__, __LINE__)
#define assert_ptr_not_equal(a, b) small_cmocka_hold((a) != (b), #a " != " #b, __FILE__, __LINE__)
#define assert_int_equal(a, b) small_cmocka_equal((long long)(a), (long long)(b), 1, __FILE__, __LINE__)
#define assert_int_not_equal(a, b) small_cmocka_equal((long long)(a), (long long)(b), 0, __FILE__, __LINE__)
#define assert_in_range(v, low, high) \
  small_cmocka_hold((v) >= (low) && (v) <= (high), #v " in [" #low ", " #high "]", __FILE__, __LINE__)
#define assert_float_equal(a, b, e) small_cmocka_near((double)(a), (double)(b), (double)(e), __FILE__, __LINE__)
#define assert_double_equal(a, b, e) small_cmocka_near((double)(a), (double)(b), (double)(e), __FILE__, __LINE__)
#define assert_memory_equal(a, b, n) small_cmocka_same(a, b, n, 1, __FILE__, __LINE__)
#define assert_memory_not_equal(a, b, n) small_cmocka_same(a, b, n, 0, __FILE__, __LINE__)
#define assert_string_equal(a, b) small_cmocka_text(a, b, __FILE__, __LINE__)

#define cmocka_unit_test(f) { #f, f, NULL, NULL, NULL }
#define cmocka_unit_test_setup_teardown(f, up, down) { #f, f, up, down, NULL }
#define cmocka_run_group_tests(tests, up, down) \
  small_cmocka_run(#tests, tests, sizeof(tests) / sizeof *(tests), up, down)

static inline int small_cmocka_one(const struct CMUnitTest *test, void **state) {
  int outcome = setjmp(small_cmocka_leave);
  if (outcome == SMALL_CMOCKA_PASSED) {
    if (test->setup_func && test->setup_func(state) != 0) return SMALL_CMOCKA_FAILED;
    test->test_func(state);
  }
  if (test->teardown_func && test->teardown_func(state) != 0) return SMALL_CMOCKA_FAILED;
  return outcome;
}

/* How many tests failed. */
static inline int small_cmocka_run(const char *group, const struct CMUnitTest *tests, size_t count,
                                   CMFixtureFunction up, CMFixtureFunction down) {
  static const char *const words[] = { "[       OK ]", "[  FAILED  ]", "[  SKIPPED ]" };
  const char *filter = getenv("CMOCKA_TEST_FILTER");
  void *state = NULL;
  int totals[3] = { 0, 0, 0 };
  if (up && up(&state) != 0) return (int)count;
  fprintf(stderr, "[==========] %s: Running %zu test(s).\n", group, count);
  for (size_t i = 0; i < count; i++) {
    if (filter && fnmatch(filter, tests[i].name, 0) != 0) continue;
    fprintf(stderr, "[ RUN      ] %s\n", tests[i].name);
    int outcome = small_cmocka_one(&tests[i], &state);
    totals[outcome]++;
    fprintf(stderr, "%s %s\n", words[outcome], tests[i].name);
  }
  if (down && down(&state) != 0) totals[SMALL_CMOCKA_FAILED]++;
  fprintf(stderr, "[==========] %s: %d passed, %d failed, %d skipped.\n", group, totals[0], totals[1], totals[2]);
  return totals[SMALL_CMOCKA_FAILED];
}

#endif
