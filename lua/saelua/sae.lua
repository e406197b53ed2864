--- Dictionaries: making, loading, saving, checkpointing them, and checking a plan before it costs an hour.
-- @module saelua.sae
local core = require "saelua.core"
local files = require "saelua.sae_files"
local fs = require "saelua.fs"
local json = require "saelua.json"
local strict = require "saelua.strict"

local M = {}

local SHARED_OPTIONS = {
  d_in = strict.required, expansion = strict.optional, d_sae = strict.optional, seed = 0, normalize_decoder = true,
  apply_b_dec_to_input = true, device = "cpu",
}

-- The options of a constructor: the shared ones and its own.
local function with_shared(own)
  for name, default in pairs(SHARED_OPTIONS) do own[name] = default end
  return own
end

local OPTIONS = {
  topk = with_shared { k = strict.required },
  batchtopk = with_shared { k = strict.required, topk_threshold_lr = 0.01 },
  groupmax = with_shared { k = strict.required },
  jumprelu = with_shared { threshold = 0 },
}

local function latents(o, activation)
  local d_sae = o.d_sae and o.d_sae > 0 and o.d_sae or o.expansion and o.d_in * o.expansion
  if not d_sae then error(("sae.%s: give expansion or d_sae"):format(activation), 3) end
  return d_sae
end

local function make(activation, options)
  local o = strict.options("sae." .. activation, options, OPTIONS[activation])
  local d_sae = latents(o, activation)
  if o.k and o.k > d_sae then
    error(("sae.%s: k = %d is more than the %d latents of the dictionary; use a smaller --k, or more latents with "
      .. "--expansion_factor or --num_latents"):format(activation, o.k, d_sae), 0)
  end
  if activation == "groupmax" and d_sae % o.k ~= 0 then
    error(("sae.groupmax: %d latents do not split into k = %d groups of equal size; choose a --k that divides %d, or "
      .. "other --num_latents"):format(d_sae, o.k, d_sae), 0)
  end
  return core.new_sae {
    activation = activation, d_in = o.d_in, d_sae = d_sae, k = o.k, seed = o.seed, device = o.device,
    normalize_decoder = o.normalize_decoder, apply_b_dec_to_input = o.apply_b_dec_to_input,
    topk_threshold_lr = o.topk_threshold_lr,
  }, o
end

--- A TopK SAE with sparsify's start: each token is coded by its k largest pre-activations.
-- @tparam table options `d_in`, `k`, and `expansion` (d_sae = d_in * expansion) or `d_sae`; `seed` (0),
--   `normalize_decoder` (true), `apply_b_dec_to_input` (true), `device` ("cpu")
-- @treturn Sae
function M.topk(options) return (make("topk", options)) end

--- A BatchTopK SAE: training keeps the rows * k largest pre-activations of a whole batch; elsewhere those above a
-- threshold, the running mean of the least value kept. Saved as SAELens' jumprelu.
-- @tparam table options as for topk, and `topk_threshold_lr` (0.01), the weight of a batch in that mean
-- @treturn Sae
function M.batchtopk(options) return (make("batchtopk", options)) end

--- A GroupMax SAE (sparsify): the largest of each of k groups of neighbouring latents.
-- @tparam table options as for topk; k must divide the number of latents
-- @treturn Sae
function M.groupmax(options) return (make("groupmax", options)) end

--- A JumpReLU SAE: the pre-activations above a threshold of each latent. It encodes and decodes; training one is not
-- built.
-- @tparam table options as for topk, without k; `threshold` (0): a number, or a Tensor [d_sae]
-- @treturn Sae
function M.jumprelu(options)
  local sae, o = make("jumprelu", options)
  local threshold = type(o.threshold) == "number" and core.full({ sae.d_sae }, o.threshold, { device = o.device })
  return sae:set_parameter("threshold", threshold or o.threshold)
end

--- Saves a dictionary; see `saelua.sae_files`.
-- @function save
-- @tparam Sae sae
-- @tparam string folder
-- @tparam[opt] table options `format` ("saelens" or "sparsify"), `metadata`, `densities`
-- @treturn ?boolean true, or nil and a message
M.save = files.save

