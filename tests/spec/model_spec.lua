-- Models: parity with transformers, loading and refusing, saving. Hooks are in model_hooks_spec.lua.
local fs = require "saelua.fs"
local host = require "saelua.host"
local json = require "saelua.json"
local program = require "tests.support.program"
local sl = require "saelua"

local models = require "tests.support.models"

local FIXTURES, difference, load = models.FIXTURES, models.difference, models.load
local message_of, warnings_of = models.message_of, models.warnings_of

local dir
setup(function() dir = program.folder() end)
teardown(function() host.remove_tree(dir) end)

-- A copy of a fixture with a changed config and changed tensors (edit(list of {name, tensor}) -> list).
local copies = 0
local function changed(name, config_changes, edit)
  copies = copies + 1
  local folder = dir .. "/copy" .. copies
  assert(fs.mkdir(folder))
  local config = assert(json.read(FIXTURES .. name .. "/config.json"))
  for key, value in pairs(config_changes or {}) do config[key] = value end
  assert(json.write(folder .. "/config.json", config))
  local tensors, list = assert(sl.load_tensors(FIXTURES .. name .. "/model.safetensors")), {}
  for key, tensor in pairs(tensors) do list[#list + 1] = { key, tensor } end
  assert(sl.save_tensors(folder .. "/model.safetensors", edit and edit(list) or list))
  return folder
end

describe("parity with transformers", function()
  local POINTS = { "attn_q", "attn_k", "attn_v", "attn_z", "attn_out", "resid_mid", "mlp_pre", "mlp_post", "mlp_out" }
  for _, name in ipairs { "mlm_tied", "mlm_untied", "plain", "f16", "bf16", "sharded", "old_names" } do
    it("holds at every hook point: " .. name, function()
      local model, f = load(name)
      local run = { mask = f.mask, type_ids = f.type_ids, capture = "*", logits = model:has_logits() }
      local out = model:forward(f.ids, run)
      assert.is_true(difference(out.hidden.embed, f["hidden.0"]) < 2e-5)
      for i = 0, 1 do
        local at = "layers." .. i .. "."
        assert.is_true(difference(out.hidden[at .. "resid_post"], f["hidden." .. i + 1]) < 2e-5)
        assert.is_true(difference(out.hidden[at .. "attn_pattern"], f["pattern." .. i]) < 2e-6)
        for _, point in ipairs(POINTS) do assert.is_true(difference(out.hidden[at .. point], f[at .. point]) < 2e-5) end
      end
      assert.equal(f.logits ~= nil, model:has_logits())
      if f.logits then assert.is_true(difference(out.logits, f.logits) < 2e-5) end
      -- and without captures, through the fused path
      run.capture = nil
      if f.logits then assert.is_true(difference(model:forward(f.ids, run).logits, f.logits) < 2e-5) end
    end)
  end

  local function check_gradients(name)
    local model, f = load(name)
    model:train()
    local tape = sl.tape():start()
    local logits = model:forward(f.ids, { mask = f.mask, type_ids = f.type_ids, logits = true }).logits
    local loss = sl.cross_entropy(logits:reshape(-1, 58), f.targets:reshape(-1))
    assert.is_true(math.abs(loss:item() - f.loss:get(1)) < 1e-5)
    tape:backward(loss)
    for _, p in ipairs(model:parameters()) do
      local bias = p.slot == "decoder.b" and f["grad.cls.predictions.decoder.bias"]
      local want = bias or f["grad." .. p.name]
      local scale = math.max(want:abs():max():item(), 1e-2)
      assert.is_true(difference(p.tensor:grad(), want) / scale < 1e-4, p.name)
    end
  end
  it("holds for the gradient of every parameter, tied", function() check_gradients "mlm_tied" end)
  it("holds for the gradient of every parameter, untied", function() check_gradients "mlm_untied" end)

  it("holds for rows of logits, and roughly in bf16", function()
    local model, f = load "mlm_tied"
    local rows = sl.tensor({ 3, 12 }, { dtype = "i32" })
    local run = { mask = f.mask, type_ids = f.type_ids, logit_rows = rows }
    local out = model:forward(f.ids, run)
    assert.same({ 2, 58 }, out.logits:shape())
    local want = f.logits:reshape(-1, 58)
    assert.is_true(difference(out.logits:slice(1, 2, 2), want:slice(1, 13, 13)) < 2e-5)
    local half = load("mlm_tied", { dtype = "bf16" })
    local scale = f.logits:abs():max():item()
    run.logit_rows, run.logits = nil, true
    assert.is_true(difference(half:forward(f.ids, run).logits, f.logits) / scale < 0.05)
    assert.matches("only an f32 model can be trained", message_of(half.train, half))
  end)
end)

describe("model.load", function()
  it("fills the fields and the tokenizer", function()
    local model = load "mlm_tied"
    assert.equal(2, model.n_layers)
    assert.equal(24, model.d_model)
    assert.equal(58, model.vocab_size)
    assert.equal(58, model.tokenizer.vocab_size)
    assert.equal("bert, 2 layers, d_model 24, 3 heads, vocabulary 58, f32", tostring(model):match(": (.*)"))
    assert.matches("no MLM head", tostring(load "plain"))
    assert.is_nil(load("plain", { tokenizer = false }).tokenizer)
  end)

  it("finds models in the Hugging Face cache, and says what to do otherwise", function()
    local home = dir .. "/hf"
    local snapshot = home .. "/hub/models--some--bert/snapshots/abc"
    assert(fs.mkdir(snapshot))
    assert(fs.mkdir(home .. "/hub/models--some--bert/refs"))
    assert(fs.write(home .. "/hub/models--some--bert/refs/main", "abc"))
    for _, name in ipairs { "config.json", "model.safetensors", "vocab.txt" } do
      assert(fs.write(snapshot .. "/" .. name, assert(fs.read(FIXTURES .. "mlm_tied/" .. name))))
    end
    local code = "print(sl.model.load(arg[1]).n_layers)"
    local found = program.run { "-e", code, "some/bert", env = "HF_HUB_CACHE= HF_HOME=" .. home }
    assert.equal("2\n", found.out)
    local missing = program.run { "-e", code, "other/bert", env = "HF_HUB_CACHE= HF_HOME=" .. home }
    assert.equal(1, missing.status)
    assert.matches("hf download other/bert", missing.err, 1, true)
    assert.matches("not in the Hugging Face cache", missing.err, 1, true)
  end)

  it("refuses what is not a model", function()
    assert.matches("no such folder", message_of(sl.model.load, "/nowhere/at all"))
    assert.matches("no config.json", message_of(sl.model.load, "tests"))
    assert.matches("unknown option \"dtyp\"", message_of(sl.model.load, FIXTURES .. "plain", { dtyp = "f32" }))
    assert.matches("device 'tpu' is unknown", message_of(sl.model.load, FIXTURES .. "plain", { device = "tpu" }))
    assert.matches("f16", message_of(sl.model.load, FIXTURES .. "plain", { dtype = "f16" }))
    assert.has_error(function() sl.model.load() end)
  end)

  it("tells how to convert a folder that has only pytorch_model.bin", function()
    local folder = changed("plain")
    assert(host.rename(folder .. "/model.safetensors", folder .. "/pytorch_model.bin"))
    local message = message_of(sl.model.load, folder)
    assert.matches("pytorch_model.bin", message)
    assert.matches("save_pretrained", message)
    assert.is_nil(message:find("model_files", 1, true))
  end)

  local function refuses(what, changes, ...)
    local parts = { ... }
    it("refuses a config with " .. what, function()
      local message = message_of(sl.model.load, changed("mlm_tied", changes))
      assert.matches("config.json", message, 1, true)
      for _, part in ipairs(parts) do assert.matches(part, message, 1, true) end
    end)
  end
  refuses("another model type", { model_type = "gpt2" }, 'model_type is "gpt2"', "bert")
  refuses("relative positions", { position_embedding_type = "relative_key" }, "position_embedding_type", "relative_key")
  refuses("an unknown activation", { hidden_act = "swish" }, "hidden_act is swish", "gelu_new")
  refuses("a decoder", { is_decoder = true }, "is_decoder")
  refuses("a size that is no number", { hidden_size = "24" }, "hidden_size")
  refuses("no layers", { num_hidden_layers = 0 }, "num_hidden_layers is 0")
  refuses("heads that do not divide the width", { num_attention_heads = 5 }, "not a multiple of num_attention_heads 5")
  refuses("another vocabulary", { vocab_size = 59 }, "word_embeddings.weight is [58 x 24]", "makes it [59 x 24]")
  refuses("another width", { hidden_size = 48 }, "[58 x 24]", "[58 x 48]")
  refuses("too many layers", { num_hidden_layers = 3 }, "encoder.layer.2.", "is missing")
  refuses("too few layers", { num_hidden_layers = 1 }, "belongs to layer 1", "num_hidden_layers = 1")
  refuses("a null size", { vocab_size = json.null }, "vocab_size is missing")

  it("refuses a broken config.json", function()
    local folder = changed "plain"
    assert(fs.write(folder .. "/config.json", "{ 3"))
    assert.matches("config.json: line 1", message_of(sl.model.load, folder))
  end)

  local function without(pattern)
    return function(list)
      local kept = {}
      for _, item in ipairs(list) do
        if not item[1]:find(pattern) then kept[#kept + 1] = item end
      end
      return kept
    end
  end

  it("names a missing tensor", function()
    local message = message_of(sl.model.load,
      changed("mlm_tied", nil, without "layer%.1%.attention%.self%.query%.bias"))
    assert.matches("encoder.layer.1.attention.self.query.bias is missing", message, 1, true)
    message = message_of(sl.model.load, changed("mlm_tied", nil, without "cls%.predictions%.bias"))
    assert.matches("cls.predictions.bias is missing", message, 1, true)
  end)

  it("names a tensor of the wrong dtype", function()
    local folder = changed("mlm_tied", nil, function(list)
      for _, item in ipairs(list) do
        if item[1]:find "layer%.0%.output%.dense%.bias" then item[2] = sl.zeros({ 24 }, { dtype = "i32" }) end
      end
      return list
    end)
    local message = message_of(sl.model.load, folder)
    assert.matches("model.safetensors: tensor bert.encoder.layer.0.output.dense.bias has dtype I32", message, 1, true)
  end)

  it("refuses one weight under two names", function()
    local folder = changed("mlm_tied", nil, function(list)
      list[#list + 1] = { "embeddings.LayerNorm.gamma", sl.zeros({ 24 }, {}) }
      return list
    end)
    assert.matches("are the same weight", message_of(sl.model.load, folder))
  end)

  it("reports tensors that it does not know", function()
    local folder = changed("mlm_tied", nil, function(list)
      list[#list + 1] = { "bert.extra.weight", sl.zeros({ 3 }, {}) }
      list[#list + 1] = { "bert.pooler.dense.weight", sl.zeros({ 24, 24 }, {}) }
      return list
    end)
    local list = warnings_of(function() sl.model.load(folder) end)
    assert.equal(1, #list)
    assert.matches("1 tensor not used, because the bert family does not know it: bert.extra.weight", list[1], 1, true)
  end)

  it("unties a decoder that differs from the word table, and says so", function()
    local own = sl.randn({ 58, 24 }, { seed = 1 })
    local folder = changed("mlm_tied", nil, function(list)
      list[#list + 1] = { "cls.predictions.decoder.weight", own }
      return list
    end)
    local list, model = warnings_of(function() return sl.model.load(folder) end)
    assert.matches("not tied", list[1])
    assert.is_false(model.spec.tied_head)
    assert.equal(0, difference(model.core:get "decoder.w", own))
  end)

  it("refuses a vocabulary of the wrong size", function()
    local folder = changed "mlm_tied"
    local words = { "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]" }
    for i = 6, 59 do words[i] = "w" .. i end
    assert(fs.write(folder .. "/vocab.txt", table.concat(words, "\n") .. "\n"))
    assert.matches("the tokenizer has 59 tokens, the model's word table 58 rows", message_of(sl.model.load, folder))
    assert.is_nil(sl.model.load(folder, { tokenizer = false }).tokenizer)
  end)
end)

describe("model.new and model:save", function()
  local CONFIG = {
    hidden_size = 8, num_hidden_layers = 2, num_attention_heads = 2, intermediate_size = 12, vocab_size = 9,
    max_position_embeddings = 8,
  }

  it("make, save and load the same model", function()
    for _, tied in ipairs { true, false } do
      local config = { tie_word_embeddings = tied }
      for key, value in pairs(CONFIG) do config[key] = value end
      local tokenizer = assert(sl.tokenizer_from_vocab "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nboat\n##s\n.\n")
      local model = sl.model.new(config, { seed = 3, tokenizer = tokenizer })
      local ids = model.tokenizer:encode_tensor "The boats ."
      assert.same({ 2, 5, 6, 7, 8, 3 }, model.tokenizer:encode "The boats .")
      assert(model:save(dir .. "/saved"))
      local again = sl.model.load(dir .. "/saved")
      assert.equal(0, difference(model:forward(ids).logits, again:forward(ids).logits))
      assert.same({ 2, 5, 6, 7, 8, 3 }, again.tokenizer:encode "The boats .")
      assert.equal(tied, again.spec.tied_head)
      assert.equal("BertForMaskedLM", again.config.architectures[1])
    end
  end)

  it("depend on the seed alone", function()
    local a, b, c = sl.model.new(CONFIG, { seed = 1 }), sl.model.new(CONFIG, { seed = 1 }), sl.model.new(CONFIG)
    assert.equal(0, difference(a.core:get("up.w", 1), b.core:get("up.w", 1)))
    assert.is_true(difference(a.core:get("up.w", 1), c.core:get("up.w", 1)) > 0)
  end)

  it("check their arguments", function()
    assert.matches("hidden_size is missing", message_of(sl.model.new, { num_hidden_layers = 1, num_attention_heads = 1,
      intermediate_size = 1, vocab_size = 1 }))
    assert.matches("unknown option", message_of(sl.model.new, CONFIG, { sede = 1 }))
    assert.has_error(function() sl.model.new() end)
  end)

  it("train: a few steps of Adam-free descent lower the loss", function()
    local model = sl.model.new(CONFIG, { seed = 3 }):train()
    local ids = sl.tensor({ { 2, 5, 6, 3 }, { 2, 6, 7, 3 } }, { dtype = "i32" })
    local tape, first, last = sl.tape()
    for _ = 1, 20 do
      tape:start()
      local logits = model:forward(ids, { logits = true }).logits
      local loss = sl.cross_entropy(logits:reshape(-1, 9), ids:reshape(-1))
      last = loss:item()
      first = first or last
      tape:backward(loss)
      for _, p in ipairs(model:parameters()) do
        p.tensor:copy_((p.tensor:detach() - p.tensor:grad() * 0.1))
        p.tensor:clear_grad()
      end
    end
    assert.is_true(last < 0.8 * first)
  end)
end)
