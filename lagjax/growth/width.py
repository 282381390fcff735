"""Width growth: every expansion of the literature as a map that says, for each new entry of an
axis, where it comes from.

An expansion is a frozen dataclass with one method, `map(old, new)`; `Grow(width=...)` makes a
growth operator of it. Add one by writing the dataclass and a row in `pools.py`. How copies are told
apart (`Split`) is a choice of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from lagjax.algebra.kinds import Kind
from lagjax.algebra.layout import Layout
from lagjax.algebra.maps import AxisMap, Vector


class Expansion(Protocol):
    """Says for an axis of `old` entries that grows to `new` where each entry comes from."""

    def map(self, old: int, new: int, /) -> AxisMap: ...


@dataclass(frozen=True)
class ByKind:
    """An expansion for each kind of axis, whatever a codebase calls its axes: what pools are made
    of.

    Attributes:
        residual: for the residual stream.
        units: for axes whose entries act alone, hidden units and heads.
        size: for the size of a head, of queries and keys and of values.
        layer: for the residual stream under LayerNorm, where it needs another.
    """

    residual: Expansion
    units: Expansion
    size: Expansion
    layer: Expansion | None = None

    def expansion(self, kind: Kind) -> Expansion:
        """The expansion for an axis of a kind; one that the data index is extended, experts are
        duplicated.
        """
        expansions: dict[str, Expansion] = {
            "residual": self.layer if self.layer and kind.centred else self.residual,
            "units": self.units,
            "size": self.size,
            "data": Extend(),
            "experts": Tile(),
        }
        return expansions[kind.group]


WidthLike: TypeAlias = (
    Expansion | ByKind | Mapping[str, Expansion] | tuple[tuple[str, Expansion], ...]
)
"""An expansion, one for each kind of axis, or axis → expansion; a tuple of pairs is such a mapping
that can be hashed.
"""


def maps(how: WidthLike | None, source: Layout, target: Layout) -> dict[str, AxisMap]:
    """The map of every axis that differs in size, or of those named; None grows none.

    Raises ValueError for an axis that shrinks, that the target lacks, or that an expansion cannot
    bring to its size.
    """
    if how is None:
        return {}
    grown = grown_axes(source, target)
    for axis in grown:
        if target.sizes[axis] < source.sizes[axis]:
            raise ValueError(
                f"axis {axis!r} has size {source.sizes[axis]} in the source and "
                f"{target.sizes[axis]} in the target's {target.having(axis)[0]}; growth adds "
                "entries: give a target that is smaller on no axis"
            )
    if isinstance(how, ByKind):
        named = {axis: how.expansion(target.kind(axis)) for axis in grown}
    elif isinstance(how, Mapping | tuple):
        named = dict(how)
    else:
        named = dict.fromkeys(grown, how)
    if unknown := named.keys() - dict(target.sizes).keys():
        raise ValueError(
            f"expansions are given for the axes {sorted(unknown)}, which the target's table does "
            f"not have or whose sizes cannot be told from shapes; it has {sorted(target.sizes)}"
        )
    return {
        axis: _map(each, axis, source, target)
        for axis, each in named.items()
        if axis in source.sizes
    }


def grown_axes(source: Layout, target: Layout) -> list[str]:
    """The axes of both that differ in size."""
    return [axis for axis, size in target.sizes.items() if source.sizes.get(axis, size) != size]


def _map(expansion: Expansion, axis: str, source: Layout, target: Layout) -> AxisMap:
    """The map of one axis, as its kind has it: rotated pairs grow as pairs."""
    try:
        kind = target.kind(axis)
        return kind.expanded(expansion.map, source.sizes[axis], target.sizes[axis])
    except ValueError as error:
        raise ValueError(f"axis {axis!r} of {target.having(axis)[0]}: {error}") from None


class Split(Protocol):
    """How copies of one entry, read alike, are told apart: the null space of a reader."""

    @property
    def noise(self) -> float: ...

    def shares(self, copy: Vector, counts: Vector) -> Vector: ...


@dataclass(frozen=True)
class EvenSplit:
    """Every copy is read alike; nothing but dropout ever tells them apart."""

    noise: float = 0.0

    def shares(self, copy: Vector, counts: Vector) -> Vector:
        return 1 / counts


@dataclass(frozen=True)
class NoisySplit:
    """Each parameter is split its own way: even shares and noise of `noise` times their size that
    cancels (HyperCloning's, Samragh et al. 2024, arXiv 2409.12903; LEMON's, Wang et al. 2023, arXiv
    2310.07999).
    """

    noise: float = 0.1

    def shares(self, copy: Vector, counts: Vector) -> Vector:
        return 1 / counts


@dataclass(frozen=True)
class ScalarSplit:
    """The first copy is read for `first`, the others for the rest in even parts; of another sign
    where `first` is below 0 or above 1.

    Adam does not see shares of one sign at its first step, since its updates are free of scale.
    """

    first: float = 0.3
    noise: float = 0.0

    def shares(self, copy: Vector, counts: Vector) -> Vector:
        rest = (1 - self.first) / np.maximum(counts - 1, 1)
        return np.where(counts == 1, 1.0, np.where(copy == 0, self.first, rest))


def _copies(old: int, source: Vector, split: Split, **more: object) -> AxisMap:
    plain = AxisMap(old, source)
    share = split.shares(plain.copy, plain.counts) * (~plain.fresh)
    return AxisMap(old, source, share=share, noise=split.noise, **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Tile:
    """The whole axis repeated, `0 1 2 0 1 2` (HyperCloning, Samragh et al. 2024, arXiv 2409.12903);
    a whole multiple only.

    Exact on every axis, under any norm and before or after it.
    """

    split: Split = EvenSplit()

    def map(self, old: int, new: int, /) -> AxisMap:
        return _copies(old, _multiple(self, old, new), self.split)


@dataclass(frozen=True)
class BlockDiagonal:
    """The model beside itself, `0 1 2 0 1 2` with no connections between the copies (staged
    training, Shen et al. 2022, arXiv 2203.06211).
    """

    def map(self, old: int, new: int, /) -> AxisMap:
        return _copies(old, _multiple(self, old, new), EvenSplit(), diagonal=True)


@dataclass(frozen=True)
class Net2Net:
    """The old entries, then copies of entries drawn from `seed`, `0 1 2 1 0 1` (Chen et al. 2015,
    arXiv 1511.05641; FPI of bert2BERT, Chen et al. 2021, arXiv 2110.07143).

    Exact on axes whose entries act alone (mlp, heads); a norm notices uneven copies.
    """

    seed: int = 0
    split: Split = EvenSplit()

    def map(self, old: int, new: int, /) -> AxisMap:
        return _copies(old, _drawn(self.seed, old, new), self.split)


@dataclass(frozen=True)
class Isometric:
    """Each entry spread over its copies, each scaled by 1/√copies, so that lengths stay; any size,
    exact under RMSNorm, tied or not.
    """

    split: Split = EvenSplit()

    def map(self, old: int, new: int, /) -> AxisMap:
        counts = AxisMap(old, source := np.arange(new) % old).counts
        return _copies(old, source, self.split, scale=1 / np.sqrt(counts))


@dataclass(frozen=True)
class ZeroPad:
    """New entries that nothing writes, `0 1 2 . . .`, and that are read by fresh parameters
    (Gesmundo and Maile 2023, arXiv 2308.06103).

    Exact under RMSNorm, on the axis between queries and keys, and where 0 stays 0. Dead where a
    gate and what it lets through are both 0: there `RandomIn` lives.
    """

    def map(self, old: int, new: int, /) -> AxisMap:
        return AxisMap(old, _padded(old, new))


@dataclass(frozen=True)
class RandomIn:
    """New entries that fresh parameters write and nothing reads, `0 1 2 . . .` (G_zero, Du et al.
    2024, arXiv 2405.15319).
    """

    def map(self, old: int, new: int, /) -> AxisMap:
        return AxisMap(old, _padded(old, new), writes=np.ones(new), reads=np.zeros(new))


@dataclass(frozen=True)
class Paired:
    """New entries in pairs that hold the same, (V, V), and are read with opposite signs, (Z, −Z):
    all parts learn from the first step.
    """

    def map(self, old: int, new: int, /) -> AxisMap:
        source = _padded(old, new)
        first = old + (np.arange(new) - old) // 2 * 2
        twin = np.where(source < 0, first, np.arange(new))
        # One that is left over is not read.
        sign = np.where(twin == np.arange(new), 1.0, -1.0)
        if (new - old) % 2:
            sign[-1] = 0.0
        return AxisMap(old, source, writes=np.ones(new), reads=sign, twin=twin)


@dataclass(frozen=True)
class Centred:
    """The stream without its mean, then `ZeroPad`; exact under LayerNorm before each sublayer at
    any size, where the head is not tied.
    """

    def map(self, old: int, new: int, /) -> AxisMap:
        source = _padded(old, new)
        return AxisMap(old, source, mean=np.where(source < 0, 0.0, -1.0))


@dataclass(frozen=True)
class Average:
    """Whole copies, and the mean of all entries in the rest (LEMON, Wang et al. 2023, arXiv
    2310.07999); LayerNorm at any size.
    """

    split: Split = EvenSplit()

    def map(self, old: int, new: int, /) -> AxisMap:
        whole = new // old * old
        source = np.where(np.arange(new) < whole, np.arange(new) % old, -1)
        return _copies(old, source, self.split, mean=(source < 0).astype(float))


@dataclass(frozen=True)
class Aki:
    """Net2Net whose new entries take what writes them from the next layer (AKI of bert2BERT, Chen
    et al. 2021, arXiv 2110.07143).
    """

    seed: int = 0

    def map(self, old: int, new: int, /) -> AxisMap:
        return _copies(old, _drawn(self.seed, old, new), EvenSplit(), ahead=np.arange(new) >= old)


@dataclass(frozen=True)
class RandomPad:
    """New entries that are written and read by fresh parameters; a control."""

    def map(self, old: int, new: int, /) -> AxisMap:
        return AxisMap(old, _padded(old, new), writes=np.ones(new))


@dataclass(frozen=True)
class Noisy:
    """Another expansion with noise on every copy but the first, `size` times the parameters'
    own.
    """

    expansion: Expansion = Tile()
    size: float = 0.01

    def map(self, old: int, new: int, /) -> AxisMap:
        grown = self.expansion.map(old, new)
        object.__setattr__(grown, "jitter", self.size)
        return grown


@dataclass(frozen=True)
class Extend:
    """New entries of an axis that the data index (tokens, positions): the target's own, or the
    `mean` of the old ones.
    """

    mean: bool = False

    def map(self, old: int, new: int, /) -> AxisMap:
        source = _padded(old, new)
        new_entry = (source < 0).astype(float)
        if self.mean:
            return AxisMap(old, source, mean=new_entry)
        return AxisMap(old, source, writes=np.ones(new))


def _multiple(expansion: Expansion, old: int, new: int) -> Vector:
    if new % old:
        raise ValueError(
            f"{expansion} repeats the axis whole, and {new} is no multiple of {old}; give a "
            "multiple, or another expansion (Isometric, Average, ZeroPad)"
        )
    return np.arange(new) % old


def _drawn(seed: int, old: int, new: int) -> Vector:
    extra = np.random.default_rng(seed).integers(old, size=new - old)
    return np.concatenate([np.arange(old), extra])


def _padded(old: int, new: int) -> Vector:
    return np.where(np.arange(new) < old, np.arange(new), -1)
