"""The datasheet of the bank of growth curves: what its files hold, made from their rows.

python -m experiments.datasheet
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import bank, curves
from experiments.cli import command
from experiments.rows import markdown
from lagjax.store import directory

TEXTS = {
    "stdlib": "the source of Python's standard library, of the interpreter that ran the task: "
    "Python Software Foundation License",
    "wikitext2": "WikiText-2 (Merity et al. 2016, arXiv 1609.07843), its validation and test "
    "parts, articles of Wikipedia: Creative Commons Attribution-ShareAlike",
    "vim": "the manual of Vim, of Debian's package vim-runtime: Open Publication License",
}
"""Licences of the texts, no part of which is in the bank."""
ABOUT = """\
# Datasheet of the bank of growth curves
Made by `python -m experiments.datasheet` from the rows in the files here; do not edit.

**What.** A file for each task. A small model is trained, grown in every way of a pool, and every
candidate is trained to the horizon with every seed; so are the baselines, the small model trained
on and the large one from scratch, for the FLOPs of a full training. Of each there are the training
loss of every step, validation losses of the weights and of their running average, those of every
shard, gradient norms and learning rates; of the small model its curve. `experiments.bank.Curves`
reads a file; its `row` has every number of the task. Losses are in nats per token.

**How.** `python -m experiments.curves TASK` makes a file or goes on with it; it is an audit by
lagjax's own engine. `python -m experiments.replay` runs a task's first steps again from its row
and from the small model that is kept beside it.

**Evaluations** are at 0, at powers of two, at every sixteenth of the horizon and at its end, on all
shards: more of them than ten, for about a seventh of the FLOPs.

**Design.** The first eight are a half fraction of four factors, 2^(4−1): A, whether the source's
rate is annealed to 0 or constant; B, whether the grown model's peak is the full rate or a tenth; C,
whether the source is trained 1,000 or 10,000 steps; D = ABC, whether the state is reset and the
rate warmed up again, or the state grown and the rate at its peak at once. Interactions of two stand
in pairs for each other: AB with CD, AC with BD, BC with AD."""
FAULTS = """\
**Known faults.** Models are tiny and horizons short: what is found here is a hypothesis for larger
ones. A task has one source; seeds are of growth and of data order. Windows are drawn at random, so
that some text is seen more than once, and training and validation are parts of the same files.
Where the state is grown the baseline from scratch has no warm-up, and where the source was
annealed to 0 the rate jumps to its peak at once. From one layer fewer ways of growing differ, and
there is no order to destroy: fewer candidates, and no control. The curves `evidence-*` are of an
earlier experiment, without baselines, words and rows. Hours depend on what else the machine did."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Where the files are."""

    curves: Path = bank.CURVES
    """Their folder."""


def main(config: Config) -> None:
    """Writes the datasheet."""
    write(config.curves)


def write(folder: Path) -> None:
    """Writes the datasheet of a folder's files into it."""
    folder.mkdir(parents=True, exist_ok=True)
    directory.write_atomically(folder / "README.md", render(folder))


def render(folder: Path) -> str:
    """The datasheet, as Markdown."""
    rows: dict[str, Mapping[str, Any]] = {}
    for name in curves.TASKS:
        path = folder / f"{name}.npz"
        rows[name] = bank.Curves.load(path).row if path.exists() else {}
    made = [row for row in rows.values() if row]
    held = [f"`{name}`" for name, entry in curves.TASKS.items() if entry.held_out]
    used = {entry.corpus for entry in curves.TASKS.values()}
    texts = "; ".join(f"`{name}`: {said}" for name, said in TEXTS.items() if name in used)
    apart = (
        f"**Held out.** {', '.join(held)} were named before their first run. No choice follows "
        "from them; they are used once, at the end."
    )
    parts = [
        ABOUT,
        apart,
        f"**Texts.** {texts}.",
        FAULTS,
        f"**Tasks.** {len(made)} of {len(rows)} are here.\n\n{_table(rows)}",
        *_places(made),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, row in rows.items():
        entry = curves.TASKS[name]
        told = [str(row["winner"]), f"{row['seconds'] / 3600:.2f}"] if row else ["–", "–"]
        failed = ", ".join(row["failed"]) or "none" if row else "–"
        seeds = str(row["config"]["seeds"]) if row else "–"
        held = "yes" if entry.held_out else ""
        lines.append((name, entry.about, entry.corpus, held, seeds, *told, failed))
    head = ("Task", "varied", "text", "held out", "seeds", "kept by the default", "hours", "failed")
    return markdown(head, lines)


def _places(made: list[Mapping[str, Any]]) -> list[str]:
    """Where the files were made."""
    found: dict[str, list[str]] = {}
    for row in made:
        where = (
            f"commit {str(row['commit'])[:12]}, jax {row['versions']['jax']}, {row['device']}, "
            f"{row['cores']} cores, text {row['corpus'][:12]}"
        )
        found.setdefault(where, []).append(row["config"]["task"])
    return ["**Made.** " + "; ".join(f"{', '.join(x)}: {at}" for at, x in found.items()) + "."] * (
        bool(found)
    )


cli = command(main, "datasheet", Config, __doc__)


if __name__ == "__main__":
    sys.exit(cli())
