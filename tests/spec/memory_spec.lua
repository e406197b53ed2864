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
