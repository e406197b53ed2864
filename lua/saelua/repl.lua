--- The REPL: reads, runs, prints, goes on.
-- On a terminal with line editing, history and completion (libedit); from a pipe line by line, without prompts.
-- @module saelua.repl
local complete = require "saelua.complete"
local console = require "saelua.console"
local errors = require "saelua.errors"

local repl = {}

local KEEP = "__saelua_keep" -- the hidden function that carries a chunk's locals over
local VALUES = "__saelua_values"

--- Loads a chunk so that its top-level locals can be kept: a call is put behind its last line.
-- A chunk that ends with `return` cannot have one: then it is loaded as it is and keeps nothing.
-- @tparam string text
-- @tparam string name as for `load`
-- @tparam table env the chunk's environment
-- @tparam function keep called with name and value of each local when the chunk ends
-- @treturn ?function or nil, message
function repl.load_keeping(text, name, env, keep)
  local plain, message = load(text, name, "t", env)
  if not plain then return nil, message end
  local keeping = load(text .. "\n" .. KEEP .. "()", name, "t", env)
  if not keeping then return plain end
  rawset(env, KEEP, function()
    rawset(env, KEEP, nil)
    repl.locals_of(keeping, keep)
  end)
  return keeping
end

--- Gives the locals of a function on the stack to `keep(name, value)`.
-- @tparam function chunk
-- @tparam function keep
function repl.locals_of(chunk, keep)
  local level = 2
  while true do
    local info = debug.getinfo(level, "f")
    if not info then return end
    if info.func == chunk then break end
    level = level + 1
  end
  local i = 1
  while true do
    local name, value = debug.getlocal(level, i)
    if not name then return end
    if name:find("^[%a_]") and value ~= nil then keep(name, value) end
    i = i + 1
  end
end

-- Whether a compile error only says that the text is not finished yet.
local function is_incomplete(message) return message:find("'<eof>'", 1, true) ~= nil end

-- An expression or statements; REPL chunks run interpreted, so that Ctrl-C reaches their loops.
-- An expression's values go through a function: `return f()` would be a tail call, and an error inside f would
-- know neither the chunk nor f's name.
local function compile(text, env)
  local chunk, message
  if load("return " .. text, "=repl", "t", env) then
    rawset(env, VALUES, function(...) return ... end)
    local close = text:find("--", 1, true) and "\n)" or ")" -- a comment must not swallow it
    chunk = load("return " .. VALUES .. "(" .. text .. close, "=repl", "t", env)
  end
  if not chunk then
    chunk, message = repl.load_keeping(text, "=repl", env, function(name, value) rawset(env, name, value) end)
  end
  if chunk then jit.off(chunk, true) end
  return chunk, message
end

local function print_values(results, env)
  if results.n == 0 then return end
  local pretty = require "saelua.pretty"
  local parts = {}
  for i = 1, results.n do parts[i] = pretty.text(results[i], { width = math.min(console.width(), 160) }) end
  rawset(env, "_", results[1])
  io.stdout:write(table.concat(parts, "\t"), "\n")
end

local function print_error(text)
  io.stdout:flush()
  io.stderr:write(console.style(text, "red", io.stderr), "\n")
end

-- Runs a chunk; prints its values or its error; takes an interrupt as "stop this, not the program".
local function run(chunk, env)
  local host = require "saelua.host"
  local ok, results = errors.call(chunk)
  local stopped = host.clear_interrupt()
  host.graceful(false)
  if not ok then
    console.cleanup()
    if stopped then print_error("interrupted") else print_error(errors.text(results)) end
    return
  end
  -- Printing runs code of the values; its errors are no reason to end either.
  ok, results = errors.call(function() print_values(results, env) end)
  if not ok then print_error(errors.text(results)) end
  host.clear_interrupt()
end

local commands = {}

local HELP = [[
Lua expressions print their value; _ is the last one. Statements may span lines; local variables stay.
  :help [name]   this text, or what is known about a function or module: :help schedule.cosine
  :mem           what the memory is used for, on each device
  :time CODE     run CODE and print how long it took
  :reload        load the library's Lua files again at their next use (after editing them)
  :quit          leave (also Ctrl-D)
Tab completes names, fields and methods. Ctrl-C stops a computation.
Modules: %s]]

local function value_named(name, env)
  local value = env
  for part in name:gmatch("[%w_]+") do
    local ok, inner = pcall(function(v) return v[part] end, value)
    if not ok then return nil end
    value = inner
  end
  return value
end

