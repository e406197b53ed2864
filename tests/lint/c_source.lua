-- A rough reading of C, enough for the lints: no types, no macros expanded, the house's layout assumed.
local M = {}

local function end_of_line(text, i) return (text:find("\n", i, true) or #text + 1) - 1 end

local function end_of_quote(text, i)
  local quote, last = text:sub(i, i), i + 1
  while last <= #text and text:sub(last, last) ~= quote do
    last = last + (text:sub(last, last) == "\\" and 2 or 1)
  end
  return last
end

-- A directive goes on over lines that end in a backslash.
local function end_of_directive(text, i)
  local last = end_of_line(text, i)
  while text:sub(last, last) == "\\" and last < #text do last = end_of_line(text, last + 2) end
  return last
end

-- The last character of the comment, string or directive that begins at i, or nil.
local function end_of_hidden(text, i, is_directive)
  local two = text:sub(i, i + 1)
  if two == "/*" then return select(2, text:find("*/", i + 2, true)) or #text end
  if two == "//" then return end_of_line(text, i) end
  local c = two:sub(1, 1)
  if c == '"' or c == "'" then return end_of_quote(text, i) end
  if c == "#" and is_directive then return end_of_directive(text, i) end
end

--- The text with comments, strings and (unless `keep_directives`) preprocessor lines turned into spaces.
-- Line breaks stay, so that positions and line numbers stay as well.
function M.mask(text, keep_directives)
  local out, i, at_line_start = {}, 1, true
  while i <= #text do
    local last = end_of_hidden(text, i, at_line_start and not keep_directives)
    if last then
      out[#out + 1] = (text:sub(i, last):gsub("[^\n]", " "))
      i = last + 1
    else
      local c = text:sub(i, i)
      out[#out + 1] = c
      at_line_start = c == "\n" or (at_line_start and c:find "%s" ~= nil)
      i = i + 1
    end
  end
  return table.concat(out)
end

local function line_counter(text)
  local position, line = 1, 1
  return function(target)
    for _ in text:sub(position, target - 1):gmatch "\n" do line = line + 1 end
    position = target
    return line
  end
end

--- Number of parameters in the text between a declaration's parentheses.
function M.parameters(inside)
  if not inside:find "%S" or inside:find "^%s*void%s*$" then return 0 end
  local flat, depth, count = inside:gsub("%b[]", ""), 0, 1
  for c in flat:gmatch "[(),]" do
    if c == "(" then depth = depth + 1 elseif c == ")" then depth = depth - 1
    elseif depth == 0 then count = count + 1 end
  end
  return count
end

-- The name and parameters of the declarator that ends a piece of file-level text: "... name(...)" or nothing.
local function declarator(piece)
  piece = piece:gsub("__attribute__%s*%b()", function(s) return (" "):rep(#s) end)
  local name, inside = piece:match "([%a_][%w_]*)%s*(%b())%s*$"
  if not name or name == "__attribute__" then return nil end
  return name, M.parameters(inside:sub(2, -2))
end

--- Walks the file level: definitions { name, params, first, last } and prototypes { name, params, first, last }
-- (line numbers). Structs, arrays and initialisers are passed over.
function M.outline(text)
  local masked = M.mask(text)
  local definitions, prototypes = {}, {}
  local line_of, start, i, n = line_counter(masked), 1, 1, #masked
  while i <= n do
    i = masked:find("[{};]", i)
    if not i then break end
    local piece = masked:sub(start, i - 1)
    local first = (masked:find("%S", start) or i)
    if masked:sub(i, i) == "{" then
      local close = select(2, masked:find("%b{}", i)) or n
      local name, params = declarator(piece)
      if name then
        local top, bottom = line_of(first), line_of(close)
        definitions[#definitions + 1] = { name = name, params = params, first = top, last = bottom }
        start = close + 1
      end
      i = close + 1
    elseif masked:sub(i, i) == ";" then
      local name, params = declarator(piece)
      if name and not piece:find "^%s*typedef%f[%W]" and not piece:find "=" then
        local top, bottom = line_of(first), line_of(i)
        prototypes[#prototypes + 1] = { name = name, params = params, first = top, last = bottom }
      end
      start, i = i + 1, i + 1
    else
      start, i = i + 1, i + 1
    end
  end
  return definitions, prototypes
end

--- Lines of a text, without their ends.
function M.lines(text)
  local lines = {}
  for line in (text:sub(-1) == "\n" and text or text .. "\n"):gmatch "(.-)\n" do lines[#lines + 1] = line end
  return lines
end

return M
