/* Element by element: casts, strided copies, unary functions and their slopes,
 * broadcasting binary functions. */
#include <string.h>

#include "cpu.h"
#include "vmath.h"

/* Elements per piece of work: 64 KB of float32, several pieces per thread on
 * anything large. */
enum { piece = 16384 };

/* -- Casts -- */

/* Integers are clamped, NaN becomes 0, fractions are cut: what C leaves
 * undefined is defined here. */
static inline int64_t float_to_i64(float x) {
  if (!(x > -9.2233720e18f)) return x < 0 ? INT64_MIN : 0;
  return x >= 9.2233720e18f ? INT64_MAX : (int64_t)x;
}
static inline int64_t clamp_i64(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

static inline float load_float(const void *x, sl_dtype dtype, int64_t i) {
  switch (dtype) {
  case SL_F32:
    return ((const float *)x)[i];
  case SL_BF16:
    return sl_bf16_to_f32(((const uint16_t *)x)[i]);
  case SL_F16:
    return sl_f16_to_f32(((const uint16_t *)x)[i]);
  case SL_I64:
    return (float)((const int64_t *)x)[i];
  case SL_I32:
    return (float)((const int32_t *)x)[i];
  default:
    return (float)((const uint8_t *)x)[i];
  }
}

static inline int64_t load_int(const void *x, sl_dtype dtype, int64_t i) {
  switch (dtype) {
  case SL_I64:
    return ((const int64_t *)x)[i];
  case SL_I32:
    return ((const int32_t *)x)[i];
  case SL_U8:
    return ((const uint8_t *)x)[i];
  default:
    return float_to_i64(load_float(x, dtype, i));
  }
}

static inline void store_float(void *y, sl_dtype dtype, int64_t i, float value) {
  if (dtype == SL_F32)
    ((float *)y)[i] = value;
  else if (dtype == SL_BF16)
    ((uint16_t *)y)[i] = sl_f32_to_bf16(value);
  else
    ((uint16_t *)y)[i] = sl_f32_to_f16(value);
}

static inline void store_int(void *y, sl_dtype dtype, int64_t i, int64_t value) {
  if (dtype == SL_I64)
    ((int64_t *)y)[i] = value;
  else if (dtype == SL_I32)
    ((int32_t *)y)[i] = (int32_t)clamp_i64(value, INT32_MIN, INT32_MAX);
  else
    ((uint8_t *)y)[i] = (uint8_t)clamp_i64(value, 0, 255);
}

SLK_HOT static void bf16_to_f32(const uint16_t *x, float *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = sl_bf16_to_f32(x[i]);
}

SLK_HOT static void f32_to_bf16(const float *x, uint16_t *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, &x[i], sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, nan = (bits >> 16) | 0x40u;
    y[i] = (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
  }
}

static void cast_range(const sl_cast_args *args, int64_t from, int64_t to) {
  bool ints = args->dtype_y == SL_I64 || args->dtype_y == SL_I32 || args->dtype_y == SL_U8;
  if (args->dtype_x == SL_BF16 && args->dtype_y == SL_F32) {
    bf16_to_f32((const uint16_t *)args->x + from, (float *)args->y + from, to - from);
  } else if (args->dtype_x == SL_F32 && args->dtype_y == SL_BF16) {
    f32_to_bf16((const float *)args->x + from, (uint16_t *)args->y + from, to - from);
  } else if (ints) {
    for (int64_t i = from; i < to; i++)
      store_int(args->y, args->dtype_y, i, load_int(args->x, args->dtype_x, i));
  } else {
    for (int64_t i = from; i < to; i++)
      store_float(args->y, args->dtype_y, i, load_float(args->x, args->dtype_x, i));
  }
}

sl_status slk_cpu_cast(sl_device *device, const sl_cast_args *args) {
  (void)device;
#pragma omp parallel for schedule(static) if (args->n >= SLK_PARALLEL_MIN)
  for (int64_t from = 0; from < args->n; from += piece)
    cast_range(args, from, slk_min(from + piece, args->n));
  return SL_OK;
}

/* -- Unary -- */

/* SL_UNARY_LIST as loops: one function per line of the list. */
#define X(id, name, f, df)                                                                                   \
  SLK_HOT static void forward_##id(float p, const float *in, float *out, int64_t n) {                        \
    (void)p;                                                                                                 \
    SLK_SIMD for (int64_t i = 0; i < n; i++) {                                                               \
      float x = in[i];                                                                                       \
      out[i] = (f);                                                                                          \
    }                                                                                                        \
  }
SL_UNARY_LIST(X)
#undef X

typedef struct {
  const float *x, *y, *dy;
  float *dx;
  float p, keep; /* keep = 1: add to dx */
  int64_t n;
} slope_args;

