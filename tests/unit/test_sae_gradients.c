/* sae_backward, finish, fill, update, unit_rows, center, note_fired and mask against float64 references. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <omp.h>

#include "support/sae_reference.h"

static const sae_case cases[] = {
  { 1, 1, 1, 1, 0, false, false },        { 6, 3, 7, 2, 0, false, false },
  { 40, 17, 13, 13, 0, false, false },    { 70, 96, 40, 8, 0, false, false },
  { 129, 100, 101, 32, 0, false, false }, { 300, 64, 500, 2, 0, false, false },
};

typedef struct { double *w_enc, *w_dec, *b_enc, *b_dec; } wide_gradients;

static wide_gradients wide_create(const sae_case *c) {
  return (wide_gradients){ rig_memory(c->m * c->d, 8), rig_memory(c->m * c->d, 8), rig_memory(c->m, 8),
                           rig_memory(c->d, 8) };
}
static void wide_free(wide_gradients *g) { free(g->w_enc), free(g->w_dec), free(g->b_enc), free(g->b_dec); }

/* Adds the gradients of scale/(-2) * |e|^2 through the codes of the rig, by the book. */
static void reference_backward(const sae_rig *r, double scale, wide_gradients *g) {
  int64_t d = r->c.d;
  double *e = rig_memory(d, 8);
  for (int64_t t = 0; t < r->c.n; t++) {
    for (int64_t j = 0; j < d; j++) e[j] = (double)r->x[t * d + j] - (double)r->weights.b_dec[j];
    for (int64_t p = r->codes.offsets[t]; p < r->codes.offsets[t + 1]; p++)
      for (int64_t j = 0; j < d; j++)
        e[j] -= (double)r->codes.values[p] * (double)r->weights.w_dec[r->codes.ids[p] * d + j];
    for (int64_t j = 0; j < d; j++) g->b_dec[j] += scale * e[j];
    for (int64_t p = r->codes.offsets[t]; p < r->codes.offsets[t + 1]; p++) {
      int64_t i = r->codes.ids[p];
      double da = 0;
      for (int64_t j = 0; j < d; j++) {
        da += scale * e[j] * (double)r->weights.w_dec[i * d + j];
        g->w_dec[i * d + j] += scale * e[j] * (double)r->codes.values[p];
      }
      g->b_enc[i] += da;
      for (int64_t j = 0; j < d; j++) {
        g->w_enc[i * d + j] += da * ((double)r->x[t * d + j] - (double)r->weights.b_dec[j]);
        g->b_dec[j] -= da * (double)r->weights.w_enc[i * d + j];
      }
    }
  }
  free(e);
}

static void assert_close(const float *got, const double *want, int64_t n) {
  double size = 1e-6;
  for (int64_t i = 0; i < n; i++) size = fabs(want[i]) > size ? fabs(want[i]) : size;
  for (int64_t i = 0; i < n; i++) {
    if (fabs((double)got[i] - want[i]) > 2e-5 * size) {
      fail_msg("element %lld: %.9g, expected %.9g", (long long)i, (double)got[i], want[i]);
    }
  }
}

static void project_reference(const sae_rig *r, wide_gradients *g) {
  for (int64_t i = 0; i < r->c.m; i++) {
    double along = 0;
    const float *w = r->weights.w_dec + i * r->c.d;
    for (int64_t j = 0; j < r->c.d; j++) along += g->w_dec[i * r->c.d + j] * (double)w[j];
    for (int64_t j = 0; j < r->c.d; j++) g->w_dec[i * r->c.d + j] -= along * (double)w[j];
  }
}

static double wide_squares(const sae_case *c, const wide_gradients *g) {
  double sum = 0;
  for (int64_t i = 0; i < c->m * c->d; i++) sum += g->w_enc[i] * g->w_enc[i] + g->w_dec[i] * g->w_dec[i];
  for (int64_t i = 0; i < c->m; i++) sum += g->b_enc[i] * g->b_enc[i];
  for (int64_t j = 0; j < c->d; j++) sum += g->b_dec[j] * g->b_dec[j];
  return sum;
}

