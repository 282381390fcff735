"""Plans: what a linear growth operator does, as data.

Parameters, optimizer moments and proofs of exactness all go through the Plan, so an operator only has to say where
each new layer comes from.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lagjax.axes import Axes, Dim, Layout, Leaf, Params, Residual, flatten, rearrange
from lagjax.model import Key, Model


class Growth(Protocol):
    """A growth operator: fills the parameters of a larger model from those of a smaller one.

    Implement it as a frozen dataclass, so that equal operators compare equal, print as written and compile once.
    """

    def __call__(
        self, key: Key, params: Params, source: Axes, target: Model, /
    ) -> Params: ...


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
        scale = (
            "" if self.scale == 1 else "*" if self.scale == 0 else f"*{self.scale!r}"
        )
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
            match = re.fullmatch(
                r"(new|\d+)(?:(\*)(-?\d*\.?\d+(?:e[+-]?\d+)?)?)?", letter
            )
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
    """What a linear operator does to every leaf: a word for each stack of layers.

    Raises ValueError, when made, where source and target do not fit each other.
    """

    source: Layout
    target: Layout
    words: Mapping[str, Word]

    def __post_init__(self) -> None:
        olds = {leaf.name: leaf for leaf in self.source.leaves}
        news = {leaf.name: leaf for leaf in self.target.leaves}
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
        for axis in (axis for dim in new.dims if not dim.stack for axis in dim.names):
            m, n = self.source.sizes.get(axis), self.target.sizes.get(axis)
            if m != n:
                raise ValueError(
                    f"axis {axis!r} has size {m} in the source's {old} and {n} in the target's {new}; this operator "
                    "adds layers only: give a target that differs in its number of layers alone"
                )
        here, there = _plain(old), _plain(new)
        if here != there and [dim.parts for dim, _ in here] == [
            dim.parts for dim, _ in there
        ]:
            raise ValueError(
                f"the source's {old} and the target's {new} differ in more than their layers"
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
            if layer.source is not None and old[layer.source] != kind:
                differing = sorted({name for name, _ in old[layer.source] ^ kind})
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
        """Whether the grown model computes the same function: proved from words and kinds, never assumed.

        It does where every layer that is not an original in its place has zeroed residual outputs, and the axis
        that they write is declared pre-norm in the table's kinds. A row that writes this axis without the mark `+`
        may be an output that was forgotten, and keeps its values: nothing is claimed then.
        """
        for stack, word in self.words.items():
            kept = [layer for layer in word.layers if layer.scale != 0]
            if kept != [Layer(index) for index in range(self.source.stacks[stack])]:
                return False
            if len(kept) == len(word.layers):
                continue
            for dim in (
                dim
                for leaf in self.target.leaves
                if stack in leaf.stacks
                for dim in leaf.dims
            ):
                kinds = [
                    kind
                    for axis in dim.names
                    if isinstance(kind := self.target.kinds.get(axis), Residual)
                ]
                if dim.residual and not any(kind.pre for kind in kinds):
                    return False
                if dim.role == ">" and kinds and not dim.residual:
                    return False
        return True

    def params(self, params: Params, fresh: Params) -> Params:
        """The large model's parameters: copies of `params`, and `fresh` where the plan says new."""

        def factor(leaf: Leaf, layer: Layer) -> float:
            return layer.scale if leaf.residual else 1.0

        grown = self._grow(flatten(params), self.target.leaves, factor, flatten(fresh))
        return jax.tree.unflatten(jax.tree.structure(fresh), grown)

    def moments(
        self, arrays: Mapping[str, Any], fresh: Mapping[str, Any], power: int
    ) -> dict[str, Any]:
        """Grows statistics of the gradient: of order `power`, 1 for a mean, 2 for a mean of squares.

        A layer whose residual outputs are scaled by s sends s times the gradient back to its inner parameters, while
        the outputs' own gradient stays. A new layer has seen no gradient: its statistics are fresh.

        Args:
            arrays: the source's statistics by parameter path; may hold some of the parameters only.
            fresh: the target's statistics by parameter path before the first step; the result has their dtypes.
            power: the order of the statistics.
        """

        def factor(leaf: Leaf, layer: Layer) -> float:
            return 1.0 if leaf.residual or layer.source is None else layer.scale**power

        targets = [
            dataclasses.replace(leaf, dtype=fresh[leaf.path].dtype)
            for leaf in self.target.leaves
            if leaf.path in fresh
        ]
        grown = self._grow(arrays, targets, factor, fresh)
        return {leaf.path: value for leaf, value in zip(targets, grown)}

    def _grow(
        self,
        arrays: Mapping[str, Any],
        targets: Sequence[Leaf],
        factor: Callable[[Leaf, Layer], float],
        fresh: Mapping[str, Any],
    ) -> list[Any]:
        olds: dict[str, list[Leaf]] = {}
        for leaf in self.source.leaves:
            olds.setdefault(leaf.name, []).append(leaf)
        grown = []
        for new in targets:
            layers = {
                stack: self.words[stack].layers[index] for stack, index in new.layer
            }
            stacks = {axis: dim.stack for axis, dim in enumerate(new.dims) if dim.stack}
            words = {stack: self.words[stack].layers for stack in stacks.values()}
            if any(layer.source is None for layer in layers.values()):
                value = fresh[new.path]
            else:
                value = self._gather(new, olds[new.name], arrays, layers, words)
            value = value.astype(new.dtype)
            value = _scale(
                value, math.prod(factor(new, layer) for layer in layers.values())
            )
            for axis, stack in stacks.items():
                column = [1] * len(new.shape)
                column[axis] = -1
                made = np.array(
                    [layer.source is None for layer in words[stack]]
                ).reshape(column)
                if made.any():
                    value = jnp.where(made, fresh[new.path].astype(new.dtype), value)
                factors = np.array(
                    [factor(new, layer) for layer in words[stack]]
                ).reshape(column)
                value = _scale(value, factors)
            grown.append(value)
        return grown

    def _gather(
        self,
        new: Leaf,
        olds: Sequence[Leaf],
        arrays: Mapping[str, Any],
        layers: Mapping[str, Layer],
        words: Mapping[str, tuple[Layer, ...]],
    ) -> Any:
        """The source's values for one leaf of the target; where the word says new, any."""
        by_layer = {leaf.layer: leaf for leaf in olds}
        unrolled = [stack for stack, _ in olds[0].layer]
        indices = {
            stack: [layer.source or 0 for layer in word]
            for stack, word in words.items()
        }

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
                    value = jax.lax.index_in_dim(
                        value, chosen[stack], axis, keepdims=False
                    )
                    del dims[axis]
                elif stack and indices[stack] != list(range(value.shape[axis])):
                    value = jnp.take(value, np.array(indices[stack]), axis, mode="clip")
            return value, dims

        def many(
            rest: Sequence[str], chosen: Mapping[str, int]
        ) -> tuple[Any, list[Dim]]:
            if not rest:
                return one(chosen)
            made = [
                many(rest[1:], {**chosen, rest[0]: index}) for index in indices[rest[0]]
            ]
            return jnp.stack([value for value, _ in made]), [
                Dim("#", ((rest[0],),)),
                *made[0][1],
            ]

        fixed = {stack: layer.source or 0 for stack, layer in layers.items()}
        value, dims = many([stack for stack in unrolled if stack in words], fixed)
        return rearrange(
            value, dims, new.dims, {**self.target.sizes, **self.target.stacks}
        )


def grow(
    operator: Linear, key: Key, params: Params, source: Axes, target: Model
) -> Params:
    """Applies a linear operator: its `__call__`, in one line.

    `target.init` runs whole when called eagerly; under `jax.jit`, fresh values that the plan does not use cost nothing.
    """
    fresh = jax.eval_shape(target.init, key)
    plan = operator.plan(key, source.layout(params), target.axes.layout(fresh))
    return plan.params(params, target.init(key))


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
