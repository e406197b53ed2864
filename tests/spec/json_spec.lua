-- JSON: deterministic and exact out, precise complaints in.
local json = require "saelua.json"

describe("json.encode", function()
  it("sorts keys, so that equal tables give equal text", function()
    assert.equal('{"a":1,"b":[1,2,3],"c":{"x":true}}', json.encode { c = { x = true }, b = { 1, 2, 3 }, a = 1 })
    assert.equal('{"z":1,"a":2}', json.encode({ a = 2, z = 1 }, { order = { "z" } }))
  end)

  it("writes numbers that read back as the same double", function()
    for _, x in ipairs { 0.1, 1 / 3, 1e-300, 1.7976931348623157e308, 5e-324, 2 ^ 53, -123456789.123456789, math.pi } do
      assert.equal(x, tonumber(json.encode(x)))
      assert.equal(x, json.decode(json.encode { x })[1])
    end
    assert.equal("0.1", json.encode(0.1))
    assert.equal("1000000", json.encode(1e6))
    assert.equal("0", json.encode(-0.0))
  end)

  it("writes NaN, infinities and json.null as null", function()
    assert.equal("[null,null,null,null]", json.encode { 0 / 0, math.huge, -math.huge, json.null })
  end)

  it("escapes control characters, quotes and backslashes and keeps UTF-8", function()
    local text = 'a"b\\c\n\t\1\127é'
    assert.equal('"a\\"b\\\\c\\n\\t\\u0001\\u007fé"', json.encode(text))
    assert.equal(text, json.decode("[" .. json.encode(text) .. "]")[1])
  end)

  it("tells empty arrays from empty objects", function()
    assert.equal("{}", json.encode {})
    assert.equal("[]", json.encode(json.array()))
  end)

  it("indents objects and keeps lists of scalars on one line", function()
    assert.equal('{\n  "a": [1, 2],\n  "b": {\n    "c": "x"\n  }\n}',
      json.encode({ b = { c = "x" }, a = { 1, 2 } }, { indent = 2 }))
  end)

  it("refuses what JSON cannot hold", function()
    assert.has_error(function() json.encode(print) end, "json.encode: a function has no JSON form")
    assert.has_error(function() json.encode { 1, 2, x = 3 } end)
    local cycle = {}
    cycle.self = cycle
    assert.has_error(function() json.encode(cycle) end, "json.encode: a table contains itself")
    local shared = {}
    assert.equal('{"a":{},"b":{}}', json.encode { a = shared, b = shared })
  end)
end)

describe("json.decode", function()
  it("reads values and keeps null visible", function()
    local value = json.decode '{"a": [1, {"b": null}], "c": "\\u00e9"}'
    assert.equal(1, value.a[1])
    assert.equal(json.null, value.a[2].b)
    assert.equal("é", value.c)
  end)

  it("names file, line and column of a mistake", function()
    local value, message = json.decode('{\n  "a": 1,\n  "b": oops\n}', "my.json")
    assert.is_nil(value)
    assert.truthy(message:find("my.json: line 3, column 8: ", 1, true), message)
  end)

  it("returns nil and the path for a file that is not there", function()
    local value, message, code = json.read("/nowhere/at/all.json")
    assert.is_nil(value)
    assert.truthy(message:find("/nowhere/at/all.json", 1, true))
    assert.equal(2, code)
  end)

  it("refuses numbers that JSON does not know", function()
    assert.is_nil((json.decode "[NaN]"))
    assert.is_nil((json.decode "[0x10]"))
  end)
end)

describe("json.write", function()
  it("replaces a file as a whole and reads back", function()
    local path = os.tmpname()
    assert.is_true(json.write(path, { k = 32, list = { 1, 2 } }))
    assert.same({ k = 32, list = { 1, 2 } }, json.read(path))
    assert.is_true(json.write(path, { k = 33 }))
    assert.same({ k = 33 }, json.read(path))
    os.remove(path)
  end)

  it("fails with a message and leaves nothing behind", function()
    local ok, message = json.write("/nowhere/at/all.json", {})
    assert.is_nil(ok)
    assert.truthy(message:find("/nowhere/at/all.json", 1, true))
  end)
end)
