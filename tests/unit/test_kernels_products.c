/* Matrix products and attention against float64 loops: shapes, transposes,
 * strides, bf16, epilogues, masks; and equal bits for any number of threads. */
#include "tests/support/numbers.h"

#include <omp.h>

static sl_device *cpu(void) { return sl_cpu_device(); }

/* -- gemm -- */

typedef struct {
  int64_t m, n, k, batch;
  bool transpose_a, transpose_b, share_b, accumulate;
  sl_activation activation;
  bool bias, pre;
} gemm_case;

static double activate(sl_activation a, double x) {
  switch (a) {
  case SL_ACT_RELU:
    return x > 0 ? x : 0;
  case SL_ACT_GELU_ERF:
    return 0.5 * x * (1 + erf(x / sqrt(2.0)));
  case SL_ACT_GELU_TANH:
    return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
  case SL_ACT_TANH:
    return tanh(x);
  default:
    return x;
  }
}

static void round_to_bf16(const float *x, uint16_t *y, float *rounded, int64_t n) {
  for (int64_t i = 0; i < n; i++) rounded[i] = sl_bf16_to_f32(y[i] = sl_f32_to_bf16(x[i]));
}

/* Leading dimensions are 3 wider than needed. `dtype_c` bf16 goes with dtype_ab
 * bf16. */
static void check_gemm(const gemm_case *c, sl_dtype dtype_ab, sl_dtype dtype_c) {
  int64_t lda = (c->transpose_a ? c->m : c->k) + 3, ldb = (c->transpose_b ? c->k : c->n) + 3, ldc = c->n + 3;
  int64_t size_a = lda * (c->transpose_a ? c->k : c->m), size_b = ldb * (c->transpose_b ? c->n : c->k),
          size_c = ldc * c->m;
  float *a = make_numbers(size_a * c->batch, 1, 1), *b = make_numbers(size_b * c->batch, 1, 2),
        *out = make_numbers(size_c * c->batch, 1, 3);
  float *start = make_numbers(size_c * c->batch, 1, 3), *bias = make_numbers(c->n, 1, 4),
        *pre = make_numbers(c->m * c->n * c->batch, 0, 0);
  uint16_t *a16 = malloc((size_t)(size_a * c->batch) * 2 + 2),
           *b16 = malloc((size_t)(size_b * c->batch) * 2 + 2),
           *c16 = malloc((size_t)(size_c * c->batch) * 2 + 2);
  bool half = dtype_ab == SL_BF16;
  if (half) round_to_bf16(a, a16, a, size_a * c->batch), round_to_bf16(b, b16, b, size_b * c->batch);
  if (dtype_c == SL_BF16) round_to_bf16(start, c16, start, size_c * c->batch);
  sl_gemm_args args = { .m = c->m,
                        .n = c->n,
                        .k = c->k,
                        .batch = c->batch,
                        .transpose_a = c->transpose_a,
                        .transpose_b = c->transpose_b,
                        .a = half ? (void *)a16 : a,
                        .b = half ? (void *)b16 : b,
                        .c = dtype_c == SL_BF16 ? (void *)c16 : out,
                        .lda = lda,
                        .ldb = ldb,
                        .ldc = ldc,
                        .stride_a = size_a,
                        .stride_b = c->share_b ? 0 : size_b,
                        .stride_c = size_c,
                        .dtype_ab = dtype_ab,
                        .dtype_c = dtype_c,
                        .bias = c->bias ? bias : NULL,
                        .activation = c->activation,
                        .pre_activation = c->pre ? pre : NULL,
                        .accumulate = c->accumulate };
  sl_status status = cpu()->kernels->gemm(cpu(), &args);
  if (half && status == SL_EUNSUPPORTED) skip(); /* a processor for which oneDNN has no bf16 */
  CHECK(status);
  for (int64_t g = 0; g < c->batch; g++) {
    const float *ag = a + g * size_a, *bg = b + (c->share_b ? 0 : g * size_b);
    for (int64_t i = 0; i < c->m; i++) {
      for (int64_t j = 0; j < c->n; j++) {
        int64_t at = g * size_c + i * ldc + j;
        double sum = c->bias ? (double)bias[j] : 0;
        for (int64_t l = 0; l < c->k; l++)
          sum += (double)ag[c->transpose_a ? l * lda + i : i * lda + l] *
                 (double)bg[c->transpose_b ? j * ldb + l : l * ldb + j];
        double want = activate(c->activation, sum) + (c->accumulate ? (double)start[at] : 0);
        double got = dtype_c == SL_BF16 ? (double)sl_bf16_to_f32(c16[at]) : (double)out[at];
        check_close("gemm", at, got, want, dtype_c == SL_BF16 ? 8e-3 : 5e-6);
        if (c->pre) check_close("pre-activation", at, (double)pre[(g * c->m + i) * c->n + j], sum, 5e-6);
      }
    }
  }
  if (dtype_c == SL_F32 && c->m > 1) check_close("padding", 0, (double)out[c->n], (double)start[c->n], 0);
  free(a), free(b), free(out), free(start), free(bias), free(pre), free(a16), free(b16), free(c16);
}

