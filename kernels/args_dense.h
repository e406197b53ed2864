/* Argument structs of the dense kernels, first part (the second is args_train.h); see list.h. All pointers are
 * device pointers, all matrices row-major, all sizes in elements. float32 unless a dtype field says otherwise.
 * Outputs are written unless `accumulate`. A kernel whose `need` (host) is set writes the bytes of workspace that it
 * wants there and does nothing else. */
#ifndef SL_ARGS_DENSE_H
#define SL_ARGS_DENSE_H

#define SL_MAX_RANK 6

typedef enum { SL_ACT_NONE, SL_ACT_RELU, SL_ACT_GELU_ERF, SL_ACT_GELU_TANH, SL_ACT_TANH } sl_activation;

/* C[b] (+)= act(op(A[b]) op(B[b]) + bias). op(A) is [m, k], op(B) [k, n], C [m, n]; strides 0 share a matrix. */
typedef struct {
  int64_t m, n, k, batch;
  bool transpose_a, transpose_b;
  const void *a, *b;             /* dtype_ab */
  void *c;                       /* dtype_c: f32, or bf16 where a and b are bf16 */
  int64_t lda, ldb, ldc;         /* leading dimensions as stored */
  int64_t stride_a, stride_b, stride_c; /* between the matrices of a batch */
  sl_dtype dtype_ab, dtype_c;    /* f32 or bf16; sums are float32 */
  const float *bias;             /* [n] or NULL */
  sl_activation activation;
  float *pre_activation;         /* [batch, m, n] or NULL: where to keep op(A) op(B) + bias for the backward; f32 C only */
  bool accumulate;               /* not together with an activation */
} sl_gemm_args;

typedef struct { const void *x; sl_dtype dtype_x; void *y; sl_dtype dtype_y; int64_t n; } sl_cast_args;

/* A view of rank <= 6; strides in elements. */
typedef struct {
  int rank;
  int64_t shape[SL_MAX_RANK], strides[SL_MAX_RANK];
  const void *x;                 /* strided, first element */
  void *y;                       /* contiguous */
  size_t element_size;
} sl_gather_strided_args;

typedef struct {
  int rank;
  int64_t shape[SL_MAX_RANK], strides[SL_MAX_RANK];
  const void *x;                 /* contiguous */
  void *y;                       /* strided, first element */
  sl_dtype dtype;
  bool accumulate;               /* f32 only; overlapping strides (0) sum in index order */
} sl_scatter_strided_args;

/* X(id, name, f(x; p), f'(x; p) given y = f(x)). Each backend supplies the slk_ functions in its own arithmetic.
 * NaN passes through; at the kink of relu, abs and the clamps the slope is 0. */
#define SL_UNARY_LIST(X)                                                              \
  X(NEG,       "neg",       -x,                       -1.0f)                          \
  X(EXP,       "exp",       slk_exp(x),               y)                              \
  X(LOG,       "log",       logf(x),                  1.0f / x)                       \
  X(SQRT,      "sqrt",      sqrtf(x),                 0.5f / y)                       \
  X(ABS,       "abs",       fabsf(x),                 (float)((x > 0) - (x < 0)))     \
  X(SIGN,      "sign",      (float)((x > 0) - (x < 0)), 0.0f)                         \
  X(SQUARE,    "square",    x * x,                    2.0f * x)                       \
  X(RELU,      "relu",      x <= 0 ? 0.0f : x,        x > 0 ? 1.0f : 0.0f)            \
  X(GELU,      "gelu",      slk_gelu(x),              slk_gelu_slope(x))              \
  X(GELU_TANH, "gelu_tanh", slk_gelu_tanh(x),         slk_gelu_tanh_slope(x))         \
  X(TANH,      "tanh",      slk_tanh(x),              1.0f - y * y)                   \
  X(SIGMOID,   "sigmoid",   slk_sigmoid(x),           y * (1.0f - y))                 \
  X(SILU,      "silu",      slk_silu(x),              slk_silu_slope(x))              \
  X(ADD_SCALAR,"add_scalar", x + p,                   1.0f)                           \
  X(MUL_SCALAR,"mul_scalar", x * p,                   p)                              \
  X(POW_SCALAR,"pow_scalar", powf(x, p),              p * powf(x, p - 1.0f))          \
  X(CLAMP_MIN, "clamp_min", x <= p ? p : x,           x > p ? 1.0f : 0.0f)            \
  X(CLAMP_MAX, "clamp_max", x >= p ? p : x,           x < p ? 1.0f : 0.0f)            \
  X(GT_SCALAR, "gt_scalar", x > p ? 1.0f : 0.0f,      0.0f)

typedef enum {
#define X(id, name, f, df) SL_UNARY_##id,
  SL_UNARY_LIST(X)
#undef X
  SL_UNARY_COUNT
} sl_unary_op;

typedef struct { sl_unary_op op; float p; const float *x; float *y; int64_t n; } sl_unary_args;
typedef struct {
  sl_unary_op op; float p;
  const float *x, *y, *dy;       /* y = f(x) as computed forward */
  float *dx; int64_t n; bool accumulate;
} sl_unary_backward_args;

