"""UL2's encoder–decoder (Tay et al., 2022, arXiv:2205.05131) in Flax linen: T5.1.1.

T5 (Raffel et al., 2020, arXiv:1910.10683) as its version 1.1 has it: RMSNorm before each sublayer,
gated GELU (Shazeer, 2020, arXiv:2002.05202), no biases, scores that are not divided by the root of
a head's size, relative positions, and a head of its own. The published model of 20 billion
parameters gates by SiLU instead::

    model = ul2.model(ul2.TINY)
    params = jax.jit(model.init)(jax.random.key(0))
    nats, count = model.loss(params, batch, None)

A batch is a dict: `inputs` int32 [B, I] and `targets` int32 [B, T], padded with 0, and `weights`
float32 [B, T], 1 where a target counts. The decoder reads the targets shifted by one.
`ul2_decoder` is the decoder alone, of the same layers.

The published T5 keeps the table of relative positions in the first layer of each stack, and all
layers of the stack add what was computed there. Here the two tables stand beside the layers. The
function and the number of parameters are the same, and layers are alike: where a word copies layer
0 into layer 3, `0 1 2 0 1 2`, no second table comes of it that nobody reads.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import Channels, Dot, Heads, Kind, Lookup, Residual, RMSNorm, Units
from lagjax.algebra.layout import Params
from lagjax.algebra.proof import Requirement
from lagjax.model import Key, Model

PAD = 0
"""The token of padding, which is also what the decoder reads before the first target."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What both models choose but for their numbers of layers; hashable.

    Attributes:
        width: size of the residual stream.
        heads: attention heads per layer.
        head_dim: size of a head; heads x head_dim need not be the width.
        mlp: hidden units of a layer's MLP, each of which is gated.
        vocab: number of tokens.
        buckets: of relative positions, in each stack.
        max_distance: the distance in tokens from which all share the last bucket.
        dropout: rate, in training only: after the embedding, of attention's weights, of hidden
            units, after each sublayer and after the last norm. UL2 was trained with 0.
        scanned: one stack of parameters with a leading layer axis (`enc/...`) instead of one
            subtree for each layer (`enc_0/...`). Same function.
        epsilon: of every RMSNorm.
        dtype: of activations; softmax, norms and logits are float32 at least.
        param_dtype: of parameters.
    """

    width: int
    heads: int
    head_dim: int
    mlp: int
    vocab: int
    buckets: int = 32
    max_distance: int = 128
    dropout: float = 0.0
    scanned: bool = False
    epsilon: float = 1e-6
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type is int and (found := getattr(self, field.name)) < 1:
                raise ValueError(f"{field.name}={found}: expected at least 1; raise it")
        if self.buckets % 4 or self.max_distance <= self.buckets // 2:
            raise ValueError(
                f"buckets={self.buckets} and max_distance={self.max_distance}: expected a multiple "
                "of 4, for two directions of which half is exact, and a distance above half of "
                "it; change one of them"
            )

    @property
    def wide(self) -> jnp.dtype:
        """Of softmax and logits: float32, or float64 where the activations are."""
        return jnp.promote_types(self.dtype, jnp.float32)

    def required(self, requires: Iterable[Requirement]) -> Self:
        """These sizes as a plan requires them: with another epsilon."""
        found = [float(one.value) for one in requires if one.what == "epsilon"]
        return dataclasses.replace(self, epsilon=self.epsilon * float(np.prod(found)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Sizes):
    """The shape of an encoder–decoder.

    Attributes:
        encoder_layers: number of layers of the encoder.
        decoder_layers: number of layers of the decoder.
    """

    encoder_layers: int
    decoder_layers: int


BASE = Config(
    encoder_layers=12,
    decoder_layers=12,
    width=768,
    heads=12,
    head_dim=64,
    mlp=2048,
    vocab=32_128,
)
"""T5.1.1 base."""
SMALL = dataclasses.replace(BASE, encoder_layers=8, decoder_layers=8, width=512, heads=6, mlp=1024)
"""T5.1.1 small."""
TINY = Config(
    encoder_layers=2,
    decoder_layers=2,
    width=48,
    heads=4,
    head_dim=12,
    mlp=96,
    vocab=384,
    buckets=16,
    max_distance=64,
)
"""For CPUs: bytes, and room for special tokens."""


def buckets(config: Sizes, queries: int, keys: int, both: bool) -> NDArray[np.int32]:
    """The bucket of each key's distance from each query: int32 [queries, keys].

    A half of a direction's buckets hold one distance each, the others more and more, in equal
    steps of the logarithm, up to `max_distance`.

    Args:
        config: how many there are.
        queries: number of queries.
        keys: number of keys.
        both: whether keys after the query have buckets of their own; else they share that of
            distance 0, and are to be masked.
    """
    distance = np.arange(keys) - np.arange(queries)[:, None]
    count = config.buckets // 2 if both else config.buckets
    far = np.abs(distance) if both else np.maximum(-distance, 0)
    exact = count // 2
    # Powers of two come out exactly; the logarithm's last bit shall not move them down a bucket.
    steps = np.log(np.maximum(far, 1) / exact) / np.log(config.max_distance / exact)
    shared = exact + np.floor(steps * (count - exact) + 1e-9)
    bucket = np.where(far < exact, far, np.minimum(shared, count - 1))
    return (bucket + (count * (distance > 0) if both else 0)).astype(np.int32)


class Context(NamedTuple):
    """What a layer sees beside its own stream.

    Attributes:
        bias: of the scores of self-attention, [1, heads, T, T].
        mask: whom a query sees of its own stream, bool [B or 1, 1, T or 1, T].
        memory: the encoder's output, [B, S, width]; None where there is no cross-attention.
        memory_mask: whom a query sees of it, bool [B, 1, 1, S].
    """

    bias: jax.Array
    mask: jax.Array
    memory: jax.Array | None = None
    memory_mask: jax.Array | None = None


def _dense(config: Sizes, features: int | tuple[int, ...], deviation: float, **more: object):
    return nn.DenseGeneral(
        features,
        use_bias=False,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        kernel_init=nn.initializers.normal(deviation),
        **more,
    )


class Attention(nn.Module):
    """[B, T, width], [B, S, width] that keys and values are of → [B, T, width]."""

    config: Sizes
    training: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, source: jax.Array, mask: jax.Array, bias: jax.Array | None
    ) -> jax.Array:
        c = self.config
        shape, read = (c.heads, c.head_dim), c.width**-0.5
        # Scores are not divided by the root of a head's size; queries begin smaller by it.
        q = _dense(c, shape, read * c.head_dim**-0.5, name="q")(x)
        k, v = (_dense(c, shape, read, name=name)(source) for name in "kv")
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=c.wide)
        if bias is not None:
            scores = scores + bias.astype(c.wide)
        weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(c.wide).min))
        weights = nn.Dropout(c.dropout, deterministic=not self.training)(weights.astype(v.dtype))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        deviation = (c.heads * c.head_dim) ** -0.5
        return _dense(c, c.width, deviation, axis=(-2, -1), name="out")(mixed)


class Mlp(nn.Module):
    """Gated GELU: [B, T, width] → [B, T, width]."""

    config: Sizes
    training: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        gate, up = (_dense(c, c.mlp, c.width**-0.5, name=name)(x) for name in ("gate", "up"))
        hidden = nn.Dropout(c.dropout, deterministic=not self.training)(nn.gelu(gate) * up)
        return _dense(c, c.width, c.mlp**-0.5, name="down")(hidden)


class Layer(nn.Module):
    """One pre-norm layer, with cross-attention where there is a memory: [B, T, width] → same."""

    config: Sizes
    training: bool

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        c = self.config
        dropout = nn.Dropout(c.dropout, deterministic=not self.training)
        y = norm(c, "attn_norm")(x)
        attention = Attention(c, self.training, name="attn")
        x = x + dropout(attention(y, y, context.mask, context.bias))
        if context.memory is not None:
            cross = Attention(c, self.training, name="cross")
            y = norm(c, "cross_norm")(x)
            x = x + dropout(cross(y, context.memory, context.memory_mask, None))
        return x + dropout(Mlp(c, self.training, name="mlp")(norm(c, "mlp_norm")(x)))


def norm(config: Sizes, name: str) -> nn.RMSNorm:
    """An RMSNorm over the residual stream."""
    return nn.RMSNorm(config.epsilon, dtype=config.dtype, param_dtype=config.param_dtype, name=name)


def embedding(config: Sizes) -> nn.Embed:
    """The table of tokens, [vocab, width], which all stacks read."""
    return _table(config, config.vocab, config.width, 1.0, "embed")


def positions(config: Sizes, name: str, length: int, both: bool) -> jax.Array:
    """The bias of a stack's scores by distance: [1, heads, length, length]."""
    table = _table(config, config.buckets, config.heads, config.width**-0.5, name)
    return jnp.transpose(table(buckets(config, length, length, both)), (2, 0, 1))[None]


