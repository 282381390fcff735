"""Does depth beat width once width is exact, carries the state and follows the rule of rates?

    python -m experiments.width                          # an hour on 2 CPU cores; can go on
    python -m experiments.width --data FOLDER_OF_TEXT    # on text of your own
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
import functools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.cli import command
from experiments.data import text
from experiments.models import transformer
from experiments.rows import RESULTS, Row, environment, read, store
from lagjax.algebra.axes import Params
from lagjax.algebra.plan import Plan
from lagjax.flops import flops
from lagjax.growth.depth import Depth, Interleave, Scaled, Stack
from lagjax.growth.width import (
    Isometric,
    Net2Net,
    NoisySplit,
    Paired,
    RandomIn,
    RandomPad,
    Width,
    ZeroPad,
)
from lagjax.model import Key, Model
from lagjax.probe import (
    Lane,
    Program,
    TrainState,
    fresh_lane,
    from_loss,
    program,
    shapes_of,
    steps_of,
)
from lagjax.progress import Display, Event, Progress
from lagjax.runs import LENGTH
from lagjax.state import carry, scale_by_growth


@dataclasses.dataclass(frozen=True)
class Config:
    """Every number of the experiment."""

    data: str | None = None
    """A file or a folder of text; by default the standard library's source."""
    results: Path = RESULTS / "width.jsonl"
    """Where the rows go, one for each arm and seed; what has a row is not run again."""
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
    points: int = 6
    """Evaluations of an arm, at even parts of its FLOPs; a grown arm is evaluated right after
    growing as well."""


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
    operator: Depth | Width | None = None
    state: Literal["reset", "grown", "rule"] = "reset"


SPLIT = NoisySplit(0.1)
ZERO = Width({"embed": ZeroPad(), "kv": RandomIn(), "mlp": Paired()})
COPY = Width({"embed": Isometric(SPLIT), **dict.fromkeys(("kv", "mlp"), Net2Net(split=SPLIT))})
FPI = Width(dict.fromkeys(("embed", "kv", "mlp"), Net2Net()))
RANDOM = Width(dict.fromkeys(("embed", "kv", "mlp"), RandomPad()))
STACK, ZEROED = Depth(Stack()), Depth(Scaled(Interleave()))

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


class Trained(NamedTuple):
    """A model after some steps, and its losses on the way.

    Attributes:
        state: parameters and optimizer state.
        losses: nats per token, for each evaluation and shard.
        status: "ok", or at which step the loss was not finite.
    """

    state: TrainState
    losses: list[np.ndarray]
    status: str


