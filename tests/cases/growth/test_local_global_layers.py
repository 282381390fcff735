"""Depth growth where what a layer does hangs on its number.

Even layers attend in a window and odd ones to everything (Gemma 2, GPT-Neo), scores are divided by
the layer's number (scale_attn_by_inverse_layer_idx), or what is added is multiplied by
1.4 / √layers (MiniCPM's scale_depth). A table can say each; where it does not, the certificate finds
it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagjax
from lagjax.growth.depth import Interleave, Scaled, Stack
from tests.cases.growth.growing import apart, blamed, drawn, grow

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


def told(change, **kinds):
    """The plain table, its rows changed."""
    rows = {pattern: change(pattern, text) for pattern, text in PLAIN.rows}
    return lagjax.Axes(rows, KINDS | kinds)


TYPES = told(lambda _, text: text, layers=lagjax.LayerTypes(("local", "global")))
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
NUMBERED = told(lambda path, text: f"{text} /#layers" if "/q/" in path else text)
BY_DEPTH = told(lambda _, text: f"{text} /layers^0.5" if text.endswith("+") else text)


@functools.cache
def functions(layers, mode):
    net, tokens = Net(layers, mode), np.random.default_rng(0).integers(VOCAB, size=(3, LENGTH))

    def init(key):
        return net.init(key, tokens)["params"]

    return init, jax.jit(lambda params: net.apply({"params": params}, tokens))


def setting(mode, axes):
    """The small model's parameters and outputs, and the large model."""
    (init, small), (init_large, large) = functions(2, mode), functions(4, mode)
    # Drawn here, and not each time that a certificate grows the model.
    fresh = drawn(init_large, seed=1)
    target = lagjax.Model(lambda key: fresh, None, axes, lambda params, batch: large(params))
    return drawn(init), small, target


@pytest.mark.parametrize("how", [INTERLEAVE, STACK], ids=["interleaved", "stacked"])
@pytest.mark.parametrize(
    ("mode", "axes"),
    [
        ("none", PLAIN),
        ("window", TYPES),
        ("window", NAMED),
        ("divided", NUMBERED),
        ("by depth", BY_DEPTH),
    ],
    ids=["all alike", "types in turn", "types by name", "divided", "by depth"],
)
def test_what_is_called_exact_is(mode, axes, how):
    params, small, large = setting(mode, axes)
    plan, grown = grow(lagjax.Grow(depth=how), params, axes, large)
    assert plan.exact_by_table
    assert apart(large.apply(grown, None), small(params)) < 1e-4


def causes(mode, how):
    params, small, large = setting(mode, PLAIN)
    return blamed(lagjax.Grow(depth=how), params, PLAIN, large, small)


def test_types_that_the_table_does_not_tell_are_found():
    ((stack, leaf, why),) = causes("window", INTERLEAVE)
    assert (stack, leaf) == ("layers", None)
    assert why == "outputs agree once its kind is LayerTypes(types=('0', '1'))"


@pytest.mark.slow
def test_a_word_that_disregards_types_is_found():
    ((stack, leaf, why),) = causes("window", "0 0* 1 1*")
    assert (stack, leaf) == ("layers", None)
    assert "outputs agree once every layer keeps its number" in why


@pytest.mark.parametrize(
    ("mode", "divided", "leaves"),
    [
        # Keys can make up for a factor of the scores as queries can: rounding says which are named.
        ("divided", "/#layers", [{"k/kernel"}, {"q/kernel"}]),
        ("by depth", "/layers^0.5", [{"o/kernel", "down/kernel", "down/bias"}]),
    ],
)
def test_a_factor_that_the_table_does_not_tell_is_found(mode, divided, leaves):
    found = causes(mode, INTERLEAVE)
    assert {leaf.removeprefix("layers_{layers}/") for _, leaf, _ in found} in leaves
    for stack, _, why in found:
        assert stack == "layers"
        assert f"{divided}' instead of" in why
