"""Whether growing pays: the winner against what is not grown, at equal FLOPs, in words and drawn.

FLOPs are those of training after growing. Between evaluations losses are interpolated.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lagjax.analysis.crossing import Comparison, compare, interpolated
from lagjax.analysis.margin import Margin, margin
from lagjax.jobs import Line
from lagjax.report import charts
from lagjax.report.charts import C
from lagjax.report.facts import Facts, by_candidate, mean_over_seeds
from lagjax.report.sentences import NOTHING, count, listed, number, quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes


AXIS = "Loss against the FLOPs of training after growing, on a logarithmic axis."
HEADINGS = (
    "Baseline",
    "Steps",
    "FLOPs",
    "Loss at its end",
    "Above the winner's",
    "95 % interval",
    "Crosses at FLOPs",
)


class Against(NamedTuple):
    """A baseline beside the winner, over the seeds that both were trained furthest with.

    `curve` is loss by FLOPs, `steps` the last step, `share` how much of its full training is done.
    `ended` is whether both are, `margin` then how much lower the winner ended. `failed` says why
    it did.
    """

    name: str
    curve: dict[float, float]
    steps: int
    share: float
    failed: str | None
    ended: bool
    found: Comparison | None
    margin: Margin | None


def against(facts: Facts) -> list[Against]:
    """Each baseline of which there is a curve, where there is a winner's."""
    lines, told = _grown(facts), []
    if facts.winner not in lines:
        return []
    for name in facts.pool:
        if not facts.baseline(name) or name not in lines:
            continue
        seeds = _furthest(lines[name]) & _furthest(lines[facts.winner]) or {0}
        mine, other = (
            [line for line in lines[each] if line["seed"] in seeds] for each in (facts.winner, name)
        )
        curve, failed = _curve(other)
        if not max(curve, default=0.0):
            # A model of look-ups alone has no FLOPs to compare by.
            continue
        found, steps = compare(_curve(mine)[0], curve), max((x["step"] for x in other), default=0)
        share = min(1.0, steps / (facts.horizon_of(name) or math.inf))
        whole = max((x["step"] for x in mine), default=0) == facts.horizon_of(facts.winner)
        ended = whole and share == 1 and not failed and found is not None
        between = _margin(facts, mine, other) if ended else None
        told.append(Against(name, curve, steps, share, failed, ended, found, between))
    return told


def verdict(facts: Facts, told: list[Against]) -> list[str]:
    """Whether growing paid, and where the lines cross, in sentences."""
    ended = [each for each in told if each.ended and each.found]
    said = [_conclusion(facts, ended, len(told))] if ended else []
    for each in told:
        if each.failed:
            said.append(f"{each.name} is not compared: {each.failed}.")
        elif not each.ended and each.found:
            gap = each.found.difference
            said.append(
                f"{each.name} has come to {_percent(each.share)} of its training; after "
                f"{quantity(each.found.reach)} FLOPs its loss is {number(abs(gap))} {facts.unit} "
                f"{'above' if gap >= 0 else 'below'} the winner's."
            )
        if each.found and each.ended:
            said.append(_crossing(facts, each, each.found))
    if not ended:
        said.insert(0, "Whether growing pays cannot be told yet: no baseline has ended.")
    return said


