--- Nearest names, for "did you mean" hints.
-- @module saelua.suggest
local suggest = {}

--- Edit distance with transpositions (optimal string alignment), letter case ignored.
-- @tparam string a
-- @tparam string b
-- @treturn integer number of single-character edits
function suggest.distance(a, b)
  a, b = a:lower(), b:lower()
  local before, above, row = {}, {}, {}
  for j = 0, #b do above[j] = j end
  for i = 1, #a do
    row[0] = i
    local ca = a:byte(i)
    for j = 1, #b do
      local cb = b:byte(j)
      local best = math.min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (ca == cb and 0 or 1))
      if i > 1 and j > 1 and ca == b:byte(j - 1) and cb == a:byte(i - 1) then
        best = math.min(best, before[j - 2] + 1)
      end
      row[j] = best
    end
    before, above, row = above, row, before
  end
  return above[#b]
end

-- How far off a name may be: a third of its length, at least one edit.
local function limit(name) return math.max(1, math.floor(#name / 3 + 0.5)) end

-- One name inside the other ("size" in "batch_size") is a likely slip too.
local function contained(name, candidate)
  local short, long = name:lower(), candidate:lower()
  if #short > #long then short, long = long, short end
  return #short >= 3 and long:find(short, 1, true) ~= nil
end

--- The candidates nearest to a name, best first; empty when none is near.
-- @tparam string name what was written
-- @tparam {string,...} candidates what exists
-- @tparam[opt=3] integer max how many to return
-- @treturn {string,...}
function suggest.nearest(name, candidates, max)
  local found = {}
  for _, candidate in ipairs(candidates) do
    local d = suggest.distance(name, candidate)
    if d <= limit(name) then
      found[#found + 1] = { candidate, d }
    elseif contained(name, candidate) then
      found[#found + 1] = { candidate, d + 100 }
    end
  end
  table.sort(found, function(x, y)
    if x[2] ~= y[2] then return x[2] < y[2] end
    return x[1] < y[1]
  end)
  local names = {}
  for i = 1, math.min(max or 3, #found) do names[i] = found[i][1] end
  return names
end

--- The hint for a message: `; did you mean "k"?`, or the whole list when it is short, or "".
-- @tparam string name
-- @tparam {string,...} candidates
-- @treturn string
function suggest.hint(name, candidates)
  local near = suggest.nearest(name, candidates)
  if #near > 0 then
    for i, candidate in ipairs(near) do near[i] = '"' .. candidate .. '"' end
    return "; did you mean " .. table.concat(near, " or ") .. "?"
  end
  if #candidates == 0 or #candidates > 12 then return "" end
  local all = {}
  for i, candidate in ipairs(candidates) do all[i] = candidate end
  table.sort(all)
  return "; there are: " .. table.concat(all, ", ")
end

--- The string keys of a table, sorted.
-- @tparam table t
-- @treturn {string,...}
function suggest.keys(t)
  local names = {}
  for key in pairs(t) do
    if type(key) == "string" then names[#names + 1] = key end
  end
  table.sort(names)
  return names
end

return suggest