static const gemm_case gemm_cases[] = {
  { .m = 1, .n = 1, .k = 1, .batch = 1 },
  { .m = 3, .n = 17, .k = 33, .batch = 1 },
  { .m = 33, .n = 100, .k = 17, .batch = 1, .transpose_a = true },
  { .m = 100, .n = 33, .k = 17, .batch = 1, .transpose_b = true, .bias = true },
  { .m = 17, .n = 3, .k = 100, .batch = 1, .transpose_a = true, .transpose_b = true },
  { .m = 5, .n = 7, .k = 11, .batch = 1, .accumulate = true, .bias = true },
  { .m = 33, .n = 17, .k = 9, .batch = 1, .activation = SL_ACT_RELU, .bias = true },
  { .m = 130,
    .n = 150,
    .k = 9,
    .batch = 1,
    .transpose_b = true,
    .activation = SL_ACT_GELU_ERF,
    .bias = true,
    .pre = true },
  { .m = 33, .n = 17, .k = 9, .batch = 1, .activation = SL_ACT_GELU_TANH },
  { .m = 33, .n = 17, .k = 9, .batch = 1, .activation = SL_ACT_TANH, .bias = true },
  { .m = 5, .n = 6, .k = 7, .batch = 4 },
  { .m = 5,
    .n = 6,
    .k = 7,
    .batch = 3,
    .transpose_a = true,
    .transpose_b = true,
    .bias = true,
    .activation = SL_ACT_RELU,
    .pre = true },
  { .m = 5, .n = 6, .k = 7, .batch = 3, .share_b = true, .accumulate = true },
  { .m = 3, .n = 4, .k = 0, .batch = 2, .bias = true, .activation = SL_ACT_RELU },
  { .m = 0, .n = 4, .k = 3, .batch = 1 },
};

static void test_gemm(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(gemm_cases); i++) check_gemm(&gemm_cases[i], SL_F32, SL_F32);
}

static void test_gemm_bf16(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(gemm_cases); i++) check_gemm(&gemm_cases[i], SL_BF16, SL_F32);
  for (size_t i = 0; i < LENGTH(gemm_cases); i++) {
    if (!gemm_cases[i].pre && gemm_cases[i].k > 0) check_gemm(&gemm_cases[i], SL_BF16, SL_BF16);
  }
}

static void test_gemm_refuses_accumulated_activation(void **state) {
  (void)state;
  float x = 1;
  sl_gemm_args args = { .m = 1,
                        .n = 1,
                        .k = 1,
                        .batch = 1,
                        .a = &x,
                        .b = &x,
                        .c = &x,
                        .lda = 1,
                        .ldb = 1,
                        .ldc = 1,
                        .accumulate = true,
                        .activation = SL_ACT_RELU };
  assert_int_equal(cpu()->kernels->gemm(cpu(), &args), SL_EINVAL);
}

/* -- Attention -- */

typedef struct {
  int64_t batch, tokens, heads, head_dim;
  bool causal;
  int mask;   /* 0 none, 1 scattered, 2 padded ends, 3 one batch hidden altogether
               */
  float size; /* of q and k: large gives peaked weights and huge scores */
  int64_t kv_heads; /* 0: as heads */
  float soft_cap;   /* 0: none */
  int64_t window;   /* 0: none */
} attention_case;

