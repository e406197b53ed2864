/* One operation against finite differences, as test_ops_gradients.c and test_transformer_gradients.c use it.
 *
 * The scalar under test is L(x) = sum c_i f(x)_i with fixed random c, summed in
 * float64. Each entry of each input is moved by h and 2h and the fourth-order
 * difference (8 (L(h) - L(-h)) - (L(2h) - L(-2h))) / 12h compared with the
 * tape's gradient. With h = 0.02 the rounding of float32 leaves about 1e-5 and
 * the truncation less, so the tolerance of 1e-3 passes correct code easily and
 * no wrong factor, sign or index. */
#ifndef SL_TEST_GRADIENT_CASE_H
#define SL_TEST_GRADIENT_CASE_H

#include "numbers.h"

#include "core/base/mem.h"
#include "core/ops/math.h"

enum { most_inputs = 4 };

typedef struct {
  const char *name;
  sl_status (*run)(sl_tensor *const *x, sl_tensor **out);
  int n;
  struct {
    int rank;
    int64_t shape[4];
    float offset; /* values lie in offset + [-1, 1) */
  } inputs[most_inputs];
} gradient_case;

#define ONE(r, ...)                                                                                          \
  1, {                                                                                                       \
    { r, { __VA_ARGS__ }, 0 }                                                                                \
  }
#define ONE_AT(o, r, ...)                                                                                    \
  1, {                                                                                                       \
    { r, { __VA_ARGS__ }, o }                                                                                \
  }
#define S(r, ...)                                                                                            \
  { r, { __VA_ARGS__ }, 0 }
#define AT(o, r, ...)                                                                                        \
  { r, { __VA_ARGS__ }, o }

static inline sl_tensor *make_ids(int rank, const int64_t *shape, const int32_t *ids) {
  sl_tensor *x;
  CHECK(sl_tensor_create(sl_cpu_device(), SL_I32, rank, shape, &x));
  CHECK(sl_tensor_write(x, ids, (size_t)sl_tensor_count(x) * sizeof *ids));
  return x;
}

/* -- The checker -- */

/* L(x) in float64; the tape is not active. */
static inline double evaluate(const gradient_case *c, sl_tensor *const *inputs, const float *weights) {
  sl_tensor *y = NULL, *dense;
  CHECK(c->run(inputs, &y));
  CHECK(sl_tensor_contiguous(y, &dense));
  double sum = 0;
  for (int64_t i = 0; i < sl_tensor_count(dense); i++)
    sum += (double)weights[i] * (double)sl_tensor_f32(dense)[i];
  sl_tensor_release(dense);
  sl_tensor_release(y);
  return sum;
}

/* Every gradient through the tape, left in inputs[i]->grad; returns the weights
 * of L. */
static inline float *run_backward(const gradient_case *c, sl_tensor *const *inputs) {
  sl_tape *tape;
  sl_tensor *y = NULL, *seed;
  CHECK(sl_tape_create(&tape));
  sl_tape_start(tape);
  CHECK(c->run(inputs, &y));
  sl_tape_stop();
  float *weights = make_numbers(sl_tensor_count(y), 1.0f, 99);
  CHECK(sl_tensor_create_like(y, SL_F32, &seed));
  CHECK(sl_tensor_write(seed, weights, (size_t)sl_tensor_count(y) * sizeof *weights));
  CHECK(sl_tape_backward(tape, y, seed));
  sl_tensor_release(seed);
  sl_tensor_release(y);
  sl_tape_release(tape);
  return weights;
}

static inline double difference(const gradient_case *c, sl_tensor *const *inputs, float *entry,
                         const float *weights) {
  const float h = 0.02f, at = *entry;
  double sides[4];
  const float steps[4] = { h, -h, 2 * h, -2 * h };
  for (int i = 0; i < 4; i++) {
    *entry = at + steps[i];
    sides[i] = evaluate(c, inputs, weights);
  }
  *entry = at;
  return (8 * (sides[0] - sides[1]) - (sides[2] - sides[3])) / (12 * (double)h);
}

/* 24 values 0.13 apart in a scattered order, shifted so that no step of 2h =
 * 0.04 crosses a kink (0, the scalar 0.37) or swaps two neighbours in value or
 * size; the second input sits between the values of the first. */
