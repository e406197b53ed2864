/* Argument structs of the kernels that decoder-only transformers add: root-mean-square norm, rotary positions, gated
 * activations. Conventions as in args_dense.h. Attention with shared key heads, soft caps and windows is there. */
#ifndef SL_ARGS_TRANSFORMER_H
#define SL_ARGS_TRANSFORMER_H

/* s = x + residual; y = s / sqrt(mean(s^2) + eps) * (weight + offset). Zhang & Sennrich, arXiv 1910.07467; offset 0 is
 * Llama's form, 1 Gemma's. */
typedef struct {
  const float *x, *residual;     /* [rows, n]; residual may be NULL */
  const float *weight;           /* [n] */
  float *y, *sum;                /* [rows, n]; sum = s or NULL */
  float *rrms;                   /* [rows] 1 / sqrt(mean(s^2) + eps), or NULL */
  int64_t rows, n; float eps, offset;
} sl_rms_norm_args;
typedef struct {
  const float *s, *weight, *rrms, *dy;
  float *ds;                     /* [rows, n] or NULL */
  float *dweight;                /* [n] or NULL */
  int64_t rows, n; float offset; bool accumulate;
  void *workspace; size_t workspace_bytes; size_t *need;
} sl_rms_norm_backward_args;

/* Rotates pairs of the first `width` columns of each head by position times frequency and copies the others (Su et al.,
 * "RoFormer", arXiv 2104.09864): (a, b) -> (a cos - b sin, b cos + a sin). Pair i < width / 2 is columns (i, i + width / 2),
 * as Llama and GPT-NeoX store them, or (2 i, 2 i + 1) if `adjacent`, as GPT-J does. */
typedef struct {
  const float *x; float *y;      /* [batch, tokens, heads * head_dim]; y = x is fine */
  int64_t ld_x, ld_y;            /* row strides */
  int64_t batch, tokens, heads, head_dim;
  int64_t width;                 /* even, at most head_dim */
  bool adjacent;
  bool inverse;                  /* by the negative angle: undoes the rotation, and takes dy to dx */
  double base;                   /* pair i turns by base^(-2 i / width) a position */
  const float *frequencies;      /* [width / 2] in place of base, or NULL */
  const int32_t *positions;      /* [tokens] or [batch, tokens]; NULL = 0 .. tokens - 1 */
  int64_t positions_stride;      /* from one batch entry to the next; 0 = all alike */
} sl_rotary_args;

/* X(id, name, f(x), f'(x)): what a gate goes through. */
#define SL_GATE_LIST(X)                                              \
  X(GELU,      "gelu",      slk_gelu(x),      slk_gelu_slope(x))      \
  X(GELU_TANH, "gelu_tanh", slk_gelu_tanh(x), slk_gelu_tanh_slope(x)) \
  X(SILU,      "silu",      slk_silu(x),      slk_silu_slope(x))      \
  X(RELU,      "relu",      x <= 0 ? 0.0f : x, x > 0 ? 1.0f : 0.0f)

typedef enum {
#define X(id, name, f, df) SL_GATE_##id,
  SL_GATE_LIST(X)
#undef X
  SL_GATE_COUNT
} sl_gate;

/* y = f(gate) up (Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202). The halves of one matrix [rows, 2 n]
 * are two pointers with row strides of 2 n. */
typedef struct {
  sl_gate act;
  const float *gate, *up;        /* [rows, n] */
  float *y;                      /* [rows, n] */
  int64_t ld_gate, ld_up, ld_y;  /* row strides */
  int64_t rows, n;
} sl_gated_args;
typedef struct {
  sl_gate act;
  const float *gate, *up, *dy;   /* row strides ld_gate, ld_up, ld_dy */
  float *dgate, *dup;            /* [rows, n], either may be NULL; row strides ld_dgate, ld_dup */
  int64_t ld_gate, ld_up, ld_dy, ld_dgate, ld_dup;
  int64_t rows, n;
} sl_gated_backward_args;

#endif
