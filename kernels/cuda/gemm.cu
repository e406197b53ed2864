/* Matrix products: the library multiplies (lib.h), one pass of our own does what its epilogues do not.
 *
 * float32 results are finished in place. bf16 results with a bias or an activation are taken in float32 a slice of rows
 * at a time, through scratch memory that stays in L2, and rounded once. */
#include <cuda_bf16.h>

#include "lib.h"
#include "math.h"
#include "pack.h"

/* -- Epilogue: pre (+ bias) -> activation -- */

enum { FINISH_THREADS = 256, FINISH_ROWS = 8 };

/* One slice of a product. Matrices are [rows, n]; `batch` many, `stride_*` apart. */
struct finish_args {
  const float *in;   /* the raw product */
  float *pre;        /* where to keep in + bias, or NULL; may be in */
  void *out;         /* float or bf16; may be in */
  const float *bias; /* [n] or NULL */
  int64_t rows, n, ld_in, ld_pre, ld_out, stride_in, stride_pre, stride_out;
  sl_activation activation;
  bool add;          /* to what out holds; without an activation */
};

static __device__ __forceinline__ float activate(sl_activation activation, float x) {
  switch (activation) {
  case SL_ACT_RELU: return x <= 0.0f ? 0.0f : x; /* written so that NaN passes */
  case SL_ACT_GELU_ERF: return slk_gelu(x);
  case SL_ACT_GELU_TANH: return slk_gelu_tanh(x);
  case SL_ACT_TANH: return slk_tanh(x);
  default: return x;
  }
}

static __device__ __forceinline__ float as_float(float v) { return v; }
static __device__ __forceinline__ float as_float(__nv_bfloat16 v) { return __bfloat162float(v); }
static __device__ __forceinline__ void store(float *p, float v) { *p = v; }
static __device__ __forceinline__ void store(__nv_bfloat16 *p, float v) { *p = __float2bfloat16(v); }

/* WIDTH neighbours a thread: 4 where every row of every matrix starts on a pack, else 1. Grid: columns, rows, batch. */
template <typename Out, int WIDTH>
static __global__ void __launch_bounds__(FINISH_THREADS) finish_kernel(finish_args a) {
  typedef slk_pack<float, WIDTH> in_pack;
  typedef slk_pack<Out, WIDTH> out_pack;
  int64_t column = (static_cast<int64_t>(blockIdx.x) * FINISH_THREADS + threadIdx.x) * WIDTH;
  if (column >= a.n) return;
  int64_t first = static_cast<int64_t>(blockIdx.y) * FINISH_ROWS, last = first + FINISH_ROWS, b = blockIdx.z;
  float bias[WIDTH] = {};
  if (a.bias != NULL) {
#pragma unroll
    for (int i = 0; i < WIDTH; i++) bias[i] = a.bias[column + i];
  }
  for (int64_t r = first; r < last && r < a.rows; r++) {
    in_pack x = *reinterpret_cast<const in_pack *>(a.in + b * a.stride_in + r * a.ld_in + column);
    out_pack *to = reinterpret_cast<out_pack *>(static_cast<Out *>(a.out) + b * a.stride_out + r * a.ld_out + column);
    out_pack y;
    if (a.add) y = *to;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
      x.at[i] += bias[i];
      store(&y.at[i], a.add ? x.at[i] + as_float(y.at[i]) : activate(a.activation, x.at[i]));
    }
    if (a.pre != NULL) *reinterpret_cast<in_pack *>(a.pre + b * a.stride_pre + r * a.ld_pre + column) = x;
    *to = y;
  }
}

