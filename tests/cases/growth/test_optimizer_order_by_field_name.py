"""Statistics in states of optax whose field name does not tell their order in the gradient.

The `nu` of adamax is a running maximum of |g|, order 1; the `trace` of rmsprop with momentum, what
follows Adam in a chain, and adopt's `mu` hold updates that are normalised already, order 0. The
truth is measured: both models are shown the same data at a learning rate of 0, and the grown state
must be what the grown model's own is, or be refused.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagjax
from lagjax.algebra.layout import flatten
from lagjax.growth import width
from lagjax.state import carry
from tests.cases.growth.growing import drawn, grow

AXES = lagjax.Axes({"up": "<inp >mlp", "down": "<mlp >out"}, {"mlp": lagjax.Units("tanh")})
TRANSFORMATIONS = {
    "adam": optax.adam(1e-3),
    "lion": optax.lion(1e-3),
    "adabelief": optax.adabelief(1e-3),
    # Its initial value, 1e-6, does not grow, and may be off.
    "yogi": optax.yogi(1e-3),
}
OTHERS = {
    "adamax": optax.adamax(1e-3),
    "rmsprop with momentum": optax.rmsprop(1e-3, momentum=0.9, initial_scale=0.0),
    "adam, then trace": optax.chain(optax.scale_by_adam(), optax.trace(0.9), optax.scale(-1e-3)),
    "adam, then ema": optax.chain(optax.scale_by_adam(), optax.ema(0.9), optax.scale(-1e-3)),
    "adopt": optax.contrib.adopt(1e-3),
    "lars": optax.lars(1e-3),
}


def init(size):
    return lambda key: {"up": jnp.ones((5, size)), "down": jnp.ones((size, 3))}


def loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["up"]) @ params["down"] - y) ** 2)


def gradients(params):
    """Those of ten batches."""
    draw = np.random.default_rng(0)
    batches = (draw.normal(size=(10, 32, 5)), draw.normal(size=(10, 32, 3)))
    return jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, batches)


@functools.cache
def models():
    """The plan, and both models' parameters with their gradients."""
    params, target = drawn(init(4), 1.0), lagjax.Model(init(8), None, AXES)
    plan, large = grow(lagjax.Grow(width={"mlp": width.Tile()}), params, AXES, target)
    assert plan.exact_by_table
    return plan, (params, gradients(params)), (large, gradients(large))


def shown(tx, params, all_of_them):
    """The state after the gradients of ten batches, none of them applied."""

    def step(state, gradient):
        return tx.update(gradient, state, params)[1], None

    return jax.jit(lambda all: jax.lax.scan(step, tx.init(params), all)[0])(all_of_them)


@pytest.mark.parametrize(
    ("name", "tx"),
    [*TRANSFORMATIONS.items(), *OTHERS.items()],
    ids=[*TRANSFORMATIONS, *OTHERS],
)
def test_grown_statistics_are_those_of_the_grown_model(name, tx):
    plan, (params, of_small), (large, of_large) = models()
    state, truth = shown(tx, params, of_small), shown(tx, large, of_large)
    try:
        made = carry(plan, state, params, large, tx, "continue")
    except ValueError:
        return
    for path, value in flatten(truth).items():
        beginning = 1e-6 if name == "yogi" else 0.0
        np.testing.assert_allclose(flatten(made)[path], value, 0.02, beginning, err_msg=path)
