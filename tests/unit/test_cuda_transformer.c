/* Root-mean-square norm, rotary positions and gated activations of the CUDA backend against the CPU's. */
#include "tests/support/device_pair.h"

/* -- Root-mean-square norm: rows of a warp, of a block, of a block that moves four at once -- */

typedef struct {
  int64_t rows, n;
  bool residual, sum, accumulate;
  float offset;
  int shift; /* floats by which the matrices lie off alignment, and the weight alone if negative */
} norm_case;

static const norm_case norm_cases[] = {
  { 1, 1, false, true, false, 0, 0 }, { 3, 17, true, true, true, 1, 0 },
  { 9, 128, false, false, false, 0, 1 }, { 70, 200, true, true, true, 0, 0 },
  { 130, 33, false, false, true, 1, 3 }, { 5, 600, true, false, false, 0, 0 },
  { 6, 1024, false, true, false, 1, 0 }, { 3, 1025, true, true, true, 0, 0 },
  { 3, 2048, true, true, false, 1, 0 }, { 2, 2048, false, false, false, 0, 2 },
  { 2, 2048, true, true, false, 0, -1 }, { 2, 8200, true, false, true, 0, 0 },
  { 0, 40, false, true, false, 0, 0 },
};

typedef struct {
  block *x, *residual, *weight, *y, *sum, *rrms, *dy, *ds, *dweight;
} norm_data;

static norm_data make_norm(pair *p, const norm_case *c) {
  const int64_t all = c->rows * c->n;
  const int by = c->shift > 0 ? c->shift : 0;
  const size_t bytes = (size_t)all * sizeof(float), shift = (size_t)by * sizeof(float);
  return (norm_data){ .x = pair_floats_shifted(p, all, 2, 1, by),
                      .residual = pair_floats_shifted(p, all, 2, 2, by),
                      .weight = pair_floats_shifted(p, c->n, 1, 3, c->shift < 0),
                      .y = pair_block_shifted(p, bytes, shift),
                      .sum = pair_floats_shifted(p, all, 2, 4, by),
                      .rrms = pair_block(p, (size_t)c->rows * sizeof(float)),
                      .dy = pair_floats_shifted(p, all, 1, 5, by),
                      .ds = pair_floats_shifted(p, all, 1, 6, by),
                      .dweight = pair_floats(p, c->n, 1, 7) };
}

static void run_norm_backward(pair *p, const norm_case *c, const norm_data *d, int side) {
  sl_rms_norm_backward_args back = { .s = AT(d->sum, side), .weight = AT(d->weight, side), .rrms = AT(d->rrms, side),
                                     .dy = AT(d->dy, side), .ds = AT(d->ds, side), .dweight = AT(d->dweight, side),
                                     .rows = c->rows, .n = c->n, .offset = c->offset,
                                     .accumulate = c->accumulate };
  PAIR_RUN_WORKING(p, side, rms_norm_backward, &back);
}

static void check_norm(const norm_case *c) {
  pair p = pair_open();
  norm_data d = make_norm(&p, c);
  for (int side = 0; side < 2; side++) {
    sl_rms_norm_args args = { .x = AT(d.x, side), .residual = c->residual ? AT(d.residual, side) : NULL,
                              .weight = AT(d.weight, side), .y = AT(d.y, side), .sum = c->sum ? AT(d.sum, side) : NULL,
                              .rrms = AT(d.rrms, side), .rows = c->rows, .n = c->n, .eps = 1e-5f,
                              .offset = c->offset };
    PAIR_RUN(&p, side, rms_norm, &args);
    run_norm_backward(&p, c, &d, side);
  }
  pair_check_close(&p, "y", d.y, 2e-6);
  if (c->sum) pair_check_same(&p, "sum", d.sum);
  pair_check_close(&p, "rrms", d.rrms, 1e-6);
  pair_check_close(&p, "ds", d.ds, 4e-6);
  pair_check_close(&p, "dweight", d.dweight, 4e-6);
  pair_close(&p);
}

static void test_rms_norm(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(norm_cases); i++) check_norm(&norm_cases[i]);
}

/* The same call again gives the same bits; a gradient that is not asked for needs nothing. */
static void test_rms_norm_repeats(void **state) {
  (void)state;
  const norm_case c = { 300, 70, false, true, false, 0, 0 };
  pair p = pair_open();
  norm_data d = make_norm(&p, &c);
  float first[70], rrms[300];
  fill_numbers(rrms, 300, 1, 9);
  pair_put(&p, d.rrms, rrms);
  for (int i = 0; i < 2; i++) {
    run_norm_backward(&p, &c, &d, PAIR_CUDA);
    if (i == 0) memcpy(first, pair_fetch(&p, d.dweight), sizeof first);
  }
  assert_memory_equal(first, pair_fetch(&p, d.dweight), sizeof first);
  size_t need = 1;
  sl_rms_norm_backward_args only = { .s = AT(d.sum, 1), .weight = AT(d.weight, 1), .rrms = AT(d.rrms, 1),
                                     .dy = AT(d.dy, 1), .ds = AT(d.ds, 1), .rows = c.rows, .n = c.n, .need = &need };
  PAIR_RUN(&p, PAIR_CUDA, rms_norm_backward, &only);
  assert_int_equal(need, 0);
  only.need = NULL;
  PAIR_RUN(&p, PAIR_CUDA, rms_norm_backward, &only);
  pair_close(&p);
}

