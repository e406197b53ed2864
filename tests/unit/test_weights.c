/* Tensors over a mapped weight file: what they read, that pages leave memory with the last tensor over an entry and come
 * back right, and that nothing leaks when memory runs out. */
#include "tests/support/numbers.h"

#include <stdio.h>
#include <unistd.h>

#include "core/base/mem.h"
#include "core/io/safetensors_tensor.h"
#include "core/io/weights.h"

enum { ROWS = 512, COLUMNS = 1024 }; /* 2 MiB a tensor */

static char path[64];

static int write_file(void **state) {
  (void)state;
  int64_t shape[2] = { ROWS, COLUMNS };
  sl_tensor *t[2];
  const char *names[2] = { "a", "b" };
  snprintf(path, sizeof path, "/tmp/saelua-test-weights-%d.safetensors", (int)getpid());
  for (int k = 0; k < 2; k++) {
    CHECK(sl_tensor_create(sl_cpu_device(), SL_F32, 2, shape, &t[k]));
    for (int64_t i = 0; i < ROWS * COLUMNS; i++) sl_tensor_f32(t[k])[i] = (float)(i + k);
  }
  CHECK(sl_safetensors_save_tensors(path, names, t, 2, NULL, 0));
  sl_tensor_release(t[0]), sl_tensor_release(t[1]);
  return 0;
}

static int remove_file(void **state) {
  (void)state;
  return unlink(path);
}

static const sl_safetensor *entry_of(sl_weights *weights, const char *name) {
  const sl_safetensor *entry;
  CHECK(sl_safetensors_get(sl_weights_set(weights), name, &entry));
  return entry;
}

static void check_values(const sl_tensor *t, int first) {
  for (int64_t i = 0; i < ROWS * COLUMNS; i++) assert_true(sl_tensor_f32(t)[i] == (float)(i + first));
}

/* Resident KiB of this process that belong to mapped files. */
static long file_kib(void) {
  FILE *file = fopen("/proc/self/status", "r");
  char line[128];
  long kib = -1;
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "RssFile: %ld kB", &kib) == 1) break;
  if (file) fclose(file);
  return kib;
}

static void test_mapped(void **state) {
  (void)state;
  sl_weights *weights;
  sl_tensor *a, *again;
  CHECK(sl_weights_open(path, &weights));
  CHECK(sl_weights_tensor(weights, entry_of(weights, "a"), &a));
  CHECK(sl_weights_tensor(weights, entry_of(weights, "a"), &again));
  assert_ptr_equal(sl_tensor_data(a), entry_of(weights, "a")->data); /* no copy */
  check_values(a, 0);
  sl_tensor_f32(a)[ROWS * COLUMNS / 2] = -1;
  sl_tensor_release(a);
  assert_true(sl_tensor_f32(again)[ROWS * COLUMNS / 2] == -1); /* one tensor is left: nothing was forgotten */
  sl_tensor_release(again);
  CHECK(sl_weights_tensor(weights, entry_of(weights, "a"), &a));
  check_values(a, 0); /* the file's own again */
  sl_weights_release(weights); /* the tensor keeps the map */
  check_values(a, 0);
  sl_tensor_release(a);
}

static void test_pages_leave(void **state) {
  (void)state;
  if (file_kib() < 0) skip();
  sl_weights *weights;
  sl_tensor *t;
  CHECK(sl_weights_open(path, &weights));
  long before = file_kib();
  for (int k = 0; k < 2; k++) {
    CHECK(sl_weights_tensor(weights, entry_of(weights, k ? "b" : "a"), &t));
    check_values(t, k);
    if (file_kib() < before + 1800) skip(); /* a kernel that does not count them */
    sl_tensor_release(t);
    assert_true(file_kib() < before + 400);
  }
  CHECK(sl_safetensors_load_tensor(entry_of(weights, "b"), sl_cpu_device(), &t));
  check_values(t, 1);
  assert_true(file_kib() < before + 400);
  sl_tensor_release(t);
  CHECK(sl_safetensors_load_tensor_as(entry_of(weights, "b"), sl_cpu_device(), SL_BF16, &t));
  assert_true(sl_bf16_to_f32(((uint16_t *)sl_tensor_data(t))[256]) == 256.0f); /* of 257: ties to even */
  sl_tensor_release(t);
  sl_weights_release(weights);
}

static void test_torture(void **state) {
  (void)state;
  sl_mem_stats before = sl_mem_get_stats();
  bool passed = false;
  for (int n = 1; n < 100 && !passed; n++) {
    sl_weights *weights = NULL;
    sl_tensor *t = NULL;
    sl_mem_fail_at(n);
    sl_status status = sl_weights_open(path, &weights);
    if (status == SL_OK) status = sl_weights_tensor(weights, entry_of(weights, "b"), &t);
    sl_mem_fail_at(0);
    passed = status == SL_OK;
    if (passed) check_values(t, 1);
    else assert_int_equal(status, SL_ENOMEM);
    sl_tensor_release(t);
    sl_weights_release(weights);
    assert_int_equal(sl_mem_get_stats().blocks, before.blocks);
  }
  assert_true(passed);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_mapped), cmocka_unit_test(test_pages_leave), cmocka_unit_test(test_torture),
  };
  return cmocka_run_group_tests(tests, write_file, remove_file);
}
