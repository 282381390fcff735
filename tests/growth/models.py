"""Small transformers as one would write them in Flax: linen with its layers scanned or unrolled,
and nnx.

All three compute the same function of the same parameters. Sizes differ from axis to axis, so that
none can be taken for another.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import Channels, Dot, Heads, LayerNorm, Lookup, Residual, RMSNorm, Units
from lagjax.algebra.layout import Params
from lagjax.model import Batch, Key, Model

EMBED, HEADS, HEAD_DIM, MLP, VOCAB, LENGTH = 6, 2, 5, 8, 7, 4
# Not int64: JAX would compile for either width, with 64 bits allowed or not, and confuse the two.
BATCH = np.random.default_rng(0).integers(VOCAB, size=(3, LENGTH + 1), dtype=np.int32)

_LAYER = {
    "attn/query/kernel": "<embed >heads >qk",
    "attn/query/bias": ">heads >qk",
    "attn/key/kernel": "<embed >heads <qk",
    "attn/key/bias": ">heads <qk",
    "attn/value/kernel": "<embed >heads >v",
    "attn/value/bias": ">heads >v",
    "attn/out/kernel": "<heads <v >embed+",
    "mlp/up/kernel": "<embed >mlp",
    "mlp/up/bias": ">mlp",
    "mlp/down/kernel": "<mlp >embed+",
    "(attn/out|mlp/down)/bias": ">embed+",
    "(attn_norm|mlp_norm)/scale": "embed",
    "(attn_norm|mlp_norm)/bias": "+embed",
}
_REST = {
    "embed/embedding": "=vocab >embed",
    "final_norm/scale": "embed",
    "final_norm/bias": "+embed",
}


def _axes(layers: str, axis: int | None, pre: bool) -> Axes:
    """The table; `axis` is where scanned layers are stacked. Rows have the same names in all
    tables.
    """
    kinds = {
        "embed": Residual(LayerNorm(), pre),
        "heads": Heads(),
        "qk": Dot(),
        "v": Channels(),
        "mlp": Units("gelu"),
        "vocab": Lookup(),
    }
    rows = dict(_REST)
    for path, axes in _LAYER.items():
        dims = axes.split()
        if axis is not None:
            dims.insert(axis, "#layers")
        # The groups of the path, after the one that captures the layer.
        first = 1 if axis is not None else 2
        name = path
        for group in range(path.count("(")):
            begin, end = name.index("("), name.index(")")
            name = f"{name[:begin]}\\{first + group}{name[end + 1 :]}"
        rows[f"{layers}/{path}"] = f"{name}: {' '.join(dims)}"
    return Axes(rows, kinds)


class _Mlp(nn.Module):
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.dtype)
        return dense(EMBED, name="down")(nn.gelu(dense(MLP, name="up")(x)))


class _Layer(nn.Module):
    dtype: str
    pre: bool

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        types = {"dtype": self.dtype, "param_dtype": self.dtype}
        attention = nn.MultiHeadDotProductAttention(
            HEADS, qkv_features=HEADS * HEAD_DIM, name="attn", **types
        )
        mlp = _Mlp(self.dtype, name="mlp")
        norms = [nn.LayerNorm(name=name, **types) for name in ("attn_norm", "mlp_norm")]
        for sublayer, norm in zip((attention, mlp), norms, strict=True):
            x = x + sublayer(norm(x)) if self.pre else norm(x + sublayer(x))
        return x, None


class _Linen(nn.Module):
    layers: int
    axis: int | None
    dtype: str
    pre: bool

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.dtype}
        embed = nn.Embed(VOCAB, EMBED, name="embed", **types)
        x = embed(tokens)
        if self.axis is None:
            for layer in range(self.layers):
                x, _ = _Layer(self.dtype, self.pre, name=f"layers_{layer}")(x, None)
        else:
            scanned = nn.scan(
                _Layer,
                variable_axes={"params": self.axis},
                split_rngs={"params": True},
                length=self.layers,
            )
            x, _ = scanned(self.dtype, self.pre, name="layers")(x, None)
        return embed.attend(nn.LayerNorm(name="final_norm", **types)(x))


class _NnxMlp(nnx.Module):
    def __init__(self, dtype: str, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(EMBED, MLP, param_dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(MLP, EMBED, param_dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.gelu(self.up(x)))


class _NnxLayer(nnx.Module):
    def __init__(self, dtype: str, rngs: nnx.Rngs) -> None:
        self.attn_norm = nnx.LayerNorm(EMBED, param_dtype=dtype, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(
            HEADS, EMBED, HEADS * HEAD_DIM, param_dtype=dtype, decode=False, rngs=rngs
        )
        self.mlp_norm = nnx.LayerNorm(EMBED, param_dtype=dtype, rngs=rngs)
        self.mlp = _NnxMlp(dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class _Nnx(nnx.Module):
    def __init__(self, layers: int, dtype: str, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCAB, EMBED, param_dtype=dtype, rngs=rngs)
        self.layers = nnx.List([_NnxLayer(dtype, rngs) for _ in range(layers)])
        self.final_norm = nnx.LayerNorm(EMBED, param_dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.embed.attend(self.final_norm(x))


def _model(init: Callable, apply: Callable, axes: Axes) -> Model:
    def loss(params: Params, batch: Batch, key: Key | None) -> tuple[jax.Array, jax.Array]:
        del key
        nats = optax.softmax_cross_entropy_with_integer_labels(
            apply(params, batch[:, :-1]), batch[:, 1:]
        )
        return nats.sum(), jnp.asarray(nats.size, nats.dtype)

    # Compiled once for all operators that grow into this model.
    return Model(jax.jit(init), jax.jit(loss), axes)


@functools.cache
def linen(layers: int, axis: int | None, dtype: str = "float32", pre: bool = True) -> Model:
    """The linen model, its layers stacked along `axis`, or unrolled where that is None."""
    net = _Linen(layers, axis, dtype, pre)
    return _model(
        lambda key: net.init(key, BATCH[:, :-1])["params"],
        lambda params, tokens: net.apply({"params": params}, tokens),
        _axes(r"layers_(?P<layers>\d+)" if axis is None else "layers", axis, pre),
    )


@functools.cache
def from_nnx(layers: int, dtype: str = "float32") -> Model:
    """The nnx model; its parameters are an `nnx.State`."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: _Nnx(layers, dtype, nnx.Rngs(0))))
    return _model(
        lambda key: nnx.split(_Nnx(layers, dtype, nnx.Rngs(key)))[1],
        lambda params, tokens: nnx.merge(graph, params)(tokens),
        _axes(r"layers/(?P<layers>\d+)", None, pre=True),
    )


