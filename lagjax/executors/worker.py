"""A worker: restores or grows the trials of a job, trains and evaluates them, and checkpoints.

It adds checkpoints and says what it measured; it never writes the record and removes nothing.
"""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence

import jax
import numpy as np
from numpy.typing import NDArray

from lagjax import annealing
from lagjax.engine import State
from lagjax.executors.tally import Tally, losses_of, reading
from lagjax.executors.workload import Workload
from lagjax.fingerprint import versions
from lagjax.initial import Group, first_step, operator_key
from lagjax.jobs import ANNEAL, RAW, Advance, Job, Json, Note, Segment, Trial, Update
from lagjax.probe import Program, steps_of, unstack
from lagjax.store import record
from lagjax.store.checkpoints import Checkpoints, Damaged


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
        several, rows = job.at_once > 1, _rows(job)
        state = program.place([states[index] for index in rows])
        start, clock = step, time.monotonic()
        saved_at = clock
        tokens: tuple[float, ...] = ()
        if step < 0:
            step = 0
            tokens, clock = self._evaluate(job, program, state, tallies, step, clock)
        while step < job.until and not all(tally.over for tally in tallies.values()):
            stop = next(each for each in job.evaluations if each > step)
            count = min(program.length, stop - step)
            state, buffer = self._advance(job, program, state, step, count)
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
        if job.anneal:
            yield self._anneal(job, group, state)

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

    def _advance(
        self, job: Job, program: Program, state: State, step: int, count: int
    ) -> tuple[State, jax.Array]:
        """A chunk's state some steps later, and what they measured."""
        task, trials = self.work.task, job.trials
        seeds = list(range(task.seeds)) if job.at_once > 1 else [trials[0].seed]
        orders = np.array([seeds.index(trials[row].seed) for row in _rows(job)], np.int32)
        position = int(task.source.position) + step
        batches = steps_of(task.batch, seeds, position, count, program.length)
        order = orders if job.at_once > 1 else orders[0]
        return program.advance(state, batches, order, np.int32(count))

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
            if tally.failed_at < 0 and not tally.over:
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
        # Right after growing averages are the weights themselves.
        weights = (RAW, *self.work.task.averages) if step else (RAW,)
        found = {each: self._losses(job, group, program, state, step, each) for each in weights}
        now = time.monotonic()
        tokens: tuple[float, ...] = ()
        for trial, tally in tallies.items():
            if tally.over:
                continue
            row = job.rows.index(trial) if job.at_once > 1 else ...
            read = {
                each: reading({name: x[:, row] for name, x in found[each].items()})
                for each in weights
            }
            raw, tokens = read[RAW], read[RAW].tokens
            failed = tally.failed_at >= 0 or not np.isfinite(raw.loss)
            at = tally.failed_at if tally.failed_at >= 0 else step
            means = tally.means()
            own = {f"valid_{name}": mean for name, mean in raw.metrics.items()}
            tally.seconds += (now - clock) / len(tallies)
            tally.over = failed
            tally.latest = {
                "phase": job.phase_at(step),
                "candidate": trial.candidate,
                "seed": trial.seed,
                "step": step,
                "valid_loss": None if failed else raw.loss,
                "valid_loss_shards": raw.shards,
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
            if self.work.task.averages:
                tally.latest["averages"] = {
                    name: losses_of(read.get(name, raw)) for name in self.work.task.averages
                }
            tally.lines.append(tally.latest)
        return tokens, now

    def _losses(
        self, job: Job, group: Group, program: Program, state: State, step: int, weights: str
    ) -> dict[str, NDArray[np.float64]]:
        """The sums and counts of a chunk's evaluation, `[2, shards]` or `[2, trials, shards]`."""
        if weights != RAW:
            state = group.averager.at(state, weights)
        count = job.shards_at(step) or len(self.work.task.valid)
        found = jax.device_get(program.evaluate(state, group.shards, np.int32(count)))
        return {name: np.asarray(pair, np.float64)[..., :count] for name, pair in found.items()}

    def _anneal(self, job: Job, group: Group, state: State) -> Update:
        """Anneals copies of a chunk's trials from where they stand, and evaluates them."""
        program, step, steps = group.annealer(job.at_once), job.until, job.anneal
        several = job.at_once > 1
        each = unstack(state, job.at_once) if several else [state]
        copies = program.place([annealing.begin(group.averager.inner(one), steps) for one in each])
        for made in range(0, steps, program.length):
            count = min(program.length, steps - made)
            copies, _ = self._advance(job, program, copies, step + made, count)
        found = self._losses(job, group, program, copies, step, RAW)
        lines = []
        for trial in job.trials:
            row = job.rows.index(trial) if several else ...
            read = reading({name: x[:, row] for name, x in found.items()})
            ok = np.isfinite(read.loss)
            lines.append(
                {
                    "phase": ANNEAL,
                    "candidate": trial.candidate,
                    "seed": trial.seed,
                    "step": step,
                    "steps": steps,
                    "valid_loss": read.loss if ok else None,
                    "valid_loss_shards": read.shards,
                    "flops": steps * group.costs.step,
                    "status": "ok" if ok else "loss not finite while annealing",
                }
            )
        nothing = np.zeros(0, np.float32)
        return Segment(job.trials, step, step, tuple(lines), dict.fromkeys(job.trials, nothing))

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


def _rows(job: Job) -> list[int]:
    """The trial of each row of the compiled call; a row that is free repeats the first trial's."""
    rows = [job.trials.index(trial) if trial else 0 for trial in job.rows]
    return rows + [0] * (job.at_once - len(rows))


def _average(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return sum(finite) / len(finite) if finite else None