class Experiment:
    """Trains arms; raises ValueError, when made, for a configuration that cannot be run."""

    def __init__(self, config: Config, progress: Progress) -> None:
        for name in config.arms:
            if name not in ARMS:
                raise ValueError(f"there is no arm {name!r}; there are {sorted(ARMS)}")
        if not 0 < config.source_steps < config.budget_steps:
            raise ValueError(
                f"a budget of {config.budget_steps} steps of the small model leaves none after the "
                f"{config.source_steps} that it is trained; raise --budget-steps, or give other "
                "--source-steps, at least 1"
            )
        for name in ("seeds", "points"):
            if (found := getattr(config, name)) < 1:
                raise ValueError(f"--{name} is {found}; give at least 1")
        self.config, self.progress = config, progress
        corpus = text.load(config.data)
        self.batch = text.batches(corpus, config.batch, config.window)
        shards = text.shards(corpus, config.shards, config.batch, config.window)
        self.shards = np.stack(shards)
        elsewhere = ("data", "results", "seeds", "arms")
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
        self.flops = {name: self._flops(size) for name, size in self.sizes.items()}
        self.budget = config.budget_steps * self.flops["small"]
        for name in config.arms or ARMS:
            if ARMS[name].operator:
                # What cannot grow is told before anything is trained.
                self.plan(ARMS[name], jax.random.key(0))
        self._programs: dict[Any, Program] = {}
        self._sources: dict[Any, Trained] = {}
        self._started, self._done, self._all, self._at = 0.0, 0.0, 0.0, ""

    def steps(self, arm: Arm) -> int:
        """Of its last model, so that all it costs is the budget within half a step."""
        spent = self.config.source_steps * self.flops["small"] if arm.operator else 0.0
        return max(1, round((self.budget - spent) / self.flops[arm.target]))

    def plan(self, arm: Arm, key: Key) -> Plan:
        """What its operator does."""
        small, large = (transformer.model(self.sizes[name]) for name in ("small", arm.target))
        layouts = [each.axes.layout(jax.eval_shape(each.init, key)) for each in (small, large)]
        assert arm.operator is not None, "an arm that grows"
        return arm.operator.plan(key, *layouts)

    def run(self) -> Iterator[Row]:
        """A row for each arm and seed that has none yet, seeds outermost."""
        here = environment()
        had = {
            (row["candidate"], row["seed"])
            for row in read(self.config.results)
            if row["config"] == self.recorded and row["device"] == here["device"]
        }
        todo = [
            (name, seed)
            for seed in range(self.config.seeds)
            for name in self.config.arms or ARMS
            if (name, seed) not in had
        ]
        sources = {(seed, self._span(ARMS[name])) for name, seed in todo if ARMS[name].operator}
        self._started, self._done = time.monotonic(), 0.0
        self._all = (
            sum(self.steps(ARMS[name]) * self.flops[ARMS[name].target] for name, _ in todo)
            + len(sources) * self.config.source_steps * self.flops["small"]
        )
        for number, (name, seed) in enumerate(todo, 1):
            self._at = f"{name}, seed {seed} ({number}/{len(todo)})"
            start = time.monotonic()
            found = self._arm(ARMS[name], seed)
            yield {
                "question": "width",
                "config": self.recorded,
                "candidate": name,
                "family": ARMS[name].family,
                "operator": ARMS[name].operator and str(ARMS[name].operator),
                "state": ARMS[name].state,
                "seed": seed,
                **found,
                "seconds": round(time.monotonic() - start, 1),
                **here,
            }

    def _arm(self, arm: Arm, seed: int) -> Row:
        """Trains one arm from its beginning."""
        key = jax.random.fold_in(jax.random.key(seed), 1)
        size, length = self.sizes[arm.target], self.steps(arm)
        tx = self._tx(arm)
        found: Row = {"source_steps": 0, "source_losses": []}
        if arm.operator is None:
            params = jax.jit(transformer.model(size).init)(jax.random.key(seed))
            opt_state = jax.jit(tx.init)(params)
        else:
            source = self._source(arm, seed)
            old = source.state
            plan = self.plan(arm, key)
            size = transformer.required(size, plan.requires, self.sizes["small"])
            params = _grown(arm.operator, key, old.params, self.sizes["small"], size)
            opt_state = (
                jax.jit(tx.init)(params)
                if arm.state == "reset"
                else jax.jit(
                    lambda state, small, large: carry(plan, state, small, large, tx, "continue")
                )(old.opt_state, old.params, params)
            )
            found = {
                "source_steps": self.config.source_steps,
                "source_losses": _means(source.losses),
                "exact": plan.exact,
                "requires": [str(one) for one in plan.requires],
            }
        spent = found["source_steps"] * self.flops["small"]
        parts = np.arange(1, self.config.points + 1) / self.config.points
        marks = np.round((parts * self.budget - spent) / self.flops[arm.target])
        # The last is the arm's length; a grown arm is also evaluated before its first step.
        marks = sorted({int(x) for x in marks if 0 < x < length} | {length})
        marks = [0] * bool(arm.operator) + marks
        init = from_loss(transformer.model(size), tx).init
        trained = self._train(
            (size, self._span(arm), arm.state),
            transformer.model(size),
            tx,
            init(params, opt_state, key),
            seed,
            found["source_steps"],
            marks,
        )
        costs = [spent + step * self.flops[arm.target] for step in marks]
        return {
            **found,
            "parameters": sum(x.size for x in jax.tree.leaves(params)),
            "steps": length,
            "step_flops": self.flops[arm.target],
            "flops": costs[-1],
            "budget": self.budget,
            "at_flops": costs,
            "losses": _means(trained.losses),
            "last_shards": [round(float(x), 6) for x in trained.losses[-1]]
            if trained.status == "ok"
            else None,
            "status": trained.status,
        }

    def _source(self, arm: Arm, seed: int) -> Trained:
        """The small model from which it grows, trained once for all arms that begin alike."""
        steps, size = self.config.source_steps, self.sizes["small"]
        span = steps if arm.state == "reset" else self._span(arm)
        if (seed, span) not in self._sources:
            # Whatever is done on account of growth does nothing before.
            tx = self._optimizer(span, scale_by_growth())
            model, key = transformer.model(size), jax.random.key(seed)
            params = jax.jit(model.init)(key)
            opt_state = jax.jit(tx.init)(params)
            state = from_loss(model, tx).init(params, opt_state, key)
            marks = sorted({max(1, steps // 2), steps})
            self._sources = {k: v for k, v in self._sources.items() if k[0] == seed}
            self._sources[seed, span] = self._train(
                (size, span, "rule"), model, tx, state, seed, 0, marks
            )
        if (found := self._sources[seed, span]).status != "ok":
            raise ValueError(
                f"the small model cannot be trained: {found.status}; lower --learning-rate"
            )
        return found

    def _span(self, arm: Arm) -> int:
        """Steps of the cosine with which it ends."""
        before = self.config.source_steps if arm.state != "reset" else 0
        return before + self.steps(arm)

    def _tx(self, arm: Arm) -> optax.GradientTransformation:
        growth = (
            scale_by_growth(follow=False, betas=None) if arm.state == "grown" else scale_by_growth()
        )
        return self._optimizer(self._span(arm), growth)

    def _optimizer(
        self, steps: int, growth: optax.GradientTransformation
    ) -> optax.GradientTransformation:
        """AdamW with warm-up and a cosine to 0."""
        config = self.config
        warmup = min(config.warmup, steps - 1)
        schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, steps)
        return optax.chain(
            optax.scale_by_adam(),
            growth,
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_learning_rate(schedule),
        )

    def _train(
        self,
        same: Any,
        model: Model,
        tx: optax.GradientTransformation,
        state: TrainState,
        seed: int,
        first: int,
        marks: Sequence[int],
    ) -> Trained:
        """Trains to the last mark on the batches from `first` on; `same` tells equal programs."""
        like = self._like(model, tx, state)
        if same not in self._programs:
            batches = steps_of(self.batch, [seed], 0, 1, LENGTH)
            self._programs[same] = program(
                from_loss(model, tx), like, batches, self.shards, 1, LENGTH
            )
        compiled = self._programs[same]
        # The loop takes its argument's memory, and several arms begin with one source.
        lane, made = _copied(fresh_lane(state, like)), 0
        losses: list[np.ndarray] = []
        for mark in marks:
            while made < mark:
                count = min(LENGTH, mark - made)
                batches = steps_of(self.batch, [seed], first + made, count, LENGTH)
                lane = compiled.advance(lane, batches, np.int32(0), np.int32(made), np.int32(count))
                jax.block_until_ready(lane)
                made += count
                self._done += count * compiled.step_flops
                self._show(made, marks[-1], losses)
            sums, counts = compiled.evaluate(lane.state, self.shards)
            losses.append(np.asarray(sums, np.float64) / np.asarray(counts))
        failed = int(lane.failed_at)
        status = "ok" if failed < 0 else f"the loss of step {failed} is not finite"
        return Trained(lane.state, losses, status)

    def _like(self, model: Model, tx: optax.GradientTransformation, state: TrainState) -> Lane:
        step = from_loss(model, tx).step
        return shapes_of(state, jax.eval_shape(step, state, self.batch(0, 0))[1])

    def _flops(self, size: transformer.Config) -> float:
        """Of one training step."""
        model = transformer.model(size)
        params = jax.eval_shape(model.init, jax.random.key(0))

        def mean(params: Any, batch: Any) -> jax.Array:
            total, count = model.loss(params, batch, None)
            return total / count

        return flops(jax.value_and_grad(mean), params, self.batch(0, 0))

    def _show(self, step: int, until: int, losses: list[np.ndarray]) -> None:
        seconds = time.monotonic() - self._started
        share = self._done / self._all
        self.progress(
            Event(
                "width",
                self._at,
                step,
                until,
                float(losses[-1].mean()) if losses else None,
                None,
                None,
                min(share, 1.0),
                seconds / share * (1 - share),
            )
        )


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


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _grown(
    operator: Depth | Width,
    key: Key,
    params: Params,
    small: transformer.Config,
    large: transformer.Config,
) -> Params:
    target = transformer.model(large)
    return operator(key, params, transformer.model(small).axes, target)


@jax.jit
def _copied(lane: Lane) -> Lane:
    return jax.tree.map(jnp.copy, lane)


def _means(losses: list[np.ndarray]) -> list[float | None]:
    means = [float(each.mean()) for each in losses]
    return [round(x, 6) if np.isfinite(x) else None for x in means]


def main(config: Config) -> None:
    """Runs what has no row yet, and prints how many rows it added."""
    count = 0
    for row in Experiment(config, Display()).run():
        store(config.results, [row])
        count += 1
    print(f"{count} rows added to {config.results}; now python -m experiments.tables")


cli = command(
    main, "width", Config, __doc__, "interrupted; the same command goes on after the last arm"
)


if __name__ == "__main__":
    sys.exit(cli())
