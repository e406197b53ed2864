/* What every binding file uses: errors, options, boxes, devices, tensors.
 *
 * A method checks all its arguments, makes its box, calls core, and only then may raise: nothing raw
 * is held across a call that can raise. Misuse raises with the recipe's line in front; failures of
 * the world (no file, a full disk) return nil, message, code. Finalizers never raise. */
#ifndef SL_BIND_H
#define SL_BIND_H

#include <lauxlib.h>
#include <lua.h>

#include "core/tensor/tape.h"

#define SL_LUA_TENSOR "saelua.Tensor"
#define SL_LUA_TAPE "saelua.Tape"

/* -- Errors (bind.c) -- */

/* Raises the last error unless status is SL_OK. */
void sl_lua_check(lua_State *L, sl_status status);
/* For calls that touch the world: on SL_EIO, SL_ENOTFOUND, SL_EFORMAT pushes nil, message, code name and returns 3;
 * other failures raise; on SL_OK returns `n_results`. */
int sl_lua_result(lua_State *L, sl_status status, int n_results);
/* Frees what Lua no longer uses; called before an allocation is tried again. */
void sl_lua_collect(lua_State *L);
/* sl_lua_check with one more try after a collection when memory ran out. `call` is an expression. */
#define SL_LUA_TRY(L, call)                                   \
  do {                                                        \
    sl_status sl_lua_status_ = (call);                        \
    if (sl_lua_status_ == SL_ENOMEM) {                        \
      sl_lua_collect(L);                                      \
      sl_lua_status_ = (call);                                \
    }                                                         \
    sl_lua_check(L, sl_lua_status_);                          \
  } while (0)

/* -- Option tables (bind.c): absent table or key = default; a wrong type raises and names the option -- */

/* Raises on a key of the table at `index` that is not in `names` (NULL-terminated), with the nearest one. */
void sl_lua_check_options(lua_State *L, int index, const char *where, const char *const names[]);
double sl_lua_option_number(lua_State *L, int index, const char *name, double otherwise);
int64_t sl_lua_option_integer(lua_State *L, int index, const char *name, int64_t otherwise);
bool sl_lua_option_boolean(lua_State *L, int index, const char *name, bool otherwise);
/* The string lives as long as the table keeps it. */
const char *sl_lua_option_string(lua_State *L, int index, const char *name, const char *otherwise);
sl_tensor *sl_lua_option_tensor(lua_State *L, int index, const char *name); /* NULL when absent */
sl_device *sl_lua_option_device(lua_State *L, int index, const char *name); /* default: the CPU */
/* Like luaL_checkoption, raising with the list of choices. */
int sl_lua_check_choice(lua_State *L, const char *text, const char *what, const char *const choices[]);
/* An integer argument; raises when it has a fraction or is outside [low, high]. */
int64_t sl_lua_check_integer(lua_State *L, int index, int64_t low, int64_t high);
/* A list of integers: a table at `index`, or the arguments from `index` on. Returns how many (at most SL_MAX_RANK). */
int sl_lua_check_shape(lua_State *L, int index, int64_t shape[SL_MAX_RANK]);
sl_dtype sl_lua_check_dtype(lua_State *L, const char *text);
sl_device *sl_lua_find_device(lua_State *L, const char *name);

/* -- Boxes (bind.c): a userdata that holds one pointer -- */

/* Pushes a box holding NULL, with this metatable; returns where the pointer goes. */
void **sl_lua_new_box(lua_State *L, const char *metatable);
/* The pointer; raises when the value is of another type, or was freed ("tensor was freed"). */
void *sl_lua_check_box(lua_State *L, int index, const char *metatable, const char *what);
/* Registers a metatable with __index = methods. */
void sl_lua_new_class(lua_State *L, const char *metatable, const luaL_Reg *methods, const luaL_Reg *meta);

/* -- Tensors (scope.c: boxes; tensor.c: methods) -- */

/* The tensor at `index`; raises when it is something else, or was freed. No new reference. */
sl_tensor *sl_lua_check_tensor(lua_State *L, int index);
sl_tensor *sl_lua_opt_tensor(lua_State *L, int index); /* nil or none: NULL */
/* Pushes an empty tensor box; fill *box with one reference. The open scope, if any, remembers it. */
sl_tensor **sl_lua_new_tensor(lua_State *L);
/* Pushes a box around `tensor`, taking over one reference (also when it raises). */
void sl_lua_push_tensor(lua_State *L, sl_tensor *tensor);
/* Tells the collector about bytes that it cannot see; call after making tensors. */
void sl_lua_pressure(lua_State *L);

/* One element at a host address (tensor_values.c). */
double sl_lua_value_at(const char *data, sl_dtype dtype);
void sl_lua_store_value(char *out, sl_dtype dtype, double value);
/* Raises when an integer dtype cannot hold the value: a fraction, out of range, not finite. */
void sl_lua_check_value(lua_State *L, const char *where, sl_dtype dtype, double value);
int sl_lua_tensor_tostring(lua_State *L);

/* -- Openers: each adds to the module table on top of the stack -- */
void sl_lua_open_scope(lua_State *L);
void sl_lua_open_tensor(lua_State *L);
void sl_lua_open_create(lua_State *L);
void sl_lua_open_ops(lua_State *L);
void sl_lua_open_ops_transformer(lua_State *L);
void sl_lua_open_tape(lua_State *L);
void sl_lua_open_device(lua_State *L);
void sl_lua_open_memory(lua_State *L);
void sl_lua_open_data(lua_State *L);
void sl_lua_open_io(lua_State *L);
void sl_lua_open_optim(lua_State *L);
int luaopen_saelua_core(lua_State *L);

#endif
