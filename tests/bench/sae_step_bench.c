/* Times one TopK training step and its phases against the encoder product alone through oneDNN, in one process.
 *
 *   sae_step_bench [--tokens N] [--d D] [--latents M] [--k K] [--repeats R] [--bf16] [--no-product]
 *
 * Product and step alternate; minima over the repeats are compared. The product's result is 4 N M bytes, so the peak
 * memory of the step alone is what --no-product reports. Input is random and dense (mixtures of a few hidden
 * directions), so that all latents take part. */
#include <math.h>
#include <oneapi/dnnl/dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "kernels/kernels.h"

typedef struct {
  int64_t n, d, m, k;
  int repeats;
  bool bf16, product;
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
static const char *const phase_names[PHASES] = { "pack", "encode", "index", "decode", "backward", "finish", "update" };

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
} bench;

static sl_sae_parameters make_parameters(const options *o) {
  return (sl_sae_parameters){ .w_enc = floats(o->m * o->d), .b_enc = floats(o->m), .w_dec = floats(o->m * o->d),
                              .b_dec = floats(o->d) };
}

static sl_sae_encode_topk_args encode_args(bench *b) {
  return (sl_sae_encode_topk_args){
    .n = b->o.n, .d = b->o.d, .m = b->o.m, .k = b->o.k, .panels = b->panels,
    .w = b->o.bf16 ? (void *)b->w_bf16 : (void *)b->weights.w_enc, .dtype = b->o.bf16 ? SL_BF16 : SL_F32,
    .bias = b->weights.b_enc, .codes = b->codes, .entries = &b->entries, .nonfinite = &b->nonfinite,
    .workspace = b->workspace, .workspace_bytes = b->workspace_bytes };
}

static sl_sae_decode_residual_args decode_args(bench *b) {
  return (sl_sae_decode_residual_args){
    .n = b->o.n, .m = b->o.m, .d = b->o.d, .index = b->index, .w_dec = b->weights.w_dec, .b_dec = b->weights.b_dec,
    .target = b->x, .residual = b->residual, .column_sums = b->column_sums, .sum_squares = &b->loss,
    .workspace = b->workspace, .workspace_bytes = b->workspace_bytes };
}

