--- What the memory is used for, as text: `:mem` in the REPL, the last lines of a run.
-- @module saelua.memory_report
local core = require "saelua.core"

local report = {}

--- A number of bytes: 512 bytes, 1.5 KiB, 34.2 GiB.
-- @tparam number n
-- @treturn string
function report.bytes(n)
  local units, i = { "bytes", "KiB", "MiB", "GiB", "TiB" }, 1
  while n >= 1023.95 and i < #units do
    n, i = n / 1024, i + 1
  end
  return (i == 1 and "%d %s" or "%.1f %s"):format(n, units[i])
end

-- The labels of a table label -> bytes, largest first.
local function by_size(labels)
  local names = {}
  for name in pairs(labels) do names[#names + 1] = name end
  table.sort(names, function(a, b)
    if labels[a] ~= labels[b] then return labels[a] > labels[b] end
    return a < b
  end)
  return names
end

-- Bytes, flush right; nothing for none.
local function cell(n) return ("%12s"):format(n and n > 0 and report.bytes(n) or "-") end

local function device_lines(lines, device)
  lines[#lines + 1] = ("%-26s%s%s"):format(device.name, ("%12s"):format "live", ("%12s"):format "at peak")
  local labels = {}
  for _, list in ipairs { device.labels, device.labels_at_peak } do
    for name, bytes in pairs(list) do labels[name] = math.max(labels[name] or 0, bytes) end
  end
  for _, name in ipairs(by_size(labels)) do
    lines[#lines + 1] = ("  %-24s%s%s"):format(name, cell(device.labels[name]), cell(device.labels_at_peak[name]))
  end
  lines[#lines + 1] = ("  %-24s%s%s"):format("all tensors", cell(device.live), cell(device.peak))
  local rest = { "kept for reuse " .. report.bytes(device.pooled) }
  if device.mapped > 0 then rest[#rest + 1] = "mapped files " .. report.bytes(device.mapped) end
  rest[#rest + 1] = device.budget and "budget " .. report.bytes(device.budget) or "no budget"
  if device.free then
    rest[#rest + 1] = ("%s of %s free"):format(report.bytes(device.free), report.bytes(device.total))
  end
  lines[#lines + 1] = "  " .. table.concat(rest, ", ")
end

--- A table for each device in use: bytes by what they are for, now and at the peak, and what is left.
-- @tparam[opt] table stats as from `sl.memory()`
-- @treturn string
function report.text(stats)
  local lines = {}
  for _, device in ipairs((stats or core.memory()).devices) do device_lines(lines, device) end
  if #lines == 0 then return "no tensor has been made yet" end
  return table.concat(lines, "\n")
end

--- The peaks in one line: `peak memory 1.2 GiB on cpu (optimiser moments 600.0 MiB, ...)`.
-- @tparam[opt] table stats as from `sl.memory()`
-- @treturn string
function report.line(stats)
  local parts = {}
  for _, device in ipairs((stats or core.memory()).devices) do
    if device.peak > 0 then
      local largest = {}
      for i, name in ipairs(by_size(device.labels_at_peak)) do
        if i <= 3 then largest[i] = name .. " " .. report.bytes(device.labels_at_peak[name]) end
      end
      parts[#parts + 1] = ("%s on %s (%s)"):format(report.bytes(device.peak), device.name, table.concat(largest, ", "))
    end
  end
  return "peak memory of tensors " .. (#parts > 0 and table.concat(parts, "; ") or "0 bytes")
end

return report
