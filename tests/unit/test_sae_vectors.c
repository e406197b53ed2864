/* The dictionary against closed-form inputs with known answers: the test vectors of two small problems,
 * worked out in float64 and checked with sparsify 1.3.3 (its "exact gradient" variants, where that package
 * drops a part). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/mem.h"
#include "core/sae/loss.h"
#include "core/sae/optim.h"

static void ok(sl_status status) {
  if (status != SL_OK) fail_msg("%s: %s", sl_status_name(status), sl_last_error());
}

static sl_tensor *tensor2(const float *values, int64_t rows, int64_t columns) {
  sl_tensor *t;
  int64_t shape[2] = { rows, columns };
  ok(sl_tensor_create(sl_cpu_device(), SL_F32, columns ? 2 : 1, shape, &t));
  ok(sl_tensor_write(t, values, (size_t)sl_tensor_count(t) * sizeof(float)));
  return t;
}

static void set(sl_sae *sae, const char *name, const float *values, int64_t rows, int64_t columns) {
  sl_tensor *t = tensor2(values, rows, columns);
  ok(sl_sae_set_parameter(sae, name, t));
  sl_tensor_release(t);
}

static void close_to(double got, double want) {
  if (!(fabs(got - want) <= 1e-5 * (fabs(want) > 1 ? fabs(want) : 1)))
    fail_msg("%.9g, expected %.9g", got, want);
}

static void close_all(const float *got, const double *want, int n) {
  for (int i = 0; i < n; i++) close_to((double)got[i], want[i]);
}

/* Sum, sum weighted by (j mod 7) + 1, sum of squares. */
static void checksum(const sl_tensor *t, double a, double b, double c) {
  double sums[3] = {0};
  for (int64_t j = 0; j < sl_tensor_count(t); j++) {
    double v = (double)sl_tensor_f32(t)[j];
    sums[0] += v, sums[1] += v * (double)(j % 7 + 1), sums[2] += v * v;
  }
  close_to(sums[0], a), close_to(sums[1], b), close_to(sums[2], c);
}

static void checksum_parameter(sl_sae *sae, const char *name, double a, double b, double c) {
  sl_tensor *t;
  ok(sl_sae_parameter(sae, name, &t));
  checksum(t, a, b, c);
  sl_tensor_release(t);
}

static void checksum_grad(sl_sae *sae, const char *name, double a, double b, double c) {
  sl_tensor *t;
  ok(sl_sae_grad(sae, name, &t));
  checksum(t, a, b, c);
  sl_tensor_release(t);
}

static void grad_rows(sl_sae *sae, const char *name, int first, const double *want, int n) {
  sl_tensor *t;
  ok(sl_sae_grad(sae, name, &t));
  close_all(sl_tensor_f32(t) + first, want, n);
  sl_tensor_release(t);
}

static void mark_dead(sl_sae *sae, const int *ids, int n) {
  int64_t *since = sl_tensor_data(sae->tokens_since_fired);
  for (int i = 0; i < n; i++) since[ids[i]] = 100;
}

/* -- Small: D 2, M 4, k 2, N 3 -- */

static const float small_x[] = { 1, 2, 3, -1, 0, 1 };

static sl_sae *small_sae(void) {
  static const float w_enc[] = { .5f, .5f, -.5f, .25f, .25f, -.75f, .6f, .2f },
                     b_enc[] = { .1f, 0, -.1f, .05f }, b_dec[] = { .2f, -.1f };
  sl_sae *sae;
  sl_sae_config config = sl_sae_config_topk(2, 4, 2);
  ok(sl_sae_create(sl_cpu_device(), &config, 1, &sae));
  set(sae, "W_enc", w_enc, 4, 2), set(sae, "W_dec", w_enc, 4, 2);
  set(sae, "b_enc", b_enc, 4, 0), set(sae, "b_dec", b_dec, 2, 0);
  return sae;
}

