"""The notation of the axes table: how a row says what the axes of an array are, in its order.

================  ==============================================================================
``<x``            the parameter reads along x
``>x``            it writes x
``>x+``           it writes x and is the last one before the residual addition
``>x*``           it writes x, and what it writes is multiplied or normed by the last one, marked +
``=x``            tied: written as an embedding, read as the head
``x``             the scale of a norm over x
``1+x``           the same, stored as its distance from 1, as Gemma does
``*x``            it multiplies what is along x: LayerScale, a gate, the scale of a batch norm,
                  which is no norm over x
``+x``            it is added along x to what a norm gives (a norm's bias)
``~x``            no parameter but a statistic of what is along x: a running mean
``~x^2``          a statistic of order 2: a running variance
``~``             state that is no parameter and has no axes, or those beside it: a count
``#x``            a stack of layers; layers of their own are a capture ``(?P<x>\\d+)`` of the path
``3``             a literal size
``(a b)``         two axes flattened into one, a the slower
``(a b | c)``     axes concatenated
``(a (b | c))``   axes concatenated within a flattened one: for every a first b, then c
``/x^0.5``        the model divides it by the root of x's size, or of a sum's, ``/(a | b)^0.5``
``/#x``           it divides it by the number of its layer in the stack x, counted from 1
``name: ...``     pairs leaves of two codebases whose paths differ; may use its groups, ``\\1``
================  ==============================================================================

A capture whose name has a kind counts no layers but the entries of that axis, in front of all
others: experts that are modules.

A key reads the axis that its query writes: q ``<embed >heads >qk``, k ``<embed >heads <qk``, and
both in one array ``<embed >(heads qk | heads <qk | heads v)``. A bias has the axes of what it is
added to. What depends on a size is said with the parameter that it multiplies: outputs times
√(1/layers) are ``<mlp >embed+ /layers^0.5``.

A statistic grows as what it is of: where activations become R x, their mean becomes R times what it
was, and their variance, of order 2, is multiplied by the squares of R's factors.
"""

import functools
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

Part: TypeAlias = tuple[str | int, ...]


class Dim(NamedTuple):
    """One axis of an array: `parts` are concatenated, the factors of a part are flattened."""

    role: Literal["<", ">", "=", "#", "+", "*", "~", ""]
    parts: tuple[Part, ...]
    residual: bool = False
    own: tuple[tuple[str, ...], ...] = ()
    """For each factor of each part the role it has of its own, or nothing; empty where none has."""
    order: int = 1
    """Of a statistic along it."""
    multiplied: bool = False
    """Whether what is written is multiplied or normed before it is added to a stream."""
    offset: float = 0.0
    """What the model adds to the values before it multiplies by them."""
    around: tuple[int, int] = (0, 0)
    """How many factors, before and behind, all parts have in common, once for all."""

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

    @property
    def folding(self) -> tuple[object, ...]:
        """In what order its entries lie."""
        return self.parts, self.around

    def __str__(self) -> str:
        own = self.own or tuple(("",) * len(part) for part in self.parts)
        written = [
            [f"{role}{x}" for role, x in zip(roles, part)] for roles, part in zip(own, self.parts)
        ]
        (before, behind), ends = self.around, len(self.parts[0]) - self.around[1]
        inner = " | ".join(" ".join(part[before : len(part) - behind]) for part in written)
        if before or behind:
            inner = " ".join([*written[0][:before], f"({inner})", *written[0][ends:]])
        brackets = len(self.parts) > 1 or len(self.parts[0]) > 1
        order = f"^{self.order}" if self.order > 1 else ""
        role = f"{self.offset:g}+" if self.offset else self.role
        marks = "+" * self.residual + "*" * self.multiplied
        return f"{role}{f'({inner})' if brackets else inner}{marks}{order}"


class Divisor(NamedTuple):
    """A factor of the model's own: it divides a parameter by the power of a size, or of a number.

    `parts` are added, the factors of a part multiplied; `number` says that the one stack's layers
    are counted instead, from 1.
    """

    parts: tuple[Part, ...]
    power: float = 1.0
    number: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(x for part in self.parts for x in part if isinstance(x, str))

    def __str__(self) -> str:
        inner = " | ".join(" ".join(map(str, part)) for part in self.parts)
        brackets = len(self.parts) > 1 or len(self.parts[0]) > 1
        power = f"^{self.power:g}" if self.power != 1 else ""
        return f"/{'#' * self.number}{f'({inner})' if brackets else inner}{power}"


class Row(NamedTuple):
    """One row's axes: the name that pairs leaves, where given, the axes, and what divides."""

    name: str | None
    dims: tuple[Dim, ...]
    divisors: tuple[Divisor, ...] = ()

    def __str__(self) -> str:
        name = f"{self.name}: " if self.name else ""
        return name + " ".join(map(str, (*self.dims, *self.divisors)))


