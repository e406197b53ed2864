--- The script that draws every chart of a page; returns its text.
--
-- Each chart is a figure that holds its own description as JSON (see `saelua.chart`). A `chartjs` description is
-- a Chart.js configuration in which text of the form "$name" stands for a theme colour or a function, because
-- JSON can hold neither; "$$..." is a literal dollar. Points arrive as two arrays, half the size of one object
-- each. A `heatmap` description is drawn by this script alone.
--
-- After drawing, the root element carries data-charts-drawn and data-charts-failed (counts), which tests read.
-- @module saelua.chart.runtime
return [==[
(function () {
  'use strict';
  var root = document.documentElement, drawn = [];
  function css(name) { return getComputedStyle(root).getPropertyValue(name).trim(); }

  function sign(s) { return s.replace(/-/g, '\u2212'); }
  function short(v) {
    var a = Math.abs(v), units = [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']];
    if (v === 0) return '0';
    for (var i = 0; i < units.length; i++)
      if (a >= units[i][0]) return sign(String(+(v / units[i][0]).toPrecision(4))) + units[i][1];
    return sign(a < 1e-3 ? v.toExponential(1).replace('.0e', 'e') : String(+v.toPrecision(4)));
  }
  function precise(v) {
    var a = Math.abs(v);
    if (a !== 0 && (a < 1e-4 || a >= 1e15)) return v.toExponential(3);
    return v.toLocaleString('en', { maximumSignificantDigits: a >= 1e4 ? 15 : 5 });
  }
  function power(v) {  /* 10^v, whole powers in superscripts */
    if (Math.abs(v - Math.round(v)) > 1e-6) return '';
    return '10' + String(Math.round(v)).replace('-', '\u207b').replace(/[0-9]/g, function (d) {
      return '\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079'[d]; });
  }
  function binEnds(item) {
    var e = item.dataset.edges, log = item.dataset.logX, i = item.dataIndex;
    function end(v) { return precise(log ? Math.pow(10, v) : v); }
    return end(e[i]) + ' \u2013 ' + end(e[i + 1]);
  }
  var functions = {
    'tick.short': short,
    'tick.power': power,
    'tick.log': function (v) {
      var lead = v / Math.pow(10, Math.floor(Math.log10(v) + 1e-9));
      var span = Math.log10(this.max / this.min), r = Math.round(lead);
      if (Math.abs(lead - r) > 1e-6) return null;
      /* null: no grid line either */
      return (r === 1 || (span < 2.5 && (r === 2 || r === 5)) || span < 0.8) ? short(v) : null;
    },
    'tip.x': function (items) {
      var item = items[0];
      return item ? item.chart.options.scales.x.title.text + ': ' + precise(item.parsed.x) : '';
    },
    'tip.y': function (item) { return ' ' + item.dataset.label + ': ' + precise(item.parsed.y); },
    'tip.bin': function (items) { return items[0] ? binEnds(items[0]) : ''; },
    'tip.count': function (item) { return ' ' + precise(item.parsed.y) + ' ' + item.dataset.label; },
    'tip.bar': function (item) { return ' ' + item.dataset.label + ': ' + precise(item.raw); }
  };
  function lookup(name) {
    if (functions[name]) return functions[name];
    var fill = name.match(/^fill-(\d)$/);
    if (fill) return css('--series-' + fill[1]) + 'b8';
    return css('--' + name);
  }
  function resolve(v) {
    if (typeof v === 'string') {
      if (v[0] !== '$') return v;
      return v[1] === '$' ? v.slice(1) : lookup(v.slice(1));
    }
    if (Array.isArray(v)) return v.length && typeof v[0] === 'number' ? v : v.map(resolve);
    if (v && typeof v === 'object') {
      var out = {};
      Object.keys(v).forEach(function (k) { out[k] = resolve(v[k]); });
      return out;
    }
    return v;
  }
  function points(data) {
    if (!data.x) return data;
    return data.x.map(function (x, i) { return { x: x, y: data.y[i] }; });
  }

  /* Vertical dashed lines with a label: { x, label } in options.plugins.marks. */
  var marks = {
    id: 'marks',
    afterDatasetsDraw: function (chart, args, options) {
      var g = chart.ctx, area = chart.chartArea;
      (options.at || []).forEach(function (mark) {
        var x = chart.scales.x.getPixelForValue(mark.x);
        if (!(x >= area.left && x <= area.right)) return;
        var right = x > (area.left + area.right) / 2;
        g.save();
        g.strokeStyle = css('--ink'); g.setLineDash([4, 3]); g.lineWidth = 1;
        g.beginPath(); g.moveTo(x, area.top); g.lineTo(x, area.bottom); g.stroke();
        g.font = '11px ' + css('--sans'); g.textBaseline = 'top'; g.textAlign = right ? 'right' : 'left';
        var wide = g.measureText(mark.label).width;
        g.fillStyle = css('--card'); g.globalAlpha = 0.8;
        g.fillRect(right ? x - wide - 8 : x + 3, area.top, wide + 5, 14);
        g.globalAlpha = 1; g.fillStyle = css('--ink');
        g.fillText(mark.label, x + (right ? -5 : 5), area.top + 1);
        g.restore();
      });
    }
  };
  function drawChartjs(canvas, spec) {
    var config = resolve(spec.config);
    config.data.datasets.forEach(function (d) { d.data = points(d.data); });
    config.plugins = [marks];
    var chart = new Chart(canvas, config);
    return { destroy: function () { chart.destroy(); }, resize: function () { chart.resize(); } };
  }

  /* Cividis, nine stops: even in lightness, the same to colour-blind readers. Diverging: blue, grey, orange. */
  var RAMPS = {
    sequential: [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120],
                 [165, 156, 116], [195, 179, 105], [254, 232, 56]],
    diverging: [[0, 90, 160], [86, 150, 205], [178, 205, 228], [236, 236, 236], [244, 200, 160], [225, 130, 60],
                [170, 70, 0]]
  };
  function colour(ramp, u) {
    var p = Math.max(0, Math.min(1, u)) * (ramp.length - 1), i = Math.min(Math.floor(p), ramp.length - 2), f = p - i;
    return 'rgb(' + ramp[i].map(function (c, j) { return Math.round(c + (ramp[i + 1][j] - c) * f); }) + ')';
  }
  function heatmapLayout(g, spec, width, height) {
    function widest(labels) {
      return labels.reduce(function (m, s) { return Math.max(m, g.measureText(s).width); }, 0);
    }
    var left = Math.min(width * 0.35, widest(spec.row_labels) + 8) + (spec.y_label ? 18 : 0);
    var tilt = widest(spec.col_labels) > (width - left - 70) / spec.cols - 6;
    var bottom = (tilt ? Math.min(height * 0.4, widest(spec.col_labels)) + 10 : 18) + (spec.x_label ? 20 : 0);
    return { left: left, top: 6, right: width - 62, bottom: height - bottom, tilt: tilt,
             label: tilt ? bottom - (spec.x_label ? 30 : 10) : width };
  }
  function drawHeatmap(canvas, spec) {
    var box = canvas.parentNode, at = null;
    function paint() {
      var width = box.clientWidth, height = box.clientHeight, scale = window.devicePixelRatio || 1;
      if (!width || !height) return;
      canvas.width = width * scale; canvas.height = height * scale;
      canvas.style.width = width + 'px'; canvas.style.height = height + 'px';
      var g = canvas.getContext('2d'), ramp = RAMPS[spec.diverging ? 'diverging' : 'sequential'];
      g.scale(scale, scale); g.font = '11px ' + css('--sans');
      at = heatmapLayout(g, spec, width, height);
      var w = (at.right - at.left) / spec.cols, h = (at.bottom - at.top) / spec.rows, span = spec.max - spec.min || 1;
      spec.values.forEach(function (v, i) {
        var r = Math.floor(i / spec.cols), c = i % spec.cols;
        g.fillStyle = v === null ? css('--grid') : colour(ramp, (v - spec.min) / span);
        g.fillRect(at.left + c * w, at.top + r * h, Math.ceil(w), Math.ceil(h));
      });
      g.fillStyle = css('--muted'); g.textAlign = 'right'; g.textBaseline = 'middle';
      var everyRow = Math.ceil(13 / h), everyCol = at.tilt ? Math.ceil(13 / w) : 1;
      spec.row_labels.forEach(function (s, r) {
        if (r % everyRow === 0) g.fillText(s, at.left - 5, at.top + (r + 0.5) * h, at.left - 8);
      });
      spec.col_labels.forEach(function (s, c) {
        if (c % everyCol) return;
        g.save(); g.translate(at.left + (c + 0.5) * w, at.bottom + 5);
        if (at.tilt) g.rotate(-Math.PI / 2); else { g.textAlign = 'center'; g.textBaseline = 'top'; }
        g.fillText(s, 0, 0, at.label); g.restore();
      });
      g.textAlign = 'center'; g.textBaseline = 'bottom';
      if (spec.x_label) g.fillText(spec.x_label, (at.left + at.right) / 2, height);
      if (spec.y_label) {
        g.save(); g.translate(11, (at.top + at.bottom) / 2); g.rotate(-Math.PI / 2);
        g.fillText(spec.y_label, 0, 0); g.restore();
      }
      for (var i = 0; i < 64; i++) {
        g.fillStyle = colour(ramp, i / 63);
        g.fillRect(at.right + 10, at.bottom - (i + 1) / 64 * (at.bottom - at.top), 10, (at.bottom - at.top) / 64 + 1);
      }
      g.fillStyle = css('--muted'); g.textAlign = 'left';
      g.textBaseline = 'top'; g.fillText(short(spec.max), at.right + 24, at.top);
      g.textBaseline = 'bottom'; g.fillText(short(spec.min), at.right + 24, at.bottom);
    }
    canvas.onmousemove = function (event) {
      var c = Math.floor((event.offsetX - at.left) / (at.right - at.left) * spec.cols);
      var r = Math.floor((event.offsetY - at.top) / (at.bottom - at.top) * spec.rows);
      if (c < 0 || r < 0 || c >= spec.cols || r >= spec.rows) { canvas.removeAttribute('title'); return; }
      var v = spec.values[r * spec.cols + c];
      canvas.title = (spec.row_labels[r] || r + 1) + ', ' + (spec.col_labels[c] || c + 1) + ': ' +
        (v === null ? 'not a number' : precise(v));
    };
    paint();
    addEventListener('resize', paint);
    return { destroy: function () { removeEventListener('resize', paint); canvas.onmousemove = null; }, resize: paint };
  }

  function drawAll() {
    var failed = 0;
    drawn.forEach(function (chart) { chart.destroy(); });
    drawn = [];
    if (window.Chart) {
      Chart.defaults.font.family = css('--sans'); Chart.defaults.font.size = 11.5;
      Chart.defaults.color = css('--muted');
    }
    document.querySelectorAll('figure.chart').forEach(function (figure) {
      var canvas = figure.querySelector('canvas');
      if (!canvas) return;
      try {
        var spec = JSON.parse(figure.querySelector('script').textContent);
        drawn.push(spec.kind === 'heatmap' ? drawHeatmap(canvas, spec) : drawChartjs(canvas, spec));
      } catch (error) {
        failed++;
        console.error('chart "' + figure.querySelector('h3').textContent + '" was not drawn: ' + error);
      }
    });
    root.dataset.chartsDrawn = drawn.length;
    root.dataset.chartsFailed = failed;
  }
  drawAll();
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawAll);
  addEventListener('beforeprint', function () { root.dataset.theme = 'light'; drawAll(); });
  addEventListener('afterprint', function () { delete root.dataset.theme; drawAll(); });
}());
]==]
