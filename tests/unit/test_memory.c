/* The memory books on a device of a few KiB: labels, budget, reuse, what a failed allocation says, failing at every
 * place. The device is a fake whose blocks are the host's, but not shown to it. */
#include "tests/support/numbers.h"

#include "core/base/mem.h"
#include "core/tensor/storage.h"
#include "core/tensor/tensor.h"

enum { TOTAL = 1 << 20 };

static struct { size_t used, most_used; int allocations, frees; } fake;

static sl_status fake_alloc(sl_device *device, size_t bytes, void **out) {
  *out = NULL;
  if (fake.used + bytes > TOTAL) return sl_fail(SL_ENOMEM, "%s: the driver's words", device->name);
  *out = malloc(bytes);
  if (!*out) return sl_fail(SL_ENOMEM, "malloc");
  fake.used += bytes;
  if (fake.used > fake.most_used) fake.most_used = fake.used;
  fake.allocations++;
  return SL_OK;
}

static void fake_free(sl_device *device, void *data, size_t bytes) {
  (void)device;
  fake.used -= bytes;
  fake.frees++;
  free(data);
}

static sl_status fake_info(sl_device *device, sl_memory_info *out) {
  (void)device;
  *out = (sl_memory_info){ .free_bytes = TOTAL - fake.used, .total_bytes = TOTAL };
  return SL_OK;
}

static const sl_device_table functions = { .alloc = fake_alloc, .free = fake_free, .memory_info = fake_info };
static sl_device device = { .name = "fake:0", .table = &functions };

static const sl_memory_stats *books(void) {
  for (int i = 0; sl_memory_get_stats(i); i++)
    if (sl_memory_get_stats(i)->device == &device) return sl_memory_get_stats(i);
  fail_msg("the device has no books");
  return NULL;
}

static sl_storage *make(size_t bytes, sl_memory_label label) {
  sl_storage *s;
  sl_memory_label before = sl_memory_set_label(label);
  CHECK(sl_storage_create(&device, bytes, &s));
  assert_int_equal(sl_memory_set_label(before), label);
  return s;
}

static bool pool_is_on(void) {
  sl_storage_release(make(4096, SL_MEMORY_OTHER));
  bool on = books()->pooled_bytes > 0;
  sl_pool_trim();
  return on;
}

static void test_default_budget(void **state) {
  (void)state;
  sl_storage_release(make(100, SL_MEMORY_OTHER));
  assert_int_equal(books()->budget_bytes, TOTAL - TOTAL / 16);
  for (int i = 0; sl_memory_get_stats(i); i++)
    if (sl_memory_get_stats(i)->device == sl_cpu_device()) assert_int_equal(sl_memory_get_stats(i)->budget_bytes, 0);
  sl_pool_trim();
}

static void test_labels(void **state) {
  (void)state;
  sl_memory_reset_peaks();
  sl_storage *a = make(64 << 10, SL_MEMORY_MOMENTS), *b = make(32 << 10, SL_MEMORY_GRADIENTS);
  assert_int_equal(a->label, SL_MEMORY_MOMENTS);
  assert_int_equal(sl_memory_get_label(), SL_MEMORY_OTHER);
  assert_int_equal(books()->label_bytes[SL_MEMORY_MOMENTS], 64 << 10);
  assert_int_equal(books()->label_bytes[SL_MEMORY_GRADIENTS], 32 << 10);
  assert_int_equal(books()->live_bytes, 96 << 10);
  sl_storage_release(b);
  b = make(8 << 10, SL_MEMORY_WORKSPACE);
  assert_int_equal(books()->label_bytes[SL_MEMORY_GRADIENTS], 0);
  assert_int_equal(books()->live_bytes, 72 << 10);
  assert_int_equal(books()->peak_bytes, 96 << 10); /* and what it was made of: */
  assert_int_equal(books()->label_at_peak[SL_MEMORY_GRADIENTS], 32 << 10);
  assert_int_equal(books()->label_at_peak[SL_MEMORY_WORKSPACE], 0);
  sl_memory_reset_peaks();
  assert_int_equal(books()->peak_bytes, 72 << 10);
  assert_int_equal(books()->label_at_peak[SL_MEMORY_WORKSPACE], 8 << 10);
  sl_storage_release(a), sl_storage_release(b);
  assert_int_equal(books()->live_bytes, 0);
  for (int i = 0; i < SL_MEMORY_LABEL_COUNT; i++) assert_int_equal(books()->label_bytes[i], 0);
  sl_pool_trim();
  assert_int_equal(fake.used, 0);
}

