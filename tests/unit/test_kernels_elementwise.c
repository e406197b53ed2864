/* Casts, strided copies, unary and binary functions, reductions, random
 * numbers, against plain loops. */
#include "tests/support/numbers.h"

#include "kernels/philox.h"

static sl_device *cpu(void) { return sl_cpu_device(); }
static const int64_t sizes[] = { 0, 1, 3, 17, 100, 20011 };

/* -- Casts -- */

static void test_cast_floats(void **state) {
  (void)state;
  for (size_t s = 0; s < LENGTH(sizes); s++) {
    int64_t n = sizes[s];
    float *x = make_numbers(n, 100, 3), *back = make_numbers(n, 0, 0);
    uint16_t *half = malloc((size_t)n * 2 + 1);
    for (sl_dtype dtype = SL_BF16; dtype <= SL_F16; dtype++) {
      sl_cast_args down = { x, SL_F32, half, dtype, n }, up = { half, dtype, back, SL_F32, n };
      CHECK(cpu()->kernels->cast(cpu(), &down));
      CHECK(cpu()->kernels->cast(cpu(), &up));
      for (int64_t i = 0; i < n; i++) {
        assert_int_equal(half[i], dtype == SL_BF16 ? sl_f32_to_bf16(x[i]) : sl_f32_to_f16(x[i]));
        check_close("back", i, (double)back[i], (double)x[i], dtype == SL_BF16 ? 4e-3 : 5e-4);
      }
    }
    free(x), free(back), free(half);
  }
}

static void test_cast_limits(void **state) {
  (void)state;
  float x[] = { 300, -5, NAN, 3e9f, -3e9f, INFINITY, -INFINITY, 2.9f, 1e19f };
  uint8_t bytes[9];
  int32_t ints[9];
  int64_t longs[9];
  uint16_t half[9];
  CHECK(cpu()->kernels->cast(cpu(), &(sl_cast_args){ x, SL_F32, bytes, SL_U8, 9 }));
  CHECK(cpu()->kernels->cast(cpu(), &(sl_cast_args){ x, SL_F32, ints, SL_I32, 9 }));
  CHECK(cpu()->kernels->cast(cpu(), &(sl_cast_args){ x, SL_F32, longs, SL_I64, 9 }));
  CHECK(cpu()->kernels->cast(cpu(), &(sl_cast_args){ x, SL_F32, half, SL_BF16, 9 }));
  assert_memory_equal(bytes, ((uint8_t[]){ 255, 0, 0, 255, 0, 255, 0, 2, 255 }), 9);
  assert_memory_equal(
      ints, ((int32_t[]){ 300, -5, 0, INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN, 2, INT32_MAX }), 36);
  assert_true(longs[3] == 3000000000 && longs[5] == INT64_MAX && longs[6] == INT64_MIN &&
              longs[8] == INT64_MAX);
  assert_true(isnan(sl_bf16_to_f32(half[2])) && sl_bf16_to_f32(half[5]) == INFINITY);
}

/* -- Strided copies -- */

