/* sae_pack and sae_encode_topk of the CUDA backend against the CPU's, to the bit: shapes, ties, dead latents, tokens
 * that are not finite, rows of a larger batch, work cut small. */
#include "tests/support/sae_pair.h"

static const sae_shape shapes[] = {
  { .n = 1, .d = 1, .m = 1, .k = 1 },
  { .n = 1, .d = 7, .m = 40, .k = 1, .base = 5 },
  { .n = 3, .d = 3, .m = 7, .k = 2, .k_dead = 2, .base = 3 },
  { .n = 9, .d = 17, .m = 13, .k = 13, .k_dead = 13 },
  { .n = 20, .d = 12, .m = 75, .k = 8, .k_dead = 5, .bf16 = true, .base = 100 },
  { .n = 5, .d = 9, .m = 700, .k = 100, .k_dead = 140, .shift = 1 },
  { .n = 3, .d = 4, .m = 4097, .k = 32, .k_dead = 300 },     /* a second segment of one value */
  { .n = 2, .d = 3, .m = 9001, .k = 700, .k_dead = 1 },      /* three segments; groups of four bound k */
  { .n = 2, .d = 2, .m = 9000, .k = 4097, .bf16 = true },    /* no bound */
  { .n = 2, .d = 3, .m = 20000, .k = 20000, .k_dead = 500 }, /* candidates do not fit shared memory */
  { .n = 0, .d = 5, .m = 9, .k = 2, .base = 4 },
};

static void test_shapes(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(shapes); i++) {
    pair p = pair_open();
    sae_shape s = shapes[i];
    s.exact = true;
    sae_pair r = sae_pair_open(&p, s, 7 + i);
    for (int side = 0; side < 2; side++) sae_run_encode(&r, side);
    sae_check_codes(&r);
    assert_int_equal(sae_fetch_numbers(&r)->nonfinite, 0);
    pair_close(&p);
  }
}

/* The tile of pre-activations in pieces of rows and columns: the same codes. */
static void test_small_workspaces(void **state) {
  (void)state;
  static const size_t cuts[] = { 2, 4 };
  for (size_t i = 0; i < LENGTH(cuts); i++) {
    for (int k_dead = 0; k_dead < 80; k_dead += 70) {
      pair p = pair_open();
      sae_pair r = sae_pair_open(&p, (sae_shape){ .n = 7, .d = 3, .m = 9000, .k = 40, .k_dead = k_dead,
                                                  .exact = true, .base = 2 }, 3);
      sae_run_encode(&r, PAIR_CPU);
      sae_run_pack(&r, PAIR_CUDA);
      sl_sae_encode_topk_args encode = sae_encode_args(&r, PAIR_CUDA);
      size_t need;
      encode.need = &need;
      PAIR_RUN(&p, PAIR_CUDA, sae_encode_topk, &encode);
      block *work = pair_block(&p, need / cuts[i]);
      encode.need = NULL, encode.workspace = AT(work, PAIR_CUDA), encode.workspace_bytes = work->bytes;
      PAIR_RUN(&p, PAIR_CUDA, sae_encode_topk, &encode);
      pair_check_guards(&p, "a small workspace", work);
      sae_check_codes(&r);
      encode.workspace_bytes = 512;
      assert_int_equal(p.devices[PAIR_CUDA]->kernels->sae_encode_topk(p.devices[PAIR_CUDA], &encode), SL_EINVAL);
      pair_close(&p);
    }
  }
}

/* Equal rows of W: the lowest latents win, through shrinks (10,000 equal values) and across segments. */
static void test_ties(void **state) {
  (void)state;
  static const int64_t ks[] = { 1, 33, 600 };
  for (size_t c = 0; c < 2 * LENGTH(ks); c++) {
    pair p = pair_open();
    sae_shape s = { .n = 1, .d = 2, .m = 10000, .k = ks[c / 2], .k_dead = ks[c / 2], .exact = true };
    sae_pair r = sae_pair_open(&p, s, 5);
    float *w = calloc((size_t)(s.m * s.d), 4), *bias = calloc((size_t)s.m, 4);
    for (int64_t i = 0; i < s.m; i++) {
      w[i * s.d] = 0.125f;
      bias[i] = c % 2 == 0 ? 10 : 10 + (float)(i / 3000) * 0.5f; /* rising in steps: each shrink leaves ties */
    }
    pair_put(&p, r.w_enc, w), pair_put(&p, r.b_enc, bias);
    for (int side = 0; side < 2; side++) sae_run_encode(&r, side);
    sae_check_codes(&r);
    const int32_t *ids = pair_fetch(&p, r.ids);
    for (int64_t j = 0; j < s.k; j++) assert_int_equal(ids[j], (c % 2 == 0 ? 0 : 9000) + j);
    free(w), free(bias);
    pair_close(&p);
  }
}

