"""The map of regimes: what of a source and of a schedule decides what the start tells.

Eight audits are a half fraction of four factors of two levels, 2^(4−1) with D = ABC (Box, Hunter
and Hunter 1978, 12). Each main effect is then free of the others and of all interactions of two
factors, but these stand in pairs for each other: AB with CD, AC with BD, BC with AD.

An effect is the mean of a number over the four audits with the factor's second level, less that
over the four with its first. Its interval is a bootstrap over seeds, the same for all audits, and,
where it is not about members by name, over the candidates of each.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from experiments.verdicts import (
    DRAWS,
    STRONG,
    Ended,
    finals,
    kind_of,
    regret,
    resampled,
    spearmans,
)

Number: TypeAlias = Callable[["Told"], NDArray[np.float64]]
"""One for each draw, of what was told in many."""


class Told(NamedTuple):
    """What an audit's evaluations were.

    Attributes:
        steps: of the evaluations.
        rates: the learning rate summed over the steps up to each of them, as a share of the whole.
        losses: of the weights, `[..., steps, candidates, seeds]`.
        averaged: of their running average, likewise; at the start those of the weights.
        exact: whether each candidate is proved to start as the small model ended, `[candidates]`.
        fresh: whether each has layers of the large model's own initialisation, likewise.
    """

    steps: tuple[int, ...]
    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    averaged: NDArray[np.float64]
    exact: NDArray[np.bool_]
    fresh: NDArray[np.bool_]

    def drawn(
        self, seeds: NDArray[np.int64], candidates: NDArray[np.int64] | None = None
    ) -> "Told":
        """Its losses as `verdicts.resampled` draws them: of drawn candidates, no names are left."""
        losses, averaged = (resampled(x, seeds, candidates) for x in (self.losses, self.averaged))
        return self._replace(losses=losses, averaged=averaged)


class Effect(NamedTuple):
    """What a factor does to a number.

    Attributes:
        number: its name.
        factor: its name.
        levels: the means at its first and its second level.
        effect: the second less the first.
        interval: 95 %.
    """

    number: str
    factor: str
    levels: tuple[float, float]
    effect: float
    interval: tuple[float, float]

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval[0] > 0 or self.interval[1] < 0


def told_of(ended: Ended, averaged: NDArray[np.float64], rates: NDArray[np.float64]) -> Told:
    """An audit's, of the candidates that failed with no seed.

    Args:
        ended: the audit.
        averaged: losses of the averages at its evaluations, `[steps, candidates, seeds]`; NaN at
            the start.
        rates: the learning rate at each of its evaluations.
    """
    able = np.isfinite(ended.losses).all(axis=(0, 2))
    ready = ended.ready()
    averaged = averaged[:, able].copy()
    averaged[0] = ready.losses[0]
    # Between evaluations the rate is as good as straight.
    area = np.diff(ended.steps) * (rates[1:] + rates[:-1]) / 2
    summed = np.concatenate([[0.0], np.cumsum(area)])
    fresh = np.array([kind_of(word) == "random" for word in ready.words])
    share = summed / (summed[-1] or 1.0)
    return Told(ended.steps, share, ready.losses, averaged, ready.exact, fresh)


def sooner(told: Told, losses: NDArray[np.float64], at: Sequence[float]) -> NDArray[np.float64]:
    """Where the mean Spearman of these losses with the final ones of the weights becomes `STRONG`
    for good, by the places `at` of the evaluations; their last where it does not before.
    """
    found = np.nan_to_num(spearmans(losses, told.losses[..., -1, :, :]), nan=-1.0)
    low = found < STRONG
    # The place after the last that is low.
    after = np.where(low.any(axis=-1), low.shape[-1] - low[..., ::-1].argmax(axis=-1), 0)
    return np.asarray(at)[np.minimum(after, low.shape[-1] - 1)]


def ahead(told: Told, members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """By how much the best of some candidates ends below the best of the others; NaN where there
    are none of either.
    """
    final = finals(told.losses)
    if members.all() or not members.any():
        return np.full(final.shape[:-1], np.nan)
    return np.asarray(final[..., ~members].min(axis=-1) - final[..., members].min(axis=-1))


def shares(told: Told) -> list[float]:
    """The evaluations as shares of the horizon."""
    return [step / told.steps[-1] for step in told.steps]


START = "Spearman at the start"
REGRET = "normalised regret of the start's choice"
WEIGHTS = "share of the horizon from which on weights tell"
AVERAGES = "share of the horizon from which on averages tell"
NUMBERS: dict[str, Number] = {
    START: lambda told: spearmans(told.losses[..., [0, -1], :, :])[..., 0],
    REGRET: lambda told: regret(told.losses, 0),
    WEIGHTS: lambda told: sooner(told, told.losses, shares(told)),
    AVERAGES: lambda told: sooner(told, told.averaged, shares(told)),
    "share of the summed learning rate from which on weights tell": lambda told: sooner(
        told, told.losses, told.rates.tolist()
    ),
}
"""What is asked of each audit's pool."""
WINNERS: dict[str, Number] = {
    "best exact member ends below the others by, nats": lambda told: ahead(told, told.exact),
    "best one with random layers ends below the others by, nats": lambda told: ahead(
        told, told.fresh
    ),
}
"""What is asked of members by name: of these, only seeds are drawn."""
ALL = NUMBERS | WINNERS


