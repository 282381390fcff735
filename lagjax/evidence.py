"""The record as a policy may see it: all that was measured, up to what was asked for.

Cut there, because a resumed run must see what it saw: a record may go further than the answers so
far.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lagjax.analysis.margin import Margin, margin, steps_margin
from lagjax.jobs import Line, Trial
from lagjax.store.directory import Store
from lagjax.task import Candidate, Task


class Known(NamedTuple):
    """What is known of a candidate.

    Attributes:
        candidate: its operator, target, role and transfer.
        word: where its layers come from, as text; None where the operator has no plan or no stack
            of layers.
        exact: whether it keeps the function, if the table tells all that the model does; None
            without a plan.
        suspect: what to look at first if it does not, see `certify.readings.suspect`.
        step_flops: FLOPs of one training step.
        evaluation_flops: FLOPs of one evaluation on all shards.
        horizon: steps of its full training, see `Task.horizon_of`.
        status: "ok", or why it failed.
    """

    candidate: Candidate
    word: str | None
    exact: bool | None
    suspect: str | None
    step_flops: float
    evaluation_flops: float
    horizon: int
    status: str = "ok"

    @property
    def able(self) -> bool:
        """Whether it can win."""
        return self.candidate.role == "candidate"

    @property
    def baseline(self) -> bool:
        """Whether it is what growing is compared with: what it costs is no part of the search."""
        return self.candidate.role == "baseline"


@dataclass(frozen=True)
class Evidence:
    """All that was measured up to what was asked for: a function of the record and of the answers
    so far.

    Attributes:
        known: name → what is known of a candidate, in the pool's order.
        asked: name → the step that it was last asked to be probed to; a candidate that was not
            asked for is absent.
        lines: trial → its evaluations, as in curves.jsonl, without the seconds, which no two runs
            share.
        train: trial → the training loss of every step, `[steps]`.
        counts: what each validation shard's loss was divided by, `[shards]`.
        horizon: the task's.
        seeds: how many.
        additions: how often the policy has added candidates.
        spent: FLOPs of training, evaluation and fits so far, those of baselines left out.
    """

    known: Mapping[str, Known]
    asked: Mapping[str, int]
    lines: Mapping[Trial, Sequence[Line]]
    train: Mapping[Trial, NDArray[np.float32]]
    counts: NDArray[np.float64]
    horizon: int
    seeds: int
    additions: int
    spent: float

    @classmethod
    def nothing(cls, known: Mapping[str, Known], task: Task) -> "Evidence":
        """What a policy sees before anything was measured."""
        counts = np.ones(len(task.valid))
        return cls(known, {}, {}, {}, counts, task.horizon, task.seeds, 0, 0.0)

    def reached(self, name: str) -> int:
        """The step to which a candidate was probed, whether or not it failed before; -1 where it
        has not begun.
        """
        return self.asked.get(name, -1)

    @property
    def frontier(self) -> int:
        """The furthest step that any candidate was probed to; 0 before the first probe."""
        return max(self.asked.values(), default=0)

    @functools.cached_property
    def _at(self) -> dict[tuple[str, int], list[Line | None]]:
        found: dict[tuple[str, int], list[Line | None]] = {}
        for trial, lines in self.lines.items():
            for line in lines:
                each = found.setdefault((trial.candidate, line["step"]), [None] * self.seeds)
                each[trial.seed] = line
        return found

    def steps(self, name: str) -> tuple[int, ...]:
        """The steps at which a candidate was evaluated with every seed."""
        return tuple(
            sorted(
                step for (one, step), found in self._at.items() if one == name and None not in found
            )
        )

    def shards(self, name: str, step: int) -> NDArray[np.float64] | None:
        """Validation losses `[seeds, shards]` at a step, NaN where they are not finite; None where
        it was not evaluated there.
        """
        lines = self._at.get((name, step), [None])
        if any(line is None for line in lines):
            return None
        return np.array([line["valid_loss_shards"] for line in lines if line], np.float64)

    def loss(self, name: str, step: int) -> float | None:
        """The validation loss at a step, the mean over seeds; None where it is not finite or was
        not measured.
        """
        shards = self.shards(name, step)
        lines = self._at.get((name, step), ())
        if shards is None or any(line and line["status"] != "ok" for line in lines):
            return None
        return float((shards * (self.counts / self.counts.sum())).sum(axis=-1).mean())

    def losses(self, step: int) -> dict[str, float | None]:
        """Name → loss at a step."""
        return {name: self.loss(name, step) for name in self.known}

    def last(self, name: str) -> float | None:
        """The loss where a candidate was last probed to."""
        return self.loss(name, self.reached(name))

    def ranking(self, step: int | None = None) -> tuple[str, ...]:
        """Those that may win and were measured at a step, by default each at its own last; lowest
        loss first.
        """
        names = [name for name, known in self.known.items() if known.able]
        found = {name: self.last(name) if step is None else self.loss(name, step) for name in names}
        finite = {name: loss for name, loss in found.items() if loss is not None}
        return tuple(sorted(finite, key=lambda name: finite[name]))

    def margin(self, one: str, other: str, step: int | None = None) -> Margin:
        """How much lower the validation loss of `one` is than that of `other`, paired by seed and
        shard.

        At a step, by default each at its own last. Raises ValueError where one of them was not
        measured there.
        """
        pair = [
            self.shards(name, self.reached(name) if step is None else step) for name in (one, other)
        ]
        if pair[0] is None or pair[1] is None:
            where = "at the last of each" if step is None else f"at step {step}"
            raise ValueError(
                f"{one!r} was evaluated at the steps {self.steps(one)}, {other!r} at "
                f"{self.steps(other)}; a margin {where} needs both there"
            )
        return margin(pair[0], pair[1], self.counts)

    def train_margin(self, one: str, other: str, start: int, stop: int) -> Margin:
        """How much lower the training loss of `one` is than that of `other` over the steps from
        `start` to `stop`.

        Both see the same batches, which on data seen once makes this unbiased, paired evidence that
        costs nothing. Raises ValueError where one of them has not made these steps.
        """
        rows = []
        for name in (one, other):
            losses = [self.train.get(Trial(name, seed), ()) for seed in range(self.seeds)]
            made = min(map(len, losses))
            if not 0 <= start < stop <= made:
                raise ValueError(
                    f"{name!r} has made {made} steps; a margin over the steps {start} to {stop} "
                    "needs all of them, and at least one"
                )
            rows.append(np.array([each[start:stop] for each in losses], np.float64))
        return steps_margin(*rows)

    def left(self, name: str) -> float:
        """FLOPs that a candidate's training with one seed still takes to its horizon."""
        known = self.known[name]
        return (known.horizon - max(self.reached(name), 0)) * known.step_flops

    def steps_for(self, flops: float) -> dict[str, int]:
        """Name → the steps that so many FLOPs of training buy, at least one and at most the
        horizon.
        """
        return {
            name: known.horizon
            if flops >= known.horizon * known.step_flops
            else max(1, round(flops / known.step_flops))
            for name, known in self.known.items()
        }


