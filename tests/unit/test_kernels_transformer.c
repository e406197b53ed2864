/* Root-mean-square norm, rotary positions and gated activations of the CPU against float64 loops. */
#include "tests/support/numbers.h"

#include <omp.h>

static sl_device *cpu(void) { return sl_cpu_device(); }

/* -- Root-mean-square norm -- */

typedef struct {
  int64_t rows, n;
  bool residual, accumulate;
  float offset, size;
} norm_case;

static const norm_case norm_cases[] = {
  { 0, 4, false, false, 0, 1 },  { 1, 1, true, false, 0, 1 },     { 3, 17, true, true, 1, 1 },
  { 33, 100, false, true, 0, 1 }, { 40, 768, true, false, 1, 1 },  { 5, 4097, false, false, 0, 1 },
  { 4, 64, false, false, 0, 1e6f }, { 4, 64, true, false, 0, 1e-4f }, /* eps matters in the last */
};

/* The gradients by the definition: ds_i = r (g_i - s_i r^2 / n sum_j g_j s_j), g = dy (weight + offset). */
static void check_norm_row(const norm_case *c, const float *s, const float *w, const float *dy, const float *y,
                           const float *ds, double *dw) {
  double squares = 0, sum = 0;
  for (int64_t i = 0; i < c->n; i++) squares += (double)s[i] * (double)s[i];
  const double r = 1 / sqrt(squares / (double)c->n + 1e-5), offset = (double)c->offset;
  for (int64_t i = 0; i < c->n; i++) {
    check_close("y", i, (double)y[i], (double)s[i] * r * ((double)w[i] + offset), 2e-6);
    sum += (double)dy[i] * ((double)w[i] + offset) * (double)s[i];
    dw[i] += (double)dy[i] * (double)s[i] * r;
  }
  for (int64_t i = 0; i < c->n; i++) {
    double g = (double)dy[i] * ((double)w[i] + offset);
    double want = r * (g - (double)s[i] * r * r * sum / (double)c->n) + (c->accumulate ? 0.5 : 0);
    check_close("ds", i, (double)ds[i], want, 4e-6 * fmax(1, r));
  }
}

static void check_norm(const norm_case *c) {
  const int64_t rows = c->rows, n = c->n, all = rows * n;
  float *x = make_numbers(all, c->size, 1), *residual = make_numbers(all, c->size, 2), *w = make_numbers(n, 1, 3);
  float *dy = make_numbers(all, 1, 4), *y = make_numbers(all, 9, 5), *sum = make_numbers(all, 9, 6);
  float *rrms = make_numbers(rows, 9, 7), *ds = make_numbers(all, 9, 8), *dw = make_numbers(n, 9, 9);
  double *want = calloc((size_t)(n > 0 ? n : 1), sizeof *want);
  for (int64_t i = 0; i < all; i++) ds[i] = 0.5f;
  for (int64_t i = 0; i < n; i++) dw[i] = 0.25f, want[i] = c->accumulate ? 0.25 : 0;
  sl_rms_norm_args args = { .x = x, .residual = c->residual ? residual : NULL, .weight = w, .y = y, .sum = sum,
                            .rrms = rrms, .rows = rows, .n = n, .eps = 1e-5f, .offset = c->offset };
  CHECK(cpu()->kernels->rms_norm(cpu(), &args));
  sl_rms_norm_backward_args back = { .s = sum, .weight = w, .rrms = rrms, .dy = dy, .ds = ds, .dweight = dw,
                                     .rows = rows, .n = n, .offset = c->offset, .accumulate = c->accumulate };
  CHECK(cpu()->kernels->rms_norm_backward(cpu(), &back));
  for (int64_t i = 0; i < all; i++)
    check_close("s", i, (double)sum[i], (double)(c->residual ? x[i] + residual[i] : x[i]), 0);
  for (int64_t r = 0; r < rows; r++)
    check_norm_row(c, sum + r * n, w, dy + r * n, y + r * n, ds + r * n, want);
  check_all_close("dweight", dw, want, n, 5e-6);
  free(x), free(residual), free(w), free(dy), free(y), free(sum), free(rrms), free(ds), free(dw), free(want);
}

static void test_rms_norm(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(norm_cases); i++) check_norm(&norm_cases[i]);
}

