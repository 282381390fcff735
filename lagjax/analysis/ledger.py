"""What a search cost."""

from typing import NamedTuple


class Ledger(NamedTuple):
    """FLOPs and seconds of a search, and their size against one full training run.

    Attributes:
        overhead: FLOPs of the losers' probes, of evaluations and of fits, over those of one full
            run.
        budget_share: (1 + overhead) / N: the whole search against training all N candidates to the
            end; baselines are not among them.
        full_run_flops: training the chosen candidate to the horizon.
        losers_flops: training in probes that does not go on: all but the winner's with seed 0.
        evaluation_flops: all evaluations of the probes.
        fit_flops: making operators that are fitted to data.
        baseline_flops: training what growing is compared with, to its end where it goes there, and
            its evaluations and fits before the choice; no part of the overhead or of the share.
        seconds: wall time of the probes, evaluations included.
    """

    overhead: float
    budget_share: float
    full_run_flops: float
    losers_flops: float
    evaluation_flops: float
    fit_flops: float
    baseline_flops: float
    seconds: float


def ledger(
    *,
    candidates: int,
    full_run_flops: float,
    losers_flops: float,
    evaluation_flops: float,
    fit_flops: float,
    baseline_flops: float = 0.0,
    seconds: float,
) -> Ledger:
    """Adds the costs up."""
    spent = losers_flops + evaluation_flops + fit_flops
    # A model of look-ups and sums alone has no FLOPs to compare with.
    overhead = spent / full_run_flops if full_run_flops else 0.0
    return Ledger(
        overhead,
        (1 + overhead) / candidates,
        full_run_flops,
        losers_flops,
        evaluation_flops,
        fit_flops,
        baseline_flops,
        seconds,
    )
