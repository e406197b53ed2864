/* For the tests of the CUDA SAE kernels: the steps of a training step on one side of a case, and comparisons. */
#ifndef SAE_PAIR_H
#define SAE_PAIR_H

#include "sae_pair_rig.h"

/* -- Steps -- */

/* What decoding and gradients assume: decoder rows of length one. */
static inline void sae_run_unit(sae_pair *r, int side) {
  sl_sae_unit_rows_args unit = { .x = AT(r->w_dec, side), .y = AT(r->w_dec, side), .m = r->s.m, .d = r->s.d };
  PAIR_RUN(r->p, side, sae_unit_rows, &unit);
}

static inline void sae_run_pack(sae_pair *r, int side) {
  sl_sae_pack_args pack = { .n = r->s.n, .d = r->s.d, .x = AT(r->x, side), .shift = AT(r->b_dec, side),
                            .dtype = r->s.bf16 ? SL_BF16 : SL_F32, .panels = AT(r->panels[side], side),
                            .slabs = AT(r->u[side], side) };
  PAIR_RUN(r->p, side, sae_pack, &pack);
}

static inline sl_sae_encode_topk_args sae_encode_args(const sae_pair *r, int side) {
  return (sl_sae_encode_topk_args){
    .n = r->s.n, .d = r->s.d, .m = r->s.m, .k = r->s.k, .panels = AT(r->panels[side], side),
    .w = r->s.bf16 ? AT(r->w_bf16, side) : AT(r->w_enc, side), .dtype = r->s.bf16 ? SL_BF16 : SL_F32,
    .bias = AT(r->b_enc, side), .codes = sae_codes_at(r, side), .dead = r->s.k_dead > 0 ? AT(r->dead, side) : NULL,
    .k_dead = r->s.k_dead, .dead_codes = sae_dead_at(r, side), .nonfinite = &sae_numbers_at(r, side)->nonfinite };
}

static inline void sae_run_encode(sae_pair *r, int side) {
  sae_run_pack(r, side);
  sl_sae_encode_topk_args encode = sae_encode_args(r, side);
  PAIR_RUN_WORKING(r->p, side, sae_encode_topk, &encode);
}

static inline void sae_run_index(sae_pair *r, int side) {
  sl_sae_index_codes_args args = { .codes = sae_codes_at(r, side), .most = r->s.n * r->s.k,
                                   .index = sae_index_at(r, side) };
  PAIR_RUN_WORKING(r->p, side, sae_index_codes, &args);
}

static inline void sae_run_residual(sae_pair *r, int side) {
  sl_sae_numbers *numbers = sae_numbers_at(r, side);
  sl_sae_decode_residual_args args = {
    .n = r->s.n, .m = r->s.m, .d = r->s.d, .index = sae_index_at(r, side), .codes = sae_codes_at(r, side),
    .w_dec = AT(r->w_dec, side), .b_dec = AT(r->b_dec, side), .target = AT(r->x, side),
    .residual = AT(r->residual[side], side), .column_sums = AT(r->column_sums, side),
    .sum_squares = &numbers->sum_squares[SL_SAE_MAIN], .cosine = &numbers->cosine };
  PAIR_RUN_WORKING(r->p, side, sae_decode_residual, &args);
}

static inline void sae_run_numbers(sae_pair *r, int side) {
  sl_sae_loss_numbers_args args = { .numbers = sae_numbers_at(r, side), .offsets = AT(r->offsets, side),
                                    .tokens = r->s.n, .d = r->s.d, .fvu = true };
  sl_sae_center_args center = { .n = r->s.n, .d = r->s.d, .x = AT(r->x, side),
                                .total_variance = &sae_numbers_at(r, side)->total_variance };
  PAIR_RUN_WORKING(r->p, side, sae_center, &center);
  PAIR_RUN(r->p, side, sae_loss_numbers, &args);
}

