/* CUDA devices: one stream and one state for each GPU, made when the GPU is first asked for.
 *
 * Nothing here is global but the table of devices: every entry point makes its own device current. Memory is plain
 * cudaMalloc; the caching pool above it is core's (core/tensor/storage.c). Uploads are asynchronous through pinned
 * memory; what makes the host wait is counted in device->waits. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

extern "C" const sl_kernels slk_cuda_kernels;

enum { MAX_DEVICES = 64 };

/* -- Errors -- */

/* After these the context is lost: every later call fails too. */
static bool is_sticky(cudaError_t error) {
  switch (error) {
  case cudaErrorIllegalAddress:
  case cudaErrorLaunchFailure:
  case cudaErrorLaunchTimeout:
  case cudaErrorIllegalInstruction:
  case cudaErrorMisalignedAddress:
  case cudaErrorInvalidAddressSpace:
  case cudaErrorInvalidPc:
  case cudaErrorHardwareStackError:
  case cudaErrorAssert:
  case cudaErrorECCUncorrectable:
    return true;
  default:
    return false;
  }
}

sl_status slk_cuda_check(sl_device *device, cudaError_t error, const char *what) {
  if (error == cudaSuccess) return SL_OK;
  (void)cudaGetLastError(); /* an error that is not sticky must not show up at the next launch */
  slk_cuda_state *state = slk_cuda_get(device);
  snprintf(state->words, sizeof state->words, "%s: %s", cudaGetErrorName(error), cudaGetErrorString(error));
  if (is_sticky(error)) {
    return sl_fail(SL_EDEVICE,
                   "%s on %s: %s; this process cannot use the device any more. An earlier kernel may be the cause: "
                   "SAELUA_CUDA_SYNC=1 names it",
                   what, device->name, state->words);
  }
  return sl_fail(error == cudaErrorMemoryAllocation ? SL_ENOMEM : SL_EDEVICE, "%s on %s: %s", what, device->name,
                 state->words);
}

void slk_cuda_enter(const sl_device *device) { (void)cudaSetDevice(slk_cuda_get(device)->index); }

sl_status slk_cuda_launched(sl_device *device, const char *kernel) {
  SL_TRY(slk_cuda_check(device, cudaGetLastError(), kernel));
  slk_cuda_state *state = slk_cuda_get(device);
  return state->sync ? slk_cuda_check(device, cudaStreamSynchronize(state->stream), kernel) : SL_OK;
}

static sl_status wait_for_stream(sl_device *device, const char *what) {
  slk_cuda_state *state = slk_cuda_get(device);
  device->waits++;
  return slk_cuda_check(device, cudaStreamSynchronize(state->stream), what);
}

/* -- Memory -- */

static sl_status cuda_memory_info(sl_device *device, sl_memory_info *out) {
  slk_cuda_enter(device);
  return slk_cuda_check(device, cudaMemGetInfo(&out->free_bytes, &out->total_bytes), "memory_info");
}

static sl_status cuda_alloc(sl_device *device, size_t bytes, void **out) {
  slk_cuda_enter(device);
  *out = NULL;
  cudaError_t error = cudaMalloc(out, bytes > 0 ? bytes : 1);
  if (error != cudaErrorMemoryAllocation) return slk_cuda_check(device, error, "alloc");
  (void)cudaGetLastError();
  *out = NULL;
  sl_memory_info memory = { 0, 0 };
  SL_TRY(cuda_memory_info(device, &memory));
  return sl_fail(SL_ENOMEM, "%s: out of memory: cannot allocate %zu bytes; %zu of %zu bytes are free", device->name,
                 bytes, memory.free_bytes, memory.total_bytes);
}

/* cudaFree waits until the device is idle, so that no kernel loses memory under its hands. */
static void cuda_free(sl_device *device, void *data, size_t bytes) {
  (void)bytes;
  if (data == NULL) return;
  slk_cuda_enter(device);
  device->waits++;
  (void)slk_cuda_check(device, cudaFree(data), "free");
}

