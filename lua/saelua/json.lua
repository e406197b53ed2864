--- JSON: deterministic, exact encoding; decoding by lua-cjson with errors that name file and position.
-- @module saelua.json
local json = {}

local cjson -- loaded at the first decode

local array_mark = {}

--- Marks a table as an array, so that an empty one is written as `[]`.
-- @tparam[opt] table t
-- @treturn table the same table
function json.array(t) return setmetatable(t or {}, array_mark) end

--- What `null` decodes to, and encodes from. Only identity matters.
json.null = setmetatable({}, { __tostring = function() return "null" end })

local escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\b"] = "\\b", ["\f"] = "\\f", ["\n"] = "\\n", ["\r"] = "\\r",
  ["\t"] = "\\t" }

local function quote(text)
  return '"' .. text:gsub('[%c"\\\127]', function(c) return escapes[c] or ("\\u%04x"):format(c:byte()) end) .. '"'
end

--- The shortest decimal text that reads back as the same double; "null" for NaN and infinities.
-- @tparam number x
-- @treturn string
function json.number(x)
  if x ~= x or x == math.huge or x == -math.huge then return "null" end
  if x == 0 then return "0" end
  for digits = 15, 16 do
    local text = ("%." .. digits .. "g"):format(x)
    if tonumber(text) == x then return text end
  end
  return ("%.17g"):format(x)
end

-- 1..n without holes?
local function array_length(t)
  local n = #t
  local count = 0
  for key in pairs(t) do
    if type(key) ~= "number" then return nil end
    count = count + 1
  end
  if count ~= n then return nil end
  return n
end

-- Keys in `first`'s order, then the others sorted.
local function ordered_keys(t, first)
  local keys, taken = {}, {}
  for _, key in ipairs(first or {}) do
    if t[key] ~= nil and not taken[key] then
      keys[#keys + 1] = key
      taken[key] = true
    end
  end
  local rest = {}
  for key in pairs(t) do
    if not taken[key] then
      if type(key) ~= "string" then
        error(("json.encode: a table mixes the key %s with other kinds of keys"):format(tostring(key)), 0)
      end
      rest[#rest + 1] = key
    end
  end
  table.sort(rest)
  for _, key in ipairs(rest) do keys[#keys + 1] = key end
  return keys
end

local encode_value

-- Writes "open item, item close" with or without line breaks.
local function put_items(state, open, close, items, depth)
  local out = state.out
  out[#out + 1] = open
  local newline = state.indent and ("\n" .. state.indent:rep(depth + 1))
  for i, item in ipairs(items) do
    if i > 1 then out[#out + 1] = "," end
    if newline then out[#out + 1] = newline elseif i > 1 and state.spaced then out[#out + 1] = " " end
    item()
  end
  if newline and #items > 0 then out[#out + 1] = "\n" .. state.indent:rep(depth) end
  out[#out + 1] = close
end

local function is_flat(t, n)
  for i = 1, n do
    if type(t[i]) == "table" and t[i] ~= json.null then return false end
  end
  return true
end

local function encode_array(state, t, n, depth)
  local indent = state.indent
  if is_flat(t, n) then state.indent = nil end -- a list of scalars stays on one line
  local items = {}
  for i = 1, n do
    items[i] = function() encode_value(state, t[i], depth + 1) end
  end
  put_items(state, "[", "]", items, depth)
  state.indent = indent
end

local function encode_object(state, t, depth)
  local items = {}
  for i, key in ipairs(ordered_keys(t, depth == 0 and state.order or nil)) do
    items[i] = function()
      state.out[#state.out + 1] = quote(key) .. (state.spaced and ": " or ":")
      encode_value(state, t[key], depth + 1)
    end
  end
  put_items(state, "{", "}", items, depth)
end

local function encode_table(state, t, depth)
  if state.open[t] then error("json.encode: a table contains itself", 0) end
  state.open[t] = true
  local n = array_length(t)
  if n and (n > 0 or getmetatable(t) == array_mark) then
    encode_array(state, t, n, depth)
  else
    encode_object(state, t, depth)
  end
  state.open[t] = nil
end

function encode_value(state, value, depth)
  local kind = type(value)
  local out = state.out
  if value == nil or value == json.null then
    out[#out + 1] = "null"
  elseif kind == "table" then
    encode_table(state, value, depth)
  elseif kind == "string" then
    out[#out + 1] = quote(value)
  elseif kind == "number" then
    out[#out + 1] = json.number(value)
  elseif kind == "boolean" then
    out[#out + 1] = tostring(value)
  else
    error("json.encode: a " .. kind .. " has no JSON form", 0)
  end
end

--- JSON text of a value. Object keys are sorted, so equal values give equal text. Numbers read back
-- exactly; NaN and infinities become null. Raises for functions, userdata, cycles and mixed keys.
-- @param value
-- @tparam[opt] table options `indent` (spaces a level; default none, one line), `order` (list of keys that
--   come first in the outermost object)
-- @treturn string
function json.encode(value, options)
  options = require("saelua.strict").options("json.encode", options,
    { indent = 0, order = require("saelua.strict").optional })
  local state = {
    out = {},
    open = {},
    order = options.order,
    indent = options.indent > 0 and (" "):rep(options.indent) or nil,
    spaced = options.indent > 0,
  }
  local ok, message = pcall(encode_value, state, value, 0)
  if not ok then error(message, 2) end
  return table.concat(state.out)
end

-- cjson's null replaced by ours, so that it can be compared without loading cjson.
local function replace_null(value)
  if value == cjson.null then return json.null end
  if type(value) == "table" then
    for key, item in pairs(value) do
      if type(item) == "table" or item == cjson.null then value[key] = replace_null(item) end
    end
  end
  return value
end

local function decoder()
  if not cjson then
    local ok, library = pcall(require, "cjson")
    if not ok then error("lua-cjson is missing: install the package lua-cjson\n" .. tostring(library), 0) end
    cjson = library.new()
    cjson.decode_invalid_numbers(false)
  end
  return cjson
end

-- "Expected value but found X at character 17" -> "line 2, column 5: expected ..."
local function place(text, message)
  local what, offset = message:match("^(.-) at character (%d+)")
  if not what then return message end
  offset = tonumber(offset)
  local line, last = 1, 0
  for position in text:sub(1, offset - 1):gmatch("()\n") do
    line, last = line + 1, position
  end
  return ("line %d, column %d: %s"):format(line, offset - last, what:sub(1, 1):lower() .. what:sub(2))
end

--- Reads JSON text. `null` becomes `json.null`.
-- @tparam string text
-- @tparam[opt="JSON"] string name what it is, for messages (a file's path)
-- @return the value, or nil, message ("my.json: line 2, column 5: expected value but found T_COMMA")
function json.decode(text, name)
  local ok, value = pcall(decoder().decode, text)
  if ok then return replace_null(value) end
  return nil, ("%s: %s"):format(name or "JSON", place(text, tostring(value)))
end

--- Reads a JSON file.
-- @tparam string path
-- @return the value, or nil, message, errno
function json.read(path)
  local text, message, code = require("saelua.fs").read(path)
  if not text then return nil, message, code end
  return json.decode(text, path)
end

--- Writes a value to a file in one step (an existing file stays whole on failure).
-- @tparam string path
-- @param value
-- @tparam[opt] table options as for `encode`; indent is 2 unless told
-- @treturn ?boolean true, or nil, message, errno
function json.write(path, value, options)
  options = options or {}
  local text = json.encode(value, { indent = options.indent or 2, order = options.order })
  return require("saelua.fs").write(path, text .. "\n")
end

return json