static void test_small(void **state) {
  (void)state;
  sl_sae *sae = small_sae();
  sl_tensor *x = tensor2(small_x, 3, 2), *ids, *offsets, *values, *x_hat;
  sl_sae_loss *loss;
  ok(sl_sae_loss_create(sae, x, NULL, &loss));
  close_to(loss->total_variance, 9.333333);
  close_to(loss->fvu, 0.34057669);
  close_to(loss->loss, 0.34057669);
  sl_codes *codes;
  ok(sl_sae_loss_codes(loss, &codes));
  ok(sl_codes_tensors(codes, &offsets, &ids, &values));
  static const int32_t want_ids[] = { 0, 3, 2, 3, 0, 1 };
  static const double want_values[] = { 1.55, .95, 1.275, 1.55, .55, .375 };
  assert_memory_equal(sl_tensor_data(ids), want_ids, sizeof want_ids);
  close_all(sl_tensor_f32(values), want_values, 6);
  ok(sl_sae_decode(sae, codes, &x_hat));
  static const double want_x[] = { 2.197265, 1.296432, 2.07365, -.819418, .253499, .456614 };
  close_all(sl_tensor_f32(x_hat), want_x, 6);
  ok(sl_sae_backward(loss, 1));
  static const double dw_dec[] = {
    .42754, -.297727, .02037, -.043665, -.253092, .049338, -.063952, -.083247
  };
  static const double dw_enc[] = { .06863, .108776, .020132, -.110726, -.278552, .089534, -.336453, .569474 };
  static const double db_enc[] = { .030882, -.10066, -.099483, .019635 }, db_dec[] = { .059693, -.297323 };
  grad_rows(sae, "W_dec", 0, dw_dec, 8), grad_rows(sae, "W_enc", 0, dw_enc, 8);
  grad_rows(sae, "b_enc", 0, db_enc, 4), grad_rows(sae, "b_dec", 0, db_dec, 2);
  static const double projected[] = { .362633,  -.362633, -.013392, -.026784,
                                      -.212982, -.070994, .018579,  -.055737 };
  sl_sae_optim_config sgd = { .rule = SL_SAE_SGD }; /* one step of it shows the projected gradient */
  sl_sae_optim *optim;
  ok(sl_sae_optim_create(sae, &sgd, &optim));
  float before[8];
  memcpy(before, sl_tensor_f32(sae->parameters[SL_SAE_W_DEC]), sizeof before);
  ok(sl_sae_optim_step(optim, 1e-2));
  for (int i = 0; i < 8; i += 2) {
    double moved[2], norm = 0;
    for (int j = 0; j < 2; j++)
      moved[j] = (double)before[i + j] - 1e-2 * projected[i + j], norm += moved[j] * moved[j];
    for (int j = 0; j < 2; j++)
      close_to((double)sl_tensor_f32(sae->parameters[SL_SAE_W_DEC])[i + j], moved[j] / sqrt(norm));
  }
  sl_tensor_release(x), sl_tensor_release(ids), sl_tensor_release(offsets), sl_tensor_release(values),
      sl_tensor_release(x_hat);
  sl_codes_release(codes), sl_sae_loss_release(loss), sl_sae_optim_release(optim), sl_sae_release(sae);
}

static void test_small_auxk(void **state) {
  (void)state;
  sl_sae *sae = small_sae();
  sl_tensor *x = tensor2(small_x, 3, 2);
  sl_sae_loss *loss;
  sl_sae_loss_opts opts = sl_sae_loss_defaults();
  opts.auxk_alpha = 1.0 / 32, opts.dead_feature_threshold = 10;
  mark_dead(sae, (const int[]){ 1, 2 }, 2);
  ok(sl_sae_loss_create(sae, x, &opts, &loss));
  close_to(loss->auxk, 0.32979207);
  assert_int_equal(loss->dead, 2);
  sl_sae_loss_release(loss), sl_sae_release(sae), sl_tensor_release(x);
}

/* -- Closed form: D 4, M 16, k 2, N 6 -- */

enum { D = 4, M = 16, N = 6 };

