"""Trees that have more in them than arrays of numbers.

A leaf must be kept as it is where nothing is to be done with it, or be refused by a ValueError that
names it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

import lagjax
from lagjax.growth import width


def base(size):
    return {"up": jnp.ones((5, size)), "down": jnp.ones((size, 3))}


LEAVES = {
    "numpy scalar": ("", lambda size: np.float32(2.5)),
    "array without axes": ("", lambda size: jnp.asarray(2.5)),
    "None": (None, lambda size: None),
    "empty dict": (None, lambda size: {}),
    "old key": ("2", lambda size: jax.random.PRNGKey(1)),
    "bool mask": (">mlp", lambda size: jnp.ones(size, bool)),
    "int32 counter": ("", lambda size: jnp.asarray(16777217)),
    "Python float": ("", lambda size: 2.5),
    "typed key": ("", lambda size: jax.random.key(1)),
    "string": ("", lambda size: "gpt"),
}


def grown(row, leaf, wrap=lambda tree: tree):
    rows = {"up": "<inp >mlp", "down": "<mlp >out"} | ({} if row is None else {"odd": row})
    axes = lagjax.Axes(rows, {"mlp": lagjax.Units("relu")})

    def tree(size):
        return wrap(base(size) | {"odd": leaf(size)})

    target = lagjax.Model(lambda key: tree(8), None, axes)
    return lagjax.Grow(width={"mlp": width.Tile()})(jax.random.key(0), tree(4), axes, target)


def check(row, leaf, wrap=lambda tree: tree):
    try:
        made = grown(row, leaf, wrap)
    except ValueError as error:
        assert "odd" in str(error)
        return
    assert jax.tree.structure(made["odd"]) == jax.tree.structure(leaf(8))
    assert type(made) is type(wrap({}))
    for one, other in zip(jax.tree.leaves(made["odd"]), jax.tree.leaves(leaf(8))):
        assert bool(jnp.all(one == other))


@pytest.mark.parametrize(("row", "leaf"), LEAVES.values(), ids=LEAVES)
def test_is_kept_or_refused(row, leaf):
    check(row, leaf)


def test_frozen_dicts():
    check("", lambda size: jnp.asarray(2.5), freeze)


def test_a_leaf_without_a_row_is_named():
    axes = lagjax.Axes({"up": "<inp >mlp", "down": "<mlp >out"}, {"mlp": lagjax.Units("relu")})
    params = base(4) | {"model.layers.0.w": jnp.ones((2, 2))}
    target = lagjax.Model(lambda key: base(8), None, axes)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.w"):
        lagjax.Grow(width={"mlp": width.Tile()})(jax.random.key(0), params, axes, target)