def _table(config: Sizes, count: int, features: int, deviation: float, name: str) -> nn.Embed:
    return nn.Embed(
        count,
        features,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        embedding_init=nn.initializers.normal(deviation),
        name=name,
    )


def through(
    config: Sizes, training: bool, name: str, count: int, x: jax.Array, context: Context
) -> jax.Array:
    """[B, T, width] through a stack of layers, scanned or unrolled, and the norm after it."""
    dropout = nn.Dropout(config.dropout, deterministic=not training)
    x = dropout(x)
    if config.scanned:
        scan = nn.scan(
            lambda layer, x, context: (layer(x, context), None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=count,
        )
        x, _ = scan(Layer(config, training, name=name), x, context)
    else:
        for index in range(count):
            x = Layer(config, training, name=f"{name}_{index}")(x, context)
    return dropout(norm(config, f"{name}_norm")(x))


def head(config: Sizes, x: jax.Array) -> jax.Array:
    """[B, T, width] → logits [B, T, vocab], about 1 at the start."""
    return _dense(config, config.vocab, config.width**-0.5, name="head")(x).astype(config.wide)


class UL2(nn.Module):
    """Inputs int32 [B, I] and targets int32 [B, T] → logits [B, T, vocab] of the targets."""

    config: Config

    @nn.compact
    def __call__(self, inputs: jax.Array, targets: jax.Array, training: bool = False) -> jax.Array:
        c, embed = self.config, embedding(self.config)
        seen = (inputs != PAD)[:, None, None, :]
        context = Context(positions(c, "enc_bias", inputs.shape[1], both=True), seen)
        memory = through(c, training, "enc", c.encoder_layers, embed(inputs), context)
        length = targets.shape[1]
        # Padding stands behind all that counts, so that causality hides it.
        causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
        bias = positions(c, "dec_bias", length, both=False)
        before = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=PAD)
        context = Context(bias, causal, memory, seen)
        return head(c, through(c, training, "dec", c.decoder_layers, embed(before), context))


