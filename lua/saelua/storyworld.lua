--- storyworld: an endless corpus of short English stories about a small world, with the truth of each word.
--
-- A document is a function of (seed, index) alone: the same on every machine, reachable without its
-- predecessors, and without end. Its facts are consistent (who has what, where, how many, what colour), so a
-- masked language model has something to learn, and every word comes with ground-truth attributes, so latents
-- can be judged.
--
-- This module is the public face. The parts: `storyworld.lexicon` and `storyworld.templates` (data),
-- `storyworld.compile` and `storyworld.render` (templates to sentences), `storyworld.plots` (what happens),
-- `storyworld.rng`. Page: docs/storyworld.md.
-- @module saelua.storyworld

local lexicon = require "saelua.storyworld.lexicon"
local plots = require "saelua.storyworld.plots"
local rng = require "saelua.storyworld.rng"
local suggest = require "saelua.suggest"

local storyworld = {}

local max_integer = 9007199254740991 -- 2^53 - 1: the integers that a double holds exactly

local function check_integer(what, value, low)
  if type(value) ~= "number" or value % 1 ~= 0 or value < low or value > max_integer then
    error(("storyworld: %s must be an integer from %d to 2^53 - 1, got %s"):format(
      what, low, tostring(value)), 3)
  end
  return value
end

-- --- documents

-- One reusable state for plain text: making text allocates little besides the text itself.
local plain = { parts = {} }

local function text_of(seed, index)
  local k0, k1 = rng.key(seed, index)
  plots.tell(plain, k0, k1)
  return table.concat(plain.parts, "", 1, plain.n)
end

