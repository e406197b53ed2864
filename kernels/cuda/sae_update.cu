/* SAE kernels: the optimiser pass and what leads up to it: the bias behind u, the norm of the gradient, unit rows.
 *
 * One block a row, four floats a thread where that is possible: every array is read and written once, and a decoder row
 * waits in registers until its length is known. Whether the gradient is finite and how far it is clipped is decided on
 * the device, from the sum of squares that sae_finish_gradients left there. */
#include <cuda_bf16.h>

#include "kernels/dynamic_map.h"
#include "sae_cuda.h"

enum { THREADS = 256, SUM_THREADS = 1024, MOST_THREADS = 512 };

/* -- The whole gradient -- */

enum { FINISH_LATENTS = 64 };    /* to a block; fixed, so that sums have the same order everywhere */

struct finish_job {
  sl_sae_finish_gradients_args a;
  int64_t groups, column_blocks;
  float *parts;                  /* [groups, d_in]: sums of b_enc[i] W_enc[i] */
  double *squares;               /* [groups], then [column_blocks] of total_b_dec */
};

static __device__ double latent_squares(const sl_sae_finish_gradients_args &a, int64_t i) {
  const sl_sae_gradients &g = a.gradients;
  if (i >= a.m || !g.touched[i]) return 0;
  double along = a.project ? static_cast<double>(g.dot_dec[i]) : 0, bias = static_cast<double>(g.b_enc[i]);
  double decoder = static_cast<double>(g.squares_dec[i]) - along * along; /* rows of W_dec have length one */
  return static_cast<double>(g.squares_enc[i]) + (decoder > 0 ? decoder : 0) + bias * bias;
}

/* Group blockIdx.x of the latents, a stretch of columns. Only touched rows are read. */
template <int WIDTH> static __global__ void __launch_bounds__(THREADS) finish_parts_kernel(finish_job job) {
  __shared__ float coefficients[FINISH_LATENTS];
  __shared__ int latents[FINISH_LATENTS], count;
  __shared__ double scratch[32];
  const sl_sae_finish_gradients_args &a = job.a;
  int thread = static_cast<int>(threadIdx.x);
  int64_t first = static_cast<int64_t>(blockIdx.x) * FINISH_LATENTS;
  if (blockIdx.y == 0) {
    double sum = 0;
    for (int i = thread; i < FINISH_LATENTS; i += static_cast<int>(blockDim.x)) sum += latent_squares(a, first + i);
    sum = slk_block_sum(sum, scratch);
    if (thread == 0) job.squares[blockIdx.x] = sum;
  }
  if (!a.through_u) return;
  if (thread < SLK_WARP) { /* the touched ones close up, in order */
    int n = 0;
    for (int start = 0; start < FINISH_LATENTS; start += SLK_WARP) {
      int64_t i = first + start + thread;
      bool touched = i < a.m && a.gradients.touched[i] != 0;
      unsigned all = __ballot_sync(0xffffffffu, touched);
      int at = n + __popc(all & ((1u << thread) - 1));
      if (touched) latents[at] = start + thread, coefficients[at] = a.gradients.b_enc[i];
      n += __popc(all);
    }
    if (thread == 0) count = n;
  }
  __syncthreads();
  int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + thread) * WIDTH;
  if (column >= a.d_in) return;
  slk_pack<float, WIDTH> sum = {};
#pragma unroll 8
  for (int e = 0; e < count; e++) {
    slk_pack<float, WIDTH> w = sae_load<WIDTH>(a.w_enc, (first + latents[e]) * a.d_in + column);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) sum.at[i] += coefficients[e] * w.at[i];
  }
  sae_store<WIDTH>(job.parts, blockIdx.x * a.d_in + column, sum);
}

static __global__ void __launch_bounds__(SUM_THREADS) finish_bias_kernel(finish_job job) {
  const sl_sae_finish_gradients_args &a = job.a;
  int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  double through = 0;
  if (a.through_u) through = sae_column_sum(job.parts, job.groups, a.d_in, blockIdx.x);
  if (threadIdx.x >= 32) return;
  double value = 0;
  if (column < a.d_out) {
    value = static_cast<double>(a.add ? a.total_b_dec[column] : a.gradients.b_dec[column]) - through;
    a.total_b_dec[column] = static_cast<float>(value);
    if (a.more) value = 0; /* not complete: its square is nobody's yet */
  }
  double squares = slk_warp_sum(value * value);
  if (threadIdx.x == 0) job.squares[job.groups + blockIdx.x] = squares;
}