def by_flops(facts: Facts) -> str:
    """Loss against FLOPs: the winner, the baselines, and all others that were trained on."""
    lines, told = _grown(facts), {each.name: each for each in against(facts)}
    shown = [name for name in lines if name in told or not facts.baseline(name)]
    curves = {name: _curve(lines[name])[0] for name in shown}
    for name, each in told.items():
        curves[name] = each.curve
    curves = {name: curve for name, curve in curves.items() if curve}
    # What is fresh begins far above the others, and would hide them.
    inner = [
        loss
        for name, curve in curves.items()
        if not facts.failed(name)
        for loss in [*curve.values()][-max(1, len(curve) // (6 if name in told else 1)) :]
    ]
    with charts.frame(f"validation loss, {facts.unit}") as axes:
        right = _flops(axes, [x for curve in curves.values() for x in curve])
        charts.set_limits(axes.set_ylim, inner)
        tags = []
        for name, curve in curves.items():
            tag = charts.draw_line(axes, facts, name, curve)
            # A line that ends earlier is named in the other pictures.
            if name in told or (tag.part in charts.TOLD and tag.x > 0.9 * right):
                tags.append(tag)
        for each in told.values():
            if each.found and each.found.crossing and each.ended:
                height = float(interpolated(each.curve, [each.found.crossing])[0])
                axes.plot(each.found.crossing, height, "o", color=C["ink"], zorder=11)
        charts.name_ends(axes, tags)
        return charts.as_svg(axes, "Validation loss against FLOPs")


def about(facts: Facts) -> str:
    """What is compared, and what is not counted."""
    told = (
        "The winner beside the small model trained on and the large one from scratch, each for as "
        f"many FLOPs. {AXIS} The dots are where lines cross; losses between evaluations are "
        "interpolated."
    )
    before = max((x.get("flops") or 0 for x in facts.lines if x["phase"] == "source"), default=0)
    if before:
        told += (
            f" The small model's own training, {quantity(before)} FLOPs, came before and is not "
            "counted: from scratch has not had it."
        )
    return told


def _conclusion(facts: Facts, ended: list[Against], all_told: int) -> str:
    """Whether growing paid, with each difference and its interval."""
    margins = [
        each.margin or Margin(each.found.difference if each.found else 0.0, -np.inf, np.inf)
        for each in ended
    ]
    if all(each.low > 0 for each in margins):
        opening = "Growing paid"
    elif any(each.high < 0 for each in margins):
        opening = "Growing did not pay"
    else:
        opening = "Whether growing paid is within the noise"
    if len(ended) < all_told:
        opening = f"As far as it is compared, {opening[0].lower()}{opening[1:]}"
    winner = facts.continued[facts.winner or ""].last if facts.winner in facts.continued else None
    found = ended[0].found
    assert found
    differences = [
        f"{number(abs(each.mean))} {'below' if each.mean >= 0 else 'above'} {one.name}"
        f"{_interval(each)}"
        for one, each in zip(ended, margins)
    ]
    stands = "" if winner is None else f" at {number(winner)} {facts.unit},"
    return (
        f"{opening}: after {quantity(found.reach)} FLOPs each, {facts.winner} ended{stands} "
        f"{listed(differences)}."
    )


def _interval(each: Margin) -> str:
    if not np.isfinite(each.low):
        return " (without an interval)"
    # The difference is told without a sign, and so are its ends, as far as they have the same.
    ends = (each.low, each.high) if each.mean >= 0 else (-each.high, -each.low)
    return " (95 % interval {} to {})".format(*map(number, ends))


def _crossing(facts: Facts, one: Against, found: Comparison) -> str:
    """Where the lines of the winner and a baseline cross last, in a sentence."""
    low, high = (facts.winner, one.name) if found.difference >= 0 else (one.name, facts.winner)
    if found.crossing is None:
        told = f"The lines of {facts.winner} and {one.name} do not cross"
    else:
        share = _percent(found.crossing / found.reach)
        told = f"From {quantity(found.crossing)} FLOPs on, {share} of the full run, "
        told += f"{low} stays below {high}"
    if one.margin and one.margin.low <= 0 <= one.margin.high:
        return f"{told}; at the end the two cannot be told apart."
    return f"{told}{f': {low} is lower throughout' * (found.crossing is None)}."


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def rows(facts: Facts, told: list[Against]) -> list[tuple[str, ...]]:
    """A line for each baseline: how far it came, its loss, the difference and the crossing."""
    found: list[tuple[str, ...]] = []
    for each in told:
        gap = None if each.found is None or each.failed else each.found.difference
        apart = each.margin and np.isfinite(each.margin.low)
        found.append(
            (
                each.name,
                count(each.steps),
                quantity(max(each.curve, default=0.0)),
                "failed" if each.failed else number(next(reversed(each.curve.values()), None)),
                number(each.margin.mean if each.margin else gap),
                f"{number(each.margin.low)} to {number(each.margin.high)}"
                if each.margin and apart
                else NOTHING,
                quantity(each.found.crossing) if each.found and each.found.crossing else NOTHING,
            )
        )
    return found


def _grown(facts: Facts) -> dict[str, list[Line]]:
    """What was trained after growing, by candidate."""
    known = [x for x in facts.lines if x["phase"] != "source" and x["candidate"] in facts.pool]
    return by_candidate(known)


def _furthest(lines: list[Line]) -> set[int]:
    """The seeds that came as far as any."""
    last: dict[int, int] = {}
    for line in lines:
        last[line["seed"]] = max(line["step"], last.get(line["seed"], 0))
    return {seed for seed, step in last.items() if step == max(last.values())}


def _curve(lines: list[Line]) -> tuple[dict[float, float], str | None]:
    """Loss by FLOPs, and why it failed; over the seeds that came as far as any."""
    seeds = _furthest(lines)
    kept = [line for line in lines if line["seed"] in seeds]
    if not kept:
        return {}, None
    curve = mean_over_seeds(kept)
    price = {line["step"]: float(line.get("flops") or 0.0) for line in kept}
    return {price[step]: loss for step, loss in curve.losses.items()}, curve.failed


def _margin(facts: Facts, mine: list[Line], other: list[Line]) -> Margin | None:
    """How much lower the winner ended, paired by seed and shard."""
    ends = []
    for lines in (mine, other):
        last = max(line["step"] for line in lines)
        end = sorted((x for x in lines if x["step"] == last), key=lambda line: int(line["seed"]))
        ends.append([line["valid_loss_shards"] for line in end])
    sizes = {len(shards) for end in ends for shards in end}
    if len(ends[0]) != len(ends[1]) or len(sizes) != 1 or sizes == {0}:
        return None
    size = sizes.pop()
    counts = np.array(facts.config.get("shard_tokens") or [1.0] * size, np.float64)[:size]
    found = margin(np.array(ends[0], np.float64), np.array(ends[1], np.float64), counts)
    # A shard without tokens has no loss.
    return found if np.isfinite(found.mean) else None


def _flops(axes: "Axes", values: list[float]) -> float:
    """A logarithmic axis of FLOPs with 0 at its left edge; returns the right one."""
    later = sorted({x for x in values if x > 0}) or [1.0]
    first, last = later[0], later[-1]
    axes.set_xscale("symlog", linthresh=first, linscale=0.4)
    axes.set_xlim(0, last)
    decades = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    powers = [factor * 10.0**power for factor in (1, 3) for power in decades]
    wanted = [0.0, *(x for x in powers if x > first)]
    kept: dict[float, float] = {}
    for value in wanted:
        x = axes.transData.transform((value, 0))[0]
        inside = axes.bbox.x0 - 1 <= x <= axes.bbox.x1 + 1
        if inside and all(abs(x - other) > 4.5 * charts.FONT for other in kept.values()):
            kept[value] = x
    axes.set_xticks([*kept], [quantity(x).replace(".00", "").replace("1 × ", "") for x in kept])
    axes.minorticks_off()
    axes.set_xlabel("FLOPs of training after growing")
    return last
