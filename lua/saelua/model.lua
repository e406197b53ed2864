--- Transformers: load, run, look inside, change, save.
--
--     local model = sl.model.load "bert-mini"
--     local out = model:forward(model.tokenizer:encode_tensor("the captain sold the boat"),
--       { capture = "layers.*.resid_post", logits = true })
--     out.hidden["layers.1.resid_post"]     -- [1, tokens, d_model]
--     out.logits                            -- [1, tokens, vocab_size]
--
-- Hook points have one name in saelua (`layers.3.resid_post`: the layer's output, as HF's hidden_states[4]) and are
-- found by Hugging Face module paths (`encoder.layer.3.output`), TransformerLens names and shell globs too.
-- @module saelua.model
local core = require "saelua.core"
local families = require "saelua.families"
local files = require "saelua.model_files"
local hookpoints = require "saelua.hookpoints"
local strict = require "saelua.strict"

local M = {}

--- Called with each warning; print it elsewhere by replacing it.
-- @tparam string message
function M.warn(message) io.stderr:write("warning: ", message, "\n") end

--- A model.
-- @type Model
-- @field name as it was asked for
-- @field n_layers number of layers
-- @field d_model width of the residual stream
-- @field vocab_size rows of the word table
-- @field max_positions longest sequence
-- @field tokenizer Tokenizer, or nil where the folder has none
-- @field spec sizes and choices
-- @field config what config.json holds
-- @field folder where it came from, or nil
local Model = {}
Model.__index = Model

-- Errors of the parts below are raised at the caller of the public function; positions in this library are cut off.
local function call(fn, ...)
  local ok, result, message = pcall(fn, ...)
  if ok then return result, message end
  if type(result) == "string" then result = result:gsub("^[^\n:]*lua/saelua/[%w_/]+%.lua:%d+: ", "", 1) end
  -- An error inside a hook names its own line and carries its traceback.
  local from_hook = type(result) ~= "string" or result:find("\nstack traceback:", 1, true)
  error(result, from_hook and 0 or 3)
end

local function make(parts, name, options)
  local spec = parts.spec
  return setmetatable({
    name = name, core = parts.core, config = parts.config, family = parts.family, spec = spec, folder = parts.folder,
    n_layers = spec.n_layers, d_model = spec.d_model, vocab_size = spec.vocab_size,
    max_positions = spec.max_positions, device = options.device, tokenizer = options.tokenizer or nil,
    names = hookpoints.names(parts.core:sites(), parts.family, options.dialect), resolved = {}, warned = {},
  }, Model)
end

local LOAD_OPTIONS = { device = "cpu", dtype = "f32", dialect = "tl3", tokenizer = true }

--- Loads a model. Raises when it cannot.
-- @tparam string name a folder in Hugging Face layout, a built-in model ("bert-mini"), or a hub name that is in the
--   local Hugging Face cache
-- @tparam[opt] table options `device` ("cpu"), `dtype` ("f32"; "bf16": matrices in bf16, sums and residual stream in
--   f32, no training; "tf32": f32, whose products a CUDA device may round, see sl.device.set_tf32), `dialect` of
--   TransformerLens names ("tl3", or "tl2"), `tokenizer` (false: do without)
-- @treturn Model
function M.load(name, options)
  if type(name) ~= "string" then error("model.load: a name or folder expected, got a " .. type(name), 2) end
  local o = strict.options("model.load", options, LOAD_OPTIONS)
  local folder, parts, message
  if o.dtype == "tf32" then
    call(core.set_tf32, o.device, true)
    o.dtype = "f32"
  end
  folder, message = files.find(name)
  if not folder then error(message, 2) end
  parts, message = call(files.read, folder, { device = o.device, dtype = o.dtype, warn = M.warn })
  if not parts then error(message, 2) end
  local tokenizer = false
  if o.tokenizer then
    tokenizer, message = files.tokenizer(folder, parts.spec.vocab_size)
    if tokenizer == nil then error(message, 2) end
  end
  parts.folder = folder
  return make(parts, name, { device = o.device, dialect = o.dialect, tokenizer = tokenizer })
