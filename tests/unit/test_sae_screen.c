/* sae_encode_topk with w_screen against itself without, bit for bit: the bound of the bf16 product must hold and the
 * rescored sums must be those of the float32 kernel, on inputs made to break either. On processors without a
 * bf16 product both are the same path, and little is tested. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <omp.h>

#include "support/sae_rig.h"

typedef struct {
  sl_codes_view codes, dead;
  int64_t nonfinite;
} outcome;

static const uint16_t *screen_of(sae_rig *r) {
  for (int64_t i = 0; i < r->c.m * r->c.d; i++) r->w_bf16[i] = sl_f32_to_bf16(r->weights.w_enc[i]);
  return r->w_bf16;
}

static outcome encode(sae_rig *r, const uint16_t *screen) {
  sl_device *cpu = sl_cpu_device();
  outcome out = { .codes = rig_codes(&r->c, r->c.k), .dead = rig_codes(&r->c, r->c.k_dead) };
  size_t panels, slabs, need;
  sl_sae_pack_args pack = { .n = r->c.n, .d = r->c.d, .x = r->x, .shift = r->weights.b_dec, .dtype = SL_F32,
                            .screen = screen != NULL, .need_panels = &panels, .need_slabs = &slabs };
  rig_check(rig_kernels()->sae_pack(cpu, &pack));
  pack.need_panels = pack.need_slabs = NULL;
  pack.panels = rig_memory((int64_t)panels, 1);
  pack.slabs = rig_memory((int64_t)slabs, 1);
  rig_check(rig_kernels()->sae_pack(cpu, &pack));
  sl_sae_encode_topk_args args = { .n = r->c.n, .d = r->c.d, .m = r->c.m, .k = r->c.k, .panels = pack.panels,
                                   .w = r->weights.w_enc, .dtype = SL_F32, .w_screen = screen,
                                   .slabs = pack.slabs, .bias = r->weights.b_enc, .codes = out.codes,
                                   .dead = r->c.k_dead ? r->dead : NULL, .k_dead = r->c.k_dead,
                                   .dead_codes = out.dead, .nonfinite = &out.nonfinite, .need = &need };
  rig_check(rig_kernels()->sae_encode_topk(cpu, &args));
  args.need = NULL;
  args.workspace = rig_memory((int64_t)need, 1);
  args.workspace_bytes = need;
  memset(args.workspace, 0xff, need); /* NaN, and no place in any list */
  rig_check(rig_kernels()->sae_encode_topk(cpu, &args));
  free(pack.panels), free(pack.slabs), free(args.workspace);
  return out;
}

static void discard(outcome *o) {
  free(o->codes.offsets), free(o->codes.ids), free(o->codes.values);
  free(o->dead.offsets), free(o->dead.ids), free(o->dead.values);
}

/* Rows of tokens that are not finite mean nothing; the others must agree. `plain` has every row where it is. */
static void compare_codes(const sae_rig *r, const sl_codes_view *a, const sl_codes_view *b, bool rows_sound) {
  if (rows_sound) assert_memory_equal(a->offsets, b->offsets, (size_t)(r->c.n + 1) * 8);
  for (int64_t t = 0; t < r->c.n; t++) {
    bool finite = true;
    for (int64_t j = 0; j < r->c.d; j++) finite = finite && fabsf(r->x[t * r->c.d + j]) < 1e30f;
    if (!rows_sound && !finite) continue;
    size_t n = (size_t)(a->offsets[t + 1] - a->offsets[t]);
    assert_int_equal(n, b->offsets[t + 1] - b->offsets[t]);
    assert_memory_equal(a->ids + a->offsets[t], b->ids + b->offsets[t], n * 4);
    assert_memory_equal(a->values + a->offsets[t], b->values + b->offsets[t], n * 4);
  }
}

