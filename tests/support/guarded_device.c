/* A device that proves that nobody above kernels/ looks behind a device pointer.
 *
 * It takes the place of cuda:0 in a test build of the program. Its memory is one arena that cannot be touched (PROT_NONE)
 * except while a kernel or a copy of this device runs; the kernels are the CPU's. So whatever works here works with
 * memory that the host cannot read, and whatever does not dies at the line that looked. It also counts how often the
 * host waited (copies to the host, syncs, kernels with host results): a training step should not. And it records:
 * between record_begin and record_end nothing runs, kernels and copies are noted, and a replay runs them. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/kernels.h"

enum { MOST_BLOCKS = 65536 };
static const size_t ARENA_BYTES = (size_t)2 << 30, PAGE = 64;

/* Blocks in order of address, with gaps between them. */
typedef struct { size_t start, bytes; } block;
static struct {
  char *arena;
  block blocks[MOST_BLOCKS];
  int count, open;               /* open: kernels running */
  sl_kernels kernels;
} guard;

static void enter(void) {
  if (guard.open++ == 0) mprotect(guard.arena, ARENA_BYTES, PROT_READ | PROT_WRITE);
}

static void leave(void) {
  if (--guard.open == 0) mprotect(guard.arena, ARENA_BYTES, PROT_NONE);
}

static sl_status guarded_alloc(sl_device *device, size_t bytes, void **out) {
  size_t want = (bytes + PAGE - 1) / PAGE * PAGE + PAGE, at = 0;
  int i = 0;
  for (; i < guard.count && guard.blocks[i].start - at < want; i++) at = guard.blocks[i].start + guard.blocks[i].bytes;
  if (guard.count == MOST_BLOCKS || (i == guard.count && ARENA_BYTES - at < want))
    return sl_fail(SL_ENOMEM, "%s: out of memory: cannot allocate %zu bytes", device->name, bytes);
  memmove(guard.blocks + i + 1, guard.blocks + i, (size_t)(guard.count - i) * sizeof(block));
  guard.blocks[i] = (block){ at, want };
  guard.count++;
  *out = guard.arena + at;
  enter();
  memset(*out, 0xff, bytes); /* NaN: uninitialised memory shows */
  leave();
  return SL_OK;
}

static void guarded_free(sl_device *device, void *data, size_t bytes) {
  (void)device, (void)bytes;
  size_t at = (size_t)((char *)data - guard.arena);
  for (int i = 0; i < guard.count; i++) {
    if (guard.blocks[i].start != at) continue;
    guard.count--;
    memmove(guard.blocks + i, guard.blocks + i + 1, (size_t)(guard.count - i) * sizeof(block));
    return;
  }
  fprintf(stderr, "guarded device: free of a pointer that was never given out\n");
  abort();
}

/* -- Recordings -- */

typedef struct { sl_status (*run)(const void *args); void *args; } noted_call;
typedef struct { noted_call calls[4096]; int count; bool broken; } recording;
static recording *recorded;        /* while one is made */

static sl_status note(sl_status (*run)(const void *), const void *args, size_t bytes) {
  if (recorded->count == (int)(sizeof recorded->calls / sizeof *recorded->calls)) recorded->broken = true;
  if (recorded->broken) return sl_fail(SL_EDEVICE, "guarded device: this recording is broken");
  noted_call *call = &recorded->calls[recorded->count++];
  *call = (noted_call){ run, malloc(bytes) };
  memcpy(call->args, args, bytes);
  return SL_OK;
}

static sl_status refuse(const char *what) {
  recorded->broken = true;
  return sl_fail(SL_EDEVICE, "guarded device: %s while recording", what);
}

static sl_status guarded_record_begin(sl_device *device) {
  (void)device;
  recorded = calloc(1, sizeof *recorded);
  return recorded ? SL_OK : sl_fail(SL_ENOMEM, "no memory for a recording");
}

static void guarded_free_recording(sl_device *device, void *made) {
  (void)device;
  recording *r = made;
  for (int i = 0; i < r->count; i++) free(r->calls[i].args);
  free(r);
}

static sl_status guarded_record_end(sl_device *device, void **out) {
  bool broken = recorded->broken;
  *out = broken ? NULL : recorded;
  if (broken) guarded_free_recording(device, recorded);
  recorded = NULL;
  return broken ? sl_fail(SL_EDEVICE, "guarded device: the recording is broken") : SL_OK;
}

