--- The documentation behind `:help`: LDoc comments read from the library's own sources when first asked for.
-- @module saelua.docs
local docs = {}

-- One entry: { name, bare, module, parameters = { { name, type, optional, text } }, results = {...}, text = lines,
-- source = path, line, is_module, is_field }

local function trim(text) return (text:gsub("^%s+", ""):gsub("%s+$", "")) end

-- Splits a comment into its text and its tags; a tag runs until the next one.
local function parse_comment(lines)
  local text, tags = {}, {}
  for _, line in ipairs(lines) do
    local tag, rest = line:match("^%s*@([%a]+%b[])%s*(.*)$")
    if not tag then tag, rest = line:match("^%s*@([%a]+)%s*(.*)$") end
    if tag then
      local modifiers = tag:match("%b[]") or ""
      tags[#tags + 1] = { tag = tag:match("^%a+"), modifiers = modifiers, text = rest }
    elseif #tags > 0 then
      tags[#tags].text = tags[#tags].text .. " " .. trim(line)
    else
      text[#text + 1] = line
    end
  end
  while text[#text] and not text[#text]:find("%S") do text[#text] = nil end
  return text, tags
end

-- "{integer,...} shape the shape" -> type, rest
local function take_type(text)
  local braces = text:match("^%b{}%S*")
  local kind = braces or text:match("^%S+") or ""
  return kind, trim(text:sub(#kind + 1))
end

local function add_tag(entry, tag)
  local name = tag.tag
  if name == "tparam" or name == "param" then
    local parameter = { optional = tag.modifiers:find("opt") ~= nil, default = tag.modifiers:match("opt=([^%]]+)") }
    local rest = tag.text
    if name == "tparam" then parameter.type, rest = take_type(rest) end
    parameter.name, parameter.text = rest:match("^(%S+)%s*(.*)$")
    if parameter.name then table.insert(entry.parameters, parameter) end
  elseif name == "treturn" then
    local kind, rest = take_type(tag.text)
    table.insert(entry.results, trim(kind .. " " .. rest))
  elseif name == "return" then
    table.insert(entry.results, tag.text)
  end
end

local function find_tag(tags, ...)
  for _, tag in ipairs(tags) do
    for i = 1, select("#", ...) do
      if tag.tag == select(i, ...) then return tag end
    end
  end
end

-- The name that the code after a comment defines, and whether it is no function.
local function defined_name(code)
  if not code then return nil end
  local name = code:match("^%s*function%s+([%w_.:]+)")
  if name then return name, false end
  local value
  name, value = code:match("^%s*([%w_.]+)%s*=%s*(.*)$")
  return name, name ~= nil and not value:find("^function")
end

-- What stands before a name (prefix, separator), and the module whose list shows it. `Bar:update` belongs to a class;
-- `M.new` and `M:new` are the module's own; `sl.tape` in the file of a class is a function of the library.
local function place_of(name, module)
  if name:find("^sl%.") then return "sl", ".", "sl" end
  local owner = name:match("^([%w_]+):") or name:match("^(%u[%w_]+)%.")
  if owner == "M" then owner = nil end
  local prefix = owner or module
  local is_class = owner or (prefix and prefix:find("^%u"))
  return prefix, is_class and ":" or ".", module
end

-- Adds what one comment documents. `state.module` is the file's module, from its first comment.
local function add_comment(state, lines, code, line)
  local text, tags = parse_comment(lines)
  local module = find_tag(tags, "module", "classmod", "submodule")
  if module then
    state.module = trim(module.text):gsub("^saelua%.core$", "sl"):gsub("^saelua$", "sl"):gsub("^saelua%.", "")
    if module.tag ~= "submodule" then
      state.add { name = state.module, bare = state.module, module = state.module, text = text, parameters = {},
        results = {}, is_module = true, source = state.source, line = line }
    end
    return
  end
  local named = find_tag(tags, "function", "field", "name")
  local name, is_field = defined_name(code)
  if named then
    name, is_field = trim(named.text):match("^%S+"), named.tag == "field"
  end
  if not name then return end
  local bare = name:match("[%w_]+$")
  local prefix, separator, home = place_of(name, state.module)
  local entry = { bare = bare, module = home, text = text, parameters = {}, results = {}, source = state.source,
    line = line, name = prefix and prefix .. separator .. bare or bare }
  entry.is_field = is_field
  for _, tag in ipairs(tags) do add_tag(entry, tag) end
  state.add(entry)
end

--- Parses a Lua source's `---` comments.
-- @tparam string source
-- @tparam string path for `line` lookups
-- @tparam function add called with each entry
function docs.parse_lua(source, path, add)
  local state = { add = add, source = path }
  local block, number, waiting = nil, 0, nil
  for line in (source .. "\n"):gmatch("(.-)\n") do
    number = number + 1
    local comment = line:match("^%s*%-%-%-?%s?(.*)$")
    if not block and line:find("^%s*%-%-%-%s") then
      block = { comment }
    elseif block and comment and line:find("^%s*%-%-") then
      block[#block + 1] = comment
    elseif block then
      add_comment(state, block, line, number)
      block = nil
    end
    waiting = line
  end
  if block then add_comment(state, block, waiting, number) end
end

--- Parses a C source's `/***` comments.
-- @tparam string source
-- @tparam string path
-- @tparam function add called with each entry
function docs.parse_c(source, path, add)
  local state = { add = add, source = path }
  for body in source:gmatch("/%*%*%*(.-)%*/") do
    local lines = {}
    for line in (body .. "\n"):gmatch("(.-)\n") do lines[#lines + 1] = (line:gsub("^%s*%*?%s?", "")) end
    add_comment(state, lines, nil, 0)
  end
end

local index -- all entries, read once

local function add_folder(fs, dir, add)
  for _, name in ipairs(fs.list(dir) or {}) do
    local path = dir .. "/" .. name
    local info = fs.stat(path)
    if info and info.type == "directory" then
      add_folder(fs, path, add)
    elseif name:find("%.lua$") or name:find("%.c$") then
      local text = fs.read(path)
      if text then
        local parse = name:find("%.lua$") and docs.parse_lua or docs.parse_c
        parse(text, path, add)
      end
    end
  end
end

--- All entries of the library.
-- @treturn {table,...}
function docs.index()
  if index then return index end
  local fs = require "saelua.fs"
  local share = require("saelua.host").share_dir
  index = {}
  local modules = {}
  -- A module that is spread over several files is one entry, with the first file's text.
  local function add(entry)
    if entry.is_module and modules[entry.name] then return end
    if entry.is_module then modules[entry.name] = true end
    index[#index + 1] = entry
  end
  add_folder(fs, share .. "/lua/saelua", add)
  add_folder(fs, share .. "/lua/bind", add)
  return index
end

--- Forgets what was read (after `:reload`).
function docs.forget() index = nil end

--- The entries for a name: `schedule.cosine`, `sl.schedule.cosine`, `cosine`, `Tensor:view`, `schedule`.
-- @tparam string name
-- @param[opt] value what the name is bound to; a Lua function is found by its place in the source
-- @treturn {table,...} empty when nothing is known
function docs.find(name, value)
  local found = {}
  if type(value) == "function" then
    local info = debug.getinfo(value, "S")
    local file = info.source:match("^@.*(lua/saelua/.*)$") -- the tree may be reached by several paths
    for _, entry in ipairs(docs.index()) do
      if file and entry.line == info.linedefined and entry.source:sub(-#file) == file then return { entry } end
    end
  end
  local plain = name:gsub("^sl%.", "")
  local bare = plain:match("[%w_]+$") or plain
  for _, want in ipairs { plain, "sl." .. plain } do
    for _, entry in ipairs(docs.index()) do
      if entry.name == want or entry.name:gsub(":", ".") == want:gsub(":", ".") then found[#found + 1] = entry end
    end
    if #found > 0 then return found end
  end
  for _, entry in ipairs(docs.index()) do
    if entry.bare == bare then found[#found + 1] = entry end
  end
  return found
end

local function signature(entry)
  if entry.is_module or entry.is_field then return entry.name end
  local names = {}
  for _, parameter in ipairs(entry.parameters) do
    names[#names + 1] = parameter.optional and "[" .. parameter.name .. "]" or parameter.name
  end
  return ("%s(%s)"):format(entry.name, table.concat(names, ", "))
end

--- An entry as text; a module's lists its functions.
-- @tparam table entry
-- @treturn string
function docs.text(entry)
  local lines = { signature(entry) }
  for _, line in ipairs(entry.text) do lines[#lines + 1] = "  " .. line end
  for _, parameter in ipairs(entry.parameters) do
    local kind = parameter.type or "value"
    if parameter.default then kind = kind .. ", default " .. parameter.default
    elseif parameter.optional then kind = kind .. ", optional" end
    lines[#lines + 1] = ("  %s (%s)  %s"):format(parameter.name, kind, parameter.text):gsub("%s+$", "")
  end
  for _, result in ipairs(entry.results) do lines[#lines + 1] = "  returns " .. result end
  if entry.is_module then
    for _, other in ipairs(docs.index()) do
      if other.module == entry.module and not other.is_module then
        lines[#lines + 1] = ("    %s  %s"):format(signature(other), other.text[1] or ""):gsub("%s+$", "")
      end
    end
  end
  return table.concat(lines, "\n")
end

--- The names of the documented modules, sorted, each once.
-- @treturn {string,...}
function docs.modules()
  local names, seen = {}, {}
  for _, entry in ipairs(docs.index()) do
    if entry.is_module and not seen[entry.name] then
      seen[entry.name] = true
      names[#names + 1] = entry.name
    end
  end
  table.sort(names)
  return names
end

return docs
