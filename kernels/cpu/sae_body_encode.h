/* Encoder product and selection in one: a block of latents against a panel of tokens stays in registers, and
 * only what beats a token's running threshold leaves them. Loop order: tile of tokens (its panels stay in the
 * second-level cache), block of latents (copied to scratch: padded, free of cache-set collisions, next one
 * prefetched), panel. */

/* Row pieces of CHUNK elements: [chunk][row][CHUNK], so that the product walks one stream. */
static void copy_block_f32(const float *w, int64_t d, int64_t rows, float *block) {
  for (int64_t c = 0; c < d; c += CHUNK) {
    int64_t valid = d - c < CHUNK ? d - c : CHUNK;
    for (int64_t r = 0; r < ROWS; r++, block += CHUNK) {
      if (r < rows && valid == CHUNK) {
        memcpy(block, w + r * d + c, CHUNK * sizeof *block);
      } else {
        for (int64_t j = 0; j < CHUNK; j++) block[j] = r < rows && j < valid ? w[r * d + c + j] : 0;
      }
    }
  }
}

static void copy_block_widened(const uint16_t *w, int64_t d, int64_t rows, float *block) {
  for (int64_t c = 0; c < d; c += CHUNK)
    for (int64_t r = 0; r < ROWS; r++, block += CHUNK)
      for (int64_t j = 0; j < CHUNK; j++)
        block[j] = r < rows && c + j < d ? sl_bf16_to_f32(w[r * d + c + j]) : 0;
}

INLINE void product_f32(const float *panel, const float *block, int64_t d, vf acc[ROWS][2]) {
  for (int64_t c = 0; c < d; c += CHUNK, block += ROWS * CHUNK) {
    int64_t valid = d - c < CHUNK ? d - c : CHUNK;
    for (int64_t q = 0; q < valid; q++, panel += PANEL) {
      vf x0 = load(panel), x1 = load(panel + LANES);
#pragma GCC unroll 12
      for (int r = 0; r < ROWS; r++) {
        float b = block[r * CHUNK + q];
        acc[r][0] += x0 * b;
        acc[r][1] += x1 * b;
      }
    }
  }
}

#if SAE_NATIVE_BF16
/* The same with pairs of bf16 in place of floats. */
static void copy_block_pairs(const uint16_t *w, int64_t d, int64_t rows, uint16_t *block) {
  for (int64_t c = 0; c < d; c += 2 * CHUNK) {
    int64_t valid = d - c < 2 * CHUNK ? d - c : 2 * CHUNK;
    for (int64_t r = 0; r < ROWS; r++, block += 2 * CHUNK) {
      if (r < rows && valid == 2 * CHUNK) {
        memcpy(block, w + r * d + c, 2 * CHUNK * sizeof *block);
      } else {
        for (int64_t j = 0; j < 2 * CHUNK; j++) block[j] = r < rows && j < valid ? w[r * d + c + j] : 0;
      }
    }
  }
}

/* Inlined into the tile loop, which carries the target attribute itself. */
#define PRODUCT_BF16(panel, block, d, acc)                                                          \
  do {                                                                                              \
    const int32_t *pairs_ = (const int32_t *)(block);                                               \
    const int32_t *panel_ = (const int32_t *)(panel);                                               \
    int64_t n_pairs_ = ((d) + 1) / 2;                                                               \
    for (int64_t c_ = 0; c_ < n_pairs_; c_ += CHUNK, pairs_ += ROWS * CHUNK) {                      \
      int64_t valid_ = n_pairs_ - c_ < CHUNK ? n_pairs_ - c_ : CHUNK;                               \
      for (int64_t q_ = 0; q_ < valid_; q_++, panel_ += PANEL) {                                    \
        __m512bh x0_ = (__m512bh)_mm512_loadu_si512(panel_);                                        \
        __m512bh x1_ = (__m512bh)_mm512_loadu_si512(panel_ + LANES);                                \
        _Pragma("GCC unroll 12") for (int r_ = 0; r_ < ROWS; r_++) {                                \
          __m512bh b_ = (__m512bh)_mm512_set1_epi32(pairs_[r_ * CHUNK + q_]);                       \
          acc[r_][0] = (vf)_mm512_dpbf16_ps((__m512)acc[r_][0], x0_, b_);                           \
          acc[r_][1] = (vf)_mm512_dpbf16_ps((__m512)acc[r_][1], x1_, b_);                           \
        }                                                                                           \
      }                                                                                             \
    }                                                                                               \
  } while (0)
#endif

/* Appends what beats the thresholds of the panel's tokens (the first is `token`) and the floors of the rows; rows in
 * `wanted` only. */
