-- Tensors from Lua: making them, positions from 1, views, copies, values, scopes, what is refused and how.
local sl = require "saelua"

local function message_of(fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  return message
end

local function refused(pattern, fn, ...)
  local message = message_of(fn, ...)
  if not message:find(pattern) then error(("message %q lacks %q"):format(message, pattern), 2) end
end

local function count(n, ...) return sl.arange(n, { dtype = "f32" }):reshape(...) end

describe("making tensors", function()
  it("from tables, of every dtype", function()
    local t = sl.tensor { { 1, 2, 3 }, { 4, 5, 6.5 } }
    assert.same({ 2, 3 }, t:shape())
    assert.same({ { 1, 2, 3 }, { 4, 5, 6.5 } }, t:totable())
    for _, dtype in ipairs { "f32", "bf16", "f16", "i64", "i32", "u8" } do
      local x = sl.tensor({ 0, 1, 100 }, { dtype = dtype })
      assert.equal(dtype, x:dtype())
      assert.same({ 0, 1, 100 }, x:totable())
    end
    assert.equal(7.5, sl.tensor(7.5):item())
    assert.same({ 2, 0 }, sl.tensor({ {}, {} }):shape())
    assert.same({}, sl.tensor({}):totable())
  end)

  it("refuses ragged and foreign tables", function()
    refused("rows differ in length at dimension 2", sl.tensor, { { 1, 2 }, { 3 } })
    refused("rows differ", sl.tensor, { { 1 }, 2 })
    refused("expected numbers, got a table", sl.tensor, { 1, { 2 } })
    refused("expected numbers, got a string", sl.tensor, "x")
    refused("expected numbers", sl.tensor, { "1" })
    refused("expected numbers", sl.tensor)
    local loop = {}
    loop[1] = loop
    refused("nest at most", sl.tensor, loop)
  end)

  it("refuses numbers that an integer dtype cannot hold", function()
    for _, case in ipairs { { 256, "u8" }, { -1, "u8" }, { 1.5, "i32" }, { 2 ^ 31, "i32" }, { 0 / 0, "i64" },
      { 1 / 0, "i64" }, { 2 ^ 63, "i64" } } do
      refused("not a value of " .. case[2], sl.tensor, { case[1] }, { dtype = case[2] })
      refused("not a value of " .. case[2], sl.full, { 1 }, case[1], { dtype = case[2] })
      refused("not a value of " .. case[2], function() sl.zeros({ 1 }, { dtype = case[2] }):set(1, case[1]) end)
    end
    refused("not a value of u8", sl.arange, 257, { dtype = "u8" })
    assert.equal(-2 ^ 31, sl.tensor({ -2 ^ 31 }, { dtype = "i32" }):get(1))
  end)

  it("filled and random ones", function()
    assert.same({ { 0, 0 } }, sl.zeros({ 1, 2 }):totable())
    assert.same({ 1, 1 }, sl.ones({ 2 }, { dtype = "i64" }):totable())
    assert.same({ -3, -3 }, sl.full({ 2 }, -3):totable())
    assert.same({ 0, 1, 2 }, sl.arange(3):totable())
    assert.equal(0, sl.arange(0):numel())
    local u = sl.rand({ 10000 }, { seed = 3, low = -2, high = 4 })
    assert.is_true(u:min():item() >= -2 and u:max():item() < 4 and math.abs(u:mean():item() - 1) < 0.1)
    local n = sl.randn({ 10000 }, { seed = 3, mean = 5, std = 2 })
    assert.is_true(math.abs(n:mean():item() - 5) < 0.1)
    assert.is_true(math.abs((n - 5):square():mean():item() - 4) < 0.3)
    local i = sl.randint({ 1000 }, { bound = 7, seed = 1 }):to "f32"
    assert.equal(0, i:min():item())
    assert.equal(6, i:max():item())
    assert.same(sl.rand({ 5 }, { seed = 1, step = 2 }):totable(), sl.rand({ 5 }, { seed = 1, step = 2 }):totable())
    assert.are_not.same(sl.rand({ 5 }, { seed = 1 }):totable(), sl.rand({ 5 }, { seed = 1, stream = 1 }):totable())
  end)

  it("refuses options that would be ignored, and shapes that are none", function()
    refused("unknown option 'seed'", sl.zeros, { 2 }, { seed = 1 })
    refused("unknown option 'dtype'", sl.rand, { 2 }, { dtype = "f16" }) -- the numbers are float32
    refused("unknown option 'std'", sl.rand, { 2 }, { std = 1 })
    refused("unknown option 'dtype'", sl.randint, { 2 }, { bound = 3, dtype = "u8" })
    refused("did you mean 'device'", sl.ones, { 2 }, { devise = "cpu" })
    refused("'bound' must be", sl.randint, { 2 }, {})
    refused("dtype: 'f8' is not one of f32", sl.zeros, { 2 }, { dtype = "f8" })
    refused("device 'tpu' is unknown", sl.zeros, { 2 }, { device = "tpu" })
    refused("negative", sl.zeros, { -1 })
    refused("too large", sl.zeros, { 2 ^ 40, 2 ^ 40 })
    refused("too large", sl.zeros, { 0, 2 ^ 40, 2 ^ 40 })
    refused("made of integers", sl.zeros, { 1.5 })
    refused("made of integers", sl.zeros, { 1e300 })
    refused("made of integers", sl.zeros, { 0 / 0 })
    refused("made of integers; size 2 is a string", sl.zeros, { 1, "2" })
    refused("out of memory", sl.zeros, { 2 ^ 50 })
    refused("dimensions", sl.zeros, { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 })
  end)
end)

describe("positions", function()
  it("count from 1, in every method", function()
    local t = count(12, 3, 4)
    assert.equal(0, t:get(1, 1))
    assert.equal(11, t:get(3, 4))
    assert.same({ 4, 5, 6, 7 }, t[2]:totable())
    assert.same({ 1, 5, 9 }, t:select(2, 2):totable())
    assert.equal(6, t[2][3]:item())
    assert.same({ { 4, 5, 6, 7 }, { 8, 9, 10, 11 } }, t:slice(1, 2):totable())
    assert.same({ { 1, 2 }, { 5, 6 }, { 9, 10 } }, t:slice(2, 2, 3):totable())
    assert.same({ { 8, 9, 10, 11 } }, t:slice(1, -1):totable())
    assert.same({ { 0, 1, 2 }, { 4, 5, 6 }, { 8, 9, 10 } }, t:slice(2, 1, -2):totable())
    assert.same({ 0, 4 }, t:slice(1, 2, 1):shape()) -- empty
    assert.same({ 0, 4 }, t:slice(1, 4):shape())
    assert.equal(3, t:size(1))
    assert.same({ 3, 4 }, { t:size() })
    assert.same({ 12, 15, 18, 21 }, t:sum(1):totable())
    assert.same({ { 6 }, { 22 }, { 38 } }, t:sum(2, true):totable())
    assert.same({ { 0, 4, 8 }, { 1, 5, 9 }, { 2, 6, 10 }, { 3, 7, 11 } }, t:transpose():totable())
  end)

  it("outside are refused", function()
    local t = count(12, 3, 4)
    for _, call in ipairs {
      function() return t[0] end, function() return t[4] end, function() return t[1.5] end,
      function() return t[0 / 0] end, function() return t:get(0, 1) end, function() return t:get(1, 5) end,
      function() return t:get(1) end, function() return t:size(3) end, function() return t:size(0) end,
      function() return t:slice(0, 1) end, function() return t:slice(1, 0, 9) end,
      function() return t:select(1, -1) end, function() return t:sum(3) end, function() return t:transpose(1, 3) end,
      function() return t:set(1, 1) end, function() return sl.tensor(1)[1] end,
    } do assert.is_false((pcall(call))) end
    assert.is_nil(t.no_such_method)
  end)

  it("write through views", function()
    local t = count(6, 2, 3)
    t:transpose():set(3, 1, 42)
    assert.equal(42, t:get(1, 3))
    t[2]:zero_()
    assert.same({ { 0, 1, 42 }, { 0, 0, 0 } }, t:totable())
    t:slice(2, 1, 2):copy_(sl.tensor { { 7, 8 }, { 9, 10 } })
    assert.same({ { 7, 8, 42 }, { 9, 10, 0 } }, t:totable())
    local s = count(9, 3, 3)
    assert.same({ { 0, 3, 6 }, { 1, 4, 7 }, { 2, 5, 8 } }, s:copy_(s:transpose()):totable())
    refused("expanded", function() sl.zeros({ 1, 3 }):expand(2, 3):copy_(sl.ones { 2, 3 }) end)
  end)
end)

describe("shapes and conversions", function()
  it("reshape", function()
    local t = count(12, 3, 4)
    assert.same({ 2, 6 }, t:reshape(2, -1):shape())
    assert.same({ 2, 6 }, t:reshape({ 2, 6 }):shape())
    assert.same({ 0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11 }, t:transpose():reshape(-1):totable())
    refused("12 elements, %[5 x 3%] needs 15", t.reshape, t, 5, 3)
    refused("does not divide", t.reshape, t, -1, 5)
    refused("reshape", t.reshape, t, -1, -1)
    refused("must not be negative", t.reshape, t, -2, 6)
    refused("reshape", t.reshape, t, 2 ^ 52, 2 ^ 52, -1)
    refused("reshape", t.reshape, t, 0, -1)
  end)

  it("expand, contiguous, clone, detach", function()
    local row = sl.tensor { { 1, 2 } }
    assert.same({ { 1, 2 }, { 1, 2 }, { 1, 2 } }, row:expand(3, 2):totable())
    refused("does not broadcast", row.expand, row, 2, 3)
    refused("negative", row.expand, row, -3, 2)
    local turned = count(6, 2, 3):transpose()
    assert.is_false(turned:is_contiguous())
    assert.is_true(turned:contiguous():is_contiguous())
    local a = sl.ones { 2 }
    local b = a:clone()
    a:zero_()
    assert.same({ 1, 1 }, b:totable())
    assert.same({ 0, 0 }, a:detach():totable())
  end)

  it("to", function()
    local t = sl.tensor { 1.5, -2.25 }
    assert.equal(t, t:to "f32")
    assert.same({ 1.5, -2.25 }, t:to("bf16"):to("f16"):to("f32"):totable())
    refused("dtype: 'int' is not one of", t.to, t, "int")
    refused("cuda", t.to, t, "cuda:12")
  end)

  it("item", function()
    assert.equal(3, sl.tensor({ { 3 } }):item())
    refused("exactly one element", function() sl.zeros({ 2 }):item() end)
    refused("exactly one element", function() sl.zeros({ 0 }):item() end)
  end)
end)

describe("errors name the operation and the shapes", function()
  local a, b = sl.zeros { 32, 768 }, sl.zeros { 512, 30 }
  for name, case in pairs {
    matmul = { "matmul: a %[32 x 768%], b %[512 x 30%]: inner sizes 768 and 512", function() a:matmul(b) end },
    add = { "add: a %[32 x 768%] and b %[512 x 30%] do not broadcast", function() return a + b end },
    topk = { "topk: k = 31", function() b:topk(31) end },
    copy = { "copy: the destination is f32 %[32 x 768%].*%[512 x 30%]", function() a:copy_(b) end },
    cat = { "concat", function() sl.concat({ a, b }, 1) end },
    type = { "Tensor expected, got string", function() a:matmul("x") end },
    nothing = { "concat: takes 1 to", function() sl.concat({}, 1) end },
  } do
    it(name, function() refused(case[1], case[2]) end)
  end

  it("with the line of the recipe", function()
    assert.truthy(message_of(function() return a + b end):find("tensor_spec.lua:%d+:"))
  end)
end)

describe("printing", function()
  it("shows shape, range and corners", function()
    local text = tostring(count(400, 20, 20))
    assert.truthy(text:find("tensor [20 x 20] f32 cpu  min 0  mean 199.5  max 399", 1, true))
    assert.truthy(text:find("...", 1, true))
    assert.truthy(text:find("399%s*$"))
    assert.truthy(tostring(sl.tensor { 0 / 0, 1 }):find("(1 not finite)", 1, true))
    assert.truthy(tostring(sl.zeros { 0, 3 }):find("[0 x 3]", 1, true))
    assert.truthy(tostring(sl.tensor(2)):find("tensor %[%] f32"))
    assert.is_true(#tostring(count(100000, 100, 1000)) < 2000)
  end)

  it("of a freed one", function()
    local t = sl.ones { 2 }
    t:free()
    t:free()
    assert.equal("tensor (freed)", tostring(t))
    for _, method in ipairs { "shape", "item", "sum", "totable", "clone", "clear_grad", "dim" } do
      refused("the tensor was freed", function() return t[method](t) end)
    end
    refused("the tensor was freed", function() return t + 1 end)
    refused("the tensor was freed", function() return sl.ones { 2 } * t end)
  end)

  it("does not take other userdata for tensors", function()
    refused("Tensor expected", sl.zeros({ 1 }).item, io.stdout)
    refused("Tensor expected", sl.matmul, sl.tape(), sl.zeros { 1, 1 })
    refused("Tensor expected", sl.keep, io.stdout)
  end)
end)

describe("scopes", function()
  local function alive(t) return (pcall(t.dim, t)) end

  it("free what was made inside, except what is returned or kept", function()
    local inner, kept, stored
    local result, number = sl.scope(function()
      inner = sl.ones { 2 }
      kept = sl.keep(sl.ones { 3 })
      stored = { sl.ones { 4 } }
      return inner + 1, 7
    end)
    assert.equal(7, number)
    assert.is_true(alive(result))
    assert.same({ 2, 2 }, result:totable())
    assert.is_true(alive(kept))
    assert.is_false(alive(inner))
    assert.is_false(alive(stored[1])) -- a table keeps the box, not the tensor
  end)

  it("nest; what an inner one returns belongs to the outer one", function()
    local a, b, outer
    local kept = sl.scope(function()
      outer = sl.ones { 1 }
      a = sl.scope(function()
        b = sl.ones { 1 }
        return b * 2
      end)
      assert.is_true(alive(a))
      assert.is_false(alive(b))
      assert.is_true(alive(outer))
      return sl.scope(function() return outer end) -- handed through: twice in the outer list
    end)
    assert.is_false(alive(a))
    assert.is_true(alive(kept))
    assert.equal(1, kept:item())
  end)

  it("keep reaches through all scopes, also for what came in from outside", function()
    local made, passed
    sl.scope(function()
      passed = sl.ones { 1 }
      sl.scope(function() return passed end)
      sl.scope(function()
        made = sl.ones { 2 }
        sl.keep(made)
        sl.keep(passed)
      end)
      assert.is_true(alive(made))
    end)
    assert.is_true(alive(made))
    assert.is_true(alive(passed))
    assert.equal(passed, sl.keep(passed)) -- outside every scope: nothing to do
  end)

  it("free also when the function raises, and pass the error on", function()
    local t
    local value = { "an error object" }
    local ok, err = pcall(sl.scope, function()
      t = sl.ones { 1 }
      sl.scope(function() error(value) end)
    end)
    assert.is_false(ok)
    assert.equal(value, err)
    assert.is_false(alive(t))
    local after = sl.ones { 1 } -- no scope is open any more
    sl.scope(function() end)
    assert.is_true(alive(after))
  end)

  it("by hand: begin_scope, end_scope", function()
    local scope = sl.begin_scope()
    local a = sl.ones { 1 }
    local forgotten = sl.begin_scope() -- never ended
    local b = sl.ones { 1 }
    sl.end_scope(scope)
    assert.is_false(alive(a))
    assert.is_true(alive(b)) -- left to the collector
    local c = sl.ones { 1 }
    assert.is_true(alive(c))
    sl.end_scope(forgotten)
    assert.is_false(alive(b))
    -- ending one whose outer scope has ended leaves that one innermost; end it again to be outside
    sl.end_scope(scope)
    local d = sl.ones { 1 }
    sl.scope(function() end)
    assert.is_true(alive(d))
  end)

  it("trust nothing that a list may hold", function()
    local scope = sl.begin_scope()
    scope[1], scope[2], scope[3] = 1, io.stdout, "x"
    assert.is_true((pcall(sl.end_scope, scope)))
    assert.is_true((pcall(sl.end_scope, {})))
    assert.equal("file", io.type(io.stdout))
    refused("table expected", sl.end_scope, 1)
    refused("function expected", sl.scope, {})
  end)

  it("unscoped: what is made there stays", function()
    local inside, after, err
    sl.scope(function()
      inside = sl.unscoped(function()
        local t = sl.ones { 1 }
        sl.scope(function() t:add(1) end) -- a scope of its own still works
        return t
      end)
      after = sl.ones { 1 }
      local _
      _, err = pcall(sl.unscoped, function() error("out", 0) end)
    end)
    assert.equal("out", err)
    assert.is_true(alive(inside))
    assert.is_false(alive(after))
  end)

  it("hold no memory", function()
    sl.trim()
    local before = sl.memory()
    for _ = 1, 50 do
      sl.scope(function()
        local x = sl.rand { 64, 64 }
        for _ = 1, 20 do x = x:matmul(x):tanh() end
      end)
      pcall(sl.scope, function()
        local x = sl.rand { 64, 64 }
        return x:matmul(sl.rand { 3, 3 })
      end)
    end
    local now = sl.memory() -- before any collection
    assert.equal(before.tensors, now.tensors)
    assert.equal(before.tensor_bytes, now.tensor_bytes)
  end)
end)
