"""How long the large model must be trained from scratch to end where a grown one does.

    python -m experiments.scratch       # ten minutes on 2 CPU cores; can go on
    python -m experiments.hypotheses    # what growing saves

The large model of the bank's depth tasks, trained from scratch over three horizons with three
seeds, each with a schedule of its own. A grown model's final loss lies between two of theirs; in
between, final losses are linear in the logarithm of the FLOPs.
"""

import dataclasses
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
    """Trains what has no row, and stores a row for each horizon and seed."""
    entry, sizes = curves.TASKS[curves.SOURCE_KEPT], curves.Config()
    setting = curves.brought(sizes, entry)
    large = setting.large(entry.layers[1], False)
    path = config.results / f"{QUESTION}.jsonl"
    for horizon in config.horizons:
        steps = max(1, horizon // config.shorter)
        told = {
            "horizon": horizon, "shorter": config.shorter, "layers": entry.layers[1],
            "width": sizes.width, "corpus": setting.corpus,
        }  # fmt: skip
        for seed in range(config.seeds):
            there = [row for row in read(path) if (row["config"], row["seed"]) == (told, seed)]
            if there:
                continue
            run = config.workdir / f"{horizon}-{seed}"
            tx = setting.optimizer(curves.schedule(sizes, entry, setting.rate, steps))
            # The data order of a candidate with this seed.
            lagjax.train(large, tx, setting.batch, setting.valid, steps, run, seed=seed)
            last = directory.read(run).curves[-1]
            row = {
                "question": QUESTION, "config": told, "seed": seed, "loss": last["valid_loss"],
                "flops": last["flops"],
            }  # fmt: skip
            store(path, [row | environment()])


def saved(
    rows: Sequence[Row], final: NDArray[np.float64], spent: float, draws: int
) -> tuple[float, tuple[float, float]] | None:
    """The share of FLOPs that a grown model saves against the training from scratch that would end
    where it does, and its 95 % interval, a bootstrap over the seeds of both.

    Args:
        rows: of trainings from scratch.
        final: losses with which the grown one ends, `[seeds]`.
        spent: FLOPs that it took.
        draws: of the bootstrap.

    Returns:
        None where it ends above or below all of theirs.
    """
    costs = sorted({row["flops"] for row in rows})
    losses = [[row["loss"] for row in rows if row["flops"] == cost] for cost in costs]
    random, found = np.random.default_rng(0), []

    def share(ends: float, means: Sequence[float]) -> float:
        if not min(means) <= ends <= max(means):
            return np.nan
        # Losses fall as FLOPs rise.
        needed = np.exp(np.interp(-ends, -np.array(means), np.log(costs)))
        return float(1 - spent / needed)

    value = share(float(final.mean()), [float(np.mean(x)) for x in losses])
    if not np.isfinite(value):
        return None
    for _ in range(draws):
        drawn = [float(np.mean(random.choice(x, len(x)))) for x in losses]
        found.append(share(float(np.mean(random.choice(final, len(final)))), drawn))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return value, (float(low), float(high))


cli = command(
    main,
    "scratch",
    Config,
    __doc__,
    "interrupted; the same command goes on from the last checkpoint",
)


if __name__ == "__main__":
    sys.exit(cli())
