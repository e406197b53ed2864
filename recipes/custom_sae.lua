-- A new research idea in one file: AbsTopK, written on tensors and the tape, trained like a built-in SAE.
-- AbsTopK keeps the k pre-activations that are largest in size, with their sign, so that one latent can stand for both
-- ends of a direction (arXiv 2510.00404). Everything that makes it AbsTopK is in `encode`.
local sl = require "saelua"

local cfg = sl.config {
  model    = { "bert-mini", "built-in name, local directory, or a hub name in the local HF cache" },
  dataset  = { "storyworld", "built-in name, .txt or .jsonl file, or folder of them" },
  device   = { "cpu", "cpu, cuda or cuda:<n>" },
  layer    = { nil, "0-indexed layer whose output to train on; null = the middle one", type = "integer", min = 0 },
  max_tokens = { 1000000, "tokens to train on", min = 1 },
  batch_size = { 32, "sequences per model forward", min = 1 },
  ctx_len  = { 128, "tokens per sequence", min = 4 },
  k        = { 32, "active latents per token", min = 1 },
  expansion_factor = { 8, "latents per dimension of the activations", min = 1 },
  lr       = { nil, "learning rate; null = 2e-4 / sqrt(latents / 2^14)", type = "number", min = 0 },
  seed     = { 42, "data order and initialisation" },
  save_dir = { "output", "where run folders go" },
  run_name = { nil, "folder name; null = custom_sae, custom_sae-2, ...", type = "string" },
  save_every = { 1000, "steps between checkpoints", min = 1 },
  log_every = { nil, "steps between lines of metrics.jsonl; null = 1, on a GPU 10", type = "integer", min = 1 },
  resume   = { nil, "continue the run in this folder, with its options", type = "string", config_folder = true },
}

local model = sl.model.load(cfg.model, { device = cfg.device })
local tokens = sl.data.tokens(cfg.dataset, model.tokenizer, { ctx_len = cfg.ctx_len, seed = cfg.seed })
local at = model:resid(cfg.layer or math.floor(model.n_layers / 2))[1]
local acts = sl.data.activations(model, tokens, { at = { at }, batch_size = cfg.batch_size })

-- Parameters: rows of W_enc start as random directions, W_dec as the same rows of length one.
local d_in = model:width(at)
local d_sae = d_in * cfg.expansion_factor
local bound = 1 / math.sqrt(d_in)
local W_enc = sl.rand({ d_sae, d_in }, { seed = cfg.seed, low = -bound, high = bound, device = cfg.device })
local b_enc, b_dec = sl.zeros({ d_sae }, { device = cfg.device }), sl.zeros({ d_in }, { device = cfg.device })
local W_dec = sl.normalize_rows_(W_enc:clone())
local optim = sl.optim.adam { { "W_enc", W_enc }, { "b_enc", b_enc }, { "W_dec", W_dec }, { "b_dec", b_dec } }

-- The idea: the k entries largest in absolute value, signs kept.
local function encode(x)
  local pre = sl.linear(x - b_dec, W_enc, b_enc)
  return pre:topk(cfg.k, { absolute = true })
end

local steps = math.max(1, math.floor(cfg.max_tokens / acts.batch_tokens))
local run = sl.run.start(cfg, { recipe = "custom_sae", steps = steps, tokens_per_step = acts.batch_tokens })
run:describe(model, tokens, acts)
local sae = sl.sae.custom { architecture = "abstopk", k = cfg.k, encode = encode,
  W_enc = W_enc, b_enc = b_enc, W_dec = W_dec, b_dec = b_dec }
local unit = run:unit { at = at, sae = sae, optim = optim }
run:track("data", acts)

local lr = sl.schedule.linear(cfg.lr or sl.schedule.auto_lr("adam", d_sae), 0, steps)
local tape = sl.tape()

for step in run:steps() do
  local x = acts:next()[at]
  if step == 0 then b_dec:copy_(x:mean(1)) end
  tape:start()
  local values, ids = encode(x)
  local x_hat = sl.sparse_decode(values, ids, W_dec, b_dec)
  local fvu = (x - x_hat):square():sum() / (x - x:mean(1)):square():sum()
  fvu:backward()
  optim:step(lr(step))
  sl.normalize_rows_(W_dec)
  if run:logs() then
    local value = fvu:item()
    run:log({ loss = value, fvu = value, explained_variance = 1 - value, lr = lr(step) }, unit.name)
  end
end

local where = { at = at, exclude = tokens.special_ids }
unit.eval, unit.densities, unit.redundancy = sl.eval.core(model, sae, tokens:heldout(), where)
unit.latents = sl.latents.cards(model, sae, tokens:heldout(), unit.densities, where, tokens.source)
run:log_eval(unit.eval, unit.name)
run:save_final(unit, { format = "saelens" })
run:finish { units = { unit } }
