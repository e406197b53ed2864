--- Dictionaries on disk, in the layouts of SAELens 6 and of sparsify 1.3, so that their users' tools open them.
--
-- - **saelens**: `cfg.json`, `sae_weights.safetensors` with W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in], b_dec; and
--   `sparsity.safetensors` (log10(firing rate + 1e-10)) when rates are given
-- - **sparsify**: `cfg.json` (one line), `sae.safetensors` with encoder.weight [d_sae, d_in], encoder.bias, W_dec
--   [d_sae, d_in], b_dec
-- @module saelua.sae_files
local core = require "saelua.core"
local fs = require "saelua.fs"
local json = require "saelua.json"
local suggest = require "saelua.suggest"

local M = {}

-- SAELens ------------------------------------------------------------------------------------------------------

local function saelens_config(sae, metadata)
  return {
    architecture = "topk", d_in = sae.d_in, d_sae = sae.d_sae, k = sae.k, dtype = "float32", device = "cpu",
    apply_b_dec_to_input = sae.apply_b_dec_to_input, normalize_activations = "none", reshape_activations = "none",
    rescale_acts_by_decoder_norm = false, metadata = metadata or {},
  }
end

local function save_saelens(sae, folder, metadata)
  local ok, message = json.write(fs.join(folder, "cfg.json"), saelens_config(sae, metadata))
  if not ok then return nil, message end
  return core.scope(function()
    return core.save_tensors(fs.join(folder, "sae_weights.safetensors"), {
      { "W_enc", sae:parameter("W_enc"):transpose() }, { "b_enc", sae:parameter "b_enc" },
      { "W_dec", sae:parameter "W_dec" }, { "b_dec", sae:parameter "b_dec" },
    })
  end)
end

local function parse_saelens(config, tensors)
  if config.architecture ~= "topk" and config.architecture ~= nil then
    return nil, ("architecture '%s' is not available yet; only topk is"):format(tostring(config.architecture))
  end
  for _, key in ipairs { "normalize_activations", "reshape_activations" } do
    local value = config[key]
    if value ~= nil and value ~= "none" and value ~= json.null then
      return nil, ("%s = '%s' is not available yet; only 'none' is"):format(key, tostring(value))
    end
  end
  return {
    d_in = config.d_in, d_sae = config.d_sae, k = config.k,
    apply_b_dec_to_input = config.apply_b_dec_to_input ~= false,
    W_enc = tensors.W_enc and tensors.W_enc:transpose():contiguous(), b_enc = tensors.b_enc,
    W_dec = tensors.W_dec, b_dec = tensors.b_dec, metadata = config.metadata,
  }
end

-- sparsify -----------------------------------------------------------------------------------------------------

local function save_sparsify(sae, folder)
  if not sae.apply_b_dec_to_input then
    return nil, "sparsify's SAEs subtract b_dec from the input, this one does not: save it with --format saelens"
  end
  local config = {
    activation = "topk", expansion_factor = math.max(1, math.floor(sae.d_sae / sae.d_in)),
    normalize_decoder = sae.normalize_decoder, num_latents = sae.d_sae, k = sae.k, multi_topk = false,
    skip_connection = false, transcode = false, d_in = sae.d_in,
  }
  local ok, message = json.write(fs.join(folder, "cfg.json"), config)
  if not ok then return nil, message end
  return core.save_tensors(fs.join(folder, "sae.safetensors"), {
    { "W_dec", sae:parameter "W_dec" }, { "b_dec", sae:parameter "b_dec" },
    { "encoder.bias", sae:parameter "b_enc" }, { "encoder.weight", sae:parameter "W_enc" },
  })
end

local function parse_sparsify(config, tensors)
  if config.activation ~= nil and config.activation ~= "topk" then
    return nil, ("activation '%s' is not available yet; only topk is"):format(tostring(config.activation))
  end
  if config.transcode == true or tensors.W_skip then return nil, "transcoders are not available yet" end
  return {
    d_in = config.d_in, k = config.k or 32, apply_b_dec_to_input = true, W_enc = tensors["encoder.weight"],
    b_enc = tensors["encoder.bias"], W_dec = tensors.W_dec, b_dec = tensors.b_dec,
    d_sae = tensors["encoder.weight"] and tensors["encoder.weight"]:size(1),
    normalize_decoder = config.normalize_decoder ~= false,
  }
