--- Charts for HTML pages: lines, bars, histograms and heat maps, described in Lua and drawn in the browser.
--
-- A constructor checks its options and returns a chart: a plain table that `render` turns into a figure.
-- Lines, bars and histograms are Chart.js 3 configurations; a heat map is drawn by our own script. The page
-- needs `scripts()` once. Nothing here knows of SAEs or of files other than the Chart.js library.
--
--     local c = chart.line { title = "Loss", x_label = "step", y_label = "loss (nats)",
--                            series = { { label = "train", x = steps, y = losses } } }
--     local scripts, warning = chart.scripts()
--     html.write_file("page.html", html.page { title = "...", body = chart.render(c), scripts = scripts })
--
-- @module saelua.chart

local data = require "saelua.chart.data"
local html = require "saelua.html"
local strict = require "saelua.strict"

local M = {}

local SERIES_COLOURS = 8 -- --series-1 .. --series-8 in the style sheet
local finite = data.finite
local DASHES = { {}, { 7, 3 }, { 2, 3 }, { 9, 3, 2, 3 } } -- a second sign beside colour, for more than one series

--- Option tables for `strict.options`: every name is allowed, none is required.
local function set(names)
  local out = {}
  for name in names:gmatch("%S+") do out[name] = strict.optional end
  return out
end

--- Text that the browser must take literally although "$" starts a reference there.
local function literal(text)
  text = tostring(text or "")
  return text:sub(1, 1) == "$" and "$" .. text or text
end

-- Constructors ---------------------------------------------------------------------------------------------------

local function axis(label, options)
  local a = {
    title = { display = label ~= nil, text = literal(label), color = "$muted" },
    grid = { color = "$grid", borderColor = "$line" },
    ticks = { color = "$muted", maxRotation = 0, autoSkipPadding = 14, callback = "$tick.short" },
  }
  for key, value in pairs(options or {}) do a[key] = value end
  return a
end

local function configuration(kind, datasets, scales, plugins)
  plugins.legend = {
    display = #datasets > 1, align = "start",
    labels = { color = "$ink", boxWidth = 22, boxHeight = kind == "line" and 0 or 9, padding = 12 },
  }
  return {
    type = kind,
    data = { datasets = datasets },
    options = {
      responsive = true, maintainAspectRatio = false, animation = false, scales = scales, plugins = plugins,
      interaction = { mode = kind == "line" and "nearest" or "index", axis = "x", intersect = false },
      layout = { padding = { top = 2, right = 4 } },
    },
  }
end

local function series_colour(i) return "$series-" .. (i - 1) % SERIES_COLOURS + 1 end

local function chart(options, fields)
  fields.title, fields.note = tostring(options.title or ""), options.note
  return fields
end

