"""LayerScale (CaiT, DINOv2, ConvNeXt): a vector multiplies what a sublayer adds to the stream.

A table can say so; where it says something else, the certificate finds the row.
"""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

import lagjax
from lagjax.growth import width
from tests.cases.growth.growing import apart, blamed, drawn, grow

LAYER = r"layers_(?P<layers>\d+)_"
BASE = {
    "inp/kernel": "<x >embed",
    "inp/bias": ">embed",
    LAYER + "up/kernel": "<embed >mlp",
    LAYER + "up/bias": ">mlp",
    LAYER + "norm/scale": "embed",
    "final_norm/scale": "embed",
    "head/kernel": "<embed >y",
    "head/bias": ">y",
}
TOLD = (("*embed", "<mlp >embed+"), ("*embed+", "<mlp >embed*"))
WRONG = (
    ("embed+", "<mlp >embed"),
    (">embed+", "<mlp >embed"),
    ("embed", "<mlp >embed+"),
    ("<embed", "<mlp >embed+"),
    ("+embed", "<mlp >embed+"),
)
WAYS = {
    "tile": lagjax.Grow(width={"embed": width.Tile()}),
    "zero-pad": lagjax.Grow(width={"embed": width.ZeroPad()}),
    "isometric": lagjax.Grow(width={"embed": width.Isometric()}),
    "deeper": lagjax.Grow(depth="0 0* 1 1*"),
}


class Net(nn.Module):
    width: int
    layers: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, name="inp")(x)
        for i in range(self.layers):
            h = nn.Dense(12, name=f"layers_{i}_up")(nn.RMSNorm(1e-12, name=f"layers_{i}_norm")(x))
            h = nn.Dense(self.width, name=f"layers_{i}_down", use_bias=False)(nn.gelu(h))
            tenth = nn.initializers.constant(0.1)
            x = x + h * self.param(f"layers_{i}_gamma", tenth, (self.width,))
        return nn.Dense(3, name="head")(nn.RMSNorm(1e-12, name="final_norm")(x))


INPUTS = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


@functools.cache
def functions(size, layers):
    net = Net(size, layers)

    def init(key):
        return net.init(key, INPUTS)["params"]

    return init, jax.jit(lambda params: net.apply({"params": params}, INPUTS))


def setting(gamma, down, way):
    """The table, the small model's parameters and outputs, and the large model."""
    kinds = {"embed": lagjax.Residual(lagjax.RMSNorm()), "mlp": lagjax.Units("gelu")}
    axes = lagjax.Axes(BASE | {LAYER + "down/kernel": down, LAYER + "gamma": gamma}, kinds)
    init, small = functions(8, 2)
    init_large, large = functions(8, 4) if way == "deeper" else functions(16, 2)
    # Drawn here, and not each time that a certificate grows the model.
    fresh = drawn(init_large, seed=1)
    target = lagjax.Model(lambda key: fresh, None, axes, lambda params, batch: large(params))
    return axes, drawn(init, 0.7), small, target


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("gamma", "down"), TOLD)
def test_what_is_called_exact_is(gamma, down, way):
    axes, params, small, large = setting(gamma, down, way)
    plan, grown = grow(WAYS[way], params, axes, large)
    assert plan.exact_by_table
    assert apart(large.apply(grown, None), small(params)) < 1e-4


@pytest.mark.parametrize(("gamma", "down"), WRONG)
def test_a_row_that_says_something_else_is_found(gamma, down):
    """Where it matters; read along with even shares, for one, its factor is the same."""
    axes, params, small, large = setting(gamma, down, "isometric")
    ((axis, leaf, why),) = blamed(WAYS["isometric"], params, axes, large, small)
    right = gamma.lstrip("<>+")
    assert (axis, leaf) == ("embed", "layers_{layers}_gamma")
    assert why == f"outputs agree once its row is '*{right}' instead of {gamma!r}"
