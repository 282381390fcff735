"""What the rows of `evidence.py` say: by which weights to choose, when, and how sure to be."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.rows import Row, alike, markdown

SHOWN = (0, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2)
"""Of the horizon, the steps of the tables; all are in the rows."""
FIRST = 1 / 16
"""Of the horizon: where verdicts begin, and lags. Before it the rate is still being warmed up, and
an average is mostly what the weights were right after growing."""
HEAD = "## Evidence: which signal tells early who ends best"


class Verdict(NamedTuple):
    """Whether an average is better evidence than the weights themselves.

    Attributes:
        signal: the average.
        worst: the regime and step at which its regret is furthest above that of the weights at the
            same cost, over the noise floor; and by how much, in nats.
        gain: by how much its regret is lower at the same cost, in nats, the mean over regimes and
            steps.
        better: regimes in which it is lower at some step by more than the noise floor.
    """

    signal: str
    worst: tuple[str, int, float]
    gain: float
    better: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether it is nowhere worse by more than the noise floor, and better somewhere."""
        return self.worst[2] <= 0 and bool(self.better)


def name_of(row: Row) -> str:
    """A signal with its share."""
    return " ".join(filter(None, (row["signal"], row["share"])))


def means(rows: Sequence[Row], field: str) -> dict[tuple[str, str, int], float]:
    """Regime, signal and step → the mean over seeds."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        value = row[field]
        found.setdefault((row["regime"], name_of(row), row["step"]), []).append(
            np.nan if value is None else value
        )
    return {key: float(np.mean(values)) for key, values in found.items()}


def verdicts(rows: Sequence[Row], first: float = FIRST) -> list[Verdict]:
    """One for each signal but the weights themselves, those that hold first, then by gain.

    At a signal's step the weights are judged at the same cost: between the two steps around it,
    where a signal costs more than they do. Steps before the share `first` of the horizon do not
    count.
    """
    regret, cost = means(rows, "regret_nats"), means(rows, "cost")
    floors = {row["regime"]: row["noise_floor"] for row in rows}
    horizons = {row["regime"]: row["config"]["horizon"] for row in rows}
    found = []
    for signal in dict.fromkeys(name_of(row) for row in rows):
        if signal == "raw":
            continue
        gaps = []
        for (regime, which, step), mine in regret.items():
            if which != signal or step < first * horizons[regime]:
                continue
            raw = sorted(
                (cost[key], regret[key]) for key in regret if key[:2] == (regime, "raw") and key[2]
            )
            costs, regrets = zip(*raw)
            other = float(np.interp(cost[regime, signal, step], costs, regrets))
            gaps.append((regime, step, mine - other))
        if not gaps:
            continue
        over = [(regime, step, gap - floors[regime]) for regime, step, gap in gaps]
        better = [regime for regime, _, gap in gaps if gap < -floors[regime]]
        gain = -float(np.mean([gap for *_, gap in gaps]))
        worst = max(over, key=lambda each: each[2])
        found.append(Verdict(signal, worst, gain, tuple(dict.fromkeys(better))))
    return sorted(found, key=lambda each: (not each.holds, -each.gain))


class Default(NamedTuple):
    """What follows from the rows.

    Attributes:
        signal: the average that holds with the largest gain.
        share: of the horizon: the shortest lag, from a sixteenth on, at which its regret is within
            the noise floor in every regime; None where it nowhere is.
        lines: regime → regret of the start's choice, of this one and of a random one, in nats, and
            what this one costs, in full runs.
    """

    signal: str
    share: float | None
    lines: dict[str, tuple[float, float, float, float]]


def default(rows: Sequence[Row]) -> Default | None:
    """The default of `FixedLag`; None where no average holds."""
    averages = {name_of(row) for row in rows if row["share"]}
    holding = [each.signal for each in verdicts(rows) if each.holds and each.signal in averages]
    if not holding:
        return None
    regret, cost = means(rows, "regret_nats"), means(rows, "cost")
    floors = {row["regime"]: row["noise_floor"] for row in rows}
    random = {row["regime"]: row["random_regret"] for row in rows}
    horizons = {row["config"]["horizon"] for row in rows}
    for step in sorted({row["step"] for row in rows}):
        at = {regime: (regime, holding[0], step) for regime in floors}
        early = len(horizons) != 1 or step < FIRST * max(horizons)
        # What has no row is not within the noise.
        if early or any(not regret.get(at[x], np.nan) <= floor for x, floor in floors.items()):
            continue
        lines = {
            regime: (regret.get((regime, "raw", 0), np.nan), regret[key], random[regime], cost[key])
            for regime, key in at.items()
        }
        return Default(holding[0], step / max(horizons), lines)
    return Default(holding[0], None, {})


def interval(rows: Sequence[Row]) -> str | None:
    """The narrowest method whose intervals hold nine times out of ten in every regime."""
    found: dict[str, list[tuple[float, float]]] = {}
    for method, regime in dict.fromkeys((row["method"], row["regime"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["regime"]) == (method, regime)]
        covered, width = (float(np.mean([x[key] for x in mine])) for key in ("coverage", "width"))
        found.setdefault(method, []).append((covered, width))
    enough = {name: each for name, each in found.items() if min(c for c, _ in each) >= 0.9}
    return min(enough, key=lambda name: sum(w for _, w in enough[name]), default=None)


def sections(rows: list[Row]) -> list[str]:
    """A part for the whole, with a table for each regime."""
    if not rows:
        return []
    rho, regret = means(rows, "spearman"), means(rows, "regret_nats")
    signals = list(dict.fromkeys(name_of(row) for row in rows))
    parts = [HEAD, _about(rows)]
    for group in alike(rows):
        regime = group[0]["regime"]
        horizon = group[0]["config"]["horizon"]
        steps = [
            step for step in dict.fromkeys(row["step"] for row in group) if step / horizon in SHOWN
        ]
        lines = [
            (
                signal,
                *(
                    f"{rho[key]:.2f} ({regret[key]:.4f})".replace("-", "−").replace("nan", "–")
                    if (key := (regime, signal, step)) in rho
                    else "–"
                    for step in steps
                ),
            )
            for signal in signals
        ]
        floor = group[0]["noise_floor"]
        parts.append(
            f"\n**{regime}**: {group[0]['about']}. {group[0]['candidates']} candidates, noise floor"
            f" {floor:.4f}, a random choice loses {group[0]['random_regret']:.4f}.\n\n"
            + markdown(("Signal", *(f"step {step}" for step in steps)), lines)
        )
    parts.append("\n![Regret by what the choice costs](results/evidence.svg)\n")
    parts.append(_verdict(rows))
    if (found := default(rows)) and found.share:
        head = ("Regime", "the start", "the default", "a random choice", "cost, full runs")
        lines = [
            (regime, *(f"{x:.4f}" for x in each[:3]), f"{each[3]:.2f}")
            for regime, each in found.lines.items()
        ]
        parts.append(
            f"What follows: by {found.signal}, at {found.share:g} of the horizon, the shortest lag "
            "from a sixteenth on with a regret within\nthe noise floor in every regime. Regret in "
            "nats, means over seeds:\n\n" + markdown(head, lines)
        )
    return ["\n".join(parts)]


def _about(rows: list[Row]) -> str:
    row = rows[0]
    return (
        "`python -m experiments.evidence`: Spearman's correlation of what a signal says at a step "
        "with the final losses, and in\nbrackets the regret of the lowest in nats, means over "
        f"{len({each['seed'] for each in rows})} seeds. Shares are of the horizon of "
        f"{row['config']['horizon']} steps. Commit {str(row['commit'])[:12]}, jax "
        f"{row['versions']['jax']}, {row['device']}, {row['cores']} cores."
    )


def _verdict(rows: list[Row]) -> str:
    lines = []
    for each in verdicts(rows):
        regime, step, excess = each.worst
        lines.append(
            (
                each.signal,
                f"{each.gain:.4f}".replace("-", "−"),
                ", ".join(each.better) or "–",
                f"{regime}, step {step}: {excess:+.4f}".replace("-", "−"),
                "yes" if each.holds else "no",
            )
        )
    early = [each.signal for each in verdicts(rows, 0.0) if each.holds]
    head = (
        *("Signal", "mean gain", "better by more than the floor in"),
        *("worst place, over the floor", "holds"),
    )
    return (
        "Against the weights themselves at equal cost, from a sixteenth of the horizon on. A "
        "signal holds where its regret is nowhere\nhigher by more than the noise floor, and "
        "somewhere lower by more than it. Counted from the first step on, "
        f"{', '.join(early) or 'none'} would.\n\n" + markdown(head, lines)
    )


def coverage(rows: list[Row]) -> list[str]:
    """The table of the intervals' coverage."""
    if not rows:
        return []
    regimes = list(dict.fromkeys(row["regime"] for row in rows))
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        shares = [
            f"{np.mean([row['coverage'] for row in mine if row['regime'] == regime]):.2f}"
            for regime in regimes
        ]
        width = np.mean([row["width"] for row in mine])
        lowest = min(row["coverage"] for row in mine)
        lines.append((method, *shares, f"{lowest:.2f}", f"{width:.4f}"))
    return [
        "## Intervals of what the steps before tell of the steps to come\n"
        "How often the 95 % interval of the mean difference of two candidates' training losses over"
        " the last min(50, step / 4) steps\nholds that of as many steps more; means over steps, "
        "pairs and seeds. Validation's is of its shards at the step.\n\n"
        + markdown(("Method", *regimes, "lowest step", "mean width"), lines)
    ]
