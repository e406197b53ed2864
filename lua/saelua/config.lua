--- A recipe's options: one declaration gives flags, JSON keys, types, defaults, checks and help.
--
--    local cfg = sl.config {
--      model  = { "bert-mini", "built-in name or local directory" },
--      layers = { { 2 }, "0-indexed layers to train on", min = 0 },
--      k      = { 32, "active latents per token", min = 1, alias = "k" },
--      lr     = { nil, "learning rate; null = by rule", type = "number", group = "Optimiser" },
--    }
--
-- An option is `{ default, help, fields... }`; fields: `type` (string, integer, number, boolean, integers,
-- numbers, strings, table; found from the default when it shows one: 32 is an integer, so say
-- `type = "number"` for a whole default of a real option), `nilable` (follows from a default of nil or `sl.null`),
-- `one_of` (list), `min`, `max`, `check` (function(value, cfg) -> true, or false and why), `refuse` (value -> why it
-- is not available), `alias` (one letter), `group` (a heading of --help, also for the options that follow),
-- `positional` (1, 2, ...), `example`.
-- `{ { "name", default, help }, ... }` fixes an order where the source text cannot be read.
--
-- Sources, later ones win: defaults, `--config_file FILE` (JSON, strict keys), the command line (`--k 32`, `--k=32`,
-- `-k 32`, `--flag`, `--no-flag`, `--layers 0 1 2`, `--task.prime 113`). Bad arguments end the program with status 2.
-- @module saelua.config
local declare = require "saelua.config_declare"
local source = require "saelua.config_source"
local strict = require "saelua.strict"
local suggest = require "saelua.suggest"
local types = require "saelua.config_types"

local config = {}

local Config = {}

-- The state of one parse: values, and where each came from.
local function new_state(options)
  local state = { options = options, values = {}, given = {} }
  for _, option in ipairs(options.list) do state.values[option.name] = option.default end
  return state
end

