--- Evaluation of an SAE on held-out tokens. x = activation, x^ = reconstruction, tokens t = 1..N without special and
-- padding tokens; sums over everything in float64.
--
-- - `fvu` = sum_t |x_t - x^_t|^2 / sum_t |x_t - mean|^2, the mean taken over all N tokens
-- - `explained_variance` = 1 - fvu
-- - `mse` = mean over tokens and dimensions of (x - x^)^2
-- - `cosine` = mean_t x_t . x^_t / (|x_t| |x^_t|)
-- - `l0` = mean_t #{ i : f_i != 0 }
-- - `dead_fraction` = share of latents that fire on none of the N tokens (`dead_window_tokens` = N)
-- - `ce_clean`, `ce_sae`, `ce_ablated` = mean cross-entropy, in nats, of the true token at masked positions (15 % of
--   the ordinary tokens, all shown as [MASK], the same ones each time): the model as it is; with x replaced by x^ at
--   every token but [CLS], [SEP] and padding, the [MASK]ed ones included (which the SAE never saw in training); with
--   x replaced by 0 everywhere
-- - `ce_recovered` = (ce_ablated - ce_sae) / (ce_ablated - ce_clean)
-- - `decoder_redundancy` = mean_i max_{j != i} cos(W_dec[i], W_dec[j])
--
-- The same definitions as SAELens 6.54's `explained_variance`, `cossim`, `ce_loss_score` (it divides its mse by tokens
-- only), and dictionary_learning's `frac_recovered`.
-- @module saelua.eval
local core = require "saelua.core"
local strict = require "saelua.strict"

local M = {}

-- Contexts in batches -------------------------------------------------------------------------------------------

--- Calls `fn(ids, mask, first)` for batches of held-out contexts in order; every call is a scope.
-- @function each_batch
-- @tparam table heldout `tokens:heldout()`
-- @tparam integer batch_size contexts at a time
-- @tparam ?integer max_contexts nil = all
-- @tparam function fn `first` is the number of contexts before this batch
local function each_batch(heldout, batch_size, max_contexts, fn)
  local n = math.min(heldout.n, max_contexts or heldout.n)
  for first = 1, n, batch_size do
    local last = math.min(first + batch_size - 1, n)
    core.scope(function()
      fn(heldout.ids:slice(1, first, last):contiguous(), heldout.mask:slice(1, first, last):contiguous(), first - 1)
    end)
  end
end
M.each_batch = each_batch

--- The rows of a hookpoint's activations that count: neither special nor padding.
-- @tparam Model model
-- @tparam string at hookpoint
-- @tparam Tensor ids
-- @tparam Tensor mask
-- @tparam {integer,...} exclude token ids left out
-- @treturn Tensor rows [n, d]
-- @treturn Tensor their flat positions, i32 [n]
function M.rows(model, at, ids, mask, exclude)
  local out = model:forward(ids, { mask = mask, capture = { at } })
  local h = out.hidden[at]
  local kept = core.kept_positions(ids, exclude, mask)
  return core.gather_rows(h:reshape(-1, h:size(3)), kept), kept
end

-- Reconstruction --------------------------------------------------------------------------------------------------

-- Running sums; everything relative to the mean of the first batch, so that no large mean cancels the variance.
local function new_sums(d_sae)
  return { n = 0, d = 0, error = 0, square = 0, cosine = 0, active = 0, counts = core.zeros { d_sae } }
end

local function add_vector(sums, tensor)
  local values = tensor:totable()
  sums.linear = sums.linear or {}
  for i, v in ipairs(values) do sums.linear[i] = (sums.linear[i] or 0) + v end
end

-- sum_t cos(x_t, x^_t); a zero vector counts as cosine 0.
local function cosine_sum(x, x_hat)
  local dot = (x * x_hat):sum(2)
  local norms = (x:square():sum(2) * x_hat:square():sum(2)):sqrt()
  return (dot / norms:clamp_min(1e-20)):sum():item()
end

local function add_rows(sums, x, x_hat, codes)
  if not sums.shift then sums.shift = core.keep(x:mean(1)) end
  local centred = x - sums.shift
  sums.n, sums.d = sums.n + x:size(1), x:size(2)
  sums.error = sums.error + (x - x_hat):square():sum():item()
  sums.square = sums.square + centred:square():sum():item()
  add_vector(sums, centred:sum(1))
  sums.cosine = sums.cosine + cosine_sum(x, x_hat)
  sums.active = sums.active + codes:nnz()
  sums.counts:copy_(sums.counts + codes:counts())
end

local function reconstruction_metrics(sums)
  local mean_square = 0
  for _, v in ipairs(sums.linear) do mean_square = mean_square + v * v end
  local variance = sums.square - mean_square / sums.n
  local densities = sums.counts:totable()
  local dead = 0
  for i, count in ipairs(densities) do
    if count == 0 then dead = dead + 1 end
    densities[i] = count / sums.n
  end
  return {
    n_tokens = sums.n, fvu = sums.error / variance, explained_variance = 1 - sums.error / variance,
    mse = sums.error / (sums.n * sums.d), cosine = sums.cosine / sums.n, l0 = sums.active / sums.n,
    dead_fraction = dead / #densities, dead_window_tokens = sums.n,
  }, densities
end

-- Cross-entropy ---------------------------------------------------------------------------------------------------

