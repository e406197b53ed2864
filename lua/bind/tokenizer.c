/*** WordPiece tokenizers. Token ids are data and count from 0.
 * @classmod saelua.Tokenizer */
#include "bind_model.h"

#include <string.h>

#include "core/base/mem.h"

const sl_wordpiece *sl_lua_check_tokenizer(lua_State *L, int index) {
  return sl_lua_check_box(L, index, SL_LUA_TOKENIZER, "the tokenizer");
}

/*** The tokenizer of a folder in Hugging Face layout (tokenizer.json, or vocab.txt).
 * @function sl.tokenizer
 * @tparam string folder
 * @treturn ?Tokenizer or nil, message, code */
static int tokenizer_load(lua_State *L) {
  const char *folder = luaL_checkstring(L, 1);
  void **box = sl_lua_new_box(L, SL_LUA_TOKENIZER);
  return sl_lua_result(L, sl_wordpiece_load(folder, (sl_wordpiece **)box), 1);
}

/*** The tokenizer of a vocabulary, lower-casing as bert-base-uncased does.
 * @function sl.tokenizer_from_vocab
 * @tparam string vocab one token a line
 * @tparam[opt] table options `lower_case` (true)
 * @treturn ?Tokenizer or nil, message, code */
static int tokenizer_from_vocab(lua_State *L) {
  static const char *const names[] = { "lower_case", NULL };
  size_t bytes;
  const char *vocab = luaL_checklstring(L, 1, &bytes);
  sl_lua_check_options(L, 2, "tokenizer_from_vocab", names);
  const char *config = sl_lua_option_boolean(L, 2, "lower_case", true) ? "{\"do_lower_case\": true}"
                                                                       : "{\"do_lower_case\": false}";
  void **box = sl_lua_new_box(L, SL_LUA_TOKENIZER);
  return sl_lua_result(L, sl_wordpiece_from_vocab(vocab, bytes, config, strlen(config), "vocabulary",
                                                  (sl_wordpiece **)box), 1);
}

/* Runs the encoder; the list belongs to the caller, who frees it before anything may raise. */
static void encode(lua_State *L, sl_token_list *list) {
  static const char *const names[] = { "special", "offsets", NULL };
  const sl_wordpiece *tokenizer = sl_lua_check_tokenizer(L, 1);
  size_t bytes;
  const char *text = luaL_checklstring(L, 2, &bytes);
  sl_lua_check_options(L, 3, "tokenizer:encode", names);
  unsigned flags = 0;
  if (sl_lua_option_boolean(L, 3, "special", true)) flags |= SL_ENCODE_SPECIAL;
  if (sl_lua_option_boolean(L, 3, "offsets", false)) flags |= SL_ENCODE_OFFSETS;
  sl_status status = sl_wordpiece_encode(tokenizer, text, bytes, flags, list);
  if (status != SL_OK) sl_token_list_free(list);
  sl_lua_check(L, status);
}

static int list_gc(lua_State *L) {
  sl_token_list_free(lua_touserdata(L, 1));
  return 0;
}

/* A token list that the collector frees, because filling Lua tables may raise. */
static sl_token_list *new_list(lua_State *L) {
  sl_token_list *list = lua_newuserdata(L, sizeof *list);
  *list = (sl_token_list){ 0 };
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, list_gc);
  lua_setfield(L, -2, "__gc");
  lua_setmetatable(L, -2);
  return list;
}

/* Pushes { first, last } for text:sub(first, last); special tokens give { 1, 0 }, the empty string. */
static void push_range(lua_State *L, uint32_t start, uint32_t end) {
  lua_createtable(L, 2, 0);
  lua_pushnumber(L, (lua_Number)start + 1);
  lua_rawseti(L, -2, 1);
  lua_pushnumber(L, (lua_Number)end);
  lua_rawseti(L, -2, 2);
}

/*** Text to ids.
 * @function encode
 * @tparam string text UTF-8
 * @tparam[opt] table options `special` (true: [CLS] in front, [SEP] behind), `offsets` (false)
 * @treturn {integer,...} ids
 * @treturn ?table with `offsets`: { first, last } byte positions of each token, for text:sub */
