"""Plans: what a linear growth operator does, as data.

Parameters, optimizer moments and proofs of exactness all go through the Plan, so an operator only has to say where
each new layer comes from, and each new entry of an axis.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lagjax.algebra import pieces, proof
from lagjax.algebra.axes import (
    Axes,
    Dim,
    Layout,
    Leaf,
    Params,
    flatten,
    join,
    rearrange,
    split,
    unfold,
)
from lagjax.algebra.maps import AxisMap
from lagjax.algebra.pieces import GrownAxis
from lagjax.model import Key, Model


class Growth(Protocol):
    """A growth operator: fills the parameters of a larger model from those of a smaller one.

    Implement it as a frozen dataclass, so that equal operators compare equal, print as written and compile once.
    """

    def __call__(self, key: Key, params: Params, source: Axes, target: Model, /) -> Params: ...


class Linear(Growth, Protocol):
    """A growth operator that is linear in the parameters, and can therefore grow the optimizer state too."""

    def plan(self, key: Key, source: Layout, target: Layout, /) -> "Plan": ...


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
        """Reads a word; raises ValueError for a letter that is none."""
        layers = []
        for letter in text.split():
            match = re.fullmatch(r"(new|\d+)(?:(\*)(-?\d*\.?\d+(?:e[+-]?\d+)?)?)?", letter)
            if not match:
                raise ValueError(
                    f"word {text!r}: {letter!r} is no layer; expected '2', 'new', '2*' or '2*0.5'"
                )
            scale = 1.0 if not match[2] else float(match[3] or 0)
            layers.append(Layer(None if match[1] == "new" else int(match[1]), scale))
        return cls(tuple(layers))

    def __str__(self) -> str:
        return " ".join(map(str, self.layers))

    def __repr__(self) -> str:
        return f"Word({str(self)!r})"


@dataclass(frozen=True)
class Plan:
    """What a linear operator does to every leaf: a word for each stack of layers, a map for each axis.

    Raises ValueError, when made, where source and target do not fit each other.

    Attributes:
        source: the small model's layout.
        target: the large model's.
        words: stack → where each new layer comes from.
        maps: axis → how it grows; an axis without a map keeps its size.
        key: draws noise, where a map has any.
        invented: names of the target's leaves that the source lacks and that stay as initialised (a router).
    """

    source: Layout
    target: Layout
    words: Mapping[str, Word]
    maps: Mapping[str, AxisMap] = field(default_factory=dict)
    key: Key | None = None
    invented: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        olds = {leaf.name: leaf for leaf in self.source.leaves}
        news = {leaf.name: leaf for leaf in self.target.leaves if leaf.name not in self.invented}
        for one, other, has, lacks in (
            (news, olds, "target", "source"),
            (olds, news, "source", "target"),
        ):
            for name, leaf in one.items():
                if name not in other:
                    raise ValueError(
                        f"the {has}'s {leaf} has no counterpart named {name!r} in the {lacks}; "
                        "pair rows whose paths differ by giving both the same name: 'name: axes'"
                        f"{_uncaptured(leaf)}"
                    )
        for name, new in news.items():
            self._check_pair(olds[name], new)
        for stack, word in self.words.items():
            self._check_word(stack, word)

    def _check_pair(self, old: Leaf, new: Leaf) -> None:
        if set(old.stacks) != set(new.stacks):
            raise ValueError(
                f"{old} is part of the stacks {old.stacks}, its counterpart {new} of {new.stacks}"
            )
        here = [axis for dim in old.dims if not dim.stack for axis in dim.names]
        for axis in (axis for dim in new.dims if not dim.stack for axis in dim.names):
            m, n = self.source.sizes.get(axis), self.target.sizes.get(axis)
            if axis in self.maps:
                grown = self.maps[axis]
                m = m if axis in here else 1
                if (grown.old, grown.new) != (m, n):
                    raise ValueError(
                        f"the map of axis {axis!r} goes from {grown.old} to {grown.new}, but the axis has size {m} in the source's "
                        f"{old} and {n} in the target's {new}"
                    )
            elif axis not in here:
                raise ValueError(
                    f"the target's {new} has the axis {axis!r}, which the source's {old} lacks; "
                    "grow it by an operator that makes it, Grow(experts=Upcycle()) for experts"
                )
            elif m != n:
                raise ValueError(
                    f"axis {axis!r} has size {m} in the source's {old} and {n} in the target's {new}; this operator "
                    f"does not grow it: say how, as in Grow(width={{{axis!r}: Tile()}}), or give a target of equal size"
                )
        ours, theirs = _plain(old), _plain(new)
        same = [dim.parts for dim, _ in ours] == [dim.parts for dim, _ in theirs]
        touched = any(axis in self.maps for dim, _ in theirs for axis in dim.names)
        if ours != theirs and same and not touched:
            unknown = [
                axis for dim, _ in theirs for axis in dim.names if axis not in self.target.sizes
            ]
            raise ValueError(
                f"the source's {old} and the target's {new} differ in more than their layers"
                + (
                    f"; the sizes of {unknown} cannot be told from shapes, give them in both tables: sizes={{{unknown[0]!r}: ...}}"
                    if unknown
                    else ""
                )
            )

    def _check_word(self, stack: str, word: Word) -> None:
        old, new = self.source.layer_kinds(stack), self.target.layer_kinds(stack)
        if len(word.layers) != len(new):
            raise ValueError(
                f"word '{word}' has {len(word.layers)} layers, the target's stack {stack!r} {len(new)}"
            )
        residual = {leaf.name for leaf in self.target.leaves if leaf.residual}
        for index, (layer, kind) in enumerate(zip(word.layers, new)):
            if layer.source is not None and layer.source >= len(old):
                raise ValueError(
                    f"word '{word}' takes layer {layer.source}, but the source's stack {stack!r} has layers "
                    f"0 to {len(old) - 1}"
                )
            differing = sorted(
                {
                    name
                    for name, _ in (old[layer.source] if layer.source is not None else kind) ^ kind
                }
                - self.invented
            )
            if differing:
                raise ValueError(
                    f"word '{word}' puts layer {layer.source} of stack {stack!r} where the target has a layer of "
                    f"another kind (layer {index}); they differ in {', '.join(differing)}"
                )
            if layer.scale != 1 and not any(name in residual for name, _ in kind):
                raise ValueError(
                    f"word '{word}' scales the residual outputs of stack {stack!r}, but no row of its layers is "
                    "marked as the last before the residual addition; mark it: '>embed+'"
                )

    @property
    def exact(self) -> bool:
        """Whether the grown model computes the same function, `requires` given: proved from table and plan, never assumed."""
        return not proof.violations(self)

    @property
    def violations(self) -> tuple[proof.Violation, ...]:
        """Why it does not, by axis."""
        return proof.violations(self)

    @property
    def requires(self) -> tuple[proof.Requirement, ...]:
        """What the large model must do differently to be exact."""
        return proof.requirements(self)

    def params(self, params: Params, fresh: Params) -> Params:
        """The large model's parameters: copies of `params`, and `fresh` where the plan says new."""

        def layer_factor(leaf: Leaf, layer: Layer) -> float:
            return layer.scale if leaf.residual else 1.0

        grown = self._grow(flatten(params), self.target.leaves, layer_factor, flatten(fresh), None)
        return jax.tree.unflatten(jax.tree.structure(fresh), grown)

    def moments(
        self, arrays: Mapping[str, Any], fresh: Mapping[str, Any], power: int
    ) -> dict[str, Any]:
        """Grows statistics of the gradient: of order `power`, 1 for a mean, 2 for a mean of squares.

        A layer whose residual outputs are scaled by s sends s times the gradient back to its inner parameters, while
        the outputs' own gradient stays. Along an axis the gradient goes by `AxisMap.slopes`. What is new has seen no gradient:
        its statistics are fresh.

        Args:
            arrays: the source's statistics by parameter path; may hold some of the parameters only.
            fresh: the target's statistics by parameter path before the first step; the result has their dtypes.
            power: the order of the statistics.
        """

        def layer_factor(leaf: Leaf, layer: Layer) -> float:
            return 1.0 if leaf.residual or layer.source is None else layer.scale**power

        targets = [
            dataclasses.replace(leaf, dtype=fresh[leaf.path].dtype)
            for leaf in self.target.leaves
            if leaf.path in fresh
        ]
        grown = self._grow(arrays, targets, layer_factor, fresh, power)
        return {leaf.path: value for leaf, value in zip(targets, grown)}

    def _grow(
        self,
        arrays: Mapping[str, Any],
        targets: Sequence[Leaf],
        layer_factor: Callable[[Leaf, Layer], float],
        fresh: Mapping[str, Any],
        power: int | None,
    ) -> list[Any]:
        """Every leaf of the target; `power` is the order of the statistics, None for parameters."""
        olds: dict[str, list[Leaf]] = {}
        for leaf in self.source.leaves:
            olds.setdefault(leaf.name, []).append(leaf)
        grown = []
        for new in targets:
            if new.name in self.invented:
                grown.append(fresh[new.path].astype(new.dtype))
                continue
            layers = {stack: self.words[stack].layers[index] for stack, index in new.layer}
            stacks = {axis: dim.stack for axis, dim in enumerate(new.dims) if dim.stack}
            words = {stack: self.words[stack].layers for stack in stacks.values()}
            if any(layer.source is None for layer in layers.values()):
                value = fresh[new.path]
            else:
                value = self._leaf(
                    new, olds[new.name], arrays, layers, words, fresh[new.path], power
                )
            value = value.astype(new.dtype)
            value = _scale(value, math.prod(layer_factor(new, layer) for layer in layers.values()))
            for axis, stack in stacks.items():
                column = [1] * len(new.shape)
                column[axis] = -1
                made = np.array([layer.source is None for layer in words[stack]]).reshape(column)
                if made.any():
                    value = jnp.where(made, fresh[new.path].astype(new.dtype), value)
                factors = np.array([layer_factor(new, layer) for layer in words[stack]]).reshape(
                    column
                )
                value = _scale(value, factors)
            grown.append(value)
        return grown

    def _leaf(
        self,
        new: Leaf,
        olds: Sequence[Leaf],
        arrays: Mapping[str, Any],
        layers: Mapping[str, Layer],
        words: Mapping[str, tuple[Layer, ...]],
        fresh: Any,
        power: int | None,
    ) -> Any:
        """The grown values of one leaf of the target; where the word says new, any."""
        value, dims = self._gather(new, olds, arrays, layers, words)
        if not self._grown(new):
            return rearrange(value, dims, new.dims, {**self.target.sizes, **self.target.stacks})
        # The stacks inside the leaf have been gathered already.
        sizes = {**self.source.sizes, **self.target.stacks}
        parts = unfold(value, dims, new.dims, sizes)
        sizes = {**self.target.sizes, **self.target.stacks}
        made = split(fresh, new.dims, sizes)
        ahead: Sequence[Any] = parts
        if power is None and any(m.ahead.any() for m in self._grown(new).values()):
            following = {
                stack: tuple(self._following(stack, layer) for layer in word)
                for stack, word in words.items()
            }
            nexts = {s: self._following(s, layer) for s, layer in layers.items()}
            value, dims = self._gather(new, olds, arrays, nexts, following)
            ahead = unfold(value, dims, new.dims, {**self.source.sizes, **self.target.stacks})
        grown = []
        for part, (value, later, blank) in enumerate(zip(parts, ahead, made)):
            found = self.factors_of(new, part)
            if power is not None:
                grown.append(pieces.moment(value, blank, found, power))
                continue
            key = None
            if self.key is not None:
                number = self.target.leaves.index(new) if new in self.target.leaves else 0
                key = jax.random.fold_in(jax.random.fold_in(self.key, number), part)
            grown.append(pieces.parameter(value, later, blank, found, key))
        return join(grown, new.dims, sizes)

    def chosen(
        self, new: Leaf, olds: Sequence[Leaf], arrays: Mapping[str, Any]
    ) -> tuple[Any, ...] | None:
        """The source's values for one leaf of the target, its layers chosen and scaled, no axis grown; None for a leaf of a fresh layer.

        Unfolded, as `axes.unfold` gives them. In a stack, what a fresh layer has is 0.
        """
        layers = {stack: self.words[stack].layers[index] for stack, index in new.layer}
        if any(layer.source is None for layer in layers.values()):
            return None
        stacks = [dim.stack for dim in new.dims if dim.stack]
        words = {stack: self.words[stack].layers for stack in stacks}
        value, dims = self._gather(new, olds, arrays, layers, words)
        for axis, dim in enumerate(dims):
            if dim.stack:
                shape = [1] * value.ndim
                shape[axis] = -1
                kept = [x.scale if new.residual else 1.0 for x in words[dim.stack]]
                made = [x.source is None for x in words[dim.stack]]
                value = _scale(value, np.where(made, 0.0, kept).reshape(shape))
        scales = [x.scale if new.residual else 1.0 for x in layers.values()]
        value = _scale(value, math.prod(scales))
        sizes = {**self.source.sizes, **self.target.stacks}
        return unfold(value, dims, new.dims, sizes)

    def factors_of(self, leaf: Leaf, part: int) -> tuple[GrownAxis, ...]:
        """The grown axes of one concatenated part of a leaf, by their position in the unfolded array."""
        found, position = [], 0
        for dim in leaf.dims:
            index = part if len(dim.parts) > 1 else 0
            for name, role in zip(dim.parts[index], dim.roles(index)):
                if isinstance(name, str) and name in self.maps and role != "#":
                    kind = self.target.kinds.get(name)
                    found.append(GrownAxis(name, position, role, kind, self.maps[name]))
                position += 1
        return tuple(found)

    def _grown(self, leaf: Leaf) -> dict[str, AxisMap]:
        return {
            axis: self.maps[axis] for dim in leaf.dims for axis in dim.names if axis in self.maps
        }

    def _following(self, stack: str, layer: Layer) -> Layer:
        """The layer after the one that is copied, of the same kind; the last one is followed by itself."""
        kinds = self.source.layer_kinds(stack)
        if layer.source is None:
            return layer
        later = (
            index
            for index in range(layer.source + 1, len(kinds))
            if kinds[index] == kinds[layer.source]
        )
        return layer._replace(source=next(later, layer.source))

    def _gather(
        self,
        new: Leaf,
        olds: Sequence[Leaf],
        arrays: Mapping[str, Any],
        layers: Mapping[str, Layer],
        words: Mapping[str, tuple[Layer, ...]],
    ) -> tuple[Any, list[Dim]]:
        """The source's values for one leaf of the target, its layers chosen; where the word says new, any."""
        by_layer = {leaf.layer: leaf for leaf in olds}
        unrolled = [stack for stack, _ in olds[0].layer]
        indices = {stack: [layer.source or 0 for layer in word] for stack, word in words.items()}

        def one(chosen: Mapping[str, int]) -> tuple[Any, list[Dim]]:
            old = by_layer[tuple((stack, chosen[stack]) for stack in unrolled)]
            if old.path not in arrays:
                raise ValueError(
                    f"the source has no value for {old.path}, though the target has one for {new.path}"
                )
            value, dims = arrays[old.path], list(old.dims)
            for axis in reversed(range(len(dims))):
                stack = dims[axis].stack
                if stack and stack in chosen:
                    value = jax.lax.index_in_dim(value, chosen[stack], axis, keepdims=False)
                    del dims[axis]
                elif stack and indices[stack] != list(range(value.shape[axis])):
                    value = jnp.take(value, np.array(indices[stack]), axis, mode="clip")
            return value, dims

        def many(rest: Sequence[str], chosen: Mapping[str, int]) -> tuple[Any, list[Dim]]:
            if not rest:
                return one(chosen)
            made = [many(rest[1:], {**chosen, rest[0]: index}) for index in indices[rest[0]]]
            return jnp.stack([value for value, _ in made]), [
                Dim("#", ((rest[0],),)),
                *made[0][1],
            ]

        fixed = {stack: layer.source or 0 for stack, layer in layers.items()}
        return many([stack for stack in unrolled if stack in words], fixed)


def _uncaptured(leaf: Leaf) -> str:
    """What to say of a number in a path that its row takes literally."""
    if leaf.stacks or not re.search(r"\d", leaf.path):
        return ""
    return "; if a number in its path counts layers, let its row capture it: '(?P<layers>\\d+)'"


def _plain(leaf: Leaf) -> list[tuple[Dim, int]]:
    return [(dim, n) for dim, n in zip(leaf.dims, leaf.shape) if not dim.stack]


def _scale(value: Any, factors: Any) -> Any:
    """Multiplies, where there is anything to multiply by."""
    return value if np.all(factors == 1) else value * jnp.asarray(factors, value.dtype)
