"""Pieces: the unfolded parts of a parameter, and what becomes of its values along axes that grow.

A table may flatten axes into one and concatenate several. Whatever grows, picks or masks works on
pieces, the parts that are left when all of this is undone: arrays with one dimension for each named
axis. `split` takes an array into its pieces, and `join` makes it of them again.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from lagjax.algebra.kinds import Kind
from lagjax.algebra.layout import Array, Layout, extent, length
from lagjax.algebra.maps import AxisMap, Vector, column, divided
from lagjax.algebra.notation import Dim


class Piece(NamedTuple):
    """One unfolded part of a parameter: the name, role and order of the axis at each position."""

    names: tuple[str | int, ...]
    roles: tuple[str, ...]
    orders: tuple[int, ...]

    @property
    def axes(self) -> tuple[tuple[str | int, str], ...]:
        """The name and role of each axis, in order."""
        return tuple(zip(self.names, self.roles))

    @property
    def stacks(self) -> tuple[int, ...]:
        """The positions of stacks of layers."""
        return tuple(at for at, role in enumerate(self.roles) if role == "#")

    def at(self, name: str, role: str) -> int | None:
        """The position of an axis in a role; None where there is none."""
        return self.axes.index((name, role)) if (name, role) in self.axes else None

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of the unfolded array; raises ValueError for a size that is not known."""
        return tuple(length(name, sizes) for name in self.names)

    def grown(self, layout: Layout, maps: Mapping[str, AxisMap]) -> tuple["GrownAxis", ...]:
        """Its axes that have a map."""
        return tuple(
            GrownAxis(str(name), at, role, layout.kind(name), maps[str(name)], self.orders[at])
            for at, (name, role) in enumerate(self.axes)
            if name in maps and role != "#"
        )


@functools.cache
def pieces_of(dims: tuple[Dim, ...]) -> tuple[Piece, ...]:
    """The pieces of an array with these axes; one, where nothing is concatenated."""
    made = []
    for part in range(max((len(dim.parts) for dim in dims), default=1)):
        at = [(dim, part if len(dim.parts) > 1 else 0) for dim in dims]
        names = tuple(name for dim, index in at for name in dim.parts[index])
        roles = tuple(role for dim, index in at for role in dim.roles(index))
        orders = tuple(dim.order for dim, index in at for _ in dim.parts[index])
        made.append(Piece(names, roles, orders))
    return tuple(made)


def split(array: Array, dims: Sequence[Dim], sizes: Mapping[str, int]) -> tuple[Array, ...]:
    """Unfolds an array into its pieces."""
    parts = [array]
    for axis, dim in enumerate(dims):
        if len(dim.parts) > 1:
            lengths = [extent(part, sizes) for part in _apart(dim)]
            shape, at = _around(array.shape, dims, sizes, axis, sum(lengths))
            ends, before = [0, *itertools.accumulate(lengths)], (slice(None),) * at
            array = array.reshape(shape)
            parts = [array[(*before, slice(a, b))] for a, b in itertools.pairwise(ends)]
    made = pieces_of(tuple(dims))
    return tuple(part.reshape(piece.shape(sizes)) for part, piece in zip(parts, made))


def _apart(dim: Dim) -> list[tuple[str | int, ...]]:
    """The factors of each part of a concatenated axis that the others do not have too."""
    before, behind = dim.around
    return [part[before : len(part) - behind] for part in dim.parts]


def _around(
    shape: Sequence[int], dims: Sequence[Dim], sizes: Mapping[str, int], axis: int, size: int
) -> tuple[tuple[int, ...], int]:
    """The shape in which the concatenated axis has a dimension of this size, and which one it is.

    What its parts have in common, as the heads of `(heads (qk | v))`, gets dimensions beside it.
    """
    before, behind = dims[axis].around
    part = dims[axis].parts[0]
    outer, inner = part[:before], part[len(part) - behind :]
    whole = (extent(outer, sizes), size, extent(inner, sizes))
    return (*shape[:axis], *whole, *shape[axis + 1 :]), axis + 1


