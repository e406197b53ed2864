/* Atomic folders and the checks before a run; see atomic_file.h. */
#define _GNU_SOURCE /* renameat2, nftw */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "atomic_file.h"
#include "core/base/mem.h"
#include "file_map.h"

static sl_status make_one(const char *path) {
  if (mkdir(path, 0777) == 0 || (errno == EEXIST && sl_dir_exists(path))) return SL_OK;
  return sl_fail(SL_EIO, "%s: cannot create the folder: %s", path,
                 errno == EEXIST ? "a file of that name is in the way" : strerror(errno));
}

sl_status sl_dir_make(const char *path) {
  if (path[0] == '\0') return sl_fail(SL_EINVAL, "cannot create a folder with an empty name");
  char *copy;
  SL_TRY(sl_mem_strdup(path, &copy));
  sl_status status = SL_OK;
  for (char *at = copy + 1; status == SL_OK && (at = strchr(at, '/')) != NULL; at++) {
    *at = '\0';
    status = make_one(copy);
    *at = '/';
  }
  if (status == SL_OK) status = make_one(copy);
  sl_mem_free(copy);
  return status;
}

static sl_status test_file(const char *path) {
  char *name;
  SL_TRY(sl_path_join(path, ".saelua-write-test", &name));
  sl_status status = sl_file_write(name, "saelua\n", 7);
  if (status == SL_OK) (void)unlink(name);
  sl_mem_free(name);
  return status;
}

sl_status sl_dir_writable(const char *path, uint64_t bytes_needed) {
  SL_TRY(sl_dir_make(path));
  sl_status status = test_file(path);
  if (status != SL_OK) return sl_fail_context(status, "the folder %s cannot be written", path);
  struct statvfs info;
  if (statvfs(path, &info) != 0) {
    return sl_fail(SL_EIO, "%s: cannot learn the free space: %s", path, strerror(errno));
  }
  unsigned long long free_bytes = (unsigned long long)info.f_bavail * info.f_frsize;
  if (free_bytes < bytes_needed) {
    return sl_fail(SL_EIO, "%s: %llu bytes are needed, %llu are free; make room or choose another folder",
                   path, (unsigned long long)bytes_needed, free_bytes);
  }
  return SL_OK;
}

/* A name beside `path` (trailing slashes dropped) that is new to this process. */
static sl_status sibling_name(const char *path, const char *purpose, char **out) {
  static _Atomic unsigned counter;
  size_t length = strlen(path);
  while (length > 1 && path[length - 1] == '/') length--;
  if (length == 0) return sl_fail(SL_EINVAL, "a folder with an empty name");
  size_t bytes = length + 64;
  *out = NULL;
  SL_TRY(sl_mem_alloc(bytes, "a temporary folder name", (void **)out));
  snprintf(*out, bytes, "%.*s.%s-%ld-%u", (int)length, path, purpose, (long)getpid(),
           atomic_fetch_add(&counter, 1u));
  return SL_OK;
}

sl_status sl_dir_begin(const char *path, char **temporary) {
  *temporary = NULL;
  char *name;
  SL_TRY(sibling_name(path, "tmp", &name));
  char *slash = strrchr(name, '/');
  sl_status status = SL_OK;
  if (slash && slash != name) {
    *slash = '\0';
    status = sl_dir_make(name);
    *slash = '/';
  }
  if (status == SL_OK) status = sl_dir_remove(name); /* left by a dead process with our number */
  if (status == SL_OK) status = make_one(name);
  if (status != SL_OK) {
    sl_mem_free(name);
    return status;
  }
  *temporary = name;
  return SL_OK;
}

static int sync_entry(const char *path, const struct stat *info, int kind, struct FTW *where) {
  (void)info, (void)where;
  if (kind != FTW_F && kind != FTW_DP) return 0;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  int error = fsync(fd) != 0 && kind == FTW_F ? errno : 0; /* folders: some file systems refuse */
  close(fd);
  return error;
}

/* Replaces an existing folder in two renames; the old contents come back if the second one fails. */
static sl_status replace_in_two(const char *temporary, const char *path) {
  char *old;
  SL_TRY(sibling_name(path, "old", &old));
  sl_status status = SL_OK;
  if (rename(path, old) != 0) {
    status = sl_fail(SL_EIO, "%s: cannot be replaced: %s", path, strerror(errno));
  } else if (rename(temporary, path) != 0) {
    status = sl_fail(SL_EIO, "%s: cannot put the new folder in place: %s", path, strerror(errno));
    (void)rename(old, path);
  } else {
    status = sl_dir_remove(old);
  }
  sl_mem_free(old);
  return status;
}

sl_status sl_dir_commit(const char *temporary, const char *path) {
  int error = nftw(temporary, sync_entry, 16, FTW_DEPTH | FTW_PHYS);
  if (error != 0) {
    return sl_fail(SL_EIO, "%s: cannot flush to the disk: %s", temporary,
                   strerror(error > 0 ? error : errno));
  }
  if (!sl_dir_exists(path)) {
    if (rename(temporary, path) == 0) return SL_OK;
    return sl_fail(SL_EIO, "%s: cannot put the new folder in place: %s", path, strerror(errno));
  }
  if (renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_EXCHANGE) == 0) return sl_dir_remove(temporary);
  return replace_in_two(temporary, path); /* a file system that cannot exchange */
}

void sl_dir_abort(const char *temporary) {
  if (temporary) (void)sl_dir_remove(temporary);
}

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *where) {
  (void)info, (void)kind, (void)where;
  return remove(path) == 0 || errno == ENOENT ? 0 : errno;
}

sl_status sl_dir_remove(const char *path) {
  struct stat info;
  if (lstat(path, &info) != 0 && errno == ENOENT) return SL_OK;
  int error = nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
  if (error == 0) return SL_OK;
  return sl_fail(SL_EIO, "%s: cannot be removed: %s", path, strerror(error > 0 ? error : errno));
}
