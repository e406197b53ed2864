--- Models on disk in Hugging Face layout: finding, reading, writing. Functions return nil and a message on failure.
-- @module saelua.model_files
local core = require "saelua.core"
local families = require "saelua.families"
local fs = require "saelua.fs"
local json = require "saelua.json"

local files = {}

local TOKENIZER_FILES = { "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json" }
-- Rows that a word table may have beyond the vocabulary: tables are padded to a multiple of 64 or 128.
local MOST_PADDING = 127

-- Finding ------------------------------------------------------------------------------------------------------

local function built_in(name)
  local ok, host = pcall(require, "saelua.host")
  local folder = ok and host.share_dir and fs.join(host.share_dir, "lua", "saelua", "models", name)
  return folder and fs.exists(fs.join(folder, "config.json")) and folder or nil
end

local function hub_cache()
  local function set(name)
    local value = os.getenv(name)
    return value ~= "" and value or nil
  end
  if set "HF_HUB_CACHE" then return os.getenv("HF_HUB_CACHE") end
  if set "HF_HOME" then return fs.join(os.getenv("HF_HOME"), "hub") end
  return fs.join(set "XDG_CACHE_HOME" or fs.join(os.getenv("HOME") or ".", ".cache"), "huggingface", "hub")
end

-- The snapshot of one repository that refs/main names, or nil.
local function snapshot(cache, id)
  local folder = fs.join(cache, "models--" .. id:gsub("/", "--"))
  local ref = fs.read(fs.join(folder, "refs", "main"))
  local path = ref and fs.join(folder, "snapshots", (ref:gsub("%s+$", "")))
  return path and fs.exists(fs.join(path, "config.json")) and path or nil
end

--- The folder of a model: a local folder, a built-in model, or an entry of the Hugging Face cache.
-- @tparam string name
-- @treturn ?string folder, or nil, message
function files.find(name)
  if fs.exists(fs.join(name, "config.json")) then return name end
  if fs.exists(name) then
    return nil, ("%s: no config.json in it; a model is a folder in Hugging Face layout"):format(name)
  end
  local folder = built_in(name)
  if folder then return folder end
  local cache = hub_cache()
  if not name:find("^[%w][%w%-%._]*/?[%w%-%._]*$") then return nil, ("model %s: no such folder"):format(name) end
  folder = snapshot(cache, name)
  if not folder and not name:find("/", 1, true) then folder = snapshot(cache, "google-bert/" .. name) end
  if folder then return folder end
  return nil, ("model %s: neither a folder nor a built-in model, and not in the Hugging Face cache (%s). "
    .. "Downloading from the hub is not built yet: fetch it with `hf download %s`, or name a local folder"):format(name,
    cache, name)
end

-- Reading ------------------------------------------------------------------------------------------------------

-- plain name -> name in the file.
local function plain_names(family, weights, folder)
  local names = {}
  for _, name in ipairs(weights:names()) do
    local plain = families.plain_name(family, name)
    if names[plain] then
      return nil, ("%s: the tensors %s and %s are the same weight"):format(folder, names[plain], name)
    end
    names[plain] = name
  end
  return names
end

