/* The dictionary as its callers use it: gradients against finite differences for every term, micro pieces,
 * bf16, bookkeeping, start values, codes, refusals, and failing allocations. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/mem.h"
#include "core/sae/loss.h"
#include "core/sae/optim.h"

static void ok(sl_status status) {
  if (status != SL_OK) fail_msg("%s: %s", sl_status_name(status), sl_last_error());
}

static sl_tensor *noise(int64_t rows, int64_t columns, uint64_t seed) {
  sl_tensor *t;
  int64_t shape[2] = { rows, columns };
  ok(sl_tensor_create(sl_cpu_device(), SL_F32, 2, shape, &t));
  uint64_t state = seed * 2654435761u + 1;
  for (int64_t i = 0; i < rows * columns; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    sl_tensor_f32(t)[i] = (float)(state >> 40) / 8388608.0f - 1;
  }
  return t;
}

static sl_sae *make(sl_sae_config config, uint64_t seed) {
  sl_sae *sae;
  ok(sl_sae_create(sl_cpu_device(), &config, seed, &sae));
  for (int64_t i = 0; i < config.d_sae; i++)
    sl_tensor_f32(sae->parameters[SL_SAE_B_ENC])[i] = 0.02f * (float)(i % 5 - 1);
  for (int64_t j = 0; j < config.d_in; j++)
    sl_tensor_f32(sae->parameters[SL_SAE_B_DEC])[j] = 0.05f * (float)(j % 3 - 1);
  return sae;
}

static sl_sae_loss *loss_of(sl_sae *sae, const sl_tensor *x, const sl_sae_loss_opts *opts) {
  sl_sae_loss *loss;
  ok(sl_sae_loss_create(sae, x, opts, &loss));
  return loss;
}

/* -- Finite differences -- */

/* A slope from float32 losses: the terms are smooth between changes of selection, so a direction is accepted
 * only if the selection is the same on both sides; AuxK's target is held fixed by definition and is
 * differenced by hand. */
static double main_and_multi(sl_sae *sae, const sl_tensor *x, const sl_sae_loss_opts *opts,
                             int64_t *entries) {
  sl_sae_loss *loss = loss_of(sae, x, opts);
  double value = loss->loss - opts->auxk_alpha * loss->auxk;
  sl_codes *codes;
  ok(sl_sae_loss_codes(loss, &codes));
  *entries = 0;
  for (int64_t p = 0; p < codes->entries; p++)
    *entries = (int64_t)((uint64_t)*entries * 31 + (uint64_t)((int32_t *)sl_tensor_data(codes->ids))[p]);
  sl_codes_release(codes);
  sl_sae_loss_release(loss);
  return value;
}

static void check_slopes(sl_sae_config config, sl_sae_loss_opts opts) {
  sl_sae *sae = make(config, 5);
  sl_tensor *x = noise(9, config.d_in, 3);
  sl_sae_loss *loss = loss_of(sae, x, &opts);
  ok(sl_sae_backward(loss, 1));
  int compared = 0;
  for (int id = 0; id < SL_SAE_PARAMETERS; id++) {
    sl_tensor *grad;
    ok(sl_sae_grad(sae, sl_sae_parameter_name(id), &grad));
    float *w = sl_tensor_f32(sae->parameters[id]);
    double largest = 0;
    for (int64_t i = 0; i < sl_tensor_count(grad); i++)
      largest = fmax(largest, fabs((double)sl_tensor_f32(grad)[i]));
    for (int64_t i = 0; i < sl_tensor_count(grad); i++) {
      float saved = w[i];
      int64_t sides[2];
      w[i] = saved + 2e-3f;
      double high = main_and_multi(sae, x, &opts, &sides[0]), above = (double)w[i];
      w[i] = saved - 2e-3f;
      double low = main_and_multi(sae, x, &opts, &sides[1]), below = (double)w[i];
      w[i] = saved;
      if (sides[0] != sides[1]) continue;
      double slope = (high - low) / (above - below), got = (double)sl_tensor_f32(grad)[i];
      if (fabs(slope - got) > 2e-2 * largest + 2e-5)
        fail_msg("%s[%lld]: slope %.6g, gradient %.6g (largest %.3g)", sl_sae_parameter_name(id),
                 (long long)i, slope, got, largest);
      compared++;
    }
    sl_tensor_release(grad);
  }
  assert_true(compared > config.d_in * config.d_sae);
  sl_tensor_release(x), sl_sae_loss_release(loss), sl_sae_release(sae);
}

