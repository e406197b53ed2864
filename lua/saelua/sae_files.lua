--- Dictionaries on disk, in the layouts of SAELens 6 and of sparsify 1.3, so that their users' tools open them.
--
-- - **saelens**: `cfg.json`, `sae_weights.safetensors` with W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in], b_dec; and
--   `sparsity.safetensors` (log10(firing rate + 1e-10)) when rates are given
-- - **sparsify**: `cfg.json` (one line), `sae.safetensors` with encoder.weight [d_sae, d_in], encoder.bias, W_dec
--   [d_sae, d_in], b_dec
--
-- What those packages themselves write opens here: also SAELens' training checkpoints (`save_model`, where the norms of
-- the decoder rows scale the selection), its layout before version 6, and weights in float16 or bfloat16.
-- tests/parity/open_in_peers.py holds both directions against the packages.
-- @module saelua.sae_files
local core = require "saelua.core"
local fs = require "saelua.fs"
local json = require "saelua.json"
local suggest = require "saelua.suggest"

local M = {}

-- SAELens ------------------------------------------------------------------------------------------------------

-- The version whose layout this is. SAELens takes a file that names none for one from before 6.0, and then drops the
-- metadata.
local SAELENS_VERSION = "6.54.12"

-- SAELens' name for what an inference file of the architecture is. It has none for groupmax.
local EXPORTED = { topk = "topk", abstopk = "abstopk", jumprelu = "jumprelu", batchtopk = "jumprelu" }

-- As SAELens does, a checkpoint says what is trained, a file for use what is computed.
local function saelens_config(sae, o)
  local facts = { sae_lens_version = SAELENS_VERSION }
  for key, value in pairs(o.metadata) do facts[key] = value end
  if sae.architecture == "batchtopk" and not o.checkpoint then
    facts.training_architecture = "batchtopk"
    facts.training_architecture_details = { k = sae.k, topk_threshold_lr = sae.topk_threshold_lr }
  end
  local config = {
    architecture = o.checkpoint and sae.architecture or EXPORTED[sae.architecture], d_in = sae.d_in, d_sae = sae.d_sae,
    dtype = "float32", device = "cpu", apply_b_dec_to_input = sae.apply_b_dec_to_input, normalize_activations = "none",
    reshape_activations = "none", metadata = facts,
  }
  if config.architecture ~= "jumprelu" then config.k, config.rescale_acts_by_decoder_norm = sae.k, false end
  if config.architecture == "batchtopk" then
    config.topk_threshold_lr = sae.topk_threshold_lr
    config.topk_threshold_weight = sae:parameter("threshold"):select(1, 2):item() -- not SAELens', which ignores it
  end
  return config
end

