"""A checkpoint with int8 weights and float scales, as post-training quantisation leaves it.

Integers cannot be multiplied by a share of 1/2: growing must be right, or be refused, and never be
called exact with weights that were rounded to 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagjax
from lagjax.growth import width
from tests.cases.growth.growing import apart, grow

AXES = lagjax.Axes(
    {"up/q": "<inp >mlp", "up/scale": ">mlp", "down/q": "<mlp >out", "down/scale": ">out"},
    {"mlp": lagjax.Units("relu")},
)


def quantised(weights):
    scale = np.abs(weights).max(0) / 127
    return {
        "q": jnp.asarray(np.round(weights / scale), jnp.int8),
        "scale": jnp.asarray(scale, jnp.float32),
    }


def outputs(params, x):
    up, down = (params[name]["q"] * params[name]["scale"] for name in ("up", "down"))
    return jax.nn.relu(x @ up) @ down


def blank(size):
    return {
        "up": {"q": jnp.zeros((5, size), jnp.int8), "scale": jnp.ones(size)},
        "down": {"q": jnp.zeros((size, 3), jnp.int8), "scale": jnp.ones(3)},
    }


@pytest.mark.parametrize(
    "way",
    [
        width.Tile(),
        width.RandomIn(),
        width.Tile(width.NoisySplit(0.1)),
    ],
    ids=["tile", "random in", "tile with noise"],
)
def test_what_is_called_exact_is(way):
    draw = np.random.default_rng(0)
    params = {
        "up": quantised(draw.normal(size=(5, 4))),
        "down": quantised(draw.normal(size=(4, 3))),
    }
    x = jnp.asarray(draw.normal(size=(6, 5)), jnp.float32)
    target = lagjax.Model(lambda key: blank(8), None, AXES)
    try:
        plan, grown = grow(lagjax.Grow(width={"mlp": way}), params, AXES, target)
    except ValueError:
        return
    assert not plan.exact_by_table or apart(outputs(grown, x), outputs(params, x)) < 0.02


def test_a_layer_of_half_weight_is_of_half_weight():
    axes = lagjax.Axes(
        {r"layers_(?P<layers>\d+)/q": "<embed >embed+", r"layers_(?P<layers>\d+)/s": ">embed"},
        {"embed": lagjax.Residual(None)},
    )

    def layers(count):
        one = {"q": jnp.full((2, 2), 100, jnp.int8), "s": jnp.ones(2)}
        return {f"layers_{i}": one for i in range(count)}

    target = lagjax.Model(lambda key: layers(2), None, axes)
    try:
        _, grown = grow(lagjax.Grow(depth="0 0*0.5"), layers(1), axes, target)
    except ValueError:
        return
    added = grown["layers_1"]
    assert jnp.allclose((added["q"] * added["s"]).mean(), 50)