function commands.help(name, env)
  local docs = require "saelua.docs"
  if name == "" then
    io.stdout:write(HELP:format(table.concat(docs.modules(), ", ")), "\n")
    return
  end
  local found = docs.find(name, value_named(name, env))
  if #found == 0 then
    local suggest = require "saelua.suggest"
    local names = {}
    for _, entry in ipairs(docs.index()) do names[#names + 1] = entry.name end
    local near = suggest.nearest(name, names, 5)
    local hint = #near > 0 and "; near: " .. table.concat(near, ", ") or ""
    print_error(("no documentation for '%s'%s"):format(name, hint))
    return
  end
  for i, entry in ipairs(found) do io.stdout:write(i > 1 and "\n" or "", docs.text(entry), "\n") end
end

function commands.time(text, env)
  if text == "" then return print_error("usage: :time CODE") end
  local chunk, message = compile(text, env)
  if not chunk then return print_error(message) end
  local now = require("saelua.host").now
  local start = now()
  run(chunk, env)
  local elapsed = now() - start
  local unit, scale = "s", 1
  if elapsed < 1e-3 then unit, scale = "us", 1e6 elseif elapsed < 1 then unit, scale = "ms", 1e3 end
  io.stdout:write(("%.3g %s\n"):format(elapsed * scale, unit))
end

-- Kept across :reload: what is C, and what is running now.
local KEPT = { ["saelua.core"] = true, ["saelua.cli"] = true, ["saelua.repl"] = true, ["saelua.console"] = true,
  ["saelua.errors"] = true }

function commands.reload(_, env)
  local count = 0
  for name in pairs(package.loaded) do
    if type(name) == "string" and (name == "saelua" or name:find("^saelua%.")) and not KEPT[name]
      and not name:find("^saelua%.host") then
      package.loaded[name] = nil
      count = count + 1
    end
  end
  if rawget(env, "sl") ~= nil then rawset(env, "sl", require "saelua") end
  io.stdout:write(("%d modules will be loaded anew; 'sl' is fresh, other variables keep the old code\n"):format(count))
end

function commands.mem() io.stdout:write(require("saelua.memory_report").text(), "\n") end

function commands.quit() return "quit" end

local COMMAND_NAMES = { "help", "mem", "quit", "reload", "time" }

local function run_command(line, env)
  local name, rest = line:match("^%s*:%s*(%a*)%s*(.-)%s*$")
  if name and commands[name] then
    local ok, result = pcall(commands[name], rest, env)
    if not ok then print_error(tostring(result)) end
    return ok and result or nil
  end
  local hint = require("saelua.suggest").hint(name or "", COMMAND_NAMES)
  print_error(("no command ':%s'%s"):format(name or "", hint))
end

local function history_path()
  local state = os.getenv("XDG_STATE_HOME")
  local home = os.getenv("HOME")
  if (not state or state == "") and home and home ~= "" then state = home .. "/.local/state" end
  return state and state ~= "" and state .. "/saelua/history" or nil
end

-- Lines from a terminal: read(prompt) -> line, nil at the end, false after Ctrl-C; remember(text); close().
local function terminal_lines(env)
  local editor = require "saelua.host.line"
  local ok = editor.open(function(text) return complete.line(text, env, COMMAND_NAMES) end)
  if not ok then return nil end
  local path = history_path()
  local can_save = path and require("saelua.fs").mkdir(require("saelua.fs").dirname(path))
  if path then editor.load(path) end
  return {
    read = editor.read,
    remember = function(text)
      editor.remember(text)
      if can_save then editor.save(path) end
    end,
    close = editor.close,
  }
end

local function pipe_lines()
  return {
    read = function()
      local line = io.stdin:read("*l")
      if line == nil and require("saelua.host").interrupted() then return false end
      return line
    end,
    remember = function() end,
    close = function() end,
  }
end

-- Runs text that is complete (or will not be completed): a chunk, or its compile error.
local function run_text(lines, text, chunk, message, env)
  lines.remember(text)
  if chunk then run(chunk, env) else print_error(message) end
end

-- Reads on until the text compiles, cannot, or the input ends; returns "quit" at the end of input.
local function read_rest(lines, text, env)
  while true do
    local chunk, message = compile(text, env)
    if chunk or not is_incomplete(message) then return run_text(lines, text, chunk, message, env) end
    local line = lines.read(">> ")
    if line == false then return require("saelua.host").clear_interrupt() end
    if line == nil then
      run_text(lines, text, nil, message, env)
      return "quit"
    end
    text = text .. "\n" .. line
  end
end

-- Reads and runs one command or chunk; returns "quit" when it is time to leave.
local function read_chunk(lines, env)
  io.stdout:flush()
  local line = lines.read("> ")
  if line == nil then return "quit" end
  if line == false then -- Ctrl-C at the prompt drops what was typed
    require("saelua.host").clear_interrupt()
  elseif line:find("^%s*:%s*%a") then
    lines.remember(line)
    return run_command(line, env)
  elseif line:find("%S") then
    return read_rest(lines, (line:gsub("^%s*=", "return ")), env)
  end
end

--- Runs the REPL until :quit or the end of the input.
-- @tparam table env the environment (see `strict.environment`)
-- @tparam[opt] string banner printed first on a terminal
function repl.run(env, banner)
  local lines
  if console.is_tty(io.stdin) and console.is_tty(io.stdout) then
    if banner then io.stdout:write(banner, "\n") end
    lines = terminal_lines(env)
  end
  lines = lines or pipe_lines()
  repeat
    local ok, result = pcall(read_chunk, lines, env)
    if not ok then -- an interrupt between two computations
      require("saelua.host").clear_interrupt()
      print_error(tostring(result))
    end
  until ok and result == "quit"
  lines.close()
end

return repl
