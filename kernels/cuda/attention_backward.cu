/* Exact attention, backward, after Dao, "FlashAttention-2", arXiv 2307.08691: the weights are recomputed from the
 * log-sum-exp. Two kernels, neither with atomics, so equal calls give equal bits: one owns tiles of queries (dq), one
 * tiles of keys (dk, dv), where it sums over the queries of all heads that share the keys, in order. delta = dout . out
 * of each query passes from the first to the second through the workspace. */
#include "attention_keys.h"

template <int HEAD, int COLUMNS, int WARP_COUNT> struct backward_shape {
  enum { D = HEAD, COLS = COLUMNS, WARPS = WARP_COUNT, OWNED = WARPS * ATTENTION_ROWS };
};

/* Two tiles owned, two that pass by. */
template <class Tile, class Shape> static constexpr size_t backward_shared() {
  return sizeof(float) * (2 * (Shape::OWNED + Shape::COLS) * Tile::LD + Shape::WARPS * Tile::SCRATCH);
}

template <class Tile, class Shape>
static __device__ __forceinline__ void load(float *tile, const float *x, int64_t ld, int rows, int64_t there,
                                            const sl_attention_args &a, bool wide) {
  slk_load_tile<Shape::D, Tile::TF32 != 0>(tile, x, ld, rows, there, static_cast<int>(a.head_dim), wide);
}

/* Weight and slope of one score from its product and d weight: p = exp(score - lse), ds = p (dp - delta), times the
 * slopes of the cap and of the scale. */
static __device__ __forceinline__ void weigh(const sl_attention_args &a, bool visible, float lse, float delta, float *p,
                                             float *dp) {
  const float score = slk_score(a, *p), t = a.soft_cap > 0.0f ? score / a.soft_cap : 0.0f;
  const float weight = visible ? exp2f((score - lse) * SLK_LOG2_E) : 0.0f;
  *p = weight;
  *dp = visible ? weight * (*dp - delta) * (1.0f - t * t) * a.scale : 0.0f;
}

template <class Tile>
static __device__ __forceinline__ void store_row(float *to, const float (&o)[Tile::WIDTH], int first_column, int head_dim,
                                                 bool accumulate) {
  SLK_UNROLL
  for (int e = 0; e < Tile::WIDTH; e++) {
    const int column = first_column + Tile::out_col(e);
    if (column < head_dim) to[column] = accumulate ? to[column] + o[e] : o[e];
  }
}

/* dout . out of the warp's queries: to the workspace for the other kernel, and to the lanes that hold the rows. */
template <class Tile>
static __device__ __forceinline__ void take_deltas(const sl_attention_args &a, int64_t b, int64_t h, int64_t first,
                                                   const float *dout, float *deltas, float (&delta)[Tile::ROWS]) {
  for (int r = 0; r < ATTENTION_ROWS; r++) {
    const int64_t query = first + r;
    float sum = 0.0f;
    if (query < a.tokens) {
      const float *out = a.out + slk_head_offset(a, b, h, a.ld_out) + query * a.ld_out;
      for (int c = slk_lane(); c < a.head_dim; c += SLK_WARP) sum = fmaf(dout[r * Tile::LD + c], out[c], sum);
    }
    sum = slk_warp_sum(sum);
    SLK_UNROLL
    for (int i = 0; i < Tile::ROWS; i++)
      if (Tile::row(i) == r) delta[i] = sum;
    if (slk_lane() == 0 && query < a.tokens) deltas[query] = sum;
  }
}

