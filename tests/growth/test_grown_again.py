"""Growing again and again: `scale_by_growth` remembers every growth, entry by entry."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagjax
from lagjax.algebra.layout import flatten
from lagjax.growth import width
from lagjax.state import carry
from tests.cases.growth import test_grown_twice as case
from tests.cases.growth.growing import apart

TX = case.TX


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def test_tiled_three_times_follows_the_small_model():
    params, state = followed, of_followed = case.small()
    for number, size in enumerate((8, 16, 48)):
        operator = lagjax.Grow(width={"mlp": width.Tile()})
        _, params, state = case.grown(operator, params, state, case.model(size))
        start = 20 + 6 * number
        params, state = case.trained(params, state, start, start + 6)
        followed, of_followed = case.trained(followed, of_followed, start, start + 6)
    x, _ = case.data()
    assert apart(case.outputs(params, x[59]), case.outputs(followed, x[59])) < 1e-12
    # 1/2, 1/2, 1/3.
    np.testing.assert_allclose(state[-1].factors["layers_0"]["down"], np.full((48, 4), 1 / 12))


def test_depth_in_between_keeps_what_the_originals_have():
    params, state = case.small()
    x, _ = case.data()
    words = {"width": {"mlp": width.Tile()}}, {"depth": "0 1 1*"}, {"width": {"mlp": width.Tile()}}
    born, steps = [], 20
    for how, target in zip(words, (case.model(8), case.model(8, 3), case.model(16, 3))):
        before = params, state
        _, params, state = case.grown(lagjax.Grow(**how), params, state, target)
        assert apart(case.outputs(params, x[0]), case.outputs(before[0], x[0])) < 1e-12
        assert int(state[0].count) == int(state[-1].steps) == steps
        born.append(state[-1].born)
        if "depth" in how:
            for part in ("factors", "born"):
                one, other = (flatten(getattr(each[-1], part)) for each in (before[1], state))
                for path in one:
                    np.testing.assert_array_equal(other[path], one[path])
            np.testing.assert_array_equal(
                state[0].mu["layers_1"]["up"], before[1][0].mu["layers_1"]["up"]
            )
        params, state = case.trained(params, state, steps, steps + 4)
        steps += 4
    # No gradient passes the copy's zeroed outputs: what is before them counts from the growth.
    assert (born[2]["layers_2"]["up"] == 24).all() and (born[2]["layers_2"]["down"] == -1).all()
    assert (born[2]["layers_1"]["up"] == -1).all()
    for layer, factor in (("layers_0", 1 / 4), ("layers_2", 1 / 4)):
        np.testing.assert_array_equal(state[-1].factors[layer]["down"], np.full((16, 4), factor))


def test_entries_of_each_age_make_their_own_first_steps():
    """Under one gradient of all, each entry's step is Adam's after as many steps as its own."""
    axes, state, params = lagjax.Axes({"w": ">x <y"}), None, {"w": jnp.ones((2, 2))}
    tx = optax.chain(optax.scale_by_adam(eps=0.0), lagjax.scale_by_growth(warmup=8))
    state = tx.init(params)
    gradient = lambda params: jax.tree.map(lambda x: jnp.full_like(x, 0.1), params)
    for size in (3, 4):
        for _ in range(3):
            _, state = tx.update(gradient(params), state, params)
        target = lagjax.Model(lambda key, n=size: {"w": jnp.ones((n, 2))}, None, axes)
        operator = lagjax.Grow(width={"x": width.RandomIn()})
        plan = operator.plan(jax.random.key(0), axes.layout(params), axes.layout(target.init(None)))
        large = target.init(None)
        state, params = carry(plan, state, params, large, tx, "continue"), large
    np.testing.assert_array_equal(state[1].born["w"][:, 0], [-1, -1, 3, 6])
    updates, _ = tx.update(gradient(params), state, params)
    np.testing.assert_allclose(updates["w"][:, 0], [1, 1, 4 / 8, 1 / 8], rtol=1e-6)
