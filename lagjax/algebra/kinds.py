"""Kinds: what an axis meets on the way, and so what may be done to it unnoticed.

Every rule that depends on what an axis is stands here, with its kind: by what copies are
multiplied, why a map is not exact, what it asks of the large model. A new norm is one dataclass
with the methods of `Norm`, a new kind one with those of `Kind` that differ from most kinds'.

A residual stream allows any R that its norm does not notice. With x' = R x and columns of R of one
norm κ, RMSNorm gives R times what it gave, once its scale is multiplied by s = √(κ d/D) and its
epsilon by s². LayerNorm also needs (I − J) R = S (I − J), J the mean and S the copies of R. A tied
head computes Rᵀ S = κ I times the logits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import numpy as np

from lagjax.algebra.maps import AxisMap, Vector
from lagjax.algebra.uses import MEANS, Need, Uses, Why


class Kind(Protocol):
    """What an axis meets: frozen dataclasses that answer these, by default as most kinds do."""

    group: ClassVar[Literal["residual", "units", "size", "data", "experts"]] = "units"
    """Which of a pool's expansions it takes."""
    stream: ClassVar[bool] = False
    """Layers add to it, and whoever reads it sees a norm of all of it."""
    indexed: ClassVar[bool] = False
    """The data choose among its entries, so that a parameter read along it is written by them."""
    alone: ClassVar[bool] = False
    """Its entries act one by one."""

    @property
    def pre(self) -> bool:
        """Whether a layer that adds nothing to it is the identity."""
        return False

    @property
    def centred(self) -> bool:
        """Whether what reads it sees it without its mean."""
        return False

    def gain(self, grown: AxisMap, /) -> float:
        """By what the copies of a parameter that acts elementwise are multiplied."""
        return 1.0

    def root(self, grown: AxisMap, /) -> float:
        """By what readers are multiplied beside the share that they read."""
        return 1.0

    def expanded(self, expand: Callable[[int, int], AxisMap], old: int, new: int, /) -> AxisMap:
        """The map by an expansion, `expand(old, new)`, of what grows together here."""
        return expand(old, new)

    def violations(self, uses: Uses, /) -> Iterator[Why]:
        """Why growing so does not keep the function."""
        ...

    def requirements(self, uses: Uses, /) -> Iterator[Need]:
        """What the large model must do differently to keep it."""
        return iter(())

    def readings(self) -> Iterator["Kind"]:
        """What a table may have meant instead, for a certificate to try."""
        return iter(())


class Norm(Protocol):
    """A norm over an axis: frozen dataclasses that answer these, by default as one of lengths."""

    centred: ClassVar[bool] = False
    """Whether it subtracts the mean."""

    def gain(self, grown: AxisMap, /) -> float:
        """By what its scale is to be multiplied; its epsilon by the square."""
        return grown.stretch

    def lengths(self, grown: AxisMap, /) -> str | None:
        """Why it notices how often entries are copied and how scaled; None where it does not."""
        if np.allclose(grown.norms, grown.norms[0], rtol=1e-12):
            return None
        return (
            "entries are copied unequally often, which the norm notices; Isometric() scales "
            "copies for it"
        )

    def means(self, grown: AxisMap, /) -> str | None:
        """Why it notices what means are added; None where it does not."""
        ...


