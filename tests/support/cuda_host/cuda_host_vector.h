/* Vector types that look at their addresses. Included by cuda_host.h, after the toolkit's headers.
 *
 * A GPU traps on a float4 at an address that is no multiple of 16; a CPU does not, and clang's UBSan lets copies of
 * whole structs pass. So the names float4, uint4, ... stand for types here that check each load and store. */
#ifndef CUDA_HOST_VECTOR_H
#define CUDA_HOST_VECTOR_H
#pragma GCC system_header

void slk_cuda_host_misaligned(const void *p, size_t bytes);

template <typename Base> static inline void slk_cuda_host_check_vector(const Base *p) {
  __asm__("" : "+r"(p)); /* the compiler believes in the alignment, and would drop the test */
  if (__builtin_expect(reinterpret_cast<uintptr_t>(p) % alignof(Base) != 0, 0))
    slk_cuda_host_misaligned(p, sizeof(Base));
}

template <typename Base> struct slk_cuda_host_vector : Base {
  slk_cuda_host_vector() = default;
  slk_cuda_host_vector(const Base &v) : Base((slk_cuda_host_check_vector<Base>(&v), v)) {}
  slk_cuda_host_vector(const slk_cuda_host_vector &v) : Base((slk_cuda_host_check_vector<Base>(&v), v)) {}
  template <typename A, typename B, typename... More>
  slk_cuda_host_vector(A a, B b, More... more) : Base{a, b, more...} {}
  slk_cuda_host_vector &operator=(const slk_cuda_host_vector &v) {
    slk_cuda_host_check_vector<Base>(this);
    slk_cuda_host_check_vector<Base>(&v);
    static_cast<Base &>(*this) = v;
    return *this;
  }
};

typedef slk_cuda_host_vector<float2> slk_cuda_host_float2;
typedef slk_cuda_host_vector<float4> slk_cuda_host_float4;
typedef slk_cuda_host_vector<int2> slk_cuda_host_int2;
typedef slk_cuda_host_vector<int4> slk_cuda_host_int4;
typedef slk_cuda_host_vector<uint2> slk_cuda_host_uint2;
typedef slk_cuda_host_vector<uint4> slk_cuda_host_uint4;
typedef slk_cuda_host_vector<ushort2> slk_cuda_host_ushort2;
typedef slk_cuda_host_vector<ushort4> slk_cuda_host_ushort4;
typedef slk_cuda_host_vector<short4> slk_cuda_host_short4;
typedef slk_cuda_host_vector<char4> slk_cuda_host_char4;
typedef slk_cuda_host_vector<uchar4> slk_cuda_host_uchar4;
typedef slk_cuda_host_vector<double2> slk_cuda_host_double2;
typedef slk_cuda_host_vector<longlong2> slk_cuda_host_longlong2;
typedef slk_cuda_host_vector<ulonglong2> slk_cuda_host_ulonglong2;
#define float2 slk_cuda_host_float2
#define float4 slk_cuda_host_float4
#define int2 slk_cuda_host_int2
#define int4 slk_cuda_host_int4
#define uint2 slk_cuda_host_uint2
#define uint4 slk_cuda_host_uint4
#define ushort2 slk_cuda_host_ushort2
#define ushort4 slk_cuda_host_ushort4
#define short4 slk_cuda_host_short4
#define char4 slk_cuda_host_char4
#define uchar4 slk_cuda_host_uchar4
#define double2 slk_cuda_host_double2
#define longlong2 slk_cuda_host_longlong2
#define ulonglong2 slk_cuda_host_ulonglong2

#endif