static void check_with(sae_rig *r, const uint16_t *screen) {
  int threads = omp_get_max_threads();
  for (int many = 1; many <= 2; many++) {
    omp_set_num_threads(many);
    outcome plain = encode(r, NULL), screened = encode(r, screen);
    assert_int_equal(plain.nonfinite, screened.nonfinite);
    compare_codes(r, &plain.codes, &screened.codes, plain.nonfinite == 0);
    if (r->c.k_dead) compare_codes(r, &plain.dead, &screened.dead, plain.nonfinite == 0);
    discard(&plain), discard(&screened);
  }
  omp_set_num_threads(threads);
}

static void check(sae_rig *r) { check_with(r, screen_of(r)); }

static sae_rig rig(int64_t n, int64_t d, int64_t m, int64_t k, int64_t k_dead, uint64_t seed) {
  return rig_create((sae_case){ .n = n, .d = d, .m = m, .k = k, .k_dead = k_dead }, seed);
}

static void scale(float *x, int64_t n, float by) {
  for (int64_t i = 0; i < n; i++) x[i] *= by;
}

static uint64_t state = 77;
static int64_t below(int64_t n) { return (int64_t)(rig_next(&state) % (uint64_t)n); }

/* -- Shapes -- */

static void test_shapes(void **unused) {
  (void)unused;
  static const sae_case cases[] = {
    { .n = 1, .d = 1, .m = 1, .k = 1 }, { .n = 5, .d = 3, .m = 7, .k = 7, .k_dead = 2 },
    { .n = 33, .d = 17, .m = 11, .k = 11 }, { .n = 300, .d = 64, .m = 1000, .k = 1, .k_dead = 9 },
    { .n = 257, .d = 129, .m = 2000, .k = 40 }, { .n = 70, .d = 48, .m = 500, .k = 500 },
    { .n = 600, .d = 100, .m = 3001, .k = 32, .k_dead = 50 }, { .n = 40, .d = 65, .m = 1300, .k = 600 },
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    for (int exact = 0; exact < 2; exact++) {
      sae_case c = cases[i];
      c.exact = exact;
      sae_rig r = rig_create(c, i + 1);
      check(&r);
      rig_free(&r);
    }
  }
  for (int i = 0; i < 25; i++) {
    int64_t m = 1 + below(1500), k = 1 + below(m < 100 ? m : 100);
    sae_rig r = rig_create((sae_case){ .n = 1 + below(200), .d = 1 + below(150), .m = m, .k = k,
                                       .k_dead = below(2) * (1 + below(k)), .exact = below(3) == 0 }, (uint64_t)i);
    check(&r);
    rig_free(&r);
  }
}

static void test_no_tokens(void **unused) {
  (void)unused;
  sae_rig r = rig(0, 20, 100, 4, 0, 3);
  check(&r);
  rig_free(&r);
}

/* -- Scales -- */

static void test_scales_of_tokens_and_rows(void **unused) {
  (void)unused;
  sae_rig r = rig(200, 90, 1500, 20, 6, 11);
  for (int64_t t = 0; t < r.c.n; t++) scale(r.x + t * r.c.d, r.c.d, exp2f((float)(below(80) - 40)));
  memset(r.weights.b_dec, 0, (size_t)r.c.d * 4);
  check(&r);
  for (int64_t i = 0; i < r.c.m; i++) scale(r.weights.w_enc + i * r.c.d, r.c.d, exp2f((float)(below(60) - 30)));
  check(&r);
  memset(r.weights.b_enc, 0, (size_t)r.c.m * 4);
  check(&r);
  rig_free(&r);
}

/* One row makes its block useless and nothing else; or, at the end of the range, everything. */
static void test_one_huge_row(void **unused) {
  (void)unused;
  for (int power = 4; power <= 120; power += 29) {
    sae_rig r = rig(150, 80, 1200, 16, 0, (uint64_t)power);
    scale(r.weights.w_enc + 777 * r.c.d, r.c.d, exp2f((float)power));
    check(&r);
    rig_free(&r);
  }
}

static void test_huge_bias(void **unused) {
  (void)unused;
  sae_rig r = rig(100, 70, 900, 12, 4, 5);
  r.weights.b_enc[13] = 1e7f, r.weights.b_enc[14] = -1e20f, r.weights.b_enc[15] = 3e38f;
  check(&r);
  r.weights.b_enc[15] = -3e38f;
  check(&r);
  rig_free(&r);
}

