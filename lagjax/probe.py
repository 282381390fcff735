"""Probes: many trials under one compiled step.

One executable makes any number of steps up to a fixed length (a loop over steps, its count an
argument), for one trial or, under vmap, for several at once. What runs at once and how far each
call goes does not change what a trial computes, save for rounding between one trial and several.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import ArrayLike
from numpy.typing import NDArray

from lagjax.arguments import inside
from lagjax.engine import Engine, State, float32
from lagjax.flops import flops
from lagjax.mesh import CANDIDATES, Placement
from lagjax.model import Batch

LENGTH = 32
"""Steps that one call of the compiled loop makes at most: the batches of so many are made and held
at a time.
"""
CLEARLY = 2.0
"""How many times as fast several at once must be to be preferred. The choice decides how results
are rounded, so that noise must not turn it: on a GPU small candidates gain more, on a CPU they gain
next to nothing."""


class Costs(NamedTuple):
    """FLOPs of one trial: of a training step, and of an evaluation on all shards."""

    step: float
    evaluation: float


class Program(NamedTuple):
    """The compiled functions of candidates with one target.

    Attributes:
        at_once: how many trials run at once; arguments and results have that leading axis where it
            is more than 1.
        like: the shapes and dtypes of one trial's state, with the shardings it is made and restored
            with.
        length: how many steps one call of `advance` makes at most.
        metrics: the names of what a step measures, in the buffer's order.
        advance: `(state, batches, order, steps)` → state, buffer; batches `[orders, length, ...]`,
            of one order for one trial; `order` says which data order a trial follows; the buffer,
            `[length, metrics, 2]`, has the sum and the count of each step's metrics, 0 beyond
            `steps`. The state's memory is taken over.
        evaluate: `(state, shards, count)` → name → sums and counts, `[shards]` each; only the first
            `count` shards are evaluated, the others have 0.
        bytes: the memory that one call of `advance` takes on each device, arguments and
            temporaries.
        place: puts states, at most `at_once`, where `advance` wants them.
    """

    at_once: int
    like: State
    length: int
    metrics: tuple[str, ...]
    advance: Callable[..., tuple[State, jax.Array]]
    evaluate: Callable[[State, Batch, np.int32], dict[str, tuple[jax.Array, jax.Array]]]
    bytes: int
    place: Callable[[Sequence[State]], State]


def measured(engine: Engine, state: State, batch: Batch, shard: Batch) -> tuple[str, ...]:
    """The names of what a step measures, sorted.

    Raises ValueError for an engine whose step or evaluation gives no "loss", or a metric that is no
    sum and count.
    """
    with inside("evaluating, where the loss is given key=None,"):
        jax.eval_shape(lambda *given: float32(engine.evaluate(*given)), state, shard)
    with inside("a training step"):
        found = jax.eval_shape(lambda *given: float32(engine.step(*given)[1]), state, batch)
    return tuple(sorted(found))


def costs(engine: Engine, state: State, batch: Batch, shards: Batch) -> Costs:
    """What one trial's step and evaluation take, from what is traced; `shards` `[shards, ...]`."""
    shard = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shards)
    count = len(jax.tree.leaves(shards)[0])
    return Costs(flops(engine.step, state, batch), count * flops(engine.evaluate, state, shard))


