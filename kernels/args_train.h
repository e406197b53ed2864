/* Argument structs of the dense kernels, second part: rows by id, losses, selection, random numbers, optimisers, sparse
 * codes of fixed width. Conventions as in args_dense.h. */
#ifndef SL_ARGS_TRAIN_H
#define SL_ARGS_TRAIN_H

/* Rows of a table by id (in range): y [rows, n] (+)= table[ids]; the table is f32, bf16 or f16. */
typedef struct {
  const void *table; sl_dtype dtype;
  const int32_t *ids; float *y;
  int64_t rows, n; bool accumulate;
} sl_embedding_args;
typedef struct {
  const float *dy; const int32_t *ids; float *dtable; int64_t rows, n, table_rows;
  void *workspace; size_t workspace_bytes; size_t *need;
} sl_embedding_backward_args;

/* loss[r] = lse[r] - logits[r, target[r]]; rows with target < 0 are ignored (loss 0). */
typedef struct { const float *logits; const int32_t *targets; float *loss, *lse; int64_t rows, n; } sl_cross_entropy_args;
typedef struct {
  const float *logits, *lse; const int32_t *targets;
  const float *dloss;            /* [rows] */
  float *dlogits; int64_t rows, n; bool accumulate;
} sl_cross_entropy_backward_args;

/* Ranked by x, or by |x|; values keep their sign; order: rank, ties by lowest index. */
typedef struct { const float *x; int64_t rows, n, k; bool absolute; float *values; int32_t *indices; } sl_topk_rows_args;

/* Counter-based: element i of (seed, stream, step) is the same on every device. */
typedef enum { SL_RANDOM_UNIFORM, SL_RANDOM_NORMAL, SL_RANDOM_INT } sl_random_kind;
typedef struct {
  sl_random_kind kind; uint64_t seed; uint32_t stream; uint64_t step;
  float low, high;               /* uniform: [low, high); normal: mean, standard deviation */
  int32_t bound;                 /* int: [0, bound), y is int32 */
  void *y; int64_t n;
} sl_random_args;

/* g = grad_scale g + l2 w; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w -= lr (mhat / (sqrt(vhat) + eps) + weight_decay w). */
typedef struct {
  float *w, *m, *v; const float *g; int64_t n;
  float lr, beta1, beta2, eps, weight_decay, l2, grad_scale; int64_t step; /* step counts from 1 */
} sl_adam_dense_args;

/* v = momentum v + g scale + weight_decay w; w -= lr v. v may be NULL when momentum is 0. */
typedef struct {
  float *w, *v; const float *g; int64_t n;
  float lr, momentum, weight_decay, grad_scale;
} sl_sgd_dense_args;

typedef struct {
  const float *x; int64_t n; double *result; /* host */
  void *workspace; size_t workspace_bytes; size_t *need;
} sl_sum_squares_args;

/* dx[outer, index[outer, j, inner], inner] += dy[outer, j, inner]; dx [outer, n, inner], dy and index [outer, k, inner]. */
typedef struct {
  const float *dy; const int32_t *index; float *dx;
  int64_t outer, n, k, inner;
} sl_scatter_axis_args;

/* Each row divided by (its Euclidean norm + eps), in place. */
typedef struct { float *x; int64_t rows, n; float eps; } sl_normalize_rows_args;

/* Fixed-width sparse codes times a matrix of rows: y[t] (+)= sum_j values[t, j] W[indices[t, j]] + bias. Indices are in range. */
typedef struct {
  const float *values; const int32_t *indices; /* [rows, k] */
  const float *weight, *bias;    /* [latents, n]; [n] or NULL */
  float *y;                      /* [rows, n] */
  int64_t rows, k, n; bool accumulate;
} sl_sparse_rows_args;
/* dvalues[t, j] = dy[t] . W[indices[t, j]]; dweight[indices[t, j]] += values[t, j] dy[t]. Either may be NULL. */
typedef struct {
  const float *values; const int32_t *indices;
  const float *weight, *dy;
  float *dvalues, *dweight;
  int64_t rows, k, n, latents;   /* latents: rows of weight */
  void *workspace; size_t workspace_bytes; size_t *need;
} sl_sparse_rows_backward_args;

#endif
