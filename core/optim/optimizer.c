/* Optimisers; see optimizer.h. The arithmetic is in the kernels adam_dense and
 * sgd_dense. */
#include "optimizer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/interrupt.h"
#include "core/base/mem.h"

/* One parameter with its states; sgd uses only the first. */
typedef struct {
  char *name, *state_names[2];
  sl_tensor *parameter, *states[2];
  float lr_scale;
  bool decay;
} slot;

struct sl_optimizer {
  sl_optimizer_options options;
  int64_t steps;
  int n, capacity;
  slot *slots;
};

static const char *const suffixes[][2] = { [SL_OPTIMIZER_ADAM] = { "m", "v" },
                                           [SL_OPTIMIZER_ADAMW] = { "m", "v" },
                                           [SL_OPTIMIZER_SGD] = { "momentum", NULL } };

/* SGD without momentum keeps nothing. */
static int states_each(const sl_optimizer *o) {
  if (o->options.kind != SL_OPTIMIZER_SGD) return 2;
  return o->options.momentum != 0 ? 1 : 0;
}

static sl_status check_range(const char *name, float value, float low, float high) {
  if (value >= low && value < high) return SL_OK; /* false for NaN */
  return sl_fail(SL_EINVAL, "optimizer: %s = %g, expected %g <= %s < %g", name, (double)value, (double)low,
                 name, (double)high);
}

sl_status sl_optimizer_create(const sl_optimizer_options *options, sl_optimizer **out) {
  *out = NULL;
  SL_TRY(check_range("weight_decay", options->weight_decay, 0, INFINITY));
  if (options->kind == SL_OPTIMIZER_SGD) {
    SL_TRY(check_range("momentum", options->momentum, 0, 1));
  } else {
    SL_TRY(check_range("beta1", options->beta1, 0, 1));
    SL_TRY(check_range("beta2", options->beta2, 0, 1));
    SL_TRY(check_range("eps", options->eps, 0, INFINITY));
  }
  SL_TRY(sl_mem_alloc(sizeof **out, "an optimizer", (void **)out));
  (*out)->options = *options;
  return SL_OK;
}

static void clear_slot(slot *s) {
  for (int i = 0; i < 2; i++) {
    sl_mem_free(s->state_names[i]);
    sl_tensor_release(s->states[i]);
  }
  sl_mem_free(s->name);
  sl_tensor_release(s->parameter);
}

void sl_optimizer_release(sl_optimizer *o) {
  if (o == NULL) return;
  for (int i = 0; i < o->n; i++) clear_slot(&o->slots[i]);
  sl_mem_free(o->slots);
  sl_mem_free(o);
}

static sl_status check_parameter(const sl_optimizer *o, const char *name, const sl_tensor *parameter) {
  char text[SL_SHAPE_TEXT];
  SL_TRY(sl_tensor_expect(parameter, "optimizer", name, SL_F32, -1));
  if (!sl_tensor_is_contiguous(parameter)) {
    return sl_fail(SL_ESHAPE, "optimizer: %s %s is a strided view; add the whole tensor", name,
                   sl_tensor_shape_text(parameter, text));
  }
  for (int i = 0; i < o->n; i++) {
    if (strcmp(o->slots[i].name, name) == 0)
      return sl_fail(SL_EINVAL, "optimizer: %s was added before", name);
  }
  return SL_OK;
}

static sl_status make_state(slot *s, int i, const char *suffix) {
  size_t size = strlen(s->name) + strlen(suffix) + 2;
  SL_TRY(sl_mem_alloc(size, "a state name", (void **)&s->state_names[i]));
  snprintf(s->state_names[i], size, "%s.%s", s->name, suffix);
  return sl_tensor_zeros(sl_tensor_device(s->parameter), SL_F32, s->parameter->rank, s->parameter->shape,
                         &s->states[i]);
}

static sl_status fill_slot(const sl_optimizer *o, slot *s, const char *name) {
  SL_TRY(sl_mem_strdup(name, &s->name));
  for (int i = 0; i < states_each(o); i++) SL_TRY(make_state(s, i, suffixes[o->options.kind][i]));
  return SL_OK;
}

sl_status sl_optimizer_add(sl_optimizer *o, const char *name, sl_tensor *parameter, float lr_scale,
                           bool decay) {
  SL_TRY(check_parameter(o, name, parameter));
  if (o->n == o->capacity) {
    int capacity = o->capacity > 0 ? 2 * o->capacity : 16;
    SL_TRY(sl_mem_resize((void **)&o->slots, (size_t)capacity * sizeof(slot), "an optimizer"));
    o->capacity = capacity;
  }
  slot s = { .parameter = sl_tensor_retain(parameter), .lr_scale = lr_scale, .decay = decay };
  sl_memory_label before = sl_memory_set_label(SL_MEMORY_MOMENTS);
  sl_status status = fill_slot(o, &s, name);
  sl_memory_set_label(before);
  if (status == SL_OK)
    o->slots[o->n++] = s;
  else
    clear_slot(&s);
  return status;
}

/* An empty slot of the device's table fails by name. */
static sl_status no_kernel(const sl_device *device, const char *kernel) {
  return sl_fail(SL_EUNSUPPORTED, "kernel %s does not exist on %s yet", kernel, device->name);
}

