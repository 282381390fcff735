"""What each kind of model brings to an experiment about growing: models of every depth and width,
batches, validation shards and an optimizer, so that the experiment knows neither.

    setting = settings.MODELS["bert"](settings.Size(), layers=3, data=None)
    setting.small, setting.large(6, False)              # lagjax.Model
    setting.batch(0, 3), setting.valid                  # a training batch, validation shards

"gpt" reads bytes, the others subwords of a vocabulary that is trained on the text.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np
import optax
from numpy.typing import NDArray

from experiments.data import denoisers, masked, subwords, text
from experiments.models import bert, gpt, ul2, ul2_decoder
from lagjax.algebra.proof import Requirement
from lagjax.engine import Engine, from_loss
from lagjax.flops import flops
from lagjax.model import Batch, Model

BERT_SPECIALS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
BLANK = "random subwords"
"""In place of a text: `Blank`."""
_DOCUMENTS = 64
UL2_SPECIALS = ("[PAD]", "[EOS]", "[NLU]", "[NLG]", "[S2S]")


@dataclasses.dataclass(frozen=True)
class Size:
    """Numbers that small and large models share, and their data.

    Attributes:
        width: of the small model; a wider one has twice that, and twice the heads.
        heads: attention heads.
        window: length of a training window, in tokens.
        batch: windows in a batch.
        shards: validation shards, each of one batch.
        vocab: of subwords; GPT reads bytes. With so few a tiny BERT learns within a thousand steps.
        mlp: hidden units of UL2's MLPs, each of which is gated; None is twice the width.
        learning_rate: peak of the small model's schedule.
        weight_decay: the rate of decay.
        scanned: whether layers are one stack of arrays, which compiles faster.
        dropout: rate in training.
    """

    width: int = 48
    heads: int = 4
    window: int = 64
    batch: int = 8
    shards: int = 8
    vocab: int = 320
    mlp: int | None = None
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    scanned: bool = False
    dropout: float = 0.0


class Setting(NamedTuple):
    """What a kind of model brings.

    Attributes:
        small: the model that is grown.
        large: `(layers, wider)` → the model that it is grown into.
        required: `(layers, wider, requirements)` → that one as a plan requires it.
        batch: `(seed, step)` → batch.
        valid: validation shards.
        shards: what each of them is of; "" where they are alike.
        optimizer: schedule → the optimizer of a model, small or large.
        engine: what trains it.
        corpus: a digest of the text.
        specials: ids of the tokens that no text has.
        rate: the peak of the small model's schedule.
    """

    small: Model
    large: Callable[[int, bool], Model]
    required: Callable[[int, bool, tuple[Requirement, ...]], Model]
    batch: Callable[[int, int], Batch]
    valid: Sequence[Batch]
    shards: tuple[str, ...]
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation]
    engine: Callable[[Model, optax.GradientTransformation | None], Engine]
    corpus: str
    specials: tuple[int, ...]
    rate: float


class Kind(Protocol):
    """A kind of model: sizes, the small model's layers, a text → what it brings."""

    def __call__(self, size: Size, layers: int, data: str | None, /) -> Setting: ...


def _gpt(size: Size, layers: int, data: str | None) -> Setting:
    """GPT over bytes."""
    corpus = text.load(None if data == BLANK else data)

    def sized(layers: int, wider: bool) -> gpt.Config:
        width, heads = _sizes(size, wider)
        return gpt.Config(
            layers, width, heads, size.window, dropout=size.dropout, scanned=size.scanned
        )

    valid = text.shards(corpus, size.shards, size.batch, size.window)
    return Setting(
        gpt.model(sized(layers, False)),
        lambda layers, wider: gpt.model(sized(layers, wider)),
        lambda layers, wider, asked: gpt.required(sized(layers, wider), asked),
        text.batches(corpus, size.batch, size.window),
        valid,
        ("",) * len(valid),
        functools.partial(_adamw, size),
        from_loss,
        corpus.digest,
        (),
        size.learning_rate,
    )


def _bert(post_norm: bool, size: Size, layers: int, data: str | None) -> Setting:
    """BERT with its two objectives and its optimizer, at a third of the rate: that optimizer's
    first steps are up to six times as long as AdamW's.
    """
    corpus = _subwords(size, data, BERT_SPECIALS)
    given = corpus.specials, corpus.vocab

    def sized(layers: int, wider: bool) -> bert.Config:
        width, heads = _sizes(size, wider)
        return bert.Config(
            layers, width, heads, size.window, corpus.vocab, post_norm=post_norm,
            dropout=size.dropout, scanned=size.scanned,
        )  # fmt: skip

    small = bert.model(sized(layers, False))
    valid = masked.shards(corpus.valid, *given, size.shards, size.batch, size.window)
    return Setting(
        small,
        lambda layers, wider: bert.model(sized(layers, wider)),
        lambda layers, wider, asked: bert.required(sized(layers, wider), asked),
        masked.batches(corpus.train, *given, size.batch, size.window),
        valid,
        ("",) * len(valid),
        # Small and large models have the same rows.
        lambda rates: bert.optimizer(small.axes, rates, size.weight_decay),
        bert.engine,
        corpus.digest,
        (*corpus.specials.values(),),
        size.learning_rate / 3,
    )