static inline sl_tensor *make_input(const gradient_case *c, int i) {
  sl_tensor *x = make_tensor(c->inputs[i].rank, c->inputs[i].shape, 1.0f, 1);
  float *values = sl_tensor_f32(x);
  for (int64_t j = 0; j < sl_tensor_count(x); j++) {
    values[j] =
        (float)((7 * j + 5 * i) % 24 - 12) * 0.13f + 0.0433f + 0.065f * (float)(i % 2) + c->inputs[i].offset;
  }
  x->requires_grad = true;
  return x;
}

static inline void check_case(const gradient_case *c) {
  sl_tensor *inputs[most_inputs] = { NULL };
  for (int i = 0; i < c->n; i++) inputs[i] = make_input(c, i);
  float *weights = run_backward(c, inputs);
  for (int i = 0; i < c->n; i++) {
    if (inputs[i]->grad == NULL) fail_msg("%s: input %d has no gradient", c->name, i + 1);
    for (int64_t j = 0; j < sl_tensor_count(inputs[i]); j++) {
      double got = (double)sl_tensor_f32(inputs[i]->grad)[j];
      double want = difference(c, inputs, &sl_tensor_f32(inputs[i])[j], weights);
      if (fabs(got - want) > 1e-3 * (1 + fabs(want))) {
        fail_msg("%s: d / d input %d [%lld]: tape %.6f, difference %.6f", c->name, i + 1, (long long)j, got,
                 want);
      }
    }
  }
  for (int i = 0; i < c->n; i++) sl_tensor_release(inputs[i]);
  free(weights);
}

/* Torture: in forward and backward of every operation the n-th allocation
 * fails, for every n until none is left. Each failure must be a clean SL_ENOMEM
 * and leave nothing behind. */
static inline sl_status forward_backward(const gradient_case *c, sl_tensor *const *inputs) {
  sl_tape *tape;
  sl_tensor *y = NULL, *sum = NULL;
  SL_TRY(sl_tape_create(&tape));
  sl_tape_start(tape);
  sl_status status = c->run(inputs, &y);
  if (status == SL_OK) status = sl_reduce(SL_REDUCE_SUM, y, SL_ALL_DIMS, false, &sum);
  if (status == SL_OK) status = sl_tape_backward(tape, sum, NULL);
  sl_tensor_release(y);
  sl_tensor_release(sum);
  sl_tape_release(tape);
  return status;
}


static inline void check_torture(const gradient_case *c) {
  sl_tensor *inputs[most_inputs] = { NULL };
  for (int j = 0; j < c->n; j++) inputs[j] = make_input(c, j);
  sl_pool_trim();
  int64_t blocks = sl_mem_get_stats().blocks, n = 0;
  sl_status status;
  do {
    sl_mem_fail_at(++n);
    status = forward_backward(c, inputs);
    sl_mem_fail_at(0);
    if (status != SL_OK && status != SL_ENOMEM)
      fail_msg("%s: allocation %lld: %s", c->name, (long long)n, sl_last_error());
    for (int j = 0; j < c->n; j++) sl_tensor_clear_grad(inputs[j]);
    sl_pool_trim();
    if (sl_mem_get_stats().blocks != blocks) fail_msg("%s: allocation %lld leaks", c->name, (long long)n);
  } while (status != SL_OK && n < 500);
  if (n < 4 || n >= 500) fail_msg("%s: %lld allocations", c->name, (long long)n);
  for (int j = 0; j < c->n; j++) sl_tensor_release(inputs[j]);
}

/* Without a gradient for the first input, the second still gets one. */
static inline void check_untracked(const gradient_case *c) {
  if (c->n < 2) return;
  sl_tensor *inputs[most_inputs] = { NULL };
  for (int j = 0; j < c->n; j++) inputs[j] = make_input(c, j);
  inputs[0]->requires_grad = false;
  free(run_backward(c, inputs));
  assert_null(inputs[0]->grad);
  assert_non_null(inputs[1]->grad);
  for (int j = 0; j < c->n; j++) sl_tensor_release(inputs[j]);
}

#endif
