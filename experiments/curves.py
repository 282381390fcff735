"""A public bank of growth curves: who ends best, and from when on that shows, in many regimes.

    python -m experiments.curves --list           # tasks, factors, state, hours; starts nothing
    python -m experiments.curves                  # all that are missing, hours on 2 CPU cores
    python -m experiments.curves gpt-1 gpt-2      # some; interrupted, the same command goes on

A task is an audit: a source, a pool of twelve candidates and a control, three seeds, everything
trained to the horizon, and what growing is compared with at equal FLOPs. Its curves are kept in
`results/curves/TASK.npz`; see `bank.Curves`, and the datasheet there for what is in it and what is
wrong with it.

The first eight are a half fraction of four factors, 2^(4−1) with D = ABC: A, the source's rate is
annealed to 0 or constant, as the stable part of a warm-up–stable–decay schedule; B, the grown
model's peak is the full rate or a tenth; C, the source is trained 1,000 or 10,000 steps; D, the
state is reset and the rate warmed up again, or the state is grown and the rate begins at its peak.
Effects of two factors stand in pairs for each other: AB with CD, AC with BD, BC with AD.

BERT and UL2 are tried in the two of these regimes in which losses tell least alike, by
`regimes.farthest`.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import optax
import tyro
from rich.console import Console
from rich.table import Table

import lagjax
from experiments import bank, settings
from experiments.cli import command
from experiments.rows import Row, environment
from lagjax.jobs import SOURCE

SOURCE_KEPT = "gpt-1"
"""The task whose small model is kept beside its curves, for `experiments.replay`."""
CORPORA = ("stdlib", "wikitext2", "vim")
"""Texts: the standard library's source, which is everywhere, and two that are not."""
POOL = (
    "zeroed-interleave", "zeroed-stack", "stack", "half-stack", "lidas", "interleave", "block-0",
    "block-1", "identity-between", "random-between", "identity-top", "random-top", "midas",
    "overlap", "last", "block-2", "random-bottom", "random-middle",
)  # fmt: skip
"""Members of the depth pool, those first that take part first where there are too many."""
SPEED = 4e10
"""FLOPs of training in a second on 2 CPU cores, by which hours are foretold."""
MOST = 40
"""Minutes of a task at most, as foretold."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a task varies.

    Attributes:
        about: in words.
        model: of `settings.MODELS`.
        corpus: of `CORPORA`.
        source: whether the small model's rate is annealed to 0 or constant.
        peak: of the grown model's rate, as a share of the small model's.
        source_steps: of the small model.
        state: "reset" warms the rate up again; "grown" begins at its peak, with the state grown.
        second: whether the source is another one: another initialisation and data order.
        grow: which pool.
        layers: of the small and of the large model.
        decay: the share of the horizon at whose end the rate goes linearly to 0, constant before;
            None for a cosine over all of it.
        horizon: steps of the large models.
        candidates: how many take part.
        seeds: at most; fewer where the task would take too long.
        held_out: kept for one use at the end: no choice of ours may follow from it.
    """

    about: str
    model: str = "gpt"
    corpus: str = "stdlib"
    source: Literal["annealed", "constant"] = "annealed"
    peak: float = 1.0
    source_steps: int = 1000
    state: Literal["reset", "grown"] = "reset"
    second: bool = False
    grow: Literal["depth", "width", "mixed"] = "depth"
    layers: tuple[int, int] = (3, 6)
    decay: float | None = None
    horizon: int = 800
    candidates: int = 12
    seeds: int = 3
    held_out: bool = False

    @property
    def levels(self) -> dict[str, bool]:
        """The factors of the half fraction, and whether each is at its second level."""
        return {
            "constant source": self.source == "constant",
            "tenth of the rate": self.peak < 1,
            "mature source": self.source_steps > 1000,
            "state grown": self.state == "grown",
        }


