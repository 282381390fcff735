"""RUN/steps: the training loss of every step, a file of float32 for each trial.

The length of a trial's file is the step up to which its record stands: losses are written last. No
file: it has not grown.
"""

import hashlib
import os
import pathlib
import urllib.parse

import numpy as np
from numpy.typing import NDArray

from lagjax.jobs import Trial
from lagjax.store.files import append

_FLOAT = np.dtype("<f4")


class Losses:
    """The training losses of a run's trials; `folder` is made when it is first written."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder

    def count(self, trial: Trial) -> int:
        """The step up to which a trial's losses stand; -1 where it has not grown."""
        path = self._path(trial)
        # A loss that a kill cut short does not count.
        return path.stat().st_size // _FLOAT.itemsize if path.is_file() else -1

    def of(self, trial: Trial) -> NDArray[np.float32]:
        """The losses of a trial's steps, the first one's first."""
        if self.count(trial) < 1:
            return np.zeros(0, np.float32)
        return np.fromfile(self._path(trial), _FLOAT, self.count(trial)).astype(np.float32)

    def cut(self, trial: Trial, step: int) -> None:
        """Drops a trial's losses after a step; at -1 all of its record."""
        path = self._path(trial)
        if step < 0:
            path.unlink(missing_ok=True)
        elif path.is_file():
            size = min(step, self.count(trial)) * _FLOAT.itemsize
            # A finished run that is called again leaves its files as they are.
            if path.stat().st_size > size:
                os.truncate(path, size)

    def add(self, trial: Trial, losses: NDArray[np.float32]) -> None:
        """Adds the losses of further steps; they are on disk when this returns."""
        self._folder.mkdir(exist_ok=True)
        append(self._path(trial), np.asarray(losses, _FLOAT).tobytes())

    def _path(self, trial: Trial) -> pathlib.Path:
        return self._folder / f"{file_name(trial)}.f32"


LONGEST = 120
"""Letters of a file's name: file systems take 255 bytes, of which Orbax and `.f32` need some."""


def file_name(trial: Trial) -> str:
    """A trial as part of a path: its name as far as it goes, and a digest of what is left out."""
    name = urllib.parse.quote(trial.candidate, safe="")
    if len(name) > LONGEST:
        left_out = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        name = f"{name[:LONGEST]}~{left_out}"
    return f"{name}-{trial.seed}"