/* Sums that overflow on the way in one order but not in the other belong to the float32 path. */
static void test_near_overflow(void **unused) {
  (void)unused;
  sae_rig r = rig(64, 40, 300, 5, 0, 8);
  for (int64_t t = 0; t < r.c.n; t += 2) scale(r.x + t * r.c.d, r.c.d, 2.9e37f);
  r.x[10 * r.c.d + 3] = 3.4e38f; /* rounds to infinity in bf16 */
  check(&r);
  rig_free(&r);
}

static void test_denormals(void **unused) {
  (void)unused;
  for (int which = 0; which < 4; which++) {
    sae_rig r = rig(120, 66, 700, 9, 3, 21);
    memset(r.weights.b_dec, 0, (size_t)r.c.d * 4);
    memset(r.weights.b_enc, 0, (size_t)r.c.m * 4);
    if (which & 1) scale(r.x, r.c.n * r.c.d, 1e-39f);
    else scale(r.x, r.c.n * r.c.d, 1e-19f);
    if (which & 2) scale(r.weights.w_enc, r.c.m * r.c.d, 1e-39f);
    else if (!(which & 1)) scale(r.weights.w_enc, r.c.m * r.c.d, 1e-20f); /* products are denormal */
    check(&r);
    for (int64_t i = 0; i < r.c.m; i += 3) r.weights.b_enc[i] = 1e-40f;
    check(&r);
    /* a mixture: what is flushed hides beside what is not */
    for (int64_t i = 0; i < r.c.n * r.c.d; i += 5) r.x[i] = 1.0f + (float)(i % 7);
    for (int64_t i = 0; i < r.c.m * r.c.d; i += 4) r.weights.w_enc[i] = 0.5f - (float)(i % 3);
    check(&r);
    rig_free(&r);
  }
}

/* -- Ties -- */

static void test_ties_and_near_ties(void **unused) {
  (void)unused;
  sae_rig r = rig(130, 60, 1400, 10, 5, 31);
  for (int64_t i = 0; i < r.c.m; i++) { /* groups of seven equal rows, with biases one rounding apart */
    memcpy(r.weights.w_enc + i * r.c.d, r.weights.w_enc + i / 7 * 7 * r.c.d, (size_t)r.c.d * 4);
    r.weights.b_enc[i] = nextafterf(0.25f, (i % 3) ? 1 : 0);
  }
  check(&r);
  for (int64_t i = 0; i < r.c.m; i++) r.weights.b_enc[i] = 0.25f;
  check(&r);
  for (int64_t i = 0; i < r.c.m * r.c.d; i++) /* rows that bf16 cannot tell apart */
    r.weights.w_enc[i] = r.weights.w_enc[i % r.c.d] * (1 + 0x1p-22f * (float)below(8));
  check(&r);
  rig_free(&r);
}

static void test_all_equal(void **unused) {
  (void)unused;
  sae_rig r = rig(100, 30, 2500, 8, 3, 41);
  for (int64_t i = 0; i < r.c.m; i++) {
    memcpy(r.weights.w_enc + i * r.c.d, r.weights.w_enc, (size_t)r.c.d * 4);
    r.weights.b_enc[i] = 0.5f;
  }
  check(&r);
  memset(r.x, 0, (size_t)(r.c.n * r.c.d) * 4);
  memset(r.weights.b_dec, 0, (size_t)r.c.d * 4);
  check(&r); /* x = 0: the bias alone */
  memset(r.weights.b_enc, 0, (size_t)r.c.m * 4);
  check(&r); /* nothing at all */
  rig_free(&r);
}

static void test_none_positive(void **unused) {
  (void)unused;
  sae_rig r = rig(100, 30, 900, 8, 3, 43);
  for (int64_t i = 0; i < r.c.m; i++) r.weights.b_enc[i] = -100;
  check(&r);
  for (int64_t i = 0; i < r.c.m * r.c.d; i++) r.weights.w_enc[i] = -fabsf(r.weights.w_enc[i]);
  for (int64_t i = 0; i < r.c.n * r.c.d; i++) r.x[i] = fabsf(r.x[i]);
  memset(r.weights.b_dec, 0, (size_t)r.c.d * 4);
  for (int64_t i = 0; i < r.c.m; i++) r.weights.b_enc[i] = (float)below(3) * 1e-3f;
  check(&r); /* a few just above zero */
  rig_free(&r);
}

