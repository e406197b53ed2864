-- Damages a real checkpoint at random and loads it: either it loads, or there is one clear message; never a crash or a
-- hang (the caller's time limit sees those).
--
--   saelua tests/fuzz/fuzz_checkpoint.lua [SECONDS [SEED]]
--
-- The same seed makes the same damages; the line printed at a failure holds what is needed to make it again.
local fs = require "saelua.fs"
local host = require "saelua.host"
local sl = require "saelua"

local seconds, seed = tonumber(arg[1]) or 5, tonumber(arg[2]) or os.time() % 2 ^ 31
math.randomseed(seed)
local random = math.random

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

local function write(path, text)
  local file = assert(io.open(path, "wb"))
  assert(file:write(text))
  assert(file:close())
end

-- The object under test: everything that a run tracks, on a small model ------------------------------------------

local root = os.tmpname()
os.remove(root)
assert(fs.mkdir(root))
assert(fs.mkdir(root .. "/model"))

local vocabulary = sl.wordpiece.train(sl.data.documents("storyworld", { n = 60 }), { vocab_size = 120 })
assert(sl.wordpiece.write(root .. "/model", vocabulary))
local tokenizer = assert(sl.tokenizer(root .. "/model"))
local model = sl.model.new({ vocab_size = tokenizer.vocab_size, hidden_size = 8, num_hidden_layers = 1,
  num_attention_heads = 1, intermediate_size = 8, max_position_embeddings = 16 }, { seed = 1, tokenizer = tokenizer })

do
  local lines = {}
  for text in sl.data.documents("storyworld", { n = 10 }) do lines[#lines + 1] = text end
  write(root .. "/text.txt", table.concat(lines, "\n"))
end

local function make()
  local tokens = sl.data.tokens(root .. "/text.txt", tokenizer, { ctx_len = 8 })
  local acts = sl.data.activations(model, tokens, { at = { "embed" }, batch_size = 2, batch_tokens = 9,
    buffer_batches = 2 })
  local sae = sl.sae.topk { d_in = 8, d_sae = 12, k = 2 }
  local W = sl.rand({ 3, 4 }, { seed = 1 })
  return { data = acts, sae = sae, optim = sl.sae_optim(sae), lua_optim = sl.optim.adam { { "W", W } } }
end

local PARTS = { "data", "lua_optim", "optim", "sae" }

local good = root .. "/good"
do
  local objects = make()
  for _ = 1, 5 do
    objects.sae:loss(objects.data:next().embed):backward()
    objects.optim:step(1e-3)
  end
  for _, part in ipairs(PARTS) do
    assert(fs.mkdir(good .. "/" .. part))
    assert(objects[part]:save_state(good .. "/" .. part))
  end
end

local files = {}
for _, part in ipairs(PARTS) do
  for _, name in ipairs(fs.list(good .. "/" .. part)) do
    files[#files + 1] = { part = part, name = part .. "/" .. name, bytes = read(good .. "/" .. part .. "/" .. name) }
  end
end

-- Damages -----------------------------------------------------------------------------------------------------------

local NUMBERS = { "-1", "0", "1e308", "1e15", "4294967296", "0.5", "null", "true", '""', "[]", "{}", "NaN",
  "-9223372036854775808" }

local damage = {
  function(bytes) -- some bytes become others
    for _ = 1, random(8) do
      local at = random(math.max(1, #bytes))
      bytes = bytes:sub(1, at - 1) .. string.char(random(0, 255)) .. bytes:sub(at + 1)
    end
    return bytes
  end,
  function(bytes) -- the same, in the header or the JSON
    local at = random(math.max(1, math.min(#bytes, 400)))
    return bytes:sub(1, at - 1) .. string.char(random(0, 255)) .. bytes:sub(at + 1)
  end,
  function(bytes) return bytes:sub(1, random(0, #bytes)) end,                       -- cut off
  function(bytes) return bytes .. string.char(random(0, 255)):rep(random(100)) end, -- more than was written
  function(bytes) -- a number becomes another
    local numbers = {}
    for from, to in bytes:gmatch "()[%d%.]+()" do
      if from < 2000 then numbers[#numbers + 1] = { from, to } end
    end
    if #numbers == 0 then return bytes .. " " end
    local one = numbers[random(#numbers)]
    return bytes:sub(1, one[1] - 1) .. NUMBERS[random(#NUMBERS)] .. bytes:sub(one[2])
  end,
  function(bytes) -- a piece twice, or gone
    local from = random(math.max(1, #bytes))
    local to = math.min(#bytes, from + random(64))
    return random(2) == 1 and bytes:sub(1, to) .. bytes:sub(from) or bytes:sub(1, from - 1) .. bytes:sub(to + 1)
  end,
  function() return files[random(#files)].bytes end,                                -- another file's bytes
  function() return nil end,                                                        -- no file
}

local bad = root .. "/bad"
for _, part in ipairs(PARTS) do assert(fs.mkdir(bad .. "/" .. part)) end

local function restore(file) write(bad .. "/" .. file.name, file.bytes) end
for _, file in ipairs(files) do restore(file) end

local function check(file, kind, bytes)
  local ok, loaded, message = pcall(function()
    local object = make()[file.part]
    local yes, why = object:load_state(bad .. "/" .. file.part)
    if yes and file.part == "data" then object:next() end -- what was loaded must also work
    return yes, why
  end)
  local text = ok and message or not ok and loaded
  if ok and loaded == true then return true end
  if type(text) == "string" and #text > 0 and #text < 2000 and not text:find("attempt to", 1, true)
    and not text:find("bad argument", 1, true) then return false end
  write(root .. ".damaged", bytes or "")
  error(("seed %d: %s, damage %d (kept in %s.damaged): %s"):format(seed, file.name, kind, root, tostring(text)), 0)
end

local stop, n, loaded = host.now() + seconds, 0, 0
while host.now() < stop do
  local file, kind = files[random(#files)], random(#damage)
  local bytes = damage[kind](file.bytes)
  if bytes then write(bad .. "/" .. file.name, bytes) else os.remove(bad .. "/" .. file.name) end
  if check(file, kind, bytes) then loaded = loaded + 1 end
  restore(file)
  n = n + 1
  if n % 50 == 0 then collectgarbage() end
end
fs.remove_tree(root)
print(("checkpoint: %d damaged ones, %d loaded, the others refused (seed %d)"):format(n, loaded, seed))