/* C with nothing to sum: what is there already when adding, else zero; then the bias and the activation. */
template <typename Out> static __global__ void __launch_bounds__(FINISH_THREADS) empty_kernel(finish_args a) {
  int64_t column = static_cast<int64_t>(blockIdx.x) * FINISH_THREADS + threadIdx.x;
  if (column >= a.n) return;
  float bias = a.bias != NULL ? a.bias[column] : 0.0f;
  for (int64_t r = blockIdx.y; r < a.rows; r += gridDim.y) {
    Out *out = static_cast<Out *>(a.out) + blockIdx.z * a.stride_out + r * a.ld_out + column;
    if (a.pre != NULL) a.pre[blockIdx.z * a.stride_pre + r * a.ld_pre + column] = bias;
    store(out, activate(a.activation, a.add ? as_float(*out) + bias : bias));
  }
}

/* -- Launches: a grid has at most 65,535 blocks along y and z -- */

enum { MAX_GRID = 65535 };

/* Four at a time: needs aligned matrices, rows and row lengths, bf16 results too (8 bytes). */
template <typename Out> static bool takes_packs(const finish_args &a) {
  int64_t lengths = a.n | a.ld_in | a.ld_out | a.stride_in | a.stride_out;
  if (a.pre != NULL) lengths |= a.ld_pre | a.stride_pre;
  return lengths % 4 == 0 && slk_aligned(a.in, 16) && slk_aligned(a.pre, 16) && slk_aligned(a.out, 4 * sizeof(Out));
}

template <typename Out> static void launch_finish(cudaStream_t stream, const finish_args &a, int64_t batch) {
  bool wide = takes_packs<Out>(a);
  int64_t per_block = FINISH_THREADS * (wide ? 4 : 1);
  for (int64_t from = 0; from < batch; from += MAX_GRID) {
    for (int64_t row = 0; row < a.rows; row += static_cast<int64_t>(MAX_GRID) * FINISH_ROWS) {
      finish_args part = a;
      part.rows = slk_least(a.rows - row, static_cast<int64_t>(MAX_GRID) * FINISH_ROWS);
      part.in += from * a.stride_in + row * a.ld_in;
      if (a.pre != NULL) part.pre += from * a.stride_pre + row * a.ld_pre;
      part.out = static_cast<Out *>(a.out) + from * a.stride_out + row * a.ld_out;
      dim3 grid(static_cast<unsigned>(slk_ceil_div(a.n, per_block)),
                static_cast<unsigned>(slk_ceil_div(part.rows, static_cast<int64_t>(FINISH_ROWS))),
                static_cast<unsigned>(slk_least(batch - from, MAX_GRID)));
      if (wide) {
        LAUNCH((finish_kernel<Out, 4>), grid, FINISH_THREADS, 0, stream, part);
      } else {
        LAUNCH((finish_kernel<Out, 1>), grid, FINISH_THREADS, 0, stream, part);
      }
    }
  }
}

template <typename Out>
static void launch_empty(cudaStream_t stream, const finish_args &a, int64_t batch) {
  for (int64_t from = 0; from < batch; from += MAX_GRID) {
    finish_args part = a;
    if (a.pre != NULL) part.pre += from * a.stride_pre;
    part.out = static_cast<Out *>(a.out) + from * a.stride_out;
    dim3 grid(static_cast<unsigned>(slk_ceil_div(a.n, static_cast<int64_t>(FINISH_THREADS))),
              static_cast<unsigned>(slk_least(a.rows, MAX_GRID)), static_cast<unsigned>(slk_least(batch - from, MAX_GRID)));
    LAUNCH((empty_kernel<Out>), grid, FINISH_THREADS, 0, stream, part);
  }
}

static finish_args describe(const sl_gemm_args *args) {
  finish_args a = {};
  a.in = static_cast<const float *>(args->c);
  a.out = args->c;
  a.bias = args->bias;
  a.rows = args->m, a.n = args->n;
  a.ld_in = a.ld_out = args->ldc;
  a.stride_in = a.stride_out = args->stride_c;
  a.activation = args->activation;
  a.add = args->accumulate;
  if (args->pre_activation != NULL) {
    a.in = a.pre = args->pre_activation;
    a.ld_in = a.ld_pre = args->n;
    a.stride_in = a.stride_pre = args->m * args->n;
  }
  return a;
}

