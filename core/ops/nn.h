/* Differentiable neural-network operations; conventions as in math.h. */
#ifndef SL_OPS_NN_H
#define SL_OPS_NN_H

#include "math.h"

/* Over the last dimension. */
sl_status sl_softmax(const sl_tensor *x, bool log, sl_tensor **out);

/* (x + residual) normalised over the last dimension, population variance; residual may be NULL.
 * `sum`, if not NULL, receives x + residual (the value before the norm; not recorded). */
sl_status sl_layer_norm(const sl_tensor *x, const sl_tensor *residual, const sl_tensor *weight,
                        const sl_tensor *bias, float eps, sl_tensor **sum, sl_tensor **out);

/* Exact multi-head attention. q [B, T, heads * head_dim], k and v [B, T, kv_heads * head_dim] (views with a row stride are
 * fine, so one fused QKV product may be sliced); mask u8 [B, T], 0 = padding key, or NULL. */
typedef struct {
  int64_t heads;
  int64_t kv_heads;        /* divides heads: each key head serves heads / kv_heads neighbouring heads; 0 = heads */
  float scale;             /* 0 = 1/sqrt(head_dim) */
  bool causal;
  float soft_cap;          /* scores s become soft_cap tanh(s / soft_cap); 0 = as they are */
  int64_t window;          /* query i sees key j only if i - j < window; 0 = no limit */
  sl_tensor **pattern;     /* or NULL: receives the softmax weights [B, heads, T, T]; not recorded */
} sl_attention_options;
sl_status sl_attention(const sl_tensor *q, const sl_tensor *k, const sl_tensor *v, const sl_tensor *mask,
                       const sl_attention_options *options, sl_tensor **out);

/* table [rows, D] (f32, bf16 or f16), ids i32 [...] -> f32 [..., D]. An id out of range is SL_EINVAL, named. */
sl_status sl_embedding(const sl_tensor *table, const sl_tensor *ids, sl_tensor **out);
/* The same for contiguous ids on the table's device that the caller knows to be in range: nothing is looked at. */
sl_status sl_embedding_known(const sl_tensor *table, const sl_tensor *ids, sl_tensor **out);
/* SL_EINVAL, naming the first, unless every one of the i32 ids (on the CPU) lies in [0, limit). */
sl_status sl_check_ids(const char *op, const sl_tensor *ids, int64_t limit);

/* Mean of -log softmax(logits)[target] over rows with target >= 0: logits [N, V], targets i32 [N] -> scalar.
 * No row to count is SL_EINVAL. `per_row` [N], if not NULL, receives the row losses (0 where ignored). */
sl_status sl_cross_entropy(const sl_tensor *logits, const sl_tensor *targets, sl_tensor **per_row, sl_tensor **out);

/* Mean over all elements of (a - b)^2. */
sl_status sl_mse_loss(const sl_tensor *a, const sl_tensor *b, sl_tensor **out);

/* x with entries zeroed with probability p and the rest divided by 1 - p; counter-based (seed, step). */
sl_status sl_dropout(const sl_tensor *x, float p, uint64_t seed, uint64_t step, sl_tensor **out);

#endif