static void test_slopes(void **state) {
  (void)state;
  sl_sae_config config = sl_sae_config_topk(5, 12, 2);
  config.normalize_decoder =
      false; /* the gradient is the raw one in any case, but a nudged row must stay nudged */
  sl_sae_loss_opts opts = sl_sae_loss_defaults();
  check_slopes(config, opts);
  opts.kind = SL_SAE_MSE;
  check_slopes(config, opts);
  config.apply_b_dec_to_input = false;
  check_slopes(config, opts);
  opts.multi_alpha = 0.125, opts.k = 1;
  check_slopes(config, opts);
  config.d_in = 50, config.apply_b_dec_to_input = true, opts.kind = SL_SAE_FVU;
  check_slopes(config, opts);
  config.activation = SL_SAE_GROUPMAX, config.k = opts.k = 3;
  check_slopes(config, opts);
  opts.multi_alpha = 0, opts.micro_acc_steps = 2;
  check_slopes(config, opts);
  config.activation = SL_SAE_BATCHTOPK;
  check_slopes(config, opts);
  opts.micro_acc_steps = 1, opts.kind = SL_SAE_MSE, config.d_in = 5;
  check_slopes(config, opts);
}

/* AuxK: the difference quotient of s sum |e_aux - e0|^2 with e0 from before the nudge, all by hand in
 * float64. */
typedef struct { const double *e0; const uint8_t *dead; int64_t k; double scale; } aux_problem;

static double aux_by_hand(const sl_sae *sae, const sl_tensor *x, const aux_problem *p) {
  int64_t d = sae->config.d_in, m = sae->config.d_sae;
  const float *w_enc = sl_tensor_f32(sae->parameters[SL_SAE_W_ENC]),
              *w_dec = sl_tensor_f32(sae->parameters[SL_SAE_W_DEC]);
  const float *b_enc = sl_tensor_f32(sae->parameters[SL_SAE_B_ENC]),
              *b_dec = sl_tensor_f32(sae->parameters[SL_SAE_B_DEC]);
  double total = 0, *pre = calloc((size_t)m, sizeof *pre), *out = calloc((size_t)d, sizeof *out);
  for (int64_t t = 0; t < x->shape[0]; t++) {
    for (int64_t i = 0; i < m; i++) {
      pre[i] = p->dead[i] ? (double)b_enc[i] : -1;
      for (int64_t j = 0; p->dead[i] && j < d; j++)
        pre[i] += ((double)sl_tensor_f32(x)[t * d + j] - (double)b_dec[j]) * (double)w_enc[i * d + j];
    }
    memset(out, 0, (size_t)d * sizeof *out);
    for (int64_t taken = 0; taken < p->k; taken++) {
      int64_t best = 0;
      for (int64_t i = 1; i < m; i++) best = pre[i] > pre[best] ? i : best;
      if (pre[best] <= 0) break;
      for (int64_t j = 0; j < d; j++) out[j] += pre[best] * (double)w_dec[best * d + j];
      pre[best] = -1;
    }
    for (int64_t j = 0; j < d; j++) total += (out[j] - p->e0[t * d + j]) * (out[j] - p->e0[t * d + j]);
  }
  free(pre), free(out);
  return p->scale * total;
}

