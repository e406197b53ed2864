-- Models at work: hooks, splices, gradients at hook points, what forward refuses, the tokenizer.
local sl = require "saelua"

local models = require "tests.support.models"

local difference, load = models.difference, models.load
local message_of, warnings_of = models.message_of, models.warnings_of

describe("hooks from Lua", function()
  local model, f, run
  setup(function()
    model, f = load "mlm_tied"
    run = { mask = f.mask, type_ids = f.type_ids, logits = true }
  end)

  it("see, replace and stop", function()
    local plain = model:forward(f.ids, run).logits
    local seen = {}
    local handle = model:hook("layers.*.mlp_out", function(x, info)
      seen[#seen + 1] = { info.name, info.point, info.layer, x:size(1), info.mask ~= nil }
      return x * 0
    end)
    local ablated = model:forward(f.ids, run).logits
    assert.same({ { "layers.0.mlp_out", "mlp_out", 0, 3, true }, { "layers.1.mlp_out", "mlp_out", 1, 3, true } }, seen)
    assert.same({ "layers.0.mlp_out", "layers.1.mlp_out" }, handle.names)
    assert.is_true(difference(plain, ablated) > 1e-2)
    run.hooks = false
    assert.equal(0, difference(plain, model:forward(f.ids, run).logits))
    run.hooks = nil
    handle:remove()
    handle:remove()
    assert.equal(0, difference(plain, model:forward(f.ids, run).logits))
    assert.equal(2, #seen)
    assert.same({}, model:hooks())
  end)

  it("raise with the recipe's line, and leave the model usable", function()
    local handle = model:hook("layers.1.attn_z", function() error "boom" end)
    local message = message_of(model.forward, model, f.ids, run)
    assert.matches("^[%w_/%.]*model_hooks_spec.lua:%d+: boom", message) -- the hook's line first
    assert.matches("traceback", message)
    handle:remove()
    handle = model:hook("layers.1.attn_z", function() return "text" end)
    assert.matches("hook at layers.1.attn_z: returned a string", message_of(model.forward, model, f.ids, run))
    handle:remove()
    handle = model:hook("layers.1.attn_z", function() return sl.zeros({ 2 }, {}) end)
    assert.matches("layers.1.attn_z: the replacement is", message_of(model.forward, model, f.ids, run))
    handle:remove()
    handle = model:hook("layers.1.attn_z", coroutine.yield)
    message_of(coroutine.wrap(function() model:forward(f.ids, run) end))
    handle:remove()
    assert.truthy(model:forward(f.ids, run).logits)
  end)

  it("work inside coroutines and scopes", function()
    local kept = {}
    local handle = model:hook("layers.0.resid_post", function(x) kept[1] = x end)
    local logits = coroutine.wrap(function() return model:forward(f.ids, run).logits end)()
    assert.is_true(difference(logits, f.logits) < 2e-5)
    assert.is_true(difference(kept[1], f["hidden.1"]) < 2e-5)
    sl.scope(function() model:forward(f.ids, run) end)
    assert.has_error(function() kept[1]:size(1) end) -- born in the scope, not kept
    handle:remove()
  end)

  it("may run the model themselves, with hooks off", function()
    local clean
    local handle = model:hook("layers.0.resid_post", function(x)
      clean = model:capture("layers.0.resid_post", f.ids, { mask = f.mask, type_ids = f.type_ids, hooks = false })
      return x * 2
    end)
    local out = model:capture("layers.0.resid_post", f.ids, run)
    assert.equal(0, difference(out["layers.0.resid_post"], clean["layers.0.resid_post"] * 2))
    assert.equal(1, model:hooks()[1].last_calls)
    handle:remove()
  end)

  it("splice at the mask, by function or by object", function()
    local before = model:capture("layers.0.resid_post", f.ids, run)["layers.0.resid_post"]
    local sae = { reconstruct = function(_, rows) return rows * 3 end }
    local options = { mask = f.mask, type_ids = f.type_ids, capture = "layers.0.resid_post",
                      splice = { ["layers.0.resid_post"] = sae } }
    local after = model:forward(f.ids, options).hidden["encoder.layer.0"]
    for b = 1, 3 do
      for t = 1, 7 do
        local factor = f.mask:get(b, t) == 1 and 3 or 1
        assert.is_true(math.abs(after:get(b, t, 5) - factor * before:get(b, t, 5)) < 1e-5)
      end
    end
    assert.same({}, model:hooks())
    local handle = model:splice("layers.0.resid_post", function(rows)
      assert.same({ 21, 24 }, rows:shape())
      return rows * 3
    end)
    options.splice = nil
    assert.equal(0, difference(after, model:forward(f.ids, options).hidden["layers.0.resid_post"]))
    handle:remove()
    assert.has_error(function() model:splice("layers.0.resid_post", {}) end)
    options.splice = { ["layers.0.resid_post"] = 3 }
    assert.matches("method `reconstruct` expected, got a number", message_of(model.forward, model, f.ids, options))
  end)

  it("get gradients of a frozen model", function()
    local grads = {}
    local handle = model:hook({ "layers.0.resid_post", "layers.1.resid_pre" }, function(g, info)
      grads[info.name] = g
    end, { backward = true })
    local tape = sl.tape():start()
    local loss = model:forward(f.ids, run).logits:sum()
    tape:backward(loss)
    assert.same({ 3, 7, 24 }, grads["layers.0.resid_post"]:shape())
    assert.equal(0, difference(grads["layers.0.resid_post"], grads["layers.1.resid_pre"]))
    assert.is_true(grads["layers.0.resid_post"]:abs():max():item() > 0)
    handle:remove()
    handle = model:hook("layers.0.resid_post", function() error "in backward" end, { backward = true })
    tape:start()
    loss = model:forward(f.ids, run).logits:sum()
    assert.matches("in backward", message_of(tape.backward, tape, loss))
    handle:remove()
  end)

  it("that do not run are reported by name", function()
    local handle = model:hook("layers.1.mlp_out", function() end)
    local out
    local list = warnings_of(function()
      out = model:forward(f.ids, { capture = "embed", stop_at = "layers.0.resid_post" })
      model:forward(f.ids, { stop_at = "embed" })
    end)
    assert.same({ "layers.1.mlp_out" }, out.unfired)
    assert.equal(1, #list)
    assert.matches("the forward hook at layers.1.mlp_out did not run", list[1], 1, true)
    model:forward(f.ids, run)
    assert.same({ { name = "layers.1.mlp_out", kind = "forward", calls = 1, last_calls = 1 } }, model:hooks())
    handle:remove()
  end)
end)

describe("model:forward", function()
  local model, f
  setup(function() model, f = load "mlm_tied" end)

  it("gives something useful without options", function()
    local out = model:forward(f.ids)
    assert.same({ 3, 7, 58 }, out.logits:shape())
    assert.same({ 3, 7, 24 }, out.hidden["layers.1.resid_post"]:shape())
    local plain = load "plain"
    assert.is_nil(plain:forward(f.ids).logits)
    assert.same({ 3, 7, 24 }, plain:forward(f.ids).hidden["layers.1.resid_post"]:shape())
  end)

  it("refuses what it cannot do", function()
    local plain = load "plain"
    assert.matches("has no MLM head", message_of(plain.forward, plain, f.ids, { logits = true }))
    assert.matches("unknown option \"captures\"", message_of(model.forward, model, f.ids, { captures = "embed" }))
    assert.matches("nearest", message_of(model.forward, model, f.ids, { capture = "layer.0.resid_post" }))
    assert.matches("the pass stops at embed", message_of(model.forward, model, f.ids,
      { capture = "layers.0.resid_post", stop_at = "embed" }))
    assert.matches("at most 16", message_of(model.forward, model, sl.zeros({ 1, 17 }, { dtype = "i32" })))
    assert.matches("mask", message_of(model.forward, model, f.ids, { mask = f.ids }))
    assert.matches("58", message_of(model.forward, model, sl.full({ 1, 2 }, 58, { dtype = "i32" })))
    assert.has_error(function() model:forward() end)
  end)

  it("of a freed model raises", function()
    local gone = load "plain"
    gone:free()
    assert.matches("was freed", message_of(gone.forward, gone, f.ids))
  end)
end)

describe("the tokenizer", function()
  local tokenizer
  setup(function() tokenizer = load("mlm_tied").tokenizer end)

  it("encodes, with offsets, and decodes", function()
    local text = "The captain  sold boats."
    local ids, offsets = tokenizer:encode(text, { offsets = true })
    assert.same({ 2, 5, 7, 8, 10, 37, 40, 3 }, ids)
    assert.same({ 1, 0 }, offsets[1])
    assert.equal("captain", text:sub(offsets[3][1], offsets[3][2]))
    assert.equal("s", text:sub(offsets[6][1], offsets[6][2]))
    assert.same({ 7 }, tokenizer:encode("captain", { special = false }))
    assert.equal("[CLS] the captain sold boats. [SEP]", tokenizer:decode(ids))
    assert.equal("the captain sold boats.", tokenizer:decode(ids, { skip_special = true }))
    local tensor = tokenizer:encode_tensor(text)
    assert.same({ 1, 8 }, tensor:shape())
    assert.equal("[CLS] the captain sold boats. [SEP]", tokenizer:decode(tensor))
  end)

  it("knows ids and tokens", function()
    assert.equal(4, tokenizer:id "[MASK]")
    assert.equal(4, tokenizer.mask_id)
    assert.is_nil(tokenizer:id "zebra")
    assert.equal("##s", tokenizer:token(37))
    assert.is_nil(tokenizer:token(58))
    assert.is_true(tokenizer:is_special(tokenizer.pad_id))
    assert.is_false(tokenizer:is_special(7))
    assert.same({ 0, 1, 2, 3, 4 }, tokenizer:special_ids())
    assert.matches("WordPiece, 58 tokens", tostring(tokenizer))
    assert.has_error(function() return tokenizer.nonsense end)
    assert.has_error(function() tokenizer:encode("x", { ofsets = true }) end)
    assert.has_error(function() tokenizer:decode { "x" } end)
  end)

  it("is nil and a message where there is none", function()
    local none, message, code = sl.tokenizer "/nowhere"
    assert.is_nil(none)
    assert.matches("/nowhere", message)
    assert.equal("SL_ENOTFOUND", code)
  end)
end)