INLINE void scan(vf acc[ROWS][2], token_lists *lists, int64_t token, int64_t latent, unsigned wanted,
                 const float floor[ROWS]) {
  float *threshold = lists->threshold + token;
  int32_t *count = lists->count + token;
#if SAE_LANES == 16 && defined(__AVX512F__)
  /* Compressed in registers and stored whole: a compressing store is slow on some processors. */
  float hit_values[ROWS * PANEL + LANES];
  int32_t hit_codes[ROWS * PANEL + LANES];
  int hits = 0;
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512 t0 = _mm512_loadu_ps(threshold), t1 = _mm512_loadu_ps(threshold + 16);
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; r++) {
    __m512 low = _mm512_set1_ps(floor[r]);
    __mmask16 m0 = _mm512_cmp_ps_mask((__m512)acc[r][0], _mm512_max_ps(t0, low), _CMP_GT_OQ);
    __mmask16 m1 = _mm512_cmp_ps_mask((__m512)acc[r][1], _mm512_max_ps(t1, low), _CMP_GT_OQ);
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
  for (int h = 0; h < hits; h++) {
    int32_t t = hit_codes[h] % PANEL;
    int64_t at = (token + t) * lists->capacity + count[t]++;
    lists->values[at] = hit_values[h];
    lists->ids[at] = (int32_t)latent + hit_codes[h] / PANEL;
  }
#else
  int hits = 0;
  vf t0 = load(threshold), t1 = load(threshold + LANES);
  for (int r = 0; r < ROWS; r++) {
    unsigned mask = lanes_above(acc[r][0], t0) | lanes_above(acc[r][1], t1) << LANES;
    if (mask == 0 || !(wanted >> r & 1)) continue;
    float row[PANEL];
    store(row, acc[r][0]);
    store(row + LANES, acc[r][1]);
    for (; mask != 0; mask &= mask - 1) {
      int t = __builtin_ctz(mask);
      if (!(row[t] > floor[r])) continue;
      int64_t at = (token + t) * lists->capacity + count[t]++;
      lists->values[at] = row[t];
      lists->ids[at] = (int32_t)latent + r;
      hits++;
    }
  }
#endif
  if (hits == 0) return;
  int32_t full = (int32_t)lists->capacity - ROWS, over = 0;
  for (int t = 0; t < PANEL; t++) over |= count[t] > full;
  if (!over) return;
  for (int t = 0; t < PANEL; t++)
    if (count[t] > full) shrink_token(lists, token + t);
}

/* A tile's working memory, cut from scratch. */
typedef struct {
  void *block;                   /* ROWS latents */
  float *poison;                 /* [tokens]: becomes NaN once a pre-activation is not finite */
  token_lists live, dead;
} tile_state;

static void *cut(char **scratch, size_t bytes) {
  void *piece = *scratch;
  *scratch += (bytes + 63) / 64 * 64;
  return piece;
}

static void cut_lists(char **scratch, token_lists *lists, int64_t k, int64_t capacity, int64_t tile,
                      int64_t tokens) {
  size_t n = (size_t)tile, entries = (size_t)(tile * capacity);
  lists->k = k;
  lists->capacity = capacity;
  lists->threshold = cut(scratch, n * 4);
  lists->count = cut(scratch, n * 4);
  lists->values = cut(scratch, entries * 4);
  lists->ids = cut(scratch, entries * 4);
  lists->best = NULL;
  memset(lists->count, 0, n * 4);
  for (int64_t t = 0; t < tile; t++) lists->threshold[t] = t < tokens ? 0 : INFINITY; /* padding never hits */
}

static tile_state cut_tile(const encode_job *job, int64_t tokens, char *scratch) {
  const sl_sae_encode_topk_args *args = job->args;
  tile_state tile = {0};
  tile.block = cut(&scratch, (size_t)round_up(args->d, 32) * 4 * ROWS);
  tile.poison = cut(&scratch, (size_t)job->tile_tokens * 4);
  memset(tile.poison, 0, (size_t)job->tile_tokens * 4);
  cut_lists(&scratch, &tile.live, args->k, job->capacity, job->tile_tokens, tokens);
  if (job->rule.group) tile.live.best = cut(&scratch, (size_t)job->tile_tokens * 4);
  if (args->dead) cut_lists(&scratch, &tile.dead, args->k_dead, job->dead_capacity, job->tile_tokens, tokens);
  return tile;
}

static void finish_tile(const encode_job *job, tile_state *tile, int64_t first, int64_t tokens) {
  for (int64_t t = 0; t < tokens; t++) {
    if (job->rule.overflow && (tile->live.threshold[t] > 0 || tile->live.count[t] > tile->live.k)) {
#pragma omp atomic
      ++*job->rule.overflow;
    }
    int64_t row = job->rows ? job->rows[first + t] : first + t;
    finish_token(&tile->live, t, &job->args->codes, row);
    if (job->args->dead) finish_token(&tile->dead, t, &job->args->dead_codes, row);
    if (tile->poison[t] != 0) {
#pragma omp atomic
      ++*job->args->nonfinite;
    }
  }
}

