-- Runs one recipe's cases from tests/recipes/smoke.lua as a user would: the program, in a fresh folder.
--
--   saelua tests/recipes/run_smoke.lua RECIPE        (also: luajit ...)
--
-- Environment: SAELUA_BIN the program, SAELUA_ROOT the source tree, SAELUA_BUILD where the folder is made;
-- without them: the working folder and its build/dev.

local function working_folder()
  local pipe = assert(io.popen "pwd")
  local path = pipe:read "*l"
  pipe:close()
  return path
end

local root = os.getenv "SAELUA_ROOT" or working_folder()
local program = os.getenv "SAELUA_BIN" or root .. "/build/dev/saelua"
local build = os.getenv "SAELUA_BUILD" or root .. "/build/dev"

local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

local function read(path)
  local file, why = io.open(path, "rb")
  if not file then return nil, why end
  local text = file:read "*a"
  file:close()
  return text
end

-- Exit status of a shell command; a signal counts as 128 + its number.
local function shell(command)
  local raw = os.execute(command)
  if type(raw) == "number" then return raw >= 256 and math.floor(raw / 256) or (raw == 0 and 0 or 128 + raw) end
  return raw and 0 or 1
end

-- Non-empty files that match a shell glob below `folder`.
local function matches(folder, glob)
  local command = 'cd %s && for f in %s; do [ -s "$f" ] && echo "$f"; done'
  local pipe = assert(io.popen(command:format(quote(folder), glob)))
  local found = {}
  for line in pipe:lines() do found[#found + 1] = line end
  pipe:close()
  return found
end

-- The numbers of one field of a metrics.jsonl, in order; null and absent values are skipped.
local function series(folder, glob, field)
  local values = {}
  local key = '"' .. field:gsub("%p", "%%%0") .. '"%s*:%s*(%-?[%d.eE+-]+)'
  for _, path in ipairs(matches(folder, glob)) do
    for line in assert(io.open(folder .. "/" .. path)):lines() do values[#values + 1] = tonumber(line:match(key)) end
  end
  return values
end

local function mean(values, first, last)
  local sum = 0
  for i = first, last do sum = sum + values[i] end
  return sum / (last - first + 1)
end

local function check_falls(folder, want)
  local values = series(folder, want.file, want.field)
  local quarter = math.floor(#values / 4)
  if quarter == 0 then
    return ("%s has %d values of '%s', at least 4 are needed to see it fall"):format(want.file, #values, want.field)
  end
  local before, after = mean(values, 1, quarter), mean(values, #values - quarter + 1, #values)
  local share = want.by or 0
  if after <= before * (1 - share) then return nil end
  return ("'%s' went from %g to %g; expected at least %g %% less"):format(want.field, before, after, 100 * share)
end

local function check_last(folder, want)
  local values = series(folder, want.file, want.field)
  local value = values[#values]
  if not value then return ("%s has no value of '%s'"):format(want.file, want.field) end
  local text = "'%s' ended at %g, expected %s %g"
  if want.above and value <= want.above then return text:format(want.field, value, "above", want.above) end
  if want.below and value >= want.below then return text:format(want.field, value, "below", want.below) end
end

-- What the case's folder and output lack, in words, passed to `complain`.
local function check_outputs(folder, case, output, complain)
  for _, pattern in ipairs(case.prints or {}) do
    if not output:find(pattern) then complain(("the output does not match '%s'"):format(pattern)) end
  end
  for _, glob in ipairs(case.files or {}) do
    if #matches(folder, glob) == 0 then complain("no such file, or an empty one: " .. glob) end
  end
  for _, glob in ipairs(case.absent or {}) do
    if #matches(folder, glob) > 0 then complain("should not exist: " .. glob) end
  end
  if case.falls then complain(check_falls(folder, case.falls)) end
  if case.last then complain(check_last(folder, case.last)) end
end

-- Runs one case; returns the complaints, the output and the command line.
local function run_case(folder, recipe, case)
  local problems, words = {}, {}
  local function complain(text) problems[#problems + 1] = text end
  for _, word in ipairs(case.args or {}) do words[#words + 1] = quote(tostring(word)) end
  local line = ("%s %s %s"):format(quote(program), quote(recipe), table.concat(words, " "))
  local status = shell(("cd %s && %s </dev/null >log.txt 2>&1"):format(quote(folder), line))
  local expected = case.status or 0
  if status ~= expected then complain(("exit status %d, expected %d"):format(status, expected)) end
  local output = read(folder .. "/log.txt") or ""
  check_outputs(folder, case, output, complain)
  return problems, output, line
end

local function main(name)
  local cases = dofile(root .. "/tests/recipes/smoke.lua")[name]
  if not cases then
    io.stderr:write(("recipes/%s.lua has no smoke run: add an entry to tests/recipes/smoke.lua\n"):format(name))
    return false
  end
  local folder = ("%s/smoke/%s"):format(build, name)
  assert(shell(("rm -rf %s && mkdir -p %s"):format(quote(folder), quote(folder))) == 0, "cannot make " .. folder)
  local good = true
  for i, case in ipairs(cases) do
    local problems, output, line = run_case(folder, ("%s/recipes/%s.lua"):format(root, name), case)
    if #problems > 0 then
      good = false
      io.stderr:write(("case %d of %s: %s\n  %s\n-- the end of its output:\n%s\n"):format(i, name,
        table.concat(problems, "\n  "), line, output:sub(-3000)))
    end
  end
  if good then shell(("rm -rf %s"):format(quote(folder))) end
  return good
end

local name = ... or (rawget(_G, "arg") or {})[1]
if not name then error("run_smoke: name a recipe, for example topk_bert", 0) end
if not main(name) then os.exit(1, true) end
