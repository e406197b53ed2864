-- What bench.lua and peers.py measure beside training, each in a process of its own:
--   saelua io_bench.lua text FILE BYTES      writes storyworld text, a document a line
--   saelua io_bench.lua tokenize FILE        for each line of the input: seconds to tokenize that text on one core
--   saelua io_bench.lua save FOLDER LAYERS   writes a BERT-base-shaped model with that many layers
--   saelua io_bench.lua load FOLDER          loads it and reads every weight once; prints JSON with the peak memory
local sl = require "saelua"
local host = require "saelua.host"
local storyworld = require "saelua.storyworld"

local commands = {}

function commands.text(path, bytes)
  local file = assert(io.open(path, "w"))
  local written, index = 0, 0
  while written < tonumber(bytes) do
    index = index + 1
    local line = storyworld.document(1, index).text:gsub("%s+", " ") .. "\n"
    assert(file:write(line))
    written = written + #line
  end
  assert(file:close())
end

-- The ids of each document are made and dropped: what is measured is text to ids.
function commands.tokenize(path)
  local tokenizer = sl.model.load("bert-mini").tokenizer
  local lines = {}
  for line in io.lines(path) do lines[#lines + 1] = line end
  for _ in io.lines() do
    local start = host.now()
    for i = 1, #lines do tokenizer:encode_tensor(lines[i]):free() end
    io.write(("%.9f\n"):format(host.now() - start))
    io.flush()
  end
end

function commands.save(folder, layers)
  local model = sl.model.new({ vocab_size = 30522, hidden_size = 768, num_hidden_layers = tonumber(layers),
    num_attention_heads = 12, intermediate_size = 3072, max_position_embeddings = 512 }, { head = false })
  assert(model:save(folder))
end

function commands.load(folder)
  local before = host.rss()
  local start = host.now()
  local model = sl.model.load(folder, { tokenizer = false })
  local load_s = host.now() - start
  -- What lies in the file counts once it is touched.
  for _, weight in ipairs(model:parameters()) do weight.tensor:max():free() end
  local file = assert(io.open(folder .. "/model.safetensors"))
  local bytes = file:seek "end"
  file:close()
  print(sl.json.encode { file_bytes = bytes, peak_bytes = host.peak_rss(), before_bytes = before, load_s = load_s })
end

local command = commands[arg[1]]
if not command then error("usage: see the head of tests/bench/io_bench.lua", 0) end
command(select(2, unpack(arg)))
