/* luaopen_saelua_core: the C half of the library, one table. lua/saelua/init.lua makes it pleasant. */
#include "bind.h"
#include "bind_model.h"
#include "bind_sae.h"

int luaopen_saelua_core(lua_State *L) {
  lua_newtable(L);
  sl_lua_open_scope(L);
  sl_lua_open_tensor(L);
  sl_lua_open_create(L);
  sl_lua_open_ops(L);
  sl_lua_open_ops_transformer(L);
  sl_lua_open_tape(L);
  sl_lua_open_device(L);
  sl_lua_open_memory(L);
  sl_lua_open_data(L);
  sl_lua_open_io(L);
  sl_lua_open_optim(L);
  sl_lua_open_tokenizer(L);
  sl_lua_open_packer(L);
  sl_lua_open_weights(L);
  sl_lua_open_model(L);
  sl_lua_open_codes(L);
  sl_lua_open_sae(L);
  sl_lua_open_sae_train(L);
  return 1;
}
