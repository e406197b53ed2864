-- TopK sparse autoencoders on BERT layers, one per layer and seed, from one model pass.
-- Without options: the built-in model and corpus, no network, about a minute on two cores.
-- Example: --model DIR --dataset text.txt --layers 3 --k 32 --expansion_factor 16
local sl = require "saelua"

local cfg = sl.config {
  model     = { "bert-mini", "built-in name, local directory, or a hub name in the local HF cache",
                group = "Model and data" },
  dataset   = { "storyworld", "built-in name, .txt or .jsonl file, folder of them, or - (standard input)" },
  text_column = { nil, "column of a .jsonl row that holds the text; null = found by name", type = "string" },
  max_documents = { nil, "read at most this many documents", type = "integer", min = 1 },
  heldout   = { 0.05, "share of the contexts kept from training, the last ones of the data", min = 0.001, max = 0.9 },
  device    = { "cpu", "cpu, cuda or cuda:<n>" },
  memory_budget = { nil, "most memory for tensors on the device, such as 12G; null = all that is free there",
                type = "string" },
  dtype     = { "f32", "the model's arithmetic; tf32: a GPU's, and the dictionary's too",
                one_of = { "f32", "bf16", "tf32" } },
  layers    = { nil, "0-indexed layers whose output to train on; null = the middle one", type = "integers", min = 0 },
  layer_stride = { 1, "with all layers: every n-th", min = 1 },
  hookpoints = { {}, "hook points by name or shell glob, in place of layers", type = "strings" },
  max_tokens = { 2000000, "tokens given to each SAE, special ones not counted; data are repeated as needed", min = 1 },
  batch_size = { 32, "sequences per model forward", min = 1 },
  ctx_len   = { 128, "tokens per sequence, [CLS] and [SEP] included", min = 4 },
  batch_tokens = { nil, "tokens per SAE batch; null = batch_size * ctx_len", type = "integer", min = 1 },
  buffer_batches = { 8, "SAE batches in the buffer that mixes tokens across sequences", min = 1 },
  shuffle_seed = { 42, "order of the data" },
  activation = { "topk", "which latents are active: the k largest of a token; the tokens * k largest of a batch; or "
                 .. "the largest of each of k groups", one_of = { "topk", "batchtopk", "groupmax" },
                 group = "Dictionary" },
  k         = { 32, "active latents per token (batchtopk: on average)", min = 1, alias = "k" },
  expansion_factor = { 16, "latents per dimension of the activations", min = 1 },
  num_latents = { 0, "latents; 0 = d_in * expansion_factor", min = 0 },
  init_seeds = { { 42 }, "weight initialisation; several = one SAE for each", type = "integers" },
  init_b_dec = { "mean", "b_dec from the first batch", one_of = { "mean", "geometric_median", "zeros" } },
  normalize_decoder = { true, "decoder rows of length one, their gradients without a component along them" },
  k_decay_steps = { 0, "steps over which k falls from min(latents, 10 d_in)", min = 0 },
  loss_fn   = { "fvu", "fvu = sum e^2 / sum (x - mean)^2; mse = mean e^2", one_of = { "fvu", "mse" }, group = "Loss",
                refuse = { ce = "end-to-end losses arrive in a later release; use fvu or mse",
                           kl = "end-to-end losses arrive in a later release; use fvu or mse" } },
  auxk_alpha = { 1 / 32, "weight of the loss that revives dead latents (AuxK); 0 = off", min = 0 },
  multi_topk = { false, "add 1/8 of the loss with 4k latents" },
  dead_feature_threshold = { 200000, "tokens of silence after which a latent is dead (AuxK, dead_fraction)", min = 1 },
  dead_percentage_threshold = { 0.0005, "rate below which a latent counts in rare_fraction", min = 0, max = 1 },
  optimizer = { "adam", "update rule; adam8bit: Adam with moments in 8 bits", group = "Optimiser",
                one_of = { "adam", "adam8bit", "sgd" },
                refuse = { muon = "muon arrives in a later release; use adam, adam8bit or sgd",
                           signum = "signum arrives in a later release; use adam, adam8bit or sgd" } },
  lr        = { nil, "learning rate; null = 2e-4 / sqrt(latents / 2^14) (adam)", type = "number", min = 0 },
  lr_schedule = { "linear", "between warm-up and end", one_of = { "constant", "linear", "cosine", "cosine_restarts" } },
  lr_warmup_steps = { nil, "null = 5 % of the steps", type = "integer", min = 0 },
  lr_decay_steps = { 0, "linear fall to 0 at the end", min = 0 },
  weight_decay = { 0.0, "decoupled, on W_enc and W_dec", type = "number", min = 0 },
  clip_norm = { 0.0, "largest global gradient norm; 0 = off", type = "number", min = 0 },
  grad_acc_steps = { 1, "batches per optimiser step", min = 1 },
  micro_acc_steps = { 1, "pieces of a batch, one at a time, to save memory", min = 1 },
  low_memory = { false, "step in blocks of latents, without ever storing the whole gradient" },
  encode_dtype = { "f32", "the encoder product; f32_plain: f32 more slowly; bf16 keeps float32 master weights",
    one_of = { "f32", "f32_plain", "bf16" } },
  save_dir  = { "output", "where run folders go", group = "Output" },
  run_name  = { nil, "folder name; null = topk_bert, topk_bert-2, ...", type = "string" },
  save_every = { 1000, "optimiser steps between checkpoints", min = 1 },
  keep_checkpoints = { 3, "older ones are removed", min = 1 },
  log_every = { nil, "optimiser steps between lines of metrics.jsonl; null = 1, on a GPU 10", type = "integer",
                min = 1 },
  format    = { "saelens", "layout of final/", one_of = { "saelens", "sparsify" } },
  resume    = { nil, "continue the run in this folder, with its options", type = "string", config_folder = true },
  log_to_wandb = { false, "not built yet",
                   refuse = { ["true"] = "trackers arrive in a later release; metrics.jsonl holds everything" } },
}

