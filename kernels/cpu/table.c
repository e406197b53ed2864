/* The CPU kernel table, generated from list.h. */
#include "table.h"
#include "cpu.h"

const sl_kernels slk_cpu_kernels = {
#define X(name, meaning, deterministic) .name = slk_cpu_##name,
  SL_KERNELS(X)
#undef X
};
