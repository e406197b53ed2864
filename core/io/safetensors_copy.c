/* Copying a tensor's elements out of the file, with conversion; see safetensors.h. */
#include <string.h>

#include "core/base/interrupt.h"
#include "safetensors.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors are little-endian; this reader does not swap bytes"
#endif

static float float_at(sl_file_dtype dtype, const uint8_t *at) {
  double wide;
  float value;
  uint16_t half;
  switch (dtype) {
  case SL_FILE_F64: memcpy(&wide, at, 8); return (float)wide;
  case SL_FILE_F16: memcpy(&half, at, 2); return sl_f16_to_f32(half);
  case SL_FILE_BF16: memcpy(&half, at, 2); return sl_bf16_to_f32(half);
  default: memcpy(&value, at, 4); return value;
  }
}

static int64_t integer_at(sl_file_dtype dtype, const uint8_t *at) {
  int64_t i64;
  int32_t i32;
  int16_t i16;
  switch (dtype) {
  case SL_FILE_I64: memcpy(&i64, at, 8); return i64;
  case SL_FILE_I32: memcpy(&i32, at, 4); return i32;
  case SL_FILE_I16: memcpy(&i16, at, 2); return i16;
  case SL_FILE_I8: return (int8_t)*at;
  case SL_FILE_BOOL: return *at != 0;
  default: return *at;
  }
}

static int is_float(sl_file_dtype dtype) { return dtype <= SL_FILE_BF16; }

/* Whether every integer of the file dtype fits. */
static int integer_fits(sl_file_dtype from, sl_dtype to) {
  if (to == SL_I64) return 1;
  if (to == SL_I32) return from != SL_FILE_I64;
  return to == SL_U8 && (from == SL_FILE_U8 || from == SL_FILE_BOOL);
}

static void convert_floats(const sl_safetensor *entry, sl_dtype dtype, void *out) {
  const uint8_t *at = entry->data;
  size_t step = sl_file_dtype_size(entry->dtype);
  for (int64_t i = 0; i < entry->count; i++, at += step) {
    float value = float_at(entry->dtype, at);
    if (dtype == SL_F32) ((float *)out)[i] = value;
    else ((uint16_t *)out)[i] = dtype == SL_F16 ? sl_f32_to_f16(value) : sl_f32_to_bf16(value);
  }
}

static void convert_integers(const sl_safetensor *entry, sl_dtype dtype, void *out) {
  const uint8_t *at = entry->data;
  size_t step = sl_file_dtype_size(entry->dtype);
  for (int64_t i = 0; i < entry->count; i++, at += step) {
    int64_t value = integer_at(entry->dtype, at);
    if (dtype == SL_I64) ((int64_t *)out)[i] = value;
    else if (dtype == SL_I32) ((int32_t *)out)[i] = (int32_t)value;
    else ((uint8_t *)out)[i] = (uint8_t)value;
  }
}

sl_status sl_safetensors_copy(const sl_safetensor *entry, sl_dtype dtype, void *out) {
  SL_TRY(sl_interrupt_check());
  if (entry->dtype != SL_FILE_BOOL && sl_file_dtype_of(dtype) == entry->dtype) {
    if (entry->bytes > 0) memcpy(out, entry->data, entry->bytes);
    return SL_OK;
  }
  int to_float = dtype == SL_F32 || dtype == SL_F16 || dtype == SL_BF16;
  if (is_float(entry->dtype) && to_float) {
    convert_floats(entry, dtype, out);
  } else if (!is_float(entry->dtype) && !to_float && integer_fits(entry->dtype, dtype)) {
    convert_integers(entry, dtype, out);
  } else {
    return sl_fail(SL_EDTYPE, "%s: tensor \"%s\" is %s, which is not read as %s", entry->path, entry->name,
                   sl_file_dtype_name(entry->dtype), sl_dtype_name(dtype));
  }
  return SL_OK;
}
