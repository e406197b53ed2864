/* Weight files as tensors: an open safetensors set whose tensors use the mapped file's memory where it lies.
 *
 * The mapping is private: writing to such a tensor changes this process's copy of the page, never the file. It stays
 * until the set and every tensor over it are released. When the last tensor over an entry goes, the entry's pages leave
 * memory with it: a model that is converted or uploaded is never in memory twice. */
#ifndef SL_WEIGHTS_H
#define SL_WEIGHTS_H

#include "core/tensor/tensor.h"
#include "safetensors.h"

typedef struct sl_weights sl_weights;

/* A file, or a folder with model.safetensors or shards; failures as in safetensors.h. */
sl_status sl_weights_open(const char *path, sl_weights **out);
sl_weights *sl_weights_retain(sl_weights *weights);
void sl_weights_release(sl_weights *weights);
const sl_safetensors *sl_weights_set(const sl_weights *weights);

/* The entry on the CPU, in the engine dtype that holds its values. No copy where dtype and alignment allow it.
 * SL_EFORMAT above rank SL_MAX_RANK. */
sl_status sl_weights_tensor(sl_weights *weights, const sl_safetensor *entry, sl_tensor **out);

/* Do two entries hold the same dtype, shape and bytes? */
bool sl_weights_same(const sl_safetensor *a, const sl_safetensor *b);

#endif
