"""The policy of the paper: a fixed lag."""

from dataclasses import dataclass

from lagjax.arguments import real, whole
from lagjax.evidence import Evidence
from lagjax.jobs import RAW
from lagjax.select.decision import Answer, Probe, decide


@dataclass(frozen=True)
class FixedLag:
    """Decides at a fixed lag by the lowest loss (Karp et al. 2024, arXiv 2406.02469): `steps`, the
    same for all, or a `share` of each one's own horizon. `weights` are those that are compared:
    "raw", or the name of one of the task's averages.
    """

    steps: int | None = None
    share: float | None = None
    weights: str = RAW

    def lag(self, horizon: int) -> int:
        """The lag in steps; raises ValueError where it does not lie within the horizon."""
        if (self.steps is None) == (self.share is None):
            raise ValueError(f"{self}: give either steps or a share of the horizon")
        share = None if self.share is None else real(self.share, "the lag's share")
        given = self.steps if share is None else round(share * horizon)
        return whole(given, f"the lag at a horizon of {horizon}", most=horizon)

    def __call__(self, evidence: Evidence, /) -> Answer:
        evidence.check_weights(self.weights)
        lag = self.lag(evidence.horizon)
        if self.share is None:
            reached = evidence.frontier >= lag
            return decide(evidence, lag, self.weights) if reached else Probe(lag)
        own = {name: self.lag(known.horizon) for name, known in evidence.known.items()}
        if all(evidence.reached(name) >= step for name, step in own.items()):
            return decide(evidence, None, self.weights)
        return Probe(own if len({*own.values()}) > 1 else lag)
