/* The vector functions of vmath.h against libm in float64, over their whole
 * range, with the bounds they state. */
#include "tests/support/numbers.h"

#include "kernels/cpu/vmath.h"

static double phi(double x) { return 0.5 * erfc(-x / sqrt(2.0)); }

/* Units in the last place of float32 at `want`. */
static double ulps(float got, double want) {
  float near = (float)want;
  double unit = (double)nextafterf(fabsf(near), INFINITY) - (double)fabsf(near);
  return fabs((double)got - want) / unit;
}

static void test_exp(void **state) {
  (void)state;
  double worst = 0;
  for (float x = -87.0f; x < 88.7f; x += 0.00137f) worst = fmax(worst, ulps(slk_exp(x), exp((double)x)));
  for (float x = -1e-3f; x < 1e-3f; x += 1.7e-7f) worst = fmax(worst, ulps(slk_exp(x), exp((double)x)));
  assert_true(worst <= 1.5);
  for (float x = -104.0f; x < -87.0f; x += 0.01f)
    check_close("subnormal", 0, (double)slk_exp(x), exp((double)x), 3e-45);
  assert_true(slk_exp(89.0f) == INFINITY && slk_exp(1e30f) == INFINITY && slk_exp(INFINITY) == INFINITY);
  assert_true(slk_exp(-200.0f) == 0 && slk_exp(-INFINITY) == 0 && isnan(slk_exp(NAN)) && slk_exp(0) == 1);
}

static void test_tanh_and_sigmoid(void **state) {
  (void)state;
  double worst_tanh = 0, worst_sigmoid = 0;
  for (float x = -12.0f; x < 12.0f; x += 0.00017f) {
    worst_tanh = fmax(worst_tanh, ulps(slk_tanh(x), tanh((double)x)));
    worst_sigmoid = fmax(worst_sigmoid, ulps(slk_sigmoid(x), 1 / (1 + exp(-(double)x))));
  }
  assert_true(worst_tanh <= 3);
  assert_true(worst_sigmoid <= 3);
  assert_true(slk_tanh(100) == 1 && slk_tanh(-INFINITY) == -1 && isnan(slk_tanh(NAN)));
  assert_true(slk_sigmoid(INFINITY) == 1 && slk_sigmoid(-INFINITY) == 0);
}

static void test_gelu(void **state) {
  (void)state;
  for (float x = -16.0f; x < 16.0f; x += 0.00031f) {
    double d = (double)x, density = exp(-d * d / 2) / sqrt(2 * 3.14159265358979323846),
           cubic = 0.7978845608028654 * (d + 0.044715 * d * d * d);
    float gauss, cdf = slk_normal_cdf(x, &gauss);
    assert_true(fabs((double)cdf - phi(d)) <= 2e-7);
    if (x > -5 && x < 0) assert_true(fabs((double)cdf / phi(d) - 1) <= 1e-6);
    check_close("gelu", 0, (double)slk_gelu(x), d * phi(d), 2e-7);
    check_close("gelu slope", 0, (double)slk_gelu_slope(x), phi(d) + d * density, 5e-7);
    check_close("gelu_tanh", 0, (double)slk_gelu_tanh(x), 0.5 * d * (1 + tanh(cubic)), 5e-7);
  }
  assert_true(slk_gelu(INFINITY) == INFINITY && slk_gelu(-INFINITY) == 0 && isnan(slk_gelu(NAN)));
  assert_true(slk_gelu_slope(INFINITY) == 1 && slk_gelu_slope(-INFINITY) == 0);
  assert_true(slk_gelu_tanh(-1e30f) == 0 && slk_gelu_tanh(INFINITY) == INFINITY);
}

static void test_silu(void **state) {
  (void)state;
  double worst = 0;
  for (float x = -80.0f; x < 80.0f; x += 0.00171f) {
    double d = (double)x, s = 1 / (1 + exp(-d));
    worst = fmax(worst, ulps(slk_silu(x), d * s));
    check_close("silu slope", 0, (double)slk_silu_slope(x), s * (1 + d * (1 - s)), 5e-7);
  }
  assert_true(worst <= 4);
  assert_true(slk_silu(INFINITY) == INFINITY && slk_silu(-INFINITY) == 0 && isnan(slk_silu(NAN)));
  assert_true(slk_silu_slope(INFINITY) == 1 && slk_silu_slope(-INFINITY) == 0 && slk_silu(-1e30f) == 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_exp),
    cmocka_unit_test(test_tanh_and_sigmoid),
    cmocka_unit_test(test_gelu),
    cmocka_unit_test(test_silu),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