-- The thresholds under the name that the file's architecture has for them.
local function add_threshold(list, sae, checkpoint)
  if sae.architecture == "jumprelu" then
    list[#list + 1] = { "threshold", sae:parameter "threshold" }
  elseif sae.architecture == "batchtopk" then
    local threshold = sae:parameter("threshold"):select(1, 1)
    list[#list + 1] = checkpoint and { "topk_threshold", threshold }
      or { "threshold", core.full({ sae.d_sae }, threshold:item()) }
  end
end

local function save_saelens(sae, folder, o)
  local ok, message = json.write(fs.join(folder, "cfg.json"), saelens_config(sae, o))
  if not ok then return nil, message end
  return core.scope(function()
    local list = {
      { "W_enc", sae:parameter("W_enc"):transpose() }, { "b_enc", sae:parameter "b_enc" },
      { "W_dec", sae:parameter "W_dec" }, { "b_dec", sae:parameter "b_dec" },
    }
    add_threshold(list, sae, o.checkpoint)
    return core.save_tensors(fs.join(folder, "sae_weights.safetensors"), list)
  end)
end

-- The value of a key, or `default` where it is missing or null.
local function value_of(config, key, default)
  local value = config[key]
  if value == nil or value == json.null then return default end
  return value
end

-- What a tensor file may hold; another tensor would change what the dictionary computes, so it must not be ignored.
local function check_names(tensors, names, architecture)
  for name in pairs(tensors) do
    if not names[name] then
      return nil, ("the weights hold '%s', which is not part of a %s dictionary"):format(name, architecture)
    end
  end
  return true
end

-- A configuration from before 6.0 (by its version, or without one) in the names of 6.0; as SAELens converts it.
local function modern_saelens(config)
  local metadata = type(config.metadata) == "table" and config.metadata or {}
  local version = value_of(config, "sae_lens_version", value_of(metadata, "sae_lens_version", ""))
  if (tonumber(tostring(version):match "^%d+") or 0) >= 6 then return config end
  local modern = { architecture = "standard" }
  for key, value in pairs(config) do modern[key] = value end
  local activation = value_of(config, "activation_fn", config.activation_fn_str)
  local arguments = config.activation_fn_kwargs
  if activation == "topk" and type(arguments) == "table" and arguments.k then
    modern.architecture, modern.k = "topk", arguments.k
  end
  if modern.normalize_activations == false then modern.normalize_activations = "none" end
  if modern.normalize_activations == true then modern.normalize_activations = "expected_average_only_in" end
  if type(config.hook_name) == "string" and config.hook_name:find("hook_z", 1, true) then
    modern.reshape_activations = value_of(modern, "reshape_activations", "hook_z")
  end
  return modern
end

-- The tensors of a threshold, by architecture: those of a file for use, and of a training checkpoint (in which old
-- versions of SAELens wrote the logarithm).
local THRESHOLDS = {
  topk = {}, abstopk = {}, groupmax = {}, jumprelu = { "threshold", "log_threshold" }, batchtopk = { "topk_threshold" },
}

local function check_saelens(config, tensors)
  local architecture = value_of(config, "architecture", "standard")
  local thresholds = THRESHOLDS[architecture]
  if not thresholds then
    return nil, ("architecture '%s' is not available yet; only topk, abstopk, jumprelu and batchtopk are")
      :format(tostring(architecture))
  end
  for _, key in ipairs { "normalize_activations", "reshape_activations" } do
    local value = value_of(config, key, "none")
    if value ~= "none" then
      return nil, ("%s = '%s' is not available yet; only 'none' is"):format(key, tostring(value))
    end
  end
  local names = { W_enc = true, b_enc = true, W_dec = true, b_dec = true, scaling_factor = true }
  for _, name in ipairs(thresholds) do names[name] = true end
  local ok, message = check_names(tensors, names, architecture)
  if not ok then return nil, message end
  local factor = tensors.scaling_factor -- of files before 6.0; ones unless fine-tuned
  if factor and (factor:to "f32" - 1):square():sum():item() > 0 then
    return nil, "its latents are rescaled by a fine-tuned scaling_factor, which is not available yet"
  end
  return true
end

local function parse_saelens(config, tensors)
  config = modern_saelens(config)
  local ok, message = check_saelens(config, tensors)
  if not ok then return nil, message end
  local W_enc, architecture = tensors.W_enc, value_of(config, "architecture", "standard")
  local threshold = tensors.threshold or tensors.topk_threshold
  if tensors.log_threshold and not threshold then threshold = tensors.log_threshold:to("f32"):exp() end
  return {
    architecture = architecture, d_in = config.d_in, d_sae = config.d_sae,
    k = architecture ~= "jumprelu" and value_of(config, "k", 100) or nil,
    topk_threshold_lr = architecture == "batchtopk" and value_of(config, "topk_threshold_lr", 0.01) or nil,
    threshold_weight = value_of(config, "topk_threshold_weight", 1), -- SAELens keeps none
    apply_b_dec_to_input = value_of(config, "apply_b_dec_to_input", true),
    fold_norms = architecture ~= "jumprelu" and value_of(config, "rescale_acts_by_decoder_norm", false),
    W_enc = W_enc and W_enc:dim() == 2 and W_enc:transpose():contiguous() or W_enc, b_enc = tensors.b_enc,
    W_dec = tensors.W_dec, b_dec = tensors.b_dec, threshold = threshold, metadata = config.metadata,
    names = { threshold = architecture == "batchtopk" and "topk_threshold" or "threshold" },
  }
end

-- rescale_acts_by_decoder_norm: the k largest of p_i |w_i| are chosen, and x^ = sum p_i w_i + b_dec. The same as plain
-- TopK with |w_i| moved from the decoder row to the encoder's.
local function fold_decoder_norms(parts)
  local norms = parts.W_dec:square():sum(2):sqrt()
  local column = norms:reshape(-1, 1)
  parts.W_enc, parts.b_enc, parts.W_dec = parts.W_enc * column, parts.b_enc * norms, parts.W_dec / column
end

-- sparsify -----------------------------------------------------------------------------------------------------

local function save_sparsify(sae, folder)
  local config = {
    activation = sae.architecture, expansion_factor = math.max(1, math.floor(sae.d_sae / sae.d_in)),
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
  local activation = value_of(config, "activation", "topk")
  if activation ~= "topk" and activation ~= "groupmax" then
    return nil, ("activation '%s' is not available yet; only topk and groupmax are"):format(tostring(activation))
  end
  for _, key in ipairs { "transcode", "skip_connection" } do
    if value_of(config, key, false) ~= false then return nil, ("%s: not available yet"):format(key) end
  end
  local ok, message = check_names(tensors, { ["encoder.weight"] = true, ["encoder.bias"] = true, W_dec = true,
    b_dec = true }, activation)
  if not ok then return nil, message end
  local latents, factor = value_of(config, "num_latents", 0), value_of(config, "expansion_factor", 32)
  if latents == 0 and type(factor) == "number" and type(config.d_in) == "number" then latents = config.d_in * factor end
  return {
    architecture = activation, d_in = config.d_in, d_sae = latents, k = value_of(config, "k", 32),
    apply_b_dec_to_input = true, normalize_decoder = value_of(config, "normalize_decoder", true),
    W_enc = tensors["encoder.weight"], b_enc = tensors["encoder.bias"], W_dec = tensors.W_dec, b_dec = tensors.b_dec,
    names = { W_enc = "encoder.weight", b_enc = "encoder.bias" },
  }
end

-- Both -----------------------------------------------------------------------------------------------------------

local FORMATS = {
  saelens = { file = "sae_weights.safetensors", save = save_saelens, parse = parse_saelens },
  sparsify = { file = "sae.safetensors", save = save_sparsify, parse = parse_sparsify },
}

--- Whether a layout can say what a dictionary computes.
-- @tparam Sae sae
-- @tparam string format "saelens" or "sparsify"
-- @treturn ?boolean true, or nil and what to do instead
function M.can_save(sae, format)
  if format == "saelens" then
    if EXPORTED[sae.architecture] then return true end
    return nil, ("SAELens has no '%s' dictionaries: save it with --format sparsify"):format(sae.architecture)
  end
  if sae.architecture ~= "topk" and sae.architecture ~= "groupmax" then
    return nil, ("sparsify has no '%s' dictionaries: save it with --format saelens"):format(sae.architecture)
  end
  if sae.apply_b_dec_to_input then return true end
  return nil, "sparsify's SAEs subtract b_dec from the input, this one does not: "
    .. (sae.architecture == "topk" and "save it with --format saelens" or "no layout has such a dictionary")
end

--- Saves a dictionary into a folder.
-- @tparam Sae sae
-- @tparam string folder made if missing
-- @tparam[opt] table options `format` ("saelens" or "sparsify"), `metadata` (table for SAELens' cfg.json), `densities`
--   (firing rates, for sparsity.safetensors), `checkpoint` (false; true: SAELens layout with what training needs, which
--   for batchtopk and groupmax is no file for use elsewhere)
-- @treturn ?boolean true, or nil and a message
function M.save(sae, folder, options)
  local o = require("saelua.strict").options("sae.save", options, {
    format = "saelens", metadata = {}, densities = {}, checkpoint = false,
  })
  local format = FORMATS[o.format]
  if not format then
    error(("sae.save: unknown format '%s'%s"):format(tostring(o.format),
      suggest.hint(tostring(o.format), suggest.keys(FORMATS))), 2)
  end
  local ok, message = true, nil
  if not (o.checkpoint and o.format == "saelens") then ok, message = M.can_save(sae, o.format) end
  if ok then ok, message = fs.mkdir(folder) end
  if not ok then return nil, message end
  ok, message = format.save(sae, folder, o)
  if not ok then return nil, message end
  if o.format == "saelens" and #o.densities > 0 then
    local logs = {}
    for i, rate in ipairs(o.densities) do logs[i] = math.log10(rate + 1e-10) end
    return core.save_tensors(fs.join(folder, "sparsity.safetensors"), { { "sparsity", core.tensor(logs) } })
  end
  return true
end

local function expect_shape(tensor, name, path, want)
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
  if type(v) == "number" and v % 1 == 0 and v >= 1 and v <= (most or 2 ^ 31) then return true end
  return nil, ("%s: %s is %s, expected an integer from 1%s"):format(path, key,
    v == json.null and "null" or tostring(v), most and (" to %d"):format(most) or "")
end

-- jumprelu: one for each latent; batchtopk: a scalar, which becomes [2] with its weight.
local function check_threshold(parts, path)
  local vector = parts.architecture == "jumprelu"
  if not vector and parts.architecture ~= "batchtopk" then return true end
  local ok, message = expect_shape(parts.threshold, parts.names.threshold, path, vector and { parts.d_sae } or {})
  if not ok then return nil, message end
  parts.threshold = parts.threshold:to "f32"
  if not vector then parts.threshold = core.tensor { parts.threshold:item(), parts.threshold_weight } end
  return true
end

local function check_parts(parts, config_path, path)
  for _, key in ipairs { "d_in", "d_sae" } do
    local ok, message = check_integer(parts, key, config_path)
    if not ok then return nil, message end
  end
  local ok, message = true, nil
  if parts.architecture ~= "jumprelu" then ok, message = check_integer(parts, "k", config_path, parts.d_sae) end
  if not ok then return nil, message end
  for _, key in ipairs { "apply_b_dec_to_input", "fold_norms", "normalize_decoder" } do
    if parts[key] ~= nil and type(parts[key]) ~= "boolean" then
      return nil, ("%s: %s is %s, expected true or false"):format(config_path,
        key == "fold_norms" and "rescale_acts_by_decoder_norm" or key, tostring(parts[key]))
    end
  end
  local d_in, d_sae = parts.d_in, parts.d_sae
  local shapes = { W_enc = { d_sae, d_in }, b_enc = { d_sae }, W_dec = { d_sae, d_in }, b_dec = { d_in } }
  for _, name in ipairs { "W_enc", "b_enc", "W_dec", "b_dec" } do
    local known = parts.names and parts.names[name] or name
    ok, message = expect_shape(parts[name], known, path, shapes[name])
    if not ok then return nil, message end
    parts[name] = parts[name]:to "f32"
  end
  return check_threshold(parts, path)
end

-- The layout of a folder, told by the name of its weights.
local function find_format(folder)
  local found
  for _, name in ipairs { "saelens", "sparsify" } do
    if fs.exists(fs.join(folder, FORMATS[name].file)) then
      if found then
        return nil, ("%s: holds a dictionary in both layouts, %s and %s; remove one"):format(folder, found.file,
          FORMATS[name].file)
      end
      found = FORMATS[name]
    end
  end
  if found then return found end
  return nil, ("%s: no dictionary there; expected cfg.json with sae_weights.safetensors (SAELens) or sae.safetensors "
    .. "(sparsify)"):format(folder)
end

--- Reads a dictionary's parts from a folder in either layout.
-- @tparam string folder
-- @treturn ?table architecture, d_in, d_sae, k, apply_b_dec_to_input, normalize_decoder, metadata, W_enc and W_dec
--   [d_sae, d_in], b_enc, b_dec, threshold; or nil and a message
function M.read(folder)
  local format, message = find_format(folder)
  if not format then return nil, message end
  local config_path, path = fs.join(folder, "cfg.json"), fs.join(folder, format.file)
  local config
  config, message = json.read(config_path)
  if type(config) ~= "table" then return nil, message or config_path .. ": not a JSON object" end
  local tensors, why = core.load_tensors(path)
  if not tensors then return nil, why end
  local parts, reason = format.parse(config, tensors)
  if not parts then return nil, config_path .. ": " .. reason end
  local ok, wrong = check_parts(parts, config_path, path)
  if not ok then return nil, wrong end
  if parts.fold_norms then fold_decoder_norms(parts) end
  return parts
end

return M
