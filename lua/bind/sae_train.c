/*** Training a dictionary: the loss of a batch, its gradients, the optimiser.
 *
 *     local loss = sae:loss(x, { kind = "fvu", auxk_alpha = 1 / 32 })
 *     loss:backward()
 *     optim:step(lr)
 * @classmod saelua.Sae */
#include "bind_sae.h"

#include <string.h>

#define SL_LUA_LOSS "saelua.SaeLoss"
#define SL_LUA_OPTIM "saelua.SaeOptim"

typedef struct {
  sl_sae_loss *loss;               /* NULL once freed */
  bool used;                       /* by backward: only the numbers are left */
} loss_box;

/*** The loss of a batch (formulas in core/sae/loss.h). Fields of the result: loss, mse, fvu, explained_variance, l0,
 * cosine, auxk, multi_topk, total_variance, tokens, dead, nonfinite, crowded (batchtopk on a GPU: tokens that may have
 * had more of the batch's largest than were looked at). Reading one waits for the device.
 * @function loss
 * @tparam Tensor x f32 [tokens, d_in]
 * @tparam[opt] table options kind ("fvu" or "mse"), k, total_variance (of the batch), auxk_alpha (0),
 *   dead_feature_threshold (10,000,000 tokens), multi_alpha (0), micro_acc_steps (1), dtype ("f32" or "bf16": the
 *   encoder product)
 * @treturn SaeLoss */
static int sae_loss(lua_State *L) {
  static const char *const names[] = { "kind", "k", "total_variance", "auxk_alpha", "dead_feature_threshold",
                                       "multi_alpha", "micro_acc_steps", "dtype", NULL };
  static const char *const kinds[] = { "mse", "fvu", NULL };
  sl_sae *sae = sl_lua_check_sae(L, 1);
  sl_tensor *x = sl_lua_check_tensor(L, 2);
  sl_lua_check_options(L, 3, "loss", names);
  sl_sae_loss_opts opts = sl_sae_loss_defaults();
  int kind = sl_lua_check_choice(L, sl_lua_option_string(L, 3, "kind", "fvu"), "kind", kinds);
  opts.kind = kind ? SL_SAE_FVU : SL_SAE_MSE;
  opts.k = sl_lua_option_integer(L, 3, "k", 0);
  opts.total_variance = sl_lua_option_number(L, 3, "total_variance", 0);
  opts.auxk_alpha = sl_lua_option_number(L, 3, "auxk_alpha", opts.auxk_alpha);
  opts.dead_feature_threshold = sl_lua_option_integer(L, 3, "dead_feature_threshold", 10000000);
  opts.multi_alpha = sl_lua_option_number(L, 3, "multi_alpha", opts.multi_alpha);
  opts.micro_acc_steps = sl_lua_option_integer(L, 3, "micro_acc_steps", 1);
  opts.dtype = sl_lua_option_product_dtype(L, 3, "dtype", &opts.plain);
  loss_box *box = lua_newuserdata(L, sizeof *box);
  *box = (loss_box){ 0 };
  luaL_getmetatable(L, SL_LUA_LOSS);
  lua_setmetatable(L, -2);
  SL_LUA_TRY(L, sl_sae_loss_create(sae, x, &opts, &box->loss));
  sl_lua_pressure(L);
  return 1;
}

static loss_box *check_loss(lua_State *L) {
  loss_box *box = luaL_checkudata(L, 1, SL_LUA_LOSS);
  if (!box->loss || box->used) luaL_error(L, "this loss was used up by backward (or freed): make a new one for the next batch");
  return box;
}

/*** Gives the batch's memory back now, without a backward.
 * @function SaeLoss:free */
static int loss_gc(lua_State *L) {
  loss_box *box = luaL_checkudata(L, 1, SL_LUA_LOSS);
  sl_sae_loss_release(box->loss);
  box->loss = NULL;
  return 0;
}

/*** Adds the gradients to the dictionary's, counts what fired, and gives the batch's memory back; the numbers stay.
 * @function SaeLoss:backward
 * @tparam[opt=1] number scale 1 / grad_acc_steps for an average over batches */
static int loss_backward(lua_State *L) {
  loss_box *box = check_loss(L);
  double scale = luaL_optnumber(L, 2, 1);
  SL_LUA_TRY(L, sl_sae_backward(box->loss, scale));
  box->used = true;
  return 0;
}

/*** Backward and the optimiser's step in one, for little memory: a sixteenth of the gradient exists at a time. The same
 * numbers as backward() and optim:step(lr) up to the rounding of b_dec and of the clip; a clip costs a second pass over the
 * gradients. Not for accumulated batches, nor for a loss with micro_acc_steps.
 * @function SaeLoss:step
 * @tparam SaeOptim optim of the same dictionary
 * @tparam number lr */
