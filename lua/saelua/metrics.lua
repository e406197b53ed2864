--- metrics.jsonl: one JSON object a line, appended and flushed as it is written.
-- Numbers read back exactly (up to 17 digits); NaN and infinities are null.
-- @module saelua.metrics
local json = require "saelua.json"

local metrics = {}

local Writer = {}
Writer.__index = Writer

-- `step` first, then the rest sorted; a name, not a hash order, decides.
local FIRST = { "step", "tokens", "seconds", "epoch" }

-- A line that was cut short by a crash is the last one and has no newline.
local function lines_of(text)
  local at = 1
  return function()
    local stop = text:find("\n", at, true)
    if not stop then return nil end
    local line = text:sub(at, stop - 1)
    at = stop + 1
    return line
  end
end

--- Reads a metrics file; a last line without its newline (a crash in mid-write) is left out.
-- @tparam string path
-- @treturn ?{table,...} records in order, or nil, message, errno
function metrics.read(path)
  local text, message, code = require("saelua.fs").read(path)
  if not text then return nil, message, code end
  local records, number = {}, 0
  for line in lines_of(text) do
    number = number + 1
    local record
    record, message = json.decode(line, ("%s:%d"):format(path, number))
    if type(record) ~= "table" then return nil, message or ("%s:%d: no JSON object"):format(path, number) end
    records[#records + 1] = record
  end
  return records
end

-- The lines of a file up to and including `step`. A record without a step stays with the one before it.
local function lines_until(path, step)
  local text, message, code = require("saelua.fs").read(path)
  if not text then return nil, message, code end
  local kept, number = {}, 0
  for line in lines_of(text) do
    number = number + 1
    local record
    record, message = json.decode(line, ("%s:%d"):format(path, number))
    if type(record) ~= "table" then return nil, message or ("%s:%d: no JSON object"):format(path, number) end
    if type(record.step) == "number" and record.step > step then break end
    kept[#kept + 1] = line .. "\n"
  end
  return table.concat(kept)
end

--- Opens a metrics file for appending.
-- @tparam string path
-- @tparam[opt] table options `resume_step`: keep only the records up to this step (what an interrupted run wrote
--   after its checkpoint goes); absent = start an empty file
-- @treturn ?writer or nil, message, errno
function metrics.open(path, options)
  local strict = require "saelua.strict"
  options = strict.options("metrics.open", options, { resume_step = strict.optional })
  local fs = require "saelua.fs"
  local kept = ""
  if options.resume_step and fs.exists(path) then
    local why, number
    kept, why, number = lines_until(path, options.resume_step)
    if not kept then return nil, why, number end
  end
  local ok, message, code = fs.write(path, kept)
  if not ok then return nil, message, code end
  local file
  file, message, code = io.open(path, "ab")
  if not file then return nil, "cannot open " .. message, code end
  return setmetatable({ file = file, path = path }, Writer)
end

--- Appends one record and flushes it.
-- @tparam table record field name -> number, string, boolean or nested table
-- @treturn ?boolean true, or nil, message, errno (a full disk)
function Writer:write(record)
  if not self.file then error("metrics: the writer of " .. self.path .. " is closed", 2) end
  if type(record) ~= "table" then error("metrics: a table expected, got " .. type(record), 2) end
  local line = json.encode(record, { order = FIRST }) .. "\n"
  local ok, message, code = self.file:write(line)
  if ok then ok, message, code = self.file:flush() end
  if not ok then return nil, ("cannot write %s: %s"):format(self.path, message or "unknown error"), code end
  return true
end

--- Closes the file; a second call does nothing.
-- @treturn ?boolean true, or nil, message, errno
function Writer:close()
  local file = self.file
  if not file then return true end
  self.file = nil
  local ok, message, code = file:close()
  if not ok then return nil, ("cannot close %s: %s"):format(self.path, message or "unknown error"), code end
  return true
end

return metrics
