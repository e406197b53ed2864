/* Adam with 8-bit moments: the maps, the kernel against a search in float64 for every instruction set, what is special
 * about rows without a gradient and vanishing second moments, steps that bitsandbytes took, training beside float32 Adam,
 * state, failing allocations. */
#include "tests/support/numbers.h"

#include <math.h>
#include <stdio.h>

#include "core/base/mem.h"
#include "core/io/safetensors.h"
#include "core/sae/loss.h"
#include "core/sae/optim.h"
#include "kernels/cpu/sae_cpu.h"
#include "kernels/dynamic_map.h"

/* -- The maps -- */

static void test_maps(void **state) {
  (void)state;
  float map[SL_MAP_SIZE];
  for (int is_signed = 0; is_signed < 2; is_signed++) {
    sl_dynamic_map(is_signed, map);
    for (int i = 1; i < SL_MAP_SIZE; i++) assert_true(map[i] > map[i - 1]);
    assert_true(map[255] == 1.0f && map[is_signed ? 127 : 0] == 0.0f);
  }
  assert_true(fabsf(map[128] / 0.55e-6f - 1) < 1e-6f); /* signed: the smallest decade has one value, */
  assert_true(fabsf(map[254] / 0.99296875f - 1) < 1e-6f); /* the largest 64 */
  assert_true(map[0] == -map[254]); /* and there is no -1 */
  sl_dynamic_map(false, map);
  assert_true(fabsf(map[1] / 0.325e-6f - 1) < 1e-6f && fabsf(map[254] / 0.996484375f - 1) < 1e-6f);
}

/* -- The kernel -- */

enum { M = 40, D_MOST = 700 };

typedef struct {
  float w[M * D_MOST], b[M], b_dec[D_MOST], m_b[M], v_b[M], m_b_dec[D_MOST], v_b_dec[D_MOST];
  float absmax[4][M * 3];
  uint8_t codes[4][M * D_MOST];
  float w_dec[M * D_MOST];
} weights;

typedef struct {
  float w_enc[M * D_MOST], w_dec[M * D_MOST], b_enc[M], b_dec[D_MOST], dot[M], squares[2][M];
  uint8_t touched[M];
} gradients;

static float maps[2][SL_MAP_SIZE];

static sl_sae_update_args update_args(weights *w, gradients *g, int64_t d, const double *squares) {
  return (sl_sae_update_args){
    .m = M, .d_in = d, .d_out = d, .rule = SL_SAE_ADAM8,
    .parameters = { .w_enc = w->w, .b_enc = w->b, .w_dec = w->w_dec, .b_dec = w->b_dec },
    .moment1 = { .b_enc = w->m_b, .b_dec = w->m_b_dec }, .moment2 = { .b_enc = w->v_b, .b_dec = w->v_b_dec },
    .moment1_8 = { w->codes[0], w->codes[1], w->absmax[0], w->absmax[1] },
    .moment2_8 = { w->codes[2], w->codes[3], w->absmax[2], w->absmax[3] },
    .map1 = maps[0], .map2 = maps[1],
    .gradients = { g->w_enc, g->w_dec, g->b_enc, g->b_dec, g->touched, g->dot, g->squares[0], g->squares[1] },
    .total_b_dec = g->b_dec, .sum_squares = squares, .lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f,
    .weight_decay = 0.1f, .step = 1 };
}

static double uniform(uint64_t *state) { /* (-1, 1) */
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (double)(*state >> 11) / 4503599627370496.0 - 1;
}

/* Gradients over eight orders of magnitude, exact zeros among them; every fifth row has none. */
static void fill_gradients(gradients *g, int64_t d, uint64_t *state) {
  memset(g, 0, sizeof *g);
  for (int64_t i = 0; i < M; i++) {
    g->touched[i] = i % 5 != 4;
    g->b_enc[i] = (float)uniform(state);
    for (int64_t j = 0; j < d; j++) {
      g->w_enc[i * d + j] = (float)(uniform(state) * pow(10, 4 * uniform(state)));
      g->w_dec[i * d + j] = j % 7 == 3 ? 0 : (float)uniform(state);
    }
  }
}