static const attention_case attention_cases[] = {
  { 1, 1, 1, 1, false, 0, 1, 0, 0, 0 },
  { 2, 3, 2, 5, false, 1, 1, 0, 0, 0 },
  { 2, 17, 3, 8, true, 0, 1, 0, 0, 0 },
  { 2, 33, 2, 16, true, 2, 1, 0, 0, 0 },
  { 1, 140, 2, 64, false, 2, 1, 0, 0, 0 },
  { 1, 300, 1, 7, true, 1, 1, 0, 0, 0 },
  { 3, 20, 2, 4, false, 3, 1, 0, 0, 0 },
  { 1, 33, 2, 16, false, 0, 300, 0, 0, 0 },
  { 2, 19, 6, 8, true, 2, 1, 2, 0, 0 },
  { 1, 150, 4, 5, false, 1, 1, 1, 0, 0 },
  { 2, 33, 2, 16, true, 1, 2, 0, 1.5f, 0 },
  { 3, 20, 4, 8, false, 3, 2, 2, 0.5f, 0 },
  { 2, 17, 3, 8, true, 0, 1, 0, 0, 4 },
  { 1, 300, 2, 7, true, 1, 1, 1, 0, 50 },
  { 2, 300, 1, 7, false, 2, 1, 0, 1.5f, 20 },
  { 3, 20, 4, 8, false, 3, 2, 2, 0.5f, 5 },
  { 2, 40, 2, 4, true, 1, 1, 0, 0, 1 },
};

typedef struct {
  int64_t d, kv, ld;             /* widths of q and of k and v; row stride */
  float *q, *k, *v, *out, *dout, *grads, *lse, *pattern, *workspace;
  uint8_t *mask;
  sl_attention_args args;
} attention_data;

static bool is_hidden(int kind, int64_t b, int64_t j, int64_t tokens) {
  if (kind == 1) return (b + j * 5) % 3 == 0;
  if (kind == 2) return j >= tokens - 2 - b;
  return kind == 3 && b == 1;
}

/* q, k, v are slices of one [tokens, 3 d + 2] matrix, as a fused projection
 * would leave them. */
static attention_data make_attention(const attention_case *c) {
  int64_t rows = c->batch * c->tokens, d = c->heads * c->head_dim,
          kv = (c->kv_heads ? c->kv_heads : c->heads) * c->head_dim, ld = d + 2 * kv + 2,
          pairs = c->batch * c->heads;
  attention_data a = { .d = d,
                       .kv = kv,
                       .ld = ld,
                       .q = make_numbers(rows * ld, 1, 5),
                       .out = make_numbers(rows * d, 9, 1),
                       .dout = make_numbers(rows * d, 1, 6),
                       .grads = make_numbers(rows * (d + 2 * kv), 9, 2),
                       .lse = make_numbers(pairs * c->tokens, 0, 0),
                       .pattern = make_numbers(pairs * c->tokens * c->tokens, 9, 3),
                       .mask = malloc((size_t)rows) };
  a.k = a.q + d, a.v = a.q + d + kv;
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < d + kv; j++) a.q[i * ld + j] *= c->size;
    a.mask[i] = !is_hidden(c->mask, i / c->tokens, i % c->tokens, c->tokens);
  }
  int64_t size = sl_attention_workspace(c->tokens, 2, true);
  a.workspace = make_numbers(size, 0, 0);
  a.args = (sl_attention_args){ .q = a.q,
                                .k = a.k,
                                .v = a.v,
                                .out = a.out,
                                .ld_q = ld,
                                .ld_k = ld,
                                .ld_v = ld,
                                .ld_out = d,
                                .mask = c->mask ? a.mask : NULL,
                                .batch = c->batch,
                                .tokens = c->tokens,
                                .heads = c->heads,
                                .head_dim = c->head_dim,
                                .kv_heads = c->kv_heads,
                                .scale = 0.3f,
                                .soft_cap = c->soft_cap,
                                .window = c->window,
                                .causal = c->causal,
                                .lse = a.lse,
                                .pattern = a.pattern,
                                .workspace = a.workspace,
                                .workspace_size = size };
  return a;
}

static void free_attention(attention_data *a) {
  free(a->q), free(a->out), free(a->dout), free(a->grads), free(a->lse), free(a->pattern), free(a->workspace),
      free(a->mask);
}

