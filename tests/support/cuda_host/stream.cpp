/* Streams, events and launches: queues that are worked off only when something has to be true.
 *
 * A wait for a stream runs that stream up to the place waited for, and of the others only what it was told to follow
 * (events, the legacy default stream). Whatever a program forgot to wait for has therefore not happened yet. */
#include <algorithm>
#include <chrono>
#include <map>

#include "layer.h"

using namespace cuda_host;
#define LOCK std::lock_guard<std::recursive_mutex> guard(state().lock)

namespace cuda_host {

static std::map<cudaStream_t, std::shared_ptr<Stream>> streams;
static std::shared_ptr<Stream> legacy[8], per_thread[8];

static std::shared_ptr<Stream> &standing(std::shared_ptr<Stream> *of) {
  std::shared_ptr<Stream> &s = of[current_device()];
  if (!s) {
    s = std::make_shared<Stream>();
    s->device = current_device();
  }
  return s;
}

static bool is_legacy(const Stream *s) { return s == legacy[s->device].get(); }

std::shared_ptr<Stream> stream_of(cudaStream_t handle) {
  if (!handle || handle == cudaStreamLegacy) return standing(legacy);
  if (handle == cudaStreamPerThread) return standing(per_thread);
  auto i = streams.find(handle);
  return i == streams.end() || i->second->destroyed ? nullptr : i->second;
}

static std::vector<std::shared_ptr<Stream>> all_streams() {
  std::vector<std::shared_ptr<Stream>> all;
  for (int i = 0; i < 8; i++) {
    if (legacy[i]) all.push_back(legacy[i]);
    if (per_thread[i]) all.push_back(per_thread[i]);
  }
  for (auto &i : streams) all.push_back(i.second);
  return all;
}

static void step(const std::shared_ptr<Stream> &s) { /* the next piece of work, after all that it follows */
  Op op = std::move(s->queue.front());
  s->queue.pop_front();
  for (const Ticket &t : op.after) run_until(t);
  if (state().sticky == cudaSuccess) op.run();
  s->done++;
}

void run_until(const Ticket &t) {
  if (!t.stream) return;
  while (t.stream->done < t.seq) step(t.stream);
}

void drain() {
  for (;;) {
    std::vector<std::shared_ptr<Stream>> busy;
    for (auto &s : all_streams())
      if (!s->queue.empty()) busy.push_back(s);
    if (busy.empty()) break;
    step(busy[state().schedule.pick(busy.size())]);
  }
  for (auto i = streams.begin(); i != streams.end();) i = i->second->destroyed ? streams.erase(i) : std::next(i);
}

/* `after`: what it follows beside the work before it in its stream. */
static cudaError_t submit_after(cudaStream_t handle, std::function<void()> run, std::vector<Ticket> after) {
  State &state_now = state();
  if (state_now.sticky != cudaSuccess) return state_now.sticky;
  std::shared_ptr<Stream> s = stream_of(handle);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  if (s->capture) {
    capture_op(s.get(), std::move(run));
    return cudaSuccess;
  }
  if (is_legacy(s.get())) {
    for (auto &other : all_streams()) {
      if (other == s || !other->blocking || other->device != s->device) continue;
      if (other->capture) {
        other->capture->broken = true;
        return fail(cudaErrorStreamCaptureImplicit);
      }
      after.push_back({other, other->issued});
    }
  } else if (s->blocking && legacy[s->device]) {
    after.push_back({legacy[s->device], legacy[s->device]->issued});
  }
  s->queue.push_back({std::move(run), std::move(after)});
  s->issued++;
  if (state_now.eager) run_until({s, s->issued});
  return state_now.sticky;
}

cudaError_t submit(cudaStream_t stream, std::function<void()> run) { return submit_after(stream, std::move(run), {}); }

bool capture_forbids() {
  for (Capture *c : captures) {
    if (c->mode == cudaStreamCaptureModeRelaxed) continue;
    c->broken = true;
    return true;
  }
  return false;
}

}  // namespace cuda_host

/* -- Streams -- */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  LOCK;
  if (!stream || flags > cudaStreamNonBlocking) return fail(cudaErrorInvalidValue);
  std::shared_ptr<Stream> s = std::make_shared<Stream>();
  s->blocking = flags != cudaStreamNonBlocking;
  s->flags = flags, s->priority = priority, s->device = current_device();
  *stream = reinterpret_cast<cudaStream_t>(s.get());
  streams[*stream] = s;
  return fail(cudaSuccess);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) {
  return cudaStreamCreateWithPriority(s, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithPriority(s, cudaStreamDefault, 0); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) { /* what it holds still runs, at some later wait */
  LOCK;
  auto i = streams.find(stream);
  if (i == streams.end() || i->second->destroyed) return fail(cudaErrorInvalidResourceHandle);
  if (i->second->capture) return fail(cudaErrorStreamCaptureUnsupported);
  i->second->destroyed = true;
  if (i->second->queue.empty()) streams.erase(i);
  return fail(cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  LOCK;
  std::shared_ptr<Stream> s = stream_of(stream);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  if (s->capture) s->capture->broken = true;
  if (s->capture || capture_forbids()) return fail(cudaErrorStreamCaptureUnsupported);
  state().stats.waits++;
  /* A wait for the legacy stream also covers blocking streams that it would follow. */
  if (is_legacy(s.get())) submit(stream, []() {});
  run_until({s, s->issued});
  return fail(cudaSuccess);
}

cudaError_t cudaStreamQuery(cudaStream_t stream) { /* one step of progress a call, so that polling ends */
  LOCK;
  std::shared_ptr<Stream> s = stream_of(stream);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  if (s->capture) return fail(cudaErrorStreamCaptureUnsupported);
  if (s->queue.empty()) return fail(cudaSuccess);
  step(s);
  return cudaErrorNotReady;
}

cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned *flags) {
  LOCK;
  if (!stream_of(stream)) return fail(cudaErrorInvalidResourceHandle);
  *flags = stream_of(stream)->flags;
  return fail(cudaSuccess);
}
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
  LOCK;
  if (!stream_of(stream)) return fail(cudaErrorInvalidResourceHandle);
  *priority = stream_of(stream)->priority;
  return fail(cudaSuccess);
}

