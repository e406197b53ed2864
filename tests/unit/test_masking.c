/* Masked-language-model examples: which tokens are chosen, what becomes of them. */
#include "tests/support/numbers.h"

#include "core/base/mem.h"
#include "core/data/masking.h"

enum { CLS = 101, SEP = 102, PAD = 0, MASK = 103, VOCAB = 1000 };
static const int32_t special[] = { CLS, SEP, PAD, MASK };

static sl_mask_options options(void) {
  return (sl_mask_options){ .rate = 0.15, .mask_id = MASK, .vocab_size = VOCAB, .excluded = special, .n_excluded = 4,
                            .seed = 5 };
}

/* [CLS] 200 201 ... [SEP], the last quarter of every second row padding. */
static void make_batch(int64_t B, int64_t T, sl_tensor **ids, sl_tensor **mask) {
  int64_t shape[2] = { B, T };
  CHECK(sl_tensor_create(sl_cpu_device(), SL_I32, 2, shape, ids));
  CHECK(sl_tensor_create(sl_cpu_device(), SL_U8, 2, shape, mask));
  int32_t *id = sl_tensor_data(*ids);
  uint8_t *on = sl_tensor_data(*mask);
  for (int64_t b = 0; b < B; b++) {
    int64_t length = b % 2 ? T - T / 4 : T;
    for (int64_t t = 0; t < T; t++) {
      on[b * T + t] = t < length;
      id[b * T + t] = t >= length ? PAD : t == 0 ? CLS : t == length - 1 ? SEP : (int32_t)(200 + (b * 7 + t) % 700);
    }
  }
}

typedef struct {
  sl_tensor *hidden, *positions, *targets;
} example;

static example hide(const sl_tensor *ids, const sl_tensor *mask, const sl_mask_options *o) {
  example e = { 0 };
  CHECK(sl_mask_tokens(ids, mask, o, &e.hidden, &e.positions, &e.targets));
  return e;
}

static void release(example *e) {
  sl_tensor_release(e->hidden), sl_tensor_release(e->positions), sl_tensor_release(e->targets);
}

static bool is_special(int32_t id) { return id == CLS || id == SEP || id == PAD || id == MASK; }

typedef struct {
  int64_t candidates, chosen, masked, random, kept;
} tally;

/* Checks the structure of one example and counts. */
static tally inspect(const sl_tensor *ids, const example *e) {
  tally n = { 0 };
  const int32_t *id = sl_tensor_data(ids), *hidden = sl_tensor_data(e->hidden);
  const int32_t *position = sl_tensor_data(e->positions), *target = sl_tensor_data(e->targets);
  int64_t all = sl_tensor_count(ids), at = 0;
  n.chosen = sl_tensor_count(e->positions);
  assert_int_equal(sl_tensor_count(e->targets), n.chosen);
  for (int64_t i = 0; i < all; i++) {
    n.candidates += !is_special(id[i]);
    if (at < n.chosen && position[at] == i) { /* positions ascend */
      assert_false(is_special(id[i]));
      assert_int_equal(target[at++], id[i]);
      if (hidden[i] == MASK) n.masked++;
      else if (hidden[i] == id[i]) n.kept++;
      else n.random++;
      assert_true(hidden[i] >= 0 && hidden[i] < VOCAB && (hidden[i] == MASK || !is_special(hidden[i])));
    } else {
      assert_int_equal(hidden[i], id[i]);
    }
  }
  assert_int_equal(at, n.chosen);
  return n;
}

/* Within 5 standard deviations of a binomial share. */
static void check_share(int64_t hits, int64_t of, double share) {
  double sd = sqrt((double)of * share * (1 - share));
  if (fabs((double)hits - (double)of * share) > 5 * sd + 1)
    fail_msg("%lld of %lld, expected a share of %g", (long long)hits, (long long)of, share);
}

static void test_shares(void **state) {
  (void)state;
  sl_tensor *ids, *mask;
  make_batch(400, 128, &ids, &mask);
  sl_mask_options o = options();
  example plain = hide(ids, mask, &o);
  tally n = inspect(ids, &plain);
  check_share(n.chosen, n.candidates, 0.15);
  assert_int_equal(n.masked, n.chosen);
  o.random_share = o.keep_share = 0.1;
  example mixed = hide(ids, mask, &o);
  n = inspect(ids, &mixed);
  check_share(n.masked, n.chosen, 0.8);
  check_share(n.kept, n.chosen, 0.1);
  check_share(n.random, n.chosen, 0.1);
  /* the choice itself does not depend on what becomes of it */
  assert_int_equal(sl_tensor_count(plain.positions), n.chosen);
  assert_memory_equal(sl_tensor_data(plain.positions), sl_tensor_data(mixed.positions), (size_t)n.chosen * 4);
  release(&plain), release(&mixed);
  sl_tensor_release(ids), sl_tensor_release(mask);
}

