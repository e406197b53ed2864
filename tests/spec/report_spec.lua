-- The report page: escaping, JSON, charts, writing, and the page as a real browser draws it.
-- Needs neither the engine nor the network: busted --lua=luajit --lpath="lua/?.lua" tests/spec/report_spec.lua

package.path = "tests/support/?.lua;" .. package.path

local chart = require "saelua.chart"
local chart_data = require "saelua.chart.data"
local html = require "saelua.html"
local metrics = require "saelua.report.metrics"
local report = require "saelua.report"
local sample = require "report_sample"

local NAN = 0 / 0
local HOSTILE = "</script><script>document.documentElement.dataset.hacked=1</script><!--<img src=http://x.invalid/a>"
  .. "\"'&\0\1\27\127\226\128\168\226\128\174\255\192\128$ink"

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

local function write(path, text)
  local file = assert(io.open(path, "wb"))
  assert(file:write(text))
  assert(file:close())
end

local function exists(path)
  local file = io.open(path, "rb")
  if file then file:close() end
  return file ~= nil
end

--- Run `body(folder)` in a fresh folder that is removed afterwards, also when it fails.
local function in_folder(body)
  local folder = os.tmpname()
  os.remove(folder)
  assert(os.execute(("mkdir '%s'"):format(folder)) == 0)
  local ok, message = pcall(body, folder)
  os.execute(("rm -rf '%s'"):format(folder))
  if not ok then error(message, 0) end
end

--- Exit status, standard output and standard error of a shell command.
local function shell(folder, command)
  local status = os.execute(("%s >'%s/stdout' 2>'%s/stderr'"):format(command, folder, folder))
  if status >= 256 then status = math.floor(status / 256) end -- LuaJIT hands over the raw wait status
  return status, read(folder .. "/stdout"), read(folder .. "/stderr")
end

local function count(text, what)
  local n, at = 0, 1
  while true do
    local from, to = text:find(what, at, true)
    if not from then return n end
    n, at = n + 1, to + 1
  end
end

-- Counts, in the browser, the canvases that hold something: three or more colours somewhere.
local PROBE = [==[
<script>
(function () {
  var inked = 0;
  document.querySelectorAll('canvas').forEach(function (canvas) {
    if (!canvas.width || !canvas.height) return;
    var p = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data, seen = {};
    for (var i = 0; i < p.length; i += 4) if (p[i + 3]) seen[p[i] + ',' + p[i + 1] + ',' + p[i + 2]] = 1;
    if (Object.keys(seen).length >= 3) inked++;
  });
  document.documentElement.dataset.inked = inked;
}());
</script>
</body>]==]

--- Open a page in Chromium; returns the document after its scripts ran, or nil when there is no Chromium.
local function open_page(folder, page, options)
  local probed = folder .. "/probed.html"
  write(probed, (page:gsub("</body>", function() return PROBE end)))
  local status, dom, err = shell(folder, ("sh tests/support/open_page.sh %s '%s'"):format(options or "", probed))
  if status == 77 then return nil end
  assert.equal("", err:match("open_page.sh:[^\n]*") or "", err)
  assert.equal(0, status)
  return dom
end

local function attribute(dom, name)
  return tonumber(dom:match("<html[^>]* data%-" .. name:gsub("%-", "%%-") .. '="(%d+)"'))
end

