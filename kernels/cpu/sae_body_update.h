/* One optimiser pass per latent row. Bound by memory: every array is read and written once. */

typedef struct {
  float scale, along; /* g' = scale * g - along * w: the clip, and the component along the decoder row */
  float decay;                   /* 1 - lr * weight_decay */
} row_options;

typedef struct {
  float *w, *m1, *m2;            /* m1, m2: adam only */
  const float *g;                /* NULL: a gradient of zero */
  int64_t n;
} row_data;

/* Returns the sum of squares of the new row. `rule`, `has_gradient` and `projects` are constants at each call. */
INLINE float update_row(const update_job *job, row_options o, row_data row, sl_sae_rule rule, bool has_gradient,
                        bool projects) {
  const sl_sae_update_args *args = job->args;
  const float beta1 = args->beta1, beta2 = args->beta2, rest1 = 1 - beta1, rest2 = 1 - beta2;
  const float eps = args->eps, step = job->step_size, root2 = job->inverse_root2, lr = args->lr;
  float *w = row.w, *m1 = row.m1, *m2 = row.m2;
  const float *g = row.g;
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < row.n; j++) {
    float gradient = 0, weight = w[j];
    if (has_gradient) gradient = o.scale * g[j];
    if (has_gradient && projects) gradient -= o.along * weight;
    weight *= o.decay;
    if (rule == SL_SAE_ADAM) {
      float first = beta1 * m1[j], second = beta2 * m2[j];
      if (has_gradient) first += rest1 * gradient, second += rest2 * gradient * gradient;
      m1[j] = first;
      m2[j] = second;
      weight -= step * first / (sqrtf(second) * root2 + eps);
    } else {
      weight -= lr * gradient;
    }
    w[j] = weight;
    squares += weight * weight;
  }
  return squares;
}

/* As update_row with the constants found out; -1 where the row stays as it was. */
static float update_any_row(const update_job *job, row_options o, row_data row) {
  if (job->vector_rule == SL_SAE_SGD) {
    if (row.g) return update_row(job, o, row, SL_SAE_SGD, true, true);
    return o.decay == 1.0f ? -1 : update_row(job, o, row, SL_SAE_SGD, false, false);
  }
  if (!row.g) return update_row(job, o, row, SL_SAE_ADAM, false, false);
  if (o.along == 0) return update_row(job, o, row, SL_SAE_ADAM, true, false);
  return update_row(job, o, row, SL_SAE_ADAM, true, true);
}

/* -- 8-bit moments -- */

typedef struct { uint8_t *codes; float *absmax; } row_moment8; /* codes [n], absmax [ceil(n / 256)] */

/* The code nearest to x, |x| <= 1, in a dynamic map: arithmetic on the decades in place of a search, so that it runs in
 * lanes. Within a decade codes are evenly spaced; between two decades the border is half-way. */
INLINE int32_t nearest_code(float x, bool is_signed) {
  static const float ends[SL_MAP_DECADES] = { 1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1 };
  static const float scales[SL_MAP_DECADES] = { 1e6f, 1e5f, 1e4f, 1e3f, 1e2f, 1e1f, 1 };
  float size = fabsf(x), scale = scales[0];
  int32_t parts = sl_map_parts(is_signed, 0);
#pragma GCC unroll 8
  for (int i = 1; i < SL_MAP_DECADES; i++) {
    float below = (float)sl_map_parts(is_signed, i - 1), here = (float)sl_map_parts(is_signed, i);
    bool above = size >= ends[i - 1] * (1 + (4.5f / here - 0.45f / below) / 2);
    scale = above ? scales[i] : scale;
    parts = above ? sl_map_parts(is_signed, i) : parts;
  }
  int32_t part = (int32_t)((size * scale - 0.1f) * ((float)parts * (1 / 0.9f)));
  part = part < 0 ? 0 : part;
  part = part >= parts ? parts - 1 : part;
  int32_t rank = part + (is_signed ? parts : parts - 1); /* among the values from zero up */
  rank = size < (is_signed ? 0.275e-6f : 0.1625e-6f) ? 0 : rank;
  rank = size >= 1 - 0.225f / (float)sl_map_parts(is_signed, SL_MAP_DECADES - 1) ? (is_signed ? 128 : 255) : rank;
  if (!is_signed) return rank;
  int32_t below_zero = 127 - (rank < 128 ? rank : 127); /* there is no -1 */
  return x < 0 ? below_zero : 127 + rank;
}

INLINE void round_moment(const float *x, int64_t n, float largest, row_moment8 out, bool is_signed) {
  float inverse = largest > 0 ? 1 / largest : 0;
  *out.absmax = largest;
#pragma omp simd
  for (int64_t j = 0; j < n; j++) {
    int32_t code = nearest_code(x[j] * inverse, is_signed);
    if (!is_signed) code = code == 0 && x[j] > 0 ? 1 : code;
    out.codes[j] = (uint8_t)code;
  }
}

