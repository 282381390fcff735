"""Lanes: advances candidates, one or several at once, recording their curves and checkpointing their states."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lagjax.model import Batch
from lagjax.probe import Lane, Program, steps_of, unstack
from lagjax.progress import Event, Progress
from lagjax.store.directory import Directory, LaneName


@dataclass
class Course:
    """What the lanes of a run have in common.

    Attributes:
        directory: where curves and checkpoints go.
        batch: `(seed, step)` → batch, pure.
        seeds: of all lanes.
        shards: the validation shards, `[shards, ...]`.
        evaluations: the steps after which lanes are evaluated, ascending, from 0.
        phase: the phase that a step belongs to.
        progress: is told of every step forward.
        checkpoint_seconds: the time between checkpoints; the end of a lane is always saved.
        work: FLOPs of training that the current phase takes in all.
    """

    directory: Directory
    batch: Callable[[int, int], Batch]
    seeds: tuple[int, ...]
    shards: Batch
    evaluations: tuple[int, ...]
    phase: Callable[[int], str]
    progress: Progress
    checkpoint_seconds: float
    work: float = 0.0
    _done: float = 0.0
    _skipped: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    def expect(self, work: float) -> None:
        """Begins a phase of so many FLOPs."""
        self.work, self._done, self._skipped, self._began = (
            work,
            0.0,
            0.0,
            time.monotonic(),
        )

    def advance(
        self,
        program: Program,
        chunk: Sequence[LaneName],
        begin: Callable[[LaneName], Lane],
        until: int,
    ) -> None:
        """Brings the lanes of a chunk, at most `program.lanes`, to step `until`, from where they stand.

        Args:
            program: the compiled functions of their group.
            chunk: the lanes.
            begin: makes a lane that has not begun.
            until: the step to reach; it is one of `evaluations`. A lane that fails stops before.
        """
        todo = [lane for lane in chunk if not self._reached(lane, until)]
        self._skipped += program.step_flops * until * (len(chunk) - len(todo))
        if not todo:
            return
        step, lanes = self._resume(todo, begin, program.like)
        self._skipped += program.step_flops * max(step, 0) * len(todo)
        several = program.lanes > 1
        # Every lane keeps its place, whatever its neighbours have reached: a place that is free repeats a lane.
        places = [todo.index(lane) if lane in todo else 0 for lane in chunk]
        places += [0] * (program.lanes - len(places))
        lane = program.place([lanes[index] for index in places])
        rows = [chunk.index(name) for name in todo]
        seeds = self.seeds if several else (todo[0].seed,)
        order = np.array([seeds.index(todo[index].seed) for index in places], np.int32)
        order = order if several else order[0]
        clock = saved_at = time.monotonic()
        if step < 0:
            step, clock = 0, self._record(program, todo, rows, 0, lane, clock)
        while step < until and not all(self._failed(name) for name in todo):
            stop = next(each for each in self.evaluations if each > step)
            count = min(program.length, stop - step)
            batches = steps_of(self.batch, seeds, step, count, program.length)
            lane = program.advance(lane, batches, order, np.int32(step), np.int32(count))
            step += count
            if step == stop:
                clock = self._record(program, todo, rows, step, lane, clock)
                lane = lane._replace(sums=jax.tree.map(jnp.zeros_like, lane.sums))
            else:
                jax.block_until_ready(lane.failed_at)
            self._tell(program, todo, step, until, count)
            ends = step == until or all(self._failed(name) for name in todo)
            if ends or time.monotonic() - saved_at >= self.checkpoint_seconds:
                states = unstack(lane, len(chunk)) if several else [lane]
                for name, row in zip(todo, rows):
                    self.directory.save(name, step, states[row])
                saved_at = time.monotonic()

    def _failed(self, lane: LaneName) -> bool:
        curve = self.directory.curve(lane)
        return bool(curve) and curve[-1]["status"] != "ok"

    def _reached(self, lane: LaneName, until: int) -> bool:
        """Whether there is nothing left to do for a lane."""
        saved = self._usable(lane)
        return bool(saved) and (saved[0] >= until or self._failed(lane))

    def _usable(self, lane: LaneName) -> list[int]:
        """The steps of the checkpoints up to which the curve is complete, latest first."""
        curve = self.directory.curve(lane)
        steps = {line["step"] for line in curve}
        last = curve[-1]["step"] if self._failed(lane) else None

        def complete(step: int) -> bool:
            return all(
                each in steps
                for each in self.evaluations
                if each <= (step if last is None else min(step, last))
            )

        return [step for step in self.directory.saved(lane) if complete(step)]

    def _resume(
        self, todo: Sequence[LaneName], begin: Callable[[LaneName], Lane], like: Any
    ) -> tuple[int, list[Lane]]:
        """The lanes at the latest step of which all have a good checkpoint, or at their beginning, as step -1."""
        common = set.intersection(*(set(self._usable(lane)) for lane in todo))
        found, lanes = -1, list[Lane]()
        for step in sorted(common, reverse=True):
            restored = [self.directory.restore(lane, step, like) for lane in todo]
            lanes = [lane for lane in restored if lane is not None]
            if len(lanes) == len(todo):
                found = step
                break
        for name in todo:
            self.directory.cut(name, found)
        return found, lanes if found >= 0 else [begin(lane) for lane in todo]

    def _record(
        self,
        program: Program,
        names: Sequence[LaneName],
        rows: Sequence[int],
        step: int,
        lane: Lane,
        clock: float,
    ) -> float:
        """Evaluates and adds a line to each curve; returns the time."""
        sums, counts = (
            np.asarray(x, np.float64) for x in program.evaluate(lane.state, self.shards)
        )
        metrics = {name: np.asarray(x, np.float64) for name, x in lane.sums.items()}
        failed = np.asarray(lane.failed_at)
        if program.lanes == 1:
            sums, counts, failed = sums[None], counts[None], failed[None]
            metrics = {name: x[None] for name, x in metrics.items()}
        now = time.monotonic()
        lines = []
        for name, row in zip(names, rows):
            curve = self.directory.curve(name)
            if self._failed(name):
                continue
            before = curve[-1] if curve else {"step": 0, "tokens": 0, "seconds": 0.0}
            passed = max(step - before["step"], 1)
            means = (
                {key: x[row] / (1 if key == "lr" else passed) for key, x in metrics.items()}
                if step
                else {}
            )
            loss = sums[row].sum() / counts[row].sum()
            with np.errstate(invalid="ignore", divide="ignore"):
                shards = sums[row] / counts[row]
            at = int(failed[row]) if failed[row] >= 0 else None if np.isfinite(loss) else step
            lines.append(
                {
                    "phase": self.phase(step),
                    "candidate": name.candidate,
                    "seed": name.seed,
                    "step": step,
                    "valid_loss": _finite(loss) if at is None else None,
                    "valid_loss_shards": [_finite(x) for x in shards],
                    "train_loss": _finite(means.get("train_loss")),
                    "grad_norm": _finite(means.get("grad_norm")),
                    "update_norm": _finite(means.get("update_norm")),
                    "lr": _finite(means.get("lr")),
                    "tokens": before["tokens"] + int(metrics["tokens"][row]) * (step > 0)
                    if "tokens" in metrics
                    else 0,
                    "flops": step * program.step_flops,
                    "seconds": round(before["seconds"] + (now - clock) / len(names), 3),
                    "status": "ok" if at is None else f"loss not finite at step {at}",
                }
            )
        self.directory.append(lines)
        return now

    def _tell(
        self,
        program: Program,
        names: Sequence[LaneName],
        step: int,
        until: int,
        count: int,
    ) -> None:
        self._done += program.step_flops * count * len(names)
        elapsed = time.monotonic() - self._began
        last = [curve[-1] for name in names if (curve := self.directory.curve(name))]
        here = self._done + self._skipped
        tokens = [line["tokens"] / line["step"] for line in last if line["step"]]
        rate = (
            self._done / program.step_flops * float(np.mean(tokens)) / elapsed if tokens else None
        )
        self.progress(
            Event(
                self.phase(step),
                names[0].candidate if len(names) == 1 else f"{len(names)} candidates",
                step,
                until,
                _mean([line["valid_loss"] for line in last]),
                _mean([line["train_loss"] for line in last]),
                rate,
                here / self.work if self.work else 1.0,
                max(self.work - here, 0) * elapsed / self._done,
            )
        )


def _finite(x: Any) -> float | None:
    return float(x) if x is not None and np.isfinite(x) else None


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return sum(finite) / len(finite) if finite else None
