/* SAE kernels: residual and gradients. Sums run in an order that depends on the shapes only, so that the bits
 * do not depend on the number of threads: a slab, and the range of latents around a row, belong to one
 * thread. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "kernels/sae_numbers.h"
#include "sae_cpu.h"

/* -- Residual -- */

static size_t decode_parts(const sl_sae_decode_residual_args *args) {
  return (size_t)(slab_count(args->d) * args->n) * sizeof(float);
}

/* Row sums over slabs and rows, in float64 and in order. */
static void collect_sums(const decode_job *job) {
  const sl_sae_decode_residual_args *args = job->args;
  int64_t slabs = slab_count(args->d), n = args->n;
  double squares = 0, cosine = 0;
  for (int64_t t = 0; t < n; t++) {
    double ee = 0, xe = 0, xx = 0;
    for (int64_t s = 0; s < slabs; s++) {
      ee += (double)job->row_squares[s * n + t];
      if (job->row_products)
        xe += (double)job->row_products[s * n + t], xx += (double)job->row_targets[s * n + t];
    }
    squares += ee;
    double yy = xx - 2 * xe + ee; /* |target - residual|^2 */
    if (xx > 0 && yy > 0) cosine += (xx - xe) / sqrt(xx * yy);
  }
  if (args->sum_squares) *args->sum_squares += squares;
  if (args->cosine) *args->cosine += cosine;
}

sl_status slk_cpu_sae_decode_residual(sl_device *device, const sl_sae_decode_residual_args *args) {
  (void)device;
  const sae_cpu_ops *ops = sae_cpu_get_ops();
  size_t parts = decode_parts(args), want = parts * (args->cosine ? 3 : 1);
  if (args->need) {
    *args->need = want;
    return SL_OK;
  }
  if (args->workspace_bytes < want)
    return sl_fail(SL_EINVAL, "sae_decode_residual: a workspace of %zu bytes, %zu are needed",
                   args->workspace_bytes, want);
  decode_job job = { .args = args, .row_squares = args->workspace };
  if (args->cosine) {
    job.row_products = (float *)((char *)args->workspace + parts);
    job.row_targets = (float *)((char *)args->workspace + 2 * parts);
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t slab = 0; slab < slab_count(args->d); slab++) ops->decode_slab(&job, slab);
  collect_sums(&job);
  return SL_OK;
}

sl_status slk_cpu_sae_loss_numbers(sl_device *device, const sl_sae_loss_numbers_args *args) {
  (void)device;
  slk_sae_loss_numbers(args);
  return SL_OK;
}

/* -- Gradients -- */

/* The first latent of share `share` of `shares`, by work: a latent costs about as much as two entries. */
static int64_t share_start(const int64_t *offsets, int64_t m, int64_t share, int64_t shares) {
  int64_t start = offsets[0], goal = start + (offsets[m] - start + 2 * m) * share / shares, low = 0, high = m;
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    if (offsets[middle] + 2 * middle < goal) low = middle + 1;
    else high = middle;
  }
  return low;
}

sl_status slk_cpu_sae_backward(sl_device *device, const sl_sae_backward_args *args) {
  (void)device;
  const sae_cpu_ops *ops = sae_cpu_get_ops();
  if (args->need) {
    *args->need = 0;
    return SL_OK;
  }
  int64_t bytes = args->m * (args->d_in + args->d_out) * 4;
  bool aligned = ((uintptr_t)args->gradients.w_enc | (uintptr_t)args->gradients.w_dec) % 64 == 0;
  double scale = args->scale * *args->factor;
  backward_job job = { .args = args, .scale = (float)scale, .stream = aligned && bytes > (16 << 20) };
  for (int64_t j = 0; args->column_sums && j < args->d_out; j++)
    args->gradients.b_dec[j] += (float)(scale * args->column_sums[j]);
  int64_t shares = omp_get_max_threads();
#pragma omp parallel for schedule(static, 1)
  for (int64_t share = 0; share < shares; share++)
    ops->backward_range(&job, share_start(args->index.offsets, args->m, share, shares),
                        share_start(args->index.offsets, args->m, share + 1, shares));
  return SL_OK;
}

/* Pieces of the latents, each with its own partial sums; their number is fixed for the sake of the bits. */
enum { PIECES = 32 };

static double gradient_squares(const sl_sae_finish_gradients_args *args, int64_t first, int64_t last) {
  const sl_sae_gradients *g = &args->gradients;
  double sum = 0;
  for (int64_t i = first; i < last; i++) {
    if (!g->touched[i]) continue;
    double along = args->project ? (double)g->dot_dec[i] : 0, bias = (double)g->b_enc[i];
    double decoder = (double)g->squares_dec[i] - along * along; /* rows of W_dec have length one */
    sum += (double)g->squares_enc[i] + (decoder > 0 ? decoder : 0) + bias * bias;
  }
  return sum;
}

sl_status slk_cpu_sae_finish_gradients(sl_device *device, const sl_sae_finish_gradients_args *args) {
  (void)device;
  const sae_cpu_ops *ops = sae_cpu_get_ops();
  int64_t m = args->m, d = args->d_in;
  size_t want = (size_t)(PIECES * d) * sizeof(float);
  if (args->need) {
    *args->need = want;
    return SL_OK;
  }
  if (args->workspace_bytes < want)
    return sl_fail(SL_EINVAL, "sae_finish_gradients: a workspace of %zu bytes, %zu are needed",
                   args->workspace_bytes, want);
  float *parts = args->workspace;
  double sums[PIECES];
  memset(parts, 0, want);
#pragma omp parallel for schedule(static)
  for (int64_t piece = 0; piece < PIECES; piece++) {
    int64_t first = m * piece / PIECES, last = m * (piece + 1) / PIECES;
    sums[piece] = gradient_squares(args, first, last);
    if (!args->through_u) continue;
    for (int64_t i = first; i < last; i++) {
      if (!args->gradients.touched[i]) continue;
      ops->add_scaled(parts + piece * d, args->gradients.b_enc[i], args->w_enc + i * d, d);
    }
  }
  double total = 0;
  for (int64_t piece = 0; piece < PIECES; piece++) total += sums[piece];
  for (int64_t j = 0; j < args->d_out; j++) {
    double value = (double)(args->add ? args->total_b_dec[j] : args->gradients.b_dec[j]);
    for (int64_t piece = 0; args->through_u && piece < PIECES; piece++) value -= (double)parts[piece * d + j];
    args->total_b_dec[j] = (float)value;
    if (!args->more) total += value * value;
  }
  *args->sum_squares = args->add ? *args->sum_squares + total : total;
  return SL_OK;
}

sl_status slk_cpu_sae_fill_gradients(sl_device *device, const sl_sae_fill_gradients_args *args) {
  (void)device;
  for (int64_t i = 0; i < args->m; i++) {
    if (args->gradients.touched[i]) continue;
    memset(args->gradients.w_enc + i * args->d_in, 0, (size_t)args->d_in * sizeof(float));
    memset(args->gradients.w_dec + i * args->d_out, 0, (size_t)args->d_out * sizeof(float));
  }
  return SL_OK;
}