def _attention(name: str) -> dict[str, str]:
    return {
        f"{name}_norm/scale": "embed",
        f"{name}/q/kernel": "<embed >heads >qk",
        # A key reads the axis that its query writes.
        f"{name}/k/kernel": "<embed >heads <qk",
        f"{name}/v/kernel": "<embed >heads >v",
        f"{name}/out/kernel": "<heads <v >embed+",
    }


_MLP = {
    "mlp_norm/scale": "embed",
    "mlp/gate/kernel": "<embed >mlp",
    "mlp/up/kernel": "<embed >mlp",
    "mlp/down/kernel": "<mlp >embed+",
}
_KINDS: dict[str, Kind] = {
    "embed": Residual(RMSNorm(), pre=True),
    "heads": Heads(),
    "qk": Dot(rope=None, scaled=False),
    "v": Channels(),
    "mlp": Units("gelu", gated=True),
    "vocab": Lookup(),
    "buckets": Lookup(),
}
SELF = _attention("attn") | _MLP
"""Path → axes of the parameters of a layer without cross-attention."""
CROSS = SELF | _attention("cross")
"""Of one with it."""


def table(stacks: Mapping[str, Mapping[str, str]], scanned: bool) -> Axes:
    """The axes of a model with these stacks of layers: name → path → axes.

    The name in front of an unrolled layer's row pairs it with the stack of a scanned model.
    """
    rows = {"embed/embedding": "<vocab >embed", "head/kernel": "<embed >vocab"}
    for stack, layer in stacks.items():
        rows |= {f"{stack}_bias/embedding": "<buckets >heads", f"{stack}_norm/scale": "embed"}
        for path, axes in layer.items():
            if scanned:
                rows[f"{stack}/{path}"] = f"#{stack} {axes}"
            else:
                rows[rf"{stack}_(?P<{stack}>\d+)/{path}"] = f"{stack}/{path}: {axes}"
    return Axes(rows, kinds=_KINDS)


UNROLLED, SCANNED = (table({"enc": SELF, "dec": CROSS}, scanned) for scanned in (False, True))


