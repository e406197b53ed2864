/* Selection: a token's buffer of candidates is shrunk by bisecting on the value, exactly where it must be.
 *
 * Candidates arrive with ascending latents and only if strictly above the threshold; so a candidate equal to
 * the k-th value loses to the earlier ones, and what is kept stays sorted. Values are positive, their bits
 * ordered. */

INLINE int32_t to_bits(float value) { int32_t bits; memcpy(&bits, &value, 4); return bits; }
INLINE float from_bits(int32_t bits) { float value; memcpy(&value, &bits, 4); return value; }

static int32_t count_above(const float *values, int32_t n, float bound) {
  int32_t count = 0;
  for (int32_t i = 0; i < n; i++) count += values[i] > bound;
  return count;
}

static float largest(const float *values, int32_t n) {
  float top = 0;
  for (int32_t i = 0; i < n; i++) top = values[i] > top ? values[i] : top;
  return top;
}

/* Moves the entries above `bound`, and the first `ties` equal to it, to the front; returns how many. */
static int32_t keep_above(float *values, int32_t *ids, int32_t n, float bound, int32_t ties) {
  int32_t kept = 0;
  if (ties > 0) {
    for (int32_t i = 0; i < n; i++) {
      if (!(values[i] >= bound)) continue;
      if (values[i] == bound && ties-- <= 0) continue;
      values[kept] = values[i];
      ids[kept++] = ids[i];
    }
    return kept;
  }
#if SAE_LANES == 16 && defined(__AVX512F__)
  __m512 limit = _mm512_set1_ps(bound);
  for (int32_t i = 0; i < n;
       i += 16) { /* capacity is a multiple of 16, and kept <= i: no store leaves the buffer */
    __mmask16 valid = (__mmask16)(n - i >= 16 ? 0xffff : (1 << (n - i)) - 1);
    __m512 v = _mm512_loadu_ps(values + i);
    __m512i id = _mm512_loadu_si512(ids + i);
    __mmask16 mask = _mm512_mask_cmp_ps_mask(valid, v, limit, _CMP_GT_OQ);
    _mm512_storeu_ps(values + kept, _mm512_maskz_compress_ps(mask, v));
    _mm512_storeu_si512(ids + kept, _mm512_maskz_compress_epi32(mask, id));
    kept += __builtin_popcount(mask);
  }
#else
  for (int32_t i = 0; i < n; i++) {
    float v = values[i];
    values[kept] = v;
    ids[kept] = ids[i];
    kept += v > bound;
  }
#endif
  return kept;
}

/* Leaves between k and `limit` entries, among them the k best, and raises the threshold to match. Needs
 * *count > limit >= k. */
static void shrink(float *values, int32_t *ids, int32_t *count, float *threshold, int32_t k, int32_t limit) {
  int32_t n = *count, above = n;
  /* Ties kept by an earlier call equal the threshold: the search starts below it. */
  int32_t low = *threshold > 0 ? to_bits(*threshold) - 1 : 0, high = to_bits(largest(values, n));
  for (int round = 0; above > limit && high - low > 1; round++) {
    int32_t middle = low + (high - low) / 2;
    if (round < 8) { /* near-linear at first: halving bits from zero would walk through the exponents */
      int32_t guess = to_bits(0.5f * (from_bits(low) + from_bits(high)));
      if (guess > low && guess < high) middle = guess;
    }
    int32_t found = count_above(values, n, from_bits(middle));
    if (found >= k) {
      low = middle;
      above = found;
    } else {
      high = middle;
    }
  }
  if (above <= limit) {
    *threshold = from_bits(low);
    *count = keep_above(values, ids, n, *threshold, 0);
    return;
  }
  float tied = from_bits(high); /* the k-th value itself, more than once */
  *count = keep_above(values, ids, n, tied, k - count_above(values, n, tied));
  *threshold = tied;
}

static void shrink_token(token_lists *lists, int64_t token) {
  int32_t k = (int32_t)lists->k;
  int32_t room = (int32_t)lists->capacity - ROWS - 1;
  int32_t limit = k + k / 8 < room ? k + k / 8 : room;
  shrink(lists->values + token * lists->capacity, lists->ids + token * lists->capacity, lists->count + token,
         lists->threshold + token, k, limit);
}

/* After the last latent: exactly the k best (or all, where fewer), copied to row `row` of a [rows, k] layout.
 */
static void finish_token(token_lists *lists, int64_t token, const sl_codes_view *codes, int64_t row) {
  float *values = lists->values + token * lists->capacity;
  int32_t *ids = lists->ids + token * lists->capacity;
  int32_t k = (int32_t)lists->k;
  if (lists->count[token] > k) shrink(values, ids, lists->count + token, lists->threshold + token, k, k);
  size_t n = (size_t)lists->count[token];
  int64_t at = codes->offsets[0] + row * lists->k;
  memcpy(codes->values + at, values, n * sizeof *values);
  memcpy(codes->ids + at, ids, n * sizeof *ids);
  codes->offsets[row + 1] = (int64_t)n; /* the caller sums and closes the gaps */
}