static void test_strided(void **state) {
  (void)state;
  /* rank, shape, strides into a buffer of 8000 elements */
  static const struct {
    int rank;
    int64_t shape[4], strides[4];
  } cases[] = {
    { 1, { 17 }, { 3 } },
    { 2, { 70, 90 }, { 1, 70 } },          /* transpose */
    { 3, { 3, 40, 33 }, { 1320, 1, 40 } }, /* batched transpose */
    { 3, { 4, 5, 6 }, { 1, 24, 4 } },
    { 2, { 50, 3 }, { 100, 1 } }, /* columns of a wide matrix */
    { 0, { 0 }, { 0 } },
    { 2, { 0, 5 }, { 5, 1 } },
  };
  float *buffer = make_numbers(8000, 1, 1), *packed = make_numbers(8000, 0, 0),
        *copy = make_numbers(8000, 0, 0);
  for (size_t c = 0; c < LENGTH(cases); c++) {
    sl_gather_strided_args gather = { .rank = cases[c].rank, .x = buffer, .y = packed, .element_size = 4 };
    sl_scatter_strided_args scatter = { .rank = cases[c].rank, .x = packed, .y = copy, .dtype = SL_F32 };
    for (int i = 0; i < cases[c].rank; i++) {
      gather.shape[i] = scatter.shape[i] = cases[c].shape[i];
      gather.strides[i] = scatter.strides[i] = cases[c].strides[i];
    }
    int64_t total = 1;
    for (int i = 0; i < cases[c].rank; i++) total *= cases[c].shape[i];
    CHECK(cpu()->kernels->gather_strided(cpu(), &gather));
    CHECK(cpu()->kernels->scatter_strided(cpu(), &scatter));
    for (int64_t j = 0; j < total; j++) {
      int64_t rest = j, at = 0;
      for (int i = cases[c].rank - 1; i >= 0; i--)
        at += rest % cases[c].shape[i] * cases[c].strides[i], rest /= cases[c].shape[i];
      check_close("gather", j, (double)packed[j], (double)buffer[at], 0);
      check_close("scatter", j, (double)copy[at], (double)buffer[at], 0);
    }
  }
  free(buffer), free(packed), free(copy);
}

/* Adding into strides of 0 sums; every other element is touched once. */
static void test_scatter_accumulate(void **state) {
  (void)state;
  enum { a = 5, b = 301, c = 37 };
  float *x = make_numbers(a * b * c, 1, 2), y[b];
  double want[b];
  for (int j = 0; j < b; j++) {
    want[j] = (double)(y[j] = (float)j);
    for (int i = 0; i < a; i++) {
      for (int k = 0; k < c; k++) want[j] += (double)x[(i * b + j) * c + k];
    }
  }
  sl_scatter_strided_args args = { .rank = 3,
                                   .shape = { a, b, c },
                                   .strides = { 0, 1, 0 },
                                   .x = x,
                                   .y = y,
                                   .dtype = SL_F32,
                                   .accumulate = true };
  CHECK(cpu()->kernels->scatter_strided(cpu(), &args));
  check_all_close("sum", y, want, b, 1e-6);
  free(x);
}

/* -- Unary and binary -- */

typedef double real_function(double x, double p);
static double r_neg(double x, double p) {
  (void)p;
  return -x;
}
static double r_exp(double x, double p) {
  (void)p;
  return exp(x);
}
static double r_log(double x, double p) {
  (void)p;
  return log(x);
}
static double r_sqrt(double x, double p) {
  (void)p;
  return sqrt(x);
}
static double r_abs(double x, double p) {
  (void)p;
  return fabs(x);
}
static double r_sign(double x, double p) {
  (void)p;
  return (x > 0) - (x < 0);
}
static double r_square(double x, double p) {
  (void)p;
  return x * x;
}
static double r_relu(double x, double p) {
  (void)p;
  return x > 0 ? x : 0;
}
static double r_gelu(double x, double p) {
  (void)p;
  return 0.5 * x * (1 + erf(x / sqrt(2.0)));
}
static double r_gelu_tanh(double x, double p) {
  (void)p;
  return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}
static double r_tanh(double x, double p) {
  (void)p;
  return tanh(x);
}
static double r_sigmoid(double x, double p) {
  (void)p;
  return 1 / (1 + exp(-x));
}
static double r_silu(double x, double p) {
  (void)p;
  return x / (1 + exp(-x));
}
static double r_add(double x, double p) { return x + p; }
static double r_mul(double x, double p) { return x * p; }
static double r_pow(double x, double p) { return pow(x, p); }
static double r_clamp_min(double x, double p) { return fmax(x, p); }
static double r_clamp_max(double x, double p) { return fmin(x, p); }
static double r_gt(double x, double p) { return x > p; }
static real_function *const reals[SL_UNARY_COUNT] = {
  r_neg,       r_exp,  r_log,     r_sqrt, r_abs, r_sign, r_square,    r_relu,      r_gelu,
  r_gelu_tanh, r_tanh, r_sigmoid, r_silu, r_add, r_mul,  r_pow,       r_clamp_min, r_clamp_max,
  r_gt,
};

