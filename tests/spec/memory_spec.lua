-- What the engine says about its memory: labels, peaks, budgets, and the message of an allocation that failed.
local sl = require "saelua"

local function cpu()
  for _, device in ipairs(sl.memory().devices) do
    if device.name == "cpu" then return device end
  end
end

local function label(name) return cpu().labels[name] or 0 end

describe("memory", function()
  local anchor -- so that the device is known and something is live
  before_each(function()
    anchor = anchor or sl.zeros { 16 }
    sl.trim()
    sl.reset_memory_peaks()
  end)
  after_each(function() sl.memory_budget("cpu", 0) end)

  it("books what a training step holds under its labels", function()
    local before = cpu()
    local sae = sl.sae.topk { d_in = 32, d_sae = 256, k = 4 }
    assert.is_true(label "SAE parameters" - (before.labels["SAE parameters"] or 0) >= 2 * 32 * 256 * 4)
    local optim = sl.sae_optim(sae)
    assert.is_true(label "optimiser moments" - (before.labels["optimiser moments"] or 0) >= 4 * 32 * 256 * 4)
    local loss = sae:loss(sl.randn { 64, 32 })
    assert.is_true(label "SAE codes and residuals" > (before.labels["SAE codes and residuals"] or 0))
    loss:backward()
    optim:step(1e-3)
    assert.is_true(label "gradients" - (before.labels["gradients"] or 0) >= 2 * 32 * 256 * 4)
    local device = cpu()
    assert.is_true(device.peak >= device.live)
    assert.is_true(device.labels_at_peak["optimiser moments"] >= 4 * 32 * 256 * 4)
    loss:free()
    optim:free()
    sae:free()
    assert.are.equal(before.labels["optimiser moments"], cpu().labels["optimiser moments"])
    assert.are.equal(before.labels["gradients"], cpu().labels["gradients"])
  end)

  it("has a peak of its own after a reset", function()
    local large = sl.zeros { 1000, 1000 }
    local high = cpu().peak
    large:free()
    assert.are.equal(high, cpu().peak)
    sl.reset_memory_peaks()
    assert.is_true(cpu().peak <= high - 4e6)
  end)

  it("keeps a budget, collects before it gives up, and says what lives", function()
    assert.is_nil(sl.memory_budget "cpu")
    local live = cpu().live
    assert.are.equal(live + 3e6, sl.memory_budget("cpu", live + 3e6))
    for _ = 1, 20 do
      local garbage = sl.zeros { 500, 500 } -- a megabyte each; nobody holds them
      assert.are.equal(500, garbage:size(1))
      garbage = nil -- luacheck: ignore
    end
    local held = sl.zeros { 500, 500 }
    local ok, message = pcall(sl.zeros, { 1000, 1000 })
    assert.is_false(ok)
    for _, part in ipairs { "out of memory on cpu: 3.8 MiB asked for", "tensors", "the budget is", "batch_size",
      "memory_budget" } do
      assert.is_truthy(message:find(part, 1, true), message)
    end
    assert.are.equal(500, held:size(2))
    sl.memory_budget("cpu", 0)
    assert.are.equal(1000, sl.zeros({ 1000, 1000 }):size(1))
  end)

  it("takes sizes as text, and refuses what is none", function()
    assert.are.equal(3 * 2 ^ 30, sl.memory_budget("cpu", "3G"))
    assert.are.equal(1.5 * 2 ^ 30, sl.memory_budget("cpu", "1.5 GiB"))
    assert.are.equal(2 ^ 30, sl.memory_budget("cpu", "1024mB"))
    for _, wrong in ipairs { "", "G", "12X", "1G2", "-1G", -1 } do
      assert.has_error(function() sl.memory_budget("cpu", wrong) end)
    end
    assert.has_error(function() sl.memory_budget("cpu", 1) end) -- less than what is live
    assert.has_error(function() sl.memory_budget("gpu", "1G") end)
  end)

  it("is told as a table and as a line", function()
    local stats = { devices = { { name = "cuda:0", live = 3 * 2 ^ 30, peak = 4 * 2 ^ 30, pooled = 2 ^ 20, mapped = 0,
      budget = 8 * 2 ^ 30, free = 5 * 2 ^ 30, total = 10 * 2 ^ 30,
      labels = { ["SAE parameters"] = 3 * 2 ^ 30 },
      labels_at_peak = { ["SAE parameters"] = 3 * 2 ^ 30, workspace = 2 ^ 30 } } } }
    local text = sl.memory_report.text(stats)
    assert.is_truthy(text:find("SAE parameters +3.0 GiB +3.0 GiB"), text)
    assert.is_truthy(text:find("workspace +%- +1.0 GiB"), text)
    assert.is_truthy(text:find("kept for reuse 1.0 MiB, budget 8.0 GiB, 5.0 GiB of 10.0 GiB free", 1, true), text)
    assert.are.equal("peak memory of tensors 4.0 GiB on cuda:0 (SAE parameters 3.0 GiB, workspace 1.0 GiB)",
      sl.memory_report.line(stats))
  end)
end)

