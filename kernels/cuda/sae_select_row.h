/* What a block does with one row of sae_select.h: values in, candidates appended, states kept, codes out. */
#ifndef SLK_SAE_SELECT_ROW_H
#define SLK_SAE_SELECT_ROW_H

#include "sae_shrink.h"

/* Eight values of the segment at `column`: columns column + 4 thread .. + 3, and as many half a segment on. */
static __device__ __forceinline__ void select_load(const select_job &job, const float *row, int column, float *v) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int at = column + half * (SELECT_SEGMENT / 2) + static_cast<int>(threadIdx.x) * 4;
    slk_float4 x = {};
    if (at < job.width) x = sae_load<4>(row, at);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float value = at + i < job.width ? x.at[i] : 0; /* the rest of a row's last pack is no data */
      if (job.bias != nullptr && at + i < job.width) value += job.bias[job.first + at + i];
      v[half * 4 + i] = value;
    }
  }
}

/* A bit for each value whose latent the mask names. */
static __device__ __forceinline__ unsigned select_masked(const select_job &job, const uint8_t *mask, int column) {
  unsigned bits = 0;
#pragma unroll
  for (int half = 0; half < 2; half++) { /* four bytes at once: eight loads a segment would outnumber those of the values */
    int at = column + half * (SELECT_SEGMENT / 2) + static_cast<int>(threadIdx.x) * 4;
    const uint8_t *from = mask + job.first + at;
    if (at + 4 <= job.width && reinterpret_cast<uintptr_t>(from) % 4 == 0) {
      slk_pack<uint8_t, 4> marks = *reinterpret_cast<const slk_pack<uint8_t, 4> *>(from);
#pragma unroll
      for (int i = 0; i < 4; i++) bits |= marks.at[i] != 0 ? 1u << (half * 4 + i) : 0u;
    } else {
#pragma unroll 1
      for (int i = 0; i < 4 && at + i < job.width; i++) bits |= from[i] != 0 ? 1u << (half * 4 + i) : 0u;
    }
  }
  return bits;
}

/* Appends v where `reach` beats the threshold, in the order of the latents. */
static __device__ __forceinline__ void select_append(select_state *s, const float *v, const float *reach,
                                                     unsigned allowed, int latent, select_turns *at) {
  unsigned hits = 0, total;
#pragma unroll
  for (int q = 0; q < SELECT_VALUES; q++) hits |= reach[q] > s->threshold ? 1u << q : 0u;
  hits &= allowed;
  unsigned mine = static_cast<unsigned>(__popc(hits & 15u)) | static_cast<unsigned>(__popc(hits >> 4)) << 16;
  unsigned before = select_scan(mine, at, &total);
  int to[2] = { s->count + static_cast<int>(before & 0xffffu),
                s->count + static_cast<int>(total & 0xffffu) + static_cast<int>(before >> 16) };
  if (hits != 0) {
#pragma unroll
    for (int q = 0; q < SELECT_VALUES; q++) {
      if ((hits >> q & 1u) == 0) continue;
      s->values[to[q / 4]] = v[q];
      s->ids[to[q / 4]++] = latent + q / 4 * (SELECT_SEGMENT / 2) + static_cast<int>(threadIdx.x) * 4 + q % 4;
    }
  }
  s->count += static_cast<int>(total & 0xffffu) + static_cast<int>(total >> 16);
}

/* A bit for each value above max(floor, 0) of its latent. */
static __device__ __forceinline__ unsigned select_above_floor(const select_job &job, const float *v, int column) {
  unsigned bits = 0;
#pragma unroll
  for (int q = 0; q < SELECT_VALUES; q++) {
    int at = column + q / 4 * (SELECT_SEGMENT / 2) + static_cast<int>(threadIdx.x) * 4 + q % 4;
    if (at < job.width && v[q] > fmaxf(job.floor[job.first + at], 0.0f)) bits |= 1u << q;
  }
  return bits;
}

/* The same eight values of a refused row, from u and w. */
static __device__ void select_compute(const select_job &job, int64_t row, int column, float *tile, float *v) {
  const float *u = job.u + row * job.d;
  __syncthreads(); /* the last segment has been read */
  for (int i = static_cast<int>(threadIdx.x) / SLK_WARP; i < SELECT_SEGMENT && column + i < job.width; i += SELECT_WARPS) {
    float dot = screen_dot(u, job.w + (column + i) * job.d, job.d, job.packed);
    if (threadIdx.x % SLK_WARP == 0) tile[i] = dot + (job.w_bias != nullptr ? job.w_bias[column + i] : 0);
  }
  __syncthreads();
#pragma unroll
  for (int q = 0; q < SELECT_VALUES; q++) {
    int i = q / 4 * (SELECT_SEGMENT / 2) + static_cast<int>(threadIdx.x) * 4 + q % 4;
    v[q] = column + i < job.width ? tile[i] : 0;
  }
}

/* v becomes the least, reach the most that the eight pre-activations may be; poison NaN where that is not finite. */
static __device__ __forceinline__ void select_screen(const select_job &job, int64_t row, int column, float *v,
                                                     float *reach, float *poison) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int at = column + half * (SELECT_SEGMENT / 2) + static_cast<int>(threadIdx.x) * 4;
    float error = at < job.width ? select_error(job, row, job.first + at) : 0;
    *poison += error * 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float value = v[half * 4 + i];
      bool real = at + i < job.width;
      v[half * 4 + i] = real ? value - error : 0;
      reach[half * 4 + i] = real ? value + error : 0;
    }
  }
}

/* The candidates of a screen get their float32 values; those that are not positive leave. */
static __device__ void select_rescore(const select_job &job, int64_t row, select_state *s, select_turns *at) {
  const float *u = job.u + row * job.d;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x) / SLK_WARP; i < s->count; i += SELECT_WARPS) {
    int64_t latent = s->ids[i];
    float dot = screen_dot(u, job.w + latent * job.d, job.d, job.packed);
    if (threadIdx.x % SLK_WARP == 0) s->values[i] = dot + (job.w_bias != nullptr ? job.w_bias[latent] : 0);
  }
  __syncthreads();
  s->count = select_compact(*s, 0, 0, s->values, s->ids, at);
  s->threshold = 0;
}

static __device__ void select_resume(const select_list &list, int64_t row, select_state *s) {
  s->count = list.state_count[row];
  s->threshold = list.state_threshold[row];
  for (int i = static_cast<int>(threadIdx.x); i < s->count; i += SELECT_THREADS) {
    s->values[i] = list.state_values[row * list.keep + i];
    s->ids[i] = list.state_ids[row * list.keep + i];
  }
}

/* count <= keep */
static __device__ void select_suspend(const select_list &list, int64_t row, const select_state &s) {
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < s.count; i += SELECT_THREADS) {
    list.state_values[row * list.keep + i] = s.values[i];
    list.state_ids[row * list.keep + i] = s.ids[i];
  }
  if (threadIdx.x == 0) list.state_count[row] = s.count, list.state_threshold[row] = s.threshold;
}

/* After the last piece: the k best, or all where there are fewer. */
static __device__ void select_finish(const select_list &list, int64_t row, select_state *s, select_turns *at) {
  float *values = list.out_values + row * list.k;
  int32_t *ids = list.out_ids + row * list.k;
  if (s->count > list.k) {
    select_shrink(s, list.k, list.k, values, ids, at);
  } else {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < s->count; i += SELECT_THREADS)
      values[i] = s->values[i], ids[i] = s->ids[i];
  }
  if (threadIdx.x == 0) list.lengths[row] = s->count;
}

#endif
