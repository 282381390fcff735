"""Which way of growing this model ends best, and does a short lag tell?

    python -m experiments.one_shot --model bert                      # ten minutes on 2 CPU cores
    python -m experiments.one_shot --model ul2 --size small          # hours on one GPU
    python -m experiments.one_shot --model bert --size base --dry-run --device-flops 4e14

A small model is trained, grown in every way of the pool, and every candidate trained to the lag;
the one that is lowest goes on to the horizon. Prints the decision and what it cost, and what the
winner makes of masked tokens or cut-out spans; the table that tiny sizes should give stands in
experiments/README.md. Interrupted, the same command goes on.

`--dry-run` trains nothing: it compiles the training step and prints parameters, memory, FLOPs,
steps, and the hours of the pool on a device of so many FLOPs a second.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import lagjax
from experiments import curves, settings
from experiments.cli import command
from experiments.models import bert, ul2
from experiments.rows import RESULTS, Row, environment, markdown, store
from lagjax.averages import AVERAGES
from lagjax.model import Model

Kind = Literal["gpt", "bert", "bert-pre-norm", "ul2-decoder", "ul2"]


class Scale(NamedTuple):
    """A size to run at.

    Attributes:
        size: widths, batches and rates.
        layers: of the small and of the large model.
        source_steps: of the small model.
        horizon: of the large models.
        warmup: of both.
    """

    size: settings.Size
    layers: tuple[int, int]
    source_steps: int
    horizon: int
    warmup: int


TINY = Scale(settings.Size(), (3, 6), 1000, 800, 50)
SMALL = Scale(
    settings.Size(384, 6, 128, 64, 8, 8192, 1024, 1e-3, 0.01, scanned=True),
    (4, 8), 10_000, 10_000, 500,
)  # fmt: skip
BERT = Scale(
    settings.Size(768, 12, 512, 256, 8, 30_522, None, 3e-4, 0.01, scanned=True, dropout=0.1),
    (6, 12), 1_000_000, 1_000_000, 10_000,
)  # fmt: skip
"""BERT base as published: rate 1e-4, a third of what is said, see `settings`."""
T5 = Scale(
    settings.Size(768, 12, 512, 128, 7, 32_128, 2048, 1e-3, 0.0, scanned=True),
    (6, 12), 500_000, 500_000, 10_000,
)  # fmt: skip
"""UL2 at the sizes of T5.1.1 base."""
SCALES: Mapping[str, Mapping[str, Scale]] = {
    "gpt": {"tiny": TINY, "small": SMALL, "base": BERT},
    "bert": {"tiny": TINY, "small": SMALL, "base": BERT},
    "bert-pre-norm": {"tiny": TINY, "small": SMALL, "base": BERT},
    "ul2-decoder": {"tiny": TINY, "small": SMALL, "base": T5},
    # Of each of two stacks.
    "ul2": {"tiny": TINY._replace(layers=(2, 4)), "small": SMALL, "base": T5},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """What to grow."""

    model: Kind = "gpt"
    """Which kind of model."""
    size: Literal["tiny", "small", "base"] = "tiny"
    """How large: tiny for CPUs, small for one GPU, base as published."""
    dry_run: bool = False
    """Compile, print what it would take, and train nothing."""
    device_flops: float = 4e10
    """FLOPs of training a device does in a second, for the hours; 2 CPU cores by default."""
    data: str | None = None
    """A file, a folder or tfds:NAME; by default the standard library's source."""
    workdir: Path | None = None
    """Where the run directory is; by default runs/MODEL-SIZE."""
    candidates: int = 12
    """How many take part at most."""
    lag: float | None = None
    """As a share of the horizon; by default that of `lagjax.FixedLag`."""
    compare: Literal["none", "start", "all"] = "start"
    """What else is trained to the horizon, see `lagjax.run`."""
    record: bool = False
    """Add the result to experiments/results/one_shot.jsonl."""
    results: Path = RESULTS
    """The folder of the rows."""
    shorter: int = 1
    """Divides the steps: for a trial of the whole."""