def join(parts: Sequence[Array], dims: Sequence[Dim], sizes: Mapping[str, int]) -> Array:
    """Folds what `split` unfolded."""
    along = next((axis for axis, dim in enumerate(dims) if len(dim.parts) > 1), None)
    if along is None:
        return parts[0].reshape([extent(dim.parts[0], sizes) for dim in dims])
    folded, total = [], 0
    for index, (part, own) in enumerate(zip(parts, _apart(dims[along]))):
        shape = [
            extent(dim.parts[index if at == along else 0], sizes) for at, dim in enumerate(dims)
        ]
        wide, at = _around(shape, dims, sizes, along, extent(own, sizes))
        folded.append(part.reshape(wide))
        total += shape[along]
    # Masks stay in numpy, under a trace too.
    host = all(isinstance(part, np.ndarray) for part in folded)
    made: Array = np.concatenate(folded, at) if host else jnp.concatenate(folded, at)
    return made.reshape([*shape[:along], total, *shape[along + 1 :]])


def unfold(
    array: Array, old: Sequence[Dim], new: Sequence[Dim], sizes: Mapping[str, int]
) -> tuple[Array, ...]:
    """Splits an array and brings each piece's axes into another codebase's order.

    An axis that only that one has is of size 1.
    """
    moved = []
    for part, have, want in zip(
        split(array, old, sizes), pieces_of(tuple(old)), pieces_of(tuple(new)), strict=True
    ):
        missing = [name for name in _numbered(want) if name not in _numbered(have)]
        part = jnp.reshape(part, (*part.shape, *[1] * len(missing)))
        names = [*_numbered(have), *missing]
        moved.append(jnp.transpose(part, [names.index(name) for name in _numbered(want)]))
    return tuple(moved)


def rearrange(
    array: Array, old: Sequence[Dim], new: Sequence[Dim], sizes: Mapping[str, int]
) -> Array:
    """Brings an array from one codebase's order and folding of axes into another's."""
    if [dim.folding for dim in old] == [dim.folding for dim in new]:
        return array
    return join(unfold(array, old, new, sizes), new, sizes)


def _numbered(piece: Piece) -> list[tuple[str | int, int]]:
    """Tells equal names apart: the second `3` of a kernel `3 3 <cin >cout` is not the first."""
    return [(name, piece.names[:at].count(name)) for at, name in enumerate(piece.names)]


