/* Optimisers over lists of named parameters: Adam, AdamW, SGD with momentum,
 * and clipping by the global norm.
 *
 * Used for whole models and for dictionaries written in Lua; the built-in
 * dictionaries have their own one-pass optimiser in core/sae. The optimiser
 * retains its parameters and owns their states. Parameters without a gradient
 * are left alone in a step, moments included, as in PyTorch. */
#ifndef SL_OPTIMIZER_H
#define SL_OPTIMIZER_H

#include "core/tensor/tensor.h"

typedef enum { SL_OPTIMIZER_ADAM, SL_OPTIMIZER_ADAMW, SL_OPTIMIZER_SGD } sl_optimizer_kind;

typedef struct {
  sl_optimizer_kind kind;
  float beta1, beta2, eps; /* Adam: usually 0.9, 0.999, 1e-8 */
  float weight_decay;      /* adam, sgd: added to the gradient (L2); adamw:
                              decoupled, times the learning rate */
  float momentum;          /* sgd */
} sl_optimizer_options;

typedef struct sl_optimizer sl_optimizer;

/* SL_EINVAL for numbers outside their range, by name. */
sl_status sl_optimizer_create(const sl_optimizer_options *options, sl_optimizer **out);
void sl_optimizer_release(sl_optimizer *optimizer); /* NULL is allowed */

/* Adds a contiguous f32 parameter. Its learning rate is lr * lr_scale; `decay`
 * false exempts it from weight decay (biases, norms). The name is copied and
 * must be new. */
sl_status sl_optimizer_add(sl_optimizer *optimizer, const char *name, sl_tensor *parameter, float lr_scale,
                           bool decay);

/* One update from the gradients, each multiplied by grad_scale first (1 = as
 * they are; the result of clipping). */
sl_status sl_optimizer_step(sl_optimizer *optimizer, float lr, float grad_scale);

/* Drops all gradients. */
void sl_optimizer_zero_grad(sl_optimizer *optimizer);

/* For checkpoints: step count, and the states by number from 0, named
 * "<parameter>.m", "<parameter>.v" (Adam) or
 * "<parameter>.momentum" (SGD). Borrowed; write into them to restore. */
int64_t sl_optimizer_steps(const sl_optimizer *optimizer);
void sl_optimizer_set_steps(sl_optimizer *optimizer, int64_t steps);
int sl_optimizer_n_states(const sl_optimizer *optimizer);
void sl_optimizer_state(const sl_optimizer *optimizer, int index, const char **name, sl_tensor **state);

/* The parameters in order of addition, borrowed. */
int sl_optimizer_n_parameters(const sl_optimizer *optimizer);
sl_tensor *sl_optimizer_parameter(const sl_optimizer *optimizer, int index);

/* The Euclidean norm of all gradients of the n tensors together (float64 sums);
 * those without one count 0. */
sl_status sl_grad_norm(int n, sl_tensor *const *parameters, double *norm);
/* Scales the gradients in place so that their norm is at most max_norm; *norm
 * (or NULL) is the norm before. A norm that is not finite leaves them as they
 * are: the caller sees it and decides. */
sl_status sl_clip_grad_norm(int n, sl_tensor *const *parameters, double max_norm, double *norm);

#endif
