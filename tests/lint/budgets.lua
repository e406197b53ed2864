-- Sizes, comments and plain text: what keeps a file readable.
--
-- Soft budgets warn, hard ones fail. Data tables written by a script (head comment "written by tests/...") and
-- files with "_tables" in their name are not counted. Bodies that are included once per instruction set
-- (`*_body_*.h`) count as C files.
local c_source = require "tests.lint.c_source"

local FILE_BUDGETS = { -- pattern, soft, hard
  { "_body_[%w_]*%.h$", 500, 800 }, { "%.h$", 200, 200 }, { "%.c$", 500, 800 }, { "%.cuh?$", 500, 800 },
  { "^recipes/.*%.lua$", math.huge, math.huge }, { "%.lua$", 400, 400 },
}
local FUNCTION_SOFT, FUNCTION_HARD, MAX_PARAMETERS = 60, 100, 7
local SOFT_COLUMNS, HARD_COLUMNS = 120, 140
local RECIPE_LINES = 80
local MARKS = { "TO" .. "DO", "FIX" .. "ME", "XX" .. "X" } -- split, so that this file passes

local function is_data(path, text)
  return path:find "_tables%.[ch]$" or path:find "_data%.lua$" or text:sub(1, 600):find "written by tests/"
end

local function check_size(path, text, lines, report)
  if is_data(path, text) then return end
  for _, budget in ipairs(FILE_BUDGETS) do
    if path:find(budget[1]) then
      if #lines > budget[3] then
        report(path, #lines, ("%d lines; the limit is %d"):format(#lines, budget[3]))
      elseif #lines > budget[2] then
        report(path, #lines, ("%d lines; %d is enough for most files"):format(#lines, budget[2]), "soft")
      end
      return
    end
  end
end

local function check_text(path, lines, report)
  local wide, first_wide = 0, nil
  for number, line in ipairs(lines) do
    if line:find "[ \t\r]$" then report(path, number, "white space at the end of the line") end
    if line:find "\t" then report(path, number, "a tab; indent with two spaces") end
    for _, mark in ipairs(MARKS) do
      if line:find("%f[%w_]" .. mark .. "%f[^%w_]") then
        report(path, number, mark .. ": finish it, or open an issue and say why in a comment")
      end
    end
    local columns = path:find "%.[ch]$" and #line:gsub("[\128-\191]", "") or 0
    if columns > HARD_COLUMNS then
      report(path, number, ("%d columns; the limit is %d"):format(columns, HARD_COLUMNS))
    elseif columns > SOFT_COLUMNS then
      wide, first_wide = wide + 1, first_wide or number
    end
  end
  if wide > 0 then
    report(path, first_wide, ("%d lines with more than %d columns"):format(wide, SOFT_COLUMNS), "soft")
  end
end

-- A comment stands above it in the same unbroken block of lines (groups share one), or on the same line.
local function has_comment(lines, prototype)
  for number = prototype.last, 1, -1 do
    if not lines[number]:find "%S" and number < prototype.first then return false end
    if lines[number]:find "/%*" or lines[number]:find "//" then return true end
  end
  return false
end

-- The house's verbs for lifetimes mean the same everywhere, as do the openers of the bindings.
local function has_fixed_meaning(name)
  return name:find "_retain$" or name:find "_release$" or name:find "_close$" or name:find "^sl_lua_open_"
end

local function check_functions(path, text, lines, report)
  local definitions, prototypes = c_source.outline(text)
  for _, f in ipairs(definitions) do
    local length = f.last - f.first + 1
    if length > FUNCTION_HARD then
      report(path, f.first, ("%s has %d lines; the limit is %d"):format(f.name, length, FUNCTION_HARD))
    elseif length > FUNCTION_SOFT then
      report(path, f.first, ("%s has %d lines; %d is enough for most"):format(f.name, length, FUNCTION_SOFT), "soft")
    end
    if f.params > MAX_PARAMETERS then
      report(path, f.first, ("%s has %d parameters; above %d use a struct"):format(f.name, f.params, MAX_PARAMETERS))
    end
  end
  for _, p in ipairs(prototypes) do
    if p.params > MAX_PARAMETERS then
      report(path, p.first, ("%s has %d parameters; above %d use a struct"):format(p.name, p.params, MAX_PARAMETERS))
    end
    if path:find "%.h$" and p.name:find "^sl_[^_]" and not has_fixed_meaning(p.name) and not has_comment(lines, p) then
      report(path, p.first, p.name .. " has no comment: say what it does, takes, returns and owns")
    end
  end
end

-- Lines of code outside the comments and the sl.config { ... } block.
local function check_recipe(path, text, report)
  local body = text:gsub("sl%.config%s*%b{}", "sl.config{}"):gsub("%-%-%[%[.-%]%]", "")
  local count = 0
  for _, line in ipairs(c_source.lines(body)) do
    if line:gsub("%-%-.*", ""):find "%S" then count = count + 1 end
  end
  if count > RECIPE_LINES then
    report(path, 1, ("%d lines of experiment; the limit is %d (options not counted)"):format(count, RECIPE_LINES))
  end
  if not text:find "^%-%-" then report(path, 1, "a recipe begins with a comment that says what it does") end
end

local function check_head(path, text, report)
  if path:find "%.[ch]$" and not text:find "^/%*" then
    report(path, 1, "begin the file with a comment: what it is, what it is not, who owns what")
  elseif path:find "%.lua$" and not text:find "^%-%-" and not text:find "^#!.-\n%-%-" then
    report(path, 1, "begin the file with a comment: what it is")
  end
end

--- @tparam table files path -> text
-- @tparam function report report(path, line, message, "soft" for a warning)
return function(files, report)
  local paths = {}
  for path in pairs(files) do paths[#paths + 1] = path end
  table.sort(paths)
  for _, path in ipairs(paths) do
    local text = files[path]
    local lines = c_source.lines(text)
    check_size(path, text, lines, report)
    check_text(path, lines, report)
    check_head(path, text, report)
    if path:find "%.[ch]$" and not is_data(path, text) then check_functions(path, text, lines, report) end
    if path:find "^recipes/[^/]*%.lua$" then check_recipe(path, text, report) end
  end
end
