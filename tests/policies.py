"""Policies as a stranger would write them: racing, proposing, uneven, at equal FLOPs."""

import math
from dataclasses import dataclass

import numpy as np

import lagjax
from lagjax import Add, Decision, Evidence, Probe, decide


@dataclass(frozen=True)
class Halving:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943)."""

    first: int
    rate: int = 2

    def __call__(self, evidence: Evidence, /) -> Probe | Decision:
        step = evidence.frontier
        if step == 0:
            return Probe(self.first)
        racing = evidence.ranking(step)
        if len(racing) <= 1 or step * self.rate > evidence.horizon:
            return decide(evidence, step)
        return Probe(step * self.rate, racing[: math.ceil(len(racing) / self.rate)])


@dataclass(frozen=True)
class Evolve:
    """Words proposed in rounds, each a mutation of one of the best two."""

    target: lagjax.Model
    lag: int
    rounds: int = 2

    def __call__(self, evidence: Evidence, /) -> Probe | Add | Decision:
        if waiting := tuple(n for n in evidence.known if evidence.reached(n) < self.lag):
            return Probe(self.lag, waiting)
        if evidence.additions == self.rounds:
            return decide(evidence, self.lag)
        # The evidence is the seed: the same question, the same answer.
        draw = np.random.default_rng(evidence.additions)
        seen, new = {known.word for known in evidence.known.values()}, []
        for parent in evidence.ranking(self.lag)[:2]:
            while (word := mutated(evidence.known[parent].word or "", draw)) in seen:
                pass
            seen.add(word)
            new.append(word)
        return Add(
            tuple(lagjax.Candidate(word, lagjax.Grow(depth=word), self.target) for word in new)
        )


def mutated(word: str, draw: np.random.Generator) -> str:
    """A word with one layer from elsewhere."""
    layers = word.split()
    layers[draw.integers(len(layers))] = str(draw.integers(2))
    return " ".join(layers)


@dataclass(frozen=True)
class AtFlops:
    """All to the step that so many FLOPs buy each."""

    flops: float

    def __call__(self, evidence: Evidence, /) -> Probe | Decision:
        steps = evidence.steps_for(self.flops)
        return decide(evidence) if evidence.asked == steps else Probe(steps)


@dataclass(frozen=True)
class Uneven:
    """One ahead of the others, then all together, then the two best on the steps' own losses."""

    def __call__(self, evidence: Evidence, /) -> Probe | Decision:
        names = tuple(evidence.known)
        if evidence.frontier == 0:
            return Probe({name: 3 for name in names} | {names[0]: 7})
        if evidence.frontier < 12:
            return Probe(12)
        if evidence.frontier == 12:
            one, other = evidence.ranking(12)[:2]
            margin = evidence.train_margin(one, other, 0, 12)
            return Probe(12 + 4 * (margin.low < 0) + 1, (one, other))
        return decide(evidence, 12)
