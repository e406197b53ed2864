/* Gated activations, f(gate) up, and their backward. Source: Shazeer, "GLU Variants Improve Transformer",
 * arXiv 2002.05202. f(gate) is computed again in the backward: cheaper than the memory it would take. */
#include "cpu.h"
#include "vmath.h"

enum { columns_at_once = 4096 };

/* One run of a row: SL_GATE_LIST as loops. */
typedef struct {
  const float *gate, *up, *dy;
  float *y, *dgate, *dup;
  int64_t n;
} run;

#define X(id, name, f, df)                                                                                   \
  SLK_HOT static void forward_##id(const run *r) {                                                           \
    const float *gate = r->gate, *up = r->up;                                                                \
    float *y = r->y;                                                                                         \
    SLK_SIMD for (int64_t i = 0; i < r->n; i++) {                                                            \
      const float x = gate[i];                                                                               \
      y[i] = (f) * up[i];                                                                                    \
    }                                                                                                        \
  }                                                                                                          \
  SLK_HOT static void slope_##id(const run *r) {                                                             \
    const float *gate = r->gate, *up = r->up, *dy = r->dy;                                                   \
    float *dgate = r->dgate;                                                                                 \
    SLK_SIMD for (int64_t i = 0; i < r->n; i++) {                                                            \
      const float x = gate[i];                                                                               \
      dgate[i] = dy[i] * up[i] * (df);                                                                       \
    }                                                                                                        \
  }
SL_GATE_LIST(X)
#undef X

typedef void run_function(const run *r);
static run_function *const forward_functions[] = {
#define X(id, name, f, df) forward_##id,
  SL_GATE_LIST(X)
#undef X
};
static run_function *const slope_functions[] = {
#define X(id, name, f, df) slope_##id,
  SL_GATE_LIST(X)
#undef X
};

/* Rows are cut into pieces of columns, so that few long rows find work for every thread. */
static int64_t count_pieces(int64_t rows, int64_t n) { return rows * slk_ceil_div(n, columns_at_once); }

typedef struct {
  int64_t row, column, width;
} piece;

static piece piece_of(int64_t job, int64_t n) {
  const int64_t each = slk_ceil_div(n, columns_at_once), column = job % each * columns_at_once;
  return (piece){ job / each, column, slk_min(columns_at_once, n - column) };
}

sl_status slk_cpu_gated(sl_device *device, const sl_gated_args *a) {
  (void)device;
  const int64_t jobs = count_pieces(a->rows, a->n);
#pragma omp parallel for schedule(static) if (a->rows * a->n >= SLK_PARALLEL_MIN)
  for (int64_t job = 0; job < jobs; job++) {
    const piece p = piece_of(job, a->n);
    run r = { .gate = a->gate + p.row * a->ld_gate + p.column,
              .up = a->up + p.row * a->ld_up + p.column,
              .y = a->y + p.row * a->ld_y + p.column,
              .n = p.width };
    forward_functions[a->act](&r);
  }
  return SL_OK;
}

sl_status slk_cpu_gated_backward(sl_device *device, const sl_gated_backward_args *a) {
  (void)device;
  const int64_t jobs = count_pieces(a->rows, a->n);
#pragma omp parallel for schedule(static) if (a->rows * a->n >= SLK_PARALLEL_MIN)
  for (int64_t job = 0; job < jobs; job++) {
    const piece p = piece_of(job, a->n);
    const float *gate = a->gate + p.row * a->ld_gate + p.column, *dy = a->dy + p.row * a->ld_dy + p.column;
    if (a->dgate != NULL) {
      run r = { .gate = gate,
                .up = a->up + p.row * a->ld_up + p.column,
                .dy = dy,
                .dgate = a->dgate + p.row * a->ld_dgate + p.column,
                .n = p.width };
      slope_functions[a->act](&r);
    }
    if (a->dup != NULL) { /* d up = f(gate) dy: the forward with dy in the place of up */
      run r = { .gate = gate, .up = dy, .y = a->dup + p.row * a->ld_dup + p.column, .n = p.width };
      forward_functions[a->act](&r);
    }
  }
  return SL_OK;
}
