"""Uses: a growing axis with all that has it, as the rules of kinds see it, and what rules share."""

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from lagjax.algebra.maps import AxisMap, Vector

Why: TypeAlias = tuple[str | None, str]
"""The parameter that is to blame for a violation, or None, and the reason."""
Need: TypeAlias = tuple[
    Literal["epsilon", "logits", "top", "frequencies", "inputs"], float | tuple[int, ...]
]
"""What the large model must do differently, as in `proof.Requirement`, and the value."""

MEANS = "means are no copies"


class Part(NamedTuple):
    """One unfolded part of a parameter: its name, and the name and role of each of its axes."""

    leaf: str
    axes: tuple[tuple[str | int, str], ...]
    residual: bool = False
    """Whether it is the last one before the addition to a stream."""


class Uses(NamedTuple):
    """A growing axis.

    Attributes:
        axis: its name.
        map: how it grows.
        parts: of all of the large model's parameters.
        alike: the axes of the same kind.
        made: whether the small model lacks the axis.
    """

    axis: str
    map: AxisMap
    parts: tuple[Part, ...]
    alike: frozenset[str] = frozenset()
    made: bool = False

    @property
    def roles(self) -> list[tuple[str, str]]:
        """The name of each parameter that has the axis, and its role there."""
        return [(p.leaf, role) for p in self.parts for name, role in p.axes if name == self.axis]

    def first(self, *roles: str) -> str | None:
        """The first parameter that has the axis in one of these roles, or in any."""
        return next((leaf for leaf, role in self.roles if not roles or role in roles), None)

    @property
    def tied(self) -> str | None:
        """The table that is both written along the axis and read as the head."""
        for part in self.parts:
            if (self.axis, ">") in part.axes and any(role == "=" for _, role in part.axes):
                return part.leaf
        return None

    @property
    def silent(self) -> Vector:
        """`[new]` which entries are read and hold what comes of 0."""
        silent: Vector = self.map.fresh & (self.map.writes == 0) & (self.map.reads != 0)
        return silent

    def acting(self) -> Iterator[Why]:
        """A norm's scale, on an axis that is said to meet no norm; a factor, on means."""
        for part in self.parts:
            roles = dict(part.axes)
            if roles.get(self.axis) == "" and not set(roles.values()) & {"<", ">", "="}:
                why = f"is the scale of a norm, and {self.axis!r} is said to meet none"
                yield part.leaf, f"{why}; if it only multiplies, write '*{self.axis}'"
        yield from self.factors()

    def factors(self) -> Iterator[Why]:
        """What acts entry by entry allows no means: a norm before the addition gives none."""
        for part in self.parts if self.map.mean.any() else ():
            role = dict(part.axes).get(self.axis)
            if role == "*" or role in ("", "+") and part.residual:
                yield part.leaf, f"acts entry by entry on what is added: {MEANS}"

    def unread(self) -> Iterator[Why]:
        """What is written and then read must be read by something."""
        if not self.first("<"):
            yield (
                self.first(),
                "nothing reads along it; mark what does with '<', a key too: '<embed >heads <qk'",
            )

    def not_whole(self, what: str) -> Iterator[Why]:
        """What is not linear allows only copies as they are."""
        if (self.map.scale[~self.map.fresh] != 1).any() or self.map.mean.any():
            yield None, f"{what} is not linear: copies must be whole"

    def uncancelled(self) -> Iterator[Why]:
        """What readers take of new entries must cancel over those that hold the same."""
        made, totals = self.map, np.zeros(self.map.new)
        np.add.at(totals, made.twin[made.fresh], (made.writes * made.reads)[made.fresh])
        if not np.allclose(totals, 0, atol=1e-12):
            yield self.first("<"), "new entries are written and read"
