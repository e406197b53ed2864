/* What the lanes of a warp do together: shuffles, votes, matches, reductions, tensor-core products; and cp.async. */
#include "layer.h"

#ifdef CUDA_HOST_TSAN /* what the compiler calls; no header declares them */
extern "C" void __tsan_read4(void *);
extern "C" void __tsan_write4(void *);
#endif

using namespace cuda_host;

typedef const slk_cuda_host_lane *const Lanes[32];

/* Moves a value between lanes unseen by TSan, whose memcpy would take it for an access by the lane that came last. */
static void carry(void *to, const void *from, size_t n) {
  for (size_t i = 0; i < n; i++) static_cast<volatile char *>(to)[i] = static_cast<const volatile char *>(from)[i];
}

bool slk_cuda_host_shuffle(const slk_cuda_host_lane *const lane[32], char *error, size_t size) {
  for (unsigned i = 0; i < 32; i++) {
    if (!lane[i]) continue;
    const slk_cuda_host_shuffle_arg &a = *static_cast<const slk_cuda_host_shuffle_arg *>(lane[i]->arg);
    if (a.width == 0 || a.width > 32 || (a.width & (a.width - 1))) {
      snprintf(error, size, "lane %u gives width %u, expected a power of two up to 32", i, a.width);
      return false;
    }
    unsigned base = i & ~(a.width - 1), end = base + a.width, from = i;
    switch (a.mode) {
      case SLK_HOST_IDX: from = base + (a.lane & (a.width - 1)); break;
      case SLK_HOST_UP: from = i - a.lane >= base && i >= a.lane ? i - a.lane : i; break;
      case SLK_HOST_DOWN: from = i + a.lane < end ? i + a.lane : i; break;
      /* A lane beyond the group's end keeps its own value; one in an earlier group is read. */
      case SLK_HOST_XOR: from = (i ^ a.lane) < end ? i ^ a.lane : i; break;
    }
    if (!lane[from]) {
      snprintf(error, size, "lane %u reads lane %u, which takes no part (not in the mask, or returned)", i, from);
      return false;
    }
    carry(lane[i]->out, lane[from]->in, a.size);
  }
  return true;
}

bool slk_cuda_host_ballot(const slk_cuda_host_lane *const lane[32], char *, size_t) {
  unsigned r = 0;
  for (unsigned i = 0; i < 32; i++)
    if (lane[i] && *static_cast<const unsigned *>(lane[i]->in)) r |= 1u << i;
  for (unsigned i = 0; i < 32; i++)
    if (lane[i]) *static_cast<unsigned *>(lane[i]->out) = r;
  return true;
}

bool slk_cuda_host_match(const slk_cuda_host_lane *const lane[32], char *, size_t) {
  for (unsigned i = 0; i < 32; i++) {
    unsigned r = 0;
    for (unsigned j = 0; j < 32 && lane[i]; j++)
      if (lane[j] && *static_cast<const uint64_t *>(lane[i]->in) == *static_cast<const uint64_t *>(lane[j]->in))
        r |= 1u << j;
    if (lane[i]) *static_cast<unsigned *>(lane[i]->out) = r;
  }
  return true;
}

bool slk_cuda_host_reduce(const slk_cuda_host_lane *const lane[32], char *, size_t) {
  bool first = true;
  unsigned r = 0;
  for (unsigned i = 0; i < 32; i++) {
    if (!lane[i]) continue;
    const slk_cuda_host_reduce_arg &a = *static_cast<const slk_cuda_host_reduce_arg *>(lane[i]->arg);
    unsigned v = *static_cast<const unsigned *>(lane[i]->in);
    bool less = a.is_signed ? static_cast<int>(v) < static_cast<int>(r) : v < r;
    if (first) r = v;
    else if (a.op == '+') r += v;
    else if (a.op == '&') r &= v;
    else if (a.op == '|') r |= v;
    else if (a.op == '^') r ^= v;
    else if ((a.op == '<') == less) r = v;
    first = false;
  }
  for (unsigned i = 0; i < 32; i++)
    if (lane[i]) *static_cast<unsigned *>(lane[i]->out) = r;
  return true;
}

