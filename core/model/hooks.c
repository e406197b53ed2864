/* Sites and hooks of a model: numbering, names, the list of hooks, and what happens when the pass visits a site. */
#include <stdio.h>
#include <string.h>

#include "core/base/mem.h"
#include "core/ops/math.h"
#include "model_private.h"

/* -- Sites ---------------------------------------------------------------------------------- */

enum { BTD, BTA, BTM, BHTT, BTV };

static const struct {
  const char *name, *meaning;
  int shape;
} point_table[SL_POINT_COUNT] = {
#define X(id, name, scope, shape, meaning) { name, meaning, shape },
  SL_MODEL_POINTS(X)
#undef X
};

const char *sl_point_name(int point) {
  return point >= 0 && point < SL_POINT_COUNT ? point_table[point].name : NULL;
}

const char *sl_point_meaning(int point) {
  return point >= 0 && point < SL_POINT_COUNT ? point_table[point].meaning : NULL;
}

static int first_head_site(const sl_model *model) {
  return SL_N_EMBED_POINTS + (int)model->spec.n_layers * SL_N_LAYER_POINTS;
}

int sl_model_n_sites(const sl_model *model) {
  return first_head_site(model) + (model->spec.head == SL_HEAD_NONE ? 0 : SL_N_HEAD_POINTS);
}

int sl_model_site(const sl_model *model, int point, int layer) {
  if (point < 0 || point >= SL_POINT_COUNT) return -1;
  if (point < SL_FIRST_LAYER_POINT) return point;
  if (point >= SL_FIRST_HEAD_POINT)
    return model->spec.head == SL_HEAD_NONE ? -1 : first_head_site(model) + point - SL_FIRST_HEAD_POINT;
  if (layer < 0 || layer >= model->spec.n_layers) return -1;
  return SL_N_EMBED_POINTS + layer * SL_N_LAYER_POINTS + point - SL_FIRST_LAYER_POINT;
}

void sl_model_site_point(const sl_model *model, int site, int *point, int *layer) {
  *layer = -1;
  if (site < SL_N_EMBED_POINTS) {
    *point = site;
  } else if (site >= first_head_site(model)) {
    *point = SL_FIRST_HEAD_POINT + site - first_head_site(model);
  } else {
    *layer = (site - SL_N_EMBED_POINTS) / SL_N_LAYER_POINTS;
    *point = SL_FIRST_LAYER_POINT + (site - SL_N_EMBED_POINTS) % SL_N_LAYER_POINTS;
  }
}

const char *sl_model_site_name(const sl_model *model, int site, char name[SL_SITE_NAME]) {
  int point, layer;
  sl_model_site_point(model, site, &point, &layer);
  if (layer < 0) snprintf(name, SL_SITE_NAME, "%s", point_table[point].name);
  else snprintf(name, SL_SITE_NAME, "layers.%d.%s", layer, point_table[point].name);
  return name;
}

int64_t sl_model_site_width(const sl_model *model, int site) {
  const sl_model_spec *spec = &model->spec;
  int point, layer;
  sl_model_site_point(model, site, &point, &layer);
  switch (point_table[point].shape) {
  case BTA: return spec->n_heads * spec->d_head;
  case BTM: return spec->d_mlp;
  case BTV: return spec->vocab_size;
  case BHTT: return 0;
  default: return spec->d_model;
  }
}

/* -- The list ------------------------------------------------------------------------------- */

static void hook_release(void *object) {
  sl_hook *hook = object;
  if (--hook->references > 0) return;
  if (hook->release) hook->release(hook->context);
  sl_mem_free(hook);
}

