"""RMSNorm that stores its scale as a distance from 1, as Gemma and Qwen3-Next do.

With y = x / rms(x) (1 + scale) a scale is not to be multiplied: what is called exact must be exact.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import lagjax
from lagjax.growth import width
from tests.cases.growth.growing import apart, drawn, grow

pytestmark = pytest.mark.usefixtures("double")
AXES = lagjax.Axes(
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


def model(size, tokens):
    net = Net(size)

    def apply(params, batch):
        return net.apply({"params": params}, batch)

    def loss(params, batch, key):
        nats = optax.softmax_cross_entropy_with_integer_labels(apply(params, batch), batch)
        return nats.sum(), nats.size

    return lagjax.Model(lambda key: net.init(key, tokens)["params"], loss, AXES, apply)


NOT_SAID = pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="no kind says that a norm's scale is a distance from 1",
)


@pytest.mark.parametrize(
    "way",
    [
        width.Tile(),
        pytest.param(width.Isometric(), marks=NOT_SAID),
        pytest.param(width.ZeroPad(), marks=NOT_SAID),
    ],
    ids=lambda way: type(way).__name__,
)
def test_what_is_called_exact_is(way):
    tokens = jax.random.randint(jax.random.key(1), (3, 5), 0, 11)
    small, large = model(8, tokens), model(16, tokens)
    params = drawn(small.init, 0.4)
    large = large._replace(init=lambda key, init=large.init: drawn(init, seed=1))
    plan, grown = grow(lagjax.Grow(width={"embed": way}), params, AXES, large)
    off = apart(jax.jit(large.apply)(grown, tokens), jax.jit(small.apply)(params, tokens))
    assert not plan.exact or off < 1e-9