static void test_unary(void **state) {
  (void)state;
  for (int op = 0; op < SL_UNARY_COUNT; op++) {
    bool positive = op == SL_UNARY_LOG || op == SL_UNARY_SQRT || op == SL_UNARY_POW_SCALAR;
    for (size_t s = 0; s < LENGTH(sizes); s++) {
      int64_t n = sizes[s];
      float *x = make_numbers(n, 6, (uint64_t)op), *y = make_numbers(n, 0, 0);
      for (int64_t i = 0; i < n && positive; i++) x[i] = fabsf(x[i]) + 0.01f;
      sl_unary_args args = { .op = (sl_unary_op)op, .p = 1.5f, .x = x, .y = y, .n = n };
      CHECK(cpu()->kernels->unary(cpu(), &args));
      for (int64_t i = 0; i < n; i++)
        check_close("unary", op * 100000 + i, (double)y[i], reals[op]((double)x[i], 1.5), 5e-7);
      free(x), free(y);
    }
  }
}

/* f' against the symmetric difference of the float64 function; written, then
 * added. */
static void test_unary_backward(void **state) {
  (void)state;
  enum { n = 101 };
  for (int op = 0; op < SL_UNARY_COUNT; op++) {
    bool positive = op == SL_UNARY_LOG || op == SL_UNARY_SQRT || op == SL_UNARY_POW_SCALAR;
    float *x = make_numbers(n, 3, 7), y[n], dy[n], dx[n];
    fill_numbers(dy, n, 1, 8);
    for (int i = 0; i < n && positive; i++) x[i] = fabsf(x[i]) + 0.3f;
    CHECK(cpu()->kernels->unary(cpu(), &(sl_unary_args){ (sl_unary_op)op, 1.5f, x, y, n }));
    sl_unary_backward_args args = { (sl_unary_op)op, 1.5f, x, y, dy, dx, n, false };
    CHECK(cpu()->kernels->unary_backward(cpu(), &args));
    args.accumulate = true;
    CHECK(cpu()->kernels->unary_backward(cpu(), &args));
    for (int i = 0; i < n; i++) {
      double h = 1e-6,
             slope = (reals[op]((double)x[i] + h, 1.5) - reals[op]((double)x[i] - h, 1.5)) / (2 * h);
      check_close("slope", op * 1000 + i, (double)dx[i], 2 * (double)dy[i] * slope, 3e-6);
    }
    free(x);
  }
}

static void test_nan_goes_through(void **state) {
  (void)state;
  const sl_unary_op ops[] = { SL_UNARY_RELU, SL_UNARY_GELU,      SL_UNARY_EXP,
                              SL_UNARY_TANH, SL_UNARY_CLAMP_MIN, SL_UNARY_CLAMP_MAX };
  for (size_t i = 0; i < LENGTH(ops); i++) {
    float x = NAN, y = 0;
    CHECK(cpu()->kernels->unary(cpu(), &(sl_unary_args){ ops[i], 0.5f, &x, &y, 1 }));
    assert_true(isnan(y));
  }
  for (int side = 0; side < 2; side++) {
    float a = side ? NAN : 1, b = side ? 1 : NAN, y;
    CHECK(cpu()->kernels->binary(cpu(), &(sl_binary_args){ .op = SL_BINARY_MAX, .a = &a, .b = &b, .y = &y }));
    assert_true(isnan(y));
  }
}

