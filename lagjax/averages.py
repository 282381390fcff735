"""Running averages of a trial's weights, kept inside its training step.

At a high learning rate a loss is the floor of a valley plus the height at which the weights bounce
above it, and at the end, where the rate is 0, only the floor counts. An average of the weights lies
near the floor (Polyak and Juditsky 1992; Izmailov et al. 2018, arXiv 1803.05407): its loss tells
early what the loss of the weights themselves tells late. It costs one more copy of the parameters,
and one more evaluation where it is evaluated.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lagjax.arguments import real
from lagjax.engine import Averaged, Engine, Metrics, Parts, State, Trained
from lagjax.jobs import ANNEAL, RAW
from lagjax.model import Batch, Key


class Average(Protocol):
    """A rule of averaging, a frozen dataclass: after each step the average moves towards the
    weights by a share of the way.
    """

    def share(self, horizon: int, step: jax.Array, /) -> jax.Array | float:
        """That share, after `step` steps (from 1) of a training of `horizon` steps."""
        ...


@dataclass(frozen=True)
class Ema:
    """An exponential average that begins as the weights do; a weight counts half as much after
    `half_life`, a share of the horizon.
    """

    half_life: float

    def share(self, horizon: int, step: jax.Array, /) -> float:
        del step
        return 1 - self.decay(horizon)

    def decay(self, horizon: int) -> float:
        """By what the older weights are multiplied in each step."""
        return float(0.5 ** (1 / (self.half_life * horizon)))


@dataclass(frozen=True)
class Tail:
    """The mean of the weights since the last multiple of `length`, a share of the horizon: at such
    a multiple, of as many steps before it.
    """

    length: float

    def share(self, horizon: int, step: jax.Array, /) -> jax.Array:
        steps = max(1, round(self.length * horizon))
        return 1 / ((step - 1) % steps + 1).astype(jnp.float32)


AVERAGES: Mapping[str, Average] = {"average": Ema(1 / 32)}
"""What a task keeps unless it says otherwise: the average that chooses best in every regime of
`python -m experiments.evidence`, by the table in experiments/README.md."""


def described(averages: Mapping[str, Average], horizon: int) -> dict[str, object] | None:
    """For config.json: each rule, with its decay per step where it has one."""
    found: dict[str, object] = {}
    for name, rule in averages.items():
        decay = getattr(rule, "decay", None)
        found[name] = {"rule": repr(rule), "decay": decay and decay(horizon)}
    return found or None


def check(averages: Mapping[str, Average]) -> None:
    """Raises ValueError for a name that is taken, and for a length that is no share."""
    for name, rule in averages.items():
        if name in (RAW, ANNEAL, ""):
            raise ValueError(
                f"an average is named {name!r}, which means other weights; give it a name of its "
                "own"
            )
        if not callable(getattr(rule, "share", None)):
            raise ValueError(  # noqa: TRY004 - as all bad input.
                f"the average {name!r} is {rule!r}; give a rule, as lagjax.Ema(half_life=1 / 32)"
            )
        if isinstance(rule, Ema | Tail):
            length = rule.half_life if isinstance(rule, Ema) else rule.length
            if not 0 < real(length, f"the length of the average {name!r}") <= 1:
                raise ValueError(
                    f"the average {name!r} is {rule}; its length is a share of the horizon, "
                    "above 0 and at most 1"
                )


class Averaging(NamedTuple):
    """A training loop's state, and the averages of its weights.

    Attributes:
        state: the loop's own.
        step: steps made since growing.
        means: name → the averages of those arrays of `state` that are averaged; float32 at least.
    """

    state: State
    step: jax.Array
    means: dict[str, list[jax.Array]]


class Averager:
    """A training loop that keeps averages of its parameters, and of what floats in its collections.

    Args:
        engine: the loop.
        averages: by name.
        horizon: of the training, in steps.

    Attributes:
        engine: the loop that keeps them; without averages the one that was given.
        given: the loop that was given.
    """

    def __init__(self, engine: Engine, averages: Mapping[str, Average], horizon: int) -> None:
        self.given, self._averages, self._horizon = engine, dict(averages), horizon
        self._places: dict[jax.tree_util.PyTreeDef, list[int]] = {}
        self.engine = engine
        if averages:
            self.engine = Engine(self._init, self._step, self._evaluate, self._trained, engine.unit)

    def at(self, state: Averaging, name: str) -> Averaging:
        """The state with an average in place of its weights, to be evaluated; of several trials at
        once where it is of several.
        """
        leaves, structure = jax.tree.flatten(state.state)
        for place, mean in zip(self._places[structure], state.means[name], strict=True):
            leaves[place] = mean.astype(leaves[place].dtype)
        return state._replace(state=jax.tree.unflatten(structure, leaves))

    def inner(self, state: State) -> State:
        """The loop's own state, without averages."""
        return state.state if self._averages else state

    def _averaged(self, state: State) -> list[jax.Array]:
        """Those arrays of the loop's state that are averaged."""
        leaves, structure = jax.tree.flatten(state)
        if structure not in self._places:
            self._places[structure] = self._found(state)
        return [_wide(leaves[place]) for place in self._places[structure]]

    def _found(self, state: State) -> list[int]:
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        at = Parts(self.given, like).places
        leaves = jax.tree.leaves(like)
        if -1 in (params := jax.tree.leaves(at.params)):
            raise ValueError(
                f"the averages {sorted(self._averages)} are of the parameters in the training "
                "loop's state, and its `trained` computes them; let it give them as they stand in "
                "the state, or leave the averages out: Task(averages={})"
            )
        floats = [
            place
            for place in (*params, *jax.tree.leaves(at.collections))
            if place >= 0 and jnp.issubdtype(leaves[place].dtype, jnp.floating)
        ]
        return sorted({*floats})

    def _init(self, trained: Trained, key: Key) -> Averaging:
        state = self.given.init(trained, key)
        means = {name: self._averaged(state) for name in self._averages}
        return Averaging(state, jnp.zeros((), jnp.int32), means)

    def _step(self, state: Averaging, batch: Batch) -> tuple[Averaging, Metrics]:
        inner, metrics = self.given.step(state.state, batch)
        step, now = state.step + 1, self._averaged(inner)
        means = {}
        for name, rule in self._averages.items():
            share = rule.share(self._horizon, step)
            moved = functools.partial(_moved, share)
            means[name] = list(map(moved, state.means[name], now))
        return Averaging(inner, step, means), metrics

    def _evaluate(self, state: Averaging, batch: Batch) -> Metrics:
        return self.given.evaluate(state.state, batch)

    def _trained(self, state: Averaging) -> Trained:
        def mean(name: str) -> Averaged:
            found = self.given.trained(self.at(state, name).state)
            return Averaged(found.params, found.collections)

        averages = {name: mean(name) for name in self._averages}
        return self.given.trained(state.state)._replace(averages=averages)


def _wide(x: jax.Array) -> jax.Array:
    # In 16 bits an average would stand still: a step moves it by less than it can hold.
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _moved(share: jax.Array | float, mean: jax.Array, now: jax.Array) -> jax.Array:
    return mean + jnp.asarray(share, mean.dtype) * (now - mean)
