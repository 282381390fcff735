"""The tables made from result rows.

    python -m experiments.tables                    # experiments/README.md from results/*.jsonl
    python -m experiments.tables RUN [RUN ...]      # after adding the rows of finished audits

Each experiment brings its own section. No number in the tables is typed: a test fails where
README.md is not what the committed rows give.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro

from experiments import (
    audit,
    bank_findings,
    benchmark,
    curves,
    datasheet,
    evidence_findings,
    one_shot,
    optimizers,
    pictures,
    scale,
    width_findings,
)
from experiments.cli import command
from experiments.rows import HERE, RESULTS, Row, markdown, read, store
from lagjax.store import directory

HEAD = (
    "# What the experiments found\nMade by `python -m experiments.tables` from the rows in "
    "`results/`; do not edit. Losses are validation losses in nats per\ntoken that is predicted. "
    "Every row has its configuration, seed, commit, versions and device.\n"
)
SECTIONS: dict[str, Callable[[list[Row]], list[str]]] = {
    "hypotheses.json": bank_findings.sections,
    "worth.json": bank_findings.worth_sections,
    "regimes.json": bank_findings.regime_sections,
    "one_shot.jsonl": one_shot.sections,
    "evidence.jsonl": evidence_findings.sections,
    "coverage.jsonl": evidence_findings.coverage,
    "audit.jsonl": audit.sections,
    "benchmark.jsonl": benchmark.sections,
    "width.jsonl": width_findings.sections,
    "scale.jsonl": scale.sections,
}
"""What makes the parts of a file of rows, in the order of the page."""
ON_A_GPU = {
    "benchmark.jsonl": "python -m experiments.benchmark --record",
    "one_shot.jsonl": "python -m experiments.one_shot --model MODEL --size small --record",
}
"""Experiments that a GPU makes more of, and how their rows are made there."""
FRONT: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "operators": ("conformance.jsonl", lambda rows: _operators(rows)),
    "optimizers": ("optimizers.jsonl", optimizers.table),
    "choices": ("regimes.json", bank_findings.choices),
}
"""The tables of the front page: the name in its marks → the file of rows, what makes it of them."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to add before the tables are made."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run directories of finished audits; rows of the same configuration are replaced."""
    results: Path = RESULTS
    """The folder of the rows."""
    readme: Path = HERE / "README.md"
    """Where the tables go."""
    front: Path = HERE.parent / "README.md"
    """Where the tables of the front page go, between their marks."""


def main(arguments: Arguments) -> None:
    """Adds rows and writes the tables; raises ValueError for a run that is no finished audit."""
    # All are read before any is written: one bad directory changes nothing.
    if added := [row for run in arguments.runs for row in audit.rows_of(run)]:
        store(arguments.results / "audit.jsonl", added)
    directory.write_atomically(arguments.readme, render(arguments.results))
    datasheet.write(arguments.results / "curves")
    for name, draw in pictures.PICTURES.items():
        if found := read(arguments.results / name):
            path = arguments.results / name
            pictures.save(draw(found), path.with_suffix(".svg"), found)
    for name, (file, _) in FRONT.items():
        if found := read(arguments.results / file):
            text = with_table(name, arguments.front.read_text(), found)
            directory.write_atomically(arguments.front, text)


def render(results: Path) -> str:
    """The tables of all rows, as Markdown."""
    parts = [HEAD]
    for name, sections in SECTIONS.items():
        parts += sections(read(results / name))
    return "\n".join(parts + _missing(results))


def _missing(results: Path) -> list[str]:
    """What has no rows yet: tasks of the bank, and experiments on a GPU."""
    absent = [name for name in curves.TASKS if not (results / "curves" / f"{name}.npz").exists()]
    lines = [f"- tasks of the bank: {', '.join(absent)}\n"] * bool(absent)
    for name, how in ON_A_GPU.items():
        if not any(str(row["device"]).startswith("gpu") for row in read(results / name)):
            lines.append(f"- `{name}` from a GPU: `{how}`\n")
    return ["## What is missing\n" + "".join(lines)] * bool(lines)


def with_table(name: str, text: str, rows: list[Row]) -> str:
    """A text with a table between its marks; raises ValueError where it has none."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(
            f"the text has no marks {begin} and {end}; put them where the table of {name} is to go"
        )
    return f"{before}{begin}\n{FRONT[name][1](rows)}{end}{after}"


def _operators(rows: list[Row]) -> str:
    """A line for each operator.

    It says where the operator is exact, what it then asks and what was measured there; elsewhere,
    how far off it is.
    """
    head = (
        "Operator",
        "Exact on",
        "asks for",
        "float64",
        "float32",
        "bfloat16",
        "elsewhere",
        "dead",
        "twins apart",
    )
    lines = []
    for name in dict.fromkeys(row["operator"] for row in rows):
        mine = [row for row in rows if row["operator"] == name]
        exact = [row for row in mine if row["proved"].startswith("exact")]
        others = [
            row["max_diff_f64"] for row in mine if row not in exact and row["proved"] != "refused"
        ]
        asks = sorted({need.split()[0] for row in exact for need in row["requires"]})
        twins = [x for row in mine if (x := row["twin_distance"]) is not None]

        def worst(key: str, exact: list[Row] = exact) -> str:
            return f"{max(row[key] for row in exact):.0e}" if exact else "–"

        lines.append(
            (
                name,
                f"{len(exact)} of {len(mine)}",
                ", ".join(asks) or "–",
                *(worst(f"max_diff_{key}") for key in ("f64", "f32", "bf16")),
                f"{np.median(others):.0e}" if others else "–",
                f"{max(row['dead_fraction'] or 0 for row in mine):.0%}",
                ("never" if min(twins) < 1e-6 else f"{min(twins):.0e}") if twins else "–",
            )
        )
    return markdown(head, lines)


cli = command(main, "tables", Arguments, __doc__)


if __name__ == "__main__":
    sys.exit(cli())
