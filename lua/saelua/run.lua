--- A run: its folder, its metrics, its checkpoints, its progress.
--
--    local run = sl.run.start(cfg, { recipe = "topk_bert", steps = 500, tokens_per_step = 4096 })
--    run:track("sae", unit)                   -- has save_state(folder) and load_state(folder)
--    for step in run:steps() do               -- step counts from 0; tensors made inside are freed after each round
--      ...
--      run:log({ loss = ..., fvu = ... }, "layers.2.resid_post")
--    end
--    run:finish()
--
-- The folder `<save_dir>/<run_name>` holds `config.json` (the options: `--config_file` of it repeats the run),
-- `run.json` (version, machine, times), `metrics.jsonl`, `checkpoints/<step>/` and what the recipe writes.
-- Ctrl-C and SIGTERM save a checkpoint and end with status 130 and 143.
-- @module saelua.run
local core = require "saelua.core"
local fs = require "saelua.fs"
local host = require "saelua.host"
local json = require "saelua.json"
local strict = require "saelua.strict"
local console = require "saelua.console"

local M = {}

local Run = {}
Run.__index = Run

-- Options that may differ between a checkpoint and the run that resumes it: they change no number, or (device) only the
-- last bits.
local FREE_OPTIONS = {
  resume = true, save_dir = true, run_name = true, save_every = true, log_every = true,
  keep_checkpoints = true, memory_budget = true, device = true,
}

local function fail(message, ...) error(select("#", ...) > 0 and message:format(...) or message, 0) end

local function check(ok, message)
  if not ok then fail("%s", message) end
  return ok
end

-- Starting -----------------------------------------------------------------------------------------------------

-- A folder name that is free; one that the user gave by name must be.
local function free_folder(save_dir, name, given)
  local folder = fs.join(save_dir, name)
  if not fs.exists(folder) then return folder end
  if given then
    fail("%s exists already: choose another --run_name, continue it with --resume %s, or remove it", folder, folder)
  end
  local n = 2
  while fs.exists(folder .. "-" .. n) do n = n + 1 end
  return folder .. "-" .. n
end

local function newest_checkpoint(folder)
  local names = fs.list(fs.join(folder, "checkpoints")) or {}
  local best
  for _, name in ipairs(names) do
    local step = name:match("^%d+$") and tonumber(name)
    if step and (not best or step > best) then best = step end
  end
  return best and fs.join(folder, "checkpoints", tostring(best)), best
end

-- The run folder and checkpoint folder behind --resume: a run folder, or one of its checkpoints.
local function resume_point(path)
  path = path:gsub("/+$", "")
  if fs.exists(fs.join(path, "state.json")) then
    return fs.dirname(fs.dirname(path)), path
  end
  local checkpoint = newest_checkpoint(path)
  if not checkpoint then
    fail("--resume %s: no checkpoint there; expected a run folder with checkpoints/<step>/ or one such folder", path)
  end
  return path, checkpoint
end

-- An empty list reads back from JSON as an empty table.
local function same(a, b)
  if type(a) == "table" and type(b) == "table" and next(a) == nil and next(b) == nil then return true end
  return json.encode(a) == json.encode(b)
end

