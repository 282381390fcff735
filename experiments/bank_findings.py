"""What the rows of `hypotheses.py` say: verdicts, the map of regimes, and whether growing pays."""

import textwrap
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from experiments import curves, regimes, verdicts
from experiments.regimes import AVERAGES, REGRET, START, WEIGHTS
from experiments.rows import Row, markdown

ANSWERS = {"supported": "yes", "refuted": "**no**", "inconclusive": "open"}
HEAD = "## The bank: claims about growing, and regimes"
PUBLISHED = (
    ("zero or one layer, expanded at 80 % of the steps (Bu 2025, arXiv 2511.04981)", "80 %"),
    ("G_stack (Du et al. 2024, arXiv 2405.15319), 7 B parameters", "54.6 %"),
    ("LEMON (Wang et al. 2023, arXiv 2310.07999), BERT", "33.2 %"),
)
"""Headlines of others, not checked here; the second is a speed-up."""


def sections(rows: Sequence[Row]) -> list[str]:
    """The verdicts, as a table."""
    if not rows:
        return []
    names = list(dict.fromkeys(row["hypothesis"] for row in rows))
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = {row["hypothesis"]: row for row in rows if row["task"] == task}
        cells = [
            f"{ANSWERS[mine[name]['verdict']]} ({_signed(mine[name]['value'])})"
            if name in mine
            else "–"
            for name in names
        ]
        one = next(iter(mine.values()))
        lines.append((task, f"{one['regime']} ({one['size']})", *cells))
    said = "".join(f"- {name}: {verdicts.CLAIMS[name]}. {_counted(rows, name)}\n" for name in names)
    seeds = sorted({row["seeds"] for row in rows})
    return [
        f"{HEAD}\n`python -m experiments.hypotheses`, from the curves in `results/curves/`. A "
        "claim holds (yes) or does not (**no**) where the 95 %\ninterval lies on one side of the "
        "threshold that was fixed before; else it is open. In brackets the number that decides, "
        f"{' or '.join(map(str, seeds))}\nseeds. Intervals speak of data order and keys, not of "
        "other sources, and are narrow where members are compared by name: of three normal\ndraws "
        f"such a one holds the mean three times in four.{_papers(names)}\n\n{said}\n"
        + markdown(("Task", "Regime", *names), lines)
    ]


def _papers(names: Sequence[str]) -> str:
    """Which of the papers' own numbers are known."""
    known = [(name, verdicts.PAPER[name]) for name in names]
    told = [f"{name} {x.value} ({x.model}, {x.where})" for name, x in known if x]
    return f" The papers' own numbers: {', '.join(told) or 'none has been read'}."


def _counted(rows: Sequence[Row], name: str) -> str:
    """The verdicts on a claim, counted for each kind of model."""
    parts = []
    for model in dict.fromkeys(row["model"] for row in rows):
        found = [
            row["verdict"] for row in rows if (row["hypothesis"], row["model"]) == (name, model)
        ]
        told = {answer: found.count(answer) for answer in ANSWERS}
        said = ", ".join(f"{ANSWERS[answer]} {count}" for answer, count in told.items() if count)
        parts += [f"{model}: {said}"] * bool(said)
    return "; ".join(parts)


def regime_sections(rows: Sequence[Row]) -> list[str]:
    """The map of regimes: what each task's start tells, and what each factor does to it."""
    own = [row for row in rows if row["question"] == "numbers"]
    if not own:
        return []
    names = [*regimes.ALL]
    head = ("Task", "Regime", *names, "ends best")
    lines = [
        (
            row["task"],
            row["regime"],
            *("–" if row[name] is None else _signed(row[name], _digits(name)) for name in names),
            row["best"],
        )
        for row in own
    ]
    parts = [
        "## The map of regimes\nWhat the losses right after growing tell about the end, and from "
        "which share of the horizon on the ranking by the\nweights, and by their average, stays "
        f"within Spearman {verdicts.STRONG} of the final one; and who ends best. A horizon is 800\n"
        "steps unless the task says otherwise.\n\n"
        "![Spearman by share of the horizon](results/regimes.svg)\n\n" + markdown(head, lines)
    ]
    found = [row for row in rows if row["question"] == "effect"]
    if found:
        factors = list(dict.fromkeys(row["factor"] for row in found))
        by = {(row["number"], row["factor"]): row for row in found}
        lines = [(name, *(_effect(by[name, factor]) for factor in factors)) for name in names]
        parts.append(
            "What each factor adds to it, with its 95 % interval (bold where that leaves out 0); "
            "two factors' effects on each other stand in\npairs, source × rate with maturity × "
            "state and so on.\n\n"
            + markdown(("Number", *factors), lines)
            + advice(own, max((by[START, x] for x in factors), key=lambda row: abs(row["effect"])))
        )
    parts.append(choices(rows))
    return ["\n".join(parts)]