static void test_gradients(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    for (int isa = SAE_ISA_BASE; isa <= SAE_ISA_BEST; isa++) {
      sae_cpu_limit_isa(isa);
      sae_rig r = rig_create(cases[i], i + 3);
      wide_gradients g = wide_create(&r.c);
      for (int pass = 0; pass < 2; pass++) { /* the second pass has other tokens and adds to the first */
        uint64_t seed = 11 * i + 5;
        if (pass == 1) rig_fill(r.x, r.c.n * r.c.d, false, &seed);
        rig_encode(&r);
        rig_decode(&r);
        rig_backward(&r, -0.3f);
        reference_backward(&r, (double)-0.3f, &g);
        rig_finish(&r, false);
        rig_check(rig_kernels()->sae_fill_gradients(sl_cpu_device(), &(sl_sae_fill_gradients_args){
          .m = r.c.m, .d_in = r.c.d, .d_out = r.c.d, .gradients = r.gradients }));
        assert_close(r.gradients.w_dec, g.w_dec, r.c.m * r.c.d);
        assert_close(r.gradients.w_enc, g.w_enc, r.c.m * r.c.d);
        assert_close(r.gradients.b_enc, g.b_enc, r.c.m);
        assert_close(r.total_b_dec, g.b_dec, r.c.d);
        double squares = wide_squares(&r.c, &g);
        assert_true(fabs(r.norm_squares - squares) < 1e-4 * squares + 1e-9);
      }
      rig_finish(&r, true);
      project_reference(&r, &g);
      double squares = wide_squares(&r.c, &g);
      assert_true(fabs(r.norm_squares - squares) < 1e-4 * squares + 1e-9);
      wide_free(&g);
      rig_free(&r);
    }
  }
  sae_cpu_limit_isa(SAE_ISA_BEST);
}

/* Two halves accumulated give what the whole batch gives. */
static void test_accumulation_is_one_big_batch(void **state) {
  (void)state;
  sae_case whole_case = { .n = 96, .d = 33, .m = 77, .k = 6 }, half_case = whole_case;
  half_case.n = 48;
  sae_rig whole = rig_create(whole_case, 21), half = rig_create(whole_case, 21);
  rig_encode(&whole), rig_decode(&whole), rig_backward(&whole, -1);
  rig_finish(&whole, true);
  float *all = half.x;
  for (int part = 0; part < 2; part++) {
    half.c = half_case;
    half.codes.rows = 48;
    half.x = all + part * 48 * whole_case.d;
    rig_encode(&half), rig_decode(&half), rig_backward(&half, -1);
  }
  half.x = all;
  rig_finish(&half, true);
  assert_true(fabs(half.norm_squares - whole.norm_squares) < 1e-5 * whole.norm_squares);
  for (int64_t i = 0; i < whole_case.m; i++) {
    assert_int_equal(whole.gradients.touched[i], half.gradients.touched[i]);
    if (!whole.gradients.touched[i]) continue;
    for (int64_t j = i * 33; j < (i + 1) * 33; j++) {
      assert_float_equal(whole.gradients.w_enc[j], half.gradients.w_enc[j], 1e-3f);
      assert_float_equal(whole.gradients.w_dec[j], half.gradients.w_dec[j], 1e-3f);
    }
  }
  rig_free(&whole), rig_free(&half);
}

typedef struct { double lr, beta1, beta2, eps, decay, scale; int64_t step; bool adam, project, unit; } rule;

static void reference_adam(const rule *o, double *w, double *m1, double *m2, const double *g, int64_t n,
                           bool matrix) {
  for (int64_t j = 0; j < n; j++) {
    double gradient = o->scale * g[j];
    if (matrix) w[j] *= 1 - o->lr * o->decay;
    if (!o->adam) {
      w[j] -= o->lr * gradient;
      continue;
    }
    m1[j] = o->beta1 * m1[j] + (1 - o->beta1) * gradient;
    m2[j] = o->beta2 * m2[j] + (1 - o->beta2) * gradient * gradient;
    w[j] -= o->lr * (m1[j] / (1 - pow(o->beta1, (double)o->step))) /
            (sqrt(m2[j] / (1 - pow(o->beta2, (double)o->step))) + o->eps);
  }
}

static double *widen(const float *x, int64_t n) {
  double *y = rig_memory(n, 8);
  for (int64_t i = 0; i < n; i++) y[i] = (double)x[i];
  return y;
}

static void run_update(sae_rig *r, const rule *o, bool bf16) {
  rig_check(rig_kernels()->sae_update(sl_cpu_device(),
                                      &(sl_sae_update_args){ .m = r->c.m,
                                                             .d_in = r->c.d,
                                                             .d_out = r->c.d,
                                                             .rule = o->adam ? SL_SAE_ADAM : SL_SAE_SGD,
                                                             .parameters = r->weights,
                                                             .moment1 = r->moment1,
                                                             .moment2 = r->moment2,
                                                             .gradients = r->gradients,
                                                             .total_b_dec = r->total_b_dec,
                                                             .sum_squares = &(double){ 1 },
                                                             .clip_norm = o->scale < 1 ? o->scale : 0,
                                                             .project = o->project,
                                                             .unit_rows = o->unit,
                                                             .lr = (float)o->lr,
                                                             .beta1 = (float)o->beta1,
                                                             .beta2 = (float)o->beta2,
                                                             .eps = (float)o->eps,
                                                             .weight_decay = (float)o->decay,
                                                             .step = o->step,
                                                             .w_enc_bf16 = bf16 ? r->w_bf16 : NULL }));
}

