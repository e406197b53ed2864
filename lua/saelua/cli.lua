--- The command line of `saelua`: runs recipes, code and the REPL; decides what is printed and the exit status
-- (0 success, 1 an error in the recipe or the world, 2 bad arguments, 130 after Ctrl-C, 143 after SIGTERM).
-- @module saelua.cli
local console = require "saelua.console"
local errors = require "saelua.errors"
local host = require "saelua.host"
local strict = require "saelua.strict"

local cli = {}

local USAGE = [[
saelua: an experiment engine for sparse autoencoders, scripted in Lua.

  saelua RECIPE.lua [options]     run a recipe; its options: saelua RECIPE.lua --help
  saelua -i RECIPE.lua [options]  run it, then stay in the REPL with its variables
  saelua -e CODE [arguments]      run a piece of Lua; 'sl' is the library
  saelua recipes                  list the recipes that come with saelua
  saelua                          REPL (or a script from standard input, when that is no terminal)
  saelua -                        a script from standard input
  saelua --help | --version

Exit status: 0 success, 1 an error in the recipe or the world, 2 bad arguments, 130 after Ctrl-C.
Environment: SAELUA_HOME (where the library lies), NO_COLOR.]]

local BANNER = "saelua %s (%s). 'sl' is the library; :help tells more, :quit leaves."

local function complain(text)
  console.cleanup()
  io.stderr:write("saelua: ", text, "\n")
end

local function bad_arguments(text)
  complain(text)
  io.stderr:write("saelua: see 'saelua --help'\n")
  return 2
end

-- The status of a run that a signal cut short.
local function interrupted_status() return host.interrupted() == "SIGTERM" and 143 or 130 end

local function lazy_library()
  return { sl = function() return require "saelua" end }
end

-- Runs a chunk and reports; returns the exit status.
local function run_chunk(chunk, args, on_error)
  local ok, report = errors.call(chunk, args, on_error)
  console.cleanup()
  if host.interrupted() then
    if not ok then complain("interrupted" .. (report.where and " at " .. report.where or "")) end
    return interrupted_status()
  end
  if ok then return 0 end
  complain(errors.text(report))
  return 1
end

-- Program text with a "#!" line made a comment.
local function without_shebang(text) return text:sub(1, 1) == "#" and "--" .. text or text end

local function set_arguments(script, args)
  local list = { [0] = script }
  for i, word in ipairs(args) do list[i] = word end
  rawset(_G, "arg", list)
end

local function start_repl(env)
  host.clear_interrupt()
  host.graceful(false)
  require("saelua.repl").run(env, BANNER:format(host.version, jit.version))
  return 0
end

