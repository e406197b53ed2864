/* The CUDA kernels that work on rows against the CPU's: softmax, layer norm, cross-entropy, rows by id, sparse codes,
 * unit rows. Sums are taken in another order than the CPU's: a few units in the last place of the largest term. */
#include "tests/support/device_pair.h"

/* Around the borders between registers of a warp, one block and several passes; odd and divisible by 4. */
static const int64_t shapes[][2] = { { 0, 5 },   { 1, 1 },    { 3, 17 },   { 5, 32 },   { 9, 128 },  { 2, 129 },
                                     { 7, 300 }, { 4, 768 },  { 3, 1000 }, { 2, 1024 }, { 2, 1025 }, { 3, 1100 },
                                     { 2, 4100 }, { 1, 9001 } };

static void put_float(pair *p, block *b, int64_t at, float value) {
  for (int side = 0; side < 2; side++) {
    sl_device *device = p->devices[side];
    CHECK(device->table->copy_from_host(device, (float *)AT(b, side) + at, &value, sizeof value));
  }
}

/* -- Softmax -- */

static void check_softmax(int64_t rows, int64_t n, bool log, float scale, int shift) {
  pair p = pair_open();
  block *x = pair_floats_shifted(&p, rows * n, scale, 1, shift), *y = pair_block(&p, (size_t)(rows * n) * 4);
  block *dy = pair_floats_shifted(&p, rows * n, 1, 2, shift), *dx = pair_floats(&p, rows * n, 1, 3);
  block *fresh = pair_block(&p, (size_t)(rows * n) * 4);
  if (rows > 1 && n > 3) put_float(&p, x, 1, -INFINITY); /* masked */
  for (int side = 0; side < 2; side++) {
    sl_softmax_args args = { AT(x, side), AT(y, side), rows, n, log };
    PAIR_RUN(&p, side, softmax, &args);
  }
  pair_check_close(&p, "softmax", y, 2e-6);
  if (rows > 0) pair_put(&p, y, AT(y, PAIR_CPU));
  for (int side = 0; side < 2; side++) {
    sl_softmax_backward_args args = { AT(y, side), AT(dy, side), AT(dx, side), rows, n, log, true };
    PAIR_RUN(&p, side, softmax_backward, &args);
    args.dx = AT(fresh, side);
    args.accumulate = false;
    PAIR_RUN(&p, side, softmax_backward, &args);
  }
  pair_check_close(&p, "softmax_backward, adding", dx, 4e-6);
  pair_check_close(&p, "softmax_backward", fresh, 4e-6);
  pair_close(&p);
}

static void test_softmax(void **state) {
  (void)state;
  static const float scales[] = { 1, 1e4f, 1e30f };
  for (size_t s = 0; s < LENGTH(shapes); s++)
    for (int log = 0; log < 2; log++)
      for (size_t k = 0; k < LENGTH(scales); k++) check_softmax(shapes[s][0], shapes[s][1], log, scales[k], (int)k % 2);
}

/* Rows with NaN, infinities, nothing but -infinity, and -infinity first. */
static void test_softmax_specials(void **state) {
  (void)state;
  static const int64_t widths[] = { 2, 40, 2000 };
  for (size_t w = 0; w < LENGTH(widths); w++) {
    for (int log = 0; log < 2; log++) {
      int64_t n = widths[w];
      float *x = make_numbers(6 * n, 3, 1);
      x[0] = NAN;
      x[n + n / 2] = INFINITY;
      for (int64_t i = 0; i < n; i++) x[2 * n + i] = -INFINITY;
      for (int64_t i = 0; i < n - 1; i++) x[3 * n + i] = -INFINITY;
      for (int64_t i = 1; i < n; i++) x[4 * n + i] = -INFINITY;
      for (int64_t i = 0; i < n; i++) x[5 * n + i] = 1e-41f * (float)i;
      pair p = pair_open();
      block *in = pair_of(&p, x, (size_t)(6 * n) * 4), *y = pair_block(&p, (size_t)(6 * n) * 4);
      for (int side = 0; side < 2; side++) {
        sl_softmax_args args = { AT(in, side), AT(y, side), 6, n, log != 0 };
        PAIR_RUN(&p, side, softmax, &args);
      }
      pair_check_close(&p, "softmax of odd rows", y, 2e-6);
      pair_close(&p);
      free(x);
    }
  }
}

