"""UL2's mixture of denoisers (Tay et al., 2022, arXiv:2205.05131), in NumPy.

A denoiser makes a pair of a text: inputs, in which spans are replaced by sentinels, and targets,
which say what stood there (Raffel et al., 2020, arXiv:1910.10683), or a text's beginning and its
end. Everything is a pure function of tokens and a key, which is whatever
`numpy.random.default_rng` takes, an int or a sequence such as (seed, step)::

    shape = Pairs(inputs=64, targets=64)                # for `ul2`; Joined(64) for `ul2_decoder`
    batch = batches(windows, ids, 8, shape)
    batch(seed=0, step=3)["inputs"]                     # int32 [8, 64]
    valid = shards(windows_of_validation, ids, 8, shape)
    by_denoiser(valid.names, losses, valid.counts)      # name → nats per target

`windows(seed, step, count, length)` gives int32 [count, length] of text without special tokens,
`ids` are those of `[PAD]` (0), `[EOS]`, `[NLU]`, `[NLG]`, `[S2S]` and `<extra_0>`, `<extra_1>`, ...
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int32]
Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Batch: TypeAlias = dict[str, NDArray]
Seed: TypeAlias = int | Sequence[int]
Windows: TypeAlias = Callable[[int, int, int, int], Ints]

PUBLISHED_WINDOW = 512
"""Tokens of UL2's inputs, and as many of its targets."""
# Whoever draws the windows by (seed, step) shall not draw the same numbers.
_TRAIN, _VALID = 0x7A11, 0x7A12


@dataclass(frozen=True)
class Denoiser:
    """A way to make inputs and targets of a text; plain data, so that result rows can hold it.

    Attributes:
        name: as published, also where the span is scaled to a shorter window.
        mode: the token in front of the inputs.
        rate: share of the text that becomes targets; of a prefix, in the mean.
        span: mean length of a span in tokens; None cuts the text in two, a prefix and the rest.
        roll: whether the text before the first span is cut at random and its beginning put, as a
            place for text, after the last span. See `scaled`.
    """

    name: str
    mode: str
    rate: float
    span: float | None
    roll: bool = False

    def __post_init__(self) -> None:
        most = 1.0 if self.span else 0.5
        if not 0 < self.rate <= most or self.rate == 1 or (self.span is not None and self.span < 1):
            raise ValueError(
                f"{self}: expected a rate above 0, below 1 with spans and up to 0.5 with a prefix, "
                "and spans of 1 token or more; change rate or span"
            )


UL2 = (
    Denoiser("R-3-15", "[NLU]", 0.15, 3.0),
    Denoiser("R-8-15", "[NLU]", 0.15, 8.0),
    Denoiser("X-3-50", "[NLG]", 0.5, 3.0),
    Denoiser("X-8-50", "[NLG]", 0.5, 8.0),
    Denoiser("X-64-15", "[NLG]", 0.15, 64.0),
    Denoiser("X-64-50", "[NLG]", 0.5, 64.0),
    Denoiser("S-25", "[S2S]", 0.25, None),
)
"""The seven of UL2, table 1 and section 3.1.2, for a window of 512."""


def scaled(window: int, roll: bool = False) -> tuple[Denoiser, ...]:
    """UL2's denoisers for inputs of `window` tokens; those of 512 and more are the published ones.

    In a short text a span of 64 is one span at most, and since texts begin with what is kept, it is
    always the end: the denoiser would be the prefix model under another name. So the longest span
    shrinks with the window, which keeps the number of spans about as published (7 for 8 at 64
    tokens); the shortest stays at 3, and the logarithms of those between follow, so that no two
    denoisers become one.

    At 0.15 and 64 there is one span at the published window too, always the end. That is kept as
    published, here and in other implementations; `roll` puts it anywhere. Each text then has the
    same number of spans and tokens, and still begins with what is kept.
    """
    short, long = 3.0, 64.0
    share = np.log(max(short, long * min(1.0, window / PUBLISHED_WINDOW)) / short)
    share /= np.log(long / short)

    def fitted(span: float | None) -> float | None:
        return span if span is None else round(short * (span / short) ** float(share), 2)

    return tuple(
        replace(each, span=fitted(each.span), roll=roll and each.span is not None) for each in UL2
    )