/* The code nearest to x by search, or, within a hair of a border, the one that was chosen. */
static void check_code(const float *map, double x, int chosen, bool never_zero, int zero) {
  int best = 0;
  for (int c = 1; c < SL_MAP_SIZE; c++)
    if (fabs((double)map[c] - x) < fabs((double)map[best] - x)) best = c;
  if (never_zero && best == zero) best = 1;
  if (best == chosen) return;
  double excess = fabs((double)map[chosen] - x) - fabs((double)map[best] - x);
  if (!(excess <= 2e-6 * fabs(x))) fail_msg("%.9g got code %d, %d is nearer", x, chosen, best);
}

/* What a step did: the state on either side, its gradients, and by how much they were clipped. */
typedef struct {
  const weights *before, *after;
  const gradients *all;
  int64_t d;
  double scale;
  int step;
} taken_step;

/* One matrix (0: W_enc, 1: W_dec) through the step, in float64 from the state before. */
static void check_matrix(const taken_step *s, int matrix) {
  const weights *before = s->before, *after = s->after;
  const gradients *all = s->all;
  const float *old = matrix ? before->w_dec : before->w, *now = matrix ? after->w_dec : after->w;
  const float *g = matrix ? all->w_dec : all->w_enc;
  int64_t d = s->d;
  double scale = s->scale;
  int step = s->step;
  int64_t blocks = (d + 255) / 256;
  double c1 = 1 - pow(0.9f, step), c2 = sqrt(1 - pow(0.999f, step));
  for (int64_t i = 0; i < M; i++) {
    for (int64_t b = 0; b < blocks; b++) {
      int64_t first = i * d + b * 256, n = d - b * 256 < 256 ? d - b * 256 : 256, at = i * blocks + b;
      double s1 = (double)before->absmax[matrix][at], s2 = (double)before->absmax[2 + matrix][at], m[256], v[256];
      double largest1 = 0, largest2 = 0;
      for (int64_t j = 0; j < n; j++) {
        double gradient = all->touched[i] ? scale * (double)g[first + j] : 0;
        m[j] = (double)0.9f * (double)maps[0][before->codes[matrix][first + j]] * s1 + (1 - (double)0.9f) * gradient;
        v[j] = (double)0.999f * (double)maps[1][before->codes[2 + matrix][first + j]] * s2;
        v[j] += (1 - (double)0.999f) * gradient * gradient;
        largest1 = fmax(largest1, fabs(m[j])), largest2 = fmax(largest2, v[j]);
        double want = (double)old[first + j] * (1 - 1e-3 * 0.1) - 1e-3 / c1 * m[j] / (sqrt(v[j]) / c2 + 1e-8);
        if (fabs(want - (double)now[first + j]) > 1e-6 + 2e-5 * fabs(want - (double)old[first + j]))
          fail_msg("weight %lld of %d: %.9g, expected %.9g", (long long)(first + j), matrix, (double)now[first + j],
                   want);
      }
      if (!all->touched[i]) { /* codes stay, the scale decays */
        assert_memory_equal(&before->codes[matrix][first], &after->codes[matrix][first], (size_t)n);
        assert_memory_equal(&before->codes[2 + matrix][first], &after->codes[2 + matrix][first], (size_t)n);
        assert_true(fabs((double)after->absmax[matrix][at] - 0.9 * s1) <= 1e-6 * s1);
        continue;
      }
      assert_true(fabs((double)after->absmax[matrix][at] - largest1) <= 1e-5 * largest1);
      assert_true(fabs((double)after->absmax[2 + matrix][at] - largest2) <= 1e-5 * largest2);
      for (int64_t j = 0; j < n; j++) {
        if (largest1 > 0) check_code(maps[0], m[j] / largest1, after->codes[matrix][first + j], false, 127);
        if (largest2 > 0) check_code(maps[1], v[j] / largest2, after->codes[2 + matrix][first + j], v[j] > 0, 0);
      }
    }
  }
}

