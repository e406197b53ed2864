/* What operations refuse, and how they say it; out=, comparisons, in-place
 * rows, bf16, interruption. */
#include "tests/support/numbers.h"

#include "core/base/interrupt.h"
#include "core/ops/math.h"
#include "core/ops/nn.h"
#include "core/ops/sparse.h"

#define SHAPE(...)                                                                                           \
  (const int64_t[]) { __VA_ARGS__ }

/* The call fails with this code, and its message holds all of the given words.
 */
static void check_refused(sl_status status, sl_status code, const char *first, const char *second) {
  if (status != code)
    fail_msg("expected %s, got %s: %s", sl_status_name(code), sl_status_name(status), sl_last_error());
  if (strstr(sl_last_error(), first) == NULL || strstr(sl_last_error(), second) == NULL) {
    fail_msg("message \"%s\" lacks \"%s\" or \"%s\"", sl_last_error(), first, second);
  }
}

static sl_tensor *make_ids(int64_t n, const int32_t *ids) {
  sl_tensor *x;
  CHECK(sl_tensor_create(sl_cpu_device(), SL_I32, 1, &n, &x));
  CHECK(sl_tensor_write(x, ids, (size_t)n * sizeof *ids));
  return x;
}

static void test_shapes(void **state) {
  (void)state;
  sl_tensor *a = make_tensor(2, SHAPE(32, 768), 1, 1), *b = make_tensor(2, SHAPE(512, 3072), 1, 1),
            *c = make_tensor(1, SHAPE(5), 1, 1);
  sl_tensor *out = NULL, *ids = NULL, *x = make_tensor(3, SHAPE(2, 4, 6), 1, 1);
  sl_attention_options heads = { .heads = 4 };
  check_refused(sl_matmul(a, b, &out), SL_ESHAPE, "matmul: a [32 x 768], b [512 x 3072]",
                "inner sizes 768 and 512 differ");
  check_refused(sl_matmul(a, c, &out), SL_ESHAPE, "matmul", "2 or 3 dimensions");
  check_refused(sl_add(a, b, &out), SL_ESHAPE, "add: a [32 x 768]", "do not broadcast");
  check_refused(sl_linear(a, b, NULL, SL_ACT_NONE, &out), SL_ESHAPE, "linear: x [32 x 768]", "[d_out, d_in]");
  check_refused(sl_linear(a, a, c, SL_ACT_NONE, &out), SL_ESHAPE, "linear", "expected b [32]");
  check_refused(sl_reduce(SL_REDUCE_SUM, a, 2, false, &out), SL_ESHAPE, "sum: [32 x 768]", "no dimension 3");
  check_refused(sl_layer_norm(a, NULL, c, c, 0, NULL, &out), SL_ESHAPE, "layer_norm",
                "a weight of shape [768]");
  check_refused(sl_layer_norm(a, b, c, c, 0, NULL, &out), SL_ESHAPE, "residual [512 x 3072]", "differ");
  check_refused(sl_attention(x, x, x, NULL, &heads, &out), SL_ESHAPE, "attention",
                "6 does not divide into 4 heads");
  check_refused(sl_topk(a, 769, false, &out, &ids), SL_EINVAL, "topk: k = 769", "1 .. 768");
  check_refused(sl_topk(a, 0, false, &out, &ids), SL_EINVAL, "topk", "expected 1");
  check_refused(sl_mse_loss(a, b, &out), SL_ESHAPE, "mse_loss", "differ");
  check_refused(sl_reshape(a, 2, SHAPE(-1, 7), &out), SL_ESHAPE, "reshape", "does not divide");
  check_refused(sl_concat(2, (sl_tensor *[]){ a, b }, 0, &out), SL_ESHAPE, "concat", "part 2");
  check_refused(sl_dropout(a, 1, 0, 0, &out), SL_EINVAL, "dropout: p = 1", "0 <= p < 1");
  assert_null(out);
  assert_null(ids);
  sl_tensor_release(a), sl_tensor_release(b), sl_tensor_release(c), sl_tensor_release(x);
}

static void test_ids_and_dtypes(void **state) {
  (void)state;
  sl_tensor *table = make_tensor(2, SHAPE(4, 3), 1, 1), *out = NULL,
            *high = make_ids(3, (int32_t[]){ 1, 4, 0 });
  sl_tensor *low = make_ids(3, (int32_t[]){ 1, 0, -1 }),
            *ignored = make_ids(4, (int32_t[]){ -1, -1, -100, -1 });
  check_refused(sl_embedding(table, high, &out), SL_EINVAL, "embedding: id 4 at position 2", "0 .. 3");
  check_refused(sl_gather_rows(table, low, &out), SL_EINVAL, "gather_rows: id -1 at position 3", "0 .. 3");
  check_refused(sl_cross_entropy(table, ignored, NULL, &out), SL_EINVAL, "cross_entropy", "no target");
  check_refused(sl_embedding(table, table, &out), SL_EDTYPE, "embedding: ids", "i32");
  check_refused(sl_add(table, low, &out), SL_EDTYPE, "add: b is i32", "f32");
  assert_null(out);
  sl_tensor_release(table), sl_tensor_release(high), sl_tensor_release(low), sl_tensor_release(ignored);
}