@dataclass(frozen=True, eq=False)
class GrownAxis:
    """A growing axis of one piece.

    Attributes:
        name: of the axis.
        at: its position in the piece.
        role: what the parameter does along it.
        kind: what it meets.
        map: how it grows.
        order: of a statistic.
    """

    name: str
    at: int
    role: str
    kind: Kind
    map: AxisMap
    order: int = 1

    @property
    def reads(self) -> bool:
        """Whether the parameter reads along it; what the data index is written."""
        return self.role == "<" and not self.kind.indexed

    @property
    def averages(self) -> bool:
        """Whether means that the map adds are means of its values.

        Not so of what acts elementwise, and not of squares.
        """
        return self.role in ("<", "=", ">", "~") and not self.reads and self.order == 1

    @property
    def factor(self) -> Vector:
        """`[new]` by what a copied entry is multiplied."""
        if self.reads:
            return divided(self.map.share, self.map.scale) * self.kind.root(self.map)
        if self.role in ("", "*"):
            return (~self.map.fresh).astype(float) * self.gain
        return self.map.scale**self.order

    @property
    def gain(self) -> float:
        """By what the copies of a norm's scale are multiplied; 1 for any other parameter."""
        return self.kind.gain(self.map) if self.role == "" else 1.0

    @property
    def slope(self) -> Vector:
        """`[new]` the gradient of a copied entry over that of its source.

        What is written along an axis receives its gradient through the readers, by their share, and
        what reads sees what is written.
        """
        if self.reads:
            return self.map.scale / self.kind.root(self.map)
        if self.role == "<":
            return (~self.map.fresh).astype(float)
        if self.role in ("", "*"):
            return self.map.share / self.gain
        return divided(self.map.share, self.map.scale)

    @property
    def rate(self) -> Vector:
        """`[new]` by what a copied entry's step is multiplied so that it moves as its source does.

        As `factor`, for even shares: however copies were split, together they are to move so.
        """
        even = dataclasses.replace(self.map, share=self.map.even)
        rates = dataclasses.replace(self, map=even).factor
        # What is written as a mean alone, or new, has no source whose steps it could follow.
        return np.where(rates == 0, 1.0, np.abs(rates))

    @property
    def fill(self) -> Vector:
        """`[new]` the factor of the fresh value at a new entry, 1 at a copied one."""
        if self.role == "+":
            filled = np.zeros(self.map.new)
        elif self.role in ("", "*"):
            filled = np.full(self.map.new, self.gain)
        elif self.role == "~":
            # Where activations are a mean of others, so is theirs.
            filled = np.where((self.map.mean != 0) & self.averages, 0.0, 1.0)
        else:
            filled = self.map.reads if self.reads else self.map.writes
        return np.where(self.map.fresh, filled, 1.0)

    def column(self, vector: Vector, like: Array) -> Vector:
        """A vector of the dtype of `like` that multiplies it along this axis. NumPy's, because JAX
        compiles a program for each shape that it is given.
        """
        return column(vector, like.ndim, self.at).astype(like.dtype)

    def scaled(self, x: Array, factors: Vector) -> Array:
        """Multiplies along the axis, where there is anything to multiply by."""
        return x if np.all(factors == 1) else jnp.multiply(x, self.column(factors, x))

    def copies(self, x: Array, factors: Vector) -> Array:
        """Takes the copies along the axis and multiplies them; new entries are 0."""
        source = np.maximum(self.map.source, 0)
        taken = x if self.map.identity else jnp.take(x, source, self.at)
        return self.scaled(taken, np.where(self.map.fresh, 0.0, factors))

    def grow(self, x: Array) -> Array:
        """What comes from the small model: new entries are 0 or, if the map says so, means."""
        value = self.copies(x, self.factor)
        if self.averages and self.map.mean.any():
            value = value + self.column(self.map.mean, value) * jnp.mean(x, self.at, keepdims=True)
        return value

    def twins(self, fresh: Array) -> Array:
        """Fresh values in which a new entry has those of its twin."""
        if np.array_equal(self.map.twin, np.arange(self.map.new)):
            return fresh
        return jnp.take(fresh, self.map.twin, self.at)

    def free(self, noise: Array) -> Array:
        """N (I − R L): what a reader may add without anything changing, out of any noise."""
        made = self.map
        undone: Array | int = 0
        source = np.maximum(made.source, 0)
        # Copy by copy, because a scatter would hold several times what it sums.
        for copy in range(int(made.counts.max())):
            member = np.zeros(made.old, int)
            weight = np.zeros(made.old)
            mine = np.flatnonzero((made.copy == copy) & ~made.fresh)
            member[made.source[mine]] = mine
            weight[made.source[mine]] = made.scale[mine]
            taken = jnp.take(noise, member[source], self.at)
            undone = undone + taken * self.column(weight[source], noise)
        left = np.where(made.fresh, 0.0, divided(made.share, made.scale))
        kept = self.scaled(noise, (~made.fresh).astype(float))
        return kept - undone * self.column(left, noise)

    def contract(self, x: Array) -> Array:
        """What a grown parameter does to the small model's activations.

        W' R along a read axis, a left inverse of R else: applied to every axis of an exactly grown
        parameter it gives the small one back.
        """
        if self.reads:
            weights = self.slope
        else:
            first = (self.map.copy == 0) & ~self.map.fresh
            weights = np.where(first, divided(1.0, self.factor), 0.0)
        return self.summed(x, weights, np.maximum(self.map.source, 0), self.map.old)

    def summed(self, x: Array, weights: Vector, into: Vector, count: int) -> Array:
        """The weighted sums of the slices along the axis that go `into` each of `count` others."""
        moved = jnp.moveaxis(x, self.at, 0)
        weighted = moved * column(weights, moved.ndim, 0).astype(x.dtype)
        return jnp.moveaxis(jax.ops.segment_sum(weighted, into, count), 0, self.at)


