"""What growing a large model costs, as multiples of the bytes it moves.

    python -m experiments.scale --record    # 1 billion float32 parameters to 2, in 16 GB of memory

Each case grows in a process of its own, on the CPU, by `lagjax.growth.leafwise`. Bytes moved are
the source's, read, and the target's, written. Peak memory is that of the whole process, against
source and target; time is that of one growth after compilation, against copying the source twice,
both into new memory, medians of `rounds`.
"""

import concurrent.futures
import ctypes
import dataclasses
import json
import math
import multiprocessing
import pathlib
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.cli import command
from experiments.models import transformer
from experiments.rows import RESULTS, Row, environment, markdown, store
from lagjax.algebra.layout import Params
from lagjax.growth.depth import Stack
from lagjax.growth.leafwise import compiled
from lagjax.growth.operator import Grow
from lagjax.growth.width import Tile
from lagjax.model import Growth, Model

CASES: dict[str, Growth] = {
    "depth, scanned": Grow(depth=Stack()),
    "depth, unrolled": Grow(depth=Stack()),
    "width, scanned": Grow(width={"embed": Tile()}),
}
"""What grows to twice its size, and how its layers are held."""

LAYERS = 20


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    parameters: float = 1e9
    """Of the source in the cases of depth."""
    width_parameters: float = 2.5e8
    """In the cases of width."""
    only: tuple[str, ...] = ()
    """Names of cases; by default all."""
    rounds: int = 3
    """Times that each growth and each copy is timed."""
    record: bool = False
    """Add the results to experiments/results/scale.jsonl."""


def models(case: str, parameters: float) -> tuple[Growth, Model, Model]:
    """The operator of a case, a small model of about so many parameters, and one of twice that."""
    operator = CASES[case]
    # A layer has 12 × width² parameters.
    width = max(32, round(math.sqrt(parameters / LAYERS / 12) / 32) * 32)
    config = transformer.Config(
        layers=LAYERS, width=width, kv=16, group=1, head_dim=width // 16, mlp=4 * width, window=64,
        vocab=256, norm="rms", pre=True, positions="rope", tied=True, gated=False, biases=False,
        implementation="unrolled" if case.endswith("unrolled") else "scanned",
    )  # fmt: skip
    # Heads and mlp stay: every matrix has one axis of the residual stream, and doubles.
    if case.startswith("depth"):
        large = dataclasses.replace(config, layers=2 * LAYERS)
    else:
        large = dataclasses.replace(config, width=2 * width)
    return operator, transformer.model(config), transformer.model(large)