end

local NEW_OPTIONS = { seed = 0, device = "cpu", head = true, dialect = "tl3", tokenizer = false, name = "new" }

--- A new model with random weights, as transformers initialises them (normal, `initializer_range`).
-- @tparam table config as config.json: `hidden_size`, `num_hidden_layers`, ...; model_type "bert" unless told
-- @tparam[opt] table options `seed` (0), `device`, `head` (true: with an MLM head), `tokenizer` (a Tokenizer), `name`,
--   `dialect`
-- @treturn Model
function M.new(config, options)
  if type(config) ~= "table" then error("model.new: a config table expected, got a " .. type(config), 2) end
  local o = strict.options("model.new", options, NEW_OPTIONS)
  local copy = { model_type = "bert" }
  for key, value in pairs(config) do copy[key] = value end
  local family, spec, message
  family, message = families.find(copy, "model.new")
  if not family then error(message, 2) end
  spec, message = families.spec(family, copy, "model.new")
  if not spec then error(message, 2) end
  spec.head = o.head and "mlm" or "none"
  spec.tied_head = o.head and families.value(family, copy, family.tied.key) ~= false
  spec.dtype = "f32"
  local model = call(core.new_model, spec, o.device)
  call(model.init, model, o.seed, families.value(family, copy, "initializer_range"),
    families.value(family, copy, "pad_token_id"))
  return make({ core = model, config = copy, family = family, spec = spec }, o.name,
    { device = o.device, dialect = o.dialect, tokenizer = o.tokenizer })
end

--- Whether the model gives logits: a checkpoint without an MLM head does not.
-- @treturn boolean
function Model:has_logits() return self.spec.head ~= "none" end

-- Hook points --------------------------------------------------------------------------------------------------

local function resolve(self, wanted)
  if type(wanted) ~= "string" then return self.names:resolve(wanted) end
  local known = self.resolved[wanted]
  if not known then
    known = self.names:resolve(wanted)
    self.resolved[wanted] = known
  end
  return known
end

--- The hook points that names or globs mean, in the order of computation; all of them without an argument.
-- Raises with the nearest names when one matches nothing.
-- @tparam[opt="*"] string|{string,...} pattern
-- @treturn {string,...} saelua names
function Model:hookpoints(pattern)
  return self.names:list(call(resolve, self, pattern or "*"))
end

--- The residual stream behind layers: `{2, 3}` gives `{"layers.2.resid_post", "layers.3.resid_post"}`.
-- @tparam integer|{integer,...} layers counted from 0
-- @treturn {string,...}
function Model:resid(layers)
  if type(layers) == "number" then layers = { layers } end
  local names = {}
  for i, layer in ipairs(layers) do
    if type(layer) ~= "number" or layer % 1 ~= 0 or layer < 0 or layer >= self.n_layers then
      error(("layer %s does not exist: %s has layers 0 to %d"):format(tostring(layer), self.name, self.n_layers - 1), 2)
    end
    names[i] = ("layers.%d.resid_post"):format(layer)
  end
  return names
end

--- Width of the last dimension at a hook point.
-- @tparam string name
-- @treturn ?integer nil where it is the number of tokens
function Model:width(name)
  return self.names.sites[call(self.names.one, self.names, name)].width
end

-- Forward ------------------------------------------------------------------------------------------------------

local FORWARD_OPTIONS = {}
for _, name in ipairs { "mask", "type_ids", "capture", "logits", "logit_rows", "stop_at", "splice", "splice_mask",
                        "hooks" } do
  FORWARD_OPTIONS[name] = strict.optional
end

-- Hidden states by the name asked for too: out.hidden["encoder.layer.3.output"].
local function hidden_table(self, sites, tensors)
  local hidden = {}
  for i, site in ipairs(sites) do hidden[self.names.sites[site].name] = tensors[i] end
  return setmetatable(hidden, {
    __index = function(_, name)
      local site = self.names.site_of[name]
      return site and rawget(hidden, self.names.sites[site].name) or nil
    end,
  })
