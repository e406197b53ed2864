/* Life of a model and its weights; see model.h. The forward pass is in forward.c, hooks are in hooks.c. */
#include "model_private.h"

#include <string.h>

#include "core/base/mem.h"
#include "core/ops/math.h"

/* -- The tables ---------------------------------------------------------------------------- */

enum { MODEL, LAYER };
enum { ALWAYS, HEAD, UNTIED };
enum { TABLE, MATRIX, VECTOR };

static const struct {
  const char *name;
  int scope, presence, kind;
} slot_table[SL_SLOT_COUNT] = {
#define X(id, name, scope, presence, kind, rows, cols) { name, scope, presence, kind },
  SL_MODEL_SLOTS(X)
#undef X
};

static void slot_dims(const sl_model_spec *s, int slot, int64_t dims[2]) {
  const int64_t table[SL_SLOT_COUNT][2] = {
#define X(id, name, scope, presence, kind, rows, cols) { rows, cols },
    SL_MODEL_SLOTS(X)
#undef X
  };
  dims[0] = table[slot][0];
  dims[1] = table[slot][1];
}

static bool slot_present(const sl_model_spec *s, int slot) {
  if (slot_table[slot].presence == HEAD) return s->head == SL_HEAD_MLM;
  if (slot_table[slot].presence == UNTIED) return s->head == SL_HEAD_MLM && !s->tied_head;
  return true;
}

const char *sl_slot_name(int slot) { return slot >= 0 && slot < SL_SLOT_COUNT ? slot_table[slot].name : NULL; }
bool sl_slot_per_layer(int slot) { return slot_table[slot].scope == LAYER; }

void sl_model_slot_shape(const sl_model *model, int slot, int *rank, int64_t shape[2]) {
  *rank = 0;
  if (slot < 0 || slot >= SL_SLOT_COUNT || !slot_present(&model->spec, slot)) return;
  *rank = slot_table[slot].kind == VECTOR ? 1 : 2;
  slot_dims(&model->spec, slot, shape);
}

/* -- Life ------------------------------------------------------------------------------------ */

static sl_status check_sizes(const sl_model_spec *s) {
  enum { LARGEST = 1 << 26 };
#define X(field, meaning)                                                                        \
  if (s->field < 1 || s->field > LARGEST)                                                        \
    return sl_fail(SL_EINVAL, "model spec: " #field " (" meaning ") is %lld, expected 1 to %d", \
                   (long long)s->field, LARGEST);
  SL_MODEL_SIZES(X)
#undef X
  enum { MOST_LAYERS = 4096 };
  if (s->n_layers > MOST_LAYERS)
    return sl_fail(SL_EINVAL, "model spec: %lld layers, expected at most %d", (long long)s->n_layers, MOST_LAYERS);
  if (!(s->norm_eps >= 0.0f && s->norm_eps < 1.0f))
    return sl_fail(SL_EINVAL, "model spec: norm_eps is %g, expected a number from 0 to 1", (double)s->norm_eps);
  if (s->dtype != SL_F32 && s->dtype != SL_BF16)
    return sl_fail(SL_EDTYPE, "model spec: dtype is %s, expected f32 or bf16", sl_dtype_name(s->dtype));
  return SL_OK;
}

static sl_status check_spec(const sl_model_spec *s) {
  SL_TRY(check_sizes(s));
  if (s->norm != SL_NORM_LAYER) return sl_fail(SL_EUNSUPPORTED, "model spec: RMS norms are not built yet");
  if (s->norm_place != SL_NORM_POST)
    return sl_fail(SL_EUNSUPPORTED, "model spec: norms before the branch (pre-norm) are not built yet");
  if (s->position != SL_POSITION_ABSOLUTE)
    return sl_fail(SL_EUNSUPPORTED, "model spec: rotary positions are not built yet");
  if (s->activation == SL_ACT_NONE) return sl_fail(SL_EINVAL, "model spec: the MLP needs an activation");
  return SL_OK;
}

