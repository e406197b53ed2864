--- Training curves of a report: one chart a quantity, one line an SAE, and the small curves in the tiles.
--
-- @module saelua.report.curves

local chart = require "saelua.chart"
local finite = require("saelua.chart.data").finite
local html = require "saelua.html"
local metrics = require "saelua.report.metrics"

local M = {}

-- Quantities with a chart of their own, in order. `scale` multiplies values; `floor`, `ceiling` hold the frame.
local CURVES = {
  { key = "loss", title = "Training loss", y_label = "loss (as optimised)", log = true },
  { key = "explained_variance", title = "Explained variance", y_label = "explained variance (share)",
    ceiling = 1, floor = 0 },
  { key = "fvu", title = "Variance unexplained", y_label = "FVU (share)", log = true },
  { key = "l0", title = "L0", y_label = "active latents per token", zero = true },
  { key = "dead_fraction", title = "Dead latents", y_label = "dead latents (%)", scale = 100, zero = true },
  { key = "ce_recovered", title = "CE recovered", y_label = "CE recovered (%)", scale = 100 },
  { key = "tokens_per_s", title = "Speed", y_label = "training tokens / second", zero = true },
  { key = "lr", title = "Learning rate", y_label = "learning rate", zero = true,
    note = "Step size of the optimiser, as the schedule set it." },
}

--- Positions of a set of curves: optimiser steps, else training tokens, else the row number.
local function positions(curves, n)
  if type(curves.step) == "table" and #curves.step > 0 then return curves.step, "optimiser step" end
  if type(curves.tokens) == "table" and #curves.tokens > 0 then return curves.tokens, "training tokens" end
  local rows = {}
  for i = 1, n do rows[i] = i end
  return rows, "row of metrics.jsonl"
end

local function length(list) -- of a list that may have holes
  local n = 0
  for i in pairs(list) do if type(i) == "number" and i > n then n = i end end
  return n
end

local function scaled(list, scale, n)
  local out = {}
  for i = 1, n do out[i] = type(list[i]) == "number" and list[i] * (scale or 1) or 0 / 0 end
  return out
end

