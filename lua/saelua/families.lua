--- Model families: which exist, and how a family's data turns a Hugging Face config into a model spec and file names
-- into weight slots. Adding a family = one data file beside families/bert.lua, one line here, one parity fixture.
-- @module saelua.families
local suggest = require "saelua.suggest"

local families = {}

-- model_type -> module.
local FAMILIES = { bert = "saelua.families.bert" }

-- The family of a 2018 config without model_type, by the name of its architecture.
local function by_architecture(config)
  local name = type(config.architectures) == "table" and config.architectures[1]
  if type(name) ~= "string" then return nil end
  for _, module in pairs(FAMILIES) do
    local family = require(module)
    if name:find(family.architectures) then return family end
  end
end

--- The family of a config.
-- @tparam table config what config.json holds
-- @tparam string where its path, for messages
-- @treturn ?table family, or nil, message
function families.find(config, where)
  local model_type = config.model_type
  if model_type == nil then
    local family = by_architecture(config)
    if family then return family end
    return nil, where .. ": names neither a model_type nor a known architecture; is it a transformers config?"
  end
  if type(model_type) == "string" and FAMILIES[model_type] then return require(FAMILIES[model_type]) end
  return nil, ("%s: model_type is %q; this build knows %s"):format(where, tostring(model_type),
    table.concat(suggest.keys(FAMILIES), ", "))
end

-- Spec ---------------------------------------------------------------------------------------------------------

local function get(family, config, key)
  local value = config[key]
  if value == nil or value == require("saelua.json").null then return family.defaults[key] end
  return value
end

--- A config value, or what transformers assumes where it is absent.
-- @tparam table family
-- @tparam table config
-- @tparam string key
-- @return the value or nil
families.value = get

local function read_size(family, config, key, where)
  local value = get(family, config, key)
  if value == nil then return nil, ("%s: %s is missing"):format(where, key) end
  if type(value) ~= "number" or value % 1 ~= 0 or value < 1 or value > 2 ^ 26 then
    return nil, ("%s: %s is %s, expected a positive integer"):format(where, key, tostring(value))
  end
  return value
end

local function check_only(family, config, where)
  for _, rule in ipairs(family.only) do
    local key, wanted, why = rule[1], rule[2], rule[3]
    local value = get(family, config, key)
    if value ~= wanted then
      return nil, ("%s: %s is %s: %s; only %s is handled"):format(where, key, tostring(value), why, tostring(wanted))
    end
  end
  return true
end

local function read_activation(family, config, where)
  local rule = family.activation
  local value = get(family, config, rule.key)
  local activation = type(value) == "string" and rule.values[value]
  if activation then return activation end
  return nil, ("%s: %s is %s; handled are %s"):format(where, rule.key, tostring(value),
    table.concat(suggest.keys(rule.values), ", "))
end

--- A config as a model spec (without head, tied_head and dtype).
-- @tparam table family
-- @tparam table config
-- @tparam string where the config's path
-- @treturn ?table spec, or nil, message
function families.spec(family, config, where)
  local spec = {}
  local ok, message = check_only(family, config, where)
  if not ok then return nil, message end
  for field, key in pairs(family.sizes) do
    spec[field], message = read_size(family, config, key, where)
    if not spec[field] then return nil, message end
  end
  if spec.d_model % spec.n_heads ~= 0 then
    return nil, ("%s: %s %d is not a multiple of %s %d"):format(where, family.sizes.d_model, spec.d_model,
      family.sizes.n_heads, spec.n_heads)
  end
  spec.d_head = spec.d_model / spec.n_heads
  local eps = get(family, config, family.norm_eps)
  if type(eps) ~= "number" or not (eps >= 0 and eps < 1) then
    return nil, ("%s: %s is %s, expected a small number"):format(where, family.norm_eps, tostring(eps))
  end
  spec.norm_eps = eps
  spec.activation, message = read_activation(family, config, where)
  if not spec.activation then return nil, message end
  for field, value in pairs(family.fixed) do spec[field] = value end
  return spec
end

-- Weight names -------------------------------------------------------------------------------------------------

--- The name in a file without its prefix and in today's spelling.
-- @tparam table family
-- @tparam string name
-- @treturn string
function families.plain_name(family, name)
  if name:sub(1, #family.prefix) == family.prefix then name = name:sub(#family.prefix + 1) end
  for _, rename in ipairs(family.renames) do name = name:gsub(rename[1], rename[2]) end
  return name
end

--- The plain name of a slot.
-- @tparam table family
-- @tparam string slot
-- @tparam ?integer layer
-- @treturn string
function families.weight_name(family, slot, layer)
  return (family.weights[slot]:gsub("{i}", tostring(layer)))
end

--- The name of a slot as transformers saves it.
-- @tparam table family
-- @tparam string slot
-- @tparam ?integer layer
-- @tparam string head "mlm" or "none": a model without head is saved as the base model, without prefix
-- @treturn string
function families.saved_name(family, slot, layer, head)
  local name = families.weight_name(family, slot, layer)
  if head == "none" or name:find(family.unprefixed) then return name end
  return family.prefix .. name
end

--- Whether a plain name is one that the family knows and does not use.
-- @tparam table family
-- @tparam string plain
-- @treturn boolean
function families.is_ignored(family, plain)
  for _, pattern in ipairs(family.ignored) do
    if plain:find(pattern) then return true end
  end
  return false
end

return families
