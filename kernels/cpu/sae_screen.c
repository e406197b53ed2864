/* SAE kernels: the float32 encode by a bf16 screen. Memory, threads and the order of the parts; inner loops in
 * sae_body_screen.h, the bound and why the bits agree in docs/decisions/013-bf16-screening.md.
 *
 * Batches of tokens, so that memory is bounded. For each: tiles are screened, which leaves every token the latents
 * that can be among its k largest; these are sorted by latent, computed in float32, and the k largest chosen. A
 * token with too many survivors, or so large that a sum might overflow, is refused and takes the float32 path;
 * where that happens to most, the rest of the call does without the screen. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "sae_cpu.h"

static int64_t forced_room, forced_capacity;

void sae_cpu_limit_survivors(int64_t room, int64_t capacity) {
  forced_room = room;
  forced_capacity = capacity;
}

bool sae_cpu_screens(const sae_cpu_ops *ops, const sl_sae_encode_topk_args *args) {
  return ops->screen_tile && args->dtype == SL_F32 && args->w_screen;
}

/* The screen halves the product; packing, bounds and rescoring must cost less than that. */
bool sae_cpu_wants_screen(const sae_cpu_ops *ops, const sl_sae_encode_topk_args *args) {
  enum { FEWEST_TOKENS = 64, FEWEST_INPUTS = 64, SHARE = 16, MOST_INPUTS = 1 << 16 };
  int64_t chosen = args->k + (args->dead ? args->k_dead : 0);
  return ops->screen_tile && args->dtype == SL_F32 && args->n >= FEWEST_TOKENS && args->d >= FEWEST_INPUTS &&
         args->d <= MOST_INPUTS && SHARE * chosen <= args->m;
}

/* -- Panels -- */

static screen_panels panels_at(const void *panels, const sae_cpu_ops *ops, int64_t n, int64_t d) {
  int64_t padded = round_up(n, ops->panel_tokens);
  const uint16_t *pairs = panels;
  const float *bounds = (const float *)(const void *)(pairs + padded * round_up(d, 2));
  return (screen_panels){ pairs, bounds, bounds + padded, bounds + 2 * padded };
}

size_t sae_cpu_screen_panel_bytes(const sae_cpu_ops *ops, int64_t n, int64_t d) {
  return (size_t)round_up(n, ops->panel_tokens) * ((size_t)round_up(d, 2) * 2 + 3 * sizeof(float));
}

/* Squares of x, of x rounded, of the difference. */
SLK_HOT static void sum_token(const float *x, const float *shift, int64_t d, float sums[3]) {
  float whole = 0, rounded = 0, rest = 0;
#pragma omp simd reduction(+ : whole, rounded, rest)
  for (int64_t j = 0; j < d; j++) {
    float v = x[j] - (shift ? shift[j] : 0), r = sl_bf16_to_f32(sl_f32_to_bf16(v));
    whole += v * v;
    rounded += r * r;
    rest += (v - r) * (v - r);
  }
  sums[0] = whole, sums[1] = rounded, sums[2] = rest;
}

void sae_cpu_pack_bounds(const sl_sae_pack_args *args, const sae_cpu_ops *ops) {
  int64_t d = args->d, padded = round_up(args->n, ops->panel_tokens);
  float *along = (float *)args->panels + padded * round_up(d, 2) / 2, *across = along + padded;
  float *size = across + padded, g = screen_rounding(d);
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < padded; t++) {
    along[t] = across[t] = size[t] = 0;
    if (t >= args->n) continue;
    float sums[3];
    sum_token(args->x + t * d, args->shift, d, sums);
    float whole = screen_norm(sums[0], d), rounded = screen_norm(sums[1], d), rest = screen_norm(sums[2], d);
    along[t] = (rest + g * (whole + rounded)) * SCREEN_SLACK;
    across[t] = rounded * (1 + g) * SCREEN_SLACK;
    size[t] = whole + rounded;
  }
}

/* -- Memory -- */

