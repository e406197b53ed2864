/* The floors: encoder product alone, copy bandwidth, bytes of the optimiser; see rig.h. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "rig.h"

/* A product's result is kept below this: whoever needs more rows at a time gains nothing. */
static const double result_limit = 2e9;

struct rig_product {
  const rig_cell *cell;
  sl_device *device;
  bool tf32;
  sl_dtype dtype;                /* of the factors */
  const float *x_f32;            /* the caller's */
  void *x, *w;                   /* dtype; float32 ones are the caller's */
  void *c;
  int64_t rows;                  /* of c */
  size_t c_bytes;
  double library, own;
  /* The encoder's own kernel; panels NULL: the device has none. */
  void *panels, *workspace;
  size_t panel_bytes, workspace_bytes;
  sl_codes_view codes;
  int64_t *nonfinite;
};

static void *to_bf16(sl_device *device, const void *x, int64_t count) {
  void *y = rig_block(device, (size_t)count * 2);
  rig_check(device->kernels->cast(
      device, &(sl_cast_args){ .x = x, .dtype_x = SL_F32, .y = y, .dtype_y = SL_BF16, .n = count }));
  return y;
}

static sl_sae_encode_topk_args own_args(rig_product *p) {
  return (sl_sae_encode_topk_args){ .n = p->cell->n, .d = p->cell->d, .m = p->cell->m, .k = 1, .panels = p->panels,
                                    .w = p->w, .dtype = p->dtype, .codes = p->codes, .nonfinite = p->nonfinite,
                                    .workspace = p->workspace, .workspace_bytes = p->workspace_bytes };
}

static void create_own(rig_product *p) {
  const rig_cell *cell = p->cell;
  sl_device *device = p->device;
  rig_check(device->kernels->sae_pack(
      device, &(sl_sae_pack_args){ .n = cell->n, .d = cell->d, .dtype = p->dtype, .need_panels = &p->panel_bytes }));
  p->panels = rig_block(device, p->panel_bytes);
  p->nonfinite = rig_block(device, sizeof *p->nonfinite);
  p->codes = (sl_codes_view){ .rows = cell->n, .n_latents = cell->m,
                              .offsets = rig_block(device, (size_t)(cell->n + 1) * 8),
                              .ids = rig_block(device, (size_t)cell->n * 4),
                              .values = rig_block(device, (size_t)cell->n * 4) };
  sl_sae_encode_topk_args args = own_args(p);
  args.need = &p->workspace_bytes;
  rig_check(device->kernels->sae_encode_topk(device, &args));
  p->workspace = rig_block(device, p->workspace_bytes);
}

rig_product *rig_product_create(const rig_cell *cell, sl_device *device, const sl_tensor *x, const sl_tensor *w) {
  rig_product *p = rig_host(sizeof *p);
  /* A screened step is held against the float32 product. */
  rig_precision unit = cell->unit == RIG_PRECISIONS ? cell->precision : cell->unit;
  p->dtype = unit == RIG_BF16 ? SL_BF16 : SL_F32;
  p->tf32 = unit == RIG_TF32;
  p->cell = cell;
  p->device = device;
  p->library = p->own = INFINITY;
  bool bf16 = p->dtype == SL_BF16;
  p->x_f32 = sl_tensor_f32(x);
  p->x = bf16 ? to_bf16(device, sl_tensor_data(x), cell->n * cell->d) : sl_tensor_data(x);
  p->w = bf16 ? to_bf16(device, sl_tensor_data(w), cell->m * cell->d) : sl_tensor_data(w);
  double row = (double)cell->m * (bf16 ? 2 : 4);
  p->rows = row * (double)cell->n <= result_limit ? cell->n : (int64_t)(result_limit / row);
  p->c_bytes = (size_t)row * (size_t)p->rows;
#ifndef SAELUA_PLAIN_GEMM
  p->c = rig_block(device, p->c_bytes);
#else /* a build without oneDNN multiplies correctly and slowly: no measure of anything */
  if (!device->host_memory) p->c = rig_block(device, p->c_bytes);
#endif
  if (device->kernels->sae_pack && device->kernels->sae_encode_topk && !p->tf32) create_own(p);
  return p;
}

