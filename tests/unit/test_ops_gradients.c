/* Every operation of core/ops/math.h, nn.h and sparse.h against finite differences (tests/support/gradient_case.h). */
#include "tests/support/gradient_case.h"

#include "core/ops/math.h"
#include "core/ops/nn.h"
#include "core/ops/sparse.h"

/* -- The operations, each as a function of tracked inputs only -- */

#define BINARY_CASE(id, op)                                                                                  \
  static sl_status run_##id(sl_tensor *const *x, sl_tensor **out) {                                          \
    return sl_binary(SL_BINARY_##op, x[0], x[1], out);                                                       \
  }
BINARY_CASE(add, ADD)
BINARY_CASE(sub, SUB)
BINARY_CASE(mul, MUL)
BINARY_CASE(div, DIV)
BINARY_CASE(maximum, MAX)
BINARY_CASE(minimum, MIN)

static const float scalar = 0.37f;
#define UNARY_CASE(id, op)                                                                                   \
  static sl_status run_##id(sl_tensor *const *x, sl_tensor **out) {                                          \
    return sl_unary(SL_UNARY_##op, x[0], scalar, out);                                                       \
  }
UNARY_CASE(neg, NEG)
UNARY_CASE(exp, EXP)
UNARY_CASE(log, LOG)
UNARY_CASE(sqrt, SQRT)
UNARY_CASE(abs, ABS)
UNARY_CASE(square, SQUARE)
UNARY_CASE(relu, RELU)
UNARY_CASE(gelu, GELU)
UNARY_CASE(gelu_tanh, GELU_TANH)
UNARY_CASE(tanh, TANH)
UNARY_CASE(sigmoid, SIGMOID)
UNARY_CASE(add_scalar, ADD_SCALAR)
UNARY_CASE(mul_scalar, MUL_SCALAR)
UNARY_CASE(pow_scalar, POW_SCALAR)
UNARY_CASE(clamp_min, CLAMP_MIN)
UNARY_CASE(clamp_max, CLAMP_MAX)

#define REDUCE_CASE(id, op, dim, keep)                                                                       \
  static sl_status run_##id(sl_tensor *const *x, sl_tensor **out) {                                          \
    return sl_reduce(SL_REDUCE_##op, x[0], dim, keep, out);                                                  \
  }
REDUCE_CASE(sum_first, SUM, 0, false)
REDUCE_CASE(sum_last, SUM, -1, true)
REDUCE_CASE(mean_middle, MEAN, 1, false)
REDUCE_CASE(mean_all, MEAN, SL_ALL_DIMS, true)
REDUCE_CASE(max_middle, MAX, 1, false)
REDUCE_CASE(min_all, MIN, SL_ALL_DIMS, false)

static sl_status run_matmul(sl_tensor *const *x, sl_tensor **out) { return sl_matmul(x[0], x[1], out); }

/* Through views that gemm takes as they are: a' (transposed) times a slice of
 * b. */
static sl_status run_matmul_views(sl_tensor *const *x, sl_tensor **out) {
  sl_tensor *a = NULL, *b = NULL;
  sl_status status = sl_transpose(x[0], 0, 1, &a);
  if (status == SL_OK) status = sl_slice(x[1], 1, 1, 3, &b);
  if (status == SL_OK) status = sl_matmul(a, b, out);
  sl_tensor_release(a);
  sl_tensor_release(b);
  return status;
}

#define LINEAR_CASE(id, act)                                                                                 \
  static sl_status run_linear_##id(sl_tensor *const *x, sl_tensor **out) {                                   \
    return sl_linear(x[0], x[1], x[2], act, out);                                                            \
  }
LINEAR_CASE(none, SL_ACT_NONE)
LINEAR_CASE(relu, SL_ACT_RELU)
LINEAR_CASE(gelu, SL_ACT_GELU_ERF)
LINEAR_CASE(gelu_tanh, SL_ACT_GELU_TANH)
LINEAR_CASE(tanh, SL_ACT_TANH)
static sl_status run_linear_bare(sl_tensor *const *x, sl_tensor **out) {
  return sl_linear(x[0], x[1], NULL, SL_ACT_NONE, out);
}

