/* The tape; see tape.h. Tracked results are found by tape_id in an open-addressing table. */
#include "tape.h"

#include <string.h>

#include "core/base/mem.h"

/* What is known of one tracked tensor: its gradient so far, a leaf to deliver it to, a hook. */
typedef struct {
  int64_t id;              /* 0 = empty slot */
  sl_tensor *grad;
  sl_tensor *leaf;         /* retained; NULL for results of operations */
  sl_grad_hook hook;
  void *hook_context;
  void (*release_hook)(void *);
} slot;

struct sl_tape {
  sl_tape *next_alive;     /* list of all tapes of this thread */
  bool running;            /* backward is under way: what it walks must stay */
  bool doomed;             /* released meanwhile: goes when backward ends */
  sl_node *nodes;
  int64_t n_nodes, node_capacity;
  slot *slots;
  int64_t n_slots, slot_capacity; /* a power of two */
};

static _Thread_local sl_tape *active, *alive;

/* -- The table ----------------------------------------------------------------------------- */

static slot *find_slot(const sl_tape *tape, int64_t id) {
  if (tape->slot_capacity == 0) return NULL;
  uint64_t mask = (uint64_t)tape->slot_capacity - 1;
  for (uint64_t i = (uint64_t)id * 0x9e3779b97f4a7c15ull >> 20;; i++) {
    slot *found = &tape->slots[i & mask];
    if (found->id == id || found->id == 0) return found;
  }
}

static sl_status grow_slots(sl_tape *tape) {
  sl_tape larger = { .slot_capacity = tape->slot_capacity ? 2 * tape->slot_capacity : 64 };
  SL_TRY(sl_mem_alloc((size_t)larger.slot_capacity * sizeof(slot), "the tape", (void **)&larger.slots));
  for (int64_t i = 0; i < tape->slot_capacity; i++)
    if (tape->slots[i].id) *find_slot(&larger, tape->slots[i].id) = tape->slots[i];
  sl_mem_free(tape->slots);
  tape->slots = larger.slots;
  tape->slot_capacity = larger.slot_capacity;
  return SL_OK;
}

static sl_status add_slot(sl_tape *tape, int64_t id, slot **out) {
  if (4 * (tape->n_slots + 1) > 3 * tape->slot_capacity) SL_TRY(grow_slots(tape));
  slot *found = find_slot(tape, id);
  if (found->id == 0) {
    found->id = id;
    tape->n_slots++;
  }
  *out = found;
  return SL_OK;
}

static bool has_slot(const sl_tape *tape, int64_t id) {
  const slot *found = find_slot(tape, id);
  return found && found->id == id;
}

/* -- Life ------------------------------------------------------------------------------------ */

sl_status sl_tape_create(sl_tape **out) {
  SL_TRY(sl_mem_alloc(sizeof(sl_tape), "a tape", (void **)out));
  (*out)->next_alive = alive;
  alive = *out;
  return SL_OK;
}

static void release_node(sl_node *node) {
  for (int i = 0; i < node->n_inputs; i++) sl_tensor_release(node->inputs[i]);
  for (int i = 0; i < node->n_saved; i++) sl_tensor_release(node->saved[i]);
  sl_tensor_release(node->output_like);
  if (node->release_context) node->release_context(node->context);
}

static void release_slot(slot *entry) {
  sl_tensor_release(entry->grad);
  sl_tensor_release(entry->leaf);
  if (entry->release_hook) entry->release_hook(entry->hook_context);
}

static void forget_nodes(sl_tape *tape) {
  for (int64_t i = tape->n_nodes - 1; i >= 0; i--) release_node(&tape->nodes[i]);
  tape->n_nodes = 0;
  for (int64_t i = 0; i < tape->slot_capacity; i++)
    if (tape->slots[i].id) release_slot(&tape->slots[i]);
  if (tape->slots) memset(tape->slots, 0, (size_t)tape->slot_capacity * sizeof(slot));
  tape->n_slots = 0;
}

void sl_tape_reset(sl_tape *tape) {
  if (!tape->running) forget_nodes(tape);
}

bool sl_tape_is_running(const sl_tape *tape) { return tape->running; }

void sl_tape_release(sl_tape *tape) {
  if (!tape) return;
  if (active == tape) active = NULL;
  if (tape->running) {
    tape->doomed = true;
    return;
  }
  sl_tape **link = &alive;
  while (*link != tape) link = &(*link)->next_alive;
  *link = tape->next_alive;
  forget_nodes(tape);
  sl_mem_free(tape->nodes);
  sl_mem_free(tape->slots);
  sl_mem_free(tape);
}

void sl_tape_start(sl_tape *tape) {
  if (tape->running) return;
  sl_tape_reset(tape);
  active = tape;
}

void sl_tape_stop(void) { active = NULL; }
sl_tape *sl_tape_active(void) { return active; }
int64_t sl_tape_length(const sl_tape *tape) { return tape->n_nodes; }

sl_tape *sl_tape_pause(void) {
  sl_tape *previous = active;
  active = NULL;
  return previous;
}

