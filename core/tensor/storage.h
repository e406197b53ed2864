/* Storage: a refcounted block of memory on one device, booked under a label (memory.h).
 *
 * Freed blocks are kept for reuse in a pool of their device, up to 192 MiB on the CPU and up to the budget elsewhere;
 * sl_pool_trim gives them back. Under AddressSanitizer the pool is off, so that use after free is seen.
 * Reference counts are not atomic: one thread drives the engine, kernels' workers never retain. */
#ifndef SL_STORAGE_H
#define SL_STORAGE_H

#include "memory.h"

typedef struct sl_storage {
  int references;
  sl_device *device;
  void *data;                       /* device pointer; 64-byte aligned */
  size_t bytes;
  sl_memory_label label;           /* what it was made for */
  void (*release)(void *context);   /* for borrowed memory (a mapped file), else NULL: back to the pool */
  void *context;
} sl_storage;

/* Uninitialised memory under the current label. SL_ENOMEM (after freeing what is pooled and trying once more) says
 * what is live on the device. */
sl_status sl_storage_create(sl_device *device, size_t bytes, sl_storage **out);

/* Borrowed host memory; release(context) is called when the last reference goes. On failure it is not called. */
sl_status sl_storage_borrow(void *data, size_t bytes, void (*release)(void *), void *context, sl_storage **out);

sl_storage *sl_storage_retain(sl_storage *storage);
void sl_storage_release(sl_storage *storage);

/* Live and pooled bytes over all devices; by device and label: memory.h. */
typedef struct {
  int64_t live_bytes, peak_bytes, pooled_bytes, live_storages;
} sl_storage_stats;
sl_storage_stats sl_storage_get_stats(void);

/* Bytes of storage created since the last call: the Lua binding's measure of collector pressure. */
int64_t sl_storage_take_pressure(void);

/* Gives every pooled block back to its device (pool.c). */
void sl_pool_trim(void);

#endif
