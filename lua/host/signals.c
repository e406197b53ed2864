/* Ctrl-C and SIGTERM; see host.h.
 *
 * Normal mode: the first signal raises the engine's interrupt flag (the operation under way
 * returns SL_EINTERRUPT) and arms a hook that raises "interrupted" in interpreted Lua code; the
 * second one ends the process. Compiled Lua loops see no hook, so the second one is their cure.
 * Graceful mode (a training loop that wants to save first): the first signal only counts, and
 * the loop asks interrupted(); the second acts like the first above; the third ends the process. */
#include <errno.h>
#include <lauxlib.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "core/base/interrupt.h"
#include "lua/host/host.h"

static lua_State *volatile target;          /* the state to interrupt; NULL outside install..remove */
static volatile sig_atomic_t seen;          /* signals since the last clear_interrupt */
static volatile sig_atomic_t last;          /* the latest one's number, 0 for none */
static volatile sig_atomic_t graceful_mode; /* the first signal only counts */

static int terminal; /* standard error is one: say at once that the signal arrived */

/* write() is all that a handler may use. A failure to speak changes nothing. */
static void say(const char *text) {
  if (terminal && write(STDERR_FILENO, text, strlen(text)) < 0) return;
}

static void raise_in_lua(lua_State *L, lua_Debug *ar) {
  (void)ar;
  lua_sethook(L, NULL, 0, 0);
  luaL_error(L, "interrupted");
}

static void act_on(int number) {
  last = number;
  seen = seen + 1;
  int rank = (int)seen - (graceful_mode ? 1 : 0);
  if (rank <= 0) {
    say("\nstopping at the end of this step; once more to stop at once\n");
    return;
  }
  if (rank == 1) {
    sl_interrupt_raise();
    /* LuaJIT allows this call from a signal handler, as its own host does. */
    if (target) lua_sethook(target, raise_in_lua, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
    return;
  }
  signal(number, SIG_DFL);
  raise(number); /* delivered when the handler returns */
}

/* The interrupted code must not find errno changed. */
static void on_signal(int number) {
  int code = errno;
  act_on(number);
  errno = code;
}

/* Without SA_RESTART, so that a blocked read (the REPL's prompt) wakes up. */
static void handle(int number, void (*handler)(int)) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  sigaction(number, &action, NULL);
}

void host_signals_install(lua_State *L) {
  target = L;
  terminal = isatty(STDERR_FILENO);
  struct sigaction old;
  /* A program started with SIGINT ignored (nohup, background jobs of sh) stays that way. */
  if (sigaction(SIGINT, NULL, &old) == 0 && old.sa_handler != SIG_IGN) handle(SIGINT, on_signal);
  if (sigaction(SIGTERM, NULL, &old) == 0 && old.sa_handler != SIG_IGN) handle(SIGTERM, on_signal);
}

void host_signals_remove(void) {
  target = NULL;
  handle(SIGINT, SIG_DFL);
  handle(SIGTERM, SIG_DFL);
}

/* interrupted() -> "SIGINT" | "SIGTERM" | false */
static int interrupted(lua_State *L) {
  if (last == SIGINT) lua_pushliteral(L, "SIGINT");
  else if (last == SIGTERM) lua_pushliteral(L, "SIGTERM");
  else lua_pushboolean(L, 0);
  return 1;
}

void host_signals_forget(lua_State *L) {
  sigset_t both, before;
  sigemptyset(&both);
  sigaddset(&both, SIGINT);
  sigaddset(&both, SIGTERM);
  sigprocmask(SIG_BLOCK, &both, &before);
  lua_sethook(L, NULL, 0, 0);
  sl_interrupt_clear();
  seen = 0;
  last = 0;
  sigprocmask(SIG_SETMASK, &before, NULL);
}

/* clear_interrupt() -> what interrupted() said; forgets the signal */
static int clear_interrupt(lua_State *L) {
  interrupted(L);
  host_signals_forget(L);
  return 1;
}

/* graceful(on) -> whether it was on before */
static int graceful(lua_State *L) {
  luaL_checktype(L, 1, LUA_TBOOLEAN);
  lua_pushboolean(L, graceful_mode != 0);
  graceful_mode = lua_toboolean(L, 1);
  return 1;
}

void host_signals_register(lua_State *L) {
  static const luaL_Reg functions[] = {
    { "interrupted", interrupted },
    { "clear_interrupt", clear_interrupt },
    { "graceful", graceful },
    { NULL, NULL },
  };
  luaL_setfuncs(L, functions, 0);
}