static void test_auxk_slopes(void **state) {
  (void)state;
  enum { ROWS = 7, D = 6, M = 20 };
  sl_sae *sae = make(sl_sae_config_topk(D, M, 2), 8);
  sl_tensor *x = noise(ROWS, D, 4), *x_hat, *grads[2][SL_SAE_PARAMETERS];
  uint8_t dead[M] = {0};
  for (int i = 0; i < M; i += 4) dead[i] = 1; /* five of them, k_aux 3 */
  double e0[ROWS * D];
  sl_sae_loss_opts opts = sl_sae_loss_defaults();
  opts.kind = SL_SAE_MSE, opts.dead_feature_threshold = 99;
  for (int with = 0; with < 2; with++) { /* the aux gradient is the difference of two gradients */
    for (int i = 0; i < M; i++) ((int64_t *)sl_tensor_data(sae->tokens_since_fired))[i] = dead[i] ? 100 : 0;
    opts.auxk_alpha = with;
    sl_sae_loss *loss = loss_of(sae, x, &opts);
    if (with) assert_int_equal(loss->dead, 5);
    sl_codes *codes;
    ok(sl_sae_loss_codes(loss, &codes));
    ok(sl_sae_decode(sae, codes, &x_hat));
    for (int i = 0; i < ROWS * D; i++) e0[i] = (double)sl_tensor_f32(x)[i] - (double)sl_tensor_f32(x_hat)[i];
    aux_problem now = { e0, dead, 3, 1.0 / (ROWS * D) };
    if (with) assert_true(fabs(aux_by_hand(sae, x, &now) - loss->auxk) < 1e-5);
    ok(sl_sae_zero_grad(sae));
    ok(sl_sae_backward(loss, 1));
    for (int id = 0; id < SL_SAE_PARAMETERS; id++)
      ok(sl_sae_grad(sae, sl_sae_parameter_name(id), &grads[with][id]));
    sl_codes_release(codes), sl_sae_loss_release(loss), sl_tensor_release(x_hat);
  }
  aux_problem problem = { e0, dead, 3, 1.0 / (ROWS * D) };
  for (int id = 0; id < SL_SAE_PARAMETERS; id++) {
    float *w = sl_tensor_f32(sae->parameters[id]);
    for (int64_t i = 0; i < sl_tensor_count(grads[0][id]); i++) {
      float saved = w[i];
      w[i] = saved + 1e-4f;
      double high = aux_by_hand(sae, x, &problem), above = (double)w[i];
      w[i] = saved - 1e-4f;
      double slope = (high - aux_by_hand(sae, x, &problem)) / (above - (double)w[i]);
      w[i] = saved;
      double got = (double)sl_tensor_f32(grads[1][id])[i] - (double)sl_tensor_f32(grads[0][id])[i];
      if (fabs(slope - got) > 1e-4)
        fail_msg("%s[%lld]: slope %.6g, gradient %.6g", sl_sae_parameter_name(id), (long long)i, slope, got);
    }
    sl_tensor_release(grads[0][id]), sl_tensor_release(grads[1][id]);
  }
  sl_tensor_release(x), sl_sae_release(sae);
}

/* -- Behaviour -- */

static void train(sl_sae *sae, const sl_tensor *x, const sl_sae_loss_opts *opts, int steps) {
  sl_sae_optim *optim;
  ok(sl_sae_optim_create(sae, NULL, &optim));
  for (int s = 0; s < steps; s++) {
    sl_sae_loss *loss = loss_of(sae, x, opts);
    ok(sl_sae_backward(loss, 1));
    ok(sl_sae_optim_step(optim, 3e-3));
    sl_sae_loss_release(loss);
  }
  assert_int_equal(optim->step, steps);
  sl_sae_optim_release(optim);
}

