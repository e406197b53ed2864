/* Devices, errors, limits and launches of the CUDA runtime, and the layer's own settings (cuda_host_api.h). */
#include <algorithm>
#include <cstdlib>
#include <map>

#include "layer.h"

using namespace cuda_host;
#define LOCK std::lock_guard<std::recursive_mutex> guard(state().lock)

namespace cuda_host {

static thread_local int device_now;
static thread_local cudaError_t last_error = cudaSuccess;
static std::map<const void *, int> dynamic_limit; /* per kernel, by cudaFuncSetAttribute */

State &state() {
  static State *s = new State; /* never destroyed: kernels may run late */
  return *s;
}

#ifdef CUDA_HOST_ASAN
static void say_where() {
  if (in_kernel()) fprintf(stderr, "cuda_host: that was in %s\n", where().c_str());
}
#endif

static const struct Name {
  const char *name;
  cuda_host_schedule kind;
} names[] = {{"in_order", CUDA_HOST_IN_ORDER},   {"reverse", CUDA_HOST_REVERSE},
             {"round_robin", CUDA_HOST_ROUND_ROBIN}, {"one_warp", CUDA_HOST_ONE_WARP},
             {"odd_first", CUDA_HOST_ODD_FIRST}, {"random", CUDA_HOST_RANDOM}};

static bool parse_schedule(const char *text, Schedule *schedule) {
  const char *colon = strchr(text, ':');
  size_t n = colon ? static_cast<size_t>(colon - text) : strlen(text);
  for (const Name &i : names) {
    if (strlen(i.name) != n || strncmp(i.name, text, n)) continue;
    schedule->kind = i.kind;
    schedule->seed = schedule->state = colon ? strtoull(colon + 1, nullptr, 10) : 1;
    return true;
  }
  return false;
}

State::State() {
  const char *memory_text = getenv("SLK_CUDA_HOST_MEMORY"), *streams = getenv("SLK_CUDA_HOST_STREAMS");
  if (memory_text) memory = strtoull(memory_text, nullptr, 10);
  eager = streams && !strcmp(streams, "eager");
  const char *text = getenv("SLK_CUDA_HOST_SCHEDULE");
  if (text && !parse_schedule(text, &schedule)) {
    fprintf(stderr, "cuda_host: SLK_CUDA_HOST_SCHEDULE=%s is not a schedule (in_order, reverse, round_robin, one_warp, "
            "odd_first, random, each with :seed)\n", text);
    abort();
  }
#ifdef CUDA_HOST_ASAN
  __sanitizer_set_death_callback(say_where);
#endif
}

void report(const std::string &text) {
  State &s = state();
  if (!s.catching) {
    fprintf(stderr, "cuda_host: error: %s\n", text.c_str());
    abort();
  }
  if (s.error.empty()) s.error = text;
  s.sticky = cudaErrorLaunchFailure;
}

cudaError_t fail(cudaError_t error) {
  if (error == cudaSuccess) error = state().sticky;
  if (error != cudaSuccess) last_error = error;
  return error;
}

int current_device() { return device_now; }

static cudaError_t check_launch(const slk_cuda_host_launch_config &c) {
  const dim3 &b = c.blocks, &t = c.threads;
  if (!b.x || !b.y || !b.z || !t.x || !t.y || !t.z) return cudaErrorInvalidConfiguration;
  if (b.x > 0x7fffffffu || b.y > 65535 || b.z > 65535) return cudaErrorInvalidConfiguration;
  if (t.x > 1024 || t.y > 1024 || t.z > 64 || t.x * t.y * t.z > MAX_THREADS) return cudaErrorInvalidConfiguration;
  auto limit = dynamic_limit.find(c.kernel);
  int most = limit == dynamic_limit.end() ? +STATIC_SHARED : limit->second;
  return c.shared > static_cast<size_t>(most) ? cudaErrorInvalidValue : cudaSuccess;
}

}  // namespace cuda_host

void slk_cuda_host_submit(const slk_cuda_host_launch_config &c, std::function<void()> thread) {
  LOCK;
  if (in_kernel()) return report("kernel " + std::string(c.name) + " launched from a kernel");
  cudaError_t error = check_launch(c);
  if (error != cudaSuccess) {
    fail(error);
    return;
  }
  state().stats.launches++;
  Launch launch = {c.name, c.blocks, c.threads, c.shared, std::move(thread)};
  fail(submit(c.stream, [launch]() { run_grid(launch); }));
}

/* -- Devices -- */

