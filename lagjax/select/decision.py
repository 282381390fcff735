"""Choosing: what a policy may answer, and the decision by the lowest loss."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from lagjax.analysis.agreement import START_TOLERANCE
from lagjax.analysis.ledger import Ledger
from lagjax.arguments import integral
from lagjax.evidence import Evidence
from lagjax.jobs import RAW, Json
from lagjax.task import Candidate


class Probe(NamedTuple):
    """Asks for candidates to be probed.

    Attributes:
        until: the step, one for all or name → step; who is further already stays there.
        candidates: names; by default all that are known, or those that `until` names.
    """

    until: int | Mapping[str, int]
    candidates: tuple[str, ...] | None = None

    def steps(self, known: Sequence[str]) -> dict[str, int]:
        """Name → step, in the pool's order.

        Raises ValueError for a name that is not known, and for one without a step.
        """
        if isinstance(self.until, Mapping):
            until = dict(self.until)
            names = set(until if self.candidates is None else self.candidates)
            if without := (names & set(known)) - until.keys():
                raise ValueError(f"asks for {sorted(without)} without a step; it gives {until}")
        else:
            names = set(known if self.candidates is None else self.candidates)
            until = dict.fromkeys(names, self.until)
        if unknown := names - set(known):
            raise ValueError(f"asks for the candidates {sorted(unknown)}; there are {list(known)}")
        steps = {name: until[name] for name in known if name in names}
        # Policies compute with NumPy, and its integers are no JSON.
        return {n: x if (found := integral(x)) is None else found for n, x in steps.items()}


class Anneal(NamedTuple):
    """Asks for copies of candidates to be annealed from where they stand: trained on while their
    rate goes to 0, evaluated, and dropped. Their losses are of the weights "anneal".

    Attributes:
        share: how many steps, as a share of those that the candidate has made.
        candidates: names; by default all that have begun and not failed.
    """

    share: float = 0.25
    candidates: tuple[str, ...] | None = None

    def steps(self, evidence: Evidence) -> dict[str, int]:
        """Name → steps of the annealing, in the pool's order.

        Raises ValueError for a name that has not begun or has failed.
        """
        ready = [
            name
            for name, known in evidence.known.items()
            if evidence.reached(name) > 0 and known.status == "ok"
        ]
        names = ready if self.candidates is None else [*self.candidates]
        if unready := [name for name in names if name not in ready]:
            raise ValueError(
                f"anneals {unready}; those that have been trained and have not failed are {ready}"
            )
        return {
            name: max(1, round(self.share * evidence.reached(name)))
            for name in evidence.known
            if name in names
        }


class Add(NamedTuple):
    """Adds candidates to the pool, under names of their own."""

    candidates: tuple[Candidate, ...]


class Decision(NamedTuple):
    """What was chosen, and how surely.

    Attributes:
        winner: the candidate to go on with; None where all have failed.
        runner_up: the best of the others.
        outcome: `clear`: the interval of the leader's margin over the next one lies above 0. `tie`:
            it does not, and the earliest in the pool's order of those tied with the leader is kept.
            `all_failed`.
        lag: the step at which it was decided, the winner's.
        margin: runner-up minus winner at the lag, in the loss's unit, seed mean; negative where a
            tie kept the second.
        margin_interval: its 95 % interval, paired by seed and validation shard.
        ranking: names, lowest loss at the lag first; failed ones are left out.
        losses_at_start: name → loss right after growing, or None.
        losses_at_lag: name → loss at the lag, or None.
        status: name → "ok" or why not.
        tied: the candidates that cannot be told from the leader, in the pool's order; one where it
            is clear.
        lags: name → the step that its loss at the lag is of.
        ledger: what the search cost.
        weights: those that were compared: "raw", an average's name, or "anneal".
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
    lags: Mapping[str, int] = {}
    ledger: Ledger | None = None
    weights: str = RAW

    def as_json(self) -> Json:
        """The decision as plain data."""
        return {**self._asdict(), "ledger": self.ledger and self.ledger._asdict()}


Answer: TypeAlias = Probe | Anneal | Add | Decision


class Policy(Protocol):
    """Asks for more, or decides: a pure function, so that the same evidence has the same answer.

    It is called with nothing measured first. It may ask for any step up to a candidate's horizon,
    and must not ask for what it has already seen.
    """

    def __call__(self, evidence: Evidence, /) -> Answer: ...


def decide(evidence: Evidence, step: int | None = None, weights: str = RAW) -> Decision:
    """Takes the lowest loss at a step, by default of each candidate at its own last; see `Decision`
    for ties.

    Controls and baselines are ranked, and never win. Of candidates that a race left behind, only
    those that were measured at the step take part.
    """
    known, step = evidence.known, None if step is None else int(step)
    lags = {name: evidence.reached(name) if step is None else step for name in known}
    losses = evidence.losses_at(lags, weights)
    finite = {name: loss for name, loss in losses.items() if loss is not None}
    ranking = tuple(sorted(finite, key=lambda name: finite[name]))
    start, able = evidence.losses(0), list(evidence.ranking(step, weights))
    status = {name: each.status for name, each in known.items()}
    status |= {
        name: f"stopped at step {evidence.reached(name)}"
        for name in known
        if status[name] == "ok" and evidence.reached(name) < lags[name]
    }
    if not able:
        lag = evidence.frontier if step is None else step
        failed = Decision(
            None, None, "all_failed", lag, None, None, ranking, start, losses, status, (), lags
        )
        return failed._replace(weights=weights)
    leader, *others = able
    behind = [name for name in others if evidence.margin(leader, name, step, weights).low > 0]
    tied = {leader, *others} - {*behind}
    in_order = tuple(name for name in known if name in tied)
    winner = in_order[0]
    runner_up = next((name for name in able if name != winner), None)
    found = evidence.margin(winner, runner_up, step, weights) if runner_up else None
    return Decision(
        winner,
        runner_up,
        "tie" if len(tied) > 1 else "clear",
        lags[winner],
        found and found.mean,
        (found.low, found.high) if found and np.isfinite(found.low) else None,
        ranking,
        start,
        losses,
        status,
        in_order,
        lags,
        weights=weights,
    )


def start_choice(
    losses_at_start: Mapping[str, float | None],
    controls: Sequence[str] | frozenset[str] = (),
) -> str | None:
    """What the loss right after growing would have chosen: the lowest, and of equal ones the first
    by the alphabet.

    Equal means within `START_TOLERANCE`, relatively; controls are not chosen. The order of the
    pool, which may hold experience, does not help this choice.
    """
    losses = {
        name: loss
        for name, loss in losses_at_start.items()
        if loss is not None and name not in controls
    }
    if not losses:
        return None
    lowest = min(losses.values())
    bound = lowest + START_TOLERANCE * abs(lowest)
    return min(name for name, loss in losses.items() if loss <= bound)
