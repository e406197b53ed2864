/* The CUDA backend against the CPU: the same arguments on both devices, results side by side.
 *
 * The CPU's kernels are the reference (they have their own tests against float64 loops). The other device is whatever
 * sl_cuda_device(0) hands out: a GPU, or the layer of tests/support/cuda_host that runs the same sources on the CPU;
 * a test does not know which. Where there is neither, tests are skipped, unless SAELUA_REQUIRE_CUDA is set.
 *
 *   pair p = pair_open();
 *   block *x = pair_floats(&p, n, 1.0f, 7), *y = pair_block(&p, n * sizeof(float));
 *   for (int side = 0; side < 2; side++) {
 *     sl_softmax_args args = { .x = AT(x, side), .y = AT(y, side), .rows = 1, .n = n };
 *     PAIR_RUN(&p, side, softmax, &args);
 *   }
 *   pair_check_close(&p, "softmax", y, 1e-6);
 *   pair_close(&p);
 *
 * Blocks belong to the pair. Each lies between two guards, which every comparison checks, and holds other poison on
 * either device before it is written: what a kernel leaves out shows. */
#ifndef SL_TEST_DEVICE_PAIR_H
#define SL_TEST_DEVICE_PAIR_H

#include "numbers.h"

enum { PAIR_CPU, PAIR_CUDA, PAIR_GUARD = 256, PAIR_BLOCKS = 256 };

typedef struct {
  void *at[2];         /* device pointers: what kernels get; AT */
  void *base[2];       /* what was allocated: guard, data, guard */
  size_t bytes, shift; /* shift: bytes by which the data lies off its alignment */
  unsigned char *copy; /* [guard, data, guard] of the CUDA side, filled by pair_fetch */
} block;

typedef struct {
  sl_device *devices[2];
  block *blocks[PAIR_BLOCKS];
  int n_blocks;
} pair;

#define AT(block_, side) ((block_)->at[side])

static inline pair pair_open(void) {
  pair p;
  memset(&p, 0, sizeof p);
  p.devices[PAIR_CPU] = sl_cpu_device();
  sl_status status = sl_cuda_device(0, &p.devices[PAIR_CUDA]);
  if (status == SL_EUNSUPPORTED && getenv("SAELUA_REQUIRE_CUDA") == NULL) skip();
  if (status != SL_OK) fail_msg("sl_cuda_device: %s", sl_last_error());
  return p;
}

/* An uninitialised block of `bytes`, `shift` bytes off a 256-byte border (a multiple of the element size). */
static inline block *pair_block_shifted(pair *p, size_t bytes, size_t shift) {
  assert_true(p->n_blocks < PAIR_BLOCKS);
  block *b = (block *)calloc(1, sizeof *b);
  assert_non_null(b);
  b->bytes = bytes, b->shift = shift;
  for (int side = 0; side < 2; side++) {
    sl_device *device = p->devices[side];
    size_t whole = bytes + shift + 2 * PAIR_GUARD;
    CHECK(device->table->alloc(device, whole, &b->base[side]));
    CHECK(device->table->fill(device, b->base[side], side == PAIR_CPU ? 0x3c : 0xd6, whole));
    b->at[side] = (char *)b->base[side] + PAIR_GUARD + shift;
  }
  p->blocks[p->n_blocks++] = b;
  return b;
}
static inline block *pair_block(pair *p, size_t bytes) { return pair_block_shifted(p, bytes, 0); }

/* The same host bytes to both sides. */
static inline void pair_put(pair *p, block *b, const void *host) {
  for (int side = 0; side < 2 && b->bytes > 0; side++)
    CHECK(p->devices[side]->table->copy_from_host(p->devices[side], b->at[side], host, b->bytes));
}
static inline block *pair_of(pair *p, const void *host, size_t bytes) {
  block *b = pair_block(p, bytes);
  pair_put(p, b, host);
  return b;
}
/* n floats in [-scale, scale), `shift` floats off alignment. */
static inline block *pair_floats_shifted(pair *p, int64_t n, float scale, uint64_t seed, int shift) {
  float *x = make_numbers(n, scale, seed);
  block *b = pair_block_shifted(p, (size_t)n * sizeof *x, (size_t)shift * sizeof *x);
  pair_put(p, b, x);
  free(x);
  return b;
}
static inline block *pair_floats(pair *p, int64_t n, float scale, uint64_t seed) {
  return pair_floats_shifted(p, n, scale, seed, 0);
}
/* n ids in [0, bound). */
static inline block *pair_ids(pair *p, int64_t n, int32_t bound, uint64_t seed) {
  block *b = pair_block(p, (size_t)n * sizeof(int32_t));
  int32_t *ids = (int32_t *)calloc((size_t)(n > 0 ? n : 1), sizeof *ids);
  uint64_t state = seed * 2654435761u + 99;
  assert_non_null(ids);
  for (int64_t i = 0; i < n; i++) {
    double unit = ((double)next_number(&state) + 1) / 2;
    ids[i] = (int32_t)(unit * bound);
  }
  pair_put(p, b, ids);
  free(ids);
  return b;
}

