/* The pool of free blocks and the books of each device: for storage.c only. */
#ifndef SL_POOL_H
#define SL_POOL_H

#include "memory.h"

/* A block of at least `bytes`, from the pool or the device; *got is its real size. SL_ENOMEM (budget or device, after
 * freeing pooled blocks) with a message that says what is live. */
sl_status sl__pool_take(sl_device *device, size_t bytes, void **data, size_t *got);

/* Back into the pool, or to the device. Safe while kernels still use the block: a device runs one stream in order. */
void sl__pool_give(sl_device *device, void *data, size_t bytes);

/* Books a storage in (sign 1) or out (-1). */
void sl__pool_book(sl_device *device, sl_memory_label label, int64_t bytes, int sign);
void sl__pool_book_borrowed(sl_device *device, int64_t bytes, int sign);

/* Pooled bytes of all devices. */
int64_t sl__pool_bytes(void);

#endif
