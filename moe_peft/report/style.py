# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The style sheet of the report: light, dark, phone and print."""

_LIGHT = """
--page:#f6f6f3;--surface:#ffffff;--ink:#1d1f23;--muted:#5c626b;
--grid:#e3e4e1;--accent:#0b62a8;--notice:#fff4d6;--notice-edge:#c98a00;
--series-0:#0b6fb8;--series-1:#c8500a;--series-2:#0a8a65;--series-3:#b04a92;
--series-4:#b97d00;--series-5:#4b9fd0;--series-6:#6b6f76;"""

# Ten hues for experts, told apart in print by their numbers.
_EXPERTS = (
    '#1f77b4', '#ff7f0e', '#2ca02c', '#d62728', '#9467bd', '#8c564b',
    '#e377c2', '#7f7f7f', '#bcbd22', '#17becf',
)
_EXPERT_CSS = ''.join(
    f'.x{i}{{--x:{color}}}' for i, color in enumerate(_EXPERTS)
)

_DARK = """
--page:#15171a;--surface:#1d2024;--ink:#eceef0;--muted:#a3aab3;
--grid:#343940;--accent:#7cc0f5;--notice:#3a3016;--notice-edge:#d9a520;
--series-0:#4fabef;--series-1:#f0824a;--series-2:#34c398;--series-3:#dd93c6;
--series-4:#e8b13a;--series-5:#9bd6f7;--series-6:#b3b8bf;"""

CSS = (
    ':root{color-scheme:light dark;'
    + _LIGHT
    + '}\n@media screen and (prefers-color-scheme:dark){:root{'
    + _DARK
    + '}}\n'
    + _EXPERT_CSS
    + """
.tokens span{border-radius:3px;padding:1px 0}
.tokens .l1{background:color-mix(in srgb,var(--x) 14%,transparent)}
.tokens .l2{background:color-mix(in srgb,var(--x) 32%,transparent)}
.tokens .l3{background:color-mix(in srgb,var(--x) 60%,transparent)}
.tokens sub{font-size:.62em;color:var(--muted);padding:0 2px}
.tokens{margin:6px 0;background:var(--surface);border:1px solid var(--grid);
  border-radius:6px;padding:8px 12px;print-color-adjust:exact;
  -webkit-print-color-adjust:exact}
.tokens dd{font:400 .92rem/1.9 ui-monospace,"DejaVu Sans Mono",monospace;
  overflow-wrap:anywhere;white-space:pre-wrap}
.tokens dt{margin-top:6px}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",
  "DejaVu Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:20px 16px 64px}
h1{font-size:1.7rem;line-height:1.2;margin:.4em 0 .2em;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.2em 0 .3em;padding-top:.9em;
  border-top:1px solid var(--grid)}
h3{font-size:1.02rem;margin:1.6em 0 .3em;overflow-wrap:anywhere}
p{margin:.5em 0;max-width:46em}
a{color:var(--accent)}
.muted,figcaption span{color:var(--muted)}
.lead{font-size:1.06rem}
.notice{background:var(--notice);border-left:4px solid var(--notice-edge);
  padding:8px 12px;margin:12px 0;border-radius:0 4px 4px 0}
.notice ul{margin:.2em 0;padding-left:1.2em}
nav ul{display:flex;flex-wrap:wrap;gap:.3em 1.2em;list-style:none;
  padding:0;margin:.8em 0 0}
dl.facts{display:grid;gap:8px;margin:16px 0;
  grid-template-columns:repeat(auto-fit,minmax(150px,1fr))}
dl.facts div{background:var(--surface);border:1px solid var(--grid);
  border-radius:6px;padding:8px 12px}
dt{color:var(--muted);font-size:.82rem}
dd{margin:0;font-weight:600;overflow-wrap:anywhere}
dd small{display:block;font-weight:400;color:var(--muted)}
.scroll{overflow-x:auto;background:var(--surface);margin:10px 0;
  border:1px solid var(--grid);border-radius:6px}
.scroll>svg{padding:10px 12px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;
  font-size:.93rem}
th,td{padding:6px 12px;text-align:right;white-space:nowrap;
  border-bottom:1px solid var(--grid)}
tr:last-child>td,tr:last-child>th{border-bottom:0}
thead th{color:var(--muted);font-weight:600;font-size:.85rem;
  vertical-align:bottom;white-space:normal;min-width:4.5em}
th:first-child,td:first-child,.text{text-align:left}
tbody th{font-weight:500}
th:first-child{position:sticky;left:0;background:var(--surface)}
td b{font-weight:650}
td small,th small,td .muted{color:var(--muted);font-weight:400}
tr.total td,tr.total th{border-top:2px solid var(--grid);font-weight:650}
tr.minor td,tr.minor th{color:var(--muted)}
.wrap{white-space:normal;min-width:12em;overflow-wrap:anywhere}
.pairs{display:grid;gap:14px;margin:12px 0;
  grid-template-columns:repeat(auto-fill,minmax(min(100%,470px),1fr))}
.grid{display:grid;gap:14px;margin:12px 0;
  grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr))}
figure{margin:0;overflow-x:auto;background:var(--surface);
  border:1px solid var(--grid);
  border-radius:6px;padding:10px 12px}
figcaption{font-weight:600;font-size:.95rem;line-height:1.35;
  margin-bottom:6px;overflow-wrap:anywhere}
figcaption span{display:block;font-weight:400;font-size:.85rem}
svg{display:block;width:100%;height:auto}
svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",
  "DejaVu Sans",sans-serif!important}
ul.legend{display:flex;flex-wrap:wrap;gap:.2em 1.3em;list-style:none;
  padding:0;margin:.7em 0;font-size:.93rem}
ul.legend li{display:flex;align-items:center;gap:.45em;
  overflow-wrap:anywhere}
ul.legend svg{width:30px;height:10px;flex:none}
details{margin:10px 0}
summary{cursor:pointer;padding:6px 0;font-weight:600}
pre{background:var(--surface);border:1px solid var(--grid);border-radius:6px;
  padding:12px;overflow-x:auto;font-size:.82rem;line-height:1.45;margin:6px 0}
footer{margin-top:48px;color:var(--muted);font-size:.85rem}
@media (max-width:520px){
  main{padding:12px 12px 48px}
  th,td{padding:6px 8px}
  thead th{min-width:0}
  tbody th code{white-space:normal;overflow-wrap:anywhere}
  tbody th:has(code){min-width:9.5em}
  dl.facts{grid-template-columns:1fr 1fr}
}
@media print{
  :root{--page:#fff}
  body{font-size:10.5pt}
  main{max-width:none;padding:0}
  nav{display:none}
  .scroll{overflow:visible}
  svg{min-width:0!important;max-height:23cm}
  figure{overflow:visible}
  .scroll table{font-size:.8rem}
  th,td{white-space:normal;padding:3px 6px}
  figure,tr,.scroll:has(>svg),dl.facts div{break-inside:avoid}
  h2,h3{break-after:avoid}
  .grid{grid-template-columns:1fr 1fr}
  details.keep::details-content{content-visibility:visible;display:block}
  pre{white-space:pre-wrap;overflow-wrap:anywhere}
}
"""
)
