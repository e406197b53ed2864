/* Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw,
 * "Parallel random numbers: as easy as 1, 2, 3", SC 2011), so that element i of
 * (seed, stream, step) never depends on threads, device or history.
 *
 *   key     = (low, high half of seed)
 *   counter = (i / 4, stream, low half of step, high half of step)
 *   word    = i % 4 of the four outputs
 *
 * uniform: (word >> 8) 2^-24 in [0, 1), then low + u (high - low).
 * normal:  words 0,1 give elements 0,1 of the group and words 2,3 elements 2,3
 * by Box-Muller: r = sqrt(-2 ln((a + 1/2) 2^-32)), t = 2 pi b 2^-32; r cos t, r
 * sin t. int:     the high half of word * bound (bias below bound 2^-32). */
#include "cpu.h"
#include "kernels/philox.h"

enum { groups_per_piece = 1024 };

static void fill_group(const sl_random_args *args, int64_t group) {
  uint32_t words[4],
      counter[4] = { (uint32_t)group, args->stream, (uint32_t)args->step, (uint32_t)(args->step >> 32) };
  slk_philox(counter, (const uint32_t[2]){ (uint32_t)args->seed, (uint32_t)(args->seed >> 32) }, words);
  int64_t first = group * 4, count = slk_min(4, args->n - first);
  if (args->kind == SL_RANDOM_INT) {
    int32_t *y = (int32_t *)args->y + first;
    for (int64_t i = 0; i < count; i++) y[i] = slk_philox_int(words[i], args->bound);
    return;
  }
  float *y = (float *)args->y + first;
  if (args->kind == SL_RANDOM_UNIFORM) {
    for (int64_t i = 0; i < count; i++) y[i] = slk_philox_uniform(words[i], args->low, args->high);
    return;
  }
  float normals[4];
  slk_philox_normal(words, args->low, args->high, normals);
  slk_philox_normal(words + 2, args->low, args->high, normals + 2);
  for (int64_t i = 0; i < count; i++) y[i] = normals[i];
}

sl_status slk_cpu_random(sl_device *device, const sl_random_args *args) {
  int64_t groups = slk_ceil_div(args->n, 4);
  if (groups > (int64_t)UINT32_MAX + 1) {
    return sl_fail(SL_EINVAL, "random on %s: %lld elements; one (seed, stream, step) holds 2^34",
                   device->name, (long long)args->n);
  }
#pragma omp parallel for schedule(static) if (args->n >= SLK_PARALLEL_MIN)
  for (int64_t from = 0; from < groups; from += groups_per_piece) {
    for (int64_t group = from; group < slk_min(from + groups_per_piece, groups); group++)
      fill_group(args, group);
  }
  return SL_OK;
}
