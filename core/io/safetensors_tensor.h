/* Between safetensors and tensors: thin helpers over safetensors.h. */
#ifndef SL_SAFETENSORS_TENSOR_H
#define SL_SAFETENSORS_TENSOR_H

#include "core/tensor/tensor.h"
#include "safetensors.h"

/* A new tensor on `device` with the entry's shape and elements, dtype kept (F64 becomes f32, I16 and I8 i32,
 * BOOL u8). SL_ESHAPE above SL_MAX_RANK dimensions. */
sl_status sl_safetensors_load_tensor(const sl_safetensor *entry, sl_device *device, sl_tensor **out);

/* The same converted to `dtype` as sl_safetensors_copy does. */
sl_status sl_safetensors_load_tensor_as(const sl_safetensor *entry, sl_device *device, sl_dtype dtype,
                                        sl_tensor **out);

/* Writes tensors of any device and strides atomically, in the order given. */
sl_status sl_safetensors_save_tensors(const char *path, const char *const *names, sl_tensor *const *tensors,
                                      size_t count, const sl_safetensors_pair *metadata,
                                      size_t metadata_count);

#endif
