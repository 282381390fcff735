"""Grown eagerly, outside of jit, a model and its state may be donated, and the small model
stays.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import lagjax
from lagjax.buffers import own
from lagjax.state import carry, collections, measure

AXES = lagjax.Axes(
    {
        "inp": "<x >embed",
        r"layers_(?P<layers>\d+)/w": "<embed >embed+",
        "out": "<embed >y",
    },
    kinds={"embed": lagjax.Residual(None, pre=True)},
)
KEY = jax.random.key(0)
TX = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(lambda count: -1e-3))


def model(layers: int) -> lagjax.Model:
    def init(key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, layers + 2)
        matrices = {
            f"layers_{i}": {"w": 0.1 * jax.random.normal(keys[i], (4, 4))} for i in range(layers)
        }
        inp, out = (
            jax.random.normal(one, shape) for one, shape in zip(keys[-2:], ((5, 4), (4, 3)))
        )
        return matrices | {"inp": inp, "out": out}

    def loss(params: Any, batch: Any, key: Any) -> tuple[jax.Array, jax.Array]:
        del key
        x = batch @ params["inp"]
        for i in range(layers):
            x = x + jnp.tanh(x @ params[f"layers_{i}"]["w"])
        return jnp.sum((x @ params["out"]) ** 2), jnp.asarray(batch.size)

    return lagjax.Model(init, loss, AXES)


def stepping(model: lagjax.Model) -> Callable[[Any, Any], tuple[Any, Any]]:
    """A train step that donates its state, as training loops do."""

    def step(params: Any, state: Any) -> tuple[Any, Any]:
        gradient = jax.grad(lambda params: model.loss(params, jnp.ones((2, 5)), None)[0])(params)
        updates, state = TX.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def deleted(tree: Any) -> list[str]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [jax.tree_util.keystr(keys) for keys, leaf in found if leaf.is_deleted()]


SMALL = model(2)


@pytest.mark.parametrize("schedule", ["restart", "continue", 3])
@pytest.mark.parametrize("moments", ["fresh", "grown"])
@pytest.mark.parametrize("word", ["0 1 0 1", "0 new 1 new", "0 1"])
def test_a_train_step_may_donate_what_was_grown(word: str, moments: str, schedule: Any) -> None:
    params = SMALL.init(KEY)
    params, state = stepping(SMALL)(params, TX.init(params))
    operator, large = lagjax.Grow(depth=word), model(len(word.split()))
    layouts = [AXES.layout(jax.eval_shape(each.init, KEY)) for each in (SMALL, large)]
    grown = operator(KEY, params, AXES, large)
    plan = operator.plan(KEY, *layouts) if moments == "grown" else None
    carried = carry(plan, state, params, grown, TX, schedule)
    step = stepping(large)
    step(*step(grown, carried))
    assert not deleted((params, state))


def test_the_baselines_too() -> None:
    params = SMALL.init(KEY)
    for operator in (lagjax.Same(), lagjax.FromScratch()):
        grown = operator(KEY, params, AXES, SMALL)
        stepping(SMALL)(grown, TX.init(grown))
        assert not deleted(params)


def test_nothing_is_copied_under_jit() -> None:
    params = SMALL.init(KEY)
    made = jax.make_jaxpr(lambda p: lagjax.Grow(depth="0 1 0 1")(KEY, p, AXES, model(4)))(params)
    assert "copy" not in str(made)


def test_only_what_is_held_twice_is_copied() -> None:
    one, two, three = jnp.zeros(3), jnp.zeros(3), jnp.zeros(3)
    made = own({"a": one, "b": two, "c": one, "d": three, "e": 1.0}, [three])
    assert made["a"] is one and made["b"] is two
    assert made["c"] is not one and made["d"] is not three
    pointers = {made[name].unsafe_buffer_pointer() for name in "abcd"}
    assert len(pointers | {three.unsafe_buffer_pointer()}) == 5


def test_one_buffer_may_have_two_arrays() -> None:
    one = jnp.ones(3)
    other = jax.device_put(one, jax.devices()[0])
    assert other is not one
    assert own([other], one)[0].unsafe_buffer_pointer() != one.unsafe_buffer_pointer()


def test_what_is_measured_or_begun_anew_shares_nothing() -> None:
    params = SMALL.init(KEY)
    state = TX.init(params)
    batches = [jnp.ones((2, 5))]
    found = (
        measure(SMALL, params, state, batches, TX, KEY),
        carry(None, state, params, params, TX, "continue"),
    )
    average = {"average": params}
    layout = AXES.layout(params)
    plan = lagjax.Grow(depth="0 1").plan(KEY, layout, layout)
    for how in (None, plan):
        found += (collections(how, average, average, AXES, AXES),)
    for made in found:
        given = jax.tree.leaves((params, state))
        pointers = [x.unsafe_buffer_pointer() for x in [*jax.tree.leaves(made), *given]]
        shared = len(given) - len({x.unsafe_buffer_pointer() for x in given})
        assert len(pointers) - len(set(pointers)) == shared
