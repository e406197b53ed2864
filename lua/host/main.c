/* saelua: runs recipes. Opens a Lua state and hands the command line to lua/saelua/cli.lua.
 *
 * Only what cannot be Lua is here. Options, error texts, the REPL and exit codes are cli.lua's. */
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "lua/host/host.h"

/* The last resort, for an error outside cli.lua's own handler: message and Lua traceback. */
static int last_resort(lua_State *L) {
  const char *text = lua_tostring(L, 1);
  luaL_traceback(L, L, text ? text : "an error that is not a string", 1);
  return 1;
}

/* Calls cli.main(arguments); returns the exit status. */
static int run(lua_State *L, int argc, char **argv) {
  lua_pushcfunction(L, last_resort); /* stack: handler */
  lua_getglobal(L, "require");
  lua_pushliteral(L, "saelua.cli");
  if (lua_pcall(L, 1, 1, 1) != 0) goto failed; /* stack: handler, cli */
  lua_getfield(L, -1, "main");
  lua_createtable(L, argc, 0);
  for (int i = 0; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i);
  }
  if (lua_pcall(L, 1, 1, 1) != 0) goto failed; /* stack: handler, cli, status */
  return (int)lua_tointeger(L, -1);
failed:
  fprintf(stderr, "saelua: %s\n", lua_tostring(L, -1));
  return EXIT_FAILURE;
}

/* OpenMP's workers spin for milliseconds before they sleep. Where another program wants the cores too, that costs
 * more than it gains (topk_bert beside one busy program on two cores: 13.3 s spinning, 10.5 s so; alone: a few
 * percent slower), so they sleep sooner unless the user has said otherwise. libgomp reads its variables when it is
 * loaded, hence the second start. */
static void start_with_patient_workers(char **argv) {
  if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
  if (setenv("GOMP_SPINCOUNT", "2000", 1) == 0) execv("/proc/self/exe", argv);
  /* without /proc: go on as we are */
}

int main(int argc, char **argv) {
  start_with_patient_workers(argv);
  static host_paths paths;
  char why[2 * SL_HOST_PATH_MAX];
  if (host_paths_find(&paths, why, sizeof why) != 0) {
    fprintf(stderr, "saelua: %s\n", why);
    return EXIT_FAILURE;
  }
  lua_State *L = host_state_open(&paths);
  if (!L) return EXIT_FAILURE;
  host_signals_install(L);
  int status = run(L, argc, argv);
  host_signals_remove();
  lua_close(L);
  return host_flush_output(status);
}
