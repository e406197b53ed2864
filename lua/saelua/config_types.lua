--- The types of `saelua.config`: from text or JSON to a checked value, with messages that teach.
-- @module saelua.config_types
local json = require "saelua.json"
local suggest = require "saelua.suggest"

local types = {}

local function is_integer(x) return type(x) == "number" and x % 1 == 0 and math.abs(x) <= 2 ^ 53 end

local function is_finite(x) return type(x) == "number" and x == x and math.abs(x) ~= math.huge end

-- "1_000_000", "1e6", "-0.5"; no hexadecimal, no "nan".
local function parse_number(text)
  local plain = text:gsub("(%d)_%f[%d]", "%1")
  if not plain:find("^[+-]?%.?%d[%d.]*[eE]?[+-]?%d*$") then return nil end
  return tonumber((plain:gsub("^%+", "")))
end

local booleans = {
  ["true"] = true, yes = true, on = true, ["1"] = true,
  ["false"] = false, no = false, off = false, ["0"] = false,
}

-- One row a scalar type: noun for messages, metavariable for --help, check of a value, reading of text, example.
local scalars = {
  string = {
    noun = "text", meta = "TEXT", example = "NAME",
    accepts = function(v) return type(v) == "string" end,
    read = function(text) return text end,
  },
  integer = {
    noun = "a whole number", meta = "INTEGER", example = "32", accepts = is_integer, read = parse_number,
  },
  number = {
    noun = "a number", meta = "NUMBER", example = "0.001", accepts = is_finite, read = parse_number,
  },
  boolean = {
    noun = "true or false", meta = "", example = "true",
    accepts = function(v) return type(v) == "boolean" end,
    read = function(text) return booleans[text:lower()] end,
  },
}

local lists = { integers = "integer", numbers = "number", strings = "string" }

local plural = { integer = "whole numbers", number = "numbers", string = "texts" }

--- Whether a word names a type.
function types.exists(name) return scalars[name] ~= nil or lists[name] ~= nil or name == "table" end

--- All type names, sorted.
function types.names()
  return { "boolean", "integer", "integers", "number", "numbers", "string", "strings", "table" }
end

--- Whether a type is a list.
function types.is_list(name) return lists[name] ~= nil end

--- Whether text may be a boolean's value (after `--flag`).
function types.is_boolean_text(text) return booleans[text:lower()] ~= nil end

-- The list type of a non-empty array; whole numbers among others count as numbers.
local function infer_list(value)
  local seen, count = {}, 0
  for _, item in ipairs(value) do
    local kind = types.infer(item)
    if not plural[kind] then return nil end
    if not seen[kind] then count = count + 1 end
    seen[kind] = true
  end
  if seen.integer and seen.number and count == 2 then return "numbers" end
  return count == 1 and next(seen) .. "s" or nil
end

--- The type that a default value shows; nil when it shows none (nil, an empty table, mixed lists).
-- @param value
-- @treturn ?string
function types.infer(value)
  local kind = type(value)
  if kind == "string" or kind == "boolean" then return kind end
  if kind == "number" then return is_integer(value) and "integer" or "number" end
  if kind ~= "table" or next(value) == nil then return nil end
  return #value == 0 and "table" or infer_list(value)
end

--- The range of an option in words: ` >= 1`, ` from 0 to 1`, or "".
function types.range(option)
  local low, high = option.min, option.max
  local show = json.number
  if low and high then return (" from %s to %s"):format(show(low), show(high)) end
  if low then return " >= " .. show(low) end
  if high then return " <= " .. show(high) end
  return ""
end

--- What an option takes, in words: `a whole number >= 1`, `one of adam, sgd`, `a list of whole numbers`.
-- @tparam table option
-- @treturn string
function types.expected(option)
  if option.type == "table" then return "an object with named values" end
  local element = lists[option.type]
  local text
  if option.one_of then
    local words = {}
    for i, word in ipairs(option.one_of) do words[i] = tostring(word) end
    text = (element and "a list out of " or "one of ") .. table.concat(words, ", ")
  elseif element then
    text = "a list of " .. plural[element] .. types.range(option)
  else
    text = scalars[option.type].noun .. types.range(option)
  end
  return option.nilable and text .. " (or null)" or text
