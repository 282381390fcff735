"""Layouts: an axes table bound to the shapes of one model's parameters.

`Axes.layout` makes them; whatever grows, proves or measures asks them which axis is where.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lagjax.algebra.kinds import Kind, LayerTypes, Unknown
from lagjax.algebra.maps import Vector
from lagjax.algebra.notation import Dim, Divisor

Keys: TypeAlias = tuple[Any, ...]
"""Of a leaf, as `jax.tree_util` has them."""
Array: TypeAlias = jax.Array | NDArray[Any]
Params: TypeAlias = Any
"""A pytree of arrays, or of `jax.ShapeDtypeStruct`."""


Place: TypeAlias = tuple[tuple[str, int], ...]
"""Which layer of which unrolled stacks: `(stack, number)` of each."""
LayerKind: TypeAlias = frozenset[tuple[str, Place]]
"""The names of a layer's parameters, with the other unrolled stacks that they are part of."""


@dataclass(frozen=True)
class Leaf:
    """A parameter with its axes; `layer` says which layer of which unrolled stack it belongs to.

    Of an axis that is unrolled over many arrays, such as experts that are modules, the arrays are
    one leaf, the axis in front; its path is that of the first of them.
    """

    path: str
    name: str
    dims: tuple[Dim, ...]
    layer: Place
    shape: tuple[int, ...]
    dtype: Any
    divisors: tuple[Divisor, ...] = ()

    @property
    def residual(self) -> bool:
        """Whether its output is added to the residual stream."""
        return any(dim.residual for dim in self.dims)

    @property
    def offset(self) -> float:
        """What the model adds to its values before it multiplies by them."""
        return sum(dim.offset for dim in self.dims)

    @property
    def stacks(self) -> tuple[str, ...]:
        """The stacks of layers that it is part of, unrolled and stacked."""
        inside = tuple(dim.stack for dim in self.dims if dim.stack)
        return tuple(stack for stack, _ in self.layer) + inside

    def __str__(self) -> str:
        return f"{self.path} {self.shape}"


