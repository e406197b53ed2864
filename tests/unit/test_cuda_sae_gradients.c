/* Residual, numbers, gradients, optimiser, unit rows and centre of the CUDA backend against the CPU's; then whole
 * training steps. Sums run in another order than on the CPU; on one device every run has the same bits. */
#include "kernels/dynamic_map.h"
#include "tests/support/sae_pair.h"

static const sae_shape shapes[] = {
  { .n = 1, .d = 1, .m = 1, .k = 1 },
  { .n = 9, .d = 5, .m = 13, .k = 6, .base = 3 },       /* rows of any length */
  { .n = 70, .d = 12, .m = 7, .k = 7 },                 /* runs of up to 70 entries: in pieces */
  { .n = 200, .d = 6, .m = 5, .k = 4 },                 /* the same without packs */
  { .n = 12, .d = 132, .m = 40, .k = 5 },               /* two packs a lane */
  { .n = 10, .d = 300, .m = 12, .k = 3, .base = 7 },
  { .n = 10, .d = 520, .m = 12, .k = 3 },
  { .n = 6, .d = 772, .m = 9, .k = 3 },
  { .n = 6, .d = 1100, .m = 9, .k = 3 },                /* a block a row */
  { .n = 6, .d = 2052, .m = 9, .k = 3 },
  { .n = 5, .d = 4100, .m = 6, .k = 2 },
  { .n = 80, .d = 1100, .m = 3, .k = 2 },
  { .n = 12, .d = 8, .m = 20, .k = 4, .shift = 1 },     /* aligned rows in matrices that are not */
  { .n = 0, .d = 5, .m = 9, .k = 2, .base = 4 },
};

/* To the point where the optimiser starts; gradients of two batches add up. */
static void run_to_gradients(sae_pair *r, int side, int batches) {
  sae_run_unit(r, side);
  sae_run_encode(r, side);
  sae_run_index(r, side);
  sae_run_residual(r, side);
  sae_run_numbers(r, side);
  for (int i = 0; i < batches; i++) sae_run_backward(r, side, i == 0 ? 1 : -0.25);
}

static void check_numbers(const sae_pair *r) {
  const sl_sae_numbers *got = sae_fetch_numbers(r), *want = r->numbers->at[PAIR_CPU];
  check_close("sum of squares", 0, got->sum_squares[0], want->sum_squares[0], 1e-5);
  check_close("cosine", 0, got->cosine, want->cosine, 1e-5);
  check_close("variance", 0, got->total_variance, want->total_variance, 1e-5);
  check_close("loss", 0, got->loss, want->loss, 1e-5);
  check_close("factor", 0, got->factor[0], want->factor[0], 1e-5);
  assert_int_equal(got->entries, want->entries);
}

static void check_gradients(const sae_pair *r) {
  const pair *p = r->p;
  int64_t entries = ((const int64_t *)r->index_offsets->at[PAIR_CPU])[r->s.m];
  check_numbers(r);
  sae_check_doubles(p, "column sums", r->column_sums, 1e-4);
  pair_check_same(p, "touched", r->touched);
  pair_check_close(p, "gradient of W_enc", r->g_enc, 1e-4);
  pair_check_close(p, "gradient of W_dec", r->g_dec, 1e-4);
  pair_check_close(p, "gradient of b_enc", r->gb_enc, 1e-4);
  pair_check_close(p, "gradient of b_dec", r->gb_dec, 1e-4);
  pair_check_close(p, "dots", r->dot, 1e-4);
  pair_check_close(p, "squares of W_enc", r->squares_enc, 1e-4);
  pair_check_close(p, "squares of W_dec", r->squares_dec, 1e-4);
  pair_check_guards(p, "code gradients", r->code_gradients);
  const float *got = pair_fetch(p, r->code_gradients), *want = r->code_gradients->at[PAIR_CPU];
  for (int64_t e = 0; e < entries; e++) check_close("code gradients", e, (double)got[e], (double)want[e], 1e-4);
}