/* -- Rotary positions -- */

typedef struct {
  int64_t batch, tokens, heads, head_dim, width;
  bool adjacent, inverse;
  int positions; /* 0 none, 1 shared, 2 of each batch entry */
  bool table, in_place;
} rotary_case;

static const rotary_case rotary_cases[] = {
  { 1, 1, 1, 2, 2, false, false, 0, false, false },  { 2, 5, 3, 8, 8, true, false, 0, false, true },
  { 2, 37, 9, 20, 12, false, true, 1, false, false }, { 2, 37, 17, 20, 12, true, false, 2, true, false },
  { 1, 40, 4, 64, 64, false, false, 2, true, true }, { 1, 7, 8, 30, 2, true, true, 2, false, false },
  { 0, 3, 1, 4, 4, false, false, 0, false, false },  { 1, 3, 2, 6, 0, false, false, 0, false, false },
};

static void check_rotary(const rotary_case *c) {
  pair p = pair_open();
  const int64_t rows = c->batch * c->tokens, d = c->heads * c->head_dim, ld = d + 3, ld_y = c->in_place ? ld : d + 1;
  block *x = pair_floats(&p, rows * ld, 1, 1), *y = pair_floats(&p, rows * ld_y, 1, 2);
  block *table = pair_floats(&p, c->width / 2, 1, 3), *positions = pair_ids(&p, rows + c->tokens, 131072, 4);
  for (int side = 0; side < 2; side++) {
    sl_rotary_args args = { .x = AT(x, side), .y = c->in_place ? AT(x, side) : AT(y, side), .ld_x = ld, .ld_y = ld_y,
                            .batch = c->batch, .tokens = c->tokens, .heads = c->heads, .head_dim = c->head_dim,
                            .width = c->width, .adjacent = c->adjacent, .inverse = c->inverse, .base = 500000,
                            .frequencies = c->table ? AT(table, side) : NULL,
                            .positions = c->positions ? AT(positions, side) : NULL,
                            .positions_stride = c->positions == 2 ? c->tokens : 0 };
    PAIR_RUN(&p, side, rotary, &args);
  }
  pair_check_close(&p, "x", x, 6e-7);
  pair_check_close(&p, "y", y, 6e-7);
  pair_close(&p);
}

static void test_rotary(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(rotary_cases); i++) check_rotary(&rotary_cases[i]);
}

/* -- Gated activations -- */

typedef struct {
  int64_t rows, n;
  bool halves;
  int off; /* which lie off alignment: 1 gate and up, 2 dy, 4 y, 8 their gradients, 16 one gradient */
} gated_case;

static const gated_case gated_cases[] = {
  { 1, 1, true, 0 }, { 3, 17, true, 0 }, { 5, 64, true, 0 }, { 5, 64, false, 0 }, { 5, 64, true, 31 },
  { 7, 6, true, 0 }, { 2, 516, false, 1 }, { 3, 64, true, 1 }, { 3, 64, false, 2 }, { 3, 64, true, 4 },
  { 3, 64, true, 8 }, { 3, 64, true, 16 }, { 0, 8, true, 0 },
};

static void check_gated(int act, const gated_case *c) {
  pair p = pair_open();
  const int64_t n = c->n, all = c->rows * n, ld = c->halves ? 2 * n : n, apart = c->halves ? n : all;
  block *x = pair_floats_shifted(&p, 2 * all, 6, 1, c->off & 1);
  block *dy = pair_floats_shifted(&p, all, 1, 2, c->off >> 1 & 1);
  block *y = pair_floats_shifted(&p, all, 9, 3, c->off >> 2 & 1);
  block *dx = pair_floats_shifted(&p, 2 * all, 9, 4, c->off >> 3 & 1);
  block *lone = pair_floats_shifted(&p, 2 * all, 9, 5, c->off >> 4 & 1);
  for (int side = 0; side < 2; side++) {
    const float *gate = AT(x, side), *up = gate + apart;
    float *dgate = AT(dx, side), *only = AT(lone, side);
    sl_gated_args args = { (sl_gate)act, gate, up, AT(y, side), ld, ld, n, c->rows, n };
    PAIR_RUN(&p, side, gated, &args);
    sl_gated_backward_args back = { (sl_gate)act, gate, up, AT(dy, side), dgate, dgate + apart, ld, ld, n, ld, ld,
                                    c->rows, n };
    PAIR_RUN(&p, side, gated_backward, &back);
    back.dgate = NULL, back.dup = only; /* one at a time */
    PAIR_RUN(&p, side, gated_backward, &back);
    back.dgate = only + apart, back.dup = NULL;
    PAIR_RUN(&p, side, gated_backward, &back);
  }
  pair_check_close(&p, "y", y, 4e-6);
  pair_check_close(&p, "dx", dx, 4e-6);
  pair_check_close(&p, "one gradient", lone, 4e-6);
  pair_close(&p);
}

static void test_gated(void **state) {
  (void)state;
  for (int act = 0; act < SL_GATE_COUNT; act++)
    for (size_t i = 0; i < LENGTH(gated_cases); i++) check_gated(act, &gated_cases[i]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_rms_norm),
    cmocka_unit_test(test_rms_norm_repeats),
    cmocka_unit_test(test_rotary),
    cmocka_unit_test(test_gated),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