end

-- Both -----------------------------------------------------------------------------------------------------------

local FORMATS = {
  saelens = { file = "sae_weights.safetensors", save = save_saelens, parse = parse_saelens },
  sparsify = { file = "sae.safetensors", save = save_sparsify, parse = parse_sparsify },
}

--- Saves a dictionary into a folder.
-- @tparam Sae sae
-- @tparam string folder made if missing
-- @tparam[opt] table options `format` ("saelens" or "sparsify"), `metadata` (table for SAELens' cfg.json), `densities`
--   (firing rates, for sparsity.safetensors)
-- @treturn ?boolean true, or nil and a message
function M.save(sae, folder, options)
  local o = require("saelua.strict").options("sae.save", options, {
    format = "saelens", metadata = {}, densities = {},
  })
  local format = FORMATS[o.format]
  if not format then
    error(("sae.save: unknown format '%s'%s"):format(tostring(o.format),
      suggest.hint(tostring(o.format), suggest.keys(FORMATS))), 2)
  end
  local ok, message = fs.mkdir(folder)
  if not ok then return nil, message end
  ok, message = format.save(sae, folder, o.metadata)
  if not ok then return nil, message end
  if o.format == "saelens" and #o.densities > 0 then
    local logs = {}
    for i, rate in ipairs(o.densities) do logs[i] = math.log10(rate + 1e-10) end
    return core.save_tensors(fs.join(folder, "sparsity.safetensors"), { { "sparsity", core.tensor(logs) } })
  end
  return true
end

local function expect_shape(tensor, name, path, ...)
  local want = { ... }
  if not tensor then return nil, ("%s: tensor %s is missing"):format(path, name) end
  local shape = tensor:shape()
  local fits = #shape == #want
  for i, n in ipairs(want) do fits = fits and shape[i] == n end
  if fits then return true end
  return nil, ("%s: %s is [%s], expected [%s] by cfg.json"):format(path, name, table.concat(shape, " x "),
    table.concat(want, " x "))
end

local function check_integer(config, key, path, most)
  local v = config[key]
  if type(v) == "number" and v % 1 == 0 and v >= 1 and (not most or v <= most) then return true end
  return nil, ("%s: %s is %s, expected an integer from 1%s"):format(path, key, tostring(v),
    most and " to " .. most or "")
end

local function check_parts(parts, path)
  for _, key in ipairs { "d_in", "d_sae" } do
    local ok, message = check_integer(parts, key, path)
    if not ok then return nil, message end
  end
  local ok, message = check_integer(parts, "k", path, parts.d_sae)
  if not ok then return nil, message end
  for name, shape in pairs { W_enc = { parts.d_sae, parts.d_in }, W_dec = { parts.d_sae, parts.d_in },
    b_enc = { parts.d_sae }, b_dec = { parts.d_in } } do
    ok, message = expect_shape(parts[name], name, path, unpack(shape))
    if not ok then return nil, message end
    parts[name] = parts[name]:to "f32"
  end
  return true
end

--- Reads a dictionary's parts from a folder in either layout.
-- @tparam string folder
-- @treturn ?table d_in, d_sae, k, apply_b_dec_to_input, normalize_decoder, metadata, W_enc and W_dec [d_sae, d_in],
--   b_enc, b_dec; or nil and a message
function M.read(folder)
  local format
  for _, candidate in pairs(FORMATS) do
    if fs.exists(fs.join(folder, candidate.file)) then format = candidate end
  end
  if not format then
    return nil, ("%s: no dictionary there; expected cfg.json with sae_weights.safetensors (SAELens) or sae.safetensors "
      .. "(sparsify)"):format(folder)
  end
  local config_path, path = fs.join(folder, "cfg.json"), fs.join(folder, format.file)
  local config, message = json.read(config_path)
  if type(config) ~= "table" then return nil, message or config_path .. ": not a JSON object" end
  local tensors, why = core.load_tensors(path)
  if not tensors then return nil, why end
  local parts, reason = format.parse(config, tensors)
  if not parts then return nil, config_path .. ": " .. reason end
  local ok, wrong = check_parts(parts, path)
  if not ok then return nil, wrong end
  return parts
end

return M