/* Of a batch; what is by thread comes last. */
typedef struct {
  screen_job job;
  screen_bounds *bounds;
  int32_t *refused_rows, *counts; /* [batch]; [threads, m] */
  char *scratch;
  size_t share;                  /* of a thread */
  int64_t batch, threads;
  encode_job plain;              /* for the refused */
} screen_run;

static void *cut(char **at, size_t bytes) {
  void *piece = *at;
  *at += (bytes + 63) / 64 * 64;
  return piece;
}

static void plan_list(screen_survivors *list, const sl_sae_encode_topk_args *args, const sae_cpu_ops *ops) {
  int64_t block = ops->block_latents, enough = round_up(args->m + block, 16);
  int64_t wish = list->k <= 512 ? slk_max(4 * list->k, 192) : 2 * list->k + 1024;
  list->capacity = slk_min(round_up(forced_capacity ? forced_capacity : wish, 16), enough);
  list->room = slk_min(round_up(forced_room ? forced_room : 5 * list->k / 2 + 48, 16), enough);
}

static size_t tile_bytes(const screen_run *run, const sae_cpu_ops *ops) {
  const screen_job *job = &run->job;
  const sl_sae_encode_topk_args *args = job->args;
  size_t tile = (size_t)job->tile_tokens, plain_tile = (size_t)run->plain.tile_tokens;
  size_t bytes = (size_t)(round_up(args->d, 32) * ops->block_latents) * 2 + 64;
  for (int i = 0; i < job->n_lists; i++) bytes += tile * (size_t)job->lists[i].capacity * 12 + tile * 8 + 320;
  size_t plain = encode_scratch_bytes(args, &run->plain) + plain_tile * (size_t)args->d * 4 + 64;
  return ((bytes > plain ? bytes : plain) + 63) / 64 * 64;
}

static screen_run plan(const sl_sae_encode_topk_args *args, const sae_cpu_ops *ops) {
  enum { BATCH_BYTES = 8 << 20, BATCH_TOKENS = 8192, ENTRY_BYTES = 14 }; /* of an entry: see lay_out */
  screen_run run = { .job = { .args = args, .n_lists = args->dead ? 2 : 1 },
                     .plain = sae_cpu_plan(args, (encode_rule){ 0 }, ops), .threads = omp_get_max_threads() };
  run.job.lists[0] = (screen_survivors){ .k = args->k };
  run.job.lists[1] = (screen_survivors){ .k = args->k_dead };
  int64_t row_bytes = 0;
  for (int i = 0; i < run.job.n_lists; i++) {
    plan_list(&run.job.lists[i], args, ops);
    row_bytes += run.job.lists[i].room * ENTRY_BYTES;
  }
  int64_t panel = ops->panel_tokens;
  /* A screened tile's panels are half as large, so the tile may be as wide at least. */
  run.job.tile_tokens = run.plain.tile_tokens;
  int64_t batch = slk_min(slk_min(BATCH_BYTES / row_bytes, BATCH_TOKENS), round_up(args->n, panel));
  int64_t batches = slk_ceil_div(slk_max(args->n, 1), slk_max(batch, 1));
  run.batch = round_up(slk_ceil_div(slk_max(args->n, 1), batches), run.job.tile_tokens); /* of about equal size */
  run.share = tile_bytes(&run, ops);
  return run;
}

/* Lays everything out from `at`; returns the end. With `at` NULL this measures. */
static char *lay_out(screen_run *run, char *at, const sae_cpu_ops *ops) {
  const sl_sae_encode_topk_args *args = run->job.args;
  size_t batch = (size_t)run->batch, m = (size_t)args->m;
  run->bounds = cut(&at, (m / (size_t)ops->block_latents + 1) * sizeof *run->bounds);
  run->job.bounds = run->bounds;
  run->job.refused = cut(&at, batch);
  run->refused_rows = cut(&at, batch * 4);
  for (int i = 0; i < run->job.n_lists; i++) {
    screen_survivors *list = &run->job.lists[i];
    size_t entries = batch * (size_t)list->room;
    list->count = cut(&at, batch * 4);
    list->ids = cut(&at, entries * 4);
    list->values = cut(&at, entries * 4);
    list->offsets = cut(&at, (m + 1) * 4);
    list->tokens = cut(&at, (entries + SCREEN_PAD) * sizeof *list->tokens);
    list->sums = cut(&at, entries * 4);
  }
  run->counts = cut(&at, (size_t)run->threads * m * 4);
  run->scratch = cut(&at, (size_t)run->threads * run->share);
  return at;
}

