-- What the recipes refuse before training: each with one clear sentence, a status that is not 0, and no traceback of C.
local fs = require "saelua.fs"
local host = require "saelua.host"
local json = require "saelua.json"
local program = require "tests.support.program"
local sl = require "saelua"
local tiny = require "tests.support.tiny"

local dir, good, text
setup(function()
  dir = program.folder()
  good = tiny.folder()
  text = tiny.text_file(dir .. "/text.txt", 60)
end)
teardown(function()
  host.remove_tree(dir)
  tiny.remove()
end)

local function run(changes, recipe)
  local words = { recipe or "recipes/topk_bert.lua" }
  local merged = { model = good, dataset = text, save_dir = dir .. "/out", ctx_len = "16", max_tokens = "600",
    batch_size = "4", k = "4", expansion_factor = "2" }
  for key, value in pairs(changes) do merged[key] = value end
  for key, value in pairs(merged) do
    if value then
      words[#words + 1] = "--" .. key
      words[#words + 1] = value
    end
  end
  words.env = "OMP_NUM_THREADS=1"
  return program.run(words)
end

local function refused(status, patterns, changes, recipe)
  local result = run(changes, recipe)
  local said = result.out .. result.err
  if result.status ~= status then
    error(("status %s, expected %d\n%s"):format(tostring(result.status), status, said), 2)
  end
  for _, pattern in ipairs(patterns) do
    if not said:find(pattern, 1, true) then error(("%q lacks %q"):format(said, pattern), 2) end
  end
  return said
end

-- A copy of the model with a changed config.json, vocabulary or weights.
local copies = 0
local function copy(change)
  copies = copies + 1
  local folder = dir .. "/model" .. copies
  assert(fs.mkdir(folder))
  for _, name in ipairs(fs.list(good)) do program.write(folder .. "/" .. name, program.read(good .. "/" .. name)) end
  change(folder)
  return folder
end

local function with_config(key, value)
  return copy(function(folder)
    local config = assert(json.read(folder .. "/config.json"))
    config[key] = value
    assert(json.write(folder .. "/config.json", config))
  end)
end

it("the plan itself is sound", function()
  local result = run {}
  assert.equal(0, result.status, result.err)
end)

describe("options", function()
  it("unknown ones, with the nearest known one", function()
    refused(2, { "max_token", "max_tokens" }, { max_token = "5" })
    refused(2, { "expansion" }, { expansion = "5" })
    refused(2, { "auxk_alpha" }, { auxk_alpha = "5" }, "recipes/custom_sae.lua")
  end)

  it("of a wrong type or out of range", function()
    refused(2, { "max_tokens", "many" }, { max_tokens = "many" })
    refused(2, { "k", "1.5" }, { k = "1.5" })
    refused(2, { "k" }, { k = "0" })
    refused(2, { "perhaps" }, { normalize_decoder = "perhaps" })
    refused(2, { "layers" }, { layers = "one" })
    refused(2, { "loss_fn", "fvu", "mse" }, { loss_fn = "huber" })
    refused(2, { "dtype" }, { dtype = "f8" })
    refused(2, { "lr" }, { lr = "-1" })
  end)

  it("that belong to a later release, by name", function()
    refused(2, { "muon arrives in a later release" }, { optimizer = "muon" })
    refused(2, { "signum arrives in a later release" }, { optimizer = "signum" })
    refused(2, { "later release" }, { loss_fn = "ce" })
    refused(2, { "later release" }, { loss_fn = "kl" })
    refused(2, { "trackers arrive in a later release" }, { log_to_wandb = "true" })
  end)

  it("that exclude each other", function()
    refused(1, { "--hookpoints excludes --layers" }, { hookpoints = "embed", layers = "0" })
    refused(1, { "--layer_stride applies to all layers" }, { layers = "0", layer_stride = "2" })
  end)
end)

describe("plans", function()
  it("a layer or hook point that the model lacks", function()
    refused(1, { "layer", "7" }, { layers = "7" })
    refused(1, { "layers.0.resid_pots", "resid_post" }, { hookpoints = "layers.0.resid_pots" })
  end)

  it("more active latents than latents", function()
    refused(1, { "k = 33 is more than the 32 latents" }, { k = "33" })
    refused(1, { "k = 33 is more than the 20 latents" }, { k = "33", num_latents = "20" })
  end)

  it("longer contexts than the model has positions", function()
    refused(1, { "64", "32" }, { ctx_len = "64" })
  end)

  it("leave no run folder behind", function()
    assert.is_nil((fs.list(dir .. "/never")))
    refused(1, { "latents" }, { k = "33", save_dir = dir .. "/never" })
    assert.same({}, fs.list(dir .. "/never") or {})
  end)
end)

describe("data sets", function()
  it("empty, missing, of another kind, broken", function()
    local function file(name, content) return program.write(dir .. "/" .. name, content) end
    refused(1, { "empty.txt: the data set is empty" }, { dataset = file("empty.txt", "") })
    refused(1, { "blank.txt: the data set is empty" }, { dataset = file("blank.txt", "\n\n  \n") })
    refused(1, { "short.txt", "at least 2 are needed" }, { dataset = file("short.txt", "one\n") })
    refused(1, { "none.txt" }, { dataset = dir .. "/none.txt" })
    refused(1, { "cannot read '.csv' files" }, { dataset = file("t.csv", "a,b\n") })
    refused(1, { "bad.jsonl:2: not a JSON object" }, { dataset = file("bad.jsonl", '{"text": "a"}\n{"text": \n') })
    refused(1, { "no column 'body'" }, { dataset = file("col.jsonl", '{"text": "a"}\n'), text_column = "body" })
    refused(1, { "standard input is empty" }, { dataset = "-" })
  end)
end)

describe("models", function()
  it("that are not there", function()
    refused(1, { "no-such-model" }, { model = "no-such-model" })
    refused(1, { dir }, { model = dir })
  end)

  it("whose config does not match the weights", function()
    refused(1, { "config.json" }, { model = with_config("hidden_size", 24) })
    refused(1, { "layer.2" }, { model = with_config("num_hidden_layers", 3) })
    refused(1, { "heads" }, { model = with_config("num_attention_heads", 3) })
    refused(1, { "word_embeddings", "[200 x 16]", "[150 x 16]" }, { model = with_config("vocab_size", 150) })
    refused(1, { "model_type" }, { model = with_config("model_type", "gpt2") })
  end)

  it("whose vocabulary is of the wrong size", function()
    local short = copy(function(folder)
      program.write(folder .. "/vocab.txt", (program.read(folder .. "/vocab.txt"):gsub("[^\n]+\n$", "")))
    end)
    local long = copy(function(folder)
      program.write(folder .. "/vocab.txt", program.read(folder .. "/vocab.txt") .. "zzzz\nyyyy\n")
    end)
    refused(1, { "the tokenizer has 202 tokens, the model's word table 200 rows" }, { model = long })
    local result = run { model = short, save_dir = dir .. "/short" }
    local said = result.out .. result.err -- a table padded with rows that no token has is usual
    assert.truthy(result.status == 0 or said:find("199 tokens", 1, true), said)
  end)

  it("whose weights are damaged", function()
    local cut = copy(function(folder)
      local bytes = program.read(folder .. "/model.safetensors")
      program.write(folder .. "/model.safetensors", bytes:sub(1, #bytes - 100))
    end)
    refused(1, { "model.safetensors" }, { model = cut })
    local none = copy(function(folder) assert(os.remove(folder .. "/model.safetensors")) end)
    refused(1, { "model.safetensors" }, { model = none })
  end)
end)

describe("checkpoints", function()
  it("stale, damaged or foreign", function()
    local result = run { run_name = "base", save_every = "2" }
    assert.equal(0, result.status, result.err)
    local base = dir .. "/out/base"
    local only = function(resume, more)
      local changes = { resume = resume, model = false, dataset = false, save_dir = false, ctx_len = false,
        max_tokens = false, batch_size = false, k = false, expansion_factor = false }
      for key, value in pairs(more or {}) do changes[key] = value end
      return changes
    end
    local oldest = run(only(base .. "/checkpoints/" .. fs.list(base .. "/checkpoints")[1]))
    assert.equal(0, oldest.status, oldest.err)
    local refusal = refused(1, { "k was 4, is 5" }, only(base, { k = "5" }))
    assert.truthy(refusal:find("another configuration", 1, true))
    local names = fs.list(base .. "/checkpoints")
    local state = base .. "/checkpoints/" .. names[#names] .. "/state.json"
    local before = program.read(state)
    program.write(state, before:sub(1, 30))
    refused(1, { "state.json" }, only(base .. "/checkpoints/" .. names[#names]))
    program.write(state, '{"format": 2}')
    refused(1, { "not a saelua checkpoint of format 1" }, only(base .. "/checkpoints/" .. names[#names]))
    program.write(state, before)
    local data = base .. "/checkpoints/" .. names[#names] .. "/data/data.json"
    program.write(data, "{}")
    refused(1, { "data.json" }, only(base .. "/checkpoints/" .. names[#names]))
    assert(fs.remove_tree(base .. "/checkpoints/" .. names[#names] .. "/optim"))
    refused(1, { "cannot resume" }, only(base .. "/checkpoints/" .. names[#names]))
  end)
end)

it("sl names the nearest field", function()
  local ok, message = pcall(function() return sl.tensr end)
  assert.is_false(ok)
  assert.truthy(message:find("sl has no field 'tensr'", 1, true))
  assert.truthy(message:find("tensor", 1, true))
end)