/* Block: a tile of queries of one (batch, head). deltas: [batch, heads, tokens]. */
template <class Tile, class Shape>
static __global__ void __launch_bounds__(Shape::WARPS * 32)
    attention_dq_kernel(sl_attention_backward_args g, float *deltas, bool wide) {
  DYN_SHARED(float, shared);
  __shared__ unsigned char shown[Shape::COLS];
  __shared__ int counts[Shape::WARPS];
  const sl_attention_args &a = g.forward;
  float *q = shared, *dout = q + Shape::OWNED * Tile::LD, *k = dout + Shape::OWNED * Tile::LD;
  float *v = k + Shape::COLS * Tile::LD, *scratch = v + Shape::COLS * Tile::LD + slk_warp() * Tile::SCRATCH;
  const int64_t tiles = slk_ceil_div<int64_t>(a.tokens, Shape::OWNED);
  const int64_t pair = blockIdx.x / tiles, from = (tiles - 1 - blockIdx.x % tiles) * Shape::OWNED;
  const int64_t b = pair / a.heads, h = pair % a.heads, hk = h / (a.heads / slk_key_heads(a));
  const int64_t first = from + slk_warp() * ATTENTION_ROWS;
  const int64_t present = slk_count_keys(a, b, counts), reach = from + Shape::OWNED;
  const int64_t keys = a.causal && reach < present ? reach : present;
  const int own = slk_warp() * ATTENTION_ROWS * Tile::LD;

  load<Tile, Shape>(q, a.q + slk_head_offset(a, b, h, a.ld_q) + from * a.ld_q, a.ld_q, Shape::OWNED, a.tokens - from, a,
                    wide);
  load<Tile, Shape>(dout, g.dout + slk_head_offset(a, b, h, a.ld_out) + from * a.ld_out, a.ld_out, Shape::OWNED,
                    a.tokens - from, a, wide);
  __syncthreads();
  float delta[Tile::ROWS] = {}, lse[Tile::ROWS], dq[Tile::ROWS][Tile::WIDTH] = {};
  take_deltas<Tile>(a, b, h, first, dout + own, deltas + pair * a.tokens, delta);
  SLK_UNROLL
  for (int i = 0; i < Tile::ROWS; i++)
    lse[i] = first + Tile::row(i) < a.tokens ? a.lse[pair * a.tokens + first + Tile::row(i)] : INFINITY;

  for (int64_t key = slk_first_key(a, from, Shape::COLS); key < keys; key += Shape::COLS) {
    float p[Tile::ROWS][Tile::SCORES], dp[Tile::ROWS][Tile::SCORES];
    __syncthreads();
    load<Tile, Shape>(k, a.k + slk_head_offset(a, b, hk, a.ld_k) + key * a.ld_k, a.ld_k, Shape::COLS, keys - key, a, wide);
    load<Tile, Shape>(v, a.v + slk_head_offset(a, b, hk, a.ld_v) + key * a.ld_v, a.ld_v, Shape::COLS, keys - key, a, wide);
    slk_load_shown(shown, a, b, key, keys, Shape::COLS);
    __syncthreads();
    Tile::scores(p, q + own, k);
    Tile::scores(dp, dout + own, v);
    SLK_UNROLL
    for (int j = 0; j < Tile::SCORES; j++)
      SLK_UNROLL
      for (int i = 0; i < Tile::ROWS; i++) {
        const bool visible = shown[Tile::col(j)] && slk_sees(a, first + Tile::row(i), key + Tile::col(j));
        weigh(a, visible, lse[i], delta[i], &p[i][j], &dp[i][j]);
      }
    Tile::accumulate(dq, dp, scratch, k);
  }
  SLK_UNROLL
  for (int i = 0; i < Tile::ROWS; i++) {
    const int64_t query = first + Tile::row(i);
    if (query < a.tokens)
      store_row<Tile>(g.dq + slk_head_offset(a, b, h, g.ld_dq) + query * g.ld_dq, dq[i], 0,
                      static_cast<int>(a.head_dim), g.accumulate);
  }
}

/* Block: a tile of keys of one (batch, key head), and Tile::OUT columns of its gradients (blockIdx.y): wide heads are
 * cut, because both gradients live in registers. Rows are keys here, columns are queries. */
