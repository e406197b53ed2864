/* SAE kernels: packing, encoder product with selection. The inner loops are in sae_body_encode.h; here are
 * layouts, threads and workspace. A token's code depends on nothing but the token: not on threads, tiles or
 * neighbours. */
#include <omp.h>
#include <string.h>

#include "sae_cpu.h"

/* -- Packing -- */

static float shifted(const sl_sae_pack_args *args, int64_t t, int64_t j) {
  if (t >= args->n || j >= args->d) return 0;
  return args->x[t * args->d + j] - (args->shift ? args->shift[j] : 0);
}

static bool screens(const sae_cpu_ops *ops, const sl_sae_pack_args *args) {
  return args->screen && args->dtype == SL_F32 && ops->screen_tile;
}

static bool packs_pairs(const sae_cpu_ops *ops, const sl_sae_pack_args *args) {
  return sae_cpu_uses_pairs(ops, args->dtype) || screens(ops, args);
}

static void pack_panel(const sl_sae_pack_args *args, const sae_cpu_ops *ops, int64_t group) {
  enum { STRETCH = 64 };         /* columns at a time: the panel's part stays in the first-level cache */
  int64_t width = ops->panel_tokens, d = args->d, from = group * width;
  if (packs_pairs(ops, args)) {
    uint16_t *panel = (uint16_t *)args->panels + group * width * round_up(d, 2);
    for (int64_t j = 0; j < round_up(d, 2); j++)
      for (int64_t t = 0; t < width; t++)
        panel[(j / 2 * width + t) * 2 + j % 2] = sl_f32_to_bf16(shifted(args, from + t, j));
    return;
  }
  float *panel = (float *)args->panels + group * width * d;
  for (int64_t start = 0; start < d; start += STRETCH) {
    int64_t stop = start + STRETCH < d ? start + STRETCH : d;
    for (int64_t t = 0; t < width; t++)
      for (int64_t j = start; j < stop; j++) {
        float v = shifted(args, from + t, j);
        panel[j * width + t] = args->dtype == SL_BF16 ? sl_bf16_to_f32(sl_f32_to_bf16(v)) : v;
      }
  }
}

static void pack_slab_rows(const sl_sae_pack_args *args, int64_t first, int64_t last) {
  int64_t d = args->d, width = slab_width(d);
  for (int64_t slab = 0; slab < slab_count(d); slab++) {
    int64_t column = slab * width, valid = d - column < width ? d - column : width;
    for (int64_t t = first; t < last; t++) {
      float *out = args->slabs + (slab * args->n + t) * width;
      const float *x = args->x + t * d + column;
      for (int64_t j = 0; j < valid; j++) out[j] = x[j] - (args->shift ? args->shift[column + j] : 0);
      for (int64_t j = valid; j < width; j++) out[j] = 0;
    }
  }
}

sl_status slk_cpu_sae_pack(sl_device *device, const sl_sae_pack_args *args) {
  (void)device;
  const sae_cpu_ops *ops = sae_cpu_get_ops();
  int64_t padded = round_up(args->n, ops->panel_tokens), d = args->d;
  if (args->need_panels || args->need_slabs) {
    size_t bytes = packs_pairs(ops, args) ? (size_t)(padded * round_up(d, 2)) * 2 : (size_t)(padded * d) * 4;
    if (screens(ops, args)) bytes = sae_cpu_screen_panel_bytes(ops, args->n, d);
    if (args->need_panels) *args->need_panels = bytes;
    if (args->need_slabs) *args->need_slabs = (size_t)(slab_count(d) * args->n * slab_width(d)) * 4;
    return SL_OK;
  }
  if (args->panels) {
#pragma omp parallel for schedule(static)
    for (int64_t group = 0; group < padded / ops->panel_tokens; group++) pack_panel(args, ops, group);
    if (screens(ops, args)) sae_cpu_pack_bounds(args, ops);
  }
  if (args->slabs) {
    enum { STRETCH = 64 };
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < args->n; t += STRETCH)
      pack_slab_rows(args, t, t + STRETCH < args->n ? t + STRETCH : args->n);
  }
  return SL_OK;
}

/* -- Encoding -- */

/* Room for candidates: generous where k is small, so that shrinking is rare; never more than there are
 * latents. */
