/* Counted host memory; see mem.h. A 16-byte header in front of each block holds its size. */
#include "mem.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  size_t bytes;
  size_t padding; /* keeps the block 16-byte aligned */
} block_header;

static _Atomic int64_t live_blocks, live_bytes, peak_bytes, fail_countdown;

static sl_status no_memory(size_t bytes, const char *what) {
  return sl_fail(SL_ENOMEM, "out of memory: %zu bytes for %s (%lld bytes are in use)", bytes, what,
                 (long long)atomic_load(&live_bytes));
}

/* True when the injected fault is due. */
static int fault_is_due(void) {
  if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) <= 0) return 0;
  return atomic_fetch_sub(&fail_countdown, 1) == 1;
}

static void add_bytes(int64_t bytes) {
  int64_t now = atomic_fetch_add(&live_bytes, bytes) + bytes;
  int64_t peak = atomic_load(&peak_bytes);
  while (now > peak && !atomic_compare_exchange_weak(&peak_bytes, &peak, now)) {}
}

sl_status sl_mem_alloc(size_t bytes, const char *what, void **out) {
  *out = NULL;
  SL_TRY(sl_mem_resize(out, bytes, what));
  memset(*out, 0, bytes);
  return SL_OK;
}

sl_status sl_mem_resize(void **block, size_t bytes, const char *what) {
  if (bytes > SIZE_MAX - sizeof(block_header) || fault_is_due()) return no_memory(bytes, what);
  block_header *old = *block ? (block_header *)*block - 1 : NULL;
  size_t old_bytes = old ? old->bytes : 0;
  block_header *header = realloc(old, sizeof *header + bytes);
  if (!header) return no_memory(bytes, what);
  header->bytes = bytes;
  if (!old) atomic_fetch_add(&live_blocks, 1);
  add_bytes((int64_t)bytes - (int64_t)old_bytes);
  *block = header + 1;
  return SL_OK;
}

void sl_mem_free(void *block) {
  if (!block) return;
  block_header *header = (block_header *)block - 1;
  atomic_fetch_sub(&live_blocks, 1);
  atomic_fetch_sub(&live_bytes, (int64_t)header->bytes);
  free(header);
}

sl_status sl_mem_strdup(const char *text, char **out) {
  size_t bytes = strlen(text) + 1;
  SL_TRY(sl_mem_alloc(bytes, "a string", (void **)out));
  memcpy(*out, text, bytes);
  return SL_OK;
}

sl_mem_stats sl_mem_get_stats(void) {
  return (sl_mem_stats){ atomic_load(&live_blocks), atomic_load(&live_bytes), atomic_load(&peak_bytes) };
}

void sl_mem_fail_at(int64_t n) { atomic_store(&fail_countdown, n); }

sl_status sl_mem_count(int64_t bytes, const char *what) {
  if (fault_is_due()) return no_memory((size_t)bytes, what);
  atomic_fetch_add(&live_blocks, 1);
  add_bytes(bytes);
  return SL_OK;
}

void sl_mem_uncount(int64_t bytes) {
  atomic_fetch_sub(&live_blocks, 1);
  atomic_fetch_sub(&live_bytes, bytes);
}
