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
from experiments.rows import RESULTS, Row, read
from lagjax.analysis.crossing import compare
from lagjax.jobs import RAW
from lagjax.store import directory

AVERAGE = "average"
"""The weights that tasks keep beside the weights themselves."""
CHOSEN = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the horizon at which a choice may be made."""
SOURCES = "given", "paid"
"""Whether the small model was there anyway, or its training counts."""


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
    longer = read(config.scratch)
    told = [row for task in tasks for row in claims(task, config.draws)]
    told += factors(tasks, longer, config.draws)
    write(config.results / "hypotheses.json", told)
    write(config.results / "regimes.json", [*numbers(tasks), *effects(tasks, config.draws)])
    found = [row for task in tasks for row in worth(task, config)]
    found += [row for task in tasks for row in savings(task, longer, config.draws)]
    write(config.results / "worth.json", found)
    print(f"{len(tasks)} tasks, {len(told)} verdicts")


def kept(folder: Path) -> list[Kept]:
    """The tasks that are kept as they are configured now, in the bank's order."""
    config = curves.Config(results=folder)
    found = {name: curves.kept(config, name) for name, x in curves.TASKS.items() if not x.held_out}
    return [Kept(name, curves.TASKS[name], kept) for name, kept in found.items() if kept]


def write(path: Path, rows: Sequence[Row]) -> None:
    """A list, an entry a line."""
    text = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    directory.write_atomically(path, f"[\n{text}\n]\n")


def claims(task: Kept, draws: int) -> list[Row]:
    """A row for each claim."""
    return [_claim(task, verdict) for verdict in verdicts.judge(task.curves.ended(), draws)]


