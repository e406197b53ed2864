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

/* The keys from `first` to before `end`: those that some query of a block may see, or one query. */
typedef struct {
  int64_t first, end;
} span;

/* What the queries from `from` to before `to` may see between them; `keys`: count_keys. */
static span seen_by(const sl_attention_args *a, int64_t from, int64_t to, int64_t keys) {
  const int64_t first = a->window > 0 ? slk_max(from - a->window + 1, 0) : 0;
  const int64_t end = a->causal ? slk_min(keys, to) : keys;
  return (span){ first, slk_max(first, end) };
}

/* Zeros outside the part of a row of scores that one query sees; `seen` counts from the row's first entry. */
static void clear_outside(float *row, span seen, int64_t keys) {
  for (int64_t i = 0; i < seen.first; i++) row[i] = 0;
  for (int64_t i = seen.end; i < keys; i++) row[i] = 0;
}

/* The keys that one query sees, counted from the first of its block's. */
static span seen_in(const sl_attention_args *a, int64_t query, int64_t keys, span block) {
  const span own = seen_by(a, query, query + 1, keys);
  const int64_t first = slk_min(own.first, block.end);
  return (span){ first - block.first, slk_max(first, slk_min(own.end, block.end)) - block.first };
}

/* A row without a largest score: nothing is seen (0), or what is seen is no number, and then the row is none. */
static float fill_unranked(float *row, int64_t n) {
  bool nan = false;
  for (int64_t i = 0; i < n; i++) nan |= row[i] != row[i];
  for (int64_t i = 0; i < n; i++) row[i] = nan ? NAN : 0;
  return nan ? NAN : 0;
}

