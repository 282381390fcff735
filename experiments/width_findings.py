"""What the rows of `width.py` say of its claim, and of each part of the treatment."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.rows import Row, alike, markdown
from experiments.width import ARMS
from lagjax.analysis.margin import Margin, margin

SMALL = "small, continued"
"""What the FLOPs buy without growing."""
HEADINGS = (
    *("Arm", "Family", "Steps", "Parameters", "Jump", "Final loss", "of the seeds"),
    *("Above", "its interval"),
)
PARTS = ("What differs", "Arm", "Against", "Difference", "Interval")


class Contrast(NamedTuple):
    """One arm's final loss less another's, paired by seed and validation shard."""

    arm: str
    other: str
    margin: Margin

    @property
    def numbers(self) -> tuple[str, str]:
        """The difference and its interval."""
        m = self.margin
        return _signed(m.mean), f"{_signed(m.low)} to {_signed(m.high)}"

    def __str__(self) -> str:
        m = self.margin
        side = "above" if m.mean >= 0 else "below"
        low, high = sorted((m.low, m.high) if m.mean >= 0 else (-m.low, -m.high))
        return f"{abs(m.mean):.4f} {side} (95 % interval {_signed(low)} to {_signed(high)})"


class Findings:
    """What the rows of one configuration say, by the seeds that have a row for every arm.

    `seeds` is empty where fewer than three do.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {(row["candidate"], row["seed"]): row for row in rows}
        whole = [
            seed
            for seed in sorted({row["seed"] for row in rows})
            if all((name, seed) in self.rows for name in ARMS)
        ]
        # Two seeds make no interval worth having.
        self.seeds = whole if len(whole) >= 3 else []
        self.shards: dict[str, np.ndarray] = {}
        for name in ARMS if self.seeds else ():
            ends = [self.rows[name, seed]["last_shards"] for seed in self.seeds]
            if None not in ends:
                self.shards[name] = np.array(ends)
        self.final = {name: float(x.mean()) for name, x in self.shards.items()}

    def best(self, *families: str, state: str | None = None) -> str | None:
        """The arm that ends lowest; None where all failed."""
        names = [
            name
            for name in self.final
            if ARMS[name].family in families and state in (None, ARMS[name].state)
        ]
        return min(names, key=lambda name: self.final[name], default=None)

    def against(self, arm: str | None, other: str | None) -> Contrast | None:
        """The difference of two arms; None where one failed."""
        if arm not in self.shards or other not in self.shards:
            return None
        ours, theirs = self.shards[arm], self.shards[other]
        # Every shard has as many tokens.
        return Contrast(arm, other, margin(theirs, ours, np.ones(ours.shape[1])))

    def sentences(self) -> Iterator[str]:
        """The answer."""
        best = self.best
        claim = self.against(best("width"), best("depth"))
        if claim is None:
            yield "A whole family of arms failed: the question has no answer here."
            return
        verdict = (
            "Depth beats width here"
            if claim.margin.low > 0
            else "The claim is refuted: width beats depth here"
            if claim.margin.high < 0
            else f"Whether depth beats width, {len(self.seeds)} seeds do not decide"
        )
        yield (
            f"{verdict}: the best exact width arm ({claim.arm}) ends at "
            f"{self.final[claim.arm]:.4f}, {claim} the best depth arm ({claim.other})."
        )
        added = self.against(best("width"), best("added depth"))
        if added:
            yield (
                f"Against {added.other}, added after the run so that depth too is trained without "
                f"the rule of rates, it ends {added}."
            )
        ruled = self.against(best("width", state="rule"), best("depth", state="rule"))
        if ruled:
            yield (
                "With the state grown and the rule of rates in both, the best exact width arm "
                f"({ruled.arm}) ends {ruled} the best depth arm ({ruled.other})."
            )
        rival = self.against(best("inexact width"), best("depth", state="reset"))
        if rival:
            yield (
                "By inexact operators with the state reset, as in the paper, the best width arm "
                f"({rival.arm}) ends {rival} the best depth arm so trained ({rival.other})."
            )
        grown = self.against(best("depth", "width"), SMALL)
        if grown:
            pays = "pays" if grown.margin.high < 0 else "does not pay"
            yield (
                f"At this budget growing {pays}: the small model, trained on, ends at "
                f"{self.final[SMALL]:.4f}, and the best grown arm ({grown.arm}) ends {grown} it."
            )
        yield "No interval is corrected for choosing the best of several."

    def parts(self) -> list[tuple[str, ...]]:
        """What each part of the treatment changes, for a table under `PARTS`."""
        best = self.best
        width = {state: best("width", state=state) for state in ("reset", "grown", "rule")}
        depth = {state: best("depth", state=state) for state in ("reset", "rule")}
        pairs = [
            ("grown, not from scratch", best("depth"), "deep from scratch"),
            ("grown, not from scratch", best("width"), "wide from scratch"),
            ("exact, not inexact", width["reset"], best("inexact width")),
            ("width, not depth, reset", width["reset"], depth["reset"]),
            ("width, not depth, grown with the rule", width["rule"], depth["rule"]),
            ("width, not depth, grown without it", width["grown"], best("added depth")),
            ("inexact width, not stack", best("inexact width"), "stack, reset"),
        ]
        for name in ("stack", "zeroed-interleave", "zero-pad", "isometric"):
            pairs.append(("state grown, not reset", f"{name}, grown", f"{name}, reset"))
        for name in ("zero-pad", "isometric"):
            pairs.append(("rule of rates, not none", f"{name}, grown, rule", f"{name}, grown"))
        zeroed = "zeroed-interleave, grown"
        pairs.append(("rule of rates, not none", zeroed, f"{zeroed}, no rule"))
        return [
            (what, found.arm, found.other, *found.numbers)
            for what, arm, other in pairs
            if (found := self.against(arm, other))
        ]

    def lines(self) -> list[tuple[str, ...]]:
        """An arm each, best first, for a table under `HEADINGS`."""
        return [self._line(name) for name in sorted(ARMS, key=lambda x: self.final.get(x, np.inf))]

    def _line(self, name: str) -> tuple[str, ...]:
        rows = [self.rows[name, seed] for seed in self.seeds]
        jumps = [
            row["losses"][0] - row["source_losses"][-1]
            for row in rows
            if row["source_losses"] and row["losses"][0] is not None
        ]
        ends = [row["last_shards"] for row in rows]
        above = self.against(name, SMALL) if name != SMALL else None
        return (
            name,
            ARMS[name].family,
            f"{rows[0]['steps']}",
            f"{rows[0]['parameters']:,}",
            _signed(float(np.mean(jumps))) if jumps else "–",
            f"{self.final[name]:.4f}" if name in self.final else "failed",
            ", ".join("failed" if end is None else f"{np.mean(end):.4f}" for end in ends),
            *(above.numbers if above else ("–", "–")),
        )


