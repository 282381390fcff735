"""Courses: an optimizer's state over a few steps, under gradients that differ by known factors.

The model is any with the same tree of parameters, which take a random walk of their own: what the
optimizer would do to them is not applied.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from lagjax.algebra.axes import Keys, Params, path_of
from lagjax.optimizer.places import leaves_of, nodes
from lagjax.optimizer.rules import OptState
from lagjax.optimizer.scaling import ScaleByGrowthState, of_growth

SIZES = 0.2, 0.02, 0.002, 0.0002
"""Of the gradients: where something is clipped at one, the next is tried."""
STEPS, MORE = 6, 70
"""How many are taken, and how many where something did not move, as under accumulation."""
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

    def __init__(self, tx: optax.GradientTransformation, tree: Tree) -> None:
        self.tree, draw = tree, np.random.default_rng(0)
        self.paths = [
            path_of(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(tree.abstract)[0]
        ]
        self.gradients = [[self._drawn(draw, *one) for one in tree.shapes] for _ in range(MORE)]
        self.walk = [[self._drawn(draw, *one) for one in tree.shapes]]
        for moves in self.gradients[::-1]:
            self.walk.append([x + 0.1 * move for x, move in zip(self.walk[-1], moves)])
        self.times = [
            np.resize(np.roll(TIMES, number), shape)
            for number, (shape, _) in enumerate(tree.shapes)
        ]
        with_value = not isinstance(tx, optax.GradientTransformation) or isinstance(
            tx, optax.GradientTransformationExtraArgs
        )

        def step(grads: Params, state: OptState, params: Params, value: Any) -> Any:
            more = {"value": value} if with_value else {}
            return tx.update(grads, state, params, **more)

        self.step, self.init, self.steps = jax.jit(step), tx.init, STEPS
        self.growing = bool(nodes(jax.eval_shape(tx.init, tree.abstract))[0])
        self._found: dict[float, dict[str, Series]] = {}
        _, self.last = self._course(SIZES[0])

    def _drawn(self, draw: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Numbers:
        """Between ½ and 1½, of either sign; nothing for what is no number."""
        if not jnp.issubdtype(dtype, jnp.inexact):
            return np.zeros(shape)
        return np.asarray(draw.uniform(0.5, 1.5, shape) * draw.choice([-1.0, 1.0], shape))

    def _as_params(
        self, leaves: Sequence[Numbers], size: float = 1.0, factors: Factors | None = None
    ) -> Params:
        if factors is not None:
            leaves = [x * factor for x, factor in zip(leaves, factors)]
        made = [jnp.asarray(size * x, dtype) for x, (_, dtype) in zip(leaves, self.tree.shapes)]
        return self.tree.filled(made)

    def at(self, size: float) -> dict[str, Series]:
        """The courses under gradients of one size."""
        if size not in self._found:
            made = {
                "plain": self._course(size)[0],
                "times": self._course(size, grads=self.times)[0],
                "params": self._course(size, params=self.times)[0],
            }
            if self.growing:
                made["growth"] = self._course(size, growth=[np.abs(x) for x in self.times])[0]
            if size == SIZES[0]:
                made["none"] = self._course(0.0)[0]
                made["value"] = self._course(size, losses=0.1)[0]
            self._found[size] = made
        return self._found[size]

    def further(self) -> None:
        """Takes more steps than before."""
        if self.steps < MORE:
            self.steps, self._found = MORE, {}

    def _course(
        self,
        size: float,
        grads: Factors | None = None,
        params: Factors | None = None,
        growth: Factors | None = None,
        losses: float = -0.1,
    ) -> tuple[Series, OptState]:
        state = self._begun(params, growth)
        met = [_numbers(state)]
        for number in range(self.steps):
            gradient = self._as_params(self.gradients[number], size, grads)
            value = jnp.float32(2.0 + losses * number)
            at = self._as_params(self.walk[number + 1], 1.0, params)
            _, state = self.step(gradient, state, at, value)
            met.append(_numbers(state))
        return {keys: np.stack([one[keys] for one in met]) for keys in met[0]}, state

    def _begun(self, params: Factors | None = None, growth: Factors | None = None) -> OptState:
        """The state before the first step."""
        by_path = dict(zip(self.paths, growth or ()))

        def scaled(node: Any) -> Any:
            if not isinstance(node, ScaleByGrowthState):
                return node
            found = jax.tree_util.tree_map_with_path(
                lambda keys, x: x * jnp.asarray(by_path[path_of(keys)], x.dtype), node.factors
            )
            return node._replace(factors=found)

        state = self.init(self._as_params(self.walk[0], 1.0, params))
        return jax.tree.map(scaled, state, is_leaf=of_growth) if growth else state

    def shape(self, keys: Keys) -> tuple[int, ...]:
        """Of a leaf."""
        return tuple(leaves_of(self.last)[keys].shape)

    def untouched(self, keys: Keys) -> bool:
        """Whether a step hands a leaf on as it is."""
        begun, params = self._begun(), self._as_params(self.walk[0])
        made = jax.make_jaxpr(self.step)(params, begun, params, jnp.float32(1.0)).jaxpr
        inner = made.eqns[0].params["jaxpr"].jaxpr
        # Gradients and updates, of which there are as many, come first in both.
        at = len(self.paths) + list(leaves_of(begun)).index(keys)
        return inner.invars[at] is inner.outvars[at]

    def unread(self, keys: set[Keys]) -> bool:
        """Whether what comes after does not depend on these leaves' values."""
        begun = leaves_of(self._begun())
        leaves = [begun[k] if k in keys else x for k, x in leaves_of(self.last).items()]
        other = jax.tree.unflatten(jax.tree.structure(self.last), leaves)
        gradient = self._as_params(self.gradients[0], SIZES[0])
        params = self._as_params(self.walk[-1])
        one, two = (
            _numbers(self.step(gradient, state, params, jnp.float32(1.0)))
            for state in (self.last, other)
        )
        return all(map(np.array_equal, one.values(), two.values()))


def _numbers(state: OptState) -> dict[Keys, Numbers]:
    """The leaves of a state as numbers of numpy."""

    def number(x: Any) -> Numbers:
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):
            x = jax.random.key_data(x)
        found = np.asarray(x)
        return found.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else found

    return {keys: number(jnp.asarray(x)) for keys, x in leaves_of(state).items()}
