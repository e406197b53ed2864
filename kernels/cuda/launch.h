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

#endif