template <class Tile, class Shape>
static __global__ void __launch_bounds__(Shape::WARPS * 32)
    attention_dkv_kernel(sl_attention_backward_args g, const float *deltas, int part, bool wide) {
  DYN_SHARED(float, shared);
  __shared__ float lse[Shape::COLS], delta[Shape::COLS];
  const sl_attention_args &a = g.forward;
  float *k = shared, *v = k + Shape::OWNED * Tile::LD, *q = v + Shape::OWNED * Tile::LD;
  float *dout = q + Shape::COLS * Tile::LD, *scratch = dout + Shape::COLS * Tile::LD + slk_warp() * Tile::SCRATCH;
  const int64_t tiles = slk_ceil_div<int64_t>(a.tokens, Shape::OWNED);
  const int64_t job = blockIdx.x / tiles, from = blockIdx.x % tiles * Shape::OWNED;
  const int64_t key_heads = slk_key_heads(a), group = a.heads / key_heads, b = job / key_heads, hk = job % key_heads;
  const int64_t first = from + slk_warp() * ATTENTION_ROWS, start = a.causal ? from / Shape::COLS * Shape::COLS : 0;
  const int64_t reach = from + Shape::OWNED - 1 + a.window; /* the first query whose window is past every key here */
  const int64_t end = a.window > 0 && reach < a.tokens ? reach : a.tokens;
  const int own = slk_warp() * ATTENTION_ROWS * Tile::LD, column = static_cast<int>(blockIdx.y) * part;

  load<Tile, Shape>(k, a.k + slk_head_offset(a, b, hk, a.ld_k) + from * a.ld_k, a.ld_k, Shape::OWNED, a.tokens - from, a,
                    wide);
  load<Tile, Shape>(v, a.v + slk_head_offset(a, b, hk, a.ld_v) + from * a.ld_v, a.ld_v, Shape::OWNED, a.tokens - from, a,
                    wide);
  float dk[Tile::ROWS][Tile::WIDTH] = {}, dv[Tile::ROWS][Tile::WIDTH] = {};
  bool shown[Tile::ROWS];
  SLK_UNROLL
  for (int i = 0; i < Tile::ROWS; i++) {
    const int64_t key = first + Tile::row(i);
    shown[i] = key < a.tokens && (a.mask == NULL || a.mask[b * a.tokens + key] != 0);
  }
  for (int64_t h = hk * group; h < (hk + 1) * group; h++) {
    const int64_t rows = (b * a.heads + h) * a.tokens;
    for (int64_t query = start; query < end; query += Shape::COLS) {
      float p[Tile::ROWS][Tile::SCORES], dp[Tile::ROWS][Tile::SCORES];
      __syncthreads();
      load<Tile, Shape>(q, a.q + slk_head_offset(a, b, h, a.ld_q) + query * a.ld_q, a.ld_q, Shape::COLS,
                        a.tokens - query, a, wide);
      load<Tile, Shape>(dout, g.dout + slk_head_offset(a, b, h, a.ld_out) + query * a.ld_out, a.ld_out, Shape::COLS,
                        a.tokens - query, a, wide);
      for (int i = static_cast<int>(threadIdx.x); i < Shape::COLS; i += static_cast<int>(blockDim.x)) {
        const bool there = query + i < a.tokens;
        lse[i] = there ? a.lse[rows + query + i] : INFINITY; /* infinity: weight 0 */
        delta[i] = there ? deltas[rows + query + i] : 0.0f;
      }
      __syncthreads();
      Tile::scores(p, k + own, q);
      Tile::scores(dp, v + own, dout);
      SLK_UNROLL
      for (int j = 0; j < Tile::SCORES; j++)
        SLK_UNROLL
        for (int i = 0; i < Tile::ROWS; i++) {
          const bool visible = shown[i] && slk_sees(a, query + Tile::col(j), first + Tile::row(i));
          weigh(a, visible, lse[Tile::col(j)], delta[Tile::col(j)], &p[i][j], &dp[i][j]);
        }
      Tile::accumulate(dv, p, scratch, dout + column);
      Tile::accumulate(dk, dp, scratch, q + column);
    }
  }
  SLK_UNROLL
  for (int i = 0; i < Tile::ROWS; i++) {
    const int64_t key = first + Tile::row(i);
    if (key >= a.tokens) continue;
    const int head_dim = static_cast<int>(a.head_dim);
    store_row<Tile>(g.dk + slk_head_offset(a, b, hk, g.ld_dk) + key * g.ld_dk, dk[i], column, head_dim, g.accumulate);
    store_row<Tile>(g.dv + slk_head_offset(a, b, hk, g.ld_dv) + key * g.ld_dv, dv[i], column, head_dim, g.accumulate);
  }
}

/* -- Launches -- */

static bool takes_packs(const sl_attention_backward_args *g) {
  const sl_attention_args *a = &g->forward;
  return slk_rows_wide(a->q, a->ld_q, a->head_dim) && slk_rows_wide(a->k, a->ld_k, a->head_dim) &&
         slk_rows_wide(a->v, a->ld_v, a->head_dim) && slk_rows_wide(g->dout, a->ld_out, a->head_dim);
}

