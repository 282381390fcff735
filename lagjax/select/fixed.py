"""The policy of the paper: a fixed lag."""

from dataclasses import dataclass

from lagjax.arguments import real, whole
from lagjax.evidence import Evidence
from lagjax.select.decision import Answer, Probe, decide


@dataclass(frozen=True)
class FixedLag:
    """Decides at a fixed lag by the lowest loss (Karp et al. 2024, arXiv 2406.02469): `steps`, the
    same for all, or a `share` of each one's own horizon.
    """

    steps: int | None = None
    share: float | None = None

    def lag(self, horizon: int) -> int:
        """The lag in steps; raises ValueError where it does not lie within the horizon."""
        if (self.steps is None) == (self.share is None):
            raise ValueError(f"{self}: give either steps or a share of the horizon")
        share = None if self.share is None else real(self.share, "the lag's share")
        given = self.steps if share is None else round(share * horizon)
        return whole(given, f"the lag at a horizon of {horizon}", most=horizon)

    def __call__(self, evidence: Evidence, /) -> Answer:
        lag = self.lag(evidence.horizon)
        if self.share is None:
            return decide(evidence, lag) if evidence.frontier >= lag else Probe(lag)
        own = {name: self.lag(known.horizon) for name, known in evidence.known.items()}
        if all(evidence.reached(name) >= step for name, step in own.items()):
            return decide(evidence)
        return Probe(own if len({*own.values()}) > 1 else lag)