static void check_shape(sae_shape s, uint64_t seed) {
  s.exact = true;
  for (int batches = 1; batches <= 2; batches++) {
    pair p = pair_open();
    sae_pair r = sae_pair_open(&p, s, seed);
    for (int side = 0; side < 2; side++) {
      run_to_gradients(&r, side, batches);
      sae_run_finish(&r, side, batches == 1, batches == 2);
    }
    check_gradients(&r);
    pair_check_close(&p, "total b_dec", r.total_b_dec, 1e-4);
    sae_check_doubles(&p, "squares of the gradient", r.norm, 1e-4);
    for (int side = 0; side < 2; side++) {
      sl_sae_fill_gradients_args fill = { .m = s.m, .d_in = s.d, .d_out = s.d, .gradients = sae_gradients_at(&r, side) };
      PAIR_RUN(&p, side, sae_fill_gradients, &fill);
    }
    pair_check_close(&p, "filled gradient", r.g_enc, 1e-4);
    pair_close(&p);
  }
}

static void test_shapes(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(shapes); i++) check_shape(shapes[i], 3 + i);
}

/* Every token in every latent's run, and latents that own nothing. */
static void test_busy_and_idle_latents(void **state) {
  (void)state;
  for (int64_t d = 7; d <= 8; d++) {
    pair p = pair_open();
    sae_pair r = sae_pair_open(&p, (sae_shape){ .n = 150, .d = d, .m = 12, .k = 3, .exact = true }, 5);
    float bias[12] = { [2] = 20, [7] = 20, [3] = -90, [4] = -90 };
    pair_put(&p, r.b_enc, bias);
    for (int side = 0; side < 2; side++) run_to_gradients(&r, side, 2);
    check_gradients(&r);
    const uint8_t *touched = pair_fetch(&p, r.touched);
    assert_true(touched[2] == 1 && touched[7] == 1 && touched[3] == 0 && touched[4] == 0);
    pair_close(&p);
  }
}

/* Latents in two blocks, each with its own call: the same gradients and norm as in one. */
static void test_latents_in_blocks(void **state) {
  (void)state;
  enum { N = 150, D = 8, M = 12, CUT = 5 };
  pair p = pair_open();
  sae_pair r = sae_pair_open(&p, (sae_shape){ .n = N, .d = D, .m = M, .k = 6, .exact = true }, 5);
  run_to_gradients(&r, PAIR_CPU, 1);
  sae_run_finish(&r, PAIR_CPU, true, true);
  run_to_gradients(&r, PAIR_CUDA, 0);
  for (int which = 0; which < 2; which++) {
    int64_t first = which ? CUT : 0, m = which ? M - CUT : CUT;
    sl_codes_index index = sae_index_at(&r, PAIR_CUDA);
    index.offsets += first;
    sl_sae_gradients all = sae_gradients_at(&r, PAIR_CUDA), g = all;
    g.w_enc += first * D, g.w_dec += first * D, g.b_enc += first, g.touched += first, g.dot_dec += first;
    g.squares_enc += first, g.squares_dec += first;
    sl_sae_backward_args backward = {
      .n = N, .m = m, .d_in = D, .d_out = D, .index = index, .residual = AT(r.residual[PAIR_CUDA], PAIR_CUDA),
      .column_sums = which ? NULL : AT(r.column_sums, PAIR_CUDA), .scale = 1,
      .factor = &sae_numbers_at(&r, PAIR_CUDA)->factor[SL_SAE_MAIN], .u = AT(r.u[PAIR_CUDA], PAIR_CUDA),
      .w_dec = (const float *)AT(r.w_dec, PAIR_CUDA) + first * D, .gradients = g,
      .code_gradients = AT(r.code_gradients, PAIR_CUDA), .most = N * 6 };
    PAIR_RUN_WORKING(&p, PAIR_CUDA, sae_backward, &backward);
    sl_sae_finish_gradients_args finish = {
      .m = m, .d_in = D, .d_out = D, .gradients = g, .w_enc = (const float *)AT(r.w_enc, PAIR_CUDA) + first * D,
      .through_u = true, .project = true, .add = which == 1, .more = which == 0,
      .total_b_dec = AT(r.total_b_dec, PAIR_CUDA), .sum_squares = AT(r.norm, PAIR_CUDA) };
    PAIR_RUN_WORKING(&p, PAIR_CUDA, sae_finish_gradients, &finish);
  }
  check_gradients(&r);
  pair_check_close(&p, "total b_dec", r.total_b_dec, 1e-4);
  sae_check_doubles(&p, "squares of the gradient", r.norm, 1e-4);
  pair_close(&p);
}