local function same_shape(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do
    if a[i] ~= b[i] then return false end
  end
  return true
end

local function shape_text(shape) return "[" .. table.concat(shape, " x ") .. "]" end

local FLOATS = { F64 = true, F32 = true, F16 = true, BF16 = true }

-- The file's name of a slot's weight, or nil and what is wrong.
local function find_weight(family, weights, names, entry, folder)
  local plain = families.weight_name(family, entry.slot, entry.layer)
  local name = names[family.preferred[entry.slot]] or names[plain]
  if not name then
    return nil, ("%s: tensor %s%s is missing, and config.json asks for it"):format(folder,
      plain:find(family.unprefixed) and "" or "[" .. family.prefix .. "]", plain)
  end
  local info = weights:info(name)
  if not FLOATS[info.dtype] then
    return nil, ("%s: tensor %s has dtype %s, expected F32, F16 or BF16"):format(info.path, name, info.dtype)
  end
  if not same_shape(info.shape, entry.shape) then
    return nil, ("%s: tensor %s is %s, but config.json makes it %s; the two do not belong together"):format(info.path,
      name, shape_text(info.shape), shape_text(entry.shape))
  end
  return name
end

-- Tensors that nobody asked for: known ones pass, layers beyond the config are refused, the rest is returned.
local function unknown_names(family, names, used, spec, folder)
  local unknown = {}
  for plain, name in pairs(names) do
    if not used[name] and not families.is_ignored(family, plain) then
      local layer = tonumber(plain:match("^encoder%.layer%.(%d+)%."))
      if layer and layer >= spec.n_layers then
        return nil, ("%s: tensor %s belongs to layer %d, but config.json has %s = %d"):format(folder, name, layer,
          family.sizes.n_layers, spec.n_layers)
      end
      unknown[#unknown + 1] = name
    end
  end
  table.sort(unknown)
  return unknown
end

-- Is the decoder's matrix the word table? As transformers: the config says so, unless the file holds a different one.
local function is_tied(family, config, weights, names, warn)
  if families.value(family, config, family.tied.key) == false then return false end
  local own = names[family.weights[family.tied.slot]]
  local table_name = names[family.weights[family.tied.to]]
  if not own or not table_name or weights:same(own, table_name) then return true end
  warn(("the config ties %s to %s, but the file holds two different tensors: they are not tied"):format(own,
    table_name))
  return false
end

local function fill(model, family, weights, names, folder)
  local used = {}
  for _, entry in ipairs(model:slots()) do
    local name, message = find_weight(family, weights, names, entry, folder)
    if not name then return nil, message end
    used[name] = true
    local tensor = weights:tensor(name)
    model:set(entry.slot, entry.layer, tensor)
    tensor:free()
  end
  return used
end

-- config.json as a family and a spec.
local function read_config(folder)
  local path = fs.join(folder, "config.json")
  local config, family, spec, message
  config, message = json.read(path)
  if not config then return nil, message end
  if type(config) ~= "table" then return nil, path .. ": holds no object" end
  family, message = families.find(config, path)
  if not family then return nil, message end
  spec, message = families.spec(family, config, path)
  if not spec then return nil, message end
  return { config = config, family = family, spec = spec }
end

local function warn_unknown(family, unknown, folder, warn)
  if #unknown == 0 then return end
  warn(("%s: %d tensor%s not used, because the %s family does not know %s: %s"):format(folder, #unknown,
    #unknown == 1 and "" or "s", family.name, #unknown == 1 and "it" or "them", table.concat(unknown, ", ")))
end

--- Reads config.json and the weights of a folder into a model.
-- @tparam string folder
-- @tparam table options `device`, `dtype`, `warn` (function(message))
-- @treturn ?table core (ModelCore), config, family, spec; or nil, message
function files.read(folder, options)
  local parts, weights, names, used, unknown, message
  parts, message = read_config(folder)
  if not parts then return nil, message end
  local family, spec = parts.family, parts.spec
  weights, message = core.open_weights(folder)
  if not weights then return nil, message end
  names, message = plain_names(family, weights, folder)
  if not names then return nil, message end

  spec.head = names[family.head_weight] and "mlm" or "none"
  spec.tied_head = spec.head == "mlm" and is_tied(family, parts.config, weights, names, options.warn)
  spec.dtype = options.dtype
  parts.core = core.new_model(spec, options.device)
  used, message = fill(parts.core, family, weights, names, folder)
  if not used then return nil, message end
  if spec.tied_head then used[names[family.weights[family.tied.slot]] or ""] = true end
  unknown, message = unknown_names(family, names, used, spec, folder)
  if not unknown then return nil, message end
  warn_unknown(family, unknown, folder, options.warn)
  weights:close()
  return parts
end

--- The tokenizer of a folder, checked against the word table.
-- @tparam string folder
-- @tparam integer vocab_size rows of the word table
-- @treturn ?Tokenizer false where the folder has none; nil, message where it does not fit
function files.tokenizer(folder, vocab_size)
  if not fs.exists(fs.join(folder, "vocab.txt")) and not fs.exists(fs.join(folder, "tokenizer.json")) then
    return false
  end
  local tokenizer, message = core.tokenizer(folder)
  if not tokenizer then return nil, message end
  local n = tokenizer.vocab_size
  if n > vocab_size or vocab_size - n > MOST_PADDING then
    return nil, ("%s: the tokenizer has %d tokens, the model's word table %d rows; they do not belong together "
      .. "(load with tokenizer = false to do without)"):format(folder, n, vocab_size)
  end
  return tokenizer
end

-- Writing ------------------------------------------------------------------------------------------------------

local CONFIG_ORDER = { "architectures", "model_type" }
local FILE_DTYPES = { f32 = "float32", bf16 = "bfloat16" }

local function saved_config(model)
  local config, family, spec = {}, model.family, model.spec
  for key, value in pairs(model.config) do config[key] = value end
  for field, key in pairs(family.sizes) do config[key] = spec[field] end
  config.architectures = { family.architecture[spec.head] }
  config.model_type = family.model_type
  config.torch_dtype, config.dtype = FILE_DTYPES[spec.dtype], nil
  if spec.head == "mlm" then config[family.tied.key] = spec.tied_head end
  return config
end

local function write_vocab(folder, tokenizer)
  local lines = {}
  for id = 0, tokenizer.vocab_size - 1 do lines[id + 1] = tokenizer:token(id) .. "\n" end
  return fs.write(fs.join(folder, "vocab.txt"), table.concat(lines))
end

-- The files a tokenizer came from, or its vocabulary where it came from none.
local function write_tokenizer(folder, model)
  if not model.tokenizer then return true end
  local copied = false
  for _, name in ipairs(model.folder and TOKENIZER_FILES or {}) do
    local text = fs.read(fs.join(model.folder, name))
    if text then
      local ok, message = fs.write(fs.join(folder, name), text)
      if not ok then return nil, message end
      copied = copied or name == "vocab.txt" or name == "tokenizer.json"
    end
  end
  if copied then return true end
  return write_vocab(folder, model.tokenizer)
end

--- Writes a model in Hugging Face layout; the folder appears whole or not at all.
-- @tparam string folder
-- @tparam Model model
-- @treturn ?boolean true, or nil, message, code
function files.write(folder, model)
  local list, own_bias = {}, model.family.preferred
  for _, parameter in ipairs(model:parameters()) do
    list[#list + 1] = { parameter.name, parameter.tensor }
    -- An untied decoder is read with its own bias, so it is written with it.
    if own_bias[parameter.slot] and not model.spec.tied_head then
      list[#list + 1] = { own_bias[parameter.slot], parameter.tensor }
    end
  end
  return core.write_folder(folder, function(temporary)
    local ok, message, code = json.write(fs.join(temporary, "config.json"), saved_config(model),
      { order = CONFIG_ORDER })
    if ok then ok, message, code = write_tokenizer(temporary, model) end
    if ok then
      ok, message, code = core.save_tensors(fs.join(temporary, "model.safetensors"), list, { format = "pt" })
    end
    return ok, message, code
  end)
end

return files
