-- The program: what it runs, prints and returns; errors as people see them; signals; the process module.
local errors = require "saelua.errors"
local host = require "saelua.host"
local program = require "tests.support.program"
local strict = require "saelua.strict"
local suggest = require "saelua.suggest"

local dir
setup(function() dir = program.folder() end)
teardown(function() host.remove_tree(dir) end)

local function recipe(text) return program.write(dir .. "/r.lua", text) end

-- Runs a recipe by its bare name, so that messages are the same everywhere.
local function run_recipe(text, ...)
  recipe(text)
  return program.run { "r.lua", folder = dir, ... }
end

describe("saelua", function()
  it("-e runs code with arguments", function()
    local result = program.run { "-e", "print(1 + 1, arg[1], ...)", "x", "--y" }
    assert.same({ status = 0, out = "2\tx\tx\t--y\n", err = "" }, result)
  end)

  it("runs a recipe with its arguments", function()
    local result = run_recipe("#!/usr/bin/env saelua\nprint(arg[0], ...)", "--k", "3")
    assert.same({ status = 0, out = "r.lua\t--k\t3\n", err = "" }, result)
  end)

  it("runs a script from standard input", function()
    assert.same({ status = 0, out = "7\n", err = "" }, program.run { stdin = "print(3 + 4)" })
    assert.same({ status = 0, out = "7\ta\n", err = "" }, program.run { "-", "a", stdin = "print(3 + 4, ...)" })
  end)

  it("--help and --version say what it is", function()
    local help = program.run { "--help" }
    assert.equal(0, help.status)
    assert.truthy(help.out:find("saelua RECIPE.lua [options]", 1, true))
    assert.truthy(program.run({ "--version" }).out:find("^saelua %d+%.%d+%.%d+ %(LuaJIT 2%.1"))
  end)

  it("lists recipes with their first comment line", function()
    host.mkdir(dir .. "/home")
    os.execute(("ln -s %s/lua %s/home/lua"):format(program.quote(host.share_dir), program.quote(dir)))
    host.mkdir(dir .. "/home/recipes")
    program.write(dir .. "/home/recipes/b.lua", "-- Trains b.\n-- More.\nprint 'b ran'")
    program.write(dir .. "/home/recipes/a.lua", "#!/usr/bin/env saelua\n-- luacheck: ignore\n-- Trains a.\n")
    local env = "SAELUA_HOME=" .. program.quote(dir .. "/home")
    local result = program.run { "recipes", env = env }
    assert.equal(0, result.status)
    local folder = host.realpath(dir .. "/home") .. "/recipes/"
    assert.equal(folder .. "a.lua  Trains a.\n" .. folder .. "b.lua  Trains b.\n", result.out)
    assert.equal("recipes/a.lua  Trains a.\nrecipes/b.lua  Trains b.\n",
      program.run({ "recipes", env = env, folder = dir .. "/home" }).out)
    assert.equal("b ran\n", program.run({ "b", env = env }).out)
  end)

  it("ends with 2 on bad arguments", function()
    local result = program.run { "--versoin" }
    assert.equal(2, result.status)
    assert.equal('saelua: unknown option --versoin; did you mean "--version"?\n'
      .. "saelua: see 'saelua --help'\n", result.err)
    recipe "print(1)"
    result = program.run { "rr.lua", folder = dir }
    assert.equal(2, result.status)
    assert.truthy(result.err:find("there is no recipe rr.lua; did you mean r.lua?", 1, true), result.err)
    assert.equal(2, program.run({ "-e" }).status)
    assert.equal(2, program.run({ "." }).status)
  end)

  it("says where it looked when SAELUA_HOME is wrong", function()
    local result = program.run { "-e", "", env = "SAELUA_HOME=/nowhere" }
    assert.equal(1, result.status)
    assert.truthy(result.err:find("SAELUA_HOME is /nowhere", 1, true))
  end)

  it("finds modules beside the recipe", function()
    program.write(dir .. "/beside.lua", "return 'beside'")
    assert.equal("beside\n", run_recipe("print(require 'beside')").out)
  end)

  it("os.exit closes the state, keeps the status and what was printed", function()
    local code = "local u = newproxy(true); getmetatable(u).__gc = function() io.stderr:write 'closed' end; "
      .. "io.write 'kept'; os.exit(%s)"
    assert.same({ status = 5, out = "kept", err = "closed" }, program.run { "-e", code:format "5" })
    assert.same({ status = 0, out = "kept", err = "closed" }, program.run { "-e", code:format "" })
    assert.same({ status = 1, out = "kept", err = "closed" }, program.run { "-e", code:format "false" })
  end)

  it("reports output that could not be written", function()
    local full = io.open("/dev/full", "w")
    if not full then return pending "no /dev/full here" end
    full:close()
    local command = ("%s -e 'print(1)' >/dev/full 2>/dev/null; echo $?"):format(program.quote(program.path))
    local pipe = io.popen(command)
    assert.equal("1\n", pipe:read "*a")
    pipe:close()
  end)
end)

