/* Storage: counting, the pool of free blocks and its limits, borrowed memory, failures. */
#include "tests/support/numbers.h"

#include "core/base/mem.h"
#include "core/tensor/storage.h"

/* The pool is off under AddressSanitizer: then what it would keep is zero. */
static bool pool_is_on(void) {
  sl_storage *s;
  sl_pool_trim();
  CHECK(sl_storage_create(sl_cpu_device(), 4096, &s));
  sl_storage_release(s);
  bool on = sl_storage_get_stats().pooled_bytes > 0;
  sl_pool_trim();
  return on;
}

static void test_counting(void **state) {
  (void)state;
  sl_storage_stats before = sl_storage_get_stats();
  sl_mem_stats mem = sl_mem_get_stats();
  sl_storage *s, *empty;
  (void)sl_storage_take_pressure();
  CHECK(sl_storage_create(sl_cpu_device(), 100, &s));
  assert_int_equal(s->bytes % 64, 0);
  assert_true(s->bytes >= 100);
  assert_int_equal((uintptr_t)s->data % 64, 0);
  CHECK(sl_storage_create(sl_cpu_device(), 0, &empty));
  assert_non_null(empty->data);
  int64_t bytes = (int64_t)(s->bytes + empty->bytes);
  assert_int_equal(sl_storage_get_stats().live_bytes - before.live_bytes, bytes);
  assert_int_equal(sl_storage_get_stats().live_storages - before.live_storages, 2);
  assert_true(sl_storage_get_stats().peak_bytes >= before.live_bytes + bytes);
  assert_int_equal(sl_storage_take_pressure(), bytes);
  assert_int_equal(sl_storage_take_pressure(), 0);
  assert_ptr_equal(sl_storage_retain(s), s);
  sl_storage_release(s);
  assert_int_equal(sl_storage_get_stats().live_storages - before.live_storages, 2);
  sl_storage_release(s), sl_storage_release(empty), sl_storage_release(NULL);
  assert_int_equal(sl_storage_get_stats().live_bytes, before.live_bytes);
  assert_int_equal(sl_mem_get_stats().bytes, mem.bytes);
  assert_int_equal(sl_mem_get_stats().blocks, mem.blocks);
}

static void test_pool_reuses(void **state) {
  (void)state;
  if (!pool_is_on()) skip();
  sl_mem_stats mem = sl_mem_get_stats();
  sl_storage *s;
  CHECK(sl_storage_create(sl_cpu_device(), 8192, &s));
  void *data = s->data;
  sl_storage_release(s);
  CHECK(sl_storage_create(sl_cpu_device(), 4096, &s)); /* would waste half: a new block */
  assert_ptr_not_equal(s->data, data);
  sl_storage_release(s);
  CHECK(sl_storage_create(sl_cpu_device(), 7680, &s)); /* fits within an eighth; it knows its real size */
  assert_ptr_equal(s->data, data);
  assert_int_equal(s->bytes, 8192);
  memset(s->data, 1, s->bytes);
  sl_storage_release(s);
  CHECK(sl_storage_create(sl_cpu_device(), 8192, &s)); /* and so serves its full size again */
  assert_ptr_equal(s->data, data);
  sl_storage_release(s);
  CHECK(sl_storage_create(sl_cpu_device(), 8256, &s)); /* too small */
  assert_ptr_not_equal(s->data, data);
  sl_storage_release(s);
  sl_pool_trim();
  assert_int_equal(sl_storage_get_stats().pooled_bytes, 0);
  assert_int_equal(sl_mem_get_stats().bytes, mem.bytes);
  assert_int_equal(sl_mem_get_stats().blocks, mem.blocks);
}

static void test_pool_limits(void **state) {
  (void)state;
  enum { MANY = 200 };
  const size_t large = (size_t)64 << 20;
  sl_storage *many[MANY];
  if (!pool_is_on()) skip();
  for (int i = 0; i < MANY; i++) CHECK(sl_storage_create(sl_cpu_device(), 64, &many[i]));
  for (int i = 0; i < MANY; i++) sl_storage_release(many[i]);
  assert_true(sl_storage_get_stats().pooled_bytes <= 64 * 64); /* at most 64 blocks */
  for (int i = 0; i < 5; i++) CHECK(sl_storage_create(sl_cpu_device(), large, &many[i]));
  for (int i = 0; i < 5; i++) sl_storage_release(many[i]);
  assert_true(sl_storage_get_stats().pooled_bytes <= 192 << 20);
  CHECK(sl_storage_create(sl_cpu_device(), (size_t)200 << 20, &many[0])); /* larger than the pool */
  int64_t pooled = sl_storage_get_stats().pooled_bytes;
  sl_storage_release(many[0]);
  assert_int_equal(sl_storage_get_stats().pooled_bytes, pooled);
  sl_pool_trim();
  assert_int_equal(sl_storage_get_stats().pooled_bytes, 0);
}

