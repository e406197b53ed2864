/* The truth about which kernels exist: one line each. X(name, meaning, deterministic).
 * Kernel `name` takes sl_<name>_args (args_dense.h, args_sae.h) and is slk_<device>_<name>. */
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
  X(sum_squares,        "float64 sum of squares",                                    true)

#define SL_KERNELS_SAE(X)

#define SL_KERNELS(X) SL_KERNELS_DENSE(X) SL_KERNELS_SAE(X)

#endif