local function known_flags(options)
  local names = { "help", "config_file" }
  for _, option in ipairs(options.list) do names[#names + 1] = option.name end
  return names
end

-- Raised inside a parse and caught at its end: the message for the user.
local function refuse(text, ...) error({ bad_argument = text:format(...) }, 0) end

-- "--k: reason; for example: --k 32"; a reason that ends with a hint needs no example.
local function with_example(option, reason)
  local text = ("--%s: %s"):format(option.name, reason)
  return text:find("%?$") and text or ("%s; for example: %s"):format(text, types.example(option))
end

local function set(state, option, value, ok, reason)
  if not ok then refuse("%s", with_example(option, reason)) end
  state.values[option.name] = value
  state.given[option.name] = "command line"
end

local function apply_file(state, path)
  local object, message = require("saelua.json").read(path)
  if message then refuse("--config_file: %s", message) end
  if type(object) ~= "table" or #object > 0 then
    refuse("--config_file: %s: a JSON object of options expected", path)
  end
  for _, name in ipairs(suggest.keys(object)) do
    local option = state.options.by_name[name]
    if not option then
      refuse('%s: unknown option "%s"%s', path, name, suggest.hint(name, known_flags(state.options)))
    end
    local value, ok, reason = types.check(option, object[name], state.values[name])
    if not ok then refuse("%s: %s: %s", path, name, reason) end
    state.values[name] = value
    state.given[name] = "file"
  end
end

local function is_flag(word) return word:find("^%-%-?[%a_]") ~= nil or word == "--" end

-- The option behind "--name", "--no-name" or "-n"; also the names after a dot.
local function find_option(state, word)
  local options = state.options
  local letter = word:match("^%-(%a)$")
  if letter then
    local option = options.by_alias[letter]
    if option then return option end
    refuse("unknown option -%s%s", letter, suggest.hint(letter, known_flags(options)))
  end
  local name, inside = word:gsub("^%-%-?", ""):match("^([^.]*)%.?(.*)$")
  name = name:gsub("-", "_")
  local option = options.by_name[name]
  if option and word:find("^%-%-") then
    if inside == "" then return option end
    if option.type == "table" then return option, inside end
    refuse("--%s.%s: %s takes %s, not named values", name, inside, name, types.expected(option))
  end
  local negated = options.by_name[name:match("^no_(.+)$") or name:match("^no(.+)$") or ""]
  if negated and negated.type == "boolean" then return negated, nil, true end
  refuse('unknown option "%s"%s', word, suggest.hint(name, known_flags(options)))
end

-- The words that belong to the flag at `at`: its "=text", or what follows.
local function words_of(option, args, at, text)
  if text then return { text }, at end
  local words = {}
  if option.type == "boolean" then
    local follower = args[at + 1]
    if follower and types.is_boolean_text(follower) then return { follower }, at + 1 end
    return { "true" }, at
  end
  while args[at + 1] and not is_flag(args[at + 1]) do
    at = at + 1
    words[#words + 1] = args[at]
    if not types.is_list(option.type) then break end
  end
  if #words == 0 then refuse("%s", with_example(option, ("a value is missing: %s"):format(types.expected(option)))) end
  return words, at
end

-- One flag with its values; returns the index of the last word used.
local function apply_flag(state, args, at)
  local word, text = args[at]:match("^(%-%-?[^=]+)=(.*)$")
  word = word or args[at]
  local option, inside, negated = find_option(state, word)
  if negated then
    if text then refuse("%s: takes no value", word) end
    set(state, option, types.check(option, false))
    return at
  end
  local words
  words, at = words_of(option, args, at, text)
  local current = state.values[option.name]
  if inside then
    local path = {}
    for name in inside:gmatch("[^.]+") do path[#path + 1] = name end
    set(state, option, types.read_inside(option, path, words[1], current))
  else
    set(state, option, types.read(option, words, current))
  end
  return at
end

-- Words outside flags go to the options declared `positional`.
local function apply_positional(state, word, index)
  for _, option in ipairs(state.options.list) do
    if option.positional == index then
      set(state, option, types.read(option, { word }, state.values[option.name]))
      return
    end
  end
  refuse('unexpected argument "%s"; options are written --name value', word)
end

-- Takes "--config_file FILE" and "--help" out of the arguments.
local function split_general(args)
  local rest, files, at = {}, {}, 1
  while at <= #args do
    local word = args[at]
    local path = word:match("^%-%-config[_-]file=(.*)$")
    if word:find("^%-%-config[_-]file$") then
      at = at + 1
      path = args[at]
      if not path then refuse("--config_file: a value is missing: the path of a JSON file") end
    end
    if path then
      files[#files + 1] = path
    elseif word == "--help" or word == "-h" then
      return nil
    else
      rest[#rest + 1] = word
    end
    at = at + 1
  end
  return rest, files
end

-- The config.json files of run folders that the arguments name through options with `config_folder`.
local function files_of_folders(state, args)
  local found = {}
  for _, option in ipairs(state.options.list) do
    for at, word in ipairs(option.config_folder and args or {}) do
      local flag = "%-%-" .. option.name
      local folder = word:match("^" .. flag .. "=(.+)$") or word:find("^" .. flag .. "$") and args[at + 1]
      if folder then
        local fs = require "saelua.fs"
        local path = fs.join(folder, "config.json")
        -- a checkpoint of the run, <run>/checkpoints/<step>
        if not fs.exists(path) then path = fs.join(fs.dirname(fs.dirname((folder:gsub("/+$", "")))), "config.json") end
        if not fs.exists(path) then
          refuse("--%s %s: no run there; expected a folder with config.json", option.name, folder)
        end
        found[#found + 1] = path
      end
    end
  end
  return found
end

local function apply(state, args)
  local rest, files = split_general(args)
  if not rest then return "help" end
  for _, path in ipairs(files_of_folders(state, rest)) do apply_file(state, path) end
  for _, path in ipairs(files) do apply_file(state, path) end
  local at, places = 1, 0
  local flags = true
  while at <= #rest do
    local word = rest[at]
    if flags and word == "--" then
      flags = false
    elseif flags and is_flag(word) then
      at = apply_flag(state, rest, at)
    else
      places = places + 1
      apply_positional(state, word, places)
    end
    at = at + 1
  end
end

local function copy(value)
  if type(value) ~= "table" then return value end
  local result = setmetatable({}, getmetatable(value))
  for key, item in pairs(value) do result[key] = copy(item) end
  return result
end

--- A plain table of all values (nil ones are absent); the caller owns it.
-- @function cfg:to_table
-- @treturn table
function Config.to_table(self) return copy(debug.getmetatable(self).state.values) end

--- JSON text of all values, in the order of declaration; `--config_file` reads it back.
-- @function cfg:to_json
-- @tparam[opt=2] integer indent 0 = one line
-- @treturn string
function Config.to_json(self, indent)
  local json = require "saelua.json"
  local state = debug.getmetatable(self).state
  local values, order = copy(state.values), {}
  for i, option in ipairs(state.options.list) do
    order[i] = option.name
    if values[option.name] == nil then values[option.name] = json.null end
  end
  return json.encode(values, { indent = indent or 2, order = order })
end

--- Where a value came from: "command line", "file", or false for the default.
-- @function cfg:given
-- @tparam string name
-- @treturn string|boolean
function Config.given(self, name)
  local state = debug.getmetatable(self).state
  if not state.options.by_name[name] then
    error(('config: there is no option "%s"%s'):format(tostring(name),
      suggest.hint(tostring(name), known_flags(state.options))), 2)
  end
  return state.given[name] or false
end

--- The options' names in the order of declaration.
-- @function cfg:names
-- @treturn {string,...}
function Config.names(self)
  local names = {}
  for i, option in ipairs(debug.getmetatable(self).state.options.list) do names[i] = option.name end
  return names
end

-- The read-only face of the values.
local function proxy(state)
  local meta = { state = state, __metatable = "saelua.config" }
  function meta.__index(_, name)
    if state.options.by_name[name] then return state.values[name] end
    if Config[name] then return Config[name] end
    local hint = suggest.hint(tostring(name), known_flags(state.options))
    error(('config: there is no option "%s"%s'):format(tostring(name), hint), 2)
  end
  function meta.__newindex(_, name)
    error(("config: options are read-only; put a changed %s into a local variable"):format(tostring(name)), 2)
  end
  function meta.__tostring(self) return Config.to_json(self) end
  return setmetatable({}, meta)
end

local function run_checks(state, cfg)
  for _, option in ipairs(state.options.list) do
    local value = state.values[option.name]
    if option.check and value ~= nil then
      local ok, reason = option.check(value, cfg)
      if ok == false then
        refuse("--%s %s: %s", option.name, types.show(value), tostring(reason or "refused by the recipe's check"))
      end
    end
  end
end

--- Parses arguments against declarations, without ending the program.
-- @tparam table declarations as for `sl.config`
-- @tparam {string,...} args
-- @tparam[opt] table context `source` (the recipe's text: order and help come from it), `program`, `width`
-- @treturn ?table cfg; or nil, message, code: "bad argument", or "help" with the help text as the message
function config.parse(declarations, args, context)
  context = strict.options("config.parse", context,
    { source = strict.optional, program = "saelua", width = 100, level = 1 })
  local reserved = { help = true, config_file = true }
  for name in pairs(Config) do reserved[name] = true end
  local options, problem = declare.compile(declarations, context.source, reserved)
  if not options then error(problem, context.level + 1) end
  local state = new_state(options)
  local cfg = proxy(state)
  local ok
  ok, problem = pcall(function()
    if apply(state, args) == "help" then return "help" end
    run_checks(state, cfg)
  end)
  if not ok then
    if type(problem) == "table" and problem.bad_argument then return nil, problem.bad_argument, "bad argument" end
    error(problem, 0)
  end
  if problem == "help" then
    local comment = context.source and source.head_comment(context.source) or {}
    local about = { program = context.program, comment = comment, width = context.width }
    return nil, require("saelua.config_help").text(state.options.list, about), "help"
  end
  return cfg
end

-- The text of the file that a function at `level` was loaded from.
local function source_of(level)
  local info = debug.getinfo(level + 1, "S")
  local path = info and info.source:match("^@(.*)$")
  return path and require("saelua.fs").read(path) or nil, path
end

--- `sl.config { ... }`: parses the program's arguments (`arg`). Prints the help and ends with status 0 on `--help`;
-- prints what is wrong and ends with status 2 on bad arguments.
-- @function config
-- @tparam table declarations
-- @treturn table cfg: read-only; an unknown name raises
setmetatable(config, {
  __call = function(_, declarations)
    local console = require "saelua.console"
    local text, path = source_of(2)
    local program = path and "saelua " .. path or "saelua"
    local args = rawget(_G, "arg") or {}
    local cfg, message, code = config.parse(declarations, args,
      { source = text, program = program, width = math.min(console.width(), 120), level = 2 })
    if cfg then return cfg end
    if code == "help" then
      io.stdout:write(message, "\n")
      os.exit(0, true)
    end
    console.cleanup()
    io.stderr:write("saelua: ", path and path .. ": " or "", message, "\n")
    if path then io.stderr:write("saelua: see 'saelua ", path, " --help'\n") end
    os.exit(2, true)
  end,
})

return config
