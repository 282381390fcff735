"""Plans: what a linear growth operator does, as data.

Parameters, optimizer moments and proofs of exactness all go through the Plan, so an operator only
has to say where each new layer comes from, and each new entry of an axis.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lagjax.algebra import fit, pieces, proof, words
from lagjax.algebra.layout import Array, Layout, Leaf, Params, rescaled
from lagjax.algebra.maps import AxisMap, Vector, column
from lagjax.algebra.notation import Dim
from lagjax.algebra.pieces import GrownAxis
from lagjax.algebra.words import Layer, Word

Dtype: TypeAlias = Any
"""As JAX takes them."""
Along: TypeAlias = Callable[[Leaf, int, Array, Array, tuple[GrownAxis, ...]], Array]
"""What becomes of one piece along its axes: `(leaf, number of the piece, value, fresh, axes)`."""


@dataclass(frozen=True)
class Perturb:
    """Every parameter shrunk, what is new padded with zeros, and the target's initialisation added:
    `shrink` θ + `noise` θ₀ (Mallik et al. 2024, arXiv 2411.07340, and 2026, arXiv 2605.13405; at
    equal size Ash and Adams 2020, arXiv 1910.08475).

    Moments grow as without it: no plan knows what the gradient of a shrunk net is.

    Attributes:
        shrink: the factor of what is grown.
        noise: the factor of the initialisation.
    """

    shrink: float = 0.4
    noise: float = 1.0

    @property
    def violations(self) -> tuple[proof.Violation, ...]:
        """Why it does not keep the function; none for (1, 0)."""
        found = []
        if self.shrink != 1:
            found.append(f"every parameter is multiplied by {self.shrink:g}")
        if self.noise:
            found.append(f"every parameter has {self.noise:g} of an initialisation added")
        small = self.shrink == 1
        return tuple(proof.Violation("*", None, why, small) for why in found)


@dataclass(frozen=True)
class Plan:
    """What a linear operator does: a word for each stack of layers, a map for each axis.

    Raises ValueError, when made, where source and target do not fit each other.

    Attributes:
        source: the small model's layout.
        target: the large model's.
        words: stack → where each new layer comes from.
        maps: axis → how it grows; an axis without a map keeps its size.
        key: draws noise, where a map has any.
        invented: names of the target's leaves that the source lacks and that stay as initialised (a
            router).
        perturb: what is done to every parameter afterwards; what is new then begins at 0.
    """

    source: Layout
    target: Layout
    words: Mapping[str, Word]
    maps: Mapping[str, AxisMap] = field(default_factory=dict)
    key: jax.Array | None = None
    invented: frozenset[str] = frozenset()
    perturb: Perturb | None = None

    def __post_init__(self) -> None:
        fit.check(self.source, self.target, self.words, self.maps, self.invented)

    @property
    def exact_by_table(self) -> bool:
        """Whether the grown model computes the same function, if the table tells all that it does.

        Proved from table and plan, `requires` given. What no table says, such as a norm that adds 1
        to its scale where the row has `embed`, no proof can know: `certify` measures it, and a run
        says so where a candidate does not begin as its table has it.
        """
        return not self.violations

    @functools.cached_property
    def violations(self) -> tuple[proof.Violation, ...]:
        """Why it does not, by axis."""
        found = proof.violations(self.source, self.target, self.words, self.maps)
        return found + (self.perturb.violations if self.perturb else ())

    @functools.cached_property
    def requires(self) -> tuple[proof.Requirement, ...]:
        """What the large model must do differently to be exact."""
        return proof.requirements(self.source, self.target, self.maps)

    def params(self, params: Params, fresh: Params) -> Params:
        """The large model's parameters: copies of `params`, and `fresh` where the plan says new."""
        numbers = {leaf.path: number for number, leaf in enumerate(self.target.leaves)}
        grown = self._values(self.source.values(params), self.target.values(fresh), numbers)
        return self.target.tree(grown, fresh)

    def state(self, arrays: Mapping[str, Array], fresh: Mapping[str, Array]) -> dict[str, Array]:
        """Grows state that is no parameter, of a plan whose layouts have it (`Axes.with_state`).

        A statistic grows as the activations that it is of, a copy of a parameter as this does, and
        with the same noise. What is new is `fresh`.

        Args:
            arrays: the source's state by path, which begins with the collection's name.
            fresh: the target's.
        """
        numbers = {leaf.path: number for number, leaf in enumerate(self.target.leaves)}
        made, blank = self.source.together(arrays), self.target.together(fresh)
        same = {path: numbers.get(path.partition("/")[2], numbers[path]) for path in blank}
        return self.target.apart(self._values(made, blank, same))

    def _values(
        self, arrays: Mapping[str, Array], fresh: Mapping[str, Array], numbers: Mapping[str, int]
    ) -> dict[str, Array]:
        """Grows parameters; a leaf's number tells its noise from others'."""
        following = {
            stack: word.following(self.source.layer_kinds(stack))
            for stack, word in self.words.items()
        }

        def along(
            leaf: Leaf, part: int, value: Array, made: Array, axes: tuple[GrownAxis, ...]
        ) -> Array:
            later, key = value, self.key
            if any(axis.map.ahead.any() for axis in axes):
                later = self._unfolded(leaf, self._picked(leaf, arrays, following))[part]
            if key is not None:
                key = jax.random.fold_in(jax.random.fold_in(key, numbers[leaf.path]), part)
            return pieces.parameter(value, later, made, axes, key, leaf.offset)

        def factor(leaf: Leaf, layer: Layer) -> float:
            return layer.scale if leaf.residual else 1.0

        if not self.perturb:
            return self._grow(arrays, fresh, factor, along)
        shrink, noise = self.perturb.shrink, self.perturb.noise
        # Statistics of activations are no parameters, and of integers there is no half.
        shaken = {
            leaf.path
            for leaf in self.target.leaves
            if jnp.issubdtype(leaf.dtype, jnp.inexact)
            and not any(dim.role == "~" for dim in leaf.dims)
        }
        begun = {path: jnp.zeros_like(x) if path in shaken else x for path, x in fresh.items()}
        return {
            path: _cast(shrink * x + noise * fresh[path], x.dtype) if path in shaken else x
            for path, x in self._grow(arrays, begun, factor, along).items()
        }

    def moments(
        self,
        arrays: Mapping[str, Array],
        fresh: Mapping[str, Array],
        power: int,
        odd: bool | None = None,
    ) -> dict[str, Array]:
        """Grows statistics of the gradient: of order `power`, 1 for a mean, 2 for one of squares.

        A layer whose residual outputs are scaled by s sends s times the gradient back to its inner
        parameters, while the outputs' own gradient stays. Along an axis the gradient goes by
        `GrownAxis.slope`. What is new has seen no gradient: its statistics are fresh.

        Args:
            arrays: the source's statistics by parameter path; may hold some of the parameters only.
            fresh: the target's statistics by parameter path before the first step; the result has
                their dtypes.
            power: the order of the statistics; 0 for those of updates whose scale is gone.
            odd: whether they change sign with the gradient; as the power is, unless said.
        """
        flips = power % 2 == 1 if odd is None else odd

        def factor(leaf: Leaf, layer: Layer) -> float:
            if leaf.residual or layer.source is None:
                return 1.0
            return float(pieces.powered(layer.scale, power, flips))

        grown = self._grow(
            self.source.together(arrays),
            self.target.together(fresh),
            factor,
            lambda _, __, value, made, axes: pieces.moment(value, made, axes, power, flips),
            -power,
        )
        return self.target.apart(grown)

    def chosen(self, leaf: Leaf, arrays: Mapping[str, Array]) -> tuple[Array, ...] | None:
        """The source's values for a leaf of the target, layers chosen and scaled, no axis grown.

        `arrays` by leaf of the source. By pieces, with the target's order of axes. In a stack, what
        a fresh layer has is 0; None for a leaf of fresh layers only, or one that the source lacks.
        """
        if leaf.name in self.invented or self._anew(leaf):
            return None
        found = []
        for piece, value in zip(
            pieces.pieces_of(leaf.dims), self._unfolded(leaf, self._picked(leaf, arrays))
        ):
            for stack, index in leaf.layer:
                scale = self.words[stack].scales[index] if leaf.residual else 1.0
                value = _scaled(value, scale, leaf.offset)
            for at in piece.stacks:
                word = self.words[str(piece.names[at])]
                kept = [
                    0.0 if layer.source is None else layer.scale if leaf.residual else 1.0
                    for layer in word.layers
                ]
                value = _scaled(value, column(kept, value.ndim, at), leaf.offset)
            found.append(value)
        return tuple(found)

    def units(self, leaf: Leaf) -> Vector:
        """By what a leaf is multiplied because the large model divides it by other sizes.

        Broadcasts against the leaf; 1 in fresh layers.
        """
        made = np.ones([1] * len(leaf.shape))
        if leaf.name not in self.invented and not self.source.without(leaf):
            layers = {stack: word.sources for stack, word in self.words.items()}
            old = self._olds[leaf.name][0]
            found = rescaled(old, leaf, self.source, self.target, layers)
            made = made * found.pop("", np.ones(1))[0]
            for stack, factors in found.items():
                ones = {one: np.ones(len(word.layers)) for one, word in self.words.items()}
                kept = np.where(self.words[stack].fresh, 1.0, factors)
                for by in words.by_layer(leaf, {**ones, stack: kept}):  # type: ignore[dict-item]
                    made = made * by
        return made

    def grown(self, leaf: Leaf) -> list[tuple[GrownAxis, ...]]:
        """For each piece of a leaf of the target, its axes that grow."""
        return [piece.grown(self.target, self.maps) for piece in pieces.pieces_of(leaf.dims)]

    def source_of(self, leaf: Leaf) -> Leaf | None:
        """The source's parameter that a leaf of the target copies, its first where it stacks
        several; None for an invented one, and one of layers of which the source has none.
        """
        if self.source.without(leaf):
            return None
        olds = {old.layer: old for old in self._olds.get(leaf.name, ())}
        layer = tuple((stack, self.words[stack].sources[index]) for stack, index in leaf.layer)
        return olds.get(layer, next(iter(olds.values()), None))

    def _grow(
        self,
        arrays: Mapping[str, Array],
        fresh: Mapping[str, Array],
        factor: Callable[[Leaf, Layer], float],
        along: Along,
        power: int = 1,
    ) -> dict[str, Array]:
        """Every leaf of the target that `fresh` has, in its dtype, its pieces by `along`.

        `power` is that of a parameter's own factor in what is grown: 1 for itself.
        """
        made, grown = {stack: word.fresh for stack, word in self.words.items()}, {}
        for leaf in self.target.leaves:
            if leaf.path not in fresh:
                continue
            blank = value = fresh[leaf.path]
            if leaf.name not in self.invented:
                if not self._anew(leaf):
                    value = _cast(self._leaf(leaf, arrays, blank, along, power), blank.dtype)
                factors = {
                    stack: [factor(leaf, layer) for layer in self.words[stack].layers]
                    for stack in leaf.stacks
                }
                offset = leaf.offset if power == 1 else 0.0
                for new, scales in zip(words.by_layer(leaf, made), words.by_layer(leaf, factors)):
                    value = jnp.where(new, blank, value) if new.any() else value
                    value = _scaled(value, scales, offset)
            grown[leaf.path] = value
        return grown

    def _anew(self, leaf: Leaf) -> bool:
        """Whether all layers that a leaf is of are fresh."""
        fresh = {stack: self.words[stack].fresh for stack in leaf.stacks}
        inside = any(dim.stack and all(fresh[dim.stack]) for dim in leaf.dims)
        return inside or any(fresh[stack][index] for stack, index in leaf.layer)

    def _leaf(
        self, leaf: Leaf, arrays: Mapping[str, Array], blank: Array, along: Along, power: int
    ) -> Array:
        """The grown values of one leaf of the target; in layers that are new, any."""
        axes, extents = self.grown(leaf), self.target.extents
        picked = self._picked(leaf, arrays, power=power, dtype=blank.dtype)
        if not any(axes):
            return pieces.rearrange(*picked, leaf.dims, extents)
        values = self._unfolded(leaf, picked)
        made = pieces.split(blank, leaf.dims, extents)
        return pieces.join(
            [along(leaf, part, *one) for part, one in enumerate(zip(values, made, axes))],
            leaf.dims,
            extents,
        )

    def _picked(
        self,
        leaf: Leaf,
        arrays: Mapping[str, Array],
        layers: Mapping[str, list[int]] | None = None,
        power: int = 1,
        dtype: Dtype | None = None,
    ) -> tuple[Array, tuple[Dim, ...]]:
        """The layers that a leaf takes, in its own unit and in the wider of two dtypes."""
        layers = layers or {stack: word.sources for stack, word in self.words.items()}
        olds = self._olds[leaf.name]
        value, dims = words.pick(olds, arrays, words.chosen(leaf, layers))
        value = _cast(value, _wider(value.dtype, dtype or leaf.dtype))
        for stack, factors in rescaled(olds[0], leaf, self.source, self.target, layers).items():
            if stack in dict(leaf.layer):
                by: Vector | float = factors[dict(leaf.layer)[stack]]
            else:
                at = next((at for at, dim in enumerate(dims) if dim.stack == stack), None)
                by = factors[0] if at is None else column(factors, value.ndim, at)
            value = _scaled(value, by**power, leaf.offset if power == 1 else 0.0)
        return value, dims

    def _unfolded(self, leaf: Leaf, picked: tuple[Array, tuple[Dim, ...]]) -> tuple[Array, ...]:
        # The stacks inside the leaf are the target's already.
        sizes = {**self.source.sizes, **self.target.stacks}
        return pieces.unfold(*picked, leaf.dims, sizes)

    @functools.cached_property
    def _olds(self) -> dict[str, list[Leaf]]:
        """The source's leaves by name: one, or one for each unrolled layer."""
        found: dict[str, list[Leaf]] = {}
        for leaf in self.source.leaves:
            found.setdefault(leaf.name, []).append(leaf)
        return found


def _scaled(value: Array, factors: Vector | float, offset: float = 0.0) -> Array:
    """Multiplies value + offset, where there is anything to multiply by."""
    if np.all(factors == 1):
        return value
    made = jnp.multiply(value, np.asarray(factors, value.dtype))
    return made + np.asarray((factors - 1) * offset, value.dtype) if offset else made


def _wider(one: Dtype, other: Dtype) -> Dtype:
    """The dtype to compute in: shares such as 1/3 are not to be rounded to the narrower one."""
    numbers = all(jnp.issubdtype(dtype, jnp.number) for dtype in (one, other))
    return jnp.promote_types(one, other) if numbers else one


def _cast(value: Array, dtype: Dtype) -> Array:
    # Of keys no cast is known, not even to what they are.
    return value if value.dtype == dtype else value.astype(dtype)