/* X(id, f(a, b)); max and min take NaN from either side. */
#define SL_BINARY_LIST(X)           \
  X(ADD, a + b)                     \
  X(SUB, a - b)                     \
  X(MUL, a * b)                     \
  X(DIV, a / b)                     \
  X(MAX, a > b || a != a ? a : b)   \
  X(MIN, a < b || a != a ? a : b)   \
  X(EQ, a == b ? 1.0f : 0.0f)       \
  X(GT, a > b ? 1.0f : 0.0f)

typedef enum {
#define X(id, f) SL_BINARY_##id,
  SL_BINARY_LIST(X)
#undef X
  SL_BINARY_COUNT
} sl_binary_op;
typedef struct {
  sl_binary_op op;
  int rank;
  int64_t shape[SL_MAX_RANK];    /* of y, contiguous */
  int64_t strides_a[SL_MAX_RANK], strides_b[SL_MAX_RANK]; /* 0 where broadcast */
  const float *a, *b;
  float *y;
} sl_binary_args;

/* x [outer, n, inner] -> y [outer, inner]; sums are taken in float64 and rounded once. */
typedef enum { SL_REDUCE_SUM, SL_REDUCE_MEAN, SL_REDUCE_MAX, SL_REDUCE_MIN } sl_reduce_op;
typedef struct {
  sl_reduce_op op;
  int64_t outer, n, inner;
  const float *x; float *y;
  int32_t *index;                /* position of the max/min (lowest on ties) or NULL */
  void *workspace; size_t workspace_bytes; size_t *need;
} sl_reduce_args;

typedef struct { const float *x; float *y; int64_t rows, n; bool log; } sl_softmax_args;
typedef struct { const float *y, *dy; float *dx; int64_t rows, n; bool log, accumulate; } sl_softmax_backward_args;

/* s = x + residual; y = (s - mean) / sqrt(var + eps) * weight + bias, population variance. */
typedef struct {
  const float *x, *residual;     /* [rows, n]; residual may be NULL */
  const float *weight, *bias;    /* [n] */
  float *y, *sum;                /* [rows, n]; sum = s or NULL */
  float *mean, *rstd;            /* [rows] or NULL */
  int64_t rows, n; float eps;
} sl_layernorm_args;
typedef struct {
  const float *s, *weight, *mean, *rstd, *dy;
  float *ds;                     /* [rows, n] */
  float *dweight, *dbias;        /* [n] or NULL */
  int64_t rows, n; bool accumulate;
  void *workspace; size_t workspace_bytes; size_t *need;
} sl_layernorm_backward_args;

/* q, out: [batch, tokens, heads * head_dim]; k, v: [batch, tokens, kv_heads * head_dim], each key head shared by
 * heads / kv_heads neighbouring query heads (Ainslie et al., arXiv 2305.13245); row strides `ld_*`; mask [batch, tokens],
 * 0 = padding key. out = softmax(cap(q k' * scale)) v per head, cap(s) = soft_cap tanh(s / soft_cap) (Gemma 2, arXiv
 * 2408.00118). Query i sees key j if the mask shows it, j <= i (causal) and i - j < window (Beltagy et al., arXiv
 * 2004.05150). A query that sees none yields zeros. */
typedef struct {
  const float *q, *k, *v; float *out;
  int64_t ld_q, ld_k, ld_v, ld_out;
  const uint8_t *mask;           /* or NULL */
  int64_t batch, tokens, heads, head_dim;
  int64_t kv_heads;              /* divides heads; 0 = heads */
  float scale; bool causal;
  float soft_cap;                /* 0 = none */
  int64_t window;                /* 0 = none */
  float *lse;                    /* [batch, heads, tokens] log-sum-exp for the backward, or NULL */
  float *pattern;                /* [batch, heads, tokens, tokens] softmax weights, or NULL */
  float *workspace; int64_t workspace_size; /* floats; sl_attention_workspace */
} sl_attention_args;
typedef struct {
  sl_attention_args forward;     /* as in the forward; out and lse filled; workspace for the backward; pattern unused */
  const float *dout;             /* [batch, tokens, heads * head_dim], row stride ld_out */
  float *dq, *dk, *dv;           /* shaped as q, k, v; row strides ld_dq, ld_dk, ld_dv */
  int64_t ld_dq, ld_dk, ld_dv;
  bool accumulate;
} sl_attention_backward_args;

/* Query rows that one worker handles at a time: a tile of scores [rows, tokens] that stays in its cache. */
static inline int64_t sl_attention_block(int64_t tokens) {
  int64_t rows = tokens > 0 ? 32768 / tokens : 128;
  return rows < 16 ? 16 : rows > 128 ? 128 : rows;
}
/* Floats of workspace for `workers` threads (at least 1; more than the device has is harmless, fewer limits it). */
static inline int64_t sl_attention_workspace(int64_t tokens, int64_t workers, bool backward) {
  int64_t tile = sl_attention_block(tokens) * (tokens + 1);
  return workers * (backward ? 2 * tile : tile);
}

#endif