static void test_training_lowers_the_loss(void **state) {
  (void)state;
  for (int bf16 = 0; bf16 < 2; bf16++) {
    sl_sae *sae = make(sl_sae_config_topk(16, 64, 6), 5);
    sl_tensor *x = noise(200, 16, 3);
    sl_sae_loss_opts opts = sl_sae_loss_defaults();
    opts.dtype = bf16 ? SL_BF16 : SL_F32;
    ok(sl_sae_init_b_dec(sae, x, SL_SAE_CENTER_MEAN));
    sl_sae_loss *before = loss_of(sae, x, &opts);
    train(sae, x, &opts, 150);
    sl_sae_loss *after = loss_of(sae, x, &opts);
    assert_true(after->fvu < 0.6 * before->fvu);
    assert_true(after->cosine > before->cosine && after->cosine < 1);
    assert_true(after->l0 <= 6 && after->l0 > 4);
    for (int64_t i = 0; i < 64; i++) {
      double norm = 0;
      for (int64_t j = 0; j < 16; j++)
        norm += pow((double)sl_tensor_f32(sae->parameters[SL_SAE_W_DEC])[i * 16 + j], 2);
      assert_true(fabs(norm - 1) < 1e-5);
    }
    if (bf16) { /* the copy follows the master weights */
      const uint16_t *copy = sl_tensor_data(sae->w_enc_bf16);
      for (int64_t i = 0; i < 64 * 16; i++)
        assert_int_equal(copy[i], sl_f32_to_bf16(sl_tensor_f32(sae->parameters[SL_SAE_W_ENC])[i]));
    }
    sl_sae_loss_release(before), sl_sae_loss_release(after), sl_tensor_release(x), sl_sae_release(sae);
  }
}

static void test_clip(void **state) {
  (void)state;
  sl_sae *sae = make(sl_sae_config_topk(8, 32, 4), 5);
  sl_tensor *x = noise(50, 8, 3);
  sl_sae_optim_config config = { .rule = SL_SAE_SGD, .clip_norm = 1e-3 };
  sl_sae_optim *optim;
  ok(sl_sae_optim_create(sae, &config, &optim));
  float before[32 * 8], bias[8];
  memcpy(before, sl_tensor_f32(sae->parameters[SL_SAE_W_ENC]), sizeof before);
  memcpy(bias, sl_tensor_f32(sae->parameters[SL_SAE_B_DEC]), sizeof bias);
  sl_sae_loss *loss = loss_of(sae, x, NULL);
  ok(sl_sae_backward(loss, 1));
  sl_tensor *grad, *grad_bias;
  ok(sl_sae_grad(sae, "W_enc", &grad));
  ok(sl_sae_grad(sae, "b_dec", &grad_bias));
  ok(sl_sae_optim_step(optim, 1));
  double norm;
  ok(sl_sae_optim_grad_norm(optim, &norm));
  assert_true(norm > 1e-2);
  for (int i = 0; i < 32 * 8; i++)
    assert_float_equal(before[i] - sl_tensor_f32(grad)[i] * (float)(1e-3 / norm),
                       sl_tensor_f32(sae->parameters[SL_SAE_W_ENC])[i], 1e-6f);
  for (int i = 0; i < 8; i++)
    assert_float_equal(bias[i] - sl_tensor_f32(grad_bias)[i] * (float)(1e-3 / norm),
                       sl_tensor_f32(sae->parameters[SL_SAE_B_DEC])[i], 1e-6f);
  sl_tensor_release(grad), sl_tensor_release(grad_bias), sl_tensor_release(x);
  sl_sae_loss_release(loss), sl_sae_optim_release(optim), sl_sae_release(sae);
}

