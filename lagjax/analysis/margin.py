"""The paired margin between two candidates, with its interval."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

LONGEST = 50
"""Steps of a window of training losses at most: differences drift within more."""
METHOD = "twice iid"
"""How the error of a window's mean is measured: the narrowest of `METHODS` whose intervals hold the
mean of as many steps more nine times out of ten in every regime of `experiments.evidence`."""
BLOCKS = 5
"""Means of successive steps, by which `blocks` measures a window's error."""


class Margin(NamedTuple):
    """A difference of losses, nats per token, with its 95 % interval."""

    mean: float
    low: float
    high: float


class Estimate(NamedTuple):
    """A difference of losses, the variance of its error, and the degrees of freedom of that; none
    where there is nothing to estimate it from.
    """

    mean: float
    variance: float
    dof: float

    @property
    def margin(self) -> Margin:
        """With the 95 % interval of Student's t."""
        if self.dof == 0:
            return Margin(self.mean, -np.inf, np.inf)
        width = float(special.stdtrit(self.dof, 0.975)) * self.variance**0.5
        return Margin(self.mean, self.mean - width, self.mean + width)


def margin(
    losses_SxJ: NDArray[np.float64],
    others_SxJ: NDArray[np.float64],
    counts_J: NDArray[np.float64],
) -> Margin:
    """How much lower `losses` are than `others`, paired by seed and validation shard; see
    `of_shards`.
    """
    return of_shards(losses_SxJ, others_SxJ, counts_J).margin


def of_shards(
    losses_SxJ: NDArray[np.float64],
    others_SxJ: NDArray[np.float64],
    counts_J: NDArray[np.float64],
) -> Estimate:
    """How much lower `losses` are than `others`, paired by seed and validation shard.

    The standard error adds the variance of the shards' mean differences to that of the seeds'
    (which is a little conservative), with Student's t and Welch–Satterthwaite degrees of freedom.
    With one seed it speaks of the choice of validation text alone, with one shard of the seeds
    alone; with one of each there is no interval: it is infinite.

    Args:
        losses_SxJ: nats per token for each seed and shard.
        others_SxJ: the same for the other candidate.
        counts_J: tokens of each shard.
    """
    differences = others_SxJ - losses_SxJ
    weights = counts_J / counts_J.sum()
    by_seed, by_shard = (differences * weights).sum(axis=1), differences.mean(axis=0)
    mean, shards = float(by_seed.mean()), len(weights)
    parts = [_of_seeds(by_seed)]
    if shards > 1:
        # The variance of a weighted mean, weights taken as given.
        spread = float((weights**2 * (by_shard - mean) ** 2).sum())
        parts.append((spread * shards / (shards - 1), shards - 1.0))
    return _added(mean, parts)