/* -- Layer norm -- */

static void check_layernorm(int64_t rows, int64_t n, bool all, float offset, int shift) {
  pair p = pair_open();
  size_t bytes = (size_t)(rows * n) * 4;
  float *numbers = make_numbers(rows * n, 1, 1);
  for (int64_t i = 0; i < rows * n; i++) numbers[i] += offset;
  block *x = pair_block_shifted(&p, bytes, (size_t)shift * 4);
  block *residual = pair_floats_shifted(&p, rows * n, 1, 2, shift);
  block *w = pair_floats(&p, n, 1, 3), *b = pair_floats_shifted(&p, n, 1, 4, shift), *y = pair_block(&p, bytes);
  block *mean = pair_block(&p, (size_t)rows * 4), *rstd = pair_block(&p, (size_t)rows * 4);
  block *sum = pair_block(&p, bytes);
  pair_put(&p, x, numbers);
  for (int side = 0; side < 2; side++) {
    sl_layernorm_args args = { .x = AT(x, side), .residual = all ? AT(residual, side) : NULL, .weight = AT(w, side),
                               .bias = AT(b, side), .y = AT(y, side), .sum = all ? AT(sum, side) : NULL,
                               .mean = all ? AT(mean, side) : NULL, .rstd = all ? AT(rstd, side) : NULL,
                               .rows = rows, .n = n, .eps = 1e-5f };
    PAIR_RUN(&p, side, layernorm, &args);
    if (all) continue;
    args.y = AT(x, side); /* in place */
    PAIR_RUN(&p, side, layernorm, &args);
  }
  /* Cancellation; with n 1 there is nothing but rounding to normalise. */
  double tolerance = offset > 0 ? 2e-4 : n == 1 ? 1e-3 : 5e-6;
  pair_check_close(&p, "layernorm", y, tolerance);
  if (!all) pair_check_close(&p, "layernorm in place", x, tolerance);
  if (all) {
    pair_check_same(&p, "s", sum);
    pair_check_close(&p, "mean", mean, 1e-6);
    pair_check_close(&p, "rstd", rstd, n == 1 ? 1e-3 : 2e-5);
  }
  free(numbers);
  pair_close(&p);
}

static void test_layernorm(void **state) {
  (void)state;
  for (size_t s = 0; s < LENGTH(shapes); s++) {
    check_layernorm(shapes[s][0], shapes[s][1], false, 0, 0);
    check_layernorm(shapes[s][0], shapes[s][1], true, 0, 1);
    check_layernorm(shapes[s][0], shapes[s][1], true, 300, 0); /* a large mean must not eat the variance */
  }
}

/* parts: 1 = ds, 2 = dweight, 4 = dbias. */
static void check_layernorm_backward(int64_t rows, int64_t n, int parts, bool accumulate) {
  pair p = pair_open();
  block *s = pair_floats(&p, rows * n, 1, 1), *w = pair_floats(&p, n, 1, 2), *mean = pair_floats(&p, rows, 0.1f, 3);
  block *rstd = pair_floats(&p, rows, 2, 4), *dy = pair_floats(&p, rows * n, 1, 5);
  block *ds = pair_floats(&p, rows * n, 1, 6), *dw = pair_floats(&p, n, 1, 7), *db = pair_floats(&p, n, 1, 8);
  for (int side = 0; side < 2; side++) {
    sl_layernorm_backward_args args = { .s = AT(s, side), .weight = AT(w, side), .mean = AT(mean, side),
                                        .rstd = AT(rstd, side), .dy = AT(dy, side),
                                        .ds = parts & 1 ? AT(ds, side) : NULL,
                                        .dweight = parts & 2 ? AT(dw, side) : NULL,
                                        .dbias = parts & 4 ? AT(db, side) : NULL, .rows = rows, .n = n,
                                        .accumulate = accumulate };
    PAIR_RUN_WORKING(&p, side, layernorm_backward, &args);
  }
  pair_check_close(&p, "ds", ds, 1e-5);
  pair_check_close(&p, "dweight", dw, 1e-6);
  pair_check_close(&p, "dbias", db, 1e-6);
  pair_close(&p);
}