sl_status sl_model_add_hook(sl_model *model, int site, sl_hook_kind kind, sl_hook_fn fn, void *context,
                            void (*release)(void *), int *id) {
  sl_hook *hook;
  sl_status status = SL_OK;
  if (site < 0 || site >= sl_model_n_sites(model))
    status = sl_fail(SL_EINVAL, "model: no site has number %d, the model has %d", site, sl_model_n_sites(model));
  if (status == SL_OK) status = sl_mem_alloc(sizeof *hook, "a hook", (void **)&hook);
  if (status != SL_OK) {
    if (release) release(context);
    return status;
  }
  *hook = (sl_hook){ .references = 1, .stats = { .id = ++model->next_hook_id, .site = site, .kind = kind }, .fn = fn,
                     .context = context, .release = release };
  sl_hook **end = &model->hooks;
  while (*end) end = &(*end)->next;
  *end = hook;
  *id = hook->stats.id;
  return SL_OK;
}

void sl__hooks_sweep(sl_model *model) {
  if (model->running > 0) return;
  for (sl_hook **at = &model->hooks; *at;) {
    sl_hook *hook = *at;
    if (!hook->removed) {
      at = &hook->next;
      continue;
    }
    *at = hook->next;
    hook_release(hook);
  }
}

void sl__hooks_release(sl_model *model) {
  for (sl_hook *hook = model->hooks; hook; hook = hook->next) hook->removed = true;
  model->running = 0;
  sl__hooks_sweep(model);
}

void sl_model_remove_hook(sl_model *model, int id) {
  for (sl_hook *hook = model->hooks; hook; hook = hook->next)
    if (hook->stats.id == id) hook->removed = true;
  sl__hooks_sweep(model);
}

int sl_model_n_hooks(const sl_model *model) {
  int n = 0;
  for (const sl_hook *hook = model->hooks; hook; hook = hook->next) n += !hook->removed;
  return n;
}

sl_hook_stats sl_model_hook_stats(const sl_model *model, int index) {
  const sl_hook *hook = model->hooks;
  while (hook && (hook->removed || index-- > 0)) hook = hook->next;
  return hook ? hook->stats : (sl_hook_stats){ .id = -1, .site = -1 };
}

void sl__hooks_begin(sl_run *run) {
  if (run->options->skip_hooks) return;
  for (sl_hook *hook = run->model->hooks; hook; hook = hook->next) {
    if (hook->removed) continue;
    hook->stats.last_calls = 0;
    run->interest[hook->stats.site] |= hook->stats.kind == SL_HOOK_BACKWARD ? SL_WANT_BACKWARD : SL_WANT_FORWARD;
  }
}

/* -- Visiting ------------------------------------------------------------------------------- */

static sl_status check_replacement(const char *name, const sl_tensor *before, const sl_tensor *after) {
  char want[SL_SHAPE_TEXT], got[SL_SHAPE_TEXT];
  if (!after) return sl_fail(SL_EHOOK, "hook at %s: left no tensor", name);
  if (after->dtype == SL_F32 && sl_tensor_same_shape(before, after) &&
      sl_tensor_device(before) == sl_tensor_device(after))
    return SL_OK;
  return sl_fail(SL_EHOOK, "hook at %s: the replacement is %s %s on %s, expected f32 %s on %s", name,
                 sl_dtype_name(after->dtype), sl_tensor_shape_text(after, got), sl_tensor_device(after)->name,
                 sl_tensor_shape_text(before, want), sl_tensor_device(before)->name);
}

static sl_status call_forward(const sl_hook *hook, const sl_hook_info *info, sl_tensor **value) {
  sl_tensor *before = sl_tensor_retain(*value), *given = *value;
  sl_status status = hook->fn(hook->context, info, value);
  if (status == SL_OK) status = check_replacement(info->name, before, *value);
  if (status == SL_OK && *value != given && !sl_tensor_is_contiguous(*value)) {
    sl_tensor *flat = NULL;
    status = sl_contiguous(*value, &flat);
    if (status == SL_OK) {
      sl_tensor_release(*value);
      *value = flat;
    }
  }
  sl_tensor_release(before);
  return status;
}

