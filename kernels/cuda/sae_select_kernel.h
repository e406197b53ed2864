/* The selection kernels: top-k of rows in its modes (sae_select.h), and GroupMax. Included by sae_encode.cu. */
#ifndef SLK_SAE_SELECT_KERNEL_H
#define SLK_SAE_SELECT_KERNEL_H

#include "sae_select_row.h"

/* The row's last words: counted once a token, at its last piece. */
static __device__ void select_report(const select_job &job, int64_t row, bool bad) {
  if (threadIdx.x != 0) return;
  if (!job.ends) job.bad[row] = bad;
  else if (bad && job.nonfinite != nullptr) atomicAdd(reinterpret_cast<unsigned long long *>(job.nonfinite), 1ull);
}

template <int LISTS, select_mode MODE>
static __global__ void __launch_bounds__(SELECT_THREADS, LISTS == 1 && MODE <= SELECT_FLOOR ? 3 : 2)
    select_kernel(select_job job) {
  DYN_SHARED(float, buffers);
  __shared__ select_shared shared;
  int64_t row = blockIdx.x;
  if (MODE == SELECT_EXACT && job.refused[row] == 0) return;
  const float *pre = job.pre + row * job.ld;
  select_state states[LISTS];
  float *next = buffers, *tile = buffers, poison = 0;
  if (MODE == SELECT_EXACT) next += SELECT_SEGMENT;
  select_turns turns = { &shared, 0 };
  unsigned above = 0;
  bool fits = MODE != SELECT_SCREEN || job.begins || job.refused[row] == 0;
#pragma unroll
  for (int l = 0; l < LISTS; l++) {
    const select_list &list = job.lists[l];
    bool in_shared = list.buffer_values == nullptr;
    states[l].values = in_shared ? next : list.buffer_values + row * list.capacity;
    states[l].ids = in_shared ? reinterpret_cast<int32_t *>(next + list.capacity) : list.buffer_ids + row * list.capacity;
    if (in_shared) next += 2 * list.capacity;
    states[l].count = 0, states[l].threshold = 0;
    if (!job.begins) select_resume(list, row, &states[l]);
  }
  for (int column = 0; column < job.width; column += SELECT_SEGMENT) {
    float v[SELECT_VALUES], most[SELECT_VALUES];
    if (MODE == SELECT_EXACT) select_compute(job, row, column, tile, v);
    else select_load(job, pre, column, v);
#pragma unroll
    for (int q = 0; q < SELECT_VALUES; q++) poison += v[q] * 0.0f; /* NaN once anything is not finite */
    if (MODE == SELECT_SCREEN) select_screen(job, row, column, v, most, &poison);
    const float *reach = MODE == SELECT_SCREEN ? most : v;
#pragma unroll
    for (int l = 0; l < LISTS; l++) {
      const select_list &list = job.lists[l];
      select_state *s = &states[l];
      unsigned allowed = list.mask != nullptr ? select_masked(job, list.mask, column) : 255u;
      if (MODE == SELECT_FLOOR) {
        allowed = select_above_floor(job, v, column);
        above += static_cast<unsigned>(__popc(allowed));
      }
      if (job.begins && column == 0) {
        float g[2] = { 0, 0 };
#pragma unroll
        for (int q = 0; q < SELECT_VALUES; q++)
          g[q / 4] = (allowed >> q & 1u) != 0 ? fmaxf(g[q / 4], v[q]) : g[q / 4];
        s->threshold = select_first_bound(g[0], g[1], list.k, &shared);
      }
      select_append(s, v, reach, allowed, job.first + column, &turns);
      if (s->count <= list.keep) continue;
      if (MODE == SELECT_SCREEN) fits &= select_shrink_screened(job, s, list.k, list.keep, &turns);
      else select_shrink(s, list.k, list.keep, s->values, s->ids, &turns);
    }
  }
  bool bad = __syncthreads_or(!(poison == 0.0f)) != 0;
  if (MODE == SELECT_SCREEN) {
    if (threadIdx.x == 0) job.refused[row] = !fits || bad; /* all have read it before the barrier */
    if (!fits || bad) {
      if (job.ends) return;
#pragma unroll
      for (int l = 0; l < LISTS; l++) states[l].count = 0, states[l].threshold = INFINITY;
    }
  } else {
    bad |= !job.begins && job.bad[row] != 0;
    __syncthreads(); /* all have read it */
  }
#pragma unroll
  for (int l = 0; l < LISTS; l++) {
    if (MODE == SELECT_SCREEN && job.ends) {
      const select_list &list = job.lists[l]; /* every candidate less is a row of W less to read */
      if (states[l].count > list.k) (void)select_shrink_screened(job, &states[l], list.k, list.keep, &turns);
      select_rescore(job, row, &states[l], &turns);
    }
    if (job.ends) select_finish(job.lists[l], row, &states[l], &turns);
    else select_suspend(job.lists[l], row, states[l]);
  }
  if (MODE == SELECT_FLOOR) {
    unsigned total;
    (void)select_scan(above, &turns, &total);
    int all = static_cast<int>(total) + (job.begins ? 0 : job.above_floor[row]);
    __syncthreads(); /* all have read it */
    if (threadIdx.x == 0 && !job.ends) job.above_floor[row] = all;
    if (threadIdx.x == 0 && job.ends && all > job.lists[0].k)
      atomicAdd(reinterpret_cast<unsigned long long *>(job.overflow), 1ull);
  }
  if (MODE != SELECT_SCREEN) select_report(job, row, bad);
}

