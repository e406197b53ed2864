-- Whole runs of the TopK recipe on a tiny model: folder, files, checkpoints, resuming bit for bit, signals, failures.
local fs = require "saelua.fs"
local host = require "saelua.host"
local json = require "saelua.json"
local program = require "tests.support.program"
local sl = require "saelua"
local tiny = require "tests.support.tiny"

local RECIPE = "recipes/topk_bert.lua"
local dir, out, wrapper

-- Runs the recipe with these changes first: `HOOK(run, step)` after every log of a step.
local function write_wrapper(name, hook)
  return program.write(dir .. "/" .. name .. ".lua", ([[
local run, host = require "saelua.run", require "saelua.host"
local start = run.start
run.start = function(...)
  local r = start(...)
  local log = r.log
  r.log = function(self, values, name)
    log(self, values, name)
    %s
  end
  return r
end
dofile("%s")
]]):format(hook, RECIPE))
end

-- A signal that has arrived when the step ends; not by system() itself, which ignores SIGINT while it waits.
local function signal_hook(name, step)
  return ([[if self.step == %d and not host.interrupted() then
      os.execute("(sleep 0.1; kill -%s $PPID) >/dev/null 2>&1 &")
      while not host.interrupted() do end
    end]]):format(step, name)
end

setup(function()
  dir = program.folder()
  out = dir .. "/out"
  tiny.text_file(dir .. "/text.txt", 120)
  wrapper = { INT = write_wrapper("int", signal_hook("INT", 6)), TERM = write_wrapper("term", signal_hook("TERM", 7)) }
end)
teardown(function()
  host.remove_tree(dir)
  tiny.remove()
end)

-- Several dictionaries, accumulated batches, a falling k, dead latents that AuxK revives, more than one repetition.
local ARGS = {
  layers = "0 1", init_seeds = "1 2", max_tokens = "4000", batch_size = "4", ctx_len = "16", batch_tokens = "100",
  buffer_batches = "2", grad_acc_steps = "2", k = "2", k_decay_steps = "9", num_latents = "24", save_every = "5",
  dead_feature_threshold = "300", lr = "1e-2", clip_norm = "1",
}

