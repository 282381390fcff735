"""How fast lagjax is, as ratios measured within one run.

    python -m experiments.benchmark     # an hour on 2 quiet CPU cores; ends with a JSON object
    python -m experiments.benchmark --only growth_vs_copy data_vs_step          # a minute

probe_vs_loop_single    time of a training step in the probe, against a minimal hand-written loop
                        that scans: ≤ 1.02
probe_vs_loop_group     8 candidates in the probe, against that loop for one after another: ≤ 1
                        (on a GPU ≤ 0.25)
compilations_per_group  compilations of the training step while 8 candidates are probed: 1
peak_memory_ratio       the probe's peak, against parameters, optimizer state, and one step's
                        gradients and activations: ≤ 1.2
growth_vs_copy          stacking 200 million parameters to twice their depth, against a copy of the
                        result: ≤ 1.5
step_vs_torch           a training step, against PyTorch with fused attention; null where it is not
                        installed: ≤ 1.1
data_vs_step            making a batch, against a training step: ≤ 0.05
masking_vs_step         making a batch of masked pairs, against a step of the bank's small BERT:
                        ≤ 0.1
denoising_vs_step       making a batch of UL2's mixture, against a step of its small UL2: ≤ 0.1
wall_vs_steps           a whole search of the quickstart's lag, horizon and pool, in a process of
                        its own that has nothing compiled, from its start on and without the small
                        model's training, less 15 s; against its compiled training steps alone. The
                        worse of two models: the quickstart's sizes with stacked layers, and 4 to 8
                        layers, each with arrays of its own: ≤ 1.3
evaluation_share        FLOPs of the evaluations in those of a search, losers, the winner's probe
                        and evaluations, at a lag of a quarter of the horizon: ≤ 0.05
evaluation_share_early  likewise at a tenth: ≤ 0.1

Both sides of a ratio are timed in turn; a ratio is the median over rounds, and its spread is shown.
The last two are counted, not timed. All but a few minutes are those of wall_vs_steps.
"""

import contextlib
import dataclasses
import difflib
import json
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import lagjax
from experiments import curves, quickstart
from experiments.cli import command
from experiments.data import text
from experiments.models import gpt
from experiments.rows import RESULTS, Row, environment, markdown, store
from lagjax.algebra.layout import Params
from lagjax.engine import TrainState
from lagjax.growth.depth import Stack
from lagjax.growth.operator import FromScratch
from lagjax.initial import Group
from lagjax.model import Batch
from lagjax.probe import LENGTH, Program, steps_of
from lagjax.progress import Event, Silent