/* Runs a kernel of one side; an empty slot fails. */
#define PAIR_RUN(p, side, kernel, args)                                                                      \
  do {                                                                                                       \
    sl_device *device_ = (p)->devices[side];                                                                 \
    if (device_->kernels->kernel == NULL) fail_msg("%s has no kernel %s", device_->name, #kernel);           \
    if (device_->kernels->kernel(device_, args) != SL_OK)                                                    \
      fail_msg("%s on %s: %s", #kernel, device_->name, sl_last_error());                                     \
  } while (0)

/* The same for a kernel with `need`: asks, makes a guarded workspace of exactly that many bytes, runs. */
#define PAIR_RUN_WORKING(p, side, kernel, args)                                                              \
  do {                                                                                                       \
    size_t need_ = (size_t)-1;                                                                               \
    (args)->need = &need_;                                                                                   \
    PAIR_RUN(p, side, kernel, args);                                                                         \
    assert_true(need_ != (size_t)-1);                                                                        \
    block *work_ = pair_block(p, need_);                                                                     \
    (args)->need = NULL;                                                                                     \
    (args)->workspace = need_ > 0 ? AT(work_, side) : NULL;                                                  \
    (args)->workspace_bytes = need_;                                                                         \
    PAIR_RUN(p, side, kernel, args);                                                                         \
    pair_check_guards(p, #kernel "'s workspace", work_);                                                     \
  } while (0)

/* Copies the CUDA side back: returns its data, valid until the next fetch of this block. */
static inline const void *pair_fetch(const pair *p, block *b) {
  sl_device *device = p->devices[PAIR_CUDA];
  size_t whole = b->bytes + b->shift + 2 * PAIR_GUARD;
  if (b->copy == NULL) b->copy = (unsigned char *)malloc(whole);
  assert_non_null(b->copy);
  CHECK(device->table->copy_to_host(device, b->copy, b->base[PAIR_CUDA], whole));
  CHECK(device->table->sync(device));
  return b->copy + PAIR_GUARD + b->shift;
}

/* Nothing was written beside the block on the CUDA side. */
static inline void pair_check_guards(const pair *p, const char *what, block *b) {
  (void)pair_fetch(p, b);
  size_t data = PAIR_GUARD + b->shift, whole = b->bytes + b->shift + 2 * PAIR_GUARD;
  for (size_t i = 0; i < whole; i++) {
    if (i == data) i += b->bytes;
    if (b->copy[i] == 0xd6) continue;
    fail_msg("%s: wrote beside its %zu bytes, at byte %lld", what, b->bytes, (long long)i - (long long)data);
  }
}

/* |cuda - cpu| <= tolerance * (1 + |cpu|); NaN only equals NaN. */
static inline void pair_check_close(const pair *p, const char *what, block *b, double tolerance) {
  pair_check_guards(p, what, b);
  const float *got = (const float *)pair_fetch(p, b), *want = (const float *)b->at[PAIR_CPU];
  for (size_t i = 0; i < b->bytes / sizeof *got; i++)
    check_close(what, (int64_t)i, (double)got[i], (double)want[i], tolerance);
}

/* The same bytes. */
static inline void pair_check_same(const pair *p, const char *what, block *b) {
  pair_check_guards(p, what, b);
  const unsigned char *got = (const unsigned char *)pair_fetch(p, b), *want = (const unsigned char *)b->at[PAIR_CPU];
  for (size_t i = 0; i < b->bytes; i++) {
    if (got[i] != want[i]) fail_msg("%s: byte %zu of %zu is %#x, expected %#x", what, i, b->bytes, got[i], want[i]);
  }
}

/* Releases every block. */
static inline void pair_close(pair *p) {
  for (int i = 0; i < p->n_blocks; i++) {
    block *b = p->blocks[i];
    for (int side = 0; side < 2; side++) {
      sl_device *device = p->devices[side];
      device->table->free(device, b->base[side], b->bytes + b->shift + 2 * PAIR_GUARD);
    }
    free(b->copy);
    free(b);
  }
  p->n_blocks = 0;
}

#endif
