--- What the report knows of each number: its name, formula, unit and when it is good. Data, and words for values.
--
-- One list is the truth for tiles, tables, curves and the page's list of definitions. The limits between good,
-- fair and poor are rules of thumb that people use for language-model SAEs, not results of a paper; the page
-- says so, and a caller may replace them.
--
-- @module saelua.report.metrics

local html = require "saelua.html"

local M = {}

--- Every metric, in the order of the page. `kind` chooses the wording of values; `better` and
-- `good`, `fair` give the verdict ("range": good inside the two limits). In formulas x is an activation, x̂ its
-- reconstruction, N the number of tokens, F that of latents.
M.list = {
  { key = "explained_variance", name = "Explained variance", kind = "share", better = "high", good = 0.8, fair = 0.6,
    formula = "EV = 1 − FVU",
    text = "Share of the activations' variance that the SAE reproduces. 1 is perfect; 0 is no better than the mean." },
  { key = "fvu", name = "Fraction of variance unexplained", kind = "share",
    formula = "FVU = Σₙ ‖xₙ − x̂ₙ‖² / Σₙ ‖xₙ − x̄‖²",
    text = "x̄ is the mean activation over the same tokens, one mean per dimension. Held-out values use one mean over "
      .. "all evaluation tokens; training values use the mean of their batch." },
  { key = "mse", name = "Mean squared error", kind = "number",
    formula = "MSE = (1/(N d)) Σₙ ‖xₙ − x̂ₙ‖²",
    text = "Mean squared error over tokens and the d dimensions; in squared units of the activations." },
  { key = "cosine", name = "Cosine similarity", kind = "share", formula = "(1/N) Σₙ xₙ·x̂ₙ / (‖xₙ‖ ‖x̂ₙ‖)",
    text = "Whether the direction is right, whatever the length." },
  { key = "l0", name = "L0", kind = "number", better = "range", good = { 20, 200 },
    formula = "L0 = (1/N) Σₙ #{i : fᵢ(xₙ) ≠ 0}", text = "Active latents per token, on average." },
  { key = "dead_fraction", name = "Dead latents", kind = "percent", better = "low", good = 0.1, fair = 0.2,
    formula = "dead = #{i : fᵢ = 0 on every token of the window} / F",
    text = "Held-out: share of latents that fire on none of the evaluation tokens. In the training curve: share of "
      .. "latents silent for more than dead_feature_threshold training tokens: 0 until that many have passed." },
  { key = "dead_window_tokens", name = "Dead window", kind = "number", formula = "tokens looked at",
    text = "Number of tokens over which a latent must stay silent to count as dead; held-out: all evaluation tokens." },
  { key = "rare_fraction", name = "Rare latents", kind = "percent",
    formula = "rare = #{i : nᵢ / T < dead_percentage_threshold} / F",
    text = "Share of latents that fire less often than the threshold; nᵢ counts the tokens on which latent i was "
      .. "active, of all T training tokens so far.", not_evaluated = true },
  { key = "ce_recovered", name = "CE recovered", kind = "percent", better = "high", good = 0.9, fair = 0.7,
    formula = "(CE_ablated − CE_SAE) / (CE_ablated − CE_clean)",
    text = "How much of the model's own prediction survives when its activations are replaced by the reconstruction: "
      .. "100 % is unharmed, 0 % as bad as setting them to zero. Where CE_ablated "
      .. "and CE_clean are close it says little." },
  { key = "ce_clean", name = "CE, clean", kind = "nats", formula = "CE_clean = −(1/M) Σₘ ln p(tokenₘ | context)",
    text = "Cross-entropy of the untouched model over the M predicted tokens: 15 % of the ordinary held-out tokens, "
      .. "all shown as [MASK], the same ones for the three numbers." },
  { key = "ce_sae", name = "CE, with SAE", kind = "nats", formula = "CE_SAE: CE with x̂ in place of x",
    text = "Cross-entropy with the activations replaced by the SAE's reconstruction at every token but [CLS], [SEP] "
      .. "and padding." },
  { key = "ce_ablated", name = "CE, ablated", kind = "nats", formula = "CE_ablated: CE with 0 in place of x",
    text = "Cross-entropy with the activations replaced by zero at every position." },
  { key = "decoder_redundancy", name = "Decoder redundancy", kind = "share",
    formula = "(1/F) Σᵢ maxⱼ≠ᵢ cos(dᵢ, dⱼ)",
    text = "Mean, over latents, of the cosine with the most similar other decoder direction. Near 1: duplicates." },
  { key = "n_tokens", name = "Evaluation tokens", kind = "number", formula = "N = held-out tokens",
    text = "Held-out tokens behind the numbers above, special tokens excluded." },
  { key = "density", name = "Density", kind = "percent", formula = "densityᵢ = #{n : fᵢ(xₙ) ≠ 0} / N",
    text = "How often a latent fires. The mean over all latents is L0 / F.", not_evaluated = true },
  { key = "loss", name = "Training loss", kind = "number", formula = "as optimised",
    text = "The quantity that the optimiser lowers: reconstruction and auxiliary terms of the chosen loss.",
    not_evaluated = true },
  { key = "tokens_per_s", name = "Speed", kind = "number", formula = "training tokens / second",
    text = "Wall-clock rate of the whole loop, the model's forward pass included. The tile shows the median of the "
      .. "second half of training.", not_evaluated = true },
}

