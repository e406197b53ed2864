/* The operations of core/ops/transformer.h, and attention as decoders use it, against finite differences
 * (tests/support/gradient_case.h). Then what they refuse. */
#include "tests/support/gradient_case.h"

#include "core/ops/nn.h"
#include "core/ops/transformer.h"

static sl_status run_rms_norm(sl_tensor *const *x, sl_tensor **out) {
  return sl_rms_norm(x[0], x[1], &(sl_rms_norm_options){ .eps = 1e-5f }, out);
}
static sl_status run_rms_norm_residual(sl_tensor *const *x, sl_tensor **out) {
  return sl_rms_norm(x[0], x[2], &(sl_rms_norm_options){ .eps = 0.1f, .offset = 1, .residual = x[1] }, out);
}

static sl_status run_rotary(sl_tensor *const *x, sl_tensor **out) {
  return sl_rotary(x[0], &(sl_rotary_options){ .heads = 2 }, out);
}
static sl_status run_rotary_adjacent(sl_tensor *const *x, sl_tensor **out) {
  return sl_rotary(x[0], &(sl_rotary_options){ .heads = 2, .width = 2, .adjacent = true, .base = 100 }, out);
}
/* Given frequencies and positions, on a slice of a fused product. */
static sl_status run_rotary_slice(sl_tensor *const *x, sl_tensor **out) {
  sl_tensor *positions = make_ids(2, (int64_t[]){ 2, 3 }, (int32_t[]){ 4, 5, 6, 0, 0, 1 });
  sl_tensor *frequencies = make_tensor(1, (int64_t[]){ 2 }, 1, 5), *part = NULL;
  sl_rotary_options options = { .heads = 2, .frequencies = frequencies, .positions = positions };
  sl_status status = sl_slice(x[0], 2, 1, 8, &part);
  if (status == SL_OK) status = sl_rotary(part, &options, out);
  sl_tensor_release(part), sl_tensor_release(positions), sl_tensor_release(frequencies);
  return status;
}

#define GATED_CASE(id, act)                                                                                  \
  static sl_status run_gated_##id(sl_tensor *const *x, sl_tensor **out) {                                    \
    return sl_gated(x[0], x[1], SL_GATE_##act, out);                                                         \
  }                                                                                                          \
  static sl_status run_halves_##id(sl_tensor *const *x, sl_tensor **out) {                                   \
    return sl_gated(x[0], NULL, SL_GATE_##act, out);                                                         \
  }
GATED_CASE(gelu, GELU)
GATED_CASE(gelu_tanh, GELU_TANH)
GATED_CASE(silu, SILU)
GATED_CASE(relu, RELU)
/* Both sides as slices, whose rows are further apart than long; then halves of one. */
static sl_status run_gated_slices(sl_tensor *const *x, sl_tensor **out) {
  sl_tensor *gate = NULL, *up = NULL;
  sl_status status = sl_slice(x[0], 2, 1, 4, &gate);
  if (status == SL_OK) status = sl_slice(x[0], 2, 3, 4, &up);
  if (status == SL_OK) status = sl_gated(gate, up, SL_GATE_SILU, out);
  sl_tensor_release(gate), sl_tensor_release(up);
  return status;
}
static sl_status run_halves_slice(sl_tensor *const *x, sl_tensor **out) {
  sl_tensor *part = NULL;
  sl_status status = sl_slice(x[0], 2, 1, 6, &part);
  if (status == SL_OK) status = sl_gated(part, NULL, SL_GATE_GELU, out);
  sl_tensor_release(part);
  return status;
}
static sl_status run_silu(sl_tensor *const *x, sl_tensor **out) {
  return sl_unary(SL_UNARY_SILU, x[0], 0, out);
}