static inline void sae_run_backward(sae_pair *r, int side, double scale) {
  sl_sae_backward_args args = {
    .n = r->s.n, .m = r->s.m, .d_in = r->s.d, .d_out = r->s.d, .index = sae_index_at(r, side),
    .residual = AT(r->residual[side], side), .column_sums = AT(r->column_sums, side), .scale = scale,
    .factor = &sae_numbers_at(r, side)->factor[SL_SAE_MAIN], .u = AT(r->u[side], side), .w_dec = AT(r->w_dec, side),
    .gradients = sae_gradients_at(r, side), .code_gradients = AT(r->code_gradients, side), .most = r->s.n * r->s.k };
  PAIR_RUN_WORKING(r->p, side, sae_backward, &args);
}

static inline void sae_run_finish(sae_pair *r, int side, bool through_u, bool project) {
  sl_sae_finish_gradients_args args = { .m = r->s.m, .d_in = r->s.d, .d_out = r->s.d,
                                        .gradients = sae_gradients_at(r, side), .w_enc = AT(r->w_enc, side),
                                        .through_u = through_u, .project = project,
                                        .total_b_dec = AT(r->total_b_dec, side), .sum_squares = AT(r->norm, side) };
  PAIR_RUN_WORKING(r->p, side, sae_finish_gradients, &args);
}

static inline sl_sae_update_args sae_update_args(const sae_pair *r, int side) {
  return (sl_sae_update_args){
    .m = r->s.m, .d_in = r->s.d, .d_out = r->s.d, .rule = SL_SAE_ADAM,
    .parameters = { AT(r->w_enc, side), AT(r->b_enc, side), AT(r->w_dec, side), AT(r->b_dec, side) },
    .moment1 = { AT(r->m_enc, side), AT(r->mb_enc, side), AT(r->m_dec, side), AT(r->mb_dec, side) },
    .moment2 = { AT(r->v_enc, side), AT(r->vb_enc, side), AT(r->v_dec, side), AT(r->vb_dec, side) },
    .gradients = sae_gradients_at(r, side), .total_b_dec = AT(r->total_b_dec, side), .sum_squares = AT(r->norm, side),
    .clip_norm = 1, .project = true, .unit_rows = true, .lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-6f,
    .step = 1, .w_enc_bf16 = AT(r->w_bf16, side) };
}

/* -- Comparisons -- */

/* The first n bytes of a block agree. */
static inline void sae_check_start(const pair *p, const char *what, block *b, int64_t bytes) {
  pair_check_guards(p, what, b);
  const unsigned char *got = pair_fetch(p, b), *want = b->at[PAIR_CPU];
  for (int64_t i = 0; i < bytes; i++) {
    if (got[i] != want[i]) fail_msg("%s: byte %lld is %#x, expected %#x", what, (long long)i, got[i], want[i]);
  }
}

/* Offsets agree, and the entries up to the last; before the first, both sides hold zeros. Behind the last, room is used
 * for work. */
static inline void sae_check_rows(const sae_pair *r, const char *what, block *offsets, block *ids, block *values) {
  int64_t end = ((const int64_t *)offsets->at[PAIR_CPU])[r->s.n];
  pair_check_same(r->p, what, offsets);
  sae_check_start(r->p, what, ids, end * 4);
  sae_check_start(r->p, what, values, end * 4);
}
static inline void sae_check_codes(const sae_pair *r) {
  sae_check_rows(r, "codes", r->offsets, r->ids, r->values);
  if (r->s.k_dead > 0) sae_check_rows(r, "codes of the dead", r->dead_offsets, r->dead_ids, r->dead_values);
}

static inline const sl_sae_numbers *sae_fetch_numbers(const sae_pair *r) { return pair_fetch(r->p, r->numbers); }

static inline void sae_check_doubles(const pair *p, const char *what, block *b, double tolerance) {
  pair_check_guards(p, what, b);
  const double *got = pair_fetch(p, b), *want = b->at[PAIR_CPU];
  for (size_t i = 0; i < b->bytes / 8; i++) check_close(what, (int64_t)i, got[i], want[i], tolerance);
}

#endif