sl_status slk_cuda_scratch(sl_device *device, void **out) {
  slk_cuda_state *state = slk_cuda_get(device);
  if (state->scratch == NULL) SL_TRY(cuda_alloc(device, SLK_SCRATCH_BYTES, &state->scratch));
  *out = state->scratch;
  return SL_OK;
}

static sl_status cuda_copy(sl_device *device, void *dst, const void *src, size_t bytes) {
  if (bytes == 0) return SL_OK;
  slk_cuda_enter(device);
  return slk_cuda_check(device, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, slk_cuda_stream(device)),
                        "copy");
}

static sl_status cuda_fill(sl_device *device, void *dst, int byte, size_t bytes) {
  if (bytes == 0) return SL_OK;
  slk_cuda_enter(device);
  return slk_cuda_check(device, cudaMemsetAsync(dst, byte, bytes, slk_cuda_stream(device)), "fill");
}

/* -- From and to the host -- */

/* Makes the next slot the current one; waits only when the device is a whole ring behind. */
static sl_status next_slot(sl_device *device) {
  slk_cuda_state *state = slk_cuda_get(device);
  slk_cuda_uploads *ring = &state->uploads;
  int next = ring->current;
  if (ring->slots[next] != NULL) {
    SL_TRY(slk_cuda_check(device, cudaEventRecord(ring->done[next], state->stream), "copy_from_host"));
    next = (next + 1) % SLK_UPLOAD_SLOTS;
  }
  if (ring->slots[next] == NULL) {
    void *memory;
    SL_TRY(slk_cuda_check(device, cudaHostAlloc(&memory, SLK_UPLOAD_BYTES, cudaHostAllocDefault), "copy_from_host"));
    cudaError_t error = cudaEventCreateWithFlags(&ring->done[next], cudaEventDisableTiming);
    if (error != cudaSuccess) {
      (void)cudaFreeHost(memory);
      return slk_cuda_check(device, error, "copy_from_host");
    }
    ring->slots[next] = static_cast<unsigned char *>(memory);
  } else {
    cudaError_t error = cudaEventQuery(ring->done[next]);
    if (error == cudaErrorNotReady) {
      (void)cudaGetLastError();
      device->waits++;
      error = cudaEventSynchronize(ring->done[next]);
    }
    SL_TRY(slk_cuda_check(device, error, "copy_from_host"));
  }
  ring->current = next;
  ring->used = 0;
  return SL_OK;
}

/* A recording would keep the copy out of the slot, and replays would find there whatever a later upload has left. */
static sl_status refuse_while_recording(const sl_device *device, const char *what) {
  if (!slk_cuda_get(device)->recording) return SL_OK;
  return sl_fail(SL_EUNSUPPORTED, "%s on %s: the host's memory can be no part of a recording", what, device->name);
}

static sl_status cuda_copy_from_host(sl_device *device, void *dst, const void *host, size_t bytes) {
  if (bytes == 0) return SL_OK;
  slk_cuda_enter(device);
  SL_TRY(refuse_while_recording(device, "copy_from_host"));
  slk_cuda_state *state = slk_cuda_get(device);
  slk_cuda_uploads *ring = &state->uploads;
  for (size_t at = 0; at < bytes;) {
    if (ring->slots[ring->current] == NULL || ring->used >= SLK_UPLOAD_BYTES) SL_TRY(next_slot(device));
    size_t part = bytes - at < SLK_UPLOAD_BYTES - ring->used ? bytes - at : SLK_UPLOAD_BYTES - ring->used;
    unsigned char *slot = ring->slots[ring->current] + ring->used;
    memcpy(slot, static_cast<const unsigned char *>(host) + at, part);
    SL_TRY(slk_cuda_check(device,
                          cudaMemcpyAsync(static_cast<unsigned char *>(dst) + at, slot, part, cudaMemcpyHostToDevice,
                                          state->stream),
                          "copy_from_host"));
    ring->used += (part + 63) / 64 * 64;
    at += part;
  }
  return SL_OK;
}

