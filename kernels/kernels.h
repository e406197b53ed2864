/* Devices and kernels: numbers in, numbers out.
 *
 * A kernel takes a device and one argument struct of raw device pointers, sizes and options; it
 * allocates nothing (workspace is an argument), checks nothing that the operation above it has
 * checked, and returns a status. A device is a constant table of functions plus its kernel table,
 * generated from list.h. Only core/ calls kernels; tensors, tapes and Lua do not exist here.
 *
 * To add a kernel: its argument struct in args_<family>.h, one line in list.h, one function
 * slk_<device>_<name> per device, one case in tests/unit. See CONTRIBUTING.md. */
#ifndef SL_KERNELS_H
#define SL_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dtype.h"
#include "status.h"

typedef struct sl_device sl_device;
typedef struct sl_kernels sl_kernels;

/* What the device has left and what it has in all, in bytes. */
typedef struct {
  size_t free_bytes, total_bytes;
} sl_memory_info;

/* The functions of one kind of device. Pointers are device pointers unless called host. */
typedef struct {
  sl_status (*alloc)(sl_device *device, size_t bytes, void **out);      /* 64-byte aligned, uninitialised */
  void (*free)(sl_device *device, void *data, size_t bytes);
  sl_status (*copy)(sl_device *device, void *dst, const void *src, size_t bytes);
  sl_status (*copy_from_host)(sl_device *device, void *dst, const void *host, size_t bytes);
  sl_status (*copy_to_host)(sl_device *device, void *host, const void *src, size_t bytes);
  sl_status (*fill)(sl_device *device, void *dst, int byte, size_t bytes);
  sl_status (*sync)(sl_device *device);
  sl_status (*memory_info)(sl_device *device, sl_memory_info *out);
  const char *(*last_error)(sl_device *device);                          /* the driver's own words */
  /* What is launched between record_begin and record_end is not run but recorded; replay runs it all with one call.
   * record_end leaves *recording NULL when it fails. All four are NULL on devices that record nothing. */
  sl_status (*record_begin)(sl_device *device);
  sl_status (*record_end)(sl_device *device, void **recording);
  sl_status (*replay)(sl_device *device, void *recording);
  void (*free_recording)(sl_device *device, void *recording);
} sl_device_table;

struct sl_device {
  char name[16];               /* "cpu", "cuda:0" */
  bool host_memory;            /* the CPU may read this device's pointers */
  int64_t waits;               /* times the host has waited for this device; a training step should not */
  int64_t replays;             /* recordings replayed */
  bool tf32;                   /* products of float32 matrices may round their factors to TF32; always false on the CPU */
  const sl_device_table *table;
  const sl_kernels *kernels;   /* a slot may be NULL: the operation then fails by name, never silently elsewhere */
  void *state;                 /* the backend's own */
};

/* The one CPU device. */
sl_device *sl_cpu_device(void);

/* The CUDA device of this index, or SL_EUNSUPPORTED with the reason (no driver, not in this build). */
sl_status sl_cuda_device(int index, sl_device **out);

#include "args_dense.h"
#include "args_train.h"
#include "args_transformer.h"
#include "args_sae.h"
#include "args_sae_rules.h"
#include "list.h"

struct sl_kernels {
#define X(name, meaning, deterministic) sl_status (*name)(sl_device * device, const sl_##name##_args *args);
  SL_KERNELS(X)
#undef X
};

#endif
