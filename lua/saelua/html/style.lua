--- The style sheet of every saelua page: light, dark, phone and print.
-- Returns one string. Colours are variables, and the chart scripts read the same variables, so charts and
-- text change theme together. Series colours are Okabe and Ito's set (safe for colour-blind readers), with
-- lightness adjusted for each background.
-- @module saelua.html.style
return [[
:root{--bg:#f6f7f9;--card:#fff;--ink:#17202b;--muted:#5b6673;--line:#dde2e8;--grid:#e8ebef;--link:#0a5c94;
--good:#00795a;--fair:#946200;--poor:#b8400a;--act:230 126 0;
--series-1:#0072b2;--series-2:#d55e00;--series-3:#009e73;--series-4:#b8578f;--series-5:#c98500;--series-6:#3a9bd6;
--series-7:#6b5bb5;--series-8:#59636e;
--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans","DejaVu Sans",Arial,sans-serif;
--mono:ui-monospace,"SF Mono",SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
@media screen and (prefers-color-scheme:dark){:root:not([data-theme=light]){
--bg:#10151b;--card:#181f27;--ink:#e4e9ee;--muted:#9aa7b4;--line:#2b3540;--grid:#262f39;--link:#7cc4f2;
--good:#4fcfa5;--fair:#efb443;--poor:#ff8f5c;--act:240 150 30;
--series-1:#56b4e9;--series-2:#f08a4b;--series-3:#2fc397;--series-4:#dd93bd;--series-5:#efb443;--series-6:#8fa8ff;
--series-7:#b7a6f5;--series-8:#a9b4bf;color-scheme:dark}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.55 var(--sans);font-variant-numeric:tabular-nums}
main,.head,nav ul{max-width:1180px;margin:0 auto;padding:0 20px}
a{color:var(--link)}
code,pre,.mono{font-family:var(--mono);font-size:.88em}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 6px;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:38px 0 4px;letter-spacing:-.01em;scroll-margin-top:56px}
h3{font-size:.98rem;margin:0;font-weight:600}
section>h3{margin:22px 0 10px}
td.num.absent{white-space:normal}
.lead{color:var(--muted);margin:0 0 14px;max-width:76ch}
.head{padding-top:34px;padding-bottom:14px}
.sub{color:var(--muted);margin:0;overflow-wrap:anywhere}
.facts{display:flex;flex-wrap:wrap;gap:2px 22px;margin:14px 0 0;padding:0;list-style:none;font-size:.9rem}
.facts b{color:var(--muted);font-weight:400}
nav{position:sticky;top:0;z-index:5;background:var(--bg);border-bottom:1px solid var(--line)}
nav ul{display:flex;gap:4px 20px;list-style:none;overflow-x:auto;white-space:nowrap;scrollbar-width:none}
nav a{display:block;padding:9px 0;text-decoration:none;font-size:.9rem;color:var(--muted)}
nav a:hover,nav a:focus-visible{color:var(--ink)}
.card,.chart,.tile{background:var(--card);border:1px solid var(--line);border-radius:10px}
.card{padding:16px 18px;margin:0 0 14px}
.notice{border-left:4px solid var(--fair);padding:10px 14px;margin:16px 0;background:var(--card);border-radius:6px;
overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:12px;margin:12px 0}
.tile{padding:13px 15px 11px;display:flex;flex-direction:column;min-height:142px}
.tile .name{font-size:.84rem;color:var(--muted);display:flex;justify-content:space-between;gap:8px}
.tile .name a{color:inherit;text-decoration:underline dotted;text-underline-offset:3px}
.tile .value{font-size:1.95rem;line-height:1.2;font-weight:600;letter-spacing:-.02em;margin:2px 0}
.tile .value small{font-size:.95rem;font-weight:400;color:var(--muted);letter-spacing:0}
.tile .absent{font-size:1rem;font-weight:400;letter-spacing:0;color:var(--muted);margin:9px 0}
.tile .hint{font-size:.8rem;color:var(--muted);line-height:1.4}
.tile svg{display:block;width:100%;height:38px;margin-top:auto;padding-top:8px;overflow:visible}
.tile path{fill:none;stroke:var(--series-1);stroke-width:1.6;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.verdict{font-size:.78rem;font-weight:600;white-space:nowrap}
.good{color:var(--good)}.fair{color:var(--fair)}.poor{color:var(--poor)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,430px),1fr));gap:14px}
.chart{margin:0;padding:14px 16px 12px;min-width:0;display:flex;flex-direction:column}
.chart .plot{position:relative;height:250px;margin-top:8px}
.chart canvas{display:block;max-width:100%}
.chart .note,.foot{font-size:.8rem;color:var(--muted);margin:8px 0 0;line-height:1.45;overflow-wrap:anywhere}
.chart .absent{color:var(--muted);margin:auto;padding:24px 12px;text-align:center}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:6px 14px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child>th,tr:last-child>td{border-bottom:0}
thead th{color:var(--muted);font-weight:500}
tbody th{font-weight:400}
td.num,th.num{text-align:right;white-space:nowrap}
td.text{overflow-wrap:anywhere}
.absent{color:var(--muted)}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--link);font-size:.88rem;padding:4px 0}
.latents{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,520px),1fr));gap:14px;align-items:start}
.latent header{display:flex;flex-wrap:wrap;gap:4px 12px;align-items:baseline;margin-bottom:2px}
.latent .meta{font-size:.82rem;color:var(--muted);margin:0 0 8px}
.chip{font-size:.8rem;border:1px solid var(--line);border-radius:99px;padding:1px 10px;background:var(--bg);
overflow-wrap:anywhere}
.latent .card{margin:0}
ol.ctx{list-style:none;margin:0;padding:0}
ol.ctx li{display:grid;grid-template-columns:3.6em 1fr;gap:10px;padding:5px 0;border-top:1px solid var(--line)}
ol.ctx .peak-value{font-size:.78rem;color:var(--muted);text-align:right;padding-top:2px}
.toks{line-height:1.75;overflow-wrap:anywhere}
.t{unicode-bidi:isolate;padding:1px 0;border-radius:3px;white-space:pre-wrap;
background:rgb(var(--act)/calc(var(--a,0)*.92))}
.t.hot{color:#14181d}
.t.peak{font-weight:700;box-shadow:inset 0 -2px 0 var(--ink)}
.t.hot.peak{box-shadow:inset 0 -2px 0 #14181d}
.t.special{font-size:.82em}.t.special:not([style]){color:var(--muted)}
.t:hover{outline:1px solid var(--muted)}
.ramp{display:inline-flex;align-items:center;gap:8px;font-size:.82rem;color:var(--muted)}
.ramp i{width:130px;height:12px;border-radius:3px;border:1px solid var(--line);
background:linear-gradient(90deg,rgb(var(--act)/0),rgb(var(--act)/.92))}
dl.defs{margin:0;display:grid;grid-template-columns:minmax(150px,220px) 1fr;gap:0 20px}
dl.defs dt{font-weight:600;padding:8px 0;scroll-margin-top:60px}
dl.defs dd{margin:0;padding:8px 0;border-bottom:1px solid var(--line)}
dl.defs dt{border-bottom:1px solid var(--line)}
dl.defs .formula{display:block;font-family:var(--mono);font-size:.86em;margin-bottom:2px;overflow-wrap:anywhere}
dl.defs dt:target,dl.defs dt:target+dd{background:rgb(var(--act)/.13)}
footer{color:var(--muted);font-size:.82rem;max-width:1180px;margin:34px auto 0;padding:14px 20px 40px}
.tip{position:fixed;z-index:20;max-width:min(360px,calc(100vw - 16px));background:var(--ink);color:var(--bg);
font-size:.8rem;line-height:1.45;padding:6px 10px;border-radius:6px;white-space:pre-line;pointer-events:none;
overflow-wrap:anywhere}
.tip[hidden]{display:none}
@media(max-width:640px){body{font-size:14.5px}main,.head,nav ul,footer{padding-left:14px;padding-right:14px}
.tiles{grid-template-columns:repeat(2,minmax(0,1fr));gap:9px}.tile{padding:10px 11px;min-height:128px}
.tile .value{font-size:1.5rem}.tile .name{flex-direction:column;gap:0}.chart .plot{height:220px}
dl.defs{grid-template-columns:1fr}dl.defs dt{border-bottom:0;padding-bottom:0}dl.defs dd{padding-top:2px}
ol.ctx li{grid-template-columns:1fr;gap:0}ol.ctx .peak-value{text-align:left}}
@media(prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
@media print{:root{--bg:#fff}body{font-size:11px}nav,.tip,summary{display:none}.card,.chart,.tile{break-inside:avoid}
.charts{grid-template-columns:1fr 1fr}.latents{grid-template-columns:1fr}*{print-color-adjust:exact;
-webkit-print-color-adjust:exact}}
]]
