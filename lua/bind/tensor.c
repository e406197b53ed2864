/*** Tensors: shape, views, copies, values, gradients. Dimensions and positions count from 1.
 * @classmod saelua.Tensor */
#include "bind.h"

#include <math.h>
#include <stdio.h>

#include "core/ops/math.h"

static const char *const SCOPE = "saelua.scope"; /* registry: the innermost scope's list of boxes, or nil */
static bool scope_open;

/* -- Boxes ------------------------------------------------------------------------------------- */

sl_tensor *sl_lua_check_tensor(lua_State *L, int index) {
  return sl_lua_check_box(L, index, SL_LUA_TENSOR, "the tensor");
}

sl_tensor *sl_lua_opt_tensor(lua_State *L, int index) {
  return lua_isnoneornil(L, index) ? NULL : sl_lua_check_tensor(L, index);
}

sl_tensor **sl_lua_new_tensor(lua_State *L) {
  void **box = sl_lua_new_box(L, SL_LUA_TENSOR);
  if (scope_open) {
    lua_getfield(L, LUA_REGISTRYINDEX, SCOPE); /* stack: box, list */
    lua_pushvalue(L, -2);
    lua_rawseti(L, -2, (int)lua_objlen(L, -2) + 1);
    lua_pop(L, 1);
  }
  return (sl_tensor **)box;
}

void sl_lua_push_tensor(lua_State *L, sl_tensor *tensor) {
  sl_tensor **box = sl_lua_new_tensor(L);
  *box = tensor;
  sl_lua_pressure(L);
}

void sl_lua_pressure(lua_State *L) {
  /* A step of the collector per 64 MiB of new tensors, a whole cycle per 512 MiB. */
  enum { STEP = 64 << 20, FULL = 512 << 20 };
  static int64_t since_step, since_full;
  int64_t bytes = sl_storage_take_pressure();
  since_step += bytes;
  since_full += bytes;
  if (since_full > FULL) {
    lua_gc(L, LUA_GCCOLLECT, 0);
    since_full = since_step = 0;
  } else if (since_step > STEP) {
    if (lua_gc(L, LUA_GCSTEP, 400)) since_full = 0;
    since_step = 0;
  }
}

static int tensor_gc(lua_State *L) {
  void **box = luaL_checkudata(L, 1, SL_LUA_TENSOR);
  sl_tensor_release(*box);
  *box = NULL;
  return 0;
}

/*** Gives the memory back now; later use of the tensor raises. Calling it twice is allowed.
 * @function free */
static int tensor_free(lua_State *L) { return tensor_gc(L); }

/* Releases every box of the list at `list` unless it lies on the stack from `first` on. */
static void close_scope(lua_State *L, int list, int first, int last) {
  int n = (int)lua_objlen(L, list);
  for (int i = 1; i <= n; i++) {
    lua_rawgeti(L, list, i);
    bool kept = lua_isnil(L, -1);
    for (int k = first; k <= last && !kept; k++) kept = lua_rawequal(L, -1, k);
    if (!kept) {
      void **box = lua_touserdata(L, -1);
      sl_tensor_release(*box);
      *box = NULL;
    }
    lua_pop(L, 1);
  }
}

/*** Runs fn(keep) and frees every tensor made inside, except those that it returns or passes to keep(t).
 * Frees them also when fn raises. A tensor that goes on living elsewhere (in a table, a hook) must be kept.
 * @function saelua.core.scope
 * @tparam function fn
 * @return what fn returns */
static int scope_keep(lua_State *L) {
  luaL_checkudata(L, 1, SL_LUA_TENSOR);
  int list = lua_upvalueindex(1);
  for (int i = (int)lua_objlen(L, list); i >= 1; i--) {
    lua_rawgeti(L, list, i);
    bool found = lua_rawequal(L, -1, 1);
    lua_pop(L, 1);
    if (!found) continue;
    int n = (int)lua_objlen(L, list); /* the last one takes its place */
    lua_rawgeti(L, list, n);
    lua_rawseti(L, list, i);
    lua_pushnil(L);
    lua_rawseti(L, list, n);
    break;
  }
  lua_settop(L, 1);
  return 1;
}

static int scope(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  lua_getfield(L, LUA_REGISTRYINDEX, SCOPE); /* stack: fn, outer */
  bool outer_open = scope_open;
  lua_newtable(L);                           /* stack: fn, outer, list */
  lua_pushvalue(L, 3);
  lua_setfield(L, LUA_REGISTRYINDEX, SCOPE);
  scope_open = true;
  lua_pushvalue(L, 1);
  lua_pushvalue(L, 3);
  lua_pushcclosure(L, scope_keep, 1);
  int status = lua_pcall(L, 1, LUA_MULTRET, 0);
  scope_open = outer_open;
  lua_pushvalue(L, 2);
  lua_setfield(L, LUA_REGISTRYINDEX, SCOPE);
  int last = lua_gettop(L);
  close_scope(L, 3, 4, status == 0 ? last : 3);
  if (status != 0) return lua_error(L);
  /* What is returned belongs to the enclosing scope from here on. */
  for (int i = 4; i <= last && outer_open; i++) {
    if (!luaL_testudata(L, i, SL_LUA_TENSOR)) continue;
    lua_pushvalue(L, i);
    lua_rawseti(L, 2, (int)lua_objlen(L, 2) + 1);
  }
  return last - 3;
}

