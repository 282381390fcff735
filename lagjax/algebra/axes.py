"""The axes table: what each axis of each parameter of a codebase is.

A table maps a pattern of paths to the axes of the arrays found there, in the order of the array::

    GPT = Axes({
        r"embed/embedding":          "=vocab >embed",
        r"layers/attn/(q|k)/kernel": "#layers <embed >heads >qk",
        r"layers/mlp/down/kernel":   "#layers <mlp >embed+",
        r"final_norm/scale":         "embed",
    })

`notation` says how. A row with ``~`` is of state that is no parameter, such as batch statistics;
its pattern matches the path behind the name of the collection, ``batch_stats/norm/mean``. State
without a row of its own is a copy of a parameter, under its path: ``ema/embed/embedding``.

The first matching row wins, and a pattern must match the whole path, its keys joined by ``/``.
"""

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
from numpy.typing import NDArray

from lagjax.algebra.kinds import Kind, Unknown
from lagjax.algebra.notation import Dim, of_state, parse

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
    """A parameter with its axes; `layer` says which layer of which unrolled stack it belongs to."""

    path: str
    name: str
    dims: tuple[Dim, ...]
    layer: Place
    shape: tuple[int, ...]
    dtype: Any

    @property
    def residual(self) -> bool:
        """Whether its output is added to the residual stream."""
        return any(dim.residual for dim in self.dims)

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
        stacks: stack → number of layers.
        kinds: axis → what it meets on the way.
    """

    leaves: tuple[Leaf, ...]
    sizes: Mapping[str, int]
    stacks: Mapping[str, int]
    kinds: Mapping[str, Kind]

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

    def layer_kinds(self, stack: str) -> list[LayerKind]:
        """For each layer of the stack the names of its parameters, equal for layers of a kind."""
        found: list[set[tuple[str, Place]]] = [set() for _ in range(self.stacks[stack])]
        for leaf in self.leaves:
            others = tuple(item for item in leaf.layer if item[0] != stack)
            for one, index in leaf.layer:
                if one == stack:
                    found[index].add((leaf.name, others))
            if any(dim.stack == stack for dim in leaf.dims):
                for kind in found:
                    kind.add((leaf.name, others))
        return [frozenset(kind) for kind in found]


@dataclass(frozen=True, init=False)
class Axes:
    """What each axis of each parameter of a codebase is; frozen and hashable.

    Args:
        rows: pattern of paths → axes, the first match wins.
        kinds: axis → one of `lagjax.algebra.kinds`, from which exactness is proved.
        sizes: sizes that shapes cannot tell, such as the heads inside a flattened axis.
    """

    rows: tuple[tuple[str, str], ...]
    kinds: tuple[tuple[str, Kind], ...]
    sizes: tuple[tuple[str, int], ...]

    def __init__(
        self,
        rows: Mapping[str, str],
        kinds: Mapping[str, Kind] | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        object.__setattr__(self, "rows", tuple(rows.items()))
        object.__setattr__(self, "kinds", tuple((kinds or {}).items()))
        object.__setattr__(self, "sizes", tuple((sizes or {}).items()))
        named: set[str] = set()
        for pattern, axes in self.rows:
            try:
                captures = set(re.compile(pattern).groupindex)
            except re.error as error:
                raise ValueError(f"row {pattern!r}: not a regular expression ({error})") from None
            named |= captures | {x for dim in parse(axes)[1] for x in dim.names}
        for what, given in (("kinds", dict(self.kinds)), ("sizes", dict(self.sizes))):
            for axis in given:
                if axis not in named:
                    raise ValueError(
                        f"{what} names the axis {axis!r}, which no row has{_nearest(axis, named)}"
                    )

    def layout(self, params: Params) -> Layout:
        """Binds the table's rows of parameters to their shapes.

        `params` are arrays or `jax.ShapeDtypeStruct`.

        Raises ValueError for a leaf without a row, a row without a leaf, a wrong number of axes,
        and sizes that contradict each other; the message names the leaf and the row.
        """
        shapes = _shapes(params)
        if not shapes:
            raise ValueError("the parameters are an empty tree; give what the model's init returns")
        return _layout(self, tuple(shapes.items()))

    def with_state(self, params: Layout, collections: Mapping[str, Params]) -> Layout:
        """The layout of parameters and, behind them, of state that is none, by collection.

        The path and name of each leaf begin with its collection's. One without a row of its own is
        a copy of the parameter at its path, and has its axes.

        Raises ValueError for a leaf that has neither row nor parameter, a row of one of these
        collections without a leaf, and as `layout` does.
        """
        given, leaves = {leaf.path: leaf for leaf in params.leaves}, list(params.leaves)
        shapes = {
            f"{name}/{path}": shape
            for name, tree in collections.items()
            for path, shape in _shapes(tree).items()
        }
        found, used, missing = self._matched(shapes, state=True)
        for path, shape in missing.items():
            collection, _, of = path.partition("/")
            like = given.get(of)
            if like is None or like.shape != shape.shape:
                has = f"{like} is a parameter" if like else f"{of!r} is no parameter"
                raise ValueError(
                    f"no row of the axes table matches the state {path} {shape.shape}, and {has}; "
                    f"add {_suggestion(path, shape, '~?')}"
                )
            name = f"{collection}/{like.name}"
            found[path] = dataclasses.replace(like, path=path, name=name, dtype=shape.dtype)
        for row, (pattern, axes) in enumerate(self.rows):
            of_these = of_state(axes) and pattern.partition("/")[0] in collections
            if of_these and row not in used:
                raise ValueError(self._unused(pattern, list(shapes)))
        return self._bound([*leaves, *(found[path] for path in shapes)])

    def _bound(self, leaves: list[Leaf]) -> Layout:
        paired: dict[tuple[str, Place], Leaf] = {}
        for leaf in leaves:
            if (other := paired.setdefault((leaf.name, leaf.layer), leaf)) is not leaf:
                raise ValueError(
                    f"{other} and {leaf} have the same name {leaf.name!r}; set them apart, "
                    "by a group of the pattern for example: 'attn/\\1: axes'"
                )
        sizes, stacks = _sizes(leaves, dict(self.sizes)), _stacks(leaves)
        return Layout(tuple(leaves), sizes, stacks, dict(self.kinds))

    def _matched(
        self, shapes: Mapping[str, jax.ShapeDtypeStruct], state: bool
    ) -> tuple[dict[str, Leaf], set[int], dict[str, jax.ShapeDtypeStruct]]:
        """The leaves that rows match, the numbers of these rows, and what no row matches."""
        rows = [(i, *row) for i, row in enumerate(self.rows) if of_state(row[1]) is state]
        leaves: dict[str, Leaf] = {}
        used, missing = set(), {}
        for path, shape in shapes.items():
            for number, pattern, axes in rows:
                if match := re.fullmatch(pattern, path):
                    leaves[path] = _bind(path, shape, match, axes)
                    used.add(number)
                    break
            else:
                missing[path] = shape
        return leaves, used, missing

    def _unused(self, pattern: str, paths: list[str]) -> str:
        for path in paths:
            if re.fullmatch(pattern, path):
                first = next(p for p, _ in self.rows if re.fullmatch(p, path))
                return (
                    f"row {pattern!r} is shadowed: {first!r} comes before it and takes {path}; "
                    "move it up or remove it"
                )
        return (
            f"row {pattern!r} matches no parameter{_nearest(pattern, paths)}; correct or remove it"
        )


@functools.lru_cache(maxsize=128)
def _layout(table: Axes, shapes: tuple[tuple[str, jax.ShapeDtypeStruct], ...]) -> Layout:
    # Cached, because every candidate of a pool asks for the same.
    leaves, used, missing = table._matched(dict(shapes), state=False)
    if missing:
        # Layers that lack the same row are told once.
        told: dict[str, str] = {}
        for path, shape in missing.items():
            told.setdefault(_suggestion(path, shape), f"  {path} {shape.shape}")
        lines = [f"{leaf}: add {row}" for row, leaf in told.items()]
        raise ValueError("no row of the axes table matches\n" + "\n".join(lines))
    for row, (pattern, axes) in enumerate(table.rows):
        if row not in used and not of_state(axes):
            raise ValueError(table._unused(pattern, list(leaves)))
    return table._bound(list(leaves.values()))


def _shapes(tree: Params) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        path: jax.ShapeDtypeStruct(tuple(value.shape), value.dtype)
        for path, value in flatten(tree).items()
    }


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


def _bind(path: str, value: jax.ShapeDtypeStruct, match: re.Match[str], axes: str) -> Leaf:
    name, dims = parse(axes)
    pattern, shape = match.re.pattern, tuple(value.shape)
    if len(dims) != len(shape):
        raise ValueError(
            f"{path} has shape {shape}, {len(shape)} axes, but its row {pattern!r} gives "
            f"{len(dims)}: {axes!r}"
        )
    layer = []
    for stack, text in match.groupdict().items():
        if text is None or not text.isdecimal():
            raise ValueError(
                f"row {pattern!r} captures {stack}={text!r} from {path}; a layer's number was "
                "expected"
            )
        layer.append((stack, int(text)))
    if name is None:
        # A template of the path: the same for all layers of a stack.
        spans = sorted((match.start(stack), match.end(stack), stack) for stack, _ in layer)
        pieces, start = [], 0
        for begin, end, stack in spans:
            pieces += [path[start:begin], "{", stack, "}"]
            start = end
        name = "".join([*pieces, path[start:]])
    else:
        name = match.expand(name)
    return Leaf(path, name, dims, tuple(layer), shape, value.dtype)


def _stacks(leaves: Sequence[Leaf]) -> dict[str, int]:
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


def _sizes(leaves: Sequence[Leaf], given: Mapping[str, int]) -> dict[str, int]:
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


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1, cutoff=0.4)
    return f"; the nearest is {close[0]!r}" if close else ""


def _suggestion(path: str, shape: jax.ShapeDtypeStruct, axis: str = "?") -> str:
    escaped = re.sub(r"([.+*?()\[\]])", r"\\\1", path)
    # Only the first number is the layer's: T5's second one, `block/0/layer/1`, is literal.
    pattern = re.sub(r"(?<=[/_])\d+(?=/)", r"(?P<layers>\\d+)", escaped, count=1)
    return f'r"{pattern}": "{" ".join([axis] * len(shape.shape)) or axis.strip("?")}"'