describe("training with little memory", function()
  local D, M = 48, 300

  local function make(rule)
    local sae = sl.sae.topk { d_in = D, d_sae = M, k = 6, seed = 3 }
    return sae, sl.sae_optim(sae, { rule = rule })
  end

  local function train(sae, optim, first, last, fused)
    for step = first, last do
      local loss = sae:loss(sl.randn({ 64, D }, { seed = 1, step = step }))
      if fused then
        loss:step(optim, 1e-3)
      else
        loss:backward()
        optim:step(1e-3)
      end
    end
  end

  local function apart(a, b, name) return (a:parameter(name) - b:parameter(name)):abs():max():item() end

  it("loss:step is backward and step", function()
    for _, rule in ipairs { "adam", "adam8bit", "sgd" } do
      local a, optim_a = make(rule)
      local b, optim_b = make(rule)
      train(a, optim_a, 1, 1, false)
      train(b, optim_b, 1, 1, true)
      for _, name in ipairs { "W_enc", "b_enc", "W_dec" } do assert.are.equal(0, apart(a, b, name), rule .. name) end
      assert.is_true(apart(a, b, "b_dec") < 1e-6)
      assert.are.equal(optim_a.steps, optim_b.steps)
      assert.is_true(math.abs(optim_a.grad_norm - optim_b.grad_norm) < 1e-6 * optim_a.grad_norm)
    end
  end)

  it("loss:step refuses what it cannot do, by name", function()
    local sae, optim = make "adam"
    local x = sl.randn { 16, D }
    local pieces = sae:loss(x, { micro_acc_steps = 2 })
    assert.has_error(function() pieces:step(optim, 1e-3) end)
    pieces:backward()
    local ok, message = pcall(function() sae:loss(x):step(optim, 1e-3) end)
    assert.is_false(ok)
    assert.is_truthy(message:find("gradients of an earlier backward", 1, true), message)
    optim:step(1e-3)
    local loss = sae:loss(x)
    loss:step(optim, 1e-3)
    assert.has_error(function() loss:step(optim, 1e-3) end)
    assert.has_error(function() sae:loss(x):step(nil, 1e-3) end)
  end)

  it("8-bit moments are saved, and training goes on from them bit for bit", function()
    local folder = os.tmpname()
    os.remove(folder)
    assert(sl.fs.mkdir(folder))
    local a, optim_a = make "adam8bit"
    train(a, optim_a, 1, 5)
    assert(a:save_state(folder .. "/."))
    assert(optim_a:save_state(folder))
    assert.is_true(optim_a:state_bytes() < 4 * M * D + 64 * (M + D)) -- four moments of one byte, not of four
    train(a, optim_a, 6, 10)
    local b, optim_b = make "adam8bit"
    assert(b:load_state(folder))
    assert(optim_b:load_state(folder))
    train(b, optim_b, 6, 10)
    for _, name in ipairs { "W_enc", "b_enc", "W_dec", "b_dec" } do assert.are.equal(0, apart(a, b, name), name) end
    local c, optim_c = make "adam"
    local ok, message = optim_c:load_state(folder) -- of another rule
    assert.is_nil(ok)
    assert.is_truthy(message)
    c:free()
    sl.fs.remove_tree(folder)
  end)
end)