static sl_sae *formula_sae(void) {
  float w_enc[M * D], w_dec[M * D], b_enc[M], b_dec[D];
  for (int i = 0; i < M; i++) {
    for (int d = 0; d < D; d++) {
      w_enc[i * D + d] = (float)((7 * i * i + 17 * d * d + 22 * i * d + 3 * i + d) % 29 - 14) / 64;
      w_dec[i * D + d] = (float)((18 * i * i + 4 * d * d + 12 * i * d + i + 3 * d) % 23 - 11) / 16;
    }
    b_enc[i] = (float)(5 * i % 7 - 3) / 128;
  }
  for (int d = 0; d < D; d++) b_dec[d] = (float)(3 * d % 5 - 2) / 8;
  sl_sae *sae;
  sl_sae_config config = sl_sae_config_topk(D, M, 2);
  ok(sl_sae_create(sl_cpu_device(), &config, 1, &sae));
  set(sae, "W_enc", w_enc, M, D), set(sae, "W_dec", w_dec, M, D), set(sae, "b_enc", b_enc, M, 0),
      set(sae, "b_dec", b_dec, D, 0);
  checksum_parameter(sae, "W_enc", -.078125, -1.421875, .9826660156);
  checksum_parameter(sae, "W_dec", 7.562432834, 35.60613522, 16);
  return sae;
}

static sl_tensor *formula_x(void) {
  float x[N * D];
  for (int t = 0; t < N; t++)
    for (int d = 0; d < D; d++)
      x[t * D + d] = (float)((17 * t * t + 6 * d * d + 6 * t * d + t + 2 * d) % 29 - 14) / 4;
  sl_tensor *tensor = tensor2(x, N, D);
  checksum(tensor, -22.25, -86.25, 126.5625);
  return tensor;
}

/* After one Adam step at lr 0.01; fvu2 is the loss of the same batch then, and so answers for W_dec and its
 * unit rows. */
typedef struct { double w_enc[3], b_enc[3], fvu2; } after_step;

static sl_sae_optim *step_and_compare(sl_sae *sae, const sl_tensor *x, const after_step *want) {
  sl_sae_optim *optim;
  sl_sae_loss *loss;
  ok(sl_sae_optim_create(sae, NULL, &optim));
  ok(sl_sae_optim_step(optim, 0.01));
  checksum_parameter(sae, "W_enc", want->w_enc[0], want->w_enc[1], want->w_enc[2]);
  checksum_parameter(sae, "b_enc", want->b_enc[0], want->b_enc[1], want->b_enc[2]);
  checksum_parameter(sae, "b_dec", 0, .605, .14165);
  ok(sl_sae_loss_create(sae, x, NULL, &loss));
  close_to(loss->fvu, want->fvu2);
  sl_sae_loss_release(loss);
  return optim;
}

static const after_step after_a = { { -.0781249433, -1.30187486, .973503499 },
                                    { -.0278125111, .0871874374, .00606142461 },
                                    1.74847278 };