-- Tells the story again with annotation switched on; offsets come last because a later vowel can turn "a"
-- into "an".
local function words_of(seed, index)
  local c = { parts = {}, record = {} }
  local k0, k1 = rng.key(seed, index)
  plots.tell(c, k0, k1)
  local words, at, part = {}, 1, 1
  for i, r in ipairs(c.record) do
    while part < r.part do
      at = at + #c.parts[part]
      part = part + 1
    end
    local word = c.parts[part]
    words[i] = { word = word, start = at, finish = at + #word - 1, attrs = r.attrs }
  end
  return words
end

-- Annotation costs several times the text, and training does not want it: `words` is made at its first use.
local document_meta = {
  __index = function(doc, key)
    if key ~= "words" then return nil end
    local words = words_of(doc.seed, doc.id)
    rawset(doc, "words", words)
    return words
  end,
}

--- Make one document.
-- @tparam integer seed corpus seed, 0 <= seed < 2^53
-- @tparam integer index document index, 0 <= index < 2^53
-- @treturn table `{ text = string, id = index, seed = seed, words = {...} }`; `words` (made at first use)
--   lists words and punctuation marks in order: `{ word = "boat", start = 10, finish = 13, attrs = {...} }`,
--   byte offsets 1-based and inclusive, so `text:sub(start, finish) == word`
function storyworld.document(seed, index)
  check_integer("seed", seed, 0)
  check_integer("index", index, 0)
  return setmetatable({ id = index, seed = seed, text = text_of(seed, index) }, document_meta)
end

local document_options = { "seed", "n", "start" }

local function check_options(options)
  for key in pairs(options) do
    local known = false
    for _, name in ipairs(document_options) do known = known or name == key end
    if not known then
      local name = tostring(key)
      local hint = suggest.hint(name, document_options)
      error(("storyworld.documents: unknown option '%s'%s"):format(name, hint), 3)
    end
  end
end

--- Iterate over documents.
-- @tparam[opt] table options `seed` (default 42), `start` index of the first document (default 0), `n` how
--   many (default: without end)
-- @treturn function iterator of documents, for the generic `for`
function storyworld.documents(options)
  options = options or {}
  check_options(options)
  local seed = check_integer("seed", options.seed == nil and 42 or options.seed, 0)
  local index = check_integer("start", options.start == nil and 0 or options.start, 0)
  local stop = options.n == nil and max_integer or index + check_integer("n", options.n, 0)
  return function()
    if index >= stop then return nil end
    local doc = setmetatable({ id = index, seed = seed, text = text_of(seed, index) }, document_meta)
    index = index + 1
    return doc
  end
end

-- --- attributes

local function texts(...)
  local out, seen = {}, {}
  for _, l in ipairs { ... } do
    for _, lex in ipairs(l) do
      if not seen[lex.text] then
        seen[lex.text] = true
        out[#out + 1] = lex.text
      end
    end
  end
  return out
end

local function sorted_keys(t)
  local out = {}
  for k in pairs(t) do out[#out + 1] = k end
  table.sort(out)
  return out
end

local function materials()
  local seen = {}
  for _, group in ipairs { lexicon.objects, lexicon.containers } do
    for _, t in ipairs(group) do for _, m in ipairs(t.materials) do seen[m.text] = true end end
  end
  return sorted_keys(seen)
end

local function classes()
  local seen = { name = true, pair = true, place = true, occupation = true, guest = true, money = true,
    material = true, mood = true, weather = true, colour = true, size = true, time = true, question = true }
  for _, group in ipairs { lexicon.objects, lexicon.containers, lexicon.countables, lexicon.animals } do
    for _, t in ipairs(group) do seen[t.class] = true end
  end
  return sorted_keys(seen)
end

local function plot_names()
  local out = {}
  for i, p in ipairs(plots.list) do out[i] = p.name end
  return out
end

local polarity, tenses, booleans = { "pos", "neg" }, { "past", "present", "future" }, { false, true }

-- { name, description, values }: values is a list, or "string" (an open set) or "integer".
local attribute_list = {
  { "pos", "part of speech", { "noun", "verb", "aux", "adj", "adv", "det", "pron", "name", "num", "prep",
    "conj", "neg", "intj", "part", "punct" } },
  { "lemma", "dictionary form, lower-cased except names", "string" },
  { "role", "role of the phrase in its clause", { "subject", "object", "recipient", "companion", "place",
    "possessor", "predicate", "topic", "oblique" } },
  { "kind", "kind of the entity that the word belongs to", { "person", "place", "animal", "object" } },
  { "class", "finer class of word or entity", classes() },
  { "number", "grammatical number", { "sg", "pl" } },
  { "person", "grammatical person of a pronoun", { 1, 2, 3 } },
  { "tense", "tense of a finite verb", tenses },
  { "story_tense", "tense in which the story is told", { "past", "present" } },
  { "negated", "inside a negated clause", booleans },
  { "because", "inside a clause of cause (because ...)", booleans },
  { "sentiment", "sentiment of the sentence", { "pos", "neg", "neutral" } },
  { "polarity", "sentiment of the word itself", polarity },
  { "degree", "degree of comparison", { "comparative", "superlative" } },
  { "count", "value of a number word, and of the noun it counts", "integer" },
  { "referent", "who or what the phrase refers to, pronouns included", "string" },
  { "mentioned", "the entity was mentioned before", booleans },
  { "sex", "sex of the person referred to", { "female", "male" } },
  { "occupation", "occupation of the person referred to", texts(lexicon.jobs) },
  { "mood", "present mood of the person referred to", polarity },
  { "colour", "colour of the thing or animal referred to, said or not", texts(lexicon.colours) },
  { "size", "size of the thing referred to, said or not", texts(lexicon.sizes) },
  { "material", "material of the thing referred to, said or not", materials() },
  { "owner", "who has the thing now", "string" },
  { "location", "where the entity is now, if known", "string" },
  { "in_quote", "inside quoted speech", booleans },
  { "speaker", "who speaks, inside quoted speech", "string" },
  { "sentence_type", "type of the sentence", { "statement", "question", "exclamation" } },
  { "sentence", "number of the sentence in the story, from 1", "integer" },
  { "position_in_sentence", "number of the word in its sentence, marks counted, from 1", "integer" },
  { "purpose", "what the sentence does in the story (its template group)", sorted_keys(plots.groups) },
  { "plot", "plot of the story", plot_names() },
}

--- The attributes that a word can have; an attribute that does not apply to a word is nil.
-- @treturn table ordered list of `{ name = , description = , values = }`; `values` is the list of possible
--   values, or "string" (an open set, such as names) or "integer"
function storyworld.attributes()
  local out = {}
  for i, a in ipairs(attribute_list) do out[i] = { name = a[1], description = a[2], values = a[3] } end
  return out
end

--- Attributes of the words that tokens fall into.
-- @tparam table doc a document
-- @tparam table offsets list of `{ start, finish }` (or with those two as named fields), one a token: byte
--   offsets in `doc.text`, 1-based, inclusive, ascending; an empty token (finish < start, as special tokens
--   have) has no word
-- @treturn table a table of size #offsets with the word's attribute table, or false where a token lies in no
--   word
-- @treturn table the 1-based number of that word in `doc.words`, or false
function storyworld.token_attributes(doc, offsets)
  local words, out, which = doc.words, {}, {}
  local w, last = 1, 0
  for i, o in ipairs(offsets) do
    local start, finish = o.start or o[1], o.finish or o[2]
    out[i], which[i] = false, false
    if finish >= start then
      if start < last then w = 1 end -- not ascending: look again from the beginning
      last = start
      while words[w] and words[w].finish < start do w = w + 1 end
      local word = words[w]
      if word and word.start <= finish then out[i], which[i] = word.attrs, w end
    end
  end
  return out, which
end

return storyworld
