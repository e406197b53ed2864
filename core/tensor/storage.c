/* Storages; see storage.h. Blocks come from the pool (pool.c). */
#include "storage.h"

#include "core/base/mem.h"
#include "pool.h"

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

/* Under AddressSanitizer what lies behind the bytes asked for is poisoned while the storage lives, so that a kernel
 * that strays by one element is caught. */
#ifdef SANITIZED
#include <sanitizer/asan_interface.h>
#define POISON(data, bytes) ASAN_POISON_MEMORY_REGION(data, bytes)
#define UNPOISON(data, bytes) ASAN_UNPOISON_MEMORY_REGION(data, bytes)
#else
#define POISON(data, bytes) ((void)(data), (void)(bytes))
#define UNPOISON(data, bytes) ((void)(data), (void)(bytes))
#endif

static sl_storage_stats stats;
static int64_t pressure;

static void count_new(const sl_storage *storage) {
  int64_t bytes = (int64_t)storage->bytes;
  stats.live_storages++;
  stats.live_bytes += bytes;
  if (stats.live_bytes > stats.peak_bytes) stats.peak_bytes = stats.live_bytes;
  pressure += bytes;
  sl__pool_book(storage->device, storage->label, bytes, 1);
}

sl_status sl_storage_create(sl_device *device, size_t bytes, sl_storage **out) {
  sl_storage *storage;
  SL_TRY(sl_mem_alloc(sizeof *storage, "a storage header", (void **)&storage));
  sl_status status = sl__pool_take(device, bytes, &storage->data, &storage->bytes);
  if (status != SL_OK) {
    sl_mem_free(storage);
    return status;
  }
  storage->references = 1;
  storage->device = device;
  storage->label = sl_memory_get_label();
  if (device->host_memory) POISON((char *)storage->data + bytes, storage->bytes - bytes);
  count_new(storage);
  *out = storage;
  return SL_OK;
}

sl_status sl_storage_borrow(void *data, size_t bytes, void (*release)(void *), void *context, sl_storage **out) {
  sl_storage *storage;
  SL_TRY(sl_mem_alloc(sizeof *storage, "a storage header", (void **)&storage));
  *storage = (sl_storage){ .references = 1, .device = sl_cpu_device(), .data = data, .bytes = bytes, .release = release,
                           .context = context };
  stats.live_storages++;
  sl__pool_book_borrowed(storage->device, (int64_t)bytes, 1);
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
    sl__pool_book_borrowed(storage->device, (int64_t)storage->bytes, -1);
    storage->release(storage->context);
  } else {
    stats.live_bytes -= (int64_t)storage->bytes;
    sl__pool_book(storage->device, storage->label, (int64_t)storage->bytes, -1);
    if (storage->device->host_memory) UNPOISON(storage->data, storage->bytes);
    sl__pool_give(storage->device, storage->data, storage->bytes);
  }
  sl_mem_free(storage);
}

sl_storage_stats sl_storage_get_stats(void) {
  stats.pooled_bytes = sl__pool_bytes();
  return stats;
}

int64_t sl_storage_take_pressure(void) {
  int64_t bytes = pressure;
  pressure = 0;
  return bytes;
}
