/* Sweeps over the latents: residual, code gradients, weight gradients. One slab of columns at a time, so that
 * the rows that a latent touches (residual or inputs of its tokens) are in the second-level cache; weights
 * stream past once. */

static void decode_row(const sl_sae_decode_args *args, int64_t row) {
  float *y = args->y + row * args->d;
  for (int64_t j = 0; j < args->d; j++) y[j] = args->b_dec ? args->b_dec[j] : 0;
  for (int64_t p = args->codes.offsets[row]; p < args->codes.offsets[row + 1]; p++) {
    const float *w = args->w_dec + args->codes.ids[p] * args->d;
    float a = args->codes.values[p];
    for (int64_t j = 0; j < args->d; j++) y[j] += a * w[j];
  }
}

INLINE void prefetch_row(const float *row, int nv) {
  for (int j = 0; j < nv * LANES; j += 16) __builtin_prefetch(row + j, 0, 3);
}

/* -- Residual -- */

static void start_slab(const decode_job *job, int64_t slab, float *out) {
  const sl_sae_decode_residual_args *args = job->args;
  int64_t width = slab_width(args->d), column = slab * width;
  int64_t valid = args->d - column < width ? args->d - column : width;
  if (args->target_slabs) {
    memcpy(out, args->target_slabs + slab * args->n * width, (size_t)(args->n * width) * sizeof *out);
    return;
  }
  float bias[SLAB_MAX] = {0};
  for (int64_t j = 0; args->b_dec && j < valid; j++) bias[j] = args->b_dec[column + j];
  for (int64_t t = 0; t < args->n; t++, out += width) {
    const float *x = args->target + t * args->d + column;
    for (int64_t j = 0; j < valid; j++) out[j] = x[j] - bias[j];
    for (int64_t j = valid; j < width; j++) out[j] = 0;
  }
}

INLINE void subtract_codes(const decode_job *job, int64_t slab, float *out, const int nv) {
  enum { AHEAD = 12, NEXT = 12 };  /* latents, entries whose rows are asked for */
  const sl_sae_decode_residual_args *args = job->args;
  int64_t d = args->d, width = nv * LANES, column = slab * width;
  const int64_t *offsets = args->index.offsets;
  const int32_t *tokens = args->index.tokens;
  const float *values = args->index.values;
  float copy[SLAB_MAX];
  int64_t last = offsets[args->m] - 1;
  for (int64_t i = 0; i < args->m; i++) {
    if (i + AHEAD < args->m) prefetch_row(args->w_dec + (i + AHEAD) * d + column, nv);
    if (offsets[i] == offsets[i + 1]) continue;
    const float *row = row_piece(args->w_dec + i * d + column, d - column, width, copy);
    vf w[SLAB_MAX / LANES];
    for (int v = 0; v < nv; v++) w[v] = load(row + v * LANES);
    for (int64_t p = offsets[i]; p < offsets[i + 1]; p++) {
      float *e = out + tokens[p] * width;
      prefetch_row(out + tokens[p + NEXT < last ? p + NEXT : last] * width, nv);
      for (int v = 0; v < nv; v++) store(e + v * LANES, load(e + v * LANES) - values[p] * w[v]);
    }
  }
}

/* Sums over the finished slab: per token (float32 within a slab, float64 later) and per column. */
static void sum_slab(const decode_job *job, int64_t slab, const float *out) {
  enum { STRETCH = 128 }; /* tokens summed in float32 before they go to float64 */
  const sl_sae_decode_residual_args *args = job->args;
  int64_t n = args->n, width = slab_width(args->d), column = slab * width;
  int64_t valid = args->d - column < width ? args->d - column : width;
  double columns[SLAB_MAX] = {0};
  float stretch[SLAB_MAX] = {0};
  for (int64_t t = 0; t < n; t++) {
    const float *e = out + t * width;
    vf squares = {0};
    for (int64_t j = 0; j < width; j += LANES) {
      vf v = load(e + j);
      squares += v * v;
      store(stretch + j, load(stretch + j) + v);
    }
    job->row_squares[slab * n + t] = sum_lanes(squares);
    if ((t + 1) % STRETCH == 0 || t + 1 == n) {
      for (int64_t j = 0; j < width; j++) columns[j] += (double)stretch[j], stretch[j] = 0;
    }
  }
  for (int64_t j = 0; j < valid; j++) args->column_sums[column + j] = columns[j];
  if (!job->row_products) return;
  for (int64_t t = 0; t < n; t++) {
    float copy[SLAB_MAX];
    const float *e = out + t * width;
    const float *x = args->target_slabs ? args->target_slabs + (slab * n + t) * width
                                        : row_piece(args->target + t * args->d + column, valid, width, copy);
    vf products = {0}, targets = {0};
    for (int64_t j = 0; j < width; j += LANES) {
      products += load(x + j) * load(e + j);
      targets += load(x + j) * load(x + j);
    }
    job->row_products[slab * n + t] = sum_lanes(products);
    job->row_targets[slab * n + t] = sum_lanes(targets);
  }
}

