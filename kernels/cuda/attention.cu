/* Exact attention, forward, after Dao, "FlashAttention-2", arXiv 2307.08691: a block holds a tile of queries, keys and
 * values pass by in tiles, and a running maximum and sum take the place of the [tokens, tokens] matrix. The softmax
 * weights are written only when asked for (`pattern`), in a second sweep over the keys. */
#include "attention_keys.h"

template <int HEAD, int COLUMNS, int WARP_COUNT> struct forward_shape {
  enum { D = HEAD, COLS = COLUMNS, WARPS = WARP_COUNT, QUERIES = WARPS * ATTENTION_ROWS };
};

template <class Tile, class Shape> static constexpr size_t forward_shared() {
  return sizeof(float) * ((Shape::QUERIES + 2 * Shape::COLS) * Tile::LD + Shape::WARPS * Tile::SCRATCH);
}

/* Weights of one tile: scores -> exp(score - shift), zero where hidden; first the running maximum moves. */
template <class Tile> struct softmax_rows {
  float most[Tile::ROWS], sum[Tile::ROWS]; /* sum: of this lane's columns only, until finish */
};

/* Scaled, capped and hidden scores in place of products. `first`: the warp's first query. */
template <class Tile>
static __device__ __forceinline__ void hide(const sl_attention_args &a, float (&s)[Tile::ROWS][Tile::SCORES],
                                            const unsigned char *shown, int64_t first, int64_t key) {
  SLK_UNROLL
  for (int j = 0; j < Tile::SCORES; j++) {
    const bool seen = shown[Tile::col(j)] != 0;
    SLK_UNROLL
    for (int i = 0; i < Tile::ROWS; i++) {
      const bool visible = seen && slk_sees(a, first + Tile::row(i), key + Tile::col(j));
      s[i][j] = visible ? slk_score(a, s[i][j]) : -INFINITY;
    }
  }
}

template <class Tile>
static __device__ __forceinline__ void weigh(softmax_rows<Tile> &rows, float (&s)[Tile::ROWS][Tile::SCORES],
                                             float (&o)[Tile::ROWS][Tile::WIDTH]) {
  SLK_UNROLL
  for (int i = 0; i < Tile::ROWS; i++) {
    float most = rows.most[i];
    SLK_UNROLL
    for (int j = 0; j < Tile::SCORES; j++) most = fmaxf(most, s[i][j]);
    most = slk_group_max<Tile::GROUP>(most);
    const float shift = most == -INFINITY ? 0.0f : most; /* nothing seen yet: every weight becomes 0 */
    const float shrink = exp2f((rows.most[i] - shift) * SLK_LOG2_E);
    float sum = 0.0f;
    SLK_UNROLL
    for (int j = 0; j < Tile::SCORES; j++) sum += s[i][j] = exp2f((s[i][j] - shift) * SLK_LOG2_E);
    rows.most[i] = most;
    rows.sum[i] = rows.sum[i] * shrink + sum;
    SLK_UNROLL
    for (int e = 0; e < Tile::WIDTH; e++) o[i][e] *= shrink;
  }
}

/* The weights of the block's queries over every key, from the log-sum-exp of their rows. */
template <class Tile, class Shape>
static __device__ __forceinline__ void write_pattern(const sl_attention_args &a, int64_t pair, int64_t from,
                                                     int64_t keys, const float (&lse)[Tile::ROWS], const float *q,
                                                     float *k, unsigned char *shown, bool wide) {
  const int64_t b = pair / a.heads, h = pair % a.heads, hk = h / (a.heads / slk_key_heads(a));
  const int64_t first = from + slk_warp() * ATTENTION_ROWS;
  for (int64_t key = 0; key < a.tokens; key += Shape::COLS) {
    float s[Tile::ROWS][Tile::SCORES];
    __syncthreads();
    slk_load_tile<Shape::D, Tile::TF32 != 0>(k, a.k + slk_head_offset(a, b, hk, a.ld_k) + key * a.ld_k, a.ld_k,
                                             Shape::COLS, keys - key, static_cast<int>(a.head_dim), wide);
    slk_load_shown(shown, a, b, key, keys, Shape::COLS);
    __syncthreads();
    Tile::scores(s, q + slk_warp() * ATTENTION_ROWS * Tile::LD, k);
    hide<Tile>(a, s, shown, first, key);
    SLK_UNROLL
    for (int i = 0; i < Tile::ROWS; i++) {
      const int64_t query = first + Tile::row(i);
      SLK_UNROLL
      for (int j = 0; j < Tile::SCORES; j++) {
        const int64_t column = key + Tile::col(j);
        if (query < a.tokens && column < a.tokens)
          a.pattern[(pair * a.tokens + query) * a.tokens + column] = exp2f((s[i][j] - lse[i]) * SLK_LOG2_E);
      }
    }
  }
}

