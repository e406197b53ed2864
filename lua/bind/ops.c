/*** Operations on tensors, as functions of the module and, where natural, as methods of Tensor.
 * All are differentiable unless said otherwise; shapes broadcast as in NumPy; numbers may stand for tensors
 * in arithmetic. The maths is described in core/ops.
 * @module saelua.core */
#include "bind.h"

#include "core/ops/nn.h"
#include "core/ops/sparse.h"

/* -- Arithmetic ------------------------------------------------------------------------------- */

/* The operations of SL_UNARY_LIST and the binary ones; each returns a new tensor and is a method of Tensor too. */

/*** -x.
 * @function neg
 * @tparam Tensor x */
/*** e^x.
 * @function exp
 * @tparam Tensor x */
/*** Natural logarithm; -inf at 0, NaN below.
 * @function log
 * @tparam Tensor x */
/*** Square root; NaN below 0.
 * @function sqrt
 * @tparam Tensor x */
/*** |x|; gradient 0 at 0.
 * @function abs
 * @tparam Tensor x */
/*** -1, 0 or 1; gradient 0.
 * @function sign
 * @tparam Tensor x */
/*** x^2.
 * @function square
 * @tparam Tensor x */
/*** max(x, 0); gradient 0 at 0.
 * @function relu
 * @tparam Tensor x */
/*** x Phi(x), Phi the normal distribution function (by erf), as in BERT.
 * @function gelu
 * @tparam Tensor x */
/*** GELU's tanh approximation, as in GPT-2.
 * @function gelu_tanh
 * @tparam Tensor x */
/*** Hyperbolic tangent.
 * @function tanh
 * @tparam Tensor x */
/*** 1 / (1 + e^-x).
 * @function sigmoid
 * @tparam Tensor x */
/*** x / (1 + e^-x), also called swish.
 * @function silu
 * @tparam Tensor x */
/*** x + p.
 * @function add_scalar
 * @tparam Tensor x
 * @tparam number p */
/*** x p.
 * @function mul_scalar
 * @tparam Tensor x
 * @tparam number p */
/*** x^p; also the operator ^.
 * @function pow_scalar
 * @tparam Tensor x
 * @tparam number p */
/*** max(x, p); gradient 0 where p won.
 * @function clamp_min
 * @tparam Tensor x
 * @tparam number p */
/*** min(x, p); gradient 0 where p won.
 * @function clamp_max
 * @tparam Tensor x
 * @tparam number p */
/*** 1 where x > p, else 0; gradient 0.
 * @function gt_scalar
 * @tparam Tensor x
 * @tparam number p */
/*** a + b; shapes broadcast, a number may stand for either.
 * @function add
 * @tparam Tensor|number a
 * @tparam Tensor|number b
 * @treturn Tensor */
/*** a - b; shapes broadcast, a number may stand for either.
 * @function sub
 * @tparam Tensor|number a
 * @tparam Tensor|number b
 * @treturn Tensor */
/*** a b, element by element; shapes broadcast, a number may stand for either.
 * @function mul
 * @tparam Tensor|number a
 * @tparam Tensor|number b
 * @treturn Tensor */
/*** a / b; shapes broadcast, a number may stand for either.
 * @function div
 * @tparam Tensor|number a
 * @tparam Tensor|number b
 * @treturn Tensor */
/*** The larger of a and b; where they tie, each gets half of the gradient; shapes broadcast, a number may stand for either.
 * @function maximum
 * @tparam Tensor|number a
 * @tparam Tensor|number b
 * @treturn Tensor */
/*** The smaller of a and b; where they tie, each gets half of the gradient; shapes broadcast, a number may stand for either.
 * @function minimum
 * @tparam Tensor|number a
 * @tparam Tensor|number b
 * @treturn Tensor */
/*** 1 where a = b, else 0; takes two tensors, never recorded.
 * @function eq
 * @tparam Tensor a
 * @tparam Tensor b
 * @treturn Tensor */
/*** 1 where a > b, else 0; takes two tensors, never recorded (a number: gt_scalar).
 * @function gt
 * @tparam Tensor a
 * @tparam Tensor b
 * @treturn Tensor */

