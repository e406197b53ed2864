-- The lints catch what they claim to: each case is a small tree with one violation, or none.
package.path = "./?.lua;" .. package.path
local layers, budgets = require "tests.lint.layers", require "tests.lint.budgets"
local c_source = require "tests.lint.c_source"

local HEAD = "/* Head. */\n"

local function function_of(lines, parameters)
  return HEAD .. "int f(" .. (parameters or "void") .. ") {\n" .. ("  g();\n"):rep(lines - 2) .. "}\n"
end

-- name, rule, files, expected message (a plain part of it) or false for a clean tree, severity
local CASES = {
  { "down is fine", layers, { ["core/ops/a.c"] = '#include "core/tensor/b.h"\n#include "kernels/k.h"\n',
    ["core/tensor/b.h"] = "", ["kernels/k.h"] = "" }, false },
  { "kernels include core", layers, { ["kernels/cpu/a.c"] = '#include "core/tensor/b.h"\n' }, "lies above" },
  { "core includes bind", layers, { ["core/io/a.c"] = '#include "lua/bind/bind.h"\n' }, "lies above" },
  { "bind includes host", layers, { ["lua/bind/a.c"] = '#include "lua/host/host.h"\n' }, "lies above" },
  { "core includes lua.h", layers, { ["core/io/a.c"] = "#include <lua.h>\n" }, "core knows no Lua" },
  { "core includes lauxlib", layers, { ["core/io/a.c"] = '#include "lauxlib.h"\n' }, "core knows no Lua" },
  { "kernels include luajit", layers, { ["kernels/a.c"] = "#  include <luajit-2.1/lua.h>\n" }, "kernels know no Lua" },
  { "core includes cuda", layers, { ["core/io/a.c"] = "#include <cuda_runtime.h>\n" }, "core knows no CUDA" },
  { "core names cuda", layers, { ["core/io/a.c"] = "int x = cudaMalloc(1);\n" }, "core knows no CUDA" },
  { "cuda in comments and strings", layers, { ["core/io/a.c"] = '/* cuda */ // cuda\nchar *s = "cuda";\n' }, false },
  { "core includes oneDNN", layers, { ["core/ops/a.c"] = "#include <dnnl.h>\n" }, "kernels only" },
  { "ops includes model", layers, { ["core/ops/a.c"] = '#include "core/model/m.h"\n' }, "it lies above" },
  { "neighbour above", layers, { ["core/tensor/a.c"] = '#include "../ops/x.h"\n#include "core/ops/x.h"\n' },
    "it lies above" },
  { "cycle", layers, { ["core/sae/a.c"] = '#include "core/model/m.h"\n',
    ["core/model/m.h"] = '#include "core/sae/s.h"\n' }, "cycle" },
  { "unknown part of core", layers, { ["core/misc/a.c"] = '#include "core/base/b.h"\n' }, "not a known part" },
  { "library requires a recipe", layers, { ["lua/saelua/a.lua"] = 'local x = require "recipes.topk"\n' },
    "may not require" },
  { "library requires luafilesystem", layers, { ["lua/saelua/a.lua"] = 'local x = require("lfs")\n' },
    "may not require" },
  { "library requires its own", layers, { ["lua/saelua/a.lua"] = 'local x = require "saelua.core"\n' }, false },
  { "recipe reaches below", layers, { ["recipes/a.lua"] = 'local c = require "saelua.core"\n' }, "a recipe requires" },
  { "ffi.cdef", layers, { ["lua/saelua/a.lua"] = 'ffi.cdef "int f();"\n' }, "no ffi.cdef" },

  { "short function", budgets, { ["core/io/a.c"] = function_of(60) }, false },
  { "long function", budgets, { ["core/io/a.c"] = function_of(61) }, "f has 61 lines", "soft" },
  { "too long function", budgets, { ["core/io/a.c"] = function_of(101) }, "f has 101 lines" },
  { "seven parameters", budgets, { ["core/io/a.c"] =
    function_of(3, "int a, int b, int c, int d, int e, int f, int g") }, false },
  { "eight parameters", budgets, { ["core/io/a.c"] =
    function_of(3, "int a, int b, int c, int d, int e, int f, int g, int h") }, "8 parameters" },
  { "a callback counts once", budgets, { ["core/io/a.c"] =
    function_of(3, "int (*f)(int, int, int), int b, int c, int d, int e, int f, int g") }, false },
  { "prototype with eight", budgets, { ["core/io/a.h"] = HEAD ..
    "/* x */\nint sl_f(int a, int b, int c, int d,\n  int e, int f, int g, int h);\n" }, "8 parameters" },
  { "long C file", budgets, { ["core/io/a.c"] = HEAD .. ("int x;\n"):rep(500) }, "501 lines", "soft" },
  { "too long C file", budgets, { ["core/io/a.c"] = HEAD .. ("int x;\n"):rep(800) }, "801 lines" },
  { "long header", budgets, { ["core/io/a.h"] = HEAD .. ("int x;\n"):rep(200) }, "201 lines" },
  { "long Lua file", budgets, { ["lua/saelua/a.lua"] = "-- x\n" .. ("f()\n"):rep(400) }, "401 lines" },
  { "long recipe", budgets, { ["recipes/a.lua"] = "-- x\n" .. ("f()\n"):rep(81) }, "81 lines of experiment" },
  { "long options", budgets, { ["recipes/a.lua"] = "-- x\nlocal cfg = sl.config {\n" .. ("  a = { 1 },\n"):rep(90)
    .. "}\n" .. ("f()\n"):rep(79) }, false },
  { "prototype without comment", budgets, { ["core/io/a.h"] = HEAD .. "\nvoid sl_f(int a);\n" },
    "sl_f has no comment" },
  { "prototype with comment", budgets, { ["core/io/a.h"] =
    HEAD .. "\n/* Does. */\nvoid sl_f(int a);\nvoid sl_g(int a);\n" }, false },
  { "space at the end", budgets, { ["core/io/a.c"] = HEAD .. "int x; \n" }, "white space" },
  { "carriage return", budgets, { ["core/io/a.c"] = HEAD .. "int x;\r\n" }, "white space" },
  { "tab", budgets, { ["lua/saelua/a.lua"] = "-- x\nif x then\n\ty()\nend\n" }, "a tab" },
  { "mark", budgets, { ["lua/saelua/a.lua"] = "-- x\n-- TO" .. "DO: later\n" }, "finish it" },
  { "wide line", budgets, { ["core/io/a.c"] = HEAD .. "/* " .. ("x"):rep(120) .. " */\n" }, "more than 120", "soft" },
  { "too wide line", budgets, { ["core/io/a.c"] = HEAD .. "/* " .. ("x"):rep(140) .. " */\n" }, "columns" },
  { "no head comment", budgets, { ["core/io/a.c"] = "int x;\n" }, "begin the file" },
  { "no head comment in Lua", budgets, { ["lua/saelua/a.lua"] = "local x = 1\n" }, "begin the file" },
}

