/* Exact multi-head attention and its backward. The scores of one block of
 * queries, [block, keys], live in one thread's cache and nowhere else; the two
 * products of a block are single-threaded oneDNN calls. Backward after Dao et
 * al., "FlashAttention", arXiv 2205.14135, appendix B: the weights are
 * recomputed from the log-sum-exp; one thread owns all of a (batch, key head),
 * so the sums over queries, and over the heads that share keys, have one order. */
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <string.h>

#include "cpu.h"
#include "rows.h"

/* Keys that matter: up to the last one that is not padding. */
static int64_t count_keys(const sl_attention_args *a, int64_t batch) {
  int64_t keys = a->tokens;
  if (a->mask == NULL) return keys;
  while (keys > 0 && a->mask[batch * a->tokens + keys - 1] == 0) keys--;
  return keys;
}

SLK_HOT static void hide_keys(float *row, const uint8_t *mask, int64_t n) {
  SLK_SIMD for (int64_t i = 0; i < n; i++) row[i] = mask[i] != 0 ? row[i] : -INFINITY;
}

/* Scores -> exp(score - max), the entries from `visible` to `keys` zero.
 * Returns the sum, 0 for a fully masked row. */
SLK_HOT static float weigh_row(float *row, const uint8_t *mask, int64_t visible, int64_t keys, float *lse) {
  if (mask != NULL) hide_keys(row, mask, visible);
  float best = slk_row_max(row, visible), sum = 0;
  if (best == -INFINITY)
    visible = 0;
  else
    sum = slk_row_exp_sum(row, row, visible, 1.0f, best);
  for (int64_t i = visible; i < keys; i++) row[i] = 0;
  *lse = sum > 0 ? best + logf(sum) : INFINITY; /* infinity: every weight of the row recomputes to 0 */
  return sum;
}

SLK_HOT static void scale_row(const float *x, float *y, float factor, int64_t n) {
  SLK_SIMD for (int64_t i = 0; i < n; i++) y[i] = x[i] * factor;
}

/* C [m, n] = alpha op(A) op(B) + beta C, on this thread. */
typedef struct {
  char op_a, op_b; /* 'N' or 'T' */
  int64_t m, n, k;
  const float *a, *b;
  float *c;
  int64_t lda, ldb, ldc;
  float alpha, beta;
} product;

static int multiply(product p) {
  return dnnl_sgemm(p.op_a, p.op_b, p.m, p.n, p.k, p.alpha, p.a, p.lda, p.b, p.ldb, p.beta, p.c, p.ldc) !=
         dnnl_success;
}

/* Where head h of batch b starts in a [batch, tokens, heads * head_dim] matrix
 * with row stride ld. */
static int64_t head_offset(const sl_attention_args *a, int64_t batch, int64_t head, int64_t ld) {
  return batch * a->tokens * ld + head * a->head_dim;
}

/* Key heads, and the one that query head h reads. */
static int64_t count_key_heads(const sl_attention_args *a) { return a->kv_heads > 0 ? a->kv_heads : a->heads; }
static int64_t key_head(const sl_attention_args *a, int64_t h) { return h / (a->heads / count_key_heads(a)); }

/* s -> cap tanh(s / cap). */
SLK_HOT static void cap_row(float *row, float cap, int64_t n) {
  const float inverse = 1.0f / cap;
  SLK_SIMD for (int64_t i = 0; i < n; i++) row[i] = cap * slk_tanh(row[i] * inverse);
}

static int forward_block(const sl_attention_args *a, int64_t pair, int64_t from, float *tile) {
  const int64_t b = pair / a->heads, h = pair % a->heads, t = a->tokens;
  const int64_t rows = slk_min(sl_attention_block(t), t - from);
  int64_t keys = count_keys(a, b);
  if (a->causal) keys = slk_min(keys, from + rows);
  const float *q = a->q + head_offset(a, b, h, a->ld_q) + from * a->ld_q;
  const float *k = a->k + head_offset(a, b, key_head(a, h), a->ld_k);
  const float *v = a->v + head_offset(a, b, key_head(a, h), a->ld_v);
  float *out = a->out + head_offset(a, b, h, a->ld_out) + from * a->ld_out;
  const uint8_t *mask = a->mask != NULL ? a->mask + b * t : NULL;
  float inverse[128]; /* 1 / row sum; sl_attention_block is at most 128 */
  int failures = 0;
  if (keys > 0) {
    failures += multiply((product){ 'N', 'T', rows, keys, a->head_dim, .a = q, .lda = a->ld_q, .b = k,
                                    .ldb = a->ld_k, .c = tile, .ldc = keys, .alpha = a->scale, .beta = 0 });
  }
  for (int64_t i = 0; i < rows; i++) {
    float lse, *row = tile + i * keys;
    int64_t visible = a->causal ? slk_min(keys, from + i + 1) : keys;
    if (a->soft_cap > 0) cap_row(row, a->soft_cap, visible);
    float sum = weigh_row(row, mask, visible, keys, &lse);
    inverse[i] = sum > 0 ? 1.0f / sum : 0.0f;
    if (a->lse != NULL) a->lse[pair * t + from + i] = lse;
    if (a->pattern != NULL) {
      float *pattern = a->pattern + (pair * t + from + i) * t;
      scale_row(row, pattern, inverse[i], keys);
      memset(pattern + keys, 0, (size_t)(t - keys) * sizeof *pattern);
    }
  }
  if (keys > 0) {
    failures += multiply((product){ 'N', 'N', rows, a->head_dim, keys, .a = tile, .lda = keys, .b = v,
                                    .ldb = a->ld_v, .c = out, .ldc = a->ld_out, .alpha = 1, .beta = 0 });
  }
  for (int64_t i = 0; i < rows; i++) {
    float *row = out + i * a->ld_out;
    if (inverse[i] == 0)
      memset(row, 0, (size_t)a->head_dim * sizeof *row);
    else
      scale_row(row, row, inverse[i], a->head_dim);
  }
  return failures;
}

