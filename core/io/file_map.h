/* Files as bytes: mapped (large, read only) or read whole (small, text).
 *
 * A map stays valid until it is closed, also when the file is renamed or unlinked meanwhile; a
 * file that another program *shortens* while it is mapped kills the process (SIGBUS), as with
 * every mapped file. All of saelua replaces files by rename, never in place. */
#ifndef SL_FILE_MAP_H
#define SL_FILE_MAP_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

typedef struct {
  const uint8_t *data; /* page aligned; a valid pointer even for an empty file */
  size_t bytes;
} sl_file_map;

/* SL_ENOTFOUND for a missing file, SL_EIO for one that is unreadable or not a regular file. */
sl_status sl_file_map_open(const char *path, sl_file_map *map);
/* Allowed on a zeroed map. */
void sl_file_map_close(sl_file_map *map);

/* Takes the whole pages within [data, data + bytes) of a map out of this process' memory. They come back from the file
 * when they are touched again, without what was written into them. */
void sl_file_map_forget(const void *data, size_t bytes);

/* The whole file with a NUL behind it (not counted in *bytes); sl_mem_free(*text). SL_EFORMAT above
 * max_bytes. */
sl_status sl_file_read(const char *path, size_t max_bytes, char **text, size_t *bytes);

/* Whether path names a regular file, and a folder. */
int sl_file_exists(const char *path);
int sl_dir_exists(const char *path);

/* "folder/name" in counted memory. */
sl_status sl_path_join(const char *folder, const char *name, char **out);

#endif