/* Block: a tile of queries of one (batch, head); the last tiles first, since causal ones see most keys. */
template <class Tile, class Shape>
static __global__ void __launch_bounds__(Shape::WARPS * 32) attention_kernel(sl_attention_args a, bool wide) {
  DYN_SHARED(float, shared);
  __shared__ unsigned char shown[Shape::COLS];
  __shared__ int counts[Shape::WARPS];
  float *q = shared, *k = q + Shape::QUERIES * Tile::LD, *v = k + Shape::COLS * Tile::LD;
  float *scratch = v + Shape::COLS * Tile::LD + slk_warp() * Tile::SCRATCH;
  const int64_t tiles = slk_ceil_div<int64_t>(a.tokens, Shape::QUERIES);
  const int64_t pair = blockIdx.x / tiles, from = (tiles - 1 - blockIdx.x % tiles) * Shape::QUERIES;
  const int64_t b = pair / a.heads, h = pair % a.heads, hk = h / (a.heads / slk_key_heads(a));
  const int64_t first = from + slk_warp() * ATTENTION_ROWS;
  const int head_dim = static_cast<int>(a.head_dim);
  const int64_t present = slk_count_keys(a, b, counts), reach = from + Shape::QUERIES;
  const int64_t keys = a.causal && reach < present ? reach : present;

  slk_load_tile<Shape::D, Tile::TF32 != 0>(q, a.q + slk_head_offset(a, b, h, a.ld_q) + from * a.ld_q, a.ld_q,
                                           Shape::QUERIES, a.tokens - from, head_dim, wide);
  softmax_rows<Tile> rows;
  float o[Tile::ROWS][Tile::WIDTH] = {};
  SLK_UNROLL
  for (int i = 0; i < Tile::ROWS; i++) rows.most[i] = -INFINITY, rows.sum[i] = 0.0f;
  for (int64_t key = slk_first_key(a, from, Shape::COLS); key < keys; key += Shape::COLS) {
    float s[Tile::ROWS][Tile::SCORES];
    __syncthreads(); /* the tile before is read */
    slk_load_tile<Shape::D, Tile::TF32 != 0>(k, a.k + slk_head_offset(a, b, hk, a.ld_k) + key * a.ld_k, a.ld_k,
                                             Shape::COLS, keys - key, head_dim, wide);
    slk_load_tile<Shape::D, Tile::TF32 != 0>(v, a.v + slk_head_offset(a, b, hk, a.ld_v) + key * a.ld_v, a.ld_v,
                                             Shape::COLS, keys - key, head_dim, wide);
    slk_load_shown(shown, a, b, key, keys, Shape::COLS);
    __syncthreads();
    Tile::scores(s, q + slk_warp() * ATTENTION_ROWS * Tile::LD, k);
    hide<Tile>(a, s, shown, first, key);
    weigh<Tile>(rows, s, o);
    Tile::accumulate(o, s, scratch, v);
  }

  float lse[Tile::ROWS];
  SLK_UNROLL
  for (int i = 0; i < Tile::ROWS; i++) {
    const int64_t query = first + Tile::row(i);
    const float sum = slk_group_sum<Tile::GROUP>(rows.sum[i]);
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    lse[i] = sum == 0.0f ? INFINITY : rows.most[i] + logf(sum); /* infinity: every weight recomputes to 0 */
    if (query >= a.tokens) continue;
    if (a.lse != NULL && slk_lane() % Tile::GROUP == 0) a.lse[pair * a.tokens + query] = lse[i];
    float *out = a.out + slk_head_offset(a, b, h, a.ld_out) + query * a.ld_out;
    SLK_UNROLL
    for (int e = 0; e < Tile::WIDTH; e++)
      if (Tile::out_col(e) < head_dim) out[Tile::out_col(e)] = o[i][e] * inverse;
  }
  if (a.pattern != NULL) write_pattern<Tile, Shape>(a, pair, from, keys, lse, q, k, shown, wide);
}

/* -- Launch -- */

template <class Tile, class Shape> static sl_status launch(sl_device *device, const sl_attention_args *a) {
  const size_t shared = forward_shared<Tile, Shape>();
  const bool wide = slk_rows_wide(a->q, a->ld_q, a->head_dim) && slk_rows_wide(a->k, a->ld_k, a->head_dim) &&
                    slk_rows_wide(a->v, a->ld_v, a->head_dim);
  const int64_t blocks = a->batch * a->heads * slk_ceil_div<int64_t>(a->tokens, Shape::QUERIES);
  SL_TRY(slk_cuda_allow_shared(device, attention_kernel<Tile, Shape>, shared, "attention"));
  LAUNCH((attention_kernel<Tile, Shape>), static_cast<unsigned>(blocks), Shape::WARPS * 32, shared,
         slk_cuda_stream(device), *a, wide);
  return slk_cuda_launched(device, "attention");
}

template <int D, int COLS> static sl_status pick(sl_device *device, const sl_attention_args *a) {
  typedef forward_shape<D, COLS, 4> shape;
  return device->tf32 ? launch<mma_tile<D, COLS, D>, shape>(device, a) : launch<fma_tile<D, COLS, D>, shape>(device, a);
}

sl_status slk_cuda_attention(sl_device *device, const sl_attention_args *args) {
  if (args->batch == 0 || args->heads == 0 || args->tokens == 0 || args->head_dim == 0) return SL_OK;
  slk_cuda_enter(device);
  if (args->head_dim <= 64) return pick<64, 64>(device, args);
  if (args->head_dim <= 128) return pick<128, 32>(device, args);
  if (args->head_dim <= 256) return pick<256, 32>(device, args);
  return sl_fail(SL_EUNSUPPORTED, "attention on %s: heads of width %lld; at most 256", device->name,
                 (long long)args->head_dim);
}
