-- Runs busted specs inside the host, so that they see the engine and the program's own modules.
--
--   saelua tests/support/run_specs.lua [--gc-stress] [--no-jit] [--filter PATTERN] SPEC.lua...
--
-- It is busted's core with a reporter of its own: the command-line runner parses the global `arg`, changes
-- folders and ends the process. --gc-stress keeps the collector running without a pause: what a spec or a
-- binding fails to hold on to is gone at once. Environment: SAELUA_ROOT, the source tree (the working folder
-- when unset). Exit status: 0 when every test passed, 1 otherwise.

setmetatable(_G, nil) -- recipes have strict globals; busted and its specs are entitled to theirs

local function parse(list)
  local options = { files = {} }
  local i = 1
  while i <= #list do
    local word = list[i]
    if word == "--gc-stress" then options.stress = true
    elseif word == "--no-jit" then options.interpret = true
    elseif word == "--filter" then
      i = i + 1
      options.filter = list[i] or error("--filter expects a Lua pattern", 0)
    elseif word:sub(1, 1) == "-" then error("run_specs: unknown option " .. word, 0)
    else options.files[#options.files + 1] = word end
    i = i + 1
  end
  if #options.files == 0 then error("run_specs: name at least one spec file", 0) end
  return options
end

local function full_name(busted, element)
  local names = {}
  while element and element.descriptor ~= "file" and (element.name or element.descriptor) do
    table.insert(names, 1, element.name or element.descriptor)
    element = busted.context.parent(element)
  end
  return table.concat(names, " ")
end

-- Counts results and prints what went wrong, as `file:line: name` and the message.
local function report_to(busted)
  local count = { success = 0, pending = 0, failure = 0, error = 0 }
  local function complain(kind)
    return function(element, _, message, trace)
      local where = element.trace or trace or {}
      local text = type(message) == "string" and message or require("pl.pretty").write(message)
      io.stdout:write(("%s: %s:%s: %s\n%s\n"):format(kind, where.short_src or element.name or "?",
        where.currentline or "?", full_name(busted, element), text or "no message"))
      if trace and trace.traceback then io.stdout:write(trace.traceback, "\n") end
      io.stdout:write("\n")
      if kind == "ERROR" or element.descriptor ~= "it" then count.error = count.error + 1 end
      return nil, true
    end
  end
  busted.subscribe({ "failure" }, complain "FAILED")
  busted.subscribe({ "error" }, complain "ERROR")
  busted.subscribe({ "pending" }, function(element, _, message)
    io.stdout:write(("pending: %s%s\n"):format(full_name(busted, element), message and (": " .. message) or ""))
    return nil, true
  end)
  busted.subscribe({ "test", "end" }, function(_, _, status)
    if status ~= "error" then count[status] = (count[status] or 0) + 1 end
    return nil, true
  end)
  return count
end

local function main(...)
  local list = { ... }
  if #list == 0 then list = rawget(_G, "arg") or list end
  local options = parse(list)
  local root = os.getenv "SAELUA_ROOT" or "."
  package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s/?.lua;"):format(root, root, root) .. package.path

  local busted = require "busted.core"()
  require "busted"(busted)
  require "busted.languages.en"
  local count = report_to(busted)
  require "busted.luajit"() -- ffi loaded before busted isolates the modules of each file
  require "busted.modules.filter_loader"()(busted, {
    tags = {}, excludeTags = {}, filter = options.filter and { options.filter } or {}, filterOut = {},
  })
  local load_files = require "busted.modules.test_file_loader"(busted, { "lua" })
  load_files(options.files, { "" }, { excludes = {} })

  if options.interpret then
    jit.off()
    jit.flush()
  end
  if options.stress then
    collectgarbage("setpause", 0)
    collectgarbage("setstepmul", 400)
  end
  require "busted.execute"(busted)(1, {})
  io.stdout:write(("%d passed, %d failed, %d errors, %d pending\n"):format(count.success, count.failure, count.error,
    count.pending))
  local ran = count.success + count.failure + count.error + count.pending
  if ran == 0 then io.stdout:write("no test ran\n") end
  return ran > 0 and count.failure == 0 and count.error == 0
end

if not main(...) then
  io.stdout:flush()
  os.exit(1, true) -- closes the state, so that leaks are seen on a bad day too
end
