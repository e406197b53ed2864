/* Screening: a bf16 product bounds every pre-activation from both sides; what may be among the k largest is
 * then computed in float32, in the order of product_f32, so that the bits are those of the float32 encode.
 * The bound and its proof: docs/decisions/013-bf16-screening.md. Here are the inner loops; sae_screen.c owns
 * threads, memory and the tokens that are refused. */

/* -- Bounds -- */

/* The largest norms of a block of latents. Values that are not finite make the result NaN or infinite. */
static void bound_block(const sl_sae_encode_topk_args *args, int64_t latent, int64_t rows, screen_bounds *out) {
  int64_t d = args->d;
  float weights = 0, rests = 0, biases = 0, poison = 0;
  for (int64_t i = latent; i < latent + rows; i++) {
    const float *w = (const float *)args->w + i * d;
    const uint16_t *s = args->w_screen + i * d;
    __m512 squares = _mm512_setzero_ps(), rest_squares = _mm512_setzero_ps();
    for (int64_t j = 0; j < d; j += 16) {
      __mmask16 valid = (__mmask16)(d - j >= 16 ? 0xffff : (1 << (d - j)) - 1);
      __m512 v = _mm512_maskz_loadu_ps(valid, w + j);
      __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(valid, s + j));
      __m512 rest = _mm512_sub_ps(v, _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)));
      squares = _mm512_fmadd_ps(v, v, squares);
      rest_squares = _mm512_fmadd_ps(rest, rest, rest_squares);
    }
    float square = _mm512_reduce_add_ps(squares), rest_square = _mm512_reduce_add_ps(rest_squares);
    float bias = args->bias ? fabsf(args->bias[i]) : 0;
    weights = square > weights ? square : weights;
    rests = rest_square > rests ? rest_square : rests;
    biases = bias > biases ? bias : biases;
    poison += 0 * square + 0 * rest_square + 0 * bias;
  }
  *out = (screen_bounds){ .weight = screen_norm(weights, d) + poison, .rest = screen_norm(rests, d) + poison,
                          .bias = 2 * screen_rounding(d) * SCREEN_SLACK * biases };
}

/* -- The screen -- */

/* Entries of a tile's tokens: low <= pre-activation <= high; `floor` lies at or below the k-th largest. */
typedef struct {
  int64_t k, capacity;
  float *floor, *low, *high;     /* [tokens], [tokens, capacity] twice */
  int32_t *ids, *count;          /* [tokens, capacity], [tokens] */
} screen_list;

/* Raises the floor until at most `limit` entries lie surely above it (or no higher floor is sure), and drops what
 * lies surely below. */
static void screen_shrink(screen_list *list, int64_t token, int32_t limit) {
  float *low = list->low + token * list->capacity, *high = list->high + token * list->capacity;
  int32_t *ids = list->ids + token * list->capacity;
  int32_t n = list->count[token], k = (int32_t)list->k, kept = 0;
  int32_t above = count_above(low, n, list->floor[token]);
  int32_t bottom = to_bits(list->floor[token]), top = to_bits(largest(low, n));
  for (int round = 0; above > limit && top - bottom > 1; round++) {
    int32_t middle = bottom + (top - bottom) / 2;
    if (round < 8) { /* near-linear at first, as in shrink */
      int32_t guess = to_bits(0.5f * (from_bits(bottom) + from_bits(top)));
      if (guess > bottom && guess < top) middle = guess;
    }
    int32_t found = count_above(low, n, from_bits(middle));
    if (found >= k) {
      bottom = middle;
      above = found;
    } else {
      top = middle;
    }
  }
  list->floor[token] = from_bits(bottom);
  __m512 floor = _mm512_set1_ps(list->floor[token]);
  for (int32_t i = 0; i < n; i += 16) { /* no store leaves the buffer: see keep_above */
    __mmask16 valid = (__mmask16)(n - i >= 16 ? 0xffff : (1 << (n - i)) - 1);
    __m512 l = _mm512_loadu_ps(low + i), h = _mm512_loadu_ps(high + i);
    __m512i id = _mm512_loadu_si512(ids + i);
    __mmask16 mask = _mm512_mask_cmp_ps_mask(valid, h, floor, _CMP_GE_OQ);
    _mm512_storeu_ps(low + kept, _mm512_maskz_compress_ps(mask, l));
    _mm512_storeu_ps(high + kept, _mm512_maskz_compress_ps(mask, h));
    _mm512_storeu_si512(ids + kept, _mm512_maskz_compress_epi32(mask, id));
    kept += __builtin_popcount(mask);
  }
  list->count[token] = kept;
}

/* No candidate passes any more; the token is encoded without a screen. */
static void screen_refuse(const screen_job *job, screen_list *lists, int64_t row, int64_t token) {
  job->refused[row] = 1;
  for (int i = 0; i < job->n_lists; i++) {
    lists[i].floor[token] = INFINITY;
    lists[i].count[token] = 0;
  }
}

