"""Parameter trees of models that are hard on a table: only their shapes matter here."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import Residual, RMSNorm
from lagjax.algebra.layout import Params

EMBED, KV, GROUP, QK, V, MLP, EXPERTS = 6, 2, 3, 5, 4, 8, 3
TOKENS = jnp.zeros((1, 2), jnp.int32)


class _GroupedLayer(nnx.Module):
    """Attention in which a group of query heads shares a key and a value, as flat kernels."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.q = nnx.Linear(EMBED, KV * GROUP * QK, rngs=rngs)
        self.k = nnx.Linear(EMBED, KV * QK, rngs=rngs)
        self.v = nnx.Linear(EMBED, KV * V, rngs=rngs)
        self.o = nnx.Linear(KV * GROUP * V, EMBED, rngs=rngs)


class _Grouped(nnx.Module):
    def __init__(self, layers: int, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([_GroupedLayer(rngs) for _ in range(layers)])


def grouped(layers: int) -> Params:
    """Grouped queries (Ainslie et al. 2023, arXiv 2305.13245) in nnx; an `nnx.State` with integer
    keys.
    """
    return nnx.eval_shape(lambda: nnx.state(_Grouped(layers, nnx.Rngs(0)), nnx.Param))


GROUPED = Axes(
    {
        r"layers/(?P<layers>\d+)/q/kernel": "<embed >(kv group qk)",
        r"layers/(?P<layers>\d+)/q/bias": ">(kv group qk)",
        r"layers/(?P<layers>\d+)/k/kernel": "<embed >(kv <qk)",
        r"layers/(?P<layers>\d+)/k/bias": ">(kv <qk)",
        r"layers/(?P<layers>\d+)/v/kernel": "<embed >(kv v)",
        r"layers/(?P<layers>\d+)/v/bias": ">(kv v)",
        r"layers/(?P<layers>\d+)/o/kernel": "<(kv group v) >embed+",
        r"layers/(?P<layers>\d+)/o/bias": ">embed+",
    },
    sizes={"kv": KV},
)


class _Dense(nn.Module):
    """A sublayer with logically partitioned parameters where `boxed`."""

    boxed: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def init(*names: str) -> nn.initializers.Initializer:
            plain = nn.initializers.normal()
            return nn.with_logical_partitioning(plain, names) if self.boxed else plain

        x = nn.Dense(MLP, use_bias=False, kernel_init=init("embed", "mlp"), name="up")(x)
        return nn.Dense(EMBED, use_bias=False, kernel_init=init("mlp", "embed"), name="down")(x)


class _Experts(nn.Module):
    """A mixture of experts without its routing."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.normal()
        router = self.param("router", init, (EMBED, EXPERTS))
        up = self.param("up", init, (EXPERTS, EMBED, MLP))
        down = self.param("down", init, (EXPERTS, MLP, EMBED))
        return jnp.einsum("bte,xem,xmo,ex->bto", x, up, down, router)


class _Net(nn.Module):
    sublayers: tuple[str, ...]

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(7, EMBED, name="embed")(tokens)
        for index, kind in enumerate(self.sublayers):
            x = x + _Layer(kind, name=f"layer_{index}")(x)
        return x


class _Layer(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.RMSNorm(name="norm")(x)
        if self.kind == "experts":
            return _Experts(name="experts")(x)
        return _Dense(self.kind == "boxed", name="global" if self.kind == "global" else "dense")(x)


def layered(*kinds: str) -> Params:
    """Linen layers of the kinds dense, boxed, global or experts."""
    return jax.eval_shape(_Net(kinds).init, jax.random.key(0), TOKENS)["params"]


_ROWS = {
    r"embed/embedding": "=vocab >embed",
    r"layer_(?P<layers>\d+)/norm/scale": "embed",
}
DENSE = {
    r"layer_(?P<layers>\d+)/dense/up/kernel": "<embed >mlp",
    r"layer_(?P<layers>\d+)/dense/down/kernel": "<mlp >embed+",
}
_GLOBAL = {pattern.replace("dense", "global"): axes for pattern, axes in DENSE.items()}
_EXPERTS = {
    r"layer_(?P<layers>\d+)/experts/router": "<embed >experts",
    r"layer_(?P<layers>\d+)/experts/up": "experts <embed >mlp",
    r"layer_(?P<layers>\d+)/experts/down": "experts <mlp >embed+",
}
_KINDS = {"embed": Residual(RMSNorm(), pre=True)}

DENSE_ONLY = Axes(_ROWS | DENSE, _KINDS)
EXPERTS_ONLY = Axes(_ROWS | _EXPERTS, _KINDS)
DENSE_FIRST = Axes(_ROWS | DENSE | _EXPERTS, _KINDS)
IN_TURN = Axes(_ROWS | DENSE | _GLOBAL, _KINDS)
