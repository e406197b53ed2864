--- Counter-based random numbers for storyworld, in integer arithmetic only.
--
-- A draw is a pure function of (key, counter): nothing depends on the platform, on `math.random` or on what
-- was drawn elsewhere, so document i of a corpus is the same text on every machine and can be made without
-- its predecessors. The mixer is Chris Wellons' `lowbias32` finaliser (public domain), used twice with a
-- 64-bit key so that distinct documents do not collide. This is for choosing words; it is no generator for
-- cryptography.
-- @module saelua.storyworld.rng

local bit = require "bit"
local band, bxor, rshift, lshift, tobit = bit.band, bit.bxor, bit.rshift, bit.lshift, bit.tobit
local floor = math.floor

local rng = {}

-- Low 32 bits of a*b. Splitting `a` in halves keeps every product below 2^48, where doubles are exact and
-- where bit.tobit is defined (it is not beyond 2^51).
local function mul32(a, b)
  local low = band(a, 0xffff) * b
  local high = rshift(a, 16) * b
  return tobit(low + lshift(tobit(high), 16))
end

local function mix(x)
  x = bxor(x, rshift(x, 16))
  x = mul32(x, 0x7feb352d)
  x = bxor(x, rshift(x, 15))
  x = mul32(x, 0x846ca68b)
  return bxor(x, rshift(x, 16))
end

-- A non-negative integer below 2^53 as two 32-bit words.
local function split(n)
  local high = floor(n / 4294967296)
  return tobit(n - high * 4294967296), tobit(high)
end

--- Make the key of one document.
-- @tparam integer seed corpus seed, 0 <= seed < 2^53
-- @tparam integer index document index, 0 <= index < 2^53
-- @treturn integer first key word (signed 32-bit)
-- @treturn integer second key word (signed 32-bit)
function rng.key(seed, index)
  local s0, s1 = split(seed)
  local i0, i1 = split(index)
  local a = mix(tobit(mix(tobit(s0 + 0x3c6ef372)) + s1))
  local k0 = mix(bxor(mix(tobit(a + i0)), i1))
  local k1 = mix(tobit(mix(bxor(a, 0x5bd1e995)) + mix(tobit(i0 + 0x1b873593)) + lshift(i1, 1)))
  return k0, k1
end

--- Draw number `counter` of a stream.
-- @tparam integer k0 first key word
-- @tparam integer k1 second key word
-- @tparam integer counter which draw, 0-based
-- @tparam integer n number of outcomes, 1 <= n <= 2^20
-- @treturn integer 0 .. n-1; the bias of the multiply-and-shift is below n / 2^32
function rng.draw(k0, k1, counter, n)
  local x = mix(bxor(mix(tobit(k0 + counter * 0x9e3779b9 % 4294967296)), k1))
  if x < 0 then x = x + 4294967296 end
  return floor(x * n / 4294967296)
end

return rng
