"""Training losses as curves: what there is to watch where validation is rare.

All candidates of a seed see the same batches, so that their differences are seen better than by
validation as often.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lagjax.analysis.margin import window
from lagjax.jobs import Trial
from lagjax.report.curve import Curve

RARE = 6
"""Evaluations of a probe below which its training losses are drawn in their place."""


def rare(probes: Mapping[str, Curve]) -> bool:
    """Whether the probes were evaluated too seldom to draw their validation losses."""
    return max((len(curve.losses) for curve in probes.values()), default=0) < RARE


def curves(
    losses: Mapping[Trial, NDArray[np.float32]], ends: Mapping[str, tuple[int, int]]
) -> dict[str, Curve]:
    """Candidates' training losses, the mean over the seeds that have gone so far.

    Args:
        losses: of each step.
        ends: name → the steps between which a curve is wanted.
    """
    found = {}
    for name, (start, stop) in ends.items():
        mine = [each for trial, each in losses.items() if trial.candidate == name]
        long = [each for each in mine if len(each) >= stop]
        drawn = {step: mean for step in steps(start, stop) if (mean := _mean(long, step))}
        if drawn:
            found[name] = Curve(drawn)
    return found


def steps(start: int, stop: int) -> list[int]:
    """The steps of a curve: the ends of windows, four to a doubling."""
    powers = np.round(4 * 2 ** (np.arange(80) / 4)).astype(int).tolist()
    return sorted({step for step in (*powers, start, stop) if max(start, 4) <= step <= stop})


def _mean(losses: Sequence[NDArray[np.float32]], step: int) -> float | None:
    """Over the window before a step, and over seeds; None where one is not finite."""
    if not losses:
        return None
    found = np.mean([each[step - window(step) : step].astype(float) for each in losses])
    return float(found) if np.isfinite(found) else None
