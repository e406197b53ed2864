--- Readable text of any value: what the REPL prints.
-- @module saelua.pretty
local pretty = {}

local DEFAULTS = { depth = 4, width = 100, items = 40 }

local keywords = {}
for word in ("and break do else elseif end false for function goto if in local nil not or repeat return then true "
  .. "until while"):gmatch("%a+") do keywords[word] = true end

local function quote(text, limit)
  local shown = #text > limit and text:sub(1, limit) or text
  shown = shown:gsub('[%c"\\\127]', function(c)
    if c == "\n" then return "\\n" elseif c == "\t" then return "\\t" elseif c == "\r" then return "\\r" end
    if c == '"' or c == "\\" then return "\\" .. c end
    return ("\\%03d"):format(c:byte())
  end)
  return '"' .. shown .. '"' .. (#text > limit and ("... (%d bytes)"):format(#text) or "")
end

local function number(x)
  if x ~= x then return "nan" end
  if x == math.huge then return "inf" elseif x == -math.huge then return "-inf" end
  return ("%.14g"):format(x)
end

local function function_name(f)
  local info = debug.getinfo(f, "S")
  if info.what == "C" then return "<function: built in>" end
  return ("<function: %s:%d>"):format(info.short_src, info.linedefined)
end

local function is_name(key) return type(key) == "string" and key:find("^[%a_][%w_]*$") and not keywords[key] end

local rank = { number = 1, string = 2, boolean = 3 }

local function before(a, b)
  local ta, tb = type(a), type(b)
  if ta == tb and (ta == "number" or ta == "string") then return a < b end
  if ta ~= tb then return (rank[ta] or 9) < (rank[tb] or 9) end
  return tostring(a) < tostring(b)
end

local render

-- A metatable's own wish: __pretty(value, options) or __tostring. An error in it is shown, not raised.
local function custom(value, state)
  local meta = debug.getmetatable(value)
  if type(meta) ~= "table" then return nil end
  local method = rawget(meta, "__pretty") or rawget(meta, "__tostring")
  if not method then return nil end
  local ok, text = pcall(method, value, { width = state.width, depth = state.depth })
  if ok and type(text) == "string" then return text end
  return ("<%s: printing it failed: %s>"):format(type(value), tostring(text))
end

-- The parts of a table as text: array part first, then sorted keys; how many were left out.
local function table_parts(t, state, depth)
  local parts, left_out, shown = {}, 0, 0
  local n = #t
  local function add(text)
    shown = shown + 1
    if shown <= state.items then parts[#parts + 1] = text() else left_out = left_out + 1 end
  end
  for i = 1, n do
    add(function() return render(rawget(t, i), state, depth + 1) end)
  end
  local keys = {}
  for key in next, t do
    if not (type(key) == "number" and key >= 1 and key <= n and key % 1 == 0) then keys[#keys + 1] = key end
  end
  table.sort(keys, before)
  for _, key in ipairs(keys) do
    add(function()
      local name = is_name(key) and key or ("[%s]"):format(render(key, state, depth + 1))
      return name .. " = " .. render(rawget(t, key), state, depth + 1)
    end)
  end
  return parts, left_out
end

local function render_table(t, state, depth)
  if state.open[t] then return "<cycle>" end
  if next(t) == nil then return "{}" end
  if depth >= state.depth then return "{...}" end
  state.open[t] = true
  local parts, left_out = table_parts(t, state, depth)
  state.open[t] = nil
  if left_out > 0 then parts[#parts + 1] = ("... %d more"):format(left_out) end
  local flat = "{ " .. table.concat(parts, ", ") .. " }"
  if #flat + 2 * depth <= state.width and not flat:find("\n", 1, true) then return flat end
  local pad = ("  "):rep(depth + 1)
  return "{\n" .. pad .. table.concat(parts, ",\n" .. pad) .. "\n" .. ("  "):rep(depth) .. "}"
end

function render(value, state, depth)
  local kind = type(value)
  if kind == "string" then return quote(value, 500) end
  if kind == "number" then return number(value) end
  if kind == "nil" or kind == "boolean" then return tostring(value) end
  local text = custom(value, state)
  if text then return text end
  if kind == "table" then return render_table(value, state, depth) end
  if kind == "function" then return function_name(value) end
  return "<" .. tostring(value) .. ">"
end

--- Text of a value. Tables are depth-, width- and item-limited and may contain themselves; userdata show as
-- their `__pretty(value, {width, depth})` or `__tostring` says. Calls no other metamethod.
-- @param value
-- @tparam[opt] table options `depth` (4), `width` (100 columns), `items` (40 a table)
-- @treturn string
function pretty.text(value, options)
  local state = require("saelua.strict").options("pretty.text", options, DEFAULTS)
  state.open = {}
  return render(value, state, 0)
end

return pretty
