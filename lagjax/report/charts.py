"""The pictures of a run, each drawn once: for a screen or a phone, light or dark.

matplotlib is asked for here only, and only when a page is made: it is the extra `report`.
"""

import contextlib
import html
import importlib.util
import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from lagjax.analysis.audit import Audit
from lagjax.report.facts import Facts, ranks
from lagjax.report.sentences import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, FONT = 760, 13.0
"""Pixels at full width; a page scales the picture, and a narrow one scrolls it."""
NAMES = 205
"""Room for names at the right, in pixels."""


class Look(NamedTuple):
    """How the line of a candidate is drawn."""

    text: str
    width: float
    dashes: str | tuple[int, tuple[float, ...]]
    opacity: float
    order: int


LOOKS = {
    "winner": Look("winner", 2.6, "solid", 1.0, 9),
    "runner": Look("runner-up", 2.0, (0, (6, 2)), 1.0, 8),
    "start": Look("lowest right after growing", 2.0, (0, (6, 2, 1.5, 2)), 1.0, 7),
    "failed": Look("failed", 1.3, "solid", 0.9, 5),
    "other": Look("other candidates", 1.2, "solid", 0.75, 4),
    "baseline": Look("baselines", 1.4, (0, (3, 2)), 0.9, 3),
    "control": Look("controls", 1.2, (0, (1.5, 2)), 0.9, 3),
}
TOLD = ("winner", "runner", "start")
# Stand-ins that matplotlib carries through untouched. The page replaces each by a CSS variable, so
# that one drawing serves light and dark.
C = {
    name: f"#0102{number:02x}"
    for number, name in enumerate(("ink", "muted", "line", "surface", "source", *LOOKS))
}
SPINES = ("axes.spines.top", "axes.spines.right", "axes.spines.left")
LINES = ("axes.edgecolor", "grid.color", "xtick.color", "ytick.color")
TEXTS = ("axes.titlecolor", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
STYLE: dict[str, Any] = {
    **dict.fromkeys(SPINES, False),
    **dict.fromkeys(LINES, C["line"]),
    **dict.fromkeys(TEXTS, C["muted"]),
    "text.color": C["ink"],
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "legend.fontsize"), FONT),
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and copied
    "svg.hashsalt": "lagjax",  # ids are the same each time
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.family": "DejaVu Sans",  # comes with matplotlib, and is wider than fonts of browsers
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
}
DOTTED: dict[str, Any] = {"color": C["winner"], "linewidth": 2.2, "marker": "o", "clip_on": False}
PIXELS: dict[str, Any] = {"xycoords": "figure pixels", "textcoords": "figure pixels"}
PIXELS["va"] = "center"
LEVEL: dict[str, Any] = {"color": C["source"], "linewidth": 1.2, "linestyle": (0, (4, 3))}


class Tag(NamedTuple):
    """The name of what ends at (x, y), and its part in the run."""

    x: float
    y: float
    text: str
    part: str

    @property
    def colour(self) -> str:
        return C[self.part if self.part in (*TOLD, "failed", "source") else "muted"]


def curves(facts: Facts) -> str:
    """Every candidate's loss from growing to the end of what was trained."""
    everyone = facts.drawn
    shown = [curve for name, curve in everyone if _counts(facts, name)]
    losses = [x for curve in shown or dict(everyone).values() for x in curve.losses.values()]
    level = facts.source.last if facts.source else None
    with frame(f"{facts.drawn_loss}, {facts.unit}", 450, top=80) as axes:
        right = _steps(axes, [step for _, curve in everyone for step in curve.losses], facts)
        set_limits(axes.set_ylim, losses if level is None else [*losses, level])
        tags = [
            draw_line(axes, facts, name, curve.losses, curve.failed)
            for name, curve in everyone
            if curve.losses
        ]
        # A name stands where its line ends; one that ends earlier is named in the next picture.
        tags = [tag for tag in tags if tag.x == right and tag.part in TOLD]
        if level is not None:
            axes.axhline(level, **LEVEL)
            tags.append(Tag(right, level, "small model", "source"))
        name_ends(axes, tags)
        also = facts.part(facts.start_choice) if facts.start_choice else "start"
        lines = {str(line.get_label()): line for line in axes.lines}
        key = {
            look.text + ", and lowest right after growing" * (part == also != "start"): line
            for part, look in LOOKS.items()
            if (line := lines.get(look.text))
        }
        legend = axes.legend(key.values(), key.keys(), ncols=3, loc="upper left", frameon=False)
        legend.set_bbox_to_anchor((0, 1), axes.figure.transFigure)
        return as_svg(axes, f"{facts.drawn_loss} against step".capitalize())