end

local function splice_function(name, value)
  if type(value) == "function" then return value end
  if type(value) == "table" or type(value) == "userdata" then
    local ok, method = pcall(function() return value.reconstruct end)
    if ok and method then return function(rows) return method(value, rows) end end
  end
  error(("splice at %s: a function or an SAE with a method `reconstruct` expected, got a %s"):format(tostring(name),
    type(value)), 0)
end

-- Adds the splices of one forward; returns their ids.
local function add_splices(self, splices)
  local ids = {}
  for name, value in pairs(splices or {}) do
    local fn = splice_function(name, value)
    for _, site in ipairs(resolve(self, name)) do ids[#ids + 1] = self.core:add_hook(site, "splice", fn) end
  end
  return ids
end

-- Forward hooks that the last pass did not reach, each warned of once.
local function report_unfired(self)
  local unfired
  for _, hook in ipairs(self.core:hooks()) do
    if hook.kind ~= "backward" and hook.last_calls == 0 then
      local name = self.names.sites[hook.site].name
      unfired = unfired or {}
      unfired[#unfired + 1] = name
      if not self.warned[hook.id] then
        self.warned[hook.id] = true
        M.warn(("the %s hook at %s did not run: the forward pass stopped before it"):format(hook.kind, name))
      end
    end
  end
  return unfired
end

local function low_level(self, ids, o)
  local wanted = {
    ids = ids, mask = o.mask, type_ids = o.type_ids, splice_mask = o.splice_mask, logit_rows = o.logit_rows,
    logits = o.logits, skip_hooks = o.hooks == false, capture = o.capture and resolve(self, o.capture) or {},
    stop_at = o.stop_at and self.names:one(o.stop_at) or nil,
  }
  if wanted.logits == nil then wanted.logits = o.logit_rows ~= nil end
  local nothing = not o.capture and o.logits == nil and not o.logit_rows and not o.stop_at
  if nothing then
    wanted.logits = self:has_logits()
    wanted.capture = { self.names:one(("layers.%d.resid_post"):format(self.n_layers - 1)) }
  end
  if wanted.logits and not self:has_logits() then
    error(("%s has no MLM head, so it gives no logits"):format(self.name), 0)
  end
  return wanted
end

local function forward(self, ids, o)
  local wanted = low_level(self, ids, o)
  local splices = add_splices(self, o.splice)
  local ok, tensors, logits = pcall(self.core.forward, self.core, wanted)
  local unfired = ok and o.hooks ~= false and report_unfired(self) or nil
  for _, id in ipairs(splices) do self.core:remove_hook(id) end
  if not ok then error(tensors, 0) end
  return { hidden = hidden_table(self, wanted.capture, tensors), logits = logits, unfired = unfired }
end

--- Runs the model as deep as anything asked for. Without options: logits (where there are any) and the last layer.
-- @tparam Tensor ids i32 [B, T]
-- @tparam[opt] table options
--
--   * `mask` u8 [B, T], 0 = padding; `type_ids` i32 [B, T], 0 unless given
--   * `capture` names or globs of hook points
--   * `logits` true for all positions; `logit_rows` i32 [N]: only at these flat positions (b * T + t, from 0)
--   * `stop_at` hook point behind which the pass ends
--   * `splice` { [hook point] = SAE or function(rows [N, D]) -> rows }, in the place of the activation at the positions
--     of `splice_mask` u8 [B, T] (default: `mask`); the others keep it
--   * `hooks` false: run without hooks and splices
-- @treturn table `hidden` { [name] = Tensor }, `logits` [B, T, V] or [N, V], `unfired` names of hooks that did not run
function Model:forward(ids, options)
  return call(forward, self, ids, strict.options("model:forward", options, FORWARD_OPTIONS))
end

--- Hidden states alone: `model:capture("layers.*.resid_post", ids, { mask = mask })`.
-- @tparam string|{string,...} names
-- @tparam Tensor ids i32 [B, T]
-- @tparam[opt] table options as for `forward`
-- @treturn table { [name] = Tensor }
function Model:capture(names, ids, options)
  local o = strict.options("model:capture", options, FORWARD_OPTIONS)
  o.capture = names
  return call(forward, self, ids, o).hidden
end

-- Hooks --------------------------------------------------------------------------------------------------------

--- What `hook` and `splice` return.
-- @type Handle
-- @field names the hook points
local Handle = {}
Handle.__index = Handle

--- Takes the hooks away; twice is fine, also from inside a hook.
function Handle:remove()
  for _, id in ipairs(self.ids) do self.model.core:remove_hook(id) end
end

local function add(self, pattern, kind, fn)
  local sites = resolve(self, pattern)
  local ids = {}
  for i, site in ipairs(sites) do ids[i] = self.core:add_hook(site, kind, fn) end
  return setmetatable({ model = self, ids = ids, names = self.names:list(sites) }, Handle)
end

--- Calls `fn(tensor, info)` at hook points, in each forward (or backward) pass until the handle is removed.
-- The function returns a tensor of the same shape to take the value's place, or nothing. `info` has `name`, `point`,
-- `layer`, `ids`, `mask`. A hook cannot yield. Do not write into the tensor: other points may share its memory.
-- @tparam string|{string,...} pattern names or globs
-- @tparam function fn
-- @tparam[opt] table options `backward` (false; true: `fn` gets d loss / d activation during backward; the forward
--   pass must run under a tape)
-- @treturn Handle
function Model:hook(pattern, fn, options)
  local o = strict.options("model:hook", options, { backward = false })
  if type(fn) ~= "function" then error("model:hook: a function expected, got a " .. type(fn), 2) end
  return call(add, self, pattern, o.backward and "backward" or "forward", fn)
end

--- Puts an SAE's reconstruction (or fn(rows)) in the place of activations until the handle is removed.
-- @tparam string|{string,...} pattern
-- @tparam SAE|function sae
-- @treturn Handle
function Model:splice(pattern, sae)
  return call(function() return add(self, pattern, "splice", splice_function(pattern, sae)) end)
end

--- What is hooked, and how often it ran in all and in the last pass.
-- @treturn {table,...} { name, kind, calls, last_calls }
function Model:hooks()
  local list = {}
  for i, hook in ipairs(self.core:hooks()) do
    list[i] = { name = self.names.sites[hook.site].name, kind = hook.kind, calls = hook.calls,
                last_calls = hook.last_calls }
  end
  return list
end

-- Weights ------------------------------------------------------------------------------------------------------

--- Every weight, named as transformers saves it. The tensors are the model's own.
-- @treturn {table,...} { name, tensor, slot }, in order
function Model:parameters()
  local list = {}
  for i, entry in ipairs(self.core:slots()) do
    list[i] = {
      name = families.saved_name(self.family, entry.slot, entry.layer, self.spec.head),
      tensor = self.core:get(entry.slot, entry.layer), slot = entry.slot,
    }
  end
  return list
end

--- Asks for gradients of every weight, or stops asking. Weights of a mapped file are copied at the first call.
-- @tparam[opt=true] boolean yes
-- @treturn Model itself
function Model:train(yes)
  call(self.core.trainable, self.core, yes ~= false)
  return self
end

--- Writes config.json, model.safetensors and the tokenizer's files, so that transformers loads the folder.
-- @tparam string folder
-- @treturn ?boolean true, or nil, message, code
function Model:save(folder) return files.write(folder, self) end

--- Lets the weights go now.
function Model:free() self.core:free() end

function Model:__tostring()
  return ("model %s: %s, %d layers, d_model %d, %d heads, vocabulary %d, %s%s"):format(self.name, self.family.name,
    self.n_layers, self.d_model, self.spec.n_heads, self.vocab_size, self.spec.dtype,
    self:has_logits() and "" or ", no MLM head")
end

return M