describe("an error in a recipe", function()
  it("shows the recipe's line first and ends with 1", function()
    local result = run_recipe "local x = nil\nlocal function f() return x.y + 0 end\nlocal y = f() + 1\nprint(y)"
    assert.equal(1, result.status)
    assert.equal("saelua: r.lua:2: attempt to index upvalue 'x' (a nil value)\n"
      .. "  r.lua:2: in function 'f'\n  r.lua:3: in main chunk\n", result.err)
  end)

  it("needs no traceback when it has one line", function()
    assert.equal("saelua: r.lua:2: wrong\n", run_recipe("\nerror 'wrong'").err)
    assert.equal("saelua: r.lua:1: wrong\n", run_recipe("error('wrong', 0)").err)
  end)

  it("shows the recipe's line for misuse of the library, and hides the library", function()
    assert.equal("saelua: r.lua:2: schedule.cosine: steps: a whole number >= 1 expected, got x\n",
      run_recipe("local schedule = require 'saelua.schedule'\nlocal s = schedule.cosine(1, 'x')\nprint(s)").err)
  end)

  it("shows recipe frames before library frames", function()
    local result = run_recipe "local fs = require 'saelua.fs'\nlocal p = fs.join(nil)\nprint(p)"
    local first, second, third = result.err:match("^(.-)\n(.-)\n(.-)\n$")
    assert.truthy(first:find("^saelua: r.lua:2: attempt to index"), first)
    assert.equal("  r.lua:2: in main chunk", second)
    assert.truthy(third:find("fs.lua:%d+: in function 'join'$"), third)
  end)

  it("may be any value", function()
    assert.equal("saelua: r.lua:1: an error that is no text: { code = 3 }\n", run_recipe("error { code = 3 }").err)
    assert.equal("saelua: r.lua:1: said\n", run_recipe("error { message = 'said' }").err)
    assert.equal("saelua: r.lua:1: shown\n",
      run_recipe("error(setmetatable({}, { __tostring = function() return 'shown' end }))").err)
    assert.equal("saelua: r.lua:1: an error without a message (nil)\n", run_recipe("error()").err)
    assert.truthy(run_recipe("local function f() return 1 + f() end f()").err:find("stack overflow", 1, true))
  end)

  it("in the syntax names the line", function()
    local result = run_recipe "local x =\n= 3"
    assert.equal(1, result.status)
    assert.equal("saelua: r.lua:2: unexpected symbol near '='\n", result.err)
  end)

  it("bytecode is refused", function()
    local result = run_recipe(string.dump(function() return 1 end))
    assert.equal(1, result.status)
    assert.truthy(result.err:find("r.lua is compiled Lua", 1, true), result.err)
  end)
end)

