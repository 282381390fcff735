"""The page: one HTML document that needs nothing but itself, on a screen or a phone."""

from html import escape

from lagjax.report import charts, content, sentences
from lagjax.report.content import Block, Code, Figure, Row, Section, Table
from lagjax.report.facts import Facts

# No script, no request: what the page promises, the browser enforces.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
COLOURS = """
:root { color-scheme: light dark; --page: #f6f7f8; --surface: #fff; --ink: #1b1f24;
  --muted: #59626d; --line: #dde1e6; --tint: #eaf2fa; --winner: #0064b4; --runner: #bf4a00;
  --start: #00785a; --failed: #a62e6c; --other: #8a939e; --control: #8a939e; --baseline: #59626d;
  --source: #59626d }
@media (prefers-color-scheme: dark) { :root { --page: #121417; --surface: #1a1d21; --ink: #e7eaee;
  --muted: #a2abb6; --line: #333940; --tint: #1c2a38; --winner: #5ab4f0; --runner: #f5a04a;
  --start: #3ecba0; --failed: #ee86ba; --other: #7d8793; --control: #7d8793; --baseline: #a2abb6;
  --source: #a2abb6 } }
"""
CSS = """
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 40px 16px 64px }
h1 { font-size: 15px; color: var(--muted); margin: 0 0 8px }
h2, summary { font-size: 19px; line-height: 1.3; font-weight: 600; margin: 0 0 4px }
p, figcaption { margin: 0 0 12px; max-width: 72ch }
.lead { font-size: 24px; line-height: 1.35; font-weight: 600; margin: 0 0 24px; max-width: 46em }
.about, footer, dt, figcaption { color: var(--muted) }
section, .facts > div { background: var(--surface); border: 1px solid var(--line);
  border-radius: 8px; padding: 24px; margin: 16px 0 }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 16px }
.facts > div { padding: 16px 20px; margin: 0 }
.facts dt, .facts .detail, footer { font-size: 14px }
dd { margin: 0 }
.facts .value { font-size: 26px; line-height: 1.3; font-weight: 600 }
.facts .detail { color: var(--muted) }
.clear, .start { color: var(--start) } .tie, .unfinished, .runner { color: var(--runner) }
.all_failed, .failed { color: var(--failed) } .winner { color: var(--winner) }
.scroll { overflow-x: auto; margin: 12px 0 }
.scroll:focus-visible { outline: 2px solid var(--winner); outline-offset: 2px }
table { border-collapse: collapse; width: 100%; font-size: 14px; overflow-wrap: normal;
  font-variant-numeric: tabular-nums }
th, td { padding: 7px 10px; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; white-space: nowrap; color: var(--ink) }
th { color: var(--muted); vertical-align: bottom; white-space: normal; min-width: 72px }
th:first-child, td:first-child, .text { text-align: left; white-space: normal; min-width: 110px }
td:first-child { max-width: 340px; overflow-wrap: anywhere }
tr.winner td { background: var(--tint) }
tr.failed td, tr.control td, tr.baseline td { color: var(--muted) }
tr.failed td.text { color: var(--failed) }
.name { font-weight: 600; margin-right: 4px }
code, pre { font: 12px/1.5 ui-monospace, Menlo, Consolas, monospace }
code { display: block; color: var(--muted) }
pre { overflow-x: auto; overflow-wrap: normal }
.note { display: inline-block; font-size: 12px; line-height: 1.5; padding: 0 7px;
  margin: 0 4px 2px 0; border: 1px solid; border-radius: 99px; white-space: nowrap }
figure { margin: 16px 0 0; overflow-x: auto }
.chart { display: block; width: 100%; min-width: 620px; max-width: 900px; height: auto }
.chart text { stroke: var(--surface); stroke-width: 3px; paint-order: stroke }
@media (max-width: 560px) { main { padding: 20px 8px 40px } .lead { font-size: 20px }
  section { padding: 16px 12px } th, td { padding: 7px 6px } code { display: none } }
@media print { section { break-inside: avoid; border: 0; padding: 0 } }
"""


def render(facts: Facts) -> str:
    """The whole page. The same facts give the same text."""
    tiles = "".join(
        f'<div><dt>{escape(term)}</dt><dd class="value {escape(value)}">'
        f'{escape(value.replace("_", " "))}</dd><dd class="detail">{escape(detail)}</dd></div>'
        for term, value, detail in sentences.summary(facts)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(sentences.title(facts))}</title>
<style>{COLOURS}{CSS}</style>
</head>
<body>
<main>
<h1>lagjax: which way to grow the model</h1>
<p class="lead">{escape(sentences.sentence(facts))}</p>
<dl class="facts">{tiles}</dl>
{"".join(_section(section, facts) for section in content.sections(facts))}
<footer>{escape(sentences.footer(facts))}</footer>
</main>
</body>
</html>
"""


def _section(section: Section, facts: Facts) -> str:
    about = f'<p class="about">{escape(section.about)}</p>' if section.about else ""
    inner = about + "".join(_block(block, section, facts) for block in section.body)
    if any(isinstance(block, Code) for block in section.body):
        return f"<section><details><summary>{section.title}</summary>{inner}</details></section>\n"
    return f"<section><h2>{section.title}</h2>{inner}</section>\n"


def _block(block: Block, section: Section, facts: Facts) -> str:
    match block:
        case Table(headings, rows):
            cells = (
                f'<th scope="col"{_text(title, block)}>{escape(title)}</th>' for title in headings
            )
            head = f"<thead><tr>{''.join(cells)}</tr></thead>" if any(headings) else ""
            return (
                f'<div class="scroll" tabindex="0" role="region" aria-label="{section.title}">'
                f"<table>{head}<tbody>{''.join(_row(row, block) for row in rows)}</tbody></table>"
                "</div>"
            )
        case Figure(draw, about):
            caption = f"<figcaption>{escape(about)}</figcaption>" if about else ""
            return f"<figure>{caption}{draw(facts)}</figure>"
        case Code(text):
            return f'<pre tabindex="0">{escape(text)}</pre>'
    return f"<p>{escape(block)}</p>"


def _row(row: Row, table: Table) -> str:
    name, *rest = row.cells
    notes = "".join(f' <span class="note {part}">{text}</span>' for part, text in row.notes)
    code = "".join(f"<code>{escape(line)}</code>" for line in row.code)
    cells = zip(table.headings[1:], rest)
    return (
        f'<tr class="{row.part}"><td><span class="name">{escape(name)}</span>{notes}{code}</td>'
        + "".join(f"<td{_text(title, table)}>{escape(cell)}</td>" for title, cell in cells)
        + "</tr>"
    )


def _text(title: str, table: Table) -> str:
    return ' class="text"' if title in table.words else ""


def picture(facts: Facts) -> str:
    """The curves alone, as an SVG document: light or dark, as whoever shows it."""
    drawn = charts.curves(facts).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    start = drawn.index(">") + 1
    style = f"<style>{COLOURS}text {{ font-family: system-ui, sans-serif }}</style>"
    box = '<rect width="100%" height="100%" fill="var(--surface)"/>'
    return f"{drawn[:start]}{style}{box}{drawn[start:]}\n"