local function line_dataset(i, s, label, points)
  local colour, dotted = series_colour(s.colour or i), s.sparse or #points.x <= 40
  return {
    label = label, data = { x = points.x, y = points.y }, parsing = false,
    borderColor = colour, backgroundColor = colour, borderWidth = 1.6, borderJoinStyle = "round",
    borderDash = DASHES[(i - 1) % #DASHES + 1],
    pointRadius = dotted and 2.6 or 0, pointHoverRadius = 4, pointHitRadius = 8,
    clip = { left = 5, right = 5, top = 5, bottom = 0 }, -- whole marks at the ends
  }
end

local LINE_KEYS = set "title x_label y_label series log_y note y_min y_max"

--- Lines over a numeric axis. NaN and infinite values are gaps; on a logarithmic axis so are values <= 0.
-- @tparam table options `title`, `x_label`, `y_label` (with units), `series` = list of
--   `{ label, x, y, sparse, colour }` (`sparse`: isolated measurements, joined across missing ones and marked;
--   `colour`: number of the series colour, default its place), `log_y`, `y_min`, `y_max` (limits of
--   the frame; data may pass beyond), `note` (HTML under the chart)
-- @treturn table chart
function M.line(options)
  options = strict.options("chart.line", options, LINE_KEYS)
  local datasets, shown, thinned, all_x, all_y = {}, 0, nil, {}, {}
  for i, s in ipairs(options.series or {}) do
    if type(s.x) ~= "table" or type(s.y) ~= "table" then error("chart.line: a series needs tables x and y", 2) end
    local points = data.points(s, options.log_y)
    datasets[i] = line_dataset(i, s, literal(s.label or options.title), points)
    shown, thinned = shown + points.shown, thinned or points.thinned
    if points.shown > 0 then
      all_x[#all_x + 1], all_x[#all_x + 2] = data.range(points.x)
      all_y[#all_y + 1], all_y[#all_y + 2] = data.range(points.y)
    end
  end
  local x_min, x_max = data.room(data.range(all_x))
  local y = { type = "linear", min = options.y_min, max = options.y_max }
  if options.log_y and shown > 0 then
    local low, high = data.range(all_y)
    y.type, y.min, y.max = "logarithmic", data.room(options.y_min or low, options.y_max or high, true)
  end
  y = axis(options.y_label, y)
  if y.type == "logarithmic" then y.ticks.callback, y.ticks.autoSkip = "$tick.log", false end
  local x = axis(options.x_label, { type = "linear", min = x_min, max = x_max })
  x.ticks.includeBounds = false -- round numbers only, not the last step as well
  local plugins = { tooltip = { callbacks = { title = "$tip.x", label = "$tip.y" } } }
  return chart(options, {
    kind = "chartjs", shown = shown, thinned = thinned,
    config = configuration("line", datasets, { x = x, y = y }, plugins),
  })
end

local BARS_KEYS = set "title x_label y_label labels series note y_min y_max"

--- Bars over named places.
-- @tparam table options `title`, `x_label`, `y_label`, `labels` (list of text), `series` = list of
--   `{ label, values }` with one number a label (NaN: no bar), `y_min`, `y_max`, `note`
-- @treturn table chart
function M.bars(options)
  options = strict.options("chart.bars", options, BARS_KEYS)
  local datasets, labels, shown = {}, {}, 0
  for i, label in ipairs(options.labels or {}) do labels[i] = literal(label) end
  for i, s in ipairs(options.series or {}) do
    if #s.values ~= #labels then
      error(("chart.bars: series '%s' has %d values for %d labels"):format(tostring(s.label), #s.values, #labels), 2)
    end
    for _, v in ipairs(s.values) do shown = shown + (finite(v) and 1 or 0) end
    datasets[i] = {
      label = literal(s.label or options.title), data = s.values,
      backgroundColor = series_colour(i), maxBarThickness = 60,
    }
  end
  local x = axis(options.x_label)
  x.ticks.callback = nil -- names, not numbers
  local config = configuration("bar", datasets, {
    x = x, y = axis(options.y_label, { min = options.y_min, max = options.y_max }),
  }, { tooltip = { callbacks = { label = "$tip.bar" } } })
  config.data.labels = labels
  return chart(options, { kind = "chartjs", shown = shown, config = config })
end

--- Marks as places on the axis; one that has no place on a logarithmic axis is left out.
local function mark_places(options)
  local at = {}
  for _, mark in ipairs(options.marks or {}) do
    local x = mark.x
    if options.log_x then x = x > 0 and math.log10(x) or nil end
    if finite(x) then at[#at + 1] = { x = x, label = literal(mark.label) } end
  end
  return at
end

local HISTOGRAM_KEYS = set "title x_label y_label values counts edges bins log_x x_min x_max marks note unit"

--- A histogram of `values`, or of given `counts` and `edges` (one edge more than counts; log10 of the values when
-- `log_x`). Values that are not finite are left out. With `log_x`, values <= 0 are not in the bars: their number is
-- the field `zeros` of the chart, for the page to tell.
-- @tparam table options `title`, `x_label`, `y_label`, `values` or `counts` + `edges`, `bins`, `log_x`, `x_min`,
--   `x_max` (the axis reaches at least so far; not with `log_x`), `marks` = list of `{ x, label }` (vertical lines,
--   x in units of the values), `unit` (what is counted, in the plural), `note`
-- @treturn table chart
function M.histogram(options)
  options = strict.options("chart.histogram", options, HISTOGRAM_KEYS)
  local edges, counts, zeros, shown = options.edges, options.counts, 0, 0
  if options.values then
    edges, counts, zeros, shown = data.count(options)
  elseif not (edges and counts and #edges == #counts + 1) then
    error("chart.histogram: needs values, or counts with one edge more than counts", 2)
  else
    for _, c in ipairs(counts) do shown = shown + c end
  end
  local centres = {}
  for i = 1, #counts do centres[i] = (edges[i] + edges[i + 1]) / 2 end
  local x = axis(options.x_label, { type = "linear", min = edges[1], max = edges[#edges], offset = false })
  x.grid.offset = false -- lines at the ticks, not between bars
  if options.log_x then x.ticks.callback, x.ticks.stepSize = "$tick.power", 1 end
  local config = configuration("bar", { {
    label = literal(options.unit or "values"), data = { x = centres, y = counts }, edges = edges,
    logX = options.log_x or false, backgroundColor = "$fill-1",
    barPercentage = 0.94, categoryPercentage = 1, grouped = false, parsing = false,
  } }, { x = x, y = axis(options.y_label, { min = 0 }) }, {
    tooltip = { callbacks = { title = "$tip.bin", label = "$tip.count" } }, marks = { at = mark_places(options) },
  })
  return chart(options, { kind = "chartjs", shown = shown, zeros = zeros, config = config })
end

local HEATMAP_KEYS = set "title x_label y_label rows cols values row_labels col_labels min max diverging note"

--- A heat map.
-- @tparam table options `title`, `rows`, `cols`, `values` (rows * cols numbers, row after row; NaN is left grey),
--   `row_labels`, `col_labels`, `x_label`, `y_label`, `min`, `max` (ends of the colour scale; default: of the data),
--   `diverging` (blue to orange about the middle instead of dark to light), `note`
-- @treturn table chart
function M.heatmap(options)
  options = strict.options("chart.heatmap", options, HEATMAP_KEYS)
  local rows, cols, values = options.rows, options.cols, options.values
  if type(rows) ~= "number" or type(cols) ~= "number" or type(values) ~= "table" or #values ~= rows * cols then
    error(("chart.heatmap: %s values for %s rows x %s cols"):format(
      type(values) == "table" and #values or "no", tostring(rows), tostring(cols)), 2)
  end
  local low, high, shown = data.range(values)
  return chart(options, {
    kind = "heatmap", shown = shown, rows = rows, cols = cols, values = values,
    min = options.min or low, max = options.max or high, diverging = options.diverging or false,
    row_labels = options.row_labels or {}, col_labels = options.col_labels or {},
    x_label = options.x_label, y_label = options.y_label,
  })
end

-- Pages --------------------------------------------------------------------------------------------------------

--- The figure of a chart, for the body of a page. A chart without a single finite value says so in words.
-- @tparam table c chart
-- @tparam[opt] string absent why Chart.js charts cannot be drawn on this page (the second result of `scripts`)
-- @treturn string HTML
function M.render(c, absent)
  local out = { '<figure class="chart"><h3>' .. html.escape(c.title) .. "</h3>" }
  if c.shown == 0 then
    out[#out + 1] = '<p class="absent">No finite value was recorded.</p>'
  elseif absent and c.kind == "chartjs" then
    out[#out + 1] = '<p class="absent">Not drawn: the Chart.js library was not found.</p>'
  else
    local spec = c.kind == "heatmap" and c or { kind = c.kind, config = c.config }
    local name = html.escape(c.title)
    out[#out + 1] = '<div class="plot"><canvas role="img" aria-label="' .. name .. '"></canvas></div>'
    out[#out + 1] = '<script type="application/json">' .. html.json(spec, 6) .. "</script>"
  end
  local note = c.note or ""
  if c.thinned then
    note = note .. (" %s points, thinned without losing an extreme."):format(html.number(c.thinned))
  end
  if note ~= "" then out[#out + 1] = '<figcaption class="note">' .. note .. "</figcaption>" end
  out[#out + 1] = "</figure>"
  return table.concat(out, "\n")
end

--- Places where the self-contained build of Chart.js is looked for, in order.
-- `SAELUA_CHARTJS` names the file itself and, when set, is the only place.
-- @treturn {string,...}
function M.library_paths()
  local named = os.getenv "SAELUA_CHARTJS"
  if named and named ~= "" then return { named } end
  local here = debug.getinfo(1, "S").source:match("^@(.*)[/\\]saelua[/\\]chart%.lua$") or "."
  return { -- installed tree: share/saelua/lua/saelua/chart.lua or share/saelua/saelua/chart.lua, and share/saelua/js
    here .. "/../js/chart.min.js", here .. "/js/chart.min.js", "/usr/share/saelua/js/chart.min.js",
    "/usr/share/javascript/chart.js/chart.min.js",
  }
end

--- The text of the Chart.js library.
-- @treturn[1] string
-- @treturn[2] nil
-- @treturn[2] string where it was looked for and how to get it
function M.library()
  local paths = M.library_paths()
  for _, path in ipairs(paths) do
    local file = io.open(path, "rb")
    local text = file and file:read "*a"
    if file then file:close() end
    if text then
      if text:find("Chart.js v3.", 1, true) and text:find("window.Chart=", 1, true) then return text end
      return nil, path .. " is not the self-contained build of Chart.js 3 (chart.min.js of Debian's libjs-chart.js)"
    end
  end
  return nil, "Chart.js not found (looked for " .. table.concat(paths, ", ")
    .. "); install Debian's libjs-chart.js or set SAELUA_CHARTJS to chart.min.js"
end

--- Scripts of a page with charts. Without the library the page still works, and heat maps are drawn.
-- @treturn {string,...} for `scripts` of `html.page`
-- @treturn ?string why Chart.js charts cannot be drawn; nil when they can
function M.scripts()
  local library, warning = M.library()
  local runtime = require "saelua.chart.runtime"
  if library then return { library, runtime } end
  return { runtime }, warning
end

return M
