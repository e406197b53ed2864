-- metrics.jsonl: exact numbers, torn lines, resuming.
local metrics = require "saelua.metrics"
local program = require "tests.support.program"

local dir, path
before_each(function()
  dir = program.folder()
  path = dir .. "/metrics.jsonl"
end)
after_each(function() require("saelua.host").remove_tree(dir) end)

describe("a metrics writer", function()
  it("writes one object a line, step first, NaN as null, and flushes", function()
    local writer = assert(metrics.open(path))
    assert.is_true(writer:write { loss = 0.1, step = 1, l0 = 32 })
    assert.is_true(writer:write { step = 2, loss = 0 / 0, fvu = 1 / 3, sae = "resid" })
    assert.equal('{"step":1,"l0":32,"loss":0.1}\n{"step":2,"fvu":0.3333333333333333,"loss":null,"sae":"resid"}\n',
      program.read(path))
    assert.is_true(writer:close())
    assert.is_true(writer:close())
    assert.has_error(function() writer:write { step = 3 } end)
  end)

  it("starts an empty file unless told to resume", function()
    program.write(path, '{"step":1}\n')
    assert(metrics.open(path)):close()
    assert.equal("", program.read(path))
  end)

  it("cuts what came after the point of resumption, and a torn last line", function()
    program.write(path, '{"step":1,"loss":0.5}\n{"step":1,"sae":"b"}\n{"step":2,"loss":0.40000000000000002}\n'
      .. '{"step":3,"loss":0.3}\n{"step":4,"lo')
    local writer = assert(metrics.open(path, { resume_step = 2 }))
    assert(writer:write { step = 3, loss = 0.25 })
    writer:close()
    assert.equal('{"step":1,"loss":0.5}\n{"step":1,"sae":"b"}\n{"step":2,"loss":0.40000000000000002}\n'
      .. '{"step":3,"loss":0.25}\n', program.read(path))
  end)

  it("resumes where there was no file yet", function()
    local writer = assert(metrics.open(path, { resume_step = 5 }))
    writer:close()
    assert.equal("", program.read(path))
  end)

  it("returns nil and a message when the world fails", function()
    local writer, message, code = metrics.open(dir .. "/none/metrics.jsonl")
    assert.is_nil(writer)
    assert.truthy(message:find("none/metrics.jsonl", 1, true), message)
    assert.equal(2, code)
    program.write(path, '{"step":1}\nnonsense\n')
    writer, message = metrics.open(path, { resume_step = 2 })
    assert.is_nil(writer)
    assert.truthy(message:find("metrics.jsonl:2: line 1, column 1: ", 1, true), message)
    assert.equal('{"step":1}\nnonsense\n', program.read(path))
  end)

  it("tells of a full disk", function()
    local file = io.open("/dev/full", "w")
    if not file then return pending "no /dev/full here" end
    local writer = assert(metrics.open(path))
    writer.file:close()
    writer.file = file
    local ok, message, code = writer:write { step = 1 }
    assert.is_nil(ok)
    assert.truthy(message:find("No space left", 1, true), message)
    assert.equal(28, code)
  end)
end)

describe("metrics.read", function()
  it("gives the records back and leaves a torn last line out", function()
    program.write(path, '{"step":1,"loss":0.5}\n{"step":2}\n{"st')
    local records = metrics.read(path)
    assert.equal(2, #records)
    assert.equal(0.5, records[1].loss)
  end)

  it("names the line that is no object", function()
    program.write(path, '{"step":1}\n3\n')
    local records, message = metrics.read(path)
    assert.is_nil(records)
    assert.truthy(message, "metrics.jsonl:2")
  end)
end)
