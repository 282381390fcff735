"""The state that a trial begins with, and what candidates of one target share."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from lagjax import annealing, state
from lagjax.algebra.layout import Params
from lagjax.averages import Averager
from lagjax.buffers import own
from lagjax.engine import Engine, Metrics, Parts, State, Trained, float32
from lagjax.grower import Grower
from lagjax.growth.operator import FromScratch
from lagjax.jobs import Trial
from lagjax.mesh import DATA, Placement
from lagjax.model import Batch, Key
from lagjax.probe import (
    LENGTH,
    Costs,
    Program,
    abstract,
    choose_at_once,
    costs,
    measured,
    program,
    steps_of,
)
from lagjax.task import Candidate, Task

MEASURED = 8
"""Batches on which moments are measured, where they are."""


def operator_key(key: Key) -> Key:
    """The key of the operator's call, of a trial's."""
    return jax.random.fold_in(key, 0)


def initial(
    task: Task,
    candidate: Candidate,
    engine: Engine,
    large: Params,
    key: Key,
    source: Trained,
    batches: Sequence[Batch] = (),
) -> State:
    """A candidate's training state right after growing.

    Args:
        task: its functions; `task.source` is passed as `source`, so that this can be traced.
        candidate: what has grown.
        engine: of its target.
        large: the grown parameters.
        key: the trial's.
        source: the small model.
        batches: those that moments are measured on, where they are.

    Raises:
        ValueError: for moments or collections that an operator without a plan cannot grow.
    """
    transfer, plan, tx = task.transfer_of(candidate), None, task.optimizer
    if isinstance(candidate.operator, FromScratch):
        # What the small model has gathered is nothing to one that takes nothing from it.
        source = source._replace(collections={})
    if _by_plan(task, candidate):
        if not hasattr(candidate.operator, "plan"):
            kept = "moments" if transfer.planned else f"{sorted(source.collections)}"
            raise ValueError(
                f"{candidate.operator} is not linear: its {kept} cannot be grown; begin them "
                "anew, by Transfer(moments='reset') or source._replace(collections={})"
            )
        layout = task.model.axes.layout(source.params)
        of_large = candidate.target.axes.layout(large)
        plan = candidate.operator.plan(operator_key(key), layout, of_large)
    opt_state = None
    if tx is not None and not transfer.planned and transfer.schedule == "restart":
        opt_state = tx.init(large)
    elif tx is not None:
        of_moments, originals = plan if transfer.planned else None, transfer.moments == "originals"
        given = source.opt_state, source.params, large, tx, transfer.schedule
        opt_state = state.carry(of_moments, *given, originals=originals)
    if batches:
        drawn = jax.random.fold_in(key, 2)
        opt_state = state.measure(candidate.target, large, opt_state, batches, tx, drawn)
    trained, loop_key = Trained(large, opt_state), jax.random.fold_in(key, 1)
    if source.collections:
        # The loop makes its own for the target; what is grown must have their shapes.
        fresh = engine.trained(engine.init(trained, loop_key)).collections
        grown = state.collections(
            plan, source.collections, fresh, task.model.axes, candidate.target.axes
        )
        trained = trained._replace(collections=grown)
    return engine.init(trained, loop_key)


def _by_plan(task: Task, candidate: Candidate) -> bool:
    """Whether more than the parameters grows by a candidate's plan."""
    planned, taken = task.transfer_of(candidate).planned, task.source.collections
    return planned or bool(taken and not isinstance(candidate.operator, FromScratch))


def first_step(task: Task, candidate: Candidate) -> int:
    """The step at which the schedules of a candidate begin."""
    schedule = task.transfer_of(candidate).schedule
    if schedule == "continue":
        return int(task.source.step)
    return 0 if schedule == "restart" else schedule