def _half_fraction() -> dict[str, Entry]:
    """The first eight; the first four of them have both levels of A, B and C, all with the state
    reset.
    """
    cells: dict[str, Entry] = {}
    for cell in ("000", "110", "101", "011", "100", "010", "001", "111"):
        a, b, c = map(int, cell)
        d = (a + b + c) % 2
        cells[f"gpt-{len(cells) + 1}"] = Entry(
            f"source {('annealed', 'constant')[a]}, {('full rate', 'a tenth of it')[b]}, "
            f"{('1,000', '10,000')[c]} steps, state {('reset', 'grown')[d]}",
            source="constant" if a else "annealed",
            peak=0.1 if b else 1.0,
            source_steps=10_000 if c else 1000,
            state="grown" if d else "reset",
        )
    return cells


CELLS = _half_fraction()
"""The half fraction."""


FARTHEST = "gpt-4", "gpt-5"
"""The two cells that differ most, in which other models are tried; a test compares them with the
committed curves."""
HELD_OUT = "bert-pre-norm-5", "ul2-decoder-5", "vim"
"""One task of each model, named before its first run."""


def _again(name: str, about: str, **changes: object) -> Entry:
    return dataclasses.replace(CELLS[name], about=about, **changes)  # type: ignore[arg-type]


def _others() -> dict[str, Entry]:
    """The other models, in the order in which they are run where not all can be."""
    found: dict[str, Entry] = {}
    for cell in reversed(FARTHEST):
        for model in ("bert", "ul2", "bert-pre-norm", "ul2-decoder"):
            name, about = f"{model}-{cell[-1]}", f"{model}, {CELLS[cell].about}"
            found[name] = _again(cell, about, model=model, candidates=10)
    return found


TASKS: dict[str, Entry] = CELLS | _others() | {
    "gpt-1-again": _again("gpt-1", "gpt-1 with another source", second=True),
    "gpt-2-again": _again("gpt-2", "gpt-2 with another source", second=True),
    "wikitext": _again("gpt-1", "gpt-1 on WikiText-2", corpus="wikitext2"),
    "vim": _again("gpt-1", "gpt-1 on the manual of Vim", corpus="vim"),
    "factor-1.5": _again("gpt-1", "4 to 6 layers", layers=(4, 6)),
    "factor-8": _again("gpt-1", "1 to 8 layers", layers=(1, 8)),
    "late": _again(
        "gpt-5",
        "1 to 8 layers after 80 % of the steps, at a constant rate that decays at the end",
        layers=(1, 8), source_steps=3200, state="grown", decay=0.5,
    ),
    "width": _again("gpt-1", "twice as wide", grow="width"),
    "mixed": _again("gpt-1", "deeper, wider and both, at equal FLOPs", grow="mixed", seeds=2),
    "long": _again("gpt-1", "gpt-1 with a horizon of 4,000", horizon=4000, seeds=2),
}  # fmt: skip
"""The bank."""
TASKS |= {name: dataclasses.replace(TASKS[name], held_out=True) for name in HELD_OUT}
FACTORS = {1.5: "factor-1.5", 2: "gpt-1", 8: "factor-8"}
"""Growth factor in depth, under one schedule → its task."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number that tasks share."""

    tasks: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which to run; by default all."""
    list: bool = False
    """Print the tasks, their state and the hours, and start nothing."""
    workdir: Path = Path("runs/curves")
    """Where the run directories are, from which an interrupted task goes on."""
    results: Path = bank.CURVES
    """The folder of the kept curves."""
    wikitext2: str | None = None
    """The folder of WikiText-2, for tasks on it; `experiments.data.documents` says where it is."""
    vim: str | None = None
    """The folder of the third text, the manual of Vim; likewise."""
    width: int = 48
    """Of the small models; wide ones are twice that."""
    heads: int = 4
    """Attention heads of the small models, of the same size in wide ones."""
    window: int = 64
    """Length of a training window, in tokens."""
    batch: int = 8
    """Windows in a batch."""
    vocab: int = settings.Size.vocab
    """Subwords, of models that read them."""
    seeds: int = 3
    """Growth keys and data orders, at most."""
    warmup: int = 50
    """Steps of warm-up, of the small model and where the rate is warmed up again."""
    learning_rate: float = 3e-3
    """Peak of the small model's schedule."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    shards: int = 8
    """Validation shards, each of one batch of windows."""
    shorter: int = 1
    """Divides the steps of all schedules: for a trial of the whole."""


