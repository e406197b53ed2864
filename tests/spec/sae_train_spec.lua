-- Dictionaries from Lua: training lowers the loss, gradients are those of the loss, options act, wrappers agree.
local host = require "saelua.host"
local program = require "tests.support.program"
local sl = require "saelua"

local function refused(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  if not message:find(pattern, 1, true) then error(("message %q lacks %q"):format(message, pattern), 2) end
end

local D, M, K = 8, 32, 4

local function new(options)
  local o = { d_in = D, d_sae = M, k = K, seed = 1 }
  for key, value in pairs(options or {}) do o[key] = value end
  return sl.sae.topk(o)
end

-- Sparse mixtures of fixed directions, plus an offset: what a dictionary can find.
local function batch(step, n)
  local atoms = sl.normalize_rows_(sl.randn({ 16, D }, { seed = 99 }))
  local weights = sl.rand({ n or 256, 16 }, { seed = 5, step = step }):relu()
  return (weights * weights:gt_scalar(0.8)):matmul(atoms) + 0.3
end

describe("training", function()
  for name, options in pairs {
    fvu = { kind = "fvu" }, mse = { kind = "mse" }, auxk = { auxk_alpha = 1 / 32, dead_feature_threshold = 500 },
    multi = { multi_alpha = 1 / 8 }, micro = { micro_acc_steps = 3 }, smaller_k = { k = 2 },
  } do
    it("lowers the loss: " .. name, function()
      local sae = new()
      local optim = sl.sae_optim(sae, { clip_norm = 1 })
      local first, last
      for step = 1, 60 do
        local x = batch(step)
        if step == 1 then sae:init_b_dec("mean", x) end
        local loss = sae:loss(x, options)
        assert.equal(loss.tokens, 256)
        assert.is_true(loss.l0 <= (options.k or K))
        loss:backward()
        optim:step(3e-3)
        first, last = first or loss.loss, loss.loss
      end
      assert.equal(60, optim.steps)
      assert.is_true(last < 0.8 * first, ("%g -> %g"):format(first, last))
      local norms = sae:parameter("W_dec"):square():sum(2)
      assert.is_true((norms - 1):abs():max():item() < 1e-5)
    end)
  end

  it("has the numbers that its codes and reconstruction give", function()
    local sae, x = new(), batch(1)
    local loss = sae:loss(x, { kind = "fvu" })
    local codes = loss:codes()
    local x_hat = sae:decode(codes)
    local error2, variance = (x - x_hat):square():sum():item(), (x - x:mean(1)):square():sum():item()
    local dot = (x * x_hat):sum(2) / (x:square():sum(2) * x_hat:square():sum(2)):sqrt()
    for key, want in pairs { fvu = error2 / variance, loss = error2 / variance, mse = error2 / x:numel(),
      explained_variance = 1 - error2 / variance, l0 = codes:nnz() / 256, total_variance = variance,
      cosine = dot:mean():item() } do
      assert.is_true(math.abs(loss[key] - want) < 1e-4 * (1 + math.abs(want)), key)
    end
    local by_mse = sae:loss(x, { kind = "mse" })
    assert.is_true(math.abs(by_mse.loss - loss.mse) < 1e-6)
  end)

  it("is bounded by pieces without changing the numbers", function()
    local a, b, x = new(), new(), batch(2)
    a:loss(x):backward()
    b:loss(x, { micro_acc_steps = 5 }):backward()
    for _, name in ipairs { "W_enc", "b_enc", "W_dec", "b_dec" } do
      local difference = (a:grad(name) - b:grad(name)):abs():max():item()
      assert.is_true(difference < 1e-5, name)
    end
  end)

  it("has the gradient of its loss", function()
    local sae = new { normalize_decoder = false }
    local x = batch(3, 40)
    sae:set_parameter("b_enc", sl.rand({ M }, { seed = 4, low = 0.05, high = 0.3 }))
    local function loss() return sae:loss(x, { kind = "fvu" }) end
    loss():backward()
    local step = 2e-3
    for _, name in ipairs { "W_enc", "b_enc", "W_dec", "b_dec" } do
      local gradient = sae:grad(name):reshape(-1)
      local start = sae:parameter(name):clone()
      -- along the gradient: no single entry matters enough in float32
      local norm = gradient:square():sum():sqrt():item()
      local direction = (gradient / norm):reshape(start:shape())
      sae:set_parameter(name, start + direction * step)
      local up = loss().loss
      sae:set_parameter(name, start - direction * step)
      local down = loss().loss
      sae:set_parameter(name, start)
      local slope = (up - down) / (2 * step)
      assert.is_true(math.abs(slope - norm) < 0.05 * norm + 1e-4, ("%s: %g, expected %g"):format(name, slope, norm))
    end
  end)

  it("adds batches up, scaled", function()
    local a, b = new(), new()
    a:loss(batch(1)):backward(0.5)
    a:loss(batch(2)):backward(0.5)
    b:loss(batch(1)):backward()
    local one = b:grad "W_dec"
    b:zero_grad()
    assert.equal(0, b:grad("W_dec"):abs():max():item())
    b:loss(batch(2)):backward()
    local want = (one + b:grad "W_dec") * 0.5
    assert.is_true((a:grad "W_dec" - want):abs():max():item() < 1e-6)
  end)

  it("stops at what is not finite", function()
    local sae, x = new(), batch(1)
    local optim = sl.sae_optim(sae)
    x:set(3, 2, 0 / 0)
    local loss = sae:loss(x)
    assert.is_true(loss.loss ~= loss.loss)
    refused("not finite", loss.backward, loss)
    refused("NaN or infinite", sae.encode, sae, x)
    refused("learning rate is not finite", optim.step, optim, 0 / 0)
  end)
end)

describe("a loss", function()
  it("is used once", function()
    local sae = new()
    local loss = sae:loss(batch(1))
    loss:backward()
    refused("used up by backward", loss.backward, loss)
    refused("used up by backward", loss.codes, loss)
    assert.is_number(loss.fvu) -- the numbers stay
    loss:free()
  end)

  it("lives on its own references", function()
    local loss
    do
      local sae = new()
      loss = sae:loss(batch(1))
    end
    collectgarbage()
    collectgarbage()
    local codes = loss:codes()
    loss:backward()
    assert.is_true(codes:nnz() > 0)
    assert.equal(256, (codes:size()))
  end)

  it("checks what it is given", function()
    local sae, x = new(), batch(1)
    refused("unknown option 'alpha'", sae.loss, sae, x, { alpha = 1 })
    refused("kind: 'ce' is not one of mse, fvu", sae.loss, sae, x, { kind = "ce" })
    refused("k = 33", sae.loss, sae, x, { k = 33 })
    refused("the dictionary reads 8 inputs", sae.loss, sae, sl.zeros { 4, 7 })
    refused("expected f32", sae.loss, sae, sl.zeros({ 4, 8 }, { dtype = "i32" }))
    refused("no tokens", sae.loss, sae, sl.zeros { 0, 8 })
    refused("all equal", sae.loss, sae, sl.ones { 4, 8 })
    refused("may not be negative", sae.loss, sae, x, { auxk_alpha = -1 })
    refused("option 'k': expected an integer", sae.loss, sae, x, { k = 1.5 })
    refused("option 'k': expected a number", sae.loss, sae, x, { k = "4" })
  end)
end)

describe("parameters", function()
  it("are set by value and checked", function()
    local sae = new()
    local b = sl.rand({ D }, { seed = 1 })
    sae:set_parameter("b_dec", b)
    b:zero_()
    assert.is_true(sae:parameter("b_dec"):min():item() >= 0 and sae:parameter("b_dec"):max():item() > 0)
    refused('no parameter is called "W"', sae.parameter, sae, "W")
    refused("b_dec is [8]", sae.set_parameter, sae, "b_dec", sl.zeros { 9 })
    refused("copy", sae.set_parameter, sae, "b_dec", sl.zeros({ D }, { dtype = "i32" }))
    sae:set_parameter("W_dec", sl.ones { M, D })
    assert.is_true(math.abs(sae:parameter("W_dec"):get(1, 1) - 1 / math.sqrt(8)) < 1e-6)
    assert.equal(4, #sae:parameters())
    sae:free()
    refused("the SAE was freed", sae.encode, sae, batch(1))
  end)

  it("start as asked", function()
    refused("k = 33 is more than the 32 latents", new, { k = 33 })
    refused("k = 0", new, { k = 0 })
    refused("give expansion or d_sae", sl.sae.topk, { d_in = 4, k = 1 })
    assert.equal(40, sl.sae.topk({ d_in = 8, k = 1, expansion = 5 }).d_sae)
    local a, b = new { seed = 7 }, new { seed = 8 }
    assert.is_true((a:parameter "W_enc" - b:parameter "W_enc"):abs():max():item() > 0.01)
    local x = batch(1) + 2
    a:init_b_dec("mean", x)
    assert.is_true((a:parameter "b_dec" - x:mean(1)):abs():max():item() < 1e-5)
    a:init_b_dec("geometric_median", x)
    a:init_b_dec "zeros"
    assert.equal(0, a:parameter("b_dec"):abs():max():item())
    refused("init_b_dec: 'median' is not one of", a.init_b_dec, a, "median", x)
    refused("no tokens", a.init_b_dec, a, "mean")
  end)
end)

describe("what fired", function()
  it("is counted in tokens", function()
    local sae = new { k = 1 }
    assert.equal(0, sae:dead_fraction(10))
    assert.is_true(sae:rare_fraction(0.5) ~= sae:rare_fraction(0.5)) -- NaN: no window yet
    for _ = 1, 3 do sae:loss(batch(1)):backward() end -- 3 * 256 tokens of the same batch
    local counts = sae:encode(batch(1)):counts():totable()
    local silent = 0
    for _, n in ipairs(counts) do silent = silent + (n == 0 and 1 or 0) end
    assert.is_true(silent > 0)
    assert.equal(silent / M, sae:dead_fraction(700))
    assert.equal(0, sae:dead_fraction(768)) -- silent for exactly that long is not yet more
    assert.equal(768, sae.window_tokens)
    sae:reset_window()
    assert.equal(0, sae.window_tokens)
  end)
end)

describe("codes", function()
  it("decode, count, read", function()
    local sae, x = new(), batch(1, 20)
    local codes = sae:encode(x)
    local dense = codes:to_dense()
    local by_hand = dense:matmul(sae:parameter "W_dec") + sae:parameter "b_dec"
    assert.is_true((by_hand - sae:decode(codes)):abs():max():item() < 1e-5)
    assert.is_true((sae:reconstruct(x) - by_hand):abs():max():item() < 1e-5)
    local fired = dense:gt_scalar(0)
    assert.same(fired:sum(1):totable(), codes:counts():totable())
    assert.equal(fired:sum():item(), codes:nnz())
    local columns = codes:columns { 3, 0, 3 }
    assert.same(dense:select(2, 4):totable(), columns:select(2, 1):totable())
    assert.same(dense:select(2, 1):totable(), columns:select(2, 2):totable())
    assert.same(dense:select(2, 4):totable(), columns:select(2, 3):totable())
    refused("latents 0 to 31", codes.columns, codes, { 32 })
    refused("expected an integer", codes.columns, codes, { -1 })
    refused("expected an integer", codes.columns, codes, { 2 ^ 32 })
    refused("1 to 1024 latents", codes.columns, codes, {})
    assert.truthy(tostring(codes):find("codes of 20 rows, 32 latents", 1, true))
    codes:free()
    refused("the codes was freed", codes.nnz, codes)
  end)
end)

describe("a dictionary in Lua", function()
  local function custom()
    local W_enc = sl.rand({ M, D }, { seed = 1, low = -0.3, high = 0.3 })
    local b_enc, b_dec = sl.zeros { M }, sl.full({ D }, 0.1)
    local W_dec = sl.normalize_rows_(W_enc:clone())
    return sl.sae.custom { architecture = "topk", k = K, W_enc = W_enc, b_enc = b_enc, W_dec = W_dec, b_dec = b_dec,
      encode = function(x) return sl.linear(x - b_dec, W_enc, b_enc):relu():topk(K) end }
  end

  it("does what the built-in does with the same numbers", function()
    local mine, built_in, x = custom(), new(), batch(1, 30)
    for _, name in ipairs { "W_enc", "b_enc", "W_dec", "b_dec" } do
      built_in:set_parameter(name, mine:parameter(name))
    end
    assert.is_true((mine:reconstruct(x) - built_in:reconstruct(x)):abs():max():item() < 1e-5)
    assert.is_true((mine:encode(x):to_dense() - built_in:encode(x):to_dense()):abs():max():item() < 1e-5)
    mine:parameter("b_dec"):zero_() -- its decoder follows
    built_in:set_parameter("b_dec", sl.zeros { D })
    assert.is_true((mine:reconstruct(x) - built_in:reconstruct(x)):abs():max():item() < 1e-5)
    refused("no parameter 'W'", mine.parameter, mine, "W")
    refused("d_inn", sl.sae.custom, { d_inn = 1 })
  end)

  it("is saved and loaded", function()
    local dir = program.folder()
    local a, b = custom(), custom()
    a:parameter("W_enc"):copy_(sl.rand({ M, D }, { seed = 9 }))
    assert(a:save_state(dir))
    assert(b:load_state(dir))
    assert.equal(0, (a:parameter "W_enc" - b:parameter "W_enc"):abs():max():item())
    host.remove_tree(dir)
    local ok, message = b:load_state(dir)
    assert.is_nil(ok)
    assert.truthy(message:find(dir, 1, true))
  end)
end)

describe("a plan", function()
  local function doubts(changes)
    local plan = { d_in = 64, d_sae = 256, k = 8, tokens = 1000000, dead_feature_threshold = 1000,
      dead_percentage_threshold = 0.001, uses_dead = true }
    for key, value in pairs(changes) do plan[key] = value end
    return sl.sae.doubts(plan)
  end

  it("is doubted where it should be", function()
    assert.same({}, doubts {})
    for want, changes in pairs {
      ["firings"] = { tokens = 1000, dead_feature_threshold = 10 }, ["is more than the 64 dimensions"] = { k = 65 },
      ["AuxK will never act"] = { dead_feature_threshold = 1000000 },
      ["most latents will count as"] = { dead_percentage_threshold = 0.1 },
    } do
      local list = doubts(changes)
      assert.equal(1, #list)
      assert.truthy(list[1]:find(want, 1, true), list[1])
    end
  end)
end)