static void test_layernorm_backward(void **state) {
  (void)state;
  for (size_t s = 0; s < LENGTH(shapes); s++) check_layernorm_backward(shapes[s][0], shapes[s][1], 7, s % 2 == 0);
  for (int parts = 1; parts < 7; parts++) check_layernorm_backward(70, 40, parts, parts % 2 == 0);
  check_layernorm_backward(300, 33, 7, false); /* several parts, the last one short */
}

/* -- Cross-entropy -- */

static void check_cross_entropy(int64_t rows, int64_t n, float scale, bool accumulate, int shift) {
  pair p = pair_open();
  size_t row_bytes = (size_t)rows * 4;
  int32_t *targets = calloc((size_t)rows + 1, sizeof *targets);
  for (int64_t r = 0; r < rows; r++) targets[r] = r % 3 == 1 ? -100 : (int32_t)((r * 7 + n - 1) % n);
  block *x = pair_floats_shifted(&p, rows * n, scale, 1, shift), *ids = pair_of(&p, targets, row_bytes);
  block *loss = pair_block(&p, row_bytes), *lse = pair_block(&p, row_bytes), *bare = pair_block(&p, row_bytes);
  block *dloss = pair_floats(&p, rows, 1, 2), *dx = pair_floats_shifted(&p, rows * n, 1, 3, shift);
  if (rows > 2) put_float(&p, dloss, 2, 0);
  if (rows > 1) put_float(&p, x, n, NAN); /* on an ignored row: its gradient is 0 all the same */
  for (int side = 0; side < 2; side++) {
    sl_cross_entropy_args args = { AT(x, side), AT(ids, side), AT(loss, side), AT(lse, side), rows, n };
    PAIR_RUN(&p, side, cross_entropy, &args);
    args.lse = NULL;
    args.loss = AT(bare, side);
    PAIR_RUN(&p, side, cross_entropy, &args);
  }
  pair_check_close(&p, "loss", loss, 2e-6);
  pair_check_close(&p, "loss", bare, 2e-6);
  pair_check_close(&p, "lse", lse, 1e-6);
  pair_put(&p, lse, AT(lse, PAIR_CPU));
  for (int side = 0; side < 2; side++) {
    sl_cross_entropy_backward_args args = { AT(x, side), AT(lse, side), AT(ids, side), AT(dloss, side), AT(dx, side),
                                            rows, n, accumulate };
    PAIR_RUN(&p, side, cross_entropy_backward, &args);
  }
  pair_check_close(&p, "dlogits", dx, 4e-6);
  free(targets);
  pair_close(&p);
}

static void test_cross_entropy(void **state) {
  (void)state;
  for (size_t s = 1; s < LENGTH(shapes); s++) {
    check_cross_entropy(shapes[s][0], shapes[s][1], 30, false, 0);
    check_cross_entropy(shapes[s][0], shapes[s][1], 1e4f, true, 1);
  }
}

/* -- Rows by id -- */