/* Threads that the workspace has room for; 0 = none. */
static int count_workers(const sl_attention_args *a, bool backward, int64_t jobs) {
  int64_t each = sl_attention_workspace(a->tokens, 1, backward);
  int64_t workers = slk_min(slk_min(a->workspace_size / each, omp_get_max_threads()), jobs);
  return (int)(a->batch * a->heads * a->tokens * a->tokens * a->head_dim < SLK_PARALLEL_MIN
                   ? slk_min(workers, 1)
                   : workers);
}

static sl_status small_workspace(sl_device *device, const sl_attention_args *a, bool backward) {
  return sl_fail(SL_EINVAL,
                 "attention on %s: a workspace of %lld floats; %lld tokens "
                 "need at least %lld",
                 device->name, (long long)a->workspace_size, (long long)a->tokens,
                 (long long)sl_attention_workspace(a->tokens, 1, backward));
}

sl_status slk_cpu_attention(sl_device *device, const sl_attention_args *args) {
  const int64_t block = sl_attention_block(args->tokens), blocks = slk_ceil_div(args->tokens, block);
  const int64_t jobs = args->batch * args->heads * blocks,
                each = sl_attention_workspace(args->tokens, 1, false);
  if (jobs == 0) return SL_OK;
  const int workers = count_workers(args, false, jobs);
  if (workers < 1) return small_workspace(device, args, false);
  int failures = 0;
#pragma omp parallel for schedule(dynamic) num_threads(workers) reduction(+ : failures)
  for (int64_t job = 0; job < jobs; job++) {
    failures += forward_block(args, job / blocks, job % blocks * block,
                              args->workspace + omp_get_thread_num() * each);
  }
  return failures == 0 ? SL_OK
                       : sl_fail(SL_EDEVICE, "attention on %s: oneDNN refused a product", device->name);
}

/* -- Backward -- */

/* Recomputes the weights of one row in place: exp(score - lse), 0 where hidden.
 */
SLK_HOT static void weights_row(float *row, const uint8_t *mask, int64_t visible, int64_t keys, float lse) {
  if (mask != NULL) hide_keys(row, mask, visible);
  SLK_SIMD for (int64_t i = 0; i < visible; i++) row[i] = slk_exp(row[i] - lse);
  for (int64_t i = visible; i < keys; i++) row[i] = 0;
}

SLK_HOT static float dot(const float *x, const float *y, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
  return sum;
}

/* d score = weight (d weight - delta); over d weight. */
SLK_HOT static void slope_row(const float *weights, float *slopes, float delta, int64_t n) {
  SLK_SIMD for (int64_t i = 0; i < n; i++) slopes[i] = weights[i] * (slopes[i] - delta);
}

/* The slope of cap_row, 1 - (capped / cap)^2, put where slope_row will multiply: around delta. */
SLK_HOT static void slope_cap(const float *capped, float *slopes, float cap, float delta, int64_t n) {
  const float inverse = 1.0f / cap;
  SLK_SIMD for (int64_t i = 0; i < n; i++) {
    const float t = capped[i] * inverse;
    slopes[i] = (1.0f - t * t) * (slopes[i] - delta) + delta;
  }
}

