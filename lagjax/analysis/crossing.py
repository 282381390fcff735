"""Two curves of loss, compared where both are: at the furthest point, and where they last cross."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lagjax.analysis.agreement import START_TOLERANCE


class Comparison(NamedTuple):
    """How another curve lies to one's own.

    Attributes:
        reach: the furthest point that both have.
        difference: the other's loss there minus one's own; positive where one's own is lower.
        crossing: the point after which the one that is lower at `reach` stays lower; None where it
            was never higher.
    """

    reach: float
    difference: float
    crossing: float | None


def interpolated(
    curve: Mapping[int, float] | Mapping[float, float], points: Sequence[float]
) -> NDArray[np.float64]:
    """The losses of a curve at some points, NaN outside of it.

    Losses fall like powers, so that they are taken to be linear in the logarithm of the point
    between evaluations; up to the first one after 0 in the point itself.
    """
    own, losses = zip(*sorted(curve.items()))
    unit = next((point for point in own if point > 0), 1.0)
    places = _places(points, unit), _places(own, unit)
    found: NDArray[np.float64] = np.interp(*places, losses, np.nan, np.nan)
    return found


def stretched(
    curve: Mapping[int, float], own: int, horizon: int, steps: Sequence[int]
) -> dict[int, float]:
    """A curve of a training of `own` steps, at the steps of one of `horizon`: at the same share of
    each; NaN where it does not reach.
    """
    points = [step * own / horizon for step in steps]
    return dict(zip(steps, interpolated(curve, points).tolist()))


def compare(own: Mapping[float, float], other: Mapping[float, float]) -> Comparison | None:
    """Compares two curves, point → loss; None where they have no part in common."""
    if not own or not other:
        return None
    low, reach = max(min(own), min(other)), min(max(own), max(other))
    if low > reach:
        return None
    points = [x for x in sorted({*own, *other}) if low <= x <= reach]
    ours, theirs = interpolated(own, points), interpolated(other, points)
    gaps = theirs - ours
    end = float(gaps[-1])
    # Exact operators begin level with the small model, and a rounding error is no crossing.
    higher = np.flatnonzero(gaps * np.sign(end) < -START_TOLERANCE * np.abs(ours))
    if not end or not len(higher):
        return Comparison(reach, end, None)
    before = int(higher[-1])
    unit = next((point for point in points if point > 0), 1.0)
    left, right = _places(points[before : before + 2], unit)
    place = left + (right - left) * gaps[before] / (gaps[before] - gaps[before + 1])
    return Comparison(reach, end, float(unit * (place if place < 1 else np.exp(place - 1))))


def _places(points: Sequence[float], unit: float) -> NDArray[np.float64]:
    """On an axis that is linear up to a unit, and logarithmic from there on."""
    scaled = np.asarray(points, float) / unit
    return np.where(scaled < 1, scaled, 1 + np.log(np.maximum(scaled, 1)))