/* The splice mask as f32 [B * T, 1]. */
static sl_status make_keep(sl_run *run) {
  const sl_tensor *mask = run->options->splice_mask ? run->options->splice_mask : run->options->mask;
  if (!mask || run->splice_keep) return SL_OK;
  sl_device *device = run->model->device;
  int64_t n = run->batch * run->tokens, shape[2] = { n, 1 };
  uint8_t *bytes;
  float *keep;
  SL_TRY(sl_mem_alloc((size_t)n, "the splice mask", (void **)&bytes));
  sl_status status = sl_mem_alloc((size_t)n * sizeof *keep, "the splice mask", (void **)&keep);
  if (status == SL_OK) {
    status = sl_tensor_read(mask, bytes, (size_t)n);
    for (int64_t i = 0; i < n; i++) keep[i] = bytes[i] ? 1.0f : 0.0f;
    if (status == SL_OK) status = sl_tensor_create(device, SL_F32, 2, shape, &run->splice_keep);
    if (status == SL_OK) status = sl_tensor_write(run->splice_keep, keep, (size_t)n * sizeof *keep);
    sl_mem_free(keep);
  }
  sl_mem_free(bytes);
  return status;
}

/* out = keep ? spliced : rows, written as keep * spliced + (1 - keep) * rows: exact for finite values. */
static sl_status merge(sl_run *run, const sl_tensor *rows, const sl_tensor *spliced, sl_tensor **out) {
  sl_tensor *kept = NULL, *negative = NULL, *rest = NULL, *others = NULL;
  sl_status status = sl_mul(spliced, run->splice_keep, &kept);
  if (status == SL_OK) status = sl_unary(SL_UNARY_NEG, run->splice_keep, 0.0f, &negative);
  if (status == SL_OK) status = sl_unary(SL_UNARY_ADD_SCALAR, negative, 1.0f, &rest);
  if (status == SL_OK) status = sl_mul(rows, rest, &others);
  if (status == SL_OK) status = sl_add(kept, others, out);
  sl_tensor_release(kept);
  sl_tensor_release(negative);
  sl_tensor_release(rest);
  sl_tensor_release(others);
  return status;
}

static sl_status call_splice(sl_run *run, sl_hook *hook, const sl_hook_info *info, sl_tensor **value) {
  int64_t width = (*value)->shape[(*value)->rank - 1];
  int64_t flat[2] = { sl_tensor_count(*value) / width, width };
  if (flat[0] != run->batch * run->tokens)
    return sl_fail(SL_EHOOK, "splice at %s: there is no row per position here", info->name);
  sl_tensor *rows = NULL, *spliced = NULL, *merged = NULL, *shaped = NULL;
  sl_status status = make_keep(run);
  if (status == SL_OK) status = sl_reshape(*value, 2, flat, &rows);
  if (status == SL_OK) {
    spliced = sl_tensor_retain(rows);
    status = hook->fn(hook->context, info, &spliced);
  }
  if (status == SL_OK) status = check_replacement(info->name, rows, spliced);
  if (status == SL_OK && spliced != rows) {
    if (run->splice_keep) status = merge(run, rows, spliced, &merged);
    else status = sl_contiguous(spliced, &merged);
    if (status == SL_OK) status = sl_reshape(merged, (*value)->rank, (*value)->shape, &shaped);
    if (status == SL_OK) {
      sl_tensor_release(*value);
      *value = shaped;
    }
  }
  sl_tensor_release(rows);
  sl_tensor_release(spliced);
  sl_tensor_release(merged);
  return status;
}

/* What a tape needs to call a backward hook: the hook, and copies of what its info points to. */
typedef struct {
  sl_hook *hook;
  sl_model *model;
  sl_tensor *ids, *mask;
} backward_call;

static void backward_call_release(void *object) {
  backward_call *call = object;
  hook_release(call->hook);
  sl_tensor_release(call->ids);
  sl_tensor_release(call->mask);
  sl_model_release(call->model);
  sl_mem_free(call);
}

