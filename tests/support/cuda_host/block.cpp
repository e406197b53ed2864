/* Runs the threads of a block as fibers, one at a time, and blocks one after another.
 *
 * A thread runs until it waits (barrier, collective, end); the schedule then picks the next. When nobody can run and
 * somebody waits, the block is stuck: the report names who waits where, and who has returned. */
#include <algorithm>
#include <cstdlib>

#include "layer.h"

using namespace cuda_host;

namespace cuda_host {

enum class Where : unsigned char { Running, Barrier, Collective, Returned };

struct Thread : slk_cuda_host_thread {
  Fiber fiber;
  Where where;
  bool fresh; /* its fiber has to start from the top */
  int predicate;
  unsigned mask;
  const char *what;
  slk_cuda_host_site site;
  slk_cuda_host_lane lane;
  slk_cuda_host_combine combine;
  bool orders;
  char order_in, order_out; /* addresses by which TSan learns what a collective orders */
};

struct Block {
  const Launch *launch;
  unsigned n;
  unsigned waiting;               /* at the barrier */
  unsigned live[MAX_WARPS];       /* lanes that have not returned */
  unsigned together[MAX_WARPS];   /* lanes in a collective */
  uint64_t ready[MAX_THREADS / 64];
  int vote;
  uint64_t rounds;                /* barriers passed */
  bool stuck;
};

/* Addresses by which TSan learns what a block's barriers, begin and end order; one record per set. */
struct Order {
  char round[2], begin, end;
};

static Thread thread_sets[SETS][MAX_THREADS], *threads = thread_sets[0];
static Order orders[SETS], *order = orders;
static char grid_begin;
static int set;
static Block block;
static Fiber scheduler;
static bool running;
static Schedule *schedule;

static Thread *self() { return static_cast<Thread *>(slk_cuda_host_self); }
static unsigned index_of(const Thread *t) { return static_cast<unsigned>(t - threads); }
static void set_ready(unsigned i) { block.ready[i / 64] |= uint64_t(1) << (i % 64); }
static void clear_ready(unsigned i) { block.ready[i / 64] &= ~(uint64_t(1) << (i % 64)); }

bool in_kernel() { return running; }
unsigned current_thread() { return index_of(self()); }

std::string where() {
  if (!running) return "";
  const uint3 &b = slk_cuda_host_now.block, &t = slk_cuda_host_self->thread;
  char s[300];
  snprintf(s, sizeof s, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u)", block.launch->name, b.x, b.y, b.z, t.x,
           t.y, t.z);
  return s;
}

/* -- The schedule -- */

