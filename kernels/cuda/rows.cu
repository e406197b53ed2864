/* Rows by id: embeddings, fixed-width sparse codes times a matrix, the gradient of the codes; unit rows. What is added
 * to rows by id is in scatter_rows.cu. */
#include <math.h>

#include "pack.h"

enum { ROWS = 8, AHEAD = 4 }; /* warps of a block; rows of the matrix in flight */

/* -- Embedding: a warp for each row -- */

template <int DTYPE> struct table_entry { typedef uint16_t type; };
template <> struct table_entry<SL_F32> { typedef float type; };

template <int DTYPE> static __device__ __forceinline__ float table_float(typename table_entry<DTYPE>::type x) {
  if constexpr (DTYPE == SL_BF16) return sl_bf16_to_f32(x);
  else if constexpr (DTYPE == SL_F16) return sl_f16_to_f32(x);
  else return x;
}

template <int DTYPE, int WIDTH> static __global__ void embedding_kernel(sl_embedding_args a) {
  typedef typename table_entry<DTYPE>::type entry;
  typedef slk_pack<entry, WIDTH> pack_in;
  typedef slk_pack<float, WIDTH> pack_out;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * ROWS + threadIdx.y; row < a.rows;
       row += static_cast<int64_t>(gridDim.x) * ROWS) {
    const pack_in *from = reinterpret_cast<const pack_in *>(static_cast<const entry *>(a.table) + a.ids[row] * a.n);
    pack_out *to = reinterpret_cast<pack_out *>(a.y + row * a.n);
    for (int64_t i = threadIdx.x; i < a.n / WIDTH; i += SLK_WARP) {
      pack_in in = from[i];
      pack_out out = {};
      if (a.accumulate) out = to[i];
#pragma unroll
      for (int j = 0; j < WIDTH; j++) {
        float value = table_float<DTYPE>(in.at[j]);
        out.at[j] = a.accumulate ? out.at[j] + value : value;
      }
      to[i] = out;
    }
  }
}

template <int DTYPE> static void launch_embedding(const sl_device *device, const sl_embedding_args *args) {
  enum { WIDTH = DTYPE == SL_F32 ? 4 : 8 }; /* 16 bytes of the table */
  bool packed = args->n % WIDTH == 0 && slk_packs(4, args->table, args->y) == 1;
  unsigned grid = slk_grid(device, args->rows, ROWS);
  cudaStream_t stream = slk_cuda_stream(device);
  if (packed) LAUNCH((embedding_kernel<DTYPE, WIDTH>), grid, dim3(SLK_WARP, ROWS), 0, stream, *args);
  else LAUNCH((embedding_kernel<DTYPE, 1>), grid, dim3(SLK_WARP, ROWS), 0, stream, *args);
}

extern "C" sl_status slk_cuda_embedding(sl_device *device, const sl_embedding_args *args) {
  slk_cuda_enter(device);
  if (args->rows * args->n == 0) return SL_OK;
  if (args->dtype == SL_F32) launch_embedding<SL_F32>(device, args);
  else if (args->dtype == SL_BF16) launch_embedding<SL_BF16>(device, args);
  else launch_embedding<SL_F16>(device, args);
  return slk_cuda_launched(device, "embedding");
}

/* -- Sparse codes times rows: a block for each row of y, a thread for WIDTH columns at a time -- */

/* y += the entries from j on, AHEAD of them: their rows are asked for before the first is used. */
template <int WIDTH>
static __device__ __forceinline__ void add_entries(const sl_sparse_rows_args &a, int64_t row, int64_t j, int64_t column,
                                                   slk_pack<float, WIDTH> *y) {
  typedef slk_pack<float, WIDTH> pack;
  float values[AHEAD];
  pack rows[AHEAD];
#pragma unroll
  for (int s = 0; s < AHEAD; s++) {
    values[s] = j + s < a.k ? a.values[row * a.k + j + s] : 0.0f;
    if (values[s] == 0) continue; /* padding of short codes */
    int64_t id = a.indices[row * a.k + j + s];
    rows[s] = reinterpret_cast<const pack *>(a.weight + id * a.n)[column];
  }
#pragma unroll
  for (int s = 0; s < AHEAD; s++) {
    if (values[s] == 0) continue;
#pragma unroll
    for (int c = 0; c < WIDTH; c++) y->at[c] += values[s] * rows[s].at[c];
  }
}

template <int WIDTH> static __global__ void sparse_rows_kernel(sl_sparse_rows_args a) {
  typedef slk_pack<float, WIDTH> pack;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    pack *y = reinterpret_cast<pack *>(a.y + row * a.n);
    for (int64_t i = threadIdx.x; i < a.n / WIDTH; i += blockDim.x) {
      pack sum = {};
      if (a.accumulate) sum = y[i];
      if (a.bias != nullptr) {
        pack bias = reinterpret_cast<const pack *>(a.bias)[i];
#pragma unroll
        for (int c = 0; c < WIDTH; c++) sum.at[c] += bias.at[c];
      }
      for (int64_t j = 0; j < a.k; j += AHEAD) add_entries<WIDTH>(a, row, j, i, &sum);
      y[i] = sum;
    }
  }
}

/* Threads for `packs` columns: whole warps, 256 at most. */
static int threads_for(int64_t packs) {
  return static_cast<int>(slk_least(256, slk_ceil_div<int64_t>(packs, SLK_WARP) * SLK_WARP));
}

extern "C" sl_status slk_cuda_sparse_rows(sl_device *device, const sl_sparse_rows_args *args) {
  slk_cuda_enter(device);
  if (args->rows * args->n == 0) return SL_OK;
  unsigned grid = slk_grid(device, args->rows, 1);
  cudaStream_t stream = slk_cuda_stream(device);
  if (args->n % 4 == 0 && slk_packs(4, args->weight, args->bias, args->y) == 1)
    LAUNCH((sparse_rows_kernel<4>), grid, threads_for(args->n / 4), 0, stream, *args);
  else LAUNCH((sparse_rows_kernel<1>), grid, threads_for(args->n), 0, stream, *args);
  return slk_cuda_launched(device, "sparse_rows");
}

/* -- Unit rows: a block for each -- */

static __global__ void normalize_rows_kernel(sl_normalize_rows_args a) {
  __shared__ double scratch[32];
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    float *x = a.x + row * a.n;
    double squares = 0;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x)
      squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    squares = slk_block_sum(squares, scratch);
    const float factor = 1.0f / (static_cast<float>(sqrt(squares)) + a.eps);
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x) x[i] *= factor;
  }
}

extern "C" sl_status slk_cuda_normalize_rows(sl_device *device, const sl_normalize_rows_args *args) {
  slk_cuda_enter(device);
  if (args->rows * args->n == 0) return SL_OK;
  LAUNCH(normalize_rows_kernel, slk_grid(device, args->rows, 1), threads_for(slk_ceil_div<int64_t>(args->n, 4)), 0,
         slk_cuda_stream(device), *args);
  return slk_cuda_launched(device, "normalize_rows");
}