#define X(id, name, f, df)                                                                                   \
  SLK_HOT static void backward_##id(const slope_args *a) {                                                   \
    const float p = a->p;                                                                                    \
    const float *xs = a->x, *ys = a->y, *dys = a->dy;                                                        \
    float *dxs = a->dx;                                                                                      \
    if (a->keep != 0) {                                                                                      \
      SLK_SIMD for (int64_t i = 0; i < a->n; i++) {                                                          \
        float x = xs[i], y = ys[i];                                                                          \
        (void)x, (void)y, (void)p;                                                                           \
        dxs[i] += dys[i] * (df);                                                                             \
      }                                                                                                      \
    } else {                                                                                                 \
      SLK_SIMD for (int64_t i = 0; i < a->n; i++) {                                                          \
        float x = xs[i], y = ys[i];                                                                          \
        (void)x, (void)y, (void)p;                                                                           \
        dxs[i] = dys[i] * (df);                                                                              \
      }                                                                                                      \
    }                                                                                                        \
  }
SL_UNARY_LIST(X)
#undef X

typedef void forward_function(float p, const float *in, float *out, int64_t n);
typedef void backward_function(const slope_args *args);
static forward_function *const forward_functions[] = {
#define X(id, name, f, df) forward_##id,
  SL_UNARY_LIST(X)
#undef X
};
static backward_function *const backward_functions[] = {
#define X(id, name, f, df) backward_##id,
  SL_UNARY_LIST(X)
#undef X
};

sl_status slk_cpu_unary(sl_device *device, const sl_unary_args *args) {
  (void)device;
  forward_function *function = forward_functions[args->op];
#pragma omp parallel for schedule(static) if (args->n >= SLK_PARALLEL_MIN)
  for (int64_t from = 0; from < args->n; from += piece) {
    function(args->p, args->x + from, args->y + from, slk_min(piece, args->n - from));
  }
  return SL_OK;
}

sl_status slk_cpu_unary_backward(sl_device *device, const sl_unary_backward_args *args) {
  (void)device;
  backward_function *function = backward_functions[args->op];
#pragma omp parallel for schedule(static) if (args->n >= SLK_PARALLEL_MIN)
  for (int64_t from = 0; from < args->n; from += piece) {
    slope_args part = { args->x + from,
                        args->y + from,
                        args->dy + from,
                        args->dx + from,
                        args->p,
                        args->accumulate ? 1.0f : 0.0f,
                        slk_min(piece, args->n - from) };
    function(&part);
  }
  return SL_OK;
}

/* -- Binary -- */

/* One run of the innermost axis: contiguous, one side constant, or any strides.
 */
#define X(id, f)                                                                                             \
  SLK_HOT static void binary_##id(const float *as, const float *bs, float *y, const int64_t *by,             \
                                  int64_t n) {                                                               \
    const int64_t by_a = by[0], by_b = by[1];                                                                \
    if (by_a == 1 && by_b == 1) {                                                                            \
      SLK_SIMD for (int64_t i = 0; i < n; i++) {                                                             \
        const float a = as[i], b = bs[i];                                                                    \
        y[i] = (f);                                                                                          \
      }                                                                                                      \
    } else if (by_a == 1 && by_b == 0) {                                                                     \
      const float b = bs[0];                                                                                 \
      SLK_SIMD for (int64_t i = 0; i < n; i++) {                                                             \
        const float a = as[i];                                                                               \
        y[i] = (f);                                                                                          \
      }                                                                                                      \
    } else if (by_a == 0 && by_b == 1) {                                                                     \
      const float a = as[0];                                                                                 \
      SLK_SIMD for (int64_t i = 0; i < n; i++) {                                                             \
        const float b = bs[i];                                                                               \
        y[i] = (f);                                                                                          \
      }                                                                                                      \
    } else {                                                                                                 \
      for (int64_t i = 0; i < n; i++) {                                                                      \
        const float a = as[i * by_a], b = bs[i * by_b];                                                      \
        y[i] = (f);                                                                                          \
      }                                                                                                      \
    }                                                                                                        \
  }
SL_BINARY_LIST(X)
#undef X

typedef void binary_function(const float *as, const float *bs, float *y, const int64_t *by, int64_t n);
static binary_function *const binary_functions[SL_BINARY_COUNT] = {
#define X(id, f) [SL_BINARY_##id] = binary_##id,
  SL_BINARY_LIST(X)
#undef X
};

sl_status slk_cpu_binary(sl_device *device, const sl_binary_args *args) {
  (void)device;
  slk_view view;
  slk_view_join(&view, args->rank, args->shape, args->strides_a, args->strides_b);
  binary_function *function = binary_functions[args->op];
  int64_t total = slk_view_size(&view), inner = view.shape[view.rank - 1];
  if (total == 0) return SL_OK;
  int64_t by[2] = { view.strides[0][view.rank - 1], view.strides[1][view.rank - 1] };
  int64_t pieces = slk_ceil_div(inner, piece), runs = total / inner;
#pragma omp parallel for schedule(static) if (total >= SLK_PARALLEL_MIN)
  for (int64_t job = 0; job < runs * pieces; job++) {
    int64_t run = job / pieces, from = job % pieces * piece, offsets[2];
    slk_view_offsets(&view, view.rank - 1, run, offsets);
    function(args->a + offsets[0] + from * by[0], args->b + offsets[1] + from * by[1],
             args->y + run * inner + from, by, slk_min(piece, inner - from));
  }
  return SL_OK;
}
