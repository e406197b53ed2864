/* The plain matrix product of builds without oneDNN (kernels/cpu/gemm_plain.c) against this build's own: the bare build
 * holds GPUs against it. */
#define slk_cpu_gemm plain_gemm
#include "kernels/cpu/gemm_plain.c"
#undef slk_cpu_gemm

#include "tests/support/numbers.h"

enum { M = 7, N = 70, K = 33, BATCH = 2, WIDER = 3 }; /* N: more than a tile */

typedef struct {
  bool transpose_a, transpose_b, share_b, bias, keep, accumulate;
  sl_activation activation;
} plain_case;

static void check_case(const plain_case *c) {
  int64_t lda = (c->transpose_a ? M : K) + WIDER, ldb = (c->transpose_b ? K : N) + WIDER, ldc = N + WIDER;
  int64_t rows_a = c->transpose_a ? K : M, rows_b = c->transpose_b ? N : K;
  float *a = make_numbers(BATCH * rows_a * lda, 1, 1), *b = make_numbers(BATCH * rows_b * ldb, 1, 2);
  float *bias = make_numbers(N, 1, 3), *got[2], *kept[2];
  for (int i = 0; i < 2; i++) {
    got[i] = make_numbers(BATCH * M * ldc, 1, 4);
    kept[i] = make_numbers(BATCH * M * N, 1, 5);
    sl_gemm_args args = { .m = M, .n = N, .k = K, .batch = BATCH, .transpose_a = c->transpose_a,
                          .transpose_b = c->transpose_b, .a = a, .b = b, .c = got[i], .lda = lda, .ldb = ldb, .ldc = ldc,
                          .stride_a = rows_a * lda, .stride_b = c->share_b ? 0 : rows_b * ldb, .stride_c = M * ldc,
                          .dtype_ab = SL_F32, .dtype_c = SL_F32, .bias = c->bias ? bias : NULL,
                          .activation = c->activation, .pre_activation = c->keep ? kept[i] : NULL,
                          .accumulate = c->accumulate };
    sl_device *cpu = sl_cpu_device();
    CHECK(i == 0 ? cpu->kernels->gemm(cpu, &args) : plain_gemm(cpu, &args));
  }
  for (int64_t i = 0; i < BATCH * M * ldc; i++) check_close("product", i, (double)got[1][i], (double)got[0][i], 2e-6);
  for (int64_t i = 0; i < BATCH * M * N; i++) check_close("kept", i, (double)kept[1][i], (double)kept[0][i], 2e-6);
  for (int i = 0; i < 2; i++) free(got[i]), free(kept[i]);
  free(a), free(b), free(bias);
}

static void test_cases(void **state) {
  (void)state;
  static const plain_case cases[] = {
    { .bias = false },
    { .transpose_a = true, .bias = true },
    { .transpose_b = true, .bias = true, .activation = SL_ACT_RELU },
    { .transpose_a = true, .transpose_b = true, .accumulate = true },
    { .share_b = true, .accumulate = true, .bias = true },
    { .bias = true, .keep = true, .activation = SL_ACT_GELU_ERF },
    { .keep = true, .activation = SL_ACT_GELU_TANH },
    { .bias = true, .activation = SL_ACT_TANH },
  };
  for (size_t i = 0; i < LENGTH(cases); i++) check_case(&cases[i]);
}

/* Rounded once, at the end: the same bf16 as float32's result rounded. */
static void test_bf16(void **state) {
  (void)state;
  uint16_t a[2 * 3], b[3 * 2], c[4];
  float wide[4];
  const float values[] = { 1, -2, 0.5f, 3, 0.25f, -1.5f };
  for (int i = 0; i < 6; i++) a[i] = b[i] = sl_f32_to_bf16(values[i]);
  sl_gemm_args args = { .m = 2, .n = 2, .k = 3, .batch = 1, .a = a, .b = b, .c = wide, .lda = 3, .ldb = 2, .ldc = 2,
                        .dtype_ab = SL_BF16, .dtype_c = SL_F32 };
  CHECK(plain_gemm(sl_cpu_device(), &args));
  args.c = c;
  args.dtype_c = SL_BF16;
  CHECK(plain_gemm(sl_cpu_device(), &args));
  const float want[] = { 1 * 1 - 2 * 0.5f + 0.5f * 0.25f, 1 * -2 - 2 * 3 + 0.5f * -1.5f,
                         3 * 1 + 0.25f * 0.5f - 1.5f * 0.25f, 3 * -2 + 0.25f * 3 - 1.5f * -1.5f };
  for (int i = 0; i < 4; i++) {
    assert_float_equal(wide[i], want[i], 0);
    assert_int_equal(c[i], sl_f32_to_bf16(want[i]));
  }
}

static void test_refuses(void **state) {
  (void)state;
  float x = 1;
  sl_gemm_args args = { .m = 1, .n = 1, .k = 1, .batch = 1, .a = &x, .b = &x, .c = &x, .lda = 1, .ldb = 1, .ldc = 1,
                        .dtype_ab = SL_F32, .dtype_c = SL_F32, .accumulate = true, .activation = SL_ACT_RELU };
  assert_int_equal(plain_gemm(sl_cpu_device(), &args), SL_EINVAL);
}

int main(void) {
  const struct CMUnitTest tests[] = { cmocka_unit_test(test_cases), cmocka_unit_test(test_bf16),
                                      cmocka_unit_test(test_refuses) };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
