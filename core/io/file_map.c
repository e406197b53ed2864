/* Mapped and wholly read files; see file_map.h. */
#include "file_map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/mem.h"

static sl_status open_regular(const char *path, int *fd, size_t *bytes) {
  *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not block before it is refused */
  if (*fd < 0) {
    return sl_fail(errno == ENOENT ? SL_ENOTFOUND : SL_EIO, "%s: cannot open: %s", path, strerror(errno));
  }
  struct stat info;
  if (fstat(*fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(*fd);
    return sl_fail(SL_EIO, "%s: not a regular file", path);
  }
  *bytes = (size_t)info.st_size;
  return SL_OK;
}

sl_status sl_file_map_open(const char *path, sl_file_map *map) {
  *map = (sl_file_map){ 0 };
  int fd;
  size_t bytes;
  SL_TRY(open_regular(path, &fd, &bytes));
  /* Writable but private: a tensor over the map may be changed in place, the file never is. */
  void *data = bytes > 0 ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0) : NULL;
  int error = errno;
  close(fd);
  if (data == MAP_FAILED) {
    return sl_fail(error == ENOMEM ? SL_ENOMEM : SL_EIO, "%s: cannot map %zu bytes: %s", path, bytes,
                   strerror(error));
  }
  map->data = bytes > 0 ? data : (const uint8_t *)"";
  map->bytes = bytes;
  return SL_OK;
}

void sl_file_map_close(sl_file_map *map) {
  if (map->bytes > 0) munmap((void *)(uintptr_t)map->data, map->bytes);
  *map = (sl_file_map){ 0 };
}

void sl_file_map_forget(const void *data, size_t bytes) {
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  uintptr_t first = ((uintptr_t)data + page - 1) / page * page, end = ((uintptr_t)data + bytes) / page * page;
  if (first < end) (void)madvise((void *)first, end - first, MADV_DONTNEED); /* failing costs memory only */
}

static sl_status read_all(int fd, const char *path, char *text, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    ssize_t got = read(fd, text + done, bytes - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return sl_fail(SL_EIO, "%s: cannot read: %s", path, strerror(errno));
    if (got == 0)
      return sl_fail(SL_EIO, "%s: shrank from %zu to %zu bytes while it was read", path, bytes, done);
    done += (size_t)got;
  }
  text[bytes] = '\0';
  return SL_OK;
}

sl_status sl_file_read(const char *path, size_t max_bytes, char **text, size_t *bytes) {
  *text = NULL;
  *bytes = 0;
  int fd;
  size_t size;
  SL_TRY(open_regular(path, &fd, &size));
  sl_status status = SL_OK;
  if (size > max_bytes) {
    status = sl_fail(SL_EFORMAT, "%s: %zu bytes; a file of this kind has at most %zu", path, size, max_bytes);
  }
  if (status == SL_OK) status = sl_mem_resize((void **)text, size + 1, "a file's text");
  if (status == SL_OK) status = read_all(fd, path, *text, size);
  close(fd);
  if (status != SL_OK) {
    sl_mem_free(*text);
    *text = NULL;
    return status;
  }
  *bytes = size;
  return SL_OK;
}

int sl_file_exists(const char *path) {
  struct stat info;
  return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

int sl_dir_exists(const char *path) {
  struct stat info;
  return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

sl_status sl_path_join(const char *folder, const char *name, char **out) {
  size_t length = strlen(folder), bytes = length + strlen(name) + 2;
  *out = NULL;
  SL_TRY(sl_mem_resize((void **)out, bytes, "a path"));
  snprintf(*out, bytes, "%s%s%s", folder, length > 0 && folder[length - 1] == '/' ? "" : "/", name);
  return SL_OK;
}