/* Asks for a piece of the next block, so that all of it has come when its turn is. */
INLINE void prefetch_part(const char *next, size_t bytes, int64_t part, int64_t parts) {
  size_t from = bytes / 64 * (size_t)part / (size_t)parts * 64;
  size_t to = bytes / 64 * (size_t)(part + 1) / (size_t)parts * 64;
  for (size_t at = from; at < to; at += 64) __builtin_prefetch(next + at, 0, 2);
}

static const float no_floor[ROWS] = {0};

/* The tile loop with the product left open; COPY and PRODUCT see `w`, `rows`, `tile.block`, `panel`, `acc`.
 */
#define TILE_LOOP(ELEMENT, PANEL_STRIDE, COPY, PRODUCT)                                                 \
  const sl_sae_encode_topk_args *args = job->args;                                                      \
  tile_state tile = cut_tile(job, tokens, scratch);                                                     \
  const int64_t d = args->d, panels = (tokens + PANEL - 1) / PANEL;                                     \
  const float *tile_panels = (const float *)args->panels + first / PANEL * (PANEL_STRIDE);              \
  for (int64_t latent = 0; latent < args->m; latent += ROWS) {                                          \
    int64_t rows = args->m - latent < ROWS ? args->m - latent : ROWS;                                   \
    const ELEMENT *w = (const ELEMENT *)args->w + latent * d;                                           \
    COPY;                                                                                               \
    int64_t after = args->m - latent - rows < ROWS ? args->m - latent - rows : ROWS;                    \
    size_t next_bytes = (size_t)(after * d) * sizeof(ELEMENT);                                          \
    float bias[ROWS] = {0}, floor[ROWS] = {0};                                                          \
    if (args->bias) memcpy(bias, args->bias + latent, (size_t)rows * sizeof *bias);                     \
    if (job->rule.floor) memcpy(floor, job->rule.floor + latent, (size_t)rows * sizeof *floor);         \
    unsigned dead = 0;                                                                                  \
    for (int64_t r = 0; args->dead && r < rows; r++) dead |= (unsigned)(args->dead[latent + r] != 0) << r; \
    for (int64_t p = 0; p < panels; p++) {                                                              \
      const float *panel = tile_panels + p * (PANEL_STRIDE);                                            \
      prefetch_part((const char *)(w + rows * d), next_bytes, p, panels);                               \
      vf acc[ROWS][2];                                                                                  \
      for (int r = 0; r < ROWS; r++) acc[r][0] = acc[r][1] = splat(bias[r]);                            \
      PRODUCT;                                                                                          \
      vf bad0 = load(tile.poison + p * PANEL), bad1 = load(tile.poison + p * PANEL + LANES);            \
      for (int r = 0; r < ROWS; r++) bad0 += acc[r][0] * 0.0f, bad1 += acc[r][1] * 0.0f;                \
      store(tile.poison + p * PANEL, bad0);                                                             \
      store(tile.poison + p * PANEL + LANES, bad1);                                                     \
      if (job->rule.group) scan_groups(acc, &tile.live, p * PANEL, latent, rows, job->rule.group);      \
      else scan(acc, &tile.live, p * PANEL, latent, ~0u, floor);                                        \
      if (dead) scan(acc, &tile.dead, p * PANEL, latent, dead, no_floor);                               \
    }                                                                                                   \
  }                                                                                                     \
  finish_tile(job, &tile, first, tokens)

static void encode_tile_f32(const encode_job *job, int64_t first, int64_t tokens, char *scratch) {
  TILE_LOOP(float, PANEL * d, copy_block_f32(w, d, rows, tile.block), product_f32(panel, tile.block, d, acc));
}

/* bf16 weights widened on the way: panels are float32, already rounded. */
static void encode_tile_widened(const encode_job *job, int64_t first, int64_t tokens, char *scratch) {
  TILE_LOOP(uint16_t, PANEL * d, copy_block_widened(w, d, rows, tile.block),
            product_f32(panel, tile.block, d, acc));
}

static void encode_tile(const encode_job *job, int64_t first, int64_t tokens, char *scratch) {
  if (job->args->dtype == SL_F32) {
    encode_tile_f32(job, first, tokens, scratch);
  } else {
    encode_tile_widened(job, first, tokens, scratch);
  }
}

#if SAE_NATIVE_BF16
__attribute__((target("avx512bf16"))) static void encode_tile_pairs(const encode_job *job, int64_t first,
                                                                    int64_t tokens, char *scratch) {
  TILE_LOOP(uint16_t, PANEL * ((d + 1) / 2), copy_block_pairs(w, d, rows, tile.block),
            PRODUCT_BF16(panel, tile.block, d, acc));
}

static void encode_tile_bf16(const encode_job *job, int64_t first, int64_t tokens, char *scratch) {
  if (job->args->dtype == SL_F32) {
    encode_tile_f32(job, first, tokens, scratch);
  } else {
    encode_tile_pairs(job, first, tokens, scratch);
  }
}
#endif
