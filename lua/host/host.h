/* The host program's own parts, shared between its files.
 *
 * What it is: the few things a Lua state inside `saelua` needs from the process: where the Lua
 * library lies, signals, clocks, a small file system shim and a line editor. They reach Lua as
 * the module "saelua.host" (host_lib.c, host_fs.c) and "saelua.host.line" (line_edit.c).
 * What it is not: a binding of the engine (lua/bind) or policy: options, errors, the REPL and
 * exit codes are Lua (lua/saelua/cli.lua). */
#ifndef SL_HOST_H
#define SL_HOST_H

#include <lua.h>
#include <stddef.h>

/* Largest path that the host handles; longer ones are refused with a message. */
enum { SL_HOST_PATH_MAX = 4096 };

/* Where things are. Filled once by host_paths_find. */
typedef struct {
  char exe[SL_HOST_PATH_MAX];   /* this program, links resolved */
  char share[SL_HOST_PATH_MAX]; /* holds lua/, recipes/, models/, js/ */
} host_paths;

/* Finds the program and its library: SAELUA_HOME, <prefix>/share/saelua beside <prefix>/bin, a
 * parent folder of the program that holds lua/saelua, or the source tree it was built from.
 * Returns 0, or -1 with a message in `why` (`size` bytes). */
int host_paths_find(host_paths *paths, char *why, size_t size);

/* A state with the standard libraries, package.path and cpath set, and our modules preloaded.
 * `paths` must outlive it. NULL, with a message on stderr, when that fails. */
lua_State *host_state_open(const host_paths *paths);

/* Installs SIGINT and SIGTERM handlers that act on `L`; host_signals_remove before lua_close. */
void host_signals_install(lua_State *L);
void host_signals_remove(void);

/* Forgets signals seen so far and disarms the hook. */
void host_signals_forget(lua_State *L);

/* Adds interrupted, clear_interrupt and graceful to the table on top of the stack. */
void host_signals_register(lua_State *L);
/* Adds mkdir, rename, remove, remove_tree, list, stat, sync_dir, sync_file, truncate, cwd, realpath. */
void host_fs_register(lua_State *L);

/* Flushes standard output. Returns `status`, or a failure when output was lost (a full disk behind it). */
int host_flush_output(int status);

/* luaopen functions of the modules named above. */
int host_lib_open(lua_State *L);
int host_line_open(lua_State *L);

/* lua/bind/module.c: the engine. */
int luaopen_saelua_core(lua_State *L);

#endif