/* One block of a row; returns the sum of squares of the new weights. */
INLINE float update_block8(const update_job *job, row_options o, row_data row, row_moment8 m1, row_moment8 m2,
                           bool has_gradient) {
  const sl_sae_update_args *args = job->args;
  const float beta1 = args->beta1, beta2 = args->beta2, rest1 = 1 - beta1, rest2 = 1 - beta2;
  const float eps = args->eps, step = job->step_size, root2 = job->inverse_root2;
  const float scale1 = *m1.absmax, scale2 = *m2.absmax, *map1 = args->map1, *map2 = args->map2, *g = row.g;
  float first[SL_SAE_BLOCK8], second[SL_SAE_BLOCK8], *w = row.w;
  float squares = 0, largest1 = 0, largest2 = 0;
#pragma omp simd reduction(+ : squares) reduction(max : largest1, largest2)
  for (int64_t j = 0; j < row.n; j++) {
    float weight = w[j], a = beta1 * (map1[m1.codes[j]] * scale1), b = beta2 * (map2[m2.codes[j]] * scale2);
    if (has_gradient) {
      float gradient = o.scale * g[j] - o.along * weight;
      a += rest1 * gradient;
      b += rest2 * gradient * gradient;
      first[j] = a;
      second[j] = b;
      float size = fabsf(a);
      largest1 = size > largest1 ? size : largest1;
      largest2 = b > largest2 ? b : largest2;
    }
    weight = weight * o.decay - step * a / (sqrtf(b) * root2 + eps);
    w[j] = weight;
    squares += weight * weight;
  }
  if (has_gradient) {
    round_moment(first, row.n, largest1, m1, true);
    round_moment(second, row.n, largest2, m2, false);
  } else {
    *m1.absmax = beta1 * scale1;
    *m2.absmax = beta2 * scale2;
  }
  return squares;
}

static float update_row8(const update_job *job, row_options o, row_data row, row_moment8 m1, row_moment8 m2) {
  float squares = 0;
  for (int64_t j = 0; j < row.n; j += SL_SAE_BLOCK8) {
    row_data block = { .w = row.w + j, .g = row.g ? row.g + j : NULL,
                       .n = row.n - j < SL_SAE_BLOCK8 ? row.n - j : SL_SAE_BLOCK8 };
    row_moment8 b1 = { m1.codes + j, m1.absmax + j / SL_SAE_BLOCK8 };
    row_moment8 b2 = { m2.codes + j, m2.absmax + j / SL_SAE_BLOCK8 };
    squares += row.g ? update_block8(job, o, block, b1, b2, true) : update_block8(job, o, block, b1, b2, false);
  }
  return squares;
}

static void round_row(const float *w, uint16_t *out, int64_t n) {
  for (int64_t j = 0; j < n; j++) { /* as sl_f32_to_bf16, without its branch, so that it vectorises */
    uint32_t bits;
    memcpy(&bits, w + j, 4);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t quiet = (bits >> 16) | 0x40u;
    out[j] = (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
  }
}

/* Row i of W_enc or W_dec. */
static float update_matrix_row(const update_job *job, row_options o, row_data row, int64_t i, bool encoder) {
  const sl_sae_update_args *args = job->args;
  if (args->rule != SL_SAE_ADAM8) return update_any_row(job, o, row);
  const sl_sae_moment8 *m1 = &args->moment1_8, *m2 = &args->moment2_8;
  int64_t codes = i * row.n, blocks = i * ((row.n + SL_SAE_BLOCK8 - 1) / SL_SAE_BLOCK8);
  row_moment8 a = encoder ? (row_moment8){ m1->w_enc + codes, m1->absmax_enc + blocks }
                          : (row_moment8){ m1->w_dec + codes, m1->absmax_dec + blocks };
  row_moment8 b = encoder ? (row_moment8){ m2->w_enc + codes, m2->absmax_enc + blocks }
                          : (row_moment8){ m2->w_dec + codes, m2->absmax_dec + blocks };
  return update_row8(job, o, row, a, b);
}

static void update_range(const update_job *job, int64_t first, int64_t last) {
  const sl_sae_update_args *args = job->args;
  const sl_sae_parameters *w = &args->parameters, *m1 = &args->moment1, *m2 = &args->moment2;
  const sl_sae_gradients *g = &args->gradients;
  bool adam = args->rule == SL_SAE_ADAM;
  float decay = 1 - args->lr * args->weight_decay;
  for (int64_t i = first; i < last; i++) {
    bool touched = g->touched[i] != 0;
    int64_t in = i * args->d_in, out = i * args->d_out;
    row_options enc = { .scale = job->clip, .decay = decay };
    row_options dec = { .scale = job->clip,
                        .along = args->project ? job->clip * g->dot_dec[i] : 0,
                        .decay = decay };
    row_data enc_row = { w->w_enc + in, adam ? m1->w_enc + in : NULL, adam ? m2->w_enc + in : NULL,
                         touched ? g->w_enc + in : NULL, args->d_in };
    row_data dec_row = { w->w_dec + out, adam ? m1->w_dec + out : NULL, adam ? m2->w_dec + out : NULL,
                         touched ? g->w_dec + out : NULL, args->d_out };
    update_matrix_row(job, enc, enc_row, i, true);
    if (args->w_enc_bf16) round_row(w->w_enc + in, args->w_enc_bf16 + in, args->d_in);
    float squares = update_matrix_row(job, dec, dec_row, i, false);
    if (args->unit_rows && squares >= 0) {
      float factor = 1 / (sqrtf(squares) + 1.19209290e-7f);
      for (int64_t j = 0; j < args->d_out; j++) w->w_dec[out + j] *= factor;
    }
    g->touched[i] = 0;
    g->dot_dec[i] = 0;
  }
}

/* A bias: dense, no decay. */
static void update_vector(const update_job *job, float *w, float *m1, float *m2, const float *g, int64_t n) {
  row_options o = { .scale = job->clip, .decay = 1 };
  update_any_row(job, o, (row_data){ w, m1, m2, g, n });
}
