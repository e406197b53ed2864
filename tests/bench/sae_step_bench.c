/* Times one TopK training step and its phases against the encoder product alone through oneDNN, in one
 * process.
 *
 *   sae_step_bench [--tokens N] [--d D] [--latents M] [--k K] [--repeats R] [--bf16] [--phases]
 * [--no-product] [--json]
 *                  [--isa base|avx2|avx512]
 *
 * The step is what a recipe runs: loss (with its metrics), backward, optimiser, through core/sae; --phases
 * calls the kernels one by one instead and shows their shares. Product and step alternate; minima over the
 * repeats are compared. The product's result is 4 N M bytes, so the peak memory of the step alone is what
 * --no-product reports. Input is random (mixtures of a few hidden directions and noise), so that all latents
 * take part. */
#include <math.h>
#include <oneapi/dnnl/dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "core/sae/loss.h"
#include "core/sae/optim.h"
#include "kernels/cpu/sae_cpu.h"

typedef struct {
  int64_t n, d, m, k;
  int repeats;
  bool bf16, product, phases, json;
} options;

static void *memory(size_t bytes) {
  void *block = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
  if (!block) {
    fprintf(stderr, "out of memory: %zu bytes\n", bytes);
    exit(1);
  }
  memset(block, 0, bytes);
  return block;
}

static float *floats(int64_t n) { return memory((size_t)n * sizeof(float)); }

static uint64_t random_state = 0x9e3779b97f4a7c15u;
static float uniform(void) { /* [-1, 1) */
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (float)((double)(random_state >> 11) / 4503599627370496.0 - 1);
}
static float normal(void) { return (uniform() + uniform() + uniform()) * 1.0f; }

static void check(sl_status status) {
  if (status == SL_OK) return;
  fprintf(stderr, "%s: %s\n", sl_status_name(status), sl_last_error());
  exit(1);
}

enum { PACK, ENCODE, INDEX, DECODE, BACKWARD, FINISH, UPDATE, PHASES };
static const char *const phase_names[PHASES] = { "pack",     "encode", "index", "decode",
                                                 "backward", "finish", "update" };

typedef struct {
  options o;
  float *x;
  sl_sae_parameters weights, moment1, moment2;
  uint16_t *w_bf16;
  sl_sae_gradients gradients;
  float *total_b_dec, *u, *residual, *code_gradients;
  void *panels, *workspace;
  size_t workspace_bytes;
  sl_codes_view codes;
  sl_codes_index index;
  double *column_sums;
  double loss, seconds[PHASES];
  int64_t entries, nonfinite, step;
  sl_sae *sae;
  sl_sae_optim *optim;
  sl_tensor *x_tensor;
} bench;

static sl_sae_parameters make_parameters(const options *o) {
  return (sl_sae_parameters){
    .w_enc = floats(o->m * o->d), .b_enc = floats(o->m), .w_dec = floats(o->m * o->d), .b_dec = floats(o->d)
  };
}

static sl_sae_encode_topk_args encode_args(bench *b) {
  return (sl_sae_encode_topk_args){
    .n = b->o.n, .d = b->o.d, .m = b->o.m, .k = b->o.k, .panels = b->panels,
    .w = b->o.bf16 ? (void *)b->w_bf16 : (void *)b->weights.w_enc, .dtype = b->o.bf16 ? SL_BF16 : SL_F32,
    .bias = b->weights.b_enc, .codes = b->codes, .nonfinite = &b->nonfinite,
    .workspace = b->workspace, .workspace_bytes = b->workspace_bytes };
}

static sl_sae_decode_residual_args decode_args(bench *b) {
  return (sl_sae_decode_residual_args){ .n = b->o.n,
                                        .m = b->o.m,
                                        .d = b->o.d,
                                        .index = b->index,
                                        .w_dec = b->weights.w_dec,
                                        .b_dec = b->weights.b_dec,
                                        .target = b->x,
                                        .residual = b->residual,
                                        .column_sums = b->column_sums,
                                        .sum_squares = &b->loss,
                                        .workspace = b->workspace,
                                        .workspace_bytes = b->workspace_bytes };
}

