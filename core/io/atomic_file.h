/* Files and folders that appear whole or not at all.
 *
 * A file is written beside its destination under a temporary name, flushed to the disk and
 * renamed; whatever goes wrong before the rename leaves the old file as it was and removes the
 * temporary one. A checkpoint is a folder treated the same way. A full disk is reported with the
 * bytes that were needed and the bytes that are free. */
#ifndef SL_ATOMIC_FILE_H
#define SL_ATOMIC_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

typedef struct sl_atomic_file sl_atomic_file;

/* `bytes` is the size the file will have (for the message about a full disk); 0 when unknown.
 * The folder must exist. The file gets the permissions of a newly created one. */
sl_status sl_atomic_file_open(const char *path, uint64_t bytes, sl_atomic_file **out);
sl_status sl_atomic_file_write(sl_atomic_file *file, const void *data, size_t bytes);
/* Flush, fsync, rename, fsync of the folder. Frees `file` in every case. */
sl_status sl_atomic_file_commit(sl_atomic_file *file);
/* Drops what was written and frees `file`; NULL is allowed. Leaves the last-error message alone. */
void sl_atomic_file_abort(sl_atomic_file *file);

/* The three calls in one. */
sl_status sl_file_write(const char *path, const void *data, size_t bytes);

/* Creates the folder and its missing parents. */
sl_status sl_dir_make(const char *path);

/* Creates the folder if need be, proves by a test file that it can be written, and demands
 * bytes_needed of free space. For a check before a long run. */
sl_status sl_dir_writable(const char *path, uint64_t bytes_needed);

/* A whole folder: begin gives an empty temporary sibling of `path` (sl_mem_free the name after
 * commit or abort); commit syncs it and puts it in the place of `path`, whose old contents are removed
 * only after the new ones are in place; abort removes the temporary folder. */
sl_status sl_dir_begin(const char *path, char **temporary);
sl_status sl_dir_commit(const char *temporary, const char *path);
void sl_dir_abort(const char *temporary);

/* Removes a folder and all in it; symbolic links are removed, not followed. A missing one is fine. */
sl_status sl_dir_remove(const char *path);

/* For tests: writes fail as on a full disk once `bytes` more bytes were written; a negative number switches
 * it off. */
void sl_io_fail_after(int64_t bytes);

#endif
