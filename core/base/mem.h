/* Counted host memory with fault injection: every allocation of core/ goes through here.
 *
 * Sizes are remembered, so that tests can demand "no leak" and reports can say what is held.
 * sl_mem_fail_at(n) makes the n-th allocation from now fail once: tests call an operation for
 * n = 1, 2, ... and demand a clean status each time ("torture"). Device blocks are counted by
 * core/tensor/storage.c with the same hook. Thread-safe. */
#ifndef SL_MEM_H
#define SL_MEM_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

/* Zeroed memory; `what` (a literal) goes into the message. Zero bytes give a valid pointer. */
sl_status sl_mem_alloc(size_t bytes, const char *what, void **out);

/* Grows or shrinks *block (NULL = new), keeping its contents; new bytes are not zeroed. On failure *block is unchanged. */
sl_status sl_mem_resize(void **block, size_t bytes, const char *what);

/* NULL is allowed. */
void sl_mem_free(void *block);

/* A counted copy of a C string. */
sl_status sl_mem_strdup(const char *text, char **out);

/* Live blocks and bytes now, and the largest number of bytes so far. */
typedef struct {
  int64_t blocks, bytes, peak_bytes;
} sl_mem_stats;
sl_mem_stats sl_mem_get_stats(void);

/* The n-th allocation from now fails once (1 = the next); 0 switches it off. */
void sl_mem_fail_at(int64_t n);
/* Counts an allocation made elsewhere (a device block); SL_ENOMEM when it is its turn to fail. */
sl_status sl_mem_count(int64_t bytes, const char *what);
void sl_mem_uncount(int64_t bytes);

#endif
