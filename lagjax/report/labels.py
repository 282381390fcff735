"""Names beside lines and dots, none on top of another."""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lagjax.report import svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    from scipy import optimize  # type: ignore[import-untyped]

    if not wanted:
        return []
    shifted = [place - i * gap for i, place in enumerate(wanted)]
    fitted = optimize.isotonic_regression(shifted).x
    ceiling = max(low, high - (len(wanted) - 1) * gap)
    return [
        float(min(max(place, low), ceiling)) + i * gap for i, place in enumerate(fitted)
    ]


def column(axes: "Axes", tags: Sequence[Tag], font: float, x: float) -> None:
    """Writes the names in a column right of `x`, each tied to its line's end by a hair line."""
    to_pixels, to_data = axes.transData, axes.transData.inverted()
    bottom, top = axes.bbox.y0, axes.bbox.y1
    ends = sorted(
        (to_pixels.transform((tag.x, tag.y))[1], i) for i, tag in enumerate(tags)
    )
    inside = [(min(max(y, bottom), top), i) for y, i in ends]
    places = spread([y for y, _ in inside], 1.3 * font, bottom, top + font)
    edge = to_pixels.transform((x, 0))[0]
    for (y, i), place in zip(inside, places, strict=True):
        tag = tags[i]
        start = to_pixels.transform((tag.x, tag.y))[0]
        hair = [(start, y), (edge + 4, y), (edge + 14, place), (edge + 18, place)]
        xs, ys = zip(*(to_data.transform(point) for point in hair), strict=True)
        axes.plot(
            xs, ys, color=tag.colour, linewidth=0.7, alpha=0.6, clip_on=False, zorder=2
        )
        axes.annotate(
            tag.text,
            tuple(to_data.transform((edge + 21, place))),
            va="center",
            ha="left",
            color=tag.colour,
            annotation_clip=False,
        )


def around(axes: "Axes", dots: Sequence[Dot], font: float) -> None:
    """Writes each name beside its dot at the first free place, farther away and tied by a hair line where it is crowded."""
    to_pixels, to_data = axes.transData, axes.transData.inverted()
    box = axes.bbox
    centres = [tuple(to_pixels.transform((dot.x, dot.y))) for dot in dots]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in centres]
    for dot, (x, y) in sorted(
        zip(dots, centres, strict=True), key=lambda pair: pair[1][1]
    ):
        width, height = 0.62 * font * len(dot.text) + 2, 1.15 * font
        best = None
        for radius, turn in itertools.product((9, 20, 34, 50, 70), range(12)):
            angle = turn * math.pi / 6
            dx, dy = radius * math.cos(angle), radius * math.sin(angle)
            left = x + dx - (0 if dx > 1 else width if dx < -1 else width / 2)
            low = y + dy - height / 2
            area = (left, low, left + width, low + height)
            within = (
                area[0] >= box.x0
                and area[2] <= box.x1 + 20
                and area[1] >= box.y0
                and area[3] <= box.y1
            )
            if within and not any(_meet(area, other) for other in taken):
                best = (area, radius, dx, dy)
                break
        if best is None:
            continue
        area, radius, dx, dy = best
        taken.append(area)
        if radius > 9:
            xs, ys = zip(
                to_data.transform((x, y)),
                to_data.transform((x + dx, y + dy)),
                strict=True,
            )
            axes.plot(
                xs, ys, color=svg.COLOURS["muted"], linewidth=0.7, alpha=0.7, zorder=2
            )
        axes.annotate(
            dot.text,
            tuple(to_data.transform((area[0], (area[1] + area[3]) / 2))),
            va="center",
            ha="left",
            color=dot.colour,
            annotation_clip=False,
        )


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
