/* SAE kernels: gradients of both dictionaries, and what the optimiser must know of them before it starts.
 *
 * Latent-major: the entries of a latent are one run of the index. A warp (or a block, where rows are long) keeps the
 * decoder row and its gradient in registers and walks the run once: each residual row that it gathers serves the dot
 * product da and the decoder gradient; a second walk over the rows of u gives the encoder gradient. Rows are written
 * once. A run longer than SEGMENT is cut at multiples of SEGMENT in the index; the pieces behind the first leave partial
 * rows, which are added in order by a second kernel. So no latent, however busy, holds up the others, and the bits
 * depend on nothing but the index. */
#include <cuda_bf16.h>

#include "sae_cuda.h"

enum { SEGMENT = 64, WARP_GROUPS = 4, THREADS = 256 };

struct backward_job {
  sl_sae_backward_args a;
  int64_t cuts;                  /* multiples of SEGMENT below `most`; cut q is entry offsets[0] + (q + 1) * SEGMENT */
  float *partial_dec, *partial_enc; /* [cuts, d_out], [cuts, d_in] */
  float *partial_sums;           /* [cuts, 2]: of da, of da * value */
};

/* A piece of one latent's run. */
struct run_piece {
  int64_t latent, begin, end;
  int64_t cut;                   /* -1: the first piece, else where its partial rows go */
};

/* Item i < m is the first piece of latent i; item m + q the piece at cut q, if a run of more than
 * SEGMENT entries goes on there. False: nothing to do. */
static __device__ __forceinline__ bool find_piece(const backward_job &job, int64_t item, run_piece *out) {
  const int64_t *offsets = job.a.index.offsets;
  int64_t m = job.a.m, base = offsets[0];
  if (item < m) {
    int64_t begin = offsets[item], end = offsets[item + 1], next = base + ((begin - base) / SEGMENT + 1) * SEGMENT;
    *out = { item, begin, end - begin > SEGMENT ? next : end, -1 };
    return end > begin;
  }
  int64_t cut = item - m, at = base + (cut + 1) * SEGMENT;
  if (cut >= job.cuts || at >= offsets[m]) return false;
  int64_t latent = sae_upper_bound(offsets, m, at) - 1, begin = offsets[latent], end = offsets[latent + 1];
  *out = { latent, at, end < at + SEGMENT ? end : at + SEGMENT, cut };
  return at > begin && end - begin > SEGMENT;
}

static __device__ __forceinline__ float gradient_scale(const sl_sae_backward_args &a) {
  return static_cast<float>(a.scale * *a.factor);
}

/* -- Rows in registers -- */

/* Sum over the T threads of a group: a warp, or the block. `slots` is used in turns, so one barrier is enough. */
template <int T> static __device__ __forceinline__ float group_sum(float v, float (*slots)[T / SLK_WARP], int *turn) {
  v = slk_warp_sum(v);
  if (T == SLK_WARP) return v;
  if (threadIdx.x % SLK_WARP == 0) slots[*turn][threadIdx.x / SLK_WARP] = v;
  __syncthreads();
  v = 0;
#pragma unroll
  for (int w = 0; w < T / SLK_WARP; w++) v += slots[*turn][w];
  *turn ^= 1;
  return v;
}

template <int T> static __device__ __forceinline__ void group_barrier() {
  if (T == SLK_WARP) __syncwarp();
  else __syncthreads();
}

/* Writes (or adds) a row; returns this thread's part of the sum of squares of what it has become. */
template <int T, int NV>
static __device__ __forceinline__ float put_row(float *row, int lane, int64_t d, const slk_float4 *g, float scale,
                                                bool add) {
  float squares = 0;
#pragma unroll
  for (int v = 0; v < NV; v++) {
    int64_t at = static_cast<int64_t>(v * T + lane) * 4;
    if (at >= d) continue;
    slk_float4 out = g[v], old = {};
    if (add) old = sae_load<4>(row, at);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      out.at[i] = out.at[i] * scale + old.at[i];
      squares += out.at[i] * out.at[i];
    }
    sae_store<4>(row, at, out);
  }
  return squares;
}

