/* Times a BERT-shaped transformer's forward pass against its matrix products alone, and a whole job (the forward pass
 * up to a layer, then a dictionary's training step on its output) in tokens a second.
 *
 *   model_bench [--device cpu|cuda[:N]] [--layers L] [--d D] [--mlp M] [--batch B] [--length T] [--dtype f32|bf16|tf32]
 *               [--job] [--latents M] [--k K] [--sae-dtype f32|bf16|tf32|screened] [--repeats R] [--json] [--serve]
 *
 * Weights are random. Forward and products alternate, the least of each counts. --serve answers the lines "forward",
 * "products", "job" and "facts", as sae_step_bench does. Kernels and core only: runs on a bare machine. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/model/model.h"
#include "rig/rig.h"

enum { HEAD_WIDTH = 64 };

typedef struct {
  int64_t layers, d, mlp, batch, length;
  rig_precision precision;
  rig_cell cell;                 /* of the job */
  bool job, json, serve;
} options;

typedef struct {
  options o;
  sl_device *device;
  sl_model *model;
  sl_tensor *ids;
  int inner;
  rig_step step;                 /* of the job */
  void *blocks[6];               /* of the products */
  size_t sizes[6];
} bench;

static options parse(int argc, char **argv) {
  options o = { .layers = 12, .d = 768, .mlp = 3072, .batch = 32, .length = 128, .cell = rig_cell_defaults() };
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : NULL;
    if (!strcmp(argv[i], "--job")) o.job = true;
    else if (!strcmp(argv[i], "--json")) o.json = true;
    else if (!strcmp(argv[i], "--serve")) o.serve = true;
    else if (!value) goto unknown;
    else if (!strcmp(argv[i], "--layers")) o.layers = atoll(argv[++i]);
    else if (!strcmp(argv[i], "--d")) o.d = atoll(argv[++i]);
    else if (!strcmp(argv[i], "--mlp")) o.mlp = atoll(argv[++i]);
    else if (!strcmp(argv[i], "--batch")) o.batch = atoll(argv[++i]);
    else if (!strcmp(argv[i], "--length")) o.length = atoll(argv[++i]);
    else if (!strcmp(argv[i], "--dtype")) o.precision = rig_precision_find(argv[++i]);
    else if (!strcmp(argv[i], "--sae-dtype")) o.cell.precision = rig_precision_find(argv[++i]);
    else if (!strcmp(argv[i], "--latents")) o.cell.m = atoll(argv[++i]);
    else if (!strcmp(argv[i], "--k")) o.cell.k = atoll(argv[++i]);
    else if (!strcmp(argv[i], "--repeats")) o.cell.repeats = atoi(argv[++i]);
    else if (!strcmp(argv[i], "--device")) o.cell.device = argv[++i];
    else {
    unknown:
      fprintf(stderr, "%s: unknown option %s, or its value is missing\n", argv[0], argv[i]);
      exit(2);
    }
  }
  o.cell.d = o.d;
  o.cell.n = o.batch * o.length;
  return o;
}

static void create_model(bench *b) {
  const options *o = &b->o;
  sl_model_spec spec = { .n_layers = o->layers, .d_model = o->d, .n_heads = o->d / HEAD_WIDTH, .d_head = HEAD_WIDTH,
                         .d_mlp = o->mlp, .vocab_size = 1000, .max_positions = o->length, .n_types = 2,
                         .norm = SL_NORM_LAYER, .norm_place = SL_NORM_POST, .norm_eps = 1e-12f,
                         .position = SL_POSITION_ABSOLUTE, .activation = SL_ACT_GELU_ERF, .head = SL_HEAD_NONE,
                         .dtype = o->precision == RIG_BF16 ? SL_BF16 : SL_F32 };
  rig_check(sl_model_create(&spec, b->device, &b->model));
  rig_check(sl_model_init(b->model, 1, 0.02f, -1));
  int64_t shape[2] = { o->batch, o->length };
  int32_t *ids = rig_host((size_t)o->cell.n * sizeof *ids);
  uint64_t state = 1;
  for (int64_t i = 0; i < o->cell.n; i++) ids[i] = (int32_t)((double)(rig_uniform(&state) + 1) / 2 * 999);
  /* Ids live on the host: the forward pass checks them there and uploads them. */
  rig_check(sl_tensor_create(sl_cpu_device(), SL_I32, 2, shape, &b->ids));
  rig_check(sl_tensor_write(b->ids, ids, (size_t)o->cell.n * sizeof *ids));
  free(ids);
}

