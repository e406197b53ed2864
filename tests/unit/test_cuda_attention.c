/* Attention of the CUDA backend against the CPU's, forward and backward: masks, shared key heads, soft caps, widths that
 * are no tile's, unaligned rows; in float32 and with TF32 factors. */
#include "tests/support/device_pair.h"

typedef struct {
  int64_t batch, tokens, heads, head_dim, kv_heads;
  bool causal;
  int mask; /* 0 none, 1 scattered, 2 padded ends, 3 one batch entry hidden altogether */
  float soft_cap;
  bool accumulate;
  int shift; /* floats by which q, k, v lie off alignment */
  int64_t window;
} attention_case;

static const attention_case cases[] = {
  { 1, 1, 1, 1, 0, false, 0, 0, false, 0, 0 },
  { 2, 3, 2, 5, 0, false, 1, 0, true, 0, 0 },
  { 1, 17, 2, 8, 0, true, 0, 0, false, 0, 0 },
  { 2, 33, 2, 16, 0, true, 2, 0, false, 1, 0 },
  { 1, 140, 1, 64, 0, false, 2, 0, false, 0, 0 },
  { 1, 130, 2, 64, 0, true, 1, 0, true, 0, 0 },
  { 3, 20, 2, 4, 0, false, 3, 0, false, 0, 0 },
  { 2, 19, 6, 8, 2, true, 2, 0, false, 0, 0 },
  { 1, 70, 4, 12, 1, false, 1, 1.5f, false, 0, 0 },
  { 1, 70, 2, 80, 1, true, 0, 0, false, 0, 0 },
  { 1, 67, 1, 128, 0, true, 1, 0.5f, true, 0, 0 },
  { 1, 66, 1, 130, 0, true, 2, 0, false, 0, 0 },
  { 1, 40, 2, 256, 1, false, 1, 0, false, 0, 0 },
  { 1, 33, 2, 16, 0, true, 0, 0, false, 0, 5 },
  { 2, 150, 2, 8, 1, true, 1, 0, true, 0, 30 },
  { 1, 200, 1, 64, 0, false, 2, 1.5f, false, 0, 1 },
  { 1, 150, 2, 100, 1, false, 1, 0, false, 0, 70 },
};

typedef struct {
  block *qkv, *mask, *out, *lse, *pattern, *dout, *dq, *dk, *dv, *workspace;
  int64_t d, kv, ld, room;
} attention_data;

static bool is_hidden(int kind, int64_t b, int64_t j, int64_t tokens) {
  if (kind == 1) return (b + j * 5) % 3 == 0;
  if (kind == 2) return j >= tokens - 2 - b;
  return kind == 3 && b == 1;
}

/* q, k and v are slices of one matrix, as a fused projection leaves them. */
static attention_data make_data(pair *p, const attention_case *c) {
  int64_t rows = c->batch * c->tokens, d = c->heads * c->head_dim,
          kv = (c->kv_heads > 0 ? c->kv_heads : c->heads) * c->head_dim, ld = d + 2 * kv;
  int64_t pairs = c->batch * c->heads;
  attention_data a = { .d = d, .kv = kv, .ld = ld, .room = sl_attention_workspace(c->tokens, 1, true) };
  uint8_t *shown = malloc((size_t)rows);
  assert_non_null(shown);
  for (int64_t i = 0; i < rows; i++) shown[i] = !is_hidden(c->mask, i / c->tokens, i % c->tokens, c->tokens);
  a.qkv = pair_floats_shifted(p, rows * ld, 1, 5, c->shift);
  a.mask = pair_of(p, shown, (size_t)rows);
  a.out = pair_floats(p, rows * d, 9, 1);
  a.lse = pair_floats(p, pairs * c->tokens, 9, 2);
  a.pattern = pair_floats(p, pairs * c->tokens * c->tokens, 9, 3);
  a.dout = pair_floats(p, rows * d, 1, 6);
  a.dq = pair_floats(p, rows * d, 1, 7);
  a.dk = pair_floats(p, rows * kv, 1, 8);
  a.dv = pair_floats(p, rows * kv, 1, 9);
  a.workspace = pair_block(p, (size_t)a.room * sizeof(float));
  free(shown);
  return a;
}

