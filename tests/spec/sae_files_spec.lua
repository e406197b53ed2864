-- Dictionaries on disk: those that the real SAELens and sparsify saved reconstruct as in the package that made them
-- (tests/parity/open_in_peers.py), what saelua saves opens again, and what is refused.
local fs = require "saelua.fs"
local host = require "saelua.host"
local json = require "saelua.json"
local program = require "tests.support.program"
local sl = require "saelua"

local FIXTURES = (os.getenv "SAELUA_ROOT" or ".") .. "/tests/parity/fixtures/peers_"
local SAELENS, SPARSIFY = FIXTURES .. "saelens_topk", FIXTURES .. "sparsify_topk"

local function distance(a, b) return (a - b):abs():max():item() end

-- Largest difference of saelua's reconstruction to the package's.
local function error_of(folder, expected)
  local f = assert(sl.load_tensors((expected or folder) .. ".safetensors"))
  return distance(sl.sae.load(folder):reconstruct(f.x), f.x_hat)
end

local function list_of(tensors)
  local list = {}
  for name, tensor in pairs(tensors) do list[#list + 1] = { name, tensor } end
  return list
end

-- A copy of a fixture with changes: `config` (a table merged into cfg.json; json.null stays null; "remove" goes),
-- `tensors` (name -> tensor, or "remove"). The folder goes when `body` is done.
local function changed(source, changes, body)
  local folder = program.folder()
  local config = assert(json.read(source .. "/cfg.json"))
  for key, value in pairs(changes.config or {}) do
    if value == "remove" then config[key] = nil else config[key] = value end
  end
  assert(json.write(folder .. "/cfg.json", config))
  local weights = fs.exists(source .. "/sae.safetensors") and "sae.safetensors" or "sae_weights.safetensors"
  local tensors = assert(sl.load_tensors(source .. "/" .. weights))
  for key, value in pairs(changes.tensors or {}) do
    if value == "remove" then tensors[key] = nil else tensors[key] = value end
  end
  assert(sl.save_tensors(folder .. "/" .. weights, list_of(tensors)))
  local ok, message = pcall(body, folder, weights)
  host.remove_tree(folder)
  if not ok then error(message, 0) end
end

-- Loading the changed copy must fail with a message that holds `expected` and names a file of the folder.
local function refused(source, changes, expected)
  changed(source, changes, function(folder)
    local ok, message = pcall(sl.sae.load, folder)
    assert.is_false(ok)
    assert.is_truthy(message:find(folder, 1, true), message)
    assert.is_truthy(message:find(expected, 1, true), message)
  end)
end

describe("dictionaries that SAELens and sparsify saved", function()
  for _, name in ipairs { "saelens_topk", "saelens_no_shift", "saelens_f16", "saelens_training_inference",
    "saelens_training_checkpoint", "saelens_all_latents", "saelens_jumprelu", "saelens_jumprelu_no_shift",
    "saelens_batchtopk_inference", "saelens_batchtopk_checkpoint", "sparsify_topk", "sparsify_num_latents",
    "sparsify_bf16", "sparsify_groupmax" } do
    it(name .. " reconstructs as in its package", function()
      assert.is_true(error_of(FIXTURES .. name) <= 2e-6)
    end)
  end

  it("keep their sizes and flags", function()
    local sae, metadata = sl.sae.load(FIXTURES .. "saelens_no_shift")
    assert.same({ 8, 24, 4, false }, { sae.d_in, sae.d_sae, sae.k, sae.apply_b_dec_to_input })
    assert.equal("6.54.12", metadata.sae_lens_version)
    assert.is_true(sl.sae.load(SPARSIFY).apply_b_dec_to_input)
  end)

  it("keep decoder rows that are not of unit length", function()
    local weights = assert(sl.load_tensors(SPARSIFY .. "/sae.safetensors"))
    assert.equal(0, distance(weights.W_dec, sl.sae.load(SPARSIFY):parameter "W_dec"))
  end)

  it("take the packages' defaults for keys that are missing or null", function()
    changed(SPARSIFY, { config = { activation = "remove", multi_topk = "remove", normalize_decoder = json.null,
      transcode = "remove", skip_connection = "remove" } }, function(folder)
      assert.is_true(error_of(folder, SPARSIFY) <= 2e-6)
    end)
    changed(SAELENS, { config = { normalize_activations = json.null, reshape_activations = "remove",
      apply_b_dec_to_input = "remove", rescale_acts_by_decoder_norm = json.null } }, function(folder)
      assert.is_true(error_of(folder, SAELENS) <= 2e-6)
    end)
    refused(SAELENS, { config = { k = "remove" } }, "k is 100, expected an integer from 1 to 24")
    refused(SPARSIFY, { config = { k = "remove" } }, "k is 32, expected an integer from 1 to 24")
  end)

  it("open in SAELens' layout of before 6.0", function()
    local old = { metadata = "remove", architecture = "remove", k = "remove", activation_fn_str = "topk",
      activation_fn_kwargs = { k = 4 }, normalize_activations = false, hook_name = "blocks.0.hook_resid_post",
      rescale_acts_by_decoder_norm = "remove" }
    changed(SAELENS, { config = old, tensors = { scaling_factor = sl.full({ 24 }, 1) } }, function(folder)
      assert.is_true(error_of(folder, SAELENS) <= 2e-6)
    end)
    refused(SAELENS, { config = old, tensors = { scaling_factor = sl.full({ 24 }, 1.5) } }, "scaling_factor")
    old.normalize_activations = true
    refused(SAELENS, { config = old }, "normalize_activations = 'expected_average_only_in'")
    old.normalize_activations, old.hook_name, old.reshape_activations = false, "blocks.0.attn.hook_z", "remove"
    refused(SAELENS, { config = old }, "reshape_activations = 'hook_z'")
    old.hook_name, old.activation_fn_str = "x", "relu"
    refused(SAELENS, { config = old }, "architecture 'standard'")
  end)
end)

describe("dictionaries that saelua saves", function()
  local folder
  before_each(function() folder = program.folder() end)
  after_each(function() host.remove_tree(folder) end)

  local function new_sae()
    local sae = sl.sae.topk { d_in = 8, d_sae = 24, k = 3, seed = 5 }
    sae:set_parameter("b_enc", sl.randn({ 24 }, { seed = 1 }) * 0.1)
    sae:set_parameter("b_dec", sl.randn({ 8 }, { seed = 2 }))
    return sae
  end

  for _, format in ipairs { "saelens", "sparsify" } do
    it("open again bit for bit: " .. format, function()
      local sae = new_sae()
      assert(sl.sae.save(sae, folder, { format = format, metadata = { hook_name = "layers.1.resid_post" } }))
      local again, metadata = sl.sae.load(folder)
      for _, name in ipairs { "W_enc", "b_enc", "W_dec", "b_dec" } do
        assert.equal(0, distance(sae:parameter(name), again:parameter(name)))
      end
      assert.equal(3, again.k)
      if format == "saelens" then assert.equal("layers.1.resid_post", metadata.hook_name) end
    end)
  end

  it("hold what SAELens reads: transposed encoder, its keys, a version that keeps the metadata", function()
    local sae = new_sae()
    local rates = {}
    for i = 1, 24 do rates[i] = i % 2 == 0 and 0.01 or 0 end
    assert(sl.sae.save(sae, folder, { densities = rates }))
    local weights = assert(sl.load_tensors(folder .. "/sae_weights.safetensors"))
    assert.same({ 8, 24 }, weights.W_enc:shape())
    assert.equal(0, distance(weights.W_enc, sae:parameter("W_enc"):transpose():contiguous()))
    local config = assert(json.read(folder .. "/cfg.json"))
    assert.same({ "topk", 8, 24, 3, "float32", true, "none", "none", false }, { config.architecture, config.d_in,
      config.d_sae, config.k, config.dtype, config.apply_b_dec_to_input, config.normalize_activations,
      config.reshape_activations, config.rescale_acts_by_decoder_norm })
    assert.is_true(tonumber(config.metadata.sae_lens_version:match "^%d+") >= 6)
    local sparsity = assert(sl.load_tensors(folder .. "/sparsity.safetensors")).sparsity:totable()
    assert.is_true(math.abs(sparsity[1] + 10) < 1e-5 and math.abs(sparsity[2] + 2) < 1e-5)
  end)

  it("hold what sparsify reads: every key of its cfg.json", function()
    assert(sl.sae.save(new_sae(), folder, { format = "sparsify" }))
    local ours, theirs = assert(json.read(folder .. "/cfg.json")), assert(json.read(SPARSIFY .. "/cfg.json"))
    for key, value in pairs(theirs) do assert.equal(type(value), type(ours[key]), key) end
    local weights = assert(sl.load_tensors(folder .. "/sae.safetensors"))
    for name, tensor in pairs(assert(sl.load_tensors(SPARSIFY .. "/sae.safetensors"))) do
      assert.same(tensor:shape(), weights[name]:shape(), name)
    end
  end)

  -- What a dictionary of another activation computes is what its files compute.
  local x = sl.randn({ 200, 8 }, { seed = 3 })

  it("batchtopk: a checkpoint that goes on, a file for use that is jumprelu", function()
    local sae = sl.sae.batchtopk { d_in = 8, d_sae = 24, k = 3, seed = 5, topk_threshold_lr = 0.02 }
    for _ = 1, 7 do sae:loss(x):backward() end
    assert(fs.mkdir(folder .. "/checkpoint"))
    assert(sae:save_state(folder .. "/checkpoint"))
    local again = sl.sae.load(folder .. "/checkpoint")
    assert.same({ "batchtopk", 3, 0.02 }, { again.architecture, again.k, again.topk_threshold_lr })
    assert.equal(0, distance(sae:parameter "threshold", again:parameter "threshold"))
    assert.same({}, assert(sl.load_tensors(folder .. "/checkpoint/sae_weights.safetensors")).topk_threshold:shape())
    assert(sl.sae.save(sae, folder .. "/final"))
    local config = assert(json.read(folder .. "/final/cfg.json"))
    assert.same({ "jumprelu", "batchtopk" }, { config.architecture, config.metadata.training_architecture })
    assert.is_nil(config.k)
    local final = sl.sae.load(folder .. "/final")
    assert.equal("jumprelu", final.architecture)
    assert.is_nil(final.k)
    assert.equal(sae:encode(x):nnz(), final:encode(x):nnz())
    assert.equal(0, distance(sae:reconstruct(x), final:reconstruct(x)))
    local other = sl.sae.topk { d_in = 8, d_sae = 24, k = 3 }
    local ok, message = other:load_state(folder .. "/checkpoint")
    assert.is_nil(ok)
    assert.is_truthy(message:find("a batchtopk dictionary of 8 x 24, this run has topk", 1, true), message)
  end)

  it("groupmax: in sparsify's layout, or as a checkpoint", function()
    local sae = sl.sae.groupmax { d_in = 8, d_sae = 24, k = 3, seed = 5 }
    local ok, message = sl.sae.save(sae, folder)
    assert.is_nil(ok)
    assert.equal("SAELens has no 'groupmax' dictionaries: save it with --format sparsify", message)
    assert(sl.sae.save(sae, folder .. "/final", { format = "sparsify" }))
    assert.equal("groupmax", assert(json.read(folder .. "/final/cfg.json")).activation)
    assert(fs.mkdir(folder .. "/checkpoint"))
    assert(sae:save_state(folder .. "/checkpoint"))
    for _, name in ipairs { "/final", "/checkpoint" } do
      local again = sl.sae.load(folder .. name)
      assert.same({ "groupmax", 3 }, { again.architecture, again.k })
      assert.equal(0, distance(sae:reconstruct(x), again:reconstruct(x)))
    end
  end)

  it("jumprelu: with its thresholds", function()
    local sae = sl.sae.jumprelu { d_in = 8, d_sae = 24, seed = 5, threshold = sl.rand({ 24 }, { seed = 8 }) }
    assert(sl.sae.save(sae, folder))
    local again = sl.sae.load(folder)
    assert.equal(0, distance(sae:parameter "threshold", again:parameter "threshold"))
    assert.equal(0, distance(sae:reconstruct(x), again:reconstruct(x)))
    local ok, message = sl.sae.save(sae, folder, { format = "sparsify" })
    assert.is_nil(ok)
    assert.is_truthy(message:find("--format saelens", 1, true))
  end)

  it("are refused where the layout cannot say what they are", function()
    local sae = sl.new_sae { d_in = 8, d_sae = 24, k = 3, apply_b_dec_to_input = false }
    local ok, message = sl.sae.save(sae, folder, { format = "sparsify" })
    assert.is_nil(ok)
    assert.is_truthy(message:find("--format saelens", 1, true))
    assert.has_error(function() sl.sae.save(sae, folder, { format = "saelense" }) end,
      "sae.save: unknown format 'saelense'; did you mean \"saelens\"?")
  end)
end)

describe("refused with the file and the reason:", function()
  local x = sl.full({ 24, 8 }, 0.5)

  it("a folder without a dictionary, or with two", function()
    local folder = program.folder()
    local ok, message = pcall(sl.sae.load, folder)
    host.remove_tree(folder)
    assert.is_false(ok)
    assert.equal(folder .. ": no dictionary there; expected cfg.json with sae_weights.safetensors (SAELens) or "
      .. "sae.safetensors (sparsify)", message)
    changed(SPARSIFY, {}, function(both)
      program.write(both .. "/sae_weights.safetensors", "")
      local loaded, why = pcall(sl.sae.load, both)
      assert.is_false(loaded)
      assert.is_truthy(why:find("both layouts", 1, true), why)
    end)
  end)

  it("cfg.json that is missing, corrupt or no object", function()
    for _, case in ipairs { { nil, "cfg.json" }, { "{ \"d_in\": 8, ", "cfg.json: line 1" }, { "", "cfg.json" },
      { "12", "not a JSON object" }, { "[]", "" } } do
      changed(SAELENS, {}, function(folder)
        if case[1] then program.write(folder .. "/cfg.json", case[1]) else os.remove(folder .. "/cfg.json") end
        local ok, message = pcall(sl.sae.load, folder)
        assert.is_false(ok)
        assert.is_truthy(message:find(folder .. "/cfg.json", 1, true), message)
        assert.is_truthy(message:find(case[2], 1, true), message)
      end)
    end
  end)

  it("weights that are cut short or empty", function()
    for _, keep in ipairs { 0, 7, 100, 1500 } do
      changed(SAELENS, {}, function(folder, weights)
        local path = folder .. "/" .. weights
        program.write(path, program.read(path):sub(1, keep))
        local ok, message = pcall(sl.sae.load, folder)
        assert.is_false(ok)
        assert.is_truthy(message:find(path, 1, true), message)
      end)
    end
  end)

  it("missing tensors, by the layout's own names", function()
    for _, name in ipairs { "W_enc", "b_enc", "W_dec", "b_dec" } do
      refused(SAELENS, { tensors = { [name] = "remove" } }, ("tensor %s is missing"):format(name))
    end
    refused(SAELENS, { config = { architecture = "jumprelu" } }, "tensor threshold is missing")
    refused(SAELENS, { config = { architecture = "batchtopk" } }, "tensor topk_threshold is missing")
    for _, name in ipairs { "encoder.weight", "encoder.bias", "W_dec", "b_dec" } do
      refused(SPARSIFY, { tensors = { [name] = "remove" } }, ("tensor %s is missing"):format(name))
    end
  end)

  it("tensors that belong to something else", function()
    refused(SPARSIFY, { tensors = { W_skip = sl.zeros { 8, 8 } } }, "'W_skip'")
    refused(SAELENS, { tensors = { threshold = sl.zeros { 24 } } },
      "'threshold', which is not part of a topk dictionary")
    refused(SAELENS, { config = { architecture = "jumprelu" }, tensors = { topk_threshold = sl.zeros { 1 } } },
      "'topk_threshold'")
  end)

  it("wrong shapes", function()
    refused(SPARSIFY, { tensors = { W_dec = x:transpose():contiguous() } }, "W_dec is [8 x 24], expected [24 x 8]")
    refused(SPARSIFY, { tensors = { b_dec = sl.zeros { 24 } } }, "b_dec is [24], expected [8]")
    refused(SAELENS, { tensors = { W_enc = x } }, "W_enc is [8 x 24], expected [24 x 8]")
    refused(SAELENS, { tensors = { W_enc = sl.zeros { 192 } } }, "W_enc is [192]")
    refused(SAELENS, { tensors = { b_enc = sl.zeros { 23 } } }, "b_enc is [23], expected [24]")
    refused(SAELENS, { config = { architecture = "jumprelu" }, tensors = { threshold = sl.zeros { 23 } } },
      "threshold is [23], expected [24]")
    refused(SAELENS, { config = { architecture = "batchtopk" }, tensors = { topk_threshold = sl.zeros { 24 } } },
      "topk_threshold is [24], expected []")
    refused(SAELENS, { config = { d_sae = 25 } }, "expected [25 x 8]")
    refused(SPARSIFY, { config = { num_latents = 25 } }, "encoder.weight is [24 x 8], expected [25 x 8]")
    refused(SPARSIFY, { config = { expansion_factor = 4 } }, "encoder.weight is [24 x 8], expected [32 x 8]")
  end)

  it("sizes that are no sizes, k above the latents", function()
    for _, value in ipairs { 0, -1, 2.5, "8", json.null, 1e300 } do
      refused(SAELENS, { config = { d_in = value } }, "cfg.json: d_in is")
      refused(SAELENS, { config = { d_sae = value } }, "cfg.json: d_sae is")
    end
    refused(SPARSIFY, { config = { d_in = "remove" } }, "cfg.json: d_in is nil")
    refused(SPARSIFY, { config = { num_latents = "many" } }, "cfg.json: d_sae is many")
    for _, k in ipairs { 0, 25, 1.5, "4" } do
      refused(SAELENS, { config = { k = k } }, "expected an integer from 1 to 24")
      refused(SPARSIFY, { config = { k = k } }, "expected an integer from 1 to 24")
    end
  end)

  it("flags that are no flags", function()
    refused(SAELENS, { config = { apply_b_dec_to_input = "yes" } }, "apply_b_dec_to_input is yes")
    refused(SAELENS, { config = { rescale_acts_by_decoder_norm = 1 } }, "rescale_acts_by_decoder_norm is 1")
    refused(SPARSIFY, { config = { normalize_decoder = 1 } }, "normalize_decoder is 1")
  end)

  it("kinds of dictionaries that are not built yet", function()
    refused(SAELENS, { config = { architecture = "gated" } }, "architecture 'gated'")
    refused(SAELENS, { config = { architecture = "matryoshka_batchtopk" } }, "architecture 'matryoshka_batchtopk'")
    refused(SAELENS, { config = { architecture = "remove" } }, "architecture 'standard'")
    refused(SAELENS, { config = { architecture = 3 } }, "architecture '3'")
    refused(SAELENS, { config = { normalize_activations = "layer_norm" } }, "normalize_activations = 'layer_norm'")
    refused(SAELENS, { config = { reshape_activations = "hook_z" } }, "reshape_activations = 'hook_z'")
    refused(SPARSIFY, { config = { activation = "signum" } }, "activation 'signum'")
    refused(SPARSIFY, { config = { transcode = true } }, "transcode")
    refused(SPARSIFY, { config = { skip_connection = true } }, "skip_connection")
  end)
end)
