/* Atomic files; see atomic_file.h. Folders are in atomic_dir.c. */
#include "atomic_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/base/mem.h"

enum { BUFFER_BYTES = 1 << 16 };

struct sl_atomic_file {
  char *path, *temporary;
  int fd;
  uint64_t expected, written; /* bytes */
  size_t buffered;
  uint8_t buffer[BUFFER_BYTES];
};

static _Atomic int64_t disk_left = -1;

void sl_io_fail_after(int64_t bytes) { atomic_store(&disk_left, bytes); }

/* write(2), with the injected full disk in front of it. */
static ssize_t write_some(int fd, const void *data, size_t bytes) {
  int64_t left = atomic_load(&disk_left);
  if (left >= 0) {
    if (left == 0) {
      errno = ENOSPC;
      return -1;
    }
    if ((uint64_t)left < bytes) bytes = (size_t)left;
    atomic_fetch_sub(&disk_left, (int64_t)bytes);
  }
  return write(fd, data, bytes);
}

/* The folder of a path, in counted memory. */
static sl_status parent_of(const char *path, char **out) {
  const char *slash = strrchr(path, '/');
  if (!slash) return sl_mem_strdup(".", out);
  size_t length = slash == path ? 1 : (size_t)(slash - path);
  SL_TRY(sl_mem_alloc(length + 1, "a path", (void **)out));
  memcpy(*out, path, length);
  return SL_OK;
}

static sl_status write_failed(const sl_atomic_file *file, int error) {
  if (error != ENOSPC && error != EDQUOT) {
    return sl_fail(SL_EIO, "%s: cannot write: %s; the old file, if any, is untouched", file->path,
                   strerror(error));
  }
  unsigned long long needed = file->expected > file->written ? file->expected : file->written + 1,
                     free_bytes = 0;
  struct statvfs info;
  if (fstatvfs(file->fd, &info) == 0) free_bytes = (unsigned long long)info.f_bavail * info.f_frsize;
  return sl_fail(SL_EIO, "%s: the disk is full: %llu bytes are needed, %llu were written, %llu are free now; "
                 "make room or choose another folder (the old file, if any, is untouched)",
                 file->path, needed, (unsigned long long)file->written, free_bytes);
}

static sl_status write_through(sl_atomic_file *file, const uint8_t *data, size_t bytes) {
  while (bytes > 0) {
    ssize_t got = write_some(file->fd, data, bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return write_failed(file, got == 0 ? EIO : errno);
    file->written += (uint64_t)got;
    data += got;
    bytes -= (size_t)got;
  }
  return SL_OK;
}

static sl_status flush_buffer(sl_atomic_file *file) {
  size_t bytes = file->buffered;
  file->buffered = 0;
  return write_through(file, file->buffer, bytes);
}

static void free_file(sl_atomic_file *file) {
  if (file->fd >= 0) close(file->fd);
  sl_mem_free(file->path);
  sl_mem_free(file->temporary);
  sl_mem_free(file);
}

static sl_status open_temporary(sl_atomic_file *file, const char *path) {
  static _Atomic unsigned counter;
  SL_TRY(sl_mem_strdup(path, &file->path));
  size_t size = strlen(path) + 48;
  SL_TRY(sl_mem_alloc(size, "a temporary file name", (void **)&file->temporary));
  for (int attempt = 0; attempt < 100; attempt++) {
    snprintf(file->temporary, size, "%s.tmp-%ld-%u", path, (long)getpid(), atomic_fetch_add(&counter, 1u));
    file->fd = open(file->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file->fd >= 0) return SL_OK;
    if (errno != EEXIST) break;
  }
  return sl_fail(SL_EIO, "%s: cannot create a file beside it: %s", path, strerror(errno));
}

sl_status sl_atomic_file_open(const char *path, uint64_t bytes, sl_atomic_file **out) {
  *out = NULL;
  sl_atomic_file *file;
  SL_TRY(sl_mem_alloc(sizeof *file, "a file being written", (void **)&file));
  file->fd = -1;
  file->expected = bytes;
  sl_status status = open_temporary(file, path);
  if (status != SL_OK) {
    free_file(file);
    return status;
  }
  *out = file;
  return SL_OK;
}

sl_status sl_atomic_file_write(sl_atomic_file *file, const void *data, size_t bytes) {
  if (bytes >= BUFFER_BYTES) {
    SL_TRY(flush_buffer(file));
    return write_through(file, data, bytes);
  }
  if (file->buffered + bytes > BUFFER_BYTES) SL_TRY(flush_buffer(file));
  if (bytes > 0) memcpy(file->buffer + file->buffered, data, bytes);
  file->buffered += bytes;
  return SL_OK;
}

/* A rename is on the disk only when its folder is. Some file systems refuse fsync on a folder: not an error.
 */
static void sync_parent(const char *path) {
  char *parent;
  if (parent_of(path, &parent) != SL_OK) return;
  int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd >= 0) {
    (void)fsync(fd);
    close(fd);
  }
  sl_mem_free(parent);
}

static sl_status finish(sl_atomic_file *file) {
  SL_TRY(flush_buffer(file));
  if (fsync(file->fd) != 0) return write_failed(file, errno);
  int closed = close(file->fd);
  file->fd = -1;
  if (closed != 0) return write_failed(file, errno);
  if (rename(file->temporary, file->path) != 0) {
    return sl_fail(SL_EIO, "%s: cannot put the new file in place: %s", file->path, strerror(errno));
  }
  return SL_OK;
}

sl_status sl_atomic_file_commit(sl_atomic_file *file) {
  sl_status status = finish(file);
  if (status != SL_OK) {
    sl_atomic_file_abort(file);
    return status;
  }
  sync_parent(file->path);
  free_file(file);
  return SL_OK;
}

void sl_atomic_file_abort(sl_atomic_file *file) {
  if (!file) return;
  (void)unlink(file->temporary);
  free_file(file);
}

sl_status sl_file_write(const char *path, const void *data, size_t bytes) {
  sl_atomic_file *file;
  SL_TRY(sl_atomic_file_open(path, bytes, &file));
  sl_status status = sl_atomic_file_write(file, data, bytes);
  if (status == SL_OK) return sl_atomic_file_commit(file);
  sl_atomic_file_abort(file);
  return status;
}
