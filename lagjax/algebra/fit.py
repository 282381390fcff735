"""What a plan refuses: two models, words and maps that do not fit each other."""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from lagjax.algebra.layout import Layout, Leaf, rescaled
from lagjax.algebra.maps import AxisMap, Vector
from lagjax.algebra.notation import Dim
from lagjax.algebra.pieces import pieces_of
from lagjax.algebra.words import Word


def check(
    source: Layout,
    target: Layout,
    words: Mapping[str, Word],
    maps: Mapping[str, AxisMap],
    invented: frozenset[str],
) -> None:
    """Raises ValueError where a plan of these words and maps cannot be.

    Args:
        source: of the small model.
        target: of the large model.
        words: stack → where each new layer comes from.
        maps: axis → how it grows.
        invented: names of the target's leaves that the source lacks.
    """
    # Of no layers there is nothing to pair.
    olds = {leaf.name: leaf for leaf in source.leaves if not source.without(leaf)}
    paired = [leaf for leaf in target.leaves if not source.without(leaf)]
    news = {leaf.name: leaf for leaf in paired if leaf.name not in invented}
    for stack, count in source.stacks.items():
        # A model that stays as it is has no layers before and after.
        if count == target.stacks.get(stack) == 0 and source != target:
            raise ValueError(
                f"the rows of the stack {stack!r} match no parameter in the source and none in the "
                "target; correct or remove them"
            )
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
        _pair(olds[name], new, source, target, maps)
    for stack, word in words.items():
        _word(word, stack, source, target, invented)
    layers = {stack: word.sources for stack, word in words.items()}
    for leaf in target.leaves:
        old = olds.get(leaf.name)
        dtypes = [each.dtype for each in (leaf, old) if each]
        if leaf.name not in invented and not all(jnp.issubdtype(x, jnp.inexact) for x in dtypes):
            factors = rescaled(old, leaf, source, target, layers) if old else {}
            _kept(leaf, target, words, maps, factors)


def _kept(
    leaf: Leaf,
    target: Layout,
    words: Mapping[str, Word],
    maps: Mapping[str, AxisMap],
    factors: Mapping[str, Vector],
) -> None:
    """Integers, truth values and keys can be copied, but not be multiplied."""
    wanted = [np.ravel(x) for x in factors.values()]
    if leaf.residual:
        wanted += [np.array(words[stack].scales) for stack in leaf.stacks]
    for piece in pieces_of(leaf.dims):
        for axis in piece.grown(target, maps):
            noisy = axis.map.jitter or axis.map.mean.any() or axis.reads and axis.map.noise
            wanted += [axis.factor[~axis.map.fresh], axis.fill, np.full(1, 0.5 if noisy else 1.0)]
    for each in wanted:
        if (odd := each[~np.isin(each, (0, 1))]).size:
            raise ValueError(
                f"{leaf} holds {leaf.dtype}, and this growth multiplies it by {odd[0]:.4g} or adds "
                "noise to it, which only floating-point numbers allow; grow the model in floating "
                "point, and quantise it afterwards"
            )


def _pair(
    old: Leaf, new: Leaf, source: Layout, target: Layout, maps: Mapping[str, AxisMap]
) -> None:
    """A parameter of the source and the one that it is to become."""
    if set(old.stacks) != set(new.stacks):
        raise ValueError(
            f"{old} is part of the stacks {old.stacks}, its counterpart {new} of {new.stacks}"
        )
    ours, theirs = _plain(old), _plain(new)
    here = [axis for dim, _ in ours for axis in dim.names]
    there = [axis for dim, _ in theirs for axis in dim.names]
    for axis in there:
        m, n = source.sizes.get(axis), target.sizes.get(axis)
        if axis in maps:
            grown = maps[axis]
            m = m if axis in here else 1
            if (grown.old, grown.new) != (m, n):
                raise ValueError(
                    f"the map of axis {axis!r} goes from {grown.old} to {grown.new}, but the axis "
                    f"has size {m} in the source's {old} and {n} in the target's {new}"
                )
        elif axis not in here:
            raise ValueError(
                f"the target's {new} has the axis {axis!r}, which the source's {old} lacks; "
                "grow it by an operator that makes it, Grow(experts=Upcycle()) for experts"
            )
        elif m != n:
            raise ValueError(
                f"axis {axis!r} has size {m} in the source's {old} and {n} in the target's {new}; "
                f"this operator does not grow it: say how, as in Grow(width={{{axis!r}: Tile()}}), "
                "or "
                "give a target of equal size"
            )
    same = [dim.folding for dim, _ in ours] == [dim.folding for dim, _ in theirs]
    if ours != theirs and same and not any(axis in maps for axis in there):
        unknown = [axis for axis in there if axis not in target.sizes]
        raise ValueError(
            f"the source's {old} and the target's {new} differ in more than their layers"
            + (
                f"; the sizes of {unknown} cannot be told from shapes, give them in both tables: "
                f"sizes={{{unknown[0]!r}: ...}}"
                if unknown
                else ""
            )
        )


def _word(word: Word, stack: str, source: Layout, target: Layout, invented: frozenset[str]) -> None:
    """The word of a stack of the two models."""
    old, new = source.layer_kinds(stack), target.layer_kinds(stack)
    if len(word.layers) != len(new):
        raise ValueError(
            f"word '{word}' has {len(word.layers)} layers, the target's stack {stack!r} {len(new)}"
        )
    residual = {leaf.name for leaf in target.leaves if leaf.residual}
    for index, (layer, kind) in enumerate(zip(word.layers, new)):
        if layer.source is not None and layer.source >= len(old):
            raise ValueError(
                f"word '{word}' takes layer {layer.source}, but the source's stack {stack!r} has "
                f"layers 0 to {len(old) - 1}"
            )
        has = kind if layer.source is None else old[layer.source]
        if differing := sorted({name for name, _ in has ^ kind} - invented):
            raise ValueError(
                f"word '{word}' puts layer {layer.source} of stack {stack!r} where the target has "
                f"a layer of another kind (layer {index}); they differ in {', '.join(differing)}"
            )
        if layer.scale != 1 and not any(name in residual for name, _ in kind):
            raise ValueError(
                f"word '{word}' scales the residual outputs of stack {stack!r}, but no row of its "
                "layers is marked as the last before the residual addition; mark it: '>embed+'"
            )


def _uncaptured(leaf: Leaf) -> str:
    """What to say of a number in a path that its row takes literally."""
    if leaf.stacks or not re.search(r"\d", leaf.path):
        return ""
    return (
        "; if a number in its path counts layers, let its row capture it: '(?P<layers>\\d+)'; if "
        "experts or another axis, by the name of this, '(?P<experts>\\d+)', and give that a kind"
    )


def _plain(leaf: Leaf) -> list[tuple[Dim, int]]:
    return [(dim, n) for dim, n in zip(leaf.dims, leaf.shape) if not dim.stack]
