"""Courses: an optimizer's state over a few steps, under gradients that differ by known factors.

The model is any with the same tree of parameters, which take a random walk of their own: what the
optimizer would do to them is not applied.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from lagjax.algebra.layout import Keys, Params, path_of
from lagjax.optimizer.places import leaves_of, nodes
from lagjax.optimizer.rules import OptState
from lagjax.optimizer.scaling import ScaleByGrowthState, of_growth

SIZES = 0.2, 0.02, 0.002, 0.0002, 0.00002
"""Of the gradients: where something is clipped at one, the next is tried."""
STEPS, MORE = 6, 70
"""How many are taken, and how many where something did not move, as under accumulation."""
SMALL = 2**16
"""Parameters with which so many are taken; memory holds every step's."""
TIMES = -0.5, 2.0, -2.0, 0.5
"""By what entries are multiplied: powers of 2, which round nothing."""

Numbers: TypeAlias = NDArray[Any]
Factors: TypeAlias = Sequence[Numbers]
Series: TypeAlias = dict[Keys, Numbers]
"""The values of every leaf after each step, the first before any."""


class Tree(NamedTuple):
    """The tree of a model's parameters, and their shapes and dtypes."""

    structure: Any
    shapes: tuple[tuple[tuple[int, ...], Any], ...]

    @property
    def abstract(self) -> Params:
        """Arrays of these shapes, without values."""
        return self.filled([jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in self.shapes])

    @property
    def cut(self) -> "Tree":
        """The same with all sizes cut down to 2."""
        small = [(tuple(min(n, 2) for n in shape), dtype) for shape, dtype in self.shapes]
        return self._replace(shapes=tuple(small))

    def filled(self, leaves: Sequence[Any]) -> Params:
        """The tree with these leaves."""
        return jax.tree.unflatten(self.structure, leaves)


