"""Blame: which axis of which parameter breaks what a plan proves."""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from lagjax.algebra.axes import Array, Params, flatten
from lagjax.algebra.maps import column
from lagjax.algebra.pieces import GrownAxis, split
from lagjax.algebra.plan import Plan
from lagjax.algebra.proof import Violation

NEAR = 1e-4
"""How far values may be from what they should be, relative to the largest of the leaf."""


def broken(plan: Plan, params: Params, grown: Params) -> Iterator[Violation]:
    """Where grown parameters are not what the plan says: no R W, or no W' with W' R = W.

    The axis is found by asking which mistake explains the values: a factor that was forgotten along
    it, or entries in another order. Where none does, every grown axis of the leaf is named.
    """
    values, sources = flatten(grown), flatten(params)
    told: set[tuple[str, str]] = set()
    for leaf in plan.target.leaves:
        # None where the small model has nothing to compare with.
        if (chosen := plan.chosen(leaf, sources)) is None:
            continue
        found = split(values[leaf.path], leaf.dims, plan.target.extents)
        for value, source, axes in zip(found, chosen, plan.grown(leaf)):
            for axis, why in _mistakes(value, source, axes):
                if (axis, leaf.name) not in told:
                    told.add((axis, leaf.name))
                    yield Violation(axis, leaf.name, why)


def unmet(plan: Plan, outputs: Sequence[int]) -> Iterator[Violation]:
    """Why outputs differ though all parameters are as planned: what was required, or the table.

    Args:
        plan: with every parameter as it says.
        outputs: the shape of the large model's outputs.
    """
    for one in plan.requires:
        tied = (
            leaf.name for leaf in plan.target.leaves if any(dim.role == "=" for dim in leaf.dims)
        )
        yield Violation(
            one.axis,
            next(tied, None) if one.what == "logits" else None,
            f"the large model must have {one}, and its outputs say that it does not",
        )
    if plan.requires:
        return
    for leaf in plan.target.leaves:
        for dim in leaf.dims:
            axis = dim.names[0] if dim.names else ""
            looked_up = dim.role == "<" and plan.target.kind(axis).indexed
            if looked_up and outputs and plan.target.sizes.get(axis) == outputs[-1]:
                yield Violation(
                    axis,
                    leaf.name,
                    "is read as an embedding only, yet there are as many outputs; if it is the "
                    f"head too, mark it tied: '={axis}'",
                )
                return
    yield Violation(
        "*",
        None,
        "all parameters are as planned, but the table does not tell all that the model does",
    )


def _mistakes(
    value: Array, source: Array, factors: Sequence[GrownAxis]
) -> Iterator[tuple[str, str]]:
    """The axes along which one part of a leaf is wrong; `source` has no axis grown, `value` all."""
    reading = [axis for axis in factors if axis.reads]
    writing = [axis for axis in factors if not axis.reads]
    size = float(jnp.abs(source).max()) or 1.0

    def near(one: Array, other: Array) -> bool:
        return bool(jnp.abs(one - other).max() <= NEAR * size)

    def written(plain: GrownAxis | None = None) -> Array:
        """What readers' contraction must give, one axis without its factors."""
        grown = source
        for axis in writing:
            grown = _bare(grown, axis) if axis is plain else axis.grow(grown)
        return _held(grown, writing)

    def contracted(but: GrownAxis | None = None) -> Array:
        found = value
        for axis in reading:
            if axis is not but:
                found = axis.contract(found)
        return _held(found, writing)

    for axis in reading:
        weights = np.where(axis.map.fresh, axis.map.writes, 0.0)
        # What is read of new entries that hold the same.
        summed = _held(axis.summed(value, weights, axis.map.twin, axis.map.new), writing)
        if axis.map.fresh.any() and not near(summed, jnp.zeros_like(summed)):
            yield axis.name, "what is read of new entries does not cancel"
    wanted, found = written(), contracted()
    if near(found, wanted):
        return
    blamed = False
    for axis in factors:
        if axis.reads:
            bare = axis.contract(_bare(wanted, axis))
            seen, due = contracted(axis), _held(axis.grow(wanted), writing)
        else:
            bare, seen, due = written(axis), found, wanted
        if near(found, bare) and not near(bare, wanted):
            blamed = True
            yield axis.name, "the factor of its copies is missing"
        elif not near(seen, due) and near(_lengths(seen, axis.at), _lengths(due, axis.at)):
            blamed = True
            yield axis.name, "its entries are in another order"
    if not blamed:
        for axis in factors:
            yield axis.name, "the grown parameter keeps neither W' R = W nor R W"


def _bare(value: Array, axis: GrownAxis) -> Array:
    """Copies along an axis without their factors."""
    return axis.copies(value, (~axis.map.fresh).astype(float))


def _held(value: Array, writing: Sequence[GrownAxis]) -> Array:
    """The values, 0 where fresh ones may stand."""
    for axis in writing:
        free = axis.map.fresh & (axis.fill != 0)
        value = jnp.where(column(free, value.ndim, axis.at), 0, value)
    return value


def _lengths(value: Array, axis: int) -> Array:
    """The lengths of the slices along an axis, in order of size."""
    flat = jnp.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)
    return jnp.sort(jnp.sqrt(jnp.square(flat).sum(1)))