static void test_binary(void **state) {
  (void)state;
  static const struct {
    int rank;
    int64_t shape[4], by_a[4], by_b[4];
  } cases[] = {
    { 1, { 100 }, { 1 }, { 1 } },
    { 2, { 33, 17 }, { 17, 1 }, { 0, 1 } },
    { 2, { 33, 17 }, { 17, 1 }, { 1, 0 } },
    { 2, { 33, 17 }, { 0, 0 }, { 17, 1 } },
    { 3, { 4, 5, 6 }, { 30, 6, 1 }, { 5, 1, 0 } },
    { 2, { 17, 33 }, { 1, 17 }, { 33, 1 } },
    { 2, { 200, 130 }, { 130, 1 }, { 0, 1 } },
    { 1, { 0 }, { 1 }, { 1 } },
    { 0, { 0 }, { 0 }, { 0 } },
  };
  float *a = make_numbers(26000, 2, 1), *b = make_numbers(26000, 2, 2), *y = make_numbers(26000, 0, 0);
  for (int i = 0; i < 26000; i += 5) b[i] = a[i]; /* some ties for eq, max, min */
  for (int op = 0; op < SL_BINARY_COUNT; op++) {
    for (size_t c = 0; c < LENGTH(cases); c++) {
      sl_binary_args args = { .op = (sl_binary_op)op, .rank = cases[c].rank, .a = a, .b = b, .y = y };
      int64_t total = 1;
      for (int i = 0; i < args.rank; i++) {
        args.shape[i] = cases[c].shape[i], args.strides_a[i] = cases[c].by_a[i],
        args.strides_b[i] = cases[c].by_b[i];
        total *= args.shape[i];
      }
      CHECK(cpu()->kernels->binary(cpu(), &args));
      for (int64_t j = 0; j < total; j++) {
        int64_t rest = j, at_a = 0, at_b = 0;
        for (int i = args.rank - 1; i >= 0; i--) {
          at_a += rest % args.shape[i] * args.strides_a[i], at_b += rest % args.shape[i] * args.strides_b[i],
              rest /= args.shape[i];
        }
        float u = a[at_a], v = b[at_b];
        float want[] = { u + v, u - v, u * v, u / v, fmaxf(u, v), fminf(u, v), u == v, u > v };
        check_close("binary", op * 100000 + j, (double)y[j], (double)want[op], 1e-7);
      }
    }
  }
  free(a), free(b), free(y);
}

/* -- Reductions -- */

static void test_reduce(void **state) {
  (void)state;
  static const int64_t shapes[][3] = { { 1, 1, 1 },     { 3, 17, 5 },   { 1, 100, 100 }, { 33, 17, 1 },
                                       { 1, 40000, 1 }, { 700, 30, 1 }, { 5, 1, 130 },   { 2, 200, 130 } };
  float *x = make_numbers(60000, 3, 4), y[1000];
  int32_t index[1000];
  for (int i = 0; i < 60000; i++) x[i] = roundf(x[i] * 50) / 50; /* ties */
  for (size_t s = 0; s < LENGTH(shapes); s++) {
    int64_t outer = shapes[s][0], n = shapes[s][1], inner = shapes[s][2];
    for (int op = 0; op < 4; op++) {
      sl_reduce_args args = { .op = (sl_reduce_op)op, .outer = outer, .n = n, .inner = inner, .x = x, .y = y, .index = index };
      CHECK(cpu()->kernels->reduce(cpu(), &args));
      for (int64_t j = 0; j < outer * inner; j++) {
        double sum = 0;
        int64_t best = 0, base = j / inner * n * inner + j % inner;
        for (int64_t i = 0; i < n; i++) {
          float value = x[base + i * inner], leader = x[base + best * inner];
          sum += (double)value;
          if (op == SL_REDUCE_MAX ? value > leader : value < leader) best = i;
        }
        double want = op == SL_REDUCE_SUM    ? sum
                      : op == SL_REDUCE_MEAN ? sum / (double)n
                                             : (double)x[base + best * inner];
        check_close("reduce", j, (double)y[j], want, 1e-7);
        if (op >= SL_REDUCE_MAX) assert_int_equal(index[j], best);
      }
    }
  }
  x[25] = NAN;
  sl_reduce_args most = { .op = SL_REDUCE_MAX, .outer = 1, .n = 100, .inner = 1, .x = x, .y = y, .index = index };
  CHECK(cpu()->kernels->reduce(cpu(), &most));
  assert_true(isnan(y[0]) && index[0] == 25);
  sl_reduce_args least = { .op = SL_REDUCE_MIN, .outer = 1, .n = 10, .inner = 10, .x = x, .y = y, .index = index };
  CHECK(cpu()->kernels->reduce(cpu(), &least));
  assert_true(isnan(y[5]) && index[5] == 2 && !isnan(y[4]));
  free(x);
}