def scored(batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """What a batch of either model asks for, and what counts of it: int32 and float [B, T]."""
    if "tokens" in batch:
        return batch["tokens"][:, 1:], batch["weights"][:, 1:]
    return batch["targets"], batch["weights"]


def weighted(logits: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The sum of nats over the targets that count, and their number; logits [B, T, vocab]."""
    targets, weights = scored(batch)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    weights = weights.astype(nats.dtype)
    return (nats * weights).sum(), weights.sum()


def required(config: Config, requires: Iterable[Requirement]) -> Model:
    """The model as a plan requires it."""
    return model(config.required(requires))


@functools.cache
def model(config: Config) -> Model:
    """The encoder–decoder as lagjax wants it: batches of `inputs`, `targets` and `weights`.

    Equal configs give the same functions, so that jit compiles them once.
    """
    net = UL2(config)

    def init(key: Key) -> Params:
        tokens = jnp.zeros((1, 1), jnp.int32)
        return net.init(key, tokens, tokens)["params"]

    def logits(params: Params, batch: Mapping[str, jax.Array], key: Key | None) -> jax.Array:
        rngs = None if key is None else {"dropout": key}
        tokens = batch["inputs"], batch["targets"]
        return net.apply({"params": params}, *tokens, training=key is not None, rngs=rngs)

    return made(init, logits, SCANNED if config.scanned else UNROLLED)


def made(
    init: Callable[[Key], Params],
    logits: Callable[[Params, Mapping[str, jax.Array], Key | None], jax.Array],
    axes: Axes,
) -> Model:
    """A model of its logits by parameters, batch and the key of dropout."""

    def apply(params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        return logits(params, batch, None)

    def loss(
        params: Params, batch: Mapping[str, jax.Array], key: Key | None
    ) -> tuple[jax.Array, jax.Array]:
        return weighted(logits(params, batch, key), batch)

    return Model(init, loss, axes, apply)


def infilled(
    model: Model, params: Params, shards: Sequence[Mapping[str, jax.Array]], special: Sequence[int]
) -> list[tuple[int, int]]:
    """Span infilling, a downstream number: of each shard, targets that are guessed right, and all.

    Targets before the one that is guessed are given. Sentinels and the end of the targets are left
    out: where a span ends is another question than what was in it.

    Args:
        model: either of the two.
        params: its parameters.
        shards: batches of one shape.
        special: the ids of all special tokens.
    """

    @jax.jit
    def right(params: Params, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        targets, weights = scored(batch)
        text = (weights > 0) & ~jnp.isin(targets, jnp.asarray(special))
        guessed = model.apply(params, batch).argmax(-1) == targets
        return (guessed & text).sum(), text.sum()

    return [(int(hits), int(count)) for hits, count in (right(params, each) for each in shards)]


def inverse_root(steps: int = 10_000) -> optax.Schedule:
    """T5's learning rate for Adafactor, relative to each parameter's size: 1 / √max(step, steps).

    That is 0.01 for the first 10,000 steps.
    """
    return lambda step: jax.lax.rsqrt(jnp.maximum(jnp.asarray(step, jnp.float32), steps))


def optimizer(
    learning_rate: optax.ScalarOrSchedule,
    method: Literal["adafactor", "adamw"] = "adafactor",
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """What trains UL2, with the learning rate in its state.

    Adafactor (Shazeer and Stern, 2018, arXiv:1804.04235) as T5 and UL2 have it, its step relative
    to the size of each parameter and no first moment, but for one thing: its second moments are
    kept whole. Those of rows and columns are no statistic of single entries, and would have to
    begin anew wherever a model grows; whole ones take a parameter's memory more and follow the
    plan. AdamW, with a rate of its own, does as well in short runs of small models.

    Args:
        learning_rate: of Adafactor, relative; `inverse_root()` is the published one.
        method: which.
        weight_decay: of AdamW.
    """
    if method == "adamw":
        return optax.inject_hyperparams(optax.adamw)(
            learning_rate=learning_rate, weight_decay=weight_decay
        )
    if weight_decay:
        raise ValueError(
            f"weight_decay={weight_decay} with Adafactor: T5 and UL2 have none, and it is for "
            "method='adamw'; set it to 0"
        )
    rate = optax.inject_hyperparams(optax.scale_by_learning_rate, static_args="flip_sign")(
        learning_rate=learning_rate, flip_sign=False
    )
    return optax.chain(optax.adafactor(None, factored=False), rate)