static void test_no_positives(void **state) {
  (void)state;
  pair p = pair_open();
  sae_pair r = sae_pair_open(&p, (sae_shape){ .n = 6, .d = 3, .m = 50, .k = 4, .k_dead = 3, .exact = true }, 5);
  float bias[50];
  for (int i = 0; i < 50; i++) bias[i] = i == 11 ? 0 : -100;
  pair_put(&p, r.b_enc, bias);
  float *w = calloc(150, 4); /* latent 11: a pre-activation of exactly 0, which is not kept */
  pair_put(&p, r.w_enc, w);
  free(w);
  for (int side = 0; side < 2; side++) sae_run_encode(&r, side);
  sae_check_codes(&r);
  assert_int_equal(((const int64_t *)pair_fetch(&p, r.offsets))[6], 0);
  pair_close(&p);
}

/* Marked once a token, however many pieces it comes in; the other rows are as ever. */
static void test_nonfinite(void **state) {
  (void)state;
  for (int cut = 0; cut < 2; cut++) {
    pair p = pair_open();
    sae_pair r = sae_pair_open(&p, (sae_shape){ .n = 7, .d = 4, .m = 9000, .k = 5, .k_dead = 4, .exact = true }, 6);
    float *x = make_numbers(28, 1, 3);
    for (int i = 0; i < 28; i++) x[i] = (float)(int)(x[i] * 4) / 8;
    x[2 * 4 + 1] = NAN, x[4 * 4] = INFINITY, x[5 * 4 + 3] = -INFINITY;
    pair_put(&p, r.x, x);
    free(x);
    sae_run_encode(&r, PAIR_CPU);
    sae_run_pack(&r, PAIR_CUDA);
    sl_sae_encode_topk_args encode = sae_encode_args(&r, PAIR_CUDA);
    size_t need;
    encode.need = &need;
    PAIR_RUN(&p, PAIR_CUDA, sae_encode_topk, &encode);
    block *work = pair_block(&p, cut ? need / 3 : need);
    encode.need = NULL, encode.workspace = AT(work, PAIR_CUDA), encode.workspace_bytes = work->bytes;
    PAIR_RUN(&p, PAIR_CUDA, sae_encode_topk, &encode);
    assert_int_equal(sae_fetch_numbers(&r)->nonfinite, 3);
    const int64_t *offsets = pair_fetch(&p, r.offsets);
    const int32_t *ids = pair_fetch(&p, r.ids);
    for (int64_t e = 0; e < offsets[7]; e++) assert_true(ids[e] >= 0 && ids[e] < 9000);
    const sl_codes_view cpu = sae_codes_at(&r, PAIR_CPU);
    for (int t = 0; t < 7; t += 1 + (t == 1 || t == 3) + (t == 3)) { /* 0, 1, 3, 6 */
      assert_int_equal(offsets[t + 1] - offsets[t], cpu.offsets[t + 1] - cpu.offsets[t]);
      for (int64_t j = 0; j < offsets[t + 1] - offsets[t]; j++)
        assert_int_equal(ids[offsets[t] + j], cpu.ids[cpu.offsets[t] + j]);
    }
    pair_close(&p);
  }
}

/* -- Screening: the same codes as without, whatever the bf16 matrix holds -- */

typedef enum { AS_ROUNDED, NOISY, UNRELATED, HUGE_ROW, NOT_FINITE, SCREENS } screen_kind;

static block *make_screen(const sae_pair *r, screen_kind kind) {
  size_t n = r->w_enc->bytes / 4;
  uint16_t *half = calloc(n + 1, 2);
  uint64_t state = 77;
  assert_non_null(half);
  for (size_t i = 0; i < n; i++) {
    float w = ((const float *)r->w_enc->at[PAIR_CPU])[i];
    if (kind == NOISY) w += next_number(&state) / 256;
    if (kind == UNRELATED) w = next_number(&state);
    half[i] = sl_f32_to_bf16(w);
  }
  if (kind == NOT_FINITE) half[5] = 0x7fc0;
  block *b = pair_of(r->p, half, n * 2);
  free(half);
  return b;
}