/* In runs of `rows`: on a GPU a result that fits the second-level cache is cheaper than one that does not. */
static double library_time(rig_product *p, int64_t rows) {
  const rig_cell *cell = p->cell;
  sl_device *device = p->device;
  size_t size = sl_dtype_size(p->dtype);
  bool tf32 = device->tf32;
  device->tf32 = p->tf32;
  double start = rig_now_idle(device);
  for (int i = 0; i < cell->inner; i++) {
    for (int64_t at = 0; at < cell->n; at += rows) {
      int64_t take = cell->n - at < rows ? cell->n - at : rows;
      rig_check(device->kernels->gemm(
          device, &(sl_gemm_args){ .m = take, .n = cell->m, .k = cell->d, .batch = 1, .transpose_b = true,
                                   .a = (char *)p->x + (size_t)(at * cell->d) * size, .b = p->w, .c = p->c,
                                   .lda = cell->d, .ldb = cell->d, .ldc = cell->m, .dtype_ab = p->dtype,
                                   .dtype_c = p->dtype }));
    }
  }
  double seconds = (rig_now_idle(device) - start) / cell->inner;
  device->tf32 = tf32;
  return seconds;
}

static double own_time(rig_product *p) {
  sl_device *device = p->device;
  const rig_cell *cell = p->cell;
  double start = rig_now_idle(device);
  for (int i = 0; i < cell->inner; i++) {
    rig_check(device->kernels->sae_pack(
        device, &(sl_sae_pack_args){ .n = cell->n, .d = cell->d, .x = p->x_f32, .dtype = p->dtype, .panels = p->panels }));
    sl_sae_encode_topk_args args = own_args(p);
    rig_check(device->kernels->sae_encode_topk(device, &args));
  }
  return (rig_now_idle(device) - start) / cell->inner;
}

double rig_product_time(rig_product *p) {
  double least = INFINITY;
  if (p->c) {
    double seconds = library_time(p, p->rows);
    if (!p->device->host_memory && p->rows > 1024) seconds = rig_least(seconds, library_time(p, 1024));
    p->library = rig_least(p->library, seconds);
    least = seconds;
  }
  if (p->panels) {
    double seconds = own_time(p);
    p->own = rig_least(p->own, seconds);
    least = rig_least(least, seconds);
  }
  return least;
}

double rig_product_library(const rig_product *p) { return p->library; }
double rig_product_own(const rig_product *p) { return p->own; }

void rig_product_release(rig_product *p) {
  sl_device *device = p->device;
  if (p->dtype == SL_BF16) {
    rig_block_free(device, p->x, (size_t)(p->cell->n * p->cell->d) * 2);
    rig_block_free(device, p->w, (size_t)(p->cell->m * p->cell->d) * 2);
  }
  if (p->c) rig_block_free(device, p->c, p->c_bytes);
  if (p->panels) {
    rig_block_free(device, p->panels, p->panel_bytes);
    rig_block_free(device, p->workspace, p->workspace_bytes);
    rig_block_free(device, p->nonfinite, sizeof *p->nonfinite);
    rig_block_free(device, p->codes.offsets, (size_t)(p->cell->n + 1) * 8);
    rig_block_free(device, p->codes.ids, (size_t)p->cell->n * 4);
    rig_block_free(device, p->codes.values, (size_t)p->cell->n * 4);
  }
  free(p);
}

/* -- Copy -- */

struct rig_copy {
  sl_device *device;
  char *from, *to;
  size_t bytes;
};

rig_copy *rig_copy_create(sl_device *device) {
  rig_copy *copy = rig_host(sizeof *copy);
  copy->device = device;
  copy->bytes = (size_t)(device->host_memory ? 256 : 1024) << 20;
  copy->from = rig_block(device, copy->bytes);
  copy->to = rig_block(device, copy->bytes);
  return copy;
}

/* On the CPU by all threads, each its own part; the C library's copy of large blocks bypasses the cache. */
static void copy_once(rig_copy *copy) {
  if (!copy->device->host_memory) {
    rig_check(copy->device->table->copy(copy->device, copy->to, copy->from, copy->bytes));
    return;
  }
  int parts = rig_threads();
  size_t part = copy->bytes / (size_t)parts / 64 * 64;
#pragma omp parallel for schedule(static)
  for (int i = 0; i < parts; i++) memcpy(copy->to + part * (size_t)i, copy->from + part * (size_t)i, part);
}

double rig_copy_rate(rig_copy *copy) {
  int inner = copy->device->host_memory ? 1 : 10;
  double start = rig_now_idle(copy->device);
  for (int i = 0; i < inner; i++) copy_once(copy);
  return 2.0 * (double)copy->bytes * inner / (rig_now_idle(copy->device) - start);
}

void rig_copy_release(rig_copy *copy) {
  rig_block_free(copy->device, copy->from, copy->bytes);
  rig_block_free(copy->device, copy->to, copy->bytes);
  free(copy);
}

double rig_optimiser_bytes(const rig_cell *cell) {
  double moments = strcmp(cell->states, "f32") == 0 ? 8 : 2; /* bytes of both moments of a weight */
  return 2 * (4 + moments) * 2 * (double)cell->m * (double)cell->d;
}