/* -- Tensor cores -- */

namespace {

enum Kind { BF16, F16, TF32 };
struct Mma {
  unsigned a[4], b[2];
  float c[4];
};

bool whole_warp(const Lanes lane, char *error, size_t size) {
  for (unsigned i = 0; i < 32; i++) {
    if (lane[i]) continue;
    snprintf(error, size, "lane %u takes no part; all 32 must", i);
    return false;
  }
  return true;
}

float half_word(unsigned word, int high, Kind kind) {
  unsigned short bits = static_cast<unsigned short>(high ? word >> 16 : word);
  if (kind == BF16) return __uint_as_float(static_cast<unsigned>(bits) << 16);
  return __half2float(__half(__half_raw{bits}));
}

/* g = lane / 4, t = lane % 4. A: registers 0 and 2 hold row g, 1 and 3 row g + 8; registers 2 and 3 the upper half of
 * k. B: column g, register 1 the upper half of k. C: row g in 0 and 1, g + 8 in 2 and 3, columns 2t and 2t + 1. */
void multiply(const Lanes lane, Kind kind) {
  enum { K_MOST = 16 };
  const int k = kind == TF32 ? 8 : 16, words = kind == TF32 ? 1 : 2;
  float a[16][K_MOST], b[K_MOST][8];
  for (int l = 0; l < 32; l++) {
    const Mma &m = *static_cast<const Mma *>(lane[l]->in);
    int g = l / 4, t = l % 4;
    for (int w = 0; w < words; w++) {
      for (int r = 0; r < 4; r++) {
        a[g + 8 * (r & 1)][words * t + w + k / 2 * (r >> 1)] =
            kind == TF32 ? __uint_as_float(m.a[r] & 0xffffe000u) : half_word(m.a[r], w, kind);
      }
      for (int r = 0; r < 2; r++) {
        b[words * t + w + k / 2 * r][g] =
            kind == TF32 ? __uint_as_float(m.b[r] & 0xffffe000u) : half_word(m.b[r], w, kind);
      }
    }
  }
  for (int l = 0; l < 32; l++) {
    const Mma &m = *static_cast<const Mma *>(lane[l]->in);
    float *d = static_cast<float *>(lane[l]->out);
    for (int r = 0; r < 4; r++) {
      int row = l / 4 + 8 * (r >> 1), column = 2 * (l % 4) + (r & 1);
      float sum = m.c[r];
      for (int i = 0; i < k; i++) sum = fmaf(a[row][i], b[i][column], sum);
      d[r] = sum;
    }
  }
}

template <Kind kind> bool mma(const slk_cuda_host_lane *const lane[32], char *error, size_t size) {
  if (!whole_warp(lane, error, size)) return false;
  multiply(lane, kind);
  return true;
}

template <Kind kind>
void mma_call(const char *what, float d[4], const unsigned a[4], const unsigned b[2], const float c[4],
              slk_cuda_host_site site) {
  Mma m;
  memcpy(m.a, a, sizeof m.a);
  memcpy(m.b, b, sizeof m.b);
  memcpy(m.c, c, sizeof m.c);
  slk_cuda_host_collective(what, 0xffffffffu, {&m, d, nullptr}, mma<kind>, false, site);
}

struct Matrix {
  int count;
  bool trans;
};

bool load_matrix(const slk_cuda_host_lane *const lane[32], char *error, size_t size) {
  if (!whole_warp(lane, error, size)) return false;
  for (int l = 0; l < 32; l++) {
    const Matrix &m = *static_cast<const Matrix *>(lane[l]->arg);
    unsigned *r = static_cast<unsigned *>(lane[l]->out);
    for (int i = 0; i < m.count; i++) {
      unsigned short pair[2];
      for (int e = 0; e < 2; e++) {
        int row = m.trans ? 2 * (l % 4) + e : l / 4, column = m.trans ? l / 4 : 2 * (l % 4) + e;
        pair[e] = static_cast<const unsigned short *>(lane[8 * i + row]->in)[column];
      }
      r[i] = pair[0] | static_cast<unsigned>(pair[1]) << 16;
    }
  }
  return true;
}

/* What the calling thread reads or writes here, told to TSan: these files are not instrumented. */
void note_read(const void *p, size_t n) {
#ifdef CUDA_HOST_TSAN
  for (size_t i = 0; i < n; i += 4) __tsan_read4(static_cast<char *>(const_cast<void *>(p)) + i);
#endif
  (void)p, (void)n;
}
void note_write(void *p, size_t n) {
#ifdef CUDA_HOST_TSAN
  for (size_t i = 0; i < n; i += 4) __tsan_write4(static_cast<char *>(p) + i);
#endif
  (void)p, (void)n;
}

}  // namespace

