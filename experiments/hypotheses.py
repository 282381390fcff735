"""What the bank of growth curves says: of each claim, of each regime, and of growing at all.

    python -m experiments.hypotheses      # a minute; reads results/curves, writes results/*.json
    python -m experiments.tables          # the tables and the map of regimes, in README.md

Claims and thresholds are in `verdicts`, and were fixed before anything was run. Intervals are
bootstraps over seeds and candidates: they speak of data order and keys, not of other sources. Tasks
that are held out are left out.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments import bank, curves, regimes, scratch, verdicts
from experiments.cli import command
from experiments.rows import RESULTS, Row, markdown, read
from lagjax.analysis.crossing import compare
from lagjax.jobs import RAW
from lagjax.store import directory

AVERAGE = "average"
"""The weights that tasks keep beside the weights themselves."""
ANSWERS = {"supported": "yes", "refuted": "**no**", "inconclusive": "open"}
HEAD = "## The bank: claims about growing, and regimes"


@dataclasses.dataclass(frozen=True)
class Config:
    """Where things are."""

    curves: Path = bank.CURVES
    """The folder of the kept curves."""
    results: Path = RESULTS
    """The folder of what is read from them."""
    scratch: Path = RESULTS / "scratch.jsonl"
    """The rows of longer trainings from scratch."""
    draws: int = verdicts.DRAWS
    """Of each bootstrap."""


class Kept(NamedTuple):
    """A task of the bank that may be read."""

    name: str
    entry: curves.Entry
    curves: bank.Curves


def main(config: Config) -> None:
    """Reads what is kept, and writes what it says."""
    tasks = kept(config.curves)
    if not tasks:
        raise ValueError(
            f"no task of the bank is kept in {config.curves}; run python -m experiments.curves"
        )
    told = [row for task in tasks for row in claims(task, config.draws)]
    write(config.results / "hypotheses.json", told)
    write(config.results / "regimes.json", [*numbers(tasks), *effects(tasks, config.draws)])
    longer = read(config.scratch)
    found = [row for task in tasks for row in worth(task, config)]
    found += [row for task in tasks for row in savings(task, longer, config.draws)]
    write(config.results / "worth.json", found)
    print(f"{len(tasks)} tasks, {len(told)} verdicts")


def kept(folder: Path) -> list[Kept]:
    """The tasks that are kept as they are configured now, in the bank's order."""
    found = []
    for name, entry in curves.TASKS.items():
        path = folder / f"{name}.npz"
        if path.exists() and not entry.held_out:
            found.append(Kept(name, entry, bank.Curves.load(path)))
    return found


def write(path: Path, rows: Sequence[Row]) -> None:
    """A list, an entry a line."""
    text = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    directory.write_atomically(path, f"[\n{text}\n]\n")


def claims(task: Kept, draws: int) -> list[Row]:
    """A row for each claim: of its parts the one that decides, and all."""
    found = []
    for verdict in verdicts.judge(task.curves.ended(), draws):
        # Of an answer that one part is enough for, that part; else the first.
        one = next((x for x in verdict.parts if x.answer == verdict.answer), verdict.parts[0])
        found.append(
            {
                "hypothesis": verdict.hypothesis,
                "model": task.entry.model,
                "size": size(task),
                "regime": task.entry.about,
                "threshold": one.threshold,
                "value": one.value,
                "interval": [*one.interval],
                "seeds": task.curves.train.shape[1],
                "verdict": verdict.answer,
                "rows": f"curves/{task.name}.npz",
                "task": task.name,
                "parts": [{**part._asdict(), "verdict": part.answer} for part in verdict.parts],
            }
        )
    return found


def size(task: Kept) -> str:
    """Layers and width, for readers."""
    before, after = task.entry.layers
    width = task.curves.row["config"]["width"]
    return f"{before} to {after} layers, width {width}"


def told_of(task: Kept) -> regimes.Told:
    """A task's evaluations."""
    ended = task.curves.ended()
    steps = [task.curves.steps.index(step) for step in ended.steps]
    # All candidates that can win have one rate, in tasks of one horizon.
    rates = np.nan_to_num(task.curves.norms[1, 0, 0, steps])
    return regimes.told_of(ended, task.curves.ended(AVERAGE).losses, rates)


def factorial(tasks: Sequence[Kept]) -> list[tuple[dict[str, bool], regimes.Told]]:
    """The half fraction, where it is whole."""
    cells = [task for task in tasks if task.name in curves.CELLS]
    whole = len(cells) == len(curves.CELLS)
    return [(task.entry.levels, told_of(task)) for task in cells] if whole else []


