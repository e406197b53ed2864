/* Which instruction set the SAE kernels run with. */
#include "sae_cpu.h"

static int isa_limit = SAE_ISA_BEST;

void sae_cpu_limit_isa(int isa) { isa_limit = isa; }

#if defined(__x86_64__)
const sae_cpu_ops *sae_cpu_get_ops(void) {
  __builtin_cpu_init();
  if (isa_limit >= SAE_ISA_AVX512 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    bool bf16 = isa_limit >= SAE_ISA_BEST && __builtin_cpu_supports("avx512bf16");
    return bf16 ? &sae_ops_avx512_bf16 : &sae_ops_avx512;
  }
  if (isa_limit >= SAE_ISA_AVX2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return &sae_ops_avx2;
  return &sae_ops_base;
}
#else
const sae_cpu_ops *sae_cpu_get_ops(void) { return &sae_ops_base; }
#endif
