/* Memory, input, clocks and devices of the measuring programs; see rig.h. */
#include "rig.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static const char *const precision_names[RIG_PRECISIONS] = { "f32", "bf16", "tf32", "screened" };

const char *rig_precision_name(rig_precision precision) { return precision_names[precision]; }

rig_precision rig_precision_find(const char *name) {
  for (int i = 0; i < RIG_PRECISIONS; i++) {
    if (strcmp(precision_names[i], name) == 0) return (rig_precision)i;
  }
  fprintf(stderr, "no precision '%s'; there are f32, bf16, tf32, screened\n", name);
  exit(2);
}

rig_cell rig_cell_defaults(void) {
  return (rig_cell){ .n = 4096, .d = 768, .m = 24576, .k = 32, .device = "cpu", .states = "f32", .repeats = 5,
                     .unit = RIG_PRECISIONS, .product = true };
}

void rig_check(sl_status status) {
  if (status == SL_OK) return;
  fprintf(stderr, "%s: %s\n", sl_status_name(status), sl_last_error());
  exit(status == SL_EUNSUPPORTED ? RIG_UNSUPPORTED : 1);
}

sl_device *rig_device(const char *name) {
  if (strcmp(name, "cpu") == 0) return sl_cpu_device();
  sl_device *device = NULL;
  if (strncmp(name, "cuda", 4) != 0) {
    fprintf(stderr, "no device '%s'; there are cpu, cuda, cuda:N\n", name);
    exit(2);
  }
  rig_check(sl_cuda_device(name[4] == ':' ? atoi(name + 5) : 0, &device));
  return device;
}

double rig_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double rig_now_idle(sl_device *device) {
  rig_check(device->table->sync(device));
  return rig_now();
}

int rig_threads(void) { return omp_get_max_threads(); }

void *rig_host(size_t bytes) {
  void *block = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
  if (!block) {
    fprintf(stderr, "out of memory: %zu bytes\n", bytes);
    exit(1);
  }
  memset(block, 0, bytes);
  return block;
}

void *rig_block(sl_device *device, size_t bytes) {
  void *block;
  rig_check(device->table->alloc(device, bytes + 64, &block));
  rig_check(device->table->fill(device, block, 0, bytes + 64));
  return block;
}

void rig_block_free(sl_device *device, void *block, size_t bytes) {
  if (block) device->table->free(device, block, bytes + 64);
}

float rig_uniform(uint64_t *state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (float)((double)(*state >> 11) / 4503599627370496.0 - 1);
}

static float normal(uint64_t *state) { return rig_uniform(state) + rig_uniform(state) + rig_uniform(state); }

static float *read_input(const rig_cell *cell) {
  size_t count = (size_t)(cell->n * cell->d);
  float *x = rig_host(count * sizeof(float));
  FILE *file = fopen(cell->input, "rb");
  if (!file || fread(x, sizeof(float), count, file) != count) {
    fprintf(stderr, "%s: expected %zu float32 numbers\n", cell->input, count);
    exit(1);
  }
  fclose(file);
  return x;
}

float *rig_input(const rig_cell *cell) {
  enum { HIDDEN = 256, MIXED = 12 };
  if (cell->input) return read_input(cell);
  uint64_t state = 0x9e3779b97f4a7c15u;
  int64_t n = cell->n, d = cell->d;
  float *directions = rig_host((size_t)(HIDDEN * d) * sizeof(float));
  float *x = rig_host((size_t)(n * d) * sizeof(float));
  for (int64_t i = 0; i < HIDDEN * d; i++) directions[i] = normal(&state) / sqrtf((float)d);
  for (int64_t t = 0; t < n; t++) {
    for (int64_t j = 0; j < d; j++) x[t * d + j] = 0.3f * normal(&state);
    for (int h = 0; h < MIXED; h++) {
      const float *direction = directions + (int64_t)((rig_uniform(&state) + 1) * 0.5f * (HIDDEN - 1)) * d;
      float weight = 12 * rig_uniform(&state);
      for (int64_t j = 0; j < d; j++) x[t * d + j] += weight * direction[j];
    }
  }
  free(directions);
  return x;
}

sl_tensor *rig_upload(sl_device *device, const float *x, int64_t n, int64_t d) {
  sl_tensor *tensor;
  int64_t shape[2] = { n, d };
  rig_check(sl_tensor_create(device, SL_F32, 2, shape, &tensor));
  rig_check(sl_tensor_write(tensor, x, (size_t)(n * d) * sizeof(float)));
  return tensor;
}

double rig_peak_rss(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return 1024.0 * (double)usage.ru_maxrss;
}

double rig_device_used(sl_device *device) {
  if (device->host_memory) return 0;
  sl_memory_info info;
  rig_check(device->table->memory_info(device, &info));
  return (double)(info.total_bytes - info.free_bytes);
}
