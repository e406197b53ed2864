-- ./dev bench [--json FILE] [--repeats N]: what the main job costs over the matrix products that it cannot avoid.
--
-- Everything is a ratio of two times taken in one process, alternating, the minimum of each over the repeats; bare
-- times depend on the machine and say little. The keys under "ratios":
--   topk_step_k32_f32, topk_step_k192_f32   training step (loss with metrics, gradients, Adam, unit rows) at 4096
--                        tokens, d 768, 24,576 latents, over the float32 encode product alone through oneDNN
--   topk_step_k32_bf16   the same with a bf16 encode product, over the float32 product
--   topk_peak_memory     peak resident memory of such a training process over (weights + Adam moments)
--   bert_base_forward    12 layers, d 768, 32 x 128 tokens: forward over its matrix products alone
-- and "start_up_ms": wall time of `saelua -e ''`, the minimum over 20 starts.
local sl = require "saelua"
local host = require "saelua.host"

local cfg = sl.config {
  json    = { nil, "write the figures to this file", type = "string" },
  repeats = { 5, "times each measurement is taken", min = 1 },
  bench_dir = { nil, "folder of the compiled benchmarks; null = beside the program", type = "string" },
}

local folder = cfg.bench_dir or host.exe_path:match "^(.*)/"

-- The SAE step ---------------------------------------------------------------------------------------------------

local function step_bench(arguments)
  local command = ("%s/sae_step_bench --json --repeats %d %s"):format(folder, cfg.repeats, arguments)
  local pipe = assert(io.popen(command))
  local text = pipe:read "*a"
  pipe:close()
  local result = sl.json.decode(text)
  if type(result) ~= "table" then error(("no result from: %s\n%s"):format(command, text), 0) end
  return result
end

-- A BERT-base-shaped forward ---------------------------------------------------------------------------------------

local BATCH, LENGTH, LAYERS, D, HEADS, D_MLP = 32, 128, 12, 768, 12, 3072

local function timed(fn)
  local start = host.now()
  sl.scope(fn)
  return host.now() - start
end

local function bert_forward()
  local model = sl.model.new({ vocab_size = 1000, hidden_size = D, num_hidden_layers = LAYERS,
    num_attention_heads = HEADS, intermediate_size = D_MLP, max_position_embeddings = LENGTH }, { head = false })
  local ids = sl.randint({ BATCH, LENGTH }, { bound = 1000, seed = 1 })
  local rows = BATCH * LENGTH
  local x, h = sl.randn({ rows, D }, { seed = 2 }), sl.randn({ rows, D_MLP }, { seed = 3 })
  local square, up, down = sl.randn({ D, D }), sl.randn({ D_MLP, D }), sl.randn({ D, D_MLP })
  local q = sl.randn({ BATCH * HEADS, LENGTH, D / HEADS }, { seed = 4 })
  local pattern = sl.randn({ BATCH * HEADS, LENGTH, LENGTH }, { seed = 5 })
  -- Per layer: Q, K, V and output [rows, D] x [D, D], the two MLP products, scores and mix of every head.
  local function products()
    for _ = 1, LAYERS do
      sl.scope(function()
        for _ = 1, 4 do sl.matmul(x, square:transpose()):free() end
        sl.matmul(x, up:transpose()):free()
        sl.matmul(h, down:transpose()):free()
        sl.matmul(q, q:transpose(2, 3)):free()
        sl.matmul(pattern, q):free()
      end)
    end
  end
  local function forward() model:forward(ids, { capture = model:resid(LAYERS - 1) }) end
  local best_forward, best_products = math.huge, math.huge
  for _ = 1, cfg.repeats + 1 do
    best_products = math.min(best_products, timed(products))
    best_forward = math.min(best_forward, timed(forward))
  end
  return best_forward / best_products, best_forward, best_products
end

-- Start-up ---------------------------------------------------------------------------------------------------------

local function start_up()
  local best = math.huge
  for _ = 1, 20 do
    local start = host.now()
    assert(os.execute(("%s -e ''"):format(host.exe_path)) == 0)
    best = math.min(best, host.now() - start)
  end
  return 1000 * best
end

-- All of it --------------------------------------------------------------------------------------------------------

local ratios, details = {}, {}
local function report(key, value, target, text)
  ratios[key] = value
  print(("%-20s %6.3f   target %s   %s"):format(key, value, target and ("<= %.2f"):format(target) or "-", text))
end

print(("saelua %s on %s"):format(sl.version, sl.run.machine()))
local product
for _, case in ipairs { { 32, "f32", 1.20 }, { 192, "f32", 1.40 }, { 32, "bf16" } } do
  local k, dtype, target = unpack(case)
  local r = step_bench(("--k %d%s"):format(k, dtype == "bf16" and " --bf16" or ""))
  product = product or r.product_ms
  local key = ("topk_step_k%d_%s"):format(k, dtype)
  details[key] = r
  report(key, r.step_ms / r.product_ms, target, "training step over the float32 encode product")
end
local memory = step_bench "--k 32 --no-product"
details.topk_peak_memory = memory
report("topk_peak_memory", memory.peak, 1.6, "peak resident memory over weights + Adam moments")
local ratio, forward, products = bert_forward()
details.bert_base_forward = { forward_ms = 1000 * forward, products_ms = 1000 * products }
report("bert_base_forward", ratio, 1.3, "forward over its matrix products")
local ms = start_up()
print(("%-20s %6.1f   target <= 20     milliseconds for saelua -e ''"):format("start_up_ms", ms))

if cfg.json then
  assert(sl.json.write(cfg.json, { ratios = ratios, start_up_ms = ms, details = details, machine = sl.run.machine(),
    version = sl.version, date = os.date "%Y-%m-%d" }))
end
