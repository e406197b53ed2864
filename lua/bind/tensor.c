/*** Tensors: shape, views, copies, values, gradients. Dimensions and positions count from 1.
 * @classmod saelua.Tensor */
#include "bind.h"
#include "bind_model.h"

#include <math.h>
#include <stdio.h>

#include "core/ops/math.h"

static int tensor_gc(lua_State *L) {
  void **box = luaL_checkudata(L, 1, SL_LUA_TENSOR);
  sl_tensor_release(*box);
  *box = NULL;
  return 0;
}

/*** Gives the memory back now; later use of the tensor raises. Calling it twice is allowed.
 * @function free */
static int tensor_free(lua_State *L) { return tensor_gc(L); }

/* -- Shape --------------------------------------------------------------------------------------- */

/*** The sizes as a list.
 * @function shape
 * @treturn {integer,...} sizes */
static int tensor_shape(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  lua_createtable(L, t->rank, 0);
  for (int i = 0; i < t->rank; i++) {
    lua_pushnumber(L, (lua_Number)t->shape[i]);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

static int check_dim(lua_State *L, int index, const sl_tensor *t) {
  return (int)sl_lua_check_integer(L, index, 1, t->rank) - 1;
}

/*** All sizes, or one.
 * @function size
 * @tparam[opt] integer dim
 * @treturn integer,... */
static int tensor_size(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  if (!lua_isnoneornil(L, 2)) {
    lua_pushnumber(L, (lua_Number)t->shape[check_dim(L, 2, t)]);
    return 1;
  }
  for (int i = 0; i < t->rank; i++) lua_pushnumber(L, (lua_Number)t->shape[i]);
  return t->rank;
}

/*** The number of dimensions.
 * @function dim
 * @treturn integer number of dimensions */
static int tensor_dim(lua_State *L) {
  lua_pushinteger(L, sl_lua_check_tensor(L, 1)->rank);
  return 1;
}

/*** The number of elements.
 * @function numel
 * @treturn integer number of elements */
static int tensor_numel(lua_State *L) {
  lua_pushnumber(L, (lua_Number)sl_tensor_count(sl_lua_check_tensor(L, 1)));
  return 1;
}

/*** The name of the element type.
 * @function dtype
 * @treturn string f32 bf16 f16 i64 i32 u8 */
static int tensor_dtype(lua_State *L) {
  lua_pushstring(L, sl_dtype_name(sl_lua_check_tensor(L, 1)->dtype));
  return 1;
}

/*** The name of the device.
 * @function device
 * @treturn string cpu or cuda:n */
static int tensor_device(lua_State *L) {
  lua_pushstring(L, sl_tensor_device(sl_lua_check_tensor(L, 1))->name);
  return 1;
}

/*** Whether the elements lie one after another in row-major order.
 * @function is_contiguous
 * @treturn boolean */
static int tensor_is_contiguous(lua_State *L) {
  lua_pushboolean(L, sl_tensor_is_contiguous(sl_lua_check_tensor(L, 1)));
  return 1;
}

/* -- Views (recorded) ------------------------------------------------------------------------------ */

/*** The same elements in another shape; one size may be -1. Copies only if the tensor is not contiguous.
 * @function reshape
 * @tparam {integer,...}|integer,... shape
 * @treturn Tensor */
static int tensor_reshape(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  int64_t shape[SL_MAX_RANK];
  int rank = sl_lua_check_shape(L, 2, shape);
  SL_LUA_TRY(L, sl_reshape(t, rank, shape, sl_lua_new_tensor(L)));
  return 1;
}

/*** Swaps two dimensions (the last two if none are given), as a view.
 * @function transpose
 * @tparam[opt] integer a
 * @tparam[opt] integer b
 * @treturn Tensor */
static int tensor_transpose(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  if (t->rank < 2) return luaL_error(L, "transpose: a tensor of %d dimensions has nothing to swap", t->rank);
  int a = lua_isnoneornil(L, 2) ? t->rank - 2 : check_dim(L, 2, t);
  int b = lua_isnoneornil(L, 3) ? t->rank - 1 : check_dim(L, 3, t);
  SL_LUA_TRY(L, sl_transpose(t, a, b, sl_lua_new_tensor(L)));
  return 1;
}

/*** Positions first to last (both included; negative ones count from the end) of one dimension, as a view.
 * @function slice
 * @tparam integer dim
 * @tparam integer first
 * @tparam[opt=-1] integer last
 * @treturn Tensor */
static int tensor_slice(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  int dim = check_dim(L, 2, t);
  int64_t n = t->shape[dim];
  int64_t first = sl_lua_check_integer(L, 3, -n, n + 1);
  int64_t last = lua_isnoneornil(L, 4) ? n : sl_lua_check_integer(L, 4, -n - 1, n);
  if (first < 0) first += n + 1;
  if (last < 0) last += n + 1;
  SL_LUA_TRY(L, sl_slice(t, dim, first - 1, last >= first ? last - first + 1 : 0, sl_lua_new_tensor(L)));
  return 1;
}

/*** One position of a dimension, which disappears. `t[i]` is t:select(1, i).
 * @function select
 * @tparam integer dim
 * @tparam integer position
 * @treturn Tensor */
static int tensor_select(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  int dim = check_dim(L, 2, t);
  int64_t position = sl_lua_check_integer(L, 3, 1, t->shape[dim]);
  SL_LUA_TRY(L, sl_select(t, dim, position - 1, sl_lua_new_tensor(L)));
  return 1;
}

/*** Broadcast to a larger shape, as a view.
 * @function expand
 * @tparam {integer,...}|integer,... shape
 * @treturn Tensor */
static int tensor_expand(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  int64_t shape[SL_MAX_RANK];
  int rank = sl_lua_check_shape(L, 2, shape);
  SL_LUA_TRY(L, sl_expand(t, rank, shape, sl_lua_new_tensor(L)));
  return 1;
}

/*** The same values, row-major; itself when they are already.
 * @function contiguous
 * @treturn Tensor itself in value; a copy only if needed */
static int tensor_contiguous(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  SL_LUA_TRY(L, sl_contiguous(t, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/*** The same values without history: gradients stop here.
 * @function detach
 * @treturn Tensor */
static int tensor_detach(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  SL_LUA_TRY(L, sl_detach(t, sl_lua_new_tensor(L)));
  return 1;
}

/* -- Copies and conversions --------------------------------------------------------------------------- */

/*** A copy with storage of its own.
 * @function clone
 * @treturn Tensor a contiguous copy, not recorded */
static int tensor_clone(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  SL_LUA_TRY(L, sl_tensor_clone(t, sl_lua_new_tensor(L)));
  sl_lua_pressure(L);
  return 1;
}

/*** Another dtype or another device; itself when nothing changes.
 * @function to
 * @tparam string where f32 bf16 f16 i64 i32 u8, cpu, cuda, cuda:n
 * @treturn Tensor */
static int tensor_to(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  const char *where = luaL_checkstring(L, 2);
  if (where[0] == 'c') {
    sl_device *device = sl_lua_find_device(L, where);
    SL_LUA_TRY(L, sl_tensor_to_device(t, device, sl_lua_new_tensor(L)));
  } else {
    sl_dtype dtype = sl_lua_check_dtype(L, where);
    if (dtype == t->dtype) {
      lua_settop(L, 1);
      return 1;
    }
    SL_LUA_TRY(L, sl_cast(t, dtype, sl_lua_new_tensor(L)));
  }
  sl_lua_pressure(L);
  return 1;
}

/*** Overwrites the values with those of a tensor of the same shape and dtype.
 * @function copy_
 * @tparam Tensor source
 * @treturn Tensor itself */
static int tensor_copy(lua_State *L) {
  sl_lua_check(L, sl_tensor_copy_(sl_lua_check_tensor(L, 1), sl_lua_check_tensor(L, 2)));
  lua_settop(L, 1);
  return 1;
}

/*** Sets every element to zero.
 * @function zero_
 * @treturn Tensor itself */
static int tensor_zero(lua_State *L) {
  sl_lua_check(L, sl_tensor_fill_zero(sl_lua_check_tensor(L, 1)));
  lua_settop(L, 1);
  return 1;
}

/* -- Values --------------------------------------------------------------------------------------------- */

/*** The value of a one-element tensor.
 * @function item
 * @treturn number */
static int tensor_item(lua_State *L) {
  double value;
  sl_lua_check(L, sl_tensor_item(sl_lua_check_tensor(L, 1), &value));
  lua_pushnumber(L, value);
  return 1;
}

/* Pushes nested tables for dimensions dim.. of contiguous host data; advances *data. */
static void push_values(lua_State *L, const sl_tensor *t, int dim, const char **data) {
  if (dim == t->rank) {
    lua_pushnumber(L, sl_lua_value_at(*data, t->dtype));
    *data += sl_dtype_size(t->dtype);
    return;
  }
  luaL_checkstack(L, 3, "tensor:totable");
  lua_createtable(L, (int)t->shape[dim], 0);
  for (int64_t i = 0; i < t->shape[dim]; i++) {
    push_values(L, t, dim + 1, data);
    lua_rawseti(L, -2, (int)i + 1);
  }
}

/*** Nested Lua tables of numbers (a number for a scalar). For looking at, not for computing.
 * @function totable
 * @treturn table|number */
static int tensor_totable(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  sl_tensor **host = sl_lua_new_tensor(L), **packed;
  SL_LUA_TRY(L, sl_tensor_to_device(t, sl_cpu_device(), host));
  packed = sl_lua_new_tensor(L);
  SL_LUA_TRY(L, sl_tensor_contiguous(*host, packed));
  const char *data = sl_tensor_data(*packed);
  push_values(L, *packed, 0, &data);
  return 1;
}

static int64_t element_offset(lua_State *L, const sl_tensor *t) {
  int64_t offset = t->offset;
  for (int i = 0; i < t->rank; i++)
    offset += (sl_lua_check_integer(L, i + 2, 1, t->shape[i]) - 1) * t->strides[i];
  return offset;
}

/*** One element.
 * @function get
 * @tparam integer,... positions one for each dimension
 * @treturn number */
static int tensor_get(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  size_t size = sl_dtype_size(t->dtype);
  const char *source = (const char *)t->storage->data + (size_t)element_offset(L, t) * size;
  char value[8];
  sl_device *device = sl_tensor_device(t);
  sl_lua_check(L, device->table->copy_to_host(device, value, source, size));
  lua_pushnumber(L, sl_lua_value_at(value, t->dtype));
  return 1;
}

/*** Sets one element: t:set(i, j, value).
 * @function set
 * @tparam integer,... positions
 * @tparam number value
 * @treturn Tensor itself */
static int tensor_set(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  double value = luaL_checknumber(L, t->rank + 2);
  size_t size = sl_dtype_size(t->dtype);
  char *target = (char *)t->storage->data + (size_t)element_offset(L, t) * size;
  char bytes[8] = { 0 };
  sl_lua_check_value(L, "set", t->dtype, value);
  sl_lua_store_value(bytes, t->dtype, value);
  sl_device *device = sl_tensor_device(t);
  sl_lua_check(L, device->table->copy_from_host(device, target, bytes, size));
  lua_settop(L, 1);
  return 1;
}

/* -- Gradients ---------------------------------------------------------------------------------------------- */

/*** Marks a leaf whose gradient is wanted (float32).
 * @function requires_grad_
 * @tparam[opt=true] boolean on
 * @treturn Tensor itself */
static int tensor_requires_grad(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  bool on = lua_isnoneornil(L, 2) || lua_toboolean(L, 2);
  if (on) sl_lua_check(L, sl_tensor_expect(t, "requires_grad_", "the tensor", SL_F32, -1));
  t->requires_grad = on;
  lua_settop(L, 1);
  return 1;
}

/*** The gradient collected by backward, or nil.
 * @function grad
 * @treturn Tensor|nil */
static int tensor_grad(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  if (!t->grad) return 0;
  sl_lua_push_tensor(L, sl_tensor_retain(t->grad));
  return 1;
}

/*** Forgets the gradient.
 * @function clear_grad
 * @treturn Tensor itself */
static int tensor_clear_grad(lua_State *L) {
  sl_tensor_clear_grad(sl_lua_check_tensor(L, 1));
  lua_settop(L, 1);
  return 1;
}

/*** tape:backward(self) on the recording tape.
 * @function backward
 * @tparam[opt] Tensor seed */
static int tensor_backward(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1), *seed = sl_lua_opt_tensor(L, 2);
  lua_settop(L, 2);
  sl_tape *tape = sl_tape_active();
  if (!tape) return luaL_error(L, "backward: no tape is recording; call tape:start() before the forward pass");
  lua_State *previous = sl_lua_enter_hooks(L);
  sl_status status = sl_tape_backward(tape, t, seed);
  sl_lua_leave_hooks(L, previous);
  sl_lua_check(L, status);
  return 0;
}

/* t[i] for integers, methods for strings. */
static int tensor_index(lua_State *L) {
  if (lua_type(L, 2) == LUA_TNUMBER) {
    sl_tensor *t = sl_lua_check_tensor(L, 1);
    if (t->rank == 0) return luaL_error(L, "a scalar has no positions; use :item()");
    int64_t position = sl_lua_check_integer(L, 2, 1, t->shape[0]);
    SL_LUA_TRY(L, sl_select(t, 0, position - 1, sl_lua_new_tensor(L)));
    return 1;
  }
  lua_pushvalue(L, 2);
  lua_rawget(L, lua_upvalueindex(1));
  return 1;
}

static const luaL_Reg methods[] = {
  { "shape", tensor_shape }, { "size", tensor_size }, { "dim", tensor_dim }, { "numel", tensor_numel },
  { "dtype", tensor_dtype }, { "device", tensor_device }, { "is_contiguous", tensor_is_contiguous },
  { "reshape", tensor_reshape }, { "transpose", tensor_transpose }, { "slice", tensor_slice },
  { "select", tensor_select }, { "expand", tensor_expand }, { "contiguous", tensor_contiguous },
  { "detach", tensor_detach }, { "clone", tensor_clone }, { "to", tensor_to }, { "copy_", tensor_copy },
  { "zero_", tensor_zero }, { "item", tensor_item }, { "totable", tensor_totable }, { "get", tensor_get },
  { "set", tensor_set }, { "requires_grad_", tensor_requires_grad }, { "grad", tensor_grad },
  { "clear_grad", tensor_clear_grad }, { "backward", tensor_backward }, { "free", tensor_free },
  { NULL, NULL },
};
static const luaL_Reg meta[] = { { "__gc", tensor_gc }, { "__tostring", sl_lua_tensor_tostring }, { NULL, NULL } };
void sl_lua_open_tensor(lua_State *L) {
  sl_lua_new_class(L, SL_LUA_TENSOR, methods, meta);
  luaL_getmetatable(L, SL_LUA_TENSOR);
  lua_getfield(L, -1, "__index"); /* stack: metatable, methods */
  lua_pushvalue(L, -1);
  lua_setfield(L, -3, "methods"); /* where completion and the operator file find them */
  lua_pushcclosure(L, tensor_index, 1);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
}
