"""Blame: which axis of which parameter breaks what a plan proves."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import jax.numpy as jnp
import numpy as np

from lagjax.algebra.layout import Array, Leaf, Params
from lagjax.algebra.maps import column
from lagjax.algebra.pieces import GrownAxis, join, pieces_of, split
from lagjax.algebra.plan import Plan
from lagjax.algebra.proof import Violation
from lagjax.certify import readings
from lagjax.certify.readings import Tables


class Tried(Protocol):
    """Grows parameters by tables or by a plan, and says how far the models' outputs are apart.

    The large model's outputs are multiplied by `logits` before.
    """

    def __call__(self, params: Params, by: Tables | Plan, logits: float = 1.0, /) -> float: ...


NEAR = 1e-4
"""How far values may be from what they should be, relative to the largest of the leaf."""


def broken(plan: Plan, params: Params, grown: Params) -> Iterator[Violation]:
    """Where grown parameters are not what the plan says: no R W, or no W' with W' R = W.

    The axis is found by asking which mistake explains the values: a factor that was forgotten along
    it, or entries in another order. Where none does, every grown axis of the leaf is named.
    """
    values, sources = plan.target.values(grown), plan.source.values(params)
    told: set[tuple[str, str]] = set()
    for leaf in plan.target.leaves:
        # None where the small model has nothing to compare with.
        if (chosen := plan.chosen(leaf, sources)) is None:
            continue
        found = split(values[leaf.path], leaf.dims, plan.target.extents)
        unfolded = zip(pieces_of(leaf.dims), found, chosen, plan.grown(leaf))
        for piece, value, source, axes in unfolded:
            # Factors are those of what the model multiplies by.
            value, source = value + leaf.offset, source + leaf.offset
            for at in piece.stacks:
                # Fresh layers may hold anything.
                fresh = column(plan.words[str(piece.names[at])].fresh, value.ndim, at)
                value = jnp.where(fresh, 0, value)
            for axis, why in _mistakes(value, source, axes):
                if (axis, leaf.name) not in told:
                    told.add((axis, leaf.name))
                    yield Violation(axis, leaf.name, why)


def untold(
    plan: Plan, tables: Tables, params: Params, tried: Tried, near: float
) -> list[Violation]:
    """Why outputs differ though all parameters are as planned, found by experiment.

    What the plan requires is blamed where outputs agree once it plays no part, a row or a kind
    where they agree once the table says another, an axis where they agree once nothing is along it.
    What no experiment mends is said to be not found.

    Args:
        plan: with every parameter as it says.
        tables: of the small model and of the large one.
        params: the small model's.
        tried: grows small parameters, by tables or a plan, and says how far outputs are apart.
        near: how far they may be.
    """
    if unmet := [*_unmet(plan, params, tried, near)]:
        return unmet
    if other := readings.found(tables, plan, lambda tables: tried(params, tables), near):
        return other
    for stack, placed in readings.in_place(plan):
        if tried(params, placed) <= near:
            why = "outputs agree once every layer keeps its number: what a layer does depends on it"
            remedy = f"say kinds={{{stack!r}: LayerTypes(...)}} or, of a factor, '/#{stack}'"
            return [Violation(stack, None, f"{why}; {remedy}")]
    for axis in plan.maps:
        if (without := _without(plan, axis, params)) and tried(without, tables) <= near:
            needs = [f"the large model must have {x}: " for x in plan.requires if x.axis == axis]
            alike = plan.target.kind(axis).group == "experts"
            how = "its entries are alike" if alike else "nothing is read along it"
            return [Violation(axis, None, f"{''.join(needs)}outputs agree once {how}")]
    return [
        Violation(
            "*",
            None,
            "not found: all parameters are as planned, and outputs agree by no other reading of "
            "the table; it does not tell all that the model does",
        )
    ]


def _unmet(plan: Plan, params: Params, tried: Tried, near: float) -> Iterator[Violation]:
    """What the plan requires and the large model does not have."""
    logits = [one for one in plan.requires if one.what == "logits"]
    epsilon = [one for one in plan.requires if one.what == "epsilon"]
    for needs in (logits, epsilon, logits + epsilon):
        if not needs:
            continue
        # An epsilon plays no part in a stream that is long.
        given = _long(plan, params) if needs[-1].what == "epsilon" else params
        by = float(np.prod([one.value for one in needs if one.what == "logits"]))
        if tried(given, plan, by) <= near:
            for one in needs:
                tied = (leaf.name for leaf in plan.target.leaves if _role(leaf, "="))
                leaf = next(tied, None) if one.what == "logits" else None
                why = f"the large model must have {one}: outputs agree once it plays no part"
                yield Violation(one.axis, leaf, why)
            return


def _role(leaf: Leaf, role: str) -> bool:
    return any(dim.role == role for dim in leaf.dims)


def _names(leaf: Leaf) -> list[str]:
    return [name for dim in leaf.dims for name in dim.names]


def _long(plan: Plan, params: Params) -> Params:
    """Parameters that make the residual streams long: of a post-norm net, what comes of norms."""
    layout, found = plan.source, {}
    for leaf in layout.leaves:
        roles = {
            role
            for piece in pieces_of(leaf.dims)
            for name, role in piece.axes
            if layout.kind(name).stream
        }
        pre = all(kind.pre for kind in map(layout.kind, _names(leaf)) if kind.stream)
        found[leaf.path] = 1024.0 if roles & ({">"} if pre else {">", "", "+"}) else 1.0
    values = layout.values(params)
    return layout.tree({path: values[path] * by for path, by in found.items()}, params)


def _without(plan: Plan, axis: str, params: Params) -> Params | None:
    """Parameters with which nothing is along an axis, or its experts are alike."""
    layout, kind = plan.source, plan.source.kind(axis)
    role, changed = "" if kind.group == "experts" else "<", False
    values = layout.values(params)
    for leaf in layout.leaves if not kind.stream else ():
        parts = list(split(values[leaf.path], leaf.dims, layout.extents))
        for number, piece in enumerate(pieces_of(leaf.dims)):
            if (at := piece.at(axis, role)) is not None:
                changed, first = True, jnp.take(parts[number], jnp.array([0]), at)
                parts[number] = jnp.broadcast_to(first if not role else 0, parts[number].shape)
        values[leaf.path] = join(parts, leaf.dims, layout.extents)
    return layout.tree(values, params) if changed else None


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