static void check_embedding(int64_t rows, int64_t n, int32_t table_rows, int shift) {
  for (int dtype = SL_F32; dtype <= SL_F16; dtype++) {
    pair p = pair_open();
    float *numbers = make_numbers(table_rows * n, 1, 1);
    uint16_t *half = malloc((size_t)(table_rows * n) * 2 + 2);
    for (int64_t i = 0; i < table_rows * n; i++)
      half[i] = dtype == SL_F16 ? sl_f32_to_f16(numbers[i]) : sl_f32_to_bf16(numbers[i]);
    size_t size = sl_dtype_size((sl_dtype)dtype);
    block *table = pair_block_shifted(&p, (size_t)(table_rows * n) * size, (size_t)shift * size);
    block *ids = pair_ids(&p, rows, table_rows, 5), *y = pair_floats(&p, rows * n, 1, 6);
    pair_put(&p, table, dtype == SL_F32 ? (void *)numbers : half);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
      for (int side = 0; side < 2; side++) {
        sl_embedding_args args = { AT(table, side), (sl_dtype)dtype, AT(ids, side), AT(y, side), rows, n,
                                   accumulate != 0 };
        PAIR_RUN(&p, side, embedding, &args);
      }
      pair_check_same(&p, "embedding", y);
    }
    free(numbers), free(half);
    pair_close(&p);
  }
}

static void check_embedding_backward(int64_t rows, int64_t n, int32_t table_rows) {
  pair p = pair_open();
  block *dy = pair_floats(&p, rows * n, 1, 1), *ids = pair_ids(&p, rows, table_rows, 2);
  block *dtable = pair_floats(&p, table_rows * n, 1, 3);
  for (int side = 0; side < 2; side++) {
    sl_embedding_backward_args args = { .dy = AT(dy, side), .ids = AT(ids, side), .dtable = AT(dtable, side),
                                        .rows = rows, .n = n, .table_rows = table_rows };
    PAIR_RUN_WORKING(&p, side, embedding_backward, &args);
  }
  pair_check_close(&p, "embedding_backward", dtable, 2e-5); /* float32 sums of up to 1000 terms */
  pair_close(&p);
}

static void test_embedding(void **state) {
  (void)state;
  check_embedding(0, 8, 3, 0);
  check_embedding(1, 1, 1, 0);
  check_embedding(70, 64, 9, 0);
  check_embedding(33, 64, 9, 1);
  check_embedding(20, 131, 9, 0);
  check_embedding_backward(0, 8, 3);
  check_embedding_backward(1, 1, 1);
  check_embedding_backward(32, 5, 1);    /* one run that fills one chunk */
  check_embedding_backward(33, 5, 1);    /* and goes on */
  check_embedding_backward(1000, 7, 1);
  check_embedding_backward(1000, 131, 3); /* runs of many chunks */
  check_embedding_backward(500, 260, 40);
  check_embedding_backward(300, 3, 30000); /* nearly all different */
}

/* -- Sparse codes -- */

static void check_sparse_rows(int64_t rows, int64_t k, int32_t latents, int64_t n, int shift) {
  pair p = pair_open();
  float *numbers = make_numbers(rows * k, 1, 1);
  for (int64_t i = 0; i < rows * k; i += 3) numbers[i] = 0; /* padding */
  block *values = pair_of(&p, numbers, (size_t)(rows * k) * 4), *ids = pair_ids(&p, rows * k, latents, 2);
  block *w = pair_floats_shifted(&p, latents * n, 1, 3, shift), *b = pair_floats_shifted(&p, n, 1, 4, shift);
  block *y = pair_floats(&p, rows * n, 1, 5), *dy = pair_floats(&p, rows * n, 1, 6);
  block *dvalues = pair_block(&p, (size_t)(rows * k) * 4), *dw = pair_floats(&p, latents * n, 1, 7);
  for (int side = 0; side < 2; side++) {
    sl_sparse_rows_args args = { AT(values, side), AT(ids, side), AT(w, side), AT(b, side), AT(y, side), rows, k, n,
                                 true };
    sl_sparse_rows_backward_args back = { .values = AT(values, side), .indices = AT(ids, side), .weight = AT(w, side),
                                          .dy = AT(dy, side), .dvalues = AT(dvalues, side), .dweight = AT(dw, side),
                                          .rows = rows, .k = k, .n = n, .latents = latents };
    PAIR_RUN(&p, side, sparse_rows, &args); /* adding */
    PAIR_RUN_WORKING(&p, side, sparse_rows_backward, &back);
    back.dweight = NULL; /* either may be missing */
    PAIR_RUN_WORKING(&p, side, sparse_rows_backward, &back);
  }
  pair_check_close(&p, "sparse_rows, adding", y, 4e-6);
  pair_check_close(&p, "dvalues", dvalues, 1e-5);
  pair_check_close(&p, "dweight", dw, 1e-5);
  for (int side = 0; side < 2; side++) {
    sl_sparse_rows_args args = { AT(values, side), AT(ids, side), AT(w, side), NULL, AT(y, side), rows, k, n, false };
    PAIR_RUN(&p, side, sparse_rows, &args);
  }
  pair_check_close(&p, "sparse_rows", y, 4e-6);
  free(numbers);
  pair_close(&p);
}

