/* The training step through core/sae, one cell's measurement, and its lines; see rig.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rig.h"

static sl_sae_loss_opts loss_opts(const rig_cell *cell) {
  sl_sae_loss_opts opts = sl_sae_loss_defaults();
  opts.kind = SL_SAE_MSE;
  opts.dtype = cell->precision == RIG_BF16 ? SL_BF16 : SL_F32;
  opts.plain = cell->precision != RIG_SCREENED;
  return opts;
}

void rig_step_create(const rig_cell *cell, rig_step *out) {
  *out = (rig_step){ .cell = *cell, .device = rig_device(cell->device) };
  if (out->cell.inner == 0) out->cell.inner = out->device->host_memory ? 1 : 10;
  out->device->tf32 = cell->precision == RIG_TF32;
  sl_sae_config config = sl_sae_config_topk(cell->d, cell->m, cell->k);
  config.activation = cell->activation;
  if (cell->activation == SL_SAE_JUMPRELU) config.k = 0; /* thresholds say how many */
  sl_sae_optim_config adam = sl_sae_optim_defaults();
  adam.clip_norm = 1;
  bool eight = strcmp(cell->states, "8bit") == 0;
  if (!eight && strcmp(cell->states, "f32") != 0) {
    fprintf(stderr, "no Adam with '%s' states; there are f32, 8bit\n", cell->states);
    exit(2);
  }
  if (eight) adam.rule = SL_SAE_ADAM8;
  rig_check(sl_sae_create(out->device, &config, 1, &out->sae));
  rig_check(sl_sae_optim_create(out->sae, &adam, &out->optim));
  float *x = rig_input(cell);
  out->x = rig_upload(out->device, x, cell->n, cell->d);
  free(x);
  rig_check(sl_sae_init_b_dec(out->sae, out->x, SL_SAE_CENTER_MEAN));
  if (cell->precision != RIG_SCREENED) return;
  /* A float32 encode that was screened leaves the bf16 weights behind. */
  rig_step_run(out, NULL, true);
  if (!out->sae->w_enc_bf16) {
    fprintf(stderr, "nothing to screen with here: this processor, shape or activation takes the float32 product\n");
    exit(RIG_UNSUPPORTED);
  }
}

void rig_step_run(rig_step *step, sl_tensor *x, bool read) {
  sl_sae_loss_opts opts = loss_opts(&step->cell);
  sl_sae_loss *loss;
  rig_check(sl_sae_loss_create(step->sae, x ? x : step->x, &opts, &loss));
  if (step->cell.low_memory) {
    rig_check(sl_sae_step(loss, step->optim, 1e-4));
  } else {
    rig_check(sl_sae_backward(loss, 1));
    rig_check(sl_sae_optim_step(step->optim, 1e-4));
  }
  if (read) {
    rig_check(sl_sae_loss_read(loss));
    step->loss = loss->loss;
    step->l0 = loss->l0;
  }
  sl_sae_loss_release(loss);
}

double rig_step_time(rig_step *step) {
  double start = rig_now_idle(step->device);
  int64_t waits = step->device->waits;
  for (int i = 0; i < step->cell.inner; i++) rig_step_run(step, NULL, false);
  step->waits = (double)(step->device->waits - waits) / step->cell.inner;
  return (rig_now_idle(step->device) - start) / step->cell.inner;
}

void rig_step_release(rig_step *step) {
  sl_sae_optim_release(step->optim);
  sl_sae_release(step->sae);
  sl_tensor_release(step->x);
}