def numbers(tasks: Sequence[Kept]) -> list[Row]:
    """A row for each task of one horizon: what its start tells, and from when on it tells more."""
    found = []
    for task in tasks:
        if task.entry.grow == "mixed":
            continue
        told, ended = told_of(task), task.curves.ended().ready()
        final = ended.losses[-1].mean(axis=1)
        raw, averaged = (
            verdicts.spearmans(x, told.losses[-1]) for x in (told.losses, told.averaged)
        )
        found.append(
            {
                "question": "numbers",
                "task": task.name,
                "regime": task.entry.about,
                "model": task.entry.model,
                **{name: number(told) for name, number in regimes.NUMBERS.items()},
                "best": ended.names[int(final.argmin())],
                "lowest at the start": [
                    ended.names[at]
                    for at in np.flatnonzero(ended.losses[0, :, 0] == ended.losses[0, :, 0].min())
                ],
                "noise floor": ended.floor,
                "spread": float(final.mean() - final.min()),
                "shares": regimes.shares(told),
                "spearman": _plain(raw),
                "spearman of averages": _plain(averaged),
            }
        )
    return found


def effects(tasks: Sequence[Kept], draws: int) -> list[Row]:
    """A row for each factor and number; none before the half fraction is whole."""
    cells = factorial(tasks)
    if not cells:
        return []
    return [
        {"question": "effect", **each._asdict(), "clear": each.clear}
        for each in regimes.effects(cells, draws)
    ]


def worth(task: Kept, config: Config) -> list[Row]:
    """A row for each baseline, with the source given and with it paid: how much lower the best
    ends, and from how many FLOPs on it is lower, as a share of its full training.
    """
    kept, ended = task.curves, task.curves.ended()
    final = np.where(
        np.isfinite(ended.losses[-1]).all(axis=1), ended.losses[-1].mean(axis=1), np.inf
    )
    best = int(final.argmin())
    own, flops = kept.valid[RAW][best], kept.step_flops[best]
    there = np.isfinite(own).all(axis=0)
    steps = np.array(kept.steps)[there]
    whole = kept.horizons[best] * flops
    random, seeds, found = np.random.default_rng(0), own.shape[0], []
    draws = [np.arange(seeds)] + [random.integers(seeds, size=seeds) for _ in range(config.draws)]
    for name, other in kept.baselines.items():
        if not np.isfinite(other.valid).all():
            continue
        for paid in (False, True):
            # Whoever trains the small model on has paid for it as well.
            source = source_flops(task) if paid and name == "from scratch" else 0.0
            if paid and not source:
                continue
            lower, crossing = [], []
            for drawn in draws:
                ours = dict(zip(source + steps * flops, own[drawn][:, there].mean(axis=0)))
                theirs = dict(
                    zip(np.array(other.steps) * other.step_flops, other.valid[drawn].mean(axis=0))
                )
                against = compare(ours, theirs)
                if against is None:
                    break
                lower.append(against.difference)
                crossing.append(
                    np.nan if against.crossing is None else (against.crossing - source) / whole
                )
            if not lower:
                continue
            found.append(
                {
                    "question": "worth",
                    "task": task.name,
                    "model": task.entry.model,
                    "regime": task.entry.about,
                    "best": kept.names[best],
                    "against": name,
                    "source": "paid" if paid else "given",
                    "lower_by": lower[0],
                    "interval": np.percentile(lower[1:], [2.5, 97.5]).tolist(),
                    "crossing": _finite(crossing[0]),
                    "crossing_interval": _ends(crossing[1:]),
                    "seeds": seeds,
                    "rows": f"curves/{task.name}.npz",
                }
            )
    return found


def savings(task: Kept, longer: Sequence[Row], draws: int) -> list[Row]:
    """A row each with the source given and with it paid: the share of FLOPs that the best candidate
    saves against the training from scratch that would end where it does.
    """
    entry, kept = task.entry, task.curves
    told = kept.row["config"]
    like = entry.layers[1], told["width"], kept.row["corpus"], told["shorter"]
    rows = [
        row
        for row in longer
        if like == tuple(row["config"][name] for name in ("layers", "width", "corpus", "shorter"))
    ]
    if not rows or entry.grow != "depth" or entry.model != "gpt":
        return []
    ends = kept.ended().losses[-1]
    best = int(np.nan_to_num(ends.mean(axis=1), nan=np.inf).argmin())
    own, found = kept.horizons[best] * kept.step_flops[best], []
    for source, more in (("given", 0.0), ("paid", source_flops(task))):
        share = scratch.saved(rows, ends[best], own + more, draws)
        found.append(
            {
                "question": "saved",
                "task": task.name,
                "model": entry.model,
                "regime": entry.about,
                "size": size(task),
                "best": kept.names[best],
                "source": source,
                "saved": share and share[0],
                "interval": share and [*share[1]],
                "seeds": ends.shape[1],
                "rows": f"curves/{task.name}.npz",
            }
        )
    return found


def source_flops(task: Kept) -> float:
    """FLOPs of the small model's training."""
    against = task.curves.baselines.get("not growing")
    steps = task.entry.source_steps // task.curves.row["config"]["shorter"]
    return steps * against.step_flops if against else 0.0


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
    said = "".join(f"- {name}: {verdicts.CLAIMS[name]}.\n" for name in names)
    seeds = sorted({row["seeds"] for row in rows})
    return [
        f"{HEAD}\n`python -m experiments.hypotheses`, from the curves in `results/curves/`. A "
        "claim holds (yes) or does not (**no**) where the 95 %\ninterval lies on one side of the "
        "threshold that was fixed before; else it is open. In brackets the number that decides, "
        f"{', '.join(map(str, seeds))}\nseeds. Intervals speak of data order and keys, not of "
        "other sources, and are narrow where members are compared by name: of three normal\ndraws "
        f"such a one holds the mean three times in four.\n\n{said}\n"
        + markdown(("Task", "Regime", *names), lines)
    ]