local function run(case)
  local found = {}
  case[2](case[3], function(path, line, message, severity)
    found[#found + 1] = { text = ("%s:%d: %s"):format(path, line, message), severity = severity or "hard" }
  end)
  if not case[4] then return #found == 0, found[1] and found[1].text end
  for _, one in ipairs(found) do
    if one.text:find(case[4], 1, true) and one.severity == (case[5] or "hard") then return true end
  end
  return false, #found == 0 and "nothing was reported" or found[1].severity .. " " .. found[1].text
end

local failures = 0
local function check(name, ok, why)
  if ok then return end
  failures = failures + 1
  io.stdout:write(("lint self-test: %s: %s\n"):format(name, why or "failed"))
end

for _, case in ipairs(CASES) do check(case[1], run(case)) end

-- The outline of C: what is a function, where it ends, what is not one.
local definitions, prototypes = c_source.outline([[
/* int in_comment(void) { } */
#define MACRO(x) \
  do { f(x); } while (0)
static const char brace[] = "}{", quote = '\'', more = '{';
typedef int (*callback)(int a, int b);
struct point { int x, y; };
static const struct point table[] = { { 1, 2 }, { 3, 4 } };
void declared(int a, char b);
__attribute__((target("avx2"))) static int
defined(const char *s, int (*f)(int, int))
{
  if (s) { return f(1, 2); }
  return 0;
}
]])
local f, p = definitions[1] or {}, prototypes[1] or {}
check("outline finds the function", #definitions == 1 and f.name == "defined" and f.params == 2,
  "found " .. #definitions)
check("outline finds its lines", f.first == 9 and f.last == 14, ("found %s-%s"):format(f.first, f.last))
check("outline finds the prototype", #prototypes == 1 and p.name == "declared" and p.params == 2,
  "found " .. #prototypes)

if failures > 0 then os.exit(1) end
io.stdout:write(("lint self-test: %d cases caught what they should\n"):format(#CASES + 3))
