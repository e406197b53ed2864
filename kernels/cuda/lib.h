/* The CUDA libraries behind project functions: cuBLASLt for products, CUB for device-wide sorts and scans.
 *
 * lib_cublaslt.cu and lib_cub.cu are the real ones; tests/support/cuda_host/lib_reference.cpp has reference bodies for
 * the tests without a GPU. cuBLASLt is opened when the first product is asked for, so that a build with CUDA starts
 * as fast as one without and runs where neither driver nor library exists. */
#ifndef SLK_CUDA_LIB_H
#define SLK_CUDA_LIB_H

#include "cuda.h"

/* The plain product of sl_gemm_args (kernels/args_dense.h), with whatever epilogue the library offers; the caller
 * (gemm.cu) has split off what it does not. tf32: float32 inputs may be rounded to TF32. */
sl_status slk_lib_gemm(sl_device *device, const sl_gemm_args *args, bool tf32);
/* True where slk_lib_gemm takes this bias and activation in its epilogue. It may still answer SL_EUNSUPPORTED. */
bool slk_lib_gemm_fuses(const sl_gemm_args *args);
/* Opens the library and finds every function that is used; SL_EUNSUPPORTED says what is missing. Needs no GPU. */
extern "C" sl_status slk_lib_gemm_open(void);

/* n (key, value) pairs, to be sorted by the low `bits` of the keys. */
struct slk_sort {
  const uint32_t *keys_in;
  uint32_t *keys_out;
  const uint32_t *values_in;
  uint32_t *values_out;
  int64_t n;
  int bits;
};
/* Stable; *need with workspace NULL (then n and bits matter, the pointers do not). */
sl_status slk_lib_sort_pairs(sl_device *device, void *workspace, size_t *need, const slk_sort &sort);
/* Exclusive prefix sums of n counts into out[0 .. n - 1] (int64); *need with workspace NULL. in may be out. */
sl_status slk_lib_exclusive_sum(sl_device *device, void *workspace, size_t *need, const int64_t *in, int64_t *out,
                                int64_t n);

#endif
