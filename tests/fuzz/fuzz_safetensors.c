/* Any bytes as a safetensors file: refused cleanly, or every tensor can be read. */
#include "fuzz.h"

#include <string.h>

#include "core/io/safetensors.h"

static void read_all(const sl_safetensors *set) {
  for (size_t i = 0; i < sl_safetensors_count(set); i++) {
    const sl_safetensor *entry = sl_safetensors_at(set, i);
    FUZZ_DEMAND(sl_safetensors_find(set, entry->name) == entry);
    sl_dtype dtype = sl_file_dtype_engine(entry->dtype);
    void *out = malloc((size_t)entry->count * sl_dtype_size(dtype) + 1);
    FUZZ_DEMAND(out && sl_safetensors_copy(entry, dtype, out) == SL_OK);
    free(out);
  }
  const char *key, *value;
  for (size_t i = 0; sl_safetensors_metadata_at(set, i, &key, &value); i++)
    FUZZ_DEMAND(sl_safetensors_metadata(set, key));
  const sl_safetensor *none;
  (void)sl_safetensors_get(set, "bert.encoder.layer.0.attention.self.query.weight", &none);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
  sl_safetensors *set;
  sl_status status = sl_safetensors_open(fuzz_file(data, bytes), &set);
  FUZZ_DEMAND((status == SL_OK) == (set != NULL));
  if (set) read_all(set);
  else FUZZ_DEMAND(sl_last_error()[0] != '\0');
  sl_safetensors_close(set);
  FUZZ_NO_LEAK();
  return 0;
}