--- A dictionary written in Lua; see `saelua.sae_custom`.
-- @tparam table options as there
-- @treturn Custom
function M.custom(options) return require "saelua.sae_custom"(options) end

-- AbsTopK has no built-in encoder: the k pre-activations largest in size, signs kept.
local function abstopk(parts, device)
  local W_enc, b_enc, b_dec = parts.W_enc:to(device), parts.b_enc:to(device), parts.b_dec:to(device)
  return M.custom {
    architecture = "abstopk", k = parts.k, W_enc = W_enc, b_enc = b_enc, W_dec = parts.W_dec:to(device), b_dec = b_dec,
    apply_b_dec_to_input = parts.apply_b_dec_to_input, normalize_decoder = false,
    encode = function(x)
      local u = parts.apply_b_dec_to_input and x - b_dec or x
      return core.linear(u, W_enc, b_enc):topk(parts.k, { absolute = true })
    end,
  }
end

--- Loads a dictionary that saelua, SAELens 6 or sparsify 1.3 saved: topk, abstopk, jumprelu, groupmax, and batchtopk
-- from a checkpoint.
-- @tparam string folder with cfg.json and the weights
-- @tparam[opt] table options `device` ("cpu")
-- @treturn Sae
function M.load(folder, options)
  local o = strict.options("sae.load", options, { device = "cpu" })
  local parts, message = files.read(folder)
  if not parts then error(message, 0) end
  if parts.architecture == "abstopk" then return abstopk(parts, o.device), parts.metadata end
  -- Rows are taken as they stand in the file: a foreign decoder may not be of unit length, and must not be changed.
  local sae = core.new_sae {
    activation = parts.architecture, d_in = parts.d_in, d_sae = parts.d_sae, k = parts.k,
    apply_b_dec_to_input = parts.apply_b_dec_to_input, topk_threshold_lr = parts.topk_threshold_lr,
    normalize_decoder = false, device = o.device,
  }
  for _, name in ipairs { "W_enc", "b_enc", "W_dec", "b_dec", "threshold" } do
    if parts[name] then sae:set_parameter(name, parts[name]:to(o.device)) end
  end
  return sae, parts.metadata
end

-- Checkpoints -----------------------------------------------------------------------------------------------------

local sae_methods = debug.getregistry()["saelua.Sae"].methods
local optim_methods = debug.getregistry()["saelua.SaeOptim"].methods

--- Writes the dictionary (SAELens layout, so a checkpoint is a dictionary that tools open).
-- @function Sae:save_state
-- @tparam string folder
-- @treturn ?boolean true, or nil and a message
function sae_methods:save_state(folder) return files.save(self, folder, { checkpoint = true }) end

--- Reads what save_state wrote into this dictionary, bit for bit.
-- @function Sae:load_state
-- @tparam string folder
-- @treturn ?boolean true, or nil and a message
function sae_methods:load_state(folder)
  local parts, message = files.read(folder)
  if not parts then return nil, message end
  if parts.d_in ~= self.d_in or parts.d_sae ~= self.d_sae or parts.architecture ~= self.architecture then
    return nil, ("%s: a %s dictionary of %d x %d, this run has %s of %d x %d"):format(folder, parts.architecture,
      parts.d_in, parts.d_sae, self.architecture, self.d_in, self.d_sae)
  end
  -- In place: set_parameter would renormalise rows that are of unit length up to rounding, and change bits.
  for _, name in ipairs { "W_enc", "b_enc", "W_dec", "b_dec", "threshold" } do
    if parts[name] then self:parameter(name):copy_(parts[name]:to(self:parameter(name):device())) end
  end
  return true
end

--- What save_state writes, in bytes.
-- @function Sae:state_bytes
-- @treturn integer
function sae_methods:state_bytes() return 8 * self.d_in * self.d_sae end

--- x -> reconstruction.
-- @function Sae:reconstruct
-- @tparam Tensor x f32 [tokens, d_in]
-- @tparam[opt] table options as for encode
-- @treturn Tensor
function sae_methods:reconstruct(x, options)
  return self:decode(self:encode(x, options))
end