describe("html", function()
  it("escapes markup, quotes, control characters and bytes that are not UTF-8", function()
    assert.equal("&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt; &amp;amp;", html.escape("<b a=\"1\" c='2'> &amp;"))
    assert.equal("␀␁␛␡\n\t", html.escape("\0\1\27\127\n\t"))
    assert.equal("a\239\191\189b", html.escape("a\255b"))
    assert.equal("\239\191\189\239\191\189", html.utf8("\192\128")) -- overlong NUL
    assert.equal(("\239\191\189"):rep(3), html.utf8("\237\160\128")) -- surrogate
    assert.equal("\239\191\189", html.utf8("\226")) -- cut off
    assert.equal("é漢😀", html.utf8("é漢😀"))
  end)

  it("writes JSON that cannot leave a script element", function()
    local text = html.json { s = HOSTILE }
    assert.is_nil(text:find("<", 1, true))
    assert.is_nil(text:find("[%z\1-\31\127]"))
    assert.is_nil(text:find("\226\128\168", 1, true))
    assert.truthy(text:find("\\u2028", 1, true))
    assert.equal(html.utf8(HOSTILE), require("cjson").decode(text).s)
  end)

  it("writes NaN and infinities as null, whole numbers whole, keys sorted", function()
    assert.equal('{"a":[1,null,null,null],"b":1234567890123,"c":[],"d":true}',
      html.json { d = true, b = 1234567890123, a = { 1, NAN, math.huge, -math.huge }, c = {} })
    assert.equal("[null]", html.json { require("saelua.json").null })
    assert.equal("0.3333", html.json(1 / 3, 4))
    assert.has_error(function() html.json { print } end, "html.json: cannot write a value of type function")
    local loop = {}
    loop.loop = { loop }
    assert.has_error(function() html.json(loop) end)
  end)

  it("breaks up what would end a script", function()
    assert.equal("a<\\/script>b<\\/SCRIPT c<\\!--", html.script_text("a</script>b</SCRIPT c<!--"))
  end)

  it("shows numbers as people read them", function()
    local cases = { { 24576, "24,576" }, { 1234567.4, "1,234,567" }, { 0.8907, "0.8907" }, { 98.3, "98.3" }, { 0, "0" },
      { -12.5, "−12.5" }, { 3.14159, "3.142" }, { 3.1e-5, "3.1e-05" },
      { NAN, "not a number" }, { math.huge, "infinite" },
      { 999.96, "1,000" } }
    for _, case in ipairs(cases) do assert.equal(case[2], html.number(case[1])) end
    assert.equal("not measured", html.number(nil))
  end)

  it("writes a file whole or not at all", function()
    in_folder(function(folder)
      local path = folder .. "/page.html"
      assert.is_true(html.write_file(path, "old"))
      -- a full disk, seen when the buffer is flushed
      assert(os.execute(("ln -s /dev/full '%s.tmp'"):format(path)) == 0)
      local ok, msg, code = html.write_file(path, ("x"):rep(100000))
      assert.is_nil(ok)
      assert.truthy(msg:find(path, 1, true))
      assert.equal("number", type(code))
      assert.equal("old", read(path))
      assert.is_false(exists(path .. ".tmp"))
      ok, msg = html.write_file(folder .. "/absent/page.html", "x")
      assert.is_nil(ok)
      assert.truthy(msg:find("absent/page.html", 1, true))
      assert.is_nil((html.write_file(folder, "x"))) -- a folder stands there
      assert.is_false(exists(folder .. ".tmp"))
    end)
  end)
end)