/* AuxK: the target is a residual, and b_dec takes no part. */
static void test_residual_of_a_residual(void **state) {
  (void)state;
  pair p = pair_open();
  sae_pair r = sae_pair_open(&p, (sae_shape){ .n = 20, .d = 10, .m = 30, .k = 4, .exact = true }, 5);
  block *second[2], *sums = pair_block(&p, 80);
  for (int side = 0; side < 2; side++) {
    run_to_gradients(&r, side, 0);
    second[side] = pair_block(&p, r.residual[side]->bytes);
    sl_sae_decode_residual_args args = {
      .n = 20, .m = 30, .d = 10, .index = sae_index_at(&r, side), .codes = sae_codes_at(&r, side),
      .w_dec = AT(r.w_dec, side), .target_slabs = AT(r.residual[side], side), .residual = AT(second[side], side),
      .column_sums = AT(sums, side) };
    PAIR_RUN_WORKING(&p, side, sae_decode_residual, &args);
    r.residual[side] = second[side];
    sl_sae_backward_args backward = {
      .n = 20, .m = 30, .d_in = 10, .d_out = 10, .index = sae_index_at(&r, side), .residual = AT(second[side], side),
      .scale = 1, .factor = &sae_numbers_at(&r, side)->factor[SL_SAE_MAIN], .u = AT(r.u[side], side),
      .w_dec = AT(r.w_dec, side), .gradients = sae_gradients_at(&r, side),
      .code_gradients = AT(r.code_gradients, side), .most = 80 };
    PAIR_RUN_WORKING(&p, side, sae_backward, &backward);
  }
  sae_check_doubles(&p, "column sums", sums, 1e-4);
  check_gradients(&r);
  pair_close(&p);
}

/* -- Optimiser -- */

static void check_parameters(const sae_pair *r, double tolerance) {
  const pair *p = r->p;
  block *const floats[] = { r->w_enc, r->b_enc, r->w_dec, r->b_dec, r->m_enc, r->m_dec, r->mb_enc, r->mb_dec,
                            r->v_enc, r->v_dec, r->vb_enc, r->vb_dec };
  for (size_t i = 0; i < LENGTH(floats); i++) pair_check_close(p, "parameters and moments", floats[i], tolerance);
  pair_check_guards(p, "bf16 copy", r->w_bf16);
  const uint16_t *half = pair_fetch(p, r->w_bf16), *want = r->w_bf16->at[PAIR_CPU];
  for (size_t i = 0; i < r->w_bf16->bytes / 2; i++)
    check_close("bf16 copy", (int64_t)i, (double)sl_bf16_to_f32(half[i]), (double)sl_bf16_to_f32(want[i]),
                tolerance + 8e-3);
}

typedef struct { sl_sae_rule rule; double clip; bool project, unit, copy; float decay; int64_t d; int shift; } update_case;

