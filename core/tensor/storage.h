/* Storage: a refcounted block of memory on one device, and the device's pool of free blocks.
 *
 * Freed blocks are kept for reuse (a training step asks for the same sizes again and again, and
 * fresh pages cost more than most operations), up to a limit a device; sl_pool_trim gives them
 * back. Under AddressSanitizer the pool is off, so that use after free is seen.
 * Reference counts are not atomic: one thread drives the engine, kernels' workers never retain. */
#ifndef SL_STORAGE_H
#define SL_STORAGE_H

#include "kernels/kernels.h"

typedef struct sl_storage {
  int references;
  sl_device *device;
  void *data;                       /* device pointer; 64-byte aligned */
  size_t bytes;
  void (*release)(void *context);   /* for borrowed memory (a mapped file), else NULL: back to the pool */
  void *context;
} sl_storage;

/* Uninitialised memory. SL_ENOMEM after trimming the pool and trying once more. */
sl_status sl_storage_create(sl_device *device, size_t bytes, sl_storage **out);

/* Borrowed host memory; release(context) is called when the last reference goes. On failure it is not called. */
sl_status sl_storage_borrow(void *data, size_t bytes, void (*release)(void *), void *context, sl_storage **out);

sl_storage *sl_storage_retain(sl_storage *storage);
void sl_storage_release(sl_storage *storage);

/* Live and pooled bytes over all devices. */
typedef struct {
  int64_t live_bytes, peak_bytes, pooled_bytes, live_storages;
} sl_storage_stats;
sl_storage_stats sl_storage_get_stats(void);

/* Bytes of storage created since the last call: the Lua binding's measure of collector pressure. */
int64_t sl_storage_take_pressure(void);

/* Gives every pooled block back to its device. */
void sl_pool_trim(void);

#endif
