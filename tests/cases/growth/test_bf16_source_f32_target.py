"""A checkpoint in bfloat16, as models are released, grown into a model that trains in float32.

It must compute what the checkpoint computes once it is cast: shares such as 1/3 are not to be
rounded to bfloat16.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagjax
from lagjax.growth import width
from tests.cases.growth.growing import apart, grow

AXES = lagjax.Axes({"up": "<inp >mlp", "down": "<mlp >out"}, {"mlp": lagjax.Units("relu")})


def outputs(params, x):
    hidden = jax.nn.relu(jnp.matmul(x, params["up"], precision="highest"))
    return jnp.matmul(hidden, params["down"], precision="highest")


def rounded():
    draw = np.random.default_rng(0)
    return {
        "up": jnp.asarray(draw.normal(size=(64, 128)), jnp.bfloat16),
        "down": jnp.asarray(draw.normal(size=(128, 32)), jnp.bfloat16),
    }


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (256, jnp.float32),
        (256, jnp.bfloat16),
        (384, jnp.float32),
        (384, jnp.bfloat16),
    ],
)
def test_computes_the_same(size, dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), rounded())
    x = jnp.asarray(np.random.default_rng(1).normal(size=(16, 64)), jnp.float32)
    target = lagjax.Model(
        lambda key: {"up": jnp.zeros((64, size)), "down": jnp.zeros((size, 32))}, None, AXES
    )
    _, grown = grow(lagjax.Grow(width={"mlp": width.Tile()}), params, AXES, target)
    wanted = outputs(jax.tree.map(lambda x: x.astype(jnp.float32), params), x)
    assert apart(outputs(grown, x), wanted) < 1e-4