static int loss_step(lua_State *L) {
  loss_box *box = check_loss(L);
  sl_sae_optim *optim = sl_lua_check_box(L, 2, SL_LUA_OPTIM, "the optimiser");
  double lr = luaL_checknumber(L, 3);
  SL_LUA_TRY(L, sl_sae_step(box->loss, optim, lr));
  box->used = true;
  return 0;
}

/*** The codes of the batch, before backward.
 * @function SaeLoss:codes
 * @treturn Codes */
static int loss_codes(lua_State *L) {
  loss_box *box = check_loss(L);
  sl_codes *codes;
  sl_lua_check(L, sl_sae_loss_codes(box->loss, &codes));
  sl_lua_push_codes(L, codes);
  return 1;
}

static int loss_index(lua_State *L) {
  lua_pushvalue(L, 2);
  lua_rawget(L, lua_upvalueindex(1));
  if (!lua_isnil(L, -1)) return 1;
  loss_box *box = luaL_checkudata(L, 1, SL_LUA_LOSS);
  const char *name = luaL_checkstring(L, 2);
  if (!box->loss) return luaL_error(L, "this loss was freed: read \"%s\" before", name);
  sl_lua_check(L, sl_sae_loss_read(box->loss));
  const sl_sae_loss *n = box->loss;
  const struct { const char *name; double value; } fields[] = {
    { "loss", n->loss }, { "mse", n->mse }, { "fvu", n->fvu }, { "explained_variance", n->explained_variance },
    { "l0", n->l0 }, { "cosine", n->cosine }, { "auxk", n->auxk }, { "multi_topk", n->multi_topk },
    { "total_variance", n->total_variance }, { "tokens", (double)n->tokens }, { "dead", (double)n->dead },
    { "nonfinite", (double)n->nonfinite }, { "crowded", (double)n->crowded },
  };
  for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
    if (strcmp(name, fields[i].name) != 0) continue;
    lua_pushnumber(L, fields[i].value);
    return 1;
  }
  return 0;
}

/* -- Optimiser -------------------------------------------------------------------------------- */

static sl_sae_optim *check_optim(lua_State *L) { return sl_lua_check_box(L, 1, SL_LUA_OPTIM, "the optimiser"); }

/*** The optimiser of one dictionary: projection, global clip, Adam or SGD, unit rows in one pass.
 * Fields: grad_norm (of the last step), steps.
 * @function sl.sae_optim
 * @tparam Sae sae
 * @tparam[opt] table options rule ("adam"; "adam8bit": Adam with moments in 8 bits; "sgd"), beta1 (0.9), beta2 (0.999), eps
 *   (1e-8), weight_decay (0), clip_norm (0 = off)
 * @treturn SaeOptim */
static int optim_new(lua_State *L) {
  static const char *const names[] = { "rule", "beta1", "beta2", "eps", "weight_decay", "clip_norm", NULL };
  static const char *const rules[] = { "adam", "sgd", "adam8bit", NULL };
  static const sl_sae_rule rule_ids[] = { SL_SAE_ADAM, SL_SAE_SGD, SL_SAE_ADAM8 };
  sl_sae *sae = sl_lua_check_sae(L, 1);
  sl_lua_check_options(L, 2, "sae_optim", names);
  sl_sae_optim_config config = sl_sae_optim_defaults();
  int rule = sl_lua_check_choice(L, sl_lua_option_string(L, 2, "rule", "adam"), "rule", rules);
  config.rule = rule_ids[rule];
  config.beta1 = sl_lua_option_number(L, 2, "beta1", config.beta1);
  config.beta2 = sl_lua_option_number(L, 2, "beta2", config.beta2);
  config.eps = sl_lua_option_number(L, 2, "eps", config.eps);
  config.weight_decay = sl_lua_option_number(L, 2, "weight_decay", 0);
  config.clip_norm = sl_lua_option_number(L, 2, "clip_norm", 0);
  void **box = sl_lua_new_box(L, SL_LUA_OPTIM);
  SL_LUA_TRY(L, sl_sae_optim_create(sae, &config, (sl_sae_optim **)box));
  return 1;
}

/*** One step with the gathered gradients, which are zero afterwards.
 * @function SaeOptim:step
 * @tparam number lr */
static int optim_step(lua_State *L) {
  sl_sae_optim *optim = check_optim(L);
  double lr = luaL_checknumber(L, 2);
  SL_LUA_TRY(L, sl_sae_optim_step(optim, lr));
  return 0;
}

/*** The live tensors that a checkpoint needs besides the parameters.
 * @function SaeOptim:state
 * @treturn {{string,Tensor},...} */
