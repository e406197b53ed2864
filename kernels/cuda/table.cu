/* The CUDA kernel table, generated from list.h. */
#include "cuda.h"

extern "C" {
extern const sl_kernels slk_cuda_kernels;
const sl_kernels slk_cuda_kernels = {
#define X(name, meaning, deterministic) slk_cuda_##name,
  SL_KERNELS(X)
#undef X
};
}
