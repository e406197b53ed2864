/* File system calls that Lua's io and os lack, in the module "saelua.host"; see host.h.
 *
 * Success returns true (or the result); failure returns nil, a message with the path, and errno. */
#define _GNU_SOURCE /* nftw */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <lauxlib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "lua/host/host.h"

/* nil, "verb path: reason", errno */
static int fail(lua_State *L, const char *verb, const char *path) {
  int code = errno;
  lua_pushnil(L);
  lua_pushfstring(L, "cannot %s %s: %s", verb, path, strerror(code));
  lua_pushinteger(L, code);
  return 3;
}

static int done(lua_State *L, int result, const char *verb, const char *path) {
  if (result != 0) return fail(L, verb, path);
  lua_pushboolean(L, 1);
  return 1;
}

/* mkdir(path): one folder; an existing folder is an error (code 17) */
static int make_dir(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  return done(L, mkdir(path, 0777), "create folder", path);
}

/* rename(from, to): atomic on one file system, replaces files and empty folders */
static int rename_path(lua_State *L) {
  const char *from = luaL_checkstring(L, 1);
  return done(L, rename(from, luaL_checkstring(L, 2)), "rename", from);
}

/* remove(path): a file or an empty folder */
static int remove_path(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  return done(L, remove(path), "remove", path);
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *position) {
  (void)info;
  (void)type;
  (void)position;
  return remove(path);
}

/* remove_tree(path): a folder and all below it; links are removed, not followed */
static int remove_tree(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  return done(L, nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT), "remove", path);
}

static int compare_names(const struct dirent **a, const struct dirent **b) {
  return strcmp((*a)->d_name, (*b)->d_name);
}

static int not_dot(const struct dirent *entry) {
  return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

/* What scandir gave; the caller of push_listing frees it. */
typedef struct {
  struct dirent **entries;
  int count;
} listing;

/* Pushes the names as a table. Runs protected: an error here must not lose the entries. */
static int push_listing(lua_State *L) {
  const listing *names = lua_touserdata(L, 1);
  lua_createtable(L, names->count, 0);
  for (int i = 0; i < names->count; i++) {
    lua_pushstring(L, names->entries[i]->d_name);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* list(path) -> sorted names, hidden ones too, without "." and ".." */
static int list(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  listing names = { NULL, 0 };
  lua_pushcfunction(L, push_listing);
  lua_pushlightuserdata(L, &names);
  names.count = scandir(path, &names.entries, not_dot, compare_names);
  if (names.count < 0) return fail(L, "list", path);
  int status = lua_pcall(L, 1, 1, 0);
  for (int i = 0; i < names.count; i++) free(names.entries[i]);
  free(names.entries);
  return status == 0 ? 1 : lua_error(L);
}

static void set_number(lua_State *L, const char *key, double value) {
  lua_pushnumber(L, value);
  lua_setfield(L, -2, key);
}

/* stat(path) -> { type = "file" | "directory" | "other", size = bytes, mtime = unix seconds } */
static int stat_path(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  struct stat info;
  if (stat(path, &info) != 0) return fail(L, "look at", path);
  lua_createtable(L, 0, 3);
  lua_pushstring(L, S_ISREG(info.st_mode) ? "file" : S_ISDIR(info.st_mode) ? "directory" : "other");
  lua_setfield(L, -2, "type");
  set_number(L, "size", (double)info.st_size);
  set_number(L, "mtime", (double)info.st_mtim.tv_sec + 1e-9 * (double)info.st_mtim.tv_nsec);
  return 1;
}

/* Opens, syncs and closes; the first error wins. */
static int sync_path(const char *path, int flags) {
  int fd = open(path, flags | O_CLOEXEC);
  if (fd < 0) return -1;
  int result = fsync(fd), code = errno;
  close(fd);
  errno = code;
  return result;
}

/* sync_dir(path): makes renames inside it durable; sync_file(path): a file's bytes */
static int sync_dir(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  return done(L, sync_path(path, O_RDONLY | O_DIRECTORY), "sync folder", path);
}

static int sync_file(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  return done(L, sync_path(path, O_RDONLY), "sync", path);
}

/* truncate(path, bytes) */
static int truncate_path(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  double bytes = luaL_checknumber(L, 2);
  luaL_argcheck(L, bytes >= 0 && bytes < 9e15, 2, "0 or more bytes expected");
  return done(L, truncate(path, (off_t)bytes), "truncate", path);
}

/* writable(path) -> true when this process may write to it */
static int writable(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  return done(L, access(path, W_OK), "write to", path);
}

/* free_space(path) -> bytes that this user may still write on its file system */
static int free_space(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  struct statvfs info;
  if (statvfs(path, &info) != 0) return fail(L, "look at the file system of", path);
  lua_pushnumber(L, (double)info.f_bavail * (double)info.f_frsize);
  return 1;
}

/* cwd() -> the working folder */
static int cwd(lua_State *L) {
  char path[SL_HOST_PATH_MAX];
  if (!getcwd(path, sizeof path)) return fail(L, "read", "the working folder");
  lua_pushstring(L, path);
  return 1;
}

/* realpath(path) -> absolute, links resolved */
static int real_path(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  char resolved[SL_HOST_PATH_MAX];
  if (!realpath(path, resolved)) return fail(L, "find", path);
  lua_pushstring(L, resolved);
  return 1;
}

void host_fs_register(lua_State *L) {
  static const luaL_Reg functions[] = {
    { "mkdir", make_dir },
    { "rename", rename_path },
    { "remove", remove_path },
    { "remove_tree", remove_tree },
    { "list", list },
    { "stat", stat_path },
    { "sync_dir", sync_dir },
    { "sync_file", sync_file },
    { "truncate", truncate_path },
    { "writable", writable },
    { "free_space", free_space },
    { "cwd", cwd },
    { "realpath", real_path },
    { NULL, NULL },
  };
  luaL_setfuncs(L, functions, 0);
}