/* A training step's pattern: after the first round the device is asked for nothing any more. */
static void test_steady_state(void **state) {
  (void)state;
  if (!pool_is_on()) skip();
  static const size_t sizes[] = { 300000, 4096, 70000, 100, 64, 70000, 5000 };
  enum { N = sizeof sizes / sizeof sizes[0] };
  int allocations = 0;
  for (int round = 0; round < 5; round++) {
    sl_storage *s[N];
    for (int i = 0; i < N; i++) s[i] = make(sizes[i], SL_MEMORY_BATCH);
    for (int i = N - 1; i >= 0; i--) sl_storage_release(s[i]);
    if (round == 0) allocations = fake.allocations;
    assert_int_equal(fake.allocations, allocations);
  }
  sl_pool_trim();
  assert_int_equal(fake.used, 0);
}

/* Pooled blocks of the wrong size make room, oldest first, before the budget or the device says no. */
static void test_pool_makes_room(void **state) {
  (void)state;
  if (!pool_is_on()) skip();
  sl_storage *a = make(300 << 10, SL_MEMORY_OTHER), *b = make(200 << 10, SL_MEMORY_OTHER);
  sl_storage_release(a), sl_storage_release(b);
  assert_int_equal(books()->pooled_bytes, 500 << 10);
  int frees = fake.frees;
  a = make(600 << 10, SL_MEMORY_OTHER); /* 600 + 200 fit, 600 + 500 do not */
  assert_int_equal(fake.frees - frees, 1);
  assert_int_equal(books()->pooled_bytes, 200 << 10);
  sl_storage_release(a);
  size_t foreign = 700 << 10; /* another program: the budget allows more than the device has */
  sl_pool_trim();
  a = make(200 << 10, SL_MEMORY_OTHER);
  sl_storage_release(a);
  fake.used += foreign;
  a = make(300 << 10, SL_MEMORY_OTHER); /* the device refuses, the pool is given back, the second try fits */
  sl_storage_release(a);
  sl_pool_trim();
  fake.used -= foreign;
  assert_int_equal(fake.used, 0);
}

static void expect_words(const char *const words[]) {
  for (int i = 0; words[i]; i++)
    if (!strstr(sl_last_error(), words[i])) fail_msg("no \"%s\" in: %s", words[i], sl_last_error());
}

static void test_out_of_memory(void **state) {
  (void)state;
  sl_storage *s, *moments = make(512 << 10, SL_MEMORY_MOMENTS), *small = make(64 << 10, SL_MEMORY_WORKSPACE);
  assert_int_equal(sl_storage_create(&device, 768 << 10, &s), SL_ENOMEM);
  expect_words((const char *const[]){ "out of memory on fake:0", "768.0 KiB asked for", "576.0 KiB live",
                                      "(optimiser moments 512.0 KiB, workspace 64.0 KiB)", "the budget is 960.0 KiB",
                                      "batch_size", "micro_acc_steps", "adam8bit", "memory_budget", NULL });
  int64_t shape[2] = { 1024, 1024 };
  sl_tensor *t;
  assert_int_equal(sl_tensor_create(&device, SL_F32, 2, shape, &t), SL_ENOMEM);
  expect_words((const char *const[]){ "tensor f32 [1024 x 1024]: out of memory on fake:0", NULL });
  size_t foreign = 300 << 10;
  fake.used += foreign;
  assert_int_equal(sl_storage_create(&device, 256 << 10, &s), SL_ENOMEM); /* within the budget, not on the device */
  expect_words((const char *const[]){ "148.0 KiB of 1.0 MiB are free there", NULL });
  assert_null(strstr(sl_last_error(), "memory_budget"));
  fake.used -= foreign;
  s = make(256 << 10, SL_MEMORY_OTHER); /* nothing was lost by the refusals */
  sl_storage_release(s), sl_storage_release(moments), sl_storage_release(small);
  sl_pool_trim();
  assert_int_equal(fake.used, 0);
}

