"""Growing leaf by leaf, over eight devices: the same bits, the asked shardings, and no more memory
than promised.
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import scale
from experiments.models import transformer
from experiments.rows import RESULTS, read
from lagjax.growth import leafwise as module
from lagjax.growth.depth import Fresh, Scaled, Stack
from lagjax.growth.leafwise import CompiledGrowth, apply, compiled
from lagjax.growth.operator import Grow
from lagjax.growth.width import Isometric, Noisy, NoisySplit, Tile, ZeroPad
from lagjax.model import Growth, Model
from tests import toy

MESH = Mesh(np.array(jax.devices()), ("data",))
KEY = jax.random.key(3)
SLACK = 256
"""Bytes of scalars, of indices, and of a map's vectors."""

UNROLLED = functools.partial(
    transformer.Config,
    width=16, kv=2, mlp=32, group=1, head_dim=8, window=8, vocab=24, norm="rms", pre=True, positions="rope",
    tied=True, gated=False, biases=False, implementation="unrolled",
)  # fmt: skip
SCANNED = functools.partial(UNROLLED, implementation="scanned")
TWO, THREE = transformer.model(UNROLLED(2)), transformer.model(UNROLLED(3))
WIDE = toy.model(2, 2 * toy.WIDTH)
CASES: dict[str, tuple[Growth, Model, Model]] = {
    "unrolled": (Grow(depth=Scaled(Stack())), TWO, THREE),
    "stacked": (Grow(depth=Stack()), toy.SMALL, toy.LARGE),
    "tiled": (Grow(width=Tile()), toy.SMALL, WIDE),
    "fresh": (
        Grow(depth=Fresh("between"), width=ZeroPad()),
        toy.SMALL,
        toy.model(4, 2 * toy.WIDTH),
    ),
    "jittered": (Grow(width=Noisy(Tile())), toy.SMALL, WIDE),
    "noise": (Grow(width=Isometric(NoisySplit())), toy.SMALL, WIDE),
}
"""The operator, the small model, the large one."""


@functools.cache
def drawn(model: Model) -> Any:
    return jax.jit(model.init)(jax.random.key(0))


def cut(x: Any) -> NamedSharding:
    """Over the largest axis that divides, as full sharding does."""
    fitting = [axis for axis, size in enumerate(x.shape) if size % MESH.size == 0]
    spec: list[Any] = [None] * len(x.shape)
    if fitting:
        spec[max(fitting, key=lambda axis: x.shape[axis])] = "data"
    return NamedSharding(MESH, PartitionSpec(*spec))


@functools.cache
def grown(name: str) -> tuple[CompiledGrowth, Any, CompiledGrowth, Any]:
    """On one device and on eight: the compiled growth and its result."""
    operator, small, large = CASES[name]
    shardings = jax.tree.map(cut, jax.eval_shape(large.init, KEY))
    one = compiled(operator, KEY, drawn(small), small.axes, large)
    eight = compiled(operator, KEY, drawn(small), small.axes, large, shardings)
    return one, one(KEY, drawn(small)), eight, eight(KEY, drawn(small))


