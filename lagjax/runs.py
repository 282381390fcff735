"""Runs: train a small model, grow it, probe the candidates, choose, go on; resumable at any instant."""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from lagjax import report
from lagjax.algebra.axes import Axes, Params
from lagjax.analysis.ledger import Ledger, ledger
from lagjax.fingerprint import digest, versions
from lagjax.lanes import Course
from lagjax.mesh import DATA, Placement, placement
from lagjax.model import Batch, Model
from lagjax.probe import (
    Engine,
    Lane,
    Program,
    choose_lanes,
    fresh_lane,
    from_loss,
    program,
    shapes_of,
    steps_of,
    sum_and_count,
)
from lagjax.progress import Display, Progress
from lagjax.select.decision import Decision, Policy, Probes, start_choice
from lagjax.state import OptState, Schedule, carry, measure
from lagjax.store import record
from lagjax.store.directory import Directory, LaneName, write_atomically
from lagjax.task import Candidate

LENGTH = 32
"""Steps that one call of the compiled loop makes at most: the batches of so many are made and held at a time."""

ENVIRONMENT = ("versions", "device", "cores")
SOURCE = "source"
MEASURED = 8
"""Batches on which moments are measured, where they are."""
"""The small model's name in curves and checkpoints."""


class Task(NamedTuple):
    """A small trained model, and how the large one is trained.

    Attributes:
        params: the small model's parameters.
        axes: its axes table.
        tx: what trains the large model; None where `engine` has its own.
        batch: `(seed, step)` → batch, a pure function; all candidates of a seed see the same batches.
        valid: validation shards, batches of one shape, the same for all candidates and seeds.
        horizon: steps of the large model's full training.
        seeds: how many, counted from 0; a seed fixes the fresh layers and the order of the data. Seed 0 of the winner
            goes on.
        seed: makes the fresh layers of this task others than those of another.
        opt_state: the small model's optimizer state, of `tx`; needed to grow moments or to continue the schedule.
        moments: "reset" starts the optimizer's statistics anew; "grow" maps them as the operator maps the parameters; "measure" takes
            them of the large model on its first `MEASURED` batches, at a learning rate of 0.
        schedule: "restart" begins the schedules of `tx` at 0; "continue" at the small model's step; a number at that step.
        engine: makes a training loop for a target; by default `from_loss(target, tx)`.
    """

    params: Params
    axes: Axes
    tx: optax.GradientTransformation | None
    batch: Callable[[int, int], Batch]
    valid: Sequence[Batch]
    horizon: int
    seeds: int = 1
    seed: int = 0
    opt_state: OptState | None = None
    moments: Literal["reset", "grow", "measure"] = "reset"
    schedule: Schedule = "restart"
    engine: Callable[[Model], Engine] | None = None