static sl_status run_backward_hook(void *object, sl_tensor **grad) {
  backward_call *call = object;
  if (call->hook->removed) return SL_OK;
  char name[SL_SITE_NAME];
  sl_hook_info info = { .model = call->model, .site = call->hook->stats.site, .ids = call->ids, .mask = call->mask };
  info.name = sl_model_site_name(call->model, info.site, name);
  sl_tensor *before = sl_tensor_retain(*grad);
  sl_status status = call->hook->fn(call->hook->context, &info, grad);
  call->hook->stats.calls++;
  call->hook->stats.last_calls++;
  if (status == SL_OK) status = check_replacement(info.name, before, *grad);
  if (status == SL_OK && !sl_tensor_is_contiguous(*grad))
    status = sl_fail(SL_EHOOK, "hook at %s: the replacement is not contiguous; call :contiguous()", info.name);
  sl_tensor_release(before);
  return status;
}

/* A value that nothing trainable fed is made a leaf, so that its gradient exists: attribution in a frozen model. */
static sl_status make_tracked(sl_tensor **value) {
  if (sl_tape_tracks(*value)) return SL_OK;
  sl_tensor *leaf = NULL;
  SL_TRY(sl_detach(*value, &leaf));
  leaf->requires_grad = true;
  sl_tensor_release(*value);
  *value = leaf;
  return SL_OK;
}

/* Gives *value a new identity (a view) for each hook: a tape takes one hook a tensor, and two sites may share one. */
static sl_status attach_backward(sl_run *run, sl_hook *hook, sl_tensor **value) {
  if (!sl_tape_active()) return SL_OK;
  sl_tensor *view = NULL;
  SL_TRY(make_tracked(value));
  SL_TRY(sl_reshape(*value, (*value)->rank, (*value)->shape, &view));
  sl_tensor_release(*value);
  *value = view;
  backward_call *call;
  SL_TRY(sl_mem_alloc(sizeof *call, "a backward hook", (void **)&call));
  const sl_forward_options *options = run->options;
  call->hook = hook;
  hook->references++;
  call->model = sl_model_retain(run->model);
  call->ids = sl_tensor_retain((sl_tensor *)options->ids);
  call->mask = options->mask ? sl_tensor_retain((sl_tensor *)options->mask) : NULL;
  return sl_tape_hook(view, run_backward_hook, call, backward_call_release);
}

static sl_status run_hooks(sl_run *run, int site, sl_tensor **value) {
  char name[SL_SITE_NAME];
  sl_hook_info info = { .model = run->model, .site = site, .ids = run->options->ids, .mask = run->options->mask };
  info.name = sl_model_site_name(run->model, site, name);
  for (sl_hook *hook = run->model->hooks; hook; hook = hook->next) {
    if (hook->removed || hook->stats.site != site) continue;
    if (hook->stats.kind == SL_HOOK_BACKWARD) {
      SL_TRY(attach_backward(run, hook, value));
      continue;
    }
    hook->stats.calls++;
    hook->stats.last_calls++;
    if (hook->stats.kind == SL_HOOK_SPLICE) SL_TRY(call_splice(run, hook, &info, value));
    else SL_TRY(call_forward(hook, &info, value));
  }
  return SL_OK;
}

sl_status sl__visit(sl_run *run, int site, sl_tensor **value) {
  int wanted = run->interest[site];
  if (wanted & (SL_WANT_FORWARD | SL_WANT_BACKWARD)) SL_TRY(run_hooks(run, site, value));
  if (wanted & SL_WANT_CAPTURE)
    for (int i = 0; i < run->options->n_capture; i++)
      if (run->options->capture[i] == site) run->captured[i] = sl_tensor_retain(*value);
  return site >= run->last_site ? SL_RUN_STOPPED : SL_OK;
}