GOALS = {
    "probe_vs_loop_single": 1.02,
    "probe_vs_loop_group": 1.0,
    "compilations_per_group": 1,
    "peak_memory_ratio": 1.2,
    "growth_vs_copy": 1.5,
    "step_vs_torch": 1.1,
    "data_vs_step": 0.05,
    "masking_vs_step": 0.1,
    "denoising_vs_step": 0.1,
    "wall_vs_steps": 1.3,
    "evaluation_share": 0.05,
    "evaluation_share_early": 0.1,
}
ALLOWED = 15.0
"""Seconds that a search may take beside its steps whatever they are: imports and compilation."""
STACK = lagjax.Grow(depth=Stack())


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how long."""

    only: tuple[str, ...] = ()
    """Names of what to measure; by default everything."""
    rounds: int = 15
    """Times that both sides of each ratio are measured."""
    steps: int = LENGTH
    """Training steps in one measurement."""
    layers: int = 6
    """Layers of the model that is trained, as in the quickstart."""
    width: int = 64
    """Its width."""
    batch: int = 16
    """Windows in a batch."""
    candidates: int = 8
    """Candidates in a group."""
    grown_parameters: int = 200_000_000
    """Parameters that are grown."""
    runs: int = 5
    """Times that a whole search of each of two models is timed."""
    pool: int = 16
    """Candidates of each."""
    unrolled_layers: int = 8
    """Layers of the second model, each with arrays of its own; it is grown from half of them."""
    horizon: int = quickstart.Config.horizon
    """Steps of a whole training run, in what is measured of searches; the lag is a quarter."""
    record: bool = False
    """Add the result to experiments/results/benchmark.jsonl."""


class Bench:
    """The quickstart's large model, its optimizer and its data.

    Attributes:
        group: what a run would compile for it.
        params: of the model, as every trial begins.
    """

    def __init__(self, config: Config) -> None:
        self.config, shape = config, quickstart.Config()
        self.shape = gpt.Config(config.layers, config.width, shape.heads, shape.window)
        self.model = gpt.model(self.shape)
        self.tx = quickstart.optimizer(shape, shape.horizon)
        corpus = text.load(None)
        self.batch = text.batches(corpus, config.batch, shape.window)
        self.shards = text.shards(corpus, shape.shards, config.batch, shape.window)
        self.candidate = lagjax.Candidate("benchmark", FromScratch(), self.model)
        nothing = lagjax.Trained({})
        # The loops that it is compared with keep no average.
        task = lagjax.Task(
            self.model, nothing, self.tx, self.batch, self.shards, config.steps, averages={}
        )
        self.group = Group(task, self.candidate, np.stack(self.shards), None)
        self.params = self.begin().params

    def begin(self) -> TrainState:
        """A trial's state, in memory of its own."""
        state: TrainState = self.group.begin(self.candidate, jax.random.key(0), 0)
        return state

    def batches(self, steps: int) -> list[tuple[Batch, np.int32]]:
        """What each call of a run's chunks takes for so many steps, and how many it makes."""
        counts = [min(LENGTH, steps - start) for start in range(0, steps, LENGTH)]
        return [
            (steps_of(self.batch, [0], index * LENGTH, count), np.int32(count))
            for index, count in enumerate(counts)
        ]

    def probe(
        self, program: Program, candidates: int = 1, steps: int | None = None
    ) -> Callable[[], None]:
        """A call that makes some steps, by default all, for each candidate, in a run's chunks."""
        several = program.at_once > 1
        order = np.zeros(program.at_once, np.int32) if several else np.int32(0)
        chunks = self.batches(steps or self.config.steps)
        states = [
            program.place([self.begin()] * program.at_once)
            for _ in range(0, candidates, program.at_once)
        ]

        def go() -> None:
            for index, state in enumerate(states):
                for batches, count in chunks:
                    made = program.advance(state, batches, order, count)
                    state, _ = jax.block_until_ready(made)
                states[index] = state

        return go

    def mean(self, params: Params, batch: Batch) -> jax.Array:
        """The loss that is minimised."""
        total, count = self.model.loss(params, batch, jax.random.key(0))
        return total / count

    def loop(self, candidates: int = 1, steps: int | None = None) -> Callable[[], None]:
        """The same by the shortest loop that one would write."""

        def step(carry: Any, batch: Batch) -> Any:
            params, opt_state = carry
            loss, grads = jax.value_and_grad(self.mean)(params, batch)
            updates, opt_state = self.tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        run = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches), donate_argnums=0)
        states = [self.begin() for _ in range(candidates)]
        carries = [(state.params, state.opt_state) for state in states]
        batches = np.stack([self.batch(0, step) for step in range(steps or self.config.steps)])

        def go() -> None:
            for index, carry in enumerate(carries):
                carries[index], losses = run(carry, batches)
                jax.block_until_ready(losses)

        return go


def paired(one: Callable[[], None], other: Callable[[], None], rounds: int) -> list[float]:
    """Ratios of the time of `one` to that of `other`, in turn after a first call of each."""
    ratios = []
    for turn in range(-1, rounds):
        first, second = (one, other) if turn % 2 else (other, one)
        times = {}
        for call in (first, second):
            start = time.perf_counter()
            call()
            times[call] = time.perf_counter() - start
        if turn >= 0:
            ratios.append(times[one] / times[other])
    return ratios


def probe_vs_loop_single(bench: Bench) -> list[float]:
    """One candidate."""
    return paired(bench.probe(bench.group.program(1)), bench.loop(), bench.config.rounds)


