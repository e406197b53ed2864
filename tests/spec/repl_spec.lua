-- The REPL through a pipe; completion; printing; the documentation behind :help.
local complete = require "saelua.complete"
local docs = require "saelua.docs"
local host = require "saelua.host"
local pretty = require "saelua.pretty"
local program = require "tests.support.program"
local strict = require "saelua.strict"

local function session(lines, ...)
  return program.run { "-i", stdin = table.concat(lines, "\n") .. "\n", ... }
end

describe("the REPL", function()
  it("prints values, keeps locals and globals, and remembers the last value", function()
    local result = session { "1 + 1", "_ * 10", "local a = 5", "b = a + 1", "a, b", "= 'x'", "nil", "print 'said'" }
    assert.same({ status = 0, out = '2\n20\n5\t6\n"x"\nnil\nsaid\n', err = "" }, result)
  end)

  it("takes statements over several lines", function()
    local result = session { "for i = 1, 2 do", "  print(i)", "end", "f = function(x)", "return x + 1", "end", "f(",
      "3)" }
    assert.same({ status = 0, out = "1\n2\n4\n", err = "" }, result)
  end)

  it("survives every error", function()
    local result = session { "nope", "error { 1 }", "error()", "x = = 3", "local function f() return 1 + f() end f()",
      "newproxy 'x'",
      "setmetatable({}, { __tostring = function() error 'inside' end })", "'alive'", "for" }
    assert.equal(0, result.status)
    assert.truthy(result.out:find('"alive"\n$'), result.out)
    for _, part in ipairs { "repl:1: undeclared variable 'nope'",
      "an error that is no text: { 1 }", "unexpected symbol",
      "stack overflow", "repl:1: bad argument #1 to 'newproxy'", "'<name>' expected near '<eof>'" } do
      assert.truthy(result.err:find(part, 1, true), part .. "\nnot in\n" .. result.err)
    end
    assert.truthy(result.out:find("printing it failed: ", 1, true))
  end)

  it("goes on after Ctrl-C", function()
    local result = session { program.signal_code "INT" .. "while true do end", "'after'",
      program.signal_code "INT" .. "while true do end", "'again'" }
    assert.same({ status = 0, out = '"after"\n"again"\n', err = "interrupted\ninterrupted\n" }, result)
  end)

  it("follows a recipe with its locals, also one that failed", function()
    local dir = program.folder()
    local path = program.write(dir .. "/r.lua",
      "local a, b = 1, { 2 }\nlocal function f() return a end\nprint 'ran' -- end")
    local result = session({ "a, b[1], f()", "b" }, path)
    assert.same({ status = 0, out = "ran\n1\t2\t1\n{ 2 }\n", err = "" }, result)

    program.write(path, "local a = 7\nlocal c = a .. {}\nlocal d = 3")
    result = session({ "a", "d" }, path)
    assert.equal("7\n", result.out)
    assert.truthy(result.err:find("r.lua:2: attempt to concatenate", 1, true))
    assert.truthy(result.err:find("undeclared variable 'd'", 1, true))

    program.write(path, "local a = 7\nreturn a")
    assert.truthy(session({ "a" }, path).err:find("undeclared variable 'a'", 1, true))
    host.remove_tree(dir)
  end)

  it("knows :help, :time, :reload and :quit", function()
    local result = session { ":help", ":help schedule.cosine", ":time 1 + 1", ":reload", ":helo", ":quit", "'never'" }
    assert.equal(0, result.status)
    assert.truthy(result.out:find(":time CODE", 1, true))
    assert.truthy(result.out:find("schedule.cosine(peak, steps, [options])", 1, true))
    assert.truthy(result.out:find("\n2\n[%d.e+-]+ %a?s\n"))
    assert.truthy(result.out:find("modules will be loaded anew", 1, true))
    assert.is_nil(result.out:find("never", 1, true))
    assert.equal("no command ':helo'; did you mean \"help\"?\n", result.err)
  end)
end)

