"""The audit: what the losses at each step would have told about the end, where every candidate was
trained to it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from lagjax.analysis.agreement import START_TOLERANCE, Agreement, agreement
from lagjax.analysis.transition import Transition, transition


class Moment(NamedTuple):
    """What one step tells about the end; a mean over seeds, each seed's losses compared with their
    own end.

    Attributes:
        step: of training after growing.
        agreement: rank correlations of the losses with the final ones, controls left out.
        spread: lowest and highest Spearman of a seed, controls left out; None where a seed has
            none.
        with_controls: the correlations of all candidates.
        regret: nats per token that the choice at this step loses at the end, against the candidate
            that ends best on the mean over seeds. The choice is that of one seed's losses; where
            several are equal it is the mean over them.
        normalised: the regret as a share of a random choice's, 0 where it is within the noise
            floor.
        top1: share of seeds whose choice ends best on the mean over seeds, several equal ones
            counting in parts.
        top3: share of seeds that have the one that ends best among their three lowest.
    """

    step: int
    agreement: Agreement
    spread: tuple[float, float] | None
    with_controls: Agreement
    regret: float
    normalised: float
    top1: float
    top3: float


class Audit(NamedTuple):
    """What every step would have told.

    Attributes:
        seeds: how many.
        best: the candidate with the lowest final loss, seed mean, controls left out.
        final: name → final loss, seed mean; None where it failed.
        moments: for each evaluation.
        random_regret: mean final loss of the candidates minus the best: what a random choice loses,
            nats per token.
        noise_floor: two standard errors of the difference of two candidates' seed means, from how
            differently seeds treat the same candidates, nats per token; None with one seed.
        between_seeds: Spearman of the final losses of two seeds, the mean over pairs: no step can
            be expected to tell more about another seed's end; None with one seed.
        transition: of the candidates' seed-mean curves, controls left out.
    """

    seeds: int
    best: str
    final: dict[str, float | None]
    moments: tuple[Moment, ...]
    random_regret: float
    noise_floor: float | None
    between_seeds: float | None
    transition: Transition


def matrix(
    curves: Mapping[tuple[str, int], Mapping[int, float | None]],
    names: Sequence[str],
    seeds: Sequence[int],
) -> tuple[list[int], NDArray[np.float64]]:
    """The losses of all trials at the steps that they share, as `audit` takes them.

    Where a trial failed, its losses are missing from there on; steps are those of the trials that
    did not fail, so that one failure does not hide the others' ends.

    Args:
        curves: for each candidate and seed, the validation loss (nats per token) at each evaluated
            step, None where it was not finite.
        names: of the candidates, in the order wanted.
        seeds: likewise.

    Returns:
        The steps, ascending, and losses_TxCxS by step, candidate and seed, NaN from where one
        failed; no steps at all where all failed.
    """
    trials = [[curves.get((name, seed), {}) for seed in seeds] for name in names]
    whole = [set(curve) for each in trials for curve in each if None not in curve.values()]
    steps = sorted(set.intersection(*whole)) if whole else []
    losses = [[[curve.get(step) for curve in each] for each in trials] for step in steps]
    # None becomes NaN; the shape is given for the case that there are no steps.
    return steps, np.array(losses, float).reshape(len(steps), len(names), len(seeds))


def audit(
    names: Sequence[str],
    controls: frozenset[str],
    steps: Sequence[int],
    losses_TxCxS: NDArray[np.float64],
) -> Audit | None:
    """Compares the losses at each step with the final ones.

    Regret, its normalisation and the noise floor are those of a candidate's seed mean: the chosen
    is judged by more seeds than the one that chose it. A candidate that failed with a seed counts
    as the worst that ended.

    Args:
        names: of the candidates.
        controls: those that may not be chosen.
        steps: of the evaluations, ascending, the last one the horizon.
        losses_TxCxS: nats per token by evaluation, candidate and seed; NaN from where one failed.

    Returns:
        None where fewer than two candidates that are no controls have ended.
    """
    able = np.array([name not in controls for name in names])
    if not len(steps):
        return None
    end_CxS = losses_TxCxS[-1]
    final_C = end_CxS.mean(axis=1)
    ended = able & np.isfinite(final_C)
    if ended.sum() < 2:
        return None
    seeds = end_CxS.shape[1]
    best = int(np.where(ended, final_C, np.inf).argmin())
    random = float(final_C[ended].mean() - final_C[best])
    floor = noise_floor(end_CxS[ended])
    judged_C = np.where(np.isfinite(final_C), final_C, final_C[ended].max())
    moments = []
    for step, losses_CxS in zip(steps, losses_TxCxS):
        inner = [agreement(*pair) for pair in zip(losses_CxS[able].T, end_CxS[able].T)]
        outer = [agreement(*pair) for pair in zip(losses_CxS.T, end_CxS.T)]
        shares = [chances(losses, able) for losses in losses_CxS.T]
        regret = float(np.mean([share @ judged_C for share in shares]) - final_C[best])
        spearmans = [each.spearman for each in inner if each.spearman is not None]
        moments.append(
            Moment(
                int(step),
                _mean(inner),
                (min(spearmans), max(spearmans)) if len(spearmans) == seeds else None,
                _mean(outer),
                regret,
                regret / random if regret > (floor or 0.0) else 0.0,
                float(np.mean([share[best] for share in shares])),
                float(np.mean([_among(x, able, best, 3) for x in losses_CxS.T])),
            )
        )
    pairs = [(one, other) for other in range(seeds) for one in range(other)]
    between = [agreement(*end_CxS[able][:, pair].T).spearman for pair in pairs]
    known = [x for x in between if x is not None]
    return Audit(
        seeds,
        names[best],
        {name: float(x) if np.isfinite(x) else None for name, x in zip(names, final_C)},
        tuple(moments),
        random,
        floor,
        float(np.mean(known)) if known else None,
        transition(steps, losses_TxCxS.mean(axis=2)[:, able]),
    )


def _mean(found: Sequence[Agreement]) -> Agreement:
    """The mean over seeds, None where a seed has none."""
    return Agreement(
        *(
            None if None in column else float(np.mean([x for x in column if x is not None]))
            for column in zip(*found)
        )
    )


def chances(losses: NDArray[np.float64], able: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The probability with which the lowest loss chooses each candidate, `[..., candidates]`; those
    that are equal share it.
    """
    losses = np.where(able & np.isfinite(losses), losses, np.inf)
    lowest = losses.min(axis=-1, keepdims=True)
    tied = losses <= lowest + START_TOLERANCE * np.abs(lowest)
    tied = np.where(np.isfinite(lowest), tied, able)
    share: NDArray[np.float64] = tied / tied.sum(axis=-1, keepdims=True)
    return share


