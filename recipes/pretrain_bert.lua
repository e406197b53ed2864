-- Pretrains a small BERT by masked language modelling, vocabulary included: how the built-in bert-mini was made.
-- With its defaults it makes that model: saelua recipes/pretrain_bert.lua
local sl = require "saelua"

local cfg = sl.config {
  dataset    = { "storyworld", "built-in name, .txt or .jsonl file, or folder of them", group = "Data" },
  vocab_size = { 832, "WordPiece vocabulary, trained on the data set", min = 100 },
  vocab_documents = { 20000, "documents that the vocabulary is trained on", min = 1 },
  ctx_len    = { 128, "tokens per sequence", min = 8 },
  seed       = { 42, "data order, masking and initialisation" },
  device     = { "cpu", "cpu, cuda or cuda:<n>" },
  n_layers   = { 4, "layers", min = 1, group = "Model" },
  d_model    = { 128, "width of the residual stream", min = 1 },
  n_heads    = { 4, "attention heads", min = 1 },
  d_mlp      = { 512, "width of the MLP", min = 1 },
  steps      = { 8000, "optimiser steps", min = 1, group = "Optimiser" },
  batch_size = { 16, "sequences per step", min = 1 },
  lr         = { 1e-3, "peak learning rate", min = 0 },
  warmup     = { 400, "steps of linear warm-up", min = 0 },
  weight_decay = { 0.01, "decoupled; not on biases and norms", min = 0 },
  clip_norm  = { 1.0, "largest global gradient norm", type = "number", min = 0 },
  mask_rate  = { 0.15, "share of tokens to predict", min = 0.01, max = 1 },
  save_dir   = { "output", "where run folders go", group = "Output" },
  run_name   = { nil, "folder name; null = pretrain_bert, pretrain_bert-2, ...", type = "string" },
  log_every  = { nil, "steps between lines of metrics.jsonl; null = 1, on a GPU 10", type = "integer", min = 1 },
}

-- Vocabulary, model, data.
local run = sl.run.start(cfg, { recipe = "pretrain_bert", steps = cfg.steps,
  tokens_per_step = cfg.batch_size * cfg.ctx_len })
local folder = run:path "model"
local vocabulary = sl.wordpiece.train(sl.data.documents(cfg.dataset, { seed = cfg.seed, n = cfg.vocab_documents }),
  { vocab_size = cfg.vocab_size })
assert(sl.fs.mkdir(folder))
assert(sl.wordpiece.write(folder, vocabulary))
local tokenizer = assert(sl.tokenizer(folder))
local model = sl.model.new({
  vocab_size = tokenizer.vocab_size, hidden_size = cfg.d_model, num_hidden_layers = cfg.n_layers,
  num_attention_heads = cfg.n_heads, intermediate_size = cfg.d_mlp, max_position_embeddings = cfg.ctx_len,
}, { seed = cfg.seed, tokenizer = tokenizer, name = "bert-mini", device = cfg.device })
local tokens = sl.data.tokens(cfg.dataset, tokenizer, { ctx_len = cfg.ctx_len, seed = cfg.seed })
local masking = { exclude = tokens.special_ids, mask_id = tokenizer.mask_id, vocab_size = tokenizer.vocab_size,
  rate = cfg.mask_rate, seed = cfg.seed }

-- AdamW, warm-up and cosine.
local parameters = model:parameters()
model:train()
local optim = sl.optim.adam(parameters, { weight_decay = cfg.weight_decay, decay_matrices_only = true })
local lr = sl.schedule.warmup(cfg.warmup, sl.schedule.cosine(cfg.lr, math.max(1, cfg.steps - cfg.warmup)))
local tape = sl.tape()

-- Loss and accuracy at the hidden positions.
local function predict(ids, mask)
  local hidden, positions, targets = sl.mask_tokens(ids, mask, masking)
  local logits = model:forward(hidden, { mask = mask, logit_rows = positions }).logits
  local hits = sl.eval.hits(logits, targets)
  return sl.cross_entropy(logits, targets), hits, targets:size(1)
end

-- Training: of the hidden tokens 80 % are [MASK], 10 % random, 10 % as they are.
masking.random_share, masking.keep_share = 0.1, 0.1
for step in run:steps() do
  masking.step = step
  tape:start()
  local loss, hits, n = predict(tokens:next(cfg.batch_size))
  loss:backward()
  local norm = optim:clip(cfg.clip_norm)
  optim:step(lr(step))
  run:log { loss = loss:item(), masked_accuracy = hits / n, lr = lr(step), grad_norm = norm }
end

-- Held-out masked accuracy, every hidden token shown as [MASK].
masking.random_share, masking.keep_share = 0, 0
local total = { loss = 0, hits = 0, n = 0 }
sl.eval.each_batch(tokens:heldout(), cfg.batch_size, nil, function(ids, mask, first)
  masking.step = 2 ^ 31 + first
  local loss, hits, n = predict(ids, mask)
  total.loss, total.hits, total.n = total.loss + loss:item() * n, total.hits + hits, total.n + n
end)
local result = { ce = total.loss / total.n, masked_accuracy = total.hits / total.n, masked_tokens = total.n }
run:log_eval(result)
assert(model:save(folder))
run:finish()
print(("held-out masked accuracy %.4f, cross-entropy %.4f nats on %d tokens; saved %s"):format(result.masked_accuracy,
  result.ce, total.n, folder))
