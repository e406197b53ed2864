/* Time by kernel, for any device and whatever core makes of a step. Waiting after each kernel costs what overlap
 * there was: shares, not totals, are what to read. */
#ifndef SL_BENCH_PROFILE_H
#define SL_BENCH_PROFILE_H

#include "rig.h"

void rig_profile_begin(sl_device *device);
/* Prints the kernels by time; `whole`: seconds since rig_profile_begin, of `runs` runs. */
void rig_profile_end(sl_device *device, FILE *out, double whole, int runs);

#endif
