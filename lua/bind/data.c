/*** Rows and contexts.
 * @module saelua.core */
#include "bind.h"

#include "core/data/masking.h"
#include "core/data/rows.h"

enum { MOST_IDS = 4096 };

/* The ids of the list at `index`; returns how many. */
static int check_ids(lua_State *L, int index, int32_t ids[MOST_IDS]) {
  luaL_checktype(L, index, LUA_TTABLE);
  int n = (int)lua_objlen(L, index);
  if (n > MOST_IDS) luaL_error(L, "at most %d ids can be excluded, got %d", MOST_IDS, n);
  for (int i = 0; i < n; i++) {
    lua_rawgeti(L, index, i + 1);
    ids[i] = (int32_t)sl_lua_check_integer(L, lua_gettop(L), INT32_MIN, INT32_MAX);
    lua_pop(L, 1);
  }
  return n;
}

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

/* One of the options, an id of 32 bits. */
static int32_t option_id(lua_State *L, int index, const char *name, int32_t otherwise) {
  int64_t id = sl_lua_option_integer(L, index, name, otherwise);
  if (id < INT32_MIN || id > INT32_MAX) luaL_error(L, "option '%s': %f is not a token id", name, (double)id);
  return (int32_t)id;
}

/*** Flat positions (from 0) of the ids that are not excluded and not masked.
 * @function kept_positions
 * @tparam Tensor ids i32, any shape
 * @tparam {integer,...} excluded token ids
 * @tparam[opt] Tensor mask u8 of the same shape, 0 = left out
 * @treturn Tensor i32 [count] */
static int kept_positions(lua_State *L) {
  int32_t excluded[MOST_IDS];
  sl_tensor *ids = sl_lua_check_tensor(L, 1), *mask = sl_lua_opt_tensor(L, 3);
  int n = check_ids(L, 2, excluded);
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

/*** The same choice as a mask.
 * @function kept_mask
 * @tparam Tensor ids i32, any shape
 * @tparam {integer,...} excluded token ids
 * @tparam[opt] Tensor mask u8 of the same shape
 * @treturn Tensor u8 of the same shape, 1 = kept */
static int kept_mask(lua_State *L) {
  int32_t excluded[MOST_IDS];
  sl_tensor *ids = sl_lua_check_tensor(L, 1), *mask = sl_lua_opt_tensor(L, 3);
  int n = check_ids(L, 2, excluded);
  SL_LUA_TRY(L, sl_kept_mask(ids, mask, excluded, n, sl_lua_new_tensor(L)));
  return 1;
}

/*** Masked-language-model examples (Devlin et al. 2018): some tokens are hidden, to be predicted.
 * @function mask_tokens
 * @tparam Tensor ids i32 [B, T]
 * @tparam Tensor|nil mask u8 [B, T], 0 = padding
 * @tparam table options exclude (ids never chosen), mask_id, vocab_size; rate (0.15), random_share (0), keep_share (0),
 *   seed, step (0)
 * @treturn Tensor hidden ids i32 [B, T]
 * @treturn Tensor flat positions chosen, i32 [n], from 0
 * @treturn Tensor the true ids there, i32 [n] */
static int mask_tokens(lua_State *L) {
  static const char *const names[] = { "exclude", "mask_id", "vocab_size", "rate", "random_share", "keep_share",
                                       "seed", "step", NULL };
  int32_t excluded[MOST_IDS];
  sl_tensor *ids = sl_lua_check_tensor(L, 1), *mask = sl_lua_opt_tensor(L, 2);
  luaL_checktype(L, 3, LUA_TTABLE);
  sl_lua_check_options(L, 3, "mask_tokens", names);
  lua_getfield(L, 3, "exclude");
  sl_mask_options options = {
    .rate = sl_lua_option_number(L, 3, "rate", 0.15), .random_share = sl_lua_option_number(L, 3, "random_share", 0),
    .keep_share = sl_lua_option_number(L, 3, "keep_share", 0),
    .mask_id = option_id(L, 3, "mask_id", -1),
    .vocab_size = option_id(L, 3, "vocab_size", 0), .excluded = excluded,
    .n_excluded = check_ids(L, lua_gettop(L), excluded), .seed = (uint64_t)sl_lua_option_integer(L, 3, "seed", 0),
    .step = (uint64_t)sl_lua_option_integer(L, 3, "step", 0),
  };
  sl_tensor **hidden = sl_lua_new_tensor(L), **positions = sl_lua_new_tensor(L), **targets = sl_lua_new_tensor(L);
  sl_lua_check(L, sl_mask_tokens(ids, mask, &options, hidden, positions, targets));
  return 3;
}

static const luaL_Reg functions[] = {
  { "randperm", randperm }, { "kept_positions", kept_positions }, { "pick_contexts", pick_contexts },
  { "mask_tokens", mask_tokens }, { "kept_mask", kept_mask }, { NULL, NULL },
};

void sl_lua_open_data(lua_State *L) { luaL_setfuncs(L, functions, 0); }