class Special(NamedTuple):
    """The ids of special tokens.

    Attributes:
        pad: of padding; 0.
        eos: the end of inputs, and of targets.
        modes: name → id of the modes.
        sentinels: int32 [n], those of the first span, the second, and so on.
    """

    pad: int
    eos: int
    modes: Mapping[str, int]
    sentinels: Ints

    @property
    def all(self) -> tuple[int, ...]:
        """The ids of all."""
        return (self.pad, self.eos, *self.modes.values(), *self.sentinels.tolist())


def special(ids: Mapping[str, int]) -> Special:
    """The special tokens of a vocabulary by name; raises ValueError where one is missing."""
    wanted = ("[PAD]", "[EOS]", *dict.fromkeys(each.mode for each in UL2))
    if missing := [name for name in wanted if name not in ids]:
        raise ValueError(
            f"the vocabulary has no {', '.join(missing)}; train the tokenizer with these as "
            "special tokens"
        )
    if ids["[PAD]"] != 0:
        raise ValueError(f"[PAD] has the id {ids['[PAD]']}; the models take 0 for padding, give 0")
    numbers = range(sum(name.startswith("<extra_") for name in ids))
    if gaps := [number for number in numbers if f"<extra_{number}>" not in ids]:
        raise ValueError(
            f"the vocabulary has {len(numbers)} sentinels and no <extra_{gaps[0]}>; number them "
            "from 0"
        )
    sentinels = np.array([ids[f"<extra_{number}>"] for number in numbers], np.int32)
    return Special(0, ids["[EOS]"], {name: ids[name] for name in wanted[2:]}, sentinels)


class Lengths(NamedTuple):
    """What a text becomes, in tokens, with the mode in front and an end after both parts.

    Attributes:
        inputs: at most.
        targets: at most.
        both: together.
        spans: how many sentinels are needed.
    """

    inputs: int
    targets: int
    both: int
    spans: int


def counts(denoiser: Denoiser, length: int) -> tuple[int, int]:
    """How many tokens of a text become targets, and in how many spans; of spans, not a prefix.

    As T5 has it, but that texts too short for as many spans have fewer.
    """
    noise = min(max(round(length * denoiser.rate), 1), length - 1)
    spans = round(noise / (denoiser.span or length))
    return noise, max(1, min(spans, noise, length - noise))


def shortest_prefix(denoiser: Denoiser, length: int) -> int:
    """The least inputs of a prefix denoiser; their number is uniform from it to length - 1."""
    return max(1, round((1 - 2 * denoiser.rate) * (length - 1)))


def lengths(denoiser: Denoiser, length: int) -> Lengths:
    """What a text of `length` tokens, 2 or more, becomes."""
    if denoiser.span is None:
        targets = length - shortest_prefix(denoiser, length) + 1
        return Lengths(length + 1, targets, length + 3, 0)
    noise, spans = counts(denoiser, length)
    inputs, targets = length - noise + spans + 2, noise + spans + 1
    return Lengths(inputs, targets, inputs + targets, spans)


@dataclass(frozen=True)
class Pairs:
    """Batches for an encoder and a decoder.

    They have `inputs` int32 [B, inputs], `targets` int32 [B, targets], both padded, and `weights`
    float32 [B, targets], 1 where a target is no padding.
    """

    inputs: int
    targets: int

    @property
    def window(self) -> int:
        """What spans are scaled to."""
        return self.inputs

    def fits(self, found: Lengths) -> bool:
        """Whether nothing of a text is cut off."""
        return found.inputs <= self.inputs and found.targets <= self.targets

    def batch(self, inputs: "Placed", targets: "Placed") -> Batch:
        """Puts them side by side."""
        size = len(inputs.lengths)
        return {
            "inputs": inputs.put(np.zeros((size, self.inputs), np.int32)),
            "targets": targets.put(np.zeros((size, self.targets), np.int32)),
            "weights": targets.ones(np.zeros((size, self.targets), np.float32)),
        }


@dataclass(frozen=True)
class Joined:
    """Batches for a decoder alone, which sees `length` tokens at once.

    They have `tokens` int32 [B, length + 1], inputs, targets and padding; `prefix` int32 [B], the
    number of inputs; `weights` float32 [B, length + 1], 1 where a token is a target.
    """

    length: int

    @property
    def window(self) -> int:
        """What spans are scaled to: half, as inputs and targets are published."""
        return self.length // 2

    def fits(self, found: Lengths) -> bool:
        """Whether nothing of a text is cut off."""
        return found.both <= self.length + 1

    def batch(self, inputs: "Placed", targets: "Placed") -> Batch:
        """Puts targets behind inputs."""
        shape = len(inputs.lengths), self.length + 1
        after = targets._replace(columns=targets.columns + inputs.lengths[targets.rows])
        return {
            "tokens": after.put(inputs.put(np.zeros(shape, np.int32))),
            "prefix": inputs.lengths.astype(np.int32),
            "weights": after.ones(np.zeros(shape, np.float32)),
        }