sl_status sl_model_create(const sl_model_spec *spec, sl_device *device, sl_model **out) {
  SL_TRY(check_spec(spec));
  sl_model *model;
  SL_TRY(sl_mem_alloc(sizeof *model, "a model", (void **)&model));
  sl_status status = sl_mem_alloc((size_t)(SL_SLOT_COUNT * spec->n_layers) * sizeof *model->weights,
                                  "a model's weight list", (void **)&model->weights);
  if (status != SL_OK) {
    sl_mem_free(model);
    return status;
  }
  model->references = 1;
  model->spec = *spec;
  model->device = device;
  *out = model;
  return SL_OK;
}

sl_model *sl_model_retain(sl_model *model) {
  model->references++;
  return model;
}

void sl_model_release(sl_model *model) {
  if (!model || --model->references > 0) return;
  sl__hooks_release(model);
  sl__replays_release(model);
  for (int64_t i = 0; i < SL_SLOT_COUNT * model->spec.n_layers; i++) sl_tensor_release(model->weights[i]);
  sl_mem_free(model->weights);
  sl_mem_free(model);
}

const sl_model_spec *sl_model_get_spec(const sl_model *model) { return &model->spec; }
sl_device *sl_model_device(const sl_model *model) { return model->device; }

/* -- Weights --------------------------------------------------------------------------------- */

static sl_tensor **place(const sl_model *model, int slot, int layer) {
  int64_t at = slot_table[slot].scope == LAYER ? layer : 0;
  return &model->weights[(int64_t)slot * model->spec.n_layers + at];
}

static sl_status check_place(const sl_model *model, int slot, int layer) {
  if (slot < 0 || slot >= SL_SLOT_COUNT) return sl_fail(SL_EINVAL, "model: no weight slot has number %d", slot);
  if (!slot_present(&model->spec, slot))
    return sl_fail(SL_EINVAL, "model: weight '%s' has no place in this model (%s)", slot_table[slot].name,
                   model->spec.head == SL_HEAD_NONE ? "it has no head" : "its decoder is tied to the word table");
  if (slot_table[slot].scope == LAYER && (layer < 0 || layer >= model->spec.n_layers))
    return sl_fail(SL_EINVAL, "model: weight '%s' of layer %d: layers are 0 to %lld", slot_table[slot].name, layer,
                   (long long)model->spec.n_layers - 1);
  return SL_OK;
}

static sl_status check_weight(const sl_model *model, int slot, const sl_tensor *tensor) {
  int rank;
  int64_t shape[2];
  char want[SL_SHAPE_TEXT], got[SL_SHAPE_TEXT];
  sl_model_slot_shape(model, slot, &rank, shape);
  bool fits = tensor->rank == rank && tensor->shape[0] == shape[0] && (rank == 1 || tensor->shape[1] == shape[1]);
  if (!fits)
    return sl_fail(SL_ESHAPE, "weight '%s' is %s, expected %s", slot_table[slot].name,
                   sl_tensor_shape_text(tensor, got), sl_shape_text(rank, shape, want));
  if (tensor->dtype != SL_F32 && tensor->dtype != SL_BF16 && tensor->dtype != SL_F16)
    return sl_fail(SL_EDTYPE, "weight '%s' has dtype %s, expected f32, bf16 or f16", slot_table[slot].name,
                   sl_dtype_name(tensor->dtype));
  return SL_OK;
}

/* f16 -> bf16 goes through f32, as everything that changes dtype. */
static sl_status convert(const sl_tensor *tensor, sl_dtype dtype, sl_tensor **out) {
  if (tensor->dtype == SL_F32 || dtype == SL_F32) return sl_cast(tensor, dtype, out);
  sl_tensor *wide = NULL;
  SL_TRY(sl_cast(tensor, SL_F32, &wide));
  sl_status status = sl_cast(wide, dtype, out);
  sl_tensor_release(wide);
  return status;
}

