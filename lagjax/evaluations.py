"""When a trial is evaluated, and on how many validation shards."""

from collections.abc import Sequence

from lagjax.executors.workload import Workload
from lagjax.jobs import evaluation_steps

SHARE, EARLY_SHARE = 0.05, 0.1
"""What evaluations may take of a probe's FLOPs: from a quarter of the horizon on, and before."""
FEWEST = 2
"""Shards, so that there is an interval."""


def planned(
    work: Workload, name: str, asked: Sequence[int], until: int, watched: bool, audit: bool
) -> dict[int, int]:
    """The steps at which a candidate is evaluated on its way, each with the number of shards.

    In a probe: right after growing and where the policy asked for, on as many shards as `SHARE` of
    the training's FLOPs pay; the first probe pays for the start as well. At the horizon on all.

    Args:
        work: what is run.
        name: of the candidate.
        asked: the steps that it was asked to be probed to before, ascending.
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
    for step in asked if watched else sorted({*asked, until}):
        # Right after growing averages are the weights themselves.
        weights = 1 + len(work.task.averages) + (last == 0)
        share = SHARE if 4 * step >= horizon else EARLY_SHARE
        pays = share * (step - last) * costs.step
        count = int(pays // (weights * shard)) if shard else every
        # What a candidate ends at is told as well as can be.
        found[step] = every if step == horizon else min(max(count, FEWEST), every)
        found[0] = found[min(found.keys() - {0})]
        last = step
    eighth = max(1, horizon // 8)
    found |= {step: every for step in (*range(eighth, until, eighth), until) if step > last}
    return found
