--- Schedules: functions of the 0-based step, built from smaller ones.
--
--    local lr = schedule.warmup(1000, schedule.cosine(3e-4, 9000))
--    lr(0), lr(999), lr(5000)
--
-- A schedule has no state, so a resumed run continues it by asking for the next step. Wherever an inner
-- schedule is expected, a number (constant) or any function of the step will do. `tostring` shows how one
-- was built. Formulas: SAELens 6 (`get_lr_scheduler`) and sparsify 1.3 where named.
-- @module saelua.schedule
local strict = require "saelua.strict"

local schedule = {}

local Schedule = {}
Schedule.__index = Schedule
Schedule.__call = function(self, step) return self.at(step) end
Schedule.__tostring = function(self) return self.text end

-- A schedule from a function of the step and the text that shows how it was built.
local function build(text, at)
  local name = text:match("^[%w_]+")
  return setmetatable({
    text = text,
    at = function(step)
      if type(step) ~= "number" or step < 0 or step % 1 ~= 0 then
        error(("schedule %s: a 0-based whole step expected, got %s"):format(name, tostring(step)), 2)
      end
      return at(step)
    end,
  }, Schedule)
end

local function check_number(name, what, value)
  if type(value) ~= "number" or value ~= value or math.abs(value) == math.huge then
    error(("schedule.%s: %s: a finite number expected, got %s"):format(name, what, tostring(value)), 3)
  end
  return value
end

local function check_count(name, what, value, least)
  least = least or 0
  if type(value) ~= "number" or value % 1 ~= 0 or value < least then
    error(("schedule.%s: %s: a whole number >= %d expected, got %s"):format(name, what, least, tostring(value)), 3)
  end
  return value
end

local function check_inner(name, inner)
  if type(inner) == "number" then return schedule.constant(inner) end
  if getmetatable(inner) == Schedule then return inner end
  if type(inner) == "function" then return build("custom", inner) end
  error(("schedule.%s: a schedule, number or function of the step expected, got %s"):format(name, type(inner)), 3)
end

local function format(pattern, ...)
  local values = { ... }
  for i, value in ipairs(values) do
    values[i] = type(value) == "number" and ("%.10g"):format(value) or tostring(value)
  end
  return pattern:format(unpack(values))
end

--- The same value at every step.
-- @tparam number value
-- @treturn schedule
function schedule.constant(value)
  check_number("constant", "value", value)
  return build(format("constant(%s)", value), function() return value end)
end

--- A straight line: `from` at step 0, `to` at step `steps` and after.
-- @tparam number from
-- @tparam number to
-- @tparam integer steps 1 or more
-- @treturn schedule
function schedule.linear(from, to, steps)
  check_number("linear", "from", from)
  check_number("linear", "to", to)
  check_count("linear", "steps", steps, 1)
  return build(format("linear(%s, %s, %s)", from, to, steps), function(t)
    if t >= steps then return to end
    return from + (to - from) * (t / steps)
  end)
end

--- Half a cosine from `peak` at step 0 to `final` at step `steps` and after:
-- `final + (peak - final) (1 + cos(pi t / steps)) / 2`.
-- @tparam number peak
-- @tparam integer steps 1 or more
-- @tparam[opt] table options `final` (0)
-- @treturn schedule
function schedule.cosine(peak, steps, options)
  check_number("cosine", "peak", peak)
  check_count("cosine", "steps", steps, 1)
  local final = check_number("cosine", "final", strict.options("schedule.cosine", options, { final = 0 }).final)
  return build(format("cosine(%s, %s, final=%s)", peak, steps, final), function(t)
    if t >= steps then return final end
    return final + (peak - final) * (1 + math.cos(math.pi * t / steps)) / 2
  end)
end

--- Cosines that start again at `peak`, each `floor(steps / cycles)` long. A remainder starts one more, as
-- SAELens does; from step `steps` on the value is `final`.
-- @tparam number peak
-- @tparam integer steps
-- @tparam[opt] table options `cycles` (1), `final` (0)
-- @treturn schedule
function schedule.cosine_restarts(peak, steps, options)
  check_number("cosine_restarts", "peak", peak)
  check_count("cosine_restarts", "steps", steps, 1)
  options = strict.options("schedule.cosine_restarts", options, { cycles = 1, final = 0 })
  local cycles = check_count("cosine_restarts", "cycles", options.cycles, 1)
  local final = check_number("cosine_restarts", "final", options.final)
  if cycles > steps then
    error(("schedule.cosine_restarts: %d cycles do not fit into %d steps"):format(cycles, steps), 2)
  end
  local period = math.floor(steps / cycles)
  local text = format("cosine_restarts(%s, %s, cycles=%s, final=%s)", peak, steps, cycles, final)
  return build(text, function(t)
    if t >= steps then return final end
    return final + (peak - final) * (1 + math.cos(math.pi * (t % period) / period)) / 2
  end)
