/* Row-wise kernels against float64 loops: softmax, layer norm, cross-entropy,
 * embedding, top-k, sparse rows. */
#include "tests/support/numbers.h"

static sl_device *cpu(void) { return sl_cpu_device(); }

static void softmax_reference(const float *x, double *y, int64_t n, bool log_form) {
  double best = -INFINITY, sum = 0;
  for (int64_t i = 0; i < n; i++) best = fmax(best, (double)x[i]);
  for (int64_t i = 0; i < n; i++) sum += exp((double)x[i] - best);
  for (int64_t i = 0; i < n; i++)
    y[i] = log_form ? (double)x[i] - best - log(sum) : exp((double)x[i] - best) / sum;
}

static void test_softmax(void **state) {
  (void)state;
  static const int64_t shapes[][2] = { { 0, 5 }, { 1, 1 }, { 3, 17 }, { 7, 33 }, { 5, 1000 }, { 40, 3000 } };
  static const float scales[] = { 1, 1e4f, 1e30f }; /* huge logits must not overflow */
  for (size_t s = 0; s < LENGTH(shapes); s++) {
    for (int log_form = 0; log_form < 2; log_form++) {
      for (size_t k = 0; k < LENGTH(scales); k++) {
        int64_t rows = shapes[s][0], n = shapes[s][1];
        float *x = make_numbers(rows * n, scales[k], s), *y = make_numbers(rows * n, 0, 0);
        double *want = malloc((size_t)n * sizeof *want);
        CHECK(cpu()->kernels->softmax(cpu(), &(sl_softmax_args){ x, y, rows, n, log_form != 0 }));
        for (int64_t r = 0; r < rows; r++) {
          softmax_reference(x + r * n, want, n, log_form != 0);
          check_all_close("softmax", y + r * n, want, n, 1e-6);
        }
        free(x), free(y), free(want);
      }
    }
  }
}

static void test_softmax_backward(void **state) {
  (void)state;
  enum { rows = 3, n = 37 };
  float *x = make_numbers(rows * n, 2, 1), *dy = make_numbers(rows * n, 1, 2), y[rows * n], dx[rows * n];
  for (int log_form = 0; log_form < 2; log_form++) {
    CHECK(cpu()->kernels->softmax(cpu(), &(sl_softmax_args){ x, y, rows, n, log_form != 0 }));
    for (int i = 0; i < rows * n; i++) dx[i] = 1;
    CHECK(cpu()->kernels->softmax_backward(
        cpu(), &(sl_softmax_backward_args){ y, dy, dx, rows, n, log_form != 0, true }));
    for (int r = 0; r < rows; r++) {
      double p[n], sum = 0;
      softmax_reference(x + r * n, p, n, false);
      for (int i = 0; i < n; i++) sum += (double)dy[r * n + i] * (log_form ? 1 : p[i]);
      for (int i = 0; i < n; i++) {
        double g = (double)dy[r * n + i];
        check_close("softmax backward", i, (double)dx[r * n + i],
                    1 + (log_form ? g - p[i] * sum : p[i] * (g - sum)), 2e-6);
      }
    }
  }
  free(x), free(dy);
}

static void check_layernorm(int64_t rows, int64_t n, bool with_residual, float offset) {
  float *x = make_numbers(rows * n, 1, 1), *residual = make_numbers(rows * n, 1, 2),
        *w = make_numbers(n, 1, 3), *b = make_numbers(n, 1, 4);
  float *y = make_numbers(rows * n, 0, 0), *sum = make_numbers(rows * n, 0, 0),
        *mean = make_numbers(rows, 0, 0), *rstd = make_numbers(rows, 0, 0);
  for (int64_t i = 0; i < rows * n; i++) x[i] += offset;
  sl_layernorm_args args = { .x = x,
                             .residual = with_residual ? residual : NULL,
                             .weight = w,
                             .bias = b,
                             .y = y,
                             .sum = sum,
                             .mean = mean,
                             .rstd = rstd,
                             .rows = rows,
                             .n = n,
                             .eps = 1e-5f };
  CHECK(cpu()->kernels->layernorm(cpu(), &args));
  for (int64_t r = 0; r < rows; r++) {
    double average = 0, variance = 0;
    const float *s = sum + r * n;
    for (int64_t i = 0; i < n; i++) {
      check_close("s", i, (double)s[i],
                  (double)(with_residual ? x[r * n + i] + residual[r * n + i] : x[r * n + i]), 0);
      average += (double)s[i] / (double)n;
    }
    for (int64_t i = 0; i < n; i++)
      variance += ((double)s[i] - average) * ((double)s[i] - average) / (double)n;
    double scale = 1 / sqrt(variance + 1e-5);
    check_close("mean", r, (double)mean[r], average, 1e-6);
    check_close("rstd", r, (double)rstd[r], scale, 1e-4);
    for (int64_t i = 0; i < n; i++) {
      check_close("y", i, (double)y[r * n + i],
                  ((double)s[i] - average) * scale * (double)w[i] + (double)b[i], offset > 0 ? 3e-4 : 3e-6);
    }
  }
  free(x), free(residual), free(w), free(b), free(y), free(sum), free(mean), free(rstd);
}

