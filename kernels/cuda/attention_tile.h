/* What forward and backward attention share: tiles in shared memory and the two products of a warp on them.
 *
 * A warp owns 16 rows (queries, or keys in the backward for k and v) and meets COLS columns at a time. `scores` makes
 * the [16 x COLS] products of rows with rows; `accumulate` multiplies such weights with a [COLS x OUT] tile. Both come
 * in two layouts with the same members: fma_tile sums in float32, mma_tile on the tensor cores with TF32 factors.
 * Lane members: row(i) and col(j) place score [i][j], out_col(e) places element [i][e] of an accumulator; the GROUP
 * neighbouring lanes that differ in columns only hold one row together. */
#ifndef SLK_CUDA_ATTENTION_TILE_H
#define SLK_CUDA_ATTENTION_TILE_H

#include "pack.h"
#include "ptx.h"

enum { ATTENTION_ROWS = 16 };

static const float SLK_LOG2_E = 1.4426950408889634f;

static __device__ __forceinline__ int slk_lane() { return static_cast<int>(threadIdx.x) & 31; }
static __device__ __forceinline__ int slk_warp() { return static_cast<int>(threadIdx.x) / 32; }

/* Rows of a tile lie D + 4 floats apart: neighbours in a column then fall into different banks, for the 16-byte reads of
 * fma_tile and the fragments of mma_tile alike. */
template <int D, int COLS, int OUT> struct fma_tile {
  enum { ROWS = 4, SCORES = COLS / 8, WIDTH = OUT / 8, GROUP = 8, LD = D + 4, LD_SCRATCH = COLS + 4,
         SCRATCH = ATTENTION_ROWS * LD_SCRATCH, TF32 = 0 };

  static __device__ __forceinline__ int row(int i) { return slk_lane() / 8 + 4 * i; }
  static __device__ __forceinline__ int col(int j) { return slk_lane() % 8 + 8 * j; }
  static __device__ __forceinline__ int out_col(int e) { return (e / 4 * 8 + slk_lane() % 8) * 4 + e % 4; }

  /* s = A B' of the warp's rows a [16, D] and b [COLS, D]. */
  static __device__ __forceinline__ void scores(float (&s)[ROWS][SCORES], const float *a, const float *b) {
    SLK_UNROLL
    for (int i = 0; i < ROWS; i++)
      SLK_UNROLL
      for (int j = 0; j < SCORES; j++) s[i][j] = 0.0f;
    SLK_UNROLL_BY(2)
    for (int k = 0; k < D; k += 4) {
      slk_float4 x[ROWS];
      SLK_UNROLL
      for (int i = 0; i < ROWS; i++) x[i] = *reinterpret_cast<const slk_float4 *>(a + row(i) * LD + k);
      SLK_UNROLL
      for (int j = 0; j < SCORES; j++) {
        slk_float4 y = *reinterpret_cast<const slk_float4 *>(b + col(j) * LD + k);
        SLK_UNROLL
        for (int i = 0; i < ROWS; i++)
          SLK_UNROLL
          for (int e = 0; e < 4; e++) s[i][j] = fmaf(x[i].at[e], y.at[e], s[i][j]);
      }
    }
  }

  /* o += P b of weights p and b [COLS, OUT], through the warp's own scratch memory. */
  static __device__ __forceinline__ void accumulate(float (&o)[ROWS][WIDTH], const float (&p)[ROWS][SCORES],
                                                    float *scratch, const float *b) {
    SLK_UNROLL
    for (int i = 0; i < ROWS; i++)
      SLK_UNROLL
      for (int j = 0; j < SCORES; j++) scratch[row(i) * LD_SCRATCH + col(j)] = p[i][j];
    __syncwarp();
    SLK_UNROLL_BY(1)
    for (int k = 0; k < COLS; k += 4) {
      slk_float4 x[ROWS];
      SLK_UNROLL
      for (int i = 0; i < ROWS; i++) x[i] = *reinterpret_cast<const slk_float4 *>(scratch + row(i) * LD_SCRATCH + k);
      SLK_UNROLL
      for (int kk = 0; kk < 4; kk++)
        SLK_UNROLL
        for (int w = 0; w < WIDTH; w += 4) {
          slk_float4 y = *reinterpret_cast<const slk_float4 *>(b + (k + kk) * LD + out_col(w));
          SLK_UNROLL
          for (int i = 0; i < ROWS; i++)
            SLK_UNROLL
            for (int e = 0; e < 4; e++) o[i][w + e] = fmaf(x[i].at[kk], y.at[e], o[i][w + e]);
        }
    }
    __syncwarp(); /* before the scratch is written again */
  }
};