class Group:
    """Candidates of one target and one horizon: they share a training loop and its compiled
    functions.

    Attributes:
        task: as it is at their horizon, see `Task.at`.
        target: the large model.
        engine: its training loop, which keeps the task's averages.
        averager: puts an average in place of a state's weights.
        like: the shapes of a trial's state.
        costs: FLOPs of a step and of an evaluation.
        shards: the validation shards, `[shards, ...]`.

    Raises:
        ValueError: where the first candidate cannot be grown, or the engine measures no loss.
    """

    def __init__(
        self,
        task: Task,
        first: Candidate,
        shards: Batch,
        placement: Placement | None,
        grower: Grower | None = None,
    ) -> None:
        self.task, self.target, self.shards, self.placement = task, first.target, shards, placement
        engine = task.engine(first.target, task.optimizer)
        self.averager = Averager(engine, task.averages, task.horizon)
        self.engine = _traced_once(self.averager.engine)
        self._growers: dict[str, Grower] = {}
        self._beginnings: dict[object, Callable[..., State]] = {}
        self._programs: dict[int, Program] = {}
        self._annealers: dict[int, Program] = {}
        self.like = self.shapes(first, grower)
        self.batch = jax.tree.map(abstract, task.batch(0, int(task.source.position)))
        measured(self.engine, self.like, self.batch, task.valid[0])

    @functools.cached_property
    def parts(self) -> Parts:
        """What of a state comes out as the trained model."""
        return Parts(self.engine, self.like)

    @functools.cached_property
    def costs(self) -> Costs:
        return costs(self.engine, self.like, self.batch, self.shards)

    def shapes(self, candidate: Candidate, grower: Grower | None = None) -> State:
        """Those of a candidate's state right after growing; `grower` is the candidate's, where
        there is one already.
        """
        if candidate.name not in self._growers:
            grower = grower or Grower(self.task, candidate, self.placement)
            self._growers[candidate.name] = grower
        large, key = self._growers[candidate.name].shapes, jax.random.key(0)
        return jax.eval_shape(self._beginning(candidate), large, key, self.task.source)

    def _beginning(self, candidate: Candidate) -> Callable[..., State]:
        """What makes a state of grown parameters; the same for all that need no plan for it."""
        transfer = self.task.transfer_of(candidate)
        same = candidate.name if _by_plan(self.task, candidate) else transfer
        if same not in self._beginnings:
            self._beginnings[same] = functools.partial(initial, self.task, candidate, self.engine)
        return self._beginnings[same]

    def program(self, at_once: int) -> Program:
        """The compiled functions for so many trials at once."""
        if at_once not in self._programs:
            self._programs[at_once] = self._program(self.engine, self.like, at_once)
        return self._programs[at_once]

    def annealer(self, at_once: int) -> Program:
        """The compiled functions of an annealing of so many trials at once, `annealing`."""
        if at_once not in self._annealers:
            inner = self.averager.inner(self.like)
            engine = annealing.annealed(self.averager.given, inner)
            like = jax.eval_shape(lambda state: annealing.begin(state, 1), inner)
            self._annealers[at_once] = self._program(engine, like, at_once)
        return self._annealers[at_once]

    def _program(self, engine: Engine, like: State, at_once: int) -> Program:
        orders = self.task.seeds if at_once > 1 else 1
        batches = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((orders, LENGTH, *x.shape), x.dtype), self.batch
        )
        return program(engine, like, batches, self.shards, at_once, LENGTH, self.placement)

    def begin(self, candidate: Candidate, key: Key, seed: int) -> State:
        """The state of a candidate right after growing."""
        if candidate.name not in self._growers:
            self.shapes(candidate)
        source, position, into = self.task.source, int(self.task.source.position), None
        if self.placement and self.placement.fully_sharded:
            into = self.placement.state(self.like, (DATA,), False)
        large = self._growers[candidate.name](operator_key(key), source.params)
        batches = [
            self.task.batch(seed, position + step) for step in range(self.measured(candidate))
        ]
        make = jax.jit(self._beginning(candidate), out_shardings=into)
        return own(make(large, key, source, batches), source)

    def measured(self, candidate: Candidate) -> int:
        """How many batches a candidate's moments are measured on."""
        transfer = self.task.transfer_of(candidate)
        return MEASURED if transfer.moments == "measure" and self.task.tx else 0

    def choose_at_once(self, candidates: Sequence[Candidate], key: Key) -> int:
        """How many trials of these candidates run at once: measured where that can matter."""
        task = self.task
        return choose_at_once(
            self.program,
            len(candidates) * task.seeds,
            lambda: self.begin(candidates[0], key, 0),
            lambda: steps_of(task.batch, range(task.seeds), int(task.source.position), 2),
            self.placement.candidates if self.placement else 1,
        )

    @property
    def state_bytes(self) -> int:
        """The size of one trial's state, and so nearly that of its checkpoint."""
        sizes = [np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(self.like)]
        return int(sum(sizes))


def _traced_once(engine: Engine) -> Engine:
    """The engine, its step and its evaluation traced but once for all that ask for their shapes,
    their cost and their text, and for what is compiled.
    """

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        state, metrics = engine.step(state, batch)
        return state, float32(metrics)

    def evaluate(state: State, batch: Batch) -> Metrics:
        return float32(engine.evaluate(state, batch))

    return engine._replace(step=jax.jit(step, inline=True), evaluate=jax.jit(evaluate, inline=True))


def trial_key(seed: int, trial: Trial) -> Key:
    """The key of a trial, from which those of its growth, its training loop and its measuring are
    folded.
    """
    return jax.random.fold_in(jax.random.key(seed), trial.seed)
