/* Barriers, votes and shuffles of the host layer. Included by cuda_host.h.
 *
 * Every call is a place where the running thread waits and others run. Each notes its file and line: threads of one
 * barrier, or lanes of one collective, must come from the same line, as the CUDA guide asks of conditional code. */
#ifndef CUDA_HOST_WARP_H
#define CUDA_HOST_WARP_H
#pragma GCC system_header

struct slk_cuda_host_site {
  const char *file;
  int line;
};
#define SLK_CUDA_HOST_AT const char *at_file = __builtin_FILE(), int at_line = __builtin_LINE()
#define SLK_CUDA_HOST_HERE slk_cuda_host_site{at_file, at_line}

enum slk_cuda_host_vote { SLK_HOST_PLAIN, SLK_HOST_OR, SLK_HOST_AND, SLK_HOST_COUNT };
int slk_cuda_host_barrier(slk_cuda_host_vote vote, int predicate, slk_cuda_host_site site);

/* What the lanes of a mask do together, once all have come. `lane[i]` is null outside the group. in and out point to
 * the lanes' own variables; arg is what the lane passed beside. False: the text in `error` says what is wrong. */
struct slk_cuda_host_lane {
  const void *in;
  void *out;
  const void *arg;
};
typedef bool (*slk_cuda_host_combine)(const slk_cuda_host_lane *const lane[32], char *error, size_t size);
/* orders: does it order memory among the lanes? Only __syncwarp and the mma family do; TSan holds shuffles to that. */
void slk_cuda_host_collective(const char *what, unsigned mask, slk_cuda_host_lane self, slk_cuda_host_combine combine,
                              bool orders, slk_cuda_host_site site);

static inline void __syncthreads(SLK_CUDA_HOST_AT) { slk_cuda_host_barrier(SLK_HOST_PLAIN, 0, SLK_CUDA_HOST_HERE); }
static inline int __syncthreads_or(int p, SLK_CUDA_HOST_AT) {
  return slk_cuda_host_barrier(SLK_HOST_OR, p, SLK_CUDA_HOST_HERE);
}
static inline int __syncthreads_and(int p, SLK_CUDA_HOST_AT) {
  return slk_cuda_host_barrier(SLK_HOST_AND, p, SLK_CUDA_HOST_HERE);
}
static inline int __syncthreads_count(int p, SLK_CUDA_HOST_AT) {
  return slk_cuda_host_barrier(SLK_HOST_COUNT, p, SLK_CUDA_HOST_HERE);
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, SLK_CUDA_HOST_AT) {
  slk_cuda_host_collective("__syncwarp", mask, {nullptr, nullptr, nullptr}, nullptr, true, SLK_CUDA_HOST_HERE);
}

/* -- Shuffles -- */
enum slk_cuda_host_shuffle_mode { SLK_HOST_IDX, SLK_HOST_UP, SLK_HOST_DOWN, SLK_HOST_XOR };
struct slk_cuda_host_shuffle_arg {
  slk_cuda_host_shuffle_mode mode;
  unsigned lane, width;
  size_t size;
};
bool slk_cuda_host_shuffle(const slk_cuda_host_lane *const lane[32], char *error, size_t size);