cudaError_t cudaGetDeviceCount(int *n) {
  *n = state().devices;
  return fail(*n ? cudaSuccess : cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= state().devices) return fail(cudaErrorInvalidDevice);
  device_now = device;
  return fail(cudaSuccess);
}
cudaError_t cudaGetDevice(int *device) {
  *device = device_now;
  return fail(cudaSuccess);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  if (!p || device < 0 || device >= state().devices) return fail(cudaErrorInvalidDevice);
  *p = {};
  snprintf(p->name, sizeof p->name, "CPU (host layer)");
  p->totalGlobalMem = state().memory;
  p->sharedMemPerBlock = STATIC_SHARED;
  p->sharedMemPerBlockOptin = MAX_SHARED;
  p->sharedMemPerMultiprocessor = 228 << 10;
  p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = WARP;
  p->maxThreadsPerBlock = MAX_THREADS;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->major = 9, p->minor = 0;
  p->multiProcessorCount = 4;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->l2CacheSize = 50 << 20;
  p->memoryBusWidth = 5120;
  p->asyncEngineCount = 3;
  p->concurrentKernels = p->unifiedAddressing = p->memoryPoolsSupported = p->streamPrioritiesSupported = 1;
  p->canMapHostMemory = 1;
  return fail(cudaSuccess);
}

cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int device) {
  cudaDeviceProp p;
  if (!v) return fail(cudaErrorInvalidValue);
  if (cudaGetDeviceProperties(&p, device) != cudaSuccess) return cudaErrorInvalidDevice;
  switch (a) {
    case cudaDevAttrMultiProcessorCount: *v = p.multiProcessorCount; break;
    case cudaDevAttrComputeCapabilityMajor: *v = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *v = p.minor; break;
    case cudaDevAttrMaxThreadsPerBlock: *v = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = static_cast<int>(p.sharedMemPerBlock); break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = static_cast<int>(p.sharedMemPerBlockOptin); break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *v = static_cast<int>(p.sharedMemPerMultiprocessor); break;
    case cudaDevAttrWarpSize: *v = WARP; break;
    case cudaDevAttrL2CacheSize: *v = p.l2CacheSize; break;
    case cudaDevAttrMemoryPoolsSupported: *v = 1; break;
    case cudaDevAttrMaxRegistersPerBlock: *v = p.regsPerBlock; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *v = p.maxBlocksPerMultiProcessor; break;
    case cudaDevAttrMaxGridDimX: *v = p.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY: *v = p.maxGridSize[1]; break;
    case cudaDevAttrClockRate: *v = 1000000; break;
    case cudaDevAttrMemoryClockRate: *v = 1000000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *v = p.memoryBusWidth; break;
    default: return fail(cudaErrorInvalidValue);
  }
  return fail(cudaSuccess);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return fail(cudaSuccess);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  LOCK;
  State &s = state();
  if (free_bytes) *free_bytes = s.memory > s.stats.bytes ? s.memory - s.stats.bytes : 0;
  if (total) *total = s.memory;
  return fail(cudaSuccess);
}

cudaError_t cudaDeviceReset(void) {
  LOCK;
  drain();
  memory_reset();
  state().sticky = cudaSuccess;
  return fail(cudaSuccess);
}

cudaError_t cudaRuntimeGetVersion(int *v) {
  *v = CUDART_VERSION;
  return fail(cudaSuccess);
}
cudaError_t cudaDriverGetVersion(int *v) { return cudaRuntimeGetVersion(v); }

/* Pools: one per device, without anything to tune. */
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) {
  if (!pool || device < 0 || device >= state().devices) return fail(cudaErrorInvalidValue);
  *pool = reinterpret_cast<cudaMemPool_t>(static_cast<uintptr_t>(device) + 1);
  return fail(cudaSuccess);
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, enum cudaMemPoolAttr, void *) { return fail(cudaSuccess); }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return fail(cudaSuccess); }

/* -- Kernels -- */

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute a, int value) {
  LOCK;
  if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value > MAX_SHARED) return fail(cudaErrorInvalidValue);
    dynamic_limit[kernel] = value;
  } else if (a != cudaFuncAttributePreferredSharedMemoryCarveout) {
    return fail(cudaErrorInvalidValue);
  }
  return fail(cudaSuccess);
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *kernel) {
  LOCK;
  *attributes = {};
  attributes->maxThreadsPerBlock = MAX_THREADS;
  attributes->maxDynamicSharedSizeBytes = dynamic_limit.count(kernel) ? dynamic_limit[kernel] : STATIC_SHARED;
  attributes->numRegs = 32;
  attributes->ptxVersion = attributes->binaryVersion = 90;
  return fail(cudaSuccess);
}