cudaError_t cudaDeviceSynchronize(void) {
  LOCK;
  if (capture_forbids()) return fail(cudaErrorStreamCaptureUnsupported);
  state().stats.waits++;
  drain();
  return fail(state().sticky);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t f, void *data) {
  LOCK;
  return fail(submit(stream, [f, data]() { f(data); }));
}

/* -- Events: each record is a place in a stream, or nodes of a graph that is being captured -- */

namespace {
struct Record {
  Ticket ticket;
  bool timed = false;
  std::chrono::steady_clock::time_point time;
  Capture *capture = nullptr;
  std::vector<int> nodes;
};
struct Event {
  std::shared_ptr<Record> record;
  unsigned flags = 0;
};
Event *event_of(cudaEvent_t e) { return reinterpret_cast<Event *>(e); }
bool done(const Record &r) { return !r.ticket.stream || r.ticket.stream->done >= r.ticket.seq; }
}  // namespace

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  LOCK;
  if (!event) return fail(cudaErrorInvalidValue);
  Event *e = new Event;
  e->flags = flags;
  *event = reinterpret_cast<cudaEvent_t>(e);
  return fail(cudaSuccess);
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  LOCK;
  if (!event) return fail(cudaErrorInvalidResourceHandle);
  delete event_of(event);
  return fail(cudaSuccess);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  LOCK;
  std::shared_ptr<Stream> s = stream_of(stream);
  if (!s || !event) return fail(cudaErrorInvalidResourceHandle);
  std::shared_ptr<Record> r = std::make_shared<Record>();
  event_of(event)->record = r;
  if (s->capture) {
    r->capture = s->capture;
    r->nodes = s->tail;
    return fail(cudaSuccess);
  }
  cudaError_t error = submit(stream, [r]() { r->timed = true, r->time = std::chrono::steady_clock::now(); });
  r->ticket = {s, s->issued};
  return fail(error);
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  LOCK;
  std::shared_ptr<Stream> s = stream_of(stream);
  if (!s || !event) return fail(cudaErrorInvalidResourceHandle);
  std::shared_ptr<Record> r = event_of(event)->record;
  if (!r) return fail(cudaSuccess); /* never recorded: nothing to wait for */
  if (r->capture) {                 /* the stream joins the capture */
    if (std::find(captures.begin(), captures.end(), r->capture) == captures.end() ||
        (s->capture && s->capture != r->capture)) {
      return fail(cudaErrorStreamCaptureIsolation);
    }
    if (!s->capture) {
      s->capture = r->capture;
      s->capture->joined.push_back(s);
    }
    s->tail.insert(s->tail.end(), r->nodes.begin(), r->nodes.end());
    return fail(cudaSuccess);
  }
  if (s->capture) {
    s->capture->broken = true;
    return fail(cudaErrorStreamCaptureIsolation);
  }
  return fail(submit_after(stream, []() {}, {r->ticket}));
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  LOCK;
  if (!event) return fail(cudaErrorInvalidResourceHandle);
  std::shared_ptr<Record> r = event_of(event)->record;
  if (capture_forbids()) return fail(cudaErrorStreamCaptureUnsupported);
  if (r && r->capture) return fail(cudaErrorCapturedEvent);
  state().stats.waits++;
  if (r) run_until(r->ticket);
  return fail(cudaSuccess);
}

cudaError_t cudaEventQuery(cudaEvent_t event) { /* one step of progress a call, so that polling ends */
  LOCK;
  if (!event) return fail(cudaErrorInvalidResourceHandle);
  std::shared_ptr<Record> r = event_of(event)->record;
  if (r && r->capture) return fail(cudaErrorCapturedEvent);
  if (!r || done(*r)) return fail(cudaSuccess);
  step(r->ticket.stream);
  return cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
  LOCK;
  if (!ms || !start || !end) return fail(cudaErrorInvalidResourceHandle);
  Event *a = event_of(start), *b = event_of(end);
  if (!a->record || !b->record || ((a->flags | b->flags) & cudaEventDisableTiming))
    return fail(cudaErrorInvalidResourceHandle);
  if (!done(*a->record) || !done(*b->record)) return cudaErrorNotReady;
  *ms = std::chrono::duration<float, std::milli>(b->record->time - a->record->time).count();
  return fail(cudaSuccess);
}