static void test_sum_squares(void **state) {
  (void)state;
  for (size_t s = 0; s < LENGTH(sizes); s++) {
    float *x = make_numbers(sizes[s], 2, 9);
    double want = 0, got;
    for (int64_t i = 0; i < sizes[s]; i++) want += (double)x[i] * (double)x[i];
    CHECK(cpu()->kernels->sum_squares(cpu(), &(sl_sum_squares_args){ .x = x, .n = sizes[s], .result = &got }));
    check_close("sum of squares", 0, got, want, 1e-12);
    free(x);
  }
}

/* -- Random -- */

/* Known answers from the Random123 distribution (kat_vectors, philox4x32 10).
 */
static void test_philox_known_answers(void **state) {
  (void)state;
  static const uint32_t vectors[][10] = {
    { 0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 },
    { ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd },
    { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb,
      0x5001e420, 0x24126ea1 },
  };
  for (size_t i = 0; i < LENGTH(vectors); i++) {
    uint32_t out[4];
    slk_philox(vectors[i], vectors[i] + 4, out);
    assert_memory_equal(out, vectors[i] + 6, sizeof out);
  }
}

static void draw(sl_random_kind kind, uint32_t stream, uint64_t step, void *y, int64_t n) {
  sl_random_args args = { .kind = kind,
                          .seed = 42,
                          .stream = stream,
                          .step = step,
                          .low = kind == SL_RANDOM_UNIFORM ? -1.0f : 3.0f,
                          .high = kind == SL_RANDOM_UNIFORM ? 2.0f : 0.5f,
                          .bound = 7,
                          .y = y,
                          .n = n };
  CHECK(cpu()->kernels->random(cpu(), &args));
}

static void test_random(void **state) {
  (void)state;
  enum { n = 200003 };
  float *x = make_numbers(n, 0, 0), *other = make_numbers(n, 0, 0);
  int32_t *ints = malloc(n * sizeof *ints), counts[7] = { 0 };
  double mean = 0, square = 0;
  draw(SL_RANDOM_UNIFORM, 1, 5, x, n);
  for (int i = 0; i < n; i++) {
    assert_true(x[i] >= -1 && x[i] < 2);
    mean += (double)x[i] / n;
  }
  assert_true(fabs(mean - 0.5) < 0.01);
  draw(SL_RANDOM_UNIFORM, 1, 5, other, 1001); /* a prefix is a prefix */
  assert_memory_equal(x, other, 1001 * sizeof *x);
  draw(SL_RANDOM_UNIFORM, 2, 5, other, n);
  assert_memory_not_equal(x, other, 64);
  draw(SL_RANDOM_UNIFORM, 1, 5 + (UINT64_C(1) << 32), other, n); /* all 64 bits of the step count */
  assert_memory_not_equal(x, other, 64);
  draw(SL_RANDOM_NORMAL, 1, 5, x, n);
  mean = 0;
  for (int i = 0; i < n; i++) mean += (double)x[i] / n;
  for (int i = 0; i < n; i++) square += ((double)x[i] - 3) * ((double)x[i] - 3) / n;
  assert_true(fabs(mean - 3) < 0.01 && fabs(sqrt(square) - 0.5) < 0.01);
  draw(SL_RANDOM_INT, 1, 5, ints, n);
  for (int i = 0; i < n; i++) {
    assert_in_range(ints[i], 0, 6);
    counts[ints[i]]++;
  }
  for (int i = 0; i < 7; i++) assert_in_range(counts[i], n / 7 - 800, n / 7 + 800);
  free(x), free(other), free(ints);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_cast_floats),
    cmocka_unit_test(test_cast_limits),
    cmocka_unit_test(test_strided),
    cmocka_unit_test(test_scatter_accumulate),
    cmocka_unit_test(test_unary),
    cmocka_unit_test(test_unary_backward),
    cmocka_unit_test(test_nan_goes_through),
    cmocka_unit_test(test_binary),
    cmocka_unit_test(test_reduce),
    cmocka_unit_test(test_sum_squares),
    cmocka_unit_test(test_philox_known_answers),
    cmocka_unit_test(test_random),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
