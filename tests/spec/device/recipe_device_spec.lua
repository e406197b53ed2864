-- The main job on a device whose memory the host cannot read (tests/support/guarded_device.c takes the place of
-- cuda:0): the numbers of the CPU to the last bit, checkpoints that either device continues, and no waiting.
local core = require "saelua.core"
local fs = require "saelua.fs"
local host = require "saelua.host"
local metrics = require "saelua.metrics"
local program = require "tests.support.program"
local sl = require "saelua"
local tiny = require "tests.support.tiny"

local dir, out

local function job(device, name, ...)
  local words = { "recipes/topk_bert.lua", "--model", tiny.folder(), "--dataset", dir .. "/text.txt", "--device",
    device, "--run_name", name, "--save_dir", out, "--max_tokens", "1200", "--batch_size", "4", "--ctx_len", "16",
    "--expansion_factor", "4", "--k", "4", "--log_every", "1", "--lr", "1e-3", ... }
  return program.run(words)
end

local function same_records(a, b, first)
  local left, right = assert(metrics.read(a)), assert(metrics.read(b))
  assert.are.equal(#left, #right)
  for i = first or 1, #left do
    for key, value in pairs(left[i]) do
      if key ~= "tokens_per_s" then assert.are.equal(value, right[i][key], key .. " of record " .. i) end
    end
  end
end

setup(function()
  program.path = host.exe_path -- the guarded program, also where SAELUA_BIN names the other
  dir = program.folder()
  out = dir .. "/out"
  tiny.text_file(dir .. "/text.txt", 120)
end)
teardown(function()
  host.remove_tree(dir)
  tiny.remove()
end)

describe("a device whose memory the host cannot read", function()
  it("trains to the bits of the CPU, with every loss term", function()
    for _, device in ipairs { "cpu", "cuda" } do
      local run = job(device, device, "--auxk_alpha", "0.03", "--multi_topk", "true", "--dead_feature_threshold", "200",
        "--micro_acc_steps", "2", "--grad_acc_steps", "2", "--clip_norm", "1", "--max_tokens", "2400")
      assert.are.equal(0, run.status, run.err)
    end
    same_records(out .. "/cpu/metrics.jsonl", out .. "/cuda/metrics.jsonl")
    assert.are.equal(fs.read(out .. "/cpu/final/sae_weights.safetensors"),
      fs.read(out .. "/cuda/final/sae_weights.safetensors"))
  end)

  it("runs the other recipes to the numbers of the CPU", function()
    local common = { "--dataset", dir .. "/text.txt", "--save_dir", out, "--batch_size", "4", "--ctx_len", "16",
      "--log_every", "1" }
    local jobs = {
      custom_sae = { "--model", tiny.folder(), "--max_tokens", "640", "--k", "4", "--expansion_factor", "2" },
      pretrain_bert = { "--vocab_size", "150", "--n_layers", "1", "--d_model", "16", "--n_heads", "2", "--d_mlp", "32",
        "--steps", "3" },
    }
    for recipe, options in pairs(jobs) do
      for _, device in ipairs { "cpu", "cuda" } do
        local words = { "recipes/" .. recipe .. ".lua", "--device", device, "--run_name", recipe .. device }
        for _, list in ipairs { common, options } do
          for _, word in ipairs(list) do words[#words + 1] = word end
        end
        local run = program.run(words)
        assert.are.equal(0, run.status, run.err)
      end
      same_records(out .. "/" .. recipe .. "cpu/metrics.jsonl", out .. "/" .. recipe .. "cuda/metrics.jsonl")
    end
  end)

  it("continues a checkpoint of the other device", function()
    for device, name in pairs { cpu = "whole", cuda = "begun" } do
      local run = job(device, name, "--save_every", "5", "--keep_checkpoints", "9")
      assert.are.equal(0, run.status, run.err)
    end
    local resumed = program.run { "recipes/topk_bert.lua", "--resume", out .. "/begun/checkpoints/5", "--device", "cpu",
      "--log_every", "1" }
    assert.are.equal(0, resumed.status, resumed.err)
    same_records(out .. "/whole/metrics.jsonl", out .. "/begun/metrics.jsonl")
  end)

  it("stops a run whose loss is not finite, also when nothing looked at the steps before", function()
    local recipe = program.write(dir .. "/broken.lua", [[
local sl = require "saelua"
local sae = sl.sae.topk { d_in = 8, d_sae = 32, k = 4, seed = 1, device = "cuda" }
local optim = sl.sae_optim(sae)
local function step(x)
  local loss = sae:loss(x:to "cuda", { kind = "mse" })
  loss:backward()
  optim:step(1e-3)
  return loss
end
step(sl.randn { 64, 8 })
local before = sae:parameter "W_enc":to "cpu":totable()
step(sl.randn { 64, 8 } / 0)
step(sl.randn { 64, 8 })
local after = sae:parameter "W_enc":to "cpu":totable()
for i, row in ipairs(before) do for j, v in ipairs(row) do assert(v == after[i][j]) end end
assert(optim.grad_norm ~= optim.grad_norm)
print "frozen"
]])
    local run = program.run { recipe }
    assert.are.equal("frozen\n", run.out, run.err)
  end)

  it("replays passes that repeat, with the bits of the first", function()
    local near = sl.model.load(tiny.folder())
    local far = sl.model.load(tiny.folder(), { device = "cuda" })
    local sites = { near:resid { 0 }[1], near:resid { 1 }[1] }
    local earlier
    for round = 1, 5 do
      local ids = sl.randint({ 3, 7 }, { seed = round, bound = near.vocab_size })
      local mask = sl.tensor({ { 1, 1, 1, 1, 1, 1, 1 }, { 1, 1, 1, 1, round % 2, 0, 0 }, { 1, 1, 1, 0, 0, 0, 0 } },
        { dtype = "u8" })
      local a = near:forward(ids, { mask = mask, capture = sites })
      local b = far:forward(ids, { mask = mask, capture = sites })
      for _, site in ipairs(sites) do
        assert.are.same(a.hidden[site]:totable(), b.hidden[site]:to "cpu":totable())
      end
      if earlier then assert.are.same(earlier[1], earlier[2]:to "cpu":totable()) end -- a later pass changes nothing
      earlier = { a.hidden[sites[1]]:totable(), b.hidden[sites[1]] }
    end
    assert.is_true(select(2, core.waits "cuda") >= 3)
    far:hook(sites[1], function(x) return x * 0 end) -- a hook goes the ordinary way
    local changed = far:forward(sl.randint({ 3, 7 }, { seed = 9, bound = 5 }), { capture = sites })
    assert.are.equal(0, changed.hidden[sites[1]]:to "cpu":square():sum():item())
    assert.has_error(function() far:forward(sl.tensor({ { 1, 999999 } }, { dtype = "i32" }), { capture = sites }) end)
  end)

  it("takes tf32 where the CPU refuses it", function()
    sl.model.load(tiny.folder(), { device = "cuda", dtype = "tf32" })
    core.set_tf32("cuda", false)
    assert.has_error(function() sl.model.load(tiny.folder(), { dtype = "tf32" }) end)
    local run = job("cpu", "refused", "--dtype", "tf32")
    assert.are.equal(1, run.status)
    assert.is_truthy(run.err:find("tf32 is an arithmetic of CUDA devices", 1, true), run.err)
  end)

  it("never makes the host wait between two logs", function()
    local model = sl.model.load(tiny.folder(), { device = "cuda" })
    local tokens = sl.data.tokens(dir .. "/text.txt", model.tokenizer, { ctx_len = 16 })
    local acts = sl.data.activations(model, tokens, { at = model:resid { 0 }, batch_size = 4, buffer_batches = 2 })
    local sae = sl.sae.topk { d_in = model.d_model, d_sae = 64, k = 4, seed = 1, device = "cuda" }
    local optim = sl.sae_optim(sae, { clip_norm = 1 })
    local name = acts.at[1]
    sae:init_b_dec("mean", acts:next()[name])
    local before, loss = core.waits "cuda"
    for _ = 1, 12 do
      sl.scope(function()
        loss = sae:loss(acts:next()[name], { auxk_alpha = 0.03, dead_feature_threshold = 100 })
        loss:backward()
        optim:step(1e-3)
      end)
    end
    assert.are.equal(before, (core.waits "cuda"))
    assert.is_true(loss.loss < 1)
    assert.are.equal(before + 1, (core.waits "cuda"))
  end)
end)
