/* Element by element: casts, unary functions and their slopes, broadcasting binary functions. Strided copies are in
 * strided.cu. All of it is bound by memory: 16 bytes a thread and access where addresses allow. */
#include "axes.h"
#include "math.h"
#include "pack.h"

enum { BLOCK = 256 };

/* -- Casts -- */

template <int DTYPE> struct element;
template <> struct element<SL_F32> { typedef float type; enum { is_int = 0 }; };
template <> struct element<SL_BF16> { typedef uint16_t type; enum { is_int = 0 }; };
template <> struct element<SL_F16> { typedef uint16_t type; enum { is_int = 0 }; };
template <> struct element<SL_I64> { typedef int64_t type; enum { is_int = 1 }; };
template <> struct element<SL_I32> { typedef int32_t type; enum { is_int = 1 }; };
template <> struct element<SL_U8> { typedef uint8_t type; enum { is_int = 1 }; };

/* Integers are clamped, NaN becomes 0, fractions are cut: as on the CPU. */
static __device__ __forceinline__ int64_t float_to_i64(float x) {
  if (!(x > -9.2233720e18f)) return x < 0 ? INT64_MIN : 0;
  return x >= 9.2233720e18f ? INT64_MAX : static_cast<int64_t>(x);
}
static __device__ __forceinline__ int64_t clamp_i64(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

template <int X> static __device__ __forceinline__ float as_float(typename element<X>::type x) {
  if constexpr (X == SL_BF16) return sl_bf16_to_f32(x);
  else if constexpr (X == SL_F16) return sl_f16_to_f32(x);
  else return static_cast<float>(x);
}

template <int X, int Y>
static __device__ __forceinline__ typename element<Y>::type convert(typename element<X>::type x) {
  if constexpr (element<Y>::is_int) {
    int64_t value;
    if constexpr (element<X>::is_int) value = x;
    else value = float_to_i64(as_float<X>(x));
    if constexpr (Y == SL_I64) return value;
    else if constexpr (Y == SL_I32) return static_cast<int32_t>(clamp_i64(value, INT32_MIN, INT32_MAX));
    else return static_cast<uint8_t>(clamp_i64(value, 0, 255));
  } else {
    float value = as_float<X>(x);
    if constexpr (Y == SL_F32) return value;
    else if constexpr (Y == SL_BF16) return sl_f32_to_bf16(value);
    else return sl_f32_to_f16(value);
  }
}

/* Eight elements a thread: 16 bytes of the narrower 16-bit side. */
enum { CAST = 8 };

template <int X, int Y>
static __global__ void cast_kernel(const typename element<X>::type *x, typename element<Y>::type *y, int64_t packs,
                                   int64_t n) {
  typedef slk_pack<typename element<X>::type, CAST> pack_x;
  typedef slk_pack<typename element<Y>::type, CAST> pack_y;
  SLK_LOOP(i, packs) {
    pack_x in = reinterpret_cast<const pack_x *>(x)[i];
    pack_y out;
#pragma unroll
    for (int j = 0; j < CAST; j++) out.at[j] = convert<X, Y>(in.at[j]);
    reinterpret_cast<pack_y *>(y)[i] = out;
  }
  SLK_LOOP(i, n - packs * CAST) y[packs * CAST + i] = convert<X, Y>(x[packs * CAST + i]);
}

template <int X, int Y> static void cast_to(const sl_device *device, const sl_cast_args *args) {
  typedef typename element<X>::type type_x;
  typedef typename element<Y>::type type_y;
  bool aligned = slk_aligned(args->x, alignof(slk_pack<type_x, CAST>)) &&
                 slk_aligned(args->y, alignof(slk_pack<type_y, CAST>));
  int64_t packs = aligned ? args->n / CAST : 0;
  int64_t items = packs > 0 ? packs : args->n;
  LAUNCH((cast_kernel<X, Y>), slk_grid(device, items, BLOCK), BLOCK, 0, slk_cuda_stream(device),
         static_cast<const type_x *>(args->x), static_cast<type_y *>(args->y), packs, args->n);
}

template <int X> static void cast_from(const sl_device *device, const sl_cast_args *args) {
  switch (args->dtype_y) {
  case SL_F32:
    return cast_to<X, SL_F32>(device, args);
  case SL_BF16:
    return cast_to<X, SL_BF16>(device, args);
  case SL_F16:
    return cast_to<X, SL_F16>(device, args);
  case SL_I64:
    return cast_to<X, SL_I64>(device, args);
  case SL_I32:
    return cast_to<X, SL_I32>(device, args);
  default:
    return cast_to<X, SL_U8>(device, args);
  }
}

extern "C" sl_status slk_cuda_cast(sl_device *device, const sl_cast_args *args) {
  slk_cuda_enter(device);
  if (args->n == 0) return SL_OK;
  switch (args->dtype_x) {
  case SL_F32:
    cast_from<SL_F32>(device, args);
    break;
  case SL_BF16:
    cast_from<SL_BF16>(device, args);
    break;
  case SL_F16:
    cast_from<SL_F16>(device, args);
    break;
  case SL_I64:
    cast_from<SL_I64>(device, args);
    break;
  case SL_I32:
    cast_from<SL_I32>(device, args);
    break;
  default:
    cast_from<SL_U8>(device, args);
    break;
  }
  return slk_cuda_launched(device, "cast");
}

/* -- Unary -- */

/* One struct for each line of SL_UNARY_LIST. */
template <int OP> struct unary_function;
#define X(id, name, f, df)                                                                                   \
  template <> struct unary_function<SL_UNARY_##id> {                                                         \
    static __device__ __forceinline__ float value(float x, float p) {                                        \
      (void)p;                                                                                               \
      return (f);                                                                                            \
    }                                                                                                        \
    static __device__ __forceinline__ float slope(float x, float y, float p) {                               \
      (void)x, (void)y, (void)p;                                                                             \
      return (df);                                                                                           \
    }                                                                                                        \
  };
