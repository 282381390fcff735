"""The state that a trial begins with, and what candidates of one target share."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var
from jax.interpreters.partial_eval import dce_jaxpr
from jax.typing import ArrayLike

from lagjax import state
from lagjax.algebra.layout import Params
from lagjax.buffers import own
from lagjax.engine import Engine, Metrics, Parts, State, Trained, float32
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
MOVING = {
    "broadcast_in_dim", "concatenate", "copy", "dynamic_slice", "dynamic_update_slice", "gather",
    "optimization_barrier", "pad", "reshape", "rev", "select_n", "slice", "squeeze", "transpose",
}  # fmt: skip
"""Primitives that round nothing."""


def operator_key(key: Key) -> Key:
    """The key of the operator's call, of a trial's."""
    return jax.random.fold_in(key, 0)


class Grower:
    """A candidate's operator on the small model: traced once, and compiled without what its target
    is initialised by, where this changes no bit.

    That is then made by a program of its own, which all candidates of the target share, and handed
    to the operator. The bits are those of the operator's call under `jax.jit`, as a growth record
    replays it.

    Attributes:
        shapes: of the grown parameters.
        apart: whether the initialisation is a program of its own.

    Raises:
        ValueError: as the operator does, and for a target whose parameters are no arrays.
    """

    def __init__(self, task: Task, candidate: Candidate, placement: Placement | None) -> None:
        source, target, fresh = task.model.axes, candidate.target, candidate.target.shapes()
        init = jax.jit(target.init, inline=True)

        def call(key: Key, params: Params, made: Params) -> Params:
            # An operator that initialises by another key than its own does that itself.
            given = target._replace(init=lambda other: made if other is key else init(other))
            large = candidate.operator(key, params, source, given)
            # No result is an array that was given: training takes its state's memory over.
            return jax.lax.optimization_barrier(large)

        inlined = jax.jit(call, inline=True)
        traced = inlined.trace(jax.random.key(0), task.source.params, fresh)
        self.shapes = traced.out_info
        into: tuple[State, State] = (None, None)
        if placement and placement.fully_sharded:
            # Fully sharded, a candidate never lies on one device whole.
            into = tuple(placement.state(x, (DATA,), False) for x in (fresh, self.shapes))
        self._init = jax.jit(target.init, out_shardings=into[0])
        self._call = jax.jit(call, out_shardings=into[1])
        self._whole = jax.jit(
            lambda key, params: inlined(key, params, init(key)), out_shardings=into[1]
        )
        # What no result depends on is dropped.
        jaxpr, used = dce_jaxpr(traced.jaxpr.jaxpr, [True] * len(traced.jaxpr.out_avals))
        drawn = len(jax.tree.leaves(fresh))
        whole = [x for x, value in zip(jaxpr.constvars, traced.jaxpr.consts) if _whole(value)]
        self.apart = any(used[-drawn:]) and _moves(
            jaxpr, jaxpr.invars[-sum(used[-drawn:]) :], whole
        )

    def __call__(self, key: Key, params: Params) -> Params:
        """The grown parameters, by the operator's key."""
        return self._call(key, params, self._init(key)) if self.apart else self._whole(key, params)


def _moves(jaxpr: Jaxpr, drawn: Sequence[Var], whole: Sequence[Var]) -> bool:
    """Whether a program only moves values, and multiplies some: those that are drawn by 0 and 1
    alone. That is nothing that XLA could round otherwise together with what draws them.

    `whole` are variables that are 0 or 1.
    """
    from_drawn, exact = set(drawn), set(whole)

    def is_exact(x: Var | Literal) -> bool:
        return x in exact if isinstance(x, Var) else _whole(x.val)

    for equation in jaxpr.eqns:
        name, read, made = equation.primitive.name, equation.invars, equation.outvars
        of_drawn = [isinstance(x, Var) and x in from_drawn for x in read]
        inner = equation.params.get("jaxpr")
        if isinstance(inner, ClosedJaxpr):
            inside = inner.jaxpr
            among = [x for x, one in zip(inside.invars, of_drawn) if one]
            known = [x for x, one in zip(inside.invars, read) if is_exact(one)]
            if name not in ("jit", "pjit") or not _moves(inside, among, known):
                return False
        elif any(jnp.issubdtype(x.aval.dtype, jnp.inexact) for x in made):  # type: ignore[attr-defined]
            rounds = any(one and not is_exact(other) for one, other in zip(of_drawn, read[::-1]))
            if name not in MOVING and (name != "mul" or rounds):
                return False
        if any(of_drawn):
            from_drawn |= set(made)
        elif name in ("broadcast_in_dim", "reshape") and is_exact(read[0]):
            exact |= set(made)
    return True


def _whole(value: ArrayLike) -> bool:
    """Whether a constant is 0 and 1 alone."""
    numbers = jnp.issubdtype(jnp.result_type(value), jnp.inexact)
    return bool(numbers and np.isin(np.asarray(value), (0, 1)).all())


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
    transfer, plan = task.transfer_of(candidate), None
    if _by_plan(task, candidate):
        if not hasattr(candidate.operator, "plan"):
            kept = "moments" if transfer.moments == "grow" else f"{sorted(source.collections)}"
            raise ValueError(
                f"{candidate.operator} is not linear: its {kept} cannot be grown; begin them "
                "anew, by Transfer(moments='reset') or source._replace(collections={})"
            )
        layout = task.model.axes.layout(source.params)
        of_large = candidate.target.axes.layout(large)
        plan = candidate.operator.plan(operator_key(key), layout, of_large)
    opt_state = None
    if task.tx is not None and transfer.moments != "grow" and transfer.schedule == "restart":
        opt_state = task.tx.init(large)
    elif task.tx is not None:
        of_moments = plan if transfer.moments == "grow" else None
        opt_state = state.carry(
            of_moments, source.opt_state, source.params, large, task.tx, transfer.schedule
        )
    if batches:
        drawn = jax.random.fold_in(key, 2)
        opt_state = state.measure(candidate.target, large, opt_state, batches, task.tx, drawn)
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
    moments = task.transfer_of(candidate).moments
    return moments == "grow" or bool(task.source.collections)


def first_step(task: Task, candidate: Candidate) -> int:
    """The step at which the schedules of a candidate begin."""
    schedule = task.transfer_of(candidate).schedule
    if schedule == "continue":
        return int(task.source.step)
    return 0 if schedule == "restart" else schedule


class Group:
    """Candidates of one target: they share a training loop and its compiled functions.

    Attributes:
        target: the large model.
        engine: its training loop.
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
        self.engine = _traced_once(task.engine(first.target, task.tx))
        self._growers: dict[str, Grower] = {}
        self._beginnings: dict[object, Callable[..., State]] = {}
        self._programs: dict[int, Program] = {}
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
            orders = self.task.seeds if at_once > 1 else 1
            batches = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((orders, LENGTH, *x.shape), x.dtype), self.batch
            )
            self._programs[at_once] = program(
                self.engine, self.like, batches, self.shards, at_once, LENGTH, self.placement
            )
        return self._programs[at_once]

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