/* A tape that was released while it was suspended is gone. */
void sl_tape_resume(sl_tape *previous) {
  active = NULL;
  for (sl_tape *tape = alive; tape; tape = tape->next_alive)
    if (tape == previous) active = previous;
}

/* -- Recording --------------------------------------------------------------------------------- */

bool sl_tape_tracks(const sl_tensor *tensor) {
  return active && tensor && (tensor->requires_grad || has_slot(active, tensor->tape_id));
}

bool sl_tape_wants(int n, sl_tensor *const *inputs) {
  for (int i = 0; i < n; i++)
    if (sl_tape_tracks(inputs[i])) return true;
  return false;
}

static sl_status reserve_node(sl_tape *tape) {
  if (tape->n_nodes < tape->node_capacity) return SL_OK;
  int64_t capacity = tape->node_capacity ? 2 * tape->node_capacity : 32;
  SL_TRY(sl_mem_resize((void **)&tape->nodes, (size_t)capacity * sizeof(sl_node), "the tape"));
  tape->node_capacity = capacity;
  return SL_OK;
}

/* Makes room for everything first, so that a failure leaves the tape as it was. */
static sl_status prepare(sl_tape *tape, const sl_node *node, const sl_tensor *output) {
  slot *entry;
  SL_TRY(reserve_node(tape));
  SL_TRY(add_slot(tape, output->tape_id, &entry));
  for (int i = 0; i < node->n_inputs; i++) {
    sl_tensor *input = node->inputs[i];
    if (!input || !input->requires_grad) continue;
    SL_TRY(add_slot(tape, input->tape_id, &entry));
    if (!entry->leaf) entry->leaf = sl_tensor_retain(input);
  }
  return SL_OK;
}

sl_status sl_tape_record(const sl_node *node, sl_tensor *output) {
  sl_tape *tape = active;
  sl_status status = tape ? prepare(tape, node, output) : SL_OK;
  if (status != SL_OK || !tape) {
    if (node->release_context) node->release_context(node->context);
    return status;
  }
  sl_node *kept = &tape->nodes[tape->n_nodes++];
  *kept = *node;
  kept->output_id = output->tape_id;
  kept->output_like = sl_tensor_retain(output);
  for (int i = 0; i < kept->n_inputs; i++) {
    kept->wants[i] = sl_tape_tracks(kept->inputs[i]);
    if (kept->inputs[i]) sl_tensor_retain(kept->inputs[i]);
  }
  for (int i = 0; i < kept->n_saved; i++)
    if (kept->saved[i]) sl_tensor_retain(kept->saved[i]);
  return SL_OK;
}

sl_status sl_tape_hook(const sl_tensor *tensor, sl_grad_hook hook, void *context, void (*release_context)(void *)) {
  slot *entry = active ? find_slot(active, tensor->tape_id) : NULL;
  if (!entry || entry->id != tensor->tape_id || entry->hook) {
    if (release_context) release_context(context);
    return sl_fail(SL_ESTATE, entry && entry->hook ? "backward hook: this tensor has one already"
                                                   : "backward hook: the tensor is not on an active tape");
  }
  entry->hook = hook;
  entry->hook_context = context;
  entry->release_hook = release_context;
  return SL_OK;
}

/* -- Backward ---------------------------------------------------------------------------------- */

/* Nobody else sees these elements: no other header and, since backward functions hand out views, no other view. */
static bool owned_alone(const sl_tensor *tensor) {
  return tensor->references == 1 && tensor->storage->references == 1;
}

/* *sum += addend; takes the reference to `addend` over. */
static sl_status accumulate(sl_tensor **sum, sl_tensor *addend) {
  if (!*sum) {
    *sum = addend;
    return SL_OK;
  }
  sl_device *device = sl_tensor_device(addend);
  sl_tensor *result = NULL;
  bool in_place = owned_alone(*sum);
  sl_status status = SL_OK;
  if (in_place) result = sl_tensor_retain(*sum);
  else status = sl_tensor_create_like(addend, SL_F32, &result);
  if (status == SL_OK) {
    int64_t count = sl_tensor_count(addend);
    sl_binary_args args = { .op = SL_BINARY_ADD, .rank = 1, .shape = { count }, .strides_a = { 1 },
                            .strides_b = { 1 }, .a = sl_tensor_f32(*sum), .b = sl_tensor_f32(addend),
                            .y = sl_tensor_f32(result) };
    status = device->kernels->binary(device, &args);
  }
  sl_tensor_release(addend);
  if (status == SL_OK) {
    sl_tensor_release(*sum);
    *sum = result;
  } else {
    sl_tensor_release(result);
  }
  return status;
}