def main(config: Config) -> None:
    """Runs the tasks that are missing, or goes on with them, and keeps their curves."""
    for name in config.tasks:
        if name not in TASKS:
            raise ValueError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
    names = config.tasks or tuple(TASKS)
    if config.list:
        Console().print(listed(config, names))
        return
    for name in names:
        if kept(config, name) is None:
            run = config.workdir / name
            row = train(config, name, run)
            keep(config, name, run, row)
            print(f"{name}: kept")


def keep(config: Config, name: str, run: Path, row: Row) -> None:
    """Keeps the curves of a finished run."""
    path = config.results / f"{name}.npz"
    if name == SOURCE_KEPT:
        bank.save_params(bank.source_path(path), lagjax.load(run, candidate=SOURCE).params)
    bank.Curves.read(run)._replace(row=row | bank.facts(run)).save(path)


def kept(config: Config, name: str) -> bank.Curves | None:
    """The curves of a task that is done as it is configured now; None for others."""
    path = config.results / f"{name}.npz"
    if not path.exists():
        return None
    curves = bank.Curves.load(path)
    return curves if curves.row.get("config") == configured(config, name) else None


def configured(config: Config, name: str) -> Row:
    """What a task is, as its row has it."""
    left_out = ("tasks", "list", "workdir", "results", *CORPORA)
    sizes = {key: x for key, x in dataclasses.asdict(config).items() if key not in left_out}
    entry = {**dataclasses.asdict(TASKS[name]), "layers": [*TASKS[name].layers]}
    entry["seeds"] = seeds(config, TASKS[name])
    # Bytes have no vocabulary to choose.
    if TASKS[name].model == "gpt":
        del sizes["vocab"]
    return {"task": name, **sizes, **entry}


def train(config: Config, name: str, run: Path) -> Row:
    """The audit of a task; its row."""
    entry = TASKS[name]
    setting = brought(config, entry)
    asked = {"config": configured(config, name), "corpus": setting.corpus}
    source = lagjax.train(
        setting.small,
        setting.optimizer(source_schedule(config, entry, setting.rate)),
        # The small model's data order is none of the large ones'.
        lambda _, step: setting.batch(2**16 + entry.second, step),
        setting.valid,
        source_steps(config, entry),
        run,
        seed=int(entry.second),
        engine=setting.engine,
        arguments=asked,
    )
    lagjax.run(
        task(config, entry, setting, source),
        pool(entry, setting),
        lagjax.FixedLag(),
        run,
        compare="all",
        arguments=asked,
    )
    return {**asked, "held_out": entry.held_out, **environment()}


def task(
    config: Config, entry: Entry, setting: settings.Setting, source: lagjax.Trained
) -> lagjax.Task:
    """What the large models are trained on, and how."""
    return lagjax.Task(
        setting.small,
        source._replace(position=0),
        lambda horizon: setting.optimizer(schedule(config, entry, setting.rate, horizon)),
        setting.batch,
        setting.valid,
        entry.horizon // config.shorter,
        seeds=seeds(config, entry),
        transfer=lagjax.Transfer("grow" if entry.state == "grown" else "reset"),
        engine=setting.engine,
        matched="flops" if entry.grow == "mixed" else "steps",
    )


def seeds(config: Config, entry: Entry) -> int:
    """Growth keys and data orders of a task."""
    return min(config.seeds, entry.seeds)


def source_steps(config: Config, entry: Entry) -> int:
    """Steps of the small model."""
    return entry.source_steps // config.shorter


def source_schedule(config: Config, entry: Entry, rate: float) -> optax.Schedule:
    """The small model's rate: warmed up, and annealed to 0 by a cosine or constant."""
    steps = source_steps(config, entry)
    warmup = min(config.warmup, steps - 1)
    if entry.source == "constant":
        return optax.warmup_constant_schedule(0.0, rate, warmup)
    return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, steps)


