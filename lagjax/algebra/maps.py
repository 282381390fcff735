"""Maps: how one axis of the small model becomes one of the large, as data.

Activations along the axis become x' = R x, where each row of R copies one old entry or, in part, the mean of all. A
parameter that writes along the axis becomes R W. One that reads along it becomes any W' with W' R = W: here W L + N (I − R L),
where L gives each copy a share of what is read and N is the whole freedom there is.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lagjax.algebra.axes import Dot, Kind, Lookup, Residual

Vector: TypeAlias = Any
"""A numpy vector, an entry for each new index."""


@dataclass(frozen=True, eq=False)
class AxisMap:
    """One axis, from `old` entries to `len(source)`.

    A new entry copies an old one (`source` ≥ 0), or is new (−1). New entries come from the target's initialisation, as
    far as `writes` and `reads` say: unwritten ones (`writes` 0) hold 0, unread ones (`reads` 0) may hold anything.

    Attributes:
        old: size of the axis in the small model.
        source: `[new]` the old entry that each new one copies, or −1.
        scale: `[new]` the factor of a copy, R[i, source[i]].
        mean: `[new]` how much of the mean of all old entries is added, R[i, :] += mean[i] / old.
        share: `[new]` of what is read of an old entry, the part that this copy is read for; shares of one source sum to 1.
        writes: `[new]` the factor of the fresh values that writers have at a new entry.
        reads: `[new]` the factor of the fresh values that readers have at a new entry.
        twin: `[new]` the entry whose fresh values a new one takes; itself unless said.
        noise: of N, relative to the root mean square of the parameter.
        jitter: of noise on every copy but the first, in the same unit; never exact.
        diagonal: each copy reads of the copies with its own number only (block diagonal).
        ahead: `[new]` copies that writers take from the next layer (AKI); never exact.
    """

    old: int
    source: Vector
    scale: Vector = None
    mean: Vector = None
    share: Vector = None
    writes: Vector = None
    reads: Vector = None
    twin: Vector = None
    noise: float = 0.0
    jitter: float = 0.0
    diagonal: bool = False
    ahead: Vector = None
    copy: Vector = field(init=False)
    """`[new]` how many copies of the same entry come before this one."""
    counts: Vector = field(init=False)
    """`[new]` how many copies its entry has, 1 for a new one."""

    def __post_init__(self) -> None:
        source = np.asarray(self.source, int)
        new, copied = len(source), source >= 0
        times = np.bincount(source[copied], minlength=self.old)
        if len(times) > self.old or (times == 0).any():
            raise ValueError(
                f"a map of an axis with {self.old} entries copies {sorted(set(source[copied].tolist()))}; every entry must be "
                "copied at least once, and no other can be"
            )
        counts = np.where(copied, times[np.maximum(source, 0)], 1)
        defaults = {
            "source": source,
            "scale": copied.astype(float),
            "mean": np.zeros(new),
            "share": np.where(copied, 1 / counts, 0.0),
            "writes": np.zeros(new),
            "reads": np.ones(new),
            "twin": np.arange(new),
            "ahead": np.zeros(new, bool),
            "counts": counts,
            "copy": _numbering(source),
        }
        for name, value in defaults.items():
            given = getattr(self, name, None)
            if name == "source" or given is None:
                object.__setattr__(self, name, value)

    @property
    def new(self) -> int:
        """The size of the axis in the large model."""
        return len(self.source)

    @property
    def fresh(self) -> Vector:
        """`[new]` which entries are new."""
        return self.source < 0

    @property
    def identity(self) -> bool:
        """Whether nothing changes."""
        return np.array_equal(self.source, np.arange(self.old))

    @property
    def norms(self) -> Vector:
        """`[old]` the squared norm of each column of R, its mean part left out."""
        copied = ~self.fresh
        weights = self.scale[copied] ** 2
        return np.bincount(self.source[copied], weights, minlength=self.old)

    @property
    def stretch(self) -> float:
        """The root mean square of x' over that of x, as norms measure it, where columns of R are of one norm."""
        return float(np.sqrt(self.norms.mean() * self.old / self.new))

    def factors(self, role: str, kind: Kind | None) -> Vector:
        """`[new]` by what a copied entry of a parameter in this role is multiplied."""
        if role == "<" and not isinstance(kind, Lookup):
            return self._divided(self.share, self.scale) * self._root(kind)
        if role == "":
            copied = (~self.fresh).astype(float)
            return copied * (self.stretch if isinstance(kind, Residual) else 1.0)
        return self.scale

    def slopes(self, role: str, kind: Kind | None) -> Vector:
        """`[new]` the gradient of a copied entry over that of its source, where copies share evenly.

        What is written along an axis receives its gradient through the readers, and what reads sees what is written.
        """
        even = np.where(self.fresh, 0.0, 1 / self.counts)
        if role == "<" and not isinstance(kind, Lookup):
            return self.scale / self._root(kind)
        if role == "<":
            return (~self.fresh).astype(float)
        if role == "":
            return even / (self.stretch if isinstance(kind, Residual) else 1.0)
        return self._divided(even, self.scale)

    def rates(self, role: str, kind: Kind | None) -> Vector:
        """`[new]` by what a copied entry's step is multiplied so that the large model's steps are the small one's.

        As `factors`, for even shares: however copies were split, together they are to move as their source does.
        """
        even = np.where(self.fresh, 0.0, 1 / self.counts)
        rates = dataclasses.replace(self, share=even).factors(role, kind)
        # What is written as a mean alone, and what is new, has no source whose steps it could follow.
        return np.where(rates == 0, 1.0, np.abs(rates))

    def fill(self, role: str, kind: Kind | None) -> Vector:
        """`[new]` the factor of the fresh value at a new entry, 1 at a copied one."""
        if role == "+":
            filled: Vector = np.zeros(self.new)
        elif role == "":
            residual = isinstance(kind, Residual)
            filled = np.full(self.new, self.stretch if residual else 1.0)
        elif role == "<" and not isinstance(kind, Lookup):
            filled = self.reads
        else:
            filled = self.writes
        return np.where(self.fresh, filled, 1.0)

    def apply(self, x: Any, axis: int, factors: Vector) -> Any:
        """Takes the copies along an axis and multiplies them; new entries are 0."""
        taken = x if self.identity else jnp.take(x, np.maximum(self.source, 0), axis)
        return scaled(taken, np.where(self.fresh, 0.0, factors), axis)

    def write(self, x: Any, axis: int) -> Any:
        """R x along an axis."""
        value = self.apply(x, axis, self.scale)
        if self.mean.any():
            value = value + along(self.mean, value, axis) * jnp.mean(x, axis, keepdims=True)
        return value

    def twins(self, fresh: Any, axis: int) -> Any:
        """Fresh values in which a new entry has those of its twin."""
        if np.array_equal(self.twin, np.arange(self.new)):
            return fresh
        return jnp.take(fresh, self.twin, axis)

    def free(self, noise: Any, axis: int) -> Any:
        """N (I − R L): what a reader may add without anything changing, out of any noise."""
        undone = 0
        # Copy by copy, because a scatter would hold several times what it sums.
        for copy in range(int(self.counts.max())):
            member = np.zeros(self.old, int)
            weight = np.zeros(self.old)
            mine = np.flatnonzero((self.copy == copy) & ~self.fresh)
            member[self.source[mine]] = mine
            weight[self.source[mine]] = self.scale[mine]
            source = np.maximum(self.source, 0)
            taken = jnp.take(noise, member[source], axis)
            undone = undone + taken * along(weight[source], noise, axis)
        left = np.where(self.fresh, 0.0, self._divided(self.share, self.scale))
        return scaled(noise, (~self.fresh).astype(float), axis) - undone * along(left, noise, axis)

    def contract(self, x: Any, axis: int, role: str, kind: Kind | None) -> Any:
        """What a grown parameter does to the small model's activations: W' R along a read axis, a left inverse of R else.

        Applied to every axis of an exactly grown parameter it gives the small one back.
        """
        moved = jnp.moveaxis(x, axis, 0)
        column = (self.new, *[1] * (moved.ndim - 1))
        source = np.maximum(self.source, 0)
        if role == "<" and not isinstance(kind, Lookup):
            weights = self.scale / self._root(kind)
        else:
            first = (self.copy == 0) & ~self.fresh
            weights = np.where(first, self._divided(1.0, self.factors(role, kind)), 0.0)
        value = jax.ops.segment_sum(
            moved * jnp.asarray(weights.reshape(column), x.dtype), source, self.old
        )
        return jnp.moveaxis(value, 0, axis)

    def _root(self, kind: Kind | None) -> float:
        """By what keys are multiplied because scores are divided by the root of a larger size."""
        softmax = isinstance(kind, Dot) and kind.scaled
        return float(np.sqrt(self.new / self.old)) if softmax else 1.0

    def _divided(self, a: Any, b: Vector) -> Vector:
        return np.where(b == 0, 0.0, a / np.where(b == 0, 1.0, b))


def along(vector: Vector, like: Any, axis: int) -> Any:
    """A vector as an array that multiplies along one axis."""
    shape = [1] * like.ndim
    shape[axis] = -1
    return jnp.asarray(np.reshape(vector, shape), like.dtype)


def scaled(x: Any, factors: Vector, axis: int) -> Any:
    """Multiplies along an axis, where there is anything to multiply by."""
    return x if np.all(factors == 1) else x * along(factors, x, axis)


def _numbering(source: Vector) -> Vector:
    """How many equal entries come before each."""
    order = np.argsort(source, kind="stable")
    ordered = source[order]
    starts = np.searchsorted(ordered, ordered)
    numbers = np.empty(len(source), int)
    numbers[order] = np.arange(len(source)) - starts
    return numbers
