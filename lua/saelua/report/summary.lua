--- The top of a report: five tiles that say whether an SAE is good.
--
-- @module saelua.report.summary

local curves = require "saelua.report.curves"
local html = require "saelua.html"
local metrics = require "saelua.report.metrics"

local M = {}

local esc = html.escape

local function number(v) return type(v) == "number" and v or nil end

local function join(parts) return table.concat(parts, " · ") end

-- The second line of each tile.
local HINTS = {
  explained_variance = function(s)
    local out = {}
    if number(s.eval.fvu) then out[#out + 1] = "FVU " .. html.number(s.eval.fvu) end
    if number(s.eval.cosine) then out[#out + 1] = "cosine " .. html.number(s.eval.cosine) end
    if number(s.eval.n_tokens) then out[#out + 1] = html.number(s.eval.n_tokens) .. " held-out tokens" end
    return join(out)
  end,
  l0 = function(s)
    local out = { s.sae.d_sae and "of " .. html.number(s.sae.d_sae) .. " latents" }
    if s.sae.k then out[#out + 1] = "k = " .. tostring(s.sae.k) end
    return join(out)
  end,
  dead_fraction = function(s)
    local out = {}
    if number(s.sae.d_sae) and number(s.eval.dead_fraction) and s.eval.dead_fraction == s.eval.dead_fraction then
      local dead = math.floor(s.eval.dead_fraction * s.sae.d_sae + 0.5)
      out[#out + 1] = ("%s of %s"):format(html.number(dead), html.number(s.sae.d_sae))
    end
    if number(s.eval.dead_window_tokens) then
      out[#out + 1] = "window " .. html.number(s.eval.dead_window_tokens) .. " tokens"
    end
    return join(out)
  end,
  ce_recovered = function(s)
    local e, out = s.eval, {}
    if number(e.ce_clean) then out[#out + 1] = html.number(e.ce_clean) .. " clean" end
    if number(e.ce_sae) then out[#out + 1] = html.number(e.ce_sae) .. " with SAE" end
    if number(e.ce_ablated) then out[#out + 1] = html.number(e.ce_ablated) .. " ablated" end
    return #out > 0 and join(out) .. " (nats / token)" or ""
  end,
}

--- Headline value of an SAE: held-out if there is one, else the last of training, which is said.
local function headline(s, metric, data)
  if metric.key == "tokens_per_s" then
    return number(data.run and data.run.tokens_per_s) or curves.late_median(s.curves.tokens_per_s), ""
  end
  if number(s.eval[metric.key]) then return s.eval[metric.key], "" end
  local last = curves.last(s.curves["eval/" .. metric.key])
  if last then return last, "last held-out value" end
  last = curves.last(s.curves[metric.key])
  return last, last and "last training value" or ""
end

local function verdict_mark(metric, value, data)
  local verdict, basis = metrics.verdict(metric, value, data.thresholds)
  if not verdict then return "" end
  local word = metric.better == "range" and (verdict == "good" and "usual" or "unusual") or verdict
  return ('<span class="verdict %s" data-tip="%s">%s %s</span>'):format(
    verdict, esc(basis), verdict == "good" and "●" or verdict == "fair" and "◐" or "○", word)
end

--- A metric's name as a link to its definition, with the formula as a tip.
-- @tparam table metric
-- @tparam table data the report's data
-- @treturn string HTML
function M.metric_link(metric, data)
  return ('<a href="#def-%s" data-tip="%s">%s</a>'):format(
    metric.key, esc((metrics.definition(metric, data.definitions))), esc(metric.name))
end

local function tile(s, key, data)
  local metric = metrics.by_key[key]
  local value, source = headline(s, metric, data)
  local out = { '<div class="tile"><div class="name">' .. M.metric_link(metric, data) }
  if value then
    local words, unit = metrics.words(metric, value)
    local hint = source ~= "" and source or HINTS[key] and HINTS[key](s) or ""
    if key == "tokens_per_s" then unit = "tok / s" end
    out[#out + 1] = verdict_mark(metric, value, data) .. "</div>"
    out[#out + 1] = ('<div class="value">%s <small>%s</small></div>'):format(words, unit)
    out[#out + 1] = '<div class="hint">' .. esc(hint) .. "</div>" .. curves.spark(s.curves[key])
  else
    local reason = s.eval.reasons and s.eval.reasons[key]
    out[#out + 1] = '</div><div class="value absent">not measured</div>'
    out[#out + 1] = '<div class="hint">' .. esc(reason or "") .. "</div>"
  end
  return table.concat(out, "\n") .. "</div>"
end

local HEADLINES = { "explained_variance", "l0", "dead_fraction", "ce_recovered", "tokens_per_s" }

--- The tiles of every SAE, and what the verdicts are based on.
-- @tparam {table,...} saes as `saelua.report` normalises them
-- @tparam table data the report's data
-- @treturn string HTML
function M.section(saes, data)
  local out, bases = { '<section id="summary">' }, {}
  for _, s in ipairs(saes) do
    if #saes > 1 then out[#out + 1] = "<h2>" .. esc(s.name) .. "</h2>" end
    out[#out + 1] = '<div class="tiles">'
    for _, key in ipairs(HEADLINES) do out[#out + 1] = tile(s, key, data) end
    out[#out + 1] = "</div>"
  end
  for _, key in ipairs(HEADLINES) do
    local metric = metrics.by_key[key]
    local _, basis = metrics.verdict(metric, 0, data.thresholds)
    if basis then bases[#bases + 1] = metric.name .. ": " .. basis end
  end
  out[#out + 1] = '<p class="foot">Verdicts are rules of thumb, not a benchmark. ' .. esc(join(bases)) .. ".</p>"
  out[#out + 1] = "</section>"
  return table.concat(out, "\n")
end

return M
