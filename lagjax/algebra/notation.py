"""The notation of the axes table: how a row says what the axes of an array are, in its order.

============  =================================================================================
``<x``        the parameter reads along x
``>x``        it writes x
``>x+``       it writes x and is the last one before the residual addition
``=x``        tied: written as an embedding, read as the head
``x``         it acts elementwise on x (a norm's scale)
``+x``        it is added along x to what a norm gives (a norm's bias)
``~x``        no parameter but a statistic of what is along x: a running mean
``~x^2``      a statistic of order 2: a running variance
``~``         state that is no parameter and has no axes, or those beside it: a count
``#x``        a stack of layers; unrolled layers are a capture ``(?P<x>\\d+)`` of the path instead
``3``         a literal size
``(a b)``     two axes flattened into one, a the slower
``(a b | c)`` axes concatenated
``name: ...`` pairs leaves of two codebases whose paths differ; may use its groups, ``\\1``
============  =================================================================================

A key reads the axis that its query writes: q ``<embed >heads >qk``, k ``<embed >heads <qk``, and
both in one array ``<embed >(heads qk | heads <qk | heads v)``. A bias has the axes of what it is
added to.

A statistic grows as what it is of: where activations become R x, their mean becomes R times what it
was, and their variance, of order 2, is multiplied by the squares of R's factors.
"""

import functools
import re
from typing import Literal, NamedTuple


class Dim(NamedTuple):
    """One axis of an array: `parts` are concatenated, the factors of a part are flattened."""

    role: Literal["<", ">", "=", "#", "+", "~", ""]
    parts: tuple[tuple[str | int, ...], ...]
    residual: bool = False
    own: tuple[tuple[str, ...], ...] = ()
    """For each factor of each part the role it has of its own, or nothing; empty where none has."""
    order: int = 1
    """Of a statistic along it."""

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
        order = f"^{self.order}" if self.order > 1 else ""
        return f"{self.role}{f'({inner})' if brackets else inner}{'+' * self.residual}{order}"


_DIM = re.compile(
    r"\s*(?P<role>[<>=#+~]?)(?:(?P<one>\w+)|\((?P<many>[^()]*)\))(?P<residual>\+?)"
    r"(?:\^(?P<order>\d+))?(?=\s|$)"
)
_NAME = re.compile(r"\s*(?P<name>[^\s:]+):\s+(?P<axes>.*)", re.DOTALL)
_ALONE = re.compile(r"(?<!\S)~(?!\S)")


def of_state(text: str) -> bool:
    """Whether a row is of state that is no parameter."""
    return "~" in _axes(text)[1]


@functools.cache
def parse(text: str) -> tuple[str | None, tuple[Dim, ...]]:
    """Reads one row's axes: the name that pairs leaves, where given, and the axes."""
    name, rest = _axes(text)
    rest = _ALONE.sub("", rest)
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
            int(match["order"] or 1),
        )
        if not all(parts) or any(not x.isidentifier() for x in dim.names):
            raise ValueError(
                f"axes {text!r}: {match[0].strip()!r} is empty or has a name that is no identifier"
            )
        if match["order"] and (dim.role != "~" or not dim.order):
            raise ValueError(
                f"axes {text!r}: {match[0].strip()!r} has an order that is 0 or of no statistic; "
                "only those have one, and it counts from 1: '~embed^2'"
            )
        if dim.role == "#" and (len(parts) > 1 or len(parts[0]) > 1 or not dim.names):
            raise ValueError(
                f"axes {text!r}: {match[0].strip()!r} is no stack; a stack is one named axis"
            )
        dims.append(dim)
        position = match.end()
    if sum(len(dim.parts) > 1 for dim in dims) > 1:
        raise ValueError(
            f"axes {text!r}: more than one concatenated axis; keep the parts of one and give the "
            "other a single name"
        )
    return name, tuple(dims)


def _axes(text: str) -> tuple[str | None, str]:
    match = _NAME.match(text)
    return (match["name"], match["axes"]) if match else (None, text)