/* The tensor itself where it already is what the slot wants. */
static sl_status adopt(sl_model *model, sl_tensor *tensor, sl_dtype dtype, sl_tensor **out) {
  sl_tensor *flat = NULL, *right = NULL;
  SL_TRY(sl_tensor_contiguous(tensor, &flat));
  sl_status status = SL_OK;
  if (flat->dtype == dtype) right = sl_tensor_retain(flat);
  else status = convert(flat, dtype, &right);
  sl_tensor_release(flat);
  if (status != SL_OK) return status;
  if (sl_tensor_device(right) == model->device) {
    *out = right;
    return SL_OK;
  }
  status = sl_tensor_to_device(right, model->device, out);
  sl_tensor_release(right);
  return status;
}

sl_status sl_model_set(sl_model *model, int slot, int layer, sl_tensor *tensor) {
  SL_TRY(check_place(model, slot, layer));
  SL_TRY(check_weight(model, slot, tensor));
  sl_dtype dtype = slot_table[slot].kind == VECTOR ? SL_F32 : model->spec.dtype;
  sl_tensor *kept = NULL;
  sl_tape *previous = sl_tape_pause();
  sl_memory_label before = sl_memory_set_label(SL_MEMORY_MODEL);
  sl_status status = adopt(model, tensor, dtype, &kept);
  sl_memory_set_label(before);
  sl_tape_resume(previous);
  if (status != SL_OK) return status;
  sl__replays_release(model);
  sl_tensor **at = place(model, slot, layer);
  sl_tensor_release(*at);
  *at = kept;
  return SL_OK;
}

sl_tensor *sl_model_get(const sl_model *model, int slot, int layer) {
  if (slot < 0 || slot >= SL_SLOT_COUNT) return NULL;
  if (slot_table[slot].scope == LAYER && (layer < 0 || layer >= model->spec.n_layers)) return NULL;
  return *place(model, slot, layer);
}

int sl_model_n_weights(const sl_model *model) {
  int n = 0;
  for (int slot = 0; slot < SL_SLOT_COUNT; slot++)
    if (slot_present(&model->spec, slot)) n += slot_table[slot].scope == LAYER ? (int)model->spec.n_layers : 1;
  return n;
}

/* Order: slots before the layers, then layer by layer, then the rest. */
sl_status sl_model_weight_at(const sl_model *model, int index, int *slot, int *layer) {
  int per_layer = 0, first = -1, last = 0, i = index;
  for (int s = 0; s < SL_SLOT_COUNT; s++) {
    if (slot_table[s].scope != LAYER) continue;
    if (first < 0) first = s;
    last = s;
    per_layer++;
  }
  *layer = 0;
  if (i >= first) {
    i -= first;
    int64_t in_layers = model->spec.n_layers * per_layer;
    if (i < in_layers) {
      *layer = i / per_layer;
      *slot = first + i % per_layer;
      return SL_OK;
    }
    i -= (int)in_layers;
    for (*slot = last + 1; *slot < SL_SLOT_COUNT; (*slot)++)
      if (slot_present(&model->spec, *slot) && i-- == 0) return SL_OK;
  } else if (i >= 0) {
    *slot = i;
    return SL_OK;
  }
  return sl_fail(SL_EINVAL, "model: no weight has number %d, the model has %d", index, sl_model_n_weights(model));
}

sl_status sl_model_ready(const sl_model *model) {
  for (int i = 0; i < sl_model_n_weights(model); i++) {
    int slot, layer;
    SL_TRY(sl_model_weight_at(model, i, &slot, &layer));
    if (*place(model, slot, layer)) continue;
    if (slot_table[slot].scope == LAYER)
      return sl_fail(SL_ESTATE, "model: weight '%s' of layer %d is missing", slot_table[slot].name, layer);
    return sl_fail(SL_ESTATE, "model: weight '%s' is missing", slot_table[slot].name);
  }
  return SL_OK;
}

/* -- Random initialisation ------------------------------------------------------------------- */

static sl_status fill_constant(sl_tensor *tensor, float value) {
  SL_TRY(sl_tensor_fill_zero(tensor));
  if (value == 0.0f) return SL_OK;
  sl_tensor *filled = tensor;
  return sl_unary(SL_UNARY_ADD_SCALAR, tensor, value, &filled);
}