/* Small results pass through pinned memory: a copy into pageable memory costs the driver a staging buffer of its own. */
static sl_status read_host(sl_device *device, void *host, const void *src, size_t bytes, const char *what) {
  SL_TRY(refuse_while_recording(device, what));
  slk_cuda_state *state = slk_cuda_get(device);
  void *to = bytes <= SLK_READ_BYTES ? state->staging : host;
  SL_TRY(slk_cuda_check(device, cudaMemcpyAsync(to, src, bytes, cudaMemcpyDeviceToHost, state->stream), what));
  SL_TRY(wait_for_stream(device, what));
  if (to != host) memcpy(host, to, bytes);
  return SL_OK;
}

sl_status slk_cuda_read_host(sl_device *device, void *host, const void *src, size_t bytes) {
  return read_host(device, host, src, bytes, "read");
}

static sl_status cuda_copy_to_host(sl_device *device, void *host, const void *src, size_t bytes) {
  if (bytes == 0) return SL_OK;
  slk_cuda_enter(device);
  return read_host(device, host, src, bytes, "copy_to_host");
}

static sl_status cuda_sync(sl_device *device) {
  slk_cuda_enter(device);
  return wait_for_stream(device, "sync");
}

/* -- Recordings: CUDA graphs -- */

/* Relaxed: an allocation meanwhile is allowed, it happens at once and is no part of the graph. */
static sl_status cuda_record_begin(sl_device *device) {
  slk_cuda_state *state = slk_cuda_get(device);
  slk_cuda_enter(device);
  if (state->sync) return sl_fail(SL_EUNSUPPORTED, "%s: nothing is recorded under SAELUA_CUDA_SYNC=1", device->name);
  SL_TRY(slk_cuda_check(device, cudaStreamBeginCapture(state->stream, cudaStreamCaptureModeRelaxed), "record_begin"));
  state->recording = true;
  return SL_OK;
}

static sl_status cuda_record_end(sl_device *device, void **recording) {
  *recording = NULL;
  slk_cuda_enter(device);
  slk_cuda_get(device)->recording = false;
  cudaGraph_t graph = NULL;
  SL_TRY(slk_cuda_check(device, cudaStreamEndCapture(slk_cuda_stream(device), &graph), "record_end"));
  cudaGraphExec_t executable = NULL;
  cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  (void)cudaGraphDestroy(graph);
  SL_TRY(slk_cuda_check(device, error, "record_end"));
  *recording = executable;
  return SL_OK;
}

static sl_status cuda_replay(sl_device *device, void *recording) {
  slk_cuda_enter(device);
  return slk_cuda_check(device, cudaGraphLaunch(static_cast<cudaGraphExec_t>(recording), slk_cuda_stream(device)),
                        "replay");
}

static void cuda_free_recording(sl_device *device, void *recording) {
  slk_cuda_enter(device);
  (void)slk_cuda_check(device, cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(recording)), "free_recording");
}

static const char *cuda_last_error(sl_device *device) { return slk_cuda_get(device)->words; }

static const sl_device_table cuda_functions = { cuda_alloc,        cuda_free, cuda_copy, cuda_copy_from_host,
                                                cuda_copy_to_host, cuda_fill, cuda_sync, cuda_memory_info,
                                                cuda_last_error,   cuda_record_begin, cuda_record_end, cuda_replay,
                                                cuda_free_recording };

/* -- Devices -- */

typedef struct {
  bool ready;
  sl_device device;
  slk_cuda_state state;
} device_slot;

static device_slot devices[MAX_DEVICES];
static pthread_mutex_t devices_lock = PTHREAD_MUTEX_INITIALIZER;