/* T threads a piece, NV packs of four a thread: d <= 4 T NV. */
template <int T, int NV>
static __global__ void __launch_bounds__(T == SLK_WARP ? SLK_WARP *WARP_GROUPS : T) backward_kernel(backward_job job) {
  enum { GROUPS = T == SLK_WARP ? WARP_GROUPS : 1 };
  __shared__ float shared_da[GROUPS][SEGMENT], shared_values[GROUPS][SEGMENT];
  __shared__ int shared_tokens[GROUPS][SEGMENT];
  __shared__ float slots[2][T / SLK_WARP];
  const sl_sae_backward_args &a = job.a;
  int lane = static_cast<int>(threadIdx.x) % T, group = static_cast<int>(threadIdx.x) / T, turn = 0;
  run_piece piece;
  if (!find_piece(job, static_cast<int64_t>(blockIdx.x) * GROUPS + group, &piece)) return;
  int n = static_cast<int>(piece.end - piece.begin);
  float *da = shared_da[group], *values = shared_values[group];
  int *tokens = shared_tokens[group];
  for (int e = lane; e < n; e += T) {
    tokens[e] = a.index.tokens[piece.begin + e];
    values[e] = a.index.values[piece.begin + e];
  }
  group_barrier<T>();
  const float scale = gradient_scale(a);
  int64_t latent = piece.latent, d = a.d_out;
  bool first = piece.cut < 0, add = first && a.gradients.touched[latent] != 0;

  slk_float4 w[NV], g[NV] = {};
#pragma unroll
  for (int v = 0; v < NV; v++) {
    int64_t at = static_cast<int64_t>(v * T + lane) * 4;
    w[v] = at < d ? sae_load<4>(a.w_dec, latent * d + at) : slk_float4{};
  }
  for (int e = 0; e < n; e++) {
    const float *row = a.residual + tokens[e] * d;
    float value = values[e], dot = 0;
    slk_float4 x[NV];
#pragma unroll
    for (int v = 0; v < NV; v++) {
      int64_t at = static_cast<int64_t>(v * T + lane) * 4;
      x[v] = at < d ? sae_load<4>(row, at) : slk_float4{};
    }
#pragma unroll
    for (int v = 0; v < NV; v++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        dot += x[v].at[i] * w[v].at[i];
        g[v].at[i] += value * x[v].at[i];
      }
    }
    dot = group_sum<T>(dot, slots, &turn);
    if (lane == 0) da[e] = dot * scale;
  }
  group_barrier<T>();
  float *row_dec = first ? a.gradients.w_dec + latent * d : job.partial_dec + piece.cut * d;
  float squares_dec = group_sum<T>(put_row<T, NV>(row_dec, lane, d, g, scale, add), slots, &turn);

  d = a.d_in;
#pragma unroll
  for (int v = 0; v < NV; v++) g[v] = slk_float4{};
#pragma unroll 2
  for (int e = 0; e < n; e++) {
    const float *row = a.u + tokens[e] * d;
    float value = da[e];
#pragma unroll
    for (int v = 0; v < NV; v++) {
      int64_t at = static_cast<int64_t>(v * T + lane) * 4;
      slk_float4 x = at < d ? sae_load<4>(row, at) : slk_float4{};
#pragma unroll
      for (int i = 0; i < 4; i++) g[v].at[i] += value * x.at[i];
    }
  }
  float *row_enc = first ? a.gradients.w_enc + latent * d : job.partial_enc + piece.cut * d;
  float squares_enc = group_sum<T>(put_row<T, NV>(row_enc, lane, d, g, 1, add), slots, &turn);

  float sum = 0, along = 0;
  for (int e = lane; e < n; e += T) {
    sum += da[e];
    along += da[e] * values[e];
    a.code_gradients[piece.begin + e] = da[e];
  }
  sum = group_sum<T>(sum, slots, &turn);
  along = group_sum<T>(along, slots, &turn);
  if (lane != 0) return;
  if (first) {
    a.gradients.b_enc[latent] += sum;
    a.gradients.dot_dec[latent] += along;
    a.gradients.squares_dec[latent] = squares_dec;
    a.gradients.squares_enc[latent] = squares_enc;
    a.gradients.touched[latent] = 1;
  } else {
    job.partial_sums[piece.cut * 2] = sum;
    job.partial_sums[piece.cut * 2 + 1] = along;
  }
}

/* -- Rows of any length -- */

