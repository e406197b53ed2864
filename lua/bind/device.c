/*** Devices and memory.
 * @module saelua.core */
#include "bind.h"

#include "core/base/mem.h"

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

static void set_count(lua_State *L, const char *name, int64_t value) {
  lua_pushnumber(L, (lua_Number)value);
  lua_setfield(L, -2, name);
}

/*** What the engine holds.
 * @function memory
 * @treturn table tensors (live storages), tensor_bytes, tensor_peak_bytes, pooled_bytes, host_blocks, host_bytes
 *   (counted allocations, tensors included), host_peak_bytes */
static int memory(lua_State *L) {
  sl_storage_stats storage = sl_storage_get_stats();
  sl_mem_stats mem = sl_mem_get_stats();
  lua_newtable(L);
  set_count(L, "tensors", storage.live_storages);
  set_count(L, "tensor_bytes", storage.live_bytes);
  set_count(L, "tensor_peak_bytes", storage.peak_bytes);
  set_count(L, "pooled_bytes", storage.pooled_bytes);
  set_count(L, "host_blocks", mem.blocks);
  set_count(L, "host_bytes", mem.bytes);
  set_count(L, "host_peak_bytes", mem.peak_bytes);
  return 1;
}

/*** Gives pooled blocks back to the system, after a full collection.
 * @function trim */
static int trim(lua_State *L) {
  sl_lua_collect(L);
  return 0;
}

/*** How often the host has waited for a device since the program started. A training step on a GPU should not wait:
 * reading a number, printing a tensor and moving one to the CPU do.
 * @function waits
 * @tparam string device
 * @treturn integer */
static int waits(lua_State *L) {
  lua_pushnumber(L, (lua_Number)sl_lua_find_device(L, luaL_checkstring(L, 1))->waits);
  return 1;
}

static const luaL_Reg functions[] = { { "devices", devices }, { "memory", memory }, { "trim", trim }, { "waits", waits }, { NULL, NULL } };

void sl_lua_open_device(lua_State *L) { luaL_setfuncs(L, functions, 0); }