static void test_update(void **state) {
  (void)state;
  static const update_case cases[] = {
    { SL_SAE_ADAM, 0, false, false, true, 0, 12, 0 },  { SL_SAE_ADAM, 0.01, true, true, true, 0.1f, 12, 0 },
    { SL_SAE_SGD, 0, true, true, true, 0, 12, 0 },     { SL_SAE_SGD, 0.01, false, true, false, 0.1f, 7, 0 },
    { SL_SAE_ADAM, 100, true, true, true, 0, 7, 0 },   { SL_SAE_ADAM, 0.01, true, true, true, 0, 12, 1 },
    { SL_SAE_ADAM, 0, true, true, true, 0, 2052, 0 },  { SL_SAE_ADAM, 0, true, true, true, 0, 4100, 0 },
    { SL_SAE_ADAM, 0, true, true, true, 0, 8196, 0 },
  };
  for (size_t i = 0; i < LENGTH(cases); i++) {
    const update_case *c = &cases[i];
    int64_t m = c->d > 100 ? 5 : 30;
    pair p = pair_open();
    sae_pair r = sae_pair_open(&p, (sae_shape){ .n = 6, .d = c->d, .m = m, .k = 3, .exact = true, .shift = c->shift }, 5);
    for (int side = 0; side < 2; side++) {
      run_to_gradients(&r, side, 1);
      sae_run_finish(&r, side, true, c->project);
      sl_sae_update_args args = sae_update_args(&r, side);
      args.rule = c->rule, args.clip_norm = c->clip, args.project = c->project, args.unit_rows = c->unit;
      args.weight_decay = c->decay, args.step = 3;
      if (!c->copy) args.w_enc_bf16 = NULL;
      PAIR_RUN(&p, side, sae_update, &args);
      PAIR_RUN(&p, side, sae_update, &args); /* no gradients now: moments decay, rows untouched */
    }
    check_parameters(&r, 2e-4);
    pair_check_same(&p, "touched", r.touched);
    pair_check_same(&p, "dots", r.dot);
    pair_check_same(&p, "gradient of b_enc", r.gb_enc);
    pair_check_same(&p, "gradient of b_dec", r.gb_dec);
    pair_close(&p);
  }
}

/* Moments in 8 bits: codes may differ by one where a number lies half-way between two, which squares of eighths often
 * do: not `exact` here. */
static void check_codes8(const pair *p, block *codes) {
  pair_check_guards(p, "codes", codes);
  const uint8_t *got = pair_fetch(p, codes), *want = codes->at[PAIR_CPU];
  size_t apart = 0;
  for (size_t i = 0; i < codes->bytes; i++) {
    assert_true(abs(got[i] - want[i]) <= 1);
    apart += got[i] != want[i];
  }
  if (apart > 2 + codes->bytes / 50) fail_msg("%zu of %zu codes differ", apart, codes->bytes);
}

static void test_update_8bit(void **state) {
  (void)state;
  static const int64_t ds[] = { 7, 300, 768 };
  for (size_t c = 0; c < LENGTH(ds); c++) {
    int64_t d = ds[c], m = 9, blocks = (d + SL_SAE_BLOCK8 - 1) / SL_SAE_BLOCK8;
    pair p = pair_open();
    sae_pair r = sae_pair_open(&p, (sae_shape){ .n = 6, .d = d, .m = m, .k = 3 }, 5);
    float maps[2][SL_MAP_SIZE];
    uint8_t *zero = malloc((size_t)(m * d));
    sl_dynamic_map(true, maps[0]), sl_dynamic_map(false, maps[1]);
    block *map[2], *codes[4], *absmax[4];
    for (int i = 0; i < 2; i++) map[i] = pair_of(&p, maps[i], sizeof maps[i]);
    for (int i = 0; i < 4; i++) {
      memset(zero, i < 2 ? 127 : 0, (size_t)(m * d));
      codes[i] = pair_of(&p, zero, (size_t)(m * d)), absmax[i] = pair_zeros(&p, (size_t)(m * blocks) * 4);
    }
    free(zero);
    for (int side = 0; side < 2; side++) {
      run_to_gradients(&r, side, 1);
      sae_run_finish(&r, side, true, true);
      sl_sae_update_args args = sae_update_args(&r, side);
      args.rule = SL_SAE_ADAM8, args.map1 = AT(map[0], side), args.map2 = AT(map[1], side);
      args.moment1_8 = (sl_sae_moment8){ AT(codes[0], side), AT(codes[1], side), AT(absmax[0], side), AT(absmax[1], side) };
      args.moment2_8 = (sl_sae_moment8){ AT(codes[2], side), AT(codes[3], side), AT(absmax[2], side), AT(absmax[3], side) };
      PAIR_RUN(&p, side, sae_update, &args);
      args.step = 2, args.total_b_dec = c == 1 ? NULL : args.total_b_dec;
      PAIR_RUN(&p, side, sae_update, &args); /* no gradients: scales decay */
    }
    for (int i = 0; i < 4; i++) {
      check_codes8(&p, codes[i]);
      pair_check_close(&p, "absmax", absmax[i], 1e-4);
    }
    check_parameters(&r, 1e-3);
    pair_close(&p);
  }
}