def probes(facts: Facts) -> str:
    """Each probe's loss above that of the winner at the same step.

    What all have in common is gone, so they stand apart. Without a decision the best so far takes
    the winner's place.
    """
    best = facts.shown[facts.best or ""].losses
    gaps = {
        name: {step: loss - best[step] for step, loss in curve.losses.items() if step in best}
        for name, curve in facts.shown.items()
        if _counts(facts, name)
    }
    gaps = {name: gap for name, gap in gaps.items() if gap}
    title = f"loss above the {'winner' if facts.winner else 'best'}'s, {facts.unit}"
    with frame(title, max(400, round(1.35 * FONT * len(gaps)) + 100)) as axes:
        _steps(axes, [step for gap in gaps.values() for step in gap], facts)
        tags = [draw_line(axes, facts, name, gap) for name, gap in gaps.items()]
        ends = sorted(tag.y for tag in tags)
        # A straggler may lie outside: it would squeeze the others, which the choice is among.
        high = min(ends[-1], 3 * abs(ends[len(ends) // 2])) or 0.01
        axes.set_ylim(min(-0.4 * high, 1.25 * ends[0]), 1.25 * high)
        name_ends(axes, [tag._replace(text=f"{tag.text}  {number(tag.y)}") for tag in tags])
        return as_svg(axes, "Loss above the winner's at the same step")


def start_against_lag(facts: Facts) -> str:
    """Loss right after growing against loss at the lag, a dot for each candidate."""
    points = pairs(facts)
    with frame(f"loss at the lag, {facts.unit}", right=24) as axes:
        axes.set_xlabel(f"loss right after growing, {facts.unit}")
        set_limits(axes.set_xlim, [start for start, _ in points.values()])
        set_limits(axes.set_ylim, [end for _, end in points.values()])
        places = ranks({name: end for name, (_, end) in points.items()})
        taken = [tuple(axes.transData.transform(point)) for point in points.values()]
        for name in sorted(points, key=lambda name: -LOOKS[facts.part(name)].order):
            part = facts.part(name)
            (dot,) = axes.plot(*points[name], "o", color=C[part], zorder=LOOKS[part].order)
            dot.set(markersize=8 if part in TOLD else 6, markeredgecolor=C["surface"])
            # Beside its dot, on the side where no other dot or number is nearest.
            x, y = axes.transData.transform(points[name])
            sides = [(x + dx, y + dy) for dx, dy in ((14, 0), (-14, 0), (0, 14), (0, -14))]
            spot = max(sides, key=lambda side: min(14.0, *(math.dist(side, at) for at in taken)))
            taken.append(spot)
            place = axes.annotate(str(places[name]), spot, spot, **PIXELS)
            place.set(color=C[part if part in TOLD else "muted"], ha="center")
        return as_svg(axes, "Loss right after growing against loss at the lag")


def ranking(facts: Facts) -> str:
    """The rank of each candidate at each evaluation of the probes."""
    shown = {name: curve for name, curve in facts.shown.items() if name not in facts.apart}
    # A step counts where all that are alive and in the race were measured; ranks would jump.
    paths: dict[str, dict[int, int]] = {name: {} for name in shown}
    for step in sorted({step for curve in shown.values() for step in curve.losses}):
        here = {name: curve.losses.get(step) for name, curve in shown.items()}
        late = [name for name, loss in here.items() if loss is None]
        if all(shown[name].failed or facts.lags.get(name, step) < step for name in late):
            for name, rank in ranks(here).items():
                paths[name][step] = rank
    with frame("rank (1 is the lowest loss)", max(200, 24 * len(shown) + 90), left=38) as axes:
        right = _steps(axes, [step for path in paths.values() for step in path], facts)
        axes.set_ylim(len(shown) + 0.5, 0.5)
        axes.set_yticks(range(1, len(shown) + 1))
        axes.tick_params("y", pad=9)
        axes.grid(visible=False)
        tags = [
            draw_line(axes, facts, name, path, shown[name].failed, "o")
            for name, path in paths.items()
            if path
        ]
        name_ends(axes, [tag for tag in tags if tag.x == right])
        for tag in tags:
            if tag.x < right:
                # Beside its end: a hair line to the column would look as if it went on.
                x, y = axes.transData.transform((tag.x, tag.y))
                axes.annotate(tag.text, (x, y), (x + 9, y), color=tag.colour, **PIXELS)
        return as_svg(axes, "Rank of each candidate at each evaluation")


def foresight(facts: Facts) -> str:
    """Spearman's correlation of the losses at each step with the final ones."""
    audit = facts.audit
    assert audit
    told = [each for each in audit.moments if each.agreement.spearman is not None]
    with frame("rank correlation with the final loss", 300, right=24) as axes:
        _audit_steps(axes, facts, audit)
        axes.set_ylim(-1.05, 1.05)
        axes.set_yticks([-1, -0.5, 0, 0.5, 1])
        for each in told:
            if each.spread:
                axes.vlines(each.step, *each.spread, color=C["other"], linewidth=4, alpha=0.5)
        heights = [each.agreement.spearman or 0.0 for each in told]
        axes.plot([each.step for each in told], heights, **DOTTED)
        return as_svg(axes, "Rank correlation with the final loss by step")


def regret(facts: Facts) -> str:
    """What the choice at each step loses at the end, with the noise floor and a random choice."""
    audit = facts.audit
    assert audit
    with frame(f"regret of the choice at a step, {facts.unit}", 300) as axes:
        right = _audit_steps(axes, facts, audit)
        values = [each.regret for each in audit.moments]
        high = 1.12 * max(*values, audit.random_regret, audit.noise_floor or 0.0) or 0.01
        axes.set_ylim(-0.04 * high, high)
        axes.plot([each.step for each in audit.moments], values, **DOTTED)
        tags = [Tag(right, audit.random_regret, "random choice", "source")]
        if audit.noise_floor is not None:
            tags.append(Tag(right, audit.noise_floor, "noise floor", "source"))
        for tag in tags:
            axes.axhline(tag.y, **LEVEL)
        name_ends(axes, tags)
        return as_svg(axes, "Regret of the choice by step")


def pairs(facts: Facts) -> dict[str, tuple[float, float]]:
    """Loss right after growing and at the lag of each candidate of the pool that has both."""
    return {
        name: (start, end)
        for name in facts.probes
        if name not in facts.apart
        and (start := facts.at_start.get(name)) is not None
        and (end := facts.at_lag.get(name)) is not None
    }


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least `gap` apart within [low, high], as near as can be to the wanted ones.

    `wanted` rises. With i gaps taken from the i-th place, "apart" becomes "not falling", which is
    isotonic regression. Where there is no room for all, they go on above `high`.
    """
    from scipy import optimize

    if not wanted:
        return []
    fitted = optimize.isotonic_regression([place - i * gap for i, place in enumerate(wanted)]).x
    ceiling = max(low, high - (len(wanted) - 1) * gap)
    return [float(min(max(place, low), ceiling)) + i * gap for i, place in enumerate(fitted)]


@contextlib.contextmanager
def frame(
    title: str, height: int = 400, left: int = 58, right: int = NAMES, top: int = 30
) -> Iterator["Axes"]:
    scheme, _, module = os.environ.get("MPLBACKEND", "").partition("://")
    if scheme == "module" and importlib.util.find_spec(module.partition(".")[0]) is None:
        # A notebook's, which its processes inherit: the import refuses what is not installed.
        del os.environ["MPLBACKEND"]
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Charts need matplotlib: pip install 'lagjax[report]'") from error
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The user's own settings, TeX or a font of theirs, are not for this page.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, STYLE))
        # A name may hold letters that this font lacks; the browser's fonts have them.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, facecolor="none")
        width, bottom = WIDTH - left - right, 58
        box = (left / WIDTH, bottom / height, width / WIDTH, 1 - (bottom + top) / height)
        axes = figure.add_axes(box)
        axes.set_title(title, loc="left", x=-left / width)
        yield axes


def as_svg(axes: "Axes", label: str) -> str:
    """The figure as one <svg> fit to sit inside a page: no document around it, no clashing ids."""
    figure, buffer = axes.get_figure(root=True), io.StringIO()
    assert figure is not None
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    # It styles `*`, which inside a page means the whole page; the page says the same of charts.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", label.lower())
    # Only inside tags: a candidate's name may look like anything.
    body = re.sub(r"<[^>]*>", lambda tag: _tag(tag[0], prefix), body)
    height = round(72 * figure.get_figheight())
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{html.escape(label)}">{" ".join(body.split())}'
    )


def _tag(tag: str, prefix: str) -> str:
    tag = tag.replace(' id="', f' id="{prefix}-').replace('"url(#', f'"url(#{prefix}-')
    tag = tag.replace('xlink:href="#', f'href="#{prefix}-')
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    for name, colour in C.items():
        tag = tag.replace(f": {colour}", f": var(--{name})")
    return tag


def _steps(axes: "Axes", steps: Sequence[int], facts: Facts) -> int:
    """A logarithmic axis of steps with 0 at its left edge, and the lag; returns the right edge."""
    lag = facts.lag if facts.decision else None
    later = sorted({step for step in steps if step > 0}) or [1]
    first, last = later[0], later[-1]
    axes.set_xscale("symlog", linthresh=first, linscale=0.4)
    axes.set_xlim(0 if 0 in steps or first == last else first, last)
    decades = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    wanted = [0, *([lag] if lag else [])]
    wanted += [factor * 10**power for factor in (1, 2, 5) for power in decades]
    kept: dict[int, float] = {}
    for step in wanted:
        x = axes.transData.transform((step, 0))[0]
        inside = axes.bbox.x0 - 1 <= x <= axes.bbox.x1 + 1
        if inside and all(abs(x - other) > 3.6 * FONT for other in kept.values()):
            kept[step] = x
    axes.set_xticks([*kept], [f"{x:,}".replace(",", "\u2009") + "\nlag" * (x == lag) for x in kept])
    axes.minorticks_off()
    axes.set_xlabel("training steps after growing")
    if lag:
        axes.axvline(lag, color=C["muted"], linewidth=1, zorder=1)
    return last


def set_limits(setter: Callable[[float, float], object], values: Sequence[float]) -> None:
    low, high = min(values, default=0.0), max(values, default=1.0)
    pad = 0.06 * (high - low) or 0.05
    setter(low - pad, high + pad)


def draw_line(
    axes: "Axes",
    facts: Facts,
    name: str,
    path: Mapping[int, float] | Mapping[float, float],
    failed: str | None = None,
    marker: str = "",
) -> Tag:
    """Draws a candidate's line, with a cross where it failed; returns its name at its end."""
    (x, y), part = [*path.items()][-1], facts.part(name)
    look, size = LOOKS[part], 4.5 if part in TOLD else 3
    (line,) = axes.plot([*path], [*path.values()], color=C[part], label=look.text)
    line.set(linewidth=look.width, linestyle=look.dashes, alpha=look.opacity, zorder=look.order)
    line.set(marker=marker or "o" * (len(path) == 1), markersize=size, clip_on=not marker)
    if failed:
        (cross,) = axes.plot(x, y, "X", color=C["failed"], markersize=9, label="failed")
        cross.set(markeredgecolor=C["surface"], zorder=10, clip_on=False)
    flat = " ".join(name.split())
    return Tag(x, y, flat if len(flat) <= 16 else flat[:15] + "…", part)


def name_ends(axes: "Axes", tags: Sequence[Tag]) -> None:
    """Writes the names in a column at the right, each tied to its line's end by a hair line."""
    low, high, edge = axes.bbox.y0, axes.bbox.y1, axes.bbox.x1
    ends = [(*axes.transData.transform((tag.x, tag.y)), tag) for tag in tags]
    ends = [(x, float(min(max(y, low), high)), tag) for x, y, tag in ends]
    ends.sort(key=itemgetter(1))
    places = spread([y for _, y, _ in ends], 1.3 * FONT, low, high + FONT)
    for (x, y, tag), place in zip(ends, places):
        hair = {"arrowstyle": "-", "color": tag.colour, "linewidth": 0.7, "alpha": 0.6}
        hair |= {"relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 0, "linestyle": ":"}
        text = axes.annotate(tag.text, (x, y), (edge + 21, place), arrowprops=hair, **PIXELS)
        text.set(color=tag.colour, annotation_clip=False)


def _counts(facts: Facts, name: str) -> bool:
    """Whether a candidate decides how far an axis reaches: others would hide the rest."""
    return name not in facts.apart and not facts.failed(name)


def _audit_steps(axes: "Axes", facts: Facts, audit: Audit) -> int:
    bend = audit.transition
    if bend.low is not None and bend.high is not None:
        axes.axvspan(bend.low, bend.high, color=C["other"], alpha=0.15, linewidth=0)
    return _steps(axes, [each.step for each in audit.moments], facts)