local function masked_loss(model, batch, options)
  options.mask, options.logit_rows = batch.mask, batch.positions
  local out = model:forward(batch.hidden, options)
  local _, rows = core.cross_entropy(out.logits, batch.targets)
  return rows:sum():item()
end

local function ablated_loss(model, at, batch)
  local hook = model:hook(at, function(x) return x * 0 end)
  local ok, loss = pcall(masked_loss, model, batch, {})
  hook:remove()
  return ok and loss or error(loss, 0)
end

-- ce_clean, ce_sae, ce_ablated over the held-out contexts.
local function cross_entropies(model, sae, heldout, o)
  local sums, n = { 0, 0, 0 }, 0
  local tokenizer = model.tokenizer
  -- [MASK] stands for an ordinary token, and what is predicted is predicted there: it is spliced too.
  local spliced_out = {}
  for _, id in ipairs(o.exclude) do
    if id ~= tokenizer.mask_id then spliced_out[#spliced_out + 1] = id end
  end
  each_batch(heldout, o.batch_size, o.max_contexts, function(ids, mask, first)
    local hidden, positions, targets = core.mask_tokens(ids, mask, {
      exclude = o.exclude, mask_id = tokenizer.mask_id, vocab_size = model.vocab_size, rate = 0.15,
      seed = o.seed, step = first,
    })
    if positions:size(1) == 0 then return end
    local batch = { hidden = hidden, mask = mask, positions = positions, targets = targets }
    local ordinary = core.kept_mask(hidden, spliced_out, mask)
    sums[1] = sums[1] + masked_loss(model, batch, {})
    sums[2] = sums[2] + masked_loss(model, batch, { splice = { [o.at] = sae }, splice_mask = ordinary })
    sums[3] = sums[3] + ablated_loss(model, o.at, batch)
    n = n + positions:size(1)
  end)
  return sums[1] / n, sums[2] / n, sums[3] / n, n
end

--- How many rows have their largest logit at the target.
-- @tparam Tensor logits [n, V]
-- @tparam Tensor targets i32 [n]
-- @treturn integer
function M.hits(logits, targets)
  return core.eq(core.argmax(logits, 2):to "f32", targets:to(logits:device()):to "f32"):sum():item()
end

-- Redundancy --------------------------------------------------------------------------------------------------------

--- For each latent the largest cosine of its decoder row with another one's.
-- @tparam Tensor W_dec [d_sae, d_in]
-- @treturn {number,...}
function M.max_cosines(W_dec)
  local M_latents = W_dec:size(1)
  local result = {}
  if M_latents < 2 then return result end
  core.scope(function()
    local unit = core.normalize_rows_(W_dec:clone())
    local block = math.max(1, math.floor(4194304 / M_latents)) -- 16 MiB of cosines at a time
    for first = 1, M_latents, block do
      local last = math.min(first + block - 1, M_latents)
      core.scope(function()
        -- The largest entry of a row is the latent itself; with exact duplicates the second is 1 as well.
        local values = core.topk(unit:slice(1, first, last):matmul(unit:transpose()), 2)
        for i, row in ipairs(values:totable()) do result[first + i - 1] = row[2] end
      end)
    end
  end)
  return result
end

-- All of it -----------------------------------------------------------------------------------------------------------

local OPTIONS = {
  at = strict.required, batch_size = 32, exclude = strict.required, max_contexts = strict.optional, seed = 0,
  ce = true, redundancy = true,
}

--- Every number above for one SAE.
-- @tparam Model model
-- @tparam Sae sae
-- @tparam table heldout `tokens:heldout()`
-- @tparam table options `at` (hookpoint), `exclude` (token ids), `batch_size` (32), `max_contexts` (all), `seed` (0:
--   which tokens are masked), `ce` (true), `redundancy` (true)
-- @treturn table metrics, and `reasons` (why a key is missing)
-- @treturn table densities: for each latent the share of tokens on which it fires
-- @treturn table redundancy: for each latent its largest decoder cosine
function M.core(model, sae, heldout, options)
  local o = strict.options("eval.core", options, OPTIONS)
  local sums = new_sums(sae.d_sae)
  each_batch(heldout, o.batch_size, o.max_contexts, function(ids, mask)
    local x = M.rows(model, o.at, ids, mask, o.exclude)
    if x:size(1) == 0 then return end
    local codes = sae:encode(x)
    add_rows(sums, x, sae:decode(codes), codes)
  end)
  if sums.n == 0 then error("eval.core: the held-out contexts hold no ordinary token", 2) end
  local metrics, densities = reconstruction_metrics(sums)
  metrics.reasons = {}
  if o.ce and model:has_logits() and model.tokenizer and model.tokenizer.mask_id then
    metrics.ce_clean, metrics.ce_sae, metrics.ce_ablated, metrics.ce_tokens = cross_entropies(model, sae, heldout, o)
    metrics.ce_recovered = (metrics.ce_ablated - metrics.ce_sae) / (metrics.ce_ablated - metrics.ce_clean)
  else
    local why = o.ce and "the model has no masked-language-model head" or "not asked for"
    for _, key in ipairs { "ce_clean", "ce_sae", "ce_ablated", "ce_recovered" } do metrics.reasons[key] = why end
  end
  local redundancy = o.redundancy and M.max_cosines(sae:parameter "W_dec") or {}
  if #redundancy > 0 then
    local sum = 0
    for _, v in ipairs(redundancy) do sum = sum + v end
    metrics.decoder_redundancy = sum / #redundancy
  end
  return metrics, densities, redundancy
end

return M
