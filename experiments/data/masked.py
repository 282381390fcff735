"""BERT's inputs: sentence pairs and masked tokens (Devlin et al. 2018, arXiv 1810.04805, 3.1).

Pure functions of tokens and a key, in NumPy; a key is what `numpy.random.default_rng` takes, an
integer or several, as (seed, step)::

    batch = masked.batches(documents, specials, vocab=1024, batch_size=8, window=64)
    batch(seed=0, step=3)["tokens"]                     # int32 [8, 64]
    masked.shards(valid, specials, n_shards=8, vocab=1024, batch_size=8, window=64)

A batch is a dict of arrays: `tokens` and `segments`, int32 [B, T], padded with [PAD]; `positions`
and `targets`, int32 [B, P], and `weights`, float32 [B, P], of the tokens to predict, 0 where there
are fewer than P; `next`, int32 [B], 0 where the second segment follows the first and 1 where it is
of another document.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from experiments.data.subwords import Documents

Key: TypeAlias = int | Sequence[int]
Tokens: TypeAlias = NDArray[np.int32]
Batch: TypeAlias = dict[str, NDArray[np.int32] | NDArray[np.float32]]
RATE = 0.15
"""Share of the tokens that are predicted."""
SHORT = 0.1
"""Share of the pairs that are made shorter than the window, as fine-tuning's are."""
# Apart from each other and from whatever else is drawn with a key; none is 0, which a key that is
# filled up with zeros already ends with.
_PAIRS, _MASK, _VALID = 1, 2, 3


class Masked(NamedTuple):
    """Rows of which some tokens are to be predicted.

    Attributes:
        inputs: what the model sees, int32 [B, T].
        positions: of the tokens to predict, int32 [B, P], ascending; 0 where there is none.
        targets: what stood there, int32 [B, P]; 0 where there is none.
        weights: float32 [B, P], 1 where there is one and else 0.
    """

    inputs: Tokens
    positions: Tokens
    targets: Tokens
    weights: NDArray[np.float32]


class Pairs(NamedTuple):
    """Pairs of segments, `[CLS] A [SEP] B [SEP]`.

    Attributes:
        tokens: int32 [B, T], filled up with [PAD].
        segments: 1 from the first token of B to the last [SEP] and else 0, int32 [B, T].
        next: 0 where B follows A, 1 where it is of another document, int32 [B].
    """

    tokens: Tokens
    segments: Tokens
    next: Tokens


def most(window: int, rate: float = RATE) -> int:
    """How many tokens of a full window are predicted."""
    return max(1, round(rate * window))


def mask(
    tokens: Tokens,
    key: Key,
    specials: Mapping[str, int],
    vocab: int,
    max_predictions: int | None = None,
    rate: float = RATE,
) -> Masked:
    """Chooses tokens to predict, and hides most of them.

    Of a row of n tokens, special ones among them, min(max_predictions, max(1, round(rate n))) are
    chosen, none of them special. Of those 80 % become [MASK], 10 % stay, and 10 % become any token
    that is not special: the published code's may also be special.

    Args:
        tokens: int32 [B, T], filled up with [PAD].
        key: of the draw.
        specials: name → id of all special tokens.
        vocab: number of tokens.
        max_predictions: P; as many as `rate` asks for of T tokens unless given.
        rate: share of the tokens to predict.
    """
    _check(specials, vocab)
    draw = np.random.default_rng(key)
    width = tokens.shape[1]
    limit = min(most(width, rate) if max_predictions is None else max_predictions, width)
    special = np.zeros(vocab, bool)
    special[list(specials.values())] = True
    hidden = special[tokens]
    lengths = (tokens != specials["[PAD]"]).sum(1)
    wanted = np.clip(np.rint(rate * lengths), 1, limit)
    wanted = np.minimum(wanted, width - hidden.sum(1)).astype(int)
    # The tokens with the lowest of as many random numbers are a choice without replacement.
    order = np.argsort(draw.random(tokens.shape) + hidden, axis=1)[:, :limit]
    real = np.arange(limit) < wanted[:, None]
    # In the text's order, the places without a token behind it.
    positions = np.sort(np.where(real, order, width), axis=1)
    positions = np.where(real, positions, 0)
    targets = np.where(real, np.take_along_axis(tokens, positions, 1), 0)
    fate = draw.random(positions.shape)
    ordinary = np.flatnonzero(~special)
    other = ordinary[draw.integers(len(ordinary), size=positions.shape)]
    shown = np.where(fate < 0.8, specials["[MASK]"], np.where(fate < 0.9, targets, other))
    inputs = tokens.astype(np.int32)
    rows, columns = np.nonzero(real)
    inputs[rows, positions[rows, columns]] = shown[rows, columns]
    return Masked(
        inputs, positions.astype(np.int32), targets.astype(np.int32), real.astype(np.float32)
    )


def pairs(
    documents: Documents, key: Key, specials: Mapping[str, int], batch_size: int, window: int
) -> Pairs:
    """Draws pairs of segments, half of which are next to each other in one document.

    A document is drawn by its length, a start in it at random; A and B together fill the window, or
    in a tenth of the pairs a random part of it, as far as the document goes, and are cut anywhere.
    Then half of the Bs are replaced by as long a part of another document, so that the places and
    lengths of A tell nothing. The published code cuts between sentences, which these tokens do not
    mark, and goes through the documents in order. Documents of one token are left out.

    Args:
        documents: the text; at least two of them must have two tokens.
        key: of the draw.
        specials: name → id of all special tokens.
        batch_size: number of pairs.
        window: tokens of a pair with its special ones, at least 5.
    """
    return _drawer(documents, specials, window)(key, batch_size)


