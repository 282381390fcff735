"""How the page looks: a screen or a phone, light or dark, with nothing fetched from anywhere."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f8; --surface: #ffffff; --ink: #1b1f24; --muted: #59626d; --line: #dde1e6;
  --winner: #0064b4; --runner: #bf4a00; --start: #00785a; --other: #8a939e; --control: #8a939e;
  --failed: #a62e6c; --source: #59626d; --tint: #eaf2fa;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121417; --surface: #1a1d21; --ink: #e7eaee; --muted: #a2abb6; --line: #333940;
    --winner: #5ab4f0; --runner: #f5a04a; --start: #3ecba0; --other: #7d8793; --control: #7d8793;
    --failed: #ee86ba; --source: #a2abb6; --tint: #1c2a38;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere;
}
main { max-width: 1080px; margin: 0 auto; padding: 40px 16px 64px; }
h1 { font-size: 15px; font-weight: 600; color: var(--muted); margin: 0 0 8px; }
.lead { font-size: 24px; line-height: 1.35; font-weight: 600; margin: 0 0 24px; max-width: 46em; text-wrap: pretty; }
h2 { font-size: 19px; line-height: 1.3; margin: 0 0 4px; }
section { background: var(--surface); border: 1px solid var(--line); border-radius: 8px; padding: 24px; margin: 16px 0; }
p { margin: 0 0 12px; max-width: 72ch; }
.about { color: var(--muted); }
.second { margin-top: 24px; }
.facts { display: grid; grid-template-columns: repeat(3, 1fr); gap: 16px; margin: 0; }
.facts > div { background: var(--surface); border: 1px solid var(--line); border-radius: 8px; padding: 16px 20px; }
.facts dt { color: var(--muted); font-size: 14px; }
.facts dd { margin: 0; }
.facts .value { font-size: 26px; line-height: 1.3; font-weight: 600; font-variant-numeric: tabular-nums; }
.facts .detail { font-size: 14px; color: var(--muted); }
.clear { color: var(--start); } .tie, .unfinished { color: var(--runner); } .all_failed { color: var(--failed); }
.scroll { overflow-x: auto; margin: 12px 0 0; }
.scroll:focus-visible { outline: 2px solid var(--winner); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; overflow-wrap: normal; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; white-space: nowrap; }
th { font-weight: 600; color: var(--muted); vertical-align: bottom; white-space: normal; min-width: 84px; }
th:first-child, td:first-child { text-align: left; padding-left: 8px; }
td:first-child { min-width: 150px; max-width: 340px; white-space: normal; overflow-wrap: anywhere; }
th.text, td.text { text-align: left; min-width: 110px; white-space: normal; }
tr.winner td { background: var(--tint); }
tr.failed td, tr.control td { color: var(--muted); }
td.bad { color: var(--failed) !important; }
.name { font-weight: 600; margin-right: 4px; }
.operator { display: block; font: 12px/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace; color: var(--muted); }
.note { display: inline-block; font-size: 12px; line-height: 1.5; padding: 0 7px; margin: 0 4px 2px 0; border: 1px solid currentColor; border-radius: 99px; font-weight: 400; color: var(--muted); white-space: nowrap; }
.note.winner { color: var(--winner); } .note.runner { color: var(--runner); } .note.start { color: var(--start); }
.key { list-style: none; margin: 8px 0 4px; padding: 0; display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 14px; }
.key li { display: flex; align-items: center; gap: 8px; }
.key i { width: 26px; border-top: 3px solid; flex: none; }
.key .runner i { border-top-style: dashed; } .key .start i { border-top-style: dashed; } .key .control i { border-top-style: dotted; }
.key .winner { color: var(--winner); } .key .runner { color: var(--runner); } .key .start { color: var(--start); }
.key .other i, .key .control i { border-color: var(--other); } .key .failed { color: var(--failed); }
.key .failed em { width: 26px; font-style: normal; text-align: center; }
figure { margin: 12px 0 0; }
.chart { display: block; width: 100%; height: auto; }
.chart * { stroke-linejoin: round; stroke-linecap: butt; }
.chart text { stroke: var(--surface); stroke-width: 3px; paint-order: stroke; font-variant-numeric: tabular-nums; }
.narrow { display: none; }
dl.how { display: grid; grid-template-columns: minmax(130px, 240px) 1fr; gap: 6px 24px; margin: 12px 0 0; }
dl.how dt { color: var(--muted); } dl.how dd { margin: 0; }
summary { cursor: pointer; font-weight: 600; font-size: 19px; }
pre { overflow-x: auto; font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; margin: 16px 0 0; overflow-wrap: normal; }
footer { color: var(--muted); font-size: 14px; }
@media (max-width: 860px) {
  .wide { display: none; }
  .narrow { display: block; max-width: 520px; }
  .facts { grid-template-columns: 1fr; gap: 8px; }
}
@media (max-width: 560px) {
  main { padding: 20px 8px 40px; }
  .lead { font-size: 20px; }
  h1, .lead, footer { padding: 0 8px; }
  section { padding: 16px 12px; }
  th, td { padding: 7px 6px; }
  th { min-width: 66px; }
  th:first-child, td:first-child { min-width: 116px; padding-left: 0; }
  .operator { display: none; }
  dl.how { grid-template-columns: 1fr; gap: 0; }
  dl.how dd { margin-bottom: 10px; }
}
@media print { section { break-inside: avoid; border: 0; padding: 0; } }
"""
