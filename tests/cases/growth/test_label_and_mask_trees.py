"""optax.partition, masked and adamw(mask=...) given trees, as documented, and then two layers more.

A tree of labels or of a mask fits one model only; the state must be carried all the same, whether
the labels are a function, or a tree of the small model or of the large one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagjax
from lagjax.algebra.layout import flatten
from lagjax.state import carry
from tests.cases.growth.growing import grow

AXES = lagjax.Axes(
    {
        "inp": "<x >embed",
        r"layers_(?P<layers>\d+)/w": "<embed >embed+",
        r"layers_(?P<layers>\d+)/b": ">embed+",
    },
    {"embed": lagjax.Residual(None)},
)


def model(layers):
    def init(key):
        made = {"inp": jax.random.normal(key, (5, 4))}
        for i in range(layers):
            weights = jax.random.normal(jax.random.fold_in(key, i), (4, 4))
            made[f"layers_{i}"] = {"w": 0.1 * weights, "b": jnp.zeros(4)}
        return made

    return lagjax.Model(init, None, AXES)


def labels(params):
    return jax.tree.map(lambda x: "decay" if x.ndim > 1 else "plain", params)


def mask(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


def at(how, params):
    """A function of the parameters, or its value."""
    return how if params is None else how(params)


MAKERS = {
    "partition": lambda of: optax.partition(
        {"decay": optax.adamw(1e-3), "plain": optax.adam(1e-3)}, at(labels, of)
    ),
    "masked": lambda of: optax.masked(optax.adam(1e-3), at(mask, of)),
    "adamw": lambda of: optax.adamw(1e-3, mask=at(mask, of)),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    "how",
    ["function", "tree of the small", "tree of the large"],
)
def test_moments_are_carried(make, how):
    small, target = model(2).init(jax.random.key(0)), model(4)
    plan, large = grow(lagjax.Grow(depth="0 0 1 1"), small, AXES, target)
    tx = make(None if how == "function" else small)
    _, state = tx.update(small, tx.init(small), small)
    if how == "tree of the large":
        tx = make(large)
    made = flatten(carry(plan, state, small, large, tx, "continue"))
    wanted = flatten(large)
    moments = {path: x for path, x in made.items() if "mu/" in path}
    assert moments
    for path, moment in moments.items():
        np.testing.assert_allclose(moment, 0.1 * wanted[path.partition("mu/")[2]], rtol=1e-6)
