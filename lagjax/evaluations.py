"""When a trial is evaluated, and on how many validation shards."""

from collections.abc import Mapping
from math import ceil

import numpy as np

from lagjax.evidence import Evidence
from lagjax.executors.workload import Workload
from lagjax.jobs import RAW, evaluation_steps

SHARE, EARLY_SHARE = 0.05, 0.1
"""What evaluations may take of a probe's FLOPs: from a quarter of the horizon on, and before."""
FEWEST = 2
"""Shards, so that there is an interval."""


def planned(
    work: Workload, name: str, asked: Mapping[int, int], until: int, watched: bool, audit: bool
) -> dict[int, int]:
    """The steps at which a candidate is evaluated on its way, each with the number of shards.

    In a probe: right after growing and where the policy asked for, on as many shards as are enough
    and as `SHARE` of the training's FLOPs pay; the first probe pays for the start as well. At the
    horizon on all.

    Args:
        work: what is run.
        name: of the candidate.
        asked: the steps that it was asked to be probed to, ascending, each with the shards that
            are enough there, see `enough`.
        until: the step that it is to be brought to.
        watched: whether it goes on after the decision, evaluated at every eighth of the horizon.
        audit: whether it is evaluated densely, on all shards.
    """
    horizon, every = work.groups[name].task.horizon, len(work.task.valid)
    if audit:
        steps = evaluation_steps(horizon, *asked, until, base=2)
        return {step: every for step in steps if step <= until}
    costs, last = work.groups[name].costs, 0
    found, shard = {0: every}, costs.evaluation / every
    for step, most in asked.items():
        # Right after growing averages are the weights themselves.
        weights = 1 + len(work.task.averages) + (last == 0)
        share = SHARE if 4 * step >= horizon else EARLY_SHARE
        pays = share * (step - last) * costs.step
        count = int(pays // (weights * shard)) if shard else every
        # What a candidate ends at is told as well as can be.
        found[step] = every if step == horizon else min(max(min(count, most), FEWEST), every)
        found[0] = found[min(found.keys() - {0})]
        last = step
    if watched:
        eighth = max(1, horizon // 8)
        found |= {step: every for step in (*range(eighth, until, eighth), until) if step > last}
    return found


def enough(evidence: Evidence, every: int) -> dict[str, int]:
    """Name → the validation shards by which a candidate is told from the leader, by whatever
    weights: so many that the interval of their difference, as it was where both stood last, would
    end at 0. Few for one that is far behind; all where nothing was measured.

    Args:
        evidence: what was measured.
        every: how many shards there are.
    """
    told: dict[str, float] = {}
    for weights in (RAW, *evidence.averages):
        leader = next(iter(evidence.ranking(None, weights)), None)
        for name, loss in evidence.losses_at(evidence.asked, weights).items():
            if leader is None or loss is None or name == leader:
                continue
            pair = [evidence.shards(x, evidence.reached(x), weights) for x in (leader, name)]
            count = min(len(shards[0]) for shards in pair if shards is not None)
            mean, _, high = evidence.margin(leader, name, None, weights)
            needed = count * ((high - mean) / mean) ** 2 if mean else np.inf
            for each in (leader, name):
                told[each] = max(told.get(each, FEWEST), min(needed, every))
    return dict.fromkeys(evidence.known, every) | {name: ceil(x) for name, x in told.items()}
