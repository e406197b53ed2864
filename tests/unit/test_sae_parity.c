/* Six training steps beside the real packages (float32): TopK and GroupMax of sparsify 1.3.3, BatchTopK of sae_lens
 * 6.54.12, whose JumpReLU codes are compared too; see tests/parity/sae_sparsify.py and sae_activations.py. And the
 * values that sae_lens computes by hand-sized weights. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/io/safetensors.h"
#include "core/sae/loss.h"
#include "core/sae/optim.h"

enum { STEPS = 6, TOKENS = 64, D = 24, M = 96, K = 6 };

static void ok(sl_status status) {
  if (status != SL_OK) fail_msg("%s: %s", sl_status_name(status), sl_last_error());
}

static sl_tensor *fixture_tensor(const sl_safetensors *set, const char *name, sl_dtype dtype) {
  const sl_safetensor *entry;
  sl_tensor *t;
  ok(sl_safetensors_get(set, name, &entry));
  ok(sl_tensor_create(sl_cpu_device(), dtype, entry->rank, entry->shape, &t));
  ok(sl_safetensors_copy(entry, dtype, sl_tensor_data(t)));
  return t;
}

/* Largest difference, of the largest size. */
static double distance(const sl_tensor *a, const sl_tensor *b) {
  double most = 0, size = 0;
  assert_true(sl_tensor_same_shape(a, b));
  for (int64_t i = 0; i < sl_tensor_count(a); i++) {
    most = fmax(most, fabs((double)sl_tensor_f32(a)[i] - (double)sl_tensor_f32(b)[i]));
    size = fmax(size, fabs((double)sl_tensor_f32(b)[i]));
  }
  return most / size;
}

/* sparsify lists a token's latents in any order. */
static void compare_last(sl_sae *sae, const sl_tensor *x, const sl_safetensors *set) {
  sl_codes *codes;
  sl_tensor *x_hat, *dense, *want_x = fixture_tensor(set, "last/x_hat", SL_F32),
                            *ids = fixture_tensor(set, "last/ids", SL_I32),
                            *values = fixture_tensor(set, "last/values", SL_F32);
  ok(sl_sae_encode(sae, x, NULL, &codes));
  ok(sl_sae_decode(sae, codes, &x_hat));
  ok(sl_codes_to_dense(codes, &dense));
  assert_int_equal(codes->entries, TOKENS * K);
  for (int i = 0; i < TOKENS * K; i++) {
    float got = sl_tensor_f32(dense)[i / K * M + ((int32_t *)sl_tensor_data(ids))[i]];
    assert_float_equal(got, sl_tensor_f32(values)[i], 1e-4f);
  }
  assert_true(distance(x_hat, want_x) < 1e-4);
  sl_tensor_release(x_hat), sl_tensor_release(dense), sl_tensor_release(want_x), sl_tensor_release(ids),
      sl_tensor_release(values);
  sl_codes_release(codes);
}

/* Parameters <prefix>/W_enc and so on. */
static void set_parameters(sl_sae *sae, const sl_safetensors *set, const char *prefix) {
  char name[64];
  for (int id = 0; id < SL_SAE_PARAMETERS; id++) {
    snprintf(name, sizeof name, "%s/%s", prefix, sl_sae_parameter_name(id));
    sl_tensor *t = fixture_tensor(set, name, SL_F32);
    ok(sl_sae_set_parameter(sae, sl_sae_parameter_name(id), t));
    sl_tensor_release(t);
  }
}

static void compare_parameters(sl_sae *sae, const sl_safetensors *set, const char *prefix) {
  char name[64];
  for (int id = 0; id < SL_SAE_PARAMETERS; id++) {
    snprintf(name, sizeof name, "%s/%s", prefix, sl_sae_parameter_name(id));
    sl_tensor *t = fixture_tensor(set, name, SL_F32);
    double apart = distance(sae->parameters[id], t);
    if (apart > 1e-4) fail_msg("%s ends %.3g apart", name, apart);
    sl_tensor_release(t);
  }
}

static void compare_codes(const sl_codes *codes, const sl_safetensors *set, const char *name) {
  sl_tensor *dense, *want = fixture_tensor(set, name, SL_F32);
  int64_t entries = 0;
  ok(sl_codes_to_dense(codes, &dense));
  for (int64_t i = 0; i < sl_tensor_count(want); i++) entries += sl_tensor_f32(want)[i] > 0;
  assert_int_equal(codes->entries, entries);
  assert_true(distance(dense, want) < 1e-6);
  sl_tensor_release(dense), sl_tensor_release(want);
}

static sl_sae *open_start(const sl_safetensors *set, const char *prefix, sl_sae_config config) {
  sl_sae *sae;
  ok(sl_sae_create(sl_cpu_device(), &config, 1, &sae));
  set_parameters(sae, set, prefix);
  return sae;
}

