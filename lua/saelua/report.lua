--- The report of a training run: one page that opens offline and shows at a glance whether the SAE is good.
--
-- `write` takes plain tables and no tensor, so anything that has numbers can make a report. Whatever is absent is
-- said to be not measured; nothing is guessed.
--
-- **Fields of the data table**, all optional:
--
-- - `title`: text
-- - `run`: `name`, `command`, `started` (text), `duration_s`, `machine`, `version`, `tokens_per_s`
-- - `config`: list of `{ key, value }`, in the order to show
-- - `model`: `name`, `d_model`, `n_layers`, `hookpoint`
-- - `sae`: `architecture`, `d_in`, `d_sae`, `k`, `n_parameters`
-- - `curves`: lists of equal length under `step`, `tokens`, `loss`, `explained_variance`, `fvu`, `l0`,
--   `dead_fraction`, `tokens_per_s`, `lr`, or any other name; held-out values under `eval/<name>`; NaN = not recorded
-- - `eval`: numbers under the keys of `saelua.report.metrics`, and `reasons` = `{ [key] = why it was not measured }`
-- - `densities`: for each latent the share of tokens on which it fires (0 = dead)
-- - `redundancy`: for each latent its largest decoder cosine with another one
-- - `latents`: list of `{ id, density, max, label, label_score, contexts = { { tokens, acts, peak }, ... } }`
--   (`peak`: 1-based place of the highest activation)
-- - `saes`: several SAEs: list of `{ name, sae, curves, eval, densities, redundancy, latents }` in place of the five
--   fields above it; `sae` falls back to the one of the data table
-- - `charts`: list of charts made by `saelua.chart`, to add
-- - `thresholds`, `definitions`: see `saelua.report.metrics`
--
-- @module saelua.report

local chart = require "saelua.chart"
local curves = require "saelua.report.curves"
local html = require "saelua.html"
local latents = require "saelua.report.latents"
local metrics = require "saelua.report.metrics"
local strict = require "saelua.strict"
local summary = require "saelua.report.summary"

local M = {}

local esc = html.escape

local FIELDS = {}
for _, name in ipairs { "title", "run", "config", "model", "sae", "curves", "eval", "densities", "redundancy",
  "latents", "saes", "charts", "thresholds", "definitions" } do
  FIELDS[name] = strict.optional
end

local function number(v) return type(v) == "number" and v or nil end

-- Every SAE in one form: the single one of the data table, or those of `saes`.
local function normalise(data)
  local list, out = data.saes or { data }, {}
  for i, s in ipairs(list) do
    local name = s.name or (not data.saes and data.model and data.model.hookpoint) or ("SAE " .. i)
    out[i] = {
      name = tostring(name), id = "sae-" .. i, sae = s.sae or data.sae or {}, curves = s.curves or {},
      eval = s.eval or {}, densities = s.densities or {}, redundancy = s.redundancy or {}, latents = s.latents or {},
    }
  end
  return out
end

-- Head ---------------------------------------------------------------------------------------------------------

local function duration(seconds)
  if seconds < 60 then return html.number(seconds, 3) .. " s" end
  if seconds < 3600 then return ("%d min %02d s"):format(seconds / 60, seconds % 60) end
  return ("%d h %02d min"):format(seconds / 3600, seconds % 3600 / 60)
end

