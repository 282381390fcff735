"""One decoder-only transformer with every choice that matters to growing it.

Multi-head, grouped-query or multi-query attention; RMSNorm or LayerNorm, before or after; learned,
rotary (Su et al., 2021, arXiv:2104.09864) or relative positions (Raffel et al., 2020,
arXiv:1910.10683); GELU or SwiGLU (Shazeer, 2020, arXiv:2002.05202); a dense MLP or a mixture of
experts; tied or not; in linen, scanned or unrolled, or in nnx::

    config = transformer.Config(
        layers=2, width=64, kv=2, group=2, head_dim=16, mlp=256, window=64, vocab=256, norm="rms",
        pre=True, positions="rope", tied=True, gated=True,
    )
    model = transformer.model(config)
    params = jax.jit(model.init)(jax.random.key(0))
    logits = model.apply(params, batch)                 # batch [B, T + 1], T <= window

The mathematics is pure functions of nested dicts of arrays; linen and nnx only hold the parameters.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import (
    Channels,
    Dot,
    Experts,
    Heads,
    Kind,
    LayerNorm,
    Lookup,
    Residual,
    RMSNorm,
    Units,
)
from lagjax.algebra.layout import Params
from lagjax.algebra.notation import parse
from lagjax.algebra.proof import Requirement
from lagjax.model import Key, Model

Values: TypeAlias = dict[str, Any]
"""Parameters of a layer, or of what is outside of the layers, as nested dicts of arrays."""

_CHOICES = {
    "norm": ("rms", "layer"),
    "positions": ("learned", "rope", "relative"),
    "implementation": ("scanned", "unrolled", "nnx"),
    "dtype": ("bfloat16", "float16", "float32", "float64"),
}
# Where the layers' parameters are; each pattern ends before the path inside the layer.
_LAYERS = {
    "scanned": "layers",
    "unrolled": r"layers_(?P<layers>\d+)",
    "nnx": r"layers/(?P<layers>\d+)",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of a transformer, and its choices; hashable.

    Attributes:
        layers: number of layers.
        width: size of the residual stream.
        kv: key-value heads; 1 is multi-query attention.
        group: query heads for each key-value head; 1 is multi-head attention.
        head_dim: size of a head.
        mlp: hidden units of a layer's MLP, or of each expert.
        window: longest input, in tokens.
        vocab: number of tokens.
        norm: RMSNorm, or LayerNorm, which has a bias too.
        pre: norms before each sublayer and one at the end, x + f(norm(x)), instead of
            norm(x + f(x)).
        positions: a learned embedding of each position, rotated queries and keys, or a learned bias
            of the scores for each distance, which all layers share.
        tied: the head reads the embedding; it then has no bias.
        gated: silu(gate) * up instead of gelu(up).
        biases: of q, k, v, out, up, gate and down, and of an untied head.
        experts: MLPs in a mixture of which a token takes `top`; 0 is one dense MLP, no router.
        top: experts for each token, weighted by the softmax over their router logits.
        implementation: linen with one stack of parameters with a leading layer axis (`layers/...`),
            linen with a subtree for each layer (`layers_0/...`), or nnx (`layers/0/...`). The same
            function.
        epsilon: of every norm.
        logit_scale: multiplies the logits.
        frequencies: radians per token of each rotated pair, head_dim / 2 of them; None is
            10000 ** (-2 j / head_dim).
        dtype: of parameters and activations; norms, rotations, softmax and logits are float32 at
            least.
    """

    layers: int
    width: int
    kv: int
    group: int
    head_dim: int
    mlp: int
    window: int
    vocab: int
    norm: Literal["rms", "layer"]
    pre: bool
    positions: Literal["learned", "rope", "relative"]
    tied: bool
    gated: bool
    biases: bool = True
    experts: int = 0
    top: int = 1
    implementation: Literal["scanned", "unrolled", "nnx"] = "scanned"
    epsilon: float = 1e-5
    logit_scale: float = 1.0
    frequencies: tuple[float, ...] | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = 0 if field.name in ("experts", "layers") else 1
            if field.type is int and (found := getattr(self, field.name)) < least:
                raise ValueError(f"{field.name}={found}: expected at least {least}; raise it")
        for name, allowed in _CHOICES.items():
            if (choice := getattr(self, name)) not in allowed:
                raise ValueError(
                    f"{name}={choice!r}: expected one of {', '.join(map(repr, allowed))}; choose "
                    "one"
                )
        if self.top > max(self.experts, 1):
            raise ValueError(
                f"top={self.top} with experts={self.experts}: a token cannot take more experts "
                "than there are; lower top or raise experts"
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim}: rotary positions turn pairs, so an even size was "
                "expected; change head_dim or positions"
            )
        if self.frequencies is not None:
            if self.positions != "rope":
                raise ValueError(
                    f"frequencies with positions={self.positions!r}: only rotary positions have "
                    "any; drop them or set positions='rope'"
                )
            if len(self.frequencies) != self.head_dim // 2:
                raise ValueError(
                    f"{len(self.frequencies)} frequencies, expected head_dim / 2 = "
                    f"{self.head_dim // 2}, one for each pair; correct frequencies or head_dim"
                )

    @property
    def wide(self) -> jnp.dtype:
        """Of norms, rotations, softmax and logits: float32, or float64 where the parameters are."""
        return jnp.promote_types(self.dtype, jnp.float32)


