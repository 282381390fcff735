"""The axes table: what each axis of each parameter of a codebase is.

A table maps a pattern of paths to the axes of the arrays found there, in the order of the array::

    GPT = Axes({
        r"embed/embedding":          "=vocab >embed",
        r"layers/attn/(q|k)/kernel": "#layers <embed >heads >qk",
        r"layers/mlp/down/kernel":   "#layers <mlp >embed+",
        r"final_norm/scale":         "embed",
    })

============  =================================================================================
``<x``        the parameter reads along x
``>x``        it writes x
``>x+``       it writes x and is the last one before the residual addition
``=x``        tied: written as an embedding, read as the head
``x``         it acts elementwise on x (a norm's scale)
``+x``        it is added along x to what a norm gives (a norm's bias)
``#x``        a stack of layers; unrolled layers are a capture ``(?P<x>\\d+)`` of the path instead
``3``         a literal size
``(a b)``     two axes flattened into one, a the slower
``(a b | c)`` axes concatenated
``name: ...`` pairs leaves of two codebases whose paths differ; may use the pattern's groups, ``\\1``
============  =================================================================================

A key reads the axis that its query writes: q ``<embed >heads >qk``, k ``<embed >heads <qk``, and both in one array
``<embed >(heads qk | heads <qk | heads v)``. A bias has the axes of what it is added to.

The first matching row wins, and a pattern must match the whole path, its keys joined by ``/``.
"""

import difflib
import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import jax

from lagjax.algebra.kinds import Kind, Unknown

Params: TypeAlias = Any
"""A pytree of arrays, or of `jax.ShapeDtypeStruct`."""


class Dim(NamedTuple):
    """One axis of an array: `parts` are concatenated, the factors of a part are flattened."""

    role: Literal["<", ">", "=", "#", "+", ""]
    parts: tuple[tuple[str | int, ...], ...]
    residual: bool = False
    own: tuple[tuple[str, ...], ...] = ()
    """For each factor of each part the role it has of its own, or nothing; empty where none has."""

    def roles(self, part: int) -> tuple[str, ...]:
        """The role of each factor of a part."""
        own = self.own[part] if self.own else ("",) * len(self.parts[part])
        return tuple(role or self.role for role in own)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(x for part in self.parts for x in part if isinstance(x, str))

    @property
    def stack(self) -> str | None:
        """The stack of layers that this axis runs along, or None."""
        return self.names[0] if self.role == "#" else None

    def __str__(self) -> str:
        own = self.own or tuple(("",) * len(part) for part in self.parts)
        inner = " | ".join(
            " ".join(f"{role}{x}" for role, x in zip(roles, part))
            for roles, part in zip(own, self.parts)
        )
        brackets = len(self.parts) > 1 or len(self.parts[0]) > 1
        return f"{self.role}{f'({inner})' if brackets else inner}{'+' * self.residual}"


@dataclass(frozen=True)
class Leaf:
    """A parameter with its axes; `layer` says which layer of which unrolled stack it belongs to."""

    path: str
    name: str
    dims: tuple[Dim, ...]
    layer: tuple[tuple[str, int], ...]
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
        sizes: axis → size; an axis that only occurs flattened, and whose size the shapes do not tell, is absent.
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

    def layer_kinds(self, stack: str) -> list[frozenset[tuple[str, Any]]]:
        """For each layer of the stack, the names of the parameters it has: layers of one kind have the same."""
        found: list[set[tuple[str, Any]]] = [set() for _ in range(self.stacks[stack])]
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
        """Binds the table to the shapes of `params` (arrays or `jax.ShapeDtypeStruct`).

        Raises ValueError for a leaf without a row, a row without a leaf, a wrong number of axes, and sizes
        that contradict each other; the message names the leaf and the row.
        """
        leaves: list[Leaf] = []
        used: set[int] = set()
        unmatched: dict[str, str] = {}
        flat = flatten(params)
        if not flat:
            raise ValueError("the parameters are an empty tree; give what the model's init returns")
        for path, value in flat.items():
            for row, (pattern, axes) in enumerate(self.rows):
                if match := re.fullmatch(pattern, path):
                    leaves.append(_bind(path, value, match, axes))
                    used.add(row)
                    break
            else:
                # Layers that lack the same row are told once.
                unmatched.setdefault(_suggestion(path, value), f"{path} {tuple(value.shape)}")
        if unmatched:
            lines = [f"  {leaf}: add {row}" for row, leaf in unmatched.items()]
            raise ValueError("no row of the axes table matches\n" + "\n".join(lines))
        for row, (pattern, _) in enumerate(self.rows):
            if row not in used:
                raise ValueError(self._unused(pattern, list(flat)))
        paired: dict[Any, Leaf] = {}
        for leaf in leaves:
            if (other := paired.setdefault((leaf.name, leaf.layer), leaf)) is not leaf:
                raise ValueError(
                    f"{other} and {leaf} have the same name {leaf.name!r}; set them apart, "
                    "by a group of the pattern for example: 'attn/\\1: axes'"
                )
        return Layout(
            tuple(leaves),
            _sizes(leaves, dict(self.sizes)),
            _stacks(leaves),
            dict(self.kinds),
        )

    def _unused(self, pattern: str, paths: list[str]) -> str:
        for path in paths:
            if re.fullmatch(pattern, path):
                first = next(p for p, _ in self.rows if re.fullmatch(p, path))
                return f"row {pattern!r} is shadowed: {first!r} comes before it and takes {path}; move it up or remove it"
        return (
            f"row {pattern!r} matches no parameter{_nearest(pattern, paths)}; correct or remove it"
        )