def probe_vs_loop_group(bench: Bench) -> list[float]:
    """As many at once as a run would take here."""
    among = [bench.candidate] * bench.config.candidates
    program = bench.group.program(bench.group.choose_at_once(among, jax.random.key(0)))
    # A quarter of the steps for each of so many: enough to time.
    steps = max(1, bench.config.steps // 4)
    return paired(
        bench.probe(program, bench.config.candidates, steps),
        bench.loop(bench.config.candidates, steps),
        bench.config.rounds,
    )


def compilations_per_group(bench: Bench) -> list[float]:
    """Through `lagjax.run`, with as many at once as it chooses."""
    small = gpt.model(dataclasses.replace(bench.shape, layers=2, width=16))
    large = gpt.model(dataclasses.replace(bench.shape, layers=4, width=16))
    params = jax.jit(small.init)(jax.random.key(0))
    pool = lagjax.pools.depth(params, small.axes, large)[: bench.config.candidates]
    source = lagjax.Trained(params)
    task = lagjax.Task(small, source, bench.tx, bench.batch, bench.shards[:2], horizon=4)
    with compiled("advance") as names, tempfile.TemporaryDirectory() as folder:
        lagjax.run(task, pool, lagjax.FixedLag(2), folder, progress=Silent())
    return [float(len(names))]


@contextlib.contextmanager
def compiled(function: str) -> Iterator[list[str]]:
    """The messages of the compilations of functions of this name."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if message.startswith(f"Compiling jit({function})"):
                found.append(message)

    listener, logger = Listener(), logging.getLogger("jax")
    logger.addHandler(listener)
    level, propagate = logger.level, logger.propagate
    logger.propagate = False
    try:
        with jax.log_compiles():
            yield found
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)
        logger.propagate = propagate


def peak_memory_ratio(bench: Bench) -> list[float]:
    """By XLA's own plan; batches, which both sides hold, are left out of both."""
    state, ((batches, _), *_) = bench.begin(), bench.batches(1)
    step = jax.jit(jax.value_and_grad(bench.mean)).lower(bench.params, bench.batch(0, 0)).compile()
    plan = step.memory_analysis()
    if plan is None:
        return []
    held = sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
    needed = held + plan.temp_size_in_bytes + plan.output_size_in_bytes
    return [(bench.group.program(1).bytes - batches.nbytes) / needed]


def growth_vs_copy(bench: Bench) -> list[float]:
    """The slower of scanned and unrolled layers."""
    found = []
    # A layer has 12 × width² parameters.
    layers = 16
    width = max(64, round((bench.config.grown_parameters / layers / 12) ** 0.5 / 64) * 64)
    for scanned in (True, False):
        shape = gpt.Config(layers, width, 4, 64, scanned=scanned)
        small, large = (
            gpt.model(dataclasses.replace(shape, layers=count)) for count in (layers, 2 * layers)
        )
        shapes = jax.eval_shape(small.init, jax.random.key(0))
        params = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)

        @jax.jit
        def grow(params: Any, small: Any = small, large: Any = large) -> Any:
            return STACK(jax.random.key(0), params, small.axes, large)

        result = jax.block_until_ready(grow(params))
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

        def wait(call: Callable[[Any], Any], tree: Any) -> Callable[[], None]:
            def go() -> None:
                jax.block_until_ready(call(tree))

            return go

        found.append(paired(wait(grow, params), wait(copy, result), bench.config.rounds))
        del params, result
    return max(found, key=np.median)


def step_vs_torch(bench: Bench) -> list[float]:
    """Both on the same threads, with the same weights, whose losses are compared first."""
    try:
        import torch

        from experiments.models import gpt_torch
    except ImportError:
        return []
    if jax.default_backend() != "cpu":
        return []
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    net = gpt_torch.from_jax(bench.shape, jax.device_get(bench.params))
    tx = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-4, fused=True)
    made = [bench.batch(0, step) for step in range(bench.config.steps)]
    tokens = [torch.from_numpy(x.astype(np.int64)) for x in made]
    total, count = bench.model.loss(bench.params, made[0], None)
    difference = abs(float(total / count) - net(tokens[0]).item())
    if difference > 1e-4:
        raise AssertionError(f"the two models' losses differ by {difference}")

    def steps() -> None:
        for batch in tokens:
            tx.zero_grad(set_to_none=True)
            net(batch).backward()
            tx.step()

    return paired(bench.probe(bench.group.program(1)), steps, bench.config.rounds)


def data_vs_step(bench: Bench) -> list[float]:
    """As many batches as steps."""

    def batches() -> None:
        steps_of(bench.batch, [0], 0, bench.config.steps, bench.config.steps)

    return paired(batches, bench.probe(bench.group.program(1)), bench.config.rounds)


