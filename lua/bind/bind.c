/* Errors, option tables and boxes for the binding files; see bind.h. */
#include "bind.h"

#include <math.h>
#include <string.h>

void sl_lua_check(lua_State *L, sl_status status) {
  if (status == SL_OK) return;
  /* A failed Lua hook left its own error value on top of the stack. */
  if (status == SL_EHOOK && lua_gettop(L) > 0 && lua_isstring(L, -1) && strcmp(sl_last_error(), "lua") == 0)
    lua_error(L);
  luaL_error(L, "%s", sl_last_error());
}

int sl_lua_result(lua_State *L, sl_status status, int n_results) {
  if (status == SL_OK) return n_results;
  if (status != SL_EIO && status != SL_ENOTFOUND && status != SL_EFORMAT) sl_lua_check(L, status);
  lua_pushnil(L);
  lua_pushstring(L, sl_last_error());
  lua_pushstring(L, sl_status_name(status));
  return 3;
}

void sl_lua_collect(lua_State *L) {
  lua_gc(L, LUA_GCCOLLECT, 0);
  lua_gc(L, LUA_GCCOLLECT, 0); /* finalizers run in the first, what they held goes in the second */
  sl_pool_trim();
}

/* -- Option tables ------------------------------------------------------------------------- */

static size_t min3(size_t a, size_t b, size_t c) {
  size_t m = a < b ? a : b;
  return m < c ? m : c;
}

/* Levenshtein distance of two short names. */
static size_t edit_distance(const char *a, const char *b) {
  enum { LONGEST = 63 };
  size_t row[LONGEST + 1], n = strlen(b);
  if (n > LONGEST || strlen(a) > LONGEST) return LONGEST;
  for (size_t j = 0; j <= n; j++) row[j] = j;
  for (size_t i = 1; a[i - 1]; i++) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= n; j++) {
      size_t above = row[j];
      row[j] = min3(above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1]));
      diagonal = above;
    }
  }
  return row[n];
}

static const char *nearest(const char *name, const char *const names[]) {
  const char *best = names[0];
  for (int i = 1; names[i]; i++)
    if (edit_distance(name, names[i]) < edit_distance(name, best)) best = names[i];
  return best;
}

static bool is_listed(const char *name, const char *const names[]) {
  for (int i = 0; names[i]; i++)
    if (strcmp(name, names[i]) == 0) return true;
  return false;
}

void sl_lua_check_options(lua_State *L, int index, const char *where, const char *const names[]) {
  if (lua_isnoneornil(L, index)) return;
  luaL_checktype(L, index, LUA_TTABLE);
  lua_pushnil(L);
  while (lua_next(L, index)) { /* stack: key, value */
    if (lua_type(L, -2) != LUA_TSTRING) luaL_error(L, "%s: options are named, found a positional value", where);
    const char *key = lua_tostring(L, -2);
    if (!is_listed(key, names))
      luaL_error(L, "%s: unknown option '%s'; did you mean '%s'?", where, key, nearest(key, names));
    lua_pop(L, 1);
  }
}

/* Pushes the option; false (nothing pushed) when it or the table is absent. */
static bool push_option(lua_State *L, int index, const char *name, int type) {
  if (lua_isnoneornil(L, index)) return false;
  luaL_checktype(L, index, LUA_TTABLE);
  lua_getfield(L, index, name);
  if (lua_isnil(L, -1)) {
    lua_pop(L, 1);
    return false;
  }
  if (type != LUA_TNONE && lua_type(L, -1) != type)
    luaL_error(L, "option '%s': expected a %s, got a %s", name, lua_typename(L, type), luaL_typename(L, -1));
  return true;
}

double sl_lua_option_number(lua_State *L, int index, const char *name, double otherwise) {
  if (!push_option(L, index, name, LUA_TNUMBER)) return otherwise;
  double value = lua_tonumber(L, -1);
  lua_pop(L, 1);
  return value;
}

int64_t sl_lua_option_integer(lua_State *L, int index, const char *name, int64_t otherwise) {
  double value = sl_lua_option_number(L, index, name, (double)otherwise);
  if (value != floor(value) || fabs(value) > 9007199254740992.0)
    luaL_error(L, "option '%s': expected an integer, got %f", name, value);
  return (int64_t)value;
}

bool sl_lua_option_boolean(lua_State *L, int index, const char *name, bool otherwise) {
  if (!push_option(L, index, name, LUA_TBOOLEAN)) return otherwise;
  bool value = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return value;
}

const char *sl_lua_option_string(lua_State *L, int index, const char *name, const char *otherwise) {
  if (!push_option(L, index, name, LUA_TSTRING)) return otherwise;
  const char *value = lua_tostring(L, -1);
  lua_pop(L, 1);
  return value;
}

