"""The transition: the step after which losses fall along a line of their own.

Before it they are still about the initialisation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

KNOTS = 200
"""Places of the knot that are tried, evenly spaced in the logarithm of the step."""
STRONG = 10.0
"""The gain in BIC that counts as very strong evidence (Kass and Raftery 1995)."""


class Transition(NamedTuple):
    """Where two segments meet.

    Attributes:
        step: the knot; None where none was found.
        low: lower end of its 95 % bootstrap interval over curves, in steps.
        high: the upper end.
        gain: BIC of one segment minus that of two; positive speaks for two.
        reason: why none was found, or "".
    """

    step: float | None
    low: float | None
    high: float | None
    gain: float | None
    reason: str


def transition(
    steps: Sequence[int], losses_TxC: NDArray[np.float64], draws: int = 1000
) -> Transition:
    """Fits ln loss = a + b ln step + c max(0, ln step − ln k) to every curve, with one knot k.

    Each curve has its own a, b, c and noise; the knot maximises the likelihood of all. Step 0,
    which has no logarithm, and curves not finite and positive throughout are left out. The
    interval resamples the curves. None is found where two segments are not clearly better than one
    by BIC, or where the interval reaches an end of the measured range.

    Args:
        steps: of the evaluations, ascending.
        losses_TxC: a curve in each column.
        draws: bootstrap samples; the generator's seed is fixed.
    """
    at = np.asarray(steps) > 0
    curves = losses_TxC[at]
    curves = np.log(curves[:, (np.isfinite(curves) & (curves > 0)).all(axis=0)])
    points, number = curves.shape
    if points < 6 or number < 2:
        return Transition(
            None,
            None,
            None,
            None,
            f"{number} curves of {points} positive points; a fit needs at least 2 of 6",
        )
    x = np.log(np.asarray(steps, float)[at])
    # Two points at least lie on either side of a knot.
    knots = np.linspace(x[1], x[-2], KNOTS)
    line = np.stack([np.ones_like(x), x], axis=1)
    fits_KxC = np.array(
        [_misfit(np.column_stack([line, np.maximum(0, x - knot)]), curves) for knot in knots]
    )
    best = fits_KxC.sum(axis=1).argmin()
    penalty = (number + 1) * np.log(points * number)
    gain = float(_misfit(line, curves).sum() - fits_KxC[best].sum() - penalty)
    drawn = np.random.default_rng(0).integers(number, size=(draws, number))
    places = fits_KxC[:, drawn].sum(axis=-1).argmin(axis=0)
    low, high = (int(q) for q in np.quantile(places, [0.025, 0.975], method="nearest"))
    step, first, last = (float(np.exp(knots[i])) for i in (best, low, high))
    if gain < STRONG:
        return Transition(None, None, None, gain, "one segment describes the curves as well")
    if low == 0 or high == KNOTS - 1:
        return Transition(
            None,
            None,
            None,
            gain,
            f"its interval, {first:.0f} to {last:.0f}, reaches an end of the measured steps",
        )
    return Transition(step, first, last, gain, "")


def _misfit(design: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """-2 log-likelihood of each column's least squares without constants, variance profiled out."""
    residuals = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    # A perfect fit has no likelihood; rounding is the floor.
    variance = np.maximum((residuals**2).mean(axis=0), 1e-24)
    misfit: NDArray[np.float64] = len(y) * np.log(variance)
    return misfit