static float *make_input(const options *o) {
  enum { HIDDEN = 256, MIXED = 12 };
  float *directions = floats(HIDDEN * o->d), *x = floats(o->n * o->d);
  for (int64_t i = 0; i < HIDDEN * o->d; i++) directions[i] = normal() / sqrtf((float)o->d);
  for (int64_t t = 0; t < o->n; t++) {
    for (int64_t j = 0; j < o->d; j++) x[t * o->d + j] = 0.3f * normal();
    for (int h = 0; h < MIXED; h++) {
      const float *direction = directions + (int64_t)((uniform() + 1) * 0.5f * (HIDDEN - 1)) * o->d;
      float weight = 12 * uniform();
      for (int64_t j = 0; j < o->d; j++) x[t * o->d + j] += weight * direction[j];
    }
  }
  free(directions);
  return x;
}

static void make_weights(bench *b) {
  const options *o = &b->o;
  sl_device *cpu = sl_cpu_device();
  b->weights = make_parameters(o);
  b->moment1 = make_parameters(o);
  b->moment2 = make_parameters(o);
  for (int64_t i = 0; i < o->m * o->d; i++) b->weights.w_enc[i] = uniform() / sqrtf((float)o->d);
  check(cpu->kernels->sae_unit_rows(
      cpu, &(sl_sae_unit_rows_args){ .x = b->weights.w_enc, .y = b->weights.w_dec, .m = o->m, .d = o->d }));
  if (o->bf16) {
    b->w_bf16 = memory((size_t)(o->m * o->d) * 2);
    for (int64_t i = 0; i < o->m * o->d; i++) b->w_bf16[i] = sl_f32_to_bf16(b->weights.w_enc[i]);
  }
  b->gradients = (sl_sae_gradients){ .w_enc = floats(o->m * o->d),
                                     .w_dec = floats(o->m * o->d),
                                     .b_enc = floats(o->m),
                                     .b_dec = floats(o->d),
                                     .touched = memory((size_t)o->m),
                                     .dot_dec = floats(o->m),
                                     .squares_enc = floats(o->m),
                                     .squares_dec = floats(o->m) };
  b->total_b_dec = floats(o->d);
}

static void make_phases(bench *b) {
  const options *o = &b->o;
  sl_device *cpu = sl_cpu_device();
  make_weights(b);
  size_t panels, slabs, need, most = 0;
  check(cpu->kernels->sae_pack(cpu, &(sl_sae_pack_args){ .n = o->n,
                                                         .d = o->d,
                                                         .dtype = o->bf16 ? SL_BF16 : SL_F32,
                                                         .need_panels = &panels,
                                                         .need_slabs = &slabs }));
  b->panels = memory(panels);
  b->u = memory(slabs);
  b->residual = memory(slabs);
  int64_t capacity = o->n * o->k;
  b->codes = (sl_codes_view){ .rows = o->n, .n_latents = o->m, .offsets = memory((size_t)(o->n + 1) * 8),
                              .ids = memory((size_t)capacity * 4), .values = floats(capacity) };
  b->index = (sl_codes_index){ .offsets = memory((size_t)(o->m + 1) * 8),
                               .tokens = memory((size_t)capacity * 4),
                               .values = floats(capacity) };
  b->code_gradients = floats(capacity);
  b->column_sums = memory((size_t)o->d * 8);
  sl_sae_encode_topk_args encode = encode_args(b);
  encode.need = &need;
  check(cpu->kernels->sae_encode_topk(cpu, &encode));
  most = need;
  check(cpu->kernels->sae_index_codes(cpu, &(sl_sae_index_codes_args){ .codes = b->codes, .need = &need }));
  most = need > most ? need : most;
  sl_sae_decode_residual_args decode = decode_args(b);
  decode.need = &need;
  check(cpu->kernels->sae_decode_residual(cpu, &decode));
  most = need > most ? need : most;
  check(cpu->kernels->sae_finish_gradients(
      cpu, &(sl_sae_finish_gradients_args){ .m = o->m, .d_in = o->d, .d_out = o->d, .need = &need }));
  most = need > most ? need : most;
  b->workspace = memory(most);
  b->workspace_bytes = most;
}

