-- The tables of a benchmark page, in Markdown, from the JSON of `./dev bench --json` or `./dev gpu-check`:
--   saelua tests/bench/page.lua FILE.json >> docs/benchmarks/PAGE.md
-- Figures only; what they mean and what follows is for a person to write.
local sl = require "saelua"

local path = arg[1] or error("usage: saelua tests/bench/page.lua FILE.json", 0)
local file = assert(io.open(path))
local r = sl.json.decode(file:read "*a")
file:close()

local function row(...) print("| " .. table.concat({ ... }, " | ") .. " |") end
local function header(...)
  print ""
  row(...)
  print("|" .. ("---|"):rep(select("#", ...)))
end
local function number(value, digits) return value and ("%%.%df"):format(digits):format(value) or "-" end
local function thousands(value)
  return (("%d"):format(value):reverse():gsub("(%d%d%d)", "%1,"):reverse():gsub("^,", ""))
end

local function ratios(list)
  local keys = {}
  for key in pairs(list) do keys[#keys + 1] = key end
  if #keys == 0 then return end
  table.sort(keys)
  header("key", "ratio")
  for _, key in ipairs(keys) do row("`" .. key .. "`", number(list[key], 3)) end
end

local function grid(cells)
  header("activation", "precision", "tokens", "d", "latents", "k", "step ms", "/ product", "/ floor", "copy GB/s",
    "memory")
  for _, c in ipairs(cells) do
    row(c.activation, c.dtype, thousands(c.tokens), thousands(c.d), thousands(c.latents), c.k, number(c.step_ms, 2),
      number(c.ratio, 3), number(c.ratio_floor, 3), number(c.copy_gb_s, 0), number(c.peak, 2))
  end
end

local function packages(p)
  print(("\n%s; %s, %d threads"):format(p.host, p.device, p.threads))
  local versions = {}
  for name, version in pairs(p.versions) do
    if type(version) == "string" then versions[#versions + 1] = name .. " " .. version end
  end
  table.sort(versions)
  print("Versions: " .. table.concat(versions, ", ") .. ".")
  header("part", "package", "setting", "k", "ms", "saelua ms", "saelua's precision", "speed-up", "memory")
  for _, x in ipairs(p.results) do
    local seconds = x.error and "failed" or x.seconds and number(1e3 * x.seconds, 2) or "-"
    local own = number(x.own_seconds and 1e3 * x.own_seconds, 2)
    row(x.part, x.package, x.setting, x.k or "-", seconds, own, x.own or "-", number(x.speedup, 2),
      number(x.peak, 2))
  end
end

local function checks(results)
  header("part", "what", "outcome", "")
  for _, x in ipairs(results) do row(x.part, x.name, x.outcome, x.text) end
end

-- JSON's null is a value: only text counts.
local function text(value) return type(value) == "string" and value or nil end
print(("%s, %s%s; saelua %s."):format(r.date, text(r.machine) or text(r.device) or "no GPU",
  text(r.driver) and ", driver " .. r.driver or "", r.version or r.revision))
if r.quick then print "\nMeasured with --quick: the figures mean nothing." end
if r.results then checks(r.results) end
if r.ratios then ratios(r.ratios) end
if type(r.peers) == "table" then packages(r.peers) end
if type(r.grid) == "table" and #r.grid > 0 then grid(r.grid) end
