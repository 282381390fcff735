"""Gradual stacking and staged training: a model is grown, trained, and grown again.

`scale_by_growth` at the end of the chain must remember the first growth at the second: the model
must follow the small one's path as after one growth, and what was new at the first growth must keep
the count of its own steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagjax
from lagjax.growth import width
from lagjax.state import carry
from tests.cases.growth.growing import apart, grow

pytestmark = pytest.mark.usefixtures("double")
AXES = lagjax.Axes(
    {
        "inp": "<x >embed",
        r"layers_(?P<layers>\d+)/up": "<embed >mlp",
        r"layers_(?P<layers>\d+)/down": "<mlp >embed+",
        "out": "<embed >y",
    },
    kinds={"mlp": lagjax.Units("tanh"), "embed": lagjax.Residual(None)},
)
TX = optax.chain(optax.scale_by_adam(eps=1e-30), optax.scale(-3e-3), lagjax.scale_by_growth())


def model(size, layers=2):
    shapes = {"inp": (5, 4), "out": (4, 3)}
    shapes |= {f"layers_{i}": {"up": (4, size), "down": (size, 4)} for i in range(layers)}

    def init(key):
        return jax.tree.map(
            lambda shape: 0.3 * jax.random.normal(key, shape),
            shapes,
            is_leaf=lambda shape: isinstance(shape, tuple),
        )

    return lagjax.Model(init, None, AXES)


def outputs(params, x):
    x = x @ params["inp"]
    for i in range(len(params) - 2):
        x = x + jnp.tanh(x @ params[f"layers_{i}"]["up"]) @ params[f"layers_{i}"]["down"]
    return x @ params["out"]


def data():
    draw = np.random.default_rng(0)
    return (jnp.asarray(draw.normal(size=(60, 32, size))) for size in (5, 3))


@jax.jit
def trained(params, state, start, stop):
    xs, ys = data()

    def step(number, carried):
        params, state = carried
        gradient = jax.grad(
            lambda params: jnp.mean((outputs(params, xs[number]) - ys[number]) ** 2)
        )(params)
        updates, state = TX.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(start, stop, step, (params, state))


def grown(operator, params, state, target):
    plan, large = grow(operator, params, AXES, target)
    return plan, large, carry(plan, state, params, large, TX, "continue")


def small():
    params = model(4).init(jax.random.key(3))
    return trained(params, TX.init(params), 0, 20)


@pytest.mark.parametrize(
    "times",
    [pytest.param(1, marks=pytest.mark.slow), 2],
    ids=["grown once", "grown twice"],
)
def test_follows_the_small_models_path(times):
    params, state = followed, of_followed = small()
    for number in range(times):
        operator = lagjax.Grow(width={"mlp": width.Tile()})
        plan, params, state = grown(operator, params, state, model(8 * 2**number))
        assert plan.exact_by_table
        start = 20 * (number + 1)
        params, state = trained(params, state, start, start + 18)
        followed, of_followed = trained(followed, of_followed, start, start + 18)
    x, _ = data()
    assert apart(outputs(params, x[59]), outputs(followed, x[59])) < 1e-9


def test_what_was_new_keeps_its_own_count():
    operator = lagjax.Grow(width={"mlp": width.RandomIn()})
    _, params, state = grown(operator, *small(), model(8))
    params, state = trained(params, state, 20, 25)
    _, _, after = grown(lagjax.Grow(depth="0 1 1*"), params, state, model(8, 3))
    one, other = (each[-1].unseen["layers_0"]["down"] for each in (state, after))
    assert one.any()
    assert other.sum() >= one.sum()