static sl_status attend(sl_tensor *const *x, bool masked, sl_attention_options options, sl_tensor **out) {
  static const uint8_t bytes[10] = { 0, 1, 1, 1, 1, 1, 1, 1, 1, 0 };
  sl_tensor *mask = NULL;
  options.scale = 0.5f;
  if (masked) {
    CHECK(sl_tensor_create(sl_cpu_device(), SL_U8, 2, (int64_t[]){ 2, 5 }, &mask));
    CHECK(sl_tensor_write(mask, bytes, sizeof bytes));
  }
  sl_status status = sl_attention(x[0], x[1], x[2], mask, &options, out);
  sl_tensor_release(mask);
  return status;
}
static sl_status run_shared_keys(sl_tensor *const *x, sl_tensor **out) {
  return attend(x, true, (sl_attention_options){ .heads = 4, .kv_heads = 2, .causal = true }, out);
}
static sl_status run_soft_cap(sl_tensor *const *x, sl_tensor **out) {
  return attend(x, false, (sl_attention_options){ .heads = 2, .soft_cap = 0.8f }, out);
}
static sl_status run_window(sl_tensor *const *x, sl_tensor **out) {
  return attend(x, true, (sl_attention_options){ .heads = 2, .causal = true, .window = 2 }, out);
}
static sl_status run_window_past(sl_tensor *const *x, sl_tensor **out) {
  return attend(x, false, (sl_attention_options){ .heads = 2, .window = 1 }, out);
}
static sl_status run_all_at_once(sl_tensor *const *x, sl_tensor **out) {
  return attend(x, true,
                (sl_attention_options){ .heads = 4, .kv_heads = 1, .causal = true, .soft_cap = 1.5f, .window = 3 },
                out);
}

static const gradient_case cases[] = {
  { "rms_norm", run_rms_norm, 2, { S(2, 3, 7), S(1, 7) } },
  { "rms_norm residual", run_rms_norm_residual, 3, { S(2, 3, 7), S(2, 3, 7), S(1, 7) } },
  { "rotary", run_rotary, ONE(3, 2, 3, 8) },
  { "rotary adjacent", run_rotary_adjacent, ONE(3, 2, 3, 6) },
  { "rotary of a slice", run_rotary_slice, ONE(3, 2, 3, 10) },
  { "gated gelu", run_gated_gelu, 2, { S(2, 3, 5), S(2, 3, 5) } },
  { "gated gelu_tanh", run_gated_gelu_tanh, 2, { S(3, 2, 3, 4), S(3, 2, 3, 4) } },
  { "gated silu", run_gated_silu, 2, { S(2, 3, 5), S(2, 3, 5) } },
  { "gated relu", run_gated_relu, 2, { S(1, 9), S(1, 9) } },
  { "gated halves gelu", run_halves_gelu, ONE(2, 3, 6) },
  { "gated halves gelu_tanh", run_halves_gelu_tanh, ONE(1, 8) },
  { "gated halves silu", run_halves_silu, ONE(3, 2, 3, 4) },
  { "gated halves relu", run_halves_relu, ONE(2, 3, 6) },
  { "gated slices", run_gated_slices, ONE(3, 2, 2, 7) },
  { "gated halves of a slice", run_halves_slice, ONE(3, 2, 2, 7) },
  { "silu", run_silu, ONE(1, 33) },
  { "attention, shared keys", run_shared_keys, 3, { S(3, 2, 5, 8), S(3, 2, 5, 4), S(3, 2, 5, 4) } },
  { "attention, soft cap", run_soft_cap, 3, { S(3, 2, 5, 6), S(3, 2, 5, 6), S(3, 2, 5, 6) } },
  { "attention, window", run_window, 3, { S(3, 2, 5, 6), S(3, 2, 5, 6), S(3, 2, 5, 6) } },
  { "attention, window without causal", run_window_past, 3, { S(3, 2, 5, 6), S(3, 2, 5, 6), S(3, 2, 5, 6) } },
  { "attention, all at once", run_all_at_once, 3, { S(3, 2, 5, 8), S(3, 2, 5, 2), S(3, 2, 5, 2) } },
};

