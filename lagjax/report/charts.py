"""The pictures of a run, each drawn for a wide page and for a phone.

matplotlib is asked for here only, and only when a page is made: it is the extra `report`.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from lagjax.analysis.audit import Audit
from lagjax.report import labels, svg
from lagjax.report.curves import Curve
from lagjax.report.facts import Facts, ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Sheet(NamedTuple):
    """The paper: sizes in CSS pixels at full width."""

    name: str
    width: int
    font: float
    right: int  # room for the names of candidates
    name_length: int


WIDE = Sheet("wide", 1000, 13.0, 190, 24)
NARROW = Sheet("narrow", 328, 12.0, 112, 12)

C = svg.COLOURS


class Look(NamedTuple):
    """How the line of a candidate is drawn."""

    colour: str
    width: float
    dashes: Any
    opacity: float
    order: int


LOOKS = {
    "winner": Look(C["winner"], 2.6, "solid", 1.0, 9),
    "runner": Look(C["runner"], 2.0, (0, (6, 2)), 1.0, 8),
    "start": Look(C["start"], 2.0, (0, (6, 2, 1.5, 2)), 1.0, 7),
    "failed": Look(C["failed"], 1.3, "solid", 0.9, 5),
    "other": Look(C["other"], 1.2, "solid", 0.75, 4),
    "control": Look(C["control"], 1.2, (0, (1.5, 2)), 0.9, 3),
}


def role(facts: Facts, name: str) -> str:
    """The key of a candidate in LOOKS: what is most worth seeing about it."""
    if name == facts.winner:
        return "winner"
    if name == facts.runner_up:
        return "runner"
    if name == facts.start_choice:
        return "start"
    if facts.status.get(name, "ok") != "ok":
        return "failed"
    return "control" if name in facts.controls else "other"


def curves(facts: Facts, sheet: Sheet) -> str:
    """Every candidate's validation loss from growing to the end of what was trained."""
    lines = facts.probes
    steps = [step for curve in _all_curves(facts) for step in curve.steps]
    with _figure(sheet, 420 if sheet is WIDE else 340) as (figure, axes):
        place = Steps(steps)
        place.ticks(axes, sheet, facts.lag if facts.decision else None)
        ranked = [curve for name, curve in lines.items() if _counts(facts, name)]
        ranked += [curve for name, curve in facts.continued.items()]
        losses = [loss for curve in ranked or _all_curves(facts) for loss in curve.losses]
        if facts.source and facts.source.losses:
            losses.append(facts.source.losses[-1])
        _limits(axes, losses)
        _lag_line(axes, place, facts)
        for name, curve in lines.items():
            _line(axes, place, curve, LOOKS[role(facts, name)])
        for name, curve in facts.continued.items():
            _line(axes, place, curve, LOOKS[role(facts, name)])
        tags = [
            labels.Tag(
                curve.losses[-1],
                _short(name, sheet),
                C[role(facts, name)],
                place(curve.steps[-1]),
            )
            for name, curve in (lines | facts.continued).items()
            # A name stands where its line ends; one that ends at the lag is named in the next picture.
            if curve.steps and place(curve.steps[-1]) >= place.right - 1e-9
            if role(facts, name) in ("winner", "runner", "start")
        ]
        if facts.source and facts.source.losses:
            level = facts.source.losses[-1]
            axes.axhline(level, color=C["source"], linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
            tags.append(labels.Tag(level, "small model", C["source"], place.right))
        labels.column(axes, tags, sheet.font, place.right)
        return svg.inline(figure, f"c{sheet.name[0]}", "Validation loss against step")


def probes(facts: Facts, sheet: Sheet) -> str:
    """Each probe's loss above that of the winner at the same step: what all have in common is gone, so they stand apart.

    Without a decision the best so far takes the winner's place.
    """
    best = facts.probes[facts.winner or facts.ranking[0]]
    shown = {
        name: Curve(steps, tuple(gaps), curve.seeds)
        for name, curve in facts.probes.items()
        if _counts(facts, name)
        for steps, gaps in [_above(curve, best)]
        if steps
    }
    room = round(1.35 * sheet.font * len(shown)) + 100
    with _figure(
        sheet,
        max(420 if sheet is WIDE else 340, room),
        title="loss above the winner's" if facts.winner else "loss above the best's",
    ) as (figure, axes):
        place = Steps([step for curve in shown.values() for step in curve.steps])
        place.ticks(axes, sheet, facts.lag if facts.decision else None)
        ends = sorted(curve.losses[-1] for curve in shown.values())
        # A straggler may lie outside: it would squeeze the others, which are what the choice is among.
        high = min(ends[-1], 3 * ends[len(ends) // 2]) or 0.01
        axes.set_ylim(-0.4 * high, 1.25 * high)
        _lag_line(axes, place, facts)
        for name, curve in shown.items():
            _line(axes, place, curve, LOOKS[role(facts, name)])
        tags = [
            labels.Tag(
                curve.losses[-1],
                _short(name, sheet) + (f"  {curve.losses[-1]:.4f}" if sheet is WIDE else ""),
                _text_colour(facts, name),
                place(curve.steps[-1]),
            )
            for name, curve in shown.items()
        ]
        labels.column(axes, tags, sheet.font, place.right)
        return svg.inline(figure, f"p{sheet.name[0]}", "Loss above the winner's at the same step")


def start_against_lag(facts: Facts, sheet: Sheet) -> str:
    """Loss right after growing against loss at the lag, a dot for each candidate."""
    points = pairs(facts)
    with _figure(
        sheet,
        440 if sheet is WIDE else 340,
        right=24,
        title="loss at the lag, nats per token",
        bottom=48,
    ) as (figure, axes):
        axes.set_xlabel("loss right after growing, nats per token", color=C["muted"])
        _limits(axes, [end for _, end in points.values()])
        starts = [start for start, _ in points.values()]
        pad = 0.08 * (max(starts) - min(starts)) or 0.05
        axes.set_xlim(min(starts) - pad, max(starts) + pad)
        places = ranks({name: end for name, (_, end) in points.items()})
        dots = []
        # What is most worth seeing is named first; the rest from the bottom up.
        by_weight = sorted(
            points,
            key=lambda name: (-LOOKS[role(facts, name)].order, points[name][1]),
        )
        for name in by_weight:
            start, end = points[name]
            look = LOOKS[role(facts, name)]
            axes.plot(
                [start],
                [end],
                marker="o",
                markersize=8 if look.order > 6 else 6,
                color=look.colour,
                markeredgecolor=C["surface"],
                linestyle="none",
                zorder=look.order,
            )
            text = _short(name, sheet) if sheet is WIDE else f"{places[name]:g}"
            dots.append(labels.Dot(start, end, text, _text_colour(facts, name)))
        labels.around(axes, dots, sheet.font)
        return svg.inline(
            figure,
            f"s{sheet.name[0]}",
            "Loss right after growing against loss at the lag",
        )


def ranking(facts: Facts, sheet: Sheet) -> str:
    """The rank of each candidate at each evaluation of the probes."""
    shown = {name: curve for name, curve in facts.probes.items() if _ranked(facts, name)}
    steps = sorted({step for curve in shown.values() for step in curve.steps})
    # A step counts where every candidate that is still alive has been measured; others would make ranks jump.
    paths: dict[str, list[tuple[int, float]]] = {name: [] for name in shown}
    for step in steps:
        here = {name: loss for name, curve in shown.items() if (loss := curve.at(step)) is not None}
        alive = [
            name
            for name, curve in shown.items()
            if not curve.failed or step < (curve.failed_at or 0)
        ]
        if set(alive) <= set(here):
            for name, rank in ranks(here).items():
                paths[name].append((step, rank))
    height = max(200, round((26 if sheet is WIDE else 21) * len(shown)) + 70)
    with _figure(sheet, height, left=38, title="rank (1 is the lowest loss)") as (
        figure,
        axes,
    ):
        place = Steps([step for path in paths.values() for step, _ in path])
        place.ticks(axes, sheet, facts.lag if facts.decision else None)
        axes.set_ylim(len(shown) + 0.5, 0.5)
        axes.set_yticks(range(1, len(shown) + 1))
        axes.tick_params("y", pad=9)
        axes.grid(visible=False)
        tags = []
        for name, path in paths.items():
            if not path:
                continue
            look = LOOKS[role(facts, name)]
            xs = [place(step) for step, _ in path]
            ys = [rank for _, rank in path]
            axes.plot(
                xs,
                ys,
                color=look.colour,
                linewidth=look.width + 0.4,
                linestyle=look.dashes,
                alpha=look.opacity,
                zorder=look.order,
                marker="o",
                markersize=4.5 if look.order > 6 else 3,
                markeredgewidth=0,
                clip_on=False,
            )
            if shown[name].failed:
                _cross(axes, xs[-1], ys[-1])
                # Beside its end: a hair line to the column would look as if it went on.
                labels.beside(axes, xs[-1], ys[-1], _short(name, sheet), C["failed"])
                continue
            tags.append(labels.Tag(ys[-1], _short(name, sheet), _text_colour(facts, name), xs[-1]))
        labels.column(axes, tags, sheet.font, place.right)
        return svg.inline(figure, f"r{sheet.name[0]}", "Rank of each candidate at each evaluation")


def foresight(facts: Facts, sheet: Sheet) -> str:
    """Spearman's correlation of the losses at each step with the final ones, and its range over seeds."""
    audit = _required(facts.audit)
    told = [each for each in audit.moments if each.agreement.spearman is not None]
    with _figure(sheet, 300, right=24, title="rank correlation with the final loss") as (
        figure,
        axes,
    ):
        place = _audit_steps(axes, sheet, facts, audit)
        axes.set_ylim(-1.05, 1.05)
        axes.set_yticks([-1, -0.5, 0, 0.5, 1])
        bars = [each for each in told if each.spread]
        axes.vlines(
            [place(each.step) for each in bars],
            [each.spread[0] for each in bars if each.spread],
            [each.spread[1] for each in bars if each.spread],
            color=C["other"],
            linewidth=4,
            alpha=0.5,
        )
        axes.plot(
            [place(each.step) for each in told],
            [each.agreement.spearman or 0.0 for each in told],
            color=C["winner"],
            linewidth=2.2,
            marker="o",
            markersize=4,
        )
        return svg.inline(
            figure, f"f{sheet.name[0]}", "Rank correlation with the final loss by step"
        )


def regret(facts: Facts, sheet: Sheet) -> str:
    """What the choice at each step loses at the end, with the noise floor and a random choice."""
    audit = _required(facts.audit)
    with _figure(sheet, 300, title="regret of the choice at a step, nats per token") as (
        figure,
        axes,
    ):
        place = _audit_steps(axes, sheet, facts, audit)
        values = [each.regret for each in audit.moments]
        high = 1.12 * max(*values, audit.random_regret, audit.noise_floor or 0.0)
        axes.set_ylim(-0.04 * high, high)
        levels = {"random choice": audit.random_regret}
        if audit.noise_floor is not None:
            levels["noise floor"] = audit.noise_floor
        for level in levels.values():
            axes.axhline(level, color=C["source"], linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
        axes.plot(
            [place(each.step) for each in audit.moments],
            values,
            color=C["winner"],
            linewidth=2.2,
            marker="o",
            markersize=4,
        )
        tags = [labels.Tag(level, name, C["source"], place.right) for name, level in levels.items()]
        labels.column(axes, tags, sheet.font, place.right)
        return svg.inline(figure, f"g{sheet.name[0]}", "Regret of the choice by step")


def _required(audit: Audit | None) -> Audit:
    if audit is None:
        raise ValueError("the run is no audit, or has not come to its end")
    return audit


def _audit_steps(axes: "Axes", sheet: Sheet, facts: Facts, audit: Audit) -> "Steps":
    place = Steps([each.step for each in audit.moments])
    place.ticks(axes, sheet, facts.lag if facts.decision else None)
    _lag_line(axes, place, facts)
    found = audit.transition
    if found.low is not None and found.high is not None:
        axes.axvspan(
            place(round(found.low)),
            place(round(found.high)),
            color=C["other"],
            alpha=0.15,
            linewidth=0,
        )
    return place


def pairs(facts: Facts) -> dict[str, tuple[float, float]]:
    """Loss right after growing and loss at the lag of each candidate that has both, controls left out."""
    return {
        name: (start, end)
        for name in facts.probes
        if _ranked(facts, name)
        and (start := facts.at_start.get(name)) is not None
        and (end := facts.at_lag.get(name)) is not None
    }


def rank_correlation(facts: Facts) -> float | None:
    """Spearman's rank correlation of the two losses; None where fewer than three candidates or no differences make it empty."""
    from scipy import stats

    points = pairs(facts)
    start = ranks({name: pair[0] for name, pair in points.items()})
    end = ranks({name: pair[1] for name, pair in points.items()})
    if len(points) < 3 or len(set(start.values())) < 2 or len(set(end.values())) < 2:
        return None
    return float(
        stats.spearmanr([start[name] for name in points], [end[name] for name in points]).statistic
    )


class Steps:
    """Where a step stands: logarithmic, with step 0 at the left edge, half a decade at most before the first evaluation."""

    def __init__(self, steps: Sequence[int]) -> None:
        later = sorted({step for step in steps if step > 0})
        self.first = math.log10(later[0]) if later else 0.0
        self.last = math.log10(later[-1]) if later else 1.0
        gap = min(0.5, 0.12 * max(self.last - self.first, 0.5))
        self.zero = self.first - gap
        self.left = self.zero if 0 in steps or not later else self.first
        self.right = max(self.last, self.first + 0.1)

    def __call__(self, step: int) -> float:
        return math.log10(step) if step > 0 else self.zero

    def ticks(self, axes: "Axes", sheet: Sheet, lag: int | None) -> None:
        """Puts ticks at 1, 2 and 5 times powers of ten, as many as have room, at 0 and at the lag."""
        axes.set_xlim(self.left, self.right)
        span = self.right - self.left
        room = (sheet.font * 3.6) / (sheet.width - sheet.right - 50) * span
        wanted = [0] * (self.left == self.zero) + ([lag] if lag else [])
        powers = range(math.floor(self.first), math.ceil(self.last) + 1)
        for factors in ((1,), (2, 5)):
            wanted += [factor * 10**power for power in powers if power >= 0 for factor in factors]
        kept: list[int] = []
        for step in wanted:
            x = self(step)
            inside = step == 0 or self.first - 1e-9 <= x <= self.right + 1e-9
            if inside and all(abs(x - self(other)) >= room for other in kept):
                kept.append(step)
        axes.set_xticks(
            [self(step) for step in kept],
            [f"{step:,}".replace(",", "\u2009") + "\nlag" * (step == lag) for step in kept],
        )
        axes.set_xlabel("training steps after growing", color=C["muted"])


@contextlib.contextmanager
def _figure(
    sheet: Sheet,
    height: int,
    left: int = 50,
    right: int | None = None,
    title: str = "validation loss, nats per token",
    bottom: int = 62,
) -> Iterator[tuple["Figure", "Axes"]]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "The charts of a report need matplotlib: pip install 'lagjax[report]'"
        ) from error
    settings: dict[str, Any] = svg.SETTINGS | {
        "font.size": sheet.font,
        "text.color": C["ink"],
        "axes.edgecolor": C["line"],
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.titlesize": sheet.font,
        "axes.titlecolor": C["muted"],
        "axes.labelsize": sheet.font,
        "axes.unicode_minus": True,
        "axes.formatter.useoffset": False,
        "grid.color": C["line"],
        "grid.linewidth": 0.8,
        "xtick.color": C["line"],
        "xtick.labelcolor": C["muted"],
        "ytick.color": C["line"],
        "ytick.labelcolor": C["muted"],
        "ytick.major.size": 0,
        "lines.solid_capstyle": "round",
    }
    right = sheet.right if right is None else right
    with matplotlib.rc_context(cast(Any, settings)), warnings.catch_warnings():
        # A name may hold letters that this font lacks; the browser's fonts have them.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(sheet.width / 72, height / 72), dpi=72, facecolor="none")
        top = 30
        axes = figure.add_axes(
            (
                left / sheet.width,
                bottom / height,
                1 - (left + right) / sheet.width,
                1 - (bottom + top) / height,
            )
        )
        axes.set_title(
            title,
            loc="left",
            x=-left / (sheet.width - left - right),
        )
        yield figure, axes


def _all_curves(facts: Facts) -> list[Curve]:
    return [*facts.probes.values(), *facts.continued.values()]


def _ranked(facts: Facts, name: str) -> bool:
    return name not in facts.controls


def _counts(facts: Facts, name: str) -> bool:
    """Whether a candidate's losses decide how far an axis reaches: what failed or was never to win would hide the rest."""
    return _ranked(facts, name) and facts.status.get(name, "ok") == "ok"


def _above(curve: Curve, best: Curve) -> tuple[tuple[int, ...], list[float]]:
    """By how much a curve lies above another, at the steps that both have."""
    steps = tuple(step for step in curve.steps if step in best.steps)
    mine, other = (dict(zip(each.steps, each.losses, strict=True)) for each in (curve, best))
    return steps, [mine[step] - other[step] for step in steps]


def _line(axes: "Axes", place: Steps, curve: Curve, look: Look) -> None:
    xs = [place(step) for step in curve.steps]
    if not xs:
        return
    axes.plot(
        xs,
        curve.losses,
        color=look.colour,
        linewidth=look.width,
        linestyle=look.dashes,
        alpha=look.opacity,
        zorder=look.order,
        marker="o" if len(xs) == 1 else "",
    )
    if curve.failed:
        _cross(axes, xs[-1], curve.losses[-1])


def _cross(axes: "Axes", x: float, y: float) -> None:
    axes.plot(
        [x],
        [y],
        marker="X",
        markersize=9,
        color=C["failed"],
        markeredgecolor=C["surface"],
        zorder=10,
        linestyle="none",
        clip_on=False,
    )


def _lag_line(axes: "Axes", place: Steps, facts: Facts) -> None:
    if facts.decision and facts.lag:
        axes.axvline(place(facts.lag), color=C["muted"], linewidth=1, zorder=1)


def _limits(axes: "Axes", losses: Sequence[float]) -> None:
    low, high = min(losses, default=0.0), max(losses, default=1.0)
    pad = 0.06 * (high - low) or 0.05
    axes.set_ylim(low - pad, high + pad)


def _text_colour(facts: Facts, name: str) -> str:
    key = role(facts, name)
    return C[key] if key in ("winner", "runner", "start", "failed") else C["muted"]


def _short(name: str, sheet: Sheet) -> str:
    return name if len(name) <= sheet.name_length else name[: sheet.name_length - 1] + "…"
