-- The text of `recipe.lua --help`, from the recipe's own declarations and opening comment. Internal: see saelua.config.
local types = require "saelua.config_types"

local help = {}

-- Breaks text into lines of at most `width` characters at spaces.
local function wrap(text, width)
  local lines, line = {}, ""
  for word in text:gmatch("%S+") do
    if line ~= "" and #line + 1 + #word > width then
      lines[#lines + 1] = line
      line = word
    else
      line = line == "" and word or line .. " " .. word
    end
  end
  lines[#lines + 1] = line
  return lines
end

local function flag_text(option)
  local names = "--" .. option.name
  if option.alias then
    names = "-" .. option.alias .. ", " .. names
  elseif #option.name == 1 then
    names = "-" .. option.name .. ", " .. names
  end
  if option.type == "boolean" then return names .. ", --no-" .. option.name end
  return names .. " " .. types.metavariable(option)
end

-- "active latents per token; >= 1 (default 32)"
local function meaning_text(option)
  local text = option.help
  if not option.one_of and (option.min or option.max) then text = text .. ";" .. types.range(option) end
  if option.refuse then
    local refused = {}
    for value in pairs(option.refuse) do refused[#refused + 1] = tostring(value) end
    table.sort(refused)
    text = text .. "; not yet: " .. table.concat(refused, ", ")
  end
  return ("%s (default %s)"):format(text, types.show(option.default))
end

local function add_entry(out, left, text, width)
  local column = 30
  local lines = wrap(text, math.max(30, width - column))
  local head = "  " .. left
  if #head + 2 > column then
    out[#out + 1] = head
    head = ""
  end
  for i, line in ipairs(lines) do
    out[#out + 1] = (i == 1 and head or "") .. (" "):rep(column - (i == 1 and #head or 0)) .. line
  end
end

-- Groups in the order of their first option. An option without a group joins the one before it; those at the
-- beginning come under "Options".
local function groups_of(options)
  local order, members, group = {}, {}, "Options"
  for _, option in ipairs(options) do
    group = option.group or group
    if not members[group] then
      members[group] = {}
      order[#order + 1] = group
    end
    table.insert(members[group], option)
  end
  return order, members
end

local function usage(options, program)
  local places = {}
  for _, option in ipairs(options) do
    if option.positional then places[option.positional] = ("[%s]"):format(option.name:upper()) end
  end
  local words = { "Usage:", program }
  for _, place in ipairs(places) do words[#words + 1] = place end
  words[#words + 1] = "[options]"
  return table.concat(words, " ")
end

-- The whole help text.
-- @tparam table options the checked declarations, in order
-- @tparam table about `program` ("saelua recipes/x.lua"), `comment` (lines), `width` (columns)
-- @treturn string
function help.text(options, about)
  local out = {}
  for _, line in ipairs(about.comment) do out[#out + 1] = line end
  if #out > 0 then out[#out + 1] = "" end
  out[#out + 1] = usage(options, about.program)
  local order, members = groups_of(options)
  for _, group in ipairs(order) do
    out[#out + 1] = ""
    out[#out + 1] = group .. ":"
    for _, option in ipairs(members[group]) do
      add_entry(out, flag_text(option), meaning_text(option), about.width)
    end
  end
  out[#out + 1] = ""
  out[#out + 1] = "General:"
  add_entry(out, "--config_file FILE", "JSON object of options; the command line goes before it", about.width)
  add_entry(out, "--help", "this text", about.width)
  return table.concat(out, "\n")
end

return help
