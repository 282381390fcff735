"""The claims about growing, each with a threshold that was fixed before anything was run.

A claim is judged on one audit: a pool whose candidates were all trained to the horizon, with every
seed. Its interval is a bootstrap over seeds and, where it is about the pool and not about members
by name, over candidates (Efron 1979); it speaks of data order and keys, not of other sources. Over
three seeds alone it is narrow: of normal draws it holds the mean three times in four.

H1, H2 and H3 are those of *Landscape-Aware Growing* (Karp et al. 2024, arXiv 2406.02469), H5 is
what others report of it, H6 is ours, H7 that of Mallik et al. (2026, arXiv 2605.13405).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lagjax.analysis.agreement import START_TOLERANCE
from lagjax.analysis.audit import chances, noise_floor, noise_floors

Answer: TypeAlias = Literal["supported", "refuted", "inconclusive"]
Statistic: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Of losses `[..., steps, candidates, seeds]`, a number for each, `[...]`: all draws of a bootstrap
at once, which is what makes it quick.
"""

DRAWS = 1000
"""Of a bootstrap."""
WEAK, STRONG, RISE, FACTOR, REGRET = 0.5, 0.8, 0.4, 3, 0.2
"""Of H1, H2, H2, H2 and H3."""


class Ended(NamedTuple):
    """An audit, controls and baselines left out.

    Attributes:
        names: of the candidates.
        words: where the layers of each come from; "" where it adds none.
        exact: whether each is proved to start as the small model ended, `[candidates]`.
        steps: of the evaluations, ascending, from 0 to the horizon.
        losses: validation losses of the weights, `[steps, candidates, seeds]`; NaN from where one
            failed.
    """

    names: tuple[str, ...]
    words: tuple[str, ...]
    exact: NDArray[np.bool_]
    steps: tuple[int, ...]
    losses: NDArray[np.float64]

    def ready(self) -> "Ended":
        """Those that failed with no seed; losses that are equal right after growing but for
        rounding, as those of all exact members are, made so.
        """
        able = np.isfinite(self.losses).all(axis=(0, 2))
        kept = [index for index, one in enumerate(able) if one]
        names, words = (tuple(x[i] for i in kept) for x in (self.names, self.words))
        losses = self.losses[:, able].copy()
        for losses_C in losses[0].T:
            order = losses_C.argsort()
            for one, other in itertools.pairwise(order):
                if losses_C[other] - losses_C[one] <= START_TOLERANCE * abs(losses_C[one]):
                    losses_C[other] = losses_C[one]
        return Ended(names, words, self.exact[able], self.steps, losses)

    @property
    def floor(self) -> float:
        """Two standard errors of a difference of two candidates' final seed means, nats."""
        return noise_floor(self.losses[-1]) or 0.0

    def at(self, share: float) -> int:
        """The index of the last evaluation within a share of the horizon."""
        return int(np.searchsorted(self.steps, share * self.steps[-1], side="right")) - 1


class Part(NamedTuple):
    """One number of a claim.

    Attributes:
        what: it is, in words.
        value: found.
        interval: 95 %.
        threshold: it is compared with.
        above: whether the claim says that it is above; below otherwise. The threshold itself counts
            for the claim.
    """

    what: str
    value: float
    interval: tuple[float, float]
    threshold: float
    above: bool

    @property
    def answer(self) -> Answer:
        """By the side of the threshold on which the whole interval lies."""
        sign = 1 if self.above else -1
        low, high = sorted(sign * (x - self.threshold) for x in self.interval)
        return "supported" if low >= 0 else "refuted" if high < 0 else "inconclusive"


class Verdict(NamedTuple):
    """What an audit says about a claim.

    Attributes:
        hypothesis: its name, of `CLAIMS`.
        answer: "supported" where every part is, "refuted" where one is, else "inconclusive".
        parts: what it was judged by.
    """

    hypothesis: str
    answer: Answer
    parts: tuple[Part, ...]


