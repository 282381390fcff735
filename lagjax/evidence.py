"""The record as a policy may see it: all that was measured, up to what was asked for.

Cut there, because a resumed run must see what it saw: a record may go further than the answers so
far.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lagjax.analysis.margin import (
    Estimate,
    Margin,
    agree,
    combined,
    of_shards,
    of_steps,
    steps_margin,
    window,
)
from lagjax.jobs import ANNEAL, RAW, Line, Trial, evaluated
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


class Lead(NamedTuple):
    """How far one candidate is ahead.

    Attributes:
        leader: its name.
        over: name → how much lower its loss is than that of each other candidate.
        why: training losses were left out of it; "" where they were not.
    """

    leader: str
    over: Mapping[str, Margin]
    why: str


SHORTEST = 10
"""Steps that a window of training losses has at least."""


@dataclass(frozen=True)
class Evidence:
    """All that was measured up to what was asked for: a function of the record and of the answers
    so far.

    Losses are of the weights that are named: "raw", themselves; a name of the task's averages; or
    "anneal", those of a copy that was annealed at the step.

    Attributes:
        known: name → what is known of a candidate, in the pool's order.
        asked: name → the step that it was last asked to be probed to; a candidate that was not
            asked for is absent.
        lines: trial → its evaluations, as in curves.jsonl, without the seconds, which no two runs
            share.
        anneals: trial → those of its annealed copies.
        averages: names of the task's averages.
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
    anneals: Mapping[Trial, Sequence[Line]] = dataclasses.field(default_factory=dict)
    averages: tuple[str, ...] = ()

    @classmethod
    def nothing(cls, known: Mapping[str, Known], task: Task) -> "Evidence":
        """What a policy sees before anything was measured."""
        counts = np.ones(len(task.valid))
        averages = (*task.averages,)
        return cls(known, {}, {}, {}, counts, task.horizon, task.seeds, 0, 0.0, {}, averages)

    def check_weights(self, weights: str) -> None:
        """Raises ValueError for weights that this run does not evaluate."""
        there = (RAW, *self.averages, ANNEAL)
        if weights not in there:
            raise ValueError(
                f"there are no weights {weights!r}; there are {list(there)}: give one of them, or "
                "keep the average, Task(averages={name: lagjax.Ema(half_life=1 / 32)})"
            )

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
    def _at(self) -> dict[tuple[str, int, str], list[Line | None]]:
        found: dict[tuple[str, int, str], list[Line | None]] = {}
        for own, trial, line in [
            (own, trial, line)
            for own, trials in ((RAW, self.lines), (ANNEAL, self.anneals))
            for trial, lines in trials.items()
            for line in lines
        ]:
            for weights, read in {own: line, **(line.get("averages") or {})}.items():
                at = trial.candidate, line["step"], weights
                told = {**read, "status": line["status"]}
                found.setdefault(at, [None] * self.seeds)[trial.seed] = told
        return found

    def steps(self, name: str, weights: str = RAW) -> tuple[int, ...]:
        """The steps at which a candidate was evaluated with every seed."""
        return tuple(
            sorted(
                step
                for (one, step, which), found in self._at.items()
                if (one, which) == (name, weights) and None not in found
            )
        )

    def shards(self, name: str, step: int, weights: str = RAW) -> NDArray[np.float64] | None:
        """Validation losses `[seeds, shards]` at a step, NaN where they are not finite; None where
        it was not evaluated there. Shards are counted from the first on, and targets of other costs
        may have fewer or more of them.
        """
        lines = self._at.get((name, step, weights), [None])
        if any(line is None for line in lines):
            return None
        found = [line["valid_loss_shards"] for line in lines if line]
        fewest = min(map(len, found))
        return np.array([shards[:fewest] for shards in found], np.float64)

    def annealed(self, name: str, step: int) -> bool:
        """Whether copies of a candidate were annealed at a step."""
        return (name, step, ANNEAL) in self._at

    def loss(self, name: str, step: int, weights: str = RAW) -> float | None:
        """The validation loss at a step, the mean over seeds; None where it is not finite or was
        not measured.
        """
        return self.losses_at({name: step}, weights)[name]

    def losses_at(self, steps: Mapping[str, int], weights: str = RAW) -> dict[str, float | None]:
        """Name → loss, each at a step of its own, on the shards that all of them were measured on:
        shards differ by more than candidates do.
        """
        shards = {name: self.shards(name, step, weights) for name, step in steps.items()}
        fewest = min((x.shape[1] for x in shards.values() if x is not None), default=0)
        counts = self.counts[:fewest]
        losses: dict[str, float | None] = dict.fromkeys(steps)
        for name, step in steps.items():
            own, lines = shards[name], self._at.get((name, step, weights), ())
            if own is None or any(line and line["status"] != "ok" for line in lines):
                continue
            mean = float((own[:, :fewest] * (counts / counts.sum())).sum(axis=-1).mean())
            # An average may overflow where the weights do not.
            losses[name] = mean if np.isfinite(mean) else None
        return losses

    def losses(self, step: int, weights: str = RAW) -> dict[str, float | None]:
        """Name → loss at a step."""
        return self.losses_at(dict.fromkeys(self.known, step), weights)

    def last(self, name: str, weights: str = RAW) -> float | None:
        """The loss where a candidate was last probed to."""
        return self.loss(name, self.reached(name), weights)

    def ranking(self, step: int | None = None, weights: str = RAW) -> tuple[str, ...]:
        """Those that may win and were measured at a step, by default each at its own last; lowest
        loss first.
        """
        names = [name for name, known in self.known.items() if known.able]
        found = self.losses_at(
            {name: self.reached(name) if step is None else step for name in names}, weights
        )
        finite = {name: loss for name, loss in found.items() if loss is not None}
        return tuple(sorted(finite, key=lambda name: finite[name]))

    def margin(self, one: str, other: str, step: int | None = None, weights: str = RAW) -> Margin:
        """How much lower the validation loss of `one` is than that of `other`, paired by seed and
        shard.

        At a step, by default each at its own last. Raises ValueError where one of them was not
        measured there.
        """
        return self._of_shards(one, other, step, weights).margin

    def _of_shards(self, one: str, other: str, step: int | None, weights: str) -> Estimate:
        pair = [
            self.shards(name, self.reached(name) if step is None else step, weights)
            for name in (one, other)
        ]
        if pair[0] is None or pair[1] is None:
            where = "at the last of each" if step is None else f"at step {step}"
            raise ValueError(
                f"the weights {weights!r} of {one!r} were evaluated at the steps "
                f"{self.steps(one, weights)}, those of {other!r} at "
                f"{self.steps(other, weights)}; a margin {where} needs both there"
            )
        fewest = min(shards.shape[1] for shards in (pair[0], pair[1]))
        return of_shards(pair[0][:, :fewest], pair[1][:, :fewest], self.counts[:fewest])

    def train_margin(self, one: str, other: str, start: int, stop: int) -> Margin:
        """How much lower the training loss of `one` is than that of `other` over the steps from
        `start` to `stop`.

        Both see the same batches, which on data seen once makes this unbiased, paired evidence that
        costs nothing. Raises ValueError where one of them has not made these steps.
        """
        return steps_margin(*self._trained(one, other, start, stop))

    def _of_steps(self, one: str, other: str, start: int, stop: int) -> Estimate:
        return of_steps(*self._trained(one, other, start, stop))

    def _trained(
        self, one: str, other: str, start: int, stop: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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
        return rows[0], rows[1]

    def lead(self, step: int | None = None, weights: str = RAW) -> Lead:
        """How far the leader at a step, by default the frontier, is ahead of each other candidate:
        by validation and by the training losses of the steps before it, as one.

        They serve to watch, and to leave clear losers behind; not to choose by alone. Training
        losses are of the weights themselves and of text that is trained on: where their
        differences are not those of validation (several epochs, dropout, auxiliary losses, a
        window that reaches into the warm-up, averaged weights), validation counts alone, and `why`
        says so.

        Raises ValueError where no candidate was measured there.
        """
        step = self.frontier if step is None else step
        if not (racing := self.ranking(step, weights)):
            raise ValueError(f"no candidate was evaluated at step {step}; let it ask for it first")
        leader, *others = racing
        valid = {name: self._of_shards(leader, name, step, weights) for name in others}
        why, length = "", window(step)
        if length < SHORTEST:
            why = f"{length} steps before step {step} are too few"
        elif others:
            steps = [self._of_steps(leader, name, step - length, step) for name in others]
            pairs = list(zip(valid.values(), steps))
            if not agree(pairs):
                why = f"training losses of the {length} steps before step {step} differ otherwise"
            else:
                valid = dict(zip(others, combined(pairs)))
        return Lead(leader, {name: each.margin for name, each in valid.items()}, why)

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
    annealed: Collection[tuple[str, int]],
    additions: int,
    task: Task,
    fits: float,
) -> Evidence:
    """The record, cut at what was asked for.

    Args:
        store: the run directory.
        known: what is known of all candidates before they are trained.
        asked: name → step, of those that were probed.
        annealed: name and step, where copies were annealed.
        additions: how often the policy has added candidates.
        task: its horizon and seeds.
        fits: FLOPs of making operators and of measuring moments.
    """
    lines, anneals, train, known, spent = {}, {}, {}, dict(known), fits
    for name, until in asked.items():
        for trial in (Trial(name, seed) for seed in range(task.seeds)):
            lines[trial] = [
                {field: value for field, value in line.items() if field != "seconds"}
                for line in store.curves.of(trial)
                if line["step"] <= until
            ]
            anneals[trial] = [
                line for line in store.curves.annealed(trial) if (name, line["step"]) in annealed
            ]
            train[trial] = store.losses.of(trial)[:until]
            if not known[name].baseline:
                spent += len(train[trial]) * known[name].step_flops
                spent += sum(line["flops"] for line in anneals[trial])
                for line in (*lines[trial], *anneals[trial]):
                    spent += evaluated(line) / len(task.valid) * known[name].evaluation_flops
            last = lines[trial][-1]["status"]
            if last != "ok" and known[name].status == "ok":
                seed = f" with seed {trial.seed}" if task.seeds > 1 else ""
                known[name] = known[name]._replace(status=last + seed)
    counts = np.array(store.config.get("shard_tokens", [1.0] * len(task.valid)), np.float64)
    # No further than a policy of before could see.
    seen = [len(line["valid_loss_shards"]) for each in lines.values() for line in each]
    return Evidence(
        known,
        dict(asked),
        lines,
        train,
        counts[: max(seen, default=len(counts))],
        task.horizon,
        task.seeds,
        additions,
        spent,
        anneals,
        (*task.averages,),
    )