/* Inputs that cancel: pre-activations far smaller than what the bound is made of. */
static void test_cancellation(void **unused) {
  (void)unused;
  sae_rig r = rig(90, 64, 1000, 12, 0, 47);
  memset(r.weights.b_dec, 0, (size_t)r.c.d * 4);
  for (int64_t t = 0; t < r.c.n; t++)
    for (int64_t j = 0; j + 1 < r.c.d; j += 2) r.x[t * r.c.d + j + 1] = nextafterf(r.x[t * r.c.d + j], 9);
  for (int64_t i = 0; i < r.c.m; i++)
    for (int64_t j = 0; j + 1 < r.c.d; j += 2) r.weights.w_enc[i * r.c.d + j + 1] = -r.weights.w_enc[i * r.c.d + j];
  check(&r);
  rig_free(&r);
}

/* Rounding errors of one sign, so that the error comes near its bound: the best latent, number 150, looks worse in
 * bf16 than five others. Few enough survive for the screen to decide. */
static void test_errors_that_add_up(void **unused) {
  (void)unused;
  enum { D = 128, HALF = 64, M = 200, BEST = 150 };
  const float down = 1 + 0.9f * 0x1p-8f, up = 1 + 1.1f * 0x1p-8f; /* become 1 and 1 + 2^-7 */
  for (int which = 0; which < 2; which++) {
    sae_rig r = rig(40, D, M, 1, 0, 49);
    memset(r.weights.b_dec, 0, D * 4);
    memset(r.weights.b_enc, 0, M * 4);
    for (int64_t t = 0; t < r.c.n; t++)
      for (int64_t j = 0; j < D; j++) r.x[t * D + j] = which ? 1 : j < HALF ? down : up;
    for (int64_t i = 0; i < M; i++) {
      float *w = r.weights.w_enc + i * D;
      for (int64_t j = 0; j < D; j++) {
        if (i == BEST) w[j] = j >= HALF ? 0 : which ? down : 1;
        else w[j] = j < HALF || i % 40 != 0 ? 0 : which ? (j == HALF ? 0.9f : up) : 1 - 0x1p-8f;
      }
    }
    check(&r);
    outcome screened = encode(&r, screen_of(&r));
    assert_int_equal(screened.codes.ids[0], BEST);
    discard(&screened);
    rig_free(&r);
  }
}

/* -- Overflow of the buffers -- */

static void test_survivors_overflow(void **unused) {
  (void)unused;
  static const int64_t limits[][2] = { { 16, 0 }, { 32, 48 }, { 48, 64 }, { 0, 48 }, { 64, 80 }, { 16, 16 } };
  for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
    sae_cpu_limit_survivors(limits[i][0], limits[i][1]);
    for (int64_t k = 1; k <= 33; k += 16) {
      sae_rig r = rig(700, 50, 1500, k, (int64_t)(i % 2) * 7, i + 51);
      check(&r);
      rig_free(&r);
    }
  }
  sae_cpu_limit_survivors(0, 0);
}

/* Some tokens are refused, their neighbours are not. */
static void test_mixed_batch(void **unused) {
  (void)unused;
  sae_rig r = rig(500, 72, 1600, 11, 6, 61);
  for (int64_t i = 0; i < r.c.m; i++) /* half of the dictionary is one direction: its tokens have many near-ties */
    if (i % 2) memcpy(r.weights.w_enc + i * r.c.d, r.weights.w_enc + r.c.d, (size_t)r.c.d * 4);
  check(&r);
  rig_free(&r);
}

/* -- Not finite -- */

