/* Device and pinned buffers, guards around them, and the shared memory of blocks.
 *
 * Every buffer is a heap block of its own, so that ASan sees the first byte beyond; without ASan, guard bytes on both
 * sides are looked at after each kernel. Fresh memory holds a pattern that depends on the schedule. */
#include <elf.h>
#include <link.h>
#include <sys/mman.h>

#include <cstdlib>
#include <map>

#include "layer.h"

namespace cuda_host {

enum { ALIGN = 256, GUARD = 256, GUARD_BYTE = 0xa5 };

struct Buffer {
  char *raw;
  size_t bytes;
  int device; /* -1: pinned host memory */
};
static std::map<uintptr_t, Buffer> buffers;

static Buffer *find(const void *p) {
  uintptr_t at = reinterpret_cast<uintptr_t>(p);
  auto i = buffers.upper_bound(at);
  if (i == buffers.begin()) return nullptr;
  --i;
  return at < i->first + i->second.bytes ? &i->second : nullptr;
}

static void *allocate(size_t bytes, int device) {
  Buffer b = {nullptr, bytes, device};
  void *raw;
#ifdef CUDA_HOST_ASAN
  size_t before = 0, all = bytes;
#else
  size_t before = GUARD, all = GUARD + bytes + GUARD;
#endif
  if (posix_memalign(&raw, ALIGN, all)) return nullptr;
  b.raw = static_cast<char *>(raw);
  memset(b.raw, GUARD_BYTE, all);
  char *p = b.raw + before;
  memset(p, state().schedule.poison(), bytes);
  buffers[reinterpret_cast<uintptr_t>(p)] = b;
  return p;
}

static void release(void *p) {
  auto i = buffers.find(reinterpret_cast<uintptr_t>(p));
  memset(p, 0xdd, i->second.bytes);
  free(i->second.raw);
  buffers.erase(i);
}

cudaError_t device_malloc(void **p, size_t bytes) {
  State &s = state();
  if (!p) return cudaErrorInvalidValue;
  *p = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (s.fail_malloc > 0 && --s.fail_malloc == 0) return cudaErrorMemoryAllocation;
  if (bytes > s.memory || s.stats.bytes > s.memory - bytes) return cudaErrorMemoryAllocation;
  *p = allocate(bytes, current_device());
  if (!*p) return cudaErrorMemoryAllocation;
  s.stats.mallocs++, s.stats.buffers++;
  s.stats.bytes += bytes;
  if (s.stats.bytes > s.stats.peak_bytes) s.stats.peak_bytes = s.stats.bytes;
  return cudaSuccess;
}

cudaError_t device_free(void *p) {
  State &s = state();
  if (!p) return cudaSuccess;
  auto i = buffers.find(reinterpret_cast<uintptr_t>(p));
  if (i == buffers.end() || i->second.device < 0) return cudaErrorInvalidValue;
  check_guards("cudaFree");
  s.stats.frees++, s.stats.buffers--;
  s.stats.bytes -= i->second.bytes;
  release(p);
  return cudaSuccess;
}

bool find_device(const void *p, size_t *room, int *device) {
  Buffer *b = find(p);
  if (!b || b->device < 0) return false;
#ifdef CUDA_HOST_ASAN
  const char *start = b->raw;
#else
  const char *start = b->raw + GUARD;
#endif
  *room = b->bytes - static_cast<size_t>(static_cast<const char *>(p) - start);
  if (device) *device = b->device;
  return true;
}

bool find_pinned(const void *p) {
  Buffer *b = find(p);
  return b && b->device < 0;
}

void check_guards(const char *after) {
#ifdef CUDA_HOST_ASAN
  (void)after;
#else
  static const struct Pattern {
    unsigned char bytes[GUARD];
    Pattern() { memset(bytes, GUARD_BYTE, sizeof bytes); }
  } pattern;
  for (auto &i : buffers) {
    Buffer &b = i.second;
    char *end = b.raw + GUARD + b.bytes;
    bool low = memcmp(b.raw, pattern.bytes, GUARD) != 0, high = memcmp(end, pattern.bytes, GUARD) != 0;
    if (!low && !high) continue;
    size_t at = 0;
    const unsigned char *side = reinterpret_cast<unsigned char *>(low ? b.raw : end);
    while (side[low ? GUARD - 1 - at : at] == GUARD_BYTE) at++;
    char text[300];
    snprintf(text, sizeof text, "after %s: a buffer of %zu bytes was overrun, %zu bytes %s", after, b.bytes, at + low,
             low ? "before its start" : "after its end");
    memset(b.raw, GUARD_BYTE, GUARD); /* once is enough */
    memset(end, GUARD_BYTE, GUARD);
    report(text);
  }
#endif
}

/* -- Shared memory -- */

struct Range {
  char *p;
  size_t n;
};

/* Finds the section that cuda_host.h puts static shared variables in. Its name has a dot, since ASan leaves sections
 * with C names without redzones; the linker therefore offers no __start_ symbols, and the file itself is read. */
static int add_section(struct dl_phdr_info *info, size_t, void *to) {
  std::vector<Range> &ranges = *static_cast<std::vector<Range> *>(to);
  const char *path = info->dlpi_name[0] ? info->dlpi_name : "/proc/self/exe";
  FILE *f = fopen(path, "rb");
  if (!f) return 0;
  ElfW(Ehdr) head;
  if (fread(&head, sizeof head, 1, f) == 1 && !memcmp(head.e_ident, ELFMAG, SELFMAG) &&
      head.e_shentsize == sizeof(ElfW(Shdr)) && head.e_shstrndx < head.e_shnum) {
    std::vector<ElfW(Shdr)> sections(head.e_shnum);
    bool ok = !fseek(f, static_cast<long>(head.e_shoff), SEEK_SET) &&
              fread(sections.data(), sizeof(ElfW(Shdr)), head.e_shnum, f) == head.e_shnum;
    for (size_t i = 0; ok && i < sections.size(); i++) {
      char name[16] = "";
      if (fseek(f, static_cast<long>(sections[head.e_shstrndx].sh_offset + sections[i].sh_name), SEEK_SET)) break;
      if (fread(name, 1, sizeof name - 1, f) == 0) break;
      if (!strcmp(name, ".slk_shared"))
        ranges.push_back({reinterpret_cast<char *>(info->dlpi_addr + sections[i].sh_addr), sections[i].sh_size});
    }
  }
  fclose(f);
  return 0;
}

/* Not memset, which ASan would stop at the redzones between the variables. */
#if defined(__clang__)
__attribute__((no_sanitize("address"), noinline))
#else
__attribute__((no_sanitize_address, noinline))
#endif
static void fill(char *p, int byte, size_t n) {
#if defined(__x86_64__)
  __asm__ volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(byte) : "memory");
#else
  for (volatile char *q = p; n > 0; n--) *q++ = static_cast<char>(byte);
#endif
}

