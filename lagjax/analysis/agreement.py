"""How well two rankings agree."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

START_TOLERANCE = 1e-5
"""Losses right after growing within this share of the lowest count as equal: all exact operators
start there.
"""


class Agreement(NamedTuple):
    """Correlations between two lists of losses; None where fewer than three pairs are finite, or
    one list is constant.
    """

    spearman: float | None
    kendall: float | None
    pearson: float | None


def agreement(first: Sequence[float | None], second: Sequence[float | None]) -> Agreement:
    """Spearman's ρ, Kendall's τ-b (ties count as such) and Pearson's r of the pairs that are both
    finite.
    """
    pairs = np.array([first, second], dtype=float)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < 3 or (np.ptp(pairs, axis=1) == 0).any():
        return Agreement(None, None, None)
    # An import of a second, which only audits need.
    from scipy import stats

    found = (stats.spearmanr(*pairs), stats.kendalltau(*pairs), stats.pearsonr(*pairs))
    return Agreement(*(float(result.statistic) for result in found))


def ranks(losses: Sequence[float | None]) -> list[int | None]:
    """Rank of each loss, 1 the lowest; ties share the lowest rank, what is not finite has None."""
    values = np.array(losses, dtype=float)
    return [int((values < value).sum()) + 1 if np.isfinite(value) else None for value in values]