static void make(bench *b) {
  const options *o = &b->o;
  sl_device *cpu = sl_cpu_device();
  enum { HIDDEN = 256, MIXED = 12 };
  float *directions = floats(HIDDEN * o->d);
  for (int64_t i = 0; i < HIDDEN * o->d; i++) directions[i] = normal() / sqrtf((float)o->d);
  b->x = floats(o->n * o->d);
  for (int64_t t = 0; t < o->n; t++) {
    for (int64_t j = 0; j < o->d; j++) b->x[t * o->d + j] = 0.3f * normal();
    for (int h = 0; h < MIXED; h++) {
      const float *direction = directions + (int64_t)((uniform() + 1) * 0.5f * (HIDDEN - 1)) * o->d;
      float weight = 4 * uniform();
      for (int64_t j = 0; j < o->d; j++) b->x[t * o->d + j] += weight * direction[j] * 3;
    }
  }
  free(directions);
  b->weights = make_parameters(o);
  b->moment1 = make_parameters(o);
  b->moment2 = make_parameters(o);
  for (int64_t i = 0; i < o->m * o->d; i++) b->weights.w_enc[i] = uniform() / sqrtf((float)o->d);
  check(cpu->kernels->sae_unit_rows(cpu, &(sl_sae_unit_rows_args){ .x = b->weights.w_enc, .y = b->weights.w_dec, .m = o->m, .d = o->d }));
  if (o->bf16) {
    b->w_bf16 = memory((size_t)(o->m * o->d) * 2);
    for (int64_t i = 0; i < o->m * o->d; i++) b->w_bf16[i] = sl_f32_to_bf16(b->weights.w_enc[i]);
  }
  b->gradients = (sl_sae_gradients){ .w_enc = floats(o->m * o->d), .w_dec = floats(o->m * o->d), .b_enc = floats(o->m),
                                     .b_dec = floats(o->d), .touched = memory((size_t)o->m), .dot_dec = floats(o->m),
                                     .squares_enc = floats(o->m), .squares_dec = floats(o->m) };
  b->total_b_dec = floats(o->d);
  size_t panels, slabs, need, most = 0;
  check(cpu->kernels->sae_pack(cpu, &(sl_sae_pack_args){ .n = o->n, .d = o->d, .dtype = o->bf16 ? SL_BF16 : SL_F32,
                                                         .need_panels = &panels, .need_slabs = &slabs }));
  b->panels = memory(panels);
  b->u = memory(slabs);
  b->residual = memory(slabs);
  int64_t capacity = o->n * o->k;
  b->codes = (sl_codes_view){ .rows = o->n, .n_latents = o->m, .offsets = memory((size_t)(o->n + 1) * 8),
                              .ids = memory((size_t)capacity * 4), .values = floats(capacity) };
  b->index = (sl_codes_index){ .offsets = memory((size_t)(o->m + 1) * 8), .tokens = memory((size_t)capacity * 4),
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
  check(cpu->kernels->sae_finish_gradients(cpu, &(sl_sae_finish_gradients_args){ .m = o->m, .d_in = o->d, .d_out = o->d, .need = &need }));
  most = need > most ? need : most;
  b->workspace = memory(most);
  b->workspace_bytes = most;
}

static void train_step(bench *b) {
  const options *o = &b->o;
  sl_device *cpu = sl_cpu_device();
  const sl_kernels *kernels = cpu->kernels;
  double at[PHASES + 1];
  at[PACK] = omp_get_wtime();
  check(kernels->sae_pack(cpu, &(sl_sae_pack_args){ .n = o->n, .d = o->d, .x = b->x, .shift = b->weights.b_dec,
                                                    .dtype = o->bf16 ? SL_BF16 : SL_F32, .panels = b->panels, .slabs = b->u }));
  at[ENCODE] = omp_get_wtime();
  sl_sae_encode_topk_args encode = encode_args(b);
  check(kernels->sae_encode_topk(cpu, &encode));
  at[INDEX] = omp_get_wtime();
  check(kernels->sae_index_codes(cpu, &(sl_sae_index_codes_args){ .codes = b->codes, .index = b->index,
                                                                  .workspace = b->workspace, .workspace_bytes = b->workspace_bytes }));
  at[DECODE] = omp_get_wtime();
  sl_sae_decode_residual_args decode = decode_args(b);
  check(kernels->sae_decode_residual(cpu, &decode));
  at[BACKWARD] = omp_get_wtime();
  check(kernels->sae_backward(cpu, &(sl_sae_backward_args){
    .n = o->n, .m = o->m, .d_in = o->d, .d_out = o->d, .index = b->index, .residual = b->residual,
    .column_sums = b->column_sums, .scale = -2 / (float)(o->n * o->d), .u = b->u, .w_dec = b->weights.w_dec,
    .gradients = b->gradients, .code_gradients = b->code_gradients }));
  at[FINISH] = omp_get_wtime();
  double squares;
  check(kernels->sae_finish_gradients(cpu, &(sl_sae_finish_gradients_args){
    .m = o->m, .d_in = o->d, .d_out = o->d, .gradients = b->gradients, .w_enc = b->weights.w_enc, .through_u = true,
    .project = true, .total_b_dec = b->total_b_dec, .sum_squares = &squares, .workspace = b->workspace,
    .workspace_bytes = b->workspace_bytes }));
  at[UPDATE] = omp_get_wtime();
  double norm = sqrt(squares);
  check(kernels->sae_update(cpu, &(sl_sae_update_args){
    .m = o->m, .d_in = o->d, .d_out = o->d, .rule = SL_SAE_ADAM, .parameters = b->weights, .moment1 = b->moment1,
    .moment2 = b->moment2, .gradients = b->gradients, .total_b_dec = b->total_b_dec,
    .scale = norm > 1 ? (float)(1 / norm) : 1, .project = true, .unit_rows = true, .lr = 1e-4f, .beta1 = 0.9f,
    .beta2 = 0.999f, .eps = 1e-8f, .step = ++b->step, .w_enc_bf16 = b->w_bf16 }));
  at[PHASES] = omp_get_wtime();
  for (int p = 0; p < PHASES; p++) {
    double seconds = at[p + 1] - at[p];
    if (b->step == 1 || seconds < b->seconds[p]) b->seconds[p] = seconds;
  }
}

static double time_product(const bench *b, float *c) {
  const options *o = &b->o;
  double start = omp_get_wtime();
  dnnl_sgemm('N', 'T', o->n, o->m, o->d, 1, b->x, o->d, b->weights.w_enc, o->d, 0, c, o->m);
  return omp_get_wtime() - start;
}

static options parse(int argc, char **argv) {
  options o = { 4096, 768, 24576, 32, 5, false, true };
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--bf16")) o.bf16 = true;
    else if (!strcmp(argv[i], "--no-product")) o.product = false;
    else if (i + 1 < argc && !strcmp(argv[i], "--tokens")) o.n = atoll(argv[++i]);
    else if (i + 1 < argc && !strcmp(argv[i], "--d")) o.d = atoll(argv[++i]);
    else if (i + 1 < argc && !strcmp(argv[i], "--latents")) o.m = atoll(argv[++i]);
    else if (i + 1 < argc && !strcmp(argv[i], "--k")) o.k = atoll(argv[++i]);
    else if (i + 1 < argc && !strcmp(argv[i], "--repeats")) o.repeats = atoi(argv[++i]);
    else {
      fprintf(stderr, "%s: unknown option %s\n", argv[0], argv[i]);
      exit(2);
    }
  }
  return o;
}