end

--- Rises linearly to the inner schedule's first value, then follows it: inner step = t - steps.
-- Two dialects: SAELens' `(t + 1) / steps` (the default: the first update already moves) and sparsify's
-- `t / steps` (`from_zero = true`: the first update has rate 0).
-- @tparam integer steps 0 or more
-- @tparam schedule inner
-- @tparam[opt] table options `from_zero` (false)
-- @treturn schedule
function schedule.warmup(steps, inner, options)
  check_count("warmup", "steps", steps)
  inner = check_inner("warmup", inner)
  local from_zero = strict.options("schedule.warmup", options, { from_zero = false }).from_zero
  local target = inner(0)
  local ahead = from_zero and 0 or 1
  local text = format("warmup(%s, %s%s)", steps, inner, from_zero and ", from_zero=true" or "")
  return build(text, function(t)
    if t < steps then return target * ((t + ahead) / steps) end
    return inner(t - steps)
  end)
end

--- Follows `inner` until `decay_steps` before the end, then goes linearly to 0; 0 from `steps` on.
-- With v = t - (steps - decay_steps): `inner(steps - decay_steps) (1 - v / decay_steps)`.
-- @tparam integer steps length of the whole run
-- @tparam integer decay_steps 0 or more, at most `steps`
-- @tparam schedule inner
-- @treturn schedule
function schedule.final_decay(steps, decay_steps, inner)
  check_count("final_decay", "steps", steps, 1)
  check_count("final_decay", "decay_steps", decay_steps)
  inner = check_inner("final_decay", inner)
  if decay_steps > steps then
    error(("schedule.final_decay: %d decay steps do not fit into %d steps"):format(decay_steps, steps), 2)
  end
  local begin = steps - decay_steps
  return build(format("final_decay(%s, %s, %s)", steps, decay_steps, inner), function(t)
    if t < begin then return inner(t) end
    if decay_steps == 0 then return inner(t) end
    if t >= steps then return 0 end
    return inner(begin) * (1 - (t - begin) / decay_steps)
  end)
end

--- One schedule after another, each with its own step count from 0; the last one needs no length.
-- @tparam table parts list of `{ schedule, steps }`, the last `{ schedule }` or a schedule
-- @treturn schedule
function schedule.sequence(parts)
  if type(parts) ~= "table" or #parts == 0 then
    error("schedule.sequence: a list of { schedule, steps } expected", 2)
  end
  local inner, starts, texts, start = {}, {}, {}, 0
  for i, part in ipairs(parts) do
    local bare = type(part) ~= "table" or getmetatable(part) == Schedule
    inner[i] = check_inner("sequence", bare and part or part[1])
    starts[i] = start
    local steps = not bare and part[2] or nil
    if i < #parts then start = start + check_count("sequence", ("steps of part %d"):format(i), steps, 1) end
    texts[i] = steps and format("{%s, %s}", inner[i], steps) or tostring(inner[i])
  end
  return build("sequence(" .. table.concat(texts, ", ") .. ")", function(t)
    local i = #inner
    while starts[i] > t do i = i - 1 end
    return inner[i](t - starts[i])
  end)
end

--- An inner schedule times a factor.
-- @tparam number factor
-- @tparam schedule inner
-- @treturn schedule
function schedule.scaled(factor, inner)
  check_number("scaled", "factor", factor)
  inner = check_inner("scaled", inner)
  return build(format("scaled(%s, %s)", factor, inner), function(t) return factor * inner(t) end)
end

-- Rounds half to even, as Python's round does.
local function round_half_even(x)
  local low = math.floor(x)
  local rest = x - low
  if rest > 0.5 or (rest == 0.5 and low % 2 == 1) then return low + 1 end
  return low
end

