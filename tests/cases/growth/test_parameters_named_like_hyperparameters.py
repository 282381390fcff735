"""Biases named b1 and b2, as in hand-written nets, and a scalar parameter named eps.

optax.inject_hyperparams keeps its hyperparameters in a dict under the same names: they must not be
taken for the parameters' statistics. Nor must a lone array, whose path is empty, be lost.
"""

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

KINDS = {"mlp": lagjax.Units("relu")}
ROWS = {"w1": "<inp >mlp", "b1": ">mlp", "w2": "<mlp >out", "b2": ">out"}
TRANSFORMATIONS = {
    "adam": optax.adam(1e-3),
    "injected adam": optax.inject_hyperparams(optax.adam)(1e-3),
    "injected momentum": optax.inject_hyperparams(optax.sgd)(1e-3, momentum=0.9),
}


def check(axes, init, tx):
    params, target = drawn(init(4)), lagjax.Model(init(8), None, axes)
    plan, large = grow(lagjax.Grow(width={"mlp": width.Tile()}), params, axes, target)
    _, state = tx.update(params, tx.init(params), params)
    made = carry(plan, state, params, large, tx, "continue")
    wanted = jax.eval_shape(tx.init, large)
    assert jax.tree.structure(made) == jax.tree.structure(wanted)
    for path, value in flatten(made).items():
        assert value.shape == flatten(wanted)[path].shape
        if "hyperparams/" in path:
            np.testing.assert_array_equal(value, flatten(state)[path])


@pytest.mark.parametrize("tx", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)
@pytest.mark.parametrize("scalar", [False, True], ids=["b1 and b2", "eps too"])
def test_moments_are_carried(tx, scalar):
    def init(size):
        shapes = {"w1": (5, size), "b1": (size,), "w2": (size, 3), "b2": (3,)}
        shapes |= {"eps": ()} if scalar else {}
        return lambda key: {name: jnp.ones(shape) for name, shape in shapes.items()}

    check(lagjax.Axes(ROWS | ({"eps": ""} if scalar else {}), KINDS), init, tx)


def test_a_lone_array():
    axes = lagjax.Axes({"": ">mlp"}, KINDS)
    check(axes, lambda size: lambda key: jnp.ones(size), TRANSFORMATIONS["adam"])