static void run_screened(sae_pair *r, block *screen, size_t cut) {
  const sae_shape *s = &r->s;
  sae_run_encode(r, PAIR_CPU);
  size_t panels;
  sl_sae_pack_args pack = { .n = s->n, .d = s->d, .x = AT(r->x, PAIR_CUDA), .shift = AT(r->b_dec, PAIR_CUDA),
                            .dtype = SL_F32, .screen = true, .need_panels = &panels };
  PAIR_RUN(r->p, PAIR_CUDA, sae_pack, &pack);
  block *room = pair_block(r->p, panels);
  pack.need_panels = NULL, pack.panels = AT(room, PAIR_CUDA), pack.slabs = AT(r->u[PAIR_CUDA], PAIR_CUDA);
  PAIR_RUN(r->p, PAIR_CUDA, sae_pack, &pack);
  sl_sae_encode_topk_args encode = sae_encode_args(r, PAIR_CUDA);
  encode.panels = pack.panels, encode.w_screen = AT(screen, PAIR_CUDA), encode.slabs = pack.slabs;
  size_t need;
  encode.need = &need;
  PAIR_RUN(r->p, PAIR_CUDA, sae_encode_topk, &encode);
  block *work = pair_block(r->p, need / cut);
  encode.need = NULL, encode.workspace = AT(work, PAIR_CUDA), encode.workspace_bytes = work->bytes;
  PAIR_RUN(r->p, PAIR_CUDA, sae_encode_topk, &encode);
  pair_check_guards(r->p, "workspace", work);
  sae_check_codes(r);
}

static void test_screening(void **state) {
  (void)state;
  static const sae_shape screened[] = {
    { .n = 4, .d = 64, .m = 700, .k = 8, .base = 3 },
    { .n = 3, .d = 37, .m = 5000, .k = 20, .k_dead = 15 },
    { .n = 2, .d = 12, .m = 300, .k = 300, .k_dead = 40 },
  };
  for (int kind = 0; kind < SCREENS; kind++) {
    for (size_t i = 0; i < LENGTH(screened); i++) {
      pair p = pair_open();
      sae_shape s = screened[i];
      s.exact = true;
      sae_pair r = sae_pair_open(&p, s, 20 + i);
      if (kind == HUGE_ROW) {
        float *w = AT(r.w_enc, PAIR_CPU);
        for (int64_t j = 0; j < s.d; j++) w[7 * s.d + j] *= 4096;
        pair_put(&p, r.w_enc, w);
      }
      run_screened(&r, make_screen(&r, (screen_kind)kind), i == 1 && kind < UNRELATED ? 2 : 1);
      assert_int_equal(sae_fetch_numbers(&r)->nonfinite, 0);
      pair_close(&p);
    }
  }
}

/* What the float32 product would count is counted, once. Ties and near-ties in their thousands overflow every buffer. */
static void test_screening_refuses(void **state) {
  (void)state;
  for (int tied = 0; tied < 2; tied++) {
    pair p = pair_open();
    sae_pair r = sae_pair_open(&p, (sae_shape){ .n = 4, .d = 16, .m = 1500, .k = 5, .exact = true }, 6);
    float *x = AT(r.x, PAIR_CPU), *w = AT(r.w_enc, PAIR_CPU);
    for (int64_t i = 0; tied && i < 1500 * 16; i++) w[i] = 0.5f;
    if (!tied) x[2 * 16 + 1] = INFINITY;
    pair_put(&p, r.x, x), pair_put(&p, r.w_enc, w);
    if (tied) {
      run_screened(&r, make_screen(&r, AS_ROUNDED), 1);
    } else {
      sae_run_encode(&r, PAIR_CPU);
      assert_int_equal(((const sl_sae_numbers *)r.numbers->at[PAIR_CPU])->nonfinite, 1);
      block *screen = make_screen(&r, AS_ROUNDED), *room = pair_block(&p, 4 * 16 * 2);
      sl_sae_pack_args pack = { .n = 4, .d = 16, .x = AT(r.x, PAIR_CUDA), .shift = AT(r.b_dec, PAIR_CUDA),
                                .dtype = SL_F32, .screen = true, .panels = AT(room, PAIR_CUDA),
                                .slabs = AT(r.u[PAIR_CUDA], PAIR_CUDA) };
      PAIR_RUN(&p, PAIR_CUDA, sae_pack, &pack);
      sl_sae_encode_topk_args encode = sae_encode_args(&r, PAIR_CUDA);
      encode.panels = pack.panels, encode.w_screen = AT(screen, PAIR_CUDA), encode.slabs = pack.slabs;
      PAIR_RUN_WORKING(&p, PAIR_CUDA, sae_encode_topk, &encode);
      assert_int_equal(sae_fetch_numbers(&r)->nonfinite, 1);
    }
    pair_close(&p);
  }
}