static void test_update_refuses_what_is_not_finite(void **state) {
  (void)state;
  static const double bad[] = { NAN, INFINITY };
  for (size_t i = 0; i < 2 * LENGTH(bad); i++) {
    pair p = pair_open();
    sae_pair r = sae_pair_open(&p, (sae_shape){ .n = 8, .d = i < 2 ? 8 : 7, .m = 20, .k = 3, .exact = true }, 5);
    for (int side = 0; side < 2; side++) {
      run_to_gradients(&r, side, 1);
      sae_run_finish(&r, side, true, true);
    }
    pair_put(&p, r.norm, &bad[i % 2]);
    sl_sae_update_args args = sae_update_args(&r, PAIR_CUDA);
    PAIR_RUN(&p, PAIR_CUDA, sae_update, &args); /* the CPU side is not run: nothing may differ */
    check_parameters(&r, 1e-6);
    pair_check_same(&p, "touched", r.touched);
    pair_check_close(&p, "gradient of b_enc", r.gb_enc, 1e-4);
    pair_close(&p);
  }
}

/* -- Unit rows, centre -- */

static void test_unit_rows(void **state) {
  (void)state;
  pair p = pair_open();
  float rows[3 * 7] = { 3, 4, [7] = 0, [14] = 1e-20f };
  block *x = pair_of(&p, rows, sizeof rows), *y = pair_block(&p, sizeof rows);
  for (int side = 0; side < 2; side++) {
    sl_sae_unit_rows_args args = { .x = AT(x, side), .y = AT(y, side), .m = 3, .d = 7 };
    PAIR_RUN(&p, side, sae_unit_rows, &args);
  }
  pair_check_close(&p, "unit rows", y, 1e-6);
  pair_close(&p);
}

static void check_center(int64_t n, int64_t d, bool median, float offset, int most) {
  pair p = pair_open();
  float *numbers = make_numbers(n * d + 1, 1, 5);
  for (int64_t i = 0; i < n * d; i++) numbers[i] += offset;
  if (median && n > 2) numbers[0] = 1000; /* an outlier, which moves the mean only */
  block *x = pair_of(&p, numbers, (size_t)(n * d) * 4), *center = pair_block(&p, (size_t)d * 4),
        *variance = pair_block(&p, 8), *iterations = pair_block(&p, 4);
  free(numbers);
  for (int side = 0; side < 2; side++) {
    sl_sae_center_args args = { .n = n, .d = d, .x = AT(x, side), .median = median, .tolerance = 1e-7,
                                .max_iterations = most, .center = AT(center, side),
                                .total_variance = AT(variance, side), .iterations = AT(iterations, side) };
    PAIR_RUN_WORKING(&p, side, sae_center, &args);
  }
  pair_check_close(&p, "centre", center, 1e-5);
  sae_check_doubles(&p, "variance", variance, 1e-5 * (1 + (double)fabsf(offset)));
  int32_t got = *(const int32_t *)pair_fetch(&p, iterations), want = *(const int32_t *)iterations->at[PAIR_CPU];
  assert_true(abs(got - want) <= 1); /* at the tolerance's edge rounding decides */
  pair_close(&p);
}

static void test_center(void **state) {
  (void)state;
  check_center(1, 1, false, 0, 0);
  check_center(100, 33, false, 0, 0);
  check_center(700, 3, false, 50, 0);
  check_center(0, 5, false, 0, 0);
  check_center(50, 6, true, 0, 60);
  check_center(50, 40, true, 3, 4);
  check_center(1, 6, true, 0, 10);
  check_center(0, 6, true, 0, 3);
}

