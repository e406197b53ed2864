--- A dictionary written in Lua, with the methods that evaluation, reports, splices and checkpoints expect of an SAE.
-- @module saelua.sae_custom
local core = require "saelua.core"
local fs = require "saelua.fs"
local optim = require "saelua.optim"
local strict = require "saelua.strict"

local Custom = {}
Custom.__index = Custom

local NAMES = { "W_enc", "b_enc", "W_dec", "b_dec" }

local OPTIONS = {
  architecture = strict.required, k = strict.required, encode = strict.required, W_enc = strict.required,
  b_enc = strict.required, W_dec = strict.required, b_dec = strict.required, apply_b_dec_to_input = true,
  normalize_decoder = true,
}

--- Wraps parameters and an encoder: x_hat = sum of values W_dec[ids] + b_dec.
-- @tparam table options `architecture` (SAELens' name for it, for cfg.json), `k`, `encode` (function(x [n, d_in])
--   -> values [n, k], ids i32 [n, k]), `W_enc` [d_sae, d_in], `b_enc` [d_sae], `W_dec` [d_sae, d_in], `b_dec` [d_in];
--   and, for cfg.json, `apply_b_dec_to_input` (true), `normalize_decoder` (true)
-- @treturn table with the methods encode, decode, reconstruct, parameter, save_state, load_state of an SAE
local function custom(options)
  local self = strict.options("sae.custom", options, OPTIONS)
  self.select = self.encode
  self.encode = nil
  self.d_sae, self.d_in = self.W_dec:size(1), self.W_dec:size(2)
  return setmetatable(self, Custom)
end

--- x -> Codes.
function Custom:encode(x)
  local values, ids = core.no_grad(function() return self.select(x) end)
  return core.codes_from_topk(values, ids, self.d_sae)
end

-- The built-in decoder over these parameters.
local function decoder(self)
  self.built_in = self.built_in or core.new_sae {
    d_in = self.d_in, d_sae = self.d_sae, k = self.k, normalize_decoder = false, device = self.W_dec:device(),
  }
  self.built_in:set_parameter("W_dec", self.W_dec)
  self.built_in:set_parameter("b_dec", self.b_dec)
  return self.built_in
end

--- Codes -> reconstruction.
function Custom:decode(codes) return decoder(self):decode(codes) end

--- x -> reconstruction.
function Custom:reconstruct(x) return self:decode(self:encode(x)) end

--- A live parameter by name.
function Custom:parameter(name)
  for _, known in ipairs(NAMES) do
    if name == known then return self[name] end
  end
  error(("no parameter '%s'; there are %s"):format(tostring(name), table.concat(NAMES, ", ")), 2)
end

local function list(self)
  local out = {}
  for i, name in ipairs(NAMES) do out[i] = { name, self[name] } end
  return out
end

--- Writes the parameters.
function Custom:save_state(folder) return core.save_tensors(fs.join(folder, "sae.safetensors"), list(self)) end

--- Reads what save_state wrote.
function Custom:load_state(folder)
  local path = fs.join(folder, "sae.safetensors")
  local saved, message = core.load_tensors(path)
  if not saved then return nil, message end
  return optim.restore(list(self), saved, path)
end

function Custom:state_bytes() return 8 * self.d_in * self.d_sae end

return custom
