"""The run directory: what a run leaves, how it is read, and how it is written so that no kill harms
it.

RUN/config.json    everything needed to repeat the run
RUN/rounds.jsonl   each answer of the policy, written before it is carried out
RUN/curves.jsonl   one line per evaluation
RUN/steps/         the training loss of every step
RUN/checkpoints/   Orbax: each trial's full training state, with the record of its growth
RUN/programs/      the training steps as text, by which a changed one is known
RUN/decision.json  what was chosen, and how surely
RUN/report.html    the page made from the files above

A worker's checkpoint comes first, then the driver commits: lines, then losses. What lies beyond the
losses was never committed, and is cut back on opening.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import urllib.parse
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from lagjax.arguments import folder
from lagjax.jobs import SOURCE, Json, Line, Segment, Trial
from lagjax.store.checkpoints import Checkpoints
from lagjax.store.curves import Curves
from lagjax.store.files import append, read_json, read_lines, write_atomically
from lagjax.store.losses import Losses
from lagjax.store.record import GrowthRecord

Value = TypeVar("Value")
FORMAT = 2
"""Of the run directory."""
LAST_OF_FORMAT_1 = "0.1.0"


class RunData(NamedTuple):
    """What a run directory says, as plain Python data; `decision` is None where the run has not
    come that far.
    """

    config: Json
    curves: list[Line]
    decision: Json | None
    rounds: list[Json]


def read(path: str | pathlib.Path) -> RunData:
    """Reads a run directory.

    Raises ValueError where `path` is no run directory, or one of another version.
    """
    root = folder(path)
    config = read_json(root / "config.json")
    if config is None:
        raise ValueError(
            f"{root} is no run directory: it has no config.json. Give the directory that the run "
            "was given as workdir"
        )
    _check_format(root, config)
    return RunData(
        config,
        read_lines(root / "curves.jsonl"),
        read_json(root / "decision.json"),
        read_lines(root / "rounds.jsonl"),
    )


def training_losses(path: str | pathlib.Path) -> dict[Trial, NDArray[np.float32]]:
    """The training losses of every step of a run's trials, those of the small model left out."""
    lines = read_lines(folder(path) / "curves.jsonl")
    # Whoever reads the lines says what is wrong with one.
    known = [line for line in lines if isinstance(line, dict) and {"candidate", "seed"} <= {*line}]
    trials = {Trial(line["candidate"], line["seed"]) for line in known}
    losses = Losses(folder(path) / "steps")
    return {trial: losses.of(trial) for trial in sorted(trials) if trial.candidate != SOURCE}


def checkpointed(path: str | pathlib.Path, trial: Trial, step: int | None = None) -> int:
    """The step of a trial's checkpoint, by default the latest.

    Raises ValueError, with those that are there, where there is none of this trial or step.
    """
    checkpoints = folder(path) / "checkpoints"
    with contextlib.closing(Checkpoints(checkpoints)) as opened:
        steps = opened.steps(trial)
    if not steps:
        names = sorted(urllib.parse.unquote(each.name) for each in checkpoints.glob("*"))
        raise ValueError(
            f"{path} has no checkpoint of {trial.candidate!r} with seed {trial.seed}; it has "
            f"those of {names}: a run keeps its winner's only, unless it is given keep='all'"
        )
    if step is not None and step not in steps:
        raise ValueError(
            f"{path} has no checkpoint of {trial.candidate!r} with seed {trial.seed} at step "
            f"{step}; it has those of the steps {sorted(steps)}"
        )
    return steps[0] if step is None else step


def growth(path: str | pathlib.Path, candidate: str, seed: int = 0) -> GrowthRecord:
    """How a candidate of a run was grown, from its latest checkpoint; its `replay` grows the same
    tree again.

    Raises ValueError where there is no such checkpoint, or it holds no record: the small model's,
    and those of operators that a record cannot hold.
    """
    trial = Trial(candidate, seed)
    step = checkpointed(path, trial)
    with contextlib.closing(Checkpoints(folder(path) / "checkpoints")) as checkpoints:
        _, meta = checkpoints.read(trial, step)
    if not meta["growth"]:
        raise ValueError(
            f"the checkpoints of {candidate!r} in {path} hold no growth record: it was not grown, "
            "or by an operator that no record can hold"
        )
    return GrowthRecord.from_json(meta["growth"])