end

--- The metavariable of --help: INTEGER, TEXT, adam|sgd, INTEGER ...
function types.metavariable(option)
  if option.type == "table" then return "JSON" end
  local element = lists[option.type]
  local meta = scalars[element or option.type].meta
  if option.one_of then
    local words = {}
    for i, word in ipairs(option.one_of) do words[i] = tostring(word) end
    meta = table.concat(words, "|")
  end
  return element and meta .. " ..." or meta
end

local function show(value)
  if type(value) == "string" then return '"' .. value .. '"' end
  if value == nil or value == json.null then return "null" end
  if type(value) == "table" then
    local ok, text = pcall(json.encode, value)
    return ok and text or "a table"
  end
  if type(value) == "number" then return is_finite(value) and json.number(value) or tostring(value) end
  return tostring(value)
end

--- A value as --help and messages show it.
-- @param value
-- @treturn string
function types.show(value)
  if type(value) == "string" and value ~= "" then return value end
  if type(value) == "table" and #value > 0 then
    local parts = {}
    for i, item in ipairs(value) do parts[i] = types.show(item) end
    return table.concat(parts, " ")
  end
  return show(value)
end

--- An example of the option on a command line: `--k 32`.
function types.example(option)
  local value = option.example
  if value == nil then value = option.default end
  if value == nil or value == "" or (type(value) == "table" and next(value) == nil) then
    if option.type == "table" then return ("--%s.name 1"):format(option.name) end
    value = option.one_of and option.one_of[1] or scalars[lists[option.type] or option.type].example
  elseif option.type == "table" then
    local key = suggest.keys(value)[1]
    return ("--%s.%s %s"):format(option.name, key, types.show(value[key]))
  end
  return ("--%s %s"):format(option.name, types.show(value))
end

local function refusal(option, value)
  local reason = option.refuse and (option.refuse[value] or option.refuse[tostring(value)])
  return reason and ("%s is refused: %s"):format(show(value), reason)
end

local function is_choice(option, value)
  for _, choice in ipairs(option.one_of) do
    if choice == value then return true end
  end
  return false
end

local function in_range(option, value)
  if type(value) ~= "number" then return true end
  return not (option.min and value < option.min) and not (option.max and value > option.max)
end

-- One element against type, refusals, choices and range; returns nil and the reason when it does not fit.
local function check_scalar(option, kind, value)
  local refused = refusal(option, value)
  if refused then return nil, refused end
  local fits, hint = scalars[kind].accepts(value) and in_range(option, value), ""
  if option.one_of and not is_choice(option, value) then
    fits = false
    local near = type(value) == "string" and suggest.nearest(value, option.one_of, 1)[1]
    hint = near and ('; did you mean "%s"?'):format(near) or ""
  end
  if fits then return value end
  return nil, ("expected %s, got %s%s"):format(types.expected(option), show(value), hint)
end

local function check_list(option, value)
  if type(value) ~= "table" or value == json.null then value = { value } end
  local copy, count = json.array(), 0
  for _ in pairs(value) do count = count + 1 end
  if count ~= #value then return nil, ("expected %s, got %s"):format(types.expected(option), show(value)) end
  for i, item in ipairs(value) do
    local ok, reason = check_scalar(option, lists[option.type], item)
    if ok == nil then return nil, reason end
    copy[i] = ok
  end
  return copy
end

local function is_object(value) return type(value) == "table" and value ~= json.null and #value == 0 end

-- Why a value inside an object does not fit the default's value there; nil when it does.
local function misfit(model, item, name)
  if model == nil or item == nil or type(item) == type(model) then return nil end
  return ("%s: expected a %s such as %s, got %s"):format(name, type(model), show(model), show(item))