--- Writes moments, step and firing counts.
-- @function SaeOptim:save_state
-- @tparam string folder
-- @treturn ?boolean true, or nil and a message
function optim_methods:save_state(folder)
  local ok, message = core.save_tensors(fs.join(folder, "optim.safetensors"), self:state())
  if not ok then return nil, message end
  local numbers = { steps = self.steps, window_tokens = self:window_tokens() }
  return json.write(fs.join(folder, "optim.json"), numbers)
end

--- Reads what save_state wrote.
-- @function SaeOptim:load_state
-- @tparam string folder
-- @treturn ?boolean true, or nil and a message
function optim_methods:load_state(folder)
  local optim = require "saelua.optim"
  local numbers, message = optim.read_counts(folder, { "steps", "window_tokens" })
  if not numbers then return nil, message end
  local path = fs.join(folder, "optim.safetensors")
  local tensors, why = core.load_tensors(path)
  if not tensors then return nil, why end
  local ok, reason = optim.restore(self:state(), tensors, path)
  if not ok then return nil, reason end
  self:set_steps(numbers.steps)
  self:set_window_tokens(numbers.window_tokens)
  return true
end

local ELEMENT_BYTES = { u8 = 1, i64 = 8 } -- of state tensors that are not f32

--- What save_state writes, in bytes.
-- @function SaeOptim:state_bytes
-- @treturn integer
function optim_methods:state_bytes()
  local bytes = 0
  for _, entry in ipairs(self:state()) do
    bytes = bytes + (ELEMENT_BYTES[entry[2]:dtype()] or 4) * entry[2]:numel()
  end
  return bytes
end

-- Guard rails ---------------------------------------------------------------------------------------------------------

local PLAN = {
  d_in = strict.required, d_sae = strict.required, k = strict.required, tokens = strict.required,
  dead_feature_threshold = strict.required, dead_percentage_threshold = strict.required, uses_dead = false,
}

--- What of a recipe's options cannot go with its dictionary, before anything is computed.
-- @tparam Sae sae
-- @tparam table options of the recipe: `k_decay_steps`, `multi_topk`, `format` are looked at
-- @treturn ?string what cannot be and what to do, or nil
function M.conflict(sae, options)
  if sae.architecture == "groupmax" and (options.k_decay_steps or 0) > 0 then
    return "--k_decay_steps: groupmax needs a k that divides the latents at every step; leave it at 0"
  end
  if sae.architecture == "batchtopk" and options.multi_topk then
    return "--multi_topk takes the 4k largest of each token, and batchtopk has no k for a token; leave it out"
  end
  local ok, message = files.can_save(sae, options.format or "saelens")
  if not ok then return "--format " .. (options.format or "saelens") .. ": " .. message end
end

--- What is doubtful about a plan; each entry is a sentence.
-- @tparam table plan `d_in`, `d_sae`, `k`, `tokens` (to be trained on), `dead_feature_threshold`,
--   `dead_percentage_threshold`, `uses_dead` (AuxK is on)
-- @treturn {string,...}
function M.doubts(plan)
  local p = strict.options("sae.doubts", plan, PLAN)
  local doubts = {}
  local function add(text, ...) doubts[#doubts + 1] = text:format(...) end
  local firings = p.tokens * p.k / p.d_sae
  if firings < 1000 then
    add("%d tokens give each of the %d latents about %.0f firings; it needs some thousands. Raise --max_tokens "
      .. "or lower --expansion_factor", p.tokens, p.d_sae, firings)
  end
  if p.k > p.d_in then
    add("k = %d is more than the %d dimensions of the activations: the code is not sparse", p.k, p.d_in)
  end
  if p.uses_dead and p.dead_feature_threshold >= p.tokens then
    add("no latent can be silent for more than --dead_feature_threshold %d tokens in a run of %d: AuxK will never act",
      p.dead_feature_threshold, p.tokens)
  end
  if p.dead_percentage_threshold > p.k / p.d_sae then
    add("--dead_percentage_threshold %g is above the average firing rate k / latents = %.2g: most latents will count "
      .. "as rare", p.dead_percentage_threshold, p.k / p.d_sae)
  end
  return doubts
end

return M
