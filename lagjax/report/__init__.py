"""One self-contained page, or one screen of text, that says what a run chose and why.

    facts.py      what a run directory says, worked out once
    sentences.py  the verdict, the audit and the numbers in words
    content.py    the sections as data, each written once
    worth.py      whether growing paid, against baselines at equal FLOPs
    equal.py      both comparisons, where a step does not cost the same for all
    bounce.py     what averages of the weights say beside the weights
    watched.py    training losses as curves, where validation is rare
    charts.py     the pictures
    html.py and terminal.py render the same sections

Everything is made from the run directory alone, so that a page can be made again from an old run.
"""

import pathlib

from rich.console import Console

from lagjax.progress import Terminal
from lagjax.report import facts, html, terminal
from lagjax.store import directory
from lagjax.store.files import write_atomically

__all__ = ["picture", "show", "write"]


def write(run: str | pathlib.Path) -> pathlib.Path:
    """Makes RUN/report.html from the run directory alone, and returns its path.

    The same run gives the same bytes. The page replaces an older one in one step, so a reader never
    meets half of it.

    Raises:
      ValueError: `run` is no run directory, or what it holds cannot be understood.
      ImportError: matplotlib is missing; the message says how to get it.
    """
    target = pathlib.Path(run) / "report.html"
    write_atomically(target, html.render(_facts(run)))
    return target


def picture(run: str | pathlib.Path, path: str | pathlib.Path) -> pathlib.Path:
    """Writes the curves of a run as an SVG of its own, for a document, and returns its path.

    Raises:
      ValueError: `run` is no run directory, or nothing in it has been measured yet.
      ImportError: matplotlib is missing; the message says how to get it.
    """
    found = _facts(run)
    if not any(curve.losses for curve in found.probes.values()):
        raise ValueError(f"{run} has no candidate that was measured; let the run go on first")
    write_atomically(pathlib.Path(path), html.picture(found))
    return pathlib.Path(path)


def show(run: str | pathlib.Path, console: Console | None = None) -> None:
    """Prints the decision of a run: a sentence, the candidates, the audit, the ledger.

    Raises ValueError where `run` is no run directory.
    """
    terminal.show(_facts(run), console or Terminal())


def _facts(run: str | pathlib.Path) -> facts.Facts:
    return facts.gather(directory.read(run), directory.training_losses(run))
