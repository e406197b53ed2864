-- storyworld: reproducible text, true annotations, a vocabulary that covers it.
local storyworld = require "saelua.storyworld"
local wordpiece_train = require "saelua.wordpiece_train"
local rng = require "saelua.storyworld.rng"
local bit = require "bit"

-- FNV-1a, 32 bits, in exact arithmetic (the product is split so that it stays below 2^53).
local function fnv(hash, text)
  for i = 1, #text do
    hash = bit.bxor(hash, text:byte(i))
    if hash < 0 then hash = hash + 4294967296 end
    local low, high = hash % 65536, math.floor(hash / 65536)
    hash = (low * 16777619 + (high * 16777619 % 65536) * 65536) % 4294967296
  end
  return hash
end

local function each_word(n, fn)
  for doc in storyworld.documents { seed = 7, n = n } do
    for i, w in ipairs(doc.words) do fn(w, w.attrs, doc, i) end
  end
end

describe("storyworld documents", function()
  it("are the same text on every machine", function()
    local hash = 2166136261
    for doc in storyworld.documents { seed = 42, n = 21 } do hash = fnv(hash, doc.text) end
    assert.equal(224294383, hash)
    local k0, k1 = rng.key(42, 2 ^ 40)
    local draws = { rng.draw(k0, k1, 0, 2 ^ 20), rng.draw(k0, k1, 1, 2 ^ 20), rng.draw(k0, k1, 99, 10) }
    -- The same from an implementation with exact integers (Python).
    assert.same({ -1979510177, -1766243757 }, { k0, k1 })
    assert.same({ 488489, 487072, 5 }, draws)
  end)

  it("are the same whether streamed, reached at random, or annotated", function()
    local streamed = {}
    for doc in storyworld.documents { seed = 3, n = 12, start = 5 } do streamed[doc.id] = doc.text end
    for i = 16, 5, -1 do
      local doc = storyworld.document(3, i)
      assert.equal(streamed[i], doc.text)
      assert.equal(i, doc.id)
      for _, w in ipairs(doc.words) do assert.equal(w.word, doc.text:sub(w.start, w.finish)) end
    end
    assert.is_nil(streamed[17])
  end)

  it("differ from one another and from another seed's", function()
    local seen = {}
    for seed = 0, 1 do
      for doc in storyworld.documents { seed = seed, n = 1000 } do
        assert.is_nil(seen[doc.text])
        seen[doc.text] = true
      end
    end
    assert.not_equal(storyworld.document(0, 2 ^ 32).text, storyworld.document(0, 0).text)
    assert.not_equal(storyworld.document(2 ^ 32, 0).text, storyworld.document(0, 0).text)
  end)

  it("have 50 to 170 words, and nothing but spaces between words", function()
    for doc in storyworld.documents { seed = 11, n = 1500 } do
      local words, at = 0, 1
      for _, w in ipairs(doc.words) do
        if w.attrs.pos ~= "punct" then words = words + 1 end
        assert.truthy(doc.text:sub(at, w.start - 1):match("^ ?$"))
        at = w.finish + 1
      end
      assert.equal(#doc.text + 1, at)
      assert.is_true(words >= 50 and words <= 170, doc.id .. ": " .. words)
    end
  end)

  it("refuse what they do not understand", function()
    assert.has_error(function() storyworld.documents { sed = 1 } end,
      'storyworld.documents: unknown option \'sed\'; did you mean "seed"?')
    assert.has_error(function() storyworld.document(-1, 0) end)
    assert.has_error(function() storyworld.document(1, 0.5) end)
    assert.has_error(function() storyworld.documents { n = "many" } end)
  end)
end)

describe("storyworld grammar", function()
  it("chooses a and an by the next word", function()
    for doc in storyworld.documents { n = 1500 } do
      for article, following in doc.text:gmatch("%f[%a]([Aa]n?) (%a+)") do
        local vowel = following:find("^[aeiouAEIOU]") ~= nil or following == "hour"
        assert.equal(vowel and "an" or "a", article:lower(), doc.text)
      end
    end
  end)

  it("makes subject and verb agree", function()
    local singular = { he = true, she = true, it = true }
    local plural = { they = true, we = true, you = true }
    local wrong_sg = { are = true, were = true, ["do"] = true, am = true }
    local wrong_pl = { is = true, was = true, has = true, does = true, am = true }
    local seen = 0
    for doc in storyworld.documents { seed = 5, n = 1500 } do
      for first, second in doc.text:gmatch("%f[%a](%a+) %f[%a](%a+)") do
        local lower = first:lower()
        if singular[lower] and wrong_sg[second] then error(first .. " " .. second .. ": " .. doc.text) end
        if plural[lower] and wrong_pl[second] then error(first .. " " .. second .. ": " .. doc.text) end
        if first == "I" and (second == "is" or second == "are" or second == "has") then error(doc.text) end
        if (singular[lower] or plural[lower]) then seen = seen + 1 end
      end
    end
    assert.is_true(seen > 1000)
  end)

  it("begins every sentence and every quotation with a capital", function()
    for doc in storyworld.documents { seed = 6, n = 500 } do
      assert.truthy(doc.text:find("^%u"))
      assert.is_nil(doc.text:find("[.] %l"), doc.text)
      assert.is_nil(doc.text:find("[.][.]"), doc.text)
      local _, marks = doc.text:gsub('"', "")
      assert.equal(0, marks % 2)
      assert.is_nil(doc.text:find('%f[^%s]"%l'), doc.text)
    end
  end)
end)

describe("storyworld attributes", function()
  it("stay within the declared names and values, and all occur", function()
    local declared, used = {}, {}
    for _, a in ipairs(storyworld.attributes()) do
      assert.equal("string", type(a.description))
      declared[a.name] = a.values
      if type(a.values) == "table" then
        declared[a.name] = {}
        for _, v in ipairs(a.values) do declared[a.name][v] = true end
      end
    end
    each_word(1500, function(w, attrs)
      for name, value in pairs(attrs) do
        local values = declared[name]
        if values == "string" then assert.equal("string", type(value))
        elseif values == "integer" then assert.is_true(type(value) == "number" and value % 1 == 0)
        elseif not values or not values[value] then
          error(("%s: %s = %s"):format(w.word, name, tostring(value)))
        end
        used[name] = used[name] or {}
        used[name][value] = true
      end
    end)
    for name, values in pairs(declared) do
      assert.is_table(used[name], name)
      if type(values) == "table" then
        for value in pairs(values) do assert.is_true(used[name][value], name .. " = " .. tostring(value)) end
      end
    end
  end)

  it("tell the truth about colours, sexes and numbers", function()
    local colours, pronouns, numbers = 0, 0, 0
    each_word(800, function(w, a, doc)
      if a.class == "colour" and a.referent then
        colours = colours + 1
        assert.equal(a.colour, w.word:lower(), doc.text)
      end
      local lower = w.word:lower()
      if lower == "he" or lower == "she" then
        pronouns = pronouns + 1
        assert.equal(lower == "he" and "male" or "female", a.sex)
      end
      if a.pos == "num" then
        numbers = numbers + 1
        assert.equal("number", type(a.count))
      end
    end)
    assert.is_true(colours > 500 and pronouns > 1000 and numbers > 200)
  end)

  it("give every he and she a referent mentioned in this sentence or the one before", function()
    for doc in storyworld.documents { seed = 8, n = 400 } do
      local last = {}
      for _, w in ipairs(doc.words) do
        local a = w.attrs
        local third = a.pos == "pron" and a.person == 3 and a.sex
        if third then
          assert.is_truthy(last[a.referent], doc.text)
          assert.is_true(last[a.referent] >= a.sentence - 1, doc.text)
        end
        if a.kind == "person" and a.referent then
          for name in a.referent:gmatch("%a+") do last[name] = a.sentence end
          last[a.referent] = a.sentence
        end
      end
    end
  end)

  it("keep the sums right", function()
    local had = { counted = true, herd = true, guests = true, purse = true }
    local gone = { eat = true, drop = true, share = true, herd_go = true, guests_some = true, price = true }
    local left = { left = true, herd_stay = true, guests_left = true, change = true }
    local checked = 0
    for doc in storyworld.documents { seed = 9, n = 600 } do
      local first, second, rest = nil, nil, {}
      for _, w in ipairs(doc.words) do
        local a = w.attrs
        if a.pos == "num" then
          if had[a.purpose] then first = a.count
          elseif gone[a.purpose] then second = a.count
          elseif a.purpose == "add" then second = -a.count
          elseif left[a.purpose] or a.purpose == "sum" then rest[a.count] = true end
        end
      end
      if first and second and next(rest) then
        checked = checked + 1
        assert.is_true(rest[first - second], doc.text)
      end
    end
    assert.is_true(checked > 80)
  end)

  it("follow what changes hands", function()
    local gifts = 0
    for doc in storyworld.documents { seed = 10, n = 600 } do
      local before, after
      for _, w in ipairs(doc.words) do
        local a = w.attrs
        if a.plot == "gift" and a.owner then
          if a.purpose == "have" then before = a.owner elseif a.purpose == "now_has" then after = a.owner end
        end
      end
      if before and after then
        gifts = gifts + 1
        assert.not_equal(before, after)
      end
    end
    assert.is_true(gifts > 10)
  end)

  it("mark negation, quotations and questions where the text has them", function()
    each_word(400, function(w, a, doc, i)
      if w.word == "not" or w.word == "nobody" then assert.is_true(a.negated, doc.text) end
      if w.word == "?" then assert.equal("question", a.sentence_type) end
      if w.word == "said" or w.word == "says" then assert.is_false(a.in_quote, doc.text) end
      if w.word == "I" then assert.is_true(a.in_quote, doc.text) end
      if w.word == "I" then assert.equal(a.speaker, a.referent) end
      local before = doc.words[i - 1]
      local same = before and before.attrs.sentence == a.sentence
      assert.equal(same and before.attrs.position_in_sentence + 1 or 1, a.position_in_sentence)
    end)
  end)

  it("reach tokens through their offsets", function()
    local doc = storyworld.document(42, 0)
    local first, last = doc.words[1], doc.words[#doc.words]
    local offsets = { { 0, -1 }, { first.start, first.start }, { first.start + 1, first.finish },
      { first.finish + 1, first.finish + 1 }, { start = last.start, finish = last.finish },
      { #doc.text + 5, #doc.text + 6 } }
    local attrs, which = storyworld.token_attributes(doc, offsets)
    assert.same({ false, 1, 1, false, #doc.words, false }, which)
    assert.equal(first.attrs, attrs[2])
    assert.equal(first.attrs, attrs[3])
    assert.equal(last.attrs, attrs[5])
    assert.is_false(attrs[1])
    assert.is_false(attrs[4])
  end)
end)

-- Greedy longest match, as WordPiece applies a vocabulary; nil where a word cannot be spelt.
local function pieces(word, known)
  local n, at = 0, 1
  while at <= #word do
    local stop = #word
    while stop >= at and not known[(at > 1 and "##" or "") .. word:sub(at, stop)] do stop = stop - 1 end
    if stop < at then return nil end
    n, at = n + 1, stop + 1
  end
  return n
end

describe("wordpiece_train", function()
  local function list(t)
    local i = 0
    return function()
      i = i + 1
      return t[i]
    end
  end

  it("splits words as BERT's basic tokeniser", function()
    assert.same({ "anna", "'", "s", "box", ",", '"', "ok", '"', "!" },
      wordpiece_train.words('Anna\'s  box, "OK"!', true))
    assert.same({ "Anna" }, wordpiece_train.words("Anna\n", false))
  end)

  it("learns the pairs of a text by hand, most frequent first, ties in byte order", function()
    -- ab x3, abc x2, bc x1: a+##b 5, ab+##c 2, then b+##c 1.
    local lines = { "ab ab", "ab abc", "abc bc" }
    local vocab = wordpiece_train.train(list(lines), { min_frequency = 1 })
    assert.same({ "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]" }, { unpack(vocab, 1, 5) })
    assert.same({ "a", "b", "c", "##b", "##c", "ab", "abc", "bc" }, { unpack(vocab, 6) })
    local short = wordpiece_train.train(list(lines), { min_frequency = 2 })
    assert.equal("abc", short[#short])
    local tied = wordpiece_train.train(list { "xy pq" }, { vocab_size = 13, min_frequency = 1 })
    assert.same({ "p", "q", "x", "y", "##q", "##y", "pq", "xy" }, { unpack(tied, 6) })
  end)

  it("covers storyworld, with the rarer words in pieces", function()
    local vocab = wordpiece_train.train(storyworld.documents { seed = 42, n = 2000 }, { vocab_size = 900 })
    assert.equal(900, #vocab)
    local known = {}
    for _, token in ipairs(vocab) do
      assert.is_nil(known[token], token)
      known[token] = true
    end
    local words, total, split = 0, 0, 0
    for doc in storyworld.documents { seed = 42, n = 500, start = 2000 } do
      for _, word in ipairs(wordpiece_train.words(doc.text, true)) do
        local n = pieces(word, known)
        assert.is_number(n, word)
        words, total, split = words + 1, total + n, split + (n > 1 and 1 or 0)
      end
    end
    assert.is_true(total / words < 1.35, total / words)
    assert.is_true(split > 100)
    local again = wordpiece_train.train(storyworld.documents { seed = 42, n = 2000 }, { vocab_size = 900 })
    assert.same(vocab, again)
  end)

  it("writes vocab.txt, and reports a folder that is not there", function()
    local path = os.tmpname()
    os.remove(path)
    local none, message = wordpiece_train.write(path, { "a" })
    assert.is_nil(none)
    assert.truthy(message:find("vocab.txt", 1, true))
    os.execute("mkdir '" .. path .. "'")
    local written = assert(wordpiece_train.write(path, { "[PAD]", "##x" }))
    local file = assert(io.open(written, "rb"))
    assert.equal("[PAD]\n##x\n", file:read("*a"))
    file:close()
    os.execute("rm -r '" .. path .. "'")
  end)

  it("refuses bad options", function()
    assert.has_error(function() wordpiece_train.train(list { "a" }, { size = 10 }) end)
    assert.has_error(function() wordpiece_train.train(list { "a" }, { vocab_size = "10" }) end)
    assert.has_error(function() wordpiece_train.train(list { "abc" }, { vocab_size = 6 }) end)
  end)
end)