/* Live blocks never overlap, whatever order they come and go in; each holds its own pattern to the end. */
static void test_blocks_are_apart(void **state) {
  (void)state;
  enum { LIVE = 24, ROUNDS = 4000 };
  sl_storage *live[LIVE] = { NULL };
  size_t sizes[LIVE] = { 0 };
  uint64_t random = 7;
  for (int round = 0; round < ROUNDS; round++) {
    random = random * 6364136223846793005ull + 1442695040888963407ull;
    int i = (int)(random >> 33) % LIVE;
    if (live[i]) {
      const unsigned char *data = live[i]->data;
      for (size_t b = 0; b < sizes[i]; b++) assert_int_equal(data[b], i + 1);
      sl_storage_release(live[i]);
      live[i] = NULL;
      continue;
    }
    sizes[i] = (size_t)(random >> 40) % 3000;
    CHECK(sl_storage_create(sl_cpu_device(), sizes[i], &live[i]));
    memset(live[i]->data, i + 1, sizes[i]);
  }
  for (int i = 0; i < LIVE; i++) sl_storage_release(live[i]);
  sl_pool_trim();
}

static void count_release(void *context) { ++*(int *)context; }

static void test_borrowed(void **state) {
  (void)state;
  float memory[16];
  int released = 0;
  int64_t live = sl_storage_get_stats().live_bytes;
  sl_storage *s;
  CHECK(sl_storage_borrow(memory, sizeof memory, count_release, &released, &s));
  assert_ptr_equal(s->data, memory);
  assert_int_equal(sl_storage_get_stats().live_bytes, live); /* not ours */
  sl_storage_retain(s);
  sl_storage_release(s);
  assert_int_equal(released, 0);
  sl_storage_release(s);
  assert_int_equal(released, 1);
  sl_mem_fail_at(1);
  assert_int_equal(sl_storage_borrow(memory, sizeof memory, count_release, &released, &s), SL_ENOMEM);
  sl_mem_fail_at(0);
  assert_int_equal(released, 1); /* still the caller's */
}

static void test_failures(void **state) {
  (void)state;
  sl_pool_trim();
  sl_storage *s;
  CHECK(sl_storage_create(sl_cpu_device(), 8192, &s)); /* a pooled block, so that its path is walked too */
  sl_storage_release(s);
  sl_mem_stats before = sl_mem_get_stats();
  int64_t live = sl_storage_get_stats().live_bytes;
  for (int n = 1; n < 5; n++) {
    sl_mem_fail_at(n);
    sl_status status = sl_storage_create(sl_cpu_device(), 7680, &s);
    sl_mem_fail_at(0);
    if (status == SL_OK) sl_storage_release(s);
    else assert_int_equal(status, SL_ENOMEM);
    assert_int_equal(sl_mem_get_stats().blocks, before.blocks);
    assert_int_equal(sl_mem_get_stats().bytes, before.bytes);
    assert_int_equal(sl_storage_get_stats().live_bytes, live);
  }
  assert_int_equal(sl_storage_create(sl_cpu_device(), (size_t)1 << 60, &s), SL_ENOMEM);
  assert_non_null(strstr(sl_last_error(), "out of memory"));
  assert_int_equal(sl_mem_get_stats().bytes, before.bytes);
  sl_pool_trim();
}

/* Copies and fills that are shared out among the threads: every byte once, none beside. */
static void test_large_copies(void **state) {
  (void)state;
  sl_device *cpu = sl_cpu_device();
  const size_t sizes[] = { ((size_t)8 << 20) - 1, (size_t)8 << 20, ((size_t)9 << 20) + 12345 };
  for (int i = 0; i < 3; i++) {
    size_t bytes = sizes[i];
    sl_storage *a, *b;
    CHECK(sl_storage_create(cpu, bytes + 2, &a));
    CHECK(sl_storage_create(cpu, bytes + 2, &b));
    unsigned char *from = a->data, *to = b->data;
    CHECK(cpu->table->fill(cpu, to, 7, bytes + 2));
    for (size_t k = 0; k < bytes + 2; k++) from[k] = (unsigned char)(k % 251), assert_int_equal(to[k], 7);
    CHECK(cpu->table->copy(cpu, to + 1, from + 1, bytes));
    assert_true(to[0] == 7 && to[bytes + 1] == 7);
    assert_memory_equal(to + 1, from + 1, bytes);
    CHECK(cpu->table->copy(cpu, from, from + 2, bytes)); /* onto itself: as memmove */
    assert_memory_equal(from + 1, to + 3, bytes - 3);
    CHECK(cpu->table->fill(cpu, to + 1, 9, bytes));
    assert_true(to[0] == 7 && to[bytes + 1] == 7);
    for (size_t k = 1; k <= bytes; k++) assert_int_equal(to[k], 9);
    sl_storage_release(a), sl_storage_release(b);
  }
  sl_pool_trim();
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_counting), cmocka_unit_test(test_pool_reuses), cmocka_unit_test(test_pool_limits),
    cmocka_unit_test(test_blocks_are_apart), cmocka_unit_test(test_borrowed), cmocka_unit_test(test_failures),
    cmocka_unit_test(test_large_copies),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