static sl_status run_reshape(sl_tensor *const *x, sl_tensor **out) {
  return sl_reshape(x[0], 2, (int64_t[]){ -1, 4 }, out);
}
static sl_status run_transpose(sl_tensor *const *x, sl_tensor **out) {
  sl_tensor *view = NULL;
  sl_status status = sl_transpose(x[0], 0, -1, &view);
  if (status == SL_OK) status = sl_contiguous(view, out);
  sl_tensor_release(view);
  return status;
}
static sl_status run_slice(sl_tensor *const *x, sl_tensor **out) { return sl_slice(x[0], 1, 1, 2, out); }
static sl_status run_select(sl_tensor *const *x, sl_tensor **out) { return sl_select(x[0], 1, 2, out); }
static sl_status run_expand(sl_tensor *const *x, sl_tensor **out) {
  return sl_expand(x[0], 3, (int64_t[]){ 2, 3, 4 }, out);
}
static sl_status run_concat(sl_tensor *const *x, sl_tensor **out) { return sl_concat(3, x, 1, out); }
static sl_status run_concat_many(sl_tensor *const *x, sl_tensor **out) {
  sl_tensor *many[8] = { x[0], x[1], x[0], x[1], x[1], x[0], x[0], x[1] };
  return sl_concat(8, many, 0, out);
}
static sl_status run_stack(sl_tensor *const *x, sl_tensor **out) { return sl_stack(2, x, 1, out); }

static sl_status run_softmax(sl_tensor *const *x, sl_tensor **out) { return sl_softmax(x[0], false, out); }
static sl_status run_log_softmax(sl_tensor *const *x, sl_tensor **out) { return sl_softmax(x[0], true, out); }
static sl_status run_layer_norm(sl_tensor *const *x, sl_tensor **out) {
  return sl_layer_norm(x[0], NULL, x[1], x[2], 1e-5f, NULL, out);
}
static sl_status run_layer_norm_residual(sl_tensor *const *x, sl_tensor **out) {
  return sl_layer_norm(x[0], x[1], x[2], x[3], 1e-5f, NULL, out);
}

/* Two heads of 3, five tokens, the last of batch 2 and the first of batch 1
 * padding. */
static sl_status run_attention_with(sl_tensor *const *x, bool causal, bool masked, sl_tensor **out) {
  static const uint8_t bytes[10] = { 0, 1, 1, 1, 1, 1, 1, 1, 1, 0 };
  sl_tensor *mask = NULL;
  sl_attention_options options = { .heads = 2, .scale = 0.5f, .causal = causal };
  if (masked) {
    CHECK(sl_tensor_create(sl_cpu_device(), SL_U8, 2, (int64_t[]){ 2, 5 }, &mask));
    CHECK(sl_tensor_write(mask, bytes, sizeof bytes));
  }
  sl_status status = sl_attention(x[0], x[1], x[2], mask, &options, out);
  sl_tensor_release(mask);
  return status;
}
static sl_status run_attention(sl_tensor *const *x, sl_tensor **out) {
  return run_attention_with(x, false, false, out);
}
static sl_status run_attention_causal(sl_tensor *const *x, sl_tensor **out) {
  return run_attention_with(x, true, true, out);
}
static sl_status run_attention_fused(sl_tensor *const *x,
                                     sl_tensor **out) { /* q, k, v as slices of one product */
  sl_tensor *parts[3] = { NULL };
  sl_status status = SL_OK;
  for (int i = 0; i < 3 && status == SL_OK; i++) status = sl_slice(x[0], 2, 6 * i, 6, &parts[i]);
  if (status == SL_OK) status = run_attention_with(parts, false, true, out);
  for (int i = 0; i < 3; i++) sl_tensor_release(parts[i]);
  return status;
}