/* Steps of sparsify, on x of `path`: fvu of every step, and where the parameters end. */
static void train_beside_sparsify(const char *path, const char *prefix, sl_sae_activation activation, bool last) {
  sl_safetensors *set;
  sl_sae_optim *optim;
  char name[64];
  sl_sae_config config = sl_sae_config_topk(D, M, K);
  config.activation = activation;
  ok(sl_safetensors_open(path, &set));
  snprintf(name, sizeof name, "%sstart", prefix);
  sl_sae *sae = open_start(set, name, config);
  ok(sl_sae_optim_create(sae, NULL, &optim));
  snprintf(name, sizeof name, "%sfvu", prefix);
  sl_tensor *x = fixture_tensor(set, "x", SL_F32), *fvu = fixture_tensor(set, name, SL_F32);
  for (int step = 0; step < STEPS; step++) {
    sl_tensor *batch;
    sl_sae_loss *loss;
    ok(sl_tensor_select(x, 0, step, &batch));
    if (last && step == STEPS - 1) compare_last(sae, batch, set);
    ok(sl_sae_loss_create(sae, batch, NULL, &loss));
    assert_true(fabs(loss->fvu - (double)sl_tensor_f32(fvu)[step]) < 1e-5);
    ok(sl_sae_backward(loss, 1));
    ok(sl_sae_optim_step(optim, 3e-3));
    sl_sae_loss_release(loss), sl_tensor_release(batch);
  }
  snprintf(name, sizeof name, "%send", prefix);
  compare_parameters(sae, set, name);
  sl_tensor_release(x), sl_tensor_release(fvu), sl_sae_optim_release(optim), sl_sae_release(sae);
  sl_safetensors_close(set);
}

#define ACTIVATIONS "tests/parity/fixtures/sae_activations.safetensors"

static void test_training_beside_sparsify(void **state) {
  (void)state;
  train_beside_sparsify("tests/parity/fixtures/sae_sparsify.safetensors", "", SL_SAE_TOPK, true);
  train_beside_sparsify(ACTIVATIONS, "groupmax/", SL_SAE_GROUPMAX, false);
}

/* Its loss is the squared error summed over d; rows hold up to 32 latents, which is more than the candidates at first. */
static void test_batchtopk_beside_saelens(void **state) {
  (void)state;
  sl_safetensors *set;
  sl_sae_optim *optim;
  sl_sae_config config = sl_sae_config_topk(D, M, K);
  config.activation = SL_SAE_BATCHTOPK, config.normalize_decoder = false, config.threshold_rate = 0.05;
  ok(sl_safetensors_open(ACTIVATIONS, &set));
  sl_sae *sae = open_start(set, "batchtopk/start", config);
  ok(sl_sae_optim_create(sae, NULL, &optim));
  sl_sae_loss_opts opts = sl_sae_loss_defaults();
  opts.kind = SL_SAE_MSE;
  sl_tensor *x = fixture_tensor(set, "x", SL_F32), *losses = fixture_tensor(set, "batchtopk/loss", SL_F32),
            *thresholds = fixture_tensor(set, "batchtopk/threshold", SL_F32);
  for (int step = 0; step < STEPS; step++) {
    sl_tensor *batch;
    sl_sae_loss *loss;
    ok(sl_tensor_select(x, 0, step, &batch));
    ok(sl_sae_loss_create(sae, batch, &opts, &loss));
    double want = (double)sl_tensor_f32(losses)[step];
    assert_true(fabs(loss->loss * D - want) < 1e-5 * want);
    if (step == 0) {
      sl_codes *codes;
      ok(sl_sae_loss_codes(loss, &codes));
      compare_codes(codes, set, "batchtopk/code");
      sl_codes_release(codes);
    }
    ok(sl_sae_backward(loss, D));
    ok(sl_sae_optim_step(optim, 3e-3));
    const float *running = sl_tensor_f32(sae->threshold);
    assert_true(fabs((double)running[0] * (double)running[1] - (double)sl_tensor_f32(thresholds)[step]) < 1e-5);
    sl_sae_loss_release(loss), sl_tensor_release(batch);
  }
  compare_parameters(sae, set, "batchtopk/end");
  sl_tensor_release(x), sl_tensor_release(losses), sl_tensor_release(thresholds), sl_sae_optim_release(optim),
      sl_sae_release(sae);
  sl_safetensors_close(set);
}

static void test_jumprelu_beside_saelens(void **state) {
  (void)state;
  sl_safetensors *set;
  sl_sae_config config = sl_sae_config_topk(D, M, 0);
  config.activation = SL_SAE_JUMPRELU, config.normalize_decoder = false;
  ok(sl_safetensors_open(ACTIVATIONS, &set));
  sl_sae *sae = open_start(set, "batchtopk/start", config);
  sl_tensor *threshold = fixture_tensor(set, "jumprelu/threshold", SL_F32), *x = fixture_tensor(set, "x", SL_F32),
            *want = fixture_tensor(set, "jumprelu/x_hat", SL_F32), *batch, *x_hat;
  sl_codes *codes;
  ok(sl_sae_set_parameter(sae, "threshold", threshold));
  ok(sl_tensor_select(x, 0, 0, &batch));
  ok(sl_sae_encode(sae, batch, NULL, &codes));
  compare_codes(codes, set, "jumprelu/code");
  ok(sl_sae_decode(sae, codes, &x_hat));
  assert_true(distance(x_hat, want) < 1e-6);
  sl_codes_release(codes), sl_sae_release(sae), sl_safetensors_close(set);
  sl_tensor_release(threshold), sl_tensor_release(x), sl_tensor_release(want), sl_tensor_release(batch),
      sl_tensor_release(x_hat);
}

