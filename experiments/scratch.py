"""How long the large model must be trained from scratch to end where a grown one does.

    python -m experiments.scratch                   # half an hour on 2 CPU cores; can go on
    python -m experiments.scratch --tasks gpt-1     # the large model of one task
    python -m experiments.hypotheses                # what growing saves

The large models of the bank's depth tasks, trained from scratch over three horizons with three
seeds, each at the full rate with a schedule of its own. A grown model's final loss lies between two
of theirs; in between, final losses are linear in the logarithm of the FLOPs.
"""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import lagjax
from experiments import curves
from experiments.cli import command
from experiments.rows import RESULTS, Row, environment, read, store
from lagjax.store import directory

QUESTION = "scratch"


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train."""

    tasks: tuple[str, ...] = ("gpt-1", "factor-8", "bert-5", "ul2-5")
    """Of the bank; their large models are trained. Tasks of the same large model share its rows."""
    horizons: tuple[int, ...] = (800, 1600, 3200)
    """Steps of each training."""
    seeds: int = 3
    """Initialisations and data orders."""
    workdir: Path = Path("runs/scratch")
    """Where the run directories are, from which an interrupted run goes on."""
    results: Path = RESULTS
    """The folder of the rows."""
    shorter: int = 1
    """Divides the steps: for a trial of the whole."""


def main(config: Config) -> None:
    """Trains what has no row, and stores a row for each task, horizon and seed."""
    sizes = curves.Config()
    path = config.results / f"{QUESTION}.jsonl"
    for name in config.tasks:
        if name not in curves.TASKS:
            raise ValueError(f"there is no task {name!r}; there are {', '.join(curves.TASKS)}")
        # Whatever the grown ones' regime is.
        entry = dataclasses.replace(curves.TASKS[name], peak=1.0, state="reset", decay=None)
        setting = curves.brought(sizes, entry)
        large = setting.large(entry.layers[1], False)
        for horizon, seed in itertools.product(config.horizons, range(config.seeds)):
            steps = max(1, horizon // config.shorter)
            asked = curves.configured(sizes, name)
            told = model_of(asked, setting.corpus) | {"horizon": horizon, "shorter": config.shorter}
            if any((row["config"], row["seed"]) == (told, seed) for row in read(path)):
                continue
            run = config.workdir / f"{entry.model}-{entry.layers[1]}-{horizon}-{seed}"
            tx = setting.optimizer(curves.schedule(sizes, entry, setting.rate, steps))
            # The data order of a candidate with this seed.
            lagjax.train(
                large, tx, setting.batch, setting.valid, steps, run, seed=seed,
                engine=setting.engine,
            )  # fmt: skip
            last = directory.read(run).curves[-1]
            row = {
                "question": QUESTION, "config": told, "seed": seed, "loss": last["valid_loss"],
                "flops": last["flops"],
            }  # fmt: skip
            store(path, [row | environment()])


def model_of(asked: Row, corpus: str) -> Row:
    """What tells a task's large model and its text from others, of a task's configuration."""
    return {
        "model": asked["model"], "layers": asked["layers"][1], "width": asked["width"],
        "vocab": asked.get("vocab"), "corpus": corpus,
    }  # fmt: skip


def like(rows: Sequence[Row], asked: Row, corpus: str) -> list[Row]:
    """The rows of a task's large model."""
    wanted = model_of(asked, corpus) | {"shorter": asked["shorter"]}
    return [row for row in rows if wanted.items() <= row["config"].items()]


def shares(
    rows: Sequence[Row], final: NDArray[np.float64], spent: float, draws: int
) -> NDArray[np.float64]:
    """The share of FLOPs that a grown model saves against the training from scratch that would end
    where it does, `[1 + draws]`: what it is, and draws of a bootstrap over the seeds of both. NaN
    where it ends above or below all of theirs.

    Args:
        rows: of trainings from scratch.
        final: losses with which the grown one ends, `[seeds]`.
        spent: FLOPs that it took.
        draws: of the bootstrap.
    """
    costs = sorted({row["flops"] for row in rows})
    losses = [[row["loss"] for row in rows if row["flops"] == cost] for cost in costs]
    random = np.random.default_rng(0)

    def share(ends: float, means: NDArray[np.float64]) -> float:
        if not means.min() <= ends <= means.max():
            return np.nan
        # Losses fall as FLOPs rise.
        needed = np.exp(np.interp(-ends, -means, np.log(costs)))
        return float(1 - spent / needed)

    def drawn(x: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        return random.choice(x, size=(draws, len(x))).mean(axis=1)

    found = [share(float(final.mean()), np.array([np.mean(x) for x in losses]))]
    means = np.stack([drawn(x) for x in losses], axis=1)
    found += [share(float(ends), each) for ends, each in zip(drawn(final), means)]
    return np.array(found)


def saved(
    rows: Sequence[Row], final: NDArray[np.float64], spent: float, draws: int
) -> tuple[float, tuple[float, float]] | None:
    """That share and its 95 % interval, None where it is not known; arguments as of `shares`."""
    value, *drawn = shares(rows, final, spent, draws)
    if not np.isfinite(value):
        return None
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(value), (float(low), float(high))


cli = command(
    main,
    "scratch",
    Config,
    __doc__,
    "interrupted; the same command goes on from the last checkpoint",
)


if __name__ == "__main__":
    sys.exit(cli())
