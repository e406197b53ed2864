/* What the measuring programs share: memory, repeatable input, clocks, and the floors that a step is held against.
 *
 * Everything goes through a device's table and kernels, so the same code measures the CPU and a GPU. Times are wall
 * clock with the device idle before and after. A failure ends the program: these are tools, not library code. */
#ifndef SL_BENCH_RIG_H
#define SL_BENCH_RIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "core/sae/loss.h"
#include "core/sae/optim.h"

/* How the product's factors are held. F32 and TF32: throughout. SCREENED: float32's result, which a bf16 product finds
 * first; it is core's default where the processor gains from it. */
typedef enum { RIG_F32, RIG_BF16, RIG_TF32, RIG_SCREENED, RIG_PRECISIONS } rig_precision;
const char *rig_precision_name(rig_precision precision);
/* Ends the program for a name that is none. */
rig_precision rig_precision_find(const char *name);

/* One cell of the grid, and how it is measured. */
typedef struct {
  int64_t n, d, m, k;            /* tokens, inputs, latents, entries a token */
  const char *device;            /* "cpu", "cuda", "cuda:1" */
  sl_sae_activation activation;
  rig_precision precision;
  rig_precision unit;            /* of the product that the step is held against; RIG_PRECISIONS: the step's own */
  const char *input;             /* file of n * d raw float32, or NULL: random */
  const char *states;            /* Adam's moments: "f32" or "8bit" */
  bool low_memory;               /* gradients in blocks of latents, never whole (sl_sae_step) */
  int repeats, inner;            /* inner: steps between two looks at the clock (0: 1 on the CPU, 10 elsewhere) */
  bool product;                  /* measure the floors too */
} rig_cell;

rig_cell rig_cell_defaults(void); /* the main job: 4096 tokens, d 768, 24,576 latents, k 32, float32 */

/* -- Small things -- */

/* The exit status of a program that was asked for what its build or device does not have. */
enum { RIG_UNSUPPORTED = 4 };
void rig_check(sl_status status);
sl_device *rig_device(const char *name);
double rig_now(void);            /* seconds */
/* Waits until the device is idle, then rig_now. */
double rig_now_idle(sl_device *device);
int rig_threads(void);
void *rig_host(size_t bytes);    /* zeroed, 64-byte aligned */
void *rig_block(sl_device *device, size_t bytes); /* zeroed memory of the device */
void rig_block_free(sl_device *device, void *block, size_t bytes);
/* In [-1, 1); the sequence is the same on every machine. */
float rig_uniform(uint64_t *state);
/* x [n, d]: mixtures of a few of 256 directions, and noise, so that all latents take part; or the file's. Freed by
 * the caller. */
float *rig_input(const rig_cell *cell);
/* A float32 tensor [n, d] on the device. */
sl_tensor *rig_upload(sl_device *device, const float *x, int64_t n, int64_t d);

static inline double rig_least(double a, double b) { return a < b ? a : b; }

/* Peak resident bytes of this process so far. */
double rig_peak_rss(void);
/* Bytes of the device that are taken, by anyone; 0 on the CPU. */
double rig_device_used(sl_device *device);

/* -- Floors -- */

/* The encoder product alone: x [n, d] times W' [m, d] into memory that is there already, by the device's library and
 * by the encoder's own kernel with k = 1 (which keeps almost nothing). */
typedef struct rig_product rig_product;
rig_product *rig_product_create(const rig_cell *cell, sl_device *device, const sl_tensor *x, const sl_tensor *w);
/* Seconds; the least over the ways there are. Remembers each way's own least time. */
double rig_product_time(rig_product *product);
double rig_product_library(const rig_product *product); /* least seconds; infinite where not measured */
double rig_product_own(const rig_product *product);
void rig_product_release(rig_product *product);

/* Bytes a second, read plus written, of a copy between two blocks that no cache holds. */
typedef struct rig_copy rig_copy;
rig_copy *rig_copy_create(sl_device *device);
double rig_copy_rate(rig_copy *copy);
void rig_copy_release(rig_copy *copy);

/* What Adam must move: both matrices and their moments, each read and written once. Gradients need not pass through
 * memory, so they are not counted; nor are biases. */
double rig_optimiser_bytes(const rig_cell *cell);

/* -- The step -- */

/* A dictionary, its optimiser and a batch; a step is what a recipe runs: loss with its metrics, gradients, global
 * clip, projection, Adam, unit rows, through core/sae. */
typedef struct {
  rig_cell cell;
  sl_device *device;
  sl_sae *sae;
  sl_sae_optim *optim;
  sl_tensor *x;
  double loss, l0;               /* of the last step that was read */
  double waits;                  /* times a step waited for the device, in the last timing; 0 is the aim */
} rig_step;

void rig_step_create(const rig_cell *cell, rig_step *out);
/* `read`: fetches the loss (and so waits for the device). x NULL: the rig's own batch. */
void rig_step_run(rig_step *step, sl_tensor *x, bool read);
/* Seconds a step, over cell.inner steps. */
double rig_step_time(rig_step *step);
void rig_step_release(rig_step *step);

/* -- Results -- */

typedef struct {
  double step, product, library, own, copy_rate, floor; /* seconds, bytes a second */
  double peak_bytes, needed_bytes; /* of the step alone; weights + Adam moments in float32 */
  double loss, l0, waits;
} rig_result;

/* Steps and floors alternate; the least of each counts. The memory is that of the step, before the floors' own. */
rig_result rig_measure(const rig_cell *cell);
/* One JSON object, no newline. */
void rig_print_json(FILE *out, const rig_cell *cell, const rig_result *result);
void rig_print_header(FILE *out);
void rig_print_row(FILE *out, const rig_cell *cell, const rig_result *result);

#endif
