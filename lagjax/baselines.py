"""What growing is compared with, at equal FLOPs: the small model trained on, the large one from
scratch.

They are trained once the choice is made, as long as the winner's full training costs, so that no
policy sees them and no search is charged for them. Baselines of the pool itself are probed with it.
"""

from collections.abc import Mapping, Sequence

from lagjax.evidence import Known
from lagjax.executors.workload import Workload
from lagjax.growth.operator import FromScratch, Same
from lagjax.task import Candidate, Task, Transfer

NOT_GROWING, FROM_SCRATCH = "not growing", "from scratch"


def wanted(
    work: Workload, known: Mapping[str, Known], asked: bool, audit: bool
) -> tuple[tuple[str, ...], list[int], list[str]]:
    """The names of the baselines that a run has: the pool's own, and of either kind that it lacks
    one more.

    Args:
        work: what is run.
        known: what is known of the pool.
        asked: whether the caller wants them.
        audit: whether this is an audit, which has them as far as they can be trained.

    Returns:
        The names, the bytes of a state of each that is added, and what to note.

    Raises:
        ValueError: for a name that is taken, or a small model that cannot be trained.
    """
    if not (asked or audit):
        return (), [], []
    pool = [each.candidate for each in known.values()]
    own = [one.name for one in pool if one.role == "baseline"]
    first = next(each for each in known.values() if each.able)
    added: list[str] = []
    sizes, notes = [], []
    for one in _lacking(work.task, pool, first.candidate):
        check_names(pool, (one.name,))
        try:
            join(work, known, first, (one.name,))
        except Exception as error:
            if one.name != NOT_GROWING:
                raise
            why = (
                f"the baseline {NOT_GROWING!r} trains the small model on, which cannot be done "
                f"with this task: {error}; give Task.model the small model's own init and loss"
            )
            if asked:
                raise ValueError(f"{why}, or no baselines") from error
            notes.append(f"{why}. It is left out")
            continue
        added.append(one.name)
        sizes.append(work.groups[one.name].state_bytes)
    return (*own, *added), sizes, notes


def join(
    work: Workload, known: Mapping[str, Known], best: Known, names: Sequence[str]
) -> dict[str, Known]:
    """Makes those of these baselines part of the work that the pool lacks, matched with the full
    training of one of its candidates.
    """
    pool = [each.candidate for each in known.values()]
    lacking = _lacking(work.task, pool, best.candidate)
    full_run_flops = best.horizon * best.step_flops
    return work.join([one for one in lacking if one.name in names], full_run_flops)


def check_names(candidates: Sequence[Candidate], names: Sequence[str]) -> None:
    """Raises ValueError where a candidate has a name that a baseline will have."""
    for one in candidates:
        if one.name in names:
            raise ValueError(
                f"a candidate is named {one.name!r}, as a baseline that this run adds is; give it "
                "another name"
            )


def _lacking(task: Task, pool: Sequence[Candidate], best: Candidate) -> list[Candidate]:
    """The baselines of the kinds that a pool has none of; from scratch is the best's target."""
    # From scratch there are no moments to carry; the rates are those that the winner has.
    anew = Transfer("reset", task.transfer.schedule)
    both = (
        Candidate(NOT_GROWING, Same(), task.model, "baseline"),
        Candidate(FROM_SCRATCH, FromScratch(), best.target, "baseline", anew),
    )
    own = [type(one.operator) for one in pool if one.role == "baseline"]
    return [one for one in both if type(one.operator) not in own]
