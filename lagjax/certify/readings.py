"""Readings: what a table should have said, found by experiment.

Where every parameter is as planned and outputs differ all the same, the table tells of another
model. Each row, kind and word is then read otherwise, one at a time; the model is grown again by
the changed table, and only a reading with which outputs agree is named.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import LayerTypes
from lagjax.algebra.notation import Dim, Divisor, Row, of_state, parse
from lagjax.algebra.plan import Plan
from lagjax.algebra.proof import Violation
from lagjax.algebra.words import Layer, Word

Tables: TypeAlias = tuple[Axes, Axes]
"""Of the small model and of the large one."""
Texts: TypeAlias = dict[str, str]
"""Pattern of a row → its text, in both tables."""
Off: TypeAlias = Callable[[Tables], float]
"""How far the outputs of a model that is grown by these tables are from the small one's."""

ELEMENTWISE = {
    "": ("1+", "*", "+", ">"),
    "1+": ("", "*", "+"),
    "*": ("", "1+", "+", ">"),
    "+": (">", "", "*"),
    ">": ("+", "*", "1+", ""),
    "<": ("*", ">", "", "+"),
}
"""What a vector may be along its axis instead."""


class Reading(NamedTuple):
    """Other texts for rows that are to change together, and the axis or stack they are about."""

    axis: str
    rows: Texts


def found(tables: Tables, plan: Plan, off: Off, near: float) -> list[Violation]:
    """The reading of the tables with which outputs agree to `near`; none where there is none."""
    for reading in _readings(tables, plan):
        if rows := _mending(reading.rows, lambda rows: off(_with(tables, rows)), near):
            return list(_named(tables, plan, reading.axis, rows))
    for axis in [*plan.maps, *_growing(plan)]:
        for kind in _kinds(plan, axis):
            if off(_of_kind(tables, axis, kind)) <= near:
                return [Violation(axis, None, f"outputs agree once its kind is {kind}")]
    return []


def suspect(plan: Plan) -> str:
    """What to look at first where a model does not begin as its plan says, untested."""
    if needs := [str(need) for need in plan.requires if need.what != "epsilon"]:
        return f"what the large model must have, {', '.join(needs)}"
    grown = [
        (axis, leaf.name)
        for leaf in plan.target.leaves
        for axes in plan.grown(leaf)
        for axis in axes
    ]
    for axis, leaf in grown:
        if axis.gain != 1:
            return f"the row of {leaf!r}, which is taken for the scale of a norm"
    if stacks := _growing(plan):
        return f"what layers of {stacks[0]!r} do that depends on their number or on the depth"
    for axis, leaf in grown:
        if axis.reads:
            return f"the row of {leaf!r} and the kind of {axis.name!r}"
    return "the table"


