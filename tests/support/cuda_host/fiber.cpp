/* Stacks and the switch between them: by hand on x86-64, ucontext elsewhere. The sanitizers are told. */
#include <sys/mman.h>

#include <cstdlib>

#include "layer.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_host {

#ifdef CUDA_HOST_ASAN
static const size_t STACK_BYTES = 256 << 10;
#else
static const size_t STACK_BYTES = 64 << 10;
#endif
static const size_t GUARD_BYTES = 4096;

#if defined(__x86_64__)
/* Saves what a call preserves, swaps stack pointers, restores. */
extern "C" void cuda_host_swap(void **from, void *to);
__asm__(
    ".text\n.globl cuda_host_swap\n.hidden cuda_host_swap\n.type cuda_host_swap, @function\ncuda_host_swap:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n"
    ".size cuda_host_swap, . - cuda_host_swap\n");

static void first_frame(Fiber *f, void (*entry)()) {
  void **top = reinterpret_cast<void **>(f->stack + f->stack_bytes);
  *--top = nullptr; /* a return address for entry, which never returns: keeps its frame aligned */
  *--top = reinterpret_cast<void *>(entry);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  f->sp = top;
}
static void swap(Fiber *from, Fiber *to) { cuda_host_swap(&from->sp, to->sp); }
#else
static void first_frame(Fiber *f, void (*entry)()) {
  ucontext_t *c = f->sp ? static_cast<ucontext_t *>(f->sp) : new ucontext_t;
  getcontext(c);
  c->uc_stack.ss_sp = f->stack;
  c->uc_stack.ss_size = f->stack_bytes;
  c->uc_link = nullptr;
  makecontext(c, entry, 0);
  f->sp = c;
}
static void swap(Fiber *from, Fiber *to) {
  if (!from->sp) from->sp = new ucontext_t;
  swapcontext(static_cast<ucontext_t *>(from->sp), static_cast<ucontext_t *>(to->sp));
}
#endif

static Fiber *left; /* the fiber that the last switch left */

void fiber_switch(Fiber *from, Fiber *to) {
  left = from;
#ifdef CUDA_HOST_ASAN
  __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
#ifdef CUDA_HOST_TSAN
  __tsan_switch_to_fiber(to->tsan, 1 /* orders nothing */);
#endif
  swap(from, to);
#ifdef CUDA_HOST_ASAN
  const void *bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(from->fake_stack, &bottom, &bytes);
  if (!left->stack) left->stack = static_cast<char *>(const_cast<void *>(bottom)), left->stack_bytes = bytes;
#endif
}

void fiber_started() {
#ifdef CUDA_HOST_ASAN
  const void *bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (!left->stack) left->stack = static_cast<char *>(const_cast<void *>(bottom)), left->stack_bytes = bytes;
#endif
}

void fiber_adopt(Fiber *f) {
#ifdef CUDA_HOST_TSAN
  f->tsan = __tsan_get_current_fiber();
#endif
  (void)f;
}

void fiber_restart(Fiber *f, void (*entry)()) {
#ifdef CUDA_HOST_ASAN
  __asan_unpoison_memory_region(f->stack, f->stack_bytes);
#endif
  f->fake_stack = nullptr;
  first_frame(f, entry);
}

void fibers_prepare(Fiber **fibers, unsigned n, void (*entry)()) {
  static char *stacks;
  static unsigned have;
#ifdef CUDA_HOST_TSAN
  /* Every block gets fresh TSan fibers on fresh memory: what an earlier block's thread did on this stack, or under
   * this fiber's name, must not count as ordered before, or races between blocks would not show. */
  static size_t mapped;
  for (unsigned i = 0; i < have; i++) __tsan_destroy_fiber(fibers[i]->tsan);
  if (stacks) munmap(stacks, mapped);
  stacks = nullptr;
  have = 0;
  mapped = n * (STACK_BYTES + GUARD_BYTES);
  unsigned room = n;
#else
  unsigned room = MAX_THREADS;
#endif
  if (!stacks) {
    void *p = mmap(nullptr, room * (STACK_BYTES + GUARD_BYTES), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      fprintf(stderr, "cuda_host: no address space for %u stacks\n", room);
      abort();
    }
    stacks = static_cast<char *>(p);
  }
  for (; have < n; have++) {
    char *base = stacks + have * (STACK_BYTES + GUARD_BYTES);
#ifdef CUDA_HOST_TSAN
    fibers[have]->tsan = __tsan_create_fiber(0);
#else
    mprotect(base, GUARD_BYTES, PROT_NONE); /* the stack grows down into it */
#endif
    fibers[have]->stack = base + GUARD_BYTES;
    fibers[have]->stack_bytes = STACK_BYTES;
    fiber_restart(fibers[have], entry);
  }
}

}  // namespace cuda_host
