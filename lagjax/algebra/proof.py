"""Proofs: whether a plan keeps the function, from tables and plan alone, and what else it takes.

What holds of layers stands here, what holds of an axis with its kind, in `kinds`.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from lagjax.algebra.layout import Layout, Leaf, rescaled
from lagjax.algebra.maps import AxisMap
from lagjax.algebra.pieces import pieces_of
from lagjax.algebra.uses import Part, Uses
from lagjax.algebra.words import Word


class Violation(NamedTuple):
    """Why a plan does not keep the function: axis or stack, the parameter to blame, the reason."""

    axis: str
    leaf: str | None
    why: str
    small: bool = False
    """Whether the function changes by noise of a chosen size only."""

    def __str__(self) -> str:
        return f"{self.axis!r}{f' in {self.leaf}' if self.leaf else ''}: {self.why}"


class Requirement(NamedTuple):
    """What the large model must do differently for a plan to be exact.

    Attributes:
        what: `epsilon` of the norms or `logits`, to be multiplied by the value; `top`, the number
            of experts a token takes, likewise; `frequencies` of rotary positions, the value says
            for each new pair which old pair's frequency it has, or −1 for any; `inputs`: what is
            preserved holds for inputs that use the old entries only.
        axis: the axis that asks for it.
        value: the factor, the pairs, or the number of old entries.
    """

    what: Literal["epsilon", "logits", "top", "frequencies", "inputs"]
    axis: str
    value: float | tuple[int, ...]

    def __str__(self) -> str:
        value = f"{self.value:g}" if isinstance(self.value, int | float) else "of old pairs"
        sign = "of the first" if self.what == "inputs" else "×"
        return f"{self.what} {sign} {value} ({self.axis})"


def violations(
    source: Layout, target: Layout, words: Mapping[str, Word], maps: Mapping[str, AxisMap]
) -> tuple[Violation, ...]:
    """Why such a plan does not keep the function; none where it does, the requirements met."""
    found = [*_layers(source, target, words), *_tied(source, target)]
    for uses in _uses(source, target, maps):
        found += _axis(uses, target)
    # Unrolled layers say the same.
    return tuple(dict.fromkeys(found))


def requirements(
    source: Layout, target: Layout, maps: Mapping[str, AxisMap]
) -> tuple[Requirement, ...]:
    """What the large model must do differently: an epsilon, another scale of the logits."""
    return tuple(
        Requirement(what, uses.axis, value)
        for uses in _uses(source, target, maps)
        for what, value in target.kind(uses.axis).requirements(uses)
    )


def _uses(source: Layout, target: Layout, maps: Mapping[str, AxisMap]) -> Iterator[Uses]:
    """Every growing axis as its kind sees it."""
    parts = tuple(
        Part(leaf.name, piece.axes, leaf.residual)
        for leaf in target.leaves
        for piece in pieces_of(leaf.dims)
    )
    for axis, grown in maps.items():
        kind = target.kind(axis)
        alike = frozenset(other for other in target.kinds if target.kind(other) == kind)
        yield Uses(axis, grown, parts, alike, axis not in source.sizes)


def _layers(source: Layout, target: Layout, words: Mapping[str, Word]) -> Iterator[Violation]:
    """A layer that is no original in its place must add zero to a stream that is pre-norm.

    A row that writes this axis without the mark `+` may be an output that was forgotten, and keeps
    its values: nothing is claimed then.
    """
    for stack, word in words.items():
        kept = [layer for layer in word.layers if layer.scale != 0]
        originals = list(range(source.stacks[stack]))
        if [(layer.source, layer.scale) for layer in kept] != [(index, 1.0) for index in originals]:
            yield Violation(stack, None, f"the word '{word}' adds layers that do something")
        elif len(kept) < len(word.layers):
            for leaf in target.leaves:
                if stack in leaf.stacks:
                    yield from _added(target, stack, leaf)


def _added(target: Layout, stack: str, leaf: Leaf) -> Iterator[Violation]:
    for dim in leaf.dims:
        streams = [kind for axis in dim.names if (kind := target.kind(axis)).stream]
        if dim.residual and not any(kind.pre for kind in streams):
            yield Violation(
                stack,
                leaf.name,
                "a layer that adds nothing is the identity in a pre-norm net only; say it by "
                "kinds: Residual(..., pre=True)",
            )
        if dim.role == ">" and streams and not dim.residual and not dim.multiplied:
            yield Violation(
                stack, leaf.name, f"writes {dim} without the mark '+', and would not be zeroed"
            )


def _tied(source: Layout, target: Layout) -> Iterator[Violation]:
    """What is divided by a size as an embedding is not so as the head."""
    olds = {leaf.name: leaf for leaf in source.leaves}
    for leaf in target.leaves:
        tied = next((dim for dim in leaf.dims if dim.role == "="), None)
        if tied is None or leaf.name not in olds:
            continue
        if rescaled(olds[leaf.name], leaf, source, target, {}):
            why = "the table is tied, and as the head it is not divided by what grows"
            yield Violation(tied.names[0], leaf.name, why)


def _axis(uses: Uses, target: Layout) -> Iterator[Violation]:
    grown, kind = uses.map, target.kind(uses.axis)
    if grown.ahead.any():
        yield Violation(uses.axis, None, "copies come from the next layer")
    if grown.jitter:
        why = f"copies have noise of {grown.jitter:g} of the parameters' size"
        yield Violation(uses.axis, None, why, small=True)
    copied = ~grown.fresh
    if uses.axis in target.batch_normed and (grown.scale[copied] != 1).any():
        why = "a batch norm divides by what its copies are multiplied by: they must be whole"
        yield Violation(uses.axis, None, why)
    shares = np.bincount(grown.source[copied], grown.share[copied], grown.old)
    reader = uses.first("<")
    if reader and not kind.indexed and not np.allclose(shares, 1, rtol=1e-12):
        why = "the shares in which copies are read do not sum to 1"
        yield Violation(uses.axis, reader, why)
    for leaf, why in kind.violations(uses):
        yield Violation(uses.axis, leaf, why)
