"""The run directory: the files that a run leaves, how they are read, and how they are written so that no kill harms them.

RUN/config.json    everything needed to repeat the run
RUN/curves.jsonl   one line per evaluation
RUN/rounds.jsonl   each answer of the policy
RUN/checkpoints/   Orbax: the source model and each candidate's full training state, with the record of its growth
RUN/decision.json  what was chosen, and how surely
RUN/report.html    the page made from the files above
"""

import fcntl
import json
import os
import pathlib
import shutil
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp

from lagjax.fingerprint import digest
from lagjax.store import record

KEPT = 2
"""Checkpoints kept of each lane, so that one that is damaged has a predecessor."""


class RunData(NamedTuple):
    """What a run directory says, as plain Python data; `rounds` are the policy's answers so far."""

    config: dict[str, Any]
    curves: list[dict[str, Any]]
    decision: dict[str, Any] | None
    rounds: list[dict[str, Any]]


def read(path: str | pathlib.Path) -> RunData:
    """Reads a run directory; `decision` is None where the run has not come that far.

    Raises ValueError where `path` is no run directory.
    """
    root = pathlib.Path(path)
    if not (root / "config.json").is_file():
        raise ValueError(
            f"{root} is no run directory: it has no config.json. Give the directory that the run was given as workdir"
        )
    return RunData(
        _read_json(root / "config.json") or {},
        _read_lines(root / "curves.jsonl"),
        _read_json(root / "decision.json"),
        _read_lines(root / "rounds.jsonl"),
    )


def growth(path: str | pathlib.Path, candidate: str, seed: int = 0) -> record.Record:
    """How a candidate of a run was grown, from its latest checkpoint; its `replay` grows the same tree again.

    Raises ValueError where there is no such checkpoint, or it holds no record: the small model's, and those of
    operators that a record cannot hold.
    """
    folder = _folder(pathlib.Path(path), LaneName(candidate, seed))
    steps = _steps(folder)
    if not steps:
        raise ValueError(
            f"{path} has no checkpoint of the candidate {candidate!r} with seed {seed}; it has those of "
            f"{sorted(urllib.parse.unquote(each.name) for each in folder.parent.glob('*'))}"
        )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(
            (folder / str(steps[0])).absolute(),
            ocp.args.Composite(meta=ocp.args.JsonRestore()),
        )
    if not (data := found["meta"].get("growth")):
        raise ValueError(
            f"the checkpoints of {candidate!r} in {path} hold no growth record: it was not grown, or by an operator that "
            "no record can hold"
        )
    return record.Record.from_json(data)


