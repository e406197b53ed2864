/* Small kernels in the shapes that the real ones take, each with bugs that a template flag lets in.
 *
 * test_cuda_host.cpp shows that the correct ones give the same bits under every schedule and that every bug is
 * found. */
#ifndef CUDA_HOST_SELFTEST_KERNELS_H
#define CUDA_HOST_SELFTEST_KERNELS_H

enum Bug {
  CORRECT,
  NO_BARRIER,       /* __syncthreads left out */
  NO_SYNCWARP,      /* __syncwarp left out */
  NOT_ATOMIC,       /* plain addition where threads meet */
  GLOBAL_OVERRUN,   /* one element beyond a buffer */
  STATIC_OVERRUN,   /* one element beyond a static shared array */
  DYNAMIC_OVERRUN,  /* one element beyond dynamic shared memory */
  MISALIGNED,       /* float4 at an address that is no multiple of 16 */
  UNINITIALISED,    /* shared memory read before it is written */
  EARLY_EXIT,       /* some threads return before a barrier */
  DIVERGENT,        /* two barriers, one per branch */
  LANE_MISSING,     /* a lane of the mask never comes */
  LANE_RETURNED,    /* reads from a lane that has returned */
  MASK_WITHOUT_ME,  /* the mask lacks the caller */
  BLOCKS_RACE,      /* blocks write the same place */
  NO_CP_ASYNC_WAIT  /* an asynchronous copy is read before it is waited for */
};

/* Sum of each row of x [rows, n]: one block a row, shuffles, then shared memory. */
template <Bug bug> static __global__ void row_sum(const float *x, float *out, int n) {
  __shared__ float part[32];
  int t = static_cast<int>(threadIdx.x), lane = t & 31, warps = static_cast<int>(blockDim.x) / 32;
  const float *row = x + static_cast<size_t>(blockIdx.x) * static_cast<size_t>(n);
  if (bug == EARLY_EXIT && t >= 64) return;
  float sum = 0.0f;
  for (int i = t; i < n; i += static_cast<int>(blockDim.x)) sum += row[i];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  float *to = part; /* a pointer, so that not UBSan's index check but ASan's redzone has to see it */
  if (lane == 0) to[bug == STATIC_OVERRUN ? t / 32 + 32 : t / 32] = sum;
  if (bug != NO_BARRIER) __syncthreads();
  if (t >= 32) return;
  int used = bug == UNINITIALISED ? warps + 1 : warps;
  sum = lane < used ? part[lane] : 0.0f;
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, static_cast<unsigned>(step));
  if (lane == 0) out[bug == GLOBAL_OVERRUN ? blockIdx.x + 1 : blockIdx.x] = sum;
}

