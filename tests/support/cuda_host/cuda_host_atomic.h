/* Atomics of the host layer, relaxed as on the device: TSan sees that they order nothing. Included by cuda_host.h. */
#ifndef CUDA_HOST_ATOMIC_H
#define CUDA_HOST_ATOMIC_H
#pragma GCC system_header

static inline void slk_cuda_host_atomic_point(void) {
  if (slk_cuda_host_now.yield_at_atomics) slk_cuda_host_yield();
}

/* old = *p; *p = f(old), in one step, for anything of 2, 4 or 8 bytes. */
template <typename T, typename F> static inline T slk_cuda_host_update(T *p, F f) {
  typedef std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>> Bits;
  static_assert(sizeof(T) == sizeof(Bits), "atomics work on 2, 4 or 8 bytes");
  slk_cuda_host_atomic_point();
  Bits *at = reinterpret_cast<Bits *>(p);
  Bits old_bits = __atomic_load_n(at, __ATOMIC_RELAXED), new_bits;
  T old;
  do {
    memcpy(&old, &old_bits, sizeof old);
    T next = f(old);
    memcpy(&new_bits, &next, sizeof next);
  } while (!__atomic_compare_exchange_n(at, &old_bits, new_bits, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

#define SLK_HOST_ATOMIC(T, name, expression)                                                             \
  static inline T name(T *p, T v) {                                                                      \
    return slk_cuda_host_update(p, [v](T old) { return static_cast<T>(expression); });                   \
  }                                                                                                      \
  static inline T name##_block(T *p, T v) { return name(p, v); }                                         \
  static inline T name##_system(T *p, T v) { return name(p, v); }
#define SLK_HOST_ATOMICS(T)                            \
  SLK_HOST_ATOMIC(T, atomicMin, v < old ? v : old)     \
  SLK_HOST_ATOMIC(T, atomicMax, v > old ? v : old)     \
  SLK_HOST_ATOMIC(T, atomicAnd, old &v)                \
  SLK_HOST_ATOMIC(T, atomicOr, old | v)                \
  SLK_HOST_ATOMIC(T, atomicXor, old ^ v)               \
  SLK_HOST_ATOMIC(T, atomicExch, v)                    \
  static inline T atomicCAS(T *p, T compare, T v) {    \
    return slk_cuda_host_update(p, [=](T old) { return old == compare ? v : old; }); \
  }
SLK_HOST_ATOMICS(int)
SLK_HOST_ATOMICS(unsigned)
SLK_HOST_ATOMICS(unsigned long long)
SLK_HOST_ATOMIC(long long, atomicMin, v < old ? v : old)
SLK_HOST_ATOMIC(long long, atomicMax, v > old ? v : old)
SLK_HOST_ATOMIC(float, atomicExch, v)
/* Signed sums wrap, as on the device. */
SLK_HOST_ATOMIC(int, atomicAdd, static_cast<unsigned>(old) + static_cast<unsigned>(v))
SLK_HOST_ATOMIC(int, atomicSub, static_cast<unsigned>(old) - static_cast<unsigned>(v))
SLK_HOST_ATOMIC(unsigned, atomicAdd, old + v)
SLK_HOST_ATOMIC(unsigned, atomicSub, old - v)
SLK_HOST_ATOMIC(unsigned long long, atomicAdd, old + v)
SLK_HOST_ATOMIC(float, atomicAdd, old + v)
SLK_HOST_ATOMIC(double, atomicAdd, old + v)
SLK_HOST_ATOMIC(__nv_bfloat16, atomicAdd, __hadd(old, v))
SLK_HOST_ATOMIC(__nv_bfloat162, atomicAdd, __hadd2(old, v))
SLK_HOST_ATOMIC(__half, atomicAdd, __hadd(old, v))
SLK_HOST_ATOMIC(__half2, atomicAdd, __hadd2(old, v))
SLK_HOST_ATOMIC(unsigned, atomicInc, old >= v ? 0u : old + 1u)
SLK_HOST_ATOMIC(unsigned, atomicDec, old == 0u || old > v ? v : old - 1u)
static inline unsigned short atomicCAS(unsigned short *p, unsigned short compare, unsigned short v) {
  return slk_cuda_host_update(p, [=](unsigned short old) { return old == compare ? v : old; });
}
#undef SLK_HOST_ATOMICS
#undef SLK_HOST_ATOMIC

#endif