static void test_layernorm(void **state) {
  (void)state;
  static const int64_t shapes[][2] = { { 0, 4 }, { 1, 3 }, { 3, 17 }, { 33, 100 }, { 40, 768 } };
  for (size_t s = 0; s < LENGTH(shapes); s++) {
    check_layernorm(shapes[s][0], shapes[s][1], false, 0);
    check_layernorm(shapes[s][0], shapes[s][1], true, 0);
    check_layernorm(shapes[s][0], shapes[s][1], true, 300); /* a large mean must not eat the variance */
  }
}

static void test_cross_entropy(void **state) {
  (void)state;
  enum { rows = 4, n = 1003 };
  float *x = make_numbers(rows * n, 30, 1), *dx = make_numbers(rows * n, 0, 0), loss[rows], lse[rows],
        dloss[rows] = { 1, 2, 3, 0.5f };
  int32_t targets[rows] = { 0, -100, n - 1, 77 };
  CHECK(cpu()->kernels->cross_entropy(cpu(), &(sl_cross_entropy_args){ x, targets, loss, lse, rows, n }));
  CHECK(cpu()->kernels->cross_entropy_backward(
      cpu(), &(sl_cross_entropy_backward_args){ x, lse, targets, dloss, dx, rows, n, false }));
  for (int r = 0; r < rows; r++) {
    double p[n];
    softmax_reference(x + r * n, p, n, false);
    check_close("loss", r, (double)loss[r], targets[r] < 0 ? 0 : -log(p[targets[r]]), 1e-6);
    for (int i = 0; i < n; i++) {
      double want = targets[r] < 0 ? 0 : (double)dloss[r] * (p[i] - (i == targets[r]));
      check_close("dlogits", i, (double)dx[r * n + i], want, 5e-6);
    }
  }
  free(x), free(dx);
}

static void test_embedding(void **state) {
  (void)state;
  enum { table_rows = 9, rows = 300, n = 131 };
  float *table = make_numbers(table_rows * n, 1, 1), *y = make_numbers(rows * n, 0, 0),
        *dtable = make_numbers(table_rows * n, 0, 0);
  double want[table_rows * n] = { 0 };
  uint16_t half[table_rows * n];
  int32_t ids[rows];
  for (int i = 0; i < rows; i++) ids[i] = i * 7 % 8; /* repeats; row 8 never */
  for (sl_dtype dtype = SL_F32; dtype <= SL_F16; dtype++) {
    for (int i = 0; i < table_rows * n; i++)
      half[i] = dtype == SL_F16 ? sl_f32_to_f16(table[i]) : sl_f32_to_bf16(table[i]);
    sl_embedding_args args = { dtype == SL_F32 ? (const void *)table : half, dtype, ids, y, rows, n, false };
    CHECK(cpu()->kernels->embedding(cpu(), &args));
    args.accumulate = true;
    CHECK(cpu()->kernels->embedding(cpu(), &args));
    for (int i = 0; i < rows * n; i++) {
      float entry = table[ids[i / n] * n + i % n], got = dtype == SL_F32 ? entry
                                                         : dtype == SL_F16
                                                             ? sl_f16_to_f32(sl_f32_to_f16(entry))
                                                             : sl_bf16_to_f32(sl_f32_to_bf16(entry));
      check_close("row", i, (double)y[i], 2 * (double)got, 0);
    }
  }
  for (int i = 0; i < rows * n; i++) want[ids[i / n] * n + i % n] += (double)y[i];
  sl_embedding_backward_args back = {
    .dy = y, .ids = ids, .dtable = dtable, .rows = rows, .n = n, .table_rows = table_rows
  };
  CHECK(cpu()->kernels->embedding_backward(cpu(), &back));
  check_all_close("dtable", dtable, want, table_rows * n, 1e-5);
  free(table), free(y), free(dtable);
}

/* Against a full ranking: by rank, then index; NaN last. */
static bool ranks_before(const float *x, int64_t a, int64_t b, bool absolute) {
  float u = absolute ? fabsf(x[a]) : x[a], v = absolute ? fabsf(x[b]) : x[b];
  if (isnan(u)) u = -INFINITY;
  if (isnan(v)) v = -INFINITY;
  return u > v || (u == v && a < b);
}

