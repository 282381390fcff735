"""Deep Fusion: trained models of one shape become one that is as many times wider (Mazzawi et al.
2023, arXiv 2306.11903).

`Grow(fuse=True)(key, (params, others), source.axes, target)` puts n models beside each other.
Connections are block diagonal, the head reads the average, and what has no axis that grew is
averaged. Every axis that grows must be n times as large; heads and hidden units that stay as many
are shared by the models.

A model fused with itself keeps its function where `plan(...).exact_by_table` says so and what
`plan(...).requires` names is met. Different models give the average of their outputs only where no
norm sees the streams of both (`Residual(None, ...)`), all their axes grow, and the head is linear.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import Array, Layout, Leaf, Params
from lagjax.algebra.maps import AxisMap, column
from lagjax.algebra.pieces import join, split
from lagjax.algebra.plan import Plan
from lagjax.growth import width
from lagjax.growth.width import BlockDiagonal, grown_axes


def maps(source: Layout, target: Layout) -> dict[str, AxisMap]:
    """The map of every axis that grows.

    Raises ValueError where none does, for axes that grow by no or different whole multiples, and
    for one that the data index.
    """
    grown = grown_axes(source, target)
    if not grown:
        raise ValueError(
            "no axis of the target is larger than the sources'; n models fuse to one whose axes "
            "are n times as large"
        )
    times = max(target.sizes[grown[0]] // source.sizes[grown[0]], 2)
    for axis in grown:
        old, new = source.sizes[axis], target.sizes[axis]
        leaf = target.having(axis)[0]
        if target.kind(axis).indexed:
            raise ValueError(
                f"axis {axis!r} grows from {old} to {new} in {leaf}, but the data index it; the "
                "fused model takes the same data: give a target of equal size"
            )
        if new != times * old:
            raise ValueError(
                f"axis {axis!r} has size {old} in the sources and {new} in the target's {leaf}; "
                f"fusing {times} models, as {grown[0]!r} has it, takes {times * old}"
            )
    return width.maps(BlockDiagonal(), source, target)


def fused(plan: Plan, params: Sequence[Params], fresh: Params) -> Params:
    """The fused parameters, from those of the models; raises ValueError for another number of them
    than the plan's.
    """
    axis = next(iter(plan.maps.values()))
    if len(params) != (times := axis.new // axis.old):
        raise ValueError(
            f"{len(params)} models are given, but the target's axes {sorted(plan.maps)} are "
            f"{times} times as large as theirs; give {times}, or a target of {len(params)} times "
            "their size"
        )
    grown = [plan.target.values(plan.params(one, fresh)) for one in params]
    made = {
        leaf.path: _fused(plan, leaf, [values[leaf.path] for values in grown])
        for leaf in plan.target.leaves
    }
    return plan.target.tree(made, fresh)


def common(params: Sequence[Params], source: Axes) -> Layout:
    """The layout that all sources have; raises ValueError for a single source, and for sources of
    different shapes.
    """
    if not isinstance(params, tuple | list) or len(params) < 2:
        raise ValueError(
            "fusing takes the parameters of two models or more: Grow(fuse=True)(key, (params, "
            "others), source, target); to grow one, use Grow(width=BlockDiagonal())"
        )
    first, *others = [source.layout(one) for one in params]
    for number, other in enumerate(others, 2):
        for one, two in zip(first.leaves, other.leaves):
            if (one.path, one.shape) != (two.path, two.shape):
                raise ValueError(
                    f"the first model has {one} where model {number} has {two}; fusing takes "
                    "models of one shape"
                )
        if len(first.leaves) != len(other.leaves):
            raise ValueError(
                f"the first model has {len(first.leaves)} parameters, model {number} has "
                f"{len(other.leaves)}; fusing takes models of one shape"
            )
    return first


def _fused(plan: Plan, leaf: Leaf, values: Sequence[Array]) -> Array:
    """One leaf out of those of all sources' grown trees: block s is the tree's of source s.

    Blocks lie along the first axis that grew of those that the leaf writes or acts on, else of
    those that it reads, whose even shares make an average. Without any, the leaves are averaged.
    """
    grown = plan.grown(leaf)
    if not any(grown):
        return _mean(values)
    extents, parts = plan.target.extents, []
    for axes, *blocks in zip(grown, *(split(value, leaf.dims, extents) for value in values)):
        if not axes:
            parts.append(_mean(blocks))
            continue
        axis = min(axes, key=lambda axis: axis.reads)
        copy, value = column(axis.map.copy, blocks[0].ndim, axis.at), blocks[0]
        for number, block in enumerate(blocks):
            value = jnp.where(copy == number, block, value)
        parts.append(value)
    return join(parts, leaf.dims, extents)


def _mean(values: Sequence[Array]) -> Array:
    total = sum(values[1:], values[0])
    return (total / len(values)).astype(values[0].dtype)
