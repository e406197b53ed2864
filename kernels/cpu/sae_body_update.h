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
  if (job->args->rule == SL_SAE_SGD) {
    if (row.g) return update_row(job, o, row, SL_SAE_SGD, true, true);
    return o.decay == 1.0f ? -1 : update_row(job, o, row, SL_SAE_SGD, false, false);
  }
  if (!row.g) return update_row(job, o, row, SL_SAE_ADAM, false, false);
  if (o.along == 0) return update_row(job, o, row, SL_SAE_ADAM, true, false);
  return update_row(job, o, row, SL_SAE_ADAM, true, true);
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
    update_any_row(job, enc, enc_row);
    if (args->w_enc_bf16) round_row(w->w_enc + in, args->w_enc_bf16 + in, args->d_in);
    float squares = update_any_row(job, dec, dec_row);
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
