-- The operations of decoder-only models from Lua: options, shapes, refusals. Their numbers are checked in tests/unit.
local sl = require "saelua"

local function refused(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  if not tostring(message):find(pattern) then error(("message %q lacks %q"):format(message, pattern), 2) end
end

local function close(got, want, tolerance)
  local a, b = got:contiguous():reshape(-1):totable(), want:contiguous():reshape(-1):totable()
  assert.equal(#b, #a)
  for i = 1, #a do
    assert.near(b[i], a[i], tolerance or 1e-5)
  end
end

describe("rms_norm", function()
  local x = sl.rand({ 3, 8 }, { seed = 1, low = -1 })
  local w = sl.rand({ 8 }, { seed = 2 })
  local function by_hand(s, scale, eps) return s / ((s * s):mean(2, true) + eps):sqrt() * scale end

  it("divides by the root of the mean square", function()
    close(sl.rms_norm(x, w), by_hand(x, w, 1e-6))
    close(sl.rms_norm(x, w, { eps = 0.5, offset = 1 }), by_hand(x, w + 1, 0.5))
    close(sl.rms_norm(x, w, { residual = x }), by_hand(x + x, w, 1e-6))
  end)

  it("has gradients", function()
    local leaf = sl.rand({ 8 }, { seed = 3 }):requires_grad_()
    sl.tape():start()
    sl.rms_norm(x, leaf, { offset = 1 }):sum():backward()
    close(leaf:grad(), by_hand(x, 1, 1e-6):sum(1))
  end)

  it("refuses what it does not know", function()
    refused("unknown option 'epsilon'; did you mean 'eps'", sl.rms_norm, x, w, { epsilon = 1 })
    refused("weight of shape %[8%]", sl.rms_norm, x, x)
  end)
end)

describe("rotary", function()
  local x = sl.rand({ 2, 3, 8 }, { seed = 1, low = -1 })

  it("turns pairs by position times frequency", function()
    local y = sl.rotary(x, { heads = 1, base = 100 }):totable()
    local input = x:totable()
    for b = 1, 2 do
      for t = 1, 3 do
        for i = 1, 4 do
          local angle = (t - 1) * 100 ^ (-2 * (i - 1) / 8)
          local first, second = input[b][t][i], input[b][t][i + 4]
          assert.near(first * math.cos(angle) - second * math.sin(angle), y[b][t][i], 1e-6)
          assert.near(second * math.cos(angle) + first * math.sin(angle), y[b][t][i + 4], 1e-6)
        end
      end
    end
  end)

  it("takes positions, frequencies, pairs and a width", function()
    local positions = sl.tensor({ 5, 6, 9 }, { dtype = "i32" })
    local frequencies = sl.tensor { 0.5 }
    local options = { heads = 2, width = 2, pairs = "adjacent", positions = positions, frequencies = frequencies }
    local got, input = sl.rotary(x, options):totable(), x:totable()
    local angle = 9 * 0.5
    for _, at in ipairs { 1, 5 } do
      local first, second = input[2][3][at], input[2][3][at + 1]
      assert.near(first * math.cos(angle) - second * math.sin(angle), got[2][3][at], 1e-6)
      assert.equal(input[2][3][at + 2], got[2][3][at + 2]) -- beyond the width
    end
  end)

  it("refuses what makes no sense", function()
    refused("'quarter' is not one of half, adjacent", sl.rotary, x, { pairs = "quarter" })
    refused("unknown option 'theta'", sl.rotary, x, { theta = 1 })
    refused("3 columns of a head of 8", sl.rotary, x, { width = 3 })
  end)
end)

describe("gated", function()
  local g = sl.rand({ 3, 4 }, { seed = 1, low = -3, high = 3 })
  local u = sl.rand({ 3, 4 }, { seed = 2 })

  it("multiplies an activation with the other side, in two tensors or two halves", function()
    close(sl.gated(g, u), g:silu() * u)
    close(sl.gated(sl.concat({ g, u }, 2)), g:silu() * u)
    for _, name in ipairs { "gelu", "gelu_tanh", "relu" } do close(sl.gated(g, u, name), g[name](g) * u) end
  end)

  it("refuses what it does not know", function()
    refused("'swish' is not one of gelu, gelu_tanh, silu, relu", sl.gated, g, u, "swish")
    refused("rows of odd length", sl.gated, sl.zeros { 2, 3 })
  end)
end)

describe("attention", function()
  local q = sl.rand({ 2, 5, 8 }, { seed = 1, low = -1 })
  local k = sl.rand({ 2, 5, 4 }, { seed = 2, low = -1 })
  local v = sl.rand({ 2, 5, 4 }, { seed = 3, low = -1 })

  it("shares key heads as if they were repeated", function()
    local function doubled(x) -- heads a, b -> a, a, b, b
      local a, b = x:slice(3, 1, 2), x:slice(3, 3, 4)
      return sl.concat({ a, a, b, b }, 3)
    end
    close(sl.attention(q, k, v, { heads = 4, kv_heads = 2, causal = true }),
          sl.attention(q, doubled(k), doubled(v), { heads = 4, causal = true }))
  end)

  it("with a causal window of one key hands that value on", function()
    close(sl.attention(q:slice(3, 1, 4), k, v, { heads = 2, causal = true, window = 1 }), v)
  end)

  it("with a small cap weighs all keys nearly alike", function()
    local y = sl.attention(q:slice(3, 1, 4), k, v, { heads = 2, soft_cap = 1e-4 })
    close(y, v:mean(2, true) * sl.ones { 1, 5, 1 }, 1e-3)
  end)

  it("refuses what makes no sense", function()
    refused("kv_heads = 3", sl.attention, q, k, v, { heads = 4, kv_heads = 3 })
    refused("window = %-1", sl.attention, q, q, q, { heads = 4, window = -1 })
    refused("unknown option 'softcap'; did you mean 'soft_cap'", sl.attention, q, q, q, { softcap = 1 })
  end)
end)