static void check_steps(int64_t d, double clip) {
  static weights w, before;
  static gradients g, given;
  uint64_t state = (uint64_t)d;
  memset(&w, 0, sizeof w);
  for (int64_t i = 0; i < M * d; i++) w.w[i] = (float)uniform(&state), w.w_dec[i] = (float)uniform(&state);
  for (int step = 1; step <= 4; step++) {
    fill_gradients(&g, d, &state);
    before = w, given = g;
    double squares = clip > 0 ? 4 * clip * clip : 1;
    sl_sae_update_args args = update_args(&w, &g, d, &squares);
    args.clip_norm = clip;
    args.step = step;
    CHECK(sl_cpu_device()->kernels->sae_update(sl_cpu_device(), &args));
    taken_step taken = { .before = &before, .after = &w, .all = &given, .d = d, .scale = clip > 0 ? 0.5 : 1, .step = step };
    check_matrix(&taken, 0);
    check_matrix(&taken, 1);
    for (int64_t i = 0; i < M; i++) assert_true(g.b_enc[i] == 0 && !g.touched[i]);
  }
}

static void test_kernel(void **state) {
  (void)state;
  sl_dynamic_map(true, maps[0]);
  sl_dynamic_map(false, maps[1]);
  for (int isa = SAE_ISA_BASE; isa <= SAE_ISA_BEST; isa++) {
    sae_cpu_limit_isa(isa);
    check_steps(256, 0);
    check_steps(17, 1);
    check_steps(257, 0);
    check_steps(700, 2.5);
  }
  sae_cpu_limit_isa(SAE_ISA_BEST);
}

/* A gradient of zero everywhere: nothing becomes NaN, and what was zero stays zero. */
static void test_zero_gradient(void **state) {
  (void)state;
  static weights w, before;
  static gradients g;
  memset(&w, 0, sizeof w), memset(&g, 0, sizeof g);
  for (int64_t i = 0; i < M * 300; i++) w.w[i] = 0.5f;
  memset(g.touched, 1, sizeof g.touched);
  before = w;
  double squares = 0;
  sl_sae_update_args args = update_args(&w, &g, 300, &squares);
  args.weight_decay = 0;
  CHECK(sl_cpu_device()->kernels->sae_update(sl_cpu_device(), &args));
  assert_memory_equal(before.w, w.w, sizeof w.w);
  squares = NAN; /* refused: nothing changes */
  g.w_enc[0] = NAN;
  before = w;
  CHECK(sl_cpu_device()->kernels->sae_update(sl_cpu_device(), &args));
  assert_memory_equal(&before, &w, sizeof w);
}

/* -- Steps that bitsandbytes took (tests/parity/adam8bit.py) -- */

static const void *entry_data(const sl_safetensors *set, const char *name, int64_t *count) {
  const sl_safetensor *entry;
  CHECK(sl_safetensors_get(set, name, &entry));
  *count = entry->count;
  return entry->data;
}

