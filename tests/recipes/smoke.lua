-- The smoke runs: each recipe with small options, and what must be true afterwards.
--
-- Key: the recipe's name without .lua; value: a list of cases, run in order in one fresh folder. Fields of a case:
--   args     list of arguments; the recipe itself comes first by itself
--   status   expected exit status (0)
--   prints   Lua patterns, each found in the output (standard output and error together)
--   files    shell globs, each matching at least one non-empty file, relative to the run's folder
--   absent   shell globs that match nothing
--   falls    { file = "output/*/metrics.jsonl", field = "loss", by = 0.1 }: the mean of the field's last quarter is
--            below that of its first quarter by at least this share
--   last     { file = ..., field = ..., above = x, below = y }: bounds on the last value of a field
-- A recipe without an entry fails: every recipe has a smoke run.
local help = { args = { "--help" }, prints = { "%-%-[%w_]+" } }

local function run(more, name)
  name = name or "smoke"
  local args = { "--save_dir", "output", "--run_name", name }
  for _, word in ipairs(more) do args[#args + 1] = word end
  return {
    args = args,
    files = { "output/" .. name .. "/config.json", "output/" .. name .. "/metrics.jsonl",
      "output/" .. name .. "/report.html" },
    falls = { file = "output/" .. name .. "/metrics.jsonl", field = "loss", by = 0.02 },
  }
end

local function refused(args, pattern, status) return { args = args, status = status or 2, prints = { pattern } } end

local topk = run({ "--max_tokens", "30000", "--batch_size", "8", "--ctx_len", "64",
  "--expansion_factor", "4", "--k", "8" })
table.insert(topk.files, "output/smoke/final/*")

local function activation(name, ...)
  return run({ "--max_tokens", "15000", "--batch_size", "8", "--ctx_len", "64", "--expansion_factor", "4", "--k", "8",
    "--activation", name, ... }, name)
end

local batchtopk = activation "batchtopk"
table.insert(batchtopk.files, "output/batchtopk/final/sae_weights.safetensors")
batchtopk.last = { file = "output/batchtopk/metrics.jsonl", field = "eval/l0", above = 4, below = 16 }

local groupmax = activation("groupmax", "--format", "sparsify")
table.insert(groupmax.files, "output/groupmax/final/sae.safetensors")

local small = run({ "--max_tokens", "20000", "--batch_size", "8", "--ctx_len", "64", "--expansion_factor", "4",
  "--k", "8", "--optimizer", "adam8bit", "--low_memory", "--memory_budget", "1G" })
small.args[4] = "small"
small.files = { "output/small/final/*" }
small.falls.file = "output/small/metrics.jsonl"
small.prints = { "peak memory of tensors" }

local pretrain = run({ "--steps", "40", "--batch_size", "8", "--ctx_len", "32", "--n_layers", "1", "--d_model", "32",
  "--n_heads", "2", "--d_mlp", "64", "--vocab_documents", "500", "--vocab_size", "300", "--warmup", "5" })
pretrain.files = { "output/smoke/config.json", "output/smoke/metrics.jsonl", "output/smoke/model/config.json",
  "output/smoke/model/model.safetensors", "output/smoke/model/vocab.txt" }

return {
  topk_bert = {
    help,
    topk,
    small,
    refused({ "--low_memory", "--micro_acc_steps", "2" }, "micro_acc_steps 1", 1),
    refused({ "--memory_budget", "12Q" }, "not a size", 1),
    refused({ "--max_tokens", "20000", "--memory_budget", "1M", "--save_dir", "none" }, "out of memory on cpu", 1),
    batchtopk,
    groupmax,
    refused({ "--activation", "groupmax" }, "SAELens has no 'groupmax'.*%-%-format sparsify", 1),
    refused({ "--activation", "groupmax", "--format", "sparsify", "--k_decay_steps", "5" }, "k_decay_steps", 1),
    refused({ "--activation", "batchtopk", "--multi_topk" }, "multi_topk", 1),
    refused({ "--no_such_option", "1" }, "no_such_option"),
    refused({ "--max_token", "1" }, "max_tokens"),
    refused({ "--max_tokens", "many" }, "max_tokens"),
    refused({ "--optimizer", "muon" }, "later release"),
    refused({ "--layers", "99", "--save_dir", "none" }, "layer", 1),
  },
  custom_sae = {
    help,
    run({ "--max_tokens", "30000", "--batch_size", "8", "--ctx_len", "64", "--expansion_factor", "4",
      "--k", "8" }),
  },
  pretrain_bert = { help, pretrain },
}
