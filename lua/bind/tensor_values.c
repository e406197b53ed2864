/* Tensor elements as Lua numbers, and how a tensor prints. */
#include "bind.h"

#include <math.h>
#include <stdio.h>

double sl_lua_value_at(const char *data, sl_dtype dtype) {
  switch (dtype) {
  case SL_F32: return (double)*(const float *)(const void *)data;
  case SL_BF16: return (double)sl_bf16_to_f32(*(const uint16_t *)(const void *)data);
  case SL_F16: return (double)sl_f16_to_f32(*(const uint16_t *)(const void *)data);
  case SL_I64: return (double)*(const int64_t *)(const void *)data;
  case SL_I32: return (double)*(const int32_t *)(const void *)data;
  default: return (double)*(const uint8_t *)(const void *)data;
  }
}

/* The whole numbers that an integer dtype holds; false for the others. */
static bool integer_range(sl_dtype dtype, double *low, double *high) {
  *low = dtype == SL_U8 ? 0 : dtype == SL_I32 ? INT32_MIN : -9223372036854775808.0;
  *high = dtype == SL_U8 ? UINT8_MAX : dtype == SL_I32 ? INT32_MAX : 9223372036854774784.0;
  return dtype == SL_U8 || dtype == SL_I32 || dtype == SL_I64;
}

void sl_lua_check_value(lua_State *L, const char *where, sl_dtype dtype, double value) {
  double low, high;
  if (!integer_range(dtype, &low, &high) || (value == floor(value) && value >= low && value <= high)) return;
  luaL_error(L, "%s: %f is not a value of %s", where, value, sl_dtype_name(dtype));
}

void sl_lua_store_value(char *out, sl_dtype dtype, double value) {
  switch (dtype) {
  case SL_F32: *(float *)(void *)out = (float)value; break;
  case SL_BF16: *(uint16_t *)(void *)out = sl_f32_to_bf16((float)value); break;
  case SL_F16: *(uint16_t *)(void *)out = sl_f32_to_f16((float)value); break;
  case SL_I64: *(int64_t *)(void *)out = (int64_t)value; break;
  case SL_I32: *(int32_t *)(void *)out = (int32_t)value; break;
  default: *(uint8_t *)out = (uint8_t)value; break;
  }
}

typedef struct {
  double min, max, sum;
  int64_t not_finite;
} summary;

static summary summarise(const sl_tensor *t) {
  summary s = { INFINITY, -INFINITY, 0, 0 };
  const char *data = sl_tensor_data(t);
  size_t size = sl_dtype_size(t->dtype);
  int64_t n = sl_tensor_count(t);
  for (int64_t i = 0; i < n; i++) {
    double v = sl_lua_value_at(data + (size_t)i * size, t->dtype);
    if (!isfinite(v)) s.not_finite++;
    s.min = fmin(s.min, v);
    s.max = fmax(s.max, v);
    s.sum += v;
  }
  return s;
}

/* The corners of the last two dimensions of a contiguous host tensor, at the first position of the others. */
static void add_corners(luaL_Buffer *out, const sl_tensor *t) {
  enum { EDGE = 3 };
  int64_t cols = t->rank >= 1 ? t->shape[t->rank - 1] : 1, rows = t->rank >= 2 ? t->shape[t->rank - 2] : 1;
  const char *data = sl_tensor_data(t);
  size_t size = sl_dtype_size(t->dtype);
  char number[32];
  for (int64_t i = 0; i < rows; i++) {
    if (rows > 2 * EDGE && i == EDGE) {
      luaL_addstring(out, "\n  ...");
      i = rows - EDGE;
    }
    luaL_addstring(out, "\n ");
    for (int64_t j = 0; j < cols; j++) {
      if (cols > 2 * EDGE && j == EDGE) {
        luaL_addstring(out, "       ...");
        j = cols - EDGE;
      }
      snprintf(number, sizeof number, " %10.4g", sl_lua_value_at(data + (size_t)(i * cols + j) * size, t->dtype));
      luaL_addstring(out, number);
    }
  }
}

int sl_lua_tensor_tostring(lua_State *L) {
  void **raw = luaL_checkudata(L, 1, SL_LUA_TENSOR);
  if (!*raw) {
    lua_pushliteral(L, "tensor (freed)");
    return 1;
  }
  sl_tensor *t = *raw;
  char shape[SL_SHAPE_TEXT], line[256];
  sl_tensor **host = sl_lua_new_tensor(L), **packed;
  SL_LUA_TRY(L, sl_tensor_to_device(t, sl_cpu_device(), host));
  packed = sl_lua_new_tensor(L);
  SL_LUA_TRY(L, sl_tensor_contiguous(*host, packed));
  luaL_Buffer out;
  luaL_buffinit(L, &out);
  snprintf(line, sizeof line, "tensor %s %s %s", sl_tensor_shape_text(t, shape), sl_dtype_name(t->dtype),
           sl_tensor_device(t)->name);
  luaL_addstring(&out, line);
  if (sl_tensor_count(t) > 0) {
    summary s = summarise(*packed);
    snprintf(line, sizeof line, "  min %.4g  mean %.4g  max %.4g", s.min, s.sum / (double)sl_tensor_count(t), s.max);
    luaL_addstring(&out, line);
    if (s.not_finite) {
      snprintf(line, sizeof line, "  (%lld not finite)", (long long)s.not_finite);
      luaL_addstring(&out, line);
    }
    add_corners(&out, *packed);
  }
  luaL_pushresult(&out);
  return 1;
}
