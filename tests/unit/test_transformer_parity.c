/* The operations of decoder-only models, forward and backward, against transformers and PyTorch
 * (tests/parity/transformer.py), within 1e-5. */
#include "tests/support/parity_case.h"

#include "core/ops/nn.h"
#include "core/ops/transformer.h"

CASE(llama_rms_norm, sl_rms_norm(x[0], x[1], &(sl_rms_norm_options){ .eps = 1e-6f }, out))
CASE(gemma_rms_norm, sl_rms_norm(x[0], x[1], &(sl_rms_norm_options){ .eps = 1e-6f, .offset = 1 }, out))
CASE(llama_rotary, sl_rotary(x[0], &(sl_rotary_options){ .heads = 4, .positions = ids }, out))
CASE(neox_rotary, sl_rotary(x[0], &(sl_rotary_options){ .heads = 3, .width = 4, .positions = ids }, out))
CASE(gptj_rotary,
     sl_rotary(x[0], &(sl_rotary_options){ .heads = 3, .width = 10, .adjacent = true, .positions = ids }, out))
CASE(silu, sl_unary(SL_UNARY_SILU, x[0], 0, out))
CASE(swiglu, sl_gated(x[0], x[1], SL_GATE_SILU, out))
CASE(geglu, sl_gated(x[0], NULL, SL_GATE_GELU, out))
CASE(gemma_geglu, sl_gated(x[0], x[1], SL_GATE_GELU_TANH, out))
CASE(reglu, sl_gated(x[0], NULL, SL_GATE_RELU, out))
CASE(attention_grouped,
     sl_attention(x[0], x[1], x[2], NULL, &(sl_attention_options){ .heads = 6, .kv_heads = 2, .causal = true }, out))

static sl_status run_attention_gemma2(sl_tensor *const *x, sl_tensor *ids, sl_tensor **out) {
  (void)ids;
  sl_attention_options options = { .heads = 4, .kv_heads = 2, .causal = true, .soft_cap = 1.5f, .window = 4 };
  return sl_attention(x[0], x[1], x[2], NULL, &options, out);
}

static sl_status run_llama3_rotary(sl_tensor *const *x, sl_tensor *ids, sl_tensor **out) {
  sl_tensor *table = load("llama3_rotary", "table", -1);
  assert_non_null(table);
  sl_status status =
      sl_rotary(x[0], &(sl_rotary_options){ .heads = 4, .frequencies = table, .positions = ids }, out);
  sl_tensor_release(table);
  return status;
}

static const parity_case cases[] = {
  { "llama_rms_norm", 2, run_llama_rms_norm },
  { "gemma_rms_norm", 2, run_gemma_rms_norm },
  { "llama_rotary", 1, run_llama_rotary },
  { "llama_rotary_positions", 1, run_llama_rotary },
  { "llama3_rotary", 1, run_llama3_rotary },
  { "neox_rotary", 1, run_neox_rotary },
  { "gptj_rotary", 1, run_gptj_rotary },
  { "silu", 1, run_silu },
  { "swiglu", 2, run_swiglu },
  { "geglu", 1, run_geglu },
  { "gemma_geglu", 2, run_gemma_geglu },
  { "reglu", 1, run_reglu },
  { "attention_grouped", 3, run_attention_grouped },
  { "attention_gemma2", 3, run_attention_gemma2 },
};

static void test_parity(void **state) {
  (void)state;
  CHECK(sl_safetensors_open("tests/parity/fixtures/transformer.safetensors", &fixture));
  for (size_t i = 0; i < LENGTH(cases); i++) check_case(&cases[i]);
  sl_safetensors_close(fixture);
}

int main(void) {
  const struct CMUnitTest tests[] = { cmocka_unit_test(test_parity) };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
