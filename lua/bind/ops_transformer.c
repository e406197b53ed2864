/*** Operations on tensors that transformers are made of: attention, norms, rotary positions, gated activations.
 * @module saelua.core */
#include "bind.h"

#include "core/ops/nn.h"
#include "core/ops/transformer.h"

/*** Exact multi-head attention: softmax(q k' scale) v in each head, float32 throughout. A query that sees no key yields 0.
 * @function attention
 * @tparam Tensor q [B, T, heads * head_dim]
 * @tparam Tensor k [B, T, kv_heads * head_dim]
 * @tparam Tensor v [B, T, kv_heads * head_dim]
 * @tparam table options heads; kv_heads (as heads; a divisor of it: each key head serves heads / kv_heads neighbouring
 *   heads); mask (u8 [B, T], 0 = padding); scale (1/sqrt(head_dim)); causal (false); soft_cap (scores s become
 *   soft_cap tanh(s / soft_cap); none); window (query i sees key j only if i - j < window; all)
 * @treturn Tensor [B, T, heads * head_dim] */
static int attention(lua_State *L) {
  static const char *const names[] = { "heads", "kv_heads", "mask", "scale", "causal", "soft_cap", "window", NULL };
  sl_tensor *q = sl_lua_check_tensor(L, 1), *k = sl_lua_check_tensor(L, 2), *v = sl_lua_check_tensor(L, 3);
  sl_lua_check_options(L, 4, "attention", names);
  sl_attention_options options = { .heads = sl_lua_option_integer(L, 4, "heads", 1),
                                   .kv_heads = sl_lua_option_integer(L, 4, "kv_heads", 0),
                                   .scale = (float)sl_lua_option_number(L, 4, "scale", 0),
                                   .causal = sl_lua_option_boolean(L, 4, "causal", false),
                                   .soft_cap = (float)sl_lua_option_number(L, 4, "soft_cap", 0),
                                   .window = sl_lua_option_integer(L, 4, "window", 0) };
  sl_tensor *mask = sl_lua_option_tensor(L, 4, "mask");
  SL_LUA_TRY(L, sl_attention(q, k, v, mask, &options, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/*** (x - mean) / sqrt(var + eps) * weight + bias over the last dimension.
 * @function layer_norm
 * @tparam Tensor x
 * @tparam Tensor weight
 * @tparam Tensor bias
 * @tparam[opt=1e-5] number eps
 * @treturn Tensor */
static int layer_norm(lua_State *L) {
  sl_tensor *x = sl_lua_check_tensor(L, 1), *w = sl_lua_check_tensor(L, 2), *b = sl_lua_check_tensor(L, 3);
  SL_LUA_TRY(L, sl_layer_norm(x, NULL, w, b, (float)luaL_optnumber(L, 4, 1e-5), NULL, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/*** x / sqrt(mean(x^2) + eps) * (weight + offset) over the last dimension.
 * @function rms_norm
 * @tparam Tensor x
 * @tparam Tensor weight
 * @tparam[opt] table options eps (1e-6); offset (0, as in Llama; 1, as in Gemma); residual (a tensor that is added to x
 *   first)
 * @treturn Tensor */
static int rms_norm(lua_State *L) {
  static const char *const names[] = { "eps", "offset", "residual", NULL };
  sl_tensor *x = sl_lua_check_tensor(L, 1), *w = sl_lua_check_tensor(L, 2);
  sl_lua_check_options(L, 3, "rms_norm", names);
  sl_rms_norm_options options = { .eps = (float)sl_lua_option_number(L, 3, "eps", 1e-6),
                                  .offset = (float)sl_lua_option_number(L, 3, "offset", 0),
                                  .residual = sl_lua_option_tensor(L, 3, "residual") };
  SL_LUA_TRY(L, sl_rms_norm(x, w, &options, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/*** Rotary positions: in each head, pairs of columns turn by position times frequency. q and k that lie side by side are
 * one x of heads + kv_heads heads.
 * @function rotary
 * @tparam Tensor x [B, T, heads * head_dim]
 * @tparam table options heads; width (columns of a head that turn; all); pairs ("half": column i with i + width/2, as
 *   Llama and GPT-NeoX; "adjacent": 2i with 2i + 1, as GPT-J; "half"); base (pair i turns by base^(-2i/width) a position;
 *   10000) or frequencies (f32 [width/2]); positions (i32 [T] or [B, T]; 0 .. T - 1)
 * @treturn Tensor [B, T, heads * head_dim] */
static int rotary(lua_State *L) {
  static const char *const names[] = { "heads", "width", "pairs", "base", "frequencies", "positions", NULL };
  static const char *const pairs[] = { "half", "adjacent", NULL };
  sl_tensor *x = sl_lua_check_tensor(L, 1);
  sl_lua_check_options(L, 2, "rotary", names);
  sl_rotary_options options = { .heads = sl_lua_option_integer(L, 2, "heads", 1),
                                .width = sl_lua_option_integer(L, 2, "width", 0),
                                .base = sl_lua_option_number(L, 2, "base", 0),
                                .frequencies = sl_lua_option_tensor(L, 2, "frequencies"),
                                .positions = sl_lua_option_tensor(L, 2, "positions") };
  options.adjacent = sl_lua_check_choice(L, sl_lua_option_string(L, 2, "pairs", "half"), "pairs", pairs) == 1;
  SL_LUA_TRY(L, sl_rotary(x, &options, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/*** f(gate) * up: the gated activation of SwiGLU ("silu"), GeGLU ("gelu", "gelu_tanh") and ReGLU ("relu").
 * @function gated
 * @tparam Tensor gate [..., n], or [..., 2n] with up in its second half
 * @tparam ?Tensor up [..., n], or nil
 * @tparam[opt="silu"] string activation silu gelu gelu_tanh relu
 * @treturn Tensor [..., n] */
static int gated(lua_State *L) {
  static const char *const names[] = {
#define X(id, name, f, df) name,
    SL_GATE_LIST(X)
#undef X
    NULL
  };
  sl_tensor *gate = sl_lua_check_tensor(L, 1), *up = sl_lua_opt_tensor(L, 2);
  int act = sl_lua_check_choice(L, luaL_optstring(L, 3, "silu"), "activation", names);
  SL_LUA_TRY(L, sl_gated(gate, up, (sl_gate)act, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

static const luaL_Reg functions[] = {
  { "attention", attention }, { "layer_norm", layer_norm }, { "rms_norm", rms_norm },
  { "rotary", rotary }, { "gated", gated }, { NULL, NULL },
};

void sl_lua_open_ops_transformer(lua_State *L) { luaL_setfuncs(L, functions, 0); }