def program(
    engine: Engine,
    state: State,
    batches: Batch,
    shards: Batch,
    at_once: int,
    length: int = LENGTH,
    placement: Placement | None = None,
) -> Program:
    """Compiles a group's functions, each once.

    Args:
        engine: what trains and evaluates.
        state: one trial's, or its shapes.
        batches: batches as `advance` takes them, `[orders, length, ...]`, or their shapes.
        shards: validation batches, `[shards, ...]`, or their shapes.
        at_once: how many trials run at once.
        length: the most steps one call makes.
        placement: the devices; by default the first.

    Raises:
        ValueError: for batches or trials that do not divide over the devices.
    """
    if placement and at_once > 1 and at_once % placement.candidates:
        raise ValueError(
            f"{at_once} candidates at once do not divide over the {placement.candidates} groups "
            f"of devices of the mesh's axis {CANDIDATES!r}; give a multiple, or 1"
        )
    state, batches, shards = jax.tree.map(abstract, (state, batches, shards))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), batches)
    shard = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shards)
    names = measured(engine, state, batch, shard)

    def advance(
        state: State, batches: Batch, order: jax.Array, steps: jax.Array
    ) -> tuple[State, jax.Array]:
        def body(index: jax.Array, carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
            state, buffer = carry
            batch = jax.tree.map(lambda x: x[order, index], batches)
            state, metrics = engine.step(state, batch)
            found = float32(metrics)
            row = jnp.stack([jnp.stack(found[name]) for name in names])
            return state, jax.lax.dynamic_update_index_in_dim(buffer, row, index, 0)

        # Every step's metrics are kept: the loss of each is evidence, and the buffer costs nothing.
        buffer = jnp.zeros((length, len(names), 2), jnp.float32)
        advanced: tuple[State, jax.Array] = jax.lax.fori_loop(0, steps, body, (state, buffer))
        return advanced

    def evaluate(
        state: State, shards: Batch, count: jax.Array
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        def at(index: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
            return float32(engine.evaluate(state, jax.tree.map(lambda x: x[index], shards)))

        def body(index: jax.Array, found: State) -> State:
            return jax.tree.map(lambda all_, one: all_.at[index].set(one), found, at(index))

        size = len(jax.tree.leaves(shards)[0])
        empty = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), jax.eval_shape(at, 0))
        measured: dict[str, tuple[jax.Array, jax.Array]] = jax.lax.fori_loop(0, count, body, empty)
        return measured

    order = steps = jax.ShapeDtypeStruct((), jnp.int32)
    like, several = state, at_once > 1
    if several:
        axis = CANDIDATES if placement else None
        advance = jax.vmap(advance, in_axes=(0, None, 0, None), spmd_axis_name=axis)
        evaluate = jax.vmap(evaluate, in_axes=(0, None, None), spmd_axis_name=axis)
        state, order = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((at_once, *x.shape), x.dtype), (state, order)
        )
    place: State = None
    into: dict[str, State] = {}
    into_evaluate: dict[str, State] = {}
    if placement:
        axes = placement.spread(at_once, batch, shard)
        state_at = placement.state(like, axes, several)
        each = placement.whole(*[CANDIDATES] * several)
        rows = placement.rows(batches, axes, 2)
        into = {
            "in_shardings": (state_at, rows, each, placement.whole()),
            "out_shardings": (state_at, each),
        }
        into_evaluate = {
            "in_shardings": (state_at, placement.rows(shards, axes, 1), placement.whole()),
            "out_shardings": each,
        }
        like = jax.tree.map(
            lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
            like,
            placement.state(like, axes, False),
        )
        place = state_at
    compiled = (
        jax.jit(advance, donate_argnums=0, **into).lower(state, batches, order, steps).compile()
    )
    memory = compiled.memory_analysis()
    size = memory.argument_size_in_bytes + memory.temp_size_in_bytes if memory is not None else 0
    evaluator = jax.jit(evaluate, **into_evaluate).lower(state, shards, steps).compile()
    return Program(
        at_once,
        like,
        length,
        names,
        _placing(compiled, into.get("in_shardings")),
        _placing(evaluator, into_evaluate.get("in_shardings")),
        size,
        lambda many: _placed(many, several, place),
    )


def _placing(compiled: jax.stages.Compiled, shardings: State) -> Callable[..., Any]:
    """A compiled function takes no argument that lies elsewhere than it was compiled for."""
    if shardings is None:
        return compiled
    return lambda *arguments: compiled(*jax.device_put(arguments, shardings))