uint64_t Schedule::next() { /* splitmix64 */
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

size_t Schedule::pick(size_t n) {
  if (kind == CUDA_HOST_RANDOM || kind == CUDA_HOST_ONE_WARP) return next() % n;
  return kind == CUDA_HOST_REVERSE || kind == CUDA_HOST_ODD_FIRST ? n - 1 : 0;
}

std::vector<uint32_t> Schedule::order(uint32_t n) {
  std::vector<uint32_t> v(n);
  for (uint32_t i = 0; i < n; i++) v[i] = i;
  if (kind == CUDA_HOST_REVERSE || kind == CUDA_HOST_ODD_FIRST) std::reverse(v.begin(), v.end());
  if (kind == CUDA_HOST_RANDOM || kind == CUDA_HOST_ONE_WARP) {
    for (uint32_t i = n; i > 1; i--) std::swap(v[i - 1], v[next() % i]);
  }
  return v;
}

int Schedule::poison() const {
  static const int bytes[] = {0xff, 0x7f, 0xc1, 0x3f, 0x80, 0xff};
  return kind == CUDA_HOST_RANDOM ? bytes[seed % 5] : bytes[kind];
}

/* The first ready thread at or after `from`, going round; MAX_THREADS if none. `keep` masks every word. */
static unsigned first_ready(unsigned from, uint64_t keep) {
  enum { WORDS = MAX_THREADS / 64 };
  for (unsigned i = 0; i <= WORDS; i++) {
    unsigned w = (from / 64 + i) % WORDS;
    uint64_t bits = block.ready[w] & keep;
    if (i == 0) bits &= ~uint64_t(0) << (from % 64);
    if (bits) return w * 64 + static_cast<unsigned>(__builtin_ctzll(bits));
  }
  return MAX_THREADS;
}

static unsigned last_ready() {
  for (unsigned w = MAX_THREADS / 64; w-- > 0;)
    if (block.ready[w]) return w * 64 + 63 - static_cast<unsigned>(__builtin_clzll(block.ready[w]));
  return MAX_THREADS;
}

static unsigned pick_thread(unsigned current) {
  const uint64_t all = ~uint64_t(0);
  unsigned i;
  switch (schedule->kind) {
    case CUDA_HOST_IN_ORDER: return first_ready(0, all);
    case CUDA_HOST_REVERSE: return last_ready();
    case CUDA_HOST_ROUND_ROBIN: return first_ready((current + 1) % MAX_THREADS, all);
    case CUDA_HOST_ODD_FIRST:
      i = first_ready(0, 0xaaaaaaaaaaaaaaaau);
      return i < MAX_THREADS ? i : first_ready(0, all);
    case CUDA_HOST_ONE_WARP: return first_ready((schedule->seed * 7 % ((block.n + 31) / 32)) * 32, all);
    default: return first_ready(static_cast<unsigned>(schedule->next() % block.n), all);
  }
}

/* -- Switching -- */

static void go_on() { /* the running thread stops here; returns when it is picked again */
  Thread *me = self();
  CUDA_HOST_RELEASE(&order->end); /* the thread may be left here for good */
  unsigned i = pick_thread(index_of(me));
  if (i == index_of(me)) return;
  state().stats.switches++;
  if (i == MAX_THREADS) { /* all have returned, or the block is stuck */
    fiber_switch(&me->fiber, &scheduler);
    return;
  }
  slk_cuda_host_self = &threads[i];
  fiber_switch(&me->fiber, &threads[i].fiber);
}

static bool complete(unsigned warp, unsigned lane);

static void thread_main() {
  fiber_started();
  for (;;) {
    Thread *me = self();
    CUDA_HOST_ACQUIRE(&order->begin);
    block.launch->thread();
    unsigned i = index_of(me), warp = i / WARP;
    me->where = Where::Returned;
    clear_ready(i);
    block.live[warp] &= ~(1u << (i % WARP));
    /* Lanes that waited only for this one go on: the device does not wait for returned lanes either. */
    for (unsigned lane = 0; lane < WARP; lane++)
      if (block.together[warp] >> lane & 1u) complete(warp, lane);
    go_on();
  }
}

void give_up(const char *format, ...) {
  char text[600];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  report(where() + ": " + text);
  block.stuck = true;
  self()->where = Where::Running; /* its fiber is left in the middle */
  CUDA_HOST_RELEASE(&order->end);
  fiber_switch(&self()->fiber, &scheduler);
}

/* -- Stuck blocks -- */

static std::string ranges(const std::vector<unsigned> &v) {
  std::string s;
  for (size_t i = 0; i < v.size();) {
    size_t j = i;
    while (j + 1 < v.size() && v[j + 1] == v[j] + 1) j++;
    s += (s.empty() ? "" : ",") + std::to_string(v[i]) + (j > i ? "-" + std::to_string(v[j]) : "");
    i = j + 1;
  }
  return s;
}

static std::string describe(const Thread &t) {
  if (t.where == Where::Returned) return "have returned";
  char s[400], mask[40] = "";
  if (t.where == Where::Collective) snprintf(mask, sizeof mask, "(mask 0x%08x) ", t.mask);
  const char *file = strrchr(t.site.file, '/');
  snprintf(s, sizeof s, "wait at %s %s%s:%d", t.what, mask, file ? file + 1 : t.site.file, t.site.line);
  return s;
}

static void report_stuck() {
  std::vector<std::pair<std::string, std::vector<unsigned>>> groups;
  for (unsigned i = 0; i < block.n; i++) {
    std::string s = describe(threads[i]);
    auto g = std::find_if(groups.begin(), groups.end(), [&](const auto &x) { return x.first == s; });
    if (g == groups.end()) g = groups.insert(g, {s, {}});
    g->second.push_back(i);
  }
  const uint3 &b = slk_cuda_host_now.block;
  char head[300];
  snprintf(head, sizeof head, "kernel %s, block (%u, %u, %u) is stuck", block.launch->name, b.x, b.y, b.z);
  std::string text = head;
  for (size_t i = 0; i < groups.size(); i++)
    text += (i ? "; threads " : ": threads ") + ranges(groups[i].second) + " " + groups[i].first;
  report(text);
}

/* -- Grids -- */

static void prepare_threads(const Launch &l) {
  static Fiber *fibers[MAX_THREADS];
  block.n = l.threads.x * l.threads.y * l.threads.z;
  for (unsigned i = 0; i < MAX_THREADS; i++) fibers[i] = &threads[i].fiber;
  fibers_prepare(set, fibers, block.n, thread_main);
  memset(block.live, 0, sizeof block.live);
  memset(block.together, 0, sizeof block.together);
  memset(block.ready, 0, sizeof block.ready);
  block.waiting = 0;
  for (unsigned i = 0; i < block.n; i++) {
    Thread &t = threads[i];
    t.thread = make_uint3(i % l.threads.x, i / l.threads.x % l.threads.y, i / (l.threads.x * l.threads.y));
    if (t.fresh) fiber_restart(&t.fiber, thread_main);
    t.fresh = false;
    t.where = Where::Running;
    block.live[i / WARP] |= 1u << (i % WARP);
    set_ready(i);
  }
}

static void run_block() {
  const Launch &l = *block.launch;
  CUDA_HOST_ACQUIRE(&grid_begin);
  CUDA_HOST_ACQUIRE(&order->end); /* of the last block in this set, whose memory this one takes over */
  prepare_threads(l);
  scheduler = Fiber();
  fiber_adopt(&scheduler);
  slk_cuda_host_now.dynamic_shared = shared_begin(set, l.shared);
  CUDA_HOST_RELEASE(&order->begin);
  block.stuck = false;
  running = true;
  slk_cuda_host_self = &threads[pick_thread(0)];
  fiber_switch(&scheduler, &self()->fiber);
  running = false;
  unsigned returned = 0;
  for (unsigned i = 0; i < block.n; i++) {
    threads[i].fresh = threads[i].where != Where::Returned;
    returned += !threads[i].fresh;
  }
  if (returned < block.n && !block.stuck) {
    block.stuck = true;
    report_stuck();
  }
  for (unsigned i = 0; i < block.n; i++) cp_async_forget(i);
  CUDA_HOST_ACQUIRE(&order->end);
  shared_end(set, l);
  CUDA_HOST_RELEASE(&order->end); /* reports made here are read by the host */
}

bool run_grid(const Launch &l) {
  State &s = state();
  schedule = &s.schedule;
  block.launch = &l;
  slk_cuda_host_now.threads = l.threads;
  slk_cuda_host_now.blocks = l.blocks;
  slk_cuda_host_now.yield_at_atomics = schedule->kind == CUDA_HOST_RANDOM;
  CUDA_HOST_RELEASE(&grid_begin);
  for (uint32_t b : schedule->order(l.blocks.x * l.blocks.y * l.blocks.z)) {
    slk_cuda_host_now.block = make_uint3(b % l.blocks.x, b / l.blocks.x % l.blocks.y, b / (l.blocks.x * l.blocks.y));
    threads = thread_sets[set];
    order = &orders[set];
    run_in_set(set, run_block);
    set = (set + 1) % SETS;
    if (block.stuck || s.sticky != cudaSuccess) break;
  }
  for (Order &o : orders) CUDA_HOST_ACQUIRE(&o.end);
  check_guards(l.name);
  return s.sticky == cudaSuccess;
}

/* -- Collectives -- */

/* Lets the group of `lane` go on if all of its lanes have come. */
static bool complete(unsigned warp, unsigned lane) {
  Thread *base = &threads[warp * WARP];
  const Thread &first = base[lane];
  unsigned need = first.mask & block.live[warp];
  if ((need & block.together[warp]) != need) return false;
  const slk_cuda_host_lane *lanes[WARP] = {};
  for (unsigned i = 0; i < WARP; i++) {
    if (!(need >> i & 1u)) continue;
    const Thread &t = base[i];
    if (t.mask != first.mask || strcmp(t.what, first.what) || t.site.line != first.site.line ||
        strcmp(t.site.file, first.site.file)) {
      return false;
    }
    lanes[i] = &t.lane;
  }
  char error[200];
  if (first.combine && !first.combine(lanes, error, sizeof error)) {
    give_up("%s at %s:%d: %s", first.what, first.site.file, first.site.line, error);
    return false;
  }
  for (unsigned i = 0; i < WARP && first.orders; i++)
    if (need >> i & 1u) CUDA_HOST_ACQUIRE(&base[i].order_in);
  for (unsigned i = 0; i < WARP; i++) {
    if (!(need >> i & 1u)) continue;
    if (first.orders) CUDA_HOST_RELEASE(&base[i].order_out);
    base[i].where = Where::Running;
    set_ready(warp * WARP + i);
  }
  block.together[warp] &= ~need;
  return true;
}

}  // namespace cuda_host

