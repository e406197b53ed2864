/* For the SAE kernel tests: a rig that owns every buffer of a step. Values are multiples of 1/8 of small size where
 * `exact` is asked for: then products are exact in float32 and in bf16, ties are frequent, and every instruction set
 * must agree to the bit. */
#ifndef SAE_RIG_H
#define SAE_RIG_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/sae_cpu.h"

typedef struct {
  int64_t n, d, m, k, k_dead;
  bool exact, bf16;
} sae_case;

typedef struct {
  sae_case c;
  float *x, *u, *residual, *total_b_dec, *code_gradients;
  uint16_t *w_bf16;
  uint8_t *dead;
  void *panels, *workspace;
  size_t workspace_bytes;
  sl_sae_parameters weights, moment1, moment2;
  sl_sae_gradients gradients;
  sl_codes_view codes, dead_codes;
  sl_codes_index index;
  double *column_sums, sum_squares, cosine, norm_squares;
  int64_t entries, dead_entries, nonfinite;
} sae_rig;

static inline void *rig_memory(int64_t n, size_t size) {
  void *block = aligned_alloc(64, ((size_t)n * size + 127) / 64 * 64);
  if (!block) abort();
  memset(block, 0, (size_t)n * size);
  return block;
}

static inline uint64_t rig_next(uint64_t *state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return *state >> 33;
}

static inline void rig_fill(float *x, int64_t n, bool exact, uint64_t *state) {
  for (int64_t i = 0; i < n; i++) {
    x[i] = exact ? (float)((int)(rig_next(state) % 9) - 4) / 8 : (float)(rig_next(state) % 20001) / 10000 - 1;
  }
}

static inline sl_sae_parameters rig_parameters(const sae_case *c) {
  return (sl_sae_parameters){ .w_enc = rig_memory(c->m * c->d, 4), .b_enc = rig_memory(c->m, 4),
                              .w_dec = rig_memory(c->m * c->d, 4), .b_dec = rig_memory(c->d, 4) };
}

static inline sl_codes_view rig_codes(const sae_case *c, int64_t k) {
  return (sl_codes_view){ .rows = c->n, .n_latents = c->m, .offsets = rig_memory(c->n + 1, 8),
                          .ids = rig_memory(c->n * k + 1, 4), .values = rig_memory(c->n * k + 1, 4) };
}

static inline const sl_kernels *rig_kernels(void) { return sl_cpu_device()->kernels; }

static inline void rig_check(sl_status status) {
  if (status == SL_OK) return;
  fprintf(stderr, "%s\n", sl_last_error());
  abort();
}

static inline sl_sae_encode_topk_args rig_encode_args(sae_rig *r) {
  return (sl_sae_encode_topk_args){ .n = r->c.n,
                                    .d = r->c.d,
                                    .m = r->c.m,
                                    .k = r->c.k,
                                    .panels = r->panels,
                                    .w = r->c.bf16 ? (void *)r->w_bf16 : (void *)r->weights.w_enc,
                                    .dtype = r->c.bf16 ? SL_BF16 : SL_F32,
                                    .bias = r->weights.b_enc,
                                    .codes = r->codes,
                                    .dead = r->c.k_dead ? r->dead : NULL,
                                    .k_dead = r->c.k_dead,
                                    .dead_codes = r->dead_codes,
                                    .nonfinite = &r->nonfinite,
                                    .workspace = r->workspace,
                                    .workspace_bytes = r->workspace_bytes };
}

static inline sl_sae_decode_residual_args rig_decode_args(sae_rig *r) {
  return (sl_sae_decode_residual_args){ .n = r->c.n,
                                        .m = r->c.m,
                                        .d = r->c.d,
                                        .index = r->index,
                                        .codes = r->codes,
                                        .w_dec = r->weights.w_dec,
                                        .b_dec = r->weights.b_dec,
                                        .target = r->x,
                                        .residual = r->residual,
                                        .column_sums = r->column_sums,
                                        .sum_squares = &r->sum_squares,
                                        .cosine = &r->cosine,
                                        .workspace = r->workspace,
                                        .workspace_bytes = r->workspace_bytes };
}

static inline sae_rig rig_create(sae_case c, uint64_t seed) {
  sae_rig r = { .c = c };
  uint64_t state = seed * 2654435761u + 1;
  int64_t entries = c.n * (c.k > c.k_dead ? c.k : c.k_dead) + 1;
  r.x = rig_memory(c.n * c.d, 4);
  r.weights = rig_parameters(&c);
  r.moment1 = rig_parameters(&c);
  r.moment2 = rig_parameters(&c);
  rig_fill(r.x, c.n * c.d, c.exact, &state);
  rig_fill(r.weights.w_enc, c.m * c.d, c.exact, &state);
  rig_fill(r.weights.b_enc, c.m, c.exact, &state);
  rig_fill(r.weights.b_dec, c.d, c.exact, &state);
  rig_fill(r.weights.w_dec, c.m * c.d, false, &state);
  rig_check(rig_kernels()->sae_unit_rows(sl_cpu_device(), &(sl_sae_unit_rows_args){
    .x = r.weights.w_dec, .y = r.weights.w_dec, .m = c.m, .d = c.d }));
  r.w_bf16 = rig_memory(c.m * c.d, 2);
  for (int64_t i = 0; i < c.m * c.d; i++) r.w_bf16[i] = sl_f32_to_bf16(r.weights.w_enc[i]);
  r.dead = rig_memory(c.m, 1);
  for (int64_t i = 0; i < c.m; i++) r.dead[i] = rig_next(&state) % 3 == 0;
  r.gradients = (sl_sae_gradients){
    .w_enc = rig_memory(c.m * c.d, 4), .w_dec = rig_memory(c.m * c.d, 4), .b_enc = rig_memory(c.m, 4),
    .b_dec = rig_memory(c.d, 4), .touched = rig_memory(c.m, 1), .dot_dec = rig_memory(c.m, 4),
    .squares_enc = rig_memory(c.m, 4), .squares_dec = rig_memory(c.m, 4) };
  r.total_b_dec = rig_memory(c.d, 4);
  r.codes = rig_codes(&c, c.k);
  r.dead_codes = rig_codes(&c, c.k_dead);
  r.index = (sl_codes_index){ .offsets = rig_memory(c.m + 1, 8),
                              .tokens = rig_memory(entries, 4),
                              .values = rig_memory(entries, 4) };
  r.code_gradients = rig_memory(entries, 4);
  r.column_sums = rig_memory(c.d, 8);
  return r;
}

static inline void rig_free_parameters(sl_sae_parameters *p) {
  free(p->w_enc), free(p->b_enc), free(p->w_dec), free(p->b_dec);
}

static inline void rig_free(sae_rig *r) {
  rig_free_parameters(&r->weights), rig_free_parameters(&r->moment1), rig_free_parameters(&r->moment2);
  free(r->x), free(r->u), free(r->residual), free(r->total_b_dec), free(r->code_gradients), free(r->w_bf16),
      free(r->dead);
  free(r->panels), free(r->workspace), free(r->column_sums);
  free(r->gradients.w_enc), free(r->gradients.w_dec), free(r->gradients.b_enc), free(r->gradients.b_dec);
  free(r->gradients.touched), free(r->gradients.dot_dec), free(r->gradients.squares_enc),
      free(r->gradients.squares_dec);
  free(r->codes.offsets), free(r->codes.ids), free(r->codes.values);
  free(r->dead_codes.offsets), free(r->dead_codes.ids), free(r->dead_codes.values);
  free(r->index.offsets), free(r->index.tokens), free(r->index.values);
}

#endif