def _placed(states: Sequence[State], several: bool, shardings: State) -> State:
    """Several states along a leading axis, or the one there is."""
    if shardings is None:
        return stack(states) if several else states[0]
    if not several:
        return jax.device_put(states[0], shardings)

    def together(sharding: Sharding, *leaves: jax.Array) -> State:
        # By way of the host, so that no device ever holds more than its own part.
        if jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
            return jax.device_put(jnp.stack(leaves), sharding)
        return jax.device_put(np.stack([np.asarray(x) for x in leaves]), sharding)

    return jax.tree.map(together, shardings, *states)


def fitting(single: Program, wanted: int, groups: int = 1) -> int:
    """How many of `wanted` trials fit in half the memory, so that all chunks are nearly equal.

    With several groups of devices it is a multiple of their number; places beyond `wanted` stay
    idle.
    """
    statistics = jax.local_devices()[0].memory_stats() or {}
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = int(statistics.get("bytes_limit", physical)) // 2
    fits = groups * max(1, limit // max(single.bytes, 1))
    chunk = math.ceil(wanted / math.ceil(wanted / min(wanted, fits)))
    return math.ceil(chunk / groups) * groups


def choose_at_once(
    compiled: Callable[[int], Program],
    wanted: int,
    state: Callable[[], State],
    batches: Callable[[], Batch],
    groups: int = 1,
) -> int:
    """How many of `wanted` trials run at once: what fits the memory and is clearly faster than one.

    On a CPU one: several at once gain next to nothing there, and the other program would be
    compiled for the measurement alone. Over several groups of devices always several: whoever gives
    a mesh with an axis of candidates has decided.

    Args:
        compiled: makes the program for a number of trials.
        wanted: candidates times seeds.
        state: makes one to measure with.
        batches: makes those of all data orders, as `advance` takes them.
        groups: of devices.
    """
    if groups == 1 and jax.local_devices()[0].platform == "cpu":
        return 1
    single = compiled(1)
    at_once = fitting(single, wanted, groups)
    if groups > 1 or at_once == 1 or faster(single, compiled(at_once), state(), batches()):
        return at_once
    return 1


def faster(one: Program, many: Program, state: State, batches: Batch, rounds: int = 3) -> bool:
    """Whether advancing many trials at once takes clearly less time a trial than one after another.

    Both are timed in turn on copies of `state`, and the best of `rounds` counts. Clearly means
    `CLEARLY` times as fast.
    """
    times: dict[int, list[float]] = {one.at_once: [], many.at_once: []}
    for _ in range(rounds + 1):
        for each in (one, many):
            several = each.at_once > 1
            copy = stack([state] * each.at_once) if several else jax.tree.map(jnp.array, state)
            order = np.zeros(each.at_once, np.int32) if several else np.int32(0)
            # One trial alone is compiled for one data order.
            given = batches if several else jax.tree.map(lambda x: x[:1], batches)
            jax.block_until_ready(copy)
            start = time.perf_counter()
            jax.block_until_ready(each.advance(copy, given, order, np.int32(min(2, each.length))))
            times[each.at_once].append((time.perf_counter() - start) / each.at_once)
    # The first round warms up.
    return min(times[one.at_once][1:]) > CLEARLY * min(times[many.at_once][1:])


def stack(states: Sequence[State]) -> State:
    """Puts the states of a chunk along a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def unstack(states: State, count: int) -> list[State]:
    """The first `count` states of a chunk."""
    return [jax.tree.map(lambda x, index=index: x[index], states) for index in range(count)]


def steps_of(
    batch: Callable[[int, int], Batch],
    seeds: Sequence[int],
    start: int,
    count: int,
    length: int = LENGTH,
) -> Batch:
    """The batches of `count` steps for each seed, `[seeds, length, ...]`, padded with the last
    one.
    """

    def padded(*leaves: Any) -> NDArray[Any]:
        found = np.stack(leaves).reshape(len(seeds), count, *np.shape(leaves[0]))
        return np.take(found, np.minimum(np.arange(length), count - 1), axis=1)

    made = [batch(seed, start + index) for seed in seeds for index in range(count)]
    return jax.tree.map(padded, *made)


def abstract(x: ArrayLike | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array."""
    return jax.eval_shape(lambda: x) if not isinstance(x, jax.ShapeDtypeStruct) else x
