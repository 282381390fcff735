"""The paired margin between two candidates, with its interval."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special


class Margin(NamedTuple):
    """A difference of losses, nats per token, with its 95 % interval."""

    mean: float
    low: float
    high: float


def margin(
    losses_SxJ: NDArray[np.float64],
    others_SxJ: NDArray[np.float64],
    counts_J: NDArray[np.float64],
) -> Margin:
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
    mean = float((differences * weights).sum(axis=1).mean())
    variance, inverse_dof = 0.0, 0.0
    seeds, shards = differences.shape
    by_seed, by_shard = (differences * weights).sum(axis=1), differences.mean(axis=0)
    if seeds > 1:
        part = float(by_seed.var(ddof=1)) / seeds
        variance, inverse_dof = part, part**2 / (seeds - 1)
    if shards > 1:
        # The variance of a weighted mean, weights taken as given.
        part = float((weights**2 * (by_shard - mean) ** 2).sum()) * shards / (shards - 1)
        variance, inverse_dof = variance + part, inverse_dof + part**2 / (shards - 1)
    if seeds == shards == 1:
        return Margin(mean, -np.inf, np.inf)
    if variance == 0:
        return Margin(mean, mean, mean)
    width = float(special.stdtrit(variance**2 / inverse_dof, 0.975)) * variance**0.5
    return Margin(mean, mean - width, mean + width)


def steps_margin(losses_SxT: NDArray[np.float64], others_SxT: NDArray[np.float64]) -> Margin:
    """How much lower the training losses of successive steps are than others of the same batches.

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
    mean = float(differences.mean())
    if len(means) < 2:
        return Margin(mean, -np.inf, np.inf)
    error = float(means.std(ddof=1)) / len(means) ** 0.5
    width = float(special.stdtrit(len(means) - 1, 0.975)) * error
    return Margin(mean, mean - width, mean + width)