void slk_cuda_host_mma_bf16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4], const char *file,
                            int line) {
  mma_call<BF16>("mma.m16n8k16.bf16", d, a, b, c, {file, line});
}
void slk_cuda_host_mma_f16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4], const char *file,
                           int line) {
  mma_call<F16>("mma.m16n8k16.f16", d, a, b, c, {file, line});
}
void slk_cuda_host_mma_tf32(float d[4], const unsigned a[4], const unsigned b[2], const float c[4], const char *file,
                            int line) {
  mma_call<TF32>("mma.m16n8k8.tf32", d, a, b, c, {file, line});
}

void slk_cuda_host_ldmatrix(unsigned *r, int count, bool trans, const void *row, const char *file, int line) {
  unsigned short data[8] = {};
  if (static_cast<int>(current_thread() % WARP) < 8 * count) {
    if (reinterpret_cast<uintptr_t>(row) % 16) give_up("ldmatrix: the row at %p is not 16-byte aligned", row);
    note_read(row, 16);
    memcpy(data, row, sizeof data);
  }
  Matrix m = {count, trans};
  slk_cuda_host_collective("ldmatrix", 0xffffffffu, {data, r, &m}, load_matrix, false, {file, line});
}

/* -- cp.async -- */

namespace {
struct Copy {
  void *to;
  const void *from;
  int bytes, read, group;
};
struct Copies { /* of fixed size: a thread of the next block would inherit memory that TSan thinks another's */
  Copy pending[64];
  int n, group; /* the group that is being filled */
};
Copies copies[MAX_THREADS];

void land(int before) { /* all groups below `before` */
  Copies &c = copies[current_thread()];
  int keep = 0;
  for (int i = 0; i < c.n; i++) {
    const Copy x = c.pending[i];
    if (x.group >= before) {
      c.pending[keep++] = x;
      continue;
    }
    note_read(x.from, static_cast<size_t>(x.read));
    note_write(x.to, static_cast<size_t>(x.bytes));
    memcpy(x.to, x.from, static_cast<size_t>(x.read));
    memset(static_cast<char *>(x.to) + x.read, 0, static_cast<size_t>(x.bytes - x.read));
  }
  c.n = keep;
}
}  // namespace

namespace cuda_host {
void cp_async_forget(unsigned thread) {
  copies[thread].n = copies[thread].group = 0;
}
}  // namespace cuda_host

void slk_cuda_host_cp_async(void *shared, const void *global, int bytes, int from) {
  if (bytes != 4 && bytes != 8 && bytes != 16) give_up("cp.async: %d bytes, expected 4, 8 or 16", bytes);
  if (from < 0 || from > bytes) give_up("cp.async: reads %d of %d bytes", from, bytes);
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % static_cast<unsigned>(bytes))
    give_up("cp.async: %p or %p is not aligned to its %d bytes", shared, global, bytes);
  Copies &c = copies[current_thread()];
  if (c.n == 64) give_up("cp.async: more than 64 copies of one thread are under way");
  c.pending[c.n++] = {shared, global, bytes, from, c.group};
}
void slk_cuda_host_cp_async_commit(void) { copies[current_thread()].group++; }
void slk_cuda_host_cp_async_wait(int newest) { land(copies[current_thread()].group - newest); }
void slk_cuda_host_cp_async_wait_all(void) { land(copies[current_thread()].group + 1); }