_DIM = re.compile(
    r"\s*(?P<role>[<>=#+]?)(?:(?P<one>\w+)|\((?P<many>[^()]*)\))(?P<residual>\+?)(?=\s|$)"
)
_NAME = re.compile(r"\s*(?P<name>[^\s:]+):\s+(?P<axes>.*)", re.DOTALL)


@functools.cache
def parse(text: str) -> tuple[str | None, tuple[Dim, ...]]:
    """Reads one row's axes: the name that pairs leaves, where given, and the axes."""
    name, rest = (match["name"], match["axes"]) if (match := _NAME.match(text)) else (None, text)
    dims: list[Dim] = []
    position = 0
    while rest[position:].strip():
        match = _DIM.match(rest, position)
        if not match:
            raise ValueError(
                f"axes {text!r}: cannot read {rest[position:].strip()!r}; expected axes such as "
                "'#layers <embed >heads', '>(heads qk | heads v)', '3' or '>embed+'"
            )
        words = [part.split() for part in (match["one"] or match["many"]).split("|")]
        own = tuple(tuple(w[0] if w[0] in "<>" else "" for w in part) for part in words)
        parts = tuple(
            tuple(int(x) if x.isdecimal() else x for x in (w.lstrip("<>") for w in part))
            for part in words
        )
        dim = Dim(
            match["role"],  # type: ignore[arg-type]
            parts,
            bool(match["residual"]),
            own if any(map(any, own)) else (),
        )
        if not all(parts) or any(not x.isidentifier() for x in dim.names):
            raise ValueError(
                f"axes {text!r}: {match[0].strip()!r} is empty or has a name that is no identifier"
            )
        if dim.role == "#" and (len(parts) > 1 or len(parts[0]) > 1 or not dim.names):
            raise ValueError(
                f"axes {text!r}: {match[0].strip()!r} is no stack; a stack is one named axis"
            )
        dims.append(dim)
        position = match.end()
    if sum(len(dim.parts) > 1 for dim in dims) > 1:
        raise ValueError(
            f"axes {text!r}: more than one concatenated axis; keep the parts of one and give the other a single name"
        )
    return name, tuple(dims)


def flatten(tree: Params) -> dict[str, Any]:
    """The leaves of a tree by path: keys joined by `/`, without the `value` of Flax's variables and boxes."""
    flat: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        flat[path_of(keys)] = leaf
    return flat


def path_of(keys: Sequence[Any]) -> str:
    """The path of a leaf in the form that tables match."""
    boxed = keys and isinstance(keys[-1], jax.tree_util.GetAttrKey) and keys[-1].name == "value"
    return jax.tree_util.keystr(tuple(keys[:-1] if boxed else keys), simple=True, separator="/")


def length(factor: str | int, sizes: Mapping[str, int]) -> int:
    """The size of one factor of an axis; raises ValueError where it is not known."""
    if isinstance(factor, int):
        return factor
    if factor not in sizes:
        raise ValueError(
            f"the size of axis {factor!r} cannot be told from shapes; give sizes={{{factor!r}: ...}}"
        )
    return sizes[factor]


def extent(part: Sequence[str | int], sizes: Mapping[str, int]) -> int:
    """The size of axes that are flattened into one."""
    return math.prod(length(x, sizes) for x in part)


def _bind(path: str, value: Any, match: re.Match[str], axes: str) -> Leaf:
    name, dims = parse(axes)
    pattern, shape = match.re.pattern, tuple(value.shape)
    if len(dims) != len(shape):
        raise ValueError(
            f"{path} has shape {shape}, {len(shape)} axes, but its row {pattern!r} gives {len(dims)}: {axes!r}"
        )
    layer = []
    for stack, text in match.groupdict().items():
        if text is None or not text.isdecimal():
            raise ValueError(
                f"row {pattern!r} captures {stack}={text!r} from {path}; a layer's number was expected"
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
                f"stack {stack!r} has no layer {missing[0]}, though {last} exists; layers count from 0"
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


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), 1, cutoff=0.4)
    return f"; the nearest is {close[0]!r}" if close else ""


def _suggestion(path: str, value: Any) -> str:
    escaped = re.sub(r"([.+*?()\[\]])", r"\\\1", path)
    # Only the first number is the layer's: T5's second one, `block/0/layer/1`, is literal.
    pattern = re.sub(r"(?<=[/_])\d+(?=/)", r"(?P<layers>\\d+)", escaped, count=1)
    return f'r"{pattern}": "{" ".join(["?"] * len(value.shape))}"'