@dataclass(frozen=True)
class Layout:
    """An axes table bound to the shapes of one model's parameters.

    Attributes:
        leaves: in the order of `jax.tree.leaves`.
        sizes: axis → size; an axis that only occurs flattened, and whose size the shapes do not
            tell, is absent.
        stacks: stack → number of layers; 0 where the table marks it and no parameter has it.
        kinds: axis → what it meets on the way; stack → its types of layers.
        batch_normed: the axes over whose entries batches are normed, as rows of variances tell.
        unrolled: path of a leaf → the paths of the arrays that it is of, where these are several.
        paths: of all arrays, in the order of `jax.tree.leaves`.
    """

    leaves: tuple[Leaf, ...]
    sizes: Mapping[str, int]
    stacks: Mapping[str, int]
    kinds: Mapping[str, Kind]
    batch_normed: frozenset[str]
    unrolled: Mapping[str, tuple[str, ...]]
    paths: tuple[str, ...]

    def together(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays by path → those of `leaves`, as far as they are given."""
        given = {path: x if hasattr(x, "dtype") else jnp.asarray(x) for path, x in arrays.items()}
        for path, parts in self.unrolled.items():
            if path in given:
                given[path] = jnp.stack([given.pop(part) for part in parts])
        return given

    def apart(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """What `together` put together, in the order of `paths`."""
        given = dict(values)
        for path, parts in self.unrolled.items():
            if path in given:
                given |= {part: values[path][at] for at, part in enumerate(parts)}
        return {path: given[path] for path in self.paths if path in given}

    def values(self, tree: Params) -> dict[str, Array]:
        """A tree's values by leaf."""
        return self.together(flatten(tree))

    def tree(self, values: Mapping[str, Array], like: Params) -> Params:
        """The tree, of the structure of another, of values by leaf."""
        return jax.tree.unflatten(jax.tree.structure(like), list(self.apart(values).values()))

    @functools.cached_property
    def extents(self) -> Mapping[str, int]:
        """The size of every axis, and the number of layers of every stack."""
        return {**self.sizes, **self.stacks}

    def kind(self, axis: str | int) -> Kind:
        """What an axis meets; `Unknown` where the table does not say."""
        return self.kinds.get(str(axis), Unknown())

    def having(self, axis: str) -> list[Leaf]:
        """The parameters that have an axis."""
        return [leaf for leaf in self.leaves if any(axis in dim.names for dim in leaf.dims)]

    def without(self, leaf: Leaf) -> bool:
        """Whether this model has no layers of a stack that a leaf, of either model, is part of."""
        return any(self.stacks.get(stack) == 0 for stack in leaf.stacks)

    def layer_kinds(self, stack: str) -> list[LayerKind]:
        """For each layer of the stack its type and the names of its parameters, equal for layers of
        a kind.
        """
        told = self.kinds.get(stack)
        types = told.types if isinstance(told, LayerTypes) else ()
        found: list[set[tuple[str, Place]]] = [
            {(f"type {types[index % len(types)]}", ())} if types else set()
            for index in range(self.stacks[stack])
        ]
        for leaf in self.leaves:
            others = tuple(item for item in leaf.layer if item[0] != stack)
            for one, index in leaf.layer:
                if one == stack:
                    found[index].add((leaf.name, others))
            if any(dim.stack == stack for dim in leaf.dims):
                for kind in found:
                    kind.add((leaf.name, others))
        return [frozenset(kind) for kind in found]


def flatten(tree: Params) -> dict[str, Any]:
    """The leaves of a tree by path: keys joined by `/`, without the `value` of Flax's boxes."""
    flat = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        flat[path_of(keys)] = leaf
    return flat


def path_of(keys: Keys) -> str:
    """The path of a leaf in the form that tables match."""
    boxed = keys and isinstance(keys[-1], jax.tree_util.GetAttrKey) and keys[-1].name == "value"
    return jax.tree_util.keystr(tuple(keys[:-1] if boxed else keys), simple=True, separator="/")


def length(factor: str | int, sizes: Mapping[str, int]) -> int:
    """The size of one factor of an axis; raises ValueError where it is not known."""
    if isinstance(factor, int):
        return factor
    if factor not in sizes:
        raise ValueError(
            f"the size of axis {factor!r} cannot be told from shapes; "
            f"give sizes={{{factor!r}: ...}}"
        )
    return sizes[factor]


def extent(part: Sequence[str | int], sizes: Mapping[str, int]) -> int:
    """The size of axes that are flattened into one."""
    return math.prod(length(x, sizes) for x in part)


def stacks_of(leaves: Sequence[Leaf]) -> dict[str, int]:
    """The number of layers of every stack; raises ValueError where leaves contradict each other."""
    captured: dict[str, dict[int, str]] = {}
    for leaf in leaves:
        for stack, index in leaf.layer:
            captured.setdefault(stack, {})[index] = leaf.path
    stacks = {stack: max(found) + 1 for stack, found in captured.items()}
    for stack, found in captured.items():
        if missing := sorted(set(range(stacks[stack])) - set(found)):
            last = found[max(found)]
            raise ValueError(
                f"stack {stack!r} has no layer {missing[0]}, though {last} exists; layers count "
                "from 0"
            )
    for leaf in leaves:
        for dim, size in zip(leaf.dims, leaf.shape):
            if dim.stack and stacks.setdefault(dim.stack, size) != size:
                raise ValueError(
                    f"stack {dim.stack!r} has {stacks[dim.stack]} layers, but {leaf} has {size}"
                )
    return stacks


def sizes_of(leaves: Sequence[Leaf], given: Mapping[str, int]) -> dict[str, int]:
    """Solves for the size of every axis; what shapes do not determine stays out."""
    sizes = dict(given)
    source = dict.fromkeys(given, "sizes=")
    pending = [
        (leaf, dim, n) for leaf in leaves for dim, n in zip(leaf.dims, leaf.shape) if not dim.stack
    ]
    # Plain axes first, so that a contradiction is blamed on the flattened one.
    pending.sort(key=lambda item: (len(item[1].parts), len(item[1].parts[0])))
    progress = True
    while progress:
        progress, rest = False, []
        for leaf, dim, n in pending:
            unknown = {x for x in dim.names if x not in sizes}
            if len(unknown) > 1:
                rest.append((leaf, dim, n))
                continue
            progress = True
            if unknown and (axis := unknown.pop()):
                times = [part.count(axis) for part in dim.parts]
                ones = {**sizes, axis: 1}
                slope = sum(extent(part, ones) for part, k in zip(dim.parts, times) if k)
                fixed = sum(extent(part, ones) for part, k in zip(dim.parts, times) if not k)
                size, remainder = divmod(n - fixed, slope)
                if remainder or size < 1 or max(times) > 1:
                    known = {x: sizes[x] for x in dim.names if x in sizes}
                    raise ValueError(
                        f"{leaf}: its axis {dim} of size {n} cannot be made of {known}"
                    )
                sizes[axis], source[axis] = size, str(leaf)
            elif (found := sum(extent(part, sizes) for part in dim.parts)) != n:
                why = "".join(
                    f"; {x} = {sizes[x]} (from {source[x]})" for x in dict.fromkeys(dim.names)
                )
                raise ValueError(f"{leaf}: its axis {dim} has size {n}, expected {found}{why}")
        pending = rest
    return sizes


def rescaled(
    old: Leaf, new: Leaf, source: Layout, target: Layout, layers: Mapping[str, Sequence[int]]
) -> dict[str, Vector]:
    """Stack → `[new]` by what a parameter is multiplied because its models divide it differently.

    By sizes, under an empty name, and by the number of its layer.
    """
    sizes = [
        np.prod(
            [
                float(sum(extent(part, layout.extents) for part in one.parts)) ** one.power
                for one in leaf.divisors
                if not one.number
            ]
        )
        for leaf, layout in ((new, target), (old, source))
    ]
    found = {"": np.array([sizes[0] / sizes[1]])} if sizes[0] != sizes[1] else {}
    powers = [
        {one.names[0]: one.power for one in leaf.divisors if one.number} for leaf in (new, old)
    ]
    for stack in powers[0].keys() | powers[1].keys():
        numbers, sources = np.arange(len(layers[stack])), np.asarray(layers[stack])
        by = (numbers + 1.0) ** powers[0].get(stack, 0), (sources + 1.0) ** powers[1].get(stack, 0)
        found[stack] = by[0] / by[1]
    return found