slk_cuda_host_thread *slk_cuda_host_self;
slk_cuda_host_block slk_cuda_host_now;

void slk_cuda_host_collective(const char *what, unsigned mask, slk_cuda_host_lane lane, slk_cuda_host_combine combine,
                              bool ordering, slk_cuda_host_site site) {
  Thread *me = self();
  unsigned i = index_of(me), warp = i / WARP;
  if (!(mask >> (i % WARP) & 1u)) {
    give_up("%s at %s:%d: the mask 0x%08x lacks the calling lane %u", what, site.file, site.line, mask, i % WARP);
  }
  me->what = what, me->mask = mask, me->lane = lane, me->combine = combine;
  me->site = site, me->orders = ordering;
  me->where = Where::Collective;
  clear_ready(i);
  block.together[warp] |= 1u << (i % WARP);
  if (ordering) CUDA_HOST_RELEASE(&me->order_in);
  complete(warp, i % WARP);
  go_on();
  if (ordering) CUDA_HOST_ACQUIRE(&me->order_out);
}

int slk_cuda_host_barrier(slk_cuda_host_vote vote, int predicate, slk_cuda_host_site site) {
  static const char *const names[] = {"__syncthreads", "__syncthreads_or", "__syncthreads_and", "__syncthreads_count"};
  Thread *me = self();
  me->what = names[vote], me->site = site, me->predicate = predicate != 0;
  me->where = Where::Barrier;
  clear_ready(index_of(me));
  uint64_t round = block.rounds;
  CUDA_HOST_RELEASE(&order->round[round & 1]);
  if (++block.waiting == block.n) {
    int count = 0;
    bool same = true;
    for (unsigned i = 0; i < block.n; i++) {
      const Thread &t = threads[i];
      count += t.predicate;
      same = same && t.what == me->what && t.site.line == site.line && !strcmp(t.site.file, site.file);
    }
    if (same) {
      block.vote = vote == SLK_HOST_OR ? count != 0 : vote == SLK_HOST_AND ? count == static_cast<int>(block.n) : count;
      block.waiting = 0;
      block.rounds++;
      for (unsigned i = 0; i < block.n; i++) threads[i].where = Where::Running, set_ready(i);
    }
  }
  go_on();
  CUDA_HOST_ACQUIRE(&order->round[round & 1]);
  return block.vote;
}

void slk_cuda_host_yield(void) { go_on(); }

void slk_cuda_host_misaligned(const void *p, size_t bytes) {
  if (in_kernel()) give_up("a vector of %zu bytes is read or written at %p, which is misaligned", bytes, p);
  report("host code reads or writes a vector at a misaligned address");
}

void slk_cuda_host_fence(void) {
  static char all;
  CUDA_HOST_RELEASE(&all);
  CUDA_HOST_ACQUIRE(&all);
  (void)all;
}
