/* The gradient store of a dictionary: made on first use, shown on request, finished for the optimiser. */
#include <string.h>

#include "loss.h"
#include "sae_private.h"

static sl_status fill_store(sl_sae *sae, int64_t latents, sl_sae_gradient_store *store) {
  sl_device *device = sae->device;
  int64_t matrix[2] = { latents, sae->config.d_in };
  /* Rows of the matrices mean something only where touched: they need no zeros. */
  SL_TRY(sl_tensor_create(device, SL_F32, 2, matrix, &store->parameters[SL_SAE_W_ENC]));
  SL_TRY(sl_tensor_create(device, SL_F32, 2, matrix, &store->parameters[SL_SAE_W_DEC]));
  SL_TRY(sl_tensor_zeros(device, SL_F32, 1, &latents, &store->parameters[SL_SAE_B_ENC]));
  SL_TRY(sl_tensor_zeros(device, SL_F32, 1, &sae->config.d_in, &store->parameters[SL_SAE_B_DEC]));
  SL_TRY(sl_tensor_zeros(device, SL_U8, 1, &latents, &store->touched));
  SL_TRY(sl_tensor_zeros(device, SL_F32, 1, &latents, &store->dot_dec));
  SL_TRY(sl_tensor_zeros(device, SL_F32, 1, &latents, &store->squares_enc));
  SL_TRY(sl_tensor_zeros(device, SL_F32, 1, &latents, &store->squares_dec));
  return sl_tensor_zeros(device, SL_F32, 1, &sae->config.d_in, &store->total_b_dec);
}

void sl__sae_store_release(sl_sae_gradient_store *store) {
  if (!store) return;
  for (int i = 0; i < SL_SAE_PARAMETERS; i++) sl_tensor_release(store->parameters[i]);
  sl_tensor_release(store->touched);
  sl_tensor_release(store->dot_dec);
  sl_tensor_release(store->squares_enc);
  sl_tensor_release(store->squares_dec);
  sl_tensor_release(store->total_b_dec);
  sl_mem_free(store);
}

sl_status sl__sae_store_create(sl_sae *sae, int64_t latents, sl_sae_gradient_store **out) {
  sl_sae_gradient_store *store;
  SL_TRY(sl_mem_alloc(sizeof *store, "SAE gradients", (void **)&store));
  sl_memory_label before = sl_memory_set_label(SL_MEMORY_GRADIENTS);
  sl_status status = fill_store(sae, latents, store);
  sl_memory_set_label(before);
  if (status == SL_OK) *out = store;
  else sl__sae_store_release(store);
  return status;
}

sl_sae_block sl__sae_store_block(const sl_sae_gradient_store *store, int64_t first, int64_t rows) {
  sl_sae_parameters p = sl__sae_parameters(store->parameters);
  sl_sae_block block = { .first = first, .rows = rows, .total_b_dec = sl_tensor_f32(store->total_b_dec) };
  block.gradients = (sl_sae_gradients){ .w_enc = p.w_enc,
                                        .w_dec = p.w_dec,
                                        .b_enc = p.b_enc,
                                        .b_dec = p.b_dec,
                                        .touched = sl_tensor_data(store->touched),
                                        .dot_dec = sl_tensor_f32(store->dot_dec),
                                        .squares_enc = sl_tensor_f32(store->squares_enc),
                                        .squares_dec = sl_tensor_f32(store->squares_dec) };
  return block;
}

sl_status sl__sae_store_clear(sl_sae_gradient_store *store, bool b_dec) {
  SL_TRY(sl_tensor_fill_zero(store->touched));
  SL_TRY(sl_tensor_fill_zero(store->dot_dec));
  SL_TRY(sl_tensor_fill_zero(store->parameters[SL_SAE_B_ENC]));
  return b_dec ? sl_tensor_fill_zero(store->parameters[SL_SAE_B_DEC]) : SL_OK;
}

sl_status sl__sae_gradients(sl_sae *sae, sl_sae_block *out) {
  if (!sae->gradients) SL_TRY(sl__sae_store_create(sae, sae->config.d_sae, &sae->gradients));
  *out = sl__sae_store_block(sae->gradients, 0, sae->config.d_sae);
  return SL_OK;
}

sl_status sl__sae_finish_gradients(sl_sae *sae, const sl_sae_block *block, bool add, bool more, double *sum_squares) {
  const sl_sae_config *config = &sae->config;
  sl_tensor *workspace = NULL;
  sl_sae_finish_gradients_args args = {
    .m = block->rows,
    .d_in = config->d_in,
    .d_out = config->d_in,
    .gradients = block->gradients,
    .w_enc = sl_tensor_f32(sae->parameters[SL_SAE_W_ENC]) + block->first * config->d_in,
    .through_u = config->apply_b_dec_to_input,
    .project = config->normalize_decoder,
    .add = add,
    .more = more,
    .total_b_dec = block->total_b_dec,
    .sum_squares = sum_squares
  };
  SAE_WORKSPACE(sae->device, sae_finish_gradients, &args, &workspace);
  sl_status status = SAE_RUN(sae->device, sae_finish_gradients, &args);
  sl_tensor_release(workspace);
  return status;
}

sl_status sl_sae_grad(sl_sae *sae, const char *name, sl_tensor **out) {
  int id = 0;
  while (id < SL_SAE_PARAMETERS && strcmp(name, sl_sae_parameter_name(id)) != 0) id++;
  if (id == SL_SAE_PARAMETERS)
    return sl_fail(SL_ENOTFOUND, "sae: no parameter is called \"%s\"; there are W_enc, b_enc, W_dec, b_dec",
                   name);
  sl_sae_block all;
  SL_TRY(sl__sae_gradients(sae, &all));
  if (id == SL_SAE_B_DEC) {
    sl_tensor *unused;
    SL_TRY(sl__sae_zeros(sae->device, sizeof(double), &unused));
    sl_status status = sl__sae_finish_gradients(sae, &all, false, false, sl_tensor_data(unused));
    sl_tensor_release(unused);
    SL_TRY(status);
    return sl_tensor_clone(sae->gradients->total_b_dec, out);
  }
  sl_sae_fill_gradients_args args = {
    .m = sae->config.d_sae, .d_in = sae->config.d_in, .d_out = sae->config.d_in, .gradients = all.gradients
  };
  SL_TRY(SAE_RUN(sae->device, sae_fill_gradients, &args));
  return sl_tensor_clone(sae->gradients->parameters[id], out);
}

sl_status sl_sae_zero_grad(sl_sae *sae) {
  if (!sae->gradients) return SL_OK;
  sae->gradients->pending = false;
  return sl__sae_store_clear(sae->gradients, true);
}
