/* The tape: what it records, how gradients add up in graphs with branches, hooks, refusals, failures. The gradients
 * of single operations are held to PyTorch's elsewhere. */
#include "tests/support/numbers.h"

#include "core/base/mem.h"
#include "core/ops/math.h"
#include "core/tensor/tape.h"

#define SHAPE(...) ((const int64_t[]){ __VA_ARGS__ })

static sl_tensor *leaf(int64_t n, uint64_t seed) {
  sl_tensor *x = make_tensor(1, &n, 1, seed);
  x->requires_grad = true;
  return x;
}

static sl_tensor *add(sl_tensor *a, sl_tensor *b) {
  sl_tensor *y = NULL;
  CHECK(sl_binary(SL_BINARY_ADD, a, b, &y));
  return y;
}

static sl_tensor *mul(sl_tensor *a, sl_tensor *b) {
  sl_tensor *y = NULL;
  CHECK(sl_binary(SL_BINARY_MUL, a, b, &y));
  return y;
}

static sl_tensor *sum(sl_tensor *x) {
  sl_tensor *y = NULL;
  CHECK(sl_reduce(SL_REDUCE_SUM, x, SL_ALL_DIMS, false, &y));
  return y;
}

static sl_tensor *reshaped(sl_tensor *x, int rank, const int64_t *shape) {
  sl_tensor *y = NULL;
  CHECK(sl_reshape(x, rank, shape, &y));
  return y;
}

static sl_tape *started(void) {
  sl_tape *tape;
  CHECK(sl_tape_create(&tape));
  sl_tape_start(tape);
  return tape;
}

static void check_grad(const sl_tensor *x, int64_t i, double want) {
  assert_non_null(x->grad);
  check_close("gradient", i, (double)sl_tensor_f32(x->grad)[i], want, 1e-6);
}

static void release_all(int n, sl_tensor **list) {
  for (int i = 0; i < n; i++) sl_tensor_release(list[i]);
}
#define RELEASE(...)                                                           \
  do {                                                                         \
    sl_tensor *list_[] = { __VA_ARGS__ };                                      \
    release_all((int)LENGTH(list_), list_);                                    \
  } while (0)

static void test_records_what_matters(void **state) {
  (void)state;
  sl_tensor *x = leaf(3, 1), *plain = make_tensor(1, SHAPE(3), 1, 2);
  sl_tensor *before = mul(x, x); /* no tape yet */
  sl_tape *tape = started();
  sl_tensor *a = add(plain, plain), *b = add(before, plain);
  assert_int_equal(sl_tape_length(tape), 0); /* nothing tracked took part */
  assert_false(sl_tape_tracks(a));
  sl_tensor *c = mul(x, plain);
  assert_int_equal(sl_tape_length(tape), 1);
  assert_true(sl_tape_tracks(c));
  sl_tape *paused = sl_tape_pause();
  assert_ptr_equal(paused, tape);
  assert_null(sl_tape_active());
  assert_false(sl_tape_tracks(c));
  sl_tensor *d = mul(c, c);
  sl_tape_resume(paused);
  assert_int_equal(sl_tape_length(tape), 1);
  assert_true(sl_tape_tracks(c));
  assert_false(sl_tape_tracks(d));
  sl_tape_reset(tape);
  assert_int_equal(sl_tape_length(tape), 0);
  assert_false(sl_tape_tracks(c));
  assert_ptr_equal(sl_tape_active(), tape);
  sl_tape_release(tape);
  assert_null(sl_tape_active());
  RELEASE(x, plain, before, a, b, c, d);
}