static void phase_step(bench *b) {
  const options *o = &b->o;
  sl_device *cpu = sl_cpu_device();
  const sl_kernels *kernels = cpu->kernels;
  double at[PHASES + 1];
  at[PACK] = omp_get_wtime();
  check(kernels->sae_pack(cpu, &(sl_sae_pack_args){ .n = o->n,
                                                    .d = o->d,
                                                    .x = b->x,
                                                    .shift = b->weights.b_dec,
                                                    .dtype = o->bf16 ? SL_BF16 : SL_F32,
                                                    .panels = b->panels,
                                                    .slabs = b->u }));
  at[ENCODE] = omp_get_wtime();
  sl_sae_encode_topk_args encode = encode_args(b);
  check(kernels->sae_encode_topk(cpu, &encode));
  at[INDEX] = omp_get_wtime();
  check(kernels->sae_index_codes(cpu, &(sl_sae_index_codes_args){ .codes = b->codes,
                                                                  .index = b->index,
                                                                  .workspace = b->workspace,
                                                                  .workspace_bytes = b->workspace_bytes }));
  at[DECODE] = omp_get_wtime();
  sl_sae_decode_residual_args decode = decode_args(b);
  check(kernels->sae_decode_residual(cpu, &decode));
  at[BACKWARD] = omp_get_wtime();
  check(kernels->sae_backward(cpu, &(sl_sae_backward_args){
    .n = o->n, .m = o->m, .d_in = o->d, .d_out = o->d, .index = b->index, .residual = b->residual,
    .column_sums = b->column_sums, .scale = -2 / (double)(o->n * o->d), .factor = &(double){ 1 }, .u = b->u, .w_dec = b->weights.w_dec,
    .gradients = b->gradients, .code_gradients = b->code_gradients }));
  at[FINISH] = omp_get_wtime();
  double squares;
  check(kernels->sae_finish_gradients(
      cpu, &(sl_sae_finish_gradients_args){ .m = o->m,
                                            .d_in = o->d,
                                            .d_out = o->d,
                                            .gradients = b->gradients,
                                            .w_enc = b->weights.w_enc,
                                            .through_u = true,
                                            .project = true,
                                            .total_b_dec = b->total_b_dec,
                                            .sum_squares = &squares,
                                            .workspace = b->workspace,
                                            .workspace_bytes = b->workspace_bytes }));
  at[UPDATE] = omp_get_wtime();
  check(kernels->sae_update(cpu, &(sl_sae_update_args){ .m = o->m,
                                                        .d_in = o->d,
                                                        .d_out = o->d,
                                                        .rule = SL_SAE_ADAM,
                                                        .parameters = b->weights,
                                                        .moment1 = b->moment1,
                                                        .moment2 = b->moment2,
                                                        .gradients = b->gradients,
                                                        .total_b_dec = b->total_b_dec,
                                                        .sum_squares = &squares,
                                                        .clip_norm = 1,
                                                        .project = true,
                                                        .unit_rows = true,
                                                        .lr = 1e-4f,
                                                        .beta1 = 0.9f,
                                                        .beta2 = 0.999f,
                                                        .eps = 1e-8f,
                                                        .step = ++b->step,
                                                        .w_enc_bf16 = b->w_bf16 }));
  at[PHASES] = omp_get_wtime();
  for (int p = 0; p < PHASES; p++) {
    double seconds = at[p + 1] - at[p];
    if (b->step == 1 || seconds < b->seconds[p]) b->seconds[p] = seconds;
  }
}

/* -- The step through core/sae -- */

static void make_engine(bench *b) {
  const options *o = &b->o;
  int64_t shape[2] = { o->n, o->d };
  sl_sae_config config = sl_sae_config_topk(o->d, o->m, o->k);
  sl_sae_optim_config adam = sl_sae_optim_defaults();
  adam.clip_norm = 1;
  check(sl_sae_create(sl_cpu_device(), &config, 1, &b->sae));
  check(sl_sae_optim_create(b->sae, &adam, &b->optim));
  check(sl_tensor_create(sl_cpu_device(), SL_F32, 2, shape, &b->x_tensor));
  memcpy(sl_tensor_f32(b->x_tensor), b->x, (size_t)(o->n * o->d) * sizeof(float));
  free(b->x);
  b->x = sl_tensor_f32(b->x_tensor);
}

static void engine_step(bench *b) {
  sl_sae_loss_opts opts = sl_sae_loss_defaults();
  opts.dtype = b->o.bf16 ? SL_BF16 : SL_F32;
  sl_sae_loss *loss;
  check(sl_sae_loss_create(b->sae, b->x_tensor, &opts, &loss));
  check(sl_sae_backward(loss, 1));
  check(sl_sae_optim_step(b->optim, 1e-4));
  b->loss = loss->loss;
  b->entries = (int64_t)(loss->l0 * (double)loss->tokens + 0.5);
  sl_sae_loss_release(loss);
}

static const float *encoder_of(const bench *b) {
  return b->o.phases ? b->weights.w_enc : sl_tensor_f32(b->sae->parameters[SL_SAE_W_ENC]);
}

