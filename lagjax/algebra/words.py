"""Words: for each layer of the large model, which layer of the small one it comes from.

Layers are stacked in an array or unrolled over many, in either model: `pick` takes what a word
says from both.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lagjax.algebra.layout import Array, LayerKind, Layout, Leaf
from lagjax.algebra.maps import Vector, column
from lagjax.algebra.notation import Dim


class Layer(NamedTuple):
    """Where one new layer comes from.

    Attributes:
        source: the layer it copies, or None for a fresh one.
        scale: the factor of its residual outputs; 0 makes it the identity in a pre-norm net.
    """

    source: int | None
    scale: float = 1.0

    def __str__(self) -> str:
        scale = "" if self.scale == 1 else "*" if self.scale == 0 else f"*{self.scale!r}"
        return f"{'new' if self.source is None else self.source}{scale}"


@dataclass(frozen=True)
class Word:
    """For each new layer, where it comes from; written as in `0 0* 1 new*0.5`."""

    layers: tuple[Layer, ...]

    @classmethod
    def parse(cls, text: str) -> "Word":
        """Reads a word; raises ValueError for a letter that is none, and for a word of none."""
        layers = []
        if not text.split():
            raise ValueError(
                f"word {text!r} names no layer; expected one a new layer, as '0 1 0 1'"
            )
        for letter in text.split():
            match = re.fullmatch(r"(new|\d+)(?:(\*)(-?\d*\.?\d+(?:e[+-]?\d+)?)?)?", letter)
            if not match:
                raise ValueError(
                    f"word {text!r}: {letter!r} is no layer; expected '2', 'new', '2*' or '2*0.5'"
                )
            scale = 1.0 if not match[2] else float(match[3] or 0)
            layers.append(Layer(None if match[1] == "new" else int(match[1]), scale))
        return cls(tuple(layers))

    @property
    def sources(self) -> list[int]:
        """The layer that each new one copies; any, where it is fresh."""
        return [layer.source or 0 for layer in self.layers]

    @property
    def fresh(self) -> list[bool]:
        """Which layers are fresh."""
        return [layer.source is None for layer in self.layers]

    @property
    def scales(self) -> list[float]:
        """The factor of each layer's residual outputs."""
        return [layer.scale for layer in self.layers]

    @property
    def added(self) -> list[bool]:
        """Which layers are fresh, or not the first copy of their source."""
        sources = [layer.source for layer in self.layers]
        return [x is None or x in sources[:index] for index, x in enumerate(sources)]

    def following(self, kinds: Sequence[LayerKind]) -> list[int]:
        """As `sources`, each the next layer of its kind instead; the last is followed by itself."""
        later = [
            next((i for i in range(one + 1, len(kinds)) if kinds[i] == kinds[one]), one)
            for one in range(len(kinds))
        ]
        return [0 if layer.source is None else later[layer.source] for layer in self.layers]

    def __str__(self) -> str:
        return " ".join(map(str, self.layers))

    def __repr__(self) -> str:
        return f"Word({str(self)!r})"


def by_layer(leaf: Leaf, numbers: Mapping[str, Sequence[float]]) -> Iterator[Vector]:
    """Of every stack that a leaf is part of its layers' numbers; each broadcasts to the leaf."""
    for stack, index in leaf.layer:
        yield np.full([1] * len(leaf.shape), numbers[stack][index])
    for at, dim in enumerate(leaf.dims):
        if dim.stack:
            yield column(numbers[dim.stack], len(leaf.shape), at)


def layers_of(layout: Layout, name: str, stack: str) -> list[int]:
    """The layers of a stack that have a parameter of this name."""
    found = [dict(leaf.layer) for leaf in layout.leaves if leaf.name == name]
    if stack in found[0]:
        return sorted({layer[stack] for layer in found})
    return list(range(layout.stacks[stack]))


def pick(
    leaves: Sequence[Leaf], arrays: Mapping[str, Array], layers: Mapping[str, int | Sequence[int]]
) -> tuple[Array, tuple[Dim, ...]]:
    """Layers of a parameter in one array, and the axes of this.

    Args:
        leaves: all of one name.
        arrays: their values by path.
        layers: stack → a layer, which leaves no axis, or several, which make one: where it was, or
            in front if layers are unrolled. A stack inside the arrays that is not named stays.

    Raises ValueError where a value is missing.
    """
    found = {leaf.layer: leaf for leaf in leaves}
    unrolled = [stack for stack, _ in leaves[0].layer]

    def one(chosen: Mapping[str, int | Sequence[int]]) -> tuple[Array, tuple[Dim, ...]]:
        leaf = found[tuple((stack, chosen[stack]) for stack in unrolled)]  # type: ignore[misc]
        if leaf.path not in arrays:
            raise ValueError(f"there is no value for {leaf.path}, from which others are to grow")
        value, dims = arrays[leaf.path], list(leaf.dims)
        for axis in reversed(range(len(dims))):
            which = chosen.get(dims[axis].stack or "")
            if isinstance(which, int):
                value = jax.lax.index_in_dim(value, which, axis, keepdims=False)
                del dims[axis]
            elif which is not None and list(which) != list(range(value.shape[axis])):
                value = jnp.take(value, np.array(which), axis, mode="clip")
        return value, tuple(dims)

    def many(
        rest: Sequence[str], chosen: Mapping[str, int | Sequence[int]]
    ) -> tuple[Array, tuple[Dim, ...]]:
        if not rest:
            return one(chosen)
        stack, front = rest[0], Dim("#", ((rest[0],),))
        every = np.ravel(layers[stack]).tolist()
        made = [many(rest[1:], {**chosen, stack: index}) for index in every]
        return jnp.stack([value for value, _ in made]), (front, *made[0][1])

    return many([stack for stack in unrolled if not isinstance(layers[stack], int)], layers)


def chosen(leaf: Leaf, numbers: Mapping[str, Sequence[int]]) -> dict[str, int | Sequence[int]]:
    """What `pick` takes for one leaf, of each stack's numbers: its own layer's, or those of all."""
    inside = {dim.stack: numbers[dim.stack] for dim in leaf.dims if dim.stack}
    return {**inside, **{stack: numbers[stack][index] for stack, index in leaf.layer}}
