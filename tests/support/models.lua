-- Shared by the model specs: fixtures, comparisons, messages and warnings.
local sl = require "saelua"

local M = {}

M.FIXTURES = "tests/parity/fixtures/bert_"

function M.difference(a, b) return (a - b):abs():max():item() end

function M.load(name, options)
  return sl.model.load(M.FIXTURES .. name, options), assert(sl.load_tensors(M.FIXTURES .. name .. ".safetensors"))
end

function M.message_of(fn, ...)
  local ok, message = pcall(fn, ...)
  assert(not ok, "an error was expected")
  return message
end

-- Warnings of one call, as a list.
function M.warnings_of(fn)
  local list, kept = {}, sl.model.warn
  sl.model.warn = function(message) list[#list + 1] = message end
  local ok, result = pcall(fn)
  sl.model.warn = kept
  if not ok then error(result, 0) end
  return list, result
end

return M
