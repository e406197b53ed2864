/*** Devices.
 * @module saelua.core */
#include "bind.h"

/*** The devices of this machine that this build can use.
 * @function devices
 * @treturn {string,...} names, "cpu" first
 * @treturn string why there is no CUDA device, or nil */
static int devices(lua_State *L) {
  lua_newtable(L);
  lua_pushliteral(L, "cpu");
  lua_rawseti(L, -2, 1);
  sl_device *device;
  int n = 0;
  while (sl_cuda_device(n, &device) == SL_OK) {
    lua_pushstring(L, device->name);
    lua_rawseti(L, -2, ++n + 1);
  }
  if (n > 0) return 1;
  lua_pushstring(L, sl_last_error());
  return 2;
}

/*** How often the host has waited for a device since the program started. A training step on a GPU should not wait:
 * reading a number, printing a tensor and moving one to the CPU do.
 * @function waits
 * @tparam string device
 * @treturn integer
 * @treturn integer how many forward passes were replayed from a recording (a CUDA graph) */
static int waits(lua_State *L) {
  sl_device *device = sl_lua_find_device(L, luaL_checkstring(L, 1));
  lua_pushnumber(L, (lua_Number)device->waits);
  lua_pushnumber(L, (lua_Number)device->replays);
  return 2;
}

/*** Lets float32 products on a CUDA device round their factors to TF32 (10 bits of mantissa; sums stay float32), for
 * everything that runs there from now on: models and dictionaries.
 * @function set_tf32
 * @tparam string device
 * @tparam boolean on */
static int set_tf32(lua_State *L) {
  sl_device *device = sl_lua_find_device(L, luaL_checkstring(L, 1));
  luaL_checktype(L, 2, LUA_TBOOLEAN);
  bool on = lua_toboolean(L, 2);
  if (on && device->host_memory)
    return luaL_error(L, "tf32 is an arithmetic of CUDA devices; on %s use f32 or bf16", device->name);
  device->tf32 = on;
  return 0;
}

static const luaL_Reg functions[] = { { "devices", devices }, { "waits", waits },
  { "set_tf32", set_tf32 }, { NULL, NULL } };

void sl_lua_open_device(lua_State *L) { luaL_setfuncs(L, functions, 0); }