/* Makes room in the lists of a panel that have no place for another block. */
static void screen_make_room(const screen_job *job, screen_list *lists, int which, int64_t row, int64_t token) {
  screen_list *list = &lists[which];
  int32_t k = (int32_t)list->k, full = (int32_t)list->capacity - ROWS;
  for (int64_t t = token; t < token + PANEL; t++) {
    if (list->count[t] <= full) continue;
    screen_shrink(list, t, k + k / 8);
    if (list->count[t] > full - full / 16) screen_refuse(job, lists, row + t, t);
  }
}

/* Appends what may beat the floors of the panel's tokens; returns whether some list may be full. `e` bounds the
 * error of each token. */
INLINE bool screen_scan(vf acc[ROWS][2], const float *e, screen_list *list, int64_t token, int64_t latent,
                        unsigned wanted) {
  float hit_values[ROWS * PANEL + LANES];
  int32_t hit_codes[ROWS * PANEL + LANES];
  int hits = 0;
  int32_t *count = list->count + token;
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512 t0 = _mm512_sub_ps(_mm512_loadu_ps(list->floor + token), _mm512_loadu_ps(e));
  __m512 t1 = _mm512_sub_ps(_mm512_loadu_ps(list->floor + token + 16), _mm512_loadu_ps(e + 16));
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; r++) {
    __mmask16 m0 = _mm512_cmp_ps_mask((__m512)acc[r][0], t0, _CMP_GE_OQ);
    __mmask16 m1 = _mm512_cmp_ps_mask((__m512)acc[r][1], t1, _CMP_GE_OQ);
    if (!(m0 | m1) || !(wanted >> r & 1)) continue;
    _mm512_storeu_ps(hit_values + hits, _mm512_maskz_compress_ps(m0, (__m512)acc[r][0]));
    _mm512_storeu_si512(hit_codes + hits, _mm512_maskz_compress_epi32(
                                              m0, _mm512_add_epi32(lane, _mm512_set1_epi32(r * PANEL))));
    hits += __builtin_popcount(m0);
    _mm512_storeu_ps(hit_values + hits, _mm512_maskz_compress_ps(m1, (__m512)acc[r][1]));
    _mm512_storeu_si512(hit_codes + hits, _mm512_maskz_compress_epi32(
                                              m1, _mm512_add_epi32(lane, _mm512_set1_epi32(r * PANEL + 16))));
    hits += __builtin_popcount(m1);
  }
  if (hits == 0) return false;
  int32_t full = (int32_t)list->capacity - ROWS;
  bool over = false;
  for (int h = 0; h < hits; h++) {
    int32_t t = hit_codes[h] % PANEL, c = count[t]++;
    int64_t at = (token + t) * list->capacity + c;
    list->low[at] = hit_values[h] - e[t];
    list->high[at] = hit_values[h] + e[t];
    list->ids[at] = (int32_t)latent + hit_codes[h] / PANEL;
    over |= c >= full;
  }
  return over;
}

static void screen_cut_lists(const screen_job *job, int64_t first, int64_t tokens, char **scratch,
                             screen_list lists[SCREEN_LISTS]) {
  for (int i = 0; i < job->n_lists; i++) {
    screen_list *list = &lists[i];
    size_t n = (size_t)job->tile_tokens, entries = n * (size_t)job->lists[i].capacity;
    *list = (screen_list){ .k = job->lists[i].k, .capacity = job->lists[i].capacity };
    list->floor = cut(scratch, n * 4);
    list->count = cut(scratch, n * 4);
    list->low = cut(scratch, entries * 4);
    list->high = cut(scratch, entries * 4);
    list->ids = cut(scratch, entries * 4);
    memset(list->count, 0, n * 4);
    for (int64_t t = 0; t < job->tile_tokens; t++) list->floor[t] = t < tokens ? 0 : INFINITY;
  }
  const float *size = job->panels.size + first;
  for (int64_t t = 0; t < tokens; t++)
    if (!(size[t] * job->largest + job->offset < SCREEN_MOST))
      screen_refuse(job, lists, first - job->first + t, t);
}

/* Leaves what may be chosen, if there is room for it. */
static void screen_finish_tile(const screen_job *job, screen_list *lists, int64_t row, int64_t tokens) {
  for (int64_t t = 0; t < tokens; t++) {
    for (int i = 0; i < job->n_lists; i++) {
      if (lists[i].count[t] > lists[i].k) screen_shrink(&lists[i], t, (int32_t)lists[i].k);
      if (lists[i].count[t] > job->lists[i].room) screen_refuse(job, lists, row + t, t);
    }
    for (int i = 0; i < job->n_lists; i++) {
      const screen_survivors *out = &job->lists[i];
      int32_t n = job->refused[row + t] ? 0 : lists[i].count[t];
      out->count[row + t] = n;
      memcpy(out->ids + (row + t) * out->room, lists[i].ids + t * lists[i].capacity, (size_t)n * sizeof *out->ids);
    }
  }
}