static void test_out(void **state) {
  (void)state;
  sl_tensor *x = make_tensor(2, SHAPE(3, 4), 1, 1), *out = make_tensor(2, SHAPE(3, 4), 1, 2), *kept = out,
            *wrong = make_tensor(1, SHAPE(4), 1, 1);
  CHECK(sl_unary(SL_UNARY_MUL_SCALAR, x, 2, &out));
  assert_ptr_equal(out, kept);
  for (int i = 0; i < 12; i++)
    check_close("out", i, (double)sl_tensor_f32(out)[i], 2 * (double)sl_tensor_f32(x)[i], 0);
  sl_tensor *given = wrong;
  assert_int_equal(sl_softmax(x, false, &given), SL_ESHAPE);
  assert_ptr_equal(given, wrong); /* a caller's tensor is never taken */
  sl_tensor *flipped = make_tensor(2, SHAPE(4, 3), 0, 0);
  CHECK(sl_transpose(x, 0, 1, &flipped)); /* a view into out= is a copy */
  check_close("copy", 0, (double)sl_tensor_f32(flipped)[1], (double)sl_tensor_f32(x)[4], 0);
  sl_tape *tape;
  CHECK(sl_tape_create(&tape));
  x->requires_grad = true;
  sl_tape_start(tape);
  check_refused(sl_unary(SL_UNARY_NEG, x, 0, &out), SL_ESTATE, "neg: out=", "tape");
  check_refused(sl_transpose(x, 0, 1, &flipped), SL_ESTATE, "transpose: out=", "tape");
  assert_int_equal(sl_tape_length(tape), 0);
  sl_tape_release(tape);
  sl_tensor_release(x), sl_tensor_release(out), sl_tensor_release(wrong), sl_tensor_release(flipped);
}

/* Comparisons, argmax and detached tensors put nothing on the tape. */
static void test_what_is_not_recorded(void **state) {
  (void)state;
  sl_tensor *x = make_tensor(2, SHAPE(3, 4), 1, 1), *out[4] = { NULL };
  sl_tape *tape;
  CHECK(sl_tape_create(&tape));
  x->requires_grad = true;
  sl_tape_start(tape);
  CHECK(sl_binary(SL_BINARY_GT, x, x, &out[0]));
  CHECK(sl_argmax(x, -1, &out[1]));
  CHECK(sl_detach(x, &out[2]));
  CHECK(sl_unary(SL_UNARY_EXP, out[2], 0, &out[3]));
  assert_int_equal(sl_tape_length(tape), 0);
  assert_ptr_equal(out[2]->storage, x->storage);
  for (int r = 0; r < 3; r++) {
    int best = 0;
    for (int i = 1; i < 4; i++)
      best = sl_tensor_f32(x)[4 * r + i] > sl_tensor_f32(x)[4 * r + best] ? i : best;
    assert_int_equal(((int32_t *)sl_tensor_data(out[1]))[r], best);
  }
  sl_tape_release(tape);
  for (int i = 0; i < 4; i++) sl_tensor_release(out[i]);
  sl_tensor_release(x);
}

static void test_bf16(void **state) {
  (void)state;
  sl_tensor *x = make_tensor(2, SHAPE(9, 33), 1, 1), *W = make_tensor(2, SHAPE(17, 33), 1, 2), *half = NULL,
            *full = NULL, *y = NULL;
  CHECK(sl_cast(W, SL_BF16, &half));
  CHECK(sl_linear(x, W, NULL, SL_ACT_NONE, &full));
  sl_status status = sl_linear(x, half, NULL, SL_ACT_NONE, &y);
  if (status != SL_EUNSUPPORTED) { /* a processor without bf16 products */
    CHECK(status);
    for (int64_t i = 0; i < sl_tensor_count(y); i++) {
      check_close("bf16", i, (double)sl_tensor_f32(y)[i], (double)sl_tensor_f32(full)[i], 3e-2);
    }
  }
  sl_tape *tape;
  CHECK(sl_tape_create(&tape));
  x->requires_grad = true;
  sl_tape_start(tape);
  sl_tensor *none = NULL;
  check_refused(sl_linear(x, half, NULL, SL_ACT_NONE, &none), SL_EDTYPE,
                "linear: a bf16 product has no gradient", "f32");
  sl_tape_release(tape);
  sl_tensor_release(x), sl_tensor_release(W), sl_tensor_release(half), sl_tensor_release(full),
      sl_tensor_release(y);
}

