/* Finds the Lua library and opens a state that can load it; see host.h. */
#include <errno.h>
#include <lauxlib.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lua/host/host.h"

/* The file whose presence marks a library folder. */
static const char MARK[] = "lua/saelua/cli.lua";

static int holds_library(const char *dir) {
  char probe[SL_HOST_PATH_MAX + 64 + sizeof MARK];
  snprintf(probe, sizeof probe, "%s/%s", dir, MARK);
  return access(probe, R_OK) == 0;
}

/* Copies `dir`, links resolved, when it holds the library. */
static int take(host_paths *paths, const char *dir) {
  if (!holds_library(dir)) return 0;
  char resolved[SL_HOST_PATH_MAX]; /* PATH_MAX is 4096 on Linux, as realpath demands */
  if (!realpath(dir, resolved)) return 0;
  memcpy(paths->share, resolved, sizeof resolved);
  return 1;
}

/* Cuts the last component off `path`; 0 when nothing is left to cut. */
static int cut(char *path) {
  char *slash = strrchr(path, '/');
  if (!slash) return 0;
  if (slash == path) {
    if (!path[1]) return 0;
    path[1] = '\0';
    return 1;
  }
  *slash = '\0';
  return 1;
}

int host_paths_find(host_paths *paths, char *why, size_t size) {
  ssize_t n = readlink("/proc/self/exe", paths->exe, sizeof paths->exe - 1);
  if (n <= 0 || n >= (ssize_t)sizeof paths->exe - 1) {
    snprintf(why, size, "cannot read /proc/self/exe (%s): is /proc mounted?", strerror(errno));
    return -1;
  }
  paths->exe[n] = '\0';

  const char *home = getenv("SAELUA_HOME");
  if (home && *home) {
    if (take(paths, home)) return 0;
    snprintf(why, size, "SAELUA_HOME is %.4000s, but %s is not in it; unset it or point it at a saelua tree",
             home, MARK);
    return -1;
  }

  char dir[SL_HOST_PATH_MAX], share[SL_HOST_PATH_MAX + 32];
  memcpy(dir, paths->exe, sizeof dir);
  if (cut(dir)) {
    snprintf(share, sizeof share, "%s/../share/saelua", dir);
    if (take(paths, share)) return 0;
    do {
      if (take(paths, dir)) return 0; /* <tree>/build/<preset>/saelua */
    } while (cut(dir));
  }
#ifdef SAELUA_SOURCE_DIR
  if (take(paths, SAELUA_SOURCE_DIR)) return 0;
#endif
  snprintf(why, size, "%s was not found near %.4000s; set SAELUA_HOME to the folder that holds it", MARK,
           paths->exe);
  return -1;
}

/* Puts `name` into package.preload. stack: package.preload on top */
static void preload(lua_State *L, const char *name, lua_CFunction open) {
  lua_pushcfunction(L, open);
  lua_setfield(L, -2, name);
}

/* package[field] = before .. package[field] .. after. stack: package on top */
static void widen_path(lua_State *L, const char *field, const char *before, const char *after) {
  lua_pushstring(L, before);
  lua_getfield(L, -2, field);
  lua_pushstring(L, after);
  lua_concat(L, 3);
  lua_setfield(L, -2, field);
}

static int prepare(lua_State *L) {
  const host_paths *paths = lua_touserdata(L, 1);
  luaL_openlibs(L);
  lua_getglobal(L, "package"); /* stack: paths, package */

  /* Our library first, so that a folder called saelua beside the recipe cannot hide it. */
  lua_pushfstring(L, "%s/lua/?.lua;%s/lua/?/init.lua;", paths->share, paths->share);
  lua_insert(L, -2); /* stack: paths, ours, package */
  widen_path(L, "path", lua_tostring(L, -2), "");
  /* Debian keeps lua-cjson in the multiarch folder; other builds of LuaJIT do not look there. */
#ifdef __x86_64__
  widen_path(L, "cpath", "", ";/usr/lib/x86_64-linux-gnu/lua/5.1/?.so;/usr/lib/lua/5.1/?.so");
#elif defined(__aarch64__)
  widen_path(L, "cpath", "", ";/usr/lib/aarch64-linux-gnu/lua/5.1/?.so;/usr/lib/lua/5.1/?.so");
#else
  widen_path(L, "cpath", "", ";/usr/lib/lua/5.1/?.so");
#endif

  lua_getfield(L, -1, "preload"); /* stack: paths, package, preload */
  preload(L, "saelua.core", luaopen_saelua_core);
  lua_pushlightuserdata(L, (void *)paths);
  lua_pushcclosure(L, host_lib_open, 1);
  lua_setfield(L, -2, "saelua.host");
  preload(L, "saelua.host.line", host_line_open);
  return 0;
}

lua_State *host_state_open(const host_paths *paths) {
  lua_State *L = luaL_newstate();
  if (!L) {
    fprintf(stderr, "saelua: no memory for a Lua state\n");
    return NULL;
  }
  if (lua_cpcall(L, prepare, (void *)paths) != 0) {
    const char *why = lua_tostring(L, -1);
    fprintf(stderr, "saelua: %s\n", why ? why : "the Lua state could not be set up");
    lua_close(L);
    return NULL;
  }
  return L;
}
