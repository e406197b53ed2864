/* Element types and the inline conversions between float32 and the two 16-bit floats. */
#ifndef SL_DTYPE_H
#define SL_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Arithmetic that CUDA kernels share with the host; nothing to a C compiler. */
#ifdef __CUDACC__
#define SL_BOTH __host__ __device__
#else
#define SL_BOTH
#endif

/*        name      Lua and safetensors-like name, bytes */
#define SL_DTYPE_LIST(X) \
  X(SL_F32,  "f32",  4)  \
  X(SL_BF16, "bf16", 2)  \
  X(SL_F16,  "f16",  2)  \
  X(SL_I64,  "i64",  8)  \
  X(SL_I32,  "i32",  4)  \
  X(SL_U8,   "u8",   1)

typedef enum {
#define X(id, name, bytes) id,
  SL_DTYPE_LIST(X)
#undef X
  SL_DTYPE_COUNT
} sl_dtype;

static inline size_t sl_dtype_size(sl_dtype dtype) {
  static const unsigned char sizes[] = {
#define X(id, name, bytes) bytes,
    SL_DTYPE_LIST(X)
#undef X
  };
  return sizes[dtype];
}

static inline const char *sl_dtype_name(sl_dtype dtype) {
  static const char *const names[] = {
#define X(id, name, bytes) name,
    SL_DTYPE_LIST(X)
#undef X
  };
  return names[dtype];
}

static inline SL_BOTH float sl_bf16_to_f32(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

/* Round to nearest, ties to even; NaN stays a quiet NaN. */
static inline SL_BOTH uint16_t sl_f32_to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u);
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline SL_BOTH float sl_f16_to_f32(uint16_t half) {
  uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = (half >> 10) & 0x1fu, mantissa = half & 0x3ffu;
  uint32_t bits;
  if (exponent == 0x1f) {
    bits = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112u) << 23) | (mantissa << 13);
  } else { /* zero or subnormal: mantissa * 2^-24, exact in float32 */
    float magnitude = (float)mantissa * 5.9604644775390625e-8f;
    memcpy(&bits, &magnitude, sizeof bits);
    bits |= sign;
  }
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* Round to nearest, ties to even; overflow becomes infinity. */
static inline SL_BOTH uint16_t sl_f32_to_f16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
  if (magnitude < 0x38800000u) { /* subnormal: let float addition do the rounding */
    float shifted;
    memcpy(&shifted, &magnitude, sizeof shifted);
    shifted += 0.5f;
    uint32_t rounded;
    memcpy(&rounded, &shifted, sizeof rounded);
    return (uint16_t)(sign | (rounded - 0x3f000000u));
  }
  uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return (uint16_t)(sign | ((rounded - 0x38000000u) >> 13));
}

#endif
