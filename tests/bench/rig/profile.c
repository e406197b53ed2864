/* Time by kernel: the device's kernel table is swapped for one whose entries wait for the device, look at the clock,
 * and call the real kernel. Made from list.h, so it knows every kernel there is; see rig_profile.h. */
#include <stdlib.h>
#include <string.h>

#include "rig_profile.h"

enum {
#define X(name, meaning, deterministic) KERNEL_##name,
  SL_KERNELS(X)
#undef X
  KERNELS
};

static const char *const names[KERNELS] = {
#define X(name, meaning, deterministic) [KERNEL_##name] = #name,
  SL_KERNELS(X)
#undef X
};

static const sl_kernels *real_kernels;
static double seconds[KERNELS];
static int64_t calls[KERNELS];

#define X(name, meaning, deterministic)                                                                      \
  static sl_status timed_##name(sl_device *device, const sl_##name##_args *args) {                           \
    double start = rig_now_idle(device);                                                                     \
    sl_status status = real_kernels->name(device, args);                                                     \
    seconds[KERNEL_##name] += rig_now_idle(device) - start;                                                  \
    calls[KERNEL_##name]++;                                                                                  \
    return status;                                                                                           \
  }
SL_KERNELS(X)
#undef X

static sl_kernels timed_kernels;

void rig_profile_begin(sl_device *device) {
  real_kernels = device->kernels;
#define X(name, meaning, deterministic) timed_kernels.name = real_kernels->name ? timed_##name : NULL;
  SL_KERNELS(X)
#undef X
  memset(seconds, 0, sizeof seconds);
  memset(calls, 0, sizeof calls);
  device->kernels = &timed_kernels;
}

static int by_time(const void *a, const void *b) {
  double left = seconds[*(const int *)a], right = seconds[*(const int *)b];
  return (left < right) - (left > right);
}

void rig_profile_end(sl_device *device, FILE *out, double whole, int runs) {
  device->kernels = real_kernels;
  int order[KERNELS];
  double sum = 0;
  for (int i = 0; i < KERNELS; i++) order[i] = i, sum += seconds[i];
  qsort(order, KERNELS, sizeof *order, by_time);
  fprintf(out, "%-22s %7s %10s %7s\n", "kernel", "calls", "ms", "share");
  for (int i = 0; i < KERNELS && calls[order[i]] > 0; i++) {
    int k = order[i];
    fprintf(out, "%-22s %7.1f %10.3f %6.1f%%\n", names[k], (double)calls[k] / runs, 1e3 * seconds[k] / runs,
            100 * seconds[k] / whole);
  }
  fprintf(out, "%-22s %7s %10.3f %6.1f%%\n", "between the kernels", "", 1e3 * (whole - sum) / runs,
          100 * (whole - sum) / whole);
}
