/* The CPU device: aligned blocks of host memory, huge pages for the large ones.
 * Owns no memory itself. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/kernels.h"
#include "table.h"

enum { alignment = 64 };
static const size_t huge_page = (size_t)2 << 20;

/* Large blocks are aligned to huge pages: fewer TLB misses in strided passes,
 * fewer page faults on first touch. */
static sl_status cpu_alloc(sl_device *device, size_t bytes, void **out) {
  size_t align = bytes >= 2 * huge_page ? huge_page : alignment;
  void *data = NULL;
  *out = NULL;
  if (posix_memalign(&data, align, bytes > 0 ? bytes : 1) != 0) {
    return sl_fail(SL_ENOMEM, "%s: out of memory: cannot allocate %zu bytes", device->name, bytes);
  }
#ifdef MADV_HUGEPAGE
  if (align == huge_page)
    (void)madvise(data, bytes & ~(huge_page - 1), MADV_HUGEPAGE); /* a hint: failing is fine */
#endif
  *out = data;
  return SL_OK;
}

static void cpu_free(sl_device *device, void *data, size_t bytes) {
  (void)device, (void)bytes;
  free(data);
}

/* Large blocks are filled and copied by all threads, each a run of its own. It is faster, and it decides where a fresh
 * block lies on a machine with several memory nodes: a page goes to the node of the thread that first writes it, and the
 * passes over weights and moments (sae_update, sae_backward) give each thread the same share of the rows. */
static const size_t parallel_bytes = (size_t)8 << 20;
enum { PIECES = 256 };           /* whole pages, divided among the threads in order */

static size_t piece_start(size_t bytes, int piece) {
  const size_t page = 4096;
  return piece == PIECES ? bytes : bytes / PIECES / page * page * (size_t)piece;
}

static sl_status cpu_copy(sl_device *device, void *dst, const void *src, size_t bytes) {
  (void)device;
  char *to = dst;
  const char *from = src;
  bool apart = (uintptr_t)to >= (uintptr_t)from + bytes || (uintptr_t)from >= (uintptr_t)to + bytes;
  if (bytes < parallel_bytes || !apart) {
    if (bytes > 0) memmove(dst, src, bytes);
    return SL_OK;
  }
#pragma omp parallel for schedule(static)
  for (int piece = 0; piece < PIECES; piece++) {
    size_t start = piece_start(bytes, piece);
    memcpy(to + start, from + start, piece_start(bytes, piece + 1) - start);
  }
  return SL_OK;
}

static sl_status cpu_fill(sl_device *device, void *dst, int byte, size_t bytes) {
  (void)device;
  char *to = dst;
  if (bytes < parallel_bytes) {
    if (bytes > 0) memset(dst, byte, bytes);
    return SL_OK;
  }
#pragma omp parallel for schedule(static)
  for (int piece = 0; piece < PIECES; piece++) {
    size_t start = piece_start(bytes, piece);
    memset(to + start, byte, piece_start(bytes, piece + 1) - start);
  }
  return SL_OK;
}

static sl_status cpu_sync(sl_device *device) {
  (void)device;
  return SL_OK;
}

/* What the kernel says can be had without swapping; where /proc is missing, the
 * free pages. */
static sl_status cpu_memory_info(sl_device *device, sl_memory_info *out) {
  (void)device;
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  out->total_bytes = (size_t)sysconf(_SC_PHYS_PAGES) * page;
  out->free_bytes = (size_t)sysconf(_SC_AVPHYS_PAGES) * page;
  FILE *file = fopen("/proc/meminfo", "r");
  if (file == NULL) return SL_OK;
  char line[128];
  while (fgets(line, sizeof line, file) != NULL) {
    unsigned long long kib;
    if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) out->free_bytes = (size_t)kib * 1024;
  }
  fclose(file);
  return SL_OK;
}

static const char *cpu_last_error(sl_device *device) {
  (void)device;
  return ""; /* there is no driver that could have words of its own */
}

static const sl_device_table cpu_functions = {
  .alloc = cpu_alloc,
  .free = cpu_free,
  .copy = cpu_copy,
  .copy_from_host = cpu_copy,
  .copy_to_host = cpu_copy,
  .fill = cpu_fill,
  .sync = cpu_sync,
  .memory_info = cpu_memory_info,
  .last_error = cpu_last_error,
};

sl_device *sl_cpu_device(void) {
  static sl_device device = {
    .name = "cpu", .host_memory = true, .table = &cpu_functions, .kernels = &slk_cpu_kernels, .state = NULL
  };
  return &device;
}
