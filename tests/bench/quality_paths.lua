-- Do the fast paths learn the same? Loss curves of recipes/topk_bert.lua on each, beside what a seed changes.
--
--   saelua tests/bench/quality_paths.lua [--max_tokens N] [--seeds N] [--work DIR] [--json FILE]
--
-- Every path runs with seed 1; the reference, float32 throughout, also with seeds 2 .. N: the spread over them is the
-- noise. A path's distance is the largest |loss - reference| / reference over the last three quarters of the logged
-- steps; the noise is the same distance between two seeds, its largest and its least. Held-out FVU stands beside it.
local sl = require "saelua"
local host = require "saelua.host"
local metrics = require "saelua.metrics"

local cfg = sl.config {
  max_tokens = { 1000000, "tokens of each run", min = 50000 },
  seeds = { 4, "runs of the reference", min = 2 },
  work = { nil, "folder for the runs; null = a temporary one, removed again", type = "string" },
  json = { nil, "write the figures to this file", type = "string" },
}

local PATHS = {
  { "float32 (screened where the CPU can)", "" },
  { "bf16 encode", "--encode_dtype bf16" },
  { "float32, low memory", "--encode_dtype f32_plain --low_memory true" },
  { "float32, 8-bit moments", "--encode_dtype f32_plain --optimizer adam8bit" },
}

local work = cfg.work or os.tmpname() .. ".d"
assert(sl.fs.mkdir(work))

local function train(name, options, seed)
  local command = ("%s recipes/topk_bert.lua --max_tokens %d --init_seeds %d --shuffle_seed %d --save_dir %s "
    .. "--run_name %s %s >%s/%s.log 2>&1"):format(host.exe_path, cfg.max_tokens, seed, seed, work, name, options,
    work, name)
  if not sl.fs.exists(sl.fs.join(work, name, "final")) and os.execute(command) ~= 0 then
    error(("failed: %s\nsee %s/%s.log"):format(command, work, name), 0)
  end
  local curve, heldout = {}, nil
  for _, record in ipairs(assert(metrics.read(sl.fs.join(work, name, "metrics.jsonl")))) do
    if record.loss then curve[#curve + 1] = record.fvu end
    heldout = record["eval/fvu"] or heldout
  end
  return { curve = curve, heldout = heldout }
end

local function distance(a, b)
  local most = 0
  for i = math.floor(#a.curve / 4) + 1, #a.curve do
    most = math.max(most, math.abs(a.curve[i] - b.curve[i]) / b.curve[i])
  end
  return most
end

local reference = {}
for seed = 1, cfg.seeds do reference[seed] = train("reference-" .. seed, "--encode_dtype f32_plain", seed) end
local least, most, low, high = math.huge, 0, math.huge, 0
for i, a in ipairs(reference) do
  low, high = math.min(low, a.heldout), math.max(high, a.heldout)
  for j = i + 1, #reference do
    local d = distance(a, reference[j])
    least, most = math.min(least, d), math.max(most, d)
  end
end
print(("float32 reference, %d seeds: curves differ by %.2f to %.2f %%, held-out FVU %.5f to %.5f"):format(cfg.seeds,
  100 * least, 100 * most, low, high))
local result = { noise = { least = least, most = most, heldout = { low, high } }, paths = {}, tokens = cfg.max_tokens }
for i, path in ipairs(PATHS) do
  local run = train("path-" .. i, path[2], 1)
  local off = distance(run, reference[1])
  result.paths[i] = { name = path[1], options = path[2], distance = off, heldout = run.heldout }
  print(("%-38s off by %.4f %% at most, held-out FVU %.5f (reference, same seed %.5f)"):format(path[1], 100 * off,
    run.heldout, reference[1].heldout))
end
if cfg.json then assert(sl.json.write(cfg.json, result)) end
if not cfg.work then sl.fs.remove_tree(work) end
