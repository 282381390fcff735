"""RMSNorm that stores its scale as a distance from 1, as Gemma and Qwen3-Next do.

With y = x / rms(x) (1 + scale) a scale is not to be multiplied: a table can say so, and where it
does not, the certificate finds the rows.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import lagjax
from lagjax.growth import width
from tests.cases.growth.growing import apart, blamed, drawn, grow

pytestmark = pytest.mark.usefixtures("double")
SILENT = lagjax.Axes(
    {
        r"embed/embedding": "<vocab >embed",
        r"layers_(?P<layers>\d+)_norm/scale": "embed",
        r"layers_(?P<layers>\d+)_up/kernel": "<embed >mlp",
        r"layers_(?P<layers>\d+)_down/kernel": "<mlp >embed+",
        r"final_norm/scale": "embed",
        r"head/kernel": "<embed >out",
    },
    kinds={
        "embed": lagjax.Residual(lagjax.RMSNorm()),
        "mlp": lagjax.Units("gelu"),
        "vocab": lagjax.Lookup(),
    },
)
TOLD = lagjax.Axes(
    {
        pattern: text.replace("embed", "1+embed") if text == "embed" else text
        for pattern, text in SILENT.rows
    },
    dict(SILENT.kinds),
)


class Norm(nn.Module):
    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],), jnp.float64)
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-12) * (1 + scale)


class Net(nn.Module):
    width: int

    @nn.compact
    def __call__(self, tokens):
        kinds = {"use_bias": False, "param_dtype": jnp.float64}
        x = nn.Embed(11, self.width, name="embed", param_dtype=jnp.float64)(tokens)
        for i in range(2):
            hidden = nn.Dense(12, name=f"layers_{i}_up", **kinds)(Norm(name=f"layers_{i}_norm")(x))
            x = x + nn.Dense(self.width, name=f"layers_{i}_down", **kinds)(nn.gelu(hidden))
        return nn.Dense(11, name="head", **kinds)(Norm(name="final_norm")(x))


def model(size, tokens, axes):
    net = Net(size)

    def apply(params, batch):
        return net.apply({"params": params}, batch)

    def loss(params, batch, key):
        nats = optax.softmax_cross_entropy_with_integer_labels(apply(params, batch), batch)
        return nats.sum(), nats.size

    return lagjax.Model(lambda key: net.init(key, tokens)["params"], loss, axes, apply)


def models(axes):
    """The small model's parameters and outputs, the large model, and the tokens."""
    tokens = jax.random.randint(jax.random.key(1), (3, 5), 0, 11)
    small, large = model(8, tokens, axes), model(16, tokens, axes)
    large = large._replace(init=lambda key, init=large.init: drawn(init, seed=1))
    return (
        drawn(small.init, 0.4),
        jax.jit(lambda params: small.apply(params, tokens)),
        large,
        tokens,
    )


@pytest.mark.parametrize(
    "way", [width.Tile(), width.Isometric(), width.ZeroPad()], ids=lambda way: type(way).__name__
)
def test_what_is_called_exact_is(way):
    params, small, large, tokens = models(TOLD)
    plan, grown = grow(lagjax.Grow(width={"embed": way}), params, TOLD, large)
    assert plan.exact_by_table
    assert apart(jax.jit(large.apply)(grown, tokens), small(params)) < 1e-9


def test_rows_that_do_not_say_so_are_found():
    params, small, large, tokens = models(SILENT)
    large = large._replace(apply=lambda params, batch, apply=large.apply: apply(params, tokens))
    operator = lagjax.Grow(width={"embed": width.ZeroPad()})
    found = blamed(operator, params, SILENT, large, small, "float64")
    assert {leaf for _, leaf, _ in found} == {"final_norm/scale", "layers_{layers}_norm/scale"}
    for axis, _, why in found:
        assert axis == "embed"
        assert why == "outputs agree once its row is '1+embed' instead of 'embed'"