_INNER = r"(?:\w+|\((?:[^()]|\([^()]*\))*\))"
_TOKEN = re.compile(
    rf"\s*(?:(?P<slash>/#?)|(?P<one>1\+)|(?P<role>[<>=#+~*]?))(?P<inner>{_INNER})"
    r"(?P<mark>[+*]?)(?:\^(?P<power>-?\d*\.?\d+))?(?=\s|$)"
)
_NESTED = re.compile(r"(?P<before>[^()|]*)\((?P<parts>[^()]*)\)(?P<behind>[^()|]*)")
_NAME = re.compile(r"\s*(?P<name>[^\s:]+):\s+(?P<axes>.*)", re.DOTALL)
_ALONE = re.compile(r"(?<!\S)~(?!\S)")


def of_state(text: str) -> bool:
    """Whether a row is of state that is no parameter."""
    return "~" in _axes(text)[1]


@functools.cache
def parse(text: str) -> Row:
    """Reads one row; raises ValueError for what cannot be read, with the text."""
    name, rest = _axes(text)
    rest = _ALONE.sub("", rest)
    dims: list[Dim] = []
    divisors: list[Divisor] = []
    position = 0
    while rest[position:].strip():
        match = _TOKEN.match(rest, position)
        if not match:
            raise ValueError(
                f"axes {text!r}: cannot read {rest[position:].strip()!r}; expected axes such as "
                "'#layers <embed >heads', '>(heads qk | heads v)', '3' or '>embed+'"
            )
        words, around = _words(match["inner"])
        if not all(words) or any(not x.isidentifier() for w in words for x in _named(w)):
            raise ValueError(
                f"axes {text!r}: {match[0].strip()!r} is empty or has a name that is no identifier"
            )
        if match["slash"]:
            divisors.append(_divisor(text, match, words))
        else:
            dims.append(_dim(text, match, words, around))
        position = match.end()
    if sum(len(dim.parts) > 1 for dim in dims) > 1:
        raise ValueError(
            f"axes {text!r}: more than one concatenated axis; keep the parts of one and give the "
            "other a single name"
        )
    return Row(name, tuple(dims), tuple(divisors))


def _words(inner: str) -> tuple[list[list[str]], tuple[int, int]]:
    """The words of each concatenated part, and how many of them stand once for all parts."""
    bare = inner[1:-1] if inner.startswith("(") else inner
    if match := _NESTED.fullmatch(bare):
        before, behind = match["before"].split(), match["behind"].split()
        parts = [[*before, *part.split(), *behind] for part in match["parts"].split("|")]
        return parts, (len(before), len(behind)) if len(parts) > 1 else (0, 0)
    return [part.split() for part in bare.split("|")], (0, 0)


def _named(words: Sequence[str]) -> list[str]:
    """The names among the words of a part, without their roles."""
    bare = [word.lstrip("<>") for word in words]
    return [word for word in bare if not word.isdecimal()]


def _part(words: Sequence[str]) -> Part:
    return tuple(int(x) if x.isdecimal() else x for x in (word.lstrip("<>") for word in words))


def _dim(text: str, match: re.Match[str], words: list[list[str]], around: tuple[int, int]) -> Dim:
    said, power = match[0].strip(), match["power"]
    own = tuple(tuple(w[0] if w[0] in "<>" else "" for w in part) for part in words)
    dim = Dim(
        match["role"] or "",  # type: ignore[arg-type]
        tuple(map(_part, words)),
        match["mark"] == "+",
        own if any(map(any, own)) else (),
        int(power) if power and power.isdecimal() else 1,
        match["mark"] == "*",
        1.0 if match["one"] else 0.0,
        around,
    )
    if power and (dim.role != "~" or power != str(dim.order) or not dim.order):
        raise ValueError(
            f"axes {text!r}: {said!r} has an order that is 0 or of no statistic; "
            "only those have one, and it counts from 1: '~embed^2'"
        )
    if dim.role == "#" and (len(words) > 1 or len(words[0]) > 1 or not dim.names):
        raise ValueError(f"axes {text!r}: {said!r} is no stack; a stack is one named axis")
    if dim.multiplied and dim.role != ">":
        raise ValueError(
            f"axes {text!r}: {said!r} is marked as multiplied later, which only what writes can "
            "be; what multiplies has the star in front: '*embed'"
        )
    return dim


def _divisor(text: str, match: re.Match[str], words: list[list[str]]) -> Divisor:
    power, number = match["power"], match["slash"] == "/#"
    made = Divisor(tuple(map(_part, words)), float(power or 1), number)
    if match["mark"] or number and (len(words) > 1 or len(words[0]) > 1):
        raise ValueError(
            f"axes {text!r}: cannot read {match[0].strip()!r}; what the model divides by is "
            "written as '/layers^0.5', '/(heads v)^0.5' or '/#layers'"
        )
    return made


def _axes(text: str) -> tuple[str | None, str]:
    match = _NAME.match(text)
    return (match["name"], match["axes"]) if match else (None, text)
