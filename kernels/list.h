/* The truth about which kernels exist: one line each. X(name, meaning, deterministic).
 * Kernel `name` takes sl_<name>_args (args_*.h) and is slk_<device>_<name>. */
#ifndef SL_KERNEL_LIST_H
#define SL_KERNEL_LIST_H

#define SL_KERNELS_DENSE(X)                                                                  \
  X(gemm,               "matrix product with bias and activation, batched",          true)  \
  X(cast,               "contiguous copy that changes the dtype",                    true)  \
  X(gather_strided,     "strided view to contiguous",                                true)  \
  X(scatter_strided,    "contiguous to strided view, writing or adding",             true)  \
  X(unary,              "y = f(x), element by element",                              true)  \
  X(unary_backward,     "dx (+)= dy f'(x)",                                          true)  \
  X(binary,             "y = f(a, b) with broadcasting strides",                     true)  \
  X(reduce,             "sum, mean, max or min over the middle axis",                true)  \
  X(softmax,            "softmax or log-softmax over rows",                          true)  \
  X(softmax_backward,   "its gradient",                                              true)  \
  X(layernorm,          "layer normalisation of (x + residual) over rows",           true)  \
  X(layernorm_backward, "its gradients",                                             true)  \
  X(attention,          "exact scaled dot-product attention with padding mask",      true)  \
  X(attention_backward, "its gradients",                                             true)  \
  X(embedding,          "rows of a table by id",                                     true)  \
  X(embedding_backward, "adds row gradients by id",                                  true)  \
  X(cross_entropy,      "row losses and log-sum-exp from logits",                    true)  \
  X(cross_entropy_backward, "gradient to the logits",                                true)  \
  X(topk_rows,          "the k largest (or largest in size) entries of each row",    true)  \
  X(random,             "Philox uniform, normal or integer fill",                    true)  \
  X(adam_dense,         "Adam(W) on a whole tensor",                                 true)  \
  X(sgd_dense,          "SGD with momentum on a whole tensor",                       true)  \
  X(sum_squares,        "float64 sum of squares",                                    true)  \
  X(scatter_axis,       "adds entries at positions along one axis",                  true)  \
  X(normalize_rows,     "rows scaled to unit length",                                true)  \
  X(sparse_rows,        "sum of matrix rows by id, weighted",                        true)  \
  X(sparse_rows_backward, "its gradients",                                           true)

#define SL_KERNELS_TRANSFORMER(X)                                                            \
  X(rms_norm,           "root-mean-square normalisation of (x + residual) over rows", true) \
  X(rms_norm_backward,  "its gradients",                                             true)  \
  X(rotary,             "pairs of each head turned by position, either way",         true)  \
  X(gated,              "f(gate) up",                                                true)  \
  X(gated_backward,     "its gradients",                                             true)

#define SL_KERNELS_SAE(X)                                                                    \
  X(sae_pack,           "x - shift in the layouts of the SAE kernels",               true)  \
  X(sae_encode_topk,    "encoder product and exact top-k per token, fused",          true)  \
  X(sae_encode_groupmax, "encoder product and the largest of each group, fused",     true)  \
  X(sae_encode_jumprelu, "encoder product and a threshold per latent, fused",        true)  \
  X(sae_batch_select,   "the largest entries of a whole batch of codes",             true)  \
  X(sae_follow_threshold, "running mean of the least value that was kept",           true)  \
  X(sae_codes_prefix,   "the k largest entries of each code row",                    true)  \
  X(sae_codes_dense,    "codes as a matrix",                                         true)  \
  X(sae_index_codes,    "codes by latent: stable counting sort",                     true)  \
  X(sae_decode,         "codes to reconstructions",                                  true)  \
  X(sae_decode_residual, "target minus reconstruction, with sums",                   true)  \
  X(sae_loss_numbers,   "the numbers of a loss from the sums of its terms",          true)  \
  X(sae_backward,       "gradients of both dictionaries from codes and residual",    true)  \
  X(sae_finish_gradients, "the bias behind u, and the norm of the whole gradient",   true)  \
  X(sae_fill_gradients, "zeros in the untouched gradient rows",                      true)  \
  X(sae_update,         "projection, clip, Adam or SGD, unit rows, in one pass",     true)  \
  X(sae_unit_rows,      "rows of length one",                                        true)  \
  X(sae_note_fired,     "tokens since a latent fired, and how often it did",         true)  \
  X(sae_mask,           "latents beyond a bound, counted",                           true)  \
  X(sae_center,         "mean or geometric median of rows, and their variance",      true)

#define SL_KERNELS(X) SL_KERNELS_DENSE(X) SL_KERNELS_TRANSFORMER(X) SL_KERNELS_SAE(X)

#endif
