/* Host bodies for the project's inline PTX (kernels/cuda/ptx.h): asynchronous copies and tensor-core fragments.
 *
 * Fragments follow the tables of the PTX manual (mma.m16n8k16, mma.m16n8k8, ldmatrix): a kernel that mixes up rows and
 * columns of them gives wrong numbers here too. What the PTX text itself says is not checked. Included by cuda_host.h. */
#ifndef CUDA_HOST_TENSOR_H
#define CUDA_HOST_TENSOR_H
#pragma GCC system_header

/* cp.async of `bytes` (4, 8 or 16), of which the first `from` are read and the rest are zeros. It lands when waited
 * for, no sooner: reading earlier finds the old bytes. */
void slk_cuda_host_cp_async(void *shared, const void *global, int bytes, int from);
void slk_cuda_host_cp_async_commit(void);
/* Lands all but the `newest` last groups (cp.async.wait_group). wait_all: also what was not committed. */
void slk_cuda_host_cp_async_wait(int newest);
void slk_cuda_host_cp_async_wait_all(void);

/* d = a b + c, 16 x 8 x 16, row.col, float32 sums in the order of k. One call by all 32 lanes. */
void slk_cuda_host_mma_bf16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4],
                            const char *at_file = __builtin_FILE(), int at_line = __builtin_LINE());
void slk_cuda_host_mma_f16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4],
                           const char *at_file = __builtin_FILE(), int at_line = __builtin_LINE());
/* 16 x 8 x 8; the inputs are cut to TF32's 10 bits of mantissa, as the hardware does. */
void slk_cuda_host_mma_tf32(float d[4], const unsigned a[4], const unsigned b[2], const float c[4],
                            const char *at_file = __builtin_FILE(), int at_line = __builtin_LINE());
/* ldmatrix.x<count> (1, 2, 4), .trans if asked: lane i passes the address of row i % 8 of matrix i / 8. */
void slk_cuda_host_ldmatrix(unsigned *r, int count, bool trans, const void *row,
                            const char *at_file = __builtin_FILE(), int at_line = __builtin_LINE());

#endif