/* row[j] = scale * sum of coefficients[e] * rows[tokens[e]][j] (+ old); the sum of squares of what it has become. */
static __device__ float gather_row(float *row, const float *rows, int64_t d, const int *tokens, const float *coefficients,
                                   int n, float scale, bool add) {
  float squares = 0;
  for (int64_t j = threadIdx.x; j < d; j += THREADS) {
    float g = 0;
#pragma unroll 4
    for (int e = 0; e < n; e++) g += coefficients[e] * rows[tokens[e] * d + j];
    g = g * scale + (add ? row[j] : 0);
    squares += g * g;
    row[j] = g;
  }
  return squares;
}

/* The same as backward_kernel, a block a piece, for rows that are too long or not aligned: reads residuals twice. */
static __global__ void __launch_bounds__(THREADS) backward_any_kernel(backward_job job) {
  __shared__ float da[SEGMENT], values[SEGMENT], scratch[32];
  __shared__ int tokens[SEGMENT];
  const sl_sae_backward_args &a = job.a;
  run_piece piece;
  if (!find_piece(job, blockIdx.x, &piece)) return;
  int n = static_cast<int>(piece.end - piece.begin), thread = static_cast<int>(threadIdx.x);
  for (int e = thread; e < n; e += THREADS) {
    tokens[e] = a.index.tokens[piece.begin + e];
    values[e] = a.index.values[piece.begin + e];
  }
  __syncthreads();
  const float scale = gradient_scale(a);
  int64_t latent = piece.latent, d = a.d_out;
  bool first = piece.cut < 0, add = first && a.gradients.touched[latent] != 0;
  for (int e = 0; e < n; e++) {
    float dot = 0;
    for (int64_t j = thread; j < d; j += THREADS) dot += a.residual[tokens[e] * d + j] * a.w_dec[latent * d + j];
    dot = slk_block_sum(dot, scratch);
    if (thread == 0) da[e] = dot * scale;
  }
  __syncthreads();
  float *row_dec = first ? a.gradients.w_dec + latent * d : job.partial_dec + piece.cut * d;
  float *row_enc = first ? a.gradients.w_enc + latent * a.d_in : job.partial_enc + piece.cut * a.d_in;
  float squares_dec = slk_block_sum(gather_row(row_dec, a.residual, d, tokens, values, n, scale, add), scratch);
  float squares_enc = slk_block_sum(gather_row(row_enc, a.u, a.d_in, tokens, da, n, 1, add), scratch);
  float sum = thread < n ? da[thread] : 0, along = thread < n ? da[thread] * values[thread] : 0;
  if (thread < n) a.code_gradients[piece.begin + thread] = da[thread];
  sum = slk_block_sum(sum, scratch);
  along = slk_block_sum(along, scratch);
  if (thread != 0) return;
  if (first) {
    a.gradients.b_enc[latent] += sum;
    a.gradients.dot_dec[latent] += along;
    a.gradients.squares_dec[latent] = squares_dec;
    a.gradients.squares_enc[latent] = squares_enc;
    a.gradients.touched[latent] = 1;
  } else {
    job.partial_sums[piece.cut * 2] = sum;
    job.partial_sums[piece.cut * 2 + 1] = along;
  }
}

/* -- Long runs -- */

/* row += partial rows of cuts first .. last - 1, in order; the sum of squares of what it has become. */
static __device__ float merge_row(float *row, const float *partial, int64_t d, int64_t first, int64_t last) {
  float squares = 0;
  for (int64_t j = threadIdx.x; j < d; j += THREADS) {
    float g = row[j];
#pragma unroll 4
    for (int64_t cut = first; cut < last; cut++) g += partial[cut * d + j];
    squares += g * g;
    row[j] = g;
  }
  return squares;
}

