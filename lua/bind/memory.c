/*** Memory: what the engine holds and for what, and how much it may hold.
 * @module saelua.core */
#include "bind.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/mem.h"

static void set_count(lua_State *L, const char *name, int64_t value) {
  lua_pushnumber(L, (lua_Number)value);
  lua_setfield(L, -2, name);
}

/* label -> bytes, those that are not zero. */
static void set_labels(lua_State *L, const char *name, const int64_t bytes[SL_MEMORY_LABEL_COUNT]) {
  lua_newtable(L);
  for (int i = 0; i < SL_MEMORY_LABEL_COUNT; i++)
    if (bytes[i] > 0) set_count(L, sl_memory_label_name((sl_memory_label)i), bytes[i]);
  lua_setfield(L, -2, name);
}

static void push_device(lua_State *L, const sl_memory_stats *stats) {
  lua_newtable(L);
  lua_pushstring(L, stats->device->name);
  lua_setfield(L, -2, "name");
  set_count(L, "live", stats->live_bytes);
  set_count(L, "peak", stats->peak_bytes);
  set_count(L, "pooled", stats->pooled_bytes);
  set_count(L, "mapped", stats->borrowed_bytes);
  if (stats->budget_bytes > 0) set_count(L, "budget", stats->budget_bytes);
  set_labels(L, "labels", stats->label_bytes);
  set_labels(L, "labels_at_peak", stats->label_at_peak);
  sl_memory_info info;
  if (stats->device->table->memory_info(stats->device, &info) != SL_OK) return;
  set_count(L, "free", (int64_t)info.free_bytes);
  set_count(L, "total", (int64_t)info.total_bytes);
}

/*** What the engine holds. As a table to read: `sl.memory_report.text()`, or `:mem` in the REPL.
 * @function memory
 * @treturn table tensors (live storages), tensor_bytes, tensor_peak_bytes, pooled_bytes, host_blocks, host_bytes
 *   (counted allocations, tensors included), host_peak_bytes; and devices, a list of the devices in use: name, live
 *   and peak bytes of tensors, pooled (free blocks kept for reuse), mapped (files that tensors lie over), budget
 *   (absent = none), free and total bytes of the device, labels and labels_at_peak (what for -> bytes) */
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
  lua_newtable(L);
  for (int i = 0; sl_memory_get_stats(i); i++) {
    push_device(L, sl_memory_get_stats(i));
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "devices");
  return 1;
}

/* "12G", "1.5 GiB", "800M", "4096": bytes, in powers of 1024; -1 for anything else. */
static double parse_bytes(const char *text) {
  static const char units[] = "KMGT";
  char *end;
  double value = strtod(text, &end);
  if (end == text) return -1;
  while (*end == ' ') end++;
  const char *unit = *end ? strchr(units, *end >= 'a' ? *end - 'a' + 'A' : *end) : NULL;
  if (unit) {
    for (const char *u = units; u <= unit; u++) value *= 1024;
    end++;
    if (*end == 'i') end++;
  }
  if (*end == 'B') end++;
  return *end ? -1 : value;
}

/*** The most memory that tensors on a device may take, blocks kept for reuse included. Beyond it an allocation fails,
 * naming what is live. Default: none on the CPU, elsewhere what is free at first use less a reserve.
 * @function memory_budget
 * @tparam string device
 * @tparam[opt] number|string bytes, or a text such as "12G"; 0 = the default again; absent = only ask
 * @treturn ?number the budget in bytes; nil = none */
static int memory_budget(lua_State *L) {
  sl_device *device = sl_lua_find_device(L, luaL_checkstring(L, 1));
  if (!lua_isnoneornil(L, 2)) {
    double bytes = lua_type(L, 2) == LUA_TNUMBER ? lua_tonumber(L, 2) : parse_bytes(luaL_checkstring(L, 2));
    if (!(bytes >= 0 && bytes < 9e15))
      return luaL_error(L, "memory_budget: '%s' is not a size; expected bytes, or a text such as 800M or 12G",
                        lua_tostring(L, 2));
    sl_lua_check(L, sl_memory_set_budget(device, (int64_t)bytes));
  }
  for (int i = 0; sl_memory_get_stats(i); i++) {
    const sl_memory_stats *stats = sl_memory_get_stats(i);
    if (stats->device != device || stats->budget_bytes == 0) continue;
    lua_pushnumber(L, (lua_Number)stats->budget_bytes);
    return 1;
  }
  lua_pushnil(L);
  return 1;
}

/*** Starts new peaks at what is live now.
 * @function reset_memory_peaks */
static int reset_peaks(lua_State *L) {
  (void)L;
  sl_memory_reset_peaks();
  return 0;
}

/*** Gives pooled blocks back to the system, after a full collection.
 * @function trim */
static int trim(lua_State *L) {
  sl_lua_collect(L);
  return 0;
}

static const luaL_Reg functions[] = {
  { "memory", memory }, { "memory_budget", memory_budget }, { "reset_memory_peaks", reset_peaks }, { "trim", trim },
  { NULL, NULL },
};

void sl_lua_open_memory(lua_State *L) { luaL_setfuncs(L, functions, 0); }