/* Where the key head of query head h starts in a row of k or v. */
static int64_t key_column(const attention_case *c, int64_t h) {
  return (c->kv_heads ? h / (c->heads / c->kv_heads) : h) * c->head_dim;
}

/* Weights of one query in float64, all zero when nothing is visible, and the slope of each score before its cap. */
static void weigh(const attention_case *c, const attention_data *a, int64_t b, int64_t h, int64_t i,
                  double *p, double *slope) {
  double best = -INFINITY, sum = 0;
  for (int64_t j = 0; j < c->tokens; j++) {
    p[j] = -INFINITY;
    if ((c->causal && j > i) || (c->mask && !a->mask[b * c->tokens + j])) continue;
    if (c->window > 0 && i - j >= c->window) continue;
    const float *q = a->q + (b * c->tokens + i) * a->ld + h * c->head_dim,
                *k = a->k + (b * c->tokens + j) * a->ld + key_column(c, h);
    double dot = 0, cap = (double)c->soft_cap;
    for (int64_t e = 0; e < c->head_dim; e++) dot += (double)q[e] * (double)k[e];
    dot *= (double)0.3f;
    slope[j] = cap > 0 ? 1 / (cosh(dot / cap) * cosh(dot / cap)) : 1;
    best = fmax(best, p[j] = cap > 0 ? cap * tanh(dot / cap) : dot);
  }
  for (int64_t j = 0; j < c->tokens; j++) sum += p[j] = best == -INFINITY ? 0 : exp(p[j] - best);
  for (int64_t j = 0; j < c->tokens && sum > 0; j++) p[j] /= sum;
}

/* Everything of one (batch, head) in float64, by the definition; dk and dv are added up over the heads of a group. */
static void check_head(const attention_case *c, const attention_data *a, int64_t b, int64_t h, double *dk,
                       double *dv) {
  int64_t t = c->tokens, e_max = c->head_dim, key = key_column(c, h);
  double *p = calloc((size_t)(2 * t + t * e_max), sizeof *p), *slope = p + t, *dq = slope + t;
  double loose = c->size > 2 ? 2e-3 : 5e-6; /* scores of 1e5 carry 1e-2 of rounding into the exponent */
  for (int64_t i = 0; i < t; i++) {
    const float *dout = a->dout + (b * t + i) * a->d + h * e_max;
    double delta = 0;
    weigh(c, a, b, h, i, p, slope);
    for (int64_t e = 0; e < e_max; e++) {
      double sum = 0;
      for (int64_t j = 0; j < t; j++) sum += p[j] * (double)a->v[(b * t + j) * a->ld + key + e];
      check_close("out", (b * t + i) * a->d + h * e_max + e,
                  (double)a->out[(b * t + i) * a->d + h * e_max + e], sum, loose);
      delta += sum * (double)dout[e];
    }
    for (int64_t j = 0; j < t; j++) {
      check_close("pattern", j, (double)a->pattern[((b * c->heads + h) * t + i) * t + j], p[j], loose);
      if (p[j] == 0) continue;
      double dp = 0;
      for (int64_t e = 0; e < e_max; e++) dp += (double)dout[e] * (double)a->v[(b * t + j) * a->ld + key + e];
      double ds = p[j] * (dp - delta) * slope[j] * (double)0.3f;
      for (int64_t e = 0; e < e_max; e++) {
        dq[i * e_max + e] += ds * (double)a->k[(b * t + j) * a->ld + key + e];
        dk[j * a->kv + key + e] += ds * (double)a->q[(b * t + i) * a->ld + h * e_max + e];
        dv[j * a->kv + key + e] += p[j] * (double)dout[e];
      }
    }
  }
  for (int64_t i = 0; i < t * e_max && c->size <= 2; i++) {
    int64_t at = (b * t + i / e_max) * a->d + h * e_max + i % e_max;
    check_close("dq", at, (double)a->grads[at], dq[i], 1e-5);
  }
  free(p);
}

