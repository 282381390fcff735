"""The compiled step: one compilation, any number of steps, several trials, FLOPs."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagjax
from lagjax import probe
from lagjax.engine import Trained, from_loss
from lagjax.flops import flops
from lagjax.probe import choose_at_once, faster, fitting, program, stack, steps_of, unstack
from tests import toy

ENGINE = from_loss(toy.LARGE, toy.tx())
SHARDS = np.stack(toy.VALID)
ALL = np.int32(len(SHARDS))


STEP, LOSS = jax.jit(ENGINE.step), jax.jit(toy.LARGE.loss)


@functools.cache
def fresh(seed: int):
    params = jax.jit(toy.LARGE.init)(jax.random.key(seed))
    return ENGINE.init(Trained(params, jax.jit(toy.tx().init)(params)), jax.random.key(seed))


def began(seed: int = 0):
    """With arrays of its own, for a step that takes its state's memory over."""
    return jax.tree.map(jnp.copy, fresh(seed))


@functools.cache
def compiled(at_once: int):
    return program(ENGINE, began(), steps_of(toy.batch, [0, 1], 0, 1, 8), SHARDS, at_once, 8)


def test_the_partition_of_steps_does_not_matter() -> None:
    """Bitwise: 8 steps are 3 + 5, and 1 + 7; and so is what each step measured."""
    one = compiled(1)
    results, measured = [], []
    for cut in (8, 3, 1):
        state, rows = began(), []
        for start, count in ((0, cut), (cut, 8 - cut)):
            if count:
                batches = steps_of(toy.batch, [0, 1], start, count, 8)
                state, buffer = one.advance(state, batches, np.int32(1), np.int32(count))
                assert buffer.shape == (8, len(one.metrics), 2)
                assert not np.any(buffer[count:])
                rows.append(np.asarray(buffer)[:count])
        results.append(jax.device_get(state.params))
        measured.append(np.concatenate(rows))
    chex.assert_trees_all_equal(*results)
    chex.assert_trees_all_equal(*measured)


def test_every_steps_metrics_are_in_the_buffer() -> None:
    """The loss of a step is that of its batch before the update, a sum and a count."""
    one, state = compiled(1), began()
    expected = []
    for step in range(3):
        total, count = LOSS(state.params, toy.batch(0, step), None)
        expected.append((float(total), float(count)))
        state = STEP(state, toy.batch(0, step))[0]
    batches = steps_of(toy.batch, [0, 1], 0, 3, 8)
    _, buffer = one.advance(began(), batches, np.int32(0), np.int32(3))
    assert one.metrics == ("grad_norm", "loss", "lr", "update_norm")
    np.testing.assert_allclose(buffer[:3, 1], expected, rtol=1e-5)
    # A rate is a reading: its count is 0.
    np.testing.assert_allclose(
        buffer[:3, 2, 0], [3e-3 * (1 - x / 200) for x in range(3)], rtol=1e-5
    )
    np.testing.assert_array_equal(buffer[:3, 2, 1], 0)


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"accuracy": (1.0, 1.0)}, "expected 'loss' among them"),
        ({"loss": (1.0, 1.0), "accuracy": (0.5,)}, "the metric 'accuracy' returned the shapes"),
        ({"loss": (jnp.ones(2), 1.0)}, "expected two scalars"),
    ],
)
def test_metrics_that_do_not_add_up_are_refused(metrics: dict, says: str) -> None:
    engine = ENGINE._replace(step=lambda state, batch: (state, metrics))
    with pytest.raises(ValueError, match=says):
        program(engine, began(), steps_of(toy.batch, [0], 0, 1, 8), SHARDS, 1, 8)