def schedule(config: Config, entry: Entry, rate: float, horizon: int) -> optax.Schedule:
    """The large models' rate over their horizon, to 0."""
    peak = entry.peak * rate
    warmup = min(config.warmup, horizon - 1) if entry.state == "reset" else 0
    if entry.decay is None:
        falling = optax.cosine_decay_schedule(peak, horizon - warmup)
    else:
        down = round(entry.decay * horizon)
        falling = optax.linear_schedule(peak, 0.0, down, horizon - warmup - down)
    if not warmup:
        return falling
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), falling], [warmup])


def pool(entry: Entry, setting: settings.Setting) -> tuple[lagjax.Candidate, ...]:
    """The candidates of a task, and its control."""
    small, (before, after) = setting.small, entry.layers
    shapes = jax.eval_shape(small.init, jax.random.key(0))

    def deeper(count: int) -> list[lagjax.Candidate]:
        found = {
            one.name: one
            for one in lagjax.pools.depth(shapes, small.axes, setting.large(after, False))
        }
        controls = [one for one in found.values() if one.role != "candidate"]
        return [found[name] for name in POOL if name in found][:count] + controls

    def wider(layers: int, *by: object) -> tuple[lagjax.Candidate, ...]:
        required = functools.partial(setting.required, layers, True)
        target = setting.large(layers, True)
        return lagjax.pools.width(shapes, small.axes, target, required, *by)

    if entry.grow == "depth":
        return tuple(deeper(entry.candidates))
    if entry.grow == "width":
        return wider(before)[: entry.candidates]
    third = entry.candidates // 3
    *first, control = deeper(third)
    name, strategy = first[0].name, first[0].operator.depth
    both = [one._replace(name=f"{one.name} + {name}") for one in wider(after, strategy)[:third]]
    return (*first, *wider(before)[:third], *both, control)


def minutes(config: Config, entry: Entry) -> float:
    """What a task takes on 2 CPU cores, by its FLOPs and `SPEED`."""
    # The text makes no difference to the work.
    setting = brought(config, dataclasses.replace(entry, corpus="stdlib"))
    step = functools.partial(settings.step_flops, batch=setting.batch(0, 0))
    large = setting.large(entry.layers[1], entry.grow == "mixed")
    wide = setting.large(entry.layers[0], True) if entry.grow == "width" else large
    # Candidates, the control and two baselines, and validation, which takes a sixth.
    trials = seeds(config, entry) * (entry.candidates + 3) * entry.horizon * step(wide) * 7 / 6
    return (entry.source_steps * step(setting.small) + trials) / config.shorter / SPEED / 60


def listed(config: Config, names: Sequence[str]) -> Table:
    """The tasks, and where they stand."""
    head = "task", "what it varies", "state", "curves", "minutes", "held out"
    table = Table(*head, title="the bank")
    left = 0.0
    for name in names:
        found, run = kept(config, name), config.workdir / name
        state = "kept" if found else "begun" if run.exists() else "missing"
        takes = minutes(config, TASKS[name])
        left += 0 if found else takes
        long = " (long)" if takes > MOST else ""
        held = "yes" if TASKS[name].held_out else ""
        rows = "{} × {}".format(*found.train.shape[:2]) if found else ""
        table.add_row(name, TASKS[name].about, state, rows, f"{takes:.0f}{long}", held)
    table.caption = (
        "curves: candidates and controls × seeds; "
        f"{left / 60:.1f} hours left, by FLOPs, at {SPEED:.0e} a second"
    )
    return table


def brought(config: Config, entry: Entry) -> settings.Setting:
    """What a task's kind of model brings."""
    data = None if entry.corpus == "stdlib" else getattr(config, entry.corpus)
    if data is None and entry.corpus != "stdlib":
        raise ValueError(
            f"a task on {entry.corpus} needs its text; give its folder, --{entry.corpus} PATH, or "
            "name other tasks"
        )
    size = settings.Size(
        config.width,
        config.heads,
        config.window,
        config.batch,
        config.shards,
        config.vocab,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    return settings.MODELS[entry.model](size, entry.layers[0], data)


cli = command(
    main,
    "curves",
    Config,
    __doc__,
    "interrupted; the same command goes on from the last checkpoint",
)


if __name__ == "__main__":
    sys.exit(cli())
