/* Times a training step against its floors in one process: the encoder product alone, and that product plus the bytes
 * that Adam must move at the measured copy bandwidth.
 *
 *   sae_step_bench [--device cpu|cuda[:N]] [--activation NAME] [--tokens N] [--d D] [--latents M] [--k K]
 *                  [--dtype f32|bf16|tf32|screened] [--states f32|8bit] [--low-memory] [--repeats R] [--inner I]
 *                  [--unit f32|bf16|tf32] [--input FILE] [--no-product] [--kernels] [--json]
 *                  [--isa base|avx2|avx512]
 *   sae_step_bench --grid quick|default|full [--limit SECONDS] [--memory GIB] [--json FILE] ...
 *   sae_step_bench --serve ...
 *   sae_step_bench --write-input FILE [--tokens N] [--d D]
 *
 * --unit: the product that the step is held against (its own precision's; float32's for a screened step).
 * The step is what a recipe runs (rig/rig.h). Steps and floors alternate, and the least of each counts; memory is the
 * step's own. --kernels (or --phases) shows the share of each kernel. --grid measures many cells, each in a child
 * process. --serve lets another program interleave its own measurements: each line "step" or "product" on the input is
 * answered by a line of seconds, "facts" by the JSON of the cell. Needs kernels and core only, so it runs on a bare
 * machine. */
#include <stdlib.h>
#include <string.h>

#include "rig/grid.h"
#include "rig/rig_profile.h"
#include "kernels/cpu/sae_cpu.h"

typedef struct {
  rig_cell cell;
  rig_grid grid;
  const char *json_file;         /* of a grid */
  const char *write_input;
  bool json, kernels, serve;
} options;

/* oneDNN must not use more than the kernels may, or the unit is another machine's. */
static void limit_isa(const char *name) {
  int isa = !strcmp(name, "base") ? SAE_ISA_BASE : !strcmp(name, "avx2") ? SAE_ISA_AVX2 : SAE_ISA_AVX512;
  if (isa != SAE_ISA_AVX512) setenv("DNNL_MAX_CPU_ISA", isa == SAE_ISA_AVX2 ? "AVX2" : "SSE41", 1);
  sae_cpu_limit_isa(isa);
}

static bool parse_cell(rig_cell *cell, const char *option, const char *value) {
  if (!strcmp(option, "--tokens")) cell->n = atoll(value);
  else if (!strcmp(option, "--d")) cell->d = atoll(value);
  else if (!strcmp(option, "--latents")) cell->m = atoll(value);
  else if (!strcmp(option, "--k")) cell->k = atoll(value);
  else if (!strcmp(option, "--repeats")) cell->repeats = atoi(value);
  else if (!strcmp(option, "--inner")) cell->inner = atoi(value);
  else if (!strcmp(option, "--device")) cell->device = value;
  else if (!strcmp(option, "--input")) cell->input = value;
  else if (!strcmp(option, "--states")) cell->states = value;
  else if (!strcmp(option, "--dtype")) cell->precision = rig_precision_find(value);
  else if (!strcmp(option, "--unit")) cell->unit = rig_precision_find(value);
  else if (!strcmp(option, "--activation")) rig_check(sl_sae_activation_find(value, &cell->activation));
  else return false;
  return true;
}

static options parse(int argc, char **argv) {
  options o = { .cell = rig_cell_defaults() };
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : NULL;
    if (!strcmp(argv[i], "--no-product")) o.cell.product = false;
    else if (!strcmp(argv[i], "--kernels") || !strcmp(argv[i], "--phases")) o.kernels = true;
    else if (!strcmp(argv[i], "--low-memory")) o.cell.low_memory = true;
    else if (!strcmp(argv[i], "--serve")) o.serve = true;
    else if (!strcmp(argv[i], "--json") && o.grid.name && value) o.json_file = argv[++i];
    else if (!strcmp(argv[i], "--json")) o.json = true;
    else if (value && !strcmp(argv[i], "--grid")) o.grid.name = argv[++i];
    else if (value && !strcmp(argv[i], "--limit")) o.grid.seconds = atof(argv[++i]);
    else if (value && !strcmp(argv[i], "--memory")) o.grid.memory = atof(argv[++i]) * 0x1p30;
    else if (value && !strcmp(argv[i], "--write-input")) o.write_input = argv[++i];
    else if (value && !strcmp(argv[i], "--isa")) limit_isa(argv[++i]);
    else if (value && parse_cell(&o.cell, argv[i], value)) i++;
    else {
      fprintf(stderr, "%s: unknown option %s, or its value is missing\n", argv[0], argv[i]);
      exit(2);
    }
  }
  return o;
}