static sl_status guarded_replay(sl_device *device, void *made) {
  (void)device;
  recording *r = made;
  for (int i = 0; i < r->count; i++) SL_TRY(r->calls[i].run(r->calls[i].args));
  return SL_OK;
}

/* -- Copies -- */

typedef struct { void *dst; const void *src; int byte; size_t bytes; } copy_args;

static sl_status run_copy(const void *args) {
  const copy_args *a = args;
  enter();
  if (a->bytes > 0 && a->src) memmove(a->dst, a->src, a->bytes);
  if (a->bytes > 0 && !a->src) memset(a->dst, a->byte, a->bytes);
  leave();
  return SL_OK;
}

static sl_status guarded_copy(sl_device *device, void *dst, const void *src, size_t bytes) {
  (void)device;
  copy_args args = { dst, src, 0, bytes };
  return recorded ? note(run_copy, &args, sizeof args) : run_copy(&args);
}

static sl_status guarded_fill(sl_device *device, void *dst, int byte, size_t bytes) {
  (void)device;
  copy_args args = { dst, NULL, byte, bytes };
  return recorded ? note(run_copy, &args, sizeof args) : run_copy(&args);
}

static sl_status guarded_from_host(sl_device *device, void *dst, const void *host, size_t bytes) {
  return recorded ? refuse("an upload") : guarded_copy(device, dst, host, bytes);
}

static sl_status guarded_to_host(sl_device *device, void *host, const void *src, size_t bytes) {
  device->waits++;
  return recorded ? refuse("a read") : guarded_copy(device, host, src, bytes);
}

static sl_status guarded_sync(sl_device *device) {
  device->waits++;
  return SL_OK;
}

static sl_status guarded_memory_info(sl_device *device, sl_memory_info *out) {
  (void)device;
  size_t used = 0;
  for (int i = 0; i < guard.count; i++) used += guard.blocks[i].bytes;
  *out = (sl_memory_info){ ARENA_BYTES - used, ARENA_BYTES };
  return SL_OK;
}

static const char *guarded_last_error(sl_device *device) {
  (void)device;
  return "";
}

/* Kernels of a forward pass: their arguments hold no pointer to what is gone at the replay. */
static bool can_note(const char *name) {
  static const char *const names[] = { "gemm", "cast", "gather_strided", "scatter_strided", "unary", "binary", "softmax",
                                       "layernorm", "attention", "embedding" };
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (strcmp(names[i], name) == 0) return true;
  return false;
}

/* One wrapper for each kernel. */
#define X(name, meaning, deterministic)                                                \
  static sl_status run_##name(const void *args) {                                      \
    enter();                                                                           \
    sl_status status = sl_cpu_device()->kernels->name(sl_cpu_device(), args);          \
    leave();                                                                           \
    return status;                                                                     \
  }                                                                                    \
  static sl_status guarded_##name(sl_device *device, const sl_##name##_args *args) {   \
    (void)device;                                                                      \
    sl_device *cpu = sl_cpu_device();                                                  \
    if (!cpu->kernels->name) return sl_fail(SL_EUNSUPPORTED, "no kernel %s", #name);   \
    if (!recorded) return run_##name(args);                                            \
    return can_note(#name) ? note(run_##name, args, sizeof *args) : refuse(#name);     \
  }
SL_KERNELS(X)
#undef X

static const sl_device_table functions = {
  .alloc = guarded_alloc, .free = guarded_free, .copy = guarded_copy, .copy_from_host = guarded_from_host,
  .copy_to_host = guarded_to_host, .fill = guarded_fill, .sync = guarded_sync,
  .memory_info = guarded_memory_info, .last_error = guarded_last_error,
  .record_begin = guarded_record_begin, .record_end = guarded_record_end, .replay = guarded_replay,
  .free_recording = guarded_free_recording,
};
static sl_device guarded = { .name = "cuda:0", .table = &functions, .kernels = &guard.kernels };

sl_status sl_cuda_device(int index, sl_device **out) {
  *out = NULL;
  if (index != 0) return sl_fail(SL_EUNSUPPORTED, "cuda:%d: there is one guarded device", index);
  if (!guard.arena) {
    guard.arena = mmap(NULL, ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (guard.arena == MAP_FAILED) return sl_fail(SL_ENOMEM, "no address space for the guarded device");
#define X(name, meaning, deterministic) guard.kernels.name = guarded_##name;
    SL_KERNELS(X)
#undef X
  }
  *out = &guarded;
  return SL_OK;
}