Shape: TypeAlias = Pairs | Joined


def text_length(denoiser: Denoiser, shape: Shape) -> int:
    """The tokens of text that fill a shape as far as they can, with nothing cut off.

    Raises ValueError where not even two do.
    """
    if not shape.fits(lengths(denoiser, 2)):
        raise ValueError(
            f"{shape} has no room for two tokens of text, a mode, a sentinel and the ends of "
            f"{denoiser.name}; give more"
        )
    length = 2
    while shape.fits(lengths(denoiser, length + 1)):
        length += 1
    return length


def sentinels_needed(denoisers: Sequence[Denoiser], shape: Shape) -> int:
    """How many sentinels a vocabulary must have; at the published window 128, T5's has 100."""
    return max(lengths(each, text_length(each, shape)).spans for each in denoisers)


class Placed(NamedTuple):
    """Tokens with their places in an array of rows padded to one length.

    Attributes:
        rows: of each token.
        columns: of each token.
        values: the tokens.
        lengths: [B], how many each row has.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Ints
    lengths: NDArray[np.int64]

    def put(self, into: Ints) -> Ints:
        """Writes the tokens."""
        into[self.rows, self.columns] = self.values
        return into

    def ones(self, into: NDArray[np.float32]) -> NDArray[np.float32]:
        """Writes a 1 in the place of each token."""
        into[self.rows, self.columns] = 1
        return into


def _uniform(key: Seed, count: int) -> Floats:
    # Raw bits, unlike Generator's methods, are the same in every version of numpy.
    bits = np.random.default_rng(key).bit_generator.random_raw(count)
    return (bits >> np.uint64(11)) * 2.0**-53


def _parts(drawn: Floats, items: NDArray[np.int64], parts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Random lengths, 1 or more, of `parts` [B] parts of `items` [B]: [B, most parts], then 0.

    All ways to cut are equally likely: of the items - 1 gaps, those with the smallest numbers of
    `drawn` [B, most items] are.
    """
    gaps = np.arange(drawn.shape[1])
    order = np.argsort(np.where(gaps < items[:, None] - 1, drawn, 2.0), axis=1)
    first = order[:, : parts.max() - 1]
    cuts = np.where(np.arange(first.shape[1]) < parts[:, None] - 1, first, items[:, None] - 1)
    ends = np.concatenate([np.sort(cuts, axis=1) + 1, items[:, None]], axis=1)
    return np.diff(ends, axis=1, prepend=0)


def _masks(denoisers: Sequence[Denoiser], size: NDArray[np.int64], key: Seed) -> Bools:
    """Which tokens become targets, for a denoiser and a length in each row: [B, longest]."""
    rows, most = len(size), int(size.max())
    drawn = _uniform(key, rows * (1 + 2 * most))
    place, gaps = drawn[:rows], drawn[rows:].reshape(2, rows, most)
    one_by_one = [counts(each, int(n)) for each, n in zip(denoisers, size)]
    noise, spans = np.array(one_by_one, np.int64).T
    removed = _parts(gaps[0], noise, spans)
    kept = _parts(gaps[1], size - noise, spans)
    starts = np.cumsum(kept, 1) + np.cumsum(removed, 1) - removed
    roll = np.array([each.roll for each in denoisers])
    starts -= np.where(roll, (place * kept[:, 0]).astype(np.int64), 0)[:, None]
    change = np.zeros((rows, most + 1), np.int64)
    index = np.broadcast_to(np.arange(rows)[:, None], starts.shape)
    np.add.at(change, (index, starts), 1)
    np.add.at(change, (index, starts + removed), -1)
    masks = np.cumsum(change, 1)[:, :most] > 0
    for row, each in enumerate(denoisers):
        if each.span is None:
            least = shortest_prefix(each, int(size[row]))
            prefix = least + int(place[row] * (size[row] - least))
            masks[row] = np.arange(most) >= prefix
    return masks & (np.arange(most) < size[:, None])


def noise_mask(denoiser: Denoiser, length: int, key: Seed) -> Bools:
    """Which tokens of a text of `length`, 2 or more, become targets: bool [length].

    T5's algorithm: what is kept and what is removed are cut into as many parts at random, all ways
    equally likely, and alternate; the first is kept. Of a prefix denoiser, all after the prefix.
    """
    return _masks([denoiser], np.array([length]), key)[0]


