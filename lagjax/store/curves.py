"""curves.jsonl: one line for each evaluation, kept by trial."""

import json
import pathlib
from collections.abc import Iterator, Sequence

from lagjax.jobs import Line, Trial
from lagjax.store.files import append, read_lines, write_atomically


class Curves:
    """The evaluations of a run.

    Raises ValueError where the file is damaged.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._lines: dict[Trial, list[Line]] = {}
        self._keep(read_lines(path, mend=True))

    def __iter__(self) -> Iterator[Line]:
        return (line for lines in self._lines.values() for line in lines)

    def of(self, trial: Trial) -> Sequence[Line]:
        """A trial's evaluations, in order of steps."""
        return self._lines.get(trial, ())

    def add(self, lines: Sequence[Line]) -> None:
        """Adds evaluations; they are on disk when this returns."""
        # One write: a kill leaves all lines, or a last one cut short, which is mended on opening.
        append(self._path, _text(lines).encode())
        self._keep(lines)

    def cut(self, trial: Trial, step: int) -> None:
        """Drops a trial's evaluations after a step: they will be made again."""
        kept = [line for line in self.of(trial) if line["step"] <= step]
        if len(kept) < len(self.of(trial)):
            self._lines[trial] = kept
            write_atomically(self._path, _text(list(self)))

    def _keep(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self._lines.setdefault(Trial(line["candidate"], line["seed"]), []).append(dict(line))


def _text(lines: Sequence[Line]) -> str:
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
