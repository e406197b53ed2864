-- Schedules: the golden values of SAELens 6.54 and sparsify 1.3, composition, and what is refused.
local schedule = require "saelua.schedule"

local function values(s, n)
  local list = {}
  for t = 0, n - 1 do list[#list + 1] = s(t) end
  return list
end

local function assert_values(expected, s, tolerance)
  local got = values(s, #expected)
  for i, want in ipairs(expected) do
    assert.is_true(math.abs(got[i] - want) <= (tolerance or 1e-12),
      ("step %d: %.12g expected, got %.12g"):format(i - 1, want, got[i]))
  end
end

describe("schedules against SAELens (lr 1, lr_end 0.1, 10 steps, warm-up 3, decay 3)", function()
  it("constant", function()
    local s = schedule.final_decay(10, 3, schedule.warmup(3, schedule.constant(1)))
    assert_values({ 1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3 }, s)
    assert.equal(0, s(10))
    assert.equal(0, s(1000))
  end)

  it("cosine, and restarts with one cycle", function()
    local golden = { 1 / 3, 2 / 3, 1, 1, .868198, .55, .231802, .1, .0666667, .0333333 }
    assert_values(golden, schedule.final_decay(10, 3, schedule.warmup(3, schedule.cosine(1, 4, { final = .1 }))), 1e-6)
    local restarts = schedule.cosine_restarts(1, 4, { cycles = 1, final = .1 })
    assert_values(golden, schedule.final_decay(10, 3, schedule.warmup(3, restarts)), 1e-6)
  end)

  it("three restarts without warm-up and decay; the remainder starts a fourth", function()
    assert_values({ 1, .775, .325, 1, .775, .325, 1, .775, .325, 1 },
      schedule.cosine_restarts(1, 10, { cycles = 3, final = .1 }))
  end)

  it("the same three through the one-call form", function()
    local function lens(name)
      return schedule.saelens { lr = 1, lr_end = .1, steps = 10, warmup = 3, decay = 3, name = name }
    end
    assert_values({ 1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3 }, lens "constant")
    local golden = { 1 / 3, 2 / 3, 1, 1, .868198, .55, .231802, .1, .0666667, .0333333 }
    assert_values(golden, lens "cosineannealing", 1e-6)
    assert_values(golden, lens "cosineannealingwarmrestarts", 1e-6)
    assert.has_error(function()
      schedule.saelens { lr = 1, lr_end = 0, steps = 10, decay = 3, name = "cosineannealing" }
    end)
    assert.has_error(function() schedule.saelens { lr = 1, steps = 6, warmup = 3, decay = 3 } end)
  end)

  it("the coefficient is exactly 0 at step 0 and full at the end of its warm-up", function()
    assert_values({ 0, 1.25, 2.5, 3.75, 5, 5, 5 }, schedule.l1_warmup(5, 4))
    assert.equal(5, schedule.l1_warmup(5, 0)(0))
  end)
end)

describe("schedules against sparsify", function()
  it("warm-up from 0, then linearly to 0", function()
    assert_values({ 0, .25, .5, .75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0, 0 }, schedule.sparsify(1, 4, 10))
    assert_values({ 2, 1.5, 1, .5, 0 }, schedule.sparsify(2, 0, 4))
    local composed = schedule.warmup(4, schedule.linear(1, 0, 6), { from_zero = true })
    assert_values(values(schedule.sparsify(1, 4, 10), 12), composed)
  end)

  it("k decay rounds half to even, as Python does", function()
    -- round(10 (1 - t/4) + 4 t/4): 10, 8.5 -> 8, 7, 5.5 -> 6, 4
    assert_values({ 10, 8, 7, 6, 4, 4 }, schedule.k_decay(10, 4, 4))
    assert.equal(32, schedule.k_decay(320, 32, 0)(0))
    assert.equal(176, schedule.k_decay(320, 32, 1000)(500))
  end)

  it("the rule for an unset learning rate", function()
    local function near(want, got) assert.is_true(math.abs(got / want - 1) < 3e-3) end
    near(2e-4, schedule.auto_lr("adam", 16384))
    near(1.63e-4, schedule.auto_lr("adam", 24576))
    near(1.77e-3, schedule.auto_lr("signum", 131072))
    near(2e-3, schedule.auto_lr("muon", 131072))
    assert.has_error(function() schedule.auto_lr("sgd", 16384) end,
      'schedule.auto_lr: no rule for optimizer "sgd"; give a learning rate (--lr)')
  end)
end)

describe("composition", function()
  it("sequence gives each part its own steps", function()
    local s = schedule.sequence { { schedule.linear(0, 1, 2), 2 }, { 5, 3 }, schedule.linear(5, 0, 5) }
    assert_values({ 0, .5, 5, 5, 5, 5, 4, 3, 2, 1, 0, 0 }, s)
  end)

  it("takes numbers and functions where a schedule is expected", function()
    assert_values({ .5, 1, 1 }, schedule.warmup(2, 1))
    assert_values({ 6, 8 }, schedule.scaled(2, function(t) return t + 3 end))
  end)

  it("shows how it was built", function()
    assert.equal("warmup(1000, cosine(0.0003, 9000, final=0))",
      tostring(schedule.warmup(1000, schedule.cosine(3e-4, 9000))))
    assert.equal("warmup(2, constant(1), from_zero=true)", tostring(schedule.warmup(2, 1, { from_zero = true })))
  end)

  it("a final decay of 0 steps changes nothing", function()
    assert_values({ 3, 3, 3 }, schedule.final_decay(2, 0, 3))
  end)
end)

describe("misuse of schedules", function()
  local function refused(fragment, fn)
    local ok, message = pcall(fn)
    assert.is_false(ok)
    assert.truthy(message:find(fragment, 1, true), message)
    assert.truthy(message:find("schedule_spec.lua", 1, true), "no position of the caller: " .. message)
  end

  it("names the function, the argument and what was expected", function()
    refused("schedule.cosine: steps: a whole number >= 1 expected, got 0", function()
      local _ = schedule.cosine(1, 0)
      return _
    end)
    refused("schedule.linear: from: a finite number expected, got x", function()
      local _ = schedule.linear("x", 1, 2)
      return _
    end)
    refused("schedule.constant: value: a finite number expected, got nan", function()
      local _ = schedule.constant(0 / 0)
      return _
    end)
    refused('unknown option "finl"; did you mean "final"?', function()
      local _ = schedule.cosine(1, 2, { finl = 0 })
      return _
    end)
    refused("a whole number >= 1 expected, got nil", function()
      local _ = schedule.sequence { { 1 }, { 2, 3 } }
      return _
    end)
    refused("11 decay steps do not fit into 10", function()
      local _ = schedule.final_decay(10, 11, 1)
      return _
    end)
  end)

  it("a step that is no whole number from 0 raises at the caller", function()
    local s = schedule.constant(1)
    refused("a 0-based whole step expected, got -1", function()
      local _ = s(-1)
      return _
    end)
    refused("a 0-based whole step expected, got 0.5", function()
      local _ = s(0.5)
      return _
    end)
    refused("a 0-based whole step expected, got nil", function()
      local _ = s()
      return _
    end)
  end)
end)
