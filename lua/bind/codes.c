/*** Sparse codes: what an SAE's encoder returns. Latent ids count from 0.
 * @classmod saelua.Codes */
#include "bind_sae.h"

#include "core/sae/codes_read.h"

static sl_codes *check_codes(lua_State *L) { return sl_lua_check_box(L, 1, SL_LUA_CODES, "the codes"); }

void sl_lua_push_codes(lua_State *L, sl_codes *codes) {
  *sl_lua_new_box(L, SL_LUA_CODES) = codes;
  sl_lua_pressure(L);
}

/*** The number of entries.
 * @function nnz
 * @treturn integer entries in all rows */
static int codes_nnz(lua_State *L) {
  lua_pushnumber(L, (lua_Number)check_codes(L)->entries);
  return 1;
}

/*** Rows and latents.
 * @function size
 * @treturn integer rows
 * @treturn integer latents */
static int codes_size(lua_State *L) {
  sl_codes *codes = check_codes(L);
  lua_pushnumber(L, (lua_Number)codes->rows);
  lua_pushnumber(L, (lua_Number)codes->n_latents);
  return 2;
}

/*** Rows in which each latent fires.
 * @function counts
 * @treturn Tensor f32 [d_sae] */
static int codes_counts(lua_State *L) {
  sl_codes *codes = check_codes(L);
  SL_LUA_TRY(L, sl_codes_counts(codes, sl_lua_new_tensor(L)));
  return 1;
}

/*** Activations of a few latents.
 * @function columns
 * @tparam {integer,...} latents ids from 0, at most 1024
 * @treturn Tensor f32 [rows, #latents] */
static int codes_columns(lua_State *L) {
  enum { MOST = 1024 };
  int32_t ids[MOST];
  sl_codes *codes = check_codes(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  int n = (int)lua_objlen(L, 2);
  if (n < 1 || n > MOST) return luaL_error(L, "columns: 1 to %d latents expected, got %d", MOST, n);
  for (int i = 0; i < n; i++) {
    lua_rawgeti(L, 2, i + 1);
    ids[i] = (int32_t)sl_lua_check_integer(L, lua_gettop(L), 0, INT32_MAX);
    lua_pop(L, 1);
  }
  SL_LUA_TRY(L, sl_codes_columns(codes, ids, n, sl_lua_new_tensor(L)));
  return 1;
}

/*** The whole matrix: for small batches and for looking.
 * @function to_dense
 * @treturn Tensor f32 [rows, d_sae] */
static int codes_to_dense(lua_State *L) {
  sl_codes *codes = check_codes(L);
  SL_LUA_TRY(L, sl_codes_to_dense(codes, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/*** The three arrays: entries offsets[t] .. offsets[t + 1] - 1 (counted from 0) belong to row t.
 * @function tensors
 * @treturn Tensor offsets i64 [rows + 1]
 * @treturn Tensor ids i32 [entries], ascending in each row
 * @treturn Tensor values f32 [entries] */
static int codes_tensors(lua_State *L) {
  sl_codes *codes = check_codes(L);
  sl_tensor **a = sl_lua_new_tensor(L), **b = sl_lua_new_tensor(L), **c = sl_lua_new_tensor(L);
  SL_LUA_TRY(L, sl_codes_tensors(codes, a, b, c));
  return 3;
}

/*** Codes from the k entries of each row that topk gives; exact zeros are dropped, signs kept.
 * @function sl.codes_from_topk
 * @tparam Tensor values f32 [rows, k]
 * @tparam Tensor ids i32 [rows, k], from 0
 * @tparam integer n_latents
 * @treturn Codes */
static int codes_from_topk(lua_State *L) {
  sl_tensor *values = sl_lua_check_tensor(L, 1), *ids = sl_lua_check_tensor(L, 2);
  int64_t n_latents = sl_lua_check_integer(L, 3, 1, INT32_MAX);
  void **box = sl_lua_new_box(L, SL_LUA_CODES);
  SL_LUA_TRY(L, sl_codes_from_topk(values, ids, n_latents, (sl_codes **)box));
  return 1;
}

static int codes_gc(lua_State *L) {
  void **box = luaL_checkudata(L, 1, SL_LUA_CODES);
  sl_codes_release(*box);
  *box = NULL;
  return 0;
}

static int codes_tostring(lua_State *L) {
  sl_codes *codes = check_codes(L);
  lua_pushfstring(L, "codes of %d rows, %d latents: %d entries, %f a row", (int)codes->rows, (int)codes->n_latents,
                  (int)codes->entries, codes->rows ? (double)codes->entries / (double)codes->rows : 0.0);
  return 1;
}

/*** Gives the memory back now.
 * @function free */
static const luaL_Reg methods[] = {
  { "nnz", codes_nnz }, { "size", codes_size }, { "counts", codes_counts }, { "columns", codes_columns },
  { "to_dense", codes_to_dense }, { "tensors", codes_tensors }, { "free", codes_gc }, { NULL, NULL },
};
static const luaL_Reg meta[] = { { "__gc", codes_gc }, { "__tostring", codes_tostring }, { NULL, NULL } };

static const luaL_Reg functions[] = { { "codes_from_topk", codes_from_topk }, { NULL, NULL } };

void sl_lua_open_codes(lua_State *L) {
  sl_lua_new_class(L, SL_LUA_CODES, methods, meta);
  luaL_setfuncs(L, functions, 0);
}