static sl_attention_args describe(const attention_case *c, const attention_data *a, int side, bool pattern) {
  float *q = AT(a->qkv, side);
  return (sl_attention_args){ .q = q,
                              .k = q + a->d,
                              .v = q + a->d + a->kv,
                              .out = AT(a->out, side),
                              .ld_q = a->ld,
                              .ld_k = a->ld,
                              .ld_v = a->ld,
                              .ld_out = a->d,
                              .mask = c->mask ? AT(a->mask, side) : NULL,
                              .batch = c->batch,
                              .tokens = c->tokens,
                              .heads = c->heads,
                              .head_dim = c->head_dim,
                              .kv_heads = c->kv_heads,
                              .scale = 0.3f,
                              .causal = c->causal,
                              .soft_cap = c->soft_cap,
                              .window = c->window,
                              .lse = AT(a->lse, side),
                              .pattern = pattern ? AT(a->pattern, side) : NULL,
                              .workspace = AT(a->workspace, side),
                              .workspace_size = a->room };
}

static void run_side(pair *p, int side, const attention_case *c, const attention_data *a) {
  sl_attention_args forward = describe(c, a, side, true);
  PAIR_RUN(p, side, attention, &forward);
  sl_attention_backward_args backward = { .forward = forward,
                                          .dout = AT(a->dout, side),
                                          .dq = AT(a->dq, side),
                                          .dk = AT(a->dk, side),
                                          .dv = AT(a->dv, side),
                                          .ld_dq = a->d,
                                          .ld_dk = a->kv,
                                          .ld_dv = a->kv,
                                          .accumulate = c->accumulate };
  backward.forward.pattern = NULL;
  PAIR_RUN(p, side, attention_backward, &backward);
}

static void check_attention(const attention_case *c, bool tf32) {
  pair p = pair_open();
  attention_data a = make_data(&p, c);
  p.devices[PAIR_CUDA]->tf32 = tf32;
  for (int side = 0; side < 2; side++) run_side(&p, side, c, &a);
  p.devices[PAIR_CUDA]->tf32 = false;
  double tolerance = tf32 ? 5e-3 : 1e-5;
  pair_check_close(&p, "out", a.out, tolerance);
  pair_check_close(&p, "lse", a.lse, tolerance);
  pair_check_close(&p, "pattern", a.pattern, tolerance);
  pair_check_close(&p, "dq", a.dq, tolerance);
  pair_check_close(&p, "dk", a.dk, tolerance);
  pair_check_close(&p, "dv", a.dv, tolerance);
  pair_check_guards(&p, "workspace", a.workspace);
  pair_close(&p);
}

static void test_float32(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(cases); i++) check_attention(&cases[i], false);
}

static void test_tf32(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(cases); i++) check_attention(&cases[i], true);
}

/* The same call twice: the same bits, and neither needs the log-sum-exp nor the pattern. */
static void test_same_bits_without_extras(void **state) {
  (void)state;
  const attention_case *c = &cases[5];
  pair p = pair_open();
  attention_data a = make_data(&p, c);
  sl_attention_args args = describe(c, &a, PAIR_CUDA, true);
  size_t bytes = a.out->bytes;
  void *first = malloc(bytes);
  assert_non_null(first);
  PAIR_RUN(&p, PAIR_CUDA, attention, &args);
  memcpy(first, pair_fetch(&p, a.out), bytes);
  args.lse = NULL, args.pattern = NULL, args.workspace = NULL, args.workspace_size = 0;
  CHECK(p.devices[PAIR_CUDA]->table->fill(p.devices[PAIR_CUDA], args.out, 0, bytes));
  PAIR_RUN(&p, PAIR_CUDA, attention, &args);
  assert_memory_equal(first, pair_fetch(&p, a.out), bytes);
  free(first);
  pair_close(&p);
}

static void test_refusals(void **state) {
  (void)state;
  const attention_case *c = &cases[2];
  pair p = pair_open();
  attention_data a = make_data(&p, c);
  sl_device *device = p.devices[PAIR_CUDA];
  sl_attention_args args = describe(c, &a, PAIR_CUDA, false);
  sl_attention_backward_args backward = { .forward = args };
  backward.forward.workspace_size = 5;
  assert_int_equal(device->kernels->attention_backward(device, &backward), SL_EINVAL);
  args.head_dim = 257;
  assert_int_equal(device->kernels->attention(device, &args), SL_EUNSUPPORTED);
  assert_non_null(strstr(sl_last_error(), "257"));
  pair_close(&p);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_float32),
    cmocka_unit_test(test_tf32),
    cmocka_unit_test(test_same_bits_without_extras),
    cmocka_unit_test(test_refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
