/* Differentiable operations of decoder-only transformers; conventions as in math.h. Attention is in nn.h. */
#ifndef SL_OPS_TRANSFORMER_H
#define SL_OPS_TRANSFORMER_H

#include "math.h"

/* s / sqrt(mean(s^2) + eps) * (weight + offset) over the last dimension, s = x + residual (residual may be NULL), after
 * Zhang & Sennrich, arXiv 1910.07467; weight [D]. `sum`, if not NULL, receives s (not recorded). */
typedef struct {
  float eps;
  float offset;                /* 0: Llama, Qwen, Mistral; 1: Gemma, whose files hold weight - 1 */
  const sl_tensor *residual;
  sl_tensor **sum;
} sl_rms_norm_options;
sl_status sl_rms_norm(const sl_tensor *x, const sl_tensor *weight, const sl_rms_norm_options *options,
                      sl_tensor **out);

/* Rotary positions (Su et al., arXiv 2104.09864): x [B, T, heads * head_dim], in each head the pairs of the first `width`
 * columns turn by position times frequency, other columns stay. q and k that lie side by side are one x of heads +
 * kv_heads heads; views with a row stride are fine. Angles are float64. */
typedef struct {
  int64_t heads;
  int64_t width;               /* columns that turn, even; 0 = head_dim */
  bool adjacent;               /* pairs (2i, 2i + 1), as GPT-J; else (i, i + width/2), as Llama and GPT-NeoX */
  double base;                 /* pair i has frequency base^(-2i/width); 0 = 10000 */
  const sl_tensor *frequencies; /* f32 [width/2] in place of base, for scaled variants (Llama 3, YaRN, linear); or NULL */
  const sl_tensor *positions;  /* i32 [T] or [B, T]; NULL = 0 .. T - 1 */
} sl_rotary_options;
sl_status sl_rotary(const sl_tensor *x, const sl_rotary_options *options, sl_tensor **out);

/* f(gate) * up (Shazeer, arXiv 2002.05202): gate and up of one shape; views with a row stride are fine. up NULL: gate
 * [..., 2n] holds f's argument in its first half and up in its second; the result is [..., n]. */
sl_status sl_gated(const sl_tensor *gate, const sl_tensor *up, sl_gate act, sl_tensor **out);

#endif