@dataclass(frozen=True)
class RMSNorm(Norm):
    """Division by the root mean square (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def means(self, grown: AxisMap, /) -> str | None:
        return "adding means changes what RMSNorm measures" if grown.mean.any() else None


@dataclass(frozen=True)
class LayerNorm(Norm):
    """RMSNorm of what is left when the mean is subtracted (Ba et al. 2016, arXiv 1607.06450)."""

    centred: ClassVar[bool] = True

    def means(self, grown: AxisMap, /) -> str | None:
        copied = ~grown.fresh
        totals = np.bincount(grown.source[copied], grown.scale[copied], grown.old)
        # The mean of x' must be t times that of x, whatever x is; how much R adds of it follows.
        t = (totals + grown.mean.sum() / grown.old) * grown.old / grown.new
        wanted = np.where(copied, t[0] - grown.scale, t[0])
        kept = np.allclose(t, t[0], rtol=1e-12)
        if kept and np.allclose(grown.mean, wanted, rtol=1e-12, atol=1e-12):
            return None
        return (
            "the mean that LayerNorm subtracts changes; Average(), Centred() or a whole multiple "
            "keep it"
        )


@dataclass(frozen=True)
class Residual(Kind):
    """The residual stream: its norm, before each sublayer (`pre`) or after the addition.

    A head that writes along it once more, for a tied table to read, may have an `activation`.
    """

    group = "residual"
    stream = True
    norm: Norm | None
    pre: bool = True
    activation: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.norm, str | type):
            raise ValueError(  # noqa: TRY004
                "Residual takes a norm, RMSNorm() or LayerNorm(), or None where the stream meets "
                f"none; it was given {self.norm!r}"
            )

    @property
    def centred(self) -> bool:
        return bool(self.norm and self.norm.centred)

    def gain(self, grown: AxisMap, /) -> float:
        return self.norm.gain(grown) if self.norm else 1.0

    def violations(self, uses: Uses, /) -> Iterator[Why]:
        yield from self._noticed(uses)
        if self.activation:
            yield from uses.not_whole(self.activation)
        yield from uses.factors()
        yield from uses.uncancelled()

    def _noticed(self, uses: Uses) -> Iterator[Why]:
        made = uses.map
        if self.norm and (why := self.norm.lengths(made)):
            yield None, why
            return
        if made.writes[made.fresh].any():
            yield None, "new entries of the residual stream are written, and the norm notices"
        if made.mean.any() and not self.pre:
            why = "what is read after the norm differs from the stream"
            yield None, f"{why}, which only a pre-norm net allows"
        if self.norm:
            if why := self.norm.means(made):
                yield None, why
        elif made.mean.any():
            yield None, MEANS
        if uses.tied and not np.allclose(made.norms, made.norms[0], rtol=1e-12):
            # RMSNorm and LayerNorm have noticed before; not every stream meets such a norm.
            why = "as the head it reads entries as often as they are copied, which is unequal"
            yield uses.tied, f"the table is tied: {why}"
        if uses.tied and made.mean[~made.fresh].any():
            yield (
                uses.tied,
                "the table is tied: as the head it would have to read what it does not write",
            )

    def requirements(self, uses: Uses, /) -> Iterator[Need]:
        gain, norm = self.gain(uses.map), uses.map.norms.mean()
        if not np.isclose(gain, 1, rtol=1e-12):
            yield "epsilon", gain**2
        if uses.tied and not np.isclose(norm, 1, rtol=1e-12):
            yield "logits", float(1 / norm)

    def readings(self) -> Iterator[Kind]:
        others = [norm for norm in (RMSNorm(), LayerNorm(), None) if norm != self.norm]
        return (replace(self, norm=norm) for norm in others)


@dataclass(frozen=True)
class Dot(Kind):
    """An axis contracted between queries and keys.

    Attributes:
        rope: the layout of rotated pairs, None where nothing is rotated.
        scaled: whether scores are divided by the root of its size.
    """

    group = "size"
    rope: Literal["half", "interleaved"] | None = None
    scaled: bool = True

    def root(self, grown: AxisMap, /) -> float:
        # Scores are divided by the root of a larger size, which keys make up for.
        return float(np.sqrt(grown.new / grown.old)) if self.scaled else 1.0

    def expanded(self, expand: Callable[[int, int], AxisMap], old: int, new: int, /) -> AxisMap:
        if not self.rope:
            return expand(old, new)
        return expand(old // 2, new // 2).of_pairs(self.rope == "half")

    def violations(self, uses: Uses, /) -> Iterator[Why]:
        yield from uses.unread()
        made = uses.map
        for leaf, role in uses.roles:
            if role in ("", "+", "*"):
                yield (
                    leaf,
                    "acts elementwise between the projection and the product; no rule is known",
                )
        if made.mean.any():
            yield None, MEANS
        if self.rope:
            first, second = self._pairs(made)
            scales = made.scale.reshape((2, -1) if self.rope == "half" else (-1, 2))
            one, other = scales if self.rope == "half" else scales.T
            if not np.array_equal(first, second) or not (one == other).all():
                yield None, "the two halves of a rotated pair grow differently"
        yield from uses.uncancelled()

    def requirements(self, uses: Uses, /) -> Iterator[Need]:
        if self.rope and not uses.map.identity:
            yield "frequencies", tuple(self._pairs(uses.map)[0].tolist())

    def readings(self) -> Iterator[Kind]:
        for rope in ("half", "interleaved", None):
            for scaled in (True, False):
                if (rope, scaled) != (self.rope, self.scaled):
                    yield Dot(rope, scaled)

    def _pairs(self, grown: AxisMap) -> tuple[Vector, Vector]:
        """For each new pair the old one, as its first and its second half tell it; −1 if new."""
        if self.rope == "half":
            first, second = grown.source.reshape(2, -1)
            return first, np.where(second < 0, -1, second - grown.old // 2)
        first, second = grown.source.reshape(-1, 2).T
        return np.where(first < 0, -1, first // 2), np.where(second < 0, -1, (second - 1) // 2)


@dataclass(frozen=True)
class Units(Kind):
    """Hidden units: their activation, gelu say, and whether each is one factor of a product."""

    ZERO_AT_ZERO: ClassVar[frozenset[str]] = frozenset(
        ("gelu", "relu", "silu", "swish", "tanh", "gelu_new", "gelu_pytorch_tanh")
    )
    """Activations that map 0 to 0, so that a unit that nothing writes stays 0."""

    alone = True
    activation: str
    gated: bool = False

    def violations(self, uses: Uses, /) -> Iterator[Why]:
        yield from uses.unread()
        yield from uses.acting()
        yield from uses.not_whole(self.activation)
        if uses.silent.any() and self.activation not in self.ZERO_AT_ZERO:
            yield None, f"new entries are 0, and {self.activation} of 0 is not known to be 0"
        yield from uses.uncancelled()


@dataclass(frozen=True)
class Heads(Kind):
    """Heads of attention, or groups of heads."""

    alone = True

    def violations(self, uses: Uses, /) -> Iterator[Why]:
        yield from uses.unread()
        yield from uses.acting()
        yield from uses.not_whole("attention")
        if uses.silent.any():
            for leaf in self._shared(uses):
                why = "new heads attend to values that they share with others and that are not 0"
                yield leaf, f"{why}; RandomIn() leaves them unread"
        yield from uses.uncancelled()

    def _shared(self, uses: Uses) -> list[str]:
        """What writes their values without having the axis: queries of a group share theirs."""
        values = {
            name
            for part in uses.parts
            if (uses.axis, "<") in part.axes
            for name, role in part.axes
            if role == "<" and name not in uses.alike
        }
        return [
            part.leaf
            for part in uses.parts
            if any((name, ">") in part.axes for name in values)
            and uses.axis not in {name for name, _ in part.axes}
        ]


@dataclass(frozen=True)
class Channels(Kind):
    """Entries that nothing acts on between what writes and what reads them: a value's channels."""

    group = "size"
    alone = True

    def violations(self, uses: Uses, /) -> Iterator[Why]:
        yield from uses.unread()
        yield from uses.acting()
        yield from uses.uncancelled()


