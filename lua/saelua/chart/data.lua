--- Numbers made ready for charts: thinning of long series, cleaning of points, counting into bins.
-- Plain arithmetic on Lua lists; knows nothing of Chart.js or HTML. Used by `saelua.chart`.
--
-- @module saelua.chart.data

local M = {}

--- Longest series drawn point by point; longer ones are thinned (see `thin`).
M.max_points = 20000
--- Number of intervals that a longer series is thinned to: more than a chart has pixel columns.
local THIN_INTERVALS = 1500

--- Whether `v` is a number that can be placed on an axis.
-- @param v anything
-- @treturn boolean
function M.finite(v)
  return type(v) == "number" and v == v and v ~= math.huge and v ~= -math.huge
end

local finite = M.finite

--- Places of the least, the greatest and the first missing value among `y[first..last]`, each nil if there is none.
local function extremes(y, first, last)
  local low, high, gap
  for i = first, last do
    local v = y[i]
    if not finite(v) then
      gap = gap or i
    else
      if not low or v < y[low] then low = i end
      if not high or v > y[high] then high = i end
    end
  end
  return low, high, gap
end

--- Thin a long series so that its line looks the same: of every interval of `#x / intervals` points the first,
-- least, greatest and last stay (M4, Jugel et al. 2014), so no spike is lost. Of points that are not finite one an
-- interval stays, so a gap stays a gap.
-- @tparam {number,...} x positions, ascending
-- @tparam {number,...} y values; NaN and infinities allowed
-- @tparam number intervals
-- @treturn {number,...} x, thinned
-- @treturn {number,...} y, thinned
function M.thin(x, y, intervals)
  local n, out_x, out_y = #x, {}, {}
  intervals = math.min(intervals, n)
  for b = 1, intervals do
    local first, last = math.floor((b - 1) * n / intervals) + 1, math.floor(b * n / intervals)
    local low, high, gap = extremes(y, first, last)
    local keep = { first, low or first, high or first, gap or first, last }
    table.sort(keep)
    for k, i in ipairs(keep) do
      if i ~= keep[k - 1] then out_x[#out_x + 1], out_y[#out_y + 1] = x[i], y[i] end
    end
  end
  return out_x, out_y
end

--- The points of a series as they go to the page.
-- @tparam table s `x`, `y` (lists; a missing y is a gap), `sparse` (gaps are dropped instead of kept)
-- @tparam boolean log_y values <= 0 are gaps
-- @treturn table `x`, `y`, `shown` = number of finite points, `thinned` = length before thinning, or nil
function M.points(s, log_y)
  local x, y, shown, n = {}, {}, 0, #s.x
  for i = 1, n do
    local v = s.y[i]
    local gap = not finite(v) or (log_y and v <= 0)
    if finite(s.x[i]) and not (gap and s.sparse) then
      x[#x + 1], y[#y + 1] = s.x[i], gap and 0 / 0 or v
      if not gap then shown = shown + 1 end
    end
  end
  if #x <= M.max_points then return { x = x, y = y, shown = shown } end
  x, y = M.thin(x, y, THIN_INTERVALS)
  return { x = x, y = y, shown = shown, thinned = n }
end

--- Finite values, in log10 when `log` (values <= 0 are then only counted), with their ends.
local function usable(values, log)
  local out, zeros, low, high = {}, 0, nil, nil
  for _, v in ipairs(values) do
    if finite(v) then
      if log and v <= 0 then
        zeros = zeros + 1
      else
        v = log and math.log10(v) or v
        out[#out + 1] = v
        low, high = math.min(low or v, v), math.max(high or v, v)
      end
    end
  end
  return out, zeros, low or 0, high or (log and 0 or 1)
end

--- Ends of the bins: whole powers of ten on a logarithmic axis, never an empty span.
local function span(low, high, options)
  if options.log_x then
    low, high = math.floor(low), math.ceil(high)
    return low == high and low - 1 or low, high
  end
  low, high = math.min(low, options.x_min or low), math.max(high, options.x_max or high)
  if low == high then return low - 0.5, high + 0.5 end
  return low, high
end

--- Least and greatest finite value and how many there are; 0 and 1 when there is none.
-- @tparam {number,...} values
-- @treturn number least
-- @treturn number greatest
-- @treturn number how many
function M.range(values)
  local out, _, low, high = usable(values, false)
  return low, high, #out
end

--- Ends of an axis that shows `low..high`: on a logarithmic one a little room, as its scale adds whole decades.
-- @tparam number low
-- @tparam number high
-- @tparam boolean log
-- @treturn number
-- @treturn number
function M.room(low, high, log)
  if log then
    local room = math.max(1.06, (high / low) ^ 0.04)
    return low / room, high * room
  end
  if low == high then return low - 0.5, high + 0.5 end
  return low, high
end

--- Count values into equal bins; with `log_x` the bins are equal in log10 and values <= 0 are counted apart.
-- @tparam table options `values`, `bins`, `log_x`, `x_min`, `x_max` as in `chart.histogram`
-- @treturn {number,...} edges, one more than bins (log10 of the values with `log_x`)
-- @treturn {number,...} counts
-- @treturn number how many values were <= 0 (always 0 without `log_x`)
-- @treturn number how many values are in the bins
function M.count(options)
  local values, zeros, low, high = usable(options.values, options.log_x)
  low, high = span(low, high, options)
  local default = options.log_x and math.max(10, math.min(60, 10 * (high - low))) or 50
  local bins = options.bins or default
  local edges, counts = {}, {}
  for b = 0, bins do edges[b + 1] = low + (high - low) * b / bins end
  for b = 1, bins do counts[b] = 0 end
  for _, v in ipairs(values) do
    local b = math.min(bins, math.floor((v - low) / (high - low) * bins) + 1)
    counts[b] = counts[b] + 1
  end
  return edges, counts, zeros, #values
end

return M
