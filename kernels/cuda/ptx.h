/* All inline PTX of the backend: asynchronous copies into shared memory and tensor-core products, each with a host
 * body for the tests' host layer (tests/support/cuda_host). sm_80 and newer.
 *
 * Fragments, with g = lane / 4 and t = lane % 4 (PTX manual, "Matrix fragments for mma.m16n8k8 / k16"):
 *   c, d  [16 x 8] float   0: (g, 2t)  1: (g, 2t + 1)  2: (g + 8, 2t)  3: (g + 8, 2t + 1)
 *   tf32  a [16 x 8]       0: (g, t)  1: (g + 8, t)  2: (g, t + 4)  3: (g + 8, t + 4)
 *         b [8 x 8]        0: (t, g)  1: (t + 4, g)                           as (k, column)
 *   bf16  a [16 x 16]      pairs of neighbours in k: 0: (g, 2t)  1: (g + 8, 2t)  2: (g, 2t + 8)  3: (g + 8, 2t + 8)
 *         b [16 x 8]       0: (2t, g)  1: (2t + 8, g), pairs again in k */
#ifndef SLK_CUDA_PTX_H
#define SLK_CUDA_PTX_H

#include "cuda.h"

/* Copies 16 bytes to shared memory in the background, or writes 16 zero bytes where !valid (src must still be an
 * address). Both sides on 16 bytes. Lands after slk_copy_wait of its group, for other threads after a barrier as well. */
static __device__ __forceinline__ void slk_copy_16(void *shared, const void *global, bool valid) {
#ifdef SLK_CUDA_HOST
  slk_cuda_host_cp_async(shared, global, 16, valid ? 16 : 0);
#else
  unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid ? 16 : 0) : "memory");
#endif
}

/* Closes a group of copies; waits until at most `NEWEST` groups are under way. */
static __device__ __forceinline__ void slk_copy_commit() {
#ifdef SLK_CUDA_HOST
  slk_cuda_host_cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int NEWEST> static __device__ __forceinline__ void slk_copy_wait() {
#ifdef SLK_CUDA_HOST
  slk_cuda_host_cp_async_wait(NEWEST);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(NEWEST) : "memory");
#endif
}

/* x to the nearest TF32 number, ties away from zero. */
static __device__ __forceinline__ float slk_to_tf32(float x) {
#ifdef SLK_CUDA_HOST
  unsigned bits = __float_as_uint(x);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & ~0x1fffu;
  return __uint_as_float(bits);
#else
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
#endif
}

/* d += a b by the whole warp: [16 x 8] += [16 x 8] [8 x 8], TF32 inputs. */
static __device__ __forceinline__ void slk_mma_tf32(float d[4], const float a[4], const float b[2]) {
  unsigned ua[4] = { __float_as_uint(a[0]), __float_as_uint(a[1]), __float_as_uint(a[2]), __float_as_uint(a[3]) };
  unsigned ub[2] = { __float_as_uint(b[0]), __float_as_uint(b[1]) };
#ifdef SLK_CUDA_HOST
  float c[4] = { d[0], d[1], d[2], d[3] };
  slk_cuda_host_mma_tf32(d, ua, ub, c);
#else
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(ua[0]), "r"(ua[1]), "r"(ua[2]), "r"(ua[3]), "r"(ub[0]), "r"(ub[1]));
#endif
}

/* d += a b by the whole warp: [16 x 8] += [16 x 16] [16 x 8], bf16 inputs two to a register. */
static __device__ __forceinline__ void slk_mma_bf16(float d[4], const unsigned a[4], const unsigned b[2]) {
#ifdef SLK_CUDA_HOST
  float c[4] = { d[0], d[1], d[2], d[3] };
  slk_cuda_host_mma_bf16(d, a, b, c);
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/* Four 8 x 8 matrices of 16-bit elements: lane i names row i % 8 (16 bytes) of matrix i / 8 in shared memory. Register j
 * holds elements (g, 2t) and (g, 2t + 1) of matrix j; with TRANSPOSED those of its transpose. */
template <bool TRANSPOSED> static __device__ __forceinline__ void slk_load_matrices(unsigned r[4], const void *row) {
#ifdef SLK_CUDA_HOST
  slk_cuda_host_ldmatrix(r, 4, TRANSPOSED, row);
#else
  unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if (TRANSPOSED) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
  }
#endif
}

#endif