/*** Runs fn outside every scope: tensors made inside belong to nobody but their references. For objects that keep
 * tensors between calls (buffers, optimiser states).
 * @function saelua.core.unscoped
 * @tparam function fn
 * @return what fn returns */
static int unscoped(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  bool open = scope_open;
  scope_open = false;
  int status = lua_pcall(L, 0, LUA_MULTRET, 0);
  scope_open = open;
  return status == 0 ? lua_gettop(L) : lua_error(L);
}

/* -- Shape --------------------------------------------------------------------------------------- */

/*** @function shape
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

/*** @function dim
 * @treturn integer number of dimensions */
static int tensor_dim(lua_State *L) {
  lua_pushinteger(L, sl_lua_check_tensor(L, 1)->rank);
  return 1;
}

/*** @function numel
 * @treturn integer number of elements */
static int tensor_numel(lua_State *L) {
  lua_pushnumber(L, (lua_Number)sl_tensor_count(sl_lua_check_tensor(L, 1)));
  return 1;
}

/*** @function dtype
 * @treturn string f32 bf16 f16 i64 i32 u8 */
static int tensor_dtype(lua_State *L) {
  lua_pushstring(L, sl_dtype_name(sl_lua_check_tensor(L, 1)->dtype));
  return 1;
}

/*** @function device
 * @treturn string cpu or cuda:n */
static int tensor_device(lua_State *L) {
  lua_pushstring(L, sl_tensor_device(sl_lua_check_tensor(L, 1))->name);
  return 1;
}

