/*** Tensor boxes and scopes: which tensors live how long.
 * @module saelua.core */
#include "bind.h"

static const char *const SCOPE = "saelua.scope"; /* registry: the innermost scope's list of boxes, or nil */
static bool scope_open;

sl_tensor *sl_lua_check_tensor(lua_State *L, int index) {
  return sl_lua_check_box(L, index, SL_LUA_TENSOR, "the tensor");
}

sl_tensor *sl_lua_opt_tensor(lua_State *L, int index) {
  return lua_isnoneornil(L, index) ? NULL : sl_lua_check_tensor(L, index);
}

sl_tensor **sl_lua_new_tensor(lua_State *L) {
  void **box = sl_lua_new_box(L, SL_LUA_TENSOR);
  if (scope_open) {
    lua_getfield(L, LUA_REGISTRYINDEX, SCOPE); /* stack: box, list */
    lua_pushvalue(L, -2);
    lua_rawseti(L, -2, (int)lua_objlen(L, -2) + 1);
    lua_pop(L, 1);
  }
  return (sl_tensor **)box;
}

void sl_lua_push_tensor(lua_State *L, sl_tensor *tensor) {
  sl_tensor **box = sl_lua_new_tensor(L);
  *box = tensor;
  sl_lua_pressure(L);
}

void sl_lua_pressure(lua_State *L) {
  /* A step of the collector per 64 MiB of new tensors, a whole cycle per 512 MiB. */
  enum { STEP = 64 << 20, FULL = 512 << 20 };
  static int64_t since_step, since_full;
  int64_t bytes = sl_storage_take_pressure();
  since_step += bytes;
  since_full += bytes;
  if (since_full > FULL) {
    lua_gc(L, LUA_GCCOLLECT, 0);
    since_full = since_step = 0;
  } else if (since_step > STEP) {
    if (lua_gc(L, LUA_GCSTEP, 400)) since_full = 0;
    since_step = 0;
  }
}

/* Releases every box of the list at `list` unless it lies on the stack from `first` on. */
static void close_scope(lua_State *L, int list, int first, int last) {
  int n = (int)lua_objlen(L, list);
  for (int i = 1; i <= n; i++) {
    lua_rawgeti(L, list, i);
    void **box = luaL_testudata(L, -1, SL_LUA_TENSOR); /* the list is in a recipe's hands: trust nothing */
    bool kept = !box;
    for (int k = first; k <= last && !kept; k++) kept = lua_rawequal(L, -1, k);
    if (!kept) {
      sl_tensor_release(*box);
      *box = NULL;
    }
    lua_pop(L, 1);
  }
}

/* Makes a new list the innermost scope; the list remembers the outer one at index 0. Pushes the list. */
static void open_scope(lua_State *L) {
  lua_newtable(L);
  lua_getfield(L, LUA_REGISTRYINDEX, SCOPE);
  if (!scope_open) {
    lua_pop(L, 1);
    lua_pushboolean(L, 0);
  }
  lua_rawseti(L, -2, 0);
  lua_pushvalue(L, -1);
  lua_setfield(L, LUA_REGISTRYINDEX, SCOPE);
  scope_open = true;
}

/* Makes the outer scope of the list at `list` the innermost again; leaves it (or false) on the stack. */
static void restore_outer(lua_State *L, int list) {
  lua_rawgeti(L, list, 0);
  scope_open = lua_istable(L, -1);
  lua_pushvalue(L, -1);
  lua_setfield(L, LUA_REGISTRYINDEX, SCOPE);
}

/*** Takes a tensor out of the scope it was made in, so that it lives on.
 * @function keep
 * @tparam Tensor t
 * @treturn Tensor t */
static int keep(lua_State *L) {
  luaL_checkudata(L, 1, SL_LUA_TENSOR);
  lua_settop(L, 1);
  if (!scope_open) return 1;
  lua_getfield(L, LUA_REGISTRYINDEX, SCOPE);
  while (lua_istable(L, 2)) { /* a tensor that scopes handed outwards may be in several lists, or twice in one */
    int n = (int)lua_objlen(L, 2);
    for (int i = n; i >= 1; i--) {
      lua_rawgeti(L, 2, i);
      bool found = lua_rawequal(L, -1, 1);
      lua_pop(L, 1);
      if (!found) continue;
      lua_rawgeti(L, 2, n); /* the last one takes its place */
      lua_rawseti(L, 2, i);
      lua_pushnil(L);
      lua_rawseti(L, 2, n--);
    }
    lua_rawgeti(L, 2, 0);
    lua_replace(L, 2);
  }
  lua_settop(L, 1);
  return 1;
}

/*** Runs fn and frees every tensor made inside, except those that it returns or that went through keep(t).
 * Frees them also when fn raises. A tensor that goes on living elsewhere (in a table, a hook) must be kept.
 * @function scope
 * @tparam function fn
 * @return what fn returns */
static int scope(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  open_scope(L);
  lua_pushvalue(L, 1); /* stack: fn, list, fn */
  int status = lua_pcall(L, 0, LUA_MULTRET, 0);
  int last = lua_gettop(L);
  restore_outer(L, 2); /* stack: fn, list, results..., outer */
  close_scope(L, 2, 3, status == 0 ? last : 2);
  if (status != 0) {
    lua_pop(L, 1);
    return lua_error(L);
  }
  /* What is returned belongs to the enclosing scope from here on. */
  for (int i = 3; i <= last && scope_open; i++) {
    if (!luaL_testudata(L, i, SL_LUA_TENSOR)) continue;
    lua_pushvalue(L, i);
    lua_rawseti(L, last + 1, (int)lua_objlen(L, last + 1) + 1);
  }
  lua_settop(L, last);
  return last - 2;
}

/*** Opens a scope by hand, for iterators: what is made from here on is freed by end_scope.
 * @function begin_scope
 * @treturn table the scope */
static int begin_scope(lua_State *L) {
  open_scope(L);
  return 1;
}

/*** Frees what was made since begin_scope, except what was kept. Scopes left open inside it end too; what
 * they held is left to the collector.
 * @function end_scope
 * @tparam table scope */
static int end_scope(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  restore_outer(L, 1);
  close_scope(L, 1, 1, 0);
  return 0;
}

/*** Runs fn outside every scope: tensors made inside belong to nobody but their references. For objects that keep
 * tensors between calls (buffers, optimiser states).
 * @function unscoped
 * @tparam function fn
 * @return what fn returns */
static int unscoped(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  lua_getfield(L, LUA_REGISTRYINDEX, SCOPE);
  lua_insert(L, 1); /* stack: list, fn */
  bool open = scope_open;
  scope_open = false;
  int status = lua_pcall(L, 0, LUA_MULTRET, 0);
  scope_open = open;
  lua_pushvalue(L, 1);
  lua_setfield(L, LUA_REGISTRYINDEX, SCOPE);
  return status == 0 ? lua_gettop(L) - 1 : lua_error(L);
}

static const luaL_Reg functions[] = {
  { "scope", scope }, { "begin_scope", begin_scope }, { "end_scope", end_scope },
  { "keep", keep },   { "unscoped", unscoped },       { NULL, NULL },
};

void sl_lua_open_scope(lua_State *L) { luaL_setfuncs(L, functions, 0); }