static void check_topk(const float *x, int64_t n, int64_t k, bool absolute) {
  float *values = make_numbers(k, 0, 0);
  int32_t *indices = malloc((size_t)(k + 1) * sizeof *indices);
  CHECK(cpu()->kernels->topk_rows(cpu(), &(sl_topk_rows_args){ x, 1, n, k, absolute, values, indices }));
  for (int64_t i = 0; i < n; i++) {
    int64_t place = 0;
    for (int64_t j = 0; j < n; j++) place += ranks_before(x, j, i, absolute);
    if (place >= k) continue;
    assert_int_equal(indices[place], i);
    check_close("value", place, (double)values[place], (double)x[i], 0);
  }
  free(values), free(indices);
}

static void test_topk(void **state) {
  (void)state;
  static const int64_t shapes[][2] = { { 1, 1 },    { 5, 0 },    { 17, 3 },  { 17, 17 },
                                       { 100, 33 }, { 700, 64 }, { 1500, 1 } };
  for (size_t s = 0; s < LENGTH(shapes); s++) {
    for (int absolute = 0; absolute < 2; absolute++) {
      float *x = make_numbers(shapes[s][0], 4, s);
      check_topk(x, shapes[s][0], shapes[s][1], absolute != 0);
      for (int64_t i = 0; i < shapes[s][0]; i++) x[i] = roundf(x[i]); /* many ties */
      check_topk(x, shapes[s][0], shapes[s][1], absolute != 0);
      for (int64_t i = 0; i < shapes[s][0]; i += 3) x[i] = i % 2 ? NAN : INFINITY;
      check_topk(x, shapes[s][0], shapes[s][1], absolute != 0);
      free(x);
    }
  }
}

static void test_sparse_rows(void **state) {
  (void)state;
  enum { rows = 70, k = 5, latents = 23, n = 131 };
  float *values = make_numbers(rows * k, 1, 1), *w = make_numbers(latents * n, 1, 2),
        *b = make_numbers(n, 1, 3), *dy = make_numbers(rows * n, 1, 4);
  float *y = make_numbers(rows * n, 0, 0), dvalues[rows * k], *dw = make_numbers(latents * n, 0, 0);
  double *want_dw = calloc(latents * n, sizeof *want_dw);
  int32_t ids[rows * k];
  for (int i = 0; i < rows * k; i++) ids[i] = i * 11 % (latents - 1), values[i] = i % 7 ? values[i] : 0;
  CHECK(
      cpu()->kernels->sparse_rows(cpu(), &(sl_sparse_rows_args){ values, ids, w, b, y, rows, k, n, false }));
  sl_sparse_rows_backward_args back = { .values = values, .indices = ids, .weight = w, .dy = dy, .dvalues = dvalues,
                                        .dweight = dw, .rows = rows, .k = k, .n = n, .latents = latents };
  CHECK(cpu()->kernels->sparse_rows_backward(cpu(), &back));
  for (int t = 0; t < rows; t++) {
    for (int i = 0; i < n; i++) {
      double sum = (double)b[i];
      for (int j = t * k; j < t * k + k; j++) {
        sum += (double)values[j] * (double)w[ids[j] * n + i];
        want_dw[ids[j] * n + i] += (double)values[j] * (double)dy[t * n + i];
      }
      check_close("y", t, (double)y[t * n + i], sum, 1e-6);
    }
    for (int j = t * k; j < t * k + k; j++) {
      double dot = 0;
      for (int i = 0; i < n; i++) dot += (double)w[ids[j] * n + i] * (double)dy[t * n + i];
      check_close("dvalues", j, (double)dvalues[j], dot, 2e-6);
    }
  }
  check_all_close("dw", dw, want_dw, latents * n, 5e-6);
  CHECK(cpu()->kernels->normalize_rows(cpu(), &(sl_normalize_rows_args){ w, latents, n, 0 }));
  for (int r = 0; r < latents; r++) {
    double squares = 0;
    for (int i = 0; i < n; i++) squares += (double)w[r * n + i] * (double)w[r * n + i];
    check_close("length", r, squares, 1, 1e-6);
  }
  free(values), free(w), free(b), free(dy), free(y), free(dw), free(want_dw);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_softmax),     cmocka_unit_test(test_softmax_backward),
    cmocka_unit_test(test_layernorm),   cmocka_unit_test(test_cross_entropy),
    cmocka_unit_test(test_embedding),   cmocka_unit_test(test_topk),
    cmocka_unit_test(test_sparse_rows),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