static void decode_slab(const decode_job *job, int64_t slab) {
  int64_t width = slab_width(job->args->d);
  float *out = job->args->residual + slab * job->args->n * width;
  start_slab(job, slab, out);
  if (width == 48) subtract_codes(job, slab, out, 48 / LANES);
  else if (width == 32) subtract_codes(job, slab, out, 32 / LANES);
  else subtract_codes(job, slab, out, 16 / LANES);
  sum_slab(job, slab, out);
}

/* -- Gradients -- */

/* Lane sums of 16 vectors, added to sums[0 .. n-1]. */
INLINE void flush_dots(float parts[16][LANES], float *sums, int64_t n) {
#if SAE_LANES == 16 && defined(__AVX512F__)
  __m512 quads[4];
  for (int q = 0; q < 4; q++) { /* four vectors to one: per 128-bit lane the sums of the four */
    __m512 a = _mm512_load_ps(parts[4 * q]), b = _mm512_load_ps(parts[4 * q + 1]);
    __m512 c = _mm512_load_ps(parts[4 * q + 2]), e = _mm512_load_ps(parts[4 * q + 3]);
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 ce = _mm512_add_ps(_mm512_unpacklo_ps(c, e), _mm512_unpackhi_ps(c, e));
    quads[q] = _mm512_add_ps(_mm512_shuffle_ps(ab, ce, 0x44), _mm512_shuffle_ps(ab, ce, 0xee));
  }
  __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88),
                             _mm512_shuffle_f32x4(quads[0], quads[1], 0xdd));
  __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(quads[2], quads[3], 0x88),
                              _mm512_shuffle_f32x4(quads[2], quads[3], 0xdd));
  __m512 all = _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
  __mmask16 valid = (__mmask16)(n >= 16 ? 0xffff : (1 << n) - 1);
  _mm512_mask_storeu_ps(sums, valid, _mm512_add_ps(_mm512_maskz_loadu_ps(valid, sums), all));
#else
  for (int64_t p = 0; p < n; p++) sums[p] += sum_lanes(load(parts[p]));
#endif
}

INLINE void store_gradient(float *g, vf value, bool stream) {
#if SAE_LANES == 16 && defined(__AVX512F__)
  if (stream) {
    _mm512_stream_ps(g, (__m512)value);
    return;
  }
#else
  (void)stream;
#endif
  store(g, value);
}

/* For one slab and a range of latents: g_i (+)= scale * sum coefficient[p] * rows[token[p]], its square sum,
 * and with `weights` also dots[p] += rows[token[p]] . weights[i]. Latents without entries are passed over. */
typedef struct {
  const sl_sae_backward_args *args;
  int64_t first, last, d, slab;
  const float *rows;             /* slabs [n, d] */
  const float *weights;          /* [m, d] or NULL */
  const float *coefficients;     /* [entries] */
  float scale;
  float *gradient, *squares;     /* [m, d], [m] */
  float *dots;                   /* [entries] */
  bool stream;
} sweep;

