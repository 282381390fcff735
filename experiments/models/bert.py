"""BERT in Flax linen, its pre-training objective and its optimizer (Devlin et al. 2018, arXiv
1810.04805), written without a thought of growth.

Post-norm as published, or pre-norm, where the norm of the embeddings moves to the end of the
stream; learned positions, two segments, a GELU MLP, a pooler, a masked-token head tied to the
embedding and a next-sentence head::

    model = bert.model(bert.TINY)
    params = jax.jit(model.init)(jax.random.key(0))
    nats, count = model.loss(params, batch, None)       # a batch of experiments.data.masked
    tx = bert.optimizer(model.axes, bert.schedule(1e-3, warmup=100, steps=1000))
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import Channels, Dot, Heads, Kind, LayerNorm, Lookup, Residual, Units
from lagjax.algebra.layout import Layout, Leaf, Params, flatten
from lagjax.algebra.proof import Requirement
from lagjax.engine import Engine, Metrics, State, from_loss
from lagjax.model import Batch, Key, Model

PAD = 0
"""The token that no other attends to."""
_init = nn.initializers.truncated_normal(0.02)


@dataclass(frozen=True)
class Config:
    """The shape of a BERT; hashable, and plain enough for a command line and a JSON file.

    Attributes:
        layers: number of blocks.
        width: size of the residual stream.
        heads: attention heads per block.
        window: longest input, in tokens.
        vocab: number of tokens.
        mlp: hidden units of a block's MLP; None is 4 x width.
        head_dim: size of a head; None is width / heads.
        segments: number of segment embeddings.
        post_norm: norms after each addition, as published; False puts them before each sublayer and
            one at the end, in place of the one after the embeddings: as many parameters.
        dropout: rate after the embeddings, of attention and after each sublayer, in training only.
        scanned: one stack of parameters with a leading layer axis (`layers/...`) instead of one
            subtree for each layer (`layers_0/...`). Same function.
        epsilon: of every LayerNorm.
        logit_scale: multiplies the masked-token head's logits but for their bias; a tied head needs
            it where growing scales the embedding.
        dtype: of activations; softmax, norms and logits are float32 at least.
        param_dtype: of parameters.
    """

    layers: int
    width: int
    heads: int
    window: int
    vocab: int
    mlp: int | None = None
    head_dim: int | None = None
    segments: int = 2
    post_norm: bool = True
    dropout: float = 0.0
    scanned: bool = False
    epsilon: float = 1e-12
    logit_scale: float = 1.0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "window", "vocab", "segments"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: a BERT needs at least 1")
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(
                f"width={self.width} does not divide into heads={self.heads}; change one of them "
                "or give head_dim"
            )

    @property
    def softmax_dtype(self) -> jnp.dtype:
        """float32, or float64 where the activations are."""
        return jnp.promote_types(self.dtype, jnp.float32)


BASE = Config(12, 768, 12, 512, vocab=30_522, dropout=0.1, scanned=True)
"""As published: 109.5 M parameters without the two heads."""
LARGE = Config(24, 1024, 16, 512, vocab=30_522, dropout=0.1, scanned=True)
"""As published: 335.1 M parameters without the two heads."""
SMALL = Config(6, 384, 6, 128, vocab=8192, dropout=0.1)
"""For one GPU."""
TINY = Config(3, 48, 4, 64, vocab=1024)
"""For two CPU cores."""


class Attention(nn.Module):
    """Multi-head attention with biases: [B, T, width], the keys read [B, T] -> [B, T, width]."""

    config: Config
    training: bool

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        c = self.config
        head_dim = c.head_dim or c.width // c.heads
        dense = functools.partial(
            nn.DenseGeneral, kernel_init=_init, dtype=c.dtype, param_dtype=c.param_dtype
        )
        q, k, v = (dense((c.heads, head_dim), name=name)(x) for name in "qkv")
        scores = jnp.einsum(
            "bqhd,bkhd->bhqk", q * head_dim**-0.5, k, preferred_element_type=c.softmax_dtype
        )
        masked = jnp.where(real[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(masked).astype(v.dtype)
        weights = nn.Dropout(c.dropout, deterministic=not self.training)(weights)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return dense(c.width, axis=(-2, -1), name="out")(mixed)


class Mlp(nn.Module):
    """GELU MLP with biases, the tanh form: [B, T, width] -> [B, T, width]."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        hidden = nn.gelu(_dense(c, c.mlp or 4 * c.width, "up")(x), approximate=True)
        return _dense(c, c.width, "down")(hidden)