/* By threads and dynamic shared memory alone: registers are unknown here. */
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int threads, size_t shared) {
  if (!blocks || threads < 1 || threads > MAX_THREADS) return fail(cudaErrorInvalidValue);
  int by_shared = static_cast<int>((228u << 10) / (shared + 1024));
  *blocks = std::min({2048 / (((threads + 31) / 32) * 32), by_shared, 32});
  return fail(cudaSuccess);
}

/* -- Errors -- */

cudaError_t cudaPeekAtLastError(void) { return last_error != cudaSuccess ? last_error : state().sticky; }
cudaError_t cudaGetLastError(void) {
  cudaError_t e = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return e;
}

#define ERRORS(E)                                                                       \
  E(cudaSuccess, "no error")                                                            \
  E(cudaErrorInvalidValue, "invalid argument")                                          \
  E(cudaErrorMemoryAllocation, "out of memory")                                         \
  E(cudaErrorInvalidConfiguration, "invalid configuration argument")                    \
  E(cudaErrorInvalidPitchValue, "invalid pitch argument")                               \
  E(cudaErrorInvalidDevice, "invalid device ordinal")                                   \
  E(cudaErrorNoDevice, "no CUDA-capable device is detected")                            \
  E(cudaErrorInvalidResourceHandle, "invalid resource handle")                          \
  E(cudaErrorIllegalState, "the operation cannot be performed in the present state")    \
  E(cudaErrorNotReady, "device not ready")                                              \
  E(cudaErrorLaunchFailure, "unspecified launch failure")                               \
  E(cudaErrorNotSupported, "operation not supported")                                   \
  E(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing") \
  E(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture") \
  E(cudaErrorStreamCaptureUnmatched, "capture was not initiated in this stream")        \
  E(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work")               \
  E(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream") \
  E(cudaErrorStreamCaptureImplicit, "operation would make the legacy stream depend on a capturing blocking stream") \
  E(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream") \
  E(cudaErrorGraphExecUpdateFailure, "the graph update was not performed")

const char *cudaGetErrorString(cudaError_t e) {
  switch (e) {
#define E(name, text) case name: return text;
    ERRORS(E)
#undef E
    default: return "unrecognized error code";
  }
}
const char *cudaGetErrorName(cudaError_t e) {
  switch (e) {
#define E(name, text) case name: return #name;
    ERRORS(E)
#undef E
    default: return "unrecognized error code";
  }
}

/* -- The layer's own settings -- */

void cuda_host_set_schedule(cuda_host_schedule schedule, uint64_t seed) {
  LOCK;
  Schedule &s = state().schedule;
  s.kind = schedule, s.seed = seed, s.state = seed;
}

int cuda_host_set_schedule_by_name(const char *name) {
  LOCK;
  return parse_schedule(name, &state().schedule) ? 0 : -1;
}

void cuda_host_use_schedule(int i) {
  static const char *const set[CUDA_HOST_SCHEDULES] = {"in_order",    "reverse",  "round_robin", "odd_first",
                                                       "one_warp:1", "random:1", "random:2",    "random:3"};
  cuda_host_set_schedule_by_name(set[static_cast<unsigned>(i) % CUDA_HOST_SCHEDULES]);
}

const char *cuda_host_schedule_name(void) {
  static char text[40];
  const Schedule &s = state().schedule;
  snprintf(text, sizeof text, "%s:%llu", names[s.kind].name, static_cast<unsigned long long>(s.seed));
  return text;
}

void cuda_host_set_eager(int eager) { state().eager = eager != 0; }
void cuda_host_catch_errors(int on) { state().catching = on != 0; }
const char *cuda_host_error(void) { return state().error.c_str(); }
void cuda_host_clear_error(void) {
  LOCK;
  drain(); /* what was queued behind the error is dropped */
  state().error.clear();
  state().sticky = cudaSuccess;
  last_error = cudaSuccess;
}
void cuda_host_set_memory(size_t bytes) { state().memory = bytes; }
void cuda_host_fail_malloc(int n) { state().fail_malloc = n; }
void cuda_host_set_device_count(int n) { state().devices = n < 0 ? 0 : n > 8 ? 8 : n; }

void cuda_host_get_stats(cuda_host_stats *stats) {
  LOCK;
  *stats = state().stats;
}
void cuda_host_reset_stats(void) {
  LOCK;
  cuda_host_stats &s = state().stats, fresh = {};
  fresh.bytes = fresh.peak_bytes = s.bytes;
  fresh.buffers = s.buffers;
  s = fresh;
}