static struct Dynamic { /* 16 bytes of guard, the memory, more guard */
  char *raw;
  size_t bytes;
} dynamic[SETS];

static void dynamic_free(Dynamic *d) {
#ifdef CUDA_HOST_ASAN
  if (d->raw) __asan_unpoison_memory_region(d->raw, 16);
#endif
  free(d->raw);
  *d = {nullptr, 0};
}

/* Aligned to 16 bytes and no more, as kernels may rely on. */
static void *dynamic_get(Dynamic *d, size_t bytes) {
  static void *nothing; /* what a kernel without dynamic shared memory gets: touching it traps */
  if (!nothing) nothing = mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (bytes == 0) return nothing;
  if (bytes == d->bytes) return d->raw + 16;
  dynamic_free(d);
  void *raw;
#ifdef CUDA_HOST_ASAN
  size_t after = 0;
#else
  size_t after = GUARD;
#endif
  if (posix_memalign(&raw, 1024, 16 + bytes + after)) abort();
  *d = {static_cast<char *>(raw), bytes};
  memset(raw, GUARD_BYTE, 16 + bytes + after);
#ifdef CUDA_HOST_ASAN
  __asan_poison_memory_region(raw, 16);
#endif
  return d->raw + 16;
}

void *shared_begin(int set, size_t bytes) {
  static std::vector<Range> ranges;
  static bool found;
  if (!found) {
#ifndef CUDA_HOST_TSAN
    dl_iterate_phdr(add_section, &ranges);
#endif
    found = true;
  }
  int byte = state().schedule.poison();
  for (const Range &r : ranges) fill(r.p, byte, r.n);
  void *p = dynamic_get(&dynamic[set], bytes);
  if (bytes) memset(p, byte, bytes);
  return p;
}

