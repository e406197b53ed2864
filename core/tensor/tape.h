/* Tape: a record of the operations of one forward pass, replayed in reverse for gradients.
 *
 * While a tape records, an operation that has a tracked input (a leaf with requires_grad, or a
 * result of an earlier recorded operation) appends a node: its backward function, the tensors it
 * needs, its inputs and its output. sl_tape_backward walks the nodes in reverse, hands each the
 * gradient of its output, and adds what it returns to the gradients of its inputs; leaves collect
 * theirs in tensor->grad (added to what is there). No graph optimiser, no second order.
 *
 * One tape records at a time (per thread). A tape owns its nodes and they own references to their
 * tensors; sl_tape_reset, backward and release let them go. */
#ifndef SL_TAPE_H
#define SL_TAPE_H

#include "tensor.h"

enum { SL_NODE_INPUTS = 6, SL_NODE_SAVED = 8, SL_NODE_NUMBERS = 8 };

typedef struct sl_node sl_node;

/* Computes the gradients of the inputs that want one: node->wants[i] says so; each result goes to
 * grad_inputs[i] as a new reference of the input's shape. grad is contiguous f32 of the output's shape. */
typedef sl_status (*sl_backward_fn)(const sl_node *node, sl_tensor *grad, sl_tensor **grad_inputs);

struct sl_node {
  const char *op;
  sl_backward_fn backward;
  int n_inputs, n_saved;
  sl_tensor *inputs[SL_NODE_INPUTS];   /* may hold NULL for an absent optional input */
  sl_tensor *saved[SL_NODE_SAVED];
  double numbers[SL_NODE_NUMBERS];     /* options of the operation */
  int64_t dims[2 * SL_MAX_RANK];
  void *context;                       /* anything else, freed by release_context */
  void (*release_context)(void *context);
  int64_t output_id;                   /* tape_id of the output */
  bool wants[SL_NODE_INPUTS];
  sl_tensor *output_like;              /* shape and device of the output; kept for hooks and messages */
};

/* An empty tape that does not record. */
sl_status sl_tape_create(sl_tape **out);
void sl_tape_release(sl_tape *tape);     /* stops recording if it is the active one */
/* Resets it and makes it the active one. While its backward runs (a hook may try), start and reset do nothing, and
 * release waits for the end. */
void sl_tape_start(sl_tape *tape);
bool sl_tape_is_running(const sl_tape *tape);
void sl_tape_stop(void);                 /* no tape is active any more */
sl_tape *sl_tape_active(void);           /* or NULL */
void sl_tape_reset(sl_tape *tape);       /* forgets every node */
int64_t sl_tape_length(const sl_tape *tape);

/* Suspends recording and resumes it: `previous = sl_tape_pause(); ...; sl_tape_resume(previous);`
 * If `previous` was released in between, nothing records afterwards. */
sl_tape *sl_tape_pause(void);
void sl_tape_resume(sl_tape *previous);

/* Is a gradient wanted through this tensor on the active tape? NULL tensors: no. */
bool sl_tape_tracks(const sl_tensor *tensor);

/* For operations: true when a tape is active and any of the n tensors is tracked. */
bool sl_tape_wants(int n, sl_tensor *const *inputs);

/* Appends a node for `output`. Copies *node (inputs, saved, numbers, context filled in), retains its tensors.
 * Takes node->context over also on failure. */
sl_status sl_tape_record(const sl_node *node, sl_tensor *output);

/* d loss / d leaf into leaf->grad for every leaf, then resets and stops the tape.
 * `seed` NULL: loss must have one element and its gradient is 1. */
sl_status sl_tape_backward(sl_tape *tape, const sl_tensor *loss, const sl_tensor *seed);

/* Drops the gradient of a leaf (NULL afterwards). */
void sl_tensor_clear_grad(sl_tensor *leaf);

/* Called with each gradient as backward reaches the output `tensor`; may replace *grad (release the old, own the
 * new). For backward hooks; lives until the tape is reset. release_context runs then. */
typedef sl_status (*sl_grad_hook)(void *context, sl_tensor **grad);
sl_status sl_tape_hook(const sl_tensor *tensor, sl_grad_hook hook, void *context, void (*release_context)(void *));

#endif