/* Scores that are seen -> exp(score - max), the others zero. Returns the sum, 0 where nothing is seen. */
SLK_HOT static float weigh_row(float *row, const uint8_t *mask, span seen, int64_t keys, float *lse) {
  const int64_t n = seen.end - seen.first;
  float *part = row + seen.first;
  if (mask != NULL) hide_keys(part, mask + seen.first, n);
  float best = slk_row_max(part, n), sum = 0;
  if (best == -INFINITY)
    sum = fill_unranked(part, n);
  else
    sum = slk_row_exp_sum(part, part, n, 1.0f, best);
  clear_outside(row, seen, keys);
  *lse = sum == 0 ? INFINITY : best + logf(sum); /* infinity: every weight of the row recomputes to 0 */
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
  const int64_t rows = slk_min(sl_attention_block(t), t - from), present = count_keys(a, b);
  const span seen = seen_by(a, from, from + rows, present);
  const int64_t keys = seen.end - seen.first;
  const float *q = a->q + head_offset(a, b, h, a->ld_q) + from * a->ld_q;
  const float *k = a->k + head_offset(a, b, key_head(a, h), a->ld_k) + seen.first * a->ld_k;
  const float *v = a->v + head_offset(a, b, key_head(a, h), a->ld_v) + seen.first * a->ld_v;
  float *out = a->out + head_offset(a, b, h, a->ld_out) + from * a->ld_out;
  const uint8_t *mask = a->mask != NULL ? a->mask + b * t + seen.first : NULL;
  float inverse[128]; /* 1 / row sum; sl_attention_block is at most 128 */
  int failures = 0;
  if (keys > 0) {
    failures += multiply((product){ 'N', 'T', rows, keys, a->head_dim, .a = q, .lda = a->ld_q, .b = k,
                                    .ldb = a->ld_k, .c = tile, .ldc = keys, .alpha = a->scale, .beta = 0 });
  }
  for (int64_t i = 0; i < rows; i++) {
    float lse, *row = tile + i * keys;
    const span own = seen_in(a, from + i, present, seen);
    if (a->soft_cap > 0) cap_row(row + own.first, a->soft_cap, own.end - own.first);
    float sum = weigh_row(row, mask, own, keys, &lse);
    inverse[i] = sum == 0 ? 0.0f : 1.0f / sum; /* NaN stays NaN */
    if (a->lse != NULL) a->lse[pair * t + from + i] = lse;
    if (a->pattern != NULL) {
      float *pattern = a->pattern + (pair * t + from + i) * t;
      memset(pattern, 0, (size_t)seen.first * sizeof *pattern);
      scale_row(row, pattern + seen.first, inverse[i], keys);
      memset(pattern + seen.end, 0, (size_t)(t - seen.end) * sizeof *pattern);
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
SLK_HOT static void weights_row(float *row, const uint8_t *mask, span seen, int64_t keys, float lse) {
  const int64_t n = seen.end - seen.first;
  float *part = row + seen.first;
  if (mask != NULL) hide_keys(part, mask + seen.first, n);
  SLK_SIMD for (int64_t i = 0; i < n; i++) part[i] = slk_exp(part[i] - lse);
  clear_outside(row, seen, keys);
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

static void zero_rows(const sl_attention_args *a, float *x, int64_t ld, int64_t rows) {
  for (int64_t i = 0; i < rows; i++) memset(x + i * ld, 0, (size_t)a->head_dim * sizeof *x);
}

/* Queries that see nothing: no gradient. */
static int skip_block(const sl_attention_backward_args *g, int64_t batch, int64_t head, int64_t from,
                      int64_t rows) {
  if (!g->accumulate)
    zero_rows(&g->forward, g->dq + head_offset(&g->forward, batch, head, g->ld_dq) + from * g->ld_dq,
              g->ld_dq, rows);
  return 0;
}

static int backward_block(const sl_attention_backward_args *g, int64_t pair, int64_t from, int64_t present,
                          float *weights) {
  const sl_attention_args *a = &g->forward;
  const int64_t b = pair / a->heads, h = pair % a->heads, t = a->tokens, d = a->head_dim;
  const int64_t rows = slk_min(sl_attention_block(t), t - from);
  const span seen = seen_by(a, from, from + rows, present);
  const int64_t keys = seen.end - seen.first;
  if (keys == 0) return skip_block(g, b, h, from, rows);
  float *slopes = weights + sl_attention_workspace(t, 1, false);
  const float *q = a->q + head_offset(a, b, h, a->ld_q) + from * a->ld_q;
  const float *k = a->k + head_offset(a, b, key_head(a, h), a->ld_k) + seen.first * a->ld_k;
  const float *v = a->v + head_offset(a, b, key_head(a, h), a->ld_v) + seen.first * a->ld_v;
  const int64_t at_out = head_offset(a, b, h, a->ld_out) + from * a->ld_out;
  const float *dout = g->dout + at_out, *out = a->out + at_out;
  const uint8_t *mask = a->mask != NULL ? a->mask + b * t + seen.first : NULL;
  int failures = 0;
  failures += multiply((product){ 'N', 'T', rows, keys, d, .a = q, .lda = a->ld_q, .b = k, .ldb = a->ld_k,
                                  .c = weights, .ldc = keys, .alpha = a->scale, .beta = 0 });
  failures += multiply((product){ 'N', 'T', rows, keys, d, .a = dout, .lda = a->ld_out, .b = v,
                                  .ldb = a->ld_v, .c = slopes, .ldc = keys, .alpha = 1, .beta = 0 });
  for (int64_t i = 0; i < rows; i++) {
    const span own = seen_in(a, from + i, present, seen);
    float *row = weights + i * keys, *slope = slopes + i * keys, lse = a->lse[pair * t + from + i];
    float delta = dot(dout + i * a->ld_out, out + i * a->ld_out, d);
    if (a->soft_cap > 0) {
      cap_row(row + own.first, a->soft_cap, own.end - own.first);
      slope_cap(row + own.first, slope + own.first, a->soft_cap, delta, own.end - own.first);
    }
    weights_row(row, mask, own, keys, lse);
    slope_row(row, slope, delta, keys);
  }
  float *dq = g->dq + head_offset(a, b, h, g->ld_dq) + from * g->ld_dq;
  float *dk = g->dk + head_offset(a, b, key_head(a, h), g->ld_dk) + seen.first * g->ld_dk;
  float *dv = g->dv + head_offset(a, b, key_head(a, h), g->ld_dv) + seen.first * g->ld_dv;
  failures +=
      multiply((product){ 'N', 'N', rows, d, keys, .a = slopes, .lda = keys, .b = k, .ldb = a->ld_k, .c = dq,
                          .ldc = g->ld_dq, .alpha = a->scale, .beta = g->accumulate ? 1.0f : 0.0f });
  failures += multiply((product){ 'T', 'N', keys, d, rows, .a = slopes, .lda = keys, .b = q, .ldb = a->ld_q,
                                  .c = dk, .ldc = g->ld_dk, .alpha = a->scale, .beta = 1 });
  failures += multiply((product){ 'T', 'N', keys, d, rows, .a = weights, .lda = keys, .b = dout,
                                  .ldb = a->ld_out, .c = dv, .ldc = g->ld_dv, .alpha = 1, .beta = 1 });
  return failures;
}


/* One key head of one batch entry and the query heads that read it, in order. */
static int backward_head(const sl_attention_backward_args *g, int64_t job, float *workspace) {
  const sl_attention_args *a = &g->forward;
  const int64_t key_heads = count_key_heads(a), group = a->heads / key_heads;
  const int64_t b = job / key_heads, hk = job % key_heads, keys = count_keys(a, b),
                block = sl_attention_block(a->tokens);
  if (!g->accumulate) {
    zero_rows(a, g->dk + head_offset(a, b, hk, g->ld_dk), g->ld_dk, a->tokens);
    zero_rows(a, g->dv + head_offset(a, b, hk, g->ld_dv), g->ld_dv, a->tokens);
  }
  int failures = 0;
  for (int64_t h = hk * group; h < (hk + 1) * group; h++) {
    for (int64_t from = 0; from < a->tokens; from += block)
      failures += backward_block(g, b * a->heads + h, from, keys, workspace);
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