/* Adds one input's gradient to its slot; takes the reference over. */
static sl_status deliver(sl_tape *tape, const sl_node *node, int i, sl_tensor *grad) {
  char got[SL_SHAPE_TEXT], want[SL_SHAPE_TEXT];
  const sl_tensor *input = node->inputs[i];
  if (!sl_tensor_same_shape(grad, input) || grad->dtype != SL_F32 || !sl_tensor_is_contiguous(grad)) {
    sl_status status = sl_fail(SL_ESHAPE, "%s backward: gradient %s for input %d of shape %s", node->op,
                               sl_tensor_shape_text(grad, got), i + 1, sl_tensor_shape_text(input, want));
    sl_tensor_release(grad);
    return status;
  }
  return accumulate(&find_slot(tape, input->tape_id)->grad, grad);
}

static sl_status run_node(sl_tape *tape, const sl_node *node) {
  slot *entry = find_slot(tape, node->output_id);
  sl_tensor *grad = entry->grad;
  if (!grad) return SL_OK; /* nothing downstream depends on this output */
  entry->grad = NULL;
  sl_tensor *grad_inputs[SL_NODE_INPUTS] = { NULL };
  sl_status status = entry->hook ? entry->hook(entry->hook_context, &grad) : SL_OK;
  if (status == SL_OK) status = node->backward(node, grad, grad_inputs);
  sl_tensor_release(grad);
  for (int i = 0; i < node->n_inputs; i++) {
    if (!grad_inputs[i]) continue;
    if (status == SL_OK && node->wants[i]) status = deliver(tape, node, i, grad_inputs[i]);
    else sl_tensor_release(grad_inputs[i]);
  }
  return status;
}

static sl_status seed_gradient(sl_tape *tape, const sl_tensor *loss, const sl_tensor *seed) {
  char text[SL_SHAPE_TEXT], seed_text[SL_SHAPE_TEXT];
  slot *entry = find_slot(tape, loss->tape_id);
  if (!entry || entry->id != loss->tape_id)
    return sl_fail(SL_ESTATE, "backward: this tensor was not computed on the tape from a tensor that requires a "
                              "gradient; call tape:start() before the forward pass");
  if (seed) {
    SL_TRY(sl_tensor_expect(seed, "backward", "the seed", SL_F32, -1));
    if (sl_tensor_device(seed) != sl_tensor_device(loss))
      return sl_fail(SL_EDEVICE, "backward: the seed is on %s, the tensor on %s", sl_tensor_device(seed)->name,
                     sl_tensor_device(loss)->name);
    if (!sl_tensor_same_shape(seed, loss))
      return sl_fail(SL_ESHAPE, "backward: the seed is %s, the tensor %s", sl_tensor_shape_text(seed, seed_text),
                     sl_tensor_shape_text(loss, text));
    return sl_tensor_clone(seed, &entry->grad);
  }
  if (sl_tensor_count(loss) != 1)
    return sl_fail(SL_ESHAPE, "backward: the loss is %s, expected one element; reduce it (:sum() or :mean())",
                   sl_tensor_shape_text(loss, text));
  SL_TRY(sl_tensor_create_like(loss, SL_F32, &entry->grad));
  float one = 1.0f;
  return sl_tensor_write(entry->grad, &one, sizeof one);
}

static sl_status deliver_to_leaves(sl_tape *tape) {
  for (int64_t i = 0; i < tape->slot_capacity; i++) {
    slot *entry = &tape->slots[i];
    if (!entry->leaf || !entry->grad) continue;
    sl_tensor *grad = entry->grad;
    entry->grad = NULL;
    if (entry->hook) {
      sl_status status = entry->hook(entry->hook_context, &grad);
      if (status != SL_OK) {
        sl_tensor_release(grad);
        return status;
      }
    }
    /* A leaf owns its gradient alone, so that later steps may add in place. */
    if (!entry->leaf->grad && !owned_alone(grad)) {
      sl_tensor *copy;
      sl_status status = sl_tensor_clone(grad, &copy);
      sl_tensor_release(grad);
      if (status != SL_OK) return status;
      grad = copy;
    }
    SL_TRY(accumulate(&entry->leaf->grad, grad));
  }
  return SL_OK;
}

sl_status sl_tape_backward(sl_tape *tape, const sl_tensor *loss, const sl_tensor *seed) {
  if (tape->running) return sl_fail(SL_ESTATE, "backward: this tape is in the middle of a backward pass");
  tape->running = true;
  if (active == tape) active = NULL; /* backward functions use plain operations */
  sl_tape *previous = sl_tape_pause();
  sl_memory_label before = sl_memory_set_label(SL_MEMORY_GRADIENTS);
  sl_status status = seed_gradient(tape, loss, seed);
  for (int64_t i = tape->n_nodes - 1; i >= 0 && status == SL_OK; i--) status = run_node(tape, &tape->nodes[i]);
  if (status == SL_OK) status = deliver_to_leaves(tape);
  sl_memory_set_label(before);
  sl_tape_resume(previous);
  tape->running = false;
  if (tape->doomed) sl_tape_release(tape);
  else sl_tape_reset(tape);
  return status;
}

void sl_tensor_clear_grad(sl_tensor *leaf) {
  sl_tensor_release(leaf->grad);
  leaf->grad = NULL;
}
