/* Matrix products of the CUDA backend against the CPU's: shapes, transposes, strides, dtypes, epilogues, nothing to sum;
 * and what a device's uploads promise. */
#include "tests/support/device_pair.h"

typedef struct {
  int64_t m, n, k, batch;
  bool transpose_a, transpose_b, share_b, accumulate;
  sl_activation activation;
  bool bias, pre;
  int64_t wider; /* leading dimensions beyond what is needed */
} gemm_case;

static const gemm_case cases[] = {
  { .m = 1, .n = 1, .k = 1, .batch = 1 },
  { .m = 3, .n = 17, .k = 33, .batch = 1, .wider = 3 },
  { .m = 33, .n = 100, .k = 17, .batch = 1, .transpose_a = true, .bias = true },
  { .m = 100, .n = 33, .k = 17, .batch = 1, .transpose_b = true, .bias = true, .wider = 3 },
  { .m = 17, .n = 3, .k = 100, .batch = 1, .transpose_a = true, .transpose_b = true },
  { .m = 5, .n = 7, .k = 11, .batch = 1, .accumulate = true, .bias = true },
  { .m = 33, .n = 16, .k = 9, .batch = 1, .activation = SL_ACT_RELU, .bias = true },
  { .m = 130, .n = 152, .k = 9, .batch = 1, .activation = SL_ACT_GELU_ERF, .bias = true, .pre = true },
  { .m = 130, .n = 151, .k = 9, .batch = 1, .activation = SL_ACT_GELU_ERF, .bias = true, .pre = true },
  { .m = 33, .n = 20, .k = 8, .batch = 1, .activation = SL_ACT_GELU_TANH, .wider = 4 },
  { .m = 33, .n = 20, .k = 8, .batch = 1, .activation = SL_ACT_GELU_TANH, .bias = true },
  { .m = 33, .n = 17, .k = 9, .batch = 1, .activation = SL_ACT_TANH, .bias = true },
  { .m = 5, .n = 6, .k = 7, .batch = 4 },
  { .m = 5, .n = 8, .k = 7, .batch = 3, .transpose_a = true, .bias = true, .activation = SL_ACT_RELU, .pre = true },
  { .m = 5, .n = 6, .k = 7, .batch = 3, .share_b = true, .accumulate = true },
  { .m = 3, .n = 4, .k = 0, .batch = 2, .bias = true, .activation = SL_ACT_RELU },
  { .m = 3, .n = 4, .k = 0, .batch = 2, .bias = true, .accumulate = true },
  { .m = 0, .n = 4, .k = 3, .batch = 1 },
  { .m = 4, .n = 0, .k = 3, .batch = 1, .bias = true },
};

static block *make_numbers_as(pair *p, int64_t n, sl_dtype dtype, uint64_t seed) {
  if (dtype == SL_F32) return pair_floats(p, n, 1, seed);
  float *x = make_numbers(n, 1, seed);
  uint16_t *half = malloc((size_t)n * 2 + 2);
  assert_non_null(half);
  for (int64_t i = 0; i < n; i++) half[i] = sl_f32_to_bf16(x[i]);
  block *b = pair_of(p, half, (size_t)n * 2);
  free(x), free(half);
  return b;
}

static void check_results(const pair *p, const char *what, block *b, sl_dtype dtype, double tolerance) {
  if (dtype == SL_F32) {
    pair_check_close(p, what, b, tolerance);
    return;
  }
  pair_check_guards(p, what, b);
  const uint16_t *got = pair_fetch(p, b), *want = b->at[PAIR_CPU];
  for (size_t i = 0; i < b->bytes / 2; i++)
    check_close(what, (int64_t)i, (double)sl_bf16_to_f32(got[i]), (double)sl_bf16_to_f32(want[i]), 8e-3);
}