def window(step: int) -> int:
    """How many steps before a step a window of training losses has: none before the fourth."""
    return min(LONGEST, step // 4)


def of_steps(
    losses_SxT: NDArray[np.float64], others_SxT: NDArray[np.float64], method: str = METHOD
) -> Estimate:
    """How much lower the training losses of successive steps are than others of the same batches.

    All candidates of a seed see the same batches, and the loss of a batch is that before its
    update: on text that is seen once this is unbiased, paired evidence that costs nothing. It is
    that of the window: differences jitter and drift from step to step while the rate is high.

    Args:
        losses_SxT: for each seed and step.
        others_SxT: the same for the other candidate.
        method: how the error is measured within a seed, of `METHODS`.
    """
    differences = others_SxT - losses_SxT
    by_seed = differences.mean(axis=1)
    parts = [_of_seeds(by_seed)]
    # A window of one step says nothing of its error.
    if differences.shape[1] > 1:
        found = [METHODS[method](each) for each in differences]
        variances, dofs = np.array(found).T
        total = float(variances.sum()) / len(found) ** 2
        spread = float((variances**2 / dofs).sum()) / len(found) ** 4
        parts.append((total, total**2 / spread if spread else float(dofs.sum())))
    return _added(float(by_seed.mean()), parts)


def steps_margin(losses_SxT: NDArray[np.float64], others_SxT: NDArray[np.float64]) -> Margin:
    """How much lower the training losses of any successive steps are than others of the same
    batches, over these very steps.

    Neighbouring differences are correlated, so that the standard error is that of the means of
    batches of √T successive steps (Schmeiser 1982), with Student's t over all seeds' batches. With
    fewer than two such means there is no interval.

    Args:
        losses_SxT: for each seed and step.
        others_SxT: the same for the other candidate.
    """
    differences = others_SxT - losses_SxT
    steps = differences.shape[1]
    size = max(1, round(steps**0.5))
    whole = steps // size * size
    means = differences[:, :whole].reshape(-1, size).mean(axis=1)
    variance = float(means.var(ddof=1)) / len(means) if len(means) > 1 else 0.0
    return Estimate(float(differences.mean()), variance, len(means) - 1.0).margin


def iid(differences: NDArray[np.float64]) -> tuple[float, float]:
    """As if steps were independent: the variance of their mean, and its degrees of freedom."""
    steps = len(differences)
    return float(differences.var(ddof=1)) / steps, steps - 1.0


def twice_iid(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Twice the standard error of independent steps: room for what changes after the window."""
    variance, dof = iid(differences)
    return 4 * variance, dof


def blocks(differences: NDArray[np.float64]) -> tuple[float, float]:
    """From the means of five blocks of successive steps (Schmeiser 1982)."""
    means = [block.mean() for block in np.array_split(differences, min(BLOCKS, len(differences)))]
    return float(np.var(means, ddof=1)) / len(means), len(means) - 1.0


def newey_west(differences: NDArray[np.float64]) -> tuple[float, float]:
    """From autocovariances with falling weights (Newey and West 1987)."""
    steps, rest = len(differences), differences - differences.mean()
    lags = min(steps - 1, int(4 * (steps / 100) ** (2 / 9)))
    found = float(rest @ rest) / steps
    for lag in range(1, lags + 1):
        found += 2 * (1 - lag / (lags + 1)) * float(rest[lag:] @ rest[:-lag]) / steps
    return max(found, 0.0) / steps, steps - 1.0


METHODS: dict[str, Callable[[NDArray[np.float64]], tuple[float, float]]] = {
    "iid": iid,
    "newey-west": newey_west,
    "blocks": blocks,
    "twice iid": twice_iid,
}
"""How the error of a window's mean can be measured."""


def agree(pairs: Sequence[tuple[Estimate, Estimate]]) -> bool:
    """Whether the two estimates of each pair can be of one difference: their distances, over their
    errors, are not larger than chance makes them one time in a hundred.
    """
    distances = [
        (one.mean - other.mean) ** 2 / (one.variance + other.variance)
        for one, other in pairs
        if one.variance + other.variance > 0
    ]
    return not distances or sum(distances) <= 2 * float(
        special.gammaincinv(len(distances) / 2, 0.99)
    )


def combined(pairs: Sequence[tuple[Estimate, Estimate]]) -> list[Estimate]:
    """Each pair's two estimates as one, validation's and the window's.

    By one weight for all pairs, from their pooled variances: were each weighted by its own, a could
    be ahead of b, b of c, and c of a.
    """
    one, other = (sum(pair[at].variance for pair in pairs) for at in (0, 1))
    weight = other / (one + other) if one + other else 0.5
    found = []
    for first, second in pairs:
        mean = weight * first.mean + (1 - weight) * second.mean
        variances = weight**2 * first.variance, (1 - weight) ** 2 * second.variance
        found.append(_added(mean, list(zip(variances, (first.dof, second.dof)))))
    return found


def _of_seeds(by_seed: NDArray[np.float64]) -> tuple[float, float]:
    """The variance of a mean over seeds, and its degrees of freedom."""
    seeds = len(by_seed)
    return (float(by_seed.var(ddof=1)) / seeds, seeds - 1.0) if seeds > 1 else (0.0, 0.0)


def _added(mean: float, parts: Sequence[tuple[float, float]]) -> Estimate:
    """Independent errors as one, by Welch and Satterthwaite; (0, 0) is none."""
    known = [(variance, dof) for variance, dof in parts if dof]
    variance = sum(variance for variance, _ in known)
    inverse = sum(variance**2 / dof for variance, dof in known)
    return Estimate(mean, variance, variance**2 / inverse if inverse else sum(x for _, x in known))