def _read_json(path: pathlib.Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: {error}; restore it, or start in a new directory"
        ) from None
    return found


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON-lines file; a last line cut short by a kill is left out."""
    if not path.is_file():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    lines = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except ValueError:
            raise ValueError(
                f"{path} is damaged in line {number}: {line[:80]!r}; restore it, or start in a new directory"
            ) from None
    return lines


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replaces a file whole: a reader, or a kill, sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class LaneName(NamedTuple):
    """One candidate with one seed: what has a curve and checkpoints of its own."""

    candidate: str
    seed: int


class Directory:
    """A run directory that this process writes; no other may at the same time.

    Args:
        path: made where it does not exist.
        note: told, as a sentence, of anything that the user should know, such as a damaged checkpoint.

    Attributes:
        growths: the growth record of each lane that has begun or been restored, as JSON; saved with its checkpoints.

    Raises:
        ValueError: where `path` cannot be a directory, or another process has it open.
    """

    def __init__(self, path: str | pathlib.Path, note: Callable[[str], None] = print) -> None:
        self.path = pathlib.Path(path)
        self.note = note
        self.growths: dict[LaneName, dict[str, Any] | None] = {}
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / "lock").exists():
            raise ValueError(
                f"{self.path} holds other files and is no run directory; give a new or an empty one"
            )
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("a+")
        except (FileExistsError, NotADirectoryError):
            raise ValueError(
                f"{self.path} lies at or under a file; give a path for a new directory"
            ) from None
        except OSError as error:
            raise ValueError(
                f"{self.path} cannot be written: {error.strerror}; give another directory"
            ) from None
        try:
            # The kernel releases the lock when the process ends, however it ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            process = self._lock.read().strip()
            self._lock.close()
            raise ValueError(
                f"{self.path} is in use by process {process}; wait until it ends, or give another directory"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        self._checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
        for left in (self.path / "checkpoints").glob("*/*.orbax-checkpoint-tmp*"):
            shutil.rmtree(left, ignore_errors=True)
        self.curves = _read_lines(self.path / "curves.jsonl")

    def close(self) -> None:
        """Lets other processes in."""
        self._checkpointer.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def configure(
        self, sections: Mapping[str, Any], environment: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Adds sections to config.json, or checks them against what stands there, and returns the whole.

        Sections named in `environment` may differ, with a note: they say where the run was made.

        Raises ValueError where another section differs, with the field, what stands there and what was given.
        """
        stored = _read_json(self.path / "config.json") or {}
        given = json.loads(json.dumps(sections))
        for name in (name for name in given if name in stored):
            for field, was, now in _differences(stored[name], given[name], name):
                if name not in environment:
                    raise ValueError(
                        f"{self.path} holds a run of another configuration: {field} is {was!r} there and {now!r} here; "
                        "give the same configuration to go on with that run, or another directory for a new one"
                    )
                self.note(
                    f"this run began where {field} was {was!r}, and goes on where it is {now!r}"
                )
        merged = {
            **stored,
            **{name: given[name] for name in given if name not in stored},
        }
        if merged != stored:
            write_atomically(self.path / "config.json", json.dumps(merged, indent=1) + "\n")
        return merged

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Adds evaluations to curves.jsonl; they are on disk when this returns."""
        with (self.path / "curves.jsonl").open("a") as file:
            for line in lines:
                file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.curves += [dict(line) for line in lines]

    def curve(self, lane: LaneName) -> list[dict[str, Any]]:
        """The evaluations of one lane, in order of steps."""
        return [line for line in self.curves if (line["candidate"], line["seed"]) == lane]

    def cut(self, lane: LaneName, step: int) -> None:
        """Drops a lane's evaluations and checkpoints after a step: they will be made again."""
        kept = [
            line
            for line in self.curves
            if (line["candidate"], line["seed"]) != lane or line["step"] <= step
        ]
        if len(kept) < len(self.curves):
            text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept)
            write_atomically(self.path / "curves.jsonl", text)
            self.curves = kept
        for later in self.saved(lane):
            if later > step:
                shutil.rmtree(self._folder(lane) / str(later))

    def save(self, lane: LaneName, step: int, state: Any) -> None:
        """Writes a checkpoint, whole or not at all, and drops the lane's oldest."""
        folder = self._folder(lane)
        target = folder / str(step)
        if target.exists():
            shutil.rmtree(target)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave({"digest": digest(state), "growth": self.growths.get(lane)}),
        )
        self._checkpointer.save(target.absolute(), items)
        for old in self.saved(lane)[KEPT:]:
            shutil.rmtree(folder / str(old))

    def saved(self, lane: LaneName) -> list[int]:
        """The steps of a lane's checkpoints, latest first."""
        return _steps(self._folder(lane))

    def restore(self, lane: LaneName, step: int, like: Any) -> Any | None:
        """A checkpoint's state; None, after a note and its removal, where it is damaged.

        Args:
            lane: whose.
            step: one of `saved(lane)`.
            like: the state's structure, with shapes and dtypes, and with shardings where it shall not lie on the first
                device.
        """
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=getattr(x, "sharding", None) or here
            ),
            like,
        )
        path = self._folder(lane) / str(step)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore()
        )
        try:
            found = self._checkpointer.restore(path.absolute(), items)
            if digest(found["state"]) != found["meta"]["digest"]:
                raise ValueError("its values are not those that were saved")
        except Exception as error:  # noqa: BLE001 - Orbax raises whatever its storage does.
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            self.note(
                f"the checkpoint {path} is damaged ({reason}); going on from the last good one"
            )
            shutil.rmtree(path, ignore_errors=True)
            return None
        # Not made anew: the versions are those that it was grown with, not those that go on.
        self.growths[lane] = found["meta"].get("growth")
        return found["state"]

    def _folder(self, lane: LaneName) -> pathlib.Path:
        return _folder(self.path, lane)


def _folder(root: pathlib.Path, lane: LaneName) -> pathlib.Path:
    """Where a lane's checkpoints are."""
    name = f"{urllib.parse.quote(lane.candidate, safe='')}-{lane.seed}"
    return root / "checkpoints" / name


def _steps(folder: pathlib.Path) -> list[int]:
    """The steps of the checkpoints in a lane's folder, latest first."""
    found = (
        [int(each.name) for each in folder.iterdir() if each.name.isdecimal()]
        if folder.is_dir()
        else []
    )
    return sorted(found, reverse=True)


def _differences(was: Any, now: Any, field: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in {**was, **now}:
            yield from _differences(was.get(key), now.get(key), f"{field}.{key}")
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for index, (one, other) in enumerate(zip(was, now)):
            yield from _differences(one, other, f"{field}[{index}]")
    elif was != now:
        yield field, was, now