class Block(nn.Module):
    """One layer: [B, T, width], the keys read [B, T] -> [B, T, width]."""

    config: Config
    training: bool

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        c = self.config
        attention = Attention(c, self.training, name="attn")
        x = self._added(x, "attn_norm", lambda x: attention(x, real))
        return self._added(x, "mlp_norm", Mlp(c, name="mlp"))

    def _added(
        self, x: jax.Array, name: str, sublayer: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        c, norm = self.config, _norm(self.config, name)
        dropout = nn.Dropout(c.dropout, deterministic=not self.training)
        if c.post_norm:
            return norm(x + dropout(sublayer(x)))
        return x + dropout(sublayer(norm(x)))


class BERT(nn.Module):
    """Tokens and segments [B, T], positions [B, P] -> logits [B, P, vocab] and [B, 2].

    Logits of the tokens at the positions, and of whether the second segment is the next (0) or a
    random one (1).
    """

    config: Config

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        training: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        c = self.config
        if tokens.ndim != 2 or tokens.shape[1] > c.window:
            raise ValueError(
                f"tokens have shape {tokens.shape}, expected [B, T] with T <= window={c.window}"
            )
        table = functools.partial(
            nn.Embed,
            features=c.width,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            embedding_init=_init,
        )
        embed = table(c.vocab, name="embed")
        x = embed(tokens.astype(jnp.int32))
        x += table(c.window, name="positions")(jnp.arange(tokens.shape[1]))[None]
        x += table(c.segments, name="segments")(segments.astype(jnp.int32))
        if c.post_norm:
            x = _norm(c, "embed_norm")(x)
        x = nn.Dropout(c.dropout, deterministic=not training)(x)
        x = self._layers(x, tokens != PAD, training)
        if not c.post_norm:
            x = _norm(c, "final_norm")(x)
        pooled = jnp.tanh(_dense(c, c.width, "pooler")(x[:, 0]))
        follows = _dense(c, 2, "next")(pooled)
        predicted = jnp.take_along_axis(x, positions.astype(jnp.int32)[:, :, None], axis=1)
        hidden = nn.gelu(_dense(c, c.width, "mlm_dense")(predicted), approximate=True)
        logits = embed.attend(_norm(c, "mlm_norm")(hidden) * c.logit_scale)
        bias = self.param("mlm_bias", nn.initializers.zeros, (c.vocab,), c.param_dtype)
        logits = logits.astype(c.softmax_dtype) + bias[None, None]
        return logits, follows.astype(c.softmax_dtype)

    def _layers(self, x: jax.Array, real: jax.Array, training: bool) -> jax.Array:
        c = self.config
        if not c.scanned:
            for layer in range(c.layers):
                x = Block(c, training, name=f"layers_{layer}")(x, real)
            return x
        scan = nn.scan(
            lambda block, x, real: (block(x, real), None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=c.layers,
        )
        x, _ = scan(Block(c, training, name="layers"), x, real)
        return x


def _dense(config: Config, features: int, name: str) -> nn.Dense:
    return nn.Dense(
        features,
        kernel_init=_init,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        name=name,
    )


def _norm(config: Config, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        config.epsilon, dtype=config.dtype, param_dtype=config.param_dtype, name=name
    )


_LAYER = {
    "(attn|mlp)_norm/scale": "embed",
    "(attn|mlp)_norm/bias": "+embed",
    "attn/q/kernel": "<embed >heads >qk",
    "attn/q/bias": ">heads >qk",
    # A key reads the axis that its query writes.
    "attn/k/kernel": "<embed >heads <qk",
    "attn/k/bias": ">heads <qk",
    "attn/v/kernel": "<embed >heads >v",
    "attn/v/bias": ">heads >v",
    "attn/out/kernel": "<heads <v >embed+",
    "attn/out/bias": ">embed+",
    "mlp/up/kernel": "<embed >mlp",
    "mlp/up/bias": ">mlp",
    "mlp/down/kernel": "<mlp >embed+",
    "mlp/down/bias": ">embed+",
}
_REST = {
    "embed/embedding": "=vocab >embed",
    "positions/embedding": "<positions >embed",
    "segments/embedding": "<segments >embed",
    "(embed|final|mlm)_norm/scale": "embed",
    "(embed|final|mlm)_norm/bias": "+embed",
    "pooler/kernel": "<embed >pooled",
    "pooler/bias": ">pooled",
    "next/kernel": "<pooled 2",
    "next/bias": "2",
    "mlm_dense/kernel": "<embed >embed",
    "mlm_dense/bias": ">embed",
    "mlm_bias": ">vocab",
}


def axes(scanned: bool, post_norm: bool) -> Axes:
    """The axes table."""
    kinds: dict[str, Kind] = {
        # The masked-token head writes along it, and its gelu acts on that.
        "embed": Residual(LayerNorm(), pre=not post_norm, activation="gelu"),
        "heads": Heads(),
        "qk": Dot(rope=None),
        "v": Channels(),
        "mlp": Units("gelu"),
        "pooled": Units("tanh"),
        "vocab": Lookup(),
        "positions": Lookup(),
        "segments": Lookup(),
    }
    layer = {
        f"layers/{path}" if scanned else rf"layers_(?P<layers>\d+)/{path}": (
            f"#layers {row}" if scanned else row
        )
        for path, row in _LAYER.items()
    }
    return Axes(_REST | layer, kinds=kinds)


def required(config: Config, requires: Iterable[Requirement]) -> Model:
    """The BERT as a plan requires it: with another epsilon, or its logits scaled."""
    found = {one.what: float(one.value) for one in requires if not isinstance(one.value, tuple)}
    epsilon = config.epsilon * found.get("epsilon", 1.0)
    scale = config.logit_scale * found.get("logits", 1.0)
    return model(dataclasses.replace(config, epsilon=epsilon, logit_scale=scale))


@functools.cache
def model(config: Config) -> Model:
    """The BERT as lagjax wants it.

    A batch is a dict of arrays, as `experiments.data.masked` makes them: tokens and segments
    [B, T]; positions, targets and weights [B, P], of the tokens to predict; next [B]. The loss is
    of both objectives, see `measured`. Outputs, for certificates, are the logits of both heads in
    one array [B, P * vocab + 2]. Equal configs give the same functions, so that jit compiles them
    once.
    """
    net = BERT(config)

    def init(key: Key) -> Params:
        one = jnp.zeros((1, 1), jnp.int32)
        return net.init(key, one, one, one)["params"]

    def outputs(params: Params, batch: Batch, key: Key | None = None) -> jax.Array:
        rngs = None if key is None else {"dropout": key}
        given = (batch[name] for name in ("tokens", "segments", "positions"))
        logits, follows = net.apply({"params": params}, *given, training=key is not None, rngs=rngs)
        return jnp.concatenate([logits.reshape(len(logits), -1), follows], 1)

    def loss(params: Params, batch: Batch, key: Key | None) -> tuple[jax.Array, jax.Array]:
        return measured(outputs(params, batch, key), batch)["loss"]

    def apply(params: Params, batch: Batch) -> jax.Array:
        return outputs(params, batch)

    return Model(init, loss, axes(config.scanned, config.post_norm), apply)


def measured(outputs: jax.Array, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
    """What a model's outputs are worth: name → sum and count, both scalars.

    "mlm_nats" and "mlm_accuracy" count the predicted tokens, "next_nats" and "next_accuracy" the
    pairs. "loss", in nats per predicted token, adds the two objectives up: to the nats of a row's
    predicted tokens come, as many times as they are, the nats of its pair. So it is the published
    sum of two means wherever rows have equally many predicted tokens, as all that fill the window
    have; and where they do not, a row's pair counts as its tokens do, by which sums and counts of
    parts add up to those of the whole however it is cut. A mean over pairs, multiplied by the
    tokens of the batch, would not.
    """
    tokens, follows = outputs[:, :-2], outputs[:, -2:]
    targets = batch["targets"].astype(jnp.int32)
    weights = jnp.asarray(batch["weights"], outputs.dtype)
    logits = tokens.reshape(*targets.shape, -1)
    label = batch["next"].astype(jnp.int32)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets) * weights
    pairs = optax.softmax_cross_entropy_with_integer_labels(follows, label)
    hits = (logits.argmax(-1) == targets) * weights
    count, number = weights.sum(), jnp.asarray(label.size, outputs.dtype)
    return {
        "loss": (nats.sum() + (pairs * weights.sum(1)).sum(), count),
        "mlm_nats": (nats.sum(), count),
        "mlm_accuracy": (hits.sum(), count),
        "next_nats": (pairs.sum(), number),
        "next_accuracy": ((follows.argmax(-1) == label).sum().astype(outputs.dtype), number),
    }


def engine(target: Model, tx: optax.GradientTransformation | None) -> Engine:
    """`lagjax.from_loss` whose evaluations tell the two objectives apart: for `Task.engine`.

    Raises ValueError without an optimizer, and for a model without `apply`.
    """
    outputs = _applied(target)

    def evaluate(state: State, batch: Batch) -> Metrics:
        return measured(outputs(state.params, batch), batch)

    made = from_loss(target, tx, "nats per predicted token")
    return made._replace(evaluate=evaluate)


class Accuracy(NamedTuple):
    """Shares that a model has right."""

    tokens: float
    pairs: float


def accuracy(trained: Model, params: Params, shards: Sequence[Batch]) -> Accuracy:
    """Of the masked tokens, and of the pairs, of all shards; raises ValueError for none."""
    if not shards:
        raise ValueError("no shards are given; accuracy is measured on at least one")
    outputs = _applied(trained)
    read = jax.jit(lambda params, batch: measured(outputs(params, batch), batch))
    found = [read(params, shard) for shard in shards]

    def share(name: str) -> float:
        hits, counts = zip(*(one[name] for one in found))
        return float(sum(hits) / sum(counts))

    return Accuracy(share("mlm_accuracy"), share("next_accuracy"))


def _applied(model: Model) -> Callable[[Params, Batch], jax.Array]:
    if model.apply is None:
        raise ValueError("the model has no apply; give one of bert.model, which has")
    return model.apply


class AdamState(NamedTuple):
    """Running means of the gradient and of its square."""

    mu: Params
    nu: Params


def scale_by_uncorrected_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6
) -> optax.GradientTransformation:
    """Adam without the correction of its means for the zeros that they start from, as BERT's.

    Its step t is (1 - b1^t) / √(1 - b2^t) times as long as the corrected one: the first 3 times,
    the tenth 6 times, the thousandth 1.3 times, which the warm-up hides. optax's always corrects.
    """

    def init(params: Params) -> AdamState:
        return AdamState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: optax.Updates, state: AdamState, params: Params | None = None
    ) -> tuple[optax.Updates, AdamState]:
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), AdamState(mu, nu)

    return optax.GradientTransformation(init, update)


