-- Runs the lints of this folder over the source tree: luajit tests/lint/run.lua (from the tree's root).
-- Prints `path:line: message`, warnings with -w only; exit status 1 when a hard rule is broken, 0 with warnings alone.
package.path = "./?.lua;" .. package.path

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

local function source_files()
  local files, count = {}, 0
  local pipe = assert(io.popen("find kernels core lua recipes tests -type f \\( -name '*.c' -o -name '*.h' -o "
    .. "-name '*.lua' -o -name '*.cu' -o -name '*.cuh' \\)"))
  for path in pipe:lines() do
    files[path] = read(path)
    count = count + 1
  end
  pipe:close()
  return files, count
end

local files, count = source_files()
if count == 0 then error("no sources here: run this from the root of the tree", 0) end
local show_warnings = (...) == "-w"
local hard, soft = 0, 0
local function report(path, line, message, severity)
  if severity == "soft" then soft = soft + 1 else hard = hard + 1 end
  if severity == "soft" and not show_warnings then return end
  io.stdout:write(("%s:%d: %s%s\n"):format(path, line, severity == "soft" and "warning: " or "", message))
end
require "tests.lint.layers"(files, report)
require "tests.lint.budgets"(files, report)
io.stdout:write(("%d files: %d problems, %d warnings%s\n"):format(count, hard, soft,
  soft > 0 and not show_warnings and " (luajit tests/lint/run.lua -w)" or ""))
if hard > 0 then os.exit(1) end
