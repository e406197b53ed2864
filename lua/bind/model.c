/*** The transformer behind `sl.model`: weights by slot, hooks by site, forward. lua/saelua/model.lua makes it pleasant.
 *
 * Sites count from 1 in the order of computation; layers are data and count from 0.
 * @classmod saelua.ModelCore */
#include "bind_model.h"

#include <string.h>

#include "core/base/mem.h"

sl_model *sl_lua_check_model(lua_State *L, int index) {
  return sl_lua_check_box(L, index, SL_LUA_MODEL, "the model");
}

/* -- Creation ---------------------------------------------------------------------------------- */

static const struct {
  const char *name;
  sl_activation act;
} activations[] = { { "relu", SL_ACT_RELU }, { "gelu", SL_ACT_GELU_ERF }, { "gelu_tanh", SL_ACT_GELU_TANH },
                    { "tanh", SL_ACT_TANH } };

static sl_activation option_activation(lua_State *L, int index) {
  static const char *const names[] = { "relu", "gelu", "gelu_tanh", "tanh", NULL };
  const char *text = sl_lua_option_string(L, index, "activation", "gelu");
  return activations[sl_lua_check_choice(L, text, "activation", names)].act;
}

/*** An empty model.
 * @function sl.new_model
 * @tparam table spec n_layers, d_model, n_heads, d_head, d_mlp, vocab_size, max_positions, n_types, norm ("layer"),
 *   norm_place ("post"), norm_eps, position ("absolute"), activation ("gelu"), head ("none" or "mlm"), tied_head, dtype
 * @tparam[opt="cpu"] string device
 * @treturn ModelCore */
static int model_new(lua_State *L) {
  static const char *const names[] = {
#define X(field, meaning) #field,
    SL_MODEL_SIZES(X)
#undef X
    "norm", "norm_place", "norm_eps", "position", "activation", "head", "tied_head", "dtype", NULL
  };
  static const char *const norms[] = { "layer", "rms", NULL }, *const places[] = { "post", "pre", NULL };
  static const char *const positions[] = { "absolute", "rotary", NULL }, *const heads[] = { "none", "mlm", NULL };
  luaL_checktype(L, 1, LUA_TTABLE);
  sl_lua_check_options(L, 1, "model spec", names);
  sl_model_spec spec = { .norm_eps = (float)sl_lua_option_number(L, 1, "norm_eps", 1e-12) };
#define X(field, meaning) spec.field = sl_lua_option_integer(L, 1, #field, 0);
  SL_MODEL_SIZES(X)
#undef X
  spec.norm = (sl_norm_kind)sl_lua_check_choice(L, sl_lua_option_string(L, 1, "norm", "layer"), "norm", norms);
  spec.norm_place =
      (sl_norm_place)sl_lua_check_choice(L, sl_lua_option_string(L, 1, "norm_place", "post"), "norm_place", places);
  spec.position = (sl_position_kind)sl_lua_check_choice(L, sl_lua_option_string(L, 1, "position", "absolute"),
                                                        "position", positions);
  spec.activation = option_activation(L, 1);
  spec.head = (sl_head_kind)sl_lua_check_choice(L, sl_lua_option_string(L, 1, "head", "none"), "head", heads);
  spec.tied_head = sl_lua_option_boolean(L, 1, "tied_head", true);
  spec.dtype = sl_lua_check_dtype(L, sl_lua_option_string(L, 1, "dtype", "f32"));
  sl_device *device = sl_lua_find_device(L, luaL_optstring(L, 2, "cpu"));
  void **box = sl_lua_new_box(L, SL_LUA_MODEL);
  SL_LUA_TRY(L, sl_model_create(&spec, device, (sl_model **)box));
  return 1;
}

/*** Lets weights and hooks go; later use raises.
 * @function free */
static int model_gc(lua_State *L) {
  void **box = luaL_checkudata(L, 1, SL_LUA_MODEL);
  sl_model_release(*box);
  *box = NULL;
  return 0;
}

/* -- Weights ----------------------------------------------------------------------------------- */

static int check_slot(lua_State *L, int index) {
  const char *name = luaL_checkstring(L, index);
  for (int slot = 0; slot < SL_SLOT_COUNT; slot++)
    if (strcmp(name, sl_slot_name(slot)) == 0) return slot;
  return luaL_error(L, "model: no weight slot is called '%s'", name);
}

