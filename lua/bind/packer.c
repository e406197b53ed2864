/*** Packs documents into contexts of equal length; the rule stands in core/data/packing.h.
 *
 *     local packer = sl.packer(tokenizer, { ctx_len = 128 })
 *     packer:push("The captain sold the boat.")
 *     local contexts = packer:finish()          -- { n, ids = i32 [n, 128], mask = u8 [n, 128] }
 * @classmod saelua.Packer */
#include "bind_model.h"

#include <string.h>

#include "core/base/mem.h"
#include "core/data/packing.h"

#define SL_LUA_PACKER "saelua.Packer"

typedef struct {
  sl_packer *packer;
  int32_t ctx_len;
  bool sources;
  size_t count, capacity;    /* contexts taken so far */
  int32_t *ids;              /* [capacity, ctx_len] */
  int32_t *lengths;          /* [capacity] tokens that are not padding */
  int32_t *origin;           /* [capacity, 3, ctx_len]: document, start, end; or NULL */
} packer_box;

static packer_box *check_packer(lua_State *L) {
  packer_box *box = luaL_checkudata(L, 1, SL_LUA_PACKER);
  if (!box->packer) luaL_error(L, "the packer was finished");
  return box;
}

static void release(packer_box *box) {
  sl_packer_free(box->packer);
  sl_mem_free(box->ids);
  sl_mem_free(box->lengths);
  sl_mem_free(box->origin);
  memset(box, 0, sizeof *box);
}

/*** Packs documents into contexts of equal length; see core/data/packing.h.
 * @function sl.packer
 * @tparam Tokenizer tokenizer
 * @tparam table options ctx_len; offsets (false): also where each token comes from
 * @treturn Packer */
static int packer_new(lua_State *L) {
  static const char *const names[] = { "ctx_len", "offsets", NULL };
  const sl_wordpiece *tokenizer = sl_lua_check_tokenizer(L, 1);
  sl_lua_check_options(L, 2, "packer", names);
  int64_t ctx_len = sl_lua_option_integer(L, 2, "ctx_len", 128);
  if (ctx_len < 3 || ctx_len > 1 << 20) return luaL_error(L, "packer: ctx_len must be 3 to 1048576");
  packer_box *box = lua_newuserdata(L, sizeof *box);
  memset(box, 0, sizeof *box);
  luaL_getmetatable(L, SL_LUA_PACKER);
  lua_setmetatable(L, -2);
  box->ctx_len = (int32_t)ctx_len;
  box->sources = sl_lua_option_boolean(L, 2, "offsets", false);
  lua_createtable(L, 1, 0); /* the tokenizer must outlive the packer */
  lua_pushvalue(L, 1);
  lua_rawseti(L, -2, 1);
  lua_setfenv(L, -2);
  sl_packer_options options = { .ctx_len = box->ctx_len, .sources = box->sources };
  sl_lua_check(L, sl_packer_create(tokenizer, &options, &box->packer));
  return 1;
}

static sl_status grow(packer_box *box) {
  if (box->count < box->capacity) return SL_OK;
  size_t capacity = box->capacity ? 2 * box->capacity : 64, row = (size_t)box->ctx_len * sizeof(int32_t);
  SL_TRY(sl_mem_resize((void **)&box->ids, capacity * row, "contexts"));
  SL_TRY(sl_mem_resize((void **)&box->lengths, capacity * sizeof(int32_t), "contexts"));
  if (box->sources) SL_TRY(sl_mem_resize((void **)&box->origin, 3 * capacity * row, "token sources"));
  box->capacity = capacity;
  return SL_OK;
}

/* Takes every complete context. */
static sl_status take(packer_box *box, sl_token_source *sources) {
  size_t T = (size_t)box->ctx_len;
  for (;;) {
    SL_TRY(grow(box));
    int32_t tokens;
    SL_TRY(sl_packer_next(box->packer, box->ids + box->count * T, sources, &tokens));
    if (tokens == 0) return SL_OK;
    box->lengths[box->count] = tokens;
    for (size_t t = 0; t < T && box->sources; t++) {
      int32_t *origin = box->origin + box->count * 3 * T + t;
      bool text = t < (size_t)tokens && sources[t].document >= 0;
      origin[0] = text ? (int32_t)sources[t].document : -1;
      origin[T] = text ? (int32_t)sources[t].start : 0;
      origin[2 * T] = text ? (int32_t)sources[t].end : 0;
    }
    box->count++;
  }
}