static int tokenizer_encode(lua_State *L) {
  lua_settop(L, 3);
  sl_token_list *list = new_list(L);
  encode(L, list);
  int n = (int)list->count;
  lua_createtable(L, n, 0);
  for (int i = 0; i < n; i++) {
    lua_pushinteger(L, list->ids[i]);
    lua_rawseti(L, -2, i + 1);
  }
  if (!list->starts) return 1;
  lua_createtable(L, n, 0);
  for (int i = 0; i < n; i++) {
    push_range(L, list->starts[i], list->ends[i]);
    lua_rawseti(L, -2, i + 1);
  }
  return 2;
}

/*** Text to a tensor of ids.
 * @function encode_tensor
 * @tparam string text UTF-8
 * @tparam[opt] table options `special` (true)
 * @treturn Tensor i32 [1, tokens], ready for model:forward */
static int tokenizer_encode_tensor(lua_State *L) {
  lua_settop(L, 3);
  sl_token_list *list = new_list(L);
  encode(L, list);
  int64_t shape[2] = { 1, (int64_t)list->count };
  sl_tensor **box = sl_lua_new_tensor(L);
  SL_LUA_TRY(L, sl_tensor_create(sl_cpu_device(), SL_I32, 2, shape, box));
  if (list->count > 0) sl_lua_check(L, sl_tensor_write(*box, list->ids, list->count * sizeof *list->ids));
  return 1;
}

/* The ids of a table or an i32 tensor at `index`, as a new userdata on top of the stack. */
static const int32_t *check_ids(lua_State *L, int index, size_t *count) {
  if (lua_istable(L, index)) {
    *count = lua_objlen(L, index);
    int32_t *ids = lua_newuserdata(L, (*count + 1) * sizeof *ids);
    for (size_t i = 0; i < *count; i++) {
      lua_rawgeti(L, index, (int)i + 1);
      if (lua_type(L, -1) != LUA_TNUMBER)
        luaL_error(L, "id %d is a %s, expected an integer", (int)i + 1, luaL_typename(L, -1));
      ids[i] = (int32_t)lua_tointeger(L, -1);
      lua_pop(L, 1);
    }
    return ids;
  }
  const sl_tensor *tensor = sl_lua_check_tensor(L, index);
  sl_lua_check(L, sl_tensor_expect(tensor, "tokenizer:decode", "ids", SL_I32, -1));
  *count = (size_t)sl_tensor_count(tensor);
  int32_t *ids = lua_newuserdata(L, (*count + 1) * sizeof *ids);
  if (!sl_tensor_is_contiguous(tensor)) luaL_error(L, "tokenizer:decode: ids are a strided view; call :contiguous()");
  if (*count > 0) sl_lua_check(L, sl_tensor_read(tensor, ids, *count * sizeof *ids));
  return ids;
}

/*** Ids to text, by the rules of the reference decoder.
 * @function decode
 * @tparam {integer,...}|Tensor ids
 * @tparam[opt] table options `skip_special` (false)
 * @treturn string */
static int tokenizer_decode(lua_State *L) {
  static const char *const names[] = { "skip_special", NULL };
  lua_settop(L, 3);
  const sl_wordpiece *tokenizer = sl_lua_check_tokenizer(L, 1);
  sl_lua_check_options(L, 3, "tokenizer:decode", names);
  bool skip = sl_lua_option_boolean(L, 3, "skip_special", false);
  size_t count, bytes;
  const int32_t *ids = check_ids(L, 2, &count);
  char *text;
  sl_lua_check(L, sl_wordpiece_decode(tokenizer, ids, count, skip, &text, &bytes));
  lua_pushlstring(L, text, bytes); /* raises only when memory is gone for good */
  sl_mem_free(text);
  return 1;
}

/*** The id of a token, or nil.
 * @function id
 * @tparam string token such as "[MASK]" or "##ing"
 * @treturn ?integer */
static int tokenizer_id(lua_State *L) {
  size_t bytes;
  const char *token = luaL_checklstring(L, 2, &bytes);
  int32_t id = sl_wordpiece_id(sl_lua_check_tokenizer(L, 1), token, bytes);
  if (id < 0) return 0;
  lua_pushinteger(L, id);
  return 1;
}

/*** The token of an id, or nil.
 * @function token
 * @tparam integer id
 * @treturn ?string */