static void test_fired(void **state) {
  (void)state;
  for (int pieces = 1; pieces <= 4; pieces += 3) {
    sl_sae *sae = make(sl_sae_config_topk(6, 40, 2), 9);
    sl_tensor *x = noise(10, 6, 7);
    int64_t expected[40] = { 0 }, *since = sl_tensor_data(sae->tokens_since_fired),
            *counts = sl_tensor_data(sae->fire_counts);
    sl_sae_loss_opts opts = sl_sae_loss_defaults();
    opts.micro_acc_steps = pieces, opts.multi_alpha = 0.1; /* the 4k codes must not count */
    sl_sae_loss *loss = loss_of(sae, x, &opts);
    for (int i = 0; i < 40; i++) assert_int_equal(since[i], 0); /* a loss alone changes nothing */
    sl_codes *codes;
    ok(sl_sae_loss_codes(loss, &codes));
    for (int64_t p = 0; p < codes->entries; p++) expected[((int32_t *)sl_tensor_data(codes->ids))[p]]++;
    ok(sl_sae_backward(loss, 1));
    int silent = 0, rare = 0;
    for (int i = 0; i < 40; i++) {
      assert_int_equal(counts[i], expected[i]);
      assert_int_equal(since[i], expected[i] ? 0 : 10);
      silent += expected[i] == 0, rare += expected[i] < 2;
    }
    double share;
    ok(sl_sae_dead_fraction(sae, 9, &share));
    assert_true(silent > 0 && fabs(share - silent / 40.0) < 1e-12);
    ok(sl_sae_dead_fraction(sae, 10, &share));
    assert_true(share == 0);
    ok(sl_sae_rare_fraction(sae, 0.2, &share));
    assert_true(fabs(share - rare / 40.0) < 1e-12);
    ok(sl_sae_reset_window(sae));
    ok(sl_sae_rare_fraction(sae, 0.2, &share));
    assert_true(isnan(share) && counts[0] == 0);
    sl_codes_release(codes), sl_sae_loss_release(loss), sl_tensor_release(x), sl_sae_release(sae);
  }
}

/* Pieces bound the memory: of the batch only the codes stay. */
static void test_pieces_need_less_memory(void **state) {
  (void)state;
  sl_sae *sae = make(sl_sae_config_topk(64, 96, 2), 9);
  sl_tensor *x = noise(4000, 64, 7);
  sl_sae_loss_opts opts = sl_sae_loss_defaults();
  int64_t held[2], codes_bytes = 4000 * 2 * 8 + 4001 * 8;
  double values[2];
  for (int i = 0; i < 2; i++) {
    opts.micro_acc_steps = i == 0 ? 1 : 16;
    int64_t before = sl_mem_get_stats().bytes;
    sl_sae_loss *loss = loss_of(sae, x, &opts);
    held[i] = sl_mem_get_stats().bytes - before;
    values[i] = loss->loss;
    ok(sl_sae_backward(loss, 1));
    sl_sae_loss_release(loss);
  }
  assert_true(fabs(values[0] - values[1]) < 1e-6);
  assert_true(held[0] > 2 * 4000 * 64 * 4);
  assert_true(held[1] < codes_bytes + 4096);
  sl_tensor_release(x), sl_sae_release(sae);
}