def farthest(audits: Mapping[str, Told]) -> tuple[str, str]:
    """The two audits that tell least alike: the mean square difference of their Spearman curves,
    of weights and of averages, over the evaluations that all have.
    """
    common = set.intersection(*({*told.steps} for told in audits.values()))
    curves = {}
    for name, told in audits.items():
        at = [told.steps.index(step) for step in sorted(common)]
        both = (spearmans(x, told.losses[-1])[at] for x in (told.losses, told.averaged))
        curves[name] = np.concatenate([*both])
    pairs = itertools.combinations(audits, 2)
    return max(pairs, key=lambda two: float(np.nanmean((curves[two[0]] - curves[two[1]]) ** 2)))


def effects(
    audits: Sequence[tuple[Mapping[str, bool], Told]], draws: int = DRAWS
) -> tuple[Effect, ...]:
    """Every factor's effect on every number.

    Args:
        audits: the level of each factor, and what was told.
        draws: of the bootstrap.

    Raises:
        ValueError: where audits have other factors, or a factor one level only.
    """
    if not audits:
        return ()
    factors = list(audits[0][0])
    for factor in factors:
        levels = {told.get(factor) for told, _ in audits}
        if levels != {False, True}:
            raise ValueError(
                f"the factor {factor!r} has the levels {sorted(map(str, levels))} in these "
                f"{len(audits)} audits; an effect compares both of them"
            )
    random = np.random.default_rng(0)
    seeds = min((told.losses.shape[2] for _, told in audits))
    found = np.stack([_numbers(told, told) for _, told in audits])
    same = random.integers(seeds, size=(draws, seeds))
    drawn, made = [], []
    for _, told in audits:
        pool = told.losses.shape[1]
        anew = told.drawn(same, random.integers(pool, size=(draws, pool)))
        drawn.append(_numbers(anew, told.drawn(same)))
    many = np.stack(drawn)
    for factor in factors:
        second = np.array([levels[factor] for levels, _ in audits])
        low, high = (found[x].mean(axis=0) for x in (~second, second))
        differences = many[second].mean(axis=0) - many[~second].mean(axis=0)
        ends = np.nanpercentile(differences, [2.5, 97.5], axis=0)
        for name, *four in zip(ALL, low, high, *ends):
            one, other, first, last = map(float, four)
            made.append(Effect(name, factor, (one, other), other - one, (first, last)))
    return tuple(made)


def _numbers(pool: Told, named: Told) -> NDArray[np.float64]:
    """`ALL`, `[..., numbers]`: those of the pool, and those of members by name."""
    found = [f(pool) for f in NUMBERS.values()] + [f(named) for f in WINNERS.values()]
    return np.stack(found, axis=-1)
