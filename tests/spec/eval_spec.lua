-- Each evaluation number against its formula, computed naively here; dictionaries whose results are known.
local sl = require "saelua"
local tiny = require "tests.support.tiny"

local AT = "layers.0.resid_post"
local model, tokens, heldout
setup(function()
  model = tiny.model()
  tokens = sl.data.tokens("storyworld", model.tokenizer, { ctx_len = 16 })
  local all = tokens:heldout()
  heldout = { n = 21 }
  for _, name in ipairs { "ids", "mask", "document", "start", "finish" } do
    heldout[name] = all[name]:slice(1, 1, 21):contiguous()
  end
end)
teardown(function() tiny.remove() end)

local function close(want, got, tolerance, what)
  local near = math.abs(want - got) <= (tolerance or 1e-4) * (1 + math.abs(want)) -- false for NaN
  if not near then
    error(("%s: %.9g, expected %.9g"):format(what or "value", got, want), 2)
  end
end

local function options(more)
  local o = { at = AT, exclude = tokens.special_ids, batch_size = 4 }
  for key, value in pairs(more or {}) do o[key] = value end
  return o
end

local function dictionary()
  local sae = sl.sae.topk { d_in = 16, d_sae = 48, k = 5, seed = 2 }
  local x = sl.eval.rows(model, AT, heldout.ids, heldout.mask, tokens.special_ids)
  return sae:init_b_dec("mean", x), x
end

-- x = relu(x) - relu(-x): 32 latents, never wrong.
local function identity(scale)
  local eye = {}
  for i = 1, 32 do
    eye[i] = {}
    for j = 1, 16 do eye[i][j] = (i == j and 1) or (i == j + 16 and -1) or 0 end
  end
  local W = sl.tensor(eye)
  local sae = sl.sae.topk { d_in = 16, d_sae = 32, k = 32, apply_b_dec_to_input = false, normalize_decoder = false }
  return sae:set_parameter("W_enc", W):set_parameter("W_dec", W * (scale or 1))
end

describe("reconstruction", function()
  it("numbers are those of their formulas", function()
    local sae, x = dictionary()
    local m, densities = sl.eval.core(model, sae, heldout, options())
    local codes = sae:encode(x)
    local xs, ys, acts = x:totable(), sae:decode(codes):totable(), codes:to_dense():totable()
    local n, mean = #xs, {}
    for j = 1, 16 do
      mean[j] = 0
      for t = 1, n do mean[j] = mean[j] + xs[t][j] / n end
    end
    local e2, v2, cosine, active, fired = 0, 0, 0, 0, {}
    for t = 1, n do
      local xx, xy, yy = 0, 0, 0
      for j = 1, 16 do
        local a, b = xs[t][j], ys[t][j]
        e2, v2 = e2 + (a - b) ^ 2, v2 + (a - mean[j]) ^ 2
        xx, xy, yy = xx + a * a, xy + a * b, yy + b * b
      end
      cosine = cosine + xy / math.sqrt(xx * yy) / n
      for i = 1, 48 do
        if acts[t][i] ~= 0 then
          active = active + 1
          fired[i] = (fired[i] or 0) + 1
        end
      end
    end
    local dead = 0
    for i = 1, 48 do
      close((fired[i] or 0) / n, densities[i], 1e-6, "density")
      if not fired[i] then dead = dead + 1 end
    end
    assert.equal(n, m.n_tokens)
    assert.equal(n, m.dead_window_tokens)
    close(e2 / v2, m.fvu, 1e-4, "fvu")
    close(1 - e2 / v2, m.explained_variance, 1e-4, "explained variance")
    close(e2 / (16 * n), m.mse, 1e-4, "mse")
    close(cosine, m.cosine, 1e-4, "cosine")
    close(active / n, m.l0, 1e-6, "l0")
    close(dead / 48, m.dead_fraction, 1e-6, "dead")
  end)

  it("does not depend on the batch size, nor on a large mean", function()
    local sae = dictionary()
    local a = sl.eval.core(model, sae, heldout, options { batch_size = 1 })
    local b = sl.eval.core(model, sae, heldout, options { batch_size = 32 })
    for _, key in ipairs { "fvu", "mse", "cosine", "l0", "dead_fraction" } do close(a[key], b[key], 1e-4, key) end
    local fewer = sl.eval.core(model, sae, heldout, options { max_contexts = 5 })
    assert.is_true(fewer.n_tokens < a.n_tokens)
  end)

  it("is perfect for the identity, and nothing for zeros", function()
    local m = sl.eval.core(model, identity(), heldout, options())
    close(1, m.explained_variance, 1e-5)
    close(1, m.cosine, 1e-5)
    close(1, m.ce_recovered, 1e-3)
    close(m.ce_clean, m.ce_sae, 1e-4)
    local none = sl.eval.core(model, identity(0), heldout, options())
    assert.is_true(none.explained_variance <= 1e-5)
    close(0, none.cosine, 1e-6)
    local x = sl.eval.rows(model, AT, heldout.ids, heldout.mask, tokens.special_ids)
    close(x:square():mean():item(), none.mse, 1e-4)
  end)
end)

