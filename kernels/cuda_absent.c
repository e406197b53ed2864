/* Stands in for the CUDA backend in builds without it (cmake/cuda.cmake). */
#include "kernels/kernels.h"

sl_status sl_cuda_device(int index, sl_device **out) {
  *out = NULL;
  return sl_fail(SL_EUNSUPPORTED,
                 "cuda:%d: this build has no CUDA backend (no nvcc was found, or SAELUA_CUDA=OFF); use --device cpu, or "
                 "build where the CUDA toolkit is installed",
                 index);
}
