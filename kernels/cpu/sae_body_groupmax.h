/* GroupMax in the tile loop: the largest of the present group so far, value and latent, is kept for each token
 * (threshold and best of its list); the end of the group appends it. Blocks of latents need not end where groups do. */

typedef int32_t vi __attribute__((vector_size(SAE_LANES * 4)));
typedef int32_t vi_memory __attribute__((vector_size(SAE_LANES * 4), aligned(4), may_alias));

/* Latent `id` where its value is larger than the best so far: an equal one that comes later loses. */
INLINE void challenge(vf value, int32_t id, vf *best, vi *who) {
  vi larger = value > *best;
  *best = (vf)(((vi)value & larger) | ((vi)*best & ~larger));
  *who = (((vi){0} + id) & larger) | (*who & ~larger);
}

static void close_group(token_lists *lists, int64_t token) {
  for (int64_t t = token; t < token + PANEL; t++) {
    if (lists->threshold[t] > 0) {
      int64_t at = t * lists->capacity + lists->count[t]++;
      lists->values[at] = lists->threshold[t];
      lists->ids[at] = lists->best[t];
    }
    lists->threshold[t] = 0;
  }
}

/* The block's `rows` latents, the first being `latent`, for the panel whose first token is `token`. */
INLINE void scan_groups(vf acc[ROWS][2], token_lists *lists, int64_t token, int64_t latent, int64_t rows,
                        int64_t group) {
  vf block[ROWS][2]; /* acc is to stay in registers: it may not be indexed by a variable */
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; r++) block[r][0] = acc[r][0], block[r][1] = acc[r][1];
  float *best = lists->threshold + token;
  int32_t *who = lists->best + token;
  for (int64_t r = 0; r < rows;) {
    int64_t end = r + group - (latent + r) % group; /* of the group, counted from the block's start */
    vf best0 = load(best), best1 = load(best + LANES);
    vi who0 = *(vi_memory *)who, who1 = *(vi_memory *)(who + LANES);
    for (; r < rows && r < end; r++) {
      challenge(block[r][0], (int32_t)(latent + r), &best0, &who0);
      challenge(block[r][1], (int32_t)(latent + r), &best1, &who1);
    }
    store(best, best0), store(best + LANES, best1);
    *(vi_memory *)who = who0, *(vi_memory *)(who + LANES) = who1;
    if (r == end) close_group(lists, token);
  }
}