describe("strict globals", function()
  it("raise on reading and writing what nobody declared", function()
    assert.equal("saelua: r.lua:2: undeclared variable 'modle' (did you mean 'module'?)\n",
      run_recipe("\nprint(modle)").err)
    assert.equal("saelua: r.lua:1: assignment to undeclared variable 'x': write 'local x = ...'\n",
      run_recipe("x = 3").err)
  end)

  it("let -e assign, and read what it assigned", function()
    assert.equal("3\n", program.run({ "-e", "x = 3 print(x)" }).out)
    assert.equal(1, program.run({ "-e", "print(y)" }).status)
  end)

  it("environments read through and make lazy values once", function()
    local made = 0
    local env = strict.environment({ a = 1 }, { assign = true, lazy = { b = function() made = made + 1 return 2 end } })
    assert.equal(1, env.a)
    assert.equal(4, env.b + env.b)
    assert.equal(1, made)
  end)
end)

describe("option tables", function()
  it("are filled and checked", function()
    local defaults = { a = 1, need = strict.required, may = strict.optional }
    assert.same({ a = 1, need = 2 }, strict.options("f", { need = 2 }, defaults))
    assert.same({ a = false, need = 2, may = 3 }, strict.options("f", { need = 2, may = 3, a = false }, defaults))
    local function message(given) return select(2, pcall(strict.options, "f", given, defaults)) end
    assert.truthy(message({}):find('f: option "need" is required', 1, true))
    assert.truthy(message({ need = 1, mya = 2 }):find('f: unknown option "mya"; did you mean "may"?', 1, true))
    assert.truthy(message(3):find("f: a table of options expected, got number", 1, true))
  end)

  it("hints follow likely slips only", function()
    assert.same({ "batch_size" }, suggest.nearest("batchsize", { "batch_size", "k", "layers" }))
    assert.same({ "expansion_factor" }, suggest.nearest("expansion", { "expansion_factor", "k" }))
    assert.same({}, suggest.nearest("zzz", { "batch_size", "layers" }))
    assert.equal(1, suggest.distance("adma", "adam"))
    assert.equal(3, suggest.distance("kitten", "sitting"))
    assert.equal("; there are: a, b", suggest.hint("zzz", { "b", "a" }))
  end)
end)

describe("signals", function()
  local busy = "while true do end"

  it("Ctrl-C stops a busy loop of -e with 130, SIGTERM with 143", function()
    local result = program.run { "-e", program.signal_code "INT" .. busy }
    assert.same({ status = 130, out = "", err = "saelua: interrupted at -e:1\n" }, result)
    assert.equal(143, program.run({ "-e", program.signal_code "TERM" .. busy }).status)
  end)

  it("cannot be swallowed by pcall", function()
    local result = run_recipe(program.signal_code "INT"
      .. "local sleep = require('saelua.host').sleep\npcall(function() while true do sleep(0.01) end end)")
    assert.equal(130, result.status)
  end)

  it("in graceful mode wait for the loop to ask, and the status tells", function()
    local result = run_recipe(program.signal_code "INT" .. [[
      local host = require "saelua.host"
      assert(host.graceful(true) == false)
      while not host.interrupted() do host.sleep(0.01) end
      print("saved after", host.interrupted())]])
    assert.same({ status = 130, out = "saved after\tSIGINT\n", err = "" }, result)
  end)

  it("in graceful mode the second one interrupts", function()
    local result = run_recipe(program.signal_code("INT", 2) .. [[
      local host = require "saelua.host"
      host.graceful(true)
      while true do host.sleep(0.01) end]])
    assert.equal(130, result.status)
    assert.equal("saelua: interrupted at r.lua:3\n", result.err)
  end)

  it("end a compiled loop at the second one, in graceful mode at the third", function()
    local compiled = "local n = 0 while true do n = n + 1 end"
    assert.equal(130, run_recipe(program.signal_code("INT", 2) .. compiled).status)
    local graceful = "require('saelua.host').graceful(true) " .. compiled
    assert.equal(130, run_recipe(program.signal_code("INT", 3) .. graceful).status)
  end)

  it("are forgotten by clear_interrupt", function()
    local result = run_recipe(program.signal_code "TERM" .. [[
      local host = require "saelua.host"
      host.graceful(true)
      while not host.interrupted() do host.sleep(0.01) end
      print(host.clear_interrupt(), host.interrupted())]])
    assert.same({ status = 0, out = "SIGTERM\tfalse\n", err = "" }, result)
  end)
end)

