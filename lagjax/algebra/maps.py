"""Maps: how one axis of the small model becomes one of the large, as data.

Activations along the axis become x' = R x, where each row of R copies one old entry or, in part,
the mean of all. A parameter that writes along the axis becomes R W. One that reads along it becomes
any W' with W' R = W: here W L + N (I − R L), where L gives each copy a share of what is read and N
is the whole freedom there is. A map knows neither what an axis meets (`kinds`) nor what a parameter
does along it (`pieces`).
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector: TypeAlias = NDArray[Any]
"""An entry for each index of an axis."""
_UNSET: Any = None


@dataclass(frozen=True, eq=False)
class AxisMap:
    """One axis, from `old` entries to `len(source)`.

    A new entry copies an old one (`source` ≥ 0), or is new (−1). New entries come from the target's
    initialisation, as far as `writes` and `reads` say: unwritten ones (`writes` 0) hold 0, unread
    ones (`reads` 0) may hold anything.

    Attributes:
        old: size of the axis in the small model.
        source: `[new]` the old entry that each new one copies, or −1.
        scale: `[new]` the factor of a copy, R[i, source[i]].
        mean: `[new]` how much of the mean of all old entries is added, R[i, :] += mean[i] / old.
        share: `[new]` of what is read of an old entry, the part that this copy is read for; shares
            of one source sum to 1.
        writes: `[new]` the factor of the fresh values that writers have at a new entry.
        reads: `[new]` the factor of the fresh values that readers have at a new entry.
        twin: `[new]` the entry whose fresh values a new one takes; itself unless said.
        noise: of N, relative to the root mean square of the parameter.
        jitter: of noise on every copy but the first, in the same unit; never exact.
        diagonal: each copy reads of the copies with its own number only (block diagonal).
        ahead: `[new]` copies that writers take from the next layer (AKI); never exact.
        rivals: of entries that are chosen among, as experts are, as many are taken as before, so
            that copies of one stand in for each other.

    Raises ValueError, when made, where an old entry is copied nowhere, or one that does not exist.
    """

    old: int
    source: Vector
    scale: Vector = _UNSET
    mean: Vector = _UNSET
    share: Vector = _UNSET
    writes: Vector = _UNSET
    reads: Vector = _UNSET
    twin: Vector = _UNSET
    noise: float = 0.0
    jitter: float = 0.0
    diagonal: bool = False
    ahead: Vector = _UNSET
    rivals: bool = False
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
                f"a map of an axis with {self.old} entries copies "
                f"{sorted(set(source[copied].tolist()))}; every entry must be copied at least "
                "once, and no other can be"
            )
        counts = np.where(copied, times[np.maximum(source, 0)], 1)
        defaults = {
            "scale": copied.astype(float),
            "mean": np.zeros(new),
            "share": np.where(copied, 1 / counts, 0.0),
            "writes": np.zeros(new),
            "reads": np.ones(new),
            "twin": np.arange(new),
            "ahead": np.zeros(new, bool),
        }
        made = {"source": source, "counts": counts, "copy": _numbering(source)}
        made |= {name: value for name, value in defaults.items() if getattr(self, name) is None}
        for name, value in made.items():
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
    def even(self) -> Vector:
        """`[new]` the share of each copy where all of one entry have equal ones; 0 if new."""
        return np.where(self.fresh, 0.0, 1 / self.counts)

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
        """The root mean square of x' over that of x, where columns of R are of one norm."""
        return float(np.sqrt(self.norms.mean() * self.old / self.new))

    def of_pairs(self, half: bool) -> "AxisMap":
        """The map of an axis of rotated pairs, of which this is the map of the pairs.

        The second entries of all pairs come after the first (`half`), or each after its own.
        """
        which = np.arange(self.new)
        pair = np.tile(which, 2) if half else np.repeat(which, 2)
        second = np.repeat([0, 1], self.new) if half else np.tile([0, 1], self.new)

        def places(vector: Vector, size: int) -> Vector:
            at = vector[pair] + size * second if half else 2 * vector[pair] + second
            return np.where(vector[pair] < 0, -1, at)

        rest = ("scale", "mean", "share", "writes", "reads", "ahead")
        return dataclasses.replace(
            self,
            old=2 * self.old,
            source=places(self.source, self.old),
            twin=places(self.twin, self.new),
            **{name: getattr(self, name)[pair] for name in rest},
        )


def column(vector: ArrayLike, dimensions: int, at: int) -> Vector:
    """A vector as an array of so many dimensions, along the one at `at`."""
    shape = [1] * dimensions
    shape[at] = -1
    return np.reshape(vector, shape)


def divided(a: ArrayLike, b: Vector) -> Vector:
    """a / b, and 0 where b is 0."""
    return np.where(b == 0, 0.0, np.asarray(a) / np.where(b == 0, 1.0, b))


def _numbering(source: Vector) -> Vector:
    """How many equal entries come before each."""
    order = np.argsort(source, kind="stable")
    ordered = source[order]
    starts = np.searchsorted(ordered, ordered)
    numbers = np.empty(len(source), int)
    numbers[order] = np.arange(len(source)) - starts
    return numbers