/* Inclusive prefix sums within each block of blockDim.x numbers, in dynamic shared memory. */
template <Bug bug> static __global__ void block_scan(const int *x, int *out) {
  DYN_SHARED(int, s);
  unsigned t = threadIdx.x, at = blockIdx.x * blockDim.x + t;
  s[bug == DYNAMIC_OVERRUN ? t + 1 : t] = x[at];
  __syncthreads();
  for (unsigned step = 1; step < blockDim.x; step *= 2) {
    int add = t >= step ? s[t - step] : 0;
    if (bug == DIVERGENT && t < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
    s[t] += add;
    if (bug != NO_BARRIER) __syncthreads();
  }
  out[at] = s[t];
}

/* out [columns, rows] = x [rows, columns] transposed, tiles of 32 x 32 by blocks of 32 x 8 on a grid with two axes. */
static __global__ void transpose(const float *x, float *out, int rows, int columns) {
  __shared__ float tile[32][33];
  int column = static_cast<int>(blockIdx.x * 32 + threadIdx.x), row0 = static_cast<int>(blockIdx.y * 32);
  for (int i = static_cast<int>(threadIdx.y); i < 32; i += 8)
    if (row0 + i < rows && column < columns) tile[i][threadIdx.x] = x[(row0 + i) * columns + column];
  __syncthreads();
  int row = row0 + static_cast<int>(threadIdx.x), column0 = static_cast<int>(blockIdx.x * 32);
  for (int i = static_cast<int>(threadIdx.y); i < 32; i += 8)
    if (column0 + i < columns && row < rows) out[(column0 + i) * rows + row] = tile[threadIdx.x][i];
}

/* Counts of the 4-bit digit of each key: per warp with a match, then per block in shared memory, then global. */
template <Bug bug> static __global__ void histogram(const unsigned *keys, unsigned *counts, int n, int shift) {
  __shared__ unsigned local[16];
  unsigned t = threadIdx.x;
  if (t < 16 && bug != UNINITIALISED) local[t] = 0;
  __syncthreads();
  int i = static_cast<int>(blockIdx.x * blockDim.x + t);
  unsigned digit = i < n ? (keys[i] >> shift) & 15u : 16u;
  unsigned peers = __match_any_sync(0xffffffffu, digit);
  if (digit < 16 && __ffs(static_cast<int>(peers)) - 1 == static_cast<int>(t & 31)) {
    unsigned many = static_cast<unsigned>(__popc(peers));
    if (bug == NOT_ATOMIC) {
      local[digit] += many;
    } else {
      atomicAdd(&local[digit], many);
    }
  }
  __syncthreads();
  if (t < 16) atomicAdd(&counts[t], local[t]);
}

/* Reverses each group of 32 through shared memory; only a warp's own lanes meet. */
template <Bug bug> static __global__ void warp_reverse(const float *x, float *out) {
  __shared__ float s[256];
  unsigned t = threadIdx.x, at = blockIdx.x * blockDim.x + t;
  unsigned mask = bug == MASK_WITHOUT_ME ? 0xfffffffeu : 0xffffffffu;
  s[t] = x[at];
  if (bug != NO_SYNCWARP) __syncwarp();
  float v = s[t ^ 31u];
  if (bug == LANE_MISSING && (t & 31u) == 7) {
    __syncthreads();
  }
  if (bug == LANE_RETURNED && (t & 31u) == 31) return;
  v = __shfl_sync(mask, v, static_cast<int>(t & 31u) == 0 ? 31 : static_cast<int>(t & 31u));
  out[at] = v;
}

/* out = 2 x, four at a time. */
template <Bug bug> static __global__ void twice(const float *x, float *out, int n) {
  int i = 4 * static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) + (bug == MISALIGNED ? 1 : 0);
  if (i + 4 > n) return;
  float4 v = *reinterpret_cast<const float4 *>(x + i);
  v.x *= 2, v.y *= 2, v.z *= 2, v.w *= 2;
  *reinterpret_cast<float4 *>(out + i) = v;
}

/* x[i] += 1, after a while: half of a pair in which the other half reads. */
static __global__ void add_one(float *x, int n) {
  int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] += 1.0f;
}

/* The number of the block that comes last; correct with an atomic. */
template <Bug bug> static __global__ void last_block(unsigned *out) {
  if (threadIdx.x) return;
  if (bug == BLOCKS_RACE) {
    *out = blockIdx.x;
  } else {
    atomicMax(out, blockIdx.x);
  }
}

/* Each block hands in a partial sum; the one that comes last adds them up in order (__threadfence, atomic ticket). */
static __global__ void sum_by_last(const float *x, float *partial, unsigned *ticket, float *out) {
  __shared__ bool last;
  float sum = x[blockIdx.x * 32 + threadIdx.x];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last || threadIdx.x) return;
  sum = 0.0f;
  for (unsigned i = 0; i < gridDim.x; i++) sum += partial[i];
  *out = sum;
}

/* out [16, 8] = a [16, 16] b [16, 8] in bf16 by one warp: cp.async, ldmatrix, mma. b is given as [8, 16]. */
template <Bug bug> static __global__ void small_product(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *out) {
  DYN_SHARED(__nv_bfloat16, s); /* a [16][16], b [8][16] */
  unsigned lane = threadIdx.x;
  slk_cuda_host_cp_async(s + 8 * lane, a + 8 * lane, 16, 16);
  if (lane < 16) slk_cuda_host_cp_async(s + 256 + 8 * lane, b + 8 * lane, 16, 16);
  slk_cuda_host_cp_async_commit();
  if (bug != NO_CP_ASYNC_WAIT) slk_cuda_host_cp_async_wait(0);
  __syncthreads();
  unsigned fa[4], fb[2];
  slk_cuda_host_ldmatrix(fa, 4, false, s + 16 * (lane % 16) + 8 * (lane / 16));
  slk_cuda_host_ldmatrix(fb, 2, false, s + 256 + 16 * (lane % 8) + 8 * (lane / 8 % 2));
  float c[4] = {0, 0, 0, 0};
  slk_cuda_host_mma_bf16(c, fa, fb, c);
  for (unsigned i = 0; i < 4; i++) out[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = c[i];
}

#endif
