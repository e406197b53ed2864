-- Progress: what a terminal and a pipe show, with a clock of our own.
local console = require "saelua.console"
local progress = require "saelua.progress"

-- A stream that keeps what is written.
local function recorder()
  local stream = { text = "" }
  function stream:write(...)
    self.text = self.text .. table.concat({ ... })
    return self
  end
  function stream.flush() end
  return stream
end

local function bar(options)
  local stream, time = recorder(), { now = 0 }
  options.stream = stream
  options.now = function() return time.now end
  return progress.new(options), stream, time
end

describe("numbers for people", function()
  it("counts", function()
    local got = {}
    for i, n in ipairs { 0, 950, 999.6, 1234, 12345, 123456, 4.56e6, 1.2e9, 0.5 } do got[i] = progress.count(n) end
    assert.same({ "0", "950", "1.00k", "1.23k", "12.3k", "123k", "4.56M", "1.20G", "0.5" }, got)
  end)

  it("durations", function()
    local got = {}
    for i, s in ipairs { 0, 8.4, 125, 3720, 100000, math.huge } do got[i] = progress.duration(s) end
    assert.same({ "0s", "8s", "2m05s", "1h02m", "1d03h", "?" }, got)
  end)
end)

describe("in a pipe", function()
  it("prints a plain line every n seconds and at the end", function()
    local p, stream, time = bar { total = 1000, tty = false, every_seconds = 10, title = "run" }
    for t = 1, 25 do
      time.now = t
      p:update(t * 10, { loss = 1 / t, dead = 0.125 })
    end
    assert.equal("run:  10%  100/1.00k tokens  10 tokens/s  eta 1m30s  loss 0.1  dead 12.5%\n"
      .. "run:  20%  200/1.00k tokens  10 tokens/s  eta 1m20s  loss 0.05  dead 12.5%\n", stream.text)
    p:finish()
    p:finish()
    assert.truthy(stream.text:find("25%%  250/1.00k tokens  10 tokens/s  eta 1m15s  loss 0.04  dead 12.5%%\n$"))
    assert.is_nil(stream.text:find("[\r\27]"))
  end)

  it("or every n updates, also without a total", function()
    local p, stream, time = bar { tty = false, every_updates = 2, unit = "steps" }
    for t = 1, 5 do
      time.now = t
      p:update(t, { ev = 0.5 })
    end
    assert.equal("2 steps  1 steps/s  ev 0.5\n4 steps  1 steps/s  ev 0.5\n", stream.text)
  end)

  it("does not count an earlier run's work in the speed", function()
    local p, stream, time = bar { total = 1000, start = 500, tty = false, every_updates = 1 }
    time.now = 10
    p:update(600)
    assert.equal("60%  600/1.00k tokens  10 tokens/s  eta 40s\n", stream.text)
  end)
end)

describe("on a terminal", function()
  after_each(function() console.live = nil end)

  it("redraws one line at most ten times a second", function()
    local p, stream, time = bar { total = 100, tty = true, width = 60 }
    for t = 1, 100 do
      time.now = t / 100
      p:update(t)
    end
    local _, draws = stream.text:gsub("\r", "")
    assert.is_true(draws >= 9 and draws <= 11, "draws: " .. draws)
    assert.is_nil(stream.text:find("\n"))
    p:finish()
    assert.truthy(stream.text:find("\r[^\r]*100%%[^\r]*\27%[K\n$"))
    assert.is_nil(console.live)
  end)

  it("never fills the line; amounts, units and title give way to the live values", function()
    local p, _, time = bar { total = 1e6, tty = true, title = "topk" }
    time.now = 1
    p:update(5e5, { loss = 0.123456, ev = 0.9, l0 = 32, dead = 0.01 })
    for width = 10, 150 do
      local line = p:line(width)
      assert.is_true(#line < width, ("%d columns: %d used"):format(width, #line))
    end
    assert.equal("[############------------] topk   50%  500k/1.00M tokens  500k tokens/s  eta 1s  loss 0.1235  ev 0.9"
      .. "  l0 32  dead 1.0%", p:line(150))
    assert.equal("topk   50%  500k tokens/s  eta 1s  loss 0.1235  ev 0.9  l0 32  dead 1.0%", p:line(80))
    assert.equal(" 50%  500k/s  eta 1s  loss 0.1235  ev 0.9  l0 32  dead 1.0%", p:line(64))
    assert.equal("[###---]  50%  500k/s  eta 1s", p:line(30))
    assert.equal(" 50%", p:line(10))
  end)

  it("makes room for other lines and is redrawn after them", function()
    local p, stream = bar { total = 10, tty = true, width = 60 }
    p:update(5)
    local before = #stream.text
    console.line("a message", stream)
    assert.truthy(stream.text:sub(before + 1):find("^\r\27%[Ka message\n\r.*50%%.*\27%[K$"))
  end)

  it("leaves its last state on a line of its own when the program ends early", function()
    local p, stream = bar { total = 10, tty = true, width = 60 }
    p:update(5)
    console.cleanup()
    assert.truthy(stream.text:find("50%%.*\27%[K\n$"))
    local after = stream.text
    p:finish()
    assert.equal(after, stream.text)
  end)
end)

describe("misuse of progress", function()
  it("is named", function()
    assert.has_error(function() progress.new { totl = 3 } end)
    assert.has_error(function() progress.new { total = 0 } end)
    assert.has_error(function() bar { total = 3, tty = false }:update "x" end)
  end)
end)
