--- Cards that show latents: when each fires, on which tokens, with contexts shaded by activation.
-- Returns HTML only; reads plain tables (see `saelua.report` for their fields).
--
-- @module saelua.report.latents

local html = require "saelua.html"

local M = {}

local SHOWN_CONTEXTS = 6 -- the rest folds away
-- From this share of the maximum on, text is dark in both themes: there dark and light text have equal contrast
-- on the dark theme's shade (about 4 : 1).
local HOT = 0.68

local INVISIBLE = { ["\n"] = "↵", ["\r"] = "␍", ["\t"] = "⇥" }

--- How a WordPiece token is shown: its text, and whether it follows the one before without a space.
local function display(token)
  local rest = token:match("^##(.+)$")
  local text = (rest or token):gsub("[\n\r\t]", INVISIBLE)
  if text == "" then text = "∅" elseif not text:find("[^ ]") then text = ("␠"):rep(#text) end
  return text, rest ~= nil or token:find("^[%.,;:!%?%)%]]$") ~= nil
end

local function positive(v) return type(v) == "number" and v == v and v > 0 and v or 0 end

local function argmax(acts)
  local best
  for i, v in ipairs(acts) do
    if positive(v) > (best and acts[best] or 0) then best = i end
  end
  return best
end

--- One token as a span. Its tip gives the exact token, value and position.
local function token_span(token, act, position, max, is_peak)
  token = tostring(token)
  local text, joined = display(token)
  local share = max > 0 and math.min(1, positive(act) / max) or 0
  local classes = { "t" }
  if share >= HOT then classes[#classes + 1] = "hot" end
  if is_peak then classes[#classes + 1] = "peak" end
  if token:find("^%[%u+%]$") then classes[#classes + 1] = "special" end
  local tip = ("token “%s”\nactivation %s\nposition %d"):format(token, html.number(act or 0), position)
  if share > 0 then tip = tip .. ("\n%.0f %% of this latent's maximum"):format(100 * share) end
  return ('%s<span class="%s" data-tip="%s"%s>%s</span>'):format(
    (position > 1 and not joined) and " " or "", table.concat(classes, " "), html.escape(tip),
    share > 0 and (' style="--a:%.3f"'):format(share) or "", html.escape(text))
end

local function context_item(context, max)
  local acts, spans = context.acts or {}, {}
  local peak = context.peak or argmax(acts)
  for i, token in ipairs(context.tokens or {}) do
    spans[i] = token_span(token, acts[i], i, max, i == peak)
  end
  return ('<li><span class="peak-value">%s</span><span class="toks">%s</span></li>'):format(
    peak and html.number(acts[peak] or 0, 3) or "", table.concat(spans))
end

--- The tokens on which the contexts peak, most frequent first: "captain ×5, boat ×2".
local function peak_tokens(contexts)
  local counts, order = {}, {}
  for _, context in ipairs(contexts) do
    local token = context.tokens and context.tokens[context.peak or argmax(context.acts or {})]
    if token then
      token = tostring(token)
      if not counts[token] then order[#order + 1] = token end
      counts[token] = (counts[token] or 0) + 1
    end
  end
  local rank = {}
  for i, token in ipairs(order) do rank[token] = i end
  table.sort(order, function(a, b)
    if counts[a] ~= counts[b] then return counts[a] > counts[b] end
    return rank[a] < rank[b]
  end)
  local out = {}
  for i = 1, math.min(5, #order) do
    local times = counts[order[i]]
    out[i] = "<b>" .. html.escape((display(order[i]))) .. "</b>" .. (times > 1 and (" ×%d"):format(times) or "")
  end
  return table.concat(out, ", ")
end

local function density_words(density)
  if type(density) ~= "number" or density ~= density then return "density not measured" end
  if density <= 0 then return "never fires (dead)" end
  return ("fires on %s %% of tokens (1 in %s)"):format(html.number(100 * density, 3), html.number(
    math.floor(1 / density + 0.5)))
end

local function label_chip(latent)
  if not latent.label then return "" end
  local score = type(latent.label_score) == "number" and (" · fit " .. html.number(latent.label_score, 2)) or ""
  return '<span class="chip" data-tip="The known attribute of the text that this latent fits best">'
    .. html.escape(latent.label) .. score .. "</span>"
end

--- Largest activation of a latent: the recorded one, or the largest that is shown.
local function maximum(latent)
  local max = positive(latent.max)
  if max > 0 then return max end
  for _, context in ipairs(latent.contexts or {}) do
    for _, v in ipairs(context.acts or {}) do max = math.max(max, positive(v)) end
  end
  return max
end

local function card(latent)
  local contexts, max = latent.contexts or {}, maximum(latent)
  local out = {
    '<article class="card latent"><header><h3>Latent ' .. html.escape(latent.id) .. "</h3>" .. label_chip(latent)
      .. "</header>",
    ('<p class="meta">%s · maximum %s'):format(density_words(latent.density), html.number(max, 3)),
  }
  local peaks = peak_tokens(contexts)
  out[#out + 1] = (peaks ~= "" and " · peaks on " .. peaks or "") .. "</p>"
  if #contexts == 0 then
    out[#out + 1] = '<p class="absent">No context was recorded.</p></article>'
    return table.concat(out)
  end
  out[#out + 1] = '<ol class="ctx">'
  for i, context in ipairs(contexts) do
    if i == SHOWN_CONTEXTS + 1 then
      out[#out + 1] = ('</ol><details><summary>%d more contexts</summary><ol class="ctx">'):format(#contexts - i + 1)
    end
    out[#out + 1] = context_item(context, max)
  end
  out[#out + 1] = "</ol>" .. (#contexts > SHOWN_CONTEXTS and "</details>" or "") .. "</article>"
  return table.concat(out, "\n")
end

--- What the shading means.
-- @treturn string HTML
function M.legend()
  return '<p class="lead"><span class="ramp">0 <i></i> maximum of the latent</span><br>Shade: activation on that '
    .. "token, relative to the latent's maximum. Left of each context: its highest activation, on the underlined "
    .. "token. Point at a token for its value.</p>"
end

--- The cards of a list of latents.
-- @tparam {table,...} latents
-- @treturn string HTML
function M.cards(latents)
  local out = { '<div class="latents">' }
  for _, latent in ipairs(latents) do out[#out + 1] = card(latent) end
  out[#out + 1] = "</div>"
  return table.concat(out, "\n")
end

return M
