"""What the driver of a search and its workers say to each other: data only, so that it can travel.

A *trial* is a candidate with a seed. A *job* asks for trials to be brought to a step; *segments*
say what came of it, each from one checkpoint to the next.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Json: TypeAlias = dict[str, Any]
Line: TypeAlias = dict[str, Any]
"""One evaluation of a trial, as it stands in curves.jsonl."""

SOURCE = "source"
"""The small model's name in curves and checkpoints."""
RAW = "raw"
"""The weights themselves, beside the averages of them that are evaluated too."""
ANNEAL = "anneal"
"""The phase of an annealed copy's evaluation, and the name of its weights."""


class Trial(NamedTuple):
    """A candidate with a seed: what has a curve, losses and checkpoints of its own."""

    candidate: str
    seed: int


class Job(NamedTuple):
    """Trials to bring to a step under one compiled call.

    Attributes:
        rows: the trial of each row of the call; None where a row has nothing left to do. Every
            trial keeps its row, whatever the others have reached, so that an interrupted run
            repeats itself bitwise.
        at_once: rows that the compiled call has, at least as many as `rows`.
        until: the step to reach.
        evaluations: the steps after which to evaluate, ascending; `until` is the last. Those of
            earlier rounds are among them: where checkpoints are damaged, a trial begins before
            them, and its policy has seen them.
        shards: the validation shards that each of them takes, from the first on; empty where all
            take all.
        anneal: steps of an annealing, by copies, after `until`; see `annealing`.
        phase: what curves.jsonl calls the steps of this job: "source", "probe" or "continue".
        probed: the step up to which the trials were probed before: the phase up to there is
            "probe".
    """

    rows: tuple[Trial | None, ...]
    at_once: int
    until: int
    evaluations: tuple[int, ...]
    phase: str
    probed: int = -1
    shards: tuple[int, ...] = ()
    anneal: int = 0

    def shards_at(self, step: int) -> int | None:
        """How many validation shards the evaluation at a step takes; None for all."""
        return self.shards[self.evaluations.index(step)] if self.shards else None

    def phase_at(self, step: int) -> str:
        """The phase that a step belongs to."""
        return "probe" if step <= self.probed else self.phase

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Those that have something left to do."""
        return tuple(trial for trial in self.rows if trial is not None)


class Segment(NamedTuple):
    """What a worker did between two checkpoints; the later one is on disk when this is said.

    Attributes:
        trials: whose.
        start: the step of the earlier checkpoint; -1 where the trials were grown first.
        stop: the step of the later one.
        lines: the evaluations made, in order.
        losses: the training loss of every step, float32 `[stop - start]`; fewer of a trial that
            failed.
        shard_tokens: what each validation shard's loss was divided by; empty where nothing was
            evaluated.
    """

    trials: tuple[Trial, ...]
    start: int
    stop: int
    lines: tuple[Line, ...]
    losses: Mapping[Trial, NDArray[np.float32]]
    shard_tokens: tuple[float, ...] = ()


class Advance(NamedTuple):
    """Steps that were just made; for the display, and for nothing else.

    Attributes:
        trials: those that made them.
        step: at which they stand.
        made: how many.
        flops: of training, of all trials together.
        tokens: that they were trained on, all together.
        valid_loss: the last one measured, the mean over the trials; None before the first.
        train_loss: likewise.
    """

    trials: tuple[Trial, ...]
    step: int
    made: int
    flops: float
    tokens: float
    valid_loss: float | None
    train_loss: float | None


class Note(NamedTuple):
    """Something that the user should know, as a sentence."""

    text: str


Update: TypeAlias = Segment | Advance | Note


def evaluation_steps(horizon: int, *more: int, base: int = 4) -> tuple[int, ...]:
    """The steps after which a run is evaluated densely: 0, powers of `base` while they are close
    together, every sixteenth of the horizon, its end, and `more`."""
    every = max(1, horizon // 16)
    powers = {base**power for power in range(every.bit_length()) if base**power < every}
    return tuple(sorted({0, *powers, *range(every, horizon, every), horizon, *more}))


def evaluated(line: Line) -> int:
    """How many evaluations of a validation shard a line took: right after growing, averages are
    the weights themselves.
    """
    weights = 1 + len(line.get("averages") or ()) * (line["step"] > 0)
    shards: list[float | None] = line["valid_loss_shards"]
    return int(len(shards) * weights)