/*** Every weight the model wants, in order.
 * @function slots
 * @treturn {table,...} { slot = name, layer = integer or nil, shape = {integer,...} } */
static int model_slots(lua_State *L) {
  const sl_model *model = sl_lua_check_model(L, 1);
  int n = sl_model_n_weights(model);
  lua_createtable(L, n, 0);
  for (int i = 0; i < n; i++) {
    int slot, layer, rank;
    int64_t shape[2];
    sl_lua_check(L, sl_model_weight_at(model, i, &slot, &layer));
    sl_model_slot_shape(model, slot, &rank, shape);
    lua_createtable(L, 0, 3);
    lua_pushstring(L, sl_slot_name(slot));
    lua_setfield(L, -2, "slot");
    if (sl_slot_per_layer(slot)) {
      lua_pushinteger(L, layer);
      lua_setfield(L, -2, "layer");
    }
    lua_createtable(L, rank, 0);
    for (int d = 0; d < rank; d++) {
      lua_pushnumber(L, (lua_Number)shape[d]);
      lua_rawseti(L, -2, d + 1);
    }
    lua_setfield(L, -2, "shape");
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/*** Takes a weight; see core/model/model.h.
 * @function set
 * @tparam string slot
 * @tparam ?integer layer nil for slots of the whole model
 * @tparam Tensor tensor */
static int model_set(lua_State *L) {
  sl_model *model = sl_lua_check_model(L, 1);
  int slot = check_slot(L, 2), layer = (int)luaL_optinteger(L, 3, 0);
  SL_LUA_TRY(L, sl_model_set(model, slot, layer, sl_lua_check_tensor(L, 4)));
  return 0;
}

/*** A weight (shared, not copied), or nil.
 * @function get
 * @tparam string slot
 * @tparam ?integer layer
 * @treturn ?Tensor */
static int model_get(lua_State *L) {
  const sl_model *model = sl_lua_check_model(L, 1);
  sl_tensor *tensor = sl_model_get(model, check_slot(L, 2), (int)luaL_optinteger(L, 3, 0));
  if (!tensor) return 0;
  sl_lua_push_tensor(L, sl_tensor_retain(tensor));
  return 1;
}

/*** Random initialisation as in transformers.
 * @function init
 * @tparam integer seed
 * @tparam[opt=0.02] number std
 * @tparam[opt=-1] integer padding id whose row of the word table is zero; -1 = none */
static int model_init(lua_State *L) {
  sl_model *model = sl_lua_check_model(L, 1);
  uint64_t seed = (uint64_t)sl_lua_check_integer(L, 2, 0, (int64_t)1 << 53);
  float std = (float)luaL_optnumber(L, 3, 0.02);
  SL_LUA_TRY(L, sl_model_init(model, seed, std, (int64_t)luaL_optnumber(L, 4, -1)));
  sl_lua_pressure(L);
  return 0;
}

/*** Raises, naming the first weight that is missing.
 * @function ready */
static int model_ready(lua_State *L) {
  sl_lua_check(L, sl_model_ready(sl_lua_check_model(L, 1)));
  return 0;
}

/*** Gradients for every weight, or none.
 * @function trainable
 * @tparam boolean yes */
static int model_trainable(lua_State *L) {
  luaL_checktype(L, 2, LUA_TBOOLEAN);
  SL_LUA_TRY(L, sl_model_set_trainable(sl_lua_check_model(L, 1), lua_toboolean(L, 2)));
  return 0;
}

/* -- Sites ------------------------------------------------------------------------------------- */

/*** Every hook point of the model, in the order of computation.
 * @function sites
 * @treturn {table,...} { name, point, layer (or nil), width (or nil: tokens), meaning } */
static int model_sites(lua_State *L) {
  const sl_model *model = sl_lua_check_model(L, 1);
  char name[SL_SITE_NAME];
  lua_createtable(L, sl_model_n_sites(model), 0);
  for (int site = 0; site < sl_model_n_sites(model); site++) {
    int point, layer;
    sl_model_site_point(model, site, &point, &layer);
    lua_createtable(L, 0, 5);
    lua_pushstring(L, sl_model_site_name(model, site, name));
    lua_setfield(L, -2, "name");
    lua_pushstring(L, sl_point_name(point));
    lua_setfield(L, -2, "point");
    lua_pushstring(L, sl_point_meaning(point));
    lua_setfield(L, -2, "meaning");
    if (layer >= 0) {
      lua_pushinteger(L, layer);
      lua_setfield(L, -2, "layer");
    }
    int64_t width = sl_model_site_width(model, site);
    if (width > 0) {
      lua_pushnumber(L, (lua_Number)width);
      lua_setfield(L, -2, "width");
    }
    lua_rawseti(L, -2, site + 1);
  }
  return 1;
}

static int check_site(lua_State *L, int index) {
  return (int)sl_lua_check_integer(L, index, 1, sl_model_n_sites(sl_lua_check_model(L, 1))) - 1;
}

/* -- Hooks ------------------------------------------------------------------------------------- */

/* Which state hooks run on: the one that called forward or backward last. One for each universe, in its registry. */
typedef struct {
  lua_State *main;    /* gives references back; lives as long as the universe */
  lua_State *current;
} hook_state;

static const char *const HOOK_STATE = "saelua.hook_state";

static hook_state *get_hook_state(lua_State *L) {
  lua_getfield(L, LUA_REGISTRYINDEX, HOOK_STATE);
  hook_state *state = lua_touserdata(L, -1);
  lua_pop(L, 1);
  return state;
}

lua_State *sl_lua_enter_hooks(lua_State *L) {
  hook_state *state = get_hook_state(L);
  lua_State *previous = state->current;
  state->current = L;
  return previous;
}

void sl_lua_leave_hooks(lua_State *L, lua_State *previous) { get_hook_state(L)->current = previous; }

/* A Lua function as a hook. */
typedef struct {
  hook_state *state;
  int fn; /* registry reference */
} lua_hook;

static void release_lua_hook(void *context) {
  lua_hook *hook = context;
  luaL_unref(hook->state->main, LUA_REGISTRYINDEX, hook->fn);
  sl_mem_free(hook);
}

static int add_traceback(lua_State *L) {
  if (lua_type(L, 1) == LUA_TSTRING) luaL_traceback(L, L, lua_tostring(L, 1), 1);
  else lua_settop(L, 1);
  return 1;
}

static void push_shared(lua_State *L, const sl_tensor *tensor, const char *field) {
  if (!tensor) return;
  sl_lua_push_tensor(L, sl_tensor_retain((sl_tensor *)tensor));
  lua_setfield(L, -2, field);
}

typedef struct {
  int fn;
  const sl_hook_info *info;
  sl_tensor *value, *result; /* result: a new reference, or NULL = keep the value */
} hook_call;

/* Runs protected, so that making boxes may raise: calls fn(tensor, info), checks what it returns. */
static int protected_hook(lua_State *L) {
  hook_call *call = lua_touserdata(L, 1);
  int point, layer;
  lua_rawgeti(L, LUA_REGISTRYINDEX, call->fn);
  sl_lua_push_tensor(L, sl_tensor_retain(call->value));
  lua_createtable(L, 0, 5);
  lua_pushstring(L, call->info->name);
  lua_setfield(L, -2, "name");
  sl_model_site_point(call->info->model, call->info->site, &point, &layer);
  lua_pushstring(L, sl_point_name(point));
  lua_setfield(L, -2, "point");
  if (layer >= 0) {
    lua_pushinteger(L, layer);
    lua_setfield(L, -2, "layer");
  }
  push_shared(L, call->info->ids, "ids");
  push_shared(L, call->info->mask, "mask");
  lua_call(L, 2, 1);
  if (lua_isnil(L, -1)) return 0;
  if (!luaL_testudata(L, -1, SL_LUA_TENSOR))
    return luaL_error(L, "hook at %s: returned a %s, expected a tensor or nil", call->info->name, luaL_typename(L, -1));
  call->result = sl_tensor_retain(sl_lua_check_tensor(L, lua_gettop(L)));
  return 0;
}

/* The bridge from core to Lua. On an error the message stays on the Lua stack; sl_lua_check raises it. */
static sl_status call_lua_hook(void *context, const sl_hook_info *info, sl_tensor **value) {
  lua_hook *hook = context;
  lua_State *L = hook->state->current;
  hook_call call = { .fn = hook->fn, .info = info, .value = *value };
  if (!L || !lua_checkstack(L, 8)) return sl_fail(SL_EHOOK, "hook at %s: no Lua state to run on", info->name);
  lua_pushcfunction(L, add_traceback);
  lua_pushcfunction(L, protected_hook);
  lua_pushlightuserdata(L, &call);
  int status = lua_pcall(L, 1, 0, -3);
  lua_remove(L, status == 0 ? -1 : -2); /* the handler */
  if (status != 0) return sl_fail(SL_EHOOK, "lua");
  if (call.result) {
    sl_tensor_release(*value);
    *value = call.result;
  }
  return SL_OK;
}

/*** Adds a hook.
 * @function add_hook
 * @tparam integer site
 * @tparam string kind "forward", "splice" or "backward"
 * @tparam function fn fn(tensor, info) -> replacement or nil; info has name, point, layer, ids, mask
 * @treturn integer id */
static int model_add_hook(lua_State *L) {
  static const char *const kinds[] = { "forward", "splice", "backward", NULL };
  sl_model *model = sl_lua_check_model(L, 1);
  int site = check_site(L, 2), id;
  int kind = sl_lua_check_choice(L, luaL_checkstring(L, 3), "hook kind", kinds);
  luaL_checktype(L, 4, LUA_TFUNCTION);
  lua_hook *hook;
  lua_pushvalue(L, 4);
  int fn = luaL_ref(L, LUA_REGISTRYINDEX);
  sl_status status = sl_mem_alloc(sizeof *hook, "a Lua hook", (void **)&hook);
  if (status != SL_OK) luaL_unref(L, LUA_REGISTRYINDEX, fn);
  sl_lua_check(L, status);
  *hook = (lua_hook){ get_hook_state(L), fn };
  sl_lua_check(L, sl_model_add_hook(model, site, (sl_hook_kind)kind, call_lua_hook, hook, release_lua_hook, &id));
  lua_pushinteger(L, id);
  return 1;
}

/*** Takes a hook away.
 * @function remove_hook
 * @tparam integer id */
static int model_remove_hook(lua_State *L) {
  sl_model_remove_hook(sl_lua_check_model(L, 1), (int)luaL_checkinteger(L, 2));
  return 0;
}

/*** What is hooked and how often it ran.
 * @function hooks
 * @treturn {table,...} { id, site, kind, calls, last_calls } */
static int model_hooks(lua_State *L) {
  static const char *const kinds[] = { "forward", "splice", "backward" };
  const sl_model *model = sl_lua_check_model(L, 1);
  lua_newtable(L);
  for (int i = 0; i < sl_model_n_hooks(model); i++) {
    sl_hook_stats stats = sl_model_hook_stats(model, i);
    lua_createtable(L, 0, 5);
    lua_pushinteger(L, stats.id);
    lua_setfield(L, -2, "id");
    lua_pushinteger(L, stats.site + 1);
    lua_setfield(L, -2, "site");
    lua_pushstring(L, kinds[stats.kind]);
    lua_setfield(L, -2, "kind");
    lua_pushnumber(L, (lua_Number)stats.calls);
    lua_setfield(L, -2, "calls");
    lua_pushnumber(L, (lua_Number)stats.last_calls);
    lua_setfield(L, -2, "last_calls");
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* -- Forward ----------------------------------------------------------------------------------- */

/* The sites of the option `capture`, as a userdata left on the stack. */
static const int *option_capture(lua_State *L, int index, int n_sites, int *n) {
  lua_getfield(L, index, "capture");
  *n = 0;
  if (lua_isnil(L, -1)) return NULL;
  luaL_checktype(L, -1, LUA_TTABLE);
  int list = lua_gettop(L);
  *n = (int)lua_objlen(L, list);
  int *sites = lua_newuserdata(L, (size_t)(*n + 1) * sizeof *sites);
  for (int i = 0; i < *n; i++) {
    lua_rawgeti(L, list, i + 1);
    sites[i] = (int)sl_lua_check_integer(L, lua_gettop(L), 1, n_sites) - 1;
    lua_pop(L, 1);
  }
  return sites;
}

/* Pushes a table of n empty tensor boxes (released by the collector whatever happens) and an array for core to fill. */
static sl_tensor **new_boxes(lua_State *L, int n) {
  lua_createtable(L, n, 0);
  for (int i = 0; i < n; i++) {
    sl_lua_new_tensor(L);
    lua_rawseti(L, -2, i + 1);
  }
  sl_tensor **filled = lua_newuserdata(L, (size_t)(n + 1) * sizeof(sl_tensor *));
  memset(filled, 0, (size_t)(n + 1) * sizeof(sl_tensor *));
  return filled; /* stack: boxes, filled */
}

static sl_status run_forward(lua_State *L, sl_model *model, const sl_forward_options *options, sl_tensor **filled,
                             sl_tensor **logits) {
  lua_State *previous = sl_lua_enter_hooks(L);
  sl_memory_label before = sl_memory_set_label(SL_MEMORY_ACTIVATIONS);
  sl_status status = sl_model_forward(model, options, filled, logits);
  sl_memory_set_label(before);
  sl_lua_leave_hooks(L, previous);
  return status;
}

/*** Runs the model; see core/model/model.h.
 * @function forward
 * @tparam table options `ids`, `mask`, `type_ids`, `splice_mask`, `logit_rows` (tensors), `logits` (boolean), `capture`
 *   (list of sites), `stop_at` (site), `skip_hooks`
 * @treturn {Tensor,...} captured, in the order asked
 * @treturn ?Tensor logits */
static int model_forward(lua_State *L) {
  static const char *const names[] = { "ids", "mask", "type_ids", "splice_mask", "logit_rows", "logits",
                                       "capture", "stop_at", "skip_hooks", NULL };
  sl_model *model = sl_lua_check_model(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 2);
  sl_lua_check_options(L, 2, "model forward", names);
  sl_forward_options options = {
    .ids = sl_lua_option_tensor(L, 2, "ids"), .mask = sl_lua_option_tensor(L, 2, "mask"),
    .type_ids = sl_lua_option_tensor(L, 2, "type_ids"), .splice_mask = sl_lua_option_tensor(L, 2, "splice_mask"),
    .logit_rows = sl_lua_option_tensor(L, 2, "logit_rows"), .logits = sl_lua_option_boolean(L, 2, "logits", false),
    .stop_at = (int)sl_lua_option_integer(L, 2, "stop_at", 0) - 1,
    .skip_hooks = sl_lua_option_boolean(L, 2, "skip_hooks", false),
  };
  options.capture = option_capture(L, 2, sl_model_n_sites(model), &options.n_capture);
  sl_tensor **filled = new_boxes(L, options.n_capture);
  int boxes = lua_gettop(L) - 1;
  sl_tensor **logits = sl_lua_new_tensor(L);
  sl_status status = run_forward(L, model, &options, filled, logits);
  if (status == SL_ENOMEM) {
    sl_lua_collect(L);
    status = run_forward(L, model, &options, filled, logits);
  }
  sl_lua_check(L, status);
  for (int i = 0; i < options.n_capture; i++) {
    lua_rawgeti(L, boxes, i + 1);
    *(sl_tensor **)lua_touserdata(L, -1) = filled[i];
    lua_pop(L, 1);
  }
  sl_lua_pressure(L);
  lua_pushvalue(L, boxes);
  if (!options.logits) return 1;
  lua_pushvalue(L, -2); /* stack: ..., logits, boxes, logits */
  return 2;
}

static const luaL_Reg methods[] = {
  { "slots", model_slots }, { "set", model_set }, { "get", model_get }, { "init", model_init },
  { "ready", model_ready }, { "trainable", model_trainable }, { "sites", model_sites },
  { "add_hook", model_add_hook }, { "remove_hook", model_remove_hook }, { "hooks", model_hooks },
  { "forward", model_forward }, { "free", model_gc }, { NULL, NULL },
};
static const luaL_Reg meta[] = { { "__gc", model_gc }, { NULL, NULL } };
static const luaL_Reg functions[] = { { "new_model", model_new }, { NULL, NULL } };

void sl_lua_open_model(lua_State *L) {
  sl_lua_new_class(L, SL_LUA_MODEL, methods, meta);
  hook_state *state = lua_newuserdata(L, sizeof *state);
  *state = (hook_state){ .main = L };
  lua_setfield(L, LUA_REGISTRYINDEX, HOOK_STATE);
  lua_pushthread(L); /* keeps L alive should it not be the main thread */
  lua_setfield(L, LUA_REGISTRYINDEX, "saelua.hook_thread");
  luaL_setfuncs(L, functions, 0);
}