local function facts(data)
  local run, model, sae, out = data.run or {}, data.model or {}, data.sae or {}, {}
  local function fact(name, value)
    if value ~= nil and value ~= "" then out[#out + 1] = ("<li><b>%s</b> %s</li>"):format(name, esc(value)) end
  end
  local shape = {}
  if model.n_layers then shape[#shape + 1] = html.number(model.n_layers) .. " layers" end
  if model.d_model then shape[#shape + 1] = "d " .. html.number(model.d_model) end
  fact("Model", model.name and model.name .. (#shape > 0 and " (" .. table.concat(shape, ", ") .. ")" or ""))
  fact("Hook point", model.hookpoint)
  fact("Architecture", sae.architecture)
  if sae.d_in and sae.d_sae then
    fact("Dictionary", ("%s → %s latents"):format(html.number(sae.d_in), html.number(sae.d_sae)))
  end
  fact("k", sae.k)
  fact("Parameters", sae.n_parameters and html.number(sae.n_parameters))
  fact("Started", run.started)
  fact("Duration", number(run.duration_s) and duration(run.duration_s))
  fact("Machine", run.machine)
  fact("Version", run.version)
  return out
end

local function head(data)
  local run = data.run or {}
  local out = { '<header class="head"><h1>' .. esc(data.title or run.name or "SAE training report") .. "</h1>" }
  if run.name and run.name ~= data.title then out[#out + 1] = '<p class="sub">Run ' .. esc(run.name) .. "</p>" end
  out[#out + 1] = '<ul class="facts">' .. table.concat(facts(data)) .. "</ul></header>"
  return table.concat(out, "\n")
end

-- Tables -------------------------------------------------------------------------------------------------------

local function eval_cell(s, metric)
  local value = s.eval[metric.key]
  if number(value) then
    local words, unit = metrics.words(metric, value)
    return ('<td class="num">%s %s</td>'):format(words, unit)
  end
  local reason = s.eval.reasons and s.eval.reasons[metric.key]
  return '<td class="num absent">not measured' .. (reason and ": " .. esc(reason) or "") .. "</td>"
end

--- Metrics to list: ours, then any other number that an evaluation holds, by name.
local function evaluated(saes)
  local out, extra, seen = {}, {}, {}
  for _, metric in ipairs(metrics.list) do
    seen[metric.key] = true
    if not metric.not_evaluated then out[#out + 1] = metric end
  end
  for _, s in ipairs(saes) do
    for key, value in pairs(s.eval) do
      if number(value) and not seen[key] then seen[key], extra[#extra + 1] = true, key end
    end
  end
  table.sort(extra)
  for _, key in ipairs(extra) do out[#out + 1] = { key = key, name = key, kind = "number" } end
  return out
end

local function evaluation(saes, data)
  local out = { '<section id="evaluation"><h2>Held-out evaluation</h2>',
    '<p class="lead">On tokens that training never saw.</p><div class="card scroll"><table>' }
  if #saes > 1 then
    out[#out + 1] = "<thead><tr><th></th>"
    for _, s in ipairs(saes) do out[#out + 1] = '<th class="num">' .. esc(s.name) .. "</th>" end
    out[#out + 1] = "</tr></thead>"
  end
  out[#out + 1] = "<tbody>"
  for _, metric in ipairs(evaluated(saes)) do
    local name = metric.formula and summary.metric_link(metric, data) or esc(metric.name)
    local formula = metric.formula and metrics.definition(metric, data.definitions) or ""
    out[#out + 1] = "<tr><th>" .. name .. "</th>"
    for _, s in ipairs(saes) do out[#out + 1] = eval_cell(s, metric) end
    if #saes == 1 then out[#out + 1] = '<td class="text absent mono">' .. esc(formula) .. "</td>" end
    out[#out + 1] = "</tr>"
  end
  out[#out + 1] = "</tbody></table></div></section>"
  return table.concat(out, "\n")
end

local function options_section(data)
  local out = { '<section id="options"><h2>Options</h2>' }
  if data.run and data.run.command then
    out[#out + 1] = '<div class="card"><pre><code>' .. esc(data.run.command) .. "</code></pre></div>"
  end
  if data.config and #data.config > 0 then
    out[#out + 1] = '<div class="card scroll"><table><tbody>'
    for _, pair in ipairs(data.config) do
      local value = pair[2]
      local text = type(value) == "table" and html.json(value) or tostring(value)
      out[#out + 1] = ('<tr><th class="mono">%s</th><td class="text mono">%s</td></tr>'):format(esc(pair[1]), esc(text))
    end
    out[#out + 1] = "</tbody></table></div>"
  end
  return #out > 1 and table.concat(out, "\n") .. "</section>" or ""
end

local function definitions(data)
  local out = { '<section id="definitions"><h2>How each number is defined</h2>',
    '<p class="lead">x: activation at the hook point. x̂: its reconstruction. f: latent activations. d: decoder '
      .. 'directions. N: tokens. F: latents.</p><div class="card"><dl class="defs">' }
  for _, metric in ipairs(metrics.list) do
    local formula, text = metrics.definition(metric, data.definitions)
    out[#out + 1] = ('<dt id="def-%s">%s</dt><dd><span class="formula">%s</span>%s</dd>'):format(
      metric.key, esc(metric.name), esc(formula), esc(text))
  end
  out[#out + 1] = "</dl></div></section>"
  return table.concat(out, "\n")
end

-- Charts -------------------------------------------------------------------------------------------------------

local function figures(list, absent)
  local out = { '<div class="charts">' }
  for _, c in ipairs(list) do out[#out + 1] = chart.render(c, absent) end
  out[#out + 1] = "</div>"
  return table.concat(out, "\n")
end

local function mean(list)
  local sum, n = 0, 0
  for _, v in ipairs(list) do
    if v == v then sum, n = sum + v, n + 1 end
  end
  return n > 0 and sum / n or 0
end

local function density_chart(s, data)
  local average = mean(s.densities)
  local c = chart.histogram {
    title = "Latent densities", x_label = "share of tokens on which a latent fires (log scale)", y_label = "latents",
    values = s.densities, log_x = true, unit = "latents", marks = { { x = average, label = "mean" } },
  }
  c.note = ("<b>%s dead</b> of %s latents (%s %%) never fired and are not in the bars. Mean density %s. %s"):format(
    html.number(c.zeros), html.number(#s.densities), html.number(100 * c.zeros / #s.densities, 3),
    html.number(average, 3), esc((metrics.definition(metrics.by_key.density, data.definitions))))
  return c
end

local function redundancy_chart(s, data)
  local average = mean(s.redundancy)
  return chart.histogram {
    title = "Decoder redundancy", x_label = "cosine with the most similar other decoder direction",
    y_label = "latents", values = s.redundancy, unit = "latents", x_min = 0, x_max = 1,
    marks = { { x = average, label = "mean" } },
    note = ("Near 1: two latents share one direction. Mean %s = %s"):format(
      html.number(average, 3), esc((metrics.definition(metrics.by_key.decoder_redundancy, data.definitions)))),
  }
end

local function latent_sections(saes, data, absent)
  local statistics, cards = {}, {}
  for _, s in ipairs(saes) do
    local list, heading = {}, #saes > 1 and "<h3>" .. esc(s.name) .. "</h3>" or ""
    if #s.densities > 0 then list[#list + 1] = density_chart(s, data) end
    if #s.redundancy > 0 then list[#list + 1] = redundancy_chart(s, data) end
    if #list > 0 then statistics[#statistics + 1] = heading .. figures(list, absent) end
    if #s.latents > 0 then cards[#cards + 1] = heading .. latents.cards(s.latents) end
  end
  local out = ""
  if #statistics > 0 then
    out = '<section id="statistics"><h2>All latents</h2><p class="lead">How often latents fire, and how much '
      .. "they repeat each other.</p>" .. table.concat(statistics, "\n") .. "</section>"
  end
  if #cards > 0 then
    out = out .. '<section id="latents"><h2>Some latents</h2>' .. latents.legend()
      .. table.concat(cards, "\n") .. "</section>"
  end
  return out
end

-- Page ---------------------------------------------------------------------------------------------------------

local SECTIONS = {
  { "summary", "Summary" }, { "curves", "Training" }, { "evaluation", "Evaluation" }, { "statistics", "All latents" },
  { "latents", "Some latents" }, { "more", "More" }, { "options", "Options" }, { "definitions", "Definitions" },
}

local function navigation(body)
  local out = { "<nav aria-label=\"Sections\"><ul>" }
  for _, section in ipairs(SECTIONS) do
    if body:find('<section id="' .. section[1] .. '"', 1, true) then
      out[#out + 1] = ('<li><a href="#%s">%s</a></li>'):format(section[1], section[2])
    end
  end
  return table.concat(out) .. "</ul></nav>"
end

--- The page as text.
-- @tparam table data see the head of this module; an unknown field raises
-- @treturn string HTML
-- @treturn ?string a warning: why the charts are not drawn
function M.build(data)
  data = strict.options("report", data, FIELDS)
  local saes, scripts, absent = normalise(data), chart.scripts()
  local training = curves.charts(saes, data.definitions)
  local parts = { summary.section(saes, data) }
  if absent then table.insert(parts, 1, '<p class="notice">Charts are not drawn: ' .. esc(absent) .. ".</p>") end
  if #training > 0 then
    parts[#parts + 1] = '<section id="curves"><h2>Training</h2><p class="lead">Gaps are steps without a value.</p>'
      .. figures(training, absent) .. "</section>"
  end
  parts[#parts + 1] = evaluation(saes, data)
  parts[#parts + 1] = latent_sections(saes, data, absent)
  if data.charts and #data.charts > 0 then
    parts[#parts + 1] = '<section id="more"><h2>More</h2>' .. figures(data.charts, absent) .. "</section>"
  end
  parts[#parts + 1] = options_section(data)
  parts[#parts + 1] = definitions(data)
  local main = table.concat(parts, "\n")
  local version = data.run and data.run.version and " " .. esc(data.run.version) or ""
  local body = head(data) .. navigation(main) .. "<main>" .. main .. "</main><footer>Written by saelua" .. version
    .. ". This page holds everything it shows and asks nothing of the network.</footer>"
  return html.page { title = data.title or "SAE training report", body = body, scripts = scripts }, absent
end

--- Write the report. `path` holds its old content or the whole new page, never a part.
-- @tparam string path
-- @tparam table data
-- @treturn[1] boolean true
-- @treturn[1] ?string a warning: why the charts are not drawn (the rest of the page is complete)
-- @treturn[2] nil
-- @treturn[2] string what failed
-- @treturn[2] number the system's error number
function M.write(path, data)
  local text, warning = M.build(data)
  local ok, msg, code = html.write_file(path, text)
  if not ok then return nil, msg, code end
  return true, warning
end

return M
