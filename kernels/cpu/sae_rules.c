/* SAE kernels: selections other than the k largest of a token. GroupMax and JumpReLU are rules of the encoder's tile
 * loop (sae_body_encode.h); BatchTopK chooses among the tokens' candidates. */
#include <omp.h>
#include <string.h>

#include "kernels/sae_numbers.h"
#include "sae_cpu.h"

sl_status slk_cpu_sae_encode_groupmax(sl_device *device, const sl_sae_encode_groupmax_args *args) {
  (void)device;
  sl_sae_encode_topk_args as_topk = {
    .n = args->n, .d = args->d, .m = args->m, .k = args->k, .panels = args->panels, .w = args->w, .dtype = args->dtype,
    .bias = args->bias, .codes = args->codes, .dead = args->dead, .k_dead = args->k_dead,
    .dead_codes = args->dead_codes, .nonfinite = args->nonfinite, .workspace = args->workspace,
    .workspace_bytes = args->workspace_bytes, .need = args->need };
  return sae_cpu_encode(&as_topk, (encode_rule){ .group = args->m / args->k });
}

sl_status slk_cpu_sae_encode_jumprelu(sl_device *device, const sl_sae_encode_jumprelu_args *args) {
  (void)device;
  sl_sae_encode_topk_args as_topk = {
    .n = args->n, .d = args->d, .m = args->m, .k = args->room, .panels = args->panels, .w = args->w,
    .dtype = args->dtype, .bias = args->bias, .codes = args->codes, .nonfinite = args->nonfinite,
    .workspace = args->workspace, .workspace_bytes = args->workspace_bytes, .need = args->need };
  return sae_cpu_encode(&as_topk, (encode_rule){ .floor = args->threshold, .overflow = args->overflow });
}

/* -- BatchTopK -- */

static uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

/* Of the values whose bits agree with `prefix` above `shift + width`: how many have each of the next `width` bits. */
static void count_digits(const float *values, int64_t n, uint32_t prefix, int shift, int width, int64_t *bins) {
  int64_t size = INT64_C(1) << width;
  memset(bins, 0, (size_t)size * sizeof *bins);
#pragma omp parallel
  {
    int64_t mine[2048] = { 0 };
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < n; i++) {
      uint32_t bits = bits_of(values[i]);
      if (bits >> (shift + width) == prefix) mine[bits >> shift & (uint32_t)(size - 1)]++;
    }
#pragma omp critical
    for (int64_t b = 0; b < size; b++) bins[b] += mine[b];
  }
}

/* Bits of the rank-th largest of n >= rank >= 1 positive values: 11, 10 and 10 bits at a time from the top, whose sign
 * is 0. Values are positive, so their bits are in order. */
static uint32_t rank_bits(const float *values, int64_t n, int64_t rank) {
  static const int widths[] = { 11, 10, 10 };
  int64_t bins[2048];
  uint32_t prefix = 0;
  int shift = 31;
  for (int digit = 0; digit < 3; digit++) {
    shift -= widths[digit];
    count_digits(values, n, prefix, shift, widths[digit], bins);
    uint32_t bin = (UINT32_C(1) << widths[digit]) - 1;
    while (bins[bin] < rank) rank -= bins[bin--];
    prefix = prefix << widths[digit] | bin;
  }
  return prefix;
}

/* Lengths of the kept rows into out.offsets[1 ..], ties to the first rows; `ties` [rows] receives how many values equal
 * to the bound a row keeps. */
static void measure_rows(const sl_sae_batch_select_args *args, uint32_t bound, int64_t rank, int32_t *ties) {
  const sl_codes_view *in = &args->codes, *out = &args->out;
  int64_t above = 0;
#pragma omp parallel for schedule(static) reduction(+ : above)
  for (int64_t r = 0; r < in->rows; r++) {
    int64_t more = 0;
    int32_t equal = 0;
    for (int64_t p = in->offsets[r]; p < in->offsets[r + 1]; p++) {
      uint32_t bits = bits_of(in->values[p]);
      more += bits > bound;
      equal += bits == bound;
    }
    out->offsets[r + 1] = more;
    ties[r] = equal;
    above += more;
  }
  int64_t left = rank - above;
  for (int64_t r = 0; r < in->rows; r++) {
    if (ties[r] > left) ties[r] = (int32_t)left;
    left -= ties[r];
    int64_t kept = out->offsets[r + 1] + ties[r];
    *args->crowded += args->room > 0 && kept == args->room && kept == in->offsets[r + 1] - in->offsets[r];
    out->offsets[r + 1] = out->offsets[r] + kept;
  }
}

sl_status slk_cpu_sae_batch_select(sl_device *device, const sl_sae_batch_select_args *args) {
  (void)device;
  const sl_codes_view *in = &args->codes, *out = &args->out;
  size_t want = (size_t)in->rows * sizeof(int32_t);
  if (args->need) {
    *args->need = want;
    return SL_OK;
  }
  if (args->workspace_bytes < want)
    return sl_fail(SL_EINVAL, "sae_batch_select: a workspace of %zu bytes, %zu are needed", args->workspace_bytes, want);
  int32_t *ties = args->workspace;
  int64_t entries = in->offsets[in->rows] - in->offsets[0], rank = entries < args->keep ? entries : args->keep;
  uint32_t bound = rank > 0 ? rank_bits(in->values + in->offsets[0], entries, rank) : 0;
  float smallest;
  memcpy(&smallest, &bound, sizeof smallest);
  *args->smallest = (double)smallest;
  *args->crowded = 0;
  measure_rows(args, bound, rank, ties);
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < in->rows; r++) {
    int64_t at = out->offsets[r];
    int32_t left = ties[r];
    for (int64_t p = in->offsets[r]; p < in->offsets[r + 1]; p++) {
      uint32_t bits = bits_of(in->values[p]);
      if (bits < bound || (bits == bound && left-- <= 0)) continue;
      out->values[at] = in->values[p];
      out->ids[at++] = in->ids[p];
    }
  }
  return SL_OK;
}

sl_status slk_cpu_sae_follow_threshold(sl_device *device, const sl_sae_follow_threshold_args *args) {
  (void)device;
  slk_sae_follow_threshold(args);
  return SL_OK;
}
