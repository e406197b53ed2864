/*** Open weight files, used where they lie (no copy): what model loading reads.
 * @classmod saelua.Weights */
#include "bind_model.h"

#include "core/io/weights.h"

static sl_weights *check(lua_State *L) { return sl_lua_check_box(L, 1, SL_LUA_WEIGHTS, "the weight file"); }

static const sl_safetensor *check_entry(lua_State *L, int index) {
  const char *name = luaL_checkstring(L, index);
  const sl_safetensor *entry;
  sl_lua_check(L, sl_safetensors_get(sl_weights_set(check(L)), name, &entry));
  return entry;
}

/*** Opens a safetensors file, or a folder with one or with shards and an index.
 * @function sl.open_weights
 * @tparam string path
 * @treturn ?Weights or nil, message, code */
static int weights_open(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  void **box = sl_lua_new_box(L, SL_LUA_WEIGHTS);
  return sl_lua_result(L, sl_weights_open(path, (sl_weights **)box), 1);
}

/*** Names of the tensors, in the order of the file.
 * @function names
 * @treturn {string,...} */
static int weights_names(lua_State *L) {
  const sl_safetensors *set = sl_weights_set(check(L));
  size_t n = sl_safetensors_count(set);
  lua_createtable(L, (int)n, 0);
  for (size_t i = 0; i < n; i++) {
    lua_pushstring(L, sl_safetensors_at(set, i)->name);
    lua_rawseti(L, -2, (int)i + 1);
  }
  return 1;
}

/*** Shape, dtype (as in the file: "F32", ...) and file of a tensor; an unknown name raises with the nearest.
 * @function info
 * @tparam string name
 * @treturn table shape, dtype, path */
static int weights_info(lua_State *L) {
  const sl_safetensor *entry = check_entry(L, 2);
  lua_createtable(L, 0, 3);
  lua_createtable(L, entry->rank, 0);
  for (int i = 0; i < entry->rank; i++) {
    lua_pushnumber(L, (lua_Number)entry->shape[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "shape");
  lua_pushstring(L, sl_file_dtype_name(entry->dtype));
  lua_setfield(L, -2, "dtype");
  lua_pushstring(L, entry->path);
  lua_setfield(L, -2, "path");
  return 1;
}

/*** The tensor, over the file's own memory where dtype and alignment allow it.
 * @function tensor
 * @tparam string name
 * @treturn Tensor */
static int weights_tensor(lua_State *L) {
  const sl_safetensor *entry = check_entry(L, 2);
  sl_weights *weights = check(L);
  SL_LUA_TRY(L, sl_weights_tensor(weights, entry, sl_lua_new_tensor(L)));
  return 1;
}

/*** Do two tensors hold the same dtype, shape and bytes?
 * @function same
 * @tparam string a
 * @tparam string b
 * @treturn boolean */
static int weights_same(lua_State *L) {
  lua_pushboolean(L, sl_weights_same(check_entry(L, 2), check_entry(L, 3)));
  return 1;
}

/*** Lets the file go; tensors over it keep what they need.
 * @function close */
static int weights_close(lua_State *L) {
  void **box = luaL_checkudata(L, 1, SL_LUA_WEIGHTS);
  sl_weights_release(*box);
  *box = NULL;
  return 0;
}

static const luaL_Reg methods[] = {
  { "names", weights_names }, { "info", weights_info }, { "tensor", weights_tensor }, { "same", weights_same },
  { "close", weights_close }, { NULL, NULL },
};
static const luaL_Reg meta[] = { { "__gc", weights_close }, { NULL, NULL } };
static const luaL_Reg functions[] = { { "open_weights", weights_open }, { NULL, NULL } };

void sl_lua_open_weights(lua_State *L) {
  sl_lua_new_class(L, SL_LUA_WEIGHTS, methods, meta);
  luaL_setfuncs(L, functions, 0);
}
