"""The decision as a screen of text: what the page says, without its pictures and explanations."""

from rich import box, table
from rich.console import Console, JustifyMethod
from rich.text import Text

from lagjax.report import content, sentences
from lagjax.report.content import Row, Table
from lagjax.report.facts import Facts

STYLES = {"winner": "bold", "failed": "dim", "control": "dim", "baseline": "dim"}


def show(facts: Facts, console: Console) -> None:
    """Prints what was chosen, and every section that has tables or sentences."""
    # Text throughout: a name in square brackets is a name, not markup.
    console.print(Text(sentences.sentence(facts), style="bold"))
    for term, value, detail in sentences.summary(facts):
        console.print(Text(f"{term}: {value}, {detail}."))
    for section in content.sections(facts):
        told = [block for block in section.body if isinstance(block, str | Table)]
        if told:
            console.print(Text(f"\n{section.title}", style="bold"))
        for block in told:
            console.print(Text(block) if isinstance(block, str) else _table(block))


def _table(found: Table) -> table.Table:
    named = any(found.headings)
    drawn = table.Table(box=box.SIMPLE_HEAD, show_header=named, show_edge=False, pad_edge=False)
    drawn.padding = (0, 1, 0, 0)
    for i, title in enumerate(found.headings):
        justify: JustifyMethod = "left" if i == 0 or title in found.words else "right"
        drawn.add_column(Text(title), justify=justify, overflow="fold")
    for row in found.rows:
        drawn.add_row(*_cells(row), style=STYLES.get(row.part, ""))
    return drawn


def _cells(row: Row) -> list[Text]:
    notes = f" ({', '.join(text for _, text in row.notes)})" if row.notes else ""
    return [Text(row.cells[0] + notes), *map(Text, row.cells[1:])]
