-- A tiny BERT with a storyworld vocabulary, made once per spec process: 2 layers, width 16, contexts up to 32.
local fs = require "saelua.fs"
local program = require "tests.support.program"
local sl = require "saelua"

local tiny = {}

local folder

--- The folder of the model (config.json, model.safetensors, vocab.txt).
function tiny.folder()
  if folder then return folder end
  folder = program.folder() .. "/tiny"
  assert(fs.mkdir(folder))
  local vocabulary = sl.wordpiece.train(sl.data.documents("storyworld", { n = 200 }), { vocab_size = 200 })
  assert(sl.wordpiece.write(folder, vocabulary))
  local tokenizer = assert(sl.tokenizer(folder))
  local model = sl.model.new({
    vocab_size = tokenizer.vocab_size, hidden_size = 16, num_hidden_layers = 2, num_attention_heads = 2,
    intermediate_size = 32, max_position_embeddings = 32,
  }, { seed = 1, tokenizer = tokenizer, name = "tiny" })
  assert(model:save(folder))
  return folder
end

--- The model, loaded anew.
function tiny.model() return sl.model.load(tiny.folder()) end

function tiny.remove()
  if folder then fs.remove_tree(fs.dirname(folder)) end
  folder = nil
end

--- Documents of storyworld in a .txt file, one a line.
function tiny.text_file(path, n)
  local lines = {}
  for document in sl.data.documents("storyworld", { n = n, seed = 7 }) do lines[#lines + 1] = document end
  program.write(path, table.concat(lines, "\n") .. "\n")
  return path
end

return tiny
