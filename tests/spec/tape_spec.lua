-- Gradients from Lua: the tape, no_grad, hooks of the collector's making, optimisers on top.
local sl = require "saelua"

local function refused(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  if not message:find(pattern) then error(("message %q lacks %q"):format(message, pattern), 2) end
end

local function leaf(values) return sl.tensor(values):requires_grad_() end

-- d fn / d x by central differences, in float32: fn must be smooth and of moderate size.
local function numeric(fn, x, step)
  local flat, out = x:reshape(-1), {}
  for i = 1, flat:size(1) do
    local value = flat:get(i)
    flat:set(i, value + step)
    local up = fn():item()
    flat:set(i, value - step)
    local down = fn():item()
    flat:set(i, value)
    out[i] = (up - down) / (2 * step)
  end
  return out
end

describe("the tape", function()
  it("gives gradients of a composite, as finite differences do", function()
    local W = sl.rand({ 3, 4 }, { seed = 1, low = -1 }):requires_grad_()
    local b = sl.rand({ 3 }, { seed = 2 }):requires_grad_()
    local x = sl.rand({ 5, 4 }, { seed = 3 })
    local function loss()
      local y = sl.linear(x, W, b, "tanh")
      return (y:square():mean() + y:softmax():log():mean() * 0.1) / 2
    end
    local tape = sl.tape():start()
    loss():backward()
    assert.equal(0, tape:length())
    for _, p in ipairs { W, b } do
      local want, got = numeric(loss, p, 1e-2), p:grad():reshape(-1):totable()
      for i = 1, #want do assert.is_true(math.abs(want[i] - got[i]) < 1e-3 * (1 + math.abs(want[i]))) end
    end
  end)

  it("adds up: branches, steps, a leaf used twice", function()
    local x = leaf { 2, -3 }
    local tape = sl.tape()
    for step = 1, 2 do
      tape:start()
      local y = x * x
      ;(y + x * 3 + y):sum():backward() -- 2 x^2 + 3 x
      assert.same({ step * 11, step * -9 }, x:grad():totable())
    end
    assert.is_nil(x:clear_grad():grad())
  end)

  it("keeps gradients that share memory apart", function()
    local a, b, w = leaf { 1, 2, 3, 4 }, leaf { { 1, 1 }, { 1, 1 } }, sl.tensor { 5, 6, 7, 8 }
    sl.tape():start()
    local early = (a * w):sum()
    ;((a:reshape(2, 2) + b):sum() + early):backward()
    assert.same({ 6, 7, 8, 9 }, a:grad():totable())
    assert.same({ { 1, 1 }, { 1, 1 } }, b:grad():totable())
  end)

  it("records nothing in no_grad, after stop, and for what needs none", function()
    local x = leaf { 1 }
    local tape = sl.tape():start()
    local y = x * 2
    assert.equal(1, tape:length())
    local z, n = sl.no_grad(function() return y * 3, 5 end)
    assert.equal(1, tape:length())
    assert.equal(5, n)
    assert.equal(6, z:item())
    refused("boom", sl.no_grad, function() error "boom" end)
    local _ = y * 3
    assert.equal(2, tape:length()) -- recording goes on also after an error inside
    tape:stop()
    _ = y * 4
    assert.equal(2, tape:length())
    tape:reset()
    assert.equal(0, tape:length())
    tape:start()
    _ = sl.ones { 1 } * 2
    _ = x:detach() * 2
    assert.equal(0, tape:length())
    tape:stop()
  end)

  it("refuses what cannot be", function()
    local x = leaf { 1, 2 }
    refused("no tape is recording", function() x:sum():backward() end)
    sl.tape():start()
    refused("the loss is %[2%], expected one element", function() (x * 2):backward() end)
    assert.is_nil(x:grad())
    local tape = sl.tape():start()
    refused("not computed on the tape", function() sl.ones({ 1 }):backward() end)
    tape:start()
    refused("the seed is %[3%]", function() (x * 2):backward(sl.ones { 3 }) end)
    tape:start()
    refused("the seed is i32", function() (x * 2):backward(sl.ones({ 2 }, { dtype = "i32" })) end)
    tape:start()
    ;(x * 2):backward(sl.tensor { 1, 10 })
    assert.same({ 2, 20 }, x:grad():totable())
    refused("requires_grad_.*expected f32", function() sl.ones({ 1 }, { dtype = "i32" }):requires_grad_() end)
    refused("Tape", function() tape.start(x) end)
  end)

  it("survives a tape that nobody holds", function()
    local x = leaf { 1, 2, 3 }
    sl.tape():start()
    local loss = (x * 2):sum()
    collectgarbage()
    collectgarbage()
    refused("no tape is recording", function() loss:backward() end)
    sl.tape():start()
    sl.no_grad(function() -- it goes while it is suspended
      collectgarbage()
      collectgarbage()
    end)
    local y = x * 2
    assert.equal(4, y:get(2))
    refused("no tape is recording", function() y:sum():backward() end)
  end)

  it("holds no memory afterwards", function()
    local x = leaf { 1, 2, 3 }
    local tape = sl.tape()
    sl.trim()
    local before
    for step = 1, 20 do
      sl.scope(function()
        tape:start()
        local y = x
        for _ = 1, 10 do y = (y * 1.1 + x):tanh() end
        if step % 3 == 0 then
          pcall(function() y:backward() end)
        else
          y:sum():backward()
        end
        x:clear_grad()
      end)
      if step == 2 then before = sl.memory() end
    end
    local now = sl.memory()
    assert.equal(before.tensors, now.tensors)
    assert.equal(before.tensor_bytes, now.tensor_bytes)
  end)
end)

describe("optimisers", function()
  it("follow the rule: sgd with momentum, adamw by hand", function()
    local w, v = leaf { 1, -2 }, leaf { 1, -2 }
    local sgd = sl.optim.sgd({ { "w", w } }, { momentum = 0.9 })
    local adam = sl.optim.adam({ { "v", v } }, { weight_decay = 0.1 })
    local value, velocity, m1, m2, u = { 1, -2 }, { 0, 0 }, { 0, 0 }, { 0, 0 }, { 1, -2 }
    local tape = sl.tape()
    for step = 1, 5 do
      tape:start()
      ;(w:square():sum() + v:square():sum()):backward()
      sgd:step(0.1)
      adam:step(0.01)
      assert.is_nil(w:grad()) -- dropped
      for i = 1, 2 do
        velocity[i] = 0.9 * velocity[i] + 2 * value[i]
        value[i] = value[i] - 0.1 * velocity[i]
        local g = 2 * u[i]
        m1[i], m2[i] = 0.9 * m1[i] + 0.1 * g, 0.999 * m2[i] + 0.001 * g * g
        u[i] = u[i] * (1 - 0.01 * 0.1)
          - 0.01 * (m1[i] / (1 - 0.9 ^ step)) / (math.sqrt(m2[i] / (1 - 0.999 ^ step)) + 1e-8)
        assert.is_true(math.abs(w:get(i) - value[i]) < 1e-5)
        assert.is_true(math.abs(v:get(i) - u[i]) < 1e-5)
      end
    end
    assert.equal(5, select(2, sgd:state()))
  end)

  it("clip by the global norm", function()
    local w, b = leaf { 3 }, leaf { 4 }
    local optim = sl.optim.sgd { { "w", w }, { "b", b } }
    sl.tape():start()
    ;((w * w + b * b) * 0.5):sum():backward() -- gradients 3 and 4
    assert.is_true(math.abs(optim:clip(0) - 5) < 1e-6)
    assert.equal(3, w:grad():item())
    assert.is_true(math.abs(optim:clip(1) - 5) < 1e-6)
    assert.is_true(math.abs(w:grad():item() - 0.6) < 1e-6)
    assert.is_true(math.abs(b:grad():item() - 0.8) < 1e-6)
    optim:zero_grad()
    assert.is_nil(w:grad())
  end)

  it("refuse what they cannot update", function()
    refused("parameter 1: { name, tensor } expected", sl.optim.adam, { sl.ones { 1 } })
    refused("expected f32", sl.optim.adam, { { "ids", sl.ones({ 1 }, { dtype = "i32" }) } })
    refused('unknown option "beta"; did you mean "betas"', sl.optim.adam, {}, { beta = 1 })
    refused("optimizer: 'muon' is not one of adam, adamw, sgd", sl.optimizer, "muon")
    refused("w", sl.optim.sgd, { { "w", sl.ones { 1 } }, { "w", sl.ones { 1 } } })
  end)
end)