M.by_key = {}
for _, metric in ipairs(M.list) do M.by_key[metric.key] = metric end

--- Words for a value of a metric.
-- @tparam table metric an entry of `list`
-- @tparam number v
-- @treturn string number
-- @treturn string unit, possibly empty
function M.words(metric, v)
  if v ~= v then return "not a number", "" end
  if metric.kind == "percent" then
    local p = 100 * v
    return html.number(p, p > 99 and p < 100 and 5 or 3), "%" -- 99.97 % must not read as 100 %
  end
  if metric.kind == "nats" then return html.number(v), "nats / token" end
  return html.number(v), ""
end

--- The limits of a metric, a caller's before our own.
local function limits(metric, thresholds)
  local own = thresholds and thresholds[metric.key] or metric
  return own.good, own.fair
end

--- One direction of "better" each: verdict on `v`, and what it is based on.
local RULES = {
  high = function(v, good, fair) return v >= good and "good" or v >= fair and "fair" or "poor" end,
  low = function(v, good, fair) return v <= good and "good" or v <= fair and "fair" or "poor" end,
  range = function(v, good) return v >= good[1] and v <= good[2] and "good" or "fair" end,
}
local BASES = { high = "good ≥ %s, fair ≥ %s", low = "good ≤ %s, fair ≤ %s", range = "usual between %s and %s" }

--- Verdict on a value.
-- @tparam table metric
-- @tparam number v
-- @tparam ?table thresholds `{ [metric key] = { good, fair } }`, replaces the default limits
-- @treturn ?string "good", "fair" or "poor"; nil when the metric has no limits or the value is not a number
-- @treturn ?string what the verdict is based on, as text
function M.verdict(metric, v, thresholds)
  if not metric.better then return nil end
  local good, fair = limits(metric, thresholds)
  local function show(limit)
    return metric.kind == "percent" and html.number(100 * limit) .. " %" or html.number(limit)
  end
  local first, second = good, fair
  if metric.better == "range" then first, second = good[1], good[2] end
  local verdict
  if v == v then verdict = RULES[metric.better](v, good, fair) end
  return verdict, BASES[metric.better]:format(show(first), show(second))
end

--- The formula and the explanation of a metric; a caller that computes it otherwise passes its own.
-- @tparam table metric
-- @tparam ?table definitions `{ [metric key] = { formula, text } }`
-- @treturn string formula
-- @treturn string explanation
function M.definition(metric, definitions)
  local own = definitions and definitions[metric.key] or {}
  return own.formula or metric.formula, own.text or metric.text
end

return M
