/* Small help for the numeric unit tests: repeatable numbers and comparisons
 * that print both sides. */
#ifndef SL_TEST_NUMBERS_H
#define SL_TEST_NUMBERS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first. */
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor/tensor.h"

#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* Fails the test with the library's own message. */
#define CHECK(call)                                                                                          \
  do {                                                                                                       \
    if ((call) != SL_OK) fail_msg("%s: %s", #call, sl_last_error());                                         \
  } while (0)

/* In [-1, 1), from a multiplicative generator; the same on every machine. */
static inline float next_number(uint64_t *state) {
  *state = *state * 6364136223846793005ull + 1442695040888963407ull;
  return (float)((double)(*state >> 40) / 8388608.0 - 1.0);
}

static inline void fill_numbers(float *x, int64_t n, float scale, uint64_t seed) {
  uint64_t state = seed * 2654435761u + 12345;
  for (int64_t i = 0; i < n; i++) x[i] = scale * next_number(&state);
}

/* n floats, filled; freed by the test. */
static inline float *make_numbers(int64_t n, float scale, uint64_t seed) {
  float *x = malloc((size_t)(n > 0 ? n : 1) * sizeof *x);
  assert_non_null(x);
  fill_numbers(x, n, scale, seed);
  return x;
}

/* |got - want| <= tolerance * (1 + |want|); NaN only equals NaN. */
static inline void check_close(const char *what, int64_t at, double got, double want, double tolerance) {
  if (isnan(want) ? isnan(got) : got == want || fabs(got - want) <= tolerance * (1 + fabs(want))) return;
  fail_msg("%s [%lld]: got %.9g, expected %.9g", what, (long long)at, got, want);
}

static inline void check_all_close(const char *what, const float *got, const double *want, int64_t n,
                                   double tolerance) {
  for (int64_t i = 0; i < n; i++) check_close(what, i, (double)got[i], want[i], tolerance);
}

/* A CPU tensor with these numbers. */
static inline sl_tensor *make_tensor(int rank, const int64_t *shape, float scale, uint64_t seed) {
  sl_tensor *x;
  CHECK(sl_tensor_create(sl_cpu_device(), SL_F32, rank, shape, &x));
  fill_numbers(sl_tensor_f32(x), sl_tensor_count(x), scale, seed);
  return x;
}

#endif
