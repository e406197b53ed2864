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

return {
  topk_bert = {
    help,
    {
      args = { "--max_tokens", "20000", "--save_dir", "output", "--run_name", "smoke" },
      files = { "output/smoke/config.json", "output/smoke/metrics.jsonl", "output/smoke/report.html",
        "output/smoke/final/*" },
      falls = { file = "output/smoke/metrics.jsonl", field = "loss", by = 0.05 },
    },
    { args = { "--no_such_option", "1" }, status = 2, prints = { "no_such_option" } },
  },
}
