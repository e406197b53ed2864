/*** Tensor files and folders that appear whole or not at all.
 * Failures of the world return nil, message, code.
 * @module saelua.core */
#include "bind.h"

#include <string.h>

#include "core/base/mem.h"
#include "core/io/atomic_file.h"
#include "core/io/safetensors_tensor.h"

enum { MOST_TENSORS = 4096, MOST_PAIRS = 64 };

/* Names and tensors of the list { { name, tensor }, ... } at `list`, which keeps both alive. */
static size_t collect_tensors(lua_State *L, int list, const char **names, sl_tensor **tensors) {
  size_t count = lua_objlen(L, list);
  for (size_t i = 0; i < count; i++) {
    lua_rawgeti(L, list, (int)i + 1);
    luaL_checktype(L, -1, LUA_TTABLE);
    lua_rawgeti(L, -1, 1);
    names[i] = luaL_checkstring(L, -1);
    lua_rawgeti(L, -2, 2);
    tensors[i] = sl_lua_check_tensor(L, lua_gettop(L));
    lua_pop(L, 3);
  }
  return count;
}

/* Pairs of the string table at `index`, sorted by key so that equal metadata give equal files. */
static size_t collect_pairs(lua_State *L, int index, sl_safetensors_pair *pairs) {
  size_t count = 0;
  if (lua_isnoneornil(L, index)) return 0;
  luaL_checktype(L, index, LUA_TTABLE);
  lua_pushnil(L);
  while (lua_next(L, index)) {
    if (lua_type(L, -2) != LUA_TSTRING || lua_type(L, -1) != LUA_TSTRING)
      luaL_error(L, "save_tensors: metadata maps strings to strings");
    if (count == MOST_PAIRS) luaL_error(L, "save_tensors: at most %d metadata pairs", MOST_PAIRS);
    size_t at = count++;
    const char *key = lua_tostring(L, -2);
    for (; at > 0 && strcmp(pairs[at - 1].key, key) > 0; at--) pairs[at] = pairs[at - 1];
    pairs[at] = (sl_safetensors_pair){ key, lua_tostring(L, -1) };
    lua_pop(L, 1);
  }
  return count;
}

/*** Writes a safetensors file in one step: the old file stays whole on failure.
 * @function save_tensors
 * @tparam string path
 * @tparam {{string,Tensor},...} list in the order of the file
 * @tparam[opt] {[string]=string} metadata
 * @treturn ?boolean true, or nil, message, code */
static int save_tensors(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 3);
  if (lua_objlen(L, 2) > MOST_TENSORS) return luaL_error(L, "save_tensors: at most %d tensors", MOST_TENSORS);
  const char **names = lua_newuserdata(L, (lua_objlen(L, 2) + 1) * sizeof *names);
  sl_tensor **tensors = lua_newuserdata(L, (lua_objlen(L, 2) + 1) * sizeof *tensors);
  sl_safetensors_pair pairs[MOST_PAIRS];
  size_t n_pairs = collect_pairs(L, 3, pairs), count = collect_tensors(L, 2, names, tensors);
  sl_status status = sl_safetensors_save_tensors(path, names, tensors, count, pairs, n_pairs);
  lua_pushboolean(L, 1);
  return sl_lua_result(L, status, 1);
}

static sl_status push_all(lua_State *L, const sl_safetensors *set) {
  lua_newtable(L);
  for (size_t i = 0; i < sl_safetensors_count(set); i++) {
    const sl_safetensor *entry = sl_safetensors_at(set, i);
    SL_TRY(sl_safetensors_load_tensor(entry, sl_cpu_device(), sl_lua_new_tensor(L)));
    lua_setfield(L, -2, entry->name);
  }
  lua_newtable(L);
  const char *key, *value;
  for (size_t i = 0; sl_safetensors_metadata_at(set, i, &key, &value); i++) {
    lua_pushstring(L, value);
    lua_setfield(L, -2, key);
  }
  return SL_OK;
}

/* An open file held by a userdata, so that an error raised half-way still closes it. */
static const char *const OPEN_FILE = "saelua.OpenSafetensors";

static int close_file(lua_State *L) {
  void **box = luaL_checkudata(L, 1, OPEN_FILE);
  sl_safetensors_close(*box);
  *box = NULL;
  return 0;
}

/*** Reads a safetensors file.
 * @function load_tensors
 * @tparam string path
 * @treturn ?{[string]=Tensor} or nil, message, code
 * @treturn {[string]=string} metadata */
static int load_tensors(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  void **box = sl_lua_new_box(L, OPEN_FILE);
  sl_status status = sl_safetensors_open(path, (sl_safetensors **)box);
  if (status != SL_OK) return sl_lua_result(L, status, 0);
  status = push_all(L, *box);
  if (status != SL_OK) return sl_lua_result(L, status, 0);
  sl_safetensors_close(*box);
  *box = NULL;
  sl_lua_pressure(L);
  return 2;
}

/*** Creates a folder if need be, proves that it can be written and that `bytes` are free.
 * @function check_writable
 * @tparam string folder
 * @tparam[opt=0] number bytes
 * @treturn ?boolean true, or nil, message, code */
static int check_writable(lua_State *L) {
  sl_status status = sl_dir_writable(luaL_checkstring(L, 1), (uint64_t)luaL_optnumber(L, 2, 0));
  lua_pushboolean(L, 1);
  return sl_lua_result(L, status, 1);
}

/*** Writes a folder as a whole: fn(temporary folder) fills it; then it takes the place of `path`.
 * When fn raises or returns nil, the temporary folder goes and `path` stays as it was.
 * @function write_folder
 * @tparam string path
 * @tparam function fn returns true, or nil and a message
 * @treturn ?boolean true, or nil, message, code */
static int write_folder(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  lua_settop(L, 2);
  char *temporary;
  sl_status status = sl_dir_begin(path, &temporary);
  if (status != SL_OK) return sl_lua_result(L, status, 0);
  lua_pushvalue(L, 2);
  lua_pushstring(L, temporary);
  int failed = lua_pcall(L, 1, 3, 0); /* stack: path, fn, result, message, code */
  if (failed || !lua_toboolean(L, 3)) {
    sl_dir_abort(temporary);
    sl_mem_free(temporary);
    return failed ? lua_error(L) : 3;
  }
  status = sl_dir_commit(temporary, path);
  if (status != SL_OK) sl_dir_abort(temporary);
  sl_mem_free(temporary);
  lua_pushboolean(L, 1);
  return sl_lua_result(L, status, 1);
}

static const luaL_Reg no_methods[] = { { NULL, NULL } };
static const luaL_Reg file_meta[] = { { "__gc", close_file }, { NULL, NULL } };
static const luaL_Reg functions[] = {
  { "save_tensors", save_tensors }, { "load_tensors", load_tensors }, { "check_writable", check_writable },
  { "write_folder", write_folder }, { NULL, NULL },
};

void sl_lua_open_io(lua_State *L) {
  sl_lua_new_class(L, OPEN_FILE, no_methods, file_meta);
  luaL_setfuncs(L, functions, 0);
}
