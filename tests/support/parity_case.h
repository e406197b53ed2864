/* One operation, forward and backward, against what a peer computed: a file of tests/parity/fixtures, which holds for each
 * case its inputs, the gradient that comes in (seed), the result and the gradients that go out. Agreement within 1e-5. */
#ifndef SL_TEST_PARITY_CASE_H
#define SL_TEST_PARITY_CASE_H

#include "numbers.h"

#include <stdio.h>

#include "core/io/safetensors.h"
#include "core/tensor/tape.h"

enum { most_inputs = 4 };

typedef struct {
  const char *name;
  int n;
  sl_status (*run)(sl_tensor *const *x, sl_tensor *ids, sl_tensor **out);
} parity_case;

/* A function run_<id> that is one expression. */
#define CASE(id, call)                                                                                       \
  static sl_status run_##id(sl_tensor *const *x, sl_tensor *ids, sl_tensor **out) {                          \
    (void)ids;                                                                                               \
    return call;                                                                                             \
  }

static sl_safetensors *fixture;

/* "case/part" or "case/part<i>" as a tensor; NULL when the fixture has none. */
static inline sl_tensor *load(const char *name, const char *part, int index) {
  char full[80];
  if (index < 0)
    snprintf(full, sizeof full, "%s/%s", name, part);
  else
    snprintf(full, sizeof full, "%s/%s%d", name, part, index);
  const sl_safetensor *entry = sl_safetensors_find(fixture, full);
  if (entry == NULL) return NULL;
  sl_tensor *x;
  CHECK(sl_tensor_create(sl_cpu_device(), sl_file_dtype_engine(entry->dtype), entry->rank, entry->shape, &x));
  CHECK(sl_tensor_write(x, entry->data, entry->bytes));
  return x;
}

static inline void check_equal(const char *name, const char *part, const sl_tensor *got, sl_tensor *want) {
  if (!sl_tensor_same_shape(got, want)) fail_msg("%s: %s has another shape", name, part);
  char label[80];
  snprintf(label, sizeof label, "%s %s", name, part);
  for (int64_t i = 0; i < sl_tensor_count(want); i++) {
    check_close(label, i, (double)sl_tensor_f32(got)[i], (double)sl_tensor_f32(want)[i], 1e-5);
  }
  sl_tensor_release(want);
}

static inline void check_case(const parity_case *c) {
  sl_tensor *inputs[most_inputs] = { NULL }, *ids = load(c->name, "ids", -1),
            *seed = load(c->name, "seed", -1), *y = NULL;
  sl_tape *tape;
  for (int i = 0; i < c->n; i++) {
    inputs[i] = load(c->name, "in", i);
    assert_non_null(inputs[i]);
    inputs[i]->requires_grad = true;
  }
  assert_null(load(c->name, "in", c->n)); /* no input is left over */
  CHECK(sl_tape_create(&tape));
  sl_tape_start(tape);
  CHECK(c->run(inputs, ids, &y));
  check_equal(c->name, "out", y, load(c->name, "out", -1));
  CHECK(sl_tape_backward(tape, y, seed));
  for (int i = 0; i < c->n; i++) {
    check_equal(c->name, "gradient", inputs[i]->grad, load(c->name, "grad", i));
    sl_tensor_release(inputs[i]);
  }
  sl_tape_release(tape);
  sl_tensor_release(y);
  sl_tensor_release(ids);
  sl_tensor_release(seed);
}

#endif
