-- Every public name has a doc comment: walks `sl`, its modules and the engine's classes as they are at run time
-- and looks each function up in the index behind `:help`.
--
--   saelua tests/lint/docs_coverage.lua
--
-- Prints the names that lack one; exit status 1 when there are some. Names that begin with "_" are private, and
-- metamethods are the business of their class's head comment.
local sl = require "saelua"
local docs = require "saelua.docs"

local known = {}
for _, entry in ipairs(docs.index()) do
  known[(entry.name:gsub("^sl%.", ""):gsub(":", "."))] = true
  -- A module's table may have any local name in its file.
  if not entry.is_module then known[(entry.module == "sl" and "" or entry.module .. ".") .. entry.bare] = true end
end

local lacking, count = {}, 0
local function visit(name, also)
  count = count + 1
  if not known[name] and not (also and known[also]) then lacking[#lacking + 1] = name end
end

local function is_public(name) return type(name) == "string" and name:sub(1, 1) ~= "_" end

-- `module` is the name in the sources where it differs from the field of `sl`.
local function visit_functions(prefix, value, module)
  for name, field in pairs(value) do
    if is_public(name) and type(field) == "function" then
      -- A function that is a method as well is documented once, as the function.
      visit(prefix .. name, module and module .. "." .. name or rawget(sl, name) and name)
    end
  end
end

visit_functions("", sl)
for field, path in pairs(getmetatable(sl).saelua_lazy) do
  local ok, module = pcall(function() return sl[field] end)
  if not ok then
    lacking[#lacking + 1] = ("%s (cannot be loaded: %s)"):format(field, tostring(module):match "[^\n]*")
  elseif type(module) == "table" then
    visit_functions(field .. ".", module, (path:gsub("^saelua%.", "")))
  end
end
for key, metatable in pairs(debug.getregistry()) do
  local class = type(key) == "string" and type(metatable) == "table" and key:match "^saelua%.([%w_]+)$"
  local methods = class and (rawget(metatable, "methods") or rawget(metatable, "__index"))
  if type(methods) == "table" then visit_functions(class .. ".", methods) end
end

table.sort(lacking)
for _, name in ipairs(lacking) do io.stdout:write("no documentation: ", name, "\n") end
io.stdout:write(("%d public names, %d without documentation\n"):format(count, #lacking))
if #lacking > 0 then os.exit(1, true) end
