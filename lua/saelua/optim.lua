--- Optimisers for parameters on the tape: models, and dictionaries written in Lua.
--
--    local optim = sl.optim.adam({ { "W", W }, { "b", b } }, { weight_decay = 0.01 })
--    loss:backward()
--    optim:clip(1.0)
--    optim:step(lr)          -- and drops the gradients
-- @module saelua.optim
local core = require "saelua.core"
local fs = require "saelua.fs"
local json = require "saelua.json"
local strict = require "saelua.strict"

local M = {}

local OPTIONS = {
  betas = { 0.9, 0.999 }, eps = 1e-8, weight_decay = 0, momentum = 0, decay_matrices_only = false,
}

-- The list may be { { name, tensor }, ... } or, as models give it, { { name =, tensor = }, ... }.
local function make(kind, parameters, options, where)
  local o = strict.options(where, options, OPTIONS, 2)
  local optim = core.optimizer(kind, {
    beta1 = o.betas[1], beta2 = o.betas[2], eps = o.eps, weight_decay = o.weight_decay, momentum = o.momentum,
  })
  for i, entry in ipairs(parameters) do
    local listed = type(entry) == "table"
    local name, tensor = listed and (entry.name or entry[1]), listed and (entry.tensor or entry[2])
    if type(name) ~= "string" or type(tensor) ~= "userdata" then
      error(("%s: parameter %d: { name, tensor } expected"):format(where, i), 3)
    end
    tensor:requires_grad_()
    optim:add(name, tensor, { decay = not o.decay_matrices_only or tensor:dim() >= 2 })
  end
  return optim
end

--- Adam with decoupled weight decay (AdamW; without decay it is plain Adam).
-- @tparam {{string,Tensor},...} parameters
-- @tparam[opt] table options `betas` ({ 0.9, 0.999 }), `eps` (1e-8), `weight_decay` (0), `decay_matrices_only` (false:
--   true exempts biases and norms)
-- @treturn Optimizer
function M.adam(parameters, options) return make("adamw", parameters, options, "optim.adam") end

--- Stochastic gradient descent with momentum.
-- @tparam {{string,Tensor},...} parameters
-- @tparam[opt] table options `momentum` (0), `weight_decay` (0, added to the gradient), `decay_matrices_only`
-- @treturn Optimizer
function M.sgd(parameters, options) return make("sgd", parameters, options, "optim.sgd") end

-- Checkpoints --------------------------------------------------------------------------------------------------

local methods = getmetatable(core.optimizer("sgd")).__index

--- Writes the state tensors and the step count.
-- @function Optimizer:save_state
-- @tparam string folder
-- @treturn ?boolean true, or nil and a message
function methods:save_state(folder)
  local state, steps = self:state()
  local ok, message = core.save_tensors(fs.join(folder, "optim.safetensors"), state)
  if not ok then return nil, message end
  return json.write(fs.join(folder, "optim.json"), { steps = steps })
end

--- Reads what save_state wrote.
-- @function Optimizer:load_state
-- @tparam string folder
-- @treturn ?boolean true, or nil and a message
function methods:load_state(folder)
  local numbers, why_not = M.read_counts(folder, { "steps" })
  if not numbers then return nil, why_not end
  local tensors, why = core.load_tensors(fs.join(folder, "optim.safetensors"))
  if not tensors then return nil, why end
  local ok, reason = M.restore(self:state(), tensors, folder .. "/optim.safetensors")
  if not ok then return nil, reason end
  self:set_steps(numbers.steps)
  return true
end

--- Reads `optim.json` and checks that these fields are counts.
-- @tparam string folder
-- @tparam {string,...} names
-- @treturn ?table or nil and a message
function M.read_counts(folder, names)
  local path = fs.join(folder, "optim.json")
  local numbers, message = json.read(path)
  if type(numbers) ~= "table" then return nil, message or path .. ": not an object" end
  for _, name in ipairs(names) do
    local value = numbers[name]
    if type(value) ~= "number" or value % 1 ~= 0 or value < 0 or value > 2 ^ 52 then
      return nil, ("%s: '%s' is missing or not a count"):format(path, name)
    end
  end
  return numbers
end

--- Copies saved tensors over live ones; all must be there, of equal shape and dtype.
-- @tparam {{string,Tensor},...} live
-- @tparam {[string]=Tensor} saved
-- @tparam string path for the message
-- @treturn ?boolean true, or nil and a message
function M.restore(live, saved, path)
  for _, entry in ipairs(live) do
    local name, target = entry[1], entry[2]
    local source = saved[name]
    if not source or source:dtype() ~= target:dtype()
      or table.concat(source:shape(), "x") ~= table.concat(target:shape(), "x") then
      return nil, ("%s: %s is missing, or not %s [%s]"):format(path, name, target:dtype(),
        table.concat(target:shape(), " x "))
    end
  end
  for _, entry in ipairs(live) do entry[2]:copy_(saved[entry[1]]:to(entry[2]:device())) end
  return true
end

return M
