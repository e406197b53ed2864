/* What a test may ask of the layer that runs CUDA kernels on the CPU: schedules, errors, memory, counters.
 *
 * C and C++. The CUDA runtime functions themselves are NVIDIA's (cuda_runtime_api.h), defined by this layer. One
 * host thread at a time runs kernels; calls from several host threads are serialised. */
#ifndef CUDA_HOST_API_H
#define CUDA_HOST_API_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Which thread of a block runs next when the running one waits; blocks of a grid and independent streams are
 * ordered in the same spirit. A correct kernel gives the same bits under all of them. */
typedef enum {
  CUDA_HOST_IN_ORDER,    /* the lowest thread that can run, as far as it gets */
  CUDA_HOST_REVERSE,     /* the highest */
  CUDA_HOST_ROUND_ROBIN, /* the next one after the thread that waits */
  CUDA_HOST_ONE_WARP,    /* one warp, chosen by the seed, as far as it gets before any other */
  CUDA_HOST_ODD_FIRST,   /* odd threads before even ones */
  CUDA_HOST_RANDOM       /* any, drawn with the seed; atomics are also points where threads change */
} cuda_host_schedule;

void cuda_host_set_schedule(cuda_host_schedule schedule, uint64_t seed);
/* "in_order", "reverse", "round_robin", "one_warp", "odd_first", "random", each with an optional ":seed"; the form of
 * the environment variable SLK_CUDA_HOST_SCHEDULE. 0, or -1 for an unknown name. */
int cuda_host_set_schedule_by_name(const char *name);

/* The standard set, for loops: for (i = 0; i < CUDA_HOST_SCHEDULES; i++) { cuda_host_use_schedule(i); ... } */
enum { CUDA_HOST_SCHEDULES = 8 };
void cuda_host_use_schedule(int i);
const char *cuda_host_schedule_name(void);

/* Streams run at the last legal moment (the default), or at once. SLK_CUDA_HOST_STREAMS=eager does the same. */
void cuda_host_set_eager(int eager);

/* A bug found by the layer (deadlock, overrun of a guard, bad copy) is printed and aborts. With catching on it is
 * kept instead: the kernel is given up, and runtime calls return cudaErrorLaunchFailure until cleared. */
void cuda_host_catch_errors(int on);
const char *cuda_host_error(void); /* the first error kept, "" for none */
void cuda_host_clear_error(void);

/* The device's memory in bytes (default 1 GiB, or SLK_CUDA_HOST_MEMORY); beyond it allocations fail as on a GPU. */
void cuda_host_set_memory(size_t bytes);
/* The n-th device allocation from now fails (1: the next); 0 cancels. */
void cuda_host_fail_malloc(int n);
void cuda_host_set_device_count(int n); /* 0 .. 8, default 1 */

typedef struct {
  int64_t launches, graph_launches;
  int64_t mallocs, frees;     /* device memory */
  int64_t copies, sets;       /* memcpy and memset calls of any kind */
  int64_t waits;              /* calls in which the host had to wait: synchronise, blocking copies, cudaFree */
  int64_t switches;           /* changes of thread inside kernels */
  size_t bytes, peak_bytes;   /* device memory held now, at most */
  int64_t buffers;            /* device allocations held now */
} cuda_host_stats;

void cuda_host_get_stats(cuda_host_stats *stats);
void cuda_host_reset_stats(void); /* counters to zero, peak to what is held */

#ifdef __cplusplus
}
#endif

#endif
