--- A made-up training run for tests of the report: fixed numbers, no randomness of the machine, no engine needed.
-- It is what a caller hands to `saelua.report`, not a measurement.

local M = {}

-- Park and Miller's generator: the same sample everywhere.
local function generator(seed)
  local state = seed
  return function()
    state = state * 16807 % 2147483647
    return state / 2147483647
  end
end

local function training(n, rnd)
  local c = { step = {}, tokens = {}, loss = {}, explained_variance = {}, fvu = {}, l0 = {}, dead_fraction = {},
    tokens_per_s = {}, lr = {}, ["eval/explained_variance"] = {} }
  for i = 1, n do
    local t = i / n
    local fvu = 0.1 + 1.2 * math.exp(-14 * t) + 0.012 * (rnd() - 0.5)
    c.step[i], c.tokens[i] = i - 1, i * 4096
    c.loss[i], c.fvu[i], c.explained_variance[i] = 80 * fvu, fvu, 1 - fvu
    c.l0[i] = 32 - 0.3 * math.exp(-20 * t) * rnd()
    c.dead_fraction[i] = t < 0.05 and 0 / 0 or 0.12 * math.exp(-4 * t) * (1 + 0.02 * rnd())
    c.tokens_per_s[i] = 41000 + 3000 * (rnd() - 0.5) - 9000 * math.exp(-40 * t)
    c.lr[i] = 3e-4 * math.min(1, t / 0.05) * (t > 0.8 and (1 - t) / 0.2 or 1)
    c["eval/explained_variance"][i] = i % math.floor(n / 6) == 0 and 1 - fvu - 0.01 or 0 / 0
  end
  c.loss[math.floor(n / 2)] = 0 / 0
  return c
end

local SENTENCES = {
  { "the", "cap", "##tain", "sold", "the", "red", "boat", "." },
  { "yesterday", "mary", "did", "not", "visit", "the", "harbor", "." },
  { "two", "old", "sail", "##ors", "were", "happy", "in", "the", "market", "." },
  { "[CLS]", "nobody", "saw", "the", "small", "dog", "near",
    "the", "river", ",", "but", "anna", "heard", "it", ".", "[SEP]" },
}

local LABELS = { "tense = past", "number = plural", "negation", "place", "sentiment = positive", "article before noun" }

local function latent_list(n, rnd)
  local out = {}
  for i = 1, n do
    local contexts, max = {}, 0
    for c = 1, 8 do
      local tokens, acts, peak = SENTENCES[(i + c) % #SENTENCES + 1], {}, 1
      for t = 1, #tokens do
        acts[t] = rnd() < 0.7 and 0 or 7 * rnd() * (1 - c / 12)
        if acts[t] > acts[peak] then peak = t end
      end
      max = math.max(max, acts[peak])
      contexts[c] = { tokens = tokens, acts = acts, peak = peak }
    end
    out[i] = { id = 37 * i * i % 2048, density = 0.0004 * i * i, max = max, contexts = contexts,
      label = LABELS[i % 7 + 1], label_score = LABELS[i % 7 + 1] and 0.6 + 0.4 * rnd() or nil }
  end
  return out
end

local function per_latent(n, rnd)
  local densities, redundancy = {}, {}
  for i = 1, n do
    local normal = rnd() + rnd() + rnd() + rnd() - 2
    densities[i] = i % 25 == 0 and 0 or math.min(1, 10 ^ (-2.1 + 1.1 * normal))
    redundancy[i] = math.min(1, math.max(0, 0.34 + 0.12 * (rnd() + rnd() + rnd() - 1.5)) + (i % 60 == 0 and 0.5 or 0))
  end
  return densities, redundancy
end

--- A complete data table for `saelua.report`.
-- @tparam[opt=600] number steps length of the curves
-- @tparam[opt=12] number latents number of latent cards
-- @treturn table
function M.data(steps, latents)
  local rnd = generator(20240229)
  local densities, redundancy = per_latent(2048, rnd)
  return {
    title = "TopK SAE on bert-mini, layer 2",
    run = { name = "topk_bert", command = "saelua recipes/topk_bert.lua --layers 2 --k 32",
      started = "2024-02-29 10:12 UTC",
      duration_s = 131.4, machine = "2 CPU cores, 8 GB", version = "0.1.0" },
    config = { { "model", "bert-mini" }, { "dataset", "storyworld" }, { "layers", { 2 } }, { "k", 32 }, { "lr", 3e-4 },
      { "normalize_decoder", true }, { "max_tokens", 2457600 } },
    model = { name = "bert-mini", d_model = 256, n_layers = 4, hookpoint = "encoder.layer.2.output" },
    sae = { architecture = "topk", d_in = 256, d_sae = 2048, k = 32, n_parameters = 1050880 },
    curves = training(steps or 600, rnd),
    eval = { fvu = 0.1093, explained_variance = 0.8907, mse = 8.71, cosine = 0.9523, l0 = 31.97, dead_fraction = 0.0399,
      dead_window_tokens = 1000000, ce_clean = 1.412, ce_sae = 1.506, ce_ablated = 6.93, ce_recovered = 0.98297,
      decoder_redundancy = 0.357, n_tokens = 65536 },
    densities = densities, redundancy = redundancy, latents = latent_list(latents or 12, rnd),
  }
end

return M
