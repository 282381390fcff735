"""A curve as pages draw it."""

from typing import NamedTuple


class Curve(NamedTuple):
    """Mean validation losses by step, rising.

    The curve ends before the first step at which any of its seeds has no finite loss: a mean over
    fewer seeds would jump. `failed` then says why.
    """

    losses: dict[int, float]
    failed: str | None = None

    @property
    def last(self) -> float | None:
        return next(reversed(self.losses.values()), None)

    def until(self, end: int) -> "Curve":
        """The curve up to a step; whether it failed later is not said."""
        kept = {step: loss for step, loss in self.losses.items() if step <= end}
        return self if len(kept) == len(self.losses) else Curve(kept)
