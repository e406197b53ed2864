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

  -- Open attention uploads what it makes of the mask: no such pass may be recorded, or its replays would keep the mask.
  it("captures scores under the mask of each pass", function()
    local near, far = sl.model.load(tiny.folder()), sl.model.load(tiny.folder(), { device = "cuda" })
    local ids, site = sl.randint({ 2, 5 }, { seed = 3, bound = near.vocab_size }), "layers.0.attn_scores"
    for shown = 5, 1, -1 do
      local row = {}
      for i = 1, 5 do row[i] = i <= shown and 1 or 0 end
      local mask = sl.tensor({ row, { 1, 1, 1, 1, 1 } }, { dtype = "u8" })
      local scores = {}
      for i, model in ipairs { near, far } do
        local hidden = model:forward(ids, { mask = mask, capture = { site } }).hidden[site]
        scores[i] = (hidden:to "cpu" * 1e-30):totable() -- the lowest float becomes a number to compare by
      end
      for h = 1, #scores[1][1] do
        for i = 1, 5 do
          assert.are.equal(scores[1][1][h][1][i] < -1, scores[2][1][h][1][i] < -1, shown .. " keys, key " .. i)
        end
      end
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