static void test_bitsandbytes(void **state) {
  (void)state;
  enum { D = 512, ROWS = 4, STEPS = 5 };
  sl_safetensors *set;
  static weights w;
  static gradients g;
  int64_t count;
  memset(&w, 0, sizeof w);
  CHECK(sl_safetensors_open("tests/parity/fixtures/adam8bit.safetensors", &set));
  float map[SL_MAP_SIZE];
  sl_dynamic_map(true, map);
  const float *theirs = entry_data(set, "map_signed", &count);
  for (int i = 0; i < SL_MAP_SIZE; i++) assert_true(fabsf(theirs[i] - map[i]) <= 2e-7f * fabsf(map[i]));
  sl_dynamic_map(false, map);
  theirs = entry_data(set, "map_unsigned", &count);
  for (int i = 0; i < SL_MAP_SIZE; i++) assert_true(fabsf(theirs[i] - map[i]) <= 2e-7f * fabsf(map[i]));

  memcpy(w.w, entry_data(set, "w0", &count), (size_t)(ROWS * D) * sizeof(float));
  assert_int_equal(count, ROWS * D);
  const float *all = entry_data(set, "gradients", &count);
  assert_int_equal(count, STEPS * ROWS * D);
  int other_codes = 0;
  for (int step = 1; step <= STEPS; step++) {
    memset(&g, 0, sizeof g);
    memset(g.touched, 1, ROWS);
    memcpy(g.w_enc, all + (step - 1) * ROWS * D, (size_t)(ROWS * D) * sizeof(float));
    double squares = 1;
    sl_sae_update_args args = update_args(&w, &g, D, &squares);
    args.m = ROWS;
    args.weight_decay = 0.01f;
    args.step = step;
    CHECK(sl_cpu_device()->kernels->sae_update(sl_cpu_device(), &args));
    char name[32];
    snprintf(name, sizeof name, "w%d", step);
    const float *want = entry_data(set, name, &count);
    double apart_all = 0; /* a code on the other side of a border moves its weight's next step by some per cent */
    for (int i = 0; i < ROWS * D; i++) {
      double apart = fabs((double)want[i] - (double)w.w[i]);
      if (apart > 3e-4) fail_msg("step %d weight %d: %.9g, theirs %.9g", step, i, (double)w.w[i], (double)want[i]);
      apart_all += apart / (ROWS * D);
    }
    if (apart_all > 1e-6) fail_msg("step %d: %.3g apart on average, of a step of 1e-3", step, apart_all);
    for (int moment = 0; moment < 2; moment++) {
      snprintf(name, sizeof name, "codes%d_%d", moment + 1, step);
      const uint8_t *codes = entry_data(set, name, &count);
      for (int i = 0; i < ROWS * D; i++) {
        int mine = w.codes[2 * moment][i];
        other_codes += mine != codes[i];
        if (step == 1 && moment == 0) assert_int_equal(mine, codes[i]);
        if (fabsf(maps[moment][mine] - maps[moment][codes[i]]) > 0.03f)
          fail_msg("step %d moment %d weight %d: code %d, theirs %d", step, moment + 1, i, mine, codes[i]);
      }
    }
  }
  /* Its CPU rounding misses the nearest unsigned code for 2.5 % of the values (found in float64); ours does not. */
  if (other_codes > STEPS * ROWS * D * 2 / 25) fail_msg("%d codes differ", other_codes);
  sl_safetensors_close(set);
}

/* -- Training -- */

/* Sparse mixtures of hidden directions: what a dictionary can find. */
static sl_tensor *mixtures(int64_t tokens, int64_t d, uint64_t seed) {
  enum { HIDDEN = 48, ACTIVE = 3 };
  static float directions[HIDDEN][128];
  uint64_t state = 99;
  for (int h = 0; h < HIDDEN; h++)
    for (int64_t j = 0; j < d; j++) directions[h][j] = (float)(uniform(&state) + uniform(&state));
  int64_t shape[2] = { tokens, d };
  sl_tensor *x;
  CHECK(sl_tensor_zeros(sl_cpu_device(), SL_F32, 2, shape, &x));
  state = seed;
  for (int64_t t = 0; t < tokens; t++)
    for (int a = 0; a < ACTIVE; a++) {
      int h = (int)(fabs(uniform(&state)) * HIDDEN) % HIDDEN;
      float size = (float)(1 + uniform(&state));
      for (int64_t j = 0; j < d; j++) sl_tensor_f32(x)[t * d + j] += size * directions[h][j];
    }
  return x;
}