--- sparsify's k decay: `round(k0 (1 - t / steps) + k t / steps)`, half to even; `k` from `steps` on.
-- sparsify takes k0 = min(latents, 10 d_in), and applies the value of step t - 1 to batch t (it recomputes k
-- after the update): give it `math.max(0, t - 1)` to repeat that.
-- @tparam integer k0 active latents at step 0
-- @tparam integer k active latents at the end
-- @tparam integer steps 0 = no decay
-- @treturn schedule
function schedule.k_decay(k0, k, steps)
  check_count("k_decay", "k0", k0, 1)
  check_count("k_decay", "k", k, 1)
  check_count("k_decay", "steps", steps)
  return build(format("k_decay(%s, %s, %s)", k0, k, steps), function(t)
    if t >= steps then return k end
    return round_half_even(k0 * (1 - t / steps) + k * t / steps)
  end)
end

--- SAELens' warm-up of a sparsity coefficient: `value min(t / steps, 1)`, exactly 0 at step 0.
-- @tparam number value
-- @tparam integer steps 0 = no warm-up
-- @treturn schedule
function schedule.l1_warmup(value, steps)
  check_number("l1_warmup", "value", value)
  check_count("l1_warmup", "steps", steps)
  return build(format("l1_warmup(%s, %s)", value, steps), function(t)
    if t >= steps then return value end
    return value * (t / steps)
  end)
end

--- sparsify's learning rate: `lr t / warmup` up to `warmup`, then linearly to 0 at `total` optimiser steps.
-- @tparam number lr
-- @tparam integer warmup steps (sparsify's default is 1000)
-- @tparam integer total optimiser steps (sparsify counts batches here, and so decays too little)
-- @treturn schedule
function schedule.sparsify(lr, warmup, total)
  check_number("sparsify", "lr", lr)
  check_count("sparsify", "warmup", warmup)
  check_count("sparsify", "total", total, 1)
  return build(format("sparsify(%s, %s, %s)", lr, warmup, total), function(t)
    if t < warmup then return lr * (t / math.max(1, warmup)) end
    return lr * math.max(0, (total - t) / math.max(1, total - warmup))
  end)
end

--- SAELens' learning rate in one call: warm-up, a body, a final decay to 0.
-- @tparam table options `lr`, `steps` (whole run) required; `name` ("constant", "cosineannealing",
--   "cosineannealingwarmrestarts"), `lr_end` (lr / 10), `warmup` (0), `decay` (0), `cycles` (1)
-- @treturn schedule
function schedule.saelens(options)
  options = strict.options("schedule.saelens", options, {
    lr = strict.required, steps = strict.required, name = "constant", lr_end = strict.optional,
    warmup = 0, decay = 0, cycles = 1,
  })
  local lr, final = options.lr, options.lr_end or check_number("saelens", "lr", options.lr) / 10
  local body = check_count("saelens", "steps", options.steps, 1) - options.warmup - options.decay
  if body < 1 then error("schedule.saelens: warmup + decay leave no step in between", 2) end
  local bodies = {
    constant = function() return schedule.constant(lr) end,
    cosineannealing = function() return schedule.cosine(lr, body, { final = final }) end,
    cosineannealingwarmrestarts = function()
      return schedule.cosine_restarts(lr, body, { final = final, cycles = options.cycles })
    end,
  }
  local make = bodies[options.name]
  if not make then
    local suggest = require "saelua.suggest"
    local hint = suggest.hint(tostring(options.name), suggest.keys(bodies))
    error(('schedule.saelens: unknown name "%s"%s'):format(tostring(options.name), hint), 2)
  end
  if final == 0 and options.decay > 0 and options.name ~= "constant" then
    error("schedule.saelens: lr_end = 0 leaves nothing to decay; give decay = 0", 2)
  end
  return schedule.final_decay(options.steps, options.decay, schedule.warmup(options.warmup, make()))
end

local auto_rules = { adam = 2e-4, adam8bit = 2e-4, signum = 5e-3 }

--- sparsify's rule for an unset learning rate: adam 2e-4, signum 5e-3, each over sqrt(latents / 2^14); muon 2e-3.
-- @tparam string optimizer adam, adam8bit, signum or muon; sgd has no rule and raises
-- @tparam integer latents width of the dictionary
-- @treturn number
function schedule.auto_lr(optimizer, latents)
  check_count("auto_lr", "latents", latents, 1)
  if optimizer == "muon" then return 2e-3 end
  local base = auto_rules[optimizer]
  if not base then
    error(('schedule.auto_lr: no rule for optimizer "%s"; give a learning rate (--lr)'):format(tostring(optimizer)), 2)
  end
  return base / math.sqrt(latents / 2 ^ 14)
end

return schedule
