-- Recipe options: types, sources and their order, messages, help.
local config = require "saelua.config"
local json = require "saelua.json"
local program = require "tests.support.program"

local function declarations()
  return {
    { "model", "bert-mini", "name or folder", positional = 1 },
    { "dataset", "storyworld", "name or file", positional = 2 },
    { "layers", { 2 }, "0-indexed layers", min = 0 },
    { "k", 32, "active latents", min = 1 },
    { "batch_size", 8, "sequences", alias = "b" },
    { "lr", nil, "learning rate", type = "number", min = 0, group = "Optimiser" },
    { "betas", { 0.9, 0.999 }, "moments", group = "Optimiser" },
    { "optimizer", "adam", "rule", one_of = { "adam", "sgd" }, group = "Optimiser",
      refuse = { muon = "arrives in a later release; use adam or sgd" } },
    { "log_to_wandb", false, "tracker", refuse = { ["true"] = "no tracker yet; see metrics.jsonl" } },
    { "tags", {}, "words", type = "strings" },
    { "normalize", true, "unit rows" },
    { "task_kwargs", { prime = 97, name = "add", deep = { x = 1 } }, "task" },
    { "extra", {}, "anything", type = "table" },
  }
end

local function parse(...) return config.parse(declarations(), { ... }) end

local function refused(expected, ...)
  local cfg, message, code = parse(...)
  assert.is_nil(cfg)
  assert.equal("bad argument", code)
  assert.equal(expected, message)
end

describe("values", function()
  it("are the defaults when nothing is given", function()
    local cfg = parse()
    assert.equal(32, cfg.k)
    assert.equal("bert-mini", cfg.model)
    assert.is_nil(cfg.lr)
    assert.same({ 2 }, cfg:to_table().layers)
    assert.is_false(cfg:given "k")
  end)

  it("come as --name value, --name=value, -n value and dashes for underscores", function()
    local cfg = parse("--k", "64", "--model=x=y", "-b", "4", "--optimizer", "sgd")
    assert.equal(64, cfg.k)
    assert.equal("x=y", cfg.model)
    assert.equal(4, cfg.batch_size)
    assert.equal("sgd", cfg.optimizer)
    assert.equal(16, parse("-k", "16").k)
    assert.equal(5, parse("--batch-size", "5").batch_size)
    assert.equal("command line", cfg:given "k")
  end)

  it("of whole numbers may be written 1e6 and 1_000_000", function()
    assert.equal(1000000, parse("--k", "1e6").k)
    assert.equal(1000000, parse("--k", "1_000_000").k)
  end)

  it("of numbers take exponents, signs and null", function()
    assert.equal(3.3e-4, parse("--lr", "3.3e-4").lr)
    assert.is_nil(parse("--lr", "1", "--lr", "null").lr)
    assert.same({ 0.5, -1 }, parse("--betas", "0.5", "-1").betas)
  end)

  it("of flags come as --x, --no-x, --x false and leave the next word alone", function()
    assert.is_false(parse("--no-normalize").normalize)
    assert.is_false(parse("--no_normalize").normalize)
    assert.is_false(parse("--normalize", "false").normalize)
    assert.is_true(parse("--no-normalize", "--normalize").normalize)
    assert.equal("m", parse("--normalize", "m").model)
  end)

  it("of lists come with spaces, commas or as JSON", function()
    assert.same({ 0, 1, 2 }, parse("--layers", "0", "1", "2").layers)
    assert.same({ 0, 1, 2 }, parse("--layers", "0,1,2", "--k", "3").layers)
    assert.same({ 3, 4 }, parse("--layers=[3, 4]").layers)
    assert.same({}, parse("--layers", "[]").layers)
    assert.same({ "a", "b" }, parse("--tags", "a", "b").tags)
  end)

  it("come by position where the recipe says so", function()
    local cfg = parse("MODEL", "DATA", "--k", "3")
    assert.equal("MODEL", cfg.model)
    assert.equal("DATA", cfg.dataset)
    refused('unexpected argument "c"; options are written --name value', "a", "b", "c")
  end)

  it("inside an object come with dots and keep their type", function()
    local cfg = parse("--task_kwargs.prime", "113", "--task_kwargs.deep.x=2", "--extra.free", "1.5",
      "--extra.name", "z")
    assert.same({ prime = 113, name = "add", deep = { x = 2 } }, cfg.task_kwargs)
    assert.same({ free = 1.5, name = "z" }, cfg.extra)
    assert.equal("12", parse("--task_kwargs.name", "12").task_kwargs.name)
    assert.equal(5, parse("--task_kwargs", '{"prime": 5}').task_kwargs.prime)
  end)

  it("do not leak from one parse into the next", function()
    local once = declarations()
    config.parse(once, { "--task_kwargs.prime", "1", "--layers", "7" })
    local cfg = config.parse(once, {})
    assert.equal(97, cfg.task_kwargs.prime)
    assert.same({ 2 }, cfg.layers)
  end)
end)