/* Why no device of this index can be had; SL_OK when it is there. */
static sl_status find_device(int index) {
  int driver = 0, count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return sl_fail(SL_EUNSUPPORTED,
                   "cuda:%d: no CUDA driver was found (libcuda.so.1); install the NVIDIA driver or use --device cpu",
                   index);
  }
  cudaError_t error = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();
  if (error == cudaErrorInsufficientDriver) {
    return sl_fail(SL_EUNSUPPORTED,
                   "cuda:%d: the driver here is for CUDA %d.%d, this build is for CUDA %d.%d; update the driver or use "
                   "--device cpu",
                   index, driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    return sl_fail(SL_EUNSUPPORTED, "cuda:%d: the CUDA driver sees no GPU%s%s%s; use --device cpu", index,
                   visible ? " (CUDA_VISIBLE_DEVICES is '" : "", visible ? visible : "", visible ? "')" : "");
  }
  if (error != cudaSuccess) {
    return sl_fail(SL_EUNSUPPORTED, "cuda:%d: the CUDA driver does not start: %s", index, cudaGetErrorString(error));
  }
  if (index < 0 || index >= count || index >= MAX_DEVICES) {
    return sl_fail(SL_EUNSUPPORTED, "cuda:%d: this machine has %d CUDA device%s, numbered from 0", index, count,
                   count == 1 ? "" : "s");
  }
  return SL_OK;
}

static sl_status read_attribute(sl_device *device, cudaDeviceAttr attribute, int *out) {
  return slk_cuda_check(device, cudaDeviceGetAttribute(out, attribute, slk_cuda_get(device)->index), "open");
}

static sl_status open_device(sl_device *device) {
  slk_cuda_state *state = slk_cuda_get(device);
  int shared;
  SL_TRY(read_attribute(device, cudaDevAttrComputeCapabilityMajor, &state->compute_major));
  SL_TRY(read_attribute(device, cudaDevAttrComputeCapabilityMinor, &state->compute_minor));
  if (state->compute_major < 8) {
    return sl_fail(SL_EUNSUPPORTED,
                   "%s: this GPU has compute capability %d.%d; the kernels need 8.0 or newer (A100, H100 and later). "
                   "Use --device cpu",
                   device->name, state->compute_major, state->compute_minor);
  }
  SL_TRY(read_attribute(device, cudaDevAttrMultiProcessorCount, &state->multiprocessors));
  SL_TRY(read_attribute(device, cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared));
  state->shared_limit = static_cast<size_t>(shared);
  const char *sync = getenv("SAELUA_CUDA_SYNC");
  state->sync = sync != NULL && strcmp(sync, "1") == 0;
  SL_TRY(slk_cuda_check(device, cudaSetDevice(state->index), "open"));
  SL_TRY(slk_cuda_check(device, cudaHostAlloc(&state->staging, SLK_READ_BYTES, cudaHostAllocDefault), "open"));
  return slk_cuda_check(device, cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking), "open");
}

static sl_status open_slot(int index, device_slot *slot) {
  memset(&slot->state, 0, sizeof slot->state);
  slot->state.index = index;
  sl_device *device = &slot->device;
  snprintf(device->name, sizeof device->name, "cuda:%d", index);
  device->host_memory = false;
  device->tf32 = false;
  device->table = &cuda_functions;
  device->kernels = &slk_cuda_kernels;
  device->state = &slot->state;
  sl_status status = open_device(device);
  slot->ready = status == SL_OK;
  if (status != SL_OK && slot->state.staging != NULL) (void)cudaFreeHost(slot->state.staging);
  return status;
}

extern "C" sl_status sl_cuda_device(int index, sl_device **out) {
  *out = NULL;
  pthread_mutex_lock(&devices_lock);
  sl_status status = SL_OK;
  if (index < 0 || index >= MAX_DEVICES || !devices[index].ready) {
    status = find_device(index);
    if (status == SL_OK) status = open_slot(index, &devices[index]);
  }
  if (status == SL_OK) *out = &devices[index].device;
  pthread_mutex_unlock(&devices_lock);
  return status;
}