/* y = x + x, z = y * y + y, and x once more: every path counts. */
static void test_diamond(void **state) {
  (void)state;
  sl_tensor *x = leaf(4, 3);
  sl_tape *tape = started();
  sl_tensor *y = add(x, x), *yy = mul(y, y), *s = add(yy, y), *t = add(s, x), *loss = sum(t);
  CHECK(sl_tape_backward(tape, loss, NULL));
  for (int64_t i = 0; i < 4; i++) {
    double v = (double)sl_tensor_f32(x)[i];
    check_grad(x, i, 8 * v + 3); /* d/dx (4 x^2 + 2 x + x) */
  }
  assert_int_equal(sl_tape_length(tape), 0); /* emptied */
  assert_null(sl_tape_active());
  assert_int_equal(x->grad->references, 1);
  sl_tape_release(tape);
  RELEASE(x, y, yy, s, t, loss);
}

/* Backward functions hand the same tensor, or a view of it, to several inputs: adding in place into one must not
 * change the others. */
static void test_shared_gradients(void **state) {
  (void)state;
  sl_tensor *a = leaf(4, 5), *b = make_tensor(2, SHAPE(2, 2), 1, 6), *w = make_tensor(1, SHAPE(4), 1, 7);
  b->requires_grad = true;
  sl_tape *tape = started();
  sl_tensor *early = mul(a, w);                 /* a's second gradient comes last, from here */
  sl_tensor *r = reshaped(a, 2, SHAPE(2, 2)), *s = add(r, b), *total = sum(s), *other = sum(early),
            *loss = add(total, other);
  CHECK(sl_tape_backward(tape, loss, NULL));
  for (int64_t i = 0; i < 4; i++) {
    check_grad(a, i, 1 + (double)sl_tensor_f32(w)[i]);
    check_grad(b, i, 1);
  }
  assert_int_equal(a->grad->storage->references, 1);
  assert_int_equal(b->grad->storage->references, 1);
  assert_ptr_not_equal(a->grad->storage, b->grad->storage);
  sl_tape_release(tape);
  RELEASE(a, b, w, early, r, s, total, other, loss);
}

static void test_gradients_add_up_over_steps(void **state) {
  (void)state;
  sl_tensor *x = leaf(2, 8), *y = leaf(2, 9);
  sl_tape *tape;
  CHECK(sl_tape_create(&tape));
  for (int step = 1; step <= 3; step++) {
    sl_tape_start(tape);
    sl_tensor *s = add(x, y), *loss = sum(s);
    CHECK(sl_tape_backward(tape, loss, NULL));
    check_grad(x, 0, step);
    check_grad(y, 1, step);
    RELEASE(s, loss);
  }
  sl_tensor_clear_grad(x);
  assert_null(x->grad);
  sl_tensor_clear_grad(x);
  sl_tape_release(tape);
  RELEASE(x, y);
}

static void test_seeds_and_refusals(void **state) {
  (void)state;
  sl_tensor *x = leaf(3, 10), *seed = make_tensor(1, SHAPE(3), 1, 11), *wrong = make_tensor(1, SHAPE(2), 1, 1);
  sl_tensor *ids;
  CHECK(sl_tensor_zeros(sl_cpu_device(), SL_I32, 1, SHAPE(3), &ids));
  sl_tape *tape = started();
  sl_tensor *y = add(x, x);
  assert_int_equal(sl_tape_backward(tape, y, NULL), SL_ESHAPE);
  assert_non_null(strstr(sl_last_error(), "[3], expected one element"));
  assert_null(x->grad);
  assert_int_equal(sl_tape_length(tape), 0); /* also a failed backward ends the recording */
  sl_tape_start(tape);
  sl_tensor *z = add(x, x);
  assert_int_equal(sl_tape_backward(tape, z, wrong), SL_ESHAPE);
  sl_tape_start(tape);
  sl_tensor *u = add(x, x);
  assert_int_equal(sl_tape_backward(tape, u, ids), SL_EDTYPE); /* its bytes are no floats */
  sl_tape_start(tape);
  assert_int_equal(sl_tape_backward(tape, seed, NULL), SL_ESTATE); /* not on the tape */
  sl_tape_start(tape);
  sl_tensor *v = add(x, x);
  CHECK(sl_tape_backward(tape, v, seed));
  for (int64_t i = 0; i < 3; i++) check_grad(x, i, 2 * (double)sl_tensor_f32(seed)[i]);
  sl_tape_release(tape);
  RELEASE(x, seed, wrong, ids, y, z, u, v);
}

