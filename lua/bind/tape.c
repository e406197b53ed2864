/*** The gradient tape.
 *
 *     local tape = sl.tape()
 *     tape:start()
 *     local loss = model(x)          -- operations on tensors with requires_grad are recorded
 *     loss:backward()                -- leaves now hold t:grad(); the tape is empty and stopped
 * @classmod saelua.Tape */
#include "bind.h"
#include "bind_model.h"

static sl_tape *check_tape(lua_State *L) { return sl_lua_check_box(L, 1, SL_LUA_TAPE, "the tape"); }

/* The same, refusing a tape whose backward pass is what called us (through a hook). */
static sl_tape *check_idle_tape(lua_State *L, const char *what) {
  sl_tape *tape = check_tape(L);
  if (sl_tape_is_running(tape)) luaL_error(L, "tape:%s: this tape is in the middle of a backward pass", what);
  return tape;
}

/*** An empty tape that does not record yet.
 * @function sl.tape
 * @treturn Tape */
static int tape_new(lua_State *L) {
  void **box = sl_lua_new_box(L, SL_LUA_TAPE);
  SL_LUA_TRY(L, sl_tape_create((sl_tape **)box));
  return 1;
}

/*** Empties the tape and records from here on; another recording tape stops.
 * @function start
 * @treturn Tape itself */
static int tape_start(lua_State *L) {
  sl_tape_start(check_idle_tape(L, "start"));
  lua_settop(L, 1);
  return 1;
}

/*** Stops recording; what was recorded stays until start, reset or backward.
 * @function stop
 * @treturn Tape itself */
static int tape_stop(lua_State *L) {
  if (sl_tape_active() == check_tape(L)) sl_tape_stop();
  lua_settop(L, 1);
  return 1;
}

/*** Forgets what was recorded.
 * @function reset
 * @treturn Tape itself */
static int tape_reset(lua_State *L) {
  sl_tape_reset(check_idle_tape(L, "reset"));
  lua_settop(L, 1);
  return 1;
}

/*** d loss / d leaf is added to the gradient of every leaf; empties and stops the tape.
 * @function backward
 * @tparam Tensor loss one element, unless a seed is given
 * @tparam[opt] Tensor seed gradient of the final loss with respect to `loss` */
static int tape_backward(lua_State *L) {
  sl_tape *tape = check_tape(L);
  sl_tensor *loss = sl_lua_check_tensor(L, 2), *seed = sl_lua_opt_tensor(L, 3);
  lua_State *previous = sl_lua_enter_hooks(L);
  sl_status status = sl_tape_backward(tape, loss, seed);
  sl_lua_leave_hooks(L, previous);
  sl_lua_check(L, status);
  return 0;
}

/*** How many operations are recorded.
 * @function length
 * @treturn integer operations recorded */
static int tape_length(lua_State *L) {
  lua_pushnumber(L, (lua_Number)sl_tape_length(check_tape(L)));
  return 1;
}

static int tape_gc(lua_State *L) {
  void **box = luaL_checkudata(L, 1, SL_LUA_TAPE);
  sl_tape_release(*box);
  *box = NULL;
  return 0;
}

/*** Runs a function with recording suspended.
 * @function sl.no_grad
 * @tparam function fn
 * @return what it returns */
static int no_grad(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  sl_tape *previous = sl_tape_pause();
  int status = lua_pcall(L, 0, LUA_MULTRET, 0);
  sl_tape_resume(previous);
  return status == 0 ? lua_gettop(L) : lua_error(L);
}

static const luaL_Reg methods[] = {
  { "start", tape_start }, { "stop", tape_stop },     { "reset", tape_reset },
  { "backward", tape_backward }, { "length", tape_length }, { NULL, NULL },
};
static const luaL_Reg meta[] = { { "__gc", tape_gc }, { NULL, NULL } };
static const luaL_Reg functions[] = { { "tape", tape_new }, { "no_grad", no_grad }, { NULL, NULL } };

void sl_lua_open_tape(lua_State *L) {
  sl_lua_new_class(L, SL_LUA_TAPE, methods, meta);
  luaL_setfuncs(L, functions, 0);
}