def _among(losses: NDArray[np.float64], able: NDArray[np.bool_], best: int, places: int) -> float:
    """The probability that the best is among the lowest `places`, equal losses in random order."""
    if not np.isfinite(losses[best]):
        return 0.0
    losses = np.where(able & np.isfinite(losses), losses, np.inf)
    tied = np.abs(losses - losses[best]) <= START_TOLERANCE * abs(losses[best])
    lower = ((losses < losses[best]) & ~tied).sum()
    return float(np.clip((places - lower) / tied.sum(), 0, 1))


def noise_floor(end_CxS: NDArray[np.float64]) -> float | None:
    """Two standard errors of a difference of seed means; None of one seed."""
    return float(noise_floors(end_CxS)) if end_CxS.shape[1] > 1 else None


def noise_floors(end_CxS: NDArray[np.float64]) -> NDArray[np.float64]:
    """Those of losses `[..., candidates, seeds]`, of at least two seeds: `[...]`.

    The variance is that of candidate × seed: what remains when each candidate's mean and each
    seed's level are taken off. Medians over candidates, the variance's corrected for its bias under
    normal noise, keep out bad candidates, which vary more.
    """
    seeds = end_CxS.shape[-1]
    rest = end_CxS - end_CxS.mean(axis=-1, keepdims=True)
    rest -= np.median(rest, axis=-2, keepdims=True)
    variances = (rest**2).sum(axis=-1) / (seeds - 1)
    bias = 2 * special.gammaincinv((seeds - 1) / 2, 0.5) / (seeds - 1)
    variance = np.median(variances, axis=-1) / bias
    return np.asarray(2 * np.sqrt(2 * variance / seeds))