INLINE void sweep_slab(const sweep *s, const int nv, const bool with_dots) {
  enum { AHEAD = 12, NEXT = 12 };
  const sl_codes_index *index = &s->args->index;
  int64_t width = nv * LANES, column = s->slab * width, valid = s->d - column < width ? s->d - column : width;
  const float *rows = s->rows + s->slab * s->args->n * width;
  bool stream = s->stream && valid == width;
  float copy[SLAB_MAX], total[SLAB_MAX];
  _Alignas(64) float parts[16][LANES] = {{0}};
  int64_t last = index->offsets[s->last] - 1;
  int64_t flushed = index->offsets[s->first]; /* dots of entries before this are done */
  for (int64_t i = s->first; i < s->last; i++) {
    if (with_dots && i + AHEAD < s->last) prefetch_row(s->weights + (i + AHEAD) * s->d + column, nv);
    int64_t begin = index->offsets[i], end = index->offsets[i + 1];
    if (begin == end) continue;
    vf w[SLAB_MAX / LANES], g[SLAB_MAX / LANES];
    if (with_dots) {
      const float *row = row_piece(s->weights + i * s->d + column, valid, width, copy);
      for (int v = 0; v < nv; v++) w[v] = load(row + v * LANES);
    }
    for (int v = 0; v < nv; v++) g[v] = (vf){0};
    for (int64_t p = begin; p < end; p++) {
      const float *r = rows + index->tokens[p] * width;
      prefetch_row(rows + index->tokens[p + NEXT < last ? p + NEXT : last] * width, nv);
      vf dot = {0};
      for (int v = 0; v < nv; v++) {
        vf x = load(r + v * LANES);
        g[v] += s->coefficients[p] * x;
        if (with_dots) dot += x * w[v];
      }
      if (!with_dots) continue;
      store(parts[p - flushed], dot);
      if (p - flushed == 15) {
        flush_dots(parts, s->dots + flushed, 16);
        flushed += 16;
      }
    }
    float *out = s->gradient + i * s->d + column;
    bool add = s->args->gradients.touched[i] != 0;
    vf squares = {0};
    if (valid == width) {
      for (int v = 0; v < nv; v++) {
        g[v] *= s->scale;
        if (add) g[v] += load(out + v * LANES);
        squares += g[v] * g[v];
        store_gradient(out + v * LANES, g[v], stream && !add);
      }
    } else {
      for (int v = 0; v < nv; v++) store(total + v * LANES, g[v] * s->scale);
      for (int64_t j = 0; add && j < valid; j++) total[j] += out[j];
      memcpy(out, total, (size_t)valid * sizeof *out);
      for (int v = 0; v < nv; v++) squares += load(total + v * LANES) * load(total + v * LANES);
    }
    s->squares[i] = (s->slab == 0 ? 0 : s->squares[i]) + sum_lanes(squares);
  }
  if (with_dots) flush_dots(parts, s->dots + flushed, index->offsets[s->last] - flushed);
}

static void sweep_slabs(sweep *s) {
  int64_t width = slab_width(s->d);
  for (s->slab = 0; s->slab < slab_count(s->d); s->slab++) {
    if (s->weights) {
      if (width == 48) sweep_slab(s, 48 / LANES, true);
      else if (width == 32) sweep_slab(s, 32 / LANES, true);
      else sweep_slab(s, 16 / LANES, true);
    } else {
      if (width == 48) sweep_slab(s, 48 / LANES, false);
      else if (width == 32) sweep_slab(s, 32 / LANES, false);
      else sweep_slab(s, 16 / LANES, false);
    }
  }
}

static void backward_range(const backward_job *job, int64_t first, int64_t last) {
  const sl_sae_backward_args *args = job->args;
  const int64_t *offsets = args->index.offsets;
  float *da = args->code_gradients;
  for (int64_t p = offsets[first]; p < offsets[last]; p++) da[p] = 0;
  sweep decoder = { .args = args, .first = first, .last = last, .d = args->d_out, .rows = args->residual,
                    .weights = args->w_dec, .coefficients = args->index.values, .scale = job->scale,
                    .gradient = args->gradients.w_dec, .squares = args->gradients.squares_dec, .dots = da,
                    .stream = job->stream && args->d_out % 16 == 0 };
  sweep_slabs(&decoder);
  for (int64_t i = first; i < last; i++) {
    float sum = 0, along = 0;
    for (int64_t p = offsets[i]; p < offsets[i + 1]; p++) {
      da[p] *= job->scale;
      sum += da[p];
      along += da[p] * args->index.values[p];
    }
    args->gradients.b_enc[i] += sum;
    args->gradients.dot_dec[i] += along;
  }
  sweep encoder = { .args = args, .first = first, .last = last, .d = args->d_in, .rows = args->u,
                    .coefficients = da, .scale = 1, .gradient = args->gradients.w_enc,
                    .squares = args->gradients.squares_enc, .stream = job->stream && args->d_in % 16 == 0 };
  sweep_slabs(&encoder);
  for (int64_t i = first; i < last; i++)
    if (offsets[i] < offsets[i + 1]) args->gradients.touched[i] = 1;
#if SAE_LANES == 16 && defined(__AVX512F__)
  _mm_sfence(); /* streamed rows are read by other threads next */
#endif
}

/* -- Small vector helpers -- */

static float sum_squares(const float *x, const float *shift, int64_t n) {
  vf sum0 = {0}, sum1 = {0};
  int64_t j = 0;
  for (; j + 2 * LANES <= n; j += 2 * LANES) {
    vf a = load(x + j), b = load(x + j + LANES);
    if (shift) a -= load(shift + j), b -= load(shift + j + LANES);
    sum0 += a * a;
    sum1 += b * b;
  }
  float sum = sum_lanes(sum0 + sum1);
  for (; j < n; j++) {
    float v = x[j] - (shift ? shift[j] : 0);
    sum += v * v;
  }
  return sum;
}

static void add_scaled(float *y, float a, const float *x, int64_t n) {
  for (int64_t j = 0; j < n; j++) y[j] += a * x[j];
}