static __global__ void __launch_bounds__(SUM_THREADS) finish_sum_kernel(finish_job job) {
  __shared__ double scratch[32];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < job.groups + job.column_blocks; i += SUM_THREADS) sum += job.squares[i];
  sum = slk_block_sum(sum, scratch);
  if (threadIdx.x == 0) *job.a.sum_squares = job.a.add ? *job.a.sum_squares + sum : sum;
}

sl_status slk_cuda_sae_finish_gradients(sl_device *device, const sl_sae_finish_gradients_args *args) {
  slk_cuda_enter(device);
  finish_job job = {};
  job.a = *args;
  job.groups = slk_ceil_div<int64_t>(args->m, FINISH_LATENTS);
  job.column_blocks = slk_ceil_div<int64_t>(args->d_out, 32);
  sae_cutter cutter = { static_cast<char *>(args->workspace), 0 };
  job.parts = cutter.cut<float>(args->through_u || args->need != nullptr ? job.groups * args->d_in : 0);
  job.squares = cutter.cut<double>(job.groups + job.column_blocks);
  if (args->need != nullptr) {
    *args->need = cutter.used;
    return SL_OK;
  }
  if (args->workspace_bytes < cutter.used)
    return sae_short_workspace("sae_finish_gradients", args->workspace_bytes, cutter.used);
  cudaStream_t stream = slk_cuda_stream(device);
  int width = sae_width(args->d_in, args->w_enc);
  int64_t packs = args->d_in / width;
  int threads = sae_threads(packs, THREADS);
  dim3 grid(static_cast<unsigned>(job.groups),
            static_cast<unsigned>(args->through_u ? slk_ceil_div<int64_t>(packs, threads) : 1));
  if (width == 4) LAUNCH((finish_parts_kernel<4>), grid, threads, 0, stream, job);
  else LAUNCH((finish_parts_kernel<1>), grid, threads, 0, stream, job);
  LAUNCH((finish_bias_kernel), static_cast<unsigned>(job.column_blocks), SUM_THREADS, 0, stream, job);
  LAUNCH((finish_sum_kernel), 1, SUM_THREADS, 0, stream, job);
  return slk_cuda_launched(device, "sae_finish_gradients");
}

/* A block a latent. */
static __global__ void __launch_bounds__(THREADS) fill_kernel(sl_sae_fill_gradients_args a) {
  int64_t i = blockIdx.x;
  if (a.gradients.touched[i]) return;
  for (int64_t j = threadIdx.x; j < a.d_in; j += THREADS) a.gradients.w_enc[i * a.d_in + j] = 0;
  for (int64_t j = threadIdx.x; j < a.d_out; j += THREADS) a.gradients.w_dec[i * a.d_out + j] = 0;
}

sl_status slk_cuda_sae_fill_gradients(sl_device *device, const sl_sae_fill_gradients_args *args) {
  slk_cuda_enter(device);
  LAUNCH((fill_kernel), static_cast<unsigned>(args->m), THREADS, 0, slk_cuda_stream(device), *args);
  return slk_cuda_launched(device, "sae_fill_gradients");
}

/* -- The optimiser -- */

struct update_job {
  sl_sae_update_args a;
  float decay;                   /* 1 - lr * weight_decay */
  float step_size, inverse_root2; /* lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t) */
};

/* What all rows share: false where the gradient is not finite; the factor of every gradient. */
static __device__ __forceinline__ bool find_clip(const sl_sae_update_args &a, float *clip) {
  double squares = *a.sum_squares;
  if (!isfinite(squares) || squares < 0) return false;
  *clip = 1;
  if (a.clip_norm > 0 && squares > a.clip_norm * a.clip_norm) *clip = static_cast<float>(a.clip_norm / sqrt(squares));
  return true;
}

/* One number. scale, along: g' = scale * g - along * w. */
static __device__ __forceinline__ float update_one(const update_job &job, float w, float g, float *m1, float *m2,
                                                   float scale, float along, float decay, bool touched) {
  const sl_sae_update_args &a = job.a;
  float gradient = touched ? scale * g - along * w : 0;
  w *= decay;
  if (a.rule == SL_SAE_SGD) return w - a.lr * gradient;
  *m1 = a.beta1 * *m1 + (1 - a.beta1) * gradient;
  *m2 = a.beta2 * *m2 + (1 - a.beta2) * gradient * gradient;
  return w - job.step_size * *m1 / (sqrtf(*m2) * job.inverse_root2 + a.eps);
}

