/* The module "saelua.host.line": line editing on a terminal through libedit.
 *
 * What it is not: the REPL (lua/saelua/repl.lua). One editor a process: libedit owns the terminal. */
#include <errno.h>
#include <histedit.h>
#include <lauxlib.h>
#include <stdio.h>
#include <string.h>

#include "lua/host/host.h"

static struct {
  EditLine *el;
  History *history;
  lua_State *L;          /* the state whose `read` is running; NULL outside */
  int completer;         /* registry reference, LUA_NOREF for none */
  const char *prompt;    /* owned by the Lua stack during `read` */
} editor = { NULL, NULL, NULL, LUA_NOREF, "" };

static char *prompt_text(EditLine *el) {
  (void)el;
  return (char *)editor.prompt;
}

/* Prints the candidates below the line, in columns. stack: ..., list */
static void print_candidates(lua_State *L, int list) {
  enum { WIDTH = 78, MAX = 200 };
  int count = (int)lua_objlen(L, list), widest = 1;
  for (int i = 1; i <= count; i++) {
    lua_rawgeti(L, list, i);
    size_t n;
    if (lua_tolstring(L, -1, &n) && (int)n > widest) widest = (int)n;
    lua_pop(L, 1);
  }
  int columns = WIDTH / (widest + 2);
  if (columns < 1) columns = 1;
  fputc('\n', stdout);
  for (int i = 1; i <= count && i <= MAX; i++) {
    lua_rawgeti(L, list, i);
    const char *text = lua_tostring(L, -1);
    int last = i == count || i == MAX || i % columns == 0;
    printf("%-*s%s", last ? 0 : widest + 2, text ? text : "", last ? "\n" : "");
    lua_pop(L, 1);
  }
  if (count > MAX) printf("... and %d more\n", count - MAX);
  fflush(stdout);
}

/* Tab: asks completer(text before the cursor) -> text to insert, candidates. */
static unsigned char complete(EditLine *el, int key) {
  (void)key;
  lua_State *L = editor.L;
  if (!L || editor.completer == LUA_NOREF) return CC_ERROR;
  const LineInfo *line = el_line(el);
  int top = lua_gettop(L);
  lua_rawgeti(L, LUA_REGISTRYINDEX, editor.completer);
  lua_pushlstring(L, line->buffer, (size_t)(line->cursor - line->buffer));
  if (lua_pcall(L, 1, 2, 0) != 0) { /* a completer's error must not end the line */
    lua_settop(L, top);
    return CC_ERROR;
  }
  unsigned char result = CC_ERROR; /* stack: insert, list */
  const char *insert = lua_tostring(L, -2);
  if (insert && *insert && el_insertstr(el, insert) == 0) result = CC_REFRESH;
  else if (lua_istable(L, -1) && lua_objlen(L, -1) > 1) {
    print_candidates(L, lua_gettop(L));
    result = CC_REDISPLAY;
  }
  lua_settop(L, top);
  return result;
}

/* open(completer | nil) -> true, or nil, message when the terminal cannot be edited on */
static int line_open(lua_State *L) {
  if (editor.el) return luaL_error(L, "line.open: the editor is open already");
  if (!lua_isnoneornil(L, 1)) luaL_checktype(L, 1, LUA_TFUNCTION);
  editor.el = el_init("saelua", stdin, stdout, stderr);
  editor.history = history_init();
  if (!editor.el || !editor.history) {
    lua_pushnil(L);
    lua_pushliteral(L, "this terminal offers no line editing");
    return 2;
  }
  if (!lua_isnoneornil(L, 1)) {
    lua_pushvalue(L, 1);
    editor.completer = luaL_ref(L, LUA_REGISTRYINDEX);
  }
  HistEvent event;
  history(editor.history, &event, H_SETSIZE, 2000);
  history(editor.history, &event, H_SETUNIQUE, 1);
  el_set(editor.el, EL_PROMPT, prompt_text);
  el_set(editor.el, EL_EDITOR, "emacs");
  el_set(editor.el, EL_HIST, history, editor.history);
  el_set(editor.el, EL_SIGNAL, 0); /* our own handlers stay; a signal makes el_gets return */
  el_set(editor.el, EL_ADDFN, "saelua-complete", "complete Lua names", complete);
  el_set(editor.el, EL_BIND, "^I", "saelua-complete", NULL);
  el_set(editor.el, EL_BIND, "^R", "em-inc-search-prev", NULL);
  el_set(editor.el, EL_BIND, "\\e[3~", "ed-delete-next-char", NULL);
  el_source(editor.el, NULL); /* the user's ~/.editrc */
  lua_pushboolean(L, 1);
  return 1;
}

/* read(prompt) -> line without its newline; nil at end of input; false when a signal came */
static int line_read(lua_State *L) {
  editor.prompt = luaL_checkstring(L, 1);
  if (!editor.el) return luaL_error(L, "line.read: the editor is not open");
  int count = 0;
  editor.L = L;
  errno = 0;
  const char *text = el_gets(editor.el, &count);
  int code = errno;
  editor.L = NULL;
  if (!text || count <= 0) {
    if (count < 0 && code == EINTR) {
      el_reset(editor.el);
      host_signals_forget(L); /* it was for the line, not for a computation */
      fputc('\n', stdout);
      lua_pushboolean(L, 0);
    } else {
      lua_pushnil(L);
    }
    return 1;
  }
  size_t length = strlen(text);
  while (length > 0 && (text[length - 1] == '\n' || text[length - 1] == '\r')) length--;
  lua_pushlstring(L, text, length);
  return 1;
}

/* remember(text): adds an entry to the history */
static int line_remember(lua_State *L) {
  HistEvent event;
  const char *text = luaL_checkstring(L, 1);
  if (editor.history) history(editor.history, &event, H_ENTER, text);
  return 0;
}

/* load(path), save(path) -> true or false: the history file, in libedit's own format */
static int line_file(lua_State *L, int operation) {
  HistEvent event;
  const char *path = luaL_checkstring(L, 1);
  lua_pushboolean(L, editor.history && history(editor.history, &event, operation, path) >= 0);
  return 1;
}

static int line_load(lua_State *L) { return line_file(L, H_LOAD); }
static int line_save(lua_State *L) { return line_file(L, H_SAVE); }

/* close(): gives the terminal back */
static int line_close(lua_State *L) {
  if (editor.history) history_end(editor.history);
  if (editor.el) el_end(editor.el);
  luaL_unref(L, LUA_REGISTRYINDEX, editor.completer);
  editor.history = NULL;
  editor.el = NULL;
  editor.completer = LUA_NOREF;
  return 0;
}

int host_line_open(lua_State *L) {
  static const luaL_Reg functions[] = {
    { "open", line_open },         { "read", line_read }, { "remember", line_remember },
    { "load", line_load },         { "save", line_save }, { "close", line_close },
    { NULL, NULL },
  };
  lua_createtable(L, 0, 8);
  luaL_setfuncs(L, functions, 0);
  return 1;
}