static void test_set_budget(void **state) {
  (void)state;
  sl_storage *s, *a = make(100 << 10, SL_MEMORY_OTHER), *b = make(50 << 10, SL_MEMORY_OTHER);
  sl_storage_release(b);
  assert_int_equal(sl_memory_set_budget(&device, 99 << 10), SL_EINVAL);
  assert_int_equal(sl_memory_set_budget(&device, -1), SL_EINVAL);
  CHECK(sl_memory_set_budget(&device, 128 << 10));
  assert_int_equal(books()->pooled_bytes, 0); /* 100 + 50 is more */
  assert_int_equal(sl_storage_create(&device, 29 << 10, &s), SL_ENOMEM);
  CHECK(sl_storage_create(&device, 28 << 10, &s));
  sl_storage_release(s);
  CHECK(sl_memory_set_budget(&device, 0)); /* the default again */
  assert_int_equal(books()->budget_bytes, TOTAL - TOTAL / 16);
  sl_storage_release(a);
  sl_pool_trim();
  assert_int_equal(fake.used, 0);
}

/* Random traffic under a budget: live and pooled bytes never exceed it, and the books always balance. */
static void test_traffic(void **state) {
  (void)state;
  enum { LIVE = 40, ROUNDS = 20000, BUDGET = 400 << 10 };
  sl_storage *live[LIVE] = { NULL };
  uint64_t random = 11;
  int refused = 0;
  sl_pool_trim();
  CHECK(sl_memory_set_budget(&device, BUDGET));
  fake.most_used = 0;
  for (int round = 0; round < ROUNDS; round++) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    int i = (int)(random >> 33) % LIVE;
    if (live[i]) {
      sl_storage_release(live[i]);
      live[i] = NULL;
    } else {
      sl_memory_label before = sl_memory_set_label((sl_memory_label)(i % SL_MEMORY_LABEL_COUNT));
      sl_status status = sl_storage_create(&device, (size_t)(random >> 40) % 60000, &live[i]);
      sl_memory_set_label(before);
      if (status != SL_OK) live[i] = NULL, refused++;
    }
    const sl_memory_stats *b = books();
    int64_t labels = 0;
    for (int n = 0; n < SL_MEMORY_LABEL_COUNT; n++) labels += b->label_bytes[n];
    assert_int_equal(labels, b->live_bytes);
    assert_int_equal(b->live_bytes + b->pooled_bytes, (int64_t)fake.used);
  }
  assert_true(refused > 100 && refused < ROUNDS / 2);
  assert_true(fake.most_used <= BUDGET);
  for (int i = 0; i < LIVE; i++) sl_storage_release(live[i]);
  CHECK(sl_memory_set_budget(&device, 0));
  sl_pool_trim();
  assert_int_equal(fake.used, 0);
}

static void test_torture(void **state) {
  (void)state;
  sl_pool_trim();
  sl_mem_stats before = sl_mem_get_stats();
  int failures = 0;
  for (int n = 1; n < 6; n++) {
    sl_storage *s = NULL;
    sl_mem_fail_at(n);
    sl_status status = sl_storage_create(&device, 5000, &s);
    sl_mem_fail_at(0);
    if (status == SL_OK) sl_storage_release(s);
    else assert_int_equal(status, SL_ENOMEM), failures++;
    assert_int_equal(books()->live_bytes, 0);
    assert_int_equal(sl_mem_get_stats().blocks, before.blocks);
    assert_int_equal(sl_mem_get_stats().bytes, before.bytes);
  }
  assert_int_equal(failures, 2);
  sl_pool_trim();
  assert_int_equal(fake.used, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_default_budget), cmocka_unit_test(test_labels), cmocka_unit_test(test_steady_state),
    cmocka_unit_test(test_pool_makes_room), cmocka_unit_test(test_out_of_memory), cmocka_unit_test(test_set_budget),
    cmocka_unit_test(test_traffic), cmocka_unit_test(test_torture),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