static void check_attention(const attention_case *c, const attention_data *a) {
  int64_t t = c->tokens, rows = c->batch * t;
  const float *got_dk = a->grads + rows * a->d, *got_dv = got_dk + rows * a->kv;
  for (int64_t b = 0; b < c->batch; b++) {
    double *dk = calloc((size_t)(2 * t * a->kv), sizeof *dk), *dv = dk + t * a->kv;
    for (int64_t h = 0; h < c->heads; h++) check_head(c, a, b, h, dk, dv);
    for (int64_t i = 0; i < t * a->kv && c->size <= 2; i++) {
      check_close("dk", b * t * a->kv + i, (double)got_dk[b * t * a->kv + i], dk[i], 1e-5);
      check_close("dv", b * t * a->kv + i, (double)got_dv[b * t * a->kv + i], dv[i], 1e-5);
    }
    free(dk);
  }
}

static void run_attention(const attention_case *c, attention_data *a) {
  int64_t rows = c->batch * c->tokens;
  CHECK(cpu()->kernels->attention(cpu(), &a->args));
  sl_attention_backward_args back = { .forward = a->args,
                                      .dout = a->dout,
                                      .dq = a->grads,
                                      .dk = a->grads + rows * a->d,
                                      .dv = a->grads + rows * (a->d + a->kv),
                                      .ld_dq = a->d,
                                      .ld_dk = a->kv,
                                      .ld_dv = a->kv };
  CHECK(cpu()->kernels->attention_backward(cpu(), &back));
}

static void test_attention(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(attention_cases); i++) {
    const attention_case *c = &attention_cases[i];
    attention_data a = make_attention(c);
    run_attention(c, &a);
    check_attention(c, &a);
    free_attention(&a);
  }
}

/* A query that is not a number answers with none; its neighbours do not notice. */
static void test_attention_keeps_nan(void **state) {
  (void)state;
  const attention_case *c = &attention_cases[2];
  attention_data a = make_attention(c);
  CHECK(cpu()->kernels->attention(cpu(), &a.args));
  float *before = malloc((size_t)a.d * sizeof *before);
  memcpy(before, a.out, (size_t)a.d * sizeof *before);
  a.q[(c->tokens - 1) * a.ld] = NAN; /* head 0 of the last query of batch 0 */
  CHECK(cpu()->kernels->attention(cpu(), &a.args));
  for (int64_t e = 0; e < c->head_dim; e++) assert_true(isnan(a.out[(c->tokens - 1) * a.d + e]));
  assert_memory_equal(before, a.out, (size_t)a.d * sizeof *before);
  free(before);
  free_attention(&a);
}

static void test_attention_wants_workspace(void **state) {
  (void)state;
  attention_data a = make_attention(&attention_cases[2]);
  a.args.workspace_size = 5;
  assert_int_equal(cpu()->kernels->attention(cpu(), &a.args), SL_EINVAL);
  free_attention(&a);
}

/* -- Threads -- */

static void test_same_bits_for_any_thread_count(void **state) {
  (void)state;
  const attention_case *c = &attention_cases[4];
  int before = omp_get_max_threads();
  attention_data one, two;
  omp_set_num_threads(1);
  one = make_attention(c);
  run_attention(c, &one);
  omp_set_num_threads(3);
  two = make_attention(c);
  run_attention(c, &two);
  size_t size = (size_t)(c->batch * c->tokens * one.d) * sizeof(float);
  assert_memory_equal(one.out, two.out, size);
  assert_memory_equal(one.grads, two.grads, 3 * size);
  free_attention(&one), free_attention(&two);
  enum { n = 50001 };
  float *x = make_numbers(n, 1, 1), sums[2];
  double squares[2];
  for (int i = 0; i < 2; i++) {
    omp_set_num_threads(1 + 2 * i);
    sl_reduce_args sum = { .op = SL_REDUCE_SUM, .outer = 1, .n = n, .inner = 1, .x = x, .y = &sums[i] };
    CHECK(cpu()->kernels->reduce(cpu(), &sum));
    CHECK(cpu()->kernels->sum_squares(cpu(), &(sl_sum_squares_args){ .x = x, .n = n, .result = &squares[i] }));
  }
  assert_true(sums[0] == sums[1] && squares[0] == squares[1]);
  free(x);
  omp_set_num_threads(before);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_gemm),
    cmocka_unit_test(test_gemm_bf16),
    cmocka_unit_test(test_gemm_refuses_accumulated_activation),
    cmocka_unit_test(test_attention),
    cmocka_unit_test(test_attention_keeps_nan),
    cmocka_unit_test(test_attention_wants_workspace),
    cmocka_unit_test(test_same_bits_for_any_thread_count),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
