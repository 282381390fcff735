"""Probes of targets that cost different FLOPs, compared in both ways: at equal steps, and at equal
FLOPs.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from lagjax.analysis.crossing import interpolated
from lagjax.report.facts import Facts, ranks
from lagjax.report.sentences import NOTHING, count, listed, number, quantity


def differing(facts: Facts) -> bool:
    """Whether a step of some that may win costs more than of others."""
    costs = {entry.step_flops for name, entry in facts.pool.items() if name not in facts.apart}
    return len(costs - {None}) > 1


class Equal(NamedTuple):
    """Losses and ranks of those in the race after as many steps, and after as many FLOPs.

    `lag_is` says in which of them all were probed as far.
    """

    steps: int
    flops: float
    lag_is: Literal["steps", "flops"] | None
    by_steps: dict[str, float]
    by_flops: dict[str, float]
    rank_by_steps: dict[str, int]
    rank_by_flops: dict[str, int]


def equal(facts: Facts) -> Equal | None:
    """The probes compared in both ways, where targets of the pool cost different FLOPs.

    The comparison is made where the first of those in the race ends.
    """
    raced = {
        name: curve.losses
        for name, curve in facts.probes.items()
        if name not in facts.apart and len(curve.losses) > 1 and not curve.failed
    }
    price = {name: facts.pool[name].step_flops or 0.0 for name in raced}
    if not differing(facts) or not raced or not all(price.values()):
        return None
    lags = {name: max(losses) for name, losses in raced.items()}
    furthest = max(lags[name] / (facts.horizon_of(name) or 1) for name in raced)
    # Of those that a policy left behind early nothing is asked.
    alive = [n for n in raced if lags[n] > 0.5 * furthest * (facts.horizon_of(n) or 1)]
    steps, flops = min(lags[n] for n in alive), min(lags[n] * price[n] for n in alive)
    lag_is: Literal["steps", "flops"] | None = None
    if len({lags[n] for n in alive}) == 1:
        lag_is = "steps"
    elif all(lags[n] * price[n] - flops < price[n] for n in alive):
        # But for the rounding to whole steps.
        lag_is = "flops"
    found: list[dict[str, float]] = []
    for points in (dict.fromkeys(raced, float(steps)), {n: flops / price[n] for n in raced}):
        losses = {n: float(interpolated(raced[n], [points[n]])[0]) for n in raced}
        found.append({name: loss for name, loss in losses.items() if np.isfinite(loss)})
    return Equal(steps, flops, lag_is, found[0], found[1], ranks(found[0]), ranks(found[1]))


def columns(both: Equal | None) -> dict[str, Callable[[str], str]]:
    """Of the candidates' table: heading → name → cell, of what the lag's do not say."""
    found: dict[str, Callable[[str], str]] = {}
    if both and both.lag_is != "steps":
        found["Rank at equal steps"] = lambda name: str(both.rank_by_steps.get(name, NOTHING))
        found["Loss at equal steps"] = lambda name: number(both.by_steps.get(name))
    if both and both.lag_is != "flops":
        found["Rank at equal FLOPs"] = lambda name: str(both.rank_by_flops.get(name, NOTHING))
        found["Loss at equal FLOPs"] = lambda name: number(both.by_flops.get(name))
    return found


def both_ways(both: Equal) -> str:
    """What these columns mean."""
    plural = "s" * (both.steps != 1)
    ways = [f"after {count(both.steps)} step{plural}", f"after {quantity(both.flops)} FLOPs"]
    for index, lag_is in enumerate(("steps", "flops")):
        ways[index] += " (the lag)" * (both.lag_is == lag_is)
    return (
        " A step does not cost the same for all targets of this pool, so that the probes are "
        f"compared in both ways: {listed(ways)}; losses are interpolated where a candidate was not "
        "evaluated there."
    )
