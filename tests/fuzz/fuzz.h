/* What the fuzz targets share: bytes as a file, and a demand that nothing leaks. */
#ifndef SL_FUZZ_H
#define SL_FUZZ_H

#define _GNU_SOURCE /* memfd_create */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* Stops the fuzzer when a condition that must hold does not. */
#define FUZZ_DEMAND(condition)                                                  \
  do {                                                                          \
    if (!(condition)) {                                                         \
      fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      abort();                                                                  \
    }                                                                           \
  } while (0)

/* Puts the bytes into one memory file that is reused; returns its path. */
static inline const char *fuzz_file(const uint8_t *data, size_t bytes) {
  static int fd = -1;
  static char path[64];
  if (fd < 0) {
    fd = memfd_create("fuzz", 0);
    FUZZ_DEMAND(fd >= 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  }
  FUZZ_DEMAND(ftruncate(fd, 0) == 0);
  FUZZ_DEMAND(pwrite(fd, data, bytes, 0) == (ssize_t)bytes);
  return path;
}

#define FUZZ_NO_LEAK() FUZZ_DEMAND(sl_mem_get_stats().blocks == 0)

#endif
