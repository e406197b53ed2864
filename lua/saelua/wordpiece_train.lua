--- Trains a WordPiece vocabulary: pair merges by frequency on the words of a text, as for BERT's `vocab.txt`.
--
-- Words come from BERT's basic tokenisation (lower case, white space, every punctuation mark alone). Each
-- starts as characters (`b ##o ##a ##t`); the most frequent adjacent pair is merged until the vocabulary is
-- full, ties broken by byte order of the pair, so the result depends on the text alone. (Sennrich et al.
-- 2016; the layout of the file is BERT's. Original WordPiece scores a pair by likelihood gain; Hugging Face's
-- trainer, like this one, by frequency.) It reads ASCII and UTF-8 text, but lower-cases and splits ASCII
-- only: it is meant for built-in corpora, and is no tokeniser. It holds the distinct words, never the text.
-- @module saelua.wordpiece_train

local suggest = require "saelua.suggest"

local wordpiece_train = {}

local defaults = { vocab_size = 900, min_frequency = 2, lowercase = true }
local specials = { "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]" }

local function settings(options)
  local out = {}
  for k, v in pairs(defaults) do out[k] = v end
  for k, v in pairs(options or {}) do
    if defaults[k] == nil then
      local name = tostring(k)
      local hint = suggest.hint(name, suggest.keys(defaults))
      error(("wordpiece_train.train: unknown option '%s'%s"):format(name, hint), 3)
    end
    if type(v) ~= type(defaults[k]) then
      local want = type(defaults[k])
      error(("wordpiece_train.train: option %s must be a %s, got %s"):format(k, want, type(v)), 3)
    end
    out[k] = v
  end
  return out
end

--- Split text as BERT's basic tokeniser does, for ASCII: at white space and around every punctuation mark.
-- @tparam string text any text
-- @tparam boolean lowercase lower-case first
-- @treturn table list of words
function wordpiece_train.words(text, lowercase)
  if lowercase then text = text:lower() end
  local out = {}
  for chunk in text:gmatch("%S+") do
    local at = 1
    while at <= #chunk do
      local from, to = chunk:find("^[^%p]+", at)
      if not from then from, to = at, at end
      out[#out + 1] = chunk:sub(from, to)
      at = to + 1
    end
  end
  return out
end

local function count_words(texts, lowercase)
  local counts = {}
  for text in texts do
    if type(text) == "table" then text = text.text end
    for _, w in ipairs(wordpiece_train.words(text, lowercase)) do counts[w] = (counts[w] or 0) + 1 end
  end
  return counts
end

-- Words as lists of pieces, in byte order of the word; and every piece that occurs.
local function spell(counts)
  local list, alphabet = {}, {}
  for w, n in pairs(counts) do list[#list + 1] = { word = w, n = n } end
  table.sort(list, function(a, b) return a.word < b.word end)
  for _, entry in ipairs(list) do
    for ch in entry.word:gmatch("[%z\1-\127\192-\255][\128-\191]*") do
      local piece = #entry == 0 and ch or "##" .. ch
      entry[#entry + 1] = piece
      alphabet[ch] = true
      alphabet[piece] = true
    end
  end
  return list, alphabet
end

local function joined(left, right) return left .. right:sub(3) end

-- Pair statistics: how often a pair occurs, and in which words, kept up to date from merge to merge.
local function add_pairs(stats, entry, index, sign)
  for i = 1, #entry - 1 do
    local key = entry[i] .. " " .. entry[i + 1]
    stats.n[key] = (stats.n[key] or 0) + sign * entry.n
    if stats.n[key] == 0 then stats.n[key] = nil end
    if sign > 0 then
      local where = stats.where[key]
      if not where then
        where = {}
        stats.where[key] = where
      end
      where[index] = true
    end
  end
end

local function best_pair(stats, least)
  local best, most = nil, least - 1
  for key, n in pairs(stats.n) do
    if n > most or (n == most and best and key < best) then best, most = key, n end
  end
  return best
end

local function apply_merge(entry, left, right)
  local i = 1
  while i < #entry do
    if entry[i] == left and entry[i + 1] == right then
      entry[i] = joined(left, right)
      table.remove(entry, i + 1)
    end
    i = i + 1
  end
end

--- Train a vocabulary.
-- @tparam function texts iterator of strings, or of documents (tables with a field `text`)
-- @tparam[opt] table options `vocab_size` (default 900), `min_frequency` of a merged pair (default 2),
--   `lowercase` (default true)
-- @treturn table list of tokens; token id = place in the list - 1: `[PAD] [UNK] [CLS] [SEP] [MASK]`, the
--   characters in byte order (each seen in a word's inside also as `##x`), then the merged pieces in the
--   order learnt. Shorter than `vocab_size` when no pair is left that is frequent enough; raises if the
--   characters alone do not fit.
function wordpiece_train.train(texts, options)
  local o = settings(options)
  local list, alphabet = spell(count_words(texts, o.lowercase))
  local vocab, known = {}, {}
  local function add(token)
    if not known[token] then
      known[token] = true
      vocab[#vocab + 1] = token
    end
  end
  for _, s in ipairs(specials) do add(s) end
  local characters = {}
  for piece in pairs(alphabet) do characters[#characters + 1] = piece end
  -- "x" before "##x", and all words' beginnings first, as in BERT's own file.
  table.sort(characters, function(a, b)
    local inside_a, inside_b = #a > 2 and a:sub(1, 2) == "##", #b > 2 and b:sub(1, 2) == "##"
    if inside_a ~= inside_b then return inside_b end
    return a < b
  end)
  for _, ch in ipairs(characters) do add(ch) end
  if #vocab > o.vocab_size then
    local why = "special tokens and characters alone take"
    error(("wordpiece_train.train: vocab_size %d is too small: %s %d"):format(o.vocab_size, why, #vocab), 2)
  end

  local stats = { n = {}, where = {} }
  for i, entry in ipairs(list) do add_pairs(stats, entry, i, 1) end
  while #vocab < o.vocab_size do
    local key = best_pair(stats, o.min_frequency)
    if not key then break end
    local left, right = key:match("^(%S+) (%S+)$")
    add(joined(left, right))
    local where = stats.where[key]
    stats.where[key] = nil
    for index in pairs(where) do
      add_pairs(stats, list[index], index, -1)
      apply_merge(list[index], left, right)
      add_pairs(stats, list[index], index, 1)
    end
  end
  return vocab
end

--- Write a vocabulary as `vocab.txt`, one token a line, line number - 1 = token id.
-- @tparam string dir an existing directory
-- @tparam table vocab list of tokens
-- @treturn[1] string path of the file written
-- @treturn[2] nil
-- @treturn[2] string message
-- @treturn[2] integer errno
function wordpiece_train.write(dir, vocab)
  local path = dir .. "/vocab.txt"
  local file, message, code = io.open(path, "wb")
  if not file then return nil, message, code end
  local ok
  ok, message, code = file:write(table.concat(vocab, "\n"), "\n")
  local closed, close_message, close_code = file:close()
  if not ok then return nil, path .. ": " .. tostring(message), code end
  if not closed then return nil, path .. ": " .. tostring(close_message), close_code end
  return path
end

return wordpiece_train
