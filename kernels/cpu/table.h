/* The CPU kernel table, as device.c sees it. */
#ifndef SLK_CPU_TABLE_H
#define SLK_CPU_TABLE_H

#include "kernels/kernels.h"

extern const sl_kernels slk_cpu_kernels;

#endif