int main(int argc, char **argv) {
  bench b = { .o = parse(argc, argv) };
  make(&b);
  float *c = b.o.product ? floats(b.o.n * b.o.m) : NULL;
  double product = 1e30, step = 1e30;
  for (int r = 0; r < b.o.repeats; r++) {
    if (c) {
      double seconds = time_product(&b, c);
      product = seconds < product ? seconds : product;
    }
    double start = omp_get_wtime();
    train_step(&b);
    double seconds = omp_get_wtime() - start;
    step = seconds < step ? seconds : step;
  }
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  double weights = 6.0 * (double)(b.o.m * b.o.d) * 4;
  printf("tokens %lld d %lld latents %lld k %lld %s, %d threads, loss %.6g, %lld entries\n", (long long)b.o.n,
         (long long)b.o.d, (long long)b.o.m, (long long)b.o.k, b.o.bf16 ? "bf16" : "f32", omp_get_max_threads(),
         b.loss / (double)(b.o.n * b.o.d), (long long)b.entries);
  if (c) {
    printf("product %.1f ms (%.0f GFLOP/s)\n", product * 1e3, 2e-9 * (double)(b.o.n * b.o.m * b.o.d) / product);
    printf("step    %.1f ms, ratio %.3f\n", step * 1e3, step / product);
  } else {
    printf("step    %.1f ms\npeak    %.0f MB, ratio %.3f of weights and moments\n", step * 1e3,
           (double)usage.ru_maxrss * 1024e-6, (double)usage.ru_maxrss * 1024 / weights);
  }
  double sum = 0;
  for (int p = 0; p < PHASES; p++) sum += b.seconds[p];
  for (int p = 0; p < PHASES; p++)
    printf("  %-9s %8.2f ms  %5.1f %%\n", phase_names[p], b.seconds[p] * 1e3, 100 * b.seconds[p] / sum);
  printf("  sum of minima %.1f ms", sum * 1e3);
  if (c) printf(", ratio %.3f", sum / product);
  printf("\n");
  return 0;
}