def _claim(task: Kept, verdict: verdicts.Verdict) -> Row:
    """A claim's parts, and of these the one that decides."""
    # Of an answer that one part is enough for, that part; else the first.
    one = next((x for x in verdict.parts if x.answer == verdict.answer), verdict.parts[0])
    return {
        "hypothesis": verdict.hypothesis,
        "model": task.entry.model,
        "size": size(task),
        "regime": task.entry.about,
        "threshold": one.threshold,
        "value": one.value,
        "interval": [*one.interval],
        "seeds": task.curves.train.shape[1],
        "verdict": verdict.answer,
        "paper": verdicts.PAPER[verdict.hypothesis],
        "rows": f"curves/{task.name}.npz",
        "task": task.name,
        "parts": [{**part._asdict(), "verdict": part.answer} for part in verdict.parts],
    }


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
    """A row for each task of one horizon: what its start tells, from when on losses tell more, and
    what is lost at the end, in nats, by who keeps the lowest then, or at each of `CHOSEN`.
    """
    found = []
    for task in tasks:
        if task.entry.grow == "mixed":
            continue
        told, ended = told_of(task), _ready(task)
        at = [ended.at(share) for share in CHOSEN]
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
                **{name: _finite(float(number(told))) for name, number in regimes.ALL.items()},
                "best": ended.names[int(final.argmin())],
                "lowest at the start": [
                    ended.names[at]
                    for at in np.flatnonzero(ended.losses[0, :, 0] == ended.losses[0, :, 0].min())
                ],
                "noise floor": ended.floor,
                "spread": float(final.mean() - final.min()),
                "chosen at": [*CHOSEN],
                "start loses": float(verdicts.lost(told.losses[0], final)),
                "weights lose": [float(verdicts.lost(told.losses[x], final)) for x in at],
                "averages lose": [float(verdicts.lost(told.averaged[x], final)) for x in at],
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
    kept = task.curves
    at = best(task)
    own, flops = kept.valid[RAW][at], kept.step_flops[at]
    there = np.isfinite(own).all(axis=0)
    steps = np.array(kept.steps)[there]
    whole = kept.horizons[at] * flops
    seeds, found = own.shape[0], []
    random = np.random.default_rng(0).integers(seeds, size=(config.draws, seeds))
    # Draws of few seeds are often the same but for their order, on which no mean depends.
    draws = np.sort(np.vstack([np.arange(seeds), random]), axis=1)
    distinct, which = np.unique(draws, axis=0, return_inverse=True)
    for name, other in kept.baselines.items():
        if not np.isfinite(other.valid).all():
            continue
        for paid in (False, True):
            # Whoever trains the small model on has paid for it as well.
            source = source_flops(task) if paid and name == "from scratch" else 0.0
            if paid and not source:
                continue
            at_flops = np.array(other.steps) * other.step_flops
            against = [
                compare(
                    dict(zip(source + steps * flops, own[drawn][:, there].mean(axis=0))),
                    dict(zip(at_flops, other.valid[drawn].mean(axis=0))),
                )
                for drawn in distinct
            ]
            met = [each for each in against if each is not None]
            if len(met) < len(against):
                continue
            lower = np.array([each.difference for each in met])[which]
            crossed = [np.nan if each.crossing is None else each.crossing for each in met]
            crossing = (np.array(crossed)[which] - source) / whole
            found.append(
                {
                    "question": "worth",
                    "task": task.name,
                    "model": task.entry.model,
                    "regime": task.entry.about,
                    "best": kept.names[at],
                    "against": name,
                    "source": "paid" if paid else "given",
                    "lower_by": float(lower[0]),
                    "interval": np.percentile(lower[1:], [2.5, 97.5]).tolist(),
                    "crossing": _finite(float(crossing[0])),
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
    entry, found = task.entry, []
    for source in SOURCES:
        drawn = saving(task, longer, source == "paid", draws)
        if drawn is None:
            continue
        known = bool(np.isfinite(drawn[0]))
        found.append(
            {
                "question": "saved",
                "task": task.name,
                "model": entry.model,
                "regime": entry.about,
                "size": size(task),
                "best": task.curves.names[best(task)],
                "source": source,
                "saved": float(drawn[0]) if known else None,
                "interval": _interval(drawn[1:]) if known else None,
                "seeds": task.curves.train.shape[1],
                "rows": f"curves/{task.name}.npz",
            }
        )
    return found


def saving(task: Kept, longer: Sequence[Row], paid: bool, draws: int) -> NDArray[np.float64] | None:
    """The share of FLOPs that the best candidate saves, and draws of it; None where its model was
    not trained from scratch over longer horizons.
    """
    kept = task.curves
    rows = scratch.like(longer, kept.row["config"], kept.row["corpus"])
    if not rows or task.entry.grow != "depth":
        return None
    at = best(task)
    spent = kept.horizons[at] * kept.step_flops[at] + (source_flops(task) if paid else 0.0)
    return scratch.shares(rows, kept.ended().losses[-1][at], spent, draws)


def best(task: Kept) -> int:
    """The candidate with the lowest final seed mean, of those that failed with no seed."""
    return int(np.nan_to_num(task.curves.ended().losses[-1].mean(axis=1), nan=np.inf).argmin())


def factors(tasks: Sequence[Kept], longer: Sequence[Row], draws: int) -> list[Row]:
    """A row for H7 over growth factors: that keeping the function is not needed at 2 ×, and that
    FLOPs saved, with the source paid, are highest there. None before all factors are known.
    """
    by = {task.name: task for task in tasks}
    if not {*curves.FACTORS.values()} <= by.keys():
        return []
    series = {factor: by[name] for factor, name in curves.FACTORS.items()}
    found = {factor: saving(task, longer, True, draws) for factor, task in series.items()}
    known = {factor: x for factor, x in found.items() if x is not None and np.isfinite(x[0])}
    if known.keys() != found.keys():
        return []
    others = np.max([x for factor, x in known.items() if factor != 2], axis=0)
    ahead = known[2] - others
    interval = _interval(ahead[1:])
    part = verdicts.Part(
        "the share of FLOPs saved at 2 ×, less the highest at other factors",
        float(ahead[0]), (interval[0], interval[1]), 0.0, True,
    )  # fmt: skip
    verdict = verdicts.whole("H7", [*verdicts.h7(_ready(series[2]), draws).parts, part])
    several = ", ".join(f"{factor:g} ×" for factor in series)
    row = _claim(series[2], verdict)
    return [
        row
        | {
            "task": "factors",
            "regime": f"growth factors {several}, source annealed, full rate, state reset",
            "rows": ", ".join(f"curves/{task.name}.npz" for task in series.values()),
            "saved": {f"{factor:g}": float(x[0]) for factor, x in known.items()},
        }
    ]


def source_flops(task: Kept) -> float:
    """FLOPs of the small model's training."""
    against = task.curves.baselines.get("not growing")
    steps = task.entry.source_steps // task.curves.row["config"]["shorter"]
    return steps * against.step_flops if against else 0.0


def _ready(task: Kept) -> verdicts.Ended:
    return task.curves.ended().ready()


def _interval(drawn: NDArray[np.float64]) -> list[float]:
    """95 % of the draws of which it is known."""
    ends: list[float] = np.nanpercentile(drawn, [2.5, 97.5]).tolist()
    return ends


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