static void check_gemm(const gemm_case *c, sl_dtype dtype_ab, sl_dtype dtype_c, bool tf32) {
  pair p = pair_open();
  int64_t lda = (c->transpose_a ? c->m : c->k) + c->wider, ldb = (c->transpose_b ? c->k : c->n) + c->wider;
  int64_t ldc = c->n + c->wider;
  int64_t size_a = lda * (c->transpose_a ? c->k : c->m), size_b = ldb * (c->transpose_b ? c->n : c->k);
  int64_t size_c = ldc * c->m;
  block *a = make_numbers_as(&p, size_a * c->batch, dtype_ab, 1),
        *b = make_numbers_as(&p, size_b * c->batch, dtype_ab, 2),
        *out = make_numbers_as(&p, size_c * c->batch, dtype_c, 3), *bias = pair_floats(&p, c->n, 1, 4),
        *pre = pair_floats(&p, c->m * c->n * c->batch, 9, 5);
  p.devices[PAIR_CUDA]->tf32 = tf32;
  for (int side = 0; side < 2; side++) {
    sl_gemm_args args = { .m = c->m,
                          .n = c->n,
                          .k = c->k,
                          .batch = c->batch,
                          .transpose_a = c->transpose_a,
                          .transpose_b = c->transpose_b,
                          .a = AT(a, side),
                          .b = AT(b, side),
                          .c = AT(out, side),
                          .lda = lda,
                          .ldb = ldb,
                          .ldc = ldc,
                          .stride_a = size_a,
                          .stride_b = c->share_b ? 0 : size_b,
                          .stride_c = size_c,
                          .dtype_ab = dtype_ab,
                          .dtype_c = dtype_c,
                          .bias = c->bias ? AT(bias, side) : NULL,
                          .activation = c->activation,
                          .pre_activation = c->pre ? AT(pre, side) : NULL,
                          .accumulate = c->accumulate };
    PAIR_RUN(&p, side, gemm, &args);
  }
  p.devices[PAIR_CUDA]->tf32 = false;
  /* In bf16 products the library's epilogue takes GELU by an approximate tanh (2^-11 of error). */
  bool library_gelu = dtype_ab == SL_BF16 && c->activation == SL_ACT_GELU_TANH && c->bias && !c->pre;
  double tolerance = tf32 ? 5e-3 : library_gelu ? 2e-3 : 1e-5;
  check_results(&p, "gemm", out, dtype_c, tolerance);
  check_results(&p, "pre-activation", pre, SL_F32, tolerance);
  pair_close(&p);
}

static void test_float32(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(cases); i++) check_gemm(&cases[i], SL_F32, SL_F32, false);
}

static void test_tf32(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(cases); i++) check_gemm(&cases[i], SL_F32, SL_F32, true);
}

/* The CPU's oneDNN may have no bf16 products. */
static bool cpu_has_bf16(void) {
  uint16_t one = sl_f32_to_bf16(1);
  float c;
  sl_gemm_args args = { .m = 1, .n = 1, .k = 1, .batch = 1, .a = &one, .b = &one, .c = &c, .lda = 1, .ldb = 1,
                        .ldc = 1, .dtype_ab = SL_BF16 };
  return sl_cpu_device()->kernels->gemm(sl_cpu_device(), &args) == SL_OK;
}

static void test_bf16(void **state) {
  (void)state;
  if (!cpu_has_bf16()) skip();
  for (size_t i = 0; i < LENGTH(cases); i++) check_gemm(&cases[i], SL_BF16, SL_F32, false);
  for (size_t i = 0; i < LENGTH(cases); i++) {
    if (!cases[i].pre && cases[i].k > 0) check_gemm(&cases[i], SL_BF16, SL_BF16, false);
  }
}

/* A NaN in comes out, also through a ReLU. */
static void test_nan_passes(void **state) {
  (void)state;
  pair p = pair_open();
  enum { n = 8 };
  float x[n * n] = { 0 }, one[n * n];
  for (int i = 0; i < n * n; i++) one[i] = 1;
  x[0] = NAN;
  block *a = pair_of(&p, x, sizeof x), *b = pair_of(&p, one, sizeof one), *c = pair_block(&p, sizeof x);
  for (int side = 0; side < 2; side++) {
    sl_gemm_args args = { .m = n, .n = n, .k = n, .batch = 1, .a = AT(a, side), .b = AT(b, side), .c = AT(c, side),
                          .lda = n, .ldb = n, .ldc = n, .bias = AT(b, side), .activation = SL_ACT_RELU };
    PAIR_RUN(&p, side, gemm, &args);
  }
  pair_check_close(&p, "gemm", c, 1e-6);
  assert_true(isnan(((const float *)pair_fetch(&p, c))[n - 1]));
  pair_close(&p);
}