static void test_start_values(void **state) {
  (void)state;
  sl_sae *a = NULL, *b = NULL, *c = NULL;
  sl_sae_config config = sl_sae_config_topk(24, 300, 3);
  ok(sl_sae_create(sl_cpu_device(), &config, 1, &a)), ok(sl_sae_create(sl_cpu_device(), &config, 1, &b)),
      ok(sl_sae_create(sl_cpu_device(), &config, 2, &c));
  const float *w = sl_tensor_f32(a->parameters[SL_SAE_W_ENC]),
              *d = sl_tensor_f32(a->parameters[SL_SAE_W_DEC]);
  assert_memory_equal(w, sl_tensor_f32(b->parameters[SL_SAE_W_ENC]), 24 * 300 * 4);
  assert_memory_not_equal(w, sl_tensor_f32(c->parameters[SL_SAE_W_ENC]), 24 * 300 * 4);
  double mean = 0, squares = 0;
  for (int i = 0; i < 24 * 300; i++) {
    assert_true(fabs((double)w[i]) <= 1 / sqrt(24.0));
    mean += (double)w[i] / 7200, squares += (double)w[i] * (double)w[i] / 7200;
  }
  assert_true(fabs(mean) < 0.01 && fabs(squares - 1.0 / 72) < 1e-3);
  for (int i = 0; i < 300; i++) {
    double norm = 0;
    for (int j = 0; j < 24; j++) norm += (double)w[i * 24 + j] * (double)w[i * 24 + j];
    for (int j = 0; j < 24; j++)
      assert_true(fabs((double)d[i * 24 + j] - (double)w[i * 24 + j] / sqrt(norm)) < 1e-6);
  }
  sl_tensor *x = noise(40, 24, 2);
  float *b_dec = sl_tensor_f32(a->parameters[SL_SAE_B_DEC]);
  ok(sl_sae_init_b_dec(a, x, SL_SAE_CENTER_MEAN));
  double first = 0;
  for (int t = 0; t < 40; t++) first += (double)sl_tensor_f32(x)[t * 24] / 40;
  assert_true(fabs(first - (double)b_dec[0]) < 1e-6);
  ok(sl_sae_init_b_dec(a, x, SL_SAE_CENTER_MEDIAN));
  assert_true(fabs(first - (double)b_dec[0]) > 1e-6);
  float kept = b_dec[0];
  sl_tensor_f32(x)[5] = INFINITY;
  assert_int_equal(sl_sae_init_b_dec(a, x, SL_SAE_CENTER_MEAN), SL_EINVAL);
  assert_true(b_dec[0] == kept);
  ok(sl_sae_init_b_dec(a, NULL, SL_SAE_CENTER_ZEROS));
  assert_true(b_dec[0] == 0);
  assert_true(fabs(sl_sae_auto_lr(24576) - 1.633e-4) < 1e-7);
  sl_tensor_release(x), sl_sae_release(a), sl_sae_release(b), sl_sae_release(c);
}

static void test_codes(void **state) {
  (void)state;
  sl_sae *sae = make(sl_sae_config_topk(5, 11, 3), 2);
  sl_tensor *x = noise(4, 5, 1), *dense, *offsets, *ids, *values;
  sl_codes *codes, *again;
  ok(sl_sae_encode(sae, x, NULL, &codes));
  ok(sl_codes_to_dense(codes, &dense));
  ok(sl_codes_tensors(codes, &offsets, &ids, &values));
  assert_int_equal(dense->shape[1], 11);
  int64_t seen = 0;
  for (int64_t i = 0; i < 44; i++) seen += sl_tensor_f32(dense)[i] > 0;
  assert_int_equal(seen, codes->entries);
  for (int64_t t = 0, p = 0; t < 4; t++)
    for (; p < ((int64_t *)sl_tensor_data(offsets))[t + 1]; p++)
      assert_true(sl_tensor_f32(dense)[t * 11 + ((int32_t *)sl_tensor_data(ids))[p]] ==
                  sl_tensor_f32(values)[p]);
  ok(sl_codes_from_tensors(offsets, ids, values, 11, &again));
  assert_int_equal(again->entries, codes->entries);
  sl_codes *wrong = NULL;
  assert_int_equal(sl_codes_from_tensors(offsets, ids, values,
                                         ((int32_t *)sl_tensor_data(ids))[codes->entries - 1], &wrong),
                   SL_EINVAL);
  ((int64_t *)sl_tensor_data(offsets))[2] = 99;
  assert_int_equal(sl_codes_from_tensors(offsets, ids, values, 11, &wrong), SL_EINVAL);
  assert_null(wrong);
  sl_tensor_release(x), sl_tensor_release(dense), sl_tensor_release(offsets), sl_tensor_release(ids),
      sl_tensor_release(values);
  sl_codes_release(codes), sl_codes_release(again), sl_sae_release(sae);
}