def _drawer(
    documents: Documents, specials: Mapping[str, int], window: int
) -> Callable[[Key, int], Pairs]:
    """`pairs` of a key and a number of rows; what depends on the documents alone is done once."""
    if window < 5:
        raise ValueError(
            f"window={window} has no room for two segments and three special tokens; give at "
            "least 5"
        )
    able = np.flatnonzero(documents.lengths >= 2)
    if len(able) < 2:
        raise ValueError(
            f"{len(able)} of {len(documents)} documents have two tokens or more; pairs need two "
            "such documents"
        )
    sizes = documents.lengths[able].astype(np.int64)
    ends = np.cumsum(sizes)
    room = window - 3

    def drawn(key: Key, batch_size: int) -> Pairs:
        draw = np.random.default_rng(key)
        firsts = np.searchsorted(ends, draw.integers(ends[-1], size=batch_size), "right")
        # Another document: as if the first one were not there.
        place = draw.integers(ends[-1] - sizes[firsts])
        place += np.where(place >= ends[firsts] - sizes[firsts], sizes[firsts], 0)
        others = np.searchsorted(ends, place, "right")
        short = draw.random(batch_size) < SHORT
        totals = np.where(short, draw.integers(2, room + 1, size=batch_size), room)
        totals = np.minimum(totals, sizes[firsts])
        cuts = draw.integers(1, totals)
        starts = draw.integers(sizes[firsts] - totals + 1)
        label = draw.integers(2, size=batch_size)
        lengths = np.minimum(totals - cuts, np.where(label, sizes[others], totals))
        jumps = draw.integers(sizes[others] - np.minimum(lengths, sizes[others]) + 1)
        tokens = np.full((batch_size, window), specials["[PAD]"], np.int32)
        segments = np.zeros((batch_size, window), np.int32)
        for row in range(batch_size):
            cut, start, end = cuts[row], starts[row], cuts[row] + 2
            first = documents[int(able[firsts[row]])]
            second, at = first, start + cut
            if label[row]:
                second, at = documents[int(able[others[row]])], jumps[row]
            last = end + lengths[row]
            tokens[row, 0] = specials["[CLS]"]
            tokens[row, 1 : end - 1] = first[start : start + cut]
            tokens[row, end - 1] = tokens[row, last] = specials["[SEP]"]
            tokens[row, end:last] = second[at : at + lengths[row]]
            segments[row, end : last + 1] = 1
        return Pairs(tokens, segments, label.astype(np.int32))

    return drawn


def batches(
    documents: Documents,
    specials: Mapping[str, int],
    vocab: int,
    batch_size: int,
    window: int,
    max_predictions: int | None = None,
) -> Callable[[int, int], Batch]:
    """A pure function of seed and step that gives batches of pairs with masked tokens.

    Raises ValueError for special tokens that are missing, and for too few documents.

    Args:
        documents: the text.
        specials: name → id of all special tokens.
        vocab: number of tokens.
        batch_size: number of pairs.
        window: tokens of a pair, T.
        max_predictions: P; 15 % of the window unless given.
    """
    _check(specials, vocab)
    drawn = _drawer(documents, specials, window)

    def batch(seed: int, step: int) -> Batch:
        return _batch(drawn, (seed, step), specials, vocab, batch_size, max_predictions)

    return batch


def shards(
    documents: Documents,
    specials: Mapping[str, int],
    vocab: int,
    n_shards: int,
    batch_size: int,
    window: int,
    max_predictions: int | None = None,
    seed: int = 0,
) -> list[Batch]:
    """Validation shards, masked once and the same ever after: batches of one shape.

    Raises ValueError as `batches` does.
    """
    _check(specials, vocab)
    drawn = _drawer(documents, specials, window)
    return [
        _batch(drawn, (seed, number, _VALID), specials, vocab, batch_size, max_predictions)
        for number in range(n_shards)
    ]


def _batch(
    drawn: Callable[[Key, int], Pairs],
    key: tuple[int, ...],
    specials: Mapping[str, int],
    vocab: int,
    batch_size: int,
    max_predictions: int | None,
) -> Batch:
    made = drawn((*key, _PAIRS), batch_size)
    found = mask(made.tokens, (*key, _MASK), specials, vocab, max_predictions)
    return {
        "tokens": found.inputs,
        "segments": made.segments,
        "positions": found.positions,
        "targets": found.targets,
        "weights": found.weights,
        "next": made.next,
    }


def _check(specials: Mapping[str, int], vocab: int) -> None:
    """Raises ValueError for special tokens that are missing or no tokens."""
    if missing := {"[PAD]", "[CLS]", "[SEP]", "[MASK]"} - specials.keys():
        raise ValueError(
            f"the special tokens are {sorted(specials)}; {sorted(missing)} are missing: give "
            "their ids, as the tokenizer has them"
        )
    ids = list(specials.values())
    if specials["[PAD]"] != 0 or len(set(ids)) < len(ids) or not 0 <= min(ids) <= max(ids) < vocab:
        raise ValueError(
            f"the special tokens' ids are {dict(specials)}; expected different ones below "
            f"vocab={vocab}, and 0 for [PAD], which models tell padding by"
        )
    if len(ids) >= vocab:
        raise ValueError(f"all {vocab} tokens are special; give a vocabulary with others")