def schedule(peak: float, warmup: int, steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, and a linear decay that ends with 0 at `steps`.

    As published both count from the first step, so that the rate falls from the peak to
    1 - warmup / steps of it where the warm-up ends.
    """

    def rate(step: jax.Array) -> jax.Array:
        decayed = peak * jnp.maximum(0.0, 1 - step / steps)
        return jnp.where(step < warmup, peak * step / max(warmup, 1), decayed)

    return rate


def optimizer(
    table: Axes,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.01,
    clip: float = 1.0,
) -> optax.GradientTransformation:
    """BERT's: gradients clipped by their global norm, Adam without bias correction, and decoupled
    decay of all but norms and biases; its state holds the learning rate.

    Args:
        table: of the model, small or large; tells norms and biases.
        learning_rate: as published `schedule(1e-4, 10_000, 1_000_000)`.
        weight_decay: the rate of decay.
        clip: the largest norm of a gradient.
    """

    def at(learning_rate: jax.Array) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(clip),
            scale_by_uncorrected_adam(),
            optax.add_decayed_weights(weight_decay, functools.partial(decayed, table)),
            optax.scale_by_learning_rate(learning_rate),
        )

    return optax.inject_hyperparams(at)(learning_rate=learning_rate)


def decayed(table: Axes, params: Params) -> Params:
    """Which parameters decay, as a tree of bools: those that read along an axis.

    Norms act elementwise and biases only write. A key's bias is said to read what its query writes,
    as the key is, and is a bias all the same.
    """
    layout = table.layout(params)
    reads = {leaf.path: _reads(layout, leaf) for leaf in layout.leaves}
    apart = {part: reads[path] for path, parts in layout.unrolled.items() for part in parts}
    reads |= apart
    return jax.tree.unflatten(jax.tree.structure(params), [reads[path] for path in flatten(params)])


def _reads(layout: Layout, leaf: Leaf) -> bool:
    return any(
        role in ("<", "=") and not isinstance(layout.kind(axis), Dot)
        for dim in leaf.dims
        for number, part in enumerate(dim.parts)
        for axis, role in zip(part, dim.roles(number), strict=True)
    )