template <class Tile, class Shape> static sl_status launch_dq(sl_device *device, const sl_attention_backward_args *g) {
  const sl_attention_args *a = &g->forward;
  const size_t shared = backward_shared<Tile, Shape>();
  const int64_t blocks = a->batch * a->heads * slk_ceil_div<int64_t>(a->tokens, Shape::OWNED);
  SL_TRY(slk_cuda_allow_shared(device, attention_dq_kernel<Tile, Shape>, shared, "attention_backward"));
  LAUNCH((attention_dq_kernel<Tile, Shape>), static_cast<unsigned>(blocks), Shape::WARPS * 32, shared,
         slk_cuda_stream(device), *g, a->workspace, takes_packs(g));
  return slk_cuda_launched(device, "attention_backward");
}

template <class Tile, class Shape, int PART>
static sl_status launch_dkv(sl_device *device, const sl_attention_backward_args *g) {
  const sl_attention_args *a = &g->forward;
  const size_t shared = backward_shared<Tile, Shape>();
  const int64_t blocks = a->batch * slk_key_heads(*a) * slk_ceil_div<int64_t>(a->tokens, Shape::OWNED);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(slk_ceil_div<int64_t>(a->head_dim, PART)));
  SL_TRY(slk_cuda_allow_shared(device, attention_dkv_kernel<Tile, Shape>, shared, "attention_backward"));
  LAUNCH((attention_dkv_kernel<Tile, Shape>), grid, Shape::WARPS * 32, shared, slk_cuda_stream(device), *g,
         static_cast<const float *>(a->workspace), PART, takes_packs(g));
  return slk_cuda_launched(device, "attention_backward");
}

template <int D, int COLS, int WARPS, int PART>
static sl_status pick(sl_device *device, const sl_attention_backward_args *g) {
  typedef backward_shape<D, COLS, WARPS> shape;
  if (device->tf32) {
    SL_TRY((launch_dq<mma_tile<D, COLS, D>, shape>(device, g)));
    return launch_dkv<mma_tile<D, COLS, PART>, shape, PART>(device, g);
  }
  SL_TRY((launch_dq<fma_tile<D, COLS, D>, shape>(device, g)));
  return launch_dkv<fma_tile<D, COLS, PART>, shape, PART>(device, g);
}

static sl_status run(sl_device *device, const sl_attention_backward_args *g) {
  const int64_t width = g->forward.head_dim;
  if (width <= 64) return pick<64, 32, 4, 64>(device, g);
  if (width <= 128) return pick<128, 32, 4, 128>(device, g);
  if (width <= 256) return pick<256, 32, 2, 128>(device, g);
  return sl_fail(SL_EUNSUPPORTED, "attention on %s: heads of width %lld; at most 256", device->name, (long long)width);
}

/* As many batch entries at a time as the workspace has room for their deltas. */
sl_status slk_cuda_attention_backward(sl_device *device, const sl_attention_backward_args *args) {
  const sl_attention_args *a = &args->forward;
  if (a->batch == 0 || a->heads == 0 || a->tokens == 0 || a->head_dim == 0) return SL_OK;
  slk_cuda_enter(device);
  const int64_t room = a->workspace_size / (a->heads * a->tokens);
  if (room < 1) {
    return sl_fail(SL_EINVAL, "attention on %s: a workspace of %lld floats; %lld heads of %lld tokens need at least %lld",
                   device->name, (long long)a->workspace_size, (long long)a->heads, (long long)a->tokens,
                   (long long)(a->heads * a->tokens));
  }
  for (int64_t b = 0; b < a->batch; b += room) {
    sl_attention_backward_args part = *args;
    sl_attention_args *f = &part.forward;
    const int64_t rows = b * a->tokens;
    f->batch = slk_least(room, a->batch - b);
    f->q += rows * a->ld_q, f->k += rows * a->ld_k, f->v += rows * a->ld_v, f->out += rows * a->ld_out;
    f->lse += rows * a->heads;
    if (a->mask != NULL) f->mask += rows;
    part.dout += rows * a->ld_out;
    part.dq += rows * part.ld_dq, part.dk += rows * part.ld_dk, part.dv += rows * part.ld_dv;
    SL_TRY(run(device, &part));
  }
  return SL_OK;
}