static void check_update(sae_case c, rule o, int steps) {
  sae_rig r = rig_create(c, 31);
  int64_t md = c.m * c.d;
  double *w_enc = widen(r.weights.w_enc, md), *w_dec = widen(r.weights.w_dec, md),
         *b_enc = widen(r.weights.b_enc, c.m), *b_dec = widen(r.weights.b_dec, c.d);
  wide_gradients m1 = wide_create(&c), m2 = wide_create(&c);
  for (int s = 1; s <= steps; s++) {
    wide_gradients g = wide_create(&c);
    uint64_t seed = (uint64_t)s * 77;
    rig_fill(r.x, c.n * c.d, false, &seed);
    rig_encode(&r), rig_decode(&r), rig_backward(&r, -1);
    reference_backward(&r, -1, &g);
    rig_finish(&r, o.project);
    if (o.project) project_reference(&r, &g);
    o.step = s;
    run_update(&r, &o, true);
    reference_adam(&o, w_enc, m1.w_enc, m2.w_enc, g.w_enc, md, true);
    reference_adam(&o, w_dec, m1.w_dec, m2.w_dec, g.w_dec, md, true);
    reference_adam(&o, b_enc, m1.b_enc, m2.b_enc, g.b_enc, c.m, false);
    reference_adam(&o, b_dec, m1.b_dec, m2.b_dec, g.b_dec, c.d, false);
    for (int64_t i = 0; o.unit && i < c.m; i++) {
      double norm = 0;
      for (int64_t j = 0; j < c.d; j++) norm += w_dec[i * c.d + j] * w_dec[i * c.d + j];
      for (int64_t j = 0; j < c.d; j++) w_dec[i * c.d + j] /= sqrt(norm) + 1.19209290e-7;
    }
    assert_close(r.weights.w_enc, w_enc, md);
    assert_close(r.weights.w_dec, w_dec, md);
    assert_close(r.weights.b_enc, b_enc, c.m);
    assert_close(r.weights.b_dec, b_dec, c.d);
    if (o.adam) assert_close(r.moment1.w_dec, m1.w_dec, md), assert_close(r.moment2.w_enc, m2.w_enc, md);
    for (int64_t i = 0; i < md; i++) assert_int_equal(r.w_bf16[i], sl_f32_to_bf16(r.weights.w_enc[i]));
    for (int64_t i = 0; i < c.m; i++) assert_true(!r.gradients.touched[i] && r.gradients.b_enc[i] == 0);
    wide_free(&g);
  }
  free(w_enc), free(w_dec), free(b_enc), free(b_dec);
  wide_free(&m1), wide_free(&m2);
  rig_free(&r);
}

static void test_updates(void **state) {
  (void)state;
  /* eps large enough that a gradient of nearly zero does not become a full step by its rounding error */
  rule adam = { .lr = 1e-2,
                .beta1 = 0.9,
                .beta2 = 0.999,
                .eps = 1e-2,
                .scale = 0.5,
                .adam = true,
                .project = true,
                .unit = true };
  rule plain = {
    .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-2, .decay = 0.1, .scale = 1, .adam = true
  };
  rule sgd = { .lr = 1e-3, .scale = 1, .unit = true, .project = true };
  rule decayed = { .lr = 1e-3, .scale = 0.7, .decay = 0.5 };
  sae_case c = { .n = 20, .d = 19, .m = 90, .k = 3 }, wide = { .n = 60, .d = 96, .m = 70, .k = 5 };
  for (int isa = SAE_ISA_BASE; isa <= SAE_ISA_BEST; isa++) {
    sae_cpu_limit_isa(isa);
    check_update(c, adam, 3), check_update(wide, adam, 3);
    check_update(c, plain, 3), check_update(c, sgd, 2), check_update(wide, decayed, 2);
  }
  sae_cpu_limit_isa(SAE_ISA_BEST);
}