/* -- Products -- */

static sl_status empty_product(sl_device *device, const sl_gemm_args *args) {
  finish_args a = describe(args);
  if (args->dtype_c == SL_BF16) {
    launch_empty<__nv_bfloat16>(slk_cuda_stream(device), a, args->batch);
  } else {
    launch_empty<float>(slk_cuda_stream(device), a, args->batch);
  }
  return slk_cuda_launched(device, "gemm");
}

/* The raw product into C, or where the pre-activation is kept, then one pass over it. */
static sl_status product_f32(sl_device *device, const sl_gemm_args *args) {
  sl_gemm_args plain = *args;
  plain.bias = NULL, plain.activation = SL_ACT_NONE, plain.pre_activation = NULL;
  if (args->pre_activation != NULL) {
    plain.c = args->pre_activation;
    plain.ldc = args->n, plain.stride_c = args->m * args->n;
  }
  SL_TRY(slk_lib_gemm(device, &plain, device->tf32));
  finish_args a = describe(args);
  a.add = false; /* the product has added already */
  launch_finish<float>(slk_cuda_stream(device), a, args->batch);
  return slk_cuda_launched(device, "gemm");
}

/* bf16 results with an epilogue: `rows` rows of one matrix at a time. */
static sl_status product_bf16(sl_device *device, const sl_gemm_args *args) {
  void *scratch;
  SL_TRY(slk_cuda_scratch(device, &scratch));
  const int64_t room = SLK_SCRATCH_BYTES / static_cast<int64_t>(sizeof(float)) / args->n;
  if (room < 1) {
    return sl_fail(SL_EUNSUPPORTED, "gemm on %s: %lld columns of bf16 results with a bias or activation; at most %lld",
                   device->name, (long long)args->n, (long long)(SLK_SCRATCH_BYTES / sizeof(float)));
  }
  for (int64_t b = 0; b < args->batch; b++) {
    for (int64_t row = 0; row < args->m; row += room) {
      sl_gemm_args part = *args;
      part.m = slk_least(args->m - row, room), part.batch = 1;
      part.a = static_cast<const uint16_t *>(args->a) + b * args->stride_a + (args->transpose_a ? row : row * args->lda);
      part.b = static_cast<const uint16_t *>(args->b) + b * args->stride_b;
      part.c = scratch, part.ldc = args->n, part.dtype_c = SL_F32;
      part.bias = NULL, part.activation = SL_ACT_NONE, part.accumulate = false;
      SL_TRY(slk_lib_gemm(device, &part, device->tf32));
      finish_args a = describe(args);
      a.in = static_cast<const float *>(scratch), a.ld_in = args->n;
      a.out = static_cast<__nv_bfloat16 *>(args->c) + b * args->stride_c + row * args->ldc;
      a.rows = part.m;
      launch_finish<__nv_bfloat16>(slk_cuda_stream(device), a, 1);
      SL_TRY(slk_cuda_launched(device, "gemm"));
    }
  }
  return SL_OK;
}

sl_status slk_cuda_gemm(sl_device *device, const sl_gemm_args *args) {
  if (args->accumulate && (args->activation != SL_ACT_NONE || args->pre_activation != NULL)) {
    return sl_fail(SL_EINVAL, "gemm on %s: accumulate and an activation exclude each other", device->name);
  }
  if (args->m == 0 || args->n == 0 || args->batch == 0) return SL_OK;
  slk_cuda_enter(device);
  if (args->k == 0) return empty_product(device, args);
  const bool plain = args->bias == NULL && args->activation == SL_ACT_NONE && args->pre_activation == NULL;
  if (plain) return slk_lib_gemm(device, args, device->tf32);
  if (slk_lib_gemm_fuses(args)) {
    sl_status status = slk_lib_gemm(device, args, device->tf32);
    if (status != SL_EUNSUPPORTED) return status;
  }
  return args->dtype_c == SL_F32 ? product_f32(device, args) : product_bf16(device, args);
}
