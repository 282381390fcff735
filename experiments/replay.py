"""A task of the bank, its first steps run again from its row and from the small model that is kept.

    python -m experiments.replay        # gpt-1: half a minute on 2 CPU cores

Losses are those of the kept curves, to rounding, with the same versions of the software, and the
same text.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

import lagjax
from experiments import bank, curves
from experiments.cli import command
from lagjax import checks
from lagjax.fingerprint import environment
from lagjax.initial import Group, trial_key
from lagjax.jobs import Trial
from lagjax.model import mean_loss

MATTER = ("jax", "jaxlib", "flax", "optax", "numpy")
"""Packages of which another version may round otherwise."""
NAMES = ("zeroed-interleave", "stack")
"""One that is exact at the start, and one that is not."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run again."""

    task: str = curves.SOURCE_KEPT
    """Which task."""
    steps: int = 4
    """How many of its first steps."""
    curves: Path = bank.CURVES
    """The folder of the kept curves."""


def main(config: Config) -> None:
    """Prints how far the losses are from the kept ones; raises ValueError where they differ."""
    path = config.curves / f"{config.task}.npz"
    if not bank.source_path(path).exists():
        raise ValueError(
            f"the small model of {config.task!r} is not kept in {config.curves}; that of "
            f"{curves.SOURCE_KEPT!r} is"
        )
    kept = bank.Curves.load(path)
    if why := otherwise(kept.row):
        raise ValueError(f"{config.task!r} cannot be run again here: {why}")
    found = losses(kept.row, bank.source_path(path), config.steps)
    for name, mine in found.items():
        theirs = kept.train[kept.names.index(name), :, : config.steps]
        off = float(np.abs(mine / theirs - 1).max())
        print(f"{name}: {config.steps} steps, {len(mine)} seeds, off by {off:.0e}")
        if off > 1e-4:
            raise ValueError(f"{name} gives {mine.tolist()}, and gave {theirs.tolist()}")


def otherwise(row: Mapping[str, Any]) -> str:
    """Why a task's losses may be others here; "" where they are the same."""
    here = environment()["versions"]
    for name in MATTER:
        if here[name] != row["versions"][name]:
            return f"{name} is {here[name]} here, and was {row['versions'][name]}"
    found = curves.brought(*_configured(row)).corpus
    if found != row["corpus"]:
        return f"the text has the digest {found[:12]} here, and had {row['corpus'][:12]}"
    return ""


def losses(
    row: Mapping[str, Any], source: Path, steps: int, names: Sequence[str] = NAMES
) -> dict[str, NDArray[np.float32]]:
    """Name → the training losses of the first steps, `[seeds, steps]`.

    Args:
        row: of the task.
        source: the file of its small model.
        steps: how many.
        names: of candidates.

    Raises:
        ValueError: where candidates begin with the small model's optimizer state, which is not
            kept.
    """
    config, entry = _configured(row)
    if entry.state != "reset":
        raise ValueError(
            f"{entry.about!r} grows the optimizer's state, which is not kept; train the small "
            "model again"
        )
    setting = curves.brought(config, entry)
    task = curves.task(
        config, entry, setting, lagjax.Trained(bank.read_params(source, setting.small))
    )
    shards, found = checks.shards(task.valid), {}
    group: Group | None = None
    for one in curves.pool(entry, setting):
        if one.name not in names:
            continue
        group = group or Group(task.at(task.horizon), one, shards, None)
        made = [_first(group, one, task, seed, steps) for seed in range(task.seeds)]
        found[one.name] = np.array(made, np.float32)
    return found


def _configured(row: Mapping[str, Any]) -> tuple[curves.Config, curves.Entry]:
    """What a row was made with."""
    told = row["config"]
    config, entry = (
        {field.name: told[field.name] for field in dataclasses.fields(kind) if field.name in told}
        for kind in (curves.Config, curves.Entry)
    )
    return curves.Config(**config), curves.Entry(**entry | {"layers": (*told["layers"],)})


def _first(
    group: Group, one: lagjax.Candidate, task: lagjax.Task, seed: int, steps: int
) -> list[float]:
    state, found = group.begin(one, trial_key(task.seed, Trial(one.name, seed)), seed), []
    step = jax.jit(group.engine.step)
    for number in range(steps):
        state, metrics = step(state, task.batch(seed, number))
        found.append(float(mean_loss(*metrics["loss"])))
    return found


cli = command(main, "replay", Config, __doc__)


if __name__ == "__main__":
    sys.exit(cli())
