--- Completion of Lua names for the REPL: walks tables and `__index` tables, calls no metamethod.
-- @module saelua.complete
local complete = {}

local KEYWORDS = { "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local",
  "nil", "not", "or", "repeat", "return", "then", "true", "until", "while" }

local function metatable_of(value)
  local meta = debug.getmetatable(value)
  return type(meta) == "table" and meta or nil
end

-- The tables that a lookup in `value` goes through, in order.
local function layers_of(value)
  local layers, seen = {}, {}
  while value ~= nil and not seen[value] do
    seen[value] = true
    if type(value) == "table" then layers[#layers + 1] = value end
    local meta = metatable_of(value)
    if not meta then break end
    -- A module that loads on demand, and a strict environment, publish what they hold.
    if type(rawget(meta, "saelua_lazy")) == "table" then layers[#layers + 1] = meta.saelua_lazy end
    local below = rawget(meta, "saelua_below") or rawget(meta, "__index")
    value = type(below) == "table" and below or nil
  end
  return layers
end

-- The value of a field without metamethods; a module on demand is loaded, as naming it would.
local function field(value, name)
  local meta = metatable_of(value)
  for _, layer in ipairs(layers_of(value)) do
    local found = rawget(layer, name)
    if found ~= nil then
      if meta and layer == rawget(meta, "saelua_lazy") then
        local ok, loaded = pcall(function() return value[name] end)
        return ok and loaded or nil
      end
      return found
    end
  end
end

-- Whether `:` makes sense before the name.
local function is_method(value, name)
  return type(field(value, name)) == "function"
end

local function suffix_of(value)
  local kind = type(value)
  if kind == "function" then return "(" end
  if kind == "table" then return "." end
  if kind == "userdata" then return ":" end
  return ""
end

-- "sl.model.lo" -> { "sl", "model" }, ".", "lo"
local function split(expression)
  local path, at, separator = {}, 1, ""
  while true do
    local name, mark, next_at = expression:match("^([%a_][%w_]*)([.:])()", at)
    if not name then break end
    path[#path + 1] = name
    at, separator = next_at, mark
  end
  return path, separator, expression:sub(at)
end

local function add_matches(found, layer, prefix)
  for key in next, layer do
    if type(key) == "string" and key:find("^[%a_][%w_]*$") and key:sub(1, #prefix) == prefix then
      local hidden = key:sub(1, 2) == "__" and prefix:sub(1, 2) ~= "__"
      if not hidden then found[key] = true end
    end
  end
end

local function common_prefix(words)
  local prefix = words[1] or ""
  for _, word in ipairs(words) do
    while word:sub(1, #prefix) ~= prefix do prefix = prefix:sub(1, -2) end
  end
  return prefix
end

-- Names inside an expression: the value they belong to, the part typed, "." or ":"; nil where nothing can be said.
local function target_of(text, env)
  local expression = text:match("[%w_.:]*$")
  -- What follows a call or an index cannot be walked without running it.
  if text:sub(1, #text - #expression):find("[)%]\"']$") then return nil end
  local path, separator, prefix = split(expression)
  if not prefix:find("^[%a_]?[%w_]*$") then return nil end
  local root = env
  for _, name in ipairs(path) do
    root = field(root, name)
    if root == nil then return nil end
  end
  if type(root) == "string" then root = string end
  return root, prefix, separator
end

local function names_in(root, prefix, separator)
  local found = {}
  for _, layer in ipairs(layers_of(root)) do add_matches(found, layer, prefix) end
  local names = {}
  for name in pairs(found) do
    if separator ~= ":" or is_method(root, name) then names[#names + 1] = name end
  end
  if separator == "" and prefix ~= "" then
    for _, word in ipairs(KEYWORDS) do
      if word:sub(1, #prefix) == prefix then names[#names + 1] = word end
    end
  end
  table.sort(names)
  return names
end

local function complete_command(prefix, commands)
  local names = {}
  for _, name in ipairs(commands) do
    if name:sub(1, #prefix) == prefix then names[#names + 1] = name end
  end
  table.sort(names)
  return common_prefix(names):sub(#prefix + 1) .. (#names == 1 and " " or ""), names
end

--- Candidates for the text before the cursor.
-- @tparam string text
-- @tparam table env the environment whose names count
-- @tparam[opt] {string,...} commands REPL commands without the colon
-- @treturn string what to insert now (the part all candidates share, and `(`, `.` or `:` after a single one)
-- @treturn {string,...} the candidates, sorted
function complete.line(text, env, commands)
  local command = text:match("^%s*:(%a*)$")
  if command then return complete_command(command, commands or {}) end
  local root, prefix, separator = target_of(text, env)
  if root == nil then return "", {} end
  local names = names_in(root, prefix, separator)
  if #names == 0 then return "", names end
  local insert = common_prefix(names):sub(#prefix + 1)
  if #names == 1 then insert = insert .. suffix_of(field(root, names[1])) end
  return insert, names
end

return complete