/* Tiles in shared memory are rounded to TF32 when loaded (TF32 = 1). The layout of the scores is that of an accumulator
 * fragment; as the left factor of the next product it fits when k runs over columns 2t and 2t + 1 of each eight instead
 * of t and t + 4, an order that the right factor follows and the sum does not see. */
template <int D, int COLS, int OUT> struct mma_tile {
  enum { ROWS = 2, SCORES = COLS / 4, WIDTH = OUT / 4, GROUP = 4, LD = D + 4, SCRATCH = 0, TF32 = 1 };

  static __device__ __forceinline__ int row(int i) { return slk_lane() / 4 + 8 * i; }
  static __device__ __forceinline__ int col(int j) { return j / 2 * 8 + slk_lane() % 4 * 2 + j % 2; }
  static __device__ __forceinline__ int out_col(int e) { return col(e); }

  static __device__ __forceinline__ void scores(float (&s)[ROWS][SCORES], const float *a, const float *b) {
    const int g = slk_lane() / 4, t = slk_lane() % 4;
    const float *x = a + g * LD + t, *y = b + g * LD + t;
    float d[COLS / 8][4] = {};
    SLK_UNROLL_BY(4)
    for (int k = 0; k < D; k += 8) {
      const float left[4] = { x[k], x[8 * LD + k], x[k + 4], x[8 * LD + k + 4] };
      SLK_UNROLL
      for (int n = 0; n < COLS / 8; n++) {
        const float right[2] = { y[8 * n * LD + k], y[8 * n * LD + k + 4] };
        slk_mma_tf32(d[n], left, right);
      }
    }
    SLK_UNROLL
    for (int j = 0; j < SCORES; j++) s[0][j] = d[j / 2][j % 2], s[1][j] = d[j / 2][2 + j % 2];
  }

  static __device__ __forceinline__ void accumulate(float (&o)[ROWS][WIDTH], const float (&p)[ROWS][SCORES], float *,
                                                    const float *b) {
    const int g = slk_lane() / 4, t = slk_lane() % 4;
    SLK_UNROLL
    for (int k = 0; k < COLS / 8; k++) {
      const float left[4] = { slk_to_tf32(p[0][2 * k]), slk_to_tf32(p[1][2 * k]), slk_to_tf32(p[0][2 * k + 1]),
                              slk_to_tf32(p[1][2 * k + 1]) };
      const float *y = b + (8 * k + 2 * t) * LD + g;
      SLK_UNROLL
      for (int n = 0; n < OUT / 8; n++) {
        const float right[2] = { y[8 * n], y[LD + 8 * n] };
        float d[4] = { o[0][2 * n], o[0][2 * n + 1], o[1][2 * n], o[1][2 * n + 1] };
        slk_mma_tf32(d, left, right);
        o[0][2 * n] = d[0], o[0][2 * n + 1] = d[1], o[1][2 * n] = d[2], o[1][2 * n + 1] = d[3];
      }
    }
  }
};

/* Sum or maximum over the lanes that hold one row together. */
template <int GROUP> static __device__ __forceinline__ float slk_group_sum(float v) {
  SLK_UNROLL
  for (int step = GROUP / 2; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}
template <int GROUP> static __device__ __forceinline__ float slk_group_max(float v) {
  SLK_UNROLL
  for (int step = GROUP / 2; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
  return v;
}

/* `rows` rows of a head into a tile by the whole block; zeros where there are fewer (`there`) and beyond head_dim.
 * wide: every row starts on 16 bytes and head_dim is a multiple of 4. */
template <int D, bool TF32>
static __device__ __forceinline__ void slk_load_tile(float *tile, const float *x, int64_t ld, int rows, int64_t there,
                                                     int head_dim, bool wide) {
  for (int at = static_cast<int>(threadIdx.x); at < rows * (D / 4); at += static_cast<int>(blockDim.x)) {
    const int r = at / (D / 4), c = at % (D / 4) * 4;
    slk_float4 v = {};
    if (r < there && c < head_dim) {
      const float *from = x + r * ld + c;
      if (wide) {
        v = *reinterpret_cast<const slk_float4 *>(from);
      } else {
        SLK_UNROLL
        for (int e = 0; e < 4; e++) v.at[e] = c + e < head_dim ? from[e] : 0.0f;
      }
    }
    if (TF32) {
      SLK_UNROLL
      for (int e = 0; e < 4; e++) v.at[e] = slk_to_tf32(v.at[e]);
    }
    *reinterpret_cast<slk_float4 *>(tile + r * (D + 4) + c) = v;
  }
}

/* -- On the host -- */

static inline bool slk_rows_wide(const float *x, int64_t ld, int64_t head_dim) {
  return slk_aligned(x, 16) && ld % 4 == 0 && head_dim % 4 == 0;
}

#endif
