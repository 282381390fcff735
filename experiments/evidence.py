"""What tells early which candidate ends best: losses, averaged weights, or a short annealing?

    python -m experiments.evidence                 # two hours on 2 CPU cores; can go on
    python -m experiments.evidence --regimes low   # one regime
    python -m experiments.tables                   # the answer, in experiments/README.md

A candidate's loss at a high learning rate is the floor of its valley plus the height at which its
weights bounce; at the end only the floor counts. Each regime is an audit: a source, a pool, three
seeds, every candidate trained to the horizon. At some steps each signal chooses the candidate that
is lowest by it, and is judged by where that one ends:

raw       the validation loss of the weights
window    the mean training loss of the last min(50, step / 4) steps, the same batches for all
ema       the validation loss of an exponential average of the weights, by its half-life
tail      that of the mean of the weights over the last steps, by their number
anneal    that of a copy trained on for a quarter of its steps with the rate going to 0

Half-lives and lengths are shares of the horizon. `cost` is what the choice costs, in full runs:
the losers' steps, the evaluations at the start and at the step, copies that are annealed.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
import optax
from numpy.typing import NDArray

import lagjax
from experiments.bank import Curves
from experiments.cli import command
from experiments.data import text
from experiments.models import gpt
from experiments.rows import RESULTS, Row, store
from lagjax.algebra.layout import Params
from lagjax.analysis.agreement import agreement
from lagjax.analysis.audit import chances, noise_floor
from lagjax.analysis.margin import METHODS, margin, of_steps, window
from lagjax.evidence import SHORTEST
from lagjax.jobs import ANNEAL, RAW
from lagjax.store import directory

AVERAGES = {
    "ema 1/128": lagjax.Ema(1 / 128),
    "ema 1/64": lagjax.Ema(1 / 64),
    "ema 1/32": lagjax.Ema(1 / 32),
    "tail 1/32": lagjax.Tail(1 / 32),
    "tail 1/16": lagjax.Tail(1 / 16),
}
"""Three decays and two tail means."""
DEPTH = (
    "zeroed-interleave",
    "zeroed-stack",
    "stack",
    "half-stack",
    "overlap",
    "lidas",
    "interleave",
    "identity-between",
    "random-between",
    "identity-top",
    "random-top",
    "random-bottom",
    "reversed",
)
"""Twelve candidates of the depth pool, and its control."""
FEWER = (
    "zeroed-interleave",
    "zeroed-stack",
    "stack",
    "half-stack",
    "interleave",
    "random-between",
    "identity-top",
    "random-top",
    "reversed",
)
"""Eight of them."""


class Regime(NamedTuple):
    """What differs between the audits.

    Attributes:
        about: in words, for the table.
        source: whether the small model's rate is annealed to 0 or constant.
        peak: of the learning rate after growing.
        end: of it, as a share of the peak.
        clip: the gradient's largest norm; None where it is not clipped.
        fresh: by what fresh layers' matrices are multiplied.
        grow: which pool.
        names: of the pool's members that take part; all where there are none.
    """

    about: str
    source: Literal["annealed", "constant"] = "annealed"
    peak: float = 3e-3
    end: float = 0.0
    clip: float | None = None
    fresh: float = 1.0
    grow: Literal["depth", "width"] = "depth"
    names: tuple[str, ...] = FEWER


REGIMES = {
    "quickstart": Regime("source annealed to 0, warmed up again to 3e-3", names=DEPTH),
    "constant": Regime(
        "source at a constant rate, fresh layers a tenth as large, clipped, cosine to a tenth",
        source="constant",
        end=0.1,
        clip=1.0,
        fresh=0.1,
    ),
    "low": Regime("source annealed to 0, warmed up again to 3e-4", peak=3e-4),
    "width": Regime(
        "source annealed to 0, twice as wide, warmed up again to 3e-3", grow="width", names=()
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of the experiment."""

    regimes: tuple[str, ...] = tuple(REGIMES)
    """Which to run."""
    workdir: Path = Path("runs/evidence")
    """Where the run directories are, from which an interrupted run goes on."""
    results: Path = RESULTS
    """The folder of the rows and, in `curves`, of the curves."""
    data: str | None = None
    """A file or a folder of text; by default the standard library's source."""
    layers: int = 3
    """Layers of the small model."""
    width: int = 48
    """Its width; the wide model's is twice that."""
    heads: int = 4
    """Its attention heads, of the same size in the wide model."""
    window: int = 64
    """Length of a training window, in bytes."""
    batch: int = 8
    """Windows in a batch."""
    source_steps: int = 1000
    """Steps that the small model is trained."""
    horizon: int = 800
    """Steps of the large models' full training."""
    seeds: int = 3
    """Growth keys and data orders."""
    looks: tuple[int, ...] = (50, 100, 200, 400)
    """Steps at which copies are annealed."""
    warmup: int = 50
    """Steps of warm-up, of the small model and again after growing."""
    learning_rate: float = 3e-3
    """Peak of the small model's schedule."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    shards: int = 8
    """Validation shards, each of one batch of windows."""


@dataclasses.dataclass(frozen=True)
class Looks:
    """Probes to each step, and anneals copies there; decides at the last."""

    steps: tuple[int, ...]

    def __call__(
        self, evidence: lagjax.Evidence, /
    ) -> lagjax.Probe | lagjax.Anneal | lagjax.Decision:
        at = evidence.frontier
        first = next(iter(evidence.known))
        if at and not evidence.annealed(first, at):
            return lagjax.Anneal()
        if later := [step for step in self.steps if step > at]:
            return lagjax.Probe(later[0])
        return lagjax.decide(evidence, at)


def main(config: Config) -> None:
    """Runs the regimes, or goes on with them, and stores a row for each choice."""
    for name in config.regimes:
        if name not in REGIMES:
            raise ValueError(f"there is no regime {name!r}; there are {', '.join(REGIMES)}")
    for name in config.regimes:
        run = config.workdir / name
        train(config, REGIMES[name], run)
        keep(config, name, run)


def keep(config: Config, name: str, run: Path) -> None:
    """Stores the rows and the curves of a finished run, with where it was made."""
    curves, made = Curves.read(run), directory.read(run).config
    curves.save(config.results / "curves" / f"evidence-{name}.npz")
    left_out, sizes = ("regimes", "workdir", "results"), dataclasses.asdict(config)
    told = {key: x for key, x in sizes.items() if key not in left_out} | {"regime": name}
    here = {"commit": made["versions"]["commit"]}
    here |= {key: made[key] for key in ("versions", "device", "cores")}
    for question, found in (
        ("evidence", rows(name, curves)),
        ("coverage", coverages(name, curves)),
    ):
        kept = [{"question": question, "config": told} | row | here for row in found]
        store(config.results / f"{question}.jsonl", kept)
    print(f"{name}: {curves.able} candidates")


def train(config: Config, regime: Regime, run: Path) -> None:
    """The audit of a regime."""
    corpus = text.load(config.data)
    batch = text.batches(corpus, config.batch, config.window)
    valid = text.shards(corpus, config.shards, config.batch, config.window)
    size = gpt.Config(config.layers, config.width, config.heads, config.window)
    small = gpt.model(size)

    def stream(offset: int) -> Callable[[int, int], np.ndarray]:
        # The small model's data order is none of the large ones'.
        return lambda seed, step: batch(offset + seed, step)

    asked = {"regime": regime._asdict(), "corpus": corpus.digest}
    source = lagjax.train(
        small,
        _adamw(config, _source_schedule(config, regime)),
        lambda _, step: stream(0)(0, step),
        valid,
        config.source_steps,
        run,
        arguments=asked,
    )
    pool = _pool(regime, size, small)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, regime.peak, config.warmup, config.horizon, regime.end * regime.peak
    )
    task = lagjax.Task(
        small,
        source._replace(position=0),
        _adamw(config, schedule, regime.clip),
        stream(1),
        valid,
        config.horizon,
        seeds=config.seeds,
        averages=AVERAGES,
    )
    lagjax.run(task, pool, Looks(config.looks), run, compare="all", arguments=asked)


def _source_schedule(config: Config, regime: Regime) -> optax.Schedule:
    if regime.source == "constant":
        return optax.warmup_constant_schedule(0.0, config.learning_rate, config.warmup)
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup, config.source_steps
    )


def _adamw(
    config: Config, schedule: optax.Schedule, clip: float | None = None
) -> optax.GradientTransformation:
    tx = optax.inject_hyperparams(optax.adamw)(
        learning_rate=schedule, weight_decay=config.weight_decay
    )
    return optax.chain(optax.clip_by_global_norm(clip), tx) if clip else tx


def _pool(regime: Regime, size: gpt.Config, small: lagjax.Model) -> tuple[lagjax.Candidate, ...]:
    shapes = jax.eval_shape(small.init, jax.random.key(0))
    if regime.grow == "width":
        wide = dataclasses.replace(size, width=2 * size.width, heads=2 * size.heads)
        required = functools.partial(gpt.required, wide)
        return lagjax.pools.width(shapes, small.axes, gpt.model(wide), required)
    large = gpt.model(dataclasses.replace(size, layers=2 * size.layers))
    if regime.fresh != 1:
        large = _fresh(large, regime.fresh)
    pool = lagjax.pools.depth(shapes, small.axes, large)
    return tuple(each for each in pool if each.name in regime.names)


def _fresh(model: lagjax.Model, factor: float) -> lagjax.Model:
    """A model whose matrices begin smaller."""

    def init(key: jax.Array) -> Params:
        return jax.tree.map(lambda x: x * factor if x.ndim > 1 else x, model.init(key))

    return model._replace(init=init)


def rows(regime: str, curves: Curves) -> list[Row]:
    """A row for each signal, step and seed."""
    able, horizon = slice(curves.able), curves.train.shape[2]
    ends = curves.valid[RAW][able, :, -1]
    final, floor = ends.mean(axis=1), noise_floor(ends)
    everyone = np.ones(len(final), bool)
    found = []
    for step in steps_told(curves):
        for signal, losses in signals(curves, step).items():
            for seed, column in enumerate(losses[able].T):
                if not np.isfinite(column).any():
                    continue
                name, _, share = signal.partition(" ")
                rule = AVERAGES.get(signal)
                decay = rule.decay(horizon) if isinstance(rule, lagjax.Ema) else None
                found.append(
                    {
                        "regime": regime,
                        "seed": seed,
                        "step": step,
                        "signal": name,
                        "share": share or None,
                        "decay": decay and round(decay, 6),
                        "spearman": agreement(column.tolist(), final.tolist()).spearman,
                        "regret_nats": float(chances(column, everyone) @ final - final.min()),
                        "cost": cost(curves, name, step),
                        "about": REGIMES[regime].about,
                        "candidates": curves.able,
                        "noise_floor": floor,
                        "random_regret": float(final.mean() - final.min()),
                    }
                )
    return found


def coverages(regime: str, curves: Curves) -> list[Row]:
    """A row for each method and step: how often its 95 % intervals hold the mean difference of the
    next steps, over all pairs of candidates and seeds; validation's as well.
    """
    able, found = range(curves.able), []
    pairs = [(one, other) for other in able for one in range(other)]
    for step in steps_told(curves):
        length = window(step)
        if length < SHORTEST or step + length > curves.train.shape[2]:
            continue
        intervals: dict[str, list[tuple[float, bool]]] = {}
        for seed in range(curves.train.shape[1]):
            losses = curves.train[able, seed].astype(np.float64)
            shards = curves.shards[able, seed, curves.steps.index(step)]
            if not (np.isfinite(losses).all() and np.isfinite(shards).all()):
                continue
            before, after = (losses[:, x : x + length] for x in (step - length, step))
            for one, other in pairs:
                coming = float((after[other] - after[one]).mean())
                own = {
                    method: of_steps(before[[one]], before[[other]], method).margin
                    for method in METHODS
                }
                counts = np.ones(shards.shape[1])
                own["validation"] = margin(shards[[one]], shards[[other]], counts)
                for method, each in own.items():
                    holds = each.low <= coming <= each.high
                    intervals.setdefault(method, []).append((each.high - each.low, holds))
        for method, each in intervals.items():
            width, holds = np.array(each).mean(axis=0)
            found.append(
                {
                    "regime": regime,
                    "step": step,
                    "method": method,
                    "window": length,
                    "pairs": len(each),
                    "coverage": round(float(holds), 4),
                    "width": round(float(width), 6),
                }
            )
    return found


def steps_told(curves: Curves) -> list[int]:
    """The steps of the rows: the first few, and those at which all signals are there."""
    every = curves.train.shape[2] // 16
    return [step for step in curves.steps[:-1] if step in (0, 1, 4, 16) or step >= every]


def signals(curves: Curves, step: int) -> dict[str, NDArray[np.float64]]:
    """Signal → `[candidates, seeds]` at a step; those that are not there are left out."""
    at = curves.steps.index(step)
    found = {name: x[:, :, at] for name, x in curves.valid.items() if step or name == RAW}
    if length := window(step):
        found["window"] = curves.train[:, :, step - length : step].mean(axis=2, dtype=float)
    return {name: x for name, x in found.items() if np.isfinite(x).any()}


def cost(curves: Curves, signal: str, step: int) -> float:
    """What a choice by a signal costs, in full runs of one candidate."""
    number, horizon = curves.able, curves.train.shape[2]
    # At the start all are evaluated once; at the step the weights and their average, or the copy.
    evaluations = {"window": 1, "raw": 2, "anneal": 2}.get(signal, 3) if step else 1
    steps = (number - 1) * step + number * evaluations * curves.evaluation
    if signal == ANNEAL:
        steps += number * max(1, round(0.25 * step))
    return float(steps / horizon)


cli = command(
    main,
    "evidence",
    Config,
    __doc__,
    "interrupted; the same command goes on from the last checkpoint",
)


if __name__ == "__main__":
    sys.exit(cli())
