"""Masking and pairs: counts, what is never chosen, that nothing is lost, shares, purity."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from experiments.data import masked

SPECIALS = {"[PAD]": 0, "[UNK]": 7, "[CLS]": 3, "[SEP]": 5, "[MASK]": 4}
VOCAB = 400
IDS = np.array(sorted(SPECIALS.values()))


class Numbered:
    """Documents whose tokens tell document and place: 10 + 16 document + place."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = np.array(lengths, np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int, /) -> NDArray[np.int32]:
        return (10 + 16 * index + np.arange(self.lengths[index])).astype(np.int32)


DOCUMENTS = Numbered([16, 1, 16, 2, 5, 16])


def rows(lengths: Sequence[int], width: int, seed: int) -> masked.Tokens:
    """Rows of text with special tokens in it, filled up with [PAD]."""
    draw = np.random.default_rng(seed)
    made = draw.integers(1, VOCAB, (len(lengths), width)).astype(np.int32)
    made[np.arange(width) >= np.array(lengths)[:, None]] = SPECIALS["[PAD]"]
    return made


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    limit=st.none() | st.integers(1, 8),
    rate=st.sampled_from([0.05, 0.15, 0.5]),
    seed=st.integers(0, 2**32),
)
def test_a_masked_row(lengths: list[int], limit: int | None, rate: float, seed: int) -> None:
    tokens = rows(lengths, 40, seed)
    found = masked.mask(tokens, seed, SPECIALS, VOCAB, limit, rate)
    limit = round(rate * 40) if limit is None else limit
    assert found.positions.shape == found.targets.shape == found.weights.shape
    assert found.positions.shape == (len(lengths), limit)
    for row, length in enumerate(lengths):
        ordinary = (~np.isin(tokens[row], IDS)).sum()
        wanted = min(limit, max(1, round(rate * length)), ordinary)
        assert found.weights[row].tolist() == [1] * wanted + [0] * (limit - wanted)
        chosen = found.positions[row, :wanted]
        assert (np.diff(chosen) > 0).all()
        assert not np.isin(tokens[row, chosen], IDS).any()
        assert not found.positions[row, wanted:].any()
        assert not found.targets[row, wanted:].any()
        restored = found.inputs[row].copy()
        untouched = np.delete(np.arange(40), chosen)
        assert (restored[untouched] == tokens[row, untouched]).all()
        restored[chosen] = found.targets[row, :wanted]
        assert (restored == tokens[row]).all()


def test_what_becomes_of_the_chosen() -> None:
    tokens = np.random.default_rng(0).integers(8, VOCAB, (1000, 100)).astype(np.int32)
    found = masked.mask(tokens, 1, SPECIALS, VOCAB)
    shown = np.take_along_axis(found.inputs, found.positions, 1)
    hidden, kept = shown == SPECIALS["[MASK]"], shown == found.targets
    other = shown[~hidden & ~kept]
    ordinary = VOCAB - len(SPECIALS)
    # A random token is the same one now and then.
    same = 0.1 / ordinary
    for count, share in (
        (hidden.sum(), 0.8),
        (kept.sum(), 0.1 + same),
        (other.size, 0.1 - same),
    ):
        assert stats.binomtest(int(count), shown.size, share).pvalue > 1e-3
    assert not np.isin(other, IDS).any()
    counts = np.bincount(other, minlength=VOCAB)
    assert stats.chisquare(np.delete(counts, IDS)).pvalue > 1e-3
    # Every place is chosen equally often.
    assert stats.chisquare(np.bincount(found.positions.ravel())).pvalue > 1e-3


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 16), min_size=2, max_size=5),
    window=st.integers(5, 24),
    seed=st.integers(0, 2**32),
)
def test_pairs_are_what_their_label_says(lengths: list[int], window: int, seed: int) -> None:
    documents = Numbered([*lengths, 2, 2])
    found = masked.pairs(documents, seed, SPECIALS, 16, window)
    assert found.tokens.shape == found.segments.shape == (16, window)
    for tokens, segments, label in zip(*found):
        first, second = np.flatnonzero(tokens == SPECIALS["[SEP]"])
        a, b = tokens[1:first], tokens[first + 1 : second]
        assert tokens[0] == SPECIALS["[CLS]"]
        assert not tokens[second + 1 :].any()
        expected = [0] * (first + 1) + [1] * (second - first) + [0] * (window - second - 1)
        assert segments.tolist() == expected
        for segment in (a, b):
            document = (segment[0] - 10) // 16
            start = segment[0] - 10 - 16 * document
            whole = documents[document]
            assert (segment == whole[start : start + len(segment)]).all()
        if label:
            assert (a[0] - 10) // 16 != (b[0] - 10) // 16
        else:
            assert b[0] == a[-1] + 1