describe("the REPL on a terminal", function()
  it("completes, edits, recalls, drops a line on Ctrl-C and keeps a history", function()
    if os.execute("command -v script >/dev/null 2>&1") ~= 0 then return pending "script (bsdutils) is not here" end
    local dir = program.folder()
    -- Keys go through a pseudo terminal, in portions, as a person would send them.
    local keys = { "string.forma\\t'%%d|', 42)\\r", "half a line\\003", "1 + 22\\r", "\\033[A\\r", "for\\r",
      "\\003", "\\004" }
    local typing = { "i=0; until grep -qs 'help tells' out || [ $i -gt 200 ]; do sleep 0.1; i=$((i + 1)); done" }
    for _, portion in ipairs(keys) do typing[#typing + 1] = ('printf "%s"; sleep 0.3'):format(portion) end
    local pattern = "cd %s && (%s) | TERM=xterm NO_COLOR=1 XDG_STATE_HOME=%s env --default-signal=INT "
      .. "timeout --foreground 60 script -qefc %s /dev/null >out 2>&1"
    local folder, command = program.quote(dir), program.quote(program.quote(program.path))
    os.execute(pattern:format(folder, table.concat(typing, "; "), folder, command))
    local out = program.read(dir .. "/out"):gsub("\r", "")
    assert.truthy(out:find("^saelua [^\n]*:help"), out)
    assert.truthy(out:find('\n"42|"\n', 1, true), out)
    local _, sums = out:gsub("\n23\n", "\n")
    assert.equal(2, sums, out)
    assert.is_nil(out:find("half a line\n%S*:1:"), out)
    local history = program.read(dir .. "/saelua/history")
    assert.truthy(history:find("1\\040+\\04022", 1, true), history)
    assert.is_nil(history:find("half", 1, true), history)
    host.remove_tree(dir)
  end)
end)

describe("completion", function()
  local env = strict.environment({ table = table, type = type, string = string }, { assign = true })
  local called = 0
  rawset(env, "thing", setmetatable({ alpha = 1, alphabet = { 1 }, ["no name"] = 1, __hidden = 1 },
    { __index = { beta = print, inherited = 2 } }))
  rawset(env, "trap", setmetatable({}, { __index = function() called = called + 1 end }))
  local object = newproxy(true)
  getmetatable(object).__index = { forward = print, size = 3 }
  rawset(env, "unit", object)
  rawset(env, "word", "text")

  local function check(text, insert, names)
    local got, list = complete.line(text, env, { "help", "quit" })
    assert.equal(insert, got)
    assert.same(names, list)
  end

  it("walks globals, tables and __index tables", function()
    check("typ", "e(", { "type" })
    check("print(thing.al", "pha", { "alpha", "alphabet" })
    check("thing.alphabe", "t.", { "alphabet" })
    check("thing.be", "ta(", { "beta" })
    check("thing:", "beta(", { "beta" })
    check("uni", "t:", { "unit" })
    check("unit:", "forward(", { "forward" })
    check("unit.s", "ize", { "size" })
    check("word:upp", "er(", { "upper" })
    check("thing.zzz", "", {})
    check("a.b.c", "", {})
    check("wh", "ile", { "while" })
    check(":q", "uit ", { "quit" })
  end)

  it("calls no metamethod and says nothing after calls", function()
    check("trap.x.", "", {})
    check("trap.", "", {})
    assert.equal(0, called)
    check("f().al", "", {})
  end)

  it("hides names with two underscores until asked", function()
    local _, names = complete.line("thing.", env)
    assert.same({ "alpha", "alphabet", "beta", "inherited" }, names)
    check("thing.__", "hidden", { "__hidden" })
  end)
end)

describe("printing", function()
  it("shows tables sorted, nested, cyclic and cut", function()
    assert.equal('{ 1, "two", a = true, ["b c"] = {} }', pretty.text { 1, "two", ["b c"] = {}, a = true })
    local cycle = { n = 1 }
    cycle.self = cycle
    assert.equal("{ n = 1, self = <cycle> }", pretty.text(cycle))
    assert.equal("{ { {...} } }", pretty.text({ { { { 1 } } } }, { depth = 2 }))
    local long = {}
    for i = 1, 100 do long[i] = i end
    assert.equal("{ 1, 2, 3, ... 97 more }", pretty.text(long, { items = 3 }))
    assert.equal("{\n  aaaaaaaaaa = 1,\n  bbbbbbbbbb = 2\n}",
      pretty.text({ aaaaaaaaaa = 1, bbbbbbbbbb = 2 }, { width = 20 }))
  end)

  it("shows scalars and strings as Lua would write them", function()
    assert.same({ '"a\\n\\"b\\""', "0.1", "nan", "-inf", "1e+300" },
      { pretty.text 'a\n"b"', pretty.text(0.1), pretty.text(0 / 0), pretty.text(-math.huge), pretty.text(1e300) })
    assert.truthy(pretty.text(("x"):rep(1000)):find("... (1000 bytes)", 1, true))
    assert.truthy(pretty.text(function() end):find("^<function: .*repl_spec.lua:%d+>$"))
  end)

  it("asks __pretty, then __tostring, also of userdata, and survives their errors", function()
    local object = newproxy(true)
    getmetatable(object).__tostring = function() return "an object" end
    assert.equal("{ an object }", pretty.text { object })
    getmetatable(object).__pretty = function(_, options) return "wide " .. options.width end
    assert.equal("wide 70", pretty.text(object, { width = 70 }))
    getmetatable(object).__pretty = function() error "no" end
    assert.truthy(pretty.text(object):find("printing it failed", 1, true))
  end)
end)

describe("documentation", function()
  it("is read from Lua comments", function()
    local entries = {}
    docs.parse_lua([[
--- About it.
-- @module saelua.sample
local M = {}

--- Adds numbers.
-- More text.
-- @tparam integer a the first
-- @tparam[opt=1] number b the second,
--   on two lines
-- @treturn number the sum
function M.add(a, b) return a + (b or 1) end

-- not documentation
function M.hidden() end

--- A method.
function Thing:go() end
]], "sample.lua", function(entry) entries[#entries + 1] = entry end)
    assert.equal(3, #entries)
    assert.equal("sample", entries[1].name)
    local add = entries[2]
    assert.equal("sample.add", add.name)
    assert.equal(11, add.line)
    assert.same({ name = "b", type = "number", optional = true, default = "1", text = "the second, on two lines" },
      add.parameters[2])
    assert.same({ "number the sum" }, add.results)
    assert.equal("Thing:go", entries[3].name)
  end)

  it("is read from C comments", function()
    local entries = {}
    docs.parse_c("/*** Making.\n * @module saelua.core */\n/* plain */\n/*** Zeros.\n * @function zeros\n"
      .. " * @tparam {integer,...} shape\n * @treturn Tensor */\n", "x.c",
      function(entry) entries[#entries + 1] = entry end)
    assert.equal("sl.zeros", entries[2].name)
    assert.equal("{integer,...}", entries[2].parameters[1].type)
    assert.equal("Zeros.", entries[2].text[1])
  end)

  it("is found by full name, short name, module and value", function()
    local schedule = require "saelua.schedule"
    assert.equal("schedule.cosine", docs.find("sl.schedule.cosine")[1].name)
    assert.equal("schedule.cosine", docs.find("cosine")[1].name)
    assert.equal("schedule.cosine", docs.find("anything", schedule.cosine)[1].name)
    local text = docs.text(docs.find("schedule")[1])
    assert.truthy(text:find("schedule.warmup(steps, inner, [options])", 1, true))
    assert.same({}, docs.find "no_such_name_at_all")
    assert.equal("json.null", docs.text(docs.find("json.null")[1]):match("^[^\n]+"))
  end)
end)
