/* Optimisers against float64 references, states for checkpoints, clipping. */
#include "tests/support/numbers.h"

#include "core/base/mem.h"
#include "core/optim/optimizer.h"

enum { n = 37, steps = 5 };

/* One parameter in float64, stepped by the textbook. */
typedef struct {
  double w[n], m[n], v[n];
} reference;

static void reference_step(reference *r, const sl_optimizer_options *o, const float *g, double lr,
                           double scale, int t) {
  for (int i = 0; i < n; i++) {
    double slope = scale * (double)g[i], wd = (double)o->weight_decay;
    if (o->kind != SL_OPTIMIZER_ADAMW) slope += wd * r->w[i];
    if (o->kind == SL_OPTIMIZER_SGD) {
      r->m[i] = (double)o->momentum * r->m[i] + slope;
      r->w[i] -= lr * r->m[i];
      continue;
    }
    double b1 = (double)o->beta1, b2 = (double)o->beta2;
    r->m[i] = b1 * r->m[i] + (1 - b1) * slope;
    r->v[i] = b2 * r->v[i] + (1 - b2) * slope * slope;
    if (o->kind == SL_OPTIMIZER_ADAMW) r->w[i] -= lr * wd * r->w[i];
    r->w[i] -= lr * (r->m[i] / (1 - pow(b1, t))) / (sqrt(r->v[i] / (1 - pow(b2, t))) + (double)o->eps);
  }
}

static void set_grad(sl_tensor *parameter, uint64_t seed) {
  sl_tensor_release(parameter->grad);
  parameter->grad = make_tensor(1, parameter->shape, 1.0f, seed);
}

static void check_kind(const sl_optimizer_options *options, int n_states, const char *first_state) {
  int64_t shape = n;
  sl_optimizer *o;
  sl_tensor *w = make_tensor(1, &shape, 1.0f, 5);
  reference r = { .m = { 0 } };
  for (int i = 0; i < n; i++) r.w[i] = (double)sl_tensor_f32(w)[i];
  CHECK(sl_optimizer_create(options, &o));
  CHECK(sl_optimizer_add(o, "w", w, 0.5f, true));
  for (int t = 1; t <= steps; t++) {
    set_grad(w, (uint64_t)t);
    CHECK(sl_optimizer_step(o, 0.02f, 0.7f));
    reference_step(&r, options, sl_tensor_f32(w->grad), (double)0.02f * 0.5, (double)0.7f, t);
  }
  check_all_close("w", sl_tensor_f32(w), r.w, n, 2e-6);
  assert_int_equal(sl_optimizer_steps(o), steps);
  assert_int_equal(sl_optimizer_n_states(o), n_states);
  if (n_states > 0) {
    const char *name;
    sl_tensor *state;
    sl_optimizer_state(o, 0, &name, &state);
    assert_string_equal(name, first_state);
    check_all_close(name, sl_tensor_f32(state), r.m, n, 2e-6);
  }
  sl_optimizer_zero_grad(o);
  assert_null(w->grad);
  sl_optimizer_release(o);
  sl_tensor_release(w);
}

static void test_kinds(void **state) {
  (void)state;
  sl_optimizer_options adam = {
    .kind = SL_OPTIMIZER_ADAM, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .weight_decay = 0.1f
  };
  check_kind(&adam, 2, "w.m");
  adam.kind = SL_OPTIMIZER_ADAMW;
  check_kind(&adam, 2, "w.m");
  sl_optimizer_options sgd = { .kind = SL_OPTIMIZER_SGD, .weight_decay = 0.1f };
  check_kind(&sgd, 0, NULL);
  sgd.momentum = 0.9f;
  check_kind(&sgd, 1, "w.momentum");
}