def largest(tree: Any) -> int:
    return max(x.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", CASES)
def test_eight_devices_make_what_one_does(name: str) -> None:
    _, alone, _, spread = grown(name)
    # The size of noise is a sum over the leaf, and what cancels it a sum over copies: eight devices
    # add in another order. Everything else is computed entry by entry.
    tolerance = 1e-7 if name in ("jittered", "noise") else 0
    chex.assert_trees_all_close(
        jax.device_get(spread), jax.device_get(alone), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("name", CASES)
def test_a_device_holds_its_share(name: str) -> None:
    spread = grown(name)[3]
    for x in jax.tree.leaves(spread):
        assert x.sharding == cut(x)
        share = 1 if x.sharding.is_fully_replicated else MESH.size
        held = [shard.data.nbytes for shard in x.addressable_shards]
        assert held == [x.nbytes // share] * MESH.size
    assert sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(spread)) > 2


@pytest.mark.parametrize("name", CASES)
def test_temporaries_are_one_leaf_at_most(name: str) -> None:
    one, alone, eight, _ = grown(name)
    assert one.temporary <= SLACK
    # What is cut along an axis on which noise cancels is collected on every device, where its
    # copies meet.
    allowed = 1.5 * largest(alone) if name == "noise" else 0
    assert eight.temporary <= allowed + SLACK


def test_fresh_layers_of_a_scan_are_one_leaf_at_most() -> None:
    """They are stacked before they are chosen from."""
    small, large = (transformer.model(SCANNED(layers)) for layers in (2, 4))
    found = compiled(Grow(depth=Fresh("between")), KEY, drawn(small), small.axes, large)
    assert found.temporary <= largest(found(KEY, drawn(small))) + SLACK


@pytest.mark.parametrize("name", ["fresh", "jittered"])
def test_it_is_the_operators_call(name: str) -> None:
    operator, small, large = CASES[name]
    call = jax.jit(lambda key, params: operator(key, params, small.axes, large))
    chex.assert_trees_all_equal(call(KEY, drawn(small)), grown(name)[1])


def test_leaves_that_are_made_alike_are_compiled_once() -> None:
    programs = grown("unrolled")[0].programs
    # Leaves of each layer and two others, of which two are zeroed in the added layer.
    assert len(programs) == 3 * 8 + 2
    assert len({id(program.run) for program in programs}) <= 8 + 2 + 2
    # Fresh layers too, though each draws from keys of its own.
    large = transformer.model(UNROLLED(4))
    fresh = compiled(Grow(depth=Fresh()), KEY, drawn(TWO), TWO.axes, large)
    assert len({id(program.run) for program in fresh.programs}) <= 2 * 8 + 2
    made = fresh(KEY, drawn(TWO))
    kernels = [made[f"layers_{layer}"]["mlp"]["up"]["kernel"] for layer in (1, 2, 3)]
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[1], kernels[2])


def test_constants_tell_programs_apart() -> None:
    """Indices of one shape and other values are other programs."""
    draw = np.random.default_rng(0)
    orders = {name: draw.permutation(2000) for name in "ab"}

    def operator(key: Any, params: Any, source: Any, target: Any) -> Any:
        return {name: jnp.take(params["x"], order) for name, order in orders.items()}

    params = {"x": jnp.arange(2000.0)}
    found = apply(operator, KEY, params, None, None)  # type: ignore[arg-type]
    chex.assert_trees_all_equal(
        jax.device_get(found), {k: v.astype("float32") for k, v in orders.items()}
    )


def test_the_source_is_left_alone() -> None:
    params = jax.tree.map(jnp.copy, toy.PARAMS)
    before = jax.device_get(params)
    found = apply(Grow(depth=Stack()), KEY, params, toy.AXES, toy.LARGE)
    held = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(params)}
    assert not held & {x.unsafe_buffer_pointer() for x in jax.tree.leaves(found)}
    jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)(found)
    chex.assert_trees_all_equal(jax.device_get(params), before)


@pytest.mark.parametrize("where", ["numpy", "one device", "spread"])
def test_the_source_may_lie_anywhere(where: str) -> None:
    params = drawn(toy.SMALL)
    source = {
        "numpy": jax.device_get,
        "one device": lambda tree: jax.device_put(tree, jax.devices()[3]),
        "spread": lambda tree: jax.device_put(tree, jax.tree.map(cut, tree)),
    }[where](params)
    key = jax.device_put(KEY, jax.devices()[5])
    whole = NamedSharding(MESH, PartitionSpec())
    found = apply(Grow(depth=Stack()), key, source, toy.AXES, toy.LARGE, whole)
    assert all(x.sharding == whole for x in jax.tree.leaves(found))
    chex.assert_trees_all_equal(jax.device_get(found), jax.device_get(grown("stacked")[1]))


def test_shardings_of_another_structure_are_refused() -> None:
    shardings = {"embed": NamedSharding(MESH, PartitionSpec())}
    with pytest.raises(ValueError, match="one for each parameter, or one for all"):
        apply(Grow(depth=Stack()), KEY, toy.PARAMS, toy.AXES, toy.LARGE, shardings)


@pytest.mark.parametrize("width", [8, 32, 64])
def test_fused_keys_draw_the_same_bits(width: int) -> None:
    @jax.jit
    def draw(key: jax.Array) -> list[jax.Array]:
        several = jax.random.split(jax.random.fold_in(key, 9), 4)
        bits = functools.partial(jax.random.bits, dtype=f"uint{width}")
        return [bits(key, (3, 5, 2)), bits(key, ()), jax.vmap(bits)(several)]

    with jax.enable_x64(True):
        fused = module._fused(KEY)
        assert fused.dtype != KEY.dtype
        chex.assert_trees_all_equal(draw(fused), draw(KEY))


def test_other_keys_stay() -> None:
    for key in (jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")):
        assert module._fused(key) is key


@pytest.mark.parametrize("case", ["depth, scanned", "width, scanned"])
def test_the_measured_models_double(case: str) -> None:
    _, small, large = scale.models(case, 1e6)
    count = lambda model: sum(x.size for x in jax.tree.leaves(jax.eval_shape(model.init, KEY)))
    assert 0.8e6 < count(small) < 1.25e6
    assert 1.9 < count(large) / count(small) <= 2


def test_measurements_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no case 'height'"):
        scale.main(scale.Config(only=("height",)))
    with pytest.raises(ValueError, match="give fewer --parameters"):
        scale.main(scale.Config(parameters=1e15))


def test_recorded_rows_hold_what_is_promised() -> None:
    """Source, target and one leaf, beside the process itself."""
    for row in read(RESULTS / "scale.jsonl"):
        held = row["peak_bytes"] - row["peak_bytes_before"]
        assert held <= row["bytes_moved"] + row["largest_leaf"]
        assert row["temporary_bytes"] <= row["largest_leaf"]