class Store:
    """A run directory that this process writes; no other may at the same time.

    Args:
        path: made where it does not exist.
        note: told, as a sentence, of anything that the user should know.

    Attributes:
        config: what config.json says.
        curves: the evaluations on record.
        losses: the training losses on record.
        checkpoints: what workers saved.
        rounds: the answers of the policy on record.

    Raises:
        ValueError: where `path` cannot be a run directory, or another process has it open.
    """

    def __init__(self, path: str | pathlib.Path, note: Callable[[str], None] = print) -> None:
        self.path, self.note = folder(path), note
        self._lock = _locked(self.path)
        try:
            self.config = read_json(self.path / "config.json") or {"format": FORMAT}
            _check_format(self.path, self.config)
            self.curves = Curves(self.path / "curves.jsonl")
            self.rounds = read_lines(self.path / "rounds.jsonl", mend=True)
            self.losses = Losses(self.path / "steps")
            self.checkpoints = Checkpoints(self.path / "checkpoints")
            self.checkpoints.sweep()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Lets other processes in."""
        self.checkpoints.close()
        self._lock.close()

    def configure(self, sections: Mapping[str, object], environment: Sequence[str] = ()) -> Json:
        """Adds sections to config.json, or checks them against what stands there, and returns the
        whole.

        Sections named in `environment` may differ, with a note: they say where the run was made.

        Raises ValueError where another section differs, with the field, what stands there and what
        was given.
        """
        stored, given = self.config, json.loads(json.dumps(sections))
        for name in (name for name in given if name in stored):
            for field, was, now in _differences(stored[name], given[name], name):
                if name not in environment:
                    raise ValueError(
                        f"{self.path} holds a run of another configuration: {field} is {was!r} "
                        f"there and {now!r} here; give the same configuration to go on with that "
                        "run, or another directory for a new one"
                    )
                self.note(
                    f"this run began where {field} was {was!r}, and goes on where it is {now!r}"
                )
        merged = stored | {name: given[name] for name in given if name not in stored}
        if merged != stored:
            self._write_config(merged)
        return merged

    def differs(self, sections: Mapping[str, object]) -> bool:
        """Whether any of these sections stands otherwise in config.json."""
        given = json.loads(json.dumps(sections))
        return any(self.config.get(name, given[name]) != given[name] for name in given)

    def once(self, path: Sequence[str], measure: Callable[[], Value]) -> Value:
        """What config.json says at a path; where it does not, what is measured now is kept there
        from then on.
        """
        config = json.loads(json.dumps(self.config))
        at = config
        for name in path[:-1]:
            at = at.setdefault(name, {})
        if path[-1] not in at:
            at[path[-1]] = measure()
            self._write_config(config)
        found: Value = at[path[-1]]
        return found

    def longest(self, name: str, values: Sequence[float]) -> None:
        """Keeps a list in config.json, in place of a shorter one."""
        if len(self.config.get(name, ())) < len(values):
            self._write_config(self.config | {name: [*values]})

    def _write_config(self, config: Json) -> None:
        write_atomically(self.path / "config.json", json.dumps(config, indent=1) + "\n")
        self.config = config

    def answer(self, number: int, answer: Json, whose: object) -> None:
        """Puts the policy's answer on record, or compares it with the one that is there.

        Raises ValueError, with the policy, where it answers otherwise than before.
        """
        given = json.loads(json.dumps({"round": number, **answer}))
        if number == len(self.rounds):
            append(self.path / "rounds.jsonl", (json.dumps(given) + "\n").encode())
            self.rounds.append(given)
        elif self.rounds[number] != given:
            raise ValueError(
                f"{self.path}: round {number} was answered {self.rounds[number]}, and now "
                f"{whose!r} answers {given} to the same evidence; a policy must be a pure "
                "function of its evidence: keep nothing, draw from a fixed seed, or start in a "
                "new directory"
            )

    def reached(self, trial: Trial, step: int) -> bool:
        """Whether a trial's record goes to a step, or ends in a failure; whatever checkpoints are
        left.
        """
        curve = self.curves.of(trial)
        failed = bool(curve) and curve[-1]["status"] != "ok"
        return failed or self.losses.count(trial) >= step

    def commit(self, segment: Segment) -> None:
        """Puts on record what a worker did; what stood beyond the segment's start is replaced, so
        that it may be said twice.
        """
        for trial in segment.trials:
            self.curves.cut(trial, segment.start)
            self.losses.cut(trial, segment.start)
        self.curves.add(segment.lines)
        for trial in segment.trials:
            self.losses.add(trial, segment.losses[trial])
            self.checkpoints.prune(trial, self.losses.count(trial))

    def rewind(self, trial: Trial, step: int) -> None:
        """Cuts the record of a trial that is to be kept back to its latest checkpoint, where it
        lacks the one at a step.

        What has reached the step is not trained again; but whoever deleted the last checkpoint
        needs it again.
        """
        steps = self.checkpoints.steps(trial)
        if self.losses.count(trial) >= step and step not in steps:
            latest = max((each for each in steps if each < step), default=-1)
            self.curves.cut(trial, latest)
            self.losses.cut(trial, latest)

    def repair(self, trials: Sequence[Trial], evaluations: Sequence[int] = ()) -> None:
        """Cuts back what a kill left of these trials that was not yet committed, or what follows a
        damage, and prunes what there was no time to.

        Args:
            trials: whose.
            evaluations: the steps at which they are evaluated: a record that lacks one goes no
                further than the one before.
        """
        for trial in trials:
            step = self._sound(trial, evaluations)
            self.losses.cut(trial, step)
            self.curves.cut(trial, step)
            self.checkpoints.cut(trial, step)
            self.checkpoints.prune(trial, step)

    def _sound(self, trial: Trial, evaluations: Sequence[int]) -> int:
        """The step up to which losses and evaluations stand."""
        curve, count = self.curves.of(trial), self.losses.count(trial)
        failed = bool(curve) and curve[-1]["status"] != "ok"
        last = curve[-1]["step"] if failed else count
        there = {line["step"] for line in curve}
        missing = [step for step in evaluations if step <= last and step not in there]
        if not missing:
            return count
        return max((step for step in evaluations if step < missing[0]), default=-1)


_LOCKS: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def _forked() -> None:
    # A child that outlives its parent would keep the lock, which belongs to the open file.
    for lock in list(_LOCKS):
        lock.close()


os.register_at_fork(after_in_child=_forked)


def _locked(path: pathlib.Path) -> IO[str]:
    """Makes the directory where it is missing, and keeps other processes out until the file is
    closed.
    """
    if path.is_dir() and any(path.iterdir()) and not (path / "lock").exists():
        raise ValueError(
            f"{path} holds other files and is no run directory; give a new or an empty one"
        )
    try:
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        lock = (path / "lock").open("a+")
    except (FileExistsError, NotADirectoryError):
        raise ValueError(
            f"{path} lies at or under a file; give a path for a new directory"
        ) from None
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror}; give another directory"
        ) from None
    try:
        # The kernel releases the lock when the process ends, however it ends.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        process = lock.read().strip()
        lock.close()
        raise ValueError(
            f"{path} is in use by process {process}; wait until it ends, or give another directory"
        ) from None
    _LOCKS.add(lock)
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _check_format(path: pathlib.Path, config: Json | None) -> None:
    if not isinstance(config, dict | None):
        raise ValueError(  # noqa: TRY004 - all damage to files is a ValueError.
            f"{path} is no run directory: its config.json holds {str(config)[:80]}, no JSON object"
        )
    if config is not None and config.get("format") != FORMAT:
        raise ValueError(
            f"{path} was written by another version of lagjax, whose run directories are of "
            f"format {config.get('format', 1)}, these of {FORMAT}; install "
            f"lagjax=={LAST_OF_FORMAT_1} to read it or go on with it, or start in a new directory"
        )


def _differences(was: object, now: object, field: str) -> Iterator[tuple[str, object, object]]:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in {**was, **now}:
            yield from _differences(was.get(key), now.get(key), f"{field}.{key}")
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for index, (one, other) in enumerate(zip(was, now)):
            yield from _differences(one, other, f"{field}[{index}]")
    elif was != now:
        yield field, was, now
