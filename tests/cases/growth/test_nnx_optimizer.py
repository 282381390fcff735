"""The state of nnx.Optimizer, as users of nnx have it, carried over a growth.

It must go in as nnx's own optimizer holds it, and come out the same way.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lagjax
from lagjax.growth import width
from lagjax.state import carry
from tests.cases.growth.growing import grow

AXES = lagjax.Axes(
    {
        "up/kernel": "<inp >mlp",
        "up/bias": ">mlp",
        "down/kernel": "<mlp >out",
        "down/bias": ">out",
    },
    {"mlp": lagjax.Units("relu")},
)


class Net(nnx.Module):
    def __init__(self, size, rngs):
        self.up = nnx.Linear(5, size, rngs=rngs)
        self.down = nnx.Linear(size, 3, rngs=rngs)


def same(state):
    return state


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(same, id="as the optimizer holds it"),
        pytest.param(nnx.as_pure, id="pure"),
    ],
)
def test_moments_are_carried(given):
    net, tx = Net(4, nnx.Rngs(0)), optax.adam(1e-3)
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
    optimizer.update(net, jax.tree.map(jnp.ones_like, nnx.state(net, nnx.Param)))
    target = lagjax.Model(
        lambda key: given(nnx.state(Net(8, nnx.Rngs(key)), nnx.Param)), None, AXES
    )
    params, state = given(nnx.state(net, nnx.Param)), given(optimizer.opt_state)
    plan, large = grow(lagjax.Grow(width={"mlp": width.Tile()}), params, AXES, target)
    made = carry(plan, state, params, large, tx, "continue")
    assert jax.tree.structure(made) == jax.tree.structure(
        given(nnx.Optimizer(Net(8, nnx.Rngs(1)), tx, wrt=nnx.Param).opt_state)
    )
    small, grown = (nnx.as_pure(each)[0].mu["up"]["kernel"] for each in (state, made))
    np.testing.assert_allclose(grown, np.tile(small, (1, 2)) / 2, rtol=1e-6)
