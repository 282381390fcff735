"""The compiled step: one compilation, any number of steps, several lanes, FLOPs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagjax
from lagjax import probe
from lagjax.flops import flops
from lagjax.probe import (
    choose_lanes,
    faster,
    fitting_lanes,
    fresh_lane,
    from_loss,
    program,
    shapes_of,
    stack,
    steps_of,
    unstack,
)  # fmt: skip
from tests import toy

ENGINE = from_loss(toy.LARGE, toy.tx())
SHARDS = np.stack(toy.VALID)


def lane(seed: int = 0):
    params = toy.LARGE.init(jax.random.key(seed))
    state = ENGINE.init(params, toy.tx().init(params), jax.random.key(seed))
    like = shapes_of(state, jax.eval_shape(ENGINE.step, state, toy.batch(0, 0))[1])
    return fresh_lane(state, like), like


def compiled(lanes: int):
    return program(ENGINE, lane()[1], steps_of(toy.batch, [0, 1], 0, 1, 8), SHARDS, lanes, 8)


def test_the_partition_of_steps_does_not_matter() -> None:
    """Bitwise: 8 steps are 3 + 5, and 1 + 7."""
    one = compiled(1)
    results = []
    for cut in (8, 3, 1):
        state, _ = lane()
        for start, count in ((0, cut), (cut, 8 - cut)):
            if count:
                batches = steps_of(toy.batch, [0, 1], start, count, 8)
                state = one.advance(state, batches, np.int32(1), np.int32(start), np.int32(count))
        results.append(jax.device_get(state.state.params))
    chex.assert_trees_all_equal(*results)


def test_traced_once() -> None:
    traces = []

    def loss(params: object, batch: jax.Array, key: object) -> tuple:
        traces.append(key)
        return toy.LARGE.loss(params, batch, key)

    engine = from_loss(toy.LARGE._replace(loss=loss), toy.tx())
    state, like = lane()
    one = program(engine, like, steps_of(toy.batch, [0], 0, 1, 8), SHARDS, 1, 8)
    before = len(traces)
    for count in (1, 5, 8):
        batches = steps_of(toy.batch, [0], 0, count, 8)
        state = one.advance(state, batches, np.int32(0), np.int32(0), np.int32(count))
        one.evaluate(state.state, SHARDS)
    assert len(traces) == before


def test_lanes_see_their_own_data_order_and_only_theirs() -> None:
    one, two = compiled(1), compiled(2)
    batches = steps_of(toy.batch, [0, 1], 0, 8, 8)
    both = two.advance(
        stack([lane(3)[0], lane(3)[0]]),
        batches,
        np.array([0, 1], np.int32),
        np.int32(0),
        np.int32(8),
    )
    for order, made in enumerate(unstack(both, 2)):
        alone = one.advance(lane(3)[0], batches, np.int32(order), np.int32(0), np.int32(8))
        chex.assert_trees_all_close(made.state.params, alone.state.params, rtol=1e-4, atol=1e-6)
    first, second = unstack(both, 2)
    assert float(jnp.abs(first.state.params["embed"] - second.state.params["embed"]).max()) > 1e-3


def test_the_random_key_follows_the_step() -> None:
    """Dropout differs from step to step, and a resumed run draws what an uninterrupted one does."""
    drawn = toy.LARGE._replace(
        loss=lambda params, batch, key: (
            toy.LARGE.loss(params, batch, None)[0] * 0
            + (0 if key is None else jax.random.uniform(key)),
            1,
        )
    )
    engine = from_loss(drawn, toy.tx())
    params = toy.LARGE.init(jax.random.key(0))
    state = engine.init(params, toy.tx().init(params), jax.random.key(7))
    step = jax.jit(engine.step)
    losses = []
    for _ in range(3):
        state, metrics = step(state, toy.batch(0, 0))
        losses.append(float(metrics["train_loss"]))
    assert len(set(losses)) == 3
    expected = [
        float(jax.random.uniform(jax.random.fold_in(jax.random.key(7), step))) for step in range(3)
    ]
    assert losses == pytest.approx(expected)


def test_evaluation_adds_up_over_shards() -> None:
    state, _ = lane()
    sums, counts = compiled(1).evaluate(state.state, SHARDS)
    total, count = toy.LARGE.loss(state.state.params, np.concatenate(toy.VALID), None)
    assert float(jnp.sum(sums)) == pytest.approx(float(total), rel=1e-6)
    assert float(jnp.sum(counts)) == count


def test_flops_of_products_scans_branches_and_convolutions() -> None:
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    assert flops(jnp.dot, a, b) == 2 * 3 * 4 * 5
    assert flops(jax.jit(jnp.dot), a, b) == 2 * 3 * 4 * 5
    square = jnp.ones((4, 4))
    assert (
        flops(
            lambda x: jax.lax.scan(lambda c, _: (c @ square, None), x, None, length=7)[0],
            a,
        )
        == 7 * 2 * 3 * 16
    )
    assert (
        flops(
            lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ b @ b.T, lambda x: x, x),
            a,
        )
        == 2 * 2 * 60
    )
    assert flops(jax.checkpoint(jnp.dot), a, b) == 120
    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 6))
    convolve = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert flops(convolve, images, kernel) == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 3)
    batched = jnp.ones((5, 3, 4)), jnp.ones((5, 4, 2))
    assert flops(jax.vmap(jnp.dot), *batched) == 5 * 2 * 3 * 4 * 2


def test_chunks_are_nearly_equal_and_fit() -> None:
    one = compiled(1)
    limit = fitting_lanes(one._replace(bytes=1), 14)
    assert limit == 14
    import os

    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    assert fitting_lanes(one._replace(bytes=half // 10), 14) == 7
    assert fitting_lanes(one._replace(bytes=half * 10), 14) == 1


def test_lanes_are_measured_with_several_data_orders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is clearly faster is taken, whatever the number of seeds; on a CPU nothing is measured."""
    single = program(ENGINE, lane()[1], steps_of(toy.batch, [0], 0, 1, 8), SHARDS, 1, 8)
    batches, made = steps_of(toy.batch, [0, 1], 0, 2, 8), []

    def many(lanes: int):
        made.append(lanes)
        return compiled(lanes)

    assert choose_lanes(single, many, 4, lane()[0], batches) == 1 and not made
    monkeypatch.setattr(probe, "CLEARLY", 1e-9)
    assert faster(single, compiled(2), lane()[0], batches)
    monkeypatch.setattr(probe, "CLEARLY", 1e9)
    assert not faster(single, compiled(2), lane()[0], batches)


def test_batches_are_a_function_of_seed_and_step() -> None:
    made = steps_of(toy.batch, [3, 4], 10, 2, 4)
    assert made.shape == (2, 4, 4, 9)
    for row, seed in enumerate((3, 4)):
        for index in range(2):
            np.testing.assert_array_equal(made[row, index], toy.batch(seed, 10 + index))


def test_public_names() -> None:
    assert all(hasattr(lagjax, name) for name in lagjax.__all__)