static sl_status run_embedding(sl_tensor *const *x, sl_tensor **out) {
  sl_tensor *ids = make_ids(2, (int64_t[]){ 2, 3 }, (int32_t[]){ 4, 0, 4, 1, 4, 0 });
  sl_status status = sl_embedding(x[0], ids, out);
  sl_tensor_release(ids);
  return status;
}
static sl_status run_gather_rows(sl_tensor *const *x, sl_tensor **out) {
  sl_tensor *ids = make_ids(1, (int64_t[]){ 3 }, (int32_t[]){ 2, 2, 0 });
  sl_status status = sl_gather_rows(x[0], ids, out);
  sl_tensor_release(ids);
  return status;
}
static sl_status run_cross_entropy(sl_tensor *const *x, sl_tensor **out) {
  sl_tensor *targets = make_ids(1, (int64_t[]){ 4 }, (int32_t[]){ 2, -100, 0, 4 });
  sl_status status = sl_cross_entropy(x[0], targets, NULL, out);
  sl_tensor_release(targets);
  return status;
}
static sl_status run_mse_loss(sl_tensor *const *x, sl_tensor **out) { return sl_mse_loss(x[0], x[1], out); }
static sl_status run_dropout(sl_tensor *const *x, sl_tensor **out) {
  return sl_dropout(x[0], 0.4f, 7, 3, out);
}
static sl_status run_topk_with(sl_tensor *const *x, bool absolute, sl_tensor **out) {
  sl_tensor *indices = NULL;
  sl_status status = sl_topk(x[0], 2, absolute, out, &indices);
  sl_tensor_release(indices);
  return status;
}
static sl_status run_topk(sl_tensor *const *x, sl_tensor **out) { return run_topk_with(x, false, out); }
static sl_status run_topk_absolute(sl_tensor *const *x, sl_tensor **out) {
  return run_topk_with(x, true, out);
}
static sl_status run_sparse_decode(sl_tensor *const *x, sl_tensor **out) {
  sl_tensor *ids = make_ids(2, (int64_t[]){ 3, 2 }, (int32_t[]){ 4, 0, 4, 1, 2, 4 });
  sl_status status = sl_sparse_decode(x[0], ids, x[1], x[2], out);
  sl_tensor_release(ids);
  return status;
}
static sl_status run_cast(sl_tensor *const *x,
                          sl_tensor **out) { /* there and back would round: only f32 copies */
  sl_tensor *copy = NULL;
  sl_status status = sl_mul(x[0], x[0], &copy);
  if (status == SL_OK) status = sl_cast(copy, SL_F32, out);
  sl_tensor_release(copy);
  return status;
}

