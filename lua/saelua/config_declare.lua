--- Reads and checks the declarations given to `sl.config`.
-- @module saelua.config_declare
local source = require "saelua.config_source"
local suggest = require "saelua.suggest"
local types = require "saelua.config_types"

local declare = {}

local FIELDS = {
  type = true, nilable = true, one_of = true, min = true, max = true, check = true, refuse = true, alias = true,
  group = true, positional = true, example = true, config_folder = true,
}

local field_kinds = {
  type = "string", nilable = "boolean", one_of = "table", min = "number", max = "number", check = "function",
  refuse = "table", alias = "string", group = "string", positional = "number", config_folder = "boolean",
}

-- Raised here, caught by `compile`, which gives it the recipe's position.
local function misuse(text, ...) error({ misuse = "config: " .. text:format(...) }, 0) end

local function check_name(name, reserved)
  if type(name) ~= "string" or not name:find("^[%a_][%w_]*$") then
    misuse("an option's name must be a word, got %s", tostring(name))
  end
  if reserved[name] then misuse('the name "%s" is taken', name) end
end

-- Copies the fields of a declaration into `option`.
local function take_fields(option, declared)
  for field, value in pairs(declared) do
    if type(field) == "number" then
      if field ~= 1 and field ~= 2 then misuse('%s: { default, "help", ... } holds a third value', option.name) end
    elseif not FIELDS[field] then
      local hint = suggest.hint(tostring(field), suggest.keys(FIELDS))
      misuse('%s: unknown field "%s"%s', option.name, tostring(field), hint)
    elseif field_kinds[field] and type(value) ~= field_kinds[field] then
      misuse("%s: %s: a %s expected, got %s", option.name, field, field_kinds[field], type(value))
    else
      option[field] = value
    end
  end
end

local function option_of(name, declared)
  if type(declared) ~= "table" or type(declared[2]) ~= "string" then
    misuse('%s: { default, "help", ... } expected', name)
  end
  local option = { name = name, default = declared[1], help = declared[2] }
  take_fields(option, declared)
  if option.default == require("saelua.json").null then option.default = nil end
  option.type = option.type or types.infer(option.default)
  if not types.exists(option.type) then
    misuse("%s: type = one of %s expected%s", name, table.concat(types.names(), ", "),
      option.type == nil and ", as the default shows none" or "")
  end
  if option.default == nil then option.nilable = true end
  local ok, reason
  option.default, ok, reason = types.check(option, option.default, option.default)
  if not ok then misuse("%s: the default does not fit: %s", name, reason) end
  return option
end

-- { "name", default, "help", ... } -> name, { default, "help", ... }
local function unpack_entry(entry)
  if type(entry) ~= "table" then misuse('{ "name", default, "help" } expected') end
  local declared = {}
  for field, value in pairs(entry) do
    if type(field) ~= "number" then
      declared[field] = value
    elseif field > 1 then
      declared[field - 1] = value
    end
  end
  return entry[1], declared
end

-- All declarations as { name, declaration } in order.
local function entries_of(declarations, text)
  local entries = {}
  if #declarations > 0 then
    for i, entry in ipairs(declarations) do entries[i] = { unpack_entry(entry) } end
    return entries
  end
  for name in pairs(declarations) do
    if type(name) ~= "string" then misuse("an option's name must be a word, got %s", tostring(name)) end
  end
  for _, name in ipairs(text and source.order(text, declarations) or suggest.keys(declarations)) do
    if declarations[name] ~= nil then entries[#entries + 1] = { name, declarations[name] } end
  end
  return entries
end

local function aliases_of(options)
  local by_alias = {}
  for _, option in ipairs(options) do
    local letter = option.alias or (#option.name == 1 and option.name) or nil
    if letter then
      if not letter:find("^%a$") then misuse("%s: alias: one letter expected", option.name) end
      local other = by_alias[letter]
      if other then misuse("-%s stands for %s and for %s", letter, other.name, option.name) end
      by_alias[letter] = option
    end
  end
  return by_alias
end

local function compile(declarations, text, reserved)
  if type(declarations) ~= "table" then misuse("a table of options expected") end
  local options, by_name = {}, {}
  for i, entry in ipairs(entries_of(declarations, text)) do
    local name = entry[1]
    check_name(name, reserved)
    if by_name[name] then misuse('"%s" is declared twice', name) end
    options[i] = option_of(name, entry[2])
    by_name[name] = options[i]
  end
  return { list = options, by_name = by_name, by_alias = aliases_of(options) }
end

--- Checks declarations.
-- @tparam table declarations as for `sl.config`
-- @tparam ?string text the recipe's source, for the order
-- @tparam table reserved names that no option may have
-- @treturn ?table `{ list, by_name, by_alias }`; or nil and what is wrong with the declaration
function declare.compile(declarations, text, reserved)
  local ok, result = pcall(compile, declarations, text, reserved)
  if ok then return result end
  if type(result) == "table" and result.misuse then return nil, result.misuse end
  error(result, 0)
end

return declare