static void test_gradients(void **state) {
  (void)state;
  sl_mem_stats before = sl_mem_get_stats();
  for (size_t i = 0; i < LENGTH(cases); i++) check_case(&cases[i]);
  sl_pool_trim();
  assert_int_equal(sl_mem_get_stats().blocks, before.blocks);
}

static void test_untracked_inputs_get_none(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(cases); i++) check_untracked(&cases[i]);
}

/* Those that make their constants with CHECK cannot run out of memory in peace. */
static bool allocates_constants(const gradient_case *c) {
  return c->run == run_rotary_slice || c->run == run_shared_keys || c->run == run_window ||
         c->run == run_all_at_once;
}

static void test_torture(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(cases); i++)
    if (!allocates_constants(&cases[i])) check_torture(&cases[i]);
}

/* -- Values and refusals -- */

/* x + residual comes out on request, as the norm saw it. */
static void test_sum(void **state) {
  (void)state;
  sl_tensor *x = make_tensor(2, (int64_t[]){ 3, 5 }, 1, 1), *residual = make_tensor(2, (int64_t[]){ 3, 5 }, 1, 2);
  sl_tensor *weight = make_tensor(1, (int64_t[]){ 5 }, 1, 3), *sum = NULL, *y = NULL;
  CHECK(sl_rms_norm(x, weight, &(sl_rms_norm_options){ .eps = 1e-6f, .residual = residual, .sum = &sum }, &y));
  for (int i = 0; i < 15; i++)
    check_close("sum", i, (double)sl_tensor_f32(sum)[i], (double)(sl_tensor_f32(x)[i] + sl_tensor_f32(residual)[i]), 0);
  sl_tensor_release(sum), sl_tensor_release(y), sl_tensor_release(x), sl_tensor_release(residual);
  sl_tensor_release(weight);
}

/* A window of every token, or more, is none. */
static void test_wide_window(void **state) {
  (void)state;
  sl_tensor *x = make_tensor(3, (int64_t[]){ 1, 4, 6 }, 1, 1), *out[3] = { NULL };
  const int64_t windows[3] = { 0, 4, INT64_MAX };
  for (int i = 0; i < 3; i++)
    CHECK(sl_attention(x, x, x, NULL, &(sl_attention_options){ .heads = 2, .window = windows[i] }, &out[i]));
  for (int i = 1; i < 3; i++) assert_memory_equal(sl_tensor_f32(out[0]), sl_tensor_f32(out[i]), 24 * sizeof(float));
  for (int i = 0; i < 3; i++) sl_tensor_release(out[i]);
  sl_tensor_release(x);
}

static void check_refused(sl_status got, sl_status want, const char *words) {
  if (got != want || strstr(sl_last_error(), words) == NULL)
    fail_msg("status %d, expected %d with '%s': %s", (int)got, (int)want, words, sl_last_error());
}

static void test_norm_and_gate_refusals(void **state) {
  (void)state;
  sl_tensor *x = make_tensor(2, (int64_t[]){ 3, 5 }, 1, 1), *w = make_tensor(1, (int64_t[]){ 4 }, 1, 2), *out = NULL;
  sl_rms_norm_options plain = { .eps = 1e-6f }, residual = { .eps = 1e-6f, .residual = w };
  check_refused(sl_rms_norm(x, w, &plain, &out), SL_ESHAPE, "rms_norm: x [3 x 5] needs a weight of shape [5]");
  check_refused(sl_rms_norm(x, w, &residual, &out), SL_ESHAPE, "rms_norm: x [3 x 5] and residual [4] differ");
  check_refused(sl_gated(x, NULL, SL_GATE_SILU, &out), SL_ESHAPE, "gated: x [3 x 5] has rows of odd length");
  check_refused(sl_gated(x, w, SL_GATE_SILU, &out), SL_ESHAPE, "gated: gate [3 x 5] and up [4] differ");
  assert_null(out);
  sl_tensor_release(x), sl_tensor_release(w);
}

