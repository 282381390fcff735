"""One self-contained page, or one screen of text, that says what a run chose and why.

    facts.py     what a run directory says, worked out once
    curves.py    losses against steps, as means over seeds
    tables.py    the rows and sentences that page and terminal share
    audit.py     what each step would have told, where every candidate was trained to the end
    charts.py    the pictures;  svg.py makes them fit to sit inside a page
    page.py      the page;  style.py how it looks
    terminal.py  the screen of text

Everything is made from the run directory alone, so that a page can be made again from an old run.
"""

import os
import pathlib

from rich.console import Console

from lagjax.report import facts, page, terminal
from lagjax.store import directory

__all__ = ["show", "write"]


def write(run: str | pathlib.Path) -> pathlib.Path:
    """Makes RUN/report.html from the run directory alone, and returns its path.

    The same run gives the same bytes. The page replaces an older one in one step, so a reader never meets half of it.

    Raises:
      ValueError: `run` is no run directory, or what it holds cannot be understood.
      ImportError: matplotlib is missing; the message says how to get it.
    """
    root = pathlib.Path(run)
    text = page.render(facts.gather(directory.read(root)))
    target = root / "report.html"
    # Beside the target, since a rename is atomic within one file system only.
    part = root / f".report.html.{os.getpid()}"
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def show(run: str | pathlib.Path, console: Console | None = None) -> None:
    """Prints the decision of a run: a sentence, the table of candidates, the ledger.

    Raises ValueError where `run` is no run directory.
    """
    found = facts.gather(directory.read(run))
    terminal.show(found, console or Console())
