/* Copies and fills. They run in stream order at the last legal moment; every end of them is checked against the
 * buffer it lies in, so that a wrong direction or size is found where it is asked for. */
#include "layer.h"

using namespace cuda_host;
#define LOCK std::lock_guard<std::recursive_mutex> guard(state().lock)

namespace {

struct End {
  bool device;
  size_t room;
};

End end_of(const void *p) {
  End e = {false, 0};
  e.device = find_device(p, &e.room, nullptr);
  return e;
}

bool fits(const char *what, const End &e, size_t bytes, const char *verb) {
  if (!e.device || bytes <= e.room) return true;
  char text[200];
  snprintf(text, sizeof text, "%s %s %zu bytes where the device buffer has %zu left", what, verb, bytes, e.room);
  report(text);
  return false;
}

cudaError_t finish(const std::shared_ptr<Stream> &s) {
  state().stats.waits++;
  run_until({s, s->issued});
  return state().sticky;
}

/* rows of `width` bytes; a plain copy has one row. */
struct Copy {
  void *to;
  const void *from;
  size_t to_pitch, from_pitch, width, rows;
};

void run_copy(const Copy &c) {
  for (size_t i = 0; i < c.rows; i++) {
    memmove(static_cast<char *>(c.to) + i * c.to_pitch, static_cast<const char *>(c.from) + i * c.from_pitch, c.width);
  }
}

cudaError_t copy(const char *what, const Copy &c, cudaMemcpyKind kind, cudaStream_t stream, bool async) {
  std::shared_ptr<Stream> s = stream_of(stream);
  if (!s) return cudaErrorInvalidResourceHandle;
  if (c.width == 0 || c.rows == 0) return cudaSuccess;
  if (!c.to || !c.from) return cudaErrorInvalidValue;
  End to = end_of(c.to), from = end_of(c.from);
  if (kind == cudaMemcpyDefault) {
    kind = from.device ? (to.device ? cudaMemcpyDeviceToDevice : cudaMemcpyDeviceToHost)
                       : (to.device ? cudaMemcpyHostToDevice : cudaMemcpyHostToHost);
  }
  bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (to.device != to_device || from.device != from_device) return cudaErrorInvalidValue;
  if (!fits(what, to, (c.rows - 1) * c.to_pitch + c.width, "writes")) return cudaErrorInvalidValue;
  if (!fits(what, from, (c.rows - 1) * c.from_pitch + c.width, "reads")) return cudaErrorInvalidValue;
  state().stats.copies++;
  bool pageable_from = !from.device && !find_pinned(c.from), pageable_to = !to.device && !find_pinned(c.to);
  cudaError_t error;
  if (async && pageable_from && !s->capture) { /* staged before the call returns, in the real runtime as well */
    Copy staged = c;
    auto bytes = std::make_shared<std::vector<char>>(c.rows * c.width);
    staged.to = bytes->data(), staged.to_pitch = c.width;
    run_copy(staged);
    staged = c;
    staged.from_pitch = c.width;
    error = submit(stream, [staged, bytes]() mutable {
      staged.from = bytes->data();
      run_copy(staged);
    });
  } else {
    error = submit(stream, [c]() { run_copy(c); });
  }
  if (error != cudaSuccess || s->capture) return error;
  if (kind == cudaMemcpyDeviceToDevice) return error;
  /* An asynchronous copy to pageable memory returns when it is done: a hidden wait, and counted. */
  return !async || pageable_to ? finish(s) : error;
}

cudaError_t set(const char *what, void *p, int value, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  End e = end_of(p);
  if (!e.device && !find_pinned(p)) return cudaErrorInvalidValue;
  if (!fits(what, e, bytes, "sets")) return cudaErrorInvalidValue;
  state().stats.sets++;
  return submit(stream, [=]() { memset(p, value, bytes); });
}

}  // namespace

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t stream) {
  LOCK;
  return fail(copy("cudaMemcpyAsync", {to, from, 0, 0, n, 1}, kind, stream, true));
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) {
  LOCK;
  if (capture_forbids()) return fail(cudaErrorStreamCaptureImplicit);
  return fail(copy("cudaMemcpy", {to, from, 0, 0, n, 1}, kind, nullptr, false));
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows,
                              enum cudaMemcpyKind kind, cudaStream_t stream) {
  LOCK;
  if (width > to_pitch || width > from_pitch) return fail(cudaErrorInvalidPitchValue);
  return fail(copy("cudaMemcpy2DAsync", {to, from, to_pitch, from_pitch, width, rows}, kind, stream, true));
}
cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows,
                         enum cudaMemcpyKind kind) {
  LOCK;
  if (capture_forbids()) return fail(cudaErrorStreamCaptureImplicit);
  if (width > to_pitch || width > from_pitch) return fail(cudaErrorInvalidPitchValue);
  return fail(copy("cudaMemcpy2D", {to, from, to_pitch, from_pitch, width, rows}, kind, nullptr, false));
}
cudaError_t cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t n, cudaStream_t stream) {
  LOCK;
  return fail(copy("cudaMemcpyPeerAsync", {to, from, 0, 0, n, 1}, cudaMemcpyDeviceToDevice, stream, true));
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t stream) {
  LOCK;
  return fail(set("cudaMemsetAsync", p, value, n, stream));
}
cudaError_t cudaMemset(void *p, int value, size_t n) {
  LOCK;
  if (capture_forbids()) return fail(cudaErrorStreamCaptureImplicit);
  return fail(set("cudaMemset", p, value, n, nullptr));
}