def choices(rows: Sequence[Row]) -> str:
    """What each way to choose loses, over all tasks."""
    rows = [row for row in rows if row["question"] == "numbers"]
    ways = {"the start": [row["start loses"] for row in rows]}
    for at, share in enumerate(rows[0]["chosen at"]):
        for weights in ("weights", "averages"):
            name = f"{weights} at {Fraction(share)} of the horizon"
            ways[name] = [row[f"{weights} lose"][at] for row in rows]
    ways["a random choice"] = [row["spread"] for row in rows]
    lines = []
    for name, lost in ways.items():
        worst = int(np.argmax(lost))
        above = sum(x > row["noise floor"] for x, row in zip(lost, rows))
        lines.append(
            (name, f"{np.mean(lost):.4f}", f"{lost[worst]:.4f} ({rows[worst]['task']})", f"{above}")
        )
    head = ("Chosen by", "loses, mean, nats", "most", "tasks above the noise floor")
    return (
        "What keeping the lowest loses at the end, on the mean of seeds, in the "
        f"{len(rows)} tasks of the bank, whose models are\ntiny:\n\n{markdown(head, lines)}"
    )


def advice(own: Sequence[Row], strongest: Row) -> str:
    """What to do, made of the numbers: the cells on both sides of the factor that changes most how
    much the start tells, and how the other tasks agree.

    Args:
        own: the numbers of all tasks.
        strongest: the effect of that factor.
    """
    factor, by = strongest["factor"], {row["task"]: row for row in own}
    sure = "" if strongest["clear"] else " (not clear of 0)"
    effect = f"{_signed(strongest['effect'], 2)} on its Spearman{sure}"
    said = [f"What changes most how much the start tells is *{factor}*: {effect}."]
    for level, word in ((True, "With"), (False, "Without")):
        cells = [
            by[name]
            for name, entry in curves.CELLS.items()
            if name in by and entry.levels[factor] == level
        ]
        starts, regrets, weights, averages = (
            [row[name] for row in cells] for name in (START, REGRET, WEIGHTS, AVERAGES)
        )
        if min(starts) >= verdicts.STRONG and max(regrets) <= verdicts.REGRET:
            then = "keep what is lowest right after growing"
        else:
            then = "train on before choosing, and choose by the average of the weights"
        said.append(
            f"**{word} it, {then}**: over {len(cells)} tasks the start's Spearman is "
            f"{_range(starts)} and its normalised regret {_range(regrets)}; the weights tell from "
            f"{_range(weights)} of the horizon on, their average from {_range(averages)}."
        )
    others = [row for row in own if row["task"] not in curves.CELLS]
    strong = [row["task"] for row in others if (row[START] or 0) >= verdicts.STRONG]
    if others:
        said.append(
            f"Of the {len(others)} tasks outside the half fraction the start's Spearman is "
            f"{verdicts.STRONG} or more in {len(strong)}{': ' * bool(strong)}{', '.join(strong)}."
        )
    said.append(sources(by))
    return f"\n{textwrap.fill(' '.join(said).strip(), 120, break_on_hyphens=False)}\n"


def sources(by: Mapping[str, Row]) -> str:
    """By how much numbers of a regime move with its source, which no interval holds."""
    pairs = [(by[name], by[other]) for name in by if (other := f"{name}-again") in by]
    if not pairs:
        return ""
    start, regret, weights = (
        _range([abs(one[name] - other[name]) for one, other in pairs])
        for name in (START, REGRET, WEIGHTS)
    )
    return (
        f"Another source of the same regime ({', '.join(other['task'] for _, other in pairs)}) "
        f"moves the start's Spearman by {start}, its normalised regret by {regret} and where the "
        f"weights tell by {weights}, which no interval here holds."
    )