static bool is_norm_weight(int slot) {
  return slot == SL_SLOT_EMBED_NORM_W || slot == SL_SLOT_NORM1_W || slot == SL_SLOT_NORM2_W ||
         slot == SL_SLOT_HEAD_NORM_W;
}

static sl_status fill_initial(int slot, uint64_t seed, int stream, float std, sl_tensor *tensor) {
  if (slot_table[slot].kind == VECTOR) return fill_constant(tensor, is_norm_weight(slot) ? 1.0f : 0.0f);
  sl_device *device = sl_tensor_device(tensor);
  if (!device->kernels->random)
    return sl_fail(SL_EUNSUPPORTED, "random: kernel not available on device %s", device->name);
  sl_random_args args = { .kind = SL_RANDOM_NORMAL, .seed = seed, .stream = (uint32_t)stream, .low = 0.0f,
                          .high = std, .y = sl_tensor_data(tensor), .n = sl_tensor_count(tensor) };
  return device->kernels->random(device, &args);
}

static sl_status zero_row(const sl_tensor *table, int64_t row) {
  sl_tensor *view;
  SL_TRY(sl_tensor_select(table, 0, row, &view));
  sl_status status = sl_tensor_fill_zero(view);
  sl_tensor_release(view);
  return status;
}

static sl_status init_weights(sl_model *model, uint64_t seed, float std, int64_t padding_id) {
  for (int i = 0; i < sl_model_n_weights(model); i++) {
    int slot, layer, rank;
    int64_t shape[2];
    SL_TRY(sl_model_weight_at(model, i, &slot, &layer));
    sl_model_slot_shape(model, slot, &rank, shape);
    sl_tensor *tensor;
    SL_TRY(sl_tensor_create(model->device, SL_F32, rank, shape, &tensor));
    sl_status status = fill_initial(slot, seed, i, std, tensor);
    if (status == SL_OK && slot == SL_SLOT_WORD_EMBED && padding_id >= 0) status = zero_row(tensor, padding_id);
    if (status == SL_OK) status = sl_model_set(model, slot, layer, tensor);
    sl_tensor_release(tensor);
    SL_TRY(status);
  }
  return SL_OK;
}

sl_status sl_model_init(sl_model *model, uint64_t seed, float std, int64_t padding_id) {
  if (padding_id >= model->spec.vocab_size)
    return sl_fail(SL_EINVAL, "model init: padding id %lld is outside the vocabulary of %lld", (long long)padding_id,
                   (long long)model->spec.vocab_size);
  sl_tape *previous = sl_tape_pause();
  sl_memory_label before = sl_memory_set_label(SL_MEMORY_MODEL);
  sl_status status = init_weights(model, seed, std, padding_id);
  sl_memory_set_label(before);
  sl_tape_resume(previous);
  return status;
}

/* -- Training -------------------------------------------------------------------------------- */

static sl_status own(sl_tensor **weight) {
  if (!(*weight)->storage->release) return SL_OK;
  sl_tensor *copy;
  sl_memory_label before = sl_memory_set_label(SL_MEMORY_MODEL);
  sl_status status = sl_tensor_clone(*weight, &copy);
  sl_memory_set_label(before);
  SL_TRY(status);
  sl_tensor_release(*weight);
  *weight = copy;
  return SL_OK;
}

sl_status sl_model_set_trainable(sl_model *model, bool trainable) {
  if (trainable && model->spec.dtype != SL_F32)
    return sl_fail(SL_EDTYPE, "model: weights are %s; only an f32 model can be trained (load it with dtype = \"f32\")",
                   sl_dtype_name(model->spec.dtype));
  SL_TRY(sl_model_ready(model));
  for (int i = 0; i < sl_model_n_weights(model); i++) {
    int slot, layer;
    SL_TRY(sl_model_weight_at(model, i, &slot, &layer));
    sl_tensor **weight = place(model, slot, layer);
    if (trainable) SL_TRY(own(weight));
    (*weight)->requires_grad = trainable;
    if (!trainable) sl_tensor_clear_grad(*weight);
  }
  return SL_OK;
}
