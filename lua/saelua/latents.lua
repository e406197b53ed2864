--- What single latents respond to: top contexts on held-out text, and on storyworld the attribute that fits best.
-- @module saelua.latents
local eval = require "saelua.eval"
local strict = require "saelua.strict"

local M = {}

local OPTIONS = {
  at = strict.required, exclude = strict.required, batch_size = 32, max_contexts = strict.optional, count = 12,
  contexts = 5, window = 12, ids = strict.optional,
}

--- A choice of latents that shows the whole range: evenly spread over the alive ones, ordered by density.
-- @tparam {number,...} densities
-- @tparam integer count
-- @treturn {integer,...} latent ids (from 0), the densest first
function M.spread(densities, count)
  local alive = {}
  for i, density in ipairs(densities) do
    if density > 0 then alive[#alive + 1] = i - 1 end
  end
  table.sort(alive, function(a, b)
    local da, db = densities[a + 1], densities[b + 1]
    if da ~= db then return da > db end
    return a < b
  end)
  local chosen = {}
  count = math.min(count, #alive)
  -- The rarest tenth is left out: a latent with two firings tells nothing.
  local span = math.max(count, math.floor(0.9 * #alive))
  for i = 1, count do chosen[i] = alive[math.floor((i - 0.5) * span / count) + 1] end
  return chosen
end

-- Activations of the chosen latents at every token: acts[j][context][position] = value, only where > 0.
local function collect(model, sae, heldout, ids, o)
  local width = heldout.ids:size(2)
  local fired = {}
  for j = 1, #ids do fired[j] = {} end
  eval.each_batch(heldout, o.batch_size, o.max_contexts, function(tokens, mask, first)
    local x, kept = eval.rows(model, o.at, tokens, mask, o.exclude)
    if x:size(1) == 0 then return end
    local columns = sae:encode(x):columns(ids):totable()
    local flat = kept:totable()
    for row, position in ipairs(flat) do
      for j = 1, #ids do
        local value = columns[row][j]
        if value ~= 0 then
          fired[j][#fired[j] + 1] = { context = first + math.floor(position / width), position = position % width,
            value = value }
        end
      end
    end
  end)
  return fired
end

-- The strongest firings, at most one for each context.
local function top_firings(list, n)
  local sorted = {}
  for i, f in ipairs(list) do sorted[i] = f end
  table.sort(sorted, function(a, b)
    if a.value ~= b.value then return a.value > b.value end
    if a.context ~= b.context then return a.context < b.context end
    return a.position < b.position
  end)
  local top, seen = {}, {}
  for _, f in ipairs(sorted) do
    if not seen[f.context] then
      seen[f.context] = true
      top[#top + 1] = f
      if #top == n then break end
    end
  end
  return top
end

-- The tokens around a firing, with the latent's activation at each.
local function window(heldout, tokenizer, firing, by_place, o)
  local ids = heldout.ids[firing.context + 1]:totable()
  local mask = heldout.mask[firing.context + 1]:totable()
  local context = { tokens = {}, acts = {} }
  local from = math.max(0, firing.position - o.window)
  for position = from, math.min(#ids - 1, firing.position + o.window) do
    if mask[position + 1] ~= 0 then
      local i = #context.tokens + 1
      context.tokens[i] = tokenizer:token(ids[position + 1])
      context.acts[i] = by_place[firing.context * #ids + position] or 0
      if position == firing.position then context.peak = i end
    end
  end
  return context
end

-- Storyworld labels ------------------------------------------------------------------------------------------------

-- Token attributes of the held-out contexts: labels["pos = noun"] = { total, [place] = true }.
local function attribute_places(heldout, source, max_contexts)
  local storyworld = require "saelua.storyworld"
  local width, labels, documents = heldout.ids:size(2), {}, {}
  local n = math.min(heldout.n, max_contexts or heldout.n)
  local document, start, finish = heldout.document:totable(), heldout.start:totable(), heldout.finish:totable()
  local function add(label, place)
    local places = labels[label]
    if not places then
      places = { total = 0 }
      labels[label] = places
    end
    places[place] = true
    places.total = places.total + 1
  end
  for context = 1, n do
    for position = 1, width do
      local number = document[context][position]
      if number >= 0 then
        documents[number] = documents[number] or source.heldout_document(number)
        local attributes = storyworld.token_attributes(documents[number],
          { { start[context][position], finish[context][position] } })[1]
        for name, value in pairs(attributes or {}) do
          add(("%s = %s"):format(name, tostring(value)), (context - 1) * width + position - 1)
        end
      end
    end
  end
  return labels
end

-- The attribute value whose tokens agree best with where the latent fires, by F1 = 2 hits / (firings + tokens).
local function best_label(firings, labels, width)
  local best, best_f1 = nil, 0
  for label, places in pairs(labels) do
    local hits = 0
    for _, f in ipairs(firings) do
      if places[f.context * width + f.position] then hits = hits + 1 end
    end
    local f1 = 2 * hits / (#firings + places.total)
    if f1 > best_f1 or (f1 == best_f1 and best and label < best) then best, best_f1 = label, f1 end
  end
  return best, best_f1
end

--- Latent cards for a report.
-- @tparam Model model
-- @tparam Sae sae
-- @tparam table heldout `tokens:heldout()`
-- @tparam {number,...} densities from `eval.core`
-- @tparam table options `at`, `exclude`, `batch_size`, `max_contexts` as in eval.core; `count` (12 latents), `contexts`
--   (5 each), `window` (12 tokens to each side), `ids` (these latents instead of a spread)
-- @tparam[opt] table source `tokens.source`: storyworld's knows the attributes of each token
-- @treturn {table,...} id, density, max, label, label_score (F1), contexts = { { tokens, acts, peak }, ... }
function M.cards(model, sae, heldout, densities, options, source)
  local o = strict.options("latents.cards", options, OPTIONS)
  local ids = o.ids or M.spread(densities, o.count)
  if #ids == 0 then return {} end
  local width, cards = heldout.ids:size(2), {}
  local fired = collect(model, sae, heldout, ids, o)
  local labels = heldout.document and source and source.heldout_document
    and attribute_places(heldout, source, o.max_contexts)
  for j, id in ipairs(ids) do
    local by_place, top = {}, top_firings(fired[j], o.contexts)
    for _, f in ipairs(fired[j]) do by_place[f.context * width + f.position] = f.value end
    local card = { id = id, density = densities[id + 1], max = top[1] and top[1].value or 0, contexts = {} }
    for i, firing in ipairs(top) do
      card.contexts[i] = window(heldout, model.tokenizer, firing, by_place, o)
    end
    if labels and #fired[j] > 0 then card.label, card.label_score = best_label(fired[j], labels, width) end
    cards[j] = card
  end
  return cards
end

return M