def worth_sections(rows: Sequence[Row]) -> list[str]:
    """Whether growing pays, as a table."""
    if not rows:
        return []
    saved = [row for row in rows if row["question"] == "saved"]
    rows = [row for row in rows if row["question"] == "worth"]
    lines = [
        (
            row["task"],
            row["regime"],
            f"{row['against']}, source {row['source']}",
            f"{_signed(row['lower_by'])} [{', '.join(map(_signed, row['interval']))}]",
            _crossing(row),
        )
        for row in rows
    ]
    head = ("Task", "Regime", "Against", "best ends lower by, nats", "from this share on")
    return [
        "## Does growing pay?\nThe candidate that ends best against what is not grown, at equal "
        "FLOPs, with the small model given, and with its training\npaid as well. The last column "
        "is where the curves cross last, as a share of the full training, with its 95 % interval."
        f"\n\n{_paid(rows)}\n" + markdown(head, lines) + _saved(saved)
    ]


def _paid(rows: Sequence[Row]) -> str:
    """In how many tasks growing ends lower, against what; and by the cells' factors."""
    said = []
    for against, source in dict.fromkeys((row["against"], row["source"]) for row in rows):
        mine = [row for row in rows if (row["against"], row["source"]) == (against, source)]
        lower = sum(row["interval"][0] > 0 for row in mine)
        higher = sum(row["interval"][1] < 0 for row in mine)
        line = (
            f"- Against {against}, source {source}: the best ends lower in {lower} of {len(mine)} "
            f"tasks and higher in {higher}."
        )
        cells = {row["task"]: row["lower_by"] for row in mine if row["task"] in curves.CELLS}
        if cells.keys() == curves.CELLS.keys():
            means = []
            for factor in next(iter(curves.CELLS.values())).levels:
                first, second = (
                    np.mean(
                        [x for name, x in cells.items() if curves.CELLS[name].levels[factor] == at]
                    )
                    for at in (False, True)
                )
                means.append(f"{factor} {_signed(second)}, else {_signed(first)}")
            line += f" Lower by, on the mean:\n  {'; '.join(means)}."
        said.append(line)
    return "\n".join(said) + "\n"


def _crossing(row: Row) -> str:
    if row["crossing"] is None:
        return "–"
    ends = row["crossing_interval"]
    return f"{row['crossing']:.2f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")


def _saved(rows: Sequence[Row]) -> str:
    """The FLOPs that growing saves at equal loss, and the headlines of others."""
    if not rows:
        return ""
    lines = [
        (
            row["task"],
            f"{row['regime']} ({row['size']})",
            row["source"],
            "out of reach"
            if row["saved"] is None
            else f"{_share(row['saved'])} [{', '.join(map(_share, row['interval']))}]",
        )
        for row in rows
    ]
    others = "".join(f"- {what}: {value}\n" for what, value in PUBLISHED)
    return (
        "\nFLOPs saved at equal loss, against training from scratch over a horizon at which it "
        "ends as low (`python -m experiments.scratch`,\nthree horizons, final losses linear in the "
        "logarithm of the FLOPs; out of reach is what ends below or above all of them):\n\n"
        + markdown(("Task", "Regime", "source", "saved"), lines)
        + f"\nBeside headlines of others, at their sizes and not checked here:\n\n{others}"
    )


def _share(x: float) -> str:
    return f"{x:.0%}".replace("-", "−")


def _effect(row: Row) -> str:
    low, high = row["interval"]
    digits = _digits(row["number"])
    text = f"{_signed(row['effect'], digits)} [{_signed(low, digits)}, {_signed(high, digits)}]"
    return f"**{text}**" if row["clear"] else text


def _digits(number: str) -> int:
    return 3 if number.endswith("nats") else 2


def _range(values: Sequence[float]) -> str:
    low, high = _signed(min(values), 2), _signed(max(values), 2)
    return low if low == high else f"{low} to {high}"


def _signed(x: float, digits: int = 3) -> str:
    return f"{x:.{digits}f}".replace("-", "−")
