"""Deep Fusion: trained models of one shape become one that is as many times wider (Mazzawi et al. 2023, arXiv 2306.11903)."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lagjax.algebra.axes import Array, Axes, Layout, Leaf, Params
from lagjax.algebra.maps import column
from lagjax.algebra.pieces import join, split
from lagjax.algebra.plan import Plan
from lagjax.growth.depth import Depth, unchanged
from lagjax.growth.width import BlockDiagonal, Width
from lagjax.model import Key, Model


@dataclass(frozen=True)
class Fuse:
    """Puts n trained models beside each other: `Fuse()(key, (params, others), source.axes, target)`.

    Connections are block diagonal, the head reads the average, and what has no axis that grew is averaged. Every axis that
    grows must be n times as large; heads and hidden units that stay as many are shared by the models.

    A model fused with itself keeps its function where `plan(...).exact` says so and what `plan(...).requires` names is met.
    Different models give the average of their outputs only where no norm sees the streams of both (`Residual(None, ...)`),
    all their axes grow, and the head is linear.

    Attributes:
        depth: adds layers in the same step.
    """

    depth: Depth | None = None

    def __call__(
        self, key: Key, params: Sequence[Params], source: Axes, target: Model, /
    ) -> Params:
        """The fused parameters; raises ValueError for a single source, sources of different shapes, and as `plan` does."""
        layout = _common(params, source)
        plan = self.plan(key, layout, target.axes.layout(jax.eval_shape(target.init, key)))
        if len(params) != (times := _times(plan)):
            raise ValueError(
                f"{len(params)} models are given, but the target's axes {sorted(plan.maps)} are {times} times as large as theirs; "
                f"give {times}, or a target of {len(params)} times their size"
            )
        fresh = target.init(key)
        grown = [jax.tree.leaves(plan.params(one, fresh)) for one in params]
        fused = [_fused(plan, leaf, values) for leaf, *values in zip(plan.target.leaves, *grown)]
        return jax.tree.unflatten(jax.tree.structure(fresh), fused)

    def plan(self, key: Key, source: Layout, target: Layout, /) -> Plan:
        """What becomes of one of the models when it is fused with itself.

        Raises ValueError for axes that grow by no or different whole multiples, and for one that the data index.
        """
        if self.depth:
            words = self.depth.words(source, target)
        else:
            words = unchanged(source, target)
        grown = {
            axis: size
            for axis, size in target.sizes.items()
            if source.sizes.get(axis, size) != size
        }
        if not grown:
            raise ValueError(
                "no axis of the target is larger than the sources'; n models fuse to one whose axes are n times as large"
            )
        first = next(iter(grown))
        times = max(grown[first] // source.sizes[first], 2)
        for axis, size in grown.items():
            leaf = target.having(axis)[0]
            if target.kind(axis).indexed:
                raise ValueError(
                    f"axis {axis!r} grows from {source.sizes[axis]} to {size} in {leaf}, but the data index it; the fused model "
                    "takes the same data: give a target of equal size"
                )
            if size != times * source.sizes[axis]:
                raise ValueError(
                    f"axis {axis!r} has size {source.sizes[axis]} in the sources and {size} in the target's {leaf}; fusing {times} "
                    f"models, as {first!r} has it, takes {times * source.sizes[axis]}"
                )
        return Plan(source, target, words, Width(BlockDiagonal()).maps(source, target), key)


def _fused(plan: Plan, leaf: Leaf, values: Sequence[Array]) -> Array:
    """One leaf out of those of all sources' grown trees: block s is the tree's of source s.

    Blocks lie along the first axis that grew of those that the leaf writes or acts on, else of those that it reads, whose
    even shares make an average. Without any, the leaves are averaged.
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


def _common(params: Sequence[Params], source: Axes) -> Layout:
    """The layout that all sources have."""
    if not isinstance(params, tuple | list) or len(params) < 2:
        raise ValueError(
            "fusing takes the parameters of two models or more: Fuse()(key, (params, others), source, target); to grow one, "
            "use Width(BlockDiagonal())"
        )
    first, *others = [source.layout(one) for one in params]
    for number, other in enumerate(others, 2):
        for one, two in zip(first.leaves, other.leaves):
            if (one.path, one.shape) != (two.path, two.shape):
                raise ValueError(
                    f"the first model has {one} where model {number} has {two}; fusing takes models of one shape"
                )
        if len(first.leaves) != len(other.leaves):
            raise ValueError(
                f"the first model has {len(first.leaves)} parameters, model {number} has {len(other.leaves)}; fusing takes models "
                "of one shape"
            )
    return first


def _times(plan: Plan) -> int:
    """How many models the plan's target has room for."""
    grown = next(iter(plan.maps.values()))
    return grown.new // grown.old