static void test_extremes(void **state) {
  (void)state;
  sl_tensor *ids, *mask;
  make_batch(50, 16, &ids, &mask);
  sl_mask_options o = options();
  o.rate = 1;
  example e = hide(ids, mask, &o);
  tally n = inspect(ids, &e);
  assert_int_equal(n.chosen, n.candidates);
  release(&e);
  o.rate = 1e-9; /* still one in each context */
  e = hide(ids, mask, &o);
  n = inspect(ids, &e);
  assert_int_equal(n.chosen, 50);
  const int32_t *position = sl_tensor_data(e.positions);
  for (int i = 0; i < 50; i++) assert_int_equal(position[i] / 16, i);
  release(&e);
  o.rate = 1, o.keep_share = 1;
  e = hide(ids, mask, &o);
  assert_int_equal(inspect(ids, &e).kept, n.candidates);
  release(&e);
  o.keep_share = 0, o.random_share = 1;
  e = hide(ids, mask, &o);
  tally all_random = inspect(ids, &e);
  assert_int_equal(all_random.masked, 0);
  release(&e);
  CHECK(sl_tensor_fill_zero(ids)); /* only padding: nothing to choose */
  o = options();
  e = hide(ids, mask, &o);
  assert_int_equal(sl_tensor_count(e.positions), 0);
  release(&e);
  sl_tensor_release(ids), sl_tensor_release(mask);
}

static void test_determinism(void **state) {
  (void)state;
  sl_tensor *ids, *mask;
  make_batch(20, 64, &ids, &mask);
  sl_mask_options o = options();
  o.random_share = 0.3;
  example a = hide(ids, mask, &o), b = hide(ids, mask, &o);
  assert_memory_equal(sl_tensor_data(a.hidden), sl_tensor_data(b.hidden), 20 * 64 * 4);
  o.step = 1;
  example c = hide(ids, mask, &o);
  assert_memory_not_equal(sl_tensor_data(a.hidden), sl_tensor_data(c.hidden), 20 * 64 * 4);
  o.step = 0, o.seed = 6;
  example d = hide(ids, mask, &o);
  assert_memory_not_equal(sl_tensor_data(a.hidden), sl_tensor_data(d.hidden), 20 * 64 * 4);
  release(&a), release(&b), release(&c), release(&d);
  sl_tensor_release(ids), sl_tensor_release(mask);
}

static void test_refusals(void **state) {
  (void)state;
  sl_tensor *ids, *mask, *turned, *h, *p, *t;
  make_batch(4, 4, &ids, &mask);
  CHECK(sl_tensor_transpose(ids, 0, 1, &turned));
  const sl_mask_options good = options();
#define REFUSED(field, value)                                                     \
  do {                                                                            \
    sl_mask_options bad = good;                                                   \
    bad.field = (value);                                                          \
    assert_int_equal(sl_mask_tokens(ids, mask, &bad, &h, &p, &t), SL_EINVAL);      \
  } while (0)
  REFUSED(rate, 0);
  REFUSED(rate, 1.5);
  REFUSED(rate, NAN);
  REFUSED(random_share, -0.1);
  REFUSED(keep_share, 1.1);
  REFUSED(random_share, NAN);
  REFUSED(mask_id, -1);
  REFUSED(mask_id, VOCAB);
  REFUSED(vocab_size, 0);
  assert_int_equal(sl_mask_tokens(mask, mask, &good, &h, &p, &t), SL_EDTYPE);
  assert_int_equal(sl_mask_tokens(turned, mask, &good, &h, &p, &t), SL_EDEVICE);
  sl_tensor_release(ids), sl_tensor_release(mask), sl_tensor_release(turned);
}

static void test_torture(void **state) {
  (void)state;
  sl_tensor *ids, *mask;
  make_batch(4, 16, &ids, &mask);
  sl_mask_options o = options();
  sl_mem_stats before = sl_mem_get_stats();
  for (int n = 1;; n++) {
    example e = { 0 };
    sl_mem_fail_at(n);
    sl_status status = sl_mask_tokens(ids, mask, &o, &e.hidden, &e.positions, &e.targets);
    sl_mem_fail_at(0);
    if (status == SL_OK) release(&e);
    else assert_true(!e.hidden && !e.positions && !e.targets);
    assert_int_equal(sl_mem_get_stats().blocks, before.blocks);
    if (status == SL_OK) break;
    assert_true(n < 100);
  }
  sl_tensor_release(ids), sl_tensor_release(mask);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_shares), cmocka_unit_test(test_extremes), cmocka_unit_test(test_determinism),
    cmocka_unit_test(test_refusals), cmocka_unit_test(test_torture),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
