/* Bindings of models, tokenizers and weight files: what other binding files may use. */
#ifndef SL_BIND_MODEL_H
#define SL_BIND_MODEL_H

#include "bind.h"
#include "core/data/wordpiece.h"
#include "core/model/model.h"

#define SL_LUA_TOKENIZER "saelua.Tokenizer"
#define SL_LUA_WEIGHTS "saelua.Weights"
#define SL_LUA_MODEL "saelua.ModelCore"

/* The tokenizer or model at `index` (borrowed); raises when it is something else or was freed. */
const sl_wordpiece *sl_lua_check_tokenizer(lua_State *L, int index);
/* As above. */
sl_model *sl_lua_check_model(lua_State *L, int index);

/* Names L as the state that Lua hooks run on until the next call; bindings that may reach a hook (forward, backward)
 * call it first. Returns the state that was named before. */
lua_State *sl_lua_enter_hooks(lua_State *L);
void sl_lua_leave_hooks(lua_State *L, lua_State *previous);

void sl_lua_open_tokenizer(lua_State *L);
void sl_lua_open_packer(lua_State *L);
void sl_lua_open_weights(lua_State *L);
void sl_lua_open_model(lua_State *L);

#endif
