"""curves.jsonl: one line for each evaluation, kept by trial."""

import json
import pathlib
from collections.abc import Iterator, Sequence

from lagjax.jobs import ANNEAL, Line, Trial
from lagjax.store.files import append, read_lines, write_atomically


class Curves:
    """The evaluations of a run.

    Raises ValueError where the file is damaged.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._lines: dict[Trial, list[Line]] = {}
        self._annealed: dict[Trial, list[Line]] = {}
        self._keep(read_lines(path, mend=True))

    def __iter__(self) -> Iterator[Line]:
        both = (*self._lines.values(), *self._annealed.values())
        return (line for lines in both for line in lines)

    def of(self, trial: Trial) -> Sequence[Line]:
        """A trial's evaluations, in order of steps."""
        return self._lines.get(trial, ())

    def annealed(self, trial: Trial) -> Sequence[Line]:
        """The evaluations of a trial's annealed copies; `step` is where they were made."""
        return self._annealed.get(trial, ())

    def add(self, lines: Sequence[Line]) -> None:
        """Adds evaluations; they are on disk when this returns."""
        # One write: a kill leaves all lines, or a last one cut short, which is mended on opening.
        append(self._path, _text(lines).encode())
        self._keep(lines)

    def cut(self, trial: Trial, step: int) -> None:
        """Drops a trial's evaluations after a step: they will be made again."""
        for lines in (self._lines, self._annealed):
            there = lines.get(trial, [])
            kept = [line for line in there if line["step"] <= step]
            if len(kept) < len(there):
                lines[trial] = kept
                write_atomically(self._path, _text(list(self)))

    def _keep(self, lines: Sequence[Line]) -> None:
        for line in lines:
            among = self._annealed if line.get("phase") == ANNEAL else self._lines
            among.setdefault(Trial(line["candidate"], line["seed"]), []).append(dict(line))


def _text(lines: Sequence[Line]) -> str:
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
