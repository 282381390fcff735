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
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lagjax.algebra.kinds import Kind, LayerTypes
from lagjax.algebra.layout import (
    Layout,
    Leaf,
    Params,
    Place,
    flatten,
    sizes_of,
    stacks_of,
)
from lagjax.algebra.notation import Dim, of_state, parse


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
            if not isinstance(pattern, str) or not isinstance(axes, str):
                raise ValueError(  # noqa: TRY004
                    f"row {pattern!r}: {axes!r} is not a pattern and its axes as text; write "
                    "'layers/up': '#layers <embed >mlp'"
                )
            try:
                captures = set(re.compile(pattern).groupindex)
            except re.error as error:
                raise ValueError(f"row {pattern!r}: not a regular expression ({error})") from None
            row = parse(axes)
            named |= captures | {x for dim in row.dims for x in dim.names}
        for what, given in (("kinds", dict(self.kinds)), ("sizes", dict(self.sizes))):
            for axis in given:
                if axis not in named:
                    raise ValueError(
                        f"{what} names the axis {axis!r}, which no row has{_nearest(axis, named)}"
                    )

    def layout(self, params: Params) -> Layout:
        """Binds the table's rows of parameters to their shapes.

        `params` are arrays or `jax.ShapeDtypeStruct`.

        A stack of which no row has a leaf has no layers here; whether it has some in the other
        model is the plan's to check.

        Raises ValueError for a leaf without a row, any other row without a leaf, a wrong number of
        axes, and sizes that contradict each other; the message names the leaf and the row.
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
        leaves = _arrays(params)
        given = {leaf.path: leaf for leaf in leaves}
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
            empty = any(params.stacks.get(stack) == 0 for stack in self._stacks(row))
            if of_these and row not in used and not empty:
                raise ValueError(self._unused(pattern, list(shapes)))
        return self._bound([*leaves, *(found[path] for path in shapes)])

    def _stacks(self, row: int) -> set[str]:
        """The stacks of layers that a row is part of."""
        pattern, axes = self.rows[row]
        captured = set(re.compile(pattern).groupindex)
        unrolled = {name for name in captured if _of_layers(dict(self.kinds).get(name))}
        return unrolled | {dim.stack for dim in parse(axes).dims if dim.stack}

    def _bound(self, arrays: list[Leaf]) -> Layout:
        kinds = dict(self.kinds)
        paired: dict[tuple[str, Place], list[Leaf]] = {}
        for leaf in arrays:
            unrolled = [axis for axis, _ in leaf.layer if not _of_layers(kinds.get(axis))]
            if len(unrolled) > 1:
                raise ValueError(f"{leaf.path}: {unrolled} are unrolled in one path; only one can")
            layer = tuple(item for item in leaf.layer if item[0] not in unrolled)
            paired.setdefault((leaf.name, layer), []).append(leaf)
        leaves: list[Leaf] = []
        parts: dict[str, tuple[str, ...]] = {}
        for (name, layer), (leaf, *others) in paired.items():
            if layer != leaf.layer:
                entries = _entries([leaf, *others], layer)
                parts[entries[0].path] = tuple(one.path for one in entries)
                (axis,) = dict(leaf.layer).keys() - dict(layer).keys()
                leaves.append(
                    dataclasses.replace(
                        entries[0],
                        dims=(Dim("", ((axis,),)), *leaf.dims),
                        layer=layer,
                        shape=(len(entries), *leaf.shape),
                    )
                )
                continue
            if others:
                raise ValueError(
                    f"{leaf} and {others[0]} have the same name {name!r}; set them apart, "
                    "by a group of the pattern for example: 'attn/\\1: axes'"
                )
            leaves.append(leaf)
        stacks = stacks_of(leaves)
        # What is stacked over no layers is of any size.
        sizes = sizes_of([leaf for leaf in leaves if _filled(leaf)], dict(self.sizes))
        for row, (_, axes) in enumerate(self.rows):
            if not of_state(axes):
                stacks = dict.fromkeys(self._stacks(row), 0) | stacks
        for leaf in leaves:
            for divisor in leaf.divisors:
                if divisor.number and divisor.names[0] not in leaf.stacks:
                    raise ValueError(
                        f"{leaf} is divided by the number of its layer, {divisor}, but is part of "
                        f"the stacks {list(leaf.stacks)}; name one of these"
                    )
                if lacking := set(divisor.names) - sizes.keys() - stacks.keys():
                    raise ValueError(
                        f"{leaf} is divided by {divisor}, but no row has {sorted(lacking)}, and no "
                        "size is given; name an axis or a stack of the table, or give sizes="
                    )
        paths = tuple(leaf.path for leaf in arrays)
        variances = [dim for _, text in self.rows for dim in parse(text).dims if dim.order == 2]
        normed = frozenset(name for dim in variances for name in dim.names)
        return Layout(tuple(leaves), sizes, stacks, kinds, normed, parts, paths)

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
    rows = [row for row, (_, axes) in enumerate(table.rows) if not of_state(axes)]
    there = {stack for row in rows if row in used for stack in table._stacks(row)}
    unused = [row for row in rows if row not in used]
    try:
        layout = table._bound(list(leaves.values()))
    except ValueError:
        # What took the place of a row that is not used may be what does not fit.
        for row in unused:
            if table._stacks(row) <= there:
                raise ValueError(table._unused(table.rows[row][0], list(leaves))) from None
        raise
    for row in unused:
        if all(layout.stacks[stack] for stack in table._stacks(row)):
            raise ValueError(table._unused(table.rows[row][0], list(leaves)))
    return layout


def _shapes(tree: Params) -> dict[str, jax.ShapeDtypeStruct]:
    found = {}
    for path, value in flatten(tree).items():
        if isinstance(value, str | bytes) or not hasattr(value, "dtype") and np.ndim(value):
            raise ValueError(
                f"{path} is {value!r:.60}, which is neither an array nor a number; keep it out of "
                "the parameters"
            )
        # A Python number is what JAX would make of it.
        dtype = value.dtype if hasattr(value, "dtype") else jnp.result_type(value)
        found[path] = jax.ShapeDtypeStruct(np.shape(value), dtype)
    return found


def _of_layers(kind: Kind | None) -> bool:
    """Whether a number in a path counts layers: it counts the entries of an axis with a kind."""
    return kind is None or isinstance(kind, LayerTypes)


def _filled(leaf: Leaf) -> bool:
    return not any(dim.stack and size == 0 for dim, size in zip(leaf.dims, leaf.shape))


def _entries(arrays: list[Leaf], layer: Place) -> list[Leaf]:
    """The arrays of one leaf, in the order of the entries of the axis that is unrolled."""
    (axis,) = dict(arrays[0].layer).keys() - dict(layer).keys()
    ordered = sorted(arrays, key=lambda leaf: dict(leaf.layer)[axis])
    if [dict(leaf.layer)[axis] for leaf in ordered] != list(range(len(ordered))):
        raise ValueError(
            f"axis {axis!r} is unrolled over {[leaf.path for leaf in ordered]}; its entries must "
            "count from 0, each once"
        )
    first = ordered[0]
    for leaf in ordered:
        if (leaf.shape, leaf.dtype, leaf.dims) != (first.shape, first.dtype, first.dims):
            raise ValueError(
                f"{first} and {leaf} are entries of the axis {axis!r}; they must be alike"
            )
    return ordered


def _arrays(layout: Layout) -> list[Leaf]:
    """A leaf for each array, as they were before those of an unrolled axis were put together."""
    found = {}
    for leaf in layout.leaves:
        if leaf.path not in layout.unrolled:
            found[leaf.path] = leaf
            continue
        (axis,), dims, shape = leaf.dims[0].names, leaf.dims[1:], leaf.shape[1:]
        for number, path in enumerate(layout.unrolled[leaf.path]):
            layer = (*leaf.layer, (axis, number))
            found[path] = dataclasses.replace(leaf, path=path, dims=dims, shape=shape, layer=layer)
    return [found[path] for path in layout.paths]


def _bind(path: str, value: jax.ShapeDtypeStruct, match: re.Match[str], axes: str) -> Leaf:
    name, dims, divisors = parse(axes)
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
                f"row {pattern!r} captures {stack}={text!r} from {path}; a number was expected"
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
    return Leaf(path, name, dims, tuple(layer), shape, value.dtype, divisors)


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1, cutoff=0.4)
    return f"; the nearest is {close[0]!r}" if close else ""


def _suggestion(path: str, shape: jax.ShapeDtypeStruct, axis: str = "?") -> str:
    escaped = re.sub(r"([.+*?()\[\]])", r"\\\1", path)
    # Only the first number is the layer's: T5's second one, `block/0/layer/1`, is literal.
    pattern = re.sub(r"(?<=[/_])\d+(?=/)", r"(?P<layers>\\d+)", escaped, count=1)
    return f'r"{pattern}": "{" ".join([axis] * len(shape.shape)) or axis.strip("?")}"'