def _placed(
    tokens: Ints, masks: Bools, denoisers: Sequence[Denoiser], size: NDArray, ids: Special
) -> tuple[Placed, Placed]:
    """Inputs and targets of texts [B, N], of which `size` [B] tokens count, by their masks."""
    starts = masks.copy()
    starts[:, 1:] &= ~masks[:, :-1]
    starts &= np.array([each.span is not None for each in denoisers])[:, None]
    span = np.cumsum(starts, 1)
    sentinel = np.append(ids.sentinels, ids.eos)[np.maximum(span - 1, 0)]
    modes = [ids.modes[each.mode] for each in denoisers]
    every = np.arange(len(tokens))

    stays = ((np.arange(tokens.shape[1]) < size[:, None]) & ~masks) | starts
    rows, at = np.nonzero(stays)
    inputs = Placed(
        np.concatenate([every, rows, every]),
        np.concatenate([0 * every, np.cumsum(stays, 1)[rows, at], stays.sum(1) + 1]),
        np.concatenate([modes, np.where(starts, sentinel, tokens)[rows, at], 0 * every + ids.eos]),
        stays.sum(1) + 2,
    )
    rows, at = np.nonzero(masks)
    columns = np.cumsum(masks, 1) - 1 + span
    marked, front = np.nonzero(starts)
    ends = masks.sum(1) + span[:, -1]
    targets = Placed(
        np.concatenate([rows, marked, every]),
        np.concatenate([columns[rows, at], columns[marked, front] - 1, ends]),
        np.concatenate([tokens[rows, at], sentinel[marked, front], 0 * every + ids.eos]),
        ends + 1,
    )
    return inputs, targets


def corrupted(denoiser: Denoiser, tokens: Ints, key: Seed, ids: Special) -> tuple[Ints, Ints]:
    """Inputs and targets of one text, int32 [n], without padding.

    Raises ValueError where there are fewer sentinels than spans.
    """
    size = np.array([len(tokens)])
    _check_sentinels(lengths(denoiser, len(tokens)).spans, ids, f"{denoiser} of {size[0]} tokens")
    masks = _masks([denoiser], size, key)
    found = _placed(np.asarray(tokens)[None], masks, [denoiser], size, ids)
    inputs, targets = (each.put(np.zeros((1, each.lengths[0]), np.int32))[0] for each in found)
    return inputs, targets


def restored(inputs: Ints, targets: Ints, ids: Special) -> Ints:
    """The text that inputs and targets, with or without padding, were made of: int32 [n]."""
    spans: dict[int, list[int]] = {}
    sentinels = set(ids.sentinels.tolist())
    # Without sentinels the targets are what follows the inputs.
    into = spans.setdefault(ids.eos, [])
    for token in targets[: targets.tolist().index(ids.eos)].tolist():
        if token in sentinels:
            into = spans.setdefault(token, [])
        else:
            into.append(token)
    text: list[int] = []
    for token in inputs[1 : inputs.tolist().index(ids.eos) + 1].tolist():
        text += spans.get(token, []) if token in sentinels or token == ids.eos else [token]
    return np.array(text, np.int32)


def _check_sentinels(needed: int, ids: Special, whose: str) -> None:
    if needed > len(ids.sentinels):
        raise ValueError(
            f"{whose} needs {needed} sentinels, and the vocabulary has {len(ids.sentinels)}; train "
            f"the tokenizer with <extra_0> to <extra_{needed - 1}>, or make the windows shorter"
        )


