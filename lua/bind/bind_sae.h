/* Bindings of dictionaries: what the two files share. */
#ifndef SL_BIND_SAE_H
#define SL_BIND_SAE_H

#include "bind.h"
#include "core/sae/loss.h"
#include "core/sae/optim.h"

#define SL_LUA_SAE "saelua.Sae"
#define SL_LUA_CODES "saelua.Codes"

/* The dictionary at `index`; raises when it is something else. No new reference. */
sl_sae *sl_lua_check_sae(lua_State *L, int index);
/* Pushes a box around the codes, taking over one reference. */
void sl_lua_push_codes(lua_State *L, sl_codes *codes);
/* "f32", "f32_plain" or "bf16" from the option of that name; see sl_sae_encode_opts. */
sl_dtype sl_lua_option_product_dtype(lua_State *L, int index, const char *name, bool *plain);

void sl_lua_open_codes(lua_State *L);
void sl_lua_open_sae(lua_State *L);
void sl_lua_open_sae_train(lua_State *L);

#endif