def _rows(config: Config) -> tuple[dict[str, str], dict[str, str]]:
    """Path → axes: of the parameters of a layer, and of those outside of the layers."""
    c = config
    norm = {"scale": "embed"} | ({"bias": "+embed"} if c.norm == "layer" else {})
    # A key reads the axis that the query writes.
    dense = {
        "attn/q": ("<embed", ">kv >group >qk"),
        "attn/k": ("<embed", ">kv <qk"),
        "attn/v": ("<embed", ">kv >v"),
        "attn/out": ("<kv <group <v", ">embed+"),
        "mlp/up": ("<embed", ">mlp"),
        **({"mlp/gate": ("<embed", ">mlp")} if c.gated else {}),
        "mlp/down": ("<mlp", ">embed+"),
    }
    layer = {f"{sub}_norm/{x}": axes for sub in ("attn", "mlp") for x, axes in norm.items()}
    for path, (reads, writes) in dense.items():
        expert = "experts " if c.experts and path.startswith("mlp/") else ""
        layer[f"{path}/kernel"] = f"{expert}{reads} {writes}"
        if c.biases:
            layer[f"{path}/bias"] = f"{expert}{writes}"
    if c.experts:
        layer["mlp/router/kernel"] = "<embed >experts"

    rest = {"embed/embedding": f"{'=' if c.tied else '<'}vocab >embed"}
    if c.positions == "learned":
        rest["positions/embedding"] = "<positions >embed"
    if c.positions == "relative":
        rest["relative/embedding"] = "<buckets >kv >group"
    if c.pre:
        rest |= {f"final_norm/{x}": axes for x, axes in norm.items()}
    if not c.tied:
        rest["head/kernel"] = "<embed >vocab"
        if c.biases:
            rest["head/bias"] = ">vocab"
    return layer, rest


def _axes(config: Config) -> Axes:
    """The table; rows have the same names for all implementations, with experts and without."""
    c = config
    layer, rows = _rows(c)
    stacked = "#layers " if c.implementation == "scanned" else ""
    for path, axes in layer.items():
        rows[f"{_LAYERS[c.implementation]}/{path}"] = f"layers/{path}: {stacked}{axes}"
    kinds: dict[str, Kind] = {
        "embed": Residual({"rms": RMSNorm(), "layer": LayerNorm()}[c.norm], c.pre),
        "kv": Heads(),
        "group": Heads(),
        "qk": Dot("half" if c.positions == "rope" else None),
        "v": Channels(),
        "mlp": Units("silu" if c.gated else "gelu", c.gated),
        "vocab": Lookup(),
    }
    if c.positions == "learned":
        kinds["positions"] = Lookup()
    if c.positions == "relative":
        kinds["buckets"] = Lookup()
    if c.experts:
        kinds["experts"] = Experts(c.top)
    return Axes(rows, kinds)


class Shape(NamedTuple):
    """A parameter's shape, and `(key, shape, dtype)` → its initial values."""

    shape: tuple[int, ...]
    init: Callable[..., jax.Array]


