"""The policy of the paper: a fixed lag."""

from dataclasses import dataclass

from lagjax.arguments import real, whole
from lagjax.evidence import Evidence
from lagjax.jobs import RAW
from lagjax.select.decision import Answer, Probe, decide

SHARE = 1 / 16
"""Of the horizon: the shortest lag at which the choice by the best average was within the noise of
the best in every regime of `python -m experiments.evidence`; see experiments/README.md."""


@dataclass(frozen=True)
class FixedLag:
    """Decides at a fixed lag by the lowest loss (Karp et al. 2024, arXiv 2406.02469): `steps`, the
    same for all, or a `share` of each one's own horizon, by default `SHARE`.

    `weights` are those that are compared: "raw", or the name of one of the task's averages; by
    default its first average, and without any the weights themselves.
    """

    steps: int | None = None
    share: float | None = None
    weights: str | None = None

    def lag(self, horizon: int) -> int:
        """The lag in steps; raises ValueError where it does not lie within the horizon."""
        if self.steps is not None and self.share is not None:
            raise ValueError(f"{self}: give either steps or a share of the horizon, not both")
        share = SHARE if self.share is None else real(self.share, "the lag's share")
        # A small share of a short horizon is one step.
        steps = round(share * horizon) or int(share > 0)
        given = steps if self.steps is None else self.steps
        return whole(given, f"the lag at a horizon of {horizon}", most=horizon)

    def __call__(self, evidence: Evidence, /) -> Answer:
        weights = self.weights or next(iter(evidence.averages), RAW)
        evidence.check_weights(weights)
        lag = self.lag(evidence.horizon)
        if self.steps is not None:
            reached = evidence.frontier >= lag
            return decide(evidence, lag, weights) if reached else Probe(lag)
        own = {name: self.lag(known.horizon) for name, known in evidence.known.items()}
        if all(evidence.reached(name) >= step for name, step in own.items()):
            return decide(evidence, None, weights)
        return Probe(own if len({*own.values()}) > 1 else lag)