def train(
    model: Model,
    tx: optax.GradientTransformation,
    batch: Callable[[int, int], Batch],
    valid: Sequence[Batch],
    steps: int,
    workdir: str | pathlib.Path,
    *,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    fully_sharded: bool = False,
    checkpoint_seconds: float = 30.0,
    progress: Progress | None = None,
) -> tuple[Params, OptState]:
    """Trains a small model in a run directory, or takes it from there; the phase "source" of its curves.

    Args:
        model: the small model.
        tx: its optimizer.
        batch: `(seed, step)` → batch, a pure function.
        valid: validation shards, batches of one shape.
        steps: how many.
        workdir: the run directory, the same one that `run` is given afterwards.
        seed: fixes the initialisation and the order of the data.
        arguments: what config.json shall record of the caller's own choices.
        mesh: devices to spread over, with an axis "data"; by default the first alone.
        fully_sharded: whether parameters and optimizer state are spread over "data" as well as the batches.
        checkpoint_seconds: the time between checkpoints.
        progress: what is shown; by default one line on the terminal.

    Returns:
        The parameters and the optimizer state.

    Raises:
        ValueError: for a loss of the wrong shape or not finite at once, or a directory with another run.
    """
    if steps < 1:
        raise ValueError(f"the small model is trained for {steps} steps; give at least 1")
    progress = progress or Display()
    placed = placement(mesh, fully_sharded)
    engine = from_loss(model, tx)
    key = jax.random.key(seed)
    first, shards = batch(seed, 0), _shards(valid)

    @jax.jit
    def initial() -> Any:
        params = model.init(jax.random.fold_in(key, 0))
        return engine.init(params, tx.init(params), jax.random.fold_in(key, 1))

    like = _check_engine(engine, jax.eval_shape(initial), first, valid[0])
    section = {
        "steps": steps,
        "seed": seed,
        "shapes": _shapes(like.state),
        "data": digest((first, batch(seed, steps - 1), list(valid))),
        "placement": placed and placed.described(),
    }
    with Directory(workdir, progress.note) as directory:
        directory.configure(
            {"arguments": dict(arguments or {}), "source": section, **environment()},
            ENVIRONMENT,
        )
        name = LaneName(SOURCE, seed)

        def begin(name: LaneName) -> Lane:
            return fresh_lane(initial(), like)

        def finished() -> Lane | None:
            found = directory.restore(name, steps, like) if steps in directory.saved(name) else None
            return found if found is None else Lane(*found)

        lane = finished()
        if lane is None:
            compiled = program(
                engine,
                like,
                steps_of(batch, [seed], 0, 1, LENGTH),
                shards,
                1,
                LENGTH,
                placed,
            )
            course = Course(
                directory,
                batch,
                (seed,),
                shards,
                evaluation_steps(steps),
                lambda step: "source",
                progress,
                checkpoint_seconds,
            )
            course.expect(steps * compiled.step_flops)
            course.advance(compiled, [name], begin, steps)
            if (line := directory.curve(name)[-1])["status"] != "ok":
                at_once = (
                    "; it shall return a sum of nats and its count" if line["step"] == 0 else ""
                )
                raise ValueError(
                    f"the small model cannot be trained: {line['status']}{at_once}; check its loss and its data, or "
                    "lower its learning rate, and start in a new directory"
                )
            lane = finished()
        assert lane is not None, "what was just written can be read"
        return lane.state.params, lane.state.opt_state


def run(
    task: Task,
    pool: Sequence[Candidate],
    policy: Policy,
    workdir: str | pathlib.Path,
    *,
    compare: Literal["none", "start", "all"] = "none",
    arguments: Mapping[str, Any] | None = None,
    lanes: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    fully_sharded: bool = False,
    checkpoint_seconds: float = 30.0,
    progress: Progress | None = None,
) -> Decision:
    """Grows a model in every way of the pool, probes each, chooses one, and trains it to the horizon.

    Call it again with the same arguments after an interruption, however abrupt: it goes on, and ends with the decision
    and the curves of a run that was not interrupted.

    Args:
        task: the small model, and how the large one is trained.
        pool: the candidates; ties are broken in their order.
        policy: decides, and says how long to probe.
        workdir: the run directory.
        compare: what else is trained to the horizon, to show what the choice was worth: "start", the candidate that
            the loss right after growing would have chosen (`start_choice`); "all", every candidate with every seed: an
            audit, which is also evaluated more often at first.
        arguments: what config.json shall record of the caller's own choices.
        lanes: how many candidates run at once; by default what fits the memory and measures faster.
        mesh: devices to spread over, with an axis "data", "candidates" or both; by default the first alone.
        fully_sharded: whether parameters and optimizer state are spread over "data" as well as the batches.
        checkpoint_seconds: the time between checkpoints; the end of each probe is always saved.
        progress: what is shown; by default one line on the terminal.

    Returns:
        The decision; the winner's final state is the latest checkpoint of its seed 0.

    Raises:
        ValueError: for a task, a pool or a directory that does not fit; nothing is written then.
    """
    progress = progress or Display()
    first_lag = _check_task(task, pool, policy)
    with Directory(workdir, progress.note) as directory:
        search = _Search(
            task,
            tuple(pool),
            directory,
            progress,
            checkpoint_seconds,
            first_lag,
            compare == "all",
            placement(mesh, fully_sharded),
        )
        search.configure(policy, compare, arguments, lanes)
        decision = search.choose(policy)
        text = json.dumps(decision.as_json(), indent=1, allow_nan=False) + "\n"
        write_atomically(directory.path / "decision.json", text)
        search.go_on(decision, compare)
        try:
            report.write(directory.path)
        except ImportError as error:
            progress.note(f"no report.html was made: {error}")
    return decision


class _Group(NamedTuple):
    """Candidates of one target: they share one compiled step."""

    target: Model
    engine: Engine
    names: tuple[str, ...]
    like: Lane