static void test_dropout(void **state) {
  (void)state;
  sl_tensor *x, *y[4] = { NULL };
  CHECK(sl_tensor_create(sl_cpu_device(), SL_F32, 1, SHAPE(10000), &x));
  for (int i = 0; i < 10000; i++) sl_tensor_f32(x)[i] = 1;
  CHECK(sl_dropout(x, 0.25f, 5, 1, &y[0]));
  CHECK(sl_dropout(x, 0.25f, 5, 1, &y[1]));
  CHECK(sl_dropout(x, 0.25f, 5, 2, &y[2]));
  CHECK(sl_dropout(x, 0, 5, 1, &y[3]));
  int zeros = 0;
  for (int i = 0; i < 10000; i++) {
    float value = sl_tensor_f32(y[0])[i];
    assert_true(value == 0 || fabsf(value - 1 / 0.75f) < 1e-6f);
    zeros += value == 0;
  }
  assert_in_range(zeros, 2300, 2700);
  assert_memory_equal(sl_tensor_f32(y[0]), sl_tensor_f32(y[1]), 40000);
  assert_memory_not_equal(sl_tensor_f32(y[0]), sl_tensor_f32(y[2]), 40000);
  assert_memory_equal(sl_tensor_f32(y[3]), sl_tensor_f32(x), 40000);
  for (int i = 0; i < 4; i++) sl_tensor_release(y[i]);
  sl_tensor_release(x);
}

static void test_normalize_rows(void **state) {
  (void)state;
  sl_tensor *W = make_tensor(2, SHAPE(3, 4), 5, 1), *view;
  CHECK(sl_tensor_transpose(W, 0, 1, &view));
  check_refused(sl_normalize_rows_(view, 0), SL_ESHAPE, "normalize_rows", "strided view");
  CHECK(sl_normalize_rows_(W, 0));
  for (int r = 0; r < 3; r++) {
    double squares = 0;
    for (int i = 0; i < 4; i++) squares += pow((double)sl_tensor_f32(W)[4 * r + i], 2);
    check_close("length", r, squares, 1, 1e-6);
  }
  sl_tensor_release(view), sl_tensor_release(W);
}

/* The softmax weights that attention hands out sum to one where a key is
 * visible. */
static void test_attention_pattern(void **state) {
  (void)state;
  sl_tensor *x = make_tensor(3, SHAPE(2, 5, 6), 1, 1), *out = NULL, *pattern = NULL;
  sl_attention_options options = { .heads = 2, .causal = true, .pattern = &pattern };
  CHECK(sl_attention(x, x, x, NULL, &options, &out));
  assert_int_equal(pattern->rank, 4);
  for (int row = 0; row < 20; row++) {
    double sum = 0;
    for (int i = 0; i < 5; i++) sum += (double)sl_tensor_f32(pattern)[5 * row + i];
    check_close("row sum", row, sum, 1, 1e-6);
    for (int i = row % 5 + 1; i < 5; i++) assert_true(sl_tensor_f32(pattern)[5 * row + i] == 0);
  }
  sl_tensor_release(x), sl_tensor_release(out), sl_tensor_release(pattern);
}

static void test_interrupt(void **state) {
  (void)state;
  sl_tensor *x = make_tensor(1, SHAPE(3), 1, 1), *out = NULL;
  sl_interrupt_raise();
  assert_int_equal(sl_add(x, x, &out), SL_EINTERRUPT);
  assert_null(out);
  sl_interrupt_clear();
  CHECK(sl_add(x, x, &out));
  sl_tensor_release(x), sl_tensor_release(out);
}

/* A device whose table lacks a kernel: the message names both; nothing runs
 * elsewhere. */
static void test_empty_slot(void **state) {
  (void)state;
  sl_kernels kernels = *sl_cpu_device()->kernels;
  sl_device device = *sl_cpu_device();
  kernels.softmax = NULL;
  device.kernels = &kernels;
  strcpy(device.name, "toy:0");
  sl_tensor *x, *out = NULL;
  CHECK(sl_tensor_zeros(&device, SL_F32, 1, SHAPE(3), &x));
  check_refused(sl_softmax(x, false, &out), SL_EUNSUPPORTED, "kernel softmax", "toy:0");
  sl_tensor *y = make_tensor(1, SHAPE(3), 1, 1);
  check_refused(sl_add(x, y, &out), SL_EDEVICE, "toy:0", "cpu");
  assert_null(out);
  sl_tensor_release(x), sl_tensor_release(y);
  sl_pool_trim();
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_shapes),
    cmocka_unit_test(test_ids_and_dtypes),
    cmocka_unit_test(test_out),
    cmocka_unit_test(test_what_is_not_recorded),
    cmocka_unit_test(test_bf16),
    cmocka_unit_test(test_dropout),
    cmocka_unit_test(test_normalize_rows),
    cmocka_unit_test(test_attention_pattern),
    cmocka_unit_test(test_interrupt),
    cmocka_unit_test(test_empty_slot),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
