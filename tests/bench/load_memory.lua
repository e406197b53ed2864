-- Peak memory of loading a model: the resident memory of a process that loads it, over the size of its file.
--
--   saelua tests/bench/load_memory.lua [--megabytes N] [--folder DIR] [--json]
--
-- Writes a model of about N (400) million bytes into DIR (default: a temporary folder, removed again), then runs this
-- program ($SAELUA_BIN, or saelua in the path) once for each way of loading and reads the process' own high-water mark
-- (VmHWM, Linux) there. `base` is that of a process that loads nothing; ratio = (peak - base) / file size. Ways: load
-- (mapped, nothing touched), forward (one pass over a sequence: every weight used), bf16 (matrices converted), copied
-- (every tensor copied out of the file, as for checkpoints), sae (a dictionary of the same size, saved in SAELens'
-- layout, loaded).
local sl = require "saelua"
local fs, json = sl.fs, sl.json

local ways = {
  base = function() end,
  load = function(folder) return sl.model.load(folder, { tokenizer = false }) end,
  forward = function(folder)
    local model = sl.model.load(folder, { tokenizer = false })
    model:forward(sl.zeros({ 1, 8 }, { dtype = "i32" }))
    return model
  end,
  bf16 = function(folder) return sl.model.load(folder, { dtype = "bf16", tokenizer = false }) end,
  copied = function(folder) return assert(sl.load_tensors(folder .. "/model.safetensors")) end,
  sae = function(folder) return sl.sae.load(folder .. "/sae") end,
}
local ORDER = { "base", "load", "forward", "bf16", "copied", "sae" }

local function high_water()
  for line in io.lines "/proc/self/status" do
    local kib = line:match "^VmHWM:%s*(%d+) kB"
    if kib then return tonumber(kib) * 1024 end
  end
  error("no VmHWM in /proc/self/status: this measurement needs Linux", 0)
end

local function options()
  local o = { megabytes = 400 }
  local i = 1
  while arg[i] do
    local name = arg[i]:match "^%-%-(%l+)$"
    if name == "json" then
      o.json = true
    elseif name == "megabytes" or name == "folder" or name == "way" then
      i = i + 1
      o[name] = name == "megabytes" and tonumber(arg[i]) or arg[i]
    else
      error(("load_memory: unknown option %s"):format(arg[i]), 0)
    end
    i = i + 1
  end
  return o
end

local function write_model(folder, megabytes)
  local d = 768
  local layers = math.max(1, math.floor((megabytes * 1e6 / 4 - 6000 * d) / (12 * d * d)))
  local model = sl.model.new { hidden_size = d, num_hidden_layers = layers, num_attention_heads = 12,
    intermediate_size = 4 * d, vocab_size = 6000, max_position_embeddings = 128 }
  assert(model:save(folder))
  local sae = sl.sae.topk { d_in = d, d_sae = math.floor(megabytes * 1e6 / 8 / d), k = 32 }
  assert(fs.mkdir(folder .. "/sae"))
  assert(sl.sae.save(sae, folder .. "/sae"))
end

local function file_bytes(path)
  local file = assert(io.open(path, "rb"))
  local bytes = file:seek "end"
  file:close()
  return bytes
end

-- The high-water mark of a process that does nothing but `way`.
local function measure(way, folder)
  local program = os.getenv "SAELUA_BIN" or "saelua"
  local command = ("%q %q --way %s --folder %q"):format(program, arg[0], way, folder)
  local pipe = assert(io.popen(command))
  local peak = tonumber(pipe:read "*l" or "")
  pipe:close()
  return peak or error(("load_memory: the process for '%s' failed: %s"):format(way, command), 0)
end

local o = options()
if o.way then
  local kept = ways[o.way](o.folder)
  print(("%d"):format(high_water()))
  return kept
end

local folder = o.folder
if not folder then
  folder = os.tmpname()
  os.remove(folder)
end
if not fs.exists(folder .. "/sae/cfg.json") then
  assert(fs.mkdir(folder))
  write_model(folder, o.megabytes)
end
local sizes = { sae = file_bytes(folder .. "/sae/sae_weights.safetensors") }
local model_bytes = file_bytes(folder .. "/model.safetensors")
local result = { file_bytes = model_bytes, peak_bytes = {}, ratios = {} }
local base
for _, way in ipairs(ORDER) do
  local peak = measure(way, folder)
  base = base or peak
  result.peak_bytes[way] = peak
  if way ~= "base" then result.ratios["load_peak_" .. way] = (peak - base) / (sizes[way] or model_bytes) end
end
if not o.folder then fs.remove_tree(folder) end
if o.json then
  print(json.encode(result))
else
  print(("file %.0f MB, a process without it %.0f MB"):format(model_bytes / 1e6, base / 1e6))
  for i = 2, #ORDER do
    print(("%-8s peak %4.0f MB, %.3f x the file"):format(ORDER[i], result.peak_bytes[ORDER[i]] / 1e6,
      result.ratios["load_peak_" .. ORDER[i]]))
  end
end