static sl_status adam_step(const sl_optimizer *o, const slot *s, float lr, float grad_scale) {
  sl_device *device = sl_tensor_device(s->parameter);
  float decay = s->decay ? o->options.weight_decay : 0;
  bool decoupled = o->options.kind == SL_OPTIMIZER_ADAMW;
  sl_adam_dense_args args = { .w = sl_tensor_f32(s->parameter),
                              .m = sl_tensor_f32(s->states[0]),
                              .v = sl_tensor_f32(s->states[1]),
                              .g = sl_tensor_f32(s->parameter->grad),
                              .n = sl_tensor_count(s->parameter),
                              .lr = lr * s->lr_scale,
                              .beta1 = o->options.beta1,
                              .beta2 = o->options.beta2,
                              .eps = o->options.eps,
                              .weight_decay = decoupled ? decay : 0,
                              .l2 = decoupled ? 0 : decay,
                              .grad_scale = grad_scale,
                              .step = o->steps };
  if (device->kernels->adam_dense == NULL) return no_kernel(device, "adam_dense");
  return device->kernels->adam_dense(device, &args);
}

static sl_status sgd_step(const sl_optimizer *o, const slot *s, float lr, float grad_scale) {
  sl_device *device = sl_tensor_device(s->parameter);
  sl_sgd_dense_args args = { .w = sl_tensor_f32(s->parameter),
                             .v = s->states[0] ? sl_tensor_f32(s->states[0]) : NULL,
                             .g = sl_tensor_f32(s->parameter->grad),
                             .n = sl_tensor_count(s->parameter),
                             .lr = lr * s->lr_scale,
                             .momentum = o->options.momentum,
                             .weight_decay = s->decay ? o->options.weight_decay : 0,
                             .grad_scale = grad_scale };
  if (device->kernels->sgd_dense == NULL) return no_kernel(device, "sgd_dense");
  return device->kernels->sgd_dense(device, &args);
}

sl_status sl_optimizer_step(sl_optimizer *o, float lr, float grad_scale) {
  SL_TRY(sl_interrupt_check()); /* before the first parameter, never between two */
  o->steps++;
  for (int i = 0; i < o->n; i++) {
    if (o->slots[i].parameter->grad == NULL) continue;
    if (o->options.kind == SL_OPTIMIZER_SGD)
      SL_TRY(sgd_step(o, &o->slots[i], lr, grad_scale));
    else
      SL_TRY(adam_step(o, &o->slots[i], lr, grad_scale));
  }
  return SL_OK;
}

void sl_optimizer_zero_grad(sl_optimizer *o) {
  for (int i = 0; i < o->n; i++) {
    sl_tensor_release(o->slots[i].parameter->grad);
    o->slots[i].parameter->grad = NULL;
  }
}

int64_t sl_optimizer_steps(const sl_optimizer *o) { return o->steps; }
void sl_optimizer_set_steps(sl_optimizer *o, int64_t steps) { o->steps = steps; }
int sl_optimizer_n_states(const sl_optimizer *o) { return o->n * states_each(o); }

void sl_optimizer_state(const sl_optimizer *o, int index, const char **name, sl_tensor **state) {
  int each = states_each(o);
  const slot *s = &o->slots[index / each];
  *name = s->state_names[index % each];
  *state = s->states[index % each];
}

int sl_optimizer_n_parameters(const sl_optimizer *o) { return o->n; }
sl_tensor *sl_optimizer_parameter(const sl_optimizer *o, int index) { return o->slots[index].parameter; }

/* -- Clipping -- */

/* Asks what the kernel wants to work in, makes it, runs. */
static sl_status sum_squares(sl_device *device, sl_sum_squares_args *args) {
  sl_tensor *work;
  args->need = &args->workspace_bytes;
  SL_TRY(device->kernels->sum_squares(device, args));
  args->need = NULL;
  SL_TRY(sl_tensor_workspace(device, args->workspace_bytes, &work));
  args->workspace = work != NULL ? sl_tensor_data(work) : NULL;
  sl_status status = device->kernels->sum_squares(device, args);
  sl_tensor_release(work);
  return status;
}

sl_status sl_grad_norm(int n, sl_tensor *const *parameters, double *norm) {
  double total = 0;
  for (int i = 0; i < n; i++) {
    const sl_tensor *grad = parameters[i]->grad;
    if (grad == NULL) continue;
    sl_device *device = sl_tensor_device(grad);
    double part;
    sl_sum_squares_args args = { .x = sl_tensor_f32(grad), .n = sl_tensor_count(grad), .result = &part };
    if (device->kernels->sum_squares == NULL) return no_kernel(device, "sum_squares");
    SL_TRY(sum_squares(device, &args));
    total += part;
  }
  *norm = sqrt(total);
  return SL_OK;
}

sl_status sl_clip_grad_norm(int n, sl_tensor *const *parameters, double max_norm, double *norm) {
  double before;
  if (!(max_norm > 0))
    return sl_fail(SL_EINVAL, "clip_grad_norm: max_norm = %g, expected more than 0", max_norm);
  SL_TRY(sl_grad_norm(n, parameters, &before));
  if (norm != NULL) *norm = before;
  if (!isfinite(before) || before <= max_norm) return SL_OK;
  for (int i = 0; i < n; i++) {
    const sl_tensor *grad = parameters[i]->grad;
    if (grad == NULL) continue;
    sl_device *device = sl_tensor_device(grad);
    sl_unary_args args = { .op = SL_UNARY_MUL_SCALAR,
                           .p = (float)(max_norm / before),
                           .x = sl_tensor_f32(grad),
                           .y = sl_tensor_f32(grad),
                           .n = sl_tensor_count(grad) };
    if (device->kernels->unary == NULL) return no_kernel(device, "unary");
    SL_TRY(device->kernels->unary(device, &args));
  }
  return SL_OK;
}
