"""Bounce and crossing told apart: what averaging the weights removes from a loss, and what it does
not.
"""

from typing import NamedTuple

import numpy as np

from lagjax.analysis.agreement import agreement
from lagjax.jobs import RAW
from lagjax.report.facts import Facts
from lagjax.report.sentences import count, number

ABOUT = (
    "While the learning rate is high, a loss is the floor of a valley plus the height at which the "
    "weights bounce above it; at the end only the floor counts. An average of the weights lies "
    "near the floor: what it removes is the bounce. Where candidates change places in the loss of "
    "the averages, they cross, which only training shows."
)
HEADINGS = ("Candidate", "Loss of the weights", "of their average", "Bounce")


class Bounce(NamedTuple):
    """Losses where the probes ended, seed means.

    Attributes:
        average: the average's name.
        step: where.
        raw: name → loss of the weights.
        averaged: name → loss of their average.
        final: name → loss of the average at the horizon, where all candidates came that far.
    """

    average: str
    step: int
    raw: dict[str, float]
    averaged: dict[str, float]
    final: dict[str, float]


def bounce(facts: Facts) -> Bounce | None:
    """The average that was decided by, else the first; None where none is kept or nothing was
    probed.
    """
    there = [name for line in facts.lines for name in line.get("averages") or ()]
    average = facts.weights if facts.weights in there else next(iter(there), None)
    if average is None or not facts.lag:
        return None
    raw, averaged = (_losses(facts, facts.lag, weights) for weights in (RAW, average))
    final = _losses(facts, facts.horizon, average) if facts.horizon else {}
    names = [name for name in facts.ranking if name in raw and name in averaged]
    if len(names) < 2:
        return None
    return Bounce(
        average,
        facts.lag,
        {name: raw[name] for name in names},
        {name: averaged[name] for name in names},
        {name: final[name] for name in names} if final.keys() >= {*names} else {},
    )


def told(found: Bounce, unit: str) -> str:
    """What of the two this run has."""
    removed = [found.raw[name] - found.averaged[name] for name in found.raw]
    floors = [*found.averaged.values()]
    below = "below" if max(removed) > 0 else "above"
    near, far = sorted(map(abs, (min(removed), max(removed))))
    ends = (min(removed), max(removed)) if below == "below" else (near, far)
    text = (
        f"At step {count(found.step)} the average {found.average!r} is {number(ends[0])} to "
        f"{number(ends[1])} {unit} {below} the weights"
    )
    if below == "above":
        text += ", which still fall faster than they bounce"
    rho = agreement([*found.raw.values()], floors).spearman
    if rho is not None:
        text += f"; Spearman's correlation of the two orders is {number(rho, 2)}"
    bounces, apart = float(np.ptp(removed)), float(np.ptp(floors))
    text += (
        ". Candidates differ more in their bounce than in what lies below it: the loss of the "
        "weights says little here."
        if bounces > apart
        else ". Candidates differ less in their bounce than in what lies below it."
    )
    if found.final:
        rho = agreement(floors, [found.final[name] for name in found.averaged]).spearman
        text += (
            f" The averages' order there and their order at the end agree to {number(rho, 2)}: what"
            " is missing to 1 is crossing."
        )
    return text


def rows(found: Bounce) -> list[tuple[str, ...]]:
    """A line for each candidate, in the order of the averages."""
    return [
        (name, number(found.raw[name]), number(loss), number(found.raw[name] - loss))
        for name, loss in sorted(found.averaged.items(), key=lambda each: each[1])
    ]


def _losses(facts: Facts, step: int, weights: str) -> dict[str, float]:
    """Name → loss at a step, the mean over seeds; those that failed with one are left out."""
    found: dict[str, list[float | None]] = {}
    for line in facts.lines:
        if line["step"] == step and line["phase"] != "source":
            read = line if weights == RAW else (line.get("averages") or {}).get(weights, {})
            found.setdefault(line["candidate"], []).append(read.get("valid_loss"))
    return {
        name: float(np.mean([x for x in losses if x is not None]))
        for name, losses in found.items()
        if None not in losses
    }
