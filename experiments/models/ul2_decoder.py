"""UL2's decoder alone (Tay et al., 2022, arXiv:2205.05131), as a prefix language model.

Inputs and targets are one sequence. Inputs see each other in both directions, targets see what
stands before them (Liu et al., 2018, arXiv:1801.10198; Raffel et al., 2020, arXiv:1910.10683), and
the loss is that of the targets::

    model = ul2_decoder.model(ul2_decoder.TINY)
    params = jax.jit(model.init)(jax.random.key(0))
    nats, count = model.loss(params, batch, None)

A batch is a dict: `tokens` int32 [B, T + 1], inputs then targets then padding; `prefix` int32 [B],
the number of inputs; `weights` float32 [B, T + 1], 1 where a token is a target. The layers are
those of `ul2`. Since inputs see what follows them, distances have buckets in both directions.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models import ul2
from lagjax.algebra.layout import Params
from lagjax.algebra.proof import Requirement
from lagjax.model import Key, Model


@dataclass(frozen=True, kw_only=True)
class Config(ul2.Sizes):
    """The shape of a decoder.

    Attributes:
        layers: number of layers.
    """

    layers: int


BASE = Config(layers=12, width=768, heads=12, head_dim=64, mlp=2048, vocab=32_128)
"""A decoder of T5.1.1 base's sizes."""
SMALL = Config(layers=8, width=512, heads=6, head_dim=64, mlp=1024, vocab=32_128)
"""One of T5.1.1 small's."""
TINY = Config(
    layers=3, width=48, heads=4, head_dim=12, mlp=96, vocab=384, buckets=16, max_distance=64
)
"""For CPUs: bytes, and room for special tokens."""


class Decoder(nn.Module):
    """Integer tokens [B, T], of which the first `prefix` [B] are inputs → logits [B, T, vocab]."""

    config: Config

    @nn.compact
    def __call__(self, tokens: jax.Array, prefix: jax.Array, training: bool = False) -> jax.Array:
        c, length = self.config, tokens.shape[1]
        causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
        inputs = jnp.arange(length)[None] < prefix[:, None]
        context = ul2.Context(
            ul2.positions(c, "layers_bias", length, both=True), causal | inputs[:, None, None, :]
        )
        x = ul2.embedding(c)(tokens)
        return ul2.head(c, ul2.through(c, training, "layers", c.layers, x, context))


UNROLLED, SCANNED = (ul2.table({"layers": ul2.SELF}, scanned) for scanned in (False, True))


def required(config: Config, requires: Iterable[Requirement]) -> Model:
    """The model as a plan requires it."""
    return model(config.required(requires))


@functools.cache
def model(config: Config) -> Model:
    """The decoder as lagjax wants it: batches of `tokens`, `prefix` and `weights`.

    Equal configs give the same functions, so that jit compiles them once.
    """
    net = Decoder(config)

    def init(key: Key) -> Params:
        return net.init(key, jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32))["params"]

    def logits(params: Params, batch: Mapping[str, jax.Array], key: Key | None) -> jax.Array:
        rngs = None if key is None else {"dropout": key}
        tokens = batch["tokens"][:, :-1]
        return net.apply(
            {"params": params}, tokens, batch["prefix"], training=key is not None, rngs=rngs
        )

    return ul2.made(init, logits, SCANNED if config.scanned else UNROLLED)