static void test_refusals(void **state) {
  (void)state;
  sl_sae *sae = NULL;
  sl_sae_config config = sl_sae_config_topk(5, 11, 12);
  assert_int_equal(sl_sae_create(sl_cpu_device(), &config, 1, &sae), SL_EINVAL);
  assert_non_null(strstr(sl_last_error(), "k = 12"));
  sl_sae_activation activation;
  assert_int_equal(sl_sae_activation_find("gelu", &activation), SL_EUNSUPPORTED);
  assert_non_null(strstr(sl_last_error(), "topk"));
  ok(sl_sae_activation_find("topk", &activation));
  config.k = 3;
  ok(sl_sae_create(sl_cpu_device(), &config, 1, &sae));
  sl_tensor *x = noise(4, 5, 1), *narrow = noise(4, 3, 1), *none = noise(0, 5, 1), *t = NULL;
  sl_codes *codes = NULL;
  sl_sae_loss *loss = NULL;
  sl_sae_loss_opts opts = sl_sae_loss_defaults();
  assert_int_equal(sl_sae_encode(sae, narrow, NULL, &codes), SL_ESHAPE);
  assert_int_equal(sl_sae_encode(sae, x, &(sl_sae_encode_opts){ .k = 12 }, &codes), SL_EINVAL);
  assert_int_equal(sl_sae_encode(sae, x, &(sl_sae_encode_opts){ .dtype = SL_F16 }, &codes), SL_EDTYPE);
  assert_int_equal(sl_sae_loss_create(sae, none, NULL, &loss), SL_ESHAPE);
  opts.multi_alpha = -1;
  assert_int_equal(sl_sae_loss_create(sae, x, &opts, &loss), SL_EINVAL);
  assert_int_equal(sl_sae_parameter(sae, "W_skip", &t), SL_ENOTFOUND);
  assert_int_equal(sl_sae_grad(sae, "W_skip", &t), SL_ENOTFOUND);
  assert_int_equal(sl_sae_set_parameter(sae, "W_enc", x), SL_ESHAPE);
  ok(sl_sae_loss_create(sae, x, NULL, &loss));
  ok(sl_sae_backward(loss, 1));
  assert_int_equal(sl_sae_backward(loss, 1), SL_ESTATE);
  sl_sae_loss_release(loss);
  memset(sl_tensor_f32(x), 0, 4 * 5 * 4); /* no variance at all */
  assert_int_equal(sl_sae_loss_create(sae, x, NULL, &loss), SL_EINVAL);
  sl_tensor_f32(x)[7] = NAN;
  assert_int_equal(sl_sae_encode(sae, x, NULL, &codes), SL_EINVAL);
  ok(sl_sae_loss_create(sae, x, NULL, &loss));
  assert_int_equal(loss->nonfinite, 1);
  assert_true(isnan(loss->loss) && isnan(loss->mse) && isnan(loss->fvu));
  assert_int_equal(sl_sae_backward(loss, 1), SL_EINVAL);
  sl_sae_optim_config bad = sl_sae_optim_defaults();
  bad.beta1 = 1;
  sl_sae_optim *optim = NULL;
  assert_int_equal(sl_sae_optim_create(sae, &bad, &optim), SL_EINVAL);
  sl_sae_loss_release(loss), sl_tensor_release(x), sl_tensor_release(narrow), sl_tensor_release(none),
      sl_sae_release(sae);
}

static void test_state_tensors(void **state) {
  (void)state;
  sl_sae *sae = make(sl_sae_config_topk(5, 11, 3), 2);
  sl_sae_optim *optim;
  ok(sl_sae_optim_create(sae, NULL, &optim));
  const char *name;
  sl_tensor *t;
  int n = 0;
  while (sl_sae_optim_state(optim, n, &name, &t) == SL_OK) {
    if (n == 6) assert_string_equal(name, "W_dec.v");
    if (n == 6) assert_ptr_equal(t, optim->moments[1][SL_SAE_W_DEC]);
    sl_tensor_release(t);
    n++;
  }
  assert_int_equal(n, 10);
  sl_sae_optim_release(optim);
  ok(sl_sae_optim_create(sae, &(sl_sae_optim_config){ .rule = SL_SAE_SGD }, &optim));
  ok(sl_sae_optim_state(optim, 0, &name, &t));
  assert_string_equal(name, "tokens_since_fired");
  sl_tensor_release(t), sl_sae_optim_release(optim), sl_sae_release(sae);
}

