/*** The engine: tensors, operations, scopes, files. All of it is found in `sl`: `sl.zeros`, `sl.matmul`, ...
 * @module saelua.core */
#include "bind.h"

static const char *const PLAIN_OPTIONS[] = { "dtype", "device", NULL };
static const char *const RAND_OPTIONS[] = { "low", "high", "seed", "stream", "step", "device", NULL };
static const char *const RANDN_OPTIONS[] = { "mean", "std", "seed", "stream", "step", "device", NULL };
static const char *const RANDINT_OPTIONS[] = { "bound", "seed", "stream", "step", "device", NULL };

/* Shape at argument 1 (a table or one integer), options at argument 2. */
static sl_tensor **new_from_arguments(lua_State *L, const char *where, const char *const names[],
                                      sl_dtype otherwise) {
  lua_settop(L, 2); /* the tensor must not be taken for the options */
  int64_t shape[SL_MAX_RANK];
  sl_lua_check_options(L, 2, where, names);
  if (!lua_istable(L, 1)) luaL_argerror(L, 1, "expected a shape such as { 2, 3 }");
  int rank = sl_lua_check_shape(L, 1, shape);
  const char *dtype = sl_lua_option_string(L, 2, "dtype", sl_dtype_name(otherwise));
  sl_device *device = sl_lua_option_device(L, 2, "device");
  sl_tensor **box = sl_lua_new_tensor(L);
  SL_LUA_TRY(L, sl_tensor_create(device, sl_lua_check_dtype(L, dtype), rank, shape, box));
  sl_lua_pressure(L);
  return box;
}

/*** Zeros.
 * @function zeros
 * @tparam {integer,...} shape
 * @tparam[opt] table options dtype ("f32"), device ("cpu")
 * @treturn Tensor */
static int zeros(lua_State *L) {
  sl_tensor **box = new_from_arguments(L, "zeros", PLAIN_OPTIONS, SL_F32);
  sl_lua_check(L, sl_tensor_fill_zero(*box));
  return 1;
}

/* A contiguous CPU tensor to fill by hand, and its final home on `device`: fill(host data), then finish. */
static sl_tensor **new_host(lua_State *L, sl_dtype dtype, int rank, const int64_t *shape) {
  sl_tensor **box = sl_lua_new_tensor(L);
  SL_LUA_TRY(L, sl_tensor_create(sl_cpu_device(), dtype, rank, shape, box));
  return box;
}

static int move_to(lua_State *L, sl_tensor *host, sl_device *device) {
  sl_tensor **box = sl_lua_new_tensor(L);
  SL_LUA_TRY(L, sl_tensor_to_device(host, device, box));
  sl_lua_pressure(L);
  return 1;
}

/*** One value everywhere.
 * @function full
 * @tparam {integer,...} shape
 * @tparam number value
 * @tparam[opt] table options dtype, device
 * @treturn Tensor */
static int full(lua_State *L) {
  int64_t shape[SL_MAX_RANK];
  double value = luaL_checknumber(L, 2);
  sl_lua_check_options(L, 3, "full", PLAIN_OPTIONS);
  luaL_checktype(L, 1, LUA_TTABLE);
  int rank = sl_lua_check_shape(L, 1, shape);
  sl_dtype dtype = sl_lua_check_dtype(L, sl_lua_option_string(L, 3, "dtype", "f32"));
  sl_device *device = sl_lua_option_device(L, 3, "device");
  sl_lua_check_value(L, "full", dtype, value);
  sl_tensor *host = *new_host(L, dtype, rank, shape);
  char *data = sl_tensor_data(host);
  int64_t n = sl_tensor_count(host);
  for (int64_t i = 0; i < n; i++) sl_lua_store_value(data + (size_t)i * sl_dtype_size(dtype), dtype, value);
  return move_to(L, host, device);
}

/*** Ones.
 * @function ones
 * @tparam {integer,...} shape
 * @tparam[opt] table options dtype, device
 * @treturn Tensor */
static int ones(lua_State *L) {
  lua_settop(L, 2);
  lua_pushnumber(L, 1);
  lua_insert(L, 2);
  return full(L);
}

/* The shape of a nested table; the first element of each level decides. */
static int table_shape(lua_State *L, int index, int64_t shape[SL_MAX_RANK]) {
  int rank = 0;
  lua_pushvalue(L, index);
  while (lua_istable(L, -1)) {
    if (rank == SL_MAX_RANK) luaL_error(L, "tensor: tables nest at most %d deep", SL_MAX_RANK);
    shape[rank++] = (int64_t)lua_objlen(L, -1);
    lua_rawgeti(L, -1, 1);
    lua_remove(L, -2);
  }
  lua_pop(L, 1);
  return rank;
}