static void take_all(lua_State *L, packer_box *box) {
  sl_token_source *sources = box->sources ? lua_newuserdata(L, (size_t)box->ctx_len * sizeof *sources) : NULL;
  sl_lua_check(L, take(box, sources));
}

/*** Appends one document.
 * @function push
 * @tparam string text
 * @treturn Packer itself */
static int packer_push(lua_State *L) {
  packer_box *box = check_packer(L);
  size_t bytes;
  const char *text = luaL_checklstring(L, 2, &bytes);
  sl_lua_check(L, sl_packer_push(box->packer, text, bytes, 1));
  take_all(L, box);
  lua_settop(L, 1);
  return 1;
}

/* Pushes an i32 tensor [n, T] whose row i starts at data + i * step. */
static void push_rows(lua_State *L, const packer_box *box, const int32_t *data, size_t step) {
  int64_t shape[2] = { (int64_t)box->count, box->ctx_len };
  sl_tensor **t = sl_lua_new_tensor(L);
  SL_LUA_TRY(L, sl_tensor_create(sl_cpu_device(), SL_I32, 2, shape, t));
  int32_t *out = sl_tensor_data(*t);
  for (size_t i = 0; i < box->count; i++)
    memcpy(out + i * (size_t)box->ctx_len, data + i * step, (size_t)box->ctx_len * sizeof *out);
}

static void push_mask(lua_State *L, const packer_box *box) {
  int64_t shape[2] = { (int64_t)box->count, box->ctx_len };
  sl_tensor **t = sl_lua_new_tensor(L);
  SL_LUA_TRY(L, sl_tensor_create(sl_cpu_device(), SL_U8, 2, shape, t));
  uint8_t *out = sl_tensor_data(*t);
  for (size_t i = 0; i < box->count; i++)
    for (int32_t j = 0; j < box->ctx_len; j++) *out++ = j < box->lengths[i];
}

/*** No more text: the contexts. The packer cannot be used afterwards.
 * @function finish
 * @treturn table n; ids i32 [n, ctx_len]; mask u8 [n, ctx_len], 0 = padding; with offsets also document, start, finish
 *   (i32 [n, ctx_len]: number of the document from 0, first and last byte from 1; document -1 for special tokens) */
static int packer_finish(lua_State *L) {
  packer_box *box = check_packer(L);
  sl_lua_check(L, sl_packer_finish(box->packer));
  take_all(L, box);
  size_t T = (size_t)box->ctx_len;
  lua_newtable(L);
  lua_pushnumber(L, (lua_Number)box->count);
  lua_setfield(L, -2, "n");
  push_rows(L, box, box->ids, T);
  lua_setfield(L, -2, "ids");
  push_mask(L, box);
  lua_setfield(L, -2, "mask");
  if (box->sources) {
    for (size_t i = 0; i < box->count * 3 * T; i++)
      if (i / T % 3 == 1 && box->origin[i - T] >= 0) box->origin[i]++; /* Lua counts bytes from 1 */
    static const char *const names[] = { "document", "start", "finish" };
    for (int part = 0; part < 3; part++) {
      push_rows(L, box, box->origin + (size_t)part * T, 3 * T);
      lua_setfield(L, -2, names[part]);
    }
  }
  release(box);
  return 1;
}

static int packer_gc(lua_State *L) {
  release(luaL_checkudata(L, 1, SL_LUA_PACKER));
  return 0;
}

static const luaL_Reg methods[] = { { "push", packer_push }, { "finish", packer_finish }, { NULL, NULL } };
static const luaL_Reg meta[] = { { "__gc", packer_gc }, { NULL, NULL } };
static const luaL_Reg functions[] = { { "packer", packer_new }, { NULL, NULL } };

void sl_lua_open_packer(lua_State *L) {
  sl_lua_new_class(L, SL_LUA_PACKER, methods, meta);
  luaL_setfuncs(L, functions, 0);
}