/* One row of one matrix. */
struct update_row {
  float *w, *m1, *m2;            /* moments: adam only */
  const float *g;                /* NULL: a gradient of zero */
  unsigned short *bf16;          /* NULL: no copy */
  int64_t d;
  float scale, along;
  bool unit;
};

/* Row i of W_enc or W_dec; false where it stays as it is. */
static __device__ __forceinline__ bool choose_row(const update_job &job, int64_t i, bool encoder, float clip,
                                                  update_row *row) {
  const sl_sae_update_args &a = job.a;
  bool adam = a.rule == SL_SAE_ADAM, touched = a.gradients.touched[i] != 0;
  int64_t d = encoder ? a.d_in : a.d_out, at = i * d;
  row->d = d;
  row->w = (encoder ? a.parameters.w_enc : a.parameters.w_dec) + at;
  row->m1 = adam ? (encoder ? a.moment1.w_enc : a.moment1.w_dec) + at : nullptr;
  row->m2 = adam ? (encoder ? a.moment2.w_enc : a.moment2.w_dec) + at : nullptr;
  row->g = touched ? (encoder ? a.gradients.w_enc : a.gradients.w_dec) + at : nullptr;
  row->bf16 = encoder && a.w_enc_bf16 != nullptr ? a.w_enc_bf16 + at : nullptr;
  row->scale = clip;
  row->along = !encoder && a.project && touched ? clip * a.gradients.dot_dec[i] : 0;
  row->unit = !encoder && a.unit_rows;
  return a.rule != SL_SAE_SGD || touched || job.decay != 1.0f;
}

static __device__ __forceinline__ float unit_factor(float squares) { return 1 / (sqrtf(squares) + 1.19209290e-7f); }

/* NV packs of four a thread; everything is under way before the first number is needed. */
template <int NV> static __global__ void __launch_bounds__(MOST_THREADS) update_kernel(update_job job) {
  __shared__ float scratch[32], shared_clip;
  __shared__ bool shared_finite;
  if (threadIdx.x == 0) shared_finite = find_clip(job.a, &shared_clip);
  __syncthreads();
  if (!shared_finite) return;
  update_row row;
  bool moves = choose_row(job, blockIdx.x, blockIdx.y == 0, shared_clip, &row), adam = job.a.rule == SL_SAE_ADAM;
  if (!moves && row.bf16 == nullptr) return;
  slk_float4 w[NV], g[NV] = {}, m1[NV] = {}, m2[NV] = {};
#pragma unroll
  for (int v = 0; v < NV; v++) {
    int64_t at = (static_cast<int64_t>(v) * blockDim.x + threadIdx.x) * 4;
    if (at >= row.d) continue;
    w[v] = sae_load<4>(row.w, at);
    if (row.g != nullptr) g[v] = sae_load<4>(row.g, at);
    if (adam) m1[v] = sae_load<4>(row.m1, at), m2[v] = sae_load<4>(row.m2, at);
  }
  float squares = 0, factor = 1;
#pragma unroll
  for (int v = 0; v < NV; v++) {
    int64_t at = (static_cast<int64_t>(v) * blockDim.x + threadIdx.x) * 4;
    if (at >= row.d || !moves) continue;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      w[v].at[i] = update_one(job, w[v].at[i], g[v].at[i], &m1[v].at[i], &m2[v].at[i], row.scale, row.along, job.decay,
                              row.g != nullptr);
      squares += w[v].at[i] * w[v].at[i];
    }
    if (adam) sae_store<4>(row.m1, at, m1[v]), sae_store<4>(row.m2, at, m2[v]);
  }
  if (row.unit && moves) factor = unit_factor(slk_block_sum(squares, scratch));
#pragma unroll
  for (int v = 0; v < NV; v++) {
    int64_t at = (static_cast<int64_t>(v) * blockDim.x + threadIdx.x) * 4;
    if (at >= row.d) continue;
#pragma unroll
    for (int i = 0; i < 4; i++) w[v].at[i] *= factor;
    if (moves) sae_store<4>(row.w, at, w[v]);
    if (row.bf16 == nullptr) continue;
    slk_pack<unsigned short, 4> rounded;
#pragma unroll
    for (int i = 0; i < 4; i++) rounded.at[i] = sae_to_bf16(w[v].at[i]);
    *reinterpret_cast<slk_pack<unsigned short, 4> *>(row.bf16 + at) = rounded;
  }
}

