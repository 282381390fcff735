"""Depth growth: every strategy of the literature as a word that says, for each new layer, where it
comes from.

A strategy is a frozen dataclass with one method, `word(old, new)`; `Grow(depth=...)` makes a growth
operator of it. Add one by writing the dataclass and a row in `pools.py`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from lagjax.algebra.layout import Layout
from lagjax.algebra.words import Layer, Word


class Strategy(Protocol):
    """Says for a stack of `old` layers that becomes one of `new` where each layer comes from."""

    def word(self, old: int, new: int, /) -> Word: ...


DepthLike: TypeAlias = (
    Strategy | str | Mapping[str, Strategy | str] | tuple[tuple[str, Strategy | str], ...]
)
"""A strategy, a word as text, or stack → either; a tuple of pairs is such a mapping that can be
hashed.
"""


def words(how: DepthLike | None, source: Layout, target: Layout) -> dict[str, Word]:
    """The word of every stack.

    A strategy applies to each stack, and within it to the layers of each kind (a local and a global
    attention layer in turn, say), so that a layer is only ever taken for one of its own kind. None
    adds no layers. To a stack of no layers a strategy adds what it adds to one layer, which must be
    fresh.

    Raises ValueError for a stack that shrinks, that the strategies do not name, that they copy from
    where it has no layers, or that grows where there are none.
    """
    _check_stacks(source, target)
    if how is None:
        return _unchanged(source, target)
    if not source.stacks:
        raise ValueError(
            "the tables mark no stack of layers; mark them by '#layers' or a capture "
            "'(?P<layers>\\d+)' in the path"
        )
    if isinstance(how, Mapping | tuple):
        named = dict(how)
    else:
        named = dict.fromkeys(source.stacks, how)
    if named.keys() != dict(source.stacks).keys():
        raise ValueError(
            f"strategies are given for {sorted(named)}, the stacks are {sorted(source.stacks)}"
        )
    return {stack: _word(each, stack, source, target) for stack, each in named.items()}


def _check_stacks(source: Layout, target: Layout) -> None:
    """Raises ValueError where the two tables do not mark the same stacks."""
    if dict(source.stacks).keys() != dict(target.stacks).keys():
        raise ValueError(
            f"the source's stacks of layers are {sorted(source.stacks)}, the target's "
            f"{sorted(target.stacks)}; mark the same ones in both tables, by '#layers' or a "
            "capture '(?P<layers>\\d+)' in the path"
        )


def _unchanged(source: Layout, target: Layout) -> dict[str, Word]:
    for stack, layers in source.stacks.items():
        if target.stacks[stack] != layers:
            raise ValueError(
                f"the target's stack {stack!r} has {target.stacks[stack]} layers, the source's "
                f"{layers}; this operator adds none: give a target of equal depth, or say how, as "
                "in Grow(depth=Stack())"
            )
    return {stack: _copies(list(range(layers))) for stack, layers in source.stacks.items()}


def _word(how: Strategy | str, stack: str, source: Layout, target: Layout) -> Word:
    old, new = source.stacks[stack], target.stacks[stack]
    if new < old:
        raise ValueError(
            f"the target's stack {stack!r} has {new} layers, fewer than the source's {old}; "
            "growth adds layers"
        )
    if isinstance(how, str):
        return Word.parse(how)
    old_kinds, new_kinds = source.layer_kinds(stack), target.layer_kinds(stack)
    layers: dict[int, Layer] = {}
    for kind in dict.fromkeys([*new_kinds, *old_kinds]):
        here = [index for index, other in enumerate(old_kinds) if other == kind]
        there = [index for index, other in enumerate(new_kinds) if other == kind]
        if not old_kinds:
            for index, layer in zip(there, _from_none(how, stack, len(there)), strict=True):
                layers[index] = layer
            continue
        if not here or len(there) < len(here):
            raise ValueError(
                f"the target's stack {stack!r} has {len(there)} layers with the parameters "
                f"{', '.join(sorted(name for name, _ in kind))}, the source {len(here)}; growth "
                "needs at least one to copy and drops none"
            )
        for index, layer in zip(there, how.word(len(here), len(there)).layers, strict=True):
            layers[index] = (
                layer if layer.source is None else layer._replace(source=here[layer.source])
            )
    return Word(tuple(layers[index] for index in range(new)))


def _from_none(how: Strategy, stack: str, new: int) -> list[Layer]:
    """The layers of a strategy where there are none to copy."""
    # Strategies divide by the number of layers; what they add to one layer is told by its word.
    word = how.word(1, new + 1)
    layers = [layer for layer, added in zip(word.layers, word.added) if added]
    if any(layer.source is not None for layer in layers):
        raise ValueError(
            f"{how} copies layers, and the source's stack {stack!r} has none; add fresh ones, by "
            "Fresh() or Fresh(zero=True)"
        )
    return layers


def _copies(indices: list[int]) -> Word:
    return Word(tuple(Layer(index) for index in indices))


def _inserted(old: int, at: int, layers: list[Layer]) -> Word:
    """The old layers in their order with others put in before layer `at`."""
    kept = [Layer(index) for index in range(old)]
    return Word((*kept[:at], *layers, *kept[at:]))


def _added(word: Word, change: Callable[[Layer], Layer]) -> Word:
    """Changes the added layers: the fresh ones, and the copies but the first of each source
    layer.
    """
    seen: set[int | None] = {None}
    layers = []
    for layer in word.layers:
        layers.append(change(layer) if layer.source in seen else layer)
        seen.add(layer.source)
    return Word(tuple(layers))


def _cycle(start: int, size: int, count: int) -> list[Layer]:
    return [Layer(start + index % size) for index in range(count)]


@dataclass(frozen=True)
class Stack:
    """The whole net on top of itself, `0 1 2 0 1 2` (Gong et al. 2019; G_stack, Du et al. 2024,
    arXiv 2405.15319).
    """

    def word(self, old: int, new: int, /) -> Word:
        return _copies([index % old for index in range(new)])


@dataclass(frozen=True)
class Interleave:
    """Each layer repeated in its place, `0 0 1 1 2 2`."""

    def word(self, old: int, new: int, /) -> Word:
        return _copies([index * old // new for index in range(new)])


@dataclass(frozen=True)
class Last:
    """The last `size` layers copied on top, `0 1 2 2 2 2` (gradual stacking, Reddi et al. 2023)."""

    size: int = 1

    def word(self, old: int, new: int, /) -> Word:
        return Block(old - self.size, self.size).word(old, new)


@dataclass(frozen=True)
class Block:
    """The block of `size` layers from `start` copied after itself until it fits, `0 1 1 1 2`."""

    start: int
    size: int = 1

    def word(self, old: int, new: int, /) -> Word:
        if new == old:
            return _copies(list(range(old)))
        end = self.start + self.size
        if self.start < 0 or self.size < 1 or end > old:
            raise ValueError(
                f"{self}: the source has layers 0 to {old - 1}; give a block that lies within them"
            )
        return _inserted(old, end, _cycle(self.start, self.size, new - old))


@dataclass(frozen=True)
class Midas:
    """The middle block copied after itself (MIDAS, Saunshi et al. 2024, arXiv 2409.19044).

    The depth is cut into n blocks of `size` layers, and block ⌈n/2⌉, counted from 1, is taken.
    Without a size, the largest that divides both the source's depth and the layers added.
    """

    size: int | None = None

    def word(self, old: int, new: int, /) -> Word:
        size = self.size or math.gcd(old, new - old)
        if old % size:
            raise ValueError(
                f"{self}: {old} layers cannot be cut into blocks of {size}; give a size that "
                "divides them"
            )
        return Block((math.ceil(old // size / 2) - 1) * size, size).word(old, new)


@dataclass(frozen=True)
class Lidas:
    """The layers around the exact middle copied into it (LIDAS, Kapl et al. 2025, arXiv
    2512.08819).

    Between the middle blocks B' and B'' come the last half of B' and the first half of B''; as many
    layers as are added, at most the whole net, which is then repeated.
    """

    def word(self, old: int, new: int, /) -> Word:
        size = min(old, new - old)
        start = min(max(old // 2 - size // 2, 0), old - size)
        return _inserted(old, old // 2, _cycle(start, size, new - old) if size else [])


@dataclass(frozen=True)
class Overlap:
    """Copies of the net that overlap, `0 1 2 1 2 3` (SOLAR's depth up-scaling, Kim et al. 2023,
    arXiv 2312.15166).

    As few pieces as reach the target's depth, the first from the bottom, the last to the top,
    evenly spaced.
    """

    def word(self, old: int, new: int, /) -> Word:
        pieces = math.ceil(new / old)
        indices: list[int] = []
        for piece in range(pieces):
            size = new * (piece + 1) // pieces - new * piece // pieces
            start = round(piece * (old - size) / max(pieces - 1, 1))
            indices += range(start, start + size)
        return _copies(indices)


@dataclass(frozen=True)
class Fresh:
    """New layers from the target's initialisation, or `zero`: with zeroed outputs, so that a
    pre-norm net keeps its function.

    At the `top`, the `bottom`, in the `middle`, or `between` the old layers, `0 new 1 new 2 new`.
    """

    where: str = "top"
    zero: bool = False

    def word(self, old: int, new: int, /) -> Word:
        layer = Layer(None, 0.0 if self.zero else 1.0)
        places = {"top": old, "bottom": 0, "middle": old // 2}
        if self.where in places:
            return _inserted(old, places[self.where], [layer] * (new - old))
        if self.where != "between":
            raise ValueError(
                f"{self}: where is {self.where!r}; expected one of {[*places, 'between']}"
            )
        return _added(Interleave().word(old, new), lambda copy: layer)


@dataclass(frozen=True)
class Scaled:
    """Another strategy with the residual outputs of its added copies scaled: `0 0*0.5 1 1*0.5`;
    by 0, exact in a pre-norm net.

    The first occurrence of a layer is the original, the others are added copies. Scaling by 0 is
    LLaMA-Pro's expansion (Wu et al. 2024, arXiv 2401.02415); a factor in between is momentum in the
    view of stacking as accelerated descent (Agarwal et al. 2024, arXiv 2403.04978).
    """

    strategy: Strategy
    scale: float = 0.0

    def word(self, old: int, new: int, /) -> Word:
        return _added(
            self.strategy.word(old, new),
            lambda copy: copy._replace(scale=copy.scale * self.scale),
        )


@dataclass(frozen=True)
class Reversed:
    """A control: the stacked layers from top to bottom, `2 1 0 2 1 0`."""

    def word(self, old: int, new: int, /) -> Word:
        return Word(Stack().word(old, new).layers[::-1])


@dataclass(frozen=True)
class Shuffled:
    """A control: the stacked layers in random order, drawn from `seed`."""

    seed: int = 0

    def word(self, old: int, new: int, /) -> Word:
        layers = Stack().word(old, new).layers
        return Word(
            tuple(layers[index] for index in np.random.default_rng(self.seed).permutation(new))
        )