static int backward_block(const sl_attention_backward_args *g, int64_t pair, int64_t from, int64_t keys,
                          float *weights) {
  const sl_attention_args *a = &g->forward;
  const int64_t b = pair / a->heads, h = pair % a->heads, t = a->tokens, d = a->head_dim;
  const int64_t rows = slk_min(sl_attention_block(t), t - from);
  float *slopes = weights + sl_attention_workspace(t, 1, false);
  const float *q = a->q + head_offset(a, b, h, a->ld_q) + from * a->ld_q;
  const float *k = a->k + head_offset(a, b, key_head(a, h), a->ld_k);
  const float *v = a->v + head_offset(a, b, key_head(a, h), a->ld_v);
  const int64_t at_out = head_offset(a, b, h, a->ld_out) + from * a->ld_out;
  const float *dout = g->dout + at_out, *out = a->out + at_out;
  const uint8_t *mask = a->mask != NULL ? a->mask + b * t : NULL;
  int failures = 0;
  failures += multiply((product){ 'N', 'T', rows, keys, d, .a = q, .lda = a->ld_q, .b = k, .ldb = a->ld_k,
                                  .c = weights, .ldc = keys, .alpha = a->scale, .beta = 0 });
  failures += multiply((product){ 'N', 'T', rows, keys, d, .a = dout, .lda = a->ld_out, .b = v,
                                  .ldb = a->ld_v, .c = slopes, .ldc = keys, .alpha = 1, .beta = 0 });
  for (int64_t i = 0; i < rows; i++) {
    int64_t visible = a->causal ? slk_min(keys, from + i + 1) : keys;
    float *row = weights + i * keys, *slope = slopes + i * keys, lse = a->lse[pair * t + from + i];
    float delta = dot(dout + i * a->ld_out, out + i * a->ld_out, d);
    if (a->soft_cap > 0) {
      cap_row(row, a->soft_cap, visible);
      slope_cap(row, slope, a->soft_cap, delta, visible);
    }
    weights_row(row, mask, visible, keys, lse);
    slope_row(row, slope, delta, keys);
  }
  float *dq = g->dq + head_offset(a, b, h, g->ld_dq) + from * g->ld_dq;
  float *dk = g->dk + head_offset(a, b, key_head(a, h), g->ld_dk);
  float *dv = g->dv + head_offset(a, b, key_head(a, h), g->ld_dv);
  failures +=
      multiply((product){ 'N', 'N', rows, d, keys, .a = slopes, .lda = keys, .b = k, .ldb = a->ld_k, .c = dq,
                          .ldc = g->ld_dq, .alpha = a->scale, .beta = g->accumulate ? 1.0f : 0.0f });
  failures += multiply((product){ 'T', 'N', keys, d, rows, .a = slopes, .lda = keys, .b = q, .ldb = a->ld_q,
                                  .c = dk, .ldc = g->ld_dk, .alpha = a->scale, .beta = 1 });
  failures += multiply((product){ 'T', 'N', keys, d, rows, .a = weights, .lda = keys, .b = dout,
                                  .ldb = a->ld_out, .c = dv, .ldc = g->ld_dv, .alpha = 1, .beta = 1 });
  return failures;
}

static void zero_head(const sl_attention_args *a, float *x, int64_t ld) {
  for (int64_t i = 0; i < a->tokens; i++) memset(x + i * ld, 0, (size_t)a->head_dim * sizeof *x);
}

/* One key head of one batch entry and the query heads that read it, in order. */
static int backward_head(const sl_attention_backward_args *g, int64_t job, float *workspace) {
  const sl_attention_args *a = &g->forward;
  const int64_t key_heads = count_key_heads(a), group = a->heads / key_heads;
  const int64_t b = job / key_heads, hk = job % key_heads, keys = count_keys(a, b),
                block = sl_attention_block(a->tokens);
  if (!g->accumulate) {
    zero_head(a, g->dk + head_offset(a, b, hk, g->ld_dk), g->ld_dk);
    zero_head(a, g->dv + head_offset(a, b, hk, g->ld_dv), g->ld_dv);
  }
  int failures = 0;
  for (int64_t h = hk * group; h < (hk + 1) * group; h++) {
    if (!g->accumulate && keys == 0) zero_head(a, g->dq + head_offset(a, b, h, g->ld_dq), g->ld_dq);
    for (int64_t from = 0; from < a->tokens && keys > 0; from += block) {
      int64_t seen = a->causal ? slk_min(keys, from + block) : keys;
      failures += backward_block(g, b * a->heads + h, from, seen, workspace);
    }
  }
  return failures;
}

sl_status slk_cpu_attention_backward(sl_device *device, const sl_attention_backward_args *args) {
  const sl_attention_args *a = &args->forward;
  const int64_t jobs = a->batch * count_key_heads(a), each = sl_attention_workspace(a->tokens, 1, true);
  if (jobs == 0 || a->tokens == 0) return SL_OK;
  const int workers = count_workers(a, true, jobs);
  if (workers < 1) return small_workspace(device, a, true);
  int failures = 0;
#pragma omp parallel for schedule(dynamic) num_threads(workers) reduction(+ : failures)
  for (int64_t job = 0; job < jobs; job++) {
    failures += backward_head(args, job, a->workspace + omp_get_thread_num() * each);
  }
  return failures == 0 ? SL_OK
                       : sl_fail(SL_EDEVICE, "attention on %s: oneDNN refused a product", device->name);
}