/* -- Four latents, two tokens: values of sae_lens 6.54.12 in float64 -- */

static void fill(sl_sae *sae, const char *name, const float *values) {
  sl_tensor *t;
  ok(sl_sae_parameter(sae, name, &t));
  memcpy(sl_tensor_f32(t), values, (size_t)sl_tensor_count(t) * sizeof *values);
  sl_tensor_release(t);
}

/* Encoder rows (the decoder's, transposed there) times `scale`, decoder rows by it: its ranking by decoder norms. */
static sl_sae *small_sae(sl_sae_config config, bool by_norms) {
  static const float w[4][3] = { { .6f, 0, .8f }, { 0, 1.5f, 0 }, { .3f, -.4f, 0 }, { 1, 1, 1 } };
  static const float b_enc[4] = { .05f, -.1f, .2f, -.3f }, b_dec[3] = { .1f, -.2f, .3f };
  sl_sae *sae;
  config.normalize_decoder = false;
  ok(sl_sae_create(sl_cpu_device(), &config, 1, &sae));
  float enc[4][3], dec[4][3], bias[4];
  for (int i = 0; i < 4; i++) {
    float norm = by_norms ? sqrtf(w[i][0] * w[i][0] + w[i][1] * w[i][1] + w[i][2] * w[i][2]) : 1;
    for (int j = 0; j < 3; j++) enc[i][j] = w[i][j] * norm, dec[i][j] = w[i][j] / norm;
    bias[i] = b_enc[i] * norm;
  }
  fill(sae, "W_enc", &enc[0][0]), fill(sae, "W_dec", &dec[0][0]), fill(sae, "b_enc", bias), fill(sae, "b_dec", b_dec);
  return sae;
}

/* Codes as a dense [2, 4], and the squared error of their reconstruction, summed over d and averaged over tokens. */
static void check_small(sl_sae *sae, const sl_sae_encode_opts *opts, const double f[8], double mse) {
  static const float x_values[6] = { 1, 2, -1, -.5f, .4f, .9f };
  sl_tensor *x, *dense, *x_hat;
  sl_codes *codes;
  ok(sl_tensor_create(sl_cpu_device(), SL_F32, 2, (int64_t[]){ 2, 3 }, &x));
  memcpy(sl_tensor_f32(x), x_values, sizeof x_values);
  ok(sl_sae_encode(sae, x, opts, &codes));
  ok(sl_codes_to_dense(codes, &dense));
  ok(sl_sae_decode(sae, codes, &x_hat));
  double squares = 0;
  for (int i = 0; i < 8; i++) assert_true(fabs((double)sl_tensor_f32(dense)[i] - f[i]) < 2e-6);
  for (int i = 0; i < 6; i++) squares += pow((double)x_values[i] - (double)sl_tensor_f32(x_hat)[i], 2) / 2;
  assert_true(fabs(squares - mse) < 1e-5);
  sl_tensor_release(x), sl_tensor_release(dense), sl_tensor_release(x_hat), sl_codes_release(codes);
}

static void test_small_values(void **state) {
  (void)state;
  sl_sae_config config = sl_sae_config_topk(3, 4, 2);
  sl_sae *topk = small_sae(config, true);
  check_small(topk, NULL, (double[8]){ 0, 4.8, 0, 2.598076, 0, 1.2, 0, .519615 }, 13.36);
  sl_sae_release(topk);
  config.activation = SL_SAE_BATCHTOPK, config.k = 1;
  sl_sae *batch = small_sae(config, true); /* k = 1 of 2 rows: the two largest, both of the first token */
  check_small(batch, &(sl_sae_encode_opts){ .k = 1, .dtype = SL_F32 }, (double[8]){ 0, 4.8, 0, 2.598076 }, 13.045);
  float threshold[4] = { .52f, 1 }; /* between 1.2 and .519615: three entries, as its k = 1.5 keeps */
  fill(batch, "threshold", threshold);
  check_small(batch, NULL, (double[8]){ 0, 4.8, 0, 2.598076, 0, 1.2, 0, 0 }, 13.045);
  sl_sae_release(batch);
  config.activation = SL_SAE_JUMPRELU, config.k = 0;
  sl_sae *jump = small_sae(config, false);
  for (int i = 0; i < 4; i++) threshold[i] = .25f;
  fill(jump, "threshold", threshold);
  check_small(jump, NULL, (double[8]){ 0, 3.2, 0, 1.5, 0, .8, 0, .3 }, 13.36);
  sl_sae_release(jump);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_training_beside_sparsify), cmocka_unit_test(test_batchtopk_beside_saelens),
    cmocka_unit_test(test_jumprelu_beside_saelens),  cmocka_unit_test(test_small_values),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