void shared_end(int set, const Launch &l) {
#ifdef CUDA_HOST_ASAN
  (void)set, (void)l;
#else
  if (!l.shared) return;
  const volatile unsigned char *raw = reinterpret_cast<unsigned char *>(dynamic[set].raw);
  bool low = false, high = false;
  for (int i = 0; i < 16; i++) low |= raw[i] != GUARD_BYTE;
  for (size_t i = 0; i < GUARD; i++) high |= raw[16 + l.shared + i] != GUARD_BYTE;
  if (!low && !high) return;
  char text[300];
  const uint3 &b = slk_cuda_host_now.block;
  snprintf(text, sizeof text, "kernel %s, block (%u, %u, %u) wrote %s its %zu bytes of dynamic shared memory", l.name,
           b.x, b.y, b.z, low ? "below" : "beyond", l.shared);
  dynamic_free(&dynamic[set]);
  report(text);
#endif
}

void memory_reset() {
  for (auto &i : buffers) free(i.second.raw);
  buffers.clear();
  for (Dynamic &d : dynamic) dynamic_free(&d);
  state().stats.bytes = 0;
  state().stats.buffers = 0;
}

}  // namespace cuda_host

/* -- The runtime's functions -- */

using namespace cuda_host;
#define LOCK std::lock_guard<std::recursive_mutex> guard(state().lock)

cudaError_t cudaMalloc(void **p, size_t bytes) {
  LOCK;
  return capture_forbids() ? fail(cudaErrorStreamCaptureUnsupported) : fail(device_malloc(p, bytes));
}

cudaError_t cudaFree(void *p) { /* waits for the device, as the real one does */
  LOCK;
  if (!p) return fail(cudaSuccess);
  if (capture_forbids()) return fail(cudaErrorStreamCaptureUnsupported);
  state().stats.waits++;
  drain();
  return fail(device_free(p));
}

cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t stream) {
  LOCK;
  if (!stream_of(stream)) return fail(cudaErrorInvalidResourceHandle);
  if (stream_of(stream)->capture) return fail(cudaErrorNotSupported);
  return fail(device_malloc(p, bytes));
}

cudaError_t cudaFreeAsync(void *p, cudaStream_t stream) {
  LOCK;
  size_t room;
  if (!find_device(p, &room, nullptr)) return fail(cudaErrorInvalidValue);
  if (stream_of(stream) && stream_of(stream)->capture) return fail(cudaErrorNotSupported);
  return submit(stream, [p]() { device_free(p); });
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned) {
  LOCK;
  if (!p) return fail(cudaErrorInvalidValue);
  *p = bytes ? allocate(bytes, -1) : nullptr;
  return fail(*p || !bytes ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaMallocHost(void **p, size_t bytes) { return cudaHostAlloc(p, bytes, 0); }

cudaError_t cudaFreeHost(void *p) {
  LOCK;
  if (!p) return fail(cudaSuccess);
  auto i = buffers.find(reinterpret_cast<uintptr_t>(p));
  if (i == buffers.end() || i->second.device >= 0) return fail(cudaErrorInvalidValue);
  state().stats.waits++;
  drain();
  check_guards("cudaFreeHost");
  release(p);
  return fail(cudaSuccess);
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  LOCK;
  if (!a) return fail(cudaErrorInvalidValue);
  Buffer *b = find(p);
  *a = {};
  a->type = !b ? cudaMemoryTypeUnregistered : b->device < 0 ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  a->device = b && b->device >= 0 ? b->device : 0;
  if (b) a->devicePointer = const_cast<void *>(p);
  if (b && b->device < 0) a->hostPointer = const_cast<void *>(p);
  return fail(cudaSuccess);
}
