/* Stands in for the CUDA backend in builds without CUDA kernels. */
#include "kernels/kernels.h"

sl_status sl_cuda_device(int index, sl_device **out) {
  *out = NULL;
  return sl_fail(SL_EUNSUPPORTED, "cuda:%d: this build has no CUDA kernels yet; use --device cpu", index);
}
