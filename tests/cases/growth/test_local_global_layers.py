"""Depth growth where what a layer does hangs on its number.

Even layers attend in a window and odd ones to everything (Gemma 2, GPT-Neo), scores are divided by
the layer's number (scale_attn_by_inverse_layer_idx), or what is added is multiplied by
1.4 / √layers (MiniCPM's scale_depth). What is called exact must be exact.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagjax
from lagjax.growth.depth import Interleave, Scaled, Stack
from tests.cases.growth.growing import apart, drawn, grow

VOCAB, WIDTH, LENGTH = 13, 8, 10
INTERLEAVE, STACK = Scaled(Interleave()), Scaled(Stack())


class Block(nn.Module):
    window: int | None
    divide: float
    residual: float

    @nn.compact
    def __call__(self, x):
        h = nn.RMSNorm(name="n1")(x)
        q, k, v = (nn.DenseGeneral((2, 4), use_bias=False, name=name)(h) for name in "qkv")
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2 / self.divide
        i, j = jnp.arange(LENGTH)[:, None], jnp.arange(LENGTH)[None]
        seen = (j <= i) & (i - j < self.window) if self.window else j <= i
        heads = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(seen, scores, -1e9), -1), v)
        out = nn.DenseGeneral(WIDTH, axis=(-2, -1), use_bias=False, name="o")(heads)
        x = x + self.residual * out
        h = nn.gelu(nn.Dense(16, name="up")(nn.RMSNorm(name="n2")(x)))
        return x + self.residual * nn.Dense(WIDTH, name="down")(h)


class Net(nn.Module):
    layers: int
    mode: str

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCAB, WIDTH, name="embed")(tokens)
        for i in range(self.layers):
            window = 2 if self.mode == "window" and i % 2 == 0 else None
            divide = i + 1 if self.mode == "divided" else 1.0
            residual = 1.4 / np.sqrt(self.layers) if self.mode == "by depth" else 1.0
            x = Block(window, divide, residual, name=f"layers_{i}")(x)
        return nn.Dense(VOCAB, name="head", use_bias=False)(nn.RMSNorm(name="final_norm")(x))


BLOCK = {
    "n1/scale": "embed",
    "q/kernel": "<embed >heads >qk",
    "k/kernel": "<embed >heads <qk",
    "v/kernel": "<embed >heads >v",
    "o/kernel": "<heads <v >embed+",
    "n2/scale": "embed",
    "up/kernel": "<embed >mlp",
    "up/bias": ">mlp",
    "down/kernel": "<mlp >embed+",
    "down/bias": ">embed+",
}
REST = {
    "embed/embedding": "<vocab >embed",
    "final_norm/scale": "embed",
    "head/kernel": "<embed >out",
}
KINDS = {"embed": lagjax.Residual(lagjax.RMSNorm())}
PLAIN = lagjax.Axes(
    REST | {rf"layers_(?P<layers>\d+)/{path}": axes for path, axes in BLOCK.items()}, KINDS
)
# Rows by parity, with names that tell the two kinds of layers apart.
NAMED = lagjax.Axes(
    REST
    | {
        rf"layers_(?P<layers>\d*[{digits}])/{path}": f"{kind}/{path}: {axes}"
        for kind, digits in (("local", "02468"), ("global", "13579"))
        for path, axes in BLOCK.items()
    },
    KINDS,
)


@functools.cache
def functions(layers, mode):
    net, tokens = Net(layers, mode), np.random.default_rng(0).integers(VOCAB, size=(3, LENGTH))

    def init(key):
        return net.init(key, tokens)["params"]

    return init, jax.jit(lambda params: net.apply({"params": params}, tokens))


BY_NUMBER = pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="nothing says that what a layer computes hangs on its number",
)


@pytest.mark.parametrize(
    ("mode", "axes", "how"),
    [
        pytest.param("none", PLAIN, INTERLEAVE, id="all alike, interleaved"),
        pytest.param("none", PLAIN, STACK, id="all alike, stacked"),
        pytest.param("window", PLAIN, INTERLEAVE, id="window, interleaved", marks=BY_NUMBER),
        pytest.param("window", PLAIN, STACK, id="window, stacked"),
        pytest.param("window", NAMED, INTERLEAVE, id="window, two kinds, interleaved"),
        pytest.param("window", NAMED, STACK, id="window, two kinds, stacked"),
        pytest.param("divided", PLAIN, INTERLEAVE, id="divided, interleaved", marks=BY_NUMBER),
        pytest.param("divided", PLAIN, STACK, id="divided, stacked"),
        pytest.param("by depth", PLAIN, INTERLEAVE, id="by depth, interleaved", marks=BY_NUMBER),
        pytest.param("by depth", PLAIN, STACK, id="by depth, stacked", marks=BY_NUMBER),
    ],
)
def test_what_is_called_exact_is(mode, axes, how):
    (init, small), (init_large, large) = functions(2, mode), functions(4, mode)
    params = drawn(init)
    target = lagjax.Model(lambda key: drawn(init_large, seed=1), None, axes)
    plan, grown = grow(lagjax.Grow(depth=how), params, axes, target)
    assert not plan.exact or apart(large(grown), small(params)) < 1e-4