/* -- The parts -- */

static void bound_weights(screen_run *run, const sae_cpu_ops *ops) {
  const sl_sae_encode_topk_args *args = run->job.args;
  int64_t block = ops->block_latents;
  float largest = 0, offset = 0, poison = 0;
#pragma omp parallel for schedule(static) reduction(max : largest, offset) reduction(+ : poison)
  for (int64_t latent = 0; latent < args->m; latent += block) {
    screen_bounds *bounds = &run->bounds[latent / block];
    ops->bound_block(args, latent, slk_min(block, args->m - latent), bounds);
    float weight = bounds->weight + bounds->rest;
    largest = weight > largest ? weight : largest;
    offset = bounds->bias > offset ? bounds->bias : offset;
    poison += 0 * (weight + bounds->bias);
  }
  run->job.largest = largest + poison;
  run->job.offset = offset / screen_rounding(args->d);
}

/* Screens the tiles of a batch of `rows`, until too many tokens were refused. */
static void screen_batch(screen_run *run, int64_t rows, const sae_cpu_ops *ops) {
  enum { TRIAL = 256 };
  screen_job *job = &run->job;
  int64_t tile = job->tile_tokens, tried = 0, failed = 0;
  memset(job->refused, 0, (size_t)rows);
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)run->threads)
  for (int64_t first = 0; first < rows; first += tile) {
    int64_t tokens = slk_min(tile, rows - first), so_far, bad;
#pragma omp atomic read
    so_far = tried;
#pragma omp atomic read
    bad = failed;
    if (so_far >= TRIAL && 2 * bad > so_far) {
      memset(job->refused + first, 1, (size_t)tokens);
      for (int i = 0; i < job->n_lists; i++) memset(job->lists[i].count + first, 0, (size_t)tokens * 4);
      continue;
    }
    ops->screen_tile(job, job->first + first, tokens, run->scratch + (size_t)omp_get_thread_num() * run->share);
    bad = 0;
    for (int64_t t = first; t < first + tokens; t++) bad += job->refused[t];
#pragma omp atomic
    tried += tokens;
#pragma omp atomic
    failed += bad;
  }
}

/* Stable counting sort of a list by latent: each thread owns a stretch of rows. */
static void index_survivors(screen_run *run, screen_survivors *list, int64_t rows) {
  int64_t m = run->job.args->m, threads = run->threads;
#pragma omp parallel num_threads((int)threads)
  {
    int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    int64_t first = rows * me / team, last = rows * (me + 1) / team;
    int32_t *mine = run->counts + me * m;
    memset(mine, 0, (size_t)m * sizeof *mine);
    for (int64_t r = first; r < last; r++)
      for (int64_t i = 0; i < list->count[r]; i++) mine[list->ids[r * list->room + i]]++;
#pragma omp barrier
#pragma omp single
    {
      int32_t at = 0;
      for (int64_t l = 0; l < m; l++) {
        list->offsets[l] = at;
        for (int64_t t = 0; t < team; t++) {
          int32_t n = run->counts[t * m + l];
          run->counts[t * m + l] = at;
          at += n;
        }
      }
      list->offsets[m] = at;
      memset(list->tokens + at, 0, SCREEN_PAD * sizeof *list->tokens);
    }
    for (int64_t r = first; r < last; r++) {
      for (int64_t i = 0; i < list->count[r]; i++) {
        int64_t slot = r * list->room + i;
        int32_t at = mine[list->ids[slot]]++;
        list->tokens[at] = (uint16_t)r;
        memcpy(&list->values[slot], &at, sizeof at);
      }
    }
  }
}

/* The first latent at or behind which `share` of `shares` of the entries lie. */
static int64_t share_start(const screen_survivors *list, int64_t m, int64_t share, int64_t shares) {
  int64_t goal = list->offsets[m] * share / shares, low = 0, high = m;
  if (share == shares) return m;
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    if (list->offsets[middle] < goal) low = middle + 1;
    else high = middle;
  }
  return low;
}

