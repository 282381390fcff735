"""Does depth beat width once width is exact, carries the state and follows the rule of rates?

    python -m experiments.width                          # an hour and a half on 2 CPU cores; can go
    on python -m experiments.width --data FOLDER_OF_TEXT    # on text of your own
    python -m experiments.tables                         # the answer, in experiments/README.md

G_stack (Du et al. 2024, arXiv 2405.15319) found stacking far ahead of every way to widen, by
operators that change the function or leave new entries dead, with a new optimizer state. Here a
byte-level transformer grows to twice its depth or 1.5 times its width, and every arm costs the same
FLOPs, the small model's training included.

Written before the run. Claim: depth beats width still. It holds where the best exact width arm ends
above the best depth arm and the 95 % interval of the difference, paired by seed and validation
shard, excludes 0; it is refuted where the interval lies on the other side; else three seeds do not
decide. Each best is the lowest mean of its arms, so that the family with more arms has the easier
time: width has six, depth four. Expected: undecided or refuted; exactness and the state each help;
the rule helps copies (Isometric).

State `reset`: a fresh state and a new warm-up, from a small model whose own cosine ended. `grown`:
the state goes through the same map, and one cosine spans both models' steps. `grown, rule`:
`scale_by_growth` as well, which in depth is always there: it corrects new entries' step counts
only, since layers share nothing that is read. The inexact rivals' epsilon and logits are scaled as
the exact ones' are, which favours them. Every arm has the same peak rate.

Added after the run, when the rule had turned out to hurt width: `zeroed-interleave, grown, no
rule`, so that depth has that treatment too (for `stack` the rule changes nothing). It takes no part
in the claim, and is reported beside it.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import optax

import lagjax
from experiments.cli import command
from experiments.data import text
from experiments.models import transformer
from experiments.rows import RESULTS, Row, environment, read, store
from lagjax.algebra.layout import Params
from lagjax.algebra.plan import Plan
from lagjax.flops import flops
from lagjax.growth.depth import Interleave, Scaled, Stack
from lagjax.growth.operator import Grow
from lagjax.growth.width import (
    Isometric,
    Net2Net,
    NoisySplit,
    Paired,
    RandomIn,
    RandomPad,
    ZeroPad,
)
from lagjax.model import Batch, Model
from lagjax.progress import Display, Progress
from lagjax.state import scale_by_growth
from lagjax.store import directory


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of the experiment."""

    data: str | None = None
    """A file or a folder of text; by default the standard library's source."""
    results: Path = RESULTS / "width.jsonl"
    """Where the rows go, one for each arm and seed; what has a row is not run again."""
    workdir: Path = Path("runs/width")
    """Where the run directories are, from which an interrupted run goes on."""
    seeds: int = 3
    """How often everything is trained; a seed fixes the initialisation, the fresh entries and the
    order of the data."""
    arms: tuple[str, ...] = ()
    """Names of the arms to run; by default all."""

    layers: int = 3
    """Layers of the small model."""
    grown_layers: int = 6
    """Layers of the deep model."""
    heads: int = 4
    """Heads of the small model, of size `head_dim`; its width is that of all heads, its MLP's four
    times as much."""
    grown_heads: int = 6
    """Heads of the wide model, likewise."""
    head_dim: int = 16
    """Size of a head."""
    window: int = 64
    """Length of a training window, in bytes."""
    batch: int = 8
    """Windows in a batch."""

    source_steps: int = 800
    """Steps that the small model is trained before it grows."""
    budget_steps: int = 2400
    """FLOPs of every arm, in steps of the small model."""
    learning_rate: float = 3e-3
    """Peak of the schedules: linear warm-up, then a cosine that ends with the arm."""
    warmup: int = 50
    """Steps of warm-up."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    shards: int = 64
    """Validation shards, each of one batch of windows."""


class Arm(NamedTuple):
    """One way to spend the FLOPs.

    Attributes:
        family: what it is compared as.
        target: which model is trained at the end.
        operator: how it is grown from the small one; None for one that is not.
        state: what becomes of the optimizer's state.
    """

    family: Literal["scratch", "depth", "added depth", "width", "inexact width"]
    target: Literal["small", "deep", "wide"]
    operator: Grow | None = None
    state: Literal["reset", "grown", "rule"] = "reset"

    @property
    def begun(self) -> str:
        """What it shares a run with others by."""
        return self.state if self.operator else "scratch"


SPLIT = NoisySplit(0.1)
ZERO = Grow(width={"embed": ZeroPad(), "kv": RandomIn(), "mlp": Paired()})
COPY = Grow(width={"embed": Isometric(SPLIT), **dict.fromkeys(("kv", "mlp"), Net2Net(split=SPLIT))})
FPI = Grow(width=dict.fromkeys(("embed", "kv", "mlp"), Net2Net()))
RANDOM = Grow(width=dict.fromkeys(("embed", "kv", "mlp"), RandomPad()))
STACK, ZEROED = Grow(depth=Stack()), Grow(depth=Scaled(Interleave()))

ARMS: dict[str, Arm] = {
    "small, continued": Arm("scratch", "small"),
    "deep from scratch": Arm("scratch", "deep"),
    "wide from scratch": Arm("scratch", "wide"),
    "stack, reset": Arm("depth", "deep", STACK),
    "stack, grown": Arm("depth", "deep", STACK, "rule"),
    "zeroed-interleave, reset": Arm("depth", "deep", ZEROED),
    "zeroed-interleave, grown": Arm("depth", "deep", ZEROED, "rule"),
    "zero-pad, reset": Arm("width", "wide", ZERO),
    "zero-pad, grown": Arm("width", "wide", ZERO, "grown"),
    "zero-pad, grown, rule": Arm("width", "wide", ZERO, "rule"),
    "isometric, reset": Arm("width", "wide", COPY),
    "isometric, grown": Arm("width", "wide", COPY, "grown"),
    "isometric, grown, rule": Arm("width", "wide", COPY, "rule"),
    "Net2Net (FPI), reset": Arm("inexact width", "wide", FPI),
    "random, reset": Arm("inexact width", "wide", RANDOM),
    "zeroed-interleave, grown, no rule": Arm("added depth", "deep", ZEROED, "grown"),
}


class Experiment:
    """Trains arms; raises ValueError, when made, for a configuration that cannot be run."""

    def __init__(self, config: Config, progress: Progress) -> None:
        for name in config.arms:
            if name not in ARMS:
                raise ValueError(f"there is no arm {name!r}; there are {sorted(ARMS)}")
        if not 0 < config.source_steps < config.budget_steps:
            raise ValueError(
                f"a budget of {config.budget_steps} steps of the small model leaves none after "
                f"the {config.source_steps} that it is trained; raise --budget-steps, or give "
                "other --source-steps, at least 1"
            )
        if config.seeds < 1:
            raise ValueError(f"--seeds is {config.seeds}; give at least 1")
        self.config, self.progress = config, progress
        corpus = text.load(config.data)
        self.batch = text.batches(corpus, config.batch, config.window)
        self.shards = text.shards(corpus, config.shards, config.batch, config.window)
        elsewhere = ("data", "results", "workdir", "seeds", "arms")
        self.recorded = {
            name: value
            for name, value in dataclasses.asdict(config).items()
            if name not in elsewhere
        } | {"corpus": corpus.digest}
        self.sizes = {
            "small": _size(config, config.layers, config.heads),
            "deep": _size(config, config.grown_layers, config.heads),
            "wide": _size(config, config.layers, config.grown_heads),
        }
        self.flops = {name: self._flops(transformer.model(x)) for name, x in self.sizes.items()}
        self.budget = config.budget_steps * self.flops["small"]
        for name in config.arms or ARMS:
            if ARMS[name].operator:
                # What cannot grow is told before anything is trained.
                self.plan(ARMS[name])

    def steps(self, arm: Arm) -> int:
        """Of its last model, so that all it costs is the budget within half a step."""
        spent = self.config.source_steps * self.flops["small"] if arm.operator else 0.0
        return max(1, round((self.budget - spent) / self.flops[arm.target]))

    def plan(self, arm: Arm) -> Plan:
        """What its operator does; what is drawn at random changes neither proof nor
        requirements.
        """
        key = jax.random.key(0)
        models = [transformer.model(self.sizes[name]) for name in ("small", arm.target)]
        layouts = [each.axes.layout(jax.eval_shape(each.init, key)) for each in models]
        assert arm.operator is not None, "an arm that grows"
        return arm.operator.plan(key, *layouts)

    def target(self, arm: Arm) -> Model:
        """The model that is trained at the end, with what its operator requires of it."""
        size = self.sizes[arm.target]
        if arm.operator:
            size = transformer.required(size, self.plan(arm).requires, self.sizes["small"])
        return transformer.model(size)

    def rows(self) -> Iterator[list[Row]]:
        """The rows of each run: the arms of one seed, target and state that have none yet."""
        device = environment()["device"]
        had = {
            (row["candidate"], row["seed"])
            for row in read(self.config.results)
            if row["config"] == self.recorded and row["device"] == device
        }
        for seed in range(self.config.seeds):
            groups: dict[tuple[str, str], list[str]] = {}
            for name in self.config.arms or ARMS:
                if (name, seed) not in had:
                    groups.setdefault((ARMS[name].target, ARMS[name].begun), []).append(name)
            for names in groups.values():
                self.progress.note(f"seed {seed}: {'; '.join(names)}")
                yield self._run(names, seed)

    def _run(self, names: Sequence[str], seed: int) -> list[Row]:
        """Trains arms of one target and state, in a directory for just these, and gives their
        rows.
        """
        arm, here = ARMS[names[0]], self.config.workdir / f"seed-{seed}"
        steps, first, folder = self.steps(arm), self.config.source_steps, here / " + ".join(names)
        options = {"arguments": self.recorded, "progress": self.progress}
        if arm.operator is None:
            training = self._optimizer(steps), self.batch, self.shards, steps, folder
            lagjax.train(self.target(arm), *training, seed=seed, **options)
            curve = directory.read(folder).curves
            return [self._row(name, seed, curve, []) for name in names]
        # One cosine over both models' steps where the state is grown, else one each.
        before, span, transfer = first, steps, lagjax.Transfer()
        if arm.state != "reset":
            before = span = first + steps
            transfer = lagjax.Transfer("grow", "continue")
        small, origin = transformer.model(self.sizes["small"]), here / f"source, cosine of {before}"
        # The rule does nothing before growth.
        training = self._optimizer(before), self.batch, self.shards, first, origin
        source = lagjax.train(small, *training, seed=seed, **options)
        task = lagjax.Task(
            small,
            source,
            self._optimizer(span, rule=arm.state != "grown"),
            lambda _, step: self.batch(seed, step),
            self.shards,
            steps,
            seed=seed,
            transfer=transfer,
            averages={},
        )
        pool = [lagjax.Candidate(n, ARMS[n].operator, self.target(ARMS[n])) for n in names]
        lagjax.run(task, pool, lagjax.FixedLag(steps), folder, **options)
        curves, trained = directory.read(folder).curves, directory.read(origin).curves
        return [
            self._row(name, seed, [x for x in curves if x["candidate"] == name], trained)
            for name in names
        ]

    def _row(self, name: str, seed: int, curve: Sequence[Row], trained: Sequence[Row]) -> Row:
        """One arm's row, from its own curve and that of the model that it was grown from."""
        arm, cost = ARMS[name], self.flops[ARMS[name].target]
        first = self.config.source_steps if arm.operator else 0
        spent, last = first * self.flops["small"], curve[-1]
        found: Row = {"source_steps": first, "source_losses": _losses(trained)}
        if arm.operator:
            plan = self.plan(arm)
            found |= {"exact": plan.exact_by_table, "requires": [str(one) for one in plan.requires]}
        shapes = jax.eval_shape(self.target(arm).init, jax.random.key(0))
        return {
            "question": "width",
            "config": self.recorded,
            "candidate": name,
            "family": arm.family,
            "operator": arm.operator and str(arm.operator),
            "state": arm.state,
            "seed": seed,
            **found,
            "parameters": sum(x.size for x in jax.tree.leaves(shapes)),
            "steps": self.steps(arm),
            "step_flops": cost,
            "flops": spent + self.steps(arm) * cost,
            "budget": self.budget,
            "at_flops": [spent + line["step"] * cost for line in curve],
            "losses": _losses(curve),
            "last_shards": [round(x, 6) for x in last["valid_loss_shards"]]
            if last["status"] == "ok"
            else None,
            "status": last["status"],
            "seconds": last["seconds"],
            **environment(),
        }

    def _optimizer(self, steps: int, rule: bool = True) -> optax.GradientTransformation:
        """AdamW with warm-up and a cosine to 0, and the rule of rates after growth."""
        growth = scale_by_growth() if rule else scale_by_growth(follow=False, betas=None)
        config = self.config
        warmup = min(config.warmup, steps - 1)
        schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, steps)
        return optax.chain(
            optax.scale_by_adam(),
            growth,
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_learning_rate(schedule),
        )

    def _flops(self, model: Model) -> float:
        """Of one training step."""

        def mean(params: Params, batch: Batch) -> jax.Array:
            total, count = model.loss(params, batch, None)
            return total / count

        params = jax.eval_shape(model.init, jax.random.key(0))
        return flops(jax.value_and_grad(mean), params, self.batch(0, 0))


def _size(config: Config, layers: int, heads: int) -> transformer.Config:
    width = heads * config.head_dim
    return transformer.Config(
        layers=layers,
        width=width,
        kv=heads,
        group=1,
        head_dim=config.head_dim,
        mlp=4 * width,
        window=config.window,
        vocab=256,
        norm="rms",
        pre=True,
        positions="learned",
        tied=True,
        gated=False,
        biases=False,
    )


def _losses(curve: Sequence[Row]) -> list[float | None]:
    """Of each evaluation, in nats per token."""
    losses = [line["valid_loss"] for line in curve]
    return [loss if loss is None else round(loss, 6) for loss in losses]


def main(config: Config) -> None:
    """Runs what has no row yet, and prints how many rows it added."""
    count = 0
    for rows in Experiment(config, Display()).rows():
        # All of a run at once, so that a kill never leaves a part of them.
        store(config.results, rows)
        count += len(rows)
    print(f"{count} rows added to {config.results}; now python -m experiments.tables")


cli = command(
    main, "width", Config, __doc__, "interrupted; the same command goes on from the last checkpoint"
)


if __name__ == "__main__":
    sys.exit(cli())
