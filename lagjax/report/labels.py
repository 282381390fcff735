"""Names beside lines and dots, none on top of another."""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]


class Tag(NamedTuple):
    """The name of a line that ends at (x, y), in data coordinates."""

    y: float
    text: str
    colour: str
    x: float


class Dot(NamedTuple):
    """The name of a dot at (x, y), in data coordinates."""

    x: float
    y: float
    text: str
    colour: str


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least `gap` apart within [low, high] (as far as there is room), as near as can be to the wanted ones.

    `wanted` rises. With i gaps taken from the i-th place, "apart" becomes "not falling", which is isotonic regression.
    """
    from scipy import optimize

    if not wanted:
        return []
    shifted = [place - i * gap for i, place in enumerate(wanted)]
    fitted = optimize.isotonic_regression(shifted).x
    ceiling = max(low, high - (len(wanted) - 1) * gap)
    return [float(min(max(place, low), ceiling)) + i * gap for i, place in enumerate(fitted)]


def column(axes: "Axes", tags: Sequence[Tag], font: float, x: float) -> None:
    """Writes the names in a column right of `x`, each tied to its line's end by a hair line."""
    to_pixels, to_data = axes.transData, axes.transData.inverted()
    bottom, top = axes.bbox.y0, axes.bbox.y1
    ends = sorted((to_pixels.transform((tag.x, tag.y))[1], i) for i, tag in enumerate(tags))
    inside = [(min(max(y, bottom), top), i) for y, i in ends]
    places = spread([y for y, _ in inside], 1.3 * font, bottom, top + font)
    edge = to_pixels.transform((x, 0))[0]
    for (y, i), place in zip(inside, places, strict=True):
        tag = tags[i]
        start = to_pixels.transform((tag.x, tag.y))[0]
        hair = [(start, y), (edge + 4, y), (edge + 14, place), (edge + 18, place)]
        xs, ys = zip(*(to_data.transform(point) for point in hair), strict=True)
        axes.plot(xs, ys, color=tag.colour, linewidth=0.7, alpha=0.6, clip_on=False, zorder=2)
        axes.annotate(
            tag.text,
            tuple(to_data.transform((edge + 21, place))),
            va="center",
            ha="left",
            color=tag.colour,
            annotation_clip=False,
        )


def beside(axes: "Axes", x: float, y: float, text: str, colour: str) -> None:
    """Writes a name right of a line's end."""
    axes.annotate(
        text,
        (x, y),
        xytext=(9, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        annotation_clip=False,
    )


def around(axes: "Axes", dots: Sequence[Dot], font: float) -> None:
    """Writes each name beside its dot, farther away and tied by a hair line where it is crowded.

    Each in turn takes the place that costs least, so the dots that matter most come first.
    """
    to_pixels, to_data = axes.transData, axes.transData.inverted()
    box = axes.bbox
    centres = [tuple(to_pixels.transform((dot.x, dot.y))) for dot in dots]
    taken: list[Box] = []
    for dot, (x, y) in zip(dots, centres, strict=True):
        width, height = 0.62 * font * len(dot.text) + 2, 1.15 * font
        others = [centre for centre in centres if centre != (x, y)]
        best: tuple[float, Box, tuple[float, float]] | None = None
        for radius, turn in itertools.product((9, 20, 34, 50, 70, 95), range(16)):
            angle = turn * math.pi / 8
            dx, dy = radius * math.cos(angle), radius * math.sin(angle)
            left = x + dx - (0 if dx > 1 else width if dx < -1 else width / 2)
            low = y + dy - height / 2
            area = (left, low, left + width, low + height)
            outside = (
                area[0] < box.x0
                or area[2] > box.x1 + 20
                or area[1] < box.y0
                or area[3] > box.y1 + 10
            )
            # A name stands clear of other dots, lest it seem to be theirs; so does its hair line.
            theirs = sum(_meet(area, (u - 12, v - 7, u + 12, v + 7)) for u, v in others)
            crossed = radius > 9 and sum(_near((x, y), (x + dx, y + dy), other) for other in others)
            covered = sum(_meet(area, other) for other in taken)
            cost = radius + 60 * crossed + 200 * theirs + 500 * covered + 500 * outside
            if best is None or cost < best[0]:
                best = (cost, area, (x + dx, y + dy))
        assert best is not None
        _, area, end = best
        taken.append(area)
        if math.dist((x, y), end) > 9.5:
            xs, ys = zip(to_data.transform((x, y)), to_data.transform(end), strict=True)
            axes.plot(xs, ys, color=dot.colour, linewidth=0.7, alpha=0.7, zorder=2)
        axes.annotate(
            dot.text,
            tuple(to_data.transform((area[0], (area[1] + area[3]) / 2))),
            va="center",
            ha="left",
            color=dot.colour,
            annotation_clip=False,
        )


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _near(start: tuple[float, ...], end: tuple[float, ...], dot: tuple[float, ...]) -> bool:
    """Whether the line from start to end runs within 5 pixels of a dot."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = ((dot[0] - start[0]) * dx + (dot[1] - start[1]) * dy) / (dx * dx + dy * dy)
    along = min(max(along, 0.0), 1.0)
    return math.hypot(start[0] + along * dx - dot[0], start[1] + along * dy - dot[1]) < 5