static void choose_batch(screen_run *run, int which, int64_t rows, const sae_cpu_ops *ops) {
  screen_survivors *list = &run->job.lists[which];
  const sl_sae_encode_topk_args *args = run->job.args;
  const sl_codes_view *codes = which == 0 ? &args->codes : &args->dead_codes;
  index_survivors(run, list, rows);
#pragma omp parallel for schedule(static, 1) num_threads((int)run->threads)
  for (int64_t share = 0; share < run->threads; share++)
    ops->rescore_range(&run->job, list, share_start(list, args->m, share, run->threads),
                       share_start(list, args->m, share + 1, run->threads));
#pragma omp parallel for schedule(static) num_threads((int)run->threads)
  for (int64_t r = 0; r < rows; r++)
    if (!run->job.refused[r]) ops->choose_row(&run->job, list, codes, r);
}

/* -- The refused -- */

/* Float32 panels of some tokens, from the slabs. */
static void gather_panels(const sl_sae_encode_topk_args *args, const int32_t *rows, int64_t tokens,
                          int64_t width, float *panels) {
  int64_t d = args->d, slab = slab_width(d);
  for (int64_t group = 0; group < tokens; group += width, panels += d * width) {
    for (int64_t t = 0; t < width; t++) {
      for (int64_t j = 0; j < d; j++) {
        const float *x = args->slabs + (j / slab * args->n + (group + t < tokens ? rows[group + t] : 0)) * slab;
        panels[j * width + t] = group + t < tokens ? x[j % slab] : 0;
      }
    }
  }
}

static void encode_refused(screen_run *run, int64_t rows, const sae_cpu_ops *ops) {
  const sl_sae_encode_topk_args *args = run->job.args;
  int64_t n = 0, tile = run->plain.tile_tokens;
  for (int64_t r = 0; r < rows; r++)
    if (run->job.refused[r]) run->refused_rows[n++] = (int32_t)(run->job.first + r);
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)run->threads)
  for (int64_t first = 0; first < n; first += tile) {
    int64_t tokens = slk_min(tile, n - first);
    char *scratch = run->scratch + (size_t)omp_get_thread_num() * run->share;
    sl_sae_encode_topk_args some = *args;
    some.panels = cut(&scratch, (size_t)(tile * args->d) * sizeof(float));
    some.n = tokens;
    gather_panels(args, run->refused_rows + first, tokens, ops->panel_tokens, (float *)some.panels);
    encode_job job = run->plain;
    job.args = &some;
    job.rows = run->refused_rows + first;
    ops->encode_tile(&job, 0, tokens, scratch);
  }
}

sl_status sae_cpu_encode_screened(const sl_sae_encode_topk_args *args, const sae_cpu_ops *ops) {
  screen_run run = plan(args, ops);
  size_t want = (size_t)(uintptr_t)(void *)lay_out(&run, NULL, ops) + 64;
  if (args->need) {
    *args->need = want;
    return SL_OK;
  }
  if (args->workspace_bytes < want)
    return sl_fail(SL_EINVAL, "sae_encode_topk: a workspace of %zu bytes, %zu are needed with w_screen",
                   args->workspace_bytes, want);
  lay_out(&run, (char *)args->workspace + (64 - (uintptr_t)args->workspace % 64) % 64, ops);
  run.job.panels = panels_at(args->panels, ops, args->n, args->d);
  bound_weights(&run, ops);
  for (int64_t first = 0; first < args->n; first += run.batch) {
    int64_t rows = slk_min(run.batch, args->n - first);
    run.job.first = first;
    screen_batch(&run, rows, ops);
    for (int i = 0; i < run.job.n_lists; i++) choose_batch(&run, i, rows, ops);
    encode_refused(&run, rows, ops);
  }
  sae_cpu_close_gaps(&args->codes, args->k);
  if (args->dead) sae_cpu_close_gaps(&args->dead_codes, args->k_dead);
  return SL_OK;
}
