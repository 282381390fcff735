"""Where each parameter of a grown model comes from: for freezing, for learning-rate groups, for its own step count."""

import enum
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lagjax.algebra.axes import Leaf, Params, join
from lagjax.algebra.maps import Vector
from lagjax.algebra.pieces import GrownAxis
from lagjax.algebra.plan import Layer, Plan


class Origin(enum.IntEnum):
    """What an entry of a grown parameter is."""

    COPIED = 0
    SCALED = 1
    FRESH = 2
    ZEROED = 3


def origins(plan: Plan) -> list[Vector]:
    """An `Origin` for each entry of each leaf of the target, int8 in its shape, in the order of `jax.tree.leaves`.

    Scaled is what was multiplied, averaged or given noise; zeroed what starts at 0 for the function's sake.
    """
    return [_origins(plan, leaf) for leaf in plan.target.leaves]


def tree(plan: Plan, like: Params) -> Params:
    """`origins` as a tree: `like` is the large model's parameters, or their shapes."""
    return jax.tree.unflatten(jax.tree.structure(like), origins(plan))


def only(like: Params, *kinds: Origin) -> optax.GradientTransformation:
    """Lets only parameters of these origins move: `optax.chain(tx, only(tree(plan, params), Origin.FRESH, Origin.ZEROED))`.

    Freezes by entry, so that one leaf may hold both old and new layers. With `optax.masked` go by leaf instead:
    `jax.tree.map(lambda x: (x == Origin.FRESH).any(), tree)`.
    """
    masks = jax.tree.map(lambda x: np.isin(x, [int(kind) for kind in kinds]), like)
    return optax.stateless(
        lambda updates, params: jax.tree.map(
            lambda update, mask: jnp.where(mask, update, 0), updates, masks
        )
    )


def step_sizes(plan: Plan, normalised: bool = True) -> list[Vector]:
    """For each leaf of the target, by what its steps are multiplied so that training goes on as the small model's did.

    In its shape. Where copies are alike a grown parameter is a times its source; its steps, then, must
    be a times the source's. Adam's are whatever the gradient's scale c; those of SGD are c times too large already.

    Args:
        plan: of the growth.
        normalised: the optimizer's steps are free of the gradient's scale.
    """

    def one(axis: GrownAxis) -> Vector:
        rates = axis.map.rates(axis.role, axis.kind)
        slopes = axis.map.slopes(axis.role, axis.kind)
        return rates if normalised else rates / np.where(slopes == 0, 1.0, np.abs(slopes))

    return [
        _entries(plan, leaf, one, np.multiply, 1.0).astype(np.float32)
        for leaf in plan.target.leaves
    ]


def unseen(plan: Plan) -> list[Vector]:
    """For each leaf of the target, which entries have no statistics of gradients from the small model; bool in its shape."""
    found = []
    for leaf in plan.target.leaves:
        blank = _entries(plan, leaf, lambda axis: axis.map.fresh, np.logical_or, False)
        blank = blank | (leaf.name in plan.invented)
        for layers in _layers(plan, leaf, lambda x: x.source is None):
            blank = blank | layers
        if not leaf.residual:
            # No gradient passes zeroed outputs: what lies before them has zero statistics.
            for layers in _layers(plan, leaf, lambda x: x.scale == 0):
                blank = blank | layers
        found.append(blank)
    return found


def _origins(plan: Plan, leaf: Leaf) -> Vector:
    if leaf.name in plan.invented:
        return np.full(leaf.shape, Origin.FRESH, np.int8)

    def factors(axis: GrownAxis) -> Vector:
        return np.where(
            axis.map.fresh,
            axis.map.fill(axis.role, axis.kind),
            axis.map.factors(axis.role, axis.kind),
        )

    def mixed(axis: GrownAxis) -> Vector:
        noisy = (axis.map.counts > 1) & (axis.reads and axis.map.noise > 0)
        noisy = noisy | (axis.map.copy > 0) & (axis.map.jitter > 0)
        return noisy | (axis.map.mean != 0) & (not axis.reads and axis.role != "")

    fresh = _entries(plan, leaf, lambda axis: axis.map.fresh, np.logical_or, False)
    value = _entries(plan, leaf, factors, np.multiply, 1.0)
    made = _entries(plan, leaf, mixed, np.logical_or, False)
    found = np.where(fresh, Origin.FRESH, np.where(value == 1, Origin.COPIED, Origin.SCALED))
    found = np.where(value == 0, Origin.ZEROED, found)
    found = np.where(made, Origin.SCALED, found)
    for layers in _layers(plan, leaf, lambda x: x.source is None):
        found = np.where(layers, Origin.FRESH, found)
    if leaf.residual:
        for scales in _layers(plan, leaf, lambda x: x.scale):
            found = np.where((scales != 1) & (found == Origin.COPIED), Origin.SCALED, found)
            found = np.where(scales == 0, Origin.ZEROED, found)
    return found.astype(np.int8)


def _entries(
    plan: Plan,
    leaf: Leaf,
    vector: Callable[[GrownAxis], Vector],
    combine: Callable[[Any, Any], Vector],
    start: float,
) -> Vector:
    """A vector along each grown axis of a leaf, combined into an array of its shape. In numpy: plans are known when tracing."""
    sizes = {**plan.target.sizes, **plan.target.stacks}
    parts = max((len(dim.parts) for dim in leaf.dims), default=1)
    if not any(plan.factors_of(leaf, part) for part in range(parts)):
        return np.full(leaf.shape, start)
    made = []
    for part in range(parts):
        names = [x for dim in leaf.dims for x in dim.parts[part if len(dim.parts) > 1 else 0]]
        value = np.full([x if isinstance(x, int) else sizes[x] for x in names], start)
        for axis in plan.factors_of(leaf, part):
            column = [1] * value.ndim
            column[axis.at] = -1
            value = combine(value, vector(axis).reshape(column))
        made.append(value)
    joined: Vector = join(made, leaf.dims, sizes)
    return joined


def _layers(plan: Plan, leaf: Leaf, of: Callable[[Layer], float]) -> Iterator[Vector]:
    """A number for each layer, for every stack that a leaf is part of; broadcasts against the leaf."""
    for stack, index in leaf.layer:
        yield np.full([1] * len(leaf.shape), of(plan.words[stack].layers[index]))
    for at, dim in enumerate(leaf.dims):
        if dim.stack:
            shape = [1] * len(leaf.shape)
            shape[at] = -1
            yield np.array([of(x) for x in plan.words[dim.stack].layers]).reshape(shape)