static void test_nonfinite(void **unused) {
  (void)unused;
  sae_rig r = rig(90, 34, 400, 6, 3, 71);
  r.x[3 * r.c.d + 2] = NAN, r.x[64 * r.c.d] = INFINITY, r.x[65 * r.c.d + 1] = -INFINITY;
  check(&r);
  r.weights.w_enc[399 * r.c.d] = INFINITY;
  check(&r);
  r.weights.w_enc[399 * r.c.d] = NAN;
  check(&r);
  r.weights.w_enc[399 * r.c.d] = 0;
  r.weights.b_enc[7] = NAN;
  check(&r);
  r.weights.b_enc[7] = -INFINITY;
  check(&r);
  rig_free(&r);
}

/* Any w_screen gives the same result: stale, coarse, or wrong altogether. */
static void test_any_screen(void **unused) {
  (void)unused;
  sae_rig r = rig(200, 70, 1200, 14, 5, 81);
  const uint16_t *screen = screen_of(&r);
  for (int64_t i = 0; i < r.c.m * r.c.d; i++) r.w_bf16[i] &= 0xfff0; /* four bits fewer */
  check_with(&r, screen);
  for (int64_t i = 0; i < 50 * r.c.d; i++) r.w_bf16[i] = 0;
  check_with(&r, screen);
  for (int64_t i = 0; i < r.c.m * r.c.d; i++) r.w_bf16[i] ^= 0x8000;
  check_with(&r, screen);
  r.w_bf16[5] = 0x7f80;
  check_with(&r, screen);
  rig_free(&r);
}

static void test_appends_behind_other_rows(void **unused) {
  (void)unused;
  sae_rig r = rig(60, 20, 300, 4, 0, 91);
  outcome all = encode(&r, screen_of(&r));
  sae_rig second = rig(20, 20, 300, 4, 0, 91);
  memcpy(second.x, r.x + 40 * r.c.d, (size_t)(20 * r.c.d) * 4);
  memcpy(second.weights.w_enc, r.weights.w_enc, (size_t)(r.c.m * r.c.d) * 4);
  memcpy(second.weights.b_enc, r.weights.b_enc, (size_t)r.c.m * 4);
  memcpy(second.weights.b_dec, r.weights.b_dec, (size_t)r.c.d * 4);
  outcome tail = encode(&second, screen_of(&second));
  int64_t from = all.codes.offsets[40];
  assert_int_equal(all.codes.offsets[60] - from, tail.codes.offsets[20]);
  assert_memory_equal(all.codes.values + from, tail.codes.values, (size_t)tail.codes.offsets[20] * 4);
  discard(&all), discard(&tail);
  rig_free(&r), rig_free(&second);
}

static void test_wants_screen(void **unused) {
  (void)unused;
  bool wants = false;
  sl_sae_encode_topk_args args = { .n = 4096, .d = 768, .m = 24576, .k = 32, .wants_screen = &wants };
  rig_check(rig_kernels()->sae_encode_topk(sl_cpu_device(), &args));
  assert_int_equal(wants, sae_cpu_get_ops()->screen_tile != NULL);
  args.k = 24576;
  rig_check(rig_kernels()->sae_encode_topk(sl_cpu_device(), &args));
  assert_false(wants);
  args.k = 32, args.dtype = SL_BF16;
  rig_check(rig_kernels()->sae_encode_topk(sl_cpu_device(), &args));
  assert_false(wants);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_shapes),
    cmocka_unit_test(test_no_tokens),
    cmocka_unit_test(test_scales_of_tokens_and_rows),
    cmocka_unit_test(test_one_huge_row),
    cmocka_unit_test(test_huge_bias),
    cmocka_unit_test(test_near_overflow),
    cmocka_unit_test(test_denormals),
    cmocka_unit_test(test_ties_and_near_ties),
    cmocka_unit_test(test_all_equal),
    cmocka_unit_test(test_none_positive),
    cmocka_unit_test(test_cancellation),
    cmocka_unit_test(test_errors_that_add_up),
    cmocka_unit_test(test_survivors_overflow),
    cmocka_unit_test(test_mixed_batch),
    cmocka_unit_test(test_nonfinite),
    cmocka_unit_test(test_any_screen),
    cmocka_unit_test(test_appends_behind_other_rows),
    cmocka_unit_test(test_wants_screen),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