class Courses:
    """The transformation's course under gradients that differ by known factors.

    Each size of gradients has its own, by name: "plain"; "times", where each entry's gradient is
    multiplied by `times`; "params", where parameters are; "growth", where a `scale_by_growth` has
    the factors |`times`|. Those of the first size are more: "none", without gradients; "value",
    of other losses.
    """

    def __init__(self, tx: optax.GradientTransformation, tree: Tree, with_value: bool) -> None:
        self.tree, draw = tree, np.random.default_rng(0)
        sizes = sum(int(np.prod(shape)) for shape, _ in tree.shapes)
        self._most = MORE if sizes <= SMALL else STEPS
        self.paths = [
            path_of(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(tree.abstract)[0]
        ]
        self.times = [
            np.resize(np.roll(TIMES, number), shape)
            for number, (shape, _) in enumerate(tree.shapes)
        ]
        self._gradients = [self._drawn(draw, *one) for one in tree.shapes]
        self._walk = [
            x[:1] + 0.02 * np.cumsum(self._drawn(draw, *one), 0)
            for x, one in zip(self._gradients, tree.shapes)
        ]

        try:
            programs = _programs(tx, with_value)
        except TypeError:
            # Of an optimizer that cannot be told from others.
            programs = _programs.__wrapped__(tx, with_value)
        self._step, self._init, self._run = programs
        self.steps = STEPS
        self.growing = bool(nodes(jax.eval_shape(tx.init, tree.abstract))[0])
        self._found: dict[float, dict[str, Series]] = {}
        self.last = self._run(self._begun(), self._met(SIZES[0]))[0]

    def _drawn(self, draw: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Numbers:
        """Of every step, between ½ and 1½, of either sign; 0 for what is no number."""
        shape = (self._most, *shape)
        if not jnp.issubdtype(dtype, jnp.inexact):
            return np.zeros(shape)
        return np.asarray(draw.uniform(0.5, 1.5, shape) * draw.choice([-1.0, 1.0], shape))

    def _as_params(self, leaves: Sequence[Numbers], factors: Factors | None) -> Params:
        if factors is not None:
            leaves = [x * factor[None] for x, factor in zip(leaves, factors)]
        dtypes = [dtype for _, dtype in self.tree.shapes]
        # By numpy: JAX would compile a conversion for each shape.
        return self.tree.filled([np.asarray(x, dtype) for x, dtype in zip(leaves, dtypes)])

    def at(self, size: float) -> dict[str, Series]:
        """The courses under gradients of one size."""
        if size not in self._found:
            made = {
                "plain": self._course(size),
                "times": self._course(size, grads=self.times),
                "params": self._course(size, params=self.times),
            }
            if self.growing:
                made["growth"] = self._course(size, growth=[np.abs(x) for x in self.times])
            if size == SIZES[0]:
                made["none"] = self._course(0.0)
                made["value"] = self._course(size, losses=0.1)
            self._found[size] = made
        return self._found[size]

    def further(self) -> None:
        """Takes more steps than before."""
        if self.steps < self._most:
            self.steps, self._found = self._most, {}

    def _course(
        self,
        size: float,
        grads: Factors | None = None,
        params: Factors | None = None,
        growth: Factors | None = None,
        losses: float = -0.1,
    ) -> Series:
        begun = self._begun(params, growth)
        _, (_, met) = self._run(begun, self._met(size, grads, params, losses))
        first, after = _numbers(begun), _numbers(met)
        return {keys: np.concatenate([first[keys][None], after[keys]]) for keys in first}

    def _met(
        self,
        size: float,
        grads: Factors | None = None,
        params: Factors | None = None,
        losses: float = -0.1,
    ) -> tuple[Params, Params, jax.Array]:
        """The gradients, parameters and losses of the steps."""
        gradients = [size * x[: self.steps] for x in self._gradients]
        values = jnp.asarray(2.0 + losses * np.arange(self.steps), jnp.float32)
        walk = [x[: self.steps] for x in self._walk]
        return self._as_params(gradients, grads), self._as_params(walk, params), values

    def _begun(self, params: Factors | None = None, growth: Factors | None = None) -> OptState:
        """The state before the first step."""
        factors = None if growth is None else self.tree.filled(growth)
        begun: OptState = self._init(self._as_params(self._walk, params), factors)
        return begun

    def shape(self, keys: Keys) -> tuple[int, ...]:
        """Of a leaf."""
        return tuple(leaves_of(self.last)[keys].shape)

    def untouched(self, keys: Keys) -> bool:
        """Whether a step hands a leaf on as it is."""
        begun, params = self._begun(), self.tree.abstract
        made = jax.make_jaxpr(self._step)(params, begun, params, jnp.float32(1.0)).jaxpr
        # Gradients and updates, of which there are as many, come first in both.
        at = len(self.paths) + list(leaves_of(begun)).index(keys)
        return made.invars[at] is made.outvars[at]

    def unread(self, keys: set[Keys]) -> bool:
        """Whether what comes after does not depend on these leaves' values."""
        leaves = [_other(x) if k in keys else x for k, x in leaves_of(self.last).items()]
        other = jax.tree.unflatten(jax.tree.structure(self.last), leaves)
        one, two = (
            _numbers(self._run(state, self._met(SIZES[0]))[1]) for state in (self.last, other)
        )
        return all(map(np.array_equal, one.values(), two.values()))


class _Programs(NamedTuple):
    """What a transformation does, `init` and `run` compiled; for models of any tree."""

    step: Callable[..., Any]
    init: Callable[[Params, Params | None], OptState]
    run: Callable[[OptState, tuple[Any, ...]], Any]


@functools.lru_cache(maxsize=64)
def _programs(tx: optax.GradientTransformation, with_value: bool) -> _Programs:
    """Once for all models that are the same tree when they are cut down."""

    def step(grads: Params, state: OptState, params: Params, value: Any) -> Any:
        more = {"value": value} if with_value else {}
        return tx.update(grads, state, params, **more)

    def one(state: OptState, met: tuple[Any, ...]) -> Any:
        updates, new = step(met[0], state, *met[1:])
        # Some states change their dtype at the first step.
        new = jax.tree.map(lambda x, old: jnp.asarray(x).astype(old.dtype), new, state)
        return new, (updates, new)

    def begun(walk: Params, growth: Params | None) -> OptState:
        state = tx.init(jax.tree.map(lambda x: x[0], walk))
        return state if growth is None else _grown(state, growth)

    return _Programs(step, jax.jit(begun), jax.jit(lambda *given: jax.lax.scan(one, *given)))


def _grown(state: OptState, growth: Params) -> OptState:
    """The state in which every `scale_by_growth` has these factors."""
    by_path = {path_of(keys): x for keys, x in jax.tree_util.tree_flatten_with_path(growth)[0]}

    def scaled(node: Any) -> Any:
        if not isinstance(node, ScaleByGrowthState):
            return node
        found = jax.tree_util.tree_map_with_path(
            lambda keys, x: x * jnp.asarray(by_path[path_of(keys)], x.dtype), node.factors
        )
        return node._replace(factors=found)

    return jax.tree.map(scaled, state, is_leaf=of_growth)


def _other(x: Any) -> Any:
    """Another value of a leaf."""
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return x * 1.5 + 0.25
    return ~x if x.dtype == bool else x + 1


def _numbers(state: OptState) -> dict[Keys, Numbers]:
    """The leaves of a state as numbers of numpy."""

    def number(x: Any) -> Numbers:
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):
            x = jax.random.key_data(x)
        found = np.asarray(x)
        return found.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else found

    return {keys: number(x) for keys, x in leaves_of(state).items()}