/* Rows of any length and alignment; decoder rows are read again once their length is known. */
static __global__ void __launch_bounds__(THREADS) update_any_kernel(update_job job) {
  __shared__ float scratch[32];
  float clip;
  if (!find_clip(job.a, &clip)) return;
  update_row row;
  bool moves = choose_row(job, blockIdx.x, blockIdx.y == 0, clip, &row);
  float squares = 0;
  for (int64_t j = threadIdx.x; j < row.d; j += THREADS) {
    float w = row.w[j], m1 = 0, m2 = 0;
    if (row.m1 != nullptr) m1 = row.m1[j], m2 = row.m2[j];
    if (moves) {
      w = update_one(job, w, row.g != nullptr ? row.g[j] : 0, &m1, &m2, row.scale, row.along, job.decay,
                     row.g != nullptr);
      row.w[j] = w;
      if (row.m1 != nullptr) row.m1[j] = m1, row.m2[j] = m2;
    }
    squares += w * w;
    if (row.bf16 != nullptr) row.bf16[j] = sae_to_bf16(w);
  }
  if (!row.unit || !moves) return;
  float factor = unit_factor(slk_block_sum(squares, scratch));
  for (int64_t j = threadIdx.x; j < row.d; j += THREADS) row.w[j] *= factor;
}

/* -- 8-bit moments -- */

/* The code nearest to x, |x| <= 1, in a dynamic map (dynamic_map.h): arithmetic on the decades in place of a search, the
 * same as the CPU's. Within a decade codes are evenly spaced; between two decades the border is half-way. */
template <bool SIGNED> static __device__ __forceinline__ int nearest_code(float x) {
  const float ends[SL_MAP_DECADES] = { 1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1 };
  const float scales[SL_MAP_DECADES] = { 1e6f, 1e5f, 1e4f, 1e3f, 1e2f, 1e1f, 1 };
  const int first = SIGNED ? 1 : 2, most = first << (SL_MAP_DECADES - 1);
  float size = fabsf(x), scale = scales[0];
  int parts = first;
#pragma unroll
  for (int i = 1; i < SL_MAP_DECADES; i++) {
    float below = static_cast<float>(first << (i - 1)), here = static_cast<float>(first << i);
    bool above = size >= ends[i - 1] * (1 + (4.5f / here - 0.45f / below) / 2);
    scale = above ? scales[i] : scale;
    parts = above ? first << i : parts;
  }
  int part = static_cast<int>((size * scale - 0.1f) * (static_cast<float>(parts) * (1 / 0.9f)));
  part = part < 0 ? 0 : part >= parts ? parts - 1 : part;
  int rank = part + (SIGNED ? parts : parts - 1); /* among the values from zero up */
  rank = size < (SIGNED ? 0.275e-6f : 0.1625e-6f) ? 0 : rank;
  rank = size >= 1 - 0.225f / static_cast<float>(most) ? (SIGNED ? 128 : 255) : rank;
  if (!SIGNED) return rank;
  int below_zero = 127 - (rank < 128 ? rank : 127); /* there is no -1 */
  return x < 0 ? below_zero : 127 + rank;
}

static __device__ __forceinline__ int64_t slk_blocks8(int64_t d) { return (d + SL_SAE_BLOCK8 - 1) / SL_SAE_BLOCK8; }

struct moment8 { uint8_t *codes; float *absmax; };  /* of one block of SL_SAE_BLOCK8 */

