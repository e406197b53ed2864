-- The whole way from a recipe to the CUDA kernels, which the host layer runs on the CPU (tests/support/cuda_host): the
-- numbers of the CPU backend up to rounding, and nothing that waits in a training step.
local core = require "saelua.core"
local host = require "saelua.host"
local metrics = require "saelua.metrics"
local program = require "tests.support.program"
local sl = require "saelua"
local tiny = require "tests.support.tiny"

local dir, out

local function job(device, name, ...)
  return program.run { "recipes/topk_bert.lua", "--model", tiny.folder(), "--dataset", dir .. "/text.txt", "--device",
    device, "--run_name", name, "--save_dir", out, "--max_tokens", "240", "--batch_size", "2", "--ctx_len", "12",
    "--expansion_factor", "2", "--k", "4", "--log_every", "1", "--lr", "1e-3", ... }
end

-- Every field of every record, relative to its size; counts of entries may differ by a near-tie.
local function close_records(a, b, tolerance)
  local left, right = assert(metrics.read(a)), assert(metrics.read(b))
  assert.are.equal(#left, #right)
  for i, record in ipairs(left) do
    for key, value in pairs(record) do
      if key ~= "tokens_per_s" and type(value) == "number" then
        local other = right[i][key]
        local off = math.abs(value - other) / math.max(1e-2, math.abs(value))
        assert.is_true(off <= tolerance, ("%s of record %d: %g on the CPU, %g"):format(key, i, value, other))
      end
    end
  end
end

setup(function()
  program.path = host.exe_path
  dir = program.folder()
  out = dir .. "/out"
  tiny.text_file(dir .. "/text.txt", 40)
end)
teardown(function()
  host.remove_tree(dir)
  tiny.remove()
end)

describe("the CUDA backend under a recipe", function()
  it("trains to the numbers of the CPU", function()
    for _, device in ipairs { "cpu", "cuda" } do
      local run = job(device, device, "--auxk_alpha", "0.03", "--multi_topk", "true", "--dead_feature_threshold", "60",
        "--micro_acc_steps", "2", "--clip_norm", "1")
      assert.are.equal(0, run.status, run.err)
    end
    close_records(out .. "/cpu/metrics.jsonl", out .. "/cuda/metrics.jsonl", 2e-3)
  end)

  it("runs in bf16 and tf32", function()
    local settings = { bf16 = { "--dtype", "bf16", "--encode_dtype", "bf16" }, tf32 = { "--dtype", "tf32" } }
    for name, options in pairs(settings) do
      local run = job("cuda", name, unpack(options))
      assert.are.equal(0, run.status, run.err)
    end
  end)

  it("never waits in a training step", function()
    local model = sl.model.load(tiny.folder(), { device = "cuda" })
    local tokens = sl.data.tokens(dir .. "/text.txt", model.tokenizer, { ctx_len = 12 })
    local acts = sl.data.activations(model, tokens, { at = model:resid { 0 }, batch_size = 2, buffer_batches = 2 })
    local sae = sl.sae.topk { d_in = model.d_model, d_sae = 32, k = 4, seed = 1, device = "cuda" }
    local optim = sl.sae_optim(sae, { clip_norm = 1 })
    local name = acts.at[1]
    local function step()
      sl.scope(function()
        sae:loss(acts:next()[name], { auxk_alpha = 0.03, dead_feature_threshold = 40 }):backward()
        optim:step(1e-3)
      end)
    end
    for _ = 1, 3 do step() end -- libraries set themselves up
    local before, replays = core.waits "cuda"
    for _ = 1, 5 do step() end
    local after, later = core.waits "cuda"
    assert.are.equal(before, after)
    assert.is_true(later > replays)
  end)
end)