end

-- Lays `value` over `current`. A default with keys fixes the keys and the types; an empty one takes anything.
local function merge(default, current, value, path)
  local strict = next(default) ~= nil
  local result = {}
  for key, item in pairs(current) do result[key] = item end
  for key, item in pairs(value) do
    local name = path .. "." .. tostring(key)
    local model = default[key]
    if strict and model == nil then
      return nil, ("unknown name %s%s"):format(name, suggest.hint(tostring(key), suggest.keys(default)))
    end
    if item == json.null then item = nil end
    local reason = misfit(model, item, name)
    if not reason and is_object(item) and (model == nil or is_object(model)) then
      item, reason = merge(model or {}, is_object(current[key]) and current[key] or {}, item, name)
    end
    if reason then return nil, reason end
    result[key] = item
  end
  return result
end

--- Checks a value (a default, or out of a JSON file) and returns it, copied where it is a table.
-- @tparam table option
-- @param value
-- @param current the value before it, into which an object is merged
-- @return the value (nil for null) and true, or nil, false, reason
function types.check(option, value, current)
  if value == nil or value == json.null then
    if option.nilable then return nil, true end
    return nil, false, ("expected %s, got null"):format(types.expected(option))
  end
  local result, reason
  if option.type == "table" then
    if type(value) ~= "table" or #value > 0 then
      return nil, false, ("expected %s, got %s"):format(types.expected(option), show(value))
    end
    result, reason = merge(option.default or {}, current or {}, value, option.name)
  elseif lists[option.type] then
    result, reason = check_list(option, value)
  else
    result, reason = check_scalar(option, option.type, value)
  end
  if result == nil then return nil, false, reason end
  return result, true
end

-- A list from words: "0 1 2", "0,1,2" or the JSON form "[0, 1, 2]".
local function read_list(option, words)
  if #words == 1 and words[1]:find("^%s*%[") then return json.decode(words[1], "--" .. option.name) end
  local row = scalars[lists[option.type]]
  local list = {}
  for _, word in ipairs(words) do
    for piece in word:gmatch("[^,]+") do
      local item = row.read(piece)
      list[#list + 1] = item == nil and piece or item -- the check names what is wrong with a piece
    end
  end
  return list
end

--- Reads command-line words into a value and checks it.
-- @tparam table option
-- @tparam {string,...} words one word, or several for a list
-- @param current the value before
-- @return as `check`
function types.read(option, words, current)
  local text = words[1]
  local value, message
  if option.nilable and #words == 1 and (text == "null" or text == "none" or text == "nil") then
    return nil, true
  elseif option.type == "table" then
    value, message = json.decode(text, "--" .. option.name)
    if message then return nil, false, ("expected %s as JSON text; %s"):format(types.expected(option), message) end
  elseif lists[option.type] then
    value, message = read_list(option, words)
    if message then return nil, false, message end
  else
    value = scalars[option.type].read(text)
    if value == nil then value = text end
  end
  return types.check(option, value, current)
end

-- Text of a value whose type nobody declared.
local function guess(text)
  if text == "true" or text == "false" then return text == "true" end
  if text == "null" then return json.null end
  if text:find("^[%[{]") then
    local value = json.decode(text)
    if value ~= nil then return value end
  end
  local number = parse_number(text)
  return number == nil and text or number
end

--- Sets one value inside an object option: `--task_kwargs.prime 113`.
-- @tparam table option of type table
-- @tparam {string,...} path the names after the first dot, split
-- @tparam string text
-- @param current
-- @return as `check`
function types.read_inside(option, path, text, current)
  local old = current
  for _, name in ipairs(path) do old = type(old) == "table" and old[name] or nil end
  local value
  if type(old) == "string" then value = text else value = guess(text) end
  for i = #path, 1, -1 do value = { [path[i]] = value } end
  return types.check(option, value, current)
end

return types