--- Series of one quantity over all SAEs: training values and, under `eval/<key>`, held-out ones.
local function collect(saes, key, scale)
  local series, x_label = {}, nil
  for i, sae in ipairs(saes) do
    for _, kind in ipairs { "", "eval/" } do
      local list = sae.curves[kind .. key]
      if type(list) == "table" then
        local n = length(list)
        local x, label = positions(sae.curves, n)
        x_label = x_label or label
        local what = kind == "" and "training" or "held-out"
        series[#series + 1] = {
          label = #saes > 1 and sae.name .. (kind == "" and "" or ", held-out") or what,
          x = x, y = scaled(list, scale, #x), sparse = kind ~= "",
          colour = #saes > 1 and i or nil, -- training and held-out values of one SAE share a colour
        }
      end
    end
  end
  return series, x_label
end

-- Lowest and highest value, and the points of the longest series.
local function extent(series)
  local low, high, most = nil, nil, 0
  for _, s in ipairs(series) do
    local n = 0
    for _, v in ipairs(s.y) do
      if finite(v) then low, high, n = math.min(low or v, v), math.max(high or v, v), n + 1 end
    end
    most = math.max(most, n)
  end
  return low, high, most
end

--- Frame and scale of an axis: zero where it means something, a log axis only for positive values over a decade.
local function frame(spec, low, high)
  if not low then return {} end
  local out = { log_y = (spec.log and low > 0 and high / low > 8) or nil }
  if spec.zero and low >= 0 then out.y_min = 0 end
  if spec.floor and low < spec.floor then out.y_min = spec.floor end
  if spec.ceiling and high <= spec.ceiling then out.y_max = spec.ceiling end
  return out
end

local function draw(spec, saes, definitions)
  local series, x_label = collect(saes, spec.key, spec.scale)
  local low, high, points = extent(series)
  if points < 2 then return nil end -- one point is a number, not a curve: the tables show it
  if spec.other and low == high then return nil end -- a coefficient that never moved, a term that was off
  local options, metric = frame(spec, low, high), metrics.by_key[spec.key]
  local note = spec.note or ""
  if metric then
    local formula, text = metrics.definition(metric, definitions)
    note = html.escape(metric.not_evaluated and text or formula .. ".")
  end
  if options.y_min and low < options.y_min then
    note = note .. (" Values down to %s lie below the frame."):format(html.number(low))
  end
  options.title, options.x_label, options.y_label = spec.title, x_label, spec.y_label
  options.series, options.note = series, note
  return chart.line(options)
end

--- Keys that some SAE recorded and that have no chart of their own, sorted.
local function other_keys(saes)
  local known, found, out = { step = true, tokens = true }, {}, {}
  for _, spec in ipairs(CURVES) do known[spec.key] = true end
  for _, sae in ipairs(saes) do
    for key, list in pairs(sae.curves) do
      local base = tostring(key):gsub("^eval/", "")
      if not known[base] and not found[base] and type(list) == "table" then
        found[base], out[#out + 1] = true, base
      end
    end
  end
  table.sort(out)
  return out
end

--- Charts of everything that was recorded in training.
-- @tparam {table,...} saes each with `name` and `curves`
-- @tparam ?table definitions see `metrics.definition`
-- @treturn {table,...} charts, known quantities first
function M.charts(saes, definitions)
  local out = {}
  for _, spec in ipairs(CURVES) do out[#out + 1] = draw(spec, saes, definitions) end
  for _, key in ipairs(other_keys(saes)) do
    out[#out + 1] = draw({ key = key, title = key, y_label = key, other = true }, saes, definitions)
  end
  return out
end

--- Last finite value of a curve, or nil.
-- @tparam ?{number,...} list
-- @treturn ?number
function M.last(list)
  for i = list and length(list) or 0, 1, -1 do
    if finite(list[i]) then return list[i] end
  end
end

--- Median of the finite values in the second half of a curve, or nil: a rate without its warm-up.
-- @tparam ?{number,...} list
-- @treturn ?number
function M.late_median(list)
  local n, values = list and length(list) or 0, {}
  for i = math.floor(n / 2) + 1, n do
    if finite(list[i]) then values[#values + 1] = list[i] end
  end
  table.sort(values)
  if #values == 0 then return nil end
  local middle = (#values + 1) / 2
  return (values[math.floor(middle)] + values[math.ceil(middle)]) / 2
end

--- A small curve without axes, as SVG: at most 80 means of equal parts. Empty text if there are fewer than two.
-- @tparam ?{number,...} list
-- @treturn string HTML
function M.spark(list)
  local n, parts = list and length(list) or 0, {}
  local count = math.min(80, n)
  for b = 1, count do
    local sum, used = 0, 0
    for i = math.floor((b - 1) * n / count) + 1, math.floor(b * n / count) do
      if finite(list[i]) then sum, used = sum + list[i], used + 1 end
    end
    if used > 0 then parts[#parts + 1] = { b, sum / used } end
  end
  if #parts < 2 then return "" end
  local low, high = math.huge, -math.huge
  for _, p in ipairs(parts) do low, high = math.min(low, p[2]), math.max(high, p[2]) end
  local path = {}
  for i, p in ipairs(parts) do
    local y = high > low and 28 - 26 * (p[2] - low) / (high - low) or 15
    path[i] = ("%s%.2f %.2f"):format(i == 1 and "M" or "L", 100 * (p[1] - 1) / (count - 1), y)
  end
  return '<svg viewBox="0 0 100 30" preserveAspectRatio="none" aria-hidden="true"><path d="'
    .. table.concat(path) .. '"/></svg>'
end

return M
