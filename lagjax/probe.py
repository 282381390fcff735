"""Probes: many candidates under one compiled step.

One executable advances any number of steps up to a fixed length (a loop over steps, its length an argument), for one
candidate or, under vmap, for several at once. What runs at once and how far each call goes does not change what a
candidate computes, save for rounding between one lane and several.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lagjax.algebra.axes import Params
from lagjax.flops import flops
from lagjax.mesh import CANDIDATES, Placement
from lagjax.model import Batch, Key, Model
from lagjax.state import OptState

State: TypeAlias = Any
Metrics: TypeAlias = dict[str, jax.Array]


CLEARLY = 2.0
"""How many times as fast several lanes must be to be preferred. The choice decides how results are rounded, so that
noise must not turn it: on a GPU small candidates gain more, on a CPU they gain next to nothing."""


class TrainState(NamedTuple):
    """A training run between two steps."""

    step: jax.Array
    params: Params
    opt_state: OptState
    key: Key


class Engine(NamedTuple):
    """How a model is trained and evaluated. `from_loss` makes one; a training loop of your own is another.

    Attributes:
        init: `(params, opt_state, key)` → state.
        step: `(state, batch)` → state and metrics, a dict of scalars with at least `train_loss` (nats per token).
            `tokens`, `grad_norm`, `update_norm` and `lr` are recorded where given.
        evaluate: `(state, batch)` → sum of nats and count.
    """

    init: Callable[[Params, OptState, Key], State]
    step: Callable[[State, Batch], tuple[State, Metrics]]
    evaluate: Callable[[State, Batch], tuple[jax.Array, jax.Array]]


def from_loss(
    model: Model | Callable[[jax.Array], Model], tx: optax.GradientTransformation
) -> Engine:
    """Trains by the gradient of the mean loss. `pmap` of old is `jit` over a mesh today.

    The model may change with the number of steps made, as `growth.masked.ramp` lets it. The learning rate is recorded
    where `tx` holds it in its state, as `optax.inject_hyperparams` does.
    """

    def at(step: jax.Array) -> Model:
        return model if isinstance(model, Model) else model(step)

    def init(params: Params, opt_state: OptState, key: Key) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, key)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)

        def mean(params: Params) -> tuple[jax.Array, jax.Array]:
            total, count = sum_and_count(at(state.step).loss(params, batch, key))
            return total / count, count

        (loss, count), grads = jax.value_and_grad(mean, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "train_loss": loss,
            "tokens": count,
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
        }
        found = optax.tree.get_all_with_path(opt_state, "learning_rate")
        rates = [x for _, x in found if isinstance(x, jax.Array) and x.ndim == 0]
        if len(rates) == 1:
            metrics["lr"] = rates[0]
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    def evaluate(state: TrainState, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return sum_and_count(at(state.step).loss(state.params, batch, None))

    return Engine(init, step, evaluate)


def sum_and_count(found: Any) -> tuple[jax.Array, jax.Array]:
    """What a loss returned, as two arrays; raises ValueError where it is not a sum and a count."""
    shapes = jax.tree.map(jnp.shape, found)
    if shapes != ((), ()):
        raise ValueError(
            f"the loss returned the shapes {shapes}; expected two scalars, the sum of nats "
            "and the count it runs over: 'return nll.sum(), nll.size'"
        )
    return jnp.asarray(found[0]), jnp.asarray(found[1], jnp.float32)


class Lane(NamedTuple):
    """What one candidate carries from call to call.

    Attributes:
        state: of its training, arrays or their shapes, as the others.
        sums: of its metrics over the steps since the last evaluation, in float32; of `lr`, the last value.
        failed_at: the first step whose loss was not finite, or -1.
    """

    state: State
    sums: dict[str, Any]
    failed_at: Any


class Program(NamedTuple):
    """The compiled functions of a group of candidates with one target.

    Attributes:
        lanes: how many candidates run at once; the arguments have that leading axis where it is more than 1.
        like: the shapes and dtypes of one lane, with the shardings it is made and restored with.
        length: how many steps one call of `advance` makes at most.
        advance: `(lane, batches, order, start, steps)` → lane; batches `[orders, length, ...]`, one order for one lane; `order` says which data
            order a lane follows, `start` the number of steps it has made; the lane's buffers are donated.
        evaluate: `(state, shards)` → sums and counts, `[shards]` each.
        step_flops: FLOPs of one training step of one candidate.
        evaluation_flops: FLOPs of one evaluation on all shards.
        bytes: the memory that one call of `advance` takes on each device, arguments and temporaries.
        place: puts lanes, at most `lanes`, where `advance` wants them.
    """

    lanes: int
    like: Lane
    length: int
    advance: Callable[..., Lane]
    evaluate: Callable[[State, Batch], tuple[jax.Array, jax.Array]]
    step_flops: float
    evaluation_flops: float
    bytes: int
    place: Callable[[Sequence[Lane]], Lane]


def shapes_of(state: State, metrics: Metrics) -> Lane:
    """A lane's shapes and dtypes from those of its state and of a step's metrics."""
    sums = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in metrics}
    return Lane(jax.tree.map(_abstract, state), sums, jax.ShapeDtypeStruct((), jnp.int32))


def fresh_lane(state: State, like: Lane) -> Lane:
    """A lane that has done nothing yet."""
    return Lane(
        state,
        {name: np.zeros((), np.float32) for name in like.sums},
        np.full((), -1, np.int32),
    )


def program(
    engine: Engine,
    lane: Lane,
    batches: Batch,
    shards: Batch,
    lanes: int,
    length: int,
    placement: Placement | None = None,
) -> Program:
    """Compiles a group's functions, each once.

    Args:
        engine: what trains and evaluates.
        lane: one lane, or its shapes.
        batches: batches as `advance` takes them, `[orders, length, ...]`, or their shapes.
        shards: validation batches, `[shards, ...]`, or their shapes.
        lanes: how many candidates run at once.
        length: the most steps one call makes.
        placement: the devices; by default the first.

    Raises:
        ValueError: for batches or lanes that do not divide over the devices.
    """
    if placement and lanes > 1 and lanes % placement.candidates:
        raise ValueError(
            f"{lanes} candidates at once do not divide over the {placement.candidates} groups of devices of the mesh's "
            f"axis {CANDIDATES!r}; give a multiple, or 1"
        )

    def advance(
        lane: Lane, batches: Batch, order: jax.Array, start: jax.Array, steps: jax.Array
    ) -> Lane:
        def body(index: jax.Array, lane: Lane) -> Lane:
            batch = jax.tree.map(lambda x: x[order, index], batches)
            state, metrics = engine.step(lane.state, batch)
            sums = {
                # A rate is recorded as it stands, everything else as a mean.
                name: x.astype(jnp.float32) + (0 if name == "lr" else lane.sums[name])
                for name, x in metrics.items()
            }
            fails = (lane.failed_at < 0) & ~jnp.isfinite(metrics["train_loss"])
            return Lane(state, sums, jnp.where(fails, start + index + 1, lane.failed_at))

        advanced: Lane = jax.lax.fori_loop(0, steps, body, lane)
        return advanced

    def evaluate(state: State, shards: Batch) -> tuple[jax.Array, jax.Array]:
        sums, counts = jax.lax.map(
            lambda shard: sum_and_count(engine.evaluate(state, shard)), shards
        )
        return sums, counts

    lane, batches, shards = jax.tree.map(_abstract, (lane, batches, shards))
    number, orders = (
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), batches)
    shard = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shards)
    step_flops = flops(engine.step, lane.state, batch)
    evaluation_flops = flops(engine.evaluate, lane.state, shard) * len(jax.tree.leaves(shards)[0])
    like, several = lane, lanes > 1
    if several:
        axis = CANDIDATES if placement else None
        advance = jax.vmap(advance, in_axes=(0, None, 0, None, None), spmd_axis_name=axis)
        evaluate = jax.vmap(evaluate, in_axes=(0, None), spmd_axis_name=axis)
        lane, orders = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((lanes, *x.shape), x.dtype), (lane, orders)
        )
    place: Any = None
    into: dict[str, Any] = {}
    into_evaluate: dict[str, Any] = {}
    if placement:
        axes = placement.spread(lanes, batch, shard)
        lane_at = placement.lane(like, axes, several)
        each = placement.whole(*[CANDIDATES] * several)
        into = {
            "in_shardings": (
                lane_at,
                placement.rows(batches, axes, 2),
                each,
                *[placement.whole()] * 2,
            ),
            "out_shardings": lane_at,
        }
        into_evaluate = {
            "in_shardings": (lane_at.state, placement.rows(shards, axes, 1)),
            "out_shardings": each,
        }
        like = jax.tree.map(
            lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
            like,
            placement.lane(like, axes, False),
        )
        place = lane_at
    compiled = (
        jax.jit(advance, donate_argnums=0, **into)
        .lower(lane, batches, orders, number, number)
        .compile()
    )
    memory = compiled.memory_analysis()
    size = 0 if memory is None else memory.argument_size_in_bytes + memory.temp_size_in_bytes
    evaluator = jax.jit(evaluate, **into_evaluate).lower(lane.state, shards).compile()
    return Program(
        lanes,
        like,
        length,
        _placing(compiled, into.get("in_shardings")),
        _placing(evaluator, into_evaluate.get("in_shardings")),
        step_flops,
        evaluation_flops,
        size,
        lambda many: _placed(many, several, place),
    )


def _placing(compiled: Any, shardings: Any) -> Callable[..., Any]:
    """A compiled function takes no argument that lies elsewhere than it was compiled for."""
    if shardings is None:
        return compiled  # type: ignore[no-any-return]
    return lambda *arguments: compiled(*jax.device_put(arguments, shardings))


def _placed(lanes: Sequence[Lane], several: bool, shardings: Any) -> Lane:
    """Several lanes along a leading axis, or the one there is."""
    if shardings is None:
        stacked: Lane = stack(lanes) if several else lanes[0]
        return stacked
    if not several:
        one: Lane = jax.device_put(lanes[0], shardings)
        return one

    def together(sharding: Any, *leaves: Any) -> Any:
        # By way of the host, so that no device ever holds more than its own part.
        if jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
            return jax.device_put(jnp.stack(leaves), sharding)
        return jax.device_put(np.stack([np.asarray(x) for x in leaves]), sharding)

    many: Lane = jax.tree.map(together, shardings, *lanes)
    return many


def fitting_lanes(single: Program, wanted: int, groups: int = 1) -> int:
    """How many of `wanted` lanes fit in half the memory, so that all chunks are nearly equal.

    With several groups of devices it is a multiple of their number; places beyond `wanted` stay idle.
    """
    statistics = jax.local_devices()[0].memory_stats() or {}
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = int(statistics.get("bytes_limit", physical)) // 2
    fitting = groups * max(1, limit // max(single.bytes, 1))
    chunk = math.ceil(wanted / math.ceil(wanted / min(wanted, fitting)))
    return math.ceil(chunk / groups) * groups


def choose_lanes(
    single: Program,
    compiled: Callable[[int], Program],
    wanted: int,
    lane: Lane,
    batches: Batch,
    groups: int = 1,
) -> int:
    """How many of `wanted` candidates run at once: what fits the memory and is clearly faster than one.

    On a CPU one: several at once gain next to nothing there, and the other program would be compiled for the
    measurement alone. Over several groups of devices always several.

    Args:
        single: the program for one lane.
        compiled: makes the program for a number of lanes.
        wanted: candidates times seeds.
        lane: one to measure with; it is left alone.
        batches: of all data orders, as `advance` takes them.
        groups: of devices.
    """
    if groups == 1 and jax.local_devices()[0].platform == "cpu":
        return 1
    lanes = fitting_lanes(single, wanted, groups)
    # Whoever gives a mesh with an axis of candidates has decided.
    if groups > 1 or lanes == 1 or faster(single, compiled(lanes), lane, batches):
        return lanes
    return 1


def faster(one: Program, many: Program, lane: Lane, batches: Batch, rounds: int = 3) -> bool:
    """Whether advancing `many` lanes at once takes clearly less time a lane than `one` after another.

    Both are timed in turn on copies of `lane` and the first data order, and the best of
    `rounds` counts. Clearly means `CLEARLY` times as fast.
    """
    times: dict[int, list[float]] = {one.lanes: [], many.lanes: []}
    for _ in range(rounds + 1):
        for each in (one, many):
            copy = stack([lane] * each.lanes) if each.lanes > 1 else jax.tree.map(jnp.array, lane)
            orders = np.zeros(each.lanes, np.int32) if each.lanes > 1 else np.int32(0)
            jax.block_until_ready(copy)
            # One lane alone is compiled for one data order.
            given = batches if each.lanes > 1 else jax.tree.map(lambda x: x[:1], batches)
            start = time.perf_counter()
            jax.block_until_ready(
                each.advance(copy, given, orders, np.int32(0), np.int32(min(2, each.length)))
            )
            times[each.lanes].append((time.perf_counter() - start) / each.lanes)
    # The first round warms up.
    return min(times[one.lanes][1:]) > CLEARLY * min(times[many.lanes][1:])


def stack(lanes: Sequence[Any]) -> Any:
    """Puts the lanes of a chunk along a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)


def unstack(lanes: Any, count: int) -> list[Any]:
    """The first `count` lanes of a chunk."""
    return [jax.tree.map(lambda x, index=index: x[index], lanes) for index in range(count)]


def steps_of(
    batch: Callable[[int, int], Batch],
    seeds: Sequence[int],
    start: int,
    count: int,
    length: int,
) -> Batch:
    """The batches of `count` steps for each seed, `[seeds, length, ...]`, padded with the last one."""
    return jax.tree.map(
        lambda *leaves: np.stack(leaves).reshape(len(seeds), length, *np.shape(leaves[0])),
        *[batch(seed, start + min(index, count - 1)) for seed in seeds for index in range(length)],
    )


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: x) if not isinstance(x, jax.ShapeDtypeStruct) else x
