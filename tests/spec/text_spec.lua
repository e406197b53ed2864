-- Documents from files, folders and standard input; which column is the text; what is refused and how.
local host = require "saelua.host"
local program = require "tests.support.program"
local sl = require "saelua"

local dir
setup(function() dir = program.folder() end)
teardown(function() host.remove_tree(dir) end)

local function write(name, content) return program.write(dir .. "/" .. name, content) end

local function all(source, options)
  local list, documents, message = {}, sl.text.documents(source, options)
  assert(documents, message)
  for document in documents do list[#list + 1] = document end
  return list
end

local function refused(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  if not message:find(pattern, 1, true) then error(("message %q lacks %q"):format(message, pattern), 2) end
end

describe("text files", function()
  it("hold one document a line; blank lines are none", function()
    assert.same({ "one", "  two ", "three" }, all(write("a.txt", "one\n\n   \n  two \r\n\t\nthree")))
    assert.same({}, all(write("empty.txt", "")))
    assert.same({}, all(write("blank.TXT", "\n \n")))
    assert.same({ "nul\0inside", "\255\254 no UTF-8" }, all(write("odd.text", "nul\0inside\n\255\254 no UTF-8\n")))
  end)

  it("may have long lines", function()
    local long = ("word "):rep(200000)
    assert.equal(long, all(write("long.txt", long))[1])
  end)
end)

describe("the text column", function()
  local function column(line, wanted) return sl.text.find_column(sl.json.decode(line), line, wanted) end

  it("is the one asked for, `text`, the first that sounds like text, the first", function()
    assert.equal("b", column('{"text": "x", "b": "y"}', "b"))
    assert.equal("text", column('{"a_text": "x", "text": "y"}'))
    assert.equal("a_text", column('{"content": "x", "a_text": "y"}')) -- "text" is sought before "content"
    assert.equal("Sentence1", column('{"label": "x", "Sentence1": "y"}'))
    assert.equal("content", column('{"question": "x", "content": "y"}'))
    assert.equal("zeta", column('{"zeta": "x", "alpha": "y"}')) -- the first as written
    local _, message = column('{"body": "x", "title": "y"}', "bdy")
    assert.truthy(message:find("no column 'bdy'", 1, true))
    assert.truthy(message:find("body", 1, true))
    assert.is_nil((column "{}"))
  end)

  it("is found once a file and kept", function()
    local path = write("c.jsonl", '{"content": "a", "n": 1}\n{"text": "no", "content": "b"}\n\n{"content": "  "}\n')
    assert.same({ "a", "b" }, all(path))
    assert.same({ "q" }, all(write("q.ndjson", '{"q": "q", "a": "b"}'), { text_column = "q" }))
  end)

  it("may hold a chat", function()
    local line = '{"messages": [{"role": "user", "content": "Hi"}, {"from": "gpt", "value": "Yo"}, "raw", {"x": 1}]}\n'
    assert.same({ "user: Hi\n\ngpt: Yo\n\nraw" }, all(write("chat.jsonl", line)))
  end)
end)

describe("bad files", function()
  it("are named, with the line", function()
    local good = '{"text": "a"}\n'
    refused("bad1.jsonl:3: not a JSON object", all, write("bad1.jsonl", good .. good .. "{nonsense\n"))
    refused("bad2.jsonl:4: not a JSON object", all, write("bad2.jsonl", good .. "\n" .. good .. "12\n"))
    refused("bad3.jsonl:2: column 'text' holds no text", all, write("bad3.jsonl", good .. '{"text": 5}\n'))
    refused("bad4.jsonl:2: column 'text' holds no text", all, write("bad4.jsonl", good .. '{"other": "x"}\n'))
    refused("bad5.jsonl:1: no column 'body'", all, write("bad5.jsonl", good), { text_column = "body" })
    refused("bad6.jsonl:1: the row has no columns", all, write("bad6.jsonl", "{}\n"))
    refused("bad7.jsonl:1:", all, write("bad7.jsonl", "[1, 2]\n"))
    refused("bad8.jsonl:1: column 'text' holds no text", all, write("bad8.jsonl", '{"text": null}\n'))
    refused("bad9.jsonl:1: not a JSON object", all, write("bad9.jsonl", ("["):rep(100000)))
  end)

  it("or missing, or of another kind", function()
    local documents, message = sl.text.documents(dir .. "/none.txt")
    assert.is_nil(documents)
    assert.truthy(message:find("none.txt", 1, true))
    documents, message = sl.text.documents(write("x.parquet", "PAR1"))
    assert.is_nil(documents)
    assert.truthy(message:find("cannot read '.parquet' files", 1, true))
    refused('unknown option "column"', sl.text.documents, dir, { column = "x" })
  end)
end)

describe("folders", function()
  it("are read in the order of names, all the way down", function()
    local folder = dir .. "/tree"
    assert(sl.fs.mkdir(folder .. "/m"))
    program.write(folder .. "/z.txt", "last\n")
    program.write(folder .. "/a.jsonl", '{"content": "first"}\n')
    program.write(folder .. "/m/b.txt", "middle\nmore\n")
    program.write(folder .. "/m/ignored.csv", "no\n")
    program.write(folder .. "/b.txt", "")
    assert.same({ "first", "middle", "more", "last" }, all(folder))
  end)

  it("without text are refused", function()
    local folder = dir .. "/none"
    assert(sl.fs.mkdir(folder))
    local documents, message = sl.text.documents(folder)
    assert.is_nil(documents)
    assert.truthy(message:find("no .txt or .jsonl file in this folder", 1, true))
  end)
end)

describe("standard input", function()
  local code = [[local documents, why = require("saelua").text.documents "-"
    if not documents then print(why) return end
    for d in documents do print("<" .. d .. ">") end]]
  local function read(text) return program.run { "-e", code, stdin = text } end

  it("is text, or JSON Lines when its first line is an object", function()
    assert.equal("<one>\n<two>\n", read("one\n\ntwo\n").out)
    assert.equal("<a>\n<b>\n", read('{"body": "a"}\n{"body": "b"}\n').out)
    assert.equal("<{not json>\n", read("{not json\n").out)
    assert.equal("standard input is empty\n", read("").out)
    local bad = read('{"body": "a"}\n{\n')
    assert.equal(1, bad.status)
    assert.truthy(bad.err:find("standard input:2: not a JSON object", 1, true))
  end)
end)