describe("bad arguments", function()
  it("name the option, what was expected, what came, and an example", function()
    refused('--k: expected a whole number >= 1, got "many"; for example: --k 32', "--k", "many")
    refused("--k: expected a whole number >= 1, got 0; for example: --k 32", "--k", "0")
    refused("--k: expected a whole number >= 1, got 1.5; for example: --k 32", "--k", "1.5")
    refused('--k: expected a whole number >= 1, got "0x10"; for example: --k 32', "--k", "0x10")
    refused('--lr: expected a number >= 0 (or null), got "nan"; for example: --lr 0.001', "--lr", "nan")
    refused('--layers: expected a list of whole numbers >= 0, got "x"; for example: --layers 2',
      "--layers", "1", "x")
    refused("--k: a value is missing: a whole number >= 1; for example: --k 32", "--k")
    refused("--k: a value is missing: a whole number >= 1; for example: --k 32", "--k", "--lr", "1")
    refused('--normalize: expected true or false, got "maybe"; for example: --normalize true',
      "--normalize=maybe")
    refused("--no-normalize: takes no value", "--no-normalize=1")
  end)

  it("hint at the nearest name or choice", function()
    refused('unknown option "--batchsize"; did you mean "batch_size"?', "--batchsize", "3")
    refused('--optimizer: expected one of adam, sgd, got "adma"; did you mean "adam"?', "--optimizer", "adma")
    refused('--task_kwargs: unknown name task_kwargs.prim; did you mean "prime"?', "--task_kwargs.prim", "3")
    local _, message = parse("--k.x", "3")
    assert.equal("--k.x: k takes a whole number >= 1, not named values", message)
  end)

  it("refuse by name what is not built yet", function()
    refused('--optimizer: "muon" is refused: arrives in a later release; use adam or sgd; '
      .. "for example: --optimizer adam",
      "--optimizer", "muon")
    refused("--log_to_wandb: true is refused: no tracker yet; see metrics.jsonl; for example: --log_to_wandb false",
      "--log_to_wandb")
  end)

  it("fail a recipe's own check", function()
    local function check(v, cfg) return v <= cfg.width, "k must not exceed width" end
    local list = { { "k", 32, "latents", check = check }, { "width", 64, "dictionary" } }
    assert.equal(64, config.parse(list, { "--k", "64" }).k)
    local _, message = config.parse(list, { "--k", "65" })
    assert.equal("--k 65: k must not exceed width", message)
  end)
end)

describe("a configuration file", function()
  local dir
  before_each(function() dir = program.folder() end)
  after_each(function() require("saelua.host").remove_tree(dir) end)

  local function with_file(text, ...)
    return parse("--config_file", program.write(dir .. "/my.json", text), ...)
  end

  it("lies between the defaults and the command line, wherever it is named", function()
    local cfg = with_file('{"k": 8, "layers": [1], "task_kwargs": {"prime": 5}, "lr": 0.5}', "--layers", "0")
    assert.equal(8, cfg.k)
    assert.same({ 0 }, cfg.layers)
    assert.equal(5, cfg.task_kwargs.prime)
    assert.equal("add", cfg.task_kwargs.name)
    assert.equal("file", cfg:given "k")
    assert.equal(9, parse("--k", "9", "--config_file=" .. dir .. "/my.json").k)
  end)

  it("reads back what to_json wrote", function()
    local cfg = parse("--lr", "0.1", "--tags", "x", "--layers", "[]")
    local again = with_file(cfg:to_json())
    assert.same(cfg:to_table(), again:to_table())
    local nulls = with_file('{"lr": null}')
    assert.is_nil(nulls.lr)
  end)

  it("is strict about names, types and form", function()
    local function complaint(expected, text)
      local cfg, message = with_file(text)
      assert.is_nil(cfg)
      assert.truthy(message:find(expected, 1, true), message)
    end
    complaint('my.json: unknown option "batchsize"; did you mean "batch_size"?', '{"batchsize": 3}')
    complaint('my.json: k: expected a whole number >= 1, got "3"', '{"k": "3"}')
    complaint("my.json: k: expected a whole number >= 1, got null", '{"k": null}')
    complaint("my.json: task_kwargs: unknown name task_kwargs.deep.y", '{"task_kwargs": {"deep": {"y": 1}}}')
    complaint("a JSON object of options expected", "[1]")
    complaint("my.json: line 1, column 7: ", '{"k": }')
    local _, message = parse("--config_file", dir .. "/none.json")
    assert.truthy(message:find("none.json", 1, true))
  end)
end)