def gather(
    store: Store,
    known: Mapping[str, Known],
    asked: Mapping[str, int],
    additions: int,
    task: Task,
    fits: float,
) -> Evidence:
    """The record, cut at what was asked for.

    Args:
        store: the run directory.
        known: what is known of all candidates before they are trained.
        asked: name → step, of those that were probed.
        additions: how often the policy has added candidates.
        task: its horizon and seeds.
        fits: FLOPs of making operators and of measuring moments.
    """
    lines, train, known, spent = {}, {}, dict(known), fits
    for name, until in asked.items():
        for trial in (Trial(name, seed) for seed in range(task.seeds)):
            lines[trial] = [
                {field: value for field, value in line.items() if field != "seconds"}
                for line in store.curves.of(trial)
                if line["step"] <= until
            ]
            train[trial] = store.losses.of(trial)[:until]
            if not known[name].baseline:
                spent += len(train[trial]) * known[name].step_flops
                spent += len(lines[trial]) * known[name].evaluation_flops
            last = lines[trial][-1]["status"]
            if last != "ok" and known[name].status == "ok":
                seed = f" with seed {trial.seed}" if task.seeds > 1 else ""
                known[name] = known[name]._replace(status=last + seed)
    counts = np.array(store.config.get("shard_tokens", [1.0] * len(task.valid)), np.float64)
    return Evidence(
        known, dict(asked), lines, train, counts, task.horizon, task.seeds, additions, spent
    )