def filled(model: Model) -> Params:
    """Parameters that cost nothing to make.

    Each entry is its place along the first axis, plus the number of its leaf.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    number = iter(range(10**6))

    def one(x: Any) -> jax.Array:
        return next(number) + jax.lax.broadcasted_iota(x.dtype, x.shape, 0)

    return jax.block_until_ready(jax.tree.map(one, shapes))


def measure(case: str, parameters: float, rounds: int) -> Row:
    """Grows one case in this process, whose memory shall not have been used before."""
    jax.config.update("jax_platforms", "cpu")
    # Arrays get new memory from the system, as they do the first time that a model is grown; memory
    # that was just freed is written several times faster. M_MMAP_THRESHOLD is -3.
    ctypes.CDLL(None).mallopt(-3, 2**16)
    operator, small, large = models(case, parameters)
    key = jax.random.key(0)
    before = _peak()
    params = filled(small)
    start = time.perf_counter()
    growth = compiled(operator, key, params, small.axes, large)
    compiling = time.perf_counter() - start
    held: list[Params] = []

    def grow() -> None:
        held.append(growth(key, params))

    def copy() -> None:
        # As many bytes as the target has, into new memory.
        for leaf in [*jax.tree.leaves(params)] * 2:
            held.append(jax.block_until_ready(jnp.copy(leaf)))

    first = _seconds(grow)
    peak, result = _peak(), held.pop()
    _check(case, params, result)
    read, written = _bytes(params), _bytes(result)
    numbers = sum(x.size for x in jax.tree.leaves(result))
    largest = max(x.nbytes for x in jax.tree.leaves(result))
    del result
    times: dict[str, list[float]] = {"growth": [], "copy": []}
    for turn in range(-1, rounds):
        for name, call in (("growth", grow), ("copy", copy)):
            taken = _seconds(call)
            held.clear()
            # Memory that nobody has used since the machine started is slower still.
            if turn >= 0:
                times[name].append(taken)
    return {
        "source_parameters": sum(x.size for x in jax.tree.leaves(params)),
        "target_parameters": numbers,
        "largest_leaf": largest,
        "bytes_moved": read + written,
        "peak_bytes": peak,
        "peak_bytes_before": before,
        "temporary_bytes": growth.temporary,
        "peak_memory_ratio": round(peak / (read + written), 4),
        "growth_vs_copy": round(float(np.median(times["growth"]) / np.median(times["copy"])), 4),
        "growth_seconds": [round(x, 3) for x in times["growth"]],
        "copy_seconds": [round(x, 3) for x in times["copy"]],
        "first_seconds": round(first, 3),
        "compile_seconds": round(compiling, 3),
        "programs": len({id(program.run) for program in growth.programs}),
        "leaves": len(growth.programs),
        **environment(),
    }


def _check(case: str, params: Params, result: Params) -> None:
    """Raises AssertionError where an MLP's kernel is not what growing makes of the source."""
    layers = ["layers"] if "layers" in params else [f"layers_{i}" for i in range(LAYERS)]
    for number, name in enumerate(layers):
        old = params[name]["mlp"]["up"]["kernel"]
        if "layers" in params:
            made = [result[name]["mlp"]["up"]["kernel"]]
        else:
            places = (number, number + LAYERS)
            made = [result[f"layers_{at}"]["mlp"]["up"]["kernel"] for at in places]
        first = np.asarray(old[..., 0])
        expected = first
        if case.startswith("depth, scanned"):
            expected = np.concatenate([first, first])
        if case.startswith("width"):
            # A matrix that reads the residual stream is split between the copies.
            expected = np.concatenate([first, first], axis=-1) / 2
        for new in made:
            np.testing.assert_array_equal(np.asarray(new[..., 0]), expected)


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _bytes(tree: Params) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def _peak() -> int:
    """The most memory that this process has held."""
    # In kilobytes on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _available() -> int | None:
    """Memory that can be had without swapping; None where the system does not tell."""
    told = pathlib.Path("/proc/meminfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    return found[0] * 1024 if found else None


def main(config: Config) -> None:
    """Measures, and prints the table and, as the last line, the rows."""
    for name in config.only:
        if name not in CASES:
            raise ValueError(f"there is no case {name!r}; there are {', '.join(map(repr, CASES))}")
    rows = []
    for case in config.only or tuple(CASES):
        parameters = config.width_parameters if case.startswith("width") else config.parameters
        # Source and target, and a third for everything else.
        needed, available = 16 * parameters, _available()
        if available is not None and available < needed:
            raise ValueError(
                f"{case!r} needs {needed / 1e9:.3g} GB of memory, and {available / 1e9:.3g} GB "
                "are free; give fewer --parameters"
            )
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, spawn) as alone:
            found = alone.submit(measure, case, parameters, config.rounds).result()
        described = {"case": case, "parameters": parameters, "rounds": config.rounds}
        rows.append({"question": "scale", "config": described} | found)
    console = Console(soft_wrap=True)
    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(*line(row))
    console.print(table)
    if config.record:
        store(RESULTS / "scale.jsonl", rows)
    print(json.dumps(rows, sort_keys=True))


HEADINGS = (
    "Case",
    "Parameters",
    "Bytes moved",
    "Peak memory / source + target",
    "Time / copy",
    "Growing",
    "Compiling",
)


def line(row: Row) -> tuple[str, ...]:
    """A row as the table shows it."""
    return (
        row["config"]["case"],
        f"{row['source_parameters'] / 1e9:.3g} → {row['target_parameters'] / 1e9:.3g} billion",
        f"{row['bytes_moved'] / 1e9:.3g} GB",
        f"{row['peak_memory_ratio']:.3f}",
        f"{row['growth_vs_copy']:.2f}",
        f"{np.median(row['growth_seconds']):.3g} s",
        f"{row['compile_seconds']:.2g} s",
    )


def sections(rows: list[Row]) -> list[str]:
    """The table of all rows."""
    if not rows:
        return []
    lines = [
        (*line(row), f"{row['device']}, {row['cores']} cores, {str(row['commit'])[:12]}")
        for row in rows
    ]
    return [
        "## Scale\n`python -m experiments.scale`: growing by `lagjax.growth.leafwise` in a "
        "process of its own. Bytes moved are the source's, read, and the target's,\nwritten. "
        "Memory is that of the whole process. A copy is of as many bytes as the target "
        "has, into new memory, as growing is.\n\n" + markdown((*HEADINGS, "Device, commit"), lines)
    ]


cli = command(main, "scale", Config, __doc__)


if __name__ == "__main__":
    sys.exit(cli())
