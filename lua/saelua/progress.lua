--- Progress: a live line on a terminal, plain lines at intervals in a pipe.
--
--    local bar = progress.new { total = 1e6, unit = "tokens" }
--    bar:update(4096, { loss = 0.41, ev = 0.62, l0 = 32, dead = 0.03 })
--    bar:finish()
-- @module saelua.progress
local console = require "saelua.console"
local strict = require "saelua.strict"

local progress = {}

local Bar = {}
Bar.__index = Bar

--- A count in few characters: 950, 12.3k, 4.56M, 1.20G.
-- @tparam number n
-- @treturn string
function progress.count(n)
  local units = { "", "k", "M", "G", "T" }
  local i = 1
  while math.abs(n) >= 999.5 and i < #units do
    n, i = n / 1000, i + 1
  end
  if i == 1 then return n % 1 == 0 and ("%d"):format(n) or ("%.3g"):format(n) end
  local digits = n >= 100 and 0 or n >= 10 and 1 or 2
  return ("%." .. digits .. "f%s"):format(n, units[i])
end

--- A duration: 8s, 2m05s, 1h02m, 3d04h; "?" when unknown.
-- @tparam number seconds
-- @treturn string
function progress.duration(seconds)
  if seconds ~= seconds or seconds == math.huge then return "?" end
  local s = math.floor(seconds + 0.5)
  if s < 60 then return ("%ds"):format(s) end
  if s < 3600 then return ("%dm%02ds"):format(s / 60, s % 60) end
  if s < 86400 then return ("%dh%02dm"):format(s / 3600, s % 3600 / 60) end
  return ("%dd%02dh"):format(s / 86400, s % 86400 / 3600)
end

local function clock()
  local ok, host = pcall(require, "saelua.host")
  return ok and host.now or os.clock
end

local DEFAULTS = {
  total = strict.optional, unit = "tokens", title = "", stream = io.stderr, tty = strict.optional,
  width = strict.optional, every_seconds = 10, every_updates = strict.optional, now = strict.optional,
  start = 0, order = { "loss", "ev", "l0", "dead", "lr" },
}

--- A progress display.
-- @tparam table options `total` (amount of work; absent = unknown), `unit` ("tokens"), `title`, `stream` (stderr),
--   `tty` (found from the stream), `width` (the terminal's, asked again at each draw), `every_seconds` (10: plain
--   lines), `every_updates` (plain lines every n updates instead), `start` (work done by an earlier run, not
--   counted in the speed), `order` (values shown first), `now` (a clock in seconds)
-- @treturn bar
function progress.new(options)
  local self = strict.options("progress.new", options, DEFAULTS)
  if self.total ~= nil and not (type(self.total) == "number" and self.total > 0) then
    error("progress.new: total: a number > 0 expected, got " .. tostring(self.total), 2)
  end
  if self.tty == nil then self.tty = console.is_tty(self.stream) and os.getenv("TERM") ~= "dumb" end
  self.now = self.now or clock()
  self.fixed_width, self.width = self.width, nil
  self.done, self.values, self.updates = self.start, {}, 0
  self.started = self.now()
  self.drawn_at = -math.huge
  self.plain_at = self.started
  self.marks = { { self.started, self.start } }
  setmetatable(self, Bar)
  if self.tty then console.live = self end
  return self
end

-- Work per second over the last 30 seconds or so (the whole run when it is younger).
function Bar:speed()
  local first, now = self.marks[1], self.now()
  local elapsed = now - first[1]
  if elapsed <= 0 then return 0 end
  return (self.done - first[2]) / elapsed
end

