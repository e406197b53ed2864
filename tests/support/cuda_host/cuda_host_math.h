/* Arithmetic, bit and load/store intrinsics of the host layer. Included by cuda_host.h.
 *
 * The fast functions (__expf, rsqrtf, ...) are the exact ones here: a test against a GPU needs a tolerance anyway. */
#ifndef CUDA_HOST_MATH_H
#define CUDA_HOST_MATH_H
#pragma GCC system_header

/* glibc owns names such as __expf, hence macros. */
#define __expf(x) expf(x)
#define __exp2f(x) exp2f(x)
#define __exp10f(x) powf(10.0f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __tanhf(x) tanhf(x)
#define __powf(x, y) powf(x, y)
#define exp10f(x) powf(10.0f, x)
#define __sincosf(x, s, c) sincosf(x, s, c)
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __frsqrt_rn(float a) { return static_cast<float>(1.0 / sqrt(static_cast<double>(a))); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

/* -- Reinterpretation and conversion -- */
template <typename To, typename From> static inline To slk_cuda_host_bits(From v) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To r;
  memcpy(&r, &v, sizeof r);
  return r;
}
static inline int __float_as_int(float v) { return slk_cuda_host_bits<int>(v); }
static inline unsigned __float_as_uint(float v) { return slk_cuda_host_bits<unsigned>(v); }
static inline float __int_as_float(int v) { return slk_cuda_host_bits<float>(v); }
static inline float __uint_as_float(unsigned v) { return slk_cuda_host_bits<float>(v); }
static inline long long __double_as_longlong(double v) { return slk_cuda_host_bits<long long>(v); }
static inline double __longlong_as_double(long long v) { return slk_cuda_host_bits<double>(v); }
/* Conversions clamp, and turn NaN into 0, as the device's do. */
template <typename T> static inline T slk_cuda_host_to_int(double v) {
  if (v != v) return 0;
  if (v <= static_cast<double>(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
  if (v >= static_cast<double>(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
  return static_cast<T>(v);
}
static inline int __float2int_rn(float v) { return slk_cuda_host_to_int<int>(rint(v)); }
static inline int __float2int_rz(float v) { return slk_cuda_host_to_int<int>(trunc(v)); }
static inline int __float2int_rd(float v) { return slk_cuda_host_to_int<int>(floor(v)); }
static inline int __float2int_ru(float v) { return slk_cuda_host_to_int<int>(ceil(v)); }
static inline unsigned __float2uint_rn(float v) { return slk_cuda_host_to_int<unsigned>(rint(v)); }
static inline unsigned __float2uint_rz(float v) { return slk_cuda_host_to_int<unsigned>(trunc(v)); }
static inline float __int2float_rn(int v) { return static_cast<float>(v); }
static inline float __uint2float_rn(unsigned v) { return static_cast<float>(v); }
static inline float __ll2float_rn(long long v) { return static_cast<float>(v); }
static inline float __double2float_rn(double v) { return static_cast<float>(v); }

/* -- Bits -- */
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
static inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
static inline int __clzll(long long v) { return v ? __builtin_clzll(static_cast<unsigned long long>(v)) : 64; }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline int __ffsll(long long v) { return __builtin_ffsll(v); }
static inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; i++) r |= ((v >> i) & 1u) << (31 - i);
  return r;
}
static inline unsigned long long __brevll(unsigned long long v) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(v))) << 32 | __brev(static_cast<unsigned>(v >> 32));
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
  uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; i++) {
    unsigned pick = (s >> (4 * i)) & 15u, byte = static_cast<unsigned>(both >> (8 * (pick & 7u))) & 255u;
    if (pick & 8u) byte = byte & 128u ? 255u : 0u;
    r |= byte << (8 * i);
  }
  return r;
}
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
  return static_cast<unsigned>(((static_cast<uint64_t>(hi) << 32 | lo) << (n & 31u)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) {
  return static_cast<unsigned>((static_cast<uint64_t>(hi) << 32 | lo) >> (n & 31u));
}
static inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
static inline int __mulhi(int a, int b) { return static_cast<int>((static_cast<int64_t>(a) * b) >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
static inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  return c;
}

/* -- Loads and stores with cache hints: plain ones -- */
#define SLK_HOST_LOAD(name) \
  template <typename T> static inline T name(const T *p) { return *p; }
#define SLK_HOST_STORE(name) \
  template <typename T> static inline void name(T *p, T v) { *p = v; }
SLK_HOST_LOAD(__ldg)
SLK_HOST_LOAD(__ldcg)
SLK_HOST_LOAD(__ldca)
SLK_HOST_LOAD(__ldcs)
SLK_HOST_LOAD(__ldlu)
SLK_HOST_LOAD(__ldcv)
SLK_HOST_STORE(__stwb)
SLK_HOST_STORE(__stcg)
SLK_HOST_STORE(__stcs)
SLK_HOST_STORE(__stwt)
#undef SLK_HOST_LOAD
#undef SLK_HOST_STORE

/* -- min, max: nvcc's overloads, mixed signs included -- */
#define SLK_HOST_MINMAX(R, A, B)                                                                                   \
  static inline R min(A a, B b) { return static_cast<R>(a) < static_cast<R>(b) ? static_cast<R>(a) : static_cast<R>(b); } \
  static inline R max(A a, B b) { return static_cast<R>(a) > static_cast<R>(b) ? static_cast<R>(a) : static_cast<R>(b); }
SLK_HOST_MINMAX(int, int, int)
SLK_HOST_MINMAX(unsigned, unsigned, unsigned)
SLK_HOST_MINMAX(unsigned, int, unsigned)
SLK_HOST_MINMAX(unsigned, unsigned, int)
SLK_HOST_MINMAX(long, long, long)
SLK_HOST_MINMAX(unsigned long, unsigned long, unsigned long)
SLK_HOST_MINMAX(unsigned long, long, unsigned long)
SLK_HOST_MINMAX(unsigned long, unsigned long, long)
SLK_HOST_MINMAX(long long, long long, long long)
SLK_HOST_MINMAX(unsigned long long, unsigned long long, unsigned long long)
SLK_HOST_MINMAX(unsigned long long, long long, unsigned long long)
SLK_HOST_MINMAX(unsigned long long, unsigned long long, long long)
#undef SLK_HOST_MINMAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline double min(float a, double b) { return fmin(a, b); }
static inline double max(float a, double b) { return fmax(a, b); }
static inline double min(double a, float b) { return fmin(a, b); }
static inline double max(double a, float b) { return fmax(a, b); }

/* -- What cuda_bf16.h and cuda_fp16.h keep for the device -- */
static inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  return __float2bfloat16_rn(fmaf(__bfloat162float(a), __bfloat162float(b), __bfloat162float(c)));
}
static inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return __nv_bfloat162(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}
static inline __half __hfma(__half a, __half b, __half c) {
  return __float2half_rn(fmaf(__half2float(a), __half2float(b), __half2float(c)));
}
static inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return __half2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}

static inline long long clock64(void) {
  static long long ticks;
  return ++ticks;
}
#define __trap() __builtin_trap()

#endif