__attribute__((target("avx512bf16"))) static void screen_tile(const screen_job *job, int64_t first,
                                                              int64_t tokens, char *scratch) {
  const sl_sae_encode_topk_args *args = job->args;
  const int64_t d = args->d, stride = PANEL * ((d + 1) / 2), panels = (tokens + PANEL - 1) / PANEL;
  const int32_t *tile_panels = (const int32_t *)(const void *)job->panels.pairs + first / PANEL * stride;
  screen_list lists[SCREEN_LISTS];
  uint16_t *block = cut(&scratch, (size_t)round_up(d, 32) * 2 * ROWS);
  screen_cut_lists(job, first, tokens, &scratch, lists);
  for (int64_t latent = 0; latent < args->m; latent += ROWS) {
    int64_t rows = args->m - latent < ROWS ? args->m - latent : ROWS;
    const uint16_t *w = args->w_screen + latent * d;
    copy_block_pairs(w, d, rows, block);
    int64_t after = args->m - latent - rows < ROWS ? args->m - latent - rows : ROWS;
    float bias[ROWS] = {0};
    if (args->bias) memcpy(bias, args->bias + latent, (size_t)rows * sizeof *bias);
    unsigned exists = (1u << rows) - 1, dead = 0; /* zero bounds do not keep missing rows out: 0 >= 0 */
    for (int64_t r = 0; args->dead && r < rows; r++) dead |= (unsigned)(args->dead[latent + r] != 0) << r;
    const screen_bounds *bounds = &job->bounds[latent / ROWS];
    for (int64_t p = 0; p < panels; p++) {
      prefetch_part((const char *)(w + rows * d), (size_t)(after * d) * sizeof *w, p, panels);
      vf acc[ROWS][2];
      for (int r = 0; r < ROWS; r++) acc[r][0] = acc[r][1] = splat(bias[r]);
      PRODUCT_BF16(tile_panels + p * stride, block, d, acc);
      const float *along = job->panels.along + first + p * PANEL, *across = job->panels.across + first + p * PANEL;
      float e[PANEL];
      for (int l = 0; l < PANEL; l += LANES)
        store(e + l, load(along + l) * bounds->weight + load(across + l) * bounds->rest + bounds->bias);
      int64_t row = first - job->first;
      if (screen_scan(acc, e, &lists[0], p * PANEL, latent, exists))
        screen_make_room(job, lists, 0, row, p * PANEL);
      if (dead && screen_scan(acc, e, &lists[1], p * PANEL, latent, dead))
        screen_make_room(job, lists, 1, row, p * PANEL);
    }
  }
  screen_finish_tile(job, lists, first - job->first, tokens);
}

/* -- Rescoring -- */

/* Up to LANES tokens of a latent. */
typedef struct {
  int32_t starts[LANES];         /* of the tokens' rows on the slab; what lanes beyond the last compute is dropped */
  const float *w;
  float *sums;
  __mmask16 valid;
} rescore_unit;

/* Eight inputs of 16 tokens, lanes being tokens: 4 x 4 transposes in the quarters of a register, whose quarters
 * are then exchanged. Blends where they do: they have twice as many units as shuffles. */
INLINE void transpose8(const float *slab, const int32_t *starts, __m512 out[8]) {
  __m512 quads[2][4];
#pragma GCC unroll 2
  for (int h = 0; h < 2; h++) {
    __m512 a[4];
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++)
      a[t] = _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(slab + starts[8 * h + t])),
                                _mm256_loadu_ps(slab + starts[8 * h + t + 4]), 1);
    __m512 low01 = _mm512_unpacklo_ps(a[0], a[1]), high01 = _mm512_unpackhi_ps(a[0], a[1]);
    __m512 low23 = _mm512_unpacklo_ps(a[2], a[3]), high23 = _mm512_unpackhi_ps(a[2], a[3]);
    __m512 low = _mm512_shuffle_ps(low01, low23, 0x4e), high = _mm512_shuffle_ps(high01, high23, 0x4e);
    __asm__("" : "+v"(low), "+v"(high)); /* or the compiler makes shuffles of the blends */
    quads[h][0] = _mm512_mask_blend_ps(0xcccc, low01, low);
    quads[h][1] = _mm512_mask_blend_ps(0xcccc, low, low23);
    quads[h][2] = _mm512_mask_blend_ps(0xcccc, high01, high);
    quads[h][3] = _mm512_mask_blend_ps(0xcccc, high, high23);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    out[c] = _mm512_shuffle_f32x4(quads[0][c], quads[1][c], 0x88);
    out[c + 4] = _mm512_shuffle_f32x4(quads[0][c], quads[1][c], 0xdd);
  }
}

