-- Contexts and activation batches: nothing lost, nothing twice, nothing held out is trained on, and the same batches
-- again after loading a position.
local host = require "saelua.host"
local program = require "tests.support.program"
local sl = require "saelua"
local tiny = require "tests.support.tiny"

local dir, model, file
setup(function()
  dir = program.folder()
  model = tiny.model()
  file = tiny.text_file(dir .. "/text.txt", 120)
end)
teardown(function()
  host.remove_tree(dir)
  tiny.remove()
end)

local function refused(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  if not message:find(pattern, 1, true) then error(("message %q lacks %q"):format(message, pattern), 2) end
end

local function key(row) return table.concat(row, " ") end

-- The next n contexts as strings.
local function take(tokens, n)
  local list = {}
  while #list < n do
    local ids = tokens:next(math.min(8, n - #list))
    for _, row in ipairs(ids:totable()) do list[#list + 1] = key(row) end
  end
  return list
end

local function counted(list)
  local counts = {}
  for _, k in ipairs(list) do counts[k] = (counts[k] or 0) + 1 end
  return counts
end

describe("contexts of a file", function()
  it("hold every token of every document, in order, wrapped", function()
    local tokens = sl.data.tokens(file, model.tokenizer, { ctx_len = 32 })
    local t = model.tokenizer
    local want = {}
    for document in sl.text.documents(file) do
      for _, id in ipairs(t:encode(document)) do
        if id ~= t.cls_id and id ~= t.sep_id then want[#want + 1] = id end
      end
      want[#want + 1] = t.sep_id
    end
    local stream = {}
    local function add(contexts)
      local ids, mask = contexts.ids:totable(), contexts.mask:totable()
      for i, row in ipairs(ids) do
        assert.equal(t.cls_id, row[1])
        local length = 0
        for j = 1, #row do
          if mask[i][j] == 1 then length = j else assert.equal(t.pad_id, row[j]) end
        end
        assert.equal(t.sep_id, row[length])
        for j = 2, length - 1 do stream[#stream + 1] = row[j] end
      end
    end
    add(tokens.source.chunk(0))
    add(tokens:heldout())
    if stream[#stream] ~= t.sep_id then want[#want] = nil end -- the last separator may be the wrapping one
    assert.equal(#want, #stream)
    assert.equal(key(want), key(stream))
  end)

  it("come once each, then again in another order; held-out ones never", function()
    local words = {} -- every word once, so that contexts are all different
    for i = 1, 600 do
      words[i] = ("%06o"):format(i * 113 % 262144):gsub("%d", function(d) return ("aeinorst"):sub(d + 1, d + 1) end)
    end
    local unique = program.write(dir .. "/unique.txt", table.concat(words, "\n"))
    local tokens = sl.data.tokens(unique, model.tokenizer, { ctx_len = 16, heldout = 0.1 })
    local heldout = tokens:heldout()
    local n = tokens.source.chunk(0).n
    assert.equal(math.floor((n + heldout.n) * 0.1), heldout.n)
    local first = take(tokens, n)
    assert.equal(0, tokens:repetitions())
    local second = take(tokens, n)
    assert.equal(1, tokens:repetitions())
    assert.same(counted(first), counted(second))
    assert.are_not.equal(table.concat(first, "|"), table.concat(second, "|"))
    local whole = {}
    for _, row in ipairs(tokens.source.chunk(0).ids:totable()) do whole[#whole + 1] = key(row) end
    assert.same(counted(whole), counted(first))
    local seen = counted(first)
    for _, row in ipairs(heldout.ids:totable()) do assert.is_nil(seen[key(row)]) end
    -- the same seed gives the same order, another one another
    local again = sl.data.tokens(unique, model.tokenizer, { ctx_len = 16, heldout = 0.1 })
    assert.equal(table.concat(first), table.concat(take(again, n)))
    local other = sl.data.tokens(unique, model.tokenizer, { ctx_len = 16, heldout = 0.1, seed = 1 })
    assert.are_not.equal(table.concat(first), table.concat(take(other, n)))
  end)

  it("too little text is refused, and options are checked", function()
    local function tokens(text, options)
      return sl.data.tokens(program.write(dir .. "/few.txt", text), model.tokenizer, options)
    end
    refused("few.txt: the data set is empty", tokens, "")
    refused("the data set is empty", tokens, "\n \n")
    refused("at least 2 are needed", tokens, "one\n")
    refused("none.txt", sl.data.tokens, dir .. "/none.txt", model.tokenizer)
    refused("ctx_len must be an integer of at least 4", tokens, "x", { ctx_len = 3 })
    refused("heldout is a share", tokens, "x", { heldout = 1 })
    refused("ctx_length", tokens, "x", { ctx_length = 16 })
    assert.equal(10, sl.data.tokens(file, model.tokenizer, { max_documents = 10, ctx_len = 8 }).source.documents)
  end)
end)

describe("storyworld", function()
  it("never ends, never repeats a chunk, and holds other stories out", function()
    local tokens = sl.data.tokens("storyworld", model.tokenizer, { ctx_len = 32 })
    local n, seen = 0, {}
    while tokens.chunk < 1 do
      local ids = tokens:next(64)
      n = n + ids:size(1)
      for _, row in ipairs(ids:totable()) do seen[key(row)] = true end
    end
    assert.is_true(n > 500)
    assert.equal(0, tokens:repetitions())
    local heldout, common = tokens:heldout(), 0
    for _, row in ipairs(heldout.ids:totable()) do
      if row[32] ~= model.tokenizer.pad_id then common = common + (seen[key(row)] and 1 or 0) end
    end
    assert.is_true(common <= 0.01 * heldout.n) -- a short sentence may come up again by chance
    assert.same(heldout.ids:shape(), heldout.document:shape())
  end)
end)

describe("positions in the stream", function()
  it("restore to the same contexts, at chunk borders too", function()
    for _, source in ipairs { file, "storyworld" } do
      local tokens = sl.data.tokens(source, model.tokenizer, { ctx_len = 32 })
      for _ = 1, 5 do
        local state = tokens:state()
        local want = take(tokens, 40)
        local other = sl.data.tokens(source, model.tokenizer, { ctx_len = 32 })
        other:restore(state)
        assert.equal(table.concat(want), table.concat(take(other, 40)))
      end
    end
  end)
end)

describe("activation batches", function()
  local AT = { "layers.0.resid_post", "layers.1.resid_post" }

  local function activations(options, source)
    local tokens = sl.data.tokens(source or file, model.tokenizer, { ctx_len = 16, seed = 3 })
    return sl.data.activations(model, tokens, {
      at = options.at or AT, batch_size = 4, batch_tokens = options.batch_tokens or 24,
      buffer_batches = options.buffer_batches or 4,
    })
  end

  local function rows_of(batch, at)
    local list = {}
    for i, row in ipairs(batch[at]:totable()) do list[i] = ("%.9g %.9g %.9g %.9g"):format(unpack(row, 1, 4)) end
    return list
  end

  -- Every row that training may see in the next repetition, by its text.
  local function expected(tokens, at)
    local counts, total = {}, 0
    local contexts = tokens.source.chunk(0)
    for first = 1, contexts.n, 4 do
      local last = math.min(first + 3, contexts.n)
      local rows = sl.eval.rows(model, at, contexts.ids:slice(1, first, last):contiguous(),
        contexts.mask:slice(1, first, last):contiguous(), tokens.special_ids)
      for _, row in ipairs(rows_of({ [at] = rows }, at)) do
        counts[row] = (counts[row] or 0) + 1
        total = total + 1
      end
    end
    return counts, total
  end

  it("have a fixed size, serve rows of ordinary tokens only, and all hook points from the same tokens", function()
    local acts = activations {}
    local all, pair = expected(acts.tokens, AT[1]), {}
    for _ = 1, 30 do
      local batch = acts:next()
      assert.same({ 24, 16 }, batch[AT[1]]:shape())
      assert.same({ 24, 16 }, batch[AT[2]]:shape())
      local a, b = rows_of(batch, AT[1]), rows_of(batch, AT[2])
      for i = 1, 24 do
        assert.truthy(all[a[i]], "a row that no ordinary training token gives")
        assert.is_true(pair[a[i]] == nil or pair[a[i]] == b[i])
        pair[a[i]] = b[i]
      end
    end
  end)

  it("serve every row once before any comes again", function()
    local acts = activations { at = { AT[1] } }
    local all, total = expected(acts.tokens, AT[1])
    local served = {}
    for _ = 1, math.floor(total / 24) - acts.capacity / 24 do
      for _, row in ipairs(rows_of(acts:next(), AT[1])) do served[row] = (served[row] or 0) + 1 end
    end
    assert.equal(0, acts.tokens:repetitions())
    for row, n in pairs(served) do assert.is_true(n <= all[row]) end
  end)

  it("mix rows of many sequences", function()
    local acts = activations { at = { "embed" }, batch_tokens = 48, buffer_batches = 8 }
    local place = {} -- which contexts a row of the embedding (token, position) can be from
    local contexts = acts.tokens.source.chunk(0)
    local seen = {}
    for _, row in ipairs(rows_of(acts:next(), "embed")) do seen[#seen + 1] = row end
    for first = 1, contexts.n do
      local rows = sl.eval.rows(model, "embed", contexts.ids:slice(1, first, first):contiguous(),
        contexts.mask:slice(1, first, first):contiguous(), acts.tokens.special_ids)
      for _, row in ipairs(rows_of({ embed = rows }, "embed")) do
        place[row] = place[row] or {}
        place[row][first] = true
      end
    end
    -- if all 48 came from the four sequences of one forward, few contexts would explain them
    local covered, used = 0, 0
    local left = {}
    for i = 1, #seen do left[i] = true end
    while covered < #seen do
      local best, best_n = nil, 0
      for c = 1, contexts.n do
        local n = 0
        for i = 1, #seen do
          if left[i] and place[seen[i]][c] then n = n + 1 end
        end
        if n > best_n then best, best_n = c, n end
      end
      for i = 1, #seen do
        if left[i] and place[seen[i]][best] then left[i] = false end
      end
      covered, used = covered + best_n, used + 1
    end
    assert.is_true(used > 8, ("48 rows need only %d sequences"):format(used))
  end)

  it("go on bit for bit from any saved position", function()
    local cases = { {}, { batch_tokens = 7, buffer_batches = 1 }, { batch_tokens = 100, buffer_batches = 2 } }
    for _, case in ipairs(cases) do
      local acts = activations(case)
      for step = 1, 9 do
        local folder = ("%s/state-%d-%d"):format(dir, case.batch_tokens or 0, step)
        assert(sl.fs.mkdir(folder))
        assert(acts:save_state(folder))
        local other = activations(case)
        assert(other:load_state(folder))
        local want, got = acts:next(), other:next()
        for _, at in ipairs(AT) do assert.equal(0, (want[at] - got[at]):abs():max():item()) end
      end
    end
  end)

  it("a saved position of nonsense is refused", function()
    local acts = activations {}
    acts:next()
    local folder = dir .. "/bad-state"
    assert(sl.fs.mkdir(folder))
    assert(acts:save_state(folder))
    for _, text in ipairs { "", "{}", "[]", "12", '{"tokens": {"chunk": 0}, "fills": 1, "served": 0}',
      '{"tokens": {"chunk": 0, "epoch": 0, "index": 1.5}, "fills": 1, "served": 0}',
      '{"tokens": {"chunk": 0, "epoch": 0, "index": 0}, "fills": -1, "served": 0}',
      '{"tokens": {"chunk": 0, "epoch": 0, "index": 1e9}, "fills": 1, "served": 0}',
      '{"tokens": {"chunk": 1e15, "epoch": 1e15, "index": 0}, "fills": 1, "served": 0}',
      '{"tokens": {"chunk": 0, "epoch": 0, "index": 0}, "fills": 1, "served": 1e9}' } do
      program.write(folder .. "/data.json", text)
      local loaded, message = activations({}):load_state(folder)
      assert.is_nil(loaded, text)
      assert.truthy(message:find("data.json", 1, true), message)
    end
  end)

  it("say what the buffer takes", function()
    local acts = activations {}
    assert.equal(2 * acts.capacity * 16 * 4, acts:memory())
    assert.is_true(acts.capacity >= 24 + 4 * 16)
  end)
end)