/* A parameter without gradient stays; one without decay does not shrink. */
static void test_exemptions(void **state) {
  (void)state;
  int64_t shape = n;
  sl_optimizer_options options = {
    .kind = SL_OPTIMIZER_ADAMW, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.5f
  };
  sl_optimizer *o;
  sl_tensor *idle = make_tensor(1, &shape, 1.0f, 1), *bias = make_tensor(1, &shape, 1.0f, 1),
            *before = make_tensor(1, &shape, 1.0f, 1);
  CHECK(sl_optimizer_create(&options, &o));
  CHECK(sl_optimizer_add(o, "idle", idle, 1, true));
  CHECK(sl_optimizer_add(o, "bias", bias, 1, false));
  assert_int_equal(sl_optimizer_add(o, "bias", bias, 1, false), SL_EINVAL);
  bias->grad = make_tensor(1, &shape, 0.0f, 1);
  CHECK(sl_optimizer_step(o, 0.1f, 1));
  assert_memory_equal(sl_tensor_f32(idle), sl_tensor_f32(before), n * sizeof(float));
  assert_memory_equal(sl_tensor_f32(bias), sl_tensor_f32(before), n * sizeof(float));
  sl_optimizer_release(o);
  sl_tensor_release(idle), sl_tensor_release(bias), sl_tensor_release(before);
}

static void test_clipping(void **state) {
  (void)state;
  int64_t shape = n;
  sl_tensor *w[3];
  double sum = 0, norm;
  for (int i = 0; i < 3; i++) w[i] = make_tensor(1, &shape, 1.0f, 1);
  set_grad(w[0], 3), set_grad(w[2], 4);
  for (int i = 0; i < n; i++) {
    double a = (double)sl_tensor_f32(w[0]->grad)[i], b = (double)sl_tensor_f32(w[2]->grad)[i];
    sum += a * a + b * b;
  }
  CHECK(sl_clip_grad_norm(3, w, 1e6, &norm)); /* below: untouched */
  check_close("norm", 0, norm, sqrt(sum), 1e-12);
  CHECK(sl_clip_grad_norm(3, w, 0.5, &norm));
  check_close("norm before", 0, norm, sqrt(sum), 1e-12);
  CHECK(sl_grad_norm(3, w, &norm));
  check_close("norm after", 0, norm, 0.5, 1e-6);
  sl_tensor_f32(w[0]->grad)[7] = NAN;
  CHECK(sl_clip_grad_norm(3, w, 0.5, &norm));
  assert_true(isnan(norm));
  assert_int_equal(sl_clip_grad_norm(3, w, 0, &norm), SL_EINVAL);
  for (int i = 0; i < 3; i++) sl_tensor_release(w[i]);
}

static void test_refusals_and_torture(void **state) {
  (void)state;
  int64_t shape = n;
  sl_optimizer *o;
  sl_optimizer_options bad = { .kind = SL_OPTIMIZER_ADAM, .beta1 = 1.5f };
  assert_int_equal(sl_optimizer_create(&bad, &o), SL_EINVAL);
  assert_non_null(strstr(sl_last_error(), "beta1"));
  sl_tensor *w = make_tensor(1, &shape, 1.0f, 1);
  sl_optimizer_options adam = { .kind = SL_OPTIMIZER_ADAM, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f };
  sl_pool_trim();
  int64_t blocks = sl_mem_get_stats().blocks, failures = 0;
  for (sl_status status = SL_ENOMEM; status != SL_OK; failures++) {
    sl_mem_fail_at(failures + 1);
    status = sl_optimizer_create(&adam, &o);
    if (status == SL_OK) status = sl_optimizer_add(o, "w", w, 1, true);
    sl_mem_fail_at(0);
    assert_true(status == SL_OK || status == SL_ENOMEM);
    sl_optimizer_release(o);
    sl_pool_trim();
    assert_int_equal(sl_mem_get_stats().blocks, blocks);
  }
  assert_in_range(failures, 5, 50);
  sl_tensor_release(w);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_kinds),
    cmocka_unit_test(test_exemptions),
    cmocka_unit_test(test_clipping),
    cmocka_unit_test(test_refusals_and_torture),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