def shapes(config: Config) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Path → shape and initializer: of the parameters of a layer, and of those outside."""
    c = config
    sizes = {
        "embed": c.width,
        "kv": c.kv,
        "group": c.group,
        "qk": c.head_dim,
        "v": c.head_dim,
        "mlp": c.mlp,
        "experts": c.experts,
        "vocab": c.vocab,
        "positions": c.window,
        "buckets": c.window,
    }
    ones, zeros, normal = (
        nn.initializers.ones,
        nn.initializers.zeros,
        nn.initializers.normal,
    )

    def shape(path: str, axes: str) -> Shape:
        dims = [(dim.role, *dim.names) for dim in parse(axes)[1]]
        if path.endswith("scale"):
            init = ones
        elif path.endswith("bias"):
            init = zeros
        elif path.endswith("embedding"):
            # Logits of a tied head then start at about 1.
            init = normal(c.width**-0.5)
        else:
            # A key's kernel does not sum over the query axis that it reads.
            fan_in = math.prod(sizes[name] for role, name in dims if role == "<" and name != "qk")
            init = normal(fan_in**-0.5)
        return Shape(tuple(sizes[name] for _, name in dims), init)

    layer, rest = _rows(c)
    return (
        {path: shape(path, axes) for path, axes in layer.items()},
        {path: shape(path, axes) for path, axes in rest.items()},
    )


def _linear(values: Values, equation: str, x: jax.Array) -> jax.Array:
    """`x` contracted with the kernel, plus the bias where there is one."""
    y = jnp.einsum(equation, x, values["kernel"])
    return y + jnp.broadcast_to(values["bias"], y.shape) if "bias" in values else y


def _norm(values: Values, config: Config, x: jax.Array) -> jax.Array:
    """RMSNorm or LayerNorm over the last axis: [B, T, width] → [B, T, width]."""
    y = x.astype(config.wide)
    if config.norm == "layer":
        y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + config.epsilon)
    y = y * jnp.broadcast_to(values["scale"], y.shape)
    if config.norm == "layer":
        y = y + jnp.broadcast_to(values["bias"], y.shape)
    return y.astype(x.dtype)


def _rotate(config: Config, x: jax.Array) -> jax.Array:
    """Rotates the pairs (j, j + head_dim / 2) by position: [B, T, ..., head_dim] → the same."""
    half = config.head_dim // 2
    frequencies = _frequencies(config)
    # In NumPy's float64, so that the angles are exact to the last bit of either dtype.
    angles = np.arange(x.shape[1])[:, None] * np.asarray(frequencies, np.float64)
    angles = angles.reshape(1, x.shape[1], *[1] * (x.ndim - 3), half)
    cos, sin = (jnp.asarray(f(angles), config.wide) for f in (np.cos, np.sin))
    a, b = jnp.split(x.astype(config.wide), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def _attention(values: Values, config: Config, x: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Causal attention: [B, T, width], bias of the scores [kv, group, T, T] → [B, T, width]."""
    q = _linear(values["q"], "bte,ehgd->bthgd", x)
    k = _linear(values["k"], "bte,ehd->bthd", x)
    v = _linear(values["v"], "bte,ehd->bthd", x)
    if config.positions == "rope":
        q, k = _rotate(config, q), _rotate(config, k)
    scores = jnp.einsum(
        "bqhgd,bkhd->bhgqk",
        q * config.head_dim**-0.5,
        k,
        preferred_element_type=config.wide,
    )
    if bias is not None:
        scores = scores + bias[None]
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None, None]
    masked = jnp.where(causal, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(masked).astype(v.dtype)
    mixed = jnp.einsum("bhgqk,bkhd->bqhgd", weights, v)
    return _linear(values["out"], "bthgd,hgde->bte", mixed)


def _mlp(values: Values, config: Config, x: jax.Array) -> jax.Array:
    """One MLP: [B, T, width] → [B, T, width]."""
    up = _linear(values["up"], "bte,em->btm", x)
    if config.gated:
        hidden = jax.nn.silu(_linear(values["gate"], "bte,em->btm", x)) * up
    else:
        hidden = jax.nn.gelu(up)
    return _linear(values["down"], "btm,me->bte", hidden)


def _mixture(values: Values, config: Config, x: jax.Array) -> jax.Array:
    """The MLPs of each token's `top` experts, weighted: [B, T, width] → [B, T, width]."""
    experts = {name: linear for name, linear in values.items() if name != "router"}
    # All are computed: these models are small.
    outputs = jax.vmap(lambda one: _mlp(one, config, x))(experts)
    logits = _linear(values["router"], "bte,ex->btx", x).astype(config.wide)
    # Not the logits at or above the k-th largest: equal ones would be more experts than `top`.
    best, chosen = jax.lax.top_k(logits, config.top)
    chosen = jax.nn.one_hot(chosen, config.experts, dtype=config.wide)
    weights = jnp.einsum("btk,btkx->btx", jax.nn.softmax(best), chosen)
    return jnp.einsum("btx,xbte->bte", weights.astype(x.dtype), outputs)


def _layer(values: Values, config: Config, x: jax.Array, bias: jax.Array | None) -> jax.Array:
    """One layer: [B, T, width], bias of the scores [kv, group, T, T] → [B, T, width]."""
    mlp = _mixture if config.experts else _mlp
    sublayers: dict[str, Callable[[jax.Array], jax.Array]] = {
        "attn": lambda x: _attention(values["attn"], config, x, bias),
        "mlp": lambda x: mlp(values["mlp"], config, x),
    }
    for name, sublayer in sublayers.items():
        norm = functools.partial(_norm, values[f"{name}_norm"], config)
        x = x + sublayer(norm(x)) if config.pre else norm(x + sublayer(x))
    return x


def _start(values: Values, config: Config, tokens: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Tokens [B, T] → [B, T, width], and the bias of all layers' scores [kv, group, T, T]."""
    if tokens.ndim != 2 or tokens.shape[1] > config.window:
        raise ValueError(
            f"tokens have shape {tokens.shape}, expected [B, T] with T <= window={config.window}; "
            "cut them or raise window"
        )
    length = tokens.shape[1]
    x = values["embed"]["embedding"][tokens.astype(jnp.int32)]
    if config.positions == "learned":
        x = x + values["positions"]["embedding"][None, :length]
    if config.positions != "relative":
        return x, None
    # Distances of keys after the query are masked, whatever their bias.
    distance = np.maximum(np.arange(length)[:, None] - np.arange(length), 0)
    table = values["relative"]["embedding"].astype(config.wide)
    return x, jnp.transpose(table[distance], (2, 3, 0, 1))


def _finish(values: Values, config: Config, x: jax.Array) -> jax.Array:
    """[B, T, width] → logits [B, T, vocab]."""
    if config.pre:
        x = _norm(values["final_norm"], config, x)
    if config.tied:
        logits = jnp.einsum("bte,ve->btv", x, values["embed"]["embedding"])
    else:
        logits = _linear(values["head"], "bte,ev->btv", x)
    return logits.astype(config.wide) * config.logit_scale


def _nested(flat: dict[str, Shape]) -> dict[str, Any]:
    """`{"attn/q/kernel": x}` → `{"attn": {"q": {"kernel": x}}}`."""
    tree: dict[str, Any] = {}
    for path, shape in flat.items():
        *groups, name = path.split("/")
        functools.reduce(lambda at, key: at.setdefault(key, {}), groups, tree)[name] = shape
    return tree


def _declare(module: nn.Module, tree: dict[str, Any], dtype: str) -> Values:
    """The parameters of a linen module, whose subtrees are submodules."""
    return {
        name: module.param(name, item.init, item.shape, dtype)
        if isinstance(item, Shape)
        else _Group(item, dtype, name=name)()
        for name, item in tree.items()
    }


class _Group(nn.Module):
    """A subtree of parameters."""

    tree: dict[str, Any]
    dtype: str

    @nn.compact
    def __call__(self) -> Values:
        return _declare(self, self.tree, self.dtype)


class Layer(nn.Module):
    """One layer in linen: [B, T, width], bias of the scores [kv, group, T, T] → [B, T, width]."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        values = _declare(self, _nested(shapes(self.config)[0]), self.config.dtype)
        return _layer(values, self.config, x, bias)


class Transformer(nn.Module):
    """Linen, scanned or unrolled: integer tokens [B, T], T <= window → logits [B, T, vocab]."""

    config: Config

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        c = self.config
        values = _declare(self, _nested(shapes(c)[1]), c.dtype)
        x, bias = _start(values, c, tokens)
        if c.implementation == "scanned":
            scan = nn.scan(
                lambda layer, x, bias: (layer(x, bias), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=c.layers,
            )
            x, _ = scan(Layer(c, name="layers"), x, bias)
        else:
            for layer in range(c.layers):
                x = Layer(c, name=f"layers_{layer}")(x, bias)
        return _finish(values, c, x)


class _NnxGroup(nnx.Module):
    """A subtree of parameters, whose own subtrees are submodules."""

    def __init__(self, tree: dict[str, Any], dtype: str, rngs: nnx.Rngs) -> None:
        for name, item in tree.items():
            if isinstance(item, Shape):
                value = nnx.Param(item.init(rngs.params(), item.shape, dtype))
            else:
                value = _NnxGroup(item, dtype, rngs)
            setattr(self, name, value)


class NnxLayer(_NnxGroup):
    """One layer in nnx: [B, T, width], bias of the scores [kv, group, T, T] → [B, T, width]."""

    def __init__(self, config: Config, rngs: nnx.Rngs) -> None:
        super().__init__(_nested(shapes(config)[0]), config.dtype, rngs)
        self.config = config

    def __call__(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        return _layer(nnx.to_pure_dict(nnx.state(self)), self.config, x, bias)


class NnxTransformer(_NnxGroup):
    """In nnx: integer tokens [B, T], T <= window → logits [B, T, vocab]."""

    def __init__(self, config: Config, rngs: nnx.Rngs) -> None:
        super().__init__(_nested(shapes(config)[1]), config.dtype, rngs)
        self.config = config
        self.layers = nnx.List([NnxLayer(config, rngs) for _ in range(config.layers)])

    def __call__(self, tokens: jax.Array) -> jax.Array:
        values = nnx.to_pure_dict(nnx.state(self))
        x, bias = _start(values, self.config, tokens)
        for layer in self.layers:
            x = layer(x, bias)
        return _finish(values, self.config, x)


def _linen(config: Config) -> tuple[Callable, Callable]:
    """`key` → parameters, and `(params, tokens)` → logits."""
    net = Transformer(config)
    return (
        lambda key: net.init(key, jnp.zeros((1, 1), jnp.int32))["params"],
        lambda params, tokens: net.apply({"params": params}, tokens),
    )


def _nnx(config: Config) -> tuple[Callable, Callable]:
    """The same in nnx; parameters are an `nnx.State`."""

    @functools.cache
    def graph() -> nnx.GraphDef:
        # When first applied, not here: whether 64 bits are allowed may change in between.
        net = nnx.eval_shape(lambda: NnxTransformer(config, nnx.Rngs(0)))
        return nnx.split(net)[0]

    return (
        lambda key: nnx.split(NnxTransformer(config, nnx.Rngs(key)))[1],
        lambda params, tokens: nnx.merge(graph(), params)(tokens),
    )


def required(config: Config, requires: Sequence[Requirement], small: Config) -> Config:
    """The large model's configuration with what a plan requires.

    That is an epsilon, a multiplier of the logits, frequencies, or experts a token.

    Args:
        config: of the large model as it was asked for.
        requires: of a plan that grows `small` into it.
        small: of the small model, whose frequencies the old pairs keep.
    """
    for one in requires:
        if one.what == "epsilon":
            config = dataclasses.replace(config, epsilon=config.epsilon * one.value)
        elif one.what == "logits":
            config = dataclasses.replace(config, logit_scale=config.logit_scale * one.value)
        elif one.what == "top":
            config = dataclasses.replace(config, top=round(config.top * one.value))
        elif one.what == "frequencies":
            old, new = _frequencies(small), _frequencies(config)
            kept = (old[pair] if pair >= 0 else own for pair, own in zip(one.value, new))
            config = dataclasses.replace(config, frequencies=tuple(kept))
    return config


def _frequencies(config: Config) -> tuple[float, ...]:
    pairs = range(config.head_dim // 2)
    return config.frequencies or tuple(10000 ** (-2 * j / config.head_dim) for j in pairs)


@functools.cache
def model(config: Config) -> Model:
    """The transformer as lagjax wants it.

    A batch is integer tokens [B, T + 1]: T inputs and the T tokens after each. Equal configs give
    the same functions, so that jit compiles them once.
    """
    init, logits = (_nnx if config.implementation == "nnx" else _linen)(config)

    def apply(params: Params, batch: jax.Array) -> jax.Array:
        return logits(params, batch[:, :-1])

    def loss(params: Params, batch: jax.Array, key: Key | None) -> tuple[jax.Array, jax.Array]:
        del key
        nats = optax.softmax_cross_entropy_with_integer_labels(
            apply(params, batch), batch[:, 1:].astype(jnp.int32)
        )
        return nats.sum(), jnp.asarray(nats.size, nats.dtype)

    return Model(init, loss, _axes(config), apply)