static sl_tensor *forward(bench *b) {
  int site = sl_model_site(b->model, SL_POINT_RESID_POST, (int)b->o.layers - 1);
  sl_tensor *out;
  bool tf32 = b->device->tf32;
  b->device->tf32 = b->o.precision == RIG_TF32;
  rig_check(sl_model_forward(b->model,
                             &(sl_forward_options){ .ids = b->ids, .capture = &site, .n_capture = 1, .stop_at = -1 },
                             &out, NULL));
  b->device->tf32 = tf32;
  return out;
}

static double time_forward(bench *b) {
  double start = rig_now_idle(b->device);
  for (int i = 0; i < b->inner; i++) sl_tensor_release(forward(b));
  return (rig_now_idle(b->device) - start) / b->inner;
}

static void job(bench *b) {
  sl_tensor *out = forward(b), *rows;
  rig_check(sl_tensor_view(out, 2, (int64_t[]){ b->o.cell.n, b->o.d }, &rows));
  bool tf32 = b->device->tf32;
  b->device->tf32 = b->o.cell.precision == RIG_TF32;
  rig_step_run(&b->step, rows, false);
  b->device->tf32 = tf32;
  sl_tensor_release(rows);
  sl_tensor_release(out);
}

static double time_job(bench *b) {
  if (!b->step.sae) {
    rig_step_create(&b->o.cell, &b->step);
    job(b);
  }
  double start = rig_now_idle(b->device);
  for (int i = 0; i < b->inner; i++) job(b);
  return (rig_now_idle(b->device) - start) / b->inner;
}

/* -- The products of the forward pass and nothing else -- */

enum { WIDE, ROWS, SQUARE, UP, SCORES, OUT };

static void create_products(bench *b) {
  const options *o = &b->o;
  int64_t rows = o->cell.n, most = o->d > o->mlp ? o->d : o->mlp;
  int64_t scores = rows * o->length * (o->d / HEAD_WIDTH), counts[6] = { rows * o->mlp, rows * o->d, o->d * o->d,
                                                                         o->d * o->mlp, scores, 0 };
  counts[OUT] = rows * most > scores ? rows * most : scores;
  bool bf16 = o->precision == RIG_BF16;
  uint64_t state = 7;
  for (int i = 0; i < 6; i++) {
    size_t size = bf16 ? 2 : 4;
    b->sizes[i] = (size_t)counts[i] * size;
    b->blocks[i] = rig_block(b->device, b->sizes[i]);
    char *host = rig_host(b->sizes[i]);
    for (int64_t j = 0; j < counts[i]; j++) {
      float x = rig_uniform(&state);
      uint16_t half = sl_f32_to_bf16(x);
      memcpy(host + (size_t)j * size, bf16 ? (void *)&half : (void *)&x, size);
    }
    rig_check(b->device->table->copy_from_host(b->device, b->blocks[i], host, b->sizes[i]));
    rig_check(b->device->table->sync(b->device));
    free(host);
  }
}

/* C = A B or A B'; plain when batch is 1. */
static void product(bench *b, int a, int w, const int64_t shape[3], int64_t batch, bool transpose) {
  sl_dtype dtype = b->o.precision == RIG_BF16 ? SL_BF16 : SL_F32;
  int64_t m = shape[0], n = shape[1], k = shape[2];
  rig_check(b->device->kernels->gemm(
      b->device, &(sl_gemm_args){ .m = m, .n = n, .k = k, .batch = batch, .transpose_b = transpose, .a = b->blocks[a],
                                  .b = b->blocks[w], .c = b->blocks[OUT], .lda = k, .ldb = transpose ? k : n, .ldc = n,
                                  .stride_a = batch > 1 ? m * k : 0, .stride_b = batch > 1 ? n * k : 0,
                                  .stride_c = batch > 1 ? m * n : 0, .dtype_ab = dtype, .dtype_c = dtype }));
}