def masking_vs_step(bench: Bench) -> list[float]:
    """BERT's objective."""
    return _objective(bench.config, "bert")


def denoising_vs_step(bench: Bench) -> list[float]:
    """UL2's, of an encoder and a decoder."""
    return _objective(bench.config, "ul2")


def _objective(config: Config, kind: str) -> list[float]:
    """As many batches as steps of the small model, which takes them fastest."""
    sizes = curves.Config()
    setting = curves.brought(sizes, curves.Entry("", model=kind))
    tx, key = setting.optimizer(optax.constant_schedule(setting.rate)), jax.random.key(0)
    engine = setting.engine(setting.small, tx)
    params = jax.jit(setting.small.init)(key)
    state = engine.init(lagjax.Trained(params, tx.init(params)), key)
    step, batch = jax.jit(engine.step), setting.batch(0, 0)

    def batches() -> None:
        for number in range(config.steps):
            setting.batch(0, number)

    def steps() -> None:
        now = state
        for _ in range(config.steps):
            now, _ = step(now, batch)
        jax.block_until_ready(now)

    return paired(batches, steps, config.rounds)


def wall_vs_steps(bench: Bench) -> list[float]:
    """The worse of two models, of whole searches in processes of their own."""
    found = []
    for _ in range(bench.config.runs):
        ratios = []
        for scanned in (True, False):
            seconds, steps = timed(bench.config, scanned)
            ratios.append((seconds - ALLOWED) / steps)
        found.append(max(ratios))
    return found


