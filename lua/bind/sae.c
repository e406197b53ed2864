/*** Sparse autoencoders: x_hat = sum of p_i W_dec[i] over the selected latents + b_dec, p = relu(W_enc u + b_enc).
 * Fields: d_in, d_sae, k (nil for jumprelu), architecture ("topk", "batchtopk", "groupmax", "jumprelu"),
 * apply_b_dec_to_input, normalize_decoder, topk_threshold_lr (batchtopk), window_tokens.
 * Weights are laid out as in sparsify: row i of W_enc and W_dec is latent i.
 * @classmod saelua.Sae */
#include "bind_sae.h"

#include <string.h>

sl_sae *sl_lua_check_sae(lua_State *L, int index) { return sl_lua_check_box(L, index, SL_LUA_SAE, "the SAE"); }

sl_dtype sl_lua_option_product_dtype(lua_State *L, int index, const char *name, bool *plain) {
  static const char *const names[] = { "f32", "f32_plain", "bf16", NULL };
  int choice = sl_lua_check_choice(L, sl_lua_option_string(L, index, name, "f32"), name, names);
  *plain = choice == 1;
  return choice == 2 ? SL_BF16 : SL_F32;
}

/*** Makes a dictionary with sparsify's start: W_enc uniform in (-1/sqrt(d_in), 1/sqrt(d_in)), W_dec its rows (of length
 * one), biases zero.
 * @function sl.new_sae
 * @tparam table options d_in, d_sae, k; activation ("topk", "batchtopk", "groupmax"; "jumprelu" takes no k),
 *   apply_b_dec_to_input (true), normalize_decoder (true), topk_threshold_lr (0.01; batchtopk), seed (0), device ("cpu")
 * @treturn Sae */
static int sae_new(lua_State *L) {
  static const char *const names[] = { "d_in", "d_sae", "k", "activation", "apply_b_dec_to_input",
                                       "normalize_decoder", "topk_threshold_lr", "seed", "device", NULL };
  luaL_checktype(L, 1, LUA_TTABLE);
  sl_lua_check_options(L, 1, "new_sae", names);
  sl_sae_config config = sl_sae_config_topk(sl_lua_option_integer(L, 1, "d_in", 0),
                                            sl_lua_option_integer(L, 1, "d_sae", 0),
                                            sl_lua_option_integer(L, 1, "k", 0));
  sl_lua_check(L, sl_sae_activation_find(sl_lua_option_string(L, 1, "activation", "topk"), &config.activation));
  config.apply_b_dec_to_input = sl_lua_option_boolean(L, 1, "apply_b_dec_to_input", true);
  config.normalize_decoder = sl_lua_option_boolean(L, 1, "normalize_decoder", true);
  config.threshold_rate = sl_lua_option_number(L, 1, "topk_threshold_lr", config.threshold_rate);
  uint64_t seed = (uint64_t)sl_lua_option_integer(L, 1, "seed", 0);
  sl_device *device = sl_lua_option_device(L, 1, "device");
  void **box = sl_lua_new_box(L, SL_LUA_SAE);
  SL_LUA_TRY(L, sl_sae_create(device, &config, seed, (sl_sae **)box));
  return 1;
}

/*** x -> sparse codes.
 * @function encode
 * @tparam Tensor x f32 [tokens, d_in]
 * @tparam[opt] table options k (the configured one; batchtopk: the threshold, or with k the rows * k largest of x;
 *   jumprelu has none), dtype ("f32", from a bf16 product first where that is faster, with the
 *   same result to the bit; "f32_plain": never so; "bf16": the product in bf16)
 * @treturn Codes */
static int sae_encode(lua_State *L) {
  static const char *const names[] = { "k", "dtype", NULL };
  sl_sae *sae = sl_lua_check_sae(L, 1);
  sl_tensor *x = sl_lua_check_tensor(L, 2);
  sl_lua_check_options(L, 3, "encode", names);
  sl_sae_encode_opts opts = { .k = sl_lua_option_integer(L, 3, "k", 0) };
  opts.dtype = sl_lua_option_product_dtype(L, 3, "dtype", &opts.plain);
  void **box = sl_lua_new_box(L, SL_LUA_CODES);
  SL_LUA_TRY(L, sl_sae_encode(sae, x, &opts, (sl_codes **)box));
  sl_lua_pressure(L);
  return 1;
}

/*** Codes -> reconstruction.
 * @function decode
 * @tparam Codes codes
 * @treturn Tensor f32 [tokens, d_in] */