static int run_grid(options *o) {
  if (o->json_file) {
    o->grid.json = fopen(o->json_file, "w");
    if (!o->grid.json) {
      fprintf(stderr, "%s: cannot be written\n", o->json_file);
      return 1;
    }
  }
  int failed = rig_grid_run(&o->grid, &o->cell);
  if (o->grid.json) fclose(o->grid.json);
  if (failed < 0) fprintf(stderr, "no grid '%s'; there are quick, default, full\n", o->grid.name);
  return failed < 0 ? 2 : failed > 0;
}

static void run_kernels(const rig_cell *cell) {
  rig_step step;
  rig_step_create(cell, &step);
  for (int i = 0; i < 2; i++) rig_step_run(&step, NULL, false);
  double start = rig_now_idle(step.device);
  rig_profile_begin(step.device);
  for (int i = 0; i < cell->repeats; i++) rig_step_run(&step, NULL, false);
  rig_profile_end(step.device, stdout, rig_now_idle(step.device) - start, cell->repeats);
  rig_step_release(&step);
}

static void serve(const rig_cell *cell) {
  rig_step step;
  double before = rig_device_used(rig_device(cell->device));
  rig_step_create(cell, &step);
  for (int i = 0; i < 2; i++) rig_step_run(&step, NULL, true);
  rig_result facts = { .step = 0, .needed_bytes = 24.0 * (double)cell->m * (double)cell->d };
  facts.peak_bytes = step.device->host_memory ? rig_peak_rss() : rig_device_used(step.device) - before;
  rig_product *product = NULL;
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    if (!strncmp(line, "step", 4)) {
      printf("%.9f\n", rig_step_time(&step));
    } else if (!strncmp(line, "product", 7)) {
      if (!product) {
        product = rig_product_create(&step.cell, step.device, step.x, step.sae->parameters[SL_SAE_W_ENC]);
        (void)rig_product_time(product);
      }
      printf("%.9f\n", rig_product_time(product));
    } else {
      rig_cell bare = *cell;
      bare.product = false;
      facts.loss = step.loss, facts.l0 = step.l0;
      rig_print_json(stdout, &bare, &facts);
      printf("\n");
    }
    fflush(stdout);
  }
  if (product) rig_product_release(product);
  rig_step_release(&step);
}

/* The random rows as a file, for others to train on. */
static int write_input(const options *o) {
  float *x = rig_input(&o->cell);
  size_t count = (size_t)(o->cell.n * o->cell.d);
  FILE *file = fopen(o->write_input, "wb");
  bool ok = file && fwrite(x, sizeof *x, count, file) == count;
  ok = file && fclose(file) == 0 && ok;
  if (!ok) fprintf(stderr, "%s: cannot be written\n", o->write_input);
  free(x);
  return !ok;
}

int main(int argc, char **argv) {
  options o = parse(argc, argv);
  if (o.write_input) return write_input(&o);
  if (o.grid.name) return run_grid(&o);
  if (o.serve) return serve(&o.cell), 0;
  if (o.kernels) return run_kernels(&o.cell), 0;
  rig_result result = rig_measure(&o.cell);
  if (o.json) {
    rig_print_json(stdout, &o.cell, &result);
    printf("\n");
  } else {
    rig_print_header(stdout);
    rig_print_row(stdout, &o.cell, &result);
  }
  return 0;
}