@dataclass(frozen=True)
class Lookup(Kind):
    """An axis that the data index: tokens, positions, buckets."""

    group = "data"
    indexed = True

    def violations(self, uses: Uses, /) -> Iterator[Why]:
        made = uses.map
        kept = np.array_equal(made.source[: made.old], np.arange(made.old))
        if not kept or (made.scale[: made.old] != 1).any():
            yield uses.first(), "old entries must keep their places and values"
        for leaf, role in uses.roles:
            if role in ("=", ">") and made.new > made.old:
                yield leaf, "new outputs take part of the softmax's mass"

    def requirements(self, uses: Uses, /) -> Iterator[Need]:
        if uses.map.new > uses.map.old and not uses.first("=", ">"):
            yield "inputs", uses.map.old


@dataclass(frozen=True)
class Experts(Kind):
    """Experts, of which each token takes the `top` by its router, with weights that sum to 1."""

    group = "experts"
    top: int = 1

    def violations(self, uses: Uses, /) -> Iterator[Why]:
        made = uses.map
        uneven = len(set(made.counts)) > 1 and not made.rivals
        if made.fresh.any() or uneven:
            yield None, "every expert must have equally many copies, and none can be new"
        if made.rivals and self.top > 1:
            yield None, f"copies of one take others' place among a token's {self.top} experts"
        if (made.scale[~made.fresh] != 1).any() or made.mean.any():
            yield None, "copies are scaled, which the softmax over the router's logits notices"

    def requirements(self, uses: Uses, /) -> Iterator[Need]:
        times = uses.map.new / uses.map.old
        if not uses.made and not uses.map.rivals and times != 1:
            yield "top", times


@dataclass(frozen=True)
class LayerTypes(Kind):
    """The kind of a stack whose layers are of several types in turn, as local and global attention.

    Layers are only ever taken for others of their type.
    """

    types: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.types, str) or not self.types:
            raise ValueError(
                f"LayerTypes takes the types of layers in their order, as ('local', 'global'); it "
                f"was given {self.types!r}"
            )
        object.__setattr__(self, "types", tuple(self.types))

    def violations(self, uses: Uses, /) -> Iterator[Why]:
        yield None, "is a stack of layers, and no axis of a parameter"


@dataclass(frozen=True)
class Unknown(Kind):
    """The kind of an axis of which the table says none: nothing is exact."""

    def violations(self, uses: Uses, /) -> Iterator[Why]:
        yield (
            uses.first(),
            f"its kind is not known; say it in the table: kinds={{{uses.axis!r}: ...}}",
        )
        yield from uses.uncancelled()