FAMILIES: dict[str, Callable[..., Model]] = {
    "scanned": functools.partial(linen, axis=0),
    "unrolled": functools.partial(linen, axis=None),
    "nnx": from_nnx,
}


def drawn(model: Model, seed: int = 0) -> Params:
    """Parameters of which none has the value of an initialisation, such as a norm's scale of 1."""
    draw = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    # Rounded before JAX has them, which would compile a program for every shape.
    return jax.tree.map(
        lambda x: jax.device_put(draw.normal(0, 0.5, x.shape).astype(x.dtype)), shapes
    )


@functools.cache
def gradient(loss: Callable) -> Callable[[Params], Params]:
    """The gradient of the mean loss; compiled once for all tests of a model."""

    def mean(params: Params) -> jax.Array:
        nats, count = loss(params, BATCH, None)
        return nats / count

    return jax.jit(jax.grad(mean))


def filled(model: Model) -> Model:
    """The model with an initialisation that compiles at once: the same numbers, scaled by one drawn
    from the key.
    """
    numbers = drawn(model, seed=1)

    def init(key: Key) -> Params:
        scale = jax.random.uniform(key, minval=0.5)
        return jax.tree.map(lambda x: x * scale.astype(x.dtype), numbers)

    return model._replace(init=init)


BARE = Axes(
    {
        "embed": "=vocab >embed",
        r"l/(?P<layers>\d+)/norm": "embed",
        r"l/(?P<layers>\d+)/gate": "<embed >mlp",
        r"l/(?P<layers>\d+)/up": "<embed >mlp",
        r"l/(?P<layers>\d+)/down": ">embed+ <mlp",
        "norm": "embed",
    },
    {
        "embed": Residual(RMSNorm(), pre=True),
        "mlp": Units("silu", gated=True),
        "vocab": Lookup(),
    },
)


@functools.cache
def bare(
    embed: int,
    mlp: int,
    layers: int = 1,
    epsilon: float = 1e-5,
    logits: float = 1.0,
    dtype: str = "float32",
) -> Model:
    """A net without attention, which compiles in no time: RMSNorm and a gated MLP, tied."""

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        mean = jnp.mean(jnp.square(x), -1, keepdims=True)
        return x * jax.lax.rsqrt(mean + epsilon) * scale[None, None]

    def apply(params: Params, batch: Batch) -> jax.Array:
        x = params["embed"][batch[:, :-1]]
        for index in range(layers):
            layer = params["l"][str(index)]
            y = norm(x, layer["norm"])
            y = jax.nn.silu(y @ layer["gate"]) * (y @ layer["up"])
            x = x + y @ layer["down"].T
        return logits * norm(x, params["norm"]) @ params["embed"].T

    def init(key: Key) -> Params:
        layer = {"norm": (embed,), "gate": (embed, mlp), "up": (embed, mlp)}
        shapes = {
            "embed": (VOCAB, embed),
            "l": {str(i): layer | {"down": (embed, mlp)} for i in range(layers)},
            "norm": (embed,),
        }
        leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
        numbers = jax.random.normal(key, (sum(map(np.prod, leaves)),), dtype)
        parts = jnp.split(numbers, np.cumsum([int(np.prod(x)) for x in leaves])[:-1])
        return jax.tree.unflatten(treedef, [x.reshape(s) for x, s in zip(parts, leaves)])

    def loss(params: Params, batch: Batch, key: Key | None) -> tuple[jax.Array, jax.Array]:
        del key
        nats = optax.softmax_cross_entropy_with_integer_labels(apply(params, batch), batch[:, 1:])
        return nats.sum(), jnp.asarray(nats.size, nats.dtype)

    return Model(init, loss, BARE, apply)