/* `pieces` cuts the batch; `scale` and a second half repeat the gradient. */
static void run_a(int64_t pieces, int halves) {
  sl_sae *sae = formula_sae();
  sl_tensor *x = formula_x();
  sl_sae_loss_opts opts = sl_sae_loss_defaults();
  opts.micro_acc_steps = pieces;
  for (int half = 0; half < halves; half++) {
    sl_sae_loss *loss;
    ok(sl_sae_loss_create(sae, x, &opts, &loss));
    close_to(loss->total_variance, 92.05208333);
    close_to(loss->fvu, 1.81731976);
    close_to(loss->explained_variance, 1 - 1.81731976);
    close_to(loss->mse, 1.81731976 * 92.05208333 / 24);
    close_to(loss->l0, 2);
    ok(sl_sae_backward(loss, 1.0 / halves));
    sl_sae_loss_release(loss);
  }
  static const double w_enc1[] = { .01731728, .03030525,  -.08225710, -.11256234, .16875063, -.21730592,
                                   .24235443, -.30889382, 0,          0,          0,         0 };
  static const double w_enc10[] = { -.24946946, -.12473473, .27825440,  -.24946946, .00171755, .01975177,
                                    .01288159,  -.01030527, 0,          0,          0,         0,
                                    0,          0,          0,          0,          .46165984, -.65688842,
                                    .13092038,  -.67617766, -.02770682, -.01071285, .11248718, .13066157 };
  static const double w_dec1[] = { .01228452, .00123485, .06231689,  .05582923,
                                   .01965814, .10382932, -.21053686, .14725785 };
  static const double w_dec10[] = { .07514749,  .03577841, -.14001753, .05991322,
                                    -.00323578, .02769783, .02148970,  -.01518894 };
  static const double w_dec14[] = { -.21057920, .23972015, -.01705785, .21926013,
                                    -.00982308, .03802055, .09115331,  .06993827 };
  static const double b_enc[] = { 0, .03463457, .08947139, 0,          0, 0, 0,         0,
                                  0, 0,         .07675983, -.00687018, 0, 0, .25381569, -.04422132 };
  static const double b_dec[] = { -.07541605, .34018273, -.03566539, .33073382 };
  grad_rows(sae, "W_enc", 1 * D, w_enc1, 12), grad_rows(sae, "W_enc", 10 * D, w_enc10, 24);
  grad_rows(sae, "W_dec", 1 * D, w_dec1, 8), grad_rows(sae, "W_dec", 10 * D, w_dec10, 8),
      grad_rows(sae, "W_dec", 14 * D, w_dec14, 8);
  grad_rows(sae, "b_enc", 0, b_enc, M), grad_rows(sae, "b_dec", 0, b_dec, D);
  sl_sae_optim *optim = step_and_compare(sae, x, &after_a);
  double tenth[3] = { .0759411303, .306695396,
                      .00150556589 }; /* the first moment is a tenth of the projected gradient */
  checksum(optim->moments[0][SL_SAE_W_DEC], tenth[0], tenth[1], tenth[2]);
  sl_sae_optim_release(optim);
  sl_sae_release(sae), sl_tensor_release(x);
}

static void test_a(void **state) { (void)state; run_a(1, 1); }
static void test_a_in_halves_of_gradient(void **state) { (void)state; run_a(1, 2); }

static void test_f_micro_pieces(void **state) {
  (void)state;
  run_a(2, 1), run_a(4, 1), run_a(6, 1);
  /* The pieces' own losses with the batch's V. */
  sl_sae *sae = formula_sae();
  sl_tensor *x = formula_x();
  static const double want[2] = { .948450877, .868868882 };
  for (int half = 0; half < 2; half++) {
    sl_tensor *part;
    sl_sae_loss *loss;
    sl_sae_loss_opts opts = sl_sae_loss_defaults();
    opts.total_variance = 92.05208333;
    ok(sl_tensor_slice(x, 0, 3 * half, 3, &part));
    ok(sl_sae_loss_create(sae, part, &opts, &loss));
    close_to(loss->loss, want[half]);
    sl_sae_loss_release(loss), sl_tensor_release(part);
  }
  sl_sae_release(sae), sl_tensor_release(x);
}