/* What is not asked for is not touched, and nothing depends on the number of threads. */
static void test_rms_norm_parts(void **state) {
  (void)state;
  enum { rows = 70, n = 300 };
  float *s = make_numbers(rows * n, 1, 1), *w = make_numbers(n, 1, 2), *dy = make_numbers(rows * n, 1, 3);
  float *y = make_numbers(rows * n, 0, 0), rrms[rows], dw[2][n];
  sl_rms_norm_args args = { .x = s, .weight = w, .y = y, .rrms = rrms, .rows = rows, .n = n, .eps = 1e-5f };
  CHECK(cpu()->kernels->rms_norm(cpu(), &args));
  int before = omp_get_max_threads();
  for (int i = 0; i < 2; i++) {
    omp_set_num_threads(1 + 2 * i);
    sl_rms_norm_backward_args back = { .s = s, .weight = w, .rrms = rrms, .dy = dy, .dweight = dw[i],
                                       .rows = rows, .n = n };
    CHECK(cpu()->kernels->rms_norm_backward(cpu(), &back));
  }
  omp_set_num_threads(before);
  assert_memory_equal(dw[0], dw[1], sizeof dw[0]);
  free(s), free(w), free(dy), free(y);
}

/* -- Rotary positions -- */

typedef struct {
  int64_t batch, tokens, heads, head_dim, width;
  bool adjacent;
  int positions;                 /* 0 none, 1 shared, 2 of each batch entry */
  bool table;                    /* frequencies given */
  bool in_place;
} rotary_case;

static const rotary_case rotary_cases[] = {
  { 1, 1, 1, 2, 2, false, 0, false, false },     { 2, 5, 3, 8, 8, false, 0, false, false },
  { 2, 5, 3, 8, 8, true, 0, false, true },       { 2, 37, 2, 20, 12, false, 1, false, false },
  { 2, 37, 2, 20, 12, true, 2, true, false },    { 1, 40, 4, 64, 64, false, 2, true, true },
  { 1, 3, 2, 300, 290, false, 1, false, false }, { 1, 3, 2, 300, 290, true, 2, false, false },
  { 0, 3, 1, 4, 4, false, 0, false, false },     { 1, 2, 2, 6, 0, false, 0, false, false },
};

/* Column of the partner of column e, which side of the pair e is on, and the pair. */
static int64_t partner(const rotary_case *c, int64_t e, bool *second, int64_t *pair) {
  const int64_t half = c->width / 2;
  *second = c->adjacent ? e % 2 == 1 : e >= half;
  *pair = c->adjacent ? e / 2 : e % half;
  return c->adjacent ? (e ^ 1) : (e + half) % c->width;
}

static int64_t position_at(const rotary_case *c, const int32_t *positions, int64_t b, int64_t t) {
  return c->positions == 0 ? t : positions[c->positions == 1 ? t : b * c->tokens + t];
}

static double turned(const rotary_case *c, const float *x, int64_t e, int64_t position, const float *table) {
  bool second;
  int64_t pair;
  if (e >= c->width) return (double)x[e];
  const int64_t other = partner(c, e, &second, &pair);
  const double frequency = c->table ? (double)table[pair] : pow(500000, -2.0 * (double)pair / (double)c->width);
  const double angle = (double)position * frequency;
  return (double)x[e] * cos(angle) + (second ? 1 : -1) * (double)x[other] * sin(angle);
}

static void check_rotary(const rotary_case *c) {
  const int64_t rows = c->batch * c->tokens, d = c->heads * c->head_dim, ld = d + 3;
  float *x = make_numbers(rows * ld, 1, 1), *kept = make_numbers(rows * ld, 1, 1), *y = make_numbers(rows * d, 9, 2);
  float *table = make_numbers(c->width / 2, 1, 3);
  int32_t *positions = calloc((size_t)(rows + c->tokens), sizeof *positions);
  for (int64_t i = 0; i < rows + c->tokens; i++) positions[i] = (int32_t)(i * 7919 % 131072) - 3;
  sl_rotary_args args = { .x = x, .y = c->in_place ? x : y, .ld_x = ld, .ld_y = c->in_place ? ld : d,
                          .batch = c->batch, .tokens = c->tokens, .heads = c->heads, .head_dim = c->head_dim,
                          .width = c->width, .adjacent = c->adjacent, .base = 500000,
                          .frequencies = c->table ? table : NULL, .positions = c->positions ? positions : NULL,
                          .positions_stride = c->positions == 2 ? c->tokens : 0 };
  CHECK(cpu()->kernels->rotary(cpu(), &args));
  for (int64_t i = 0; i < rows * d; i++) {
    const int64_t row = i / d, column = i % d, e = column % c->head_dim;
    double want = turned(c, kept + row * ld + column - e, e, position_at(c, positions, row / c->tokens, row % c->tokens),
                         table);
    check_close("turned", i, (double)args.y[row * args.ld_y + column], want, 3e-7);
  }
  for (int64_t row = 0; row < rows; row++) /* what lies beside the heads stays */
    for (int64_t e = d; e < ld; e++) assert_true(x[row * ld + e] == kept[row * ld + e]);
  args.x = args.y, args.ld_x = args.ld_y, args.inverse = true;
  CHECK(cpu()->kernels->rotary(cpu(), &args));
  for (int64_t i = 0; i < rows * d; i++)
    check_close("turned back", i, (double)args.y[i / d * args.ld_y + i % d], (double)kept[i / d * ld + i % d], 4e-7);
  free(x), free(kept), free(y), free(table), free(positions);
}