/* -- Torture: the n-th allocation fails -- */

static sl_status whole_step(const sl_tensor *x, sl_sae_activation activation) {
  sl_sae *sae = NULL;
  sl_sae_optim *optim = NULL;
  sl_sae_loss *loss = NULL;
  sl_codes *codes = NULL;
  sl_tensor *t = NULL, *dense = NULL;
  sl_sae_config config = sl_sae_config_topk(5, 30, 2);
  config.activation = activation;
  sl_sae_loss_opts opts = sl_sae_loss_defaults();
  opts.auxk_alpha = 0.1, opts.multi_alpha = activation == SL_SAE_BATCHTOPK ? 0 : 0.1, opts.micro_acc_steps = 2, opts.dtype = SL_BF16,
  opts.dead_feature_threshold = -1;
  sl_status status = sl_sae_create(sl_cpu_device(), &config, 1, &sae);
  if (status == SL_OK) status = sl_sae_init_b_dec(sae, x, SL_SAE_CENTER_MEDIAN);
  if (status == SL_OK) status = sl_sae_optim_create(sae, NULL, &optim);
  if (status == SL_OK) status = sl_sae_loss_create(sae, x, &opts, &loss);
  if (status == SL_OK) status = sl_sae_backward(loss, 1);
  if (status == SL_OK) status = sl_sae_grad(sae, "b_dec", &t);
  if (status == SL_OK) status = sl_sae_optim_step(optim, 1e-3);
  if (status == SL_OK) status = sl_sae_encode(sae, x, NULL, &codes);
  if (status == SL_OK) status = sl_codes_to_dense(codes, &dense);
  sl_tensor_release(t), sl_tensor_release(dense);
  sl_codes_release(codes), sl_sae_loss_release(loss), sl_sae_optim_release(optim), sl_sae_release(sae);
  return status;
}

static void fail_every_allocation(const sl_tensor *x, sl_sae_activation activation) {
  ok(whole_step(x, activation));
  sl_mem_stats before = sl_mem_get_stats();
  int failures = 0;
  for (int n = 1;; n++) {
    sl_mem_fail_at(n);
    sl_status status = whole_step(x, activation);
    sl_mem_fail_at(0);
    sl_mem_stats after = sl_mem_get_stats();
    assert_int_equal(after.blocks, before.blocks);
    assert_int_equal(after.bytes, before.bytes);
    if (status == SL_OK) break;
    assert_int_equal(status, SL_ENOMEM);
    failures++;
  }
  assert_true(failures > 50);
}

static void test_failing_allocations(void **state) {
  (void)state;
  sl_tensor *x = noise(9, 5, 3);
  fail_every_allocation(x, SL_SAE_TOPK);
  fail_every_allocation(x, SL_SAE_GROUPMAX);
  for (int j = 0; j < 5; j++) sl_tensor_f32(x)[j] *= 100; /* a token that wants most of the batch: its room is too small */
  fail_every_allocation(x, SL_SAE_BATCHTOPK);
  sl_tensor_release(x);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_slopes),
    cmocka_unit_test(test_auxk_slopes),
    cmocka_unit_test(test_training_lowers_the_loss),
    cmocka_unit_test(test_clip),
    cmocka_unit_test(test_fired),
    cmocka_unit_test(test_pieces_need_less_memory),
    cmocka_unit_test(test_start_values),
    cmocka_unit_test(test_codes),
    cmocka_unit_test(test_refusals),
    cmocka_unit_test(test_state_tensors),
    cmocka_unit_test(test_failing_allocations),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
