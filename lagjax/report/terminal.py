"""The decision as one screen of text."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lagjax.report import audit, tables
from lagjax.report.facts import Facts


def show(facts: Facts, console: Console) -> None:
    """Prints what was chosen, the candidates and the ledger."""
    word, meaning = tables.outcome(facts)
    # Text throughout: a name in square brackets is a name, not markup.
    console.print(Text(tables.sentence(facts), style="bold"))
    console.print(Text(f"Outcome: {word} ({meaning})."))
    if facts.decision and facts.decision["margin"] is not None:
        console.print(Text("Margin: {} {}.".format(*tables.margin(facts))))
    rows = tables.candidates(facts)
    if rows:
        console.print(_table(facts, rows))
    console.print(Text(tables.ledger_line(facts)))
    if facts.audit:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Audit")
        for title in audit.HEADINGS:
            table.add_column(Text(title), justify="right", overflow="fold")
        for cells in audit.rows(facts.audit):
            table.add_row(*map(Text, cells))
        console.print(table)
        for sentence in audit.sentences(facts.audit):
            console.print(Text(sentence))


def _table(facts: Facts, rows: list[tables.Row]) -> Table:
    # Enough for the names; what is noted about a candidate may go below its name.
    widest = min(24, max(len(row.name) for row in rows))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in tables.headings(facts):
        words = title in ("Candidate", "Status")
        table.add_column(
            Text(title),
            justify="left" if words else "right",
            overflow="fold",
            min_width=widest if title == "Candidate" else None,
        )
    for row in rows:
        notes = f" ({', '.join(row.notes)})" if row.notes else ""
        cells = (
            row.name + notes,
            row.start_rank,
            row.lag_rank,
            row.start_loss,
            row.lag_loss,
            row.final_loss,
            row.status,
        )
        style = "bold" if "winner" in row.notes else "dim" if row.failed else ""
        table.add_row(*(Text(cell) for cell in cells), style=style)
    return table