static int64_t buffer_capacity(int64_t k, int64_t m, int64_t block) {
  int64_t wish = k <= 512 ? (3 * k > 192 ? 3 * k : 192) : k + k / 2 + 512;
  int64_t enough = m + block;
  return round_up(wish < enough ? wish : enough, 16);
}

/* Tile: its panels fill most of a second-level cache, its buffers a few megabytes, and no thread goes
 * without. */
encode_job sae_cpu_plan(const sl_sae_encode_topk_args *args, encode_rule rule, const sae_cpu_ops *ops) {
  enum { PANEL_BYTES = 768 << 10, BUFFER_BYTES = 6 << 20, MOST_TOKENS = 256 };
  encode_job job = { .args = args, .rule = rule };
  job.capacity = rule.group ? round_up(args->k, 16) : buffer_capacity(args->k, args->m, ops->block_latents);
  if (args->dead) job.dead_capacity = buffer_capacity(args->k_dead, args->m, ops->block_latents);
  int64_t panel = ops->panel_tokens, element = sae_cpu_uses_pairs(ops, args->dtype) ? 2 : 4;
  int64_t tile = PANEL_BYTES / (args->d * element);
  int64_t by_buffers = BUFFER_BYTES / ((job.capacity + job.dead_capacity) * 8);
  int64_t share = round_up((args->n + omp_get_max_threads() - 1) / omp_get_max_threads(), panel);
  if (tile > MOST_TOKENS) tile = MOST_TOKENS;
  if (tile > by_buffers) tile = by_buffers;
  if (tile > share) tile = share;
  job.tile_tokens = tile / panel * panel > 0 ? tile / panel * panel : panel;
  return job;
}

/* Rows of a [rows, k] layout with their lengths in offsets[1 ..] close up; offsets become what they are
 * called. */
void sae_cpu_close_gaps(const sl_codes_view *codes, int64_t k) {
  int64_t base = codes->offsets[0], at = 0;
  float *values = codes->values + base;
  int32_t *ids = codes->ids + base;
  for (int64_t r = 0; r < codes->rows; r++) {
    int64_t length = codes->offsets[r + 1];
    if (at != r * k) {
      memmove(values + at, values + r * k, (size_t)length * sizeof *values);
      memmove(ids + at, ids + r * k, (size_t)length * sizeof *ids);
    }
    at += length;
    codes->offsets[r + 1] = base + at;
  }
}

sl_status sae_cpu_encode(const sl_sae_encode_topk_args *args, encode_rule rule) {
  const sae_cpu_ops *ops = sae_cpu_get_ops();
  encode_job job = sae_cpu_plan(args, rule, ops);
  size_t share = encode_scratch_bytes(args, &job);
  int64_t tiles = (args->n + job.tile_tokens - 1) / job.tile_tokens;
  int64_t threads = omp_get_max_threads() < tiles ? omp_get_max_threads() : tiles;
  if (threads < 1) threads = 1;
  if (args->need) {
    *args->need = share * (size_t)threads + 64;
    return SL_OK;
  }
  if (args->workspace_bytes < share + 64)
    return sl_fail(SL_EINVAL, "sae_encode: a workspace of %zu bytes, %zu are needed",
                   args->workspace_bytes, share + 64);
  if (share * (size_t)threads + 64 > args->workspace_bytes)
    threads = (int64_t)((args->workspace_bytes - 64) / share);
  char *scratch = (char *)args->workspace + (64 - (uintptr_t)args->workspace % 64) % 64;
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)threads)
  for (int64_t tile = 0; tile < tiles; tile++) {
    int64_t first = tile * job.tile_tokens;
    int64_t tokens = args->n - first < job.tile_tokens ? args->n - first : job.tile_tokens;
    ops->encode_tile(&job, first, tokens, scratch + (size_t)omp_get_thread_num() * share);
  }
  sae_cpu_close_gaps(&args->codes, args->k);
  if (args->dead) sae_cpu_close_gaps(&args->dead_codes, args->k_dead);
  return SL_OK;
}

sl_status slk_cpu_sae_encode_topk(sl_device *device, const sl_sae_encode_topk_args *args) {
  (void)device;
  const sae_cpu_ops *ops = sae_cpu_get_ops();
  if (args->wants_screen) {
    *args->wants_screen = sae_cpu_wants_screen(ops, args);
    return SL_OK;
  }
  if (sae_cpu_screens(ops, args)) return sae_cpu_encode_screened(args, ops);
  return sae_cpu_encode(args, (encode_rule){ 0 });
}
