"""The run directory: the files that a run leaves, how they are read, and how they are written so that no kill harms them.

    RUN/config.json    everything needed to repeat the run
    RUN/curves.jsonl   one line per evaluation
    RUN/checkpoints/   Orbax: the source model and each candidate's full training state
    RUN/decision.json  what was chosen, and how surely
    RUN/report.html    the page made from the files above
"""

import json
import pathlib
from typing import Any, NamedTuple


class Record(NamedTuple):
    """What a run directory says, as plain Python data."""

    config: dict[str, Any]
    curves: list[dict[str, Any]]
    decision: dict[str, Any] | None


def read(path: str | pathlib.Path) -> Record:
    """Reads a run directory; `decision` is None where the run has not come that far.

    Raises ValueError where `path` is no run directory.
    """
    root = pathlib.Path(path)
    if not (root / "config.json").is_file():
        raise ValueError(
            f"{root} is no run directory: it has no config.json. "
            "Give the directory that was passed as --workdir."
        )
    config = json.loads((root / "config.json").read_text())
    curves_file = root / "curves.jsonl"
    curves = read_lines(curves_file) if curves_file.is_file() else []
    decision_file = root / "decision.json"
    decision = json.loads(decision_file.read_text()) if decision_file.is_file() else None
    return Record(config, curves, decision)


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON-lines file; a last line cut short by a kill is left out."""
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