/* One block of a row by a warp, eight elements a lane; returns the lane's part of the squares of the new weights. */
static __device__ float update_block8(const update_job &job, const update_row &row, int64_t start, moment8 m1, moment8 m2,
                                      const float *map1, const float *map2) {
  enum { EACH = SL_SAE_BLOCK8 / SLK_WARP };
  const sl_sae_update_args &a = job.a;
  int lane = static_cast<int>(threadIdx.x) % SLK_WARP;
  float scale1 = *m1.absmax, scale2 = *m2.absmax, first[EACH], second[EACH], squares = 0, top1 = 0, top2 = 0;
#pragma unroll
  for (int q = 0; q < EACH; q++) {
    int at = q * SLK_WARP + lane;
    int64_t j = start + at;
    first[q] = second[q] = 0;
    if (j >= row.d) continue;
    float w = row.w[j], gradient = row.g != nullptr ? row.scale * row.g[j] - row.along * w : 0;
    first[q] = a.beta1 * (map1[m1.codes[at]] * scale1) + (1 - a.beta1) * gradient;
    second[q] = a.beta2 * (map2[m2.codes[at]] * scale2) + (1 - a.beta2) * gradient * gradient;
    top1 = fmaxf(top1, fabsf(first[q]));
    top2 = fmaxf(top2, second[q]);
    w = w * job.decay - job.step_size * first[q] / (sqrtf(second[q]) * job.inverse_root2 + a.eps);
    row.w[j] = w;
    if (row.bf16 != nullptr) row.bf16[j] = sae_to_bf16(w);
    squares += w * w;
  }
  top1 = slk_warp_max(top1);
  top2 = slk_warp_max(top2);
  __syncwarp(); /* all have read the old scales */
  if (row.g == nullptr) {
    if (lane == 0) *m1.absmax = a.beta1 * scale1, *m2.absmax = a.beta2 * scale2;
    return squares;
  }
  if (lane == 0) *m1.absmax = top1, *m2.absmax = top2;
  float inverse1 = top1 > 0 ? 1 / top1 : 0, inverse2 = top2 > 0 ? 1 / top2 : 0;
#pragma unroll
  for (int q = 0; q < EACH; q++) {
    int at = q * SLK_WARP + lane;
    if (start + at >= row.d) continue;
    int code = nearest_code<false>(second[q] * inverse2);
    m1.codes[at] = static_cast<uint8_t>(nearest_code<true>(first[q] * inverse1));
    m2.codes[at] = static_cast<uint8_t>(code == 0 && second[q] > 0 ? 1 : code);
  }
  return squares;
}

/* Rows in turn (2 i: W_enc, 2 i + 1: W_dec), so that a block fetches the maps once; a warp a block of the row. */
static __global__ void __launch_bounds__(THREADS) update8_kernel(update_job job) {
  __shared__ float scratch[32], maps[2][SL_MAP_SIZE];
  const sl_sae_update_args &a = job.a;
  float clip;
  if (!find_clip(a, &clip)) return;
  for (int i = static_cast<int>(threadIdx.x); i < SL_MAP_SIZE; i += THREADS) maps[0][i] = a.map1[i], maps[1][i] = a.map2[i];
  __syncthreads();
  int warp = static_cast<int>(threadIdx.x) / SLK_WARP;
  for (int64_t item = blockIdx.x; item < 2 * a.m; item += gridDim.x) {
    bool encoder = item % 2 == 0;
    int64_t i = item / 2;
    update_row row;
    (void)choose_row(job, i, encoder, clip, &row);
    int64_t blocks = slk_blocks8(row.d);
    const sl_sae_moment8 &m1 = a.moment1_8, &m2 = a.moment2_8;
    float squares = 0;
    for (int64_t b = warp; b < blocks; b += THREADS / SLK_WARP) {
      int64_t start = b * SL_SAE_BLOCK8, codes = i * row.d + start, scales = i * blocks + b;
      moment8 first = { (encoder ? m1.w_enc : m1.w_dec) + codes, (encoder ? m1.absmax_enc : m1.absmax_dec) + scales };
      moment8 second = { (encoder ? m2.w_enc : m2.w_dec) + codes, (encoder ? m2.absmax_enc : m2.absmax_dec) + scales };
      squares += update_block8(job, row, start, first, second, maps[0], maps[1]);
    }
    if (!row.unit) continue;
    float factor = unit_factor(slk_block_sum(squares, scratch));
    for (int64_t b = warp; b < blocks; b += THREADS / SLK_WARP) { /* each thread the numbers that it wrote */
      for (int64_t j = b * SL_SAE_BLOCK8 + threadIdx.x % SLK_WARP; j < row.d && j < (b + 1) * SL_SAE_BLOCK8; j += SLK_WARP)
        row.w[j] *= factor;
    }
  }
}