def _signed(x: float) -> str:
    return f"{x:.4f}".replace("-0.0000", "0.0000").replace("-", "−")


def sections(rows: list[Row]) -> list[str]:
    """A part for each configuration and device of which three seeds are whole."""
    parts = []
    for group in alike(rows):
        found, row = Findings(group), group[0]
        if not found.seeds:
            continue
        config = row["config"]
        commits = ", ".join(dict.fromkeys(str(each["commit"])[:12] for each in group))
        parts.append(
            "## Width against depth\n`python -m experiments.width`: a transformer of "
            f"{config['layers']} layers and {config['heads']} heads of size {config['head_dim']} "
            f"grows after {config['source_steps']} steps to\n{config['grown_layers']} layers, or "
            f"to {config['grown_heads']} heads and {config['grown_heads'] / config['heads']:g} "
            f"times its width. Every arm costs {row['budget']:.3g} FLOPs, "
            f"{config['budget_steps']} steps of the small model,\nof which the small model's "
            f"training takes its part. {len(found.seeds)} seeds, text {config['corpus'][:12]}. "
            f"Commit {commits}, jax {row['versions']['jax']}, {row['device']}, {row['cores']} "
            f"cores.\n\n{' '.join(found.sentences())}\n\n{markdown(HEADINGS, found.lines())}\nJump "
            "is the change of the loss by growing; above and its interval are against the small "
            "model, continued. Intervals are 95 %, of\ndifferences paired by seed and validation "
            f"shard.\n\n{markdown(PARTS, found.parts())}\nDifferences of final losses, the arm's "
            "less the other's: below 0 the arm is better.\n"
        )
    return parts