SL_UNARY_LIST(X)
#undef X

template <int OP> static __global__ void unary_kernel(const float *x, float *y, float p, int64_t packs, int64_t n) {
  SLK_LOOP(i, packs) {
    slk_float4 v = slk_load4(x, i);
#pragma unroll
    for (int j = 0; j < 4; j++) v.at[j] = unary_function<OP>::value(v.at[j], p);
    slk_store4(y, i, v);
  }
  SLK_LOOP(i, n - packs * 4) y[packs * 4 + i] = unary_function<OP>::value(x[packs * 4 + i], p);
}

extern "C" sl_status slk_cuda_unary(sl_device *device, const sl_unary_args *args) {
  slk_cuda_enter(device);
  int64_t packs = slk_packs(args->n, args->x, args->y);
  unsigned grid = slk_grid(device, packs > 0 ? packs : args->n, BLOCK);
  if (args->n == 0) return SL_OK;
  switch (args->op) {
#define X(id, name, f, df)                                                                                   \
  case SL_UNARY_##id:                                                                                        \
    LAUNCH((unary_kernel<SL_UNARY_##id>), grid, BLOCK, 0, slk_cuda_stream(device), args->x, args->y, args->p, \
           packs, args->n);                                                                                  \
    break;
    SL_UNARY_LIST(X)
#undef X
  default:
    break;
  }
  return slk_cuda_launched(device, "unary");
}

struct slope_args {
  const float *x, *y, *dy;
  float *dx, p;
  int64_t packs, n;
};

template <int OP, bool ADD> static __global__ void slope_kernel(slope_args a) {
  SLK_LOOP(i, a.packs) { /* x or y is not loaded where the slope does without */
    slk_float4 x = slk_load4(a.x, i), y = slk_load4(a.y, i), dy = slk_load4(a.dy, i), dx = {};
    if (ADD) dx = slk_load4(a.dx, i);
#pragma unroll
    for (int j = 0; j < 4; j++) dx.at[j] += dy.at[j] * unary_function<OP>::slope(x.at[j], y.at[j], a.p);
    slk_store4(a.dx, i, dx);
  }
  SLK_LOOP(k, a.n - a.packs * 4) {
    int64_t i = a.packs * 4 + k;
    float change = a.dy[i] * unary_function<OP>::slope(a.x[i], a.y[i], a.p);
    a.dx[i] = ADD ? a.dx[i] + change : change;
  }
}

template <int OP> static void launch_slope(const sl_device *device, const slope_args &a, bool add) {
  unsigned grid = slk_grid(device, a.packs > 0 ? a.packs : a.n, BLOCK);
  if (add) LAUNCH((slope_kernel<OP, true>), grid, BLOCK, 0, slk_cuda_stream(device), a);
  else LAUNCH((slope_kernel<OP, false>), grid, BLOCK, 0, slk_cuda_stream(device), a);
}

extern "C" sl_status slk_cuda_unary_backward(sl_device *device, const sl_unary_backward_args *args) {
  slk_cuda_enter(device);
  if (args->n == 0) return SL_OK;
  slope_args a = { args->x, args->y, args->dy, args->dx, args->p,
                   slk_packs(args->n, args->x, args->y, args->dy, args->dx), args->n };
  switch (args->op) {
#define X(id, name, f, df)                                             \
  case SL_UNARY_##id:                                                  \
    launch_slope<SL_UNARY_##id>(device, a, args->accumulate);          \
    break;
    SL_UNARY_LIST(X)
#undef X
  default:
    break;
  }
  return slk_cuda_launched(device, "unary_backward");
}

/* -- Binary -- */

template <int OP> static __device__ __forceinline__ float apply(float a, float b);
#define X(id, f) \
  template <> __device__ __forceinline__ float apply<SL_BINARY_##id>(float a, float b) { return (f); }
SL_BINARY_LIST(X)
#undef X

/* y in units of WIDTH elements along the last axis; the axes' last shape and strides count units. by_a, by_b: strides
 * of single elements along that axis, 0 or 1 where WIDTH is 4. Elements from units * WIDTH to n follow: only views of
 * one axis have such a tail. */
struct binary_job {
  slk_axes axes;
  const float *a, *b;
  float *y;
  int64_t units, n, by_a, by_b;
};

template <int WIDTH> static __device__ __forceinline__ slk_pack<float, WIDTH> load_side(const float *x, int64_t by) {
  slk_pack<float, WIDTH> v;
  if (WIDTH > 1 && by != 0) return *reinterpret_cast<const slk_pack<float, WIDTH> *>(x);
#pragma unroll
  for (int j = 0; j < WIDTH; j++) v.at[j] = x[0];
  return v;
}

template <int OP, int WIDTH, bool WIDE> static __global__ void binary_kernel(binary_job job) {
  typedef slk_pack<float, WIDTH> pack;
  SLK_LOOP(i, job.units) {
    int64_t at_a, at_b;
    slk_axes_offsets<WIDE>(job.axes, i, &at_a, &at_b);
    pack a = load_side<WIDTH>(job.a + at_a, job.by_a), b = load_side<WIDTH>(job.b + at_b, job.by_b);
#pragma unroll
    for (int j = 0; j < WIDTH; j++) a.at[j] = apply<OP>(a.at[j], b.at[j]);
    reinterpret_cast<pack *>(job.y)[i] = a;
  }
  SLK_LOOP(k, job.n - job.units * WIDTH) {
    int64_t i = job.units * WIDTH + k;
    job.y[i] = apply<OP>(job.a[i * job.by_a], job.b[i * job.by_b]);
  }
}

/* Whether four elements along the last axis can be moved at once on both sides and in y. */
static bool in_fours(const slk_view *view, const sl_binary_args *args) {
  const float *sides[2] = { args->a, args->b };
  int last = view->rank - 1;
  if (!slk_aligned(args->y, 16) || view->shape[last] < 4 || (last > 0 && view->shape[last] % 4 != 0)) return false;
  for (int s = 0; s < 2; s++) {
    int64_t by = view->strides[s][last];
    if (by == 0) continue;
    if (by != 1 || !slk_aligned(sides[s], 16)) return false;
    for (int i = 0; i < last; i++)
      if (view->strides[s][i] % 4 != 0) return false;
  }
  return true;
}

template <int OP> static void launch_binary(const sl_device *device, const binary_job &job, bool fours) {
  unsigned grid = slk_grid(device, job.units, BLOCK);
  cudaStream_t stream = slk_cuda_stream(device);
  if (fours && job.axes.wide) LAUNCH((binary_kernel<OP, 4, true>), grid, BLOCK, 0, stream, job);
  else if (fours) LAUNCH((binary_kernel<OP, 4, false>), grid, BLOCK, 0, stream, job);
  else if (job.axes.wide) LAUNCH((binary_kernel<OP, 1, true>), grid, BLOCK, 0, stream, job);
  else LAUNCH((binary_kernel<OP, 1, false>), grid, BLOCK, 0, stream, job);
}

extern "C" sl_status slk_cuda_binary(sl_device *device, const sl_binary_args *args) {
  slk_cuda_enter(device);
  slk_view view;
  slk_view_join(&view, args->rank, args->shape, args->strides_a, args->strides_b);
  int last = view.rank - 1;
  binary_job job = {};
  job.a = args->a, job.b = args->b, job.y = args->y;
  job.n = job.units = slk_view_size(&view);
  job.by_a = view.strides[0][last], job.by_b = view.strides[1][last];
  if (job.n == 0) return SL_OK;
  bool fours = in_fours(&view, args);
  if (fours) {
    view.shape[last] /= 4; /* of one axis the rest is the tail */
    view.strides[0][last] *= 4;
    view.strides[1][last] *= 4;
    job.units = slk_view_size(&view);
  }
  job.axes = slk_axes_of(&view, 0, view.rank);
  switch (args->op) {
#define X(id, f)                                           \
  case SL_BINARY_##id:                                     \
    launch_binary<SL_BINARY_##id>(device, job, fours);     \
    break;
    SL_BINARY_LIST(X)
#undef X
  default:
    break;
  }
  return slk_cuda_launched(device, "binary");
}
