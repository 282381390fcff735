"""Losses against steps, as means over seeds."""

from collections.abc import Iterable
from typing import Any, NamedTuple

Line = dict[str, Any]


class Curve(NamedTuple):
    """Mean validation losses (nats per token) at rising steps.

    The curve ends before the first step at which any of its seeds has no finite loss: a mean over fewer seeds would jump.
    `failed` then says why, and `failed_at` at which step.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    seeds: tuple[int, ...]
    failed: str | None = None
    failed_at: int | None = None

    def at(self, step: int) -> float | None:
        """The loss at `step`, None where none was measured."""
        return dict(zip(self.steps, self.losses, strict=True)).get(step)


def mean_over_seeds(lines: Iterable[Line]) -> Curve:
    """The curve of one candidate in one phase."""
    by_seed: dict[int, dict[int, Line]] = {}
    for line in lines:
        by_seed.setdefault(line["seed"], {})[line["step"]] = line
    seeds = tuple(sorted(by_seed))
    common = set.intersection(*map(set, by_seed.values())) if by_seed else set()
    bad = [
        line
        for of_seed in by_seed.values()
        for line in of_seed.values()
        if line["valid_loss"] is None
    ]
    first_bad = min(bad, key=lambda line: line["step"], default=None)
    steps = tuple(step for step in sorted(common) if not first_bad or step < first_bad["step"])
    losses = tuple(
        sum(by_seed[seed][step]["valid_loss"] for seed in seeds) / len(seeds) for step in steps
    )
    if first_bad is None:
        return Curve(steps, losses, seeds)
    return Curve(steps, losses, seeds, str(first_bad["status"]), first_bad["step"])


def by_candidate(lines: Iterable[Line], phase: str) -> dict[str, list[Line]]:
    """The lines of one phase, by candidate, in the order of the file."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        if line["phase"] == phase:
            found.setdefault(line["candidate"], []).append(line)
    return found


def continuation(probe: Iterable[Line], after: Iterable[Line]) -> Curve:
    """What comes after the probe, from the probe's last step on.

    Only the seeds that went on are averaged, at the joint too, so that the line starts where these very trainings stood.
    """
    after = list(after)
    seeds = {line["seed"] for line in after}
    first = min(line["step"] for line in after)
    own = [line for line in probe if line["seed"] in seeds and line["step"] < first]
    last = max((line["step"] for line in own), default=None)
    return mean_over_seeds([line for line in own if line["step"] == last] + after)