static int optim_state(lua_State *L) {
  sl_sae_optim *optim = check_optim(L);
  lua_newtable(L);
  for (int i = 0;; i++) {
    const char *name;
    sl_tensor *tensor;
    sl_status status = sl_sae_optim_state(optim, i, &name, &tensor);
    if (status == SL_ENOTFOUND) return 1;
    sl_lua_check(L, status);
    lua_createtable(L, 2, 0);
    sl_lua_push_tensor(L, tensor);
    lua_rawseti(L, -2, 2);
    lua_pushstring(L, name);
    lua_rawseti(L, -2, 1);
    lua_rawseti(L, -2, i + 1);
  }
}

/*** Sets the number of steps taken, when a checkpoint is loaded.
 * @function SaeOptim:set_steps
 * @tparam integer steps */
static int optim_set_steps(lua_State *L) {
  check_optim(L)->step = sl_lua_check_integer(L, 2, 0, INT64_C(1) << 52);
  return 0;
}

/*** Tokens of the dictionary's present firing window, and setting them when a checkpoint is loaded.
 * @function SaeOptim:window_tokens
 * @treturn number */
static int optim_window_tokens(lua_State *L) {
  lua_pushnumber(L, (lua_Number)check_optim(L)->sae->window_tokens);
  return 1;
}

/*** Sets the tokens of the firing window, when a checkpoint is loaded.
 * @function SaeOptim:set_window_tokens
 * @tparam number tokens */
static int optim_set_window_tokens(lua_State *L) {
  check_optim(L)->sae->window_tokens = (int64_t)luaL_checknumber(L, 2);
  return 0;
}

static void push_grad_norm(lua_State *L, const sl_sae_optim *optim) {
  double norm;
  sl_lua_check(L, sl_sae_optim_grad_norm(optim, &norm));
  lua_pushnumber(L, norm);
}

static int optim_index(lua_State *L) {
  lua_pushvalue(L, 2);
  lua_rawget(L, lua_upvalueindex(1));
  if (!lua_isnil(L, -1)) return 1;
  sl_sae_optim *optim = check_optim(L);
  const char *name = luaL_checkstring(L, 2);
  if (strcmp(name, "steps") == 0) lua_pushnumber(L, (lua_Number)optim->step);
  else if (strcmp(name, "grad_norm") == 0) push_grad_norm(L, optim);
  else return 0;
  return 1;
}

/*** Gives the moments' memory back now.
 * @function SaeOptim:free */
static int optim_gc(lua_State *L) {
  void **box = luaL_checkudata(L, 1, SL_LUA_OPTIM);
  sl_sae_optim_release(*box);
  *box = NULL;
  return 0;
}

static const luaL_Reg loss_methods[] = {
  { "backward", loss_backward }, { "step", loss_step }, { "codes", loss_codes }, { "free", loss_gc }, { NULL, NULL },
};
static const luaL_Reg loss_meta[] = { { "__gc", loss_gc }, { NULL, NULL } };
static const luaL_Reg optim_methods[] = {
  { "step", optim_step }, { "state", optim_state }, { "set_steps", optim_set_steps },
  { "window_tokens", optim_window_tokens }, { "set_window_tokens", optim_set_window_tokens },
  { "free", optim_gc }, { NULL, NULL },
};
static const luaL_Reg optim_meta[] = { { "__gc", optim_gc }, { NULL, NULL } };

/* Fields besides the methods: __index becomes a closure over the method table. */
static void add_fields(lua_State *L, const char *metatable, lua_CFunction index) {
  luaL_getmetatable(L, metatable);
  lua_getfield(L, -1, "__index"); /* stack: metatable, methods */
  lua_pushvalue(L, -1);
  lua_setfield(L, -3, "methods");
  lua_pushcclosure(L, index, 1);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
}

void sl_lua_open_sae_train(lua_State *L) {
  sl_lua_new_class(L, SL_LUA_LOSS, loss_methods, loss_meta);
  add_fields(L, SL_LUA_LOSS, loss_index);
  sl_lua_new_class(L, SL_LUA_OPTIM, optim_methods, optim_meta);
  add_fields(L, SL_LUA_OPTIM, optim_index);
  luaL_getmetatable(L, SL_LUA_SAE); /* the loss is a method of the dictionary */
  lua_getfield(L, -1, "methods");
  lua_pushcfunction(L, sae_loss);
  lua_setfield(L, -2, "loss");
  lua_pop(L, 2);
  static const luaL_Reg functions[] = { { "sae_optim", optim_new }, { NULL, NULL } };
  luaL_setfuncs(L, functions, 0);
}