/* Copies the table on top of the stack (level `dim`) into *data. */
static void fill_from_table(lua_State *L, const sl_tensor *t, int dim, char **data) {
  if (dim == t->rank) {
    if (lua_type(L, -1) != LUA_TNUMBER) luaL_error(L, "tensor: expected numbers, got a %s", luaL_typename(L, -1));
    sl_lua_check_value(L, "tensor", t->dtype, lua_tonumber(L, -1));
    sl_lua_store_value(*data, t->dtype, lua_tonumber(L, -1));
    *data += sl_dtype_size(t->dtype);
    return;
  }
  if (!lua_istable(L, -1) || (int64_t)lua_objlen(L, -1) != t->shape[dim])
    luaL_error(L, "tensor: rows differ in length at dimension %d (expected %d)", dim + 1, (int)t->shape[dim]);
  luaL_checkstack(L, 2, "tensor");
  for (int64_t i = 0; i < t->shape[dim]; i++) {
    lua_rawgeti(L, -1, (int)i + 1);
    fill_from_table(L, t, dim + 1, data);
    lua_pop(L, 1);
  }
}

/*** A tensor from nested tables of numbers.
 * @function tensor
 * @tparam table|number values
 * @tparam[opt] table options dtype ("f32"), device
 * @treturn Tensor */
static int tensor(lua_State *L) {
  int64_t shape[SL_MAX_RANK];
  sl_lua_check_options(L, 2, "tensor", PLAIN_OPTIONS);
  sl_dtype dtype = sl_lua_check_dtype(L, sl_lua_option_string(L, 2, "dtype", "f32"));
  sl_device *device = sl_lua_option_device(L, 2, "device");
  int rank = table_shape(L, 1, shape);
  sl_tensor *host = *new_host(L, dtype, rank, shape);
  char *data = sl_tensor_data(host);
  lua_pushvalue(L, 1);
  fill_from_table(L, host, 0, &data);
  lua_pop(L, 1);
  return move_to(L, host, device);
}

static int fill_random(lua_State *L, sl_random_args args) {
  sl_tensor *t = sl_lua_check_tensor(L, -1);
  args.seed = (uint64_t)sl_lua_option_integer(L, 2, "seed", 0);
  args.stream = (uint32_t)sl_lua_option_integer(L, 2, "stream", 0);
  args.step = (uint64_t)sl_lua_option_integer(L, 2, "step", 0);
  args.y = sl_tensor_data(t);
  args.n = sl_tensor_count(t);
  sl_device *device = sl_tensor_device(t);
  sl_lua_check(L, device->kernels->random(device, &args));
  return 1;
}

/*** Uniform numbers in [low, high): the same for (seed, stream, step) on every device.
 * @function rand
 * @tparam {integer,...} shape
 * @tparam[opt] table options seed, stream, step (0), low (0), high (1), device
 * @treturn Tensor */
static int uniform(lua_State *L) {
  new_from_arguments(L, "rand", RAND_OPTIONS, SL_F32);
  return fill_random(L, (sl_random_args){ .kind = SL_RANDOM_UNIFORM,
                                          .low = (float)sl_lua_option_number(L, 2, "low", 0),
                                          .high = (float)sl_lua_option_number(L, 2, "high", 1) });
}

/*** Normal numbers.
 * @function randn
 * @tparam {integer,...} shape
 * @tparam[opt] table options seed, stream, step (0), mean (0), std (1), device
 * @treturn Tensor */
static int normal(lua_State *L) {
  new_from_arguments(L, "randn", RANDN_OPTIONS, SL_F32);
  return fill_random(L, (sl_random_args){ .kind = SL_RANDOM_NORMAL,
                                          .low = (float)sl_lua_option_number(L, 2, "mean", 0),
                                          .high = (float)sl_lua_option_number(L, 2, "std", 1) });
}

/*** Integers in [0, bound), int32.
 * @function randint
 * @tparam {integer,...} shape
 * @tparam table options bound; seed, stream, step (0), device
 * @treturn Tensor */
static int randint(lua_State *L) {
  int64_t bound = sl_lua_option_integer(L, 2, "bound", 0);
  if (bound < 1 || bound > INT32_MAX) return luaL_error(L, "randint: option 'bound' must be from 1 to 2147483647");
  new_from_arguments(L, "randint", RANDINT_OPTIONS, SL_I32);
  return fill_random(L, (sl_random_args){ .kind = SL_RANDOM_INT, .bound = (int32_t)bound });
}

/*** 0, 1, ... n - 1 as int32.
 * @function arange
 * @tparam integer n
 * @tparam[opt] table options dtype ("i32"), device
 * @treturn Tensor */
static int arange(lua_State *L) {
  int64_t n = sl_lua_check_integer(L, 1, 0, INT32_MAX);
  sl_lua_check_options(L, 2, "arange", PLAIN_OPTIONS);
  sl_dtype dtype = sl_lua_check_dtype(L, sl_lua_option_string(L, 2, "dtype", "i32"));
  if (n > 0) sl_lua_check_value(L, "arange", dtype, (double)(n - 1));
  sl_device *device = sl_lua_option_device(L, 2, "device");
  sl_tensor *host = *new_host(L, dtype, 1, &n);
  char *data = sl_tensor_data(host);
  for (int64_t i = 0; i < n; i++) sl_lua_store_value(data + (size_t)i * sl_dtype_size(dtype), dtype, (double)i);
  return move_to(L, host, device);
}

static const luaL_Reg functions[] = {
  { "zeros", zeros }, { "ones", ones },   { "full", full },       { "tensor", tensor }, { "rand", uniform },
  { "randn", normal }, { "randint", randint }, { "arange", arange }, { NULL, NULL },
};

void sl_lua_open_create(lua_State *L) { luaL_setfuncs(L, functions, 0); }
