/* The layer that runs CUDA kernels on the CPU (tests/support/cuda_host): correct kernels give the same bits under every
 * schedule, and every bug that the layer promises to find is put in and found.
 *
 * Some bugs stop the process (ASan, UBSan) or show only in its exit status (TSan): those run in a child, which is this
 * program started again with the bug's name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

extern "C" {
#include <cmocka.h>
}

#include "selftest_kernels.h"

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif

namespace {

typedef std::vector<unsigned char> Bytes;

/* A device buffer that starts with `host`'s bytes and can be read back. */
template <typename T> struct Device {
  T *p = nullptr;
  size_t n;
  explicit Device(const std::vector<T> &host) : n(host.size()) {
    assert_int_equal(cudaMalloc(&p, n * sizeof(T)), cudaSuccess);
    assert_int_equal(cudaMemcpy(p, host.data(), n * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  explicit Device(size_t count, T value = T()) : Device(std::vector<T>(count, value)) {}
  Device(const Device &) = delete;
  Device &operator=(const Device &) = delete;
  ~Device() { cudaFree(p); }
  std::vector<T> read() const {
    std::vector<T> host(n);
    cudaMemcpy(host.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost);
    return host;
  }
  Bytes bytes() const {
    std::vector<T> host = read();
    const unsigned char *b = reinterpret_cast<const unsigned char *>(host.data());
    return Bytes(b, b + n * sizeof(T));
  }
};

std::vector<float> some_floats(size_t n) {
  std::vector<float> v(n);
  for (size_t i = 0; i < n; i++) v[i] = static_cast<float>((i * 2654435761u >> 8) % 1000) / 7.0f - 60.0f;
  return v;
}

/* -- One run of each kernel, as bytes -- */

template <Bug bug> Bytes run_row_sum() { /* 40 columns by 96 threads: the last warp has nothing to add */
  Device<float> x(some_floats(5 * 40)), out(5, 0.0f);
  LAUNCH((row_sum<bug>), 5, 96, 0, nullptr, x.p, out.p, 40);
  return out.bytes();
}
template <Bug bug> Bytes run_block_scan() {
  std::vector<int> host(3 * 128);
  for (size_t i = 0; i < host.size(); i++) host[i] = static_cast<int>(i * i % 17);
  Device<int> x(host), out(host.size(), 0);
  LAUNCH((block_scan<bug>), 3, 128, 128 * sizeof(int), nullptr, x.p, out.p);
  return out.bytes();
}
Bytes run_transpose() {
  Device<float> x(some_floats(70 * 45)), out(70 * 45, 0.0f);
  LAUNCH(transpose, dim3(2, 3), dim3(32, 8), 0, nullptr, x.p, out.p, 70, 45);
  return out.bytes();
}
template <Bug bug> Bytes run_histogram() {
  std::vector<unsigned> keys(1000);
  for (size_t i = 0; i < keys.size(); i++) keys[i] = static_cast<unsigned>(i * 2654435761u >> 5);
  Device<unsigned> x(keys), counts(16, 0u);
  LAUNCH((histogram<bug>), 4, 256, 0, nullptr, x.p, counts.p, 1000, 4);
  return counts.bytes();
}
template <Bug bug> Bytes run_warp_reverse() {
  Device<float> x(some_floats(512)), out(512, 0.0f);
  LAUNCH((warp_reverse<bug>), 2, 256, 0, nullptr, x.p, out.p);
  return out.bytes();
}
template <Bug bug> Bytes run_twice() {
  Device<float> x(some_floats(256)), out(256, 0.0f);
  LAUNCH((twice<bug>), 2, 32, 0, nullptr, x.p, out.p, 256);
  return out.bytes();
}
template <Bug bug> Bytes run_last_block() {
  Device<unsigned> out(1, 0u);
  LAUNCH((last_block<bug>), 9, 32, 0, nullptr, out.p);
  return out.bytes();
}
Bytes run_sum_by_last() {
  Device<float> x(some_floats(7 * 32)), partial(7, 0.0f), out(1, 0.0f);
  Device<unsigned> ticket(1, 0u);
  LAUNCH(sum_by_last, 7, 32, 0, nullptr, x.p, partial.p, ticket.p, out.p);
  return out.bytes();
}
float product_entry(int row, int column, int n) { return static_cast<float>((row * 5 + column * 3) % n - n / 2); }
template <Bug bug> Bytes run_small_product() {
  std::vector<__nv_bfloat16> a(256), b(128);
  for (int i = 0; i < 256; i++) a[static_cast<size_t>(i)] = __float2bfloat16(product_entry(i / 16, i % 16, 11));
  for (int i = 0; i < 128; i++) b[static_cast<size_t>(i)] = __float2bfloat16(product_entry(i / 16, i % 16, 7));
  Device<__nv_bfloat16> da(a), db(b);
  Device<float> out(128, 0.0f);
  LAUNCH((small_product<bug>), 1, 32, 384 * sizeof(__nv_bfloat16), nullptr, da.p, db.p, out.p);
  return out.bytes();
}

/* A producer and a consumer on two streams; `wait` is the event between them. */
Bytes run_streams(bool wait) {
  Device<float> x(64, 1.0f), out(64, 0.0f);
  cudaStream_t a, b;
  cudaEvent_t made;
  cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking);
  cudaEventCreateWithFlags(&made, cudaEventDisableTiming);
  LAUNCH(add_one, 2, 32, 0, a, x.p, 64);
  cudaEventRecord(made, a);
  if (wait) cudaStreamWaitEvent(b, made, 0);
  LAUNCH((twice<CORRECT>), 1, 32, 0, b, x.p, out.p, 64);
  cudaStreamSynchronize(b);
  Bytes result = out.bytes();
  cudaEventDestroy(made);
  cudaStreamDestroy(a);
  cudaStreamDestroy(b);
  return result;
}

/* The same pair captured, with a fork and a join, and replayed three times. */
Bytes run_graph(bool wait) {
  Device<float> x(64, 1.0f), out(64, 0.0f);
  cudaStream_t a, b;
  cudaEvent_t fork, made, join;
  cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking);
  for (cudaEvent_t *e : {&fork, &made, &join}) cudaEventCreateWithFlags(e, cudaEventDisableTiming);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  assert_int_equal(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  cudaEventRecord(fork, a);
  cudaStreamWaitEvent(b, fork, 0);
  LAUNCH(add_one, 2, 32, 0, a, x.p, 64);
  cudaEventRecord(made, a);
  if (wait) cudaStreamWaitEvent(b, made, 0);
  LAUNCH((twice<CORRECT>), 1, 32, 0, b, x.p, out.p, 64);
  cudaEventRecord(join, b);
  cudaStreamWaitEvent(a, join, 0);
  assert_int_equal(cudaStreamEndCapture(a, &graph), cudaSuccess);
  assert_int_equal(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  for (int i = 0; i < 3; i++) cudaGraphLaunch(exec, a);
  cudaStreamSynchronize(a);
  Bytes result = out.bytes();
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  for (cudaEvent_t e : {fork, made, join}) cudaEventDestroy(e);
  cudaStreamDestroy(a);
  cudaStreamDestroy(b);
  return result;
}

/* -- Verdicts -- */

typedef Bytes (*Run)();

bool same_bits(Run run) {
  Bytes first;
  bool same = true;
  for (int i = 0; i < CUDA_HOST_SCHEDULES; i++) {
    cuda_host_use_schedule(i);
    Bytes b = run();
    if (i == 0) first = b;
    same = same && b == first;
  }
  cuda_host_use_schedule(0);
  return same;
}

/* The layer's report of the bug under the given schedule, "" if it says nothing. */
std::string reported(Run run, int schedule = 0) {
  cuda_host_catch_errors(1);
  cuda_host_use_schedule(schedule);
  run();
  cudaDeviceSynchronize();
  std::string text = cuda_host_error();
  assert_int_equal(cudaGetLastError(), text.empty() ? cudaSuccess : cudaErrorLaunchFailure);
  cuda_host_clear_error();
  cuda_host_use_schedule(0);
  cuda_host_catch_errors(0);
  return text;
}

/* Every one of the words; "a|b" is either. */
void assert_says(const std::string &text, std::vector<const char *> words) {
  for (const std::string w : words) {
    size_t bar = w.find('|');
    if (text.find(w.substr(0, bar)) != std::string::npos) continue;
    if (bar != std::string::npos && text.find(w.substr(bar + 1)) != std::string::npos) continue;
    fail_msg("expected \"%s\" in: %s", w.c_str(), text.c_str());
  }
}

/* -- Bugs that run in a child -- */

const struct Child {
  const char *name;
  Run run;
} children[] = {
    {"not-atomic", run_histogram<NOT_ATOMIC>},     {"no-barrier", run_row_sum<NO_BARRIER>},
    {"no-syncwarp", run_warp_reverse<NO_SYNCWARP>}, {"blocks-race", run_last_block<BLOCKS_RACE>},
    {"no-barrier-scan", run_block_scan<NO_BARRIER>},
    {"global-overrun", run_row_sum<GLOBAL_OVERRUN>}, {"static-overrun", run_row_sum<STATIC_OVERRUN>},
    {"dynamic-overrun", run_block_scan<DYNAMIC_OVERRUN>}, {"misaligned", run_twice<MISALIGNED>},
    {"correct", run_histogram<CORRECT>},
};

/* Starts this program again for one bug; its exit status, what it wrote to stderr in *text. */
int child(const char *name, std::string *text) {
  int ends[2];
  assert_int_equal(pipe(ends), 0);
  pid_t pid = fork();
  if (pid == 0) {
    dup2(ends[1], 2);
    close(ends[0]);
    execl("/proc/self/exe", "test_cuda_host", "--bug", name, static_cast<char *>(nullptr));
    _exit(127);
  }
  close(ends[1]);
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) text->append(buffer, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(pid, &status, 0);
  return status;
}

void assert_child_fails(const char *name, std::vector<const char *> words) {
  std::string text;
  int status = child(name, &text);
  if (status == 0) fail_msg("the bug %s was not found", name);
  assert_says(text, words);
}

/* -- Tests -- */

void test_correct_kernels(void **) {
  assert_true(same_bits(run_row_sum<CORRECT>));
  assert_true(same_bits(run_block_scan<CORRECT>));
  assert_true(same_bits(run_transpose));
  assert_true(same_bits(run_histogram<CORRECT>));
  assert_true(same_bits(run_warp_reverse<CORRECT>));
  assert_true(same_bits(run_twice<CORRECT>));
  assert_true(same_bits(run_last_block<CORRECT>));
  assert_true(same_bits(run_sum_by_last));
  assert_true(same_bits(run_small_product<CORRECT>));
  assert_true(same_bits([]() { return run_streams(true); }));
  assert_true(same_bits([]() { return run_graph(true); }));
}

/* Same bits could be the same wrong bits. */
void test_values(void **) {
  std::vector<float> x = some_floats(70 * 45);
  Bytes b = run_transpose();
  const float *y = reinterpret_cast<const float *>(b.data());
  for (size_t i = 0; i < 70; i++)
    for (size_t j = 0; j < 45; j++) assert_true(y[j * 70 + i] == x[i * 45 + j]);
  b = run_block_scan<CORRECT>();
  const int *scan = reinterpret_cast<const int *>(b.data());
  for (int i = 0, sum = 0; i < 3 * 128; i++) {
    sum = i % 128 ? sum + i * i % 17 : i * i % 17;
    assert_int_equal(scan[i], sum);
  }
  b = run_histogram<CORRECT>();
  unsigned total = 0;
  for (int i = 0; i < 16; i++) total += reinterpret_cast<const unsigned *>(b.data())[i];
  assert_int_equal(total, 1000);
  b = run_graph(true);
  assert_true(*reinterpret_cast<const float *>(b.data()) == 8.0f); /* 2 (1 + 3) */
  b = run_small_product<CORRECT>();
  for (int i = 0; i < 16; i++) {
    for (int j = 0; j < 8; j++) {
      float sum = 0.0f;
      for (int k = 0; k < 16; k++) sum += product_entry(i, k, 11) * product_entry(j, k, 7);
      assert_true(reinterpret_cast<const float *>(b.data())[i * 8 + j] == sum);
    }
  }
}

void test_bits_differ(void **) {
#ifndef SLK_CUDA_HOST_TSAN_KERNELS /* there the race itself is the report */
  assert_false(same_bits(run_row_sum<NO_BARRIER>));
  assert_false(same_bits(run_block_scan<NO_BARRIER>));
  assert_false(same_bits(run_warp_reverse<NO_SYNCWARP>));
  assert_false(same_bits(run_last_block<BLOCKS_RACE>));
#if defined(__clang__) /* g++ leaves the static variables of templates out of the poisoned section */
  assert_false(same_bits(run_row_sum<UNINITIALISED>));
  assert_false(same_bits(run_histogram<UNINITIALISED>));
#endif
#endif
  assert_false(same_bits([]() { return run_graph(false); }));
}

void test_waits(void **) {
  Bytes right = run_streams(true), wrong = run_streams(false);
  assert_true(*reinterpret_cast<const float *>(right.data()) == 4.0f);
  assert_true(*reinterpret_cast<const float *>(wrong.data()) == 2.0f);
  assert_false(run_small_product<NO_CP_ASYNC_WAIT>() == run_small_product<CORRECT>());
  /* A host that reads a pinned buffer before it waits finds the old bytes; after the wait, the new. */
  Device<float> x(4, 3.0f);
  float *pinned;
  assert_int_equal(cudaMallocHost(&pinned, 16), cudaSuccess);
  pinned[0] = -1.0f;
  cudaStream_t s;
  cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
  cudaMemcpyAsync(pinned, x.p, 16, cudaMemcpyDeviceToHost, s);
  assert_true(pinned[0] == -1.0f);
  cudaStreamSynchronize(s);
  assert_true(pinned[0] == 3.0f);
  /* One that changes what an asynchronous copy still has to read sends the changed bytes. */
  pinned[0] = 5.0f;
  cudaMemcpyAsync(x.p, pinned, 16, cudaMemcpyHostToDevice, s);
  pinned[0] = 6.0f;
  cudaStreamSynchronize(s);
  assert_true(x.read()[0] == 6.0f);
  cudaStreamDestroy(s);
  cudaFreeHost(pinned);
}

void test_reports(void **) {
#ifdef SLK_CUDA_HOST_TSAN_KERNELS
  const int step = 5; /* giving fibers up is slow there */
#else
  const int step = 1;
#endif
  for (int i = 0; i < CUDA_HOST_SCHEDULES; i += step) {
    assert_says(reported(run_row_sum<EARLY_EXIT>, i), {"row_sum<bug>", "block (", "is stuck", "have returned"});
    assert_says(reported(run_block_scan<DIVERGENT>, i),
                {"block_scan", "threads 0-31 wait at __syncthreads", "threads 32-127 wait at __syncthreads"});
    assert_says(reported(run_warp_reverse<LANE_MISSING>, i),
                {"warp_reverse", "wait at __shfl_sync (mask 0xffffffff)", "7,39,71", "wait at __syncthreads"});
    assert_says(reported(run_warp_reverse<LANE_RETURNED>, i), {"warp_reverse", "lane 0 reads lane 31", "takes no part"});
    assert_says(reported(run_warp_reverse<MASK_WITHOUT_ME>, i), {"mask 0xfffffffe lacks the calling lane 0"});
  }
#ifndef WITH_ASAN
  assert_says(reported(run_row_sum<GLOBAL_OVERRUN>), {"row_sum", "a buffer of 20 bytes was overrun", "after its end"});
  assert_says(reported(run_twice<MISALIGNED>), {"twice", "a vector of 16 bytes", "is misaligned"});
  assert_says(reported(run_block_scan<DYNAMIC_OVERRUN>), {"block_scan", "beyond its 512 bytes of dynamic shared"});
#endif
  assert_true(reported(run_row_sum<CORRECT>).empty()); /* and the layer works on after all this */
  assert_true(same_bits(run_row_sum<CORRECT>));
}

void test_sanitizers(void **) {
  std::string text;
  assert_int_equal(child("correct", &text), 0);
#ifdef SLK_CUDA_HOST_TSAN_KERNELS
  assert_child_fails("not-atomic", {"data race", "histogram"});
  assert_child_fails("no-barrier", {"data race", "row_sum"});
  assert_child_fails("no-barrier-scan", {"data race", "block_scan"});
  assert_child_fails("no-syncwarp", {"data race", "warp_reverse"});
  assert_child_fails("blocks-race", {"data race", "last_block"});
#elif defined(WITH_ASAN)
  assert_child_fails("global-overrun", {"AddressSanitizer", "row_sum", "that was in kernel (row_sum<bug>), block (4"});
  assert_child_fails("static-overrun", {"global-buffer-overflow|insufficient space", "selftest_kernels.h"});
  assert_child_fails("dynamic-overrun", {"heap-buffer-overflow", "block_scan"});
  assert_child_fails("misaligned", {"misaligned address|which is misaligned", "twice|selftest_kernels.h"});
#else
  /* Without catching, a report ends the process. */
  assert_child_fails("global-overrun", {"cuda_host: error: after (row_sum<bug>): a buffer of 20 bytes was overrun"});
#endif
}

void test_memory(void **) {
  cuda_host_stats before, after;
  cuda_host_get_stats(&before);
  void *p = nullptr, *q = nullptr;
  cuda_host_set_memory(before.bytes + 1000);
  assert_int_equal(cudaMalloc(&p, 600), cudaSuccess);
  assert_int_equal(cudaMalloc(&q, 600), cudaErrorMemoryAllocation);
  assert_string_equal(cudaGetErrorString(cudaGetLastError()), "out of memory");
  assert_int_equal(cudaGetLastError(), cudaSuccess);
  size_t free_bytes, total;
  cudaMemGetInfo(&free_bytes, &total);
  assert_int_equal(free_bytes, 400);
  cudaFree(p);
  assert_int_equal(cudaMalloc(&p, 900), cudaSuccess);
  cudaFree(p);
  cuda_host_set_memory(static_cast<size_t>(1) << 30);
  cuda_host_fail_malloc(2);
  assert_int_equal(cudaMalloc(&p, 8), cudaSuccess);
  assert_int_equal(cudaMalloc(&q, 8), cudaErrorMemoryAllocation);
  cudaGetLastError();
  /* Directions and sizes of copies */
  char host[16] = "";
  assert_int_equal(cudaMemcpy(host, p, 8, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  cudaGetLastError();
  cuda_host_catch_errors(1);
  assert_int_equal(cudaMemcpy(p, host, 9, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  assert_says(cuda_host_error(), {"cudaMemcpy writes 9 bytes where the device buffer has 8 left"});
  cuda_host_clear_error();
  cuda_host_catch_errors(0);
  cudaFree(p);
  cuda_host_get_stats(&after);
  assert_int_equal(after.bytes, before.bytes);
  assert_int_equal(after.buffers, before.buffers);
}

void test_launch_limits(void **) {
  Device<unsigned> out(1, 0u);
  LAUNCH((last_block<CORRECT>), 1, 1025, 0, nullptr, out.p);
  assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
  LAUNCH((last_block<CORRECT>), 0, 32, 0, nullptr, out.p);
  assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
  LAUNCH((last_block<CORRECT>), 1, 32, 100 << 10, nullptr, out.p);
  assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
  assert_int_equal(cudaFuncSetAttribute(last_block<CORRECT>, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 << 10),
                   cudaSuccess);
  LAUNCH((last_block<CORRECT>), 3, 1024, 227 << 10, nullptr, out.p);
  assert_int_equal(cudaGetLastError(), cudaSuccess);
  assert_int_equal(out.read()[0], 2);
}

/* Waits are counted, also hidden ones; a capture refuses to wait. */
void test_waits_are_counted(void **) {
  Device<float> x(4, 1.0f);
  cuda_host_stats stats;
  float host[4];
  cudaStream_t s;
  cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
  cuda_host_reset_stats();
  LAUNCH(add_one, 1, 32, 0, s, x.p, 4);
  cudaMemsetAsync(x.p, 0, 4, s);
  cudaMemcpyAsync(x.p, host, 0, cudaMemcpyHostToDevice, s);
  cuda_host_get_stats(&stats);
  assert_int_equal(stats.waits, 0);
  cudaMemcpyAsync(host, x.p, 16, cudaMemcpyDeviceToHost, s); /* pageable */
  cuda_host_get_stats(&stats);
  assert_int_equal(stats.waits, 1);
  assert_true(host[0] == 0.0f && host[1] == 2.0f);
  cudaGraph_t graph;
  assert_int_equal(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal), cudaSuccess);
  assert_int_equal(cudaStreamSynchronize(s), cudaErrorStreamCaptureUnsupported);
  assert_int_equal(cudaStreamEndCapture(s, &graph), cudaErrorStreamCaptureInvalidated);
  assert_null(graph);
  cudaGetLastError();
  cudaStreamDestroy(s);
}

void test_schedule_names(void **) {
  assert_int_equal(cuda_host_set_schedule_by_name("random:7"), 0);
  assert_string_equal(cuda_host_schedule_name(), "random:7");
  assert_int_equal(cuda_host_set_schedule_by_name("fair"), -1);
  cuda_host_use_schedule(0);
}

}  // namespace

int main(int argc, char **argv) {
  if (argc == 3 && !strcmp(argv[1], "--bug")) {
    for (const Child &c : children) {
      if (strcmp(c.name, argv[2])) continue;
      c.run();
      return 0;
    }
    return 2;
  }
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_correct_kernels), cmocka_unit_test(test_values),
      cmocka_unit_test(test_bits_differ),     cmocka_unit_test(test_waits),
      cmocka_unit_test(test_reports),         cmocka_unit_test(test_sanitizers),
      cmocka_unit_test(test_memory),          cmocka_unit_test(test_launch_limits),
      cmocka_unit_test(test_waits_are_counted), cmocka_unit_test(test_schedule_names),
  };
  return cmocka_run_group_tests(tests, nullptr, nullptr);
}