def test_pairs_draw_evenly() -> None:
    number, window = 20_000, 13
    found = masked.pairs(DOCUMENTS, 2, SPECIALS, number, window)
    assert stats.binomtest(int(found.next.sum()), number, 0.5).pvalue > 1e-3
    # Documents by their length; the second one, of one token, never.
    sizes = np.array([16, 0, 16, 2, 5, 16])
    firsts = np.bincount((found.tokens[:, 1] - 10) // 16, minlength=6)
    assert firsts[1] == 0
    assert stats.chisquare(firsts[sizes > 0], number * sizes[sizes > 0] / 55).pvalue > 1e-3
    # Of another document, by length among the others: the first one's after the third's.
    second = np.array([row[row.tolist().index(5) + 1] for row in found.tokens])
    here = (found.next == 1) & ((found.tokens[:, 1] - 10) // 16 == 2)
    others = np.bincount((second[here] - 10) // 16, minlength=6)
    left = np.where(np.arange(6) == 2, 0, sizes)
    assert others[left == 0].sum() == 0
    expected = here.sum() * left[left > 0] / left.sum()
    assert stats.chisquare(others[left > 0], expected).pvalue > 1e-3
    # Those of a long document fill the window, but for a tenth.
    long = ((found.tokens[:, 1] - 10) // 16 == 0) & (found.next == 0)
    full = (found.tokens[long, -1] == SPECIALS["[SEP]"]).sum()
    # Of nine lengths, the longest is the window's.
    assert stats.binomtest(int(full), int(long.sum()), 0.9 + 0.1 / 9).pvalue > 1e-3


def test_batches_are_pure_functions_of_seed_and_step() -> None:
    def made() -> masked.Batch:
        return masked.batches(DOCUMENTS, SPECIALS, VOCAB, 8, 16)(1, 0)

    batch = masked.batches(DOCUMENTS, SPECIALS, VOCAB, 8, 16)
    np.random.seed(3)  # A global generator must not matter.
    one, again = batch(1, 0), made()
    shapes = {name: (x.shape, x.dtype.name) for name, x in one.items()}
    assert shapes == {
        "tokens": ((8, 16), "int32"),
        "segments": ((8, 16), "int32"),
        "positions": ((8, 2), "int32"),
        "targets": ((8, 2), "int32"),
        "weights": ((8, 2), "float32"),
        "next": ((8,), "int32"),
    }
    valid = masked.shards(DOCUMENTS, SPECIALS, VOCAB, 3, 8, 16)
    for name, x in one.items():
        assert (x == again[name]).all()
        assert x.shape == valid[0][name].shape
    for name, x in masked.shards(DOCUMENTS, SPECIALS, VOCAB, 4, 8, 16)[2].items():
        assert (x == valid[2][name]).all()
    # No two are alike, a key's zeros and validation's numbers included.
    several = [one, batch(1, 1), batch(0, 1), batch(0, 0), *valid]
    assert len({x["tokens"].tobytes() for x in several}) == len(several)
    assert masked.batches(DOCUMENTS, SPECIALS, VOCAB, 8, 16, 5)(0, 0)["targets"].shape == (8, 5)


def test_what_does_not_fit_is_named_with_its_remedy() -> None:
    for specials, message in (
        ({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2}, r"\['\[MASK\]'\] are missing"),
        (SPECIALS | {"[PAD]": 1}, r"0 for \[PAD\]"),
        (SPECIALS | {"[UNK]": 3}, "expected different ones"),
        (SPECIALS | {"[UNK]": VOCAB}, f"below vocab={VOCAB}"),
    ):
        with pytest.raises(ValueError, match=message):
            masked.batches(DOCUMENTS, specials, VOCAB, 8, 16)
        with pytest.raises(ValueError, match=message):
            masked.shards(DOCUMENTS, specials, VOCAB, 1, 8, 16)
    with pytest.raises(ValueError, match="1 of 2 documents have two tokens"):
        masked.pairs(Numbered([1, 9]), 0, SPECIALS, 8, 16)
    with pytest.raises(ValueError, match="window=4 has no room"):
        masked.pairs(DOCUMENTS, 0, SPECIALS, 8, 4)
    with pytest.raises(ValueError, match="all 4 tokens are special"):
        masked.mask(
            np.zeros((1, 4), np.int32),
            0,
            dict(zip(("[PAD]", "[CLS]", "[SEP]", "[MASK]"), range(4))),
            4,
        )
