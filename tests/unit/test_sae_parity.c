/* Six training steps beside the real sparsify 1.3.3 (float32): see tests/parity/sae_sparsify.py. */
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

static void test_training_beside_sparsify(void **state) {
  (void)state;
  sl_safetensors *set;
  sl_sae *sae;
  sl_sae_optim *optim;
  sl_sae_config config = sl_sae_config_topk(D, M, K);
  ok(sl_safetensors_open("tests/parity/fixtures/sae_sparsify.safetensors", &set));
  ok(sl_sae_create(sl_cpu_device(), &config, 1, &sae));
  ok(sl_sae_optim_create(sae, NULL, &optim));
  char name[32];
  for (int id = 0; id < SL_SAE_PARAMETERS; id++) {
    snprintf(name, sizeof name, "start/%s", sl_sae_parameter_name(id));
    sl_tensor *t = fixture_tensor(set, name, SL_F32);
    ok(sl_sae_set_parameter(sae, sl_sae_parameter_name(id), t));
    sl_tensor_release(t);
  }
  sl_tensor *x = fixture_tensor(set, "x", SL_F32), *fvu = fixture_tensor(set, "fvu", SL_F32);
  for (int step = 0; step < STEPS; step++) {
    sl_tensor *batch;
    sl_sae_loss *loss;
    ok(sl_tensor_select(x, 0, step, &batch));
    if (step == STEPS - 1) compare_last(sae, batch, set);
    ok(sl_sae_loss_create(sae, batch, NULL, &loss));
    assert_true(fabs(loss->fvu - (double)sl_tensor_f32(fvu)[step]) < 1e-5);
    ok(sl_sae_backward(loss, 1));
    ok(sl_sae_optim_step(optim, 3e-3));
    sl_sae_loss_release(loss), sl_tensor_release(batch);
  }
  for (int id = 0; id < SL_SAE_PARAMETERS; id++) {
    snprintf(name, sizeof name, "end/%s", sl_sae_parameter_name(id));
    sl_tensor *t = fixture_tensor(set, name, SL_F32);
    double apart = distance(sae->parameters[id], t);
    if (apart > 1e-4) fail_msg("%s ends %.3g apart", name, apart);
    sl_tensor_release(t);
  }
  sl_tensor_release(x), sl_tensor_release(fvu), sl_sae_optim_release(optim), sl_sae_release(sae);
  sl_safetensors_close(set);
}

int main(void) {
  const struct CMUnitTest tests[] = { cmocka_unit_test(test_training_beside_sparsify) };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