CLAIMS = {
    "H1": "the loss right after growing does not predict the end, and keeping it is not best",
    "H2": "after a small lag it does, by a transition",
    "H3": "the choice at that lag is near the best",
    "H5": "copying a block next to itself beats interleaving, and random layers",
    "H6": "copied layers with zeroed outputs, interleaved, are exact and among the best",
    "H7": "keeping the function is not needed",
}


class Published(NamedTuple):
    """A number of a paper's own, once somebody has read it there.

    Attributes:
        value: of the number by which the claim is judged here.
        model: its model and size.
        where: the table or figure.
    """

    value: float
    model: str
    where: str


PAPER: dict[str, Published | None] = dict.fromkeys(CLAIMS)
"""None has been read: what we know of the papers are abstracts and what others say of them."""


def judge(ended: Ended, draws: int = DRAWS) -> tuple[Verdict, ...]:
    """Every claim that the pool has the members for."""
    ended = ended.ready()
    found = [h1(ended, draws), h2(ended, draws), h3(ended, draws)]
    found += [claim(ended, draws) for claim in (h5, h6, h7)]
    return tuple(each for each in found if each.parts)


def whole(name: str, parts: Sequence[Part]) -> Verdict:
    """A claim's answer by its parts."""
    answers = {part.answer for part in parts}
    answer: Answer = "inconclusive"
    if "refuted" in answers:
        answer = "refuted"
    elif answers == {"supported"}:
        answer = "supported"
    return Verdict(name, answer, tuple(parts))


