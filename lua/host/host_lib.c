/* The module "saelua.host": what the process knows; see host.h. */
#define _GNU_SOURCE /* sched_getaffinity, CPU_COUNT */
#include <errno.h>
#include <lauxlib.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "lua/host/host.h"

#ifndef SAELUA_VERSION
#define SAELUA_VERSION "unknown"
#endif

int host_flush_output(int status) {
  if (fflush(stdout) == 0 && !ferror(stdout)) return status;
  fprintf(stderr, "saelua: standard output could not be written\n");
  return status != 0 ? status : EXIT_FAILURE;
}

static int check_fd(lua_State *L, int index) {
  lua_Integer fd = luaL_checkinteger(L, index);
  luaL_argcheck(L, fd >= 0 && fd < 1024, index, "a file descriptor is expected (0 stdin, 1 stdout)");
  return (int)fd;
}

/* is_tty(fd) -> boolean */
static int is_tty(lua_State *L) {
  lua_pushboolean(L, isatty(check_fd(L, 1)));
  return 1;
}

/* terminal_width([fd = 1]) -> columns, or nil when it is no terminal or the size is unknown */
static int terminal_width(lua_State *L) {
  int fd = lua_isnoneornil(L, 1) ? STDOUT_FILENO : check_fd(L, 1);
  struct winsize size;
  if (ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 0;
  lua_pushinteger(L, size.ws_col);
  return 1;
}

/* now() -> seconds on a clock that never jumps */
static int now(lua_State *L) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  lua_pushnumber(L, (double)t.tv_sec + 1e-9 * (double)t.tv_nsec);
  return 1;
}

/* sleep(seconds): returns early when a signal arrives */
static int sleep_for(lua_State *L) {
  double seconds = luaL_checknumber(L, 1);
  luaL_argcheck(L, seconds >= 0 && seconds < 1e9, 1, "0 or more seconds expected");
  struct timespec t;
  t.tv_sec = (time_t)seconds;
  t.tv_nsec = (long)(1e9 * (seconds - floor(seconds)));
  nanosleep(&t, NULL);
  return 0;
}

/* Pushes the bytes of a "Name:  123 kB" line of /proc/self/status, or nil. */
static int push_status_field(lua_State *L, const char *name) {
  FILE *file = fopen("/proc/self/status", "r");
  if (!file) return 0;
  char line[256];
  size_t length = strlen(name);
  double kib = -1;
  while (kib < 0 && fgets(line, sizeof line, file)) {
    if (strncmp(line, name, length) == 0 && line[length] == ':') kib = strtod(line + length + 1, NULL);
  }
  fclose(file);
  if (kib < 0) return 0;
  lua_pushnumber(L, kib * 1024);
  return 1;
}

/* rss() -> resident bytes now; peak_rss() -> the most so far; nil where /proc does not tell */
static int rss(lua_State *L) { return push_status_field(L, "VmRSS"); }
static int peak_rss(lua_State *L) { return push_status_field(L, "VmHWM"); }

/* cpu_count() -> processors this process may use */
static int cpu_count(lua_State *L) {
  cpu_set_t set;
  long n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : sysconf(_SC_NPROCESSORS_ONLN);
  lua_pushinteger(L, n > 0 ? n : 1);
  return 1;
}

/* exit(status): closes the state (finalizers run) and ends the process; a lost output is an error */
static int exit_program(lua_State *L) {
  int status = (int)luaL_checkinteger(L, 1);
  host_signals_remove();
  lua_close(L);
  exit(host_flush_output(status));
}

static void set_string(lua_State *L, const char *key, const char *value) {
  lua_pushstring(L, value);
  lua_setfield(L, -2, key);
}

int host_lib_open(lua_State *L) {
  static const luaL_Reg functions[] = {
    { "is_tty", is_tty },
    { "terminal_width", terminal_width },
    { "now", now },
    { "sleep", sleep_for },
    { "rss", rss },
    { "peak_rss", peak_rss },
    { "cpu_count", cpu_count },
    { "exit", exit_program },
    { NULL, NULL },
  };
  const host_paths *paths = lua_touserdata(L, lua_upvalueindex(1));
  lua_createtable(L, 0, 40);
  luaL_setfuncs(L, functions, 0);
  host_signals_register(L);
  host_fs_register(L);
  set_string(L, "exe_path", paths->exe);
  set_string(L, "share_dir", paths->share);
  set_string(L, "version", SAELUA_VERSION);
  lua_createtable(L, 0, 4); /* stack: module, build */
  set_string(L, "compiler", __VERSION__);
#ifdef __OPTIMIZE__
  set_string(L, "mode", "optimised");
#else
  set_string(L, "mode", "debug");
#endif
#ifdef __SANITIZE_ADDRESS__
  set_string(L, "sanitizer", "address");
#endif
  lua_setfield(L, -2, "build");
  return 1;
}
