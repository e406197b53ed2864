/* Stacks and the switch between them: by hand on x86-64, ucontext elsewhere. The sanitizers are told. */
#include <linux/futex.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
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
#ifdef CUDA_HOST_TSAN
  if (f->tsan) __tsan_destroy_fiber(f->tsan);
  f->tsan = __tsan_create_fiber(0);
#endif
  f->fake_stack = nullptr;
  first_frame(f, entry);
}

void fibers_prepare(int set, Fiber **fibers, unsigned n, void (*entry)()) {
  static char *stacks[SETS];
  static unsigned have[SETS];
  const size_t each = STACK_BYTES + GUARD_BYTES;
  if (!stacks[set]) {
    void *p = mmap(nullptr, MAX_THREADS * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED) {
      fprintf(stderr, "cuda_host: no address space for %d stacks\n", +MAX_THREADS);
      abort();
    }
    stacks[set] = static_cast<char *>(p);
  }
  for (; have[set] < n; have[set]++) {
    Fiber *f = fibers[have[set]];
    char *base = stacks[set] + have[set] * each;
    mprotect(base, GUARD_BYTES, PROT_NONE); /* the stack grows down into it */
    f->stack = base + GUARD_BYTES;
    f->stack_bytes = STACK_BYTES;
    fiber_restart(f, entry);
  }
}

#ifdef CUDA_HOST_TSAN
/* One system thread per set of fibers. Work is handed over by plain atomics and futex calls in code that TSan does not
 * see: mutexes or joins would order blocks of different sets, and hide their races. */
static std::atomic<int> jobs[SETS];
static void (*job)();

static void futex(std::atomic<int> *at, int op, int value) {
  syscall(SYS_futex, reinterpret_cast<int *>(at), op, value, nullptr, nullptr, 0);
}

static void wait_until(std::atomic<int> *at, int value) {
  for (int seen; (seen = at->load()) != value;) futex(at, FUTEX_WAIT_PRIVATE, seen);
}

static void *work(void *at) {
  std::atomic<int> *mine = static_cast<std::atomic<int> *>(at);
  for (;;) {
    wait_until(mine, 1);
    job();
    mine->store(0);
    futex(mine, FUTEX_WAKE_PRIVATE, 1);
  }
}

void run_in_set(int set, void (*run)()) {
  static bool started[SETS];
  if (!started[set]) {
    pthread_t thread;
    if (pthread_create(&thread, nullptr, work, &jobs[set])) abort();
    pthread_detach(thread);
    started[set] = true;
  }
  job = run;
  jobs[set].store(1);
  futex(&jobs[set], FUTEX_WAKE_PRIVATE, 1);
  wait_until(&jobs[set], 0);
}
#else
void run_in_set(int, void (*run)()) { run(); }
#endif

}  // namespace cuda_host
