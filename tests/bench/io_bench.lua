-- Text to ids through the library, for bench.lua and for peers.py, which takes turns with it (tokenizer_bench measures
-- the tokenizer alone, with any vocabulary and text):
--   saelua io_bench.lua text FILE BYTES      writes storyworld text, a document a line
--   saelua io_bench.lua tokenize FILE        for each line of the input: seconds to tokenize that text on one core
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

local command = commands[arg[1]]
if not command then error("usage: see the head of tests/bench/io_bench.lua", 0) end
command(select(2, unpack(arg)))
