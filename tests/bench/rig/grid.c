/* Runs grids; see grid.h. The parent only starts children and never touches a device, which a fork would break. */
#include "grid.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_CELLS = 512, LINE = 2048 };

typedef struct {
  rig_cell cells[MAX_CELLS];
  int count;
} cell_list;

static void add(cell_list *list, rig_cell cell) {
  for (int i = 0; i < list->count; i++) {
    const rig_cell *c = &list->cells[i];
    if (c->n == cell.n && c->d == cell.d && c->m == cell.m && c->k == cell.k && c->activation == cell.activation &&
        c->precision == cell.precision)
      return;
  }
  if (cell.k <= cell.m && list->count < MAX_CELLS) list->cells[list->count++] = cell;
}

/* The axis that is varied from the main job's cell. */
static void vary(cell_list *list, rig_cell base, size_t offset, const int64_t *values, int count) {
  for (int i = 0; i < count; i++) {
    rig_cell cell = base;
    memcpy((char *)&cell + offset, &values[i], sizeof values[i]);
    add(list, cell);
  }
}
#define VARY(list, base, field, ...)                                                                         \
  vary(list, base, offsetof(rig_cell, field), (const int64_t[]){ __VA_ARGS__ },                              \
       (int)(sizeof((const int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t)))

/* Every activation at the base's k and at six times it, in the precisions that the device is meant for. */
static void add_activations(cell_list *list, rig_cell base, bool gpu) {
  const rig_precision gpu_precisions[] = { RIG_BF16, RIG_TF32, RIG_F32 },
                      cpu_precisions[] = { RIG_F32, RIG_SCREENED, RIG_BF16 };
  const rig_precision *precisions = gpu ? gpu_precisions : cpu_precisions;
  /* Groups are as many as k: it must divide the latents. */
  const int64_t ks[] = { base.k, base.m % (6 * base.k) == 0 ? 6 * base.k : 4 * base.k };
  for (int a = 0; a < SL_SAE_ACTIVATION_COUNT; a++) {
    for (int p = 0; p < 3; p++) {
      for (int i = 0; i < 2; i++) {
        rig_cell cell = base;
        cell.activation = (sl_sae_activation)a;
        cell.precision = precisions[p];
        cell.k = ks[i];
        add(list, cell);
      }
    }
  }
}

/* tokens x d x latents x k of the range, every activation. */
static void add_full(cell_list *list, rig_cell base, bool gpu) {
  const int64_t tokens[] = { 4096, 8192 }, ds[] = { 768, 2048, 4096 }, ms[] = { 24576, 65536, 131072 },
                ks[] = { 32, 64, 192 };
  for (int i = 0; i < 2 * 3 * 3 * 3; i++) {
    for (int a = 0; a < SL_SAE_ACTIVATION_COUNT; a++) {
      rig_cell cell = base;
      cell.n = tokens[i / 27], cell.d = ds[i / 9 % 3], cell.m = ms[i / 3 % 3], cell.k = ks[i % 3];
      cell.activation = (sl_sae_activation)a;
      cell.precision = gpu ? RIG_BF16 : RIG_F32;
      add(list, cell);
    }
  }
}

static bool make_cells(cell_list *list, const char *name, const rig_cell *base) {
  bool gpu = strcmp(base->device, "cpu") != 0;
  rig_cell cell = *base;
  if (strcmp(name, "quick") == 0) {
    cell.n = 512, cell.d = 256, cell.m = 4096, cell.k = 16;
    add_activations(list, cell, gpu);
    return true;
  }
  if (strcmp(name, "default") != 0 && strcmp(name, "full") != 0) return false;
  if (gpu) cell.n = 8192, cell.precision = RIG_BF16;
  /* On the CPU minutes, and bench.lua measures them anyway. */
  if (gpu || strcmp(name, "full") == 0) add_activations(list, cell, gpu);
  VARY(list, cell, k, 32, 64, 192, 512);
  VARY(list, cell, m, 6144, 24576, 98304);
  VARY(list, cell, d, 384, 768, 1536, 4096);
  VARY(list, cell, n, 1024, 4096, 16384);
  if (gpu) {
    cell.d = 4096, cell.m = 131072, cell.k = 64;
    add(list, cell);
  }
  if (strcmp(name, "full") == 0) add_full(list, cell, gpu);
  return true;
}

/* -- What a cell will take -- */

static double work(const rig_cell *c) { return (double)c->n * (double)c->d * (double)c->m; }

/* Weights, moments, gradients, bf16 copy, the floors' result and codes; generous by a tenth. */
static double memory_of(const rig_cell *c) {
  double weights = 2.0 * (double)c->d * (double)c->m;
  double result = rig_least(4.0 * (double)c->n * (double)c->m, 2e9);
  return 1.1 * (weights * 17 + result + 24.0 * (double)c->n * (double)(c->d + 4 * c->k)) + 1e9;
}

/* Seconds of a cell: a part that every cell takes (starting, on a GPU most of it), and one that grows with the work;
 * the least and the steepest so far. */
typedef struct {
  double fixed, slope;
} estimate;

static void learn(estimate *e, const rig_cell *cell, double seconds) {
  e->fixed = rig_least(e->fixed, seconds);
  double slope = (seconds - e->fixed) / work(cell);
  e->slope = slope > e->slope ? slope : e->slope;
}

static double expected_seconds(const estimate *e, const rig_cell *cell) {
  return isfinite(e->fixed) ? e->fixed + e->slope * work(cell) : 0;
}

/* Of the host; cells on a GPU find out themselves. */
static double free_memory(void) {
  FILE *file = fopen("/proc/meminfo", "r");
  char line[256];
  double kib = 0;
  while (file && fgets(line, sizeof line, file)) {
    if (sscanf(line, "MemAvailable: %lf kB", &kib) == 1) break;
  }
  if (file) fclose(file);
  return kib > 0 ? 1024 * kib : INFINITY;
}

/* -- Children -- */

typedef struct {
  bool ok, unsupported;
  rig_result result;
  double seconds;
  char json[LINE];
  char words[160];               /* the last line that a child without a result said */
} cell_outcome;

static void child(const rig_cell *cell, int out) {
  rig_result result = rig_measure(cell);
  FILE *file = fdopen(out, "w");
  fwrite(&result, sizeof result, 1, file);
  rig_print_json(file, cell, &result);
  fclose(file);
  exit(0);
}

/* Reads a result and its line; false when the child died first. */
static bool read_outcome(int from, cell_outcome *out) {
  FILE *file = fdopen(from, "r");
  bool ok = fread(&out->result, sizeof out->result, 1, file) == 1;
  size_t length = ok ? fread(out->json, 1, LINE - 1, file) : 0;
  out->json[length] = 0;
  fclose(file);
  return ok && length > 0;
}

/* Why a child ended without a result: its signal, or its last line. */
static void explain(cell_outcome *out, int status, FILE *errors) {
  char line[sizeof out->words];
  rewind(errors);
  while (fgets(line, sizeof line, errors)) {
    line[strcspn(line, "\n")] = 0;
    if (line[0]) memcpy(out->words, line, sizeof line);
  }
  if (!WIFSIGNALED(status)) return;
  int signal = WTERMSIG(status);
  snprintf(out->words, sizeof out->words, "ended by signal %d%s", signal,
           signal == SIGALRM ? ": out of time" : signal == SIGKILL ? ": out of memory?" : "");
}

static cell_outcome run_cell(const rig_cell *cell, double limit) {
  cell_outcome outcome = { .ok = false };
  FILE *errors = tmpfile();
  int ends[2];
  double start = rig_now();
  fflush(NULL);
  if (!errors || pipe(ends) != 0) return outcome;
  pid_t pid = fork();
  if (pid == 0) {
    close(ends[0]);
    dup2(fileno(errors), STDERR_FILENO);
    if (isfinite(limit)) alarm((unsigned)(limit + 1));
    child(cell, ends[1]);
  }
  close(ends[1]);
  outcome.ok = pid > 0 && read_outcome(ends[0], &outcome);
  int status = 0;
  if (pid > 0) waitpid(pid, &status, 0);
  outcome.ok = outcome.ok && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  outcome.unsupported = pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == RIG_UNSUPPORTED;
  if (!outcome.ok) explain(&outcome, status, errors);
  fclose(errors);
  outcome.seconds = rig_now() - start;
  return outcome;
}

static void left_out(const rig_cell *c, const char *why) {
  printf("%-10s %-8s %6lld %5lld %7lld %4lld   %s\n", sl_sae_activation_name(c->activation),
         rig_precision_name(c->precision), (long long)c->n, (long long)c->d, (long long)c->m, (long long)c->k, why);
  fflush(stdout);
}

/* Prints why the cell does not fit into what is left; false when it does. */
static bool does_not_fit(const rig_cell *cell, double memory, double left, double expected) {
  char why[128];
  if (memory_of(cell) > memory) {
    snprintf(why, sizeof why, "left out: needs about %.1f GiB, %.1f are allowed", memory_of(cell) / 0x1p30,
             memory / 0x1p30);
  } else if (expected > left || left <= 0) {
    snprintf(why, sizeof why, "left out: would take about %.0f s, %.0f are left", expected, left > 0 ? left : 0);
  } else {
    return false;
  }
  left_out(cell, why);
  return true;
}

int rig_grid_run(const rig_grid *grid, const rig_cell *base) {
  cell_list *list = calloc(1, sizeof *list);
  if (!list || !make_cells(list, grid->name, base)) {
    free(list);
    return -1;
  }
  bool on_host = strcmp(base->device, "cpu") == 0;
  double memory = grid->memory > 0 ? grid->memory : on_host ? 0.9 * free_memory() : INFINITY;
  double end = grid->seconds > 0 ? rig_now() + grid->seconds : INFINITY;
  estimate cost = { .fixed = INFINITY };
  int failed = 0, written = 0;
  if (grid->json) fprintf(grid->json, "[");
  rig_print_header(stdout);
  for (int i = 0; i < list->count; i++) {
    const rig_cell *cell = &list->cells[i];
    double left = end - rig_now();
    if (does_not_fit(cell, memory, left, expected_seconds(&cost, cell))) continue;
    cell_outcome outcome = run_cell(cell, left + 30);
    if (!outcome.ok) {
      char why[256];
      snprintf(why, sizeof why, "%s: %s", outcome.unsupported ? "left out" : "FAILED", outcome.words);
      left_out(cell, why);
      failed += !outcome.unsupported;
      continue;
    }
    learn(&cost, cell, outcome.seconds);
    rig_print_row(stdout, cell, &outcome.result);
    fflush(stdout);
    if (grid->json) fprintf(grid->json, "%s\n%s", written++ > 0 ? "," : "", outcome.json);
  }
  if (grid->json) fprintf(grid->json, "\n]\n");
  free(list);
  return failed;
}
