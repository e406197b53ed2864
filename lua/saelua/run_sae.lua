--- What runs that train dictionaries share: units, their plan, their final files, the report.
-- These are methods of `saelua.run`'s Run; they load with it.
-- @submodule saelua.run
local core = require "saelua.core"
local console = require "saelua.console"
local fs = require "saelua.fs"
local host = require "saelua.host"
local json = require "saelua.json"
local sae = require "saelua.sae"
local suggest = require "saelua.suggest"

local R = {}

local function fail(message, ...) error(select("#", ...) > 0 and message:format(...) or message, 0) end

local function given(value) return value ~= nil and value ~= json.null end

--- The hook points that a run trains on: from `cfg.hookpoints` (names or globs), or the outputs of `cfg.layers`, or of
-- all layers with a stride, or of the middle layer. Prints what globs resolved to.
-- @tparam Model model
-- @tparam Config cfg layers, layer_stride, hookpoints
-- @function choose_hookpoints
-- @treturn {string,...}
function R.choose_hookpoints(model, cfg)
  local stride, layers = cfg.layer_stride, given(cfg.layers) and cfg.layers or nil
  if #cfg.hookpoints > 0 then
    if layers or stride ~= 1 then fail "--hookpoints excludes --layers and --layer_stride: give one of them" end
    local names = model:hookpoints(cfg.hookpoints)
    console.line("hook points: " .. table.concat(names, ", "))
    return names
  end
  if layers and stride ~= 1 then fail "--layer_stride applies to all layers: leave --layers out" end
  if layers and #layers == 0 then fail "--layers: at least one layer expected" end
  if not layers then
    layers = { math.floor(model.n_layers / 2) }
    if stride ~= 1 then
      layers = {}
      for layer = 0, model.n_layers - 1, stride do layers[#layers + 1] = layer end
    end
  end
  return model:resid(layers)
end

--- Says what the run is made of, and remembers it for run.json, SAE metadata and the report.
-- @function Run:describe
-- @tparam Model model
-- @tparam Tokens tokens
-- @tparam Activations acts
function R:describe(model, tokens, acts)
  self.model_facts = { name = model.name, d_model = model.d_model, n_layers = model.n_layers }
  self.data_facts = { source = tokens.source.name, ctx_len = tokens.ctx_len }
  console.line(("%s: %d layers, d_model %d; data %s; buffer of %s for %s"):format(model.name, model.n_layers,
    model.d_model, tokens.source.name, R.bytes(acts:memory()), table.concat(acts.at, ", ")))
end

--- Bytes for people: "12.5 MiB".
-- @function Run.bytes
-- @tparam number n
-- @treturn string
function R.bytes(n)
  for _, unit in ipairs { "bytes", "KiB", "MiB", "GiB" } do
    if n < 1024 or unit == "GiB" then return ((unit == "bytes") and "%d %s" or "%.1f %s"):format(n, unit) end
    n = n / 1024
  end
end

--- One dictionary of the run; tracked for checkpoints.
-- @tparam table unit `at`, `sae`, `optim`, `seed` (when there are several)
-- @treturn table the unit, with `name` ("layers.2.resid_post", or with "/seed1" behind it)
-- @function Run:unit
function R:unit(unit)
  unit.name = unit.seed and ("%s/seed%d"):format(unit.at, unit.seed) or unit.at
  unit.folder = unit.name
  self:track(fs.join("sae", unit.name), unit.sae)
  self:track(fs.join("optim", unit.name), unit.optim)
  self.units = self.units or {}
  self.units[#self.units + 1] = unit
  return unit
end

--- Stops the run when a loss is not finite. It never reaches the weights (a gradient that is not finite is refused by
-- the optimiser), so the last checkpoint is good.
-- @tparam number value
-- @tparam[opt=""] string name which SAE, when there are several
-- @tparam[opt="loss"] string what the value is
-- @function Run:check_finite
function R:check_finite(value, name, what)
  if value == value and math.abs(value) ~= math.huge then return end
  fail("the %s%s is %s at step %d: training stopped. %s Try a smaller --lr, or look for activations that are not "
    .. "finite", what or "loss", name and " of " .. name or "", tostring(value), self.step,
    self.saved_step and ("The checkpoint of step %d is good."):format(self.saved_step)
      or "No checkpoint was saved yet.")
end

local LOSS_FIELDS = { "loss", "fvu", "explained_variance", "mse", "cosine", "l0", "auxk", "multi_topk" }

--- Averages losses over the batches of one optimiser step, for the log. Where a BatchTopK selection was not exact (only
-- on a GPU), `crowded` says on how many tokens.
-- @tparam ?table before the average so far; nil for the first batch
-- @tparam SaeLoss loss of batch number `n`
-- @tparam integer n from 1
-- @function average
-- @treturn table field -> mean
function R.average(before, loss, n)
  local mean = {}
  for _, field in ipairs(LOSS_FIELDS) do
    mean[field] = before and before[field] + (loss[field] - before[field]) / n or loss[field]
  end
  local crowded = loss.crowded + (before and before.crowded or 0)
  mean.crowded = crowded > 0 and crowded or nil
  return mean
end

--- Raises where options cannot go with the dictionary (see `sae.conflict`), and warns of what is doubtful about the
-- plan (see `sae.doubts`).
-- @function Run:check_plan
-- @tparam Sae dictionary
function R:check_plan(dictionary)
  local o = self.options
  local conflict = sae.conflict(dictionary, o)
  if conflict then fail("%s", conflict) end
  local doubts = sae.doubts {
    d_in = dictionary.d_in, d_sae = dictionary.d_sae, k = dictionary.k, tokens = self.total * self.tokens_per_step,
    dead_feature_threshold = o.dead_feature_threshold, dead_percentage_threshold = o.dead_percentage_threshold,
    uses_dead = (o.auxk_alpha or 0) > 0,
  }
  for _, doubt in ipairs(doubts) do self:warn(doubt) end
end

local function metadata(self, unit)
  local o, facts = self.options, self:facts()
  return {
    model_name = o.model, hook_name = unit.at, hook_head_index = json.null, dataset_path = o.dataset,
    context_size = o.ctx_len, prepend_bos = true, exclude_special_tokens = true, saelua_version = facts.saelua_version,
    training_tokens = self.step * self.tokens_per_step, seed = unit.seed or (o.init_seeds or {})[1], l0 = unit.eval
      and unit.eval.l0,
  }
end

--- Saves a unit's dictionary into `final/` (one SAE) or `final/<name>/` (several), in both files and as a whole.
-- @tparam table unit
-- @tparam table options `format`: "saelens" or "sparsify"
-- @function Run:save_final
function R:save_final(unit, options)
  local folder = #self.units == 1 and self:path "final" or self:path("final", unit.folder)
  local made, why = fs.mkdir(fs.dirname(folder))
  if not made then fail("cannot save: %s", why) end
  local ok, message = core.write_folder(folder, function(temporary)
    return sae.save(unit.sae, temporary, { format = options.format, metadata = metadata(self, unit),
      densities = unit.densities })
  end)
  if not ok then fail("cannot save %s: %s", folder, message) end
  unit.saved = folder
end

-- Report -------------------------------------------------------------------------------------------------------

local function ordered_options(self)
  local list = {}
  for _, name in ipairs(suggest.keys(self.options)) do
    local value = self.options[name]
    list[#list + 1] = { name, type(value) == "table" and json.encode(value) or tostring(value) }
  end
  table.sort(list, function(a, b) return a[1] < b[1] end)
  return list
end

local function sae_facts(dictionary)
  return {
    architecture = dictionary.architecture, d_in = dictionary.d_in, d_sae = dictionary.d_sae, k = dictionary.k,
    n_parameters = 2 * dictionary.d_in * dictionary.d_sae + dictionary.d_in + dictionary.d_sae,
  }
end

local function report_data(self, units)
  local facts, list = self:facts(), {}
  for i, unit in ipairs(units) do
    list[i] = {
      name = unit.name, sae = sae_facts(unit.sae), curves = self:curves_of(unit.name), eval = unit.eval,
      densities = unit.densities, redundancy = unit.redundancy, latents = unit.latents,
    }
  end
  local model = self.model_facts or {}
  return {
    title = fs.basename(self.folder), config = ordered_options(self), saes = list,
    model = { name = model.name, d_model = model.d_model, n_layers = model.n_layers,
      hookpoint = #units == 1 and units[1].at or nil },
    run = { name = fs.basename(self.folder), command = facts.command, started = facts.started,
      duration_s = facts.duration_s, machine = facts.machine, version = facts.saelua_version,
      tokens_per_s = self.tokens_per_s },
  }
end

local function summary_line(unit)
  local e = unit.eval
  local text = ("%s: held-out EV %.4f, FVU %.4f, L0 %.1f, dead %.1f %% of latents on %d tokens"):format(unit.name,
    e.explained_variance, e.fvu, e.l0, 100 * e.dead_fraction, e.n_tokens)
  if e.ce_recovered then
    text = text .. (", CE recovered %.4f (clean %.3f, with SAE %.3f, ablated %.3f nats)"):format(e.ce_recovered,
      e.ce_clean, e.ce_sae, e.ce_ablated)
  elseif e.reasons and e.reasons.ce_recovered then
    text = text .. ", CE not measured: " .. e.reasons.ce_recovered
  end
  return text
end

local FEW_TOKENS = 5000

--- Writes report.html and prints the results.
-- @function Run:report
-- @tparam {table,...} units with `eval` (from eval.core), `densities`, `redundancy`, `latents`
function R:report(units)
  if units[1] and units[1].eval and units[1].eval.n_tokens < FEW_TOKENS then
    self:warn("only %d held-out tokens: the dead share is too high and the other numbers are rough; use more text or a "
      .. "larger --heldout", units[1].eval.n_tokens)
  end
  local path = self:path "report.html"
  local ok, message = require("saelua.report").write(path, report_data(self, units))
  if not ok then
    self:warn("the report was not written: %s", message)
  elseif message then
    self:warn(message)
  end
  for _, unit in ipairs(units) do
    console.line(summary_line(unit), io.stdout)
    if unit.saved then console.line("saved " .. unit.saved, io.stdout) end
  end
  console.line(("report %s (%.1f s in all, %.0f tokens/s in training)"):format(path, host.now() - self.started,
    self.tokens_per_s or 0), io.stdout)
  console.line(require("saelua.memory_report").line(), io.stdout)
end

return R