local function run(changes, options)
  options = options or {}
  local words = { options.recipe or RECIPE, "--model", tiny.folder(), "--dataset", dir .. "/text.txt",
    "--save_dir", out }
  local merged = {}
  for key, value in pairs(options.bare and {} or ARGS) do merged[key] = value end
  for key, value in pairs(changes or {}) do merged[key] = value end
  for key, value in pairs(merged) do
    if value then
      words[#words + 1] = "--" .. key
      for word in value:gmatch "%S+" do words[#words + 1] = word end
    end
  end
  words.env = "OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive"
  return program.run(words)
end

local function must(result)
  if result.status ~= 0 then error("status " .. tostring(result.status) .. "\n" .. result.err, 2) end
  return result
end

local SAES = { "layers.0.resid_post/seed1", "layers.0.resid_post/seed2", "layers.1.resid_post/seed1",
  "layers.1.resid_post/seed2" }

local function weights(name)
  local list = {}
  for _, sae in ipairs(SAES) do
    list[#list + 1] = program.read(("%s/%s/final/%s/sae_weights.safetensors"):format(out, name, sae))
  end
  return list
end

local function records(name)
  local list = {}
  for line in io.lines(("%s/%s/metrics.jsonl"):format(out, name)) do list[#list + 1] = assert(json.decode(line)) end
  return list
end

local full -- the weights of the uninterrupted run
local function uninterrupted()
  if not full then
    must(run { run_name = "full", keep_checkpoints = "9" })
    full = weights "full"
  end
  return full
end

describe("a run", function()
  it("writes its folder", function()
    uninterrupted()
    local folder = out .. "/full"
    local config = assert(json.read(folder .. "/config.json"))
    assert.same({ 0, 1 }, config.layers)
    assert.equal(2, config.grad_acc_steps)
    local facts = assert(json.read(folder .. "/run.json"))
    assert.equal("topk_bert", facts.recipe)
    assert.is_true(facts.duration_s > 0)
    for _, name in ipairs { "report.html", "checkpoints/5/state.json", "checkpoints/15/state.json" } do
      assert.is_true(fs.exists(folder .. "/" .. name), name)
    end
    local list = records "full"
    assert.equal(20 * 4 + 4, #list) -- a line for each step and dictionary, then the held-out numbers
    for i = 1, 80 do
      local r = list[i]
      assert.equal(math.ceil(i / 4), r.step)
      assert.equal(r.step * 200, r.tokens)
      assert.equal(SAES[(i - 1) % 4 + 1], r.sae)
      for _, key in ipairs { "loss", "fvu", "explained_variance", "mse", "cosine", "l0", "dead_fraction", "lr", "k" } do
        assert.is_number(r[key], key)
      end
    end
    assert.equal(24, list[1].k)
    assert.equal(2, list[80].k)
    local revived = 0
    for i = 1, 80 do revived = revived + (list[i].auxk > 0 and 1 or 0) end
    assert.is_true(revived > 0, "AuxK never acted: the test shows too little")
    for i = 81, 84 do
      for _, key in ipairs { "explained_variance", "fvu", "mse", "cosine", "l0", "dead_fraction", "ce_recovered" } do
        assert.is_number(list[i]["eval/" .. key], key)
      end
    end
    assert.is_true(#fs.list(folder .. "/final") == 2)
    local sae = sl.sae.load(folder .. "/final/" .. SAES[1])
    assert.equal(24, sae.d_sae)
  end)

  it("is repeated by its config.json", function()
    local want = uninterrupted()
    must(program.run { RECIPE, "--config_file", out .. "/full/config.json", "--run_name", "again",
      env = "OMP_NUM_THREADS=1" })
    assert.same(want, weights "again") -- also with another number of threads
  end)

  it("takes a free name, and refuses a taken one that was asked for", function()
    local quick = { max_tokens = "400", init_seeds = "1", layers = "0", save_every = "1", keep_checkpoints = "2",
      max_documents = "60", grad_acc_steps = "1" }
    must(run(quick))
    must(run(quick))
    assert.is_true(fs.exists(out .. "/topk_bert-2/final/sae_weights.safetensors"))
    assert.same({ "3", "4" }, fs.list(out .. "/topk_bert/checkpoints")) -- the newest two
    quick.run_name = "topk_bert"
    local taken = run(quick)
    assert.equal(1, taken.status)
    assert.truthy(taken.err:find("exists already: choose another --run_name", 1, true))
  end)
end)

describe("resuming", function()
  it("from any checkpoint ends with the same bits", function()
    local want = uninterrupted()
    for _, step in ipairs { "5", "15" } do
      local result = must(run({ resume = out .. "/full/checkpoints/" .. step }, { bare = true }))
      assert.truthy(result.err:find("at step " .. step .. " of 20", 1, true))
      assert.same(want, weights "full")
      assert.equal(84, #records "full") -- the records after the checkpoint are written anew, none is doubled
    end
  end)

  for name, status in pairs { INT = 130, TERM = 143 } do
    it("after SIG" .. name .. " ends with the same bits", function()
      local want = uninterrupted()
      local run_name = "cut_" .. name
      local cut = run({ run_name = run_name }, { recipe = wrapper[name] })
      assert.equal(status, cut.status)
      assert.truthy(cut.err:find("interrupted after step", 1, true))
      assert.truthy(cut.err:find("--resume " .. out, 1, true))
      assert.is_false(fs.exists(out .. "/" .. run_name .. "/final"))
      must(run({ resume = out .. "/" .. run_name }, { bare = true }))
      assert.same(want, weights(run_name))
    end)
  end

  it("refuses another configuration, naming the option", function()
    uninterrupted()
    local other = run { resume = out .. "/full", k = "3" }
    assert.not_equal(0, other.status)
    assert.truthy(other.err:find("k was 2, is 3", 1, true), other.err)
    local nothing = run({ resume = dir }, { bare = true })
    assert.not_equal(0, nothing.status)
    assert.truthy(nothing.err:find(dir, 1, true), nothing.err)
  end)
end)

describe("a run that keeps no state", function()
  -- As recipes/pretrain_bert.lua: nothing is tracked, so a checkpoint would hold nothing to go on from.
  local function recipe(name, body)
    return program.write(dir .. "/" .. name .. ".lua", ([[
local sl = require "saelua"
local cfg = sl.config {
  save_dir = { %q, "folder" }, run_name = { %q, "name" }, save_every = { 1, "steps" },
}
local run = sl.run.start(cfg, { recipe = "stateless", steps = 3, tokens_per_step = 1 })
for step in run:steps() do
  run:log { loss = step }
  %s
end
run:finish()
]]):format(out, name, body))
  end

  it("writes no checkpoints", function()
    must(program.run { recipe("stateless", "") })
    assert.is_true(fs.exists(out .. "/stateless/metrics.jsonl"))
    assert.is_nil(host.stat(out .. "/stateless/checkpoints"))
  end)

  it("does not promise to continue when it is interrupted", function()
    local body = [[os.execute("(sleep 0.1; kill -TERM $PPID) >/dev/null 2>&1 &")
  local host = require "saelua.host"
  while not host.interrupted() do end]]
    local result = program.run { recipe("stopped", body) }
    assert.equal(143, result.status)
    assert.truthy(result.err:find("keeps no checkpoints", 1, true))
    assert.is_nil(result.err:find("--resume", 1, true))
    assert.is_nil(host.stat(out .. "/stopped/checkpoints"))
  end)
end)

describe("failures", function()
  it("a loss that is not finite stops the run; the last checkpoint is good", function()
    local recipe = program.write(dir .. "/nan.lua", ([[
require "saelua.sae"
local methods = debug.getregistry()["saelua.Sae"].methods
local loss, calls = methods.loss, 0
methods.loss = function(sae, x, options)
  calls = calls + 1
  if calls == 30 then x:set(1, 1, 0 / 0) end
  return loss(sae, x, options)
end
dofile("%s")
]]):format(RECIPE))
    local result = run({ run_name = "nan", save_every = "1" }, { recipe = recipe })
    assert.equal(1, result.status)
    assert.truthy(result.err:find("is nan at step 3: training stopped. ", 1, true)
      or result.err:find("is -nan at step 3: training stopped. ", 1, true), result.err)
    assert.truthy(result.err:find("The checkpoint of step 3 is good.", 1, true), result.err)
    assert.is_false(fs.exists(out .. "/nan/final"))
    must(run({ resume = out .. "/nan" }, { bare = true })) -- and it is
    assert.same(#uninterrupted(), #weights "nan")
  end)

  it("a folder that cannot be written is found before training", function()
    for _, folder in ipairs { "/dev/full/x", "/proc/saelua" } do
      local result = run { save_dir = folder }
      assert.equal(1, result.status)
      assert.truthy(result.err:find("cannot create the folder", 1, true), result.err)
      assert.is_nil(result.err:find("tokens/s", 1, true)) -- no progress was made
    end
  end)

  it("a checkpoint that cannot be saved does not end the run, nor harm the older ones", function()
    -- from step 7 on a file lies where the folder of checkpoint 10 is made
    local recipe = write_wrapper("blocked", [[if self.step == 7 then
      os.rename(self:path "checkpoints", self:path "kept")
      local file = assert(io.open(self:path "checkpoints", "w"))
      file:close()
    end]])
    local result = must(run({ run_name = "blocked" }, { recipe = recipe }))
    assert.truthy(result.err:find("checkpoint of step 10 was not saved", 1, true), result.err)
    assert.same(uninterrupted(), weights "blocked")
    assert.is_true(fs.exists(out .. "/blocked/kept/5/state.json"))
  end)
end)