static void run_b(int64_t pieces) {
  sl_sae *sae = formula_sae();
  sl_tensor *x = formula_x();
  sl_sae_loss *loss;
  sl_sae_loss_opts opts = sl_sae_loss_defaults();
  opts.auxk_alpha = 1.0 / 32, opts.dead_feature_threshold = 99, opts.micro_acc_steps = pieces;
  mark_dead(sae, (const int[]){ 3, 6, 9, 12, 13 }, 5);
  ok(sl_sae_loss_create(sae, x, &opts, &loss));
  close_to(loss->auxk, 1.89311084);
  close_to(loss->loss, 1.87647947);
  ok(sl_sae_backward(loss, 1));
  static const double w_dec3[] = { -.00401854, .01790305, .01463459, -.00691342 },
                      w_dec13[] = { .05050059, .06622463, -.01577800, .08456950 };
  static const double w_enc3[] = { -.02838748, .26856620, .22689294, -.03663936 },
                      w_enc9[] = { .00776091, .01358159, -.03686432, -.05044591 };
  static const double b_enc[] = { -.09341433, .18144960, .01552182, .05483722 };
  static const double b_dec_a[] = { -.07541605, .34018273, -.03566539, .33073382 },
                      b_dec_aux[] = { .02274407, -.01095899, -.02515517, .03049345 };
  double scaled[D];
#define SCALED(source)                                                                                       \
  (memcpy(scaled, source, sizeof scaled), scaled[0] /= 32, scaled[1] /= 32, scaled[2] /= 32,                 \
   scaled[3] /= 32, scaled)
  grad_rows(sae, "W_dec", 3 * D, SCALED(w_dec3), D), grad_rows(sae, "W_dec", 13 * D, SCALED(w_dec13), D);
  grad_rows(sae, "W_enc", 3 * D, SCALED(w_enc3), D), grad_rows(sae, "W_enc", 9 * D, SCALED(w_enc9), D);
  SCALED(b_enc);
  grad_rows(sae, "b_enc", 3, scaled, 1), grad_rows(sae, "b_enc", 6, scaled + 1, 1);
  grad_rows(sae, "b_enc", 9, scaled + 2, 1), grad_rows(sae, "b_enc", 13, scaled + 3, 1);
  SCALED(b_dec_aux);
  for (int d = 0; d < D; d++) scaled[d] += b_dec_a[d];
  grad_rows(sae, "b_dec", 0, scaled, D);
  static const after_step after = { { -.0581246558, -1.14187496, .967291062 },
                                    { -.0478122632, -.0428115492, .00646141816 },
                                    1.72516938 };
  sl_sae_optim_release(step_and_compare(sae, x, &after));
  sl_sae_loss_release(loss), sl_sae_release(sae), sl_tensor_release(x);
}

static void test_b_auxk(void **state) {
  (void)state;
  run_b(1), run_b(3);
  sl_sae *sae = formula_sae();
  sl_tensor *x = formula_x();
  sl_sae_loss *loss;
  sl_sae_loss_opts opts = sl_sae_loss_defaults();
  opts.auxk_alpha = 1, opts.dead_feature_threshold = 99;
  mark_dead(sae, (const int[]){ 9 }, 1);
  ok(sl_sae_loss_create(sae, x, &opts, &loss));
  close_to(loss->auxk, .909600571);
  sl_sae_loss_release(loss), sl_sae_release(sae), sl_tensor_release(x);
}

static void run_c(int64_t pieces) {
  sl_sae *sae = formula_sae();
  sl_tensor *x = formula_x();
  sl_sae_loss *loss;
  sl_sae_loss_opts opts = sl_sae_loss_defaults();
  opts.multi_alpha = 1.0 / 8, opts.micro_acc_steps = pieces;
  ok(sl_sae_loss_create(sae, x, &opts, &loss));
  close_to(loss->fvu, 1.81731976);
  close_to(loss->multi_topk, 1.85827963);
  close_to(loss->loss, 2.04960471);
  close_to(loss->l0, 2);
  ok(sl_sae_backward(loss, 1));
  checksum_grad(sae, "W_dec", .907141164, 4.64932, .366343228);
  checksum_grad(sae, "W_enc", -1.30226578, -7.49403573, 2.02237767);
  checksum_grad(sae, "b_enc", .459985372, 1.00237631, .101567384);
  checksum_grad(sae, "b_dec", .634830763, 2.06586827, .299178547);
  static const after_step after = { { -.018124701, -1.02187407, .961078481 },
                                    { -.0878118511, -.182811456, .00748638631 },
                                    1.72516937 };
  sl_sae_optim_release(step_and_compare(sae, x, &after));
  sl_sae_loss_release(loss), sl_sae_release(sae), sl_tensor_release(x);
}

static void test_c_multi_topk(void **state) { (void)state; run_c(1), run_c(2); }

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_small),
    cmocka_unit_test(test_small_auxk),
    cmocka_unit_test(test_a),
    cmocka_unit_test(test_a_in_halves_of_gradient),
    cmocka_unit_test(test_f_micro_pieces),
    cmocka_unit_test(test_b_auxk),
    cmocka_unit_test(test_c_multi_topk),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
