/* Shared by the CPU kernels: their prototypes, the multi-versioning attribute,
 * work splitting.
 *
 * House pattern of a CPU kernel: slk_cpu_<name> splits the work over OpenMP
 * threads and calls a static SLK_HOT function on each part; the compiler makes
 * one SLK_HOT version per instruction set and the loader picks. How work is cut
 * never depends on the number of threads, so the results do not either. */
#ifndef SLK_CPU_H
#define SLK_CPU_H

#include "kernels/kernels.h"
#include "kernels/view.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SLK_HOT __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define SLK_HOT /* clang 14 has no target_clones for C */
#endif
#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed" /* `omp simd` is a licence to vectorise, not a demand */
#endif

/* Below this many elements a parallel region costs more than it saves. */
#define SLK_PARALLEL_MIN 16384

#define SLK_SIMD _Pragma("omp simd")

static inline int64_t slk_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t slk_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t slk_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* The answer to a query for workspace of a kernel that works without. */
static inline sl_status slk_needs_nothing(size_t *need) {
  *need = 0;
  return SL_OK;
}

/* Prototypes of every CPU kernel, from the list. */
#define X(name, meaning, deterministic)                                                                      \
  sl_status slk_cpu_##name(sl_device *device, const sl_##name##_args *args);
SL_KERNELS(X)
#undef X

#endif