static double time_products(bench *b) {
  const options *o = &b->o;
  if (!b->blocks[0]) create_products(b);
  int64_t rows = o->cell.n, t = o->length, heads = o->batch * (o->d / HEAD_WIDTH);
  bool tf32 = b->device->tf32;
  b->device->tf32 = o->precision == RIG_TF32;
  double start = rig_now_idle(b->device);
  for (int i = 0; i < b->inner * (int)o->layers; i++) {
    for (int j = 0; j < 4; j++) product(b, ROWS, SQUARE, (int64_t[]){ rows, o->d, o->d }, 1, true);
    product(b, ROWS, UP, (int64_t[]){ rows, o->mlp, o->d }, 1, true);
    product(b, WIDE, UP, (int64_t[]){ rows, o->d, o->mlp }, 1, true);
    product(b, ROWS, ROWS, (int64_t[]){ t, t, HEAD_WIDTH }, heads, true);
    product(b, SCORES, ROWS, (int64_t[]){ t, HEAD_WIDTH, t }, heads, false);
  }
  double seconds = (rig_now_idle(b->device) - start) / b->inner;
  b->device->tf32 = tf32;
  return seconds;
}

/* -- Results -- */

static void print_facts(const bench *b, double forward_s, double products_s, double job_s) {
  const options *o = &b->o;
  printf("{\"device\": \"%s\", \"layers\": %lld, \"d\": %lld, \"mlp\": %lld, \"batch\": %lld, \"length\": %lld, "
         "\"dtype\": \"%s\", \"threads\": %d, \"peak_mib\": %.1f",
         o->cell.device, (long long)o->layers, (long long)o->d, (long long)o->mlp, (long long)o->batch,
         (long long)o->length, rig_precision_name(o->precision), rig_threads(), rig_peak_rss() / 1048576);
  if (isfinite(forward_s)) printf(", \"forward_ms\": %.4f", 1e3 * forward_s);
  if (isfinite(products_s)) printf(", \"products_ms\": %.4f, \"ratio\": %.4f", 1e3 * products_s, forward_s / products_s);
  if (isfinite(job_s)) {
    printf(", \"latents\": %lld, \"k\": %lld, \"sae_dtype\": \"%s\", \"job_ms\": %.4f, \"tokens_per_s\": %.0f",
           (long long)o->cell.m, (long long)o->cell.k, rig_precision_name(o->cell.precision), 1e3 * job_s,
           (double)o->cell.n / job_s);
  }
  printf("}\n");
}

static void serve(bench *b) {
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    if (!strncmp(line, "forward", 7)) printf("%.9f\n", time_forward(b));
    else if (!strncmp(line, "products", 8)) printf("%.9f\n", time_products(b));
    else if (!strncmp(line, "job", 3)) printf("%.9f\n", time_job(b));
    else print_facts(b, INFINITY, INFINITY, INFINITY);
    fflush(stdout);
  }
}

static void measure(bench *b) {
  double forward_s = INFINITY, products_s = INFINITY, job_s = INFINITY;
#ifdef SAELUA_PLAIN_GEMM
  bool products = !b->device->host_memory; /* a plain product measures nothing */
#else
  bool products = true;
#endif
  for (int i = 0; i < b->o.cell.repeats; i++) {
    if (products) products_s = rig_least(products_s, time_products(b));
    forward_s = rig_least(forward_s, time_forward(b));
    if (b->o.job) job_s = rig_least(job_s, time_job(b));
  }
  if (b->o.json) {
    print_facts(b, forward_s, products_s, job_s);
    return;
  }
  printf("forward %.2f ms", 1e3 * forward_s);
  if (products) printf(", products %.2f ms, ratio %.3f", 1e3 * products_s, forward_s / products_s);
  if (b->o.job) printf("; with the dictionary's step %.2f ms, %.0f tokens/s", 1e3 * job_s, (double)b->o.cell.n / job_s);
  printf("\n");
}

int main(int argc, char **argv) {
  bench b = { .o = parse(argc, argv) };
  b.device = rig_device(b.o.cell.device);
  b.inner = b.device->host_memory ? 1 : 10;
  create_model(&b);
  sl_tensor_release(forward(&b));
  if (b.o.serve) serve(&b);
  else measure(&b);
  if (b.step.sae) rig_step_release(&b.step);
  for (int i = 0; i < 6; i++) rig_block_free(b.device, b.blocks[i], b.sizes[i]);
  sl_tensor_release(b.ids);
  sl_model_release(b.model);
  return 0;
}
