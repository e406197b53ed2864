/*** Rows and contexts.
 * @module saelua.core */
#include "bind.h"

#include "core/data/rows.h"

/*** 0 .. n-1 in an order that depends on seed, stream and step alone.
 * @function randperm
 * @tparam integer n
 * @tparam[opt] table options seed, stream, step (0)
 * @treturn Tensor i32 [n] */
static int randperm(lua_State *L) {
  static const char *const names[] = { "seed", "stream", "step", NULL };
  int64_t n = sl_lua_check_integer(L, 1, 0, INT32_MAX);
  sl_lua_check_options(L, 2, "randperm", names);
  uint64_t seed = (uint64_t)sl_lua_option_integer(L, 2, "seed", 0);
  uint32_t stream = (uint32_t)sl_lua_option_integer(L, 2, "stream", 0);
  uint64_t step = (uint64_t)sl_lua_option_integer(L, 2, "step", 0);
  SL_LUA_TRY(L, sl_random_permutation(n, seed, stream, step, sl_lua_new_tensor(L)));
  return 1;
}

/*** Flat positions (from 0) of the ids that are not excluded and not masked.
 * @function kept_positions
 * @tparam Tensor ids i32, any shape
 * @tparam {integer,...} excluded token ids
 * @tparam[opt] Tensor mask u8 of the same shape, 0 = left out
 * @treturn Tensor i32 [count] */
static int kept_positions(lua_State *L) {
  enum { MOST = 4096 };
  int32_t excluded[MOST];
  sl_tensor *ids = sl_lua_check_tensor(L, 1), *mask = sl_lua_opt_tensor(L, 3);
  luaL_checktype(L, 2, LUA_TTABLE);
  int n = (int)lua_objlen(L, 2);
  if (n > MOST) return luaL_error(L, "kept_positions: at most %d ids can be excluded, got %d", MOST, n);
  for (int i = 0; i < n; i++) {
    lua_rawgeti(L, 2, i + 1);
    excluded[i] = (int32_t)luaL_checkinteger(L, -1);
    lua_pop(L, 1);
  }
  SL_LUA_TRY(L, sl_kept_positions(ids, mask, excluded, n, sl_lua_new_tensor(L)));
  return 1;
}

/*** Rows of a matrix of ids or masks (i32 or u8), in a given order.
 * @function pick_contexts
 * @tparam Tensor matrix [n, ctx_len]
 * @tparam Tensor rows i32, from 0
 * @treturn Tensor [#rows, ctx_len] */
static int pick_contexts(lua_State *L) {
  sl_tensor *matrix = sl_lua_check_tensor(L, 1), *rows = sl_lua_check_tensor(L, 2);
  SL_LUA_TRY(L, sl_pick_rows(matrix, rows, sl_lua_new_tensor(L)));
  return 1;
}

static const luaL_Reg functions[] = {
  { "randperm", randperm }, { "kept_positions", kept_positions }, { "pick_contexts", pick_contexts }, { NULL, NULL },
};

void sl_lua_open_data(lua_State *L) { luaL_setfuncs(L, functions, 0); }