class _Search:
    """One call of `run` at work."""

    def __init__(
        self,
        task: Task,
        pool: tuple[Candidate, ...],
        directory: Directory,
        progress: Progress,
        checkpoint_seconds: float,
        first_lag: int,
        audit: bool,
        placed: Placement | None,
    ) -> None:
        self.placed = placed
        self.task, self.directory = task, directory
        self.source = digest(task.params)
        self.candidates = {candidate.name: candidate for candidate in pool}
        self.seeds = tuple(range(task.seeds))
        self.shards = _shards(task.valid)
        self.lag = first_lag
        self.course = Course(
            directory,
            task.batch,
            self.seeds,
            self.shards,
            # What the loss tells and when is seen early, where the powers of two are dense.
            evaluation_steps(task.horizon, first_lag, base=2 if audit else 4),
            lambda step: "probe" if step <= self.lag else "continue",
            progress,
            checkpoint_seconds,
        )
        self.programs: dict[tuple[int, int], Program] = {}
        self.groups = [
            _Group(target, engine, names, _like(task, self.candidates[names[0]], engine))
            for target, engine, names in _groups(task, pool)
        ]

    def configure(
        self,
        policy: Policy,
        compare: str,
        arguments: Mapping[str, Any] | None,
        lanes: int | None,
    ) -> None:
        """Writes the configuration, or checks it; measures how many lanes run at once, where that is not said yet."""
        task = self.task
        data = (
            task.batch(0, 0),
            task.batch(task.seeds - 1, task.horizon - 1),
            list(task.valid),
        )
        config = self.directory.configure(
            {
                "arguments": dict(arguments or {}),
                "task": {
                    "horizon": task.horizon,
                    "seeds": task.seeds,
                    "seed": task.seed,
                    "moments": task.moments,
                    "schedule": task.schedule,
                    "source": self.source,
                    "opt_state": None if task.opt_state is None else digest(task.opt_state),
                    "data": digest(data),
                },
                "pool": [
                    {
                        "name": candidate.name,
                        "operator": repr(candidate.operator),
                        "control": candidate.role == "control",
                        "target": _shapes(group.like.state),
                    }
                    for candidate in self.candidates.values()
                    for group in self.groups
                    if candidate.name in group.names
                ],
                "policy": repr(policy),
                "compare": compare,
                "lanes": lanes or "measured",
                "placement": self.placed and self.placed.described(),
                **environment(),
            },
            ENVIRONMENT,
        )
        if "grouping" not in config:
            # Measured once and then kept, so that an interrupted run repeats itself bitwise.
            measured = [self._measure(index, lanes) for index in range(len(self.groups))]
            config = self.directory.configure(
                {
                    "grouping": [found for found, _ in measured],
                    "shard_tokens": measured[0][1],
                }
            )
        self.lanes = [found["lanes"] for found in config["grouping"]]
        self.tokens = np.array(config["shard_tokens"], np.float64)

    def _measure(self, index: int, lanes: int | None) -> tuple[dict[str, Any], list[float]]:
        group = self.groups[index]
        wanted = len(group.names) * len(self.seeds)
        one = self._program(index, 1)
        lane = self._begin(LaneName(group.names[0], 0))
        tokens = [float(x) for x in one.evaluate(lane.state, self.shards)[1]]
        if lanes is None:
            lanes = choose_lanes(
                one,
                functools.partial(self._program, index),
                wanted,
                lane,
                steps_of(self.task.batch, self.seeds, 0, 2, LENGTH),
                self.placed.candidates if self.placed else 1,
            )
        elif self.placed is None:
            lanes = min(lanes, wanted)
        return {"candidates": list(group.names), "lanes": lanes}, tokens

    def _program(self, index: int, lanes: int) -> Program:
        if (index, lanes) not in self.programs:
            group = self.groups[index]
            seeds = self.seeds if lanes > 1 else self.seeds[:1]
            batches = steps_of(self.task.batch, seeds, 0, 1, LENGTH)
            self.programs[index, lanes] = program(
                group.engine,
                group.like,
                batches,
                self.shards,
                lanes,
                LENGTH,
                self.placed,
            )
        return self.programs[index, lanes]

    def choose(self, policy: Policy) -> Decision:
        """Probes as far as the policy asks, and lets it decide."""
        answer = policy(self._probes(None), self.task.horizon)
        while not isinstance(answer, Decision):
            if answer not in self.course.evaluations:
                raise ValueError(
                    f"{policy!r} asks for step {answer}; it may ask for {self.course.evaluations}"
                )
            self.lag = answer
            self._drive(self._lanes(), answer, self.lanes)
            probes = self._probes(answer)
            if all(loss is None for loss in probes.means(0).values()):
                raise ValueError(
                    "the loss of every candidate is not finite right after growing; check the loss function (it shall "
                    "return a sum of nats and its count), the validation shards and the small model's parameters"
                )
            answer = policy(probes, self.task.horizon)
        return answer._replace(ledger=self._ledger(answer))

    def go_on(self, decision: Decision, compare: str) -> None:
        """Trains the winner to the horizon, and what it is compared with."""
        if decision.winner is None:
            return
        if compare == "all":
            self._drive(self._lanes(), self.task.horizon, self.lanes)
            return
        names = [decision.winner]
        if compare == "start":
            controls = [
                name for name, candidate in self.candidates.items() if candidate.role == "control"
            ]
            names += [name for name in [start_choice(decision.losses_at_start, controls)] if name]
        self._drive(
            [LaneName(name, 0) for name in dict.fromkeys(names)],
            self.task.horizon,
            [1] * len(self.groups),
        )

    def _lanes(self) -> list[LaneName]:
        """Every candidate with every seed, candidates of one seed together."""
        return [LaneName(name, seed) for seed in self.seeds for name in self.candidates]

    def _drive(self, lanes: Sequence[LaneName], until: int, at_once: Sequence[int]) -> None:
        """Brings lanes to a step, group by group and chunk by chunk."""
        parts = [[lane for lane in lanes if lane.candidate in group.names] for group in self.groups]
        compiled = [
            self._program(index, at_once[index]) if part else None
            for index, part in enumerate(parts)
        ]
        pairs = [
            (index, part, each) for index, (part, each) in enumerate(zip(parts, compiled)) if each
        ]
        self.course.expect(sum(len(part) * until * each.step_flops for _, part, each in pairs))
        for index, part, each in pairs:
            for start in range(0, len(part), each.lanes):
                chunk = part[start : start + each.lanes]
                self.course.advance(each, chunk, self._begin, until)

    @property
    def _measured(self) -> int:
        """How many batches each candidate's moments are measured on."""
        return MEASURED if self.task.moments == "measure" and self.task.tx else 0

    @functools.cached_property
    def _growers(self) -> dict[str, Any]:
        def sharding(group: _Group) -> Any:
            # Fully sharded, a candidate never lies on one device whole.
            if self.placed and self.placed.fully_sharded:
                return self.placed.lane(group.like.state, (DATA,), False)
            return None

        return {
            name: jax.jit(
                functools.partial(_initial, self.task, self.candidates[name], group.engine),
                out_shardings=sharding(group),
            )
            for group in self.groups
            for name in group.names
        }

    def _begin(self, name: LaneName) -> Lane:
        """A candidate right after growing."""
        group = next(group for group in self.groups if name.candidate in group.names)
        grower = self._growers[name.candidate]
        key = jax.random.fold_in(jax.random.key(self.task.seed), name.seed)
        batches = [self.task.batch(name.seed, step) for step in range(self._measured)]
        state = grower(key, self.task.params, self.task.opt_state, batches)
        operator = self._operators[name.candidate]
        if operator is not None:
            self.directory.growths[name] = record.Record(
                operator, record.encode(_grow_key(key)), self.source, versions()
            ).to_json()
        return fresh_lane(state, group.like)

    @functools.cached_property
    def _operators(self) -> dict[str, Any]:
        """The candidates' operators as growth records hold them; None, after a note, where that is impossible."""
        found: dict[str, Any] = {}
        for name, candidate in self.candidates.items():
            try:
                found[name] = record.encode(candidate.operator)
            except ValueError as error:
                found[name] = None
                self.directory.note(
                    f"the checkpoints of candidate {name!r} will not say how it was grown: {error}"
                )
        return found

    def _probes(self, until: int | None) -> Probes:
        """What has been measured up to a step."""
        names = tuple(self.candidates)
        steps = tuple(
            step for step in self.course.evaluations if until is not None and step <= until
        )
        losses = np.full((len(steps), len(names), len(self.seeds), len(self.tokens)), np.nan)
        status = dict.fromkeys(names, "ok")
        for line in self.directory.curves:
            if line["phase"] != "source" and line["step"] in steps:
                name, seed = line["candidate"], line["seed"]
                shards = [np.nan if x is None else x for x in line["valid_loss_shards"]]
                losses[steps.index(line["step"]), names.index(name), self.seeds.index(seed)] = (
                    shards
                )
                if line["status"] != "ok" and status[name] == "ok":
                    status[name] = line["status"] + (
                        f" with seed {seed}" if len(self.seeds) > 1 else ""
                    )
        controls = frozenset(name for name in names if self.candidates[name].role == "control")
        return Probes(names, controls, steps, losses, self.tokens, status)

    def _ledger(self, decision: Decision) -> Ledger:
        """Counts what the probes cost."""
        losers = evaluations = seconds = full = measured = 0.0
        for index, group in enumerate(self.groups):
            compiled = self._program(index, self.lanes[index])
            if decision.winner in group.names or not full:
                full = self.task.horizon * compiled.step_flops
            measured += len(group.names) * len(self.seeds) * self._measured * compiled.step_flops
            for name in group.names:
                for seed in self.seeds:
                    curve = [
                        line
                        for line in self.directory.curve(LaneName(name, seed))
                        if line["step"] <= decision.lag
                    ]
                    evaluations += len(curve) * compiled.evaluation_flops
                    seconds += curve[-1]["seconds"]
                    losers += curve[-1]["flops"] if (name, seed) != (decision.winner, 0) else 0
        return ledger(
            candidates=len(self.candidates),
            full_run_flops=full,
            losers_flops=losers,
            evaluation_flops=evaluations,
            fit_flops=measured + sum(candidate.fit_flops for candidate in self.candidates.values()),
            seconds=seconds,
        )


