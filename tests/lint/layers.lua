-- The floors: kernels <- core <- lua/bind <- lua/host, lua/saelua <- recipes. An include or a require may only
-- point down. Inside core: base, tensor <- ops, io <- model, sae, optim, data; no cycles between its folders.
local c_source = require "tests.lint.c_source"

local FLOORS = { -- longest prefix first
  { "kernels/", "kernels", 1 }, { "core/", "core", 2 }, { "lua/bind/", "lua/bind", 3 }, { "lua/host/", "lua/host", 4 },
  { "lua/saelua/", "lua/saelua", 5 }, { "recipes/", "recipes", 6 }, { "tests/", "tests", 7 },
}
local CORE_STEPS = { base = 1, tensor = 1, ops = 2, io = 2, model = 3, sae = 3, optim = 3, data = 3 }

-- System headers that a floor may not use, as Lua patterns, with the reason.
local FORBIDDEN = {
  kernels = { { "^lua", "kernels know no Lua" }, { "^lauxlib%.h", "kernels know no Lua" } },
  core = {
    { "^lua", "core knows no Lua" }, { "^lauxlib%.h", "core knows no Lua" }, { "cuda", "core knows no CUDA" },
    { "cublas", "core knows no CUDA" }, { "dnnl", "oneDNN is called by kernels only" },
    { "^omp%.h", "threads are the kernels' matter" },
  },
  ["lua/bind"] = { { "cuda", "the binding knows no CUDA" }, { "dnnl", "oneDNN is called by kernels only" } },
  ["lua/host"] = { { "cuda", "the host knows no CUDA" }, { "dnnl", "oneDNN is called by kernels only" } },
}

local function floor_of(path)
  for _, floor in ipairs(FLOORS) do
    if path:sub(1, #floor[1]) == floor[1] then return floor[2], floor[3] end
  end
end

local function check_core_step(path, target, line, report, edges)
  local from, to = path:match "^core/([^/]+)/", target:match "^core/([^/]+)/"
  if not from or not to or from == to then return end
  if not CORE_STEPS[from] then return report(path, line, "core/" .. from .. " is not a known part of core") end
  if (CORE_STEPS[to] or 0) > CORE_STEPS[from] then
    return report(path, line, ("core/%s may not include core/%s: it lies above"):format(from, to))
  end
  edges[from] = edges[from] or {}
  edges[from][to] = edges[from][to] or { path = path, line = line }
end

local function check_include(path, target, quoted, line, files, report, edges)
  local floor, level = floor_of(path)
  if not quoted then
    for _, rule in ipairs(FORBIDDEN[floor] or {}) do
      if target:lower():find(rule[1]) then report(path, line, ("<%s>: %s"):format(target, rule[2])) end
    end
    return
  end
  local beside = path:match "^(.*/)" .. target
  local resolved = files[target] and target or (files[beside] and beside or target)
  local to, to_level = floor_of(resolved)
  if to and to_level > level then
    report(path, line, ("%s may not include %s (%s): it lies above"):format(floor, target, to))
  elseif floor == "core" and to == "core" then
    check_core_step(path, resolved, line, report, edges)
  elseif not to then
    check_include(path, target, false, line, files, report, edges)
  end
end

-- Reports one cycle between core's folders, if there is one.
local function check_cycles(edges, report)
  local state = {}
  local function visit(part, trail)
    state[part] = "open"
    trail[#trail + 1] = part
    for to, where in pairs(edges[part] or {}) do
      if state[to] == "open" then
        report(where.path, where.line, "a cycle between core's parts: " .. table.concat(trail, " -> ") .. " -> " .. to)
      elseif not state[to] then visit(to, trail) end
    end
    trail[#trail] = nil
    state[part] = "done"
  end
  for part in pairs(edges) do if not state[part] then visit(part, {}) end end
end

local function check_c(path, text, files, report, edges)
  local directives = c_source.mask(text, true)
  local lines = c_source.lines(text)
  for number, masked in ipairs(c_source.lines(directives)) do
    if masked:find "^%s*#%s*include" then
      local target, quote = lines[number]:match '#%s*include%s*["<]([^">]+)(["> ])'
      if target then check_include(path, target, quote == '"', number, files, report, edges) end
    elseif path:find "^core/" and masked:lower():find "cuda" and not masked:find "sl_cuda_device" then
      report(path, number, "core knows no CUDA: devices are reached through the table in kernels/kernels.h")
    end
  end
end

-- What lua/saelua may require beside its own modules: lua-cjson and what LuaJIT brings.
local LIBRARY_MAY = { cjson = true, ffi = true, bit = true, ["string.buffer"] = true, ["table.new"] = true,
  ["table.clear"] = true, jit = true, ["jit.opt"] = true }

local function check_require(path, level, name, number, report)
  local own = name:find "^saelua%f[%W]"
  if level == 5 and not own and not LIBRARY_MAY[name] then
    report(path, number, ("lua/saelua may not require '%s': only saelua's own modules and cjson"):format(name))
  elseif level == 6 and (not own or name:find "^saelua%.core") then
    report(path, number, ("a recipe requires saelua and its modules only, not '%s'"):format(name))
  end
end

local function check_lua(path, text, report)
  local _, level = floor_of(path)
  if level ~= 5 and level ~= 6 then return end
  for number, line in ipairs(c_source.lines(text)) do
    local code = line:gsub("%-%-.*", "")
    for name in code:gmatch "require[%s(]*[\"']([^\"']+)[\"']" do check_require(path, level, name, number, report) end
    if code:find "ffi%.cdef" then report(path, number, "no ffi.cdef: the engine is reached through lua/bind") end
  end
end

--- @tparam table files path -> text
-- @tparam function report report(path, line, message)
return function(files, report)
  local edges, paths = {}, {}
  for path in pairs(files) do paths[#paths + 1] = path end
  table.sort(paths)
  for _, path in ipairs(paths) do
    if floor_of(path) then
      if path:find "%.[ch]$" or path:find "%.cuh?$" then check_c(path, files[path], files, report, edges) end
      if path:find "%.lua$" then check_lua(path, files[path], report) end
    end
  end
  check_cycles(edges, report)
end