sl_tensor *sl_lua_option_tensor(lua_State *L, int index, const char *name) {
  if (!push_option(L, index, name, LUA_TNONE)) return NULL;
  if (!luaL_testudata(L, -1, SL_LUA_TENSOR))
    luaL_error(L, "option '%s': expected a tensor, got a %s", name, luaL_typename(L, -1));
  sl_tensor *tensor = sl_lua_check_tensor(L, lua_gettop(L));
  lua_pop(L, 1);
  return tensor;
}

sl_device *sl_lua_option_device(lua_State *L, int index, const char *name) {
  return sl_lua_find_device(L, sl_lua_option_string(L, index, name, "cpu"));
}

int sl_lua_check_choice(lua_State *L, const char *text, const char *what, const char *const choices[]) {
  for (int i = 0; choices[i]; i++)
    if (strcmp(text, choices[i]) == 0) return i;
  luaL_Buffer list;
  luaL_buffinit(L, &list);
  for (int i = 0; choices[i]; i++) {
    if (i) luaL_addstring(&list, ", ");
    luaL_addstring(&list, choices[i]);
  }
  luaL_pushresult(&list);
  return luaL_error(L, "%s: '%s' is not one of %s", what, text, lua_tostring(L, -1));
}

int64_t sl_lua_check_integer(lua_State *L, int index, int64_t low, int64_t high) {
  double value = luaL_checknumber(L, index);
  if (value != floor(value) || value < (double)low || value > (double)high)
    luaL_argerror(L, index, lua_pushfstring(L, "expected an integer from %f to %f, got %f", (double)low,
                                            (double)high, value));
  return (int64_t)value;
}

int sl_lua_check_shape(lua_State *L, int index, int64_t shape[SL_MAX_RANK]) {
  bool listed = lua_istable(L, index);
  int n = listed ? (int)lua_objlen(L, index) : lua_gettop(L) - index + 1;
  if (n > SL_MAX_RANK) luaL_error(L, "a tensor has at most %d dimensions, not %d", SL_MAX_RANK, n);
  for (int i = 0; i < n; i++) {
    if (listed) lua_rawgeti(L, index, i + 1);
    else lua_pushvalue(L, index + i);
    if (lua_type(L, -1) != LUA_TNUMBER)
      luaL_error(L, "a shape is made of integers; size %d is a %s", i + 1, luaL_typename(L, -1));
    if (lua_tonumber(L, -1) != floor(lua_tonumber(L, -1)) || fabs(lua_tonumber(L, -1)) > 9007199254740992.0)
      luaL_error(L, "a shape is made of integers; size %d is %f", i + 1, lua_tonumber(L, -1));
    shape[i] = (int64_t)lua_tonumber(L, -1);
    lua_pop(L, 1);
  }
  return n;
}

sl_dtype sl_lua_check_dtype(lua_State *L, const char *text) {
  static const char *const names[] = {
#define X(id, name, bytes) name,
    SL_DTYPE_LIST(X)
#undef X
    NULL
  };
  return (sl_dtype)sl_lua_check_choice(L, text, "dtype", names);
}

sl_device *sl_lua_find_device(lua_State *L, const char *name) {
  sl_device *device = sl_cpu_device();
  if (strcmp(name, "cpu") == 0) return device;
  if (strcmp(name, "cuda") == 0) {
    sl_lua_check(L, sl_cuda_device(0, &device));
    return device;
  }
  if (strncmp(name, "cuda:", 5) == 0 && name[5] >= '0' && name[5] <= '9' && name[6] == '\0') {
    sl_lua_check(L, sl_cuda_device(name[5] - '0', &device));
    return device;
  }
  luaL_error(L, "device '%s' is unknown; expected cpu, cuda or cuda:<n>", name);
  return NULL;
}

/* -- Boxes ----------------------------------------------------------------------------------- */

void **sl_lua_new_box(lua_State *L, const char *metatable) {
  void **box = lua_newuserdata(L, sizeof *box);
  *box = NULL;
  luaL_getmetatable(L, metatable);
  lua_setmetatable(L, -2);
  return box;
}

void *sl_lua_check_box(lua_State *L, int index, const char *metatable, const char *what) {
  void **box = luaL_checkudata(L, index, metatable);
  if (!*box) luaL_error(L, "%s was freed", what);
  return *box;
}

void sl_lua_new_class(lua_State *L, const char *metatable, const luaL_Reg *methods, const luaL_Reg *meta) {
  luaL_newmetatable(L, metatable);
  lua_newtable(L);
  luaL_setfuncs(L, methods, 0);
  lua_setfield(L, -2, "__index");
  if (meta) luaL_setfuncs(L, meta, 0);
  lua_pop(L, 1);
}