def evaluation_steps(horizon: int, *more: int, base: int = 4) -> tuple[int, ...]:
    """The steps after which a run is evaluated: 0, powers of `base` while they are close together, every sixteenth of
    the horizon, its end, and `more`."""
    every = max(1, horizon // 16)
    powers = {base**power for power in range(every.bit_length()) if base**power < every}
    return tuple(sorted({0, *powers, *range(every, horizon, every), horizon, *more}))


def _initial(
    task: Task,
    candidate: Candidate,
    engine: Engine,
    key: Any,
    params: Params,
    opt_state: OptState,
    batches: Sequence[Batch] = (),
) -> Any:
    """A candidate's training state right after growing; the batches are those that moments are measured on."""
    grow_key = _grow_key(key)
    large = candidate.operator(grow_key, params, task.axes, candidate.target)
    # What comes after shall not be fused with it: a growth record replays the operator's call alone, to the same bits.
    large = jax.lax.optimization_barrier(large)
    state = None
    if task.tx is not None and task.moments != "grow" and task.schedule == "restart":
        state = task.tx.init(large)
    elif task.tx is not None:
        plan = None
        if task.moments == "grow":
            if not hasattr(candidate.operator, "plan"):
                raise ValueError(
                    f"{candidate.operator} is not linear: its moments cannot be grown; reset them"
                )
            plan = candidate.operator.plan(
                grow_key, task.axes.layout(params), candidate.target.axes.layout(large)
            )
        state = carry(plan, opt_state, params, large, task.tx, task.schedule)
    if batches:
        drawn = jax.random.fold_in(key, 2)
        state = measure(candidate.target, large, state, batches, task.tx, drawn)
    return engine.init(large, state, jax.random.fold_in(key, 1))


def _grow_key(key: Any) -> Any:
    """The operator's key of a lane's."""
    return jax.random.fold_in(key, 0)


def _groups(task: Task, pool: Sequence[Candidate]) -> list[tuple[Model, Engine, tuple[str, ...]]]:
    targets: list[Model] = []
    for candidate in pool:
        if candidate.target not in targets:
            targets.append(candidate.target)
    found = []
    for target in targets:
        engine = task.engine(target) if task.engine else from_loss(target, _required(task.tx))
        found.append((target, engine, tuple(each.name for each in pool if each.target == target)))
    return found


def _required(tx: optax.GradientTransformation | None) -> optax.GradientTransformation:
    if tx is None:
        raise ValueError(
            "the task has neither tx nor an engine; give the optimizer of the large model"
        )
    return tx


def _like(task: Task, candidate: Candidate, engine: Engine) -> Lane:
    key = jax.random.key(0)
    state = jax.eval_shape(
        functools.partial(_initial, task, candidate, engine),
        key,
        task.params,
        task.opt_state,
    )
    return _check_engine(engine, state, task.batch(0, 0), task.valid[0])


def _check_task(task: Task, pool: Sequence[Candidate], policy: Policy) -> int:
    """Tries everything that can be tried without computing; returns the first lag that the policy asks for."""
    if not pool:
        raise ValueError("the pool is empty; give at least one candidate")
    names = [candidate.name for candidate in pool]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"the pool has {names.count(name)} candidates named {name!r}; give each a name of its own"
            )
        if name == SOURCE or not name:
            raise ValueError(
                f"a candidate is named {name!r}, which means the small model; give it another name"
            )
    for field, value in (("horizon", task.horizon), ("seeds", task.seeds)):
        if value < 1:
            raise ValueError(f"the task's {field} is {value}; give at least 1")
    for field, choice, known in (
        ("moments", task.moments, ("reset", "grow", "measure")),
        ("schedule", task.schedule, ("restart", "continue")),
    ):
        if choice not in known and not (field == "schedule" and type(choice) is int):
            raise ValueError(f"the task's {field} is {choice!r}; expected one of {known}")
    kept = task.moments == "grow" or task.schedule != "restart"
    if task.opt_state is None and kept:
        raise ValueError(
            f"moments={task.moments!r} and schedule={task.schedule!r} need the small model's optimizer state; give "
            "opt_state, or reset the moments and restart the schedule"
        )
    _shards(task.valid)
    empty = Probes(
        tuple(names),
        frozenset(),
        (),
        np.zeros((0, len(names), task.seeds, len(task.valid))),
        np.ones(1),
        {},
    )
    first = policy(empty, task.horizon)
    if isinstance(first, Decision) or not 1 <= first <= task.horizon:
        raise ValueError(
            f"{policy!r} answers {first} before any probe; expected a step from 1 to the horizon"
        )
    for candidate in pool:
        target = jax.eval_shape(candidate.target.init, jax.random.key(0))
        try:
            grown = jax.eval_shape(
                lambda key, params, one=candidate: one.operator(key, params, task.axes, one.target),
                jax.random.key(0),
                task.params,
            )
        except ValueError as error:
            raise ValueError(f"candidate {candidate.name!r}: {error}") from error
        if _shapes(grown) != _shapes(target):
            raise ValueError(
                f"candidate {candidate.name!r}: its operator's result differs in shapes from the target"
            )
    return first


