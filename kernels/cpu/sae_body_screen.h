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

enum { GROUP = 8 };              /* tokens at a time */

/* Transposes 8 rows of 8 floats. */
INLINE void transpose8(__m256 r[GROUP]) {
  __m256 a[GROUP], b[GROUP];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    a[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    a[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    b[4 * i] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44);
    b[4 * i + 1] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0xee);
    b[4 * i + 2] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44);
    b[4 * i + 3] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}

/* sums[t] = fma(x_t[j], w[j], sums[t]) for j in order, t < GROUP * n: the order of product_f32. */
INLINE void rescore_groups(const float *const *rows, const float *w, int64_t width, __m256 *sums, const int n) {
  for (int64_t j = 0; j < width; j += GROUP) {
#pragma GCC unroll 2
    for (int g = 0; g < n; g++) {
      __m256 x[GROUP];
#pragma GCC unroll 8
      for (int t = 0; t < GROUP; t++) x[t] = _mm256_loadu_ps(rows[g * GROUP + t] + j);
      transpose8(x);
#pragma GCC unroll 8
      for (int t = 0; t < GROUP; t++) sums[g] = _mm256_fmadd_ps(x[t], _mm256_set1_ps(w[j + t]), sums[g]);
    }
  }
}

/* One latent on one slab; entries begin .. end - 1. Sums wait for each other, so several groups go together. */
INLINE void rescore_latent(const screen_survivors *list, const float *slab, int64_t width, const float *w,
                           int64_t begin, int64_t end) {
  enum { MOST = 2 };
  for (int64_t p = begin; p < end;) {
    const float *rows[MOST * GROUP];
    __m256 sums[MOST];
    int64_t left = end - p, many = (left + GROUP - 1) / GROUP;
    if (many > MOST) many = MOST;
    int64_t taken = left < many * GROUP ? left : many * GROUP;
    for (int64_t t = 0; t < many * GROUP; t++)
      rows[t] = slab + (int64_t)list->tokens[p + (t < taken ? t : 0)] * width;
    uint32_t valid = (uint32_t)((1ull << taken) - 1);
    for (int64_t g = 0; g < many; g++)
      sums[g] = _mm256_maskz_loadu_ps((__mmask8)(valid >> g * GROUP), list->sums + p + g * GROUP);
    if (many == 2) rescore_groups(rows, w, width, sums, 2);
    else rescore_groups(rows, w, width, sums, 1);
    for (int64_t g = 0; g < many; g++)
      _mm256_mask_storeu_ps(list->sums + p + g * GROUP, (__mmask8)(valid >> g * GROUP), sums[g]);
    p += taken;
  }
}

/* Float32 pre-activations of the survivors of latents first .. last - 1, slab by slab. */
static void rescore_range(const screen_job *job, const screen_survivors *list, int64_t first, int64_t last) {
  enum { AHEAD = 12 };
  const sl_sae_encode_topk_args *args = job->args;
  const float *w = args->w;
  int64_t d = args->d, width = slab_width(d);
  float copy[SLAB_MAX];
  for (int64_t i = first; i < last; i++)
    for (int64_t p = list->offsets[i]; p < list->offsets[i + 1]; p++) list->sums[p] = args->bias ? args->bias[i] : 0;
  for (int64_t slab = 0; slab < slab_count(d); slab++) {
    int64_t column = slab * width;
    const float *rows = args->slabs + (slab * args->n + job->first) * width;
    for (int64_t i = first; i < last; i++) {
      if (i + AHEAD < last) prefetch_row(w + (i + AHEAD) * d + column, (int)(width / LANES));
      if (list->offsets[i] == list->offsets[i + 1]) continue;
      const float *piece = row_piece(w + i * d + column, d - column, width, copy);
      rescore_latent(list, rows, width, piece, list->offsets[i], list->offsets[i + 1]);
    }
  }
  for (int64_t p = list->offsets[first]; p < list->offsets[last]; p++) list->values[list->slots[p]] = list->sums[p];
}

/* The k largest positive survivors of a row of the batch. */
static void choose_row(const screen_job *job, const screen_survivors *list, const sl_codes_view *codes,
                       int64_t row) {
  float threshold = 0;
  token_lists lists = { .k = list->k, .capacity = list->room, .values = list->values + row * list->room,
                        .ids = list->ids + row * list->room, .threshold = &threshold, .count = list->count + row };
  *lists.count = keep_above(lists.values, lists.ids, *lists.count, 0, 0);
  finish_token(&lists, 0, codes, job->first + row);
}