/* Numbers of all sizes, against float64: no latent is missed that belongs among the k largest. */
static void test_screening_is_exact(void **state) {
  (void)state;
  enum { N = 6, D = 40, M = 800, K = 12 };
  pair p = pair_open();
  sae_pair r = sae_pair_open(&p, (sae_shape){ .n = N, .d = D, .m = M, .k = K }, 31);
  float *x = AT(r.x, PAIR_CPU);
  for (int i = 0; i < N * D; i++) x[i] = ldexpf(x[i], i % 11 - 5 - (i / D == 4 ? 100 : 0));
  pair_put(&p, r.x, x);
  float zeros[D] = { 0 }, *bias = calloc(M, 4);
  pair_put(&p, r.b_dec, zeros), pair_put(&p, r.b_enc, bias);
  free(bias);
  block *screen = make_screen(&r, AS_ROUNDED), *room = pair_block(&p, N * D * 2);
  sl_sae_pack_args pack = { .n = N, .d = D, .x = AT(r.x, PAIR_CUDA), .dtype = SL_F32, .screen = true,
                            .panels = AT(room, PAIR_CUDA), .slabs = AT(r.u[PAIR_CUDA], PAIR_CUDA) };
  PAIR_RUN(&p, PAIR_CUDA, sae_pack, &pack);
  sl_sae_encode_topk_args encode = sae_encode_args(&r, PAIR_CUDA);
  encode.panels = pack.panels, encode.w_screen = AT(screen, PAIR_CUDA), encode.slabs = pack.slabs;
  PAIR_RUN_WORKING(&p, PAIR_CUDA, sae_encode_topk, &encode);
  const int32_t *ids = pair_fetch(&p, r.ids);
  const float *w = AT(r.w_enc, PAIR_CPU);
  assert_int_equal(((const int64_t *)pair_fetch(&p, r.offsets))[N], N * K);
  for (int t = 0; t < N; t++) {
    double pre[M], size = 0;
    for (int i = 0; i < M; i++) {
      pre[i] = 0;
      for (int j = 0; j < D; j++) pre[i] += (double)x[t * D + j] * (double)w[i * D + j];
    }
    for (int j = 0; j < D; j++) size += fabs((double)x[t * D + j]);
    for (int e = 0; e < K; e++) {
      int better = 0, id = ids[t * K + e];
      for (int i = 0; i < M; i++) better += pre[i] > pre[id] + 1e-6 * size;
      assert_true(better < K);
    }
  }
  pair_close(&p);
}

/* Numbers that are not exact: sums run in another order, so the last places may swap; the values agree. */
static void test_rounding(void **state) {
  (void)state;
  pair p = pair_open();
  sae_pair r = sae_pair_open(&p, (sae_shape){ .n = 20, .d = 50, .m = 600, .k = 20, .bf16 = true }, 8);
  for (int side = 0; side < 2; side++) sae_run_encode(&r, side);
  pair_check_same(&p, "offsets", r.offsets);
  const float *got = pair_fetch(&p, r.values), *want = r.values->at[PAIR_CPU];
  for (int t = 0; t < 20; t++) {
    double sum = 0;
    for (int j = 0; j < 20; j++) sum += (double)(got[t * 20 + j] - want[t * 20 + j]);
    assert_true(fabs(sum) < 1e-4);
  }
  pair_close(&p);
}

static void test_schedules(void **state) {
  (void)state;
  for (int i = 0; i < SCHEDULES; i++) {
    if (!use_schedule(i)) break;
    pair p = pair_open();
    sae_pair r = sae_pair_open(&p, (sae_shape){ .n = 3, .d = 4, .m = 5000, .k = 20, .k_dead = 9, .exact = true }, 2);
    for (int side = 0; side < 2; side++) sae_run_encode(&r, side);
    sae_check_codes(&r);
    pair_close(&p);
  }
  (void)use_schedule(0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_shapes),       cmocka_unit_test(test_small_workspaces), cmocka_unit_test(test_ties),
    cmocka_unit_test(test_no_positives), cmocka_unit_test(test_nonfinite),        cmocka_unit_test(test_rounding),
    cmocka_unit_test(test_schedules),    cmocka_unit_test(test_screening),
    cmocka_unit_test(test_screening_refuses), cmocka_unit_test(test_screening_is_exact),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