def batches(
    windows: Windows,
    ids: Mapping[str, int],
    size: int,
    shape: Shape,
    denoisers: Sequence[Denoiser] | None = None,
    shares: Sequence[float] | None = None,
) -> Callable[[int, int], Batch]:
    """Training batches by (seed, step), each text with a denoiser drawn for it.

    Windows are drawn as long as the longest text that a denoiser takes, and the others use their
    beginning, so that which text is seen does not depend on the mixture.

    Args:
        windows: the text.
        ids: name → id of the special tokens.
        size: texts in a batch.
        shape: of the batch.
        denoisers: of the mixture; by default `scaled` to the shape.
        shares: of the denoisers in the mixture; by default all are equally likely, as in UL2.

    Raises:
        ValueError: for a vocabulary without a special token or with too few sentinels, and shares
            that are none.
    """
    mixture = tuple(scaled(shape.window) if denoisers is None else denoisers)
    rates = np.ones(len(mixture)) if shares is None else np.asarray(shares, np.float64)
    if rates.shape != (len(mixture),) or (rates < 0).any() or not rates.sum() > 0:
        raise ValueError(
            f"shares={shares}: expected {len(mixture)} numbers, not negative, one for each "
            "denoiser; correct them or leave them out"
        )
    upto = np.cumsum(rates / rates.sum())
    known = special(ids)
    size_of = _text_lengths(mixture, shape, known)

    def batch(seed: int, step: int) -> Batch:
        drawn = _uniform((seed, step, _TRAIN), size)
        chosen = np.minimum(np.searchsorted(upto, drawn, side="right"), len(mixture) - 1)
        texts = _texts(windows, seed, step, size, max(size_of))
        which = [mixture[index] for index in chosen]
        return _made(texts, which, size_of[chosen], (seed, step, _TRAIN, 1), known, shape)

    return batch


class Shards(NamedTuple):
    """A validation set, each shard of one denoiser.

    Attributes:
        batches: what a task takes as `valid`.
        names: of the denoiser of each shard.
        counts: targets in each shard.
    """

    batches: tuple[Batch, ...]
    names: tuple[str, ...]
    counts: tuple[int, ...]


def shards(
    windows: Windows,
    ids: Mapping[str, int],
    size: int,
    shape: Shape,
    each: int = 1,
    denoisers: Sequence[Denoiser] | None = None,
) -> Shards:
    """A fixed validation set: `each` shards of every denoiser, in turn.

    In turn, because a probe may be evaluated on the first few shards only: whole rounds of all
    denoisers are nearest to the mixture. The mixture's own noise, which denoiser a text happens to
    meet, is then in no comparison.

    Args:
        windows: the text, of the validation part; asked for seed 0 and steps 0, 1, 2, ...
        ids: name → id of the special tokens.
        size: texts in a shard.
        shape: of a shard.
        each: shards of every denoiser.
        denoisers: by default `scaled` to the shape.

    Raises:
        ValueError: as `batches` does.
    """
    mixture = tuple(scaled(shape.window) if denoisers is None else denoisers)
    known = special(ids)
    size_of = _text_lengths(mixture, shape, known)
    made, names = [], []
    for number in range(each * len(mixture)):
        index = number % len(mixture)
        texts = _texts(windows, 0, number, size, max(size_of))
        which, lasts = [mixture[index]] * size, np.full(size, size_of[index])
        made.append(_made(texts, which, lasts, (number, _VALID), known, shape))
        names.append(mixture[index].name)
    return Shards(tuple(made), tuple(names), tuple(int(x["weights"].sum()) for x in made))


def by_denoiser(
    names: Sequence[str], means: Sequence[float | None], counts: Sequence[float]
) -> dict[str, float]:
    """A mean of each denoiser from those of its shards: name → nats per target, or whatever it is.

    Args:
        names: of the denoiser of each shard.
        means: of each shard, as `valid_loss_shards` of a run; None, and shards that are not there
            because a probe was evaluated on the first few only, are left out.
        counts: targets in each shard.
    """
    sums: dict[str, list[float]] = {}
    for name, mean, count in zip(names, means, counts, strict=False):
        if mean is not None and count:
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += mean * count
            total[1] += count
    return {name: total / count for name, (total, count) in sums.items()}


def _text_lengths(mixture: Sequence[Denoiser], shape: Shape, ids: Special) -> NDArray[np.int64]:
    if not mixture:
        raise ValueError("there are no denoisers; give at least one")
    found = [text_length(each, shape) for each in mixture]
    for each, length in zip(mixture, found):
        whose = f"{each} of {length} tokens, which fill {shape},"
        _check_sentinels(lengths(each, length).spans, ids, whose)
    return np.array(found)


def _texts(windows: Windows, seed: int, step: int, count: int, length: int) -> Ints:
    texts = np.asarray(windows(seed, step, count, int(length)))
    if texts.shape != (count, length):
        raise ValueError(
            f"windows({seed}, {step}, {count}, {length}) has the shape {texts.shape}; expected "
            f"{(count, int(length))}, tokens of text"
        )
    return texts


def _made(
    texts: Ints,
    which: Sequence[Denoiser],
    size: NDArray[np.int64],
    key: Seed,
    ids: Special,
    shape: Shape,
) -> Batch:
    texts = texts[:, : size.max()]
    return shape.batch(*_placed(texts, _masks(which, size, key), which, size, ids))