/* The tape keeps what it needs. */
static void test_owns_its_tensors(void **state) {
  (void)state;
  sl_tensor *x = leaf(3, 12);
  sl_tape *tape = started();
  sl_tensor *y = mul(x, x), *loss = sum(y);
  sl_tensor_release(y);
  float values[3];
  memcpy(values, sl_tensor_f32(x), sizeof values);
  CHECK(sl_tape_backward(tape, loss, NULL));
  for (int64_t i = 0; i < 3; i++) check_grad(x, i, 2 * (double)values[i]);
  sl_tape_release(tape);
  RELEASE(x, loss);
}

static void test_tape_dies_while_suspended(void **state) {
  (void)state;
  sl_tape *tape = started(), *paused = sl_tape_pause();
  sl_tape_release(tape);
  sl_tape_resume(paused);
  assert_null(sl_tape_active());
  sl_tensor *x = leaf(2, 1), *y = add(x, x);
  RELEASE(x, y);
}

typedef struct {
  sl_tape *tape;
  int calls, released;
  bool meddle, fail;
} hook_state;

static sl_status triple(void *context, sl_tensor **grad) {
  hook_state *hook = context;
  hook->calls++;
  if (hook->fail) return sl_fail(SL_EINVAL, "the hook said no");
  if (hook->meddle) { /* what a recipe's hook might try */
    assert_true(sl_tape_is_running(hook->tape));
    sl_tape_start(hook->tape);
    sl_tape_reset(hook->tape);
    assert_int_equal(sl_tape_backward(hook->tape, *grad, NULL), SL_ESTATE);
    sl_tape_release(hook->tape);
  }
  sl_tensor *larger;
  SL_TRY(sl_tensor_clone(*grad, &larger));
  for (int64_t i = 0; i < sl_tensor_count(larger); i++) sl_tensor_f32(larger)[i] *= 3;
  sl_tensor_release(*grad);
  *grad = larger;
  return SL_OK;
}

static void note_release(void *context) { ((hook_state *)context)->released++; }

static void test_hooks(void **state) {
  (void)state;
  hook_state hook = { 0 }, refused = { 0 };
  sl_tensor *x = leaf(2, 13), *stranger = leaf(2, 14);
  sl_tape *tape = started();
  sl_tensor *y = add(x, x), *z = mul(y, y), *loss = sum(z);
  CHECK(sl_tape_hook(y, triple, &hook, note_release));
  assert_int_equal(sl_tape_hook(y, triple, &refused, note_release), SL_ESTATE);
  assert_int_equal(sl_tape_hook(stranger, triple, &refused, note_release), SL_ESTATE);
  assert_int_equal(refused.released, 2); /* taken over also on failure */
  CHECK(sl_tape_backward(tape, loss, NULL));
  assert_int_equal(hook.calls, 1);
  assert_int_equal(hook.released, 1);
  for (int64_t i = 0; i < 2; i++) check_grad(x, i, 3 * 8 * (double)sl_tensor_f32(x)[i]);
  sl_tape_release(tape);
  RELEASE(x, stranger, y, z, loss);
}

static void test_hook_meddles(void **state) {
  (void)state;
  sl_mem_stats before = sl_mem_get_stats();
  hook_state hook = { .meddle = true };
  sl_tensor *x = leaf(2, 15);
  hook.tape = started();
  sl_tensor *y = add(x, x), *loss = sum(y);
  CHECK(sl_tape_hook(y, triple, &hook, note_release));
  CHECK(sl_tape_backward(hook.tape, loss, NULL)); /* the tape goes at its end */
  check_grad(x, 0, 6);
  assert_int_equal(hook.released, 1);
  RELEASE(x, y, loss);
  assert_int_equal(sl_mem_get_stats().blocks, before.blocks);
}

