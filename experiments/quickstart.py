"""Grow a small GPT to twice its depth in every way of the depth pool; keep what wins after a lag.

    python -m experiments.quickstart --workdir runs/quickstart      # three minutes on 2 CPU cores
    python -m experiments.quickstart --grow both --baselines --workdir runs/both

A byte-level GPT is trained on text (by default the Python standard library's own source), grown,
probed, and the chosen candidate goes on to the horizon. Beside it goes on what the loss right after
growing would have chosen. Interrupt it whenever you like: the same command goes on.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import optax

import lagjax
from experiments.cli import command
from experiments.data import text
from experiments.models import gpt
from lagjax import report
from lagjax.growth.depth import Strategy

FEW = 4
"""Of each kind, with `--grow both`: the first of the pools."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of the experiment."""

    workdir: Path = Path("runs/quickstart")
    """The run directory: curves, checkpoints, decision.json and report.html."""
    data: str | None = None
    """A file or a folder of text in any language, or a TensorFlow dataset as
    tfds:NAME[/CONFIG][:VERSION][:FIELD]; by default the standard library's source."""
    encoding: str | None = None
    """Of files of text that are not UTF-8 and have no byte order mark, as latin-1."""
    data_dir: Path | None = None
    """Where TensorFlow datasets are kept; by default their own place."""
    seed: int = 0
    """Fixes the initialisation, the fresh layers and the order of the data."""
    seeds: int | None = None
    """How many growth keys and data orders each candidate is probed with; by default 1, in an
    audit 3."""

    layers: int = 3
    """Layers of the small model."""
    grown_layers: int = 6
    """Layers of the large model."""
    width: int = 48
    """Size of the residual stream."""
    grow: Literal["depth", "width", "both"] = "depth"
    """What grows: layers, or the residual stream with as many heads more and an MLP as much wider,
    or either and both, a few ways of each."""
    grown_width: int | None = None
    """Width of the large model where that grows, a multiple of the size of a head; by default
    twice `width`."""
    heads: int = 4
    """Attention heads."""
    window: int = 64
    """Length of a training window, in bytes."""
    batch: int = 8
    """Windows in a batch."""

    source_steps: int = 1000
    """Steps that the small model is trained."""
    horizon: int = 800
    """Steps of the large model's full training."""
    lag: int = 50
    """Steps that each candidate is probed before the choice."""
    learning_rate: float = 3e-3
    """Peak of the schedule: linear warm-up, then a cosine down to 0 at the horizon."""
    warmup: int = 50
    """Steps of warm-up, of the small model and again after growing."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    moments: Literal["reset", "grow"] = "reset"
    """Whether the optimizer's statistics start anew or are grown with the parameters."""
    schedule: Literal["restart", "continue"] = "restart"
    """Whether the learning rate warms up again after growing and has a cosine of its own, or goes
    on along one cosine over the small and the large model's steps."""

    average: float = 1 / 32
    """Half-life of the average of each candidate's weights that it is chosen by, as a share of the
    horizon; 0 to choose by the weights themselves."""
    shards: int = 16
    """Validation shards, each of one batch of windows; their differences give the intervals."""
    compare: Literal["none", "start"] = "start"
    """What is trained to the horizon beside the winner: nothing, or what the loss right after
    growing would have chosen."""
    baselines: bool = False
    """Train, after the choice, the small model on and the large one from scratch for the FLOPs of
    the winner, to show whether growing pays; an audit always does."""
    matched: Literal["steps", "flops"] | None = None
    """By what candidates of different sizes are matched, in the full run and at the lag; by default
    "flops" with `--grow both`, which alone has such, else "steps"."""
    audit: bool = False
    """Train every candidate to the horizon, to show what the loss at each step would have told
    about the end."""
    keep: Literal["winner", "all"] = "winner"
    """Whose checkpoints stay when all is done."""
    candidates_at_once: int | None = None
    """How many candidates run at once; by default what fits the memory and measures faster."""
    mesh: tuple[int, int] | None = None
    """Devices along candidates and along data, as `--mesh 4 2`; by default one device."""
    fully_sharded: bool = False
    """Cut parameters and optimizer state over the mesh's data axis as well."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints."""


