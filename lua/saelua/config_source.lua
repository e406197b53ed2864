--- What a recipe's source text tells its configuration: the order of the options (a Lua table has none) and
-- the opening comment.
-- @module saelua.config_source
local source = {}

-- Past the string, comment or long bracket that starts at `at`; nil when none does.
local function skip_opaque(text, at)
  local _, stop = text:find("^%-%-%[(=*)%[.-%]%1%]", at)
  if stop then return stop + 1 end
  _, stop = text:find("^%-%-[^\n]*", at)
  if stop then return stop + 1 end
  _, stop = text:find("^%[(=*)%[.-%]%1%]", at)
  if stop then return stop + 1 end
  local quote = text:match("^[\"']", at)
  if not quote then return nil end
  local i = at + 1
  while i <= #text do
    local c = text:sub(i, i)
    if c == "\\" then
      i = i + 1
    elseif c == quote or c == "\n" then
      return i + 1
    end
    i = i + 1
  end
  return #text + 1
end

-- The text with strings and comments blanked (same length), so that patterns see only code.
local function code_only(text)
  local parts, at = {}, 1
  while at <= #text do
    local stop = skip_opaque(text, at)
    if stop then
      parts[#parts + 1] = (" "):rep(stop - at)
      at = stop
    else
      local next_at = text:find("[-%[\"']", at + 1) or #text + 1
      parts[#parts + 1] = text:sub(at, next_at - 1)
      at = next_at
    end
  end
  return table.concat(parts)
end

-- The keys (`name = {`) at the first level of the braces that open at `open`.
local function keys_of_block(code, open)
  local keys, depth, at = {}, 0, open
  while at <= #code do
    local start, stop, name = code:find("^([%a_][%w_]*)%s*=%f[^=]", at)
    if start and depth == 1 then
      keys[#keys + 1] = name
      at = stop + 1
    else
      local word_end = select(2, code:find("^[%w_]+", at))
      local c = code:sub(at, at)
      if c == "{" or c == "(" then depth = depth + 1 end
      if c == "}" or c == ")" then depth = depth - 1 end
      if depth == 0 then break end
      at = (word_end or at) + 1
    end
  end
  return keys
end

--- The keys of the `config { ... }` call that declares all of `declared`, in the order of the text.
-- @tparam string text Lua source
-- @tparam table declared the table given to `sl.config`
-- @treturn ?{string,...} nil when no call in the text fits
function source.order(text, declared)
  local code = code_only(text)
  local at = 1
  while true do
    local _, open = code:find("config%s*%(?%s*{", at)
    if not open then return nil end
    local keys, seen = keys_of_block(code, open), {}
    for _, key in ipairs(keys) do seen[key] = true end
    local all = true
    for key in pairs(declared) do all = all and seen[key] end
    if all then return keys end
    at = open
  end
end

--- The comment that opens a file, without its dashes; a `#!` line and luacheck notes are passed over.
-- @tparam string text Lua source
-- @treturn {string,...} lines
function source.head_comment(text)
  local lines = {}
  for line in (text .. "\n"):gmatch("(.-)\r?\n") do
    local comment = line:match("^%-%-+%s?(.*)$")
    if comment then
      if not comment:find("^luacheck:") then lines[#lines + 1] = comment end
    elseif not (line:find("^#!") and #lines == 0) then
      break
    end
  end
  while lines[#lines] == "" do lines[#lines] = nil end
  return lines
end

return source
