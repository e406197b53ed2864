-- Runs the `saelua` program for specs: exit status, both outputs, signals.
--
-- The program is SAELUA_BIN, or the one that runs the spec. Arguments are quoted; a run that takes longer than
-- 60 seconds is ended with status 124.
local host = require "saelua.host"

local program = {}

program.path = os.getenv "SAELUA_BIN" or host.exe_path

function program.quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

-- A new empty folder below the system's temporary one.
function program.folder()
  local path = os.tmpname()
  os.remove(path)
  assert(host.mkdir(path))
  return path
end

function program.write(path, text)
  local file = assert(io.open(path, "wb"))
  assert(file:write(text))
  assert(file:close())
  return path
end

function program.read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

--- run { "-e", "print(1)", stdin = "text", env = "A=1", folder = "where" } -> { status, out, err }
function program.run(options)
  local dir = program.folder()
  local words = {}
  for i, word in ipairs(options) do words[i] = program.quote(word) end
  program.write(dir .. "/in", options.stdin or "")
  -- A shell that runs in the background ignores SIGINT for its children: give the default back.
  local pattern = "cd %s && env --default-signal=INT,TERM %s timeout --foreground 60 %s %s "
    .. "<%s/in >%s/out 2>%s/err; echo $? >%s/rc"
  local command = pattern
    :format(program.quote(options.folder or "."), options.env or "", program.quote(program.path),
      table.concat(words, " "), dir, dir, dir, dir)
  os.execute(command)
  local result = {
    status = tonumber(program.read(dir .. "/rc")),
    out = program.read(dir .. "/out"),
    err = program.read(dir .. "/err"),
  }
  host.remove_tree(dir)
  return result
end

-- Lua code that makes a program signal itself a little later, n times: for -e and recipes.
function program.signal_code(name, times)
  local kills = ("sleep 0.4; kill -%s $PPID; "):format(name):rep(times or 1)
  return ("os.execute(%q) "):format("(" .. kills .. ") >/dev/null 2>&1 &")
end

return program