static double time_product(const bench *b, float *c) {
  const options *o = &b->o;
  double start = omp_get_wtime();
  dnnl_sgemm('N', 'T', o->n, o->m, o->d, 1, b->x, o->d, encoder_of(b), o->d, 0, c, o->m);
  return omp_get_wtime() - start;
}

static int isa_of(const char *name) {
  return !strcmp(name, "base") ? SAE_ISA_BASE : !strcmp(name, "avx2") ? SAE_ISA_AVX2 : SAE_ISA_AVX512;
}

static options parse(int argc, char **argv) {
  options o = { .n = 4096, .d = 768, .m = 24576, .k = 32, .repeats = 5, .product = true };
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--bf16")) o.bf16 = true;
    else if (!strcmp(argv[i], "--no-product")) o.product = false;
    else if (!strcmp(argv[i], "--phases")) o.phases = true;
    else if (!strcmp(argv[i], "--json")) o.json = true;
    else if (i + 1 < argc && !strcmp(argv[i], "--tokens")) o.n = atoll(argv[++i]);
    else if (i + 1 < argc && !strcmp(argv[i], "--d")) o.d = atoll(argv[++i]);
    else if (i + 1 < argc && !strcmp(argv[i], "--latents")) o.m = atoll(argv[++i]);
    else if (i + 1 < argc && !strcmp(argv[i], "--k")) o.k = atoll(argv[++i]);
    else if (i + 1 < argc && !strcmp(argv[i], "--repeats")) o.repeats = atoi(argv[++i]);
    else if (i + 1 < argc && !strcmp(argv[i], "--isa")) sae_cpu_limit_isa(isa_of(argv[++i]));
    else {
      fprintf(stderr, "%s: unknown option %s\n", argv[0], argv[i]);
      exit(2);
    }
  }
  return o;
}

static void report(const bench *b, double product, double step) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  double peak = (double)usage.ru_maxrss * 1024 / (6.0 * (double)(b->o.m * b->o.d) * 4);
  if (b->o.json) {
    printf("{\"tokens\": %lld, \"d\": %lld, \"latents\": %lld, \"k\": %lld, \"dtype\": \"%s\", \"threads\": "
           "%d, \"step_ms\": %.3f, \"peak\": %.4f",
           (long long)b->o.n, (long long)b->o.d, (long long)b->o.m, (long long)b->o.k,
           b->o.bf16 ? "bf16" : "f32", omp_get_max_threads(), step * 1e3, peak);
    if (b->o.product) printf(", \"product_ms\": %.3f, \"ratio\": %.4f", product * 1e3, step / product);
    printf("}\n");
    return;
  }
  printf("tokens %lld d %lld latents %lld k %lld %s, %d threads, loss %.6g, %lld entries\n",
         (long long)b->o.n, (long long)b->o.d, (long long)b->o.m, (long long)b->o.k,
         b->o.bf16 ? "bf16" : "f32", omp_get_max_threads(), b->loss, (long long)b->entries);
  printf("step    %.1f ms\n", step * 1e3);
  if (b->o.product) {
    printf("product %.1f ms (%.0f GFLOP/s), ratio %.3f\n", product * 1e3,
           2e-9 * (double)(b->o.n * b->o.m * b->o.d) / product, step / product);
  } else {
    printf("peak    %.0f MB, ratio %.3f of weights and moments\n", (double)usage.ru_maxrss * 1024e-6, peak);
  }
  double sum = 0;
  for (int p = 0; p < PHASES; p++) sum += b->seconds[p];
  for (int p = 0; b->o.phases && p < PHASES; p++)
    printf("  %-9s %8.2f ms  %5.1f %%\n", phase_names[p], b->seconds[p] * 1e3, 100 * b->seconds[p] / sum);
}

int main(int argc, char **argv) {
  bench b = { .o = parse(argc, argv) };
  b.x = make_input(&b.o);
  if (b.o.phases) make_phases(&b);
  else make_engine(&b);
  float *c = b.o.product ? floats(b.o.n * b.o.m) : NULL;
  double product = 1e30, step = 1e30;
  for (int r = 0; r < b.o.repeats; r++) {
    if (c) {
      double seconds = time_product(&b, c);
      product = seconds < product ? seconds : product;
    }
    double start = omp_get_wtime();
    if (b.o.phases) phase_step(&b);
    else engine_step(&b);
    double seconds = omp_get_wtime() - start;
    step = seconds < step ? seconds : step;
  }
  report(&b, product, step);
  return 0;
}