static void test_sparse_rows(void **state) {
  (void)state;
  check_sparse_rows(0, 3, 2, 4, 0);
  check_sparse_rows(1, 1, 1, 1, 0);
  check_sparse_rows(5, 0, 3, 8, 0);
  check_sparse_rows(40, 5, 23, 64, 0);
  check_sparse_rows(40, 4, 23, 64, 1);
  check_sparse_rows(33, 7, 50, 131, 0);
  check_sparse_rows(60, 16, 3, 36, 0); /* ids repeat within a row */
  check_sparse_rows(3, 32, 500, 1100, 0);
}

static void check_scatter_axis(int64_t outer, int64_t n, int64_t k, int64_t inner) {
  pair p = pair_open();
  block *dy = pair_floats(&p, outer * k * inner, 1, 1), *index = pair_ids(&p, outer * k * inner, (int32_t)n, 2);
  block *dx = pair_floats(&p, outer * n * inner, 1, 3);
  for (int side = 0; side < 2; side++) {
    sl_scatter_axis_args args = { AT(dy, side), AT(index, side), AT(dx, side), outer, n, k, inner };
    PAIR_RUN(&p, side, scatter_axis, &args);
  }
  pair_check_same(&p, "scatter_axis", dx); /* sums in the CPU's own order */
  pair_close(&p);
}

static void test_scatter_axis(void **state) {
  (void)state;
  check_scatter_axis(0, 3, 2, 1);
  check_scatter_axis(1, 1, 1, 1);
  check_scatter_axis(300, 50, 1, 1);
  check_scatter_axis(9, 40, 7, 1);
  check_scatter_axis(9, 4000, 32, 1);
  check_scatter_axis(11, 5, 45, 1); /* repeats within a warp's 32 and across them */
  check_scatter_axis(3, 1, 100, 1);
  check_scatter_axis(3, 6, 4, 5);
  check_scatter_axis(2, 4, 10, 33);
}

static void test_normalize_rows(void **state) {
  (void)state;
  for (size_t s = 0; s < LENGTH(shapes); s++) {
    pair p = pair_open();
    int64_t rows = shapes[s][0], n = shapes[s][1];
    block *x = pair_floats_shifted(&p, rows * n, 1e20f, s, (int)s % 2);
    if (rows > 2) /* a row of zeros */
      for (int64_t i = 0; i < n; i++) put_float(&p, x, n + i, 0);
    for (int side = 0; side < 2; side++) {
      sl_normalize_rows_args args = { AT(x, side), rows, n, 1e-7f };
      PAIR_RUN(&p, side, normalize_rows, &args);
    }
    pair_check_close(&p, "normalize_rows", x, 3e-7);
    pair_close(&p);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_softmax),       cmocka_unit_test(test_softmax_specials),
    cmocka_unit_test(test_layernorm),     cmocka_unit_test(test_layernorm_backward),
    cmocka_unit_test(test_cross_entropy), cmocka_unit_test(test_embedding),
    cmocka_unit_test(test_sparse_rows),   cmocka_unit_test(test_scatter_axis),
    cmocka_unit_test(test_normalize_rows),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