def main(config: Config) -> None:
    """Runs the experiment, or goes on with it, and prints what came of it."""
    corpus = load(config)
    print(corpus.summary(), file=sys.stderr)
    batch = text.batches(corpus, config.batch, config.window)
    valid = text.shards(corpus, config.shards, config.batch, config.window)
    size = gpt.Config(config.layers, config.width, config.heads, config.window)
    small = gpt.model(size)
    pool = candidates(config, size)
    averages = {"average": lagjax.Ema(config.average)} if config.average else {}
    weights = next(iter(averages), "raw")
    policy = lagjax.FixedLag(config.lag, weights=weights)
    policy.lag(config.horizon)
    matched = config.matched or ("flops" if config.grow == "both" else "steps")
    if matched == "flops":
        policy = lagjax.FixedLag(share=config.lag / config.horizon, weights=weights)

    def stream(offset: int) -> Callable[[int, int], np.ndarray]:
        # The small model's data order is none of the large one's.
        return lambda seed, step: batch(config.seed * 2**16 + offset + seed, step)

    seeds = config.seeds or (3 if config.audit else 1)
    # Where things are kept and computed is recorded elsewhere, or of no consequence.
    elsewhere = ("workdir", "data_dir", "keep", "candidates_at_once", "checkpoint_seconds")
    recorded = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in (*elsewhere, "mesh", "fully_sharded")
    }
    options = {
        "workdir": config.workdir,
        "arguments": {
            **recorded,
            "seeds": seeds,
            "corpus": corpus.digest,
            "files": corpus.files,
            "left_out": [*corpus.left_out] or corpus.skipped,
        },
        "checkpoint_seconds": config.checkpoint_seconds,
        "mesh": devices(config.mesh),
        "fully_sharded": config.fully_sharded,
    }
    source = lagjax.train(
        small,
        optimizer(config, config.source_steps),
        lambda _, step: stream(0)(0, step),
        valid,
        config.source_steps,
        seed=config.seed,
        **options,
    )
    task = lagjax.Task(
        small,
        # The large model begins a data order of its own.
        source._replace(position=0),
        lambda horizon: optimizer(dataclasses.replace(config, horizon=horizon), horizon),
        stream(1),
        valid,
        config.horizon,
        seeds=seeds,
        seed=config.seed,
        transfer=lagjax.Transfer(config.moments, config.schedule),
        matched=matched,
        averages=averages,
    )
    lagjax.run(
        task,
        pool,
        policy,
        compare="all" if config.audit else config.compare,
        baselines=config.baselines,
        keep=config.keep,
        candidates_at_once=config.candidates_at_once,
        **options,
    )
    report.show(config.workdir)
    print(f"report: {config.workdir / 'report.html'}")


def candidates(config: Config, size: gpt.Config) -> tuple[lagjax.Candidate, ...]:
    """The pool; raises ValueError for a width that does not fit."""
    small, head = gpt.model(size), size.width // size.heads
    shapes = jax.eval_shape(small.init, jax.random.key(0))
    width = 2 * size.width if config.grown_width is None else config.grown_width
    if config.grow == "depth":
        deep = dataclasses.replace(size, layers=config.grown_layers)
        return lagjax.pools.depth(shapes, small.axes, gpt.model(deep))
    if width <= size.width or width % head:
        raise ValueError(
            f"--grown-width {width} is no width to grow to from {size.width} with heads of size "
            f"{head}; give a larger multiple of {head}"
        )

    def wider(layers: int, deeper: Strategy | None = None) -> tuple[lagjax.Candidate, ...]:
        target = dataclasses.replace(size, layers=layers, width=width, heads=width // head)
        required = functools.partial(gpt.required, target)
        return lagjax.pools.width(shapes, small.axes, gpt.model(target), required, deeper)

    if config.grow == "width":
        return wider(size.layers)
    deep = dataclasses.replace(size, layers=config.grown_layers)
    deeper = lagjax.pools.depth(shapes, small.axes, gpt.model(deep), controls=False)[:FEW]
    name, strategy = deeper[0].name, deeper[0].operator.depth
    both = wider(config.grown_layers, strategy)[:FEW]
    return (
        *deeper,
        *wider(size.layers)[:FEW],
        *(one._replace(name=f"{one.name} + {name}") for one in both),
    )


def load(config: Config) -> text.Corpus:
    """The text of the experiment."""
    if config.data is None or not config.data.startswith("tfds:"):
        return text.load(config.data, config.encoding)
    # An import of a second, which only these datasets need.
    from experiments.data import tfds

    return tfds.load(config.data.removeprefix("tfds:"), config.data_dir)


def devices(sizes: tuple[int, int] | None) -> jax.sharding.Mesh | None:
    """A mesh of so many devices along candidates and data; ValueError where there are fewer."""
    if sizes is None:
        return None
    wanted, found = sizes[0] * sizes[1], jax.device_count()
    if min(sizes) < 1 or wanted > found:
        raise ValueError(
            f"--mesh {sizes[0]} {sizes[1]} needs {wanted} devices, and there are {found}; give "
            f"two positive numbers whose product is at most {found}"
        )
    grid = np.array(jax.devices()[:wanted]).reshape(sizes)
    return jax.sharding.Mesh(grid, ("candidates", "data"))


def optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """AdamW with warm-up and a cosine to 0; its state holds the learning rate, for the curves."""
    if config.schedule == "continue":
        steps = config.source_steps + config.horizon
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(config.warmup, steps - 1), steps
    )
    return optax.inject_hyperparams(optax.adamw)(
        learning_rate=schedule, weight_decay=config.weight_decay
    )


cli = command(
    main,
    "quickstart",
    Config,
    __doc__,
    "interrupted; the same command goes on from the last checkpoint",
)


if __name__ == "__main__":
    sys.exit(cli())