static void test_rotary(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(rotary_cases); i++) check_rotary(&rotary_cases[i]);
}

/* -- Gated activations -- */

static double gate_real(int act, double x) {
  switch (act) {
  case SL_GATE_GELU:
    return 0.5 * x * erfc(-x / sqrt(2.0));
  case SL_GATE_GELU_TANH:
    return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
  case SL_GATE_SILU:
    return x / (1 + exp(-x));
  default:
    return x > 0 ? x : 0;
  }
}

/* gate and up as the halves of one matrix, or apart; rows longer than a piece. */
static void check_gated(int act, int64_t rows, int64_t n, bool halves) {
  const int64_t ld = halves ? 2 * n : n;
  float *x = make_numbers(2 * rows * n, 6, 1), *dy = make_numbers(rows * n, 1, 2), *y = make_numbers(rows * n, 9, 3);
  float *dx = make_numbers(2 * rows * n, 9, 4), *up = halves ? x + n : x + rows * n, *dup = dx + (up - x);
  CHECK(cpu()->kernels->gated(cpu(), &(sl_gated_args){ (sl_gate)act, x, up, y, ld, ld, n, rows, n }));
  CHECK(cpu()->kernels->gated_backward(
      cpu(), &(sl_gated_backward_args){ (sl_gate)act, x, up, dy, dx, dup, ld, ld, n, ld, ld, rows, n }));
  for (int64_t i = 0; i < rows * n; i++) {
    const int64_t at = i / n * ld + i % n;
    const double g = (double)x[at], u = (double)up[at], h = 1e-6;
    const double slope = (gate_real(act, g + h) - gate_real(act, g - h)) / (2 * h);
    check_close("y", i, (double)y[i], gate_real(act, g) * u, 1e-6);
    check_close("dgate", i, (double)dx[at], (double)dy[i] * u * slope, 4e-6);
    check_close("dup", i, (double)dup[at], (double)dy[i] * gate_real(act, g), 1e-6);
  }
  free(x), free(dy), free(y), free(dx);
}

static void test_gated(void **state) {
  (void)state;
  static const int64_t shapes[][2] = { { 0, 3 }, { 1, 1 }, { 3, 17 }, { 2, 4100 }, { 40, 512 } };
  for (int act = 0; act < SL_GATE_COUNT; act++) {
    for (size_t s = 0; s < LENGTH(shapes); s++) {
      check_gated(act, shapes[s][0], shapes[s][1], false);
      check_gated(act, shapes[s][0], shapes[s][1], true);
    }
  }
}

/* Limits: no NaN from infinities that a saturated gate meets; NaN passes. One gradient may be left out. */
static void test_gate_limits(void **state) {
  (void)state;
  static const float gate[4] = { -INFINITY, -200, 200, NAN }, up[4] = { 2, 2, 2, 2 };
  for (int act = 0; act < SL_GATE_COUNT; act++) {
    float y[4], dgate[4], dup[4] = { 7, 7, 7, 7 };
    CHECK(cpu()->kernels->gated(cpu(), &(sl_gated_args){ (sl_gate)act, gate, up, y, 4, 4, 4, 1, 4 }));
    sl_gated_backward_args back = { (sl_gate)act, gate, up, up, dgate, NULL, 4, 4, 4, 4, 4, 1, 4 };
    CHECK(cpu()->kernels->gated_backward(cpu(), &back));
    check_close("-infinity", act, (double)y[0], 0, 0);
    check_close("-200", act, (double)y[1], 0, 0);
    check_close("200", act, (double)y[2], 400, 0);
    check_close("NaN", act, (double)y[3], (double)NAN, 0);
    check_close("slope at -infinity", act, (double)dgate[0], 0, 0);
    check_close("slope at 200", act, (double)dgate[2], 4, 0);
    back.dgate = NULL, back.dup = dup;
    CHECK(cpu()->kernels->gated_backward(cpu(), &back));
    check_close("dup", act, (double)dup[2], 400, 0);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_rms_norm),
    cmocka_unit_test(test_rms_norm_parts),
    cmocka_unit_test(test_rotary),
    cmocka_unit_test(test_gated),
    cmocka_unit_test(test_gate_limits),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