/*** @function is_contiguous
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
  int64_t shape[SL_MAX_RANK], known = 1;
  int rank = sl_lua_check_shape(L, 2, shape), open = -1;
  for (int i = 0; i < rank; i++) {
    if (shape[i] == -1 && open < 0) open = i;
    else known *= shape[i];
  }
  if (open >= 0) shape[open] = known > 0 ? sl_tensor_count(t) / known : 0;
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
static void push_selected(lua_State *L, sl_tensor *t, int dim, int64_t position) {
  sl_tensor **slice = sl_lua_new_tensor(L);
  SL_LUA_TRY(L, sl_slice(t, dim, position - 1, 1, slice));
  int64_t shape[SL_MAX_RANK];
  int rank = 0;
  for (int i = 0; i < t->rank; i++)
    if (i != dim) shape[rank++] = t->shape[i];
  SL_LUA_TRY(L, sl_reshape(*slice, rank, shape, sl_lua_new_tensor(L)));
}

static int tensor_select(lua_State *L) {
  sl_tensor *t = sl_lua_check_tensor(L, 1);
  int dim = check_dim(L, 2, t);
  push_selected(L, t, dim, sl_lua_check_integer(L, 3, 1, t->shape[dim]));
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

/*** @function contiguous
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

/*** @function clone
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

/*** @function zero_
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

static double value_at(const char *data, sl_dtype dtype) {
  switch (dtype) {
  case SL_F32: return (double)*(const float *)(const void *)data;
  case SL_BF16: return (double)sl_bf16_to_f32(*(const uint16_t *)(const void *)data);
  case SL_F16: return (double)sl_f16_to_f32(*(const uint16_t *)(const void *)data);
  case SL_I64: return (double)*(const int64_t *)(const void *)data;
  case SL_I32: return (double)*(const int32_t *)(const void *)data;
  default: return (double)*(const uint8_t *)(const void *)data;
  }
}

/* Pushes nested tables for dimensions dim.. of contiguous host data; advances *data. */
static void push_values(lua_State *L, const sl_tensor *t, int dim, const char **data) {
  if (dim == t->rank) {
    lua_pushnumber(L, value_at(*data, t->dtype));
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
  lua_pushnumber(L, value_at(value, t->dtype));
  return 1;
}

static void store_value(char *out, sl_dtype dtype, double value) {
  switch (dtype) {
  case SL_F32: *(float *)(void *)out = (float)value; break;
  case SL_BF16: *(uint16_t *)(void *)out = sl_f32_to_bf16((float)value); break;
  case SL_F16: *(uint16_t *)(void *)out = sl_f32_to_f16((float)value); break;
  case SL_I64: *(int64_t *)(void *)out = (int64_t)value; break;
  case SL_I32: *(int32_t *)(void *)out = (int32_t)value; break;
  default: *(uint8_t *)out = (uint8_t)value; break;
  }
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
  store_value(bytes, t->dtype, value);
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
  sl_tape *tape = sl_tape_active();
  if (!tape) return luaL_error(L, "backward: no tape is recording; call tape:start() before the forward pass");
  sl_lua_check(L, sl_tape_backward(tape, t, seed));
  return 0;
}

/* -- Printing ---------------------------------------------------------------------------------------------- */

typedef struct {
  double min, max, sum;
  int64_t not_finite;
} summary;

static summary summarise(const sl_tensor *t) {
  summary s = { INFINITY, -INFINITY, 0, 0 };
  const char *data = sl_tensor_data(t);
  size_t size = sl_dtype_size(t->dtype);
  int64_t n = sl_tensor_count(t);
  for (int64_t i = 0; i < n; i++) {
    double v = value_at(data + (size_t)i * size, t->dtype);
    if (!isfinite(v)) s.not_finite++;
    s.min = fmin(s.min, v);
    s.max = fmax(s.max, v);
    s.sum += v;
  }
  return s;
}

/* The corners of the last two dimensions of a contiguous host tensor, at the first position of the others. */
static void add_corners(luaL_Buffer *out, const sl_tensor *t) {
  enum { EDGE = 3 };
  int64_t cols = t->rank >= 1 ? t->shape[t->rank - 1] : 1, rows = t->rank >= 2 ? t->shape[t->rank - 2] : 1;
  const char *data = sl_tensor_data(t);
  size_t size = sl_dtype_size(t->dtype);
  char number[32];
  for (int64_t i = 0; i < rows; i++) {
    if (rows > 2 * EDGE && i == EDGE) {
      luaL_addstring(out, "\n  ...");
      i = rows - EDGE;
    }
    luaL_addstring(out, "\n ");
    for (int64_t j = 0; j < cols; j++) {
      if (cols > 2 * EDGE && j == EDGE) {
        luaL_addstring(out, "       ...");
        j = cols - EDGE;
      }
      snprintf(number, sizeof number, " %10.4g", value_at(data + (size_t)(i * cols + j) * size, t->dtype));
      luaL_addstring(out, number);
    }
  }
}

static int tensor_tostring(lua_State *L) {
  void **raw = luaL_checkudata(L, 1, SL_LUA_TENSOR);
  if (!*raw) {
    lua_pushliteral(L, "tensor (freed)");
    return 1;
  }
  sl_tensor *t = *raw;
  char shape[SL_SHAPE_TEXT], line[256];
  sl_tensor **host = sl_lua_new_tensor(L), **packed;
  SL_LUA_TRY(L, sl_tensor_to_device(t, sl_cpu_device(), host));
  packed = sl_lua_new_tensor(L);
  SL_LUA_TRY(L, sl_tensor_contiguous(*host, packed));
  luaL_Buffer out;
  luaL_buffinit(L, &out);
  snprintf(line, sizeof line, "tensor %s %s %s", sl_tensor_shape_text(t, shape), sl_dtype_name(t->dtype),
           sl_tensor_device(t)->name);
  luaL_addstring(&out, line);
  if (sl_tensor_count(t) > 0) {
    summary s = summarise(*packed);
    snprintf(line, sizeof line, "  min %.4g  mean %.4g  max %.4g", s.min, s.sum / (double)sl_tensor_count(t), s.max);
    luaL_addstring(&out, line);
    if (s.not_finite) {
      snprintf(line, sizeof line, "  (%lld not finite)", (long long)s.not_finite);
      luaL_addstring(&out, line);
    }
    add_corners(&out, *packed);
  }
  luaL_pushresult(&out);
  return 1;
}

/* t[i] for integers, methods for strings. */
static int tensor_index(lua_State *L) {
  if (lua_type(L, 2) == LUA_TNUMBER) {
    sl_tensor *t = sl_lua_check_tensor(L, 1);
    if (t->rank == 0) return luaL_error(L, "a scalar has no positions; use :item()");
    push_selected(L, t, 0, sl_lua_check_integer(L, 2, 1, t->shape[0]));
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
static const luaL_Reg meta[] = { { "__gc", tensor_gc }, { "__tostring", tensor_tostring }, { NULL, NULL } };
static const luaL_Reg functions[] = { { "scope", scope }, { "unscoped", unscoped }, { NULL, NULL } };

void sl_lua_open_tensor(lua_State *L) {
  sl_lua_new_class(L, SL_LUA_TENSOR, methods, meta);
  luaL_getmetatable(L, SL_LUA_TENSOR);
  lua_getfield(L, -1, "__index"); /* stack: metatable, methods */
  lua_pushvalue(L, -1);
  lua_setfield(L, -3, "methods"); /* where completion and the operator file find them */
  lua_pushcclosure(L, tensor_index, 1);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
  luaL_setfuncs(L, functions, 0);
}
