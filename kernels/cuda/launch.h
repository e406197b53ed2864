/* How CUDA kernels are launched and where their shared memory comes from.
 *
 * The same sources are compiled by nvcc for a GPU and, in the tests, as plain C++ by a layer that runs blocks and
 * threads on the CPU (tests/support/cuda_host). That layer defines these macros before this header is read; nothing
 * else in a kernel knows of it. Rules that keep kernels within it: `static __global__`; no texture, no cooperative
 * groups, no dynamic parallelism, no spinning on other blocks, no __activemask; every lane named in a mask takes
 * part; PTX in ptx.h only, with a host body beside it. */
#ifndef SLK_CUDA_LAUNCH_H
#define SLK_CUDA_LAUNCH_H

/* LAUNCH((kernel<float, 4>), grid, block, shared_bytes, stream, args...) */
#ifndef LAUNCH
#define LAUNCH(kernel, grid, block, smem, stream, ...) kernel<<<grid, block, smem, stream>>>(__VA_ARGS__)
#endif

/* DYN_SHARED(float, tile): `float *tile` at the start of the block's dynamic shared memory, 16-byte aligned. */
#ifndef DYN_SHARED
#define DYN_SHARED(T, name)                                        \
  extern __shared__ __align__(16) unsigned char slk_dyn_shared[];  \
  T *name = reinterpret_cast<T *>(slk_dyn_shared)
#endif

/* SLK_UNROLL before a loop unrolls it, as arrays in registers ask for; SLK_UNROLL_BY(n) n times. Not in the host layer,
 * which has no registers to fill and would compile many times longer under the sanitizers. */
#ifdef SLK_CUDA_HOST
#define SLK_UNROLL
#define SLK_UNROLL_BY(n)
#else
#define SLK_PRAGMA(text) _Pragma(#text)
#define SLK_UNROLL SLK_PRAGMA(unroll)
#define SLK_UNROLL_BY(n) SLK_PRAGMA(unroll n)
#endif

#endif