rig_result rig_measure(const rig_cell *cell) {
  rig_result result = { .step = INFINITY, .product = INFINITY, .library = INFINITY, .own = INFINITY,
                        .needed_bytes = 24.0 * (double)cell->m * (double)cell->d };
  rig_step step;
  sl_device *device = rig_device(cell->device);
  double before = rig_device_used(device);
  rig_step_create(cell, &step);
  for (int i = 0; i < 2; i++) rig_step_run(&step, NULL, true); /* warm: pools filled, libraries chosen */
  result.peak_bytes = device->host_memory ? rig_peak_rss() : rig_device_used(device) - before;
  rig_product *product = NULL;
  rig_copy *copy = NULL;
  if (cell->product) {
    product = rig_product_create(&step.cell, device, step.x, step.sae->parameters[SL_SAE_W_ENC]);
    copy = rig_copy_create(device);
    (void)rig_product_time(product);
  }
  for (int r = 0; r < cell->repeats; r++) {
    if (product) {
      result.product = rig_least(result.product, rig_product_time(product));
      double rate = rig_copy_rate(copy);
      result.copy_rate = rate > result.copy_rate ? rate : result.copy_rate;
    }
    result.step = rig_least(result.step, rig_step_time(&step));
  }
  rig_step_run(&step, NULL, true);
  result.loss = step.loss;
  result.l0 = step.l0;
  result.waits = step.waits;
  if (product) {
    result.library = rig_product_library(product);
    result.own = rig_product_own(product);
    result.floor = result.product + rig_optimiser_bytes(cell) / result.copy_rate;
    rig_product_release(product);
    rig_copy_release(copy);
  }
  rig_step_release(&step);
  return result;
}

/* -- Lines -- */

/* JSON knows no infinity: what was not measured is left out. */
static void number(FILE *out, const char *key, double value, int digits) {
  if (isfinite(value)) fprintf(out, ", \"%s\": %.*f", key, digits, value);
}

void rig_print_json(FILE *out, const rig_cell *cell, const rig_result *r) {
  fprintf(out,
          "{\"device\": \"%s\", \"activation\": \"%s\", \"tokens\": %lld, \"d\": %lld, \"latents\": %lld, \"k\": %lld, "
          "\"dtype\": \"%s\", \"states\": \"%s\", \"low_memory\": %s, \"threads\": %d",
          cell->device, sl_sae_activation_name(cell->activation), (long long)cell->n, (long long)cell->d,
          (long long)cell->m, (long long)cell->k, rig_precision_name(cell->precision), cell->states,
          cell->low_memory ? "true" : "false", rig_threads());
  number(out, "step_ms", 1e3 * r->step, 4);
  if (cell->product) {
    number(out, "product_ms", 1e3 * r->product, 4);
    number(out, "library_product_ms", 1e3 * r->library, 4);
    number(out, "own_product_ms", 1e3 * r->own, 4);
    number(out, "copy_gb_s", 1e-9 * r->copy_rate, 2);
    number(out, "floor_ms", 1e3 * r->floor, 4);
    number(out, "ratio", r->step / r->product, 4);
    number(out, "ratio_floor", r->step / r->floor, 4);
  }
  number(out, "peak_mib", r->peak_bytes / 1048576, 1);
  number(out, "peak", r->peak_bytes / r->needed_bytes, 4);
  number(out, "waits_per_step", r->waits, 2);
  number(out, "loss", r->loss, 7);
  number(out, "l0", r->l0, 3);
  fprintf(out, "}");
}

void rig_print_header(FILE *out) {
  fprintf(out, "%-10s %-8s %6s %5s %7s %4s %9s %9s %9s %8s %8s %7s\n", "activation", "dtype", "tokens", "d", "latents",
          "k", "step ms", "product", "floor", "/product", "/floor", "memory");
}

void rig_print_row(FILE *out, const rig_cell *cell, const rig_result *r) {
  fprintf(out, "%-10s %-8s %6lld %5lld %7lld %4lld %9.2f", sl_sae_activation_name(cell->activation),
          rig_precision_name(cell->precision), (long long)cell->n, (long long)cell->d, (long long)cell->m,
          (long long)cell->k, 1e3 * r->step);
  if (cell->product) {
    fprintf(out, " %9.2f %9.2f %8.3f %8.3f", 1e3 * r->product, 1e3 * r->floor, r->step / r->product,
            r->step / r->floor);
  } else {
    fprintf(out, " %9s %9s %8s %8s", "-", "-", "-", "-");
  }
  fprintf(out, " %7.2f\n", r->peak_bytes / r->needed_bytes);
}
