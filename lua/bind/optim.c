/*** Optimisers over named parameters: for models, and for dictionaries written in Lua.
 * @classmod saelua.Optimizer */
#include "bind.h"

#include "core/optim/optimizer.h"

#define SL_LUA_OPTIMIZER "saelua.Optimizer"

static sl_optimizer *check_optimizer(lua_State *L) {
  return sl_lua_check_box(L, 1, SL_LUA_OPTIMIZER, "the optimiser");
}

/*** An optimiser without parameters; sl.optim.adam and sl.optim.sgd fill one.
 * @function sl.optimizer
 * @tparam string kind "adam", "adamw" or "sgd"
 * @tparam[opt] table options beta1 (0.9), beta2 (0.999), eps (1e-8), weight_decay (0), momentum (0, sgd)
 * @treturn Optimizer */
static int optimizer_new(lua_State *L) {
  static const char *const kinds[] = { "adam", "adamw", "sgd", NULL };
  static const char *const names[] = { "beta1", "beta2", "eps", "weight_decay", "momentum", NULL };
  int kind = sl_lua_check_choice(L, luaL_checkstring(L, 1), "optimizer", kinds);
  sl_lua_check_options(L, 2, "optimizer", names);
  sl_optimizer_options options = {
    .kind = (sl_optimizer_kind)kind,
    .beta1 = (float)sl_lua_option_number(L, 2, "beta1", 0.9),
    .beta2 = (float)sl_lua_option_number(L, 2, "beta2", 0.999),
    .eps = (float)sl_lua_option_number(L, 2, "eps", 1e-8),
    .weight_decay = (float)sl_lua_option_number(L, 2, "weight_decay", 0),
    .momentum = (float)sl_lua_option_number(L, 2, "momentum", 0),
  };
  void **box = sl_lua_new_box(L, SL_LUA_OPTIMIZER);
  SL_LUA_TRY(L, sl_optimizer_create(&options, (sl_optimizer **)box));
  return 1;
}

/*** Adds a contiguous float32 parameter.
 * @function add
 * @tparam string name
 * @tparam Tensor parameter
 * @tparam[opt] table options lr_scale (1), decay (true): whether weight decay applies
 * @treturn Optimizer itself */
static int optimizer_add(lua_State *L) {
  static const char *const names[] = { "lr_scale", "decay", NULL };
  sl_optimizer *optimizer = check_optimizer(L);
  const char *name = luaL_checkstring(L, 2);
  sl_tensor *parameter = sl_lua_check_tensor(L, 3);
  sl_lua_check_options(L, 4, "add", names);
  float scale = (float)sl_lua_option_number(L, 4, "lr_scale", 1);
  SL_LUA_TRY(L, sl_optimizer_add(optimizer, name, parameter, scale, sl_lua_option_boolean(L, 4, "decay", true)));
  lua_settop(L, 1);
  return 1;
}

/*** One update; the gradients are dropped afterwards.
 * @function step
 * @tparam number lr */
static int optimizer_step(lua_State *L) {
  sl_optimizer *optimizer = check_optimizer(L);
  SL_LUA_TRY(L, sl_optimizer_step(optimizer, (float)luaL_checknumber(L, 2), 1.0f));
  sl_optimizer_zero_grad(optimizer);
  return 0;
}

/*** Drops all gradients.
 * @function zero_grad */
static int optimizer_zero_grad(lua_State *L) {
  sl_optimizer_zero_grad(check_optimizer(L));
  return 0;
}

/*** Scales the gradients so that their global norm is at most `max_norm` (0 = leave them).
 * @function clip
 * @tparam number max_norm
 * @treturn number the norm before */
static int optimizer_clip(lua_State *L) {
  sl_optimizer *optimizer = check_optimizer(L);
  double most = luaL_checknumber(L, 2), norm = 0;
  int n = sl_optimizer_n_parameters(optimizer);
  sl_tensor **list = lua_newuserdata(L, (size_t)(n + 1) * sizeof *list);
  for (int i = 0; i < n; i++) list[i] = sl_optimizer_parameter(optimizer, i);
  if (most > 0) sl_lua_check(L, sl_clip_grad_norm(n, list, most, &norm));
  else sl_lua_check(L, sl_grad_norm(n, list, &norm));
  lua_pushnumber(L, norm);
  return 1;
}

/*** The live state tensors.
 * @function state
 * @treturn {{string,Tensor},...}
 * @treturn integer steps taken */
static int optimizer_state(lua_State *L) {
  sl_optimizer *optimizer = check_optimizer(L);
  lua_newtable(L);
  for (int i = 0; i < sl_optimizer_n_states(optimizer); i++) {
    const char *name;
    sl_tensor *state;
    sl_optimizer_state(optimizer, i, &name, &state);
    lua_createtable(L, 2, 0);
    lua_pushstring(L, name);
    lua_rawseti(L, -2, 1);
    sl_lua_push_tensor(L, sl_tensor_retain(state));
    lua_rawseti(L, -2, 2);
    lua_rawseti(L, -2, i + 1);
  }
  lua_pushnumber(L, (lua_Number)sl_optimizer_steps(optimizer));
  return 2;
}

/*** Sets the number of steps taken, when a checkpoint is loaded.
 * @function set_steps
 * @tparam integer steps */
static int optimizer_set_steps(lua_State *L) {
  sl_optimizer_set_steps(check_optimizer(L), sl_lua_check_integer(L, 2, 0, INT64_C(1) << 52));
  return 0;
}

static int optimizer_gc(lua_State *L) {
  void **box = luaL_checkudata(L, 1, SL_LUA_OPTIMIZER);
  sl_optimizer_release(*box);
  *box = NULL;
  return 0;
}

static const luaL_Reg methods[] = {
  { "add", optimizer_add },     { "step", optimizer_step },   { "zero_grad", optimizer_zero_grad },
  { "clip", optimizer_clip },   { "state", optimizer_state }, { "set_steps", optimizer_set_steps },
  { NULL, NULL },
};
static const luaL_Reg meta[] = { { "__gc", optimizer_gc }, { NULL, NULL } };
static const luaL_Reg functions[] = { { "optimizer", optimizer_new }, { NULL, NULL } };

void sl_lua_open_optim(lua_State *L) {
  sl_lua_new_class(L, SL_LUA_OPTIMIZER, methods, meta);
  luaL_setfuncs(L, functions, 0);
}