def _ul2(joined: bool, size: Size, layers: int, data: str | None) -> Setting:
    """UL2's mixture, for a decoder alone or an encoder and a decoder of so many layers each."""
    shape = denoisers.Joined(size.window) if joined else denoisers.Pairs(size.window, size.window)
    mixture = denoisers.scaled(shape.window)
    needed = denoisers.sentinels_needed(mixture, shape)
    specials = *UL2_SPECIALS, *(f"<extra_{number}>" for number in range(needed))
    corpus = _subwords(size, data, specials)
    end = corpus.special("[EOS]")

    def windows(seed: int, step: int, count: int, length: int) -> object:
        # A set made once: all its windows are disjoint, whatever their number.
        del seed
        whole = len(mixture) * count
        return subwords.valid_windows(corpus.valid, end, whole, length)[step :: len(mixture)]

    def sized(layers: int, wider: bool) -> ul2.Config | ul2_decoder.Config:
        width, heads = _sizes(size, wider)
        shared = {
            "width": width, "heads": heads, "head_dim": size.width // size.heads,
            "mlp": (width // size.width) * (size.mlp or 2 * size.width), "vocab": corpus.vocab,
            # T5's, or as much of it as a short window has a use for.
            "buckets": 32 if size.window >= 128 else 16, "max_distance": min(128, size.window),
            "dropout": size.dropout, "scanned": size.scanned,
        }  # fmt: skip
        if joined:
            return ul2_decoder.Config(layers=layers, **shared)
        return ul2.Config(encoder_layers=layers, decoder_layers=layers, **shared)

    module = ul2_decoder if joined else ul2
    valid = denoisers.shards(windows, corpus.specials, size.batch, shape, 1, mixture)
    return Setting(
        module.model(sized(layers, False)),
        lambda layers, wider: module.model(sized(layers, wider)),
        lambda layers, wider, asked: module.required(sized(layers, wider), asked),
        denoisers.batches(
            subwords.windows(corpus.train, end), corpus.specials, size.batch, shape, mixture
        ),
        valid.batches,
        valid.names,
        lambda rates: ul2.optimizer(rates, "adamw", size.weight_decay),
        functools.partial(from_loss, unit="nats per target"),
        corpus.digest,
        (*corpus.specials.values(),),
        size.learning_rate,
    )


MODELS: Mapping[str, Kind] = {
    "gpt": _gpt,
    "bert": functools.partial(_bert, True),
    "bert-pre-norm": functools.partial(_bert, False),
    "ul2-decoder": functools.partial(_ul2, True),
    "ul2": functools.partial(_ul2, False),
}
"""Kinds of models by name: BERT as published and with norms before each sublayer, UL2 as a decoder
alone and as an encoder and a decoder."""


class Blank:
    """A text of random subwords, where only shapes count: no vocabulary is trained for it.

    Attributes are those of `subwords.Subwords`.
    """

    digest = "random"

    def __init__(self, vocab: int, specials: Sequence[str], length: int) -> None:
        self.vocab, self.specials = vocab, {name: at for at, name in enumerate(specials)}
        random = np.random.default_rng(0)
        drawn = random.integers(len(specials), vocab, (_DOCUMENTS, length), dtype=np.int32)
        self.train = self.valid = _Drawn(drawn)

    def special(self, name: str) -> int:
        """The id of a special token."""
        return self.specials[name]


class _Drawn:
    """Documents of one length."""

    def __init__(self, ids: NDArray[np.int32]) -> None:
        self._ids, self.lengths = ids, np.full(len(ids), ids.shape[1], np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        return self._ids[index]


def _subwords(size: Size, data: str | None, specials: Sequence[str]) -> subwords.Subwords | Blank:
    if data == BLANK:
        return Blank(size.vocab, specials, 4 * size.batch * size.window)
    return subwords.load(data, size.vocab, specials)


def step_flops(model: Model, batch: Batch) -> float:
    """FLOPs of a training step, by shapes alone."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    return flops(jax.grad(lambda params: model.loss(params, batch, None)[0]), params)


def _sizes(size: Size, wider: bool) -> tuple[int, int]:
    times = 2 if wider else 1
    return times * size.width, times * size.heads


def _adamw(size: Size, rates: optax.Schedule) -> optax.GradientTransformation:
    """AdamW whose state holds the learning rate, for the curves."""
    return optax.inject_hyperparams(optax.adamw)(
        learning_rate=rates, weight_decay=size.weight_decay
    )