def timed(config: Config, scanned: bool) -> tuple[float, float]:
    """The seconds of a search in a new process, and those of its compiled steps."""
    code = "import sys; from experiments import benchmark; benchmark.child(*sys.argv[1:])"
    # Nothing that was compiled before shall be found.
    hidden = {"JAX_COMPILATION_CACHE_DIR"}
    surroundings = {name: value for name, value in os.environ.items() if name not in hidden}
    told = json.dumps(dataclasses.asdict(config))
    begun = time.time()
    done = subprocess.run(
        [sys.executable, "-c", code, str(begun), told, json.dumps(scanned)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=surroundings,
    )
    seconds, steps = json.loads(done.stdout.splitlines()[-1])
    return seconds, steps


def child(begun: str, config: str, scanned: str) -> None:
    """What `timed` starts: prints the seconds of a search from the process's start on, and those of
    its compiled steps.
    """
    ready = time.time() - float(begun)
    made = Config(**json.loads(config))
    task, pool = search(made, json.loads(scanned))
    times: list[tuple[int, float]] = []
    compile_program = Group.program

    def program(self: Group, at_once: int) -> Program:
        plain = compile_program(self, at_once)

        def advance(*given: Any) -> Any:
            start = time.perf_counter()
            found = jax.block_until_ready(plain.advance(*given))
            times.append((int(given[-1]), time.perf_counter() - start))
            return found

        return plain._replace(advance=advance)

    # Timed where they are made, because a machine that others use too is never the same for long.
    Group.program = program  # type: ignore[method-assign]
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        lagjax.run(
            task, pool, lagjax.FixedLag(lag(made, 4), weights="average"), folder, progress=Silent()
        )
        ready += time.time() - start
    each = float(np.median([seconds / count for count, seconds in times]))
    print(json.dumps([ready, each * sum(count for count, _ in times)]))


def search(config: Config, scanned: bool) -> tuple[lagjax.Task, list[lagjax.Candidate]]:
    """A search of the quickstart's sizes, of a small model that is not trained."""
    shape = quickstart.Config()
    layers = config.layers if scanned else config.unrolled_layers
    size = gpt.Config(layers, shape.width, shape.heads, shape.window, scanned=scanned)
    small, large = gpt.model(dataclasses.replace(size, layers=layers // 2)), gpt.model(size)
    params = jax.jit(small.init)(jax.random.key(0))
    corpus = text.load(None)
    task = lagjax.Task(
        small,
        lagjax.Trained(params),
        quickstart.optimizer(shape, config.horizon),
        text.batches(corpus, shape.batch, shape.window),
        text.shards(corpus, shape.shards, shape.batch, shape.window),
        config.horizon,
    )
    return task, list(lagjax.pools.depth(params, small.axes, large))[: config.pool]


def lag(config: Config, share: int) -> int:
    """One `share`-th of the horizon."""
    return max(1, config.horizon // share)


def evaluation_share(bench: Bench) -> list[float]:
    """At a lag of a quarter of the horizon."""
    return [_share(bench.config, lag(bench.config, 4))]


def evaluation_share_early(bench: Bench) -> list[float]:
    """At a tenth."""
    return [_share(bench.config, lag(bench.config, 10))]


class Decided(Exception):
    """A search has decided: its winner need not go on."""


class UntilDecided(Silent):
    """Ends a run where its winner goes on."""

    def __call__(self, event: Event, /) -> None:
        if event.phase == "continue":
            raise Decided


def _share(config: Config, steps: int) -> float:
    """Of the FLOPs of a search those of its evaluations, as its ledger has them. All candidates
    cost the same, so that two tell of any number.
    """
    task, pool = search(config, True)
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(Decided):
            lagjax.run(
                task,
                pool[:2],
                lagjax.FixedLag(steps, weights="average"),
                folder,
                progress=UntilDecided(),
            )
        decision = json.loads((pathlib.Path(folder) / "decision.json").read_text())
    ledger, share = decision["ledger"], decision["lag"] / config.horizon
    probes = ledger["losers_flops"] + share * ledger["full_run_flops"]
    evaluations: float = ledger["evaluation_flops"]
    return evaluations / (probes + evaluations)


def main(config: Config) -> None:
    """Measures, and prints the table and, as the last line, the row."""
    for name in config.only:
        if name not in GOALS:
            near = difflib.get_close_matches(name, GOALS, n=1, cutoff=0)[0]
            raise ValueError(
                f"there is no measurement {name!r}; did you mean {near!r}? There are "
                f"{', '.join(GOALS)}"
            )
    if config.record and config.only:
        raise ValueError(
            f"--record takes the place of a whole row, and --only {' '.join(config.only)} is a "
            "part of one; leave out either"
        )
    bench, console = Bench(config), Console(soft_wrap=True)
    table = Table("ratio", "median", "lowest to highest", "goal", "")
    row: Row = {}
    for name, goal in GOALS.items():
        measured = []
        if not config.only or name in config.only:
            console.print(f"measuring {name}", style="dim")
            measured = globals()[name](bench)
        median = float(np.median(measured)) if measured else None
        row[name] = median and round(median, 5)
        # Eight small candidates share a GPU.
        if name == "probe_vs_loop_group" and jax.default_backend() == "gpu":
            goal = 0.25
        spread = f"{min(measured):.4g} to {max(measured):.4g}" if measured else "–"
        met = "–" if median is None else "met" if median <= goal else "missed"
        shown = "–" if median is None else f"{median:.4g}"
        table.add_row(name, shown, spread, f"≤ {goal:g}", met)
    console.print(table)
    here, sizes = environment(), dataclasses.asdict(config)
    row |= here | {"versions": here["versions"] | {"torch": _torch()}}
    row |= {"config": {key: sizes[key] for key in sizes.keys() - {"record", "only"}}}
    if config.record:
        store(RESULTS / "benchmark.jsonl", [{"question": "benchmark"} | row])
    print(json.dumps(row, sort_keys=True))


def _torch() -> str | None:
    try:
        import torch
    except ImportError:
        return None
    return str(torch.__version__)


def sections(rows: list[Row]) -> list[str]:
    """The table of all rows, below the goals."""
    if not rows:
        return []
    head = ("Device", "Commit", *(f"`{name}`" for name in GOALS))
    goals = ("goal", "", *(f"≤ {goal:g}" for goal in GOALS.values()))
    lines = [
        (
            f"{row['device']}, {row['cores']} cores",
            str(row["commit"])[:12],
            # Rows lack what was not yet measured then.
            *("–" if row.get(name) is None else f"{row[name]:.3g}" for name in GOALS),
        )
        for row in rows
    ]
    return [
        "## Benchmark\n`python -m experiments.benchmark`: ratios, each measured within one "
        "run.\n\n" + markdown(head, [goals, *lines])
    ]


cli = command(main, "benchmark", Config, __doc__)


if __name__ == "__main__":
    sys.exit(cli())
