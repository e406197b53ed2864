/* For the SAE kernel tests: the steps of a training step on a rig, and the naive float64 pre-activation. */
#ifndef SAE_REFERENCE_H
#define SAE_REFERENCE_H

#include "sae_rig.h"

/* Sizes depend on the instruction set, so these buffers are made anew for each run. */
static inline void rig_workspace(sae_rig *r) {
  size_t panels, slabs, most = 0, need = 0;
  free(r->panels), free(r->u), free(r->residual), free(r->workspace);
  rig_check(
      rig_kernels()->sae_pack(sl_cpu_device(), &(sl_sae_pack_args){ .n = r->c.n,
                                                                    .d = r->c.d,
                                                                    .dtype = r->c.bf16 ? SL_BF16 : SL_F32,
                                                                    .need_panels = &panels,
                                                                    .need_slabs = &slabs }));
  r->panels = rig_memory((int64_t)panels, 1);
  r->u = rig_memory((int64_t)slabs, 1);
  r->residual = rig_memory((int64_t)slabs, 1);
  sl_sae_encode_topk_args encode = rig_encode_args(r);
  encode.need = &need;
  rig_check(rig_kernels()->sae_encode_topk(sl_cpu_device(), &encode));
  most = need > most ? need : most;
  rig_check(rig_kernels()->sae_index_codes(sl_cpu_device(),
                                           &(sl_sae_index_codes_args){ .codes = r->codes, .need = &need }));
  most = need > most ? need : most;
  sl_sae_decode_residual_args decode = rig_decode_args(r);
  decode.need = &need;
  rig_check(rig_kernels()->sae_decode_residual(sl_cpu_device(), &decode));
  most = need > most ? need : most;
  rig_check(rig_kernels()->sae_finish_gradients(sl_cpu_device(), &(sl_sae_finish_gradients_args){
    .m = r->c.m, .d_in = r->c.d, .d_out = r->c.d, .need = &need }));
  most = need > most ? need : most;
  r->workspace = rig_memory((int64_t)most, 1);
  r->workspace_bytes = most;
}

static inline void rig_encode(sae_rig *r) {
  rig_workspace(r);
  rig_check(rig_kernels()->sae_pack(sl_cpu_device(), &(sl_sae_pack_args){
    .n = r->c.n, .d = r->c.d, .x = r->x, .shift = r->weights.b_dec, .dtype = r->c.bf16 ? SL_BF16 : SL_F32,
    .panels = r->panels, .slabs = r->u }));
  sl_sae_encode_topk_args encode = rig_encode_args(r);
  r->nonfinite = 0;
  rig_check(rig_kernels()->sae_encode_topk(sl_cpu_device(), &encode));
  r->entries = r->codes.offsets[r->c.n];
  r->dead_entries = r->c.k_dead ? r->dead_codes.offsets[r->c.n] : 0;
}

static inline void rig_decode(sae_rig *r) {
  rig_check(rig_kernels()->sae_index_codes(
      sl_cpu_device(), &(sl_sae_index_codes_args){ .codes = r->codes,
                                                   .index = r->index,
                                                   .workspace = r->workspace,
                                                   .workspace_bytes = r->workspace_bytes }));
  sl_sae_decode_residual_args decode = rig_decode_args(r);
  r->sum_squares = r->cosine = 0;
  rig_check(rig_kernels()->sae_decode_residual(sl_cpu_device(), &decode));
}

static inline void rig_backward(sae_rig *r, float scale) {
  rig_check(rig_kernels()->sae_backward(sl_cpu_device(),
                                        &(sl_sae_backward_args){ .n = r->c.n,
                                                                 .m = r->c.m,
                                                                 .d_in = r->c.d,
                                                                 .d_out = r->c.d,
                                                                 .index = r->index,
                                                                 .residual = r->residual,
                                                                 .column_sums = r->column_sums,
                                                                 .scale = scale,
                                                                 .factor = &(double){ 1 },
                                                                 .u = r->u,
                                                                 .w_dec = r->weights.w_dec,
                                                                 .gradients = r->gradients,
                                                                 .code_gradients = r->code_gradients }));
}

static inline void rig_finish(sae_rig *r, bool project) {
  rig_check(rig_kernels()->sae_finish_gradients(sl_cpu_device(), &(sl_sae_finish_gradients_args){
    .m = r->c.m, .d_in = r->c.d, .d_out = r->c.d, .gradients = r->gradients, .w_enc = r->weights.w_enc,
    .through_u = true, .project = project, .total_b_dec = r->total_b_dec, .sum_squares = &r->norm_squares,
    .workspace = r->workspace, .workspace_bytes = r->workspace_bytes }));
}

/* float64 pre-activation of token t and latent i, from rounded operands where the case is bf16. */
static inline double reference_pre(const sae_rig *r, int64_t t, int64_t i) {
  double sum = (double)r->weights.b_enc[i];
  for (int64_t j = 0; j < r->c.d; j++) {
    float u = r->x[t * r->c.d + j] - r->weights.b_dec[j], w = r->weights.w_enc[i * r->c.d + j];
    if (r->c.bf16) u = sl_bf16_to_f32(sl_f32_to_bf16(u)), w = sl_bf16_to_f32(sl_f32_to_bf16(w));
    sum += (double)u * (double)w;
  }
  return sum;
}

#endif