static void test_rotary_refusals(void **state) {
  (void)state;
  sl_tensor *x = make_tensor(3, (int64_t[]){ 2, 3, 12 }, 1, 1), *f = make_tensor(1, (int64_t[]){ 4 }, 1, 2), *out = NULL;
  sl_tensor *flat = make_tensor(2, (int64_t[]){ 3, 12 }, 1, 1), *ids = make_ids(1, (int64_t[]){ 2 }, (int32_t[]){ 0, 1 });
  const struct {
    sl_status status;
    sl_rotary_options options;
    const char *words;
  } refused[] = {
    { SL_ESHAPE, { .heads = 5 }, "rotary: width 12 does not divide into 5 heads" },
    { SL_ESHAPE, { .heads = 4 }, "3 columns of a head of 3" },
    { SL_ESHAPE, { .heads = 2, .width = 8 }, "8 columns of a head of 6" },
    { SL_ESHAPE, { .heads = 2, .width = -2 }, "-2 columns" },
    { SL_ESHAPE, { .heads = 2, .frequencies = f }, "frequencies are [4], expected [3]" },
    { SL_ESHAPE, { .heads = 2, .positions = ids }, "positions are [2], expected [3] or [2 x 3]" },
    { SL_EINVAL, { .heads = 2, .base = -1 }, "base = -1" },
    { SL_EINVAL, { .heads = 2, .base = 10, .frequencies = f }, "exclude each other" },
  };
  for (size_t i = 0; i < LENGTH(refused); i++)
    check_refused(sl_rotary(x, &refused[i].options, &out), refused[i].status, refused[i].words);
  check_refused(sl_rotary(flat, &(sl_rotary_options){ .heads = 2 }, &out), SL_ESHAPE, "rotary: x");
  assert_null(out);
  sl_tensor_release(x), sl_tensor_release(f), sl_tensor_release(flat), sl_tensor_release(ids);
}

static void test_attention_refusals(void **state) {
  (void)state;
  sl_tensor *q = make_tensor(3, (int64_t[]){ 2, 3, 12 }, 1, 1), *k = make_tensor(3, (int64_t[]){ 2, 3, 6 }, 1, 2);
  sl_tensor *out = NULL;
  const struct {
    sl_status status;
    sl_attention_options options;
    const char *words;
  } refused[] = {
    { SL_ESHAPE, { .heads = 4, .kv_heads = 3 }, "4 heads cannot share kv_heads = 3" },
    { SL_ESHAPE, { .heads = 4, .kv_heads = -2 }, "kv_heads = -2" },
    { SL_ESHAPE, { .heads = 4 }, "k [2 x 3 x 6] differ; expected [2 x 3 x 12]" },
    { SL_ESHAPE, { .heads = 4, .kv_heads = 1 }, "expected [2 x 3 x 3]" },
    { SL_EINVAL, { .heads = 4, .kv_heads = 2, .soft_cap = -1 }, "soft_cap = -1" },
    { SL_EINVAL, { .heads = 4, .kv_heads = 2, .window = -1 }, "window = -1" },
  };
  for (size_t i = 0; i < LENGTH(refused); i++)
    check_refused(sl_attention(q, k, k, NULL, &refused[i].options, &out), refused[i].status, refused[i].words);
  assert_null(out);
  sl_tensor_release(q), sl_tensor_release(k);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_gradients),
    cmocka_unit_test(test_untracked_inputs_get_none),
    cmocka_unit_test(test_torture),
    cmocka_unit_test(test_sum),
    cmocka_unit_test(test_wide_window),
    cmocka_unit_test(test_norm_and_gate_refusals),
    cmocka_unit_test(test_rotary_refusals),
    cmocka_unit_test(test_attention_refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
