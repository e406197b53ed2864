/* The transformer: a spec, its weights, its hooks, and one forward pass over all of them.
 *
 * Life: create from a spec; set (or randomly initialise) every slot; forward. Weights are tensors held by
 * reference: a mapped file's memory is used where it lies. Under an active tape the forward pass is recorded, so
 * that a model can be trained, attributed and spliced with no second implementation.
 * Not here: files, names of weights and hook points in other libraries' dialects (lua/saelua/families), tokenizers.
 *
 * Sites are numbered in the order of computation: the embedding's points, then each layer's, then the head's. */
#ifndef SL_MODEL_H
#define SL_MODEL_H

#include "core/tensor/tape.h"
#include "spec.h"

typedef struct sl_model sl_model;

/* SL_EINVAL for sizes that make no sense, SL_EUNSUPPORTED naming what this build's forward pass cannot do. */
sl_status sl_model_create(const sl_model_spec *spec, sl_device *device, sl_model **out);
sl_model *sl_model_retain(sl_model *model);
void sl_model_release(sl_model *model);
const sl_model_spec *sl_model_get_spec(const sl_model *model);
sl_device *sl_model_device(const sl_model *model);

/* -- Weights. `layer` is ignored for slots of the whole model. -------------------------------------------------- */

/* "q.w"; NULL for a number that is no slot. */
const char *sl_slot_name(int slot);
bool sl_slot_per_layer(int slot);
/* Does this model have the slot, and with which shape? *rank 0: it has not. */
void sl_model_slot_shape(const sl_model *model, int slot, int *rank, int64_t shape[2]);

/* Takes a weight. f32, bf16 or f16 of the slot's shape; converted to the spec's dtype and moved to the model's device
 * only where it has to be, else the tensor itself is kept. SL_ESHAPE and SL_EDTYPE name the slot. */
sl_status sl_model_set(sl_model *model, int slot, int layer, sl_tensor *tensor);
/* The weight, or NULL when not set (no new reference). */
sl_tensor *sl_model_get(const sl_model *model, int slot, int layer);
/* SL_ESTATE naming the first slot that the spec wants and nobody has set. */
sl_status sl_model_ready(const sl_model *model);

/* Every weight the spec wants, in order (embeddings, layers, head): n of them; SL_EINVAL outside [0, n). */
int sl_model_n_weights(const sl_model *model);
sl_status sl_model_weight_at(const sl_model *model, int index, int *slot, int *layer);

/* Hugging Face's initialisation for BERT: matrices and tables normal(0, std), the padding row and biases zero, norms
 * one. Philox, keyed by (seed, parameter index). */
sl_status sl_model_init(sl_model *model, uint64_t seed, float std, int64_t padding_id);

/* Asks for gradients of every weight, or stops asking. f32 models only. Weights that lie in borrowed memory (a
 * mapped file) are copied first, so that an optimiser may write them. */
sl_status sl_model_set_trainable(sl_model *model, bool trainable);

/* -- Sites ------------------------------------------------------------------------------------------------------- */

/* How many; sites are 0 to n - 1. */
int sl_model_n_sites(const sl_model *model);
/* The site of a point; -1 when the model has no such point (a head point without a head) or layer. */
int sl_model_site(const sl_model *model, int point, int layer);
/* *layer is -1 for points outside the layers. */
void sl_model_site_point(const sl_model *model, int site, int *point, int *layer);
enum { SL_SITE_NAME = 48 };
/* "layers.3.resid_post" into a caller's buffer; returns it. */
const char *sl_model_site_name(const sl_model *model, int site, char name[SL_SITE_NAME]);
const char *sl_point_name(int point);    /* "resid_post"; NULL outside the table */
const char *sl_point_meaning(int point);
/* Width of the last dimension at a site; 0 where it is the number of tokens (scores and pattern). */
int64_t sl_model_site_width(const sl_model *model, int site);

/* -- Hooks ------------------------------------------------------------------------------------------------------- */

typedef struct {
  const sl_model *model;
  int site;
  const char *name;          /* of the site */
  const sl_tensor *ids;      /* i32 [B, T] */
  const sl_tensor *mask;     /* u8 [B, T] or NULL */
} sl_hook_info;

/* May replace *value: release the old tensor and put a new reference of the same shape there. Backward hooks get the
 * gradient of the site's value. A failure stops the pass; a message of its own is kept. */
typedef sl_status (*sl_hook_fn)(void *context, const sl_hook_info *info, sl_tensor **value);

typedef enum {
  SL_HOOK_FORWARD,   /* *value = the activation as it is */
  SL_HOOK_SPLICE,    /* *value = the activation as rows [N, D]; what is returned takes its place at the positions
                        of the splice mask, all others keep the activation */
  SL_HOOK_BACKWARD   /* *value = d loss / d activation; runs inside sl_tape_backward */
} sl_hook_kind;

typedef struct {
  int id, site;
  sl_hook_kind kind;
  int64_t calls;      /* since it was added */
  int64_t last_calls; /* during the last forward pass that ran hooks; backward hooks: since that pass began */
} sl_hook_stats;

/* Hooks run in the order they were added; *id names the hook for removal. release(context), if not NULL, is called when
 * the hook is gone and no tape can call it any more; also when this function fails. */
sl_status sl_model_add_hook(sl_model *model, int site, sl_hook_kind kind, sl_hook_fn fn, void *context,
                            void (*release)(void *), int *id);
/* Unknown ids are ignored: removing twice is fine, also from inside a hook. */
void sl_model_remove_hook(sl_model *model, int id);
int sl_model_n_hooks(const sl_model *model);
/* index in [0, n): in the order they were added. */
sl_hook_stats sl_model_hook_stats(const sl_model *model, int index);

/* -- Forward ----------------------------------------------------------------------------------------------------- */

typedef struct {
  const sl_tensor *ids;         /* i32 [B, T] */
  const sl_tensor *mask;        /* u8 [B, T], 0 = padding; NULL = no padding */
  const sl_tensor *type_ids;    /* i32 [B, T]; NULL = all 0 */
  const sl_tensor *splice_mask; /* u8 [B, T], where splices apply; NULL = `mask` */
  const sl_tensor *logit_rows;  /* i32 [N] positions b * T + t; NULL = all of them */
  bool logits;
  const int *capture;           /* sites; a capture is the value after the site's hooks */
  int n_capture;
  int stop_at;                  /* last site to compute, or -1: as deep as anything asked for */
  bool skip_hooks;
} sl_forward_options;

/* Fills captured[i] (n_capture entries, one new reference each) and *logits [B, T, V] or [N, V] when asked. The pass
 * stops after the deepest site that a capture, a hook, stop_at or the logits ask for; nothing asked: all layers run.
 * Logits of a model without a head are SL_EINVAL. On failure nothing is handed out. */
sl_status sl_model_forward(sl_model *model, const sl_forward_options *options, sl_tensor **captured,
                           sl_tensor **logits);

#endif
