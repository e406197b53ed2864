/* Shared by the model tests: loading a parity fixture without Lua, small tensors, comparisons. */
#ifndef MODEL_SUPPORT_H
#define MODEL_SUPPORT_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/mem.h"
#include "core/io/weights.h"
#include "core/model/model.h"
#include "core/ops/nn.h"

#define FIXTURES "tests/parity/fixtures/"

/* Names of the tied MLM fixture; %d is the layer. */
static const char *const fixture_names[SL_SLOT_COUNT] = {
  [SL_SLOT_WORD_EMBED] = "bert.embeddings.word_embeddings.weight",
  [SL_SLOT_POS_EMBED] = "bert.embeddings.position_embeddings.weight",
  [SL_SLOT_TYPE_EMBED] = "bert.embeddings.token_type_embeddings.weight",
  [SL_SLOT_EMBED_NORM_W] = "bert.embeddings.LayerNorm.weight",
  [SL_SLOT_EMBED_NORM_B] = "bert.embeddings.LayerNorm.bias",
  [SL_SLOT_Q_W] = "bert.encoder.layer.%d.attention.self.query.weight",
  [SL_SLOT_Q_B] = "bert.encoder.layer.%d.attention.self.query.bias",
  [SL_SLOT_K_W] = "bert.encoder.layer.%d.attention.self.key.weight",
  [SL_SLOT_K_B] = "bert.encoder.layer.%d.attention.self.key.bias",
  [SL_SLOT_V_W] = "bert.encoder.layer.%d.attention.self.value.weight",
  [SL_SLOT_V_B] = "bert.encoder.layer.%d.attention.self.value.bias",
  [SL_SLOT_O_W] = "bert.encoder.layer.%d.attention.output.dense.weight",
  [SL_SLOT_O_B] = "bert.encoder.layer.%d.attention.output.dense.bias",
  [SL_SLOT_NORM1_W] = "bert.encoder.layer.%d.attention.output.LayerNorm.weight",
  [SL_SLOT_NORM1_B] = "bert.encoder.layer.%d.attention.output.LayerNorm.bias",
  [SL_SLOT_UP_W] = "bert.encoder.layer.%d.intermediate.dense.weight",
  [SL_SLOT_UP_B] = "bert.encoder.layer.%d.intermediate.dense.bias",
  [SL_SLOT_DOWN_W] = "bert.encoder.layer.%d.output.dense.weight",
  [SL_SLOT_DOWN_B] = "bert.encoder.layer.%d.output.dense.bias",
  [SL_SLOT_NORM2_W] = "bert.encoder.layer.%d.output.LayerNorm.weight",
  [SL_SLOT_NORM2_B] = "bert.encoder.layer.%d.output.LayerNorm.bias",
  [SL_SLOT_HEAD_W] = "cls.predictions.transform.dense.weight",
  [SL_SLOT_HEAD_B] = "cls.predictions.transform.dense.bias",
  [SL_SLOT_HEAD_NORM_W] = "cls.predictions.transform.LayerNorm.weight",
  [SL_SLOT_HEAD_NORM_B] = "cls.predictions.transform.LayerNorm.bias",
  [SL_SLOT_DECODER_B] = "cls.predictions.bias",
};

static inline sl_model_spec fixture_spec(void) {
  return (sl_model_spec){ .n_layers = 2, .d_model = 24, .n_heads = 3, .d_head = 8, .d_mlp = 40, .vocab_size = 58,
                          .max_positions = 16, .n_types = 2, .norm_eps = 1e-12f, .activation = SL_ACT_GELU_ERF,
                          .head = SL_HEAD_MLM, .tied_head = true, .dtype = SL_F32 };
}

static inline sl_status set_from_file(sl_model *model, sl_weights *weights, int index) {
  int slot, layer;
  char name[128];
  const sl_safetensor *entry;
  SL_TRY(sl_model_weight_at(model, index, &slot, &layer));
  const char *at = strstr(fixture_names[slot], "%d");
  int before = at ? (int)(at - fixture_names[slot]) : (int)strlen(fixture_names[slot]);
  snprintf(name, sizeof name, "%.*s", before, fixture_names[slot]);
  if (at) snprintf(name + before, sizeof name - (size_t)before, "%d%s", layer, at + 2);
  SL_TRY(sl_safetensors_get(sl_weights_set(weights), name, &entry));
  sl_tensor *tensor = NULL;
  SL_TRY(sl_weights_tensor(weights, entry, &tensor));
  sl_status status = sl_model_set(model, slot, layer, tensor);
  sl_tensor_release(tensor);
  return status;
}

/* The open tied fixture as a model. Releases everything on failure. */
static inline sl_status fill_fixture(sl_weights *weights, sl_model **out) {
  sl_model_spec spec = fixture_spec();
  sl_status status = sl_model_create(&spec, sl_cpu_device(), out);
  if (status == SL_OK) {
    for (int i = 0; i < sl_model_n_weights(*out) && status == SL_OK; i++) status = set_from_file(*out, weights, i);
    if (status != SL_OK) sl_model_release(*out);
  }
  if (status != SL_OK) *out = NULL;
  return status;
}

static inline sl_status load_fixture(sl_model **out) {
  sl_weights *weights;
  SL_TRY(sl_weights_open(FIXTURES "bert_mlm_tied", &weights));
  sl_status status = fill_fixture(weights, out);
  sl_weights_release(weights);
  return status;
}

/* A tensor of the file with the expected values. */
static inline sl_tensor *expected(const char *name) {
  sl_weights *weights;
  const sl_safetensor *entry;
  sl_tensor *tensor = NULL;
  assert_int_equal(sl_weights_open(FIXTURES "bert_mlm_tied.safetensors", &weights), SL_OK);
  assert_int_equal(sl_safetensors_get(sl_weights_set(weights), name, &entry), SL_OK);
  assert_int_equal(sl_weights_tensor(weights, entry, &tensor), SL_OK);
  sl_weights_release(weights);
  return tensor;
}

static inline double largest_difference(const sl_tensor *a, const sl_tensor *b) {
  double worst = 0;
  assert_true(sl_tensor_same_shape(a, b));
  assert_true(sl_tensor_is_contiguous(a) && sl_tensor_is_contiguous(b));
  for (int64_t i = 0; i < sl_tensor_count(a); i++) {
    double d = fabs((double)sl_tensor_f32(a)[i] - (double)sl_tensor_f32(b)[i]);
    if (!(d <= worst)) worst = d; /* NaN counts */
  }
  return worst;
}

static inline void assert_message(const char *part) {
  if (!strstr(sl_last_error(), part)) fail_msg("message \"%s\" lacks \"%s\"", sl_last_error(), part);
}

/* -- A fresh model and its inputs for every test ------------------------------------------------- */

static sl_model *model;
static sl_tensor *ids, *mask, *type_ids;

static int setup(void **state) {
  (void)state;
  assert_int_equal(load_fixture(&model), SL_OK);
  ids = expected("ids");
  mask = expected("mask");
  type_ids = expected("type_ids");
  return 0;
}

static int teardown(void **state) {
  (void)state;
  sl_model_release(model);
  sl_tensor_release(ids);
  sl_tensor_release(mask);
  sl_tensor_release(type_ids);
  return 0;
}

static sl_forward_options plain_options(void) {
  return (sl_forward_options){ .ids = ids, .mask = mask, .type_ids = type_ids, .stop_at = -1 };
}

#endif
