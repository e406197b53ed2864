/* Every operation, forward and backward, against what PyTorch computed
 * (tests/parity/ops.py), within 1e-5. */
#include "tests/support/parity_case.h"

#include "core/ops/math.h"
#include "core/ops/nn.h"
#include "core/ops/sparse.h"

CASE(add, sl_add(x[0], x[1], out))
CASE(sub, sl_sub(x[0], x[1], out))
CASE(mul, sl_mul(x[0], x[1], out))
CASE(maximum, sl_binary(SL_BINARY_MAX, x[0], x[1], out))
CASE(minimum, sl_binary(SL_BINARY_MIN, x[0], x[1], out))
CASE(gelu, sl_unary(SL_UNARY_GELU, x[0], 0, out))
CASE(gelu_tanh, sl_unary(SL_UNARY_GELU_TANH, x[0], 0, out))
CASE(exp, sl_unary(SL_UNARY_EXP, x[0], 0, out))
CASE(tanh, sl_unary(SL_UNARY_TANH, x[0], 0, out))
CASE(sigmoid, sl_unary(SL_UNARY_SIGMOID, x[0], 0, out))
CASE(sum, sl_reduce(SL_REDUCE_SUM, x[0], 1, false, out))
CASE(mean, sl_reduce(SL_REDUCE_MEAN, x[0], -1, true, out))
CASE(max, sl_reduce(SL_REDUCE_MAX, x[0], 0, false, out))
CASE(min, sl_reduce(SL_REDUCE_MIN, x[0], 1, false, out))
CASE(matmul, sl_matmul(x[0], x[1], out))
CASE(linear, sl_linear(x[0], x[1], x[2], SL_ACT_NONE, out))
CASE(linear_gelu, sl_linear(x[0], x[1], x[2], SL_ACT_GELU_ERF, out))
CASE(linear_relu, sl_linear(x[0], x[1], x[2], SL_ACT_RELU, out))
CASE(softmax, sl_softmax(x[0], false, out))
CASE(log_softmax, sl_softmax(x[0], true, out))
CASE(layer_norm, sl_layer_norm(x[0], x[1], x[2], x[3], 1e-12f, NULL, out))
CASE(embedding, sl_embedding(x[0], ids, out))
CASE(cross_entropy, sl_cross_entropy(x[0], ids, NULL, out))
CASE(mse_loss, sl_mse_loss(x[0], x[1], out))
CASE(sparse_decode, sl_sparse_decode(x[0], ids, x[1], x[2], out))

static sl_status run_div(sl_tensor *const *x, sl_tensor *ids, sl_tensor **out) {
  (void)ids;
  sl_tensor *shifted = NULL;
  sl_status status = sl_unary(SL_UNARY_ADD_SCALAR, x[1], 4, &shifted);
  if (status == SL_OK) status = sl_div(x[0], shifted, out);
  sl_tensor_release(shifted);
  return status;
}

static sl_status attend(sl_tensor *const *x, sl_tensor *ids, bool causal, sl_tensor **out) {
  sl_tensor *mask = NULL;
  sl_attention_options options = { .heads = 3, .causal = causal };
  sl_status status = sl_cast(ids, SL_U8, &mask);
  if (status == SL_OK) status = sl_attention(x[0], x[1], x[2], mask, &options, out);
  sl_tensor_release(mask);
  return status;
}
CASE(attention, attend(x, ids, false, out))
CASE(attention_causal, attend(x, ids, true, out))

static sl_status select_largest(sl_tensor *const *x, bool absolute, sl_tensor **out) {
  sl_tensor *indices = NULL;
  sl_status status = sl_topk(x[0], 5, absolute, out, &indices);
  sl_tensor_release(indices);
  return status;
}
CASE(topk, select_largest(x, false, out))
CASE(topk_absolute, select_largest(x, true, out))

static const parity_case cases[] = {
  { "add", 2, run_add },
  { "sub", 2, run_sub },
  { "mul", 2, run_mul },
  { "div", 2, run_div },
  { "maximum", 2, run_maximum },
  { "minimum", 2, run_minimum },
  { "gelu", 1, run_gelu },
  { "gelu_tanh", 1, run_gelu_tanh },
  { "exp", 1, run_exp },
  { "tanh", 1, run_tanh },
  { "sigmoid", 1, run_sigmoid },
  { "sum", 1, run_sum },
  { "mean", 1, run_mean },
  { "max", 1, run_max },
  { "min", 1, run_min },
  { "matmul", 2, run_matmul },
  { "matmul_batched", 2, run_matmul },
  { "linear", 3, run_linear },
  { "linear_gelu", 3, run_linear_gelu },
  { "linear_relu", 3, run_linear_relu },
  { "softmax", 1, run_softmax },
  { "log_softmax", 1, run_log_softmax },
  { "layer_norm", 4, run_layer_norm },
  { "attention", 3, run_attention },
  { "attention_causal", 3, run_attention_causal },
  { "embedding", 1, run_embedding },
  { "cross_entropy", 1, run_cross_entropy },
  { "mse_loss", 2, run_mse_loss },
  { "topk", 1, run_topk },
  { "topk_absolute", 1, run_topk_absolute },
  { "sparse_decode", 3, run_sparse_decode },
};

static void test_parity(void **state) {
  (void)state;
  CHECK(sl_safetensors_open("tests/parity/fixtures/ops_torch.safetensors", &fixture));
  for (size_t i = 0; i < LENGTH(cases); i++) check_case(&cases[i]);
  sl_safetensors_close(fixture);
}

int main(void) {
  const struct CMUnitTest tests[] = { cmocka_unit_test(test_parity) };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
