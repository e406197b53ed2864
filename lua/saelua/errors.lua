--- Error reports for people: the recipe's line and the message first, then a short Lua traceback.
-- @module saelua.errors
local errors = {}

local MAX_FRAMES = 10

local function message_of(problem)
  if type(problem) == "string" then return problem end
  if type(problem) == "number" then return tostring(problem) end
  if problem == nil then return "an error without a message (nil)" end
  local meta = debug.getmetatable(problem)
  if type(meta) == "table" and rawget(meta, "__tostring") then
    local ok, text = pcall(tostring, problem)
    if ok then return text end
  end
  local text = type(problem) == "table" and rawget(problem, "message")
  if type(text) == "string" then return text end
  return "an error that is no text: " .. require("saelua.pretty").text(problem)
end

local function describe(info)
  local name = info.name and ("function '%s'"):format(info.name) or ("function <line %d>"):format(info.linedefined)
  if info.what == "main" then name = "main chunk" end
  return { source = info.source, where = info.short_src, line = info.currentline, name = name }
end

-- The Lua frames between the handler and the call of `chunk` in `runner`, the innermost first.
local function frames_between(handler, chunk, runner)
  local frames, inside, level = {}, false, 2
  while true do
    local info = debug.getinfo(level, "Slnf")
    if not info or info.func == runner then break end
    if inside and info.what ~= "C" and info.currentline > 0 then frames[#frames + 1] = describe(info) end
    if info.func == handler then inside = true end
    if info.func == chunk then break end
    level = level + 1
  end
  return frames
end

-- Cuts "file:12: " off when the file is one of the frames'.
local function split_position(message, frames)
  for _, frame in ipairs(frames) do
    local prefix = frame.where .. ":"
    if message:sub(1, #prefix) == prefix then
      local line, rest = message:match("^(%d+): (.*)$", #prefix + 1)
      if line then return rest, prefix .. line end
    end
  end
  return message, nil
end

-- The traceback: the recipe's frames, then the library's; none when it would only repeat the first line.
local function trace_lines(own, others)
  local lines = {}
  if #own <= 1 and #others == 0 then return lines end
  for _, list in ipairs { own, others } do
    for _, frame in ipairs(list) do
      lines[#lines + 1] = ("  %s:%d: in %s"):format(frame.where, frame.line, frame.name)
    end
  end
  local more = #lines - MAX_FRAMES
  if more > 0 then
    for i = #lines, MAX_FRAMES + 1, -1 do lines[i] = nil end
    lines[#lines + 1] = ("  ... and %d more"):format(more)
  end
  return lines
end

-- The report of a failed chunk, made while its stack still stands.
local function report_of(problem, chunk, handler, runner)
  local recipe = debug.getinfo(chunk, "S").source
  local frames = frames_between(handler, chunk, runner)
  local text, position = split_position(message_of(problem), frames)
  if not position then -- a chunk that was left by a tail call: the position is that of `runner`, which tells nothing
    text = split_position(text, { { where = debug.getinfo(runner, "S").short_src } })
  end
  local own, others = {}, {}
  for _, frame in ipairs(frames) do table.insert(frame.source == recipe and own or others, frame) end
  local first = own[1]
  local where = first and ("%s:%d"):format(first.where, first.line) or position
  -- An error of level 2 names a recipe line itself, possibly not that of the innermost recipe frame.
  -- Such an error is the recipe's: where the library noticed it is of no interest.
  if position and first and position:sub(1, #first.where + 1) == first.where .. ":" then
    where, others = position, {}
  end
  return { message = (where and where .. ": " or "") .. text, frames = trace_lines(own, others), where = where }
end

--- Runs a chunk; an error becomes a report for `errors.text`: `message` (the recipe's position first), `frames`
-- (lines: the recipe's frames first, C frames and those below the chunk left out) and `where` ("file:12").
-- @tparam function chunk its file is "the recipe"
-- @tparam[opt] table arguments passed to it
-- @tparam[opt] function on_error called with the chunk while its stack still stands
-- @treturn boolean whether it ended well
-- @treturn table the report, or the results with their number in `n`
function errors.call(chunk, arguments, on_error)
  arguments = arguments or {}
  local function pack(...) return { n = select("#", ...), ... } end
  local function runner()
    local results = pack(chunk(unpack(arguments))) -- no tail call: this frame ends the traceback
    return results
  end
  local handler
  function handler(problem)
    if on_error then pcall(on_error, chunk) end
    local ok, report = pcall(report_of, problem, chunk, handler, runner)
    return ok and report or { message = tostring(problem), frames = {} }
  end
  local ok, result = xpcall(runner, handler)
  if not ok and type(result) ~= "table" then -- the handler itself failed (a stack overflow, no memory)
    result = { message = tostring(result), frames = {} }
  end
  return ok, result
end

--- A report as text for standard error.
-- @tparam table report
-- @treturn string
function errors.text(report)
  if #report.frames == 0 then return report.message end
  return report.message .. "\n" .. table.concat(report.frames, "\n")
end

return errors