local function note_mark(self, now)
  local marks = self.marks
  if now - marks[#marks][1] < 1 then return end
  marks[#marks + 1] = { now, self.done }
  while #marks > 31 do table.remove(marks, 1) end
end

local function value_text(name, value)
  if type(value) ~= "number" then return name .. " " .. tostring(value) end
  if name == "dead" or name == "dead_fraction" then return ("%s %.1f%%"):format(name, 100 * value) end
  return ("%s %.4g"):format(name, value)
end

-- The live values: those of `order` first, the others sorted.
local function value_texts(self)
  local texts, taken, rest = {}, {}, {}
  for _, name in ipairs(self.order) do
    taken[name] = true
    if self.values[name] ~= nil then texts[#texts + 1] = value_text(name, self.values[name]) end
  end
  for name in pairs(self.values) do
    if not taken[name] then rest[#rest + 1] = name end
  end
  table.sort(rest)
  for _, name in ipairs(rest) do texts[#texts + 1] = value_text(name, self.values[name]) end
  return texts
end

-- "1.20M/5.00M tokens", "12.3k tokens/s", "eta 2m05s"
local function head_texts(self)
  local speed = self:speed()
  local texts = {}
  local amount = progress.count(self.done)
  if self.total then amount = amount .. "/" .. progress.count(self.total) end
  texts[1] = amount .. " " .. self.unit
  texts[2] = progress.count(speed) .. " " .. self.unit .. "/s"
  if self.total then
    texts[3] = "eta " .. (speed > 0 and progress.duration(math.max(0, self.total - self.done) / speed) or "?")
  end
  return texts
end

local function percent(self) return ("%3d%%"):format(math.floor(100 * math.min(1, self.done / self.total))) end

-- The parts of the live line. Each level is narrower: 1 everything, 2 no amounts, 3 no units and no title.
local function line_parts(self, level)
  local parts = {}
  if self.title ~= "" and level < 3 then parts[1] = self.title end
  if self.total then parts[#parts + 1] = percent(self) end
  local head = head_texts(self)
  for i = level > 1 and self.total and 2 or 1, #head do
    parts[#parts + 1] = level < 3 and head[i] or (head[i]:gsub(" " .. self.unit, "", 1))
  end
  for _, text in ipairs(value_texts(self)) do parts[#parts + 1] = text end
  return parts
end

--- The line for a terminal of `width` columns: never wider. Amounts, units and title give way to the live values;
-- what still does not fit is left out from the right.
-- @tparam integer width
-- @treturn string
function Bar:line(width)
  local room = width - 1 -- the last column stays free: some terminals wrap when it is written
  local parts, line
  for level = 1, 3 do
    parts = line_parts(self, level)
    line = table.concat(parts, "  ")
    if #line <= room then break end
  end
  while #line > room and #parts > 0 do
    parts[#parts] = nil
    line = table.concat(parts, "  ")
  end
  local cells = math.min(24, room - #line - 3)
  if self.total and cells >= 6 then
    local filled = math.floor(cells * math.min(1, self.done / self.total) + 0.5)
    line = "[" .. ("#"):rep(filled) .. ("-"):rep(cells - filled) .. "] " .. line
  end
  return line
end

local function draw(self)
  local width = self.fixed_width or console.width(self.stream)
  self.stream:write("\r", self:line(width), "\27[K")
  self.stream:flush()
end

local function print_plain(self)
  local parts = {}
  if self.title ~= "" then parts[1] = self.title .. ":" end
  if self.total then parts[#parts + 1] = (percent(self):gsub("^ +", "")) end
  for _, text in ipairs(head_texts(self)) do parts[#parts + 1] = text end
  for _, text in ipairs(value_texts(self)) do parts[#parts + 1] = text end
  self.stream:write(table.concat(parts, "  "), "\n")
  self.stream:flush()
end

--- Tells how much is done in all, and the latest values. Cheap: draws at most ten times a second.
-- @tparam number done in units, counted from the very start (a resumed run's earlier work included)
-- @tparam[opt] table values name -> number; kept until replaced
function Bar:update(done, values)
  if type(done) ~= "number" then error("progress: update: a number expected, got " .. type(done), 2) end
  local now = self.now()
  self.done = done
  self.updates = self.updates + 1
  for name, value in pairs(values or {}) do self.values[name] = value end
  note_mark(self, now)
  if self.tty then
    if now - self.drawn_at < 0.1 then return end
    self.drawn_at = now
    draw(self)
    return
  end
  local due
  if self.every_updates then
    due = self.updates % self.every_updates == 0
  else
    due = now - self.plain_at >= self.every_seconds
  end
  if due then
    self.plain_at = now
    print_plain(self)
  end
end

--- Prints a line of text above the live line.
-- @tparam string text
function Bar:note(text)
  if self.tty then self:hide() end
  self.stream:write(text, "\n")
  if self.tty then self:show() end
  self.stream:flush()
end

-- For `saelua.console`: clear the live line, draw it again.
function Bar:hide()
  self.stream:write("\r\27[K")
  self.stream:flush()
end

function Bar:show() draw(self) end

-- The program ends early: keep the last state on its own line.
function Bar:abandon()
  if self.finished then return end
  self.finished = true
  if self.tty then
    draw(self)
    self.stream:write("\n")
    self.stream:flush()
  end
end

--- Draws the last state and ends the line. A second call does nothing.
function Bar:finish()
  if self.finished then return end
  self.finished = true
  if console.live == self then console.live = nil end
  if self.tty then
    draw(self)
    self.stream:write("\n")
    self.stream:flush()
  else
    print_plain(self)
  end
end

return progress