static int tokenizer_token(lua_State *L) {
  size_t bytes;
  const sl_wordpiece *tokenizer = sl_lua_check_tokenizer(L, 1);
  const char *token = sl_wordpiece_token(tokenizer, (int32_t)luaL_checkinteger(L, 2), &bytes);
  if (!token) return 0;
  lua_pushlstring(L, token, bytes);
  return 1;
}

/*** Whether an id is a special token.
 * @function is_special
 * @tparam integer id
 * @treturn boolean whether it is [PAD], [UNK], [CLS], [SEP], [MASK] or an added special token */
static int tokenizer_is_special(lua_State *L) {
  lua_pushboolean(L, sl_wordpiece_is_special(sl_lua_check_tokenizer(L, 1), (int32_t)luaL_checkinteger(L, 2)));
  return 1;
}

/*** Every special id, rising.
 * @function special_ids
 * @treturn {integer,...} */
static int tokenizer_special_ids(lua_State *L) {
  const sl_wordpiece *tokenizer = sl_lua_check_tokenizer(L, 1);
  lua_newtable(L);
  for (int32_t id = 0, n = 0; id < sl_wordpiece_size(tokenizer); id++) {
    if (!sl_wordpiece_is_special(tokenizer, id)) continue;
    lua_pushinteger(L, id);
    lua_rawseti(L, -2, ++n);
  }
  return 1;
}

static int push_special(lua_State *L, int32_t id) {
  if (id < 0) return 0;
  lua_pushinteger(L, id);
  return 1;
}

/*** Properties: number of tokens, and special ids (nil where the vocabulary lacks the token).
 * @field vocab_size
 * @field pad_id
 * @field unk_id
 * @field cls_id
 * @field sep_id
 * @field mask_id */
static int tokenizer_index(lua_State *L) {
  const sl_wordpiece *tokenizer = sl_lua_check_tokenizer(L, 1);
  const char *name = lua_tostring(L, 2);
  lua_pushvalue(L, 2);
  lua_rawget(L, lua_upvalueindex(1));
  if (!lua_isnil(L, -1) || !name) return 1;
  sl_special_ids ids = sl_wordpiece_special(tokenizer);
  if (strcmp(name, "vocab_size") == 0) return push_special(L, sl_wordpiece_size(tokenizer));
  if (strcmp(name, "pad_id") == 0) return push_special(L, ids.pad);
  if (strcmp(name, "unk_id") == 0) return push_special(L, ids.unk);
  if (strcmp(name, "cls_id") == 0) return push_special(L, ids.cls);
  if (strcmp(name, "sep_id") == 0) return push_special(L, ids.sep);
  if (strcmp(name, "mask_id") == 0) return push_special(L, ids.mask);
  return luaL_error(L, "a tokenizer has no field '%s'", name);
}

static int tokenizer_gc(lua_State *L) {
  void **box = luaL_checkudata(L, 1, SL_LUA_TOKENIZER);
  sl_wordpiece_free(*box);
  *box = NULL;
  return 0;
}

static int tokenizer_tostring(lua_State *L) {
  lua_pushfstring(L, "tokenizer: WordPiece, %d tokens", (int)sl_wordpiece_size(sl_lua_check_tokenizer(L, 1)));
  return 1;
}

static const luaL_Reg methods[] = {
  { "encode", tokenizer_encode }, { "encode_tensor", tokenizer_encode_tensor }, { "decode", tokenizer_decode },
  { "id", tokenizer_id }, { "token", tokenizer_token }, { "is_special", tokenizer_is_special },
  { "special_ids", tokenizer_special_ids }, { NULL, NULL },
};
static const luaL_Reg meta[] = { { "__gc", tokenizer_gc }, { "__tostring", tokenizer_tostring }, { NULL, NULL } };
static const luaL_Reg functions[] = {
  { "tokenizer", tokenizer_load }, { "tokenizer_from_vocab", tokenizer_from_vocab }, { NULL, NULL },
};

void sl_lua_open_tokenizer(lua_State *L) {
  sl_lua_new_class(L, SL_LUA_TOKENIZER, methods, meta);
  luaL_getmetatable(L, SL_LUA_TOKENIZER);
  lua_getfield(L, -1, "__index"); /* stack: metatable, methods */
  lua_pushvalue(L, -1);
  lua_setfield(L, -3, "methods"); /* where completion finds them */
  lua_pushcclosure(L, tokenizer_index, 1);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
  luaL_setfuncs(L, functions, 0);
}
