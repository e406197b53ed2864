/* What the CUDA backend's files share: the device's state, launch checks, small device functions.
 *
 * House pattern of a CUDA kernel: `slk_cuda_<name>` (C linkage, the prototype of list.h) checks nothing that the
 * operation above has checked, cuts its workspace, launches on the device's stream, and returns
 * slk_cuda_launched(device, "<name>"). It never waits for the device; where an argument struct says `host`, it reads
 * through slk_cuda_read_host, which counts the wait. Work is cut by shapes only and sums run in a fixed order, so that
 * results have the same bits in every run. Read by nvcc and by the tests' host layer; never by core. */
#ifndef SLK_CUDA_H
#define SLK_CUDA_H

#include <cuda_runtime.h>

extern "C" {
#include "kernels/kernels.h"
}
#include "launch.h"

enum { SLK_READ_BYTES = 4 << 10, SLK_UPLOAD_SLOTS = 8, SLK_UPLOAD_BYTES = 4 << 20, SLK_SCRATCH_BYTES = 32 << 20 };

/* Pinned memory that host data passes through on its way to the device, so that the caller's memory is free at once
 * and nobody waits: slots are filled one after the other, and a slot is filled again when its event has passed. */
struct slk_cuda_uploads {
  unsigned char *slots[SLK_UPLOAD_SLOTS]; /* made when first needed */
  cudaEvent_t done[SLK_UPLOAD_SLOTS];     /* after the last copy out of the slot */
  int current;
  size_t used;                            /* bytes of the current slot */
};

/* One GPU. Reached through device->state; there is no global current device: slk_cuda_enter makes it current. */
struct slk_cuda_state {
  int index;
  cudaStream_t stream;           /* all kernels, in order */
  int multiprocessors;
  int compute_major, compute_minor;
  size_t shared_limit;           /* dynamic shared memory that a block may ask for */
  struct slk_lt *lt;             /* cuBLASLt and what it remembers, made at the first product (lib_cublaslt.cu) */
  void *scratch;                 /* SLK_SCRATCH_BYTES, made on first use: slk_cuda_scratch */
  void *staging;                 /* pinned host memory for small reads, SLK_READ_BYTES */
  slk_cuda_uploads uploads;
  bool recording;                /* between record_begin and record_end */
  bool sync;                     /* SAELUA_CUDA_SYNC=1: wait after every kernel, so that errors name the right one */
  char words[160];               /* the driver's last error */
};

static inline slk_cuda_state *slk_cuda_get(const sl_device *device) {
  return static_cast<slk_cuda_state *>(device->state);
}
static inline cudaStream_t slk_cuda_stream(const sl_device *device) { return slk_cuda_get(device)->stream; }

/* Makes the device current for this thread: the first line of every entry point. */
void slk_cuda_enter(const sl_device *device);

/* SL_OK, or SL_EDEVICE with device, kernel and the driver's words. Also checks asynchronous errors in debug builds
 * (SAELUA_CUDA_SYNC=1 in the environment waits after every kernel). */
sl_status slk_cuda_launched(sl_device *device, const char *kernel);
sl_status slk_cuda_check(sl_device *device, cudaError_t error, const char *what);

/* Device to host, waiting; counted in device->waits. */
sl_status slk_cuda_read_host(sl_device *device, void *host, const void *src, size_t bytes);

/* SLK_SCRATCH_BYTES of device memory for the use of one entry point: the next one may write it. */
sl_status slk_cuda_scratch(sl_device *device, void **out);

/* Lets `kernel` use `bytes` of dynamic shared memory. Above 48 KiB a block must be granted them, and what it declares
 * statically counts too, so the grant is asked for from 32 KiB on. */
template <typename Kernel>
static inline sl_status slk_cuda_allow_shared(sl_device *device, Kernel kernel, size_t bytes, const char *name) {
  if (bytes <= 32u << 10) return SL_OK;
  if (bytes > slk_cuda_get(device)->shared_limit) {
    return sl_fail(SL_EUNSUPPORTED, "%s on %s: %zu bytes of shared memory a block, this GPU has %zu", name, device->name,
                   bytes, slk_cuda_get(device)->shared_limit);
  }
  return slk_cuda_check(device, cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                     static_cast<int>(bytes)), name);
}

/* Prototypes of every entry point. */
extern "C" {
#define X(name, meaning, deterministic) sl_status slk_cuda_##name(sl_device *device, const sl_##name##_args *args);
SL_KERNELS(X)
#undef X
}

enum { SLK_WARP = 32 };

template <typename T> static __host__ __device__ __forceinline__ T slk_ceil_div(T a, T b) { return (a + b - 1) / b; }

/* -- On the device -- */

/* Sums, maxima over a warp; every lane gets the result, in the same order of operations whatever the schedule. */
template <typename T> static __device__ __forceinline__ T slk_warp_sum(T v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}
template <typename T> static __device__ __forceinline__ T slk_warp_max(T v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    T other = __shfl_xor_sync(0xffffffffu, v, step);
    v = other > v ? other : v;
  }
  return v;
}
/* Inclusive prefix sum over the lanes. */
template <typename T> static __device__ __forceinline__ T slk_warp_scan(T v) {
  int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int step = 1; step < SLK_WARP; step *= 2) {
    T other = __shfl_up_sync(0xffffffffu, v, step);
    if (lane >= step) v += other;
  }
  return v;
}
/* Sum over a block of `blockDim.x` threads (a multiple of 32, at most 1024, one axis); `scratch` [32] is shared. Every
 * thread gets the result; ends with a barrier, so that scratch may be used again. */
template <typename T> static __device__ __forceinline__ T slk_block_sum(T v, T *scratch) {
  int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) / 32;
  int warps = static_cast<int>(blockDim.x) / 32;
  v = slk_warp_sum(v);
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  T total = lane < warps ? scratch[lane] : T(0);
  total = slk_warp_sum(total);
  __syncthreads();
  return total;
}

#endif
