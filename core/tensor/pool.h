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

/* From `begin` to `end`, blocks that are given back on the device stay with a recording: they are used again within it,
 * and by nobody else until sl__pool_hold_free. `end` hands out how many there are (*held NULL: none, or more than could
 * be noted, which is SL_ENOMEM). */
typedef struct { void *data; size_t bytes; } sl_pool_block;
sl_status sl__pool_hold_begin(sl_device *device);
sl_status sl__pool_hold_end(sl_device *device, sl_pool_block **held, int *count);
void sl__pool_hold_free(sl_device *device, sl_pool_block *held, int count);

/* Pooled bytes of all devices. */
int64_t sl__pool_bytes(void);

#endif