static int unary(lua_State *L, sl_unary_op op, int index, double p) {
  sl_tensor *x = sl_lua_check_tensor(L, index);
  SL_LUA_TRY(L, sl_unary(op, x, (float)p, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/* The upvalue names the operation: one closure for each line of SL_UNARY_LIST. */
static int unary_method(lua_State *L) {
  sl_unary_op op = (sl_unary_op)lua_tointeger(L, lua_upvalueindex(1));
  bool scalar = op == SL_UNARY_ADD_SCALAR || op == SL_UNARY_MUL_SCALAR || op == SL_UNARY_POW_SCALAR ||
                op == SL_UNARY_CLAMP_MIN || op == SL_UNARY_CLAMP_MAX || op == SL_UNARY_GT_SCALAR;
  return unary(L, op, 1, scalar ? luaL_checknumber(L, 2) : 0);
}

static int binary(lua_State *L, sl_binary_op op) {
  sl_tensor *a = sl_lua_check_tensor(L, 1), *b = sl_lua_check_tensor(L, 2);
  SL_LUA_TRY(L, sl_binary(op, a, b, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/* a - b and a / b where a is a number. */
static int number_minus(lua_State *L) {
  double a = lua_tonumber(L, 1);
  unary(L, SL_UNARY_NEG, 2, 0);
  return unary(L, SL_UNARY_ADD_SCALAR, lua_gettop(L), a);
}

static int number_over(lua_State *L) {
  double a = lua_tonumber(L, 1);
  unary(L, SL_UNARY_POW_SCALAR, 2, -1);
  return unary(L, SL_UNARY_MUL_SCALAR, lua_gettop(L), a);
}

static int arithmetic(lua_State *L) {
  sl_binary_op op = (sl_binary_op)lua_tointeger(L, lua_upvalueindex(1));
  bool left = lua_type(L, 1) == LUA_TNUMBER, right = lua_type(L, 2) == LUA_TNUMBER;
  if (!left && !right) return binary(L, op);
  int tensor = left ? 2 : 1;
  double number = lua_tonumber(L, left ? 1 : 2);
  switch (op) {
  case SL_BINARY_ADD: return unary(L, SL_UNARY_ADD_SCALAR, tensor, number);
  case SL_BINARY_MUL: return unary(L, SL_UNARY_MUL_SCALAR, tensor, number);
  case SL_BINARY_SUB: return left ? number_minus(L) : unary(L, SL_UNARY_ADD_SCALAR, tensor, -number);
  case SL_BINARY_DIV: return left ? number_over(L) : unary(L, SL_UNARY_MUL_SCALAR, tensor, 1 / number);
  case SL_BINARY_MAX: return unary(L, SL_UNARY_CLAMP_MIN, tensor, number);
  case SL_BINARY_MIN: return unary(L, SL_UNARY_CLAMP_MAX, tensor, number);
  default: return luaL_error(L, "this comparison takes two tensors");
  }
}

static int negate(lua_State *L) { return unary(L, SL_UNARY_NEG, 1, 0); }
static int power(lua_State *L) { return unary(L, SL_UNARY_POW_SCALAR, 1, luaL_checknumber(L, 2)); }

/* -- Reductions ----------------------------------------------------------------------------------- */

/*** Arithmetic mean over one dimension, or over everything. float64 sums.
 * @function mean
 * @tparam Tensor x
 * @tparam[opt] integer dim
 * @tparam[opt=false] boolean keep_dim
 * @treturn Tensor */
/*** Largest entry over one dimension, or over everything; the gradient goes to the first one on ties.
 * @function max
 * @tparam Tensor x
 * @tparam[opt] integer dim
 * @tparam[opt=false] boolean keep_dim
 * @treturn Tensor */
/*** Smallest entry over one dimension, or over everything; the gradient goes to the first one on ties.
 * @function min
 * @tparam Tensor x
 * @tparam[opt] integer dim
 * @tparam[opt=false] boolean keep_dim
 * @treturn Tensor */
/*** Sum over one dimension, or over everything. float64 sums.
 * @function sum
 * @tparam Tensor x
 * @tparam[opt] integer dim
 * @tparam[opt=false] boolean keep_dim
 * @treturn Tensor */
static int reduce(lua_State *L) {
  sl_tensor *x = sl_lua_check_tensor(L, 1);
  int dim = lua_isnoneornil(L, 2) ? SL_ALL_DIMS : (int)sl_lua_check_integer(L, 2, 1, x->rank) - 1;
  bool keep = lua_toboolean(L, 3);
  sl_reduce_op op = (sl_reduce_op)lua_tointeger(L, lua_upvalueindex(1));
  SL_LUA_TRY(L, sl_reduce(op, x, dim, keep, sl_lua_new_tensor(L)));
  return 1;
}

/*** Positions (int32, from 0) of the largest entries along a dimension; not differentiable.
 * @function argmax
 * @tparam Tensor x
 * @tparam integer dim
 * @treturn Tensor */
static int argmax(lua_State *L) {
  sl_tensor *x = sl_lua_check_tensor(L, 1);
  SL_LUA_TRY(L, sl_argmax(x, (int)sl_lua_check_integer(L, 2, 1, x->rank) - 1, sl_lua_new_tensor(L)));
  return 1;
}

/* -- Products --------------------------------------------------------------------------------------- */

/*** [m, k] x [k, n], or batched in a first dimension. Transposed views cost no copy.
 * @function matmul
 * @tparam Tensor a
 * @tparam Tensor b
 * @treturn Tensor */
static int matmul(lua_State *L) {
  sl_tensor *a = sl_lua_check_tensor(L, 1), *b = sl_lua_check_tensor(L, 2);
  SL_LUA_TRY(L, sl_matmul(a, b, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

static const char *const ACTIVATIONS[] = { "none", "relu", "gelu", "gelu_tanh", "tanh", NULL };

/*** act(x W' + b).
 * @function linear
 * @tparam Tensor x [..., d_in]
 * @tparam Tensor W [d_out, d_in]
 * @tparam[opt] Tensor b [d_out]
 * @tparam[opt="none"] string activation none relu gelu gelu_tanh tanh
 * @treturn Tensor [..., d_out] */
static int linear(lua_State *L) {
  sl_tensor *x = sl_lua_check_tensor(L, 1), *W = sl_lua_check_tensor(L, 2), *b = sl_lua_opt_tensor(L, 3);
  int act = sl_lua_check_choice(L, luaL_optstring(L, 4, "none"), "activation", ACTIVATIONS);
  SL_LUA_TRY(L, sl_linear(x, W, b, (sl_activation)act, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/*** Joins tensors along a dimension.
 * @function concat
 * @tparam {Tensor,...} tensors at most 6
 * @tparam integer dim
 * @treturn Tensor */
static int concat(lua_State *L) {
  sl_tensor *list[SL_NODE_INPUTS];
  luaL_checktype(L, 1, LUA_TTABLE);
  int n = (int)lua_objlen(L, 1);
  if (n < 1 || n > SL_NODE_INPUTS) return luaL_error(L, "concat: takes 1 to %d tensors, got %d", SL_NODE_INPUTS, n);
  for (int i = 0; i < n; i++) {
    lua_rawgeti(L, 1, i + 1);
    list[i] = sl_lua_check_tensor(L, lua_gettop(L));
    lua_pop(L, 1);
  }
  int dim = (int)sl_lua_check_integer(L, 2, 1, list[0]->rank) - 1;
  SL_LUA_TRY(L, sl_concat(n, list, dim, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/* -- Networks ------------------------------------------------------------------------------------------ */

/*** log softmax(x) over the last dimension.
 * @function log_softmax
 * @tparam Tensor x
 * @treturn Tensor */
/*** exp(x) / sum exp(x) over the last dimension.
 * @function softmax
 * @tparam Tensor x
 * @treturn Tensor */
static int softmax(lua_State *L) {
  sl_tensor *x = sl_lua_check_tensor(L, 1);
  SL_LUA_TRY(L, sl_softmax(x, lua_toboolean(L, lua_upvalueindex(1)), sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/*** Rows of a table by id.
 * @function embedding
 * @tparam Tensor table [rows, D]
 * @tparam Tensor ids i32 [...], from 0
 * @treturn Tensor [..., D] */
static int embedding(lua_State *L) {
  sl_tensor *table = sl_lua_check_tensor(L, 1), *ids = sl_lua_check_tensor(L, 2);
  SL_LUA_TRY(L, sl_embedding(table, ids, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/*** Mean of -log softmax(logits)[target] over rows with target >= 0.
 * @function cross_entropy
 * @tparam Tensor logits [N, V]
 * @tparam Tensor targets i32 [N]; negative = ignored
 * @treturn Tensor scalar, in nats
 * @treturn Tensor the row losses [N], not differentiable */
static int cross_entropy(lua_State *L) {
  sl_tensor *logits = sl_lua_check_tensor(L, 1), *targets = sl_lua_check_tensor(L, 2);
  sl_tensor **loss = sl_lua_new_tensor(L), **rows = sl_lua_new_tensor(L);
  SL_LUA_TRY(L, sl_cross_entropy(logits, targets, rows, loss));
  return 2;
}

/*** mean((a - b)^2).
 * @function mse_loss
 * @tparam Tensor a
 * @tparam Tensor b
 * @treturn Tensor scalar */
static int mse_loss(lua_State *L) {
  sl_tensor *a = sl_lua_check_tensor(L, 1), *b = sl_lua_check_tensor(L, 2);
  SL_LUA_TRY(L, sl_mse_loss(a, b, sl_lua_new_tensor(L)));
  return 1;
}

/*** Zeroes entries with probability p and divides the rest by 1 - p; the same for the same (seed, step).
 * @function dropout
 * @tparam Tensor x
 * @tparam number p
 * @tparam table options seed, step
 * @treturn Tensor */
static int dropout(lua_State *L) {
  static const char *const names[] = { "seed", "step", NULL };
  sl_tensor *x = sl_lua_check_tensor(L, 1);
  double p = luaL_checknumber(L, 2);
  sl_lua_check_options(L, 3, "dropout", names);
  uint64_t seed = (uint64_t)sl_lua_option_integer(L, 3, "seed", 0);
  uint64_t step = (uint64_t)sl_lua_option_integer(L, 3, "step", 0);
  SL_LUA_TRY(L, sl_dropout(x, (float)p, seed, step, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/* -- Sparse codes ------------------------------------------------------------------------------------------ */

/*** Each row's k largest entries, ties by lowest index.
 * @function topk
 * @tparam Tensor x [N, M]
 * @tparam integer k
 * @tparam[opt] table options absolute: rank by |x| and keep the sign (false)
 * @treturn Tensor values [N, k], differentiable
 * @treturn Tensor indices i32 [N, k], from 0 */
static int topk(lua_State *L) {
  static const char *const names[] = { "absolute", NULL };
  sl_tensor *x = sl_lua_check_tensor(L, 1);
  int64_t k = sl_lua_check_integer(L, 2, 1, INT32_MAX);
  sl_lua_check_options(L, 3, "topk", names);
  bool absolute = sl_lua_option_boolean(L, 3, "absolute", false);
  sl_tensor **values = sl_lua_new_tensor(L), **indices = sl_lua_new_tensor(L);
  SL_LUA_TRY(L, sl_topk(x, k, absolute, values, indices));
  return 2;
}

/*** x_hat[t] = sum_j values[t, j] W_dec[indices[t, j]] + b_dec. Only the selected rows take part.
 * @function sparse_decode
 * @tparam Tensor values [N, k]
 * @tparam Tensor indices i32 [N, k]
 * @tparam Tensor W_dec [M, D]
 * @tparam[opt] Tensor b_dec [D]
 * @treturn Tensor [N, D] */
static int sparse_decode(lua_State *L) {
  sl_tensor *values = sl_lua_check_tensor(L, 1), *indices = sl_lua_check_tensor(L, 2);
  sl_tensor *W = sl_lua_check_tensor(L, 3), *b = sl_lua_opt_tensor(L, 4);
  SL_LUA_TRY(L, sl_sparse_decode(values, indices, W, b, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/*** Rows of x by id.
 * @function gather_rows
 * @tparam Tensor x [M, D]
 * @tparam Tensor ids i32 [N], from 0
 * @treturn Tensor [N, D] */
static int gather_rows(lua_State *L) {
  sl_tensor *x = sl_lua_check_tensor(L, 1), *ids = sl_lua_check_tensor(L, 2);
  SL_LUA_TRY(L, sl_gather_rows(x, ids, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/*** W's rows divided by (their norm + eps), in place; not recorded.
 * @function normalize_rows_
 * @tparam Tensor W
 * @tparam[opt=1.1920929e-7] number eps
 * @treturn Tensor W */
static int normalize_rows(lua_State *L) {
  sl_lua_check(L, sl_normalize_rows_(sl_lua_check_tensor(L, 1), (float)luaL_optnumber(L, 2, 1.1920929e-7)));
  lua_settop(L, 1);
  return 1;
}

/* -- Registration --------------------------------------------------------------------------------------------- */

static const luaL_Reg functions[] = {
  { "matmul", matmul }, { "linear", linear }, { "concat", concat }, { "embedding", embedding },
  { "cross_entropy", cross_entropy },
  { "mse_loss", mse_loss }, { "dropout", dropout }, { "topk", topk }, { "sparse_decode", sparse_decode },
  { "gather_rows", gather_rows }, { "normalize_rows_", normalize_rows }, { "argmax", argmax }, { NULL, NULL },
};

typedef struct {
  const char *name;
  lua_CFunction function;
  int op;
} op_entry;

#define X(id, name, f, df) { name, unary_method, SL_UNARY_##id },
static const op_entry op_entries[] = {
  SL_UNARY_LIST(X)
  { "add", arithmetic, SL_BINARY_ADD }, { "sub", arithmetic, SL_BINARY_SUB },
  { "mul", arithmetic, SL_BINARY_MUL }, { "div", arithmetic, SL_BINARY_DIV },
  { "maximum", arithmetic, SL_BINARY_MAX }, { "minimum", arithmetic, SL_BINARY_MIN },
  { "eq", arithmetic, SL_BINARY_EQ }, { "gt", arithmetic, SL_BINARY_GT },
  { "sum", reduce, SL_REDUCE_SUM }, { "mean", reduce, SL_REDUCE_MEAN },
  { "max", reduce, SL_REDUCE_MAX }, { "min", reduce, SL_REDUCE_MIN },
  { "softmax", softmax, 0 }, { "log_softmax", softmax, 1 },
};
#undef X
static const op_entry operators[] = {
  { "__add", arithmetic, SL_BINARY_ADD }, { "__sub", arithmetic, SL_BINARY_SUB },
  { "__mul", arithmetic, SL_BINARY_MUL }, { "__div", arithmetic, SL_BINARY_DIV },
  { "__unm", negate, 0 }, { "__pow", power, 0 },
};
/* Functions that are also methods of Tensor. */
static const char *const also_methods[] = { "matmul", "topk", "gather_rows", "normalize_rows_", "argmax" };

/* Sets t[name] for the table at `index` to a closure over the operation's number. */
static void set_op(lua_State *L, int index, const op_entry *entry) {
  if (entry->function == softmax) lua_pushboolean(L, entry->op);
  else lua_pushinteger(L, entry->op);
  lua_pushcclosure(L, entry->function, 1);
  lua_setfield(L, index, entry->name);
}

void sl_lua_open_ops(lua_State *L) {
  int module = lua_gettop(L);
  luaL_setfuncs(L, functions, 0);
  luaL_getmetatable(L, SL_LUA_TENSOR);
  lua_getfield(L, -1, "methods"); /* stack: module, metatable, methods */
  for (size_t i = 0; i < sizeof op_entries / sizeof op_entries[0]; i++) {
    set_op(L, module, &op_entries[i]);
    set_op(L, module + 2, &op_entries[i]);
  }
  for (size_t i = 0; i < sizeof operators / sizeof operators[0]; i++) set_op(L, module + 1, &operators[i]);
  for (size_t i = 0; i < sizeof also_methods / sizeof also_methods[0]; i++) {
    lua_getfield(L, module, also_methods[i]);
    lua_setfield(L, module + 2, also_methods[i]);
  }
  lua_settop(L, module);
}