def spearmans(
    losses: NDArray[np.float64], ends: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Spearman of the losses `[..., steps, candidates, seeds]` at each step with those at the end,
    `[..., candidates, seeds]`, by default their own; the mean over seeds, `[..., steps]`. NaN where
    all losses are equal, which says nothing.
    """
    ends = losses[..., -1, :, :] if ends is None else ends
    ranks, final = (stats.rankdata(x, axis=-2) for x in (losses, ends[..., None, :, :]))
    ranks, final = (x - x.mean(axis=-2, keepdims=True) for x in (ranks, final))
    norms = np.sqrt((ranks**2).sum(axis=-2) * (final**2).sum(axis=-2))
    with np.errstate(invalid="ignore"):
        return np.asarray(((ranks * final).sum(axis=-2) / norms).mean(axis=-1))


def settled(losses: NDArray[np.float64], steps: Sequence[int]) -> int | None:
    """The first evaluation from which on the mean Spearman stays `STRONG`, if that is within half
    of the horizon.
    """
    high = np.minimum.accumulate(spearmans(losses)[::-1])[::-1] >= STRONG
    first = int(high.argmax())
    return first if high.any() and 2 * steps[first] <= steps[-1] else None


def rise(losses: NDArray[np.float64], steps: Sequence[int]) -> NDArray[np.float64]:
    """By how much the mean Spearman rises at most between two steps of at least 1, of which one is
    at most `FACTOR` times the other.
    """
    curve = spearmans(losses)
    found = [np.zeros(curve.shape[:-1])]
    for late, stop in enumerate(steps):
        for early, start in enumerate(steps[:late]):
            if start >= 1 and stop <= FACTOR * start:
                found.append(curve[..., late] - curve[..., early])
    # Where all losses are equal nothing is known to rise.
    return np.asarray(np.fmax.reduce(found))


def regret(losses: NDArray[np.float64], at: int) -> NDArray[np.float64]:
    """What the lowest of a seed at an evaluation loses at the end, as a share of what a random
    choice loses: the mean over seeds, judged by final seed means; 0 within the noise floor.
    """
    final = finals(losses)
    nats, random = lost(losses[..., at, :, :], final), final.mean(axis=-1) - final.min(axis=-1)
    floor = noise_floors(losses[..., -1, :, :]) if losses.shape[-1] > 1 else 0.0
    told = (nats > floor) & (random > 0)
    return np.divide(nats, random, out=np.zeros(nats.shape), where=told)


def lost(losses: NDArray[np.float64], final: NDArray[np.float64]) -> NDArray[np.float64]:
    """What whoever keeps the lowest of a seed loses at the end, nats: the mean over seeds; of ties,
    over all of them.

    Args:
        losses: by which is chosen, `[..., candidates, seeds]`.
        final: seed means, `[..., candidates]`.
    """
    chosen = chances(np.moveaxis(losses, -2, -1), np.ones(final.shape[-1], bool))
    ends = (chosen * final[..., None, :]).sum(axis=-1).mean(axis=-1)
    return np.asarray(ends - final.min(axis=-1))


def h1(ended: Ended, draws: int) -> Verdict:
    """Mean Spearman at the start at most `WEAK`, and no exact member within the noise floor of the
    best at the end.
    """
    parts = [
        _part(
            "Spearman of the losses right after growing with the final ones",
            lambda losses: spearmans(losses[..., [0, -1], :, :])[..., 0],
            ended.losses, WEAK, False, draws,
        )
    ]  # fmt: skip
    if ended.exact.any():
        # Members by name: only seeds are drawn.
        parts.append(
            _part(
                "by how much the best exact member ends above the best, less the noise floor",
                lambda losses: _behind(losses, ended.exact) - ended.floor,
                ended.losses, 0.0, True, draws, candidates=False,
            )
        )  # fmt: skip
    return whole("H1", parts)


def h2(ended: Ended, draws: int) -> Verdict:
    """Some step within half of the horizon after which the mean Spearman stays `STRONG`, and a rise
    of `RISE`.
    """
    half = ended.at(1 / 2)
    return whole(
        "H2",
        [
            _part(
                "the lowest Spearman from half of the horizon on",
                lambda losses: spearmans(losses)[..., half:].min(axis=-1),
                ended.losses, STRONG, True, draws,
            ),
            _part(
                f"the largest rise of Spearman within a factor {FACTOR} of steps",
                lambda losses: rise(losses, ended.steps),
                ended.losses, RISE, True, draws,
            ),
        ],
    )  # fmt: skip


def h3(ended: Ended, draws: int) -> Verdict:
    """Normalised regret at most `REGRET` at the step that H2 finds, else at a quarter of the
    horizon.
    """
    found = settled(ended.losses, ended.steps)
    at = ended.at(1 / 4) if found is None else found
    what = f"normalised regret of the lowest at step {ended.steps[at]}"
    part = _part(what, lambda x: regret(x, at), ended.losses, REGRET, False, draws)
    return whole("H3", [part])


def h5(ended: Ended, draws: int) -> Verdict:
    """The mean final loss of those that copy a block next to itself is below that of interleaving,
    and below that of random layers.
    """
    kinds = [kind_of(word) for word in ended.words]
    copies = np.array([kind == "neighbour" for kind in kinds])
    parts = []
    for kind, words in (("interleaved", "interleaving"), ("random", "random layers")):
        others = np.array([each == kind for each in kinds])
        if copies.any() and others.any():
            parts.append(
                _part(
                    f"final loss of blocks copied next to themselves, less that of {words}",
                    lambda losses, others=others: (
                        finals(losses)[..., copies].mean(axis=-1)
                        - finals(losses)[..., others].mean(axis=-1)
                    ),
                    ended.losses, 0.0, False, draws, candidates=False,
                )
            )  # fmt: skip
    return whole("H5", parts if len(parts) == 2 else [])


def h6(ended: Ended, draws: int) -> Verdict:
    """The interleaved copies with zeroed outputs are exact, and end in the top three with every
    seed or within the noise floor of the best. Where nothing is exact, as with norms after each
    addition, the second alone.
    """
    kinds = [kind_of(word) for word in ended.words]
    if "zeroed interleaved" not in kinds:
        return whole("H6", [])
    at = kinds.index("zeroed interleaved")
    one = np.arange(len(kinds)) == at
    parts = []
    if ended.exact.any():
        exact = float(ended.exact[at])
        parts = [Part("whether it is proved exact", exact, (exact, exact), 1.0, True)]
    gap = _part(
        "by how much it ends above the best, less the noise floor",
        lambda losses: _behind(losses, one) - ended.floor,
        ended.losses, 0.0, False, draws, candidates=False,
    )  # fmt: skip
    places = stats.rankdata(ended.losses[-1], axis=0)[at]
    if places.max() <= 3:
        last = float(places.max())
        gap = Part("its place at the end, the worst of all seeds", last, (last, last), 3.0, False)
    return whole("H6", [*parts, gap])


def h7(ended: Ended, draws: int) -> Verdict:
    """The best member that is not exact ends within the noise floor of the best exact one, or
    below.
    """
    if ended.exact.all() or not ended.exact.any():
        return whole("H7", [])

    def gap(losses: NDArray[np.float64]) -> NDArray[np.float64]:
        final = finals(losses)
        best, exact = (final[..., x].min(axis=-1) for x in (~ended.exact, ended.exact))
        return np.asarray(best - exact - ended.floor)

    what = "final loss of the best member that is not exact, less that of the best exact one and "
    what += "the noise floor"
    part = _part(what, gap, ended.losses, 0.0, False, draws, candidates=False)
    return whole("H7", [part])


def kind_of(word: str) -> str:
    """What a word does to the layers, for H5 and H6: "neighbour" copies a block of at least two
    layers, or one of them several times, next to itself; "interleaved" repeats every layer it
    repeats once, singly; "zeroed interleaved" does that with zeroed outputs; "random" has new
    layers that are not zeroed; "other".
    """
    # Of several stacks, "enc: 0 0 1 1; dec: ...", the first: a strategy does to all the same.
    layers = word.split("; ")[0].split(": ")[-1].split()
    if "new" in layers:
        return "random"
    if any("new" in layer for layer in layers):
        return "other"
    sources = [int(layer.split("*")[0]) for layer in layers]
    copied = [layer for layer in layers if "*" in layer]
    rising = sources == sorted(sources)
    twice = bool(sources) and max(map(sources.count, sources)) == 2
    singly = rising and twice
    if copied:
        return "zeroed interleaved" if singly and all(x.endswith("*") for x in copied) else "other"
    return "interleaved" if singly else "neighbour" if len(sources) > len(set(sources)) else "other"


def interval(
    statistic: Statistic, losses: NDArray[np.float64], draws: int, candidates: bool = True
) -> tuple[float, float]:
    """The 95 % percentiles of a statistic over draws of seeds, and of candidates; draws of which it
    says nothing are left out.
    """
    random = np.random.default_rng(0)
    _, pool, seeds = losses.shape
    chosen = random.integers(seeds, size=(draws, seeds))
    members = random.integers(pool, size=(draws, pool)) if candidates else None
    low, high = np.nanpercentile(statistic(resampled(losses, chosen, members)), [2.5, 97.5])
    return float(low), float(high)


def resampled(
    losses: NDArray[np.float64],
    seeds: NDArray[np.int64],
    candidates: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Losses `[steps, candidates, seeds]` with these seeds, `[draws, seeds]`, and these candidates,
    `[draws, candidates]`, of each draw, by default all: `[draws, steps, candidates, seeds]`.
    """
    if candidates is None:
        candidates = np.arange(losses.shape[1])[None]
    return np.moveaxis(losses[:, candidates[:, :, None], seeds[:, None, :]], 1, 0)


def finals(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Final losses' means over seeds, `[..., candidates]`."""
    return np.asarray(losses[..., -1, :, :].mean(axis=-1))


def _behind(losses: NDArray[np.float64], members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """By how much the best of some members ends above the best of all."""
    final = finals(losses)
    return np.asarray(final[..., members].min(axis=-1) - final.min(axis=-1))


def _part(
    what: str,
    statistic: Statistic,
    losses: NDArray[np.float64],
    threshold: float,
    above: bool,
    draws: int,
    candidates: bool = True,
) -> Part:
    found = interval(statistic, losses, draws, candidates)
    return Part(what, float(statistic(losses)), found, threshold, above)