static void test_refuses_accumulated_activation(void **state) {
  (void)state;
  pair p = pair_open();
  sl_gemm_args args = { .m = 1, .n = 1, .k = 1, .batch = 1, .accumulate = true, .activation = SL_ACT_RELU };
  assert_int_equal(p.devices[PAIR_CUDA]->kernels->gemm(p.devices[PAIR_CUDA], &args), SL_EINVAL);
  pair_close(&p);
}

/* The host's memory may be written again as soon as an upload returns, whatever its size. */
static void test_uploads_keep_what_they_were_given(void **state) {
  (void)state;
  pair p = pair_open();
  sl_device *device = p.devices[PAIR_CUDA];
  static const size_t sizes[] = { 1, 60, 4096, ((size_t)4 << 20) + 12, ((size_t)9 << 20) + 1 };
  for (size_t s = 0; s < LENGTH(sizes); s++) {
    unsigned char *host = malloc(sizes[s]), *back = malloc(sizes[s]);
    void *data;
    assert_non_null(host), assert_non_null(back);
    CHECK(device->table->alloc(device, sizes[s], &data));
    for (size_t i = 0; i < sizes[s]; i++) host[i] = (unsigned char)(i * 31 + i / 251);
    CHECK(device->table->copy_from_host(device, data, host, sizes[s]));
    memset(host, 0, sizes[s]);
    CHECK(device->table->copy_to_host(device, back, data, sizes[s]));
    for (size_t i = 0; i < sizes[s]; i++) assert_int_equal(back[i], (unsigned char)(i * 31 + i / 251));
    device->table->free(device, data, sizes[s]);
    free(host), free(back);
  }
  pair_close(&p);
}

/* A replay would find in the upload's pinned memory whatever was put there last. */
static void test_recordings_refuse_the_hosts_memory(void **state) {
  (void)state;
  pair p = pair_open();
  sl_device *device = p.devices[PAIR_CUDA];
  unsigned char host[8] = { 1, 2, 3, 4, 5, 6, 7, 8 }, back[8] = { 0 };
  void *data, *recording;
  CHECK(device->table->alloc(device, sizeof host, &data));
  CHECK(device->table->record_begin(device));
  CHECK(device->table->fill(device, data, 9, 4));
  assert_int_equal(device->table->copy_from_host(device, data, host, sizeof host), SL_EUNSUPPORTED);
  assert_non_null(strstr(sl_last_error(), device->name));
  assert_int_equal(device->table->copy_to_host(device, back, data, sizeof back), SL_EUNSUPPORTED);
  CHECK(device->table->record_end(device, &recording));
  CHECK(device->table->copy_from_host(device, data, host, sizeof host));
  CHECK(device->table->replay(device, recording));
  CHECK(device->table->copy_to_host(device, back, data, sizeof back));
  for (int i = 0; i < 8; i++) assert_int_equal(back[i], i < 4 ? 9 : host[i]);
  device->table->free_recording(device, recording);
  device->table->free(device, data, sizeof host);
  pair_close(&p);
}

static void test_refusals_name_the_device(void **state) {
  (void)state;
  sl_device *device;
  assert_int_equal(sl_cuda_device(57, &device), SL_EUNSUPPORTED);
  assert_non_null(strstr(sl_last_error(), "cuda:57"));
  assert_int_equal(sl_cuda_device(-1, &device), SL_EUNSUPPORTED);
  assert_null(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_float32),
    cmocka_unit_test(test_tf32),
    cmocka_unit_test(test_bf16),
    cmocka_unit_test(test_nan_passes),
    cmocka_unit_test(test_refuses_accumulated_activation),
    cmocka_unit_test(test_uploads_keep_what_they_were_given),
    cmocka_unit_test(test_recordings_refuse_the_hosts_memory),
    cmocka_unit_test(test_refusals_name_the_device),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
