-- Hook point names: globs, Hugging Face and TransformerLens names, order, misses.
local hookpoints = require "saelua.hookpoints"
local sl = require "saelua"

local CONFIG = {
  hidden_size = 8, num_hidden_layers = 12, num_attention_heads = 2, intermediate_size = 12, vocab_size = 16,
  max_position_embeddings = 8,
}

local function matches(glob, name) return name:find(hookpoints.pattern(glob)) ~= nil end

describe("globs", function()
  it("match as Python's fnmatch does, dots included", function()
    assert.is_true(matches("encoder.layer.*", "encoder.layer.3.attention.output"))
    assert.is_true(matches("encoder.layer.?", "encoder.layer.3"))
    assert.is_false(matches("encoder.layer.?", "encoder.layer.11"))
    assert.is_true(matches("layers.[0-5].x", "layers.5.x"))
    assert.is_false(matches("layers.[0-5].x", "layers.6.x"))
    assert.is_false(matches("layers.[!0-5].x", "layers.5.x"))
    assert.is_true(matches("layers.[!0-5].x", "layers.6.x"))
    assert.is_true(matches("a[^b]", "a^"))
    assert.is_true(matches("a[]]b", "a]b"))
    assert.is_true(matches("a[b", "a[b"))
    assert.is_false(matches("a.b", "axb"))
    assert.is_false(matches("Embed", "embed"))
    assert.is_true(matches("a-b%c(d)+^$", "a-b%c(d)+^$"))
  end)

  it("spell braces out", function()
    assert.same({ "a0", "a1", "a2" }, hookpoints.expand_braces "a{0..2}")
    assert.same({ "ax1", "ax2", "ay1", "ay2" }, hookpoints.expand_braces "a{x,y}{1,2}")
    assert.same({ "{i}" }, hookpoints.expand_braces "{i}")
    assert.has_error(function() hookpoints.expand_braces "{0..100000}" end,
      "hook points: the range {0..100000} is too long")
  end)
end)

describe("hook points of a model", function()
  local model
  setup(function() model = sl.model.new(CONFIG) end)

  it("have saelua names, in the order of computation", function()
    local all = model:hookpoints()
    assert.equal(5 + 12 * 17 + 3, #all)
    assert.equal("embed_tokens", all[1])
    assert.equal("logits", all[#all])
    local last = 0
    for _, name in ipairs(model:hookpoints "layers.*.resid_post") do
      local layer = tonumber(name:match "^layers%.(%d+)%.resid_post$")
      assert.equal(last, layer) -- 2 before 10
      last = layer + 1
    end
    assert.equal(12, last)
  end)

  it("are found by Hugging Face paths", function()
    local function is(path, name) assert.same({ name }, model:hookpoints(path)) end
    is("encoder.layer.3", "layers.3.resid_post")
    is("encoder.layer.3.output", "layers.3.resid_post")
    is("bert.encoder.layer.3.output.LayerNorm", "layers.3.resid_post")
    is("encoder.layer.3.output.dense", "layers.3.mlp_out")
    is("bert.encoder.layer.3.attention.output.dense", "layers.3.attn_out")
    is("encoder.layer.3.attention.output", "layers.3.resid_mid")
    is("encoder.layer.3.attention.self", "layers.3.attn_z")
    is("encoder.layer.3.intermediate", "layers.3.mlp_post")
    is("encoder.layer.3.intermediate.dense", "layers.3.mlp_pre")
    is("embeddings", "embed")
    is("cls.predictions", "logits")
    assert.has_error(function() model:hookpoints "bert.cls.predictions" end)
  end)

  it("give one point once, whatever matched it", function()
    assert.same({ "layers.0.resid_post", "layers.1.resid_post" },
      model:hookpoints { "encoder.layer.[01].output", "encoder.layer.[01]", "layers.1.resid_post",
        "blocks.0.hook_out" })
    assert.same({ "layers.10.resid_post", "layers.11.resid_post" }, model:hookpoints "encoder.layer.{10..11}.output")
    assert.same(model:hookpoints(), model:hookpoints "*")
  end)

  it("keep the two TransformerLens dialects apart", function()
    local tl2 = sl.model.new(CONFIG, { dialect = "tl2" })
    assert.same({ "layers.3.resid_post" }, model:hookpoints "blocks.3.hook_resid_post")
    assert.same({ "layers.3.resid_post_preln" }, tl2:hookpoints "blocks.3.hook_resid_post")
    assert.same({ "layers.3.resid_post" }, tl2:hookpoints "blocks.3.hook_normalized_resid_post")
    assert.same({ "layers.3.attn_z" }, tl2:hookpoints "blocks.3.attn.hook_z")
    assert.has_error(function() sl.model.new(CONFIG, { dialect = "tl4" }) end)
  end)

  it("name the nearest when nothing matches", function()
    local ok, message = pcall(model.hookpoints, model, "layers.3.resid_pots")
    assert.is_false(ok)
    assert.matches('no hook point matches "layers.3.resid_pots"; the nearest are .*"layers.3.resid_post"', message)
    assert.has_error(function() model:hookpoints "layers.[!0-9]*.resid_post" end)
    ok, message = pcall(model.hookpoints, model, "zzzz")
    assert.is_false(ok)
    assert.matches("model:hookpoints%(%) for all 212", message)
    assert.has_error(function() model:hookpoints { 3 } end)
    assert.has_error(function() model:hookpoints(3) end)
  end)

  it("answer resid() and width()", function()
    assert.same({ "layers.2.resid_post", "layers.0.resid_post" }, model:resid { 2, 0 })
    assert.same({ "layers.11.resid_post" }, model:resid(11))
    local ok, message = pcall(model.resid, model, { 12 })
    assert.is_false(ok)
    assert.matches("layer 12 does not exist: new has layers 0 to 11", message)
    assert.equal(12, model:width "layers.0.mlp_post")
    assert.equal(8, model:width "encoder.layer.0")
    assert.is_nil(model:width "layers.0.attn_pattern")
    assert.has_error(function() model:width "layers.*.mlp_post" end)
  end)

  it("leave the head out where there is none", function()
    local plain = sl.model.new(CONFIG, { head = false })
    assert.equal(5 + 12 * 17, #plain:hookpoints())
    assert.has_error(function() plain:hookpoints "logits" end)
  end)
end)
