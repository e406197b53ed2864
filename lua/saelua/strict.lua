--- Strictness: undeclared globals and unknown options raise, and name the nearest known one.
-- @module saelua.strict
local suggest = require "saelua.suggest"

local strict = {}

-- The names that a program could have meant, from the environment and what lies below it.
local function known_names(env, below)
  local names = suggest.keys(below)
  for key in pairs(env) do
    if type(key) == "string" then names[#names + 1] = key end
  end
  return names
end

local function raise_undeclared(name, env, below, level)
  local text = tostring(name)
  local hint = #text > 1 and suggest.nearest(text, known_names(env, below), 1)[1]
  error(("undeclared variable '%s'%s"):format(text, hint and (" (did you mean '" .. hint .. "'?)") or ""), level)
end

--- An environment for a chunk (`setfenv`): reads fall through to `below`; reading a name that is
-- nowhere raises. With `assign` false (a recipe) assigning to a new global raises too.
-- @tparam table below the globals underneath, usually `_G`
-- @tparam[opt] table options `assign` (default false), `lazy` (name -> function that makes the value)
-- @treturn table
function strict.environment(below, options)
  options = strict.options("strict.environment", options, { assign = false, lazy = {} })
  local env = {}
  local meta = { saelua_below = below, saelua_lazy = options.lazy }
  function meta.__index(_, name)
    local value = below[name]
    if value ~= nil then return value end
    local make = options.lazy[name]
    if make then
      value = make()
      rawset(env, name, value)
      return value
    end
    raise_undeclared(name, env, below, 3)
  end
  if not options.assign then
    function meta.__newindex(_, name, value)
      if below[name] ~= nil then
        below[name] = value
        return
      end
      local text = tostring(name)
      error(("assignment to undeclared variable '%s': write 'local %s = ...'"):format(text, text), 2)
    end
  end
  return setmetatable(env, meta)
end

--- Checks an option table against its defaults and returns a filled copy.
-- A default of `strict.required` must be given; one of `strict.optional` may be absent.
-- @tparam string where the function's name, for messages
-- @tparam ?table given what the caller passed
-- @tparam table defaults every allowed key
-- @tparam[opt=1] integer level as for `error`, counted from the caller
-- @treturn table
function strict.options(where, given, defaults, level)
  level = (level or 1) + 2
  if given ~= nil and type(given) ~= "table" then
    error(("%s: a table of options expected, got %s"):format(where, type(given)), level)
  end
  given = given or {}
  for key in pairs(given) do
    if defaults[key] == nil then
      local hint = type(key) == "string" and suggest.hint(key, suggest.keys(defaults)) or ""
      error(('%s: unknown option "%s"%s'):format(where, tostring(key), hint), level)
    end
  end
  local filled = {}
  for key, default in pairs(defaults) do
    local value = given[key]
    if value == nil then
      if default == strict.required then error(('%s: option "%s" is required'):format(where, key), level) end
      if default ~= strict.optional then value = default end
    end
    filled[key] = value
  end
  return filled
end

--- Marks for `strict.options`.
-- @field required
-- @field optional
strict.required = setmetatable({}, { __tostring = function() return "required" end })
strict.optional = setmetatable({}, { __tostring = function() return "optional" end })

return strict
