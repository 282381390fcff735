"""Result rows: what an experiment measured, one JSON object a line, and the tables that show them.

A row is one candidate with one seed, or one benchmark, with everything needed to repeat it.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lagjax import fingerprint
from lagjax.store import directory

HERE = Path(__file__).parent
RESULTS = HERE / "results"
Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """The rows of a file, a line each or in a list; none where there is no file."""
    if not path.is_file():
        return []
    if path.suffix == ".json":
        rows: list[Row] = json.loads(path.read_text())
        return rows
    return [json.loads(line) for line in path.read_text().splitlines()]


def store(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows to a file, in place of those of the same configuration, seed, candidate, device."""

    def same(row: Row) -> str:
        keys = ("question", "config", "candidate", "seed", "device")
        return json.dumps([row.get(key) for key in keys], sort_keys=True)

    new = {same(row) for row in rows}
    kept = [row for row in read(path) if same(row) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in [*kept, *rows])
    directory.write_atomically(path, text)


def environment() -> Row:
    """What a row says of where it was made: commit, versions, device and cores."""
    here = fingerprint.environment()
    return {"commit": here["versions"]["commit"], **here}


def alike(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each configuration and device, in the order of their first ones."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        key = json.dumps([row["config"], row["device"]], sort_keys=True)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; its first column is of words, the others are of numbers."""
    rule = ("---", *["---:"] * (len(head) - 1))
    return "".join("| " + " | ".join(line) + " |\n" for line in (head, rule, *lines))