def in_place(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """For each stack that grows by layers that add nothing: the plan that puts those on top."""
    for stack in _growing(plan):
        originals = [layer for layer in plan.words[stack].layers if layer.scale != 0]
        numbers = list(range(plan.source.stacks[stack]))
        if not numbers or [layer.source for layer in originals] != numbers:
            continue
        idle = [Layer(numbers[-1], 0.0)] * (plan.target.stacks[stack] - len(numbers))
        try:
            words = {**plan.words, stack: Word((*originals, *idle))}
            yield stack, dataclasses.replace(plan, words=words)
        except ValueError:
            # The last layer is of another kind than the others.
            continue


def _growing(plan: Plan) -> list[str]:
    stacks = plan.source.stacks
    return [stack for stack in stacks if plan.target.stacks[stack] != stacks[stack]]


def _kinds(plan: Plan, axis: str) -> Iterator[object]:
    """What an axis may meet instead, and of what types the layers of a stack may be in turn."""
    if axis in plan.maps:
        yield from plan.target.kind(axis).readings()
    elif axis not in plan.target.kinds:
        for period in (2, 3, 4):
            yield LayerTypes(tuple(str(number) for number in range(period)))


def _of_kind(tables: Tables, axis: str, kind: object) -> Tables:
    one, other = (
        Axes(dict(table.rows), {**dict(table.kinds), axis: kind}, dict(table.sizes))  # type: ignore[dict-item]
        for table in tables
    )
    return one, other


def _with(tables: Tables, texts: Texts) -> Tables:
    one, other = (
        Axes(
            {pattern: texts.get(pattern, text) for pattern, text in table.rows},
            dict(table.kinds),
            dict(table.sizes),
        )
        for table in tables
    )
    return one, other


def _rows(tables: Tables) -> dict[str, Row]:
    rows = {**dict(tables[0].rows), **dict(tables[1].rows)}
    return {pattern: parse(text) for pattern, text in rows.items() if not of_state(text)}


def _readings(tables: Tables, plan: Plan) -> Iterator[Reading]:
    """Every other reading of rows, the same change wherever the same is written."""
    rows, grows = _rows(tables), [*plan.maps, *_growing(plan)]
    found: dict[tuple[str, str], Reading] = {}
    for pattern, row in rows.items():
        for at, dim in enumerate(row.dims):
            for other in _others(row, dim, plan):
                dims = (*row.dims[:at], other, *row.dims[at + 1 :])
                one = found.setdefault((str(dim), str(other)), Reading(dim.names[0], {}))
                one.rows.setdefault(pattern, str(row._replace(dims=dims)))
    yield from (one for one in found.values() if _touches(one, rows, grows))
    for axis in grows:
        for divisor in _divisors(axis, axis not in plan.maps):
            divided = {
                pattern: str(row._replace(divisors=(divisor,)))
                for pattern, row in rows.items()
                if any(dim.role in ("<", ">", "=", "*") for dim in row.dims)
            }
            # Where a factor of the depth most often is: on all that is added to the stream.
            added = {at: x for at, x in divided.items() if any(d.residual for d in rows[at].dims)}
            yield Reading(axis, added)
            yield Reading(axis, divided)


def _touches(one: Reading, rows: Mapping[str, Row], grows: Sequence[str]) -> bool:
    """Whether the rows have anything to do with what grows."""
    names = {name for pattern in one.rows for dim in rows[pattern].dims for name in dim.names}
    captured = {name for pattern in one.rows for name in re.compile(pattern).groupindex}
    return bool((names | captured) & set(grows))


def _others(row: Row, dim: Dim, plan: Plan) -> Iterator[Dim]:
    """What else a parameter may do along an axis."""
    if not dim.names or dim.role in ("#", "~") or dim.own:
        return
    if sum(other.role != "#" for other in row.dims) == 1 and len(dim.names) == 1:
        for role in ELEMENTWISE.get("1+" if dim.offset else dim.role, ()):
            offset = 1.0 if role == "1+" else 0.0
            yield dim._replace(role="" if offset else role, offset=offset)  # type: ignore[arg-type]
    elif dim.role in ("<", "=") and plan.target.kind(dim.names[0]).indexed:
        yield dim._replace(role="=" if dim.role == "<" else "<")
    elif dim.role in ("<", ">"):
        yield dim._replace(role=">" if dim.role == "<" else "<", residual=False, multiplied=False)
    if dim.role == ">" and plan.target.kind(dim.names[0]).stream:
        yield dim._replace(residual=not dim.residual, multiplied=False)


def _divisors(axis: str, stack: bool) -> Iterator[Divisor]:
    for power in (0.5, 1.0, -0.5, -1.0):
        yield Divisor(((axis,),), power)
    for power in (1.0, -1.0) if stack else ():
        yield Divisor(((axis,),), power, number=True)


def _mending(rows: Texts, off: Callable[[Texts], float], near: float) -> Texts:
    """The fewest of some changes with which outputs agree; none where no number of them does."""
    chosen = dict(rows)
    if off(chosen) > near:
        # Some of them may: take, one after another, the one that helps most.
        chosen, least = {}, off({})
        while rows.keys() - chosen.keys():
            tried = {at: off({**chosen, at: text}) for at, text in rows.items() if at not in chosen}
            best = min(tried, key=lambda at: tried[at])
            if not tried[best] < 0.9 * least:
                return {}
            chosen[best], least = rows[best], tried[best]
            if least <= near:
                break
        else:
            return {}
    for at in list(chosen):
        fewer = {other: text for other, text in chosen.items() if other != at}
        if fewer and off(fewer) <= near:
            chosen = fewer
    return chosen


def _named(tables: Tables, plan: Plan, axis: str, rows: Texts) -> Iterator[Violation]:
    """The parameters whose rows were changed."""
    for layout, table in zip((plan.target, plan.source), tables[::-1]):
        patterns = [pattern for pattern, _ in table.rows]
        first: dict[str, str] = {}
        for leaf in layout.leaves:
            own = next(pattern for pattern in patterns if re.fullmatch(pattern, leaf.path))
            first.setdefault(own, leaf.name)
        for pattern in rows.keys() & first.keys():
            old, new = dict(table.rows)[pattern], rows[pattern]
            why = f"outputs agree once its row is {new!r} instead of {old!r}"
            yield Violation(axis, first[pattern], why)
        if rows.keys() & first.keys():
            return
