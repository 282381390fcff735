"""What a trial has measured: the sums between two evaluations, and the line of each evaluation."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lagjax.jobs import Json, Line


@dataclasses.dataclass
class Tally:
    """What a trial has measured since its last evaluation, and what it has taken in all; saved with
    its checkpoints.

    Attributes:
        growth: its growth record, with the versions that it was grown with; None where no record
            can hold the operator.
        sums: metric → sum and count since the last evaluation; the last reading, where the count is
            0.
        tokens: that it was trained on.
        seconds: of training and evaluation.
        failed_at: the first step whose loss was not finite, or -1.
        losses: of the steps since the last checkpoint.
        lines: of the evaluations since the last checkpoint.
        over: whether its curve has ended in a failure.
        latest: its last evaluation since the job began.
    """

    growth: Json | None
    sums: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    tokens: float = 0.0
    seconds: float = 0.0
    failed_at: int = -1
    losses: list[np.float32] = dataclasses.field(default_factory=list)
    lines: list[Line] = dataclasses.field(default_factory=list)
    over: bool = False
    latest: Line | None = None

    SAVED: ClassVar = ("growth", "sums", "tokens", "seconds", "failed_at")

    def add(self, names: Sequence[str], buffer: NDArray[np.float32], step: int) -> None:
        """Takes in the metrics of some steps, `[steps, metrics, 2]`; `step` were made before
        them.
        """
        # One after another, so that sums do not depend on where a call ends.
        for index, row in enumerate(buffer):
            for name, (total, count) in zip(names, row):
                before = self.sums.get(name, (0.0, 0.0)) if count else (0.0, 0.0)
                self.sums[name] = before[0] + float(total), before[1] + float(count)
            total, count = row[names.index("loss")]
            self.losses.append(total / count if count else total)
            self.tokens += float(count)
            if self.failed_at < 0 and not np.isfinite(self.losses[-1]):
                self.failed_at = step + index + 1

    def means(self) -> dict[str, float | None]:
        """The metrics since the last evaluation, which they are counted anew from."""
        found = {name: _mean(total, count) for name, (total, count) in self.sums.items()}
        self.sums = {}
        return found


class Reading(NamedTuple):
    """What an evaluation of one trial's weights gave.

    Attributes:
        loss: the mean over the shards; NaN where it is not finite.
        shards: the loss of each shard, None where it is not finite.
        tokens: what each of them was divided by.
        metrics: the engine's others, by name.
    """

    loss: float
    shards: list[float | None]
    tokens: tuple[float, ...]
    metrics: dict[str, float | None]


def reading(found: Mapping[str, NDArray[np.float64]]) -> Reading:
    """A reading of metrics as sums and counts, `[2, shards]` each."""
    metrics = dict(found)
    sums, counts = metrics.pop("loss")
    with np.errstate(invalid="ignore"):
        # A shard without tokens has no weight either; without any there is no loss.
        shards = sums / np.where(counts == 0, 1, counts)
        loss = sums.sum() / counts.sum() if counts.any() else np.nan
    own = {name: _mean(*_over(pair)) for name, pair in metrics.items()}
    return Reading(float(loss), [_finite(x) for x in shards], tuple(counts.tolist()), own)


def _over(shards: NDArray[np.float64]) -> tuple[float, float]:
    """Sum and count of `[2, shards]`; of readings, which do not add up, the last one."""
    total, count = shards.sum(axis=1)
    return (total, count) if count else (shards[0, -1], 0.0)


def losses_of(read: Reading) -> Json:
    """A reading as a line has that of an average."""
    loss = read.loss if np.isfinite(read.loss) else None
    return {"valid_loss": loss, "valid_loss_shards": read.shards}


def _finite(x: Any) -> float | None:
    return float(x) if np.isfinite(x) else None


def _mean(total: float, count: float) -> float | None:
    return _finite(total / count if count else total)