static int sae_decode(lua_State *L) {
  sl_sae *sae = sl_lua_check_sae(L, 1);
  sl_codes *codes = sl_lua_check_box(L, 2, SL_LUA_CODES, "the codes");
  SL_LUA_TRY(L, sl_sae_decode(sae, codes, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/*** One parameter, live: W_enc [d_sae, d_in], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in]; and threshold, of
 * jumprelu [d_sae], of batchtopk [2] (the threshold, and the weight that its running mean has gathered). To change it, use set_parameter.
 * @function parameter
 * @tparam string name
 * @treturn Tensor */
static int sae_parameter(lua_State *L) {
  sl_sae *sae = sl_lua_check_sae(L, 1);
  const char *name = luaL_checkstring(L, 2);
  sl_lua_check(L, sl_sae_parameter(sae, name, sl_lua_new_tensor(L)));
  return 1;
}

/*** Copies values into a parameter; decoder rows get length one again where configured.
 * @function set_parameter
 * @tparam string name
 * @tparam Tensor value
 * @treturn Sae itself */
static int sae_set_parameter(lua_State *L) {
  sl_sae *sae = sl_lua_check_sae(L, 1);
  const char *name = luaL_checkstring(L, 2);
  sl_lua_check(L, sl_sae_set_parameter(sae, name, sl_lua_check_tensor(L, 3)));
  lua_settop(L, 1);
  return 1;
}

/*** Restores what is derived from the parameters (unit decoder rows, the bf16 copy) after they were written in place.
 * @function parameters_changed
 * @treturn Sae itself */
static int sae_parameters_changed(lua_State *L) {
  sl_lua_check(L, sl_sae_parameters_changed(sl_lua_check_sae(L, 1)));
  lua_settop(L, 1);
  return 1;
}

/*** All trained parameters in order.
 * @function parameters
 * @treturn {{string,Tensor},...} */
static int sae_parameters(lua_State *L) {
  sl_sae *sae = sl_lua_check_sae(L, 1);
  lua_newtable(L);
  for (int i = 0; i < SL_SAE_PARAMETERS; i++) {
    lua_createtable(L, 2, 0);
    lua_pushstring(L, sl_sae_parameter_name(i));
    lua_rawseti(L, -2, 1);
    sl_lua_check(L, sl_sae_parameter(sae, sl_sae_parameter_name(i), sl_lua_new_tensor(L)));
    lua_rawseti(L, -2, 2);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/*** b_dec from data: "mean", "geometric_median" (Weiszfeld, tolerance 1e-5, at most 100 rounds) or "zeros".
 * @function init_b_dec
 * @tparam string how
 * @tparam[opt] Tensor x f32 [tokens, d_in]; not needed for zeros
 * @treturn Sae itself */
static int sae_init_b_dec(lua_State *L) {
  static const char *const names[] = { "zeros", "mean", "geometric_median", NULL };
  sl_sae *sae = sl_lua_check_sae(L, 1);
  int how = sl_lua_check_choice(L, luaL_checkstring(L, 2), "init_b_dec", names);
  sl_lua_check(L, sl_sae_init_b_dec(sae, sl_lua_opt_tensor(L, 3), (sl_sae_center)how));
  lua_settop(L, 1);
  return 1;
}

/*** Share of latents silent for more than a number of training tokens.
 * @function dead_fraction
 * @tparam number tokens
 * @treturn number */
static int sae_dead_fraction(lua_State *L) {
  double share;
  sl_lua_check(L, sl_sae_dead_fraction(sl_lua_check_sae(L, 1), (int64_t)luaL_checknumber(L, 2), &share));
  lua_pushnumber(L, share);
  return 1;
}

/*** Share of latents used by less than `rate` of the training tokens since the window began; NaN for none.
 * @function rare_fraction
 * @tparam number rate
 * @treturn number */
static int sae_rare_fraction(lua_State *L) {
  double share;
  sl_lua_check(L, sl_sae_rare_fraction(sl_lua_check_sae(L, 1), luaL_checknumber(L, 2), &share));
  lua_pushnumber(L, share);
  return 1;
}

/*** Starts a new window for rare_fraction.
 * @function reset_window */
static int sae_reset_window(lua_State *L) {
  sl_lua_check(L, sl_sae_reset_window(sl_lua_check_sae(L, 1)));
  return 0;
}

/*** A copy of the gradient gathered so far, before projection and clipping.
 * @function grad
 * @tparam string name of a parameter
 * @treturn Tensor */
static int sae_grad(lua_State *L) {
  sl_sae *sae = sl_lua_check_sae(L, 1);
  const char *name = luaL_checkstring(L, 2);
  SL_LUA_TRY(L, sl_sae_grad(sae, name, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/*** Drops the gradient gathered so far.
 * @function zero_grad */
static int sae_zero_grad(lua_State *L) {
  sl_lua_check(L, sl_sae_zero_grad(sl_lua_check_sae(L, 1)));
  return 0;
}

/*** sparsify's learning rate for Adam: 2e-4 / sqrt(d_sae / 2^14).
 * @function sl.auto_lr
 * @tparam integer d_sae
 * @treturn number */
static int auto_lr(lua_State *L) {
  lua_pushnumber(L, sl_sae_auto_lr(sl_lua_check_integer(L, 1, 1, INT32_MAX)));
  return 1;
}

/* Fields; methods come from the table in the upvalue. */
static int sae_index(lua_State *L) {
  lua_pushvalue(L, 2);
  lua_rawget(L, lua_upvalueindex(1));
  if (!lua_isnil(L, -1)) return 1;
  sl_sae *sae = sl_lua_check_sae(L, 1);
  const char *name = luaL_checkstring(L, 2);
  if (strcmp(name, "d_in") == 0) lua_pushnumber(L, (lua_Number)sae->config.d_in);
  else if (strcmp(name, "d_sae") == 0) lua_pushnumber(L, (lua_Number)sae->config.d_sae);
  else if (strcmp(name, "k") == 0 && sae->config.k > 0) lua_pushnumber(L, (lua_Number)sae->config.k);
  else if (strcmp(name, "architecture") == 0) lua_pushstring(L, sl_sae_activation_name(sae->config.activation));
  else if (strcmp(name, "apply_b_dec_to_input") == 0) lua_pushboolean(L, sae->config.apply_b_dec_to_input);
  else if (strcmp(name, "normalize_decoder") == 0) lua_pushboolean(L, sae->config.normalize_decoder);
  else if (strcmp(name, "topk_threshold_lr") == 0 && sae->config.activation == SL_SAE_BATCHTOPK)
    lua_pushnumber(L, sae->config.threshold_rate);
  else if (strcmp(name, "window_tokens") == 0) lua_pushnumber(L, (lua_Number)sae->window_tokens);
  else return 0;
  return 1;
}

static int sae_gc(lua_State *L) {
  void **box = luaL_checkudata(L, 1, SL_LUA_SAE);
  sl_sae_release(*box);
  *box = NULL;
  return 0;
}

static int sae_tostring(lua_State *L) {
  sl_sae *sae = sl_lua_check_sae(L, 1);
  const sl_sae_config *config = &sae->config;
  lua_pushfstring(L, "sae %s: d_in %d, %d latents, ", sl_sae_activation_name(config->activation), (int)config->d_in,
                  (int)config->d_sae);
  if (config->k > 0) lua_pushfstring(L, "k %d, ", (int)config->k);
  else lua_pushliteral(L, "");
  lua_pushstring(L, sae->device->name);
  lua_concat(L, 3);
  return 1;
}

/*** Gives the memory back now.
 * @function free */
static const luaL_Reg methods[] = {
  { "encode", sae_encode }, { "decode", sae_decode }, { "parameter", sae_parameter },
  { "set_parameter", sae_set_parameter }, { "parameters_changed", sae_parameters_changed },
  { "parameters", sae_parameters }, { "init_b_dec", sae_init_b_dec }, { "dead_fraction", sae_dead_fraction },
  { "rare_fraction", sae_rare_fraction }, { "reset_window", sae_reset_window },
  { "grad", sae_grad }, { "zero_grad", sae_zero_grad },
  { "free", sae_gc }, { NULL, NULL },
};
static const luaL_Reg meta[] = { { "__gc", sae_gc }, { "__tostring", sae_tostring }, { NULL, NULL } };
static const luaL_Reg functions[] = { { "new_sae", sae_new }, { "auto_lr", auto_lr }, { NULL, NULL } };

void sl_lua_open_sae(lua_State *L) {
  sl_lua_new_class(L, SL_LUA_SAE, methods, meta);
  luaL_getmetatable(L, SL_LUA_SAE);
  lua_getfield(L, -1, "__index"); /* stack: metatable, methods */
  lua_pushvalue(L, -1);
  lua_setfield(L, -3, "methods"); /* where Lua adds its own, and completion looks */
  lua_pushcclosure(L, sae_index, 1);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
  luaL_setfuncs(L, functions, 0);
}