def main(config: Config) -> None:
    """Prints what it would take, or does it."""
    if config.shorter < 1:
        raise ValueError(f"--shorter {config.shorter} divides the steps; give 1 or more")
    scale = SCALES[config.model][config.size]
    scale = scale._replace(
        source_steps=max(1, scale.source_steps // config.shorter),
        horizon=max(1, scale.horizon // config.shorter),
    )
    if config.dry_run:
        Console().print(foretold(config, scale))
        return
    row = grown(config, scale)
    if config.record:
        store(config.results / "one_shot.jsonl", [row])
    Console().print(shown(row))


def pool(config: Config, scale: Scale, setting: settings.Setting) -> tuple[lagjax.Candidate, ...]:
    """The candidates, and a control."""
    entry = curves.Entry("", layers=scale.layers, candidates=config.candidates)
    return curves.pool(entry, setting)


def grown(config: Config, scale: Scale) -> Row:
    """Does the search; the row of its result."""
    setting = settings.MODELS[config.model](scale.size, scale.layers[0], config.data)
    run = config.workdir or Path(f"runs/{config.model}-{config.size}")
    asked = {"model": config.model, "size": config.size, "corpus": setting.corpus}

    def optimizer(steps: int) -> optax.GradientTransformation:
        warmup = min(scale.warmup, steps - 1)
        return setting.optimizer(
            optax.warmup_cosine_decay_schedule(0.0, setting.rate, warmup, steps)
        )

    source = lagjax.train(
        setting.small,
        optimizer(scale.source_steps),
        # The small model's data order is none of the large ones'.
        lambda _, step: setting.batch(2**16, step),
        setting.valid,
        scale.source_steps,
        run,
        engine=setting.engine,
        arguments=asked,
    )
    task = lagjax.Task(
        setting.small,
        source._replace(position=0),
        optimizer,
        setting.batch,
        setting.valid,
        scale.horizon,
        engine=setting.engine,
    )
    decision = lagjax.run(
        task,
        pool(config, scale, setting),
        lagjax.FixedLag(share=config.lag),
        run,
        compare=config.compare,
        arguments=asked,
    )
    if decision.winner is None or decision.ledger is None:
        raise ValueError(f"all candidates failed: {dict(decision.status)}; lower the rate")
    target = setting.large(scale.layers[1], False)
    trained = lagjax.load(run, target)
    lag = [decision.losses_at_lag[name] for name in decision.ranking]
    return {
        "question": "one_shot",
        "config": {**asked, **dataclasses.asdict(scale.size), **_steps(config, scale)},
        "winner": decision.winner,
        "outcome": decision.outcome,
        "lag": decision.lag,
        "weights": decision.weights,
        "margin": decision.margin,
        "margin_interval": decision.margin_interval,
        "overhead": decision.ledger.overhead,
        "budget_share": decision.ledger.budget_share,
        "ranking": list(zip(decision.ranking, lag)),
        "losses_at_start": dict(decision.losses_at_start),
        "downstream": downstream(config.model, setting, target, trained.params),
        **environment(),
    }


def downstream(
    kind: Kind, setting: settings.Setting, target: Model, params: object
) -> dict[str, float]:
    """What a trained model makes of its task: shares of what it has right."""
    if kind.startswith("bert"):
        return bert.accuracy(target, params, setting.valid)._asdict()
    if kind.startswith("ul2"):
        right = ul2.infilled(target, params, setting.valid, setting.specials)
        names = dict.fromkeys(setting.shards)
        return {
            name: sum(hits for (hits, _), one in zip(right, setting.shards) if one == name)
            / max(1, sum(count for (_, count), one in zip(right, setting.shards) if one == name))
            for name in names
        }
    return {}


def foretold(config: Config, scale: Scale) -> Table:
    """What a search would take: parameters, memory, FLOPs, steps and hours."""
    setting = settings.MODELS[config.model](scale.size, scale.layers[0], settings.BLANK)
    target, batch = setting.large(scale.layers[1], False), setting.batch(0, 0)
    key = jax.random.key(0)
    small, large = (jax.eval_shape(model.init, key) for model in (setting.small, target))
    state, temporary = compiled(setting, target, batch)
    costs = [settings.step_flops(model, batch) for model in (setting.small, target)]
    number = sum(one.role == "candidate" for one in pool(config, scale, setting))
    lag = lagjax.FixedLag(share=config.lag).lag(scale.horizon)
    averages = len(AVERAGES) * _bytes(large)
    hour = config.device_flops * 3600
    search = 1 + (number - 1) * lag / scale.horizon
    source = scale.source_steps * costs[0] / hour
    whole = scale.horizon * costs[1] / hour
    table = Table("", "", show_header=False, title=f"{config.model} {config.size}, a dry run")
    for name, value in {
        "parameters, small": f"{_count(small) / 1e6:,.1f} million",
        "parameters, large": f"{_count(large) / 1e6:,.1f} million",
        "memory of a trial's state": f"{(state + averages) / 2**30:,.2f} GiB",
        "memory of a step beside it": f"{temporary / 2**30:,.2f} GiB",
        "checkpoints of the pool": f"{2 * number * (state + averages) / 2**30:,.1f} GiB",
        "FLOPs of a step, small": f"{costs[0]:.3g}",
        "FLOPs of a step, large": f"{costs[1]:.3g}",
        "steps of the small model": f"{scale.source_steps:,}",
        "steps of the lag": f"{lag:,}",
        "steps of the horizon": f"{scale.horizon:,}",
        "candidates": f"{number}",
        "hours of the small model": f"{source:,.2f}",
        "hours of one full run": f"{whole:,.2f}",
        "hours of LAG, one full run in it": f"{whole * search:,.2f}",
        "hours of the exhaustive search": f"{number * whole:,.2f}",
    }.items():
        table.add_row(name, value)
    table.caption = f"at {config.device_flops:.1e} FLOPs of training a second"
    return table


def compiled(setting: settings.Setting, target: Model, batch: object) -> tuple[float, float]:
    """Compiles a training step of the large model; bytes of its state, and beside it."""
    tx, key = setting.optimizer(optax.constant_schedule(setting.rate)), jax.random.key(0)
    engine = setting.engine(target, tx)

    def begin() -> object:
        params = target.init(key)
        return engine.init(lagjax.Trained(params, tx.init(params)), key)

    state = jax.eval_shape(begin)
    whole = jax.jit(engine.step, donate_argnums=0).lower(state, batch).compile()
    found = whole.memory_analysis()
    return _bytes(state), float(found.temp_size_in_bytes) if found else np.nan


def shown(row: Row) -> Table:
    """A row for the terminal: the candidates by their loss at the lag."""
    title = f"{row['winner']} ({row['outcome']}), {row['overhead']:.2f} full runs of overhead"
    table = Table("way to grow", "at the start", f"at step {row['lag']}", title=title)
    for name, loss in row["ranking"]:
        start = row["losses_at_start"][name]
        table.add_row(name, "–" if start is None else f"{start:.4f}", f"{loss:.4f}")
    if row["downstream"]:
        table.caption = ", ".join(f"{name} {x:.1%}" for name, x in row["downstream"].items())
    return table


def sections(rows: Sequence[Row]) -> list[str]:
    """The table of the page: a line for each model."""
    if not rows:
        return []
    lines = [
        (
            f"{row['config']['model']}, {row['config']['size']}",
            f"{row['winner']} ({row['outcome']})",
            f"{row['lag']}",
            f"{row['margin']:.4f}".replace("-", "−"),
            f"{row['overhead']:.2f}",
            ", ".join(f"{name} {x:.1%}" for name, x in row["downstream"].items()) or "–",
        )
        for row in rows
    ]
    head = ("Model", "kept", "lag", "margin, nats", "overhead, full runs", "downstream, right")
    one = rows[0]
    return [
        "## One shot: which way to grow\n`python -m experiments.one_shot --model MODEL`, one seed. "
        f"Commit {str(one['commit'])[:12]}, jax {one['versions']['jax']}, {one['device']}, "
        f"{one['cores']} cores.\n\n" + markdown(head, lines)
    ]


def _steps(config: Config, scale: Scale) -> Row:
    return {
        "layers": [*scale.layers],
        "source_steps": scale.source_steps,
        "horizon": scale.horizon,
        "warmup": scale.warmup,
        "candidates": config.candidates,
    }


def _count(params: object) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


def _bytes(tree: object) -> float:
    def size(x: jax.ShapeDtypeStruct) -> float:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return 8.0
        return float(x.size * x.dtype.itemsize)

    return sum(map(size, jax.tree.leaves(tree)))


cli = command(
    main,
    "one_shot",
    Config,
    __doc__,
    "interrupted; the same command goes on from the last checkpoint",
)


if __name__ == "__main__":
    sys.exit(cli())
