/* Inside of an open safetensors set; for core/io/safetensors*.c only. */
#ifndef SL_SAFETENSORS_SET_H
#define SL_SAFETENSORS_SET_H

#include "file_map.h"
#include "safetensors.h"

typedef struct {
  char *path;
  char *names; /* the names of its tensors, each with its NUL */
  sl_file_map map;
} st_shard;

struct sl_safetensors {
  char *path; /* the file or folder that was opened, for messages */
  st_shard *shards;
  size_t n_shards;
  sl_safetensor *entries;
  size_t count;
  uint32_t *by_name;         /* [count] indices into entries, sorted by name */
  char *pairs;               /* key NUL value NUL ... */
  size_t pairs_bytes;
};

/* Maps one file and appends its tensors. Names may repeat until st_index_names has looked. */
sl_status st_add_file(sl_safetensors *set, const char *path);
/* Builds by_name; a name in two files is SL_EFORMAT. */
sl_status st_index_names(sl_safetensors *set);

/* "[2 x 3]"; `text` holds 160 bytes. */
enum { ST_SHAPE_TEXT = 160 };
const char *st_shape_text(int rank, const int64_t *shape, char *text);

#endif