/* A batch of equal tokens has no variance, exactly: the loss is then NaN, and the optimiser refuses. */
static void test_equal_tokens(void **state) {
  (void)state;
  pair p = pair_open();
  float rows[40 * 3];
  for (int i = 0; i < 40 * 3; i++) rows[i] = i % 3 == 0 ? 0.1f : 1e7f / 3;
  block *x = pair_of(&p, rows, sizeof rows), *variance = pair_block(&p, 8);
  for (int side = 0; side < 2; side++) {
    sl_sae_center_args args = { .n = 40, .d = 3, .x = AT(x, side), .total_variance = AT(variance, side) };
    PAIR_RUN_WORKING(&p, side, sae_center, &args);
  }
  assert_true(*(const double *)pair_fetch(&p, variance) == 0);
  pair_close(&p);
}

/* -- Steps -- */

enum { STEPS = 4 };

/* Returns the CPU's first loss. */
static double train(sae_pair *r, int side) {
  double first = NAN;
  sl_device *device = r->p->devices[side];
  sae_run_unit(r, side);
  for (int step = 1; step <= STEPS; step++) {
    CHECK(device->table->fill(device, AT(r->numbers, side), 0, sizeof(sl_sae_numbers)));
    sae_run_encode(r, side);
    sae_run_index(r, side);
    sae_run_residual(r, side);
    sae_run_numbers(r, side);
    if (side == PAIR_CPU && step == 1) first = sae_numbers_at(r, side)->loss;
    sae_run_backward(r, side, 1);
    sae_run_finish(r, side, true, true);
    sl_sae_update_args args = sae_update_args(r, side);
    args.step = step;
    PAIR_RUN(r->p, side, sae_update, &args);
  }
  return first;
}

static pair train_pair(sae_pair *r, bool bf16) {
  pair p = pair_open();
  *r = sae_pair_open(&p, (sae_shape){ .n = 90, .d = 16, .m = 48, .k = 6, .bf16 = bf16 }, 11);
  return p;
}

static void test_steps_follow_the_cpu(void **state) {
  (void)state;
  for (int bf16 = 0; bf16 < 2; bf16++) {
    sae_pair r;
    pair p = train_pair(&r, bf16);
    r.p = &p;
    double first = train(&r, PAIR_CPU);
    (void)train(&r, PAIR_CUDA);
    const sl_sae_numbers *got = sae_fetch_numbers(&r), *want = r.numbers->at[PAIR_CPU];
    check_close("loss", 0, got->loss, want->loss, 1e-4);
    check_close("cosine", 0, got->mean_cosine, want->mean_cosine, 1e-4);
    assert_true(want->loss < 0.98 * first);
    pair_close(&p);
  }
}

/* The same bits in every run, under every schedule. */
static void test_steps_repeat(void **state) {
  (void)state;
  unsigned char *first = NULL;
  for (int i = 0; i < SCHEDULES + 2; i++) {
    if (!use_schedule(i % SCHEDULES) && i >= 2) break;
    sae_pair r;
    pair p = train_pair(&r, true);
    r.p = &p;
    (void)train(&r, PAIR_CUDA);
    block *const made[] = { r.w_enc, r.b_enc, r.w_dec, r.b_dec, r.v_enc, r.v_dec, r.numbers };
    size_t at = 0, bytes = 0;
    for (size_t b = 0; b < LENGTH(made); b++) bytes += made[b]->bytes;
    bool fresh = first == NULL;
    if (fresh) first = malloc(bytes);
    assert_non_null(first);
    for (size_t b = 0; b < LENGTH(made); at += made[b++]->bytes) {
      const void *now = pair_fetch(&p, made[b]);
      if (fresh) memcpy(first + at, now, made[b]->bytes);
      else assert_memory_equal(first + at, now, made[b]->bytes);
    }
    pair_close(&p);
  }
  free(first);
  (void)use_schedule(0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_shapes),
    cmocka_unit_test(test_busy_and_idle_latents),
    cmocka_unit_test(test_residual_of_a_residual),
    cmocka_unit_test(test_latents_in_blocks),
    cmocka_unit_test(test_update),
    cmocka_unit_test(test_update_8bit),
    cmocka_unit_test(test_update_refuses_what_is_not_finite),
    cmocka_unit_test(test_unit_rows),
    cmocka_unit_test(test_center),
    cmocka_unit_test(test_equal_tokens),
    cmocka_unit_test(test_steps_follow_the_cpu),
    cmocka_unit_test(test_steps_repeat),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