/* Block q < cuts: if a long run has its first cut there, its pieces are added up. The last block adds to b_dec. */
static __global__ void __launch_bounds__(THREADS) merge_kernel(backward_job job) {
  __shared__ float scratch[32];
  const sl_sae_backward_args &a = job.a;
  int64_t cut = blockIdx.x;
  if (cut == job.cuts) {
    double scale = a.scale * *a.factor;
    if (a.column_sums == nullptr) return;
    for (int64_t j = threadIdx.x; j < a.d_out; j += THREADS)
      a.gradients.b_dec[j] += static_cast<float>(scale * a.column_sums[j]);
    return;
  }
  run_piece piece;
  if (!find_piece(job, a.m + cut, &piece)) return;
  int64_t begin = a.index.offsets[piece.latent], end = a.index.offsets[piece.latent + 1], latent = piece.latent;
  if (piece.begin - begin > SEGMENT) return;
  int64_t last = (end - 1 - a.index.offsets[0]) / SEGMENT;
  float dec = slk_block_sum(merge_row(a.gradients.w_dec + latent * a.d_out, job.partial_dec, a.d_out, cut, last), scratch);
  float enc = slk_block_sum(merge_row(a.gradients.w_enc + latent * a.d_in, job.partial_enc, a.d_in, cut, last), scratch);
  if (threadIdx.x != 0) return;
  float sum = a.gradients.b_enc[latent], along = a.gradients.dot_dec[latent];
  for (int64_t q = cut; q < last; q++) {
    sum += job.partial_sums[q * 2];
    along += job.partial_sums[q * 2 + 1];
  }
  a.gradients.b_enc[latent] = sum;
  a.gradients.dot_dec[latent] = along;
  a.gradients.squares_dec[latent] = dec;
  a.gradients.squares_enc[latent] = enc;
}

/* -- Choice -- */

/* The smallest group that holds a row of d floats in registers; more packs a thread mean fewer, busier warps. */
static void launch_backward(const backward_job &job, int64_t items, int64_t d, cudaStream_t stream) {
  unsigned blocks = static_cast<unsigned>(items), warps = static_cast<unsigned>(slk_ceil_div<int64_t>(items, WARP_GROUPS));
  const int block = SLK_WARP * WARP_GROUPS;
  if (d <= 128) LAUNCH((backward_kernel<32, 1>), warps, block, 0, stream, job);
  else if (d <= 256) LAUNCH((backward_kernel<32, 2>), warps, block, 0, stream, job);
  else if (d <= 512) LAUNCH((backward_kernel<32, 4>), warps, block, 0, stream, job);
  else if (d <= 768) LAUNCH((backward_kernel<32, 6>), warps, block, 0, stream, job);
  else if (d <= 1024) LAUNCH((backward_kernel<32, 8>), warps, block, 0, stream, job);
  else if (d <= 2048) LAUNCH((backward_kernel<128, 4>), blocks, 128, 0, stream, job);
  else if (d <= 4096) LAUNCH((backward_kernel<256, 4>), blocks, 256, 0, stream, job);
  else LAUNCH((backward_kernel<256, 8>), blocks, 256, 0, stream, job);
}

sl_status slk_cuda_sae_backward(sl_device *device, const sl_sae_backward_args *args) {
  enum { IN_REGISTERS = 8192 };
  slk_cuda_enter(device);
  backward_job job = {};
  job.a = *args;
  job.cuts = args->most > 0 ? (args->most - 1) / SEGMENT : 0;
  sae_cutter cutter = { static_cast<char *>(args->workspace), 0 };
  job.partial_dec = cutter.cut<float>(job.cuts * args->d_out);
  job.partial_enc = cutter.cut<float>(job.cuts * args->d_in);
  job.partial_sums = cutter.cut<float>(job.cuts * 2);
  if (args->need != nullptr) {
    *args->need = cutter.used;
    return SL_OK;
  }
  if (args->workspace_bytes < cutter.used)
    return sae_short_workspace("sae_backward", args->workspace_bytes, cutter.used);
  cudaStream_t stream = slk_cuda_stream(device);
  int64_t items = args->m + job.cuts, d = args->d_in > args->d_out ? args->d_in : args->d_out;
  bool packed = d <= IN_REGISTERS && sae_width(args->d_out, args->residual, args->w_dec, args->gradients.w_dec) == 4 &&
                sae_width(args->d_in, args->u, args->gradients.w_enc) == 4;
  if (args->most > 0 && packed) launch_backward(job, items, d, stream);
  if (args->most > 0 && !packed) LAUNCH((backward_any_kernel), static_cast<unsigned>(items), THREADS, 0, stream, job);
  LAUNCH((merge_kernel), static_cast<unsigned>(job.cuts + 1), THREADS, 0, stream, job);
  return slk_cuda_launched(device, "sae_backward");
}