describe("cross-entropy", function()
  it("clean is the model's own at the masked positions", function()
    local sae = dictionary()
    local m = sl.eval.core(model, sae, heldout, options { batch_size = 32, seed = 4 })
    local hidden, positions, targets = sl.mask_tokens(heldout.ids, heldout.mask, { exclude = tokens.special_ids,
      mask_id = model.tokenizer.mask_id, vocab_size = model.vocab_size, rate = 0.15, seed = 4, step = 0 })
    local logits = model:forward(hidden, { mask = heldout.mask, logits = true }).logits
    local flat = logits:reshape(-1, model.vocab_size):log_softmax():totable()
    local at, ids, sum = positions:totable(), targets:totable(), 0
    for i = 1, #at do sum = sum - flat[at[i] + 1][ids[i] + 1] end
    assert.equal(#at, m.ce_tokens)
    close(sum / #at, m.ce_clean, 1e-4)
    close((m.ce_ablated - m.ce_sae) / (m.ce_ablated - m.ce_clean), m.ce_recovered, 1e-6)
  end)

  it("ablated is a model that sees zeros there", function()
    local m = sl.eval.core(model, dictionary(), heldout, options { batch_size = 32 })
    local hidden, positions, targets = sl.mask_tokens(heldout.ids, heldout.mask, { exclude = tokens.special_ids,
      mask_id = model.tokenizer.mask_id, vocab_size = model.vocab_size, rate = 0.15, seed = 0, step = 0 })
    local hook = model:hook(AT, function(x) return sl.zeros(x:shape()) end)
    local out = model:forward(hidden, { mask = heldout.mask, logit_rows = positions })
    hook:remove()
    close((sl.cross_entropy(out.logits, targets):item()), m.ce_ablated, 1e-4)
    assert.equal(0, #model:hooks()) -- nothing is left behind
  end)

  it("is left out, with the reason, when it is not asked for", function()
    local m = sl.eval.core(model, dictionary(), heldout, options { ce = false, redundancy = false })
    assert.is_nil(m.ce_clean)
    assert.equal("not asked for", m.reasons.ce_recovered)
    assert.is_nil(m.decoder_redundancy)
  end)

  it("hits count the largest logit at the target", function()
    local logits = sl.tensor { { 1, 3, 2 }, { 5, 0, 0 }, { 0, 0, 9 } }
    assert.equal(2, sl.eval.hits(logits, sl.tensor({ 1, 1, 2 }, { dtype = "i32" })))
  end)
end)

describe("redundancy", function()
  it("by hand", function()
    local c = sl.eval.max_cosines(sl.tensor { { 1, 0 }, { 0, 2 }, { 3, 3 }, { -1, 0 } })
    local half = math.sqrt(0.5)
    for i, want in ipairs { half, half, half, 0 } do close(want, c[i], 1e-5) end
    c = sl.eval.max_cosines(sl.tensor { { 1, 2 }, { 2, 4 }, { -1, 1 } }) -- duplicates
    close(1, c[1], 1e-5)
    close(1, c[2], 1e-5)
    assert.same({}, sl.eval.max_cosines(sl.ones { 1, 4 }))
    local _, _, list = sl.eval.core(model, dictionary(), heldout, options { ce = false })
    assert.equal(48, #list)
  end)
end)

describe("what cannot be evaluated", function()
  it("is refused", function()
    local sae = dictionary()
    local everything = {}
    for id = 0, model.vocab_size - 1 do everything[#everything + 1] = id end
    local ok, message = pcall(sl.eval.core, model, sae, heldout, options { exclude = everything })
    assert.is_false(ok)
    assert.truthy(message:find("no ordinary token", 1, true))
    assert.is_false((pcall(sl.eval.core, model, sae, heldout, options { att = 1 })))
    assert.is_false((pcall(sl.eval.core, model, sae, heldout, { exclude = {} })))
    assert.is_false((pcall(sl.eval.core, model, sae, heldout, options { at = "layers.9.resid_post" })))
  end)
end)

describe("latent cards", function()
  it("show the strongest firings, in their contexts", function()
    local sae = dictionary()
    local m, densities = sl.eval.core(model, sae, heldout, options { ce = false })
    local cards = sl.latents.cards(model, sae, heldout, densities, options { count = 6, contexts = 3, window = 4 },
      tokens.source)
    assert.equal(6, #cards)
    local x, kept = sl.eval.rows(model, AT, heldout.ids, heldout.mask, tokens.special_ids)
    local dense = sae:encode(x):to_dense()
    for i, card in ipairs(cards) do
      assert.is_true(card.density > 0)
      assert.is_true(i == 1 or card.density <= cards[i - 1].density)
      close(densities[card.id + 1], card.density, 1e-9)
      close(dense:select(2, card.id + 1):max():item(), card.max, 1e-5)
      assert.is_true(#card.contexts >= 1 and #card.contexts <= 3)
      for k, context in ipairs(card.contexts) do
        assert.equal(#context.tokens, #context.acts)
        assert.is_true(#context.tokens <= 9)
        if k == 1 then close(card.max, context.acts[context.peak], 1e-6) end
        for _, token in ipairs(context.tokens) do assert.not_equal("[PAD]", token) end
      end
      assert.is_string(card.label)
      assert.is_true(card.label_score > 0 and card.label_score <= 1)
    end
    assert.equal(m.n_tokens, kept:size(1))
  end)

  it("spread over the alive ones", function()
    assert.same({}, sl.latents.spread({ 0, 0 }, 5))
    assert.same({ 2 }, sl.latents.spread({ 0, 0, 0.5 }, 5))
    local densities = {}
    for i = 1, 100 do densities[i] = i / 1000 end
    local chosen = sl.latents.spread(densities, 9)
    assert.equal(9, #chosen)
    for i = 2, 9 do assert.is_true(chosen[i] < chosen[i - 1]) end
    assert.is_true(chosen[9] >= 10) -- the rarest tenth is left out
  end)
end)
