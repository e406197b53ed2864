/* What the layer's own files share; kernels never see it.
 *
 * fiber.cpp switches stacks, block.cpp runs a block's threads, warp.cpp does what lanes do together, memory.cpp holds
 * buffers and poisons, stream.cpp and graph.cpp order work, runtime.cpp answers the rest of the CUDA runtime. These
 * files are compiled without TSan instrumentation: it watches kernels, and the layer tells it what orders what. */
#ifndef CUDA_HOST_LAYER_H
#define CUDA_HOST_LAYER_H

#include <cstdarg>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda_host.h"

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_HOST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_HOST_ASAN 1
#endif
#endif
#ifdef CUDA_HOST_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CUDA_HOST_TSAN /* set by the build: these files are not instrumented themselves */
#include <sanitizer/tsan_interface.h>
#define CUDA_HOST_RELEASE(p) __tsan_release(p)
#define CUDA_HOST_ACQUIRE(p) __tsan_acquire(p)
#else
#define CUDA_HOST_RELEASE(p) ((void)(p))
#define CUDA_HOST_ACQUIRE(p) ((void)(p))
#endif

namespace cuda_host {

enum { MAX_THREADS = 1024, WARP = 32, MAX_WARPS = MAX_THREADS / WARP };
enum { STATIC_SHARED = 48 << 10, MAX_SHARED = 227 << 10 };

/* -- fiber.cpp -- */
struct Fiber {
  void *sp = nullptr; /* where it stopped: a saved stack pointer, or a ucontext_t */
  char *stack = nullptr;
  size_t stack_bytes = 0;
  void *fake_stack = nullptr; /* ASan's */
  void *tsan = nullptr;
};
/* Under TSan, blocks take turns on two sets of fibers, each with a system thread of its own (its thread_local variables
 * are the static shared memory). Nothing orders the sets within a grid, so races between blocks show. */
#ifdef CUDA_HOST_TSAN
enum { SETS = 2 };
#else
enum { SETS = 1 };
#endif
/* Runs it on the set's system thread, and waits. */
void run_in_set(int set, void (*run)());
/* Stacks for a set's first n fibers, which start in `entry`; kept for the blocks that follow. */
void fibers_prepare(int set, Fiber **fibers, unsigned n, void (*entry)());
/* For one that was left in the middle. */
void fiber_restart(Fiber *fiber, void (*entry)());
/* The running stack becomes *from; goes on with *to. */
void fiber_switch(Fiber *from, Fiber *to);
/* First thing on a fiber's fresh stack. */
void fiber_started();
/* The system thread's own stack as a fiber. */
void fiber_adopt(Fiber *fiber);

/* -- block.cpp -- */
struct Launch {
  const char *name;
  dim3 blocks, threads;
  size_t shared;
  std::function<void()> thread;
};
/* Runs a whole grid; false after a reported error. */
bool run_grid(const Launch &launch);
/* "kernel x, block (0, 0, 0), thread (5, 0, 0)", or "" outside kernels. */
std::string where();
bool in_kernel();
/* Gives the running kernel up with a message; does not return on a fiber. */
void give_up(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* -- warp.cpp -- */
void cp_async_forget(unsigned thread); /* copies that a thread never waited for */
unsigned current_thread();             /* index in the block */

/* -- schedule -- */
struct Schedule {
  cuda_host_schedule kind = CUDA_HOST_IN_ORDER;
  uint64_t seed = 1, state = 1;
  uint64_t next();                 /* a draw */
  size_t pick(size_t n);           /* one of n independent pieces of work: first, last or any */
  std::vector<uint32_t> order(uint32_t n);
  int poison() const;              /* the byte that fresh memory holds: differs, so that reading it shows */
};

/* -- memory.cpp -- */
cudaError_t device_malloc(void **p, size_t bytes);
cudaError_t device_free(void *p);
/* The device buffer that holds p, or null; *room: bytes from p to its end. */
bool find_device(const void *p, size_t *room, int *device);
bool find_pinned(const void *p);
void check_guards(const char *after); /* reports a buffer whose surroundings were written */
/* Dynamic shared memory of a block, poisoned; static shared memory too. */
void *shared_begin(int set, size_t bytes);
void shared_end(int set, const Launch &launch);
void memory_reset();

/* -- stream.cpp -- */
struct Stream;
struct Ticket { /* a place in a stream: done once stream->done >= seq */
  std::shared_ptr<Stream> stream;
  uint64_t seq = 0;
};
struct Op {
  std::function<void()> run;
  std::vector<Ticket> after;
};
struct Capture;
struct Stream {
  std::deque<Op> queue;
  uint64_t issued = 0, done = 0;
  bool blocking = true, destroyed = false;
  int device = 0, priority = 0;
  unsigned flags = 0;
  Capture *capture = nullptr;
  std::vector<int> tail; /* while capturing: the nodes that the next one follows */
};
std::shared_ptr<Stream> stream_of(cudaStream_t handle);
cudaError_t submit(cudaStream_t stream, std::function<void()> run);
void run_until(const Ticket &ticket);
void drain();
/* cudaStreamCaptureUnsupported's rule: no waiting while something captures in global mode. */
bool capture_forbids();

/* -- graph.cpp -- */
struct Node {
  std::function<void()> run;
  std::vector<int> after;
};
struct Capture {
  std::vector<Node> nodes;
  std::shared_ptr<Stream> origin;
  std::vector<std::shared_ptr<Stream>> joined;
  cudaStreamCaptureMode mode;
  bool broken = false;
};
extern std::vector<Capture *> captures;
void capture_op(Stream *stream, std::function<void()> run);

/* -- runtime.cpp -- */
struct State {
  std::recursive_mutex lock;
  Schedule schedule;
  bool eager = false, catching = false;
  std::string error; /* the first caught one */
  cudaError_t sticky = cudaSuccess;
  size_t memory = static_cast<size_t>(1) << 30;
  int fail_malloc = 0, devices = 1;
  cuda_host_stats stats = {};
  State();
};
State &state();
/* Prints and aborts, or keeps the text when catching. */
void report(const std::string &text);
/* Notes what the next cudaGetLastError of this thread says, and returns it. */
cudaError_t fail(cudaError_t error);
int current_device();

}  // namespace cuda_host

#endif