if cfg.low_memory and cfg.grad_acc_steps * cfg.micro_acc_steps > 1 then
  error("--low_memory keeps no gradient to add to: use it with --grad_acc_steps 1 and --micro_acc_steps 1", 0)
end
if cfg.memory_budget then sl.memory_budget(cfg.device, cfg.memory_budget) end

-- Model, data, activations.
local model = sl.model.load(cfg.model, { device = cfg.device, dtype = cfg.dtype })
local tokens = sl.data.tokens(cfg.dataset, model.tokenizer, { ctx_len = cfg.ctx_len, seed = cfg.shuffle_seed,
  heldout = cfg.heldout, text_column = cfg.text_column, max_documents = cfg.max_documents })
local acts = sl.data.activations(model, tokens, { at = sl.run.choose_hookpoints(model, cfg),
  batch_size = cfg.batch_size, batch_tokens = cfg.batch_tokens, buffer_batches = cfg.buffer_batches })

local tokens_per_step = acts.batch_tokens * cfg.grad_acc_steps
local steps = math.max(1, math.floor(cfg.max_tokens / tokens_per_step))
local run = sl.run.start(cfg, { recipe = "topk_bert", steps = steps, tokens_per_step = tokens_per_step })
run:describe(model, tokens, acts)

-- One dictionary and optimiser for each hook point and seed.
local units = {}
for _, at in ipairs(acts.at) do
  for _, seed in ipairs(cfg.init_seeds) do
    local sae = sl.sae[cfg.activation] { d_in = model:width(at), expansion = cfg.expansion_factor,
      d_sae = cfg.num_latents, k = cfg.k, seed = seed, normalize_decoder = cfg.normalize_decoder, device = cfg.device }
    local optim = sl.sae_optim(sae, { rule = cfg.optimizer, weight_decay = cfg.weight_decay,
      clip_norm = cfg.clip_norm })
    units[#units + 1] = run:unit { at = at, seed = #cfg.init_seeds > 1 and seed or nil, sae = sae, optim = optim }
  end
end
run:track("data", acts)
run:check_plan(units[1].sae)

-- Schedules: a share of each dictionary's peak rate, and k.
local S = sl.schedule
for _, u in ipairs(units) do u.peak = cfg.lr or S.auto_lr(cfg.optimizer, u.sae.d_sae) end
local warmup = math.min(cfg.lr_warmup_steps or math.floor(0.05 * steps), steps - 1)
local body = math.max(1, steps - warmup)
local lr = S.final_decay(steps, math.min(cfg.lr_decay_steps, body), S.warmup(warmup, ({
  constant = function() return S.constant(1) end,
  linear = function() return S.linear(1, 0, body) end,
  cosine = function() return S.cosine(1, body) end,
  cosine_restarts = function() return S.cosine_restarts(1, body, { cycles = 4 }) end,
})[cfg.lr_schedule]()))
local k_at = S.k_decay(math.min(units[1].sae.d_sae, 10 * units[1].sae.d_in), cfg.k, cfg.k_decay_steps)

-- Training.
for step in run:steps() do
  for micro = 1, cfg.grad_acc_steps do
    local x = acts:next()
    for _, u in ipairs(units) do
      if step == 0 and micro == 1 then u.sae:init_b_dec(cfg.init_b_dec, x[u.at]) end
      u.loss = u.sae:loss(x[u.at], { kind = cfg.loss_fn, k = k_at(step), auxk_alpha = cfg.auxk_alpha,
        multi_alpha = cfg.multi_topk and 1 / 8 or 0, dead_feature_threshold = cfg.dead_feature_threshold,
        micro_acc_steps = cfg.micro_acc_steps, dtype = cfg.encode_dtype })
      if run:logs() then
        run:check_finite(u.loss.loss, u.name)
        u.record = sl.run.average(micro > 1 and u.record or nil, u.loss, micro)
      end
      if cfg.low_memory then
        u.loss:step(u.optim, u.peak * lr(step))
      else
        u.loss:backward(1 / cfg.grad_acc_steps)
      end
    end
  end
  for _, u in ipairs(units) do
    if not cfg.low_memory then u.optim:step(u.peak * lr(step)) end
    if run:logs() then
      local r = u.record
      r.lr, r.k, r.grad_norm = u.peak * lr(step), k_at(step), u.optim.grad_norm
      r.dead_fraction = u.sae:dead_fraction(cfg.dead_feature_threshold)
      r.rare_fraction = u.sae:rare_fraction(cfg.dead_percentage_threshold)
      run:log(r, u.name)
    end
  end
end

-- Evaluation on held-out tokens, files, report.
for _, u in ipairs(units) do
  local where = { at = u.at, exclude = tokens.special_ids, batch_size = cfg.batch_size }
  u.eval, u.densities, u.redundancy = sl.eval.core(model, u.sae, tokens:heldout(), where)
  u.latents = sl.latents.cards(model, u.sae, tokens:heldout(), u.densities, where, tokens.source)
  run:log_eval(u.eval, u.name)
  run:save_final(u, { format = cfg.format })
end
run:finish { units = units }
