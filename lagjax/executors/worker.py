"""A worker: restores or grows the trials of a job, trains and evaluates them, and checkpoints.

It adds checkpoints and says what it measured; it never writes the record and removes nothing.
"""

import dataclasses
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from numpy.typing import NDArray

from lagjax.engine import State
from lagjax.executors.workload import Workload
from lagjax.fingerprint import versions
from lagjax.initial import Group, first_step, operator_key
from lagjax.jobs import Advance, Job, Json, Line, Note, Segment, Trial, Update
from lagjax.probe import Program, steps_of, unstack
from lagjax.store import record
from lagjax.store.checkpoints import Checkpoints, Damaged


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


class Worker:
    """Does the jobs of one workload."""

    def __init__(self, work: Workload) -> None:
        self.work = work
        self.checkpoints = Checkpoints(work.checkpoints)

    def close(self) -> None:
        """Ends what it keeps open."""
        self.checkpoints.close()

    def run(self, job: Job) -> Iterator[Update]:
        """Brings the job's trials to its step, from the latest checkpoint that all of them have;
        grows those that have none.
        """
        group = self.work.groups[job.trials[0].candidate]
        program = group.program(job.at_once)
        step, states, tallies = yield from self._begin(job, group, program)
        several = job.at_once > 1
        # A row that is free repeats the first trial's.
        rows = [job.trials.index(trial) if trial else 0 for trial in job.rows]
        rows += [0] * (job.at_once - len(rows))
        state = program.place([states[index] for index in rows])
        seeds = range(self.work.task.seeds) if several else (job.trials[0].seed,)
        orders = np.array([list(seeds).index(job.trials[index].seed) for index in rows], np.int32)
        order = orders if several else orders[0]
        position = int(self.work.task.source.position)
        start, clock = step, time.monotonic()
        saved_at = clock
        tokens: tuple[float, ...] = ()
        if step < 0:
            step = 0
            tokens, clock = self._evaluate(job, program, state, tallies, step, clock)
        while step < job.until and not all(tally.over for tally in tallies.values()):
            stop = next(each for each in job.evaluations if each > step)
            count = min(program.length, stop - step)
            batches = steps_of(self.work.task.batch, seeds, position + step, count, program.length)
            state, buffer = program.advance(state, batches, order, np.int32(count))
            measured = np.asarray(buffer) if several else np.asarray(buffer)[None]
            for trial, tally in tallies.items():
                if not tally.over:
                    row = job.rows.index(trial)
                    tally.add(program.metrics, measured[row, :count], step)
            step += count
            if step == stop:
                tokens, clock = self._evaluate(job, program, state, tallies, step, clock)
            yield self._told(group, tallies, step, count)
            if step < job.until and time.monotonic() - saved_at >= self.work.checkpoint_seconds:
                yield self._save(job, group, state, tallies, start, step, tokens)
                start, saved_at = step, time.monotonic()
        if start < step:
            yield self._save(job, group, state, tallies, start, step, tokens)

    def again(self, trial: Trial, start: int, steps: int) -> NDArray[np.float32]:
        """The training losses of steps that are on record, made again; nothing is saved.

        Args:
            trial: whose.
            start: the step of a checkpoint of its, or -1: it is grown anew.
            steps: how many to make.
        """
        group = self.work.groups[trial.candidate]
        program, tally = group.program(1), Tally(None)
        if start < 0:
            candidate = self.work.candidates[trial.candidate]
            state = group.begin(candidate, self.work.key(trial), trial.seed)
        else:
            state, _ = self._restore(group, program, trial, start)
        position = int(self.work.task.source.position) + max(start, 0)
        batches = steps_of(self.work.task.batch, [trial.seed], position, steps, program.length)
        _, buffer = program.advance(program.place([state]), batches, np.int32(0), np.int32(steps))
        tally.add(program.metrics, np.asarray(buffer)[:steps], max(start, 0))
        return np.array(tally.losses, np.float32)

    def _begin(
        self, job: Job, group: Group, program: Program
    ) -> Generator[Update, None, tuple[int, list[State], dict[Trial, Tally]]]:
        """The step, the states and the tallies of the job's trials."""
        trials = job.trials
        common = set.intersection(*(set(self.checkpoints.steps(trial)) for trial in trials))
        for step in sorted(common, reverse=True):
            try:
                found = [self._restore(group, program, trial, step) for trial in trials]
            except Damaged as error:
                yield Note(f"{error}; going on from the last good one")
                continue
            return step, [state for state, _ in found], dict(zip(trials, (x for _, x in found)))
        states, tallies = [], {}
        for trial in trials:
            candidate = self.work.candidates[trial.candidate]
            states.append(group.begin(candidate, self.work.key(trial), trial.seed))
            growth, why = self._growth(trial)
            # Once for a candidate.
            if why and trial.seed == 0:
                yield Note(why)
            tallies[trial] = Tally(growth)
        return -1, states, tallies

    def _growth(self, trial: Trial) -> tuple[Json | None, str | None]:
        """How a trial was grown, as a record; or why no record can hold it."""
        key = operator_key(self.work.key(trial))
        try:
            operator = record.encode(self.work.candidates[trial.candidate].operator)
        except ValueError as error:
            return None, (
                f"the checkpoints of candidate {trial.candidate!r} will not say how it was grown: "
                f"{error}"
            )
        found = record.GrowthRecord(operator, record.encode(key), self.work.source, versions())
        return found.to_json(), None

    def _restore(
        self, group: Group, program: Program, trial: Trial, step: int
    ) -> tuple[State, Tally]:
        trained, rest, meta = self.checkpoints.restore(
            trial, step, *group.parts.apart(program.like)
        )
        told = {name: meta[name] for name in Tally.SAVED}
        told["sums"] = {name: tuple(pair) for name, pair in told["sums"].items()}
        return group.parts.together(trained, rest), Tally(**told)

    def _save(
        self,
        job: Job,
        group: Group,
        state: State,
        tallies: Mapping[Trial, Tally],
        start: int,
        stop: int,
        tokens: Sequence[float],
    ) -> Segment:
        """Checkpoints the trials that have not failed, and says what they did since the last
        time.
        """
        states = unstack(state, len(job.rows)) if job.at_once > 1 else [state]
        position = int(self.work.task.source.position)
        lines, losses = [], {}
        for trial, tally in tallies.items():
            if not tally.over:
                trained, rest = group.parts.apart(states[job.rows.index(trial)])
                begun = first_step(self.work.task, self.work.candidates[trial.candidate])
                trained = trained._replace(step=begun + stop, position=position + stop)
                meta = {name: getattr(tally, name) for name in Tally.SAVED}
                self.checkpoints.save(trial, stop, trained, rest, meta)
            lines += tally.lines
            losses[trial] = np.array(tally.losses, np.float32)
            tally.lines, tally.losses = [], []
        lines.sort(key=lambda line: line["step"])
        return Segment(tuple(tallies), start, stop, tuple(lines), losses, tuple(tokens))

    def _evaluate(
        self,
        job: Job,
        program: Program,
        state: State,
        tallies: Mapping[Trial, Tally],
        step: int,
        clock: float,
    ) -> tuple[tuple[float, ...], float]:
        """Adds a line to each trial that has not failed; returns the shards' tokens and the
        time.
        """
        group = self.work.groups[job.trials[0].candidate]
        found = jax.device_get(program.evaluate(state, group.shards))
        found = {name: np.asarray(pair, np.float64) for name, pair in found.items()}
        now = time.monotonic()
        tokens: tuple[float, ...] = ()
        for trial, tally in tallies.items():
            if tally.over:
                continue
            row = job.rows.index(trial)
            # [2, shards]
            metrics = {n: x[:, row] if job.at_once > 1 else x for n, x in found.items()}
            sums, counts = metrics.pop("loss")
            tokens = tuple(counts.tolist())
            with np.errstate(invalid="ignore"):
                # A shard without tokens has no weight either; without any there is no loss.
                shards = sums / np.where(counts == 0, 1, counts)
                loss = sums.sum() / counts.sum() if counts.any() else np.nan
            failed = tally.failed_at >= 0 or not np.isfinite(loss)
            at = tally.failed_at if tally.failed_at >= 0 else step
            means = tally.means()
            own = {f"valid_{name}": _mean(*_over(x)) for name, x in metrics.items()}
            tally.seconds += (now - clock) / len(tallies)
            tally.over = failed
            tally.latest = {
                "phase": job.phase_at(step),
                "candidate": trial.candidate,
                "seed": trial.seed,
                "step": step,
                "valid_loss": None if failed else float(loss),
                "valid_loss_shards": [_finite(x) for x in shards],
                "train_loss": means.pop("loss", None),
                "grad_norm": means.pop("grad_norm", None),
                "update_norm": means.pop("update_norm", None),
                "lr": means.pop("lr", None),
                "metrics": means | own,
                "tokens": int(tally.tokens),
                "flops": step * group.costs.step,
                "seconds": round(tally.seconds, 3),
                "status": f"loss not finite at step {at}" if failed else "ok",
            }
            tally.lines.append(tally.latest)
        return tokens, now

    def _told(self, group: Group, tallies: Mapping[Trial, Tally], step: int, count: int) -> Advance:
        last = [tally.latest for tally in tallies.values() if tally.latest]
        tokens = sum(tally.tokens for tally in tallies.values()) * count / step
        return Advance(
            tuple(tallies),
            step,
            count,
            len(tallies) * count * group.costs.step,
            tokens,
            _average([line["valid_loss"] for line in last]),
            _average([line["train_loss"] for line in last]),
        )


def _over(shards: NDArray[np.float64]) -> tuple[float, float]:
    """Sum and count of `[2, shards]`; of readings, which do not add up, the last one."""
    total, count = shards.sum(axis=1)
    return (total, count) if count else (shards[0, -1], 0.0)


def _finite(x: Any) -> float | None:
    return float(x) if np.isfinite(x) else None


def _mean(total: float, count: float) -> float | None:
    return _finite(total / count if count else total)


def _average(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return sum(finite) / len(finite) if finite else None
