--- Hook points by name: saelua's own, Hugging Face module paths, TransformerLens names, with shell globs.
--
-- `*` matches any run of characters, dots included (as Python's fnmatch and sparsify have it), `?` one character,
-- `[a-c]` one of a set, `[!a-c]` one outside it, `{0..11}` and `{a,b}` several alternatives. Matching is
-- case-sensitive and covers the whole name. Several names of one point, or several patterns, give it once.
-- @module saelua.hookpoints
local suggest = require "saelua.suggest"

local hookpoints = {}

-- Globs --------------------------------------------------------------------------------------------------------

local function escape(text) return (text:gsub("[%^%$%(%)%%%.%[%]%*%+%-%?]", "%%%0")) end

-- The set that opens at position i of the glob: Lua pattern and the position behind it; nil when it never closes.
local function read_set(glob, i)
  local first = i + 1
  local negated = glob:sub(first, first) == "!"
  if negated then first = first + 1 end
  local close = glob:find("]", first + 1, true) -- a bracket right at the start is a member
  if not close then return nil end
  local members = glob:sub(first, close - 1):gsub("[%^%]%%]", "%%%0")
  return "[" .. (negated and "^" or "") .. members .. "]", close + 1
end

--- A glob (without braces) as an anchored Lua pattern.
-- @tparam string glob
-- @treturn string
function hookpoints.pattern(glob)
  local out, i = { "^" }, 1
  while i <= #glob do
    local c = glob:sub(i, i)
    local piece, behind = escape(c), i + 1
    if c == "*" then
      piece = ".*"
    elseif c == "?" then
      piece = "."
    elseif c == "[" then
      local set, after = read_set(glob, i)
      if set then piece, behind = set, after end
    end
    out[#out + 1] = piece
    i = behind
  end
  out[#out + 1] = "$"
  return table.concat(out)
end

--- Spells `{a,b}` and `{0..11}` out.
-- @tparam string glob
-- @treturn {string,...}
function hookpoints.expand_braces(glob)
  local before, inner, behind = glob:match("^(.-){([^{}]*)}(.*)$")
  if not before then return { glob } end
  local choices = {}
  local low, high = inner:match("^(%d+)%.%.(%d+)$")
  if low then
    if tonumber(high) - tonumber(low) > 4096 then error("hook points: the range {" .. inner .. "} is too long", 0) end
    for n = tonumber(low), tonumber(high) do choices[#choices + 1] = tostring(n) end
  elseif inner:find(",", 1, true) then
    for choice in (inner .. ","):gmatch("([^,]*),") do choices[#choices + 1] = choice end
  else
    return { glob } -- no alternatives: braces as such
  end
  local out = {}
  for _, choice in ipairs(choices) do
    for _, rest in ipairs(hookpoints.expand_braces(behind)) do out[#out + 1] = before .. choice .. rest end
  end
  return out
end

local function is_glob(name) return name:find("[%*%?%[{]") ~= nil end

-- Names of a model's sites ---------------------------------------------------------------------------------------

local Names = {}
Names.__index = Names

local DIALECTS = { tl2 = true, tl3 = true }

local function add_name(self, name, site)
  if self.site_of[name] == nil then
    self.site_of[name] = site
    self.all[#self.all + 1] = name
  end
end

local function add_aliases(self, site, index, aliases, family)
  for _, template in ipairs(aliases[site.point] or {}) do
    local name = template:gsub("{i}", tostring(site.layer))
    add_name(self, name, index)
    if family and not name:find(family.unprefixed) then add_name(self, family.prefix .. name, index) end
  end
end

--- All names of a model's hook points.
-- @tparam {table,...} sites of ModelCore: { name, point, layer, width }
-- @tparam table family
-- @tparam[opt="tl3"] string dialect which TransformerLens: "tl2" (HookedEncoder) or "tl3" (TransformerBridge)
-- @treturn Names
function hookpoints.names(sites, family, dialect)
  dialect = dialect or "tl3"
  if not DIALECTS[dialect] then
    error(('dialect must be "tl2" (HookedEncoder) or "tl3" (TransformerBridge), not %s'):format(tostring(dialect)), 2)
  end
  local self = setmetatable({ sites = sites, site_of = {}, all = {} }, Names)
  for index, site in ipairs(sites) do add_name(self, site.name, index) end
  for index, site in ipairs(sites) do
    add_aliases(self, site, index, family.hf, family)
    add_aliases(self, site, index, family.tl)
    add_aliases(self, site, index, family[dialect])
  end
  return self
end

local function raise_unknown(self, name)
  local near = suggest.nearest(name, self.all, 4)
  if #near > 0 then
    for i, candidate in ipairs(near) do near[i] = '"' .. candidate .. '"' end
    error(('no hook point matches "%s"; the nearest are %s'):format(name, table.concat(near, ", ")), 0)
  end
  error(('no hook point matches "%s"; see model:hookpoints() for all %d, such as "layers.0.resid_post"'):format(name,
    #self.sites), 0)
end

local function match_glob(self, glob, found)
  local pattern, any = hookpoints.pattern(glob), false
  for _, name in ipairs(self.all) do
    if name:find(pattern) then
      found[self.site_of[name]] = true
      any = true
    end
  end
  return any
end

-- Marks the sites of one name or glob in `found`.
local function match(self, name, found)
  if type(name) ~= "string" then error("a hook point is named by a string, not a " .. type(name), 0) end
  if self.site_of[name] then
    found[self.site_of[name]] = true
    return
  end
  local any = false
  if is_glob(name) then
    for _, glob in ipairs(hookpoints.expand_braces(name)) do any = match_glob(self, glob, found) or any end
  end
  if not any then raise_unknown(self, name) end
end

--- The sites that names or globs mean, in the order of computation, each once. No match raises with the nearest names.
-- @tparam string|{string,...} wanted
-- @treturn {integer,...}
function Names:resolve(wanted)
  if type(wanted) == "string" then wanted = { wanted } end
  if type(wanted) ~= "table" then
    error("hook points: a name or a list of names expected, got a " .. type(wanted), 0)
  end
  local found, out = {}, {}
  for _, name in ipairs(wanted) do match(self, name, found) end
  for index = 1, #self.sites do
    if found[index] then out[#out + 1] = index end
  end
  return out
end

--- The one site of a name; raises when a glob matches several.
-- @tparam string name
-- @treturn integer
function Names:one(name)
  local found = self:resolve(name)
  if #found ~= 1 then
    error(('"%s" matches %d hook points, one is wanted here'):format(tostring(name), #found), 0)
  end
  return found[1]
end

--- The names of sites.
-- @tparam {integer,...} found
-- @treturn {string,...}
function Names:list(found)
  local out = {}
  for i, index in ipairs(found) do out[i] = self.sites[index].name end
  return out
end

return hookpoints