/* sum[t] = fma(x_t[j], w[j], sum[t]) for eight j in order: the order of product_f32. */
INLINE __m512 rescore_eight(const rescore_unit *unit, const float *slab, int64_t j, __m512 sum) {
  __m512 x[8];
  transpose8(slab + j, unit->starts, x);
#pragma GCC unroll 8
  for (int q = 0; q < 8; q++) sum = _mm512_fmadd_ps(x[q], _mm512_set1_ps(unit->w[j + q]), sum);
  return sum;
}

/* Every operation waits for the one before, so two units go together. */
INLINE void rescore_pair(const rescore_unit *a, const rescore_unit *b, const float *slab, int64_t width) {
  __m512 sum_a = _mm512_maskz_loadu_ps(a->valid, a->sums), sum_b = _mm512_maskz_loadu_ps(b->valid, b->sums);
  for (int64_t j = 0; j < width; j += 8) {
    __asm__ volatile("" ::: "memory"); /* 32 pointers in registers would push the sums out */
    sum_a = rescore_eight(a, slab, j, sum_a);
    sum_b = rescore_eight(b, slab, j, sum_b);
  }
  _mm512_mask_storeu_ps(a->sums, a->valid, sum_a);
  _mm512_mask_storeu_ps(b->sums, b->valid, sum_b);
}

/* The latents first .. last - 1 on one slab, whose rows begin at `slab`. */
INLINE void rescore_slab(const screen_job *job, const screen_survivors *list, int64_t first, int64_t last,
                         const float *slab, int64_t column, const int64_t width) {
  enum { AHEAD = 12 };
  const float *w = job->args->w;
  int64_t d = job->args->d;
  float copies[2][SLAB_MAX];
  rescore_unit units[2] = {0};
  int n = 0, turn = 0;
  for (int64_t i = first; i < last; i++) {
    if (i + AHEAD < last) prefetch_row(w + (i + AHEAD) * d + column, (int)(width / LANES));
    int64_t p = list->offsets[i], end = list->offsets[i + 1];
    if (p == end) continue;
    /* at most one unit waits, of the latent that came before: it keeps its copy */
    const float *piece = row_piece(w + i * d + column, d - column, width, copies[turn]);
    turn = 1 - turn;
    for (; p < end; p += LANES) {
      __m512i tokens = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u *)(list->tokens + p)));
      _mm512_storeu_si512(units[n].starts, _mm512_mullo_epi32(tokens, _mm512_set1_epi32((int)width)));
      units[n].w = piece;
      units[n].sums = list->sums + p;
      units[n].valid = (__mmask16)(end - p < LANES ? (1u << (end - p)) - 1 : 0xffff);
      n = 1 - n;
      if (n == 0) rescore_pair(&units[0], &units[1], slab, width);
    }
  }
  if (n == 0) return;
  units[1] = units[0];
  units[1].valid = 0;
  rescore_pair(&units[0], &units[1], slab, width);
}

/* Float32 pre-activations of the survivors of latents first .. last - 1, slab by slab. */
static void rescore_range(const screen_job *job, const screen_survivors *list, int64_t first, int64_t last) {
  const sl_sae_encode_topk_args *args = job->args;
  int64_t d = args->d, width = slab_width(d);
  for (int64_t i = first; i < last; i++)
    for (int64_t p = list->offsets[i]; p < list->offsets[i + 1]; p++) list->sums[p] = args->bias ? args->bias[i] : 0;
  for (int64_t s = 0; s < slab_count(d); s++) {
    const float *slab = args->slabs + (s * args->n + job->first) * width;
    if (width == 48) rescore_slab(job, list, first, last, slab, s * width, 48);
    else if (width == 32) rescore_slab(job, list, first, last, slab, s * width, 32);
    else rescore_slab(job, list, first, last, slab, s * width, 16);
  }
}

/* The k largest positive survivors of a row of the batch. */
static void choose_row(const screen_job *job, const screen_survivors *list, const sl_codes_view *codes,
                       int64_t row) {
  float threshold = 0;
  token_lists lists = { .k = list->k, .capacity = list->room, .values = list->values + row * list->room,
                        .ids = list->ids + row * list->room, .threshold = &threshold, .count = list->count + row };
  for (int32_t i = 0; i < *lists.count; i++) {
    int32_t at;
    memcpy(&at, &lists.values[i], sizeof at);
    lists.values[i] = list->sums[at];
  }
  *lists.count = keep_above(lists.values, lists.ids, *lists.count, 0, 0);
  finish_token(&lists, 0, codes, job->first + row);
}