def parameter(
    value: Array,
    later: Array,
    fresh: Array,
    axes: Sequence[GrownAxis],
    key: jax.Array | None,
    offset: float = 0.0,
) -> Array:
    """Grows a parameter along its axes: first where it writes, then where it reads what is written.

    Args:
        value: a piece of the small model's.
        later: that of the next layer, for axes whose map takes from `ahead`.
        fresh: the piece of the large model's initialisation.
        axes: that grow.
        key: draws noise, where a map has any.
        offset: what the model adds to the values before it multiplies by them.
    """
    if offset and not all((axis.factor == 1).all() and (axis.fill == 1).all() for axis in axes):
        # Only where something is multiplied, because the sum rounds.
        value, later, fresh = value + offset, later + offset, fresh + offset
        return parameter(value, later, fresh, axes, key) - offset
    size = jnp.sqrt(jnp.mean(jnp.square(value)))

    def drawn(axis: GrownAxis, of: float) -> Array:
        nonlocal key
        if key is None:
            raise ValueError(
                f"the map of axis {axis.name!r} draws noise, but its plan has no key; give "
                "Plan(..., key=key)"
            )
        key, one = jax.random.split(key)
        return size * of * jax.random.normal(one, value.shape, value.dtype)

    writing = [axis for axis in axes if not axis.reads]
    for axis in writing:
        grown, later = axis.grow(value), axis.grow(later)
        value = jnp.where(axis.column(axis.map.ahead, grown) > 0, later, grown)
    for axis in axes:
        if not axis.reads:
            continue
        value = axis.grow(value)
        if axis.map.diagonal:
            value = _diagonal(value, axis, writing)
        if axis.map.noise:
            value = value + axis.free(drawn(axis, axis.map.noise))
    for axis in axes:
        if axis.map.jitter and axis.role != "~":
            value = value + drawn(axis, axis.map.jitter) * axis.column(axis.map.copy > 0, value)
    if (blank := new_entries(axes, value.ndim)).any():
        made = fresh.astype(value.dtype)
        for axis in axes:
            made = axis.scaled(axis.twins(made), axis.fill)
        value = jnp.where(blank, value + made, value)
    return value


def powered(slope: ArrayLike, power: int, odd: bool) -> Vector:
    """What a gradient's factor does to statistics of an order; odd ones change sign with it."""
    made: Vector = np.abs(slope) ** power * (np.sign(slope) if odd else 1.0)
    return made


def moment(value: Array, fresh: Array, axes: Sequence[GrownAxis], power: int, odd: bool) -> Array:
    """Grows statistics of the gradient along their parameter's axes."""
    for axis in axes:
        value = axis.copies(value, powered(axis.slope, power, odd))
    blank = new_entries(axes, value.ndim)
    return jnp.where(blank, fresh.astype(value.dtype), value) if blank.any() else value


def new_entries(axes: Sequence[GrownAxis], dimensions: int) -> Vector:
    """Which entries of a piece are new along any axis; broadcasts against it."""
    blank: Vector = np.zeros((1,) * dimensions, bool)
    for axis in axes:
        blank = blank | column(axis.map.fresh, dimensions, axis.at)
    return blank


def _diagonal(value: Array, reader: GrownAxis, writing: Sequence[GrownAxis]) -> Array:
    """Lets each copy read of its own number only, where an axis written has as many copies."""
    count = int(reader.map.counts.max())
    for writer in writing:
        if int(writer.map.counts.max()) == count and writer.role == ">":
            numbers = [column(x.map.copy, value.ndim, x.at) for x in (writer, reader)]
            same = (numbers[0] == numbers[1]).astype(float)
            return jnp.multiply(value, (count * same).astype(value.dtype))
    return value