/* The biases, and the gradients back to zero: after the rows, which read `touched` and dot_dec. */
static __global__ void __launch_bounds__(THREADS) update_biases_kernel(update_job job) {
  const sl_sae_update_args &a = job.a;
  float clip;
  if (!find_clip(a, &clip)) return;
  SLK_LOOP(at, a.m + (a.total_b_dec != nullptr ? a.d_out : 0)) {
    bool encoder = at < a.m, adam = a.rule != SL_SAE_SGD;
    int64_t i = encoder ? at : at - a.m;
    float *w = (encoder ? a.parameters.b_enc : a.parameters.b_dec) + i;
    float *m1 = adam ? (encoder ? a.moment1.b_enc : a.moment1.b_dec) + i : nullptr;
    float *m2 = adam ? (encoder ? a.moment2.b_enc : a.moment2.b_dec) + i : nullptr;
    float first = adam ? *m1 : 0, second = adam ? *m2 : 0;
    *w = update_one(job, *w, encoder ? a.gradients.b_enc[i] : a.total_b_dec[i], &first, &second, clip, 0, 1, true);
    if (adam) *m1 = first, *m2 = second;
    if (encoder) {
      a.gradients.b_enc[i] = 0;
      a.gradients.dot_dec[i] = 0;
      a.gradients.touched[i] = 0;
    } else {
      a.gradients.b_dec[i] = 0;
    }
  }
}

static bool update_packs(const sl_sae_update_args *args) {
  const sl_sae_parameters *p = &args->parameters, *m1 = &args->moment1, *m2 = &args->moment2;
  bool adam = args->rule == SL_SAE_ADAM;
  if (!slk_aligned(args->w_enc_bf16, 8)) return false;
  if (sae_width(args->d_in, p->w_enc, args->gradients.w_enc) != 4) return false;
  if (sae_width(args->d_out, p->w_dec, args->gradients.w_dec) != 4) return false;
  return !adam || slk_packs(4, m1->w_enc, m1->w_dec, m2->w_enc, m2->w_dec) > 0;
}

sl_status slk_cuda_sae_update(sl_device *device, const sl_sae_update_args *args) {
  slk_cuda_enter(device);
  double correct1 = 1 - pow(static_cast<double>(args->beta1), static_cast<double>(args->step));
  double correct2 = 1 - pow(static_cast<double>(args->beta2), static_cast<double>(args->step));
  update_job job = {};
  job.a = *args;
  job.decay = 1 - args->lr * args->weight_decay;
  job.step_size = static_cast<float>(static_cast<double>(args->lr) / correct1);
  job.inverse_root2 = static_cast<float>(1 / sqrt(correct2));
  cudaStream_t stream = slk_cuda_stream(device);
  int64_t packs = (args->d_in > args->d_out ? args->d_in : args->d_out) / 4;
  int threads = sae_threads(packs, MOST_THREADS);
  dim3 grid(static_cast<unsigned>(args->m), 2);
  bool packed = update_packs(args) && packs <= 4 * MOST_THREADS;
  if (args->rule == SL_SAE_ADAM8)
    LAUNCH((update8_kernel), slk_grid(device, 2 * args->m, 1), THREADS, 0, stream, job);
  else if (!packed) LAUNCH((update_any_kernel), grid, THREADS, 0, stream, job);
  else if (packs <= threads) LAUNCH((update_kernel<1>), grid, threads, 0, stream, job);
  else if (packs <= 2 * threads) LAUNCH((update_kernel<2>), grid, threads, 0, stream, job);
  else LAUNCH((update_kernel<4>), grid, threads, 0, stream, job);
  LAUNCH((update_biases_kernel), slk_grid(device, args->m + args->d_out, THREADS), THREADS, 0, stream, job);
  return slk_cuda_launched(device, "sae_update");
}

/* -- Unit rows -- */

static __global__ void __launch_bounds__(THREADS) unit_kernel(sl_sae_unit_rows_args a) {
  __shared__ double scratch[32];
  const float *x = a.x + blockIdx.x * a.d;
  float *y = a.y + blockIdx.x * a.d;
  double squares = 0;
  for (int64_t j = threadIdx.x; j < a.d; j += blockDim.x) squares += static_cast<double>(x[j]) * static_cast<double>(x[j]);
  squares = slk_block_sum(squares, scratch);
  float factor = 1 / (static_cast<float>(sqrt(squares)) + 1.19209290e-7f);
  for (int64_t j = threadIdx.x; j < a.d; j += blockDim.x) y[j] = x[j] * factor;
}

sl_status slk_cuda_sae_unit_rows(sl_device *device, const sl_sae_unit_rows_args *args) {
  slk_cuda_enter(device);
  if (args->m == 0) return SL_OK;
  LAUNCH((unit_kernel), static_cast<unsigned>(args->m), sae_threads(args->d, THREADS), 0, slk_cuda_stream(device), *args);
  return slk_cuda_launched(device, "sae_unit_rows");
}
