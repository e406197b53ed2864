/* Stream capture and graphs: what is captured is kept as nodes with what each follows, and replayed in an order that
 * the schedule picks among the legal ones. */
#include <algorithm>

#include "layer.h"

using namespace cuda_host;
#define LOCK std::lock_guard<std::recursive_mutex> guard(state().lock)

namespace cuda_host {

std::vector<Capture *> captures;

void capture_op(Stream *s, std::function<void()> run) {
  s->capture->nodes.push_back({std::move(run), s->tail});
  s->tail.assign(1, static_cast<int>(s->capture->nodes.size()) - 1);
}

}  // namespace cuda_host

namespace {

typedef std::shared_ptr<std::vector<Node>> Nodes;
struct Graph {
  Nodes nodes;
};

/* Everything that `tail` follows, itself included. */
std::vector<bool> history(const std::vector<Node> &nodes, const std::vector<int> &tail) {
  std::vector<bool> in(nodes.size());
  for (int i : tail) in[static_cast<size_t>(i)] = true;
  for (size_t i = nodes.size(); i-- > 0;)
    for (int j : nodes[i].after)
      if (in[i]) in[static_cast<size_t>(j)] = true;
  return in;
}

void replay(const std::vector<Node> &nodes) {
  std::vector<bool> done(nodes.size());
  for (size_t ran = 0; ran < nodes.size() && state().sticky == cudaSuccess; ran++) {
    std::vector<size_t> ready;
    for (size_t i = 0; i < nodes.size(); i++) {
      bool ok = !done[i];
      for (int j : nodes[i].after) ok = ok && done[static_cast<size_t>(j)];
      if (ok) ready.push_back(i);
    }
    size_t i = ready[state().schedule.pick(ready.size())];
    nodes[i].run();
    done[i] = true;
  }
}

}  // namespace

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  LOCK;
  std::shared_ptr<Stream> s = stream_of(stream);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  if (!stream || stream == cudaStreamLegacy) return fail(cudaErrorStreamCaptureUnsupported);
  if (s->capture) return fail(cudaErrorIllegalState);
  Capture *c = new Capture;
  c->origin = s;
  c->mode = mode;
  c->joined.push_back(s);
  s->capture = c;
  s->tail.clear();
  captures.push_back(c);
  return fail(cudaSuccess);
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  LOCK;
  std::shared_ptr<Stream> s = stream_of(stream);
  if (graph) *graph = nullptr;
  if (!s || !graph) return fail(cudaErrorInvalidValue);
  if (!s->capture) return fail(cudaErrorIllegalState);
  Capture *c = s->capture;
  if (c->origin != s) return fail(cudaErrorStreamCaptureUnmatched);
  cudaError_t error = c->broken ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
  std::vector<bool> covered = history(c->nodes, s->tail);
  for (auto &other : c->joined) {
    for (int i : other->tail)
      if (!covered[static_cast<size_t>(i)] && error == cudaSuccess) error = cudaErrorStreamCaptureUnjoined;
    other->capture = nullptr;
    other->tail.clear();
  }
  if (error == cudaSuccess) {
    Graph *g = new Graph;
    g->nodes = std::make_shared<std::vector<Node>>(std::move(c->nodes));
    *graph = reinterpret_cast<cudaGraph_t>(g);
  }
  captures.erase(std::find(captures.begin(), captures.end(), c));
  delete c;
  return fail(error);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  LOCK;
  std::shared_ptr<Stream> s = stream_of(stream);
  if (!s || !status) return fail(cudaErrorInvalidValue);
  *status = !s->capture           ? cudaStreamCaptureStatusNone
            : s->capture->broken ? cudaStreamCaptureStatusInvalidated
                                  : cudaStreamCaptureStatusActive;
  return fail(cudaSuccess);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
  LOCK;
  if (!exec || !graph) return fail(cudaErrorInvalidValue);
  Graph *e = new Graph;
  e->nodes = reinterpret_cast<Graph *>(graph)->nodes;
  *exec = reinterpret_cast<cudaGraphExec_t>(e);
  return fail(cudaSuccess);
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph, cudaGraphExecUpdateResultInfo *info) {
  LOCK;
  if (!exec || !graph) return fail(cudaErrorInvalidValue);
  Nodes &old = reinterpret_cast<Graph *>(exec)->nodes, now = reinterpret_cast<Graph *>(graph)->nodes;
  bool same = old->size() == now->size();
  for (size_t i = 0; same && i < now->size(); i++) same = (*old)[i].after == (*now)[i].after;
  if (info) {
    memset(static_cast<void *>(info), 0, sizeof *info);
    info->result = same ? cudaGraphExecUpdateSuccess : cudaGraphExecUpdateErrorTopologyChanged;
  }
  if (!same) return fail(cudaErrorGraphExecUpdateFailure);
  old = now;
  return fail(cudaSuccess);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  LOCK;
  if (!exec) return fail(cudaErrorInvalidValue);
  Nodes nodes = reinterpret_cast<Graph *>(exec)->nodes;
  state().stats.graph_launches++;
  return fail(submit(stream, [nodes]() { replay(*nodes); }));
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
  LOCK;
  if (!graph || !count || nodes) return fail(cudaErrorInvalidValue); /* the count only */
  *count = reinterpret_cast<Graph *>(graph)->nodes->size();
  return fail(cudaSuccess);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  LOCK;
  delete reinterpret_cast<Graph *>(exec);
  return fail(cudaSuccess);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  LOCK;
  delete reinterpret_cast<Graph *>(graph);
  return fail(cudaSuccess);
}