def regime_sections(rows: Sequence[Row]) -> list[str]:
    """The map of regimes: what each task's start tells, and what each factor does to it."""
    own = [row for row in rows if row["question"] == "numbers"]
    if not own:
        return []
    names = [*regimes.NUMBERS]
    head = ("Task", "Regime", *names, "ends best")
    lines = [
        (row["task"], row["regime"], *(_signed(row[name], 2) for name in names), row["best"])
        for row in own
    ]
    parts = [
        "## The map of regimes\nWhat the losses right after growing tell about the end, and from "
        "which share of the horizon on the ranking by the\nweights, and by their average, stays "
        f"within Spearman {verdicts.STRONG} of the final one.\n\n"
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
            "state and so on.\n\n" + markdown(("Number", *factors), lines) + _advice(own, by)
        )
    return ["\n".join(parts)]


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
            "–" if row["crossing"] is None else f"{row['crossing']:.2f}",
        )
        for row in rows
    ]
    head = ("Task", "Regime", "Against", "best ends lower by, nats", "from this share on")
    return [
        "## Does growing pay?\nThe candidate that ends best against what is not grown, at equal "
        "FLOPs, with the small model given, and with its training\npaid as well. The last column "
        "is where the curves cross last, as a share of the full training.\n\n"
        + markdown(head, lines)
        + _saved(saved)
    ]


PUBLISHED = (
    ("zero or one layer, expanded at 80 % of the steps (Bu 2025, arXiv 2511.04981)", "80 %"),
    ("G_stack (Du et al. 2024, arXiv 2405.15319), 7 B parameters", "54.6 %"),
    ("LEMON (Wang et al. 2023, arXiv 2310.07999), BERT", "33.2 %"),
)
"""Headlines of others, not checked here; the second is a speed-up."""


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
            else f"{row['saved']:.0%} [{', '.join(f'{x:.0%}' for x in row['interval'])}]",
        )
        for row in rows
    ]
    others = "".join(f"- {what}: {value}\n" for what, value in PUBLISHED)
    return (
        "\nFLOPs saved at equal loss, against training from scratch over a horizon at which it "
        "ends as low (`python -m experiments.scratch`,\nthree horizons, final losses linear in the "
        "logarithm of the FLOPs):\n\n"
        + markdown(("Task", "Regime", "source", "saved"), lines).replace("-%", "−%")
        + f"\nBeside headlines of others, at their sizes and not checked here:\n\n{others}"
    )


def _advice(own: Sequence[Row], by: dict[tuple[str, str], Row]) -> str:
    """A paragraph to act on, made of the numbers."""
    start, weights = "Spearman at the start", "share of the horizon from which on weights tell"
    averages = "share of the horizon from which on averages tell"
    tells = [row["task"] for row in own if row[start] >= verdicts.STRONG]
    strongest = max(
        (row for (number, _), row in by.items() if number == start),
        key=lambda row: abs(row["effect"]),
    )
    word = "raises" if strongest["effect"] > 0 else "lowers"
    means = [float(np.mean([row[name] for row in own])) for name in (weights, averages)]
    return (
        f"\nIn {len(tells)} of {len(own)} tasks the loss right after growing is enough (Spearman "
        f"{verdicts.STRONG} or more{': ' + ', '.join(tells) if tells else ''}). What\nmatters "
        f"most is the factor *{strongest['factor']}*, which {word} that correlation by "
        f"{abs(strongest['effect']):.2f}"
        f"{'' if strongest['clear'] else ' (not clear of 0)'}. On the mean over tasks the "
        f"weights tell from {means[0]:.2f}\nof the horizon on, their average from "
        f"{means[1]:.2f}.\n"
    )


def _effect(row: Row) -> str:
    low, high = row["interval"]
    text = f"{_signed(row['effect'], 2)} [{_signed(low, 2)}, {_signed(high, 2)}]"
    return f"**{text}**" if row["clear"] else text


def _signed(x: float, digits: int = 3) -> str:
    return f"{x:.{digits}f}".replace("-", "−")


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [_finite(float(x)) for x in values]


def _finite(x: float) -> float | None:
    return x if np.isfinite(x) else None


def _ends(values: Sequence[float]) -> list[float] | None:
    """95 % of the draws in which there is a value; None where there is none in most."""
    known = [x for x in values if np.isfinite(x)]
    if 2 * len(known) < len(values):
        return None
    ends: list[Any] = np.percentile(known, [2.5, 97.5]).tolist()
    return ends


cli = command(main, "hypotheses", Config, __doc__)


if __name__ == "__main__":
    sys.exit(cli())