describe("the configuration object", function()
  it("raises on unknown names and on assignment", function()
    local cfg = parse()
    local ok, message = pcall(function() return cfg.batchsize end)
    assert.is_false(ok)
    assert.truthy(message:find('config_spec.lua:%d+: '
      .. 'config: there is no option "batchsize"; did you mean "batch_size"?'))
    assert.has_error(function() cfg.k = 3 end)
    assert.has_error(function() cfg:given "nothing" end)
  end)

  it("writes JSON in the order of declaration, null for nil, [] for empty lists", function()
    local text = parse():to_json(0)
    assert.truthy(text:find('^{"model":"bert%-mini","dataset":"storyworld","layers":%[2%],"k":32,"batch_size":8,'
      .. '"lr":null'))
    assert.truthy(text:find('"tags":[]', 1, true))
    assert.equal(0.999, json.decode(text).betas[2])
  end)

  it("gives a table that the caller owns", function()
    local cfg = parse()
    cfg:to_table().layers[1] = 9
    assert.same({ 2 }, cfg.layers)
    assert.equal("model", cfg:names()[1])
  end)
end)

describe("declarations", function()
  local function misuse(expected, list)
    local ok, message = pcall(function() local cfg = config.parse(list, {}); return cfg end)
    assert.is_false(ok)
    assert.truthy(message:find(expected, 1, true), message)
    assert.truthy(message:find("config_spec.lua", 1, true), message)
  end

  it("are checked, with the recipe's position", function()
    misuse('k: unknown field "mim"; did you mean "min"', { k = { 3, "help", mim = 1 } })
    misuse('k: { default, "help", ... } expected', { k = 3 })
    misuse("the default shows none", { k = { nil, "help" } })
    misuse("the default does not fit: expected a whole number >= 5, got 3", { k = { 3, "help", min = 5 } })
    misuse('the name "to_json" is taken', { to_json = { 3, "help" } })
    misuse('"k" is declared twice', { { "k", 3, "help" }, { "k", 3, "help" } })
    misuse("-b stands for aa and for bb", { { "aa", 3, "help", alias = "b" }, { "bb", 3, "help", alias = "b" } })
    misuse("k: min: a number expected, got string", { k = { 3, "help", min = "1" } })
  end)
end)

describe("a recipe's options in the program", function()
  local dir
  local recipe = [===[
#!/usr/bin/env saelua
-- luacheck: ignore
-- Title of the recipe.
-- A second line of text.
local sl = { config = require "saelua.config" } -- config { zzz = { 0 } }
local cfg = sl.config {
  zeta  = { 1, "first { = } \" --", min = 0 },  -- a comment: alpha = { 3 }
  alpha = { false, "second", group = "Flags" },
  ["middle"] = nil,
  mid = { { 1 }, [=[third ]] ]=] },
}
for _, name in ipairs(cfg:names()) do io.write(name, " ") end
print(cfg.zeta)
]===]
  setup(function()
    dir = program.folder()
    program.write(dir .. "/recipe.lua", recipe)
  end)
  teardown(function() require("saelua.host").remove_tree(dir) end)

  it("keep the order of the source", function()
    local result = program.run { dir .. "/recipe.lua", "--zeta", "4" }
    assert.equal("", result.err)
    assert.equal("zeta alpha mid 4\n", result.out)
  end)

  it("--help shows comment, types, defaults and groups, and ends with 0", function()
    local result = program.run { "recipe.lua", "--help", folder = dir }
    assert.equal(0, result.status)
    for _, part in ipairs { "Title of the recipe.\nA second line of text.\n\nUsage: saelua recipe.lua [options]",
      "\n\nOptions:\n  --zeta INTEGER ", [[first { = } " --; >= 0 (default 1)]],
      "\n\nFlags:\n  --alpha, --no-alpha         second (default false)\n  --mid INTEGER ... ",
      "--config_file FILE" } do
      assert.truthy(result.out:find(part, 1, true), part .. "\nnot in\n" .. result.out)
    end
  end)

  it("bad ones end with 2 and say where help is", function()
    local result = program.run { "recipe.lua", "--zet", "4", folder = dir }
    assert.equal(2, result.status)
    assert.equal('saelua: recipe.lua: unknown option "--zet"; did you mean "zeta"?\n'
      .. "saelua: see 'saelua recipe.lua --help'\n", result.err)
    assert.equal("", result.out)
  end)
end)
