"""`scale_by_growth` inside optax.partition or masked: freezing, Muon with Adam, decay by groups.

Wherever it stands in the chain it must be told of the growth, for the parameters that it sees.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagjax
from lagjax.growth import width
from lagjax.state import ScaleByGrowthState, carry
from tests.cases.growth.growing import drawn, grow

AXES = lagjax.Axes(
    {"up": "<inp >mlp", "bias": ">mlp", "down": "<mlp >out"}, {"mlp": lagjax.Units("tanh")}
)


def init(size):
    shapes = {"up": (5, size), "bias": (size,), "down": (size, 3)}
    return lambda key: {name: jnp.ones(shape) for name, shape in shapes.items()}


def labels(params):
    return jax.tree.map(lambda x: "vector" if x.ndim == 1 else "matrix", params)


def matrices(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


def parts(matrix):
    return optax.partition({"matrix": matrix, "vector": optax.sgd(1e-3)}, labels)


OWN = optax.chain(optax.adam(1e-3), lagjax.scale_by_growth())
TRANSFORMATIONS = {
    "chain": OWN,
    "partition": parts(OWN),
    "masked": optax.masked(OWN, matrices),
    "multi steps": optax.MultiSteps(OWN, 2),
    "injected": optax.chain(optax.inject_hyperparams(optax.adam)(1e-3), lagjax.scale_by_growth()),
    "around": optax.chain(parts(optax.adam(1e-3)), lagjax.scale_by_growth()),
}


@pytest.mark.parametrize("tx", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)
def test_is_told_of_the_growth(tx):
    params, target = drawn(init(4)), lagjax.Model(init(8), None, AXES)
    plan, large = grow(lagjax.Grow(width={"mlp": width.Tile()}), params, AXES, target)
    state = carry(plan, tx.init(params), params, large, tx, "continue")
    tx.update(large, state, large)

    def of_growth(node):
        return isinstance(node, ScaleByGrowthState)

    (told,) = filter(of_growth, jax.tree.leaves(state, is_leaf=of_growth))
    # Inputs that were copied twice.
    np.testing.assert_array_equal(told.factors["down"], np.full((8, 3), 0.5))
    np.testing.assert_array_equal(told.factors["up"], np.ones((5, 8)))