def _check_engine(engine: Engine, state: Any, batch: Batch, shard: Batch) -> Lane:
    """The shapes of a lane; raises ValueError for a loss or metrics of another form."""
    jax.eval_shape(lambda *args: sum_and_count(engine.evaluate(*args)), state, shard)
    metrics = jax.eval_shape(engine.step, state, batch)[1]
    if "train_loss" not in metrics or any(x.shape for x in metrics.values()):
        raise ValueError(
            f"the engine's step gives the metrics {jax.tree.map(lambda x: x.shape, metrics)}; expected scalars, "
            "'train_loss' among them"
        )
    return shapes_of(state, metrics)


def _shards(valid: Sequence[Batch]) -> Batch:
    """The validation shards along a leading axis."""
    if not len(valid):
        raise ValueError(
            "there are no validation shards; give at least one batch, and eight or more for an interval"
        )
    shapes = {str(jax.tree.map(np.shape, shard)) for shard in valid}
    if len(shapes) > 1:
        raise ValueError(
            f"the validation shards have the shapes {sorted(shapes)}; give batches of one shape, padded"
        )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *valid)


def _shapes(tree: Any) -> str:
    """A hash of a tree's structure, shapes and dtypes."""
    described = [
        (jax.tree_util.keystr(keys), str(x.shape), str(x.dtype))
        for keys, x in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
    return hashlib.blake2b(repr(described).encode(), digest_size=16).hexdigest()


def environment() -> dict[str, Any]:
    """Where the run is made: versions, device, cores."""
    device = jax.devices()[0]
    return {
        "versions": versions(),
        "device": f"{device.platform}: {device.device_kind} × {jax.device_count()}",
        "cores": len(os.sched_getaffinity(0)),
    }