static const gradient_case cases[] = {
  { "add", run_add, 2, { S(3, 2, 3, 4), S(1, 4) } },
  { "add scalar tensor", run_add, 2, { S(0, 1), S(2, 3, 4) } },
  { "sub", run_sub, 2, { S(2, 3, 1), S(2, 1, 4) } },
  { "mul", run_mul, 2, { S(3, 2, 1, 4), S(2, 3, 1) } },
  { "mul same", run_mul, 2, { S(2, 3, 4), S(2, 3, 4) } },
  { "div", run_div, 2, { S(2, 3, 4), AT(3, 2, 3, 1) } },
  { "maximum", run_maximum, 2, { S(2, 3, 4), S(1, 4) } },
  { "minimum", run_minimum, 2, { S(1, 4), S(2, 3, 4) } },
  { "neg", run_neg, ONE(1, 17) },
  { "exp", run_exp, ONE(1, 17) },
  { "log", run_log, ONE_AT(2, 1, 17) },
  { "sqrt", run_sqrt, ONE_AT(2, 1, 17) },
  { "abs", run_abs, ONE(1, 17) },
  { "square", run_square, ONE(1, 17) },
  { "relu", run_relu, ONE(1, 17) },
  { "gelu", run_gelu, ONE(1, 33) },
  { "gelu_tanh", run_gelu_tanh, ONE(1, 33) },
  { "tanh", run_tanh, ONE(1, 17) },
  { "sigmoid", run_sigmoid, ONE(1, 17) },
  { "add_scalar", run_add_scalar, ONE(1, 5) },
  { "mul_scalar", run_mul_scalar, ONE(1, 5) },
  { "pow_scalar", run_pow_scalar, ONE_AT(2, 1, 17) },
  { "clamp_min", run_clamp_min, ONE(1, 17) },
  { "clamp_max", run_clamp_max, ONE(1, 17) },
  { "sum first", run_sum_first, ONE(2, 3, 4) },
  { "sum last", run_sum_last, ONE(2, 3, 4) },
  { "mean middle", run_mean_middle, ONE(3, 2, 3, 4) },
  { "mean all", run_mean_all, ONE(3, 2, 3, 4) },
  { "max middle", run_max_middle, ONE(3, 2, 3, 4) },
  { "min all", run_min_all, ONE(2, 3, 4) },
  { "matmul", run_matmul, 2, { S(2, 3, 5), S(2, 5, 2) } },
  { "matmul batched", run_matmul, 2, { S(3, 2, 3, 4), S(3, 2, 4, 2) } },
  { "matmul shared b", run_matmul, 2, { S(3, 2, 3, 4), S(2, 4, 2) } },
  { "matmul shared a", run_matmul, 2, { S(3, 1, 3, 4), S(3, 3, 4, 2) } },
  { "matmul views", run_matmul_views, 2, { S(2, 5, 3), S(2, 5, 6) } },
  { "linear", run_linear_none, 3, { S(3, 2, 3, 4), S(2, 5, 4), S(1, 5) } },
  { "linear without bias", run_linear_bare, 2, { S(2, 3, 4), S(2, 5, 4) } },
  { "linear relu", run_linear_relu, 3, { S(2, 3, 4), S(2, 5, 4), AT(0.3f, 1, 5) } },
  { "linear gelu", run_linear_gelu, 3, { S(2, 3, 4), S(2, 5, 4), S(1, 5) } },
  { "linear gelu_tanh", run_linear_gelu_tanh, 3, { S(2, 3, 4), S(2, 5, 4), S(1, 5) } },
  { "linear tanh", run_linear_tanh, 3, { S(2, 3, 4), S(2, 5, 4), S(1, 5) } },
  { "reshape", run_reshape, ONE(3, 2, 2, 3) },
  { "transpose", run_transpose, ONE(3, 2, 3, 4) },
  { "slice", run_slice, ONE(3, 2, 4, 3) },
  { "select", run_select, ONE(3, 2, 4, 3) },
  { "expand", run_expand, ONE(2, 3, 1) },
  { "concat", run_concat, 3, { S(2, 2, 3), S(2, 2, 1), S(2, 2, 2) } },
  { "concat many", run_concat_many, 2, { S(2, 2, 3), S(2, 1, 3) } },
  { "stack", run_stack, 2, { S(2, 2, 3), S(2, 2, 3) } },
  { "softmax", run_softmax, ONE(2, 3, 5) },
  { "log_softmax", run_log_softmax, ONE(2, 3, 5) },
  { "layer_norm", run_layer_norm, 3, { S(2, 3, 7), S(1, 7), S(1, 7) } },
  { "layer_norm residual", run_layer_norm_residual, 4, { S(2, 3, 7), S(2, 3, 7), S(1, 7), S(1, 7) } },
  { "attention", run_attention, 3, { S(3, 2, 5, 6), S(3, 2, 5, 6), S(3, 2, 5, 6) } },
  { "attention causal, masked", run_attention_causal, 3, { S(3, 2, 5, 6), S(3, 2, 5, 6), S(3, 2, 5, 6) } },
  { "attention of slices", run_attention_fused, ONE(3, 2, 5, 18) },
  { "embedding", run_embedding, ONE(2, 5, 3) },
  { "gather_rows", run_gather_rows, ONE(2, 3, 4) },
  { "cross_entropy", run_cross_entropy, ONE(2, 4, 5) },
  { "mse_loss", run_mse_loss, 2, { S(2, 3, 4), S(2, 3, 4) } },
  { "dropout", run_dropout, ONE(1, 33) },
  { "topk", run_topk, ONE(2, 3, 7) },
  { "topk absolute", run_topk_absolute, ONE(2, 3, 7) },
  { "sparse_decode", run_sparse_decode, 3, { S(2, 3, 2), S(2, 5, 4), S(1, 4) } },
  { "cast and self product", run_cast, ONE(1, 9) },
};

static void test_gradients(void **state) {
  (void)state;
  sl_mem_stats before = sl_mem_get_stats();
  for (size_t i = 0; i < LENGTH(cases); i++) check_case(&cases[i]);
  sl_pool_trim();
  assert_int_equal(sl_mem_get_stats().blocks, before.blocks);
}

/* Only what asks for a gradient gets one. */
static void test_untracked_inputs_get_none(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(cases); i++) check_untracked(&cases[i]);
}

/* The case functions make their id and mask tensors with CHECK, so those with
 * constants are left to test_ops. */
static bool allocates_constants(const gradient_case *c) {
  return c->run == run_embedding || c->run == run_gather_rows || c->run == run_cross_entropy ||
         c->run == run_sparse_decode || c->run == run_attention_causal || c->run == run_attention_fused;
}

static void test_torture(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(cases); i++)
    if (!allocates_constants(&cases[i])) check_torture(&cases[i]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_gradients),
    cmocka_unit_test(test_untracked_inputs_get_none),
    cmocka_unit_test(test_torture),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
