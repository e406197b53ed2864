/* Lets CUDA sources compile as C++ and run on the CPU: force-included before a .cu file by the tests' build.
 *
 *   clang++ -x c++ -std=c++17 -DSLK_CUDA_HOST -isystem <cuda>/include -include cuda_host.h kernel.cu
 *
 * The toolkit's own headers give types and the runtime's prototypes; this header adds what only nvcc knows: the
 * keywords, threadIdx and friends, LAUNCH and DYN_SHARED in place of <<< >>> and extern __shared__. It is no emulator of
 * a GPU: README.md says what it finds and what it cannot. */
#ifndef CUDA_HOST_H
#define CUDA_HOST_H
#pragma GCC system_header

#ifndef SLK_CUDA_HOST
#define SLK_CUDA_HOST 1
#endif

#include <cuda_runtime.h>

#include <cuda_bf16.h>
#include <cuComplex.h>
#include <cuda_fp16.h>

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmath>
#include <functional>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda_host_api.h"

/* -- Keywords -- */
#undef __shared__
#undef __constant__
#undef __managed__
#undef __launch_bounds__
#undef __maxnreg__
#undef __cluster_dims__
/* One block runs at a time, so a block's static shared memory is one static variable. It lives in a section of its
 * own, which is poisoned before each block; under TSan it belongs to the system thread that runs the block. */
#if defined(__SANITIZE_THREAD__)
#define SLK_CUDA_HOST_TSAN_KERNELS 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SLK_CUDA_HOST_TSAN_KERNELS 1
#endif
#endif
#ifdef SLK_CUDA_HOST_TSAN_KERNELS
#define __shared__ static thread_local
#else
#define __shared__ static __attribute__((section(".slk_shared")))
#endif
#define __constant__
#define __managed__
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __cluster_dims__(...)
#ifndef __clang__
#define __builtin_assume(x) ((void)0)
#endif

/* -- Where a thread finds itself -- */
struct slk_cuda_host_thread {
  uint3 thread;
};
struct slk_cuda_host_block {
  uint3 block;
  dim3 threads, blocks;
  void *dynamic_shared;
  bool yield_at_atomics;
};
extern slk_cuda_host_thread *slk_cuda_host_self;
extern slk_cuda_host_block slk_cuda_host_now;

#define threadIdx (slk_cuda_host_self->thread)
#define blockIdx (slk_cuda_host_now.block)
#define blockDim (slk_cuda_host_now.threads)
#define gridDim (slk_cuda_host_now.blocks)
static const int warpSize = 32;

/* -- Launch, dynamic shared memory -- */
struct slk_cuda_host_launch_config {
  const char *name;
  const void *kernel;
  dim3 blocks, threads;
  size_t shared;
  cudaStream_t stream;
};
void slk_cuda_host_submit(const slk_cuda_host_launch_config &config, std::function<void()> thread);

template <typename... P, typename... A>
static inline void slk_cuda_host_launch(const char *name, void (*kernel)(P...), dim3 blocks, dim3 threads,
                                        size_t shared, cudaStream_t stream, A &&...a) {
  static_assert(sizeof...(P) == sizeof...(A), "a launch passes every argument of its kernel");
  std::tuple<std::decay_t<P>...> args(static_cast<std::decay_t<P>>(std::forward<A>(a))...);
  slk_cuda_host_submit({name, reinterpret_cast<const void *>(kernel), blocks, threads, shared, stream},
                       [kernel, args]() { std::apply(kernel, args); });
}

#define LAUNCH(kernel, grid, block, smem, stream, ...) \
  slk_cuda_host_launch(#kernel, kernel, grid, block, smem, stream, ##__VA_ARGS__)
#define DYN_SHARED(T, name) T *name = static_cast<T *>(slk_cuda_host_now.dynamic_shared)

/* The typed forms that cuda_runtime.h keeps for nvcc. */
template <typename T> static inline cudaError_t cudaFuncSetAttribute(T *kernel, cudaFuncAttribute a, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), a, value);
}
template <typename T> static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, T *kernel) {
  return cudaFuncGetAttributes(attributes, reinterpret_cast<const void *>(kernel));
}
template <typename T>
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, T *kernel, int threads,
                                                                        size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void *>(kernel), threads, shared);
}

#include "cuda_host_warp.h"
#include "cuda_host_vector.h"
#include "cuda_host_atomic.h"
#include "cuda_host_math.h"
#include "cuda_host_tensor.h"

#endif
