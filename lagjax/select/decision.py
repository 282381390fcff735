"""Choosing: policies that look at probes and either ask for more steps or decide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lagjax.analysis.agreement import START_TOLERANCE
from lagjax.analysis.ledger import Ledger
from lagjax.analysis.margin import Margin, margin


class Probes(NamedTuple):
    """What has been measured so far, candidates in the pool's order.

    Attributes:
        names: of the candidates.
        controls: the names among them that may not win.
        steps: the evaluations that every candidate that has not failed has reached.
        losses: nats per token, `[steps, candidates, seeds, shards]`; NaN from where a candidate failed.
        counts: tokens of each validation shard, `[shards]`.
        status: name → "ok" or why it failed.
    """

    names: tuple[str, ...]
    controls: frozenset[str]
    steps: tuple[int, ...]
    losses: NDArray[np.float64]
    counts: NDArray[np.float64]
    status: Mapping[str, str]

    def means(self, step: int) -> dict[str, float | None]:
        """Name → loss at a step, the mean over seeds, or None where it is not finite."""
        losses = self.losses[self.steps.index(step)]
        means = (losses * (self.counts / self.counts.sum())).sum(axis=-1).mean(axis=-1)
        return {name: float(x) if np.isfinite(x) else None for name, x in zip(self.names, means)}

    def margin(self, step: int, one: str, other: str) -> Margin:
        """How much lower the loss of `one` is than that of `other`, paired, with its 95 % interval."""
        losses = self.losses[self.steps.index(step)]
        return margin(losses[self.names.index(one)], losses[self.names.index(other)], self.counts)


class Decision(NamedTuple):
    """What was chosen, and how surely.

    Attributes:
        winner: the candidate to go on with; None where all have failed.
        runner_up: the best of the others.
        outcome: `clear`: the interval of the leader's margin over the next one lies above 0. `tie`: it does not, and
            the earliest in the pool's order of those tied with the leader is kept. `all_failed`.
        lag: the step at which it was decided.
        margin: runner-up minus winner at the lag, nats per token, seed mean; negative where a tie kept the second.
        margin_interval: its 95 % interval, paired by seed and validation shard.
        ranking: names, lowest loss at the lag first; failed ones are left out.
        losses_at_start: name → loss right after growing, or None.
        losses_at_lag: name → loss at the lag, or None.
        status: name → "ok" or why not.
        tied: the candidates that cannot be told from the leader, in the pool's order; one where it is clear.
        ledger: what the search cost.
    """

    winner: str | None
    runner_up: str | None
    outcome: Literal["clear", "tie", "all_failed"]
    lag: int
    margin: float | None
    margin_interval: tuple[float, float] | None
    ranking: tuple[str, ...]
    losses_at_start: Mapping[str, float | None]
    losses_at_lag: Mapping[str, float | None]
    status: Mapping[str, str]
    tied: tuple[str, ...]
    ledger: Ledger | None = None

    def as_json(self) -> dict[str, Any]:
        """The decision as plain data."""
        return {**self._asdict(), "ledger": self.ledger and self.ledger._asdict()}


class Policy(Protocol):
    """Decides, or asks for more: returns the step up to which all candidates shall be probed next.

    It is called with no steps measured first, and must not ask for a step beyond the horizon.
    """

    def __call__(self, probes: Probes, horizon: int, /) -> int | Decision: ...


@dataclass(frozen=True)
class FixedLag:
    """Decides at a fixed lag by the lowest loss (Karp et al. 2024, arXiv 2406.02469): `steps`, or a `share` of the horizon."""

    steps: int | None = None
    share: float | None = None

    def lag(self, horizon: int) -> int:
        """The lag in steps; raises ValueError where it does not lie within the horizon."""
        if (self.steps is None) == (self.share is None):
            raise ValueError(f"{self}: give either steps or a share of the horizon")
        lag = (
            round(self.share * horizon)
            if self.steps is None and self.share is not None
            else self.steps
        )
        if lag is None or not 1 <= lag <= horizon:
            raise ValueError(
                f"the lag is {lag} steps, the horizon {horizon}; give a lag from 1 to the horizon"
            )
        return lag

    def __call__(self, probes: Probes, horizon: int, /) -> int | Decision:
        lag = self.lag(horizon)
        return decide(probes, lag) if lag in probes.steps else lag


def decide(probes: Probes, lag: int) -> Decision:
    """Takes the lowest loss at the lag; see `Decision` for ties."""
    start, losses = probes.means(probes.steps[0]), probes.means(lag)
    finite = {name: loss for name, loss in losses.items() if loss is not None}
    ranking = tuple(sorted(finite, key=lambda name: finite[name]))
    able = [name for name in ranking if name not in probes.controls]
    if not able:
        return Decision(
            None,
            None,
            "all_failed",
            lag,
            None,
            None,
            ranking,
            start,
            losses,
            probes.status,
            (),
        )
    leader, *others = able
    tied = {leader} | {name for name in others if probes.margin(lag, leader, name).low <= 0}
    in_order = tuple(name for name in probes.names if name in tied)
    winner = in_order[0]
    runner_up = next((name for name in able if name != winner), None)
    found = probes.margin(lag, winner, runner_up) if runner_up else None
    return Decision(
        winner,
        runner_up,
        "tie" if len(tied) > 1 else "clear",
        lag,
        found and found.mean,
        (found.low, found.high) if found and np.isfinite(found.low) else None,
        ranking,
        start,
        losses,
        probes.status,
        in_order,
    )


def start_choice(
    losses_at_start: Mapping[str, float | None],
    controls: Sequence[str] | frozenset[str] = (),
) -> str | None:
    """What the loss right after growing would have chosen: the lowest, and of equal ones the first by the alphabet.

    Equal means within `START_TOLERANCE`, relatively; controls are not chosen. The order of the pool, which may hold
    experience, does not help this choice.
    """
    losses = {
        name: loss
        for name, loss in losses_at_start.items()
        if loss is not None and name not in controls
    }
    if not losses:
        return None
    lowest = min(losses.values())
    # A loss may be negative: the tolerance is a share of its size.
    bound = lowest + START_TOLERANCE * abs(lowest)
    return min(name for name, loss in losses.items() if loss <= bound)
