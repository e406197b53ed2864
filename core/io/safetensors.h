/* safetensors files: 8 bytes little-endian header length, a JSON header, the tensors' bytes.
 * Format: https://github.com/huggingface/safetensors#format
 *
 * The reader trusts nothing: a header that is too long, names a tensor twice, leaves a hole,
 * overlaps, or whose sizes do not multiply out is refused, and the message says which file and
 * tensor. Tensor data stay in the mapped file until somebody copies them. A model cut into shards reads as
 * one set. */
#ifndef SL_SAFETENSORS_H
#define SL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/dtype.h"
#include "kernels/status.h"

enum { SL_SAFETENSORS_MAX_RANK = 8 };

/* Element types of files: id, name, bytes, and the engine dtype that holds every value (F64 is rounded to
 * f32). */
#define SL_FILE_DTYPE_LIST(X)          \
  X(SL_FILE_F64, "F64", 8, SL_F32)     \
  X(SL_FILE_F32, "F32", 4, SL_F32)     \
  X(SL_FILE_F16, "F16", 2, SL_F16)     \
  X(SL_FILE_BF16, "BF16", 2, SL_BF16)  \
  X(SL_FILE_I64, "I64", 8, SL_I64)     \
  X(SL_FILE_I32, "I32", 4, SL_I32)     \
  X(SL_FILE_I16, "I16", 2, SL_I32)     \
  X(SL_FILE_I8, "I8", 1, SL_I32)       \
  X(SL_FILE_U8, "U8", 1, SL_U8)        \
  X(SL_FILE_BOOL, "BOOL", 1, SL_U8)

typedef enum {
#define X(id, name, bytes, dtype) id,
  SL_FILE_DTYPE_LIST(X)
#undef X
  SL_FILE_DTYPE_COUNT
} sl_file_dtype;

/* Bytes of an element, and its name in files. */
size_t sl_file_dtype_size(sl_file_dtype dtype);
/* "F32", ... */
const char *sl_file_dtype_name(sl_file_dtype dtype);
/* The engine dtype that sl_safetensors_copy gives for a file dtype, and the file dtype an engine dtype is
 * saved as. */
sl_dtype sl_file_dtype_engine(sl_file_dtype dtype);
sl_file_dtype sl_file_dtype_of(sl_dtype dtype);

/* One tensor of an open set; everything it points to lives as long as the set. */
typedef struct {
  const char *name;
  const char *path; /* the file it is in */
  sl_file_dtype dtype;
  int rank;                                /* 0 for a scalar */
  int64_t shape[SL_SAFETENSORS_MAX_RANK];  /* row-major; a size may be 0 */
  int64_t count;                           /* elements */
  size_t bytes;
  const void *data; /* in the mapped file; may be unaligned: copy, do not cast */
} sl_safetensor;

typedef struct sl_safetensors sl_safetensors;

/* Opens one file. SL_ENOTFOUND, SL_EIO, SL_EFORMAT, SL_ENOMEM. */
sl_status sl_safetensors_open(const char *path, sl_safetensors **out);

/* Opens model.safetensors of a folder, or the shards that model.safetensors.index.json names. A folder
 * with only pytorch_model.bin is refused with the command that converts it. */
sl_status sl_safetensors_open_dir(const char *folder, sl_safetensors **out);

void sl_safetensors_close(sl_safetensors *set);

/* Tensors in the set. */
size_t sl_safetensors_count(const sl_safetensors *set);
/* Tensors in the order of the header(s); NULL beyond the last. */
const sl_safetensor *sl_safetensors_at(const sl_safetensors *set, size_t index);
/* NULL when there is none of that name. */
const sl_safetensor *sl_safetensors_find(const sl_safetensors *set, const char *name);
/* As find, but SL_ENOTFOUND names the file, the tensor and the nearest names it has. */
sl_status sl_safetensors_get(const sl_safetensors *set, const char *name, const sl_safetensor **out);

/* The __metadata__ of the header (of the first shard): value of a key or NULL; i-th pair, 0 beyond the last.
 */
const char *sl_safetensors_metadata(const sl_safetensors *set, const char *key);
int sl_safetensors_metadata_at(const sl_safetensors *set, size_t index, const char **key, const char **value);

/* Copies entry->count elements, converted to `dtype`, to `out`. Floating kinds convert among each other (F64
 * by way of float32), integer kinds to equal or wider ones (BOOL as 0 or 1); anything else is SL_EDTYPE. */
sl_status sl_safetensors_copy(const sl_safetensor *entry, sl_dtype dtype, void *out);

/* Takes the entry's whole pages out of memory: for one that was copied and is not needed again soon. */
void sl_safetensors_forget(const sl_safetensor *entry);

/* Demands a shape (rank sizes) and names file, tensor, expected and found otherwise. */
sl_status sl_safetensors_expect(const sl_safetensor *entry, int rank, const int64_t *shape);

/* One tensor to write: either `data` (bytes as in the file) or `fill`, which is asked for
 * consecutive byte ranges from offset 0 and may fail. */
typedef struct {
  const char *name;
  sl_file_dtype dtype;
  int rank;
  int64_t shape[SL_SAFETENSORS_MAX_RANK];
  const void *data;
  sl_status (*fill)(void *context, size_t offset, void *out, size_t bytes);
  void *context;
} sl_safetensors_item;

typedef struct {
  const char *key, *value;
} sl_safetensors_pair;

/* Writes a file atomically (atomic_file.h). The header lists metadata, then the items, in the order
 * given, and is padded with spaces to 8 bytes; the data lie by falling element size, so that every tensor is
 * aligned to its elements without holes. Equal input gives equal bytes. */
sl_status sl_safetensors_write(const char *path, const sl_safetensors_item *items, size_t count,
                               const sl_safetensors_pair *metadata, size_t metadata_count);

#endif