/* Rows above the streaming size, and the same bits from any number of threads. */
static void test_threads(void **state) {
  (void)state;
  int threads = omp_get_max_threads();
  sae_case c = { .n = 200, .d = 256, .m = 9000, .k = 24 };
  rule adam = { .lr = 1e-2,
                .beta1 = 0.9,
                .beta2 = 0.999,
                .eps = 1e-8,
                .scale = 0.5,
                .adam = true,
                .project = true,
                .unit = true,
                .step = 1 };
  omp_set_num_threads(1);
  sae_rig one = rig_create(c, 8), three = rig_create(c, 8);
  rig_encode(&one), rig_decode(&one), rig_backward(&one, -1), rig_finish(&one, true),
      run_update(&one, &adam, false);
  omp_set_num_threads(3);
  rig_encode(&three), rig_decode(&three), rig_backward(&three, -1), rig_finish(&three, true),
      run_update(&three, &adam, false);
  omp_set_num_threads(threads);
  assert_true(one.norm_squares == three.norm_squares);
  assert_memory_equal(one.weights.w_enc, three.weights.w_enc, (size_t)(c.m * c.d) * 4);
  assert_memory_equal(one.weights.w_dec, three.weights.w_dec, (size_t)(c.m * c.d) * 4);
  assert_memory_equal(one.weights.b_enc, three.weights.b_enc, (size_t)c.m * 4);
  assert_memory_equal(one.weights.b_dec, three.weights.b_dec, (size_t)c.d * 4);
  rig_free(&one), rig_free(&three);
}

static void test_center(void **state) {
  (void)state;
  enum { N = 101, D = 7 };
  float x[N * D], mean[D], median[D];
  uint64_t seed = 4;
  rig_fill(x, N * D, false, &seed);
  for (int j = 0; j < D; j++) x[j] = 1e4f; /* an outlier moves the mean, hardly the median */
  double variance, workspace[D * 40];
  int32_t iterations;
  sl_sae_center_args args = { .n = N,
                              .d = D,
                              .x = x,
                              .center = mean,
                              .total_variance = &variance,
                              .workspace = workspace,
                              .workspace_bytes = sizeof workspace };
  rig_check(rig_kernels()->sae_center(sl_cpu_device(), &args));
  double expected = 0;
  for (int j = 0; j < D; j++) {
    double sum = 0;
    for (int t = 0; t < N; t++) sum += (double)x[t * D + j];
    assert_true(fabs(sum / N - (double)mean[j]) < 1e-4);
    for (int t = 0; t < N; t++)
      expected += ((double)x[t * D + j] - sum / N) * ((double)x[t * D + j] - sum / N);
  }
  assert_true(fabs(expected - variance) < 1e-5 * expected);
  args.center = median, args.median = true, args.tolerance = 1e-7, args.max_iterations = 500,
  args.iterations = &iterations;
  rig_check(rig_kernels()->sae_center(sl_cpu_device(), &args));
  assert_true(iterations > 1 && iterations < 500);
  for (int j = 0; j < D; j++) { /* at the median the unit vectors to the points cancel */
    double pull = 0;
    for (int t = 0; t < N; t++) {
      double distance = 0;
      for (int q = 0; q < D; q++) distance += pow((double)x[t * D + q] - (double)median[q], 2);
      pull += ((double)x[t * D + j] - (double)median[j]) / sqrt(distance);
    }
    assert_true(fabs(pull) < 1e-3);
  }
}

static void test_bookkeeping(void **state) {
  (void)state;
  int64_t offsets[] = { 0, 2, 2, 5 }, since[] = { 7, 7, 0 }, counts[] = { 1, 2, 3 }, dead;
  uint8_t mask[3];
  rig_check(rig_kernels()->sae_note_fired(sl_cpu_device(), &(sl_sae_note_fired_args){
    .m = 3, .tokens = 10, .offsets = offsets, .since = since, .counts = counts }));
  assert_true(since[0] == 0 && since[1] == 17 && since[2] == 0);
  assert_true(counts[0] == 3 && counts[1] == 2 && counts[2] == 6);
  sl_sae_mask_args args = { .m = 3, .bound = 17, .value = since, .mask = mask, .count = &dead };
  rig_check(rig_kernels()->sae_mask(sl_cpu_device(), &args));
  assert_int_equal(dead, 0); /* strictly more */
  args.bound = 16;
  rig_check(rig_kernels()->sae_mask(sl_cpu_device(), &args));
  assert_true(dead == 1 && !mask[0] && mask[1] && !mask[2]);
  args = (sl_sae_mask_args){ .m = 3, .bound = 3, .below = true, .value = counts, .count = &dead };
  rig_check(rig_kernels()->sae_mask(sl_cpu_device(), &args));
  assert_int_equal(dead, 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_gradients),
    cmocka_unit_test(test_accumulation_is_one_big_batch),
    cmocka_unit_test(test_updates),
    cmocka_unit_test(test_threads),
    cmocka_unit_test(test_center),
    cmocka_unit_test(test_bookkeeping),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