describe("error reports", function()
  it("return results with their number when all is well", function()
    local ok, results = errors.call(function(...) return nil, ... end, { 1, nil })
    assert.is_true(ok)
    assert.equal(2, results.n)
    assert.equal(1, results[2])
  end)

  it("call on_error while the stack stands", function()
    local seen
    local function chunk()
      local inner = 42
      error("x" .. inner)
    end
    local ok = errors.call(chunk, {}, function(f)
      require("saelua.repl").locals_of(f, function(name, value) seen = { name, value } end)
    end)
    assert.is_false(ok)
    assert.same({ "inner", 42 }, seen)
  end)
end)

describe("the process module", function()
  it("knows clocks, memory and processors", function()
    local start = host.now()
    host.sleep(0.01)
    assert.is_true(host.now() - start >= 0.009)
    assert.is_true(host.rss() > 2 ^ 20 and host.peak_rss() >= host.rss() * 0.9)
    assert.is_true(host.cpu_count() >= 1)
    assert.is_false(host.is_tty(1000))
  end)

  it("makes, lists, renames and removes files and folders", function()
    local fs = require "saelua.fs"
    local deep = fs.join(dir, "x", "y")
    assert.is_true(fs.mkdir(deep))
    assert.is_true(fs.mkdir(deep))
    assert.is_true(fs.write(deep .. "/f.txt", "one"))
    assert.is_true(fs.write(deep .. "/f.txt", "two"))
    assert.equal("two", fs.read(deep .. "/f.txt"))
    assert.same({ "f.txt" }, fs.list(deep))
    assert.same("file", fs.stat(deep .. "/f.txt").type)
    assert.equal(3, fs.stat(deep .. "/f.txt").size)
    assert.is_true(fs.truncate(deep .. "/f.txt", 1))
    assert.equal("t", fs.read(deep .. "/f.txt"))
    assert.is_true(fs.rename(deep, dir .. "/z"))
    assert.is_true(fs.sync_dir(dir) and fs.sync_file(dir .. "/z/f.txt"))
    assert.is_true(fs.free_space(dir) > 0)
    assert.is_true(fs.remove_tree(dir .. "/z"))
    assert.is_false(fs.exists(dir .. "/z"))
  end)

  it("returns nil, message, errno for failures", function()
    local fs = require "saelua.fs"
    for _, call in ipairs { "list", "stat", "remove", "remove_tree", "sync_dir", "realpath" } do
      local ok, message, code = fs[call]("/nowhere/at/all")
      assert.is_nil(ok)
      assert.truthy(message:find("/nowhere/at/all: No such file", 1, true), message)
      assert.equal(2, code)
    end
    program.write(dir .. "/file", "")
    local ok, message, code = fs.mkdir(dir .. "/file/below")
    assert.is_nil(ok)
    assert.truthy(message:find("file/below", 1, true))
    assert.equal(20, code)
    assert.is_nil((fs.read(dir)))
    assert.has_error(function() return fs.nothing end)
  end)

  it("joins and splits paths", function()
    local fs = require "saelua.fs"
    assert.equal("a/b/c", fs.join("a/", "b", "", "c"))
    assert.equal("/x", fs.join("a", "/x"))
    assert.same({ "c", "a/b", ".", "/" }, { fs.basename "a/b/c/", fs.dirname "a/b/c", fs.dirname "a", fs.dirname "/a" })
  end)
end)