def test_traced_once() -> None:
    traces = []

    def loss(params: object, batch: jax.Array, key: object) -> tuple:
        traces.append(key)
        return toy.LARGE.loss(params, batch, key)

    engine = from_loss(toy.LARGE._replace(loss=loss), toy.tx())
    state = began()
    one = program(engine, state, steps_of(toy.batch, [0], 0, 1, 8), SHARDS, 1, 8)
    before = len(traces)
    for count in (1, 5, 8):
        batches = steps_of(toy.batch, [0], 0, count, 8)
        state, _ = one.advance(state, batches, np.int32(0), np.int32(count))
        one.evaluate(state, SHARDS, ALL)
    assert len(traces) == before


def test_trials_see_their_own_data_order_and_only_theirs() -> None:
    one, two = compiled(1), compiled(2)
    batches = steps_of(toy.batch, [0, 1], 0, 8, 8)
    orders = np.array([0, 1], np.int32)
    both, buffers = two.advance(stack([began(3), began(3)]), batches, orders, np.int32(8))
    for order, made in enumerate(unstack(both, 2)):
        alone, buffer = one.advance(began(3), batches, np.int32(order), np.int32(8))
        chex.assert_trees_all_close(made.params, alone.params, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(buffers[order], buffer, rtol=1e-3, atol=1e-5)
    first, second = unstack(both, 2)
    assert float(jnp.abs(first.params["embed"] - second.params["embed"]).max()) > 1e-3


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
    state = fresh(0)._replace(key=jax.random.key(7))
    step = jax.jit(engine.step)
    losses = []
    for _ in range(3):
        state, metrics = step(state, toy.batch(0, 0))
        losses.append(float(metrics["loss"][0]))
    assert len(set(losses)) == 3
    expected = [
        float(jax.random.uniform(jax.random.fold_in(jax.random.key(7), step))) for step in range(3)
    ]
    assert losses == pytest.approx(expected)


def test_evaluation_adds_up_over_shards() -> None:
    state = began()
    sums, counts = compiled(1).evaluate(state, SHARDS, ALL)["loss"]
    total, count = LOSS(state.params, np.concatenate(toy.VALID), None)
    assert float(jnp.sum(sums)) == pytest.approx(float(total), rel=1e-6)
    assert float(jnp.sum(counts)) == count
    # Or over the first ones alone.
    some, counts = compiled(1).evaluate(state, SHARDS, np.int32(2))["loss"]
    np.testing.assert_array_equal(some[:2], sums[:2])
    assert not some[2:].any() and not counts[2:].any()


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
    limit = fitting(one._replace(bytes=1), 14)
    assert limit == 14
    import os

    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    assert fitting(one._replace(bytes=half // 10), 14) == 7
    assert fitting(one._replace(bytes=half * 10), 14) == 1


def test_what_is_clearly_faster_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of seeds; on a CPU nothing is measured, nor compiled."""
    single = program(ENGINE, began(), steps_of(toy.batch, [0], 0, 1, 8), SHARDS, 1, 8)
    batches, made = steps_of(toy.batch, [0, 1], 0, 2, 8), []
    assert choose_at_once(made.append, 4, began, lambda: batches) == 1 and not made
    monkeypatch.setattr(probe, "CLEARLY", 1e-9)
    assert faster(single, compiled(2), began(), batches)
    monkeypatch.setattr(probe, "CLEARLY", 1e9)
    assert not faster(single, compiled(2), began(), batches)


def test_batches_are_a_function_of_seed_and_step() -> None:
    made = steps_of(toy.batch, [3, 4], 10, 2, 4)
    assert made.shape == (2, 4, 4, 9)
    for row, seed in enumerate((3, 4)):
        for index in range(2):
            np.testing.assert_array_equal(made[row, index], toy.batch(seed, 10 + index))
        # Padded with the last one, which is not asked for again.
        np.testing.assert_array_equal(made[row, 3], toy.batch(seed, 11))


def test_a_batch_is_asked_for_once() -> None:
    asked = []
    steps_of(lambda seed, step: asked.append((seed, step)) or np.zeros(1), [0, 1], 5, 2, 8)
    assert asked == [(0, 5), (0, 6), (1, 5), (1, 6)]


def test_public_names() -> None:
    assert all(hasattr(lagjax, name) for name in lagjax.__all__)
