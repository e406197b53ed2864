/* Storage and the block pool; see storage.h. */
#include "storage.h"

#include "core/base/mem.h"

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

/* Blocks are rounded up to whole vectors; under AddressSanitizer what lies behind the bytes asked for is poisoned
 * while the storage lives, so that a kernel that strays by one element is caught. */
#ifdef SANITIZED
#include <sanitizer/asan_interface.h>
#define POOL_LIMIT_BYTES 0
#define POISON(data, bytes) ASAN_POISON_MEMORY_REGION(data, bytes)
#define UNPOISON(data, bytes) ASAN_UNPOISON_MEMORY_REGION(data, bytes)
#else
#define POOL_LIMIT_BYTES ((int64_t)192 << 20)
#define POISON(data, bytes) ((void)(data), (void)(bytes))
#define UNPOISON(data, bytes) ((void)(data), (void)(bytes))
#endif

enum { POOL_SLOTS = 64 };

typedef struct {
  sl_device *device;
  void *data;
  size_t bytes;
} pool_block;

/* Oldest first; a block that does not fit pushes the oldest out. */
static pool_block pool[POOL_SLOTS];
static int pool_count;
static sl_storage_stats stats;
static int64_t pressure;

static void pool_remove(int index) {
  stats.pooled_bytes -= (int64_t)pool[index].bytes;
  pool_count--;
  for (int i = index; i < pool_count; i++) pool[i] = pool[i + 1];
}

static void pool_drop_oldest(void) {
  pool_block block = pool[0];
  pool_remove(0);
  block.device->table->free(block.device, block.data, block.bytes);
}

void sl_pool_trim(void) {
  while (pool_count > 0) pool_drop_oldest();
}

/* The newest block that fits without wasting more than an eighth; NULL if there is none. */
static void *pool_take(sl_device *device, size_t bytes, size_t *got) {
  for (int i = pool_count - 1; i >= 0; i--) {
    if (pool[i].device != device || pool[i].bytes < bytes || pool[i].bytes > bytes + bytes / 8) continue;
    void *data = pool[i].data;
    *got = pool[i].bytes;
    pool_remove(i);
    return data;
  }
  return NULL;
}

static void pool_give(sl_device *device, void *data, size_t bytes) {
  if ((int64_t)bytes > POOL_LIMIT_BYTES) {
    device->table->free(device, data, bytes);
    return;
  }
  while (pool_count == POOL_SLOTS || (pool_count > 0 && stats.pooled_bytes + (int64_t)bytes > POOL_LIMIT_BYTES))
    pool_drop_oldest();
  pool[pool_count++] = (pool_block){ device, data, bytes };
  stats.pooled_bytes += (int64_t)bytes;
}

static sl_status take_or_alloc(sl_device *device, size_t bytes, void **data, size_t *got) {
  *got = bytes;
  *data = pool_take(device, bytes, got);
  if (*data) return SL_OK;
  if (device->table->alloc(device, bytes, data) == SL_OK) return SL_OK;
  sl_pool_trim();
  return device->table->alloc(device, bytes, data);
}

static void count_new(sl_storage *storage) {
  stats.live_storages++;
  stats.live_bytes += (int64_t)storage->bytes;
  if (stats.live_bytes > stats.peak_bytes) stats.peak_bytes = stats.live_bytes;
  pressure += (int64_t)storage->bytes;
}

sl_status sl_storage_create(sl_device *device, size_t bytes, sl_storage **out) {
  sl_storage *storage;
  SL_TRY(sl_mem_alloc(sizeof *storage, "a storage header", (void **)&storage));
  size_t rounded = (bytes + 63) / 64 * 64;
  if (rounded == 0) rounded = 64;
  sl_status status = sl_mem_count((int64_t)rounded, "a tensor");
  if (status == SL_OK) {
    status = take_or_alloc(device, rounded, &storage->data, &storage->bytes);
    if (status != SL_OK) sl_mem_uncount((int64_t)rounded);
    /* A pooled block may be larger than asked: keep the counts equal at release. */
    else if (storage->bytes != rounded) {
      sl_mem_uncount((int64_t)rounded);
      status = sl_mem_count((int64_t)storage->bytes, "a tensor");
    }
  }
  if (status != SL_OK) {
    if (storage->data) pool_give(device, storage->data, storage->bytes);
    sl_mem_free(storage);
    return status;
  }
  storage->references = 1;
  storage->device = device;
  if (device->host_memory) POISON((char *)storage->data + bytes, storage->bytes - bytes);
  count_new(storage);
  *out = storage;
  return SL_OK;
}

sl_status sl_storage_borrow(void *data, size_t bytes, void (*release)(void *), void *context, sl_storage **out) {
  sl_storage *storage;
  SL_TRY(sl_mem_alloc(sizeof *storage, "a storage header", (void **)&storage));
  *storage = (sl_storage){ 1, sl_cpu_device(), data, bytes, release, context };
  stats.live_storages++;
  *out = storage;
  return SL_OK;
}

sl_storage *sl_storage_retain(sl_storage *storage) {
  storage->references++;
  return storage;
}

void sl_storage_release(sl_storage *storage) {
  if (!storage || --storage->references > 0) return;
  stats.live_storages--;
  if (storage->release) {
    storage->release(storage->context);
  } else {
    stats.live_bytes -= (int64_t)storage->bytes;
    sl_mem_uncount((int64_t)storage->bytes);
    if (storage->device->host_memory) UNPOISON(storage->data, storage->bytes);
    pool_give(storage->device, storage->data, storage->bytes);
  }
  sl_mem_free(storage);
}

sl_storage_stats sl_storage_get_stats(void) { return stats; }

int64_t sl_storage_take_pressure(void) {
  int64_t bytes = pressure;
  pressure = 0;
  return bytes;
}