#define SLK_HOST_SHUFFLE_OF(T, name, mode, type)                                                           \
  static inline T name(unsigned mask, T v, type lane, int width = 32, SLK_CUDA_HOST_AT) {                  \
    T r = v;                                                                                               \
    slk_cuda_host_shuffle_arg arg = {mode, static_cast<unsigned>(lane), static_cast<unsigned>(width),      \
                                     sizeof(T)};                                                           \
    slk_cuda_host_collective(#name, mask, {&v, &r, &arg}, slk_cuda_host_shuffle, false, SLK_CUDA_HOST_HERE); \
    return r;                                                                                              \
  }
#define SLK_HOST_SHUFFLES(T)                                          \
  SLK_HOST_SHUFFLE_OF(T, __shfl_sync, SLK_HOST_IDX, int)              \
  SLK_HOST_SHUFFLE_OF(T, __shfl_up_sync, SLK_HOST_UP, unsigned)       \
  SLK_HOST_SHUFFLE_OF(T, __shfl_down_sync, SLK_HOST_DOWN, unsigned)   \
  SLK_HOST_SHUFFLE_OF(T, __shfl_xor_sync, SLK_HOST_XOR, int)
SLK_HOST_SHUFFLES(int)
SLK_HOST_SHUFFLES(unsigned)
SLK_HOST_SHUFFLES(long)
SLK_HOST_SHUFFLES(unsigned long)
SLK_HOST_SHUFFLES(long long)
SLK_HOST_SHUFFLES(unsigned long long)
SLK_HOST_SHUFFLES(float)
SLK_HOST_SHUFFLES(double)
SLK_HOST_SHUFFLES(__nv_bfloat16)
SLK_HOST_SHUFFLES(__nv_bfloat162)
SLK_HOST_SHUFFLES(__half)
SLK_HOST_SHUFFLES(__half2)
#undef SLK_HOST_SHUFFLES
#undef SLK_HOST_SHUFFLE_OF

/* -- Votes, matches, reductions: in is a 64-bit copy of the value, out the result -- */
bool slk_cuda_host_ballot(const slk_cuda_host_lane *const lane[32], char *error, size_t size);
bool slk_cuda_host_match(const slk_cuda_host_lane *const lane[32], char *error, size_t size);
struct slk_cuda_host_reduce_arg {
  char op; /* '+' '<' '>' '&' '|' '^' */
  bool is_signed;
};
bool slk_cuda_host_reduce(const slk_cuda_host_lane *const lane[32], char *error, size_t size);

static inline unsigned slk_cuda_host_ballot_of(const char *name, unsigned mask, int p, slk_cuda_host_site site) {
  unsigned r = 0, in = p != 0;
  slk_cuda_host_collective(name, mask, {&in, &r, nullptr}, slk_cuda_host_ballot, false, site);
  return r;
}
static inline unsigned __ballot_sync(unsigned mask, int p, SLK_CUDA_HOST_AT) {
  return slk_cuda_host_ballot_of("__ballot_sync", mask, p, SLK_CUDA_HOST_HERE);
}
static inline int __any_sync(unsigned mask, int p, SLK_CUDA_HOST_AT) {
  return slk_cuda_host_ballot_of("__any_sync", mask, p, SLK_CUDA_HOST_HERE) != 0;
}
static inline int __all_sync(unsigned mask, int p, SLK_CUDA_HOST_AT) {
  return slk_cuda_host_ballot_of("__all_sync", mask, p == 0, SLK_CUDA_HOST_HERE) == 0;
}
template <typename T> static inline unsigned __match_any_sync(unsigned mask, T v, SLK_CUDA_HOST_AT) {
  uint64_t in = 0;
  unsigned r = 0;
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "match takes 32- or 64-bit values");
  memcpy(&in, &v, sizeof v);
  slk_cuda_host_collective("__match_any_sync", mask, {&in, &r, nullptr}, slk_cuda_host_match, false,
                           SLK_CUDA_HOST_HERE);
  return r;
}
/* The lanes with this lane's value are then the whole group, or 0. */
template <typename T> static inline unsigned __match_all_sync(unsigned mask, T v, int *all, SLK_CUDA_HOST_AT) {
  unsigned group = slk_cuda_host_ballot_of("__match_all_sync", mask, 1, SLK_CUDA_HOST_HERE);
  unsigned same = __match_any_sync(mask, v, at_file, at_line);
  *all = same == group;
  return *all ? mask : 0;
}

#define SLK_HOST_REDUCE(T, name, op)                                                                        \
  static inline T name(unsigned mask, T v, SLK_CUDA_HOST_AT) {                                              \
    T r = v;                                                                                                \
    slk_cuda_host_reduce_arg arg = {op, std::is_signed<T>::value};                                          \
    slk_cuda_host_collective(#name, mask, {&v, &r, &arg}, slk_cuda_host_reduce, false, SLK_CUDA_HOST_HERE); \
    return r;                                                                                               \
  }
SLK_HOST_REDUCE(unsigned, __reduce_add_sync, '+')
SLK_HOST_REDUCE(int, __reduce_add_sync, '+')
SLK_HOST_REDUCE(unsigned, __reduce_min_sync, '<')
SLK_HOST_REDUCE(int, __reduce_min_sync, '<')
SLK_HOST_REDUCE(unsigned, __reduce_max_sync, '>')
SLK_HOST_REDUCE(int, __reduce_max_sync, '>')
SLK_HOST_REDUCE(unsigned, __reduce_and_sync, '&')
SLK_HOST_REDUCE(unsigned, __reduce_or_sync, '|')
SLK_HOST_REDUCE(unsigned, __reduce_xor_sync, '^')
#undef SLK_HOST_REDUCE

/* -- Fences -- */
void slk_cuda_host_fence(void);
static inline void __threadfence(void) { slk_cuda_host_fence(); }
static inline void __threadfence_block(void) { slk_cuda_host_fence(); }
static inline void __threadfence_system(void) { slk_cuda_host_fence(); }
/* Lets other threads run: the layer's schedule decides. */
void slk_cuda_host_yield(void);
static inline void __nanosleep(unsigned) { slk_cuda_host_yield(); }

#endif