/* -- GroupMax -- */

/* The best of columns begin .. end - 1, lowest latent first, by the `lanes` threads that share it (all of a warp, or
 * one); `found` holds what earlier pieces found, and the result in the first of the threads. */
struct select_best { float value; int32_t id; };
static __device__ void select_group_best(const select_job &job, int64_t begin, int64_t end, int lanes, select_best *found,
                                         float *poison) {
  const float *pre = job.pre + blockIdx.x * job.ld;
  float best = 0;
  int32_t where = INT32_MAX;
  for (int64_t at = begin + (lanes > 1 ? threadIdx.x % SLK_WARP : 0); at < end; at += lanes) {
    float v = pre[at] + (job.bias != nullptr ? job.bias[job.first + at] : 0);
    *poison += v * 0.0f;
    if (v > best) best = v, where = job.first + static_cast<int32_t>(at);
  }
  for (int step = SLK_WARP / 2; lanes > 1 && step > 0; step /= 2) {
    float other = __shfl_xor_sync(0xffffffffu, best, step);
    int32_t there = __shfl_xor_sync(0xffffffffu, where, step);
    if (other > best || (other == best && there < where)) best = other, where = there;
  }
  if (best > found->value) *found = select_best{ best, where }; /* earlier pieces hold lower latents */
}

/* A block a row. Staging row [k]: first the best of each group (0: none yet), at the end the positive ones closed up. */
static __global__ void __launch_bounds__(SELECT_THREADS) group_kernel(select_job job) {
  __shared__ select_shared shared;
  const select_list &list = job.lists[0];
  int64_t row = blockIdx.x, k = list.k, size = job.group;
  float *values = list.out_values + row * k, poison = 0;
  int32_t *ids = list.out_ids + row * k;
  int lanes = size >= SLK_WARP ? SLK_WARP : 1, thread = static_cast<int>(threadIdx.x);
  select_turns turns = { &shared, 0 };
  if (job.begins) {
    for (int64_t g = thread; g < k; g += SELECT_THREADS) values[g] = 0, ids[g] = 0;
    __syncthreads();
  }
  int64_t last = (job.first + job.width - 1) / size;
  for (int64_t g = job.first / size + thread / lanes; g <= last; g += SELECT_THREADS / lanes) {
    int64_t begin = g * size - job.first, end = begin + size;
    select_best best = { values[g], ids[g] };
    select_group_best(job, begin > 0 ? begin : 0, end < job.width ? end : job.width, lanes, &best, &poison);
    if (lanes > 1) __syncwarp(); /* all have read */
    if (lanes == 1 || thread % SLK_WARP == 0) values[g] = best.value, ids[g] = best.id;
  }
  bool bad = __syncthreads_or(!(poison == 0.0f)) != 0 || (!job.begins && job.bad[row] != 0);
  __syncthreads(); /* all have read it */
  if (job.ends) {
    select_state s = { values, ids, list.k, 0 };
    int kept = select_compact(s, 0, 0, values, ids, &turns);
    if (thread == 0) list.lengths[row] = kept;
  }
  select_report(job, row, bad);
}

#endif