static void test_hook_fails(void **state) {
  (void)state;
  sl_mem_stats before = sl_mem_get_stats();
  hook_state hook = { .fail = true };
  sl_tensor *x = leaf(2, 16);
  sl_tape *tape = started();
  sl_tensor *y = add(x, x), *loss = sum(y);
  CHECK(sl_tape_hook(y, triple, &hook, note_release));
  assert_int_equal(sl_tape_backward(tape, loss, NULL), SL_EINVAL);
  assert_non_null(strstr(sl_last_error(), "said no"));
  assert_null(x->grad);
  assert_false(sl_tape_is_running(tape));
  sl_tape_release(tape);
  RELEASE(x, y, loss);
  assert_int_equal(sl_mem_get_stats().blocks, before.blocks);
}

/* Many nodes and tracked tensors: the tables grow. */
static void test_long_chain(void **state) {
  (void)state;
  enum { LINKS = 5000 };
  sl_tensor *x = leaf(1, 17), *at = sl_tensor_retain(x);
  sl_tape *tape = started();
  for (int i = 0; i < LINKS; i++) {
    sl_tensor *next = add(at, x);
    sl_tensor_release(at);
    at = next;
  }
  assert_int_equal(sl_tape_length(tape), LINKS);
  CHECK(sl_tape_backward(tape, at, NULL));
  check_grad(x, 0, LINKS + 1);
  sl_tape_release(tape);
  RELEASE(x, at);
}

static sl_status one_pass(sl_tensor *x, sl_tensor *w) {
  sl_tape *tape = NULL;
  sl_tensor *a = NULL, *r = NULL, *b = NULL, *loss = NULL;
  SL_TRY(sl_tape_create(&tape));
  sl_tape_start(tape);
  sl_status status = sl_binary(SL_BINARY_MUL, x, w, &a);
  if (status == SL_OK) status = sl_reshape(a, 2, SHAPE(2, 3), &r);
  if (status == SL_OK) status = sl_binary(SL_BINARY_MUL, r, r, &b);
  if (status == SL_OK) status = sl_reduce(SL_REDUCE_SUM, b, SL_ALL_DIMS, false, &loss);
  if (status == SL_OK) status = sl_tape_backward(tape, loss, NULL);
  sl_tape_release(tape);
  RELEASE(a, r, b, loss);
  return status;
}

static void test_torture(void **state) {
  (void)state;
  sl_tensor *x = leaf(6, 18), *w = leaf(6, 19);
  CHECK(one_pass(x, w));
  sl_tensor_clear_grad(x), sl_tensor_clear_grad(w);
  sl_mem_stats before = sl_mem_get_stats();
  int n = 1;
  for (;; n++) {
    sl_mem_fail_at(n);
    sl_status status = one_pass(x, w);
    sl_mem_fail_at(0);
    assert_null(sl_tape_active());
    sl_tensor_clear_grad(x), sl_tensor_clear_grad(w);
    assert_int_equal(sl_mem_get_stats().blocks, before.blocks);
    assert_int_equal(sl_mem_get_stats().bytes, before.bytes);
    if (status == SL_OK) break;
    assert_int_equal(status, SL_ENOMEM);
    assert_true(n < 300);
  }
  assert_true(n > 20);
  RELEASE(x, w);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_records_what_matters), cmocka_unit_test(test_diamond),
    cmocka_unit_test(test_shared_gradients), cmocka_unit_test(test_gradients_add_up_over_steps),
    cmocka_unit_test(test_seeds_and_refusals), cmocka_unit_test(test_owns_its_tensors),
    cmocka_unit_test(test_tape_dies_while_suspended), cmocka_unit_test(test_hooks),
    cmocka_unit_test(test_hook_meddles), cmocka_unit_test(test_hook_fails), cmocka_unit_test(test_long_chain),
    cmocka_unit_test(test_torture),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