-- A recipe by its path, or by name out of those that came with the program.
local function find_recipe(path)
  local fs = require "saelua.fs"
  local shipped = host.share_dir .. "/recipes/"
  local candidates = { path, path .. ".lua", host.share_dir .. "/" .. path, shipped .. path, shipped .. path .. ".lua" }
  for _, candidate in ipairs(candidates) do
    local info = host.stat(candidate)
    if info and info.type ~= "directory" then return candidate end
  end
  if host.stat(path) then return nil, ("%s is a folder; a recipe is a Lua file"):format(path) end
  local names = {}
  for _, dir in ipairs { fs.dirname(path), shipped } do
    for _, name in ipairs(host.list(dir) or {}) do
      if name:find("%.lua$") then names[#names + 1] = name end
    end
  end
  local near = require("saelua.suggest").nearest(fs.basename(path), names, 1)[1]
  return nil, ("there is no recipe %s%s"):format(path, near and ("; did you mean %s?"):format(near) or "")
end

-- Recipes may `require` files that lie beside them.
local function add_neighbours(path)
  local dir = require("saelua.fs").dirname(path)
  package.path = package.path .. ";" .. dir .. "/?.lua;" .. dir .. "/?/init.lua"
end

-- Runs program text as a recipe; with `stay`, the REPL follows with its locals.
local function run_recipe(text, chunk_name, args, stay)
  local env = strict.environment(_G, { lazy = {} })
  if text:sub(1, 1) == "\27" then
    complain(("%s is compiled Lua; a recipe must be source text"):format((chunk_name:gsub("^[@=]", ""))))
    return 1
  end
  local chunk, message
  local kept = {}
  local function keep(name, value) kept[name] = value end
  if stay then
    chunk, message = require("saelua.repl").load_keeping(without_shebang(text), chunk_name, env, keep)
  else
    chunk, message = load(without_shebang(text), chunk_name, "t", env)
  end
  if not chunk then
    complain(message)
    return 1
  end
  local status = run_chunk(chunk, args, stay and function(f) require("saelua.repl").locals_of(f, keep) end)
  if not stay then return status end
  local repl_env = strict.environment(_G, { assign = true, lazy = lazy_library() })
  for name, value in pairs(kept) do rawset(repl_env, name, value) end
  return start_repl(repl_env)
end

local function run_file(path, args, stay)
  local found, message = find_recipe(path)
  if not found then return bad_arguments(message) end
  local text
  text, message = require("saelua.fs").read(found)
  if not text then
    complain(message)
    return 1
  end
  set_arguments(found, args)
  add_neighbours(found)
  return run_recipe(text, "@" .. found, args, stay)
end

local function run_stdin(args)
  local text = io.stdin:read("*a") or ""
  if host.interrupted() then return interrupted_status() end
  set_arguments("-", args)
  return run_recipe(text, "=stdin", args, false)
end

local function run_code(codes, args, stay)
  local env = strict.environment(_G, { assign = true, lazy = lazy_library() })
  set_arguments("-e", args)
  local status = 0
  for _, code in ipairs(codes) do
    local chunk, message = load(code, "=-e", "t", env)
    if not chunk then
      complain(message)
      return 1
    end
    jit.off(chunk, true) -- so that Ctrl-C stops its loops
    status = run_chunk(chunk, args)
    if status ~= 0 then break end
  end
  return stay and start_repl(env) or status
end

local function list_recipes()
  local fs = require "saelua.fs"
  local dir = host.share_dir .. "/recipes"
  local here = host.realpath("recipes")
  local names, message = host.list(dir)
  if not names then
    complain(message)
    return 1
  end
  local shown = here == host.realpath(dir) and "recipes" or dir
  local widest, rows = 0, {}
  for _, name in ipairs(names) do
    if name:find("%.lua$") then
      local first = require("saelua.config_source").head_comment(fs.read(dir .. "/" .. name) or "")[1] or ""
      rows[#rows + 1] = { shown .. "/" .. name, first }
      widest = math.max(widest, #rows[#rows][1])
    end
  end
  for _, row in ipairs(rows) do print(("%-" .. widest .. "s  %s"):format(row[1], row[2])) end
  if #rows == 0 then print("no recipes in " .. dir) end
  return 0
end

-- Splits the program's own options from the script and its arguments.
local function parse(argv)
  local request = { codes = {}, args = {} }
  local i = 1
  while argv[i] do
    local word = argv[i]
    if word == "-i" then
      request.stay = true
    elseif word == "-e" then
      i = i + 1
      if not argv[i] then return nil, "-e: the code is missing; for example: saelua -e 'print(1 + 1)'" end
      table.insert(request.codes, argv[i])
    elseif word == "-h" or word == "--help" then
      request.help = true
    elseif word == "-v" or word == "--version" then
      request.version = true
    elseif word == "--" then
      i = i + 1
      break
    elseif word:find("^%-.") then
      local known = { "-e", "-i", "--help", "--version" }
      return nil, ("unknown option %s%s"):format(word, require("saelua.suggest").hint(word, known))
    else
      break
    end
    i = i + 1
  end
  if #request.codes == 0 and argv[i] then
    request.script = argv[i]
    i = i + 1
  end
  for k = i, #argv do table.insert(request.args, argv[k]) end
  return request
end

local function dispatch(request)
  if request.help then
    print(USAGE)
  elseif request.version then
    print(("saelua %s (%s, %s)"):format(host.version, jit.version, host.build.compiler))
  elseif #request.codes > 0 then
    return run_code(request.codes, request.args, request.stay)
  elseif request.script == "recipes" and #request.args == 0 then
    return list_recipes()
  elseif request.script == "-" then
    return run_stdin(request.args)
  elseif request.script then
    return run_file(request.script, request.args, request.stay)
  elseif request.stay or console.is_tty(io.stdin) then
    set_arguments("saelua", {})
    return start_repl(strict.environment(_G, { assign = true, lazy = lazy_library() }))
  else
    return run_stdin(request.args)
  end
  return 0
end

--- Runs the program.
-- @tparam {string,...} argv the command line, the program's name at 0
-- @treturn integer exit status
function cli.main(argv)
  -- Finalizers must run, the terminal must be clean, and unwritten output must be told.
  os.exit = function(status) -- luacheck: ignore 122
    console.cleanup()
    local numbers = { [true] = 0, [false] = 1 }
    if status == nil then status = true end
    host.exit(numbers[status] or status)
  end
  local request, message = parse(argv)
  if not request then return bad_arguments(message) end
  return dispatch(request)
end

return cli
