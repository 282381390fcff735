"""Where each parameter of a grown model comes from: for freezing, rates, and its own step count."""

import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import DTypeLike

from lagjax.algebra.layout import Leaf, Params
from lagjax.algebra.maps import Vector, column
from lagjax.algebra.pieces import GrownAxis, join, pieces_of
from lagjax.algebra.plan import Plan
from lagjax.algebra.words import by_layer


class Origin(enum.IntEnum):
    """What an entry of a grown parameter is."""

    COPIED = 0
    SCALED = 1
    FRESH = 2
    ZEROED = 3


def origins(plan: Plan) -> list[Vector]:
    """An `Origin` for each entry of each leaf of the target, int8 in its shape, in its order.

    Scaled is what was multiplied, averaged or given noise; zeroed what starts at 0 for the
    function's sake.
    """
    return _each(plan, _origins)


def tree(plan: Plan, like: Params) -> Params:
    """`origins` as a tree: `like` is the large model's parameters, or their shapes."""
    return jax.tree.unflatten(jax.tree.structure(like), origins(plan))


def only(like: Params, *kinds: Origin) -> optax.GradientTransformation:
    """Lets parameters of these origins move only: `chain(tx, only(tree(plan, params), FRESH))`.

    Freezes by entry, so that one leaf may hold both old and new layers. With `optax.masked` go by
    leaf instead: `jax.tree.map(lambda x: (x == Origin.FRESH).any(), tree)`.
    """
    masks = jax.tree.map(lambda x: np.isin(x, [int(kind) for kind in kinds]), like)

    def masked(update: jax.Array, mask: Vector) -> jax.Array:
        # An optimizer's rules are read on a model whose sizes are cut down.
        return jnp.where(mask[tuple(map(slice, update.shape))], update, 0)

    return optax.stateless(lambda updates, params: jax.tree.map(masked, updates, masks))


def step_sizes(plan: Plan, normalised: bool = True, dtype: DTypeLike = np.float32) -> list[Vector]:
    """By what the target's steps are multiplied so that training goes on as the small model's did.

    For each leaf, in its shape. Where copies are alike a grown parameter is a times its source; its
    steps, then, must be a times the source's. Adam's are whatever the gradient's scale c; those of
    SGD are c times too large already.

    Args:
        plan: of the growth.
        normalised: the optimizer's steps are free of the gradient's scale.
        dtype: of the result.
    """

    def one(axis: GrownAxis) -> Vector:
        slope = np.abs(axis.slope)
        return axis.rate if normalised else axis.rate / np.where(slope == 0, 1.0, slope)

    def sizes(plan: Plan, leaf: Leaf) -> Vector:
        units = plan.units(leaf) ** (1 if normalised else 2)
        units = np.where(_fresh(plan, leaf), 1.0, units)
        made: Vector = _entries(plan, leaf, one, np.multiply, 1.0) * units
        return made.astype(dtype)

    return _each(plan, sizes)


def unseen(plan: Plan) -> list[Vector]:
    """For each leaf of the target, which entries have no statistics of gradients from the source.

    Bool, in its shape.
    """
    fresh = {stack: word.fresh for stack, word in plan.words.items()}
    zeroed = {stack: [scale == 0 for scale in word.scales] for stack, word in plan.words.items()}

    def entries(plan: Plan, leaf: Leaf) -> Vector:
        blank = _fresh(plan, leaf) | (leaf.name in plan.invented)
        # No gradient passes zeroed outputs: what lies before them has zero statistics.
        for numbers in (fresh,) if leaf.residual else (fresh, zeroed):
            for layers in by_layer(leaf, numbers):
                blank = blank | layers
        return blank

    return _each(plan, entries)


def added(plan: Plan) -> list[Vector]:
    """For each leaf of the target, which entries are no originals: new ones, and all copies but the
    first of a layer or of an axis' entry.

    Bool, in its shape; what has no statistics of gradients (`unseen`) is among them.
    """
    more = {stack: word.added for stack, word in plan.words.items()}

    def entries(plan: Plan, leaf: Leaf) -> Vector:
        def again(axis: GrownAxis) -> Vector:
            return (axis.map.copy > 0) | axis.map.fresh

        found = _entries(plan, leaf, again, np.logical_or, False).astype(bool)
        for layers in by_layer(leaf, more):
            found = found | layers
        return found

    return [one | other for one, other in zip(_each(plan, entries), unseen(plan))]


def _each(plan: Plan, one: Callable[[Plan, Leaf], Vector]) -> list[Vector]:
    """What `one` says of every leaf of the target, in the order of `jax.tree.leaves`."""
    found = {leaf.path: one(plan, leaf) for leaf in plan.target.leaves}
    return [np.asarray(x) for x in plan.target.apart(found).values()]


def _origins(plan: Plan, leaf: Leaf) -> Vector:
    if leaf.name in plan.invented:
        return np.full(leaf.shape, Origin.FRESH, np.int8)

    def factors(axis: GrownAxis) -> Vector:
        return np.where(axis.map.fresh, axis.fill, axis.factor)

    def mixed(axis: GrownAxis) -> Vector:
        noisy = (axis.map.counts > 1) & (axis.reads and axis.map.noise > 0)
        noisy = noisy | (axis.map.copy > 0) & (axis.map.jitter > 0)
        found: Vector = noisy | (axis.map.mean != 0) & (not axis.reads and axis.role != "")
        return found

    value = _entries(plan, leaf, factors, np.multiply, 1.0)
    found = np.where(value == 1, Origin.COPIED, Origin.SCALED)
    found = np.where(_fresh(plan, leaf), Origin.FRESH, found)
    found = np.where(value == 0, Origin.ZEROED, found)
    found = np.where(_entries(plan, leaf, mixed, np.logical_or, False), Origin.SCALED, found)
    for layers in by_layer(leaf, {stack: word.fresh for stack, word in plan.words.items()}):
        found = np.where(layers, Origin.FRESH, found)
    if leaf.residual:
        for scales in by_layer(leaf, {stack: word.scales for stack, word in plan.words.items()}):
            found = np.where((scales != 1) & (found == Origin.COPIED), Origin.SCALED, found)
            found = np.where(scales == 0, Origin.ZEROED, found)
    if plan.perturb and plan.perturb.violations:
        found = np.where(found == Origin.COPIED, Origin.SCALED, found)
    return found.astype(np.int8)


def _fresh(plan: Plan, leaf: Leaf) -> Vector:
    return _entries(plan, leaf, lambda axis: axis.map.fresh, np.logical_or, False)


def _entries(
    plan: Plan,
    leaf: Leaf,
    vector: Callable[[GrownAxis], Vector],
    combine: Callable[[Any, Any], Vector],
    start: float,
) -> Vector:
    """A vector along each grown axis of a leaf, combined into an array of its shape.

    In numpy: plans are known when tracing.
    """
    grown = plan.grown(leaf)
    if not any(grown):
        return np.full(leaf.shape, start)
    made = []
    for piece, axes in zip(pieces_of(leaf.dims), grown):
        value = np.full(piece.shape(plan.target.extents), start)
        for axis in axes:
            value = combine(value, column(vector(axis), value.ndim, axis.at))
        made.append(value)
    return np.asarray(join(made, leaf.dims, plan.target.extents))