describe("chart", function()
  it("names the nearest option for an unknown one", function()
    assert.has_error(function() chart.line { titel = "x" } end,
      'chart.line: unknown option "titel"; did you mean "title"?')
    assert.has_error(function() chart.histogram { values = {}, log_y = true } end,
      'chart.histogram: unknown option "log_y"; did you mean "log_x"?')
  end)

  it("thins a long series and keeps its ends, spikes and gaps", function()
    local x, y = {}, {}
    for i = 1, 100000 do x[i], y[i] = i, math.sin(i / 9000) end
    y[31337], y[61234] = 50, -50
    for i = 70000, 72000 do y[i] = NAN end
    local c = chart.line { title = "t", series = { { x = x, y = y } } }
    local d = c.config.data.datasets[1].data
    assert.equal(100000, c.thinned)
    assert.is_true(#d.x < chart_data.max_points / 2 and #d.x == #d.y)
    assert.equal(1, d.x[1])
    assert.equal(100000, d.x[#d.x])
    local low, high, gaps = math.huge, -math.huge, 0
    for i, v in ipairs(d.y) do
      assert.is_true(i == 1 or d.x[i] > d.x[i - 1])
      if v ~= v then gaps = gaps + 1 else low, high = math.min(low, v), math.max(high, v) end
    end
    assert.equal(50, high)
    assert.equal(-50, low)
    assert.is_true(gaps >= 20 and gaps < 100)
  end)

  it("leaves a short series as it is; a log axis has no place for zero", function()
    local function points(y, options)
      options.series = { { x = { 1, 2, 3 }, y = y, sparse = not options.log_y } }
      return html.json(chart.line(options).config.data.datasets[1].data)
    end
    assert.equal('{"x":[1,2,3],"y":[1,null,100]}', points({ 1, 0, 100 }, { log_y = true }))
    assert.equal('{"x":[1,3],"y":[1,100]}', points({ 1, NAN, 100 }, {}))
  end)

  it("counts a histogram: every finite value once, zeros apart on a log axis", function()
    local c = chart.histogram { values = { 0, 0, 0.001, 0.01, 0.5, 1, NAN, math.huge }, log_x = true }
    local set, total = c.config.data.datasets[1], 0
    for _, n in ipairs(set.data.y) do total = total + n end
    assert.equal(4, total)
    assert.equal(2, c.zeros)
    assert.equal(-3, set.edges[1])
    assert.equal(0, set.edges[#set.edges])
    assert.equal(1, set.data.y[1])
    assert.equal(1, set.data.y[#set.data.y]) -- the greatest value is in the last bin, not past it
    c = chart.histogram { values = { 5, 5, 5 }, bins = 4 }
    assert.equal('[0,0,3,0]', html.json(c.config.data.datasets[1].data.y))
    assert.equal(3, chart.histogram({ counts = { 1, 2 }, edges = { 0, 1, 2 } }).shown)
    assert.has_error(function() chart.histogram { counts = { 1, 2 }, edges = { 0, 1 } } end)
  end)

  it("refuses sizes that do not fit", function()
    assert.has_error(function() chart.heatmap { rows = 2, cols = 3, values = { 1, 2 } } end,
      "chart.heatmap: 2 values for 2 rows x 3 cols")
    assert.has_error(function() chart.bars { labels = { "a" }, series = { { label = "s", values = { 1, 2 } } } } end,
      "chart.bars: series 's' has 2 values for 1 labels")
  end)

  it("says in words that nothing finite was recorded", function()
    local text = chart.render(chart.line { title = "Loss", series = { { x = { 1, 2 }, y = { NAN, NAN } } } })
    assert.truthy(text:find("No finite value was recorded", 1, true))
    assert.is_nil(text:find("<canvas", 1, true))
  end)
end)

describe("report", function()
  it("states each number with its verdict and its formula", function()
    local page = report.build(sample.data())
    for _, text in ipairs { "0.8907", "31.97", "3.99", "98.3", "● good", "EV = 1 − FVU", "1.412 clean", "2 min 11 s",
      "topk_bert.lua --layers 2", "encoder.layer.2.output", "<b>81 dead</b>", "256 → 2,048 latents" } do
      assert.truthy(page:find(text, 1, true), text)
    end
    for _, metric in ipairs(metrics.list) do
      assert.truthy(page:find('id="def-' .. metric.key .. '"', 1, true), metric.key)
    end
  end)

  it("gives verdicts at the limits, and by a caller's own", function()
    local ev, l0, dead = metrics.by_key.explained_variance, metrics.by_key.l0, metrics.by_key.dead_fraction
    assert.equal("good", (metrics.verdict(ev, 0.8)))
    assert.equal("fair", (metrics.verdict(ev, 0.79)))
    assert.equal("poor", (metrics.verdict(ev, 0.5)))
    assert.is_nil((metrics.verdict(ev, NAN)))
    assert.equal("fair", (metrics.verdict(l0, 300)))
    assert.equal("poor", (metrics.verdict(dead, 0.3)))
    assert.equal("poor", (metrics.verdict(ev, 0.8, { explained_variance = { good = 0.95, fair = 0.9 } })))
    assert.is_nil((metrics.verdict(metrics.by_key.mse, 1)))
  end)

  it("says what was not measured and why; guesses nothing", function()
    local page = report.build { eval = { reasons = { ce_recovered = "the checkpoint has no masked-LM head" } } }
    assert.truthy(page:find("not measured: the checkpoint has no masked-LM head", 1, true))
    assert.is_nil(page:find("<canvas", 1, true))
    page = report.build { curves = { step = { 1, 2 }, explained_variance = { 0.1, 0.7 } } }
    assert.truthy(page:find("last training value", 1, true))
  end)

  it("joins word pieces, shades by activation and clamps at the maximum", function()
    local page = report.build { latents = { { id = 7, density = 0.004, max = 4,
      contexts = { { tokens = { "the", "cap", "##tain", "." }, acts = { 0, 1, 8, NAN }, peak = 3 } } } } }
    assert.truthy(page:find(">cap</span><span", 1, true))
    assert.truthy(page:find('style="--a:0.250">cap', 1, true))
    assert.truthy(page:find('style="--a:1.000">tain', 1, true))
    assert.truthy(page:find("token “##tain”\nactivation 8\nposition 3", 1, true))
    assert.truthy(page:find("1 in 250", 1, true))
    assert.is_nil(page:find("##tain</span>", 1, true))
  end)

  it("raises on an unknown field", function()
    assert.has_error(function() report.build { latent = {} } end,
      'report: unknown option "latent"; did you mean "latents"?')
  end)

  it("gives the same bytes for the same data", function()
    assert.equal(report.build(sample.data()), (report.build(sample.data())))
  end)

  it("is written without charts, and says so, when Chart.js is absent", function()
    local paths = chart.library_paths
    finally(function() chart.library_paths = paths end)
    chart.library_paths = function() return { "/nonexistent/chart.min.js" } end
    in_folder(function(folder)
      local ok, warning = report.write(folder .. "/report.html", sample.data())
      assert.is_true(ok)
      assert.truthy(warning:find("/nonexistent/chart.min.js", 1, true))
      assert.truthy(warning:find("libjs-chart.js", 1, true))
      local page = read(folder .. "/report.html")
      assert.truthy(page:find("Charts are not drawn", 1, true))
      assert.is_nil(page:find("<canvas", 1, true))
      write(folder .. "/module.js", "export class Chart {}")
      chart.library_paths = function() return { folder .. "/module.js" } end
      assert.truthy(select(2, chart.library()):find("not the self-contained build", 1, true))
    end)
  end)
end)

describe("report in a browser", function()
  --- Build, open, and check that every chart was drawn and holds ink.
  local function check(data, options, charts)
    local _, absent = chart.scripts()
    if absent then return pending(absent) end
    in_folder(function(folder)
      local path = folder .. "/report.html"
      assert.is_true(report.write(path, data))
      local page = read(path)
      local dom = open_page(folder, page, options)
      if not dom then return pending("no Chromium on this machine: the page was not opened") end
      assert.equal(charts, count(page, "<canvas"))
      assert.equal(charts, attribute(dom, "charts-drawn"))
      assert.equal(0, attribute(dom, "charts-failed"))
      assert.equal(charts, attribute(dom, "inked"))
      assert.is_nil(dom:match("<html[^>]*hacked"))
    end)
  end

  it("draws every chart with no message and no request", function() check(sample.data(), "", 9) end)

  it("does so in the dark theme and on a phone", function() check(sample.data(), "--dark --size 500x900", 9) end)

  it("draws 20,000 and more points", function()
    check(sample.data(20000, 2), "", 9)
    check(sample.data(50000, 2), "", 9)
  end)

  it("survives hostile text everywhere, NaN and holes", function()
    local data = sample.data(200, 2)
    data.title, data.run.name, data.run.command, data.run.version = HOSTILE, HOSTILE .. "2", HOSTILE, HOSTILE
    data.model.name, data.model.hookpoint, data.sae.architecture = HOSTILE, HOSTILE, HOSTILE
    data.config[1] = { HOSTILE, HOSTILE }
    data.config[2] = { "list", { HOSTILE, { [HOSTILE] = NAN } } }
    data.eval.cosine, data.eval.explained_variance, data.eval[HOSTILE] = NAN, math.huge, 1
    data.eval.ce_recovered, data.eval.reasons = nil, { ce_recovered = HOSTILE }
    data.densities[5], data.redundancy[5] = NAN, NAN
    data.curves[HOSTILE] = data.curves.loss
    data.curves.l0[100] = nil
    data.curves.dead_fraction = { NAN, NAN }
    for _, latent in ipairs(data.latents) do
      latent.label = HOSTILE
      latent.contexts[1] = { tokens = { HOSTILE, "", " ", "\n" }, acts = { 1, NAN, math.huge, -1 } }
    end
    data.charts = {
      chart.heatmap { title = HOSTILE, rows = 2, cols = 2, values = { 1, NAN, 3, 4 }, row_labels = { HOSTILE, "b" },
        col_labels = { HOSTILE, "$ink" }, x_label = HOSTILE, y_label = HOSTILE },
      chart.bars { title = HOSTILE, labels = { HOSTILE, "$ink" }, series = { { label = HOSTILE, values = { 1, 2 } } } },
    }
    check(data, "", 11) -- 9 usual ones, no dead latents, one unknown curve, two added
  end)

  it("shows several SAEs in one page", function()
    local a, b = sample.data(300, 3), sample.data(300, 3)
    check({
      title = "Two layers", sae = a.sae, config = a.config,
      saes = { { name = "layer 1", curves = a.curves, eval = a.eval, densities = a.densities, latents = a.latents },
        { name = "layer 2", curves = b.curves, eval = b.eval, densities = b.densities, redundancy = b.redundancy } },
    }, "", 10)
  end)

  it("is checked by a tool that does see messages and requests", function()
    in_folder(function(folder)
      local page = folder .. "/page.html"
      local function open(body)
        write(page, "<!DOCTYPE html><title>t</title><link rel=icon href='data:,'>" .. body)
        return shell(folder, ("sh tests/support/open_page.sh '%s'"):format(page))
      end
      local status = open "clean"
      if status == 77 then return pending("no Chromium on this machine: the page was not opened") end
      assert.equal(0, status)
      local _, err
      status, _, err = open "<script>nosuch()</script>"
      assert.equal(1, status)
      assert.truthy(err:find("nosuch is not defined", 1, true))
      status, _, err = open "<img src='http://x.invalid/a.png'>"
      assert.equal(1, status)
      assert.truthy(err:find("http://x.invalid/a.png", 1, true))
    end)
  end)
end)