-- Every option that shapes the numbers must be what it was.
local function check_options(path, before, now)
  local wrong = {}
  for name, value in pairs(now) do
    if not FREE_OPTIONS[name] and not same(before[name], value) then
      wrong[#wrong + 1] = ("%s was %s, is %s"):format(name, json.encode(before[name]), json.encode(value))
    end
  end
  table.sort(wrong)
  if #wrong > 0 then
    fail("--resume %s: the checkpoint is of another configuration (%s). Give the same options, or start a new run",
      path, table.concat(wrong, "; "))
  end
end

local function read_state(checkpoint)
  local state, message = json.read(fs.join(checkpoint, "state.json"))
  if type(state) ~= "table" then fail("cannot resume: %s", message or (checkpoint .. "/state.json: not an object")) end
  if state.format ~= 1 or type(state.step) ~= "number" or type(state.options) ~= "table" then
    fail("cannot resume: %s/state.json: not a saelua checkpoint of format 1", checkpoint)
  end
  return state
end

-- Reading a number waits for a GPU, and its steps are short: there only every tenth is logged.
local function default_log_every(device) return (device or "cpu") == "cpu" and 1 or 10 end

local START_OPTIONS = { recipe = strict.required, steps = strict.required, tokens_per_step = strict.required }

--- Plans (or, with `cfg.resume`, reopens) a run. Its folder is made by `run:steps`, so that a mistake found before
-- training leaves nothing behind; that `save_dir` can be written is checked here.
-- @tparam Config cfg uses save_dir, run_name, resume, save_every, log_every, keep_checkpoints where declared
-- @tparam table options `recipe` (the default run name), `steps` (optimiser steps in all), `tokens_per_step`
-- @treturn Run
function M.start(cfg, options)
  local o = strict.options("run.start", options, START_OPTIONS)
  local values = cfg:to_table()
  local self = setmetatable({
    options = values, recipe = o.recipe, total = o.steps, tokens_per_step = o.tokens_per_step, step = 0,
    save_every = values.save_every or 1000, log_every = values.log_every or default_log_every(values.device),
    keep = values.keep_checkpoints or 3,
    tracked = {}, curves = {}, warnings = {}, started = host.now(), started_at = os.date "%Y-%m-%d %H:%M:%S",
  }, Run)
  if values.resume and values.resume ~= json.null then
    self.folder, self.checkpoint_folder = resume_point(values.resume)
    local state = read_state(self.checkpoint_folder)
    check_options(values.resume, state.options, values)
    self.step, self.resumed, self.warnings = state.step, true, state.warnings or {}
  else
    local name = values.run_name ~= json.null and values.run_name or nil
    self.folder = free_folder(values.save_dir or "output", name or o.recipe, name ~= nil)
    check(core.check_writable(values.save_dir or "output"))
  end
  return self
end

-- Makes the folder and its first files; room for a checkpoint is demanded.
local function open_folder(self)
  check(core.check_writable(self.folder, self:state_bytes()))
  local options = {}
  for name, value in pairs(self.options) do options[name] = value end
  options.resume = nil -- `--config_file` of it repeats the run, it does not continue it
  self:write_json("config.json", options)
  self:write_json("run.json", self:facts())
  self.metrics = check(require("saelua.metrics").open(self:path "metrics.jsonl",
    { resume_step = self.resumed and self.step or nil }))
  if self.resumed then self:reload_curves() end
  host.graceful(true)
end

--- A path in the run's folder.
function Run:path(...) return fs.join(self.folder, ...) end

--- Writes a JSON file into the folder; raises when that fails.
function Run:write_json(name, value) check(json.write(self:path(name), value)) end

--- Version, machine and times, as in run.json.
function Run:facts()
  return {
    saelua_version = host.version, recipe = self.recipe, started = self.started_at, cpus = host.cpu_count(),
    command = "saelua" .. (arg and " " .. table.concat({ unpack(arg, 0) }, " ") or ""),
    machine = M.machine(), duration_s = host.now() - self.started, warnings = json.array(self.warnings),
  }
end

--- The processor's name and count, from /proc/cpuinfo.
function M.machine()
  local file = io.open "/proc/cpuinfo"
  local name = file and file:read("*a"):match("model name%s*:%s*([^\n]+)") or "unknown processor"
  if file then file:close() end
  return ("%s, %d core%s"):format(name, host.cpu_count(), host.cpu_count() == 1 and "" or "s")
end

--- Says something that the user should know before trusting the run; kept in run.json and the checkpoints.
function Run:warn(text, ...)
  text = select("#", ...) > 0 and text:format(...) or text
  for _, known in ipairs(self.warnings) do
    if known == text then return end
  end
  self.warnings[#self.warnings + 1] = text
  console.line(console.style("warning: ", "yellow", io.stderr) .. text)
end

-- Checkpoints --------------------------------------------------------------------------------------------------

--- Makes an object part of the checkpoints.
-- @tparam string name its folder in a checkpoint
-- @param object has save_state(folder) -> true or nil, message; load_state(folder) -> true or nil, message; and,
--   if it can tell, state_bytes() -> bytes on disk
function Run:track(name, object) self.tracked[#self.tracked + 1] = { name = name, object = object } end

local function load_tracked(self)
  for _, entry in ipairs(self.tracked) do
    local ok, message = entry.object:load_state(fs.join(self.checkpoint_folder, entry.name))
    if not ok then fail("cannot resume: %s", message) end
  end
end

function Run:state_bytes()
  local bytes = 0
  for _, entry in ipairs(self.tracked) do
    bytes = bytes + (entry.object.state_bytes and entry.object:state_bytes() or 0)
  end
  return bytes
end

local function drop_old_checkpoints(self)
  local folder = self:path "checkpoints"
  local steps = {}
  for _, name in ipairs(fs.list(folder) or {}) do
    if name:match("^%d+$") then steps[#steps + 1] = tonumber(name) end
  end
  table.sort(steps)
  for i = 1, #steps - self.keep do fs.remove_tree(fs.join(folder, ("%d"):format(steps[i]))) end
end

--- Saves `checkpoints/<step>/`: as a whole, or not at all.
-- @treturn ?string its path, or nil and a message
function Run:checkpoint()
  local there, trouble = fs.mkdir(self:path "checkpoints")
  if not there then return nil, trouble end
  local path = self:path("checkpoints", ("%d"):format(self.step))
  local ok, message = core.write_folder(path, function(temporary)
    for _, entry in ipairs(self.tracked) do
      local folder = fs.join(temporary, entry.name)
      local made, why = fs.mkdir(folder)
      if not made then return nil, why end
      local saved, reason = entry.object:save_state(folder)
      if not saved then return nil, reason end
    end
    local state = { format = 1, step = self.step, options = self.options, warnings = json.array(self.warnings) }
    return json.write(fs.join(temporary, "state.json"), state)
  end)
  if not ok then return nil, message end
  self.saved_step = self.step
  drop_old_checkpoints(self)
  return path
end

-- The loop -----------------------------------------------------------------------------------------------------

local function start_progress(self)
  self.progress = require("saelua.progress").new {
    total = self.total * self.tokens_per_step, start = self.step * self.tokens_per_step, title = self.recipe,
  }
end

local function save_or_warn(self)
  local path, message = self:checkpoint()
  if not path then self:warn("the checkpoint of step %d was not saved: %s", self.step, message) end
end

-- After a signal: what can be saved is saved, and the program ends.
local function stop(self)
  local text = ("interrupted after step %d; this recipe keeps no checkpoints"):format(self.step)
  if #self.tracked > 0 then
    local path, message = self:checkpoint()
    text = path and ("interrupted after step %d; saved %s\ncontinue with: --resume %s")
      :format(self.step, path, self.folder) or ("interrupted; the checkpoint could not be saved: " .. message)
  end
  if self.progress then self.progress:finish() end
  console.line(text)
  os.exit(host.interrupted() == "SIGTERM" and 143 or 130)
end

-- What happens between two steps: signals, checkpoints.
local function between_steps(self)
  if host.interrupted() then stop(self) end
  local due = self.step > 0 and self.step % self.save_every == 0 and self.step < self.total
  if due and #self.tracked > 0 and self.step ~= self.saved_step then save_or_warn(self) end
end

--- Iterates over the steps that are left: `for step in run:steps() do`. Each round is a scope: tensors made in it are
-- freed at its end unless they went through `sl.keep`.
function Run:steps()
  open_folder(self)
  if self.resumed then
    load_tracked(self)
    self.saved_step = self.step
    console.line(("resumed %s at step %d of %d"):format(self.folder, self.step, self.total))
  end
  start_progress(self)
  self.loop_started, self.trained = host.now(), 0
  local first = true
  return function()
    if self.scope then core.end_scope(self.scope) end
    self.scope = nil
    if not first then
      self.step, self.trained = self.step + 1, self.trained + self.tokens_per_step
    end
    first = false
    between_steps(self)
    if self.step >= self.total then
      if self.step ~= self.saved_step and #self.tracked > 0 then save_or_warn(self) end
      self.tokens_per_s = self.trained > 0 and self.trained / (host.now() - self.loop_started) or nil
      return nil
    end
    self.scope = core.begin_scope()
    return self.step
  end
end

-- Metrics ------------------------------------------------------------------------------------------------------

local function add_to_curves(self, name, record)
  local curve = self.curves[name]
  if not curve then
    curve = {}
    self.curves[name] = curve
  end
  curve[#curve + 1] = record
end

function Run:reload_curves()
  for _, record in ipairs(check(require("saelua.metrics").read(self:path "metrics.jsonl"))) do
    add_to_curves(self, record.sae or "", record)
  end
end

--- Whether this step's values are logged: every `log_every` steps, and the last. Other steps need no numbers, and on
-- a GPU reading one waits for it.
-- @treturn boolean
function Run:logs() return (self.step + 1) % self.log_every == 0 or self.step + 1 == self.total end

--- Records values after a step; each `loss` is checked as by check_finite.
-- @tparam table values field -> number
-- @tparam[opt=""] string name which SAE, when there are several
function Run:log(values, name)
  name = name or ""
  local loss = values.loss
  if loss then self:check_finite(loss, name) end
  if values.grad_norm then self:check_finite(values.grad_norm, name, "gradient norm") end
  local tokens = (self.step + 1) * self.tokens_per_step
  self.progress:update(tokens, {
    loss = loss, ev = values.explained_variance, l0 = values.l0, dead = values.dead_fraction,
  })
  if not self:logs() then return end
  local record = { step = self.step + 1, tokens = tokens, sae = name, tokens_per_s = self.progress:speed() }
  for key, value in pairs(values) do record[key] = value end
  check(self.metrics:write(record))
  add_to_curves(self, name, record)
end

--- Records held-out values at the current step; the fields get the prefix `eval/`.
function Run:log_eval(values, name)
  local record = { step = self.step, tokens = self.step * self.tokens_per_step, sae = name or "" }
  for key, value in pairs(values) do
    if type(value) == "number" then record["eval/" .. key] = value end
  end
  check(self.metrics:write(record))
  add_to_curves(self, name or "", record)
end

--- The recorded curves of one SAE: field -> list, NaN where a record lacks the field.
function Run:curves_of(name)
  local records, fields = self.curves[name or ""] or {}, {}
  for _, record in ipairs(records) do
    for key, value in pairs(record) do
      if type(value) == "number" then fields[key] = true end
    end
  end
  local curves = {}
  for key in pairs(fields) do
    local list = {}
    for i, record in ipairs(records) do list[i] = type(record[key]) == "number" and record[key] or 0 / 0 end
    curves[key] = list
  end
  return curves
end

--- Ends the run: metrics closed, run.json with its duration, and for dictionaries the report.
-- @tparam[opt] table options `units` (with eval, densities, ... filled in): write report.html and print the results
function Run:finish(options)
  local o = strict.options("run:finish", options, { units = strict.optional })
  if self.scope then core.end_scope(self.scope) end
  self.scope = nil
  if self.progress then self.progress:finish() end
  self.metrics:close()
  self:write_json("run.json", self:facts())
  if o.units then self:report(o.units) end
  host.graceful(false)
end

for name, method in pairs(require "saelua.run_sae") do Run[name] = method end
M.choose_hookpoints, M.average = Run.choose_hookpoints, Run.average

return M
