--- The saelua library: `local sl = require "saelua"`.
--
-- Everything of the C core (`saelua.core`: tensors, operations, the tape) is a field of `sl`; the parts written in Lua
-- (`sl.data`, `sl.sae`, `sl.schedule`, ...) load when they are first named, so that start-up stays in milliseconds.
-- @module saelua
local core = require "saelua.core"

local sl = {}
for name, value in pairs(core) do sl[name] = value end

-- Field -> module. One list is the truth about what is public.
local MODULES = {
  chart = "saelua.chart",
  data = "saelua.data",
  eval = "saelua.eval",
  fs = "saelua.fs",
  html = "saelua.html",
  json = "saelua.json",
  latents = "saelua.latents",
  memory_report = "saelua.memory_report",
  model = "saelua.model",
  optim = "saelua.optim",
  report = "saelua.report",
  run = "saelua.run",
  sae = "saelua.sae",
  schedule = "saelua.schedule",
  storyworld = "saelua.storyworld",
  text = "saelua.text",
  wordpiece = "saelua.wordpiece_train",
}

--- Stands for "no value" in option declarations and JSON.
-- @field null

local function load_field(name)
  if name == "config" then return require "saelua.config" end
  if name == "null" then return require("saelua.json").null end
  if name == "version" then return require("saelua.host").version end
  return MODULES[name] and require(MODULES[name])
end

--- The devices that this build can use here: `sl.device.list()`.
-- @treturn table names, "cpu" first
sl.device = { list = core.devices, waits = core.waits, set_tf32 = core.set_tf32 }

return setmetatable(sl, {
  __index = function(_, name)
    local value = load_field(name)
    if value == nil then
      local suggest = require "saelua.suggest"
      local names = suggest.keys(sl)
      for known in pairs(MODULES) do names[#names + 1] = known end
      error(("sl has no field '%s'%s"):format(tostring(name), suggest.hint(tostring(name), names)), 2)
    end
    rawset(sl, name, value)
    return value
  end,
  -- The names that are not loaded yet, for completion and the documentation check.
  saelua_lazy = MODULES,
})