/* Mean fvu of the last ten steps. */
static double train(sl_sae_rule rule, uint64_t seed, int steps) {
  sl_sae_config config = sl_sae_config_topk(96, 384, 6);
  sl_sae_optim_config adam = sl_sae_optim_defaults();
  adam.rule = rule;
  sl_sae *sae;
  sl_sae_optim *optim;
  CHECK(sl_sae_create(sl_cpu_device(), &config, seed, &sae));
  CHECK(sl_sae_optim_create(sae, &adam, &optim));
  double sum = 0;
  for (int step = 0; step < steps; step++) {
    sl_tensor *x = mixtures(256, 96, 1000 + (uint64_t)step);
    sl_sae_loss *loss;
    CHECK(sl_sae_loss_create(sae, x, NULL, &loss));
    CHECK(sl_sae_backward(loss, 1));
    CHECK(sl_sae_optim_step(optim, 2e-3));
    if (step >= steps - 10) sum += loss->fvu / 10;
    sl_sae_loss_release(loss);
    sl_tensor_release(x);
  }
  sl_sae_optim_release(optim);
  sl_sae_release(sae);
  return sum;
}

/* The 8-bit run ends where float32 runs of other seeds end. */
static void test_quality(void **state) {
  (void)state;
  double low = 1, high = 0, start = train(SL_SAE_ADAM, 1, 10);
  for (uint64_t seed = 1; seed <= 4; seed++) {
    double fvu = train(SL_SAE_ADAM, seed, 200);
    low = fmin(low, fvu), high = fmax(high, fvu);
  }
  double coded = train(SL_SAE_ADAM8, 1, 200);
  print_message("fvu: start %.4f, adam %.4f .. %.4f, adam8bit %.4f\n", start, low, high, coded);
  assert_true(high < 0.25 * start);
  assert_true(coded < high + 0.5 * (high - low) + 0.002);
}

/* -- State -- */

static void test_state(void **state) {
  (void)state;
  sl_sae_config config = sl_sae_config_topk(300, 8, 2);
  sl_sae_optim_config adam = sl_sae_optim_defaults();
  adam.rule = SL_SAE_ADAM8;
  sl_sae *sae;
  sl_sae_optim *optim;
  CHECK(sl_sae_create(sl_cpu_device(), &config, 1, &sae));
  CHECK(sl_sae_optim_create(sae, &adam, &optim));
  int n = 0, codes = 0, scales = 0;
  const char *name;
  sl_tensor *tensor;
  while (sl_sae_optim_state(optim, n, &name, &tensor) == SL_OK) {
    codes += tensor->dtype == SL_U8 && tensor->shape[1] == 300;
    scales += strstr(name, ".absmax") != NULL && tensor->dtype == SL_F32 && tensor->shape[1] == 2;
    sl_tensor_release(tensor);
    n++;
  }
  assert_int_equal(n, 14);
  assert_int_equal(codes, 4);
  assert_int_equal(scales, 4);
  assert_int_equal(sl_sae_optim_state(optim, -1, &name, &tensor), SL_ENOTFOUND);
  sl_sae_optim_release(optim);
  sl_mem_stats before = sl_mem_get_stats();
  sl_status status = SL_ENOMEM;
  for (int fail_at = 1; status == SL_ENOMEM; fail_at++) {
    sl_mem_fail_at(fail_at);
    status = sl_sae_optim_create(sae, &adam, &optim);
    sl_mem_fail_at(0);
    if (status == SL_OK) sl_sae_optim_release(optim), assert_true(fail_at > 20);
    assert_int_equal(sl_mem_get_stats().blocks, before.blocks);
  }
  assert_int_equal(status, SL_OK);
  sl_sae_release(sae);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_maps), cmocka_unit_test(test_kernel), cmocka_unit_test(test_zero_gradient),
    cmocka_unit_test(test_bitsandbytes), cmocka_unit_test(test_quality), cmocka_unit_test(test_state),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
